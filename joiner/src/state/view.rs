//! Reading rows: a database snapshot, with the puts and deletes of a step that is not yet written laid over it.
//!
//! A step's own writes must be seen when its entities are assembled, and must not be in the database before everything else of the step is. So they are collected in an
//! [`Overlay`] first, read through it, and written in one batch at the end.
//!
//! A step assembles each document twice, as it was and as it is. The rows of the cluster visited last are kept for that ([`Run`]), and rows that are looked up by their whole key are kept from step to
//! step ([`RowCache`]).
//!
//! [`Cursor`]s stay where they are between visits: visiting prefixes in rising order moves forward without seeking, which makes assembling many roots in key order a merge of sorted
//! runs rather than a lookup for each.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use rocksdb::{DBRawIterator, ReadOptions, Snapshot, WriteBatch};

use super::cache::RowCache;
use super::{Family, Store};
use crate::catalog::{Catalog, Index, IndexId, IndexKind, SlotPart};
use crate::error::Error;
use crate::state::key::{self, KeyError};
use crate::state::row::Row;

/// How many rows are stepped over before a seek is cheaper.
const NEAR: usize = 12;
/// Where stepping has not led to the next place so many times, it is given up for the next [`FAR`] places.
const MISSES: usize = 4;
const FAR: usize = 64;

pub(crate) const fn family(kind: IndexKind) -> Family {
    match kind {
        IndexKind::Rows => Family::Rows,
        IndexKind::Links => Family::Links,
    }
}

/// Begins the key of an index.
pub(crate) fn start_key(index: IndexId, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&(index as u16).to_be_bytes());
}

/// Appends key parts of a row; false when one of them is NULL and `nulls` does not allow for it.
pub(crate) fn put_parts(parts: &[SlotPart], row: Row<'_>, nulls: bool, out: &mut Vec<u8>) -> Result<bool, KeyError> {
    for part in parts {
        if !key::encode(row.get(part.slot), part.key_type, out)? && !nulls {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The key at which an index keeps a row; false when it does not: NULL in the cluster joins with nothing.
pub(crate) fn place(id: IndexId, index: &Index, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool, KeyError> {
    start_key(id, out);
    Ok(put_parts(&index.cluster, row, index.keeps_null, out)? && put_parts(&index.suffix, row, true, out)?)
}

pub(crate) type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A row as it was; `None`: there was none.
type Was = Option<Vec<u8>>;

/// Puts (`Some`) and deletes (`None`), by index.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    indexes: Vec<Writes>,
    /// By index, of those that roots stand in: rows as the changes say that they were before the first of them. Rows of which they do not say it are not here.
    was: Vec<Option<HashMap<Vec<u8>, Was>>>,
    /// At least the bytes that a batch of them takes.
    bytes: usize,
}

impl Overlay {
    pub(crate) fn new(catalog: &Catalog) -> Self {
        let mut was = vec![None; catalog.indexes.len()];
        catalog
            .entities
            .iter()
            .filter_map(|entity| entity.root_index(&catalog.indexes))
            .for_each(|index| was[index] = Some(HashMap::new()));
        Self { indexes: vec![Writes::new(); catalog.indexes.len()], was, bytes: 0 }
    }

    pub(crate) fn set(&mut self, index: IndexId, key: &[u8], value: Option<&[u8]>) {
        // In a batch, an operation, its family and two lengths stand beside the key and the row.
        self.bytes += 12 + key.len() + value.map_or(0, <[u8]>::len);
        let value = value.map(<[u8]>::to_vec);
        match self.indexes[index].get_mut(key) {
            Some(slot) => *slot = value,
            None => drop(self.indexes[index].insert(key.to_vec(), value)),
        }
    }

    pub(crate) fn get(&self, index: IndexId, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.indexes[index].get(key)
    }

    /// Whether it is to be told what stood at a key of an index ([`Overlay::set_was`]) that is about to be written to.
    pub(crate) fn asks(&self, index: IndexId, key: &[u8]) -> bool {
        self.was[index].is_some() && !self.indexes[index].contains_key(key)
    }

    /// Takes note of what stood at a key of an index that roots stand in.
    pub(crate) fn set_was(&mut self, index: IndexId, key: &[u8], row: Option<&[u8]>) {
        if let Some(was) = &mut self.was[index] {
            self.bytes += key.len() + row.map_or(0, <[u8]>::len);
            was.insert(key.to_vec(), row.map(<[u8]>::to_vec));
        }
    }

    /// What the changes say that stood at a key before them, if they do.
    pub(crate) fn was(&self, index: IndexId, key: &[u8]) -> Option<Option<&[u8]>> {
        self.was[index].as_ref()?.get(key).map(Option::as_deref)
    }

    /// The keys of an index that something is put at or removed from.
    pub(crate) fn keys(&self, index: IndexId) -> impl Iterator<Item = &[u8]> {
        self.indexes[index].keys().map(Vec::as_slice)
    }

    /// Takes in what another one has where this one has nothing.
    pub(crate) fn lay_under(&mut self, other: &Self) {
        for (id, writes) in other.indexes.iter().enumerate() {
            for (key, value) in writes {
                if !self.indexes[id].contains_key(key) {
                    self.set(id, key, value.as_deref());
                }
            }
        }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls `each` with every key, and the row that is put there.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        for (key, row) in self.indexes.iter().flatten() {
            each(key, row.as_deref());
        }
    }

    /// Adds everything to a batch. `remembered`: by index, whether the places of puts are remembered as well.
    pub(crate) fn write(
        &self,
        catalog: &Catalog,
        store: &Store,
        remembered: Option<&[bool]>,
        batch: &mut WriteBatch,
    ) -> Result<(), Error> {
        let seen = store.family(Family::Seen)?;
        for (id, (index, writes)) in catalog.indexes.iter().zip(&self.indexes).enumerate() {
            let cf = store.family(family(index.kind))?;
            let remembered = remembered.is_some_and(|indexes| indexes[id]);
            for (key, value) in writes {
                if remembered && value.is_some() {
                    batch.put_cf(seen, key, b"");
                }
                match value {
                    Some(value) => batch.put_cf(cf, key, value),
                    None => batch.delete_cf(cf, key),
                }
            }
        }
        Ok(())
    }
}

/// A consistent sight of the rows.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) store: &'a Store,
    pub(crate) snapshot: &'a Snapshot<'a>,
    pub(crate) overlay: Option<&'a Overlay>,
    /// Of the database without the overlay.
    pub(crate) cache: Option<&'a RowCache>,
}

/// How a cursor will be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Over a whole range.
    Scan,
    /// Here and there.
    Once,
    /// Here and there, and each place twice in a row: once as it was and once as it is.
    Twice,
}

impl<'a> View<'a> {
    pub(crate) fn cursor(&self, index: IndexId, reading: Reading) -> Result<Cursor<'a>, Error> {
        let mut options = ReadOptions::default();
        if reading == Reading::Scan {
            options.set_readahead_size(2 << 20);
            options.fill_cache(false);
        }
        let cf = self.store.family(family(self.catalog.indexes[index].kind))?;
        Ok(Cursor {
            store: self.store,
            rows: self.snapshot.raw_iterator_cf_opt(cf, options),
            last: Vec::new(),
            placed: false,
            misses: 0,
            run: (reading == Reading::Twice).then(Run::default),
        })
    }

    /// What the overlay has for an index.
    pub(crate) fn writes(&self, index: IndexId) -> Option<&'a Writes> {
        self.overlay.map(|overlay| &overlay.indexes[index]).filter(|writes| !writes.is_empty())
    }

    /// Calls `then` with the row at exactly this key, if there is one.
    pub(crate) fn get<T>(&self, index: IndexId, key: &[u8], then: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        if let Some(written) = self.overlay.and_then(|overlay| overlay.get(index, key)) {
            return Ok(written.as_deref().map(then));
        }
        if let Some(kept) = self.cache.and_then(|cache| cache.get(key)) {
            return Ok(kept.as_deref().map(then));
        }
        let cf = self.store.family(family(self.catalog.indexes[index].kind))?;
        let found = self.snapshot.get_pinned_cf(cf, key).map_err(|error| self.store.error(&error))?;
        if let Some(cache) = self.cache {
            cache.put(key, found.as_deref());
        }
        Ok(found.map(|value| then(&value)))
    }
}

/// Visits rows by prefix of their key.
pub(crate) struct Cursor<'a> {
    store: &'a Store,
    rows: DBRawIterator<'a>,
    /// The prefix visited last: everything that begins with it, and nothing past it, has been stepped over.
    last: Vec<u8>,
    placed: bool,
    /// How often in a row the next place was not near; places passed since that was given up count as well.
    misses: usize,
    run: Option<Run>,
}

/// Runs that are longer are read from the database each time.
const RUN_BYTES: usize = 256 << 10;

/// The rows of the prefix visited last.
#[derive(Default)]
struct Run {
    bytes: Vec<u8>,
    /// For each row, where the rest of its key ends and where the row does.
    ends: Vec<(u32, u32)>,
    /// Whether it is all of them.
    whole: bool,
}

impl Run {
    /// Takes in the rows that begin with `prefix`, as far as there is room.
    fn fill(&mut self, rows: &mut DBRawIterator<'_>, prefix: &[u8]) {
        self.bytes.clear();
        self.ends.clear();
        self.whole = false;
        while self.bytes.len() < RUN_BYTES {
            let Some((key, row)) = rows.item().and_then(|(key, row)| Some((key.strip_prefix(prefix)?, row))) else {
                self.whole = true;
                return;
            };
            self.bytes.extend_from_slice(key);
            let key_end = self.bytes.len() as u32;
            self.bytes.extend_from_slice(row);
            self.ends.push((key_end, self.bytes.len() as u32));
            rows.next();
        }
    }

    /// The rest of the key, and the row.
    fn get(&self, nth: usize) -> Option<(&[u8], &[u8])> {
        let &(key_end, end) = self.ends.get(nth)?;
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.bytes[start as usize..key_end as usize], &self.bytes[key_end as usize..end as usize]))
    }
}

impl Cursor<'_> {
    /// Whether the next place may well be a few rows on.
    const fn is_near(&mut self) -> bool {
        if self.misses >= MISSES {
            self.misses = if self.misses < FAR { self.misses + 1 } else { MISSES - 1 };
        }
        self.misses < MISSES
    }

    /// Goes to the first row of the database at or past `prefix`.
    fn go(&mut self, prefix: &[u8]) -> Result<(), Error> {
        if self.placed && self.last.as_slice() < prefix && !prefix.starts_with(&self.last) && self.is_near() {
            for _ in 0..NEAR {
                match self.rows.key() {
                    None => return self.rows.status().map_err(|error| self.store.error(&error)),
                    Some(key) if key >= prefix => {
                        self.misses = 0;
                        return Ok(());
                    }
                    Some(_) => self.rows.next(),
                }
            }
            self.misses += 1;
        }
        self.rows.seek(prefix);
        self.rows.status().map_err(|error| self.store.error(&error))
    }

    /// Calls `each` with what follows the prefix in the key, and the row, in key order, until it answers false. `writes` are laid over the rows.
    pub(crate) fn visit(
        &mut self,
        prefix: &[u8],
        writes: Option<&Writes>,
        each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let kept = self.placed && self.last == prefix && self.run.as_ref().is_some_and(|run| run.whole);
        if !kept {
            self.go(prefix)?;
            self.last.clear();
            self.last.extend_from_slice(prefix);
            if let Some(run) = &mut self.run {
                run.fill(&mut self.rows, prefix);
            }
        }
        self.merge(prefix, &[], writes, each)
    }

    /// The same from a place in it on: `from` is what follows the prefix in the key there.
    pub(crate) fn visit_from(
        &mut self,
        prefix: &[u8],
        from: &[u8],
        writes: Option<&Writes>,
        each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        if from.is_empty() {
            return self.visit(prefix, writes, each);
        }
        self.rows.seek([prefix, from].concat());
        self.rows.status().map_err(|error| self.store.error(&error))?;
        self.run = self.run.is_some().then(Run::default);
        let visited = self.merge(prefix, from, writes, each);
        self.placed = false;
        visited
    }

    /// Visits what the iterator stands at, and what is written, up to the end of the prefix.
    fn merge(
        &mut self,
        prefix: &[u8],
        from: &[u8],
        writes: Option<&Writes>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let run = self.run.as_ref();
        let whole = run.is_some_and(|run| run.whole);
        self.placed = whole;
        let mut nth = 0;
        let start = [prefix, from].concat();
        let written = writes.map(|writes| writes.range::<[u8], _>((Bound::Included(start.as_slice()), Bound::Unbounded)));
        let mut written = written.into_iter().flatten().map_while(|(key, row)| Some((key.strip_prefix(prefix)?, row))).peekable();
        loop {
            let of_run = run.and_then(|run| run.get(nth));
            let row = match of_run {
                None if !whole => self.rows.item().and_then(|(key, row)| Some((key.strip_prefix(prefix)?, row))),
                row => row,
            };
            // Whether the database's row is done with: it was visited, or a write of the step hides it.
            let done = match (&row, written.peek()) {
                (None, None) => break,
                (Some((key, row)), next) if next.is_none_or(|(other, _)| key < other) => {
                    if !each(key, row)? {
                        return Ok(());
                    }
                    true
                }
                (row, Some((key, value))) => {
                    if let Some(value) = value
                        && !each(key, value)?
                    {
                        return Ok(());
                    }
                    let hidden = row.is_some_and(|(other, _)| other == *key);
                    written.next();
                    hidden
                }
                (Some(_), None) => break,
            };
            if done && of_run.is_some() {
                nth += 1;
            } else if done {
                self.rows.next();
            }
        }
        self.placed = true;
        self.rows.status().map_err(|error| self.store.error(&error))
    }
}
