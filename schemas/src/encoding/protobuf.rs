//! Protobuf: an event is one `Envelope` message of the table's schema (`<table>.proto` beside its contract), behind a frame that names the schema.
//!
//! ```text
//! C5 01 | fingerprint of the schema, 8 bytes, little-endian | the message
//! ```
//! The fingerprint is CRC-64-AVRO of one line for the table and one for each column, in the order of their numbers ([`Schema::canonical`]); the file says it in its first lines. C5 cannot begin JSON, nor any UTF-8 text
//! that goes on with 01.
//!
//! # The schema
//! `Envelope{op, source{name, db, ts_ms, snapshot, commit_lsn, change_lsn, command_id}, before, after}`, as in `avro`. Every column is `optional`, and NULL is a field that is not there; a value that CDC left
//! out is named by its field number in `unavailable`. Decimals of up to 18 digits are whole numbers, to be divided by 10^scale; longer ones are big-endian two's complement.
//!
//! # Numbers
//! A column keeps its number over all versions of the contract, whatever its place among the columns: the file is where they are kept. A column that is gone, or is carried in another way than it was, leaves its
//! number behind `reserved`, and none is given twice. So a reader with an older file reads newer messages of what it knows, and its unknown fields are just that; *our* reader nevertheless wants the
//! schema that an event names, because only that tells a file that somebody has numbered anew.

use std::collections::BTreeSet;

use serde_json::json;

use super::bytes::{Cursor, unzigzag, varint_length, write_varint, zigzag};
use super::carry::{Carried, Scalar, Unit, read_wide, wide_length, write_wide};
use super::names::{Names, identifier};
use super::{Image, RowPlaces, SchemaError, Writing, rabin};
use crate::event::{ChangeEvent, Op, Row};
use crate::lsn::Lsn;
use crate::parse::{ParseError, Stated};
use crate::table::{SqlType, TableName, TableSchema};
use crate::value::Value;

pub(super) const MAGIC: [u8; 2] = [0xc5, 0x01];
/// The largest number that a field may have.
const UNAVAILABLE: u32 = 536_870_911;
/// Numbers that Protobuf keeps for itself.
const KEPT: std::ops::RangeInclusive<u32> = 19_000..=19_999;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// The schema of a table's events.
#[derive(Debug, Clone)]
pub struct Schema {
    pub table: TableName,
    /// Of the contract.
    pub version: u32,
    pub fingerprint: u64,
    /// The file.
    pub text: String,
    /// In the order of the columns.
    pub(super) fields: Vec<Field>,
    reserved: BTreeSet<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Field {
    column: String,
    sql_type: SqlType,
    carried: Carried,
    number: u32,
}

impl Field {
    fn new(column: &str, sql_type: SqlType, number: u32) -> Self {
        Self { column: column.to_owned(), sql_type, carried: Carried::of(sql_type), number }
    }

    const fn wire_type(&self) -> u64 {
        match self.carried {
            Carried::Bool
            | Carried::Int
            | Carried::Small { .. }
            | Carried::Date
            | Carried::Time { .. }
            | Carried::DateTime { .. } => VARINT,
            Carried::Real => FIXED32,
            Carried::Float => FIXED64,
            _ => BYTES,
        }
    }

    const fn proto_type(&self) -> &'static str {
        match self.carried {
            Carried::Bool => "bool",
            Carried::Date => "sint32",
            Carried::Int | Carried::Small { .. } | Carried::Time { .. } | Carried::DateTime { .. } => "sint64",
            Carried::Real => "float",
            Carried::Float => "double",
            Carried::Decimal { .. } | Carried::Bytes | Carried::Uuid => "bytes",
            Carried::Text | Carried::Json => "string",
            Carried::DateTimeOffset { .. } => "DateTimeOffset",
        }
    }

    /// What somebody who reads the file has to know besides the type.
    fn remark(&self) -> String {
        match (self.carried, self.carried.unit()) {
            (Carried::Small { scale }, _) => format!(", divide by 10^{scale}"),
            (Carried::Decimal { scale }, _) => format!(", big-endian two's complement, divide by 10^{scale}"),
            (Carried::Date, _) => ", days since 1970-01-01".to_owned(),
            (Carried::Json, _) => ", JSON".to_owned(),
            (Carried::Uuid, _) => ", 16 bytes in the order of the text form".to_owned(),
            (Carried::Time { .. }, Some(unit)) => format!(", {} since midnight", unit_name(unit)),
            (Carried::DateTime { .. }, Some(unit)) => format!(", {} since 1970-01-01T00:00:00, local", unit_name(unit)),
            _ => String::new(),
        }
    }

    fn put(&self, value: &Value, out: &mut Vec<u8>) -> Option<()> {
        let tag = u64::from(self.number) << 3 | self.wire_type();
        let scalar = self.carried.take(value)?;
        write_varint(tag, out);
        match scalar {
            Scalar::Bool(value) => out.push(u8::from(value)),
            Scalar::Int(number) => write_varint(zigzag(number), out),
            Scalar::Real(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Float(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Wide(number) => {
                out.push(wide_length(number) as u8);
                write_wide(number, out);
            }
            Scalar::Bytes(bytes) => {
                write_varint(bytes.len() as u64, out);
                out.extend_from_slice(&bytes);
            }
            Scalar::Moment { utc, offset_minutes } => {
                let (utc, offset) = (zigzag(utc), zigzag(i64::from(offset_minutes)));
                out.push((2 + varint_length(utc) + varint_length(offset)) as u8);
                out.push(1 << 3);
                write_varint(utc, out);
                out.push(2 << 3);
                write_varint(offset, out);
            }
        }
        Some(())
    }

    fn take<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Scalar<'a>, ParseError> {
        Ok(match self.carried {
            Carried::Bool => Scalar::Bool(cursor.varint()? != 0),
            Carried::Int | Carried::Small { .. } | Carried::Date | Carried::Time { .. } | Carried::DateTime { .. } => {
                Scalar::Int(unzigzag(cursor.varint()?))
            }
            Carried::Real => Scalar::Real(f32::from_le_bytes(cursor.array()?)),
            Carried::Float => Scalar::Float(f64::from_le_bytes(cursor.array()?)),
            Carried::Decimal { .. } => match read_wide(bytes(cursor)?) {
                Some(number) => Scalar::Wide(number),
                None => return cursor.error("a decimal of at most 38 digits"),
            },
            Carried::Text | Carried::Bytes | Carried::Json | Carried::Uuid => Scalar::Bytes(bytes(cursor)?.into()),
            Carried::DateTimeOffset { .. } => moment(bytes(cursor)?)?,
        })
    }
}

const fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "milliseconds",
        Unit::Microseconds => "microseconds",
        Unit::Ticks => "units of 100 ns",
    }
}

fn bytes<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], ParseError> {
    let length = cursor.varint()?;
    cursor.take(length)
}

fn skip(cursor: &mut Cursor<'_>, wire_type: u64) -> Result<(), ParseError> {
    match wire_type {
        VARINT => cursor.varint().map(|_| ()),
        FIXED64 => cursor.pass(8),
        BYTES => bytes(cursor).map(|_| ()),
        FIXED32 => cursor.pass(4),
        _ => cursor.error("a field's type before it"),
    }
}

fn moment(message: &[u8]) -> Result<Scalar<'static>, ParseError> {
    let mut cursor = Cursor::new(message, 0);
    let (mut utc, mut offset) = (0, 0);
    while !cursor.is_at_end() {
        match cursor.varint()? {
            0x08 => utc = unzigzag(cursor.varint()?),
            0x10 => offset = unzigzag(cursor.varint()?),
            tag => skip(&mut cursor, tag & 7)?,
        }
    }
    match i32::try_from(offset) {
        Ok(offset_minutes) => Ok(Scalar::Moment { utc, offset_minutes }),
        Err(_) => cursor.error("an offset in minutes before it"),
    }
}

impl Schema {
    /// The schema of a table under its contract's version; the numbers of `before`, the schema that the table has had until now, are kept.
    pub fn new(table: &TableSchema, version: u32, before: Option<&Self>) -> Self {
        let mut reserved = before.map(|before| before.reserved.clone()).unwrap_or_default();
        let mut known: Vec<&Field> = before.into_iter().flat_map(|before| &before.fields).collect();
        let mut next = known.iter().map(|field| field.number).chain(reserved.iter().copied()).max().unwrap_or(0) + 1;
        let mut fields = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let carried = Carried::of(column.sql_type);
            let same = known.iter().position(|field| field.column == column.name && field.carried == carried);
            let number = match same {
                Some(index) => known.swap_remove(index).number,
                None => {
                    if KEPT.contains(&next) {
                        next = KEPT.end() + 1;
                    }
                    next += 1;
                    next - 1
                }
            };
            fields.push(Field::new(&column.name, column.sql_type, number));
        }
        reserved.extend(known.iter().map(|field| field.number));
        Self::of(table.name.clone(), version, fields, reserved)
    }

    fn of(table: TableName, version: u32, fields: Vec<Field>, reserved: BTreeSet<u32>) -> Self {
        let mut schema = Self { table, version, fingerprint: 0, text: String::new(), fields, reserved };
        schema.fingerprint = rabin::fingerprint(schema.canonical().as_bytes());
        schema.text = schema.to_text();
        schema
    }

    /// What the fingerprint is of: `tributary 1 "dbo.orders"`, then by number `1 sint64 int "id"`: number, type, how the values are carried ([`Carried`]), column.
    fn canonical(&self) -> String {
        let mut lines = vec![format!("tributary 1 {}", json!(self.table.to_string()))];
        let mut fields: Vec<&Field> = self.fields.iter().collect();
        fields.sort_by_key(|field| field.number);
        lines.extend(fields.iter().map(|field| {
            let carried = match field.carried {
                Carried::Bool => "bool".to_owned(),
                Carried::Int => "int".to_owned(),
                Carried::Real => "real".to_owned(),
                Carried::Float => "float".to_owned(),
                Carried::Small { scale } => format!("small({scale})"),
                Carried::Decimal { scale } => format!("decimal({scale})"),
                Carried::Text => "text".to_owned(),
                Carried::Bytes => "bytes".to_owned(),
                Carried::Uuid => "uuid".to_owned(),
                Carried::Date => "date".to_owned(),
                Carried::Time { scale } => format!("time({scale})"),
                Carried::DateTime { scale } => format!("datetime({scale})"),
                Carried::DateTimeOffset { scale } => format!("datetimeoffset({scale})"),
                Carried::Json => "json".to_owned(),
            };
            format!("{} {} {carried} {}", field.number, field.proto_type(), json!(field.column))
        }));
        lines.join("\n")
    }

    /// Whether events under the one are read by the other.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        self.canonical() == other.canonical()
    }

    /// Reads a schema file. `file` is for messages alone.
    pub fn parse(file: &str, text: &str) -> Result<Self, SchemaError> {
        let wrong = |line: &str, problem: &str| SchemaError::File {
            file: file.to_owned(),
            problem: format!("{problem}: {}", line.trim()),
        };
        let (mut table, mut stated) = (None, None);
        let (mut fields, mut reserved) = (Vec::new(), BTreeSet::new());
        let mut in_row = false;
        for line in text.lines() {
            let trimmed = line.trim();
            if let Some(rest) = trimmed.strip_prefix("// table: ") {
                let (name, version) = rest.rsplit_once(", version ").ok_or_else(|| wrong(line, "no version"))?;
                let name: TableName = name.parse().map_err(|_| wrong(line, "not a table's name"))?;
                table = Some((name, version.parse().map_err(|_| wrong(line, "not a version"))?));
            } else if let Some(rest) = trimmed.strip_prefix("// fingerprint: ") {
                stated = u64::from_str_radix(rest, 16).ok();
            } else if trimmed == "message Row {" {
                in_row = true;
            } else if in_row && trimmed == "}" {
                break;
            } else if let (true, Some(rest)) = (in_row, trimmed.strip_prefix("reserved ")) {
                for number in rest.trim_end_matches(';').split(',') {
                    reserved.insert(number.trim().parse().map_err(|_| wrong(line, "not a field's number"))?);
                }
            } else if in_row && trimmed.starts_with("optional ") {
                fields.push(parse_field(trimmed).ok_or_else(|| wrong(line, "not a column as Tributary writes it"))?);
            }
        }
        let (table, version) = table.ok_or_else(|| wrong("// table: …", "a line is missing"))?;
        let schema = Self::of(table, version, fields, reserved);
        if stated != Some(schema.fingerprint) {
            return Err(wrong("// fingerprint: …", "the columns are not those that it is of"));
        }
        Ok(schema)
    }

    fn to_text(&self) -> String {
        let mut names = Names::without(&["unavailable"]);
        let mut rows = String::new();
        if !self.reserved.is_empty() {
            let numbers: Vec<String> = self.reserved.iter().map(u32::to_string).collect();
            rows.push_str(&format!("  reserved {};\n", numbers.join(", ")));
        }
        for field in &self.fields {
            let (column, name) = (json!(field.column), names.give(&field.column));
            let (kind, number, sql_type, remark) = (field.proto_type(), field.number, field.sql_type, field.remark());
            rows.push_str(&format!("  optional {kind} {name} = {number}; // {column} {sql_type}{remark}\n"));
        }
        let offsets = self.fields.iter().any(|field| matches!(field.carried, Carried::DateTimeOffset { .. }));
        let offset = if offsets {
            "\nmessage DateTimeOffset {\n  // Units of 100 ns since 1970-01-01T00:00:00Z.\n  sint64 utc = 1;\n  sint32 offset_minutes = 2;\n}\n"
        } else {
            ""
        };
        let (schema, table) = (identifier(&self.table.schema), identifier(&self.table.table));
        format!(
            r#"// Events of a table as Tributary publishes them: the bytes C5 01, the fingerprint (8 bytes, little-endian), and an Envelope.
// Written beside the table's contract. The numbers are kept from version to version: not to be edited.
// table: {}, version {}
// fingerprint: {:016x}
syntax = "proto3";

package tributary.{schema}.{table};

message Envelope {{
  Op op = 1;
  Source source = 2;
  Row before = 3;
  Row after = 4;
}}

enum Op {{
  OP_UNSPECIFIED = 0;
  OP_CREATE = 1;
  OP_UPDATE = 2;
  OP_DELETE = 3;
  // A row that was read; source.snapshot says when.
  OP_READ = 4;
}}

message Source {{
  string name = 1;
  string db = 2;
  // Milliseconds since 1970-01-01T00:00:00Z.
  int64 ts_ms = 3;
  Snapshot snapshot = 4;
  // Ten bytes.
  bytes commit_lsn = 5;
  // Ten bytes; none for a row that was read.
  optional bytes change_lsn = 6;
  sint32 command_id = 7;
}}

enum Snapshot {{
  SNAPSHOT_NONE = 0;
  SNAPSHOT_INITIAL = 1;
  SNAPSHOT_INCREMENTAL = 2;
}}
{offset}
message Row {{
{rows}  // Numbers of the columns that change data capture did not record because they did not change: they are not NULL.
  repeated uint32 unavailable = {UNAVAILABLE};
}}
"#,
            self.table, self.version, self.fingerprint
        )
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.column.as_str())
    }

    /// Column, number and type of each field.
    #[cfg(test)]
    pub(super) fn numbers(&self) -> impl Iterator<Item = (&str, u32, String)> {
        self.fields.iter().map(|field| (field.column.as_str(), field.number, format!("{:?}", field.carried)))
    }

    /// Appends an event. `None`, with part of it written: a value is not of its column's type.
    pub(super) fn encode(&self, writing: &mut Writing, event: &ChangeEvent, out: &mut Vec<u8>) -> Option<()> {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        let (op, snapshot) = match event.op {
            Op::Create => (1, 0),
            Op::Update => (2, 0),
            Op::Delete => (3, 0),
            Op::Read => (4, 1),
            Op::Reread => (4, 2),
        };
        out.extend_from_slice(&[1 << 3, op]);
        let mut message = std::mem::take(&mut writing.message);
        message.clear();
        source(writing, event, snapshot, &mut message);
        put_message(2, &message, out);
        let mut rows = || {
            for (number, row) in [(3, &event.before), (4, &event.after)] {
                if let Some(row) = row {
                    message.clear();
                    self.put_row(row, &mut message)?;
                    put_message(number, &message, out);
                }
            }
            Some(())
        };
        let done = rows();
        writing.message = message;
        done
    }

    fn put_row(&self, row: &Row, out: &mut Vec<u8>) -> Option<()> {
        if row.len() != self.fields.len() {
            return None;
        }
        let mut unavailable = Vec::new();
        for (field, value) in self.fields.iter().zip(row) {
            match value {
                Value::Null => {}
                Value::Unavailable => write_varint(u64::from(field.number), &mut unavailable),
                value => field.put(value, out)?,
            }
        }
        if !unavailable.is_empty() {
            put_message(UNAVAILABLE, &unavailable, out);
        }
        Some(())
    }

    /// Reads all but the rows, and where they stand.
    pub(super) fn head<'a>(&'a self, bytes: &'a [u8]) -> Result<(Stated<'a>, RowPlaces), ParseError> {
        let mut cursor = Cursor::new(bytes, MAGIC.len() + 8);
        let (mut op, mut source, mut rows) = (0, None, [None; 2]);
        while !cursor.is_at_end() {
            match cursor.varint()? {
                0x08 => op = cursor.varint()?,
                0x12 => source = Some(read_source(self::bytes(&mut cursor)?)?),
                tag @ (0x1a | 0x22) => {
                    let length = self::bytes(&mut cursor)?.len();
                    rows[usize::from(tag == 0x22)] = Some((cursor.at - length, cursor.at));
                }
                tag => skip(&mut cursor, tag & 7)?,
            }
        }
        let op = match op {
            1 => Op::Create,
            2 => Op::Update,
            3 => Op::Delete,
            4 => Op::Read,
            _ => return cursor.error("an operation before it"),
        };
        let source = source.ok_or(ParseError::Missing { member: "source" })?;
        Ok((Stated { op, table: &self.table, ..source.stated(&self.table)? }, rows))
    }

    /// Reads the wanted columns of both rows, and passes over the rest.
    pub(crate) fn rows(
        &self,
        bytes: &[u8],
        places: RowPlaces,
        slots: &[Option<u32>],
        text: &mut Vec<u8>,
        [before, after]: [&mut Image; 2],
    ) -> Result<(), ParseError> {
        for (row, place) in [(before, places[0]), (after, places[1])] {
            if let Some((start, end)) = place {
                row.present = true;
                slots.iter().flatten().for_each(|slot| row.set_null(*slot));
                self.row(&mut Cursor::new(&bytes[..end], start), slots, text, row)?;
            }
        }
        Ok(())
    }

    fn row(&self, cursor: &mut Cursor<'_>, slots: &[Option<u32>], text: &mut Vec<u8>, row: &mut Image) -> Result<(), ParseError> {
        let mut expected = 0;
        while !cursor.is_at_end() {
            let tag = cursor.varint()?;
            let number = u32::try_from(tag >> 3).unwrap_or(0);
            if number == UNAVAILABLE && tag & 7 == BYTES {
                let mut numbers = Cursor::new(bytes(cursor)?, 0);
                while !numbers.is_at_end() {
                    let number = numbers.varint()?;
                    let index = self.fields.iter().position(|field| u64::from(field.number) == number);
                    if let Some(slot) = index.and_then(|index| slots[index]) {
                        row.set_unavailable(slot);
                    }
                }
                continue;
            }
            // Fields mostly stand in their order, some left out.
            let index = match self.fields[expected..].iter().position(|field| field.number == number) {
                Some(ahead) => Some(expected + ahead),
                None => self.fields.iter().position(|field| field.number == number),
            };
            let field = index.map(|index| (&self.fields[index], slots[index]));
            match field {
                Some((field, Some(slot))) if field.wire_type() == tag & 7 => {
                    let start = text.len();
                    let scalar = field.take(cursor)?;
                    if field.carried.write(&scalar, text).is_none() {
                        return cursor.error("a value of its column's type before it");
                    }
                    row.set(slot, start, text.len());
                }
                _ => skip(cursor, tag & 7)?,
            }
            if let Some(index) = index {
                expected = index + 1;
            }
        }
        Ok(())
    }
}

/// `optional sint64 id = 1; // "id" int`
fn parse_field(line: &str) -> Option<Field> {
    let (declaration, remark) = line.split_once("; // ")?;
    let number = declaration.rsplit_once(" = ")?.1.parse().ok()?;
    let mut names = serde_json::Deserializer::from_str(remark).into_iter::<String>();
    let column = names.next()?.ok()?;
    let rest = remark[names.byte_offset()..].trim_start();
    // A type may have a comma in its parentheses.
    let end = rest.find(", ").unwrap_or(rest.len());
    Some(Field::new(&column, rest[..end].parse().ok()?, number))
}

fn put_message(number: u32, message: &[u8], out: &mut Vec<u8>) {
    write_varint(u64::from(number) << 3 | BYTES, out);
    write_varint(message.len() as u64, out);
    out.extend_from_slice(message);
}

/// As every Protobuf writer does, leaves out what is zero.
fn source(writing: &Writing, event: &ChangeEvent, snapshot: u8, out: &mut Vec<u8>) {
    for (number, text) in [(1, &writing.source), (2, &writing.database)] {
        if !text.is_empty() {
            put_message(number, text.as_bytes(), out);
        }
    }
    if event.commit_time_ms != 0 {
        out.push(3 << 3);
        write_varint(event.commit_time_ms.cast_unsigned(), out);
    }
    if snapshot != 0 {
        out.extend_from_slice(&[4 << 3, snapshot]);
    }
    put_message(5, event.position.commit_lsn.as_bytes(), out);
    if !event.op.is_read() {
        put_message(6, event.position.seqval.as_bytes(), out);
    }
    if event.position.command_id != 0 {
        out.push(7 << 3);
        write_varint(zigzag(i64::from(event.position.command_id)), out);
    }
}

#[derive(Debug, Default)]
struct Source<'a> {
    name: &'a str,
    database: &'a str,
    ts_ms: i64,
    incremental: bool,
    commit_lsn: Option<Lsn>,
    seqval: Option<Lsn>,
    command_id: i32,
}

impl<'a> Source<'a> {
    fn stated(self, table: &'a TableName) -> Result<Stated<'a>, ParseError> {
        let commit_lsn = self.commit_lsn.ok_or(ParseError::Missing { member: "source.commit_lsn" })?;
        let Self { name: source, database, ts_ms, incremental, seqval, command_id, .. } = self;
        Ok(Stated { op: Op::Read, incremental, table, source, database, commit_lsn, seqval, command_id, ts_ms })
    }
}

fn read_source(message: &[u8]) -> Result<Source<'_>, ParseError> {
    let mut cursor = Cursor::new(message, 0);
    let mut source = Source::default();
    while !cursor.is_at_end() {
        match cursor.varint()? {
            tag @ (0x0a | 0x12) => {
                let Ok(text) = std::str::from_utf8(bytes(&mut cursor)?) else { return cursor.error("UTF-8 before it") };
                *(if tag == 0x0a { &mut source.name } else { &mut source.database }) = text;
            }
            0x18 => source.ts_ms = cursor.varint()?.cast_signed(),
            0x20 => source.incremental = cursor.varint()? == 2,
            tag @ (0x2a | 0x32) => {
                let lsn = Lsn::from_slice(bytes(&mut cursor)?);
                if lsn.is_none() {
                    return cursor.error("an LSN of ten bytes before it");
                }
                *(if tag == 0x2a { &mut source.commit_lsn } else { &mut source.seqval }) = lsn;
            }
            0x38 => match i32::try_from(unzigzag(cursor.varint()?)) {
                Ok(command_id) => source.command_id = command_id,
                Err(_) => return cursor.error("a command id before it"),
            },
            tag => skip(&mut cursor, tag & 7)?,
        }
    }
    Ok(source)
}

/// The fingerprint that an event names.
pub(super) fn named(bytes: &[u8]) -> Option<u64> {
    bytes.strip_prefix(&MAGIC)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}
