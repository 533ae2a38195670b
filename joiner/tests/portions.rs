//! Steps that are larger than memory: they are written in portions, and nobody sees any of it before it is whole, whenever the joiner is killed.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use joiner::{Config, Engine, Memory};
use schemas::Lsn;
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, ProgressRecord};
use serde_json::Value as Json;
use support::shop::{Shop, feed, read_up_to, tell};
use support::{change, config, crash, encode, item, items, lsn, memory_kib, order, orders, read, record};

/// What one test takes of memory is not another's.
static ALONE: Mutex<()> = Mutex::new(());

const ORDERS: i64 = 12;
const LINES: i64 = 4;

fn rows() -> Vec<ChangeEvent> {
    let orders = (1..=ORDERS).map(|id| read(support::orders(), 5, order(id, "new")));
    let lines = (1..=ORDERS).flat_map(|id| (0..LINES).map(move |line| read(items(), 5, item(id, line, 100))));
    orders.chain(lines).collect()
}

/// One transaction: each order's lines become another's and dearer on the way, one goes, one comes; some orders change twice, some back to what they were, one goes and one comes.
fn transaction() -> Vec<ChangeEvent> {
    let mut changes: Vec<(bool, Option<Vec<_>>, Option<Vec<_>>)> = Vec::new();
    for id in 1..=ORDERS {
        let to = id % ORDERS + 1;
        let between = if id % 3 == 0 { "new" } else { "paid" };
        changes.push((true, Some(order(id, "new")), Some(order(id, "open"))));
        for line in 1..LINES {
            changes.push((false, Some(item(id, line, 100)), Some(item(to, 10 + line, 100))));
        }
        changes.push((false, Some(item(id, 0, 100)), None));
        changes.push((false, None, Some(item(id, 9, 300))));
        changes.push((true, Some(order(id, "open")), Some(order(id, between))));
    }
    for id in 1..=ORDERS {
        let to = id % ORDERS + 1;
        changes.extend((1..LINES).map(|line| (false, Some(item(to, 10 + line, 100)), Some(item(to, 10 + line, 200)))));
        if id % 2 == 0 {
            // Back to what it was.
            for line in 1..LINES {
                changes.push((false, Some(item(to, 10 + line, 200)), Some(item(id, line, 100))));
            }
            changes.push((false, None, Some(item(id, 0, 100))));
            changes.push((false, Some(item(id, 9, 300)), None));
        }
    }
    changes.push((true, Some(order(1, "paid")), None));
    changes.push((true, None, Some(order(ORDERS + 1, "new"))));
    let numbered = changes.into_iter().zip(1..);
    numbered.map(|((root, before, after), n)| change(if root { orders() } else { items() }, 6, n, before, after)).collect()
}

fn counted(phase: Phase, from: u8, to: u8, events: &[ChangeEvent]) -> ProgressRecord {
    let of = |table: &schemas::TableName| events.iter().filter(|event| event.table.name == *table).count() as u64;
    record(phase, from, to, &[(&orders(), of(&orders().name)), (&items(), of(&items().name))])
}

fn loaded(config: Config) -> Shop {
    let mut shop = Shop::open(config);
    shop.feed(&rows());
    shop.tell(counted(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &rows()));
    shop
}

fn small(dir: &Path) -> Config {
    // One byte of buffer: everything is spilled.
    Config { portion_bytes: 700, buffer_bytes: 1, chunk_entities: 3, ..config(dir) }
}

/// By key; each is told once.
fn by_key(told: Vec<(String, Lsn, Json)>) -> BTreeMap<String, (Lsn, Json)> {
    let count = told.len();
    let told: BTreeMap<_, _> = told.into_iter().map(|(key, version, document)| (key, (version, document))).collect();
    assert_eq!(told.len(), count, "something is told twice");
    told
}

#[test]
fn a_kill_at_any_write_of_a_large_step_shows_nothing_of_it_and_loses_nothing() {
    let _alone = ALONE.lock();
    let (whole, parts) = (crash::dir(), crash::dir());
    let tail = counted(Phase::Tail, 5, 6, &transaction());
    // The same in one write.
    let mut shop = loaded(config(whole.path()));
    shop.feed(&transaction());
    shop.tell(tail.clone());
    let expected = by_key(shop.told());
    assert!(expected.len() > 6 && expected["1"] == (lsn(6), Json::Null), "{expected:?}");
    drop(shop);

    let mut shop = loaded(small(parts.path()));
    shop.feed(&transaction());
    let (name, from) = crash::log(parts.path());
    shop.tell(tail);
    assert_eq!(crash::log(parts.path()).0, name, "all of it is in one log");
    let after = crash::copy(parts.path());
    let ends = crash::ends_of_batches(after.path(), &name, from);
    assert!(ends.len() > 20, "only {} writes", ends.len());
    let mut held = 0;
    for (nth, &end) in [from].iter().chain(&ends).enumerate() {
        let left = crash::copy(after.path());
        crash::cut(left.path(), &name, end);
        let mut again = shop.over(small(left.path()));
        let head = *again.engine.handle().outbox().head().borrow();
        if again.engine.frontier() < lsn(6) {
            assert_eq!((head.sequence, head.frontier), (0, lsn(5)), "after write {nth}");
            let found = again.engine.handle().get("order", &schemas::change::EntityKey::from_text("2")).unwrap();
            let is_torn = again.engine.handle().status().phase == joiner::JoinerPhase::Live && !head.live;
            assert_eq!(found.is_none(), is_torn, "after write {nth}");
            held += usize::from(is_torn);
        }
        again.catch_up();
        assert_eq!(by_key(again.told()), expected, "after write {nth}");
        assert_eq!(again.frontier(), lsn(6), "after write {nth}");
    }
    assert!(held > 10, "only {held} writes left the step unfinished");
    assert_eq!(by_key(shop.told()), expected);
}

#[test]
fn a_large_step_is_whole_before_the_first_load_ends() {
    let _alone = ALONE.lock();
    let dir = crash::dir();
    let mut shop = Shop::open(small(dir.path()));
    shop.feed(&rows());
    shop.tell(counted(Phase::SnapshotComplete { consistent_from: lsn(6) }, 5, 5, &rows()));
    shop.feed(&transaction());
    let (name, from) = crash::log(dir.path());
    shop.tell(counted(Phase::Tail, 5, 6, &transaction()));
    let expected = shop.engine.handle().get("order", &schemas::change::EntityKey::from_text("2")).unwrap();
    assert!(expected.is_some());
    let after = crash::copy(dir.path());
    let ends = crash::ends_of_batches(after.path(), &name, from);
    for &end in &ends {
        let left = crash::copy(after.path());
        crash::cut(left.path(), &name, end);
        let mut again = shop.over(small(left.path()));
        let live = again.engine.handle().outbox().head().borrow().live;
        assert_eq!(live, again.engine.frontier() == lsn(6));
        again.catch_up();
        let found = again.engine.handle().get("order", &schemas::change::EntityKey::from_text("2")).unwrap();
        assert_eq!(found, expected);
    }
    assert!(ends.len() > 10, "only {} writes", ends.len());
}

/// By how much memory grows over one transaction that adds lines to orders, in KiB.
fn growth(portion_bytes: usize, lines: i64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let memory_of_state =
        Memory { write_buffer_bytes: 4 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 1 << 20, recent_bytes: 1 << 20 };
    let mut config = Config { portion_bytes, buffer_bytes: 1 << 20, chunk_entities: 100, ..config(dir.path()) };
    (config.memory, config.threads) = (memory_of_state, 1);
    let mut engine = Engine::open(&config).unwrap();
    let rows: Vec<ChangeEvent> = (0..1000).map(|id| read(orders(), 5, order(id, "new"))).collect();
    feed(&mut engine, 0, rows.iter().map(|row| encode(row).into()));
    tell(&mut engine, 1, read_up_to(counted(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &rows), 1000));
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory_kib("VmRSS:");
    let line = |n: i64| {
        let mut event = change(items(), 6, 1, None, Some(item(n % 1000, n / 1000, 100)));
        let mut number = [0; 10];
        number[2..].copy_from_slice(&n.to_be_bytes());
        event.position.seqval = Lsn::from_bytes(number);
        encode(&event).into()
    };
    for first in (0..lines).step_by(1000) {
        feed(&mut engine, 1000 + first as u64, (first..first + 1000).map(line));
    }
    let tail = record(Phase::Tail, 5, 6, &[(&items(), lines as u64)]);
    tell(&mut engine, 2, read_up_to(tail, 1000 + lines as u64));
    let head = *engine.handle().outbox().head().borrow();
    assert_eq!((head.sequence, head.frontier), (1000, lsn(6)));
    memory_kib("VmHWM:") - before
}

#[test]
fn memory_does_not_grow_with_the_transaction() {
    let _alone = ALONE.lock();
    let some = growth(1 << 20, 50_000);
    let many = growth(1 << 20, 200_000);
    let at_once = growth(usize::MAX, 200_000);
    assert!(many < some + (8 << 10), "{some} KiB for 50000 rows, {many} KiB for 200000");
    assert!(at_once > many + (16 << 10), "{many} KiB in portions, {at_once} KiB at once");
}
