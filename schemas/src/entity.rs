//! Entity definitions: which rows make an entity, and what its document looks like. A definition is a tree over source tables, kept by the user as YAML, one
//! entity a file (`docs/entities.md` explains it with examples):
//!
//! ```yaml
//! entity: order                    # its name: in URLs, in sinks
//! table: dbo.orders                # the root
//! key: [id]                        # default: the table's primary key
//! where: status != "DRAFT"         # which rows count; CEL over the table's columns
//! fields: [id, status, {placed: placed_at}]   # a column, or {name in the document: column}; default: every column
//! one:                             # a reference: this table holds the other's key
//!   customer:
//!     table: dbo.customers
//!     by: [customer_id]            # columns of the parent that hold the reference
//!     references: [id]             # default: the referenced table's primary key
//!     require: true                # no such row: the parent is left out (inner join); default false: the field is null
//!     fan_out: lazy                # many orders of one customer are told of its changes bit by bit
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
//!   net: {sum: items, value: price * quantity, where: not_returned}
//! limits: {children: 1000, bytes: 1000000}   # lists are cut there, and the document says so
//! time_to_live: {column: placed_at, duration: 90d}   # then the entity is gone, although its row is not
//! computed:                        # CEL over this node's document, and its other columns
//!   large: total > 1000 && customer.tier == "gold"
//! ```
//!
//! With `group_by`, the rows of the table are rolled up: one entity for each group, with aggregates over its `rows`. With `of` in place of `table`, the rows are the documents of another entity.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::table::TableName;

mod schema;
mod time_to_live;

pub use schema::definition_schema;
pub use time_to_live::{ParseSpanError, Span, TimeToLive};

/// An entity definition as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntityDefinition {
    /// Lower-case letters, digits, `_` and `-`, starting with a letter.
    pub entity: String,
    /// The root; none where the documents of another entity are rolled up.
    #[serde(default = "TableName::none", skip_serializing_if = "TableName::is_none")]
    pub table: TableName,
    /// The entity whose documents are rolled up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    /// Rows that do not meet it do not take part.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<TimeToLive>,
    /// Rolls the rows up: an entity for each group of rows that agree in these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<GroupBy>,
    /// What each row of a group is made of, for the aggregates over them.
    #[serde(default, skip_serializing_if = "Rows::is_empty")]
    pub rows: Rows,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
    /// Fields that are computed of the node's document and columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computed: BTreeMap<String, String>,
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
    /// Rows that do not meet it do not take part.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// When those who refer to a row that has changed are told.
    #[serde(default, skip_serializing_if = "FanOut::is_strict")]
    pub fan_out: FanOut,
    /// How many levels more the edge repeats itself within itself: for tables that refer to themselves.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
    /// Fields that are computed of the node's document and columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computed: BTreeMap<String, String>,
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
    /// Rows that do not meet it do not take part.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How many levels more the edge repeats itself within itself: for tables that refer to themselves.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<Field>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
    /// Fields that are computed of the node's document and columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computed: BTreeMap<String, String>,
}

impl EntityDefinition {
    /// Every column of a table, and nothing else.
    pub fn new(entity: impl Into<String>, table: TableName) -> Self {
        Self {
            entity: entity.into(),
            table,
            of: None,
            key: Vec::new(),
            filter: None,
            limits: None,
            time_to_live: None,
            group_by: Vec::new(),
            rows: Rows::default(),
            fields: None,
            one: BTreeMap::new(),
            many: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            computed: BTreeMap::new(),
        }
    }
}

impl EntityDefinition {
    /// Whether documents past their limits are set aside.
    pub fn sets_aside(&self) -> bool {
        self.limits.is_some_and(|limits| limits.exceeded == Exceeded::DeadLetter)
    }
}

impl OneEdge {
    /// To the primary key of a table.
    pub fn new(table: TableName, by: Vec<String>) -> Self {
        Self {
            table,
            by,
            references: Vec::new(),
            require: false,
            filter: None,
            fan_out: FanOut::Strict,
            repeat: 0,
            fields: None,
            one: BTreeMap::new(),
            many: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            computed: BTreeMap::new(),
        }
    }
}

impl ManyEdge {
    /// The rows of a table that hold the parent's key.
    pub fn new(table: TableName, by: Vec<String>) -> Self {
        Self {
            table,
            by,
            references: Vec::new(),
            order_by: Vec::new(),
            require: false,
            filter: None,
            repeat: 0,
            fields: None,
            one: BTreeMap::new(),
            many: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            computed: BTreeMap::new(),
        }
    }
}

/// When the documents that refer to a changed row, directly or through others, are told of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FanOut {
    /// With everything else that was committed at the same time: nothing is seen before all of them are assembled.
    #[default]
    Strict,
    /// Where they are many, bit by bit, beside later changes.
    Lazy,
}

impl FanOut {
    fn is_strict(&self) -> bool {
        *self == Self::Strict
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

/// How large a document may become, and what becomes of one that would be larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Children of any one list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub children: Option<usize>,
    /// Bytes of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<usize>,
    #[serde(default)]
    pub exceeded: Exceeded,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exceeded {
    /// Lists are cut, and the document says so: it has a member `truncated`.
    #[default]
    Truncate,
    /// The joiner stops.
    Stop,
    /// The document is set aside: what was told of it last stands until it fits.
    DeadLetter,
}

impl Limits {
    /// The member that says whether lists were cut.
    pub const MARKER: &'static str = "truncated";

    /// Whether documents have [`MARKER`](Self::MARKER).
    pub fn is_marked(&self) -> bool {
        self.exceeded == Exceeded::Truncate
    }
}

/// What each row of a group is made of. Nothing of it stands in the group's document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one: BTreeMap<String, OneEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub many: BTreeMap<String, ManyEdge>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregates: BTreeMap<String, Aggregate>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computed: BTreeMap<String, String>,
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.one.is_empty() && self.many.is_empty() && self.aggregates.is_empty() && self.computed.is_empty()
    }
}

/// What rows are grouped by: a column, or `{name in the document: CEL over the row's columns}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupBy {
    pub name: String,
    pub expression: String,
}

impl Serialize for GroupBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Field { name: self.name.clone(), column: self.expression.clone() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for GroupBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Field { name, column } = Field::deserialize(deserializer)?;
        Ok(Self { name, expression: column })
    }
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

/// A value computed over the children of a node. Written as a map with the function: `{count: items}`, `{sum: items.amount}`, `{any: items, value: quantity > 10}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenAggregate", into = "WrittenAggregate")]
pub struct Aggregate {
    pub function: AggregateFunction,
    /// The name of the `many` edge; `rows` in a roll-up.
    pub edge: String,
    pub value: Option<AggregateValue>,
    /// CEL over the child's columns: only children that meet it count.
    pub filter: Option<String>,
}

/// What an aggregate does with the values. Sums, averages, extremes and lists leave NULLs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AggregateFunction {
    /// How many children there are.
    Count,
    /// Without any value: 0.
    Sum,
    /// Without any value, as all that follow: null.
    Min,
    Max,
    /// Exact for whole numbers and decimals, with six digits after the point or as many as the values have.
    Avg,
    /// The different values, in order; without any: an empty list.
    Distinct,
    /// Whether some value is true; without any: false.
    Any,
    /// Whether no child's value is anything but true.
    All,
    /// The value of the first child in the edge's order, be it null.
    First,
    Last,
}

impl AggregateFunction {
    pub const ALL: [Self; 10] =
        [Self::Count, Self::Sum, Self::Min, Self::Max, Self::Avg, Self::Distinct, Self::Any, Self::All, Self::First, Self::Last];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
            Self::Distinct => "distinct",
            Self::Any => "any",
            Self::All => "all",
            Self::First => "first",
            Self::Last => "last",
        }
    }
}

/// What is aggregated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AggregateValue {
    /// A column of the child, or one of its own aggregates or computed fields.
    Member(String),
    /// CEL over the child's columns.
    Expression(String),
}

impl Aggregate {
    pub fn count(edge: impl Into<String>) -> Self {
        Self { function: AggregateFunction::Count, edge: edge.into(), value: None, filter: None }
    }

    /// A function of a member of the children.
    pub fn of(function: AggregateFunction, edge: impl Into<String>, member: impl Into<String>) -> Self {
        Self { function, edge: edge.into(), value: Some(AggregateValue::Member(member.into())), filter: None }
    }
}

/// YAML has tags for enums, which nobody wants to write: so a map, with the function as a member.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenAggregate {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sum: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    avg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    distinct: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    any: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    all: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
}

impl WrittenAggregate {
    fn function(&mut self, function: AggregateFunction) -> &mut Option<String> {
        match function {
            AggregateFunction::Count => &mut self.count,
            AggregateFunction::Sum => &mut self.sum,
            AggregateFunction::Min => &mut self.min,
            AggregateFunction::Max => &mut self.max,
            AggregateFunction::Avg => &mut self.avg,
            AggregateFunction::Distinct => &mut self.distinct,
            AggregateFunction::Any => &mut self.any,
            AggregateFunction::All => &mut self.all,
            AggregateFunction::First => &mut self.first,
            AggregateFunction::Last => &mut self.last,
        }
    }
}

impl TryFrom<WrittenAggregate> for Aggregate {
    type Error = String;

    fn try_from(mut written: WrittenAggregate) -> Result<Self, Self::Error> {
        let found = AggregateFunction::ALL.map(|function| (function, written.function(function).take()));
        let mut found = found.into_iter().filter_map(|(function, of)| Some((function, of?)));
        let (Some((function, of)), None) = (found.next(), found.next()) else {
            return Err("an aggregate has exactly one function: {count: items}, {sum: items.amount}, {sum: items, value: price * quantity}".into());
        };
        let name = function.name();
        let (edge, value) = match (of.split_once('.'), written.value) {
            (Some((edge, member)), None) if function != AggregateFunction::Count => {
                (edge.to_owned(), Some(AggregateValue::Member(member.to_owned())))
            }
            (None, Some(expression)) if function != AggregateFunction::Count => {
                (of, Some(AggregateValue::Expression(expression)))
            }
            (None, None) if function == AggregateFunction::Count => (of, None),
            _ if function == AggregateFunction::Count => {
                return Err(format!("{of:?}: expected {{count: items}}, or {{count: items, where: …}} to count some of them"));
            }
            _ => {
                return Err(format!(
                    "{of:?}: expected edge.column, such as {{{name}: items.amount}}, or {{{name}: items, value: …}}"
                ));
            }
        };
        Ok(Self { function, edge, value, filter: written.filter })
    }
}

impl From<Aggregate> for WrittenAggregate {
    fn from(aggregate: Aggregate) -> Self {
        let mut written = Self { filter: aggregate.filter, ..Self::default() };
        let (of, value) = match aggregate.value {
            Some(AggregateValue::Member(member)) => (format!("{}.{member}", aggregate.edge), None),
            Some(AggregateValue::Expression(expression)) => (aggregate.edge, Some(expression)),
            None => (aggregate.edge, None),
        };
        *written.function(aggregate.function) = Some(of);
        written.value = value;
        written
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
