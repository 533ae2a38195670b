//! Events that break their contract, and tables that do.

use importer::Error;
use schemas::TableName;
use schemas::contract::Contract;
use serde_json::json;

use crate::support::{World, table_of};
use crate::workload::{SHOP, fill};

fn orders() -> TableName {
    TableName::new("dbo", "orders")
}

/// The contract of dbo.orders, after an edit.
fn contract(edit: impl FnOnce(&mut serde_json::Value)) -> Contract {
    let mut document = json!({
        "x-table": "dbo.orders",
        "x-key": ["id"],
        "type": "object",
        "properties": {
            "id": {"type": "integer", "x-sql-type": "int"},
            "customer": {"type": ["string", "null"], "x-sql-type": "nvarchar(40)", "x-case-insensitive": true},
            "total": {"type": "string", "x-sql-type": "decimal(10,2)"},
        },
    });
    edit(&mut document);
    Contract::parse("dbo.orders.json", &document.to_string()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_contract_is_dead_lettered_and_counted() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    let strict = contract(|document| {
        document["properties"]["customer"]["pattern"] = "^customer".into();
        document["properties"]["id"]["maximum"] = 100.into();
    });
    world.config.contracts.insert(orders(), strict);
    world.sql("INSERT INTO dbo.orders (id, customer, total) VALUES (50, N'somebody', 1)").await;
    // Else the tail would tell of it once more.
    world.captured().await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET customer = N'nobody' WHERE id = 1;\nGO\nINSERT INTO dbo.orders (id, customer, total) VALUES (101, NULL, 1);\nGO\nUPDATE dbo.orders SET total = 7 WHERE id = 2;").await;
    import.reaches(world.captured().await).await;
    let status = import.status.get();
    import.stop().await;

    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    let told: Vec<String> = dead
        .iter()
        .map(|letter| format!("{} {} {}", letter["event"]["op"], letter["reason"]["column"], letter["reason"]["rule"]))
        .collect();
    assert_eq!(told, [r#""r" "customer" "pattern""#, r#""u" "customer" "pattern""#, r#""c" "id" "maximum 100""#]);
    assert_eq!(dead[1]["reason"]["value"], "\"nobody\"");
    assert!(dead[1]["position"]["commit_lsn"].as_str().is_some_and(|lsn| lsn.len() == 22));
    assert_eq!(status.tables[&orders()].dead_lettered, 3);
    let counted: u64 = world.progress().await.iter().filter_map(|record| record.dead_lettered.get(&orders())).sum();
    assert_eq!(counted, 3);
    let events = world.events().await;
    assert!(
        events
            .iter()
            .filter(|event| table_of(event) == "orders")
            .all(|event| event["after"]["id"] != 50 && event["after"]["id"] != 101)
    );
    assert!(events.iter().any(|event| event["op"] == "u" && event["after"]["total"] == "7.00"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_does_not_fit_its_contract_is_not_published() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    world
        .config
        .contracts
        .insert(orders(), contract(|document| document["properties"]["total"]["x-sql-type"] = "decimal(10,3)".into()));
    let error = world.import_error().await;
    assert!(matches!(error, Error::Contract { .. }), "{error}");
    assert!(
        error.to_string().contains("column total is decimal(10,3) in the contract and decimal(10,2) in the table"),
        "{error}"
    );
    assert!(world.events().await.is_empty());

    let missing = |document: &mut serde_json::Value| document["properties"]["discount"] = json!({"x-sql-type": "int"});
    world.config.contracts.insert(orders(), contract(missing));
    let error = world.import_error().await;
    assert!(error.to_string().contains("column discount is in the contract and not in"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_the_contract_leaves_out_are_not_published() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    let short = contract(|document| drop(document["properties"].as_object_mut().unwrap().remove("customer")));
    world.config.contracts.insert(orders(), short);
    world.config.output.partition_by.insert(TableName::new("dbo", "items"), "order_id".into());
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET customer = N'x', total = 3").await;
    import.reaches(world.captured().await).await;
    assert!(
        import
            .status
            .get()
            .warnings
            .iter()
            .any(|warning| warning.contains("column customer is in the table and not in the contract"))
    );
    import.stop().await;
    let updates: Vec<_> = world.events().await.into_iter().filter(|event| event["op"] == "u").collect();
    assert_eq!(updates[0]["after"], json!({"id": 1, "total": "3.00"}));

    world.config.output.partition_by.insert(orders(), "customer".into());
    let error = world.import_error().await;
    assert!(matches!(error, Error::PartitionColumn { .. }) && error.to_string().contains("id, total"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_that_names_a_computed_column_is_told() {
    let shop = SHOP.replace("total decimal(10,2) NOT NULL", "total decimal(10,2) NOT NULL, twice AS (id * 2)");
    let mut world = World::start(&(shop + &fill(1))).await;
    let named = contract(|document| document["properties"]["twice"] = json!({"type": ["integer", "null"], "x-sql-type": "int"}));
    world.config.contracts.insert(orders(), named);
    let error = world.import_error().await;
    assert!(matches!(&error, Error::ComputedColumn { column, .. } if column == "twice"), "{error}");
    assert!(world.events().await.is_empty());
}
