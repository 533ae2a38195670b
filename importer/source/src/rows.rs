//! Reading source tables in chunks, in the order of their key as the server sees it.
//!
//! A table may be read as a whole or in ranges side by side ([`KeyRange`]): (`from`, `to`] of the key, cut where the server cut ([`SourceTable::split_points`]). Ranges that share
//! their bounds tile the table exactly, whatever the bounds are, because each row is compared with the same bound by the same expression, on the server, in the
//! column's own type and collation: it is at or below it, and in the range that ends there, or above, and in the range that begins there.
//!
//! A chunk goes on from the last key of the one before. The bound is sent back to the server and turned there into the column's own type and collation, so that the
//! order is the server's alone, whatever it is for text or uniqueidentifiers. Reads are READ COMMITTED, without hints: what changes in the meantime is in the tail.

use schemas::event::Row as Values;
use schemas::table::{SqlType, TableName, TableSchema};
use schemas::value::Value;
use serde::{Deserialize, Serialize};
use tiberius::{ColumnData, Row};

use super::catalog::Instance;
use super::changes::size;
use super::client::Client;
use super::decode::{Columns, Decoder, value};
use super::error::Error;
use super::sql::{self, Branch, KeyColumn, quote};

const DOING: &str = "reading a table for the snapshot";

/// A part of the last key read, in a form that survives a restart and becomes a parameter again without loss. It is part of the saved progress: kinds are added, never
/// changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPart {
    Int(i64),
    /// Text, and everything that the server reads from text: decimals and times.
    Text(String),
    /// The bits of a real.
    Real(u32),
    /// The bits of a float.
    Float(u64),
    /// In hexadecimal.
    Bytes(String),
    Uuid(String),
}

impl KeyPart {
    /// `None` for NULL, which no key holds.
    fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::Null | Value::Unavailable => return None,
            Value::Bool(bit) => Self::Int((*bit).into()),
            Value::Int(number) => Self::Int(*number),
            Value::Real(number) => Self::Real(number.to_bits()),
            Value::Float(number) => Self::Float(number.to_bits()),
            Value::Text(text) => Self::Text(text.clone()),
            Value::Bytes(bytes) => Self::Bytes(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            Value::Uuid(bytes) => Self::Uuid(tiberius::Uuid::from_bytes(*bytes).to_string()),
            Value::Decimal { .. }
            | Value::Date(_)
            | Value::Time { .. }
            | Value::DateTime { .. }
            | Value::DateTimeOffset { .. } => {
                let mut json = Vec::new();
                value.write_json(&mut json);
                Self::Text(String::from_utf8_lossy(&json).trim_matches('"').to_owned())
            }
        })
    }

    /// From what a person writes for a column of this type. Times, decimals and text are left to the server to read.
    fn from_text(text: &str, sql_type: SqlType) -> Option<Self> {
        Some(match sql_type {
            SqlType::Bit | SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Self::Int(text.parse().ok()?),
            SqlType::Real => Self::Real(text.parse::<f32>().ok().filter(|number| number.is_finite())?.to_bits()),
            SqlType::Float => Self::Float(text.parse::<f64>().ok().filter(|number| number.is_finite())?.to_bits()),
            SqlType::UniqueIdentifier => Self::Uuid(tiberius::Uuid::parse_str(text).ok()?.to_string()),
            SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::RowVersion => {
                let hex = text.strip_prefix("0x")?;
                let whole = hex.len() % 2 == 0 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
                whole.then(|| Self::Bytes(hex.to_ascii_lowercase()))?
            }
            _ => Self::Text(text.to_owned()),
        })
    }

    fn parameter(&self) -> Result<ColumnData<'static>, Error> {
        let damaged = |what: &str| Error::Unexpected { doing: DOING, what: format!("the saved key {what:?} cannot be read") };
        Ok(match self {
            Self::Int(number) => ColumnData::I64(Some(*number)),
            Self::Text(text) => ColumnData::String(Some(text.clone().into())),
            Self::Real(bits) => ColumnData::F32(Some(f32::from_bits(*bits))),
            Self::Float(bits) => ColumnData::F64(Some(f64::from_bits(*bits))),
            Self::Bytes(hex) => {
                let byte = |at: usize| {
                    hex.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or_else(|| damaged(hex))
                };
                ColumnData::Binary(Some((0..hex.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, Error>>()?.into()))
            }
            Self::Uuid(text) => ColumnData::Guid(Some(tiberius::Uuid::parse_str(text).map_err(|_| damaged(text))?)),
        })
    }
}

/// Where a range of a key begins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    #[default]
    Beginning,
    /// Above this key.
    After(Vec<KeyPart>),
    /// At this key, of which the last columns may be left out.
    From(Vec<KeyPart>),
}

/// A range of a table's key in the server's order. It is part of the saved progress.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KeyRange {
    pub start: Start,
    /// Up to this key, itself included, of which the last columns may be left out: then all keys that begin so are included.
    pub to: Option<Vec<KeyPart>>,
}

impl KeyRange {
    /// What is left of the range after a key in it.
    pub fn after(&self, key: Vec<KeyPart>) -> Self {
        Self { start: Start::After(key), to: self.to.clone() }
    }

    /// The ranges between keys that are in order: together they are the table.
    pub fn between(points: Vec<Vec<KeyPart>>) -> Vec<Self> {
        let mut ranges = Vec::with_capacity(points.len() + 1);
        let mut start = Start::Beginning;
        for point in points {
            ranges.push(Self { start, to: Some(point.clone()) });
            start = Start::After(point);
        }
        ranges.push(Self { start, to: None });
        ranges
    }
}

/// The rows of a part of a range.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chunk {
    pub rows: Vec<Values>,
    /// About how much memory they take.
    pub bytes: usize,
    /// Nothing of the range is left.
    pub at_end: bool,
}

/// How many rows of a table are worth walking over to cut it into equal parts; a larger one is sampled.
const WALKED_ROWS: u64 = 1_000_000;

/// How to read a table.
#[derive(Debug)]
pub struct SourceTable {
    name: TableName,
    /// The table in a FROM clause.
    from: String,
    selected: Vec<String>,
    decoder: Decoder,
    /// Indexes of the key's columns among those read; empty: no key to go on from.
    key: Vec<usize>,
    key_types: Vec<SqlType>,
    /// The key's columns as they are selected, and in comparisons.
    keys: Vec<(String, KeyColumn)>,
    scan: String,
}

impl SourceTable {
    /// Reads the columns of `schema` in its order.
    pub fn new(schema: &TableSchema, instance: &Instance) -> Result<Self, String> {
        let captured = |name: &str| instance.columns.iter().find(|captured| captured.name == name).ok_or_else(|| name.to_owned());
        let mut selected = Vec::new();
        for column in &schema.columns {
            selected.push(captured(&column.name)?.in_source_table());
        }
        let from = format!("{}.{} AS t", quote(&schema.name.schema), quote(&schema.name.table));
        let mut keys = Vec::new();
        for name in schema.key_names() {
            let column = captured(name)?;
            keys.push(column.key_column().map(|key| (column.source_expression(), key)));
        }
        // One column without an order leaves nothing to go on from.
        let keys: Vec<_> = keys.into_iter().collect::<Option<_>>().unwrap_or_default();
        let key = if keys.is_empty() { Vec::new() } else { schema.key.clone() };
        Ok(Self {
            name: schema.name.clone(),
            scan: sql::snapshot_scan(&from, &selected),
            from,
            selected,
            decoder: Decoder::new(schema),
            key_types: key.iter().map(|&index| schema.columns[index].sql_type).collect(),
            key,
            keys,
        })
    }

    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The whole-table query of a table without a key.
    pub fn scan(&self) -> &str {
        &self.scan
    }

    /// The first rows of a range: at most `max_rows`, and about `max_bytes`, but at least one if there is any. Rows that turn out too large are read and left out: the next
    /// chunk goes on after the last that was kept.
    pub async fn read(&self, client: &mut Client, range: &KeyRange, max_rows: usize, max_bytes: usize) -> Result<Chunk, Error> {
        let mut part = Part { table: self, max_rows, max_bytes, marked: range.to.is_some(), chunk: Chunk::default(), end: None };
        let keys: Vec<KeyColumn> = self.keys.iter().map(|(_, key)| key.clone()).collect();
        let (bounds, inclusive): (&[KeyPart], bool) = match &range.start {
            Start::Beginning => (&[], false),
            Start::After(key) => (key, false),
            Start::From(key) => (key, true),
        };
        let to = range.to.as_deref().unwrap_or_default();
        if keys.is_empty() || bounds.len() > keys.len() || to.len() > keys.len() {
            return Err(unexpected(format!("{range:?} is not a range of {}'s key", self.name)));
        }
        // From the whole key down to its first column: the rest of the smallest group first, then the groups around it.
        for bound in (usize::from(!bounds.is_empty())..=bounds.len()).rev() {
            let branch = Branch { bound, inclusive: inclusive && bound == bounds.len(), to: to.len() };
            let rest = max_rows.saturating_sub(part.chunk.rows.len());
            let mut parameters = vec![ColumnData::I64(Some(rest.try_into().unwrap_or(i64::MAX)))];
            for key in bounds[..bound].iter().chain(to) {
                parameters.push(key.parameter()?);
            }
            let sql = sql::snapshot_chunk(&self.from, &self.selected, &keys, branch);
            client.for_each(DOING, &sql, parameters, |_, row| part.take(row)).await?;
            if part.end.is_some() || part.chunk.rows.len() >= max_rows {
                break;
            }
        }
        let at_end = part.end.unwrap_or(part.chunk.rows.len() < max_rows);
        Ok(Chunk { at_end, ..part.chunk })
    }

    /// Keys that cut the table into about `parts` parts of about the same number of rows: fewer where the table is small. `rows` is how many it has, about.
    ///
    /// They are asked for one after the other, and so rows that come and go meanwhile may put one before the one that was asked for earlier. The ranges between them tile the table
    /// even so: a key is in the range that ends with the first point that it is not above, and in no earlier one; a later one may hold it again, which costs a second reading.
    pub async fn split_points(&self, client: &mut Client, parts: usize, rows: u64) -> Result<Vec<Vec<KeyPart>>, Error> {
        if parts < 2 || self.keys.is_empty() {
            return Ok(Vec::new());
        }
        let parts = parts as u64;
        if rows > WALKED_ROWS {
            match self.points(client, &sql::sampled_points(&self.from, &self.keys), parts).await {
                // A memory-optimised table has no pages to sample.
                Err(Error::Server { code, message, .. }) => {
                    tracing::debug!(table = %self.name, code, message, "the table cannot be sampled");
                }
                other => return other,
            }
        }
        let sql = sql::key_behind(&self.from, &self.keys);
        let mut points = Vec::new();
        // The last row of each part but the last.
        for end in 1..parts.min(rows) {
            let behind = u128::from(rows) * u128::from(end) / u128::from(parts.min(rows)) - 1;
            points.extend(self.points(client, &sql, behind.try_into().unwrap_or(u64::MAX)).await?);
        }
        points.dedup();
        Ok(points)
    }

    async fn points(&self, client: &mut Client, sql: &str, parameter: u64) -> Result<Vec<Vec<KeyPart>>, Error> {
        let doing = "cutting a table into parts";
        let mut points = Vec::new();
        for row in client.rows(doing, sql, vec![ColumnData::I64(Some(parameter.try_into().unwrap_or(i64::MAX)))]).await? {
            let part = |data| key_part(&value(data)?);
            points.push(row.into_iter().map(part).collect::<Result<Vec<_>, Error>>()?);
        }
        // A sample may hold a key twice only if the key is none.
        points.dedup();
        Ok(points)
    }

    /// About how many rows the table has, if the server says.
    pub async fn estimated_rows(&self, client: &mut Client) -> Result<Option<u64>, Error> {
        let doing = "counting rows";
        let name = format!("{}.{}", quote(&self.name.schema), quote(&self.name.table));
        let row = client.rows(doing, sql::ROW_COUNT, vec![ColumnData::String(Some(name.into()))]).await?.into_iter().next();
        let rows = row.map(|row| Columns::new(doing, row).optional_int()).transpose()?.flatten();
        Ok(rows.and_then(|rows| rows.try_into().ok()))
    }

    /// A key, or its first columns, as a person writes it, in the key's order. Text that is no value of its column's type is refused here, or by the server.
    pub fn key_from_text(&self, parts: &[&str]) -> Result<Vec<KeyPart>, Error> {
        let bad = |what: String| Error::BadKey { table: self.name.clone(), what };
        if self.key.is_empty() {
            return Err(bad("the table has no key to go by".to_owned()));
        }
        if parts.is_empty() || parts.len() > self.key.len() {
            return Err(bad(format!("{} values are given for a key of {} columns", parts.len(), self.key.len())));
        }
        let part = |(text, sql_type): (&&str, &SqlType)| {
            KeyPart::from_text(text, *sql_type).ok_or_else(|| bad(format!("{text:?} is not a value of {sql_type}")))
        };
        parts.iter().zip(&self.key_types).map(part).collect()
    }

    /// A row of the table's columns.
    pub fn values(&self, row: Row) -> Result<Values, Error> {
        let mut cells = row.into_iter();
        let values = self.decoder.row(&mut cells)?;
        if cells.next().is_none() { Ok(values) } else { Err(unexpected("a row is too long")) }
    }

    /// The key of a row, to go on from.
    pub fn key_of(&self, row: &Values) -> Result<Vec<KeyPart>, Error> {
        self.key.iter().map(|index| key_part(&row[*index])).collect()
    }
}

fn unexpected(what: impl Into<String>) -> Error {
    Error::Unexpected { doing: DOING, what: what.into() }
}

fn key_part(value: &Value) -> Result<KeyPart, Error> {
    KeyPart::of(value).ok_or_else(|| unexpected("a key holds NULL"))
}

/// Takes in the rows of one chunk.
struct Part<'a> {
    table: &'a SourceTable,
    max_rows: usize,
    max_bytes: usize,
    /// Rows carry a mark whether they are in the range.
    marked: bool,
    chunk: Chunk,
    /// Reading is over: at the range's end (true), or because the chunk is full.
    end: Option<bool>,
}

impl Part<'_> {
    fn take(&mut self, row: Row) -> Result<(), Error> {
        if self.end.is_some() {
            return Ok(());
        }
        if self.chunk.bytes >= self.max_bytes || self.chunk.rows.len() >= self.max_rows {
            self.end = Some(false);
            return Ok(());
        }
        let mut cells = row.into_iter();
        let values = self.table.decoder.row(&mut cells)?;
        match (self.marked, cells.next()) {
            (false, None) | (true, Some(ColumnData::I32(Some(1)))) => {}
            (true, Some(ColumnData::I32(Some(0)))) => {
                self.end = Some(true);
                return Ok(());
            }
            (_, mark) => return Err(unexpected(format!("a row ends with {mark:?}"))),
        }
        self.chunk.bytes += values.iter().map(size).sum::<usize>();
        self.chunk.rows.push(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn any_key_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Int),
            ".{0,20}".prop_map(Value::Text),
            any::<f64>().prop_map(Value::Float),
            any::<f32>().prop_map(Value::Real),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
            any::<[u8; 16]>().prop_map(Value::Uuid),
            (any::<i64>(), 0u8..=10).prop_map(|(mantissa, scale)| Value::Decimal { mantissa: mantissa.into(), scale }),
        ]
    }

    #[test]
    fn ranges_between_points_share_their_bounds() {
        let point = |number| vec![KeyPart::Int(number)];
        let ranges = KeyRange::between(vec![point(1), point(2)]);
        assert_eq!(
            ranges,
            [
                KeyRange { start: Start::Beginning, to: Some(point(1)) },
                KeyRange { start: Start::After(point(1)), to: Some(point(2)) },
                KeyRange { start: Start::After(point(2)), to: None },
            ]
        );
        let text = serde_json::to_string(&ranges[1]).unwrap();
        assert_eq!(text, r#"{"start":{"after":[{"int":1}]},"to":[{"int":2}]}"#);
        assert_eq!(serde_json::from_str::<KeyRange>(&text).unwrap(), ranges[1]);
        assert_eq!(KeyRange::between(vec![]), [KeyRange::default()]);
    }

    #[test]
    fn keys_are_read_from_what_people_write() {
        let part = |text, sql_type: &str| KeyPart::from_text(text, sql_type.parse().unwrap());
        assert_eq!(part("-7", "bigint"), Some(KeyPart::Int(-7)));
        assert_eq!(part("x", "int"), None);
        assert_eq!(part("0xAB01", "varbinary(8)"), Some(KeyPart::Bytes("ab01".into())));
        assert_eq!(part("0xAB0", "varbinary(8)"), None);
        assert_eq!(part("1", "uniqueidentifier"), None);
        assert_eq!(part("NaN", "float"), None);
        assert_eq!(part("2024-01-01", "date"), Some(KeyPart::Text("2024-01-01".into())));
    }

    proptest! {
        /// What is saved becomes the same parameter after a restart.
        #[test]
        fn keys_survive_saving(value in any_key_value()) {
            let part = KeyPart::of(&value).unwrap();
            let read: KeyPart = serde_json::from_str(&serde_json::to_string(&part).unwrap()).unwrap();
            prop_assert_eq!(&read, &part);
            let parameter = read.parameter().unwrap();
            match (value, parameter) {
                (Value::Int(a), ColumnData::I64(Some(b))) => prop_assert_eq!(a, b),
                (Value::Text(a), ColumnData::String(Some(b))) => prop_assert_eq!(a, b),
                (Value::Float(a), ColumnData::F64(Some(b))) => prop_assert_eq!(a.to_bits(), b.to_bits()),
                (Value::Real(a), ColumnData::F32(Some(b))) => prop_assert_eq!(a.to_bits(), b.to_bits()),
                (Value::Bytes(a), ColumnData::Binary(Some(b))) => prop_assert_eq!(a, b.into_owned()),
                (Value::Uuid(a), ColumnData::Guid(Some(b))) => prop_assert_eq!(a, b.into_bytes()),
                (value @ Value::Decimal { .. }, ColumnData::String(Some(b))) => prop_assert_eq!(value.to_json(), serde_json::Value::from(b.into_owned())),
                (value, parameter) => prop_assert!(false, "{:?} became {:?}", value, parameter),
            }
        }
    }
}
