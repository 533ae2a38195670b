//! Capture that stands still, retention that runs out, permissions that are missing: told, and survived.

use std::sync::Arc;
use std::time::Duration;

use importer::{Activity, Error, Password, SourceFailure};
use schemas::TableName;

use crate::gate::Gate;
use crate::rereads::PURGE;
use crate::support::World;
use crate::workload::{SHOP, assert_equal, fill};

/// Runs until a warning of a stalled capture comes that says what mends it, mends it so, and goes on to the end.
async fn stalls(world: &World, how: impl AsyncFn(), told: &str, mend: impl AsyncFn()) {
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    how().await;
    world.sql("UPDATE dbo.orders SET total = total + 1").await;
    let stalled = |warning: &String| warning.starts_with("capture has stalled") && warning.contains(told);
    import.until(told, |status| status.warnings.iter().any(stalled)).await;
    mend().await;
    import.reaches(world.captured().await).await;
    import
        .until("the warning's end", |status| !status.warnings.iter().any(|warning| warning.starts_with("capture has stalled")))
        .await;
    import.stop().await;
    assert_equal(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_capture_alarms_with_the_remedy_and_loses_nothing() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(3))).await;
    world.config.stall_check = Duration::from_millis(200);
    stalls(
        &world,
        async || world.server().set_agent_running(false),
        "Start the service SQL Server Agent",
        async || world.server().set_agent_running(true),
    )
    .await;
    let stop = async || drop(world.sql("EXEC sys.sp_cdc_stop_job @job_type = N'capture';").await);
    let start = async || drop(world.sql("EXEC sys.sp_cdc_start_job @job_type = N'capture';").await);
    stalls(&world, stop, "EXEC sys.sp_cdc_start_job @job_type = N'capture';", start).await;
    let fail = async || world.server().fail_capture("shop", Some((9002, "the log is full"))).unwrap();
    let heal = async || world.server().fail_capture("shop", None).unwrap();
    stalls(&world, fail, "the log is full", heal).await;
    let failover = async || drop(world.sql("EXEC sys.sp_cdc_drop_job @job_type = N'capture';").await);
    let add = async || drop(world.sql("EXEC sys.sp_cdc_add_job @job_type = N'capture';").await);
    stalls(&world, failover, "EXEC sys.sp_cdc_add_job @job_type = N'capture';", add).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_table_past_retention_resumes() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.import_all().await;
    // All of its changes were read, and are gone; the watermark is where the importer stands, and then beyond: another table went on.
    world.sql(PURGE).await;
    world.sql("UPDATE dbo.items SET product = 'goes on'").await;
    world.import_all().await;
    world.captured().await;
    world.sql(PURGE).await;
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1").await;
    world.import_all().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_min_lsn_is_not_the_start() {
    let world = World::start(&(SHOP.to_owned() + &fill(2))).await;
    world.import_all().await;
    // An instance whose beginning cannot be told: nobody knows what of it is there.
    world.sql("UPDATE cdc.change_tables SET start_lsn = 0x00000000000000000000 WHERE capture_instance = N'dbo_orders'; UPDATE dbo.items SET product = 'x';").await;
    let error = world.import_error().await;
    assert!(matches!(error, Error::Source(SourceFailure::InstanceGone { .. } | SourceFailure::Gap { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_headroom_is_told_and_warned_of() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(2))).await;
    world.sql("EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 240;").await;
    world.config.headroom_check = Duration::from_millis(20);
    world.import_all().await;
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1").await;
    world.captured().await;
    world.server().set_time(std::time::SystemTime::now() + Duration::from_secs(3 * 3600 + 60));
    // Nothing of the tail is read while the warning is waited for.
    world.server().faults().inject(sqlserver::Fault::CutAtRequest { matching: "_CT] WHERE".into(), nth: 1 });
    let import = world.import();
    import.until("the warning", |status| status.warnings.iter().any(|warning| warning.starts_with("retention headroom"))).await;
    let status = import.status.get();
    let left = |name: &str| status.tables[&TableName::new("dbo", name)].headroom_ms.unwrap();
    assert!((1..3_600_000).contains(&left("orders")), "{status:?}");
    assert_eq!(left("items"), 240 * 60_000, "nothing of it waits");
    assert!(status.warnings.iter().any(|warning| warning.contains("changes of dbo.orders that wait")), "{:?}", status.warnings);
    import.reaches(world.captured().await).await;
    import.until("the warning's end", |status| status.warnings.is_empty()).await;
    import.stop().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_permissions_degrade_with_a_clear_word() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(3))).await;
    world.sql("CREATE LOGIN reader WITH PASSWORD = 'Reader!1';\nGO\nCREATE USER reader FOR LOGIN reader;\nGO\nGRANT SELECT ON SCHEMA::cdc TO reader;\nGO\nGRANT SELECT ON SCHEMA::dbo TO reader;").await;
    world.config.source.user = "reader".into();
    world.config.source.password = Password::new("Reader!1");
    world.config.stall_check = Duration::from_millis(100);
    let import = world.import();
    // Without a look at the capture job's scans, a transaction that was committed clearly later says that the snapshot is captured; that is told.
    let blind = |warning: &String| warning.contains("GRANT VIEW DATABASE STATE") && warning.contains("up to 5 minutes");
    import.until("what it waits for", |status| status.warnings.iter().any(blind)).await;
    while import.status.get().activity != Activity::Tailing {
        assert!(!import.task.is_finished(), "{:?}", import.status.get());
        world.sql("UPDATE dbo.orders SET total = total + 1").await;
        world.captured().await;
    }
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
}

/// Publishing stands still while orders' changes, which stand behind thousands of others, are in danger; then they are removed. Answers what becomes of the importer: orders' changes must have
/// been read when `read` holds for how often pages of orders and of items were asked for.
async fn endangered(headroom_warning: Duration, read: impl Fn(u64, u64) -> bool) -> Result<(), Error> {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(3))).await;
    let rows = |from: usize, to: usize, row: &dyn Fn(usize) -> String| (from..to).map(row).collect::<Vec<_>>().join(", ");
    let orders = rows(1000, 1300, &|id| format!("({id}, N'many', 0)"));
    world.sql(&format!("INSERT INTO dbo.orders (id, customer, total) VALUES {orders}")).await;
    world.sql("EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 240;").await;
    world.config.headroom_warning = headroom_warning;
    world.config.page_rows = 50;
    world.config.tail_connections = 1;
    world.import_all().await;
    world.sql("UPDATE dbo.orders SET total = 1 WHERE id = 1").await;
    world.captured().await;
    world.server().set_time(std::time::SystemTime::now() + Duration::from_secs(3 * 3600 + 60));
    // More than the reader hands over before somebody takes it.
    for part in 0..12 {
        let items = rows(part * 1000, (part + 1) * 1000, &|line| format!("(3, {}, 'x')", line + 10));
        world.sql(&format!("INSERT INTO dbo.items (order_id, line_no, product) VALUES {items}")).await;
    }
    world.sql("UPDATE dbo.orders SET total = 2 WHERE id >= 1000").await;
    let to = world.captured().await;
    let pages = ["dbo_orders_CT] WHERE", "dbo_items_CT] WHERE"];
    for page in pages {
        world.server().faults().inject(sqlserver::Fault::CutAtRequest { matching: page.into(), nth: u64::MAX });
    }
    let gate = Gate::new(&world.streams, "\"snapshot\":\"false\"");
    let import = world.import_into(Arc::new(gate.clone()));
    let [orders, items] = pages.map(|page| move |world: &World| world.server().faults().requests(page));
    import.until("what can be read", |_| gate.holds() && read(orders(&world), items(&world))).await;
    // There is one connection: whoever asks next, asks when the last page of orders has come.
    let before = items(&world);
    import.until("the page's end", |_| items(&world) > before).await;
    world.sql(PURGE).await;
    gate.open();
    let status = import.status.clone();
    let published = async {
        while status.get().published_lsn < Some(to) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        ended = import.task => return ended.unwrap(),
        () = published => {}
    }
    assert_equal(&world).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_in_danger_is_read_ahead_of_cleanup_though_nothing_can_be_published() {
    // 301 changes, of two rows each, in pages of 50.
    endangered(Duration::from_secs(12 * 3600), |orders, _| orders == 13).await.unwrap();
    // Without, they are still where cleanup finds them.
    let error = endangered(Duration::from_secs(1), |orders, items| orders < 13 && items > 80).await.unwrap_err();
    assert!(matches!(error, Error::Source(SourceFailure::Gap { .. })), "{error}");
}
