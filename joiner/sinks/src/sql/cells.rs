//! A document's values for the columns that they are promoted to.
//!
//! Values are read from the document's text, held to their column's type here, and only then sent: so a value that its column does not take makes its one change a dead letter, with the column in the reason, whatever the
//! database would have said to the whole batch. Null and what is missing, also below a reference that is null, is NULL.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::kind::{Dialect, Kind, MYSQL_DECIMAL};
use super::moment;

/// A value as it is sent. PostgreSQL gets dates as days since 1970, times as microseconds; the others get texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'d> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'d, str>),
    Bytes(Vec<u8>),
}

/// The JSON text at a column's path, as its cell; an error says what is wrong with it.
pub(crate) fn cell<'d>(kind: Kind, dialect: Dialect, raw: Option<&'d str>) -> Result<Cell<'d>, String> {
    let Some(raw) = raw.filter(|raw| *raw != "null") else { return Ok(Cell::Null) };
    let unfit = || {
        let shown: String = raw.chars().take(60).collect();
        let more = if shown.len() < raw.len() { "…" } else { "" };
        format!("{shown}{more} is no value of {}", kind.type_name(dialect))
    };
    match kind {
        Kind::Bool => raw.parse().map(Cell::Bool).ok(),
        Kind::Small => raw.parse::<i16>().map(|number| Cell::Int(number.into())).ok(),
        Kind::Int => raw.parse::<i32>().map(|number| Cell::Int(number.into())).ok(),
        Kind::Big => raw.parse().map(Cell::Int).ok(),
        Kind::Real => raw.parse::<f32>().ok().filter(|number| number.is_finite()).and_then(|_| number(raw)),
        Kind::Double => number(raw),
        Kind::Decimal(digits) => decimal(raw, digits, dialect),
        Kind::Json => Some(Cell::Text(Cow::Borrowed(raw))),
        Kind::Bytes(_) => string(raw).and_then(|text| STANDARD.decode(text.as_bytes()).ok()).map(Cell::Bytes),
        Kind::Text(limit) => string(raw).filter(|text| fits(text, limit, dialect)).map(Cell::Text),
        Kind::Uuid | Kind::Date | Kind::Time | Kind::Timestamp | Kind::Instant => {
            string(raw).and_then(|text| read(kind, dialect, text))
        }
    }
    .ok_or_else(unfit)
}

fn number<'d>(raw: &str) -> Option<Cell<'d>> {
    raw.parse::<f64>().ok().filter(|number| number.is_finite()).map(Cell::Double)
}

/// The characters of a JSON string.
fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(raw).map(Cow::Owned).ok() } else { Some(Cow::Borrowed(inner)) }
}

fn fits(text: &str, limit: Option<u16>, dialect: Dialect) -> bool {
    match dialect {
        Dialect::Postgres => !text.contains('\0'),
        Dialect::Mysql => limit.is_none_or(|limit| text.chars().count() <= usize::from(limit)),
        Dialect::Sqlite => true,
    }
}

/// Decimals are strings in documents, with all digits of their scale.
fn decimal<'d>(raw: &'d str, digits: Option<(u8, u8)>, dialect: Dialect) -> Option<Cell<'d>> {
    let text = string(raw).unwrap_or(Cow::Borrowed(raw));
    if !super::is_decimal(&text) {
        return None;
    }
    let digits = match dialect {
        Dialect::Sqlite => return number(&text),
        Dialect::Mysql => digits.or(Some(MYSQL_DECIMAL)),
        Dialect::Postgres => digits,
    };
    if let Some((precision, scale)) = digits {
        let magnitude = text.trim_start_matches('-');
        let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
        let whole = whole.trim_start_matches('0');
        if whole.len() > usize::from(precision.saturating_sub(scale)) || fraction.trim_end_matches('0').len() > scale.into() {
            return None;
        }
    }
    Some(Cell::Text(text))
}

fn read<'d>(kind: Kind, dialect: Dialect, text: Cow<'d, str>) -> Option<Cell<'d>> {
    if dialect == Dialect::Postgres {
        return Some(match kind {
            Kind::Uuid => Cell::Bytes(uuid(&text)?.to_vec()),
            Kind::Date => Cell::Int(moment::days(&text)?.into()),
            Kind::Time => Cell::Int(moment::micros_of_day(&text)?),
            Kind::Timestamp => Cell::Int(moment::timestamp(&text)?),
            _ => Cell::Int(moment::instant(&text)?),
        });
    }
    let sqlite = dialect == Dialect::Sqlite;
    Some(Cell::Text(match kind {
        Kind::Uuid => {
            uuid(&text)?;
            text
        }
        Kind::Instant if sqlite => format!("{}Z", moment::timestamp_text(moment::instant(&text)?, 'T')?).into(),
        Kind::Instant => moment::timestamp_text(moment::instant(&text)?, ' ')?.into(),
        Kind::Date => {
            moment::days(&text)?;
            text
        }
        Kind::Time if sqlite => {
            moment::micros_of_day(&text)?;
            text
        }
        Kind::Time => moment::time_text(moment::micros_of_day(&text)?).into(),
        _ if sqlite => {
            moment::timestamp(&text)?;
            text
        }
        _ => moment::timestamp_text(moment::timestamp(&text)?, ' ')?.into(),
    }))
}

/// The sixteen bytes of `8-4-4-4-12` hexadecimal digits.
pub(crate) fn uuid(text: &str) -> Option<[u8; 16]> {
    let dashed = text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-');
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    (dashed && hex.len() == 32).then(|| u128::from_str_radix(&hex, 16).ok().map(u128::to_be_bytes))?
}

/// The members that are looked for, as a tree of names.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Members {
    below: Vec<(String, Members)>,
    /// What is found here goes to these places.
    places: Vec<usize>,
}

impl Members {
    pub(crate) fn add<'p>(&mut self, mut path: impl Iterator<Item = &'p str>, place: usize) {
        let Some(name) = path.next() else {
            self.places.push(place);
            return;
        };
        let at = self.below.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.below.push((name.to_owned(), Self::default()));
            self.below.len() - 1
        });
        self.below[at].1.add(path, place);
    }

    /// Puts the JSON text of each member into its places.
    pub(crate) fn find<'d>(&self, text: &'d str, found: &mut [Option<&'d str>]) -> Result<(), serde_json::Error> {
        for place in &self.places {
            found[*place] = Some(text);
        }
        if self.below.is_empty() || !text.starts_with('{') {
            return Ok(());
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        reader.deserialize_map(Finder { members: self, found })?;
        reader.end()
    }
}

struct Finder<'m, 'f, 'd> {
    members: &'m Members,
    found: &'f mut [Option<&'d str>],
}

impl<'d> Visitor<'d> for Finder<'_, '_, 'd> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(member) = map.next_key_seed(Name(self.members))? {
            let Some(member) = member else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value: &'d RawValue = map.next_value()?;
            member.find(value.get(), self.found).map_err(serde::de::Error::custom)?;
        }
        Ok(())
    }
}

/// Looks a member's name up.
struct Name<'m>(&'m Members);

impl<'d, 'm> DeserializeSeed<'d> for Name<'m> {
    type Value = Option<&'m Members>;

    fn deserialize<D: Deserializer<'d>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'m> Visitor<'_> for Name<'m> {
    type Value = Option<&'m Members>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.below.iter().find(|(known, _)| known == name).map(|(_, below)| below))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn members_are_found_at_any_depth() {
        let mut members = Members::default();
        for (place, path) in ["a", "b.c", "b", "d.e", "x.y"].iter().enumerate() {
            members.add(path.split('.'), place);
        }
        let mut found = [None; 5];
        members.find(r#"{"z": [1, {"a": 2}], "b": {"c": "x\"y"}, "a": -1.5, "d": null}"#, &mut found).unwrap();
        assert_eq!(found, [Some("-1.5"), Some(r#""x\"y""#), Some(r#"{"c": "x\"y"}"#), None, None]);
        assert!(members.find(r#"{"a": 1"#, &mut [None; 5]).is_err());
        assert!(members.find(r#"{"a": 1} x"#, &mut [None; 5]).is_err());
        assert!(members.find(r#"{"b": {"c": tru}}"#, &mut [None; 5]).is_err());
    }

    #[test]
    fn values_are_held_to_their_columns() {
        let text = |text: &'static str| Ok(Cell::Text(Cow::Borrowed(text)));
        let all = [Dialect::Postgres, Dialect::Mysql, Dialect::Sqlite];
        for dialect in all {
            for raw in [None, Some("null")] {
                assert_eq!(cell(Kind::Int, dialect, raw), Ok(Cell::Null));
            }
            assert_eq!(cell(Kind::Bool, dialect, Some("true")), Ok(Cell::Bool(true)));
            assert_eq!(cell(Kind::Text(None), dialect, Some(r#""a\nb""#)), text("a\nb"));
            assert_eq!(cell(Kind::Bytes(None), dialect, Some("\"AP8=\"")), Ok(Cell::Bytes(vec![0, 255])));
            for (kind, raw) in [
                (Kind::Int, "2147483648"),
                (Kind::Small, "40000"),
                (Kind::Big, "1.5"),
                (Kind::Real, "1e39"),
                (Kind::Double, "\"x\""),
                (Kind::Decimal(None), "\"1e3\""),
                (Kind::Date, "\"2024-02-30\""),
                (Kind::Timestamp, "\"2024-02-03\""),
                (Kind::Uuid, "\"6f9619ff-8b86-d011-b42d-00cf4fc964f\""),
                (Kind::Bytes(None), "\"?\""),
                (Kind::Text(None), "5"),
                (Kind::Bool, "1"),
            ] {
                let reason = cell(kind, dialect, Some(raw)).unwrap_err();
                assert!(reason.starts_with(raw) && reason.contains("no value of"), "{dialect:?} {reason}");
            }
        }
        let digits = Kind::Decimal(Some((5, 2)));
        for dialect in [Dialect::Postgres, Dialect::Mysql] {
            assert_eq!(cell(digits, dialect, Some("\"-123.40\"")), text("-123.40"));
            assert_eq!(cell(digits, dialect, Some("\"0.500\"")), text("0.500"));
            assert!(cell(digits, dialect, Some("\"1234.50\"")).unwrap_err().contains("(5,2)"));
            assert!(cell(digits, dialect, Some("\"1.234\"")).is_err());
        }
        assert_eq!(cell(digits, Dialect::Sqlite, Some("\"-123.40\"")), Ok(Cell::Double(-123.4)));
        assert!(cell(Kind::Text(None), Dialect::Postgres, Some(r#""a\u0000""#)).is_err());
        assert!(cell(Kind::Text(Some(2)), Dialect::Mysql, Some("\"ééé\"")).is_err());
        assert_eq!(cell(Kind::Text(Some(2)), Dialect::Postgres, Some("\"ééé\"")), text("ééé"));
        let at = Some("\"2024-05-01T09:30:00.1234567+02:00\"");
        assert_eq!(cell(Kind::Instant, Dialect::Mysql, at), text("2024-05-01 07:30:00.123456"));
        assert_eq!(cell(Kind::Instant, Dialect::Sqlite, at), text("2024-05-01T07:30:00.123456Z"));
        assert_eq!(cell(Kind::Timestamp, Dialect::Postgres, Some("\"1970-01-01T00:00:00.0000019\"")), Ok(Cell::Int(1)));
        let first = Some("\"0001-01-01T00:00:00+14:00\"");
        assert!(cell(Kind::Instant, Dialect::Mysql, first).is_err());
    }
}
