//! A source that publishes as the importer does, and what is read back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use archive::{Archive, Archiver, Config, Error};
use bytes::Bytes;
use objects::{LocalOptions, Objects};
use schemas::encoding::{Registry, Schemas};
use schemas::envelope::Encoder;
use schemas::event::{ChangeEvent, Op};
use schemas::progress::{Phase, ProgressRecord, ShardPositions, StreamName};
use schemas::table::{Column, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use streams::{Layout, Positions, Provider, Record, StreamReader, StreamWriter};
use tokio_util::sync::CancellationToken;

pub(crate) const PREFIX: &str = "shop";
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn lsn(n: u64) -> Lsn {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&n.to_be_bytes());
    Lsn::from_bytes(bytes)
}

pub(crate) fn table(name: &str) -> Arc<TableSchema> {
    let column = |name: &str, sql_type: &str| Column {
        name: name.to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable: false,
        case_insensitive: false,
    };
    let columns = vec![column("id", "int"), column("status", "varchar(10)")];
    Arc::new(TableSchema { name: TableName::new("dbo", name), columns, key: vec![0] })
}

/// The streams of a source, and who writes them.
pub(crate) struct Shop {
    pub(crate) provider: Arc<dyn Provider>,
    layout: Layout,
    writer: Box<dyn StreamWriter>,
    tables: Vec<Arc<TableSchema>>,
    pub(crate) frontier: u64,
    positions: ShardPositions,
    /// Changes published since the last record, by table.
    counts: BTreeMap<TableName, u64>,
    next: u64,
}

impl Shop {
    pub(crate) async fn new(provider: Arc<dyn Provider>, layout: Layout) -> Self {
        let tables = vec![table("orders"), table("items")];
        for table in &tables {
            provider.ensure(&layout.stream(PREFIX, &table.name), 3).await.unwrap();
        }
        provider.ensure(&Layout::progress_stream(PREFIX), 1).await.unwrap();
        let writer = provider.writer().await.unwrap();
        Self { provider, layout, writer, tables, frontier: 10, positions: BTreeMap::new(), counts: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn streams(&self) -> Vec<StreamName> {
        let mut streams: Vec<StreamName> = self.tables.iter().map(|table| self.layout.stream(PREFIX, &table.name)).collect();
        streams.push(Layout::progress_stream(PREFIX));
        streams.dedup();
        streams
    }

    pub(crate) fn event(&self, at: u64, op: Op) -> (ChangeEvent, StreamName) {
        let table = self.tables[usize::from(self.next.is_multiple_of(3))].clone();
        let row = vec![Value::Int(self.next as i64 % 40), Value::Text(format!("s{}", self.next))];
        let position = match op {
            Op::Read => Position { commit_lsn: lsn(at), ..Position::default() },
            _ => Position { commit_lsn: lsn(at), command_id: 1, seqval: lsn(self.next), operation: 2 },
        };
        let stream = self.layout.stream(PREFIX, &table.name);
        // Half a day a step: archives of several days.
        let commit_time_ms = 1_790_000_000_000 + at as i64 * 43_200_000;
        (ChangeEvent { table, op, before: None, after: Some(row), position, commit_time_ms }, stream)
    }

    /// Publishes events that no record speaks of yet, at the LSN that follows.
    pub(crate) async fn events(&mut self, count: usize, op: Op) {
        for _ in 0..count {
            self.next += 1;
            let at = if op == Op::Read { self.frontier } else { self.frontier + 1 };
            let (event, stream) = self.event(at, op);
            let mut data = Vec::new();
            Encoder::new("shop", "db").encode(&event, &mut data);
            *self.counts.entry(event.table.name.clone()).or_default() += 1;
            self.raw(&stream, data).await;
        }
    }

    pub(crate) async fn raw(&mut self, stream: &StreamName, data: Vec<u8>) {
        let record = Record { partition_key: self.next.to_string(), data: data.into() };
        self.writer.append(stream, vec![record]).await.unwrap();
    }

    pub(crate) async fn tick(&mut self, count: usize) {
        self.events(count, Op::Create).await;
        let (from, to) = (self.frontier, self.frontier + 1);
        self.record(Phase::Tail, from, to).await;
        self.frontier = to;
    }

    pub(crate) async fn snapshot(&mut self, rows: usize) {
        self.events(rows, Op::Read).await;
        let at = self.frontier;
        self.record(Phase::SnapshotComplete { consistent_from: lsn(at) }, at, at).await;
    }

    /// What a crash leaves: events of the next tick that will be published again.
    pub(crate) async fn crash(&mut self, count: usize) {
        let (next, counts) = (self.next, self.counts.clone());
        self.events(count, Op::Create).await;
        (self.next, self.counts) = (next, counts);
    }

    /// Promises an event that is not there.
    pub(crate) fn lose(&mut self) {
        *self.counts.entry(self.tables[0].name.clone()).or_default() += 1;
    }

    async fn record(&mut self, phase: Phase, from: u64, to: u64) {
        let progress = Layout::progress_stream(PREFIX);
        for (stream, shards) in self.writer.flush().await.unwrap() {
            if stream != progress {
                self.positions.entry(stream).or_default().extend(shards);
            }
        }
        let record = ProgressRecord {
            source: "shop".into(),
            epoch: 1,
            phase,
            from_lsn: lsn(from),
            to_lsn: lsn(to),
            commit_time_ms: 1_790_000_000_000 + to as i64 * 43_200_000,
            counts: std::mem::take(&mut self.counts),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: self.positions.clone(),
        };
        self.raw(&progress, serde_json::to_vec(&record).unwrap()).await;
        self.writer.flush().await.unwrap();
    }
}

/// Everything of a stream, by shard, up to where it stands now.
pub(crate) type Content = BTreeMap<String, Vec<(String, Bytes)>>;

pub(crate) async fn read_to_tips(reader: &mut dyn StreamReader, tips: &Positions, after: &Positions) -> Content {
    let mut content = Content::new();
    let mut at = after.clone();
    let behind = |at: &Positions| tips.iter().any(|(shard, tip)| at.get(shard).is_none_or(|at| at < tip));
    while behind(&at) {
        let batch = tokio::time::timeout(LIMIT, reader.next()).await.expect("nothing more comes").unwrap();
        for (sequence, data) in batch.records {
            let before = at.insert(batch.shard.clone(), sequence.clone());
            assert!(before.is_none_or(|before| before < sequence), "shard {} went back to {sequence}", batch.shard);
            content.entry(batch.shard.0.clone()).or_default().push((sequence.to_string(), data));
        }
    }
    content
}

/// What each stream holds after these positions, read by this provider.
pub(crate) async fn contents(shop: &Shop, provider: &dyn Provider, after: &ShardPositions) -> BTreeMap<StreamName, Content> {
    let mut contents = BTreeMap::new();
    for stream in shop.streams() {
        let tips = shop.provider.tips(&stream).await.unwrap();
        let after = after.get(&stream).cloned().unwrap_or_default();
        let mut reader = provider.reader(&stream, &after).await.unwrap();
        contents.insert(stream, read_to_tips(&mut *reader, &tips, &after).await);
    }
    contents
}

pub(crate) fn no_schemas() -> Arc<Schemas> {
    Arc::new(Schemas::fixed(Registry::default()))
}

pub(crate) async fn open(objects: &Objects) -> Archive {
    Archive::open(objects.clone(), "shop", PREFIX, no_schemas()).await.unwrap()
}

/// Segments of about so many bytes, and at once.
pub(crate) fn config(segment_bytes: usize) -> Config {
    let mut config = Config::new(objects::Config::Local(LocalOptions { path: "nowhere".into() }));
    (config.interval_seconds, config.segment_bytes, config.lease_seconds) = (0, segment_bytes, 0);
    config
}

/// An archiver that works beside the test.
pub(crate) struct Working {
    shutdown: CancellationToken,
    pub(crate) status: archive::StatusHandle,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Working {
    pub(crate) async fn start(objects: &Objects, provider: &Arc<dyn Provider>, segment_bytes: usize) -> Self {
        Self::with(objects, provider, &config(segment_bytes)).await
    }

    pub(crate) async fn with(objects: &Objects, provider: &Arc<dyn Provider>, config: &Config) -> Self {
        let dead_letters = StreamName(format!("{PREFIX}.dead-letters"));
        let archiver = Archiver::new(open(objects).await, config).with_dead_letters(dead_letters);
        let (shutdown, status) = (CancellationToken::new(), archiver.status());
        let task = tokio::spawn(archiver.run(provider.clone(), shutdown.clone()));
        Self { shutdown, status, task }
    }

    /// Ends it without a word, as kill does.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Waits until the archive is complete up to an LSN.
    pub(crate) async fn until(&self, objects: &Objects, frontier: Lsn) {
        tokio::select! {
            () = archived(objects, frontier) => {}
            () = async { while !self.task.is_finished() { tokio::time::sleep(Duration::from_millis(5)).await } } => panic!("the archiver ended"),
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }

    pub(crate) async fn ended(self) -> Result<(), Error> {
        tokio::time::timeout(LIMIT, self.task).await.expect("it goes on").unwrap()
    }
}

/// Waits until the archive is complete up to an LSN, whoever gets it there.
pub(crate) async fn archived(objects: &Objects, frontier: Lsn) {
    let archive = open(objects).await;
    let waiting = async {
        while archive.plan(&Default::default()).await.unwrap().archived_to < frontier {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("the archive falls behind");
}

/// Waits for what becomes true by itself.
pub(crate) async fn wait_for(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// The first error that a reader of a stream comes to.
pub(crate) async fn first_error(provider: &dyn Provider, stream: &StreamName, after: &Positions) -> streams::Error {
    let mut reader = match provider.reader(stream, after).await {
        Ok(reader) => reader,
        Err(error) => return error,
    };
    loop {
        if let Err(error) = tokio::time::timeout(LIMIT, reader.next()).await.expect("it reads on") {
            return error;
        }
    }
}

/// Archives all that has been published, in segments of about so many bytes.
pub(crate) async fn archive_all(shop: &Shop, objects: &Objects, segment_bytes: usize) {
    let working = Working::start(objects, &shop.provider, segment_bytes).await;
    working.until(objects, lsn(shop.frontier)).await;
    working.stop().await.unwrap();
}

/// The objects below a folder.
pub(crate) async fn names(objects: &Objects, folder: &str) -> Vec<String> {
    let listed = objects.list(&objects::ObjectPath::from(folder)).await.unwrap();
    let mut names: Vec<String> = listed.into_iter().map(|object| object.path.to_string()).collect();
    names.sort();
    names
}
