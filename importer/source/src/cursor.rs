//! Paging through a change table within bounded memory.
//!
//! A page is limited by rows and by bytes. The rows that are asked for follow from what the last page learned of their size, so that few are read in vain; where they turn out
//! larger than that, the page ends at the row that passes the limit and the rest of the answer is read without being kept. Nothing is lost by it: the next page
//! begins after the last row that was *kept*. Where a page ends is so of no consequence for what comes out, be it in the middle of a transaction, between a delete and an insert
//! of one seqval, or between the two rows of an update, of which the first waits in `Pairs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use schemas::event::Row as Values;
use schemas::{Lsn, Position};
use tiberius::{ColumnData, Row};

use super::changes::{Change, ChangeTable, DELETE, DOING, INSERT, UPDATE_AFTER, UPDATE_BEFORE, lsn, unexpected};
use super::client::Client;
use super::error::Error;

/// How many bytes the pages of all cursors that are read side by side may have in memory.
const PAGE_BYTES: usize = 16 << 20;
/// A page of one of many cursors is not smaller, lest each row be asked for on its own.
const LEAST_PAGE_BYTES: usize = 128 << 10;

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

/// Takes in the rows of one page.
struct Page<'a> {
    table: &'a ChangeTable,
    ready: &'a mut VecDeque<Change>,
    pairs: &'a mut Pairs,
    last: &'a mut Option<Position>,
    /// How many bytes may be kept.
    limit: usize,
    rows: usize,
    bytes: usize,
    /// Rows were left out at the end.
    cut: bool,
    min: Option<Lsn>,
}

impl Page<'_> {
    /// A row of the answer: of the changes, or of the watermark that follows them.
    fn take(&mut self, result: usize, row: Row) -> Result<(), Error> {
        if result > 0 {
            // NULL and zero are not "from the start": nobody knows where the instance begins.
            let begins = row.into_iter().next().filter(|data| *data != ColumnData::Binary(None));
            self.min = begins.map(|data| lsn(&data)).transpose()?.filter(|min| !min.is_zero());
            return Ok(());
        }
        // At least one row is kept, so that there is always progress.
        if self.bytes >= self.limit {
            self.cut = true;
            return Ok(());
        }
        let row = self.table.change(row)?;
        self.rows += 1;
        self.bytes += row.bytes;
        *self.last = Some(row.position);
        self.ready.extend(self.pairs.push(row.position, row.values)?);
        Ok(())
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
    max_page_bytes: usize,
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
            max_page_bytes: (PAGE_BYTES / share.max(1)).max(LEAST_PAGE_BYTES),
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

    /// All changes at hand, or of the next page; `None` at the end. For whoever reads a page while the one before is published.
    pub async fn page(&mut self, client: &mut Client) -> Result<Option<VecDeque<Change>>, Error> {
        let more = self.head(client).await?.is_some();
        Ok(more.then(|| std::mem::take(&mut self.ready)))
    }

    async fn read_page(&mut self, client: &mut Client) -> Result<(), Error> {
        let parameters = self.parameters();
        let table = Arc::clone(&self.table);
        let sql = if self.last.is_none() { &table.first_page } else { &table.page };
        let mut page = Page {
            table: &table,
            ready: &mut self.ready,
            pairs: &mut self.pairs,
            last: &mut self.last,
            limit: self.max_page_bytes,
            rows: 0,
            bytes: 0,
            cut: false,
            min: None,
        };
        client.for_each(DOING, sql, parameters, |result, row| page.take(result, row)).await?;
        let (rows, bytes, cut, min) = (page.rows, page.bytes, page.cut, page.min);
        self.table.check_watermark(self.from, min)?;
        if rows < self.page_rows && !cut {
            self.done = true;
            self.pairs.finish()?;
        }
        if let Some(average) = usize::checked_div(bytes, rows) {
            let fitting = |limit: usize| (limit / average.max(1)).max(1);
            self.table.page_rows.store(fitting(PAGE_BYTES), Ordering::Relaxed);
            self.page_rows = fitting(self.max_page_bytes).min(self.max_page_rows);
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
    use schemas::TableName;
    use schemas::table::{SqlType, TableSchema};
    use schemas::value::Value;
    use tiberius::ColumnType;

    use super::super::Instance;
    use super::super::changes::first_rows;
    use super::*;

    fn position(lsn: u8, operation: u8) -> Position {
        Position { commit_lsn: Lsn::from_bytes([lsn; 10]), command_id: 1, seqval: Lsn::from_bytes([lsn; 10]), operation }
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
            column_id: 1,
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
            end_lsn: None,
            create_date: None,
            columns: vec![captured(1)],
            key: vec![],
            key_source: super::super::keys::KeySource::None,
            unsupported: vec![],
        };
        let table = Arc::new(ChangeTable::new(&schema("xml"), &instance, Lsn::ZERO, 20_000).unwrap());
        let cursor = |share| Cursor::new(Arc::clone(&table), Lsn::ZERO, Lsn::ZERO, share);
        assert_eq!(cursor(1).page_rows, 16);
        table.page_rows.store(700, Ordering::Relaxed);
        assert_eq!(cursor(1).page_rows, 700);
        assert_eq!(cursor(200).page_rows, 100);
    }

    /// A table of one text column.
    fn text_table() -> ChangeTable {
        let column = schemas::table::Column {
            name: "c".into(),
            sql_type: "nvarchar(4000)".parse().unwrap(),
            nullable: true,
            case_insensitive: false,
        };
        let schema = TableSchema { name: TableName::new("dbo", "t"), columns: vec![column], key: vec![] };
        let captured = super::super::CapturedColumn {
            name: "c".into(),
            source_name: "c".into(),
            ordinal: 1,
            column_id: 1,
            sql_type: SqlType::NVarChar(schemas::table::Length::Limited(4000)),
            nullable: true,
            computed: false,
            collation: None,
            default_collation: true,
        };
        let instance = Instance {
            name: "dbo_t".into(),
            object_id: 1,
            start_lsn: Lsn::ZERO,
            end_lsn: None,
            create_date: None,
            columns: vec![captured],
            key: vec![],
            key_source: super::super::keys::KeySource::None,
            unsupported: vec![],
        };
        ChangeTable::new(&schema, &instance, Lsn::ZERO, 20_000).unwrap()
    }

    fn wire_row(position: Position, text: &str) -> Row {
        let binary = |bytes: &[u8]| ColumnData::Binary(Some(bytes.to_vec().into()));
        Row::builder()
            .column("l", ColumnType::BigBinary, binary(position.commit_lsn.as_bytes()))
            .column("c", ColumnType::Int4, ColumnData::I32(Some(position.command_id)))
            .column("s", ColumnType::BigBinary, binary(position.seqval.as_bytes()))
            .column("o", ColumnType::Int4, ColumnData::I32(Some(position.operation.into())))
            .column("t", ColumnType::NVarchar, ColumnData::String(Some(text.to_owned().into())))
            .build()
    }

    /// What a change table may hold: (insert, delete, update, or delete and insert of one seqval; text length), by transaction.
    fn any_rows() -> impl Strategy<Value = Vec<(Position, String)>> {
        let command = (0u8..4, 0usize..3000);
        prop::collection::vec(prop::collection::vec(command, 1..6), 1..6).prop_map(|transactions| {
            let mut rows = Vec::new();
            for (number, commands) in transactions.into_iter().enumerate() {
                for (index, (kind, length)) in commands.into_iter().enumerate() {
                    let at = |operation| Position {
                        commit_lsn: Lsn::from_bytes([number as u8 + 1; 10]),
                        command_id: index as i32 + 1,
                        seqval: Lsn::from_bytes([index as u8 + 1; 10]),
                        operation,
                    };
                    let operations: &[u8] =
                        [&[INSERT][..], &[DELETE], &[UPDATE_BEFORE, UPDATE_AFTER], &[DELETE, INSERT]][usize::from(kind)];
                    rows.extend(operations.iter().map(|operation| (at(*operation), "x".repeat(length))));
                }
            }
            rows
        })
    }

    #[test]
    fn a_beginning_that_is_zero_or_null_is_not_the_start() {
        let table = text_table();
        let told = |data: ColumnData<'static>| {
            let (mut ready, mut pairs, mut last) = (VecDeque::new(), Pairs::default(), None);
            let (ready, pairs, last) = (&mut ready, &mut pairs, &mut last);
            let mut page =
                Page { table: &table, ready, pairs, last, limit: 1, rows: 0, bytes: 0, cut: false, min: Some(Lsn::MAX) };
            page.take(1, Row::builder().column("start_lsn", ColumnType::BigBinary, data).build()).unwrap();
            (page.min, table.check_watermark(Lsn::ZERO, page.min).is_ok())
        };
        assert_eq!(told(ColumnData::Binary(None)), (None, false));
        assert_eq!(told(ColumnData::Binary(Some(vec![0; 10].into()))), (None, false));
        let first = Lsn::ZERO.next();
        assert_eq!(told(ColumnData::Binary(Some(first.as_bytes().to_vec().into()))), (Some(first), true));
    }

    proptest! {
        /// Wherever pages end by rows and bytes, the same changes come out, each once, in order.
        #[test]
        fn page_ends_are_of_no_consequence(rows in any_rows(), page_rows in 1usize..8, limit in 1usize..8000) {
            let table = text_table();
            let (mut ready, mut pairs, mut last) = (VecDeque::new(), Pairs::default(), None);
            loop {
                let next: Vec<_> = rows.iter().filter(|(position, _)| Some(*position) > last).take(page_rows).collect();
                let mut page = Page {
                    table: &table, ready: &mut ready, pairs: &mut pairs, last: &mut last, limit, rows: 0, bytes: 0, cut: false, min: None,
                };
                for (position, text) in &next {
                    page.take(0, wire_row(*position, text)).unwrap();
                }
                prop_assert!(next.is_empty() || page.rows > 0);
                prop_assert!(page.bytes < limit + 3200);
                if page.rows < page_rows && !page.cut {
                    break;
                }
            }
            pairs.finish().unwrap();
            let expected: Vec<_> = rows.iter().filter(|(position, _)| position.operation != UPDATE_BEFORE).collect();
            prop_assert_eq!(ready.len(), expected.len());
            for (change, (position, text)) in ready.iter().zip(expected) {
                prop_assert_eq!(change.position, *position);
                prop_assert_eq!(change.before.is_some(), matches!(position.operation, DELETE | UPDATE_AFTER));
                let value = vec![Value::Text(text.clone())];
                prop_assert_eq!(change.after.clone().or(change.before.clone()), Some(value));
            }
        }
    }
}
