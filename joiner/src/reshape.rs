//! States of other ranges, made of those that there are: a part of one (split), one of several (merge). Works on a copy that no joiner has ([`crate::checkpoint::seal`] makes it a state afterwards), so that a kill leaves nothing half done.
//!
//! # A part of a state
//! Rows, pending keys, outbox entries and dead letters of sinks that are not of the new range are removed. The outbox keeps its last number, and what is left of it is moved up to it without holes; each sink's cursor is moved with the entries around it, so that the sink is handed
//! just what it had not been handed yet. Nothing is lost and nothing comes twice.
//!
//! # One of several
//! Checkpoints of several instances stand at different frontiers. The one that is furthest behind, the *base*, at L, gives its state as it is: what all keep, the rows of its own share, positions, pending keys, outbox. Of each other, at H ≥ L, come the rows
//! that the base leaves out, and the outbox entries that a sink had not been handed yet. Then everything after L is read again. Until H (of the one that is furthest ahead, [`Standing::mixed_until`]) rows are of different ages and nothing is assembled; what a step touches is remembered,
//! as while a table is read again ([`crate::reread`]), and told at H, whether it differs or not: what it was before cannot be told of such rows.
//! - *At H the rows are the source's.* A row taken from another stands at a place that the base leaves out, in a version that is newer than L. That is what a snapshot does to a state whose tail begins at L, and [`crate::step`] argues that the replay converges, for any places at which versions between the
//!   ends stand.
//! - *Entities of the base's share* were told up to L. Everything that their documents read is as of the frontier all the time, because no place that the base keeps was touched. So each that changes after L is found.
//! - *Entities of another's share* were told up to its own frontier B: those entries are in the merged outbox, or were handed over. From B on, all that their documents read is as of the frontier; so each that changes after B is found.
//! - *Entries* of different shares are of different entities, so the order between them says nothing; but versions are in order only after H ([`Standing::complete_after`]).
//!
//! A sink whose cursor does not hold in each of the states is loaded anew.
//!
//! # Of several sources
//! What the states are up to are vectors then, and none of them need be behind the others in every component. So each source's part of the merged state (its LSN, positions, counts) is that of the state which is furthest behind in that source: the vector M that is the least in each component. Rows, whosever they are, are as of some LSN
//! between M and the greatest in each component; and nothing is assembled until each source has been read to where it had been published when the merged state was opened ([`Standing::awaiting`]), at H, which is nowhere behind any of the states.
//! - *At H the rows are the sources'*, by the argument above: it is one about each table alone.
//! - *Whatever has changed is told.* Every state told its entities up to its own vector, which is not behind M. Take an entity in whose tree something has changed between M and H, and of those changes one above which, on the way to the root, nothing has. All rows above it are the same at all ages that they may have, so that the way up from the change's
//!   images finds the root whenever it is read again. What is found is remembered, and told at H whether it differs or not.
//! - *Versions* of entries stand for vectors of different chains. Two of these may have one sum; then nobody knows what it stands for, and it is not said. The way from M to H is told to nobody, so what its sums stand for is not kept ([`Store::put_standing`]). Nor is it known how far back the outbox is complete before H.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{DBRawIterator, WriteBatch};
use schemas::change::EntityKey;
use schemas::{KeyRange, Lsn, Vector};

use crate::Config;
use crate::catalog::Catalog;
use crate::checkpoint::Facts;
use crate::dead_letters::{Refused, SINK};
use crate::definitions::{self, Definitions};
use crate::error::Error;
use crate::state::meta::{Cursor, Pending, SourceStanding, Stage, Standing};
use crate::state::view::{family, start_key};
use crate::state::{Family, Store, VECTOR, meta, migrate, outbox, row};

/// Writes of one batch, about.
const CHUNK: usize = 10_000;

/// A copy of a state: a folder with the database in it, and what its checkpoint says of it.
#[derive(Debug, Clone)]
pub struct Copied {
    pub folder: PathBuf,
    pub facts: Facts,
}

/// Whether a state of this range can be made of states of these, each of which begins where another ends. Answers the range that they make together.
pub fn together(place: &Path, ranges: &[KeyRange], wanted: KeyRange) -> Result<KeyRange, Error> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable();
    let first = ranges.first().copied().unwrap_or(wanted);
    let all = ranges.iter().skip(1).try_fold(first, |all, range| all.joined(range));
    let refused = || Error::NotCovered { path: place.to_owned(), found: all.unwrap_or(first), expected: wanted };
    all.filter(|all| all.covers(&wanted)).ok_or_else(refused)
}

/// Makes the first of these copies a state of the range that the configuration names; which one that is, is up to this: it is answered. Blocks for as long as it takes to read all of them.
pub fn reshape(mut copies: Vec<Copied>, config: &Config) -> Result<Copied, Error> {
    let ranges: Vec<KeyRange> = copies.iter().map(|copy| copy.facts.range).collect();
    let place = copies.first().map_or_else(PathBuf::new, |copy| copy.folder.clone());
    let range = together(&place, &ranges, config.range)?;
    copies.sort_by_key(|copy| copy.facts.frontier);
    let mut copies = copies.into_iter();
    let Some(mut base) = copies.next() else { return Err(Error::NoState { path: place }) };
    for other in copies {
        merge(&base, &other, config)?;
    }
    if range != config.range {
        narrow(&base, config)?;
    }
    base.facts.range = config.range;
    Ok(base)
}

/// Writes that are made a chunk at a time.
struct Writes<'a> {
    store: &'a Store,
    batch: WriteBatch,
}

impl<'a> Writes<'a> {
    fn new(store: &'a Store) -> Self {
        Self { store, batch: WriteBatch::default() }
    }

    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.batch.put_cf(self.store.family(family)?, key, value);
        self.flush_past(CHUNK)
    }

    fn delete(&mut self, family: Family, key: &[u8]) -> Result<(), Error> {
        self.batch.delete_cf(self.store.family(family)?, key);
        self.flush_past(CHUNK)
    }

    fn flush_past(&mut self, count: usize) -> Result<(), Error> {
        if self.batch.len() > count { self.store.write(std::mem::take(&mut self.batch), true) } else { Ok(()) }
    }

    /// With the standing, which names what was written; everything is in files then.
    fn end(mut self, standing: &Standing) -> Result<(), Error> {
        // What is kept of aggregates is made anew.
        self.store.clear_in(&mut self.batch, Family::Parts)?;
        self.store.write_with(self.batch, standing)?;
        self.store.flush()
    }
}

fn iterate<'a>(store: &'a Store, family: Family, from: &[u8]) -> Result<DBRawIterator<'a>, Error> {
    let mut iterator = store.db().raw_iterator_cf(store.family(family)?);
    iterator.seek(from);
    Ok(iterator)
}

/// Calls `each` with the rows of the indexes of a catalog that leave rows out, and whether its share keeps them.
fn partial_rows(
    store: &Store,
    catalog: &Catalog,
    mut each: impl FnMut(Family, &[u8], &[u8], bool) -> Result<(), Error>,
) -> Result<(), Error> {
    for (id, index) in catalog.indexes.iter().enumerate().filter(|(id, _)| catalog.share.is_partial(*id)) {
        let (mut start, mut end, family) = (Vec::new(), Vec::new(), family(index.kind));
        start_key(id, &mut start);
        start_key(id + 1, &mut end);
        let mut rows = iterate(store, family, &start)?;
        while let Some((key, value)) = rows.item().filter(|(key, _)| **key < *end) {
            let columns: Vec<&[u8]> = row::columns(value).collect();
            each(family, key, value, catalog.share.keeps_stored(catalog, id, &columns))?;
            rows.next();
        }
        rows.status().map_err(|error| store.error(&error))?;
    }
    Ok(())
}

/// Opens a copy, and has it serve the definitions of the configuration; the catalog is of this share.
fn open(copy: &Copied, config: &Config, range: KeyRange) -> Result<(Arc<Store>, Catalog), Error> {
    let store = Store::open_as(&copy.folder, 0, config.memory, config.threads > 0)?;
    migrate::run(&store, copy.facts.format)?;
    let whole = Config { range: copy.facts.range, ..config.clone() };
    let catalog = definitions::settle(&store, meta::IN_STATE, &whole)?.with_share(range);
    Ok((store, catalog))
}

fn narrow(copy: &Copied, config: &Config) -> Result<(), Error> {
    let (store, catalog) = open(copy, config, config.range)?;
    let (store, catalog) = (&*store, &catalog);
    let mut standing = store.standing()?;
    let mut writes = Writes::new(store);
    partial_rows(store, catalog, |family, key, _, kept| if kept { Ok(()) } else { writes.delete(family, key) })?;
    let mut pending = iterate(store, Family::Pending, &[])?;
    while let Some(key) = pending.key() {
        let entity = key.first_chunk().and_then(|number| catalog.numbered(u16::from_be_bytes(*number)));
        if !entity.is_some_and(|entity| catalog.share.owns(&catalog.entities[entity], &key[2..])) {
            writes.delete(Family::Pending, key)?;
        }
        pending.next();
    }
    pending.status().map_err(|error| store.error(&error))?;
    let owned = |change: &outbox::Named<'_>| {
        let entity = catalog.numbered(change.entity).map(|entity| &catalog.entities[entity]);
        entity.is_some_and(|entity| catalog.share.range.holds(&entity.name, &EntityKey::from_text(change.key)))
    };
    close_up(store, &mut standing, &mut writes, owned)?;
    for (place, refused) in letters(store)? {
        if !catalog.share.range.holds(&refused.entity, &refused.key) {
            writes.delete(Family::Meta, &place)?;
        }
    }
    standing.unmade = catalog.made_first().collect();
    writes.end(&standing)
}

/// Takes entries out of the outbox: those that are left are moved up to its end, and everything that points into it with them.
fn close_up(
    store: &Store,
    standing: &mut Standing,
    writes: &mut Writes<'_>,
    stays: impl Fn(&outbox::Named<'_>) -> bool,
) -> Result<(), Error> {
    let last = standing.pending.map_or(standing.head, |pending| pending.tail);
    let cursors = store.cursors()?;
    // From the end on, so that nothing is written where something is still to be read: no entry moves down.
    let mut served = store.definitions()?;
    let since = served.iter_mut().flat_map(Definitions::places).map(|place| *place);
    let mut at: Vec<u64> = cursors.iter().map(|(_, cursor)| cursor.sequence).chain([standing.head]).chain(since).collect();
    let mut moved: HashMap<u64, u64> = at.iter().filter(|at| **at >= last).map(|at| (*at, *at)).collect();
    at.retain(|at| *at < last);
    at.sort_unstable();
    at.dedup();
    let mut next = last;
    let mut entries = store.db().raw_iterator_cf(store.family(Family::Outbox)?);
    entries.seek_for_prev(last.to_be_bytes());
    while let Some((key, value)) = entries.item() {
        let sequence = outbox::sequence(store, key)?;
        // Everything behind these has been moved: what stays of it begins after `next`.
        while let Some(at) = at.pop_if(|at| *at >= sequence) {
            moved.insert(at, next);
        }
        if stays(&outbox::named(value).ok_or_else(|| store.corrupt(format!("outbox entry {sequence} cannot be read")))?) {
            if sequence != next {
                writes.put(Family::Outbox, &next.to_be_bytes(), value)?;
            }
            next -= 1;
        }
        entries.prev();
    }
    entries.status().map_err(|error| store.error(&error))?;
    moved.extend(at.into_iter().map(|at| (at, next)));
    let after = |at: u64| moved.get(&at).copied().unwrap_or(at);
    for (sink, cursor) in cursors {
        if cursor.sequence + 1 < standing.oldest {
            // What it needs next has been trimmed: it is to be loaded, and numbers say nothing of that any more.
            store.forget_cursor(&sink)?;
        } else {
            store.put_cursor(&sink, &Cursor { sequence: after(cursor.sequence), ..cursor })?;
        }
    }
    if let Some(served) = &mut served {
        served.places().for_each(|place| *place = after(*place));
        store.put_definitions(&mut writes.batch, served)?;
    }
    standing.head = after(standing.head);
    standing.oldest = next + 1;
    outbox::trim(store, &mut writes.batch, standing.oldest)
}

/// The dead letters of sinks, and where they stand.
fn letters(store: &Store) -> Result<Vec<(Vec<u8>, Refused)>, Error> {
    let mut found = Vec::new();
    let mut letters = iterate(store, Family::Meta, SINK.as_bytes())?;
    while let Some((place, text)) = letters.item().filter(|(place, _)| place.starts_with(SINK.as_bytes())) {
        let refused = serde_json::from_slice(text).map_err(|error| store.corrupt(format!("a dead letter: {error}")))?;
        found.push((place.to_vec(), refused));
        letters.next();
    }
    letters.status().map_err(|error| store.error(&error))?;
    Ok(found)
}

/// Takes what the base leaves out from another state.
fn merge(base: &Copied, other: &Copied, config: &Config) -> Result<(), Error> {
    let ((ours, catalog), (theirs, their_catalog)) =
        (open(base, config, base.facts.range)?, open(other, config, other.facts.range)?);
    let (ours, theirs, catalog) = (&*ours, &*theirs, &catalog);
    let served = |store: &Store| store.definitions().map(|served| served.map(|served| served.fingerprint()));
    if served(ours)? != served(theirs)? {
        let what = "its rows are kept in another way: the entity definitions have been changed in another order".to_owned();
        return Err(Error::NotMerged { path: other.folder.clone(), what });
    }
    let (mut standing, ahead) = (ours.standing()?, theirs.standing()?);
    if standing.mixed_until.is_zero() {
        mergeable(base, ours, &standing, &standing)?;
    }
    mergeable(other, theirs, &ahead, &standing)?;
    let mut writes = Writes::new(ours);
    let reached = standing.mixed_until.max(standing.frontier).max(ahead.frontier);
    if standing.sources.len() > 1 {
        take_vectors(ours, theirs, &mut writes)?;
        fall_back(&mut standing, &ahead, config);
    }
    partial_rows(theirs, catalog, |family, key, row, kept| if kept { Ok(()) } else { writes.put(family, key, row) })?;
    let loaded = (catalog.changes_by_entity(), their_catalog.changes_by_entity());
    take_entries(ours, theirs, &mut standing, &ahead, &loaded, &mut writes)?;
    for (place, refused) in letters(theirs)? {
        if !catalog.share.range.holds(&refused.entity, &refused.key) {
            let text = serde_json::to_vec(&refused).map_err(|error| theirs.corrupt(error.to_string()))?;
            writes.put(Family::Meta, &place, &text)?;
        }
    }
    standing.mixed_until = reached;
    standing.complete_after = standing.complete_after.max(reached);
    standing.unmade = catalog.made_first().collect();
    writes.end(&standing)
}

/// Of each source, goes back to where the other state is, if that is further behind in it.
fn fall_back(standing: &mut Standing, other: &Standing, config: &Config) {
    for (ours, theirs) in standing.sources.iter_mut().zip(&other.sources).filter(|(ours, theirs)| theirs.frontier < ours.frontier)
    {
        let of_source = config.sources.iter().filter(|source| *source.name == *ours.source);
        let prefixes: Vec<String> = of_source.map(|source| format!("{}.", source.stream_prefix)).collect();
        let is_of = |stream: &str| prefixes.iter().any(|prefix| stream.starts_with(prefix));
        standing.positions.retain(|stream, _| !is_of(&stream.0));
        let positions = other.positions.iter().filter(|(stream, _)| is_of(&stream.0));
        standing.positions.extend(positions.map(|(stream, shards)| (stream.clone(), shards.clone())));
        let tables = format!("{}.", ours.source);
        standing.tables.retain(|table, _| !table.starts_with(&tables));
        let counts = other.tables.iter().filter(|(table, _)| table.starts_with(&tables));
        standing.tables.extend(counts.map(|(table, counts)| (table.clone(), *counts)));
        ours.clone_from(theirs);
    }
    standing.moved();
    (standing.head_frontier, standing.head_commit_time_ms) = (standing.frontier, standing.commit_time_ms);
    (standing.awaiting, standing.complete_after) = (true, Lsn::MAX);
}

/// What versions of the other's outbox stand for.
fn take_vectors(ours: &Store, theirs: &Store, writes: &mut Writes<'_>) -> Result<(), Error> {
    let mut vectors = iterate(theirs, Family::Meta, VECTOR)?;
    while let Some((key, vector)) = vectors.item().filter(|(key, _)| key.starts_with(VECTOR)) {
        match ours.get(Family::Meta, key)? {
            None => writes.put(Family::Meta, key, vector)?,
            Some(known) if *known == *vector => {}
            Some(_) => writes.delete(Family::Meta, key)?,
        }
        vectors.next();
    }
    vectors.status().map_err(|error| theirs.error(&error))
}

/// Whether all that a state has told is in its outbox, and whether it stands on the same snapshot as the base.
fn mergeable(copy: &Copied, store: &Store, standing: &Standing, base: &Standing) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::NotMerged { path: copy.folder.clone(), what: what.to_owned() });
    if definitions::is_waiting(store)? {
        return refused("it was made while entities were still to be told of a change of what many refer to");
    }
    let is_of_other =
        |(source, of_base): (&SourceStanding, &SourceStanding)| source.stage.start_lsn() != of_base.stage.start_lsn();
    match (standing.stage(), standing.pending) {
        (Stage::Live { .. }, _) if standing.sources.iter().zip(&base.sources).any(is_of_other) => {
            refused("it was built on another snapshot than the one that is furthest behind")
        }
        (Stage::Live { .. }, Some(Pending { .. })) => refused("it was made in the middle of a large step"),
        (Stage::Live { .. }, None) if standing.sources.iter().any(SourceStanding::is_torn) => {
            refused("it was made in the middle of a large step")
        }
        (Stage::Live { .. }, None) if standing.sources.iter().any(|source| !source.rereads.is_empty()) => {
            refused("it was made while a table was read again")
        }
        (Stage::Live { .. }, None) if standing.awaiting => {
            refused("it is new, or was restored itself, and has not yet been read to where the streams ended then")
        }
        (Stage::Live { .. }, None) if standing.frontier < standing.mixed_until => {
            refused("it was merged of others itself, and has not caught up yet")
        }
        (Stage::Live { .. }, None) => Ok(()),
        _ => refused("it was made before the first load had ended"),
    }
}

/// Adds what the other's sinks have not been handed.
fn take_entries(
    ours: &Store,
    theirs: &Store,
    standing: &mut Standing,
    ahead: &Standing,
    loaded: &(BTreeMap<String, u32>, BTreeMap<String, u32>),
    writes: &mut Writes<'_>,
) -> Result<(), Error> {
    let known: HashMap<String, _> = theirs.cursors()?.into_iter().collect();
    let mut from = ahead.head;
    for (sink, cursor) in ours.cursors()? {
        let holds = |of: &Cursor, standing: &Standing, loaded: &BTreeMap<String, u32>| {
            of.load == standing.load && of.sequence + 1 >= standing.oldest && of.changes == *loaded
        };
        let both = |theirs: &&Cursor| holds(theirs, ahead, &loaded.1) && holds(&cursor, standing, &loaded.0);
        match known.get(&sink).filter(both).filter(|theirs| theirs.form == cursor.form) {
            Some(theirs) => {
                from = from.min(theirs.sequence);
                let frontier = cursor.frontier.min(theirs.frontier);
                let sources = if cursor.sources == theirs.sources { cursor.sources } else { Vector::default() };
                ours.put_cursor(&sink, &Cursor { frontier, sources, ..cursor })?;
            }
            None => ours.forget_cursor(&sink)?,
        }
    }
    let mut entries = iterate(theirs, Family::Outbox, &(from + 1).to_be_bytes())?;
    while let Some((key, value)) = entries.item() {
        if outbox::sequence(theirs, key)? > ahead.head {
            break;
        }
        standing.head += 1;
        writes.put(Family::Outbox, &standing.head.to_be_bytes(), value)?;
        entries.next();
    }
    entries.status().map_err(|error| theirs.error(&error))
}

/// Opens nothing: what [`reshape`] would be asked to do, for those who only want to know whether it would be refused.
pub fn check(place: &Path, facts: &[&Facts], config: &Config) -> Result<(), Error> {
    let ranges: Vec<KeyRange> = facts.iter().map(|facts| facts.range).collect();
    together(place, &ranges, config.range)?;
    facts.iter().try_for_each(|facts| crate::checkpoint::check(facts, &Config { range: facts.range, ..config.clone() }, place))
}
