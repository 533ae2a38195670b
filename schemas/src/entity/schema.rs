//! The JSON Schema of entity definitions, for editors: completion, and a word on each key where it is written. What is refused here is refused by the reading too; the reading refuses more (unknown tables and columns).

use serde_json::{Map, Value, json};

use super::AggregateFunction;

/// The schema of a definition's file.
pub fn definition_schema() -> Value {
    let mut defs = Map::new();
    defs.insert("name".into(), json!({"type": "string", "minLength": 1}));
    defs.insert("columns".into(), json!({"type": "array", "items": {"$ref": "#/$defs/name"}, "minItems": 1}));
    let cel = |description: &str| json!({"type": "string", "minLength": 1, "description": description});
    defs.insert("cel".into(), cel("A CEL expression."));
    defs.insert("field".into(), renamed("A column, or {name in the document: column}."));
    defs.insert("group".into(), renamed("A column, or {name in the document: CEL expression over the row's columns}."));
    defs.insert("aggregate".into(), aggregate());
    for (name, edges) in [("one", one()), ("many", many())] {
        defs.insert(name.into(), edges);
    }
    defs.insert("rows".into(), object(&members(&["one", "many", "aggregates", "computed"]), &[]));
    let mut properties = members(&["where", "fields", "one", "many", "aggregates", "computed"]);
    properties.insert(
        "entity".into(),
        json!({"type": "string", "pattern": "^[a-z][a-z0-9_-]*$", "description": "The entity's name: in URLs, in sinks."}),
    );
    properties.insert("table".into(), table());
    let of = "The entity whose documents are rolled up, in place of a table. With `group_by`.";
    properties.insert("of".into(), json!({"type": "string", "pattern": "^[a-z][a-z0-9_-]*$", "description": of}));
    properties
        .insert("key".into(), described("columns", "The columns that make the entity key. Default: the table's primary key."));
    properties.insert(
        "group_by".into(),
        json!({"type": "array", "items": {"$ref": "#/$defs/group"}, "minItems": 1, "description": "Rolls the rows up: an entity for each group of rows that agree in these."}),
    );
    let limits = [
        ("children", json!({"type": "integer", "minimum": 0, "description": "Children of any one list."})),
        ("bytes", json!({"type": "integer", "minimum": 0, "description": "Bytes of the document."})),
        (
            "exceeded",
            json!({"enum": ["truncate", "stop", "dead_letter"], "description": "Cut lists and say so in the document (default); stop; or set the document aside, and leave what was told of it last until it fits."}),
        ),
    ];
    let limits = limits.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    properties.insert("limits".into(), object(&limits, &[]));
    let time_to_live = [
        ("column", described("name", "A date or a time of the root. Entities whose column is NULL stay.")),
        (
            "duration",
            json!({"type": "string", "pattern": "^[0-9]+ *(w|d|h|m|s|ms)$", "description": "How long after it, such as 90d. Default: not at all; the column itself says when the entity ends."}),
        ),
    ];
    let time_to_live = time_to_live.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    properties.insert("time_to_live".into(), object(&time_to_live, &["column"]));
    properties.insert("rows".into(), described("rows", "What each row of a roll-up is made of, for the aggregates over them."));
    let Value::Object(mut schema) = object(&properties, &["entity"]) else { return Value::Null };
    schema.insert("oneOf".into(), json!([{"required": ["table"]}, {"required": ["of", "group_by"]}]));
    schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".into(), json!("Entity definition"));
    schema.insert("$defs".into(), Value::Object(defs));
    Value::Object(schema)
}

fn object(properties: &Map<String, Value>, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn described(of: &str, description: &str) -> Value {
    json!({"$ref": format!("#/$defs/{of}"), "description": description})
}

fn map_of(of: &str, description: &str) -> Value {
    json!({"type": "object", "additionalProperties": {"$ref": format!("#/$defs/{of}")}, "description": description})
}

fn renamed(description: &str) -> Value {
    let pair = json!({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1, "maxProperties": 1});
    json!({"anyOf": [{"$ref": "#/$defs/name"}, pair], "description": description})
}

fn table() -> Value {
    json!({"type": "string", "pattern": ".\\..", "description": "schema.table, such as dbo.orders or [my schema].[my table]; source.schema.table where several sources have such a table."})
}

/// What definitions, edges and rows have in common.
fn members(names: &[&str]) -> Map<String, Value> {
    let member = |name: &str| match name {
        "where" => described("cel", "CEL over the table's columns: rows that do not meet it do not take part."),
        "fields" => json!({"type": "array", "items": {"$ref": "#/$defs/field"}, "description": "Default: every column."}),
        "one" => map_of("one", "References: this table holds the other's key."),
        "many" => map_of("many", "Children: the other table holds this one's key."),
        "aggregates" => map_of("aggregate", "Values over this node's own children."),
        _ => map_of("cel", "Fields that are computed of this node's document, and its other columns."),
    };
    names.iter().map(|name| ((*name).to_owned(), member(name))).collect()
}

fn edge() -> Map<String, Value> {
    let mut properties = members(&["where", "fields", "one", "many", "aggregates", "computed"]);
    properties.insert("table".into(), table());
    let repeat = "How many levels more the edge repeats itself within itself: for tables that refer to themselves.";
    properties.insert("repeat".into(), json!({"type": "integer", "minimum": 0, "maximum": 15, "description": repeat}));
    properties
}

fn one() -> Value {
    let mut properties = edge();
    properties.insert("by".into(), described("columns", "Columns of the parent that hold the reference."));
    properties
        .insert("references".into(), described("columns", "What they refer to. Default: the referenced table's primary key."));
    let require = "No such row: the parent is left out. Default: the field is null.";
    properties.insert("require".into(), json!({"type": "boolean", "description": require}));
    let fan_out = "When documents are told of a change of the row that they refer to: all at once with the rest of the commit (strict, default), or, where they are many, bit by bit beside later changes (lazy).";
    properties.insert("fan_out".into(), json!({"enum": ["strict", "lazy"], "description": fan_out}));
    object(&properties, &["table", "by"])
}

fn many() -> Value {
    let mut properties = edge();
    properties.insert("by".into(), described("columns", "Columns of the child that hold the parent's key."));
    properties.insert("references".into(), described("columns", "What they refer to. Default: the parent's key."));
    properties.insert("require".into(), json!({"type": "boolean", "description": "Without any child, the parent is left out."}));
    let order = "The children's order. `-` descends. Default: the child's key.";
    properties.insert("order_by".into(), described("columns", order));
    object(&properties, &["table", "by"])
}

fn aggregate() -> Value {
    let counted =
        json!({"type": "string", "minLength": 1, "description": "How many children a `many` edge has; `rows` in a roll-up."});
    let of = |name: &str| json!({"type": "string", "minLength": 1, "description": format!("{name} of edge.column; or of an edge, with `value`.")});
    let mut properties = Map::new();
    let mut one = Vec::new();
    for function in AggregateFunction::ALL {
        let schema = if function == AggregateFunction::Count { counted.clone() } else { of(function.name()) };
        properties.insert(function.name().into(), schema);
        one.push(json!({"required": [function.name()]}));
    }
    properties.insert("value".into(), described("cel", "CEL over the child's columns: what is aggregated."));
    properties.insert("where".into(), described("cel", "CEL over the child's columns: only children that meet it count."));
    let mut schema = object(&properties, &[]);
    schema["oneOf"] = Value::Array(one);
    schema
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::entity::{Aggregate, EntityDefinition, Limits, ManyEdge, OneEdge, Rows, TimeToLive};

    use super::*;

    /// The keys that the reading knows, as it says itself when it is asked for one that cannot be.
    fn known<T: serde::de::DeserializeOwned>(required: &str) -> Vec<String> {
        let text = format!("{{{required}__probe: 1}}");
        let error = serde_yaml_ng::from_str::<T>(&text).err().unwrap().to_string();
        let list = error.split("expected ").nth(1).unwrap_or_else(|| panic!("{error}"));
        let list = list.split(" at line").next().unwrap().trim_start_matches("one of ").replace(" or ", ", ");
        let mut keys: Vec<String> = list.split(", ").map(|key| key.trim_matches('`').to_owned()).collect();
        keys.sort();
        keys
    }

    fn keys(schema: &Value) -> Vec<String> {
        let mut keys: Vec<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read() {
        let schema = definition_schema();
        let defs = &schema["$defs"];
        assert_eq!(keys(&schema), known::<EntityDefinition>("entity: e, table: a.b, "));
        assert_eq!(keys(&defs["one"]), known::<OneEdge>("table: a.b, by: [], "));
        assert_eq!(keys(&defs["many"]), known::<ManyEdge>("table: a.b, by: [], "));
        assert_eq!(keys(&defs["rows"]), known::<Rows>(""));
        assert_eq!(keys(&schema["properties"]["limits"]), known::<Limits>(""));
        assert_eq!(keys(&schema["properties"]["time_to_live"]), known::<TimeToLive>("column: a, "));
        assert_eq!(keys(&defs["aggregate"]), known::<Aggregate>(""));
        jsonschema::validator_for(&schema).unwrap();
    }
}
