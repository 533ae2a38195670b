//! A database in memory, with a clock that the test moves, and a catalog that knows just enough.

use std::cell::Cell;

use cdc::{Catalog, DateTime, EnableTable, Lsn, Select, SourceColumn, SourceTable, TableIndex};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, params};

pub(crate) struct World {
    pub(crate) conn: Connection,
    now: Cell<DateTime>,
}

impl World {
    /// A database that is not enabled yet.
    pub(crate) fn bare() -> World {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(
            "PRAGMA recursive_triggers = OFF;
             CREATE TABLE tables (object_id INTEGER PRIMARY KEY, schema TEXT, name TEXT, key_name TEXT, key_columns TEXT, unique_name TEXT, unique_columns TEXT);
             CREATE TABLE columns (object_id, column_id, name, declared_type, is_computed, nullable);
             CREATE TABLE indexes (object_id, name, columns);
             INSERT INTO tables (object_id, schema, name) VALUES (1000, 'x', 'x');",
        )
        .unwrap();
        cdc::install(&conn, "shop").unwrap();
        cdc::functions::register(&conn).unwrap();
        World { conn, now: Cell::new("2026-03-28T12:00:00".parse().unwrap()) }
    }

    /// A database made by another connection.
    pub(crate) fn over(conn: Connection) -> World {
        cdc::functions::register(&conn).unwrap();
        World { conn, now: Cell::new("2026-03-28T12:00:00".parse().unwrap()) }
    }

    /// A database enabled for CDC.
    pub(crate) fn new() -> World {
        let world = World::bare();
        cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap();
        world
    }

    pub(crate) fn catalog(&self) -> TestCatalog<'_> {
        TestCatalog { conn: &self.conn }
    }

    pub(crate) fn now(&self) -> DateTime {
        self.now.get()
    }

    pub(crate) fn pass_seconds(&self, seconds: i64) {
        self.now.set(self.now().saturating_add(jiff::SignedDuration::from_secs(seconds)));
    }

    /// Creates a table in `dbo`: columns as `name type`, the first of them the primary key if `keyed`. A type ending in `computed` is a computed column.
    pub(crate) fn table(&self, name: &str, columns: &[(&str, &str)], keyed: bool) -> i64 {
        let mut catalog = self.catalog();
        let described: Vec<_> = columns.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned(), true)).collect();
        let object_id = catalog.create_table("dbo", name, &described).unwrap();
        if keyed {
            let key = columns[0].0;
            self.conn
                .execute(
                    "UPDATE tables SET key_name = ?2, key_columns = ?3 WHERE object_id = ?1",
                    params![object_id, format!("PK_{name}"), key],
                )
                .unwrap();
        }
        object_id
    }

    pub(crate) fn enable(&self, name: &str) -> i64 {
        self.enable_with(&EnableTable { source_schema: "dbo".into(), source_name: name.into(), ..EnableTable::default() })
    }

    pub(crate) fn enable_with(&self, options: &EnableTable) -> i64 {
        self.try_enable(options).unwrap().object_id
    }

    /// As the engine does it: a statement is a transaction, undone if it fails.
    pub(crate) fn try_enable(&self, options: &EnableTable) -> cdc::Result<cdc::Enabled> {
        self.conn.execute_batch("BEGIN").unwrap();
        let answer = cdc::enable_table(&self.conn, &mut self.catalog(), options, self.now());
        if answer.is_ok() {
            cdc::stamp_commit(&self.conn, self.now(), self.now()).unwrap();
        }
        self.conn.execute_batch(if answer.is_ok() { "COMMIT" } else { "ROLLBACK" }).unwrap();
        answer
    }

    /// Runs statements in a transaction and commits it.
    pub(crate) fn commit(&self, sql: &str) -> Option<Lsn> {
        self.conn.execute_batch("BEGIN").unwrap();
        self.conn.execute_batch(sql).unwrap();
        let lsn = cdc::stamp_commit(&self.conn, self.now(), self.now()).unwrap();
        self.conn.execute_batch("COMMIT").unwrap();
        lsn
    }

    pub(crate) fn scan(&self) -> cdc::capture::Outcome {
        cdc::capture::scan(&self.conn, &mut self.catalog(), self.now()).unwrap()
    }

    /// Alters a table's storage and catalog with `sql` and `catalog_sql`, as the engine does.
    pub(crate) fn alter(&self, object_id: i64, statement: &str, sql: &str, catalog_sql: &str) -> Option<Lsn> {
        self.conn.execute_batch("BEGIN").unwrap();
        let catalog = self.catalog();
        let old = catalog.source_table_by_id(object_id).unwrap().unwrap();
        cdc::ddl::before_alter(&self.conn, object_id).unwrap();
        self.conn.execute_batch(sql).unwrap();
        self.conn.execute_batch(catalog_sql).unwrap();
        let new = catalog.source_table_by_id(object_id).unwrap().unwrap();
        cdc::ddl::table_altered(&self.conn, &catalog, &old, &new, statement, self.now()).unwrap();
        let lsn = cdc::stamp_commit(&self.conn, self.now(), self.now()).unwrap();
        self.conn.execute_batch("COMMIT").unwrap();
        lsn
    }

    /// Rows of a query, values joined by a blank; BLOBs in hexadecimal.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        let mut statement = self.conn.prepare(sql).unwrap();
        let count = statement.column_count();
        let rows = statement.query_map([], |row| {
            let shown: Vec<String> = (0..count).map(|column| shown(row.get_ref(column).unwrap())).collect();
            Ok(shown.join(" "))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    pub(crate) fn answer(&self, select: &Select) -> Vec<String> {
        let statement = self.conn.prepare(&select.sql).unwrap();
        let names: Vec<&str> = statement.column_names();
        let wanted: Vec<&str> = select.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, wanted, "the SELECT answers the columns that it announces");
        self.rows(&select.sql)
    }

    /// A change table in CDC's order: command id, operation, mask, then the captured columns.
    pub(crate) fn changes(&self, instance: &str) -> Vec<String> {
        let table = format!("\"cdc.{}_CT\"", instance.replace('"', "\"\""));
        let sql = format!("SELECT name FROM pragma_table_info('cdc.{}_CT')", instance.replace('\'', "''"));
        let names: Vec<String> =
            self.conn.prepare(&sql).unwrap().query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        let captured: Vec<String> =
            names[5..names.len() - 1].iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        self.rows(&format!(
            "SELECT \"__$command_id\", \"__$operation\", \"__$update_mask\", {} FROM {table}
             ORDER BY \"__$start_lsn\", \"__$command_id\", \"__$seqval\", \"__$operation\"",
            captured.join(", ")
        ))
    }

    pub(crate) fn max_lsn(&self) -> Option<Lsn> {
        cdc::functions::get_max_lsn(&self.conn).unwrap()
    }

    pub(crate) fn min_lsn(&self, instance: &str) -> Lsn {
        cdc::functions::get_min_lsn(&self.conn, instance).unwrap()
    }

    pub(crate) fn count(&self, table: &str) -> i64 {
        self.conn.query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0)).unwrap()
    }
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Blob(bytes) => format!("x{}", hex::encode(bytes)),
        ValueRef::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
    }
}

pub(crate) fn blob(lsn: Lsn) -> Value {
    Value::Blob(lsn.as_bytes().to_vec())
}

pub(crate) struct TestCatalog<'a> {
    conn: &'a Connection,
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl TestCatalog<'_> {
    fn name_of(&self, object_id: i64) -> rusqlite::Result<String> {
        self.conn.query_row("SELECT schema || '.' || name FROM tables WHERE object_id = ?1", [object_id], |row| row.get(0))
    }
}

impl Catalog for TestCatalog<'_> {
    fn create_table(&mut self, schema: &str, name: &str, columns: &[(String, String, bool)]) -> rusqlite::Result<i64> {
        self.conn.execute("INSERT INTO tables (schema, name) VALUES (?1, ?2)", [schema, name])?;
        let object_id = self.conn.last_insert_rowid();
        for (column_id, (name, kind, nullable)) in columns.iter().enumerate() {
            let computed = kind.ends_with(" computed");
            self.conn.execute(
                "INSERT INTO columns VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![object_id, column_id as i64 + 1, name, kind.trim_end_matches(" computed"), computed, nullable],
            )?;
        }
        let columns: Vec<String> = columns
            .iter()
            .map(|(name, kind, nullable)| match (kind.ends_with(" computed"), nullable) {
                (true, _) => format!("{} AS (upper(\"name\"))", quote(name)),
                (_, true) => quote(name),
                (_, false) => format!("{} NOT NULL", quote(name)),
            })
            .collect();
        self.conn.execute_batch(&format!("CREATE TABLE {} ({})", quote(&format!("{schema}.{name}")), columns.join(", ")))?;
        Ok(object_id)
    }

    fn drop_table(&mut self, object_id: i64) -> rusqlite::Result<()> {
        self.conn.execute_batch(&format!("DROP TABLE {}", quote(&self.name_of(object_id)?)))?;
        self.conn.execute("DELETE FROM tables WHERE object_id = ?1", [object_id])?;
        self.conn.execute("DELETE FROM columns WHERE object_id = ?1", [object_id])?;
        Ok(())
    }

    fn source_table(&self, schema: &str, name: &str) -> rusqlite::Result<Option<SourceTable>> {
        let found: Option<i64> = self
            .conn
            .query_row("SELECT object_id FROM tables WHERE schema = ?1 AND name = ?2 COLLATE NOCASE", [schema, name], |row| {
                row.get(0)
            })
            .optional()?;
        found.map_or(Ok(None), |object_id| self.source_table_by_id(object_id))
    }

    fn source_table_by_id(&self, object_id: i64) -> rusqlite::Result<Option<SourceTable>> {
        let columns = self
            .conn
            .prepare("SELECT column_id, name, declared_type, is_computed, nullable FROM columns WHERE object_id = ?1 ORDER BY column_id")?
            .query_map([object_id], |row| {
                let declared_type: String = row.get(2)?;
                Ok(SourceColumn {
                    column_id: row.get(0)?,
                    name: row.get(1)?,
                    type_name: declared_type.split('(').next().unwrap().to_owned(),
                    declared_type,
                    is_computed: row.get(3)?,
                    is_identity: false,
                    nullable: row.get(4)?,
                })
            })?
            .collect::<Result<_, _>>()?;
        self.conn
            .query_row(
                "SELECT schema, name, key_name, key_columns, unique_name, unique_columns FROM tables WHERE object_id = ?1",
                [object_id],
                |row| {
                    let index = |at: usize| -> rusqlite::Result<Option<(String, Vec<String>)>> {
                        let (name, columns): (Option<String>, Option<String>) = (row.get(at)?, row.get(at + 1)?);
                        Ok(name.zip(columns).map(|(name, columns)| (name, columns.split('|').map(str::to_owned).collect())))
                    };
                    Ok(SourceTable {
                        object_id,
                        schema: row.get(0)?,
                        name: row.get(1)?,
                        columns,
                        primary_key: index(2)?,
                        unique_indexes: index(4)?.into_iter().collect(),
                    })
                },
            )
            .optional()
    }

    fn alter_column(&mut self, object_id: i64, column: &str, declared_type: &str) -> rusqlite::Result<()> {
        self.conn.execute(
            "UPDATE columns SET declared_type = ?3 WHERE object_id = ?1 AND name = ?2",
            params![object_id, column, declared_type],
        )?;
        if declared_type.starts_with("nvarchar") {
            let (table, column) = (quote(&self.name_of(object_id)?), quote(column));
            self.conn.execute_batch(&format!("UPDATE {table} SET {column} = CAST({column} AS TEXT)"))?;
        }
        Ok(())
    }

    fn create_index(&mut self, object_id: i64, index: &TableIndex) -> rusqlite::Result<()> {
        let table = self.name_of(object_id)?;
        let columns: Vec<String> = index.columns.iter().map(|column| quote(column)).collect();
        let unique = if index.unique { "UNIQUE " } else { "" };
        self.conn.execute("INSERT INTO indexes VALUES (?1, ?2, ?3)", params![object_id, index.name, index.columns.join(", ")])?;
        self.conn.execute_batch(&format!(
            "CREATE {unique}INDEX {} ON {} ({})",
            quote(&format!("{table}.{}", index.name)),
            quote(&table),
            columns.join(", ")
        ))
    }
}
