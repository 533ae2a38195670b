//! The stream that the joiner's benchmarks read, written as the importer writes it: snapshot rows with a progress record for every chunk, the record that ends the
//! snapshot, the tail's first record, then the transactions with a progress record for every tick.
//!
//! It is written before anything is measured. [`Gated`] hands out what lies behind the first load only when it is told to, so that updates are measured on a joiner that
//! has just loaded, with the whole of its input already there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use bytes::Bytes;
use schemas::encoding::{Compressor, Dictionary, Encoder, Format, Registry, Written};
use schemas::event::{ChangeEvent, Op};
use schemas::progress::{Phase, ProgressRecord, ShardPositions, StreamName};
use schemas::table::TableSchema;
use schemas::{Lsn, Position, TableName};
use serde::{Deserialize, Serialize};
use streams::embedded::{Embedded, Options};
use streams::{Batch, Error, Layout, Positions, Provider, Record, StreamReader, StreamWriter};
use tokio::sync::watch;

use crate::SEED;
use crate::rows::{self, TABLES, Transaction};

/// The source's name, and the streams' prefix.
pub(crate) const SOURCE: &str = "tpch";
/// Rows of a snapshot chunk: the importer's default.
const CHUNK_ROWS: u64 = 10_000;
/// Transactions of a tick.
const TICK_TRANSACTIONS: usize = 500;

/// What was written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) layout: Layout,
    /// Rows of the snapshot.
    pub(crate) rows: u64,
    /// Changes of the transactions.
    pub(crate) changes: u64,
    /// Entities that there are, at every frontier.
    pub(crate) orders: u64,
    /// The frontier of the first load, and where every shard stood at it.
    pub(crate) loaded: Lsn,
    pub(crate) boundary: ShardPositions,
    /// The same after all ticks but the last.
    pub(crate) nearly: Lsn,
    pub(crate) nearly_boundary: ShardPositions,
    /// The frontier after the last transaction.
    pub(crate) last: Lsn,
    /// An order that the transactions changed, and what its last comment is.
    pub(crate) probe: Option<(String, String)>,
}

impl Published {
    const FILE: &str = "published.json";

    /// Reads what [`publish`] left in the folder.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(Self::FILE);
        Ok(serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?)
    }
}

/// The embedded streams of a folder.
pub(crate) fn provider(folder: &Path) -> anyhow::Result<Embedded> {
    Ok(Embedded::open(Options { sync: false, ..Options::new(folder.join("streams")) })?)
}

/// The benchmark's tables as contracts describe them.
pub(crate) fn schemas() -> [Arc<TableSchema>; 3] {
    TABLES.map(|table| table.schema("dbo"))
}

/// What reads the events, packed or not.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    schemas().iter().for_each(|schema| registry.add_dictionary(&Dictionary::new(schema, SOURCE, SOURCE)));
    registry
}

/// Writes as the importer does.
pub(crate) struct Publisher {
    writer: Box<dyn StreamWriter>,
    encoder: Encoder,
    /// By table.
    formats: BTreeMap<TableName, Format>,
    layout: Layout,
    counts: BTreeMap<TableName, u64>,
}

impl Publisher {
    /// Makes the streams of the tables.
    pub(crate) async fn new(
        provider: &Embedded,
        tables: &[Arc<TableSchema>],
        layout: Layout,
        packed: bool,
    ) -> anyhow::Result<Self> {
        for table in tables {
            provider.ensure(&layout.stream(SOURCE, &table.name), 1).await?;
        }
        provider.ensure(&Layout::progress_stream(SOURCE), 1).await?;
        let format = |table: &Arc<TableSchema>| -> anyhow::Result<_> {
            let compressor = packed.then(|| Compressor::new(&Dictionary::new(table, SOURCE, SOURCE))).transpose()?;
            Ok((table.name.clone(), Format { schema: Written::Json, compressor }))
        };
        let formats = tables.iter().map(format).collect::<anyhow::Result<_>>()?;
        let (writer, encoder) = (provider.writer().await?, Encoder::new(SOURCE, SOURCE));
        Ok(Self { writer, encoder, formats, layout, counts: BTreeMap::new() })
    }

    pub(crate) async fn events(&mut self, events: &[ChangeEvent]) -> anyhow::Result<()> {
        let mut batches: BTreeMap<StreamName, Vec<Record>> = BTreeMap::new();
        for event in events {
            let (mut data, mut key) = (Vec::with_capacity(1024), Vec::new());
            let format = self.formats.get_mut(&event.table.name).context("a table without a format")?;
            self.encoder.encode(format, event, &mut data);
            self.encoder.encode_key(event, &mut key);
            let record = Record { partition_key: String::from_utf8(key)?, data: Bytes::from(data) };
            batches.entry(self.layout.stream(SOURCE, &event.table.name)).or_default().push(record);
            *self.counts.entry(event.table.name.clone()).or_default() += 1;
        }
        for (stream, records) in batches {
            self.writer.append(&stream, records).await?;
        }
        Ok(())
    }

    /// Ends a range with its progress record; answers where all streams stand after it.
    pub(crate) async fn finish(&mut self, phase: Phase, from_lsn: Lsn, to_lsn: Lsn) -> anyhow::Result<ShardPositions> {
        let progress = Layout::progress_stream(SOURCE);
        let mut positions = self.writer.flush().await?;
        positions.remove(&progress);
        let record = ProgressRecord {
            source: SOURCE.to_owned(),
            epoch: 1,
            phase,
            from_lsn,
            to_lsn,
            commit_time_ms: 1_780_000_000_000,
            counts: std::mem::take(&mut self.counts),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions,
        };
        let record = Record { partition_key: SOURCE.to_owned(), data: serde_json::to_vec(&record)?.into() };
        self.writer.append(&progress, vec![record]).await?;
        Ok(self.writer.flush().await?)
    }
}

/// Writes the stream into a folder.
async fn publish(folder: &Path, shape: Shape, transactions: &[Transaction]) -> anyhow::Result<Published> {
    let Shape { layout, scale, packed, .. } = shape;
    let provider = provider(folder)?;
    let schemas = schemas();
    let mut publisher = Publisher::new(&provider, &schemas, layout, packed).await?;

    let start = rows::lsn(0);
    let [_, orders, _] = &schemas;
    let mut published = Published {
        layout,
        rows: 0,
        changes: 0,
        orders: 0,
        loaded: rows::lsn(1),
        boundary: ShardPositions::new(),
        nearly: rows::lsn(1),
        nearly_boundary: ShardPositions::new(),
        last: rows::lsn(1),
        probe: None,
    };
    for (table, schema) in TABLES.iter().zip(&schemas) {
        let mut rows = table.rows(scale).map(|fields| snapshot_event(schema, start, rows::row(table, &fields))).peekable();
        while rows.peek().is_some() {
            let chunk: Vec<ChangeEvent> = rows.by_ref().take(CHUNK_ROWS as usize).collect();
            publisher.events(&chunk).await?;
            publisher.finish(Phase::Snapshot, start, start).await?;
            published.rows += chunk.len() as u64;
            published.orders += if schema.name == orders.name { chunk.len() as u64 } else { 0 };
        }
    }
    publisher.finish(Phase::SnapshotComplete { consistent_from: published.loaded }, start, start).await?;
    published.boundary = publisher.finish(Phase::Tail, start, published.loaded).await?;
    let mut boundary = published.boundary.clone();

    let mut number = 1;
    for tick in transactions.chunks(TICK_TRANSACTIONS) {
        for transaction in tick {
            number += 1;
            let events = rows::events(&schemas, number, transaction);
            published.changes += events.len() as u64;
            publisher.events(&events).await?;
        }
        let to = rows::lsn(number);
        (published.nearly, published.nearly_boundary) = (published.last, boundary);
        boundary = publisher.finish(Phase::Tail, published.last, to).await?;
        published.last = to;
    }
    published.probe = probe(transactions);
    std::fs::write(folder.join(Published::FILE), serde_json::to_vec(&published)?)?;
    Ok(published)
}

pub(crate) fn snapshot_event(schema: &Arc<TableSchema>, start: Lsn, row: schemas::event::Row) -> ChangeEvent {
    let position = Position { commit_lsn: start, ..Position::default() };
    ChangeEvent {
        table: schema.clone(),
        op: Op::Read,
        before: None,
        after: Some(row),
        position,
        commit_time_ms: 1_780_000_000_000,
    }
}

/// The last order that was changed: nothing later takes its comment away.
fn probe(transactions: &[Transaction]) -> Option<(String, String)> {
    let mut changes = transactions.iter().rev().flat_map(|transaction| transaction.iter().rev());
    let row = changes.find_map(|(table, _, _, after)| after.as_ref().filter(|_| *table == 1))?;
    match (&row[0], &row[8]) {
        (schemas::value::Value::Int(key), schemas::value::Value::Text(comment)) => Some((key.to_string(), comment.clone())),
        _ => None,
    }
}

/// Streams of which what lies behind each boundary is handed out only once the gate there is open.
pub(crate) struct Gated {
    pub(crate) inner: Embedded,
    pub(crate) boundaries: Arc<[ShardPositions]>,
    /// How many gates are open.
    pub(crate) open: watch::Receiver<usize>,
}

#[async_trait]
impl Provider for Gated {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        self.inner.ensure(stream, shards).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        self.inner.writer().await
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        let inner = self.inner.reader(stream, after).await?;
        let boundaries = self.boundaries.iter().map(|all| all.get(stream).cloned().unwrap_or_default()).collect();
        Ok(Box::new(GatedReader { inner, boundaries, open: self.open.clone(), held: None }))
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let tips = self.inner.tips(stream).await?;
        let Some(boundary) = self.boundaries.get(*self.open.borrow()) else { return Ok(tips) };
        // What is behind a closed gate has not been published, as far as anybody sees.
        let ends = boundary.get(stream).cloned().unwrap_or_default();
        Ok(tips.into_iter().filter_map(|(shard, tip)| ends.get(&shard).map(|end| (shard, tip.min(end.clone())))).collect())
    }
}

struct GatedReader {
    inner: Box<dyn StreamReader>,
    boundaries: Vec<Positions>,
    open: watch::Receiver<usize>,
    /// Records behind a boundary, read while its gate was closed.
    held: Option<Batch>,
}

#[async_trait]
impl StreamReader for GatedReader {
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let mut batch = match self.held.take() {
                Some(held) => held,
                None => self.inner.next().await?,
            };
            let open = *self.open.borrow();
            let Some(boundary) = self.boundaries.get(open) else { return Ok(batch) };
            let before =
                batch.records.partition_point(|(sequence, _)| boundary.get(&batch.shard).is_some_and(|end| sequence <= end));
            if before == batch.records.len() {
                return Ok(batch);
            }
            let records = batch.records.split_off(before);
            self.held = Some(Batch { stream: batch.stream.clone(), shard: batch.shard.clone(), records });
            if !batch.records.is_empty() {
                return Ok(batch);
            }
            // An error means that nobody can open it any more; then nothing is behind it that anybody waits for.
            if self.open.wait_for(|now| *now > open).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The folder of one scale's input: the streams, and the peer's files in `base` and `changed`.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) folder: PathBuf,
    pub(crate) published: Published,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) scale: f64,
}

/// What an input is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layout: Layout,
    pub(crate) scale: f64,
    /// How many transactions follow the rows.
    pub(crate) transactions: usize,
    /// With zstd: a fifth of the bytes, and slower to read.
    pub(crate) packed: bool,
    /// Whether one order takes half of the transactions.
    pub(crate) skewed: bool,
}

impl Input {
    pub(crate) async fn write(folder: PathBuf, shape: Shape) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let transactions = rows::transactions(shape.scale, shape.transactions, SEED, shape.skewed);
        let published = publish(&folder, shape, &transactions).await?;
        Ok(Self { folder, published, transactions, scale: shape.scale })
    }
}
