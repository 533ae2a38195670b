//! The lake as DuckDB reads it: types, concurrent reading, kills, two writers, compaction, removal, changed definitions.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use objects::test_support::{Control, Controlled, Fate, Operation};
use objects::{Config, LocalOptions, ObjectPath, Objects, S3Options};
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, KeyRange, Lsn};
use serde_json::{Value, json};
use sinks::Sink;
use sinks::lake::{LakeConfig, LakeSink};
use sinks::test_support::Ministack;

mod duckdb;

use duckdb::DuckDb;

/// The folder that a writer in a process of its own works in.
const CHILD: &str = "TRIBUTARY_TEST_LAKE_CHILD";
const KEYS: u32 = 40;
const LAST_CHECKPOINT: &str = "order/changes/_delta_log/_last_checkpoint";

fn lsn(number: u32) -> Lsn {
    let [a, b, c, d] = number.to_be_bytes();
    Lsn::from_bytes([0, 0, 0, 1, a, b, c, d, 0, 1])
}

fn order(properties: &Value) -> EntityInfo {
    let key = vec![("id".to_owned(), SqlType::Int)];
    EntityInfo { name: "order".into(), key, document_schema: json!({"type": "object", "properties": properties}) }
}

fn numbered() -> EntityInfo {
    order(&json!({"n": {"type": "integer"}}))
}

fn change(key: u32, version: u32, document: Option<&Value>) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: lsn(version),
        commit_time_ms: 1_700_000_000_000 + i64::from(version) * 60_000,
        document: document.map(|document| document.to_string().into()),
    }
}

/// Every key at one version; one in seven is gone.
fn batch(version: u32) -> Vec<EntityChange> {
    let document = json!({"n": version});
    (0..KEYS).map(|key| change(key, version, (!is_gone(key, version)).then_some(&document))).collect()
}

fn is_gone(key: u32, version: u32) -> bool {
    (key + version).is_multiple_of(7)
}

fn config(folder: &Path) -> LakeConfig {
    let store = Config::Local(LocalOptions { path: folder.to_owned() });
    LakeConfig { commit_seconds: 0, current_seconds: 0, file_bytes: 4000, ..LakeConfig::new(store) }
}

async fn prepared(config: LakeConfig, info: EntityInfo) -> LakeSink {
    let mut sink = LakeSink::new(config);
    sink.prepare(&[info]).await.unwrap();
    sink
}

fn scan(folder: &Path, table: &str) -> String {
    format!("delta_scan('{}/order/{table}')", folder.display())
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

/// Each version once for each key, and the current entities are those of one version. Answers that, and the last version of the changes.
fn look(duckdb: &DuckDb, folder: &Path) -> (u32, u32) {
    let current = duckdb.rows(&format!("SELECT _key, n FROM {}", scan(folder, "current")));
    let versions: BTreeSet<u32> = current.iter().map(|row| number(&row[1])).collect();
    assert!(versions.len() <= 1, "entities of several versions are current: {versions:?}");
    let version = versions.first().copied().unwrap_or(0);
    if version > 0 {
        let keys: BTreeSet<u32> = current.iter().map(|row| row[0].as_str().unwrap().parse().unwrap()).collect();
        assert_eq!(keys.len(), current.len(), "a key is current twice");
        assert_eq!(keys, (0..KEYS).filter(|key| !is_gone(*key, version)).collect());
    }
    let changes = duckdb
        .rows(&format!("SELECT _version, count(*), count(DISTINCT _key) FROM {} GROUP BY 1 ORDER BY 1", scan(folder, "changes")));
    for (row, nth) in changes.iter().zip(1..) {
        assert_eq!(row[0].as_str().unwrap(), lsn(nth).to_string(), "no version is missing");
        assert_eq!((number(&row[1]), number(&row[2])), (KEYS, KEYS), "of version {nth}");
    }
    (version, changes.len().try_into().unwrap())
}

/// Not a test of its own: the writer that [`kills_lose_nothing_and_repeat_nothing`] kills. It notes its place in every third version only, so that there is always something to repeat.
#[tokio::test]
#[ignore = "runs in a process of its own"]
async fn writer() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let place = folder.join("place");
    let first = std::fs::read_to_string(&place).map_or(0, |text| text.parse().unwrap());
    let mut sink = prepared(config(&folder), numbered()).await;
    for version in first + 1.. {
        sink.write(&batch(version), Some(lsn(version))).await.unwrap();
        if version % 3 == 0 {
            std::fs::write(folder.join("new"), version.to_string()).unwrap();
            std::fs::rename(folder.join("new"), &place).unwrap();
        }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn kills_lose_nothing_and_repeat_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    drop(prepared(config(folder), numbered()).await);
    let duckdb = DuckDb::start();
    let mut reached = 0;
    for kill in 1..=8u32 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "writer", "--ignored"]).env(CHILD, folder).stdout(Stdio::null());
        let mut writer = Killed(command.spawn().unwrap());
        // Reading beside the writing, until it has come a good way; the kill then comes at any point of its work.
        loop {
            assert!(writer.0.try_wait().unwrap().is_none(), "the writer has ended by itself");
            let (current, changes) = look(&duckdb, folder);
            assert!(current >= reached && changes >= current, "{current} of {changes} after {reached}");
            if current >= reached + 5 + kill {
                reached = current;
                break;
            }
        }
        drop(writer);
    }
    let mut sink = prepared(config(folder), numbered()).await;
    let (_, last) = look(&duckdb, folder);
    for version in [last - 1, last, last + 1] {
        sink.write(&batch(version), Some(lsn(version))).await.unwrap();
    }
    assert_eq!(look(&duckdb, folder), (last + 1, last + 1));
    assert!(folder.join(LAST_CHECKPOINT).exists(), "after {last} entries");
}

#[tokio::test]
async fn a_checkpoint_that_a_kill_prevented_is_made_with_the_next_entry() {
    let directory = tempfile::tempdir().unwrap();
    let hint = directory.path().join(LAST_CHECKPOINT);
    let mut sink = prepared(config(directory.path()), numbered()).await;
    let mut version = 0;
    while !hint.exists() {
        version += 1;
        assert!(version <= 50, "no checkpoint was made");
        sink.write(&batch(version), Some(lsn(version))).await.unwrap();
    }
    drop(sink);
    let first: Value = serde_json::from_slice(&std::fs::read(&hint).unwrap()).unwrap();
    // As it would be had the writer been killed between the entry and its checkpoint.
    std::fs::remove_file(&hint).unwrap();
    let mut sinks = [prepared(config(directory.path()), numbered()).await, prepared(config(directory.path()), numbered()).await];
    sinks[0].write(&batch(version + 1), Some(lsn(version + 1))).await.unwrap();
    let second: Value = serde_json::from_slice(&std::fs::read(&hint).unwrap()).unwrap();
    assert_eq!(number(&second["version"]), number(&first["version"]) + 1);
    // Once is enough, whoever writes next.
    sinks[1].write(&batch(version + 2), Some(lsn(version + 2))).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&hint).unwrap()).unwrap(), second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_at_once_write_each_change_once() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().to_owned();
    drop(prepared(config(&folder), numbered()).await);
    let writers = [0, 1].map(|_| {
        let folder = folder.clone();
        tokio::spawn(async move {
            let mut sink = prepared(config(&folder), numbered()).await;
            for version in 1..=25 {
                sink.write(&batch(version), Some(lsn(version))).await.unwrap();
            }
        })
    });
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(look(&DuckDb::start(), &folder), (25, 25));
}

/// The current entities follow the changes of all shares, whoever writes.
#[tokio::test]
async fn another_writer_merges_while_that_of_the_first_share_is_away() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let shares: [KeyRange; 2] = [0, 1].map(|nth| KeyRange::of(nth, 2).unwrap());
    let config = LakeConfig { current_seconds: 1, ..config(folder) };
    let mut sinks = Vec::new();
    for share in shares {
        let mut sink = LakeSink::new(config.clone());
        assert!(sink.own(share));
        sink.prepare(&[numbered()]).await.unwrap();
        let own: Vec<EntityChange> = batch(1).into_iter().filter(|change| share.holds("order", &change.key)).collect();
        sink.write(&own, Some(lsn(1))).await.unwrap();
        sinks.push((share, sink));
    }
    let (share, mut second) = sinks.remove(1);
    drop(sinks);
    let duckdb = DuckDb::start();
    let began = std::time::Instant::now();
    let query = format!("SELECT max(n) FROM {}", scan(folder, "current"));
    for version in 2.. {
        let own: Vec<EntityChange> = batch(version).into_iter().filter(|change| share.holds("order", &change.key)).collect();
        second.write(&own, Some(lsn(version))).await.unwrap();
        // The first has merged once, when it began.
        if duckdb.rows(&query)[0][0].as_u64() > Some(1) {
            break;
        }
        assert!(began.elapsed().as_secs() < 60, "nobody merges");
    }
    drop(second);
    // It comes back, and merges again: what the other did is there.
    let mut first = LakeSink::new(config);
    assert!(first.own(shares[0]));
    first.prepare(&[numbered()]).await.unwrap();
    let before = number(&duckdb.rows(&query)[0][0]);
    let own: Vec<EntityChange> = batch(1000).into_iter().filter(|change| shares[0].holds("order", &change.key)).collect();
    for version in 1000.. {
        first.write(&own, Some(lsn(version))).await.unwrap();
        if number(&duckdb.rows(&query)[0][0]) == 1000 {
            break;
        }
        assert!(began.elapsed().as_secs() < 60, "the first does not merge");
    }
    let rows = duckdb.rows(&format!("SELECT _key, n FROM {}", scan(folder, "current")));
    let of_second = rows.iter().filter(|row| share.holds("order", &EntityKey::from_text(row[0].as_str().unwrap())));
    assert!(of_second.clone().count() > 0 && of_second.map(|row| number(&row[1])).all(|n| n >= before), "{rows:?}");
}

#[tokio::test]
async fn columns_have_their_types_and_days_their_partitions() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let properties = json!({
        "id": {"type": "integer"}, "open": {"type": ["boolean", "null"]}, "rate": {"type": "number"}, "day": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"}, "photo": {"type": "string", "format": "base64"}, "total": {"type": "string", "format": "decimal"},
        "placed": {"type": "string", "format": "local-date-time"}, "items": {"type": "array"},
    });
    let mut sink = prepared(config(folder), order(&properties)).await;
    let full = json!({"id": 9_007_199_254_740_993i64, "open": true, "rate": 0.1, "day": "1969-12-31", "seen": "2026-11-22T10:00:00.5+02:00", "photo": "AP8=", "total": "12.50", "placed": "1969-07-20T20:17:40.1234567", "items": [{"n": 1}]});
    let mut late = change(2, 2, Some(&json!({"id": 2})));
    late.commit_time_ms += 86_400_000;
    let mut unfit = change(3, 2, Some(&json!({"id": 1e300})));
    unfit.commit_time_ms = 0;
    let rejected = sink.write(&[change(1, 2, Some(&full)), late, unfit], Some(lsn(2))).await.unwrap();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.contains("id") && rejected[0].reason.contains("long"), "{}", rejected[0].reason);
    let duckdb = DuckDb::start();
    let columns = "id, open, rate, day::VARCHAR, seen::VARCHAR, hex(photo), total, placed::VARCHAR, typeof(placed), _document ->> '$.items[0].n'";
    for table in ["changes", "current"] {
        let rows = duckdb.rows(&format!("SELECT {columns} FROM {} ORDER BY _key", scan(folder, table)));
        assert_eq!(
            json!(rows),
            json!([
                [
                    9_007_199_254_740_993i64,
                    true,
                    0.1,
                    "1969-12-31",
                    "2026-11-22 08:00:00.5+00",
                    "00FF",
                    "12.50",
                    "1969-07-20 20:17:40.123456",
                    "TIMESTAMP",
                    "1"
                ],
                [2, null, null, null, null, null, null, null, "TIMESTAMP", null]
            ])
        );
    }
    let days =
        duckdb.rows(&format!("SELECT _date, _committed_at::VARCHAR, _operation FROM {} ORDER BY 1", scan(folder, "changes")));
    assert_eq!(
        json!(days),
        json!([["2023-11-14", "2023-11-14 22:15:20+00", "upsert"], ["2023-11-15", "2023-11-15 22:15:20+00", "upsert"]])
    );
    assert!(folder.join("order/changes/date=2023-11-15").is_dir());
}

/// A table with local times is of another version of the protocol, which a checkpoint says as well.
#[tokio::test]
async fn local_times_are_read_by_way_of_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let info = order(&json!({"placed": {"type": ["string", "null"], "format": "local-date-time"}}));
    let config = LakeConfig { current_seconds: 3600, ..config(folder) };
    let mut sink = prepared(config.clone(), info.clone()).await;
    for version in 1..=60 {
        let document = json!({"placed": format!("2026-11-22T10:00:{:02}.5", version % 60)});
        sink.write(&[change(1, version, Some(&document))], Some(lsn(version))).await.unwrap();
    }
    let log = folder.join("order/changes/_delta_log");
    for entry in 0..50 {
        std::fs::remove_file(log.join(format!("{entry:020}.json"))).unwrap();
    }
    let query = format!("SELECT count(*), max(placed)::VARCHAR, typeof(max(placed)) FROM {}", scan(folder, "changes"));
    assert_eq!(json!(DuckDb::start().rows(&query)), json!([[60, "2026-11-22 10:00:59.5", "TIMESTAMP"]]));
    drop(prepared(config, info).await);
}

#[tokio::test]
async fn decimals_are_summed_exactly_and_one_that_is_too_large_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let decimal = |declared: &str| json!({"type": ["string", "null"], "format": "decimal", "x-sql-type": declared});
    let properties =
        json!({"total": decimal("decimal(12,2)"), "fee": decimal("money"), "rate": {"type": "string", "format": "decimal"}});
    let mut sink = prepared(config(folder), order(&properties)).await;
    // More than a double tells apart.
    let document = |total: &str| json!({"total": total, "fee": "-0.0001", "rate": "0.333333"});
    let large = "90071992547409931234.01";
    let mut changes: Vec<EntityChange> = (0..10).map(|key| change(key, 1, Some(&document("0.10")))).collect();
    changes.extend([change(10, 1, Some(&document(large))), change(11, 1, Some(&json!({"total": null})))]);
    let digits = format!("{}.00", "9".repeat(37));
    changes.push(change(12, 1, Some(&document(&digits))));
    let rejected = sink.write(&changes, Some(lsn(1))).await.unwrap();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.contains("total") && rejected[0].reason.contains("decimal(38,2)"), "{}", rejected[0].reason);
    let duckdb = DuckDb::start();
    for table in ["changes", "current"] {
        let query = "SELECT sum(total)::VARCHAR, sum(fee)::VARCHAR, max(rate), typeof(any_value(total)), count(total) FROM";
        let found = duckdb.rows(&format!("{query} {}", scan(folder, table)));
        assert_eq!(json!(found), json!([["90071992547409931235.01", "-0.0011", "0.333333", "DECIMAL(38,2)", 11]]));
    }
    let above = duckdb.rows(&format!("SELECT _key FROM {} WHERE total > 0.1", scan(folder, "current")));
    assert_eq!(json!(above), json!([["10"]]));
    // More digits before the point, as a compatible change of the source's column: the table stays as it is.
    let wider =
        json!({"total": decimal("decimal(18,2)"), "fee": decimal("money"), "rate": {"type": "string", "format": "decimal"}});
    prepared(config(folder), order(&wider)).await;
}

fn data_files(folder: &Path) -> usize {
    let below = |folder: PathBuf| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    below(folder.join("order/changes")).filter(|day| !day.ends_with("_delta_log")).flat_map(below).count()
}

#[tokio::test]
async fn small_files_are_united_and_unnamed_ones_removed() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let config = LakeConfig { file_bytes: 1 << 20, ..config(folder) };
    let mut sink = prepared(config.clone(), numbered()).await;
    for version in 1..=60 {
        sink.write(&batch(version), Some(lsn(version))).await.unwrap();
    }
    let duckdb = DuckDb::start();
    assert_eq!(look(&duckdb, folder), (60, 60));
    let named =
        duckdb.rows(&format!("SELECT DISTINCT filename FROM delta_scan('{}/order/changes', filename = true)", folder.display()));
    assert!(named.len() < 20, "{} files", named.len());
    assert!(data_files(folder) > 60, "readers of earlier snapshots find theirs");
    let stray = folder.join("order/changes/date=2023-11-14/part-stray.zstd.parquet");
    std::fs::write(&stray, "of a writer that died").unwrap();
    // Everything was read: nobody needs what is not named.
    let mut sink = prepared(LakeConfig { removed_hours: 0, ..config }, numbered()).await;
    sink.write(&batch(61), Some(lsn(61))).await.unwrap();
    assert!(!stray.exists());
    assert!(data_files(folder) < 20, "{} files", data_files(folder));
    assert_eq!(look(&duckdb, folder), (61, 61));
}

/// A store on which files of the current entities cannot be put until somebody says so.
#[derive(Debug)]
struct Gated(tokio::sync::watch::Sender<bool>);

#[async_trait::async_trait]
impl Control for Gated {
    async fn fate(&self, operation: Operation<'_>) -> Fate {
        if let Operation::Put(path) = operation
            && path.as_ref().starts_with("order/current/part-")
        {
            // The sender lives as long as this.
            let _ = self.0.subscribe().wait_for(|open| *open).await;
        }
        Fate::Done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_takes_long_does_not_hold_up_the_changes() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let inner = object_store::local::LocalFileSystem::new_with_prefix(folder).unwrap();
    let gated = Arc::new(Gated(tokio::sync::watch::Sender::new(false)));
    let mut sink =
        LakeSink::over(LakeConfig { current_seconds: 1, ..config(folder) }, Controlled::objects(Arc::new(inner), gated.clone()));
    sink.prepare(&[numbered()]).await.unwrap();
    for version in 1..=20 {
        sink.write(&batch(version), Some(lsn(version))).await.unwrap();
    }
    let duckdb = DuckDb::start();
    assert_eq!(look(&duckdb, folder), (0, 20), "all changes are there, and no current entity");
    gated.0.send_replace(true);
    // The first merge is of the changes that there were when it began; the next one, a second later, of all.
    let mut last = 20;
    while look(&duckdb, folder).0 < 20 {
        last += 1;
        sink.write(&batch(last), Some(lsn(last))).await.unwrap();
    }
    // A sink that goes away leaves whole tables, and the next one goes on.
    drop(sink);
    let mut sink = prepared(config(folder), numbered()).await;
    sink.write(&batch(last + 1), Some(lsn(last + 1))).await.unwrap();
    assert_eq!(look(&duckdb, folder), (last + 1, last + 1));
}

#[tokio::test]
async fn changes_of_long_ago_go_and_current_entities_stay() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let mut sink = prepared(LakeConfig { changes_days: Some(30), ..config(folder) }, numbered()).await;
    let mut of_today = change(KEYS, 2, Some(&json!({"n": 1})));
    of_today.commit_time_ms = jiff::Timestamp::now().as_millisecond();
    sink.write(&batch(1), None).await.unwrap();
    sink.prepare(&[numbered()]).await.unwrap();
    sink.write(&[of_today], Some(lsn(2))).await.unwrap();
    let duckdb = DuckDb::start();
    let count = |table: &str| duckdb.rows(&format!("SELECT count(*) FROM {}", scan(folder, table)))[0][0].clone();
    assert_eq!(count("changes"), 1);
    assert_eq!(number(&count("current")), 1 + (0..KEYS).filter(|key| !is_gone(*key, 1)).count() as u32);
}

#[tokio::test]
async fn a_definition_may_gain_members_and_not_change_their_types() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let mut sink = prepared(config(folder), numbered()).await;
    sink.write(&[change(1, 1, Some(&json!({"n": 1}))), change(2, 1, Some(&json!({"n": 1})))], Some(lsn(1))).await.unwrap();
    let wider = order(&json!({"n": {"type": "integer"}, "city": {"type": "string"}}));
    let mut sink = prepared(config(folder), wider).await;
    sink.write(&[change(1, 2, Some(&json!({"n": 2, "city": "Köln"})))], Some(lsn(2))).await.unwrap();
    let duckdb = DuckDb::start();
    let rows = duckdb.rows(&format!("SELECT _key, n, city FROM {} ORDER BY 1", scan(folder, "current")));
    assert_eq!(json!(rows), json!([["1", 2, "Köln"], ["2", 1, null]]));
    let mut sink = LakeSink::new(config(folder));
    let error = sink.prepare(&[order(&json!({"n": {"type": "string"}}))]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(error.to_string().contains("order/changes") && error.to_string().contains("long"), "{error}");
}

#[tokio::test]
async fn a_table_that_another_program_changed_is_refused_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let mut sink = prepared(config(folder), numbered()).await;
    sink.write(&batch(1), Some(lsn(1))).await.unwrap();
    let log = folder.join("order/changes/_delta_log");
    let next = std::fs::read_dir(&log).unwrap().count();
    let harmless = r#"{"commitInfo":{"timestamp":1,"operation":"VACUUM END","operationParameters":{"status":"COMPLETED"}}}"#;
    std::fs::write(log.join(format!("{next:020}.json")), harmless).unwrap();
    sink.write(&batch(2), Some(lsn(2))).await.unwrap();
    assert_eq!(look(&DuckDb::start(), folder), (2, 2));
    let next = std::fs::read_dir(&log).unwrap().count();
    let theirs = r#"{"remove":{"path":"x","dataChange":false}}"#;
    std::fs::write(log.join(format!("{next:020}.json")), theirs).unwrap();
    let error = sink.write(&batch(3), Some(lsn(3))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(error.to_string().contains(&format!("entry {next}")), "{error}");
    let error = LakeSink::new(config(folder)).check(&[numbered()]).await.unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_as_good_as_a_folder() {
    let aws = Ministack::start();
    aws.create_bucket("lake").await;
    let store = Config::S3(S3Options {
        bucket: "lake".into(),
        prefix: "shop".into(),
        region: None,
        endpoint: Some(aws.endpoint_url()),
        stand_in_credentials: true,
    });
    let directory = tempfile::tempdir().unwrap();
    let config = LakeConfig { store: store.clone(), ..config(directory.path()) };
    let mut sinks = [prepared(config.clone(), numbered()).await, prepared(config, numbered()).await];
    for version in 1..=5 {
        for sink in &mut sinks {
            sink.write(&batch(version), Some(lsn(version))).await.unwrap();
        }
    }
    let bucket = Objects::open(&store).await.unwrap();
    for object in bucket.list(&ObjectPath::parse("order").unwrap()).await.unwrap() {
        let path = directory.path().join(object.path.as_ref());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bucket.get(&object.path).await.unwrap().unwrap()).unwrap();
    }
    assert_eq!(look(&DuckDb::start(), directory.path()), (5, 5));
}

#[tokio::test]
async fn the_query_of_the_documentation_tells_what_is_newest() {
    let page = include_str!("../../../../docs/sinks.md");
    let (_, from) = page.split_once("SELECT * EXCLUDE").unwrap();
    let (query, _) = from.split_once("```").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path();
    let mut sink = prepared(LakeConfig { current_seconds: 3600, ..config(folder) }, numbered()).await;
    sink.write(&batch(1), Some(lsn(1))).await.unwrap();
    sink.write(&batch(2)[..10], Some(lsn(2))).await.unwrap();
    // Whether the current entities have followed or not.
    let duckdb = DuckDb::start();
    let query = format!("SELECT * EXCLUDE{query}").replace("s3://shop-lake", &folder.display().to_string());
    let newest = duckdb.rows(&format!("SELECT _key, n FROM ({}) ORDER BY _key::INT", query.trim().trim_end_matches(';')));
    let newest: Vec<(u32, u32)> = newest.iter().map(|row| (row[0].as_str().unwrap().parse().unwrap(), number(&row[1]))).collect();
    let version = |key: u32| if key < 10 { 2 } else { 1 };
    let expected: Vec<_> = (0..KEYS).map(|key| (key, version(key))).filter(|(key, version)| !is_gone(*key, *version)).collect();
    assert_eq!(newest, expected);
}

#[tokio::test]
async fn a_key_of_another_type_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut sink = prepared(config(directory.path()), numbered()).await;
    sink.write(&batch(1), Some(lsn(1))).await.unwrap();
    let other = EntityInfo { key: vec![("id".to_owned(), SqlType::UniqueIdentifier)], ..numbered() };
    let error = LakeSink::new(config(directory.path())).prepare(&[other]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("types of the key"), "{error}");
}
