//! Changes that come to nothing: columns that nobody uses, and columns of which only what an expression makes of them is used. The frontier moves, the outbox does not.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use joiner::{Engine, Page};
use schemas::event::{ChangeEvent, Row};
use schemas::plan::Plan;
use schemas::progress::{Phase, SequenceNumber, ShardId};
use streams::{Batch, Layout};
use support::{change, config, encode, item, items, lsn, order, orders, plan, read, record};

struct Shop {
    engine: Engine,
    /// Events handed over so far.
    events: u64,
    at: u8,
    _dir: tempfile::TempDir,
}

impl Shop {
    fn open(plan: Arc<Plan>, rows: &[ChangeEvent]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.plans = vec![plan];
        let mut shop = Self { engine: Engine::open(&config).unwrap(), events: 0, at: 5, _dir: dir };
        shop.feed(rows, Phase::SnapshotComplete { consistent_from: lsn(5) }, 5);
        shop
    }

    fn feed(&mut self, events: &[ChangeEvent], phase: Phase, from: u8) {
        let stream = Layout::Shared.stream("p", &orders().name);
        let records = events.iter().zip(self.events + 1..).map(|(event, n)| (SequenceNumber::from(n), encode(event).into()));
        let (shard, records) = (ShardId("0".into()), records.collect());
        self.engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records }).unwrap();
        self.events += events.len() as u64;
        let tables = [orders(), items()];
        let counts: Vec<_> = tables
            .iter()
            .map(|table| (table, events.iter().filter(|event| event.table.name == table.name).count() as u64))
            .collect();
        let mut told = record(phase, from, self.at, &counts);
        told.positions.entry(stream).or_default().insert(shard.clone(), SequenceNumber::from(self.events));
        self.engine.progress(&Layout::progress_stream("p"), &shard, &SequenceNumber::from(u64::from(self.at)), told).unwrap();
        assert!(self.engine.advance().unwrap());
    }

    /// What comes out of an update: documents, or `None` for tombstones.
    fn update(&mut self, table: &Arc<schemas::table::TableSchema>, before: Row, after: Row) -> Vec<Option<String>> {
        let outbox = self.engine.handle().outbox();
        let sequence = outbox.head().borrow().sequence;
        self.at += 1;
        self.feed(&[change(table.clone(), self.at, 1, Some(before), Some(after))], Phase::Tail, self.at - 1);
        assert_eq!(self.engine.frontier(), lsn(self.at));
        let Page::Changes { changes, .. } = outbox.read_after(sequence, 10).unwrap() else { panic!("trimmed") };
        changes.into_iter().map(|(_, change)| change.document.map(|document| document.to_string())).collect()
    }
}

#[test]
fn columns_that_nobody_uses_are_silent() {
    let plan =
        plan("entity: order\ntable: dbo.orders\nfields: [id]\nmany: {items: {table: dbo.items, by: [order_id], fields: [line]}}");
    let mut shop = Shop::open(plan, &[read(orders(), 5, order(1, "NEW")), read(items(), 5, item(1, 1, 100))]);
    assert_eq!(shop.update(&orders(), order(1, "NEW"), order(1, "PAID")), []);
    assert_eq!(shop.update(&items(), item(1, 1, 100), item(1, 1, 200)), []);
}

#[test]
fn only_what_an_expression_makes_of_a_column_matters() {
    let plan = plan(
        "entity: order\ntable: dbo.orders\nfields: [id]\nwhere: status != \"DRAFT\"\nmany: {items: {table: dbo.items, by: [order_id], fields: [], where: price > 1.00}}\n\
         aggregates: {n: {count: items, where: price < 100}}",
    );
    let mut shop = Shop::open(plan, &[read(orders(), 5, order(1, "NEW")), read(items(), 5, item(1, 1, 200))]);
    assert_eq!(shop.update(&orders(), order(1, "NEW"), order(1, "PAID")), []);
    assert_eq!(shop.update(&items(), item(1, 1, 200), item(1, 1, 300)), []);
    let document = |items: &str, n: u32| Some(format!("{{\"id\":1,\"items\":[{items}],\"n\":{n}}}"));
    // It does not count any more, then it is left out altogether, and comes back.
    assert_eq!(shop.update(&items(), item(1, 1, 300), item(1, 1, 10_000)), [document("{}", 0)]);
    assert_eq!(shop.update(&items(), item(1, 1, 10_000), item(1, 1, 50)), [document("", 0)]);
    assert_eq!(shop.update(&items(), item(1, 1, 50), item(1, 1, 60)), []);
    assert_eq!(shop.update(&items(), item(1, 1, 60), item(1, 1, 700)), [document("{}", 1)]);
    // The root leaves, and comes.
    assert_eq!(shop.update(&orders(), order(1, "PAID"), order(1, "DRAFT")), [None]);
    assert_eq!(shop.update(&items(), item(1, 1, 700), item(1, 1, 50)), []);
    assert_eq!(shop.update(&orders(), order(1, "DRAFT"), order(1, "NEW")), [document("", 0)]);
}

#[test]
fn a_roll_up_follows_its_rows_from_group_to_group() {
    let plan = plan(
        "entity: by-status\ntable: dbo.orders\ngroup_by: [status]\nrows: {many: {items: {table: dbo.items, by: [order_id]}}, aggregates: {total: {sum: items.price}}}\n\
         aggregates: {orders: {count: rows}, revenue: {sum: rows.total}}\ncomputed: {mean: revenue / orders}",
    );
    let rows = [
        read(orders(), 5, order(1, "NEW")),
        read(orders(), 5, order(2, "NEW")),
        read(items(), 5, item(1, 1, 250)),
        read(items(), 5, item(2, 1, 300)),
    ];
    let mut shop = Shop::open(plan, &rows);
    let group = |status: &str, orders: u32, revenue: &str, mean: &str| {
        Some(format!("{{\"status\":\"{status}\",\"orders\":{orders},\"revenue\":\"{revenue}\",\"mean\":\"{mean}\"}}"))
    };
    assert_eq!(shop.update(&items(), item(1, 1, 250), item(1, 1, 350)), [group("NEW", 2, "6.50", "3.250000")]);
    assert_eq!(
        shop.update(&orders(), order(1, "NEW"), order(1, "PAID")),
        [group("NEW", 1, "3.00", "3.000000"), group("PAID", 1, "3.50", "3.500000")]
    );
    assert_eq!(shop.update(&orders(), order(2, "NEW"), order(2, "PAID")), [None, group("PAID", 2, "6.50", "3.250000")]);
}

#[test]
fn lists_are_cut_where_the_definition_says_so() {
    let definition = |rest: &str| {
        plan(&format!(
            "entity: order\ntable: dbo.orders\nfields: [id]\nlimits: {{{rest}}}\nmany: {{items: {{table: dbo.items, by: [order_id], fields: [line], order_by: [-line]}}}}\n\
             aggregates: {{n: {{count: items}}}}"
        ))
    };
    let rows: Vec<ChangeEvent> = std::iter::once(read(orders(), 5, order(1, "NEW")))
        .chain((1..=3).map(|line| read(items(), 5, item(1, line, 100))))
        .collect();
    for (limits, items, cut) in [
        ("children: 2", "{\"line\":4},{\"line\":3}", true),
        ("children: 3", "{\"line\":4},{\"line\":3},{\"line\":2}", false),
        ("bytes: 30", "{\"line\":4}", true),
        ("bytes: 10", "", true),
        ("children: 0", "", true),
    ] {
        let mut shop = Shop::open(definition(limits), &rows);
        let expected = format!("{{\"id\":1,\"items\":[{items}],\"n\":3,\"truncated\":{cut}}}");
        let found = shop.update(&support::items(), item(1, 1, 100), item(1, 4, 100));
        // Where the last place of the list is all that has changed, and is not shown, nothing has.
        let silent = items.is_empty();
        assert_eq!(found, if silent { Vec::new() } else { vec![Some(expected)] }, "{limits}");
    }
    let mut shop = Shop::open(definition("children: 2, exceeded: stop"), &rows[..3]);
    let stream = Layout::Shared.stream("p", &orders().name);
    let one_more = encode(&change(support::items(), 6, 1, None, Some(item(1, 3, 100)))).into();
    let shard = ShardId("0".into());
    let records = vec![(SequenceNumber::from(4), one_more)];
    shop.engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records }).unwrap();
    let mut told = record(Phase::Tail, 5, 6, &[(&support::items(), 1)]);
    told.positions.entry(stream).or_default().insert(shard.clone(), SequenceNumber::from(4));
    shop.engine.progress(&Layout::progress_stream("p"), &shard, &SequenceNumber::from(6), told).unwrap();
    let error = shop.engine.advance().unwrap_err().to_string();
    assert!(error.contains("entity order, key 1: the document has more than 2 children in a list"), "{error}");
    assert_eq!(shop.engine.handle().outbox().head().borrow().frontier, lsn(5));
}
