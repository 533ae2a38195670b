//! The capture job: from the log into the change tables.
//!
//! A scan takes committed transactions in commit order, writes their change rows and their entry in `cdc.lsn_time_mapping`, and deletes their log rows,
//! all in one transaction. It holds the write lock meanwhile, so that no commit can slip below an LSN that it publishes: once an LSN stands in the
//! mapping, everything at or below it stands in the change tables. The same holds for an idle entry, which is written only when nothing is left to
//! capture.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, Row, Statement, Transaction, TransactionBehavior, params};

use crate::instance::{change_type_of, instances_of};
use crate::jobs::{self, Failure, JobType, Session};
use crate::select::{quote, storage};
use crate::{Catalog, DateTime, Error, Lsn, Result, commit, log, schema, time};

/// A quiet database gets an entry in `cdc.lsn_time_mapping` about this often, so that its captured position goes on.
const IDLE_ENTRY_MINUTES: i64 = 5;

/// What a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Transactions captured.
    pub transactions: u64,
    /// Rows written to change tables.
    pub commands: u64,
    /// Whether nothing committed was left when it ended.
    pub caught_up: bool,
    /// Set if the pass failed as [`jobs::fail`] told it to; it captured nothing then.
    pub failure: Option<Failure>,
}

/// How often the job wants to scan; `None` while it is stopped, or there is none.
pub fn due(conn: &Connection) -> Result<Option<Duration>> {
    if !schema::is_enabled(conn)? {
        return Ok(None);
    }
    match jobs::parameters(conn, JobType::Capture) {
        Ok(job) if job.running => Ok(Some(Duration::from_secs(job.pollinginterval.unsigned_abs()))),
        Ok(_) | Err(Error::NoSuchJob { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One pass of the job: at most `maxscans` cycles of at most `maxtrans` transactions. Also `sys.sp_cdc_scan`.
///
/// It scans whether the job runs or not: the caller asks [`due`]. Each cycle is a transaction of its own, unless one is open.
pub fn scan(conn: &Connection, catalog: &mut dyn Catalog, now: DateTime) -> Result<Outcome> {
    schema::require_enabled(conn)?;
    let mut session = Session { started: time::stored(now), ..Session::default() };
    if let Some(failure) = jobs::failure(conn)? {
        session.failure = Some(failure.clone());
        let transaction = Joined::begin(conn)?;
        jobs::record_session(conn, &session)?;
        transaction.commit()?;
        return Ok(Outcome { failure: Some(failure), ..Outcome::default() });
    }
    if rests(conn, now)? {
        return Ok(Outcome { caught_up: true, ..Outcome::default() });
    }
    let (maxtrans, maxscans) = match jobs::parameters(conn, JobType::Capture) {
        Ok(job) => (job.maxtrans, job.maxscans),
        Err(Error::NoSuchJob { .. }) => (500, 10),
        Err(error) => return Err(error),
    };
    let mut caught_up = false;
    for _ in 0..maxscans {
        let transaction = Joined::begin(conn)?;
        let pending = pending(conn, maxtrans)?;
        caught_up = (pending.len() as i64) < maxtrans;
        for tran in &pending {
            capture(conn, catalog, tran, &mut session)?;
        }
        if pending.is_empty() {
            idle_entry(conn, now)?;
        }
        if caught_up {
            session.latency = latency(session.last_commit_time.as_deref(), now);
            jobs::record_session(conn, &session)?;
        }
        transaction.commit()?;
        if caught_up {
            break;
        }
    }
    if !caught_up {
        let transaction = Joined::begin(conn)?;
        session.latency = latency(session.last_commit_time.as_deref(), now);
        jobs::record_session(conn, &session)?;
        transaction.commit()?;
    }
    Ok(Outcome { transactions: session.transactions, commands: session.commands, caught_up, failure: None })
}

/// Whether a pass would do nothing but count itself, within a second of the last that did: then it takes no write lock, so that a job that polls without
/// a pause does not get in the way of the writers.
fn rests(conn: &Connection, now: DateTime) -> Result<bool> {
    let pending: bool = conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM __cdc_tran)")?.query_row([], |row| row.get(0))?;
    if pending || is_quiet(conn, now)? {
        return Ok(false);
    }
    let last: Option<String> = conn
        .prepare_cached(
            "SELECT end_time FROM __cdc_session WHERE tran_count = 0 AND error_count = 0 ORDER BY session_id DESC LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    let age = last.as_deref().and_then(time::parsed).map(|last| last.duration_until(now).as_millis());
    Ok(age.is_some_and(|millis| (0..1000).contains(&millis)))
}

fn latency(last_commit: Option<&str>, now: DateTime) -> i64 {
    let committed = last_commit.and_then(time::parsed);
    committed.map_or(0, |committed| committed.duration_until(now).as_secs().max(0))
}

/// A committed transaction that waits to be captured.
struct Pending {
    commit_lsn: Lsn,
    begin_lsn: Lsn,
    address: u64,
    first_seq: i64,
    last_seq: i64,
    begin_time: String,
    end_time: String,
    tran_id: Vec<u8>,
}

fn pending(conn: &Connection, limit: i64) -> Result<Vec<Pending>> {
    let mut statement = conn.prepare_cached(
        "SELECT commit_lsn, begin_lsn, address, first_seq, last_seq, begin_time, end_time, tran_id FROM __cdc_tran ORDER BY commit_lsn LIMIT ?1",
    )?;
    let rows = statement.query_map([limit], |row| {
        Ok(Pending {
            commit_lsn: row.get(0)?,
            begin_lsn: row.get(1)?,
            address: row.get::<_, i64>(2)? as u64,
            first_seq: row.get(3)?,
            last_seq: row.get(4)?,
            begin_time: row.get(5)?,
            end_time: row.get(6)?,
            tran_id: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Moves one transaction into the change tables.
fn capture(conn: &Connection, catalog: &mut dyn Catalog, tran: &Pending, session: &mut Session) -> Result<()> {
    let mut cursor = Cursor { seq: tran.first_seq, command_id: 0, commands: 0, schema_changes: 0 };
    // An ALTER TABLE inside the transaction interrupts the reading: it alters change tables, which SQLite refuses while a statement reads.
    while let Some(ddl_seq) = capture_rows(conn, tran, &mut cursor)? {
        apply_ddl(conn, catalog, ddl_seq, tran.commit_lsn)?;
        cursor.schema_changes += 1;
        cursor.seq = ddl_seq + 1;
    }
    if cursor.commands + cursor.schema_changes > 0 {
        map_time(conn, tran)?;
    }
    conn.prepare_cached("DELETE FROM __cdc_log WHERE seq BETWEEN ?1 AND ?2")?.execute([tran.first_seq, tran.last_seq])?;
    conn.prepare_cached("DELETE FROM __cdc_tran WHERE commit_lsn = ?1")?.execute([tran.commit_lsn])?;
    if session.transactions == 0 {
        session.first_begin_lsn = tran.begin_lsn;
    }
    session.transactions += 1;
    session.commands += cursor.commands;
    session.schema_changes += cursor.schema_changes;
    session.records += (tran.last_seq - tran.first_seq + 3) as u64;
    session.last_commit_lsn = tran.commit_lsn;
    session.last_commit_time = Some(tran.end_time.clone());
    Ok(())
}

fn map_time(conn: &Connection, tran: &Pending) -> Result<()> {
    let sql = format!(
        "INSERT INTO {} (start_lsn, tran_begin_time, tran_end_time, tran_id, tran_begin_lsn) VALUES (?1, ?2, ?3, ?4, ?5)",
        storage("cdc", "lsn_time_mapping")
    );
    conn.prepare_cached(&sql)?.execute(params![tran.commit_lsn, tran.begin_time, tran.end_time, tran.tran_id, tran.begin_lsn])?;
    conn.prepare_cached("UPDATE __cdc_state SET quiet_since = ?1")?.execute([&tran.end_time])?;
    Ok(())
}

/// The entry that a quiet database gets, with transaction id 0x00.
fn idle_entry(conn: &Connection, now: DateTime) -> Result<()> {
    if !is_quiet(conn, now)? {
        return Ok(());
    }
    let lsn = commit::allot_lsn(conn)?;
    let sql = format!(
        "INSERT INTO {} (start_lsn, tran_begin_time, tran_end_time, tran_id, tran_begin_lsn) VALUES (?1, ?2, ?2, x'00', zeroblob(10))",
        storage("cdc", "lsn_time_mapping")
    );
    let now = time::stored(now);
    conn.execute(&sql, params![lsn, now])?;
    conn.execute("UPDATE __cdc_state SET quiet_since = ?1", [now])?;
    Ok(())
}

/// Whether an idle entry is due.
fn is_quiet(conn: &Connection, now: DateTime) -> Result<bool> {
    let quiet_since: Option<String> = conn
        .prepare_cached("SELECT quiet_since FROM __cdc_state WHERE EXISTS (SELECT 1 FROM __cdc_instance)")?
        .query_row([], |row| row.get(0))
        .optional()?
        .flatten();
    let since = quiet_since.as_deref().and_then(time::parsed);
    Ok(since.is_some_and(|since| since.duration_until(now).as_mins() >= IDLE_ENTRY_MINUTES))
}

/// Where the reading of a transaction stands.
struct Cursor {
    seq: i64,
    command_id: i64,
    commands: u64,
    schema_changes: u64,
}

/// Captures rows up to the next ALTER TABLE, whose sequence number it answers, or to the end.
fn capture_rows(conn: &Connection, tran: &Pending, cursor: &mut Cursor) -> Result<Option<i64>> {
    let mut shapes: HashMap<i64, Shape<'_>> = HashMap::new();
    let mut statement = conn.prepare("SELECT * FROM __cdc_log WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq")?;
    let mut rows = statement.query([cursor.seq, tran.last_seq])?;
    while let Some(row) = rows.next()? {
        let (seq, shape, op): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        match op {
            log::OP_DDL => return Ok(Some(seq)),
            log::OP_ENABLE => {
                cursor.schema_changes += 1;
                continue;
            }
            _ => {}
        }
        let shape = match shapes.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Shape::load(conn, shape)?),
        };
        let place = Place { commit: tran.commit_lsn, seqval: Lsn::of_record(tran.address, (seq - tran.first_seq + 1) as u64) };
        let moves = op == 3 && shape.key_moves(row)?;
        cursor.command_id += 1;
        let first = cursor.command_id;
        // A change of the primary key is logged as a delete and an insert: two commands, one seqval.
        cursor.command_id += i64::from(moves);
        for reader in shape.readers.iter_mut().filter(|reader| seq > reader.from_seq) {
            cursor.commands += match op {
                1 => reader.write(row, &place, 1, first)?,
                2 => reader.write(row, &place, 2, first)?,
                _ if moves => reader.write(row, &place, 1, first)? + reader.write(row, &place, 2, first + 1)?,
                _ => reader.write_update(row, &place, first)?,
            };
        }
    }
    Ok(None)
}

/// Who reads the rows of a shape.
struct Shape<'conn> {
    readers: Vec<Reader<'conn>>,
    key_slots: Vec<usize>,
}

impl<'conn> Shape<'conn> {
    fn load(conn: &'conn Connection, shape: i64) -> Result<Shape<'conn>> {
        Ok(Shape { readers: readers(conn, shape)?, key_slots: key_slots(conn, shape)? })
    }

    /// Whether an update changes the primary key.
    fn key_moves(&self, row: &Row<'_>) -> Result<bool> {
        for slot in &self.key_slots {
            if old(row, *slot)? != new(row, *slot)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The old value of a slot. Slots lie in pairs behind `seq`, `shape` and `op`.
fn old<'row>(row: &'row Row<'_>, slot: usize) -> rusqlite::Result<ValueRef<'row>> {
    row.get_ref(3 + 2 * slot)
}

fn new<'row>(row: &'row Row<'_>, slot: usize) -> rusqlite::Result<ValueRef<'row>> {
    row.get_ref(4 + 2 * slot)
}

fn key_slots(conn: &Connection, shape: i64) -> Result<Vec<usize>> {
    let mut statement = conn.prepare_cached("SELECT slot FROM __cdc_shape_column WHERE shape = ?1 AND is_key ORDER BY slot")?;
    let slots = statement.query_map([shape], |row| row.get::<_, i64>(0))?.map(|slot| slot.map(|slot| slot as usize));
    Ok(slots.collect::<rusqlite::Result<_>>()?)
}

struct Place {
    commit: Lsn,
    seqval: Lsn,
}

/// A captured column: where its value is, and what CDC leaves out of it.
struct Source {
    /// None if it is computed, or was dropped from the source table.
    slot: Option<usize>,
    storage: Storage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Storage {
    InRow,
    /// (n)varchar(max), varbinary(max), xml, json, geometry, geography: the before image of an update has it only if it changed.
    Max,
    /// text, ntext, image: deletes and before images never have it.
    Lob,
}

impl Storage {
    fn of(declared_type: &str) -> Storage {
        let declared = declared_type.split(" COLLATE ").next().unwrap_or(declared_type);
        let declared: String = declared.to_ascii_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
        match declared.as_str() {
            "text" | "ntext" | "image" => Storage::Lob,
            "json" | "geometry" | "geography" => Storage::Max,
            declared if declared.ends_with("(max)") || declared.starts_with("xml") => Storage::Max,
            _ => Storage::InRow,
        }
    }
}

/// Writes the rows of one shape into one change table.
struct Reader<'conn> {
    insert: Statement<'conn>,
    columns: Vec<Source>,
    from_seq: i64,
    full_mask: Vec<u8>,
}

/// The instances that read a shape, each with its way to write it.
fn readers(conn: &Connection, shape: i64) -> Result<Vec<Reader<'_>>> {
    let source: Option<i64> =
        conn.query_row("SELECT source_object_id FROM __cdc_shape WHERE id = ?1", [shape], |row| row.get(0)).optional()?;
    let Some(source) = source else { return Ok(Vec::new()) };
    instances_of(conn, source)?.into_iter().map(|instance| reader(conn, shape, instance)).collect()
}

fn reader(conn: &Connection, shape: i64, instance: i64) -> Result<Reader<'_>> {
    let mut statement = conn.prepare_cached(
        "SELECT c.name, c.declared_type, s.slot FROM __cdc_instance_column c
         LEFT JOIN __cdc_shape_column s ON s.shape = ?1 AND s.column_id = c.column_id WHERE c.object_id = ?2 ORDER BY c.ordinal",
    )?;
    let described: Vec<(String, String, Option<i64>)> = statement
        .query_map([shape, instance], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let columns: Vec<Source> = described
        .iter()
        .map(|(_, declared_type, slot)| Source { slot: slot.map(|slot| slot as usize), storage: Storage::of(declared_type) })
        .collect();
    let names: String = described.iter().map(|(name, ..)| format!(", {}", quote(name))).collect();
    let marks = ", ?".repeat(columns.len() + 4);
    let table: String = conn.query_row(
        &format!("SELECT capture_instance || '_CT' FROM {} WHERE object_id = ?1", storage("cdc", "change_tables")),
        [instance],
        |row| row.get(0),
    )?;
    let insert = conn.prepare(&format!(
        "INSERT INTO {} (\"__$start_lsn\", \"__$seqval\", \"__$operation\", \"__$update_mask\"{names}, \"__$command_id\") VALUES (?{marks})",
        storage("cdc", &table)
    ))?;
    let from_seq = conn.query_row("SELECT from_seq FROM __cdc_instance WHERE object_id = ?1", [instance], |row| row.get(0))?;
    let full_mask = mask_of(columns.len(), 0..columns.len());
    Ok(Reader { insert, columns, from_seq, full_mask })
}

/// The update mask of a table with `columns` captured columns in which these (from 0) are set: the first column is the lowest bit of the last byte.
pub(crate) fn mask_of(columns: usize, set: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut mask = vec![0; columns.div_ceil(8)];
    let last = mask.len().wrapping_sub(1);
    for column in set {
        mask[last - column / 8] |= 1 << (column % 8);
    }
    mask
}

impl Reader<'_> {
    /// Writes a delete (1, from the old values) or an insert (2, from the new ones).
    fn write(&mut self, row: &Row<'_>, place: &Place, operation: i64, command_id: i64) -> Result<u64> {
        let mut parameter = Self::bind_head(&mut self.insert, place, operation, &self.full_mask)?;
        for column in &self.columns {
            let value = match column.slot {
                None => ValueRef::Null,
                Some(_) if operation == 1 && column.storage == Storage::Lob => ValueRef::Null,
                Some(slot) if operation == 1 => old(row, slot)?,
                Some(slot) => new(row, slot)?,
            };
            self.insert.raw_bind_parameter(parameter, ToSqlOutput::Borrowed(value))?;
            parameter += 1;
        }
        self.insert.raw_bind_parameter(parameter, command_id)?;
        self.insert.raw_execute()?;
        Ok(1)
    }

    /// Writes the two images of an update; nothing if it touched no column of this instance.
    fn write_update(&mut self, row: &Row<'_>, place: &Place, command_id: i64) -> Result<u64> {
        let mut changed = Vec::new();
        for (ordinal, column) in self.columns.iter().enumerate() {
            if let Some(slot) = column.slot
                && old(row, slot)? != new(row, slot)?
            {
                changed.push(ordinal);
            }
        }
        if changed.is_empty() {
            return Ok(0);
        }
        let mask = mask_of(self.columns.len(), changed.iter().copied());
        for operation in [3, 4] {
            let mut parameter = Self::bind_head(&mut self.insert, place, operation, &mask)?;
            for (ordinal, column) in self.columns.iter().enumerate() {
                let left_out = operation == 3
                    && match column.storage {
                        Storage::InRow => false,
                        Storage::Max => changed.binary_search(&ordinal).is_err(),
                        Storage::Lob => true,
                    };
                let value = match column.slot {
                    Some(slot) if operation == 4 => new(row, slot)?,
                    Some(slot) if !left_out => old(row, slot)?,
                    _ => ValueRef::Null,
                };
                self.insert.raw_bind_parameter(parameter, ToSqlOutput::Borrowed(value))?;
                parameter += 1;
            }
            self.insert.raw_bind_parameter(parameter, command_id)?;
            self.insert.raw_execute()?;
        }
        Ok(2)
    }

    /// Binds what every change row begins with; answers the next parameter's number.
    fn bind_head(insert: &mut Statement<'_>, place: &Place, operation: i64, mask: &[u8]) -> Result<usize> {
        insert.raw_bind_parameter(1, place.commit)?;
        insert.raw_bind_parameter(2, place.seqval)?;
        insert.raw_bind_parameter(3, operation)?;
        insert.raw_bind_parameter(4, mask)?;
        Ok(5)
    }
}

/// Brings an ALTER TABLE into `cdc.*`.
fn apply_ddl(conn: &Connection, catalog: &mut dyn Catalog, seq: i64, commit_lsn: Lsn) -> Result<()> {
    let (source, command, ddl_time): (i64, String, String) =
        conn.query_row("SELECT source_object_id, command, ddl_time FROM __cdc_ddl WHERE seq = ?1", [seq], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    for instance in instances_of(conn, source)? {
        let from_seq: i64 =
            conn.query_row("SELECT from_seq FROM __cdc_instance WHERE object_id = ?1", [instance], |row| row.get(0))?;
        if seq <= from_seq {
            continue;
        }
        let altered = alter_change_table(conn, catalog, seq, instance)?;
        let sql = format!(
            "INSERT INTO {} (source_object_id, object_id, required_column_update, ddl_command, ddl_lsn, ddl_time) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            storage("cdc", "ddl_history")
        );
        conn.execute(&sql, params![source, instance, altered, command, commit_lsn, ddl_time])?;
    }
    conn.execute("DELETE FROM __cdc_ddl WHERE seq = ?1", [seq])?;
    conn.execute("DELETE FROM __cdc_ddl_column WHERE seq = ?1", [seq])?;
    Ok(())
}

/// Gives captured columns their new types; whether there were any.
fn alter_change_table(conn: &Connection, catalog: &mut dyn Catalog, seq: i64, instance: i64) -> Result<bool> {
    let changed: Vec<(i64, String, String, String)> = conn
        .prepare(
            "SELECT c.ordinal, c.name, d.type_name, d.declared_type FROM __cdc_ddl_column d
             JOIN __cdc_instance_column c ON c.object_id = ?2 AND c.column_id = d.column_id WHERE d.seq = ?1",
        )?
        .query_map([seq, instance], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (ordinal, name, type_name, declared_type) in &changed {
        let declared_type = change_type_of(type_name, declared_type);
        catalog.alter_column(instance, name, &declared_type)?;
        conn.execute(
            "UPDATE __cdc_instance_column SET declared_type = ?3 WHERE object_id = ?1 AND ordinal = ?2",
            params![instance, ordinal, declared_type],
        )?;
        let sql = format!(
            "UPDATE {} SET column_type = ?3 WHERE object_id = ?1 AND column_ordinal = ?2",
            storage("cdc", "captured_columns")
        );
        conn.execute(&sql, params![instance, ordinal, type_name])?;
    }
    Ok(!changed.is_empty())
}

/// A transaction of its own, or a part of the one that is open.
pub(crate) struct Joined<'conn>(Option<Transaction<'conn>>);

impl<'conn> Joined<'conn> {
    pub(crate) fn begin(conn: &'conn Connection) -> Result<Joined<'conn>> {
        if !conn.is_autocommit() {
            return Ok(Joined(None));
        }
        Ok(Joined(Some(Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?)))
    }

    pub(crate) fn commit(self) -> Result<()> {
        Ok(self.0.map_or(Ok(()), Transaction::commit)?)
    }
}
