//! Prepared statements: `sp_executesql`, `sp_prepare`, `sp_prepexec`, `sp_execute`, `sp_unprepare`, and the handles that they give out.
//!
//! A handle is the text and its parsed declarations; the engine sees only batches. Handles belong to the connection and die with it or with a
//! reset.

use std::collections::HashMap;

use crate::answer::Answer;
use crate::binding;
use crate::cursor::Cursor;
use crate::data::{DataType, Value};
use crate::declaration::{self, Declared};
use crate::describe;
use crate::rpc::Known;
use crate::session::{Batch, Command, Parameter, Response, SqlError};
use crate::worker::Worker;

type Outcome<T> = std::result::Result<T, SqlError>;

/// A prepared statement.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) sql: String,
    pub(crate) declared: Vec<Declared>,
    /// Of a prepared cursor: its scroll options.
    pub(crate) scroll: i64,
}

/// What a connection's handles stand for.
#[derive(Default)]
pub(crate) struct Handles {
    last: i64,
    prepared: HashMap<i64, Prepared>,
    cursors: HashMap<i64, Cursor>,
}

impl Handles {
    pub(crate) fn clear(&mut self) {
        self.prepared.clear();
        self.cursors.clear();
    }

    fn next(&mut self) -> i64 {
        self.last += 1;
        self.last
    }

    pub(crate) fn add(&mut self, prepared: Prepared, limit: usize) -> Outcome<i64> {
        if self.prepared.len() >= limit {
            return Err(error(701, 17, format!("The connection holds {limit} prepared statements: unprepare some.")));
        }
        let handle = self.next();
        self.prepared.insert(handle, prepared);
        Ok(handle)
    }

    pub(crate) fn prepared(&self, handle: i64) -> Outcome<&Prepared> {
        self.prepared.get(&handle).ok_or_else(|| unknown_handle(handle))
    }

    pub(crate) fn remove(&mut self, handle: i64) -> Outcome<Prepared> {
        self.prepared.remove(&handle).ok_or_else(|| unknown_handle(handle))
    }

    pub(crate) fn open(&mut self, cursor: Cursor, limit: usize) -> Outcome<i64> {
        if self.cursors.len() >= limit {
            return Err(error(701, 17, format!("The connection has {limit} cursors open: close some.")));
        }
        // As SQL Server numbers them, out of the way of prepared handles.
        let handle = 180_150_000 + self.next();
        self.cursors.insert(handle, cursor);
        Ok(handle)
    }

    pub(crate) fn cursor(&mut self, handle: i64) -> Outcome<&mut Cursor> {
        self.cursors.get_mut(&handle).ok_or_else(|| unknown_cursor(handle))
    }

    pub(crate) fn close(&mut self, handle: i64) -> Outcome<Cursor> {
        self.cursors.remove(&handle).ok_or_else(|| unknown_cursor(handle))
    }
}

pub(crate) fn error(number: i32, class: u8, message: String) -> SqlError {
    SqlError { number, state: 1, class, message, procedure: String::new(), line: 1 }
}

fn unknown_handle(handle: i64) -> SqlError {
    error(8179, 16, format!("Could not find prepared statement with handle {handle}."))
}

fn unknown_cursor(handle: i64) -> SqlError {
    error(16916, 16, format!("A cursor with the handle {handle} does not exist."))
}

/// The parameters of a call, taken one after the other.
pub(crate) struct Arguments {
    procedure: &'static str,
    rest: std::vec::IntoIter<Parameter>,
    pub(crate) taken: usize,
}

impl Arguments {
    pub(crate) fn new(procedure: &'static str, parameters: Vec<Parameter>) -> Arguments {
        Arguments { procedure, rest: parameters.into_iter(), taken: 0 }
    }

    pub(crate) fn next(&mut self) -> Option<Parameter> {
        self.taken += 1;
        self.rest.next()
    }

    fn wrong(&self, what: &str) -> SqlError {
        error(214, 16, format!("Procedure expects parameter {} of type '{what}' ({}).", self.taken, self.procedure))
    }

    pub(crate) fn parameter(&mut self, what: &str) -> Outcome<Parameter> {
        self.next().ok_or_else(|| self.wrong(what))
    }

    pub(crate) fn text(&mut self) -> Outcome<String> {
        match self.next().map(|parameter| parameter.value) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(self.wrong("ntext/nchar/nvarchar")),
        }
    }

    /// Text that may be left out or NULL.
    pub(crate) fn optional_text(&mut self) -> Outcome<String> {
        match self.next().map(|parameter| parameter.value) {
            Some(Value::Text(text)) => Ok(text),
            None | Some(Value::Null) => Ok(String::new()),
            Some(_) => Err(self.wrong("ntext/nchar/nvarchar")),
        }
    }

    pub(crate) fn integer(&mut self) -> Outcome<i64> {
        match self.next().map(|parameter| parameter.value) {
            Some(Value::Int(n)) => Ok(n),
            _ => Err(self.wrong("int")),
        }
    }

    /// An integer that may be left out or NULL.
    pub(crate) fn optional_integer(&mut self, default: i64) -> Outcome<i64> {
        match self.next().map(|parameter| parameter.value) {
            Some(Value::Int(n)) => Ok(n),
            None | Some(Value::Null) => Ok(default),
            Some(_) => Err(self.wrong("int")),
        }
    }

    /// What is left: the values for a statement's parameters.
    pub(crate) fn values(self) -> Vec<Parameter> {
        self.rest.collect()
    }
}

/// An integer handed back by a procedure of the protocol's own.
pub(crate) fn returned(name: &str, value: i64) -> Parameter {
    Parameter { name: name.to_owned(), data_type: DataType::Int, value: Value::Int(value), output: true }
}

impl Worker {
    /// One of the procedures that are about the protocol. What goes wrong is the procedure's error.
    pub(crate) fn known_procedure(&mut self, known: Known, parameters: Vec<Parameter>, answer: &mut Answer<'_>) {
        let outcome = match known {
            Known::ExecuteSql => self.execute_sql(parameters, answer),
            Known::Prepare => self.prepare(parameters, answer),
            Known::PrepExec => self.prepare_and_execute(parameters, answer),
            Known::Execute => self.execute_prepared(parameters, answer),
            Known::Unprepare => self.unprepare(parameters),
            Known::DescribeFirstResultSet => self.describe_first_result_set(parameters, answer),
            Known::PrepExecRpc => {
                Err(error(2812, 16, "sp_prepexecrpc is not supported: use sp_prepexec, or call the procedure itself.".to_owned()))
            }
            _ => self.cursor_procedure(known, parameters, answer),
        };
        if let Err(error) = outcome {
            answer.error(&error);
        }
        if answer.failed() {
            answer.status_if_none(FAILED);
        }
    }

    fn execute_sql(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_executesql", parameters);
        let sql = arguments.text()?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        self.run(&sql, &declared, arguments, answer)
    }

    fn prepare(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        const WITH_COLUMNS: i64 = 1;
        let mut arguments = Arguments::new("sp_prepare", parameters);
        let handle = arguments.parameter("int")?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        let sql = arguments.text()?;
        let options = arguments.optional_integer(WITH_COLUMNS)?;
        if options & WITH_COLUMNS != 0 {
            let columns = self.described(&sql, &declared)?;
            if !columns.is_empty() {
                answer.describe(&columns);
                answer.command(Command::Select);
                answer.done(None);
            }
        }
        let number = self.handles.add(Prepared { sql, declared, scroll: 0 }, self.options.limits.handles)?;
        answer.return_at(0, returned(&handle.name, number));
        Ok(())
    }

    /// The columns of the first result, by the engine; its error says that the statement cannot be prepared.
    pub(crate) fn described(&mut self, sql: &str, declared: &[Declared]) -> Outcome<Vec<crate::data::Column>> {
        let parameter = |one: &Declared| Parameter {
            name: one.name.clone(),
            data_type: one.data_type.clone(),
            value: Value::Null,
            output: one.output,
        };
        let batch = Batch { sql: sql.to_owned(), parameters: declared.iter().map(parameter).collect() };
        self.session.describe(&batch)
    }

    fn prepare_and_execute(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_prepexec", parameters);
        let handle = arguments.parameter("int")?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        let sql = arguments.text()?;
        // A handle that is given is that of a statement to forget.
        if let Value::Int(old) = handle.value {
            self.handles.remove(old).ok();
        }
        let prepared = Prepared { sql: sql.clone(), declared: declared.clone(), scroll: 0 };
        let number = self.handles.add(prepared, self.options.limits.handles)?;
        answer.return_at(0, returned(&handle.name, number));
        self.run(&sql, &declared, arguments, answer)
    }

    fn execute_prepared(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_execute", parameters);
        let handle = arguments.integer()?;
        let Prepared { sql, declared, .. } = self.handles.prepared(handle)?.clone();
        self.run(&sql, &declared, arguments, answer)
    }

    fn unprepare(&mut self, parameters: Vec<Parameter>) -> Outcome<()> {
        let handle = Arguments::new("sp_unprepare", parameters).integer()?;
        self.handles.remove(handle).map(|_| ())
    }

    fn run(&mut self, sql: &str, declared: &[Declared], arguments: Arguments, answer: &mut Answer<'_>) -> Outcome<()> {
        let first = arguments.taken;
        let (parameters, ordinals) = binding::bind(declared, arguments.values(), first, sql, self.options.collation)?;
        answer.set_ordinals(ordinals);
        self.execute(&Batch { sql: sql.to_owned(), parameters }, answer);
        Ok(())
    }

    fn describe_first_result_set(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_describe_first_result_set", parameters);
        let sql = arguments.text()?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        let columns = self.described(&sql, &declared)?;
        answer.columns(&describe::columns());
        for (at, column) in columns.iter().enumerate() {
            answer.row(&describe::row(at + 1, column, self.options.collation));
        }
        answer.done(Some(columns.len() as u64));
        Ok(())
    }
}

/// The return status of a procedure that failed; the number of the error, which SQL Server mostly gives, is not looked at by clients.
const FAILED: i32 = -6;
