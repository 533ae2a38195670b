//! Several importers of one source: one works, the others take over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use importer::{Activity, AskedRange, LeaseConfig, Password};
use schemas::TableName;
use streams::Provider;

use crate::chaos::{History, follow};
use crate::gate::Gate;
use crate::support::{World, check_progress};
use crate::workload::{SHOP, assert_equal, fill};

/// Longer than a takeover may take, shorter than a test may.
const SECONDS: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_importers_one_works_and_the_other_takes_over_within_seconds() {
    let world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    let first = world.import();
    first.until("the tail", |status| status.activity == Activity::Tailing).await;
    let second = world.import();
    second.until("its turn", |status| status.activity == Activity::Waiting).await;
    world.sql("UPDATE dbo.orders SET total = total + 1").await;
    first.reaches(world.captured().await).await;
    assert_eq!(second.status.get().activity, Activity::Waiting);
    // In the middle of its work.
    world.sql("UPDATE dbo.items SET product = 'killed'; UPDATE dbo.orders SET total = total + 1").await;
    let epoch = first.status.get().epoch;
    first.kill().await;
    let killed = Instant::now();
    second.reaches(world.captured().await).await;
    assert!(killed.elapsed() < SECONDS, "it took {:?}", killed.elapsed());
    assert!(second.status.get().epoch > epoch);
    // One that stops gives way as well.
    let third = world.import();
    third.until("its turn", |status| status.activity == Activity::Waiting).await;
    second.stop().await;
    world.sql("UPDATE dbo.orders SET total = total + 1").await;
    third.reaches(world.captured().await).await;
    third.stop().await;
    assert_equal(&world).await;
    let progress = world.progress().await;
    check_progress(&progress);
    let epochs: Vec<u64> = progress.iter().map(|record| record.epoch).collect();
    assert!(epochs.is_sorted(), "records of an older epoch do not follow those of a newer one: {epochs:?}");
    assert_eq!(epochs.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_another_machine_the_successor_goes_on_from_the_progress_in_the_leases_store() {
    let server = tokio::task::spawn_blocking(sinks::test_support::PostgresServer::start).await.unwrap();
    let mut world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    world.config.lease = LeaseConfig::Postgres { url: Password::new(server.url()) };
    let first = world.import();
    first.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.config.data_dir = world.directory.path().join("another");
    let second = world.import();
    second.until("its turn", |status| status.activity == Activity::Waiting).await;
    world.sql("UPDATE dbo.orders SET total = total + 1").await;
    first.reaches(world.captured().await).await;
    world.sql("UPDATE dbo.items SET product = 'killed';").await;
    first.kill().await;
    second.reaches(world.captured().await).await;
    second.stop().await;
    assert_equal(&world).await;
    let events = world.events().await;
    assert_eq!(events.iter().filter(|event| event["op"] == "r").count(), 15, "no second snapshot");
    check_progress(&world.progress().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_replaced_importer_publishes_late_are_told_apart() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(12))).await;
    let mut history = History::default();
    world.config.snapshot.chunk_rows = 3;
    world.import_all().await;
    // A second between two chunks.
    world.config.snapshot.rows_per_second = Some(3);
    let orders = TableName::new("dbo", "orders");
    // It freezes in the middle of publishing what it has read.
    let frozen = Gate::new(&world.streams, "incremental");
    let (first, handle) = world.import_with_handle_into(Arc::new(frozen.clone()));
    first.until("the tail", |status| status.activity == Activity::Tailing).await;
    handle.resnapshot(orders.clone(), AskedRange::default()).await.unwrap();
    first.until("rows to publish", |_| frozen.holds()).await;
    first.kill().await;
    world.sql("UPDATE dbo.orders SET total = total + 100; DELETE FROM dbo.orders WHERE id = 2;").await;
    let second = world.import();
    second.reaches(history.look(&world).await).await;
    second.until("rows of its own", |status| status.tables[&orders].snapshot_rows > 0).await;
    // Now the first one's request arrives.
    let stream = world.config.output.layout.stream("shop", &orders);
    let mut writer = world.streams.writer().await.unwrap();
    writer.append(&stream, frozen.take()).await.unwrap();
    let arrived = writer.flush().await.unwrap().remove(&stream).unwrap();
    second.until("the reread's end", |status| status.tables[&orders].reread.is_none()).await;
    world.sql("UPDATE dbo.items SET product = 'last' WHERE line_no = 1").await;
    second.reaches(history.look(&world).await).await;
    second.stop().await;
    let covering = |record: &&schemas::progress::ProgressRecord| {
        arrived.iter().all(|(shard, number)| record.positions[&stream].get(shard).is_some_and(|covered| covered >= number))
    };
    let progress = world.progress().await;
    let record = progress.iter().find(covering).unwrap();
    assert!(record.rereads.contains_key(&orders), "they arrived when the table was no longer being read: {record:?}");
    assert!(follow(&world, &history).await >= 1);
}
