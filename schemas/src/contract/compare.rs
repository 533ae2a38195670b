//! A contract held against the live catalog, before anything is published.

use std::fmt;

use super::{Contract, keywords};
use crate::table::{SqlType, TableSchema};

/// A way in which the live table differs from its contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The contract has a column that the table, or its capture instance, does not have.
    MissingColumn {
        column: String,
    },
    /// The table has a column that the contract does not have: it is not published.
    NewColumn {
        column: String,
    },
    ChangedType {
        column: String,
        contract: SqlType,
        live: SqlType,
    },
    /// NULL is possible in the table and a violation in the contract.
    NullPossible {
        column: String,
    },
    /// The collation's view of case differs.
    ChangedCase {
        column: String,
        live_case_insensitive: bool,
    },
    ChangedKey {
        contract: Vec<String>,
        live: Vec<String>,
    },
}

impl Difference {
    /// Nothing may be published: rows would be missing columns, be written differently than the contract says, or be told apart differently. Other
    /// differences are worth a word, and every row is still held to the contract.
    pub fn breaks(&self) -> bool {
        match self {
            Self::MissingColumn { .. } | Self::ChangedKey { .. } | Self::ChangedCase { .. } => true,
            Self::ChangedType { contract, live, .. } => !same_form(*contract, *live),
            Self::NewColumn { .. } | Self::NullPossible { .. } => false,
        }
    }
}

/// Values of both types are written alike, so that a value of the live type which keeps the contract's limits is one of the contract's type.
fn same_form(contract: SqlType, live: SqlType) -> bool {
    use SqlType::*;
    let text = |sql_type| matches!(sql_type, Char(_) | VarChar(_) | NChar(_) | NVarChar(_) | Text | NText);
    let bytes = |sql_type| matches!(sql_type, Binary(_) | VarBinary(_) | Image | RowVersion);
    let both = |test: &dyn Fn(SqlType) -> bool| test(contract) && test(live);
    if both(&|sql_type| keywords::integer_range(sql_type).is_some()) || both(&text) || both(&bytes) {
        return true;
    }
    match (keywords::decimal_digits(contract), keywords::decimal_digits(live)) {
        (Some((_, contract)), Some((_, live))) => contract == live,
        _ => contract == live,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingColumn { column } => {
                write!(f, "column {column} is in the contract and not in the table's capture instance")
            }
            Self::NewColumn { column } => {
                write!(f, "column {column} is in the table and not in the contract: it is not published")
            }
            Self::ChangedType { column, contract, live } => {
                write!(f, "column {column} is {contract} in the contract and {live} in the table")
            }
            Self::NullPossible { column } => write!(f, "column {column} may be NULL in the table and not in the contract"),
            Self::ChangedCase { column, live_case_insensitive } => {
                let word = if *live_case_insensitive { "case-insensitive" } else { "case-sensitive" };
                write!(f, "column {column} has a {word} collation, the contract says otherwise (x-case-insensitive)")
            }
            Self::ChangedKey { contract, live } => {
                write!(f, "the key is ({}) in the contract and ({}) in the table", contract.join(", "), live.join(", "))
            }
        }
    }
}

impl Contract {
    /// How the live table differs, in the order of the contract's columns. None: they agree.
    pub fn compare(&self, live: &TableSchema) -> Vec<Difference> {
        let mut differences = Vec::new();
        for column in &self.table.columns {
            let name = || column.name.clone();
            let Some(found) = live.column(&column.name).map(|index| &live.columns[index]) else {
                differences.push(Difference::MissingColumn { column: name() });
                continue;
            };
            if found.sql_type != column.sql_type {
                differences.push(Difference::ChangedType { column: name(), contract: column.sql_type, live: found.sql_type });
            }
            if found.nullable && !column.nullable {
                differences.push(Difference::NullPossible { column: name() });
            }
            if found.case_insensitive != column.case_insensitive {
                differences.push(Difference::ChangedCase { column: name(), live_case_insensitive: found.case_insensitive });
            }
        }
        for column in &live.columns {
            if self.table.column(&column.name).is_none() {
                differences.push(Difference::NewColumn { column: column.name.clone() });
            }
        }
        if !self.table.key_names().eq(live.key_names()) {
            let names = |table: &TableSchema| table.key_names().map(str::to_owned).collect();
            differences.push(Difference::ChangedKey { contract: names(&self.table), live: names(live) });
        }
        differences
    }
}
