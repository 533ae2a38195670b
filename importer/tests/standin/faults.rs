//! Lost connections, lost answers, failing streams, purged ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use importer::{Error, SourceFailure};
use schemas::contract::Contract;
use schemas::progress::{Phase, ShardPositions, StreamName};
use schemas::{ErrorClass, TableName};
use serde_json::json;
use sqlserver::{Fault, SqlError};
use streams::memory::Memory;
use streams::{Positions, Provider, Record, StreamReader, StreamWriter};

use crate::support::{World, check_progress, tail_in_order};
use crate::workload::{SHOP, assert_equal, fill};

const CHANGES: &str = "
BEGIN TRANSACTION; UPDATE dbo.orders SET total = total + 1 WHERE id <= 12 OR id >= 1000; UPDATE dbo.items SET product = 'x' WHERE order_id <= 12; COMMIT TRANSACTION;
GO
DELETE FROM dbo.items WHERE order_id = 1;
GO
UPDATE dbo.orders SET id = 1000 WHERE id = 1;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_is_cut_at_every_request_of_the_tail() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(12))).await;
    world.config.page_rows = 4;
    world.import_all().await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    let text = |text: &str| text.to_owned();
    let faults = [
        Fault::CutAtRequest { matching: text("lsn_time_mapping"), nth: 1 },
        Fault::LoseAnswer { matching: text("lsn_time_mapping"), nth: 1 },
        Fault::CutAtRequest { matching: text("AS max_lsn FROM cdc.["), nth: 1 },
        Fault::CutAtRequest { matching: text("_CT] WHERE"), nth: 1 },
        Fault::CutInResult { matching: text("_CT] WHERE"), nth: 1, rows: 2 },
        Fault::LoseAnswer { matching: text("_CT] WHERE"), nth: 2 },
        Fault::CutInResult { matching: text("AS page ORDER BY"), nth: 1, rows: 1 },
        Fault::CutAtRequest { matching: text("AS page ORDER BY"), nth: 3 },
        Fault::FailRequest {
            matching: text("_CT] WHERE"),
            nth: 1,
            error: SqlError {
                number: 1205,
                state: 1,
                class: 13,
                message: "deadlock victim".into(),
                procedure: String::new(),
                line: 1,
            },
        },
    ];
    for (round, fault) in faults.into_iter().enumerate() {
        let struck = world.server().faults().struck();
        world.server().faults().inject(fault.clone());
        world
            .sql(&CHANGES.replace("id = 1;", &format!("id = {};", 1 + round)).replace("1000", &(1000 + round).to_string()))
            .await;
        let captured = world.captured().await;
        import.reaches(captured).await;
        let (now, pages) = (world.server().faults().struck(), world.server().faults().requests("AS page ORDER BY"));
        assert_eq!(now, struck + 1, "{fault:?} did not strike up to {captured}: {pages} pages, {:?}", import.status.get());
    }
    import.stop().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_is_cut_all_over_the_snapshot() {
    for nth in [1, 2, 3, 5, 8] {
        let mut world = World::standin(&(SHOP.to_owned() + &fill(12))).await;
        world.config.snapshot.chunk_rows = 5;
        world.server().faults().inject(Fault::CutAtRequest { matching: "AS t".into(), nth });
        world.server().faults().inject(Fault::CutInResult { matching: "AS t".into(), nth: nth + 1, rows: 2 });
        world.import_all().await;
        assert_equal(&world).await;
    }
}

/// A provider whose writers fail at a chosen call.
struct Failing {
    inner: Memory,
    /// The largest record that is taken.
    limit: usize,
    calls: Arc<AtomicU64>,
    /// Every so many calls of `append` and `flush`, one fails: in turn before and after it has had its effect.
    every: u64,
}

struct FailingWriter {
    inner: Box<dyn StreamWriter>,
    limit: usize,
    calls: Arc<AtomicU64>,
    every: u64,
}

fn failure() -> streams::Error {
    streams::Error::Io { path: "test".into(), source: std::io::Error::other("the answer was lost") }
}

impl FailingWriter {
    /// Whether this call fails, and whether before its effect.
    fn fails(&self) -> Option<bool> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        call.is_multiple_of(self.every).then(|| (call / self.every).is_multiple_of(2))
    }
}

#[async_trait]
impl StreamWriter for FailingWriter {
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), streams::Error> {
        // As Kinesis counts: the partition key with the data.
        let mut sizes = records.iter().map(|record| record.data.len() + record.partition_key.len());
        if let Some(bytes) = sizes.find(|bytes| *bytes > self.limit) {
            return Err(streams::Error::TooLarge { stream: stream.clone(), bytes, limit: self.limit });
        }
        match self.fails() {
            Some(true) => Err(failure()),
            Some(false) => {
                self.inner.append(stream, records).await?;
                Err(failure())
            }
            None => self.inner.append(stream, records).await,
        }
    }

    async fn flush(&mut self) -> Result<ShardPositions, streams::Error> {
        let positions = self.inner.flush().await?;
        if self.fails().is_some() { Err(failure()) } else { Ok(positions) }
    }
}

#[async_trait]
impl Provider for Failing {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), streams::Error> {
        self.inner.ensure(stream, shards).await
    }
    async fn writer(&self) -> Result<Box<dyn StreamWriter>, streams::Error> {
        Ok(Box::new(FailingWriter {
            inner: self.inner.writer().await?,
            limit: self.limit,
            calls: Arc::clone(&self.calls),
            every: self.every,
        }))
    }
    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, streams::Error> {
        self.inner.reader(stream, after).await
    }
    async fn tips(&self, stream: &StreamName) -> Result<Positions, streams::Error> {
        self.inner.tips(stream).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_fail_now_and_then_cost_repeats_and_nothing_else() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(12))).await;
    world.config.snapshot.chunk_rows = 5;
    let failing = Failing { inner: world.streams.clone(), limit: usize::MAX, calls: Arc::default(), every: 11 };
    let import = world.import_into(Arc::new(failing));
    for round in 0..6 {
        world
            .sql(&CHANGES.replace("id = 1;", &format!("id = {};", 1 + round)).replace("1000", &(1000 + round).to_string()))
            .await;
        import.reaches(world.captured().await).await;
    }
    import.stop().await;
    assert_equal(&world).await;
    check_progress(&world.progress().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_range_is_a_gap_and_is_told() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.import_all().await;
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;\nGO\nUPDATE dbo.orders SET total = 10 WHERE id = 1;").await;
    let published = world.progress().await.len();
    world.captured().await;
    world
        .sql(
            "DECLARE @to binary(10) = (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping);
             EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_orders', @low_water_mark = @to;",
        )
        .await;
    let error = world.import_error().await;
    assert!(matches!(error, Error::Source(SourceFailure::Gap { .. })), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("dbo.orders") && message.contains("dbo_orders") && message.contains("sp_cdc_change_job"),
        "{message}"
    );
    assert_eq!(world.progress().await.len(), published, "nothing was promised past the gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_what_was_read_is_no_gap() {
    let world = World::start(&(SHOP.to_owned() + &fill(3))).await;
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.import_all().await;
    world
        .sql(
            "DECLARE @to binary(10) = (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping);
             EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_orders', @low_water_mark = @to;
             EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_items', @low_water_mark = @to;",
        )
        .await;
    world.sql("UPDATE dbo.orders SET total = 11 WHERE id = 2;").await;
    world.import_all().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_instance_is_told() {
    let world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("EXEC sys.sp_cdc_disable_table @source_schema = N'dbo', @source_name = N'items', @capture_instance = N'dbo_items'; UPDATE dbo.orders SET total = 5;").await;
    let error = tokio::time::timeout(Duration::from_secs(60), import.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("dbo.items") || error.to_string().contains("dbo_items"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_is_read_in_pages() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    world.config.page_rows = 100;
    world.import_all().await;
    let mut script = String::from("BEGIN TRANSACTION;\n");
    for id in 1000..3000 {
        script.push_str(&format!("INSERT INTO dbo.orders (id, customer, total) VALUES ({id}, N'x', 1);\n"));
    }
    script.push_str("UPDATE dbo.orders SET total = 2 WHERE id >= 1000; COMMIT TRANSACTION;");
    world.sql(&script).await;
    world.import_all().await;
    assert_equal(&world).await;
    assert_eq!(tail_in_order(&world.events().await).len(), 4000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_in_the_middle_of_a_read_is_found_out() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(1))).await;
    world.config.page_rows = 10;
    world.import_all().await;
    let mut script = String::new();
    for id in 1000..3000 {
        script.push_str(&format!("INSERT INTO dbo.orders (id, customer, total) VALUES ({id}, N'x', 1);\n"));
    }
    world.sql(&script).await;
    world.captured().await;
    let promised = world.progress().await;
    let before = world.events().await.len();
    // The read of 2000 changes takes 200 pages or more; once the first have been published it is in the middle of them.
    world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(5) });
    let import = world.import();
    let reading = world.server().faults().clone();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    let progress = &world.streams;
    let stream = world.config.output.layout.stream(&world.config.output.prefix, &TableName::new("dbo", "orders"));
    let published = || async { progress.tips(&stream).await.unwrap().values().filter_map(|tip| tip.to_u64()).max().unwrap_or(0) };
    let start = published().await;
    while published().await == start && !import.task.is_finished() {
        tokio::task::yield_now().await;
    }
    world
        .sql(
            "DECLARE @to binary(10) = (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping);
             EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_orders', @low_water_mark = @to;",
        )
        .await;
    reading.clear();
    let error = tokio::time::timeout(Duration::from_secs(60), import.task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Source(SourceFailure::Gap { .. })), "{error}");
    assert_eq!(world.progress().await, promised, "nothing was promised past the gap");
    assert!(world.events().await.len() - before < 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_capture_is_told_and_loses_nothing() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(1))).await;
    world.config.stall_check = Duration::from_secs(1);
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.server().set_agent_running(false);
    world.sql("UPDATE dbo.orders SET total = 77").await;
    import.until("the warning", |status| status.warnings.iter().any(|warning| warning.starts_with("capture has stalled"))).await;
    world.server().set_agent_running(true);
    import.reaches(world.captured().await).await;
    import.until("the warning's end", |status| status.warnings.is_empty()).await;
    import.stop().await;
    assert_equal(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_database_in_the_place_of_the_old_one_is_told() {
    let world = World::start(&(SHOP.to_owned() + &fill(30))).await;
    world.import_all().await;
    let mut other = World::start(&(SHOP.to_owned() + &fill(1))).await;
    other.config.data_dir = world.config.data_dir.clone();
    let error = other.import_error().await;
    assert!(matches!(error, Error::Restored { .. }), "{error}");
    assert!(error.to_string().contains("new streams") && error.to_string().contains("`streams.prefix`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_stream_refuses_is_dead_lettered_without_its_body() {
    let world = World::start(&(SHOP.replace("nvarchar(40)", "nvarchar(max)") + &fill(2))).await;
    let small = Failing { inner: world.streams.clone(), limit: 2000, calls: Arc::default(), every: u64::MAX };
    let import = world.import_into(Arc::new(small));
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET customer = REPLICATE(N'x', 3000) WHERE id = 1;\nGO\nUPDATE dbo.orders SET total = 9 WHERE id = 2;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    assert_eq!(dead.len(), 1);
    assert!(
        dead[0]["event"].is_null() && dead[0]["reason"]["rule"] == "the stream's limit of 2000 bytes a record",
        "{}",
        dead[0]
    );
    assert!(world.events().await.iter().any(|event| event["op"] == "u" && event["after"]["id"] == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_only_their_partition_key_makes_too_large_are_dead_lettered() {
    let mut world = World::start(&(SHOP.replace("nvarchar(40)", "nvarchar(400)") + &fill(2))).await;
    world.config.output.partition_by.insert(TableName::new("dbo", "orders"), "customer".into());
    let small = Failing { inner: world.streams.clone(), limit: 1100, calls: Arc::default(), every: u64::MAX };
    let import = world.import_into(Arc::new(small));
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    // Event and key grow in steps smaller than the key, so that some events pass the limit with it and not without it.
    let script: Vec<String> = (100..250)
        .step_by(10)
        .map(|length| format!("UPDATE dbo.orders SET customer = REPLICATE(N'x', {length}) WHERE id = 2;"))
        .collect();
    world.sql(&script.join("\nGO\n")).await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    let bytes = |letter: &serde_json::Value| {
        let words = letter["reason"]["value"].as_str().unwrap();
        words.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap()
    };
    assert!(dead.iter().any(|letter| bytes(letter) <= 1100), "{dead:?}");
    let updates = tail_in_order(&world.events().await).iter().filter(|event| event["op"] == "u").count();
    assert!(updates > 0 && updates < script.len(), "{updates} were published");
    let letters: std::collections::BTreeSet<String> = dead.iter().map(|letter| letter["position"].to_string()).collect();
    assert_eq!(updates + letters.len(), script.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_the_stream_refuses_goes_without_its_event() {
    let mut world = World::start(&(SHOP.replace("nvarchar(40)", "nvarchar(max)") + &fill(2))).await;
    let contract = json!({
        "x-table": "dbo.orders",
        "x-key": ["id"],
        "type": "object",
        "properties": {
            "id": {"type": "integer", "x-sql-type": "int"},
            "customer": {"type": ["string", "null"], "x-sql-type": "nvarchar(max)", "x-case-insensitive": true, "pattern": "^customer"},
            "total": {"type": "string", "x-sql-type": "decimal(10,2)"},
        },
    });
    let contract = Contract::parse("dbo.orders.json", &contract.to_string()).unwrap();
    world.config.contracts.insert(TableName::new("dbo", "orders"), contract);
    let small = Failing { inner: world.streams.clone(), limit: 2000, calls: Arc::default(), every: u64::MAX };
    let import = world.import_into(Arc::new(small));
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET customer = REPLICATE(N'x', 3000) WHERE id = 1;\nGO\nUPDATE dbo.orders SET total = 9 WHERE id = 2;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    assert!(dead.len() == 1 && dead[0]["event"].is_null() && dead[0]["reason"]["rule"] == "pattern", "{dead:?}");
    assert!(world.events().await.iter().any(|event| event["op"] == "u" && event["after"]["id"] == 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_during_the_snapshot_ends_it_before_it_is_called_complete() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(30))).await;
    world.config.snapshot.chunk_rows = 2;
    world.server().faults().inject(Fault::DelayAnswers { by: Duration::from_millis(20) });
    let import = world.import();
    import.until("the first chunk", |status| status.tables.values().any(|table| table.snapshot_rows > 0)).await;
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;\nGO\nUPDATE dbo.orders SET total = 10 WHERE id = 1;").await;
    world.captured().await;
    world
        .sql(
            "DECLARE @to binary(10) = (SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping);
             EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'dbo_orders', @low_water_mark = @to;",
        )
        .await;
    world.server().faults().clear();
    let error = tokio::time::timeout(Duration::from_secs(60), import.task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Source(SourceFailure::Gap { .. })), "{error}");
    let progress = world.progress().await;
    assert!(progress.iter().all(|record| record.phase == Phase::Snapshot), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_is_detected_even_when_it_has_gone_on_since() {
    let world = World::standin(&(SHOP.to_owned() + &fill(3))).await;
    world.import_all().await;
    let server = Arc::clone(world.server());
    let backup = tokio::task::spawn_blocking(move || server.backup("shop")).await.unwrap().unwrap();
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    world.import_all().await;
    let server = Arc::clone(world.server());
    tokio::task::spawn_blocking(move || server.restore(&backup)).await.unwrap().unwrap();
    // Past where it was.
    for id in 1..=3 {
        world.sql(&format!("UPDATE dbo.orders SET total = total + 1 WHERE id = {id};")).await;
    }
    world.captured().await;
    let promised = world.progress().await;
    let error = world.import_error().await;
    assert!(matches!(error, Error::Restored { .. } | Error::Source(SourceFailure::WentBack { .. })), "{error}");
    assert_eq!(world.progress().await, promised, "nothing of another history is published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failover_without_jobs_it_says_so_and_goes_on_once_they_are_there() {
    let mut world = World::standin(&(SHOP.to_owned() + &fill(3))).await;
    world.config.stall_check = Duration::from_millis(200);
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    let server = Arc::clone(world.server());
    tokio::task::spawn_blocking(move || server.fail_over()).await.unwrap().unwrap();
    world.sql("UPDATE dbo.orders SET total = 9 WHERE id = 1;").await;
    import.until("the warning", |status| status.warnings.iter().any(|warning| warning.contains("there is no capture job"))).await;
    world.sql("EXEC sys.sp_cdc_add_job @job_type = N'capture';").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
}
