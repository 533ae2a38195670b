//! A service that publishes accounts with entries, an importer of its stream, and a consumer of what is published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use importer::service::{ServiceConfig, ServiceImporter};
use importer::{Error, StatusHandle};
use schemas::contract::Contract;
use schemas::progress::{Phase, ProgressRecord, StreamName};
use serde_json::{Value as Json, json};
use streams::memory::Memory;
use streams::{Layout, Positions, Provider, Record};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn contract(name: &str, columns: &[(&str, &str)]) -> Contract {
    let properties: serde_json::Map<String, Json> =
        columns.iter().map(|(name, sql_type)| ((*name).to_owned(), json!({"x-sql-type": sql_type}))).collect();
    Contract::parse(name, &json!({"x-table": name, "x-key": ["id"], "properties": properties}).to_string()).unwrap()
}

pub(crate) struct World {
    pub(crate) input: Arc<dyn Provider>,
    pub(crate) output: Memory,
    pub(crate) directory: TempDir,
    pub(crate) config: ServiceConfig,
}

impl World {
    pub(crate) async fn new() -> Self {
        let input = Memory::new();
        input.ensure(&stream(), 3).await.unwrap();
        Self::over(Arc::new(input))
    }

    /// The service's stream is there.
    pub(crate) fn over(input: Arc<dyn Provider>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = ServiceConfig::new("bank", stream().0, directory.path().join("importer"));
        let mapping = json!({
            "bank.accounts": {"when": {"/type": "account"}, "row": "/data", "delete": {"when": {"/data/closed": true}}},
            "bank.entries": {
                "when": {"/type": "entry"}, "row": "/data", "partition_by": "account",
                "delete": {"when": {"/data": null}, "key": {"id": "/id"}},
            },
        });
        config.tables = serde_json::from_value(mapping).unwrap();
        config.output.layout = Layout::Shared;
        config.output.partition_by = [("bank.entries".parse().unwrap(), "account".to_owned())].into();
        config.output.shards = 2;
        for contract in [
            contract("bank.accounts", &[("id", "int"), ("name", "nvarchar(20)")]),
            contract("bank.entries", &[("id", "int"), ("account", "int"), ("amount", "decimal(10,2)")]),
        ] {
            config.contracts.insert(contract.table.name.clone(), contract);
        }
        Self { input, output: Memory::new(), directory, config }
    }

    /// What the service says.
    pub(crate) async fn say(&self, events: &[Json]) {
        let key = |event: &Json| format!("{}{}", event["type"], event.get("id").unwrap_or(&event["data"]["id"]));
        let records = events.iter().map(|event| Record { partition_key: key(event), data: event.to_string().into() }).collect();
        let mut writer = self.input.writer().await.unwrap();
        writer.append(&stream(), records).await.unwrap();
        writer.flush().await.unwrap();
    }

    pub(crate) fn import(&self) -> Import {
        self.import_into(Arc::new(self.output.clone()))
    }

    pub(crate) fn import_into(&self, output: Arc<dyn Provider>) -> Import {
        let importer = ServiceImporter::new(self.config.clone(), Arc::clone(&self.input), output);
        let (status, stop) = (importer.status(), CancellationToken::new());
        let task = tokio::spawn(importer.run(stop.clone()));
        Import { status, stop, task }
    }

    pub(crate) async fn import_error(&self) -> Error {
        let import = self.import();
        let ended = tokio::time::timeout(PATIENCE, import.task).await;
        ended.unwrap_or_else(|_| panic!("it goes on: {:?}", import.status.get())).unwrap().unwrap_err()
    }

    /// Imports until this holds of what is published.
    pub(crate) async fn import_until(&self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        let import = self.import();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen().await;
            if condition(&seen) {
                import.stop().await;
                return self.seen().await;
            }
            assert!(Instant::now() < deadline && !import.task.is_finished(), "{what} did not come: {:?}", import.status.get());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn records(&self, stream: &StreamName) -> Vec<Json> {
        let Ok(mut left) = self.output.tips(stream).await else { return Vec::new() };
        let mut reader = self.output.reader(stream, &Positions::new()).await.unwrap();
        let mut records = Vec::new();
        while !left.is_empty() {
            let batch = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap();
            for (number, data) in &batch.records {
                left.retain(|shard, tip| *shard != batch.shard || number < tip);
                records.push(serde_json::from_slice(data).unwrap());
            }
        }
        records
    }

    /// What a consumer makes of everything that has been published.
    pub(crate) async fn seen(&self) -> Seen {
        // Progress first: events that come later may not be promised yet.
        let progress: Vec<ProgressRecord> = (self.records(&Layout::progress_stream("bank")).await.into_iter())
            .map(|record| serde_json::from_value(record).unwrap())
            .collect();
        let events = self.records(&StreamName("bank.events".into())).await;
        Seen::new(progress, &events)
    }
}

pub(crate) fn stream() -> StreamName {
    StreamName("bank-events".into())
}

/// What has been published: each tick's events once, in its order.
pub(crate) struct Seen {
    pub(crate) progress: Vec<ProgressRecord>,
    pub(crate) events: Vec<Json>,
    /// Events that came more than once, and how often they were too many.
    pub(crate) repeats: usize,
}

impl Seen {
    fn new(progress: Vec<ProgressRecord>, events: &[Json]) -> Self {
        let to = progress.iter().map(|record| record.to_lsn.to_string()).max().unwrap_or_default();
        let place = |event: &Json| {
            let source = &event["source"];
            let text = |name: &str| source[name].as_str().unwrap().to_owned();
            (text("commit_lsn"), text("change_lsn"), text("table"))
        };
        let promised: Vec<&Json> = events.iter().filter(|event| event["source"]["commit_lsn"].as_str() <= Some(&*to)).collect();
        let mut unique: BTreeMap<_, &Json> = BTreeMap::new();
        for event in &promised {
            let first = unique.entry(place(event)).or_insert(event);
            assert_eq!(first, event, "two events of one identity");
        }
        let repeats = promised.len() - unique.len();
        let seen = Self { progress, events: unique.into_values().cloned().collect(), repeats };
        seen.check();
        seen
    }

    /// Ticks follow on, and each holds what its record counts.
    fn check(&self) {
        let mut ticks = BTreeMap::new();
        let mut ends = BTreeSet::new();
        for record in &self.progress {
            match record.phase {
                Phase::SnapshotComplete { consistent_from } => {
                    assert_eq!((record.from_lsn, record.to_lsn), (consistent_from, consistent_from));
                }
                Phase::Tail => assert!(ends.contains(&record.from_lsn), "a gap before {record:?}"),
                Phase::Snapshot => panic!("{record:?}"),
            }
            ends.insert(record.to_lsn);
            let counts = record.counts.clone();
            if let Some(earlier) = ticks.insert(record.to_lsn.to_string(), counts.clone()) {
                assert_eq!(earlier, counts, "a tick that was published again is another");
            }
        }
        let mut found: BTreeMap<String, BTreeMap<_, u64>> = ticks.keys().map(|tick| (tick.clone(), BTreeMap::new())).collect();
        for event in &self.events {
            let source = &event["source"];
            let table = schemas::TableName::new(source["schema"].as_str().unwrap(), source["table"].as_str().unwrap());
            *found.get_mut(source["commit_lsn"].as_str().unwrap()).unwrap().entry(table).or_default() += 1;
        }
        assert_eq!(found, ticks);
    }

    /// The tables, from the images of each event; an image of what a row was has to be the row.
    pub(crate) fn tables(&self) -> BTreeMap<(String, String), Json> {
        let mut rows = BTreeMap::new();
        for event in &self.events {
            let table = event["source"]["table"].as_str().unwrap();
            let place = |row: &Json| (table.to_owned(), row["id"].to_string());
            let (before, after) = (&event["before"], &event["after"]);
            let key = place(if after.is_null() { before } else { after });
            assert_eq!(rows.remove(&key).unwrap_or(Json::Null), *before, "{event}");
            if !after.is_null() {
                rows.insert(key, after.clone());
            }
        }
        rows
    }
}

pub(crate) struct Import {
    pub(crate) status: StatusHandle,
    stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Import {
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it as a crash would: at whatever it is doing.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
