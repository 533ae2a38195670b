//! The tables: CDC's own, which T-SQL sees as `cdc.*`, and the internal ones behind them.
//!
//! CDC's own are made through the [`Catalog`], so that the engine knows their T-SQL types; the internal ones are plain SQLite.

use rusqlite::{Connection, OptionalExtension as _};

use crate::select::storage;
use crate::{Catalog, DateTime, Error, Result, instance};

/// The internal tables.
///
/// `__cdc_log` holds one row a change: `shape` says which column of which table its value slots are, `op` is 1 delete, 2 insert, 3 update, or
/// [`crate::log::OP_ENABLE`] or [`crate::log::OP_DDL`]; slot k is `o<k>` (old value) and `n<k>` (new value). It gets more slots when a wider table is enabled. AUTOINCREMENT, so
/// that a sequence number never comes back: `__cdc_tran` and `__cdc_instance` refer to ranges of it.
const INTERNAL: &str = "
CREATE TABLE IF NOT EXISTS __cdc_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    database TEXT NOT NULL,
    enabled INTEGER NOT NULL DEFAULT 0,
    address INTEGER NOT NULL DEFAULT 328,
    stamped INTEGER NOT NULL DEFAULT 0,
    transaction_id INTEGER NOT NULL DEFAULT 901,
    quiet_since TEXT,
    failure_number INTEGER,
    failure_message TEXT
);
CREATE TABLE IF NOT EXISTS __cdc_log (seq INTEGER PRIMARY KEY AUTOINCREMENT, shape INTEGER NOT NULL, op INTEGER NOT NULL, o0, n0);
CREATE TABLE IF NOT EXISTS __cdc_tran (
    commit_lsn BLOB PRIMARY KEY, begin_lsn BLOB NOT NULL, address INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
    begin_time TEXT NOT NULL, end_time TEXT NOT NULL, tran_id BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __cdc_own_table (object_id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS __cdc_shape (id INTEGER PRIMARY KEY AUTOINCREMENT, source_object_id INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS __cdc_shape_column (
    shape INTEGER NOT NULL, slot INTEGER NOT NULL, column_id INTEGER NOT NULL, is_key INTEGER NOT NULL, PRIMARY KEY (shape, slot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __cdc_instance (
    object_id INTEGER PRIMARY KEY, source_object_id INTEGER NOT NULL, from_seq INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS __cdc_instance_column (
    object_id INTEGER NOT NULL, ordinal INTEGER NOT NULL, column_id INTEGER NOT NULL, name TEXT NOT NULL, declared_type TEXT NOT NULL,
    PRIMARY KEY (object_id, ordinal)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __cdc_ddl (
    seq INTEGER PRIMARY KEY, source_object_id INTEGER NOT NULL, command TEXT NOT NULL, ddl_time TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS __cdc_ddl_column (
    seq INTEGER NOT NULL, column_id INTEGER NOT NULL, type_name TEXT NOT NULL, declared_type TEXT NOT NULL, PRIMARY KEY (seq, column_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __cdc_job (
    job_type TEXT PRIMARY KEY, job_id TEXT NOT NULL, running INTEGER NOT NULL,
    maxtrans INTEGER NOT NULL, maxscans INTEGER NOT NULL, continuous INTEGER NOT NULL, pollinginterval INTEGER NOT NULL,
    retention INTEGER NOT NULL, threshold INTEGER NOT NULL,
    active_maxtrans INTEGER NOT NULL, active_maxscans INTEGER NOT NULL, active_pollinginterval INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS __cdc_session (
    session_id INTEGER PRIMARY KEY AUTOINCREMENT, start_time TEXT NOT NULL, end_time TEXT NOT NULL, error_count INTEGER NOT NULL,
    start_lsn TEXT NOT NULL, end_lsn TEXT NOT NULL, tran_count INTEGER NOT NULL, last_commit_lsn TEXT NOT NULL, last_commit_time TEXT,
    log_record_count INTEGER NOT NULL, schema_change_count INTEGER NOT NULL, command_count INTEGER NOT NULL,
    first_begin_cdc_lsn TEXT NOT NULL, last_commit_cdc_lsn TEXT NOT NULL, last_commit_cdc_time TEXT, latency INTEGER NOT NULL,
    empty_scan_count INTEGER NOT NULL, failed_sessions_count INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS __cdc_error (
    id INTEGER PRIMARY KEY AUTOINCREMENT, session_id INTEGER NOT NULL, phase_number INTEGER NOT NULL, entry_time TEXT NOT NULL,
    error_number INTEGER NOT NULL, error_message TEXT NOT NULL
);
";

/// CDC's own tables: name, then (column, declared type, nullable).
type Definition = (&'static str, &'static [(&'static str, &'static str, bool)]);
const TABLES: [Definition; 5] = [
    (
        "change_tables",
        &[
            ("object_id", "int", false),
            ("version", "int", true),
            ("source_object_id", "int", true),
            ("capture_instance", "nvarchar(128)", false),
            ("start_lsn", "binary(10)", true),
            ("end_lsn", "binary(10)", true),
            ("supports_net_changes", "bit", true),
            ("has_drop_pending", "bit", true),
            ("role_name", "nvarchar(128)", true),
            ("index_name", "nvarchar(128)", true),
            ("filegroup_name", "nvarchar(128)", true),
            ("create_date", "datetime", true),
            ("partition_switch", "bit", false),
        ],
    ),
    (
        "captured_columns",
        &[
            ("object_id", "int", false),
            ("column_name", "nvarchar(128)", false),
            ("column_id", "int", true),
            ("column_type", "nvarchar(128)", false),
            ("column_ordinal", "int", false),
            ("is_computed", "bit", true),
            ("masking_function", "nvarchar(4000)", true),
        ],
    ),
    (
        "index_columns",
        &[
            ("object_id", "int", false),
            ("column_name", "nvarchar(128)", false),
            ("index_ordinal", "tinyint", false),
            ("column_id", "int", false),
        ],
    ),
    (
        "lsn_time_mapping",
        &[
            ("start_lsn", "binary(10)", false),
            ("tran_begin_time", "datetime", true),
            ("tran_end_time", "datetime", true),
            ("tran_id", "varbinary(10)", true),
            ("tran_begin_lsn", "binary(10)", true),
        ],
    ),
    (
        "ddl_history",
        &[
            ("source_object_id", "int", true),
            ("object_id", "int", false),
            ("required_column_update", "bit", true),
            ("ddl_command", "nvarchar(max)", true),
            ("ddl_lsn", "binary(10)", false),
            ("ddl_time", "datetime", true),
        ],
    ),
];

/// Indexes of CDC's own tables: table, name, clustered, unique, columns.
const INDEXES: [(&str, &str, bool, bool, &[&str]); 6] = [
    ("change_tables", "change_tables_clustered_idx", true, true, &["object_id"]),
    ("captured_columns", "captured_columns_clustered_idx", true, true, &["object_id", "column_ordinal"]),
    ("index_columns", "index_columns_clustered_idx", true, true, &["object_id", "index_ordinal"]),
    ("lsn_time_mapping", "lsn_time_mapping_clustered_idx", true, true, &["start_lsn"]),
    ("lsn_time_mapping", "lsn_time_mapping_nonunique_idx", false, false, &["tran_end_time"]),
    // Two statements of one transaction share a commit LSN, so this one is not unique.
    ("ddl_history", "ddl_history_clustered_idx", true, false, &["object_id", "ddl_lsn"]),
];

/// Creates the internal tables in a database, if it has none, and notes its name for messages and jobs.
pub fn install(conn: &Connection, database: &str) -> Result<()> {
    conn.execute_batch(INTERNAL)?;
    conn.execute(
        "INSERT INTO __cdc_state (id, database) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET database = ?1 WHERE database <> ?1",
        [database],
    )?;
    Ok(())
}

/// Whether the database is enabled for CDC (`sys.databases.is_cdc_enabled`).
pub fn is_enabled(conn: &Connection) -> Result<bool> {
    Ok(conn.prepare_cached("SELECT enabled FROM __cdc_state")?.query_row([], |row| row.get(0))?)
}

pub(crate) fn database_name(conn: &Connection) -> Result<String> {
    Ok(conn.query_row("SELECT database FROM __cdc_state", [], |row| row.get(0))?)
}

/// Refuses with 22901 what needs CDC.
pub(crate) fn require_enabled(conn: &Connection) -> Result<()> {
    if is_enabled(conn)? { Ok(()) } else { Err(Error::DatabaseNotEnabled { database: database_name(conn)? }) }
}

/// `sys.sp_cdc_enable_db`.
pub fn enable_db(conn: &Connection, catalog: &mut dyn Catalog, now: DateTime) -> Result<()> {
    if is_enabled(conn)? {
        return Err(Error::DatabaseAlreadyEnabled { database: database_name(conn)? });
    }
    for (name, columns) in TABLES {
        let columns: Vec<_> = columns.iter().map(|(name, kind, null)| ((*name).to_owned(), (*kind).to_owned(), *null)).collect();
        let object_id = catalog.create_table("cdc", name, &columns)?;
        for (table, index, clustered, unique, columns) in INDEXES {
            if table == name {
                let columns = columns.iter().map(|column| (*column).to_owned()).collect();
                catalog.create_index(object_id, &crate::TableIndex { name: index.to_owned(), clustered, unique, columns })?;
            }
        }
        conn.execute("INSERT INTO __cdc_own_table VALUES (?1)", [object_id])?;
    }
    conn.execute("UPDATE __cdc_state SET enabled = 1, quiet_since = ?1", [crate::time::stored(now)])?;
    Ok(())
}

/// `sys.sp_cdc_disable_db`: every capture instance goes, with the jobs and what they recorded.
pub fn disable_db(conn: &Connection, catalog: &mut dyn Catalog) -> Result<()> {
    require_enabled(conn)?;
    instance::drop_all(conn, catalog)?;
    let own: Vec<i64> = conn
        .prepare("SELECT object_id FROM __cdc_own_table")?
        .query_map([], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for object_id in own {
        catalog.drop_table(object_id)?;
    }
    conn.execute_batch(
        "DELETE FROM __cdc_own_table; DELETE FROM __cdc_job; DELETE FROM __cdc_session; DELETE FROM __cdc_error;
         DELETE FROM __cdc_log; DELETE FROM __cdc_tran; DELETE FROM __cdc_ddl; DELETE FROM __cdc_ddl_column;
         DELETE FROM __cdc_shape_column; DELETE FROM __cdc_shape;
         UPDATE __cdc_state SET enabled = 0, quiet_since = NULL, failure_number = NULL, failure_message = NULL;",
    )?;
    Ok(())
}

/// The object id of a change table and of its source, by the instance's name.
pub(crate) fn find_instance(conn: &Connection, name: &str) -> Result<Option<InstanceRow>> {
    let sql = format!(
        "SELECT object_id, source_object_id, capture_instance, supports_net_changes, start_lsn FROM {} WHERE capture_instance = ?1 COLLATE NOCASE",
        storage("cdc", "change_tables")
    );
    let found = conn
        .prepare_cached(&sql)?
        .query_row([name], |row| {
            Ok(InstanceRow {
                object_id: row.get(0)?,
                source_object_id: row.get(1)?,
                name: row.get(2)?,
                supports_net_changes: row.get(3)?,
                start_lsn: row.get(4)?,
            })
        })
        .optional()?;
    Ok(found)
}

/// What `cdc.change_tables` says of an instance.
pub(crate) struct InstanceRow {
    pub(crate) object_id: i64,
    pub(crate) source_object_id: i64,
    pub(crate) name: String,
    pub(crate) supports_net_changes: bool,
    pub(crate) start_lsn: crate::Lsn,
}
