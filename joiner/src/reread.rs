//! Tables that are read again beside the tail ([`schemas::progress::Reread`]).
//!
//! # When a row is applied
//! A row was read after the source's tail had been published up to where it stood, and the tail's later changes replay over it. So it is applied with the first record that covers it, that is, whose positions say that it had been
//! published by then, before the changes of that record's range, if the record tells that its table is read again; and left out if not. It is a change without a before image, for nobody knows the last
//! one. Coverage alone decides, never the LSN that the row carries: an importer that was restarted may read at an older one than it had published. The positions that were covered are part of the standing, so
//! that a row that comes again after a restart does not replace what has been applied since. That rows and changes converge is the argument in [`crate::step`].
//!
//! A row counts only if the record that covers it is of the same reading ([`Reread::reading`]): an importer that was replaced and wakes up, or a request of its that was lost on the way for a while, may put rows behind changes that are
//! newer than they are.
//!
//! # Changes that do not count
//! Of a table whose changes were lost, an importer that died before it had come to the end of its range may have published some: rows that they put would be taken for rows that are still there, because what removed them was lost. So while it is read again,
//! the table's changes below the gap's end ([`Reread::floor`]) are left out. What they did is in the rows that are read.
//!
//! # What is held back
//! Until the tail has passed `consistent_from`, rows of different ages stand side by side. Steps go on writing rows, and keep the entities that they touch, each with the hash of its document as it was at the
//! last consistent frontier, as pending; nothing is assembled, sinks are not loaded, and the head stays. Then what is pending is worked off as after any large step.
//!
//! # What vanished
//! Of a table that is read as a whole, each place at which a row is put from the first record of the generation on is remembered (the `seen` family). When the reread has ended, every row of the table's indexes that stands
//! at another place is removed: a row that does not exist any more, or an older version under a key that has changed in what was missed. Removing is a step of its own, in chunks; it begins anew after a crash, which does no harm.

use std::collections::BTreeMap;

use rocksdb::{DBRawIterator, WriteBatch};
use schemas::progress::{ProgressRecord, Reread};
use schemas::{Lsn, Position, TableName};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, IndexId, IndexKind, TableId};
use crate::error::Error;
use crate::inputs::Stretches;
use crate::state::view::{family, start_key};
use crate::state::{Family, Store};

/// Rows removed at a time.
const CHUNK: usize = 10_000;

/// Where a row stands in the order: before all changes. Each has an identity, and those of a shard stay in the order in which they came. The seqval is the shard's number (2 bytes), the row's (5) and the
/// reading's last three bytes, which readings that could ever meet differ in.
pub(crate) fn position(shard: u16, arrival: u64, reading: i32) -> Position {
    let mut number = [0; 10];
    number[..2].copy_from_slice(&shard.to_be_bytes());
    number[2..7].copy_from_slice(&arrival.to_be_bytes()[3..]);
    number[7..].copy_from_slice(&reading.to_be_bytes()[1..]);
    Position { commit_lsn: Lsn::ZERO, command_id: i32::MIN, seqval: Lsn::from_bytes(number), operation: 0 }
}

/// By shard, in the order of their numbers: the last row that has been covered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Covered(pub(crate) Vec<u64>);

impl Covered {
    /// The last row of a shard that has been covered; 0: none has.
    pub(crate) fn up_to(&self, shard: u16) -> u64 {
        self.0.get(usize::from(shard)).copied().unwrap_or_default()
    }
}

/// The numbers of a row's shard, and of the row in it, from 1 on.
pub(crate) fn numbers(row: &Position) -> (u16, u64) {
    let [a, b, arrival @ .., _, _, _] = *row.seqval.as_bytes();
    (u16::from_be_bytes([a, b]), arrival.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Who has read a row, if a change is a row that was read again.
pub(crate) fn reader(position: &Position) -> Option<i32> {
    let [.., a, b, c] = *position.seqval.as_bytes();
    is_reread(position).then(|| i32::from_be_bytes([0, a, b, c]))
}

/// Whether a change is a row that was read again.
pub(crate) const fn is_reread(position: &Position) -> bool {
    position.operation == 0
}

/// What counts of a table that is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counting {
    reading: i32,
    floor: Lsn,
}

/// Whether a change, or a row that `reader` has read, counts.
pub(crate) fn counts(of: Option<Counting>, reader: Option<i32>, commit_lsn: Lsn) -> bool {
    match (of, reader) {
        (of, Some(reader)) => of.is_some_and(|of| of.reading == reader),
        (Some(of), None) => commit_lsn >= of.floor,
        (None, None) => true,
    }
}

/// A reread as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Underway {
    pub(crate) told: Reread,
    /// Rows published, and rows received, of this generation.
    pub(crate) published: u64,
    pub(crate) received: u64,
}

/// The rereads of the tables that are used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rereads {
    underway: BTreeMap<String, Underway>,
    /// The generation that was completed last, by table.
    completed: BTreeMap<String, u64>,
}

impl Rereads {
    pub(crate) fn is_empty(&self) -> bool {
        self.underway.is_empty()
    }

    /// Whether nothing is consistent at `frontier`.
    pub(crate) fn hold(&self, frontier: Lsn) -> bool {
        self.underway.values().any(|reread| reread.told.holds(frontier) || reread.told.finished)
    }

    /// The tables that hold everything up.
    pub(crate) fn holding(&self, frontier: Lsn) -> impl Iterator<Item = &str> {
        self.underway.iter().filter(move |(_, reread)| reread.told.holds(frontier)).map(|(name, _)| name.as_str())
    }

    /// Takes in what a record tells. Answers the tables of which a new generation begins.
    pub(crate) fn follow(
        &mut self,
        catalog: &Catalog,
        record: &ProgressRecord,
        stretches: &Stretches,
        frontier: Lsn,
    ) -> Result<Vec<TableId>, Error> {
        let mut begun = Vec::new();
        for (name, told) in &record.rereads {
            let Some(table) = catalog.table(name) else { continue };
            let name = name.to_string();
            if self.completed.get(&name).is_some_and(|completed| told.generation <= *completed) {
                continue;
            }
            let known = self.underway.get(&name).map(|known| known.told.generation);
            if known != Some(told.generation) {
                begun.push(table);
                let told = told.clone();
                self.underway.insert(name.clone(), Underway { told, published: 0, received: 0 });
            }
            if let Some(underway) = self.underway.get_mut(&name) {
                underway.told = told.clone();
                let count = record.reread_counts.get(&catalog.tables[table].schema.name).filter(|_| !stretches.is_empty());
                underway.published += count.copied().unwrap_or_default();
            }
        }
        let abandoned = catalog.tables.iter().map(|table| &table.schema.name).find(|name| {
            self.underway.contains_key(&name.to_string()) && !record.rereads.contains_key(name) && record.to_lsn > frontier
        });
        abandoned.map_or(Ok(begun), |table| Err(Error::RereadAbandoned { table: table.clone() }))
    }

    /// By table: what counts of it, if it is being read.
    pub(crate) fn counting(&self, catalog: &Catalog) -> Vec<Option<Counting>> {
        let underway = |name: &TableName| self.underway.get(&name.to_string());
        let counting = |reread: &Underway| Counting { reading: reread.told.reading & 0xff_ffff, floor: reread.told.floor };
        catalog.tables.iter().map(|table| underway(&table.schema.name).map(counting)).collect()
    }

    /// By index: whether the places at which rows are put are to be remembered. `None`: none are.
    pub(crate) fn remembered(&self, catalog: &Catalog) -> Option<Vec<bool>> {
        let whole = |table: TableId| {
            // An index that was dropped is of no table.
            let name = catalog.tables.get(table).map(|table| table.schema.name.to_string());
            name.and_then(|name| self.underway.get(&name)).is_some_and(|underway| underway.told.whole)
        };
        let indexes: Vec<bool> = (0..catalog.indexes.len()).map(|index| whole(catalog.indexes[index].table)).collect();
        indexes.contains(&true).then_some(indexes)
    }

    /// Counts rows that were received. Answers how many were published and received of each table since its reread began (INV-6).
    pub(crate) fn count(&mut self, catalog: &Catalog, received: &[u64]) -> Vec<(TableId, u64, u64)> {
        let mut counts = Vec::new();
        for (id, (table, received)) in catalog.tables.iter().zip(received).enumerate() {
            if let Some(underway) = self.underway.get_mut(&table.schema.name.to_string()) {
                underway.received += received;
                counts.push((id, underway.published, underway.received));
            }
        }
        counts
    }

    /// A table whose reread has ended and has been passed, and whether all of it was read.
    pub(crate) fn ended(&self, catalog: &Catalog, frontier: Lsn) -> Option<(TableId, bool)> {
        catalog.tables.iter().enumerate().find_map(|(id, table)| {
            let underway = self.underway.get(&table.schema.name.to_string())?;
            (underway.told.finished && !underway.told.holds(frontier)).then_some((id, underway.told.whole))
        })
    }

    /// Forgets tables that are used no longer.
    pub(crate) fn retain(&mut self, used: impl Fn(&str) -> bool) {
        self.underway.retain(|name, _| used(name));
    }

    /// Strikes a reread off.
    pub(crate) fn complete(&mut self, catalog: &Catalog, table: TableId) {
        let name = catalog.tables[table].schema.name.to_string();
        if let Some(underway) = self.underway.remove(&name) {
            self.completed.insert(name, underway.told.generation);
        }
    }
}

/// Forgets where rows of a table were put.
pub(crate) fn forget(store: &Store, catalog: &Catalog, table: TableId, batch: &mut WriteBatch) -> Result<(), Error> {
    for &index in &catalog.tables[table].indexes {
        let (start, end) = bounds(index);
        batch.delete_range_cf(store.family(Family::Seen)?, start, end);
    }
    Ok(())
}

fn bounds(index: IndexId) -> (Vec<u8>, Vec<u8>) {
    let (mut start, mut end) = (Vec::new(), Vec::new());
    start_key(index, &mut start);
    start_key(index + 1, &mut end);
    (start, end)
}

/// Finds what stands where nothing was put since a generation began.
pub(crate) struct Sweep<'a> {
    store: &'a Store,
    /// The index, and where in it to go on.
    at: std::vec::IntoIter<(IndexId, IndexKind)>,
    within: Option<(IndexId, IndexKind, Vec<u8>)>,
}

/// A row that is to go.
pub(crate) struct Vanished {
    pub(crate) index: IndexId,
    pub(crate) key: Vec<u8>,
    /// Where the index holds whole rows, the row.
    pub(crate) row: Option<Vec<u8>>,
}

impl<'a> Sweep<'a> {
    pub(crate) fn new(store: &'a Store, catalog: &Catalog, table: TableId) -> Self {
        let indexes: Vec<_> = catalog.tables[table].indexes.iter().map(|&id| (id, catalog.indexes[id].kind)).collect();
        let mut at = indexes.into_iter();
        let within = at.next().map(|(id, kind)| (id, kind, bounds(id).0));
        Self { store, at, within }
    }

    /// The next rows; none when the table is clean. Those answered before must have been removed.
    pub(crate) fn next(&mut self) -> Result<Vec<Vanished>, Error> {
        let mut vanished = Vec::new();
        while let Some((index, kind, from)) = self.within.take() {
            let goes_on = self.index(index, kind, &from, &mut vanished)?;
            self.within = match goes_on {
                Some(key) => Some((index, kind, key)),
                None => self.at.next().map(|(id, kind)| (id, kind, bounds(id).0)),
            };
            if vanished.len() >= CHUNK {
                break;
            }
        }
        Ok(vanished)
    }

    /// Goes through an index, as far as there is room; answers where to go on.
    fn index(
        &self,
        index: IndexId,
        kind: IndexKind,
        from: &[u8],
        vanished: &mut Vec<Vanished>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let end = bounds(index).1;
        let (mut rows, mut seen) = (self.iterate(family(kind), from)?, self.iterate(Family::Seen, from)?);
        while let Some((key, row)) = rows.item().filter(|(key, _)| **key < *end) {
            if vanished.len() >= CHUNK {
                return Ok(Some(key.to_vec()));
            }
            while seen.key().is_some_and(|seen| seen < key) {
                seen.next();
            }
            if seen.key() != Some(key) {
                let row = (kind == IndexKind::Rows).then(|| row.to_vec());
                vanished.push(Vanished { index, key: key.to_vec(), row });
            }
            rows.next();
        }
        for iterator in [&rows, &seen] {
            iterator.status().map_err(|error| self.store.error(&error))?;
        }
        Ok(None)
    }

    fn iterate(&self, family: Family, from: &[u8]) -> Result<DBRawIterator<'a>, Error> {
        let mut iterator = self.store.db().raw_iterator_cf(self.store.family(family)?);
        iterator.seek(from);
        Ok(iterator)
    }
}
