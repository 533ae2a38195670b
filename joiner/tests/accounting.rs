//! Events that are taken out of a stream on purpose, or put into it beside the importer: what the running joiner says of them (INV-6).

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use joiner::{Engine, Error, Joiner, JoinerPhase, Miscount, Place};
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, SequenceNumber, ShardId};
use streams::embedded::{Embedded, Options};
use streams::memory::Memory;
use streams::{Batch, Layout, Positions, Provider, Record};
use support::{change, config, encode, item, items, lsn, missing, order, orders, publish, read, record};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Nothing here takes so long unless something is lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store whose records can be taken out.
enum Store {
    Memory(Memory),
    Embedded(Embedded),
}

impl Store {
    fn provider(&self) -> Arc<dyn Provider> {
        match self {
            Self::Memory(memory) => Arc::new(memory.clone()),
            Self::Embedded(embedded) => Arc::new(embedded.clone()),
        }
    }

    fn remove(&self, (shard, number): &(ShardId, u64)) {
        let stream = Layout::Shared.stream("p", &orders().name);
        match self {
            Self::Memory(memory) => memory.remove(&stream, shard, *number).unwrap(),
            Self::Embedded(embedded) => embedded.remove(&stream, shard, *number).unwrap(),
        }
    }
}

/// Where events stand, by what they are. All have been published.
async fn places(provider: &dyn Provider, count: usize) -> BTreeMap<Vec<u8>, (ShardId, u64)> {
    let stream = Layout::Shared.stream("p", &orders().name);
    let mut reader = provider.reader(&stream, &Positions::new()).await.unwrap();
    let mut found = BTreeMap::new();
    while found.len() < count {
        let batch = reader.next().await.unwrap();
        found.extend(
            batch.records.into_iter().map(|(number, data)| (data.to_vec(), (batch.shard.clone(), number.to_u64().unwrap()))),
        );
    }
    found
}

/// The events of a tick at an LSN: six orders, four items.
fn tick(at: u8) -> Vec<ChangeEvent> {
    let orders = (0..6).map(|n| change(orders(), at, n, None, Some(order(i64::from(at) * 10 + i64::from(n), "new"))));
    let items = (0..4).map(|n| change(items(), at, 10 + n, None, Some(item(i64::from(at) * 10, i64::from(n), 100))));
    orders.chain(items).collect()
}

/// Publishes a snapshot at LSN 5 and a tick for each LSN from 6 to 9.
async fn fill(provider: &dyn Provider) {
    let row = encode(&read(orders(), 5, order(1, "new")));
    publish(provider, &[row], record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)])).await;
    for at in 6..10 {
        let events: Vec<Vec<u8>> = tick(at).iter().map(encode).collect();
        publish(provider, &events, record(Phase::Tail, at - 1, at, &[(&orders(), 6), (&items(), 4)])).await;
    }
}

/// Runs a joiner until it stops by itself: the error that it stops with, and what its status says then.
async fn run(dir: &TempDir, provider: Arc<dyn Provider>) -> (Vec<Miscount>, joiner::Status) {
    let joiner = Joiner::open(config(&dir.path().join("state"))).unwrap();
    let handle = joiner.handle();
    let stop = CancellationToken::new();
    let error = joiner.run(provider, Vec::new(), stop).await.unwrap_err();
    let Error::Missing { miscounts } = error else { panic!("{error}") };
    (miscounts, handle.status())
}

fn stores() -> [(TempDir, Store); 2] {
    let dir = tempfile::tempdir().unwrap();
    let embedded = Embedded::open(Options::new(dir.path().join("streams"))).unwrap();
    [(dir, Store::Embedded(embedded)), (tempfile::tempdir().unwrap(), Store::Memory(Memory::new()))]
}

/// Exactly these numbers of one shard.
fn removed(miscount: &Miscount) -> Vec<(ShardId, u64, u64)> {
    let runs = |place: &Place| place.removed.iter().map(|run| (place.shard.clone(), run.0, run.1)).collect::<Vec<_>>();
    assert!(miscount.places.iter().all(|place| !place.removed.is_empty()), "{miscount}");
    miscount.places.iter().flat_map(runs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_was_removed_is_reported_by_table_tick_and_position() {
    for (dir, store) in stores() {
        let provider = store.provider();
        fill(&*provider).await;
        let places = places(&*provider, 41).await;
        let gone = &places[&encode(&tick(7)[2])];
        store.remove(gone);
        let (miscounts, status) = run(&dir, provider).await;
        let [miscount] = &miscounts[..] else { panic!("{miscounts:?}") };
        assert_eq!((&miscount.table, miscount.published, miscount.received), (&orders().name, 6, 5));
        assert_eq!((miscount.from_lsn, miscount.to_lsn, miscount.commit_time_ms), (lsn(6), lsn(7), 1007));
        assert_eq!(removed(miscount), [(gone.0.clone(), gone.1, gone.1)]);
        assert_eq!((status.phase, &status.miscounts), (JoinerPhase::Failed, &miscounts));
        let told = status.failure.unwrap();
        let sentence = format!(
            "of dbo.orders in ({}, {}] (committed 1970-01-01T00:00:01.007+00:00) the importer published 6 events and 5 have been received: {}, which no record has, in shard {} of stream p.events",
            lsn(6),
            lsn(7),
            gone.1,
            gone.0
        );
        assert!(told.contains(&sentence) && told.contains("empty state directory"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_tables_and_ticks_that_miss_something_are_named() {
    for (dir, store) in stores() {
        let provider = store.provider();
        fill(&*provider).await;
        let places = places(&*provider, 41).await;
        let gone = [&tick(7)[0], &tick(7)[7], &tick(7)[8], &tick(9)[5]].map(|event| places[&encode(event)].clone());
        gone.iter().for_each(|place| store.remove(place));
        let (miscounts, _) = run(&dir, provider).await;
        let mut named: Vec<_> = miscounts.iter().map(|count| (count.table.to_string(), count.to_lsn, count.received)).collect();
        named.sort();
        // How many ticks are looked at together depends on how they come in.
        let all =
            [("dbo.items".to_owned(), lsn(7), 2), ("dbo.orders".to_owned(), lsn(7), 5), ("dbo.orders".to_owned(), lsn(9), 5)];
        assert!(named == all || named == all[..2], "{named:?}");
        for miscount in miscounts.iter().filter(|miscount| miscount.to_lsn == lsn(7)) {
            let numbers: u64 = removed(miscount).iter().map(|(_, first, last)| last - first + 1).sum();
            assert_eq!(numbers, 3, "{miscount}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_record_of_a_quiet_shard_is_missed_as_well() {
    for (dir, store) in stores() {
        let provider = store.provider();
        fill(&*provider).await;
        let places = places(&*provider, 41).await;
        // Nothing comes after it: only the shard's end tells.
        let (event, gone) = places.iter().max_by_key(|(_, (_, number))| *number).unwrap();
        store.remove(gone);
        let (miscounts, _) = run(&dir, provider).await;
        let [miscount] = &miscounts[..] else { panic!("{miscounts:?}") };
        assert_eq!((miscount.from_lsn, miscount.to_lsn), (lsn(8), lsn(9)));
        assert!(String::from_utf8_lossy(event).contains(&format!("\"{}\"", miscount.table.table)));
        assert_eq!(removed(miscount), [(gone.0.clone(), gone.1, gone.1)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_records_are_past_their_retention_holds_nobody_up() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::new());
    fill(&memory).await;
    let stream = Layout::Shared.stream("p", &orders().name);
    let before = memory.tips(&stream).await.unwrap();
    memory.trim(&stream).unwrap();
    // The snapshot that follows has a row in one shard; its record names the other one where it has long stood.
    let mut writer = memory.writer().await.unwrap();
    let row = encode(&read(orders(), 20, order(1, "new"))).into();
    writer.append(&stream, vec![Record { partition_key: "k".into(), data: row }]).await.unwrap();
    let mut record = record(Phase::SnapshotComplete { consistent_from: lsn(20) }, 20, 20, &[(&orders(), 1)]);
    record.positions = [(stream.clone(), before)].into();
    record.positions.get_mut(&stream).unwrap().extend(writer.flush().await.unwrap().remove(&stream).unwrap());
    assert_eq!(record.positions[&stream].len(), 2);
    let data = serde_json::to_vec(&record).unwrap().into();
    writer.append(&Layout::progress_stream("p"), vec![Record { partition_key: "shop".into(), data }]).await.unwrap();
    writer.flush().await.unwrap();

    let joiner = Joiner::open(config(dir.path())).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let running = tokio::spawn(joiner.run(Arc::new(memory), Vec::new(), stop.clone()));
    let mut head = handle.outbox().head();
    tokio::time::timeout(PATIENCE, head.wait_for(|head| head.frontier == lsn(20))).await.expect("it waits for ever").unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}

fn feed(engine: &mut Engine, first: u64, events: &[ChangeEvent]) {
    let stream = Layout::Shared.stream("p", &orders().name);
    let numbered =
        events.iter().zip(first..).map(|(event, n)| (SequenceNumber::from(n * 1_000_000_000_000), encode(event).into()));
    engine.events(&Batch { stream, shard: ShardId("0".into()), records: numbered.collect() }).unwrap();
}

/// Tells of a tick that stands up to record `read`; numbers are as sparse as Kinesis's.
fn tell(engine: &mut Engine, at: u8, phase: Phase, counts: u64, read: u64) -> Result<bool, Error> {
    let from = if phase == Phase::Tail { at - 1 } else { at };
    let mut record = record(phase, from, at, &[(&orders(), counts)]);
    let stream = Layout::Shared.stream("p", &orders().name);
    record.positions.entry(stream).or_default().insert(ShardId("0".into()), SequenceNumber::from(read * 1_000_000_000_000));
    engine.progress(&Layout::progress_stream("p"), &ShardId("0".into()), &SequenceNumber::from(u64::from(at)), record)?;
    engine.advance()
}

fn insert(at: u8, number: u8) -> ChangeEvent {
    change(orders(), at, number, None, Some(order(i64::from(at) * 10 + i64::from(number), "new")))
}

#[test]
fn each_tick_is_counted_by_itself_and_events_too_many_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 1, &[read(orders(), 5, order(1, "new"))]);
    tell(&mut engine, 5, Phase::SnapshotComplete { consistent_from: lsn(5) }, 1, 1).unwrap();
    // The second event was published twice under different identities; the third is a repeat.
    feed(&mut engine, 2, &[insert(6, 1), insert(6, 2), insert(6, 1)]);
    assert!(tell(&mut engine, 6, Phase::Tail, 1, 4).unwrap());
    let status = engine.handle().status();
    let [surplus] = &status.miscounts[..] else { panic!("{:?}", status.miscounts) };
    assert_eq!((surplus.to_lsn, surplus.published, surplus.received, surplus.is_missing()), (lsn(6), 1, 2, false));
    assert_eq!(status.tables["dbo.orders"].surplus, 1);
    let place = &surplus.places[0];
    let numbers = |number: &SequenceNumber| number.to_u64().unwrap() / 1_000_000_000_000;
    assert_eq!((place.after.as_ref().map(numbers), numbers(&place.to), place.removed.len()), (Some(1), 4, 0));
    // One too many in a tick does not make up for one too few in another, in the same step.
    feed(&mut engine, 5, &[insert(7, 1), insert(8, 1), insert(8, 2), insert(9, 1)]);
    let stream = Layout::progress_stream("p");
    for (at, counts) in [(7, 2), (8, 1)] {
        let record = record(Phase::Tail, at - 1, at, &[(&orders(), counts)]);
        engine.progress(&stream, &ShardId("0".into()), &SequenceNumber::from(u64::from(at)), record).unwrap();
    }
    let error = tell(&mut engine, 9, Phase::Tail, 1, 8).unwrap_err();
    assert_eq!(missing(&error), [("dbo.orders".to_owned(), 2, 1)]);
    assert_eq!(engine.frontier(), lsn(6));
}

#[test]
fn a_progress_record_that_stands_twice_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    let rows: Vec<ChangeEvent> = (0..4).map(|id| read(orders(), 5, order(id, "new"))).collect();
    feed(&mut engine, 1, &rows[..2]);
    tell(&mut engine, 5, Phase::Snapshot, 2, 2).unwrap();
    tell(&mut engine, 5, Phase::Snapshot, 2, 2).unwrap();
    feed(&mut engine, 3, &rows[2..]);
    tell(&mut engine, 5, Phase::Snapshot, 2, 4).unwrap();
    // Late.
    tell(&mut engine, 5, Phase::Snapshot, 2, 2).unwrap();
    let complete = Phase::SnapshotComplete { consistent_from: lsn(5) };
    tell(&mut engine, 5, complete, 0, 4).unwrap();
    tell(&mut engine, 5, complete, 0, 4).unwrap();
    assert_eq!(engine.handle().status().warning, None);
    assert_eq!(engine.handle().outbox().head().borrow().frontier, lsn(5));
    feed(&mut engine, 5, &[insert(6, 10), insert(7, 11)]);
    for at in [6, 6, 7, 6, 7] {
        tell(&mut engine, at, Phase::Tail, 1, u64::from(at) - 1).unwrap();
    }
    assert_eq!((engine.frontier(), engine.handle().status().miscounts), (lsn(7), Vec::new()));
}

#[test]
fn a_record_that_is_no_event_excuses_one_tick_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 1, &[read(orders(), 5, order(1, "new"))]);
    tell(&mut engine, 5, Phase::SnapshotComplete { consistent_from: lsn(5) }, 1, 1).unwrap();
    let stream = Layout::Shared.stream("p", &orders().name);
    let rubbish = (SequenceNumber::from(2_000_000_000_000), b"rubbish".to_vec().into());
    engine.events(&Batch { stream, shard: ShardId("0".into()), records: vec![rubbish] }).unwrap();
    // It is remembered over a restart: its position has been passed.
    drop(engine);
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 3, &[insert(6, 1)]);
    assert!(tell(&mut engine, 6, Phase::Tail, 2, 3).unwrap());
    feed(&mut engine, 4, &[insert(7, 1)]);
    let error = tell(&mut engine, 7, Phase::Tail, 2, 4).unwrap_err();
    assert_eq!(missing(&error), [("dbo.orders".to_owned(), 2, 1)]);
    // What the report advises is of use.
    let mut engine = Engine::open(&config(&dir.path().join("new"))).unwrap();
    assert!(!tell(&mut engine, 7, Phase::Tail, 2, 0).unwrap());
    feed(&mut engine, 5, &[read(orders(), 8, order(1, "sent"))]);
    assert!(tell(&mut engine, 8, Phase::SnapshotComplete { consistent_from: lsn(8) }, 1, 5).unwrap());
}
