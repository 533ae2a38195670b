//! Reads tables and views from the catalog.

use rusqlite::{Connection, OptionalExtension};

use super::{ColumnInfo, Object, ObjectKind};
use crate::types;

/// The table or view of that name.
pub(crate) fn load(db: &Connection, schema: &str, name: &str) -> rusqlite::Result<Option<Object>> {
    let id: Option<i64> = db
        .prepare_cached("SELECT object_id FROM \"~objects\" WHERE schema = ?1 AND name = ?2 AND type IN ('U', 'V')")?
        .query_row([schema, name], |r| r.get(0))
        .optional()?;
    id.map_or(Ok(None), |id| by_id(db, id))
}

pub(crate) fn by_id(db: &Connection, object_id: i64) -> rusqlite::Result<Option<Object>> {
    let head = db
        .prepare_cached(
            "SELECT schema, name, type, is_ms_shipped, definition FROM \"~objects\" WHERE object_id = ?1 AND type IN ('U', 'V')",
        )?
        .query_row([object_id], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, String>(2)?, r.get(3)?, r.get(4)?)))
        .optional()?;
    let Some((schema, name, kind, shipped, definition)) = head else { return Ok(None) };
    let columns = db
        .prepare_cached(
            "SELECT name, column_id, type_code, type_name, nullable, seed, increment, computed, persisted, default_text, collation FROM \"~columns\" WHERE object_id = ?1 ORDER BY column_id",
        )?
        .query_map([object_id], |r| {
            let seed: Option<i64> = r.get(5)?;
            Ok(ColumnInfo {
                name: r.get(0)?,
                column_id: r.get(1)?,
                data_type: types::decode(r.get(2)?),
                type_name: r.get(3)?,
                nullable: r.get(4)?,
                identity: seed.map(|s| Ok::<_, rusqlite::Error>((s, r.get(6)?))).transpose()?,
                computed: r.get(7)?,
                persisted: r.get(8)?,
                default: r.get(9)?,
                collation: r.get(10)?,
            })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let primary_key = db
        .prepare_cached(
            "SELECT c.name FROM \"~indexes\" i JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id \
             JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE i.object_id = ?1 AND i.is_primary_key = 1 ORDER BY ic.key_ordinal",
        )?
        .query_map([object_id], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let kind = if kind == "V" { ObjectKind::View } else { ObjectKind::Table };
    Ok(Some(Object { object_id, schema, name, kind, columns, primary_key, shipped, definition }))
}

/// The id of any object (tables, views, constraints).
pub(crate) fn object_id_of(db: &Connection, schema: &str, name: &str) -> rusqlite::Result<Option<i64>> {
    db.prepare_cached("SELECT object_id FROM \"~objects\" WHERE schema = ?1 AND name = ?2")?
        .query_row([schema, name], |r| r.get(0))
        .optional()
}

/// The key columns of an index, in their order.
pub(crate) fn columns_of_index(db: &Connection, object_id: i64, index: &str) -> rusqlite::Result<Vec<String>> {
    db.prepare_cached(
        "SELECT c.name FROM \"~indexes\" i JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id AND ic.included = 0 \
         JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE i.object_id = ?1 AND i.name = ?2 ORDER BY ic.key_ordinal",
    )?
    .query_map((object_id, index), |r| r.get(0))?
    .collect()
}

/// The columns of a table's unique indexes, and the one among them that is SQLite's row id.
pub(crate) fn unique_columns(db: &Connection, object_id: i64) -> rusqlite::Result<(Vec<String>, Option<String>)> {
    let list: Vec<(String, bool)> = db
        .prepare_cached(
            "SELECT c.name, i.in_table FROM \"~indexes\" i JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id AND ic.included = 0 \
             JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE i.object_id = ?1 AND i.is_unique = 1",
        )?
        .query_map([object_id], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let rowid = list.iter().find(|(_, in_table)| *in_table).map(|(name, _)| name.clone());
    Ok((list.into_iter().map(|(name, _)| name).collect(), rowid))
}

/// The unique index over exactly these columns: its name, and whether it is a constraint (error 2627) or an index (2601).
pub(crate) fn index_of_columns(
    db: &Connection,
    object_id: i64,
    columns: &[String],
) -> rusqlite::Result<Option<(String, String, bool)>> {
    let mut statement = db.prepare_cached(
        "SELECT i.name, i.is_primary_key, i.is_unique_constraint, group_concat(lower(c.name), char(1) ORDER BY ic.key_ordinal) FROM \"~indexes\" i \
         JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id AND ic.included = 0 \
         JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id WHERE i.object_id = ?1 AND i.is_unique = 1 GROUP BY i.index_id",
    )?;
    let wanted = columns.iter().map(|c| c.to_ascii_lowercase()).collect::<Vec<_>>().join("\u{1}");
    let mut rows = statement.query([object_id])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, String>(3)? == wanted {
            let (primary, unique): (bool, bool) = (row.get(1)?, row.get(2)?);
            let kind = if primary { "PRIMARY KEY" } else { "UNIQUE KEY" };
            return Ok(Some((row.get(0)?, kind.to_string(), primary || unique)));
        }
    }
    Ok(None)
}
