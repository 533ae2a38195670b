//! What only the SQL sinks do: other people's tables, constraints and locks, filters, and the purge of tombstones.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::json;
use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::test_support::PostgresServer;
use sinks::{EntityReader, Filter, Operator, Query, Sink};
use sqlx::{Connection, SqliteConnection};

fn lsn(number: u32) -> Lsn {
    let [a, b, c, d] = number.to_be_bytes();
    Lsn::from_bytes([0, 0, 0, 1, a, b, c, d, 0, 1])
}

fn order() -> EntityInfo {
    EntityInfo {
        name: Arc::from("order"),
        key: vec![("id".to_owned(), SqlType::Int)],
        document_schema: json!({"type": "object"}),
    }
}

fn change(key: &str, version: u32, commit_time_ms: i64, document: Option<&str>) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key),
        version: lsn(version),
        commit_time_ms,
        document: document.map(Arc::from),
    }
}

/// A sink and a reader of the same place.
struct Pair(Box<dyn Sink>, Box<dyn EntityReader>);

async fn pairs(server: &PostgresServer, directory: &tempfile::TempDir, schema: &str) -> Vec<Pair> {
    let sqlite = SqliteConfig::new(directory.path().join(format!("{schema}.db")));
    let postgres = PostgresConfig { schema: schema.to_owned(), ..PostgresConfig::new(server.url()) };
    let mut pairs = vec![
        Pair(Box::new(SqliteSink::new(sqlite.clone())), Box::new(SqliteReader::new(&sqlite))),
        Pair(Box::new(PostgresSink::new(postgres.clone()).unwrap()), Box::new(PostgresReader::new(&postgres).unwrap())),
    ];
    for Pair(sink, _) in &mut pairs {
        sink.prepare(&[order()]).await.unwrap();
    }
    pairs
}

async fn client(server: &PostgresServer) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// One cluster serves every check, in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sql_sinks() {
    let (server, directory) = (PostgresServer::start(), tempfile::tempdir().unwrap());
    filters_compare_as_documented(pairs(&server, &directory, "filters").await).await;
    purged_tombstones_still_guard(pairs(&server, &directory, "purge").await).await;
    a_reader_may_come_before_the_first_write(&server, &directory).await;
    rows_that_a_constraint_refuses_are_singled_out(&server).await;
    a_nul_is_rejected_with_the_reason(&server).await;
    another_shape_is_refused(&server).await;
    what_is_set_up_wrongly_is_told(&server).await;
    // Nothing that a sink wrote stands in another schema than its own.
    let public = client(&server).await.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", &[]).await.unwrap();
    assert!(public.is_empty());
}

async fn filters_compare_as_documented(pairs: Vec<Pair>) {
    let documents = [
        (
            "1",
            r#"{"status":"OPEN","total":"12.50","count":3,"rate":0.5,"paid":true,"zip":"01234","customer":{"city":"Bern"},"note":null}"#,
        ),
        (
            "2",
            r#"{"status":"OPEN","total":"9.00","count":10,"rate":2,"paid":false,"zip":"1234","customer":{"city":"Zürich"},"note":"x"}"#,
        ),
        ("3", r#"{"status":"DONE","total":"100.00","count":-1,"rate":1e3,"paid":true,"zip":"AB1","customer":null}"#),
    ];
    let cases: [(&str, Operator, &str, &[&str]); 21] = [
        ("status", Operator::Eq, "OPEN", &["1", "2"]),
        ("status", Operator::Neq, "OPEN", &["3"]),
        ("total", Operator::Gt, "10", &["1", "3"]),
        ("total", Operator::Lte, "12.5", &["1", "2"]),
        ("total", Operator::Eq, "12.5", &["1"]),
        ("total", Operator::Eq, "12.500", &["1"]),
        ("total", Operator::Eq, "9", &["2"]),
        ("total", Operator::Neq, "9.0", &["1", "3"]),
        ("total", Operator::Eq, "100", &["3"]),
        ("count", Operator::Gte, "3", &["1", "2"]),
        ("count", Operator::Lt, "0", &["3"]),
        ("rate", Operator::Eq, "0.5", &["1"]),
        ("rate", Operator::Gt, "1.5", &["2", "3"]),
        ("paid", Operator::Eq, "true", &["1", "3"]),
        ("zip", Operator::Eq, "1234", &["2"]),
        ("zip", Operator::Eq, "01234", &["1"]),
        ("customer.city", Operator::Eq, "Zürich", &["2"]),
        ("customer.city", Operator::Lt, "C", &["1"]),
        ("note", Operator::Neq, "y", &["2"]),
        ("no.such", Operator::Eq, "1", &[]),
        ("status", Operator::Eq, "' OR 1=1 --", &[]),
    ];
    for Pair(mut sink, reader) in pairs {
        let changes: Vec<_> = documents.iter().map(|(key, document)| change(key, 1, 0, Some(document))).collect();
        sink.write(&changes, Some(lsn(1))).await.unwrap();
        for (path, operator, value, expected) in cases {
            let filter = Filter { path: path.split('.').map(str::to_owned).collect(), operator, value: value.to_owned() };
            let query = Query { entity: "order".to_owned(), filters: vec![filter], after: None, limit: 10 };
            let found = reader.list_with_frontier(&query).await.unwrap();
            let keys: Vec<&str> = found.value.iter().map(|stored| stored.key.as_str()).collect();
            assert_eq!(keys, expected, "{path} {operator:?} {value}");
            assert_eq!(found.frontier, Some(lsn(1)), "also of an empty page");
        }
        let missing = reader.get_with_frontier("order", &EntityKey::from_text("9")).await.unwrap();
        assert_eq!((missing.value, missing.frontier), (None, Some(lsn(1))));
    }
}

async fn purged_tombstones_still_guard(pairs: Vec<Pair>) {
    const HOUR_MS: i64 = 3_600_000;
    let start = 1_700_000_000_000;
    for Pair(mut sink, reader) in pairs {
        sink.write(&[change("1", 1, start, Some("{}")), change("2", 1, start, Some("{}"))], None).await.unwrap();
        sink.write(&[change("1", 5, start, None)], Some(lsn(5))).await.unwrap();
        // Two hours later at the source, and often enough for a purge to be due.
        sink.write(&[change("2", 7, start + 2 * HOUR_MS, Some("{}")), change("3", 6, start + 2 * HOUR_MS, None)], Some(lsn(7)))
            .await
            .unwrap();
        for _ in 0..1_000 {
            sink.write(&[], Some(lsn(7))).await.unwrap();
        }
        sink.write(
            &[change("1", 4, start, Some("{}")), change("3", 4, start, Some("{}")), change("2", 2, start, Some("{}"))],
            None,
        )
        .await
        .unwrap();
        assert_eq!(
            reader.count("order").await.unwrap(),
            1,
            "the tombstone of 1 is gone and its floor guards; that of 3 is young and there"
        );
        sink.write(&[change("1", 8, start, Some("{}"))], None).await.unwrap();
        assert_eq!(reader.count("order").await.unwrap(), 2);
    }
}

async fn a_reader_may_come_before_the_first_write(server: &PostgresServer, directory: &tempfile::TempDir) {
    let sqlite = SqliteReader::new(&SqliteConfig::new(directory.path().join("not-yet.db")));
    let postgres =
        PostgresReader::new(&PostgresConfig { schema: "not-yet".to_owned(), ..PostgresConfig::new(server.url()) }).unwrap();
    for reader in [&sqlite as &dyn EntityReader, &postgres] {
        assert_eq!(reader.frontier().await.unwrap(), None);
        let error = reader.get("order", &EntityKey::from_text("1")).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    assert!(!directory.path().join("not-yet.db").exists());
}

async fn rows_that_a_constraint_refuses_are_singled_out(server: &PostgresServer) {
    let config = PostgresConfig { schema: "constrained".to_owned(), ..PostgresConfig::new(server.url()) };
    let mut sink = PostgresSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let check = "ALTER TABLE constrained.order ADD CONSTRAINT small CHECK ((document->>'n')::int < 1000)";
    client(server).await.batch_execute(&check.replace(".order", ".\"order\"")).await.unwrap();
    for (version, rows) in [(1, 20), (2, 500)] {
        let changes: Vec<_> = (0..rows)
            .map(|n| change(&n.to_string(), version, 0, Some(&format!(r#"{{"n":{}}}"#, if n % 9 == 4 { 1000 } else { n }))))
            .collect();
        let rejected = sink.write(&changes, Some(lsn(version))).await.unwrap();
        assert_eq!(rejected.len(), (0..rows).filter(|n| n % 9 == 4).count());
        assert!(rejected[0].reason.contains("small") && rejected[0].reason.contains("23514"), "{}", rejected[0].reason);
        assert_eq!(PostgresReader::new(&config).unwrap().count("order").await.unwrap(), (rows - rejected.len()) as u64);
    }
}

async fn a_nul_is_rejected_with_the_reason(server: &PostgresServer) {
    let config = PostgresConfig { schema: "nul".to_owned(), ..PostgresConfig::new(server.url()) };
    let mut sink = PostgresSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let changes = [change("1", 1, 0, Some(r#"{"a":"x\u0000y"}"#)), change("2", 1, 0, Some(r#"{"a":"x\\u0000y"}"#))];
    let rejected = sink.write(&changes, None).await.unwrap();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].change.key.as_str() == "1" && rejected[0].reason.contains("NUL"), "{}", rejected[0].reason);
    assert_eq!(PostgresReader::new(&config).unwrap().count("order").await.unwrap(), 1);
}

async fn another_shape_is_refused(server: &PostgresServer) {
    client(server)
        .await
        .batch_execute("CREATE SCHEMA taken; CREATE TABLE taken.\"order\" (id int PRIMARY KEY, total numeric)")
        .await
        .unwrap();
    let mut sink = PostgresSink::new(PostgresConfig { schema: "taken".to_owned(), ..PostgresConfig::new(server.url()) }).unwrap();
    let error = sink.prepare(&[order()]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(error.to_string().contains("id integer, total numeric") && error.to_string().contains("Rename"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("entities.db");
    let mut other = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
    sqlx::query("CREATE TABLE \"order\" (id INTEGER PRIMARY KEY)").execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let error = SqliteSink::new(SqliteConfig::new(path)).prepare(&[order()]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(error.to_string().contains("id INTEGER"), "{error}");
}

async fn what_is_set_up_wrongly_is_told(server: &PostgresServer) {
    let url = server.url();
    let prepare =
        |url: String| async move { PostgresSink::new(PostgresConfig::new(url)).unwrap().prepare(&[order()]).await.unwrap_err() };
    for (url, said) in [
        (url.replace("tributary:tributary@", "tributary:wrong@"), "28P01"),
        (url.replace("/entities", "/no_such_database"), "3D000"),
        (url.replace("sslmode=disable", "sslmode=require"), "TLS"),
    ] {
        let error = prepare(url).await;
        assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
        assert!(error.to_string().contains(said) && !error.to_string().contains("wrong@"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not-a-database.db");
    std::fs::write(
        &path,
        "This is not a database, and long enough to have been one: it goes on and on beyond the header of a hundred bytes.",
    )
    .unwrap();
    let error = SqliteSink::new(SqliteConfig::new(path)).prepare(&[order()]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
}
