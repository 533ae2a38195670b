//! Tables that are read again beside the tail: after a gap, by request, because they came later, because the snapshot outgrew the retention.

use std::time::Duration;

use importer::{Activity, AskedRange, GapPolicy, RequestError, SnapshotMode, TableFilter};
use schemas::TableName;
use schemas::progress::{Phase, ProgressRecord};
use sqlserver::Fault;

use crate::support::{World, is_reread, table_of};
use crate::workload::{SHOP, assert_equal, assert_equal_after_rereads, fill};

fn table(name: &str) -> TableName {
    TableName::new("dbo", name)
}

/// Removes all captured changes of orders that are not newer than the newest.
pub(crate) const PURGE: &str = "DECLARE @to binary(10) = (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping);
 EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_orders', @low_water_mark = @to;";

/// What records say of a table's reread, in order, without repeats: (generation, consistent, finished).
fn told(progress: &[ProgressRecord], name: &str) -> Vec<(u64, bool, bool)> {
    let mut told: Vec<(u64, bool, bool)> = progress
        .iter()
        .filter_map(|record| record.rereads.get(&table(name)).map(|reread| (record, reread)))
        .map(|(record, reread)| (reread.generation, !reread.holds(record.to_lsn), reread.finished))
        .collect();
    told.dedup();
    told
}

/// The last record that names a reread says that it is finished and passed; all rows that were read are counted.
pub(crate) async fn check_rereads(world: &World) -> Vec<ProgressRecord> {
    let progress = world.progress().await;
    let names: std::collections::BTreeSet<&TableName> = progress.iter().flat_map(|record| record.rereads.keys()).collect();
    for name in names {
        let last =
            progress.iter().rev().find_map(|record| record.rereads.get(name).map(|reread| (record.to_lsn, reread))).unwrap();
        assert!(last.1.finished && !last.1.holds(last.0), "{name}: {last:?}");
    }
    let events = world.events().await;
    let counted: u64 = progress.iter().flat_map(|record| record.reread_counts.values()).sum();
    assert_eq!(counted, events.iter().filter(|event| is_reread(event)).count() as u64);
    progress
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_mended_by_reading_the_table_again_and_what_vanished_in_it_is_removed() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(8))).await;
    world.config.snapshot.chunk_rows = 3;
    world.config.on_gap_of.insert(table("orders"), GapPolicy::Resnapshot);
    world.import_all().await;
    world.sql("DELETE FROM dbo.orders WHERE id = 3; UPDATE dbo.orders SET total = 9 WHERE id = 1; UPDATE dbo.items SET product = 'kept' WHERE order_id = 1;").await;
    world.captured().await;
    world.sql(PURGE).await;
    let import = world.import();
    import.until("the reread", |status| status.tables.get(&table("orders")).is_some_and(|table| table.reread.is_some())).await;
    world
        .sql(
            "UPDATE dbo.orders SET total = 10 WHERE id = 2; INSERT INTO dbo.orders (id, customer, total) VALUES (50, N'new', 5);",
        )
        .await;
    import.reaches(world.captured().await).await;
    import.until("the end of the reread", |status| status.tables[&table("orders")].reread.is_none()).await;
    import.stop().await;
    assert_equal_after_rereads(&world, &["orders"]).await;
    let progress = check_rereads(&world).await;
    let told = told(&progress, "orders");
    let generation = told[0].0;
    assert!(told.iter().all(|(of, ..)| *of == generation), "{told:?}");
    assert_eq!((told[0].1, told.last().unwrap().1), (false, true), "{told:?}");
    assert!(progress.iter().all(|record| !record.rereads.contains_key(&table("items"))));
    // The other table's changes are published one by one.
    assert!(world.events().await.iter().any(|event| event["op"] == "u" && event["after"]["product"] == "kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_instance_purged_others_healthy() {
    let world = World::start(&(SHOP.to_owned() + &fill(2))).await;
    world.import_all().await;
    world.sql("UPDATE dbo.items SET product = 'x';").await;
    world.captured().await;
    // No change of orders waits in what is purged, but nobody can know that.
    world.sql("UPDATE dbo.orders SET total = 3 WHERE id = 1; ").await;
    world.captured().await;
    world.sql(PURGE).await;
    let error = world.import_error().await.to_string();
    assert!(error.contains("dbo.orders") && !error.contains("dbo.items"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step_of_a_reread_it_goes_on_where_it_was() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(20))).await;
    world.config.snapshot.chunk_rows = 3;
    world.config.snapshot.connections = 2;
    world.config.snapshot.rows_per_second = Some(300);
    world.config.on_gap = GapPolicy::Resnapshot;
    world.import_all().await;
    world.sql("DELETE FROM dbo.orders WHERE id = 3; UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.captured().await;
    world.sql(PURGE).await;
    let mut runs = 0;
    loop {
        runs += 1;
        let before = world.progress().await.len();
        let import = world.import();
        let stream = streams::Layout::progress_stream(&world.config.output.prefix);
        let mut done = false;
        loop {
            let records = streams::Provider::tips(&world.streams, &stream).await.unwrap();
            let records = records.values().next().and_then(|tip| tip.to_u64()).unwrap_or(0) as usize;
            if records >= before + 2 {
                break;
            }
            let status = import.status.get();
            done = status.activity == Activity::Tailing
                && status.tables.get(&table("orders")).is_some_and(|table| table.snapshot_rows > 0 && table.reread.is_none());
            assert!(!import.task.is_finished(), "{status:?}");
            if done {
                break;
            }
            tokio::task::yield_now().await;
        }
        import.kill().await;
        world.sql(&format!("UPDATE dbo.orders SET total = total + 1 WHERE id = {}; UPDATE dbo.items SET product = 'run {runs}' WHERE line_no = 1;", 1 + runs % 20)).await;
        if done || runs > 40 {
            break;
        }
    }
    assert!(runs >= 3, "{runs} runs");
    let import = world.import();
    import.reaches(world.captured().await).await;
    import.until("the end of the reread", |status| status.tables[&table("orders")].reread.is_none()).await;
    import.stop().await;
    assert_equal_after_rereads(&world, &["orders"]).await;
    check_rereads(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_read_again_by_request_and_the_tail_goes_on() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(12))).await;
    world.config.snapshot.chunk_rows = 4;
    // With a limit, each chunk is waited for.
    world.config.snapshot.rows_per_second = Some(1000);
    let (import, handle) = world.import_with_handle();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    let generation = handle.resnapshot(table("orders"), AskedRange::default()).await.unwrap();
    let busy = handle.resnapshot(table("orders"), AskedRange::default()).await;
    assert_eq!(busy, Err(RequestError::Busy { table: table("orders"), generation }));
    world.sql("UPDATE dbo.orders SET total = total + 1; DELETE FROM dbo.items WHERE order_id = 7; DELETE FROM dbo.orders WHERE id = 7;").await;
    import.reaches(world.captured().await).await;
    import.until("the end of the reread", |status| status.tables[&table("orders")].reread.is_none()).await;
    let unknown = handle.resnapshot(table("nothing"), AskedRange::default()).await.unwrap_err();
    assert!(unknown.to_string().contains("dbo.items, dbo.orders"), "{unknown}");
    import.stop().await;
    assert_eq!(handle.resnapshot(table("orders"), AskedRange::default()).await, Err(RequestError::Ended));
    assert_equal_after_rereads(&world, &["orders"]).await;
    let progress = check_rereads(&world).await;
    let told = told(&progress, "orders");
    // Held for moments: between two chunks it is consistent.
    assert!(told.windows(2).any(|pair| pair[0].1 && !pair[1].1), "{told:?}");
    assert!(told.iter().filter(|(_, consistent, _)| !consistent).count() >= 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_range_is_read_again_and_nothing_else() {
    let world = World::start(&(SHOP.to_owned() + &fill(12))).await;
    let (import, handle) = world.import_with_handle();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    let key = |key: &str| Some(vec![key.to_owned()]);
    let range = AskedRange { from: key("4"), to: key("6") };
    handle.resnapshot(table("items"), range.clone()).await.unwrap();
    import.until("the end of the reread", |status| status.tables[&table("items")].reread.is_none()).await;
    let bad = handle.resnapshot(table("orders"), AskedRange { from: key("x"), to: None }).await.unwrap_err();
    assert!(matches!(bad, RequestError::BadKey(_)), "{bad}");
    import.stop().await;
    let events = world.events().await;
    let mut read: Vec<i64> =
        events.iter().filter(|event| is_reread(event)).map(|event| event["after"]["order_id"].as_i64().unwrap()).collect();
    read.sort_unstable();
    assert_eq!(read, [4, 4, 5, 5, 6, 6]);
    let progress = check_rereads(&world).await;
    assert!(progress.iter().filter_map(|record| record.rereads.get(&table("items"))).all(|reread| !reread.whole));
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_server_refuses_stops_nothing() {
    let script = "CREATE TABLE dbo.orders (id datetime2(3) NOT NULL PRIMARY KEY, total int NOT NULL);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;
GO
INSERT INTO dbo.orders (id, total) VALUES ('2024-01-01', 1);
";
    let world = World::start(script).await;
    let (import, handle) = world.import_with_handle();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    let range = AskedRange { from: Some(vec!["not a time".into()]), to: None };
    let error = handle.resnapshot(table("orders"), range).await.unwrap_err();
    assert!(matches!(error, RequestError::BadKey(_)), "{error}");
    world.sql("UPDATE dbo.orders SET total = 2;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_captured_later_is_read_beside_the_tail() {
    let shop = SHOP
        .replace("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'items', @role_name = NULL;\nGO\n", "");
    let world = World::start(&(shop + &fill(5))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    assert!(!import.status.get().tables.contains_key(&table("items")));
    world.sql("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'items', @role_name = NULL;").await;
    import.until("the table", |status| status.tables.get(&table("items")).is_some_and(|table| table.snapshot_rows == 10)).await;
    world.sql("UPDATE dbo.items SET product = 'seen' WHERE line_no = 1; UPDATE dbo.orders SET total = 5 WHERE id = 1;").await;
    import.reaches(world.captured().await).await;
    import.until("the end of the reread", |status| status.tables[&table("items")].reread.is_none()).await;
    import.stop().await;
    assert_equal_after_rereads(&world, &["items"]).await;
    check_rereads(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_joins_the_configuration_later_is_read_beside_the_tail() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.tables = TableFilter { include: vec!["dbo.orders".into()], exclude: vec![] };
    world.import_all().await;
    world.config.tables.include.clear();
    world.import_all_rereads().await;
    // Taken out and in again: nobody published what happened in between.
    world.config.tables.include = vec!["dbo.orders".into()];
    world.import_all().await;
    world.sql("DELETE FROM dbo.items WHERE line_no = 2").await;
    world.import_all().await;
    world.config.tables.include.clear();
    world.import_all_rereads().await;
    check_rereads(&world).await;
    let events = world.events().await;
    assert_eq!(events.iter().filter(|event| is_reread(event) && table_of(event) == "items").count(), 6 + 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_table_is_emptied_where_gaps_are_mended() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.on_gap = GapPolicy::Resnapshot;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world
        .sql("EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'items', @capture_instance = N'dbo_items';\nGO\nDROP TABLE dbo.items;")
        .await;
    import.until("the news", |status| status.warnings.iter().any(|warning| warning.contains("dbo.items was dropped"))).await;
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let progress = check_rereads(&world).await;
    let reread = progress.iter().find_map(|record| record.rereads.get(&table("items"))).unwrap();
    assert!(reread.whole && reread.finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_longer_than_the_retention_goes_on_beside_the_tail() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(30))).await;
    world.config.snapshot.chunk_rows = 4;
    // A retention of a minute, of which a quarter counts as enough; what waits was committed an hour ago.
    world.sql("EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 1;").await;
    world.config.headroom_check = Duration::ZERO;
    world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(10) });
    let import = world.import();
    import.until("the first chunk", |status| status.tables.values().any(|table| table.snapshot_rows > 0)).await;
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.captured().await;
    world.server().set_time(std::time::SystemTime::now() + Duration::from_secs(3600));
    world.server().faults().clear();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET total = 11 WHERE id = 2;").await;
    import.reaches(world.captured().await).await;
    import
        .until("the rereads' end", |status| status.tables.values().all(|table| table.reread.is_none() && table.snapshot_done))
        .await;
    import.stop().await;
    assert_equal(&world).await;
    let progress = check_rereads(&world).await;
    let complete = progress.iter().find(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).unwrap();
    assert!(!complete.rereads.is_empty() && complete.rereads.values().all(|reread| !reread.whole && !reread.finished));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_only_ends_with_the_tables_as_of_one_lsn() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(4))).await;
    world.config.snapshot.mode = SnapshotMode::Only;
    let import = world.import();
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1;").await;
    import.task.await.unwrap().unwrap();
    let progress = world.progress().await;
    let from = progress.iter().find_map(|record| match record.phase {
        Phase::SnapshotComplete { consistent_from } => Some(consistent_from),
        _ => None,
    });
    assert!(progress.last().unwrap().to_lsn >= from.unwrap());
    // Again: there is nothing left to do.
    world.import().task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_snapshot_changes_follow_and_no_rows_from_before() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(4))).await;
    world.config.snapshot.mode = SnapshotMode::Never;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let events = world.events().await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["op"], "u");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reread_of_a_table_without_a_key_begins_anew_after_a_kill_and_what_counts_is_the_table() {
    let rows = |from: usize, to: usize| {
        let rows = (from..to).map(|n| format!("({}, 'x{}')", n / 2, n / 2)).collect::<Vec<_>>();
        rows.chunks(500).map(|rows| format!("INSERT INTO dbo.heap (a, b) VALUES {};\nGO\n", rows.join(", "))).collect::<String>()
    };
    let script = "
CREATE TABLE dbo.heap (a int NULL, b varchar(10) NULL);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'heap', @role_name = NULL;
GO
";
    let mut world = World::start(&format!("{script}{}", rows(0, 1200))).await;
    world.import_all().await;
    world.config.snapshot.chunk_rows = 100;
    world.config.snapshot.rows_per_second = Some(2000);
    let stream = world.config.output.layout.stream("shop", &table("heap"));
    let published = async || {
        let tips = streams::Provider::tips(&world.streams, &stream).await.unwrap();
        tips.values().filter_map(|tip| tip.to_u64()).sum::<u64>()
    };
    let (import, handle) = world.import_with_handle();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    handle.resnapshot(table("heap"), AskedRange::default()).await.unwrap();
    let before = published().await;
    while published().await == before {
        assert!(import.status.get().tables[&table("heap")].reread.is_some(), "it has ended");
        tokio::task::yield_now().await;
    }
    import.kill().await;
    world.sql(&format!("DELETE FROM dbo.heap WHERE a < 10;\nGO\n{}", rows(1200, 1210))).await;
    world.config.snapshot.rows_per_second = None;
    world.import_all_rereads().await;
    let progress = world.progress().await;
    assert!(progress.iter().filter(|record| !record.reread_counts.is_empty()).count() == 1, "it goes in one piece");
    // Rows of the reading that counts, and what has changed since it was read, as a bag.
    let covers = progress.iter().position(|record| !record.reread_counts.is_empty()).unwrap();
    let told = |record: &ProgressRecord| record.rereads.get(&table("heap")).map(|reread| reread.reading);
    let reading = told(&progress[covers]).unwrap();
    // A copy of them that comes after their record is of no reading that counts.
    let later: Vec<i32> = progress[covers + 1..].iter().filter_map(told).collect();
    assert!(!later.is_empty() && later.iter().all(|later| *later > reading), "{reading}, {later:?}");
    let events = world.events().await;
    let of_reading = |event: &&serde_json::Value| is_reread(event) && event["source"]["command_id"] == reading;
    let mut bag: Vec<String> = events.iter().filter(of_reading).map(|event| event["after"].to_string()).collect();
    assert!(events.iter().filter(|event| is_reread(event)).count() > bag.len(), "the first attempt has published rows, too");
    let source = world.sql("SELECT a, b FROM dbo.heap").await;
    let mut expected: Vec<String> = source[0]
        .iter()
        .map(|row| match row.as_slice() {
            [sqlserver::Value::Int(a), sqlserver::Value::Text(b)] => serde_json::json!({"a": a, "b": b}).to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    bag.sort();
    expected.sort();
    assert_eq!(bag, expected);
}
