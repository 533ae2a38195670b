//! Steps that are large enough to be shared out among threads come to what one thread makes of them, and to what stands in the state; and clusters that are too large to be kept in memory are read whole.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use joiner::Config;
use schemas::Lsn;
use schemas::change::EntityKey;
use schemas::event::ChangeEvent;
use schemas::progress::Phase;
use serde_json::Value as Json;

mod support;

use support::shop::Shop;
use support::{change, config, item, items, lsn, order, orders, plan, read, record};

const ORDERS: i64 = 300;
/// Of each step: more than two threads' worth.
const CHANGES: usize = 9000;
const STEPS: u8 = 3;

/// The rows as the source has them: each order's status, and its lines' prices.
#[derive(Clone)]
struct Source {
    orders: BTreeMap<i64, (String, BTreeMap<i64, i128>)>,
    random: u64,
}

impl Source {
    fn new() -> Self {
        let lines = |id: i64| (1..=id % 5).map(|line| (line, i128::from(id * 10 + line))).collect();
        Self { orders: (1..=ORDERS).map(|id| (id, ("new".to_owned(), lines(id)))).collect(), random: 7 }
    }

    fn below(&mut self, end: u64) -> u64 {
        // Knuth's MMIX generator: all that is asked of it is to be the same each time.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    fn rows(&self) -> Vec<ChangeEvent> {
        let of = |(id, (status, lines)): (&i64, &(String, BTreeMap<i64, i128>))| {
            let lines = lines.iter().map(|(line, cents)| read(items(), 5, item(*id, *line, *cents))).collect::<Vec<_>>();
            std::iter::once(read(orders(), 5, order(*id, status))).chain(lines)
        };
        self.orders.iter().flat_map(of).collect()
    }

    /// One change, at an LSN.
    fn change(&mut self, at: u8, nth: usize) -> ChangeEvent {
        let id = 1 + self.below(ORDERS as u64) as i64;
        let (kind, line, cents) = (self.below(10), self.below(6) as i64, i128::from(self.below(100_000)));
        let known = self.orders.get_mut(&id);
        let mut event = match (kind, known) {
            (0..4, Some((status, _))) => {
                let now = format!("status {nth}");
                let before = std::mem::replace(status, now.clone());
                change(orders(), at, 0, Some(order(id, &before)), Some(order(id, &now)))
            }
            // An order goes, and its lines stay.
            (9, Some(_)) if line == 0 => {
                let (status, lines) = self.orders.remove(&id).unwrap();
                self.orders.insert(-id, (String::new(), lines));
                change(orders(), at, 0, Some(order(id, &status)), None)
            }
            (_, None) => {
                let (_, lines) = self.orders.remove(&-id).unwrap();
                self.orders.insert(id, ("back".to_owned(), lines));
                change(orders(), at, 0, None, Some(order(id, "back")))
            }
            (_, Some((_, lines))) => match (lines.get(&line).copied(), kind) {
                (Some(before), 8..) => {
                    lines.remove(&line);
                    change(items(), at, 0, Some(item(id, line, before)), None)
                }
                (before, _) => {
                    lines.insert(line, cents);
                    change(items(), at, 0, before.map(|before| item(id, line, before)), Some(item(id, line, cents)))
                }
            },
        };
        let mut number = [0; 10];
        number[2..].copy_from_slice(&(nth as u64 + 1).to_be_bytes());
        (event.position.seqval, event.position.command_id) = (Lsn::from_bytes(number), nth as i32);
        event
    }
}

/// What each step tells, and where the state stands in the end.
fn run(threads: usize, row_cache_bytes: usize) -> Vec<BTreeMap<String, Json>> {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Config { threads, ..config(dir.path()) };
    settings.memory.row_cache_bytes = row_cache_bytes;
    let (mut shop, mut source) = (Shop::open(settings), Source::new());
    let count = |events: &[ChangeEvent]| {
        let orders = events.iter().filter(|event| event.table.name == orders().name).count() as u64;
        (orders, events.len() as u64 - orders)
    };
    let counted = |phase, from, to, events: &[ChangeEvent]| {
        let (of_orders, of_items) = count(events);
        record(phase, from, to, &[(&orders(), of_orders), (&items(), of_items)])
    };
    let rows = source.rows();
    shop.feed(&rows);
    shop.tell(counted(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &rows));
    shop.told();
    let mut steps = Vec::new();
    let mut known: BTreeMap<String, Json> = BTreeMap::new();
    for at in 6..6 + STEPS {
        let events: Vec<_> = (0..CHANGES).map(|nth| source.change(at, nth)).collect();
        let (of_orders, of_items) = count(&events);
        assert!(of_orders > 3000 && of_items > 3000, "{of_orders} changes of orders, {of_items} of items");
        shop.feed(&events);
        shop.tell(counted(Phase::Tail, at - 1, at, &events));
        assert_eq!(shop.frontier(), lsn(at));
        let told: BTreeMap<_, _> = shop.told().into_iter().map(|(key, _, document)| (key, document)).collect();
        known.extend(told.clone());
        steps.push(told);
    }
    for (key, document) in &known {
        let (status, lines) = match source.orders.get(&key.parse::<i64>().unwrap()) {
            Some(found) => found,
            None => {
                assert_eq!(*document, Json::Null, "order {key}");
                continue;
            }
        };
        assert_eq!(document["status"], Json::from(status.as_str()), "order {key}");
        assert_eq!(document["items"].as_array().map(Vec::len), Some(lines.len()), "order {key}");
        let now = shop.engine.handle().get("order", &EntityKey::from_text(key)).unwrap().unwrap().1;
        assert_eq!(*document, serde_json::from_str::<Json>(&now).unwrap(), "order {key}");
    }
    steps
}

#[test]
fn large_steps_come_to_the_same_on_any_number_of_threads_and_with_any_cache() {
    let expected = run(0, 0);
    assert!(expected.iter().all(|told| told.len() > 200), "{:?}", expected.iter().map(BTreeMap::len).collect::<Vec<_>>());
    for (threads, row_cache_bytes) in [(1, 64 << 20), (3, 8 << 10), (3, 64 << 20)] {
        assert_eq!(run(threads, row_cache_bytes), expected, "{threads} threads, {row_cache_bytes} bytes of rows kept");
    }
}

/// Rows of a cluster are kept in memory up to 256 KiB.
const CHILDREN: i64 = 12_000;
const ALL: &str = "{entity: order, table: dbo.orders, many: {items: {table: dbo.items, by: [order_id], fields: [line, price]}}}";

#[test]
fn all_of_a_cluster_that_is_too_large_to_be_kept_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(Config { plans: vec![plan(ALL)], ..config(dir.path()) });
    let mut rows = vec![read(orders(), 5, order(1, "new"))];
    rows.extend((0..CHILDREN).map(|line| read(items(), 5, item(1, line, 100))));
    shop.feed(&rows);
    let counts = [(&orders(), 1), (&items(), CHILDREN as u64)];
    shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts));
    shop.told();
    for (at, line) in [(6, 0), (7, CHILDREN - 1)] {
        shop.item_changes(at, 1, line);
        let told = shop.told();
        let lines = told[0].2["items"].as_array().unwrap();
        assert_eq!((told.len(), lines.len()), (1, CHILDREN as usize));
        assert_eq!((&lines[line as usize]["price"], &lines[5000]["price"]), (&"2.00".into(), &"1.00".into()));
    }
}
