//! Rows a second into the SQL sinks. Not a test: `cargo test -p sinks --test throughput -- --ignored --nocapture` prints figures.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::json;
use sinks::Sink;
use sinks::postgres::{PostgresConfig, PostgresSink};
use sinks::sqlite::{SqliteConfig, SqliteSink};
use sinks::test_support::PostgresServer;

const ROWS: u32 = 50_000;

fn lsn(number: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, number, 0, 1])
}

fn changes(version: u8) -> Vec<EntityChange> {
    let filler = "x".repeat(650);
    let change = |n: u32| EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(n.to_string()),
        version: lsn(version),
        commit_time_ms: 1,
        document: Some(json!({"id": n, "version": version, "status": "OPEN", "text": filler}).to_string().into()),
    };
    (0..ROWS).map(change).collect()
}

async fn measure(name: &str, sink: &mut dyn Sink) {
    let info = EntityInfo { name: Arc::from("order"), key: vec![("id".to_owned(), SqlType::Int)], document_schema: json!({}) };
    sink.prepare(&[info]).await.unwrap();
    for (batch, version) in [(5_000, 1), (5_000, 2), (1_000, 3), (100, 4)] {
        for (what, version) in [("written", version * 2 + 1), ("stale", version * 2)] {
            let rows = changes(version);
            let start = Instant::now();
            for (batch, n) in rows.chunks(batch).zip(0..) {
                sink.write(batch, (n % 2 == 0).then(|| lsn(version))).await.unwrap();
            }
            println!("{name}: batches of {batch}, {what}: {:.0} rows/s", f64::from(ROWS) / start.elapsed().as_secs_f64());
        }
    }
    let row = changes(20);
    let start = Instant::now();
    for change in row.iter().take(500) {
        sink.write(std::slice::from_ref(change), Some(lsn(20))).await.unwrap();
    }
    println!("{name}: one change a write: {:.2} ms", start.elapsed().as_secs_f64() * 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn sqlite_and_postgres() {
    let directory = tempfile::tempdir().unwrap();
    measure("sqlite", &mut SqliteSink::new(SqliteConfig::new(directory.path().join("entities.db")))).await;
    let server = PostgresServer::start();
    measure("postgres", &mut PostgresSink::new(PostgresConfig::new(server.url())).unwrap()).await;
}
