//! A stand-in, an importer and memory streams, and reading back what was published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use importer::{Activity, Config, Encryption, Error, Importer, ImporterHandle, Password, Source, Status, StatusHandle};
use schemas::progress::{Phase, ProgressRecord, StreamName};
use schemas::{Lsn, TableName};
use serde_json::Value as Json;
use sqlserver::{Options, Running};
use streams::memory::Memory;
use streams::{Layout, Positions, Provider};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::server::{Given, patience};

/// Where the source is.
enum Server {
    StandIn(Arc<Running>),
    Given(Box<Given>),
}

pub(crate) struct World {
    server: Server,
    pub(crate) streams: Memory,
    pub(crate) directory: TempDir,
    pub(crate) config: Config,
}

impl World {
    /// A database in which the script has been run: on the server that the environment names, or else on the stand-in.
    pub(crate) async fn start(script: &str) -> Self {
        match Given::open().await {
            Some(given) => Self::given(given, script).await,
            None => Self::standin(script).await,
        }
    }

    pub(crate) async fn given(given: Given, script: &str) -> Self {
        Self::with(given.source(), Server::Given(Box::new(given)), script).await
    }

    /// On the stand-in in any case: for tests that do to the server what one does not do to a server.
    pub(crate) async fn standin(script: &str) -> Self {
        let options = Options { capture_interval: Duration::from_millis(20), ..Options::default() };
        let password = options.sa_password.clone();
        let server = Arc::new(sqlserver::start(options).await.unwrap());
        let (host, port) = (server.address().ip().to_string(), server.address().port());
        let login = Source::sql_login(host, port, "shop", "sa", Password::new(password));
        Self::with(Source { encrypt: Encryption::Off, ..login }, Server::StandIn(server), script).await
    }

    async fn with(source: Source, server: Server, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new("shop", source, directory.path().join("importer"));
        config.output.layout = Layout::Shared;
        config.poll_interval = Duration::from_millis(10);
        config.startup_patience = Duration::ZERO;
        let world = Self { server, streams: Memory::new(), directory, config };
        world.sql(script).await;
        if script.contains("sp_cdc_enable_table") {
            // What the script wrote is before the snapshot, not also after it.
            world.captured().await;
        }
        world
    }

    /// The stand-in, for a world that was started there.
    pub(crate) fn server(&self) -> &Arc<Running> {
        match &self.server {
            Server::StandIn(server) => server,
            Server::Given(_) => panic!("this test needs the stand-in: World::standin"),
        }
    }

    pub(crate) async fn sql(&self, script: &str) -> Vec<Vec<Vec<sqlserver::Value>>> {
        let server = match &self.server {
            Server::StandIn(server) => Arc::clone(server),
            Server::Given(given) => return given.execute(script).await,
        };
        let text = script.to_owned();
        let results = tokio::task::spawn_blocking(move || server.execute(&text)).await.unwrap();
        let results = results.unwrap_or_else(|error| panic!("{script}: {error:?}"));
        results.into_iter().map(|result| result.rows).collect()
    }

    pub(crate) fn import(&self) -> Import {
        self.import_into(Arc::new(self.streams.clone()))
    }

    pub(crate) fn import_into(&self, provider: Arc<dyn Provider>) -> Import {
        start(Importer::new(self.config.clone(), provider))
    }

    pub(crate) fn import_with_handle(&self) -> (Import, ImporterHandle) {
        self.import_with_handle_into(Arc::new(self.streams.clone()))
    }

    pub(crate) fn import_with_handle_into(&self, provider: Arc<dyn Provider>) -> (Import, ImporterHandle) {
        let importer = Importer::new(self.config.clone(), provider);
        let handle = importer.handle();
        (start(importer), handle)
    }

    /// Runs the importer until it fails.
    pub(crate) async fn import_error(&self) -> Error {
        let import = self.import();
        let result = tokio::time::timeout(patience(), import.task)
            .await
            .unwrap_or_else(|_| panic!("it goes on: {:?}", import.status.get()));
        result.unwrap().unwrap_err()
    }

    /// Everything committed so far has been captured; answers up to which LSN.
    pub(crate) async fn captured(&self) -> Lsn {
        match &self.server {
            Server::StandIn(server) => {
                let server = Arc::clone(server);
                tokio::task::spawn_blocking(move || server.capture_now("shop")).await.unwrap().unwrap();
            }
            Server::Given(given) => given.captured().await,
        }
        let rows = self.sql("SELECT MAX(start_lsn) FROM cdc.lsn_time_mapping").await;
        match &rows[0][0][0] {
            sqlserver::Value::Null => Lsn::ZERO,
            sqlserver::Value::Bytes(bytes) => Lsn::from_slice(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// All records of a stream, of all shards.
    pub(crate) async fn records(&self, stream: &StreamName) -> Vec<Json> {
        let Ok(tips) = self.streams.tips(stream).await else { return Vec::new() };
        let mut reader = self.streams.reader(stream, &Positions::new()).await.unwrap();
        let mut left: BTreeMap<_, _> = tips.into_iter().collect();
        let mut records = Vec::new();
        while !left.is_empty() {
            let batch = tokio::time::timeout(patience(), reader.next()).await.unwrap().unwrap();
            for (number, data) in &batch.records {
                if left.get(&batch.shard).is_some_and(|tip| number >= tip) {
                    left.remove(&batch.shard);
                }
                records.push(serde_json::from_slice(data).unwrap());
            }
        }
        records
    }

    /// The events, in the order in which they were published.
    pub(crate) async fn events(&self) -> Vec<Json> {
        self.records(&self.config.output.layout.stream(&self.config.output.prefix, &TableName::new("dbo", "orders"))).await
    }

    pub(crate) async fn progress(&self) -> Vec<ProgressRecord> {
        let records = self.records(&Layout::progress_stream(&self.config.output.prefix)).await;
        records.into_iter().map(|record| serde_json::from_value(record).unwrap()).collect()
    }

    /// Runs the importer until all that has been committed is published, and stops it.
    pub(crate) async fn import_all(&self) {
        let import = self.import();
        import.reaches(self.captured().await).await;
        import.stop().await;
    }

    /// The same, until nothing is being read again any more either.
    pub(crate) async fn import_all_rereads(&self) {
        let import = self.import();
        import.reaches(self.captured().await).await;
        import.until("the rereads' end", |status| status.tables.values().all(|table| table.reread.is_none())).await;
        import.stop().await;
    }
}

fn start(importer: Importer) -> Import {
    let (status, stop) = (importer.status(), CancellationToken::new());
    let task = tokio::spawn(importer.run(stop.clone()));
    Import { status, stop, task }
}

pub(crate) struct Import {
    pub(crate) status: StatusHandle,
    stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Import {
    /// Waits for a condition on the status.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Status) -> bool) {
        let deadline = Instant::now() + patience();
        loop {
            let status = self.status.get();
            if condition(&status) {
                return;
            }
            assert!(Instant::now() < deadline && !self.task.is_finished(), "{what} did not come: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn reaches(&self, lsn: Lsn) {
        self.until("the LSN", |status| status.activity == Activity::Tailing && status.published_lsn >= Some(lsn)).await;
    }

    /// Stops it and waits for its end.
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

/// Where an event stands in the order.
pub(crate) fn position(event: &Json) -> (String, i64, String, i64) {
    let source = &event["source"];
    let operation = match event["op"].as_str().unwrap() {
        "d" => 1,
        "c" => 2,
        "u" => 4,
        _ => 0,
    };
    let text = |key: &str| source[key].as_str().unwrap_or_default().to_owned();
    (text("commit_lsn"), source["command_id"].as_i64().unwrap(), text("change_lsn"), operation)
}

/// Event identity: (table, commit LSN, seqval, operation).
pub(crate) fn identity(event: &Json) -> (String, String, String, i64) {
    let (lsn, _, seqval, operation) = position(event);
    (event["source"]["table"].as_str().unwrap().to_owned(), lsn, seqval, operation)
}

pub(crate) fn table_of(event: &Json) -> &str {
    event["source"]["table"].as_str().unwrap()
}

/// The tail's events without repeats, which must be in the total order: an event that is new must stand after all that came before.
pub(crate) fn tail_in_order(events: &[Json]) -> Vec<Json> {
    let mut seen = BTreeSet::new();
    let mut last = None;
    let mut first = Vec::new();
    for event in events.iter().filter(|event| event["op"] != "r") {
        if !seen.insert(identity(event)) {
            continue;
        }
        let here = position(event);
        assert!(last.as_ref().is_none_or(|last| *last <= here), "{here:?} comes after {last:?}");
        last = Some(here);
        first.push(event.clone());
    }
    first
}

/// The tables as a consumer holds them that takes the events as they come, and of repeats the first. `swept`: tables that were read again as a whole, of which it removes what neither
/// that reading nor a later change has brought.
pub(crate) fn replay(
    events: &[Json],
    swept: &[&str],
    key: &dyn Fn(&str, &Json) -> String,
) -> BTreeMap<String, BTreeMap<String, Json>> {
    let mut tables: BTreeMap<String, BTreeMap<String, (usize, Json)>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut reread: BTreeMap<String, usize> = BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        if event["op"] != "r" && !seen.insert(identity(event)) {
            continue;
        }
        let table = table_of(event).to_owned();
        if is_reread(event) {
            reread.entry(table.clone()).or_insert(index);
        }
        let rows = tables.entry(table.clone()).or_default();
        if !event["before"].is_null() {
            rows.remove(&key(&table, &event["before"]));
        }
        if !event["after"].is_null() {
            rows.insert(key(&table, &event["after"]), (index, event["after"].clone()));
        }
    }
    for table in swept {
        let begun = *reread.get(*table).unwrap_or(&usize::MAX);
        tables.entry((*table).to_owned()).or_default().retain(|_, (index, _)| *index >= begun);
    }
    let rows = |rows: BTreeMap<String, (usize, Json)>| rows.into_iter().map(|(key, (_, row))| (key, row)).collect();
    tables.into_iter().map(|(table, held)| (table, rows(held))).collect()
}

/// Whether an event is a row that was read beside the tail.
pub(crate) fn is_reread(event: &Json) -> bool {
    event["op"] == "r" && event["source"]["snapshot"] == "incremental"
}

/// Holds progress records against each other and against the events: ranges follow on, epochs grow, counts add up.
pub(crate) fn check_progress(progress: &[ProgressRecord]) {
    let mut last: Option<&ProgressRecord> = None;
    for record in progress {
        if let Some(last) = last {
            assert!(record.epoch >= last.epoch, "{record:?}");
            if record.phase == Phase::Tail && last.phase == Phase::Tail && record.epoch == last.epoch {
                assert!(record.from_lsn == last.to_lsn || record.from_lsn == last.from_lsn, "{last:?} is followed by {record:?}");
            }
        }
        assert!(record.from_lsn <= record.to_lsn);
        last = Some(record);
    }
}
