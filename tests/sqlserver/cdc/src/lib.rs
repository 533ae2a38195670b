//! Change data capture as SQL Server does it, over the stand-in's SQLite storage.
//!
//! # Storage
//! A SQL Server database is one SQLite file (WAL mode). The table `dbo.orders` is the SQLite table `"dbo.orders"`: schema, dot, name, as they are
//! written in the catalog. The engine owns the catalog (`sys.*`) and the users' tables; this crate owns the change tables
//! (`"cdc.<instance>_CT"`), the tables behind `cdc.*`, and an internal log that triggers on the captured tables write, so that a rollback (whole or to a
//! savepoint) takes its log rows with it. Internal tables are named `__cdc_*`: without a dot, so that no user's table can collide with them.
//!
//! # The way of a change
//! 1. A statement changes a row of a captured table; a trigger inserts one row into `__cdc_log`, inside the user's transaction.
//! 2. Right before `COMMIT` the engine calls [`stamp_commit`]: the transaction's log rows (a contiguous range, because SQLite has one writer at a time)
//!    get a place in the log: begin, sequence and commit LSN, times and transaction id. One row a transaction, whatever its size.
//! 3. The capture job ([`capture::scan`]) moves stamped transactions in commit order into the change tables and `cdc.lsn_time_mapping`, and forgets
//!    their log rows. Until then nobody sees them in `cdc.*`, exactly as with a log reader that lags.
//!
//! Commit order equals LSN order equals log order because all three steps hold SQLite's write lock, which is what an importer may rely on: once
//! `max(lsn_time_mapping.start_lsn)` is L, no change with a commit LSN at or below L appears any more.
//!
//! # What the engine must do
//! - [`install`] whenever it opens a database (creates the internal tables, idempotent), and [`functions::register`] on every connection.
//! - [`stamp_commit`] before every `COMMIT` of a transaction that may have written (autocommit statements too): it costs two point queries if nothing
//!   was logged.
//! - Run the calls that change things inside a transaction or savepoint of its own and roll it back on an error. [`capture::scan`] and
//!   [`cleanup::cleanup`] open their own transactions if the connection is in autocommit, and join an open one otherwise.
//! - [`ddl::before_alter`] before it alters the storage of a table (SQLite refuses to drop a column that a trigger names), [`ddl::table_altered`]
//!   after, [`ddl::table_dropped`] before it drops a table, and [`ddl::is_tracked`] to refuse `TRUNCATE TABLE` (error 4711).
//! - Ask [`functions::scalar`] for `sys.fn_cdc_*`, [`functions::table_valued`] for `cdc.fn_cdc_get_{all,net}_changes_*`, [`procedures`] for the
//!   `sys.sp_cdc_*` that answer rows, [`jobs`] for the agent's side.
//!
//! # Values
//! LSNs are 10-byte BLOBs; `datetime` is TEXT `YYYY-MM-DD HH:MM:SS.fff`, zoneless server-local time, rounded to 1/300 s; `bit` is 0 or 1; `int` and
//! `bigint` are INTEGER; strings are TEXT; `uniqueidentifier` (job ids) is TEXT in upper case. Users' values are copied as they are stored.

pub mod capture;
pub mod cleanup;
mod commit;
pub mod ddl;
mod error;
pub mod functions;
mod instance;
pub mod jobs;
mod log;
mod lsn;
pub mod procedures;
mod schema;
mod select;
mod time;

pub use commit::{current_lsn, holds_log, stamp_commit};
pub use error::{Error, Result};
pub use instance::{EnableTable, Enabled, disable_table, enable_table};
pub use log::{log_position, relog_updates};
pub use lsn::Lsn;
pub use schema::{disable_db, enable_db, install, is_enabled};
pub use select::{Column, Select};

/// A moment as the server's clock shows it: zoneless, as CDC's own `datetime` columns are. The clock is always the caller's.
pub use jiff::civil::DateTime;

/// A column of a source table, as the engine's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    pub name: String,
    /// Never reused within a table: a column that was dropped and added again has a new one.
    pub column_id: i32,
    /// The T-SQL type as `cdc.captured_columns.column_type` shows it (`nvarchar`, `decimal`, …).
    pub type_name: String,
    /// The T-SQL type as declared, for the change table's definition: `decimal(10,2)`, `nvarchar(max)`, `varchar(10) COLLATE Polish_CS_AS`.
    pub declared_type: String,
    pub is_computed: bool,
    pub is_identity: bool,
    pub nullable: bool,
}

/// A source table, as the engine's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    pub object_id: i64,
    pub schema: String,
    pub name: String,
    /// In `column_id` order.
    pub columns: Vec<SourceColumn>,
    /// Name and columns of the primary key.
    pub primary_key: Option<(String, Vec<String>)>,
    /// Names and columns of the unique indexes.
    pub unique_indexes: Vec<(String, Vec<String>)>,
}

/// What this crate needs of the engine's catalog, so that change tables are tables like any other: `sys.tables` lists them, a SELECT knows their
/// column types.
pub trait Catalog {
    /// Creates a table (SQLite storage and catalog rows). Columns are (name, declared T-SQL type, nullable). Answers its object id.
    ///
    /// The storage must be an ordinary SQLite table (with a rowid) named `schema.name`, its columns named as given.
    fn create_table(&mut self, schema: &str, name: &str, columns: &[(String, String, bool)]) -> rusqlite::Result<i64>;
    fn drop_table(&mut self, object_id: i64) -> rusqlite::Result<()>;
    fn source_table(&self, schema: &str, name: &str) -> rusqlite::Result<Option<SourceTable>>;
    fn source_table_by_id(&self, object_id: i64) -> rusqlite::Result<Option<SourceTable>>;

    /// Changes the declared type of a change table's column, as `ALTER TABLE … ALTER COLUMN` does: stored values are converted.
    fn alter_column(&mut self, object_id: i64, column: &str, declared_type: &str) -> rusqlite::Result<()>;

    /// Creates an index (SQLite storage and, if the engine lists them, catalog rows) over one of the tables that `create_table` made.
    /// Called for the change table's clustered index and the one that supports net changes.
    fn create_index(&mut self, object_id: i64, index: &TableIndex) -> rusqlite::Result<()>;
}

/// An index that [`Catalog::create_index`] is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableIndex {
    pub name: String,
    pub clustered: bool,
    pub unique: bool,
    pub columns: Vec<String>,
}
