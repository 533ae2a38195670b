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

/// What a difference means for those who rely on the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compatibility {
    /// Every row that the table can hold keeps the contract as it stands: it asks for less than it might.
    Harmless,
    /// A new version of the contract lets in every row that the table can hold, and still everything that earlier versions let in; readers of earlier versions
    /// find every column that they know, written as before. Until the contract has that version, rows that only it lets in are dead-lettered.
    Compatible,
    /// Rows would be missing columns, be written differently than the contract says, or be told apart differently: nothing may be published.
    Breaking,
}

impl fmt::Display for Compatibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Harmless => "harmless",
            Self::Compatible => "compatible",
            Self::Breaking => "breaking",
        })
    }
}

impl Difference {
    pub fn compatibility(&self) -> Compatibility {
        match self {
            Self::MissingColumn { .. } | Self::ChangedKey { .. } | Self::ChangedCase { .. } => Compatibility::Breaking,
            Self::ChangedType { contract, live, .. } if contract.form() != live.form() => Compatibility::Breaking,
            Self::ChangedType { contract, live, .. } if !holds_more(*contract, *live) => Compatibility::Harmless,
            Self::ChangedType { .. } | Self::NewColumn { .. } | Self::NullPossible { .. } => Compatibility::Compatible,
        }
    }

    /// Nothing may be published. Other differences are worth a word, and every row is still held to the contract.
    pub fn breaks(&self) -> bool {
        self.compatibility() == Compatibility::Breaking
    }

    /// The column of the contract or of the table that differs; `None` for the key.
    pub fn column(&self) -> Option<&str> {
        match self {
            Self::MissingColumn { column }
            | Self::NewColumn { column }
            | Self::ChangedType { column, .. }
            | Self::NullPossible { column }
            | Self::ChangedCase { column, .. } => Some(column),
            Self::ChangedKey { .. } => None,
        }
    }
}

/// Whether, of two types of the same form, `live` has values beyond the limits of `contract`.
fn holds_more(contract: SqlType, live: SqlType) -> bool {
    // No limit counts as the greatest one.
    let exceeds =
        |limit: &dyn Fn(SqlType) -> Option<usize>| limit(live).unwrap_or(usize::MAX) > limit(contract).unwrap_or(usize::MAX);
    match (keywords::integer_range(contract), keywords::integer_range(live)) {
        (Some((least, greatest)), Some((live_least, live_greatest))) => live_least < least || live_greatest > greatest,
        _ => {
            let whole = |sql_type| keywords::decimal_digits(sql_type).map(|(whole, _)| whole.into());
            exceeds(&whole) || exceeds(&keywords::text_length) || exceeds(&keywords::binary_length)
        }
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
        for (index, column) in self.table.columns.iter().enumerate() {
            let name = || column.name.clone();
            let Some(found) = live.column(&column.name).map(|index| &live.columns[index]) else {
                differences.push(Difference::MissingColumn { column: name() });
                continue;
            };
            if found.sql_type != column.sql_type {
                differences.push(Difference::ChangedType { column: name(), contract: column.sql_type, live: found.sql_type });
            }
            if found.nullable && !column.nullable && !self.columns[index].never_null {
                differences.push(Difference::NullPossible { column: name() });
            }
            if found.case_insensitive != column.case_insensitive {
                differences.push(Difference::ChangedCase { column: name(), live_case_insensitive: found.case_insensitive });
            }
        }
        for column in &live.columns {
            if self.table.column(&column.name).is_none() && !self.omits(&column.name) {
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
