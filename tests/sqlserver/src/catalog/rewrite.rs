//! ALTER TABLE: SQLite can add and drop columns, but not constraints or types. Those stand only in the text of the table's definition, which SQLite lets
//! its owner replace (`PRAGMA writable_schema`, <https://www.sqlite.org/lang_altertable.html>) as long as the rows need not move; rows that must change
//! are updated before.

use rusqlite::Connection;
use tds::DataType;

use super::{Object, define, quote, touch};
use crate::types;

/// Makes SQLite's definition of the table equal to the catalog's.
pub(crate) fn refresh(db: &Connection, table: &Object) -> rusqlite::Result<()> {
    let sql = define::storage_sql(db, table)?;
    edit_schema(db, |db| {
        db.execute("UPDATE main.sqlite_schema SET sql = ?1 WHERE type = 'table' AND name = ?2", (sql, table.storage()))
    })?;
    touch(db)
}

/// Lets `edit` write SQLite's own schema, which every connection then reads anew.
pub(crate) fn edit_schema(db: &Connection, edit: impl FnOnce(&Connection) -> rusqlite::Result<usize>) -> rusqlite::Result<()> {
    db.pragma_update(None, "writable_schema", true)?;
    let changed = edit(db);
    let version: i64 = db.query_row("PRAGMA main.schema_version", [], |r| r.get(0))?;
    db.execute_batch(&format!("PRAGMA main.schema_version = {}; PRAGMA writable_schema = RESET", version + 1))?;
    changed.map(|_| ())
}

/// Adds the storage of a column whose catalog row is already there. `fill`: the value that existing rows get, in SQLite's SQL.
pub(crate) fn add_column(db: &Connection, table: &Object, name: &str, fill: Option<&str>) -> rusqlite::Result<()> {
    let Some(column) = table.column(name) else { return Ok(()) };
    let storage = quote(&table.storage());
    if column.computed.is_some() {
        let sqlite =
            super::setting_text(db, &format!("computed {} {}", table.object_id, name.to_ascii_lowercase()))?.unwrap_or_default();
        db.execute_batch(&format!(
            "ALTER TABLE {storage} ADD COLUMN {} GENERATED ALWAYS AS ({sqlite}) VIRTUAL",
            quote(&column.name)
        ))?;
        return refresh(db, table);
    }
    db.execute_batch(&format!("ALTER TABLE {storage} ADD COLUMN {}", quote(&column.name)))?;
    if let Some(fill) = fill {
        db.execute_batch(&format!("UPDATE {storage} SET {} = {fill}", quote(&column.name)))?;
    }
    refresh(db, table)
}

/// Converts a column's rows from one type to another and takes over the new definition.
pub(crate) fn convert_column(
    db: &Connection,
    table: &Object,
    name: &str,
    from: &DataType,
    to: &DataType,
) -> rusqlite::Result<()> {
    if types::code(from) != types::code(to) {
        let column = quote(table.column(name).map_or(name, |c| &c.name));
        db.execute_batch(&format!(
            "UPDATE {} SET {column} = acv({column}, {}, {}, {}, {}) WHERE {column} IS NOT NULL",
            quote(&table.storage()),
            types::code(from),
            types::code(to),
            super::text(&table.storage()),
            super::text(name)
        ))?;
    }
    refresh(db, table)
}
