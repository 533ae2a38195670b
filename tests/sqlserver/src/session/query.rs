//! Runs translated queries: binds, reads rows, converts them to the protocol's values.

use std::sync::Arc;

use rusqlite::types::Value as Stored;
use rusqlite::{Row, Statement};
use sqlparser::ast::{Expr, Query};
use tds::{DataType, Length, Response, SqlError, Value};

use super::{Link, Session, fault};
use crate::message;
use crate::parse;
use crate::translate::dml::{ChangePlan, InsertPlan};
use crate::translate::{Source, Translated, Translator};
use crate::types::convert::{Mode, convert};
use crate::types::{self, date, storage};

/// What is kept of a statement's translation.
pub(crate) enum Cached {
    Query(Translated),
    Insert(InsertPlan),
    Change(ChangePlan),
}

impl Session {
    /// The value of a parameter, in stored form.
    pub(super) fn source_value(&self, source: &Source, t: &DataType) -> Stored {
        match source {
            Source::Variable(name) => self.variables.borrow().get(name).map_or(Stored::Null, |(own, v)| storage::encode(v, own)),
            Source::Moment(name) => storage::encode(&self.moment(name), t),
        }
    }

    fn moment(&self, name: &str) -> Value {
        let last = self.last.borrow();
        let number = |n: Option<i64>| n.map_or(Value::Null, |n| Value::Decimal { mantissa: i128::from(n), scale: 0 });
        let caught = last.caught.last();
        let time = |now: i64, offset_minutes: i16, t: &DataType| {
            let day = date::TICKS_PER_DAY as i64;
            let m = date::Moment { days: now.div_euclid(day), ticks: now.rem_euclid(day) as u64, offset_minutes };
            date::value(m, t).unwrap_or(Value::Null)
        };
        let clock = &self.shared.clock;
        match name {
            "rowcount" => Value::Int(last.rowcount),
            "error" => Value::Int(i64::from(last.error)),
            "trancount" => Value::Int(i64::from(self.transaction.borrow().count)),
            "identity" => number(last.identity),
            "scope_identity" => number(last.scope_identity),
            "xact_state" => {
                let t = self.transaction.borrow();
                Value::Int(if t.count == 0 {
                    0
                } else if t.doomed {
                    -1
                } else {
                    1
                })
            }
            "transaction_id" => Value::Int(self.transaction.borrow().id),
            "lock_timeout" => Value::Int(self.settings.borrow().lock_timeout),
            "options" => Value::Int(5496),
            "fetch_status" => Value::Int(-1),
            "dbts" => {
                drop(last);
                let current = self.current();
                let n = self
                    .with(&current, |l| crate::catalog::setting(&l.db, "rowversion").map_err(|e| fault::from_sqlite(&e)))
                    .unwrap_or(0);
                Value::Bytes(n.to_be_bytes().to_vec())
            }
            "getdate" => time(clock.local_ticks(), 0, &DataType::DateTime),
            "getutcdate" => time(clock.utc_ticks(), 0, &DataType::DateTime),
            "sysdatetime" => time(clock.local_ticks(), 0, &DataType::DateTime2 { scale: 7 }),
            "sysutcdatetime" => time(clock.utc_ticks(), 0, &DataType::DateTime2 { scale: 7 }),
            "sysdatetimeoffset" => time(clock.local_ticks(), clock.offset_minutes(), &DataType::DateTimeOffset { scale: 7 }),
            "error_number" => caught.map_or(Value::Null, |e| Value::Int(i64::from(e.number))),
            "error_severity" => caught.map_or(Value::Null, |e| Value::Int(i64::from(e.class))),
            "error_state" => caught.map_or(Value::Null, |e| Value::Int(i64::from(e.state))),
            "error_line" => caught.map_or(Value::Null, |e| Value::Int(i64::from(e.line))),
            "error_message" => caught.map_or(Value::Null, |e| Value::Text(e.message.clone())),
            "error_procedure" => {
                caught.filter(|e| !e.procedure.is_empty()).map_or(Value::Null, |e| Value::Text(e.procedure.clone()))
            }
            _ => Value::Null,
        }
    }

    pub(super) fn bind(&self, statement: &mut Statement<'_>, t: &Translated) -> Result<(), SqlError> {
        for (i, (source, data_type)) in t.parameters.iter().enumerate().take(statement.parameter_count()) {
            statement.raw_bind_parameter(i + 1, self.source_value(source, data_type)).map_err(|e| fault::from_sqlite(&e))?;
        }
        Ok(())
    }

    /// The types of all variables in sight: a translation is good for these only.
    fn signature(&self) -> Vec<i64> {
        let variables = self.variables.borrow();
        let mut list: Vec<(&String, i64)> = variables.iter().map(|(n, (t, _))| (n, types::code(t))).collect();
        list.sort_unstable();
        list.into_iter().map(|(_, c)| c).collect()
    }

    /// The kept translation of a statement, or a new one.
    pub(super) fn cached(&self, id: u64, make: impl FnOnce() -> Result<Cached, SqlError>) -> Result<Arc<Cached>, SqlError> {
        let key = (id, self.current(), self.signature());
        let version = self.catalog_version()?;
        if let Some((own, found)) = self.cache.borrow().get(&key)
            && *own == version
        {
            return Ok(found.clone());
        }
        let made = Arc::new(make()?);
        let t = match made.as_ref() {
            Cached::Query(t) => t,
            Cached::Insert(p) => &p.translated,
            Cached::Change(p) => &p.translated,
        };
        // Statements over other databases would need those databases' versions too.
        let keep = !t.volatile && t.attached.is_empty() && t.home == self.current();
        if keep {
            let mut cache = self.cache.borrow_mut();
            if cache.len() >= 500 {
                cache.clear();
            }
            cache.insert(key, (version, made.clone()));
        }
        Ok(made)
    }

    /// The current database's catalog version, mixed with the temporary tables in sight.
    fn catalog_version(&self) -> Result<i64, SqlError> {
        let current = self.current();
        let version = self.with(&current, |l| crate::catalog::version(&l.db).map_err(|e| fault::from_sqlite(&e)))?;
        let temporary: i64 = self.temporary.borrow().values().map(|o| o.object_id).sum();
        Ok(version.wrapping_mul(1_000_003).wrapping_add(temporary))
    }

    pub(super) fn select(&self, id: u64, q: &Query, response: &mut dyn Response) -> Result<(), SqlError> {
        let cached = self.cached(id, || {
            let mut translator = Translator::new(self);
            let sql = translator.statement_query(q)?;
            Ok(Cached::Query(translator.finish(sql)))
        })?;
        let Cached::Query(t) = cached.as_ref() else { return Err(message::syntax("SELECT", 1)) };
        if let Some(into) = &t.into {
            return self.select_into(into, t, response);
        }
        if !t.assigns.is_empty() {
            return self.select_assign(t, response);
        }
        let replayed = self.replay(t, response);
        let rows = replayed.unwrap_or_else(|| {
            self.stream(t, &mut |row| match row {
                Streamed::Columns(c) => response.columns(c),
                Streamed::Row(values) => response.row(values),
                Streamed::Closed(answer) => *answer = response.is_closed(),
            })
        })?;
        self.last.borrow_mut().rowcount = rows as i64;
        response.done(Some(rows));
        Ok(())
    }

    /// Runs a query and hands its columns, then its rows, to `sink`.
    pub(super) fn stream(&self, t: &Translated, sink: &mut dyn FnMut(Streamed<'_>)) -> Result<u64, SqlError> {
        self.prepare_links(t)?;
        if t.reads_rows {
            self.with(&t.home, |link| self.require_snapshots(link))?;
        }
        if t.locks && self.in_transaction() {
            self.with(&t.home, |link| self.join(link, true))?;
        }
        self.with(&t.home, |link| {
            self.join(link, false)?;
            if t.reads_rows {
                link.read_rows.set(true);
            }
            self.rows(link, t, &t.sql, sink)
        })
    }

    pub(super) fn rows(
        &self,
        link: &Link,
        t: &Translated,
        sql: &str,
        sink: &mut dyn FnMut(Streamed<'_>),
    ) -> Result<u64, SqlError> {
        let sqlite = |e: rusqlite::Error| fault::from_sqlite(&e);
        let mut statement = link.db.prepare_cached(sql).map_err(sqlite)?;
        self.bind(&mut statement, t)?;
        let limit = self.settings.borrow().row_limit;
        let mut rows = statement.raw_query();
        let mut count = 0u64;
        // An error before the first row must not look like the middle of a result.
        let mut next = rows.next().map_err(sqlite)?;
        sink(Streamed::Columns(&t.columns));
        let mut values: Vec<Value> = Vec::with_capacity(t.columns.len());
        while let Some(row) = next {
            read(row, t, &mut values)?;
            sink(Streamed::Row(&values));
            count += 1;
            if count == limit {
                break;
            }
            if count.is_multiple_of(64) {
                let mut closed = self.cancel.is_set();
                if !closed {
                    sink(Streamed::Closed(&mut closed));
                }
                if closed {
                    return Err(message::error(3617, 16, "Query was canceled by user.".into()));
                }
            }
            next = rows.next().map_err(sqlite)?;
        }
        Ok(count)
    }

    fn select_assign(&self, t: &Translated, response: &mut dyn Response) -> Result<(), SqlError> {
        if t.assigns.len() != t.columns.len() {
            return Err(message::error(
                141,
                15,
                "A SELECT statement that assigns a value to a variable must not be combined with data-retrieval operations."
                    .into(),
            ));
        }
        let mut last: Option<Vec<Value>> = None;
        let rows = self.stream(t, &mut |s| {
            if let Streamed::Row(values) = s {
                last = Some(values.to_vec());
            }
        })?;
        if let Some(values) = last {
            for ((name, value), column) in t.assigns.iter().zip(values).zip(&t.columns) {
                self.set_variable(name, value, &column.data_type)?;
            }
        }
        self.last.borrow_mut().rowcount = rows as i64;
        response.done(Some(rows));
        Ok(())
    }

    pub(super) fn set_variable(&self, name: &str, value: Value, from: &DataType) -> Result<(), SqlError> {
        let mut variables = self.variables.borrow_mut();
        let Some((t, slot)) = variables.get_mut(&name.to_ascii_lowercase()) else { return Err(message::no_variable(name)) };
        // An assignment to a variable cuts strings, as CAST does.
        *slot = convert(value, from, t, 0, Mode::Cast)?;
        Ok(())
    }

    /// The value of an expression without columns.
    pub(super) fn scalar(&self, e: &Expr) -> Result<(Value, DataType), SqlError> {
        let mut translator = Translator::new(self);
        let typed = translator.value(e)?;
        if let Some(v) = &typed.value {
            return Ok((v.clone(), typed.data_type));
        }
        let mut t = translator.finish(format!("SELECT {}", typed.sql));
        t.columns = vec![tds::Column {
            name: String::new(),
            data_type: typed.data_type.clone(),
            nullable: true,
            identity: false,
            computed: false,
            collation: None,
        }];
        let mut value = Value::Null;
        self.stream(&t, &mut |s| {
            if let Streamed::Row([v, ..]) = s {
                value = v.clone();
            }
        })?;
        Ok((value, typed.data_type))
    }

    /// Whether a condition holds; unknown is false.
    pub(super) fn holds(&self, id: u64, e: &Expr) -> Result<bool, SqlError> {
        let cached = self.cached(id, || {
            let mut translator = Translator::new(self);
            let sql = translator.condition(e)?;
            let mut t = translator.finish(format!("SELECT ({sql}) IS 1"));
            t.columns = vec![tds::Column {
                name: String::new(),
                data_type: DataType::Bit,
                nullable: false,
                identity: false,
                computed: false,
                collation: None,
            }];
            Ok(Cached::Query(t))
        })?;
        let Cached::Query(t) = cached.as_ref() else { return Ok(false) };
        let mut answer = false;
        self.stream(t, &mut |s| {
            if let Streamed::Row([v, ..]) = s {
                answer = *v == Value::Bit(true);
            }
        })?;
        Ok(answer)
    }

    pub(super) fn describe_batch(&self, batch: &tds::Batch) -> Result<Vec<tds::Column>, SqlError> {
        let script = self.shared.script(&batch.sql)?;
        self.set_parameters(batch);
        for statement in script.iter() {
            if let parse::Kind::Query(q) = &statement.kind {
                let mut translator = Translator::new(self);
                let sql = translator.statement_query(q)?;
                let t = translator.finish(sql);
                if t.assigns.is_empty() && t.into.is_none() {
                    return Ok(t.columns);
                }
            }
        }
        Ok(Vec::new())
    }

    pub(super) fn set_parameters(&self, batch: &tds::Batch) {
        let mut variables = self.variables.borrow_mut();
        variables.clear();
        for p in &batch.parameters {
            // A NULL parameter may come as any type; text of unknown length is as long as it is.
            let t = match (&p.data_type, &p.value) {
                (DataType::NVarChar(Length::Limited(0)), _) => DataType::NVarChar(Length::Limited(1)),
                (t, _) => t.clone(),
            };
            variables.insert(p.name.to_ascii_lowercase(), (t, p.value.clone()));
        }
    }
}

/// What [`Session::stream`] hands out.
pub(super) enum Streamed<'a> {
    Columns(&'a [tds::Column]),
    Row(&'a [Value]),
    /// Asks whether anybody still reads.
    Closed(&'a mut bool),
}

/// Reads a row into the values of the one before, whose buffers serve again: a large result is read without an allocation a cell.
fn read(row: &Row<'_>, t: &Translated, values: &mut Vec<Value>) -> Result<(), SqlError> {
    values.resize(t.columns.len(), Value::Null);
    for (i, (c, value)) in t.columns.iter().zip(values).enumerate() {
        let stored = row.get_ref(i).map_err(|e| fault::from_sqlite(&e))?;
        storage::decode_into(stored, &c.data_type, value);
    }
    Ok(())
}
