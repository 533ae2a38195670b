//! A joiner that takes over: what its predecessor has told, in steps of its own and, of several sources, in versions of its own way through them, hides nothing that the successor has to tell.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use joiner::{Config, Confirmed, ConfirmedBySink, Handle, Joiner, NamedSink, Source};
use schemas::change::EntityChange;
use schemas::entity::{EntityDefinition, EntityInfo};
use schemas::envelope::Encoder;
use schemas::event::ChangeEvent;
use schemas::plan::Plan;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, ShardPositions};
use schemas::table::TableSchema;
use schemas::{Lsn, TableName, Vector};
use sinks::{Rejected, Sink};
use streams::memory::Memory;
use streams::{Layout, Provider, Record};
use support::{change, item, items, lsn, order, orders, read, record};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ORDER: &str = "
entity: order
table: shop.dbo.orders
many: {items: {table: bank.dbo.items, by: [order_id], fields: [line, price]}}
";

fn config(folder: &std::path::Path) -> Config {
    let of = |table: Arc<TableSchema>, source: &str| {
        Arc::new(TableSchema { name: table.name.clone().of(&source.into()), ..(*table).clone() })
    };
    let tables = [of(orders(), "shop"), of(items(), "bank")];
    let lookup = |name: &TableName| tables.iter().find(|table| table.name == *name).cloned();
    let plan = Plan::resolve(&EntityDefinition::from_yaml("order.yaml", ORDER).unwrap(), &lookup).unwrap();
    let sources = ["shop", "bank"].map(|name| Source::new(name, name));
    let mut config = Config::of(folder, vec![Arc::new(plan)], sources.to_vec());
    config.layout = Layout::Shared;
    config
}

/// Publishes events of a source and the record that covers them, as its importer does.
async fn publish(provider: &dyn Provider, source: &str, events: &[ChangeEvent], record: ProgressRecord) {
    let (stream, progress) = (Layout::Shared.stream(source, &orders().name), Layout::progress_stream(source));
    provider.ensure(&stream, 1).await.unwrap();
    provider.ensure(&progress, 1).await.unwrap();
    let encoded = |event: &ChangeEvent| {
        let mut data = Vec::new();
        Encoder::new(source, "db").encode(event, &mut data);
        Record { partition_key: "1".into(), data: data.into() }
    };
    let mut writer = provider.writer().await.unwrap();
    writer.append(&stream, events.iter().map(encoded).collect()).await.unwrap();
    let record = ProgressRecord { source: source.into(), positions: writer.flush().await.unwrap(), ..record };
    let data = serde_json::to_vec(&record).unwrap();
    writer.append(&progress, vec![Record { partition_key: source.into(), data: data.into() }]).await.unwrap();
    writer.flush().await.unwrap();
}

/// What a target holds, by key: versions and documents. It refuses what is older.
#[derive(Clone, Default)]
struct Target {
    held: Arc<Mutex<BTreeMap<String, (Lsn, String)>>>,
    loads: Arc<Mutex<u32>>,
}

impl Target {
    fn named(&self) -> Vec<NamedSink> {
        vec![NamedSink { name: "target".into(), sink: Box::new(self.clone()) }]
    }

    fn holds(&self, key: &str) -> (Lsn, String) {
        self.held.lock().unwrap().get(key).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Sink for Target {
    async fn prepare(&mut self, _: &[EntityInfo]) -> Result<(), sinks::Error> {
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], _: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        let mut held = self.held.lock().unwrap();
        for change in changes {
            let entry = held.entry(change.key.to_string()).or_default();
            if entry.0 <= change.version {
                *entry = (change.version, change.document.as_deref().unwrap_or_default().to_owned());
            }
        }
        Ok(Vec::new())
    }

    async fn end_load(&mut self, _: &str, _: Lsn) -> Result<(), sinks::Error> {
        *self.loads.lock().unwrap() += 1;
        Ok(())
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn vector(bank: u8, shop: u8) -> Vector {
    [("bank".to_owned(), lsn(bank)), ("shop".to_owned(), lsn(shop))].into_iter().collect()
}

/// Whether everything up to there can be told.
fn has_come_to(handle: &Handle, bank: u8, shop: u8) -> bool {
    let outbox = handle.outbox();
    let frontier = outbox.head().borrow().frontier;
    outbox.sources_at(frontier).unwrap() == Some(vector(bank, shop))
}

async fn snapshots(provider: &dyn Provider) {
    for (source, table, rows) in
        [("shop", orders(), [order(1, "NEW"), order(2, "NEW")]), ("bank", items(), [item(1, 1, 100), item(2, 1, 100)])]
    {
        let events = rows.map(|row| read(table.clone(), 1, row));
        publish(provider, source, &events, record(Phase::Snapshot, 1, 1, &[(&table, 2)])).await;
        publish(provider, source, &[], record(Phase::SnapshotComplete { consistent_from: lsn(1) }, 1, 1, &[])).await;
        publish(provider, source, &[], record(Phase::Tail, 1, 2, &[])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_tells_what_its_predecessors_versions_would_hide() {
    let provider: Arc<dyn Provider> = Arc::new(Memory::new());
    snapshots(&*provider).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let target = Target::default();

    // One that works loads the target, and is gone.
    let first = Joiner::open(config(folders[0].path())).unwrap();
    let (handle, shutdown) = (first.handle(), CancellationToken::new());
    let running = tokio::spawn(first.run(provider.clone(), target.named(), shutdown.clone()));
    until("a loaded target", || target.holds("2").0 == lsn(4)).await;
    until("what it has confirmed", || handle.confirmed().unwrap().contains_key("target")).await;
    let Confirmed { sources, form, definitions, .. } = handle.confirmed().unwrap().remove("target").unwrap();
    assert_eq!(sources, vector(2, 2));
    shutdown.cancel();
    running.await.unwrap().unwrap();

    // Another stands by, and sees what comes of the shop before what comes of the bank.
    let second = Joiner::open(config(folders[1].path())).unwrap();
    let (handle, shutdown) = (second.handle(), CancellationToken::new());
    let (turn, turns) = watch::channel(None::<ConfirmedBySink>);
    let running = tokio::spawn(second.run_in_turn(provider.clone(), target.named(), turns, shutdown.clone()));
    until("one that stands by", || has_come_to(&handle, 2, 2)).await;
    let paid = change(orders(), 3, 1, Some(order(1, "NEW")), Some(order(1, "PAID")));
    publish(&*provider, "shop", &[paid], record(Phase::Tail, 2, 3, &[(&orders(), 1)])).await;
    until("the shop's", || has_come_to(&handle, 2, 3)).await;
    let dearer = change(items(), 50, 1, Some(item(2, 1, 100)), Some(item(2, 1, 900)));
    publish(&*provider, "bank", &[dearer], record(Phase::Tail, 2, 50, &[(&items(), 1)])).await;
    until("the bank's", || has_come_to(&handle, 50, 3)).await;

    // The one that worked had gone the other way: it had loaded the target as of what the bank had by then, and the shop had not.
    let as_of = |key: &str, cents: u32| {
        (lsn(52), format!(r#"{{"id":{key},"status":"NEW","items":[{{"line":1,"price":"{cents}.00"}}]}}"#))
    };
    let told = [("1".to_owned(), as_of("1", 1)), ("2".to_owned(), as_of("2", 9))];
    *target.held.lock().unwrap() = told.into_iter().collect();
    let confirmed = Confirmed { frontier: lsn(52), sources: vector(50, 2), form, definitions };
    let loads = *target.loads.lock().unwrap();
    turn.send(Some([("target".to_owned(), confirmed)].into())).unwrap();
    until("what the shop has changed", || target.holds("1").1.contains("PAID")).await;
    assert_eq!(target.holds("1").0, lsn(53), "as of what both had when the turn came");
    let paid = change(orders(), 4, 1, Some(order(2, "NEW")), Some(order(2, "SENT")));
    publish(&*provider, "shop", &[paid], record(Phase::Tail, 3, 4, &[(&orders(), 1)])).await;
    until("what came later", || target.holds("2").0 == lsn(54)).await;
    let (_, second) = target.holds("2");
    assert!(second.contains("SENT") && second.contains("9.00"), "{second}");
    assert_eq!(*target.loads.lock().unwrap(), loads, "nothing was loaded anew");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// A predecessor has told more than it has confirmed; the successor reads at once what it has told one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_successor_tells_what_has_changed_and_changed_back() {
    let provider: Arc<dyn Provider> = Arc::new(Memory::new());
    let rows = [support::encode(&read(orders(), 1, order(1, "NEW")))];
    support::publish(&*provider, &rows, record(Phase::Snapshot, 1, 1, &[(&orders(), 1)])).await;
    let complete = record(Phase::SnapshotComplete { consistent_from: lsn(1) }, 1, 1, &[]);
    support::publish(&*provider, &[], complete).await;
    support::publish(&*provider, &[], record(Phase::Tail, 1, 2, &[])).await;
    let (folders, target) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], Target::default());

    let first = Joiner::open(support::config(folders[0].path())).unwrap();
    let (handle, shutdown) = (first.handle(), CancellationToken::new());
    let running = tokio::spawn(first.run(provider.clone(), target.named(), shutdown.clone()));
    until("what it has confirmed", || handle.confirmed().unwrap().contains_key("target")).await;
    let confirmed = handle.confirmed().unwrap();
    assert_eq!(confirmed["target"].frontier, lsn(2));
    shutdown.cancel();
    running.await.unwrap().unwrap();

    let joiner = Joiner::open(support::config(folders[1].path())).unwrap();
    let (handle, shutdown) = (joiner.handle(), CancellationToken::new());
    let (turn, turns) = watch::channel(None::<ConfirmedBySink>);
    let running = tokio::spawn(joiner.run_in_turn(provider.clone(), target.named(), turns, shutdown.clone()));
    let frontier = || handle.outbox().head().borrow().frontier;
    until("one that stands by", || frontier() == lsn(2)).await;

    // Both records are there before what they speak of is: then both are ready at once.
    let stream = Layout::Shared.stream("p", &orders().name);
    let mut writer = provider.writer().await.unwrap();
    let shard = ShardId(provider.tips(&stream).await.unwrap().keys().next().unwrap().0.clone());
    let tip = provider.tips(&stream).await.unwrap()[&shard].to_u64().unwrap();
    for (at, nth) in [(3, 1), (4, 2)] {
        let mut record = record(Phase::Tail, at - 1, at, &[(&orders(), 1)]);
        record.positions = ShardPositions::from([(stream.clone(), [(shard.clone(), SequenceNumber::from(tip + nth))].into())]);
        let data = serde_json::to_vec(&record).unwrap().into();
        writer.append(&Layout::progress_stream("p"), vec![Record { partition_key: "shop".into(), data }]).await.unwrap();
    }
    let changes = [(3, "NEW", "PAID"), (4, "PAID", "NEW")];
    let changes = changes.map(|(at, from, to)| change(orders(), at, 1, Some(order(1, from)), Some(order(1, to))));
    let record = |event| Record { partition_key: "0".into(), data: support::encode(event).into() };
    writer.append(&stream, changes.iter().map(record).collect()).await.unwrap();
    until("both of them", || frontier() == lsn(4)).await;

    let document = |status: &str| format!(r#"{{"id":1,"status":"{status}","items":[],"total":"0.00"}}"#);
    target.held.lock().unwrap().insert("1".to_owned(), (lsn(3), document("PAID")));
    turn.send(Some(confirmed)).unwrap();
    until("what is there", || target.holds("1") == (lsn(4), document("NEW"))).await;
    assert_eq!(*target.loads.lock().unwrap(), 1, "it was not loaded anew");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
