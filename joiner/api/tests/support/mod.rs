//! A server over a SQLite file and an outbox in memory, and a plain HTTP client.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::{ChangeFeed, Config, FeedError, Head, Page, Parts, Server};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::{Value, json};
use sinks::Sink;
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Pages of this feed are shorter than what is asked for, as those of an outbox that also bounds their bytes.
const PAGE: usize = 37;

pub fn lsn(number: u32) -> Lsn {
    let [a, b, c, d] = number.to_be_bytes();
    Lsn::from_bytes([0, 0, 0, 1, a, b, c, d, 0, 1])
}

pub fn time_ms(version: u32) -> i64 {
    1_700_000_000_000 + i64::from(version) * 1000
}

pub fn entities() -> Vec<EntityInfo> {
    let order = json!({"type": "object", "properties": {
        "id": {"type": "integer"}, "status": {"type": "string"}, "total": {"type": "string"},
        "customer": {"type": "object", "properties": {"city": {"type": "string"}}},
        "items": {"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}}}},
    }});
    let line = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    vec![
        EntityInfo { name: Arc::from("order"), key: vec![("id".to_owned(), SqlType::Int)], document_schema: order },
        EntityInfo {
            name: Arc::from("line"),
            key: vec![
                ("order_id".to_owned(), SqlType::Int),
                ("code".to_owned(), SqlType::NVarChar(schemas::table::Length::Limited(20))),
            ],
            document_schema: line,
        },
    ]
}

pub fn change(entity: &str, key: &str, version: u32, document: Option<&Value>) -> EntityChange {
    let document = document.map(|document| Arc::from(document.to_string()));
    EntityChange {
        entity: Arc::from(entity),
        key: EntityKey::from_text(key),
        version: lsn(version),
        commit_time_ms: time_ms(version),
        document,
    }
}

/// An outbox in memory that can be trimmed.
pub struct MemoryFeed {
    changes: Mutex<BTreeMap<u64, EntityChange>>,
    trimmed_through: Mutex<u64>,
    head: watch::Sender<Head>,
}

impl MemoryFeed {
    fn new() -> Self {
        Self { changes: Mutex::default(), trimmed_through: Mutex::new(0), head: watch::Sender::new(Head::default()) }
    }

    /// A step: its changes, then the head.
    pub fn step(&self, changes: &[EntityChange], frontier: u32) {
        let mut sequence = self.head.borrow().sequence;
        for change in changes {
            sequence += 1;
            self.changes.lock().unwrap().insert(sequence, change.clone());
        }
        self.head.send_replace(Head { sequence, frontier: Some(lsn(frontier)), commit_time_ms: time_ms(frontier) });
    }

    pub fn trim_through(&self, sequence: u64) {
        *self.trimmed_through.lock().unwrap() = sequence;
        self.changes.lock().unwrap().retain(|number, _| *number > sequence);
    }
}

#[async_trait::async_trait]
impl ChangeFeed for MemoryFeed {
    async fn read_after(&self, sequence: u64, limit: usize) -> Result<Page, FeedError> {
        let trimmed_through = *self.trimmed_through.lock().unwrap();
        if sequence < trimmed_through {
            return Ok(Page::Trimmed { oldest: trimmed_through + 1 });
        }
        // The head first: changes that are newer than it may be read as well, and never the other way round.
        let head = *self.head.borrow();
        let changes = self.changes.lock().unwrap();
        let changes =
            changes.range(sequence + 1..).take(limit.min(PAGE)).map(|(number, change)| (*number, change.clone())).collect();
        Ok(Page::Changes { changes, head })
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }
}

/// An importer of source `shop` that takes one request for dbo.orders, and answers its number of columns of `from` as the generation.
#[derive(Default)]
pub struct Recorder {
    busy: Mutex<bool>,
}

#[async_trait::async_trait]
impl api::Snapshots for Recorder {
    fn source(&self) -> &str {
        "shop"
    }

    async fn begin(&self, request: api::SnapshotRequest) -> Result<u64, api::SnapshotRefusal> {
        if request.table.to_string() != "dbo.orders" {
            return Err(api::SnapshotRefusal::NoSuchTable("only dbo.orders".to_owned()));
        }
        if request.to.is_some_and(|to| to.iter().any(|part| part.parse::<i64>().is_err())) {
            return Err(api::SnapshotRefusal::BadKey("not a number".to_owned()));
        }
        let mut busy = self.busy.lock().unwrap();
        if std::mem::replace(&mut *busy, true) {
            return Err(api::SnapshotRefusal::Busy("one at a time".to_owned()));
        }
        Ok(request.from.map_or(0, |from| from.len() as u64))
    }
}

/// Dead letters that are an id alone, and forget which sink they are of.
pub struct Letters(Mutex<Vec<String>>);

impl Default for Letters {
    fn default() -> Self {
        Self(Mutex::new(vec!["aa".to_owned(), "bb".to_owned()]))
    }
}

fn is_meant(which: &api::WhichLetters, letter: &str) -> bool {
    !matches!(which, api::WhichLetters::Id(id) if id != letter)
}

#[async_trait::async_trait]
impl api::DeadLetters for Letters {
    async fn list(&self, which: api::WhichLetters, limit: usize) -> Result<Vec<Value>, FeedError> {
        let letters = self.0.lock().unwrap();
        Ok(letters.iter().filter(|id| is_meant(&which, id)).take(limit).map(|id| json!({"id": id})).collect())
    }

    async fn retry(&self, which: api::WhichLetters) -> Result<Value, FeedError> {
        Ok(json!({"changes": self.list(which, usize::MAX).await?.len()}))
    }

    async fn remove(&self, which: api::WhichLetters) -> Result<u64, FeedError> {
        let mut letters = self.0.lock().unwrap();
        let before = letters.len();
        letters.retain(|id| !is_meant(&which, id));
        Ok((before - letters.len()) as u64)
    }
}

pub struct Fixture {
    pub feed: Arc<MemoryFeed>,
    pub sink: SqliteSink,
    pub sqlite: SqliteConfig,
    pub address: SocketAddr,
    pub status: Arc<Mutex<Value>>,
    pub shutdown: CancellationToken,
    pub server: tokio::task::JoinHandle<Result<(), api::Error>>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    pub async fn start() -> Self {
        Self::with(Config::default(), true).await
    }

    pub async fn with(config: Config, with_feed: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sqlite = SqliteConfig::new(directory.path().join("entities.db"));
        let mut sink = SqliteSink::new(sqlite.clone());
        sink.prepare(&entities()).await.unwrap();
        let feed = Arc::new(MemoryFeed::new());
        let status = Arc::new(Mutex::new(json!({"source": {"name": "shop"}})));
        let shown = Arc::clone(&status);
        let parts = Parts {
            // As for a column whose collation ignores case, where a key says so of itself.
            normalize_key: Arc::new(|_, key| {
                let text = key.as_str();
                let kept = if text.ends_with(",ANY-CASE") { text.to_lowercase() } else { text.to_owned() };
                Some(schemas::change::EntityKey::from_text(kept))
            }),
            entities: entities(),
            reader: Arc::new(SqliteReader::new(&sqlite)),
            feed: with_feed.then(|| Arc::clone(&feed) as Arc<dyn ChangeFeed>),
            snapshots: with_feed.then(|| Arc::new(Recorder::default()) as Arc<dyn api::Snapshots>).into_iter().collect(),
            dead_letters: with_feed.then(|| Arc::new(Letters::default()) as Arc<dyn api::DeadLetters>),
            savepoints: with_feed.then(|| Arc::new(Named) as Arc<dyn api::Savepoints>),
            status: Arc::new(move || shown.lock().unwrap().clone()),
            metrics: Arc::new(|| "tributary_up 1\n".to_owned()),
        };
        let config = Config { listen: SocketAddr::new(config.listen.ip(), 0), ..config };
        let server = Server::bind(config).await.unwrap();
        let (address, shutdown) = (server.local_addr(), CancellationToken::new());
        let server = tokio::spawn(server.run(parts, shutdown.clone()));
        Self { feed, sink, sqlite, address, status, shutdown, server, _directory: directory }
    }

    /// A step of the joiner, in the sink and in the outbox.
    pub async fn step(&mut self, changes: &[EntityChange], frontier: u32) {
        self.sink.write(changes, Some(lsn(frontier))).await.unwrap();
        self.feed.step(changes, frontier);
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[]).await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send_body(method, path, headers, "").await
    }

    pub async fn send_body(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let (head, mut reader) = self.open(method, path, headers, body).await;
        let mut body = Vec::new();
        reader.read_to_end(&mut body).await.unwrap();
        Answer { body: String::from_utf8(body).unwrap(), ..head }
    }

    /// The head of an answer, and where its body comes from.
    async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (Answer, BufReader<TcpStream>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("{method} {path} HTTP/1.0\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.unwrap();
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await.expect("a head in time").unwrap();
            if line.trim_end().is_empty() {
                break;
            }
            lines.push(line.trim_end().to_owned());
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let pairs = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())));
        (Answer { status, headers: pairs.collect(), body: String::new() }, reader)
    }

    pub async fn subscribe(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let (head, reader) = self.open("GET", path, headers, "").await;
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "text/event-stream");
        Events { reader }
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.server).await.expect("it stops").unwrap().unwrap();
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The kind of a problem.
    pub fn problem(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()));
        problem["type"].as_str().unwrap().trim_start_matches("urn:tributary:problem:").to_owned()
    }
}

/// Server-sent events as they come.
pub struct Events {
    reader: BufReader<TcpStream>,
}

#[derive(Debug, Default, Clone)]
pub struct Event {
    pub kind: String,
    pub id: String,
    pub data: Value,
}

impl Events {
    /// The next event; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(PATIENCE, self.reader.read_line(&mut line)).await.expect("an event in time").unwrap();
            match line.trim_end().split_once(": ") {
                _ if read == 0 => return None,
                Some(("event", kind)) => event.kind = kind.to_owned(),
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                None if line == "\n" && !event.kind.is_empty() => return Some(event),
                _ => {}
            }
        }
    }

    /// The next event that is a change.
    pub async fn next_change(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("a change");
            if event.kind == "change" {
                return event;
            }
        }
    }

    pub async fn progress_to_any(&mut self) -> Event {
        loop {
            let event = self.next().await.expect("progress");
            if event.kind == "progress" {
                return event;
            }
        }
    }

    /// The next progress that names this LSN.
    pub async fn progress_to(&mut self, frontier: u32) -> Event {
        loop {
            let event = self.next().await.expect("progress");
            if event.kind == "progress" && event.data["lsn"] == lsn(frontier).to_string() {
                return event;
            }
        }
    }
}

/// Makes a savepoint of any name but one.
struct Named;

#[async_trait::async_trait]
impl api::Savepoints for Named {
    async fn create(&self, name: String) -> Result<serde_json::Value, api::SavepointRefusal> {
        match name.as_str() {
            "taken" => Err(api::SavepointRefusal::Exists("there is one".into())),
            "a/b" => Err(api::SavepointRefusal::BadName("no slashes".into())),
            name => Ok(json!({"name": name})),
        }
    }
}
