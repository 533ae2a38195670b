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
//!   Rows index has the same cluster, it serves instead; where the child's own columns already tell what the way up needs, there is none. Links by a time lead from it to the roots whose time it is ([`Expiry`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use expressions::{Expression, Type};
use schemas::parse::Columns;
use schemas::plan::{AggregateKind, KeyType, NodeId, Plan, TimeToLive};
use schemas::table::TableSchema;
use schemas::{KeyRange, TableName};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::share::Share;
use crate::state::key;
use crate::state::row::Row;

mod build;
mod entities;
mod layout;
mod mask;
mod shape;

use build::Builder;
pub use layout::Lacking;
pub(crate) use layout::Layout;
pub(crate) use mask::SlotMask;
pub(crate) use shape::{fingerprint, shape};

pub(crate) type IndexId = usize;
pub(crate) type TableId = usize;

/// A used column where it is part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct SlotPart {
    pub(crate) slot: usize,
    pub(crate) key_type: KeyType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IndexKind {
    Rows,
    Links,
}

/// Its place among the indexes is its number in the state's keys: one that is no longer used leaves a hole there (an index of [`NO_TABLE`]).
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

/// The table of an index that is there no more.
const NO_TABLE: TableId = usize::MAX;

impl Index {
    fn dropped() -> Self {
        let (cluster, suffix, stored) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind: IndexKind::Links, cluster, suffix, stored, keeps_null: false, table: NO_TABLE }
    }

    /// Whether two rows of the table stand at one place: they are the same in the columns that make it.
    pub(crate) fn puts_alike(&self, one: Row<'_>, other: Row<'_>) -> bool {
        self.cluster.iter().chain(&self.suffix).all(|part| one.get(part.slot) == other.get(part.slot))
    }

    /// What a key has in common with those of the same cluster. None where a cluster has but one row, and where a part of it is NULL: nothing joins with that.
    pub(crate) fn cluster_of<'k>(&self, place: &'k [u8]) -> Option<&'k [u8]> {
        if self.suffix.is_empty() {
            return None;
        }
        let parts = place.get(std::mem::size_of::<u16>()..)?;
        let rest = self.cluster.iter().try_fold(parts, |rest, part| key::skip(rest, part.key_type))?;
        Some(&place[..place.len() - rest.len()])
    }
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
    pub(crate) text: String,
    /// None of one that no definition uses any more: NULL stands there.
    pub(crate) expression: Option<Arc<Expression>>,
    /// The slot of each of its variables.
    pub(crate) inputs: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Entity {
    pub(crate) name: Arc<str>,
    /// Stands for the entity in the state's keys and in the outbox.
    pub(crate) number: u16,
    /// Which change of the definitions made its documents what they are; 0 is how the state began.
    pub(crate) changed: u32,
    /// Outbox entries up to this one are of what the entity was before.
    pub(crate) since: u64,
    pub(crate) plan: Arc<Plan>,
    pub(crate) key: Vec<SlotPart>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) group: Option<Group>,
    /// How its rows are made, where they are documents of another entity.
    pub(crate) of: Option<OfDocuments>,
    /// The entities that roll up its documents.
    pub(crate) rolled_up_by: Vec<usize>,
    pub(crate) expiry: Option<Expiry>,
}

/// Where it stands when entities' time is over.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// The roots by the column.
    pub(crate) index: IndexId,
    /// The column.
    pub(crate) slot: usize,
    pub(crate) time_to_live: TimeToLive,
}

impl Entity {
    /// The index in which the entity's key leads to one row, its root; none where it does not.
    pub(crate) fn root_index(&self, indexes: &[Index]) -> Option<IndexId> {
        let index = self.nodes[0].rows;
        (self.group.is_none() && indexes[index].suffix.is_empty()).then_some(index)
    }
}

/// Where the rows stand that are made of another entity's documents.
#[derive(Debug)]
pub(crate) struct OfDocuments {
    pub(crate) entity: usize,
    pub(crate) table: TableId,
    /// Rows by their own key, which is that of the document's entity.
    pub(crate) by_key: IndexId,
    /// By slot, the column.
    pub(crate) columns: Vec<usize>,
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
    /// Whether the aggregates over its rows need nothing but what stands in them.
    pub(crate) local: bool,
    /// Whether they are kept in parts ([`crate::assemble::parts`]).
    pub(crate) parts: bool,
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
    /// By number, all entities that the state has ever had: the place among `entities`, or the name that it had.
    pub(crate) numbers: Vec<Result<usize, Arc<str>>>,
    /// Counts changes of the definitions; and the last outbox entry before the last of them.
    pub(crate) changes: u32,
    pub(crate) changed_at: u64,
    by_name: HashMap<TableName, TableId>,
    /// What of it the state's bytes depend on.
    pub(crate) layout: Layout,
    /// Parts that rows of the state were not checked for ([`Table::checked`]).
    pub(crate) unchecked: Vec<(TableId, SlotPart)>,
    /// Of the entities and rows: what this instance makes and keeps.
    pub(crate) share: Share,
    /// [`crate::Config::part_rows`].
    pub(crate) part_rows: u32,
}

impl Catalog {
    /// The same for an instance that makes the entities of a range.
    pub(crate) fn with_share(mut self, range: KeyRange) -> Self {
        // What the source did not record is taken from rows that stand.
        let unrecorded: Vec<TableId> = self.indexes.iter().filter(|index| index.keeps_null).map(|index| index.table).collect();
        self.share = Share::new(&self.entities, &self.indexes, |index| unrecorded.contains(&index.table), range);
        self
    }

    /// The same with other parts of aggregates.
    pub(crate) fn with_parts(mut self, rows: u32) -> Self {
        self.part_rows = rows;
        self
    }

    /// For a state that is yet to be made, of all entities.
    pub(crate) fn new(plans: &[Arc<Plan>]) -> Result<Self, Error> {
        let (catalog, _) = Builder::build(plans, None)?;
        Ok(catalog)
    }

    /// For a state that keeps rows like this; or what it lacks.
    pub(crate) fn within(plans: &[Arc<Plan>], layout: &Layout) -> Result<Result<Self, BTreeSet<Lacking>>, Error> {
        let (catalog, lacking) = Builder::build(plans, Some(layout))?;
        Ok(if lacking.is_empty() { Ok(catalog) } else { Err(lacking) })
    }

    /// By entity, the change of its definition that made it what it is: what the cursor of a sink has that was loaded since.
    pub(crate) fn changes_by_entity(&self) -> BTreeMap<String, u32> {
        let changed = self.entities.iter().filter(|entity| entity.changed > 0);
        changed.map(|entity| (entity.name.to_string(), entity.changed)).collect()
    }

    /// The numbers of entities of which something is made of all that there is, before anything is told: rows of documents that are rolled up, letters of documents that are too large.
    pub(crate) fn made_first(&self) -> impl Iterator<Item = u16> {
        let made = |entity: &&Entity| entity.of.is_some() || entity.plan.definition.sets_aside();
        self.entities.iter().filter(made).map(|entity| entity.number)
    }

    /// Whether the rows of a table are made of documents.
    pub(crate) fn is_of_documents(&self, table: TableId) -> bool {
        self.entities.iter().any(|entity| entity.of.as_ref().is_some_and(|of| of.table == table))
    }

    /// Those that are not dropped.
    pub(crate) fn live_indexes(&self) -> impl Iterator<Item = IndexId> {
        self.indexes.iter().enumerate().filter(|(_, index)| index.table != NO_TABLE).map(|(id, _)| id)
    }

    /// The entities whose share decides which rows an index keeps, and by which columns; none where it keeps all.
    pub(crate) fn kept_by(&self, index: IndexId) -> Option<BTreeSet<(&str, &[SlotPart])>> {
        self.share.kept_by(&self.entities, index)
    }

    pub(crate) fn table(&self, name: &TableName) -> Option<TableId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn entity(&self, name: &str) -> Option<usize> {
        self.entities.iter().position(|entity| entity.name.as_ref() == name)
    }

    /// The entity of a number that stands in the state; none of one that is no longer defined.
    pub(crate) fn numbered(&self, number: u16) -> Option<usize> {
        self.numbers.get(usize::from(number))?.as_ref().ok().copied()
    }
}
