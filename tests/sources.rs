//! Entities over two databases, over the real binary: each commits apart from the other, importer and joiner are killed at random moments, and every document is the join of each database as of one of its commits.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::Lsn;
use serde_json::{Value, json};
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{Process, text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const ROUNDS: usize = 6;
const ORDERS: i64 = 12;

/// Both databases have a table `dbo.orders`; of the others, the name alone says which is meant.
const ENTITY: &str = "entity: order
table: shop.dbo.orders
fields: [id, revision]
one:
  settlement: {table: bank.dbo.orders, by: [id], fields: [revision]}
many:
  items: {table: dbo.items, by: [order_id], fields: [id, revision]}
  payments: {table: dbo.payments, by: [order_id], fields: [id, revision]}
";

/// One of the databases: of each order, a row in `orders` and some in another table, all with the revision that the order had last.
struct Database {
    client: Client,
    others: &'static str,
    revision: i64,
    next: i64,
    /// By order: its revision, and the keys of the other rows.
    model: BTreeMap<i64, (i64, Vec<i64>)>,
}

impl Database {
    async fn new(server: &SqlServer, others: &'static str) -> Self {
        let mut client = server.client().await;
        execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, revision int NOT NULL)").await;
        let columns = "id int NOT NULL PRIMARY KEY, order_id int NOT NULL, revision int NOT NULL";
        execute(&mut client, &format!("CREATE TABLE dbo.{others} ({columns})")).await;
        capture(&mut client, &["orders", others]).await;
        Self { client, others, revision: 0, next: 0, model: BTreeMap::new() }
    }

    async fn transaction(&mut self, random: &mut ChaCha8Rng) {
        self.revision += 1;
        let (order, revision, others) = (random.random_range(1..=ORDERS), self.revision, self.others);
        let mut sql = String::from("BEGIN TRANSACTION; ");
        sql += &match self.model.get(&order) {
            Some(_) => format!(
                "UPDATE dbo.orders SET revision = {revision} WHERE id = {order}; UPDATE dbo.{others} SET revision = {revision} WHERE order_id = {order}; "
            ),
            None => format!("INSERT INTO dbo.orders (id, revision) VALUES ({order}, {revision}); "),
        };
        let (current, keys) = self.model.entry(order).or_default();
        *current = revision;
        if keys.len() < 3 {
            self.next += 1;
            keys.push(self.next);
            sql += &format!("INSERT INTO dbo.{others} (id, order_id, revision) VALUES ({}, {order}, {revision}); ", self.next);
        } else {
            sql += &format!("DELETE FROM dbo.{others} WHERE id = {}; ", keys.remove(0));
        }
        execute(&mut self.client, &(sql + "COMMIT")).await;
    }

    fn rows(&self, order: i64) -> Value {
        let of_order = self.model.get(&order);
        let rows =
            of_order.into_iter().flat_map(|(revision, keys)| keys.iter().map(move |id| json!({"id": id, "revision": revision})));
        rows.collect()
    }
}

fn documents(shop: &Database, bank: &Database) -> BTreeMap<String, Value> {
    let document = |(id, (revision, _)): (&i64, &(i64, Vec<i64>))| {
        let settlement = bank.model.get(id).map_or(Value::Null, |(revision, _)| json!({"revision": revision}));
        let (items, payments) = (shop.rows(*id), bank.rows(*id));
        let document = json!({"id": id, "revision": revision, "settlement": settlement, "items": items, "payments": payments});
        (id.to_string(), document)
    };
    shop.model.iter().map(document).collect()
}

/// A folder with the contracts of both databases, each as `tributary init` writes them.
fn folder(servers: [&SqlServer; 2]) -> Pipeline {
    let pipeline = Pipeline::init(servers[0], &[("order", ENTITY)]);
    for server in servers {
        let of_one = Pipeline::init(server, &[]);
        let contracts = pipeline.path(&format!("schemas/tables/{}", server.database));
        std::fs::create_dir_all(&contracts).unwrap();
        for file in std::fs::read_dir(of_one.path("schemas/tables")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), contracts.join(file.file_name())).unwrap();
        }
    }
    for file in std::fs::read_dir(pipeline.path("schemas/tables")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let source = |server: &SqlServer| {
        format!(
            "  - name: {}\n    url: {}\n    password: {{env: {PASSWORD_VARIABLE}}}\n    poll_interval: 20ms\n",
            server.database,
            server.url()
        )
    };
    let config = format!(
        "sources:\n{}{}streams:\n  provider: {{embedded: {{path: data/streams}}}}\nsinks:\n  - {{type: sqlite, path: data/entities.db}}\napi:\n  listen: 127.0.0.1:0\n",
        source(servers[0]),
        source(servers[1])
    );
    std::fs::write(pipeline.config(), config).unwrap();
    pipeline
}

/// What subscribers are given, from the oldest kept: no document is torn in what it has of one database, none goes back, and versions only grow.
async fn check_changes(url: &str) -> usize {
    let changes = http::events(&format!("{url}/v1/changes?entity=order&from=oldest"), |_| false).await;
    let mut last: BTreeMap<String, (Lsn, i64, i64)> = BTreeMap::new();
    for change in &changes {
        let document = &change["data"];
        let of_shop = document["revision"].as_i64().unwrap();
        let of_bank = document["settlement"]["revision"].as_i64().unwrap_or_default();
        for (rows, revision) in [("items", of_shop), ("payments", of_bank)] {
            for row in document[rows].as_array().unwrap() {
                assert_eq!(row["revision"].as_i64(), Some(revision), "a torn document: {document}");
            }
        }
        let version: Lsn = change["lsn"].as_str().unwrap().parse().unwrap();
        let key = change["partitionkey"].as_str().unwrap().to_owned();
        if let Some((older, shop, bank)) = last.insert(key.clone(), (version, of_shop, of_bank)) {
            assert!(older < version && shop <= of_shop && bank <= of_bank, "order {key} went back: {change}");
        }
    }
    changes.len()
}

/// The sum of the sources' LSNs is the frontier.
async fn check_vector(url: &str) {
    let status = http::json(&format!("{url}/v1/status")).await.unwrap();
    let lsn = |value: &Value| value.as_str().unwrap().parse::<Lsn>().unwrap();
    let joiner = &status["joiner"];
    let parts = ["bank", "shop"].map(|source| lsn(&joiner["sources"][source]["frontier"]));
    assert!(parts.iter().all(|part| !part.is_zero()), "{joiner}");
    assert_eq!(parts[0].plus(parts[1]), lsn(&joiner["frontier"]), "{joiner}");
    let names: Vec<&str> = status["sources"].as_array().unwrap().iter().filter_map(|source| source["name"].as_str()).collect();
    assert_eq!(names, ["bank", "shop"]);
}

fn command(pipeline: &Pipeline, arguments: &[&str]) -> (bool, String) {
    let mut command = tributary(&[arguments, &["--config", text(&pipeline.config())]].concat());
    let output = command.env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), told)
}

async fn wait_until_joined(url: &str, shop: &Database, bank: &Database) {
    let expected = documents(shop, bank);
    wait_for("every order as the databases have it", LIMIT, async || {
        (pipeline::entities_if_answered(url, "order").await? == expected).then_some(())
    })
    .await;
}

fn api(process: &Process) -> String {
    process.line_after("API on ").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_the_join_of_two_databases_whatever_is_killed() {
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_123);
    println!("seed {seed} (TRIBUTARY_SEED replays it)");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    for _ in 0..20 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    let pipeline = folder([&servers[0], &servers[1]]);
    let (well, told) = command(&pipeline, &["check"]);
    assert!(well && told.contains("bank: ") && told.contains("shop: ") && told.contains("4 table contracts"), "{told}");
    let mut process = pipeline.start("run");
    for _ in 0..ROUNDS {
        for _ in 0..random.random_range(5..40) {
            let database = if random.random_bool(0.5) { &mut shop } else { &mut bank };
            database.transaction(&mut random).await;
        }
        // A random moment is what is wanted here, not a condition.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..600))).await;
        process.kill();
        process = pipeline.start("run");
    }
    let url = api(&process);
    wait_until_joined(&url, &shop, &bank).await;
    // What a load has told stands in no outbox.
    for _ in 0..30 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    let changes = check_changes(&url).await;
    println!("{changes} changes seen");
    assert!(changes > 0);
    check_vector(&url).await;
    let (well, told) = command(&pipeline, &["verify", "--source=bank"]);
    assert!(well, "{told}");
    let (well, told) = command(&pipeline, &["stream", "count", "--source", "shop"]);
    assert!(well, "{told}");
    let (well, told) = command(&pipeline, &["verify", "--source"]);
    assert!(!well && told.contains("bank,shop"), "{told}");
    assert!(process.terminate().success());

    // The state is lost; the target and the streams are not.
    shop.transaction(&mut random).await;
    std::fs::remove_dir_all(pipeline.path("data/state")).unwrap();
    let mut process = pipeline.start("run");
    let url = api(&process);
    wait_until_joined(&url, &shop, &bank).await;
    check_vector(&url).await;
    assert!(process.terminate().success());
}

#[test]
fn a_table_that_two_sources_have_is_called_by_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let contract =
        json!({"x-table": "dbo.orders", "x-key": ["id"], "type": "object", "properties": {"id": {"x-sql-type": "int"}}});
    for source in ["bank", "shop"] {
        let contracts = folder.path().join("schemas/tables").join(source);
        std::fs::create_dir_all(&contracts).unwrap();
        std::fs::write(contracts.join("dbo.orders.json"), contract.to_string()).unwrap();
    }
    let entities = folder.path().join("schemas/entities");
    std::fs::create_dir_all(&entities).unwrap();
    let config = folder.path().join("tributary.yaml");
    let source = |name: &str| format!("  - {{name: {name}, url: 'sqlserver://sa:x@127.0.0.1:1/{name}'}}\n");
    let text_of =
        |rest: &str| format!("sources:\n{}{}streams: {{provider: {{memory: {{}}}}}}\n{rest}", source("bank"), source("shop"));
    let explained = |table: &str, rest: &str| {
        std::fs::write(entities.join("order.yaml"), format!("entity: order\ntable: {table}\n")).unwrap();
        std::fs::write(&config, text_of(rest)).unwrap();
        let output = tributary(&["entity", "explain", "order", "--config", text(&config)]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let (well, told) = explained("dbo.orders", "");
    assert!(!well && told.contains("write bank.dbo.orders or shop.dbo.orders"), "{told}");
    let (well, told) = explained("shop.dbo.orders", "");
    assert!(well && told.contains("shop.dbo.orders"), "{told}");
    let (well, told) = explained("shop.dbo.orders", "archive: {store: {local: {path: archive}}}\n");
    assert!(!well && told.contains("an archive is of one source"), "{told}");
    let (well, told) = explained("shop.dbo.orders", "joiner: {lease: {file: {path: lease}}}\n");
    assert!(!well && told.contains("cannot stand by"), "{told}");
}
