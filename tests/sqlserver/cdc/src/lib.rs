//! Change data capture as SQL Server does it, over the stand-in's SQLite storage.
//!
//! # Storage
//! A SQL Server database is one SQLite file (WAL mode). The table `dbo.orders` is the SQLite table `"dbo.orders"`: schema, dot, name, as they are
//! written in the catalog. The engine owns the catalog (`sys.*`) and the users' tables; this crate owns the change tables
//! (`"cdc.<instance>_CT"`), the tables behind `cdc.*`, and an internal log that triggers on the captured tables write, so that a rollback (whole or to a
//! savepoint) takes its log rows with it.

/// A column of a source table, as the engine's catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    pub name: String,
    /// Never reused within a table: a column that was dropped and added again has a new one.
    pub column_id: i32,
    /// The T-SQL type as `cdc.captured_columns.column_type` shows it (`nvarchar`, `decimal`, …).
    pub type_name: String,
    /// The T-SQL type as declared, for the change table's definition: `decimal(10,2)`, `nvarchar(max)`.
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
    fn create_table(&mut self, schema: &str, name: &str, columns: &[(String, String, bool)]) -> Result<i64, rusqlite::Error>;
    fn drop_table(&mut self, object_id: i64) -> Result<(), rusqlite::Error>;
    fn source_table(&self, schema: &str, name: &str) -> Result<Option<SourceTable>, rusqlite::Error>;
    fn source_table_by_id(&self, object_id: i64) -> Result<Option<SourceTable>, rusqlite::Error>;
}
