//! A contract as JSON and as the text of its file.

use serde_json::{Map, Value as Json, json};

use super::keywords;
use crate::table::TableSchema;

pub(super) fn document(table: &TableSchema) -> Json {
    let properties: Map<String, Json> = table
        .columns
        .iter()
        .map(|column| (column.name.clone(), keywords::of_type(column.sql_type, column.nullable, column.case_insensitive).into()))
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": table.name.to_string(),
        "x-table": table.name.to_string(),
        "x-version": 1,
        "x-key": table.key_names().collect::<Vec<_>>(),
        "type": "object",
        "required": properties.keys().collect::<Vec<_>>(),
        "properties": properties,
        "additionalProperties": false,
    })
}

/// One line a root keyword, and one a property, so that a change of a column is a change of a line.
pub(super) fn text(document: &Json) -> String {
    let Some(root) = document.as_object() else { return document.to_string() };
    let lines = |map: &Map<String, Json>, indent: &str, write: &dyn Fn(&str, &Json) -> String| {
        let lines: Vec<String> =
            map.iter().map(|(key, value)| format!("{indent}{}: {}", json!(key), write(key, value))).collect();
        lines.join(",\n")
    };
    let body = lines(root, "  ", &|key, value| match value.as_object() {
        Some(map) if key == "properties" && !map.is_empty() => {
            format!("{{\n{}\n  }}", lines(map, "    ", &|_, value| spaced(value)))
        }
        _ => spaced(value),
    });
    format!("{{\n{body}\n}}\n")
}

/// JSON on one line, with a space after commas and colons.
fn spaced(value: &Json) -> String {
    match value {
        Json::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Json::Object(map) => {
            format!(
                "{{{}}}",
                map.iter().map(|(key, value)| format!("{}: {}", json!(key), spaced(value))).collect::<Vec<_>>().join(", ")
            )
        }
        plain => plain.to_string(),
    }
}
