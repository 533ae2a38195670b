//! Room for what has been read and not been taken in by the core: one bound in bytes over all streams.
//!
//! # What is counted
//! What a batch takes of memory, and not what it takes on its way: a record that is packed becomes five times as large or more. Before a batch is handed on, room is taken for its records and for what the packed ones say that they
//! unpack to ([`unpacked_bytes`]); once it has been sorted out, for what came of it ([`settle`]), which is mostly less: columns that nobody uses are gone.
//!
//! # Nobody waits for ever
//! Room is waited for only by a reader that holds none for what it waits with, and whoever holds some waits for the core alone, which takes in whatever comes. That is why a batch that has become larger than was thought (many short values, in an
//! encoding that leaves their names out) takes as much more as is free, and does not wait for the rest.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::encoding::unpacked_bytes;
use schemas::progress::StreamName;
use streams::Batch;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// All the room, in KiB.
const AHEAD_KIB: usize = 48 << 10;

/// Room that a batch takes until the core has taken it in; none for progress records.
pub(super) type Held = Option<OwnedSemaphorePermit>;

/// The streams that are read on; none: all of them.
pub(super) type Wanted = Option<BTreeSet<StreamName>>;

/// What a reader waits for before it hands a batch on.
#[derive(Clone)]
pub(super) struct Room {
    ahead: Arc<Semaphore>,
    wanted: watch::Receiver<Wanted>,
}

/// One that is larger than all there is takes all.
fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024).clamp(1, AHEAD_KIB)
}

impl Room {
    pub(super) fn new(wanted: watch::Receiver<Wanted>) -> Self {
        Self { ahead: Arc::new(Semaphore::new(AHEAD_KIB)), wanted }
    }

    /// Whether any batch has room: it has been read, and not been taken in.
    pub(super) fn is_used(&self) -> bool {
        self.ahead.available_permits() < AHEAD_KIB
    }

    /// Room for a batch.
    pub(super) async fn reserve(&mut self, batch: &Batch) -> Held {
        // Neither is ever closed while anything is read.
        let is_wanted = |wanted: &Wanted| wanted.as_ref().is_none_or(|streams| streams.contains(&batch.stream));
        self.wanted.wait_for(is_wanted).await.ok()?;
        let bytes: usize = batch.records.iter().map(|(_, data)| unpacked_bytes(data)).sum();
        self.ahead.clone().acquire_many_owned(kib(bytes) as u32).await.ok()
    }
}

/// Brings the room that a batch has taken to what is kept of it since it was sorted out, as far as there is some.
pub(super) fn settle(held: &mut OwnedSemaphorePermit, bytes: usize) {
    let (taken, kept) = (held.num_permits(), kib(bytes));
    if let Some(rest) = taken.checked_sub(kept) {
        drop(held.split(rest));
        return;
    }
    let more = (kept - taken).min(held.semaphore().available_permits());
    // Somebody else may have been faster.
    if let Ok(more) = held.semaphore().clone().try_acquire_many_owned(more as u32) {
        held.merge(more);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::encoding::{Compressor, Dictionary, Encoder, Format, Registry, Written, avro, protobuf};
    use schemas::entity::EntityDefinition;
    use schemas::event::{ChangeEvent, Op};
    use schemas::plan::Plan;
    use schemas::progress::{SequenceNumber, ShardId};
    use schemas::table::{Column, TableSchema};
    use schemas::value::Value;
    use schemas::{Lsn, Position, TableName};

    use super::*;
    use crate::buffer::Change;
    use crate::catalog::Catalog;
    use crate::route::{Of, Routed, route};
    use crate::state::{Memory, Store};

    fn batch(records: impl Iterator<Item = Vec<u8>>) -> Batch {
        let records = (1..).zip(records).map(|(number, data)| (SequenceNumber::from(number), data.into())).collect();
        Batch { stream: StreamName("s".into()), shard: ShardId("0".into()), records }
    }

    fn room() -> (Room, watch::Sender<Wanted>) {
        let (next, wanted) = watch::channel(None);
        (Room::new(wanted), next)
    }

    #[tokio::test]
    async fn streams_share_the_room_ahead_of_the_core() {
        let (mut room, _next) = room();
        let of = |bytes| batch(std::iter::once(vec![0; bytes]));
        let half = of(AHEAD_KIB * 512);
        let (first, second) = (room.reserve(&half).await, room.reserve(&half).await);
        let waiting = tokio::spawn({
            let mut room = room.clone();
            // One that is larger than all the room waits for all of it.
            async move { room.reserve(&of(AHEAD_KIB * 1024 + 1)).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        assert_eq!(waiting.await.unwrap().unwrap().num_permits(), AHEAD_KIB);
        assert_eq!(room.ahead.available_permits(), AHEAD_KIB);
    }

    #[tokio::test]
    async fn room_follows_what_is_kept_and_what_is_not_free_is_not_waited_for() {
        let (mut room, _next) = room();
        let mut held = room.reserve(&batch(std::iter::once(vec![0; 100 << 10]))).await.unwrap();
        settle(&mut held, 10 << 10);
        assert_eq!((held.num_permits(), room.ahead.available_permits()), (10, AHEAD_KIB - 10));
        settle(&mut held, 30 << 10);
        assert_eq!((held.num_permits(), room.ahead.available_permits()), (30, AHEAD_KIB - 30));
        let rest = room.reserve(&batch(std::iter::once(vec![0; (AHEAD_KIB - 35) << 10]))).await.unwrap();
        settle(&mut held, 90 << 10);
        assert_eq!((held.num_permits(), room.ahead.available_permits()), (35, 0));
        drop((held, rest));
        assert_eq!(room.ahead.available_permits(), AHEAD_KIB);
    }

    fn table() -> Arc<TableSchema> {
        let column = |name: &str, sql_type: &str| Column {
            name: name.to_owned(),
            sql_type: sql_type.parse().unwrap(),
            nullable: false,
            case_insensitive: false,
        };
        let columns = vec![column("id", "int"), column("status", "varchar(10)"), column("note", "nvarchar(400)")];
        Arc::new(TableSchema { name: TableName::new("dbo", "orders"), columns, key: vec![0] })
    }

    fn formats(table: &Arc<TableSchema>, registry: &mut Registry) -> Vec<Format> {
        let avro = Arc::new(avro::Schema::new(table, 1));
        let protobuf = Arc::new(protobuf::Schema::new(table, 1, None));
        let dictionary = Dictionary::new(table, "shop", "db");
        registry.add_avro("t.avsc", avro.clone()).unwrap();
        registry.add_protobuf("t.proto", protobuf.clone()).unwrap();
        registry.add_dictionary(&dictionary);
        let schemas = || [Written::Json, Written::Avro(avro.clone()), Written::Protobuf(protobuf.clone())];
        let packed = || Some(Compressor::new(&dictionary).unwrap());
        let plain = schemas().map(|schema| Format { schema, compressor: None });
        plain.into_iter().chain(schemas().map(|schema| Format { schema, compressor: packed() })).collect()
    }

    fn event(table: &Arc<TableSchema>, number: u64, operation: Op) -> ChangeEvent {
        let mut lsn = [0; 10];
        lsn[2..].copy_from_slice(&number.to_be_bytes());
        let position = Position { commit_lsn: Lsn::from_bytes(lsn), operation: 4, ..Position::default() };
        let row =
            |status: &str| vec![Value::Int(number as i64), Value::Text(status.into()), Value::Text("much the same ".repeat(20))];
        let before = (operation == Op::Update).then(|| row("new"));
        ChangeEvent { table: table.clone(), op: operation, before, after: Some(row("paid")), position, commit_time_ms: 1 }
    }

    /// What is kept of a batch, row by row.
    fn kept(routed: &Routed) -> usize {
        let changes: usize = routed.arrived.changes.iter().map(Change::bytes).sum();
        changes + routed.snapshots.iter().map(|rows| rows.puts.data().len()).sum::<usize>()
    }

    #[tokio::test]
    async fn a_packed_batch_takes_room_for_what_it_unpacks_to_in_every_encoding() {
        const EVENTS: u64 = 2_000;
        let dir = tempfile::tempdir().unwrap();
        let memory =
            Memory { write_buffer_bytes: 16 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 0, recent_bytes: 1 << 20 };
        let store = Store::open(dir.path(), 1, memory).unwrap();
        let (table, mut registry) = (table(), Registry::default());
        let text = "entity: order\ntable: dbo.orders\nfields: [id, status, note]\n";
        let lookup = |name: &TableName| (table.name == *name).then(|| table.clone());
        let plan = Plan::resolve(&EntityDefinition::from_yaml("order.yaml", text).unwrap(), &lookup).unwrap();
        let catalog = Catalog::new(&[Arc::new(plan)]).unwrap();
        for (nth, mut format) in formats(&table, &mut registry).into_iter().enumerate() {
            for operation in [Op::Update, Op::Read] {
                let mut encoder = Encoder::new("shop", "db");
                let mut encoded = |number| {
                    let mut data = Vec::new();
                    encoder.encode(&mut format, &event(&table, number, operation), &mut data);
                    data
                };
                let batch = batch((1..=EVENTS).map(&mut encoded));
                let (mut room, _next) = room();
                let mut held = room.reserve(&batch).await.unwrap();
                let reserved = held.num_permits() << 10;
                let of = Of { source: 0, qualifier: None, frontier: Lsn::ZERO };
                let routed = route(&store, &catalog, &registry, of, &batch).unwrap();
                let (travelled, bytes) = (batch.records.iter().map(|(_, data)| data.len()).sum::<usize>(), kept(&routed));
                let what =
                    format!("encoding {nth}, {operation:?}: {travelled} bytes travelled, {reserved} reserved, {bytes} kept");
                assert!(nth < 3 || travelled * 3 < bytes, "these are well packed: {what}");
                // Rows that are short beside what stands with them are let grow: not twice.
                assert!(bytes < 2 * reserved, "{what}");
                settle(&mut held, routed.bytes());
                assert!(
                    (bytes..bytes + bytes / 2 + 2048).contains(&(held.num_permits() << 10)),
                    "{what}, {} held",
                    routed.bytes()
                );
            }
        }
    }
}
