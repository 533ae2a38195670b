//! SQLite's errors as SQL Server's.

use rusqlite::Connection;
use rusqlite::ffi;
use tds::SqlError;

use crate::catalog::{self, Object, define};
use crate::message;

/// What a statement was doing when it failed.
pub(crate) struct Doing<'a> {
    pub(crate) db: &'a Connection,
    pub(crate) database: &'a str,
    pub(crate) object: &'a Object,
    /// INSERT, UPDATE or DELETE.
    pub(crate) verb: &'static str,
    /// The value of the key over these columns that two rows would have, if it can be told.
    pub(crate) duplicate: &'a dyn Fn(&[String]) -> Option<String>,
}

fn parts(e: &rusqlite::Error) -> (i32, String) {
    match e {
        rusqlite::Error::SqliteFailure(f, text) => (f.extended_code, text.clone().unwrap_or_else(|| f.to_string())),
        rusqlite::Error::SqlInputError { error, msg, sql, .. } => (error.extended_code, format!("{msg} in: {sql}")),
        other => (0, other.to_string()),
    }
}

pub(crate) fn from_sqlite(e: &rusqlite::Error) -> SqlError {
    let (code, text) = parts(e);
    if let Some(e) = message::unpack(&text) {
        return e;
    }
    match code {
        ffi::SQLITE_BUSY_SNAPSHOT => message::error(3960, 16, "Snapshot isolation transaction aborted due to update conflict. Retry the transaction or change the isolation level for the update/delete statement.".into()),
        _ if code & 0xFF == ffi::SQLITE_BUSY => message::error(1222, 16, "Lock request time out period exceeded.".into()),
        _ if code & 0xFF == ffi::SQLITE_INTERRUPT => message::error(3617, 16, "Query was canceled by user.".into()),
        _ if code & 0xFF == ffi::SQLITE_FULL => message::error(1105, 17, "Could not allocate space in the database because the disk is full.".into()),
        _ if text.contains("malformed JSON") => message::error(13_609, 16, "JSON text is not properly formatted.".into()),
        _ if text.contains("integer overflow") => message::error(8115, 16, "Arithmetic overflow error converting expression to data type bigint.".into()),
        _ => message::error(50_000, 16, format!("The stand-in's storage engine refused the statement: {text}")),
    }
}

/// A constraint's error, with the names that SQL Server gives.
pub(crate) fn of_change(e: &rusqlite::Error, doing: &Doing<'_>) -> SqlError {
    let (code, text) = parts(e);
    let schema = if doing.object.schema.is_empty() { "dbo" } else { &doing.object.schema };
    let full = format!("{schema}.{}", doing.object.name);
    match code {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_ROWID => {
            duplicate(&text, doing, &full)
        }
        ffi::SQLITE_CONSTRAINT_NOTNULL => {
            let column = text.rsplit('.').next().unwrap_or_default();
            message::error(
                515,
                16,
                format!(
                    "Cannot insert the value NULL into column '{column}', table '{}.{full}'; column does not allow nulls. {} fails.",
                    doing.database, doing.verb
                ),
            )
        }
        ffi::SQLITE_CONSTRAINT_CHECK => {
            let name = text.rsplit(": ").next().unwrap_or_default();
            message::error(
                547,
                16,
                format!(
                    "The {} statement conflicted with the CHECK constraint \"{name}\". The conflict occurred in database \"{}\", table \"{full}\".",
                    doing.verb, doing.database
                ),
            )
        }
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY | ffi::SQLITE_CONSTRAINT_TRIGGER if !text.contains('\u{1}') => foreign_key(doing),
        _ => from_sqlite(e),
    }
}

fn duplicate(text: &str, doing: &Doing<'_>, full: &str) -> SqlError {
    let storage = doing.object.storage();
    // An index over expressions is named itself.
    let by_name = text.split_once("index '").and_then(|(_, rest)| {
        let name = rest.split_once(define::NULLS)?.0.strip_prefix(&storage)?.strip_prefix('.')?;
        catalog::columns_of_index(doing.db, doing.object.object_id, name).ok()
    });
    let columns: Vec<String> = by_name.unwrap_or_else(|| {
        text.split_once(": ")
            .map(|(_, list)| {
                list.split(", ")
                    .filter_map(|c| c.strip_prefix(storage.as_str()).and_then(|c| c.strip_prefix('.')).map(str::to_string))
                    .collect()
            })
            .unwrap_or_default()
    });
    let value = || (doing.duplicate)(&columns).map(|v| format!(" The duplicate key value is ({v}).")).unwrap_or_default();
    match catalog::index_of_columns(doing.db, doing.object.object_id, &columns) {
        Ok(Some((name, kind, true))) => message::error(
            2627,
            14,
            format!("Violation of {kind} constraint '{name}'. Cannot insert duplicate key in object '{full}'.{}", value()),
        ),
        Ok(Some((name, _, false))) => {
            let text = format!("Cannot insert duplicate key row in object '{full}' with unique index '{name}'.{}", value());
            message::error(2601, 14, text)
        }
        _ => message::error(
            2627,
            14,
            format!("Violation of PRIMARY KEY constraint. Cannot insert duplicate key in object '{full}'."),
        ),
    }
}

/// SQLite does not say which foreign key was broken: the first of the table (or of those that refer to it) is named.
fn foreign_key(doing: &Doing<'_>) -> SqlError {
    let own = "SELECT o.name, r.schema || '.' || r.name, c.name FROM \"~fks\" f JOIN \"~objects\" o ON o.object_id = f.object_id JOIN \"~objects\" r ON r.object_id = f.referenced_object_id \
               JOIN \"~fk_columns\" k ON k.object_id = f.object_id JOIN \"~columns\" c ON c.object_id = r.object_id AND c.column_id = k.referenced_column_id WHERE f.parent_object_id = ?1 ORDER BY f.object_id LIMIT 1";
    let others = "SELECT o.name, r.schema || '.' || r.name, c.name FROM \"~fks\" f JOIN \"~objects\" o ON o.object_id = f.object_id JOIN \"~objects\" r ON r.object_id = f.parent_object_id \
                  JOIN \"~fk_columns\" k ON k.object_id = f.object_id JOIN \"~columns\" c ON c.object_id = r.object_id AND c.column_id = k.parent_column_id WHERE f.referenced_object_id = ?1 ORDER BY f.object_id LIMIT 1";
    let read = |sql: &str| {
        doing
            .db
            .query_row(sql, [doing.object.object_id], |r| {
                Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?, r.get::<_, String>(2)?))
            })
            .ok()
    };
    let (found, kind) =
        if doing.verb == "DELETE" { (read(others), "REFERENCE") } else { (read(own).or_else(|| read(others)), "FOREIGN KEY") };
    let (name, table, column) = found.unwrap_or_default();
    message::error(
        547,
        16,
        format!(
            "The {} statement conflicted with the {kind} constraint \"{name}\". The conflict occurred in database \"{}\", table \"{table}\", column '{column}'.",
            doing.verb, doing.database
        ),
    )
}

/// Whether the error ends the batch, not only its statement.
pub(crate) fn ends_batch(e: &SqlError) -> bool {
    e.class >= 20
        || matches!(
            e.number,
            102 | 105
                | 107
                | 108
                | 109
                | 110
                | 116
                | 137
                | 155
                | 156
                | 174
                | 191
                | 195
                | 205
                | 207
                | 208
                | 209
                | 213
                | 229
                | 241
                | 242
                | 245
                | 248
                | 262
                | 263
                | 297
                | 300
                | 295
                | 402
                | 1087
                | 1205
                | 3617
                | 3930
                | 3952
                | 3960
                | 4104
                | 4121
                | 4145
                | 8114
                | 8117
                | 8155
                | 8169
                | 40_000
        )
}
