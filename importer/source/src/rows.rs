//! Reading source tables in chunks, in the order of their key as the server sees it.
//!
//! A chunk goes on from the last key of the one before. The bound is sent back to the server and turned there into the column's own type and collation, so that the
//! order is the server's alone, whatever it is for text or uniqueidentifiers. Reads are READ COMMITTED, without hints: what changes in the meantime is in the tail.

use schemas::event::Row as Values;
use schemas::table::TableSchema;
use schemas::value::Value;
use serde::{Deserialize, Serialize};
use tiberius::{ColumnData, Row};

use super::catalog::Instance;
use super::client::Client;
use super::decode::value;
use super::error::Error;
use super::sql::{self, KeyColumn, quote};

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

/// How to read a table.
#[derive(Debug)]
pub struct SourceTable {
    columns: usize,
    /// Indexes of the key's columns among those read, and their place in queries; empty: no key to go on from.
    key: Vec<usize>,
    /// By how many key columns are bound; one without a key.
    queries: Vec<String>,
}

impl SourceTable {
    /// Reads the columns of `schema` in its order.
    pub fn new(schema: &TableSchema, instance: &Instance) -> Result<Self, String> {
        let captured = |name: &str| instance.columns.iter().find(|captured| captured.name == name).ok_or_else(|| name.to_owned());
        let mut selected = Vec::new();
        for column in &schema.columns {
            selected.push(captured(&column.name)?.in_source_table());
        }
        let table = format!("{}.{} AS t", quote(&schema.name.schema), quote(&schema.name.table));
        let mut keys: Vec<KeyColumn> = Vec::new();
        for name in schema.key_names() {
            match captured(name)?.key_column() {
                Some(key) => keys.push(key),
                None => {
                    keys.clear();
                    break;
                }
            }
        }
        if keys.is_empty() {
            return Ok(Self { columns: selected.len(), key: Vec::new(), queries: vec![sql::snapshot_scan(&table, &selected)] });
        }
        let queries = (0..=keys.len()).map(|after| sql::snapshot_chunk(&table, &selected, &keys, after)).collect();
        Ok(Self { columns: selected.len(), key: schema.key.clone(), queries })
    }

    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The whole-table query of a table without a key.
    pub fn scan(&self) -> &str {
        &self.queries[0]
    }

    /// The next rows after a key, at most `limit`; fewer mean that the table is at its end.
    pub async fn chunk(&self, client: &mut Client, after: Option<&[KeyPart]>, limit: usize) -> Result<Vec<Values>, Error> {
        let mut rows = Vec::with_capacity(limit.min(1 << 16));
        let bounds = after.unwrap_or_default();
        // From the whole key down to its first column: the rest of the smallest group first, then the groups around it.
        for bound in (usize::from(!bounds.is_empty())..=bounds.len()).rev() {
            let rest = limit - rows.len();
            let mut parameters = vec![ColumnData::I64(Some(rest.try_into().unwrap_or(i64::MAX)))];
            for part in &bounds[..bound] {
                parameters.push(part.parameter()?);
            }
            client
                .for_each(DOING, &self.queries[bound], parameters, |_, row| {
                    rows.push(self.values(row)?);
                    Ok(())
                })
                .await?;
            if rows.len() >= limit {
                break;
            }
        }
        Ok(rows)
    }

    pub fn values(&self, row: Row) -> Result<Values, Error> {
        let mut values = Vec::with_capacity(self.columns);
        for data in row {
            values.push(value(data)?);
        }
        if values.len() == self.columns {
            Ok(values)
        } else {
            Err(Error::Unexpected {
                doing: DOING,
                what: format!("a row has {} columns instead of {}", values.len(), self.columns),
            })
        }
    }

    /// The key of a row, to go on from.
    pub fn key_of(&self, row: &Values) -> Result<Vec<KeyPart>, Error> {
        let part = |index: &usize| {
            KeyPart::of(&row[*index]).ok_or_else(|| Error::Unexpected { doing: DOING, what: "a key holds NULL".to_owned() })
        };
        self.key.iter().map(part).collect()
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
