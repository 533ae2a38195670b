//! Aggregates over very many rows (a group's; the children of a parent whose list is cut), kept in *parts*: what a change costs grows with the logarithm of how many rows there are, and not with their number.
//!
//! # Parts
//! The rows of a cluster stand in the order of their keys. Some are *cuts*: of the rows that meet the node's filter, those whose key hashes to a number that ends in enough zeros, one in [`PART_ROWS`] of them; one in as many of these is a cut of the second level, and so on up to
//! [`LEVELS`]. A part of the first level are the rows from a cut, or from the cluster's beginning, to the next; a part of a higher level are the parts of the level below from one of its own cuts to the next. What the rows of a part come to in each aggregate is kept under
//! entity (u16), node (u16), cluster parts, level (u8), the rest of the key of the row that the part begins with ([`super::part`] has the bytes). A part that consists of one part is not kept, nor is a cluster without a cut: small groups have nothing here.
//!
//! # Why not running totals, from which old values are taken and to which new ones are added
//! A step writes rows blindly ([`crate::step`]), and that snapshots, repeats and rereads converge is argued by what stands at a place in the end, not by how it came there. A total that every change moved by a difference would need each change exactly once. What is kept here follows from the
//! rows that stand, and from nothing else: which parts there are follows from their keys. So nothing is ever taken back: the least and the greatest, the first and the last, different values and sums of doubles (which, taken back, would leave a rest) are as right as counts are, and a state that was
//! built anew has the same bytes in its documents.
//!
//! # What a step does to them
//! A part comes to something else only where a row of it differs, came or went, or something below that row; so the ways up ([`crate::step`], `dirty`) that find every document that may differ pass by that row, and note it ([`Touch`]). A part that holds such a row, and the part before it where the row is a cut, are
//! [`Stale`]: they are removed in the write that holds the step's rows (INV-3), so that what stands always holds for the rows that stand. Documents that the same step assembles make them again, of the rows and of the parts that are still right, and what they have made is in that write as well. What is assembled later makes them then.
//! - *Walks* ([`crate::step`], `fan_out`) do not say at once which rows they will pass: where one begins below a group's rows, all parts of the entity are removed.
//! - *Documents as they were told* are made of the parts as they stand before the step; where rows of the entity are seen through the past, of rows alone.
//! - *While rows are of different ages* (a table is read again, states were merged) there are none.
//! - After the first load there are none either: the first change of a group reads all of it.
//!
//! # Where
//! At the rows of groups, and at `many` edges without an order of their own of entities with limits, where the aggregates take what stands in the row, and nothing below it is required. (Of a document that shows all its children, all are read anyway.)

use std::collections::{BTreeSet, HashSet};

use rocksdb::{DBRawIterator, WriteBatch};
use schemas::plan::NodeId;
use xxhash_rust::xxh3::xxh3_64;

use super::compute::{self, Sums};
use super::part::{self, Part};
use super::{Assembler, Made, Members, Side};
use crate::catalog::{Aggregate, Entity, Group};
use crate::error::Error;
use crate::state::row::{self, Row, Spans};
use crate::state::view::{Overlay, View};
use crate::state::{Family, Store, key};

/// Rows, and parts of a level, that a part has, about.
pub(crate) const PART_ROWS: u32 = 32;
pub(crate) const LEVELS: u8 = 4;
/// Under which the state keeps how large they are, and how they are written.
const SIZE: &[u8] = b"parts";
/// Parts that are made while one document is, and kept: the first time that a group is looked at it may have any number of them. The others are kept the next time.
const MADE_BYTES: usize = 64 << 20;

/// The key and the value of a part.
pub(crate) type Kept = (Vec<u8>, Vec<u8>);

/// The highest level that a row is a cut of; 0: of none.
fn level_of(rest: &[u8], rows: u32) -> u8 {
    let zeros = xxh3_64(rest).trailing_zeros() / rows.ilog2().max(1);
    zeros.min(u32::from(LEVELS)) as u8
}

/// What the keys of all parts of a cluster begin with.
fn cluster_key(number: u16, node: NodeId, parts: &[u8]) -> Vec<u8> {
    let node = (node as u16).to_be_bytes();
    [&number.to_be_bytes()[..], &node, parts].concat()
}

fn part_key(cluster: &[u8], level: u8, start: &[u8]) -> Vec<u8> {
    [cluster, &[level], start].concat()
}

/// A row that may have changed, or something below it, under aggregates that are kept in parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Touch {
    cluster: Vec<u8>,
    /// The rest of its key.
    row: Vec<u8>,
}

impl Touch {
    /// A row of a node, of which the cluster and its own key are known. None where it is in no cluster.
    pub(crate) fn of(view: View<'_>, entity: &Entity, id: NodeId, row: &[&[u8]]) -> Result<Option<Self>, Error> {
        let node = &entity.nodes[id];
        let index = &view.catalog.indexes[node.rows];
        let get = |slot: usize| row.get(slot).copied().unwrap_or_default();
        let corrupt = |error: key::KeyError| view.store.corrupt(format!("{}: {error}", entity.plan.nodes[id].path));
        let mut cluster = cluster_key(entity.number, id, &[]);
        for part in &index.cluster {
            if !key::encode(get(part.slot), part.key_type, &mut cluster).map_err(corrupt)? {
                return Ok(None);
            }
        }
        let mut rest = Vec::new();
        for part in &index.suffix {
            key::encode(get(part.slot), part.key_type, &mut rest).map_err(corrupt)?;
        }
        Ok(Some(Self { cluster, row: rest }))
    }
}

/// Parts that no longer hold.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    keys: HashSet<Vec<u8>>,
    /// Whole entities, by their numbers.
    entities: BTreeSet<u16>,
    all: bool,
}

impl Stale {
    pub(crate) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Of rows that were touched; `entities`: in which any may have been.
    pub(crate) fn of(view: View<'_>, touched: &[Touch], entities: BTreeSet<u16>) -> Result<Self, Error> {
        let mut stale = Self { entities, ..Self::default() };
        if touched.is_empty() {
            return Ok(stale);
        }
        let mut kept = view.snapshot.raw_iterator_cf(view.store.family(Family::Parts)?);
        for Touch { cluster, row } in touched {
            for level in 1..=LEVELS {
                let of_level = part_key(cluster, level, &[]);
                kept.seek_for_prev(part_key(cluster, level, row));
                while let Some((key, value)) = kept.item().filter(|(key, _)| key.starts_with(&of_level)) {
                    let end = part::end(value).ok_or_else(|| view.store.corrupt("a part of a group that cannot be read"))?;
                    // The part that the row begins ends the one before it.
                    if end.is_some_and(|end| end < row.as_slice()) {
                        break;
                    }
                    let begins = key[of_level.len()..] == **row;
                    stale.keys.insert(key.to_vec());
                    if !begins {
                        break;
                    }
                    kept.prev();
                }
                kept.status().map_err(|error| view.store.error(&error))?;
            }
        }
        Ok(stale)
    }

    fn holds(&self, key: &[u8]) -> bool {
        let of_entity = || key.first_chunk().is_some_and(|number| self.entities.contains(&u16::from_be_bytes(*number)));
        self.all || self.keys.contains(key) || !self.entities.is_empty() && of_entity()
    }

    /// Has a batch remove them.
    pub(crate) fn remove(&self, store: &Store, batch: &mut WriteBatch) -> Result<(), Error> {
        let family = store.family(Family::Parts)?;
        if self.all {
            return store.clear_in(batch, Family::Parts);
        }
        for number in &self.entities {
            remove_entity(store, *number, batch)?;
        }
        self.keys.iter().for_each(|key| batch.delete_cf(family, key));
        Ok(())
    }
}

/// Has a batch remove the parts of an entity.
pub(crate) fn remove_entity(store: &Store, number: u16, batch: &mut WriteBatch) -> Result<(), Error> {
    let (start, end) = (number.to_be_bytes(), (u32::from(number) + 1).to_be_bytes());
    batch.delete_range_cf(store.family(Family::Parts)?, &start[..], &end[2..]);
    Ok(())
}

/// Parts of another size than they are to have are forgotten.
pub(crate) fn settle(store: &Store, rows: u32) -> Result<(), Error> {
    if store.get(Family::Meta, SIZE)?.is_some_and(|size| size == rows.to_be_bytes()) {
        return Ok(());
    }
    let mut batch = WriteBatch::default();
    store.clear_in(&mut batch, Family::Parts)?;
    batch.put_cf(store.family(Family::Meta)?, SIZE, rows.to_be_bytes());
    store.write(batch, true)
}

/// What an assembler knows and makes of parts.
pub(super) struct Parts<'a> {
    /// Those of the state that no longer hold with the step that is about to be written.
    stale: Option<&'a Stale>,
    /// Whether documents as they were told can be made of them.
    told: bool,
    /// By level: where the parts were found last.
    at: [Option<DBRawIterator<'a>>; LEVELS as usize],
    /// What was made on the way, to be kept.
    made: Vec<Kept>,
    made_bytes: usize,
}

impl Parts<'_> {
    pub(super) fn new() -> Self {
        Self { stale: None, told: true, at: Default::default(), made: Vec::new(), made_bytes: 0 }
    }
}

/// Rows under aggregates.
struct Site<'a, 'p> {
    node: NodeId,
    aggregates: &'a [Aggregate],
    /// Where the rows begin in their index.
    prefix: &'p [u8],
    /// Where the parts do.
    cluster: Vec<u8>,
    /// The columns whose values a group's document has of its first row.
    group: Option<&'a Group>,
}

/// What rows come to, and the row that comes after them.
type Found<'a> = (Part<'a>, Option<Vec<u8>>);

impl<'a> Assembler<'a> {
    /// From here on, what is made on the way to documents as they are is kept, and what is `stale` is not used for them.
    pub(crate) const fn keep_parts(&mut self, stale: &'a Stale) {
        self.parts.stale = Some(stale);
    }

    /// The parts that were made since this was asked last.
    pub(crate) fn made_parts(&mut self) -> Vec<Kept> {
        self.parts.made_bytes = 0;
        std::mem::take(&mut self.parts.made)
    }

    /// Documents from here on are seen through this.
    pub(super) fn see_parts_through(&mut self, side: Side, overlay: Option<&Overlay>) {
        if side == Side::Told {
            let mut indexes = self.entity.nodes.iter().map(|node| node.rows);
            self.parts.told = overlay.is_none_or(|overlay| indexes.all(|index| overlay.keys(index).next().is_none()));
        }
    }

    /// Appends the document of a group: its rows are aggregated, and are not in it. Without any row there is none.
    pub(super) fn group(&mut self, group: &'a Group, prefix: &[u8], out: &mut Vec<u8>) -> Result<bool, Error> {
        let whole = self.fold(0, prefix, &group.aggregates, Some(group))?;
        let Some(first) = whole.first else { return Ok(false) };
        let mut spans = Spans::default();
        let row = spans.read(&first);
        for (name, slot) in &group.fields {
            out.extend_from_slice(name);
            super::put(row.get(*slot), out);
        }
        let mut members = Members::new();
        whole.sums.write(out, Some(&mut members));
        compute::write(&self.entity.name, &group.computed, row, out, &mut members);
        out.push(b'}');
        Ok(true)
    }

    /// Adds the children of a `many` node, those that are not shown as well.
    pub(super) fn add_children(&mut self, node: NodeId, prefix: &[u8], sums: &mut Sums<'a>) -> Result<(), Error> {
        let whole = self.fold(node, prefix, sums.aggregates(), None)?;
        sums.merge(whole.sums);
        Ok(())
    }

    /// What all rows of a cluster come to.
    fn fold(
        &mut self,
        node: NodeId,
        prefix: &[u8],
        aggregates: &'a [Aggregate],
        group: Option<&'a Group>,
    ) -> Result<Part<'a>, Error> {
        // An index stands in two bytes at the beginning of its keys.
        let cluster = cluster_key(self.entity.number, node, prefix.get(2..).unwrap_or_default());
        let site = Site { node, aggregates, prefix, cluster, group };
        let (mut whole, mut start) = (Part::new(aggregates), Vec::new());
        loop {
            let (part, end) = self.part(&site, LEVELS, &start)?;
            whole.merge(part);
            match end {
                Some(end) => start = end,
                None => return Ok(whole),
            }
        }
    }

    fn part(&mut self, site: &Site<'a, '_>, level: u8, start: &[u8]) -> Result<Found<'a>, Error> {
        if let Some(kept) = self.kept_part(site, level, start)? {
            return Ok(kept);
        }
        let (mut whole, end, several) = if level == 1 {
            let (part, end) = self.part_of_rows(site, start)?;
            let several = !start.is_empty() || end.is_some();
            (part, end, several)
        } else {
            self.part_of_parts(site, level, start)?
        };
        whole.sums.compact();
        if several {
            self.keep_part(site, level, start, &whole, end.as_deref());
        }
        Ok((whole, end))
    }

    /// Answers as well whether there are several parts in it.
    fn part_of_parts(
        &mut self,
        site: &Site<'a, '_>,
        level: u8,
        start: &[u8],
    ) -> Result<(Part<'a>, Option<Vec<u8>>, bool), Error> {
        let rows = self.view.catalog.part_rows;
        let (mut whole, mut next) = self.part(site, level - 1, start)?;
        let mut several = false;
        while let Some(start) = next.take_if(|next| level_of(next, rows) < level) {
            let (part, end) = self.part(site, level - 1, &start)?;
            whole.merge(part);
            (next, several) = (end, true);
        }
        Ok((whole, next, several))
    }

    /// From a row up to the next cut.
    fn part_of_rows(&mut self, site: &Site<'a, '_>, start: &[u8]) -> Result<Found<'a>, Error> {
        let (id, rows) = (site.node, self.view.catalog.part_rows);
        let node = &self.entity.nodes[id];
        let mut cursor = self.cursor(id)?;
        let writes = self.view.writes(node.rows);
        let (mut whole, mut end) = (Part::new(site.aggregates), None);
        let (mut spans, mut document) = (Spans::default(), Vec::new());
        let visited = cursor.visit_from(site.prefix, start, writes, |rest, bytes| {
            let row = spans.read(bytes);
            if node.filter.is_some_and(|slot| row.get(slot) != b"true") {
                return Ok(true);
            }
            if rest != start && level_of(rest, rows) > 0 {
                end = Some(rest.to_vec());
                return Ok(false);
            }
            let counts = if node.local {
                whole.sums.add(id, row, &[], &Members::new());
                true
            } else {
                document.clear();
                self.node(id, bytes, &mut document, &mut whole.sums)? == Made::Document
            };
            if let Some(group) = site.group.filter(|_| counts && whole.first.is_none()) {
                whole.first = Some(values_of(group, row));
            }
            Ok(true)
        });
        self.cursors[id] = Some(cursor);
        visited.map(|()| (whole, end))
    }

    /// What stands in the state of a part, if it holds.
    fn kept_part(&mut self, site: &Site<'a, '_>, level: u8, start: &[u8]) -> Result<Option<Found<'a>>, Error> {
        let usable = if self.side == Side::Told { self.parts.told } else { self.parts.stale.is_none_or(|stale| !stale.all) };
        if !usable || !self.entity.nodes[site.node].parts {
            return Ok(None);
        }
        let (view, key) = (self.view, part_key(&site.cluster, level, start));
        if self.side == Side::Now && self.parts.stale.is_some_and(|stale| stale.holds(&key)) {
            return Ok(None);
        }
        let family = view.store.family(Family::Parts)?;
        let read = |value: &[u8]| {
            let part = Part::decode(site.aggregates, site.node, value);
            part.ok_or_else(|| view.store.corrupt("a part of a group that cannot be read")).map(Some)
        };
        if start.is_empty() {
            // Most groups are small and have no parts: this can tell without looking.
            let found = view.snapshot.get_pinned_cf(family, &key).map_err(|error| view.store.error(&error))?;
            return found.map_or(Ok(None), |value| read(&value));
        }
        let at = self.parts.at[usize::from(level) - 1].get_or_insert_with(|| view.snapshot.raw_iterator_cf(family));
        // Parts are visited one after another.
        if at.valid() && at.key() != Some(key.as_slice()) {
            at.next();
        }
        if at.key() != Some(key.as_slice()) {
            at.seek(&key);
        }
        at.status().map_err(|error| view.store.error(&error))?;
        at.item().filter(|(found, _)| **found == *key).map_or(Ok(None), |(_, value)| read(value))
    }

    fn keep_part(&mut self, site: &Site<'a, '_>, level: u8, start: &[u8], part: &Part<'a>, end: Option<&[u8]>) {
        let parts = &mut self.parts;
        if parts.stale.is_none() || self.side != Side::Now || parts.made_bytes > MADE_BYTES {
            return;
        }
        if self.entity.nodes[site.node].parts {
            let made = (part_key(&site.cluster, level, start), part.encode(site.node, end));
            parts.made_bytes += made.0.len() + made.1.len();
            parts.made.push(made);
        }
    }
}

/// A row with nothing in it but what a group's document has of it.
fn values_of(group: &Group, of: Row<'_>) -> Vec<u8> {
    let slots = group.fields.iter().map(|(_, slot)| slot + 1).max().unwrap_or(0);
    let mut out = Vec::new();
    for slot in 0..slots {
        let wanted = group.fields.iter().any(|(_, field)| *field == slot);
        row::put(if wanted { of.get(slot) } else { &[] }, &mut out);
    }
    out
}
