//! How the state keeps rows: which columns of which tables in which slots, and the indexes by their numbers. It stands in the state (`meta`, `definitions`), apart from the definitions that it was made for, so that other
//! definitions can be served from the same rows wherever they need nothing else.

use schemas::TableName;
use schemas::table::{Column, SqlType, TableSchema};
use serde::{Deserialize, Serialize};

use super::{IndexKind, SlotPart};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) tables: Vec<TableLayout>,
    /// By number; none of one that was dropped. Numbers are not used again.
    pub(crate) indexes: Vec<Option<IndexLayout>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableLayout {
    pub(crate) name: TableName,
    pub(crate) key: Vec<SlotPart>,
    /// By slot; none of one that the contract does not have any more: NULL stands there.
    pub(crate) columns: Vec<Option<ColumnLayout>>,
    /// In the slots that follow: the expressions' texts, empty of one that is not used any more.
    pub(crate) derived: Vec<String>,
    /// Parts that rows were checked for when they came in, beside those of indexes.
    pub(crate) checked: Vec<SlotPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ColumnLayout {
    pub(crate) name: String,
    /// How its values are written and compared.
    pub(crate) form: String,
    /// Only expressions have read it: its values are not there.
    pub(crate) blank: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexLayout {
    pub(crate) table: TableName,
    pub(crate) kind: IndexKind,
    pub(crate) cluster: Vec<SlotPart>,
    pub(crate) suffix: Vec<SlotPart>,
    pub(crate) stored: Vec<usize>,
    pub(crate) keeps_null: bool,
}

/// Something that definitions need and the state does not have: it takes another state to serve them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Lacking {
    #[error("rows of {table} are not kept")]
    Table { table: TableName },
    #[error("rows of {table} were told apart by another key")]
    Key { table: TableName },
    #[error("{table}: the values of {column} are not kept")]
    Column { table: TableName, column: String },
    #[error("{table}: the values of {column} were written otherwise ({was})")]
    Form { table: TableName, column: String, was: String },
    #[error("{table}: what `{text}` comes to is not kept with its rows")]
    Expression { table: TableName, text: String },
    #[error("{table}: its rows cannot be looked up by {by}")]
    Index { table: TableName, by: String },
    #[error("it is of a part of the entities, and which rows it leaves out follows from the definitions that it was built for")]
    Others,
}

impl Layout {
    pub(crate) fn table(&self, name: &TableName) -> Option<&TableLayout> {
        self.tables.iter().find(|table| table.name == *name)
    }
}

impl TableLayout {
    /// Why a column of the contract is not among the columns that are kept.
    pub(super) fn lacks(&self, schema: &TableSchema, column: usize) -> Lacking {
        let (table, column) = (self.name.clone(), schema.columns[column].name.clone());
        match self.columns.iter().flatten().find(|kept| kept.name == column && !kept.blank) {
            Some(kept) => Lacking::Form { table, column, was: kept.form.clone() },
            None => Lacking::Column { table, column },
        }
    }
}

impl ColumnLayout {
    pub(super) fn of(column: &Column, blank: bool) -> Self {
        // A wider type of the same form changes neither what is kept nor how it is compared.
        let (form, left_out) = (column.sql_type.form(), column.sql_type.may_be_unavailable());
        let mut form = format!("{form:?}");
        for (mark, applies) in [
            (", not always recorded", left_out),
            (", in any case", column.case_insensitive),
            (", compared in UTC", matches!(column.sql_type, SqlType::DateTimeOffset { .. })),
        ] {
            form.push_str(if applies { mark } else { "" });
        }
        Self { name: column.name.clone(), form, blank }
    }

    /// Where the contract has it, as it was kept.
    pub(super) fn column(&self, schema: &TableSchema) -> Option<usize> {
        let column = schema.column(&self.name)?;
        (Self::of(&schema.columns[column], self.blank) == *self).then_some(column)
    }
}
