//! Many tables, large transactions, many rows.

use std::time::Instant;

use importer::Activity;
use schemas::TableName;

use crate::support::{World, tail_in_order};
use crate::workload::{SHOP, assert_equal, fill};

/// Many tables, of which few change. The limit of 100 ms is for an optimised build on an idle machine; here it is only that nothing grows with the square.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_hundreds_of_tables_only_those_that_changed_are_read() {
    const TABLES: usize = 300;
    let mut script = String::from("EXEC sys.sp_cdc_enable_db;\nGO\n");
    for n in 0..TABLES {
        script.push_str(&format!(
            "CREATE TABLE dbo.t{n} (id int NOT NULL PRIMARY KEY, v int NOT NULL);\nGO\nEXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N't{n}', @role_name = NULL;\nGO\nINSERT INTO dbo.t{n} (id, v) VALUES (1, 0);\nGO\n"
        ));
    }
    let world = World::start(&script).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    let mut ticks = Vec::new();
    for round in 1..=10 {
        let changes: String = (0..5).map(|n| format!("UPDATE dbo.t{} SET v = {round} WHERE id = 1;", n * 50)).collect();
        world.sql(&format!("BEGIN TRANSACTION; {changes} COMMIT TRANSACTION;")).await;
        let captured = world.captured().await;
        let started = Instant::now();
        import.reaches(captured).await;
        ticks.push(started.elapsed());
    }
    ticks.sort_unstable();
    import.stop().await;
    assert_eq!(tail_in_order(&world.events().await).len(), 50);
    println!("300 tables, 5 changed: from captured to acknowledged {:?} at the median, {:?} at most", ticks[5], ticks[9]);
    assert!(ticks[5].as_millis() < 1000, "{ticks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_is_read_in_pages_within_bounded_memory() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    world.import_all().await;
    // Doubled in one transaction: 1 to 2^n rows.
    let doublings = std::env::var("TRIBUTARY_LARGE_TRANSACTION_DOUBLINGS").ok().and_then(|text| text.parse().ok()).unwrap_or(14);
    let mut script = String::from(
        "BEGIN TRANSACTION;\nINSERT INTO dbo.orders (id, customer, total) VALUES (1000, N'a customer of a usual name', 12.50);\n",
    );
    for n in 0..doublings {
        script.push_str(&format!(
            "INSERT INTO dbo.orders (id, customer, total) SELECT id + {}, customer, total FROM dbo.orders WHERE id >= 1000;\n",
            1 << n
        ));
    }
    script.push_str("COMMIT TRANSACTION;");
    world.sql(&script).await;
    let captured = world.captured().await;
    world.config.output.layout = streams::Layout::Shared;
    let before = resident_kb();
    let import = world.import_into(std::sync::Arc::new(crate::sink::Counting));
    let most = std::cell::Cell::new(0);
    import
        .until("the LSN", |status| {
            most.set(most.get().max(resident_kb()));
            status.published_lsn >= Some(captured)
        })
        .await;
    let published = import.status.get().tables[&TableName::new("dbo", "orders")].published;
    import.stop().await;
    assert_eq!(published, 1 << doublings);
    let grown = most.get().saturating_sub(before) / 1024;
    println!("{published} rows in one transaction: {grown} MB more than before");
    assert!(grown < 300, "{grown} MB for {published} rows");
}

/// Resident memory of this process, the stand-in included.
fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kb| kb.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_is_read_in_ranges_side_by_side_each_row_once() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(40))).await;
    world.config.snapshot.split_rows = 10;
    world.config.snapshot.chunk_rows = 4;
    world.import_all().await;
    assert_equal(&world).await;
    let rows = world.events().await.len();
    assert_eq!(rows, 40 + 80);
    // As many ranges as connections.
    let saved = std::fs::read_to_string(world.config.data_dir.join("progress.json")).unwrap();
    assert!(saved.contains("\"tail\""), "{saved}");
}
