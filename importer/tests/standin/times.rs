//! The commit times of progress records: that of a snapshot, which readers take for how far the source's time has come, and that none goes back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use importer::check::Level;
use importer::{Activity, AskedRange};
use schemas::TableName;
use schemas::progress::{Phase, ProgressRecord};
use sqlserver::{Fault, SqlError};

use crate::support::World;
use crate::workload::{SHOP, fill};

const MINUTE: Duration = Duration::from_secs(60);

/// A shop whose rows were there before anything was captured.
fn filled_before() -> String {
    let (tables, capture) = SHOP.split_once("EXEC sys.sp_cdc_enable_db").unwrap();
    format!("{tables}{}EXEC sys.sp_cdc_enable_db{capture}", fill(5))
}

/// Sets the server's clock so far ahead of ours. Answers the moment, in milliseconds since 1970-01-01 UTC.
fn ahead(world: &World, by: Duration) -> i64 {
    let now = SystemTime::now() + by;
    world.server().set_time(now);
    i64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Whether a time is that of a moment, or from shortly after it.
fn is_near(time_ms: i64, moment_ms: i64) -> bool {
    // `datetime` is precise to 3 ms and a third.
    (-4..60_000).contains(&(time_ms - moment_ms))
}

fn complete(progress: &[ProgressRecord]) -> &ProgressRecord {
    progress.iter().find(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_zone_is_held_against_the_servers_clock() {
    let world = World::standin(SHOP).await;
    let look = async |configured: Option<&str>| importer::check::time_zone(&world.config.source, configured).await.unwrap();
    assert_eq!((look(None).await.level, look(Some("UTC")).await.level), (Level::Ok, Level::Ok));
    world.server().set_time_zone("Asia/Kolkata").unwrap();
    let known = look(None).await;
    assert!(known.level == Level::Ok && known.detail.starts_with("Asia/"), "{known:?}");
    let other = look(Some("UTC")).await;
    assert!(other.level == Level::Warning && other.detail.contains("330 minutes late"), "{other:?}");
    assert_eq!(look(Some("Mars/Olympus")).await.level, Level::Problem);
    // A server of before 2022.
    let error = SqlError {
        number: 195,
        state: 10,
        class: 15,
        message: "'CURRENT_TIMEZONE_ID' is not known.".into(),
        procedure: String::new(),
        line: 1,
    };
    let matching = "CURRENT_TIMEZONE_ID".to_owned();
    world.server().faults().inject(Fault::FailRequest { matching, nth: 1, error });
    assert_eq!(look(None).await.level, Level::Warning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_has_the_time_of_the_last_commit_before_it_also_when_it_is_resumed() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(20))).await;
    // Local times, of a zone that the importer learns from the server.
    world.server().set_time_zone("Asia/Kolkata").unwrap();
    let before = ahead(&world, 60 * MINUTE);
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.captured().await;
    ahead(&world, 62 * MINUTE);
    world.config.snapshot.chunk_rows = 1;
    world.config.snapshot.connections = 1;
    world.config.snapshot.rows_per_second = Some(50);
    let import = world.import();
    import.until("the first chunks", |status| status.tables.values().any(|table| table.snapshot_rows > 2)).await;
    import.kill().await;
    world.config.snapshot.rows_per_second = None;
    let later = ahead(&world, 64 * MINUTE);
    world.sql("UPDATE dbo.orders SET total = 10 WHERE id = 1;").await;
    world.import_all().await;
    let progress = world.progress().await;
    let (snapshot, tail): (Vec<_>, Vec<_>) = progress.iter().partition(|record| record.phase != Phase::Tail);
    assert!(snapshot.len() > 3 && snapshot.iter().all(|record| is_near(record.commit_time_ms, before)), "{snapshot:?}");
    assert!(!tail.is_empty() && tail.iter().all(|record| is_near(record.commit_time_ms, later)), "{tail:?}");
    complete(&progress);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_before_which_nothing_was_captured_has_the_time_of_its_beginning() {
    for fenced in [false, true] {
        let mut world = World::standin(&filled_before()).await;
        world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;").await;
        world.config.snapshot.fenced = fenced;
        // What enabling leaves in it.
        world.sql("DELETE FROM cdc.lsn_time_mapping;").await;
        // Less than after which capture makes an empty entry.
        let begun = ahead(&world, 3 * MINUTE);
        let import = world.import();
        import.until("the tail", |status| status.activity == Activity::Tailing).await;
        let progress = world.progress().await;
        let complete = complete(&progress);
        assert!(is_near(complete.commit_time_ms, begun), "fenced: {fenced}, {complete:?}");
        let later = ahead(&world, 4 * MINUTE);
        world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
        import.reaches(world.captured().await).await;
        import.stop().await;
        let last = world.progress().await.pop().unwrap();
        assert!(last.phase == Phase::Tail && is_near(last.commit_time_ms, later), "{last:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_is_known_again_after_a_restart_and_never_goes_back() {
    let world = World::standin(&(SHOP.to_owned() + &fill(5))).await;
    let before = ahead(&world, MINUTE);
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.import_all().await;
    ahead(&world, 3 * MINUTE);
    // Rows are read again while nothing is committed.
    let (import, handle) = world.import_with_handle();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    assert!(is_near(import.status.get().published_commit_time_ms.unwrap(), before));
    handle.resnapshot(TableName::new("dbo", "orders"), AskedRange::default()).await.unwrap();
    let orders = TableName::new("dbo", "orders");
    let rows = |record: &ProgressRecord| record.reread_counts.contains_key(&orders);
    import.until("the end of the reread", |status| status.tables[&orders].reread.is_none()).await;
    // Capture makes an empty entry, as it does on a database where nothing happens.
    let idle = ahead(&world, 9 * MINUTE);
    import.reaches(world.captured().await).await;
    import.stop().await;
    let progress = world.progress().await;
    assert!(progress.iter().any(rows));
    assert!(progress.iter().filter(|record| rows(record)).all(|record| is_near(record.commit_time_ms, before)), "{progress:?}");
    assert!(progress.is_sorted_by_key(|record| record.commit_time_ms), "{progress:?}");
    assert!(is_near(progress.last().unwrap().commit_time_ms, idle), "{:?}", progress.last());
}
