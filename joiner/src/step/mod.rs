//! A step: all changes up to a new frontier are applied, the entities that they touched are assembled, and everything is written at once. Pure but for the database: no clock, no network, no async.
//!
//! # Blind puts
//! A change is applied without reading: its before image tells every place where the old row stands, its after image every place where the new one goes. This is right as long as the state holds the row of the
//! before image, which holds once the state is the source's as of the frontier (by induction over the total order).
//!
//! # Why snapshot rows and a tail that overlaps them converge
//! A snapshot row was read at some LSN between the snapshot's start S and the time it was read; the tail is replayed from S over it, so a change may meet a row that is newer than its before
//! image. Consider one own key and its versions v0 (at S, perhaps none), v1, … vn (at some LSN at or past every read; perhaps none), and let p(v) be the places of a version in an index. Before the tail, the state holds the
//! row at p(vi) for some of the i (each time it was read, once or more, left it there). The event from vi to vi+1 removes what stands at p(vi), unless vi+1 stands there too, and puts vi+1 at p(vi+1). So after all
//! events: p(vn) holds vn, which was put last; and every other p(vi) was removed by the event that follows vi, and no later event puts anything there unless it is removed again or is p(vn). Nothing else was ever
//! put. Hence from `consistent_from` on (the captured maximum after the last read) the rows are those of the source. The same holds for a tail that is replayed over its own results.
//!
//! # Values that were not recorded
//! An update that leaves a `max` column as it was does not say its value: it is taken from the row at the before image's place, or else (a row that the snapshot saw further on) from the one at the after
//! image's place.
//!
//! # What changed
//! Each document that may have changed is assembled twice, from the state as it was and as it is: only one that differs goes out. (Keeping the documents, or hashes of them, would cost a lookup and a write for each; the rows that
//! both are made of are read once.) What is left for later ([`Pending`]) is kept with the hash of the document as it was, because that state is gone then.
//!
//! # Very many owners
//! A change of a row that very many documents refer to leads to a fan-out that is kept in the database and worked off in chunks: [`fan_out`].
//!
//! # Several threads
//! Documents are independent of each other: threads take them piece by piece, and what they made is put together in the order of the keys.

use std::sync::Arc;

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;

mod dirty;
mod documents;
mod fan_out;
mod walk;

use dirty::{Dirty, Room, Touched};
pub(crate) use documents::Share;
use documents::{Known, assemble, known};
pub(crate) use fan_out::{FanOuts, PAST_BYTES, tell};

use crate::accounting::Miscount;
use crate::assemble::Assembler;
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::catalog::{Catalog, IndexKind, TableId};
use crate::error::Error;
use crate::reread::{self, Counting, Vanished};
use crate::route::stored;
use crate::state::cache::RowCache;
use crate::state::meta::{Pending, Standing};
use crate::state::outbox;
use crate::state::row::{self, Row, Spans};
use crate::state::view::{Overlay, Reading, View, place};
use crate::state::{Family, Store};

/// What a step works with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) store: Arc<Store>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) cache: RowCache,
    /// Entities assembled and written at once.
    pub(crate) chunk: usize,
    pub(crate) share: Share,
}

impl Tools {
    /// The state as it stands in the database.
    fn view<'a>(&'a self, snapshot: &'a Snapshot<'a>) -> View<'a> {
        View { catalog: &self.catalog, store: &self.store, snapshot, overlay: None, cache: Some(&self.cache) }
    }
}

/// What a step did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// By tick, and in it by table: changes received, dead letters among them.
    pub(crate) received: Vec<u64>,
    /// Ticks in which more was received than published, and snapshots that were given up because rows were missing.
    pub(crate) miscounts: Vec<Miscount>,
    /// By table: changes applied, changes that had been dead-lettered.
    pub(crate) applied: Vec<u64>,
    pub(crate) dead: Vec<u64>,
    /// By table: rows that were read again and received, dead letters among them.
    pub(crate) reread: Vec<u64>,
    /// Entities assembled, entities changed.
    pub(crate) assembled: u64,
    pub(crate) changed: u64,
}

/// The rows of a step, applied but not written.
pub(crate) struct Applied {
    overlay: Overlay,
    /// By table: whose rows count that were read again.
    counting: Vec<Option<Counting>>,
    pub(crate) report: Report,
}

/// Applies changes to an overlay, in total order. `counting`: by table, what counts of it while it is read again: the rest is left out. `ticks`: where each
/// tick of the step ends.
pub(crate) fn apply(tools: &Tools, taken: &Taken, counting: Vec<Option<Counting>>, ticks: &[Lsn]) -> Result<Applied, Error> {
    let snapshot = tools.store.db().snapshot();
    let tables = tools.catalog.tables.len();
    let none = vec![0; tables];
    let received = vec![0; tables * ticks.len().max(1)];
    let mut report = Report { received, applied: none.clone(), dead: none.clone(), reread: none, ..Report::default() };
    let mut tick = 0;
    let mut writer = Writer { before: tools.view(&snapshot), overlay: Overlay::new(&tools.catalog), buffers: Default::default() };
    taken.for_each(|change| {
        if !reread::counts(counting[change.table], change.reader, change.commit_lsn) {
            return Ok(());
        }
        if change.reader.is_some() {
            report.reread[change.table] += 1;
            if change.kind == Kind::Rows {
                writer.apply(change)?;
            }
            return Ok(());
        }
        while ticks.get(tick).is_some_and(|end| change.commit_lsn > *end) && tick + 1 < ticks.len() {
            tick += 1;
        }
        report.received[tick * tables + change.table] += 1;
        match change.kind {
            Kind::Dead => report.dead[change.table] += 1,
            Kind::Nothing => report.applied[change.table] += 1,
            Kind::Rows => {
                report.applied[change.table] += 1;
                writer.apply(change)?;
            }
        }
        Ok(())
    })?;
    Ok(Applied { overlay: writer.overlay, counting, report })
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

struct Writer<'a> {
    before: View<'a>,
    overlay: Overlay,
    buffers: Buffers,
}

impl Writer<'_> {
    fn apply(&mut self, change: ChangeRef<'_>) -> Result<(), Error> {
        let catalog = self.before.catalog;
        let table = &catalog.tables[change.table];
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut after = change.after;
        if let Some(image) = change.after
            && row::columns(image).any(row::is_unavailable)
        {
            buffers.filled = self.fill(change, image)?;
            after = Some(&buffers.filled);
        }
        let old = change.before.map(|image| buffers.old_spans.read(image));
        let new = after.map(|image| (buffers.new_spans.read(image), image));
        // Every image has been checked when it came in: keys can be made of it.
        let refused = |_| self.before.store.corrupt("a buffered change that no key can be made of");
        for &id in &table.indexes {
            let index = &catalog.indexes[id];
            let kept = |row: Row<'_>| catalog.share.keeps(&catalog.entities, id, |slot| row.get(slot));
            let has_old = match old {
                Some(row) => place(id, index, row, &mut buffers.old_key).map_err(refused)? && kept(row),
                None => false,
            };
            let has_new = match new {
                Some((row, _)) => place(id, index, row, &mut buffers.new_key).map_err(refused)? && kept(row),
                None => false,
            };
            if has_old && !(has_new && buffers.old_key == buffers.new_key) {
                self.overlay.set(id, &buffers.old_key, None);
            }
            if let Some((row, image)) = new.filter(|_| has_new) {
                let value = stored(table, &index.stored, row, image, &mut buffers.value);
                self.overlay.set(id, &buffers.new_key, Some(value));
            }
        }
        self.buffers = buffers;
        Ok(())
    }

    /// The after image with what the source did not record taken from the rows that stand.
    fn fill(&self, change: ChangeRef<'_>, image: &[u8]) -> Result<Vec<u8>, Error> {
        let places = [self.standing(change, change.before)?, self.standing(change, Some(image))?];
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
    fn standing(&self, change: ChangeRef<'_>, image: Option<&[u8]>) -> Result<Option<Vec<u8>>, Error> {
        let Some(image) = image else { return Ok(None) };
        let view = View { overlay: Some(&self.overlay), ..self.before };
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

/// What is written beside the rows of a step, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// By index: whether the places of rows are remembered.
    pub(crate) remembered: Option<&'a [bool]>,
    /// Documents are left for later: what the rows are now is not consistent.
    pub(crate) hold: bool,
    /// Whether fan-outs to very many may be left for later.
    pub(crate) walks: bool,
    /// The frontier before the step, and its commit time.
    pub(crate) from: (Lsn, i64),
}

/// Writes rows and standing, and assembles nothing: while the first load catches up.
pub(crate) fn write_rows(
    tools: &Tools,
    applied: &Applied,
    remembered: Option<&[bool]>,
    standing: &Standing,
) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    applied.overlay.write(&tools.catalog, &tools.store, remembered, &mut batch)?;
    tools.store.write_with(batch, standing)?;
    tools.cache.apply(&applied.overlay);
    Ok(())
}

/// Assembles what the changes touched and writes everything. `standing` is the new one; its head is set here. What is more than `chunk` entities, or more than fits one write, is left for
/// [`drain`], which goes on from there.
pub(crate) fn finish(
    tools: &Tools,
    taken: &Taken,
    applied: &mut Applied,
    beside: Beside<'_>,
    fan_outs: &mut FanOuts,
    standing: &mut Standing,
) -> Result<(), Error> {
    let snapshot = tools.store.db().snapshot();
    let room = if beside.walks { Room::of_chunk(tools.chunk) } else { Room::ALL };
    let mut dirty = Dirty::new(View { overlay: Some(&applied.overlay), ..tools.view(&snapshot) }, room);
    let left_out = |change: &ChangeRef<'_>| !reread::counts(applied.counting[change.table], change.reader, change.commit_lsn);
    let add = |change: ChangeRef<'_>| {
        let doubtful = applied.counting[change.table].is_some();
        if left_out(&change) { Ok(()) } else { dirty.add(change, doubtful) }
    };
    taken.for_each(add)?;
    let touched = dirty.finish();
    let writing = Writing { tools, snapshot: &snapshot, overlay: &applied.overlay, beside };
    writing.write(touched, fan_outs, standing, &mut applied.report)
}

/// Removes rows of a table that have vanished, and leaves the documents for later.
pub(crate) fn remove(
    tools: &Tools,
    table: TableId,
    vanished: &[Vanished],
    standing: &mut Standing,
    report: &mut Report,
) -> Result<(), Error> {
    let mut overlay = Overlay::new(&tools.catalog);
    for Vanished { index, key, .. } in vanished {
        overlay.set(*index, key, None);
    }
    let snapshot = tools.store.db().snapshot();
    let mut dirty = Dirty::new(View { overlay: Some(&overlay), ..tools.view(&snapshot) }, Room::ALL);
    for row in vanished.iter().filter_map(|vanished| vanished.row.as_deref()) {
        let gone = ChangeRef { table, kind: Kind::Rows, commit_lsn: Lsn::ZERO, before: Some(row), after: None, reader: None };
        dirty.add(gone, false)?;
    }
    let touched = if standing.live { dirty.finish() } else { Touched::default() };
    let from = (standing.frontier, standing.commit_time_ms);
    let beside = Beside { remembered: None, hold: true, walks: false, from };
    // Nothing waits while a table is read again.
    Writing { tools, snapshot: &snapshot, overlay: &overlay, beside }.write(touched, &mut FanOuts::default(), standing, report)
}

/// A step that is about to be written.
struct Writing<'a> {
    tools: &'a Tools,
    /// The state before it.
    snapshot: &'a Snapshot<'a>,
    overlay: &'a Overlay,
    beside: Beside<'a>,
}

impl Writing<'_> {
    fn write(self, touched: Touched, fan_outs: &mut FanOuts, standing: &mut Standing, report: &mut Report) -> Result<(), Error> {
        let &Tools { ref store, ref catalog, chunk, share, .. } = self.tools;
        let (before, beside) = (self.tools.view(self.snapshot), self.beside);
        let Touched { owners, walks } = touched;
        let marks = fan_outs.look_up(store, self.snapshot, &owners)?;
        let at_once = if beside.hold || standing.pending.is_some() { 0 } else { chunk };
        // Of rows of different ages no document can be told.
        let mixed = !standing.mixed_until.is_zero();
        if !beside.hold {
            standing.mixed_until = Lsn::ZERO;
        }
        let was = |nth: usize| if mixed { Known::Nothing } else { Known::Through(fan_outs.as_told(&marks, nth)) };
        let now: Vec<_> = owners.iter().enumerate().take(at_once).map(|(nth, key)| (key.as_slice(), was(nth))).collect();
        let made = assemble(View { overlay: Some(self.overlay), ..before }, share, &now, standing)?;
        // Its buffer would otherwise be copied each time that it doubles.
        let mut batch = WriteBatch::with_capacity_bytes(self.overlay.bytes() + made.bytes() + 4096);
        self.overlay.write(catalog, store, beside.remembered, &mut batch)?;
        let tail = outbox::append(store, &mut batch, standing.head, made.entries())?;
        report.assembled += made.count() as u64;
        report.changed += tail - standing.head;
        let (done, rest) = owners.split_at(made.count());
        let rest = rest.iter().enumerate();
        let rest: Vec<_> = rest.map(|(nth, key)| (key.as_slice(), fan_outs.as_told(&marks, done.len() + nth))).collect();
        self.put_pending(rest, mixed, standing, tail, &mut batch)?;
        fan_outs.begin(before, self.overlay, walks, (standing.frontier, beside.from), &mut batch)?;
        fan_outs.mark(store, &mut batch, done.iter().map(Vec::as_slice), standing.frontier)?;
        if fan_outs.has_strict() {
            standing.pending.get_or_insert(Pending { tail });
        }
        if standing.pending.is_none() && !beside.hold {
            standing.head = tail;
            (standing.head_frontier, standing.head_commit_time_ms) = fan_outs.complete(standing);
        }
        store.write_with(batch, standing)?;
        self.tools.cache.apply(self.overlay);
        Ok(())
    }

    /// Leaves documents for later, with the hashes of what they were; `mixed`: nobody knows what they were. `tail`: the last outbox entry of the step so far.
    fn put_pending(
        &self,
        mut rest: Vec<(&[u8], Option<&Overlay>)>,
        mixed: bool,
        standing: &mut Standing,
        tail: u64,
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        let Tools { store, share, .. } = self.tools;
        if rest.is_empty() {
            return Ok(());
        }
        let family = store.family(Family::Pending)?;
        if standing.pending.is_some() {
            // What is pending already keeps the hash of its document as it was at the last consistent frontier.
            let mut new = Vec::with_capacity(rest.len());
            for key in rest {
                if store.get(Family::Pending, key.0)?.is_none() {
                    new.push(key);
                }
            }
            rest = new;
        }
        if mixed {
            rest.iter().for_each(|(key, _)| batch.put_cf(family, key, Known::NOTHING));
        } else {
            let share = Share { bytes: usize::MAX, ..*share };
            known(self.tools.view(self.snapshot), share, &rest, |key, hash| batch.put_cf(family, key, hash))?;
        }
        standing.pending.get_or_insert(Pending { tail });
        Ok(())
    }
}

/// Assembles the next entities of a step whose rows have been written. Answers false when none are left: then the step is done, and its outbox entries are to be seen.
pub(crate) fn drain(tools: &Tools, fan_outs: &mut FanOuts, standing: &mut Standing, report: &mut Report) -> Result<bool, Error> {
    let &Tools { ref store, chunk, share, .. } = tools;
    let Some(Pending { tail }) = standing.pending else { return Ok(false) };
    let snapshot = store.db().snapshot();
    let family = store.family(Family::Pending)?;
    let mut iterator = snapshot.raw_iterator_cf(family);
    iterator.seek_to_first();
    let mut pending: Vec<(Vec<u8>, Known<'_>)> = Vec::new();
    while let Some((key, hash)) = iterator.item().filter(|_| pending.len() < chunk) {
        let known = Known::read(hash).ok_or_else(|| store.corrupt("a document's hash that is not 16 bytes long"))?;
        pending.push((key.to_vec(), known));
        iterator.next();
    }
    iterator.status().map_err(|error| store.error(&error))?;
    // Its fan-outs come last: what the step touched itself has its marks then.
    if pending.is_empty() && tell(tools, fan_outs, false, standing, report)? {
        return Ok(standing.pending.is_some());
    }
    let now: Vec<_> = pending.iter().map(|(key, known)| (key.as_slice(), *known)).collect();
    let made = assemble(tools.view(&snapshot), share, &now, standing)?;
    let mut batch = WriteBatch::default();
    let new_tail = outbox::append(store, &mut batch, tail, made.entries())?;
    let done = now[..made.count()].iter().map(|(key, _)| *key);
    done.clone().for_each(|key| batch.delete_cf(family, key));
    fan_outs.mark(store, &mut batch, done, standing.frontier)?;
    report.assembled += made.count() as u64;
    report.changed += new_tail - tail;
    let more = made.count() == chunk || made.count() < now.len() || fan_outs.has_strict();
    if more {
        standing.pending = Some(Pending { tail: new_tail });
    } else {
        standing.pending = None;
        standing.head = new_tail;
        (standing.head_frontier, standing.head_commit_time_ms) = fan_outs.complete(standing);
    }
    store.write_with(batch, standing)?;
    Ok(more)
}

/// The frontier that a document assembled from the state right now reflects.
pub(crate) fn assemble_now(
    store: &Store,
    catalog: &Catalog,
    entity: usize,
    parts: &[u8],
) -> Result<(Standing, Option<(Lsn, String)>), Error> {
    let snapshot = store.db().snapshot();
    let standing = store.standing_at(&snapshot)?;
    let view = View { catalog, store, snapshot: &snapshot, overlay: None, cache: None };
    let mut text = Vec::new();
    let present = Assembler::new(view, &catalog.entities[entity], Reading::Once).document(parts, &mut text)?;
    let text = String::from_utf8(text).map_err(|_| store.corrupt("a document that is not UTF-8"))?;
    let version = standing.frontier;
    Ok((standing, present.then_some((version, text))))
}
