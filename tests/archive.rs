//! The archive over the real binary: archived beside the pipeline, replayed, verified, and read by a joiner that begins with nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use support::databases::{Database, api, command, folder, wait_until_joined};
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const EMBEDDED: &str = "{embedded: {path: data/streams, sync: false, segment_bytes: 500}}";
const ORDER: &str = "entity: order\ntable: dbo.orders\nmany:\n  items: {table: dbo.items, by: [order_id]}\n";

async fn shop(encoding: &str) -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(
        &mut client,
        "CREATE TABLE dbo.items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL, amount decimal(10,2) NULL)",
    )
    .await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (0, 'OLD'), (1, 'OLD')").await;
    execute(&mut client, "INSERT INTO dbo.items VALUES (1, 0, 1.50), (2, 1, 2.00), (3, 1, NULL)").await;
    capture(&mut client, &["orders", "items"]).await;
    let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
    pipeline.configure(&server, EMBEDDED, "  - {type: sqlite, path: data/entities.db}\n");
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let config = config.replace("streams:\n", &format!("streams:\n{encoding}"));
    std::fs::write(pipeline.config(), config + "archive:\n  store: {local: {path: archive}}\n  interval_seconds: 0\n").unwrap();
    (server, client, pipeline)
}

async fn change(client: &mut Client, rounds: std::ops::Range<i32>) {
    for n in rounds {
        let (order, item) = (n + 10, n + 100);
        let statement = format!(
            "BEGIN TRANSACTION; INSERT INTO dbo.orders VALUES ({order}, 'NEW'); INSERT INTO dbo.items VALUES ({item}, {order}, {n}.25); \
             UPDATE dbo.orders SET status = 's{n}' WHERE id = 1; DELETE FROM dbo.items WHERE id = {}; COMMIT",
            item - 3
        );
        execute(client, &statement).await;
    }
}

/// Runs a command to its end.
fn run(pipeline: &Pipeline, arguments: &[&str]) -> Output {
    let config = pipeline.config();
    let (command, more) = arguments.split_first().unwrap();
    tributary(&[&[*command, "--config", text(&config)], more].concat())
        .env(PASSWORD_VARIABLE, &pipeline.password)
        .output()
        .unwrap()
}

fn said(pipeline: &Pipeline, arguments: &[&str], code: i32) -> String {
    let output = run(pipeline, arguments);
    let all = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

fn plan(pipeline: &Pipeline, arguments: &[&str]) -> Value {
    let output = run(pipeline, &[&["replay", "--dry-run", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn replayed(pipeline: &Pipeline, arguments: &[&str]) -> Vec<Value> {
    let output = run(pipeline, &[&["replay"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

/// The last order, as all that is published.
async fn wait_for_order(url: &str, key: i32) -> BTreeMap<String, Value> {
    pipeline::wait_for_document(url, "order", &key.to_string(), LIMIT, |_| true).await;
    pipeline::entities(url, "order").await
}

fn objects(pipeline: &Pipeline, table: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for day in std::fs::read_dir(pipeline.path("archive/events").join(table)).unwrap() {
        found.extend(std::fs::read_dir(day.unwrap().path()).unwrap().map(|object| object.unwrap().path()));
    }
    found.sort();
    found
}

async fn what_is_archived_is_replayed_and_builds_a_joiner(encoding: &str) {
    let (_server, mut client, pipeline) = shop(encoding).await;
    let (mut process, url) = pipeline.run();
    pipeline::wait_for_document(&url, "order", "0", LIMIT, |_| true).await;
    change(&mut client, 0..12).await;
    let expected = wait_for_order(&url, 21).await;
    assert!(process.terminate().success());

    assert!(said(&pipeline, &["check"], 0).contains("is complete up to 0000"));
    // The last segment was written at the end.
    let whole = plan(&pipeline, &[]);
    assert_eq!(whole["tables"]["dbo.orders"]["events"], 2 + 12 * 2);
    assert_eq!(whole["tables"]["dbo.items"]["events"], 3 + 12 + 12 - 3);
    let table = said(&pipeline, &["replay", "--dry-run"], 0);
    assert!(table.contains("events/table=dbo.orders/date=") && table.contains("tpch.events"), "{table}");
    let events = replayed(&pipeline, &[]);
    assert_eq!(events.len(), 26 + 24);
    let lsn = |event: &Value| event["source"]["commit_lsn"].as_str().unwrap().to_owned();
    assert!(events.is_sorted_by_key(lsn));
    let middle = lsn(&events[20]);
    let later: Vec<Value> = events.iter().filter(|event| lsn(event) > middle).cloned().collect();
    assert_eq!(replayed(&pipeline, &["--from", &middle]), later);
    let orders = replayed(&pipeline, &["--from", &middle, "--table", "dbo.orders"]);
    assert!(!orders.is_empty() && orders.iter().all(|event| event["source"]["table"] == "orders"));
    assert!(said(&pipeline, &["verify", "--archive"], 0).contains("Every object is as it was written"));

    // A joiner that begins with nothing, where the streams have forgotten what is archived.
    std::fs::remove_dir_all(pipeline.path("data/state")).unwrap();
    for entry in std::fs::read_dir(pipeline.path("data")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    pipeline.forget_archived("archive", &["tpch.events", "tpch.progress"]);
    let (mut process, url) = pipeline.run();
    assert_eq!(wait_for_order(&url, 21).await, expected);
    change(&mut client, 12..15).await;
    assert_eq!(wait_for_order(&url, 24).await.len(), expected.len() + 3);
    assert!(process.terminate().success());

    let object = objects(&pipeline, "table=dbo.items").pop().unwrap();
    std::fs::remove_file(&object).unwrap();
    let told = said(&pipeline, &["verify", "--archive"], 1);
    let name = object.file_name().unwrap().to_str().unwrap();
    assert!(told.contains(name) && told.contains("is gone") && told.contains("dbo.items at stream tpch.events"), "{told}");
}

#[tokio::test]
async fn json_events_come_back() {
    what_is_archived_is_replayed_and_builds_a_joiner("").await;
}

#[tokio::test]
async fn compressed_avro_events_come_back() {
    what_is_archived_is_replayed_and_builds_a_joiner("  encoding: avro\n  compression: zstd\n").await;
}

#[tokio::test]
async fn of_two_archivers_one_waits_and_takes_over() {
    let (_server, mut client, pipeline) = shop("").await;
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), config + "  lease_seconds: 2\n").unwrap();
    let (mut process, url) = pipeline.run();
    pipeline::wait_for_document(&url, "order", "0", LIMIT, |_| true).await;
    let archive = async || http::json(&format!("{url}/v1/status")).await.map(|status| status["archive"].clone());
    wait_for("it archives", LIMIT, async || archive().await.filter(|archive| archive["phase"] == "archiving")).await;
    let mut second = pipeline.start("archive");
    wait_for("the second waits", LIMIT, async || second.log().contains("waiting to take over").then_some(())).await;
    change(&mut client, 0..6).await;
    let all = async || {
        let status = archive().await?;
        (status["tables"]["dbo.orders"]["archived"] == 2 + 6 * 2 && status["lag_ms"] == 0).then_some(status)
    };
    let status = wait_for("everything is archived", LIMIT, all).await;
    assert!(status["streams"]["tpch.events"].is_object() && status["missing"] == 0, "{status}");
    let shown = tributary(&["status", "--url", &url]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains(": archiving, complete up to 0000") && shown.contains("dbo.orders  14"), "{shown}");
    // Without a word.
    process.kill();
    let mut importer = pipeline.start("importer");
    change(&mut client, 6..9).await;
    wait_for("the second goes on", LIMIT, async || {
        let events = plan(&pipeline, &[])["tables"]["dbo.orders"]["events"].as_u64();
        (events? >= 2 + 9 * 2).then_some(())
    })
    .await;
    assert!(importer.terminate().success() && second.terminate().success());
    assert!(said(&pipeline, &["verify", "--archive"], 0).contains("Every object is as it was written"));
}

#[tokio::test]
async fn an_archiver_runs_by_itself() {
    let (_server, mut client, pipeline) = shop("").await;
    let mut archiver = pipeline.start("archive");
    let mut importer = pipeline.start("importer");
    change(&mut client, 0..4).await;
    // As rows of the snapshot, or as changes.
    wait_for("all orders in the archive", LIMIT, async || {
        let events = plan(&pipeline, &[])["tables"]["dbo.orders"]["events"].as_u64();
        (events? >= 6).then_some(())
    })
    .await;
    assert!(importer.terminate().success() && archiver.terminate().success());
    assert!(said(&pipeline, &["verify", "--archive"], 0).contains("Every object is as it was written"));

    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let (without, _) = config.split_once("archive:").unwrap();
    std::fs::write(pipeline.config(), without).unwrap();
    for command in [&["archive"][..], &["replay"], &["verify", "--archive"]] {
        assert!(said(&pipeline, command, 1).contains("add an `archive` section"), "{command:?}");
    }
}

/// Two databases, each with an archive.
fn of_two(servers: &[SqlServer; 2]) -> Pipeline {
    let pipeline = folder([&servers[0], &servers[1]], "archive: {store: {local: {path: archive}}, interval_seconds: 0}\n");
    let configured = std::fs::read_to_string(pipeline.config()).unwrap();
    let configured = configured.replace("{path: data/streams}", "{path: data/streams, sync: false, segment_bytes: 500}");
    std::fs::write(pipeline.config(), configured).unwrap();
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_source_archived_builds_a_joiner_that_begins_with_nothing() {
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    let pipeline = of_two(&servers);
    let mut process = pipeline.start("run");
    for _ in 0..3 {
        for _ in 0..15 {
            shop.transaction(&mut random).await;
            bank.transaction(&mut random).await;
        }
        wait_until_joined(&api(&process), &shop, &bank).await;
        process.kill();
        process = pipeline.start("run");
    }
    let url = api(&process);
    let archived = wait_for("two archivers", LIMIT, async || {
        let archives = http::json(&format!("{url}/v1/status")).await?["archives"].as_array()?.clone();
        let works = |archive: &Value| archive["phase"] == "archiving" && archive["lag_ms"] == 0;
        archives.iter().all(works).then_some(archives)
    })
    .await;
    let of: Vec<&str> = archived.iter().filter_map(|archive| archive["source"].as_str()).collect();
    assert_eq!(of, ["bank", "shop"]);
    let metrics = http::get(&format!("{url}/metrics"), &[]).await.unwrap().2;
    assert!(metrics.contains("tributary_archive_active{source=\"bank\"} 1"), "{metrics}");
    assert!(process.terminate().success());
    let said = |arguments: &[&str], expected: &[&str]| {
        let (well, told) = command(&pipeline, arguments);
        assert!(well && expected.iter().all(|expected| told.contains(expected)), "{told}");
        told
    };
    let checked = said(&["check"], &["bank: archive", "shop: archive"]);
    assert_eq!(checked.matches("is complete up to 0000").count(), 2, "{checked}");
    let whole = "Every object is as it was written";
    assert_eq!(said(&["verify", "--archive"], &["bank: ", "shop: "]).matches(whole).count(), 2);
    let events = said(&["replay", "--source", "bank"], &["payments"]);
    assert!(!events.contains("\"items\""), "{events}");
    let (well, told) = command(&pipeline, &["replay"]);
    assert!(!well && told.contains("bank,shop") && told.contains("--source"), "{told}");

    // Neither state nor target, and the streams have forgotten what is archived.
    pipeline.forget_archived("archive/bank", &["bank.events", "bank.progress"]);
    pipeline.forget_archived("archive/shop", &["shop.events", "shop.progress"]);
    std::fs::remove_dir_all(pipeline.path("data/state")).unwrap();
    std::fs::remove_file(pipeline.path("data/entities.db")).unwrap();
    // Nobody publishes: what is there is archived, or in the streams.
    let mut joiner = pipeline.start("joiner");
    wait_until_joined(&api(&joiner), &shop, &bank).await;
    assert!(joiner.terminate().success());
    let (mut process, url) = pipeline.run();
    shop.transaction(&mut random).await;
    bank.transaction(&mut random).await;
    wait_until_joined(&url, &shop, &bank).await;
    assert!(process.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_go_on_holds_up_no_other_source() {
    let mut random = ChaCha8Rng::seed_from_u64(19);
    let servers = [SqlServer::start("shop"), SqlServer::start("bank")];
    let (mut shop, mut bank) = (Database::new(&servers[0], "items").await, Database::new(&servers[1], "payments").await);
    let pipeline = of_two(&servers);
    let (mut process, url) = pipeline.run();
    for _ in 0..5 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    assert!(process.terminate().success());
    // Nobody archives, and one source's streams forget what would have been.
    let (mut importer, mut joiner) = (pipeline.start("importer"), pipeline.start("joiner"));
    for _ in 0..20 {
        bank.transaction(&mut random).await;
    }
    wait_until_joined(&api(&joiner), &shop, &bank).await;
    assert!(joiner.terminate().success() && importer.terminate().success());
    pipeline.forget(&["bank.events", "bank.progress"]);

    let (mut process, url) = pipeline.run();
    let archives = wait_for("one that has stopped, and another", LIMIT, async || {
        let archives = http::json(&format!("{url}/v1/status")).await?["archives"].as_array()?.clone();
        (archives[0]["phase"] == "failed" && archives[1]["phase"] == "archiving").then_some(archives)
    })
    .await;
    assert!(archives[0]["source"] == "bank" && archives[0]["error"].as_str().unwrap().contains("trimmed"), "{archives:?}");
    for _ in 0..5 {
        shop.transaction(&mut random).await;
        bank.transaction(&mut random).await;
    }
    wait_until_joined(&url, &shop, &bank).await;
    let shown = tributary(&["status", "--url", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(
        !shown.status.success() && text.contains("archive/bank: failed") && text.contains("archive/shop: archiving"),
        "{text}"
    );
    assert!(process.is_running() && process.terminate().success());
}
