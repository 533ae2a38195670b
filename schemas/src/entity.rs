//! Entity definitions: which rows make an entity, and what its document looks like. A definition is a tree over source tables, kept by the user as YAML, one
//! entity a file:
//!
//! ```yaml
//! entity: order                    # its name: in URLs, in sinks
//! table: dbo.orders                # the root
//! key: [id]                        # default: the table's primary key
//! fields: [id, status, {placed: placed_at}]   # a column, or {name in the document: column}; default: every column
//! one:                             # a reference: this table holds the other's key
//!   customer:
//!     table: dbo.customers
//!     by: [customer_id]            # columns of the parent that hold the reference
//!     references: [id]             # default: the referenced table's primary key
//!     require: true                # no such row: the parent is left out (inner join); default false: the field is null
//! many:                            # children: the other table holds this one's key
//!   items:
//!     table: dbo.order_items
//!     by: [order_id]               # columns of the child that hold the parent's key
//!     references: [id]             # default: the parent's key
//!     order_by: [line_no, -price]  # default: the child's key; `-` descends
//!     one: {product: {table: dbo.products, by: [product_id]}}
//! aggregates:                      # over this node's own children
//!   item_count: {count: items}
//!   total: {sum: items.amount}     # by column, exact for decimals
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::table::TableName;

/// An entity definition as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntityDefinition {
    /// Lower-case letters, digits, `_` and `-`, starting with a letter.
    pub entity: String,
    pub table: TableName,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
}

/// A reference to one row of another table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OneEdge {
    pub table: TableName,
    /// Columns of the parent's table that hold the reference.
    pub by: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub require: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
}

/// The rows of another table that refer to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManyEdge {
    pub table: TableName,
    /// Columns of the child's table that hold the parent's key.
    pub by: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order_by: Vec<OrderBy>,
    /// Without any child, the parent is left out.
    #[serde(default, skip_serializing_if = "is_false")]
    pub require: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A column in the document, under its own name or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub column: String,
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.name == self.column {
            serializer.serialize_str(&self.column)
        } else {
            serializer.collect_map([(&self.name, &self.column)])
        }
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a column, or {name in the document: column}")]
        enum Written {
            Plain(String),
            Renamed(BTreeMap<String, String>),
        }
        match Written::deserialize(deserializer)? {
            Written::Plain(column) => Ok(Self { name: column.clone(), column }),
            Written::Renamed(map) => {
                let mut pairs = map.into_iter();
                match (pairs.next(), pairs.next()) {
                    (Some((name, column)), None) => Ok(Self { name, column }),
                    _ => Err(D::Error::custom("a renamed field has exactly one pair: {name in the document: column}")),
                }
            }
        }
    }
}

/// A column that children are ordered by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderBy {
    pub column: String,
    pub descending: bool,
}

impl Serialize for OrderBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}{}", if self.descending { "-" } else { "" }, self.column))
    }
}

impl<'de> Deserialize<'de> for OrderBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.strip_prefix('-') {
            Some(column) => Self { column: column.to_owned(), descending: true },
            None => Self { column: text, descending: false },
        })
    }
}

/// A value computed over the children of a node. Written as a map of one member: `{count: items}`, `{sum: items.amount}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenAggregate", into = "WrittenAggregate")]
pub enum Aggregate {
    /// How many children the named `many` edge has.
    Count(String),
    /// The sum of a column over the children of a `many` edge: `edge.column`. NULLs are left out; no children: 0.
    Sum(Path),
}

/// YAML has tags for enums, which nobody wants to write: so a map, with exactly one of its members.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAggregate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<Path>,
}

impl TryFrom<WrittenAggregate> for Aggregate {
    type Error = &'static str;

    fn try_from(written: WrittenAggregate) -> Result<Self, Self::Error> {
        match (written.count, written.sum) {
            (Some(edge), None) => Ok(Self::Count(edge)),
            (None, Some(path)) => Ok(Self::Sum(path)),
            _ => Err("an aggregate has exactly one member: {count: items} or {sum: items.amount}"),
        }
    }
}

impl From<Aggregate> for WrittenAggregate {
    fn from(aggregate: Aggregate) -> Self {
        match aggregate {
            Aggregate::Count(edge) => Self { count: Some(edge), sum: None },
            Aggregate::Sum(path) => Self { count: None, sum: Some(path) },
        }
    }
}

/// `edge.column`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub edge: String,
    pub column: String,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.edge, self.column)
    }
}

impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.split_once('.') {
            Some((edge, column)) => Ok(Self { edge: edge.to_owned(), column: column.to_owned() }),
            None => Err(D::Error::custom(format!("{text:?}: expected edge.column, such as items.amount"))),
        }
    }
}

/// What sinks and the API need to know of an entity: drawn from its definition and the tables' contracts when they are resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityInfo {
    pub name: std::sync::Arc<str>,
    /// The parts of the entity key, in order: the field's name in the document where it is there, else the column's, and its type.
    pub key: Vec<(String, crate::table::SqlType)>,
    /// JSON Schema of the document.
    pub document_schema: serde_json::Value,
}
