//! Reading change events ([`crate::envelope`]) lazily: first what the event is about ([`Head`]), then, for who still wants them, columns of its rows as slices
//! of the event's own text ([`Head::rows`]).
//!
//! A reader drops duplicates by their position; with the members in the envelope's own order, a duplicate's rows are never looked at. Foreign Debezium JSON is read as well: members in any order,
//! whitespace, the `{"schema":…,"payload":…}` wrapper. Then the first pass notes where the rows stand, and the second comes back to them.
//!
//! Our own events are read by what they must look like (`own`), the rest by what it is; both come to the same.
//!
//! Everything that has been passed over has been checked (see `scan`): a slice handed out is one well-formed JSON value. No input panics; what is refused names the
//! byte where it went wrong.

use std::borrow::Cow;

mod own;
mod scan;

use scan::{RawString, Scanner};

use crate::event::Op;
use crate::lsn::{Lsn, Position};
use crate::table::TableSchema;

/// An event that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("malformed JSON at byte {offset}: expected {expected}")]
    Syntax { offset: usize, expected: &'static str },
    #[error("not UTF-8 at byte {offset}")]
    Utf8 { offset: usize },
    #[error("no `{member}` in the event: it is not in Debezium's envelope as SQL Server's connector writes it")]
    Missing { member: &'static str },
    #[error("byte {offset}: `{member}` is {text}: expected {expected}")]
    Value { offset: usize, member: &'static str, text: String, expected: &'static str },
}

/// What an event is about.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    pub op: Op,
    pub schema: Cow<'a, str>,
    pub table: Cow<'a, str>,
    /// For a row that was read: the LSN from which the tail follows; where it was read again, the command id is the number of who read it ([`Reread::reading`](crate::progress::Reread::reading)).
    pub position: Position,
    pub commit_time_ms: i64,
    text: &'a str,
    before: Option<usize>,
    after: Option<usize>,
    /// Where reading goes on: the first member that has not been looked at. `None`: everything has been read.
    resume: Option<usize>,
}

/// Columns that a reader wants, in the order of the slots that it wants them in.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Every column of the table in its order.
    names: Vec<Name>,
    slots: usize,
}

#[derive(Debug, Clone)]
struct Name {
    /// As JSON, with quotes and colon: what a member of our own events begins with.
    member: Vec<u8>,
    plain: String,
    slot: Option<usize>,
}

impl Columns {
    /// `wanted` holds indexes into the table's columns; the n-th is read into slot n.
    pub fn new(table: &TableSchema, wanted: &[usize]) -> Self {
        let names = table.columns.iter().enumerate().map(|(index, column)| {
            let mut member = Vec::new();
            crate::value::write_string(&mut member, &column.name);
            member.push(b':');
            Name { member, plain: column.name.clone(), slot: wanted.iter().position(|&wanted| wanted == index) }
        });
        Self { names: names.collect(), slots: wanted.len() }
    }

    /// Passes over a member's name; the column that it stands for, if it is one of the table. `expected` is tried first: columns mostly stand in their order.
    fn pass(&self, scanner: &mut Scanner<'_>, expected: usize) -> Result<Option<usize>, ParseError> {
        if self.names.get(expected).is_some_and(|name| scanner.passes(&name.member)) {
            scanner.whitespace();
            return Ok(Some(expected));
        }
        let text = unescape(scanner.name()?);
        Ok(self.names.iter().position(|name| name.plain == text))
    }
}

/// The wanted columns of one row: a JSON value each, empty where the row does not have the column.
#[derive(Debug, Clone, Default)]
pub struct RowSlices<'a> {
    /// Whether the event has this row at all.
    pub present: bool,
    pub values: Vec<&'a [u8]>,
}

impl RowSlices<'_> {
    fn clear(&mut self, slots: usize) {
        self.present = false;
        self.values.clear();
        self.values.resize(slots, b"");
    }
}

/// The members of `source` that matter.
#[derive(Debug, PartialEq, Default)]
struct Source<'a> {
    schema: Option<Cow<'a, str>>,
    table: Option<Cow<'a, str>>,
    commit_lsn: Option<Lsn>,
    seqval: Option<Lsn>,
    command_id: i32,
    ts_ms: i64,
    incremental: bool,
}

#[derive(Debug, PartialEq, Default)]
struct Partial<'a> {
    op: Option<Op>,
    source: Option<Source<'a>>,
    before: Option<usize>,
    after: Option<usize>,
    resume: Option<usize>,
}

impl<'a> Head<'a> {
    /// Reads as far as needed to know what the event is about.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(bytes).map_err(|error| ParseError::Utf8 { offset: error.valid_up_to() })?;
        let partial = match own::head(text) {
            Some(partial) => partial,
            None => {
                let mut scanner = Scanner::new(text, 0);
                let mut partial = Partial::default();
                scanner.whitespace();
                envelope(&mut scanner, &mut partial, 0)?;
                if partial.resume.is_none() {
                    scanner.end()?;
                }
                partial
            }
        };
        let op = partial.op.ok_or(ParseError::Missing { member: "op" })?;
        let source = partial.source.ok_or(ParseError::Missing { member: "source" })?;
        let commit_lsn = source.commit_lsn.ok_or(ParseError::Missing { member: "source.commit_lsn" })?;
        let op = if op == Op::Read && source.incremental { Op::Reread } else { op };
        let operation = match op {
            Op::Delete => 1,
            Op::Create => 2,
            Op::Update => 4,
            Op::Read | Op::Reread => 0,
        };
        let seqval = match (op, source.seqval) {
            (Op::Read | Op::Reread, _) => Lsn::ZERO,
            (_, Some(seqval)) => seqval,
            (_, None) => return Err(ParseError::Missing { member: "source.change_lsn" }),
        };
        let command_id = match op {
            Op::Read => 0,
            Op::Reread | Op::Create | Op::Update | Op::Delete => source.command_id,
        };
        Ok(Self {
            op,
            schema: source.schema.ok_or(ParseError::Missing { member: "source.schema" })?,
            table: source.table.ok_or(ParseError::Missing { member: "source.table" })?,
            position: Position { commit_lsn, command_id, seqval, operation },
            commit_time_ms: source.ts_ms,
            text,
            before: partial.before,
            after: partial.after,
            resume: partial.resume,
        })
    }

    /// Reads the wanted columns of both rows, and the rest of the event: after it, the whole event has been checked.
    pub fn rows(&self, columns: &Columns, before: &mut RowSlices<'a>, after: &mut RowSlices<'a>) -> Result<(), ParseError> {
        before.clear(columns.slots);
        after.clear(columns.slots);
        for (at, row) in [(self.before, &mut *before), (self.after, &mut *after)] {
            if let Some(at) = at {
                row_at(&mut Scanner::new(self.text, at), columns, row)?;
            }
        }
        let Some(resume) = self.resume else { return Ok(()) };
        let mut scanner = Scanner::new(self.text, resume);
        loop {
            let name = scanner.name()?;
            match name.inner {
                "before" if !name.escaped => row_at(&mut scanner, columns, before)?,
                "after" if !name.escaped => row_at(&mut scanner, columns, after)?,
                _ => drop(scanner.value(1)?),
            }
            if !scanner.more(b'}')? {
                return scanner.end();
            }
        }
    }
}

/// Reads an envelope; outermost, it stops before the first row once it knows the rest.
fn envelope<'a>(scanner: &mut Scanner<'a>, partial: &mut Partial<'a>, depth: u32) -> Result<(), ParseError> {
    if scanner.peek() != b'{' {
        return scanner.error("an object");
    }
    scanner.open(depth)?;
    if scanner.peek() == b'}' {
        scanner.at += 1;
        return Ok(());
    }
    loop {
        let start = scanner.at;
        let name = scanner.name()?;
        let at = scanner.at;
        match name.inner {
            "op" => partial.op = Some(op(scanner)?),
            "source" if scanner.peek() == b'{' => partial.source = Some(source(scanner, depth + 1)?),
            "before" | "after" if depth == 0 && partial.op.is_some() && partial.source.is_some() => {
                partial.resume = Some(start);
                return Ok(());
            }
            "before" => {
                scanner.value(depth + 1)?;
                partial.before = Some(at);
            }
            "after" => {
                scanner.value(depth + 1)?;
                partial.after = Some(at);
            }
            "payload" if depth == 0 && scanner.peek() == b'{' => envelope(scanner, partial, 1)?,
            _ => drop(scanner.value(depth + 1)?),
        }
        if !scanner.more(b'}')? {
            return Ok(());
        }
    }
}

fn op(scanner: &mut Scanner<'_>) -> Result<Op, ParseError> {
    let offset = scanner.at;
    let text = scanner.value(1)?;
    match text.as_bytes() {
        [b'"', letter, b'"'] => Op::from_letter(*letter),
        _ => None,
    }
    .ok_or_else(|| refused(offset, "op", text, "c, u, d or r"))
}

fn refused(offset: usize, member: &'static str, text: &str, expected: &'static str) -> ParseError {
    let text = text.chars().take(60).collect();
    ParseError::Value { offset, member, text, expected }
}

fn source<'a>(scanner: &mut Scanner<'a>, depth: u32) -> Result<Source<'a>, ParseError> {
    scanner.open(depth)?;
    let mut source = Source::default();
    if scanner.peek() == b'}' {
        scanner.at += 1;
        return Ok(source);
    }
    loop {
        let name = scanner.name()?;
        match name.inner {
            "schema" => source.schema = text(scanner, "source.schema")?,
            "table" => source.table = text(scanner, "source.table")?,
            "commit_lsn" => source.commit_lsn = lsn(scanner, "source.commit_lsn")?,
            "change_lsn" => source.seqval = lsn(scanner, "source.change_lsn")?,
            "command_id" => source.command_id = integer(scanner, "source.command_id")?,
            "snapshot" => source.incremental = scanner.value(depth + 1)? == "\"incremental\"",
            "ts_ms" => source.ts_ms = integer(scanner, "source.ts_ms")?,
            _ => drop(scanner.value(depth + 1)?),
        }
        if !scanner.more(b'}')? {
            return Ok(source);
        }
    }
}

fn text<'a>(scanner: &mut Scanner<'a>, member: &'static str) -> Result<Option<Cow<'a, str>>, ParseError> {
    if scanner.null()? {
        return Ok(None);
    }
    if scanner.peek() != b'"' {
        let offset = scanner.at;
        return Err(refused(offset, member, scanner.value(2)?, "a string"));
    }
    Ok(Some(unescape(scanner.string()?)))
}

fn lsn(scanner: &mut Scanner<'_>, member: &'static str) -> Result<Option<Lsn>, ParseError> {
    let offset = scanner.at;
    match text(scanner, member)? {
        None => Ok(None),
        Some(text) => match text.parse() {
            Ok(lsn) => Ok(Some(lsn)),
            Err(_) => Err(refused(offset, member, &text, "an LSN such as 00000027:00000ac0:0002")),
        },
    }
}

fn integer<N: std::str::FromStr + Default>(scanner: &mut Scanner<'_>, member: &'static str) -> Result<N, ParseError> {
    let offset = scanner.at;
    let value = scanner.value(2)?;
    if value == "null" {
        return Ok(N::default());
    }
    value.parse().map_err(|_| refused(offset, member, value, "a whole number"))
}

/// Reads a row's wanted columns. A later member of the same name wins, as in serde_json.
fn row_at<'a>(scanner: &mut Scanner<'a>, columns: &Columns, row: &mut RowSlices<'a>) -> Result<(), ParseError> {
    row.clear(columns.slots);
    if scanner.null()? {
        return Ok(());
    }
    if scanner.peek() != b'{' {
        return scanner.error("a row: an object, or null");
    }
    row.present = true;
    scanner.open(1)?;
    if scanner.peek() == b'}' {
        scanner.at += 1;
        return Ok(());
    }
    let mut expected = 0;
    loop {
        let column = columns.pass(scanner, expected)?;
        let value = scanner.value(2)?;
        if let Some(column) = column {
            if let Some(slot) = columns.names[column].slot {
                row.values[slot] = value.as_bytes();
            }
            expected = column + 1;
        }
        if !scanner.more(b'}')? {
            return Ok(());
        }
    }
}

fn unescape(raw: RawString<'_>) -> Cow<'_, str> {
    // Its escapes have been checked.
    if raw.escaped { Cow::Owned(unescaped(raw.inner.as_bytes())) } else { Cow::Borrowed(raw.inner) }
}

/// The characters of a JSON string that has been checked, without its quotes.
fn unescaped(inner: &[u8]) -> String {
    let mut quoted = Vec::with_capacity(inner.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(inner);
    quoted.push(b'"');
    serde_json::from_slice(&quoted).unwrap_or_default()
}

/// The characters of a JSON string value, as [`Head::rows`] hands it out; `None` when it is another kind of value.
pub fn string_value(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inner).is_some() {
        return Some(Cow::Owned(unescaped(inner)));
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

#[cfg(test)]
mod tests;
