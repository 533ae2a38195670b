//! The SQL sinks by themselves, and beside PostgreSQL's the raw form of the same work: `cargo run --release -p sinks --example throughput`.
//!
//! Beside the rate it prints the processor time of the server's connections: that hangs neither on how this program was compiled nor on what else the machine does.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::{Value, json};
use sinks::Sink;
use sinks::postgres::{PostgresConfig, PostgresSink};
use sinks::sqlite::{SqliteConfig, SqliteSink};
use sinks::test_support::{PostgresServer, RawCopy};

const ROWS: usize = 100_000;
/// As the joiner hands them over: while loading, and while following.
const LOAD_BATCH: usize = 1_000;
const BATCH: usize = 5_000;
/// What Linux counts processor time in: USER_HZ.
const TICKS_PER_SECOND: f64 = 100.0;

fn lsn(number: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, number, 0, 1])
}

/// About a kilobyte, with some forty members: an order with a customer and its items.
fn document(n: usize, version: u8) -> String {
    let items: Vec<Value> = (1..=n % 7 + 1)
        .map(|item| {
            let words = ["slyly", "furiously", "quickly", "ironic", "final", "pending", "regular"];
            json!({"n": item, "part": n * item % 20_000, "qty": format!("{item}.00"), "price": format!("{n}.50"), "ship": "1996-06-22", "mode": "TRUCK",
                "cmt": format!("{} deposits sleep {} above", words[n % 7], words[(n + item) % 7])})
        })
        .collect();
    json!({"orderkey": n, "status": "O", "version": version, "total": format!("{n}.81"), "date": "1996-03-04", "priority": "5-LOW",
        "comment": "theodolites alongside of the fluffily bold requests haggle quickly against",
        "customer": {"name": format!("Customer#{n:09}"), "address": "8o bIhRVYTXr0Ecd0CM", "segment": "HOUSEHOLD"}, "items": items})
    .to_string()
}

fn changes(version: u8) -> Vec<EntityChange> {
    let change = |n: usize| EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(n.to_string()),
        version: lsn(version),
        commit_time_ms: 1,
        document: Some(document(n, version).into()),
    };
    (0..ROWS).map(change).collect()
}

/// Every other row, in an order that jumps about.
fn updates(version: u8) -> Vec<EntityChange> {
    let mut rows = changes(version);
    rows.sort_by_key(|change| change.key.as_str().bytes().rev().collect::<Vec<u8>>());
    rows.truncate(ROWS / 2);
    rows
}

/// What the server's connections have used so far.
async fn server_time(watch: Option<&tokio_postgres::Client>) -> f64 {
    let Some(watch) = watch else { return 0.0 };
    let pids = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let mut ticks = 0;
    for row in watch.query(pids, &[]).await.unwrap() {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", row.get::<_, i32>(0))).unwrap_or_default();
        // After the name, which ends with a parenthesis: state and ten numbers, then user and system time.
        let times = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        ticks += times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
    }
    ticks as f64 / TICKS_PER_SECOND
}

struct Report<'a> {
    name: &'a str,
    watch: Option<&'a tokio_postgres::Client>,
    before: f64,
    started: Instant,
}

impl<'a> Report<'a> {
    async fn start(name: &'a str, watch: Option<&'a tokio_postgres::Client>) -> Self {
        Self { name, watch, before: server_time(watch).await, started: Instant::now() }
    }

    async fn end(self, what: &str, rows: usize) {
        let took: Duration = self.started.elapsed();
        let server = (server_time(self.watch).await - self.before) * 1e6 / rows as f64;
        println!(
            "{:10} {what:20} {:8.0} rows/s   {server:5.1} µs of the server a row",
            self.name,
            rows as f64 / took.as_secs_f64()
        );
    }
}

async fn measure_raw(url: &str, watch: &tokio_postgres::Client) {
    let mut raw = RawCopy::connect(url).await.unwrap();
    for (what, rows, size) in [("load", changes(1), LOAD_BATCH), ("updates", updates(3), BATCH), ("stale", updates(2), BATCH)] {
        let rows: Vec<(String, String, EntityChange)> =
            rows.into_iter().map(|change| (change.key.to_string(), change.version.to_string(), change)).collect();
        let report = Report::start("raw", Some(watch)).await;
        for batch in rows.chunks(size) {
            let rows = batch.iter().map(|(key, version, change)| [key.as_str(), version, change.document.as_deref().unwrap()]);
            raw.upsert(rows).await.unwrap();
        }
        report.end(what, rows.len()).await;
    }
}

async fn measure(name: &str, sink: &mut dyn Sink, watch: Option<&tokio_postgres::Client>) {
    let info = EntityInfo { name: Arc::from("order"), key: vec![("id".to_owned(), SqlType::Int)], document_schema: json!({}) };
    sink.prepare(&[info]).await.unwrap();
    let rows = changes(1);
    let report = Report::start(name, watch).await;
    sink.begin_load().await.unwrap();
    for batch in rows.chunks(LOAD_BATCH) {
        sink.write(batch, None).await.unwrap();
    }
    sink.write(&[], Some(lsn(1))).await.unwrap();
    report.end("load", rows.len()).await;
    let report = Report::start(name, watch).await;
    sink.end_load("order", lsn(1)).await.unwrap();
    report.end("end of the load", rows.len()).await;
    for (what, version, frontier) in [("updates, behind", 3, false), ("updates", 5, true), ("stale", 4, true)] {
        let rows = updates(version);
        let report = Report::start(name, watch).await;
        for batch in rows.chunks(BATCH) {
            sink.write(batch, frontier.then(|| lsn(version))).await.unwrap();
        }
        report.end(what, rows.len()).await;
    }
    let row = updates(20);
    let report = Report::start(name, watch).await;
    for change in row.iter().take(500) {
        sink.write(std::slice::from_ref(change), Some(lsn(20))).await.unwrap();
    }
    report.end("one change a write", 500).await;
}

#[tokio::main]
async fn main() {
    let only = std::env::args().nth(1);
    let directory = tempfile::tempdir().unwrap();
    if only.as_deref() != Some("postgres") {
        measure("sqlite", &mut SqliteSink::new(SqliteConfig::new(directory.path().join("entities.db"))), None).await;
    }
    let server = PostgresServer::start();
    let (watch, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for connections in [0, 1, 2] {
        // What the last one left in the server's memory is not this one's burden.
        watch.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CHECKPOINT").await.unwrap();
        if connections == 0 {
            measure_raw(&server.url(), &watch).await;
            continue;
        }
        let config = PostgresConfig { connections, ..PostgresConfig::new(server.url()) };
        measure(&format!("postgres/{connections}"), &mut PostgresSink::new(config).unwrap(), Some(&watch)).await;
    }
}
