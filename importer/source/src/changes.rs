//! Reading change tables.
//!
//! # What holds
//! [`Cursor::next`] answers every change of a table in (`from`, `to`], each once, in the order (commit LSN, command id, seqval, operation), with the two rows of an update
//! joined; or it fails. Why:
//! - A page begins right after the last row of the page before, by the whole order, so that neither a transaction nor an update that is larger than a page is
//!   cut short; a before image whose after image is on the next page waits in [`Pairs`].
//! - `to` was captured when the tick began, and capture writes change rows before or with the LSN's entry in `cdc.lsn_time_mapping`: nothing is added to the range while it
//!   is read.
//! - Cleanup moves an instance's `start_lsn` before it deletes. Every page's answer carries that mark as it stood *after* the rows were read: while it does
//!   not exceed what we have read already, no row of the page can have been missing. If it does, the page is thrown away and the gap reported.
//!
//! # NULLs that are not NULL
//! CDC does not record large values that it need not: text, ntext and image in deletes and before images; the `max` types and xml in before images unless
//! the update mask says that they changed. These become [`Value::Unavailable`]. Computed columns, which it never records, are not read at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use schemas::event::Row as Values;
use schemas::table::{Length, SqlType, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use tiberius::{ColumnData, Row};

use super::catalog::Instance;
use super::client::Client;
use super::decode::value;
use super::error::Error;
use super::sql;

const DOING: &str = "reading changes";

/// How many rows the first page of a table has; later ones follow from how large the rows turned out to be.
const FIRST_PAGE_ROWS: usize = 1000;
/// The same where a single row may have gigabytes.
const FIRST_ROWS_IF_LARGE: usize = 16;
/// About how many bytes a page should have in memory.
const PAGE_BYTES: usize = 8 << 20;

/// `__$operation` of a change row.
const DELETE: u8 = 1;
const INSERT: u8 = 2;
const UPDATE_BEFORE: u8 = 3;
const UPDATE_AFTER: u8 = 4;

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
}

/// How to read the changes of a table.
#[derive(Debug)]
pub struct ChangeTable {
    pub name: TableName,
    pub instance: String,
    /// Changes before it were never missed: the snapshot was taken after them.
    pub floor: Lsn,
    columns: Vec<ChangeColumn>,
    first_page: String,
    page: String,
    max_page_rows: usize,
    /// How many rows the next read begins with: what the last one learned of their size.
    page_rows: AtomicUsize,
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
            columns.push(ChangeColumn { ordinal: captured.ordinal, recording: recording(captured.sql_type) });
        }
        Ok(Self {
            name: schema.name.clone(),
            instance: instance.name.clone(),
            floor,
            columns,
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

    fn change(&self, row: Row) -> Result<ChangeRow, Error> {
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
        let ColumnData::Binary(mask) = next()? else { return Err(unexpected("__$update_mask is not binary")) };
        let mask = mask.unwrap_or_default();
        let mut bytes = 64;
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let mut value = value(cells.next().ok_or_else(|| unexpected("a row is too short"))?)?;
            if value == Value::Null && unavailable(column, operation, &mask) {
                value = Value::Unavailable;
            }
            bytes += size(&value);
            values.push(value);
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
        SqlType::VarChar(Length::Max) | SqlType::NVarChar(Length::Max) | SqlType::VarBinary(Length::Max) | SqlType::Xml => {
            Recording::IfChanged
        }
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

fn lsn(data: &ColumnData<'_>) -> Result<Lsn, Error> {
    match data {
        ColumnData::Binary(Some(bytes)) => {
            Lsn::from_slice(bytes).ok_or_else(|| unexpected(format!("an LSN has {} bytes", bytes.len())))
        }
        other => Err(unexpected(format!("an LSN is {other:?}"))),
    }
}

fn unexpected(what: impl Into<String>) -> Error {
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

struct ChangeRow {
    position: Position,
    values: Values,
    bytes: usize,
}

/// Joins the two rows of an update. They stand one after the other in the order, possibly with a page's end between them.
#[derive(Debug, Default)]
struct Pairs {
    before: Option<(Position, Values)>,
}

impl Pairs {
    fn push(&mut self, position: Position, values: Values) -> Result<Option<Change>, Error> {
        let waiting = self.before.take();
        match (position.operation, waiting) {
            (UPDATE_BEFORE, None) => {
                self.before = Some((position, values));
                Ok(None)
            }
            (UPDATE_AFTER, Some((before, old)))
                if before.commit_lsn == position.commit_lsn && before.seqval == position.seqval =>
            {
                Ok(Some(Change { position, before: Some(old), after: Some(values) }))
            }
            (DELETE, None) => Ok(Some(Change { position, before: Some(values), after: None })),
            (INSERT, None) => Ok(Some(Change { position, before: None, after: Some(values) })),
            (operation, waiting) => Err(unexpected(format!(
                "operation {operation} at {} follows {}",
                position.commit_lsn,
                waiting.map_or_else(
                    || "no before image".to_owned(),
                    |(before, _)| format!("the before image at {}", before.commit_lsn)
                )
            ))),
        }
    }

    /// After the last row of the range.
    fn finish(&self) -> Result<(), Error> {
        match &self.before {
            None => Ok(()),
            Some((before, _)) => Err(unexpected(format!("the before image at {} has no after image", before.commit_lsn))),
        }
    }
}

/// Reads the changes of one table in (`from`, `to`], page by page.
pub struct Cursor {
    table: Arc<ChangeTable>,
    from: Lsn,
    to: Lsn,
    /// The last row read.
    last: Option<Position>,
    ready: VecDeque<Change>,
    pairs: Pairs,
    page_rows: usize,
    max_page_rows: usize,
    done: bool,
}

impl Cursor {
    /// `share` is how many cursors are read side by side and share the memory for pages.
    pub fn new(table: Arc<ChangeTable>, from: Lsn, to: Lsn, share: usize) -> Self {
        let max_page_rows = (table.max_page_rows / share.max(1)).clamp(table.max_page_rows.min(100), table.max_page_rows);
        let page_rows = table.page_rows.load(Ordering::Relaxed).min(max_page_rows);
        Self {
            table,
            from,
            to,
            last: None,
            ready: VecDeque::new(),
            pairs: Pairs::default(),
            page_rows,
            max_page_rows,
            done: false,
        }
    }

    /// Where the next change stands; `None` at the end. Reads a page when none is at hand.
    pub async fn head(&mut self, client: &mut Client) -> Result<Option<Position>, Error> {
        while self.ready.is_empty() && !self.done {
            self.read_page(client).await?;
        }
        Ok(self.ready.front().map(|change| change.position))
    }

    /// Takes the change that [`head`](Self::head) told of.
    pub fn take(&mut self) -> Option<Change> {
        self.ready.pop_front()
    }

    async fn read_page(&mut self, client: &mut Client) -> Result<(), Error> {
        let parameters = self.parameters();
        let table = Arc::clone(&self.table);
        let sql = if self.last.is_none() { &table.first_page } else { &table.page };
        let (mut rows, mut bytes, mut min) = (0, 0, None);
        let (ready, pairs, last) = (&mut self.ready, &mut self.pairs, &mut self.last);
        client
            .for_each(DOING, sql, parameters, |result, row| {
                if result > 0 {
                    min = row.into_iter().next().map(|data| lsn(&data)).transpose()?;
                    return Ok(());
                }
                let row = table.change(row)?;
                rows += 1;
                bytes += row.bytes;
                *last = Some(row.position);
                ready.extend(pairs.push(row.position, row.values)?);
                Ok(())
            })
            .await?;
        self.table.check_watermark(self.from, min)?;
        if rows < self.page_rows {
            self.done = true;
            self.pairs.finish()?;
        }
        if let Some(average) = usize::checked_div(bytes, rows) {
            let fitting = (PAGE_BYTES / average.max(1)).max(1);
            self.table.page_rows.store(fitting, Ordering::Relaxed);
            self.page_rows = fitting.min(self.max_page_rows);
        }
        Ok(())
    }

    fn parameters(&self) -> Vec<ColumnData<'static>> {
        let bytes = |lsn: Lsn| ColumnData::Binary(Some(lsn.as_bytes().to_vec().into()));
        let rows = ColumnData::I64(Some(self.page_rows.try_into().unwrap_or(i64::MAX)));
        let instance = ColumnData::String(Some(self.table.instance.clone().into()));
        match self.last {
            None => vec![rows, bytes(self.to), bytes(self.from), instance],
            Some(last) => {
                let command = ColumnData::I32(Some(last.command_id));
                let operation = ColumnData::I32(Some(last.operation.into()));
                vec![rows, bytes(self.to), bytes(last.commit_lsn), command, bytes(last.seqval), operation, instance]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn position(lsn: u8, operation: u8) -> Position {
        Position { commit_lsn: Lsn::from_bytes([lsn; 10]), command_id: 1, seqval: Lsn::from_bytes([lsn; 10]), operation }
    }

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
    fn updates_are_joined_and_broken_ones_reported() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.push(position(1, UPDATE_BEFORE), vec![Value::Int(1)]).unwrap(), None);
        assert!(pairs.finish().is_err());
        let change = pairs.push(position(1, UPDATE_AFTER), vec![Value::Int(2)]).unwrap().unwrap();
        assert_eq!((change.before, change.after), (Some(vec![Value::Int(1)]), Some(vec![Value::Int(2)])));
        pairs.finish().unwrap();
        assert!(pairs.push(position(2, UPDATE_AFTER), vec![]).is_err());
        pairs.push(position(3, UPDATE_BEFORE), vec![]).unwrap();
        assert!(pairs.push(position(3, INSERT), vec![]).is_err());
    }

    #[test]
    fn reading_begins_with_few_rows_where_one_may_be_large_and_goes_on_as_learned() {
        let column = |sql_type: &str| schemas::table::Column {
            name: "c".into(),
            sql_type: sql_type.parse().unwrap(),
            nullable: true,
            case_insensitive: false,
        };
        let schema = |sql_type| TableSchema {
            name: TableName::new("dbo", "t"),
            columns: vec![column("int"), column(sql_type)],
            key: vec![0],
        };
        for large in ["varchar(max)", "nvarchar(max)", "varbinary(max)", "text", "ntext", "image", "xml"] {
            assert_eq!(first_rows(&schema(large), 1000), 16, "{large}");
        }
        assert_eq!(first_rows(&schema("nvarchar(4000)"), 1000), 1000);
        assert_eq!(first_rows(&schema("xml"), 5), 5);

        let captured = |ordinal| super::super::CapturedColumn {
            name: "c".into(),
            source_name: "c".into(),
            ordinal,
            sql_type: SqlType::Xml,
            nullable: true,
            computed: false,
            collation: None,
            default_collation: true,
        };
        let instance = Instance {
            name: "dbo_t".into(),
            object_id: 1,
            start_lsn: Lsn::ZERO,
            columns: vec![captured(1)],
            key: vec![],
            unsupported: vec![],
        };
        let table = Arc::new(ChangeTable::new(&schema("xml"), &instance, Lsn::ZERO, 20_000).unwrap());
        let cursor = |share| Cursor::new(Arc::clone(&table), Lsn::ZERO, Lsn::ZERO, share);
        assert_eq!(cursor(1).page_rows, 16);
        table.page_rows.store(700, Ordering::Relaxed);
        assert_eq!(cursor(1).page_rows, 700);
        assert_eq!(cursor(200).page_rows, 100);
    }

    #[test]
    fn what_cdc_leaves_out_is_told_from_null() {
        let column = |recording| ChangeColumn { ordinal: 3, recording };
        let (changed, unchanged) = ([0b100], [0b011]);
        assert!(unavailable(&column(Recording::IfChanged), UPDATE_BEFORE, &unchanged));
        assert!(!unavailable(&column(Recording::IfChanged), UPDATE_BEFORE, &changed));
        assert!(!unavailable(&column(Recording::IfChanged), DELETE, &unchanged));
        assert!(!unavailable(&column(Recording::IfChanged), UPDATE_AFTER, &unchanged));
        assert!(unavailable(&column(Recording::AfterOnly), DELETE, &changed));
        assert!(!unavailable(&column(Recording::AfterOnly), INSERT, &changed));
    }
}
