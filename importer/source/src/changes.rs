//! Reading change tables.
//!
//! # What holds
//! A [`Cursor`] answers every change of a table in (`from`, `to`], each once, in the order (commit LSN, command id, seqval, operation), with the two rows of an update
//! joined; or it fails. Why:
//! - A page begins right after the last row of the page before, by the whole order, so that neither a transaction nor an update that is larger than a page is
//!   cut short; a before image whose after image is on the next page waits for it.
//! - `to` was captured when the tick began, and capture writes change rows before or with the LSN's entry in `cdc.lsn_time_mapping`: nothing is added to the range while it
//!   is read.
//! - Cleanup moves an instance's `start_lsn` before it deletes. Every page's answer carries that mark as it stood *after* the rows were read: while it does
//!   not exceed what we have read already, no row of the page can have been missing. If it does, the page is thrown away and the gap reported.
//!
//! # NULLs that are not NULL
//! CDC does not record large values that it need not: text, ntext and image in deletes and before images; the `max` types and xml in before images unless
//! the update mask says that they changed. These become [`Value::Unavailable`]. Computed columns, which it never records, are not read at all.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use schemas::event::Row as Values;
use schemas::table::{Length, SqlType, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use tiberius::{ColumnData, Row};

use super::catalog::Instance;
use super::client::Client;
pub use super::cursor::Cursor;
use super::decode::{Columns, Form, no_such_date};
use super::error::Error;
use super::sql;

pub(super) const DOING: &str = "reading changes";

/// How many rows the first page of a table has; later ones follow from how large the rows turned out to be.
const FIRST_PAGE_ROWS: usize = 1000;
/// The same where a single row may have gigabytes.
const FIRST_ROWS_IF_LARGE: usize = 16;

/// `__$operation` of a change row.
pub(super) const DELETE: u8 = 1;
pub(super) const INSERT: u8 = 2;
pub(super) const UPDATE_BEFORE: u8 = 3;
pub(super) const UPDATE_AFTER: u8 = 4;

/// How a column's NULL is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recording {
    Always,
    /// In before images only if the update changed it.
    IfChanged,
    /// Never in deletes and before images.
    AfterOnly,
}

#[derive(Debug)]
struct ChangeColumn {
    ordinal: usize,
    recording: Recording,
    form: Form,
}

/// How to read the changes of a table.
#[derive(Debug)]
pub struct ChangeTable {
    pub name: TableName,
    pub instance: String,
    /// Changes before it were never missed: the snapshot was taken after them.
    pub floor: Lsn,
    columns: Vec<ChangeColumn>,
    /// The update mask is read as well.
    masked: bool,
    pub(super) first_page: String,
    pub(super) page: String,
    pub(super) max_page_rows: usize,
    /// How many rows the next read begins with: what the last one learned of their size.
    pub(super) page_rows: AtomicUsize,
}

/// A change as recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub position: Position,
    pub before: Option<Values>,
    pub after: Option<Values>,
}

impl ChangeTable {
    /// Reads the columns of `schema`, in its order, from a capture instance. `None` names a column that the instance does not have.
    pub fn new(schema: &TableSchema, instance: &Instance, floor: Lsn, max_page_rows: usize) -> Result<Self, String> {
        let mut columns = Vec::new();
        let mut selected = Vec::new();
        for column in &schema.columns {
            let captured =
                instance.columns.iter().find(|captured| captured.name == column.name).ok_or_else(|| column.name.clone())?;
            selected.push(captured.in_change_table());
            columns.push(ChangeColumn {
                ordinal: captured.ordinal,
                recording: recording(captured.sql_type),
                form: Form::of(captured.sql_type),
            });
        }
        // The update mask tells of large values alone, and costs an allocation a row.
        let masked = columns.iter().any(|column| column.recording == Recording::IfChanged);
        if masked {
            selected.insert(0, "[__$update_mask]".to_owned());
        }
        Ok(Self {
            name: schema.name.clone(),
            instance: instance.name.clone(),
            floor,
            columns,
            masked,
            first_page: sql::first_change_page(&instance.name, &selected),
            page: sql::change_page(&instance.name, &selected),
            max_page_rows: max_page_rows.max(1),
            page_rows: AtomicUsize::new(first_rows(schema, FIRST_PAGE_ROWS)),
        })
    }

    /// Fails if changes after `from` have been removed, given where the instance begins now.
    pub fn check_watermark(&self, from: Lsn, min: Option<Lsn>) -> Result<(), Error> {
        match min {
            None => Err(Error::InstanceGone { table: self.name.clone(), instance: self.instance.clone(), from }),
            Some(min) if min > from.next() && min > self.floor => {
                Err(Error::Gap { table: self.name.clone(), instance: self.instance.clone(), from, min })
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) fn change(&self, row: Row) -> Result<ChangeRow, Error> {
        let mut cells = row.into_iter();
        let mut next = || cells.next().ok_or_else(|| unexpected("a row is too short"));
        let commit_lsn = lsn(&next()?)?;
        let command_id = match next()? {
            ColumnData::I32(Some(id)) => id,
            // NULL in change tables from before command ids were kept (SQL Server 2012 and older).
            ColumnData::I32(None) => 0,
            other => return Err(unexpected(format!("__$command_id is {other:?}"))),
        };
        let seqval = lsn(&next()?)?;
        let operation = match next()? {
            ColumnData::I32(Some(operation @ 1..=4)) => u8::try_from(operation).unwrap_or_default(),
            other => return Err(unexpected(format!("__$operation is {other:?}"))),
        };
        let mask = match self.masked.then(next).transpose()? {
            None => Cow::default(),
            Some(ColumnData::Binary(mask)) => mask.unwrap_or_default(),
            Some(other) => return Err(unexpected(format!("__$update_mask is {other:?}"))),
        };
        let mut bytes = 64;
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let cell = cells.next().ok_or_else(|| unexpected("a row is too short"))?;
            column.form.read(cell, &mut values).ok_or_else(no_such_date)?;
            let Some(value) = values.last_mut() else { continue };
            if matches!(value, Value::Null) && unavailable(column, operation, &mask) {
                *value = Value::Unavailable;
            }
            bytes += size(value);
        }
        Ok(ChangeRow { position: Position { commit_lsn, command_id, seqval, operation }, values, bytes })
    }
}

/// How many rows of a table to read while their size is not known: `usual`, or few where one may be very large.
pub fn first_rows(schema: &TableSchema, usual: usize) -> usize {
    let large = |sql_type| recording(sql_type) != Recording::Always;
    if schema.columns.iter().any(|column| large(column.sql_type)) { usual.min(FIRST_ROWS_IF_LARGE) } else { usual }
}

fn recording(sql_type: SqlType) -> Recording {
    match sql_type {
        SqlType::Text | SqlType::NText | SqlType::Image => Recording::AfterOnly,
        // Of the last three it is documented nowhere; they are kept as large values too, so that a NULL that no change explains tells nothing.
        SqlType::VarChar(Length::Max)
        | SqlType::NVarChar(Length::Max)
        | SqlType::VarBinary(Length::Max)
        | SqlType::Xml
        | SqlType::Json
        | SqlType::Geometry
        | SqlType::Geography => Recording::IfChanged,
        _ => Recording::Always,
    }
}

/// Whether a NULL of this column in a row of this operation stands for "not recorded".
fn unavailable(column: &ChangeColumn, operation: u8, mask: &[u8]) -> bool {
    match column.recording {
        Recording::Always => false,
        Recording::AfterOnly => matches!(operation, DELETE | UPDATE_BEFORE),
        Recording::IfChanged => operation == UPDATE_BEFORE && !changed(mask, column.ordinal),
    }
}

/// Whether the update mask names a column, by its ordinal from 1. The bits count from the mask's *last* byte, least significant first.
fn changed(mask: &[u8], ordinal: usize) -> bool {
    let bit = ordinal.saturating_sub(1);
    mask.len().checked_sub(1 + bit / 8).and_then(|index| mask.get(index)).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

pub(super) fn lsn(data: &ColumnData<'_>) -> Result<Lsn, Error> {
    match data {
        ColumnData::Binary(Some(bytes)) => {
            Lsn::from_slice(bytes).ok_or_else(|| unexpected(format!("an LSN has {} bytes", bytes.len())))
        }
        other => Err(unexpected(format!("an LSN is {other:?}"))),
    }
}

pub(super) fn unexpected(what: impl Into<String>) -> Error {
    Error::Unexpected { doing: DOING, what: what.into() }
}

/// About how much memory a value takes.
pub fn size(value: &Value) -> usize {
    let heap = match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    };
    size_of::<Value>() + heap
}

/// A row of a change table.
pub(super) struct ChangeRow {
    pub(super) position: Position,
    pub(super) values: Values,
    /// About how much memory it takes.
    pub(super) bytes: usize,
}

/// Asks, in one round trip and with a text that stays the same, which change tables hold anything new, where each instance begins, and whether the catalog has changed.
#[derive(Debug, Clone)]
pub struct Probe {
    sql: String,
    instances: usize,
}

/// What a [`Probe`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The newest change of each instance that has any, by its place among those asked for.
    pub newest: Vec<(usize, Lsn)>,
    /// Where each instance of the database begins.
    pub begins: BTreeMap<String, Option<Lsn>>,
    /// Differs from one probe to the next if instances came or went, or a captured table was altered: then the catalog is to be read again.
    pub state: CaptureState,
}

/// A fingerprint of what is captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CaptureState {
    pub instances: i64,
    /// When the newest instance was created, by the server's clock.
    pub newest: Option<String>,
    /// The last alteration of a captured table.
    pub ddl_lsn: Option<Lsn>,
}

impl CaptureState {
    /// On its own.
    pub async fn read(client: &mut Client) -> Result<Self, Error> {
        let doing = "looking whether the catalog has changed";
        let row = client.rows(doing, sql::CAPTURE_STATE, vec![]).await?.into_iter().next();
        row.map_or_else(|| Ok(Self::default()), |row| Self::of(doing, row))
    }

    fn of(doing: &'static str, row: Row) -> Result<Self, Error> {
        let mut row = Columns::new(doing, row);
        Ok(Self { instances: row.int()?, newest: row.optional_time()?, ddl_lsn: row.lsn()? })
    }
}

impl Probe {
    /// `instances` must not be empty.
    pub fn new(instances: &[&str]) -> Self {
        Self { sql: sql::moved(instances), instances: instances.len() }
    }

    pub async fn ask(&self, client: &mut Client) -> Result<Found, Error> {
        let doing = "asking which tables have changed";
        let mut results = client.query(doing, &self.sql, vec![]).await?.into_iter();
        let mut next = || results.next().unwrap_or_default();
        let (newest, watermarks, state) = (next(), next(), next());
        let mut found = Found { newest: Vec::new(), begins: begins(doing, watermarks)?, state: CaptureState::default() };
        for row in newest {
            let mut row = Columns::new(doing, row);
            let index = usize::try_from(row.int()?).ok().filter(|index| *index < self.instances);
            let index =
                index.ok_or_else(|| Error::Unexpected { doing, what: "an instance that was not asked for".to_owned() })?;
            if let Some(lsn) = row.lsn()? {
                found.newest.push((index, lsn));
            }
        }
        if let Some(row) = state.into_iter().next() {
            found.state = CaptureState::of(doing, row)?;
        }
        found.newest.sort_unstable();
        Ok(found)
    }
}

/// Where each capture instance of the database begins; `None`: not known.
pub(super) fn begins(doing: &'static str, rows: Vec<Row>) -> Result<BTreeMap<String, Option<Lsn>>, Error> {
    let begin = |row| {
        let mut row = Columns::new(doing, row);
        Ok((row.text()?, row.lsn()?))
    };
    rows.into_iter().map(begin).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mask_counts_from_its_end() {
        // Column 1 of a table of 9: the lowest bit of the last of two bytes.
        assert!(changed(&[0x00, 0x01], 1));
        assert!(changed(&[0x01, 0x00], 9));
        assert!(!changed(&[0x01, 0x00], 1));
        assert!(!changed(&[0x01], 9));
        assert!(changed(&[0x80, 0, 0], 24));
        assert!(changed(&[0x01, 0, 0], 17));
        assert!(!changed(&[], 1));
    }

    #[test]
    fn what_may_be_left_out_here_may_be_so_in_a_contract() {
        let names =
            ["text", "ntext", "image", "varchar(max)", "nvarchar(max)", "varbinary(max)", "xml", "json", "geometry", "geography"];
        for name in names {
            let sql_type: SqlType = name.parse().unwrap();
            assert!(recording(sql_type) != Recording::Always && sql_type.may_be_unavailable(), "{name}");
        }
        for name in ["int", "varchar(8000)", "sql_variant", "hierarchyid", "rowversion"] {
            assert_eq!(recording(name.parse().unwrap()), Recording::Always, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_mask_names_exactly_the_columns_it_was_made_of(columns in prop::collection::btree_set(1usize..=200, 0..40)) {
            let mut mask = vec![0u8; 25];
            for column in &columns {
                mask[25 - 1 - (column - 1) / 8] |= 1 << ((column - 1) % 8);
            }
            for ordinal in 1..=200 {
                prop_assert_eq!(changed(&mask, ordinal), columns.contains(&ordinal));
            }
        }
    }

    #[test]
    fn what_cdc_leaves_out_is_told_from_null() {
        let column = |recording| ChangeColumn { ordinal: 3, recording, form: Form::Plain };
        let (changed, unchanged) = ([0b100], [0b011]);
        assert!(unavailable(&column(Recording::IfChanged), UPDATE_BEFORE, &unchanged));
        assert!(!unavailable(&column(Recording::IfChanged), UPDATE_BEFORE, &changed));
        assert!(!unavailable(&column(Recording::IfChanged), DELETE, &unchanged));
        assert!(!unavailable(&column(Recording::IfChanged), UPDATE_AFTER, &unchanged));
        assert!(unavailable(&column(Recording::AfterOnly), DELETE, &changed));
        assert!(!unavailable(&column(Recording::AfterOnly), INSERT, &changed));
    }
}
