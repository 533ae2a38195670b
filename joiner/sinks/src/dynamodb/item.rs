//! An entity change as an item, and how large that is.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use schemas::change::EntityChange;
use serde::Deserialize;
use serde_json::Value;

use super::DynamodbConfig;

/// DynamoDB's limit: names and values together.
const ITEM_LIMIT_BYTES: usize = 400 * 1024;
/// DynamoDB's limit on maps and lists inside each other.
const DEPTH_LIMIT: usize = 32;

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

pub(super) type Item = HashMap<String, AttributeValue>;

/// The item, or why DynamoDB would not have it.
pub(super) fn from_change(change: &EntityChange, config: &DynamodbConfig, expires_at: u64) -> Result<Item, String> {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let pk = format!("{}#{}", change.entity, change.key);
    let mut item = Item::from([
        (config.key_attribute.clone(), AttributeValue::S(pk)),
        ("entity".to_owned(), text(&change.entity)),
        ("key".to_owned(), text(change.key.as_str())),
        ("version".to_owned(), AttributeValue::S(change.version.to_string())),
        ("commit_time_ms".to_owned(), AttributeValue::N(change.commit_time_ms.to_string())),
    ]);
    match change.document.as_deref() {
        Some(document) => {
            let value = match config.document {
                DocumentForm::Json => text(document),
                DocumentForm::Map => {
                    let json = serde_json::from_str(document).map_err(|error| format!("the document is not JSON: {error}"))?;
                    from_json(json, 1)?
                }
            };
            item.insert("document".to_owned(), value);
        }
        None => {
            item.insert("deleted".to_owned(), AttributeValue::Bool(true));
            item.insert("expires_at".to_owned(), AttributeValue::N(expires_at.to_string()));
        }
    }
    let size: usize = item.iter().map(|(name, value)| name.len() + size(value)).sum();
    if size > ITEM_LIMIT_BYTES {
        return Err(format!("the item takes {size} bytes, more than DynamoDB's {ITEM_LIMIT_BYTES}"));
    }
    Ok(item)
}

fn from_json(value: Value, depth: usize) -> Result<AttributeValue, String> {
    if depth > DEPTH_LIMIT {
        return Err(format!("the document is nested deeper than DynamoDB's {DEPTH_LIMIT} levels"));
    }
    Ok(match value {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(value) => AttributeValue::Bool(value),
        Value::Number(number) => AttributeValue::N(number.to_string()),
        Value::String(text) => AttributeValue::S(text),
        Value::Array(items) => {
            AttributeValue::L(items.into_iter().map(|item| from_json(item, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(members) => AttributeValue::M(
            members.into_iter().map(|(name, value)| Ok((name, from_json(value, depth + 1)?))).collect::<Result<_, String>>()?,
        ),
    })
}

/// As DynamoDB counts (developer guide, "Item sizes and formats"): text in UTF-8, two digits a byte, three bytes for a map or list and one for each member.
fn size(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) => text.len(),
        AttributeValue::N(digits) => digits.len() / 2 + 2,
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

    use super::*;

    fn change(document: &str) -> EntityChange {
        let key = EntityKey::from_parts(["1"]);
        EntityChange { entity: "order".into(), key, version: Lsn::MAX, commit_time_ms: 7, document: Some(document.into()) }
    }

    #[test]
    fn numbers_keep_their_digits_and_decimals_stay_strings() {
        let item = from_change(
            &change(r#"{"id":9223372036854775807,"rate":0.1,"total":"12.50","no":null,"ok":true,"l":[1]}"#),
            &DynamodbConfig::new("t"),
            0,
        );
        let document = item.unwrap()["document"].clone();
        let members = document.as_m().unwrap();
        assert_eq!(members["id"], AttributeValue::N("9223372036854775807".into()));
        assert_eq!(members["rate"], AttributeValue::N("0.1".into()));
        assert_eq!(members["total"], AttributeValue::S("12.50".into()));
        assert_eq!(members["no"], AttributeValue::Null(true));
        assert_eq!(members["l"], AttributeValue::L(vec![AttributeValue::N("1".into())]));
    }

    #[test]
    fn what_is_too_large_or_too_deep_is_refused_with_the_reason() {
        let large = format!(r#"{{"text":"{}"}}"#, "x".repeat(ITEM_LIMIT_BYTES));
        assert!(from_change(&change(&large), &DynamodbConfig::new("t"), 0).unwrap_err().contains("409600"));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(40), "}".repeat(40));
        assert!(from_change(&change(&deep), &DynamodbConfig::new("t"), 0).unwrap_err().contains("32 levels"));
    }
}
