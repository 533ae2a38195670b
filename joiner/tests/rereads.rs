//! Tables that are read again beside the tail: what is held back, what vanishes, what comes again, what is missing.

#![allow(clippy::unwrap_used)]

mod support;

use joiner::{Engine, Error, Page};
use schemas::Lsn;
use schemas::change::EntityKey;
use schemas::event::{ChangeEvent, Op};
use schemas::progress::{Phase, ProgressRecord, Reread, SequenceNumber, ShardId};
use streams::{Batch, Layout};
use support::{change, config, encode, lsn, missing, order, orders, read, record};

fn feed(engine: &mut Engine, first: u64, events: &[ChangeEvent]) {
    let stream = Layout::Shared.stream("p", &orders().name);
    let numbered = events.iter().zip(first..).map(|(event, n)| (SequenceNumber::from(n), encode(event).into()));
    engine.events(&Batch { stream, shard: ShardId("0".into()), records: numbered.collect() }).unwrap();
}

fn tell(engine: &mut Engine, sequence: u64, mut record: ProgressRecord, read: u64) -> Result<bool, Error> {
    let stream = Layout::Shared.stream("p", &orders().name);
    record.positions.entry(stream).or_default().insert(ShardId("0".into()), SequenceNumber::from(read));
    engine.progress(&Layout::progress_stream("p"), &ShardId("0".into()), &SequenceNumber::from(sequence), record)?;
    engine.advance()
}

fn again(at: u8, id: i64, status: &str) -> ChangeEvent {
    ChangeEvent { op: Op::Reread, ..read(orders(), at, order(id, status)) }
}

/// A tail record that speaks of a reread of orders, with so many rows of it.
fn reread(from: u8, to: u8, changes: u64, consistent_from: Option<u8>, finished: bool, rows: u64) -> ProgressRecord {
    let mut record = record(Phase::Tail, from, to, &[(&orders(), changes)]);
    record.counts.retain(|_, count| *count > 0);
    let told =
        Reread { generation: 1, reading: 0, consistent_from: consistent_from.map(lsn), finished, whole: true, floor: Lsn::ZERO };
    record.rereads.insert(orders().name.clone(), told);
    if rows > 0 {
        record.reread_counts.insert(orders().name.clone(), rows);
    }
    record
}

/// An engine that is live at LSN 5 with the orders 1 and 2.
fn live(dir: &std::path::Path) -> Engine {
    let mut engine = Engine::open(&config(dir)).unwrap();
    feed(&mut engine, 1, &[read(orders(), 5, order(1, "new")), read(orders(), 5, order(2, "new"))]);
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 2)]), 2).unwrap();
    engine
}

fn status(engine: &Engine, id: &str) -> Option<String> {
    let (_, text) = engine.handle().get("order", &EntityKey::from_parts([id])).unwrap()?;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    Some(document["status"].as_str().unwrap().to_owned())
}

/// What the outbox has told after a number: keys, and whether each is there.
fn told(engine: &Engine, after: u64) -> Vec<(String, bool)> {
    let Page::Changes { changes, .. } = engine.handle().outbox().read_after(after, usize::MAX).unwrap() else {
        panic!("trimmed")
    };
    changes.into_iter().map(|(_, change)| (change.key.to_string(), change.document.is_some())).collect()
}

#[test]
fn nothing_is_seen_until_the_table_is_consistent_and_what_vanished_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    // The changes of (5, 8] are lost: order 1 was paid, order 2 was deleted, order 3 is new.
    tell(&mut engine, 2, reread(5, 8, 0, None, false, 0), 2).unwrap();
    let head = *engine.handle().outbox().head().borrow();
    assert_eq!((engine.frontier(), head.frontier, head.live), (lsn(8), lsn(5), false));
    feed(&mut engine, 3, &[again(8, 1, "paid"), again(8, 3, "new")]);
    tell(&mut engine, 3, reread(8, 8, 0, Some(9), true, 2), 4).unwrap();
    assert_eq!(told(&engine, head.sequence), [], "told before the tail has passed what was read");
    assert!(engine.handle().status().warning.unwrap().contains("dbo.orders"));

    let engine = {
        // Also after a restart in the middle of it.
        drop(engine);
        let mut engine = Engine::open(&config(dir.path())).unwrap();
        feed(&mut engine, 5, &[change(orders(), 9, 1, Some(order(3, "new")), Some(order(3, "sent")))]);
        tell(&mut engine, 4, reread(8, 9, 1, Some(9), true, 0), 5).unwrap();
        engine
    };
    let mut changes = told(&engine, head.sequence);
    changes.sort();
    assert_eq!(changes, [("1".to_owned(), true), ("2".to_owned(), false), ("3".to_owned(), true)]);
    assert_eq!(
        (status(&engine, "1").as_deref(), status(&engine, "2"), status(&engine, "3").as_deref()),
        (Some("paid"), None, Some("sent"))
    );
    assert_eq!(engine.handle().outbox().head().borrow().frontier, lsn(9));
    assert_eq!(engine.handle().status().warning, None);
}

#[test]
fn a_row_that_comes_again_after_a_restart_does_not_replace_what_was_applied_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    let (paid, sent) = (order(1, "paid"), order(1, "sent"));
    // One batch: the rows, and changes of which the last is not covered yet, so that the batch is read again.
    let batch = [
        again(5, 1, "new"),
        again(5, 2, "new"),
        change(orders(), 6, 1, Some(order(1, "new")), Some(paid.clone())),
        change(orders(), 9, 1, Some(paid), Some(sent)),
    ];
    feed(&mut engine, 3, &batch);
    tell(&mut engine, 2, reread(5, 5, 0, Some(5), false, 2), 4).unwrap();
    tell(&mut engine, 3, reread(5, 6, 1, Some(5), false, 0), 5).unwrap();
    assert_eq!(status(&engine, "1").as_deref(), Some("paid"));
    drop(engine);
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 3, &batch);
    tell(&mut engine, 4, reread(6, 7, 0, Some(5), true, 0), 5).unwrap();
    assert_eq!(status(&engine, "1").as_deref(), Some("paid"), "an older row came back");
    assert_eq!(status(&engine, "2").as_deref(), Some("new"));
}

#[test]
fn rows_that_are_missing_and_rereads_that_are_abandoned_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(&dir.path().join("a"));
    feed(&mut engine, 3, &[again(5, 1, "new")]);
    let error = tell(&mut engine, 2, reread(5, 5, 0, Some(6), true, 2), 3).unwrap_err();
    assert_eq!(missing(&error), [("dbo.orders".to_owned(), 2, 1)], "{error}");

    let mut engine = live(&dir.path().join("b"));
    feed(&mut engine, 3, &[again(5, 1, "new")]);
    tell(&mut engine, 2, reread(5, 5, 0, None, false, 1), 3).unwrap();
    let error = tell(&mut engine, 3, record(Phase::Tail, 5, 6, &[]), 3).unwrap_err();
    assert!(matches!(&error, Error::RereadAbandoned { table } if *table == orders().name), "{error}");
}

#[test]
fn a_record_that_stands_twice_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    feed(&mut engine, 3, &[again(5, 1, "paid"), again(5, 2, "paid")]);
    let first = reread(5, 5, 0, None, false, 1);
    tell(&mut engine, 2, first.clone(), 3).unwrap();
    tell(&mut engine, 3, first.clone(), 3).unwrap();
    drop(engine);
    // After a restart it is known as well.
    let mut engine = Engine::open(&config(dir.path())).unwrap();
    feed(&mut engine, 4, &[again(5, 2, "paid")]);
    tell(&mut engine, 4, first, 3).unwrap();
    tell(&mut engine, 5, reread(5, 5, 0, Some(6), true, 1), 4).unwrap();
    tell(&mut engine, 6, reread(5, 5, 0, Some(6), true, 1), 4).unwrap();
    tell(&mut engine, 7, reread(5, 6, 0, Some(6), true, 0), 4).unwrap();
    tell(&mut engine, 8, record(Phase::Tail, 6, 7, &[]), 4).unwrap();
    assert_eq!((status(&engine, "1").as_deref(), status(&engine, "2").as_deref()), (Some("paid"), Some("paid")));
    assert_eq!(engine.handle().outbox().head().borrow().frontier, lsn(7));
}

#[test]
fn rows_of_a_reader_that_was_replaced_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    let by = |reading: i32, row: ChangeEvent| ChangeEvent {
        position: schemas::Position { command_id: reading, ..row.position },
        ..row
    };
    let record_of = |reading: i32, mut record: ProgressRecord| {
        record.rereads.values_mut().for_each(|reread| reread.reading = reading);
        record.epoch = u64::from(reading.unsigned_abs());
        record
    };
    // The second reader has taken over at 5 and goes on to 6; then the first wakes up and publishes what it read at 5.
    tell(&mut engine, 2, record_of(2, reread(5, 5, 0, None, false, 0)), 2).unwrap();
    feed(&mut engine, 3, &[by(2, again(5, 1, "new"))]);
    tell(&mut engine, 3, record_of(2, reread(5, 5, 0, Some(5), false, 1)), 3).unwrap();
    feed(&mut engine, 4, &[change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")))]);
    tell(&mut engine, 4, record_of(2, reread(5, 6, 1, Some(5), false, 0)), 4).unwrap();
    feed(&mut engine, 5, &[by(1, again(5, 1, "new")), by(1, again(5, 2, "late")), by(2, again(6, 2, "read"))]);
    tell(&mut engine, 5, record_of(1, reread(5, 5, 0, Some(5), false, 2)), 6).unwrap();
    tell(&mut engine, 6, record_of(2, reread(6, 6, 0, Some(6), true, 1)), 7).unwrap();
    assert_eq!(status(&engine, "1").as_deref(), Some("paid"), "a row that is older than a change replaced it");
    assert_eq!(status(&engine, "2").as_deref(), Some("read"));
}

#[test]
fn rows_that_no_record_speaks_of_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    feed(&mut engine, 3, &[again(5, 1, "stray")]);
    tell(&mut engine, 2, record(Phase::Tail, 5, 6, &[]), 3).unwrap();
    tell(&mut engine, 3, reread(6, 7, 0, Some(6), false, 0), 3).unwrap();
    assert_eq!(status(&engine, "1").as_deref(), Some("new"));
}

#[test]
fn what_a_dead_importer_published_of_a_gap_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = live(dir.path());
    // An importer publishes that order 3 is new, and dies before it has told so. That the order was deleted is lost: the changes are all there from 8 on.
    feed(&mut engine, 3, &[change(orders(), 6, 1, None, Some(order(3, "new")))]);
    let from_8_on = |mut record: ProgressRecord| {
        record.rereads.values_mut().for_each(|told| told.floor = lsn(8));
        record
    };
    tell(&mut engine, 2, from_8_on(reread(5, 8, 0, None, false, 0)), 3).unwrap();
    feed(&mut engine, 4, &[again(8, 1, "new"), again(8, 2, "paid")]);
    tell(&mut engine, 3, from_8_on(reread(8, 8, 0, Some(8), true, 2)), 5).unwrap();
    assert_eq!((status(&engine, "3"), status(&engine, "2").as_deref()), (None, Some("paid")));
}
