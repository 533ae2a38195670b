//! Snapshot and tail of a scripted workload.

use std::collections::BTreeMap;

use schemas::progress::Phase;
use serde_json::{Value as Json, json};

use crate::support::{World, check_progress, replay, table_of, tail_in_order};

pub(crate) const SHOP: &str = "
CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, customer nvarchar(40) NULL, total decimal(10,2) NOT NULL);
GO
CREATE TABLE dbo.items (order_id int NOT NULL, line_no int NOT NULL, product varchar(20) NOT NULL, CONSTRAINT PK_items PRIMARY KEY (order_id, line_no));
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'items', @role_name = NULL;
GO
";

/// Orders 1 to `n` with two items each.
pub(crate) fn fill(n: usize) -> String {
    let mut script = String::new();
    for id in 1..=n {
        script.push_str(&format!(
            "BEGIN TRANSACTION; INSERT INTO dbo.orders (id, customer, total) VALUES ({id}, N'customer {}', {id}.50); \
             INSERT INTO dbo.items (order_id, line_no, product) VALUES ({id}, 1, 'tea'); \
             INSERT INTO dbo.items (order_id, line_no, product) VALUES ({id}, 2, 'cup'); COMMIT TRANSACTION;\nGO\n",
            id % 7
        ));
    }
    script
}

/// A consumer's key of a row.
pub(crate) fn key(table: &str, row: &Json) -> String {
    if table == "items" { format!("{}/{}", row["order_id"], row["line_no"]) } else { row["id"].to_string() }
}

/// The source's rows, as events have them.
pub(crate) async fn source_rows(world: &World) -> BTreeMap<String, BTreeMap<String, Json>> {
    use sqlserver::Value;
    let json = |value: &Value| match value {
        Value::Null => Json::Null,
        Value::Int(number) => json!(number),
        Value::Text(text) => json!(text),
        Value::Decimal { mantissa, scale: 2 } => json!(format!("{}.{:02}", mantissa / 100, mantissa % 100)),
        other => panic!("{other:?}"),
    };
    let mut tables = BTreeMap::new();
    for (table, columns) in [("orders", &["id", "customer", "total"]), ("items", &["order_id", "line_no", "product"])] {
        let results = world.sql(&format!("SELECT {} FROM dbo.{table}", columns.join(", "))).await;
        let mut rows = BTreeMap::new();
        for row in &results[0] {
            let row: Json = columns
                .iter()
                .zip(row)
                .map(|(name, value)| ((*name).to_owned(), json(value)))
                .collect::<serde_json::Map<_, _>>()
                .into();
            rows.insert(key(table, &row), row);
        }
        tables.insert(table.to_owned(), rows);
    }
    tables
}

/// What a consumer holds equals what the source holds.
pub(crate) async fn assert_equal(world: &World) {
    assert_equal_after_rereads(world, &[]).await;
}

/// The same, where tables were read again as a whole.
pub(crate) async fn assert_equal_after_rereads(world: &World, swept: &[&str]) {
    let events = world.events().await;
    // Each change but for repeats stands after those before it.
    tail_in_order(&events);
    let mut held = replay(&events, swept, &key);
    for table in ["orders", "items"] {
        held.entry(table.to_owned()).or_default();
    }
    assert_eq!(held, source_rows(world).await);
    check_progress(&world.progress().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scripted_workload_is_published_as_it_was_done() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world
        .sql(
            "BEGIN TRANSACTION; INSERT INTO dbo.orders (id, customer, total) VALUES (10, NULL, 1.00); \
             INSERT INTO dbo.items (order_id, line_no, product) VALUES (10, 1, 'pot'); UPDATE dbo.orders SET total = 2.25 WHERE id = 10; COMMIT TRANSACTION;
GO
UPDATE dbo.orders SET customer = N'Zoë ☕ ''x''' WHERE id = 1;
GO
BEGIN TRANSACTION; DELETE FROM dbo.items WHERE order_id = 2; DELETE FROM dbo.orders WHERE id = 2; ROLLBACK TRANSACTION;
GO
DELETE FROM dbo.items WHERE order_id = 3;
GO
UPDATE dbo.orders SET id = 30 WHERE id = 3;
GO
UPDATE dbo.items SET product = 'mug' WHERE line_no = 2;
",
        )
        .await;
    import.reaches(world.captured().await).await;
    let status = import.status.get();
    import.stop().await;
    assert_equal(&world).await;

    let events = world.events().await;
    assert_eq!(events.iter().filter(|event| event["op"] == "r").count(), 9);
    let told: Vec<String> = tail_in_order(&events)
        .iter()
        .filter(|event| table_of(event) == "orders")
        .map(|event| format!("{} {} {}", event["op"].as_str().unwrap(), event["before"]["id"], event["after"]))
        .collect();
    let expected = [
        r#"c null {"id":10,"customer":null,"total":"1.00"}"#,
        r#"u 10 {"id":10,"customer":null,"total":"2.25"}"#,
        r#"u 1 {"id":1,"customer":"Zoë ☕ 'x'","total":"1.50"}"#,
        "d 3 null",
        r#"c null {"id":30,"customer":"customer 3","total":"3.50"}"#,
    ];
    assert_eq!(told, expected);

    let progress = world.progress().await;
    let complete = progress.iter().position(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).unwrap();
    assert!(progress[..complete].iter().all(|record| record.phase == Phase::Snapshot));
    assert!(progress[complete + 1..].iter().all(|record| record.phase == Phase::Tail));
    let counted: u64 = progress.iter().flat_map(|record| record.counts.values()).sum();
    assert_eq!(counted, events.len() as u64, "what is counted is what was published");
    let orders = schemas::TableName::new("dbo", "orders");
    assert_eq!((status.tables[&orders].snapshot_rows, status.tables[&orders].published), (3, 8));
    assert!(status.warnings.is_empty() && status.last_error.is_none(), "{status:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    for event in &events {
        let age = now - event["ts_ms"].as_i64().unwrap();
        assert!((-2_000..120_000).contains(&age), "a commit time of {age} ms ago");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_any_kind_are_imported() {
    let script = "
CREATE SCHEMA [my schema];
GO
CREATE TABLE [my schema].[a]]b 'ü] ([select] int NOT NULL, [x]]y] nvarchar(20) NULL, [o'clock] int NULL, [@P1] int NULL, CONSTRAINT [PK a] PRIMARY KEY ([select]));
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'my schema', @source_name = N'a]b ''ü', @role_name = NULL;
GO
INSERT INTO [my schema].[a]]b 'ü] ([select], [x]]y], [o'clock], [@P1]) VALUES (1, N'one', 1, 10), (2, NULL, 2, NULL), (3, N'three', 3, 30);
";
    let mut world = World::start(script).await;
    world.config.snapshot.chunk_rows = 1;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE [my schema].[a]]b 'ü] SET [x]]y] = N'two', [@P1] = 22 WHERE [select] = 2; DELETE FROM [my schema].[a]]b 'ü] WHERE [select] = 1;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let held = replay(&world.events().await, &[], &|_, row| row["select"].to_string());
    let rows: Vec<String> = held["a]b 'ü"].values().map(Json::to_string).collect();
    assert_eq!(rows, [r#"{"select":2,"x]y":"two","o'clock":2,"@P1":22}"#, r#"{"select":3,"x]y":"three","o'clock":3,"@P1":30}"#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_is_read_whole() {
    let script = "
CREATE TABLE dbo.heap (a int NULL, b varchar(10) NULL);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'heap', @role_name = NULL;
GO
INSERT INTO dbo.heap (a, b) VALUES (1, 'x'), (1, 'x'), (NULL, NULL), (2, 'y'), (3, 'z');
";
    let mut world = World::start(script).await;
    world.config.snapshot.chunk_rows = 2;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("DELETE FROM dbo.heap WHERE a = 2").await;
    import.reaches(world.captured().await).await;
    assert!(import.status.get().warnings.iter().any(|warning| warning.contains("has no key")));
    import.stop().await;
    let events = world.events().await;
    assert_eq!(events.iter().filter(|event| event["op"] == "r").count(), 5);
    assert_eq!(tail_in_order(&events)[0]["before"], json!({"a": 2, "b": "y"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_per_table_with_several_shards_keeps_each_rows_order() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(10))).await;
    world.config.output.layout = streams::Layout::Table;
    world.config.output.shards = 3;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    for step in 0..5 {
        world
            .sql(&format!(
                "UPDATE dbo.orders SET total = {step}; UPDATE dbo.items SET product = 'step {step}' WHERE line_no = 1;"
            ))
            .await;
    }
    import.reaches(world.captured().await).await;
    import.stop().await;
    for (table, rows) in [("orders", 10), ("items", 20)] {
        let stream = world.config.output.layout.stream("shop", &schemas::TableName::new("dbo", table));
        let mut last: BTreeMap<String, Json> = BTreeMap::new();
        for event in world.records(&stream).await {
            let held = last.insert(key(table, &event["after"]), event["after"].clone());
            assert!(event["op"] == "r" || held.as_ref() == Some(&event["before"]), "{held:?} before {event}");
        }
        assert_eq!(last.len(), rows);
    }
    // After a restart a record speaks of all shards, also of those that this writer has not written to.
    world.sql("UPDATE dbo.orders SET total = 100").await;
    world.import_all().await;
    let progress = world.progress().await;
    let shards = &progress.last().unwrap().positions;
    assert_eq!(shards.keys().map(|stream| stream.0.as_str()).collect::<Vec<_>>(), ["shop.dbo.items", "shop.dbo.orders"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_are_masked_and_renamed_and_rows_enter_and_leave_the_filter() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(4))).await;
    let controls = json!({"rename": {"customer": "buyer"}, "mask": {"customer": {"truncate": 4}}, "exclude": ["total"], "filter": "total < 3"});
    world.config.controls.insert(schemas::TableName::new("dbo", "orders"), serde_json::from_value(controls).unwrap());
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world
        .sql("UPDATE dbo.orders SET total = 5 WHERE id = 1;\nGO\nUPDATE dbo.orders SET total = 1 WHERE id = 4;\nGO\nUPDATE dbo.orders SET customer = N'someone' WHERE id = 4;\nGO\nUPDATE dbo.orders SET total = 9 WHERE id = 3;")
        .await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let told: Vec<String> = world
        .events()
        .await
        .iter()
        .filter(|event| table_of(event) == "orders")
        .map(|event| format!("{} {} {}", event["op"].as_str().unwrap(), event["before"], event["after"]))
        .collect();
    let expected = [
        r#"r null {"id":1,"buyer":"cust"}"#,
        r#"r null {"id":2,"buyer":"cust"}"#,
        r#"d {"id":1,"buyer":"cust"} null"#,
        r#"c null {"id":4,"buyer":"cust"}"#,
        r#"u {"id":4,"buyer":"cust"} {"id":4,"buyer":"some"}"#,
    ];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heap_is_told_apart_by_a_unique_index_or_by_a_configured_key() {
    let script = "
CREATE TABLE dbo.orders (id int NOT NULL, customer nvarchar(40) NULL, total decimal(10,2) NOT NULL);
GO
CREATE TABLE dbo.items (order_id int NOT NULL, line_no int NOT NULL, product varchar(20) NOT NULL);
GO
CREATE UNIQUE INDEX one_line ON dbo.items (order_id, line_no);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'items', @role_name = NULL;
GO
";
    let mut world = World::start(&(script.to_owned() + &fill(7))).await;
    world.config.snapshot.chunk_rows = 2;
    world.config.keys.insert(schemas::TableName::new("dbo", "orders"), vec!["id".into()]);
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET total = 3 WHERE id = 2; DELETE FROM dbo.items WHERE order_id = 1;").await;
    import.reaches(world.captured().await).await;
    let warnings = import.status.get().warnings;
    assert!(!warnings.iter().any(|warning| warning.contains("has no key")), "{warnings:?}");
    import.stop().await;
    assert_equal(&world).await;
    let chunks = world.progress().await.iter().filter(|record| record.phase == Phase::Snapshot).count();
    assert!(chunks >= 10, "read in {chunks} chunks");
    world.config.keys.insert(schemas::TableName::new("dbo", "orders"), vec!["customer".into()]);
    let error = world.import_error().await;
    assert!(matches!(error, importer::Error::ConfiguredKey { .. }), "{error}");
}
