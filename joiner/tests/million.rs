//! Transactions and parents of very many rows, through the joiner as it is configured by default: what comes out, and what it takes of memory.
//!
//! `TRIBUTARY_ROWS` asks for more rows than the suite's. What was measured is printed; of a million rows, by a build without optimisation: one transaction over a thousand parents, 413 MiB at most beyond what there was; a million children of one parent,
//! of which a hundred are shown, 449 MiB, and 17 ms for a change of one of them; all of them in one document of 31 MB, 420 MiB.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Mutex;
use std::time::Instant;

use joiner::{Config, Engine, Page};
use schemas::Lsn;
use schemas::event::ChangeEvent;
use schemas::progress::Phase;
use schemas::value::Value;
use serde_json::Value as Json;
use support::shop::{feed, read_up_to, tell};
use support::{change, config, encode, item, items, lsn, memory_kib, order, orders, plan, read, record};

/// What one test takes of memory is not another's.
static ALONE: Mutex<()> = Mutex::new(());

const ROWS: i64 = 60_000;
const ORDERS: i64 = 1000;
/// Beyond what a step takes of memory by its bounds: what the joiner keeps of each row for a while, and what the allocator does not give back.
const SLACK_KIB: u64 = 96 << 10;

const LIMITED: &str = "
entity: order
table: dbo.orders
limits: {children: 100}
many: {items: {table: dbo.items, by: [order_id], fields: [line, price]}}
aggregates: {total: {sum: items.price}, lines: {count: items}}
";

fn rows() -> i64 {
    std::env::var("TRIBUTARY_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROWS)
}

/// A line as of one transaction: where it stands there is its number.
fn line(nth: i64, before: Option<i128>, after: Option<i128>, place: impl Fn(i64) -> (i64, i64), at: u8) -> ChangeEvent {
    let row = |cents| {
        let (order, line) = place(nth);
        let mut row = item(order, 0, cents);
        row[1] = Value::Int(line);
        row
    };
    let mut event = change(items(), at, 1, before.map(row), after.map(row));
    let mut number = [0; 10];
    number[2..].copy_from_slice(&nth.to_be_bytes());
    (event.position.seqval, event.position.command_id) = (Lsn::from_bytes(number), nth as i32);
    event
}

struct Measured {
    engine: Engine,
    /// Beyond what there was before.
    peak_kib: u64,
    seconds: f64,
}

/// Inserts so many lines in one transaction, and answers what that took.
fn insert(config: &Config, orders_loaded: i64, count: i64, place: impl Fn(i64) -> (i64, i64) + Copy) -> Measured {
    let mut engine = Engine::open(config).unwrap();
    let loaded: Vec<ChangeEvent> = (1..=orders_loaded).map(|id| read(orders(), 5, order(id, "new"))).collect();
    feed(&mut engine, 0, loaded.iter().map(|row| encode(row).into()));
    let loaded = orders_loaded as u64;
    let told = record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), loaded)]);
    tell(&mut engine, 1, read_up_to(told, loaded));
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, began) = (memory_kib("VmRSS:"), Instant::now());
    for first in (0..count).step_by(1000) {
        let events = (first..(first + 1000).min(count)).map(|nth| encode(&line(nth, None, Some(100), place, 6)).into());
        feed(&mut engine, loaded + first as u64, events);
    }
    let told = record(Phase::Tail, 5, 6, &[(&items(), count as u64)]);
    tell(&mut engine, 2, read_up_to(told, loaded + count as u64));
    let peak_kib = memory_kib("VmHWM:").saturating_sub(before);
    Measured { engine, peak_kib, seconds: began.elapsed().as_secs_f64() }
}

/// The last document that was told of an order, and how many bytes it has.
fn told(engine: &Engine, key: &str) -> (Json, usize) {
    let Page::Changes { changes, .. } = engine.handle().outbox().read_after(0, usize::MAX).unwrap() else { panic!("trimmed") };
    let last = changes.iter().rfind(|(_, change)| change.key.as_str() == key).unwrap();
    let text = last.1.document.as_ref().unwrap();
    (serde_json::from_str(text).unwrap(), text.len())
}

#[test]
fn one_transaction_of_very_many_rows_is_one_step_within_the_bounds() {
    let _alone = ALONE.lock();
    let (dir, count) = (tempfile::tempdir().unwrap(), rows());
    let config = config(dir.path());
    let Measured { engine, peak_kib, seconds } = insert(&config, ORDERS, count, |nth| (nth % ORDERS + 1, nth / ORDERS));
    let head = *engine.handle().outbox().head().borrow();
    assert_eq!((head.sequence, head.frontier), (ORDERS as u64, lsn(6)), "each order is told once");
    let of_each = count / ORDERS;
    let (document, _) = told(&engine, "7");
    assert_eq!(document["items"].as_array().unwrap().len() as i64, of_each);
    assert_eq!(document["total"], format!("{of_each}.00"));
    println!("{count} rows of {ORDERS} orders in one transaction: {peak_kib} KiB at most, {seconds:.1} s");
    let bounds = config.buffer_bytes + config.portion_bytes + config.chunk_bytes + config.memory.write_buffer_bytes;
    assert!(peak_kib < (bounds as u64 >> 10) + SLACK_KIB, "{peak_kib} KiB for {count} rows");
}

#[test]
fn one_parent_of_very_many_children_is_told_as_far_as_its_limit_goes() {
    let _alone = ALONE.lock();
    let (dir, count) = (tempfile::tempdir().unwrap(), rows());
    let config = Config { plans: vec![plan(LIMITED)], ..config(dir.path()) };
    let Measured { mut engine, peak_kib, seconds } = insert(&config, 1, count, |nth| (1, nth));
    let (document, bytes) = told(&engine, "1");
    assert_eq!(document["items"].as_array().unwrap().len(), 100);
    assert_eq!((&document["total"], &document["lines"]), (&Json::from(format!("{count}.00")), &Json::from(count)));
    println!("{count} children of one parent, of which 100 are shown ({bytes} bytes): {peak_kib} KiB at most, {seconds:.1} s");
    // One more of them changes.
    let began = Instant::now();
    let changed = line(count / 2, Some(100), Some(350), |nth| (1, nth), 7);
    feed(&mut engine, 1 + count as u64, std::iter::once(encode(&changed).into()));
    tell(&mut engine, 3, read_up_to(record(Phase::Tail, 6, 7, &[(&items(), 1)]), 2 + count as u64));
    let (document, _) = told(&engine, "1");
    assert_eq!(document["total"], format!("{}.50", count + 2));
    println!("one of them changes: {:.1} ms", began.elapsed().as_secs_f64() * 1000.0);
}

/// Without a limit the document is as large as it is, and is handed over so: what a target does with one that it does not take is the target's ([`sinks::Sink`]: a dead letter, nothing else waits).
#[test]
fn one_parent_of_very_many_children_without_a_limit_is_one_large_document() {
    let _alone = ALONE.lock();
    let (dir, count) = (tempfile::tempdir().unwrap(), rows());
    let Measured { engine, peak_kib, seconds } = insert(&config(dir.path()), 1, count, |nth| (1, nth));
    let (document, bytes) = told(&engine, "1");
    assert_eq!(document["items"].as_array().unwrap().len() as i64, count);
    println!("{count} children of one parent in one document of {bytes} bytes: {peak_kib} KiB at most, {seconds:.1} s");
}
