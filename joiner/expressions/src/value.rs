//! Values, in and out: from the JSON fragments that rows are made of, from parsed documents, and back to JSON.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value as Json;

use crate::decimal::Decimal;
use crate::error::EvaluationError;
use crate::moment::Moment;
use crate::types::Type;

/// The members of an object, in their order.
pub(crate) type Members<'a> = Arc<[(Cow<'a, str>, Value<'a>)]>;

/// A value while an expression is evaluated.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Decimal(Decimal),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    Moment(Moment),
    List(Arc<[Value<'a>]>),
    Object(Members<'a>),
}

impl<'a> Value<'a> {
    pub(crate) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    /// Reads a JSON fragment of a type. Nothing at all is null.
    pub fn from_fragment(fragment: &'a [u8], of: &Type) -> Result<Self, EvaluationError> {
        if fragment.is_empty() || fragment == b"null" {
            return Ok(Self::Null);
        }
        let unreadable = || EvaluationError::Unreadable {
            what: of.to_string(),
            value: String::from_utf8_lossy(&fragment[..fragment.len().min(60)]).into_owned(),
        };
        let text = || std::str::from_utf8(fragment).ok();
        let scalar = match of {
            Type::Bool => match fragment {
                b"true" => Some(Self::Bool(true)),
                b"false" => Some(Self::Bool(false)),
                _ => None,
            },
            // The sum of many may be beyond 64 bits.
            Type::Int => text().and_then(|text| text.parse().map(Self::Int).or_else(|_| text.parse().map(Self::Decimal)).ok()),
            Type::Double => text().and_then(|text| text.parse().ok()).map(Self::Double),
            Type::Text | Type::Decimal | Type::Moment(_) | Type::Bytes => {
                return match quoted(fragment).ok_or_else(unreadable)? {
                    Cow::Borrowed(text) => Self::of_text(text, of),
                    Cow::Owned(text) => Value::of_text(&text, of).map(Value::into_owned),
                }
                .ok_or_else(unreadable);
            }
            Type::Any | Type::Null | Type::List(_) | Type::Object(_) => {
                let json: Json = serde_json::from_slice(fragment).map_err(|_| unreadable())?;
                return Value::from_json(&json, of).map(Value::into_owned);
            }
        };
        scalar.ok_or_else(unreadable)
    }

    fn of_text(text: &'a str, of: &Type) -> Option<Self> {
        match of {
            Type::Decimal => text.parse().ok().map(Self::Decimal),
            Type::Moment(kind) => Moment::parse(*kind, text).map(Self::Moment),
            Type::Bytes => BASE64.decode(text).ok().map(|bytes| Self::Bytes(Cow::Owned(bytes))),
            _ => Some(Self::Text(Cow::Borrowed(text))),
        }
    }

    /// Reads JSON as a type. Where nothing is known of it, whole numbers of 64 bits are whole numbers and everything else is what it is in JSON.
    pub fn from_json(json: &'a Json, of: &Type) -> Result<Self, EvaluationError> {
        let unreadable =
            || EvaluationError::Unreadable { what: of.to_string(), value: json.to_string().chars().take(60).collect() };
        let value = match (json, of) {
            (Json::Null, _) => Some(Self::Null),
            (Json::Bool(value), Type::Bool | Type::Any) => Some(Self::Bool(*value)),
            (Json::Number(number), Type::Double) => number.as_f64().map(Self::Double),
            (Json::Number(number), Type::Int | Type::Decimal | Type::Any) => match number.as_i64() {
                Some(whole) => Some(Self::Int(whole)),
                // Beyond 64 bits (unsigned, or the sum of many), but whole all the same.
                None if !number.is_f64() => number.to_string().parse().ok().map(Self::Decimal),
                None => number.as_f64().filter(|_| *of == Type::Any).map(Self::Double),
            },
            (Json::String(text), Type::Any) => Some(Self::text(text.as_str())),
            (Json::String(text), Type::Text | Type::Decimal | Type::Bytes | Type::Moment(_)) => Self::of_text(text, of),
            (Json::Array(items), Type::List(_) | Type::Any) => {
                let item = if let Type::List(item) = of { item } else { of };
                let items: Result<Vec<_>, _> = items.iter().map(|json| Self::from_json(json, item)).collect();
                Some(Self::List(items?.into()))
            }
            (Json::Object(members), Type::Object(_) | Type::Any) => {
                let member = |name: &str| match of {
                    Type::Object(types) => types.get(name).unwrap_or(&Type::Any),
                    _ => &Type::Any,
                };
                let members = members.iter().map(|(name, json)| Ok((name.as_str().into(), Self::from_json(json, member(name))?)));
                Some(Self::Object(members.collect::<Result<Vec<_>, EvaluationError>>()?.into()))
            }
            _ => None,
        };
        value.ok_or_else(unreadable)
    }

    /// The same value, of nothing but itself.
    pub fn into_owned(self) -> Value<'static> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Decimal(value) => Value::Decimal(value),
            Self::Double(value) => Value::Double(value),
            Self::Moment(value) => Value::Moment(value),
            Self::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Self::Bytes(bytes) => Value::Bytes(Cow::Owned(bytes.into_owned())),
            Self::List(items) => Value::List(items.iter().map(|item| item.clone().into_owned()).collect()),
            Self::Object(members) => Value::Object(
                members.iter().map(|(name, value)| (name.clone().into_owned().into(), value.clone().into_owned())).collect(),
            ),
        }
    }

    /// As it stands in documents: decimals are strings, bytes base64, points in time ISO 8601; a float that is no number is null.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => Json::from(*value),
            Self::Decimal(value) => Json::String(value.to_string()),
            Self::Double(value) => Json::from(*value),
            Self::Text(text) => Json::String(text.clone().into_owned()),
            Self::Bytes(bytes) => Json::String(BASE64.encode(bytes)),
            Self::Moment(moment) => Json::String(moment.to_string()),
            Self::List(items) => Json::Array(items.iter().map(Value::to_json).collect()),
            Self::Object(members) => {
                Json::Object(members.iter().map(|(name, value)| (name.clone().into_owned(), value.to_json())).collect())
            }
        }
    }

    /// Appends the same as text.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Self::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Decimal(value) => out.extend_from_slice(format!("\"{value}\"").as_bytes()),
            Self::Moment(value) => out.extend_from_slice(format!("\"{value}\"").as_bytes()),
            // Writing to a Vec cannot fail.
            other => drop(serde_json::to_writer(out, &other.to_json())),
        }
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Decimal(_) => "decimal",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Moment(_) => "date or time",
            Self::List(_) => "list",
            Self::Object(_) => "object",
        }
    }

    /// Exact, of numbers that are not floats.
    pub(crate) fn as_decimal(&self) -> Option<Decimal> {
        match self {
            Self::Int(value) => Some(Decimal::from(*value)),
            Self::Decimal(value) => Some(*value),
            _ => None,
        }
    }

    pub(crate) fn as_double(&self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(*value as f64),
            Self::Decimal(value) => Some(value.to_f64()),
            Self::Double(value) => Some(*value),
            _ => None,
        }
    }

    /// The order of two values; `None` when they cannot be compared (of different kinds, null, a float that is no number).
    ///
    /// Whole numbers and decimals are compared exactly. Where one side is a float, a whole number is compared with it exactly, and a decimal as the nearest float, as SQL Server does it: 1.1 as a float equals the
    /// decimal 1.1.
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Self::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Self::Int(a), Value::Double(b)) => int_and_double(*a, *b),
            (Self::Double(a), Value::Int(b)) => int_and_double(*b, *a).map(Ordering::reverse),
            (Self::Text(a), Value::Text(b)) => Some(a.cmp(b)),
            (Self::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Self::Moment(a), Value::Moment(b)) => a.compare(*b),
            (a, b) => match (a.as_decimal(), b.as_decimal()) {
                (Some(a), Some(b)) => Some(a.cmp(&b)),
                _ => a.as_double()?.partial_cmp(&b.as_double()?),
            },
        }
    }

    /// CEL's equality: null equals null alone, values of different kinds are not equal, numbers are by their value.
    pub fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)),
            (Self::Object(a), Value::Object(b)) => {
                let same = |(name, value): &(Cow<'_, str>, Value<'_>)| {
                    b.iter().any(|(other, theirs)| name == other && value.equals(theirs))
                };
                a.len() == b.len() && a.iter().all(same)
            }
            (a, b) => a.compare(b) == Some(Ordering::Equal),
        }
    }
}

fn int_and_double(int: i64, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    // 2^63: beyond it no whole number of 64 bits lies; within, the whole part of a float is one exactly.
    if double >= 9_223_372_036_854_775_808.0 {
        return Some(Ordering::Less);
    }
    if double < -9_223_372_036_854_775_808.0 {
        return Some(Ordering::Greater);
    }
    Some(int.cmp(&(double.trunc() as i64)).then(0.0f64.partial_cmp(&double.fract())?))
}

/// What a JSON string means; borrowed where it has no escapes.
fn quoted(fragment: &[u8]) -> Option<Cow<'_, str>> {
    let [b'"', inner @ .., b'"'] = fragment else { return None };
    if inner.contains(&b'\\') {
        return serde_json::from_slice::<String>(fragment).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}
