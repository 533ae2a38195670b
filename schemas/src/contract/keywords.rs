//! The JSON Schema of a SQL Server type: what `tributary init` writes for a column, and what a parsed column's keywords are held against.

use serde_json::{Map, Value as Json, json};

use crate::table::{Length, SqlType};

/// The JSON types that values of a SQL type have, without `null`.
pub(super) fn json_types(sql_type: SqlType) -> &'static [&'static str] {
    match sql_type {
        SqlType::Bit => &["boolean"],
        SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => &["integer"],
        SqlType::Real | SqlType::Float => &["number"],
        SqlType::SqlVariant => &["boolean", "number", "string"],
        _ => &["string"],
    }
}

/// The least and greatest value of an integer type.
pub(super) fn integer_range(sql_type: SqlType) -> Option<(i64, i64)> {
    match sql_type {
        SqlType::TinyInt => Some((0, 255)),
        SqlType::SmallInt => Some((i16::MIN.into(), i16::MAX.into())),
        SqlType::Int => Some((i32::MIN.into(), i32::MAX.into())),
        SqlType::BigInt => Some((i64::MIN, i64::MAX)),
        _ => None,
    }
}

/// Digits before and after the point, for the exact numeric types.
pub(super) fn decimal_digits(sql_type: SqlType) -> Option<(u8, u8)> {
    match sql_type {
        SqlType::Decimal { precision, scale } => Some((precision.saturating_sub(scale), scale)),
        SqlType::Money => Some((15, 4)),
        SqlType::SmallMoney => Some((6, 4)),
        _ => None,
    }
}

/// The largest number of characters of a text type: a type's limit in bytes or UTF-16 units is never less than its limit in characters.
pub(super) fn text_length(sql_type: SqlType) -> Option<usize> {
    match sql_type {
        SqlType::Char(n) | SqlType::NChar(n) => Some(n.into()),
        SqlType::VarChar(Length::Limited(n)) | SqlType::NVarChar(Length::Limited(n)) => Some(n.into()),
        _ => None,
    }
}

/// The largest number of bytes of a binary type.
pub(super) fn binary_length(sql_type: SqlType) -> Option<usize> {
    match sql_type {
        SqlType::Binary(n) | SqlType::VarBinary(Length::Limited(n)) => Some(n.into()),
        SqlType::RowVersion => Some(8),
        _ => None,
    }
}

/// Characters of base64 for so many bytes.
pub(super) fn base64_length(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn fraction(scale: u8) -> String {
    if scale == 0 { String::new() } else { format!("\\.[0-9]{{{scale}}}") }
}

fn date_time_pattern(scale: u8) -> String {
    format!("^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}{}$", fraction(scale))
}

fn decimal_pattern(whole: u8, scale: u8) -> String {
    // A type without digits before the point still writes a zero there.
    format!("^-?[0-9]{{1,{}}}{}$", whole.max(1), fraction(scale))
}

/// The schema of a column: `type`, limits, `x-sql-type`, `x-case-insensitive`, in this order.
pub(super) fn of_type(sql_type: SqlType, nullable: bool, case_insensitive: bool) -> Map<String, Json> {
    let mut schema = Map::new();
    let types = json_types(sql_type);
    schema.insert(
        "type".into(),
        match (types, nullable) {
            ([one], false) => json!(one),
            (types, false) => json!(types),
            (types, true) => types.iter().copied().chain(["null"]).collect(),
        },
    );
    if let Some((least, greatest)) = integer_range(sql_type) {
        schema.insert("minimum".into(), json!(least));
        schema.insert("maximum".into(), json!(greatest));
    }
    if let Some((whole, scale)) = decimal_digits(sql_type) {
        schema.insert("pattern".into(), json!(decimal_pattern(whole, scale)));
    }
    if let Some(length) = text_length(sql_type) {
        schema.insert("maxLength".into(), json!(length));
    }
    match sql_type {
        SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::Image | SqlType::RowVersion => {
            schema.insert("contentEncoding".into(), json!("base64"));
            if let Some(length) = binary_length(sql_type) {
                schema.insert("maxLength".into(), json!(base64_length(length)));
            }
        }
        SqlType::UniqueIdentifier => drop(schema.insert("format".into(), json!("uuid"))),
        SqlType::Date => drop(schema.insert("format".into(), json!("date"))),
        SqlType::DateTimeOffset { .. } => drop(schema.insert("format".into(), json!("date-time"))),
        // JSON Schema's `time` and `date-time` demand an offset, which these types do not have.
        SqlType::Time { scale } => {
            schema.insert("pattern".into(), json!(format!("^[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}{}$", fraction(scale))));
        }
        SqlType::DateTime => drop(schema.insert("pattern".into(), json!(date_time_pattern(3)))),
        SqlType::SmallDateTime => drop(schema.insert("pattern".into(), json!(date_time_pattern(0)))),
        SqlType::DateTime2 { scale } => drop(schema.insert("pattern".into(), json!(date_time_pattern(scale)))),
        SqlType::Xml => drop(schema.insert("contentMediaType".into(), json!("application/xml"))),
        SqlType::Json | SqlType::Vector(_) => drop(schema.insert("contentMediaType".into(), json!("application/json"))),
        _ => {}
    }
    schema.insert("x-sql-type".into(), json!(sql_type.to_string()));
    if case_insensitive {
        schema.insert("x-case-insensitive".into(), json!(true));
    }
    schema
}

/// Keywords that say something to people and nothing to a check.
pub(super) fn is_annotation(keyword: &str) -> bool {
    keyword.starts_with("x-")
        || matches!(
            keyword,
            "title" | "description" | "default" | "examples" | "deprecated" | "readOnly" | "writeOnly" | "$comment"
        )
}
