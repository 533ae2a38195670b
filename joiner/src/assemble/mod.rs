//! Documents from rows: a pure function of a [`View`] and of the time that the state has come to ([`expired`]), so that what comes out is the join of exactly what the view holds (INV-4).
//!
//! Each node of the entity has its own cursor: going down the tree, no two visits share one, and roots assembled in key order move every cursor forward. Subtrees behind a `one` edge
//! are kept while the view lasts, because many parents refer to the same few rows.

use std::collections::HashMap;

use schemas::change::EntityKey;
use schemas::plan::NodeId;

mod aggregate;
mod compute;
pub(crate) mod expired;
mod part;
pub(crate) mod parts;
mod room;

use aggregate::Running;
use compute::Sums;
use expired::Expired;
use parts::Parts;
use room::Room;
pub(crate) use room::in_words as limits_in_words;

use crate::catalog::{Entity, Many, Node};
use crate::error::Error;
use crate::state::key;
use crate::state::row::{Row, Spans};
use crate::state::view::{Cursor, Overlay, Reading, View, start_key};
use crate::state::writes::Near;

/// Bytes of subtrees that are kept; past it all are dropped.
const KEPT_BYTES: usize = 64 << 20;

/// Documents of subtrees by the key that they are looked up with.
type Kept = HashMap<Box<[u8]>, Option<Box<[u8]>>>;

/// Assembles documents of one entity from one view.
pub(crate) struct Assembler<'a> {
    view: View<'a>,
    entity: &'a Entity,
    cursors: Vec<Option<Cursor<'a>>>,
    scratch: Vec<Scratch>,
    /// Subtrees of `one` edges by the key they are looked up with; `None`: no such row. By side, and through what overlay each side was looked through last.
    kept: [Vec<Kept>; 2],
    through: [Option<&'a Overlay>; 2],
    /// By side, up to where the root's time is over.
    over: [Option<&'a [u8]>; 2],
    side: Side,
    kept_bytes: usize,
    reading: Reading,
    /// The root that the database was asked for last: its key, and its row. Roots differ from document to document, and would only drive other rows out of the cache.
    root: (Vec<u8>, Option<Vec<u8>>),
    /// By side, where the root before it was found among what is written.
    near: [Near; 2],
    /// What is left for the document that is being made, where its definition has limits.
    room: Option<Room>,
    parts: Parts<'a>,
}

/// Which of two documents of one key is made: each side keeps its own subtrees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Now,
    Told,
}

/// Buffers of a node, kept from row to row.
#[derive(Default)]
struct Scratch {
    spans: Spans,
    key: Vec<u8>,
    members: Members,
}

/// Where the members of a document stand in it: `one` edges, `many` edges, aggregates, computed fields. Fields stand in the row.
type Members = Vec<(usize, usize)>;

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// The node's filter leaves it out, or its time is over: as far as the entity goes, there is no such row.
    LeftOut,
    /// Something that is required is missing.
    Incomplete,
    /// It is longer than its definition allows, which has such documents set aside.
    TooLarge,
    Document,
}

impl Made {
    fn of(present: bool) -> Self {
        if present { Self::Document } else { Self::LeftOut }
    }
}

/// The text of an entity key.
pub(crate) fn entity_key(entity: &Entity, mut bytes: &[u8]) -> Option<EntityKey> {
    let mut parts = Vec::with_capacity(entity.key.len());
    for part in &entity.key {
        let (text, rest) = key::decode(bytes, part.key_type)?;
        parts.push(text);
        bytes = rest;
    }
    Some(EntityKey::from_parts(parts))
}

impl<'a> Assembler<'a> {
    /// `expired`: whose time is over, as of what the view holds.
    pub(crate) fn new(view: View<'a>, entity: &'a Entity, reading: Reading, expired: &'a Expired) -> Self {
        let nodes = entity.nodes.len();
        Self {
            view,
            entity,
            cursors: (0..nodes).map(|_| None).collect(),
            scratch: (0..nodes).map(|_| Scratch::default()).collect(),
            kept: [vec![HashMap::new(); nodes], vec![HashMap::new(); nodes]],
            through: [view.overlay; 2],
            over: [expired.bound(entity); 2],
            side: Side::Now,
            kept_bytes: 0,
            reading,
            root: (Vec::new(), None),
            near: [Near::default(); 2],
            room: None,
            parts: Parts::new(),
        }
    }

    /// Documents as they were told are those of before the time of some was over.
    pub(crate) fn told_as_of(&mut self, expired: &'a Expired) {
        self.over[Side::Told as usize] = expired.bound(self.entity);
    }

    /// Documents from here on are those of a side that are seen through this overlay, or without one.
    pub(crate) fn look_through(&mut self, side: Side, overlay: Option<&'a Overlay>) {
        let last = std::mem::replace(&mut self.through[side as usize], overlay);
        if last.map(std::ptr::from_ref) != overlay.map(std::ptr::from_ref) {
            self.kept[side as usize].iter_mut().for_each(HashMap::clear);
        }
        self.see_parts_through(side, overlay);
        (self.side, self.view.overlay) = (side, overlay);
    }

    fn kept(&mut self, node: NodeId) -> &mut Kept {
        &mut self.kept[self.side as usize][node]
    }

    /// Appends the document of the entity with these key bytes, or nothing.
    pub(crate) fn document(&mut self, key: &[u8], out: &mut Vec<u8>) -> Result<Made, Error> {
        let mut prefix = Vec::with_capacity(key.len() + 2);
        let index = self.entity.nodes[0].rows;
        start_key(index, &mut prefix);
        prefix.extend_from_slice(key);
        if let Some(group) = &self.entity.group {
            return self.group(group, &prefix, out).map(Made::of);
        }
        let entity = self.entity;
        let text = || entity_key(entity, key).map_or_else(String::new, |key| key.to_string());
        self.limited(out, text, |assembler, out| assembler.root(prefix, out))
    }

    /// The root's row, by where it stands, and what hangs on it.
    fn root(&mut self, prefix: Vec<u8>, out: &mut Vec<u8>) -> Result<Made, Error> {
        let index = self.entity.nodes[0].rows;
        if self.reading != Reading::Twice || !self.view.catalog.indexes[index].suffix.is_empty() {
            return self.first(0, &prefix, out).map(Made::of);
        }
        let near = &mut self.near[self.side as usize];
        if let Some(written) = self.view.overlay.and_then(|overlay| overlay.get_near(index, &prefix, near)) {
            return written.row.map_or(Ok(Made::LeftOut), |row| self.node(0, row, out, &mut Sums::none()));
        }
        let (mut last, mut row) = std::mem::take(&mut self.root);
        if last != prefix {
            let database = View { overlay: None, cache: None, ..self.view };
            row = database.get(index, &prefix, <[u8]>::to_vec)?;
            last = prefix;
        }
        let made = row.as_deref().map_or(Ok(Made::LeftOut), |row| self.node(0, row, out, &mut Sums::none()));
        self.root = (last, row);
        made
    }

    /// Appends the document of a root whose row has been read already.
    pub(crate) fn document_of_row(&mut self, row: &[u8], out: &mut Vec<u8>) -> Result<Made, Error> {
        let entity = self.entity;
        let text = || room::key_of(entity, row).unwrap_or_default();
        self.limited(out, text, |assembler, out| assembler.node(0, row, out, &mut Sums::none()))
    }

    /// A document, within what its definition allows it to be.
    fn limited(
        &mut self,
        out: &mut Vec<u8>,
        key: impl FnOnce() -> String,
        make: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<Made, Error>,
    ) -> Result<Made, Error> {
        let Some(limits) = self.entity.plan.definition.limits else { return make(self, out) };
        self.room = Some(Room::new(limits, out.len()));
        let made = make(self, out);
        let room = self.room.take();
        match room.filter(|_| matches!(made, Ok(Made::Document))) {
            Some(room) => room.close(&self.entity.name, key, out),
            None => made,
        }
    }

    fn cursor(&mut self, node: NodeId) -> Result<Cursor<'a>, Error> {
        match self.cursors[node].take() {
            Some(cursor) => Ok(cursor),
            None => {
                // Below the roots, even a scan reads here and there.
                let below = self.reading == Reading::Scan && self.entity.nodes[node].parent.is_some();
                // Of rows that are aggregated in parts only a few are read.
                let some = self.reading == Reading::Twice && self.entity.nodes[node].parts;
                self.view.cursor(self.entity.nodes[node].rows, if below || some { Reading::Once } else { self.reading })
            }
        }
    }

    /// The first row of a cluster.
    fn first(&mut self, node: NodeId, prefix: &[u8], out: &mut Vec<u8>) -> Result<bool, Error> {
        let index = self.entity.nodes[node].rows;
        if self.view.catalog.indexes[index].suffix.is_empty() {
            let view = self.view;
            let made = view.get(index, prefix, |row| self.node(node, row, out, &mut Sums::none()))?.transpose()?;
            return Ok(made == Some(Made::Document));
        }
        let mut cursor = self.cursor(node)?;
        let mut made = Made::LeftOut;
        let visited = cursor.visit(prefix, self.view.writes(index), |_, row| {
            made = self.node(node, row, out, &mut Sums::none())?;
            Ok(made == Made::LeftOut)
        });
        self.cursors[node] = Some(cursor);
        visited.map(|()| made == Made::Document)
    }

    /// Appends the document of a row at a node, or nothing. `sums`: the aggregates of the parent, among them those over this node.
    fn node(&mut self, id: NodeId, bytes: &[u8], out: &mut Vec<u8>, sums: &mut Sums<'a>) -> Result<Made, Error> {
        let start = out.len();
        let cut = self.room.is_some_and(|room| room.cut);
        let node: &'a Node = &self.entity.nodes[id];
        let mut spans = std::mem::take(&mut self.scratch[id].spans);
        let row = spans.read(bytes);
        let over = id == 0 && expired::is_over(self.entity, self.over[self.side as usize], row);
        if over || node.filter.is_some_and(|slot| row.get(slot) != b"true") {
            self.scratch[id].spans = spans;
            return Ok(Made::LeftOut);
        }
        let mut members = std::mem::take(&mut self.scratch[id].members);
        members.clear();
        for (name, slot) in &node.fields {
            out.extend_from_slice(name);
            put(row.get(*slot), out);
        }
        let present = self.edges(node, row, out, &mut members)?;
        if present {
            compute::write(&self.entity.name, &node.computed, row, out, &mut members);
            if out.len() == start {
                out.push(b'{');
            }
            out.push(b'}');
            sums.add(id, row, out, &members);
        } else {
            out.truncate(start);
            // What is not there has no lists that were cut.
            self.room.iter_mut().for_each(|room| room.cut = cut);
        }
        let scratch = &mut self.scratch[id];
        (scratch.spans, scratch.members) = (spans, members);
        Ok(if present { Made::Document } else { Made::Incomplete })
    }

    /// Appends edges and aggregates; false when something that is required is missing.
    fn edges(&mut self, node: &'a Node, row: Row<'_>, out: &mut Vec<u8>, members: &mut Members) -> Result<bool, Error> {
        for (name, child) in &node.ones {
            out.extend_from_slice(name);
            let start = out.len();
            if !self.one(*child, row, out)? {
                if self.entity.nodes[*child].require {
                    return Ok(false);
                }
                out.extend_from_slice(b"null");
            }
            members.push((start, out.len()));
        }
        let mut sums = Sums::of(&node.aggregates);
        for many in &node.manys {
            out.extend_from_slice(&many.name);
            let start = out.len();
            let children = self.many(many, row, out, &mut sums)?;
            if children == 0 && self.entity.nodes[many.node].require {
                return Ok(false);
            }
            members.push((start, out.len()));
        }
        sums.write(out, node.spans.then_some(members));
        Ok(true)
    }

    /// The prefix under which the rows of a child stand; `None` when the parent refers to nothing.
    fn child_prefix(&mut self, child: NodeId, parent: Row<'_>) -> Result<Option<Vec<u8>>, Error> {
        let node = &self.entity.nodes[child];
        let mut key = std::mem::take(&mut self.scratch[child].key);
        start_key(node.rows, &mut key);
        for link in &node.link {
            let value = key::encode(parent.get(link.parent_slot), link.key_type, &mut key)
                .map_err(|error| self.view.store.corrupt(format!("{}: {error}", self.entity.plan.nodes[child].path)))?;
            if !value {
                self.scratch[child].key = key;
                return Ok(None);
            }
        }
        Ok(Some(key))
    }

    fn one(&mut self, child: NodeId, parent: Row<'_>, out: &mut Vec<u8>) -> Result<bool, Error> {
        let Some(prefix) = self.child_prefix(child, parent)? else { return Ok(false) };
        if let Some(kept) = self.kept(child).get(prefix.as_slice()) {
            let present = kept.is_some();
            out.extend_from_slice(kept.as_deref().unwrap_or_default());
            self.scratch[child].key = prefix;
            return Ok(present);
        }
        let start = out.len();
        let present = self.first(child, &prefix, out)?;
        // Where there are limits, how much of a list is there depends on what stands before it.
        if self.room.is_none() {
            self.keep(child, &prefix, present.then(|| &out[start..]));
        }
        self.scratch[child].key = prefix;
        Ok(present)
    }

    fn keep(&mut self, node: NodeId, key: &[u8], document: Option<&[u8]>) {
        self.kept_bytes += key.len() + document.map_or(0, <[u8]>::len) + 64;
        if self.kept_bytes > KEPT_BYTES {
            self.kept.iter_mut().flatten().for_each(HashMap::clear);
            self.kept_bytes = 0;
        }
        self.kept(node).insert(key.into(), document.map(Into::into));
    }

    fn many(&mut self, many: &Many, parent: Row<'_>, out: &mut Vec<u8>, sums: &mut Sums<'a>) -> Result<usize, Error> {
        out.push(b'[');
        let Some(prefix) = self.child_prefix(many.node, parent)? else {
            out.push(b']');
            return Ok(0);
        };
        let in_parts = self.entity.nodes[many.node].parts;
        let mut cursor = self.cursor(many.node)?;
        let writes = self.view.writes(self.entity.nodes[many.node].rows);
        let (mut count, mut full) = (0, false);
        let mut none = Sums::none();
        let visited = match &many.order {
            None => cursor.visit(&prefix, writes, |_, row| {
                let start = out.len();
                if count > 0 {
                    out.push(b',');
                }
                let made = self.node(many.node, row, out, if in_parts { &mut none } else { sums })? == Made::Document;
                // A list that was cut takes no more, be it ever so small.
                full |= made && self.is_full(count, out.len());
                if !made || full {
                    out.truncate(start);
                }
                count += usize::from(made);
                // The rest would be read for nothing, unless it is counted in.
                Ok(!full || !in_parts && sums.are_over(many.node))
            }),
            Some(order) => {
                let mut documents = Vec::new();
                let mut children = Vec::new();
                if let Some(room) = &mut self.room {
                    room.before += out.len();
                }
                let visited = cursor.visit(&prefix, writes, |_, row| {
                    let start = documents.len();
                    let key = self.sort_key(many, order, row)?;
                    sums.place = Some(key);
                    let made = self.node(many.node, row, &mut documents, sums)?;
                    if let (Made::Document, Some(key)) = (made, sums.place.take()) {
                        children.push((key, start, documents.len()));
                    }
                    Ok(true)
                });
                sums.place = None;
                children.sort_by(|a, b| a.0.cmp(&b.0));
                if let Some(room) = &mut self.room {
                    room.before -= out.len();
                }
                for (_, start, end) in &children {
                    let length = out.len() + 1 + end - start;
                    full |= self.is_full(count, length);
                    if !full {
                        if count > 0 {
                            out.push(b',');
                        }
                        out.extend_from_slice(&documents[*start..*end]);
                    }
                    count += 1;
                }
                visited
            }
        };
        self.cursors[many.node] = Some(cursor);
        out.push(b']');
        visited?;
        if in_parts {
            self.add_children(many.node, &prefix, sums)?;
        }
        self.scratch[many.node].key = prefix;
        Ok(count)
    }

    /// Whether a list of `count` children, in a document that one more would make `length` bytes long, takes no more of them.
    fn is_full(&mut self, count: usize, length: usize) -> bool {
        self.room.as_mut().is_some_and(|room| room.is_full(count, length))
    }

    fn sort_key(&mut self, many: &Many, order: &[(crate::catalog::SlotPart, bool)], row: &[u8]) -> Result<Vec<u8>, Error> {
        let mut spans = std::mem::take(&mut self.scratch[many.node].spans);
        let row = spans.read(row);
        let mut key = Vec::new();
        for (part, descending) in order {
            let start = key.len();
            key::encode(row.get(part.slot), part.key_type, &mut key)
                .map_err(|error| self.view.store.corrupt(format!("{}: {error}", self.entity.plan.nodes[many.node].path)))?;
            if *descending {
                key[start..].iter_mut().for_each(|byte| *byte = !*byte);
            }
        }
        self.scratch[many.node].spans = spans;
        Ok(key)
    }
}

/// Appends a fragment; nothing at all is null.
fn put(fragment: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(if fragment.is_empty() { b"null" } else { fragment });
}
