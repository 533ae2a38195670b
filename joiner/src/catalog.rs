//! Plans compiled into what the hot paths work by: tables with the columns that anyone uses (their *slots*), the indexes that their rows are kept in, and the nodes
//! of each entity with names, lookups and ways up prepared.
//!
//! # Indexes
//! A row is kept once for each way in which it is looked up. An index is (table, cluster columns): all rows that agree in the cluster columns stand side by side,
//! in the order of their own key.
//! - *Rows* hold every used column: children clustered by their parent's key, roots and references by the columns that they are referred to by. One index serves every
//!   node, of every entity, that clusters the table alike.
//! - *Derived slots* follow the columns in a row: what an expression makes of them, computed when the row comes in (`derive`). They are compared, indexed and kept as columns are. Columns that only expressions read are blank.
//! - *Links* hold only what the way up needs: a *locator* leads from a row's own key to its parent's key, a *back reference* from a reference's key to its owners. Where a
//!   Rows index has the same cluster, it serves instead; where the child's own columns already tell what the way up needs, there is none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use expressions::{Expression, Type};
use schemas::TableName;
use schemas::parse::Columns;
use schemas::plan::{AggregateKind, AggregateSource, ComputedInput, DERIVED, Edge, KeyPart, KeyType, NodeId, Plan};
use schemas::table::{SqlType, TableSchema};

use crate::error::Error;

mod mask;

pub(crate) use mask::SlotMask;

pub(crate) type IndexId = usize;
pub(crate) type TableId = usize;

/// A used column where it is part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotPart {
    pub(crate) slot: usize,
    pub(crate) key_type: KeyType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexKind {
    Rows,
    Links,
}

#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) kind: IndexKind,
    pub(crate) cluster: Vec<SlotPart>,
    /// The own key's parts that the cluster does not hold already. Empty: at most one row a cluster.
    pub(crate) suffix: Vec<SlotPart>,
    /// The slots that are kept, in order; for Rows all of them.
    pub(crate) stored: Vec<usize>,
    /// Whether rows with NULL in the cluster are kept, though nothing joins with them: an update may leave out values that only the row itself can tell.
    pub(crate) keeps_null: bool,
    pub(crate) table: TableId,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) columns: Columns,
    /// Those of columns, then those of `derived`.
    pub(crate) slots: usize,
    pub(crate) derived: Vec<DerivedSlot>,
    /// By slot: columns that only expressions read.
    pub(crate) blank: Vec<bool>,
    pub(crate) own_key: Vec<SlotPart>,
    pub(crate) indexes: Vec<IndexId>,
    /// Parts that some lookup encodes and no index of the table does: checked when an event comes in, so that no row in the state fails later.
    pub(crate) checked: Vec<SlotPart>,
    pub(crate) places: Vec<Place>,
}

/// Where a table stands in an entity.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) entity: usize,
    pub(crate) node: NodeId,
    /// The slots that matter there.
    pub(crate) mask: SlotMask,
    /// The slot that says whether a row takes part.
    pub(crate) filter: Option<usize>,
}

/// A value that is computed of a row's columns.
#[derive(Debug, Clone)]
pub(crate) struct DerivedSlot {
    pub(crate) expression: Arc<Expression>,
    /// The slot of each of its variables.
    pub(crate) inputs: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) name: Arc<str>,
    pub(crate) plan: Arc<Plan>,
    pub(crate) key: Vec<SlotPart>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) group: Option<Group>,
}

/// The document of a roll-up.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) fields: Vec<(Vec<u8>, usize)>,
    pub(crate) aggregates: Vec<Aggregate>,
    pub(crate) computed: Vec<Computed>,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) table: TableId,
    pub(crate) parent: Option<NodeId>,
    pub(crate) rows: IndexId,
    pub(crate) link: Vec<Link>,
    pub(crate) require: bool,
    /// The slot that says whether a row takes part.
    pub(crate) filter: Option<usize>,
    pub(crate) up: Up,
    /// `{"name":` or `,"name":`, and the slot.
    pub(crate) fields: Vec<(Vec<u8>, usize)>,
    pub(crate) ones: Vec<(Vec<u8>, NodeId)>,
    pub(crate) manys: Vec<Many>,
    /// In the order of the document.
    pub(crate) aggregates: Vec<Aggregate>,
    pub(crate) computed: Vec<Computed>,
    /// Whether anything needs to know where the members of the document stand.
    pub(crate) spans: bool,
}

#[derive(Debug)]
pub(crate) struct Many {
    pub(crate) name: Vec<u8>,
    pub(crate) node: NodeId,
    /// `None`: the index's own order is the one wanted.
    pub(crate) order: Option<Vec<(SlotPart, bool)>>,
}

#[derive(Debug)]
pub(crate) struct Aggregate {
    pub(crate) name: Vec<u8>,
    pub(crate) over: NodeId,
    pub(crate) kind: AggregateKind,
    /// Where its values stand in the child; `None` for a count.
    pub(crate) value: Option<Source>,
    /// The child's slot that says whether it counts.
    pub(crate) filter: Option<usize>,
    pub(crate) of: Type,
}

/// Where a value stands at a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    Slot(usize),
    /// A member of the document: of the `one` edges, the `many` edges, the aggregates, the computed fields, the nth.
    Member(usize),
}

#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) name: Vec<u8>,
    pub(crate) expression: Arc<Expression>,
    /// What each of its variables stands for.
    pub(crate) inputs: Vec<Source>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) parent_slot: usize,
    pub(crate) own_slot: usize,
    pub(crate) key_type: KeyType,
}

/// How to get from a row of a node to what the way up needs of its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Up {
    Root,
    /// The columns that link the two are all that the parent's way up needs.
    Derive,
    /// By an index of the parent's table over the link's parent columns.
    Lookup(IndexId),
}

#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) entities: Vec<Entity>,
    pub(crate) tables: Vec<Table>,
    pub(crate) indexes: Vec<Index>,
    by_name: HashMap<TableName, TableId>,
    /// Of the definitions and of the tables as far as they are used.
    pub(crate) fingerprint: String,
}

impl Catalog {
    pub(crate) fn new(plans: &[Arc<Plan>]) -> Result<Self, Error> {
        if plans.is_empty() {
            return Err(Error::NoEntities);
        }
        let mut names = BTreeSet::new();
        if let Some(plan) = plans.iter().find(|plan| !names.insert(plan.entity.clone())) {
            return Err(Error::DuplicateEntity { entity: plan.entity.to_string() });
        }
        let mut builder = Builder::tables(plans)?;
        builder.row_indexes(plans);
        builder.ways_up(plans);
        let count = builder.indexes.len();
        if count > usize::from(u16::MAX) {
            return Err(Error::TooManyIndexes { count });
        }
        Ok(builder.finish(plans))
    }

    pub(crate) fn table(&self, name: &TableName) -> Option<TableId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn entity(&self, name: &str) -> Option<usize> {
        self.entities.iter().position(|entity| entity.name.as_ref() == name)
    }
}

struct TableDraft {
    schema: Arc<TableSchema>,
    /// Slot to column.
    columns: Vec<usize>,
    derived: Vec<DerivedSlot>,
    /// Columns that are kept, not only read by expressions.
    kept: BTreeSet<usize>,
    own_key: Vec<SlotPart>,
}

impl TableDraft {
    fn slots(&self) -> usize {
        self.columns.len() + self.derived.len()
    }
}

struct Builder {
    tables: Vec<TableDraft>,
    by_name: HashMap<TableName, TableId>,
    indexes: Vec<Index>,
    /// By entity and node.
    rows: HashMap<(usize, NodeId), IndexId>,
    ups: HashMap<(usize, NodeId), Up>,
}

impl Builder {
    fn tables(plans: &[Arc<Plan>]) -> Result<Self, Error> {
        let mut used: BTreeMap<TableName, BTreeSet<usize>> = BTreeMap::new();
        for plan in plans {
            for (table, columns) in plan.used_columns() {
                used.entry(table).or_default().extend(columns);
            }
        }
        let mut builder =
            Self { tables: Vec::new(), by_name: HashMap::new(), indexes: Vec::new(), rows: HashMap::new(), ups: HashMap::new() };
        for node in plans.iter().flat_map(|plan| &plan.nodes) {
            let columns: Vec<usize> = used.get(&node.table.name).into_iter().flatten().copied().collect();
            let slot = |column: usize| columns.iter().position(|&used| used == column).unwrap_or_default();
            let own_key: Vec<SlotPart> =
                node.own_key.iter().map(|part| SlotPart { slot: slot(part.column), key_type: part.key_type }).collect();
            match builder.by_name.get(&node.table.name) {
                Some(&id) if builder.tables[id].own_key == own_key => {}
                Some(_) => return Err(Error::KeyConflict { table: node.table.name.clone() }),
                None => {
                    builder.by_name.insert(node.table.name.clone(), builder.tables.len());
                    let (derived, kept) = (Vec::new(), BTreeSet::new());
                    builder.tables.push(TableDraft { schema: node.table.clone(), columns, derived, kept, own_key });
                }
            }
        }
        for plan in plans {
            builder.derived(plan);
        }
        Ok(builder)
    }

    /// Gives slots to what a plan derives, one to each expression over a table; and takes note of the columns that it keeps.
    fn derived(&mut self, plan: &Plan) {
        for derived in &plan.derived {
            let Some(&table) = self.by_name.get(&derived.table) else { continue };
            if !self.tables[table].derived.iter().any(|known| known.expression.text() == derived.expression.text()) {
                let inputs = derived.columns.iter().map(|&column| self.slot(plan, table, column)).collect();
                self.tables[table].derived.push(DerivedSlot { expression: derived.expression.clone(), inputs });
            }
        }
        for node in &plan.nodes {
            let Some(&table) = self.by_name.get(&node.table.name) else { continue };
            self.tables[table].kept.extend(plan.node_columns(node));
        }
    }

    fn table_of(&self, plan: &Plan, node: NodeId) -> TableId {
        self.by_name.get(&plan.nodes[node].table.name).copied().unwrap_or_default()
    }

    fn slot(&self, plan: &Plan, table: TableId, column: usize) -> usize {
        let draft = &self.tables[table];
        // Every column that a plan names is among its table's used columns, and everything derived has its slot.
        match column.checked_sub(DERIVED).and_then(|nth| plan.derived.get(nth)) {
            Some(derived) => {
                let same = |known: &DerivedSlot| known.expression.text() == derived.expression.text();
                draft.columns.len() + draft.derived.iter().position(same).unwrap_or_default()
            }
            None => draft.columns.iter().position(|&used| used == column).unwrap_or_default(),
        }
    }

    fn key(&self, plan: &Plan, table: TableId, parts: &[KeyPart]) -> Vec<SlotPart> {
        parts.iter().map(|part| SlotPart { slot: self.slot(plan, table, part.column), key_type: part.key_type }).collect()
    }

    fn index(&mut self, kind: IndexKind, table: TableId, cluster: Vec<SlotPart>, stored: &BTreeSet<usize>) -> IndexId {
        let serves = |index: &Index| {
            index.table == table && index.cluster == cluster && (index.kind == kind || index.kind == IndexKind::Rows)
        };
        if let Some(id) = self.indexes.iter().position(serves) {
            let index = &mut self.indexes[id];
            let both: BTreeSet<usize> = index.stored.iter().chain(stored).copied().collect();
            index.stored = both.into_iter().collect();
            return id;
        }
        let suffix = self.tables[table].own_key.iter().filter(|part| !cluster.contains(part)).copied().collect();
        let draft = &self.tables[table];
        let may_be_left_out = |&column: &usize| draft.schema.columns[column].sql_type.may_be_unavailable();
        let keeps_null = kind == IndexKind::Rows && draft.columns.iter().any(may_be_left_out);
        self.indexes.push(Index { kind, cluster, suffix, stored: stored.iter().copied().collect(), keeps_null, table });
        self.indexes.len() - 1
    }

    fn row_indexes(&mut self, plans: &[Arc<Plan>]) {
        for (entity, plan) in plans.iter().enumerate() {
            for (id, node) in plan.nodes.iter().enumerate() {
                let table = self.table_of(plan, id);
                let cluster = if node.parent.is_none() {
                    self.key(plan, table, &plan.key)
                } else {
                    let part = |link: &schemas::plan::Link| SlotPart {
                        slot: self.slot(plan, table, link.own_column),
                        key_type: link.key_type,
                    };
                    node.link.iter().map(part).collect()
                };
                let all = (0..self.tables[table].slots()).collect();
                let index = self.index(IndexKind::Rows, table, cluster, &all);
                self.rows.insert((entity, id), index);
            }
        }
    }

    /// What a node's own way up starts from.
    fn needed(&self, plan: &Plan, id: NodeId) -> Vec<SlotPart> {
        let table = self.table_of(plan, id);
        let node = &plan.nodes[id];
        if node.parent.is_none() {
            return self.key(plan, table, &plan.key);
        }
        node.link.iter().map(|link| SlotPart { slot: self.slot(plan, table, link.own_column), key_type: link.key_type }).collect()
    }

    fn ways_up(&mut self, plans: &[Arc<Plan>]) {
        for (entity, plan) in plans.iter().enumerate() {
            for (id, node) in plan.nodes.iter().enumerate() {
                let Some(parent) = node.parent else {
                    self.ups.insert((entity, id), Up::Root);
                    continue;
                };
                let table = self.table_of(plan, parent);
                let part = |link: &schemas::plan::Link| SlotPart {
                    slot: self.slot(plan, table, link.parent_column),
                    key_type: link.key_type,
                };
                let known: Vec<SlotPart> = node.link.iter().map(part).collect();
                let needed = self.needed(plan, parent);
                let up = if needed.iter().all(|part| known.contains(part)) {
                    Up::Derive
                } else {
                    let stored = needed.iter().map(|part| part.slot).collect();
                    Up::Lookup(self.index(IndexKind::Links, table, known, &stored))
                };
                self.ups.insert((entity, id), up);
            }
        }
    }

    fn finish(self, plans: &[Arc<Plan>]) -> Catalog {
        let entities: Vec<Entity> = plans.iter().enumerate().map(|(entity, plan)| self.entity(entity, plan)).collect();
        let mut tables: Vec<Table> = self.tables.iter().enumerate().map(|(id, draft)| self.table(id, draft)).collect();
        for (entity, plan) in plans.iter().enumerate() {
            for (id, node) in plan.nodes.iter().enumerate() {
                let table = self.table_of(plan, id);
                let mut mask = SlotMask::default();
                plan.node_columns(node).into_iter().for_each(|column| mask.add(self.slot(plan, table, column)));
                let filter = node.filter.map(|column| self.slot(plan, table, column));
                tables[table].places.push(Place { entity, node: id, mask, filter });
            }
        }
        for node in entities.iter().flat_map(|entity| &entity.nodes) {
            let mut check = |table: TableId, part: SlotPart| {
                let indexes = &tables[table].indexes;
                let encoded = indexes
                    .iter()
                    .any(|&index| self.indexes[index].cluster.contains(&part) || self.indexes[index].suffix.contains(&part));
                if !encoded && !tables[table].checked.contains(&part) {
                    tables[table].checked.push(part);
                }
            };
            if let Some(parent) = node.parent {
                let parent = self.table_of_node(&entities, node, parent);
                node.link.iter().for_each(|link| check(parent, SlotPart { slot: link.parent_slot, key_type: link.key_type }));
            }
            for many in &node.manys {
                let table = self.table_of_node(&entities, node, many.node);
                many.order.iter().flatten().for_each(|(part, _)| check(table, *part));
            }
        }
        let fingerprint = fingerprint(plans);
        Catalog { entities, tables, indexes: self.indexes, by_name: self.by_name, fingerprint }
    }

    /// The table of another node of the same entity.
    fn table_of_node(&self, entities: &[Entity], node: &Node, other: NodeId) -> TableId {
        let entity = entities.iter().find(|entity| entity.nodes.iter().any(|known| std::ptr::eq(known, node)));
        entity.map_or(node.table, |entity| entity.nodes[other].table)
    }

    fn table(&self, id: TableId, draft: &TableDraft) -> Table {
        Table {
            schema: draft.schema.clone(),
            columns: Columns::new(&draft.schema, &draft.columns),
            slots: draft.slots(),
            derived: draft.derived.clone(),
            blank: draft.columns.iter().map(|column| !draft.kept.contains(column)).collect(),
            own_key: draft.own_key.clone(),
            indexes: (0..self.indexes.len()).filter(|&index| self.indexes[index].table == id).collect(),
            checked: Vec::new(),
            places: Vec::new(),
        }
    }

    fn entity(&self, entity: usize, plan: &Arc<Plan>) -> Entity {
        let table = self.table_of(plan, 0);
        let nodes = (0..plan.nodes.len()).map(|id| self.node(entity, plan, id)).collect();
        let group = plan.group.as_ref().map(|group| {
            let mut names = Names::default();
            let fields = group.fields.iter();
            let fields = fields.map(|field| (names.next(&field.name), self.slot(plan, table, field.column))).collect();
            let aggregates = self.aggregates(plan, &group.aggregates, &mut names);
            let computed = self.computed(plan, 0, &group.computed, [0, 0], &mut names);
            Group { fields, aggregates, computed }
        });
        Entity { name: plan.entity.clone(), plan: plan.clone(), key: self.key(plan, table, &plan.key), nodes, group }
    }

    fn aggregates(&self, plan: &Plan, aggregates: &[schemas::plan::ResolvedAggregate], names: &mut Names) -> Vec<Aggregate> {
        let aggregate = |aggregate: &schemas::plan::ResolvedAggregate| {
            let over = self.table_of(plan, aggregate.over);
            let child = &plan.nodes[aggregate.over];
            let value = aggregate.value.map(|value| match value {
                AggregateSource::Column(column) => Source::Slot(self.slot(plan, over, column)),
                AggregateSource::Member(nth) => Source::Member(child.ones.len() + child.manys.len() + nth),
            });
            let filter = aggregate.filter.map(|column| self.slot(plan, over, column));
            let (name, of) = (names.next(&aggregate.name), aggregate.of.clone());
            Aggregate { name, over: aggregate.over, kind: aggregate.kind, value, filter, of }
        };
        aggregates.iter().map(aggregate).collect()
    }

    /// `edges`: how many `one` and `many` edges stand before the aggregates.
    fn computed(
        &self,
        plan: &Plan,
        id: NodeId,
        computed: &[schemas::plan::Computed],
        edges: [usize; 2],
        names: &mut Names,
    ) -> Vec<Computed> {
        let table = self.table_of(plan, id);
        let node = &plan.nodes[id];
        let source = |input: &ComputedInput| match *input {
            ComputedInput::Column(column) => Source::Slot(self.slot(plan, table, column)),
            ComputedInput::Edge(child) => {
                let all = node.ones.iter().chain(&node.manys);
                Source::Member(all.into_iter().position(|&other| other == child).unwrap_or_default())
            }
            ComputedInput::Aggregate(nth) => Source::Member(edges[0] + edges[1] + nth),
        };
        computed
            .iter()
            .map(|computed| Computed {
                name: names.next(&computed.name),
                expression: computed.expression.clone(),
                inputs: computed.inputs.iter().map(source).collect(),
            })
            .collect()
    }

    fn node(&self, entity: usize, plan: &Plan, id: NodeId) -> Node {
        let node = &plan.nodes[id];
        let table = self.table_of(plan, id);
        let parent_table = node.parent.map_or(table, |parent| self.table_of(plan, parent));
        let mut names = Names::default();
        let fields = node.fields.iter().map(|field| (names.next(&field.name), self.slot(plan, table, field.column))).collect();
        let ones = node.ones.iter().map(|&one| (names.next(&plan.nodes[one].name), one)).collect();
        let manys = node
            .manys
            .iter()
            .map(|&many| Many { name: names.next(&plan.nodes[many].name), node: many, order: self.order(plan, many, entity) })
            .collect();
        let aggregates = self.aggregates(plan, &node.aggregates, &mut names);
        let computed = self.computed(plan, id, &node.computed, [node.ones.len(), node.manys.len()], &mut names);
        let above = match (node.parent, &plan.group) {
            (Some(parent), _) => &plan.nodes[parent].aggregates[..],
            (None, Some(group)) => &group.aggregates[..],
            (None, None) => &[],
        };
        let of_member = |aggregate: &schemas::plan::ResolvedAggregate| {
            aggregate.over == id && matches!(aggregate.value, Some(AggregateSource::Member(_)))
        };
        let spans = !computed.is_empty() || above.iter().any(of_member);
        let link = |link: &schemas::plan::Link| Link {
            parent_slot: self.slot(plan, parent_table, link.parent_column),
            own_slot: self.slot(plan, table, link.own_column),
            key_type: link.key_type,
        };
        Node {
            table,
            parent: node.parent,
            rows: self.rows.get(&(entity, id)).copied().unwrap_or_default(),
            link: node.link.iter().map(link).collect(),
            require: node.require,
            filter: node.filter.map(|column| self.slot(plan, table, column)),
            up: self.ups.get(&(entity, id)).copied().unwrap_or(Up::Root),
            fields,
            ones,
            manys,
            aggregates,
            computed,
            spans,
        }
    }

    /// The order wanted, unless the rows stand in it anyway.
    fn order(&self, plan: &Plan, id: NodeId, entity: usize) -> Option<Vec<(SlotPart, bool)>> {
        let Edge::Many { order_by } = &plan.nodes[id].edge else { return None };
        let table = self.table_of(plan, id);
        let part = |part: &schemas::plan::OrderPart| {
            (SlotPart { slot: self.slot(plan, table, part.column), key_type: part.key_type }, part.descending)
        };
        let order: Vec<(SlotPart, bool)> = order_by.iter().map(part).collect();
        let suffix = &self.indexes[self.rows.get(&(entity, id)).copied().unwrap_or_default()].suffix;
        let natural =
            order.len() <= suffix.len() && order.iter().zip(suffix).all(|((part, descending), own)| part == own && !descending);
        (!natural).then_some(order)
    }
}

/// Writes the names of members as they stand in a document, one after another.
#[derive(Default)]
struct Names {
    any: bool,
}

impl Names {
    /// `{"name":` or `,"name":`.
    fn next(&mut self, name: &str) -> Vec<u8> {
        let mut out = vec![if std::mem::replace(&mut self.any, true) { b',' } else { b'{' }];
        schemas::value::write_string(&mut out, name);
        out.push(b':');
        out
    }
}

/// Changes when anything changes that the state's bytes or the documents depend on.
fn fingerprint(plans: &[Arc<Plan>]) -> String {
    let mut text = String::new();
    for plan in plans {
        text.push_str(&serde_json::to_string(&plan.definition).unwrap_or_default());
        for (table, columns) in plan.used_columns() {
            let Some(node) = plan.nodes.iter().find(|node| node.table.name == table) else { continue };
            let key: Vec<&str> = node.table.key_names().collect();
            text.push_str(&format!("{table}{key:?}"));
            for column in columns {
                let column = &node.table.columns[column];
                // A wider type of the same form changes neither what is kept nor how it is compared.
                let (form, left_out) = (column.sql_type.form(), column.sql_type.may_be_unavailable());
                text.push_str(&format!("{:?}{form:?}{left_out}{}", column.name, column.case_insensitive));
                if matches!(column.sql_type, SqlType::DateTimeOffset { .. }) {
                    // States of before hold keys of local times.
                    text.push_str("utc");
                }
            }
        }
    }
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}
