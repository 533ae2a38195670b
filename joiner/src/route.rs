//! From the records of a stream to what the core works on: snapshot rows as puts into the state, changes for the buffer, dead letters.
//!
//! Runs beside the core, one batch at a time, and touches no state. Duplicates are told by their position, before their rows are looked at.
//!
//! # What is refused
//! An event that cannot be read, lacks a column of its table's key, or holds a value that a key cannot be made of, is a dead letter: everything that is put into the state can be looked up
//! and assembled without fail. Where such an event's position is known it still counts as received (INV-6). A record under a schema that is not known is no dead letter: it says nothing about
//! the record, and everything about the folder that schemas are read from. The batch is given back, to be routed again once more is known.

use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::encoding::{Opener, Registry, to_json};
use schemas::event::Op;
use schemas::parse::{Head, ParseError, RowBuffer, RowView};
use schemas::progress::SequenceNumber;
use schemas::table::SourceName;
use schemas::{Lsn, TableName};
use streams::Batch;

use crate::buffer::{Change, Kind};
use crate::catalog::{Catalog, Table, TableId};
use crate::derive;
use crate::error::{Error, UnknownSchema};
use crate::inputs::Arrived;
use crate::reread;
use crate::state::row::{self, Row, Spans};
use crate::state::view::{family, place};
use crate::state::{Store, key};

/// What was in a batch.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) arrived: Arrived,
    /// By table: change events, repeats included.
    pub(crate) received: Vec<u64>,
    pub(crate) snapshots: Vec<SnapshotRows>,
    pub(crate) dead: Vec<DeadLetter>,
    /// Where dead letters stood of which not even the table is known.
    pub(crate) unknown: Vec<SequenceNumber>,
}

impl Routed {
    /// What it takes of memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let changes = &self.arrived.changes;
        // All of a batch have one arena.
        let arena = changes.first().map_or(0, |change| change.arena.capacity());
        let puts: usize = self.snapshots.iter().map(|rows| rows.puts.size_in_bytes()).sum();
        let letters: usize = self.dead.iter().map(|letter| size_of::<DeadLetter>() + letter.event.len()).sum();
        arena + changes.capacity() * size_of::<Change>() + puts + letters
    }
}

/// Rows of one snapshot, ready to be written.
pub(crate) struct SnapshotRows {
    pub(crate) start_lsn: Lsn,
    pub(crate) puts: WriteBatch,
    /// By table.
    pub(crate) received: Vec<u64>,
    pub(crate) dead: Vec<u64>,
}

impl std::fmt::Debug for SnapshotRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotRows")
            .field("start_lsn", &self.start_lsn)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// An event that was set aside.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeadLetter {
    pub stream: String,
    pub shard: String,
    pub sequence: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit_lsn: Option<Lsn>,
    pub reason: String,
    /// The event's beginning.
    pub event: String,
}

/// Why one event was refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Parse(#[from] ParseError),
    #[error("a {0:?} event without its {1} image")]
    NoImage(Op, &'static str),
    #[error("the {image} image has no column {column:?}, which is part of the table's key")]
    NoKey { image: &'static str, column: String },
    #[error("the {image} image: {error}")]
    Key { image: &'static str, error: key::KeyError },
}

/// Whose records are sorted out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Of<'a> {
    /// Its number.
    pub(crate) source: usize,
    /// The source's name, where there are several.
    pub(crate) qualifier: Option<&'a SourceName>,
    /// Changes of the source at or below it have been applied and are dropped.
    pub(crate) frontier: Lsn,
}

pub(crate) struct Router<'a> {
    store: &'a Store,
    catalog: &'a Catalog,
    registry: &'a Registry,
    of: Of<'a>,
    arena: Vec<u8>,
    drafts: Vec<Change>,
    spans: Spans,
    key: Vec<u8>,
    value: Vec<u8>,
    empty: Arc<Vec<u8>>,
    out: Routed,
}

/// Sorts out a batch.
pub(crate) fn route(store: &Store, catalog: &Catalog, registry: &Registry, of: Of<'_>, batch: &Batch) -> Result<Routed, Error> {
    let tables = catalog.tables.len();
    let mut router = Router {
        store,
        catalog,
        registry,
        of,
        arena: Vec::new(),
        drafts: Vec::new(),
        spans: Spans::default(),
        key: Vec::new(),
        value: Vec::new(),
        empty: Arc::default(),
        out: Routed {
            arrived: Arrived::of(batch),
            received: vec![0; tables],
            snapshots: Vec::new(),
            dead: Vec::new(),
            unknown: Vec::new(),
        },
    };
    let (mut opener, mut rows) = (Opener::new(registry), RowBuffer::default());
    let mut recent: Option<(TableName, Option<TableId>)> = None;
    let sample = batch.records.len() / 16;
    for (nth, (sequence, data)) in batch.records.iter().enumerate() {
        router.event(data, sequence, &mut opener, &mut rows, &mut recent)?;
        if nth == sample {
            router.make_room(batch.records.len(), nth + 1);
        }
    }
    let (mut arena, mut out) = (router.arena, router.out);
    out.arrived.changes = router.drafts;
    // They may wait for long, and what was set aside for them was a guess.
    if arena.len() < arena.capacity() / 4 * 3 {
        arena.shrink_to_fit();
    }
    let arena = Arc::new(arena);
    for change in &mut out.arrived.changes {
        change.arena = arena.clone();
    }
    Ok(out)
}

impl Router<'_> {
    /// Makes room for what will come of all records, by what has come of some.
    fn make_room(&mut self, records: usize, of: usize) {
        let rest = |made: usize| made * (records - of) / of;
        self.arena.reserve(rest(self.arena.len()) / 16 * 17);
        self.drafts.reserve_exact(rest(self.drafts.len()));
    }

    fn event(
        &mut self,
        data: &[u8],
        sequence: &SequenceNumber,
        opener: &mut Opener<'_>,
        rows: &mut RowBuffer,
        recent: &mut Option<(TableName, Option<TableId>)>,
    ) -> Result<(), Error> {
        let head = match opener.head(data) {
            Ok(head) => head,
            Err(error @ ParseError::UnknownSchema { .. }) => {
                let Arrived { stream, shard, .. } = &self.out.arrived;
                let (stream, shard) = (stream.clone(), shard.clone());
                let unknown = UnknownSchema { stream, shard, sequence: sequence.clone(), error };
                return Err(Error::UnknownSchema(Box::new(unknown)));
            }
            Err(error) => {
                self.out.unknown.push(sequence.clone());
                self.dead_letter(data, sequence, None, &error.into());
                return Ok(());
            }
        };
        // Runs of one table are the rule: its name is looked up once a run.
        let known =
            recent.as_ref().filter(|(name, _)| name.table == head.table && name.schema == head.schema).map(|(_, table)| *table);
        let table = known.unwrap_or_else(|| {
            let name = TableName::new(head.schema.as_ref(), head.table.as_ref());
            let table = match self.of.qualifier {
                Some(source) => self.catalog.table(&name.clone().of(source)),
                None => self.catalog.table(&name),
            };
            *recent = Some((name, table));
            table
        });
        let Some(table) = table else { return Ok(()) };
        if head.op == Op::Read {
            return self.snapshot_row(&head, data, table, sequence, rows);
        }
        self.out.received[table] += 1;
        let mut position = head.position;
        if head.op == Op::Reread {
            // The core gives it its number.
            position = reread::position(0, 0, position.command_id);
            self.out.arrived.rereads.push(sequence.clone());
        } else if position.commit_lsn <= self.of.frontier {
            return Ok(());
        }
        let greatest = &mut self.out.arrived.greatest;
        *greatest = position.commit_lsn.max(*greatest);
        let start = self.arena.len();
        let (kind, images) = match self.images(&head, table, rows) {
            Ok(images) => images,
            Err(refused) => {
                self.arena.truncate(start);
                self.dead_letter(data, sequence, Some((table, head.position.commit_lsn)), &refused);
                (Kind::Dead, (None, None))
            }
        };
        let arena = self.empty.clone();
        self.drafts.push(Change { position, table: table as u16, kind, before: images.0, after: images.1, arena });
        Ok(())
    }

    /// Reads a change's images into the arena.
    #[allow(clippy::type_complexity)]
    fn images(
        &mut self,
        head: &Head<'_>,
        id: TableId,
        rows: &mut RowBuffer,
    ) -> Result<(Kind, (Option<(u32, u32)>, Option<(u32, u32)>)), Refused> {
        let table = &self.catalog.tables[id];
        let (before, after) = head.rows(&table.columns, rows)?;
        let (wants_before, wants_after) = (matches!(head.op, Op::Update | Op::Delete), head.op != Op::Delete);
        if wants_before && !before.present {
            return Err(Refused::NoImage(head.op, "before"));
        }
        if wants_after && !after.present {
            return Err(Refused::NoImage(head.op, "after"));
        }
        let old = if wants_before { Some(self.image(table, before, "before")?) } else { None };
        let new = if wants_after { Some(self.image(table, after, "after")?) } else { None };
        let same = |(a, b): (&[u8], &[u8])| a == b || row::is_unavailable(b);
        if head.op == Op::Update && before.values().zip(after.values()).all(same) {
            return Ok((Kind::Nothing, (None, None)));
        }
        Ok((Kind::Rows, (old, new)))
    }

    /// Appends an image to the arena, once it is known that every key can be made of it.
    fn image(&mut self, table: &Table, row: RowView<'_>, image: &'static str) -> Result<(u32, u32), Refused> {
        for part in &table.own_key {
            if row.get(part.slot).is_empty() {
                let column = table.own_key_column(part.slot);
                return Err(Refused::NoKey { image, column });
            }
        }
        let start = self.arena.len();
        if table.derived.is_empty() {
            row.values().for_each(|fragment| row::put(fragment, &mut self.arena));
        } else {
            derive::put(table, row, &mut self.arena);
        }
        let bytes = &self.arena[start..];
        let row = self.spans.read(bytes);
        let refused = |error| Refused::Key { image, error };
        for &index in &table.indexes {
            place(index, &self.catalog.indexes[index], row, &mut self.key).map_err(refused)?;
        }
        for part in &table.checked {
            self.key.clear();
            key::encode(row.get(part.slot), part.key_type, &mut self.key).map_err(refused)?;
        }
        Ok((start as u32, self.arena.len() as u32))
    }

    fn snapshot_row(
        &mut self,
        head: &Head<'_>,
        data: &[u8],
        id: TableId,
        sequence: &SequenceNumber,
        rows: &mut RowBuffer,
    ) -> Result<(), Error> {
        let catalog = self.catalog;
        let table = &catalog.tables[id];
        let start_lsn = head.position.commit_lsn;
        let which = match self.out.snapshots.iter().position(|rows| rows.start_lsn == start_lsn) {
            Some(which) => which,
            None => {
                let none = vec![0; catalog.tables.len()];
                self.out.snapshots.push(SnapshotRows {
                    start_lsn,
                    puts: WriteBatch::default(),
                    received: none.clone(),
                    dead: none,
                });
                self.out.snapshots.len() - 1
            }
        };
        self.out.snapshots[which].received[id] += 1;
        let start = self.arena.len();
        let read = head.rows(&table.columns, rows).map_err(Refused::from).and_then(|(_, after)| {
            if after.present { self.image(table, after, "after") } else { Err(Refused::NoImage(head.op, "after")) }
        });
        if let Err(refused) = read {
            self.arena.truncate(start);
            self.out.snapshots[which].dead[id] += 1;
            self.dead_letter(data, sequence, Some((id, start_lsn)), &refused);
            return Ok(());
        }
        let puts = &mut self.out.snapshots[which].puts;
        let row = self.spans.read(&self.arena[start..]);
        for &id in &table.indexes {
            let index = &catalog.indexes[id];
            // The image has been checked: every key can be made.
            if place(id, index, row, &mut self.key).unwrap_or(false)
                && catalog.share.keeps(&catalog.entities, id, |slot| row.get(slot))
            {
                let value = stored(table, &index.stored, row, &self.arena[start..], &mut self.value);
                puts.put_cf(self.store.family(family(index.kind))?, &self.key, value);
            }
        }
        self.arena.truncate(start);
        Ok(())
    }

    fn dead_letter(&mut self, data: &[u8], sequence: &SequenceNumber, place: Option<(TableId, Lsn)>, refused: &Refused) {
        // In JSON, where it can be read as far as that.
        let mut text = Vec::new();
        if to_json(&mut Opener::new(self.registry), &mut RowBuffer::default(), data, &mut text).is_err() {
            text.clear();
            text.extend_from_slice(data);
        }
        let event: String = String::from_utf8_lossy(&text[..text.len().min(2000)]).into_owned();
        self.out.dead.push(DeadLetter {
            stream: self.out.arrived.stream.to_string(),
            shard: self.out.arrived.shard.to_string(),
            sequence: sequence.to_string(),
            table: place.map(|(table, _)| self.catalog.tables[table].schema.name.clone()),
            commit_lsn: place.map(|(_, lsn)| lsn),
            reason: refused.to_string(),
            event,
        });
    }
}

impl Table {
    fn own_key_column(&self, slot: usize) -> String {
        let which = self.own_key.iter().position(|part| part.slot == slot);
        which
            .and_then(|which| self.schema.key.get(which))
            .map_or_else(String::new, |&column| self.schema.columns[column].name.clone())
    }
}

/// The value that an index keeps of a row.
pub(crate) fn stored<'a>(table: &Table, slots: &[usize], row: Row<'_>, bytes: &'a [u8], out: &'a mut Vec<u8>) -> &'a [u8] {
    if slots.len() == table.slots {
        return bytes;
    }
    out.clear();
    slots.iter().for_each(|&slot| row::put(row.get(slot), out));
    out
}
