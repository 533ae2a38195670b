//! An entity change as an item, and how large that is.

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ScalarAttributeType};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemas::change::EntityChange;
use serde::Deserialize;
use serde_json::Value;

use super::DynamodbConfig;
use super::keys::{Indexed, Shapes};

/// DynamoDB's limit: names and values together.
const ITEM_LIMIT_BYTES: usize = 400 * 1024;
/// DynamoDB's limits of a table's keys.
pub(super) const KEY_LIMIT_BYTES: usize = 2048;
pub(super) const SORT_KEY_LIMIT_BYTES: usize = 1024;
/// DynamoDB's limit on maps and lists inside each other.
const DEPTH_LIMIT: usize = 32;
/// What DynamoDB's numbers hold.
const DIGITS_LIMIT: usize = 38;
const EXPONENT_LIMITS: std::ops::RangeInclusive<i64> = -130..=125;

/// How the document is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentForm {
    /// A map, for expressions and indexes on its members.
    #[default]
    Map,
    /// JSON text.
    Json,
}

/// How the source's decimals, which are strings in the document, are kept in a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecimalForm {
    /// S, with all their digits: `12.50`.
    #[default]
    String,
    /// N, which compares by value and drops zeros at the end: `12.5`.
    Number,
}

pub(super) type Item = HashMap<String, AttributeValue>;

/// Why there is no item for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It takes so many bytes.
    Large(usize),
    Wrong(String),
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Large(bytes) => write!(f, "the item takes {bytes} bytes, more than DynamoDB's {ITEM_LIMIT_BYTES}"),
            Self::Wrong(reason) => f.write_str(reason),
        }
    }
}

impl From<String> for Unfit {
    fn from(reason: String) -> Self {
        Self::Wrong(reason)
    }
}

/// The schema of an object's member, also where the object may be null.
pub(super) fn member<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    alternatives(schema).find_map(|schema| schema["properties"].get(name))
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    std::iter::once(schema).chain(schema["anyOf"].as_array().into_iter().flatten())
}

/// The type that values have which are not null.
pub(super) fn type_of(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::String(kind) => Some(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        _ => None,
    }
}

/// The item; `pointer` says where the document is, where it is not in the item.
pub(super) fn from_change(
    change: &EntityChange,
    config: &DynamodbConfig,
    shapes: &Shapes,
    expires_at: u64,
    pointer: Option<&str>,
) -> Result<Item, Unfit> {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let mut item = keys(change, config, shapes);
    for (attribute, limit) in
        [(Some(&config.key_attribute), KEY_LIMIT_BYTES), (config.sort_key_attribute.as_ref(), SORT_KEY_LIMIT_BYTES)]
    {
        let bytes = attribute.and_then(|name| item.get(name)?.as_s().ok()).map_or(0, String::len);
        if bytes > limit {
            let whole = change.key.as_str().len();
            return Err(Unfit::Wrong(format!(
                "the entity key is {whole} bytes long: {bytes} of the {limit} bytes that DynamoDB takes in {}",
                attribute.map_or("", String::as_str)
            )));
        }
    }
    item.extend([
        ("entity".to_owned(), text(&change.entity)),
        ("key".to_owned(), text(change.key.as_str())),
        ("version".to_owned(), AttributeValue::S(change.version.to_string())),
        ("commit_time_ms".to_owned(), AttributeValue::N(change.commit_time_ms.to_string())),
    ]);
    match change.document.as_deref() {
        Some(document) => {
            let json: Option<Value> = match (config.document, shapes.indexed.is_empty(), pointer) {
                (DocumentForm::Json, true, _) | (_, true, Some(_)) => None,
                _ => Some(serde_json::from_str(document).map_err(|error| format!("the document is not JSON: {error}"))?),
            };
            for indexed in &shapes.indexed {
                let value = json.as_ref().and_then(|json| indexed.path.split('.').try_fold(json, |value, name| value.get(name)));
                if let Some(value) = value.map(|value| index_value(indexed, value)).transpose()?.flatten() {
                    item.insert(indexed.path.clone(), value);
                }
            }
            match (pointer, config.document, json) {
                (Some(pointer), ..) => drop(item.insert("document_at".to_owned(), text(pointer))),
                (None, DocumentForm::Map, Some(json)) => {
                    let schema = shapes.get(&change.entity).map(|shape| &shape.schema);
                    item.insert("document".to_owned(), from_json(json, schema, config.decimals, 1)?);
                }
                _ => drop(item.insert("document".to_owned(), text(document))),
            }
        }
        None => {
            item.insert("deleted".to_owned(), AttributeValue::Bool(true));
            item.insert("expires_at".to_owned(), AttributeValue::N(expires_at.to_string()));
        }
    }
    let size: usize = item.iter().map(|(name, value)| name.len() + size(value)).sum();
    if size > ITEM_LIMIT_BYTES { Err(Unfit::Large(size)) } else { Ok(item) }
}

/// The attributes of the table's key.
pub(super) fn keys(change: &EntityChange, config: &DynamodbConfig, shapes: &Shapes) -> Item {
    match &config.sort_key_attribute {
        None => {
            let whole = AttributeValue::S(format!("{}#{}", change.entity, change.key));
            Item::from([(config.key_attribute.clone(), whole)])
        }
        Some(sort) => {
            let (partition, rest) = shapes.parted(change);
            Item::from([(config.key_attribute.clone(), AttributeValue::S(partition)), (sort.clone(), AttributeValue::S(rest))])
        }
    }
}

/// What an index is over; nothing where the member is null or, which an index does not take, empty.
fn index_value(indexed: &Indexed, value: &Value) -> Result<Option<AttributeValue>, Unfit> {
    let wrong = || Unfit::Wrong(format!("{} cannot be in an index as {}: {value}", indexed.path, indexed.kind));
    let (attribute, bytes) = match (&indexed.kind, value) {
        (_, Value::Null) => return Ok(None),
        (_, Value::String(text)) if text.is_empty() => return Ok(None),
        (ScalarAttributeType::S, Value::String(text)) => (AttributeValue::S(text.clone()), text.len()),
        (ScalarAttributeType::N, Value::Number(number)) => (AttributeValue::N(fitting(&number.to_string())?), 0),
        (ScalarAttributeType::N, Value::String(decimal)) => (AttributeValue::N(fitting(decimal)?), 0),
        (ScalarAttributeType::B, Value::String(encoded)) => {
            let bytes = STANDARD.decode(encoded).map_err(|_| wrong())?;
            let length = bytes.len();
            (AttributeValue::B(Blob::new(bytes)), length)
        }
        _ => return Err(wrong()),
    };
    if bytes > indexed.limit_bytes {
        return Err(Unfit::Wrong(format!(
            "{} takes {bytes} bytes, more than the {} of an index",
            indexed.path, indexed.limit_bytes
        )));
    }
    Ok(Some(attribute))
}

/// The number, if DynamoDB can hold it exactly.
fn fitting(number: &str) -> Result<String, Unfit> {
    let wrong = |why: &str| Unfit::Wrong(format!("the number {number} {why}"));
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i64 = exponent.parse().map_err(|_| wrong("is none"))?;
    let unsigned = mantissa.trim_start_matches(['-', '+']);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(wrong("is none"));
    }
    let significant = digits.trim_start_matches('0');
    // Of the first digit that counts: its place before or behind the point.
    let magnitude = whole.len() as i64 - 1 - (digits.len() - significant.len()) as i64 + exponent;
    if significant.is_empty() {
        return Ok(number.to_owned());
    }
    if significant.trim_end_matches('0').len() > DIGITS_LIMIT {
        return Err(wrong("has more than the 38 digits that DynamoDB keeps"));
    }
    if !EXPONENT_LIMITS.contains(&magnitude) {
        return Err(wrong("is outside of what DynamoDB holds, 1e-130 to 9.99e125"));
    }
    Ok(number.to_owned())
}

fn from_json(value: Value, schema: Option<&Value>, decimals: DecimalForm, depth: usize) -> Result<AttributeValue, Unfit> {
    if depth > DEPTH_LIMIT {
        return Err(Unfit::Wrong(format!("the document is nested deeper than DynamoDB's {DEPTH_LIMIT} levels")));
    }
    Ok(match value {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(value) => AttributeValue::Bool(value),
        Value::Number(number) => AttributeValue::N(fitting(&number.to_string())?),
        Value::String(text) => match (schema.and_then(|schema| schema["format"].as_str()), decimals) {
            (Some("base64"), _) => match STANDARD.decode(&text) {
                Ok(bytes) => AttributeValue::B(Blob::new(bytes)),
                Err(_) => AttributeValue::S(text),
            },
            (Some("decimal"), DecimalForm::Number) => AttributeValue::N(fitting(&text)?),
            _ => AttributeValue::S(text),
        },
        Value::Array(items) => {
            let schema = schema.and_then(|schema| alternatives(schema).find_map(|schema| schema.get("items")));
            AttributeValue::L(
                items.into_iter().map(|item| from_json(item, schema, decimals, depth + 1)).collect::<Result<_, _>>()?,
            )
        }
        Value::Object(members) => {
            let convert = |(name, value): (String, Value)| {
                let schema = schema.and_then(|schema| member(schema, &name));
                let value = from_json(value, schema, decimals, depth + 1)?;
                Ok((name, value))
            };
            AttributeValue::M(members.into_iter().map(convert).collect::<Result<_, Unfit>>()?)
        }
    })
}

/// As DynamoDB counts (developer guide, "Item sizes and formats"): text in UTF-8, two digits a byte, three bytes for a map or list and one for each member.
fn size(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(digits) => digits.len() / 2 + 2,
        AttributeValue::B(bytes) => bytes.as_ref().len(),
        AttributeValue::L(items) => 3 + items.iter().map(|item| 1 + size(item)).sum::<usize>(),
        AttributeValue::M(members) => 3 + members.iter().map(|(name, value)| 1 + name.len() + size(value)).sum::<usize>(),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use schemas::change::EntityKey;
    use schemas::entity::EntityInfo;
    use serde_json::json;

    use super::super::keys::IndexConfig;
    use super::*;

    fn change(document: &str) -> EntityChange {
        let key = EntityKey::from_parts(["1"]);
        EntityChange { entity: "order".into(), key, version: Lsn::MAX, commit_time_ms: 7, document: Some(document.into()) }
    }

    fn item(document: &str, config: &DynamodbConfig, shapes: &Shapes) -> Result<Item, Unfit> {
        from_change(&change(document), config, shapes, 0, None)
    }

    fn plain(document: &str) -> Result<Item, Unfit> {
        item(document, &DynamodbConfig::new("t"), &Shapes::default())
    }

    #[test]
    fn numbers_keep_their_digits_and_decimals_stay_strings() {
        let item = plain(r#"{"id":9223372036854775807,"rate":0.1,"total":"12.50","no":null,"ok":true,"l":[1]}"#);
        let document = item.unwrap()["document"].clone();
        let members = document.as_m().unwrap();
        assert_eq!(members["id"], AttributeValue::N("9223372036854775807".into()));
        assert_eq!(members["rate"], AttributeValue::N("0.1".into()));
        assert_eq!(members["total"], AttributeValue::S("12.50".into()));
        assert_eq!(members["no"], AttributeValue::Null(true));
        assert_eq!(members["l"], AttributeValue::L(vec![AttributeValue::N("1".into())]));
    }

    #[test]
    fn members_have_the_types_of_their_contract_at_any_depth() {
        let line = json!({"type": "object", "properties": {"photo": {"type": "string", "format": "base64"}, "total": {"type": "string", "format": "decimal"}}});
        let schema = json!({"type": "object", "properties": {"items": {"type": "array", "items": line}, "first": {"anyOf": [line, {"type": "null"}]}}});
        let info = EntityInfo { name: "order".into(), key: Vec::new(), document_schema: schema };
        let index = IndexConfig { name: "by_total".into(), partition: "first.total".into(), sort: None };
        let shapes = Shapes::of(&[info], &[index]).unwrap();
        let config = DynamodbConfig { decimals: DecimalForm::Number, ..DynamodbConfig::new("t") };
        let document = r#"{"items": [{"photo": "AP8=", "total": "12.50"}], "first": {"photo": "not base64", "total": "1.0"}}"#;
        let found = item(document, &config, &shapes).unwrap();
        assert_eq!(found["first.total"], AttributeValue::N("1.0".into()));
        let document = found["document"].as_m().unwrap();
        let line = document["items"].as_l().unwrap()[0].as_m().unwrap();
        assert_eq!(line["photo"], AttributeValue::B(Blob::new([0, 255])));
        assert_eq!(line["total"], AttributeValue::N("12.50".into()));
        assert_eq!(document["first"].as_m().unwrap()["photo"], AttributeValue::S("not base64".into()));
        let without = item(r#"{"first": null}"#, &config, &shapes).unwrap();
        assert!(!without.contains_key("first.total"), "an index holds what has the member");
    }

    #[test]
    fn numbers_that_dynamodb_would_change_are_refused() {
        for good in [
            "0",
            "-0.0",
            "1e125",
            "-9.99e125",
            "1e-130",
            "12345678901234567890123456789012345678",
            "0.00010",
            "100000000000000000000000000000000000000000",
        ] {
            assert_eq!(fitting(good), Ok(good.to_owned()));
        }
        for bad in ["1e126", "1e-131", "123456789012345678901234567890123456789", "12.3.4", "", "x", "1e999999999999999999999"] {
            assert!(fitting(bad).is_err(), "{bad}");
        }
        assert!(matches!(plain(r#"{"n":1e300}"#), Err(Unfit::Wrong(_))));
    }

    #[test]
    fn what_is_too_large_or_too_deep_is_refused_with_the_reason() {
        let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(ITEM_LIMIT_BYTES));
        assert!(plain(&large).unwrap_err().to_string().contains("409600"));
        let pointed = from_change(&change(&large), &DynamodbConfig::new("t"), &Shapes::default(), 0, Some("s3://b/o")).unwrap();
        assert!(pointed["document_at"] == AttributeValue::S("s3://b/o".into()) && !pointed.contains_key("document"));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40));
        assert!(plain(&deep).unwrap_err().to_string().contains("32 levels"));
    }
}
