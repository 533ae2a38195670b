//! Alias types: `CREATE TYPE dbo.phone FROM varchar(20) NOT NULL`. A column of one has the base type's values and the alias's name in the catalog.

use rusqlite::{Connection, OptionalExtension};
use tds::SqlError;

use super::{touch, type_facts};
use crate::message;
use crate::session::fault;
use crate::types::{self, Declared};

/// The ids of users' types begin here.
const FIRST_ID: i64 = 257;

/// Creates the catalog's table.
pub(crate) const TABLE: &str = "CREATE TABLE IF NOT EXISTS \"~types\" (user_type_id INTEGER PRIMARY KEY, schema TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE UNIQUE, \
    type_code INTEGER NOT NULL, base TEXT NOT NULL, system_type_id INTEGER NOT NULL, max_length INTEGER NOT NULL, precision INTEGER NOT NULL, scale INTEGER NOT NULL, nullable INTEGER NOT NULL);";

pub(crate) fn create(db: &Connection, schema: &str, name: &str, base: &Declared, nullable: bool) -> Result<(), SqlError> {
    let (system, _, length, precision, scale) = type_facts(&base.data_type, &base.name);
    let made = || -> rusqlite::Result<usize> {
        let id: i64 = db.query_row("SELECT coalesce(max(user_type_id) + 1, ?1) FROM \"~types\"", [FIRST_ID], |r| r.get(0))?;
        db.execute(
            "INSERT OR IGNORE INTO \"~types\" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            (id, schema, name, types::code(&base.data_type), &base.name, system, length, precision, scale, nullable),
        )
    };
    if made().map_err(|e| fault::from_sqlite(&e))? == 0 {
        return Err(message::error(
            219,
            16,
            format!("The type '{schema}.{name}' already exists, or you do not have permission to create it."),
        ));
    }
    touch(db).map_err(|e| fault::from_sqlite(&e))
}

/// Drops a type that no column has; whether there was one.
pub(crate) fn drop_type(db: &Connection, name: &str) -> Result<bool, SqlError> {
    let used: bool = db
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM \"~columns\" c JOIN \"~types\" t ON t.user_type_id = c.user_type_id WHERE t.name = ?1)",
            [name],
            |r| r.get(0),
        )
        .map_err(|e| fault::from_sqlite(&e))?;
    if used {
        return Err(message::error(
            3732,
            16,
            format!(
                "Cannot drop type '{name}' because it is being referenced by a table. There may be other objects that reference this type."
            ),
        ));
    }
    let dropped = db.execute("DELETE FROM \"~types\" WHERE name = ?1", [name]).map_err(|e| fault::from_sqlite(&e))?;
    touch(db).map_err(|e| fault::from_sqlite(&e))?;
    Ok(dropped > 0)
}

/// A declared type with its base looked up, and whether its columns take NULL unless they say otherwise.
pub(crate) fn resolve(db: &Connection, declared: &Declared) -> Result<(Declared, Option<bool>), SqlError> {
    if !declared.is_alias() {
        return Ok((declared.clone(), None));
    }
    let found: Option<(String, i64, bool)> = db
        .query_row("SELECT name, type_code, nullable FROM \"~types\" WHERE name = ?1", [&declared.name], |r| {
            Ok((r.get(0)?, r.get(1)?, r.get(2)?))
        })
        .optional()
        .map_err(|e| fault::from_sqlite(&e))?;
    let (name, code, nullable) = found.ok_or_else(|| types::unknown(&declared.name))?;
    Ok((Declared { data_type: types::decode(code), name }, Some(nullable)))
}
