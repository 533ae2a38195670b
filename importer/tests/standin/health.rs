//! Capture that stands still, retention that runs out, permissions that are missing: told, and survived.

use std::time::Duration;

use importer::{Activity, Error, Password, SourceFailure};

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
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.config.stall_check = Duration::from_millis(200);
    stalls(
        &world,
        async || world.server.set_agent_running(false),
        "Start the service SQL Server Agent",
        async || world.server.set_agent_running(true),
    )
    .await;
    let stop = async || drop(world.sql("EXEC sys.sp_cdc_stop_job @job_type = N'capture';").await);
    let start = async || drop(world.sql("EXEC sys.sp_cdc_start_job @job_type = N'capture';").await);
    stalls(&world, stop, "EXEC sys.sp_cdc_start_job @job_type = N'capture';", start).await;
    let fail = async || world.server.fail_capture("shop", Some((9002, "the log is full"))).unwrap();
    let heal = async || world.server.fail_capture("shop", None).unwrap();
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
    let mut world = World::start(&(SHOP.to_owned() + &fill(2))).await;
    world.sql("EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 240;").await;
    world.config.headroom_check = Duration::from_millis(20);
    world.import_all().await;
    world.sql("UPDATE dbo.orders SET total = 5 WHERE id = 1").await;
    world.captured().await;
    world.server.set_time(std::time::SystemTime::now() + Duration::from_secs(3 * 3600 + 60));
    // Nothing of the tail is read while the warning is waited for.
    world.server.faults().inject(sqlserver::Fault::CutAtRequest { matching: "_CT] WHERE".into(), nth: 1 });
    let import = world.import();
    import.until("the warning", |status| status.warnings.iter().any(|warning| warning.starts_with("retention headroom"))).await;
    let left = import.status.get().tables.values().find_map(|table| table.headroom_ms).unwrap();
    assert!((1..3_600_000).contains(&left), "{left}");
    import.reaches(world.captured().await).await;
    import.until("the warning's end", |status| status.warnings.is_empty()).await;
    import.stop().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_permissions_degrade_with_a_clear_word() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.sql("CREATE LOGIN reader WITH PASSWORD = 'Reader!1';\nGO\nCREATE USER reader FOR LOGIN reader;\nGO\nGRANT SELECT ON SCHEMA::cdc TO reader;\nGO\nGRANT SELECT ON SCHEMA::dbo TO reader;").await;
    world.config.source.user = "reader".into();
    world.config.source.password = Password::new("Reader!1");
    world.config.stall_check = Duration::from_millis(100);
    let import = world.import();
    // Without a look at the capture job's scans, a transaction that was committed clearly later says that the snapshot is captured.
    while import.status.get().activity != Activity::Tailing {
        assert!(!import.task.is_finished(), "{:?}", import.status.get());
        world.sql("UPDATE dbo.orders SET total = total + 1").await;
        world.captured().await;
    }
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
}
