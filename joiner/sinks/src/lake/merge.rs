//! The current entities, made of the table of changes.
//!
//! The table of current entities is files of rows in the order of keys, no two of which overlap: a merge reads the files that changed keys fall into, puts the latest row of each key in place, and writes
//! what comes out in files of the wanted size. One entry of its log removes the old files, adds the new ones, and says (`txn`) up to which entry of the table of changes that is: so a merge happens whole or not at all, and the next one
//! begins where it ended, in whichever process.
//!
//! # Why it comes out right
//! A row is replaced by one of a later version, or of the same version that was written later, and by no other. So it makes no difference whether changes are merged in one go or in many, nor whether
//! some are merged again after a commit that was lost to another sink. A deletion takes its row away; what is older than it can never come later, since the table of changes leaves it out.
//!
//! # What it costs
//! Changes all over the keys touch every file, and then each merge writes all current entities anew. It runs beside the writing of changes (one a table, so that its memory is bounded), which does not wait for it; what is written meanwhile is the next one's. That is why it is done only now and then: `current_seconds` apart, and (unless that is 0) never more than a tenth
//! of the time ([`Table::merge_if_due`]). Memory is bounded by the rows of a round, of two files' worth, and one file beside.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::actions::Line;
use super::file::{Layout, leading};
use super::log::{Committed, File, Log, now_ms};
use super::rows::{Operation, Row};
use super::table::{Table, read_file, write_file};
use crate::Error;

/// Under which name the current entities keep the number of the last entry of changes that they hold.
const APPLICATION: &str = "tributary.changes";
/// A merge is followed by a pause of so many times its length.
const PAUSE_FACTOR: u32 = 9;

/// Changes that the first of several writers has not merged for so many times `current_seconds` are merged by the others.
const STAND_IN_AFTER: u32 = 3;

/// A row and its key's place in the order.
type Placed = (Box<[u8]>, Row);

/// Merges what is committed to a table of changes as of one moment.
struct Merger {
    changes: Log,
    /// Nobody else commits to it meanwhile, but another sink of this name.
    current: Log,
    changes_layout: Arc<Layout>,
    current_layout: Arc<Layout>,
    file_bytes: usize,
}

/// A merge beside the writing of changes. Ends with this value: what it has written by then is files that no entry names.
///
/// The log of the current entities as it then stands, and how long it took.
pub(super) struct Merging(JoinHandle<Result<(Log, Duration), Error>>);

impl Drop for Merging {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Of several writers, what one that is not the first knows of that one's merges: where they end, the others merge. Two that do at once, or while the first comes back, take turns by the numbers of the log, and one of them has worked
/// in vain; whoever sees another's merge leaves it to that one again.
#[derive(Debug, Default)]
pub(super) struct StandIn {
    /// How far the current entities had come when they were looked at, and since when.
    seen: Option<(i64, Instant)>,
    look_at: Option<Instant>,
    pub(super) active: bool,
}

impl StandIn {
    fn is_to_look(&self, now: Instant) -> bool {
        self.look_at.is_none_or(|at| at <= now)
    }

    /// `waiting`: there are changes behind `merged`.
    fn look(&mut self, merged: i64, waiting: bool, every: Duration, now: Instant) {
        self.look_at = Some(now + every);
        match self.seen {
            Some((seen, since)) if seen == merged && (waiting || self.active) => {
                self.active |= now.duration_since(since) >= every * STAND_IN_AFTER;
            }
            _ => (self.seen, self.active) = (Some((merged, now)), false),
        }
    }

    fn has_merged(&mut self, merged: i64) {
        if let Some((seen, _)) = &mut self.seen {
            *seen = merged;
        }
    }
}

impl Table {
    /// The last entry of the table of changes whose rows are all among the current entities.
    pub(super) fn merged(&self) -> i64 {
        merged_by(&self.current)
    }

    /// Takes in a merge that has ended, and begins one that is due: beside what is written meanwhile, unless it is to come with each commit. Of several writers the first does it, or who stands in for it.
    pub(super) async fn merge_if_due(&mut self, every: Duration) -> Result<(), Error> {
        if self.merging.as_ref().is_some_and(|merging| !merging.0.is_finished()) {
            return Ok(());
        }
        if let Some(mut merging) = self.merging.take() {
            let merged = (&mut merging.0).await.map_err(|error| Error::unexpected(&self.current.place.name, error))?;
            let (current, took) = merged?;
            self.current = current;
            self.merge_at = Some(Instant::now() + every.max(took * PAUSE_FACTOR));
            self.stand_in.has_merged(self.merged());
        }
        if !self.is_first() && !every.is_zero() && self.stand_in.is_to_look(Instant::now()) {
            self.current.follow().await?;
            let (merged, waiting) = (self.merged(), self.unmerged().next().is_some());
            self.stand_in.look(merged, waiting, every, Instant::now());
        }
        let (waits, leaves_it) = (self.merge_at.is_some_and(|at| Instant::now() < at), !self.leads() && !every.is_zero());
        if waits || leaves_it || self.unmerged().next().is_none() {
            return Ok(());
        }
        if every.is_zero() {
            return self.merge().await;
        }
        let merger = self.merger();
        let work = async move {
            let began = Instant::now();
            merger.run().await.map(|current| (current, began.elapsed()))
        };
        self.merging = Some(Merging(tokio::spawn(work)));
        Ok(())
    }

    /// Merges everything that is committed, and waits for it.
    pub(super) async fn merge(&mut self) -> Result<(), Error> {
        // One that is under way would only be in the way.
        self.merging = None;
        self.current = self.merger().run().await?;
        Ok(())
    }

    fn merger(&self) -> Merger {
        let (changes, current) = (self.changes.clone(), self.current.clone());
        let (changes_layout, current_layout) = (self.changes_layout.clone(), self.current_layout.clone());
        Merger { changes, current, changes_layout, current_layout, file_bytes: self.file_bytes }
    }

    /// The files of changes whose rows are not among the current entities.
    pub(super) fn unmerged(&self) -> impl Iterator<Item = &File> {
        unmerged_by(&self.changes, &self.current)
    }
}

fn merged_by(current: &Log) -> i64 {
    current.snapshot.txns.get(APPLICATION).copied().unwrap_or(-1)
}

fn unmerged_by<'a>(changes: &'a Log, current: &Log) -> impl Iterator<Item = &'a File> {
    let merged = merged_by(current);
    changes.snapshot.files.values().filter(move |file| file.commit > merged)
}

impl Merger {
    async fn run(mut self) -> Result<Log, Error> {
        let mut done: HashSet<String> = HashSet::new();
        loop {
            let unmerged = unmerged_by(&self.changes, &self.current);
            let mut pending: Vec<File> = unmerged.filter(|file| !done.contains(&file.add.path)).cloned().collect();
            if pending.is_empty() {
                return Ok(self.current);
            }
            pending.sort_by_cached_key(|file| (file.commit, self.changes_layout.order.place(&file.first)));
            let round = &pending[..leading(&pending, 2 * self.file_bytes, |file| file.bytes)];
            let rows = self.latest(round).await?;
            let mut lines = self.place_rows(rows).await?;
            // An entry that is larger than a round is done when all of its files are.
            let reached = match pending.get(round.len()) {
                Some(next) => next.commit - 1,
                None => round.last().map_or(-1, |file| file.commit),
            };
            if reached > merged_by(&self.current) {
                lines.push(Line::txn(APPLICATION, reached, now_ms()));
            }
            let whole = round.len() == pending.len();
            let held = if whole { &self.changes.snapshot.parts } else { &self.current.snapshot.parts }.clone();
            if lines.is_empty() || self.current.commit_as("MERGE", lines, &held).await? == Committed::Done {
                done.extend(round.iter().map(|file| file.add.path.clone()));
            } else {
                done.clear();
            }
        }
    }

    /// The latest row of each key, in the order of keys.
    async fn latest(&self, files: &[File]) -> Result<Vec<Placed>, Error> {
        let mut latest: HashMap<Box<str>, Row> = HashMap::new();
        for file in files {
            for row in read_file(&self.changes, &self.changes_layout, file).await? {
                match latest.get_mut(&row.key) {
                    Some(known) if known.standing() > row.standing() => {}
                    Some(known) => *known = row,
                    None => drop(latest.insert(row.key.clone(), row)),
                }
            }
        }
        let order = &self.changes_layout.order;
        let mut rows: Vec<Placed> = latest.into_values().map(|row| (order.place(&row.key), row)).collect();
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(rows)
    }

    /// Puts rows into the files that they fall into; what the log has to say of it.
    async fn place_rows(&self, rows: Vec<Placed>) -> Result<Vec<Line>, Error> {
        let order = &self.current_layout.order;
        let mut files: Vec<(Box<[u8]>, &File)> =
            self.current.snapshot.files.values().map(|file| (order.place(&file.first), file)).collect();
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut shares: Vec<Vec<Placed>> = files.iter().map(|_| Vec::new()).collect();
        if shares.is_empty() {
            shares.push(Vec::new());
        }
        for row in rows {
            let at = files.partition_point(|(first, _)| *first <= row.0).saturating_sub(1);
            shares[at].push(row);
        }
        let mut lines = Vec::new();
        let mut out = Output { merger: self, rows: Vec::new(), bytes: 0, lines: &mut lines };
        let mut before_touched = false;
        for (at, share) in shares.into_iter().enumerate() {
            let file = files.get(at).map(|(_, file)| *file);
            // A small file behind one that is written anew joins it.
            let small = file.is_some_and(|file| before_touched && file.bytes < self.file_bytes / 4);
            before_touched = !share.is_empty() || small;
            if !before_touched {
                out.end().await?;
                continue;
            }
            let there = match file {
                Some(file) => {
                    out.lines.push(Line::remove(&file.add.path, now_ms(), true));
                    read_file(&self.current, &self.current_layout, file).await?
                }
                None => Vec::new(),
            };
            for row in merged(there.into_iter().map(|row| (order.place(&row.key), row)), share) {
                out.push(row).await?;
            }
        }
        out.end().await?;
        Ok(lines)
    }
}

/// Both in the order of keys, and each key once. Where both have it, the later row counts; a deletion leaves nothing.
fn merged(there: impl Iterator<Item = Placed>, changed: Vec<Placed>) -> impl Iterator<Item = Row> {
    let (mut there, mut changed) = (there.peekable(), changed.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (there.peek(), changed.peek()) {
            (Some(there), Some(changed)) => there.0.cmp(&changed.0),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, _) => std::cmp::Ordering::Greater,
        };
        let (kept, change) = match order {
            std::cmp::Ordering::Less => (there.next(), None),
            std::cmp::Ordering::Greater => (None, changed.next()),
            std::cmp::Ordering::Equal => (there.next(), changed.next()),
        };
        match (kept, change) {
            (Some((_, kept)), Some((_, change))) => Some(Some(if kept.standing() > change.standing() { kept } else { change })),
            (Some((_, row)), None) | (None, Some((_, row))) => Some(Some(row)),
            (None, None) => None,
        }
    })
    .flatten()
    .filter(|row| row.operation != Operation::Delete)
}

/// Collects rows to files of the wanted size.
struct Output<'a> {
    merger: &'a Merger,
    rows: Vec<Row>,
    bytes: usize,
    lines: &'a mut Vec<Line>,
}

impl Output<'_> {
    async fn push(&mut self, row: Row) -> Result<(), Error> {
        self.bytes += row.bytes();
        self.rows.push(row);
        if self.bytes >= self.merger.file_bytes { self.end().await } else { Ok(()) }
    }

    async fn end(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if !rows.is_empty() {
            let Merger { current, current_layout, .. } = self.merger;
            self.lines.push(Line::add(write_file(current, current_layout, rows, None).await?));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use schemas::Lsn;

    use super::*;

    fn row(key: &str, version: u8, written_us: i64) -> Placed {
        let row = Row {
            key: key.into(),
            version: Lsn::from_bytes([version; 10]),
            committed_ms: 0,
            written_us,
            operation: Operation::Upsert,
            document: Some(Bytes::from_static(b"{}")),
            members: None,
        };
        (key.as_bytes().into(), row)
    }

    fn gone(key: &str, version: u8) -> Placed {
        let (place, mut row) = row(key, version, 9);
        (row.operation, row.document) = (Operation::Delete, None);
        (place, row)
    }

    #[test]
    fn another_merges_where_the_first_does_not_until_that_one_does() {
        let (mut stand_in, every, began) = (StandIn::default(), Duration::from_secs(600), Instant::now());
        let mut look = |minutes: u64, merged: i64, waiting: bool, own: Option<i64>| {
            let now = began + Duration::from_secs(minutes * 60);
            assert!(stand_in.is_to_look(now), "after {minutes} minutes");
            stand_in.look(merged, waiting, every, now);
            assert!(!stand_in.is_to_look(now));
            if let Some(merged) = own {
                stand_in.has_merged(merged);
            }
            stand_in.active
        };
        assert!(!look(0, 5, true, None) && !look(20, 5, true, None), "it may only be late");
        assert!(!look(30, 7, true, None), "it was");
        assert!(!look(60, 7, false, None) && !look(80, 7, true, None), "there was nothing to do");
        assert!(look(90, 7, true, Some(8)), "it has merged nothing for half an hour");
        assert!(look(100, 8, false, None) && look(110, 8, true, Some(9)), "and goes on");
        assert!(!look(120, 11, true, None), "it is back");
    }

    #[test]
    fn the_later_row_of_each_key_stays_and_deletions_leave_nothing() {
        let there = [row("a", 1, 1), row("b", 5, 1), row("c", 1, 5), row("d", 1, 1), row("e", 7, 1)];
        let changed =
            vec![row("A", 1, 2), row("b", 4, 2), row("c", 1, 6), gone("d", 2), gone("e", 6), gone("f", 1), row("g", 1, 2)];
        let kept: Vec<_> = merged(there.into_iter(), changed).map(|row| (row.key.to_string(), row.standing())).collect();
        let expected = [row("A", 1, 2), row("a", 1, 1), row("b", 5, 1), row("c", 1, 6), row("e", 7, 1), row("g", 1, 2)];
        assert_eq!(kept, expected.map(|(_, row)| (row.key.to_string(), row.standing())));
    }
}
