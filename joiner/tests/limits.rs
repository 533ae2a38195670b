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

/// A joiner with one order of so many children.
fn loaded(dir: &std::path::Path, definition: &str, children: u64) -> Engine {
    let config = Config { plans: vec![plan(definition)], threads: 1, ..config(dir) };
    let mut engine = Engine::open(&config).unwrap();
    let mut rows = vec![read(orders(), 5, order(1, "new"))];
    rows.extend((0..children as i64).map(|line| read(items(), 5, item(1, line, 100))));
    feed(&mut engine, 1, &rows);
    let counts = [(&orders(), 1), (&items(), children)];
    tell(&mut engine, 1, record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts), children + 1);
    engine
}

/// The rows that are passed in the database when some of the order's children change, in one transaction each.
fn cost_of(engine: &mut Engine, children: u64, from: u8, changes: u8) -> u64 {
    let told = engine.handle().outbox().head().borrow().sequence;
    let (before, after) = (if from == 5 { 100 } else { 199 + i128::from(from) }, 200 + i128::from(from));
    let changed = (0..changes).map(|n| (from + 1 + n, i64::from(n)));
    let changed = changed.map(|(at, line)| change(items(), at, 1, Some(item(1, line, before)), Some(item(1, line, after))));
    let first = children + 2 + u64::from(from - 5);
    feed(engine, first, &changed.collect::<Vec<_>>());
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut counters = PerfContext::default();
    counters.reset();
    let changes = u64::from(changes);
    let told_by = record(Phase::Tail, from, from + changes as u8, &[(&items(), changes)]);
    tell(engine, u64::from(from), told_by, first + changes - 1);
    let read = counters.metric(PerfMetric::InternalKeySkippedCount);
    set_perf_stats(PerfStatsLevel::Disable);
    assert_eq!(engine.handle().outbox().head().borrow().sequence, told + 1, "the change is told");
    read
}

fn cost(definition: &str, children: u64, changes: u8) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    cost_of(&mut loaded(dir.path(), definition, children), children, 5, changes)
}

/// The same of a change that comes after another one.
fn later_cost(definition: &str, children: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = loaded(dir.path(), definition, children);
    let first = cost_of(&mut engine, children, 5, 1);
    assert!(first >= children, "{first} rows are read at first");
    cost_of(&mut engine, children, 6, 1)
}

#[test]
fn children_that_are_not_shown_are_not_read() {
    let (some, twice) = (cost(LIMITED, 20_000, 1), cost(LIMITED, 40_000, 1));
    assert!(some > 0 && twice < some + some / 10, "{some} rows are read of 20000 children, {twice} of 40000");
    // What the counter tells where all of them are shown.
    let all = cost(&LIMITED.replace("children: 10", "children: 50000"), 40_000, 1);
    assert!(all > 2 * twice, "{all} rows are read where all are shown, {twice} where not");
}

#[test]
fn many_changes_of_one_parent_are_one_assembly() {
    let whole = LIMITED.replace("limits: {children: 10}", "");
    let (one, many) = (cost(&whole, 2000, 1), cost(&whole, 2000, 200));
    assert!(one >= 2000 && many < 2 * one, "{one} rows are read for one change, {many} for 200");
}

const SALES: &str = "
entity: order
table: dbo.items
group_by: [order_id]
aggregates:
  lines: {count: rows}
  total: {sum: rows.price}
  mean: {avg: rows.price}
  least: {min: rows.price}
  greatest: {max: rows.price}
  first: {first: rows.price}
  last: {last: rows.price}
  cheap: {any: rows, value: price < 1}
  all_cheap: {all: rows, value: price < 1}
  prices: {distinct: rows.price}
";

/// Nothing of a group is kept after the first load: the first change of it reads all of its rows.
#[test]
fn of_a_group_only_what_has_changed_is_read() {
    let (some, more) = (later_cost(SALES, 5_000), later_cost(SALES, 40_000));
    assert!(some > 0 && more < 2_000 && more < 3 * some, "{some} rows are read of 5000 in the group, {more} of 40000");
}

#[test]
fn of_children_that_are_not_shown_only_what_has_changed_is_counted_in() {
    let summed =
        format!("{LIMITED}aggregates: {{total: {{sum: items.price}}, least: {{min: items.price}}, lines: {{count: items}}}}");
    let (some, more) = (later_cost(&summed, 5_000), later_cost(&summed, 40_000));
    assert!(some > 0 && more < 2_000 && more < 3 * some, "{some} rows are read of 5000 children, {more} of 40000");
}
