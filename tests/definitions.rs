//! Entity definitions that change, over the real binary: told before, served in place, built anew beside the old ones, and killed on the way.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::http;
use support::pipeline::{PASSWORD_VARIABLE, Pipeline};
use support::process::{Process, text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const STATUS: &str = "entity: order\ntable: dbo.orders\nfields: [id, status]\n";
const NOTE: &str = "entity: order\ntable: dbo.orders\nfields: [id, note]\n";

async fn shop() -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    let table = "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL, note varchar(20) NOT NULL)";
    execute(&mut client, table).await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW', 'first')").await;
    capture(&mut client, &["orders"]).await;
    let pipeline = Pipeline::init(&server, &[("order", STATUS)]);
    pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", "  - {type: sqlite, path: data/entities.db}\n");
    (server, client, pipeline)
}

fn define(pipeline: &Pipeline, definition: &str) {
    std::fs::write(pipeline.path("schemas/entities/order.yaml"), definition).unwrap();
}

/// What `entity diff` says, and its exit code.
fn difference(pipeline: &Pipeline) -> (i32, String) {
    let mut command = tributary(&["entity", "diff", "--config", text(&pipeline.config())]);
    let output = command.env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr))
}

/// The order, from wherever the process serves it now: the address is another one once a state that was built has taken over.
async fn order(process: &Process) -> Option<Value> {
    let log = process.log();
    let url = log.lines().rev().find_map(|line| line.split_once("API on "))?.1.trim();
    http::json(&format!("{url}/v1/entities/order/1")).await
}

async fn shows(process: &Process, member: &str, value: &str) -> Value {
    let asked = async || order(process).await.filter(|order| order[member] == value);
    wait_for(&format!("an order whose {member} is {value}"), LIMIT, asked).await
}

#[tokio::test]
async fn definitions_change_in_place_or_by_a_rebuild() {
    let (_server, mut client, pipeline) = shop().await;
    assert!(difference(&pipeline).1.contains("There is no state yet"));
    let mut process = pipeline.start("run");
    shows(&process, "status", "NEW").await;

    // In place, told beside the process that runs.
    define(&pipeline, "entity: order\ntable: dbo.orders\nfields: [{number: id}, status]\n");
    let (code, told) = difference(&pipeline);
    assert!(code == 0 && told.contains("~ order: fields") && told.contains("In place"), "{code}: {told}");
    assert!(process.terminate().success());
    let mut process = pipeline.start("run");
    wait_for("an order under another name", LIMIT, async || order(&process).await.filter(|order| order["number"] == 1)).await;
    execute(&mut client, "UPDATE dbo.orders SET status = 'PAID', note = 'second' WHERE id = 1").await;
    shows(&process, "status", "PAID").await;
    assert!(process.terminate().success());

    // Not without another state.
    define(&pipeline, NOTE);
    let (code, told) = difference(&pipeline);
    assert!(code == 2 && told.contains("dbo.orders: the values of note are not kept"), "{code}: {told}");
    let mut process = pipeline.start("run");
    let order = shows(&process, "note", "second").await;
    assert_eq!(order.as_object().unwrap().len(), 2, "{order}");
    assert!(process.log().contains("another state is built for them"), "{}", process.log());
    execute(&mut client, "UPDATE dbo.orders SET note = 'third' WHERE id = 1").await;
    shows(&process, "note", "third").await;
    assert!(process.terminate().success());
    assert!(!pipeline.path("data/state.next").exists() && !pipeline.path("data/state.old").exists());
    assert_eq!(difference(&pipeline).1.trim(), "The state serves these definitions.");
}

#[tokio::test]
async fn a_rebuild_that_is_killed_goes_on() {
    let (_server, mut client, pipeline) = shop().await;
    let mut process = pipeline.start("run");
    shows(&process, "status", "NEW").await;
    assert!(process.terminate().success());
    // Killed as soon as it has come so far, or is through.
    let places = ["data/state.next", "data/state.next/identity.json", "data/state.next/db/CURRENT", "data/state.old"];
    for (round, place) in places.iter().enumerate() {
        let (definition, member, value) = if round % 2 == 0 { (NOTE, "note", "n") } else { (STATUS, "status", "s") };
        define(&pipeline, definition);
        let mut process = pipeline.start("run");
        let through = || process.log().matches("API on ").count() > 1;
        wait_for("a rebuild under way", LIMIT, async || (pipeline.path(place).exists() || through()).then_some(())).await;
        process.kill();
        let value = format!("{value}{round}");
        execute(&mut client, &format!("UPDATE dbo.orders SET {member} = '{value}' WHERE id = 1")).await;
        let mut process = pipeline.start("run");
        let order = shows(&process, member, &value).await;
        assert_eq!(order.as_object().unwrap().len(), 2, "{order}");
        assert!(process.terminate().success());
        assert!(!pipeline.path("data/state.next").exists() && !pipeline.path("data/state.old").exists());
    }
}
