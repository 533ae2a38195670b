//! Entities over two databases, over the real binary: each commits apart from the other, importer and joiner are killed at random moments, and every document is the join of each database as of one of its commits.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::progress::StreamName;
use schemas::{Lsn, Vector};
use serde_json::{Value, json};
use streams::embedded::{Embedded, Options};
use streams::{Provider, Record};
use support::databases::{Database, ORDERS, api, command, folder, wait_until_joined};
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::SqlServer;
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const ROUNDS: usize = 6;

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
        assert_eq!(sum(&vector(change["sources"].as_str().unwrap())), version, "{change}");
        let key = change["partitionkey"].as_str().unwrap().to_owned();
        if let Some((older, shop, bank)) = last.insert(key.clone(), (version, of_shop, of_bank)) {
            assert!(older < version && shop <= of_shop && bank <= of_bank, "order {key} went back: {change}");
        }
    }
    changes.len()
}

fn vector(text: &str) -> Vector {
    let vector: Vector = text.parse().unwrap();
    assert_eq!(vector.iter().map(|(source, _)| source).collect::<Vec<_>>(), ["bank", "shop"]);
    vector
}

fn sum(vector: &Vector) -> Lsn {
    vector.iter().fold(Lsn::ZERO, |sum, (_, lsn)| sum.plus(lsn))
}

/// Of each database, the LSN of its last transaction is named by an answer that has waited for it, and what an answer names is an LSN of that database.
async fn check_headers(url: &str, shop: &mut Database, bank: &mut Database) {
    for (source, database) in [("shop", shop), ("bank", bank)] {
        let captured = database.captured().await;
        let of_source = format!("{source}={captured}");
        let answer = http::get(&format!("{url}/v1/entities/order/1"), &[("tributary-min-lsn", &of_source)]).await.unwrap();
        assert_eq!(answer.0, 200, "{}", answer.2);
        let named = |name: &str| answer.1[name].to_str().unwrap().to_owned();
        let reflected = vector(&named("tributary-sources"));
        let lsn = reflected.get(source).unwrap();
        assert!(lsn >= captured && lsn <= database.captured().await, "{reflected}");
        assert_eq!(sum(&reflected), named("tributary-lsn").parse().unwrap(), "{reflected}");
        assert_eq!(named("etag"), format!("\"{}\"", named("tributary-version")));
    }
}

/// The sum of the sources' LSNs is the frontier.
async fn check_vector(url: &str) {
    let status = check_vector_of(url).await;
    let names: Vec<&str> = status["sources"].as_array().unwrap().iter().filter_map(|source| source["name"].as_str()).collect();
    assert_eq!(names, ["bank", "shop"]);
}

async fn check_vector_of(url: &str) -> Value {
    let status = http::json(&format!("{url}/v1/status")).await.unwrap();
    let lsn = |value: &Value| value.as_str().unwrap().parse::<Lsn>().unwrap();
    let joiner = &status["joiner"];
    let parts = ["bank", "shop"].map(|source| lsn(&joiner["sources"][source]["frontier"]));
    assert!(parts.iter().all(|part| !part.is_zero()), "{joiner}");
    assert_eq!(parts[0].plus(parts[1]), lsn(&joiner["frontier"]), "{joiner}");
    status
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
    let pipeline = folder([&servers[0], &servers[1]], "");
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
    check_headers(&url, &mut shop, &mut bank).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn one_source_that_is_down_holds_up_no_other() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    for _ in 0..20 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    let pipeline = folder([&servers[0], &servers[1]], "");
    let configured = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), configured.replace("# startup_patience: 30s", "startup_patience: 100ms")).unwrap();
    let (mut process, url) = pipeline.run();
    wait_until_joined(&url, &shop, &bank).await;
    bank.transaction(&mut random).await;
    wait_until_joined(&url, &shop, &bank).await;

    servers[1].process.as_mut().unwrap().kill();
    let said = async |url: &str, phases: &[&str]| {
        wait_for("what the importer says", LIMIT, async || {
            let status = http::json(&format!("{url}/v1/status")).await?;
            let bank = status["sources"].as_array()?.iter().find(|source| source["name"] == "bank")?.clone();
            (phases.contains(&bank["phase"].as_str()?) && bank["last_error"].is_string()).then_some(status)
        })
        .await
    };
    for _ in 0..10 {
        shop.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    let status = said(&url, &["retrying", "stopped"]).await;
    let age = |source: &str| status["joiner"]["sources"][source]["age_ms"].as_u64().unwrap();
    assert!(age("shop") <= age("bank"), "{status}");
    let metrics = http::get(&format!("{url}/metrics"), &[]).await.unwrap().2;
    for series in ["source_commit_time_seconds{source=\"bank\"}", "importer_lag_seconds{source=\"shop\"}"] {
        assert!(metrics.contains(series), "{metrics}");
    }

    // A start while it is down: what was read of it is there, and the other goes on.
    assert!(process.terminate().success());
    let (mut process, url) = pipeline.run();
    for _ in 0..10 {
        shop.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    said(&url, &["stopped"]).await;
    shop.transaction(&mut random).await;
    wait_until_joined(&url, &shop, &bank).await;
    let shown = tributary(&["status", "--url", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(!shown.status.success() && text.contains("source bank: stopped") && text.contains("of bank: live"), "{text}");
    assert!(process.is_running() && process.terminate().success());
}

/// What a target shows never goes back, of neither database, whoever writes it.
async fn watch(url: Arc<Mutex<String>>) {
    let mut last: BTreeMap<String, [i64; 2]> = BTreeMap::new();
    loop {
        let asked = url.lock().unwrap().clone();
        for (key, document) in pipeline::entities_if_answered(&asked, "order").await.unwrap_or_default() {
            let revisions =
                [&document["revision"], &document["settlement"]["revision"]].map(|of| of.as_i64().unwrap_or_default());
            for (rows, revision) in ["items", "payments"].into_iter().zip(revisions) {
                let torn = document[rows].as_array().unwrap().iter().any(|row| row["revision"] != revision);
                assert!(!torn, "a torn document: {document}");
            }
            let before = last.insert(key.clone(), revisions).unwrap_or_default();
            assert!(before[0] <= revisions[0] && before[1] <= revisions[1], "order {key} went back from {before:?}: {document}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_by_takes_over_with_what_each_source_has() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    for _ in 0..30 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    let pipeline = folder([&servers[0], &servers[1]], "");
    let configs = ["first", "second"].map(|name| pipeline.another(name, "joiner: {lease: {file: {path: data/lease}}}\n"));
    let _importer = pipeline.start("importer");
    let start = |config: &std::path::Path| {
        let process = pipeline.start_with("joiner", config);
        let url = api(&process);
        (process, url)
    };
    let stands_by = async |url: &str| {
        wait_for("one that stands by", LIMIT, async || {
            let joiner = http::json(&format!("{url}/v1/status")).await?["joiner"].clone();
            (joiner["phase"] == "live" && joiner["standby"] == true).then_some(())
        })
        .await;
    };
    let mut working = start(&configs[0]);
    wait_until_joined(&working.1, &shop, &bank).await;
    let mut waiting = start(&configs[1]);
    stands_by(&waiting.1).await;
    let saved = pipeline.path("data/lease/progress.json");
    let is_saved = async || std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("sources")).then_some(());
    wait_for("what the sink has confirmed", LIMIT, is_saved).await;
    let url = Arc::new(Mutex::new(waiting.1.clone()));
    let watching = tokio::spawn(watch(url.clone()));
    for round in 0..4 {
        for _ in 0..random.random_range(20..60) {
            let database = if random.random_bool(0.5) { &mut shop } else { &mut bank };
            database.transaction(&mut random).await;
        }
        working.0.kill();
        for _ in 0..5 {
            shop.transaction(&mut random).await;
            bank.transaction(&mut random).await;
        }
        wait_until_joined(&waiting.1, &shop, &bank).await;
        if round == 0 {
            let log = waiting.0.log();
            assert!(log.contains("the sink is followed from where the predecessor had come"), "{log}");
        }
        check_vector_of(&waiting.1).await;
        let again = start(&configs[round % 2]);
        stands_by(&again.1).await;
        *url.lock().unwrap() = again.1.clone();
        (working, waiting) = (waiting, again);
    }
    assert!(!watching.is_finished(), "{:?}", watching.await);
    watching.abort();
    assert!(working.0.terminate().success() && waiting.0.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_stand_apart_in_both_sources_are_merged_from_their_checkpoints() {
    let mut random = ChaCha8Rng::seed_from_u64(23);
    let servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    let pipeline = folder([&servers[0], &servers[1]], "");
    let _importer = pipeline.start("importer");
    let config = |name: &str, range: &str| {
        pipeline.another(
            name,
            &format!("checkpoints: {{store: {{local: {{path: checkpoints}}}}, every_seconds: 1}}\njoiner: {{range: {range}}}\n"),
        )
    };
    for _ in 0..30 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    let start = |name: &str, range: &str| {
        let process = pipeline.start_with("joiner", &config(name, range));
        let url = api(&process);
        (process, url)
    };
    let status = async |url: &str| http::json(&format!("{url}/v1/status")).await;
    let mut halves = vec![start("first", "0/2"), start("second", "1/2")];
    wait_until_joined(&halves[0].1, &shop, &bank).await;
    // One after the other, so that the second is ahead of the first.
    for (mut process, url) in halves.drain(..) {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
        let captured = [("bank", bank.captured().await), ("shop", shop.captured().await)];
        wait_for("a checkpoint of all that was committed", LIMIT, async || {
            let status = status(&url).await?;
            let read =
                |(name, lsn): &(&str, Lsn)| status["joiner"]["sources"][name]["frontier"].as_str() >= Some(&lsn.to_string());
            let kept = status["checkpoints"]["last"]["frontier"].as_str() >= status["joiner"]["frontier"].as_str();
            (captured.iter().all(read) && kept).then_some(())
        })
        .await;
        assert!(process.terminate().success(), "{}", process.log());
    }
    let merged = config("merged", "0/1");
    let restore = tributary(&["restore", "0/2:latest", "1/2:latest", "--config", text(&merged)])
        .env(PASSWORD_VARIABLE, &pipeline.password)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&restore.stdout).into_owned() + &String::from_utf8_lossy(&restore.stderr);
    assert!(restore.status.success() && told.contains("The next start goes on from there"), "{told}");
    let (mut process, url) = start("merged", "0/1");
    for _ in 0..10 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    wait_for("nothing that is waited for", LIMIT, async || status(&url).await?["joiner"]["warning"].is_null().then_some(()))
        .await;
    check_vector_of(&url).await;
    assert!(process.terminate().success());
}

const PAID: &str = "entity: order
table: dbo.orders
fields: [id, revision]
many:
  payments: {table: pay.payments, by: [order_id], fields: [id, amount]}
";

/// A database beside a service that says what was paid.
fn folder_with_a_service(server: &SqlServer) -> Pipeline {
    let pipeline = Pipeline::init(server, &[("order", PAID)]);
    let contracts = pipeline.path("schemas/tables");
    for folder in ["shop", "till"] {
        std::fs::create_dir_all(contracts.join(folder)).unwrap();
    }
    for table in ["dbo.orders.json", "dbo.items.json"] {
        std::fs::rename(contracts.join(table), contracts.join("shop").join(table)).unwrap();
    }
    let columns =
        json!({"id": {"x-sql-type": "int"}, "order_id": {"x-sql-type": "int"}, "amount": {"x-sql-type": "decimal(10,2)"}});
    let contract = json!({"x-table": "pay.payments", "x-key": ["id"], "type": "object", "properties": columns});
    std::fs::write(contracts.join("till/pay.payments.json"), contract.to_string()).unwrap();
    let config = format!(
        "sources:\n  - name: shop\n    url: {}\n    password: {{env: {PASSWORD_VARIABLE}}}\n    poll_interval: 20ms\n\
         \x20 - name: till\n    stream:\n      name: till-events\n      provider: {{embedded: {{path: service}}}}\n      \
         tables: {{pay.payments: {{when: {{/type: paid}}, row: /data}}}}\n\
         streams:\n  provider: {{embedded: {{path: data/streams}}}}\nsinks:\n  - {{type: sqlite, path: data/entities.db}}\napi:\n  listen: 127.0.0.1:0\n",
        server.url()
    );
    std::fs::write(pipeline.config(), config).unwrap();
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_and_a_services_stream_make_one_entity() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let server = SqlServer::start("shop");
    let mut shop = Database::new(&server, "items").await;
    let pipeline = folder_with_a_service(&server);
    let log = Embedded::open(Options { sync: false, ..Options::new(pipeline.path("service")) }).unwrap();
    let stream = StreamName("till-events".into());
    log.ensure(&stream, 2).await.unwrap();
    // By payment, its order and amount.
    let mut paid: BTreeMap<i64, (i64, String)> = BTreeMap::new();
    let mut process = pipeline.start("run");
    for round in 0..4 {
        for _ in 0..10 {
            shop.transaction(&mut random).await;
            let (id, order) = (random.random_range(1..=30), random.random_range(1..=ORDERS));
            let amount = format!("{}.50", random.random_range(1..1000));
            let event = json!({"type": "paid", "data": {"id": id, "order_id": order, "amount": amount}});
            let record = Record { partition_key: id.to_string(), data: event.to_string().into() };
            let mut writer = log.writer().await.unwrap();
            writer.append(&stream, vec![record]).await.unwrap();
            writer.flush().await.unwrap();
            paid.insert(id, (order, amount));
        }
        if round % 2 == 0 {
            process.kill();
            process = pipeline.start("run");
        }
    }
    let url = api(&process);
    let of_order = |order: i64| paid.iter().filter(move |(_, (of, _))| *of == order);
    let document = |(id, (revision, _)): (&i64, &(i64, Vec<i64>))| {
        let payments: Vec<Value> = of_order(*id).map(|(id, (_, amount))| json!({"id": id, "amount": amount})).collect();
        (id.to_string(), json!({"id": id, "revision": revision, "payments": payments}))
    };
    let expected: BTreeMap<String, Value> = shop.model.iter().map(document).collect();
    wait_for("every order with what was paid", LIMIT, async || {
        (pipeline::entities_if_answered(&url, "order").await? == expected).then_some(())
    })
    .await;
    // Documents of a load are seen before it has ended.
    let answer = wait_for("an answer that names its LSN", LIMIT, async || {
        http::get(&format!("{url}/v1/entities/order"), &[]).await.filter(|answer| answer.1.contains_key("tributary-lsn"))
    })
    .await;
    let reflected: Vector = answer.1["tributary-sources"].to_str().unwrap().parse().unwrap();
    assert_eq!(reflected.iter().map(|(source, _)| source).collect::<Vec<_>>(), ["shop", "till"]);
    assert_eq!(sum(&reflected), answer.1["tributary-lsn"].to_str().unwrap().parse().unwrap());
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
    let configured = format!("sources:\n{}{}streams: {{provider: {{memory: {{}}}}}}\n", source("bank"), source("shop"));
    std::fs::write(&config, configured).unwrap();
    let explained = |table: &str| {
        std::fs::write(entities.join("order.yaml"), format!("entity: order\ntable: {table}\n")).unwrap();
        let output = tributary(&["entity", "explain", "order", "--config", text(&config)]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let (well, told) = explained("dbo.orders");
    assert!(!well && told.contains("write bank.dbo.orders or shop.dbo.orders"), "{told}");
    let (well, told) = explained("shop.dbo.orders");
    assert!(well && told.contains("shop.dbo.orders"), "{told}");
}
