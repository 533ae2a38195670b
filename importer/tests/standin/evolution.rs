//! Tables whose structure changes while they are imported.

use importer::{Activity, BreakingPolicy, GapPolicy};
use schemas::TableName;
use schemas::contract::Contract;
use serde_json::json;

use crate::rereads::check_rereads;
use crate::support::{World, is_reread, table_of, tail_in_order};
use crate::workload::{SHOP, assert_equal, assert_equal_after_rereads, fill};

fn orders() -> TableName {
    TableName::new("dbo", "orders")
}

const SECOND: &str = "ALTER TABLE dbo.orders ADD note nvarchar(20) NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL, @capture_instance = N'orders_2';
GO
";

/// Changes before the second instance, its creation, and changes after it: one backlog.
const BACKLOG: &str = "UPDATE dbo.orders SET total = 1 WHERE id = 1;
GO
BEGIN TRANSACTION; UPDATE dbo.orders SET total = 2 WHERE id = 2; UPDATE dbo.items SET product = 'before' WHERE order_id = 2; COMMIT TRANSACTION;
GO
";

const AFTER: &str = "BEGIN TRANSACTION; UPDATE dbo.orders SET total = 3, note = N'three' WHERE id = 3; UPDATE dbo.items SET product = 'after' WHERE order_id = 3; COMMIT TRANSACTION;
GO
INSERT INTO dbo.orders (id, customer, total, note) VALUES (9, N'nine', 9, N'nine');
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_instance_switch_in_the_middle_of_a_batch_loses_and_repeats_nothing() {
    let world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    world.import_all().await;
    world.sql(&format!("{BACKLOG}{SECOND}{AFTER}")).await;
    world.import_all().await;
    let events = tail_in_order(&world.events().await);
    let told: Vec<String> = events
        .iter()
        .filter(|event| table_of(event) == "orders")
        .map(|event| format!("{} {} {}", event["op"].as_str().unwrap(), event["after"]["id"], event["after"]["note"]))
        .collect();
    assert_eq!(told, ["u 1 null", "u 2 null", "u 3 \"three\"", "c 9 \"nine\""]);
    // Exactly those after the switch have the new column.
    let columns: Vec<usize> = events
        .iter()
        .filter(|event| table_of(event) == "orders")
        .map(|event| event["after"].as_object().unwrap().len())
        .collect();
    assert_eq!(columns, [3, 3, 4, 4]);
    assert!(world.events().await.iter().all(|event| !is_reread(event)), "nothing is read again for it");
    let ranges: Vec<_> = world.progress().await.iter().map(|record| (record.from_lsn, record.to_lsn)).collect();
    assert!(ranges.windows(2).all(|pair| pair[1].0 == pair[0].1 || pair[1].0 == pair[0].0), "{ranges:?}");
    // The old one is not needed any more.
    world.sql("EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'orders', @capture_instance = N'dbo_orders'; UPDATE dbo.orders SET total = 7 WHERE id = 1;").await;
    world.import_all().await;
    assert_eq!(tail_in_order(&world.events().await).last().unwrap()["after"]["total"], "7.00");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_instance_switch_while_it_runs() {
    let world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql(&format!("{BACKLOG}{SECOND}{AFTER}")).await;
    import.reaches(world.captured().await).await;
    let dropped = |warning: &String| warning.contains("@capture_instance = N'dbo_orders'");
    assert!(import.status.get().warnings.iter().any(dropped), "the old instance can be dropped");
    import.stop().await;
    let last = tail_in_order(&world.events().await).into_iter().rfind(|event| table_of(event) == "orders").unwrap();
    assert_eq!(last["after"], json!({"id": 9, "customer": "nine", "total": "9.00", "note": "nine"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_dropped_early_is_a_gap() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    world.import_all().await;
    let dropped = "EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'orders', @capture_instance = N'dbo_orders';\nGO\n";
    world.sql(&format!("{BACKLOG}{SECOND}{dropped}{AFTER}")).await;
    let error = world.import_error().await.to_string();
    assert!(error.contains("changes after") && error.contains("dbo.orders"), "{error}");
    world.config.on_gap = GapPolicy::Resnapshot;
    world.import_all_rereads().await;
    check_rereads(&world).await;
    let held = crate::support::replay(&world.events().await, &["orders"], &crate::workload::key);
    assert_eq!(held["orders"].len(), 6);
    assert_eq!(held["orders"]["2"]["total"], "2.00");
}

/// What dbo.orders was agreed to be.
fn contract() -> Contract {
    let document = json!({
        "x-table": "dbo.orders", "x-key": ["id"], "type": "object",
        "properties": {
            "id": {"type": "integer", "x-sql-type": "int"},
            "customer": {"type": ["string", "null"], "x-sql-type": "nvarchar(40)", "x-case-insensitive": true},
            "total": {"type": "string", "x-sql-type": "decimal(10,2)"},
        },
    });
    Contract::parse("dbo.orders.json", &document.to_string()).unwrap()
}

const DROP: &str = "ALTER TABLE dbo.orders DROP COLUMN customer;\nGO\nUPDATE dbo.orders SET total = 8 WHERE id = 1; UPDATE dbo.items SET product = 'goes on' WHERE order_id = 1;\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_breaks_its_contract_is_held_and_the_others_go_on() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.contracts.insert(orders(), contract());
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql(DROP).await;
    import.until("the hold", |status| status.tables.get(&orders()).is_some_and(|table| table.held.is_some())).await;
    import.reaches(world.captured().await).await;
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 2; UPDATE dbo.items SET product = 'still' WHERE order_id = 2;").await;
    import.reaches(world.captured().await).await;
    let warnings = import.status.get().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("column customer is in the contract")), "{warnings:?}");
    import.stop().await;
    let progress = world.progress().await;
    let last = progress.last().unwrap();
    assert!(last.rereads[&orders()].holds(last.to_lsn), "{last:?}");
    let events = world.events().await;
    assert!(events.iter().any(|event| event["after"]["product"] == "still"));
    assert!(events.iter().all(|event| event["after"]["total"] != "9.00"), "nothing of the held table is published");

    // Brought together again: read anew.
    world.config.contracts.remove(&orders());
    world.import_all_rereads().await;
    check_rereads(&world).await;
    let held = crate::support::replay(&world.events().await, &["orders"], &crate::workload::key);
    assert_eq!(held["orders"]["2"], json!({"id": 2, "total": "9.00"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_breaks_its_contract_is_dead_lettered_if_asked_for() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.contracts.insert(orders(), contract());
    world.config.on_breaking_change = BreakingPolicy::DeadLetter;
    world.import_all().await;
    world.sql(DROP).await;
    world.import_all().await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert!(dead[0]["reason"]["rule"].as_str().unwrap().contains("column customer"), "{}", dead[0]);
    let progress = world.progress().await;
    assert_eq!(progress.iter().filter_map(|record| record.dead_lettered.get(&orders())).sum::<u64>(), 1);
    assert!(progress.iter().all(|record| record.rereads.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_everything_was_stopped_for_a_contract_each_change_comes_one_by_one() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.contracts.insert(orders(), contract());
    world.config.on_breaking_change = BreakingPolicy::StopAll;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql(DROP).await;
    let error = import.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("column customer is in the contract"), "{error}");
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1; UPDATE dbo.items SET product = 'later' WHERE order_id = 1;").await;
    world.captured().await;
    assert!(world.import_error().await.to_string().contains("column customer"));
    world.config.contracts.remove(&orders());
    world.import_all().await;
    let told: Vec<String> = tail_in_order(&world.events().await)
        .iter()
        .map(|event| {
            let what = if table_of(event) == "orders" { &event["after"]["total"] } else { &event["after"]["product"] };
            what.as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(told, ["8.00", "goes on", "goes on", "9.00", "later", "later"]);
    assert!(world.progress().await.iter().all(|record| record.rereads.is_empty()), "nothing is read again for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_between_two_changes_is_followed_without_a_restart() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql("ALTER TABLE dbo.orders ALTER COLUMN total decimal(12,2) NOT NULL;\nGO\nUPDATE dbo.orders SET total = 1234567890.12 WHERE id = 1;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    assert!(dead.is_empty(), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_and_made_again_is_another_table() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.on_gap = GapPolicy::Resnapshot;
    world.import_all().await;
    world
        .sql(
            "EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'orders', @capture_instance = N'dbo_orders';
GO
DROP TABLE dbo.orders;
GO
CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, customer nvarchar(40) NULL, total decimal(10,2) NOT NULL);
GO
INSERT INTO dbo.orders (id, customer, total) VALUES (2, N'new', 2), (70, N'new', 7);
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;
GO
UPDATE dbo.orders SET total = 71 WHERE id = 70;
",
        )
        .await;
    world.import_all_rereads().await;
    check_rereads(&world).await;
    assert_equal_after_rereads(&world, &["orders"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_at_exactly_the_from_lsn_is_followed() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.import_all().await;
    // Nothing is committed between what was published and the change of structure, nor between that and the second instance.
    world.sql(SECOND).await;
    world.import_all().await;
    world.sql("UPDATE dbo.orders SET note = N'first' WHERE id = 1;").await;
    world.import_all().await;
    let events = tail_in_order(&world.events().await);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["after"], json!({"id": 1, "customer": "customer 1", "total": "1.50", "note": "first"}));
}
