//! Several instances: which entities this one makes, and which rows it can do without.
//!
//! Each instance owns a range of the hash of the entities' keys ([`KeyRange`]). All read the same streams, and every one accounts for all that was published (INV-6), because what was published is counted over all
//! of it. What an instance saves is the state of entities that are not its own, the assembling and the writing.
//!
//! # Which rows are kept
//! An index serves *places*: nodes of entities whose rows stand in it, nodes that are looked up through it on the way up, and roots that it says the end of. Where the way up from a place to the root only goes over columns that the row has
//! ([`Up::Derive`]), the row itself tells the root's key: the root row, a child that holds the root's key, a grandchild that holds it too. Where that is so of all places that an index serves, a row is kept there only if one of those
//! roots is of this share. All other rows (references, and what is found through a lookup) are kept whole, because any row may come to belong to any root.
//!
//! # Why that changes nothing for the entities of the share
//! The state is a map from places to rows, and a step's puts and deletes at one place depend on nothing at another: so leaving places out leaves the others as they are ([`crate::step`]). A document reads, and the way up to it reads, only places
//! at which its own rows stand: of an index that leaves rows out, those whose root's key is the document's. The one thing that reads a row to write another is a value that the source did not record ([`route`](crate::route)):
//! of tables that have such columns everything is kept.
//!
//! # What a state of a range can become
//! It serves that range, and with less any part of it ([`crate::reshape`]). It never serves more: what was left out is not there. Other definitions are served in place as long as the same rows are left out for them
//! ([`crate::definitions`]): a change of fields, filters, aggregates, computed fields, limits or orders leaves out the same ones, another entity over rows that are left out does not.

use std::collections::BTreeSet;

use schemas::KeyRange;
use schemas::plan::NodeId;

use crate::assemble::entity_key;
use crate::catalog::{Catalog, Entity, Index, IndexId, IndexKind, SlotPart, Up};
use crate::state::key;

/// The share of one instance.
#[derive(Debug, Default)]
pub(crate) struct Share {
    pub(crate) range: KeyRange,
    /// By index: how a row of it tells the roots that it may belong to; none where it cannot, or where everything is kept anyway.
    ways: Vec<Option<Vec<Way>>>,
}

/// The slots of a row that make the key of a root.
#[derive(Debug, PartialEq)]
struct Way {
    entity: usize,
    parts: Vec<SlotPart>,
}

impl Share {
    pub(crate) fn new(entities: &[Entity], indexes: &[Index], unrecorded: impl Fn(&Index) -> bool, range: KeyRange) -> Self {
        if range.is_all() {
            return Self::default();
        }
        let ways = indexes.iter().enumerate().map(|(id, index)| ways(entities, id).filter(|_| !unrecorded(index))).collect();
        Self { range, ways }
    }

    /// Whether an entity is of this share, by the bytes of its key.
    pub(crate) fn owns(&self, entity: &Entity, parts: &[u8]) -> bool {
        self.range.is_all() || entity_key(entity, parts).is_some_and(|key| self.range.holds(&entity.name, &key))
    }

    /// Whether an index leaves rows out.
    pub(crate) fn is_partial(&self, index: IndexId) -> bool {
        self.ways.get(index).is_some_and(Option::is_some)
    }

    /// By which entities' keys, and which columns of a row, an index keeps it; none where it keeps all.
    pub(crate) fn kept_by<'c>(&'c self, entities: &'c [Entity], index: IndexId) -> Option<BTreeSet<(&'c str, &'c [SlotPart])>> {
        let ways = self.ways.get(index)?.as_ref()?;
        Some(ways.iter().map(|way| (entities[way.entity].name.as_ref(), way.parts.as_slice())).collect())
    }

    /// Whether an index keeps a row, which `get` tells by slot.
    pub(crate) fn keeps<'r>(&self, entities: &[Entity], index: IndexId, get: impl Fn(usize) -> &'r [u8]) -> bool {
        let Some(Some(ways)) = self.ways.get(index) else { return true };
        let mut bytes = Vec::new();
        ways.iter().any(|way| {
            bytes.clear();
            // NULL in the key, and a value that cannot be one, make no entity.
            let is_key = way.parts.iter().all(|part| key::encode(get(part.slot), part.key_type, &mut bytes).unwrap_or(false));
            is_key && self.owns(&entities[way.entity], &bytes)
        })
    }

    /// The same of a row as the index keeps it.
    pub(crate) fn keeps_stored(&self, catalog: &Catalog, id: IndexId, columns: &[&[u8]]) -> bool {
        let index = &catalog.indexes[id];
        let get = |slot: usize| match index.kind {
            IndexKind::Rows => columns.get(slot).copied().unwrap_or_default(),
            IndexKind::Links => {
                let nth = index.stored.iter().position(|&stored| stored == slot);
                nth.and_then(|nth| columns.get(nth).copied()).unwrap_or_default()
            }
        };
        self.keeps(&catalog.entities, id, get)
    }
}

/// How rows of an index tell their roots; none where one of the places that it serves cannot.
fn ways(entities: &[Entity], id: IndexId) -> Option<Vec<Way>> {
    let mut ways: Vec<Way> = Vec::new();
    for (entity, of) in entities.iter().enumerate() {
        for (nth, node) in of.nodes.iter().enumerate() {
            let stands = (node.rows == id).then_some(nth);
            let looked_up = if node.up == Up::Lookup(id) { node.parent } else { None };
            let expires = (nth == 0 && of.expiry.as_ref().is_some_and(|expiry| expiry.index == id)).then_some(0);
            for place in stands.into_iter().chain(looked_up).chain(expires) {
                let way = Way { entity, parts: root_key(of, place)? };
                if !ways.contains(&way) {
                    ways.push(way);
                }
            }
        }
    }
    Some(ways)
}

/// The slots of a node's row that make the root's key; none where the row does not tell it.
fn root_key(entity: &Entity, id: NodeId) -> Option<Vec<SlotPart>> {
    let node = &entity.nodes[id];
    let Some(parent) = node.parent else { return Some(entity.key.clone()) };
    if node.up != Up::Derive {
        return None;
    }
    let of_parent = root_key(entity, parent)?;
    let own = |part: &SlotPart| {
        let link = node.link.iter().find(|link| link.parent_slot == part.slot && link.key_type == part.key_type)?;
        Some(SlotPart { slot: link.own_slot, key_type: part.key_type })
    };
    of_parent.iter().map(own).collect()
}
