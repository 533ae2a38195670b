//! What an entity costs, told before anything runs: its tables and what is kept of them, the state's indexes, and how a change of each kind finds its way to the entities. It is read off the compiled catalog, so it is what the
//! joiner does, and not what somebody once wrote that it does.

use std::sync::Arc;

use schemas::entity::Span;
use schemas::plan::{DERIVED, NodeId, Plan};

use crate::catalog::{Catalog, Index, IndexKind, SlotPart, TableId, Up};
use crate::error::Error;

/// An entity, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub entity: String,
    pub key: Vec<String>,
    /// The entity is a roll-up.
    pub grouped: bool,
    pub places: Vec<Place>,
    pub indexes: Vec<IndexUse>,
    /// The column after which an entity's time is over, and how long after it; and whether there are rows without such a time.
    pub time_to_live: Option<(String, Span, bool)>,
}

/// A table at one place of the entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: String,
    pub table: String,
    /// Columns whose changes matter here.
    pub columns: Vec<String>,
    /// Expressions whose results matter here.
    pub derived: Vec<String>,
    /// Columns that no entity needs: not kept, and a change of them is no output.
    pub unused: Vec<String>,
    /// From the changed row up to the entities, one step each.
    pub way_up: Vec<String>,
    /// Whether one change touches one entity at most.
    pub touches_one: bool,
    /// Whether the aggregates over its rows are kept in parts: a change reads few of them, however many there are.
    pub in_parts: bool,
}

/// A way in which the state keeps rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexUse {
    pub table: String,
    pub by: Vec<String>,
    /// Whole rows, or what leads from one row to another.
    pub whole_rows: bool,
    /// Other entities that it serves.
    pub shared_with: Vec<String>,
}

/// Explains an entity among all that a joiner has: they share what is kept.
pub fn explain(plans: &[Arc<Plan>], entity: &str) -> Result<Explanation, Error> {
    let catalog = Catalog::new(plans)?;
    let id = catalog.entity(entity).ok_or_else(|| Error::UnknownEntity { entity: entity.to_owned() })?;
    let explainer = Explainer { plans, catalog: &catalog, plan: &plans[id], entity: id };
    let plan = explainer.plan;
    let key = plan.key.iter().map(|part| explainer.column(0, part.column)).collect();
    let places = (0..plan.nodes.len()).map(|node| explainer.place(node)).collect();
    let time_to_live = plan.time_to_live.map(|time_to_live| {
        let column = &plan.root().table.columns[time_to_live.column.column];
        (column.name.clone(), time_to_live.span, column.nullable)
    });
    let (entity, grouped, indexes) = (entity.to_owned(), plan.group.is_some(), explainer.indexes());
    Ok(Explanation { entity, key, grouped, places, indexes, time_to_live })
}

struct Explainer<'a> {
    plans: &'a [Arc<Plan>],
    catalog: &'a Catalog,
    plan: &'a Plan,
    entity: usize,
}

impl Explainer<'_> {
    /// A column by its number, or the expression behind it.
    fn column(&self, node: NodeId, column: usize) -> String {
        match column.checked_sub(DERIVED).and_then(|nth| self.plan.derived.get(nth)) {
            Some(derived) => format!("`{}`", derived.expression.text()),
            None => self.plan.nodes[node].table.columns.get(column).map_or_else(String::new, |column| column.name.clone()),
        }
    }

    /// A slot of a table: its columns that anything reads, in order, then what is derived.
    fn slot(&self, table: TableId, slot: usize) -> String {
        let table = &self.catalog.tables[table];
        let used: std::collections::BTreeSet<usize> =
            self.plans.iter().filter_map(|plan| plan.used_columns().remove(&table.schema.name)).flatten().collect();
        match used.iter().nth(slot) {
            Some(&column) => table.schema.columns[column].name.clone(),
            None => {
                let derived = slot.checked_sub(used.len()).and_then(|nth| table.derived.get(nth));
                derived.map_or_else(String::new, |derived| format!("`{}`", derived.text))
            }
        }
    }

    fn slots(&self, table: TableId, parts: &[SlotPart]) -> Vec<String> {
        parts.iter().map(|part| self.slot(table, part.slot)).collect()
    }

    fn place(&self, id: NodeId) -> Place {
        let node = &self.plan.nodes[id];
        let (derived, columns) = self.plan.node_columns(node).into_iter().partition::<Vec<usize>, _>(|column| *column >= DERIVED);
        let name = |column: &usize| self.column(id, *column);
        let used: Vec<_> = self.plans.iter().filter_map(|plan| plan.used_columns().remove(&node.table.name)).collect();
        let is_unused = |(column, _): &(usize, _)| !used.iter().any(|columns| columns.contains(column));
        let (way_up, touches_one) = self.way_up(id);
        Place {
            path: node.path.clone(),
            table: node.table.name.to_string(),
            columns: columns.iter().map(name).collect(),
            derived: derived.iter().map(name).collect(),
            unused: node.table.columns.iter().enumerate().filter(is_unused).map(|(_, column)| column.name.clone()).collect(),
            way_up,
            touches_one,
            in_parts: self.catalog.entities[self.entity].nodes[id].parts,
        }
    }

    fn way_up(&self, id: NodeId) -> (Vec<String>, bool) {
        let compiled = &self.catalog.entities[self.entity].nodes;
        let (mut steps, mut one, mut at) = (Vec::new(), true, id);
        while let Some(parent) = self.plan.nodes[at].parent {
            let (child, above) = (&self.plan.nodes[at].path, &self.plan.nodes[parent].path);
            let own =
                compiled[at].link.iter().map(|link| self.slot(compiled[at].table, link.own_slot)).collect::<Vec<_>>().join(", ");
            // The parent's columns hold its key: there is one such parent.
            let linked: Vec<usize> = self.plan.nodes[at].link.iter().map(|link| link.parent_column).collect();
            let unique = self.plan.nodes[parent].own_key.iter().all(|part| linked.contains(&part.column));
            one &= unique;
            let count = if unique { "the one" } else { "every" };
            steps.push(match compiled[at].up {
                Up::Root | Up::Derive => format!("{child} → {count} {above}: its {own} tells, nothing is read"),
                Up::Lookup(index) => {
                    let index = &self.catalog.indexes[index];
                    let by = self.slots(index.table, &index.cluster).join(", ");
                    format!("{child} → {count} {above} with its {own}: {} by {by} are read", self.kept_as(index))
                }
            });
            at = parent;
        }
        (steps, one)
    }

    fn kept_as(&self, index: &Index) -> String {
        let what = if index.kind == IndexKind::Rows { "rows" } else { "links" };
        format!("{what} of {}", self.catalog.tables[index.table].schema.name)
    }

    fn indexes(&self) -> Vec<IndexUse> {
        let uses = |entity: usize, index: usize| {
            let entity = &self.catalog.entities[entity];
            entity.expiry.as_ref().is_some_and(|expiry| expiry.index == index)
                || entity.nodes.iter().any(|node| node.rows == index || node.up == Up::Lookup(index))
        };
        let ours = self.catalog.indexes.iter().enumerate().filter(|(index, _)| uses(self.entity, *index));
        ours.map(|(id, index)| {
            let others = (0..self.catalog.entities.len()).filter(|&other| other != self.entity && uses(other, id));
            IndexUse {
                table: self.catalog.tables[index.table].schema.name.to_string(),
                by: self.slots(index.table, &index.cluster),
                whole_rows: index.kind == IndexKind::Rows,
                shared_with: others.map(|other| self.catalog.entities[other].name.to_string()).collect(),
            }
        })
        .collect()
    }
}
