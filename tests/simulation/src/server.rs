//! The shop as a SQL Server: answers every statement that the importer sends, over the real wire protocol.
//!
//! The texts are recognised, not translated: those that stay the same by comparing them with [`source::sql`], those that are put together by the places in them that differ. A statement that is not known fails the run.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use schemas::Lsn;
use source::sql;
use tds::{
    Batch, Call, Cancel, Column, DataType, Length, Login, Parameter, Response, Server, Session, SqlError, TransactionRequest,
    Value,
};

use crate::history::{Cell, Event, History, Row};
use crate::shop::{ChangeRow, Kind, Shop, TABLES};

pub(crate) const DATABASE: &str = "shop";
const COLLATION: &str = "Latin1_General_CI_AS";
/// Day 719162 from 0001-01-01 is 1970-01-01.
const DAYS_TO_1970: i64 = 719_162;
const MS_A_DAY: i64 = 86_400_000;

/// What is known of capture's health to a login with few rights: nothing.
const HIDDEN: [&str; 11] = [
    sql::AGENT,
    sql::JOBS,
    sql::MAX_REPLICATED_TEXT,
    sql::JOB_STATE,
    sql::JOB_OUTCOME,
    sql::SCANS,
    sql::CAPTURE_ERRORS,
    sql::LOG_REUSE,
    sql::PRIMARY_REPLICA,
    sql::REPLICA_STATE,
    sql::RECOVERY_FORK,
];

/// Hands out sessions.
pub(crate) struct ShopServer {
    pub(crate) shop: Arc<Mutex<Shop>>,
    pub(crate) history: History,
}

impl Server for ShopServer {
    fn login(&self, _login: &Login, _cancel: Cancel) -> Result<Box<dyn Session>, SqlError> {
        Ok(Box::new(ShopSession { shop: Arc::clone(&self.shop), history: self.history.clone() }))
    }
}

struct ShopSession {
    shop: Arc<Mutex<Shop>>,
    history: History,
}

impl Session for ShopSession {
    fn batch(&mut self, batch: &Batch, response: &mut dyn Response) {
        let shop = self.shop.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = Answer { shop, parameters: &batch.parameters, response };
        if !answer.fixed(&batch.sql) && !answer.built(&batch.sql) {
            self.history.add(Event::Stuck { what: format!("a statement that nobody answers: {}", batch.sql) });
            answer.response.error(&refusal(102, "this statement is not known here"));
        }
    }

    fn call(&mut self, call: &Call, response: &mut dyn Response) {
        self.history.add(Event::Stuck { what: format!("a procedure that nobody answers: {}", call.procedure) });
        response.error(&refusal(2812, "this procedure is not known here"));
    }

    fn transaction(&mut self, _request: &TransactionRequest, response: &mut dyn Response) {
        response.done(None);
    }

    fn describe(&mut self, _batch: &Batch) -> Result<Vec<Column>, SqlError> {
        Ok(Vec::new())
    }

    fn reset(&mut self) {}

    fn database(&self) -> String {
        DATABASE.to_owned()
    }
}

fn refusal(number: i32, message: &str) -> SqlError {
    SqlError { number, state: 1, class: 14, message: message.to_owned(), procedure: String::new(), line: 1 }
}

/// A column of an answer.
fn column(name: &str, data_type: DataType) -> Column {
    Column { name: name.to_owned(), data_type, nullable: true, identity: false, computed: false, collation: None }
}

const NAME: DataType = DataType::NVarChar(Length::Limited(128));
const LSN: DataType = DataType::Binary(10);
const TIME: DataType = DataType::DateTime2 { scale: 3 };

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn bytes(lsn: Option<Lsn>) -> Value {
    lsn.map_or(Value::Null, |lsn| Value::Bytes(lsn.as_bytes().to_vec()))
}

/// As `sys.dm_tran_database_transactions` writes an LSN.
fn number_of(lsn: Lsn) -> i128 {
    let part =
        |range: std::ops::Range<usize>| lsn.as_bytes()[range].iter().fold(0, |number, byte| number << 8 | i128::from(*byte));
    part(0..4) * 10i128.pow(15) + part(4..8) * 100_000 + part(8..10)
}

fn time(ms: Option<i64>) -> Value {
    let Some(ms) = ms else { return Value::Null };
    let days = u32::try_from(ms.div_euclid(MS_A_DAY) + DAYS_TO_1970).unwrap_or_default();
    Value::DateTime { days, ticks: ms.rem_euclid(MS_A_DAY).cast_unsigned() * 10_000 }
}

/// A value of a table's column.
fn cell(table: usize, place: usize, cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Int(number) if TABLES[table].columns[place].1 == Kind::Moment => time(Some(*number)),
        Cell::Int(number) => Value::Int(*number),
        Cell::Text(text) => Value::Text(text.clone()),
    }
}

fn column_type(kind: Kind) -> DataType {
    match kind {
        Kind::Int | Kind::Reference => DataType::Int,
        Kind::Text => DataType::NVarChar(Length::Limited(20)),
        Kind::Moment => TIME,
    }
}

fn instance(table: usize) -> String {
    format!("dbo_{}", TABLES[table].name)
}

/// The table whose name stands in the text in the given form.
fn table_in(sql: &str, written: impl Fn(&str) -> String) -> Option<usize> {
    TABLES.iter().position(|table| sql.contains(&written(table.name)))
}

/// The columns of a table whose names stand in a part of a text, in that order.
fn columns_in(table: usize, part: &str) -> Vec<usize> {
    let names = part.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    let place = |name: &str| TABLES[table].columns.iter().position(|(known, _)| *known == name);
    names.filter_map(place).collect()
}

struct Answer<'a> {
    shop: MutexGuard<'a, Shop>,
    parameters: &'a [Parameter],
    response: &'a mut dyn Response,
}

impl Answer<'_> {
    fn rows(&mut self, columns: &[Column], rows: impl IntoIterator<Item = Vec<Value>>) {
        self.response.columns(columns);
        let mut count = 0;
        for row in rows {
            self.response.row(&row);
            count += 1;
        }
        self.response.done(Some(count));
    }

    fn number(&self, nth: usize) -> i64 {
        match self.parameters.get(nth - 1).map(|parameter| &parameter.value) {
            Some(Value::Int(number)) => *number,
            _ => 0,
        }
    }

    fn lsn(&self, nth: usize) -> Lsn {
        match self.parameters.get(nth - 1).map(|parameter| &parameter.value) {
            Some(Value::Bytes(bytes)) => Lsn::from_slice(bytes).unwrap_or_default(),
            _ => Lsn::ZERO,
        }
    }

    /// A time of the server's clock as text, in milliseconds.
    fn time(&self, nth: usize) -> i64 {
        let Some(Value::Text(text)) = self.parameters.get(nth - 1).map(|parameter| &parameter.value) else { return 0 };
        let moment = text.parse::<DateTime>().and_then(|local| local.to_zoned(TimeZone::UTC));
        moment.map_or(0, |moment| moment.timestamp().as_millisecond())
    }

    /// Statements whose text is always the same.
    fn fixed(&mut self, sql: &str) -> bool {
        if HIDDEN.contains(&sql) {
            self.response.error(&refusal(229, "The SELECT permission was denied."));
            return true;
        }
        match sql {
            sql::DATABASE => {
                let columns = [
                    column("version", NAME),
                    column("name", NAME),
                    column("is_cdc_enabled", DataType::Int),
                    column("collation_name", NAME),
                ];
                self.rows(&columns, [vec![text("16.0.4135.4"), text(DATABASE), Value::Int(1), text(COLLATION)]]);
            }
            sql::IDENTITY => {
                let columns = [column("name", NAME), column("database_id", DataType::Int), column("create_date", TIME)];
                self.rows(&columns, [vec![text(DATABASE), Value::Int(5), time(Some(1_700_000_000_000))]]);
            }
            sql::CAPTURE_STATE => self.capture_state(),
            sql::CAPTURE_INSTANCES => self.instances(),
            sql::CAPTURED_COLUMNS => self.captured_columns(),
            sql::INDEX_COLUMNS => self.index_columns(),
            sql::UNCAPTURED_COLUMNS | sql::UNIQUE_INDEXES | sql::FOREIGN_KEYS => self.rows(&[column("none", DataType::Int)], []),
            sql::USER_TABLES => {
                let columns =
                    [column("schema_name", NAME), column("table_name", NAME), column("is_tracked_by_cdc", DataType::Int)];
                self.rows(&columns, TABLES.iter().map(|table| vec![text("dbo"), text(table.name), Value::Int(1)]));
            }
            sql::MAX_LSN => {
                let captured = bytes(self.shop.captured());
                self.rows(&[column("max_lsn", LSN)], [vec![captured]]);
            }
            sql::AS_OF => {
                let lsn = self.lsn(1);
                let committed = self.shop.mapping.iter().rev().find(|(captured, _)| *captured <= lsn).map(|(_, ms)| *ms);
                let row = vec![time(committed), time(Some(self.shop.clock_ms())), Value::Int(0)];
                self.rows(&[column("committed", TIME), column("now", TIME), column("offset_minutes", DataType::Int)], [row]);
            }
            sql::CLOCK => {
                let row = vec![time(Some(self.shop.clock_ms())), bytes(self.shop.captured())];
                self.rows(&[column("now", TIME), column("max_lsn", LSN)], [row]);
            }
            sql::TRANSACTIONS => self.transactions(),
            sql::HISTORY => self.history(),
            sql::FIRST_COMMIT_AFTER => self.first_commit_after(),
            sql::FIRST_CAPTURED_AFTER => {
                let after = self.lsn(1);
                let found = self.shop.mapping.iter().map(|(lsn, _)| *lsn).find(|lsn| *lsn > after);
                self.rows(&[column("lsn", LSN)], [vec![bytes(found)]]);
            }
            sql::OPEN_MARK | sql::CLOSE_MARK => self.response.done(None),
            sql::TRANSACTION_LSN if !self.shop.marks => {
                self.response.error(&refusal(300, "VIEW SERVER STATE permission was denied."))
            }
            sql::TRANSACTION_LSN => {
                let mark = self.shop.mark();
                let number = Value::Decimal { mantissa: number_of(mark), scale: 0 };
                self.rows(
                    &[column("database_transaction_begin_lsn", DataType::Decimal { precision: 25, scale: 0 })],
                    [vec![number]],
                );
            }
            sql::LAST_EMPTY_SCAN => {
                let columns =
                    [column("session_id", DataType::Int), column("empty_scan_count", DataType::Int), column("end_time", TIME)];
                let last = self.shop.empty_scan;
                let row = |(number, ms)| vec![Value::Int(1), Value::Int(number), time(Some(ms))];
                self.rows(&columns, last.map(row));
            }
            sql::HEADROOM => self.headroom(),
            sql::NEWEST_CAPTURED => {
                let now = self.shop.clock_ms();
                let newest = self.shop.mapping.last().map(|(lsn, ms)| vec![bytes(Some(*lsn)), Value::Int((now - ms) / 1000)]);
                self.rows(&[column("start_lsn", LSN), column("age", DataType::Int)], newest);
            }
            sql::ROW_COUNT => {
                let Some(Value::Text(name)) = self.parameters.first().map(|parameter| &parameter.value) else { return false };
                let Some(table) = table_in(name, |table| format!("[{table}]")) else { return false };
                let count = Value::Int(self.shop.rows[table].len() as i64);
                self.rows(&[column("row_count", DataType::BigInt)], [vec![count]]);
            }
            _ => return false,
        }
        true
    }

    /// Statements that are put together.
    fn built(&mut self, sql: &str) -> bool {
        if sql.starts_with("SELECT 0 AS instance, MAX(") {
            self.moved(sql);
            return true;
        }
        if let Some(table) = table_in(sql, |name| format!("cdc.[dbo_{name}_CT]")) {
            self.page(table, sql);
            return true;
        }
        let Some(table) = table_in(sql, |name| format!("[dbo].[{name}] AS t")) else { return false };
        if sql.contains(" OFFSET @P1 ROWS ") {
            self.key_behind(table);
        } else {
            self.chunk(table, sql);
        }
        true
    }

    fn capture_state(&mut self) {
        let columns = [column("instances", DataType::Int), column("newest", TIME), column("ddl_lsn", LSN)];
        self.rows(&columns, [vec![Value::Int(4), time(Some(1_700_000_000_000)), Value::Null]]);
    }

    fn instances(&mut self) {
        let columns = [
            column("object_id", DataType::Int),
            column("capture_instance", NAME),
            column("source_object_id", DataType::Int),
            column("schema_name", NAME),
            column("table_name", NAME),
            column("start_lsn", LSN),
            column("end_lsn", LSN),
            column("create_date", TIME),
        ];
        let begins = self.shop.begins;
        let row = |table: usize| {
            let id = table as i64;
            vec![
                Value::Int(100 + id),
                text(&instance(table)),
                Value::Int(10 + id),
                text("dbo"),
                text(TABLES[table].name),
                bytes(Some(begins[table])),
                Value::Null,
                time(Some(1_700_000_000_000)),
            ]
        };
        self.rows(&columns, (0..TABLES.len()).map(row));
    }

    fn captured_columns(&mut self) {
        let columns = [
            column("object_id", DataType::Int),
            column("column_name", NAME),
            column("source_name", NAME),
            column("column_ordinal", DataType::Int),
            column("is_computed", DataType::Int),
            column("type_name", NAME),
            column("max_length", DataType::Int),
            column("num_precision", DataType::Int),
            column("num_scale", DataType::Int),
            column("is_nullable", DataType::Int),
            column("collation_name", NAME),
            column("column_id", DataType::Int),
        ];
        let mut rows = Vec::new();
        for (at, table) in TABLES.iter().enumerate() {
            for ((name, kind), nth) in table.columns.iter().zip(1..) {
                let (type_name, length, precision, scale, collation) = match kind {
                    Kind::Int | Kind::Reference => ("int", 4, 10, 0, Value::Null),
                    Kind::Moment => ("datetime2", 7, 23, 3, Value::Null),
                    Kind::Text => ("nvarchar", 40, 0, 0, text(COLLATION)),
                };
                rows.push(vec![
                    Value::Int(100 + at as i64),
                    text(name),
                    text(name),
                    Value::Int(nth),
                    Value::Int(0),
                    text(type_name),
                    Value::Int(length),
                    Value::Int(precision),
                    Value::Int(scale),
                    Value::Int(i64::from(*kind != Kind::Int)),
                    collation,
                    Value::Int(nth),
                ]);
            }
        }
        self.rows(&columns, rows);
    }

    fn index_columns(&mut self) {
        let columns = [column("object_id", DataType::Int), column("column_name", NAME), column("index_ordinal", DataType::Int)];
        let of = |(at, table): (usize, &'static crate::shop::Table)| {
            let parts = table.columns[..table.key].iter().zip(1..);
            parts.map(move |((name, _), nth)| vec![Value::Int(100 + at as i64), text(name), Value::Int(nth)])
        };
        self.rows(&columns, TABLES.iter().enumerate().flat_map(of));
    }

    fn transactions(&mut self) {
        let columns = [column("start_lsn", LSN), column("tran_end_time", TIME), column("offset_minutes", DataType::Int)];
        let (most, after) = (usize::try_from(self.number(1)).unwrap_or_default(), self.lsn(2));
        let found = self.shop.mapping.iter().filter(|(lsn, _)| *lsn > after).take(most);
        let rows: Vec<_> = found.map(|(lsn, ms)| vec![bytes(Some(*lsn)), time(Some(*ms)), Value::Int(0)]).collect();
        self.rows(&columns, rows);
    }

    fn history(&mut self) {
        let columns =
            [column("tran_end_time", TIME), column("begins", LSN), column("ends", LSN), column("present", DataType::Int)];
        let wanted = self.lsn(1);
        let found = self.shop.mapping.iter().find(|(lsn, _)| *lsn == wanted).map(|(_, ms)| *ms);
        let (first, last) = (self.shop.mapping.first().map(|(lsn, _)| *lsn), self.shop.captured());
        self.rows(&columns, [vec![time(found), bytes(first), bytes(last), Value::Int(i64::from(found.is_some()))]]);
    }

    fn first_commit_after(&mut self) {
        let (moment, after) = (self.time(1), self.lsn(2));
        let found = self.shop.mapping.iter().filter(|(lsn, ms)| *lsn > after && *ms > moment + 50).map(|(lsn, _)| *lsn).min();
        let now = self.shop.clock_ms();
        let later = self.shop.mapping.iter().any(|(lsn, ms)| *lsn > after && *ms > moment + 50 && *ms > now);
        let went_back = i64::from(now < moment || later);
        self.rows(&[column("lsn", LSN), column("went_back", DataType::Int)], [vec![bytes(found), Value::Int(went_back)]]);
    }

    fn headroom(&mut self) {
        let after = self.lsn(1);
        let at_or_above = |shop: &Shop, from: Lsn| shop.mapping.iter().find(|(lsn, _)| *lsn >= from).map(|(_, ms)| *ms);
        let instances: Vec<_> = (0..TABLES.len())
            .map(|table| {
                let begins = self.shop.begins[table];
                vec![text(&instance(table)), bytes(Some(begins)), time(at_or_above(&self.shop, begins))]
            })
            .collect();
        self.rows(&[column("capture_instance", NAME), column("start_lsn", LSN), column("begins", TIME)], instances);
        let row = vec![time(at_or_above(&self.shop, after.next())), time(Some(self.shop.clock_ms())), Value::Int(0)];
        self.rows(&[column("next", TIME), column("now", TIME), column("offset_minutes", DataType::Int)], [row]);
    }

    fn moved(&mut self, sql: &str) {
        let branches = sql.split("; ").next().unwrap_or_default().split(" UNION ALL ").zip(0..);
        let newest: Vec<_> = branches
            .filter_map(|(branch, place)| {
                let table = table_in(branch, |name| format!("cdc.[dbo_{name}_CT]"))?;
                Some(vec![Value::Int(place), bytes(self.shop.changes[table].last().map(|change| change.lsn))])
            })
            .collect();
        self.rows(&[column("instance", DataType::Int), column("max_lsn", LSN)], newest);
        let begins = self.shop.begins;
        let marks = (0..TABLES.len()).map(|table| vec![text(&instance(table)), bytes(Some(begins[table]))]);
        self.rows(&[column("capture_instance", NAME), column("start_lsn", LSN)], marks);
        self.capture_state();
    }

    /// A page of a change table, and where the instance begins.
    fn page(&mut self, table: usize, sql: &str) {
        let most = usize::try_from(self.number(1)).unwrap_or_default();
        let (to, from) = (self.lsn(2), self.lsn(3));
        let first = sql.starts_with("SELECT TOP (@P1) [__$start_lsn]");
        let last = (from, self.number(4), self.lsn(5), self.number(6));
        let after = |change: &&ChangeRow| {
            let place = (change.lsn, change.command, change.seqval, change.operation);
            change.lsn <= to && if first { change.lsn > from } else { place > last }
        };
        let list = sql.split_once("[__$operation]").and_then(|(_, rest)| rest.split_once(" FROM ")).map_or("", |(list, _)| list);
        let read = columns_in(table, list);
        let found = self.shop.changes[table].iter().filter(after).take(most);
        let rows: Vec<Vec<Value>> = found
            .map(|change| {
                let own = [
                    bytes(Some(change.lsn)),
                    Value::Int(change.command),
                    bytes(Some(change.seqval)),
                    Value::Int(change.operation),
                ];
                own.into_iter().chain(read.iter().map(|column| cell(table, *column, &change.row[*column]))).collect()
            })
            .collect();
        let own = [("__$start_lsn", LSN), ("__$command_id", DataType::Int), ("__$seqval", LSN), ("__$operation", DataType::Int)];
        let mut columns: Vec<Column> = own.into_iter().map(|(name, data_type)| column(name, data_type)).collect();
        columns.extend(read.iter().map(|&place| data_column(table, place)));
        self.rows(&columns, rows);
        let begins = bytes(Some(self.shop.begins[table]));
        self.rows(&[column("start_lsn", LSN)], [vec![begins]]);
    }

    /// The key that stands behind so many others.
    fn key_behind(&mut self, table: usize) {
        let behind = usize::try_from(self.number(1)).unwrap_or_default();
        let columns: Vec<Column> = (0..TABLES[table].key).map(|place| data_column(table, place)).collect();
        let key = self.shop.rows[table]
            .keys()
            .nth(behind)
            .map(|key| key.iter().enumerate().map(|(place, value)| cell(table, place, value)).collect::<Vec<_>>());
        self.rows(&columns, key);
    }

    /// A part of a table in the order of its key: see [`sql::snapshot_chunk`].
    fn chunk(&mut self, table: usize, sql: &str) {
        let (selected, rest) = sql.split_once(" FROM ").unwrap_or((sql, ""));
        let conditions =
            rest.split_once(" WHERE ").and_then(|(_, rest)| rest.split_once(" ORDER BY ")).map_or("", |(found, _)| found);
        // The mark of an upper bound is a column of its own, behind the others.
        let (list, marked) = match selected.split_once(", CASE WHEN ") {
            Some((list, _)) => (list, true),
            None => (selected, false),
        };
        let read = columns_in(table, list);
        let lower: Vec<&str> = conditions.split(" AND ").filter(|one| !one.is_empty() && !one.contains(" <= ")).collect();
        let bounds: Vec<Cell> = (0..lower.len()).map(|nth| Cell::Int(self.number(nth + 2))).collect();
        let inclusive = lower.last().is_some_and(|last| last.contains(" >= "));
        let upper: Vec<Cell> = (lower.len() + 2..=self.parameters.len()).map(|nth| Cell::Int(self.number(nth))).collect();
        let within = |row: &&Row| {
            let Some((last, equal)) = bounds.split_last() else { return true };
            let order = row[equal.len()].cmp(last);
            row[..equal.len()] == *equal && (order == Ordering::Greater || inclusive && order == Ordering::Equal)
        };
        let below = |row: &&Row| upper.first().is_none_or(|first| row[0] <= *first);
        let most = usize::try_from(self.number(1)).unwrap_or_default();
        let found = self.shop.rows[table].values().filter(within).filter(below).take(most);
        let rows: Vec<Vec<Value>> = found
            .map(|row| {
                let mark = marked.then(|| Value::Int(i64::from(row[..upper.len()] <= upper[..])));
                read.iter().map(|place| cell(table, *place, &row[*place])).chain(mark).collect()
            })
            .collect();
        let mut columns: Vec<Column> = read.iter().map(|&place| data_column(table, place)).collect();
        columns.extend(marked.then(|| column("within", DataType::Int)));
        self.rows(&columns, rows);
    }
}

fn data_column(table: usize, place: usize) -> Column {
    let (name, kind) = TABLES[table].columns[place];
    column(name, column_type(kind))
}
