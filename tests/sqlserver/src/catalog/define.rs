//! Writes tables, indexes and constraints into the catalog and makes their SQLite storage.
//!
//! # Storage of a table
//! One ordinary SQLite table named `schema.name`. A primary key of a single integer column that is declared with the table is SQLite's rowid, so that
//! rows lie in key order; every other key is a unique index beside the table, which can come and go without touching it. NOT NULL, CHECK and FOREIGN KEY
//! stand in the SQLite table's definition, whose text always follows from the catalog ([`storage_sql`]).

use rusqlite::Connection;
use tds::DataType;

use super::{Object, next_id, quote, touch, type_facts};
use crate::types;

/// A column to create.
#[derive(Debug, Clone)]
pub(crate) struct NewColumn {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) type_name: String,
    pub(crate) nullable: bool,
    pub(crate) identity: Option<(i64, i64)>,
    /// T-SQL text, SQLite text.
    pub(crate) computed: Option<(String, String)>,
    pub(crate) persisted: bool,
    /// Constraint name and text.
    pub(crate) default: Option<(Option<String>, String)>,
    pub(crate) collation: Option<String>,
    pub(crate) rowguid: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct NewIndex {
    pub(crate) name: String,
    pub(crate) unique: bool,
    pub(crate) clustered: bool,
    pub(crate) primary_key: bool,
    pub(crate) constraint: bool,
    pub(crate) columns: Vec<(String, bool)>,
    pub(crate) included: Vec<String>,
    /// T-SQL text, SQLite text.
    pub(crate) filter: Option<(String, String)>,
}

pub(crate) fn insert_object(
    db: &Connection,
    schema: &str,
    name: &str,
    kind: &str,
    parent: i64,
    definition: Option<&str>,
    now: i64,
) -> rusqlite::Result<i64> {
    let id = next_id(db)?;
    db.prepare_cached("INSERT INTO \"~objects\" (object_id, schema, name, type, parent_object_id, create_date, modify_date, definition) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)")?
        .execute((id, schema, name, kind, parent, now, definition))?;
    Ok(id)
}

/// A name for a constraint that was given none: `PK__orders__0EA3C4F1`.
pub(crate) fn made_name(prefix: &str, table: &str, column: Option<&str>, id: i64) -> String {
    let table: String = table.chars().take(9).collect();
    let column: String = column.map(|c| format!("__{}", c.chars().take(5).collect::<String>())).unwrap_or_default();
    format!("{prefix}__{table}{column}__{:08X}", id.wrapping_mul(2_654_435_761) & 0xFFFF_FFFF)
}

pub(crate) fn insert_column(
    db: &Connection,
    object_id: i64,
    schema: &str,
    table: &str,
    c: &NewColumn,
    column_id: i32,
    now: i64,
) -> rusqlite::Result<()> {
    let (system, user, length, precision, scale) = type_facts(&c.data_type, &c.type_name);
    let mut default_id = 0;
    let mut default_text = None;
    if let Some((name, expression)) = &c.default {
        let name = name.clone().unwrap_or_else(|| made_name("DF", table, Some(&c.name), object_id + i64::from(column_id)));
        let expression = parenthesised(expression);
        default_id = insert_object(db, schema, &name, "D", object_id, Some(&expression), now)?;
        default_text = Some(expression);
    }
    let collation =
        types::is_string(&c.data_type).then(|| c.collation.clone().unwrap_or_else(|| super::DEFAULT_COLLATION.into()));
    db.prepare_cached(
        "INSERT INTO \"~columns\" (object_id, column_id, name, type_code, type_name, system_type_id, user_type_id, max_length, precision, scale, nullable, seed, increment, computed, persisted, \
         default_id, default_text, collation, rowguid) VALUES (?1,?2,?3,?4,?5,?6,coalesce((SELECT user_type_id FROM \"~types\" WHERE name = ?5), ?7),?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19)",
    )?
    .execute(rusqlite::params![
        object_id, column_id, c.name, types::code(&c.data_type), c.type_name, system, user, length, precision, scale, c.nullable, c.identity.map(|i| i.0), c.identity.map(|i| i.1),
        c.computed.as_ref().map(|x| x.0.clone()), c.persisted, default_id, default_text, collation, c.rowguid
    ])?;
    if let Some((_, sqlite)) = &c.computed {
        super::set_setting_text(db, &format!("computed {object_id} {}", c.name.to_ascii_lowercase()), sqlite)?;
    }
    Ok(())
}

/// A default as the catalog shows it: in parentheses, numbers in two pairs. Debezium reads it.
pub(crate) fn parenthesised(expression: &str) -> String {
    let mut inner = expression.trim();
    while let Some(i) = inner.strip_prefix('(').and_then(|i| i.strip_suffix(')')).filter(|i| balanced(i)) {
        inner = i.trim();
    }
    if inner.parse::<f64>().is_ok() { format!("(({inner}))") } else { format!("({inner})") }
}

/// Whether no parenthesis closes before it was opened.
fn balanced(text: &str) -> bool {
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// Creates a table with its keys. Foreign keys and checks are added to the catalog before, by [`add_check`] and [`add_foreign_key`], with `finish`.
pub(crate) fn create_table(
    db: &Connection,
    schema: &str,
    name: &str,
    columns: &[NewColumn],
    shipped: bool,
    now: i64,
) -> rusqlite::Result<i64> {
    let object_id = insert_object(db, schema, name, "U", 0, None, now)?;
    if shipped {
        db.execute("UPDATE \"~objects\" SET is_ms_shipped = 1 WHERE object_id = ?1", [object_id])?;
    }
    for (i, c) in columns.iter().enumerate() {
        insert_column(db, object_id, schema, name, c, i as i32 + 1, now)?;
    }
    super::set_setting(db, &format!("last_column {object_id}"), columns.len() as i64)?;
    // The heap, until a clustered index comes.
    db.execute("INSERT INTO \"~indexes\" (object_id, index_id, name, type, is_unique, is_primary_key, is_unique_constraint) VALUES (?1, 0, NULL, 0, 0, 0, 0)", [object_id])?;
    Ok(object_id)
}

/// Registers an index. `in_table`: SQLite keeps it as the table's rowid, so nothing is created beside the table.
pub(crate) fn add_index(db: &Connection, table: &Object, index: &NewIndex, in_table: bool, now: i64) -> rusqlite::Result<()> {
    let id = table.object_id;
    let index_id: i64 = if index.clustered {
        db.execute("DELETE FROM \"~indexes\" WHERE object_id = ?1 AND index_id = 0", [id])?;
        1
    } else {
        db.query_row(
            "SELECT coalesce(max(index_id), 1) + 1 FROM \"~indexes\" WHERE object_id = ?1 AND index_id > 0",
            [id],
            |r| r.get::<_, i64>(0),
        )?
        .max(2)
    };
    db.execute(
        "INSERT INTO \"~indexes\" (object_id, index_id, name, type, is_unique, is_primary_key, is_unique_constraint, filter, in_table) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        rusqlite::params![
            id, index_id, index.name, if index.clustered { 1 } else { 2 }, index.unique, index.primary_key, index.constraint && !index.primary_key,
            index.filter.as_ref().map(|f| f.0.clone()), in_table
        ],
    )?;
    let all = index.columns.iter().map(|(c, d)| (c, *d, false)).chain(index.included.iter().map(|c| (c, false, true)));
    for (i, (column, descending, included)) in all.enumerate() {
        let column_id = table.column(column).map_or(0, |c| c.column_id);
        db.execute(
            "INSERT INTO \"~index_columns\" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (id, index_id, i as i64 + 1, column_id, if included { 0 } else { i as i64 + 1 }, descending, included),
        )?;
    }
    if index.constraint || index.primary_key {
        insert_object(db, &table.schema, &index.name, if index.primary_key { "PK" } else { "UQ" }, id, None, now)?;
    }
    if !in_table {
        create_storage_index(db, table, index)?;
    }
    touch(db)
}

fn create_storage_index(db: &Connection, table: &Object, index: &NewIndex) -> rusqlite::Result<()> {
    let columns: Vec<String> = index
        .columns
        .iter()
        .map(|(c, d)| format!("{}{}", quote(table.column(c).map_or(c.as_str(), |c| &c.name)), if *d { " DESC" } else { "" }))
        .collect();
    let filter = index.filter.as_ref().map(|f| format!(" WHERE {}", f.1)).unwrap_or_default();
    let unique = if index.unique { "UNIQUE " } else { "" };
    let nullable: Vec<String> = index
        .columns
        .iter()
        .filter_map(|(c, _)| table.column(c).filter(|c| c.nullable && index.unique && !table.primary_key.contains(&c.name)))
        .map(|c| format!("{} IS NULL", quote(&c.name)))
        .collect();
    if !nullable.is_empty() {
        // To SQLite all NULLs differ, to SQL Server's unique indexes they are alike: a second index holds the keys that have one.
        let keys: Vec<String> = index
            .columns
            .iter()
            .filter_map(|(c, _)| table.column(c))
            .map(|c| {
                let name = quote(&c.name);
                let collate =
                    if types::is_string(&c.data_type) { format!(" COLLATE {}", c.collation().sqlite()) } else { String::new() };
                format!("({name} IS NULL), ifnull({name}, 0){collate}")
            })
            .collect();
        let only = index.filter.as_ref().map(|f| format!(" AND ({})", f.1)).unwrap_or_default();
        db.execute_batch(&format!(
            "CREATE UNIQUE INDEX {} ON {} ({}) WHERE ({}){only}",
            quote(&null_storage(table, &index.name)),
            quote(&table.storage()),
            keys.join(", "),
            nullable.join(" OR ")
        ))?;
    }
    db.execute_batch(&format!(
        "CREATE {unique}INDEX {} ON {} ({}){filter}",
        quote(&index_storage(table, &index.name)),
        quote(&table.storage()),
        columns.join(", ")
    ))
}

/// The name of the SQLite index that holds the keys with a NULL in them.
pub(crate) fn null_storage(table: &Object, index: &str) -> String {
    format!("{}{NULLS}", index_storage(table, index))
}

/// What it ends with.
pub(crate) const NULLS: &str = "~nulls";

/// The SQLite index's name.
pub(crate) fn index_storage(table: &Object, index: &str) -> String {
    format!("{}.{index}", table.storage())
}

pub(crate) fn add_check(
    db: &Connection,
    table: &Object,
    name: &str,
    definition: &str,
    sqlite: &str,
    now: i64,
) -> rusqlite::Result<()> {
    let id = insert_object(db, &table.schema, name, "C", table.object_id, Some(definition), now)?;
    super::set_setting_text(db, &format!("check {id}"), sqlite)
}

pub(crate) struct NewForeignKey {
    pub(crate) name: String,
    pub(crate) columns: Vec<i32>,
    pub(crate) referenced: i64,
    pub(crate) referenced_columns: Vec<i32>,
    pub(crate) on_delete: u8,
    pub(crate) on_update: u8,
}

pub(crate) fn add_foreign_key(db: &Connection, table: &Object, fk: &NewForeignKey, now: i64) -> rusqlite::Result<()> {
    let id = insert_object(db, &table.schema, &fk.name, "F", table.object_id, None, now)?;
    db.execute(
        "INSERT INTO \"~fks\" VALUES (?1, ?2, ?3, ?4, ?5, 1)",
        (id, table.object_id, fk.referenced, fk.on_delete, fk.on_update),
    )?;
    for (i, (own, other)) in fk.columns.iter().zip(&fk.referenced_columns).enumerate() {
        db.execute("INSERT INTO \"~fk_columns\" VALUES (?1, ?2, ?3, ?4)", (id, i as i64 + 1, own, other))?;
    }
    Ok(())
}

fn affinity(t: &DataType) -> &'static str {
    match t {
        _ if types::is_string(t) => "TEXT",
        DataType::Real | DataType::Float => "REAL",
        _ if types::storage::is_wide(t) || types::is_binary(t) => "BLOB",
        DataType::UniqueIdentifier | DataType::DateTimeOffset { .. } | DataType::SqlVariant | DataType::Udt(_) => "BLOB",
        _ => "INTEGER",
    }
}

/// The text of the SQLite table behind a table of the catalog.
pub(crate) fn storage_sql(db: &Connection, table: &Object) -> rusqlite::Result<String> {
    let rowid_column: Option<i32> = db
        .prepare_cached("SELECT ic.column_id FROM \"~indexes\" i JOIN \"~index_columns\" ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id WHERE i.object_id = ?1 AND i.in_table = 1")?
        .query_map([table.object_id], |r| r.get(0))?
        .next()
        .transpose()?;
    let mut parts = Vec::new();
    for c in &table.columns {
        if rowid_column == Some(c.column_id) {
            parts.push(format!("{} INTEGER PRIMARY KEY", quote(&c.name)));
            continue;
        }
        let mut part = format!("{} {}", quote(&c.name), affinity(&c.data_type));
        if !c.nullable && c.computed.is_none() {
            part.push_str(" NOT NULL");
        }
        if types::is_string(&c.data_type) {
            part.push_str(&format!(" COLLATE {}", c.collation().sqlite()));
        }
        if c.computed.is_some() {
            let sqlite = super::setting_text(db, &format!("computed {} {}", table.object_id, c.name.to_ascii_lowercase()))?;
            // Always virtual: SQLite cannot add a stored column to a table, and nobody sees the difference.
            part.push_str(&format!(" GENERATED ALWAYS AS ({}) VIRTUAL", sqlite.unwrap_or_default()));
        }
        parts.push(part);
    }
    let checks: Vec<(i64, String)> = db
        .prepare_cached("SELECT object_id, name FROM \"~objects\" WHERE parent_object_id = ?1 AND type = 'C' ORDER BY object_id")?
        .query_map([table.object_id], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (id, name) in checks {
        if let Some(sqlite) = super::setting_text(db, &format!("check {id}"))? {
            parts.push(format!("CONSTRAINT {} CHECK ({sqlite})", quote(&name)));
        }
    }
    parts.extend(foreign_keys_sql(db, table)?);
    Ok(format!("CREATE TABLE {} ({})", quote(&table.storage()), parts.join(", ")))
}

fn foreign_keys_sql(db: &Connection, table: &Object) -> rusqlite::Result<Vec<String>> {
    let keys: Vec<(i64, String, i64, u8, u8)> = db
        .prepare_cached("SELECT f.object_id, o.name, f.referenced_object_id, f.on_delete, f.on_update FROM \"~fks\" f JOIN \"~objects\" o ON o.object_id = f.object_id WHERE f.parent_object_id = ?1 ORDER BY f.object_id")?
        .query_map([table.object_id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut parts = Vec::new();
    for (id, name, referenced, on_delete, on_update) in keys {
        let other = if referenced == table.object_id { Some(table.clone()) } else { super::load::by_id(db, referenced)? };
        let Some(other) = other else { continue };
        let pairs: Vec<(i32, i32)> = db
            .prepare_cached(
                "SELECT parent_column_id, referenced_column_id FROM \"~fk_columns\" WHERE object_id = ?1 ORDER BY ordinal",
            )?
            .query_map([id], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let names = |t: &Object, pick: fn(&(i32, i32)) -> i32| {
            pairs
                .iter()
                .map(|p| t.columns.iter().find(|c| c.column_id == pick(p)).map_or_else(String::new, |c| quote(&c.name)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let action =
            |a: u8| ["NO ACTION", "CASCADE", "SET NULL", "SET DEFAULT"].get(usize::from(a)).copied().unwrap_or("NO ACTION");
        parts.push(format!(
            "CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {} ({}) ON DELETE {} ON UPDATE {}",
            quote(&name),
            names(table, |p| p.0),
            quote(&other.storage()),
            names(&other, |p| p.1),
            action(on_delete),
            action(on_update)
        ));
    }
    Ok(parts)
}

/// Drops a table, its indexes and constraints, from the catalog and from SQLite.
pub(crate) fn drop_table(db: &Connection, table: &Object) -> rusqlite::Result<()> {
    db.execute_batch(&format!("DROP TABLE IF EXISTS {}", quote(&table.storage())))?;
    forget(db, table.object_id)?;
    touch(db)
}

/// Removes an object and what belongs to it from the catalog.
pub(crate) fn forget(db: &Connection, object_id: i64) -> rusqlite::Result<()> {
    for sql in [
        "DELETE FROM \"~fk_columns\" WHERE object_id IN (SELECT object_id FROM \"~fks\" WHERE parent_object_id = ?1)",
        "DELETE FROM \"~fks\" WHERE parent_object_id = ?1",
        "DELETE FROM \"~index_columns\" WHERE object_id = ?1",
        "DELETE FROM \"~indexes\" WHERE object_id = ?1",
        "DELETE FROM \"~columns\" WHERE object_id = ?1",
        "DELETE FROM \"~objects\" WHERE object_id = ?1 OR parent_object_id = ?1",
        "DELETE FROM \"~permissions\" WHERE class = 'OBJECT' AND major_id = ?1",
        "DELETE FROM \"~meta\" WHERE k = 'last_column ' || ?1",
    ] {
        db.prepare_cached(sql)?.execute([object_id])?;
    }
    Ok(())
}

/// Makes the SQLite table that the catalog describes.
pub(crate) fn create_storage(db: &Connection, table: &Object) -> rusqlite::Result<()> {
    db.execute_batch(&storage_sql(db, table)?)?;
    touch(db)
}

/// Gives a column another type in the catalog.
pub(crate) fn set_type(
    db: &Connection,
    table: &Object,
    column: &super::ColumnInfo,
    data_type: &DataType,
    type_name: &str,
    nullable: bool,
    collation: Option<&str>,
) -> rusqlite::Result<()> {
    let (system, user, length, precision, scale) = type_facts(data_type, type_name);
    let collation = types::is_string(data_type).then(|| collation.unwrap_or(super::DEFAULT_COLLATION));
    db.execute(
        "UPDATE \"~columns\" SET type_code = ?3, type_name = ?4, system_type_id = ?5, user_type_id = coalesce((SELECT user_type_id FROM \"~types\" WHERE name = ?4), ?6), max_length = ?7, precision = ?8, scale = ?9, nullable = ?10, collation = ?11 \
         WHERE object_id = ?1 AND column_id = ?2",
        rusqlite::params![table.object_id, column.column_id, types::code(data_type), type_name, system, user, length, precision, scale, nullable, collation],
    )?;
    touch(db)
}
