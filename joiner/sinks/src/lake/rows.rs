//! Rows of the lake's tables and their columns: our own, and the members of the document that have a type of their own.
//!
//! # Columns
//! | column | type | |
//! |---|---|---|
//! | `_key` | string | the entity key's text |
//! | `_version` | string | the LSN's text, which sorts as the LSN does |
//! | `_committed_at` | timestamp | when the source committed it; null where that is not known |
//! | `_written_at` | timestamp | when this row was written; of rows of one key and one version, the later one counts |
//! | `_operation` | string | `load`, `upsert` or `delete`; of the table of changes alone |
//! | `_document` | string | the document as JSON; null in a `delete` |
//! | a column for each member at the document's top that is no object or list | boolean, long, double, decimal, date, timestamp, timestamp_ntz, binary, string | what `_document` says, for readers' convenience; null where it says nothing |
//!
//! The columns of members are made of the document whenever a row is written, also when it is written anew by a compaction: `_document` alone is what is read back. So a definition may gain
//! and lose members, and rows written before have null there until they are written again.
//!
//! A decimal column has 38 digits, as many as there can be, and as many of them after the point as the column at the source has: so a table stays as it is when that one gets more digits before the point.

use std::borrow::Cow;

use bytes::Bytes;
use schemas::Lsn;
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde::Deserialize;
use serde_json::Value;

/// Our own columns, which readers see before the members'. `_operation` is not in the table of current entities.
pub(super) const KEY: &str = "_key";
pub(super) const VERSION: &str = "_version";
pub(super) const COMMITTED_AT: &str = "_committed_at";
pub(super) const WRITTEN_AT: &str = "_written_at";
pub(super) const OPERATION: &str = "_operation";
pub(super) const DOCUMENT: &str = "_document";
/// The partition column of the table of changes: the day of `_committed_at`, in UTC.
pub(super) const DATE: &str = "_date";
/// What Delta's decimals have at most.
pub(super) const DECIMAL_DIGITS: u8 = 38;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Load,
    Upsert,
    Delete,
}

impl Operation {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Upsert => "upsert",
            Self::Delete => "delete",
        }
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        [Self::Load, Self::Upsert, Self::Delete].into_iter().find(|operation| operation.text().as_bytes() == text)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) key: Box<str>,
    pub(super) version: Lsn,
    /// Milliseconds since 1970; 0 where it is not known.
    pub(super) committed_ms: i64,
    /// Microseconds since 1970.
    pub(super) written_us: i64,
    pub(super) operation: Operation,
    pub(super) document: Option<Bytes>,
    /// What the document says for the columns, where it has been read already.
    pub(super) members: Option<Vec<Option<Scalar>>>,
}

impl Row {
    /// What it takes in memory, more or less: the measure of files.
    pub(super) fn bytes(&self) -> usize {
        64 + self.key.len() + self.document.as_ref().map_or(0, Bytes::len)
    }

    /// Which of two rows of one key counts.
    pub(super) fn standing(&self) -> (Lsn, i64) {
        (self.version, self.written_us)
    }
}

/// What a column of a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Long,
    Double,
    /// With so many digits after the point.
    Decimal(u8),
    Date,
    Timestamp,
    /// Date and time without a zone, which takes a later version of the protocol.
    LocalTime,
    Binary,
    Text,
}

impl Kind {
    /// In Delta's schema.
    pub(super) fn delta(self) -> Cow<'static, str> {
        let name = match self {
            Self::Decimal(scale) => return format!("decimal({DECIMAL_DIGITS},{scale})").into(),
            Self::Boolean => "boolean",
            Self::Long => "long",
            Self::Double => "double",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::LocalTime => "timestamp_ntz",
            Self::Binary => "binary",
            Self::Text => "string",
        };
        name.into()
    }

    fn of(schema: &Value) -> Option<Self> {
        let kind = match &schema["type"] {
            Value::String(kind) => kind.as_str(),
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null")?,
            _ => return None,
        };
        match (kind, schema["format"].as_str()) {
            ("boolean", _) => Some(Self::Boolean),
            ("integer", _) => Some(Self::Long),
            ("number", _) => Some(Self::Double),
            ("string", Some("date")) => Some(Self::Date),
            ("string", Some("date-time")) => Some(Self::Timestamp),
            ("string", Some("local-date-time")) => Some(Self::LocalTime),
            ("string", Some("base64")) => Some(Self::Binary),
            ("string", Some("decimal")) => Some(scale(schema).map_or(Self::Text, Self::Decimal)),
            ("string", _) => Some(Self::Text),
            _ => None,
        }
    }
}

/// The digits after the point of a decimal, where the source's type tells them: what is computed by an expression has as many as it comes to.
fn scale(schema: &Value) -> Option<u8> {
    match schema["x-sql-type"].as_str()?.parse().ok()? {
        SqlType::Decimal { scale, .. } => Some(scale),
        SqlType::Money | SqlType::SmallMoney => Some(4),
        _ => None,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// The members of an entity's documents that get columns, in their order, and the names of those that cannot have one.
pub(super) fn columns(info: &EntityInfo) -> (Vec<Column>, Vec<String>) {
    let (mut columns, mut left_out): (Vec<Column>, _) = (Vec::new(), Vec::new());
    for (name, schema) in info.document_schema["properties"].as_object().into_iter().flatten() {
        let Some(kind) = Kind::of(schema) else { continue };
        // What Parquet readers of this version of Delta cannot have in a name; and they do not tell upper from lower case.
        let unfit = name.is_empty() || name.contains([' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '=']);
        let taken = [KEY, VERSION, COMMITTED_AT, WRITTEN_AT, OPERATION, DOCUMENT, DATE].contains(&name.as_str())
            || columns.iter().any(|column| column.name.to_lowercase() == name.to_lowercase());
        if unfit || taken {
            left_out.push(name.clone());
        } else {
            columns.push(Column { name: name.clone(), kind });
        }
    }
    (columns, left_out)
}

/// A member's value, as its column takes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Boolean(bool),
    Long(i64),
    Double(f64),
    /// In units of its column's last digit.
    Decimal(i128),
    /// Days since 1970.
    Date(i32),
    /// Microseconds since 1970; without a zone, as if in UTC.
    Timestamp(i64),
    Bytes(Vec<u8>),
}

/// Makes `members` a document's, one for each column. An error says what is wrong with the first that its column cannot hold, which is null then.
///
/// The whole text is read: what is no JSON object is refused, and all of its members are null.
pub(super) fn read_members(document: &[u8], columns: &[Column], members: &mut Vec<Option<Scalar>>) -> Result<(), String> {
    members.clear();
    members.resize(columns.len(), None);
    let mut unfit = Ok(());
    // Members stand in the order of the columns, mostly.
    let mut next = 0;
    let each = |name: Cow<'_, str>, value: &str| {
        let is = |column: &Column| column.name == name;
        let at = if columns.get(next).is_some_and(is) { Some(next) } else { columns.iter().position(is) };
        let Some(at) = at else { return };
        next = at + 1;
        match scalar(value, columns[at].kind) {
            Ok(value) => members[at] = value,
            Err(reason) if unfit.is_ok() => unfit = Err(format!("its member {name}: {reason}")),
            Err(_) => {}
        }
    };
    let read = match std::str::from_utf8(document) {
        Ok(text) => schemas::parse::members(text, each).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    read.map_err(|error| {
        members.fill(None);
        format!("the document is not JSON: {error}")
    })?;
    unfit
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn scalar(json: &str, kind: Kind) -> Result<Option<Scalar>, String> {
    if json == "null" {
        return Ok(None);
    }
    let unfit = || format!("{} cannot be held by a column of type {}", shortened(json), kind.delta());
    let text = || serde_json::from_str::<Name<'_>>(json).map(|name| name.0).map_err(|_| unfit());
    let value = match kind {
        Kind::Boolean => Scalar::Boolean(json.parse().map_err(|_| unfit())?),
        Kind::Long => Scalar::Long(json.parse().map_err(|_| unfit())?),
        Kind::Double => Scalar::Double(json.parse().map_err(|_| unfit())?),
        Kind::Decimal(scale) => Scalar::Decimal(units(&text()?, scale).ok_or_else(unfit)?),
        Kind::Date => Scalar::Date(days(&text()?).ok_or_else(unfit)?),
        Kind::Timestamp => Scalar::Timestamp(text()?.parse().ok().and_then(micros).ok_or_else(unfit)?),
        Kind::LocalTime => Scalar::Timestamp(local_micros(&text()?).ok_or_else(unfit)?),
        Kind::Binary => {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text()?.as_bytes());
            Scalar::Bytes(decoded.map_err(|_| unfit())?)
        }
        Kind::Text => Scalar::Bytes(text()?.into_owned().into_bytes()),
    };
    Ok(Some(value))
}

fn shortened(json: &str) -> String {
    let mut text: String = json.chars().take(60).collect();
    if text.len() < json.len() {
        text.push('…');
    }
    text
}

/// A decimal in units of its digit at `scale` after the point; none where it has more digits than its column.
fn units(text: &str, scale: u8) -> Option<i128> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (kept, lost) = fraction.split_at_checked(usize::from(scale)).unwrap_or((fraction, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(kept) || lost.bytes().any(|byte| byte != b'0') {
        return None;
    }
    let padded = format!("{whole}{kept:0<width$}", width = usize::from(scale));
    let digits = padded.trim_start_matches('0');
    if digits.len() > usize::from(DECIMAL_DIGITS) {
        return None;
    }
    let units: i128 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    Some(if negative { -units } else { units })
}

fn days(text: &str) -> Option<i32> {
    let date: jiff::civil::Date = text.parse().ok()?;
    let since = date.since((jiff::Unit::Day, jiff::civil::date(1970, 1, 1))).ok()?;
    Some(since.get_days())
}

/// Microseconds since 1970. What the source says beyond them is dropped, before 1970 too, so that the order stays.
fn micros(at: jiff::Timestamp) -> Option<i64> {
    at.as_nanosecond().div_euclid(1000).try_into().ok()
}

/// The same of date and time without a zone, as if they were in UTC.
fn local_micros(text: &str) -> Option<i64> {
    let at: jiff::civil::DateTime = text.parse().ok()?;
    micros(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// The day of a moment in UTC, as partitions are named by it.
pub(super) fn date(committed_ms: i64) -> String {
    let at = jiff::Timestamp::from_millisecond(committed_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

/// Keys in the order in which the joiner loads them, as far as that can be told from the text: parts that are whole numbers go by their value, so that a load of current entities appends. Any
/// order would be right, as long as it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyOrder {
    numeric: Vec<bool>,
}

impl KeyOrder {
    pub(super) fn of(info: &EntityInfo) -> Self {
        let whole = |kind: &SqlType| matches!(kind, SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt);
        Self { numeric: info.key.iter().map(|(_, kind)| whole(kind)).collect() }
    }

    /// Its name: `n` for each part that goes by its value, `t` for one that goes by its text.
    pub(super) fn name(&self) -> String {
        self.numeric.iter().map(|numeric| if *numeric { 'n' } else { 't' }).collect()
    }

    /// The first and the last key in this order.
    pub(super) fn ends<'a>(&self, keys: impl Iterator<Item = &'a str>) -> (Option<&'a str>, Option<&'a str>) {
        let [mut first, mut last]: [Option<(Vec<u8>, &str)>; 2] = [None, None];
        let mut place = Vec::new();
        for key in keys {
            place.clear();
            self.place_into(key, &mut place);
            if first.as_ref().is_none_or(|(least, _)| place < *least) {
                first = Some((place.clone(), key));
            }
            if last.as_ref().is_none_or(|(greatest, _)| place > *greatest) {
                // Keys that come in order are each the last so far: the place is handed over rather than copied.
                let taken = last.take().map(|(before, _)| before).unwrap_or_default();
                last = Some((std::mem::replace(&mut place, taken), key));
            }
        }
        (first.map(|(_, key)| key), last.map(|(_, key)| key))
    }

    /// Bytes that sort as the key does. Different keys have different ones: the text itself stands at the end.
    pub(super) fn place(&self, key: &str) -> Box<[u8]> {
        let mut place = Vec::with_capacity(2 * key.len() + 16);
        self.place_into(key, &mut place);
        place.into_boxed_slice()
    }

    fn place_into(&self, key: &str, place: &mut Vec<u8>) {
        for (part, index) in key.split(',').zip(0..) {
            let number = self.numeric.get(index).is_some_and(|numeric| *numeric).then(|| part.parse::<i64>().ok()).flatten();
            match number {
                Some(number) => {
                    place.push(1);
                    place.extend((number ^ i64::MIN).to_be_bytes());
                }
                None => {
                    place.push(2);
                    place.extend(part.as_bytes());
                    // No key holds a NUL.
                    place.push(0);
                }
            }
        }
        place.push(0);
        place.extend(key.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn info() -> EntityInfo {
        let properties = json!({
            "id": {"type": "integer"}, "ok": {"type": ["boolean", "null"]}, "rate": {"type": "number"}, "day": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "date-time"}, "placed": {"type": "string", "format": "local-date-time"}, "photo": {"type": "string", "format": "base64"},
            "total": {"type": "string", "format": "decimal"}, "ID": {"type": "string"}, "a b": {"type": "string"},
            "customer": {"anyOf": [{"type": "object"}, {"type": "null"}]}, "items": {"type": "array"},
        });
        let key = vec![("id".to_owned(), SqlType::Int), ("name".to_owned(), SqlType::Int)];
        EntityInfo { name: "order".into(), key, document_schema: json!({"type": "object", "properties": properties}) }
    }

    #[test]
    fn members_become_columns_by_their_types() {
        let (columns, left_out) = columns(&info());
        assert_eq!(left_out, ["ID", "a b"]);
        let document = br#" {"id": 7, "photo": "AP8=", "total": "12.50", "items": [{"id": 8}], "ok": null, "day": "1970-01-03",
            "rate": 1e3, "at": "1970-01-01T01:00:00.0000019+01:00", "placed": "1969-12-31T23:59:59.9999991", "more": "\ud83d\ude00"} "#;
        let mut members = vec![None];
        read_members(document, &columns, &mut members).unwrap();
        let expected = vec![
            Some(Scalar::Long(7)),
            None,
            Some(Scalar::Double(1000.0)),
            Some(Scalar::Date(2)),
            Some(Scalar::Timestamp(1)),
            Some(Scalar::Timestamp(-1)),
            Some(Scalar::Bytes(vec![0, 255])),
            Some(Scalar::Bytes(b"12.50".to_vec())),
        ];
        assert_eq!(members, expected);
    }

    #[test]
    fn what_a_column_cannot_hold_is_told_and_so_is_what_is_no_json() {
        let (columns, _) = columns(&info());
        let read = |document: &str| {
            let mut members = Vec::new();
            (read_members(document.as_bytes(), &columns, &mut members).unwrap_err(), members)
        };
        let unfit = |document: &str| read(document).0;
        let reason = unfit(r#"{"id": 9223372036854775808}"#);
        assert!(reason.contains("id") && reason.contains("9223372036854775808") && reason.contains("long"), "{reason}");
        assert!(unfit(r#"{"id": "7"}"#).contains("long"));
        assert!(unfit(r#"{"day": "tomorrow"}"#).contains("date"));
        assert!(unfit(r#"{"placed": "2026-01-01T00:00:00Z"}"#).contains("timestamp_ntz"));
        assert!(matches!(read(r#"{"id": 7, "day": "tomorrow"}"#).1[..], [Some(Scalar::Long(7)), ..]), "what fits is there");
        for text in ["{\"id\": 1", "[1]", "{} {}", "{\"x\": tru}", "{\"id\": 1} x"] {
            let (reason, members) = read(text);
            assert!(reason.contains("not JSON") && members.iter().all(Option::is_none), "{text}: {reason}");
        }
    }

    #[test]
    fn decimals_are_whole_numbers_of_their_last_digit() {
        for (text, scale, expected) in [
            ("12.50", 2, Some(1250)),
            ("-0.05", 2, Some(-5)),
            ("7", 4, Some(70_000)),
            ("1.2300", 2, Some(123)),
            ("1.234", 2, None),
            ("0.00", 2, Some(0)),
            ("99999999999999999999999999999999999999", 0, Some(10i128.pow(38) - 1)),
            ("100000000000000000000000000000000000000", 0, None),
            ("9999999999999999999999999999999999999.9", 2, None),
            ("1e3", 2, None),
            ("", 2, None),
            (".5", 2, None),
            ("--1", 2, None),
        ] {
            assert_eq!(units(text, scale), expected, "{text} with {scale}");
        }
        let kind = |schema: Value| Kind::of(&schema).unwrap().delta().into_owned();
        let declared = |declared: &str| kind(json!({"type": ["string", "null"], "format": "decimal", "x-sql-type": declared}));
        assert_eq!(
            ["decimal(10,2)", "money", "decimal(38,0)"].map(declared),
            ["decimal(38,2)", "decimal(38,4)", "decimal(38,0)"]
        );
        assert_eq!(kind(json!({"type": "string", "format": "decimal"})), "string");
    }

    #[test]
    fn keys_sort_by_the_value_of_whole_numbers() {
        let order = KeyOrder::of(&info());
        let mut keys = ["10,b", "9,3", "-1,x", "9,12", "9", "abc,1", "9,b"];
        keys.sort_by_key(|key| order.place(key));
        assert_eq!(keys, ["-1,x", "9", "9,3", "9,12", "9,b", "10,b", "abc,1"]);
        for keys in [&keys[..], &["9,b", "abc,1", "-1,x", "10,b"], &["10,b", "9,3"], &["7"], &[]] {
            let mut sorted = keys.to_vec();
            sorted.sort_by_key(|key| order.place(key));
            assert_eq!(order.ends(keys.iter().copied()), (sorted.first().copied(), sorted.last().copied()));
        }
        assert_ne!(order.place("01"), order.place("1"));
    }

    #[test]
    fn days_are_in_utc() {
        assert_eq!(date(1_700_000_000_000), "2023-11-14");
        assert_eq!(date(-1), "1969-12-31");
    }
}
