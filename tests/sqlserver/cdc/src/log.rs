//! The internal log: what the triggers write, and the triggers.
//!
//! A change is one row in `__cdc_log`, written by a trigger in the statement that makes the change: it is in the user's transaction, so that a rollback
//! of the transaction or of a savepoint takes it away, and its sequence number is its place among the transaction's changes, over all tables.
//!
//! The row's slots are described by a *shape*: which columns (by id, which is never reused) of which table. When a table is altered or its instances
//! come and go, the triggers are made anew for a new shape; rows that the old triggers wrote keep theirs, so that the capture job reads each row by the
//! columns that stood when it was written. All instances of a table read the same rows.
//!
//! An update that changes no slot writes nothing (SQL Server's log has nothing to read either). Slots are the columns that some instance captures, and
//! the primary key, whose change turns an update into a delete and an insert. Computed columns have no slot: CDC never records their values.

use rusqlite::Connection;

use crate::select::{quote, storage};
use crate::{Catalog, Result, SourceColumn, SourceTable};

/// The log's record of an instance's beginning; 1, 2 and 3 are delete, insert and update.
pub(crate) const OP_ENABLE: i64 = 8;
/// The log's record of an ALTER TABLE.
pub(crate) const OP_DDL: i64 = 9;

const TRIGGERS: [&str; 3] = ["insert", "delete", "update"];

fn trigger_name(object_id: i64, event: &str) -> String {
    format!("__cdc_{object_id}_{event}")
}

/// The greatest number of columns that an instance can capture: SQLite's limit of 2000 columns a table, two for each slot of the log.
pub(crate) const MAX_COLUMNS: usize = 990;

/// Takes a table's triggers off.
pub(crate) fn drop_triggers(conn: &Connection, object_id: i64) -> Result<()> {
    for event in TRIGGERS {
        conn.execute_batch(&format!("DROP TRIGGER IF EXISTS {}", quote(&trigger_name(object_id, event))))?;
    }
    Ok(())
}

/// Makes a table's triggers as its instances now want them; none if it has none.
pub(crate) fn rebuild_triggers(conn: &Connection, catalog: &dyn Catalog, object_id: i64) -> Result<()> {
    drop_triggers(conn, object_id)?;
    let instances: i64 =
        conn.query_row("SELECT count(*) FROM __cdc_instance WHERE source_object_id = ?1", [object_id], |row| row.get(0))?;
    let Some(table) = catalog.source_table_by_id(object_id)? else { return Ok(()) };
    if instances == 0 {
        return Ok(());
    }
    let slots = slots(conn, &table)?;
    widen_log(conn, slots.len())?;
    let shape = shape(conn, object_id, &slots)?;
    for event in TRIGGERS {
        if let Some(sql) = trigger(&table, event, shape, &slots) {
            conn.execute_batch(&sql)?;
        }
    }
    Ok(())
}

/// A value slot of a shape.
struct Slot<'a> {
    column: &'a SourceColumn,
    is_key: bool,
}

fn slots<'a>(conn: &Connection, table: &'a SourceTable) -> Result<Vec<Slot<'a>>> {
    let captured: std::collections::HashSet<i32> = conn
        .prepare(
            "SELECT DISTINCT c.column_id FROM __cdc_instance_column c JOIN __cdc_instance i ON i.object_id = c.object_id
             WHERE i.source_object_id = ?1",
        )?
        .query_map([table.object_id], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let key: &[String] = table.primary_key.as_ref().map_or(&[], |(_, columns)| columns);
    let slots = table.columns.iter().filter(|column| !column.is_computed).filter_map(|column| {
        let is_key = key.contains(&column.name);
        (is_key || captured.contains(&column.column_id)).then_some(Slot { column, is_key })
    });
    Ok(slots.collect())
}

/// Gives the log enough slots, by making it anew: adding columns one by one costs a reading of the whole schema each. Its rows, few as a rule, are copied,
/// and its sequence goes on, because no number may come back.
fn widen_log(conn: &Connection, slots: usize) -> Result<()> {
    let had: i64 = conn.query_row("SELECT count(*) FROM pragma_table_info('__cdc_log')", [], |row| row.get(0))?;
    let had = (had as usize - 3) / 2;
    if had >= slots {
        return Ok(());
    }
    let columns = |slots: usize| (0..slots).map(|slot| format!(", o{slot}, n{slot}")).collect::<String>();
    let (kept, wanted) = (columns(had), columns(slots));
    conn.execute_batch(&format!(
        "CREATE TABLE __cdc_log_copy AS SELECT * FROM __cdc_log;
         CREATE TABLE __cdc_log_sequence AS SELECT name, seq FROM sqlite_sequence WHERE name = '__cdc_log';
         DROP TABLE __cdc_log;
         CREATE TABLE __cdc_log (seq INTEGER PRIMARY KEY AUTOINCREMENT, shape INTEGER NOT NULL, op INTEGER NOT NULL{wanted});
         INSERT INTO __cdc_log (seq, shape, op{kept}) SELECT seq, shape, op{kept} FROM __cdc_log_copy;
         DELETE FROM sqlite_sequence WHERE name = '__cdc_log';
         INSERT INTO sqlite_sequence (name, seq) SELECT name, seq FROM __cdc_log_sequence;
         DROP TABLE __cdc_log_copy;
         DROP TABLE __cdc_log_sequence;"
    ))?;
    Ok(())
}

/// The number of the shape with these slots: the table's newest, if it has them already, or a new one.
fn shape(conn: &Connection, object_id: i64, slots: &[Slot<'_>]) -> Result<i64> {
    let newest: Option<i64> =
        conn.query_row("SELECT max(id) FROM __cdc_shape WHERE source_object_id = ?1", [object_id], |row| row.get(0))?;
    let wanted: Vec<(i32, bool)> = slots.iter().map(|slot| (slot.column.column_id, slot.is_key)).collect();
    if let Some(newest) = newest {
        let had: Vec<(i32, bool)> = conn
            .prepare("SELECT column_id, is_key FROM __cdc_shape_column WHERE shape = ?1 ORDER BY slot")?
            .query_map([newest], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        if had == wanted {
            return Ok(newest);
        }
    }
    conn.execute("INSERT INTO __cdc_shape (source_object_id) VALUES (?1)", [object_id])?;
    let shape = conn.last_insert_rowid();
    for (slot, (column_id, is_key)) in wanted.iter().enumerate() {
        conn.execute("INSERT INTO __cdc_shape_column VALUES (?1, ?2, ?3, ?4)", (shape, slot as i64, column_id, is_key))?;
    }
    Ok(shape)
}

fn trigger(table: &SourceTable, event: &str, shape: i64, slots: &[Slot<'_>]) -> Option<String> {
    let old = |slot: &Slot<'_>| format!("OLD.{}", quote(&slot.column.name));
    let new = |slot: &Slot<'_>| format!("NEW.{}", quote(&slot.column.name));
    let mut columns = String::new();
    let mut values = String::new();
    for (number, slot) in slots.iter().enumerate() {
        if event != "insert" {
            columns.push_str(&format!(", o{number}"));
            values.push_str(&format!(", {}", old(slot)));
        }
        if event != "delete" {
            columns.push_str(&format!(", n{number}"));
            values.push_str(&format!(", {}", new(slot)));
        }
    }
    let (op, when) = match event {
        "delete" => (1, String::new()),
        "insert" => (2, String::new()),
        _ if slots.is_empty() => return None,
        // Compared byte for byte: a change of case alone is a change, whatever the column's collation says.
        _ => (
            3,
            balanced_or(
                &slots.iter().map(|slot| format!("{} IS NOT {} COLLATE BINARY", old(slot), new(slot))).collect::<Vec<_>>(),
            ),
        ),
    };
    let when = if when.is_empty() { when } else { format!(" WHEN {when}") };
    Some(format!(
        "CREATE TRIGGER {} AFTER {event} ON {} FOR EACH ROW{when} BEGIN INSERT INTO __cdc_log (shape, op{columns}) VALUES ({shape}, {op}{values}); END",
        quote(&trigger_name(table.object_id, event)),
        storage(&table.schema, &table.name),
    ))
}

/// The last sequence number of the log that is in use.
pub fn log_position(conn: &Connection) -> Result<i64> {
    Ok(conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM __cdc_log")?.query_row([], |row| row.get(0))?)
}

/// Replaces what the open transaction's triggers have logged since a position by updates from one set of rows to another: for an engine that had to
/// take a detour. `was` and `now` are a table and a query, with all columns of the table, whose rows belong together by their column `~n`. Needs the write lock.
pub fn relog_updates(conn: &Connection, catalog: &dyn Catalog, object_id: i64, since: i64, was: &str, now: &str) -> Result<()> {
    conn.execute("DELETE FROM __cdc_log WHERE seq > ?1", [since])?;
    let shape: Option<i64> = conn.query_row(
        "SELECT max(id) FROM __cdc_shape WHERE source_object_id = ?1 AND EXISTS (SELECT 1 FROM __cdc_instance WHERE source_object_id = ?1)",
        [object_id],
        |row| row.get(0),
    )?;
    let (Some(shape), Some(table)) = (shape, catalog.source_table_by_id(object_id)?) else { return Ok(()) };
    let slots = slots(conn, &table)?;
    let (mut columns, mut values, mut changed) = (String::new(), String::new(), Vec::new());
    for (number, slot) in slots.iter().enumerate() {
        let name = quote(&slot.column.name);
        columns.push_str(&format!(", o{number}, n{number}"));
        values.push_str(&format!(", w.{name}, n.{name}"));
        changed.push(format!("w.{name} IS NOT n.{name} COLLATE BINARY"));
    }
    if changed.is_empty() {
        return Ok(());
    }
    conn.execute_batch(&format!(
        "INSERT INTO __cdc_log (shape, op{columns}) SELECT {shape}, 3{values} FROM {was} AS w JOIN ({now}) AS n ON n.\"~n\" = w.\"~n\"
         WHERE {} ORDER BY w.\"~n\"",
        balanced_or(&changed)
    ))?;
    Ok(())
}

/// The terms joined by OR as a balanced tree: SQLite bounds the depth of an expression, and a table may have more columns than that.
fn balanced_or(terms: &[String]) -> String {
    match terms {
        [] => String::new(),
        [term] => term.clone(),
        _ => {
            let (left, right) = terms.split_at(terms.len() / 2);
            format!("({} OR {})", balanced_or(left), balanced_or(right))
        }
    }
}
