//! Reading change events lazily: first what the event is about ([`Head`]), then, for who still wants them, columns of its rows as JSON ([`Head::rows`]): of events in JSON slices of
//! the event's own text, of others ([`crate::encoding`]) text made of the columns that are wanted.
//!
//! A reader drops duplicates by their position; with the members in the envelope's own order, a duplicate's rows are never looked at. Foreign Debezium JSON is read as well: members in any order,
//! whitespace, the `{"schema":…,"payload":…}` wrapper. Then the first pass notes where the rows stand, and the second comes back to them.
//!
//! Our own events are read by what they must look like (`own`), the rest by what it is; both come to the same.
//!
//! Everything that has been passed over has been checked (see `scan`): a slice handed out is one well-formed JSON value. No input panics; what is refused names the
//! byte where it went wrong.

use std::borrow::Cow;
use std::sync::Arc;

mod own;
mod scan;

use scan::{RawString, Scanner};

use crate::encoding::{Image, RowPlaces, avro, protobuf};
use crate::event::Op;
use crate::lsn::{Lsn, Position};
use crate::table::{TableName, TableSchema};

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
    #[error("a damaged event: at byte {offset} expected {expected}")]
    Damaged { offset: usize, expected: &'static str },
    #[error("a damaged zstd frame: {what}")]
    Zstd { what: String },
    /// Not the event's fault: it must not be dropped.
    #[error(
        "a record under {what}, which is not in the folder of table contracts: take the .{extension} files over from the importer's folder (`contracts` in its configuration), with those of earlier versions"
    )]
    UnknownSchema { what: String, extension: &'static str },
}

/// What an event says of itself, in any encoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stated<'a> {
    pub(crate) op: Op,
    pub(crate) incremental: bool,
    pub(crate) table: &'a TableName,
    pub(crate) source: &'a str,
    pub(crate) database: &'a str,
    pub(crate) commit_lsn: Lsn,
    pub(crate) seqval: Option<Lsn>,
    pub(crate) command_id: i32,
    pub(crate) ts_ms: i64,
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
    body: Body<'a>,
}

/// Where an event's rows are.
#[derive(Debug, Clone)]
enum Body<'a> {
    Json {
        text: &'a str,
        before: Option<usize>,
        after: Option<usize>,
        /// Where reading goes on: the first member that has not been looked at. `None`: everything has been read.
        resume: Option<usize>,
    },
    Avro {
        bytes: &'a [u8],
        schema: &'a avro::Schema,
        at: usize,
        origin: (&'a str, &'a str),
    },
    Protobuf {
        bytes: &'a [u8],
        schema: &'a protobuf::Schema,
        rows: RowPlaces,
        origin: (&'a str, &'a str),
    },
}

/// Columns that a reader wants, in the order of the slots that it wants them in.
#[derive(Debug, Clone)]
pub struct Columns {
    /// Every column of the table in its order.
    names: Arc<[Name]>,
    slots: usize,
}

#[derive(Debug)]
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

    /// All columns of these names, in their order.
    fn all<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let name = |(slot, name): (usize, &str)| Name { member: Vec::new(), plain: name.to_owned(), slot: Some(slot) };
        let names: Arc<[Name]> = names.enumerate().map(name).collect();
        Self { slots: names.len(), names }
    }

    /// The names of all columns.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| name.plain.as_str())
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
#[derive(Debug, Clone, Copy)]
pub struct RowView<'a> {
    /// Whether the event has this row at all.
    pub present: bool,
    text: &'a [u8],
    spans: &'a [(u32, u32)],
}

impl<'a> RowView<'a> {
    fn new(text: &'a [u8], image: &'a Image) -> Self {
        Self { present: image.present, text, spans: &image.spans }
    }

    /// The value in a slot.
    pub fn get(&self, slot: usize) -> &'a [u8] {
        self.spans.get(slot).map_or(b"", |&(start, end)| &self.text[start as usize..end as usize])
    }

    /// All values, slot by slot.
    pub fn values(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let (text, spans) = (self.text, self.spans);
        spans.iter().map(move |&(start, end)| &text[start as usize..end as usize])
    }
}

/// What rows are read into, kept from event to event: reading allocates nothing, and which column of a schema goes into which slot is found out once.
#[derive(Debug, Default)]
pub struct RowBuffer {
    before: Image,
    after: Image,
    /// Of an event in JSON, the members of the row that was read first.
    members: Vec<Member>,
    /// The values of events that are not JSON themselves.
    text: Vec<u8>,
    slots: Vec<Slots>,
}

/// Where a member of a row stands in the text: from its name on, its value, and its end.
#[derive(Debug, Clone, Copy)]
struct Member {
    start: usize,
    value: usize,
    end: usize,
    column: Option<usize>,
}

/// Into which slots the columns of a schema go.
#[derive(Debug)]
struct Slots {
    fingerprint: u64,
    names: Arc<[Name]>,
    slots: Vec<Option<u32>>,
}

impl RowBuffer {
    /// Which of the schemas that are known it is.
    fn slots<'n>(&mut self, fingerprint: u64, columns: &Columns, schema: impl Iterator<Item = &'n str>) -> usize {
        let known = |slots: &Slots| slots.fingerprint == fingerprint && Arc::ptr_eq(&slots.names, &columns.names);
        self.slots.iter().position(known).unwrap_or_else(|| {
            let slot = |column: &str| columns.names.iter().find(|name| name.plain == column)?.slot.map(|slot| slot as u32);
            let slots = schema.map(slot).collect();
            self.slots.push(Slots { fingerprint, names: columns.names.clone(), slots });
            self.slots.len() - 1
        })
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
        let text = simdutf8::compat::from_utf8(bytes).map_err(|error| ParseError::Utf8 { offset: error.valid_up_to() })?;
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
        let (op, position) = position(op, source.incremental, commit_lsn, source.seqval, source.command_id)?;
        Ok(Self {
            op,
            schema: source.schema.ok_or(ParseError::Missing { member: "source.schema" })?,
            table: source.table.ok_or(ParseError::Missing { member: "source.table" })?,
            position,
            commit_time_ms: source.ts_ms,
            body: Body::Json { text, before: partial.before, after: partial.after, resume: partial.resume },
        })
    }

    pub(crate) fn of_avro(stated: Stated<'a>, bytes: &'a [u8], schema: &'a avro::Schema, at: usize) -> Result<Self, ParseError> {
        let origin = (stated.source, stated.database);
        Self::of(stated, Body::Avro { bytes, schema, at, origin })
    }

    pub(crate) fn of_protobuf(
        stated: Stated<'a>,
        bytes: &'a [u8],
        schema: &'a protobuf::Schema,
        rows: RowPlaces,
    ) -> Result<Self, ParseError> {
        let origin = (stated.source, stated.database);
        Self::of(stated, Body::Protobuf { bytes, schema, rows, origin })
    }

    fn of(stated: Stated<'a>, body: Body<'a>) -> Result<Self, ParseError> {
        let Stated { op, incremental, table, commit_lsn, seqval, command_id, ts_ms, .. } = stated;
        let (op, position) = position(op, incremental, commit_lsn, seqval, command_id)?;
        let (schema, table) = (table.schema.as_str().into(), table.table.as_str().into());
        Ok(Self { op, schema, table, position, commit_time_ms: ts_ms, body })
    }

    /// The event's own text, where it is JSON.
    pub(crate) fn json_text(&self) -> Option<&'a str> {
        if let Body::Json { text, .. } = self.body { Some(text) } else { None }
    }

    /// The names of the source and of its database, of an event that is not JSON.
    pub(crate) fn origin(&self) -> (&'a str, &'a str) {
        match self.body {
            Body::Json { .. } => ("", ""),
            Body::Avro { origin, .. } | Body::Protobuf { origin, .. } => origin,
        }
    }

    /// All columns that the event's schema has, of an event that is not JSON.
    pub(crate) fn all_columns(&self) -> Columns {
        match self.body {
            Body::Json { .. } => Columns::all(std::iter::empty()),
            Body::Avro { schema, .. } => Columns::all(schema.columns()),
            Body::Protobuf { schema, .. } => Columns::all(schema.columns()),
        }
    }

    /// Reads the wanted columns of both rows, before and after. Of an event in JSON, the whole event has been checked after it.
    pub fn rows<'b>(&self, columns: &Columns, buffer: &'b mut RowBuffer) -> Result<(RowView<'b>, RowView<'b>), ParseError>
    where
        'a: 'b,
    {
        buffer.before.clear(columns.slots);
        buffer.after.clear(columns.slots);
        if let Body::Json { text, before, after, resume } = &self.body {
            rows_of_json(text, (*before, *after, *resume), columns, buffer)?;
            let text = text.as_bytes();
            return Ok((RowView::new(text, &buffer.before), RowView::new(text, &buffer.after)));
        }
        buffer.text.clear();
        buffer.text.extend_from_slice(crate::encoding::SPECIALS);
        match &self.body {
            Body::Json { .. } => {}
            Body::Avro { bytes, schema, at, .. } => {
                let slots = buffer.slots(schema.fingerprint, columns, schema.columns());
                let RowBuffer { before, after, text, slots: known, .. } = buffer;
                schema.rows(bytes, *at, &known[slots].slots, text, [before, after])?;
            }
            Body::Protobuf { bytes, schema, rows, .. } => {
                let slots = buffer.slots(schema.fingerprint, columns, schema.columns());
                let RowBuffer { before, after, text, slots: known, .. } = buffer;
                schema.rows(bytes, *rows, &known[slots].slots, text, [before, after])?;
            }
        }
        Ok((RowView::new(&buffer.text, &buffer.before), RowView::new(&buffer.text, &buffer.after)))
    }
}

/// What an event's place in the total order is, and whether a row was read again.
fn position(
    op: Op,
    incremental: bool,
    commit_lsn: Lsn,
    seqval: Option<Lsn>,
    command_id: i32,
) -> Result<(Op, Position), ParseError> {
    let op = if op == Op::Read && incremental { Op::Reread } else { op };
    let operation = match op {
        Op::Delete => 1,
        Op::Create => 2,
        Op::Update => 4,
        Op::Read | Op::Reread => 0,
    };
    let seqval = match (op, seqval) {
        (Op::Read | Op::Reread, _) => Lsn::ZERO,
        (_, Some(seqval)) => seqval,
        (_, None) => return Err(ParseError::Missing { member: "source.change_lsn" }),
    };
    let command_id = match op {
        Op::Read => 0,
        Op::Reread | Op::Create | Op::Update | Op::Delete => command_id,
    };
    Ok((op, Position { commit_lsn, command_id, seqval, operation }))
}

/// Reads the wanted columns of both rows, and the rest of the event.
fn rows_of_json(
    text: &str,
    (before_at, after_at, resume): (Option<usize>, Option<usize>, Option<usize>),
    columns: &Columns,
    RowBuffer { before, after, members, .. }: &mut RowBuffer,
) -> Result<(), ParseError> {
    members.clear();
    for (at, row) in [(before_at, &mut *before), (after_at, &mut *after)] {
        if let Some(at) = at {
            row_at(&mut Scanner::new(text, at), columns, row, members)?;
        }
    }
    let Some(resume) = resume else { return Ok(()) };
    let mut scanner = Scanner::new(text, resume);
    loop {
        let name = scanner.name()?;
        match name.inner {
            "before" if !name.escaped => row_at(&mut scanner, columns, before, members)?,
            "after" if !name.escaped => row_at(&mut scanner, columns, after, members)?,
            _ => drop(scanner.value(1)?),
        }
        if !scanner.more(b'}')? {
            return scanner.end();
        }
    }
}

/// Refuses a text that is not one JSON value, with whitespace around it if need be: exactly what `serde_json` refuses.
pub fn validate(text: &str) -> Result<(), ParseError> {
    let mut scanner = Scanner::new(text, 0);
    scanner.whitespace();
    scanner.value(0)?;
    scanner.end()
}

/// Calls `each` with the name and the text of every member of an object, which is all that the text holds. What is within the values is checked as well, as [`validate`] does.
pub fn members<'a>(text: &'a str, mut each: impl FnMut(Cow<'a, str>, &'a str)) -> Result<(), ParseError> {
    let mut scanner = Scanner::new(text, 0);
    scanner.whitespace();
    if scanner.peek() != b'{' {
        return scanner.error("an object");
    }
    scanner.open(0)?;
    let mut more = scanner.peek() != b'}';
    if !more {
        scanner.at += 1;
    }
    while more {
        let name = unescape(scanner.name()?);
        let value = scanner.value(1)?;
        each(name, value);
        more = scanner.more(b'}')?;
    }
    scanner.end()
}

/// Whether bytes are one JSON value, without anything around it.
pub(crate) fn check_value(bytes: &[u8]) -> Option<()> {
    let mut scanner = Scanner::new(std::str::from_utf8(bytes).ok()?, 0);
    scanner.value(1).ok()?;
    (scanner.at == bytes.len()).then_some(())
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

/// Reads a row's wanted columns. A later member of the same name wins, as in serde_json. `members`: those of the row that was read before, if one was: most of an event's two rows is the same, and need not be read twice.
fn row_at(scanner: &mut Scanner<'_>, columns: &Columns, row: &mut Image, members: &mut Vec<Member>) -> Result<(), ParseError> {
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
    let (mut expected, first) = (0, members.is_empty());
    for nth in 0.. {
        let start = scanner.at;
        let known = members.get(nth).filter(|_| !first).copied();
        let member = match known.filter(|known| scanner.repeats(known.start, known.end)) {
            Some(known) => Member { start, value: start + (known.value - known.start), end: scanner.at, column: known.column },
            None => {
                let column = columns.pass(scanner, expected)?;
                let value = scanner.at;
                scanner.value(2)?;
                Member { start, value, end: scanner.at, column }
            }
        };
        if let Some(column) = member.column {
            if let Some(slot) = columns.names[column].slot {
                row.set(slot as u32, member.value, member.end);
            }
            expected = column + 1;
        }
        if first {
            members.push(member);
        }
        if !scanner.more(b'}')? {
            break;
        }
    }
    Ok(())
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
