//! A small engine of scripted answers: what the protocol's tests, and clients tried by hand, talk to.
//!
//! The first word of a batch says what to answer:
//! `types` (every data type: a row of values and a row of nulls), `echo` (the parameters as a row), `rows N` (N rows of twelve columns), `long N` (one
//! value of N characters), `dml N` (a count without a result), `print`, `fail`, `fatal`, `misfit`, `two` (two results and a count), `wait` (until cancelled), `endless` (rows
//! until cancelled), `output` (assigns the output parameters), `begin`, `commit`, `rollback`, `use NAME`, `panic`. Words may stand behind an ODBC-like prefix; what is unknown is an error 102.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tds::{
    Batch, Call, Cancel, Column, DataType, EnvChange, Length, Login, Parameter, Response, Server, Session, SqlError,
    TransactionRequest, Value,
};

#[derive(Default)]
pub(crate) struct Fake {
    descriptors: Arc<AtomicU64>,
    /// Rows that all sessions have written.
    pub(crate) rows: Arc<AtomicU64>,
}

struct FakeSession {
    cancel: Cancel,
    database: String,
    descriptors: Arc<AtomicU64>,
    rows: Arc<AtomicU64>,
    transaction: u64,
    resets: u64,
}

pub(crate) fn error(number: i32, class: u8, message: &str) -> SqlError {
    SqlError { number, state: 1, class, message: message.to_owned(), procedure: String::new(), line: 1 }
}

impl Server for Fake {
    fn login(&self, login: &Login, cancel: Cancel) -> Result<Box<dyn Session>, SqlError> {
        if login.user != "sa" || !["x", "Päss word-1{"].contains(&login.password.as_str()) {
            return Err(error(18456, 14, &format!("Login failed for user '{}'.", login.user)));
        }
        let database = match login.database.as_str() {
            "" => "master",
            "nowhere" => {
                return Err(error(4060, 11, "Cannot open database \"nowhere\" requested by the login. The login failed."));
            }
            other => other,
        };
        let database = database.to_owned();
        let (descriptors, rows) = (Arc::clone(&self.descriptors), Arc::clone(&self.rows));
        Ok(Box::new(FakeSession { cancel, database, descriptors, rows, transaction: 0, resets: 0 }))
    }
}

/// Every data type with a value.
pub(crate) fn all_types() -> Vec<(&'static str, DataType, Value)> {
    use DataType as T;
    use Value as V;
    let text = |text: &str| V::Text(text.to_owned());
    let decimal = |mantissa, scale| V::Decimal { mantissa, scale };
    // 2023-02-15 and 13:14:15.
    let days = 738_565;
    let ticks = 476_550_000_000;
    vec![
        ("c_bit", T::Bit, V::Bit(true)),
        ("c_tinyint", T::TinyInt, V::Int(255)),
        ("c_smallint", T::SmallInt, V::Int(-32768)),
        ("c_int", T::Int, V::Int(-2_147_483_648)),
        ("c_bigint", T::BigInt, V::Int(i64::MIN)),
        ("c_real", T::Real, V::Float(1.5)),
        ("c_float", T::Float, V::Float(-1.25e300)),
        ("c_decimal", T::Decimal { precision: 38, scale: 10 }, decimal(-12_345_678_901_234_567_890_123_456_789_012_345_678, 10)),
        ("c_numeric", T::Numeric { precision: 9, scale: 2 }, decimal(1_234_567, 2)),
        ("c_decimal19", T::Decimal { precision: 19, scale: 0 }, decimal(9_223_372_036_854_775_807, 0)),
        ("c_decimal28", T::Decimal { precision: 28, scale: 4 }, decimal(-7_922_816_251_426_433_759_354_395_033, 4)),
        ("c_money", T::Money, decimal(-9_223_372_036_854_775_808, 4)),
        ("c_smallmoney", T::SmallMoney, decimal(2_147_483_647, 4)),
        ("c_char", T::Char(8), text("é€ab")),
        ("c_varchar", T::VarChar(Length::Limited(20)), text("naïve €")),
        ("c_varchar_max", T::VarChar(Length::Max), text(&"x€".repeat(40_000))),
        ("c_nchar", T::NChar(6), text("中文")),
        ("c_nvarchar", T::NVarChar(Length::Limited(30)), text("grüße 😀 中文")),
        ("c_nvarchar_max", T::NVarChar(Length::Max), text(&"long 😀 ".repeat(20_000))),
        ("c_text", T::Text, text("old text €")),
        ("c_ntext", T::NText, text("old ntext 中")),
        ("c_binary", T::Binary(6), V::Bytes(vec![1, 2, 3])),
        ("c_varbinary", T::VarBinary(Length::Limited(10)), V::Bytes(vec![0, 255, 16])),
        ("c_varbinary_max", T::VarBinary(Length::Max), V::Bytes((0..100_000u32).map(|n| n as u8).collect())),
        ("c_image", T::Image, V::Bytes(vec![9; 300])),
        (
            "c_guid",
            T::UniqueIdentifier,
            V::UniqueIdentifier([0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, 0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]),
        ),
        ("c_date", T::Date, V::Date(days)),
        ("c_time", T::Time { scale: 7 }, V::Time(ticks + 1_234_567)),
        ("c_time0", T::Time { scale: 0 }, V::Time(ticks)),
        ("c_datetime", T::DateTime, V::DateTime { days, ticks: ticks + 33_333 }),
        ("c_smalldatetime", T::SmallDateTime, V::DateTime { days, ticks: 476_400_000_000 }),
        ("c_datetime2", T::DateTime2 { scale: 7 }, V::DateTime { days, ticks: ticks + 1_234_567 }),
        ("c_datetime2_3", T::DateTime2 { scale: 3 }, V::DateTime { days: 0, ticks: ticks + 1_230_000 }),
        (
            "c_datetimeoffset",
            T::DateTimeOffset { scale: 7 },
            V::DateTimeOffset { days, ticks: ticks + 1_234_567, offset_minutes: -330 },
        ),
        ("c_xml", T::Xml, text("<a>é中</a>")),
        ("c_variant_int", T::SqlVariant, V::Variant(Box::new((T::Int, V::Int(7))))),
        ("c_variant_text", T::SqlVariant, V::Variant(Box::new((T::NVarChar(Length::Limited(10)), text("vär"))))),
        ("c_variant_dec", T::SqlVariant, V::Variant(Box::new((T::Decimal { precision: 10, scale: 3 }, decimal(12345, 3))))),
        ("c_variant_dt2", T::SqlVariant, V::Variant(Box::new((T::DateTime2 { scale: 3 }, V::DateTime { days, ticks })))),
        ("c_hierarchyid", T::Udt("hierarchyid"), V::Bytes(vec![0x58])),
    ]
}

pub(crate) fn column(name: &str, data_type: DataType, nullable: bool) -> Column {
    Column { name: name.to_owned(), data_type, nullable, identity: false, computed: false, collation: None }
}

/// Twelve columns as a change table has them.
pub(crate) fn wide_columns() -> Vec<Column> {
    use DataType as T;
    vec![
        column("__$start_lsn", T::Binary(10), false),
        column("__$seqval", T::Binary(10), false),
        column("__$operation", T::Int, false),
        column("__$update_mask", T::VarBinary(Length::Limited(128)), true),
        column("id", T::Int, true),
        column("customer", T::Int, true),
        column("status", T::NVarChar(Length::Limited(40)), true),
        column("total", T::Decimal { precision: 18, scale: 2 }, true),
        column("created", T::DateTime2 { scale: 7 }, true),
        column("comment", T::VarChar(Length::Limited(200)), true),
        column("amount", T::BigInt, true),
        column("flag", T::Bit, true),
    ]
}

pub(crate) fn wide_row(n: i64) -> Vec<Value> {
    vec![
        Value::Bytes(vec![0; 10]),
        Value::Bytes(vec![1; 10]),
        Value::Int(2),
        Value::Bytes(vec![255, 1]),
        Value::Int(n),
        Value::Int(n % 1000),
        Value::Text("shipped".to_owned()),
        Value::Decimal { mantissa: i128::from(n) * 101, scale: 2 },
        Value::DateTime { days: 738_565, ticks: 476_550_000_000 },
        Value::Text("left at the door".to_owned()),
        if n % 7 == 0 { Value::Null } else { Value::Int(n * 3) },
        Value::Bit(n % 2 == 0),
    ]
}

impl FakeSession {
    fn number(words: &[&str]) -> i64 {
        words.get(1).and_then(|word| word.parse().ok()).unwrap_or(1)
    }

    fn types(&self, response: &mut dyn Response) {
        let all = all_types();
        let columns: Vec<Column> = all.iter().map(|(name, data_type, _)| column(name, data_type.clone(), true)).collect();
        response.columns(&columns);
        response.row(&all.iter().map(|(_, _, value)| value.clone()).collect::<Vec<_>>());
        response.row(&vec![Value::Null; all.len()]);
        response.done(Some(2));
    }

    fn fixed(&self, response: &mut dyn Response) {
        let all = all_types();
        let columns: Vec<Column> = all.iter().map(|(name, data_type, _)| column(name, data_type.clone(), false)).collect();
        response.columns(&columns);
        response.row(&all.iter().map(|(_, _, value)| value.clone()).collect::<Vec<_>>());
        response.done(Some(1));
    }

    fn echo(parameters: &[Parameter], response: &mut dyn Response) {
        let columns: Vec<Column> = parameters.iter().map(|one| column(&one.name, one.data_type.clone(), true)).collect();
        response.columns(&columns);
        response.row(&parameters.iter().map(|one| one.value.clone()).collect::<Vec<_>>());
        response.done(Some(1));
    }

    fn rows(&self, count: i64, response: &mut dyn Response) {
        response.columns(&wide_columns());
        let mut sent = 0;
        let mut row = wide_row(0);
        while sent < count && !response.is_closed() && !self.cancel.is_set() {
            row[4] = Value::Int(sent);
            row[10] = if sent % 7 == 0 { Value::Null } else { Value::Int(sent) };
            response.row(&row);
            self.rows.fetch_add(1, Ordering::Relaxed);
            sent += 1;
        }
        response.done(Some(sent as u64));
    }

    fn begin(&mut self, response: &mut dyn Response) {
        self.transaction = self.descriptors.fetch_add(1, Ordering::Relaxed) + 1;
        response.env_change(&EnvChange::BeginTransaction(self.transaction));
        response.done(None);
    }

    fn end(&mut self, commit: bool, response: &mut dyn Response) {
        if self.transaction == 0 {
            return response.error(&error(3902, 16, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION."));
        }
        let ended = std::mem::take(&mut self.transaction);
        response.env_change(&if commit { EnvChange::CommitTransaction(ended) } else { EnvChange::RollbackTransaction(ended) });
        response.done(None);
    }

    fn two(response: &mut dyn Response) {
        for n in 1..=2 {
            response.columns(&[column("n", DataType::Int, false)]);
            response.row(&[Value::Int(n)]);
            response.done(Some(1));
        }
        response.done(Some(5));
    }

    fn misfit(response: &mut dyn Response) {
        response.columns(&[column("n", DataType::TinyInt, false)]);
        response.row(&[Value::Int(1)]);
        response.row(&[Value::Int(256)]);
        response.row(&[Value::Int(2)]);
        response.done(Some(3));
    }

    fn state(&self, response: &mut dyn Response) {
        response.columns(&[
            column("database", DataType::NVarChar(Length::Limited(128)), false),
            column("transaction", DataType::BigInt, false),
            column("resets", DataType::BigInt, false),
        ]);
        response.row(&[Value::Text(self.database.clone()), Value::Int(self.transaction as i64), Value::Int(self.resets as i64)]);
        response.done(Some(1));
    }

    fn wait(&self, response: &mut dyn Response) {
        while !self.cancel.is_set() && !response.is_closed() {
            std::thread::yield_now();
        }
        response.done(None);
    }
}

impl Session for FakeSession {
    fn batch(&mut self, batch: &Batch, response: &mut dyn Response) {
        let sql = batch.sql.to_ascii_lowercase();
        let words: Vec<&str> = sql.split_whitespace().collect();
        match words.first().copied().unwrap_or_default() {
            "types" => self.types(response),
            "fixed" => self.fixed(response),
            "echo" => Self::echo(&batch.parameters, response),
            "rows" => self.rows(Self::number(&words), response),
            "long" => {
                response.columns(&[column("long", DataType::NVarChar(Length::Max), true)]);
                response.row(&[Value::Text("ab€d".repeat(Self::number(&words) as usize / 4))]);
                response.done(Some(1));
            }
            "dml" | "insert" | "update" | "delete" => response.done(Some(Self::number(&words) as u64)),
            "print" => {
                response.info(&error(0, 0, "printed"));
                response.done(None);
            }
            "fail" => response.error(&error(547, 16, "The INSERT statement conflicted with a constraint.")),
            "fatal" => response.error(&error(21, 20, "A fatal error.")),
            "misfit" => Self::misfit(response),
            "two" => Self::two(response),
            "wait" | "waitfor" => self.wait(response),
            "endless" => self.rows(i64::MAX, response),
            "state" => self.state(response),
            "output" | "exec" => {
                response.return_status(3);
                for parameter in batch.parameters.iter().filter(|one| one.output) {
                    response.return_value(&Parameter { value: Value::Int(42), ..parameter.clone() });
                }
                response.done(None);
            }
            "begin" => self.begin(response),
            "commit" => self.end(true, response),
            "rollback" => self.end(false, response),
            "if" if sql.contains("rollback tran") => match self.transaction {
                0 => response.done(None),
                _ => self.end(false, response),
            },
            "if" if sql.contains("commit tran") => match self.transaction {
                0 => response.done(None),
                _ => self.end(true, response),
            },
            "use" => {
                let old = std::mem::replace(&mut self.database, words[1..].concat().replace(['[', ']', ';'], ""));
                response.env_change(&EnvChange::Database { new: self.database.clone(), old });
                response.done(None);
            }
            "panic" => panic!("as the test asked"),
            "" => {}
            "set" => {
                if sql.contains("implicit_transactions on") && self.transaction == 0 {
                    return self.begin(response);
                }
                response.done(None);
            }
            other => response.error(&error(102, 15, &format!("Incorrect syntax near '{other}'."))),
        }
    }

    fn call(&mut self, call: &Call, response: &mut dyn Response) {
        match call.procedure.as_str() {
            "echo" => Self::echo(&call.parameters, response),
            "output" => {
                for parameter in call.parameters.iter().filter(|one| one.output) {
                    response.return_value(&Parameter { value: Value::Int(43), ..parameter.clone() });
                }
                response.return_status(3);
            }
            other => response.error(&error(2812, 16, &format!("Could not find stored procedure '{other}'."))),
        }
    }

    fn transaction(&mut self, request: &TransactionRequest, response: &mut dyn Response) {
        match request {
            TransactionRequest::Begin { .. } => self.begin(response),
            TransactionRequest::Commit { .. } => self.end(true, response),
            TransactionRequest::Rollback { .. } => self.end(false, response),
            TransactionRequest::Save { .. } => response.done(None),
        }
    }

    fn describe(&mut self, batch: &Batch) -> Result<Vec<Column>, SqlError> {
        match batch.sql.split_whitespace().next() {
            Some("types") => Ok(all_types().iter().map(|(name, data_type, _)| column(name, data_type.clone(), true)).collect()),
            Some("echo") => Ok(batch.parameters.iter().map(|one| column(&one.name, one.data_type.clone(), true)).collect()),
            Some("rows") => Ok(wide_columns()),
            Some("fail") => Err(error(208, 16, "Invalid object name 'fail'.")),
            _ => Ok(Vec::new()),
        }
    }

    fn reset(&mut self) {
        self.transaction = 0;
        self.resets += 1;
    }

    fn database(&self) -> String {
        self.database.clone()
    }
}
