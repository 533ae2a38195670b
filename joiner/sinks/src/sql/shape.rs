//! What an entity's tables are to look like beside `key`, `version`, `commit_time_ms` and `document`, as the configuration says and the document's schema allows.
//!
//! ```yaml
//! tables:
//!   order:
//!     columns: {status: status, total: total, customer_name: customer.name}
//!     indexes: [[status, placed], [customer_name]]
//!     deleted: keep
//!     children:
//!       order_lines: {list: items, columns: {sku: product.sku, price: price}, indexes: [[sku]]}
//! ```
//!
//! # Children
//! A list of the document as rows of a table of its own: `key` (of the entity), `position` (from 0) and the columns. Its rows are replaced in the transaction that writes the entity's row, after it, and only where that row then has
//! the version that they come from: so they are always those of the document that stands beside them. They go with the entity's row (`ON DELETE CASCADE`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::cells::{Cell, Members, cell};
use super::kind::{Dialect, Kind};
use super::{check_name, quote_in};
use crate::{Error, Rejected};

/// What an entity's table has beside the document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Columns of its table, each with the path of the member that fills it: `{customer_name: customer.name}`. Default: none.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
    /// Indexes, each a list of columns. Default: none.
    #[serde(default)]
    pub indexes: Vec<Vec<String>>,
    /// What becomes of a deleted entity's row: `remove`, or `keep`, marked by the column `deleted`. Default: `remove`.
    #[serde(default)]
    pub deleted: Deleted,
    /// Lists of the document that are rows of tables of their own, by the table's name. Default: none.
    #[serde(default)]
    pub children: BTreeMap<String, ChildConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deleted {
    #[default]
    Remove,
    Keep,
}

/// A list of the document as a table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChildConfig {
    /// The path of the list: `items`.
    pub list: String,
    /// Columns, each with the path of the member within an element.
    pub columns: BTreeMap<String, String>,
    /// As the entity's own. Default: none.
    #[serde(default)]
    pub indexes: Vec<Vec<String>>,
}

/// By the entity's name.
pub type Tables = BTreeMap<String, TableConfig>;

/// What a reader adds to a condition, so that it sees no entities which are kept although they are gone.
pub(crate) fn live(tables: &Tables, entity: &str) -> &'static str {
    let kept = tables.get(entity).is_some_and(|table| table.deleted == Deleted::Keep);
    if kept { " AND NOT deleted" } else { "" }
}

pub(crate) const BASE: [&str; 4] = ["key", "version", "commit_time_ms", "document"];
const CHILD_BASE: [&str; 2] = ["key", "position"];
/// Columns that every table of PostgreSQL has, and the mark of what is deleted.
const TAKEN: [&str; 7] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "deleted"];
/// PostgreSQL cuts longer names, MySQL refuses them.
const NAME_BYTES: usize = 63;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    /// Quoted.
    pub(crate) name: String,
    /// As the catalog has it.
    pub(crate) plain: String,
    pub(crate) path: String,
    pub(crate) kind: Kind,
}

/// A table's columns and indexes, and where in a JSON text its values are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TableShape {
    pub(crate) name: String,
    /// Its name, quoted.
    pub(crate) quoted: String,
    pub(crate) columns: Vec<Column>,
    pub(crate) indexes: Vec<Vec<String>>,
    members: Members,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChildShape {
    pub(crate) list: String,
    pub(crate) table: TableShape,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// What its documents follow from; none where nobody says.
    pub(crate) made_of: Option<String>,
    /// The part of the key space that is written ([`shares::part`](crate::shares::part)); none where it is all.
    pub(crate) part: Option<String>,
    pub(crate) table: TableShape,
    pub(crate) keeps_deleted: bool,
    pub(crate) children: Vec<ChildShape>,
    pub(crate) dialect: Dialect,
}

/// The shapes of all entities that a sink was prepared for.
#[derive(Debug, Clone)]
pub struct Shapes {
    dialect: Dialect,
    part: Option<String>,
    shapes: HashMap<Arc<str>, Arc<Shape>>,
}

/// A change, and the values of its columns and children.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    pub(crate) change: &'a EntityChange,
    pub(crate) cells: Vec<Cell<'a>>,
    /// By child table, by element.
    pub(crate) children: Vec<Vec<Vec<Cell<'a>>>>,
}

impl Shapes {
    /// An error names what cannot be, with its place in the configuration.
    pub(crate) fn resolve(purpose: &str, dialect: Dialect, tables: &Tables, entities: &[EntityInfo]) -> Result<Self, Error> {
        let mut names: BTreeSet<&str> = entities.iter().map(|entity| &*entity.name).collect();
        for (entity, config) in tables {
            if !names.contains(entity.as_str()) {
                let known: Vec<&str> = entities.iter().map(|entity| &*entity.name).collect();
                return Err(wrong(purpose, entity, &format!("there is no such entity here; there are {}", known.join(", "))));
            }
            if let Some(twice) = config.children.keys().find(|name| !names.insert(name.as_str())) {
                return Err(wrong(purpose, entity, &format!("children.{twice}: another table has that name")));
            }
        }
        let plain = TableConfig::default();
        let resolve = |info: &EntityInfo| {
            let config = tables.get(&*info.name).unwrap_or(&plain);
            let shape = Shape::resolve(dialect, config, info).map_err(|message| wrong(purpose, &info.name, &message))?;
            for child in &shape.children {
                check_name(purpose, &child.table.name)?;
            }
            Ok((info.name.clone(), Arc::new(shape)))
        };
        Ok(Self { dialect, part: None, shapes: entities.iter().map(resolve).collect::<Result<_, Error>>()? })
    }

    /// The same, where it is known what documents follow from.
    pub(crate) fn made_of(mut self, made_of: &BTreeMap<Arc<str>, String>) -> Self {
        for (entity, shape) in &mut self.shapes {
            Arc::make_mut(shape).made_of = made_of.get(entity).cloned();
        }
        self
    }

    /// Of a writer that writes this part.
    pub(crate) fn of_part(mut self, part: Option<String>) -> Self {
        self.shapes.values_mut().for_each(|shape| Arc::make_mut(shape).part.clone_from(&part));
        Self { part, ..self }
    }

    /// Before anything is known.
    pub(crate) fn none(dialect: Dialect) -> Self {
        Self { dialect, part: None, shapes: HashMap::new() }
    }

    /// That of an entity which nothing was said of has nothing but the document.
    pub(crate) fn of(&self, entity: &str) -> Arc<Shape> {
        let plain = || {
            Arc::new(Shape {
                made_of: None,
                part: self.part.clone(),
                table: TableShape::plain(entity, self.dialect),
                keeps_deleted: false,
                children: Vec::new(),
                dialect: self.dialect,
            })
        };
        self.shapes.get(entity).map_or_else(plain, Arc::clone)
    }

    /// Whether the sink was prepared for this entity.
    pub(crate) fn has(&self, entity: &str) -> bool {
        self.shapes.contains_key(entity)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Shape>> {
        self.shapes.values()
    }

    /// Changes with the values of their columns, and those whose values a column does not take.
    pub(crate) fn rows<'a>(&self, changes: Vec<&'a EntityChange>, rejected: &mut Vec<Rejected>) -> Vec<Row<'a>> {
        let mut rows = Vec::with_capacity(changes.len());
        for change in changes {
            let shape = self.shapes.get(&change.entity).filter(|shape| !shape.is_plain());
            match shape.zip(change.document.as_deref()).map(|(shape, document)| shape.read(document)) {
                None => rows.push(Row { change, cells: Vec::new(), children: Vec::new() }),
                Some(Ok((cells, children))) => rows.push(Row { change, cells, children }),
                Some(Err(reason)) => {
                    let reason = format!("{} {}: {reason}", change.entity, change.key);
                    rejected.push(Rejected { change: change.clone(), reason });
                }
            }
        }
        rows
    }
}

/// Of an entity, by child table, by element.
type Children<'d> = Vec<Vec<Vec<Cell<'d>>>>;

impl Shape {
    fn resolve(dialect: Dialect, config: &TableConfig, info: &EntityInfo) -> Result<Self, String> {
        let schema = &info.document_schema;
        let table = TableShape::resolve(dialect, &info.name, &config.columns, &config.indexes, schema, &BASE)?;
        let children = config.children.iter().map(|(name, child)| {
            let of = |message: String| format!("children.{name}: {message}");
            let list = member(schema, &child.list).map_err(of)?;
            let Some(element) = alternatives(list).find_map(|list| list.get("items")) else {
                return Err(of(format!("{} is no list", child.list)));
            };
            let table = TableShape::resolve(dialect, name, &child.columns, &child.indexes, element, &CHILD_BASE).map_err(of)?;
            Ok(ChildShape { list: child.list.clone(), table })
        });
        let children = children.collect::<Result<Vec<_>, String>>()?;
        let mut shape =
            Self { made_of: None, part: None, table, keeps_deleted: config.deleted == Deleted::Keep, children, dialect };
        let columns = shape.table.columns.len();
        for (nth, child) in shape.children.iter().enumerate() {
            shape.table.members.add(child.list.split('.'), columns + nth);
        }
        Ok(shape)
    }

    /// Whether the table has nothing but the document.
    pub(crate) fn is_plain(&self) -> bool {
        self.table.columns.is_empty() && self.children.is_empty()
    }

    fn read<'d>(&self, document: &'d str) -> Result<(Vec<Cell<'d>>, Children<'d>), String> {
        let not_json = |error: serde_json::Error| format!("the document is not JSON: {error}");
        let columns = self.table.columns.len();
        let mut found = vec![None; columns + self.children.len()];
        self.table.members.find(document, &mut found).map_err(not_json)?;
        let (values, lists) = found.split_at(columns);
        let cells = self.table.cells(values, self.dialect)?;
        let mut children = Vec::with_capacity(lists.len());
        for (child, list) in self.children.iter().zip(lists) {
            let list = list.filter(|list| *list != "null").unwrap_or("[]");
            let elements: Vec<&RawValue> = serde_json::from_str(list).map_err(|_| format!("{} is no list", child.list))?;
            let mut rows = Vec::with_capacity(elements.len());
            for (position, element) in elements.into_iter().enumerate() {
                let mut found = vec![None; child.table.columns.len()];
                child.table.members.find(element.get(), &mut found).map_err(not_json)?;
                let cells = child.table.cells(&found, self.dialect);
                rows.push(cells.map_err(|reason| format!("{}[{position}], table {}, {reason}", child.list, child.table.name))?);
            }
            children.push(rows);
        }
        Ok((cells, children))
    }
}

impl TableShape {
    fn resolve(
        dialect: Dialect,
        name: &str,
        columns: &BTreeMap<String, String>,
        indexes: &[Vec<String>],
        schema: &Value,
        base: &[&str],
    ) -> Result<Self, String> {
        let mut resolved: Vec<Column> = Vec::with_capacity(columns.len());
        let mut members = Members::default();
        for (name, path) in columns {
            check_column(name, base)?;
            if resolved.iter().any(|column| column.plain.eq_ignore_ascii_case(name)) {
                return Err(format!("columns.{name}: another column's name differs in upper and lower case alone"));
            }
            let kind = Kind::of(member(schema, path).map_err(|message| format!("columns.{name}: {message}"))?);
            if let (Dialect::Mysql, Kind::Decimal(Some((_, 31..)))) = (dialect, kind) {
                return Err(format!("columns.{name}: a decimal of MySQL has at most 30 digits after the point"));
            }
            members.add(path.split('.'), resolved.len());
            resolved.push(Column { name: quote_in(dialect, name), plain: name.clone(), path: path.clone(), kind });
        }
        for index in indexes {
            let known = |column: &String| base.contains(&column.as_str()) && column != "document" || columns.contains_key(column);
            match index.iter().find(|column| !known(column)) {
                Some(unknown) => return Err(format!("indexes: there is no column {unknown:?} to index")),
                None if index.is_empty() => return Err("indexes: one has no columns".to_owned()),
                None => {}
            }
        }
        Ok(Self { columns: resolved, indexes: indexes.to_vec(), members, ..Self::plain(name, dialect) })
    }

    fn plain(name: &str, dialect: Dialect) -> Self {
        let quoted = quote_in(dialect, name);
        Self { name: name.to_owned(), quoted, columns: Vec::new(), indexes: Vec::new(), members: Members::default() }
    }

    fn cells<'d>(&self, found: &[Option<&'d str>], dialect: Dialect) -> Result<Vec<Cell<'d>>, String> {
        let of = |(column, raw): (&Column, &Option<&'d str>)| {
            cell(column.kind, dialect, *raw).map_err(|reason| format!("column {}: {reason}", column.plain))
        };
        self.columns.iter().zip(found).map(of).collect()
    }

    /// The quoted names, joined by commas, each after a comma: to stand behind the base columns.
    pub(crate) fn names(&self) -> String {
        self.columns.iter().fold(String::new(), |text, column| format!("{text}, {}", column.name))
    }
}

fn check_column(name: &str, base: &[&str]) -> Result<(), String> {
    let refused = if base.iter().chain(&TAKEN).any(|taken| taken.eq_ignore_ascii_case(name)) {
        "that name is taken"
    } else if name.len() > NAME_BYTES {
        "a column's name has at most 63 bytes"
    } else if name.is_empty() || name.ends_with(' ') || name.contains(char::is_control) {
        "a column's name must not be empty, nor hold control characters, nor end in a blank"
    } else {
        return Ok(());
    };
    Err(format!("columns.{name}: {refused}"))
}

/// The schema of the member at a path.
fn member<'s>(schema: &'s Value, path: &str) -> Result<&'s Value, String> {
    let below = |schema: &'s Value, name: &str| alternatives(schema).find_map(|schema| schema["properties"].get(name));
    path.split('.').try_fold(schema, below).ok_or_else(|| {
        let known = schema["properties"].as_object().map(|members| members.keys().cloned().collect::<Vec<_>>().join(", "));
        format!("the document has no member {path:?}; at its top there are {}", known.unwrap_or_default())
    })
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let choices = schema["anyOf"].as_array().map_or(&[][..], Vec::as_slice);
    std::iter::once(schema).chain(choices)
}

fn wrong(purpose: &str, entity: &str, message: &str) -> Error {
    Error::misconfigured(purpose, format!("tables.{entity}: {message}"), "Correct the sink's `tables`")
}

/// The name of an index: it says what it is over, is never cut, and is another where the index is.
pub(crate) fn index_name(table: &str, columns: &[String], definition: &str) -> String {
    // FNV-1a: a name must be the same tomorrow.
    let hash = definition.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let said = format!("{INDEX_PREFIX}{table}_{}", columns.join("_"));
    let mut room = NAME_BYTES - 9;
    while !said.is_char_boundary(room.min(said.len())) {
        room -= 1;
    }
    format!("{}_{hash:08x}", &said[..room.min(said.len())])
}

/// Indexes whose names begin so are ours.
pub(crate) const INDEX_PREFIX: &str = "_tributary_";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::borrow::Cow;

    use serde_json::json;

    use super::*;

    fn order() -> EntityInfo {
        let item = json!({"type": "object", "properties": {"price": {"type": "string", "format": "decimal", "x-sql-type": "decimal(6,2)"}, "sku": {"type": "string"}}});
        let schema = json!({"type": "object", "properties": {
            "id": {"type": "integer", "x-sql-type": "int"},
            "customer": {"anyOf": [{"type": "object", "properties": {"name": {"type": "string"}}}, {"type": "null"}]},
            "items": {"type": "array", "items": item},
        }});
        EntityInfo { name: "order".into(), key: Vec::new(), document_schema: schema }
    }

    fn resolve(yaml: &str) -> Result<Shapes, Error> {
        Shapes::resolve("sink s", Dialect::Postgres, &serde_yaml_ng::from_str(yaml).unwrap(), &[order()])
    }

    #[test]
    fn documents_are_read_into_columns_and_children() {
        let shapes = resolve(
            "{order: {columns: {number: id, name: customer.name, whole: customer}, children: {order_item: {list: items, columns: {price: price, sku: sku}}}}}",
        )
        .unwrap();
        let change = |document: &str| EntityChange {
            entity: "order".into(),
            key: schemas::change::EntityKey::from_text("7"),
            version: schemas::Lsn::MAX,
            commit_time_ms: 0,
            document: Some(document.into()),
        };
        let all = [
            change(r#"{"id": 7, "customer": {"name": "Ann"}, "items": [{"price": "1.50", "sku": null}, {"sku": "x"}]}"#),
            change(r#"{"id": 7, "customer": null}"#),
            change(r#"{"id": 7, "items": [{"price": "1.50"}, {"price": "12345.00"}]}"#),
            change(r#"{"id": "x"}"#),
            change(r#"{"id": 7"#),
        ];
        let mut rejected = Vec::new();
        let rows = shapes.rows(all.iter().collect(), &mut rejected);
        let text = |text: &'static str| Cell::Text(Cow::Borrowed(text));
        assert_eq!(rows.len(), 2);
        // In the order of the columns' names.
        assert_eq!(rows[0].cells, [text("Ann"), Cell::Int(7), text(r#"{"name": "Ann"}"#)]);
        assert_eq!(rows[0].children, [[[text("1.50"), Cell::Null], [Cell::Null, text("x")]]]);
        assert_eq!(rows[1].cells, [Cell::Null, Cell::Int(7), Cell::Null]);
        assert_eq!(rows[1].children, [Vec::<Vec<Cell<'_>>>::new()]);
        let reasons: Vec<&str> = rejected.iter().map(|rejected| rejected.reason.as_str()).collect();
        assert_eq!(reasons[0], "order 7: items[1], table order_item, column price: \"12345.00\" is no value of numeric(6,2)");
        assert_eq!(reasons[1], "order 7: column number: \"x\" is no value of integer");
        assert!(reasons[2].contains("not JSON"), "{}", reasons[2]);
    }

    #[test]
    fn what_cannot_be_is_named_with_its_place() {
        for (yaml, said) in [
            ("{orders: {}}", "there are order"),
            ("{order: {columns: {a: b}}}", "tables.order: columns.a: the document has no member \"b\"; at its top there are id"),
            ("{order: {columns: {Key: id}}}", "taken"),
            ("{order: {columns: {deleted: id}}}", "taken"),
            ("{order: {columns: {xmin: id}}}", "taken"),
            ("{order: {columns: {a: id, A: id}}}", "alone"),
            ("{order: {columns: {'a ': id}}}", "blank"),
            ("{order: {columns: {aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: id}}}", "63 bytes"),
            ("{order: {indexes: [[id]]}}", "no column \"id\""),
            ("{order: {indexes: [[document]]}}", "no column \"document\""),
            ("{order: {indexes: [[]]}}", "no columns"),
            ("{order: {children: {order: {list: items, columns: {}}}}}", "another table has that name"),
            ("{order: {children: {Lines: {list: items, columns: {}}}}}", "cannot be a table's name"),
            ("{order: {children: {lines: {list: id, columns: {}}}}}", "children.lines: id is no list"),
            ("{order: {children: {lines: {list: items, columns: {position: sku}}}}}", "taken"),
            ("{order: {children: {lines: {list: items, columns: {a: b.c}}}}}", "there are price, sku"),
        ] {
            let error = resolve(yaml).err().unwrap();
            assert_eq!(error.class(), schemas::ErrorClass::Misconfigured);
            assert!(error.to_string().contains(said), "{yaml}: {error}");
        }
        assert!(resolve("{order: {columns: {select: id, 'a \"b': id, user: id}, indexes: [[select, version]]}}").is_ok());
    }

    #[test]
    fn names_of_indexes_fit_and_differ() {
        let name = |table: &str, columns: &[&str]| {
            let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
            index_name(table, &columns, &format!("{table}{columns:?}"))
        };
        assert!(name("order", &["status", "placed"]).starts_with("_tributary_order_status_placed_"));
        let long = "ä".repeat(30);
        let (a, b) = (name(&long, &["a"]), name(&long, &["b"]));
        assert!(a.len() <= NAME_BYTES && a != b, "{a} {b}");
    }
}
