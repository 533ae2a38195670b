//! ALTER TABLE and DROP TABLE of captured tables.
//!
//! An ALTER TABLE is a record in the log like a change: it has its place among the transaction's changes, rolls back with it, and takes effect in
//! `cdc.*` when the capture job reaches it. Then `cdc.ddl_history` gets a row for each instance; a change of a captured column's type alters the change
//! table too (`required_column_update = 1`), after the rows logged before it and before those logged after. A dropped column stays in the change table,
//! NULL from then on; a new one is captured only by an instance enabled later.

use rusqlite::{Connection, params};

use crate::select::storage;
use crate::{Catalog, DateTime, Result, SourceTable, instance, log, schema, time};

/// Whether a table has a capture instance (`sys.tables.is_tracked_by_cdc`).
pub fn is_tracked(conn: &Connection, object_id: i64) -> Result<bool> {
    let mut statement = conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM __cdc_instance WHERE source_object_id = ?1)")?;
    Ok(statement.query_row([object_id], |row| row.get(0))?)
}

/// Whether an instance with net changes identifies the table's rows by this index: SQL Server then refuses to drop it (22983), or the constraint that
/// it belongs to (22979).
pub fn uses_index(conn: &Connection, object_id: i64, index: &str) -> Result<bool> {
    if !schema::is_enabled(conn)? {
        return Ok(false);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} WHERE source_object_id = ?1 AND supports_net_changes AND index_name = ?2 COLLATE NOCASE)",
        storage("cdc", "change_tables")
    );
    Ok(conn.query_row(&sql, params![object_id, index], |row| row.get(0))?)
}

/// Takes a table's triggers off, so that its storage can be altered. In the transaction of the ALTER TABLE, before it.
pub fn before_alter(conn: &Connection, object_id: i64) -> Result<()> {
    log::drop_triggers(conn, object_id)
}

/// Logs an ALTER TABLE and puts the triggers back. In its transaction, after it; `sql` is the statement as the client wrote it.
///
/// Does nothing for a table that is not captured.
pub fn table_altered(
    conn: &Connection,
    catalog: &dyn Catalog,
    old: &SourceTable,
    new: &SourceTable,
    sql: &str,
    now: DateTime,
) -> Result<()> {
    if !is_tracked(conn, new.object_id)? {
        return Ok(());
    }
    conn.execute("INSERT INTO __cdc_log (shape, op) VALUES (0, ?1)", [log::OP_DDL])?;
    let seq = conn.last_insert_rowid();
    conn.execute(
        "INSERT INTO __cdc_ddl (seq, source_object_id, command, ddl_time) VALUES (?1, ?2, ?3, ?4)",
        params![seq, new.object_id, sql, time::stored(now)],
    )?;
    for column in &new.columns {
        let before = old.columns.iter().find(|before| before.column_id == column.column_id);
        if before.is_some_and(|before| before.declared_type != column.declared_type || before.type_name != column.type_name) {
            conn.execute(
                "INSERT INTO __cdc_ddl_column (seq, column_id, type_name, declared_type) VALUES (?1, ?2, ?3, ?4)",
                params![seq, column.column_id, column.type_name, column.declared_type],
            )?;
        }
    }
    log::rebuild_triggers(conn, catalog, new.object_id)
}

/// Whether an instance captures the column of that name; SQL Server then refuses to rename it.
pub fn captures_column(conn: &Connection, object_id: i64, column: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM __cdc_instance i JOIN __cdc_instance_column c ON c.object_id = i.object_id
         WHERE i.source_object_id = ?1 AND c.name = ?2 COLLATE NOCASE)";
    Ok(conn.query_row(sql, params![object_id, column], |row| row.get(0))?)
}

/// Puts the triggers back after a table or a column of it got another name. In the transaction of [`before_alter`].
pub fn renamed(conn: &Connection, catalog: &dyn Catalog, object_id: i64) -> Result<()> {
    log::rebuild_triggers(conn, catalog, object_id)
}

/// Drops a table's instances with it. In the transaction of the DROP TABLE, before it.
pub fn table_dropped(conn: &Connection, catalog: &mut dyn Catalog, object_id: i64) -> Result<()> {
    if is_tracked(conn, object_id)? { instance::drop_of(conn, catalog, object_id) } else { Ok(()) }
}
