//! The way up from a row to the entities that it is part of, and walks: ways up that lead to so many that they are gone bit by bit.
//!
//! A walk is a stack of frames, the row that was begun from at the bottom: each says what is known of a row, and which of the rows above it have been passed. It reads the indexes as they stand whenever it
//! goes on. So an owner that came to refer to the row, or ceased to, since the walk began may be missed, or met in vain: the change of the owner that did so has told it already.
//!
//! Kept in the `walks` family by a rising number: the entity's number (u16), lazy (1), since (10), complete up to (10), commit time of that (i64), then each frame: node (u16), length of the row (u32), the row, length of what has been
//! passed plus one (u32; 0: nothing yet), what has been passed. All integers are big-endian.

use schemas::Lsn;
use schemas::plan::NodeId;

use crate::catalog::{Catalog, Entity, IndexId, Node, Up};
use crate::error::Error;
use crate::state::key;
use crate::state::row;
use crate::state::view::{View, family, start_key};

/// How the way up from a node is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The rows on the way tell their parents: it leads to one entity at most.
    One,
    /// By way of indexes, to any number; whether they may be told bit by bit.
    Many { lazy: bool },
}

pub(super) fn reach(entity: &Entity, node: NodeId) -> Reach {
    let above = std::iter::successors(Some(node), |&at| entity.nodes[at].parent);
    let (mut looked_up, mut lazy) = (false, false);
    for at in above {
        looked_up |= matches!(entity.nodes[at].up, Up::Lookup(_));
        // What is rolled up is told with the rest: the roll-up is of one LSN.
        lazy |= entity.plan.nodes[at].lazy && entity.rolled_up_by.is_empty();
    }
    if looked_up { Reach::Many { lazy } } else { Reach::One }
}

/// Room for most keys.
const KEY_BYTES: usize = 24;

/// The key of the entity whose root has these columns: the entity's number (u16), then the entity key's parts. None where one is NULL, and where the entity is another instance's.
pub(super) fn owner(view: View<'_>, entity_id: usize, row: &[&[u8]]) -> Result<Option<Vec<u8>>, Error> {
    let entity = &view.catalog.entities[entity_id];
    let mut key = Vec::with_capacity(KEY_BYTES);
    key.extend_from_slice(&entity.number.to_be_bytes());
    for part in &entity.key {
        if !key::encode(get(row, part.slot), part.key_type, &mut key).map_err(|error| corrupt(view, entity, 0, error))? {
            return Ok(None);
        }
    }
    // Others make those that are not of this instance's share.
    Ok(view.catalog.share.owns(entity, &key[2..]).then_some(key))
}

/// Where the rows above a row begin in the index that leads to them. None where the row refers to nothing.
pub(super) fn above(
    view: View<'_>,
    entity: &Entity,
    id: NodeId,
    index: IndexId,
    row: &[&[u8]],
) -> Result<Option<Vec<u8>>, Error> {
    let mut prefix = Vec::new();
    start_key(index, &mut prefix);
    for link in &entity.nodes[id].link {
        let known = key::encode(get(row, link.own_slot), link.key_type, &mut prefix);
        if !known.map_err(|error| corrupt(view, entity, id, error))? {
            return Ok(None);
        }
    }
    Ok(Some(prefix))
}

/// What a row's own columns tell of its parent.
pub(super) fn told_by_link<'r>(catalog: &Catalog, parent: &Node, node: &Node, row: &[&'r [u8]]) -> Vec<&'r [u8]> {
    let mut known: Vec<&[u8]> = vec![b""; catalog.tables[parent.table].slots];
    for link in &node.link {
        known[link.parent_slot] = get(row, link.own_slot);
    }
    known
}

/// What an index tells of a parent.
pub(super) fn told_by_index<'r>(catalog: &Catalog, parent: &Node, index: IndexId, value: &'r [u8]) -> Vec<&'r [u8]> {
    let mut known: Vec<&[u8]> = vec![b""; catalog.tables[parent.table].slots];
    for (slot, fragment) in catalog.indexes[index].stored.iter().zip(row::columns(value)) {
        known[*slot] = fragment;
    }
    known
}

fn get<'r>(row: &[&'r [u8]], slot: usize) -> &'r [u8] {
    row.get(slot).copied().unwrap_or_default()
}

fn corrupt(view: View<'_>, entity: &Entity, node: NodeId, error: key::KeyError) -> Error {
    view.store.corrupt(format!("{}: {error}", entity.plan.nodes[node].path))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Frame {
    node: NodeId,
    /// The columns that are known, those of the whole table in their order.
    row: Vec<u8>,
    /// What follows the prefix in the key of the row above that was visited last.
    passed: Option<Vec<u8>>,
}

impl Frame {
    fn new<'r>(node: NodeId, columns: impl Iterator<Item = &'r [u8]>) -> Self {
        let mut row = Vec::new();
        columns.for_each(|column| row::put(column, &mut row));
        Self { node, row, passed: None }
    }
}

/// A way up that is gone bit by bit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Walk {
    entity: usize,
    frames: Vec<Frame>,
}

impl Walk {
    /// From a row of a node. Rows that agree in the columns that the way up needs begin the same walk.
    pub(super) fn new(catalog: &Catalog, entity: usize, id: NodeId, row: &[&[u8]]) -> Self {
        let node = &catalog.entities[entity].nodes[id];
        let is_needed = |slot: usize| node.link.iter().any(|link| link.own_slot == slot);
        let columns = (0..catalog.tables[node.table].slots).map(|slot| if is_needed(slot) { get(row, slot) } else { &[] });
        Self { entity, frames: vec![Frame::new(id, columns)] }
    }

    pub(super) const fn entity(&self) -> usize {
        self.entity
    }

    pub(super) const fn is_over(&self) -> bool {
        self.frames.is_empty()
    }

    /// Goes on; answers the keys of about `count` entities, fewer only at the end.
    pub(super) fn next(&mut self, view: View<'_>, count: usize) -> Result<Vec<Vec<u8>>, Error> {
        let mut owners = Vec::new();
        while owners.len() < count
            && let Some(frame) = self.frames.pop()
        {
            self.rise(view, frame, count, &mut owners)?;
        }
        Ok(owners)
    }

    /// One level up: a frame has been taken from the stack, and is put back if it is not done with.
    fn rise(&mut self, view: View<'_>, mut frame: Frame, count: usize, owners: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        let entity = &view.catalog.entities[self.entity];
        let node = &entity.nodes[frame.node];
        let columns: Vec<&[u8]> = row::columns(&frame.row).collect();
        let Some(parent_id) = node.parent else {
            owners.extend(owner(view, self.entity, &columns)?);
            return Ok(());
        };
        let parent = &entity.nodes[parent_id];
        let index = match node.up {
            Up::Root => return Ok(()),
            Up::Derive => {
                let known = told_by_link(view.catalog, parent, node, &columns);
                self.frames.push(Frame::new(parent_id, known.into_iter()));
                return Ok(());
            }
            Up::Lookup(index) => index,
        };
        let Some(prefix) = above(view, entity, frame.node, index, &columns)? else { return Ok(()) };
        let mut rows = view.snapshot.raw_iterator_cf(view.store.family(family(view.catalog.indexes[index].kind))?);
        let start = [prefix.as_slice(), frame.passed.as_deref().unwrap_or_default()].concat();
        rows.seek(&start);
        if frame.passed.is_some() && rows.key() == Some(&start) {
            rows.next();
        }
        while let Some((rest, value)) = rows.item().and_then(|(key, value)| Some((key.strip_prefix(prefix.as_slice())?, value))) {
            let known = told_by_index(view.catalog, parent, index, value);
            let full = if parent.parent.is_none() {
                // Rows of one group follow one another.
                let found = owner(view, self.entity, &known)?.filter(|owner| owners.last() != Some(owner));
                owners.extend(found);
                owners.len() >= count
            } else {
                true
            };
            if full {
                frame.passed = Some(rest.to_vec());
                let next = parent.parent.map(|_| Frame::new(parent_id, known.into_iter()));
                self.frames.push(frame);
                self.frames.extend(next);
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| view.store.error(&error))
    }
}

/// A walk that has not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) walk: Walk,
    pub(super) lazy: bool,
    /// The frontier with which the row changed.
    pub(super) since: Lsn,
    /// The frontier before, and its commit time: once every earlier walk is over, all owners have been told of everything up to there.
    pub(super) before: (Lsn, i64),
}

impl Waiting {
    pub(super) fn encode(&self, catalog: &Catalog) -> Vec<u8> {
        let mut out = catalog.entities[self.walk.entity].number.to_be_bytes().to_vec();
        out.push(u8::from(self.lazy));
        out.extend_from_slice(self.since.as_bytes());
        out.extend_from_slice(self.before.0.as_bytes());
        out.extend_from_slice(&self.before.1.to_be_bytes());
        for frame in &self.walk.frames {
            out.extend_from_slice(&(frame.node as u16).to_be_bytes());
            out.extend_from_slice(&(frame.row.len() as u32).to_be_bytes());
            out.extend_from_slice(&frame.row);
            let passed = frame.passed.as_deref();
            out.extend_from_slice(&passed.map_or(0, |passed| passed.len() as u32 + 1).to_be_bytes());
            out.extend_from_slice(passed.unwrap_or_default());
        }
        out
    }

    /// None where the bytes are no walk over these entities.
    pub(super) fn decode(bytes: &[u8], catalog: &Catalog) -> Option<Self> {
        let (entity, rest) = bytes.split_first_chunk::<2>()?;
        let entity = catalog.numbered(u16::from_be_bytes(*entity))?;
        let nodes = catalog.entities[entity].nodes.len();
        let (&lazy, rest) = rest.split_first()?;
        let (since, rest) = rest.split_first_chunk::<10>()?;
        let (before, rest) = rest.split_first_chunk::<10>()?;
        let (time, mut rest) = rest.split_first_chunk::<8>()?;
        let mut frames = Vec::new();
        while let Some((node, after)) = rest.split_first_chunk::<2>() {
            let node = usize::from(u16::from_be_bytes(*node));
            let (length, after) = after.split_first_chunk::<4>()?;
            let (row, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            let (length, after) = after.split_first_chunk::<4>()?;
            let length = (u32::from_be_bytes(*length) as usize).checked_sub(1);
            let (passed, after) = after.split_at_checked(length.unwrap_or_default())?;
            if node >= nodes {
                return None;
            }
            frames.push(Frame { node, row: row.to_vec(), passed: length.map(|_| passed.to_vec()) });
            rest = after;
        }
        let before = (Lsn::from_bytes(*before), i64::from_be_bytes(*time));
        rest.is_empty().then_some(Self { walk: Walk { entity, frames }, lazy: lazy == 1, since: Lsn::from_bytes(*since), before })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use proptest::prelude::*;
    use schemas::TableName;
    use schemas::entity::EntityDefinition;
    use schemas::plan::Plan;
    use schemas::table::{Column, TableSchema};

    use super::*;

    fn catalog() -> Catalog {
        let column = |name: &str| Column {
            name: name.to_owned(),
            sql_type: "int".parse().unwrap(),
            nullable: false,
            case_insensitive: false,
        };
        let table = |name: &TableName| {
            let columns = vec![column("id"), column("other")];
            Some(Arc::new(TableSchema { name: name.clone(), columns, key: vec![0] }))
        };
        let text = "{entity: e, table: dbo.a, one: {b: {table: dbo.b, by: [other]}}}";
        let plan = Plan::resolve(&EntityDefinition::from_yaml("e.yaml", text).unwrap(), &table).unwrap();
        Catalog::new(&[Arc::new(plan)]).unwrap()
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (0..2usize, any::<Vec<u8>>(), any::<Option<Vec<u8>>>());
        prop::collection::vec(frame.prop_map(|(node, row, passed)| Frame { node, row, passed }), 0..4)
    }

    proptest! {
        #[test]
        fn walks_round_trip(frames in frames(), lazy: bool, since: [u8; 10], before: [u8; 10], time: i64, damage: Vec<u8>) {
            let catalog = catalog();
            let walk = Walk { entity: 0, frames };
            let waiting = Waiting { walk, lazy, since: Lsn::from_bytes(since), before: (Lsn::from_bytes(before), time) };
            let bytes = waiting.encode(&catalog);
            prop_assert_eq!(Waiting::decode(&bytes, &catalog), Some(waiting));
            prop_assert_eq!(Waiting::decode(&bytes[..bytes.len() - 1], &catalog), None);
            let _ = Waiting::decode(&damage, &catalog);
        }
    }
}
