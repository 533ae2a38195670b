//! The join, written straight from the definitions over plain maps: slow, and independent of everything that the joiner does.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use schemas::change::EntityKey;
use schemas::entity::{Aggregate, EntityDefinition, Field, ManyEdge, OneEdge};
use schemas::event::Row;
use schemas::table::{Column, SqlType};
use schemas::value::Value;
use serde_json::{Map, Value as Json, json};

use crate::world::{Database, World};

/// Hundredths of a number.
fn hundredths(value: &Value) -> Option<i128> {
    match value {
        Value::Int(n) => Some(i128::from(*n) * 100),
        Value::Decimal { mantissa, scale } => Some(mantissa * 100 / 10i128.pow(u32::from(*scale))),
        _ => None,
    }
}

fn text(value: &Value, fold: bool) -> Option<String> {
    match value {
        Value::Text(text) if fold => Some(text.to_lowercase().trim_end_matches(' ').to_owned()),
        Value::Text(text) => Some(text.trim_end_matches(' ').to_owned()),
        _ => None,
    }
}

/// The one text of a key part; `None` for NULL.
pub(crate) fn normal(column: &Column, value: &Value) -> Option<String> {
    if let Some(text) = text(value, column.case_insensitive) {
        return Some(text);
    }
    let n = hundredths(value)?;
    let (sign, n) = (if n < 0 { "-" } else { "" }, n.abs());
    let digits = format!("{}.{:02}", n / 100, n % 100);
    Some(format!("{sign}{}", digits.trim_end_matches('0').trim_end_matches('.')))
}

fn compare(column: &Column, a: &Value, b: &Value) -> Ordering {
    match (hundredths(a), hundredths(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (a, b) if a.is_some() || b.is_some() => a.is_some().cmp(&b.is_some()),
        _ => text(a, column.case_insensitive).cmp(&text(b, column.case_insensitive)),
    }
}

fn equal(left: (&Column, &Value), right: (&Column, &Value)) -> bool {
    if *left.1 == Value::Null || *right.1 == Value::Null {
        return false;
    }
    if matches!(left.0.sql_type, SqlType::NVarChar(_)) {
        let fold = left.0.case_insensitive || right.0.case_insensitive;
        return text(left.1, fold) == text(right.1, fold);
    }
    hundredths(left.1) == hundredths(right.1)
}

struct Body<'a> {
    fields: &'a Option<Vec<Field>>,
    one: &'a BTreeMap<String, OneEdge>,
    many: &'a BTreeMap<String, ManyEdge>,
    aggregates: &'a BTreeMap<String, Aggregate>,
}

pub(crate) struct Brute<'a> {
    pub(crate) world: &'a World,
    pub(crate) database: &'a Database,
}

impl Brute<'_> {
    fn table(&self, name: &schemas::TableName) -> usize {
        self.world.tables.iter().position(|table| table.name == *name).unwrap()
    }

    fn column(&self, table: usize, name: &str) -> usize {
        self.world.tables[table].column(name).unwrap()
    }

    /// In the order of the own key.
    fn rows(&self, table: usize) -> Vec<&Row> {
        let schema = &self.world.tables[table];
        let mut rows: Vec<&Row> = self.database[table].values().collect();
        rows.sort_by(|a, b| {
            schema
                .key
                .iter()
                .map(|&column| compare(&schema.columns[column], &a[column], &b[column]))
                .find(|o| o.is_ne())
                .unwrap_or(Ordering::Equal)
        });
        rows
    }

    pub(crate) fn entities(&self, definition: &EntityDefinition) -> BTreeMap<EntityKey, Json> {
        let table = self.table(&definition.table);
        let schema = &self.world.tables[table];
        let key: Vec<usize> = if definition.key.is_empty() {
            schema.key.clone()
        } else {
            definition.key.iter().map(|name| self.column(table, name)).collect()
        };
        let body =
            Body { fields: &definition.fields, one: &definition.one, many: &definition.many, aggregates: &definition.aggregates };
        let mut first: BTreeMap<EntityKey, Option<Json>> = BTreeMap::new();
        for row in self.rows(table) {
            let parts = key.iter().map(|&column| normal(&schema.columns[column], &row[column]).unwrap());
            first.entry(EntityKey::from_parts(parts)).or_insert_with(|| self.document(table, row, &body));
        }
        first.into_iter().filter_map(|(key, document)| Some((key, document?))).collect()
    }

    fn matching(&self, parent: (usize, &Row), parent_columns: &[String], child: usize, child_columns: &[String]) -> Vec<&Row> {
        let mut rows = self.rows(child);
        for (left, right) in parent_columns.iter().zip(child_columns) {
            let (left, right) = (self.column(parent.0, left), self.column(child, right));
            let left = (&self.world.tables[parent.0].columns[left], &parent.1[left]);
            rows.retain(|row| equal(left, (&self.world.tables[child].columns[right], &row[right])));
        }
        rows
    }

    fn document(&self, table: usize, row: &Row, body: &Body<'_>) -> Option<Json> {
        let schema = &self.world.tables[table];
        let mut document = Map::new();
        match body.fields {
            None => schema
                .columns
                .iter()
                .zip(row)
                .for_each(|(column, value)| drop(document.insert(column.name.clone(), value.to_json()))),
            Some(fields) => {
                for field in fields {
                    document.insert(field.name.clone(), row[self.column(table, &field.column)].to_json());
                }
            }
        }
        for (name, edge) in body.one {
            let child = self.table(&edge.table);
            let inner = Body { fields: &edge.fields, one: &edge.one, many: &edge.many, aggregates: &edge.aggregates };
            let found = self.matching((table, row), &edge.by, child, &edge.references);
            let one = found.first().and_then(|row| self.document(child, row, &inner));
            if one.is_none() && edge.require {
                return None;
            }
            document.insert(name.clone(), one.unwrap_or(Json::Null));
        }
        let mut kept: BTreeMap<&str, (usize, Vec<&Row>)> = BTreeMap::new();
        for (name, edge) in body.many {
            let child = self.table(&edge.table);
            let inner = Body { fields: &edge.fields, one: &edge.one, many: &edge.many, aggregates: &edge.aggregates };
            let found = self.matching((table, row), &edge.references, child, &edge.by);
            let mut children: Vec<(&Row, Json)> =
                found.into_iter().filter_map(|row| Some((row, self.document(child, row, &inner)?))).collect();
            if children.is_empty() && edge.require {
                return None;
            }
            children.sort_by(|(a, _), (b, _)| {
                let parts = edge.order_by.iter().map(|part| {
                    let column = self.column(child, &part.column);
                    let order = compare(&self.world.tables[child].columns[column], &a[column], &b[column]);
                    if part.descending { order.reverse() } else { order }
                });
                parts.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
            });
            kept.insert(name, (child, children.iter().map(|(row, _)| *row).collect()));
            document.insert(name.clone(), Json::Array(children.into_iter().map(|(_, document)| document).collect()));
        }
        for (name, aggregate) in body.aggregates {
            let value = match aggregate {
                Aggregate::Count(edge) => json!(kept[edge.as_str()].1.len()),
                Aggregate::Sum(path) => {
                    let (child, rows) = &kept[path.edge.as_str()];
                    let column = self.column(*child, &path.column);
                    let sum: i128 = rows.iter().filter_map(|row| hundredths(&row[column])).sum();
                    if self.world.tables[*child].columns[column].sql_type == SqlType::Int {
                        json!(i64::try_from(sum / 100).unwrap())
                    } else {
                        json!(format!("{}{}.{:02}", if sum < 0 { "-" } else { "" }, sum.abs() / 100, sum.abs() % 100))
                    }
                }
            };
            document.insert(name.clone(), value);
        }
        Some(Json::Object(document))
    }
}
