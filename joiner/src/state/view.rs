//! Reading rows: a database snapshot, with the puts and deletes of a step that is not yet written laid over it.
//!
//! A step's own writes must be seen when its entities are assembled, and must not be in the database before everything else of the step is. So they are collected in an
//! [`Overlay`] first, read through it, and written in one batch at the end.
//!
//! A step assembles each document twice, as it was and as it is. The rows of the cluster visited last are kept for that ([`Run`]); they, and rows that are looked up by their whole key, are kept from step to
//! step as well ([`RowCache`]).
//!
//! [`Cursor`]s stay where they are between visits: visiting prefixes in rising order moves forward without seeking, which makes assembling many roots in key order a merge of sorted
//! runs rather than a lookup for each.

use std::borrow::Cow;
use std::sync::Arc;

use rocksdb::{DBRawIterator, ReadOptions, Snapshot, WriteBatch};

use super::cache::RowCache;
use super::run::Run;
use super::writes::{Near, Was, Write, Writes};
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

/// Puts (`Some`) and deletes (`None`), by index.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    indexes: Vec<Writes>,
    /// By index, whether roots stand in it: of these it is kept what was before the first write at a key.
    of_roots: Vec<bool>,
    /// At least the bytes that a batch of them takes.
    bytes: usize,
}

impl Overlay {
    pub(crate) fn new(catalog: &Catalog) -> Self {
        let mut of_roots = vec![false; catalog.indexes.len()];
        catalog.entities.iter().filter_map(|entity| entity.root_index(&catalog.indexes)).for_each(|index| of_roots[index] = true);
        Self { indexes: vec![Writes::default(); catalog.indexes.len()], of_roots, bytes: 0 }
    }

    pub(crate) fn set(&mut self, index: IndexId, key: &[u8], value: Option<&[u8]>) {
        self.set_after(index, key, value, Was::Unknown);
    }

    /// The same; `was`: what the changes say that stood there before them, if this is the first write there.
    pub(crate) fn set_after(&mut self, index: IndexId, key: &[u8], value: Option<&[u8]>, was: Was<&[u8]>) {
        // In a batch, an operation, its family and two lengths stand beside the key and the row.
        self.bytes += 12 + key.len() + value.map_or(0, <[u8]>::len);
        if let Was::Row(row) = was {
            self.bytes += row.len();
        }
        self.indexes[index].set(key, value, was);
    }

    /// Whether it is kept what was before the first write at a key of an index.
    pub(crate) fn keeps_what_was(&self, index: IndexId) -> bool {
        self.of_roots[index]
    }

    pub(crate) fn get(&self, index: IndexId, key: &[u8]) -> Option<Option<&[u8]>> {
        self.indexes[index].get(key).map(|write| write.row)
    }

    /// The same, and what was before, where keys are looked for in rising order.
    pub(crate) fn get_near(&self, index: IndexId, key: &[u8], near: &mut Near) -> Option<Write<'_>> {
        self.indexes[index].get_near(key, near)
    }

    /// The keys of an index that something is put at or removed from.
    pub(crate) fn keys(&self, index: IndexId) -> impl Iterator<Item = &[u8]> {
        self.indexes[index].iter().map(|write| write.key)
    }

    /// Takes over the indexes of some tables, of which this one has nothing.
    pub(crate) fn take_over(&mut self, catalog: &Catalog, other: &mut Self, tables: &[bool]) {
        for (id, index) in catalog.indexes.iter().enumerate() {
            if tables.get(index.table).is_some_and(|own| *own) {
                std::mem::swap(&mut self.indexes[id], &mut other.indexes[id]);
            }
        }
        self.bytes += other.bytes;
    }

    /// Takes in what another one has where this one has nothing.
    pub(crate) fn lay_under(&mut self, other: &Self) {
        for (id, writes) in other.indexes.iter().enumerate() {
            for Write { key, row: value, .. } in writes.iter() {
                if !self.indexes[id].contains(key) {
                    self.set(id, key, value);
                }
            }
        }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes the orders that it is gone through in.
    pub(crate) fn put_in_order(&self) {
        for writes in &self.indexes {
            writes.put_in_order();
        }
    }

    /// What is written to each index, in their order.
    pub(crate) fn by_index(&self) -> &[Writes] {
        &self.indexes
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
            for Write { key, row: value, .. } in writes.iter() {
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
            near: Near::default(),
            misses: 0,
            runs: (reading == Reading::Twice).then(|| Runs {
                prefix: Vec::new(),
                last: Last::Nowhere,
                read: Run::default(),
                cache: self.cache,
                index: &self.catalog.indexes[index],
            }),
        })
    }

    /// What the overlay has for an index.
    pub(crate) fn writes(&self, index: IndexId) -> Option<&'a Writes> {
        self.overlay.map(|overlay| &overlay.indexes[index]).filter(|writes| !writes.is_empty())
    }

    /// Calls `then` with the row at exactly this key, if there is one.
    pub(crate) fn get<T>(&self, index: IndexId, key: &[u8], then: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        if let Some(written) = self.overlay.and_then(|overlay| overlay.get(index, key)) {
            return Ok(written.map(then));
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
    /// The prefix that the iterator has gone to last: everything that begins with it, and nothing past it, has been stepped over, if it is `placed`.
    last: Vec<u8>,
    placed: bool,
    /// Where what is written was found last.
    near: Near,
    /// How often in a row the next place was not near; places passed since that was given up count as well.
    misses: usize,
    runs: Option<Runs<'a>>,
}

/// The rows of the prefix visited last, and those of others that are kept from step to step.
struct Runs<'a> {
    prefix: Vec<u8>,
    last: Last,
    read: Run,
    cache: Option<&'a RowCache>,
    index: &'a Index,
}

/// Where the rows of the prefix visited last are.
enum Last {
    /// Not in memory.
    Nowhere,
    /// They have been read: all, or the first of very many, behind which the iterator stands.
    Read,
    Kept(Arc<Run>),
}

impl Runs<'_> {
    /// The rows of the prefix visited last, as far as they are in memory.
    fn last(&self) -> Option<&Run> {
        match &self.last {
            Last::Nowhere => None,
            Last::Read => Some(&self.read),
            Last::Kept(run) => Some(run),
        }
    }

    /// Whether these are all.
    fn is_whole(&self) -> bool {
        self.last().is_some_and(|run| run.whole)
    }

    /// Goes on to another prefix. Answers whether its rows are in memory.
    fn go(&mut self, prefix: &[u8]) -> bool {
        if self.is_whole() && self.prefix == prefix {
            return true;
        }
        self.prefix.clear();
        self.prefix.extend_from_slice(prefix);
        self.last = self.cache.and_then(|cache| cache.run(prefix)).map_or(Last::Nowhere, Last::Kept);
        matches!(self.last, Last::Kept(_))
    }

    /// Reads the rows of the prefix, to which the iterator has gone.
    fn fill(&mut self, rows: &mut DBRawIterator<'_>) {
        self.read.fill(rows, &self.prefix);
        self.last = Last::Read;
        if self.read.whole {
            // An iterator that has failed ends as well.
            if let Some(cache) = self.cache
                && rows.status().is_ok()
                && self.index.cluster_of(&self.prefix).is_some_and(|cluster| cluster.len() == self.prefix.len())
            {
                cache.put_run(&self.prefix, &self.read);
            }
        }
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
        if !self.runs.as_mut().is_some_and(|runs| runs.go(prefix)) {
            self.go(prefix)?;
            self.last.clear();
            self.last.extend_from_slice(prefix);
            self.placed = false;
            if let Some(runs) = &mut self.runs {
                runs.fill(&mut self.rows);
                self.placed = runs.is_whole();
            }
            self.rows.status().map_err(|error| self.store.error(&error))?;
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
        self.placed = false;
        if let Some(runs) = &mut self.runs {
            runs.last = Last::Nowhere;
        }
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
        let run = self.runs.as_ref().and_then(Runs::last);
        let whole = run.is_some_and(|run| run.whole);
        let mut nth = 0;
        let start = if from.is_empty() { Cow::Borrowed(prefix) } else { Cow::Owned([prefix, from].concat()) };
        let near = &mut self.near;
        let written = writes.map(|writes| writes.from(&start, near));
        let mut written =
            written.into_iter().flatten().map_while(|write| Some((write.key.strip_prefix(prefix)?, write.row))).peekable();
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
        if !whole {
            self.placed = true;
        }
        self.rows.status().map_err(|error| self.store.error(&error))
    }
}
