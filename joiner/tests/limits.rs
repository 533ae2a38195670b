//! Parents with very many children: what a change of one child costs does not grow with the number of those that the document does not show, and many changes of one parent's children cost one assembly.

#![allow(clippy::unwrap_used)]

mod support;

use joiner::{Config, Engine};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, ProgressRecord};
use support::shop::{self, read_up_to};
use support::{change, config, encode, item, items, lsn, order, orders, plan, read, record};

const LIMITED: &str = "
entity: order
table: dbo.orders
limits: {children: 10}
many: {items: {table: dbo.items, by: [order_id], fields: [line, price]}}
";

fn feed(engine: &mut Engine, first: u64, events: &[ChangeEvent]) {
    shop::feed(engine, first - 1, events.iter().map(|event| encode(event).into()));
}

fn tell(engine: &mut Engine, sequence: u64, record: ProgressRecord, read: u64) {
    shop::tell(engine, sequence, read_up_to(record, read));
}

/// The rows that are passed in the database when some of an order's children change, in one transaction each.
fn cost(definition: &str, children: u64, changes: u8) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { plans: vec![plan(definition)], threads: 1, ..config(dir.path()) };
    let mut engine = Engine::open(&config).unwrap();
    let mut rows = vec![read(orders(), 5, order(1, "new"))];
    rows.extend((0..children as i64).map(|line| read(items(), 5, item(1, line, 100))));
    feed(&mut engine, 1, &rows);
    let counts = [(&orders(), 1), (&items(), children)];
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts), children + 1);
    let changed = (0..changes).map(|n| (6 + n, i64::from(n)));
    let changed = changed.map(|(at, line)| change(items(), at, 1, Some(item(1, line, 100)), Some(item(1, line, 200))));
    feed(&mut engine, children + 2, &changed.collect::<Vec<_>>());
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut counters = PerfContext::default();
    counters.reset();
    let changes = u64::from(changes);
    tell(&mut engine, 2, record(Phase::Tail, 5, 5 + changes as u8, &[(&items(), changes)]), children + 1 + changes);
    let read = counters.metric(PerfMetric::InternalKeySkippedCount);
    set_perf_stats(PerfStatsLevel::Disable);
    assert_eq!(engine.handle().outbox().head().borrow().sequence, 1, "the change is told");
    read
}

#[test]
fn children_that_are_not_shown_are_not_read() {
    let (some, twice) = (cost(LIMITED, 20_000, 1), cost(LIMITED, 40_000, 1));
    assert!(some > 0 && twice < some + some / 10, "{some} rows are read of 20000 children, {twice} of 40000");
    // What the counter tells where all of them are counted in.
    let summed = format!("{LIMITED}aggregates: {{total: {{sum: items.price}}}}");
    let all = cost(&summed, 40_000, 1);
    assert!(all > 2 * twice, "{all} rows are read where all are counted in, {twice} where not");
}

#[test]
fn many_changes_of_one_parent_are_one_assembly() {
    let whole = LIMITED.replace("limits: {children: 10}", "");
    let (one, many) = (cost(&whole, 2000, 1), cost(&whole, 2000, 200));
    assert!(one >= 2000 && many < 2 * one, "{one} rows are read for one change, {many} for 200");
}
