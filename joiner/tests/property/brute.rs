//! The join, written straight from the definitions over plain maps: slow, and independent of everything that the joiner does.

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use schemas::change::EntityKey;
use schemas::entity::{Aggregate, AggregateFunction, AggregateValue, EntityDefinition, Field, GroupBy, ManyEdge, OneEdge};
use schemas::event::Row;
use schemas::plan::Plan;
use schemas::table::{Column, SqlType};
use schemas::value::Value;
use serde_json::{Map, Value as Json, json};

use crate::world::{COMPUTED, D, DAY_MS, Database, F2, FILTERS, K2, M, SPANS, T, U, VALUES, World, milliseconds};

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

fn whole(value: &Value) -> Option<i64> {
    if let Value::Int(n) = value { Some(*n) } else { None }
}

/// What the filters of the world mean.
fn meets(filter: Option<&String>, row: &Row) -> bool {
    let Some(filter) = filter else { return true };
    match FILTERS.iter().position(|known| known == filter).unwrap() {
        0 => whole(&row[D]).is_some_and(|d| d >= 1),
        1 => hundredths(&row[M]).is_some_and(|m| m > 50),
        2 => whole(&row[U]) != Some(2) && whole(&row[F2]) != Some(0),
        3 => whole(&row[D]).is_none_or(|d| d < 2),
        _ => whole(&row[K2]).unwrap() + whole(&row[U]).unwrap() > 1,
    }
}

/// What its expressions mean.
fn evaluate(expression: &str, row: &Row) -> Value {
    let number = |n: Option<i64>| n.map_or(Value::Null, Value::Int);
    let money = |n: Option<i128>| n.map_or(Value::Null, |mantissa| Value::Decimal { mantissa, scale: 2 });
    if let Some(nth) = VALUES.iter().position(|known| *known == expression) {
        return match nth {
            0 => number(whole(&row[D]).map(|d| d + whole(&row[U]).unwrap())),
            1 => money(hundredths(&row[M]).map(|m| m * 2)),
            _ => Value::Bool(row[U] == Value::Int(1)),
        };
    }
    match COMPUTED.iter().position(|known| *known == expression).unwrap_or_else(|| panic!("{expression}")) {
        0 => number(whole(&row[D]).map(|d| d * 2 + 1)),
        1 => money(hundredths(&row[M]).map(|m| m + 25)),
        _ => Value::Text(if row[U] == Value::Int(1) { "one" } else { "other" }.to_owned()),
    }
}

/// `hundredths / 100 / count` with six digits, rounded half away from zero.
fn average(hundredths: i128, count: usize) -> String {
    let (numerator, denominator) = (hundredths.abs() * 10_000, count as i128);
    let millionths = (2 * numerator + denominator) / (2 * denominator);
    let sign = if hundredths < 0 && millionths > 0 { "-" } else { "" };
    format!("{sign}{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

/// NULL first; numbers by their value, text by code point.
fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        _ => hundredths(a).cmp(&hundredths(b)),
    }
}

/// An aggregate over the values of children, in their order.
fn aggregated(function: AggregateFunction, values: &[Value], of_decimals: bool) -> Json {
    let known: Vec<&Value> = values.iter().filter(|value| **value != Value::Null).collect();
    let sum: i128 = known.iter().filter_map(|value| hundredths(value)).sum();
    let json = |value: Option<&Value>| value.map_or(Json::Null, Value::to_json);
    match function {
        AggregateFunction::Count => json!(values.len()),
        AggregateFunction::Sum if of_decimals => {
            json!(format!("{}{}.{:02}", if sum < 0 { "-" } else { "" }, sum.abs() / 100, sum.abs() % 100))
        }
        AggregateFunction::Sum => json!(i64::try_from(sum / 100).unwrap()),
        // Of equals, the first.
        AggregateFunction::Min => json(known.iter().copied().reduce(|a, b| if order(b, a).is_lt() { b } else { a })),
        AggregateFunction::Max => json(known.iter().copied().reduce(|a, b| if order(b, a).is_gt() { b } else { a })),
        AggregateFunction::Avg if known.is_empty() => Json::Null,
        AggregateFunction::Avg => json!(average(sum, known.len())),
        AggregateFunction::Distinct => {
            let mut known = known;
            known.sort_by(|a, b| order(a, b));
            known.dedup_by(|a, b| order(a, b).is_eq());
            Json::Array(known.into_iter().map(Value::to_json).collect())
        }
        AggregateFunction::Any => json!(values.contains(&Value::Bool(true))),
        AggregateFunction::All => json!(values.iter().all(|value| *value == Value::Bool(true))),
        AggregateFunction::First => json(values.first()),
        AggregateFunction::Last => json(values.last()),
    }
}

struct Body<'a> {
    fields: Option<&'a [Field]>,
    one: BTreeMap<String, OneEdge>,
    many: BTreeMap<String, ManyEdge>,
    aggregates: &'a BTreeMap<String, Aggregate>,
    computed: &'a BTreeMap<String, String>,
}

impl<'a> Body<'a> {
    fn of_one(name: &str, edge: &'a OneEdge) -> Self {
        let mut one = edge.one.clone();
        if edge.repeat > 0 {
            one.insert(name.to_owned(), OneEdge { repeat: edge.repeat - 1, ..edge.clone() });
        }
        let (fields, many) = (edge.fields.as_deref(), edge.many.clone());
        Self { fields, one, many, aggregates: &edge.aggregates, computed: &edge.computed }
    }

    fn of_many(name: &str, edge: &'a ManyEdge) -> Self {
        let mut many = edge.many.clone();
        if edge.repeat > 0 {
            many.insert(name.to_owned(), ManyEdge { repeat: edge.repeat - 1, ..edge.clone() });
        }
        let (fields, one) = (edge.fields.as_deref(), edge.one.clone());
        Self { fields, one, many, aggregates: &edge.aggregates, computed: &edge.computed }
    }
}

/// A row and its document.
type Documented<'a> = (&'a Row, Json);
/// The rows of an edge that stand in the document, by their table.
type Children<'a> = (usize, Vec<Documented<'a>>);

pub(crate) struct Brute<'a> {
    world: &'a World,
    database: &'a Database,
    /// By table: the time that its source has come to.
    times: Vec<i64>,
    /// How many children a list of the entity shows, and whether one has more.
    limit: Cell<Option<usize>>,
    cut: Cell<bool>,
}

impl<'a> Brute<'a> {
    pub(crate) fn new(world: &'a World, database: &'a Database, times: Vec<i64>) -> Self {
        Self { world, database, times, limit: Cell::new(None), cut: Cell::new(false) }
    }

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

    /// A roll-up of other documents, by whole numbers that they have.
    fn of_documents(&self, definition: &EntityDefinition, documents: &BTreeMap<EntityKey, Json>) -> BTreeMap<EntityKey, Json> {
        let value = |document: &Json, text: &str| match (text.strip_suffix(" + 1"), text.strip_suffix(" > 0")) {
            (Some(member), _) => document[member].as_i64().map_or(Value::Null, |n| Value::Int(n + 1)),
            (_, Some(member)) => document[member].as_i64().map_or(Value::Null, |n| Value::Bool(n > 0)),
            _ => document[text].as_i64().map_or(Value::Null, Value::Int),
        };
        let met = |document: &Json, filter: Option<&String>| filter.is_none_or(|text| value(document, text) == Value::Bool(true));
        let mut groups: BTreeMap<EntityKey, Vec<&Json>> = BTreeMap::new();
        for document in documents.values().filter(|document| met(document, definition.filter.as_ref())) {
            let parts = definition.group_by.iter().map(|by| whole(&value(document, &by.expression)).map(|n| n.to_string()));
            if let Some(parts) = parts.collect::<Option<Vec<_>>>() {
                groups.entry(EntityKey::from_parts(parts)).or_default().push(document);
            }
        }
        let rolled_up = |documents: Vec<&Json>| {
            let mut found = Map::new();
            for by in &definition.group_by {
                found.insert(by.name.clone(), value(documents[0], &by.expression).to_json());
            }
            for (name, aggregate) in &definition.aggregates {
                let counted = documents.iter().filter(|document| met(document, aggregate.filter.as_ref()));
                let values = counted.map(|document| match &aggregate.value {
                    Some(AggregateValue::Member(text) | AggregateValue::Expression(text)) => value(document, text),
                    None => Value::Null,
                });
                found.insert(name.clone(), aggregated(aggregate.function, &values.collect::<Vec<_>>(), false));
            }
            found.insert("many".into(), json!(documents.len() > 2));
            Json::Object(found)
        };
        groups.into_iter().map(|(key, documents)| (key, rolled_up(documents))).collect()
    }

    /// What a plan makes of the database.
    pub(crate) fn entities(&self, plan: &Plan) -> BTreeMap<EntityKey, Json> {
        let mut entities = self.all(plan);
        if plan.definition.sets_aside() {
            entities.retain(|_, document| document.as_object_mut().unwrap().remove("set aside") == Some(json!(false)));
        }
        entities
    }

    /// Those that are set aside because they are too large.
    pub(crate) fn set_aside(&self, plan: &Plan) -> BTreeSet<EntityKey> {
        let too_large = |(key, document): (EntityKey, Json)| (document["set aside"] == json!(true)).then_some(key);
        if plan.definition.sets_aside() { self.all(plan).into_iter().filter_map(too_large).collect() } else { BTreeSet::new() }
    }

    fn all(&self, plan: &Plan) -> BTreeMap<EntityKey, Json> {
        match &plan.input {
            Some(input) => self.of_documents(&plan.definition, &self.entities(&input.plan)),
            None => self.of_tables(&plan.definition),
        }
    }

    fn of_tables(&self, definition: &EntityDefinition) -> BTreeMap<EntityKey, Json> {
        let table = self.table(&definition.table);
        if !definition.group_by.is_empty() {
            return self.groups(table, definition);
        }
        let schema = &self.world.tables[table];
        let key: Vec<usize> = if definition.key.is_empty() {
            schema.key.clone()
        } else {
            definition.key.iter().map(|name| self.column(table, name)).collect()
        };
        let body = Body {
            fields: definition.fields.as_deref(),
            one: definition.one.clone(),
            many: definition.many.clone(),
            aggregates: &definition.aggregates,
            computed: &definition.computed,
        };
        let mut first: BTreeMap<EntityKey, Option<Json>> = BTreeMap::new();
        let is_there = |row: &&Row| meets(definition.filter.as_ref(), row) && !self.is_over(definition, table, row);
        for row in self.rows(table).into_iter().filter(is_there) {
            let parts = key.iter().map(|&column| normal(&schema.columns[column], &row[column]).unwrap());
            first.entry(EntityKey::from_parts(parts)).or_insert_with(|| self.limited(definition, table, row, &body));
        }
        first.into_iter().filter_map(|(key, document)| Some((key, document?))).collect()
    }

    /// Whether the time of a root is over.
    fn is_over(&self, definition: &EntityDefinition, table: usize, row: &Row) -> bool {
        let Some(time_to_live) = &definition.time_to_live else { return false };
        let span = SPANS.iter().position(|span| span.parse() == Ok(time_to_live.duration)).unwrap();
        let span = [0, DAY_MS / 24 * 5, DAY_MS, DAY_MS / 24 * 36][span];
        self.times[table] > 0 && milliseconds(&row[T]).is_some_and(|from| from + span <= self.times[table])
    }

    fn limited(&self, definition: &EntityDefinition, table: usize, row: &Row, body: &Body<'_>) -> Option<Json> {
        self.limit.set(definition.limits.and_then(|limits| limits.children));
        self.cut.set(false);
        let document = self.document(table, row, body);
        let limited = self.limit.take().is_some();
        let mut document = document?;
        if definition.sets_aside() {
            document["set aside"] = json!(self.cut.get());
        } else if limited {
            document["truncated"] = json!(self.cut.get());
        }
        Some(document)
    }

    fn groups(&self, table: usize, definition: &EntityDefinition) -> BTreeMap<EntityKey, Json> {
        let schema = &self.world.tables[table];
        let rows = &definition.rows;
        let (one, many) = (rows.one.clone(), rows.many.clone());
        let body = Body { fields: Some(&[]), one, many, aggregates: &rows.aggregates, computed: &rows.computed };
        // The text of a part, and the part.
        let part = |by: &GroupBy, row: &Row| match schema.column(&by.expression) {
            Some(column) => Some((normal(&schema.columns[column], &row[column])?, row[column].to_json())),
            None => {
                assert_eq!(by.expression, "u + 1");
                let n = whole(&row[U]).unwrap() + 1;
                Some((n.to_string(), json!(n)))
            }
        };
        let mut groups: BTreeMap<EntityKey, (Vec<Json>, Vec<Documented<'_>>)> = BTreeMap::new();
        for row in self.rows(table).into_iter().filter(|row| meets(definition.filter.as_ref(), row)) {
            let parts: Option<Vec<_>> = definition.group_by.iter().map(|by| part(by, row)).collect();
            if let (Some(parts), Some(document)) = (parts, self.document(table, row, &body)) {
                let (texts, values): (Vec<String>, Vec<Json>) = parts.into_iter().unzip();
                groups.entry(EntityKey::from_parts(texts)).or_insert_with(|| (values, Vec::new())).1.push((row, document));
            }
        }
        let document = |(values, rows): (Vec<Json>, Vec<Documented<'_>>)| {
            let mut document = Map::new();
            for (by, value) in definition.group_by.iter().zip(values) {
                document.insert(by.name.clone(), value);
            }
            let count = rows.len();
            let kept = BTreeMap::from([("rows", (table, rows))]);
            self.aggregate(&definition.aggregates, &kept, &mut document);
            document.insert("many".into(), json!(count > 2));
            Json::Object(document)
        };
        groups.into_iter().map(|(key, group)| (key, document(group))).collect()
    }

    fn aggregate(
        &self,
        aggregates: &BTreeMap<String, Aggregate>,
        kept: &BTreeMap<&str, Children<'_>>,
        document: &mut Map<String, Json>,
    ) {
        for (name, aggregate) in aggregates {
            let (child, rows) = &kept[aggregate.edge.as_str()];
            let schema = &self.world.tables[*child];
            let rows = rows.iter().filter(|(row, _)| meets(aggregate.filter.as_ref(), row));
            let value = |(row, document): &(&Row, Json)| match &aggregate.value {
                None => Value::Null,
                Some(AggregateValue::Expression(expression)) => evaluate(expression, row),
                Some(AggregateValue::Member(member)) => match schema.column(member) {
                    Some(column) => row[column].clone(),
                    None => Value::Int(document[member].as_i64().unwrap()),
                },
            };
            let values: Vec<Value> = rows.map(value).collect();
            let of_decimals = match &aggregate.value {
                Some(AggregateValue::Member(member)) => member == "m",
                Some(AggregateValue::Expression(expression)) => expression == VALUES[1],
                None => false,
            };
            let mut result = aggregated(aggregate.function, &values, of_decimals);
            if let (AggregateFunction::Sum, Some(AggregateValue::Expression(_))) = (aggregate.function, &aggregate.value)
                && of_decimals
                && values.iter().all(|value| *value == Value::Null)
            {
                // How many digits there would be, only a value tells.
                result = json!("0");
            }
            document.insert(name.clone(), result);
        }
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
        let cut = self.cut.get();
        let document = self.whole(table, row, body);
        if document.is_none() {
            // What is not there has no lists that were cut.
            self.cut.set(cut);
        }
        document
    }

    fn whole(&self, table: usize, row: &Row, body: &Body<'_>) -> Option<Json> {
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
        for (name, edge) in &body.one {
            let child = self.table(&edge.table);
            let inner = Body::of_one(name, edge);
            let mut found = self.matching((table, row), &edge.by, child, &edge.references);
            found.retain(|row| meets(edge.filter.as_ref(), row));
            let one = found.first().and_then(|row| self.document(child, row, &inner));
            if one.is_none() && edge.require {
                return None;
            }
            document.insert(name.clone(), one.unwrap_or(Json::Null));
        }
        let mut kept: BTreeMap<&str, Children<'_>> = BTreeMap::new();
        for (name, edge) in &body.many {
            let child = self.table(&edge.table);
            let inner = Body::of_many(name, edge);
            let mut found = self.matching((table, row), &edge.references, child, &edge.by);
            found.retain(|row| meets(edge.filter.as_ref(), row));
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
            let shown = self.limit.get().unwrap_or(usize::MAX);
            if children.len() > shown {
                self.cut.set(true);
            }
            let documents = children.iter().take(shown).map(|(_, document)| document.clone());
            document.insert(name.clone(), Json::Array(documents.collect()));
            kept.insert(name, (child, children));
        }
        self.aggregate(body.aggregates, &kept, &mut document);
        for (name, expression) in body.computed {
            let value = match expression.strip_prefix("size(").and_then(|rest| rest.strip_suffix(')')) {
                Some(edge) => json!(kept[edge].1.len().min(self.limit.get().unwrap_or(usize::MAX))),
                None => evaluate(expression, row).to_json(),
            };
            document.insert(name.clone(), value);
        }
        Some(Json::Object(document))
    }
}
