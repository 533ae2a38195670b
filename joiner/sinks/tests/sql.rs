//! What only the SQL sinks do: other people's tables, constraints and locks, filters, and the purge of tombstones.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, KeyRange, Lsn, Vector};
use serde_json::json;
use sinks::mysql::{MysqlConfig, MysqlReader, MysqlSink};
use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::test_support::{MysqlServer, PostgresServer};
use sinks::{EntityReader, Filter, Operator, Query, Sink, Versions};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, Row, SqliteConnection};

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

async fn pairs(server: &PostgresServer, mysql: &MysqlServer, directory: &tempfile::TempDir, schema: &str) -> Vec<Pair> {
    let mut root = MySqlConnection::connect(&mysql.root_url()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE `{schema}`"))).execute(&mut root).await.unwrap();
    let mysql = MysqlConfig::new(mysql.url_of(schema));
    let sqlite = SqliteConfig::new(directory.path().join(format!("{schema}.db")));
    let postgres = PostgresConfig { schema: schema.to_owned(), ..PostgresConfig::new(server.url()) };
    let mut pairs = vec![
        Pair(Box::new(SqliteSink::new(sqlite.clone())), Box::new(SqliteReader::new(&sqlite))),
        Pair(Box::new(PostgresSink::new(postgres.clone()).unwrap()), Box::new(PostgresReader::new(&postgres).unwrap())),
        Pair(Box::new(MysqlSink::new(mysql.clone()).unwrap()), Box::new(MysqlReader::new(&mysql).unwrap())),
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
async fn the_sql_sinks() {
    let (server, mysql, directory) = (PostgresServer::start(), MysqlServer::start(), tempfile::tempdir().unwrap());
    filters_compare_as_documented(pairs(&server, &mysql, &directory, "filters").await).await;
    purged_tombstones_still_guard(pairs(&server, &mysql, &directory, "purge").await).await;
    of_several_sources_a_frontier_is_told_by_source(pairs(&server, &mysql, &directory, "sources").await).await;
    a_deletion_waits_for_an_older_upsert_of_another_writer(&server).await;
    a_deletion_waits_for_another_writer_in_mysql(&mysql).await;
    rows_that_a_constraint_refuses_are_singled_out_in_mysql(&mysql).await;
    what_a_user_is_not_granted_is_told_in_mysql(&mysql).await;
    a_read_only_server_is_waited_for(&server).await;
    a_read_only_server_is_waited_for_in_mysql(&mysql).await;
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

/// Two sources, of which one is behind by as much as the version says.
struct Halves;

impl Versions for Halves {
    fn sources(&self, version: Lsn) -> Option<Vector> {
        let sources = [("bank".to_owned(), lsn(1)), ("shop".to_owned(), version)];
        (version < lsn(9)).then(|| sources.into_iter().collect())
    }
}

async fn of_several_sources_a_frontier_is_told_by_source(pairs: Vec<Pair>) {
    for Pair(mut sink, reader) in pairs {
        let told = async || {
            let reached = reader.reached().await.unwrap();
            let key = EntityKey::from_text("1");
            let of_key = reader.get_with_frontier("order", &key).await.unwrap();
            let query = Query { entity: "order".to_owned(), filters: Vec::new(), after: Some(key), limit: 10 };
            let of_list = reader.list_with_frontier(&query).await.unwrap();
            assert_eq!((of_key.frontier, of_list.frontier), (reached.frontier, reached.frontier));
            assert_eq!((&of_key.sources, &of_list.sources), (&reached.sources, &reached.sources));
            reached.sources
        };
        // Before anybody knows of several, and between two frontiers, nothing is said of them.
        sink.write(&[change("1", 2, 0, Some("{}"))], Some(lsn(2))).await.unwrap();
        assert!(told().await.is_empty());
        sink.know(Arc::new(Halves));
        sink.write(&[], Some(lsn(5))).await.unwrap();
        assert_eq!(Some(told().await), Halves.sources(lsn(5)));
        sink.write(&[], Some(lsn(4))).await.unwrap();
        assert_eq!(Some(told().await), Halves.sources(lsn(5)), "an older frontier says nothing new");
        sink.write(&[change("1", 8, 0, Some("{}"))], None).await.unwrap();
        assert_eq!(Some(told().await), Halves.sources(lsn(5)));
        // Two shares: what both hold of each source.
        let [first, second] = ["0/2", "1/2"].map(|share| share.parse::<KeyRange>().unwrap());
        for (share, version) in [(first, 6), (second, 7)] {
            assert!(sink.own(share));
            sink.prepare(&[order()]).await.unwrap();
            sink.write(&[], Some(lsn(version))).await.unwrap();
        }
        assert_eq!(Some(told().await), Halves.sources(lsn(6)));
        sink.write(&[], Some(lsn(9))).await.unwrap();
        assert!(told().await.is_empty(), "one of them does not say");
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

async fn what_a_user_is_not_granted_is_told_in_mysql(mysql: &MysqlServer) {
    let mut root = MySqlConnection::connect(&mysql.root_url()).await.unwrap();
    let mut admin = async |statement: &'static str| sqlx::raw_sql(statement).execute(&mut root).await.map(drop).unwrap();
    admin("CREATE DATABASE narrow; CREATE USER 'narrow'@'%' IDENTIFIED BY 'tributary'").await;
    admin("GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON narrow.* TO 'narrow'@'%'").await;
    let child = sinks::ChildConfig {
        list: "items".to_owned(),
        columns: [("sku".to_owned(), "sku".to_owned())].into(),
        ..Default::default()
    };
    let table = sinks::TableConfig { children: [("order_items".to_owned(), child)].into(), ..Default::default() };
    let schema = json!({"properties": {"items": {"type": "array", "items": {"properties": {"sku": {"type": "string"}}}}}});
    let info = EntityInfo { document_schema: schema, ..order() };
    let url = mysql.url_of("narrow").replace("tributary:tributary@", "narrow:tributary@");
    let config = MysqlConfig { tables: [("order".to_owned(), table)].into(), ..MysqlConfig::new(url) };
    for (lacks, grant) in [
        ("ALTER, REFERENCES on", "GRANT ALTER ON narrow.* TO 'narrow'@'%'"),
        ("not granted REFERENCES on", "GRANT REFERENCES ON `nar%`.* TO 'narrow'@'%'"),
    ] {
        let error = MysqlSink::new(config.clone()).unwrap().check(std::slice::from_ref(&info)).await.unwrap_err();
        assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains(lacks), "{error}");
        admin(grant).await;
    }
    MysqlSink::new(config.clone()).unwrap().check(std::slice::from_ref(&info)).await.unwrap();

    // By a role within a role, which counts once it is the default.
    admin("CREATE USER 'roled'@'%' IDENTIFIED BY 'tributary'; CREATE ROLE outer_role; CREATE ROLE inner_role").await;
    admin(
        "GRANT SELECT, INSERT, UPDATE ON narrow.* TO outer_role; GRANT inner_role TO outer_role; GRANT outer_role TO 'roled'@'%'",
    )
    .await;
    admin("GRANT REFERENCES ON narrow.* TO 'roled'@'%'").await;
    let url = mysql.url_of("narrow").replace("tributary:tributary@", "roled:tributary@");
    let roled = MysqlConfig { url: sinks::UrlSource::Text(url), ..config };
    for (lacks, grant) in [
        ("SET DEFAULT ROLE", "SET DEFAULT ROLE outer_role FOR 'roled'@'%'"),
        ("not granted ALTER, CREATE, DELETE on", "GRANT DELETE, CREATE, ALTER ON narrow.* TO inner_role"),
    ] {
        let error = MysqlSink::new(roled.clone()).unwrap().check(std::slice::from_ref(&info)).await.unwrap_err();
        assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains(lacks), "{error}");
        admin(grant).await;
    }
    let mut sink = MysqlSink::new(roled).unwrap();
    sink.check(std::slice::from_ref(&info)).await.unwrap();
    sink.prepare(&[info]).await.unwrap();
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
    // Its tables are there, and another's.
    let config = PostgresConfig { schema: "closed".to_owned(), ..PostgresConfig::new(&url) };
    PostgresSink::new(config.clone()).unwrap().prepare(&[order()]).await.unwrap();
    let admin = client(server).await;
    admin
        .batch_execute("CREATE ROLE narrow LOGIN PASSWORD 'tributary'; GRANT USAGE, CREATE ON SCHEMA closed TO narrow")
        .await
        .unwrap();
    admin.batch_execute("GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA closed TO narrow").await.unwrap();
    let config =
        PostgresConfig { url: sinks::UrlSource::Text(url.replace("tributary:tributary@", "narrow:tributary@")), ..config };
    let mut sink = PostgresSink::new(config).unwrap();
    let error = sink.check(&[order()]).await.unwrap_err();
    assert!(
        error.class() == ErrorClass::Misconfigured && error.to_string().contains("may not read and write the table"),
        "{error}"
    );
    admin.batch_execute("GRANT UPDATE ON ALL TABLES IN SCHEMA closed TO narrow").await.unwrap();
    sink.check(&[order()]).await.unwrap();

    let directory = tempfile::tempdir().unwrap();
    let error = SqliteSink::new(SqliteConfig::new(directory.path())).check(&[order()]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("can be written"), "{error}");
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

/// How often is looked. InnoDB's tables of transactions are made anew only where nobody has read them for a tenth of a second
/// (<https://dev.mysql.com/doc/refman/8.4/en/innodb-information-schema-internal-data.html>): whoever looks more often sees what was when the looking began.
const LOOK: std::time::Duration = std::time::Duration::from_millis(150);

/// Waits until something holds; a test that waits in vain fails after half a minute.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Another writer has looked for tombstones and found none, and its older document is not committed yet.
async fn a_deletion_waits_for_an_older_upsert_of_another_writer(server: &PostgresServer) {
    let config = PostgresConfig { schema: "race".to_owned(), ..PostgresConfig::new(server.url()) };
    let mut sink = PostgresSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let (other, observer) = (client(server).await, client(server).await);
    let lock = "SELECT pg_advisory_xact_lock_shared(hashtextextended('race/order', 0))";
    let insert = format!("INSERT INTO race.\"order\" VALUES ('1', '{}', 0, '{{}}')", lsn(5));
    other.batch_execute(&format!("BEGIN; {lock}; {insert}")).await.unwrap();
    let deleting = tokio::spawn(async move {
        sink.write(&[change("1", 7, 0, None)], Some(lsn(7))).await.unwrap();
        sink
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    until("the deletion waits", async || observer.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
    other.batch_execute("COMMIT").await.unwrap();
    let mut sink = deleting.await.unwrap();
    let reader = PostgresReader::new(&config).unwrap();
    assert_eq!(reader.count("order").await.unwrap(), 0, "what is older does not outlive the deletion");
    sink.write(&[change("1", 6, 0, Some("{}"))], None).await.unwrap();
    assert_eq!(reader.count("order").await.unwrap(), 0);
    for connections in [0, 17] {
        let error = PostgresSink::new(PostgresConfig { connections, ..config.clone() }).err().unwrap();
        assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("1 to 16"), "{error}");
    }
    for connections in [1, 16] {
        let mut sink = PostgresSink::new(PostgresConfig { connections, ..config.clone() }).unwrap();
        sink.prepare(&[order()]).await.unwrap();
        let changes: Vec<_> = (0..5000).map(|n| change(&n.to_string(), 8, 0, Some("{}"))).collect();
        sink.write(&changes, None).await.unwrap();
        assert_eq!(reader.count("order").await.unwrap(), 5000);
    }
}

/// The same where the lock is that of a row.
async fn a_deletion_waits_for_another_writer_in_mysql(server: &MysqlServer) {
    let mut root = MySqlConnection::connect(&server.root_url()).await.unwrap();
    sqlx::raw_sql("CREATE DATABASE race").execute(&mut root).await.unwrap();
    let config = MysqlConfig::new(server.url_of("race"));
    let mut sink = MysqlSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let mut other = MySqlConnection::connect(&server.url_of("race")).await.unwrap();
    let insert = format!("INSERT INTO `order` VALUES ('1', '{}', 0, '{{}}')", lsn(5));
    for statement in ["BEGIN", "SELECT lsn FROM _tributary_floor WHERE entity = 'order' LOCK IN SHARE MODE", &insert] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut other).await.unwrap();
    }
    let deleting = tokio::spawn(async move { sink.write(&[change("1", 7, 0, None)], Some(lsn(7))).await });
    let waits = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'";
    until("the deletion waits", async || sqlx::query(waits).fetch_one(&mut root).await.unwrap().get::<i64, _>(0) == 1).await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    deleting.await.unwrap().unwrap();
    assert_eq!(MysqlReader::new(&config).unwrap().count("order").await.unwrap(), 0);
}

async fn rows_that_a_constraint_refuses_are_singled_out_in_mysql(server: &MysqlServer) {
    let mut root = MySqlConnection::connect(&server.root_url()).await.unwrap();
    sqlx::raw_sql("CREATE DATABASE constrained").execute(&mut root).await.unwrap();
    let config = MysqlConfig::new(server.url_of("constrained"));
    let mut sink = MysqlSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let check = "ALTER TABLE constrained.`order` ADD CONSTRAINT small CHECK (JSON_VALUE(document, '$.n') < 1000)";
    sqlx::raw_sql(check).execute(&mut root).await.unwrap();
    let changes: Vec<_> = (0..500)
        .map(|n| change(&n.to_string(), 2, 0, Some(&format!(r#"{{"n":{}}}"#, if n % 9 == 4 { 1000 } else { n }))))
        .collect();
    let rejected = sink.write(&changes, Some(lsn(2))).await.unwrap();
    assert_eq!(rejected.len(), (0..500).filter(|n| n % 9 == 4).count());
    assert!(rejected[0].reason.contains("small") && rejected[0].reason.contains("4025"), "{}", rejected[0].reason);
    assert_eq!(MysqlReader::new(&config).unwrap().count("order").await.unwrap(), (500 - rejected.len()) as u64);
}

/// As after a failover, while the name still leads to what is a replica now.
async fn a_read_only_server_is_waited_for(server: &PostgresServer) {
    let config = PostgresConfig { schema: "failover".to_owned(), ..PostgresConfig::new(server.url()) };
    let mut sink = PostgresSink::new(config.clone()).unwrap();
    sink.prepare(&[order()]).await.unwrap();
    let admin = client(server).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tributary'";
    admin.batch_execute(&format!("ALTER DATABASE entities SET default_transaction_read_only = on; {cut}")).await.unwrap();
    let changes = [change("1", 1, 0, Some("{}"))];
    let error = sink.write(&changes, Some(lsn(1))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "the connection was cut: {error}");
    let refused = match sink.prepare(&[order()]).await {
        Ok(()) => sink.write(&changes, Some(lsn(1))).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(refused.class() == ErrorClass::Transient && refused.to_string().contains("read-only"), "{refused}");
    admin.batch_execute("BEGIN READ WRITE; ALTER DATABASE entities RESET default_transaction_read_only; COMMIT").await.unwrap();
    sink.prepare(&[order()]).await.unwrap();
    sink.write(&changes, Some(lsn(1))).await.unwrap();
    assert_eq!(PostgresReader::new(&config).unwrap().count("order").await.unwrap(), 1);
}

/// The same, by a user who may not write to such a server; with its connections cut, and with them left open.
async fn a_read_only_server_is_waited_for_in_mysql(server: &MysqlServer) {
    let mut root = MySqlConnection::connect(&server.root_url()).await.unwrap();
    let mut admin = async |statement: &str| {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut root).await.unwrap();
    };
    for statement in
        ["CREATE DATABASE failover", "CREATE USER 'writer'@'%' IDENTIFIED BY 'writer'", "GRANT ALL ON failover.* TO 'writer'@'%'"]
    {
        admin(statement).await;
    }
    let config = MysqlConfig::new(server.url_of("failover").replace("tributary:tributary", "writer:writer"));
    let (mut sink, reader) = (MysqlSink::new(config.clone()).unwrap(), MysqlReader::new(&config).unwrap());
    sink.prepare(&[order()]).await.unwrap();
    for (version, cut) in [(1, true), (2, false)] {
        admin("SET GLOBAL read_only = 1").await;
        if cut {
            admin("KILL USER 'writer'").await;
        }
        let changes = [change("1", version, 0, Some("{}"))];
        let error = sink.write(&changes, Some(lsn(version))).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
        let refused = match sink.prepare(&[order()]).await {
            Ok(()) => sink.write(&changes, Some(lsn(version))).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(refused.class() == ErrorClass::Transient && refused.to_string().contains("1290"), "{refused}");
        let checked = MysqlSink::new(config.clone()).unwrap().check(&[order()]).await.unwrap();
        assert!(checked.warnings.iter().any(|warning| warning.contains("read-only")), "{checked:?}");
        admin("SET GLOBAL read_only = 0").await;
        sink.prepare(&[order()]).await.unwrap();
        sink.write(&changes, Some(lsn(version))).await.unwrap();
        assert_eq!(reader.frontier().await.unwrap(), Some(lsn(version)));
    }
}
