//! Fan-outs that wait: a row has changed that very many documents refer to, and they are assembled chunk by chunk.
//!
//! The row itself is in the state from its own step on. What waits is a queue of [`Walk`]s to the owners, kept in the database and moved with each chunk in the batch that holds the chunk's outbox entries, so that a kill
//! repeats nothing and loses nothing (INV-3).
//!
//! - *Strict* fan-outs are worked off before anything else is applied, and the head of the outbox moves past them when they are whole: nobody sees a part. They cost time, but no memory.
//! - *Lazy* ones are worked off a chunk at a time between other steps, and each document is seen at once. It is assembled from the state as it then stands, so it is the join as of that frontier, and says so in its
//!   version (INV-4). What is late is only that the owner is told at all. The frontier that readers see ([`crate::Head::frontier`]: everything at or below it has been told) therefore stays before the first change whose owners
//!   have not all been told, while versions, and entries of the outbox, go on past it. There is one number, and it is never too great.
//!   A document that is found as it was told may have been another in between, at a frontier with which it was not looked at, and nobody is told that: from there on, no frontier in between is said to be complete ([`FanOuts::hold_back`]).
//!
//! # What was last told of a document
//! A document goes out only if it differs from what was told of it, which must be found without having been kept. While nothing waits, it is the join of the state before the step. While something waits, owners that have not
//! been reached were told of an older state. So while anything waits, two more things are kept:
//! - *The past* ([`Past`]): by step, what stood at each place in the rows of all tables from which a way up leads by way of indexes, before that step wrote there.
//! - *Marks*: for each document that was looked at, the frontier with which it was; what was told of it is the join as of then.
//!
//! Say that everything is told up to frontier C (before the first change that waits), and take a document with the mark M (M = C if it has none). Claim: what was told of it is its join in the state of now in which rows of those tables
//! are as they were at M, each place being taken back to what stood there before the first step after M that wrote there. At M this is so: it was assembled from just that state, or everything had been told. A later step that changes
//! the join as of now in a row which stands at a place without a way up by way of indexes reaches the document, which is looked at and gets a new mark; one that changes rows of the other tables does not change what the claim speaks
//! of. Whatever stands above such a row and is not itself such a table's is unchanged, or the document would have been reached. So nothing is told twice, and nothing is left out. (Nor has the time of its root come meanwhile: a step would have looked at it, [`super::expire`].)
//!
//! # Bounds
//! The past and the changes of a step together are kept under [`PAST_BYTES`]: where a step would exceed that, what waits is worked off first, and the step's own fan-outs are not left to walks. The same holds when a table begins to be read again,
//! because then rows are not the source's as of any LSN for a while.

use std::collections::{BTreeMap, VecDeque};

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;

use super::contribute::contribute;
use super::documents::{Known, Made, Times, assemble};
use super::walk::{Reach, Waiting, Walk, reach};
use super::{Report, Tools};
use crate::assemble::expired::Expired;
use crate::assemble::parts::Stale;
use crate::catalog::{Catalog, IndexKind};
use crate::error::Error;
use crate::state::meta::{Pending, Standing};
use crate::state::view::{Overlay, View};
use crate::state::{Family, Store, outbox};

/// What the past may take in memory, the changes of the step that is being taken included.
pub(crate) const PAST_BYTES: usize = 32 << 20;
/// Owners that are told between two steps: more of them are told a second (an eighth with 1000), and each step waits longer (twice as long).
const CHUNK: usize = 300;
/// Mixtures of the past that are kept at hand.
const MIXTURES: usize = 8;

/// What stood where steps have written.
#[derive(Debug, Default)]
struct Past {
    /// By the frontier of the step, in rising order.
    layers: VecDeque<(Lsn, Overlay)>,
    /// By the first of their layers: that one and all later ones in one, the earliest row at each place.
    mixtures: BTreeMap<Lsn, Overlay>,
}

impl Past {
    fn add(&mut self, since: Lsn, layer: Overlay) {
        self.mixtures.values_mut().for_each(|mixture| mixture.lay_under(&layer));
        self.layers.push_back((since, layer));
    }

    /// Makes what [`Past::before`] answers for these marks.
    fn mix(&mut self, marks: &[Lsn]) {
        if self.mixtures.len() > MIXTURES {
            self.mixtures.clear();
        }
        for mark in marks {
            let from = self.layers.partition_point(|(since, _)| since <= mark);
            let mut layers = self.layers.range(from..);
            if let Some((first, layer)) = layers.next()
                && !self.mixtures.contains_key(first)
            {
                let mut mixture = layer.clone();
                layers.for_each(|(_, later)| mixture.lay_under(later));
                self.mixtures.insert(*first, mixture);
            }
        }
    }

    /// The rows as they were at a mark, where they have changed since; none where none have.
    fn before(&self, mark: Lsn) -> Option<&Overlay> {
        let from = self.layers.partition_point(|(since, _)| *since <= mark);
        self.mixtures.get(&self.layers.get(from)?.0)
    }

    /// Drops what everybody has been told of.
    fn forget(&mut self, to: Lsn) {
        let told = self.layers.partition_point(|(since, _)| *since <= to);
        for (since, _) in self.layers.drain(..told) {
            self.mixtures.remove(&since);
        }
    }

    fn bytes(&self) -> usize {
        self.layers.iter().map(|(_, layer)| layer.bytes()).sum()
    }
}

/// A key of the `past` family: since, then the index's key.
fn past_key(since: Lsn, key: &[u8]) -> Vec<u8> {
    [since.as_bytes(), key].concat()
}

/// What is known of the documents that a step looks at: by document, its mark.
#[derive(Debug, Default)]
pub(super) struct Marks(Vec<Lsn>);

/// All that waits, as it is in the database.
#[derive(Debug, Default)]
pub(crate) struct FanOuts {
    queue: BTreeMap<u64, Waiting>,
    past: Past,
    /// By index: whether it holds rows of a table from which a way up leads by way of indexes.
    fans_out: Vec<bool>,
    /// Documents looked at since the first that waits began to.
    told: u64,
}

impl FanOuts {
    pub(crate) fn load(store: &Store, catalog: &Catalog) -> Result<Self, Error> {
        let table = |id: usize| catalog.tables[id].places.iter();
        let fans_out =
            |id: usize| table(id).any(|place| matches!(reach(&catalog.entities[place.entity], place.node), Reach::Many { .. }));
        let indexes = catalog.indexes.iter();
        let fans_out = indexes.map(|index| index.kind == IndexKind::Rows && fans_out(index.table)).collect();
        let mut loaded = Self { fans_out, ..Self::default() };
        let mut walks = store.db().raw_iterator_cf(store.family(Family::Walks)?);
        walks.seek_to_first();
        while let Some((key, value)) = walks.item() {
            let number = key.try_into().ok().map(u64::from_be_bytes);
            let (number, waiting) = number
                .zip(Waiting::decode(value, catalog))
                .ok_or_else(|| store.corrupt("a fan-out that waits cannot be read"))?;
            loaded.queue.insert(number, waiting);
            walks.next();
        }
        walks.status().map_err(|error| store.error(&error))?;
        let mut past = store.db().raw_iterator_cf(store.family(Family::Past)?);
        past.seek_to_first();
        let mut layer: Option<(Lsn, Overlay)> = None;
        while let Some((key, value)) = past.item() {
            let parts = key.split_first_chunk::<10>().and_then(|(since, key)| {
                let index = usize::from(u16::from_be_bytes(*key.first_chunk()?));
                let (present, row) = value.split_first()?;
                (index < catalog.indexes.len()).then_some((Lsn::from_bytes(*since), index, key, (*present == 1).then_some(row)))
            });
            let (since, index, key, row) = parts.ok_or_else(|| store.corrupt("a row of the past cannot be read"))?;
            if layer.as_ref().is_none_or(|(at, _)| *at != since) {
                loaded.past.layers.extend(layer.replace((since, Overlay::new(catalog))));
            }
            if let Some((_, layer)) = &mut layer {
                layer.set(index, key, row);
            }
            past.next();
        }
        loaded.past.layers.extend(layer);
        past.status().map_err(|error| store.error(&error))?;
        Ok(loaded)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.past.bytes()
    }

    /// Changed rows whose owners wait, the LSN of the first change, and how many documents have been looked at since.
    pub(crate) fn waiting(&self) -> Option<(u64, Lsn, u64)> {
        let first = self.queue.values().next()?;
        Some((self.queue.len() as u64, first.since, self.told))
    }

    fn first(&self, lazy: bool) -> Option<(u64, &Waiting)> {
        self.queue.iter().find(|(_, waiting)| waiting.lazy == lazy).map(|(number, waiting)| (*number, waiting))
    }

    pub(super) fn has_strict(&self) -> bool {
        self.first(false).is_some()
    }

    /// Up to where everything is told once the walk `over` is over: the frontier and its commit time.
    fn complete_without(&self, over: Option<u64>, standing: &Standing) -> (Lsn, i64) {
        let waiting = self.queue.iter().find(|(number, _)| Some(**number) != over);
        waiting.map_or((standing.frontier, standing.commit_time_ms), |(_, waiting)| waiting.before)
    }

    /// Whether the frontier that readers see may move when the walk `over` is over: of strict ones all must be.
    fn is_last_of(&self, lazy: bool, over: Option<u64>) -> bool {
        lazy || self.queue.iter().all(|(number, waiting)| waiting.lazy || Some(*number) == over)
    }

    /// Up to where everything is told, when the outbox's head is at the frontier.
    pub(crate) fn complete(&self, standing: &Standing) -> (Lsn, i64) {
        self.complete_without(None, standing)
    }

    /// The database has been emptied.
    pub(crate) fn clear(&mut self) {
        (self.queue, self.past, self.told) = (BTreeMap::new(), Past::default(), 0);
    }

    /// Looks up what is known of documents, so that [`FanOuts::as_told`] can say through what they are to be seen.
    pub(super) fn look_up<K: AsRef<[u8]>>(&mut self, store: &Store, snapshot: &Snapshot<'_>, keys: &[K]) -> Result<Marks, Error> {
        if self.is_empty() {
            return Ok(Marks::default());
        }
        let family = store.family(Family::Told)?;
        let mark = |key: &K| -> Result<Lsn, Error> {
            let found = snapshot.get_pinned_cf(family, key).map_err(|error| store.error(&error))?;
            Ok(found.as_deref().and_then(Lsn::from_slice).unwrap_or(Lsn::ZERO))
        };
        let marks = keys.iter().map(mark).collect::<Result<Vec<Lsn>, Error>>()?;
        self.past.mix(&marks);
        Ok(Marks(marks))
    }

    /// Through what the state is to be seen so that the nth document is as it was told; none: as it stands.
    pub(super) fn as_told(&self, marks: &Marks, nth: usize) -> Option<&Overlay> {
        marks.0.get(nth).and_then(|mark| self.past.before(*mark))
    }

    /// Takes note that documents have been looked at, and of what was `made` of them.
    pub(super) fn mark<'k>(
        &mut self,
        tools: &Tools,
        batch: &mut WriteBatch,
        keys: impl Iterator<Item = &'k [u8]>,
        made: &Made,
        frontier: Lsn,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let family = tools.store.family(Family::Told)?;
        keys.for_each(|key| batch.put_cf(family, key, frontier.as_bytes()));
        if made.skips() { self.hold_back(tools, batch) } else { Ok(()) }
    }

    /// Adds walks that a step begins, and keeps what it writes over, if anything waits. `before`: the state without the step.
    pub(super) fn begin(
        &mut self,
        before: View<'_>,
        overlay: &Overlay,
        walks: BTreeMap<Walk, bool>,
        at: (Lsn, (Lsn, i64)),
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        let (since, complete) = at;
        let store = before.store;
        let family = store.family(Family::Walks)?;
        let next = self.queue.last_key_value().map_or(0, |(last, _)| last + 1);
        for (number, (walk, lazy)) in (next..).zip(walks) {
            let waiting = Waiting { walk, lazy, since, before: complete };
            batch.put_cf(family, number.to_be_bytes(), waiting.encode(before.catalog));
            self.queue.insert(number, waiting);
        }
        if self.is_empty() {
            return Ok(());
        }
        let family = store.family(Family::Past)?;
        let mut layer = Overlay::new(before.catalog);
        for (index, _) in self.fans_out.iter().enumerate().filter(|(_, fans_out)| **fans_out) {
            for key in overlay.keys(index) {
                let row = before.get(index, key, <[u8]>::to_vec)?;
                let value = row.as_deref().map_or_else(|| vec![0], |row| [&[1], row].concat());
                batch.put_cf(family, past_key(since, key), value);
                layer.set(index, key, row.as_deref());
            }
        }
        if layer.bytes() > 0 {
            self.past.add(since, layer);
        }
        Ok(())
    }

    /// A document was found as it was told, and may have been another in between: nothing that waits is complete further than the first is.
    fn hold_back(&mut self, tools: &Tools, batch: &mut WriteBatch) -> Result<(), Error> {
        let Some(first) = self.queue.values().next().map(|waiting| waiting.before) else { return Ok(()) };
        let family = tools.store.family(Family::Walks)?;
        for (number, waiting) in self.queue.iter_mut().filter(|(_, waiting)| waiting.before != first) {
            waiting.before = first;
            batch.put_cf(family, number.to_be_bytes(), waiting.encode(&tools.catalog));
        }
        Ok(())
    }

    /// Adds to a batch how far a walk has come, and that what nobody needs any more is forgotten.
    fn put(&self, tools: &Tools, batch: &mut WriteBatch, number: u64, waiting: &Waiting, complete: Lsn) -> Result<(), Error> {
        let store = &*tools.store;
        let family = store.family(Family::Walks)?;
        if !waiting.walk.is_over() {
            batch.put_cf(family, number.to_be_bytes(), waiting.encode(&tools.catalog));
            return Ok(());
        }
        batch.delete_cf(family, number.to_be_bytes());
        if self.queue.len() == 1 {
            store.clear_in(batch, Family::Past)?;
            store.clear_in(batch, Family::Told)?;
        } else {
            batch.delete_range_cf(store.family(Family::Past)?, &[][..], past_key(complete.next(), &[]).as_slice());
        }
        Ok(())
    }

    fn moved(&mut self, number: u64, waiting: Waiting, complete: Lsn) {
        if waiting.walk.is_over() {
            self.queue.remove(&number);
            self.past.forget(complete);
        } else {
            self.queue.insert(number, waiting);
        }
        if self.is_empty() {
            self.clear();
        }
    }
}

/// Goes on with the first fan-out of a kind: tells the next of its owners. Answers false when there is none. Strict ones belong to a step that is pending.
pub(crate) fn tell(
    tools: &Tools,
    fan_outs: &mut FanOuts,
    lazy: bool,
    standing: &mut Standing,
    report: &mut Report,
) -> Result<bool, Error> {
    let store = &*tools.store;
    let Some((number, waiting)) = fan_outs.first(lazy) else { return Ok(false) };
    let mut waiting = waiting.clone();
    let snapshot = store.db().snapshot();
    let view = tools.view(&snapshot);
    let mut owners = waiting.walk.next(view, if lazy { CHUNK.min(tools.chunk) } else { tools.chunk })?;
    owners.sort_unstable();
    owners.dedup();
    let marks = fan_outs.look_up(store, &snapshot, &owners)?;
    // One without a past was looked at after the change.
    let mut reached: Vec<(usize, Vec<u8>)> = owners.into_iter().enumerate().collect();
    reached.retain(|(nth, _)| fan_outs.as_told(&marks, *nth).is_some());
    let over = waiting.walk.is_over().then_some(number);
    let (mut rest, stale, mut touched) = (reached.as_slice(), Stale::default(), false);
    let expired = Expired::as_of(&tools.catalog, standing);
    let complete = loop {
        let was = |nth: usize| Known::Through(fan_outs.as_told(&marks, nth));
        let keys: Vec<_> = rest.iter().map(|(nth, key)| (key.as_slice(), was(*nth))).collect();
        let made = assemble(view, &stale, tools.share, &keys, Times::of(&expired), standing)?;
        drop(keys);
        let (done, left) = rest.split_at(made.count());
        let mut batch = WriteBatch::default();
        made.put_beside(store, &mut batch)?;
        let from = standing.pending.map_or(standing.head, |pending| pending.tail);
        let tail = outbox::append(store, &mut batch, from, made.entries())?;
        // What is large is written in parts; the walk is moved with the last, and finds those before it marked if it has to go there again.
        fan_outs.mark(tools, &mut batch, done.iter().map(|(_, key)| key.as_slice()), &made, standing.frontier)?;
        waiting.before = fan_outs.queue.get(&number).map_or(waiting.before, |marked| marked.before);
        let complete = fan_outs.complete_without(over, standing);
        if left.is_empty() {
            fan_outs.put(tools, &mut batch, number, &waiting, complete.0)?;
        }
        let contributed = contribute(tools, &snapshot, &made)?;
        contributed.write(tools, &snapshot, tail, standing, &mut batch)?;
        touched |= contributed.has_touched();
        standing.pending = (!lazy).then_some(Pending { tail });
        // What is rolled up is never lazy: its roll-ups are drained before the step is over.
        let groups = touched || !lazy && !store.is_empty(Family::Pending)?;
        if left.is_empty() && fan_outs.is_last_of(lazy, over) && !groups {
            standing.pending = None;
            (standing.head_frontier, standing.head_commit_time_ms) = complete;
        }
        if standing.pending.is_none() {
            standing.head = tail;
        }
        store.write_with(batch, standing)?;
        contributed.is_written(tools);
        report.assembled += made.count() as u64;
        report.changed += tail - from;
        store.recent().keep(made.picked(store, from));
        rest = left;
        if rest.is_empty() {
            break complete;
        }
    };
    fan_outs.told += reached.len() as u64;
    fan_outs.moved(number, waiting, complete.0);
    Ok(true)
}
