//! Where an entity depends on a table, and on which of its columns: what a change of the table touches.

use std::fmt;
use std::sync::Arc;

use super::{ComputedInput, Edge, Node, Plan, ResolvedAggregate};
use crate::TableName;
use crate::entity::Field;

/// A place in an entity that a column, or the table as a whole, matters to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub entity: Arc<str>,
    /// The node, from the root: `order.items`.
    pub path: String,
    pub role: Role,
}

/// What a column is used for at a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It stands in the document under this name.
    Field(String),
    /// The node publishes every column that the contract has.
    EveryField,
    /// It is part of the entity's key.
    EntityKey,
    /// It is part of the table's own key, by which rows are told apart.
    RowKey,
    /// The node is joined to the one above it by it.
    JoinAbove,
    /// A node below is joined by it: `items`.
    JoinBelow(String),
    OrderBy,
    /// A row takes part, or does not, by it.
    Where,
    /// The entity's time is over some time after it.
    TimeToLive,
    /// Rows are grouped by it.
    GroupBy,
    /// A field is computed of it.
    Computed(String),
    /// It goes into an aggregate: the function, and the member of the node above.
    Aggregate(&'static str, String),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.role {
            Role::Field(name) => write!(f, "{path}.{name}"),
            Role::EveryField => write!(f, "{path} (publishes every column)"),
            Role::EntityKey => write!(f, "{path} (entity key)"),
            Role::RowKey => write!(f, "{path} (tells rows apart)"),
            Role::JoinAbove => write!(f, "{path} (join)"),
            Role::JoinBelow(child) => write!(f, "{path}.{child} (join)"),
            Role::OrderBy => write!(f, "{path} (order)"),
            Role::Where => write!(f, "{path} (where)"),
            Role::TimeToLive => write!(f, "{path} (time to live)"),
            Role::GroupBy => write!(f, "{path} (group)"),
            Role::Computed(name) => write!(f, "{path}.{name} (computed)"),
            Role::Aggregate(function, name) => write!(f, "{} ({function} over {path})", with_member(path, name)),
        }
    }
}

/// A member of the node above.
fn with_member(path: &str, member: &str) -> String {
    path.rsplit_once('.').map_or_else(|| member.to_owned(), |(above, _)| format!("{above}.{member}"))
}

impl Plan {
    /// Every use of a table's column, in the order of the document.
    pub fn uses(&self, table: &TableName, column: &str) -> Vec<Use> {
        let nodes = self.nodes.iter().filter(|node| node.table.name == *table);
        nodes.flat_map(|node| self.uses_at(node, column)).collect()
    }

    /// The nodes that publish every column of a table: a new column changes their documents.
    pub fn published_whole(&self, table: &TableName) -> Vec<Use> {
        let nodes = self.nodes.iter().filter(|node| node.table.name == *table && self.listed_fields(node).is_none());
        nodes.map(|node| self.used(node, Role::EveryField)).collect()
    }

    /// The nodes at which a table stands.
    pub fn places(&self, table: &TableName) -> Vec<Use> {
        self.nodes.iter().filter(|node| node.table.name == *table).map(|node| self.used(node, Role::RowKey)).collect()
    }

    fn used(&self, node: &Node, role: Role) -> Use {
        Use { entity: self.entity.clone(), path: node.path.clone(), role }
    }

    fn uses_at(&self, node: &Node, column: &str) -> Vec<Use> {
        let Some(index) = node.table.column(column) else { return Vec::new() };
        let mut roles: Vec<Role> =
            node.fields.iter().filter(|field| field.column == index).map(|field| Role::Field(field.name.clone())).collect();
        let holds = |column: usize| column == index || self.real_columns(column).contains(&index);
        if node.parent.is_none() && self.key.iter().any(|part| holds(part.column)) {
            roles.push(if self.group.is_some() { Role::GroupBy } else { Role::EntityKey });
        }
        if node.own_key.iter().any(|part| part.column == index) {
            roles.push(Role::RowKey);
        }
        if node.link.iter().any(|link| link.own_column == index) {
            roles.push(Role::JoinAbove);
        }
        for child in node.ones.iter().chain(&node.manys).map(|&child| &self.nodes[child]) {
            if child.link.iter().any(|link| link.parent_column == index) {
                roles.push(Role::JoinBelow(child.name.clone()));
            }
        }
        if let Edge::Many { order_by } = &node.edge
            && order_by.iter().any(|part| part.column == index)
        {
            roles.push(Role::OrderBy);
        }
        if node.filter.is_some_and(holds) {
            roles.push(Role::Where);
        }
        if node.parent.is_none() && self.time_to_live.is_some_and(|time_to_live| holds(time_to_live.column.column)) {
            roles.push(Role::TimeToLive);
        }
        for computed in node.computed.iter().filter(|computed| computed.inputs.contains(&ComputedInput::Column(index))) {
            roles.push(Role::Computed(computed.name.clone()));
        }
        let above: &[ResolvedAggregate] = match (node.parent, &self.group) {
            (Some(parent), _) => &self.nodes[parent].aggregates,
            (None, Some(group)) => &group.aggregates,
            (None, None) => &[],
        };
        for aggregate in above.iter().filter(|aggregate| self.nodes[aggregate.over].path == node.path) {
            if aggregate.columns().any(holds) {
                roles.push(Role::Aggregate(aggregate.kind.name(), aggregate.name.clone()));
            }
        }
        roles.into_iter().map(|role| self.used(node, role)).collect()
    }

    /// The fields that the definition lists at a node; `None`: every column.
    fn listed_fields(&self, node: &Node) -> Option<&[Field]> {
        let mut names = Vec::new();
        let mut at = node;
        while let Some(parent) = at.parent {
            names.push(&at.name);
            at = &self.nodes[parent];
        }
        let root = &self.definition;
        if self.group.is_some() && names.is_empty() {
            return Some(&[]);
        }
        let (mut fields, mut one, mut many) = if self.group.is_some() {
            (&root.fields, &root.rows.one, &root.rows.many)
        } else {
            (&root.fields, &root.one, &root.many)
        };
        for name in names.into_iter().rev() {
            (fields, one, many) = match (one.get(name), many.get(name)) {
                (Some(edge), _) => (&edge.fields, &edge.one, &edge.many),
                (None, Some(edge)) => (&edge.fields, &edge.one, &edge.many),
                // An edge that repeats itself stands in no definition a second time.
                (None, None) => return fields.as_deref(),
            };
        }
        fields.as_deref()
    }
}
