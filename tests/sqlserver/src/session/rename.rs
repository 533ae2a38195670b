//! `sp_rename`: tables, columns and indexes.
//!
//! SQLite renames tables and columns with all that refers to them, but the stand-in's names of indexes carry the table's; those are replaced in its
//! schema as [`rewrite`](crate::catalog::rewrite) replaces definitions. Change data capture follows a renamed table by its id; a captured column
//! cannot be renamed, as in SQL Server (4928).

use rusqlite::{Connection, OptionalExtension};
use tds::{Response, SqlError};

use super::definition::{reload, sqlite};
use super::procedures::Arguments;
use super::{Link, Session};
use crate::catalog::capture::CaptureCatalog;
use crate::catalog::{self, Object, define, quote, rewrite};
use crate::translate::Translator;
use crate::{capture_procedures, functions, message, parse};

fn no_item(name: &str, database: &str, kind: Option<&str>) -> SqlError {
    let kind = kind.unwrap_or("(null)");
    message::error(
        15_225,
        11,
        format!(
            "No item by the name of '{name}' could be found in the current database '{database}', given that @itemtype was input as '{kind}'."
        ),
    )
}

fn taken(name: &str, what: &str) -> SqlError {
    message::error(
        15_335,
        11,
        format!(
            "Error: The new name '{name}' is already in use as a {what} name and would cause a duplicate that is not permitted."
        ),
    )
}

impl Session {
    pub(super) fn rename(&self, a: &Arguments<'_>, response: &mut dyn Response) -> Result<(), SqlError> {
        let (old, new) = (a.text("objname").unwrap_or_default(), a.text("newname").unwrap_or_default());
        let kind = a.text("objtype").map(|k| k.to_ascii_uppercase());
        let database = self.current();
        let missing = || no_item(&old, &database, kind.as_deref());
        let mut parts = functions::split_name(&old);
        let last = match kind.as_deref() {
            Some("COLUMN" | "INDEX") => parts.pop(),
            None | Some("OBJECT") => None,
            Some(other) => return Err(message::unsupported(&format!("sp_rename of a {other}"))),
        };
        let table = parse::Name { database: None, object: parts.pop().unwrap_or_default(), schema: parts.pop() };
        let (_, object) = Translator::new(self).find(&table).map_err(|_| missing())?;
        self.require_ddl(&database)?;
        self.writing(&database, |link| {
            let now = self.shared.clock.local_ticks();
            match (kind.as_deref(), last) {
                (Some("COLUMN"), Some(column)) => {
                    let column = object.column(&column).ok_or_else(missing)?;
                    rename_column(link, &object, &column.name, &new, now)
                }
                (Some("INDEX"), Some(index)) => rename_index(link, &object, &index, &new, &missing),
                _ => rename_table(link, &object, &new, now),
            }?;
            catalog::touch(&link.db).map_err(sqlite)
        })?;
        response.info(&message::error(
            15_477,
            0,
            "Caution: Changing any part of an object name could break scripts and stored procedures.".into(),
        ));
        Ok(())
    }
}

fn rename_column(link: &Link, object: &Object, old: &str, new: &str, now: i64) -> Result<(), SqlError> {
    if object.column(new).is_some_and(|c| !catalog::same(&c.name, old)) {
        return Err(taken(new, "COLUMN"));
    }
    let captured = cdc::ddl::captures_column(&link.db, object.object_id, old).map_err(|e| capture_procedures::error(&e))?;
    if captured {
        return Err(message::error(4928, 16, format!("Cannot alter column '{old}' because it is 'REPLICATED'.")));
    }
    let used: bool = link
        .db
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM \"~meta\" m WHERE (m.k LIKE 'computed ' || ?1 || ' %' OR m.k IN (SELECT 'check ' || object_id FROM \"~objects\" WHERE parent_object_id = ?1 AND type = 'C')) AND instr(m.v, ?2) > 0)",
            (object.object_id, quote(old)),
            |r| r.get(0),
        )
        .map_err(sqlite)?;
    if used {
        return Err(message::error(
            15_336,
            16,
            format!("Object '{}.{old}' cannot be renamed because the object participates in enforced dependencies.", object.name),
        ));
    }
    captured_aside(link, object, now, || {
        link.db.execute_batch(&format!(
            "ALTER TABLE {} RENAME COLUMN {} TO {}",
            quote(&object.storage()),
            quote(old),
            quote(new)
        ))?;
        link.db.execute("UPDATE \"~columns\" SET name = ?3 WHERE object_id = ?1 AND name = ?2", (object.object_id, old, new))?;
        Ok(())
    })?;
    rewrite::refresh(&link.db, &reload(link, object.object_id)?).map_err(sqlite)
}

fn rename_table(link: &Link, object: &Object, new: &str, now: i64) -> Result<(), SqlError> {
    if catalog::object_id_of(&link.db, &object.schema, new).map_err(sqlite)?.is_some_and(|id| id != object.object_id) {
        return Err(taken(new, "OBJECT"));
    }
    let renamed = Object { name: new.to_string(), ..object.clone() };
    captured_aside(link, object, now, || {
        link.db.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", quote(&object.storage()), quote(&renamed.storage())))?;
        link.db
            .execute("UPDATE \"~objects\" SET name = ?2, modify_date = ?3 WHERE object_id = ?1", (object.object_id, new, now))?;
        let names: Vec<String> = link
            .db
            .prepare("SELECT name FROM \"~indexes\" WHERE object_id = ?1 AND name IS NOT NULL AND in_table = 0")?
            .query_map([object.object_id], |r| r.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        names.iter().try_for_each(|index| {
            rename_storage(&link.db, &define::index_storage(object, index), &define::index_storage(&renamed, index))?;
            rename_storage(&link.db, &define::null_storage(object, index), &define::null_storage(&renamed, index))
        })
    })
}

fn rename_index(link: &Link, object: &Object, old: &str, new: &str, missing: &dyn Fn() -> SqlError) -> Result<(), SqlError> {
    let found: Option<(String, bool)> = link
        .db
        .query_row("SELECT name, in_table FROM \"~indexes\" WHERE object_id = ?1 AND name = ?2", (object.object_id, old), |r| {
            Ok((r.get(0)?, r.get(1)?))
        })
        .optional()
        .map_err(sqlite)?;
    let (old, in_table) = found.ok_or_else(missing)?;
    let moved = || -> rusqlite::Result<()> {
        if !in_table {
            rename_storage(&link.db, &define::index_storage(object, &old), &define::index_storage(object, new))?;
            rename_storage(&link.db, &define::null_storage(object, &old), &define::null_storage(object, new))?;
        }
        link.db.execute("UPDATE \"~indexes\" SET name = ?3 WHERE object_id = ?1 AND name = ?2", (object.object_id, &old, new))?;
        link.db.execute(
            "UPDATE \"~objects\" SET name = ?3 WHERE parent_object_id = ?1 AND name = ?2 AND type IN ('PK', 'UQ')",
            (object.object_id, &old, new),
        )?;
        Ok(())
    };
    moved().map_err(sqlite)
}

/// Takes the triggers of change data capture off meanwhile.
fn captured_aside(link: &Link, object: &Object, now: i64, f: impl FnOnce() -> rusqlite::Result<()>) -> Result<(), SqlError> {
    let failed = |e: cdc::Error| capture_procedures::error(&e);
    cdc::ddl::before_alter(&link.db, object.object_id).map_err(failed)?;
    f().map_err(sqlite)?;
    let capture = CaptureCatalog { db: &link.db, now };
    cdc::ddl::renamed(&link.db, &capture, object.object_id).map_err(failed)
}

/// Gives an index of SQLite another name.
fn rename_storage(db: &Connection, old: &str, new: &str) -> rusqlite::Result<()> {
    rewrite::edit_schema(db, |db| {
        db.execute(
            "UPDATE main.sqlite_schema SET name = ?2, sql = replace(sql, ?3, ?4) WHERE type = 'index' AND name = ?1",
            (old, new, quote(old), quote(new)),
        )
    })
}
