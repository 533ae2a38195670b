//! The catalog of one database: what the `sys.*` views show and what the translator knows of tables.
//!
//! It lies in the database's own SQLite file, in tables whose names begin with `~`, so that DDL rolls back with its transaction, and sessions see
//! each other's DDL when it commits. Every change of it gives the database a new version (unique in the process), by which sessions know that what
//! they remember is stale.

pub(crate) mod alias;
pub(crate) mod capture;
pub(crate) mod define;
mod load;
pub(crate) mod rewrite;
pub(crate) mod security;
pub(crate) mod views;

use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;
use tds::{DataType, Length};

use crate::types;

pub(crate) use load::{columns_of_index, index_of_columns, load, object_id_of, unique_columns};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ColumnInfo {
    pub(crate) name: String,
    pub(crate) column_id: i32,
    pub(crate) data_type: DataType,
    /// As `sys.types` names it: `nvarchar`, `sysname`, `timestamp`.
    pub(crate) type_name: String,
    pub(crate) nullable: bool,
    pub(crate) identity: Option<(i64, i64)>,
    pub(crate) computed: Option<String>,
    pub(crate) persisted: bool,
    pub(crate) default: Option<String>,
    pub(crate) collation: Option<String>,
}

impl ColumnInfo {
    pub(crate) fn is_rowversion(&self) -> bool {
        self.type_name == "timestamp"
    }
    /// Whether an INSERT may give it a value.
    pub(crate) fn insertable(&self) -> bool {
        self.computed.is_none() && !self.is_rowversion()
    }
    pub(crate) fn collation(&self) -> Collation {
        collation_of(self.collation.as_deref())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Table,
    View,
}

/// A table or view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) object_id: i64,
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) kind: ObjectKind,
    pub(crate) columns: Vec<ColumnInfo>,
    pub(crate) primary_key: Vec<String>,
    /// Made by the server itself (`cdc.*`).
    pub(crate) shipped: bool,
    /// A view's query.
    pub(crate) definition: Option<String>,
}

impl Object {
    pub(crate) fn column(&self, name: &str) -> Option<&ColumnInfo> {
        self.columns.iter().find(|c| same(&c.name, name))
    }
    /// The SQLite table's name.
    pub(crate) fn storage(&self) -> String {
        if self.schema.is_empty() { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }
}

/// How text compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Case-insensitive: the database's default.
    Insensitive,
    Sensitive,
    Binary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Collation {
    pub(crate) order: Order,
    /// As clients are told it; `None`: the database's.
    pub(crate) wire: Option<tds::Collation>,
}

impl Collation {
    pub(crate) const DEFAULT: Collation = Collation { order: Order::Insensitive, wire: None };

    /// The name under which SQLite knows it.
    pub(crate) fn sqlite(self) -> &'static str {
        match self.order {
            Order::Insensitive => "CI",
            Order::Sensitive => "CS",
            Order::Binary => "BIN2",
        }
    }

    /// The encoding of non-Unicode text, where it is not the database's.
    pub(crate) fn encoding(self) -> Option<tds::Collation> {
        self.wire.filter(|w| w.code_page() != 1252)
    }
}

pub(crate) const DEFAULT_COLLATION: &str = "SQL_Latin1_General_CP1_CI_AS";

pub(crate) fn collation_of(name: Option<&str>) -> Collation {
    let Some(name) = name else { return Collation::DEFAULT };
    let upper = name.to_ascii_uppercase();
    let order = if upper.contains("_BIN") {
        Order::Binary
    } else if upper.contains("_CS") {
        Order::Sensitive
    } else {
        Order::Insensitive
    };
    Collation { order, wire: tds::Collation::named(name).filter(|w| *w != tds::Collation::LATIN1_GENERAL_CP1_CI_AS) }
}

/// Whether two identifiers are the same one: the catalog's collation does not tell cases apart.
pub(crate) fn same(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (!a.is_ascii() && a.to_lowercase() == b.to_lowercase())
}

/// An identifier, quoted for SQLite.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal of SQLite.
pub(crate) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

static VERSION: AtomicI64 = AtomicI64::new(1);

/// The database's catalog has changed: whoever remembers some of it must look again.
pub(crate) fn touch(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO \"~meta\" (k, v) VALUES ('version', ?1)")?
        .execute([VERSION.fetch_add(1, Ordering::Relaxed)])?;
    Ok(())
}

pub(crate) fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT v FROM \"~meta\" WHERE k = 'version'")?.query_row([], |r| r.get(0))
}

/// Creates the catalog's tables in a new database; does nothing in an old one but take a version unused in this process.
pub(crate) fn install(db: &Connection, now: i64) -> rusqlite::Result<()> {
    db.execute_batch(
        r#"CREATE TABLE IF NOT EXISTS "~meta" (k TEXT PRIMARY KEY, v) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~schemas" (schema_id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE UNIQUE, principal_id INTEGER NOT NULL);
        CREATE TABLE IF NOT EXISTS "~objects" (object_id INTEGER PRIMARY KEY, schema TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE, type TEXT NOT NULL,
            parent_object_id INTEGER NOT NULL DEFAULT 0, create_date INTEGER NOT NULL, modify_date INTEGER NOT NULL, is_ms_shipped INTEGER NOT NULL DEFAULT 0, definition TEXT,
            UNIQUE (schema, name));
        CREATE INDEX IF NOT EXISTS "~objects_parent" ON "~objects" (parent_object_id);
        CREATE TABLE IF NOT EXISTS "~columns" (object_id INTEGER NOT NULL, column_id INTEGER NOT NULL, name TEXT NOT NULL COLLATE NOCASE, type_code INTEGER NOT NULL, type_name TEXT NOT NULL,
            system_type_id INTEGER NOT NULL, user_type_id INTEGER NOT NULL, max_length INTEGER NOT NULL, precision INTEGER NOT NULL, scale INTEGER NOT NULL, nullable INTEGER NOT NULL,
            seed INTEGER, increment INTEGER, last_value INTEGER, computed TEXT, persisted INTEGER NOT NULL DEFAULT 0, default_id INTEGER NOT NULL DEFAULT 0, default_text TEXT, collation TEXT,
            rowguid INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (object_id, column_id)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~indexes" (object_id INTEGER NOT NULL, index_id INTEGER NOT NULL, name TEXT COLLATE NOCASE, type INTEGER NOT NULL, is_unique INTEGER NOT NULL,
            is_primary_key INTEGER NOT NULL, is_unique_constraint INTEGER NOT NULL, filter TEXT, in_table INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (object_id, index_id)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~index_columns" (object_id INTEGER NOT NULL, index_id INTEGER NOT NULL, index_column_id INTEGER NOT NULL, column_id INTEGER NOT NULL, key_ordinal INTEGER NOT NULL,
            descending INTEGER NOT NULL, included INTEGER NOT NULL, PRIMARY KEY (object_id, index_id, index_column_id)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~fks" (object_id INTEGER PRIMARY KEY, parent_object_id INTEGER NOT NULL, referenced_object_id INTEGER NOT NULL, on_delete INTEGER NOT NULL,
            on_update INTEGER NOT NULL, key_index_id INTEGER NOT NULL);
        CREATE TABLE IF NOT EXISTS "~fk_columns" (object_id INTEGER NOT NULL, ordinal INTEGER NOT NULL, parent_column_id INTEGER NOT NULL, referenced_column_id INTEGER NOT NULL,
            PRIMARY KEY (object_id, ordinal)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~principals" (principal_id INTEGER PRIMARY KEY, name TEXT NOT NULL COLLATE NOCASE UNIQUE, type TEXT NOT NULL, login TEXT COLLATE NOCASE, create_date INTEGER NOT NULL);
        CREATE TABLE IF NOT EXISTS "~members" (role_id INTEGER NOT NULL, member_id INTEGER NOT NULL, PRIMARY KEY (role_id, member_id)) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS "~permissions" (grantee INTEGER NOT NULL, class TEXT NOT NULL, major_id INTEGER NOT NULL, permission TEXT NOT NULL, state TEXT NOT NULL,
            PRIMARY KEY (grantee, class, major_id, permission)) WITHOUT ROWID;"#,
    )?;
    db.execute_batch(alias::TABLE)?;
    for (id, name) in [(1, "dbo"), (2, "guest"), (3, "INFORMATION_SCHEMA"), (4, "sys")] {
        db.execute("INSERT OR IGNORE INTO \"~schemas\" VALUES (?1, ?2, ?1)", (id, name))?;
        db.execute(
            "INSERT OR IGNORE INTO \"~principals\" VALUES (?1, ?2, 'S', ?3, ?4)",
            (id, name, (id == 1).then_some("sa"), now),
        )?;
    }
    for (id, name) in [
        (0, "public"),
        (16384, "db_owner"),
        (16385, "db_accessadmin"),
        (16386, "db_securityadmin"),
        (16387, "db_ddladmin"),
        (16389, "db_backupoperator"),
        (16390, "db_datareader"),
        (16391, "db_datawriter"),
        (16392, "db_denydatareader"),
        (16393, "db_denydatawriter"),
    ] {
        db.execute("INSERT OR IGNORE INTO \"~principals\" VALUES (?1, ?2, 'R', NULL, ?3)", (id, name, now))?;
    }
    for (key, value) in
        [("next_id", 245_575_913i64), ("created", now), ("rowversion", 2000), ("snapshot", 0), ("rcsi", 0), ("cdc", 0)]
    {
        db.execute("INSERT OR IGNORE INTO \"~meta\" VALUES (?1, ?2)", (key, value))?;
    }
    let fork = uuid::Uuid::new_v4().to_string();
    for (key, value) in [
        ("database_guid", uuid::Uuid::new_v4().to_string()),
        ("family_guid", uuid::Uuid::new_v4().to_string()),
        ("first_recovery_fork_guid", fork.clone()),
        ("recovery_fork_guid", fork),
    ] {
        db.execute("INSERT OR IGNORE INTO \"~meta\" VALUES (?1, ?2)", (key, value))?;
    }
    touch(db)
}

pub(crate) fn setting(db: &Connection, key: &str) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT v FROM \"~meta\" WHERE k = ?1")?.query_row([key], |r| r.get(0))
}

pub(crate) fn set_setting(db: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO \"~meta\" (k, v) VALUES (?1, ?2)")?.execute((key, value))?;
    Ok(())
}

/// A new object id: ascending, with gaps, as SQL Server's are.
pub(crate) fn next_id(db: &Connection) -> rusqlite::Result<i64> {
    let id = setting(db, "next_id")?;
    set_setting(db, "next_id", id + 16)?;
    Ok(id)
}

/// What `sys.columns` says of a type: system type, user type, length in bytes, precision, scale.
pub(crate) fn type_facts(t: &DataType, type_name: &str) -> (i32, i32, i32, u8, u8) {
    let simple = |id, length, precision, scale| (id, id, length, precision, scale);
    let bytes = |l: &Length, unit: i32| match l {
        Length::Limited(n) => i32::from(*n) * unit,
        Length::Max => -1,
    };
    match t {
        _ if type_name == "timestamp" => (189, 189, 8, 0, 0),
        _ if type_name == "sysname" => (231, 256, 256, 0, 0),
        _ if type_name == "json" => (244, 244, -1, 0, 0),
        _ if types::dimensions(type_name).is_some() => (165, 255, 8 + 4 * types::dimensions(type_name).unwrap_or(0), 0, 0),
        DataType::Bit => simple(104, 1, 1, 0),
        DataType::TinyInt => simple(48, 1, 3, 0),
        DataType::SmallInt => simple(52, 2, 5, 0),
        DataType::Int => simple(56, 4, 10, 0),
        DataType::BigInt => simple(127, 8, 19, 0),
        DataType::Real => simple(59, 4, 24, 0),
        DataType::Float => simple(62, 8, 53, 0),
        DataType::Decimal { precision, scale } => simple(106, decimal_bytes(*precision), *precision, *scale),
        DataType::Numeric { precision, scale } => simple(108, decimal_bytes(*precision), *precision, *scale),
        DataType::Money => simple(60, 8, 19, 4),
        DataType::SmallMoney => simple(122, 4, 10, 4),
        DataType::Char(n) => simple(175, i32::from(*n), 0, 0),
        DataType::VarChar(l) => simple(167, bytes(l, 1), 0, 0),
        DataType::NChar(n) => simple(239, i32::from(*n) * 2, 0, 0),
        DataType::NVarChar(l) => simple(231, bytes(l, 2), 0, 0),
        DataType::Text => simple(35, 16, 0, 0),
        DataType::NText => simple(99, 16, 0, 0),
        DataType::Binary(n) => simple(173, i32::from(*n), 0, 0),
        DataType::VarBinary(l) => simple(165, bytes(l, 1), 0, 0),
        DataType::Image => simple(34, 16, 0, 0),
        DataType::UniqueIdentifier => simple(36, 16, 0, 0),
        DataType::Date => simple(40, 3, 10, 0),
        DataType::Time { scale } => {
            simple(41, 3 + i32::from(*scale > 2) + i32::from(*scale > 4), if *scale == 0 { 8 } else { 9 + scale }, *scale)
        }
        DataType::DateTime => simple(61, 8, 23, 3),
        DataType::SmallDateTime => simple(58, 4, 16, 0),
        DataType::DateTime2 { scale } => {
            simple(42, 6 + i32::from(*scale > 2) + i32::from(*scale > 4), if *scale == 0 { 19 } else { 20 + scale }, *scale)
        }
        DataType::DateTimeOffset { scale } => {
            simple(43, 8 + i32::from(*scale > 2) + i32::from(*scale > 4), if *scale == 0 { 26 } else { 27 + scale }, *scale)
        }
        DataType::Xml => simple(241, -1, 0, 0),
        DataType::SqlVariant => simple(98, 8016, 0, 0),
        DataType::Udt("hierarchyid") => (240, 128, 892, 0, 0),
        DataType::Udt("geometry") => (240, 129, -1, 0, 0),
        DataType::Udt(_) => (240, 130, -1, 0, 0),
    }
}

fn decimal_bytes(precision: u8) -> i32 {
    match precision {
        0..=9 => 5,
        10..=19 => 9,
        20..=28 => 13,
        _ => 17,
    }
}

pub(crate) fn setting_text(db: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    use rusqlite::OptionalExtension;
    db.prepare_cached("SELECT v FROM \"~meta\" WHERE k = ?1")?.query_row([key], |r| r.get(0)).optional()
}

pub(crate) fn set_setting_text(db: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO \"~meta\" (k, v) VALUES (?1, ?2)")?.execute((key, value))?;
    Ok(())
}
