//! How an index is made: the mapping of its documents, from the JSON Schema of the entity. Pure.

use serde_json::{Map, Value, json};

/// Settings and mapping of an entity's index. Types come from the definition and not from whatever document comes first: a text that looks like a date is a text.
pub(super) fn index(schema: &Value, tombstone_hours: u64) -> Value {
    let mut properties = members(schema);
    let about = json!({
        "entity": {"type": "keyword"},
        "key": {"type": "keyword"},
        "version": {"type": "keyword"},
        "commit_time": {"type": "date"},
    });
    properties.insert("tributary".to_owned(), json!({"properties": about}));
    json!({
        "settings": settings(tombstone_hours),
        "mappings": {"date_detection": false, "properties": properties},
    })
}

/// The index of the frontier.
pub(super) fn frontier_index(tombstone_hours: u64) -> Value {
    // Shares come and go, and nobody searches by them.
    let properties = json!({"lsn": {"type": "keyword"}, "parts": {"type": "object", "enabled": false}});
    json!({"settings": settings(tombstone_hours), "mappings": {"properties": properties}})
}

/// For so long the version of a deleted document guards its id.
fn settings(tombstone_hours: u64) -> Value {
    json!({"index": {"gc_deletes": format!("{tombstone_hours}h")}})
}

fn members(schema: &Value) -> Map<String, Value> {
    let properties = schema["properties"].as_object();
    let mapped = |(name, schema): (&String, &Value)| property(schema).map(|mapping| (name.clone(), mapping));
    properties.into_iter().flatten().filter_map(mapped).collect()
}

/// The mapping of a value; none where the cluster's own choice will do (texts become `text` with a `keyword`).
fn property(schema: &Value) -> Option<Value> {
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().find_map(property);
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    let mapped = match (kind?, schema["format"].as_str()) {
        ("object", _) => return Some(json!({"properties": members(schema)})),
        // A list is mapped as its elements are.
        ("array", _) => return property(&schema["items"]),
        ("integer", _) => "long",
        ("number", _) | ("string", Some("decimal")) => "double",
        ("boolean", _) => "boolean",
        ("string", Some("date" | "date-time" | "local-date-time")) => "date",
        ("string", Some("uuid" | "local-time")) => "keyword",
        ("string", Some("base64")) => "binary",
        _ => return None,
    };
    Some(json!({"type": mapped}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_come_from_the_definition() {
        let schema = json!({"type": "object", "properties": {
            "id": {"type": "integer"},
            "total": {"type": ["string", "null"], "format": "decimal"},
            "placed": {"type": "string", "format": "local-date-time"},
            "name": {"type": "string"},
            "customer": {"anyOf": [{"type": "object", "properties": {"vip": {"type": "boolean"}}}, {"type": "null"}]},
            "items": {"type": "array", "items": {"type": "object", "properties": {"rate": {"type": "number"}}}},
            "any": {},
        }});
        let made = index(&schema, 24);
        let properties = &made["mappings"]["properties"];
        let kind = |path: &str| properties.pointer(path).and_then(|found| found["type"].as_str()).unwrap_or("none");
        assert_eq!(["/id", "/total", "/placed", "/name", "/any"].map(kind), ["long", "double", "date", "none", "none"]);
        assert_eq!(["/customer/properties/vip", "/items/properties/rate"].map(kind), ["boolean", "double"]);
        assert_eq!(kind("/tributary/properties/version"), "keyword");
        assert_eq!(made["settings"]["index"]["gc_deletes"], "24h");
    }
}
