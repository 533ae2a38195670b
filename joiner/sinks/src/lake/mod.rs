//! Entity changes and current entities as Parquet in object storage, in tables that engines read by Delta Lake's protocol.
//!
//! # Tables
//! Two of each entity, in folders of the store: `order/changes`, every change that the joiner handed over, partitioned by the day of its commit; and `order/current`, a row for each entity that is there. Their columns are at the top
//! of [`rows`]. DuckDB (`delta_scan`), Spark, Trino, Polars and what else reads Delta Lake sees a table as of one entry of its log, whatever is being written.
//!
//! # What holds, and where it is argued
//! - A change is in the table of changes once, whatever is repeated and whoever was killed when: [`table`].
//! - No older version replaces a newer one (INV-5): [`table`], [`merge`].
//! - A commit happens once or not at all, and holds the frontier: [`log`]. Every entry of ours has it (`commitInfo.tributary.frontier`): the table holds every change of its entity at or below that LSN. Tables commit one by
//!   one, each with its rows; one that has no changes tells its frontier only every so often, so it may say too little and never says too much.
//! - Several instances may write, each its share of the keys: [`table`]. The frontier is then the least of what each says.
//! - Current entities follow the changes by `current_seconds`, or the time that it takes: the table of changes has everything first. Who wants what is newest reads both (docs/sinks.md has the query).
//!
//! # Batches
//! A file for each small batch would be ruin: so a batch that reaches the end of what there is waits until `commit_seconds` after the last commit, while the next one gathers in the joiner's outbox. A batch behind which more is waiting is full, and is
//! written at once. Files are united when there are many ([`tidy`]).
//!
//! # Why the protocol is written here
//! The `deltalake` crate brings a second Arrow, a second object store and some two hundred packages, and commits by its own rules; a sink needs seven kinds of lines, a conditional put and a checkpoint ([`actions`], [`checkpoint`]), and its frontier in the
//! same entry. What it writes is held against DuckDB's reader, which is Delta's own kernel, in the tests. Iceberg needs a catalog service for atomic commits; this needs the store alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use objects::Objects;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::Deserialize;

use crate::{Checked, Error, Held, Rejected, Sink, check};

mod actions;
mod checkpoint;
mod file;
mod log;
mod merge;
mod place;
mod recent;
mod rows;
mod table;
mod tidy;

use place::Place;
use rows::{Operation, Row};
use table::{Table, Unfit};

/// A table without changes tells its frontier so many commits' pauses after the last time.
const QUIET_PAUSES: u32 = 10;
/// The documents of fewer changes are not worth another thread.
const LARGE_BATCH: usize = 500;

/// The `lake` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LakeConfig {
    /// How status, logs and metrics call it. Default: `lake`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The bucket or folder.
    pub store: objects::Config,
    /// Pause between commits of changes while there are few. Default: 30.
    #[serde(default = "default_commit_seconds")]
    pub commit_seconds: u64,
    /// Pause between merges into the current entities, at least. Default: 600.
    #[serde(default = "default_current_seconds")]
    pub current_seconds: u64,
    /// What the rows of a file take before they are compressed, at most. Default: 134217728 (128 MiB).
    #[serde(default = "default_file_bytes")]
    pub file_bytes: usize,
    /// How long changes are kept, by the day of their commit. Default: for ever.
    #[serde(default)]
    pub changes_days: Option<u32>,
    /// How long files that a table does not name any more are kept for its readers. Default: 168 (7 days).
    #[serde(default = "default_removed_hours")]
    pub removed_hours: u64,
    /// How long one object may take to be written or read. Default: 180000.
    #[serde(default = "default_request_limit_ms")]
    pub request_limit_ms: u64,
}

fn default_name() -> String {
    "lake".to_owned()
}

fn default_commit_seconds() -> u64 {
    30
}

fn default_current_seconds() -> u64 {
    600
}

fn default_file_bytes() -> usize {
    128 << 20
}

fn default_removed_hours() -> u64 {
    168
}

fn default_request_limit_ms() -> u64 {
    180_000
}

impl LakeConfig {
    pub fn new(store: objects::Config) -> Self {
        Self {
            name: default_name(),
            store,
            commit_seconds: default_commit_seconds(),
            current_seconds: default_current_seconds(),
            file_bytes: default_file_bytes(),
            changes_days: None,
            removed_hours: default_removed_hours(),
            request_limit_ms: default_request_limit_ms(),
        }
    }
}

pub struct LakeSink {
    config: LakeConfig,
    target: String,
    /// Opened by whoever made the sink.
    given: Option<Objects>,
    objects: Option<Objects>,
    share: KeyRange,
    tables: HashMap<Arc<str>, Table>,
    /// Between `begin_load` and the next frontier.
    loading: bool,
    committed: Option<Instant>,
}

impl LakeSink {
    pub fn new(config: LakeConfig) -> Self {
        let target = format!("lake in {}", config.store);
        let (share, tables) = (KeyRange::ALL, HashMap::new());
        Self { config, target, given: None, objects: None, share, tables, loading: false, committed: None }
    }

    /// Over a store that is open already, as one that fails as a test tells it.
    pub fn over(config: LakeConfig, objects: Objects) -> Self {
        Self { given: Some(objects), ..Self::new(config) }
    }

    async fn objects(&mut self) -> Result<Objects, Error> {
        if let Some(objects) = self.given.as_ref().or(self.objects.as_ref()) {
            return Ok(objects.clone());
        }
        let opened = Objects::open(&self.config.store).await.map_err(|error| place::failed(&self.target, &error))?;
        Ok(self.objects.insert(opened).clone())
    }

    fn table(&mut self, entity: &str) -> Result<&mut Table, Error> {
        let unknown = || Error::unexpected(&self.target, format!("entity {entity} was not prepared"));
        self.tables.get_mut(entity).ok_or_else(unknown)
    }

    fn request_limit(&self) -> Duration {
        Duration::from_millis(self.config.request_limit_ms)
    }

    fn commit_pause(&self) -> Duration {
        Duration::from_secs(self.config.commit_seconds)
    }

    /// The changes as rows, by entity, and those that the lake cannot hold.
    ///
    /// Documents are held to their columns when these are written, but those of a load now: they are written when whoever handed them over cannot be told any more.
    fn rows(&self, changes: &[EntityChange]) -> Result<(RowsOf, Vec<Rejected>), Error> {
        let mut rows = RowsOf::new();
        let mut rejected = Vec::new();
        for run in changes.chunk_by(|one, next| one.entity == next.entity) {
            let Some(EntityChange { entity, .. }) = run.first() else { continue };
            let unknown = || Error::unexpected(&self.target, format!("entity {entity} was not prepared"));
            let table = self.tables.get(entity).ok_or_else(unknown)?;
            let rows = rows.entry(entity.clone()).or_default();
            rows.reserve(run.len());
            for (change, row) in run.iter().zip(self.read(run, &table.changes_layout.columns)?) {
                match row {
                    Ok(row) => rows.push(row),
                    Err(reason) => rejected.push(Rejected { change: change.clone(), reason }),
                }
            }
        }
        rows.retain(|_, rows| !rows.is_empty());
        Ok((rows, rejected))
    }

    /// The changes as rows, or why there can be none.
    fn read(&self, changes: &[EntityChange], columns: &[rows::Column]) -> Result<Vec<Result<Row, String>>, Error> {
        if !self.loading {
            return Ok(changes.iter().map(row).collect());
        }
        let all = |changes: &[EntityChange]| -> Vec<_> {
            changes.iter().map(|change| row(change).and_then(|row| with_members(row, columns))).collect()
        };
        // Reading the documents is half of the work of a large batch.
        let (first, second) = changes.split_at(if changes.len() < LARGE_BATCH { changes.len() } else { changes.len() / 2 });
        let read = std::thread::scope(|scope| {
            let second = (!second.is_empty()).then(|| scope.spawn(|| all(second)));
            let first = all(first);
            let second = second.map_or_else(|| Ok(Vec::new()), |second| second.join());
            second.map(|second| first.into_iter().chain(second).collect())
        });
        read.map_err(|_| Error::unexpected(&self.target, "documents could not be read"))
    }

    /// Waits for a commit's turn.
    async fn turn(&self) {
        if let Some(committed) = self.committed {
            tokio::time::sleep_until((committed + self.commit_pause()).into()).await;
        }
    }

    /// Adds the rows that are new. Answers those that do not fit their columns.
    async fn append(&mut self, mut rows: RowsOf, frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let with_rows = self.tables.iter_mut().filter_map(|(entity, table)| Some((entity, table, rows.remove(entity)?)));
        let appended =
            with_rows.map(|(entity, table, rows)| async move { Ok::<_, Error>((entity, table.append(rows, frontier).await?)) });
        let (mut settled, mut rejected) = (0, Vec::new());
        for (entity, appended) in try_join_all(appended).await? {
            settled += appended.settled;
            rejected.extend(appended.unfit.into_iter().map(|unfit| refused(entity, unfit)));
        }
        if settled > 0 {
            tracing::debug!(target_name = %self.target, rows = settled, "these or newer ones were there already");
        }
        self.committed = Some(Instant::now());
        Ok(rejected)
    }

    /// Tells the frontier where it has not been told for long, and keeps the tables in shape.
    async fn maintain(&mut self, frontier: Option<Lsn>, now: bool) -> Result<(), Error> {
        let quiet = self.commit_pause() * QUIET_PAUSES;
        let current = Duration::from_secs(self.config.current_seconds);
        let removed = Duration::from_secs(self.config.removed_hours * 3600);
        let changes_days = self.config.changes_days;
        try_join_all(self.tables.values_mut().map(|table| async move {
            table.follow().await?;
            if let Some(frontier) = frontier
                && (now || table.told.is_none_or(|told| told.elapsed() >= quiet))
            {
                table.tell(frontier).await?;
            }
            table.merge_if_due(current).await?;
            table.compact().await?;
            table.remove_if_due(removed, changes_days).await
        }))
        .await?;
        Ok(())
    }
}

/// Rows by entity.
type RowsOf = HashMap<Arc<str>, Vec<Row>>;

struct Text(Arc<str>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A change as a row, or why there can be none.
fn row(change: &EntityChange) -> Result<Row, String> {
    if let Some(reason) = check::quick_refusal(change) {
        return Err(reason);
    }
    Ok(Row {
        key: change.key.as_str().into(),
        version: change.version,
        committed_ms: change.commit_time_ms,
        written_us: 0,
        operation: if change.document.is_some() { Operation::Upsert } else { Operation::Delete },
        document: change.document.clone().map(|document| Bytes::from_owner(Text(document))),
        members: None,
    })
}

fn with_members(row: Row, columns: &[rows::Column]) -> Result<Row, String> {
    let Some(document) = &row.document else { return Ok(row) };
    let mut members = Vec::new();
    rows::read_members(document, columns, &mut members)?;
    Ok(Row { members: Some(members), ..row })
}

/// The change that a row was made of.
fn refused(entity: &Arc<str>, Unfit { row, reason }: Unfit) -> Rejected {
    let change = EntityChange {
        entity: entity.clone(),
        key: EntityKey::from_text(row.key),
        version: row.version,
        commit_time_ms: row.committed_ms,
        document: row.document.map(|document| String::from_utf8_lossy(&document).into()),
    };
    Rejected { change, reason }
}

#[async_trait]
impl Sink for LakeSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        // Opened anew, a store finds the credentials that are there now.
        self.objects = None;
        let objects = self.objects().await?;
        self.tables.clear();
        let (limit, file_bytes, share) = (self.request_limit(), self.config.file_bytes, self.share);
        let opened = entities.iter().map(|info| {
            let objects = &objects;
            async move { Ok::<_, Error>((info.name.clone(), Table::open(objects, limit, info, file_bytes, share).await?)) }
        });
        self.tables = try_join_all(opened).await?.into_iter().collect();
        self.loading = false;
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (rows, mut rejected) = self.rows(changes)?;
        if self.loading {
            for (entity, rows) in rows {
                let table = self.table(&entity)?;
                // Where several write, what vanished comes behind the load's rows.
                let unfit = if table.loads() {
                    table.load(rows).await.map(|()| Vec::new())?
                } else {
                    table.append(rows, None).await?.unfit
                };
                rejected.extend(unfit.into_iter().map(|unfit| refused(&entity, unfit)));
            }
            if frontier.is_some() {
                let unmerged = self.tables.values_mut().filter(|table| table.unmerged().next().is_some());
                try_join_all(unmerged.map(Table::merge)).await?;
                self.maintain(frontier, true).await?;
                self.loading = false;
            }
            return Ok(rejected);
        }
        if !rows.is_empty() {
            if frontier.is_some() {
                self.turn().await;
            }
            rejected.extend(self.append(rows, frontier).await?);
        }
        self.maintain(frontier, false).await?;
        Ok(rejected)
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        self.tables.values_mut().for_each(Table::begin_load);
        Ok(())
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        self.table(entity)?.end_load(version).await
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.share = range;
        true
    }

    /// The first question ends the load of this sink's share.
    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        self.table(entity)?.older(version, after.is_none(), limit).await
    }

    /// A table that is new, or was removed, has no frontier. What the others say is not compared: one without changes says too little for a while.
    async fn held(&mut self) -> Result<Held, Error> {
        let whole = self.tables.values().all(Table::is_whole);
        Ok(if whole { Held::Unknown } else { Held::Nothing })
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let objects = self.objects().await?;
        let mut there = 0;
        let mut warnings = Vec::new();
        for info in entities {
            for table in ["changes", "current"] {
                let log = log::Log::open(Place::new(&objects, self.request_limit(), &info.name, table), self.share).await?;
                there += usize::from(log.snapshot.version >= 0);
            }
            let (_, left_out) = rows::columns(info);
            if !left_out.is_empty() {
                warnings.push(format!("{}: no columns for the members {}, for their names", info.name, left_out.join(", ")));
            }
        }
        Ok(Checked { detail: format!("{there} of {} tables are there", 2 * entities.len()), warnings })
    }
}
