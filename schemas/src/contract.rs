//! Table contracts: JSON Schema files in the user's `schemas/tables/`, one a table, written by `tributary init` from the catalog and edited by people.
//!
//! A contract both describes the table to the joiner (columns, types, key) and holds every published row to what the team agreed on.

use std::sync::Arc;

use crate::table::TableSchema;

/// A table's contract.
#[derive(Debug, Clone)]
pub struct Contract {
    pub table: Arc<TableSchema>,
}
