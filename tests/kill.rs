//! kill -9 of importer, joiner or both at random moments under load, again and again: in the end nothing is lost, nothing is doubled, nothing came out of order.
//!
//! `TRIBUTARY_KILL_ROUNDS` asks for more rounds than the suite's, `TRIBUTARY_SEED` for other ones; `make soak` does 200. What was done, and where the kills fell, is printed in the end.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use support::pipeline::{self, Pipeline};
use support::process::Process;
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const ROUNDS: usize = 30;
/// More rounds have a longer load behind them, and longer ends.
const ROUNDS_VARIABLE: &str = "TRIBUTARY_KILL_ROUNDS";
const ORDERS: i64 = 60;
const LIMIT: Duration = Duration::from_secs(60);

const ENTITY: &str = "entity: order
table: dbo.orders
fields: [id, revision]
many:
  items:
    table: dbo.items
    by: [order_id]
    fields: [id, revision]
aggregates:
  item_count: {count: items}
";

/// The same seeded load for the database and for the model of it that the test keeps: order → (revision, items with their revisions).
struct Load {
    random: ChaCha8Rng,
    model: BTreeMap<i64, (i64, BTreeMap<i64, i64>)>,
    revision: i64,
    next_item: i64,
    /// Row changes so far.
    changes: u64,
}

impl Load {
    fn new(seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), model: BTreeMap::new(), revision: 0, next_item: 1, changes: 0 }
    }

    /// One multi-table transaction: every row that it touches carries its revision, so that a torn document shows.
    async fn transaction(&mut self, client: &mut Client) {
        self.revision += 1;
        let revision = self.revision;
        let order = self.random.random_range(1..=ORDERS);
        let mut sql = String::from("BEGIN TRANSACTION; ");
        let entry = self.model.entry(order);
        let known = matches!(entry, std::collections::btree_map::Entry::Occupied(_));
        let (current, items) = entry.or_default();
        *current = revision;
        sql += &if known {
            format!("UPDATE dbo.orders SET revision = {revision} WHERE id = {order}; ")
        } else {
            format!("INSERT INTO dbo.orders (id, revision) VALUES ({order}, {revision}); ")
        };
        for (item, item_revision) in items.iter_mut() {
            *item_revision = revision;
            sql += &format!("UPDATE dbo.items SET revision = {revision} WHERE id = {item}; ");
        }
        if items.len() < 4 {
            items.insert(self.next_item, revision);
            sql += &format!("INSERT INTO dbo.items (id, order_id, revision) VALUES ({}, {order}, {revision}); ", self.next_item);
            self.next_item += 1;
        } else {
            let (item, _) = items.pop_first().unwrap();
            sql += &format!("DELETE FROM dbo.items WHERE id = {item}; ");
        }
        self.changes += sql.matches("; ").count() as u64 - 1;
        execute(client, &(sql + "COMMIT")).await;
    }

    fn documents(&self) -> BTreeMap<String, Value> {
        let document = |id: i64, revision: i64, items: &BTreeMap<i64, i64>| {
            let list: Vec<Value> = items.iter().map(|(id, revision)| json!({"id": id, "revision": revision})).collect();
            json!({"id": id, "revision": revision, "items": list, "item_count": list.len()})
        };
        self.model.iter().map(|(id, (revision, items))| (id.to_string(), document(*id, *revision, items))).collect()
    }
}

/// Every change that subscribers are given, from the oldest kept: no document is torn, and no key goes back to an older version. Answers how many there were.
async fn check_changes(url: &str, expected: usize) -> usize {
    let changes =
        support::http::events(&format!("{url}/v1/changes?entity=order&from=oldest"), |events| events.len() >= expected).await;
    let mut last: BTreeMap<String, (String, i64)> = BTreeMap::new();
    for change in &changes {
        let document = &change["data"];
        let revision = document["revision"].as_i64().unwrap();
        for item in document["items"].as_array().unwrap() {
            assert_eq!(item["revision"].as_i64(), Some(revision), "a torn document: {document}");
        }
        let key = change["partitionkey"].as_str().unwrap().to_owned();
        let version = change["lsn"].as_str().unwrap().to_owned();
        if let Some((older, older_revision)) = last.insert(key.clone(), (version.clone(), revision)) {
            assert!(older < version && older_revision < revision, "order {key} went from {older} to {version}");
        }
    }
    changes.len()
}

/// Who was killed, and what it was at.
#[derive(Default)]
struct Kills(BTreeMap<String, u64>);

impl Kills {
    /// `started`: it has done something since its start that could be waited for.
    fn count(&mut self, who: &str, started: bool, pipeline: &Pipeline) {
        let at = match who {
            _ if !started => "starting",
            "joiner" => "at work",
            _ if std::fs::read_to_string(pipeline.path("data/importer/progress.json"))
                .is_ok_and(|saved| saved.contains("\"tail\"")) =>
            {
                "in the tail"
            }
            _ => "in the snapshot",
        };
        *self.0.entry(format!("{who} {at}")).or_default() += 1;
    }
}

impl std::fmt::Display for Kills {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let each: Vec<String> = self.0.iter().map(|(place, count)| format!("{count} of the {place}")).collect();
        write!(f, "{} kills: {}", self.0.values().sum::<u64>(), each.join(", "))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_rounds_of_kill_lose_double_and_disorder_nothing() {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_121);
    println!("seed {seed} (TRIBUTARY_SEED replays it)");
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, revision int NOT NULL)").await;
    execute(
        &mut client,
        "CREATE TABLE dbo.items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL REFERENCES dbo.orders (id), revision int NOT NULL)",
    )
    .await;
    capture(&mut client, &["orders", "items"]).await;
    let mut load = Load::new(seed);
    for _ in 0..100 {
        load.transaction(&mut client).await;
    }
    let pipeline = Pipeline::init(&server, &[("order", ENTITY)]);
    // Two encodings: one that needs nothing, and one whose schema and dictionary have to be there before its records.
    let streams = "{embedded: {path: data/streams}}\n  per_table: {dbo.items: {encoding: protobuf, compression: zstd}}";
    pipeline.configure(&server, streams, "  - {type: sqlite, path: data/entities.db}\n");
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xdead);
    let mut importer = pipeline.start("importer");
    let mut joiner = pipeline.start("joiner");
    // A process says where its API is once.
    let mut url: Option<String> = None;
    let (mut kills, mut started) = (Kills::default(), false);
    for round in 0..rounds {
        for _ in 0..random.random_range(5..40) {
            load.transaction(&mut client).await;
        }
        let victims = random.random_range(0..3);
        if victims != 1 {
            kills.count("importer", started, &pipeline);
            importer.kill();
        }
        if victims != 0 {
            kills.count("joiner", started, &pipeline);
            joiner.kill();
        }
        load.transaction(&mut client).await;
        if victims != 1 {
            importer = pipeline.start("importer");
        }
        if victims != 0 {
            joiner = pipeline.start("joiner");
            url = None;
        }
        // Some rounds are killed while they start, the others once they work.
        started = random.random_bool(0.6);
        if started {
            let url = url.get_or_insert_with(|| api(&joiner)).clone();
            let expected = load.documents();
            let (key, document) = expected.iter().next().unwrap();
            wait_for(&format!("round {round}: order {key}"), LIMIT, async || {
                let answer = support::http::json(&format!("{url}/v1/entities/order/{key}")).await?;
                (answer == *document).then_some(())
            })
            .await;
        } else {
            // A random moment is what is wanted here, not a condition.
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        }
    }
    joiner.kill();
    joiner = pipeline.start("joiner");
    let url = api(&joiner);
    assert!(pipeline.path("schemas/tables/dbo.items.proto").is_file(), "the items were not published in Protobuf");
    let expected = load.documents();
    let latest = load.model.iter().max_by_key(|(_, (revision, _))| *revision).map(|(id, _)| id.to_string()).unwrap();
    pipeline::wait_for_document(&url, "order", &latest, LIMIT, |document| *document == expected[&latest]).await;
    assert_eq!(pipeline::entities(&url, "order").await, expected);
    let told = check_changes(&url, 100).await;
    assert!(importer.is_running() && joiner.is_running());
    // What stands in the streams more than once is told as that, and every range holds what its record promised.
    let config = pipeline.config();
    let (agrees, counted, errors) = support::process::run(&["stream", "count", "--config", support::process::text(&config)]);
    assert!(agrees, "{counted}{errors}");
    println!(
        "{rounds} rounds, {kills}; {} transactions with {} changes of rows, {} documents, {told} changes told; mismatches: 0",
        load.revision,
        load.changes,
        expected.len()
    );
}

fn api(joiner: &Process) -> String {
    joiner.line_after("API on ").trim().to_owned()
}
