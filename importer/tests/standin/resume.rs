//! Restarts: in the middle of the snapshot, in the middle of the tail, with changes in between.

use crate::support::{World, check_progress, tail_in_order};
use crate::workload::{SHOP, assert_equal, fill};
use schemas::progress::Phase;
use sqlserver::Fault;

/// Changes all over the tables, in `n` transactions.
fn churn(from: usize, n: usize) -> String {
    let mut script = String::new();
    for step in from..from + n {
        let id = 1 + step % 20;
        script.push_str(&format!(
            "BEGIN TRANSACTION; UPDATE dbo.orders SET total = total + 1, customer = N'step {step}' WHERE id = {id}; \
             DELETE FROM dbo.items WHERE order_id = {id} AND line_no = 2; \
             INSERT INTO dbo.items (order_id, line_no, product) VALUES ({id}, 2, 'step {step}'); COMMIT TRANSACTION;\nGO\n"
        ));
    }
    script
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_chunk_the_snapshot_goes_on_where_it_was() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(20))).await;
    world.config.snapshot.chunk_rows = 3;
    // 20 orders and 40 items in chunks of 3: 7 and 14 chunks, and each run ends at its third request for rows.
    let mut runs = 0;
    loop {
        runs += 1;
        world.server().faults().inject(Fault::DelayAnswers { by: std::time::Duration::from_millis(5) });
        let before = world.progress().await.len();
        let import = world.import();
        let target = before + 3;
        let streams = world.streams.clone();
        let progress = streams::Layout::progress_stream(&world.config.output.prefix);
        let tip = || async {
            streams::Provider::tips(&streams, &progress)
                .await
                .map(|tips| tips.values().next().and_then(|tip| tip.to_u64()).unwrap_or(0))
                .unwrap_or(0)
        };
        while tip().await < target as u64 && import.status.get().activity != importer::Activity::Tailing {
            assert!(!import.task.is_finished(), "{:?}", import.status.get());
            tokio::task::yield_now().await;
        }
        let done = import.status.get().activity == importer::Activity::Tailing;
        import.kill().await;
        world.server().faults().clear();
        world.sql(&churn(runs * 3, 3)).await;
        if done {
            break;
        }
    }
    assert!(runs >= 5, "{runs} runs");
    world.import_all().await;
    assert_equal(&world).await;
    let progress = world.progress().await;
    check_progress(&progress);
    let epochs: Vec<u64> = progress.iter().map(|record| record.epoch).collect();
    assert!(epochs.is_sorted() && *epochs.last().unwrap() > epochs[0], "each start has a greater epoch");
    let complete = progress.iter().filter(|record| matches!(record.phase, Phase::SnapshotComplete { .. })).count();
    assert_eq!(complete, 1);
    // A chunk is at most read twice: the one in progress at each kill.
    let read: u64 =
        progress.iter().filter(|record| record.phase == Phase::Snapshot).flat_map(|record| record.counts.values()).sum();
    assert!((60..60 + 6 * runs as u64).contains(&read), "{read} rows read in {runs} runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_made_while_it_was_down_are_published_once_it_is_up() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(20))).await;
    world.config.tick_transactions = 2;
    world.import_all().await;
    for round in 0..5 {
        world.sql(&churn(round * 10, 10)).await;
        let captured = world.captured().await;
        let import = world.import();
        if round % 2 == 0 {
            // Somewhere in the middle.
            import.until("some progress", |status| status.published_lsn.is_some()).await;
            import.kill().await;
        } else {
            import.reaches(captured).await;
            import.stop().await;
        }
    }
    world.import_all().await;
    assert_equal(&world).await;
    for pair in world.progress().await.windows(2) {
        // Also after a restart a record speaks of every shard, and none goes back.
        for (stream, shards) in &pair[0].positions {
            assert!(shards.iter().all(|(shard, number)| pair[1].positions[stream][shard] >= *number), "{pair:?}");
        }
    }
    let tail = tail_in_order(&world.events().await);
    assert_eq!(tail.len(), 5 * 10 * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_kind_tile_exactly() {
    let script = "
CREATE TABLE dbo.text_keys (name varchar(20) COLLATE Latin1_General_CI_AS NOT NULL, n smallint NOT NULL, CONSTRAINT PK_text PRIMARY KEY (name, n));
GO
CREATE TABLE dbo.guids (id uniqueidentifier NOT NULL PRIMARY KEY, n int NOT NULL);
GO
CREATE TABLE dbo.moments (at datetime2(7) NOT NULL, d decimal(20,5) NOT NULL, b varbinary(8) NOT NULL, CONSTRAINT PK_moments PRIMARY KEY (at, d, b));
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'text_keys', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'guids', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'moments', @role_name = NULL;
GO
INSERT INTO dbo.text_keys (name, n) VALUES ('a', 1), ('A', 2), ('a', 3), ('B', -1), ('b', 0), ('b', 1), ('c''d', 5), ('Ä', 1), ('ae', 2), ('', 0), (' ', 1), ('Z', 1);
GO
INSERT INTO dbo.guids (id, n) VALUES ('6F9619FF-8B86-D011-B42D-00C04FC964FF', 1), ('00000000-0000-0000-0000-000000000001', 2),
  ('01000000-0000-0000-0000-000000000000', 3), ('FFFFFFFF-0000-0000-0000-000000000000', 4), ('00000000-0000-0000-FFFF-000000000000', 5), ('00000000-0000-FFFF-0000-000000000000', 6);
GO
INSERT INTO dbo.moments (at, d, b) VALUES ('2024-01-01T00:00:00.0000001', 1.5, 0x00), ('2024-01-01T00:00:00.0000001', 1.5, 0x0001), ('2024-01-01T00:00:00.0000001', -1.5, 0xFF),
  ('2024-01-01T00:00:00.0000002', 0.00001, 0x), ('0001-01-01', 999999999999999.99999, 0x01), ('9999-12-31T23:59:59.9999999', 0, 0x01);
";
    for chunk_rows in [1, 2, 3, 5] {
        let mut world = World::start(script).await;
        world.config.snapshot.chunk_rows = chunk_rows;
        world.import_all().await;
        let events = world.events().await;
        for (table, rows) in [("text_keys", 12), ("guids", 6), ("moments", 6)] {
            let read: Vec<String> = events
                .iter()
                .filter(|event| event["op"] == "r" && event["source"]["table"] == table)
                .map(|event| event["after"].to_string())
                .collect();
            let distinct: std::collections::BTreeSet<&String> = read.iter().collect();
            assert_eq!((read.len(), distinct.len()), (rows, rows), "{table} in chunks of {chunk_rows}: {read:#?}");
        }
    }
}
