//! Entities from foreign keys.
//!
//! A foreign key says that one row refers to another, and not whether it is a *part* of it (an order's item) or merely *mentions* it (an item's product). These
//! signs make it a part: the key of the child begins with, or contains, the reference; deleting the parent deletes the child; the child is named after
//! the parent (`order_items`); or the child refers to nothing else, and whoever refers to it refers to the parent as well. Everything else is a mention.
//!
//! - A table that is no part of another, and has parts or is referred to by nobody, is a root: an entity. A table that is only mentioned is a lookup: it stands in
//!   the documents of those that mention it, and is none itself.
//! - Parts become `many`, mentions `one`. A path never comes to the same table twice, so there are no cycles, and depth is bounded.
//! - What the definition would not run with is left out and noted: tables without a key, references to columns that are not the key.

use std::collections::{BTreeMap, BTreeSet};

use schemas::TableName;
use schemas::contract::Contract;
use schemas::entity::{EntityDefinition, ManyEdge, OneEdge};
use schemas::table::TableSchema;

use super::Inferred;
use super::names;
use source::{Catalog, ForeignKey};

/// Edges from the root downwards.
const MAX_DEPTH: usize = 4;
/// `one` edges in a row: a lookup's lookups may go on for long.
const MAX_MENTIONS: usize = 3;

/// A foreign key whose columns stand in the order of the referenced table's key.
struct Reference<'c> {
    key: &'c ForeignKey,
    columns: Vec<String>,
    part: bool,
}

struct Graph<'c> {
    schemas: BTreeMap<&'c TableName, TableSchema>,
    references: Vec<Reference<'c>>,
}

/// The edges of a node.
#[derive(Default)]
struct Edges {
    one: BTreeMap<String, OneEdge>,
    many: BTreeMap<String, ManyEdge>,
}

/// Contracts for all captured tables, and entity definitions that hold together.
pub fn infer(catalog: &Catalog) -> Inferred {
    let mut notes: Vec<String> = Vec::new();
    for name in &catalog.uncaptured {
        let enable = source::sql::enable_table(&name.schema, &name.table);
        notes.push(format!("{name} is not captured and was left out. To capture it: {enable}"));
    }
    let mut schemas = BTreeMap::new();
    for table in &catalog.tables {
        let Some(instance) = table.instances.first() else { continue };
        for (column, sql_type) in &instance.unsupported {
            notes.push(format!("{}: column {column} is {sql_type}, which cannot be read, and was left out", table.name));
        }
        for column in instance.computed() {
            notes.push(format!(
                "{}: column {column} is computed, and change data capture records no values of it: it was left out",
                table.name
            ));
        }
        schemas.insert(&table.name, instance.schema(&table.name));
    }
    let contracts = schemas.values().map(Contract::from_table).collect();
    for schema in schemas.values().filter(|schema| schema.key.is_empty()) {
        notes.push(format!("{} has no key and is part of no entity: give it a primary key", schema.name));
    }
    let graph = Graph::new(catalog, schemas, &mut notes);
    let entities = graph.entities();
    if entities.is_empty() {
        notes.push("no entity was inferred: define one by hand".to_owned());
    }
    Inferred { contracts, entities, notes }
}

impl<'c> Graph<'c> {
    fn new(catalog: &'c Catalog, schemas: BTreeMap<&'c TableName, TableSchema>, notes: &mut Vec<String>) -> Self {
        let mut references = Vec::new();
        for key in &catalog.foreign_keys {
            let (Some(child), Some(parent)) = (schemas.get(&key.table), schemas.get(&key.referenced)) else { continue };
            if child.key.is_empty() || parent.key.is_empty() || key.table == key.referenced {
                continue;
            }
            if key.columns.iter().any(|column| child.column(column).is_none()) {
                notes.push(format!("foreign key {} was left out: a column of it is not captured", key.name));
                continue;
            }
            match in_key_order(key, parent) {
                Some(columns) => references.push(Reference { key, columns, part: false }),
                None => notes.push(format!(
                    "foreign key {} was left out: it refers to columns of {} that are not its key",
                    key.name, key.referenced
                )),
            }
        }
        let mut graph = Self { schemas, references };
        let parts: Vec<bool> = graph.references.iter().map(|reference| graph.is_part(reference)).collect();
        for (reference, part) in graph.references.iter_mut().zip(parts) {
            reference.part = part;
        }
        graph
    }

    fn is_part(&self, reference: &Reference<'_>) -> bool {
        let child = &self.schemas[&reference.key.table];
        let key: Vec<&str> = child.key_names().collect();
        let identifying =
            reference.columns.iter().all(|column| key.contains(&column.as_str())) && key.len() > reference.columns.len();
        if identifying || reference.key.cascades {
            return true;
        }
        let parent_name = names::singular(&names::snake(&reference.key.referenced.table));
        if names::snake(&reference.key.table.table).starts_with(&format!("{parent_name}_")) {
            return true;
        }
        let refers_elsewhere = self.references.iter().filter(|other| other.key.table == reference.key.table).count() > 1;
        // Whoever refers to the child refers to the parent as well: an order mentions its customer beside the customer's address.
        let refers_to_parent = |table: &TableName| {
            self.references.iter().any(|other| other.key.table == *table && other.key.referenced == reference.key.referenced)
        };
        let mut referrers = self.references.iter().filter(|other| other.key.referenced == reference.key.table);
        !refers_elsewhere && referrers.all(|other| refers_to_parent(&other.key.table))
    }

    /// Whether a reference leads from a part to the one thing that it is part of. Whoever mentions an address did not ask for the customer whose it is; a
    /// row that joins two things, though, is nothing without them.
    fn is_owner(&self, reference: &Reference<'_>) -> bool {
        let owners = self.references.iter().filter(|other| other.part && other.key.table == reference.key.table);
        reference.part && owners.count() == 1
    }

    fn entities(&self) -> Vec<EntityDefinition> {
        let keyed = || self.schemas.values().filter(|schema| !schema.key.is_empty());
        let is_part = |name: &TableName| self.references.iter().any(|reference| reference.part && reference.key.table == *name);
        let has_parts =
            |name: &TableName| self.references.iter().any(|reference| reference.part && reference.key.referenced == *name);
        let mentioned = |name: &TableName| self.references.iter().any(|reference| reference.key.referenced == *name);
        let mut roots: Vec<&TableSchema> =
            keyed().filter(|schema| !is_part(&schema.name) && (has_parts(&schema.name) || !mentioned(&schema.name))).collect();
        if roots.is_empty() {
            // Everything refers to everything: any table is as good a root as another.
            roots = keyed().collect();
        }
        let mut taken = BTreeSet::new();
        let mut entities = Vec::new();
        for root in roots {
            let (schema, table) = (names::snake(&root.name.schema), names::singular(&names::snake(&root.name.table)));
            let candidates = [names::entity(&table), names::entity(&format!("{schema}_{table}"))];
            let entity = names::unique(&candidates, |name| taken.contains(name));
            taken.insert(entity.clone());
            let edges = self.edges(&root.name, None, &mut vec![&root.name], 0);
            let definition = EntityDefinition::new(entity, root.name.clone());
            entities.push(EntityDefinition { one: edges.one, many: edges.many, ..definition });
        }
        entities
    }

    /// The edges of a table reached by `path` (its own name last), not going back over the reference that led here.
    fn edges<'g>(
        &'g self,
        table: &TableName,
        came_by: Option<&Reference<'_>>,
        path: &mut Vec<&'g TableName>,
        mentions: usize,
    ) -> Edges {
        let mut edges = Edges::default();
        if path.len() > MAX_DEPTH {
            return edges;
        }
        let came_by = came_by.map(|reference| &reference.key.name);
        if mentions < MAX_MENTIONS {
            for reference in
                self.references.iter().filter(|reference| reference.key.table == *table && Some(&reference.key.name) != came_by)
            {
                if path.contains(&&reference.key.referenced) || mentions > 0 && self.is_owner(reference) {
                    continue;
                }
                let name = self.free(&self.one_names(reference), table, &edges);
                path.push(&reference.key.referenced);
                // A mentioned row's own parts are its own affair: only what it mentions in turn belongs here.
                let inner = self.edges(&reference.key.referenced, Some(reference), path, mentions + 1);
                path.pop();
                let edge = OneEdge::new(reference.key.referenced.clone(), reference.columns.clone());
                edges.one.insert(name, OneEdge { one: inner.one, ..edge });
            }
        }
        if mentions > 0 {
            return edges;
        }
        for reference in self.references.iter().filter(|reference| reference.part && reference.key.referenced == *table) {
            if path.contains(&&reference.key.table) {
                continue;
            }
            let name = self.free(&many_names(reference), table, &edges);
            path.push(&reference.key.table);
            let inner = self.edges(&reference.key.table, Some(reference), path, 0);
            path.pop();
            let edge = ManyEdge::new(reference.key.table.clone(), reference.columns.clone());
            edges.many.insert(name, ManyEdge { one: inner.one, many: inner.many, ..edge });
        }
        edges
    }

    /// A name that neither a column of the table nor another of its edges has.
    fn free(&self, candidates: &[String], table: &TableName, edges: &Edges) -> String {
        let columns = &self.schemas[table].columns;
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        names::unique(candidates, |name| {
            columns.iter().any(|column| same(&column.name, name)) || edges.one.contains_key(name) || edges.many.contains_key(name)
        })
    }

    fn one_names(&self, reference: &Reference<'_>) -> Vec<String> {
        let table = names::singular(&names::snake(&reference.key.referenced.table));
        let siblings = self
            .references
            .iter()
            .filter(|other| other.key.table == reference.key.table && other.key.referenced == reference.key.referenced);
        let by_column = match reference.columns.as_slice() {
            [column] => names::referent(column),
            _ => None,
        };
        match by_column {
            Some(name) => vec![name.clone(), table.clone(), format!("{name}_{table}")],
            // Two references to one table need their columns to tell them apart.
            None if siblings.count() > 1 => vec![format!("{table}_by_{}", names::snake(&reference.columns.join("_")))],
            None => vec![table.clone(), format!("{table}_row")],
        }
    }
}

fn many_names(reference: &Reference<'_>) -> Vec<String> {
    let child = names::plural(&names::snake(&reference.key.table.table));
    let parent = names::singular(&names::snake(&reference.key.referenced.table));
    let short = child.strip_prefix(&format!("{parent}_")).filter(|rest| !rest.is_empty()).map(str::to_owned);
    let by_column = format!("{child}_by_{}", names::snake(&reference.columns.join("_")));
    short.into_iter().chain([child, by_column]).collect()
}

/// The referring columns in the order of the referenced table's key; `None` if they refer to something else.
fn in_key_order(key: &ForeignKey, parent: &TableSchema) -> Option<Vec<String>> {
    if key.columns.len() != parent.key.len() {
        return None;
    }
    let referring =
        |name: &str| key.referenced_columns.iter().position(|column| column == name).map(|at| key.columns[at].clone());
    parent.key_names().map(referring).collect()
}

#[cfg(test)]
#[path = "infer_tests.rs"]
mod tests;
