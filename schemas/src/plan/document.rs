//! The JSON Schema of an entity's document.

use serde_json::{Map, Value, json};

use super::{AggregateKind, Node, NodeId, Plan};
use crate::table::{Column, SqlType};

pub(super) fn schema(plan: &Plan) -> Value {
    let mut schema = node(plan, 0);
    if let Value::Object(members) = &mut schema {
        members.insert("title".into(), json!(plan.entity.as_ref()));
    }
    schema
}

fn node(plan: &Plan, id: NodeId) -> Value {
    let node: &Node = &plan.nodes[id];
    let mut properties = Map::new();
    for field in &node.fields {
        properties.insert(field.name.clone(), column(&node.table.columns[field.column]));
    }
    for &child in &node.ones {
        let one = self::node(plan, child);
        let child = &plan.nodes[child];
        let schema = if child.require { one } else { json!({"anyOf": [one, {"type": "null"}]}) };
        properties.insert(child.name.clone(), schema);
    }
    for &child in &node.manys {
        let least = u8::from(plan.nodes[child].require);
        properties.insert(
            plan.nodes[child].name.clone(),
            json!({"type": "array", "items": self::node(plan, child), "minItems": least}),
        );
    }
    for aggregate in &node.aggregates {
        let schema = match aggregate.kind {
            AggregateKind::Count => json!({"type": "integer", "minimum": 0}),
            AggregateKind::SumInt { .. } => json!({"type": "integer"}),
            AggregateKind::SumDecimal { .. } => json!({"type": "string", "format": "decimal"}),
            AggregateKind::SumFloat { .. } => json!({"type": "number"}),
        };
        properties.insert(aggregate.name.clone(), schema);
    }
    let required: Vec<&String> = properties.keys().collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

fn column(column: &Column) -> Value {
    let (kind, format) = match column.sql_type {
        SqlType::Bit => ("boolean", None),
        SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => ("integer", None),
        SqlType::Real | SqlType::Float => ("number", None),
        SqlType::Decimal { .. } | SqlType::Money | SqlType::SmallMoney => ("string", Some("decimal")),
        SqlType::UniqueIdentifier => ("string", Some("uuid")),
        SqlType::Date => ("string", Some("date")),
        // Without a zone, so JSON Schema's own `date-time` would refuse them.
        SqlType::DateTime | SqlType::SmallDateTime | SqlType::DateTime2 { .. } => ("string", Some("local-date-time")),
        SqlType::DateTimeOffset { .. } => ("string", Some("date-time")),
        SqlType::Time { .. } => ("string", Some("local-time")),
        SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::Image | SqlType::RowVersion => ("string", Some("base64")),
        SqlType::SqlVariant => return json!({}),
        _ => ("string", None),
    };
    let kind = if column.nullable { json!([kind, "null"]) } else { json!(kind) };
    match format {
        Some(format) => json!({"type": kind, "format": format}),
        None => json!({"type": kind}),
    }
}
