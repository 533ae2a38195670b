//! The keyed state, in RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `rows` | index (u16), cluster parts, rest of the own key ([`key`]) | all used columns ([`row`]) |
//! | `links` (locators and back references) | the same | the columns that the way up needs |
//! | `pending` | entity (u16), entity key parts | xxh3-128 of the document before the step that is being assembled, empty: there was none; `00`: it is not known |
//! | `walks` | number (u64) | a fan-out that waits (`step/walk.rs`) |
//! | `past` | frontier of a step (10 bytes), then as in `rows` | `01` and the row that stood there before that step; `00`: there was none. Kept while fan-outs wait (`step/fan_out.rs`) |
//! | `told` | entity (u16), entity key parts | the frontier with which the document was looked at last, while fan-outs wait |
//! | `parts` | entity (u16), node (u16), cluster parts, level (u8), rest of a row's key | what the rows from there on come to in aggregates (`assemble/parts.rs`) |
//! | `seen` | as in `rows` and `links` | nothing: a row was put there since the table is read again ([`crate::reread`]) |
//! | `outbox` | sequence (u64) | an entity change ([`outbox`]) |
//! | `spill` | position, table ([`crate::buffer`]) | a buffered change; worthless after a restart |
//! | `meta` | `parts` (u32, their size), `standing`, `definitions` ([`crate::definitions`]), `cursor/<sink>`, `trouble/<sink>` ([`crate::deliver::trouble`]), `dead/<place>` | JSON |
//! | `meta` | `vector/`, version (10 bytes) | of several sources: the LSNs that the version is the sum of (10 bytes each), in the order of the sources' names |
//!
//! All integers are big-endian. The format's number stands in the directory's `identity.json` ([`meta`]); a state of an earlier one is converted ([`migrate`]).
//!
//! # Atomicity (INV-3)
//! Rows, links, positions, frontier and the outbox's head of a step are one [`rocksdb::WriteBatch`]. Many outbox entries are written before it, bit by bit ([`outbox::write`]): past the head nothing is seen, and what a crash leaves there is written over by the next step, whose entries begin behind
//! the head, before the head comes that far. RocksDB's log keeps batches in order and whole over all column families, so that after a crash the state is that of some batch boundary. The log is not forced to the disk with each batch: after a power failure the state may be some batches older, and reading goes on at its older positions.
//! That is harmless only for what nobody has seen: a step taken anew may begin at another frontier and number its outbox entries differently, so a sink or a subscriber that held entries of the lost batches would
//! skip others. So the log is forced to the disk ([`Store::sync`]) before anything leaves: once per page for a sink, and for subscribers when the head has moved ([`Store::sync_to`]).
//! While a snapshot is loaded the log is left out altogether; `atomic_flush` then makes the state fall back to the last flush of all column families at once, again with its own positions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, Direction, IteratorMode, Options, WriteBatch,
    WriteOptions,
};
use schemas::Lsn;

pub(crate) mod cache;
pub(crate) mod key;
pub(crate) mod meta;
pub(crate) mod migrate;
pub(crate) mod outbox;
pub(crate) mod row;
pub(crate) mod run;
pub(crate) mod view;
pub(crate) mod writes;

use crate::definitions::Definitions;
use crate::error::Error;
use meta::{Cursor, Standing};
use outbox::Recent;

/// A column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Rows,
    Links,
    Pending,
    Walks,
    Past,
    Told,
    Parts,
    Seen,
    Outbox,
    Spill,
    Meta,
}

impl Family {
    const ALL: [Self; 11] = [
        Self::Rows,
        Self::Links,
        Self::Pending,
        Self::Walks,
        Self::Past,
        Self::Told,
        Self::Parts,
        Self::Seen,
        Self::Outbox,
        Self::Spill,
        Self::Meta,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Links => "links",
            Self::Pending => "pending",
            Self::Walks => "walks",
            Self::Past => "past",
            Self::Told => "told",
            Self::Parts => "parts",
            Self::Seen => "seen",
            Self::Outbox => "outbox",
            Self::Spill => "spill",
            Self::Meta => "meta",
        }
    }
}

/// The database's folder in the state's directory.
pub const DATABASE: &str = "db";
const STANDING: &[u8] = b"standing";
const DEFINITIONS: &[u8] = b"definitions";
const CURSOR: &str = "cursor/";
pub(crate) const DEAD: &str = "dead/";
pub(crate) const VECTOR: &[u8] = b"vector/";

fn vector_key(version: Lsn) -> Vec<u8> {
    [VECTOR, version.as_bytes()].concat()
}

/// Sizes that the state is opened with.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Write buffers over all column families.
    pub write_buffer_bytes: usize,
    /// Blocks of the files as they are read, decompressed, and the indexes of the files, without which nothing is found: about a hundredth of the state. The files themselves are in the system's cache, which gives memory back.
    pub block_cache_bytes: usize,
    /// Rows that were looked up, and those of clusters, kept in memory from step to step.
    pub row_cache_bytes: usize,
    /// Outbox entries that were written last, kept in memory for the sinks and subscribers that follow.
    pub recent_bytes: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { write_buffer_bytes: 128 << 20, block_cache_bytes: 192 << 20, row_cache_bytes: 64 << 20, recent_bytes: 32 << 20 }
    }
}

/// The open database. Only one thread writes rows; anyone reads.
pub(crate) struct Store {
    db: DB,
    path: PathBuf,
    incarnation: u64,
    /// The outbox up to here is known to be on the disk.
    synced: AtomicU64,
    recent: Recent,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the state in `path`, which must be ours; [`meta::claim`] tells its incarnation.
    pub(crate) fn open(path: &Path, incarnation: u64, memory: Memory) -> Result<Arc<Self>, Error> {
        Self::open_as(path, incarnation, memory, true)
    }

    /// The same; `compacts`: whether files are merged in the background.
    pub(crate) fn open_as(path: &Path, incarnation: u64, memory: Memory, compacts: bool) -> Result<Arc<Self>, Error> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_atomic_flush(true);
        options.set_keep_log_file_num(4);
        options.set_max_background_jobs(3);
        options.set_db_write_buffer_size(memory.write_buffer_bytes);
        options.set_max_total_wal_size(memory.write_buffer_bytes as u64 * 2);
        let cache = Cache::new_lru_cache(memory.block_cache_bytes);
        let families = Family::ALL.map(|family| {
            let mut options = family_options(family, memory, &cache);
            options.set_disable_auto_compactions(!compacts);
            ColumnFamilyDescriptor::new(family.name(), options)
        });
        let database = path.join(DATABASE);
        let db = DB::open_cf_descriptors(&options, database, families).map_err(|error| Error::rocksdb(path, &error))?;
        let (synced, recent) = (AtomicU64::new(0), Recent::new(memory.recent_bytes));
        let store = Self { db, path: path.to_owned(), incarnation, synced, recent };
        store.clear(&[Family::Spill])?;
        Ok(Arc::new(store))
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder that holds what a kill at this instant would leave: see [`crate::checkpoint`].
    pub(crate) fn checkpoint(&self, folder: &Path) -> Result<(), Error> {
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(folder));
        made.map_err(|error| Error::rocksdb(folder, &error))
    }

    /// The outbox's last entries.
    pub(crate) const fn recent(&self) -> &Recent {
        &self.recent
    }

    pub(crate) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(crate) fn error(&self, error: &rocksdb::Error) -> Error {
        Error::rocksdb(&self.path, error)
    }

    pub(crate) fn corrupt(&self, what: impl Into<String>) -> Error {
        Error::Corrupt { path: self.path.clone(), what: what.into() }
    }

    /// Every family was created with the database, so the handle is there.
    pub(crate) fn family(&self, family: Family) -> Result<&ColumnFamily, Error> {
        self.db.cf_handle(family.name()).ok_or_else(|| self.corrupt(format!("column family {} is missing", family.name())))
    }

    pub(crate) fn write(&self, batch: WriteBatch, log: bool) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.disable_wal(!log);
        self.db.write_opt(batch, &options).map_err(|error| self.error(&error))
    }

    /// Makes everything written with the log durable: it survives a power failure. Blocks for as long as the disk takes.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.db.flush_wal(true).map_err(|error| self.error(&error))
    }

    /// Makes the outbox up to `sequence`, which has been read from the database, durable. Costs nothing when it is already. Numbers never go back while the database is open, so the greatest one tells.
    pub(crate) fn sync_to(&self, sequence: u64) -> Result<(), Error> {
        if self.synced.load(Ordering::Acquire) < sequence {
            self.sync()?;
            self.synced.fetch_max(sequence, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes everything written without the log durable.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        let families = Family::ALL.iter().map(|&family| self.family(family)).collect::<Result<Vec<_>, _>>()?;
        self.db.flush_cfs_opt(&families, &rocksdb::FlushOptions::default()).map_err(|error| self.error(&error))
    }

    /// Empties column families, each at once.
    pub(crate) fn clear(&self, families: &[Family]) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for &family in families {
            self.clear_in(&mut batch, family)?;
        }
        self.write(batch, true)
    }

    /// The same in a batch. What is empty is left as it is: while a file holds that everything was removed, none of those that lie beside it could be moved to another level without being written anew.
    pub(crate) fn clear_in(&self, batch: &mut WriteBatch, family: Family) -> Result<(), Error> {
        if !self.is_empty(family)? {
            // No key is as long as this, nor starts with that many of the greatest byte.
            batch.delete_range_cf(self.family(family)?, &[][..], &[0xff; 24][..]);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self, family: Family) -> Result<bool, Error> {
        let mut entries = self.db.raw_iterator_cf(self.family(family)?);
        entries.seek_to_first();
        let empty = !entries.valid();
        entries.status().map_err(|error| self.error(&error)).map(|()| empty)
    }

    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(self.family(family)?, key).map_err(|error| self.error(&error))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| self.corrupt(format!("meta {key}: {error}")))
    }

    fn parse_standing(&self, bytes: &[u8]) -> Result<Standing, Error> {
        Standing::read(bytes).map_err(|error| self.corrupt(format!("meta standing: {error}")))
    }

    pub(crate) fn standing(&self) -> Result<Standing, Error> {
        match self.get(Family::Meta, STANDING)? {
            Some(bytes) => self.parse_standing(&bytes),
            None => Ok(Standing { oldest: 1, ..Standing::default() }),
        }
    }

    /// The standing that goes with the rows of a snapshot.
    pub(crate) fn standing_at(&self, snapshot: &rocksdb::Snapshot<'_>) -> Result<Standing, Error> {
        match snapshot.get_cf(self.family(Family::Meta)?, STANDING).map_err(|error| self.error(&error))? {
            Some(bytes) => self.parse_standing(&bytes),
            None => Ok(Standing { oldest: 1, ..Standing::default() }),
        }
    }

    pub(crate) fn put_standing(&self, batch: &mut WriteBatch, standing: &Standing) -> Result<(), Error> {
        let bytes = serde_json::to_vec(standing).map_err(|error| self.corrupt(error.to_string()))?;
        batch.put_cf(self.family(Family::Meta)?, STANDING, bytes);
        // What a merged state goes through before it tells anything may have the sums of what others have told.
        if standing.sources.len() > 1 && (standing.mixed_until.is_zero() || !standing.holds()) {
            let vector: Vec<u8> = standing.sources.iter().flat_map(|source| *source.frontier.as_bytes()).collect();
            batch.put_cf(self.family(Family::Meta)?, vector_key(standing.frontier), vector);
        }
        Ok(())
    }

    /// Writes a batch with the standing, and with the log; without, while rows of a snapshot are written without it: a standing in the log would outlive rows that are not.
    pub(crate) fn write_with(&self, mut batch: WriteBatch, standing: &Standing) -> Result<(), Error> {
        self.put_standing(&mut batch, standing)?;
        self.write(batch, !standing.is_loading())
    }

    /// The LSNs of the sources that a version stands for, in the order of the sources; none where that is no longer kept, or there is but one source.
    pub(crate) fn vector(&self, version: Lsn) -> Result<Option<Vec<Lsn>>, Error> {
        let Some(bytes) = self.get(Family::Meta, &vector_key(version))? else { return Ok(None) };
        Ok(Some(bytes.chunks_exact(10).filter_map(Lsn::from_slice).collect()))
    }

    /// Forgets what versions below one stand for, but for that of one that is kept.
    pub(crate) fn forget_vectors(&self, batch: &mut WriteBatch, below: Lsn, kept: Lsn) -> Result<(), Error> {
        let family = self.family(Family::Meta)?;
        batch.delete_range_cf(family, vector_key(Lsn::ZERO), vector_key(below.min(kept)));
        if kept < below {
            batch.delete_range_cf(family, vector_key(kept.next()), vector_key(below));
        }
        Ok(())
    }

    /// What the state serves; none where an earlier version made it, or nobody has yet.
    pub(crate) fn definitions(&self) -> Result<Option<Definitions>, Error> {
        self.get(Family::Meta, DEFINITIONS)?.map(|bytes| self.parse("definitions", &bytes)).transpose()
    }

    pub(crate) fn put_definitions(&self, batch: &mut WriteBatch, definitions: &Definitions) -> Result<(), Error> {
        let bytes = serde_json::to_vec(definitions).map_err(|error| self.corrupt(error.to_string()))?;
        batch.put_cf(self.family(Family::Meta)?, DEFINITIONS, bytes);
        Ok(())
    }

    /// The same of a state that others may have open; nothing is written.
    pub(crate) fn read_definitions(path: &Path) -> Result<Option<Definitions>, Error> {
        let failed = |error: rocksdb::Error| Error::rocksdb(path, &error);
        let database = path.join(DATABASE);
        // A kill while the database was being made leaves a folder without this file: there is nothing in it yet, and opening it makes it.
        if !database.join("CURRENT").is_file() {
            return Ok(None);
        }
        // Files may be replaced while they are opened.
        let list = || DB::list_cf(&Options::default(), &database);
        if !list().or_else(|_| list()).map_err(failed)?.iter().any(|family| family == Family::Meta.name()) {
            // Nor is there where the kill came before this.
            return Ok(None);
        }
        let open = || DB::open_cf_for_read_only(&Options::default(), &database, [Family::Meta.name()], false);
        let db = open().or_else(|_| open()).map_err(failed)?;
        let missing = || Error::Corrupt { path: path.to_owned(), what: "column family meta is missing".to_owned() };
        let found = db.get_cf(db.cf_handle(Family::Meta.name()).ok_or_else(missing)?, DEFINITIONS).map_err(failed)?;
        let damaged =
            |error: serde_json::Error| Error::Corrupt { path: path.to_owned(), what: format!("meta definitions: {error}") };
        found.map(|bytes| serde_json::from_slice(&bytes).map_err(damaged)).transpose()
    }

    pub(crate) fn cursor(&self, sink: &str) -> Result<Option<Cursor>, Error> {
        let key = format!("{CURSOR}{sink}");
        self.get(Family::Meta, key.as_bytes())?.map(|bytes| self.parse(&key, &bytes)).transpose()
    }

    /// By sink.
    pub(crate) fn cursors(&self) -> Result<Vec<(String, Cursor)>, Error> {
        let from = IteratorMode::From(CURSOR.as_bytes(), Direction::Forward);
        let mut found = Vec::new();
        for entry in self.db.iterator_cf(self.family(Family::Meta)?, from) {
            let (key, bytes) = entry.map_err(|error| self.error(&error))?;
            let Some(sink) = std::str::from_utf8(&key).ok().and_then(|key| key.strip_prefix(CURSOR)) else { break };
            found.push((sink.to_owned(), self.parse(CURSOR, &bytes)?));
        }
        Ok(found)
    }

    pub(crate) fn put_cursor(&self, sink: &str, cursor: &Cursor) -> Result<(), Error> {
        let bytes = serde_json::to_vec(cursor).map_err(|error| self.corrupt(error.to_string()))?;
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(Family::Meta)?, format!("{CURSOR}{sink}"), bytes);
        self.write(batch, true)
    }

    pub(crate) fn forget_cursor(&self, sink: &str) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.delete_cf(self.family(Family::Meta)?, format!("{CURSOR}{sink}"));
        self.write(batch, true)
    }

    pub(crate) fn put_dead_letter(&self, batch: &mut WriteBatch, place: &str, letter: &serde_json::Value) -> Result<(), Error> {
        batch.put_cf(self.family(Family::Meta)?, format!("{DEAD}{place}"), letter.to_string());
        Ok(())
    }

    /// What the state takes on the disk and in write buffers.
    pub(crate) fn bytes(&self) -> u64 {
        let sum = |property: &str| -> u64 {
            let families = Family::ALL.iter().filter_map(|family| self.db.cf_handle(family.name()));
            families.filter_map(|cf| self.db.property_int_value_cf(cf, property).ok().flatten()).sum()
        };
        sum("rocksdb.total-sst-files-size") + sum("rocksdb.cur-size-all-mem-tables")
    }
}

fn family_options(family: Family, memory: Memory, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    // Steps read here and there: smaller blocks are read and decompressed sooner, larger ones take less room.
    table.set_block_size(4 << 10);
    table.set_block_cache(cache);
    table.set_format_version(5);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    match family {
        Family::Rows | Family::Links | Family::Parts => table.set_bloom_filter(10.0, false),
        _ => {}
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // What is looked up by its whole key is mostly there: filters of the last level, nine tenths of all, would only take the cache from indexes and rows.
    options.set_optimize_filters_for_hits(true);
    // What is young is rewritten soon: compressing it costs more than it saves.
    use rocksdb::DBCompressionType::{Lz4, None};
    options.set_compression_per_level(&[None, None, Lz4, Lz4, Lz4, Lz4, Lz4]);
    let share = match family {
        Family::Rows => memory.write_buffer_bytes / 2,
        Family::Links | Family::Outbox => memory.write_buffer_bytes / 4,
        _ => memory.write_buffer_bytes / 8,
    };
    options.set_write_buffer_size(share);
    options.set_max_write_buffer_number(3);
    if family == Family::Rows {
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_level_zero_slowdown_writes_trigger(24);
        options.set_level_zero_stop_writes_trigger(40);
    }
    options
}
