//! `tributary schema diff`: what has changed in the database, which entities that touches, and new versions of contracts.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};

const ORDER: &str = "entity: order\ntable: dbo.orders\nfields: [id, status]\nmany:\n  items: {table: dbo.items, by: [order_id], order_by: [amount]}\naggregates:\n  total: {sum: items.amount}\n";

/// A server with two related tables, captured, and a pipeline's folder for it.
async fn shop() -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::given_or_start("shop").await;
    let mut client = server.client().await;
    execute(
        &mut client,
        "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL, note nvarchar(20) NULL)",
    )
    .await;
    execute(&mut client, "CREATE TABLE dbo.items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL REFERENCES dbo.orders (id), amount decimal(10,2) NULL)").await;
    capture(&mut client, &["orders", "items"]).await;
    let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
    pipeline.configure(&server, "{embedded: {path: data/streams}}", "  - {type: sqlite, path: data/entities.db}\n");
    (server, client, pipeline)
}

fn diff(pipeline: &Pipeline, more: &[&str]) -> Output {
    let config = pipeline.config();
    let arguments = [&["schema", "diff", "--config", text(&config)], more].concat();
    tributary(&arguments).env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap()
}

/// Runs it, expects the exit code, and returns what it printed.
fn shown(pipeline: &Pipeline, more: &[&str], code: i32) -> String {
    let output = diff(pipeline, more);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn found(pipeline: &Pipeline, more: &[&str], code: i32) -> Vec<Value> {
    let output = diff(pipeline, &[&["--json"], more].concat());
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let tables = answer["tables"].as_array().unwrap();
    tables.iter().flat_map(|table| table["differences"].as_array().unwrap()).cloned().collect()
}

/// A second capture instance, which has the table's columns as they are now.
async fn capture_again(client: &mut Client, table: &str, instance: &str) {
    execute(
        client,
        &format!("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'{table}', @role_name = NULL, @capture_instance = N'{instance}'"),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compatible_changes_are_shown_with_what_they_touch_and_become_a_new_version() {
    let (_server, mut client, pipeline) = shop().await;
    assert!(shown(&pipeline, &[], 0).contains("2 of 2 tables are as their contracts say."));
    execute(&mut client, "ALTER TABLE dbo.orders ALTER COLUMN status varchar(30) NOT NULL").await;
    execute(&mut client, "ALTER TABLE dbo.items ADD colour varchar(9) NULL").await;
    // Nobody hears of the column yet.
    assert!(shown(&pipeline, &[], 3).contains("  harmless    column colour is in the table, and no capture instance records it"));
    capture_again(&mut client, "items", "dbo_items_2").await;

    let said = shown(&pipeline, &[], 3);
    for line in [
        "dbo.items (contract version 1)",
        "  compatible  column colour is in the table and not in the contract: it is not published",
        "              touches order.items (publishes every column)",
        "  compatible  column status is varchar(10) in the contract and varchar(30) in the table",
        "              touches order.status",
        "Entities touched: order.",
        "schema diff --write",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
    let found = found(&pipeline, &["--write"], 0);
    assert!(found.iter().all(|difference| difference["settled"] == true), "{found:?}");
    assert!(shown(&pipeline, &[], 0).contains("2 of 2 tables are as their contracts say."));
    let orders = std::fs::read_to_string(pipeline.path("schemas/tables/dbo.orders.json")).unwrap();
    assert!(orders.contains(r#""x-version": 2"#) && orders.contains("varchar(30)"), "{orders}");
    let before = std::fs::read_to_string(pipeline.path("schemas/tables/dbo.orders.v1.json")).unwrap();
    assert!(before.contains(r#""x-version": 1"#) && before.contains("varchar(10)"), "{before}");
    let items = std::fs::read_to_string(pipeline.path("schemas/tables/dbo.items.json")).unwrap();
    assert!(items.contains(r#""colour": {"type": ["string", "null"], "maxLength": 9, "x-sql-type": "varchar(9)""#), "{items}");
    // The versions that are not in force are no contracts of their own.
    let check =
        tributary(&["check", "--config", text(&pipeline.config())]).env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    assert!(String::from_utf8_lossy(&check.stdout).contains("fit their 2 table contracts"), "{check:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn breaking_changes_are_never_written() {
    let (_server, mut client, pipeline) = shop().await;
    let contract = pipeline.path("schemas/tables/dbo.items.json");
    let before = std::fs::read_to_string(&contract).unwrap();
    execute(
        &mut client,
        "EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'items', @capture_instance = N'all'",
    )
    .await;
    execute(&mut client, "ALTER TABLE dbo.items DROP COLUMN amount").await;
    execute(&mut client, "ALTER TABLE dbo.items ADD price decimal(10,2) NULL").await;
    capture_again(&mut client, "items", "dbo_items_2").await;
    for more in [&[][..], &["--write"]] {
        let said = shown(&pipeline, more, 4);
        for part in [
            "breaking    column amount is in the contract and not in the table's capture instance. Was it renamed to price?",
            "touches order.items.amount, order.items (order), order.total (sum over order.items)",
            "for people to settle",
        ] {
            assert!(said.contains(part), "{part:?} is not in\n{said}");
        }
    }
    assert_eq!(std::fs::read_to_string(&contract).unwrap(), before);
    // A table that is not captured any more.
    execute(
        &mut client,
        "EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'items', @capture_instance = N'all'",
    )
    .await;
    let found = found(&pipeline, &[], 4);
    assert!(found[0]["what"].as_str().unwrap().contains("not captured (any more)"), "{found:?}");
    assert_eq!(found[0]["touches"], serde_json::json!(["order.items (tells rows apart)"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_contract_is_given_one() {
    let (_server, mut client, pipeline) = shop().await;
    execute(&mut client, "CREATE TABLE dbo.payments (id int NOT NULL PRIMARY KEY)").await;
    capture_again(&mut client, "payments", "dbo_payments").await;
    assert!(shown(&pipeline, &[], 3).contains("dbo.payments\n  compatible  the table is captured and has no contract"));
    shown(&pipeline, &["--write"], 0);
    assert!(pipeline.path("schemas/tables/dbo.payments.json").exists());
    shown(&pipeline, &[], 0);
    // What somebody left out on purpose stays out.
    let contract = pipeline.path("schemas/tables/dbo.orders.json");
    let mut document: Value = serde_json::from_str(&std::fs::read_to_string(&contract).unwrap()).unwrap();
    document["properties"].as_object_mut().unwrap().shift_remove("note");
    document["required"] = serde_json::json!(["id", "status"]);
    std::fs::write(&contract, document.to_string()).unwrap();
    shown(&pipeline, &[], 3);
    document["x-omitted"] = serde_json::json!(["note"]);
    std::fs::write(&contract, document.to_string()).unwrap();
    shown(&pipeline, &[], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_importer_writes_new_versions_where_it_is_told_to() {
    let (_server, mut client, pipeline) = shop().await;
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let told = config.replace("poll_interval: 20ms", "poll_interval: 20ms\n  on_compatible_change: write");
    std::fs::write(pipeline.config(), told).unwrap();
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW', NULL)").await;
    let (mut process, url) = pipeline.run();
    let is = async |key: &str, status: &str| {
        pipeline::wait_for_document(&url, "order", key, Duration::from_secs(60), |document| document["status"] == status).await;
    };
    is("1", "NEW").await;
    execute(&mut client, "ALTER TABLE dbo.orders ALTER COLUMN status varchar(30) NOT NULL").await;
    execute(&mut client, "ALTER TABLE dbo.orders ADD colour varchar(9) NULL").await;
    capture_again(&mut client, "orders", "dbo_orders_2").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (2, 'longer than ten characters', NULL, 'red')").await;
    // Under the first version, it would have been set aside for its length.
    is("2", "longer than ten characters").await;
    assert!(process.terminate().success());
    let contract: Value =
        serde_json::from_str(&std::fs::read_to_string(pipeline.path("schemas/tables/dbo.orders.json")).unwrap()).unwrap();
    assert!(contract["x-version"].as_u64().unwrap() > 1, "{contract}");
    assert_eq!(contract["properties"]["colour"]["x-sql-type"], "varchar(9)");
    assert!(pipeline.path("schemas/tables/dbo.orders.v1.json").exists());
    shown(&pipeline, &[], 0);
    // The state that was built for the first version serves the last one.
    let (_process, url) = pipeline.run();
    execute(&mut client, "INSERT INTO dbo.orders VALUES (3, 'NEW', NULL, 'blue')").await;
    pipeline::wait_for_document(&url, "order", "3", Duration::from_secs(60), |_| true).await;
    pipeline::wait_for_document(&url, "order", "1", Duration::from_secs(60), |document| document["status"] == "NEW").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contracts_describe_what_is_published() {
    let (_server, _client, pipeline) = shop().await;
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let controls = "per_table: {dbo.orders: {exclude: [note], rename: {status: state}}}";
    std::fs::write(pipeline.config(), config.replace("poll_interval: 20ms", controls)).unwrap();
    let said = shown(&pipeline, &[], 4);
    assert!(said.contains("column status is in the contract") && said.contains("column note is in the contract"), "{said}");
    assert!(said.contains("Was it renamed to state?"), "{said}");
    std::fs::remove_file(pipeline.path("schemas/tables/dbo.orders.json")).unwrap();
    let order = ORDER.replace("[id, status]", "[id]").replace("table: dbo.orders", "table: dbo.items");
    std::fs::write(pipeline.path("schemas/entities/order.yaml"), order.split("many:").next().unwrap()).unwrap();
    shown(&pipeline, &["--write"], 0);
    let contract = std::fs::read_to_string(pipeline.path("schemas/tables/dbo.orders.json")).unwrap();
    assert!(contract.contains("\"state\"") && !contract.contains("note"), "{contract}");
}
