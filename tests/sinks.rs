//! Sinks over the real binary: routes, dead letters, and what `check` says of targets.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use sinks::test_support::PostgresServer;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);

async fn connect(server: &PostgresServer) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn letters(arguments: &[&str]) -> Output {
    tributary(&[&["dead-letter"], arguments].concat()).env(PASSWORD_VARIABLE, "").output().unwrap()
}

async fn document(client: &tokio_postgres::Client, key: &str) -> Option<String> {
    let row = client.query_opt("SELECT document::text FROM public.\"order\" WHERE key = $1", &[&key]).await.ok()??;
    Some(row.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_past_its_limits_is_listed_until_it_fits() {
    let server = SqlServer::given_or_start("shop").await;
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY)").await;
    execute(&mut client, "CREATE TABLE dbo.items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1), (2)").await;
    execute(&mut client, "INSERT INTO dbo.items VALUES (1, 1), (2, 2)").await;
    capture(&mut client, &["orders", "items"]).await;
    let definition = "entity: order\ntable: dbo.orders\nlimits: {children: 2, exceeded: dead_letter}\nmany:\n  items: {table: dbo.items, by: [order_id], fields: [id]}\n";
    let pipeline = Pipeline::init(&server, &[("order", definition)]);
    pipeline.configure(&server, "{embedded: {path: data/streams}}", "  - {type: sqlite, path: data/entities.db}\n");
    let (mut process, url) = pipeline.run();
    let items = |count: usize| move |order: &Value| order["items"].as_array().is_some_and(|items| items.len() == count);
    pipeline::wait_for_document(&url, "order", "1", LIMIT, items(1)).await;
    execute(&mut client, "INSERT INTO dbo.items VALUES (3, 1), (4, 1)").await;
    execute(&mut client, "INSERT INTO dbo.items VALUES (5, 2)").await;
    pipeline::wait_for_document(&url, "order", "2", LIMIT, items(2)).await;
    let list = letters(&["list", "--url", &url, "--json"]);
    let list: Vec<Value> = serde_json::from_slice(&list.stdout).unwrap();
    let [letter] = list.as_slice() else { panic!("{list:?}") };
    assert_eq!((&letter["kind"], &letter["entity"], &letter["key"]), (&"document".into(), &"order".into(), &"1".into()));
    let (id, version) = (letter["id"].as_str().unwrap(), letter["version"].as_str().unwrap());
    let shown = said(&letters(&["list", "--url", &url]));
    assert!([id, "order  1 ", version, "more than 2 children"].iter().all(|part| shown.contains(part)), "{shown}");
    let shown = said(&letters(&["show", id, "--url", &url]));
    assert!(shown.contains("\"kind\": \"document\"") && shown.contains(version), "{shown}");
    let retried = letters(&["retry", id, "--url", &url]);
    assert!(!retried.status.success(), "{}", said(&retried));
    assert!(said(&retried).contains("definitions: 1. They are told as soon as they fit"), "{}", said(&retried));
    // What was told last stands meanwhile; the letter goes with what it is about.
    pipeline::wait_for_document(&url, "order", "1", LIMIT, items(1)).await;
    execute(&mut client, "DELETE FROM dbo.items WHERE id = 4").await;
    pipeline::wait_for_document(&url, "order", "1", LIMIT, items(2)).await;
    let shown = said(&letters(&["list", "--url", &url]));
    assert_eq!(shown, "no dead letters\n");
    assert!(process.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sink_refuses_is_kept_and_tried_again_and_what_is_not_routed_to_it_is_gone() {
    let (server, postgres) = (SqlServer::given_or_start("shop").await, PostgresServer::start());
    let (mut client, database) = (server.client().await, connect(&postgres).await);
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW'), (2, 'NEW')").await;
    capture(&mut client, &["orders"]).await;
    let pipeline = Pipeline::init(&server, &[("order", "entity: order\ntable: dbo.orders\n")]);
    let route = "{order: {where: \"status != 'HIDDEN'\", select: [id, {state: status}]}}";
    let sinks = format!(
        "  - {{type: sqlite, path: data/entities.db}}\n  - {{type: postgres, url: '{}', entities: {route}}}\n",
        postgres.url()
    );
    pipeline.configure(&server, "{embedded: {path: data/streams}}", &sinks);
    let check = tributary(&["check", "--config", text(&pipeline.config())]).env(PASSWORD_VARIABLE, &pipeline.password).output();
    let check = said(&check.unwrap());
    assert!(check.contains("sink postgres") && check.contains("0 of 1 tables are there"), "{check}");

    let (mut process, url) = pipeline.run();
    let in_postgres = async |key: &str, wanted: Option<&str>| {
        wait_for(&format!("order {key} as {wanted:?}"), LIMIT, async || {
            (document(&database, key).await.as_deref() == wanted).then_some(())
        })
        .await;
    };
    in_postgres("1", Some(r#"{"id": 1, "state": "NEW"}"#)).await;
    database.batch_execute("ALTER TABLE \"order\" ADD CONSTRAINT known CHECK (document->>'state' <> 'BAD')").await.unwrap();
    execute(&mut client, "UPDATE dbo.orders SET status = 'BAD' WHERE id = 1").await;
    execute(&mut client, "UPDATE dbo.orders SET status = 'HIDDEN' WHERE id = 2").await;
    in_postgres("2", None).await;
    let hidden = |order: &Value| order["status"] == "HIDDEN";
    pipeline::wait_for_document(&url, "order", "2", LIMIT, hidden).await;

    let list = wait_for("the letter", LIMIT, async || {
        let output = letters(&["list", "--url", &url, "--json"]);
        serde_json::from_slice::<Vec<Value>>(&output.stdout).ok().filter(|list| !list.is_empty())
    })
    .await;
    let id = list[0]["id"].as_str().unwrap();
    let shown = said(&letters(&["list", "--url", &url, "--sink", "postgres"]));
    assert!(shown.contains(id) && shown.contains("order 1") && shown.contains("\"known\""), "{shown}");
    let shown = said(&letters(&["show", id, "--url", &url]));
    assert!(shown.contains("23514") && shown.contains(r#"\"state\":\"BAD\""#), "{shown}");
    let status = said(&tributary(&["status", "--url", &url]).output().unwrap());
    assert!(status.contains("dead letters") && status.contains("postgres  following"), "{status}");

    // The cause is mended while nothing runs.
    assert!(process.terminate().success());
    database.batch_execute("ALTER TABLE \"order\" DROP CONSTRAINT known").await.unwrap();
    let config = pipeline.config();
    let output = letters(&["retry", "--sink", "postgres", "--config", text(&config)]);
    assert!(output.status.success() && said(&output).contains("1 to be tried again"), "{}", said(&output));
    let (mut process, url) = pipeline.run();
    in_postgres("1", Some(r#"{"id": 1, "state": "BAD"}"#)).await;
    wait_for("the letter's end", LIMIT, async || {
        said(&letters(&["list", "--url", &url])).contains("no dead letters").then_some(())
    })
    .await;
    let output = letters(&["drop", "--all", "--url", &url]);
    assert!(!output.status.success() && said(&output).contains("there are no dead letters"), "{}", said(&output));
    let output = letters(&["list", "--config", text(&config)]);
    assert!(!output.status.success() && said(&output).contains("in use by another process"), "{}", said(&output));
    assert!(process.terminate().success());
}
