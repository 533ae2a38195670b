//! Server cursors (`sp_cursoropen` and its relatives), over a result that is read whole when the cursor is opened.
//!
//! That makes every cursor a static, read-only one, which is what the answer to an open says, whatever was asked for: clients are told so
//! by the scroll and concurrency options that come back. Positioned updates (`sp_cursor`) are refused.

use crate::answer::Answer;
use crate::binding;
use crate::data::{Column, DataType, Value};
use crate::declaration::{self, Declared};
use crate::prepared::{Arguments, Prepared, error, returned};
use crate::rpc::Known;
use crate::session::{Batch, Command, EnvChange, Parameter, Response, SqlError};
use crate::worker::Worker;

type Outcome<T> = std::result::Result<T, SqlError>;

mod scroll {
    pub(super) const FORWARD_ONLY: i64 = 0x04;
    pub(super) const STATIC: i64 = 0x08;
    pub(super) const FAST_FORWARD: i64 = 0x10;
    pub(super) const PARAMETERIZED: i64 = 0x1000;
    pub(super) const AUTO_FETCH: i64 = 0x2000;
}

mod fetch {
    pub(super) const FIRST: i64 = 0x01;
    pub(super) const NEXT: i64 = 0x02;
    pub(super) const PREVIOUS: i64 = 0x04;
    pub(super) const LAST: i64 = 0x08;
    pub(super) const ABSOLUTE: i64 = 0x10;
    pub(super) const RELATIVE: i64 = 0x20;
    pub(super) const REFRESH: i64 = 0x80;
    pub(super) const INFO: i64 = 0x100;
}

const READ_ONLY: i64 = 1;
const CURSOR_OPENED: i32 = 0;

/// An open cursor.
pub(crate) struct Cursor {
    columns: Vec<Column>,
    rows: Vec<Vec<Value>>,
    /// The first row of the last fetch, and how many it had; before the first fetch both are 0 and nothing.
    start: usize,
    fetched: usize,
}

/// Gathers the first result of a batch, and lets everything but results through.
struct Capture<'a, 'b> {
    answer: &'a mut Answer<'b>,
    columns: Option<Vec<Column>>,
    rows: Vec<Vec<Value>>,
    results: usize,
    limit: usize,
    failed: bool,
}

impl Response for Capture<'_, '_> {
    fn columns(&mut self, columns: &[Column]) {
        self.results += 1;
        if self.results == 1 {
            self.columns = Some(columns.to_vec());
        }
    }

    fn row(&mut self, values: &[Value]) {
        if self.results == 1 && !self.is_closed() {
            self.rows.push(values.to_vec());
        }
    }

    fn done(&mut self, _rows: Option<u64>) {}

    fn error(&mut self, error: &SqlError) {
        self.failed |= error.class > 10;
        self.answer.error(error);
    }

    fn info(&mut self, message: &SqlError) {
        self.answer.info(message);
    }

    fn env_change(&mut self, change: &EnvChange) {
        self.answer.env_change(change);
    }

    fn return_status(&mut self, _status: i32) {}

    fn return_value(&mut self, _parameter: &Parameter) {}

    fn is_closed(&self) -> bool {
        self.rows.len() > self.limit || self.answer.is_closed()
    }
}

impl Cursor {
    /// The rows that a fetch asks for, as a range; it becomes the cursor's place.
    fn seek(&mut self, kind: i64, row: i64, count: usize) -> Outcome<std::ops::Range<usize>> {
        let total = self.rows.len() as i64;
        let (start, at) = (self.start as i64, self.fetched as i64);
        let wanted = match kind & 0x1FF {
            fetch::FIRST => 0,
            fetch::NEXT => start + at,
            fetch::PREVIOUS => start - count as i64,
            fetch::LAST => total - count as i64,
            fetch::ABSOLUTE if row < 0 => total + row,
            fetch::ABSOLUTE => row - 1,
            fetch::RELATIVE => start + row,
            fetch::REFRESH => start,
            other => return Err(error(16911, 16, format!("sp_cursorfetch: the fetch type {other} is not supported."))),
        };
        // A fetch that begins before the first row gives the rows from the first on, as far as they fall into what was asked for.
        let from = wanted.clamp(0, total);
        let back = if matches!(kind & 0x1FF, fetch::PREVIOUS | fetch::LAST) { 0 } else { wanted.min(0) };
        let to = from.saturating_add((count as i64 + back).max(0)).min(total);
        let to = if wanted < 0 && kind & 0x1FF == fetch::PREVIOUS { start.min(to) } else { to };
        self.start = from as usize;
        self.fetched = (to - from).max(0) as usize;
        Ok(self.start..self.start + self.fetched)
    }

    /// The result's columns with the status that every fetched row has behind them.
    fn fetch_columns(&self) -> Vec<Column> {
        let mut columns = self.columns.clone();
        columns.push(Column {
            name: "ROWSTAT".to_owned(),
            data_type: DataType::Int,
            nullable: false,
            identity: false,
            computed: true,
            collation: None,
        });
        columns
    }

    fn send(&self, range: std::ops::Range<usize>, answer: &mut Answer<'_>) {
        const SUCCEEDED: Value = Value::Int(1);
        let count = range.len() as u64;
        answer.columns(&self.fetch_columns());
        let mut row = Vec::new();
        for values in &self.rows[range] {
            row.clear();
            row.extend_from_slice(values);
            row.push(SUCCEEDED);
            answer.row(&row);
        }
        answer.done(Some(count));
    }
}

impl Worker {
    pub(crate) fn cursor_procedure(&mut self, known: Known, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        match known {
            Known::CursorOpen => self.cursor_open(parameters, answer),
            Known::CursorPrepare => self.cursor_prepare(parameters, answer),
            Known::CursorExecute => self.cursor_execute(parameters, answer),
            Known::CursorPrepExec => self.cursor_prepare_and_execute(parameters, answer),
            Known::CursorUnprepare => {
                let handle = Arguments::new("sp_cursorunprepare", parameters).integer()?;
                self.handles.remove(handle).map(|_| ())
            }
            Known::CursorFetch => self.cursor_fetch(parameters, answer),
            // Names of cursors and text in rows are of use to positioned updates alone.
            Known::CursorOption => {
                let handle = Arguments::new("sp_cursoroption", parameters).integer()?;
                self.handles.cursor(handle).map(|_| ())
            }
            Known::CursorClose => self.cursor_close(parameters),
            _ => Err(error(16929, 16, "The cursor is READ ONLY.".to_owned())),
        }
    }

    fn cursor_open(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_cursoropen", parameters);
        let cursor = arguments.parameter("int")?;
        let sql = arguments.text()?;
        let options = [arguments.next(), arguments.next(), arguments.next()];
        let scroll = integer_of(options[0].as_ref(), scroll::FORWARD_ONLY);
        let declared =
            if scroll & scroll::PARAMETERIZED == 0 { Vec::new() } else { declaration::parse(&arguments.optional_text()?)? };
        let names = [Some(&cursor), options[0].as_ref(), options[1].as_ref(), options[2].as_ref()];
        let names = names.map(|parameter| parameter.filter(|one| one.output).map(|one| one.name.clone()));
        let handle = self.open_cursor(&sql, &declared, arguments, scroll, integer_of(options[2].as_ref(), 0), answer)?;
        self.return_cursor(handle, scroll, &names, [0, 2, 3, 4], answer)
    }

    /// Runs the statement and opens a cursor over its result.
    fn open_cursor(
        &mut self,
        sql: &str,
        declared: &[Declared],
        arguments: Arguments,
        scroll: i64,
        fetch_rows: i64,
        answer: &mut Answer<'_>,
    ) -> Outcome<i64> {
        let first = arguments.taken;
        let (parameters, _) = binding::bind(declared, arguments.values(), first, sql, self.options.collation)?;
        let limit = self.options.limits.cursor_rows;
        let batch = Batch { sql: sql.to_owned(), parameters };
        if !self.may_run(sql, answer) {
            return Err(not_declared());
        }
        let (columns, rows) = {
            let mut capture = Capture { answer, columns: None, rows: Vec::new(), results: 0, limit, failed: false };
            self.session.batch(&batch, &mut capture);
            if capture.failed {
                return Err(not_declared());
            }
            (capture.columns, capture.rows)
        };
        if rows.len() > limit {
            return Err(error(
                16955,
                16,
                format!("Could not create an acceptable cursor: its result has more than {limit} rows."),
            ));
        }
        let Some(columns) = columns else {
            return Err(error(16937, 16, "A server cursor cannot be opened on a statement that has no result.".to_owned()));
        };
        let mut cursor = Cursor { columns, rows, start: 0, fetched: 0 };
        if scroll & scroll::AUTO_FETCH == 0 {
            answer.describe(&cursor.fetch_columns());
            answer.command(Command::Select);
            answer.done(None);
        } else {
            let range = cursor.seek(fetch::NEXT, 0, usize::try_from(fetch_rows.max(1)).unwrap_or(1))?;
            cursor.send(range, answer);
        }
        self.handles.open(cursor, self.options.limits.handles)
    }

    /// The output parameters of an open: the handle, and the options that the cursor really has.
    fn return_cursor(
        &mut self,
        handle: i64,
        scroll: i64,
        names: &[Option<String>; 4],
        places: [u16; 4],
        answer: &mut Answer<'_>,
    ) -> Outcome<()> {
        let rows = self.handles.cursor(handle)?.rows.len() as i64;
        let kind = scroll & (scroll::FORWARD_ONLY | scroll::FAST_FORWARD);
        let kind = if kind == 0 { scroll::STATIC } else { kind };
        for ((name, place), value) in names.iter().zip(places).zip([handle, kind, READ_ONLY, rows]) {
            if let Some(name) = name {
                answer.return_at(place, returned(name, value));
            }
        }
        answer.return_status(CURSOR_OPENED);
        Ok(())
    }

    fn cursor_prepare(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_cursorprepare", parameters);
        let handle = arguments.parameter("int")?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        let sql = arguments.text()?;
        let _options = arguments.optional_integer(0)?;
        let scroll = arguments.optional_integer(scroll::FORWARD_ONLY)?;
        let number = self.handles.add(Prepared { sql, declared, scroll }, self.options.limits.handles)?;
        answer.return_at(0, returned(&handle.name, number));
        Ok(())
    }

    fn cursor_execute(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_cursorexecute", parameters);
        let Prepared { sql, declared, scroll } = self.handles.prepared(arguments.integer()?)?.clone();
        let cursor = arguments.parameter("int")?;
        let options = [arguments.next(), arguments.next(), arguments.next()];
        let scroll = integer_of(options[0].as_ref(), scroll);
        let names = [Some(&cursor), options[0].as_ref(), options[1].as_ref(), options[2].as_ref()];
        let names = names.map(|parameter| parameter.filter(|one| one.output).map(|one| one.name.clone()));
        let handle = self.open_cursor(&sql, &declared, arguments, scroll, integer_of(options[2].as_ref(), 0), answer)?;
        self.return_cursor(handle, scroll, &names, [1, 2, 3, 4], answer)
    }

    fn cursor_prepare_and_execute(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_cursorprepexec", parameters);
        let prepared = arguments.parameter("int")?;
        let cursor = arguments.parameter("int")?;
        let declared = declaration::parse(&arguments.optional_text()?)?;
        let sql = arguments.text()?;
        let options = [arguments.next(), arguments.next(), arguments.next()];
        let scroll = integer_of(options[0].as_ref(), scroll::FORWARD_ONLY);
        let names = [Some(&cursor), options[0].as_ref(), options[1].as_ref(), options[2].as_ref()];
        let names = names.map(|parameter| parameter.filter(|one| one.output).map(|one| one.name.clone()));
        let statement = Prepared { sql: sql.clone(), declared: declared.clone(), scroll };
        let number = self.handles.add(statement, self.options.limits.handles)?;
        answer.return_at(0, returned(&prepared.name, number));
        let handle = self.open_cursor(&sql, &declared, arguments, scroll, integer_of(options[2].as_ref(), 0), answer)?;
        self.return_cursor(handle, scroll, &names, [1, 4, 5, 6], answer)
    }

    fn cursor_fetch(&mut self, parameters: Vec<Parameter>, answer: &mut Answer<'_>) -> Outcome<()> {
        let mut arguments = Arguments::new("sp_cursorfetch", parameters);
        let handle = arguments.integer()?;
        let kind = arguments.optional_integer(fetch::NEXT)?;
        let [row, rows] = [arguments.next(), arguments.next()];
        let cursor = self.handles.cursor(handle)?;
        if kind & fetch::INFO != 0 {
            // Asked for by a client that wants to know where it is, through the two output parameters.
            let names = [row, rows].map(|parameter| parameter.map_or(String::new(), |one| one.name));
            answer.return_at(2, returned(&names[0], cursor.start as i64 + 1));
            answer.return_at(3, returned(&names[1], cursor.rows.len() as i64));
            return Ok(());
        }
        let count = usize::try_from(integer_of(rows.as_ref(), 1).max(0)).unwrap_or(0);
        let range = cursor.seek(kind, integer_of(row.as_ref(), 0), count)?;
        cursor.send(range, answer);
        Ok(())
    }

    fn cursor_close(&mut self, parameters: Vec<Parameter>) -> Outcome<()> {
        let handle = Arguments::new("sp_cursorclose", parameters).integer()?;
        self.handles.close(handle).map(|_| ())
    }
}

/// Follows the error that says why.
fn not_declared() -> SqlError {
    error(16945, 16, "The cursor was not declared.".to_owned())
}

fn integer_of(parameter: Option<&Parameter>, default: i64) -> i64 {
    match parameter.map(|one| &one.value) {
        Some(Value::Int(n)) => *n,
        _ => default,
    }
}
