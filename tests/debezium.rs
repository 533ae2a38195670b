//! Our events of a scripted workload equal Debezium's: operation, key, before, after, order.
//!
//! Debezium 3.6.3 with Microsoft's JDBC driver and Tributary's importer read the same stand-in at the same time: first the snapshot, then a script of inserts, updates, deletes, key changes,
//! multi-table transactions and rollbacks over the common types.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use schemas::progress::StreamName;
use serde_json::{Map, Value, json};
use streams::{Positions, StreamReader};
use support::pipeline::Pipeline;
use support::process::Process;
use support::sqlserver::{PASSWORD, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(120);

const TABLES: [&str; 4] = [
    "CREATE TABLE dbo.parent (id int NOT NULL PRIMARY KEY, name nvarchar(50) NULL)",
    "CREATE TABLE dbo.child (parent_id int NOT NULL, n int NOT NULL, amount decimal(12,3) NULL, CONSTRAINT pk_child PRIMARY KEY (parent_id, n))",
    "CREATE TABLE dbo.kinds (id bigint NOT NULL PRIMARY KEY, b bit NULL, ti tinyint NULL, si smallint NULL, bi bigint NULL, r real NULL, f float NULL, \
     d decimal(20,5) NULL, m money NULL, sm smallmoney NULL, c char(5) NULL, vc varchar(50) NULL, nc nchar(4) NULL, nvc nvarchar(50) NULL, bin varbinary(20) NULL, \
     u uniqueidentifier NULL, dt date NULL, t time(3) NULL, d2 datetime2(7) NULL, dtm datetime NULL, sdt smalldatetime NULL, dto datetimeoffset(3) NULL)",
    "CREATE TABLE dbo.finish (id int NOT NULL PRIMARY KEY)",
];

/// Columns whose text differs in how a fraction or a zone is written.
const TEMPORAL: [&str; 6] = ["dt", "t", "d2", "dtm", "sdt", "dto"];

const FULL_ROW: &str = "1, 255, -32768, 9223372036854775807, 1.5, -2.25, 123456789012345.12345, 922337203685477.5807, -214748.3648, 'ab', 'plain', N'né', N'Ωmega ''quoted''', \
     0x00FF10, '6F9619FF-8B86-D011-B42D-00C04FC964FF', '2024-02-29', '23:59:59.999', '2024-02-29T12:34:56.1234567', '2024-02-29T12:34:56.123', '2024-02-29T12:35:00', \
     '2024-02-29T12:34:56.789+02:00'";

fn script() -> Vec<String> {
    let nulls = ["NULL"; 21].join(", ");
    let mut script: Vec<String> = [
        "INSERT INTO dbo.parent VALUES (10, N'ten')",
        "UPDATE dbo.parent SET name = N'TEN' WHERE id = 10",
        // One transaction over two tables, in both directions.
        "BEGIN TRANSACTION; INSERT INTO dbo.parent VALUES (11, N'eleven'); INSERT INTO dbo.child VALUES (11, 1, 1.5), (11, 2, NULL); UPDATE dbo.parent SET name = N'eleven with children' WHERE id = 11; COMMIT",
        // Never seen.
        "BEGIN TRANSACTION; INSERT INTO dbo.parent VALUES (12, N'never'); DELETE FROM dbo.child; ROLLBACK",
        // Partly rolled back.
        "BEGIN TRANSACTION; INSERT INTO dbo.parent VALUES (13, N'stays'); SAVE TRANSACTION s; UPDATE dbo.parent SET name = N'goes'; ROLLBACK TRANSACTION s; INSERT INTO dbo.child VALUES (13, 1, 2); COMMIT",
        // Key changes: of one row, of several, and back.
        "UPDATE dbo.parent SET id = 14 WHERE id = 10",
        "UPDATE dbo.child SET n = n + 10 WHERE parent_id = 11",
        "UPDATE dbo.child SET parent_id = 13, n = 2 WHERE parent_id = 11 AND n = 11",
        // Several changes of one row in one transaction.
        "BEGIN TRANSACTION; UPDATE dbo.parent SET name = N'a' WHERE id = 14; UPDATE dbo.parent SET name = N'b' WHERE id = 14; DELETE FROM dbo.parent WHERE id = 14; INSERT INTO dbo.parent VALUES (14, N'again'); COMMIT",
        "UPDATE dbo.parent SET name = NULL WHERE id = 1",
        "DELETE FROM dbo.child WHERE parent_id = 13",
        "UPDATE dbo.kinds SET b = 0, d = -0.00001, nvc = NULL, dto = '1999-12-31T23:59:59.999-11:00' WHERE id = 2",
        "DELETE FROM dbo.kinds WHERE id = 1",
    ]
    .map(str::to_owned)
    .into();
    script.push(format!("INSERT INTO dbo.kinds VALUES (3, {FULL_ROW}), (4, {nulls})"));
    script.push(
        "UPDATE dbo.kinds SET vc = 'no longer null', r = 0.5, dt = '0001-01-01', d2 = '9999-12-31T23:59:59.9999999' WHERE id = 4"
            .into(),
    );
    script
}

/// What is compared of an event.
fn normal(event: &Value, key: &Value) -> Value {
    let row = |row: &Value| {
        let Value::Object(columns) = row else { return Value::Null };
        let columns = columns.iter().map(|(name, value)| {
            let value = match value {
                Value::String(text) if TEMPORAL.contains(&name.as_str()) => Value::from(temporal(text)),
                other => other.clone(),
            };
            (name.clone(), value)
        });
        Value::Object(columns.collect::<Map<_, _>>())
    };
    let source = &event["source"];
    json!({
        "table": source["table"], "op": event["op"], "key": key, "before": row(&event["before"]), "after": row(&event["after"]),
        "commit_lsn": if event["op"] == "r" { Value::Null } else { source["commit_lsn"].clone() },
    })
}

/// Debezium marks zoneless times with a Z and cuts trailing zeros; neither says anything else about the moment.
fn temporal(text: &str) -> String {
    let (text, zone) = match text.strip_suffix('Z') {
        Some(text) => (text, ""),
        None => match text.rfind(['+', '-']).filter(|position| *position > 10) {
            Some(position) => text.split_at(position),
            None => (text, ""),
        },
    };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    // Java leaves out seconds that are zero.
    let text = if text.len() == 16 && text.as_bytes()[10] == b'T' { format!("{text}:00") } else { text.to_owned() };
    format!("{text}{zone}")
}

fn clients() -> PathBuf {
    let folder =
        std::env::var("TRIBUTARY_CLIENTS").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/.setup/clients").to_owned());
    let python = Path::new(&folder).join("venv/bin/python");
    assert!(python.exists(), "{} is missing: run `make setup`", python.display());
    python
}

/// Debezium's events so far, in the order in which it reported them.
fn debezium_events(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // The last line may still be in the writing.
    let lines = text.lines().map_while(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["value"]["op"].is_string()).map(|line| normal(&line["value"], &line["key"])).collect()
}

/// Our events, read from the embedded stream as they come.
struct Ours {
    reader: Box<dyn StreamReader>,
    events: Vec<Value>,
}

impl Ours {
    async fn read_until(&mut self, done: impl Fn(&[Value]) -> bool) {
        while !done(&self.events) {
            let batch = tokio::time::timeout(LIMIT, self.reader.next()).await.expect("our events in time").unwrap();
            for (_, data) in batch.records {
                let event: Value = serde_json::from_slice(&data).unwrap();
                let names: &[&str] = if event["source"]["table"] == "child" { &["parent_id", "n"] } else { &["id"] };
                let row = if event["after"].is_null() { &event["before"] } else { &event["after"] };
                let key = names.iter().map(|name| ((*name).to_owned(), row[*name].clone())).collect::<Map<_, _>>();
                self.events.push(normal(&event, &Value::Object(key)));
            }
        }
    }
}

fn is_finished(events: &[Value]) -> bool {
    events.iter().any(|event| event["table"] == "finish" && event["op"] == "c")
}

/// Snapshot events by table and key (tables may be read in any order), then the streamed ones as they are.
fn arranged(events: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    let (mut snapshot, streamed): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event["op"] == "r");
    snapshot.sort_by_key(|event| (event["table"].to_string(), event["key"].to_string()));
    (snapshot, streamed)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_events_equal_debeziums() {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    for table in TABLES {
        execute(&mut client, table).await;
    }
    capture(&mut client, &["parent", "child", "kinds", "finish"]).await;
    execute(&mut client, "INSERT INTO dbo.parent VALUES (1, N'one'), (2, NULL)").await;
    execute(&mut client, "INSERT INTO dbo.child VALUES (1, 1, 10.125), (1, 2, -0.001)").await;
    execute(&mut client, &format!("INSERT INTO dbo.kinds VALUES (1, {FULL_ROW}), (2, {FULL_ROW})")).await;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("debezium.jsonl");
    let _debezium = Process::spawn(
        "debezium",
        Command::new(clients())
            .current_dir(folder.path())
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/bench/peers/debezium_tail.py"))
            .args([
                "127.0.0.1",
                &server.address.port().to_string(),
                "sa",
                PASSWORD,
                "shop",
                "dbo.parent,dbo.child,dbo.kinds,dbo.finish",
                file.to_str().unwrap(),
                "initial",
                "120",
            ]),
    );
    let pipeline = Pipeline::init(&server, &[]);
    pipeline.configure(&server, "{embedded: {path: streams}}", "");
    let _importer = pipeline.start("importer");

    // Both have taken their snapshot (6 rows; `finish` is empty) before the script runs.
    wait_for("Debezium's snapshot", LIMIT, async || (debezium_events(&file).len() >= 6).then_some(())).await;
    let config: streams::config::Config =
        serde_yaml_ng::from_str(&format!("{{embedded: {{path: {}}}}}", pipeline.path("streams").display())).unwrap();
    let provider = streams::config::open(&config).await.unwrap();
    let reader =
        wait_for("our stream", LIMIT, async || provider.reader(&StreamName("tpch.events".into()), &Positions::new()).await.ok())
            .await;
    let mut ours = Ours { reader, events: Vec::new() };
    ours.read_until(|events| events.len() >= 6).await;

    for transaction in script() {
        execute(&mut client, &transaction).await;
    }
    execute(&mut client, "INSERT INTO dbo.finish VALUES (1)").await;
    wait_for("Debezium's last event", LIMIT, async || is_finished(&debezium_events(&file)).then_some(())).await;
    ours.read_until(is_finished).await;

    let (our_snapshot, our_stream) = arranged(ours.events);
    let (their_snapshot, their_stream) = arranged(debezium_events(&file));
    assert_eq!(our_snapshot, their_snapshot);
    for (index, (ours, theirs)) in our_stream.iter().zip(&their_stream).enumerate() {
        assert_eq!(ours, theirs, "event {index}");
    }
    assert_eq!(our_stream.len(), their_stream.len());
}
