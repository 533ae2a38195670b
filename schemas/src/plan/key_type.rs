//! How a column is compared where it is part of a key, joins tables, or orders children.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::instant;
use crate::table::{Column, Length, SqlType};

/// Columns of one key type can be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyType {
    Bool,
    /// By number: 7 = "007".
    Int,
    /// By number, exactly: 1.5 = "1.50". Also where a whole number is compared with a decimal.
    Decimal,
    Float,
    /// By code point, without trailing blanks (SQL Server pads the shorter side of a comparison with blanks).
    Text,
    /// The same, without regard to case.
    FoldedText,
    /// In capitals, as SQL Server prints it.
    Uuid,
    /// By bytes; base64 in JSON.
    Binary,
    /// ISO 8601 text of dates and times, without the fraction's trailing zeros.
    Time,
    /// By the instant, whatever the offset: ISO 8601 text in UTC, with `Z`.
    Instant,
}

impl KeyType {
    /// `None`: SQL Server itself does not let such a column be a key or be compared.
    pub fn of(column: &Column) -> Option<Self> {
        let text = if column.case_insensitive { Self::FoldedText } else { Self::Text };
        Some(match column.sql_type {
            SqlType::Bit => Self::Bool,
            SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Self::Int,
            SqlType::Decimal { .. } | SqlType::Money | SqlType::SmallMoney => Self::Decimal,
            SqlType::Real | SqlType::Float => Self::Float,
            SqlType::Char(_) | SqlType::NChar(_) | SqlType::VarChar(_) | SqlType::NVarChar(_) => text,
            SqlType::UniqueIdentifier => Self::Uuid,
            SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::RowVersion => Self::Binary,
            // Written as its path, of which there is one way to write each.
            SqlType::HierarchyId => Self::Text,
            SqlType::Date | SqlType::Time { .. } | SqlType::DateTime | SqlType::SmallDateTime | SqlType::DateTime2 { .. } => {
                Self::Time
            }
            SqlType::DateTimeOffset { .. } => Self::Instant,
            SqlType::Text
            | SqlType::NText
            | SqlType::Image
            | SqlType::Xml
            | SqlType::SqlVariant
            | SqlType::Json
            | SqlType::Vector(_)
            | SqlType::Geometry
            | SqlType::Geography => return None,
        })
    }

    /// What two columns have in common when they are compared; `None` when they cannot be.
    pub fn in_common(a: &Column, b: &Column) -> Option<Self> {
        let max = |column: &Column| matches!(column.sql_type, SqlType::VarChar(Length::Max) | SqlType::NVarChar(Length::Max));
        if max(a) || max(b) {
            // Values of max columns may not have been recorded, so nothing can hang on them.
            return None;
        }
        match (Self::of(a)?, Self::of(b)?) {
            (Self::Int | Self::Decimal, Self::Decimal) | (Self::Decimal, Self::Int) => Some(Self::Decimal),
            (Self::Text | Self::FoldedText, Self::FoldedText) | (Self::FoldedText, Self::Text) => Some(Self::FoldedText),
            (Self::Time, Self::Time) if kind_of_time(a.sql_type) != kind_of_time(b.sql_type) => None,
            (a, b) => (a == b).then_some(a),
        }
    }

    /// The one text that stands for a value, from any text that means it; `None` when it is not such a value.
    pub fn normalize(self, text: &str) -> Option<String> {
        match self {
            Self::Bool => match text {
                "true" | "1" => Some("true".to_owned()),
                "false" | "0" => Some("false".to_owned()),
                _ => None,
            },
            Self::Int => text.parse::<i64>().ok().map(|number| number.to_string()),
            Self::Decimal => normalize_decimal(text),
            Self::Float => text.parse::<f64>().ok().filter(|number| number.is_finite()).map(float_text),
            Self::Text => Some(text.trim_end_matches(' ').to_owned()),
            Self::FoldedText => Some(fold(text)),
            Self::Uuid => Some(text.to_ascii_uppercase()),
            Self::Binary => BASE64.decode(text).ok().map(|bytes| BASE64.encode(bytes)),
            Self::Time => Some(match text.split_once('.') {
                Some((whole, fraction)) if fraction.bytes().all(|byte| byte.is_ascii_digit()) => {
                    let fraction = fraction.trim_end_matches('0');
                    if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
                }
                _ => text.to_owned(),
            }),
            Self::Instant => instant::utc(text),
        }
    }
}

/// Text as it is compared without regard to case and trailing blanks.
fn fold(text: &str) -> String {
    let text = text.trim_end_matches(' ');
    if text.is_ascii() {
        text.to_ascii_lowercase()
    } else {
        text.chars().flat_map(|c| c.to_uppercase()).flat_map(char::to_lowercase).collect()
    }
}

/// The shortest text that reads back to the same number; zero has no sign.
fn float_text(number: f64) -> String {
    let number = if number == 0.0 { 0.0 } else { number };
    serde_json::Number::from_f64(number).map_or_else(String::new, |number| number.to_string())
}

fn normalize_decimal(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(match (whole, fraction) {
        ("0", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    })
}

fn kind_of_time(sql_type: SqlType) -> u8 {
    match sql_type {
        SqlType::Date => 0,
        SqlType::Time { .. } => 1,
        _ => 2,
    }
}
