//! Files of a sensible size, and none that nobody needs.
//!
//! *Compaction.* Small files of changes of one date are written as one, when there are [`FILES_TO_UNITE`] of about the same size; since what comes out is several times as large, a row is moved only a few
//! times in its life. Rows that are not among the current entities yet are left where they are, and so are the files of loads, which are large by themselves. The entry says that no data changes.
//!
//! *Removal.* Files that the tables do not name any more, and those that no commit ever named, are deleted when they have been so for `removed_hours`: until then, readers of an earlier
//! snapshot find them. Entries of the log that a checkpoint has made needless are deleted after thirty days, as Delta's other writers do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::actions::Line;
use super::file::leading;
use super::log::{Committed, File, Log, now_ms};
use super::rows::{self, DATE};
use super::table::{Table, read_file, write_file};
use crate::Error;

/// Files of one size that are united.
const FILES_TO_UNITE: usize = 10;
/// Sizes are told apart by this factor.
const SIZE_FACTOR: usize = 8;
/// Files smaller than this are of one size.
const LEAST_SIZE: usize = 64 << 10;
const LOG_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How often what is not needed is looked for.
const REMOVE_EVERY: Duration = Duration::from_secs(6 * 3600);

impl Table {
    /// Unites small files of changes, where there are enough of them. Of several writers the first does it.
    pub(super) async fn compact(&mut self) -> Result<(), Error> {
        if !self.leads() {
            return Ok(());
        }
        let merged = self.merged();
        let mut by_size: BTreeMap<(String, u32), Vec<&File>> = BTreeMap::new();
        let small = self.changes.snapshot.files.values().filter(|file| file.bytes < self.file_bytes / 2);
        for file in small.filter(|file| file.load.is_none() && file.commit <= merged) {
            let size = (file.bytes / LEAST_SIZE).checked_ilog(SIZE_FACTOR).map_or(0, |size| size + 1);
            let date = file.add.partition_values.get(DATE).cloned().flatten().unwrap_or_default();
            by_size.entry((date, size)).or_default().push(file);
        }
        let Some(mut files) = by_size.into_values().find(|files| files.len() >= FILES_TO_UNITE) else { return Ok(()) };
        files.sort_by_key(|file| file.commit);
        files.truncate(leading(&files, self.file_bytes, |file| file.bytes));
        let united: Vec<File> = files.into_iter().cloned().collect();
        let latest = united.iter().map(|file| file.commit).max();
        let mut rows = Vec::new();
        let mut lines = Vec::new();
        for file in &united {
            rows.extend(read_file(&self.changes, &self.changes_layout, file).await?);
            lines.push(Line::remove(&file.add.path, now_ms(), false));
        }
        lines.push(Line::add(write_file(&self.changes, &self.changes_layout, rows, latest).await?));
        // Where another sink was faster, it has done some of it.
        let _: Committed = self.changes.commit("OPTIMIZE", lines, None).await?;
        Ok(())
    }

    /// Removes what is not needed any more, now and then.
    pub(super) async fn remove_if_due(&mut self, removed_kept: Duration, changes_days: Option<u32>) -> Result<(), Error> {
        // A merge under way reads files, and has written some that no entry names yet.
        if !self.leads() || self.merging.is_some() || self.tidied.is_some_and(|at| at.elapsed() < REMOVE_EVERY) {
            return Ok(());
        }
        // What another has committed meanwhile is not to be taken for what nobody names.
        self.current.follow().await?;
        if let Some(days) = changes_days {
            self.drop_old_changes(days).await?;
        }
        let merged = self.merged();
        remove_unnamed(&mut self.changes, removed_kept, merged).await?;
        remove_unnamed(&mut self.current, removed_kept, i64::MAX).await?;
        self.tidied = Some(Instant::now());
        Ok(())
    }

    /// Takes changes of more than so many days ago out of their table.
    async fn drop_old_changes(&mut self, days: u32) -> Result<(), Error> {
        let least = rows::date(now_ms() - i64::from(days) * 86_400_000);
        let merged = self.merged();
        let old = self.changes.snapshot.files.values().filter(|file| {
            let date = file.add.partition_values.get(DATE).and_then(|date| date.as_deref());
            file.commit <= merged && date.is_some_and(|date| date < least.as_str())
        });
        let lines: Vec<Line> = old.map(|file| Line::remove(&file.add.path, now_ms(), true)).collect();
        if !lines.is_empty() {
            let _: Committed = self.changes.commit("DELETE", lines, None).await?;
        }
        Ok(())
    }
}

/// Deletes the files below a table's folder that it does not need, and has not for so long.
async fn remove_unnamed(log: &mut Log, kept: Duration, merged: i64) -> Result<(), Error> {
    let place = log.place.clone();
    let before = |kept: Duration| now_ms().saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
    let (unnamed_before, logged_before) = (before(kept), before(kept.max(LOG_KEPT)));
    let checkpoint = log.last_checkpoint();
    let (mut doomed, mut removed) = (Vec::new(), Vec::new());
    for (path, object) in place.list().await? {
        let path = path.as_str();
        let needless = match path.strip_prefix("_delta_log/") {
            Some(entry) => {
                let number = entry.get(..20).and_then(|digits| digits.parse::<i64>().ok());
                number.is_some_and(|number| number < checkpoint && number <= merged) && object.modified_ms < logged_before
            }
            None => {
                let since = log.snapshot.removed.get(path).copied().unwrap_or_default().max(object.modified_ms);
                !log.snapshot.files.contains_key(path) && since < unnamed_before
            }
        };
        if needless {
            removed.push(path.to_owned());
            doomed.push(object.path);
        }
    }
    place.remove(doomed).await?;
    log.snapshot.removed.retain(|path, _| !removed.contains(path));
    Ok(())
}
