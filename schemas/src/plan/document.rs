//! The JSON Schema of an entity's document.

use serde_json::{Map, Value, json};

use super::{AggregateKind, Computed, DERIVED, Node, NodeId, Plan, ResolvedAggregate};
use crate::entity::Limits;
use crate::table::{Column, SqlType};

pub(super) fn schema(plan: &Plan) -> Value {
    let mut schema = if plan.group.is_some() { group(plan) } else { node(&plan.nodes, 0) };
    if plan.definition.limits.is_some_and(|limits| limits.is_marked()) {
        schema["properties"][Limits::MARKER] = json!({"type": "boolean"});
        if let Value::Array(required) = &mut schema["required"] {
            required.push(json!(Limits::MARKER));
        }
    }
    if let Value::Object(members) = &mut schema {
        members.insert("title".into(), json!(plan.entity.as_ref()));
    }
    schema
}

/// The schema of a node's document.
pub(super) fn node(nodes: &[Node], id: NodeId) -> Value {
    let node: &Node = &nodes[id];
    let mut properties = Map::new();
    for field in &node.fields {
        properties.insert(field.name.clone(), column(&node.table.columns[field.column]));
    }
    for &child in &node.ones {
        let one = self::node(nodes, child);
        let child = &nodes[child];
        let schema = if child.require { one } else { json!({"anyOf": [one, {"type": "null"}]}) };
        properties.insert(child.name.clone(), schema);
    }
    for &child in &node.manys {
        let least = u8::from(nodes[child].require);
        let items = self::node(nodes, child);
        properties.insert(nodes[child].name.clone(), json!({"type": "array", "items": items, "minItems": least}));
    }
    values(&node.aggregates, &node.computed, &mut properties);
    object(&properties)
}

/// The schema of a roll-up's document.
fn group(plan: &Plan) -> Value {
    let mut properties = Map::new();
    if let Some(group) = &plan.group {
        for field in &group.fields {
            let schema = match field.column.checked_sub(DERIVED).and_then(|nth| plan.derived.get(nth)) {
                Some(derived) => derived.expression.returns().json_schema(),
                None => column(&plan.root().table.columns[field.column]),
            };
            properties.insert(field.name.clone(), schema);
        }
        values(&group.aggregates, &group.computed, &mut properties);
    }
    object(&properties)
}

fn values(aggregates: &[ResolvedAggregate], computed: &[Computed], properties: &mut Map<String, Value>) {
    for aggregate in aggregates {
        let schema = match aggregate.kind {
            AggregateKind::Count => json!({"type": "integer", "minimum": 0}),
            AggregateKind::SumInt => json!({"type": "integer"}),
            // As many digits as a decimal has at the source; more than the greatest of those a sum does not come to.
            AggregateKind::SumDecimal { scale } => {
                json!({"type": "string", "format": "decimal", "x-sql-type": format!("decimal(38,{scale})")})
            }
            AggregateKind::SumFloat => json!({"type": "number"}),
            AggregateKind::Any | AggregateKind::All => json!({"type": "boolean"}),
            AggregateKind::Distinct => json!({"type": "array", "items": aggregate.of.json_schema()}),
            _ => aggregate.returns().json_schema(),
        };
        properties.insert(aggregate.name.clone(), schema);
    }
    for computed in computed {
        properties.insert(computed.name.clone(), computed.expression.returns().json_schema());
    }
}

fn object(properties: &Map<String, Value>) -> Value {
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
    // What the column is at the source, for those who type columns of their own by it.
    let declared = column.sql_type.to_string();
    match format {
        Some(format) => json!({"type": kind, "format": format, "x-sql-type": declared}),
        None => json!({"type": kind, "x-sql-type": declared}),
    }
}
