//! Avro: an event is one record of the table's schema (`<table>.avsc` beside its contract), in the specification's single-object encoding.
//!
//! ```text
//! C3 01 | fingerprint of the schema, 8 bytes, little-endian (CRC-64-AVRO of its Parsing Canonical Form) | the record
//! ```
//! # The schema
//! `Envelope{op, source{name, db, ts_ms, snapshot, commit_lsn, change_lsn, command_id}, before, after}`, Debezium's envelope without what the rest of it says: schema and table
//! are the schema's own, `transaction.id` is the commit LSN. LSNs are ten bytes. Rows are records; a column that may be NULL is a union with `null`, and one whose value CDC may leave out has a branch
//! `Unavailable` besides. Types are as in `carry`, with Avro's logical types where it has one; where it has none, `x-unit` names the unit.
//!
//! # Which columns a schema is about
//! A canonical form holds names and plain types, no logical types: two schemas that differ in a decimal's scale alone would have one fingerprint. Therefore the contract's version stands in
//! the namespace, which is part of it, and two files with one fingerprint that are not the same are refused ([`super::Registry`]).
//!
//! A schema file says everything that reading needs, in `x-table`, `x-version`, `x-column` and `x-sql-type`; from these the schema is made anew, and a file that says otherwise in what Avro reads is refused.

use serde_json::{Map, Value as Json, json};

use super::bytes::{Cursor, unzigzag, write_varint, zigzag};
use super::carry::{Carried, Scalar, Unit, read_wide, wide_length, write_wide};
use super::names::{Names, identifier};
use super::rabin;
use super::{Image, SchemaError, Writing};
use crate::event::{ChangeEvent, Op, Row};
use crate::lsn::Lsn;
use crate::parse::{ParseError, Stated};
use crate::table::{Column, SqlType, TableName, TableSchema};
use crate::value::Value;

pub(super) const MAGIC: [u8; 2] = [0xc3, 0x01];
const OPS: [Op; 4] = [Op::Create, Op::Update, Op::Delete, Op::Read];

/// The schema of a table's events.
#[derive(Debug, Clone)]
pub struct Schema {
    pub table: TableName,
    /// Of the contract.
    pub version: u32,
    pub fingerprint: u64,
    /// The file.
    pub text: String,
    pub(super) fields: Vec<Field>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    column: String,
    sql_type: SqlType,
    carried: Carried,
    nullable: bool,
    branches: Branches,
}

/// Which branch of a column's union is which. A column that is never NULL nor left out has no union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Branches {
    union: bool,
    null: Option<u8>,
    value: u8,
    unavailable: Option<u8>,
}

impl Branches {
    const fn of(nullable: bool, unavailable: bool) -> Self {
        let value = nullable as u8;
        Self {
            union: nullable || unavailable,
            null: if nullable { Some(0) } else { None },
            value,
            unavailable: if unavailable { Some(value + 1) } else { None },
        }
    }
}

impl Field {
    fn new(column: &Column) -> Self {
        let (carried, nullable) = (Carried::of(column.sql_type), column.nullable);
        let branches = Branches::of(nullable, column.sql_type.may_be_unavailable());
        Self { column: column.name.clone(), sql_type: column.sql_type, carried, nullable, branches }
    }

    fn put(&self, value: &Value, out: &mut Vec<u8>) -> Option<()> {
        let branches = self.branches;
        let branch = match value {
            Value::Null => branches.null?,
            Value::Unavailable => branches.unavailable?,
            _ => branches.value,
        };
        if branches.union {
            out.push(branch * 2);
        }
        match value {
            Value::Null => return Some(()),
            Value::Unavailable => {
                out.push(0);
                return Some(());
            }
            _ => {}
        }
        match self.carried.take(value)? {
            Scalar::Bool(value) => out.push(u8::from(value)),
            Scalar::Int(number) if matches!(self.carried, Carried::Small { .. }) => put_decimal(i128::from(number), out),
            Scalar::Int(number) => {
                if self.carried == Carried::Int && self.sql_type != SqlType::BigInt && i32::try_from(number).is_err() {
                    return None;
                }
                write_varint(zigzag(number), out);
            }
            Scalar::Real(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Float(number) => out.extend_from_slice(&number.to_le_bytes()),
            Scalar::Wide(number) => put_decimal(number, out),
            Scalar::Bytes(bytes) => {
                if self.carried != Carried::Uuid {
                    write_varint(zigzag(bytes.len() as i64), out);
                }
                out.extend_from_slice(&bytes);
            }
            Scalar::Moment { utc, offset_minutes } => {
                write_varint(zigzag(utc), out);
                write_varint(zigzag(i64::from(offset_minutes)), out);
            }
        }
        Some(())
    }

    /// What stands here.
    #[inline]
    fn branch(&self, cursor: &mut Cursor<'_>) -> Result<Branch, ParseError> {
        let branches = self.branches;
        if !branches.union {
            return Ok(Branch::Value);
        }
        let branch = u8::try_from(cursor.varint()?).unwrap_or(u8::MAX);
        if branch & 1 == 1 {
            return cursor.error("a branch of a union");
        }
        match Some(branch / 2) {
            branch if branch == branches.null => Ok(Branch::Null),
            branch if branch == Some(branches.value) => Ok(Branch::Value),
            branch if branch == branches.unavailable => {
                if cursor.varint()? == 0 {
                    Ok(Branch::Unavailable)
                } else {
                    cursor.error("the one symbol of an enum")
                }
            }
            _ => cursor.error("a branch of a union"),
        }
    }

    fn take<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Scalar<'a>, ParseError> {
        Ok(match self.carried {
            Carried::Bool => match cursor.array()? {
                [0] => Scalar::Bool(false),
                [1] => Scalar::Bool(true),
                _ => return cursor.error("a boolean"),
            },
            Carried::Int | Carried::Date | Carried::Time { .. } | Carried::DateTime { .. } => Scalar::Int(long(cursor)?),
            Carried::Real => Scalar::Real(f32::from_le_bytes(cursor.array()?)),
            Carried::Float => Scalar::Float(f64::from_le_bytes(cursor.array()?)),
            Carried::Small { .. } => match read_wide(bytes(cursor)?).map(i64::try_from) {
                Some(Ok(number)) => Scalar::Int(number),
                _ => return cursor.error("a decimal of at most 18 digits"),
            },
            Carried::Decimal { .. } => match read_wide(bytes(cursor)?) {
                Some(number) => Scalar::Wide(number),
                None => return cursor.error("a decimal of at most 38 digits"),
            },
            Carried::Text | Carried::Bytes | Carried::Json => Scalar::Bytes(bytes(cursor)?.into()),
            Carried::Uuid => Scalar::Bytes(cursor.take(16)?.into()),
            Carried::DateTimeOffset { .. } => {
                let utc = long(cursor)?;
                let Ok(offset_minutes) = i32::try_from(long(cursor)?) else { return cursor.error("an offset") };
                Scalar::Moment { utc, offset_minutes }
            }
        })
    }

    fn skip(&self, cursor: &mut Cursor<'_>) -> Result<(), ParseError> {
        match self.carried {
            Carried::Int | Carried::Date | Carried::Time { .. } | Carried::DateTime { .. } => drop(cursor.varint()?),
            Carried::Small { .. } | Carried::Decimal { .. } | Carried::Text | Carried::Bytes | Carried::Json => {
                bytes(cursor)?;
            }
            Carried::Bool => cursor.pass(1)?,
            Carried::Real => cursor.pass(4)?,
            Carried::Float => cursor.pass(8)?,
            Carried::Uuid => cursor.pass(16)?,
            Carried::DateTimeOffset { .. } => {
                cursor.varint()?;
                cursor.varint()?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    Null,
    Value,
    Unavailable,
}

fn put_decimal(number: i128, out: &mut Vec<u8>) {
    out.push(wide_length(number) as u8 * 2);
    write_wide(number, out);
}

fn long(cursor: &mut Cursor<'_>) -> Result<i64, ParseError> {
    cursor.varint().map(unzigzag)
}

fn bytes<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], ParseError> {
    match u64::try_from(long(cursor)?) {
        Ok(length) => cursor.take(length),
        Err(_) => cursor.error("a length"),
    }
}

impl Schema {
    /// The schema of a table under its contract's version.
    pub fn new(table: &TableSchema, version: u32) -> Self {
        Self::of(table.name.clone(), version, table.columns.iter().map(Field::new).collect())
    }

    fn of(table: TableName, version: u32, fields: Vec<Field>) -> Self {
        let text = text(&table, version, &fields);
        let fingerprint = serde_json::from_str(&text).map_or(0, |json: Json| rabin::fingerprint(canonical(&json, "").as_bytes()));
        Self { table, version, fingerprint, text, fields }
    }

    /// Reads a schema file. `file` is for messages alone.
    pub fn parse(file: &str, text: &str) -> Result<Self, SchemaError> {
        let wrong = |problem: String| SchemaError::File { file: file.to_owned(), problem };
        let json: Json = serde_json::from_str(text).map_err(|error| wrong(format!("not JSON: {error}")))?;
        let member =
            |json: &Json, name: &str| json[name].as_str().map(str::to_owned).ok_or_else(|| wrong(format!("no {name:?}")));
        let table = member(&json, "x-table")?.parse().map_err(|error| wrong(format!("x-table: {error}")))?;
        let version = json["x-version"].as_u64().and_then(|version| u32::try_from(version).ok());
        let version = version.ok_or_else(|| wrong("no \"x-version\"".to_owned()))?;
        let row = &json["fields"][2]["type"][1]["fields"];
        let fields = row.as_array().ok_or_else(|| wrong("no row in `before`".to_owned()))?.iter().map(|field| {
            let name = member(field, "name")?;
            let column = field["x-column"].as_str().map_or(name, str::to_owned);
            let sql_type = member(field, "x-sql-type")?.parse().map_err(|error| wrong(format!("{column}: {error}")))?;
            let nullable = field["type"][0] == "null";
            Ok(Field::new(&Column { name: column, sql_type, nullable, case_insensitive: false }))
        });
        let schema = Self::of(table, version, fields.collect::<Result<_, _>>()?);
        if rabin::fingerprint(canonical(&json, "").as_bytes()) != schema.fingerprint {
            return Err(wrong("names or types are not what its x-sql-type and x-column say".to_owned()));
        }
        Ok(schema)
    }

    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|field| field.column.as_str())
    }

    /// Whether events under the one are read by the other.
    pub(super) fn reads_as(&self, other: &Self) -> bool {
        self.table == other.table && self.fields == other.fields
    }

    /// Appends an event. `None`, with part of it written: a value is not of its column's type.
    pub(super) fn encode(&self, writing: &Writing, event: &ChangeEvent, out: &mut Vec<u8>) -> Option<()> {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        let (op, snapshot) = match event.op {
            Op::Create => (0, 0),
            Op::Update => (1, 0),
            Op::Delete => (2, 0),
            Op::Read => (3, 1),
            Op::Reread => (3, 2),
        };
        out.push(op * 2);
        for text in [&writing.source, &writing.database] {
            write_varint(zigzag(text.len() as i64), out);
            out.extend_from_slice(text.as_bytes());
        }
        write_varint(zigzag(event.commit_time_ms), out);
        out.push(snapshot * 2);
        out.extend_from_slice(event.position.commit_lsn.as_bytes());
        if event.op.is_read() {
            out.push(0);
        } else {
            out.push(2);
            out.extend_from_slice(event.position.seqval.as_bytes());
        }
        write_varint(zigzag(i64::from(event.position.command_id)), out);
        self.put_row(event.before.as_ref(), out)?;
        self.put_row(event.after.as_ref(), out)
    }

    fn put_row(&self, row: Option<&Row>, out: &mut Vec<u8>) -> Option<()> {
        let Some(row) = row else {
            out.push(0);
            return Some(());
        };
        if row.len() != self.fields.len() {
            return None;
        }
        out.push(2);
        self.fields.iter().zip(row).try_for_each(|(field, value)| field.put(value, out))
    }

    /// Reads up to the rows; `bytes` begin with the magic and the fingerprint. Answers where they begin.
    pub(super) fn head<'a>(&'a self, bytes: &'a [u8]) -> Result<(Stated<'a>, usize), ParseError> {
        let mut cursor = Cursor::new(bytes, MAGIC.len() + 8);
        let op = usize::try_from(cursor.varint()?).unwrap_or(usize::MAX);
        let op = if op % 2 == 0 { OPS.get(op / 2).copied() } else { None };
        let Some(op) = op else { return cursor.error("an operation") };
        let mut texts = [""; 2];
        for text in &mut texts {
            let Ok(found) = std::str::from_utf8(self::bytes(&mut cursor)?) else { return cursor.error("UTF-8 before it") };
            *text = found;
        }
        let ts_ms = long(&mut cursor)?;
        let incremental = match cursor.varint()? {
            0 | 2 => false,
            4 => true,
            _ => return cursor.error("a kind of snapshot"),
        };
        let commit_lsn = Lsn::from_bytes(cursor.array()?);
        let seqval = match cursor.varint()? {
            0 => None,
            2 => Some(Lsn::from_bytes(cursor.array()?)),
            _ => return cursor.error("a change LSN or null"),
        };
        let Ok(command_id) = i32::try_from(long(&mut cursor)?) else { return cursor.error("a command id") };
        let [source, database] = texts;
        let stated = Stated { op, incremental, table: &self.table, source, database, commit_lsn, seqval, command_id, ts_ms };
        Ok((stated, cursor.at))
    }

    /// Reads the wanted columns of both rows, and passes over the rest.
    pub(crate) fn rows(
        &self,
        bytes: &[u8],
        at: usize,
        slots: &[Option<u32>],
        text: &mut Vec<u8>,
        [before, after]: [&mut Image; 2],
    ) -> Result<(), ParseError> {
        let mut cursor = Cursor::new(bytes, at);
        for row in [before, after] {
            match cursor.varint()? {
                0 => {}
                2 => {
                    row.present = true;
                    self.row(&mut cursor, slots, text, row)?;
                }
                _ => return cursor.error("a row or null"),
            }
        }
        cursor.end()
    }

    fn row(&self, cursor: &mut Cursor<'_>, slots: &[Option<u32>], text: &mut Vec<u8>, row: &mut Image) -> Result<(), ParseError> {
        for (field, slot) in self.fields.iter().zip(slots) {
            match (field.branch(cursor)?, slot) {
                (Branch::Value, None) => field.skip(cursor)?,
                (_, None) => {}
                (Branch::Null, Some(slot)) => row.set_null(*slot),
                (Branch::Unavailable, Some(slot)) => row.set_unavailable(*slot),
                (Branch::Value, Some(slot)) => {
                    let start = text.len();
                    let scalar = field.take(cursor)?;
                    if field.carried.write(&scalar, text).is_none() {
                        return cursor.error("a value of its column's type before it");
                    }
                    row.set(*slot, start, text.len());
                }
            }
        }
        Ok(())
    }
}

/// The fingerprint that an event names.
pub(super) fn named(bytes: &[u8]) -> Option<u64> {
    bytes.strip_prefix(&MAGIC)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

fn text(table: &TableName, version: u32, fields: &[Field]) -> String {
    let namespace = format!("tributary.{}.{}.v{version}", identifier(&table.schema), identifier(&table.table));
    let mut names = Names::default();
    let mut defined = Vec::new();
    let rows: Vec<String> = fields
        .iter()
        .map(|field| {
            let name = names.give(&field.column);
            let mut member = Map::new();
            member.insert("name".into(), name.as_str().into());
            let branches = field.branches;
            let mut union = Vec::new();
            if field.nullable {
                union.push(json!("null"));
            }
            union.push(avro_type(field.sql_type, &mut defined));
            if branches.unavailable.is_some() {
                let unavailable = json!({"type": "enum", "name": "Unavailable", "symbols": ["UNAVAILABLE"], "doc": "Not recorded by change data capture because it did not change: not NULL."});
                union.push(named_type("Unavailable", unavailable, &mut defined));
            }
            member.insert("type".into(), if branches.union { Json::Array(union) } else { union.swap_remove(0) });
            if field.nullable {
                member.insert("default".into(), Json::Null);
            }
            if name != field.column {
                member.insert("x-column".into(), field.column.as_str().into());
            }
            member.insert("x-sql-type".into(), field.sql_type.to_string().into());
            format!("      {}", Json::Object(member))
        })
        .collect();
    let table = json!(table.to_string());
    format!(
        r#"{{
  "type": "record", "name": "Envelope", "namespace": "{namespace}", "x-table": {table}, "x-version": {version},
  "doc": "Events of a table as Tributary publishes them: Avro's single-object encoding. Written beside the table's contract; not to be edited.",
  "fields": [
    {{"name":"op","type":{{"type":"enum","name":"Op","symbols":["c","u","d","r"]}}}},
    {{"name":"source","type":{{"type":"record","name":"Source","fields":[
      {{"name":"name","type":"string"}},
      {{"name":"db","type":"string"}},
      {{"name":"ts_ms","type":{{"type":"long","logicalType":"timestamp-millis"}}}},
      {{"name":"snapshot","type":{{"type":"enum","name":"Snapshot","symbols":["none","initial","incremental"]}}}},
      {{"name":"commit_lsn","type":{{"type":"fixed","name":"Lsn","size":10}}}},
      {{"name":"change_lsn","type":["null","Lsn"]}},
      {{"name":"command_id","type":"int"}}
    ]}}}},
    {{"name":"before","type":["null",{{"type":"record","name":"Row","fields":[
{}
    ]}}]}},
    {{"name":"after","type":["null","Row"]}}
  ]
}}
"#,
        rows.join(",\n")
    )
}

/// A named type is defined where it stands first, and referred to after that.
fn named_type(name: &'static str, definition: Json, defined: &mut Vec<&'static str>) -> Json {
    if defined.contains(&name) {
        return name.into();
    }
    defined.push(name);
    definition
}

fn avro_type(sql_type: SqlType, defined: &mut Vec<&'static str>) -> Json {
    let carried = Carried::of(sql_type);
    let decimal =
        |precision: u8, scale: u8| json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale});
    match (sql_type, carried) {
        (SqlType::BigInt, _) => json!("long"),
        (SqlType::Decimal { precision, scale }, _) => decimal(precision, scale),
        (SqlType::Money, _) => decimal(19, 4),
        (SqlType::SmallMoney, _) => decimal(10, 4),
        (_, Carried::Bool) => json!("boolean"),
        (_, Carried::Real) => json!("float"),
        (_, Carried::Float) => json!("double"),
        (_, Carried::Bytes) => json!("bytes"),
        (_, Carried::Uuid) => {
            named_type("Uuid", json!({"type": "fixed", "name": "Uuid", "size": 16, "logicalType": "uuid"}), defined)
        }
        (_, Carried::Date) => json!({"type": "int", "logicalType": "date"}),
        (_, Carried::Time { .. }) => match carried.unit() {
            Some(Unit::Milliseconds) => json!({"type": "int", "logicalType": "time-millis"}),
            Some(Unit::Microseconds) => json!({"type": "long", "logicalType": "time-micros"}),
            _ => json!({"type": "long", "x-unit": "100 ns since midnight"}),
        },
        (_, Carried::DateTime { .. }) => match carried.unit() {
            Some(Unit::Milliseconds) => json!({"type": "long", "logicalType": "local-timestamp-millis"}),
            Some(Unit::Microseconds) => json!({"type": "long", "logicalType": "local-timestamp-micros"}),
            _ => json!({"type": "long", "x-unit": "100 ns since 1970-01-01T00:00:00, local"}),
        },
        (_, Carried::DateTimeOffset { .. }) => {
            let fields = json!([
                {"name": "utc", "type": {"type": "long", "x-unit": "100 ns since 1970-01-01T00:00:00Z"}},
                {"name": "offset_minutes", "type": "int"}
            ]);
            named_type("DateTimeOffset", json!({"type": "record", "name": "DateTimeOffset", "fields": fields}), defined)
        }
        (_, Carried::Json) => json!({"type": "string", "x-media-type": "application/json"}),
        (_, Carried::Int) => json!("int"),
        (_, Carried::Text | Carried::Small { .. } | Carried::Decimal { .. }) => json!("string"),
    }
}

/// Avro's Parsing Canonical Form.
fn canonical(schema: &Json, namespace: &str) -> String {
    const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
    let full = |name: &str, namespace: &str| {
        if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
    };
    match schema {
        Json::String(name) if PRIMITIVES.contains(&name.as_str()) => json!(name).to_string(),
        Json::String(name) => json!(full(name, namespace)).to_string(),
        Json::Array(union) => {
            let branches: Vec<String> = union.iter().map(|branch| canonical(branch, namespace)).collect();
            format!("[{}]", branches.join(","))
        }
        Json::Object(members) => {
            let kind = members.get("type").and_then(Json::as_str).unwrap_or_default();
            if PRIMITIVES.contains(&kind) {
                return json!(kind).to_string();
            }
            let namespace = members.get("namespace").and_then(Json::as_str).unwrap_or(namespace);
            let mut parts = Vec::new();
            if let Some(name) = members.get("name").and_then(Json::as_str) {
                parts.push(format!("\"name\":{}", json!(full(name, namespace))));
            }
            parts.push(format!("\"type\":{}", json!(kind)));
            if let Some(fields) = members.get("fields").and_then(Json::as_array) {
                let field =
                    |field: &Json| format!("{{\"name\":{},\"type\":{}}}", field["name"], canonical(&field["type"], namespace));
                parts.push(format!("\"fields\":[{}]", fields.iter().map(field).collect::<Vec<_>>().join(",")));
            }
            for member in ["symbols", "size"] {
                if let Some(value) = members.get(member) {
                    parts.push(format!("\"{member}\":{value}"));
                }
            }
            for member in ["items", "values"] {
                if let Some(value) = members.get(member) {
                    parts.push(format!("\"{member}\":{}", canonical(value, namespace)));
                }
            }
            format!("{{{}}}", parts.join(","))
        }
        other => other.to_string(),
    }
}
