//! Rows answered to the engine: a query in SQLite's SQL with the columns that T-SQL sees.
//!
//! A text rather than rows, so that the engine may run it as it is, wrap it as a derived table, or insert from it. Everything in it is a literal: it
//! has no parameters, and reads the database as it stands when it runs.

use rusqlite::types::Value;

/// A column of a [`Select`]: its name and its T-SQL type as declared (`int`, `binary(10)`, `nvarchar(128)`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_name: String,
}

impl Column {
    pub(crate) fn new(name: impl Into<String>, type_name: impl Into<String>) -> Column {
        Column { name: name.into(), type_name: type_name.into() }
    }
}

/// A query in SQLite's SQL, whose result columns have the names and the order of `columns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Select {
    pub columns: Vec<Column>,
    pub sql: String,
}

impl Select {
    pub(crate) fn new(columns: &[(&str, &str)], sql: impl Into<String>) -> Select {
        Select { columns: columns.iter().map(|(name, kind)| Column::new(*name, *kind)).collect(), sql: sql.into() }
    }

    /// A query that answers just these rows.
    pub(crate) fn of_rows(columns: &[(&str, &str)], rows: &[Vec<Value>]) -> Select {
        let names: Vec<String> = columns.iter().map(|(name, _)| quote(name)).collect();
        let sql = if rows.is_empty() {
            let nulls: Vec<String> = names.iter().map(|name| format!("NULL AS {name}")).collect();
            format!("SELECT {} WHERE 0", nulls.join(", "))
        } else {
            let tuples: Vec<String> =
                rows.iter().map(|row| format!("({})", row.iter().map(literal).collect::<Vec<_>>().join(", "))).collect();
            let picked: Vec<String> = names.iter().enumerate().map(|(i, name)| format!("column{} AS {name}", i + 1)).collect();
            format!("SELECT {} FROM (VALUES {})", picked.join(", "), tuples.join(", "))
        };
        Select::new(columns, sql)
    }
}

/// An identifier, quoted for SQLite.
pub(crate) fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

/// The SQLite table behind a table of the catalog, quoted.
pub(crate) fn storage(schema: &str, name: &str) -> String {
    quote(&format!("{schema}.{name}"))
}

/// A string literal of SQLite.
pub(crate) fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// A literal of SQLite.
pub(crate) fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => format!("{number:?}"),
        Value::Text(string) => text(string),
        Value::Blob(bytes) => format!("x'{}'", hex::encode(bytes)),
    }
}
