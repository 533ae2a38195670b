//! Checkpoints over the real binary: killed, with an empty disk, rewound.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const ORDER: &str = "entity: order\ntable: dbo.orders\n";

async fn shop(store: &str) -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (0, 'OLD'), (1, 'OLD')").await;
    capture(&mut client, &["orders"]).await;
    let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
    pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", "  - {type: sqlite, path: data/entities.db}\n");
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), config + &format!("checkpoints:\n  store: {store}\n  every_seconds: 1\n")).unwrap();
    (server, client, pipeline)
}

async fn set(client: &mut Client, url: &str, status: &str) {
    execute(client, &format!("UPDATE dbo.orders SET status = '{status}' WHERE id = 1")).await;
    shows(url, status).await;
}

async fn shows(url: &str, status: &str) {
    pipeline::wait_for_document(url, "order", "1", LIMIT, |document| document["status"] == status).await;
}

async fn status(url: &str) -> Option<Value> {
    http::json(&format!("{url}/v1/status")).await
}

/// Waits until a checkpoint holds all that the joiner holds now.
async fn checkpointed(url: &str) {
    let frontier =
        wait_for("a frontier", LIMIT, async || status(url).await?["joiner"]["frontier"].as_str().map(str::to_owned)).await;
    let made = async || {
        let status = status(url).await?;
        (status["checkpoints"]["last"]["frontier"].as_str()? >= frontier.as_str()).then_some(())
    };
    wait_for("a checkpoint", LIMIT, made).await;
}

fn run(pipeline: &Pipeline, arguments: &[&str]) -> Output {
    let mut command = tributary(arguments);
    command.env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap()
}

fn said(pipeline: &Pipeline, arguments: &[&str], code: i32) -> String {
    let output = run(pipeline, arguments);
    let all = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

async fn killed_restored_and_rewound(store: &str) {
    let (_server, mut client, pipeline) = shop(store).await;
    let config = pipeline.config();
    let config = text(&config);
    let (mut process, url) = pipeline.run();
    shows(&url, "OLD").await;
    set(&mut client, &url, "one").await;
    let made = said(&pipeline, &["savepoint", "create", "one", "--url", &url], 0);
    assert!(made.contains("savepoint one (checkpoint ") && made.contains("holds everything up to 0000"), "{made}");
    assert!(said(&pipeline, &["savepoint", "create", "one", "--url", &url], 1).contains("there is a savepoint \"one\" already"));
    set(&mut client, &url, "two").await;
    checkpointed(&url).await;
    assert!(said(&pipeline, &["status", "--url", &url], 0).contains("\ncheckpoints "));
    assert!(said(&pipeline, &["restore", "one", "--config", config], 1).contains("in use by another process"));
    process.kill();

    // An empty disk, but for the streams; the sink is gone as well.
    std::fs::remove_dir_all(pipeline.path("data/state")).unwrap();
    for name in ["entities.db", "entities.db-wal", "entities.db-shm"] {
        let _ = std::fs::remove_file(pipeline.path("data").join(name));
    }
    let (mut process, url) = pipeline.run();
    shows(&url, "two").await;
    let restored = wait_for("the status", LIMIT, async || Some(status(&url).await?["checkpoints"]["restored"].clone())).await;
    assert!(restored["number"].as_u64().unwrap() > 2, "{restored}");
    assert!(process.log().contains("the joiner's state is restored"), "{}", process.log());
    assert!(said(&pipeline, &["status", "--url", &url], 0).contains("the state was restored from number"));
    set(&mut client, &url, "three").await;
    assert!(process.terminate().success());

    // Rewound, with a sink that is ahead and never goes back.
    let listed: Value = serde_json::from_str(&said(&pipeline, &["savepoint", "list", "--json", "--config", config], 0)).unwrap();
    assert!(listed.as_array().unwrap().iter().any(|entry| entry["names"][0] == "one"), "{listed}");
    let copy = pipeline.path("copy");
    said(&pipeline, &["restore", "latest", "--to", text(&copy), "--config", config], 0);
    assert!(copy.join("identity.json").exists());
    assert!(said(&pipeline, &["restore", "latest", "--to", text(&copy), "--config", config], 1).contains("is not empty"));
    assert!(said(&pipeline, &["restore", "nothing", "--config", config], 1).contains("no checkpoint \"nothing\""));
    let told = said(&pipeline, &["restore", "one", "--config", config], 0);
    assert!(told.contains("The next start goes on from there"), "{told}");
    let (mut process, url) = pipeline.run();
    let first = http::json(&format!("{url}/v1/entities/order/1")).await.unwrap();
    assert_eq!(first["status"], "three", "the sink went back");
    set(&mut client, &url, "four").await;
    assert_eq!(pipeline::entities(&url, "order").await.len(), 2);
    assert!(process.terminate().success());
    assert!(said(&pipeline, &["savepoint", "create", "four", "--config", config], 0).contains("savepoint four"));
    assert!(said(&pipeline, &["savepoint", "drop", "one", "--config", config], 0).contains("dropped"));
    said(&pipeline, &["savepoint", "drop", "one", "--config", config], 1);
}

#[tokio::test]
async fn a_killed_process_with_an_empty_disk_goes_on_from_a_local_folder() {
    killed_restored_and_rewound("{local: {path: checkpoints}}").await;
}

#[tokio::test]
async fn a_killed_process_with_an_empty_disk_goes_on_from_s3() {
    let aws = sinks::test_support::Ministack::start();
    aws.create_bucket("checkpoints").await;
    let endpoint = aws.endpoint_url();
    killed_restored_and_rewound(&format!(
        "{{s3: {{bucket: checkpoints, prefix: shop, endpoint: '{endpoint}', stand_in_credentials: true}}}}"
    ))
    .await;
}

#[tokio::test]
async fn definitions_that_have_changed_are_told_before_anything_is_restored() {
    let (_server, _client, pipeline) = shop("{local: {path: checkpoints}}").await;
    let (mut process, url) = pipeline.run();
    shows(&url, "OLD").await;
    checkpointed(&url).await;
    assert!(process.terminate().success());
    std::fs::remove_dir_all(pipeline.path("data/state")).unwrap();
    std::fs::write(pipeline.path("schemas/entities/order.yaml"), format!("{ORDER}where: id > 3\n")).unwrap();
    let told = said(&pipeline, &["run", "--config", text(&pipeline.config())], 1);
    assert!(told.contains("cannot be restored, and nothing was touched") && told.contains("restore: false"), "{told}");
    assert!(!pipeline.path("data/state").exists());
}
