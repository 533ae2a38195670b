//! A step: all changes up to a new frontier are applied, the entities that they touched are assembled, and everything is written at once. Pure but for the database: no clock, no network, no async.
//!
//! # Blind puts
//! A change is applied without reading: its before image tells every place where the old row stands, its after image every place where the new one goes. This is right as long as the state holds the row of the
//! before image, which holds once the state is the source's as of the frontier (by induction over the total order). Then, too, what a change leaves as it stands (an order's link to its customer, mostly) is not put again. Where
//! changes have been set aside as dead letters it is: so an index gets whole again bit by bit.
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
//! both are made of are read once.) Where the images of the changes show that the root itself is another, in a column that stands in the document, the document is, and what it was is not assembled (`documents::Documents::root_differs`). This errs on one side only: should a before image not be what
//! stands in the state, a document may be told that has not changed, and none is kept back. What is left for later ([`Pending`]) is kept with the hash of the document as it was, because that state is gone then.
//!
//! # Entities whose time is over
//! The frontier's time is an argument of the assembling. What comes due with a step is looked at as what a change has touched is: [`expire`].
//!
//! # More rows than fit in memory
//! A step that changes more is written in portions, and told when it is whole: [`portions`].
//!
//! # Very many owners
//! A change of a row that very many documents refer to leads to a fan-out that is kept in the database and worked off in chunks: [`fan_out`].
//!
//! # Several threads
//! What is made of one table's rows has to do with no other's: large steps are applied table by table side by side ([`rows`]). Documents are independent of each other: threads take them piece by piece, and what they made is put
//! together in the order of the keys. The cache follows beside the write.

use std::sync::Arc;

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;

mod contribute;
mod dirty;
mod documents;
mod expire;
mod fan_out;
mod portions;
mod rows;
mod walk;

use contribute::contribute;
pub(crate) use contribute::make_first;
use dirty::{Dirty, Room, Touched};
pub(crate) use documents::Share;
use documents::{Known, Times, assemble, known};
pub(crate) use expire::is_many as expires_many;
pub(crate) use fan_out::{FanOuts, PAST_BYTES, tell};
use portions::Begun;
pub(crate) use rows::{Applied, apply};

use crate::accounting::Miscount;
use crate::assemble::expired::Expired;
use crate::assemble::parts::Stale;
use crate::assemble::{Assembler, Made};
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::catalog::{Catalog, TableId};
use crate::cores::{Cores, Together};
use crate::error::Error;
use crate::reread::{self, Vanished};
use crate::state::cache::RowCache;
use crate::state::meta::{Pending, Standing};
use crate::state::outbox;
use crate::state::view::{Overlay, Reading, View};
use crate::state::{Family, Store};

/// The bytes of rows from which on a thread of its own is worth its start.
const WORTH_A_THREAD: usize = 256 << 10;

/// What a step works with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) store: Arc<Store>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) cache: RowCache,
    /// Entities assembled and written at once.
    pub(crate) chunk: usize,
    /// Bytes of rows that are written at once.
    pub(crate) portion: usize,
    pub(crate) share: Share,
    pub(crate) cores: Arc<Cores>,
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

/// What is written beside the rows of a step, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// The number of the source whose changes are applied.
    pub(crate) source: usize,
    /// By index: whether the places of rows are remembered.
    pub(crate) remembered: Option<&'a [bool]>,
    /// Documents are left for later: what the rows are now is not consistent.
    pub(crate) hold: bool,
    /// Whether fan-outs to very many may be left for later.
    pub(crate) walks: bool,
    /// Portions of a step that goes further have been written before: rows may be newer than the changes that come.
    pub(crate) again: bool,
    /// The frontier before the step, and its commit time.
    pub(crate) from: (Lsn, i64),
    /// Whose time was over before it.
    pub(crate) told: &'a Expired,
}

/// Writes rows and standing, and assembles nothing: while the first load catches up.
pub(crate) fn write_rows(
    tools: &Tools,
    taken: &Taken,
    applied: &mut Applied,
    beside: Beside<'_>,
    standing: &Standing,
) -> Result<(), Error> {
    let last = portions::write(tools, taken, applied, beside, &mut Begun::new(beside.source, standing))?;
    let overlay = last.as_ref().map_or(&applied.overlay, |last| last.overlay());
    let mut batch = WriteBatch::default();
    overlay.write(&tools.catalog, &tools.store, beside.remembered, &mut batch)?;
    tools.store.write_with(batch, standing)?;
    tools.cache.apply(&tools.catalog, overlay);
    Ok(())
}

/// Assembles what the changes touched and writes everything. `standing` is the new one; its head is set here. What is more than `chunk` entities, or more than fits one write, is left for
/// [`drain`], which goes on from there.
pub(crate) fn finish(
    tools: &Tools,
    taken: Taken,
    applied: &mut Applied,
    beside: Beside<'_>,
    fan_outs: &mut FanOuts,
    standing: &mut Standing,
) -> Result<(), Error> {
    let mut begun = Begun::new(beside.source, standing);
    let last = portions::write(tools, &taken, applied, beside, &mut begun)?;
    let overlay = last.as_ref().map_or(&applied.overlay, |last| last.overlay());
    let (snapshot, now) = (tools.store.db().snapshot(), Expired::as_of(&tools.catalog, standing));
    let writing = Writing { tools, snapshot: &snapshot, overlay, beside, now: &now };
    let touched = writing.touched(&mut begun, |dirty| {
        match &last {
            Some(last) => last.touch(dirty),
            None => taken.for_each(|change| {
                let counting = applied.counting[change.table];
                let counts = reread::counts(counting, change.reader, change.commit_lsn);
                if counts { dirty.add(change, beside.again || counting.is_some()) } else { Ok(()) }
            }),
        }?;
        dirty.expire(beside.told, &now)
    })?;
    // They take as much room as what is made of them.
    drop(taken);
    begun.hand_over(standing);
    writing.write(touched, fan_outs, standing, &mut applied.report)
}

/// Removes rows of a table that have vanished, and leaves the documents for later.
pub(crate) fn remove(
    tools: &Tools,
    (source, table): (usize, TableId),
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
    let touched = if standing.live { dirty.finish()? } else { Touched::default() };
    let (from, now) = ((standing.frontier, standing.commit_time_ms), Expired::as_of(&tools.catalog, standing));
    let beside = Beside { source, remembered: None, hold: true, walks: false, again: false, from, told: &now };
    // Nothing waits while a table is read again.
    Writing { tools, snapshot: &snapshot, overlay: &overlay, beside, now: &now }.write(
        touched,
        &mut FanOuts::default(),
        standing,
        report,
    )
}

/// A step that is about to be written.
struct Writing<'a> {
    tools: &'a Tools,
    /// The state before it.
    snapshot: &'a Snapshot<'a>,
    overlay: &'a Overlay,
    beside: Beside<'a>,
    /// Whose time is over after it.
    now: &'a Expired,
}

impl Writing<'_> {
    /// What changes have touched, which `each` adds. Where more is touched than is kept in memory, it is left for later at once.
    fn touched(&self, begun: &mut Begun, each: impl FnOnce(&mut Dirty<'_, '_>) -> Result<(), Error>) -> Result<Touched, Error> {
        let view = View { overlay: Some(self.overlay), ..self.tools.view(self.snapshot) };
        if self.beside.walks {
            let mut dirty = Dirty::new(view, Room::of_chunk(self.tools.chunk));
            each(&mut dirty)?;
            return dirty.finish();
        }
        let mut leave = |owners: Vec<Vec<u8>>| begun.leave(self, &owners);
        let mut dirty = Dirty::new(view, Room::ALL).with_overflow(self.tools.chunk, &mut leave);
        each(&mut dirty)?;
        dirty.finish()
    }

    fn write(self, touched: Touched, fan_outs: &mut FanOuts, standing: &mut Standing, report: &mut Report) -> Result<(), Error> {
        let &Tools { ref store, ref catalog, chunk, share, .. } = self.tools;
        let (before, beside) = (self.tools.view(self.snapshot), self.beside);
        let stale = self.stale(&touched)?;
        let Touched { owners, walks, .. } = touched;
        let marks = fan_outs.look_up(store, self.snapshot, &owners)?;
        let at_once = if beside.hold || standing.pending.is_some() { 0 } else { chunk };
        // Of rows of different ages no document can be told.
        let mixed = standing.forgets();
        if !beside.hold {
            standing.mixed_until = Lsn::ZERO;
        }
        let was = |nth: usize| if mixed { Known::Nothing } else { Known::Through(fan_outs.as_told(&marks, nth)) };
        let now: Vec<_> = owners.iter().enumerate().take(at_once).map(|(nth, key)| (key.as_slice(), was(nth))).collect();
        let times = Times { told: beside.told, now: self.now };
        let used = documents::uses_all(share, now.len()).then(|| self.tools.cores.use_all());
        let made = assemble(View { overlay: Some(self.overlay), ..before }, &stale, share, &now, times, standing)?;
        drop(used);
        // Entries are not to be seen before the standing says so, and may be in the database before it.
        let ahead = share.threads > 1 && made.bytes() >= WORTH_A_THREAD;
        let used = ahead.then(|| self.tools.cores.use_together());
        let (head, log) = (standing.head, !standing.is_loading());
        let (mut batch, tail) = std::thread::scope(|scope| {
            let ahead = used.as_ref().map(|used| {
                scope.spawn(|| {
                    let tail = outbox::write(store, head, made.entries(), log);
                    used.is_done();
                    tail
                })
            });
            // Its buffer would otherwise be copied each time that it doubles.
            let entries = if ahead.is_some() { 0 } else { made.bytes() };
            let mut batch = WriteBatch::with_capacity_bytes(self.overlay.bytes() + entries + 4096);
            self.overlay.write(catalog, store, beside.remembered, &mut batch)?;
            stale.remove(store, &mut batch)?;
            made.put_beside(store, &mut batch)?;
            used.iter().for_each(Together::is_done);
            let tail = match ahead {
                Some(ahead) => ahead.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                None => outbox::append(store, &mut batch, head, made.entries())?,
            };
            Ok::<_, Error>((batch, tail))
        })?;
        report.assembled += made.count() as u64;
        report.changed += tail - head;
        let (done, rest) = owners.split_at(made.count());
        let rest = rest.iter().enumerate();
        let rest: Vec<_> = rest.map(|(nth, key)| (key.as_slice(), fan_outs.as_told(&marks, done.len() + nth))).collect();
        self.put_pending(rest, mixed, standing, tail, &mut batch)?;
        let contributed = contribute(self.tools, self.snapshot, &made)?;
        contributed.write(self.tools, self.snapshot, tail, standing, &mut batch)?;
        fan_outs.begin(before, self.overlay, walks, (standing.frontier, beside.from), &mut batch)?;
        fan_outs.mark(self.tools, &mut batch, done.iter().map(Vec::as_slice), &made, standing.frontier)?;
        if fan_outs.has_strict() {
            standing.pending.get_or_insert(Pending { tail });
        }
        if standing.pending.is_none() && !beside.hold {
            standing.head = tail;
            (standing.head_frontier, standing.head_commit_time_ms) = fan_outs.complete(standing);
        }
        let written = made.picked(store, head);
        self.write_batch(batch, standing)?;
        store.recent().keep(written);
        contributed.is_written(self.tools);
        Ok(())
    }

    /// Writes the batch, and has the cache follow.
    fn write_batch(&self, batch: WriteBatch, standing: &Standing) -> Result<(), Error> {
        let Tools { store, catalog, cache, share, cores, .. } = self.tools;
        if share.threads < 2 || self.overlay.bytes() < WORTH_A_THREAD {
            store.write_with(batch, standing)?;
            cache.apply(catalog, self.overlay);
            return Ok(());
        }
        let used = cores.use_together();
        std::thread::scope(|scope| {
            // Should the writing fail, nothing is read through the cache any more.
            scope.spawn(|| {
                cache.apply(catalog, self.overlay);
                used.is_done();
            });
            let written = store.write_with(batch, standing);
            used.is_done();
            written
        })
    }

    /// What is kept of aggregates and does not hold any more.
    fn stale(&self, touched: &Touched) -> Result<Stale, Error> {
        let catalog = &self.tools.catalog;
        match &touched.rows {
            Some(rows) if !self.beside.hold => {
                let walked = touched.walks.keys().map(|walk| &catalog.entities[walk.entity()]);
                let walked = walked.filter(|entity| entity.group.is_some()).map(|entity| entity.number);
                Stale::of(self.tools.view(self.snapshot), rows, walked.collect())
            }
            _ => Ok(Stale::all()),
        }
    }

    /// Leaves documents for later, with the hashes of what they were; `mixed`: nobody knows what they were. `tail`: the last outbox entry of the step so far.
    fn put_pending(
        &self,
        rest: Vec<(&[u8], Option<&Overlay>)>,
        mixed: bool,
        standing: &mut Standing,
        tail: u64,
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        put_pending(self.tools, (self.snapshot, self.beside.told), rest, mixed, (standing, tail), batch)
    }
}

/// The same; `snapshot`: the state as it was when nothing of it had been touched; `told`: whose time was over then.
fn put_pending(
    tools: &Tools,
    (snapshot, told): (&Snapshot<'_>, &Expired),
    mut rest: Vec<(&[u8], Option<&Overlay>)>,
    mixed: bool,
    (standing, tail): (&mut Standing, u64),
    batch: &mut WriteBatch,
) -> Result<(), Error> {
    let Tools { store, share, .. } = tools;
    if rest.is_empty() {
        return Ok(());
    }
    let family = store.family(Family::Pending)?;
    if standing.pending.is_some() && !mixed {
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
        known(tools.view(snapshot), told, share, &rest, |key, hash| batch.put_cf(family, key, hash))?;
    }
    standing.pending.get_or_insert(Pending { tail });
    Ok(())
}

/// Assembles the next entities of a step whose rows have been written. Answers false when none are left: then the step is done, and its outbox entries are to be seen. `done`: where to look for the next, empty at first; nothing
/// stands before it but what has been removed, which would have to be passed each time.
pub(crate) fn drain(
    tools: &Tools,
    fan_outs: &mut FanOuts,
    standing: &mut Standing,
    report: &mut Report,
    done: &mut Vec<u8>,
) -> Result<bool, Error> {
    let &Tools { ref store, chunk, share, .. } = tools;
    let Some(Pending { tail }) = standing.pending else { return Ok(false) };
    let snapshot = store.db().snapshot();
    let family = store.family(Family::Pending)?;
    let mut iterator = snapshot.raw_iterator_cf(family);
    iterator.seek(&*done);
    let mut pending: Vec<(Vec<u8>, Known<'_>)> = Vec::new();
    let mut apart = false;
    while let Some((key, hash)) = iterator.item().filter(|_| pending.len() < chunk) {
        // What rolls up others comes after what these contribute is written, those included that fan-outs lead to: a group is told once.
        let others = pending.first().is_some_and(|(first, _)| first.get(..2) != key.get(..2));
        apart = (others || fan_outs.has_strict()) && contribute::rolls_up(tools, key);
        if apart {
            break;
        }
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
    let (stale, expired) = (Stale::default(), Expired::as_of(&tools.catalog, standing));
    let made = assemble(tools.view(&snapshot), &stale, share, &now, Times::of(&expired), standing)?;
    let mut batch = WriteBatch::default();
    made.put_beside(store, &mut batch)?;
    let new_tail = outbox::append(store, &mut batch, tail, made.entries())?;
    let told = now[..made.count()].iter().map(|(key, _)| *key);
    told.clone().for_each(|key| batch.delete_cf(family, key));
    if let Some(last) = told.clone().next_back() {
        *done = [last, &[0]].concat();
    }
    fan_outs.mark(tools, &mut batch, told, &made, standing.frontier)?;
    report.assembled += made.count() as u64;
    report.changed += new_tail - tail;
    let contributed = contribute(tools, &snapshot, &made)?;
    contributed.write(tools, &snapshot, new_tail, standing, &mut batch)?;
    let more = made.count() == chunk || made.count() < now.len() || apart || fan_outs.has_strict() || contributed.has_touched();
    if more {
        standing.pending = Some(Pending { tail: new_tail });
    } else {
        standing.pending = None;
        standing.head = new_tail;
        (standing.head_frontier, standing.head_commit_time_ms) = fan_outs.complete(standing);
    }
    store.write_with(batch, standing)?;
    store.recent().keep(made.picked(store, tail));
    contributed.is_written(tools);
    Ok(more)
}

/// What there is of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Document(String),
    /// More than its definition allows: it stays what was told last.
    TooLarge,
}

/// A document assembled from the state right now, and the standing whose frontier it reflects.
pub(crate) fn assemble_now(store: &Store, catalog: &Catalog, entity: usize, parts: &[u8]) -> Result<(Standing, Found), Error> {
    let snapshot = store.db().snapshot();
    let standing = store.standing_at(&snapshot)?;
    let view = View { catalog, store, snapshot: &snapshot, overlay: None, cache: None };
    let (mut text, expired) = (Vec::new(), Expired::as_of(catalog, &standing));
    let made = Assembler::new(view, &catalog.entities[entity], Reading::Once, &expired).document(parts, &mut text)?;
    let text = String::from_utf8(text).map_err(|_| store.corrupt("a document that is not UTF-8"))?;
    let found = match made {
        Made::Document => Found::Document(text),
        Made::TooLarge => Found::TooLarge,
        Made::LeftOut | Made::Incomplete => Found::Nothing,
    };
    Ok((standing, found))
}
