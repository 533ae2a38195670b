//! [fan-out-p99]: what the change of a row that a million entities show does to the others: from the publishing of a change to a sink's having it, while those million are told bit by bit (`fan_out: lazy`), against the same without; and
//! [fan-out-rate], how many of them are told in a second meanwhile.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use clap::Args;
use joiner::{Config, Handle, Joiner, NamedSink};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::change::EntityChange;
use schemas::entity::{EntityDefinition, EntityInfo};
use schemas::event::{ChangeEvent, Op, Row};
use schemas::plan::Plan;
use schemas::progress::Phase;
use schemas::table::TableSchema;
use schemas::value::Value;
use schemas::{Lsn, Position};
use sinks::{Rejected, Sink};
use streams::Layout;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tpch::Table;

use crate::SEED;
use crate::join::reach;
use crate::joining::{child, median_run, path};
use crate::process::measure;
use crate::results::{Figure, percentile};
use crate::rows::lsn;
use crate::stream::{self, Publisher, SOURCE, snapshot_event};

const WAREHOUSE: Table =
    Table { name: "warehouse", columns: &[("w_id", "int"), ("w_name", "varchar(60)")], key: &["w_id"], references: &[] };
const PARCEL: Table = Table {
    name: "parcel",
    columns: &[("p_id", "int"), ("p_warehouse", "int"), ("p_note", "varchar(60)")],
    key: &["p_id"],
    references: &[(&["p_warehouse"], "warehouse")],
};
const ENTITY: &str = "entity: parcel
table: dbo.parcel
fields: [{id: p_id}, {note: p_note}]
one:
  warehouse: {table: dbo.warehouse, by: [p_warehouse], fields: [{name: w_name}], fan_out: lazy}
";

/// Parcels of the warehouse that changes.
const OWNERS: i64 = 1_000_000;
/// Parcels of the other one: those that are probed.
const OTHERS: i64 = 20_000;
const CHUNK_ROWS: usize = 10_000;
/// At least so many probes of each kind.
const PROBES: usize = 400;
/// Between two probes, in milliseconds.
const PAUSES: std::ops::Range<u64> = 5..15;
const LIMIT: Duration = Duration::from_secs(300);
const RUNS: usize = 3;

#[derive(Debug, Clone, Args)]
pub(crate) struct FanOutArgs {
    folder: PathBuf,
}

pub(crate) fn figures(folder: &Path) -> anyhow::Result<Vec<Figure>> {
    let run = median_run(RUNS, "during_p99", || {
        let folder = tempfile::Builder::new().prefix("fan-out-").tempdir_in(folder)?;
        measure(&mut child(&["fan-out", path(folder.path())?])?)
    })?;
    let (quiet, during) = (run.get("quiet_p99")?, run.get("during_p99")?);
    Ok(vec![
        Figure::rate("fan-out-p99", "ms", during, "without the change that many show", Some(quiet))
            .memory(Some(run.peak_mb), None),
        Figure::time("fan-out-p50", "ms", run.get("during_p50")?),
        Figure::rate("fan-out-rate", "owners/s", OWNERS as f64 / run.get("seconds")?, "", None),
    ])
}

/// Says when it was told of the changes with a note, and how many it was told of.
#[derive(Clone)]
struct Told {
    notes: Arc<Mutex<HashMap<String, Instant>>>,
    written: Arc<watch::Sender<u64>>,
}

#[async_trait]
impl Sink for Told {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), sinks::Error> {
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], _frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        let now = Instant::now();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        for document in changes.iter().filter_map(|change| change.document.as_deref()) {
            if let Some((_, rest)) = document.split_once("probe ") {
                notes.insert(rest.split('\"').next().unwrap_or_default().to_owned(), now);
            }
        }
        self.written.send_modify(|written| *written += changes.len() as u64);
        Ok(Vec::new())
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), sinks::Error> {
        Ok(())
    }
}

fn parcel(id: i64, note: &str) -> Row {
    vec![Value::Int(id), Value::Int(if id <= OWNERS { 1 } else { 2 }), Value::Text(note.to_owned())]
}

fn warehouse(id: i64, name: &str) -> Row {
    vec![Value::Int(id), Value::Text(name.to_owned())]
}

struct Source {
    publisher: Publisher,
    parcels: Arc<TableSchema>,
    warehouses: Arc<TableSchema>,
    /// Transactions so far.
    number: u64,
}

impl Source {
    async fn snapshot(&mut self) -> anyhow::Result<()> {
        let start = lsn(0);
        for id in [1, 2] {
            self.publisher.events(&[snapshot_event(&self.warehouses, start, warehouse(id, "of old"))]).await?;
        }
        let ids: Vec<i64> = (1..=OWNERS + OTHERS).collect();
        for chunk in ids.chunks(CHUNK_ROWS) {
            let events: Vec<_> = chunk.iter().map(|&id| snapshot_event(&self.parcels, start, parcel(id, "as loaded"))).collect();
            self.publisher.events(&events).await?;
            self.publisher.finish(Phase::Snapshot, start, start).await?;
        }
        self.number = 1;
        self.publisher.finish(Phase::SnapshotComplete { consistent_from: lsn(1) }, start, start).await?;
        self.publisher.finish(Phase::Tail, start, lsn(1)).await?;
        Ok(())
    }

    /// Commits a change of one row.
    async fn commit(&mut self, table: Arc<TableSchema>, before: Row, after: Row) -> anyhow::Result<()> {
        let from = lsn(self.number);
        self.number += 1;
        let to = lsn(self.number);
        let position = Position { commit_lsn: to, command_id: 1, seqval: to, operation: 4 };
        let commit_time_ms = 1_780_000_000_000 + self.number as i64;
        let change = ChangeEvent { table, op: Op::Update, before: Some(before), after: Some(after), position, commit_time_ms };
        self.publisher.events(&[change]).await?;
        self.publisher.finish(Phase::Tail, from, to).await?;
        Ok(())
    }
}

/// The probes of one kind.
struct Probing {
    source: Source,
    told: Told,
    random: ChaCha8Rng,
    notes: Vec<String>,
    number: u64,
}

impl Probing {
    /// Probes so often, and on until `done`; the milliseconds that they took.
    async fn run(&mut self, mut done: impl FnMut() -> bool) -> anyhow::Result<Vec<f64>> {
        let mut committed = Vec::new();
        while committed.len() < PROBES || !done() {
            tokio::time::sleep(Duration::from_millis(self.random.random_range(PAUSES))).await;
            self.number += 1;
            let at = self.random.random_range(0..self.notes.len());
            let (id, note) = (OWNERS + 1 + at as i64, self.number.to_string());
            let before = std::mem::replace(&mut self.notes[at], format!("probe {note}"));
            let (before, after) = (parcel(id, &before), parcel(id, &self.notes[at]));
            let now = Instant::now();
            self.source.commit(self.source.parcels.clone(), before, after).await?;
            committed.push((note, now));
        }
        let mut took = Vec::with_capacity(committed.len());
        let mut written = self.told.written.subscribe();
        for (note, since) in committed {
            let find = || self.told.notes.lock().unwrap_or_else(PoisonError::into_inner).get(&note).copied();
            let at = loop {
                written.borrow_and_update();
                if let Some(at) = find() {
                    break at;
                }
                tokio::time::timeout(LIMIT, written.changed()).await.context("a probe does not come")??;
            };
            took.push(at.duration_since(since).as_secs_f64() * 1e3);
        }
        Ok(took)
    }
}

/// Loads, probes, changes the row that a million show, and probes until all of them are told.
pub(crate) async fn run(args: FanOutArgs) -> anyhow::Result<()> {
    let [parcels, warehouses] = [PARCEL, WAREHOUSE].map(|table| table.schema("dbo"));
    let provider = stream::provider(&args.folder)?;
    let tables = [parcels.clone(), warehouses.clone()];
    let publisher = Publisher::new(&provider, &tables, Layout::default(), false).await?;
    let mut source = Source { publisher, parcels, warehouses, number: 0 };
    source.snapshot().await?;

    let find = |name: &schemas::TableName| tables.iter().find(|table| table.name == *name).cloned();
    let plan = Plan::resolve(&EntityDefinition::from_yaml("parcel.yaml", ENTITY)?, &find)?;
    let config = Config::new(args.folder.join("state"), vec![Arc::new(plan)], SOURCE, SOURCE);
    let joiner = tokio::task::spawn_blocking(move || Joiner::open(config)).await??;
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let told = Told { notes: Arc::default(), written: Arc::new(watch::channel(0).0) };
    let sink = NamedSink { name: "told".to_owned(), sink: Box::new(told.clone()) };
    let task = tokio::spawn(joiner.run(Arc::new(provider), vec![sink], stop.clone()));
    reach(&handle, lsn(1), &task).await?;

    let notes = vec!["as loaded".to_owned(); OTHERS as usize];
    let mut probing = Probing { source, told: told.clone(), random: ChaCha8Rng::seed_from_u64(SEED), notes, number: 0 };
    let mut quiet = probing.run(|| true).await?;
    let before = *told.written.borrow();
    let (table, now) = (probing.source.warehouses.clone(), Instant::now());
    probing.source.commit(table, warehouse(1, "of old"), warehouse(1, "renamed")).await?;
    let mut ended = None;
    let mut during = probing
        .run(|| {
            let all = *told.written.borrow() - before >= OWNERS as u64 && waiting(&handle) == 0;
            if all && ended.is_none() {
                ended = Some(now.elapsed());
            }
            all || now.elapsed() > LIMIT
        })
        .await?;
    let seconds = ended.context("the owners were not told in time")?.as_secs_f64();
    ensure!(waiting(&handle) == 0, "rows still wait to be told");
    println!(
        "quiet_p50={:.3} quiet_p99={:.3} during_p50={:.3} during_p99={:.3} probes={} seconds={seconds:.3}",
        percentile(&mut quiet, 0.5),
        percentile(&mut quiet, 0.99),
        percentile(&mut during, 0.5),
        percentile(&mut during, 0.99),
        during.len(),
    );
    stop.cancel();
    Ok(task.await??)
}

fn waiting(handle: &Handle) -> u64 {
    handle.status().fan_out.map_or(0, |fan_out| fan_out.rows)
}
