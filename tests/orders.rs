//! TPC-H through the real binary: loaded into the stand-in, changed in random multi-table transactions while the pipeline runs, and equal in the end to the same join run in Postgres
//! over the same base tables.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sinks::test_support::PostgresServer;
use support::pipeline::{self, Pipeline};
use support::sqlserver::{SqlServer, capture, execute};
use support::tpch_load::{Both, Changes, EXPECTED};

const SCALE: f64 = 0.01;
/// Orders 1 to 60,000 with gaps at this scale.
const LAST_ORDER: i64 = 60_000;
const LIMIT: Duration = Duration::from_secs(180);

async fn expected(postgres: &tokio_postgres::Client) -> BTreeMap<String, Value> {
    let rows = postgres.query(EXPECTED, &[]).await.unwrap();
    rows.into_iter().map(|row| (row.get(0), serde_json::from_str(row.get(1)).unwrap())).collect()
}

/// Equal, entity by entity; an empty sum is compared as a number.
fn assert_equal(expected: &BTreeMap<String, Value>, actual: &BTreeMap<String, Value>) {
    let normal = |document: &Value| {
        let mut document = document.clone();
        if document["item_count"] == 0 {
            document["items_total"] = Value::from(0);
        }
        document
    };
    for (key, document) in expected {
        let other = actual.get(key).unwrap_or_else(|| panic!("order {key} is missing"));
        assert_eq!(normal(document), normal(other), "order {key}");
    }
    let extra: Vec<_> = actual.keys().filter(|key| !expected.contains_key(*key)).collect();
    assert!(extra.is_empty(), "should not be there: {extra:?}");
}

async fn connect(server: &PostgresServer) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

struct Setting {
    server: SqlServer,
    postgres: PostgresServer,
}

impl Setting {
    async fn load(&self) -> tokio_postgres::Client {
        let postgres = connect(&self.postgres).await;
        let mut client = self.server.client().await;
        let mut both = Both { sqlserver: &mut client, postgres: &postgres };
        both.load(SCALE).await;
        let tables: Vec<&str> = tpch::TABLES.iter().map(|table| table.name).collect();
        capture(&mut client, &tables).await;
        postgres
    }

    /// Random transactions, and a last one that marks the end: an order that is seen with this comment is seen with all before it.
    async fn change(&self, postgres: &tokio_postgres::Client, seed: u64, count: usize, mark: &str) {
        let mut client = self.server.client().await;
        let mut both = Both { sqlserver: &mut client, postgres };
        let mut changes = Changes::new(seed, LAST_ORDER);
        for _ in 0..count {
            both.transaction(&changes.next()).await;
        }
        let end = format!("UPDATE dbo.customer SET c_name = '{mark}' WHERE c_custkey = 1; INSERT INTO dbo.orders VALUES ({}, 1, 'O', 1.00, '1998-05-06', '1-URGENT', 'Clerk#1', 0, '{mark}')", 1_000_000 + seed);
        both.transaction(&[end]).await;
    }
}

fn end_key(seed: u64) -> String {
    (1_000_000 + seed).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_stream_to_sqlite_equals_the_join_in_postgres() {
    let setting = Setting { server: SqlServer::start("tpch"), postgres: PostgresServer::start() };
    let postgres = setting.load().await;
    let pipeline = Pipeline::init(&setting.server, &[("order", tpch::FULL_ORDER)]);
    pipeline.configure(
        &setting.server,
        "{embedded: {path: data/streams, sync: false}}",
        "  - {type: sqlite, path: data/entities.db}\n",
    );
    let (mut process, url) = pipeline.run();
    // Half of the changes fall into the snapshot and the first load.
    setting.change(&postgres, 1, 300, "first").await;
    pipeline::wait_for_document(&url, "order", &end_key(1), LIMIT, |document| document["comment"] == "first").await;
    assert_equal(&expected(&postgres).await, &pipeline::entities(&url, "order").await);
    // The other half meets a pipeline that was stopped properly and started again.
    assert!(process.terminate().success(), "{}", process.log());
    setting.change(&postgres, 2, 300, "second").await;
    let (_process, url) = pipeline.run();
    pipeline::wait_for_document(&url, "order", &end_key(2), LIMIT, |document| document["comment"] == "second").await;
    assert_equal(&expected(&postgres).await, &pipeline::entities(&url, "order").await);
    let mut client = setting.server.client().await;
    execute(&mut client, "SELECT 1").await;
}
