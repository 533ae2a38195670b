//! Compiles plans: tables first, then what is derived of their rows, then the indexes that nodes read, then those that the ways up need, and those that say when entities' time is over; what documents are made of them comes last (`entities.rs`).
//!
//! For a state that is there already, nothing is added to how it keeps rows ([`Layout`]): columns, expressions and indexes are looked up in it, and what is not there is told ([`Lacking`]). What it has and nothing uses any more goes:
//! an index whole, an expression to NULL; but columns stay, as long as the contract has them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use schemas::TableName;
use schemas::parse::Columns;
use schemas::plan::{DERIVED, KeyPart, NodeId, Plan};
use schemas::table::TableSchema;

use super::layout::{ColumnLayout, IndexLayout, TableLayout};
use super::{
    Catalog, DerivedSlot, Entity, Index, IndexId, IndexKind, Lacking, Layout, Node, Place, SlotMask, SlotPart, Table, TableId, Up,
};
use crate::error::Error;

pub(super) struct TableDraft {
    schema: Arc<TableSchema>,
    /// Slot to column; [`GONE`] where the contract does not have it any more, as it was kept.
    pub(super) columns: Vec<usize>,
    derived: Vec<DerivedSlot>,
    /// Columns that are kept, not only read by expressions.
    kept: BTreeSet<usize>,
    own_key: Vec<SlotPart>,
    /// How the state keeps it, where there is one.
    layout: Option<TableLayout>,
}

/// The number of no column.
const GONE: usize = usize::MAX;

impl TableDraft {
    fn slots(&self) -> usize {
        self.columns.len() + self.derived.len()
    }
}

pub(super) struct Builder<'a> {
    /// How the state keeps rows, where there is one: nothing is added to it.
    base: Option<&'a Layout>,
    lacking: BTreeSet<Lacking>,
    pub(super) tables: Vec<TableDraft>,
    by_name: HashMap<TableName, TableId>,
    pub(super) indexes: Vec<Index>,
    /// By entity and node.
    pub(super) rows: HashMap<(usize, NodeId), IndexId>,
    pub(super) ups: HashMap<(usize, NodeId), Up>,
    /// By entity, of those that roll up another's documents: the index of these by their own key.
    pub(super) by_key: HashMap<usize, IndexId>,
    /// By entity, of those with a time to live: the index of the roots by its column.
    pub(super) expiries: HashMap<usize, IndexId>,
}

impl<'a> Builder<'a> {
    /// Compiles plans for a state that keeps rows like `base`, or for a new one. With anything lacking, the catalog is of no use.
    pub(super) fn build(plans: &[Arc<Plan>], base: Option<&'a Layout>) -> Result<(Catalog, BTreeSet<Lacking>), Error> {
        if plans.is_empty() {
            return Err(Error::NoEntities);
        }
        let mut names = BTreeSet::new();
        if let Some(plan) = plans.iter().find(|plan| !names.insert(plan.entity.clone())) {
            return Err(Error::DuplicateEntity { entity: plan.entity.to_string() });
        }
        for (nth, plan) in plans.iter().enumerate() {
            let of = plan.input.as_ref().map(|input| &input.plan.entity);
            // What is rolled up has its number first: steps come to it before the roll-up.
            if let Some(of) = of.filter(|of| !plans[..nth].iter().any(|plan| plan.entity == **of)) {
                return Err(Error::UnknownEntity { entity: of.to_string() });
            }
        }
        let mut builder = Self::tables(plans, base)?;
        builder.kept_indexes();
        builder.row_indexes(plans);
        builder.ways_up(plans);
        builder.expiries(plans);
        builder.drop_unused();
        let count = builder.indexes.len();
        if count > usize::from(u16::MAX) {
            return Err(Error::TooManyIndexes { count });
        }
        let lacking = std::mem::take(&mut builder.lacking);
        Ok((builder.finish(plans), lacking))
    }

    fn tables(plans: &[Arc<Plan>], base: Option<&'a Layout>) -> Result<Self, Error> {
        let mut used: BTreeMap<TableName, BTreeSet<usize>> = BTreeMap::new();
        for plan in plans {
            for (table, columns) in plan.used_columns() {
                used.entry(table).or_default().extend(columns);
            }
        }
        let mut builder = Self {
            base,
            lacking: BTreeSet::new(),
            tables: Vec::new(),
            by_name: HashMap::new(),
            indexes: Vec::new(),
            rows: HashMap::new(),
            ups: HashMap::new(),
            by_key: HashMap::new(),
            expiries: HashMap::new(),
        };
        for node in plans.iter().flat_map(|plan| &plan.nodes) {
            let name = &node.table.name;
            let id = match builder.by_name.get(name) {
                Some(&id) => id,
                None => {
                    let used: Vec<usize> = used.get(name).into_iter().flatten().copied().collect();
                    builder.draft(node, &used)
                }
            };
            let own_key = builder.own_key(id, node);
            if builder.tables[id].own_key != own_key {
                return Err(Error::KeyConflict { table: name.clone() });
            }
        }
        for plan in plans {
            builder.derived(plan);
        }
        builder.lacking_columns();
        Ok(builder)
    }

    fn own_key(&self, table: TableId, node: &schemas::plan::Node) -> Vec<SlotPart> {
        let columns = &self.tables[table].columns;
        let slot = |column: usize| columns.iter().position(|&used| used == column).unwrap_or_default();
        node.own_key.iter().map(|part| SlotPart { slot: slot(part.column), key_type: part.key_type }).collect()
    }

    /// A table with the columns that are used, where the state has them.
    fn draft(&mut self, node: &schemas::plan::Node, used: &[usize]) -> TableId {
        let schema = node.table.clone();
        let name = schema.name.clone();
        let layout = self.base.and_then(|base| base.table(&name)).cloned();
        let (mut columns, mut derived) = (used.to_vec(), Vec::new());
        if let Some(layout) = &layout {
            columns =
                layout.columns.iter().map(|kept| kept.as_ref().and_then(|kept| kept.column(&schema)).unwrap_or(GONE)).collect();
            let unused = |text: &String| DerivedSlot { text: text.clone(), expression: None, inputs: Vec::new() };
            derived = layout.derived.iter().map(unused).collect();
            for column in used.iter().filter(|column| !columns.contains(column)) {
                self.lacking.insert(layout.lacks(&schema, *column));
            }
        } else if self.base.is_some() {
            self.lacking.insert(Lacking::Table { table: name.clone() });
        }
        let id = self.tables.len();
        self.by_name.insert(name.clone(), id);
        self.tables.push(TableDraft { schema, columns, derived, kept: BTreeSet::new(), own_key: Vec::new(), layout });
        let own_key = self.own_key(id, node);
        if self.tables[id].layout.as_ref().is_some_and(|layout| layout.key != own_key) {
            self.lacking.insert(Lacking::Key { table: name });
        }
        self.tables[id].own_key = own_key;
        id
    }

    /// Columns that only expressions have read so far, and that something else needs now.
    fn lacking_columns(&mut self) {
        for draft in &self.tables {
            let Some(layout) = &draft.layout else { continue };
            for (column, kept) in draft.columns.iter().zip(&layout.columns) {
                if kept.as_ref().is_some_and(|kept| kept.blank) && draft.kept.contains(column) {
                    self.lacking.insert(layout.lacks(&draft.schema, *column));
                }
            }
        }
    }

    /// Gives slots to what a plan derives, one to each expression over a table; and takes note of the columns that it keeps.
    fn derived(&mut self, plan: &Plan) {
        for derived in &plan.derived {
            let Some(&table) = self.by_name.get(&derived.table) else { continue };
            let text = derived.expression.text();
            let inputs: Vec<usize> = derived.columns.iter().map(|&column| self.slot(plan, table, column)).collect();
            let (draft, expression) = (&mut self.tables[table], Some(derived.expression.clone()));
            match draft.derived.iter_mut().find(|known| known.text == text) {
                Some(known) => (known.expression, known.inputs) = (expression, inputs),
                None => {
                    if draft.layout.is_some() {
                        self.lacking.insert(Lacking::Expression { table: derived.table.clone(), text: text.to_owned() });
                    }
                    draft.derived.push(DerivedSlot { text: text.to_owned(), expression, inputs });
                }
            }
        }
        for node in &plan.nodes {
            let Some(&table) = self.by_name.get(&node.table.name) else { continue };
            self.tables[table].kept.extend(plan.node_columns(node));
        }
    }

    pub(super) fn table_of(&self, plan: &Plan, node: NodeId) -> TableId {
        self.by_name.get(&plan.nodes[node].table.name).copied().unwrap_or_default()
    }

    pub(super) fn slot(&self, plan: &Plan, table: TableId, column: usize) -> usize {
        let draft = &self.tables[table];
        // Every column that a plan names is among its table's used columns, and everything derived has its slot.
        match column.checked_sub(DERIVED).and_then(|nth| plan.derived.get(nth)) {
            Some(derived) => {
                let same = |known: &DerivedSlot| known.text == derived.expression.text();
                draft.columns.len() + draft.derived.iter().position(same).unwrap_or_default()
            }
            None => draft.columns.iter().position(|&used| used == column).unwrap_or_default(),
        }
    }

    pub(super) fn key(&self, plan: &Plan, table: TableId, parts: &[KeyPart]) -> Vec<SlotPart> {
        parts.iter().map(|part| SlotPart { slot: self.slot(plan, table, part.column), key_type: part.key_type }).collect()
    }

    /// The indexes that the state has, of tables that are still used.
    fn kept_indexes(&mut self) {
        let Some(base) = self.base else { return };
        let index = |kept: &Option<IndexLayout>| {
            let Some(kept) = kept else { return Index::dropped() };
            let Some(&table) = self.by_name.get(&kept.table) else { return Index::dropped() };
            let IndexLayout { kind, cluster, suffix, stored, keeps_null, .. } = kept.clone();
            Index { kind, cluster, suffix, stored, keeps_null, table }
        };
        self.indexes = base.indexes.iter().map(index).collect();
    }

    /// Takes out what the state has and nothing uses any more.
    fn drop_unused(&mut self) {
        let looked_up = self.ups.values().filter_map(|up| if let Up::Lookup(index) = up { Some(*index) } else { None });
        let rows = self.rows.values().chain(self.by_key.values()).chain(self.expiries.values()).copied();
        let used: BTreeSet<IndexId> = rows.chain(looked_up).collect();
        for (id, index) in self.indexes.iter_mut().enumerate().filter(|(id, _)| !used.contains(id)) {
            tracing::debug!(id, ?index, "an index is no longer used");
            *index = Index::dropped();
        }
    }

    fn index(&mut self, kind: IndexKind, table: TableId, cluster: Vec<SlotPart>, stored: &BTreeSet<usize>) -> IndexId {
        let serves = |index: &Index| {
            index.table == table && index.cluster == cluster && (index.kind == kind || index.kind == IndexKind::Rows)
        };
        let known = self.indexes.iter().position(serves);
        // Where whole rows are kept, what is lacking of them is told of the table.
        let whole = |id: IndexId| {
            self.indexes[id].kind == IndexKind::Rows || stored.iter().all(|slot| self.indexes[id].stored.contains(slot))
        };
        if let Some(id) = known.filter(|&id| self.base.is_none() || whole(id)) {
            let index = &mut self.indexes[id];
            let both: BTreeSet<usize> = index.stored.iter().chain(stored).copied().collect();
            index.stored = both.into_iter().collect();
            return id;
        }
        if self.base.is_some() {
            self.lacking.insert(self.lacking_index(table, &cluster));
            return 0;
        }
        let suffix = self.tables[table].own_key.iter().filter(|part| !cluster.contains(part)).copied().collect();
        let draft = &self.tables[table];
        let may_be_left_out = |&column: &usize| draft.schema.columns[column].sql_type.may_be_unavailable();
        let keeps_null = kind == IndexKind::Rows && draft.columns.iter().any(may_be_left_out);
        self.indexes.push(Index { kind, cluster, suffix, stored: stored.iter().copied().collect(), keeps_null, table });
        self.indexes.len() - 1
    }

    fn lacking_index(&self, table: TableId, cluster: &[SlotPart]) -> Lacking {
        let draft = &self.tables[table];
        let name = |part: &SlotPart| match draft.columns.get(part.slot) {
            Some(&column) => draft.schema.columns.get(column).map_or_else(String::new, |column| column.name.clone()),
            None => draft
                .derived
                .get(part.slot - draft.columns.len())
                .map_or_else(String::new, |derived| format!("`{}`", derived.text)),
        };
        let by = cluster.iter().map(name).collect::<Vec<_>>().join(", ");
        Lacking::Index { table: draft.schema.name.clone(), by }
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
                if plan.input.is_some() {
                    let index = self.index(IndexKind::Rows, table, self.tables[table].own_key.clone(), &all);
                    self.by_key.insert(entity, index);
                }
            }
        }
    }

    /// What a node's own way up starts from.
    fn needed(&self, plan: &Plan, id: NodeId) -> Vec<SlotPart> {
        let table = self.table_of(plan, id);
        let node = &plan.nodes[id];
        if node.parent.is_none() {
            let mut needed = self.key(plan, table, &plan.key);
            if plan.group.is_some() {
                // Which of the group's rows it was is asked as well.
                needed
                    .extend(self.tables[table].own_key.iter().filter(|part| !needed.contains(part)).copied().collect::<Vec<_>>());
            }
            return needed;
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

    /// Roots by the column that says when their time is over. NULL stands in none of them: it never is.
    fn expiries(&mut self, plans: &[Arc<Plan>]) {
        for (entity, plan) in plans.iter().enumerate() {
            let Some(time_to_live) = plan.time_to_live else { continue };
            let table = self.table_of(plan, 0);
            let cluster = self.key(plan, table, &[time_to_live.column]);
            let stored = self.key(plan, table, &plan.key).iter().map(|part| part.slot).collect();
            let index = self.index(IndexKind::Links, table, cluster, &stored);
            self.expiries.insert(entity, index);
        }
    }

    fn finish(self, plans: &[Arc<Plan>]) -> Catalog {
        let entities: Vec<Entity> = (0..plans.len()).map(|entity| self.entity(entity, plans)).collect();
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
        let (unchecked, layout) = (self.unchecked(&tables), self.layout(&tables));
        let numbers = (0..entities.len()).map(Ok).collect();
        Catalog {
            entities,
            tables,
            indexes: self.indexes,
            numbers,
            changes: 0,
            changed_at: 0,
            by_name: self.by_name,
            layout,
            unchecked,
            share: Default::default(),
            part_rows: crate::assemble::parts::PART_ROWS,
        }
    }

    /// What rows are checked for now, and were not when those of the state came in.
    fn unchecked(&self, tables: &[Table]) -> Vec<(TableId, SlotPart)> {
        let mut found = Vec::new();
        for (id, draft) in self.tables.iter().enumerate() {
            let (Some(base), Some(layout)) = (self.base, &draft.layout) else { continue };
            let encoded = |part: &SlotPart| {
                let mut indexes = base.indexes.iter().flatten().filter(|index| index.table == layout.name);
                indexes.any(|index| index.cluster.contains(part) || index.suffix.contains(part))
            };
            let new = tables[id].checked.iter().filter(|part| !layout.checked.contains(part) && !encoded(part));
            found.extend(new.map(|part| (id, *part)));
        }
        found
    }

    /// How the state keeps rows from here on.
    fn layout(&self, tables: &[Table]) -> Layout {
        let table = |(draft, table): (&TableDraft, &Table)| {
            let column = |(&column, &blank): (&usize, &bool)| Some(ColumnLayout::of(draft.schema.columns.get(column)?, blank));
            let text = |derived: &DerivedSlot| if derived.expression.is_some() { derived.text.clone() } else { String::new() };
            TableLayout {
                name: draft.schema.name.clone(),
                key: draft.own_key.clone(),
                columns: draft.columns.iter().zip(&table.blank).map(column).collect(),
                derived: table.derived.iter().map(text).collect(),
                checked: table.checked.clone(),
            }
        };
        let index = |index: &Index| {
            let table = self.tables.get(index.table)?.schema.name.clone();
            let Index { kind, keeps_null, .. } = *index;
            let (cluster, suffix, stored) = (index.cluster.clone(), index.suffix.clone(), index.stored.clone());
            Some(IndexLayout { table, kind, cluster, suffix, stored, keeps_null })
        };
        Layout { tables: self.tables.iter().zip(tables).map(table).collect(), indexes: self.indexes.iter().map(index).collect() }
    }

    /// The table of another node of the same entity.
    fn table_of_node(&self, entities: &[Entity], node: &Node, other: NodeId) -> TableId {
        let entity = entities.iter().find(|entity| entity.nodes.iter().any(|known| std::ptr::eq(known, node)));
        entity.map_or(node.table, |entity| entity.nodes[other].table)
    }

    /// Columns that were kept go on being kept: the next definition may use them.
    fn blank(&self, draft: &TableDraft) -> Vec<bool> {
        match &draft.layout {
            Some(layout) => layout.columns.iter().map(|kept| kept.as_ref().is_some_and(|kept| kept.blank)).collect(),
            None => draft.columns.iter().map(|column| !draft.kept.contains(column)).collect(),
        }
    }

    fn table(&self, id: TableId, draft: &TableDraft) -> Table {
        Table {
            schema: draft.schema.clone(),
            columns: Columns::new(&draft.schema, &draft.columns),
            slots: draft.slots(),
            derived: draft.derived.clone(),
            blank: self.blank(draft),
            own_key: draft.own_key.clone(),
            indexes: (0..self.indexes.len()).filter(|&index| self.indexes[index].table == id).collect(),
            checked: Vec::new(),
            places: Vec::new(),
        }
    }
}
