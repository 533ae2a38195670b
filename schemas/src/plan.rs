//! Entity definitions resolved against the tables' schemas: what the joiner works by.
//!
//! Resolving is where every mistake in a definition is found: an unknown table, column or edge, a key that is missing, join columns that cannot be compared. What comes out holds
//! indexes instead of names and needs no further checks. A plan is a tree of [`Node`]s, parents before their children, the root first; a table may stand at several nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod compute;
mod document;
mod error;
mod instant;
mod key_type;
mod of;
mod resolve;
mod time_to_live;
mod uses;
mod value_type;

pub use error::{Mistake, PlanError};
pub use instant::unix_ms;
pub use key_type::KeyType;
pub use time_to_live::TimeToLive;
pub use uses::{Role, Use};

use expressions::{Expression, Type};

use crate::TableName;
use crate::change::EntityKey;
use crate::entity::{EntityDefinition, EntityInfo};
use crate::table::TableSchema;

/// How deep a definition may go. A tree that refers to itself without end is caught by it.
pub const DEPTH_LIMIT: usize = 16;

/// Index of a node within its plan; the root is 0.
pub type NodeId = usize;

/// Column numbers from here on are not columns of the table, but what is derived of them: [`Plan::derived`] from its first on.
pub const DERIVED: usize = 1 << 32;

/// An entity definition, resolved.
#[derive(Debug, Clone)]
pub struct Plan {
    pub entity: Arc<str>,
    pub definition: EntityDefinition,
    /// The columns of the root that make the entity key.
    pub key: Vec<KeyPart>,
    pub nodes: Vec<Node>,
    /// Values that are computed of a row when it comes in, and kept with it.
    pub derived: Vec<Derived>,
    /// The entity is a roll-up of the root's rows that agree in the entity key.
    pub group: Option<Group>,
    pub time_to_live: Option<TimeToLive>,
    /// Whose documents the rows are made of, where they are no table's.
    pub input: Option<Input>,
}

/// The entity whose documents a roll-up is over.
#[derive(Debug, Clone)]
pub struct Input {
    pub plan: Box<Plan>,
    /// What is made of a document, in the columns behind those of the entity key.
    pub columns: Vec<InputColumn>,
}

/// A value that is made of a document.
#[derive(Debug, Clone)]
pub enum InputColumn {
    /// As it stands there.
    Member(String),
    Expression(Arc<Expression>),
}

impl InputColumn {
    pub const fn is_member(&self) -> bool {
        matches!(self, Self::Member(_))
    }

    /// The member's name, or the expression.
    pub fn text(&self) -> &str {
        match self {
            Self::Member(name) => name,
            Self::Expression(expression) => expression.text(),
        }
    }
}

/// A value that is computed of the columns of a row.
#[derive(Debug, Clone)]
pub struct Derived {
    pub table: TableName,
    pub expression: Arc<Expression>,
    /// The column of each of the expression's variables.
    pub columns: Vec<usize>,
}

/// What the document of a roll-up is made of, besides its rows.
#[derive(Debug, Clone)]
pub struct Group {
    /// In the order of the entity key.
    pub fields: Vec<ResolvedField>,
    /// Over node 0.
    pub aggregates: Vec<ResolvedAggregate>,
    pub computed: Vec<Computed>,
}

/// A field that is computed of the document that it stands in.
#[derive(Debug, Clone)]
pub struct Computed {
    pub name: String,
    pub expression: Arc<Expression>,
    /// What each of the expression's variables stands for.
    pub inputs: Vec<ComputedInput>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputedInput {
    Column(usize),
    /// A `one` or `many` node of this node.
    Edge(NodeId),
    /// An aggregate of this node, or of the group.
    Aggregate(usize),
}

/// A column that is part of a key, and how it is compared there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyPart {
    /// Index into the table's columns.
    pub column: usize,
    pub key_type: KeyType,
}

/// One place of a table in an entity.
#[derive(Debug, Clone)]
pub struct Node {
    /// From the root: `order.items.product`.
    pub path: String,
    /// The member's name in the parent's document; the entity's name for the root.
    pub name: String,
    pub table: Arc<TableSchema>,
    pub parent: Option<NodeId>,
    pub edge: Edge,
    /// Empty for the root.
    pub link: Vec<Link>,
    /// Whether the parent is left out when there is no such row.
    pub require: bool,
    /// Of a `one` edge: whether those who refer to a row may be told of its changes bit by bit.
    pub lazy: bool,
    /// The (derived) column that says whether a row takes part.
    pub filter: Option<usize>,
    /// In the order of the document.
    pub fields: Vec<ResolvedField>,
    /// In the order of the document.
    pub ones: Vec<NodeId>,
    pub manys: Vec<NodeId>,
    pub aggregates: Vec<ResolvedAggregate>,
    /// After the aggregates.
    pub computed: Vec<Computed>,
    /// The table's own key: its primary key, or for a root table without one the entity key.
    pub own_key: Vec<KeyPart>,
}

/// How a node hangs on its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edge {
    Root,
    /// At most one row; of several that match, the one with the least own key.
    One,
    Many {
        order_by: Vec<OrderPart>,
    },
}

/// A column that children are ordered by. Children that are equal in all of them stand in the order of their own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderPart {
    pub column: usize,
    pub key_type: KeyType,
    pub descending: bool,
}

/// A pair of columns that must be equal for parent and child to belong together. NULL equals nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub parent_column: usize,
    pub own_column: usize,
    /// In common to both columns.
    pub key_type: KeyType,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedField {
    pub name: String,
    pub column: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedAggregate {
    pub name: String,
    /// The `many` node that it is computed over; node 0 for those of a group.
    pub over: NodeId,
    pub kind: AggregateKind,
    /// What is aggregated; `None` for a count.
    pub value: Option<AggregateSource>,
    /// The (derived) column that says whether a child counts.
    pub filter: Option<usize>,
    /// The type of the values.
    pub of: Type,
}

/// Where the values of an aggregate stand in the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateSource {
    Column(usize),
    /// The nth of its aggregates, then of its computed fields.
    Member(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregateKind {
    /// How many children stand in the document.
    Count,
    /// Whole numbers: the sum is a number.
    SumInt,
    /// Exact: the sum is a string with this scale, or a greater one where a value has it.
    SumDecimal {
        scale: u8,
    },
    SumFloat,
    Min,
    Max,
    /// Exact, as a string.
    AvgDecimal,
    AvgFloat,
    Distinct,
    Any,
    All,
    First,
    Last,
}

impl AggregateKind {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::SumInt | Self::SumDecimal { .. } | Self::SumFloat => "sum",
            Self::Min => "min",
            Self::Max => "max",
            Self::AvgDecimal | Self::AvgFloat => "avg",
            Self::Distinct => "distinct",
            Self::Any => "any",
            Self::All => "all",
            Self::First => "first",
            Self::Last => "last",
        }
    }
}

impl ResolvedAggregate {
    /// The columns of the child that it needs.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        let value = match self.value {
            Some(AggregateSource::Column(column)) => Some(column),
            _ => None,
        };
        value.into_iter().chain(self.filter)
    }
}

impl Plan {
    /// Resolves a definition; `table` answers the schema of a captured table.
    pub fn resolve(
        definition: &EntityDefinition,
        table: &dyn Fn(&TableName) -> Option<Arc<TableSchema>>,
    ) -> Result<Self, PlanError> {
        resolve::resolve(definition, table)
    }

    pub fn root(&self) -> &Node {
        &self.nodes[0]
    }

    /// The columns that stand behind a column number: itself, or those that it is derived of.
    pub fn real_columns(&self, column: usize) -> &[usize] {
        column.checked_sub(DERIVED).map_or(&[], |nth| self.derived.get(nth).map_or(&[], |derived| &derived.columns))
    }

    /// The tables of the plan, and of each the columns that the document, the joins, the order, the keys or expressions need.
    pub fn used_columns(&self) -> BTreeMap<TableName, BTreeSet<usize>> {
        let mut used: BTreeMap<TableName, BTreeSet<usize>> = BTreeMap::new();
        for node in &self.nodes {
            let columns = used.entry(node.table.name.clone()).or_default();
            for column in self.node_columns(node) {
                if column < DERIVED {
                    columns.insert(column);
                } else {
                    columns.extend(self.real_columns(column));
                }
            }
        }
        used
    }

    /// The columns of a node's own table that matter at this node, those that its children refer to included; of what is derived, only what comes of it matters.
    pub fn node_columns(&self, node: &Node) -> BTreeSet<usize> {
        let mut columns: BTreeSet<usize> = node.fields.iter().map(|field| field.column).collect();
        columns.extend(node.own_key.iter().map(|part| part.column));
        columns.extend(node.link.iter().map(|link| link.own_column));
        columns.extend(node.filter);
        columns.extend(computed_columns(&node.computed));
        if let Edge::Many { order_by } = &node.edge {
            columns.extend(order_by.iter().map(|part| part.column));
        }
        if let Some(parent) = node.parent {
            let over_this = self.nodes[parent].aggregates.iter().filter(|aggregate| self.nodes[aggregate.over].path == node.path);
            columns.extend(over_this.flat_map(ResolvedAggregate::columns));
        } else {
            columns.extend(self.key.iter().map(|part| part.column));
            columns.extend(self.time_to_live.iter().map(|time_to_live| time_to_live.column.column));
            if let Some(group) = &self.group {
                columns.extend(group.aggregates.iter().flat_map(ResolvedAggregate::columns));
                columns.extend(computed_columns(&group.computed));
            }
        }
        for &child in node.ones.iter().chain(&node.manys) {
            columns.extend(self.nodes[child].link.iter().map(|link| link.parent_column));
        }
        columns
    }

    /// What sinks and the API need to know.
    pub fn info(&self) -> EntityInfo {
        let root = self.root();
        let key = self.key.iter().map(|part| match (&self.group, root.table.columns.get(part.column)) {
            (Some(group), column) => {
                let field = group.fields.iter().find(|field| field.column == part.column);
                let name = field.map_or_else(String::new, |field| field.name.clone());
                (name, column.map_or_else(|| part.key_type.sql_type(), |column| column.sql_type))
            }
            (None, Some(column)) => {
                let field = root.fields.iter().find(|field| field.column == part.column);
                (field.map_or_else(|| column.name.clone(), |field| field.name.clone()), column.sql_type)
            }
            (None, None) => (String::new(), part.key_type.sql_type()),
        });
        EntityInfo { name: self.entity.clone(), key: key.collect(), document_schema: document::schema(self) }
    }

    /// The one text that stands for an entity key, however it was written (case and trailing blanks of text that is compared without them, leading zeros). `None`
    /// when it cannot be a key of this entity.
    pub fn normalize_key(&self, key: &EntityKey) -> Option<EntityKey> {
        let parts = key.parts();
        if parts.len() != self.key.len() {
            return None;
        }
        let parts: Option<Vec<String>> = self.key.iter().zip(&parts).map(|(part, text)| part.key_type.normalize(text)).collect();
        parts.map(EntityKey::from_parts)
    }
}

impl Node {
    /// Whether the node's document has a member of this name.
    fn has_member(&self, nodes: &[Node], name: &str) -> bool {
        let edges = self.ones.iter().chain(&self.manys).any(|&child| nodes[child].name == name);
        edges
            || self.fields.iter().any(|field| field.name == name)
            || self.aggregates.iter().any(|aggregate| aggregate.name == name)
            || self.computed.iter().any(|computed| computed.name == name)
    }
}

fn computed_columns(computed: &[Computed]) -> impl Iterator<Item = usize> {
    let inputs = computed.iter().flat_map(|computed| &computed.inputs);
    inputs.filter_map(|input| if let ComputedInput::Column(column) = input { Some(*column) } else { None })
}

#[cfg(test)]
mod tests;
