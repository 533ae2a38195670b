//! Which entities a change may have touched: up from the row's old and new image to the roots.
//!
//! # Why walking through the state as it is after the step finds every entity that differs
//! Take a root whose document differs between the old and the new frontier, and in its tree a place nearest to the root where a row differs, came or went. All rows above that place are the same at both
//! frontiers (in the columns that matter), so they stand in the state after the step, with the indexes that lead upwards from them. The row at the place was changed by an event of the step, and its image at one of the
//! frontiers is the before or after image of an event; walking up from that image goes through just those rows above, and reaches the root. What is reached without need costs an assembly: its
//! document has not changed, and is dropped.
//!
//! Rows that a node's filter leaves out are not there, as far as the argument goes: a row that comes to meet it comes, one that ceases to goes. Whether a row meets it is a slot of the row, so both images say it.
//!
//! # Many owners
//! A way up that leads by way of indexes (that of a customer to its orders) may lead to a million entities. What is found that way is bounded ([`Room`]); where it is more, nothing of it is taken, and the way is left to a
//! [`Walk`]. Where nothing may be left to walks, what has been found is handed on whenever it is more than is kept in memory ([`Dirty::with_overflow`]).

use std::collections::{BTreeMap, HashSet};

use schemas::plan::NodeId;

use super::walk::{Reach, Walk, above, owner, reach, told_by_index, told_by_link};
use crate::assemble::parts::Touch;
use crate::buffer::{ChangeRef, Kind};
use crate::catalog::{Entity, SlotMask, Up};
use crate::error::Error;
use crate::state::row;
use crate::state::view::{Cursor, Reading, View};

/// Roots are sorted and freed of repeats whenever this many have come together.
const TIDY: usize = 1 << 20;
/// So many owners of one row are always taken in.
const FEW: usize = 16;
/// So many in all may be taken in at once although their edge is lazy: it takes no longer than other steps do.
const AT_ONCE: usize = 1000;

/// How many entities a step may find by way of indexes before the rest is left to walks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    few: usize,
    strict: usize,
    lazy: usize,
}

impl Room {
    /// There are no walks.
    pub(crate) const ALL: Self = Self { few: usize::MAX, strict: usize::MAX, lazy: usize::MAX };

    pub(crate) fn of_chunk(chunk: usize) -> Self {
        Self { few: FEW.min(chunk), strict: chunk, lazy: AT_ONCE.min(chunk) }
    }
}

/// What a step has touched.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Keys of entities, in order, each once.
    pub(crate) owners: Vec<Vec<u8>>,
    /// Ways up that lead to too many, and whether they may be gone bit by bit beside later steps.
    pub(crate) walks: BTreeMap<Walk, bool>,
    /// Rows under aggregates that are kept in parts; none where they are too many.
    pub(crate) rows: Option<Vec<Touch>>,
}

/// Takes keys of entities that are not kept: some of them may come more than once.
type Overflow<'o> = &'o mut dyn FnMut(Vec<Vec<u8>>) -> Result<(), Error>;

/// Whether the ways up from two rows of a node are one: they are the same in the columns that lead upwards, and no other tells anything on the way.
fn leads_alike(entity: &Entity, id: NodeId, one: &[&[u8]], other: &[&[u8]]) -> bool {
    let node = &entity.nodes[id];
    let same = |slot: usize| one.get(slot) == other.get(slot);
    !node.parts
        && match node.parent {
            Some(_) => node.link.iter().all(|link| same(link.own_slot)),
            None => entity.key.iter().all(|part| same(part.slot)),
        }
}

/// Collects the keys of entities: entity (u16), then the entity key's parts.
pub(crate) struct Dirty<'a, 'o> {
    view: View<'a>,
    /// By entity and node: over the index that leads up from the node.
    cursors: Vec<Vec<Option<Cursor<'a>>>>,
    roots: Vec<Vec<u8>>,
    /// Rows under aggregates that are kept in parts ([`crate::assemble::parts`]), unless there are too many.
    touches: Option<Vec<Touch>>,
    tidy_at: usize,
    /// Found on the way that is being gone, and how many more are too many.
    found: Vec<Vec<u8>>,
    limit: usize,
    room: Room,
    walks: BTreeMap<Walk, bool>,
    /// Ways that led to more than a few, and have been gone.
    gone: HashSet<Walk>,
    /// How many are kept, and where the others go.
    overflow: Option<(usize, Overflow<'o>)>,
    /// Whether any have gone there since the way up was begun.
    overflown: bool,
}

impl<'a, 'o> Dirty<'a, 'o> {
    pub(crate) fn new(view: View<'a>, room: Room) -> Self {
        let cursors = view.catalog.entities.iter().map(|entity| entity.nodes.iter().map(|_| None).collect()).collect();
        Self {
            view,
            cursors,
            roots: Vec::new(),
            touches: Some(Vec::new()),
            tidy_at: TIDY,
            found: Vec::new(),
            limit: usize::MAX,
            room,
            walks: BTreeMap::new(),
            gone: HashSet::new(),
            overflow: None,
            overflown: false,
        }
    }

    /// About so many keys are kept, and the others handed on as they are found.
    pub(crate) fn with_overflow(mut self, most: usize, overflow: Overflow<'o>) -> Self {
        (self.tidy_at, self.overflow) = (self.tidy_at.min(most), Some((most, overflow)));
        // A way that leads to very many is gone once.
        self.room.few = FEW;
        self
    }

    /// `doubtful`: the before image need not be what stands in the state. While a table is read again, changes between may have been lost: a column that this one leaves alone may be another than was told, and a row that
    /// takes part in neither image may have taken part.
    pub(crate) fn add(&mut self, change: ChangeRef<'_>, doubtful: bool) -> Result<(), Error> {
        if change.kind != Kind::Rows {
            return Ok(());
        }
        let catalog = self.view.catalog;
        let table = &catalog.tables[change.table];
        let slots = table.slots;
        let columns = |image| {
            let mut columns = Vec::with_capacity(slots);
            columns.extend(row::columns(image));
            columns
        };
        let before: Option<Vec<&[u8]>> = change.before.map(columns);
        let after: Option<Vec<&[u8]>> = change.after.map(columns);
        let changed = match (&before, &after) {
            (Some(before), Some(after)) if !doubtful => {
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
                let takes_part =
                    |image: &&Vec<&[u8]>| doubtful || place.filter.is_none_or(|slot| image.get(slot).copied() == Some(b"true"));
                let mut images = [&before, &after].into_iter().flatten().filter(takes_part);
                let (first, second) = (images.next(), images.next());
                let again = |(first, second): (&Vec<&[u8]>, &Vec<&[u8]>)| {
                    leads_alike(&catalog.entities[place.entity], place.node, first, second)
                };
                let second = second.filter(|second| !first.is_some_and(|first| again((first, second))));
                for image in first.into_iter().chain(second) {
                    self.image(place.entity, place.node, image)?;
                }
            }
        }
        Ok(())
    }

    /// Goes up from a row as it was or is, or leaves that to a walk.
    fn image(&mut self, entity: usize, node: NodeId, row: &[&[u8]]) -> Result<(), Error> {
        let catalog = self.view.catalog;
        if catalog.entities[entity].nodes[node].parent.is_some() {
            self.touch(entity, node, row)?;
        }
        if let Reach::Many { lazy } = reach(&catalog.entities[entity], node) {
            let is_known = |walk: &Walk| self.walks.contains_key(walk) || self.gone.contains(walk);
            if !(self.walks.is_empty() && self.gone.is_empty()) && is_known(&Walk::new(catalog, entity, node, row)) {
                return Ok(());
            }
            let room = if lazy { self.room.lazy } else { self.room.strict };
            self.limit = room.max(self.room.few);
            self.overflown = false;
            self.up(entity, node, row)?;
            if self.found.len() > self.limit {
                self.found.clear();
                self.walks.insert(Walk::new(catalog, entity, node, row), lazy);
            } else if self.found.len() > self.room.few || self.overflown {
                self.room.strict -= self.found.len().min(self.room.strict);
                self.room.lazy -= self.found.len().min(self.room.lazy);
                self.gone.insert(Walk::new(catalog, entity, node, row));
            }
        } else {
            self.limit = usize::MAX;
            self.up(entity, node, row)?;
        }
        // Changes of one entity mostly follow one another.
        if self.found.len() == 1 && self.roots.last() == self.found.last() {
            self.found.clear();
        }
        self.roots.append(&mut self.found);
        if self.roots.len() >= self.tidy_at { self.make_room() } else { Ok(()) }
    }

    /// Adds an entity that no change leads to.
    pub(super) fn add_root(&mut self, owner: Vec<u8>) -> Result<(), Error> {
        self.roots.push(owner);
        if self.roots.len() >= self.tidy_at { self.make_room() } else { Ok(()) }
    }

    /// The state after the step.
    pub(super) const fn view(&self) -> View<'a> {
        self.view
    }

    /// There are many roots: frees them of repeats, and hands them on if there still are.
    fn make_room(&mut self) -> Result<(), Error> {
        self.tidy();
        let Some((most, overflow)) = &mut self.overflow else {
            self.tidy_at = self.roots.len() + TIDY;
            return Ok(());
        };
        if self.roots.len() * 2 > *most {
            overflow(std::mem::take(&mut self.roots))?;
        }
        self.tidy_at = self.roots.len() + *most;
        Ok(())
    }

    /// Goes up from a row of a node, of which at least the columns that the way up needs are known, until more has been found than there is room for.
    fn up(&mut self, entity_id: usize, id: NodeId, row: &[&[u8]]) -> Result<(), Error> {
        let view = self.view;
        let entity: &'a Entity = &view.catalog.entities[entity_id];
        let node = &entity.nodes[id];
        let Some(parent) = node.parent else {
            // Rows of one group follow one another.
            let found = owner(view, entity_id, row)?.filter(|owner| self.found.last() != Some(owner));
            self.found.extend(found);
            self.touch(entity_id, id, row)?;
            if let Some((_, overflow)) = self.overflow.as_mut().filter(|(most, _)| self.found.len() >= *most) {
                self.overflown = true;
                return overflow(std::mem::take(&mut self.found));
            }
            return Ok(());
        };
        match node.up {
            Up::Root => Ok(()),
            Up::Derive => self.up(entity_id, parent, &told_by_link(view.catalog, &entity.nodes[parent], node, row)),
            Up::Lookup(index) => {
                let Some(prefix) = above(view, entity, id, index, row)? else { return Ok(()) };
                let mut cursor = match self.cursors[entity_id][id].take() {
                    Some(cursor) => cursor,
                    None => view.cursor(index, Reading::Once)?,
                };
                let visited = cursor.visit(&prefix, view.writes(index), |_, value| {
                    self.up(entity_id, parent, &told_by_index(view.catalog, &entity.nodes[parent], index, value))?;
                    Ok(self.found.len() <= self.limit)
                });
                self.cursors[entity_id][id] = Some(cursor);
                visited
            }
        }
    }

    /// Takes note of a row under aggregates that are kept in parts.
    fn touch(&mut self, entity: usize, node: NodeId, row: &[&[u8]]) -> Result<(), Error> {
        let entity = &self.view.catalog.entities[entity];
        if let Some(touches) = self.touches.as_mut().filter(|_| entity.nodes[node].parts) {
            touches.extend(Touch::of(self.view, entity, node, row)?);
            if touches.len() > TIDY {
                touches.sort_unstable();
                touches.dedup();
                self.touches.take_if(|touches| touches.len() > TIDY / 2);
            }
        }
        Ok(())
    }

    fn tidy(&mut self) {
        self.roots.sort_unstable();
        self.roots.dedup();
    }

    pub(crate) fn finish(mut self) -> Result<Touched, Error> {
        if self.roots.len() >= self.overflow.as_ref().map_or(usize::MAX, |(most, _)| *most) {
            self.make_room()?;
        }
        self.tidy();
        let rows = self.touches.map(|mut rows| {
            rows.sort_unstable();
            rows.dedup();
            rows
        });
        Ok(Touched { owners: self.roots, walks: self.walks, rows })
    }
}
