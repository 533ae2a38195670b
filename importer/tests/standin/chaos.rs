//! Random changes, kills, purges and requests to read again, against a consumer that follows the streams as a joiner does: whenever the records say that the tables are as of one LSN, they
//! are the source's as of that LSN.

use std::collections::{BTreeMap, BTreeSet};

use importer::{Activity, AskedRange, GapPolicy};
use schemas::progress::Phase;
use schemas::{Lsn, TableName};
use serde_json::Value as Json;

use crate::support::{World, identity, is_reread, table_of};
use crate::workload::{SHOP, fill, key, source_rows};

type Tables = BTreeMap<String, BTreeMap<String, Json>>;

/// A seeded sequence, the same each time, and a counter.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn changes(dice: &mut Dice) -> String {
    let mut script = String::new();
    dice.1 += 1;
    let round = dice.1;
    for step in 0..1 + dice.roll(4) {
        let id = 1 + dice.roll(15);
        let new = 1000 + round * 10 + step;
        script.push_str(&match dice.roll(5) {
            0 => format!("UPDATE dbo.orders SET total = total + 1, customer = N'round {round}' WHERE id = {id};\nGO\n"),
            1 => format!("DELETE FROM dbo.items WHERE order_id = {id}; DELETE FROM dbo.orders WHERE id = {id};\nGO\n"),
            2 => format!("UPDATE dbo.orders SET id = {new} WHERE id = {id};\nGO\n"),
            3 => format!(
                "BEGIN TRANSACTION; INSERT INTO dbo.orders (id, customer, total) VALUES ({new}, N'new', 1); \
                 INSERT INTO dbo.items (order_id, line_no, product) VALUES ({new}, 1, 'new'); COMMIT TRANSACTION;\nGO\n"
            ),
            _ => format!("UPDATE dbo.items SET product = 'round {round}', line_no = line_no + 2 WHERE order_id <= {id};\nGO\n"),
        });
    }
    script
}

/// What the source held at the LSNs that were looked at.
#[derive(Default)]
pub(crate) struct History(BTreeMap<Lsn, Tables>);

impl History {
    pub(crate) async fn look(&mut self, world: &World) -> Lsn {
        let lsn = world.captured().await;
        self.0.insert(lsn, source_rows(world).await);
        lsn
    }
}

/// A row, and the number of the record that spoke of it last.
type Held = BTreeMap<String, BTreeMap<String, (usize, Json)>>;

/// Follows records and events; answers at how many LSNs it was compared.
pub(crate) async fn follow(world: &World, history: &History) -> usize {
    let events = world.events().await;
    let stream = world.config.output.layout.stream(&world.config.output.prefix, &TableName::new("dbo", "orders"));
    let (mut held, mut seen, mut begun) = (Held::new(), BTreeSet::new(), BTreeMap::<TableName, (u64, usize)>::new());
    let (mut at, mut consistent_from, mut epoch, mut compared) = (0, None, 0, 0);
    for (number, record) in world.progress().await.iter().enumerate() {
        assert!(record.epoch >= epoch, "epochs grow");
        epoch = record.epoch;
        for (table, reread) in &record.rereads {
            let known = begun.entry(table.clone()).or_insert((reread.generation, number));
            assert!(reread.generation >= known.0, "generations grow");
            if reread.generation > known.0 {
                *known = (reread.generation, number);
            }
        }
        let upto = record.positions.get(&stream).and_then(|shards| shards.values().next()).and_then(|number| number.to_u64());
        while at < upto.unwrap_or(0) as usize {
            let event = &events[at];
            at += 1;
            if event["op"] != "r" && !seen.insert(identity(event)) {
                continue;
            }
            let table = table_of(event).to_owned();
            let reader = record.rereads.get(&TableName::new("dbo", &*table)).map(|reread| i64::from(reread.reading));
            if is_reread(event) && event["source"]["command_id"].as_i64() != reader {
                continue;
            }
            let rows = held.entry(table.clone()).or_default();
            if !event["before"].is_null() {
                rows.remove(&key(&table, &event["before"]));
            }
            if !event["after"].is_null() {
                rows.insert(key(&table, &event["after"]), (number, event["after"].clone()));
            }
        }
        if let Phase::SnapshotComplete { consistent_from: from } = record.phase {
            consistent_from = Some(from);
        }
        for (table, reread) in &record.rereads {
            if reread.finished && reread.whole && !reread.holds(record.to_lsn) {
                let start = begun[table].1;
                held.entry(table.table.clone()).or_default().retain(|_, (written, _)| *written >= start);
            }
        }
        let settled = consistent_from.is_some_and(|from| from <= record.to_lsn);
        let holds = record.rereads.values().any(|reread| reread.holds(record.to_lsn));
        if let Some(source) = history.0.get(&record.to_lsn).filter(|_| settled && !holds) {
            let mut now: Tables = ["orders", "items"].map(|table| (table.to_owned(), BTreeMap::new())).into();
            for (table, rows) in &held {
                now.insert(table.clone(), rows.iter().map(|(key, (_, row))| (key.clone(), row.clone())).collect());
            }
            assert_eq!(&now, source, "at {} (record {number}: {record:?})", record.to_lsn);
            compared += 1;
        }
    }
    compared
}

async fn run(seed: u64) {
    let mut dice = Dice(seed, 0);
    let mut world = World::start(&(SHOP.to_owned() + &fill(15))).await;
    world.config.on_gap = GapPolicy::Resnapshot;
    world.config.snapshot.chunk_rows = 1 + dice.roll(6) as usize;
    world.config.snapshot.split_rows = 8;
    world.config.page_rows = 1 + dice.roll(5) as usize;
    world.config.tick_transactions = 1 + dice.roll(4) as usize;
    let mut history = History::default();
    history.look(&world).await;
    for _ in 0..12 {
        let (import, handle) = world.import_with_handle();
        import.until("the tail", |status| status.activity == Activity::Tailing).await;
        if dice.roll(3) == 0 {
            let table = if dice.roll(2) == 0 { "orders" } else { "items" };
            let key = |key: u64| Some(vec![key.to_string()]);
            let range = match dice.roll(2) {
                0 => AskedRange::default(),
                _ => AskedRange { from: key(dice.roll(10)), to: key(10 + dice.roll(2000)) },
            };
            // It may be busy with an earlier one.
            let _ = handle.resnapshot(TableName::new("dbo", table), range).await;
        }
        world.sql(&changes(&mut dice)).await;
        let lsn = history.look(&world).await;
        if dice.roll(3) > 0 {
            import.reaches(lsn).await;
        }
        if dice.roll(2) == 0 {
            import.until("the rereads' end", |status| status.tables.values().all(|table| table.reread.is_none())).await;
            world.sql(&changes(&mut dice)).await;
            let lsn = history.look(&world).await;
            import.reaches(lsn).await;
        }
        import.kill().await;
        for _ in 0..dice.roll(3) {
            world.sql(&changes(&mut dice)).await;
            history.look(&world).await;
        }
        if dice.roll(3) == 0 {
            world.sql(crate::rereads::PURGE).await;
        }
    }
    world.import_all_rereads().await;
    // One more change: a record without anything that is being read again.
    world.sql("UPDATE dbo.items SET product = 'last'; UPDATE dbo.orders SET total = 0;").await;
    history.look(&world).await;
    world.import_all().await;
    let compared = follow(&world, &history).await;
    assert!(compared >= 5, "seed {seed}: compared at {compared} LSNs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_records_tell_when_the_tables_are_as_of_one_lsn() {
    let seeds = std::env::var("TRIBUTARY_CHAOS_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    for seed in 1..=seeds {
        println!("seed {seed}");
        run(seed).await;
    }
}
