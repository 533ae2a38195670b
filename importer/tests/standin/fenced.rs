//! Fenced snapshots, and snapshots that give way to a busy source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use importer::Activity;
use schemas::progress::Phase;
use serde_json::Value as Json;
use sqlserver::Fault;

use crate::support::{World, table_of, tail_in_order};
use crate::workload::{SHOP, assert_equal, fill, key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_snapshot_is_the_tables_as_of_one_lsn() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(20))).await;
    world.config.snapshot.fenced = true;
    world.config.snapshot.chunk_rows = 3;
    let error = world.import_error().await.to_string();
    assert!(error.contains("ALLOW_SNAPSHOT_ISOLATION ON"), "{error}");
    world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;").await;
    world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(3) });
    let import = world.import();
    import.until("the first chunk", |status| status.tables.values().any(|table| table.snapshot_rows > 0)).await;
    world.sql("UPDATE dbo.orders SET total = 500; UPDATE dbo.items SET product = 'late';").await;
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.server().faults().clear();
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
    let read: Vec<_> = world.events().await.into_iter().filter(|event| event["op"] == "r").collect();
    assert_eq!(read.len(), 60);
    assert!(
        read.iter().all(|event| event["after"]["total"] != "500.00" && event["after"]["product"] != "late"),
        "nothing later is seen"
    );
    let progress = world.progress().await;
    let complete = progress.iter().find(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).unwrap();
    assert_eq!(complete.phase, Phase::SnapshotComplete { consistent_from: complete.to_lsn });
}

/// A database that allows SNAPSHOT isolation, and an importer that makes use of it.
async fn fenced() -> World {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(20))).await;
    world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;").await;
    world.config.snapshot.fenced = true;
    world.config.snapshot.chunk_rows = 3;
    world
}

/// Transactions over both tables, one after the other, until told to stop. Answers how many there were.
fn write(world: &World, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<usize> {
    let (server, stop) = (Arc::clone(world.server()), Arc::clone(stop));
    tokio::task::spawn_blocking(move || {
        let mut count = 0;
        while !stop.load(Ordering::Acquire) {
            count += 1;
            let id = 1 + count % 20;
            let script = format!(
                "BEGIN TRANSACTION; UPDATE dbo.orders SET total = total + 1 WHERE id = {id}; \
                 UPDATE dbo.items SET product = 'change {count}' WHERE order_id = {id}; COMMIT TRANSACTION;"
            );
            server.execute(&script).unwrap();
        }
        count
    })
}

/// The rows of the last snapshot, after which each change finds its row exactly as the change before has left it: nothing is missing at the cut, and nothing is there twice.
fn follows_exactly(events: &[Json], snapshot: &[Json]) {
    let mut held: BTreeMap<(String, String), Json> = BTreeMap::new();
    for event in snapshot {
        let (table, row) = (table_of(event), &event["after"]);
        assert_eq!(held.insert((table.to_owned(), key(table, row)), row.clone()), None, "{row} was read twice");
    }
    for event in tail_in_order(events) {
        let (table, before, after) = (table_of(&event), &event["before"], &event["after"]);
        let place = (table.to_owned(), key(table, after));
        assert_eq!(held.get(&place), Some(before), "{event}");
        held.insert(place, after.clone());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cut_of_a_fenced_snapshot_is_exact_under_concurrent_writes() {
    let world = fenced().await;
    let stop = Arc::default();
    let writer = write(&world, &stop);
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    stop.store(true, Ordering::Release);
    assert!(writer.await.unwrap() > 0);
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
    let events = world.events().await;
    let snapshot: Vec<Json> = events.iter().filter(|event| event["op"] == "r").cloned().collect();
    assert_eq!(snapshot.len(), 60);
    follows_exactly(&events, &snapshot);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_snapshot_that_breaks_off_begins_anew_and_loses_nothing() {
    let mut world = fenced().await;
    world.config.snapshot.rows_per_second = Some(100);
    let first = world.import();
    first.until("the first chunks", |status| status.tables.values().map(|table| table.snapshot_rows).sum::<u64>() > 9).await;
    first.kill().await;
    let begun = world.progress().await;
    assert!(begun.iter().all(|record| record.phase == Phase::Snapshot), "{begun:?}");
    let published = world.events().await.len();
    // In between: changed, moved, removed, added.
    world
        .sql(
            "UPDATE dbo.orders SET total = 77 WHERE id = 1;\nGO\nUPDATE dbo.orders SET id = 100 WHERE id = 2;\nGO\n\
             DELETE FROM dbo.items WHERE order_id = 3;\nGO\nINSERT INTO dbo.orders (id, customer, total) VALUES (50, N'new', 5);",
        )
        .await;
    world.config.snapshot.rows_per_second = None;
    let stop = Arc::default();
    let writer = write(&world, &stop);
    let second = world.import();
    second.until("the tail", |status| status.activity == Activity::Tailing).await;
    stop.store(true, Ordering::Release);
    writer.await.unwrap();
    second.reaches(world.captured().await).await;
    second.stop().await;
    assert_equal(&world).await;
    let events = world.events().await;
    let anew = events[published..].iter().filter(|event| event["op"] == "r").count();
    assert_eq!(anew, 20 + 1 + 38, "the tables as they are now, from their beginning");
    // Rows of two moments: they are the tables of one once the tail has passed the second one's LSN, and not before.
    let progress = world.progress().await;
    let complete = progress.iter().find(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).unwrap();
    let Phase::SnapshotComplete { consistent_from } = complete.phase else { panic!() };
    assert!(consistent_from > complete.to_lsn, "{complete:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_pauses_while_the_source_shows_stress() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(40))).await;
    world.config.snapshot.chunk_rows = 1;
    world.config.snapshot.connections = 1;
    for yields in [true, false] {
        world.config.snapshot.yield_to_load = yields;
        world.config.data_dir = world.directory.path().join(format!("yields {yields}"));
        world.streams = streams::memory::Memory::new();
        world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(5) });
        let import = world.import();
        import.until("some chunks", |status| status.tables.values().any(|table| table.snapshot_rows > 3)).await;
        world.server().faults().clear();
        world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(250) });
        let read = || import.status.get().tables.values().map(|table| table.snapshot_rows).sum::<u64>();
        let before = read();
        // Rows that were being read when it became slow are no sign yet.
        import.until("slow chunks", |_| read() > before + 4).await;
        let pauses = import.status.get().pauses;
        assert_eq!(pauses > 0, yields, "{pauses} pauses");
        world.server().faults().clear();
        import.reaches(world.captured().await).await;
        import.stop().await;
        assert_equal(&world).await;
    }
}
