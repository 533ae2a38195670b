//! From JSON of any shape to a value of a column's type: nothing is guessed, and nothing is lost but what the table below says.
//!
//! | column | JSON |
//! |---|---|
//! | bit | `true`, `false`, 1, 0 |
//! | tinyint … bigint | a whole number, or a string with one (which is how 64 bits travel to JavaScript and back) |
//! | real, float | a number |
//! | decimal, numeric, money | a number, or a string with one, with no more digits after the point than the column has. JSON numbers are read as doubles, as RFC 8259 expects: one that is not whole, or is beyond 64 bits, and has more than 15 digits is refused, and has to be a string |
//! | char … ntext, xml, hierarchyid, geometry, geography | a string |
//! | json, vector | a string as it is; anything else as JSON text |
//! | binary … image | a string, base64 |
//! | uniqueidentifier | a string, with or without hyphens, in either case |
//! | date, time | a string, ISO 8601 |
//! | datetime, datetime2, smalldatetime | a string, ISO 8601; one with an offset (`Z`, `+02:00`) is converted to UTC |
//! | datetimeoffset | a string, ISO 8601 with an offset |
//!
//! Of a time, digits beyond those that the column keeps are cut off. `null` is NULL; whether it may be is the contract's to say. What is written to the streams ([`Value::write_json`]) reads back as the same value.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;
use schemas::table::SqlType;
use schemas::value::Value;
use serde_json::{Number, Value as Json};

/// A double holds every decimal number of so many digits.
const EXACT_DIGITS: usize = 15;

/// What a column of this type makes of a JSON value; an error says what was expected.
pub(super) fn read(json: &Json, sql_type: SqlType) -> Result<Value, &'static str> {
    use SqlType::*;
    if json.is_null() {
        return Ok(Value::Null);
    }
    match sql_type {
        Bit => bit(json).ok_or("expected true or false"),
        TinyInt | SmallInt | Int | BigInt => integer(json).map(Value::Int).ok_or("expected a whole number of 64 bits"),
        // A double that is too large for a real is infinite, which no JSON holds.
        Real => json
            .as_f64()
            .map(|number| number as f32)
            .filter(|number| number.is_finite())
            .map(Value::Real)
            .ok_or("expected a number"),
        Float => json.as_f64().map(Value::Float).ok_or("expected a number"),
        Decimal { scale, .. } => decimal(json, scale),
        Money | SmallMoney => decimal(json, 4),
        Char(_) | VarChar(_) | NChar(_) | NVarChar(_) | Text | NText | Xml | HierarchyId | Geometry | Geography => {
            json.as_str().map(|text| Value::Text(text.to_owned())).ok_or("expected a string")
        }
        Json | Vector(_) => Ok(Value::Text(json.as_str().map_or_else(|| json.to_string(), str::to_owned))),
        Binary(_) | VarBinary(_) | Image | RowVersion => {
            let bytes = json.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
            bytes.map(Value::Bytes).ok_or("expected a string in base64")
        }
        UniqueIdentifier => json.as_str().and_then(uuid).map(Value::Uuid).ok_or("expected a UUID in a string"),
        SqlType::Date => date(json).ok_or("expected a date in a string, such as \"2026-01-31\""),
        SqlType::Time { scale } => time(json, scale).ok_or("expected a time of day in a string, such as \"12:30:00.5\""),
        SqlType::DateTime => moment(json, 3),
        SmallDateTime => moment(json, 0),
        DateTime2 { scale } => moment(json, scale),
        DateTimeOffset { scale } => {
            with_offset(json, scale).ok_or("expected a moment with its offset in a string, such as \"2026-01-31T12:30:00+01:00\"")
        }
        SqlVariant => Err("sql_variant cannot be mapped: give the column a type"),
    }
}

fn bit(json: &Json) -> Option<Value> {
    let flag = json.as_bool().or_else(|| json.as_u64().filter(|number| *number < 2).map(|number| number == 1));
    flag.map(Value::Bool)
}

fn integer(json: &Json) -> Option<i64> {
    match json {
        Json::Number(number) => number.as_i64().or_else(|| {
            // 5.0, as some languages write a whole number.
            let number = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 9e15)?;
            Some(number as i64)
        }),
        Json::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn decimal(json: &Json, scale: u8) -> Result<Value, &'static str> {
    let read = |text: &str| mantissa(text, scale).map(|mantissa| Value::Decimal { mantissa, scale });
    let expected = "expected a number, or a string with one, that fits the column's digits";
    match json {
        Json::Number(number) if is_exact(number) => read(&number.to_string()).ok_or(expected),
        Json::Number(_) => Err("a number of more than 15 digits is not exact in JSON: it has to be a string"),
        Json::String(text) => read(text).ok_or(expected),
        _ => Err(expected),
    }
}

/// Whether the text that a number was read from had the same value.
fn is_exact(number: &Number) -> bool {
    let text = number.to_string();
    let digits = text.split(['e', 'E']).next().unwrap_or_default().bytes().filter(u8::is_ascii_digit);
    let small = number.as_f64().is_some_and(|number| number.abs() < 1e15);
    number.is_i64() || number.is_u64() || small && digits.skip_while(|digit| *digit == b'0').count() <= EXACT_DIGITS
}

/// `12.5`, `-1e3`: times 10^scale. None where it is no number, or has digits beyond the scale, or more than there is room for.
fn mantissa(text: &str, scale: u8) -> Option<i128> {
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut number: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        let digit = char::from(digit).to_digit(10)?;
        number = number.checked_mul(10)?.checked_add(i128::from(digit))?;
    }
    let shift = i32::from(scale).checked_add(exponent)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let number = if shift < 0 { shifted_down(number, shift)? } else { shifted_up(number, shift)? };
    Some(if negative { -number } else { number })
}

/// Takes zeros off the end; none where there are not as many.
fn shifted_down(number: i128, shift: i32) -> Option<i128> {
    if number == 0 {
        return Some(0);
    }
    let unit = 10i128.checked_pow(shift.unsigned_abs())?;
    (number % unit == 0).then(|| number / unit)
}

fn shifted_up(number: i128, shift: i32) -> Option<i128> {
    if number == 0 {
        return Some(0);
    }
    number.checked_mul(10i128.checked_pow(shift.unsigned_abs())?)
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let right = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    right.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

/// Days since 0001-01-01; none before that.
fn days(date: Date) -> Option<u32> {
    let (year, month, day) = (u32::try_from(date.year()).ok().filter(|year| *year > 0)?, date.month() as u32, date.day() as u32);
    // Howard Hinnant's `days_from_civil`; its day 0 is 0000-03-01, 306 days before 0001-01-01.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let of_era = (year % 400) * 365 + (year % 400) / 4 - (year % 400) / 100 + of_year;
    (year / 400 * 146_097 + of_era).checked_sub(306)
}

/// Ticks of 100 nanoseconds since midnight, without the digits beyond the scale.
fn ticks(time: Time, scale: u8) -> u64 {
    let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    let ticks = seconds.unsigned_abs() * 10_000_000 + u64::from(time.subsec_nanosecond().unsigned_abs()) / 100;
    let unit = 10u64.pow(7u32.saturating_sub(u32::from(scale)));
    ticks / unit * unit
}

fn date(json: &Json) -> Option<Value> {
    let pieces = Pieces::parse(json.as_str()?).ok()?;
    // A moment is no date: which date it is depends on where.
    if pieces.time().is_some() { None } else { days(pieces.date()).map(Value::Date) }
}

fn time(json: &Json, scale: u8) -> Option<Value> {
    let time: Time = json.as_str()?.parse().ok()?;
    Some(Value::Time { ticks: ticks(time, scale), scale })
}

fn moment(json: &Json, scale: u8) -> Result<Value, &'static str> {
    let read = || {
        let pieces = Pieces::parse(json.as_str()?).ok()?;
        let local = DateTime::from_parts(pieces.date(), pieces.time()?);
        let utc = match pieces.to_numeric_offset() {
            None => local,
            Some(offset) => Offset::UTC.to_datetime(offset.to_timestamp(local).ok()?),
        };
        Some(Value::DateTime { days: days(utc.date())?, ticks: ticks(utc.time(), scale), scale })
    };
    read().ok_or("expected a date with a time in a string, such as \"2026-01-31T12:30:00Z\"")
}

fn with_offset(json: &Json, scale: u8) -> Option<Value> {
    let pieces = Pieces::parse(json.as_str()?).ok()?;
    let seconds = pieces.to_numeric_offset()?.seconds();
    let offset_minutes = i16::try_from(seconds / 60).ok().filter(|minutes| seconds % 60 == 0 && minutes.abs() <= 14 * 60)?;
    Some(Value::DateTimeOffset { days: days(pieces.date())?, ticks: ticks(pieces.time()?, scale), scale, offset_minutes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What is written of the value that is read; none where it is refused.
    fn written(json: &Json, sql_type: &str) -> Option<Json> {
        read(json, sql_type.parse().unwrap()).ok().map(|value| value.to_json())
    }

    #[test]
    fn every_type_takes_what_is_documented_and_nothing_else() {
        for (sql_type, json, expected) in [
            ("bit", json!(1), Some(json!(true))),
            ("bit", json!("true"), None),
            ("int", json!(5.0), Some(json!(5))),
            ("int", json!(5.5), None),
            ("int", json!("-7"), Some(json!(-7))),
            ("bigint", json!("9223372036854775807"), Some(json!(i64::MAX))),
            ("bigint", json!(u64::MAX), None),
            ("float", json!(1e300), Some(json!(1e300))),
            ("real", json!(1e300), None),
            ("decimal(10,2)", json!(12.5), Some(json!("12.50"))),
            ("decimal(10,2)", json!(12), Some(json!("12.00"))),
            ("decimal(10,2)", json!("-0.5"), Some(json!("-0.50"))),
            ("decimal(10,2)", json!("1.2e1"), Some(json!("12.00"))),
            ("decimal(10,2)", json!("12.500"), Some(json!("12.50"))),
            ("decimal(10,2)", json!("12.505"), None),
            ("decimal(10,2)", json!("."), None),
            ("decimal(10,2)", json!("1,5"), None),
            ("decimal(10,2)", json!("1e99999999999"), None),
            ("decimal(10,2)", json!("0e99"), Some(json!("0.00"))),
            (
                "decimal(38,0)",
                json!("12345678901234567890123456789012345678"),
                Some(json!("12345678901234567890123456789012345678")),
            ),
            ("decimal(38,20)", json!(0.12345678901234568), None),
            ("money", json!("1.2345"), Some(json!("1.2345"))),
            ("nvarchar(5)", json!("ü"), Some(json!("ü"))),
            ("nvarchar(5)", json!(5), None),
            ("json", json!({"a": [1]}), Some(json!("{\"a\":[1]}"))),
            ("varbinary(4)", json!("AP8B"), Some(json!("AP8B"))),
            ("varbinary(4)", json!("?"), None),
            (
                "uniqueidentifier",
                json!("6f9619ff-8b86-d011-b42d-00c04fc964ff"),
                Some(json!("6F9619FF-8B86-D011-B42D-00C04FC964FF")),
            ),
            ("uniqueidentifier", json!("6f9619ff"), None),
            ("date", json!("2024-02-29"), Some(json!("2024-02-29"))),
            ("date", json!("0001-01-01"), Some(json!("0001-01-01"))),
            ("date", json!("9999-12-31"), Some(json!("9999-12-31"))),
            ("date", json!("2024-02-29T10:00:00Z"), None),
            ("date", json!("2023-02-29"), None),
            ("time(3)", json!("12:30:00.12345"), Some(json!("12:30:00.123"))),
            ("datetime2(3)", json!("2024-02-29T23:30:00.1239+01:00"), Some(json!("2024-02-29T22:30:00.123"))),
            ("datetime2(0)", json!("2024-02-29 23:30:00"), Some(json!("2024-02-29T23:30:00"))),
            ("datetime2(7)", json!("2024-12-31T23:30:00.123456789-01:00"), Some(json!("2025-01-01T00:30:00.1234567"))),
            ("datetime", json!("2024-02-29T23:30:00Z"), Some(json!("2024-02-29T23:30:00.000"))),
            ("datetime", json!("2024-02-29"), None),
            ("datetime", json!(1_700_000_000), None),
            ("datetimeoffset(0)", json!("2024-02-29T23:30:00+01:00"), Some(json!("2024-02-29T23:30:00+01:00"))),
            ("datetimeoffset(0)", json!("2024-02-29T23:30:00"), None),
            ("sql_variant", json!(1), None),
            ("int", Json::Null, Some(Json::Null)),
        ] {
            assert_eq!(written(&json, sql_type), expected, "{sql_type} {json}");
        }
    }

    const TYPES: [&str; 20] = [
        "bit",
        "tinyint",
        "bigint",
        "real",
        "float",
        "decimal(38,10)",
        "money",
        "nvarchar(max)",
        "json",
        "vector(3)",
        "varbinary(max)",
        "uniqueidentifier",
        "date",
        "time(7)",
        "datetime",
        "smalldatetime",
        "datetime2(7)",
        "datetimeoffset(3)",
        "xml",
        "sql_variant",
    ];

    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![
            ".{0,40}",
            "-?[0-9]{1,25}(\\.[0-9]{0,12})?(e-?[0-9]{1,3})?",
            "[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-9:.]{2,15}(Z|[+-][0-9:]{2,5})?)?"
        ]
    }

    fn leaves() -> impl Strategy<Value = Json> {
        prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            texts().prop_map(Json::from),
        ]
    }

    proptest! {
        /// No value panics, and what a value is written as reads back as it: the row that is kept of a key is the row that was published.
        #[test]
        fn what_is_written_reads_back(json in leaves(), sql_type in prop::sample::select(&TYPES[..])) {
            let sql_type: SqlType = sql_type.parse().unwrap();
            if let Ok(value) = read(&json, sql_type) {
                prop_assert_eq!(read(&value.to_json(), sql_type), Ok(value));
            }
        }

        #[test]
        fn decimals_are_exact(mantissa in -10i64.pow(15)..10i64.pow(15), scale in 0u8..=10) {
            let value = Value::Decimal { mantissa: mantissa.into(), scale };
            let text = value.to_json();
            let sql_type = SqlType::Decimal { precision: 38, scale };
            prop_assert_eq!(read(&text, sql_type), Ok(value.clone()));
            let number: Json = serde_json::from_str(text.as_str().unwrap()).unwrap();
            prop_assert_eq!(read(&number, sql_type), Ok(value));
        }

        #[test]
        fn days_count_days(after in 0i64..3_652_058) {
            let first = jiff::civil::date(1, 1, 1);
            let date = first.checked_add(jiff::Span::new().days(after)).unwrap();
            prop_assert_eq!(days(date), u32::try_from(after).ok());
        }
    }
}
