//! Values of SQL Server's types, and how they stand in JSON.
//!
//! | type | JSON |
//! |---|---|
//! | bit | `true`, `false` |
//! | tinyint, smallint, int, bigint | number |
//! | real, float | number, the shortest that reads back to the same bits |
//! | decimal, numeric, money, smallmoney | string with the declared scale: `"12.50"` |
//! | char … ntext, xml, json | string |
//! | vector | string, a JSON array of numbers |
//! | binary, varbinary, image, rowversion | string, base64 |
//! | hierarchyid | string, the path: `"/1/2.1/"` |
//! | geometry, geography | string, well-known text with the spatial reference (EWKT): `"SRID=4326;POINT (8.54 47.37)"` |
//! | sql_variant | as its base type |
//! | uniqueidentifier | string, upper case, as SQL Server prints it |
//! | date, time, datetime, datetime2, smalldatetime | string, ISO 8601 without a zone, fraction of the declared scale |
//! | datetimeoffset | string, ISO 8601 with the offset |
//!
//! A `max` value that CDC did not record because it did not change is [`Value::Unavailable`], written as Debezium's
//! `"__debezium_unavailable_value"`: it is not NULL.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::json;
pub use crate::json::write_string;

/// Debezium's placeholder for a value that the source did not record.
pub const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// One value of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    /// Not recorded by CDC; not NULL.
    Unavailable,
    Bool(bool),
    Int(i64),
    Real(f32),
    Float(f64),
    /// `mantissa / 10^scale`.
    Decimal {
        mantissa: i128,
        scale: u8,
    },
    Text(String),
    Bytes(Vec<u8>),
    /// In the byte order of the text form.
    Uuid([u8; 16]),
    /// Days since 0001-01-01.
    Date(u32),
    /// 100-nanosecond ticks since midnight; `scale` fraction digits are declared.
    Time {
        ticks: u64,
        scale: u8,
    },
    DateTime {
        days: u32,
        ticks: u64,
        scale: u8,
    },
    /// Local date and time, and the offset from UTC.
    DateTimeOffset {
        days: u32,
        ticks: u64,
        scale: u8,
        offset_minutes: i16,
    },
}

impl Value {
    /// Appends the value as JSON.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Unavailable => write_string(out, UNAVAILABLE),
            Self::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Self::Int(value) => json::write_integer(out, *value),
            // Writing to a Vec cannot fail.
            Self::Real(value) => drop(serde_json::to_writer(out, value)),
            Self::Float(value) => drop(serde_json::to_writer(out, value)),
            Self::Text(value) => write_string(out, value),
            quoted => {
                out.push(b'"');
                quoted.write_quoted(out);
                out.push(b'"');
            }
        }
    }

    /// What stands between the quotes, of values whose text needs no escapes.
    fn write_quoted(&self, out: &mut Vec<u8>) {
        match self {
            Self::Decimal { mantissa, scale } => json::write_decimal(out, *mantissa, *scale),
            Self::Bytes(value) => {
                let start = out.len();
                out.resize(start + value.len().div_ceil(3) * 4, 0);
                let written = BASE64.encode_slice(value, &mut out[start..]).unwrap_or_default();
                out.truncate(start + written);
            }
            Self::Uuid(bytes) => json::write_uuid(out, bytes),
            Self::Date(days) => json::write_date(out, *days),
            Self::Time { ticks, scale } => json::write_time(out, *ticks, *scale),
            Self::DateTime { days, ticks, scale } => {
                json::write_date(out, *days);
                out.push(b'T');
                json::write_time(out, *ticks, *scale);
            }
            Self::DateTimeOffset { days, ticks, scale, offset_minutes } => {
                json::write_date(out, *days);
                out.push(b'T');
                json::write_time(out, *ticks, *scale);
                json::write_offset(out, *offset_minutes);
            }
            Self::Null | Self::Unavailable | Self::Bool(_) | Self::Int(_) | Self::Real(_) | Self::Float(_) | Self::Text(_) => {}
        }
    }

    /// The value as a JSON value, for the rare paths that want a tree.
    pub fn to_json(&self) -> serde_json::Value {
        let mut out = Vec::new();
        self.write_json(&mut out);
        serde_json::from_slice(&out).unwrap_or(serde_json::Value::Null)
    }
}

/// Year, month, day of a day number in the proleptic Gregorian calendar (Howard Hinnant's `civil_from_days`, shifted to start at 0001-01-01).
pub(crate) fn civil(days_since_0001: u32) -> (u32, u32, u32) {
    // Day 0 of the algorithm is 0000-03-01, 306 days before 0001-01-01.
    let z = days_since_0001 + 306;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u32::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn json(value: &Value) -> String {
        let mut out = Vec::new();
        value.write_json(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_kind_has_its_documented_form() {
        let cases = [
            (Value::Null, "null"),
            (Value::Bool(true), "true"),
            (Value::Int(i64::MIN), "-9223372036854775808"),
            (Value::Float(0.1), "0.1"),
            (Value::Real(0.1), "0.1"),
            (Value::Decimal { mantissa: 1250, scale: 2 }, "\"12.50\""),
            (Value::Decimal { mantissa: -5, scale: 2 }, "\"-0.05\""),
            (Value::Decimal { mantissa: 0, scale: 4 }, "\"0.0000\""),
            (Value::Decimal { mantissa: i128::from(i64::MAX), scale: 0 }, "\"9223372036854775807\""),
            (Value::Text("a\"\n\u{1}é".into()), "\"a\\\"\\n\\u0001é\""),
            (Value::Bytes(vec![0, 255, 1]), "\"AP8B\""),
            (Value::Bytes(vec![]), "\"\""),
            (Value::Bytes(vec![7]), "\"Bw==\""),
            (
                Value::Uuid(*b"\x6f\x96\x19\xff\x8b\x86\xd0\x11\xb4\x2d\x00\xc0\x4f\xc9\x64\xff"),
                "\"6F9619FF-8B86-D011-B42D-00C04FC964FF\"",
            ),
            (Value::Date(0), "\"0001-01-01\""),
            (Value::Date(3_652_058), "\"9999-12-31\""),
            (Value::Date(738_944), "\"2024-02-29\""),
            (Value::Time { ticks: 863_999_999_999, scale: 7 }, "\"23:59:59.9999999\""),
            (Value::Time { ticks: 450_000_000_000, scale: 0 }, "\"12:30:00\""),
            (Value::DateTime { days: 738_944, ticks: 30_000, scale: 3 }, "\"2024-02-29T00:00:00.003\""),
            (Value::DateTimeOffset { days: 738_944, ticks: 0, scale: 0, offset_minutes: -570 }, "\"2024-02-29T00:00:00-09:30\""),
            (Value::Unavailable, "\"__debezium_unavailable_value\""),
        ];
        for (value, expected) in cases {
            assert_eq!(json(&value), expected, "{value:?}");
        }
    }
}
