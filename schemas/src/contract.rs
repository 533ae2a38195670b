//! Table contracts: JSON Schema files in the user's `schemas/tables/`, one a table, written by `tributary init` from the catalog and edited by people.
//!
//! A contract both describes the table to the joiner (columns, types, key) and holds every published row to what the team agreed on.
//!
//! ```json
//! {
//!   "$schema": "https://json-schema.org/draft/2020-12/schema",
//!   "title": "dbo.orders",
//!   "x-table": "dbo.orders",
//!   "x-version": 1,
//!   "x-key": ["id"],
//!   "type": "object",
//!   "properties": {
//!     "id": {"type": "integer", "minimum": -2147483648, "maximum": 2147483647, "x-sql-type": "int"},
//!     "code": {"type": ["string", "null"], "maxLength": 20, "x-sql-type": "varchar(20)", "x-case-insensitive": true},
//!     "total": {"type": "string", "pattern": "^-?[0-9]{1,8}\\.[0-9]{2}$", "x-sql-type": "decimal(10,2)"}
//!   },
//!   "required": ["id", "code", "total"],
//!   "additionalProperties": false
//! }
//! ```
//! - The order of the properties is the order of the columns.
//! - `x-table`, `x-key` and each property's `x-sql-type` are required: they are what the joiner reads. `x-case-insensitive` says that the column's collation
//!   takes text that differs in case alone for equal.
//! - `null` in a property's `type` is what makes the column nullable; leaving it out of a column that the database lets be NULL is a stricter contract.
//! - `x-omitted` at the root lists columns that are left out on purpose, and `x-never-null: true` at a property says that the contract forbids NULL on purpose
//!   though the table lets it be: without them, both are differences from the table that a new version would take over.
//! - `x-version` counts the contract's versions from 1, and is 1 where it is left out: see [`versions`].
//! - Everything else of JSON Schema 2020-12 may be added, at a property or at the root.
//!
//! # Why the check is fast and still the schema's
//! A value that conforms to `x-sql-type` conforms to every keyword that [`keywords::of_type`] writes for that type, because those keywords are drawn from
//! the type; so these are checked on the [`Value`](crate::value::Value) itself, without making JSON ([`check`]). Integer ranges and lengths that somebody has
//! tightened are checked natively too. Only what remains (a pattern, an enum, `if`/`then` …) is compiled by the `jsonschema` crate: by column where it
//! stands at a column, over the whole row only where the root has such keywords or a column refers to `$defs`.

mod check;
mod compare;
mod error;
mod evolve;
mod keywords;
mod parse;
pub mod versions;
mod write;

use std::sync::Arc;

pub use check::Violation;
pub use compare::{Compatibility, Difference};
pub use error::ContractError;
pub use evolve::EvolveError;
pub use versions::Versions;

use crate::table::{SourceName, TableName, TableSchema};

/// A table's contract.
#[derive(Debug, Clone)]
pub struct Contract {
    pub table: Arc<TableSchema>,
    /// `x-version`.
    pub version: u32,
    /// `x-omitted`.
    omitted: Arc<[String]>,
    document: Arc<serde_json::Value>,
    columns: Arc<[check::ColumnCheck]>,
    row: Option<Arc<jsonschema::Validator>>,
}

impl Contract {
    /// The same, with its table called as the one of several sources that it is of.
    pub fn of(self, source: &SourceName) -> Self {
        let name = self.table.name.clone().of(source);
        Self { table: Arc::new(TableSchema { name, ..(*self.table).clone() }), ..self }
    }

    /// The contract that says what the catalog says.
    pub fn from_table(table: &TableSchema) -> Self {
        let columns =
            table.columns.iter().map(|column| check::ColumnCheck::of_column(column.sql_type, column.nullable)).collect();
        let document = Arc::new(write::document(table));
        Self { table: Arc::new(table.clone()), version: 1, omitted: Arc::new([]), document, columns, row: None }
    }

    /// Reads a contract. `file_name` is for messages alone.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, ContractError> {
        parse::parse(file_name, text)
    }

    /// Whether a column is left out on purpose.
    pub fn omits(&self, column: &str) -> bool {
        self.omitted.iter().any(|name| name == column)
    }

    /// The contract as JSON Schema.
    pub fn to_json(&self) -> &serde_json::Value {
        &self.document
    }

    /// The contract as the text of its file: one line a property.
    pub fn to_text(&self) -> String {
        write::text(&self.document)
    }

    /// The name of a table's contract file: `dbo.orders.json`. Characters that file systems dislike are percent-encoded.
    pub fn file_name(table: &TableName) -> String {
        let mut name = String::new();
        for c in table.to_string().chars() {
            if c.is_control() || matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '%') {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    name.push_str(&format!("%{byte:02X}"));
                }
            } else {
                name.push(c);
            }
        }
        name + ".json"
    }
}

#[cfg(test)]
mod tests;
