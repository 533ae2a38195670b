//! Which entities a change may have touched: up from the row's old and new image to the roots.
//!
//! # Why walking through the state as it is after the step finds every entity that differs
//! Take a root whose document differs between the old and the new frontier, and in its tree a place nearest to the root where a row differs, came or went. All rows above that place are the same at both
//! frontiers (in the columns that matter), so they stand in the state after the step, with the indexes that lead upwards from them. The row at the place was changed by an event of the step, and its image at one of the
//! frontiers is the before or after image of an event; walking up from that image goes through just those rows above, and reaches the root. What is reached without need costs an assembly: its
//! document has not changed, and is dropped.
//!
//! Rows that a node's filter leaves out are not there, as far as the argument goes: a row that comes to meet it comes, one that ceases to goes. Whether a row meets it is a slot of the row, so both images say it.

use schemas::plan::NodeId;

use crate::buffer::{ChangeRef, Kind};
use crate::catalog::{Entity, SlotMask, Up};
use crate::error::Error;
use crate::state::key;
use crate::state::row;
use crate::state::view::{Cursor, Reading, View, start_key};

/// Roots are sorted and freed of repeats whenever this many have come together.
const TIDY: usize = 1 << 20;

/// Collects the keys of entities: entity (u16), then the entity key's parts.
pub(crate) struct Dirty<'a> {
    view: View<'a>,
    /// By entity and node: over the index that leads up from the node.
    cursors: Vec<Vec<Option<Cursor<'a>>>>,
    roots: Vec<Vec<u8>>,
    tidy_at: usize,
}

impl<'a> Dirty<'a> {
    pub(crate) fn new(view: View<'a>) -> Self {
        let cursors = view.catalog.entities.iter().map(|entity| entity.nodes.iter().map(|_| None).collect()).collect();
        Self { view, cursors, roots: Vec::new(), tidy_at: TIDY }
    }

    pub(crate) fn add(&mut self, change: ChangeRef<'_>) -> Result<(), Error> {
        if change.kind != Kind::Rows {
            return Ok(());
        }
        let catalog = self.view.catalog;
        let table = &catalog.tables[change.table];
        let before: Option<Vec<&[u8]>> = change.before.map(|image| row::columns(image).collect());
        let after: Option<Vec<&[u8]>> = change.after.map(|image| row::columns(image).collect());
        let changed = match (&before, &after) {
            (Some(before), Some(after)) => {
                let mut changed = SlotMask::default();
                let differs = |(_, (a, b)): &(usize, (&&[u8], &&[u8]))| a != b && !row::is_unavailable(b);
                before.iter().zip(after).enumerate().filter(differs).for_each(|(slot, _)| changed.add(slot));
                changed
            }
            _ => SlotMask::ALL,
        };
        for place in &table.places {
            if place.mask.meets(changed) {
                // A row that the place's filter leaves out, or left out, is not part of any document there.
                let takes_part = |image: &&Vec<&[u8]>| place.filter.is_none_or(|slot| image.get(slot).copied() == Some(b"true"));
                for image in [&before, &after].into_iter().flatten().filter(takes_part) {
                    self.up(place.entity, place.node, image)?;
                }
            }
        }
        Ok(())
    }

    /// Goes up from a row of a node, of which at least the columns that the way up needs are known.
    fn up(&mut self, entity_id: usize, id: NodeId, row: &[&[u8]]) -> Result<(), Error> {
        let view = self.view;
        let entity: &'a Entity = &view.catalog.entities[entity_id];
        let node = &entity.nodes[id];
        let get = |slot: usize| row.get(slot).copied().unwrap_or_default();
        let corrupt = |error: key::KeyError| view.store.corrupt(format!("{}: {error}", entity.plan.nodes[id].path));
        let Some(parent) = node.parent else {
            let mut key = entity.number.to_be_bytes().to_vec();
            for part in &entity.key {
                if !key::encode(get(part.slot), part.key_type, &mut key).map_err(corrupt)? {
                    return Ok(());
                }
            }
            self.roots.push(key);
            if self.roots.len() >= self.tidy_at {
                self.tidy();
                self.tidy_at = self.roots.len() + TIDY;
            }
            return Ok(());
        };
        let parent_slots = view.catalog.tables[entity.nodes[parent].table].slots;
        match node.up {
            Up::Root => Ok(()),
            Up::Derive => {
                let mut known: Vec<&[u8]> = vec![b""; parent_slots];
                for link in &node.link {
                    known[link.parent_slot] = get(link.own_slot);
                }
                self.up(entity_id, parent, &known)
            }
            Up::Lookup(index) => {
                let mut prefix = Vec::new();
                start_key(index, &mut prefix);
                for link in &node.link {
                    if !key::encode(get(link.own_slot), link.key_type, &mut prefix).map_err(corrupt)? {
                        return Ok(());
                    }
                }
                let mut cursor = match self.cursors[entity_id][id].take() {
                    Some(cursor) => cursor,
                    None => view.cursor(index, Reading::Once)?,
                };
                let stored = &view.catalog.indexes[index].stored;
                let visited = cursor.visit(&prefix, view.writes(index), |_, value| {
                    let mut known: Vec<&[u8]> = vec![b""; parent_slots];
                    for (slot, fragment) in stored.iter().zip(row::columns(value)) {
                        known[*slot] = fragment;
                    }
                    self.up(entity_id, parent, &known)?;
                    Ok(true)
                });
                self.cursors[entity_id][id] = Some(cursor);
                visited
            }
        }
    }

    fn tidy(&mut self) {
        self.roots.sort_unstable();
        self.roots.dedup();
    }

    /// The keys found, in order, each once.
    pub(crate) fn finish(mut self) -> Vec<Vec<u8>> {
        self.tidy();
        self.roots
    }
}
