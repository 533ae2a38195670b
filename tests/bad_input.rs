//! Bad input, each with a clear message that says what to do, a non-zero exit or a visible state, and nothing lost.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use schemas::progress::StreamName;
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{Process, text, tributary};
use support::sqlserver::{PASSWORD, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);
const SINK: &str = "  - {type: sqlite, path: data/entities.db}\n";
const STREAMS: &str = "{embedded: {path: data/streams}}";

/// A server with two related tables, captured, with one row each.
async fn shop() -> SqlServer {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(&mut client, "CREATE TABLE dbo.items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL REFERENCES dbo.orders (id), amount decimal(10,2) NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW')").await;
    execute(&mut client, "INSERT INTO dbo.items VALUES (1, 1, 9.50)").await;
    capture(&mut client, &["orders", "items"]).await;
    server
}

fn pipeline(server: &SqlServer) -> Pipeline {
    let pipeline = Pipeline::init(server, &[]);
    pipeline.configure(server, STREAMS, SINK);
    pipeline
}

/// Runs a command to its end with this password: it must fail; what it wrote.
fn failure(arguments: &[&str], password: &str) -> String {
    let output = tributary(arguments).env(PASSWORD_VARIABLE, password).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{arguments:?} should fail:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn assert_says(said: &str, expected: &[&str]) {
    for part in expected {
        assert!(said.to_lowercase().contains(&part.to_lowercase()), "no {part:?} in:\n{said}");
    }
}

fn init(url: &str, password: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    failure(&["init", "--source", url, "--password-env", PASSWORD_VARIABLE, "--out", text(folder.path())], password)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_cannot_be_used() {
    let server = shop().await;
    assert_says(&init(&server.url(), "wrong"), &["sa", "password"]);
    assert_says(&init("sqlserver://sa@127.0.0.1:1/shop?encrypt=off", PASSWORD), &["127.0.0.1:1", "reach"]);
    assert_says(&init(&server.url().replace("/shop", "/nowhere"), PASSWORD), &["nowhere"]);
    assert_says(&init("mysql://sa@127.0.0.1/shop", PASSWORD), &["sqlserver://"]);
    let mut client = server.client().await;
    execute(&mut client, "CREATE DATABASE plain").await;
    assert_says(&init(&server.url().replace("/shop", "/plain"), PASSWORD), &["plain", "sp_cdc_enable_db"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named() {
    let server = shop().await;
    let mut client = server.client().await;
    execute(&mut client, "CREATE LOGIN poor WITH PASSWORD = 'Tributary-1'; CREATE USER poor FOR LOGIN poor").await;
    assert_says(&init(&server.url().replace("sa@", "poor@"), PASSWORD), &["permission", "GRANT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn entity_definitions_are_checked_before_anything_runs() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    let place = pipeline.path("schemas/entities");
    let cases = [
        ("entity: e\ntable: dbo.ordres\n", vec!["dbo.ordres", "not captured"]),
        ("entity: e\ntable: dbo.orders\nfields: [id, statsu]\n", vec!["statsu", "status"]),
        ("entity: e\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: [order_nr]}}\n", vec!["order_nr", "dbo.items"]),
        ("entity: e\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: []}}\n", vec!["items", "by"]),
        ("entity: e\ntable: dbo.orders\naggregates: {n: {count: itmes}}\n", vec!["itmes"]),
        ("entity: e\ntable: dbo.orders\ntabel: dbo.items\n", vec!["tabel", "e.yaml"]),
        ("entity: e\ntable dbo.orders\n", vec!["e.yaml"]),
    ];
    for (definition, expected) in cases {
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("e.yaml"), definition).unwrap();
        assert_says(&failure(&["run", "--config", text(&pipeline.config())], PASSWORD), &expected);
        assert_says(&failure(&["check", "--config", text(&pipeline.config())], PASSWORD), &expected);
    }
    assert!(!pipeline.path("data").exists(), "nothing may have been started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typo_in_the_configuration_is_named_with_its_line() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    let good = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), good.replace("poll_interval", "pol_interval")).unwrap();
    assert_says(&failure(&["run", "--config", text(&pipeline.config())], PASSWORD), &["tributary.yaml", "pol_interval", "line"]);
    std::fs::write(pipeline.config(), &good).unwrap();
    let said = failure(&["run", "--config", "/nowhere/tributary.yaml"], PASSWORD);
    assert_says(&said, &["/nowhere/tributary.yaml", "tributary init"]);
    // The password's variable is not set.
    let output = tributary(&["run", "--config", text(&pipeline.config())]).env_remove(PASSWORD_VARIABLE).output().unwrap();
    assert!(!output.status.success());
    assert_says(&String::from_utf8_lossy(&output.stderr), &[PASSWORD_VARIABLE]);
    // Beyond loopback there must be a token.
    std::fs::write(pipeline.config(), good.replace("127.0.0.1:0", "0.0.0.0:0")).unwrap();
    assert_says(&failure(&["run", "--config", text(&pipeline.config())], PASSWORD), &["token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_breaks_its_contract_is_set_aside_and_counted() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    let contract = pipeline.path("schemas/tables/dbo.orders.json");
    let mut schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&contract).unwrap()).unwrap();
    schema["properties"]["status"]["enum"] = serde_json::json!(["NEW", "PAID"]);
    std::fs::write(&contract, schema.to_string()).unwrap();
    let (_process, url) = pipeline.run();
    pipeline::wait_for_document(&url, root(&pipeline), "1", LIMIT, |document| document["status"] == "NEW").await;
    let mut client = server.client().await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (2, 'BROKEN')").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (3, 'PAID')").await;
    pipeline::wait_for_document(&url, root(&pipeline), "3", LIMIT, |document| document["status"] == "PAID").await;
    assert_eq!(http::get(&format!("{url}/v1/entities/{}/2", root(&pipeline)), &[]).await.unwrap().0, 404);
    let status = wait_for("the dead letter in the status", LIMIT, async || {
        let status = http::json(&format!("{url}/v1/status")).await?;
        (status["source"]["dead_lettered_total"] == 1).then_some(status)
    })
    .await;
    assert_ne!(status["joiner"]["phase"], "failed", "{status}");
}

/// The name that `init` gave the entity whose root is dbo.orders.
fn root(pipeline: &Pipeline) -> &'static str {
    let names: Vec<String> = std::fs::read_dir(pipeline.path("schemas/entities"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    if names.iter().any(|name| name == "order.yaml") { "order" } else { "orders" }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_or_damaged_state_is_refused_and_left_alone() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    let (mut process, url) = pipeline.run();
    pipeline::wait_for_document(&url, root(&pipeline), "1", LIMIT, |_| true).await;
    assert!(process.terminate().success());
    // Damage.
    let state = pipeline.path("data/state");
    let current = state.join("db/CURRENT");
    let kept = std::fs::read(&current).unwrap();
    std::fs::write(&current, "nonsense").unwrap();
    assert_says(&failure(&["run", "--config", text(&pipeline.config())], PASSWORD), &[text(&state)]);
    // Mended, it runs on where it was.
    std::fs::write(&current, kept).unwrap();
    let (_process, url) = pipeline.run();
    pipeline::wait_for_document(&url, root(&pipeline), "1", LIMIT, |_| true).await;
    // Somebody else's folder.
    let other = Pipeline::init(&server, &[]);
    other.configure(&server, STREAMS, SINK);
    std::fs::create_dir_all(other.path("data/state")).unwrap();
    std::fs::write(other.path("data/state/holiday.jpg"), "not ours").unwrap();
    assert_says(&failure(&["run", "--config", text(&other.config())], PASSWORD), &["state"]);
    assert!(Path::new(&other.path("data/state/holiday.jpg")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_trimmed_past_our_position_is_told() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    let mut importer = pipeline.start("importer");
    let mut joiner = pipeline.start("joiner");
    let url = joiner.line_after("API on ").trim().to_owned();
    pipeline::wait_for_document(&url, root(&pipeline), "1", LIMIT, |_| true).await;
    joiner.kill();
    let mut client = server.client().await;
    execute(&mut client, "UPDATE dbo.orders SET status = 'LATER' WHERE id = 1").await;
    importer.kill();
    // What a retention that is too short leaves behind: the first segments are gone.
    trim(&pipeline.path("data/streams")).await;
    let said = joiner_failure(&pipeline);
    assert_says(&said, &["trimmed", "snapshot"]);
}

/// What a retention that is too short does: a writer whose segments are small and whose retention is one byte pushes out all that was there.
async fn trim(folder: &Path) {
    let config = format!("{{embedded: {{path: {}, segment_bytes: 1024, retention_bytes: 1}}}}", folder.display());
    let provider = streams::config::open(&serde_yaml_ng::from_str(&config).unwrap()).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    for _ in 0..8 {
        let record = streams::Record { partition_key: "1".into(), data: vec![b' '; 900].into() };
        writer.append(&StreamName("tpch.events".into()), vec![record]).await.unwrap();
        writer.flush().await.unwrap();
    }
}

fn joiner_failure(pipeline: &Pipeline) -> String {
    failure(&["joiner", "--config", text(&pipeline.config())], PASSWORD)
}

/// A disk of its own for the pipeline's data, filled when the file `fill` appears, and emptied again once the pipeline has ended; then the pipeline is started again.
const FULL_DISK: &str = r#"
set -u
mount -t tmpfs -o size=64m tmpfs "$FOLDER/data" || exit 9
"$TRIBUTARY" run --config "$FOLDER/tributary.yaml" &
until [ -e "$FOLDER/fill" ]; do sleep 0.05; done
cat /dev/zero > "$FOLDER/data/ballast" 2>/dev/null
echo "the disk is full"
wait $!
echo "the first run ended with $?"
rm "$FOLDER/data/ballast"
exec "$TRIBUTARY" run --config "$FOLDER/tributary.yaml"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_pipeline_and_nothing_is_lost() {
    let server = shop().await;
    let pipeline = pipeline(&server);
    std::fs::create_dir(pipeline.path("data")).unwrap();
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "bash", "-c", FULL_DISK]).env(PASSWORD_VARIABLE, PASSWORD).env_remove("RUST_LOG");
    command.env("FOLDER", pipeline.folder.path()).env("TRIBUTARY", env!("CARGO_BIN_EXE_tributary"));
    let process = Process::spawn("a pipeline on a small disk", &mut command);
    let url = process.line_after("API on ").trim().to_owned();
    pipeline::wait_for_document(&url, root(&pipeline), "1", LIMIT, |_| true).await;
    std::fs::write(pipeline.path("fill"), "").unwrap();
    process.line_after("the disk is full");
    let mut client = server.client().await;
    for id in 100..1500 {
        execute(&mut client, &format!("INSERT INTO dbo.orders VALUES ({id}, 'NEW')")).await;
    }
    assert_ne!(process.line_after("the first run ended with ").trim(), "0");
    assert_says(&process.log(), &["space"]);
    assert!(!process.log().contains("panicked"), "{}", process.log());
    // With space again, everything is there.
    let url = process.line_after("API on ").trim().to_owned();
    pipeline::wait_for_document(&url, root(&pipeline), "1499", LIMIT, |_| true).await;
    assert_eq!(pipeline::entities(&url, root(&pipeline)).await.len(), 1401);
}
