//! Publishing: contract, encoding, partition key, streams, progress records.
//!
//! # What holds
//! - A progress record is appended only after everything in its range has been acknowledged ([`Publisher::finish`] flushes first), and the caller saves
//!   its progress only after the record itself has been (INV-2). So whatever a record promises is in the streams, and whatever was not promised is published
//!   again after a crash.
//! - Each event is either published or dead-lettered with its position and the reason, and is counted as one or the other in the record (INV-6).
//! - Events of one row keep their order: they have one partition key and are appended in order. Keys that the database holds to be equal though they
//!   are written differently (case, trailing spaces) have the same partition key.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use schemas::contract::{Contract, Violation};
use schemas::encoding::{Encoder, Format};
use schemas::event::{ChangeEvent, Row};
use schemas::progress::{Phase, ProgressRecord, Reread, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::table::TableSchema;
use schemas::value::{Value, write_string};
use schemas::{Lsn, Position, TableName};
use serde_json::json;
use streams::{Layout, Positions, Provider, Record, StreamWriter};

use crate::config::Output;
use crate::encodings;
use crate::error::Error;
use crate::metrics;
use crate::service::Problem;
use crate::status::StatusHandle;

/// How many events, or bytes of them, are collected before they are handed to the stream.
const BATCH_EVENTS: usize = 500;
const BATCH_BYTES: usize = 1 << 20;
/// Kinesis's limit for partition keys, in characters.
const MAX_PARTITION_KEY: usize = 256;

/// Where a table's events go.
struct Route {
    contract: Contract,
    /// What its events are written in.
    format: Format,
    /// Index among `batches`.
    stream: usize,
    /// The column that partitions; the key if `None`.
    partition_by: Option<usize>,
    /// Some part of the partition key compares without case.
    fold: bool,
    /// Why every event of the table is dead-lettered, if that is so.
    breaks: Option<String>,
    published: u64,
    /// Rows that were read, from a snapshot.
    read: u64,
    dead_lettered: u64,
}

/// A table to publish.
pub(crate) struct Publishing {
    pub(crate) contract: Contract,
    /// Why all of its events are dead-lettered, if they are.
    pub(crate) breaks: Option<String>,
}

/// A record of a service's stream that is of no row.
pub(crate) struct Refused<'a> {
    /// The table that it was to be of, if that is known.
    pub(crate) table: Option<usize>,
    pub(crate) position: Position,
    pub(crate) stream: &'a StreamName,
    pub(crate) shard: &'a ShardId,
    pub(crate) sequence: &'a SequenceNumber,
    pub(crate) data: &'a [u8],
    pub(crate) problem: &'a Problem,
}

struct Batch {
    stream: StreamName,
    records: Vec<Record>,
}

/// Publishes the events of one source.
pub(crate) struct Publisher {
    writer: Box<dyn StreamWriter>,
    encoder: Encoder,
    source: String,
    epoch: u64,
    routes: Vec<Route>,
    batches: Vec<Batch>,
    waiting_events: usize,
    waiting_bytes: usize,
    progress_stream: StreamName,
    dead_letters: StreamName,
    /// Records above it have been refused before.
    record_limit: Option<usize>,
    event_bytes: usize,
    /// Where each shard of the event streams stands, by this writer and those before it.
    positions: ShardPositions,
    /// The last record of the progress stream.
    told: Positions,
    status: StatusHandle,
}

/// The stream of a source's dead letters.
pub fn dead_letter_stream(prefix: &str) -> StreamName {
    StreamName(format!("{prefix}.dead-letters"))
}

impl Publisher {
    /// For tables in the order of `tables`: their index names them from here on.
    pub(crate) async fn new(
        output: &Output,
        provider: &dyn Provider,
        tables: Vec<Publishing>,
        database: &str,
        epoch: u64,
        record_limit: Option<usize>,
        status: StatusHandle,
    ) -> Result<Self, Error> {
        let mut batches: Vec<Batch> = Vec::new();
        let mut routes = Vec::new();
        for Publishing { contract, breaks } in tables {
            let name = output.layout.stream(&output.prefix, &contract.table.name);
            let stream = batches.iter().position(|batch| batch.stream == name).unwrap_or_else(|| {
                batches.push(Batch { stream: name, records: Vec::new() });
                batches.len() - 1
            });
            let format = encodings::format(output, &contract, database)?;
            routes.push(route(output, contract, format, breaks, stream)?);
        }
        let (progress_stream, dead_letters) = (Layout::progress_stream(&output.prefix), dead_letter_stream(&output.prefix));
        if output.create_streams {
            for batch in &batches {
                provider.ensure(&batch.stream, output.shards).await?;
            }
            provider.ensure(&progress_stream, 1).await?;
            provider.ensure(&dead_letters, 1).await?;
        }
        let writer = provider.writer().await?;
        let encoder = Encoder::new(&output.name, database);
        Ok(Self {
            writer,
            encoder,
            source: output.name.clone(),
            epoch,
            routes,
            batches,
            waiting_events: 0,
            waiting_bytes: 0,
            progress_stream,
            dead_letters,
            record_limit,
            event_bytes: 512,
            positions: ShardPositions::new(),
            told: Positions::new(),
            status,
        })
    }

    /// Where earlier writers left the shards.
    pub(crate) fn go_on_from(&mut self, positions: ShardPositions) {
        self.positions = positions;
    }

    pub(crate) fn positions(&self) -> &ShardPositions {
        &self.positions
    }

    /// Where the last progress record stands.
    pub(crate) fn told(&self) -> &Positions {
        &self.told
    }

    /// The table at an index.
    pub(crate) fn table(&self, index: usize) -> &Arc<TableSchema> {
        &self.routes[index].contract.table
    }

    /// Publishes one event, or sets it aside. `event.table` is the one at the index.
    pub(crate) async fn event(&mut self, table: usize, event: &ChangeEvent) -> Result<(), Error> {
        let route = &self.routes[table];
        if let Some(breaks) = &route.breaks {
            let violation = Violation { column: "(table)".into(), rule: breaks.clone(), value: String::new() };
            return self.dead_letter(table, event, &violation, true).await;
        }
        // What the row *was* is history: only what is published as its present state is held to the contract.
        if let Some(Err(violation)) = event.after.as_ref().map(|row| route.contract.check(row)) {
            return self.dead_letter(table, event, &violation, true).await;
        }
        let mut data = Vec::with_capacity(self.event_bytes);
        self.encoder.encode(&mut self.routes[table].format, event, &mut data);
        // Recent events are a good guess of the next one's size.
        self.event_bytes = (self.event_bytes * 7 + data.len() * 9) / 16 + 16;
        let partition_key = self.partition_key(table, event);
        if self.is_too_large(&data, &partition_key) {
            let rule = format!("the stream's limit of {} bytes a record", self.record_limit.unwrap_or_default());
            let violation = Violation { column: "(row)".into(), rule, value: format!("an event of {} bytes", data.len()) };
            return self.dead_letter(table, event, &violation, false).await;
        }
        self.waiting_events += 1;
        self.waiting_bytes += data.len();
        let route = &mut self.routes[table];
        if event.op.is_read() {
            route.read += 1;
        } else {
            route.published += 1;
        }
        self.batches[route.stream].records.push(Record { partition_key, data: Bytes::from(data) });
        if self.waiting_events >= BATCH_EVENTS || self.waiting_bytes >= BATCH_BYTES {
            self.hand_over().await?;
        }
        Ok(())
    }

    /// Whether the stream would refuse a record. Kinesis counts the partition key beside the data; for a stream that does not, this is a little too strict.
    fn is_too_large(&self, data: &[u8], partition_key: &str) -> bool {
        self.record_limit.is_some_and(|limit| data.len() + partition_key.len().max(1) > limit)
    }

    fn partition_key(&self, table: usize, event: &ChangeEvent) -> String {
        let route = &self.routes[table];
        let mut key = Vec::new();
        match (event.row(), route.partition_by, route.fold) {
            (Some(row), Some(column), _) => key_json(&[column], row, &route.contract.table, &mut key),
            (Some(row), None, true) => key_json(&route.contract.table.key, row, &route.contract.table, &mut key),
            _ => self.encoder.encode_key(event, &mut key),
        }
        let key = String::from_utf8(key).unwrap_or_default();
        if key.len() <= MAX_PARTITION_KEY || key.chars().count() <= MAX_PARTITION_KEY {
            key
        } else {
            format!("#{:032x}", xxhash_rust::xxh3::xxh3_128(key.as_bytes()))
        }
    }

    async fn dead_letter(&mut self, table: usize, event: &ChangeEvent, violation: &Violation, whole: bool) -> Result<(), Error> {
        let name = event.table.name.to_string();
        tracing::warn!(table = name, commit_lsn = %event.position.commit_lsn, column = violation.column, rule = violation.rule, "event breaks its contract and is dead-lettered");
        let head = self.letter(&name, event.position, violation);
        let mut data = head.to_string().into_bytes();
        data.pop();
        data.extend_from_slice(b",\"event\":");
        let head_bytes = data.len();
        let partition_key = self.partition_key(table, event);
        if whole {
            self.encoder.json().encode(event, &mut data);
            data.push(b'}');
        }
        // A dead letter that the stream refuses would stop everything behind it: then the position has to do.
        if !whole || self.is_too_large(&data, &partition_key) {
            data.truncate(head_bytes);
            data.extend_from_slice(b"null}");
        }
        self.routes[table].dead_lettered += 1;
        let record = Record { partition_key, data: Bytes::from(data) };
        self.writer.append(&self.dead_letters, vec![record]).await?;
        Ok(())
    }

    /// Sets aside a record of a service's stream.
    pub(crate) async fn refuse(&mut self, refused: Refused<'_>) -> Result<(), Error> {
        let Refused { table, position, stream, shard, sequence, data, problem } = refused;
        let name = table.map_or_else(|| "(none)".to_owned(), |table| self.table(table).name.to_string());
        tracing::warn!(table = name, %stream, %shard, %sequence, pointer = problem.pointer, rule = problem.rule, "record is dead-lettered");
        let Problem { pointer, rule, value } = problem.clone();
        let mut letter = self.letter(&name, position, &Violation { column: pointer, rule, value });
        letter["record"] = json!({"stream": stream, "shard": shard, "sequence": sequence});
        let partition_key = shard.0.clone();
        let short = letter.to_string();
        match serde_json::from_slice::<serde_json::Value>(data) {
            Ok(event) => letter["event"] = event,
            Err(_) => letter["data"] = BASE64_STANDARD.encode(data).into(),
        }
        let mut data = letter.to_string();
        // As for events: where the stream would refuse it, the record's place has to do.
        if self.is_too_large(data.as_bytes(), &partition_key) {
            data = short;
        }
        match table {
            Some(table) => self.routes[table].dead_lettered += 1,
            None => metrics::dead_letter_of_no_table(&self.source),
        }
        self.writer.append(&self.dead_letters, vec![Record { partition_key, data: data.into() }]).await?;
        Ok(())
    }

    /// What every dead letter says.
    fn letter(&self, table: &str, position: Position, violation: &Violation) -> serde_json::Value {
        let Position { commit_lsn, command_id, seqval, operation } = position;
        json!({
            "source": self.source,
            "epoch": self.epoch,
            "table": table,
            "position": {"commit_lsn": commit_lsn, "command_id": command_id, "seqval": seqval, "operation": operation},
            "reason": {"column": violation.column, "rule": violation.rule, "value": violation.value},
        })
    }

    async fn hand_over(&mut self) -> Result<(), Error> {
        metrics::bytes(&self.source, self.waiting_bytes as u64);
        for batch in self.batches.iter_mut().filter(|batch| !batch.records.is_empty()) {
            self.writer.append(&batch.stream, std::mem::take(&mut batch.records)).await?;
        }
        self.waiting_events = 0;
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Ends a range: waits until all of it is acknowledged, then publishes the progress record and waits for that.
    pub(crate) async fn finish(
        &mut self,
        phase: Phase,
        (from_lsn, to_lsn): (Lsn, Lsn),
        commit_time_ms: i64,
        rereads: BTreeMap<TableName, Reread>,
    ) -> Result<(), Error> {
        self.hand_over().await?;
        let positions = self.event_positions().await?;
        let beside_the_tail = matches!(phase, Phase::Tail);
        // The initial snapshot's rows are its range; those that are read beside the tail are of no range.
        let in_range = |route: &Route| route.published + if beside_the_tail { 0 } else { route.read };
        let record = ProgressRecord {
            source: self.source.clone(),
            epoch: self.epoch,
            phase,
            from_lsn,
            to_lsn,
            commit_time_ms,
            counts: counted(&self.routes, in_range),
            dead_lettered: counted(&self.routes, |route| route.dead_lettered),
            rereads,
            reread_counts: counted(&self.routes, |route| if beside_the_tail { route.read } else { 0 }),
            positions,
        };
        let data = serde_json::to_vec(&record)
            .map_err(|error| source::Error::Unexpected { doing: "writing a progress record", what: error.to_string() })?;
        let record = Record { partition_key: self.source.chars().take(MAX_PARTITION_KEY).collect(), data: data.into() };
        self.writer.append(&self.progress_stream, vec![record]).await?;
        self.told = self.writer.flush().await?.remove(&self.progress_stream).unwrap_or_default();
        self.account();
        Ok(())
    }

    async fn event_positions(&mut self) -> Result<ShardPositions, Error> {
        for (stream, shards) in self.writer.flush().await? {
            if stream != self.progress_stream && stream != self.dead_letters {
                self.positions.entry(stream).or_default().extend(shards);
            }
        }
        Ok(self.positions.clone())
    }

    /// Moves the range's counts to status and metrics.
    fn account(&mut self) {
        for route in &mut self.routes {
            let [published, read, dead_lettered] =
                [&mut route.published, &mut route.read, &mut route.dead_lettered].map(std::mem::take);
            if published + read + dead_lettered == 0 {
                continue;
            }
            let name = &route.contract.table.name;
            metrics::published(&self.source, name, published + read, dead_lettered, read);
            self.status.table(name, |table| {
                table.published += published + read;
                table.dead_lettered += dead_lettered;
            });
        }
    }
}

fn route(output: &Output, contract: Contract, format: Format, breaks: Option<String>, stream: usize) -> Result<Route, Error> {
    let table = &contract.table;
    let partition_by = match output.partition_by.get(&table.name) {
        None => None,
        Some(column) => Some(table.column(column).ok_or_else(|| Error::PartitionColumn {
            table: table.name.clone(),
            column: column.clone(),
            known: table.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
        })?),
    };
    let fold = table.key.iter().any(|&index| table.columns[index].case_insensitive);
    Ok(Route { contract, format, stream, partition_by, fold, breaks, published: 0, read: 0, dead_lettered: 0 })
}

/// Values as a JSON array, with text folded where the column compares without case.
pub(crate) fn key_json(columns: &[usize], row: &Row, table: &TableSchema, out: &mut Vec<u8>) {
    out.push(b'[');
    for (position, &index) in columns.iter().enumerate() {
        if position > 0 {
            out.push(b',');
        }
        match &row[index] {
            Value::Text(text) if table.columns[index].case_insensitive => {
                write_string(out, text.trim_end_matches(' ').to_lowercase().as_str())
            }
            value => value.write_json(out),
        }
    }
    out.push(b']');
}

fn counted(routes: &[Route], count: impl Fn(&Route) -> u64) -> BTreeMap<TableName, u64> {
    routes.iter().map(|route| (route.contract.table.name.clone(), count(route))).filter(|(_, count)| *count > 0).collect()
}
