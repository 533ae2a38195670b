//! How entities lie in the table: the parts of its key, and the attributes that its indexes are over.
//!
//! The primary key is made of the entity key alone, which no change of an entity touches and which a deletion still has. What else entities are asked by is an index over members of the document: an item has the attribute where
//! the document has the member, so an index holds what it can and nothing else (a sparse index), and a deletion leaves it.
//!
//! # The sort key's bytes
//! Parts of the entity key after the first, joined by commas, as they are in its text; a whole number is written with twenty digits, so that text sorts by value: `00000000000000000012`. One below zero is `-` and, with
//! nineteen digits, what it has over the least one: so those sort before, and by value too. An entity with one part has `-`.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::types::ScalarAttributeType;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde::Deserialize;
use serde_json::Value;

use super::item;

/// A global secondary index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexConfig {
    pub name: String,
    /// The path of a member of the document that is its partition key: `customer.id`.
    pub partition: String,
    /// The path of a member that is its sort key.
    #[serde(default)]
    pub sort: Option<String>,
}

/// An attribute that indexes are over, named as the path of its member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) path: String,
    pub(super) kind: ScalarAttributeType,
    /// The longest value that DynamoDB takes: 2,048 bytes as a partition key, 1,024 as a sort key.
    pub(super) limit_bytes: usize,
}

/// What is known of the entities.
#[derive(Debug, Clone, Default)]
pub(super) struct Shapes {
    entities: HashMap<Arc<str>, Shape>,
    pub(super) indexed: Vec<Indexed>,
}

#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) schema: Value,
    whole_numbers: Vec<bool>,
}

impl Shapes {
    /// An error says which index cannot be.
    pub(super) fn of(entities: &[EntityInfo], indexes: &[IndexConfig]) -> Result<Self, String> {
        let mut indexed: Vec<Indexed> = Vec::new();
        for IndexConfig { name, partition, sort } in indexes {
            for (path, limit_bytes) in [(Some(partition), 2048), (sort.as_ref(), 1024)] {
                let Some(path) = path else { continue };
                let kind = kind(entities, path).map_err(|reason| format!("index {name}: {reason}"))?;
                match indexed.iter_mut().find(|known| known.path == *path) {
                    Some(known) => known.limit_bytes = known.limit_bytes.min(limit_bytes),
                    None => indexed.push(Indexed { path: path.clone(), kind, limit_bytes }),
                }
            }
        }
        let shapes = entities.iter().map(|info| {
            let whole = |kind: &SqlType| matches!(kind, SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt);
            let whole_numbers = info.key.iter().map(|(_, kind)| whole(kind)).collect();
            (info.name.clone(), Shape { schema: info.document_schema.clone(), whole_numbers })
        });
        Ok(Self { entities: shapes.collect(), indexed })
    }

    pub(super) fn get(&self, entity: &str) -> Option<&Shape> {
        self.entities.get(entity)
    }

    /// Partition and sort key of a table that has both.
    pub(super) fn parted(&self, change: &EntityChange) -> (String, String) {
        let (first, rest) = match change.key.as_str().split_once(',') {
            Some((first, rest)) => (first, Some(rest)),
            None => (change.key.as_str(), None),
        };
        let whole = self.get(&change.entity).map_or(&[][..], |shape| &shape.whole_numbers);
        let sorted = |(part, nth): (&str, usize)| {
            let number = whole.get(nth).is_some_and(|whole| *whole).then(|| part.parse::<i64>().ok()).flatten();
            number.map_or_else(|| part.to_owned(), sortable)
        };
        let sort: Option<Vec<String>> = rest.map(|rest| rest.split(',').zip(1..).map(sorted).collect());
        (format!("{}#{first}", change.entity), sort.map_or_else(|| "-".to_owned(), |parts| parts.join(",")))
    }
}

/// Text that sorts as the number does.
fn sortable(number: i64) -> String {
    if number < 0 { format!("-{:019}", number.abs_diff(i64::MIN)) } else { format!("{number:020}") }
}

/// The type of a member, which is the same in every entity that has it.
fn kind(entities: &[EntityInfo], path: &str) -> Result<ScalarAttributeType, String> {
    let mut found: Option<(ScalarAttributeType, &str)> = None;
    for info in entities {
        let Some(schema) = path.split('.').try_fold(&info.document_schema, |schema, name| item::member(schema, name)) else {
            continue;
        };
        let kind = match (item::type_of(schema), schema["format"].as_str()) {
            (Some("integer" | "number"), _) | (Some("string"), Some("decimal")) => ScalarAttributeType::N,
            (Some("string"), Some("base64")) => ScalarAttributeType::B,
            (Some("string"), _) => ScalarAttributeType::S,
            _ => return Err(format!("{path} of {} is no text, number or binary", info.name)),
        };
        match &found {
            Some((other, entity)) if *other != kind => {
                return Err(format!("{path} is of type {other} in {entity} and of type {kind} in {}", info.name));
            }
            _ => found = Some((kind, &info.name)),
        }
    }
    found.map(|(kind, _)| kind).ok_or_else(|| format!("no entity has a member {path}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use schemas::Lsn;
    use schemas::change::EntityKey;
    use serde_json::json;

    use super::*;

    fn info(name: &str, properties: &Value) -> EntityInfo {
        let key = vec![("id".to_owned(), SqlType::Int), ("line".to_owned(), SqlType::BigInt), ("code".to_owned(), SqlType::Date)];
        EntityInfo { name: name.into(), key, document_schema: json!({"type": "object", "properties": properties}) }
    }

    fn parted(key: &str) -> (String, String) {
        let shapes = Shapes::of(&[info("order", &json!({}))], &[]).unwrap();
        let key = EntityKey::from_text(key);
        shapes.parted(&EntityChange { entity: "order".into(), key, version: Lsn::MAX, commit_time_ms: 0, document: None })
    }

    #[test]
    fn keys_are_parted_and_whole_numbers_sort() {
        assert_eq!(parted("7"), ("order#7".to_owned(), "-".to_owned()));
        assert_eq!(parted("7,12,x%2Cy"), ("order#7".to_owned(), "00000000000000000012,x%2Cy".to_owned()));
        assert_eq!(parted("7,no").1, "no");
    }

    proptest! {
        #[test]
        fn numbers_sort_as_text(a: i64, b: i64) {
            prop_assert_eq!(a.cmp(&b), sortable(a).cmp(&sortable(b)));
        }
    }

    #[test]
    fn an_index_has_the_type_of_its_members_and_one_alone() {
        let order = info(
            "order",
            &json!({"total": {"type": "string", "format": "decimal"}, "customer": {"anyOf": [{"type": "object", "properties": {"id": {"type": ["integer", "null"]}}}, {"type": "null"}]}, "items": {"type": "array"}}),
        );
        let index = |partition: &str, sort: Option<&str>| IndexConfig {
            name: "i".into(),
            partition: partition.into(),
            sort: sort.map(Into::into),
        };
        let shapes = Shapes::of(std::slice::from_ref(&order), &[index("customer.id", Some("total"))]).unwrap();
        assert_eq!(
            shapes.indexed.iter().map(|it| (it.path.as_str(), it.kind.as_str())).collect::<Vec<_>>(),
            [("customer.id", "N"), ("total", "N")]
        );
        let refused = |entities: &[EntityInfo], partition: &str| Shapes::of(entities, &[index(partition, None)]).unwrap_err();
        assert!(refused(std::slice::from_ref(&order), "items").contains("no text, number or binary"));
        assert!(refused(std::slice::from_ref(&order), "customer.name").contains("no entity has"));
        let other = info("line", &json!({"total": {"type": "string"}}));
        let reason = refused(&[order, other], "total");
        assert!(reason.contains("order") && reason.contains("line"), "{reason}");
    }
}
