//! The archive over the real binary: archived beside the pipeline, replayed, verified, and read by a joiner that begins with nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
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
    forget(&pipeline);
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

/// Makes the embedded log forget all but the last segment of each stream, as its retention would.
fn forget(pipeline: &Pipeline) {
    for stream in ["tpch.events", "tpch.progress"] {
        let shard = pipeline.path("data/streams").join(stream).join("shard-0000");
        let mut segments: Vec<PathBuf> = std::fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        segments.sort();
        segments.pop();
        assert!(!segments.is_empty(), "{stream} has one segment: nothing is forgotten");
        segments.iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
    }
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
