//! What an importer of a service's stream keeps: how far it is, and the last row of each key. One RocksDB database in the folder `rows` of the data directory.
//!
//! | key | value |
//! |---|---|
//! | `progress` | [`Progress`] as JSON, format 1 |
//! | `r`, length of the table's name (u16, big-endian), the name, the row's key as a JSON array | the row as a JSON object, by column |
//!
//! Both are written together, and synced, when a tick is done ([`State::done`]): so the rows are always those as of the tick that the progress names. Rows are kept by column name, and read by the contract in force: a column that a
//! row does not have, or that cannot be read as what it is now, is NULL in the image of what the row was. Members of the progress are added, never changed; another format is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{DB, Options, WriteBatch, WriteOptions};
use schemas::event::Row;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::table::TableSchema;
use schemas::value::{Value, write_string};
use schemas::{ErrorClass, Lsn};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use streams::Positions;

use super::value;
use crate::error::Error;
use crate::publish::key_json;

const FORMAT: u32 = 1;
const PROGRESS: &[u8] = b"progress";
/// Rows are small and are read one by one: a write buffer and a cache of this size each.
const MEMORY_BYTES: usize = 64 << 20;

/// A tick's number: what stands for a commit LSN where there is none. Numbers begin with the milliseconds since 1970 of the first start, so that a data directory that was removed does not fall behind what the streams have
/// seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Tick(pub(super) u64);

impl Tick {
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number as the first eight bytes, in order.
    pub(super) const fn lsn(self) -> Lsn {
        let [a, b, c, d, e, f, g, h] = self.0.to_be_bytes();
        Lsn::from_bytes([a, b, c, d, e, f, g, h, 0, 1])
    }
}

/// How far an importer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    format: u32,
    pub(super) source: String,
    pub(super) stream: StreamName,
    /// Everything up to it has been published.
    pub(super) tick: Tick,
    /// The record that begins the history has been published.
    pub(super) announced: bool,
    /// What of the service's stream those ticks cover.
    pub(super) read: Positions,
    /// Where the shards of the event streams stood, and the last record of the progress stream.
    pub(super) written: ShardPositions,
    #[serde(default)]
    pub(super) told: Positions,
    /// The tick that follows, once some of it may have been published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<Plan>,
}

/// What a tick is made of, so that whoever publishes it again publishes the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) tick: Tick,
    pub(super) time_ms: i64,
    /// The tick's shards in their order, each with its last record in the tick; the first is the one after what has been read.
    pub(super) to: Vec<(ShardId, SequenceNumber)>,
    /// The mapping and the contracts that it is made under.
    pub(super) mapping: String,
}

impl Progress {
    pub(super) fn new(source: &str, stream: &StreamName, tick: Tick) -> Self {
        Self {
            format: FORMAT,
            source: source.to_owned(),
            stream: stream.clone(),
            tick,
            announced: false,
            read: Positions::new(),
            written: ShardPositions::new(),
            told: Positions::new(),
            plan: None,
        }
    }

    /// The planned tick is done.
    pub(super) fn pass(&mut self, plan: &Plan) {
        self.tick = plan.tick;
        self.read.extend(plan.to.iter().cloned());
        self.plan = None;
    }

    pub(super) fn wrote(&mut self, written: &ShardPositions, told: &Positions) {
        self.written.clone_from(written);
        self.told.clone_from(told);
    }
}

/// A row's place in the state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RowKey(Vec<u8>);

impl RowKey {
    /// Of a row whose key's columns are there, whatever the others are. Keys that the contract holds for equal are equal.
    pub(super) fn of(table: &TableSchema, row: &Row) -> Self {
        let name = table.name.to_string();
        let mut key = vec![b'r'];
        key.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_be_bytes());
        key.extend_from_slice(name.as_bytes());
        key_json(&table.key, row, table, &mut key);
        Self(key)
    }
}

pub(super) struct State {
    db: DB,
    path: PathBuf,
}

impl State {
    /// Opens the state in a data directory, and answers the progress that is in it.
    pub(super) fn open(directory: &Path, source: &str, stream: &StreamName) -> Result<(Arc<Self>, Option<Progress>), Error> {
        let path = directory.join("rows");
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_keep_log_file_num(4);
        options.set_write_buffer_size(MEMORY_BYTES);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.set_row_cache(&rocksdb::Cache::new_lru_cache(MEMORY_BYTES));
        let db = DB::open(&options, &path).map_err(|error| failed(&path, &error))?;
        let state = Self { db, path };
        let progress = match state.get(PROGRESS)? {
            Some(text) => Some(state.read(&text, source, stream)?),
            None => None,
        };
        Ok((Arc::new(state), progress))
    }

    fn read(&self, text: &[u8], source: &str, stream: &StreamName) -> Result<Progress, Error> {
        let damaged = |what: String| Error::Damaged { path: self.path.clone(), what };
        let progress: Progress =
            serde_json::from_slice(text).map_err(|error| damaged(format!("its progress cannot be read: {error}")))?;
        if progress.format != FORMAT {
            let format = progress.format;
            return Err(damaged(format!("format {format} is not known to this version, which writes format {FORMAT}")));
        }
        if progress.source != source {
            return Err(Error::OtherSource { path: self.path.clone(), found: progress.source, expected: source.to_owned() });
        }
        if progress.stream != *stream {
            return Err(Error::OtherStream { path: self.path.clone(), found: progress.stream, expected: stream.clone() });
        }
        Ok(progress)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get(key).map_err(|error| failed(&self.path, &error))
    }

    /// The last row of a key.
    pub(super) fn row(&self, table: &TableSchema, key: &RowKey) -> Result<Option<Row>, Error> {
        let Some(text) = self.get(&key.0)? else { return Ok(None) };
        let row: Json = serde_json::from_slice(&text).map_err(|error| Error::Damaged {
            path: self.path.clone(),
            what: format!("a row of {} cannot be read: {error}", table.name),
        })?;
        let value = |column: &schemas::table::Column| {
            row.get(&column.name).and_then(|json| value::read(json, column.sql_type).ok()).unwrap_or(Value::Null)
        };
        Ok(Some(table.columns.iter().map(value).collect()))
    }

    pub(super) fn save(&self, progress: &Progress) -> Result<(), Error> {
        self.done(&[], progress)
    }

    /// Writes what a tick has made of rows (`None`: deleted), and the progress that has it.
    pub(super) fn done(&self, rows: &[(RowKey, Option<Vec<u8>>)], progress: &Progress) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for (key, row) in rows {
            match row {
                Some(row) => batch.put(&key.0, row),
                None => batch.delete(&key.0),
            }
        }
        let text =
            serde_json::to_vec(progress).map_err(|error| Error::Damaged { path: self.path.clone(), what: error.to_string() })?;
        batch.put(PROGRESS, text);
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|error| failed(&self.path, &error))
    }
}

/// A row as it is kept.
pub(super) fn kept(table: &TableSchema, row: &Row) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() * 24);
    for (index, (column, value)) in table.columns.iter().zip(row).enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        write_string(&mut out, &column.name);
        out.push(b':');
        value.write_json(&mut out);
    }
    out.push(b'}');
    out
}

fn failed(path: &Path, error: &rocksdb::Error) -> Error {
    // An importer that was stopped in this process may still be writing: it is waited for.
    let is_locked = error.kind() == rocksdb::ErrorKind::IOError && error.to_string().contains("LOCK");
    let class = match error.kind() {
        _ if is_locked => ErrorClass::Transient,
        rocksdb::ErrorKind::Busy | rocksdb::ErrorKind::TimedOut | rocksdb::ErrorKind::TryAgain => ErrorClass::Transient,
        _ => ErrorClass::Misconfigured,
    };
    Error::Rows { path: path.to_owned(), what: error.to_string(), class }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use schemas::TableName;
    use schemas::table::{Column, SqlType};

    use super::*;

    fn table() -> TableSchema {
        let column =
            |name: &str, sql_type| Column { name: name.into(), sql_type, nullable: true, case_insensitive: name == "id" };
        let columns = vec![column("id", SqlType::NText), column("total", SqlType::Decimal { precision: 38, scale: 2 })];
        TableSchema { name: TableName::new("shop", "pay \"ments"), columns, key: vec![0] }
    }

    fn row(id: &str, total: i128) -> Row {
        vec![Value::Text(id.into()), Value::Decimal { mantissa: total, scale: 2 }]
    }

    #[test]
    fn rows_are_those_of_the_tick_that_the_progress_names() {
        let directory = tempfile::tempdir().unwrap();
        let stream = StreamName("payments".into());
        let open = |source: &str, stream: &StreamName| State::open(directory.path(), source, stream);
        let (state, none) = open("shop", &stream).unwrap();
        assert_eq!(none, None);
        let (table, key) = (table(), RowKey::of(&table(), &row("A", 5)));
        assert_eq!(RowKey::of(&table, &row("a  ", 7)), key, "keys that are equal by the contract");
        let mut progress = Progress::new("shop", &stream, Tick(7));
        let shard = (ShardId("0".into()), SequenceNumber::from(5));
        let plan = Plan { tick: Tick(8), time_ms: 1, to: vec![shard.clone()], mapping: "m".into() };
        progress.plan = Some(plan.clone());
        state.save(&progress).unwrap();
        assert_eq!(state.row(&table, &key).unwrap(), None);
        drop(state);
        let (state, found) = open("shop", &stream).unwrap();
        assert_eq!(found.as_ref(), Some(&progress));
        progress.pass(&plan);
        assert_eq!((progress.tick, &progress.read, &progress.plan), (Tick(8), &Positions::from([shard]), &None));
        state.done(&[(key.clone(), Some(kept(&table, &row("A", 5))))], &progress).unwrap();
        assert_eq!(state.row(&table, &key).unwrap(), Some(row("A", 5)));
        // A later contract: another type that the value does not fit, and a column that no row has yet.
        let mut later = table.clone();
        later.columns[1].sql_type = SqlType::Date;
        later.columns.push(Column { name: "new".into(), sql_type: SqlType::Int, nullable: true, case_insensitive: false });
        assert_eq!(state.row(&later, &key).unwrap(), Some(vec![Value::Text("A".into()), Value::Null, Value::Null]));
        state.done(&[(key.clone(), None)], &progress).unwrap();
        assert_eq!(state.row(&table, &key).unwrap(), None);
        drop(state);
        assert!(matches!(open("other", &stream), Err(Error::OtherSource { .. })));
        assert!(matches!(open("shop", &StreamName("orders".into())), Err(Error::OtherStream { .. })));
    }

    proptest! {
        #[test]
        fn rows_read_back_and_ticks_keep_their_order(id in ".{0,20}", total: i64, a: u64, b: u64) {
            let (table, row) = (table(), row(&id, total.into()));
            let json: Json = serde_json::from_slice(&kept(&table, &row)).unwrap();
            let values = table.columns.iter().map(|column| value::read(&json[&column.name], column.sql_type).unwrap());
            prop_assert_eq!(values.collect::<Row>(), row);
            prop_assert_eq!(Tick(a).cmp(&Tick(b)), Tick(a).lsn().cmp(&Tick(b).lsn()));
        }
    }
}
