//! Batches and control of flow.
//!
//! An error ends its statement and is sent; the batch goes on with the next, unless the error is of a kind that ends the batch, XACT_ABORT is on, or a TRY
//! block catches it.

use sqlparser::ast::Expr;
use tds::{Batch, DataType, Isolation, Length, Response, SqlError, Value};

use super::{Session, fault, procedures};
use crate::message;
use crate::parse::{Kind, Statement};
use crate::types;
use crate::types::convert::to_text;

/// What comes after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    /// RETURN with a status.
    Return(i32),
    /// The batch ends: an error was sent.
    Abort,
}

impl Session {
    pub(super) fn run_batch(&self, batch: &Batch, response: &mut dyn Response) {
        self.set_parameters(batch);
        match self.shared.script(&batch.sql) {
            Ok(script) => {
                // Nobody is left to be told.
                let _ = self.run(&script, false, response);
                for p in batch.parameters.iter().filter(|p| p.output) {
                    let value = self.variables.borrow().get(&p.name.to_ascii_lowercase()).map_or(Value::Null, |v| v.1.clone());
                    response.return_value(&tds::Parameter { value, ..p.clone() });
                }
            }
            Err(e) => {
                self.failed(&e);
                response.error(&e);
            }
        }
        self.end_batch(response);
    }

    /// After the last statement of a batch: a transaction that cannot go on is rolled back; table variables go.
    pub(super) fn end_batch(&self, response: &mut dyn Response) {
        if self.transaction.borrow().doomed {
            let id = self.transaction.borrow().id;
            self.rollback_all();
            response.env_change(&tds::EnvChange::RollbackTransaction(id as u64));
            response.error(&message::error(
                3998,
                16,
                "Uncommittable transaction is detected at the end of the batch. The transaction is rolled back.".into(),
            ));
        }
        self.last.borrow_mut().caught.clear();
        let gone: Vec<String> = self.temporary.borrow().keys().filter(|k| k.starts_with('@')).cloned().collect();
        for name in gone {
            self.drop_temporary(&name);
        }
    }

    pub(super) fn failed(&self, e: &SqlError) {
        self.last.borrow_mut().error = e.number;
    }

    /// Runs statements in turn. `guarded`: inside TRY, errors go up.
    pub(super) fn run(&self, statements: &[Statement], guarded: bool, response: &mut dyn Response) -> Result<Flow, SqlError> {
        for statement in statements {
            if self.cancel.is_set() || response.is_closed() {
                return Ok(Flow::Abort);
            }
            match self.run_one(statement, guarded, response) {
                Ok(Flow::Next) => {}
                Ok(other) => return Ok(other),
                Err(mut e) => {
                    if e.line <= 1 {
                        e.line = statement.line;
                    }
                    self.failed(&e);
                    let abort = self.settings.borrow().xact_abort;
                    if e.number == 1205 || e.number == 3960 {
                        self.abandon(response);
                    }
                    if guarded {
                        if abort && self.in_transaction() {
                            self.transaction.borrow_mut().doomed = true;
                        }
                        return Err(e);
                    }
                    response.error(&e);
                    if matches!(e.number, 300 | 262) && e.message.starts_with("VIEW ") {
                        let refused = "The user does not have permission to perform this action.";
                        response.error(&SqlError { line: e.line, ..message::error(297, 16, refused.into()) });
                    }
                    if abort && self.in_transaction() && e.class > 10 {
                        self.abandon(response);
                        return Ok(Flow::Abort);
                    }
                    if fault::ends_batch(&e) {
                        return Ok(Flow::Abort);
                    }
                }
            }
        }
        Ok(Flow::Next)
    }

    fn abandon(&self, response: &mut dyn Response) {
        if self.in_transaction() {
            let id = self.transaction.borrow().id;
            self.rollback_all();
            response.env_change(&tds::EnvChange::RollbackTransaction(id as u64));
        }
    }

    fn run_one(&self, s: &Statement, guarded: bool, response: &mut dyn Response) -> Result<Flow, SqlError> {
        let flow = match &s.kind {
            Kind::If { condition, then, otherwise } => {
                if self.holds(s.id, condition)? {
                    return self.run(std::slice::from_ref(then), guarded, response);
                }
                return match otherwise {
                    Some(o) => self.run(std::slice::from_ref(o), guarded, response),
                    None => Ok(Flow::Next),
                };
            }
            Kind::While { condition, body } => {
                while self.holds(s.id, condition)? {
                    match self.run(std::slice::from_ref(body), guarded, response)? {
                        Flow::Next | Flow::Continue => {}
                        Flow::Break => break,
                        other => return Ok(other),
                    }
                    if self.cancel.is_set() {
                        return Ok(Flow::Abort);
                    }
                }
                Flow::Next
            }
            Kind::Block(list) => return self.run(list, guarded, response),
            Kind::TryCatch { body, handler } => return self.try_catch(body, handler, guarded, response),
            Kind::Break => Flow::Break,
            Kind::Continue => Flow::Continue,
            Kind::Return(e) => {
                let status = match e {
                    Some(e) => match self.scalar(e)?.0 {
                        Value::Int(i) => i as i32,
                        _ => 0,
                    },
                    None => 0,
                };
                Flow::Return(status)
            }
            _ => {
                self.simple(s, response)?;
                Flow::Next
            }
        };
        Ok(flow)
    }

    fn try_catch(
        &self,
        body: &[Statement],
        handler: &[Statement],
        guarded: bool,
        response: &mut dyn Response,
    ) -> Result<Flow, SqlError> {
        match self.run(body, true, response) {
            Ok(flow) => Ok(flow),
            // Attention and errors that break the connection are not caught.
            Err(e) if e.class >= 20 || e.number == 3617 => Err(e),
            Err(e) => {
                self.last.borrow_mut().caught.push(e);
                let answer = self.run(handler, guarded, response);
                self.last.borrow_mut().caught.pop();
                answer
            }
        }
    }

    /// Statements without flow of their own.
    pub(super) fn simple(&self, s: &Statement, response: &mut dyn Response) -> Result<(), SqlError> {
        match &s.kind {
            Kind::Query(q) => self.select(s.id, q, response),
            Kind::Insert(i) => self.insert(s.id, i, response),
            Kind::Update(u) => self.update(s.id, u, response),
            Kind::Delete(d) => self.delete(s.id, d, response),
            Kind::Merge(m) => self.merge(m, response),
            Kind::Declare(list) => self.declare(list),
            Kind::SetVariable { name, value } => {
                let (v, t) = self.scalar(value)?;
                self.set_variable(name, v, &t)
            }
            Kind::SetOption(words) => self.set_option(words, response),
            Kind::Print(e) => {
                let (v, t) = self.scalar(e)?;
                let text = if v == Value::Null { String::new() } else { to_text(&v, &t, &DataType::NVarChar(Length::Max), 0)? };
                response.info(&SqlError { line: s.line, ..message::error(0, 0, text) });
                response.done(None);
                Ok(())
            }
            Kind::Raiserror { arguments } => self.raiserror(arguments, s.line, response),
            Kind::Throw(arguments) => self.throw(arguments.as_deref(), s.line),
            Kind::Execute { procedure, arguments, status } => self.execute(procedure, arguments, status.as_deref(), response),
            Kind::ExecuteText(parts) => {
                let mut text = String::new();
                for p in parts {
                    let (v, t) = self.scalar(p)?;
                    text.push_str(&to_text(&v, &t, &DataType::NVarChar(Length::Max), 0)?);
                }
                self.run_text(&text, &[], response).map(|_| ())
            }
            Kind::Use(name) => {
                self.use_database(name, response)?;
                response.done(None);
                Ok(())
            }
            Kind::BeginTransaction => {
                self.begin(response);
                response.done(None);
                Ok(())
            }
            Kind::Commit => {
                self.commit(response)?;
                response.done(None);
                Ok(())
            }
            Kind::Rollback(name) => {
                self.rollback(name.as_deref(), response)?;
                response.done(None);
                Ok(())
            }
            Kind::Save(name) => {
                self.save(name)?;
                response.done(None);
                Ok(())
            }
            Kind::Nothing => Ok(()),
            Kind::WaitFor(e) => self.wait_for(e),
            Kind::Kill(spid) => {
                self.kill(*spid)?;
                response.done(None);
                Ok(())
            }
            _ => {
                self.define(s, response)?;
                self.last.borrow_mut().rowcount = 0;
                response.done(None);
                Ok(())
            }
        }?;
        self.last.borrow_mut().error = 0;
        Ok(())
    }

    /// Runs a text within the batch: EXEC('…') and sp_executesql. Variables of the caller are out of its sight.
    pub(super) fn run_text(
        &self,
        text: &str,
        parameters: &[tds::Parameter],
        response: &mut dyn Response,
    ) -> Result<Vec<(String, Value)>, SqlError> {
        let depth = self.depth.get();
        if depth >= 32 {
            return Err(message::error(
                217,
                16,
                "Maximum stored procedure, function, trigger, or view nesting level exceeded (limit 32).".into(),
            ));
        }
        let script = self.shared.script(text)?;
        let outer = self.variables.take();
        self.set_parameters(&Batch { sql: String::new(), parameters: parameters.to_vec() });
        self.depth.set(depth + 1);
        let answer = self.run(&script, true, response);
        self.depth.set(depth);
        let inner = self.variables.replace(outer);
        answer?;
        Ok(parameters
            .iter()
            .filter(|p| p.output)
            .map(|p| (p.name.clone(), inner.get(&p.name.to_ascii_lowercase()).map_or(Value::Null, |v| v.1.clone())))
            .collect())
    }

    fn wait_for(&self, e: &Expr) -> Result<(), SqlError> {
        let (v, t) = self.scalar(e)?;
        let moment = types::convert::convert(v, &t, &DataType::Time { scale: 3 }, 0, types::convert::Mode::Cast)?;
        let Value::Time(ticks) = moment else { return Err(message::syntax("DELAY", 1)) };
        let end = std::time::Instant::now() + std::time::Duration::from_nanos(ticks * 100);
        while std::time::Instant::now() < end && !self.cancel.is_set() {
            #[expect(clippy::disallowed_methods, reason = "WAITFOR DELAY is a pause; it looks for attention in between")]
            std::thread::sleep(std::time::Duration::from_millis(5).min(end.saturating_duration_since(std::time::Instant::now())));
        }
        Ok(())
    }

    fn raiserror(&self, arguments: &[Expr], line: u32, response: &mut dyn Response) -> Result<(), SqlError> {
        let mut values = Vec::new();
        for a in arguments {
            let (v, t) = self.scalar(a)?;
            values.push(match &v {
                Value::Int(i) => (i.to_string(), Some(*i)),
                Value::Null => ("(null)".into(), None),
                _ => (to_text(&v, &t, &DataType::NVarChar(Length::Max), 0)?, None),
            });
        }
        let (number, text) = match values.first() {
            Some((text, Some(n))) => (*n as i32, format!("Error {text}")),
            Some((text, None)) => (50_000, formatted(text, values.get(3..).unwrap_or_default())),
            None => return Err(message::syntax("RAISERROR", line)),
        };
        let class = values.get(1).and_then(|v| v.1).unwrap_or(16).clamp(0, 25) as u8;
        let state = values.get(2).and_then(|v| v.1).unwrap_or(1).clamp(0, 255) as u8;
        let e = SqlError { state, line, ..message::error(number, class, text) };
        if class <= 10 {
            response.info(&e);
            response.done(None);
            return Ok(());
        }
        Err(e)
    }

    fn throw(&self, arguments: Option<&[Expr; 3]>, line: u32) -> Result<(), SqlError> {
        let Some([number, text, state]) = arguments else {
            return Err(self.last.borrow().caught.last().cloned().unwrap_or_else(|| message::error(10_704, 15, "To rethrow an error, a THROW statement must be used inside a CATCH block. Insert the THROW statement inside a CATCH block, or add error parameters to the THROW statement.".into())));
        };
        let (n, _) = self.scalar(number)?;
        let (v, t) = self.scalar(text)?;
        let (s, _) = self.scalar(state)?;
        let number = |v: &Value| if let Value::Int(i) = v { *i } else { 0 };
        Err(SqlError {
            state: number(&s) as u8,
            line,
            ..message::error(number(&n) as i32, 16, to_text(&v, &t, &DataType::NVarChar(Length::Max), 0)?)
        })
    }

    fn set_option(&self, words: &[String], response: &mut dyn Response) -> Result<(), SqlError> {
        let (Some(value), names) = (words.last(), &words[..words.len().saturating_sub(1)]) else { return Ok(()) };
        let on = value == "ON";
        let mut settings = self.settings.borrow_mut();
        if words[0] == "TRANSACTION" {
            settings.isolation = match value.as_str() {
                "UNCOMMITTED" => Isolation::ReadUncommitted,
                "COMMITTED" => Isolation::ReadCommitted,
                "SERIALIZABLE" => Isolation::Serializable,
                "SNAPSHOT" => Isolation::Snapshot,
                _ => Isolation::RepeatableRead,
            };
            return Ok(());
        }
        for name in names {
            match name.as_str() {
                "NOCOUNT" => settings.nocount = on,
                "XACT_ABORT" => settings.xact_abort = on,
                "IMPLICIT_TRANSACTIONS" => settings.implicit_transactions = on,
                "LOCK_TIMEOUT" => settings.lock_timeout = value.parse().unwrap_or(-1),
                "ROWCOUNT" => settings.row_limit = value.parse().unwrap_or(0),
                "IDENTITY_INSERT" => {
                    let table = words.get(1).cloned().unwrap_or_default();
                    drop(settings);
                    return self.set_identity_insert(&table, on);
                }
                "FMTONLY" if on => return Err(message::unsupported("SET FMTONLY ON")),
                _ => {
                    settings.other.insert(name.clone(), value.clone());
                }
            }
        }
        drop(settings);
        response.done(None);
        Ok(())
    }

    fn set_identity_insert(&self, table: &str, on: bool) -> Result<(), SqlError> {
        let mut parts = crate::functions::split_name(table);
        let object = parts.pop().unwrap_or_default();
        let name = crate::parse::Name { schema: parts.pop(), database: parts.pop(), object };
        let mut translator = crate::translate::Translator::new(self);
        let (_, found) = translator.find(&name)?;
        self.settings.borrow_mut().identity_insert = on.then_some(found.object_id);
        Ok(())
    }

    fn declare(&self, list: &[crate::parse::Declaration]) -> Result<(), SqlError> {
        for d in list {
            if let Some(table) = &d.table {
                self.create_temporary(table)?;
                continue;
            }
            let key = d.name.to_ascii_lowercase();
            let (declared, _) = self.resolved(&d.what)?;
            self.variables.borrow_mut().insert(key, (declared.data_type, Value::Null));
            if let Some(e) = &d.initial {
                let (v, t) = self.scalar(e)?;
                self.set_variable(&d.name, v, &t)?;
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        procedure: &crate::parse::Name,
        arguments: &[crate::parse::Argument],
        status: Option<&str>,
        response: &mut dyn Response,
    ) -> Result<(), SqlError> {
        // EXEC @name: the procedure's name is in a variable.
        let name = if procedure.object.starts_with('@') {
            let variables = self.variables.borrow();
            match variables.get(&procedure.object.to_ascii_lowercase()) {
                Some((_, Value::Text(name))) => name.clone(),
                _ => return Err(message::no_variable(&procedure.object)),
            }
        } else {
            procedure.to_string()
        };
        let mut list = Vec::new();
        for a in arguments {
            let (value, data_type) = match &a.value {
                Some(e) => self.scalar(e)?,
                None => (Value::Null, DataType::Int),
            };
            list.push(procedures::Argument { name: a.name.clone().unwrap_or_default(), value, data_type, output: a.output });
        }
        let outcome = self.procedure(&name, list, response)?;
        for (i, (parameter, value)) in outcome.outputs.iter().enumerate() {
            let target = arguments
                .iter()
                .filter(|a| a.output)
                .find(|a| a.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(parameter)))
                .or_else(|| arguments.iter().filter(|a| a.output).nth(i));
            if let Some(Expr::Identifier(v)) = target.and_then(|a| a.value.as_ref()) {
                let t = self.variables.borrow().get(&v.value.to_ascii_lowercase()).map(|v| v.0.clone()).unwrap_or(DataType::Int);
                self.set_variable(&v.value, value.clone(), &t)?;
            }
        }
        if let Some(v) = status {
            self.set_variable(v, Value::Int(i64::from(outcome.status)), &DataType::Int)?;
        }
        Ok(())
    }
}

/// RAISERROR's message with its `%s` and `%d` filled in.
fn formatted(text: &str, arguments: &[(String, Option<i64>)]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = String::new();
        while let Some(d) = chars.peek().copied() {
            chars.next();
            directive.push(d);
            if matches!(d, 's' | 'd' | 'i' | 'u' | 'x' | 'X' | 'o' | '%') {
                break;
            }
        }
        match directive.as_str() {
            "%" => out.push('%'),
            _ => out.push_str(arguments.next().map_or("(null)", |a| a.0.as_str())),
        }
    }
    out
}
