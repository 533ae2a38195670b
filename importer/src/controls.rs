//! What is published of a table: which columns, masked or renamed, and which rows.
//!
//! Columns that are left out are not even asked for, so they never leave the server. The contract of a table describes what is *published*: without the excluded columns, under the new
//! names, masked by hash as `char(64)`.
//!
//! # Rows
//! A filter is a list of comparisons that must all hold, such as `region = 'EU' and status <> 9 and deleted_at is null`, over the table's columns, published or not. It is
//! evaluated on the images of a change before anything is masked: a row that leaves the filter is a delete, one that enters is an insert, and one that was outside and stays outside is
//! not published. A comparison with NULL does not hold, as in SQL. Text is compared as its column's collation does (without case, without trailing spaces) and only for equality;
//! times compare with texts as events write them (`at >= '2024-01-01T00:00:00'`). Columns of which CDC does not record every value (`max` types, text, xml) cannot be filtered by.

mod filter;
mod mask;

use std::collections::BTreeMap;

use schemas::TableName;
use schemas::event::Row;
use schemas::table::{Column, SqlType, TableSchema};
use serde::Deserialize;

use filter::Comparison;
pub use mask::Mask;

/// What is published of a table. Columns are named as they are captured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableControls {
    /// None: every column. The key's columns are needed in any case.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub mask: BTreeMap<String, Mask>,
    /// New names.
    pub rename: BTreeMap<String, String>,
    /// Which rows: comparisons joined by `and`.
    pub filter: Option<String>,
}

/// Controls that do not fit their table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlsError {
    #[error("{table}: {setting} names column {column}, which is not captured: the columns are {known}")]
    UnknownColumn { table: TableName, setting: &'static str, column: String, known: String },
    #[error("{table}: {column} is part of the key, without which rows cannot be told apart: it cannot be left out")]
    KeyLeftOut { table: TableName, column: String },
    #[error(
        "{table}: {column} is part of the key: rows that a {mask} mask makes equal would replace each other. Mask it with `hash`"
    )]
    KeyMasked { table: TableName, column: String, mask: &'static str },
    #[error("{table}: {column} is {sql_type}: only text can be masked by `{mask}`. Mask it with `hash`, or leave it out")]
    NotText { table: TableName, column: String, sql_type: SqlType, mask: &'static str },
    #[error("{table}: the mask of {column} has more characters than the column's {sql_type}")]
    MaskTooLong { table: TableName, column: String, sql_type: SqlType },
    #[error("{table}: two columns would be named {name}")]
    NameTwice { table: TableName, name: String },
    #[error(
        "{table}: the filter {filter:?} cannot be read: {what}. Write comparisons joined by `and`: region = 'EU' and status in (1, 2) and deleted_at is null"
    )]
    Filter { table: TableName, filter: String, what: String },
    #[error("{table}: the filter compares {column}, which is {sql_type}: {what}")]
    NotComparable { table: TableName, column: String, sql_type: SqlType, what: &'static str },
}

/// Controls as they are applied to the rows of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Controls {
    /// How many of the columns that are read are published: the first ones.
    published: usize,
    masks: Vec<(usize, Mask)>,
    filter: Vec<Comparison>,
}

/// A table under its controls.
pub(crate) struct Controlled {
    /// What is read: the captured names, the columns that only the filter needs at the end.
    pub(crate) read: TableSchema,
    /// What is published.
    pub(crate) published: TableSchema,
    pub(crate) controls: Controls,
}

impl Controlled {
    /// Holds the settings against the table as it is captured.
    pub(crate) fn new(settings: &TableControls, live: &TableSchema) -> Result<Self, ControlsError> {
        let find = |setting: &'static str, column: &String| {
            live.column(column).ok_or_else(|| ControlsError::UnknownColumn {
                table: live.name.clone(),
                setting,
                column: column.clone(),
                known: live.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
            })
        };
        for (setting, columns) in [("include", &settings.include), ("exclude", &settings.exclude)] {
            columns.iter().try_for_each(|column| find(setting, column).map(drop))?;
        }
        settings.rename.keys().try_for_each(|column| find("rename", column).map(drop))?;
        settings.mask.keys().try_for_each(|column| find("mask", column).map(drop))?;
        let key: Vec<&str> = live.key_names().collect();
        let taken = |name: &String| {
            (settings.include.is_empty() || settings.include.contains(name) || key.contains(&name.as_str()))
                && !settings.exclude.contains(name)
        };
        if let Some(column) = key.iter().find(|column| settings.exclude.iter().any(|name| name == *column)) {
            return Err(ControlsError::KeyLeftOut { table: live.name.clone(), column: (*column).to_owned() });
        }
        let mut columns: Vec<Column> = live.columns.iter().filter(|column| taken(&column.name)).cloned().collect();
        let published = columns.len();
        let filter = settings.filter.as_deref().map(|filter| filter::parse(filter, live)).transpose()?.unwrap_or_default();
        for (column, _) in &filter {
            if !columns.iter().any(|known| known.name == live.columns[*column].name) {
                columns.push(live.columns[*column].clone());
            }
        }
        let place = |name: &str| columns.iter().position(|column| column.name == name).unwrap_or(usize::MAX);
        let filter = filter.into_iter().map(|(column, comparison)| comparison.at(place(&live.columns[column].name))).collect();
        let keyed: Vec<usize> = key.iter().map(|name| place(name)).collect();
        let read = TableSchema { name: live.name.clone(), columns: columns.clone(), key: keyed.clone() };
        let mut masks = Vec::new();
        let mut shown = columns[..published].to_vec();
        for (index, column) in shown.iter_mut().enumerate() {
            if let Some(mask) = settings.mask.get(&column.name) {
                mask.apply_to_column(&live.name, column, keyed.contains(&index))?;
                masks.push((index, mask.clone()));
            }
            if let Some(name) = settings.rename.get(&column.name) {
                column.name.clone_from(name);
            }
        }
        for (index, column) in shown.iter().enumerate() {
            if shown[..index].iter().any(|before| before.name == column.name) {
                return Err(ControlsError::NameTwice { table: live.name.clone(), name: column.name.clone() });
            }
        }
        let published_schema = TableSchema { name: live.name.clone(), columns: shown, key: keyed };
        Ok(Self { read, published: published_schema, controls: Controls { published, masks, filter } })
    }
}

/// The table and its settings with the published columns of a contract, in its order.
pub(crate) fn in_order_of(contract: &TableSchema, settings: &TableControls, live: &TableSchema) -> (TableControls, TableSchema) {
    let captured = |published: &String| {
        let renamed = settings.rename.iter().find(|(_, name)| *name == published).map(|(captured, _)| captured);
        renamed.unwrap_or(published).clone()
    };
    let include: Vec<String> = contract.columns.iter().map(|column| captured(&column.name)).collect();
    let mut columns: Vec<Column> =
        include.iter().filter_map(|name| live.column(name)).map(|at| live.columns[at].clone()).collect();
    columns.extend(live.columns.iter().filter(|column| !include.contains(&column.name)).cloned());
    let place = |name: &str| columns.iter().position(|column| column.name == name);
    let key = live.key_names().filter_map(place).collect();
    let ordered = TableSchema { name: live.name.clone(), columns, key };
    (TableControls { include, exclude: Vec::new(), ..settings.clone() }, ordered)
}

impl Controls {
    /// The row as it is published; `None`: it is not.
    pub(crate) fn row(&self, row: Row) -> Option<Row> {
        self.takes(&row).then(|| self.shown(row))
    }

    /// The images of a change as they are published; both `None`: it is not.
    pub(crate) fn change(&self, before: Option<Row>, after: Option<Row>) -> (Option<Row>, Option<Row>) {
        (before.and_then(|row| self.row(row)), after.and_then(|row| self.row(row)))
    }

    fn takes(&self, row: &Row) -> bool {
        self.filter.iter().all(|comparison| comparison.holds(row))
    }

    fn shown(&self, mut row: Row) -> Row {
        row.truncate(self.published);
        for (column, mask) in &self.masks {
            if let Some(value) = row.get_mut(*column) {
                mask.apply(value);
            }
        }
        row
    }
}

#[cfg(test)]
mod tests;
