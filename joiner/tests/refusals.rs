//! What the joiner refuses, and what it says then: directories that are not its own, streams that do not fit together, events that cannot be read.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use joiner::{Engine, Error, JoinerPhase, Page};
use schemas::ErrorClass;
use schemas::change::EntityKey;
use schemas::encoding::{Encoder, Format, Registry, Schemas, Written, avro};
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId};
use streams::{Batch, Layout};
use support::{change, config, encode, item, items, lsn, missing, order, orders, plan, read, record};

fn feed(engine: &mut Engine, first: u64, events: &[Vec<u8>]) {
    let stream = Layout::Shared.stream("p", &orders().name);
    let numbered = events.iter().zip(first..).map(|(data, n)| (SequenceNumber::from(n), data.clone().into()));
    engine.events(&Batch { stream, shard: ShardId("0".into()), records: numbered.collect() }).unwrap();
}

fn tell(engine: &mut Engine, sequence: u64, mut record: ProgressRecord, read: u64) -> Result<bool, Error> {
    let stream = Layout::Shared.stream("p", &orders().name);
    if read > 0 {
        record.positions.entry(stream).or_default().insert(ShardId("0".into()), SequenceNumber::from(read));
    }
    engine.progress(&Layout::progress_stream("p"), &ShardId("0".into()), &SequenceNumber::from(sequence), record)?;
    engine.advance()
}

/// An engine that is live at LSN 5 with one order.
fn live(dir: &std::path::Path) -> Engine {
    let mut engine = Engine::open(&config(dir)).unwrap();
    feed(&mut engine, 1, &[encode(&read(orders(), 5, order(1, "new")))]);
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)]), 1).unwrap();
    assert_eq!(engine.frontier(), lsn(5));
    engine
}

#[test]
fn a_directory_that_is_not_ours_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let error = Engine::open(&config(&foreign)).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }) && error.class() == ErrorClass::Misconfigured, "{error}");
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);

    let state = dir.path().join("state");
    let engine = Engine::open(&config(&state)).unwrap();
    assert!(matches!(Engine::open(&config(&state)).unwrap_err(), Error::Locked { .. }));
    drop(engine);
    let mut other = config(&state);
    other.sources = vec![joiner::Source::new("warehouse", "p")];
    assert!(matches!(Engine::open(&other).unwrap_err(), Error::OtherSource { found, .. } if found == "shop"));
    let mut other = config(&state);
    other.plans = vec![plan("entity: order\ntable: dbo.orders\nwhere: status == 'new'")];
    let error = Engine::open(&other).unwrap_err();
    assert!(matches!(error, Error::OtherDefinitions { .. }) && error.to_string().contains("empty state directory"), "{error}");
    std::fs::write(state.join("identity.json"), "{").unwrap();
    assert!(matches!(Engine::open(&config(&state)).unwrap_err(), Error::Corrupt { .. }));
    let newer = r#"{"tributary_joiner_state": 99, "source": "shop", "definitions": ""}"#;
    std::fs::write(state.join("identity.json"), newer).unwrap();
    assert!(matches!(Engine::open(&config(&state)).unwrap_err(), Error::Format { found: 99, .. }));
}

#[test]
fn a_directory_whose_claim_was_interrupted_is_claimed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let leftover = dir.path().join("identity.json.new");
    std::fs::write(&leftover, "{\"tribu").unwrap();
    drop(live(dir.path()));
    assert!(!leftover.exists());
    assert_eq!(Engine::open(&config(dir.path())).unwrap().frontier(), lsn(5));
}

#[test]
fn a_damaged_database_says_so() {
    let dir = tempfile::tempdir().unwrap();
    drop(live(dir.path()));
    std::fs::write(dir.path().join("db/CURRENT"), "rubbish").unwrap();
    let error = Engine::open(&config(dir.path())).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }) && error.to_string().contains("new snapshot"), "{error}");
}

#[test]
fn changes_that_are_missing_are_reported_and_not_papered_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    let error = tell(&mut engine, 2, record(Phase::Tail, 7, 8, &[]), 0).unwrap_err();
    assert!(
        matches!(&error, Error::Gap { frontier, from, sequence, .. } if *frontier == lsn(5) && *from == lsn(7) && sequence.as_str() == "2"),
        "{error}"
    );
    drop(engine);

    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 2, &[encode(&change(orders(), 6, 1, None, Some(order(2, "new"))))]);
    let error = tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[(&orders(), 2)]), 2).unwrap_err();
    assert_eq!(missing(&error), [("dbo.orders".to_owned(), 2, 1)], "{error}");
    assert_eq!(engine.frontier(), lsn(5));
    drop(engine);

    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    let mut foreign = record(Phase::Tail, 5, 6, &[]);
    foreign.source = "warehouse".into();
    assert!(matches!(tell(&mut engine, 1, foreign, 0).unwrap_err(), Error::StreamOfOtherSource { .. }));
}

#[test]
fn whoever_read_the_outbox_learns_that_it_was_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    feed(&mut engine, 2, &[encode(&change(orders(), 6, 1, None, Some(order(2, "new"))))]);
    assert!(tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[(&orders(), 1)]), 2).unwrap());
    let outbox = engine.handle().outbox();
    let before = *outbox.head().borrow();
    assert!(matches!(outbox.read_after(1, 9).unwrap(), Page::Changes { changes, .. } if changes.is_empty()));
    feed(&mut engine, 3, &[encode(&read(orders(), 7, order(1, "new")))]);
    tell(&mut engine, 3, record(Phase::SnapshotComplete { consistent_from: lsn(7) }, 7, 7, &[(&orders(), 1)]), 3).unwrap();
    let after = *outbox.head().borrow();
    assert!(matches!(outbox.read_after(1, 9).unwrap(), Page::Trimmed { oldest: 3, .. }), "one that had everything");
    assert!(matches!(outbox.read_after(after.sequence, 9).unwrap(), Page::Changes { changes, .. } if changes.is_empty()));
    assert_ne!(before.incarnation, after.incarnation);
    drop((outbox, engine));
    let engine = Engine::open(&config(dir.path())).unwrap();
    assert_eq!(engine.handle().outbox().head().borrow().incarnation, after.incarnation, "a restart begins nothing anew");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = live(elsewhere.path());
    assert_ne!(other.handle().outbox().head().borrow().incarnation, before.incarnation, "another state, the same load");
}

#[test]
fn events_of_no_known_table_are_not_taken_for_missing_ones() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 1, &[encode(&read(orders(), 5, order(1, "new"))), b"not JSON".to_vec()]);
    // Read before the restart, counted by a record that is read after it.
    drop(engine);
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 2)]), 2).unwrap();
    // Read ahead of the record before the one that counts it.
    feed(&mut engine, 3, &[b"nor this".to_vec()]);
    assert!(tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[]), 2).unwrap());
    assert!(tell(&mut engine, 3, record(Phase::Tail, 6, 7, &[(&orders(), 1)]), 3).unwrap());
    // A newer snapshot counts its own.
    feed(&mut engine, 4, &[b"a row".to_vec(), encode(&read(orders(), 9, order(1, "new")))]);
    tell(&mut engine, 4, record(Phase::Snapshot, 9, 9, &[(&orders(), 2)]), 5).unwrap();
    feed(&mut engine, 6, &[encode(&read(orders(), 9, order(2, "new")))]);
    let error = tell(&mut engine, 5, record(Phase::Snapshot, 9, 9, &[(&orders(), 2)]), 6).unwrap_err();
    assert_eq!(missing(&error), [("dbo.orders".to_owned(), 4, 2)], "those of the state before do not count: {error}");
}

#[test]
fn a_first_snapshot_that_lacks_rows_is_told_and_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 1, &[encode(&read(orders(), 5, order(1, "new")))]);
    tell(&mut engine, 1, record(Phase::Snapshot, 5, 5, &[(&orders(), 2)]), 1).unwrap();
    let status = engine.handle().status();
    assert_eq!((status.miscounts[0].published, status.miscounts[0].received), (2, 1));
    assert_eq!(status.phase, JoinerPhase::Waiting);
    assert!(status.warning.unwrap().contains("take a new one with the importer"));
    // What is left of it is not taken for another one, also after a restart; a newer one is.
    drop(engine);
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 2, &[encode(&read(orders(), 5, order(2, "new")))]);
    tell(&mut engine, 2, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)]), 2).unwrap();
    assert!(!tell(&mut engine, 3, record(Phase::Tail, 5, 6, &[(&orders(), 3)]), 2).unwrap());
    assert_eq!(engine.handle().status().phase, JoinerPhase::Waiting);
    feed(&mut engine, 3, &[encode(&read(orders(), 10, order(2, "new")))]);
    tell(&mut engine, 4, record(Phase::SnapshotComplete { consistent_from: lsn(10) }, 10, 10, &[(&orders(), 1)]), 3).unwrap();
    assert_eq!(engine.handle().status().frontier, Some(lsn(10)));
}

#[test]
fn records_that_wait_make_one_step_up_to_its_bound_in_memory_and_on_the_disk() {
    let (one, two) = (vec![lsn(7)], vec![lsn(6), lsn(7)]);
    for (buffer_bytes, step_changes, versions) in [(1 << 20, 2, &one), (1 << 20, 1, &two), (1, 2, &one), (1, 1, &two)] {
        let dir = tempfile::tempdir().unwrap();
        drop(live(dir.path()));
        let mut config = config(dir.path());
        (config.buffer_bytes, config.step_changes) = (buffer_bytes, step_changes);
        let mut engine = Engine::open(&config).unwrap();
        let update = |at, from: &str, to: &str| encode(&change(orders(), at, 1, Some(order(1, from)), Some(order(1, to))));
        feed(&mut engine, 2, &[update(6, "new", "paid"), update(7, "paid", "sent")]);
        let stream = Layout::progress_stream("p");
        for at in [6, 7] {
            let record = record(Phase::Tail, at - 1, at, &[(&orders(), 1)]);
            engine.progress(&stream, &ShardId("0".into()), &SequenceNumber::from(u64::from(at)), record).unwrap();
        }
        assert!(engine.advance().unwrap());
        let Page::Changes { changes, .. } = engine.handle().outbox().read_after(0, 9).unwrap() else { panic!("trimmed") };
        assert_eq!(changes.iter().map(|(_, change)| change.version).collect::<Vec<_>>(), *versions);
    }
}

#[test]
fn a_tail_without_its_snapshot_is_passed_over_until_a_newer_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    let update = change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")));
    feed(&mut engine, 1, &[encode(&update)]);
    assert!(!tell(&mut engine, 1, record(Phase::Tail, 5, 6, &[(&orders(), 1)]), 1).unwrap());
    let status = engine.handle().status();
    assert_eq!(status.phase, JoinerPhase::Waiting);
    assert!(status.warning.unwrap().contains("take a new one with the importer"));
    // The snapshot behind it, and its tail.
    feed(&mut engine, 2, &[encode(&read(orders(), 8, order(1, "sent")))]);
    tell(&mut engine, 2, record(Phase::SnapshotComplete { consistent_from: lsn(8) }, 8, 8, &[(&orders(), 1)]), 2).unwrap();
    feed(&mut engine, 3, &[encode(&change(orders(), 9, 1, None, Some(order(2, "new"))))]);
    assert!(tell(&mut engine, 3, record(Phase::Tail, 8, 9, &[(&orders(), 1)]), 3).unwrap());
    let status = engine.handle().status();
    assert_eq!((status.phase, status.frontier, status.warning), (JoinerPhase::Live, Some(lsn(9)), None));
    let document = engine.handle().get("order", &EntityKey::from_text("1")).unwrap().unwrap().1;
    assert_eq!(document, r#"{"id":1,"status":"sent","items":[],"total":"0.00"}"#);
}

#[test]
fn a_replaced_importer_is_not_listened_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    let mut newer = record(Phase::Tail, 5, 6, &[]);
    newer.epoch = 3;
    assert!(tell(&mut engine, 2, newer, 0).unwrap());
    assert!(!tell(&mut engine, 3, record(Phase::Tail, 6, 7, &[]), 0).unwrap());
    assert_eq!(engine.frontier(), lsn(6));
}

#[test]
fn an_event_that_cannot_be_read_is_set_aside_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    let text = |event: &schemas::event::ChangeEvent| String::from_utf8(encode(event)).unwrap();
    let good = text(&change(items(), 6, 1, None, Some(item(1, 1, 100))));
    let events = [
        good.clone(),
        text(&change(items(), 6, 2, None, Some(item(1, 2, 100)))).replace("\"line\":2", "\"line\":\"two\""),
        text(&change(items(), 6, 3, None, Some(item(1, 3, 100)))).replace("\"order_id\":1,", ""),
        text(&change(orders(), 6, 4, Some(order(1, "new")), Some(order(1, "paid")))).replace("\"before\":{", "\"was\":{"),
        text(&change(orders(), 6, 5, None, Some(order(9, "x")))).replace("\"status\":\"x\"", "\"status\":x"),
        "not JSON".to_owned(),
    ];
    let events: Vec<Vec<u8>> = events.into_iter().map(String::into_bytes).collect();
    feed(&mut engine, 2, &events);
    let counts = [(&items(), 4), (&orders(), 2)];
    assert!(tell(&mut engine, 2, record(Phase::Tail, 5, 6, &counts), 7).unwrap());
    let handle = engine.handle();
    let document = handle.get("order", &EntityKey::from_text("1")).unwrap().unwrap().1;
    assert_eq!(document, r#"{"id":1,"status":"new","items":[{"line":1,"price":"1.00"}],"total":"1.00"}"#);
    let status = handle.status();
    assert_eq!(status.dead_letters, 5);
    assert_eq!((status.tables["dbo.items"].applied, status.tables["dbo.items"].dead_lettered), (1, 2));
    // Reading them again, as after a crash, does not count them again.
    feed(&mut engine, 2, &events);
    engine.advance().unwrap();
    assert_eq!(engine.handle().status().dead_letters, 5);
}

/// What is under a schema that nobody has is neither applied nor set aside: it is read again once the schema is there.
#[test]
fn a_record_under_an_unknown_schema_stops_the_joiner_and_is_read_once_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    drop(live(dir.path()));
    let schema = Arc::new(avro::Schema::new(&orders(), 1));
    let mut data = Vec::new();
    let mut format = Format { schema: Written::Avro(schema.clone()), compressor: None };
    let update = change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")));
    Encoder::new("shop", "db").encode(&mut format, &update, &mut data);
    assert!(data.starts_with(&[0xc3, 0x01]));
    let stream = Layout::Shared.stream("p", &orders().name);
    let records = vec![(SequenceNumber::from(2), data.clone().into())];
    let batch = Batch { stream, shard: ShardId("0".into()), records };
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    let error = engine.events(&batch).unwrap_err();
    assert!(matches!(error, Error::UnknownSchema(_)) && error.class() == ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("record 2") && error.to_string().contains(".avsc"), "{error}");
    drop(engine);

    let mut registry = Registry::default();
    registry.add_avro("dbo.orders.avsc", schema).unwrap();
    let mut knowing = config(dir.path());
    knowing.sources[0].schemas = Arc::new(Schemas::fixed(registry));
    let mut engine = Engine::open(&knowing).unwrap();
    feed(&mut engine, 2, &[data]);
    assert!(tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[(&orders(), 1)]), 2).unwrap());
    assert_eq!(engine.frontier(), lsn(6));
}
