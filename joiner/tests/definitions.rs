//! Definitions that change while the state stays: what is served in place, what sinks and subscribers are told, what is refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use joiner::definitions::{Change, Kind, Way, compare};
use joiner::{Config, Engine, Error, Handle, Joiner, Lacking, NamedSink, Page, SinkState, checkpoint};
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::progress::{Phase, SequenceNumber, ShardId};
use schemas::{KeyRange, Lsn};
use sinks::{Rejected, Sink};
use streams::memory::Memory;
use streams::{Batch, Layout};
use support::{ORDER, change, config, encode, item, items, lsn, order, orders, plan, publish, read, record};
use tokio_util::sync::CancellationToken;

const ITEM: &str = "entity: item\ntable: dbo.items\nfields: [line, price]";

fn config_of(dir: &Path, definitions: &[&str]) -> Config {
    Config { plans: definitions.iter().map(|text| plan(text)).collect(), ..config(dir) }
}

/// An engine that is live at LSN 5 with an order and its item.
fn live(config: &Config) -> Engine {
    let mut engine = Engine::open(config).unwrap();
    let events = [encode(&read(orders(), 5, order(1, "new"))), encode(&read(items(), 5, item(1, 1, 1050)))];
    feed(&mut engine, 1, &events);
    let counts = [(&orders(), 1), (&items(), 1)];
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts), 2);
    engine
}

fn feed(engine: &mut Engine, first: u64, events: &[Vec<u8>]) {
    let stream = Layout::Shared.stream("p", &orders().name);
    let numbered = events.iter().zip(first..).map(|(data, n)| (SequenceNumber::from(n), data.clone().into()));
    engine.events(&Batch { stream, shard: ShardId("0".into()), records: numbered.collect() }).unwrap();
}

fn tell(engine: &mut Engine, sequence: u64, mut record: schemas::progress::ProgressRecord, read: u64) {
    let stream = Layout::Shared.stream("p", &orders().name);
    record.positions.entry(stream).or_default().insert(ShardId("0".into()), SequenceNumber::from(read));
    engine.progress(&Layout::progress_stream("p"), &ShardId("0".into()), &SequenceNumber::from(sequence), record).unwrap();
    assert!(engine.advance().unwrap());
}

fn get(handle: &Handle, entity: &str, key: &str) -> Option<String> {
    handle.get(entity, &EntityKey::from_text(key)).unwrap().map(|(_, document)| document)
}

#[test]
fn what_the_rows_hold_is_served_in_place() {
    let dir = tempfile::tempdir().unwrap();
    drop(live(&config_of(dir.path(), &[ORDER, ITEM])));
    for (definition, expected) in [
        // Other fields, other names, values over columns that are kept.
        (
            "entity: order\ntable: dbo.orders\nfields: [{number: id}]\nmany: {items: {table: dbo.items, by: [order_id], fields: [price]}}\naggregates: {n: {count: items}}",
            r#"{"number":1,"items":[{"price":"10.50"}],"n":1}"#,
        ),
        ("entity: order\ntable: dbo.orders\nfields: [id]\ncomputed: {shout: status.upperAscii()}", r#"{"id":1,"shout":"NEW"}"#),
    ] {
        let config = config_of(dir.path(), &[definition, ITEM]);
        let difference = compare(&config).unwrap().unwrap();
        assert!(matches!(difference.way, Way::InPlace { .. }), "{difference:?}");
        let engine = Engine::open(&config).unwrap();
        // Looked at beside the process that has it open: it serves them.
        assert_eq!(compare(&config).unwrap().unwrap().way, Way::Nothing);
        assert_eq!(get(&engine.handle(), "order", "1").as_deref(), Some(expected));
        assert_eq!(get(&engine.handle(), "item", "1,1").as_deref(), Some(r#"{"line":1,"price":"10.50"}"#));
    }
}

#[test]
fn a_state_of_a_part_of_the_entities_is_served_in_place_while_it_leaves_out_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let part = |definitions: &[&str]| Config { range: KeyRange::of(0, 2).unwrap(), ..config_of(dir.path(), definitions) };
    let mut engine = Engine::open(&part(&[ORDER])).unwrap();
    let rows = (1..=20).flat_map(|id| [read(orders(), 5, order(id, "new")), read(items(), 5, item(id, 1, 1050))]);
    feed(&mut engine, 1, &rows.map(|row| encode(&row)).collect::<Vec<_>>());
    let counts = [(&orders(), 20), (&items(), 20)];
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts), 40);
    drop(engine);
    let other = "entity: order\ntable: dbo.orders\nfields: [id]\nmany: {items: {table: dbo.items, by: [order_id], fields: [line]}}\ncomputed: {shout: status.upperAscii()}";
    assert!(matches!(compare(&part(&[other])).unwrap().unwrap().way, Way::InPlace { .. }));
    let mut engine = Engine::open(&part(&[other])).unwrap();
    let events: Vec<_> = (1..=20).map(|id| encode(&change(items(), 6, id, None, Some(item(i64::from(id), 2, 1))))).collect();
    feed(&mut engine, 41, &events);
    tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[(&items(), 20)]), 60);
    let held: Vec<Option<String>> = (1..=20).map(|id: u8| get(&engine.handle(), "order", &id.to_string())).collect();
    let mine = held.iter().flatten().count();
    assert!((1..20).contains(&mine), "{mine} of 20 orders");
    for (id, document) in (1..).zip(held).filter_map(|(id, document): (u8, _)| Some((id, document?))) {
        assert_eq!(document, format!(r#"{{"id":{id},"items":[{{"line":1}},{{"line":2}}],"shout":"NEW"}}"#));
    }
    drop(engine);
    // Another entity of the same rows has a share of its own: rows of it were left out.
    let copy = "entity: copy\ntable: dbo.orders\nfields: [id]";
    let refused = |error| matches!(error, Error::OtherDefinitions { lacking, .. } if lacking == [Lacking::Others]);
    assert_eq!(compare(&part(&[other, copy])).unwrap().unwrap().way, Way::Rebuild { lacking: vec![Lacking::Others] });
    assert!(refused(Engine::open(&part(&[other, copy])).unwrap_err()));
    assert!(refused(Engine::open(&part(&[copy])).unwrap_err()));
    Engine::open(&part(&[other])).unwrap();
}

#[test]
fn a_difference_is_told_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(compare(&config(dir.path())).unwrap(), None);
    drop(live(&config_of(dir.path(), &[ORDER])));
    let with_item = "entity: order\ntable: dbo.orders\nfields: [id]\nmany: {items: {table: dbo.items, by: [order_id], fields: [line, price]}}";
    let difference = compare(&config_of(dir.path(), &[with_item, ITEM])).unwrap().unwrap();
    let changed = Change { entity: "order".into(), kind: Kind::Changed(vec!["aggregates".into(), "fields".into()]) };
    let added = Change { entity: "item".into(), kind: Kind::Added };
    assert_eq!(difference.entities, [changed, added]);
    let by = "order_id, line".to_owned();
    let Way::Rebuild { lacking } = &difference.way else { panic!("{difference:?}") };
    // They stand by their order alone, which is a part of that key.
    assert_eq!(*lacking, [Lacking::Index { table: items().name.clone(), by }]);
    let error = Engine::open(&config_of(dir.path(), &[with_item, ITEM])).unwrap_err();
    assert!(
        matches!(&error, Error::OtherDefinitions { .. }) && error.to_string().contains("cannot be looked up by order_id, line"),
        "{error}"
    );
    // It serves what it did.
    let engine = Engine::open(&config_of(dir.path(), &[ORDER])).unwrap();
    assert!(get(&engine.handle(), "order", "1").unwrap().contains("\"total\":\"10.50\""));
    drop(engine);
    let removed =
        compare(&config_of(dir.path(), &["entity: other\ntable: dbo.orders\nwhere: status == \"new\""])).unwrap().unwrap();
    assert_eq!(removed.entities[0], Change { entity: "order".into(), kind: Kind::Removed });
    let text = "status == \"new\"".to_owned();
    assert_eq!(removed.way, Way::Rebuild { lacking: vec![Lacking::Expression { table: orders().name.clone(), text }] });
}

#[test]
fn changes_go_on_after_the_definitions_have_changed() {
    let dir = tempfile::tempdir().unwrap();
    drop(live(&config_of(dir.path(), &[ITEM, ORDER])));
    // The entity that goes stood before the other: numbers in the state must not shift.
    let mut engine = Engine::open(&config_of(dir.path(), &[ORDER])).unwrap();
    feed(&mut engine, 3, &[encode(&change(items(), 6, 1, None, Some(item(1, 2, 100))))]);
    tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[(&items(), 1)]), 3);
    let outbox = engine.handle().outbox();
    let Page::Changes { changes, .. } = outbox.read_after(0, 9).unwrap() else { panic!("trimmed") };
    let told: Vec<_> = changes.iter().map(|(_, change)| (&*change.entity, change.document.as_deref().unwrap())).collect();
    assert_eq!(
        told,
        [("order", r#"{"id":1,"status":"new","items":[{"line":1,"price":"10.50"},{"line":2,"price":"1.00"}],"total":"11.50"}"#)]
    );
    let before = *outbox.head().borrow();
    drop((outbox, engine));
    // A subscriber of before is told that its outbox is no more; what is in it is of other definitions.
    let engine = Engine::open(&config_of(dir.path(), &["entity: order\ntable: dbo.orders\nfields: [id]"])).unwrap();
    let outbox = engine.handle().outbox();
    let now = *outbox.head().borrow();
    assert_ne!(now.incarnation, before.incarnation);
    assert!(matches!(outbox.read_after(0, 9).unwrap(), Page::Trimmed { oldest: 2, .. }));
    assert!(matches!(outbox.read_after(1, 9).unwrap(), Page::Changes { changes, .. } if changes.is_empty()));
    drop((outbox, engine));
    let engine = Engine::open(&config_of(dir.path(), &["entity: order\ntable: dbo.orders\nfields: [id]"])).unwrap();
    assert_eq!(engine.handle().outbox().head().borrow().incarnation, now.incarnation, "a restart changes nothing");
}

#[test]
fn a_checkpoint_is_restored_under_definitions_that_it_can_serve() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let engine = live(&config_of(&state, &[ORDER]));
    let facts = engine.handle().checkpoint(&dir.path().join("made")).unwrap();
    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).unwrap();
    std::fs::rename(dir.path().join("made"), restored.join(checkpoint::DATABASE)).unwrap();
    checkpoint::seal(&restored, &facts).unwrap();
    let other = config_of(&restored, &["entity: order\ntable: dbo.orders\nfields: [id]"]);
    checkpoint::check(&facts, &other, Path::new("here")).unwrap();
    let refused = checkpoint::check(&facts, &config_of(&restored, &[ITEM]), Path::new("here")).unwrap_err();
    assert!(matches!(refused, Error::OtherDefinitions { .. }), "{refused}");
    let mut engine = Engine::open(&other).unwrap();
    assert_eq!(engine.awaits().count(), 1, "what was published meanwhile is read first");
    engine.await_published(Vec::new());
    engine.advance().unwrap();
    assert_eq!(get(&engine.handle(), "order", "1").as_deref(), Some(r#"{"id":1}"#));
}

/// What a sink has been told, by entity and key, and how: entities that were loaded, in order.
#[derive(Default)]
struct Held {
    documents: BTreeMap<(String, String), (Lsn, Option<String>)>,
    loaded: Vec<String>,
    frontier: Option<Lsn>,
    /// What it says that it holds as others have defined it, until it is loaded.
    lacking: Vec<String>,
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Held>>);

#[async_trait]
impl Sink for Recorder {
    async fn prepare(&mut self, _: &[EntityInfo]) -> Result<(), sinks::Error> {
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        let mut held = self.0.lock().unwrap();
        for change in changes {
            let place = (change.entity.to_string(), change.key.to_string());
            let entry = held.documents.entry(place).or_insert((Lsn::ZERO, None));
            if change.version >= entry.0 {
                *entry = (change.version, change.document.as_deref().map(str::to_owned));
            }
        }
        assert!(frontier.is_none() || frontier >= held.frontier, "a frontier that goes back");
        held.frontier = frontier.or(held.frontier);
        Ok(Vec::new())
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), sinks::Error> {
        let mut held = self.0.lock().unwrap();
        held.loaded.push(entity.to_owned());
        held.lacking.retain(|lacks| lacks != entity);
        held.documents.retain(|(of, _), (held, _)| of != entity || *held >= version);
        Ok(())
    }

    async fn held(&mut self) -> Result<sinks::Held, sinks::Error> {
        Ok(self.0.lock().unwrap().frontier.into())
    }

    async fn lacking(&mut self) -> Result<Vec<String>, sinks::Error> {
        Ok(self.0.lock().unwrap().lacking.clone())
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, sinks::Error> {
        let held = self.0.lock().unwrap();
        let is_older = |of: &str, key: &str, (held, document): &(Lsn, Option<String>)| {
            of == entity && after.is_none_or(|after| key > after.as_str()) && *held < version && document.is_some()
        };
        let older = held.documents.iter().filter(|((of, key), held)| is_older(of, key, held));
        Ok(older.map(|((_, key), _)| EntityKey::from_text(key)).take(limit).collect())
    }
}

impl Recorder {
    fn document(&self, entity: &str, key: &str) -> Option<String> {
        self.0.lock().unwrap().documents.get(&(entity.to_owned(), key.to_owned())).and_then(|(_, document)| document.clone())
    }
}

/// Runs a joiner until a condition holds.
async fn run_until(config: Config, provider: &Arc<Memory>, sink: Option<&Recorder>, done: impl Fn(&Handle) -> bool) {
    let joiner = Joiner::open(config).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let sinks = sink.map(|sink| NamedSink { name: "target".into(), sink: Box::new(sink.clone()) }).into_iter().collect();
    let running = tokio::spawn(joiner.run(provider.clone(), sinks, stop.clone()));
    let wait = async {
        while !done(&handle) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it does not come to that");
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sink_is_loaded_anew_of_what_has_changed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let provider = Arc::new(Memory::default());
    let events = [encode(&read(orders(), 5, order(1, "new"))), encode(&read(items(), 5, item(1, 1, 1050)))];
    let counts = [(&orders(), 1), (&items(), 1)];
    publish(&*provider, &events, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts)).await;
    let sink = Recorder::default();
    // The events are of 1970, and without a sink nothing else keeps the outbox from being trimmed.
    let outbox_age = Duration::from_secs(100 * 365 * 86_400);
    let config = |order: &str| Config { outbox_age, ..config_of(dir.path(), &[order, ITEM]) };
    // What it has confirmed is in its cursor.
    let follows = |handle: &Handle| handle.status().sinks.iter().any(|sink| sink.state == SinkState::Following);
    run_until(config(ORDER), &provider, Some(&sink), follows).await;
    assert_eq!(sink.0.lock().unwrap().loaded, ["order", "item"]);
    // While the sink is away, both entities change.
    let touched = [
        encode(&change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")))),
        encode(&change(items(), 6, 2, Some(item(1, 1, 1050)), Some(item(1, 1, 2000)))),
    ];
    publish(&*provider, &touched, record(Phase::Tail, 5, 6, &counts)).await;
    run_until(config(ORDER), &provider, None, |handle| handle.status().frontier == Some(lsn(6))).await;
    // Then the order's definition does. The item is told what it missed; the order only as it is now.
    let narrow = "entity: order\ntable: dbo.orders\nfields: [status]";
    run_until(config(narrow), &provider, Some(&sink), |_| sink.0.lock().unwrap().frontier == Some(lsn(6))).await;
    assert_eq!(sink.0.lock().unwrap().loaded, ["order", "item", "order"]);
    assert_eq!(sink.document("order", "1").as_deref(), Some(r#"{"status":"paid"}"#));
    assert_eq!(sink.document("item", "1,1").as_deref(), Some(r#"{"line":1,"price":"20.00"}"#));
    // Nothing more happens when it is started again.
    run_until(config(narrow), &provider, Some(&sink), follows).await;
    assert_eq!(sink.0.lock().unwrap().loaded.len(), 3);
}

/// A load removes what is older. What other definitions leave out stands there as of the very version of the load when nothing has been committed since.
#[tokio::test]
async fn what_other_definitions_leave_out_goes_though_it_is_not_older_than_the_load() {
    const ANY: &str = "entity: order\ntable: dbo.orders\nfields: [id, status]\nmany:\n  lines: {table: dbo.items, by: [order_id], fields: [line]}";
    let with_lines = format!("{ANY}\n").replace("fields: [line]", "fields: [line], require: true");
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let provider = Arc::new(Memory::default());
    let orders_read = [order(1, "new"), order(2, "paid")].map(|row| encode(&read(orders(), 5, row)));
    let events = [&orders_read[..], &[encode(&read(items(), 5, item(1, 1, 1050)))]].concat();
    let counts = [(&orders(), 2), (&items(), 1)];
    publish(&*provider, &events, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts)).await;
    let config = |dir: &tempfile::TempDir, order: &str| config_of(dir.path(), &[order, ITEM]);
    let [caught_up, cut_short, rebuilt, of_another] = [(); 4].map(|()| Recorder::default());
    for sink in [&caught_up, &cut_short, &rebuilt, &of_another] {
        run_until(config(&dirs[0], ANY), &provider, Some(sink), |_| sink.0.lock().unwrap().frontier == Some(lsn(5))).await;
        assert!(sink.document("order", "1").is_some() && sink.document("order", "2").is_some());
        let status = |handle: &Handle| handle.status().sinks.iter().any(|sink| sink.state == SinkState::Following);
        run_until(config(&dirs[0], ANY), &provider, Some(sink), status).await;
    }
    // As a load that was killed leaves it: documents, and no frontier.
    cut_short.0.lock().unwrap().frontier = None;
    // And a state that knows nothing of the one whose load it was finds it.
    {
        let mut held = of_another.0.lock().unwrap();
        (held.frontier, held.lacking) = (None, vec!["order".to_owned()]);
    }
    for (sink, dir) in [(&rebuilt, &dirs[1]), (&caught_up, &dirs[0]), (&cut_short, &dirs[0]), (&of_another, &dirs[2])] {
        let loads = sink.0.lock().unwrap().loaded.len();
        let loaded = |_: &Handle| {
            let held = sink.0.lock().unwrap();
            held.loaded.len() > loads
                && held.frontier == Some(lsn(5))
                && held.documents.values().filter(|(_, told)| told.is_none()).count() == 1
        };
        run_until(config(dir, &with_lines), &provider, Some(sink), loaded).await;
        assert_eq!((sink.document("order", "1").is_some(), sink.document("order", "2")), (true, None));
    }
}
