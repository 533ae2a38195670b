//! What the changes of a step make of the rows, before anything is written ([`super`] argues why it is right).

use std::sync::atomic::{AtomicUsize, Ordering};

use schemas::Lsn;

use super::{Report, Tools};
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::catalog::{Catalog, IndexKind};
use crate::cores::Together;
use crate::error::Error;
use crate::reread::{self, Counting};
use crate::route::stored;
use crate::state::row::{self, Row, Spans};
use crate::state::view::{Overlay, View, place};
use crate::state::writes::Was;

/// The rows of a step, applied but not written.
pub(crate) struct Applied {
    pub(super) overlay: Overlay,
    /// Whether these are all. Else there were more than was asked for, and there are none.
    pub(super) whole: bool,
    /// By table: whose rows count that were read again.
    pub(super) counting: Vec<Option<Counting>>,
    pub(crate) report: Report,
}

/// Applies changes to an overlay, those of each table in the total order, and counts them. `counting`: by table, what counts of it while it is read again: the rest is left out. `ticks`: where each
/// tick of the step ends. `most`: what the overlay may take; where that is too little, the rest is only counted. `again`: rows may be newer than the changes; `exact`: the state is the source's, and nothing that led to it was
/// set aside.
pub(crate) fn apply(
    tools: &Tools,
    taken: &Taken,
    counting: Vec<Option<Counting>>,
    ticks: &[Lsn],
    most: usize,
    (again, exact): (bool, bool),
) -> Result<Applied, Error> {
    let snapshot = tools.store.db().snapshot();
    let before = tools.view(&snapshot);
    let tables = tools.catalog.tables.len();
    let (bytes, counting_of) = (AtomicUsize::new(0), &counting);
    let shares = divide(tools, taken);
    let used = (shares.len() > 1).then(|| tools.cores.use_together());
    let part = |own: &[bool]| {
        let mut rows = Rows { exact, ..Rows::new(&tools.catalog) };
        let mut report = Report::of(tables, ticks);
        let mut at = vec![0; tables];
        let each = |change: ChangeRef<'_>| {
            let counting = counting_of[change.table];
            if !reread::counts(counting, change.reader, change.commit_lsn) {
                return Ok(());
            }
            report.count(change, ticks, &mut at);
            if change.kind == Kind::Rows && bytes.load(Ordering::Relaxed) <= most {
                let taken = rows.overlay.bytes();
                rows.apply(before, change, again || counting.is_some())?;
                bytes.fetch_add(rows.overlay.bytes() - taken, Ordering::Relaxed);
            }
            Ok(())
        };
        taken.for_each_of(&|table| own[table], each)?;
        rows.overlay.put_in_order();
        // Tables are not equally large.
        used.iter().for_each(Together::is_done);
        Ok::<_, Error>((rows.overlay, report))
    };
    let (mut overlay, report) = std::thread::scope(|scope| {
        let part = &part;
        let others: Vec<_> = shares[1..].iter().map(|own| (own, scope.spawn(move || part(own)))).collect();
        let (mut overlay, mut report) = part(&shares[0])?;
        for (own, other) in others {
            let (mut other, counted) = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            overlay.take_over(&tools.catalog, &mut other, own);
            report.add_counts(&counted);
        }
        Ok::<_, Error>((overlay, report))
    })?;
    let whole = bytes.into_inner() <= most;
    if !whole {
        overlay = Overlay::new(&tools.catalog);
    }
    Ok(Applied { overlay, whole, counting, report })
}

impl Report {
    /// Of nothing yet.
    fn of(tables: usize, ticks: &[Lsn]) -> Self {
        let none = vec![0; tables];
        let received = vec![0; tables * ticks.len().max(1)];
        Self { received, applied: none.clone(), dead: none.clone(), reread: none, ..Self::default() }
    }

    /// Adds what another has counted.
    fn add_counts(&mut self, other: &Self) {
        let add = |ours: &mut [u64], theirs: &[u64]| ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs);
        add(&mut self.received, &other.received);
        add(&mut self.applied, &other.applied);
        add(&mut self.dead, &other.dead);
        add(&mut self.reread, &other.reread);
    }

    /// Counts a change; `at`: by table, the tick that the one before it was of.
    fn count(&mut self, change: ChangeRef<'_>, ticks: &[Lsn], at: &mut [usize]) {
        if change.reader.is_some() {
            self.reread[change.table] += 1;
            return;
        }
        let (tables, tick) = (at.len(), &mut at[change.table]);
        while ticks.get(*tick).is_some_and(|end| change.commit_lsn > *end) && *tick + 1 < ticks.len() {
            *tick += 1;
        }
        self.received[*tick * tables + change.table] += 1;
        let counts = if change.kind == Kind::Dead { &mut self.dead } else { &mut self.applied };
        counts[change.table] += 1;
    }
}

/// For fewer changes another thread is not worth its start.
const CHANGES_PER_THREAD: usize = 2048;

/// Shares the tables out among threads, by how many changes each has; by share, which tables are in it. What is made of one table's rows has to do with no other's: an index is of one table.
fn divide(tools: &Tools, taken: &Taken) -> Vec<Vec<bool>> {
    let tables = tools.catalog.tables.len();
    let Taken::Memory(taken) = taken else { return vec![vec![true; tables]] };
    let changes: usize = taken.iter().map(Vec::len).sum();
    let threads = tools.share.threads.min(changes / CHANGES_PER_THREAD).max(1);
    let mut counts: Vec<_> = (0..tables).map(|table| (0, table)).collect();
    for changes in taken {
        changes.first().iter().for_each(|change| counts[usize::from(change.table)].0 = changes.len());
    }
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let mut shares = vec![(0, vec![false; tables]); threads.min(tables).max(1)];
    for (count, table) in counts {
        if let Some((sum, own)) = shares.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += count;
            own[table] = true;
        }
    }
    shares.into_iter().map(|(_, own)| own).collect()
}

#[derive(Default)]
struct Buffers {
    old_key: Vec<u8>,
    new_key: Vec<u8>,
    value: Vec<u8>,
    filled: Vec<u8>,
    old_spans: Spans,
    new_spans: Spans,
}

/// What changes make of the rows.
pub(super) struct Rows {
    pub(super) overlay: Overlay,
    /// Whether all that was put before stands in the state: what would be put as it stands there need not be put.
    exact: bool,
    buffers: Buffers,
}

impl Rows {
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { overlay: Overlay::new(catalog), exact: false, buffers: Buffers::default() }
    }

    /// Takes in the next change. `before`: the state without any of them; `doubtful`: the before image need not be what stands in it.
    pub(super) fn apply(&mut self, before: View<'_>, change: ChangeRef<'_>, doubtful: bool) -> Result<(), Error> {
        let catalog = before.catalog;
        let table = &catalog.tables[change.table];
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut after = change.after;
        if let Some(image) = change.after
            && row::columns(image).any(row::is_unavailable)
        {
            buffers.filled = self.fill(before, change, image)?;
            after = Some(&buffers.filled);
        }
        let old = change.before.map(|image| buffers.old_spans.read(image));
        let new = after.map(|image| (buffers.new_spans.read(image), image));
        // Every image has been checked when it came in: keys can be made of it.
        let refused = |_| before.store.corrupt("a buffered change that no key can be made of");
        for &id in &table.indexes {
            let index = &catalog.indexes[id];
            let kept = |row: Row<'_>| catalog.share.keeps(&catalog.entities, id, |slot| row.get(slot));
            let new_stands = match new {
                Some((row, _)) => place(id, index, row, &mut buffers.new_key).map_err(refused)?,
                None => false,
            };
            let old_stands = match (old, new) {
                (Some(row), Some((other, _))) if index.puts_alike(row, other) => {
                    buffers.old_key.clone_from(&buffers.new_key);
                    new_stands
                }
                (Some(row), _) => place(id, index, row, &mut buffers.old_key).map_err(refused)?,
                (None, _) => false,
            };
            let has_new = new_stands && new.is_some_and(|(row, _)| kept(row));
            let has_old = old_stands && old.is_some_and(kept);
            let stays = has_old && has_new && buffers.old_key == buffers.new_key;
            // What stood at the old place; and at the new one, where nothing is said of another.
            let was = match change.before.filter(|_| has_old) {
                _ if doubtful || !self.overlay.keeps_what_was(id) => Was::Unknown,
                Some(image) if row::columns(image).any(row::is_unavailable) => Was::Unknown,
                Some(image) => Was::Row(image),
                None => Was::Nothing,
            };
            if has_old && !stays {
                self.overlay.set_after(id, &buffers.old_key, None, was);
            }
            let same = |slot: &usize| matches!((old, new), (Some(old), Some((new, _))) if old.get(*slot) == new.get(*slot));
            if stays && self.exact && !doubtful && index.stored.iter().all(same) {
                continue;
            }
            if let Some((row, image)) = new.filter(|_| has_new) {
                let value = stored(table, &index.stored, row, image, &mut buffers.value);
                self.overlay.set_after(id, &buffers.new_key, Some(value), if has_old && !stays { Was::Unknown } else { was });
            }
        }
        self.buffers = buffers;
        Ok(())
    }

    /// The after image with what the source did not record taken from the rows that stand.
    fn fill(&self, before: View<'_>, change: ChangeRef<'_>, image: &[u8]) -> Result<Vec<u8>, Error> {
        let places = [self.standing(before, change, change.before)?, self.standing(before, change, Some(image))?];
        let mut out = Vec::with_capacity(image.len());
        for (slot, fragment) in row::columns(image).enumerate() {
            let known = || {
                let rows = places.iter().flatten();
                rows.filter_map(|row| row::columns(row).nth(slot)).find(|known| !row::is_unavailable(known)).unwrap_or(fragment)
            };
            row::put(if row::is_unavailable(fragment) { known() } else { fragment }, &mut out);
        }
        Ok(out)
    }

    /// The row that stands at an image's place.
    fn standing(&self, before: View<'_>, change: ChangeRef<'_>, image: Option<&[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let Some(image) = image else { return Ok(None) };
        let view = View { overlay: Some(&self.overlay), ..before };
        let (mut spans, mut key) = (Spans::default(), Vec::new());
        let row: Row<'_> = spans.read(image);
        for &id in &view.catalog.tables[change.table].indexes {
            let index = &view.catalog.indexes[id];
            if index.kind == IndexKind::Rows && place(id, index, row, &mut key).unwrap_or(false) {
                return view.get(id, &key, <[u8]>::to_vec);
            }
        }
        Ok(None)
    }
}
