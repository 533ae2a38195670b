//! The two tables of one entity: its changes, and what it is now.
//!
//! # Why each change is there once
//! A batch that comes again, whole, in part or cut otherwise, finds its rows in the table: one is left out when the table holds a row of the same key that is newer, or the very same
//! ([`super::recent`]). What is left is committed in one entry of the log, planned against the table as of the entry before ([`super::log`]): a writer that has lost the race for a number looks again. So two
//! sinks that run at once, as during a deployment, do not write a change twice either.
//!
//! # Why nothing older comes back (INV-5)
//! An older row than one that the table of changes holds is left out of it, and the current entities are made of that table alone ([`super::merge`]). A deletion is a row as any
//! other, and guards its key as long as it is kept there.
//!
//! # Several writers
//! Each writes rows of its own share of the keys, and files that say so: what another has written is neither looked up nor replaced by its loads. They take turns by the numbers of the log, which each reads on before it commits. Current
//! entities are merged, files united and removed by the writer of the first share alone, since one is enough, or by another while that one is away; a load merges by itself, whoever's it is.
//!
//! # Loads
//! A load's rows become files as they come, and one entry of the log names all of them at its end, in place of those of an earlier load of the same version. Until then nobody sees anything of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::change::EntityKey;
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde_json::Value;

use super::actions::{Add, Format, Line, Metadata};
use super::file::{self, Layout, Written};
use super::log::{Committed, File, Log, Snapshot, now_ms, tag};
use super::merge::{Merging, StandIn};
use super::place::Place;
use super::recent::{Recent, Stand};
use super::rows::{self, Column, DATE, Kind, Operation, Row};
use crate::Error;

/// Attempts at an entry whose number others take. Each of theirs is progress, of another sink of this name.
const COMMIT_ATTEMPTS: u32 = 20;
const DAY_MS: i64 = 86_400_000;

pub(super) struct Table {
    entity: Arc<str>,
    pub(super) changes: Log,
    pub(super) current: Log,
    pub(super) changes_layout: Arc<Layout>,
    pub(super) current_layout: Arc<Layout>,
    /// What a file takes in memory, at most.
    pub(super) file_bytes: usize,
    recent: Recent,
    written_us: i64,
    load: Option<Load>,
    /// Keys of the share that a load has not found, those to be told next behind.
    vanished: Vec<EntityKey>,
    /// When its frontier was committed last.
    pub(super) told: Option<Instant>,
    pub(super) merging: Option<Merging>,
    pub(super) stand_in: StandIn,
    /// Not before this is it merged again.
    pub(super) merge_at: Option<Instant>,
    pub(super) tidied: Option<Instant>,
}

/// A load under way.
#[derive(Default)]
struct Load {
    rows: Vec<Row>,
    bytes: usize,
    adds: Vec<Add>,
    committed_ms: i64,
}

/// What became of rows that were to be added.
#[derive(Default)]
pub(super) struct Appended {
    /// So many were there already, or newer ones of their keys.
    pub(super) settled: usize,
    pub(super) unfit: Vec<Unfit>,
}

/// A row whose document does not fit its columns, and why.
pub(super) struct Unfit {
    pub(super) row: Row,
    pub(super) reason: String,
}

/// Rows as files that no entry of the log names yet.
#[derive(Default)]
struct Put {
    adds: Vec<Add>,
    rows: Vec<Row>,
    unfit: Vec<Unfit>,
}

impl Table {
    /// Opens both tables, and makes those that are not there.
    pub(super) async fn open(
        objects: &objects::Objects,
        limit: Duration,
        info: &EntityInfo,
        file_bytes: usize,
        share: KeyRange,
    ) -> Result<Self, Error> {
        let (mut columns, left_out) = rows::columns(info);
        let [changes, current] = ["changes", "current"].map(|table| Place::new(objects, limit, &info.name, table));
        if !left_out.is_empty() {
            tracing::warn!(table = %changes.name, members = left_out.join(", "), "these members of the document get no column of their own, for their names: they are in _document alone");
        }
        let layout = |place: &Place, columns: &[Column], of_changes| {
            Layout::new(info, columns, of_changes).map(Arc::new).map_err(|error| Error::unexpected(&place.name, error))
        };
        let (mut changes, mut current) = (Log::open(changes, share).await?, Log::open(current, share).await?);
        for made in [&changes.snapshot, &current.snapshot] {
            keep_texts(&mut columns, made);
        }
        let changes_layout = layout(&changes.place, &columns, true)?;
        let current_layout = layout(&current.place, &columns, false)?;
        ensure(&mut changes, &changes_layout).await?;
        ensure(&mut current, &current_layout).await?;
        if current.snapshot.files.values().any(|file| *file.order != *current_layout.order.name()) {
            let remedy = "Point the sink's `store` elsewhere, or remove the entity's folder; the sink is loaded anew then";
            let message = "the types of the key's parts have changed, by which its rows are ordered";
            return Err(Error::misconfigured(&current.place.name, message, remedy));
        }
        let files = &changes.snapshot.files;
        let recent = if files.is_empty() { Recent::of_nothing() } else { Recent::default() };
        let written_us = files.values().map(|file| file.add.modification_time * 1000 + 999).max().unwrap_or(0);
        Ok(Self {
            entity: info.name.clone(),
            changes,
            current,
            changes_layout,
            current_layout,
            file_bytes,
            recent,
            written_us,
            load: None,
            vanished: Vec::new(),
            told: None,
            merging: None,
            stand_in: StandIn::default(),
            merge_at: None,
            tidied: None,
        })
    }

    /// The moment of writing: later than any before, whatever the clock does.
    fn stamp(&mut self, rows: &mut [Row]) {
        self.written_us = jiff::Timestamp::now().as_microsecond().max(self.written_us + 1);
        for row in rows {
            row.written_us = self.written_us;
        }
    }

    /// Whether a load has ended here.
    pub(super) fn is_whole(&self) -> bool {
        [&self.changes, &self.current].iter().all(|log| log.held().is_some())
    }

    fn share(&self) -> KeyRange {
        self.changes.share
    }

    pub(super) fn is_first(&self) -> bool {
        self.share().first() == 0
    }

    /// Whether what one of several writers has to do is this one's.
    pub(super) fn leads(&self) -> bool {
        self.is_first() || self.stand_in.active
    }

    /// Files that may hold rows of the share.
    fn own_files(&self) -> impl Iterator<Item = &File> {
        let share = self.share();
        self.changes.snapshot.files.values().filter(move |file| file.share.overlaps(&share))
    }

    fn newest(&self) -> Lsn {
        self.own_files().map(|file| file.newest).max().unwrap_or(Lsn::ZERO)
    }

    /// Where others write too, takes in what they have committed.
    pub(super) async fn follow(&mut self) -> Result<(), Error> {
        if self.share().is_all() {
            return Ok(());
        }
        let known = self.changes.snapshot.version;
        self.changes.follow().await?;
        self.know_others_since(known);
        Ok(())
    }

    /// Rows of the share that another has written behind an entry are not known.
    fn know_others_since(&mut self, entry: i64) {
        if self.own_files().any(|file| file.commit > entry) {
            self.recent.forget();
        }
    }

    /// Adds what is new among the rows.
    pub(super) async fn append(&mut self, mut rows: Vec<Row>, frontier: Option<Lsn>) -> Result<Appended, Error> {
        let count = rows.len();
        let mut unfit = Vec::new();
        self.stamp(&mut rows);
        self.follow().await?;
        for _ in 0..COMMIT_ATTEMPTS {
            rows = self.unsettled(rows).await?;
            let (newest, known) = (self.newest(), self.changes.snapshot.version);
            let put = self.put(rows, None).await?;
            rows = put.rows;
            unfit.extend(put.unfit);
            if rows.is_empty() {
                return Ok(Appended { settled: count - unfit.len(), unfit });
            }
            let lines = put.adds.into_iter().map(Line::add).collect();
            let noted = tokio::task::spawn_blocking(move || (rows.iter().map(Stand::of).collect::<Vec<_>>(), rows));
            let (committed, noted) = tokio::join!(self.changes.commit("WRITE", lines, frontier), noted);
            let (stands, back) = noted.map_err(|error| Error::unexpected(&self.changes.place.name, error))?;
            rows = back;
            if committed? == Committed::Done {
                let settled = count - unfit.len() - rows.len();
                self.recent.add(rows.into_iter().map(|row| row.key).zip(stands).collect(), newest);
                self.told = frontier.map(|_| Instant::now()).or(self.told);
                return Ok(Appended { settled, unfit });
            }
            self.know_others_since(known);
        }
        Err(Error::unavailable(&self.changes.place.name, "other writers took each number of its log that was tried"))
    }

    /// Writes the rows' files, one for each date.
    async fn put(&self, mut rows: Vec<Row>, load: Option<Lsn>) -> Result<Put, Error> {
        let day = |row: &Row| file::day_ms(row).div_euclid(DAY_MS);
        let mut days: Vec<i64> = rows.iter().map(day).collect();
        days.sort_unstable();
        days.dedup();
        let mut put = Put::default();
        while let Some(last) = days.pop() {
            let of_day =
                if days.is_empty() { std::mem::take(&mut rows) } else { rows.extract_if(.., |row| day(row) == last).collect() };
            let (add, mut written, unfit) = write_fitting(&self.changes, &self.changes_layout, of_day, load).await?;
            put.unfit.extend(unfit);
            put.adds.extend(add.map(|mut add| {
                if !self.share().is_all() {
                    add.tags.get_or_insert_default().insert(tag::SHARE.to_owned(), Some(self.share().to_string()));
                }
                add
            }));
            if put.rows.is_empty() { put.rows = written } else { put.rows.append(&mut written) }
        }
        Ok(put)
    }

    /// The rows that the table of changes does not hold yet, nor anything newer of their keys.
    async fn unsettled(&mut self, mut rows: Vec<Row>) -> Result<Vec<Row>, Error> {
        let Some(oldest) = rows.iter().map(|row| row.version).min() else { return Ok(rows) };
        // A load looks for newer ones alone.
        let oldest = if rows.iter().all(|row| row.operation == Operation::Load) { oldest.next() } else { oldest };
        if oldest > self.newest() {
            return Ok(rows);
        }
        if self.recent.knows(oldest) {
            rows.retain(|row| !self.recent.settles(row));
            return Ok(rows);
        }
        let places: Vec<Box<[u8]>> = rows.iter().map(|row| self.changes_layout.order.place(&row.key)).collect();
        let Some((first, last)) = places.iter().min().zip(places.iter().max()) else { return Ok(rows) };
        let wanted: HashSet<&str> = rows.iter().map(|row| row.key.as_ref()).collect();
        let mut held: HashMap<Box<str>, Stand> = HashMap::new();
        for file in self.own_files().filter(|file| file.newest >= oldest) {
            let order = &self.changes_layout.order;
            if order.place(&file.last) < *first || order.place(&file.first) > *last {
                continue;
            }
            for row in read_file(&self.changes, &self.changes_layout, file).await? {
                if row.version < oldest || !wanted.contains(row.key.as_ref()) {
                    continue;
                }
                let stand = Stand::of(&row);
                let known = held.entry(row.key).or_insert(stand);
                if stand.version >= known.version {
                    *known = stand;
                }
            }
        }
        rows.retain(|row| !held.get(&row.key).is_some_and(|stand| stand.settles(row)));
        Ok(rows)
    }

    pub(super) fn begin_load(&mut self) {
        self.load = Some(Load::default());
    }

    /// Takes in rows of a load; those of one version.
    pub(super) async fn load(&mut self, mut rows: Vec<Row>) -> Result<(), Error> {
        self.stamp(&mut rows);
        let load = self.load.get_or_insert_default();
        for row in &mut rows {
            row.operation = Operation::Load;
            load.bytes += row.bytes();
            load.committed_ms = load.committed_ms.max(row.committed_ms);
        }
        load.rows.append(&mut rows);
        if load.bytes >= self.file_bytes { self.flush_load().await } else { Ok(()) }
    }

    async fn flush_load(&mut self) -> Result<(), Error> {
        let Some(load) = &mut self.load else { return Ok(()) };
        load.bytes = 0;
        let rows = std::mem::take(&mut load.rows);
        let Some(version) = rows.first().map(|row| row.version) else { return Ok(()) };
        let mut rows = self.unsettled(rows).await?;
        rows.sort_by_cached_key(|row| self.changes_layout.order.place(&row.key));
        // Their documents were found to fit when they came.
        let put = self.put(rows, Some(version)).await?;
        if let Some(load) = &mut self.load {
            load.adds.extend(put.adds);
        }
        Ok(())
    }

    /// Whether rows are those of a load.
    pub(super) fn loads(&self) -> bool {
        self.load.is_some()
    }

    /// Commits the load, brings the current entities up to it, and deletes those that it did not have.
    pub(super) async fn end_load(&mut self, version: Lsn) -> Result<(), Error> {
        let committed_ms = self.commit_load(version).await?;
        self.remove_vanished(version, committed_ms).await?;
        self.merge().await
    }

    /// Commits the load and brings the current entities up to it. Answers its latest commit.
    async fn commit_load(&mut self, version: Lsn) -> Result<i64, Error> {
        self.follow().await?;
        self.flush_load().await?;
        let Load { adds, committed_ms, .. } = self.load.take().unwrap_or_default();
        let mut done = false;
        for _ in 0..COMMIT_ATTEMPTS {
            let share = self.share();
            let again = self.own_files().filter(|file| file.load == Some(version) && share.covers(&file.share));
            let mut lines: Vec<Line> = again.map(|file| Line::remove(&file.add.path, now_ms(), true)).collect();
            lines.extend(adds.iter().cloned().map(Line::add));
            done = lines.is_empty() || self.changes.commit("LOAD", lines, None).await? == Committed::Done;
            if done {
                break;
            }
        }
        if !done {
            return Err(Error::unavailable(&self.changes.place.name, "other writers took each number of its log that was tried"));
        }
        self.recent.forget();
        self.merge().await?;
        Ok(committed_ms)
    }

    /// Of the current entities of the share that are older than `version`, what is wanted.
    async fn older_rows<T>(&self, version: Lsn, wanted: impl Fn(Row) -> T) -> Result<Vec<T>, Error> {
        let (share, mut older) = (self.share(), Vec::new());
        let is_own = |row: &Row| share.is_all() || share.holds(&self.entity, &EntityKey::from_text(row.key.as_ref()));
        for file in self.current.snapshot.files.values().filter(|file| file.oldest < version) {
            let rows = read_file(&self.current, &self.current_layout, file).await?;
            older.extend(rows.into_iter().filter(|row| row.version < version && is_own(row)).map(&wanted));
        }
        Ok(older)
    }

    /// The first question ends the load where nothing else has. Answers keys, each once.
    pub(super) async fn older(&mut self, version: Lsn, first: bool, limit: usize) -> Result<Vec<EntityKey>, Error> {
        if first {
            if self.loads() {
                self.commit_load(version).await?;
            }
            self.vanished = self.older_rows(version, |row| EntityKey::from_text(row.key.as_ref())).await?;
        }
        Ok(self.vanished.split_off(self.vanished.len().saturating_sub(limit)))
    }

    /// Deletes current entities older than `version`.
    async fn remove_vanished(&mut self, version: Lsn, committed_ms: i64) -> Result<(), Error> {
        let gone = |row| Row { version, committed_ms, operation: Operation::Delete, document: None, ..row };
        let gone = self.older_rows(version, gone).await?;
        if !gone.is_empty() {
            self.append(gone, None).await?;
        }
        Ok(())
    }

    /// Notes that the tables hold everything at or below `frontier`.
    pub(super) async fn tell(&mut self, frontier: Lsn) -> Result<(), Error> {
        for _ in 0..COMMIT_ATTEMPTS {
            if self.changes.held() >= Some(frontier)
                || self.changes.commit("FRONTIER", Vec::new(), Some(frontier)).await? == Committed::Done
            {
                break;
            }
        }
        self.told = Some(Instant::now());
        for _ in 0..COMMIT_ATTEMPTS {
            // A merge tells its own.
            let merged = self.merging.is_none() && self.unmerged().next().is_none();
            if !merged
                || self.current.held() >= self.changes.held()
                || self.current.commit_as("FRONTIER", Vec::new(), &self.changes.snapshot.parts).await? == Committed::Done
            {
                break;
            }
        }
        Ok(())
    }
}

/// Decimals and local times were texts once, and are in a table that was made then. One of the older protocol keeps it, and gets texts for new local times too: who reads it may know no other.
fn keep_texts(columns: &mut [Column], made: &Snapshot) {
    let Some(metadata) = &made.metadata else { return };
    let schema: Value = serde_json::from_str(&metadata.schema_string).unwrap_or_default();
    let fields = schema["fields"].as_array().map_or(&[][..], Vec::as_slice);
    let is_text = |column: &Column| fields.iter().any(|field| field["name"] == column.name && field["type"] == "string");
    for column in columns {
        let becomes_text = match column.kind {
            Kind::Decimal(_) => is_text(column),
            Kind::LocalTime => is_text(column) || !made.protocol.has_local_times(),
            _ => false,
        };
        if becomes_text {
            column.kind = Kind::Text;
        }
    }
}

/// Makes the table, or gives it the columns that it lacks.
async fn ensure(log: &mut Log, layout: &Layout) -> Result<(), Error> {
    for _ in 0..COMMIT_ATTEMPTS {
        let wanted = layout.schema_string();
        let lines = match &log.snapshot.metadata {
            None => vec![Line::protocol(layout.protocol()), Line::metadata(new_metadata(wanted, layout.changes))],
            Some(there) => match widened(&there.schema_string, &wanted) {
                Ok(None) => return Ok(()),
                Ok(Some(schema_string)) => vec![Line::metadata(Metadata { schema_string, ..there.clone() })],
                Err(column) => {
                    let remedy = "Give the member another name in the entity's definition, or point the sink's `store` elsewhere";
                    return Err(Error::misconfigured(&log.place.name, column, remedy));
                }
            },
        };
        if log.commit("SET SCHEMA", lines, None).await? == Committed::Done {
            return Ok(());
        }
    }
    Err(Error::unavailable(&log.place.name, "other writers took each number of its log that was tried"))
}

fn new_metadata(schema_string: String, changes: bool) -> Metadata {
    Metadata {
        id: uuid::Uuid::new_v4().to_string(),
        name: None,
        format: Format { provider: "parquet".to_owned(), options: BTreeMap::new() },
        schema_string,
        partition_columns: if changes { vec![DATE.to_owned()] } else { Vec::new() },
        configuration: BTreeMap::new(),
        created_time: Some(now_ms()),
    }
}

/// The schema that is there with the wanted columns that it lacks; `None` where it lacks none. An error names a column of another type.
fn widened(there: &str, wanted: &str) -> Result<Option<String>, String> {
    let parse =
        |schema: &str| serde_json::from_str::<Value>(schema).map_err(|error| format!("its schema cannot be read: {error}"));
    let (mut schema, wanted) = (parse(there)?, parse(wanted)?);
    let fields = |schema: &Value| schema["fields"].as_array().cloned().unwrap_or_default();
    let mut all = fields(&schema);
    let before = all.len();
    for field in fields(&wanted) {
        let name = |field: &Value| field["name"].as_str().map(str::to_lowercase);
        match all.iter().find(|known| name(known) == name(&field)) {
            Some(known) if known["type"] == field["type"] && known["name"] == field["name"] => {}
            Some(known) => {
                return Err(format!(
                    "its column {} is of type {}, and the entity's definition makes {} of type {}",
                    known["name"], known["type"], field["name"], field["type"]
                ));
            }
            None => all.push(field),
        }
    }
    if all.len() == before {
        return Ok(None);
    }
    schema["fields"] = all.into();
    Ok(Some(schema.to_string()))
}

/// Writes rows as a file of the table, which no entry of its log names yet. What does not fit its columns is in the documents alone.
pub(super) async fn write_file(log: &Log, layout: &Arc<Layout>, rows: Vec<Row>, moved_from: Option<i64>) -> Result<Add, Error> {
    let (Written { data, add, .. }, _) = encode(log, layout, rows, moved_from, None).await?;
    log.place.put(&add.path, data).await?;
    Ok(add)
}

/// The same of the rows that fit their columns; there may be none.
async fn write_fitting(
    log: &Log,
    layout: &Arc<Layout>,
    rows: Vec<Row>,
    load: Option<Lsn>,
) -> Result<(Option<Add>, Vec<Row>, Vec<Unfit>), Error> {
    if rows.is_empty() {
        return Ok((None, rows, Vec::new()));
    }
    let (written, rows) = encode(log, layout, rows, None, load).await?;
    if written.unfit.is_empty() {
        log.place.put(&written.add.path, written.data).await?;
        return Ok((Some(written.add), rows, Vec::new()));
    }
    let mut reasons: HashMap<usize, String> = written.unfit.into_iter().collect();
    let (mut fitting, mut unfit) = (Vec::with_capacity(rows.len()), Vec::new());
    for (nth, row) in rows.into_iter().enumerate() {
        match reasons.remove(&nth) {
            Some(reason) => unfit.push(Unfit { row, reason }),
            None => fitting.push(row),
        }
    }
    // It is rare enough to be written again without them.
    let (add, rows, _) = Box::pin(write_fitting(log, layout, fitting, load)).await?;
    Ok((add, rows, unfit))
}

/// Rows as a file, and the rows. Threads of the runtime make the columns, two at a time: they stay, and keep the memory that they have for the next file.
async fn encode(
    log: &Log,
    layout: &Arc<Layout>,
    rows: Vec<Row>,
    moved_from: Option<i64>,
    load: Option<Lsn>,
) -> Result<(Written, Vec<Row>), Error> {
    let rows = Arc::new(rows);
    let of = |layout: &Arc<Layout>, rows: &Arc<Vec<Row>>| (layout.clone(), rows.clone());
    let (documents_of, others_of) = (of(layout, &rows), of(layout, &rows));
    let documents = tokio::task::spawn_blocking(move || documents_of.0.documents(&documents_of.1));
    let others = tokio::task::spawn_blocking(move || others_of.0.others(&others_of.1));
    let failed = |error: &dyn std::fmt::Display| Error::unexpected(&log.place.name, error);
    let (documents, others) = tokio::try_join!(documents, others).map_err(|error| failed(&error))?;
    let (documents, others) = documents.and_then(|documents| Ok((documents, others?))).map_err(|error| failed(&error))?;
    let layout = layout.clone();
    let finished = tokio::task::spawn_blocking(move || {
        let written = layout.file(&rows, documents, others, moved_from, load);
        // The other tasks have ended, and let go of them.
        (written, Arc::unwrap_or_clone(rows))
    });
    let (written, rows) = finished.await.map_err(|error| failed(&error))?;
    Ok((written.map_err(|error| failed(&error))?, rows))
}

pub(super) async fn read_file(log: &Log, layout: &Arc<Layout>, file: &File) -> Result<Vec<Row>, Error> {
    let data = log.place.get(&file.add.path).await?;
    let layout = layout.clone();
    let read = tokio::task::spawn_blocking(move || layout.read(data)).await;
    let read = read.map_err(|error| Error::unexpected(&log.place.name, error))?;
    read.map_err(|error| log.place.unreadable(&file.add.path, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::actions::Protocol;
    use super::*;

    #[test]
    fn a_table_keeps_texts_that_would_be_decimals_and_local_times_today() {
        let column = |name: &str, kind| Column { name: name.to_owned(), kind };
        let decimal = Kind::Decimal(2);
        let fields = json!({"fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "decimal(38,2)"}, {"name": "t", "type": "string"}]});
        let made = |protocol| {
            let metadata = Some(new_metadata(fields.to_string(), true));
            Snapshot { metadata, protocol, ..Snapshot::default() }
        };
        let kinds = |made: &Snapshot| {
            let mut columns = [
                column("a", decimal),
                column("b", decimal),
                column("c", decimal),
                column("t", Kind::LocalTime),
                column("u", Kind::LocalTime),
                column("n", Kind::Long),
            ];
            keep_texts(&mut columns, made);
            columns.map(|column| column.kind)
        };
        let older = kinds(&made(Protocol::default()));
        assert_eq!(older, [Kind::Text, decimal, decimal, Kind::Text, Kind::Text, Kind::Long]);
        let newer = kinds(&made(Protocol::with_local_times(true)));
        assert_eq!(newer, [Kind::Text, decimal, decimal, Kind::Text, Kind::LocalTime, Kind::Long]);
        assert_eq!(kinds(&Snapshot::default())[3], Kind::LocalTime);
    }

    #[test]
    fn a_schema_gains_columns_and_keeps_their_types() {
        let schema = |fields: &[(&str, &str)]| {
            let fields: Vec<Value> = fields.iter().map(|(name, kind)| json!({"name": name, "type": kind})).collect();
            json!({"type": "struct", "fields": fields}).to_string()
        };
        let there = schema(&[("a", "long"), ("b", "string")]);
        assert_eq!(widened(&there, &schema(&[("b", "string")])), Ok(None));
        let wide = widened(&there, &schema(&[("c", "date"), ("b", "string")])).unwrap().unwrap();
        assert_eq!(wide, schema(&[("a", "long"), ("b", "string"), ("c", "date")]));
        let refused = widened(&there, &schema(&[("a", "string")])).unwrap_err();
        assert!(refused.contains("\"a\"") && refused.contains("long") && refused.contains("string"), "{refused}");
        assert!(widened(&there, &schema(&[("A", "long")])).is_err(), "two columns that differ in case alone");
    }
}
