//! Reading rows: a database snapshot, with the puts and deletes of a step that is not yet written laid over it.
//!
//! A step's own writes must be seen when its entities are assembled, and must not be in the database before everything else of the step is. So they are collected in an
//! [`Overlay`] first, read through it, and written in one batch at the end.
//!
//! [`Cursor`]s stay where they are between visits: visiting prefixes in rising order moves forward without seeking, which makes assembling many roots in key order a merge of sorted
//! runs rather than a lookup for each.

use std::collections::BTreeMap;
use std::ops::Bound;

use rocksdb::{DBRawIterator, ReadOptions, Snapshot, WriteBatch};

use super::{Family, Store};
use crate::catalog::{Catalog, Index, IndexId, IndexKind, SlotPart};
use crate::error::Error;
use crate::state::key::{self, KeyError};
use crate::state::row::Row;

/// How many rows are stepped over before a seek is cheaper.
const NEAR: usize = 12;

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

type Writes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Puts (`Some`) and deletes (`None`), by index.
#[derive(Debug)]
pub(crate) struct Overlay {
    indexes: Vec<Writes>,
}

impl Overlay {
    pub(crate) fn new(catalog: &Catalog) -> Self {
        Self { indexes: vec![Writes::new(); catalog.indexes.len()] }
    }

    pub(crate) fn set(&mut self, index: IndexId, key: &[u8], value: Option<&[u8]>) {
        let value = value.map(<[u8]>::to_vec);
        match self.indexes[index].get_mut(key) {
            Some(slot) => *slot = value,
            None => drop(self.indexes[index].insert(key.to_vec(), value)),
        }
    }

    pub(crate) fn get(&self, index: IndexId, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.indexes[index].get(key)
    }

    pub(crate) fn write(&self, catalog: &Catalog, store: &Store, batch: &mut WriteBatch) -> Result<(), Error> {
        for (index, writes) in catalog.indexes.iter().zip(&self.indexes) {
            let cf = store.family(family(index.kind))?;
            for (key, value) in writes {
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
}

impl<'a> View<'a> {
    pub(crate) fn cursor(&self, index: IndexId, sequential: bool) -> Result<Cursor<'a>, Error> {
        let mut options = ReadOptions::default();
        if sequential {
            options.set_readahead_size(2 << 20);
            options.fill_cache(false);
        }
        let cf = self.store.family(family(self.catalog.indexes[index].kind))?;
        Ok(Cursor {
            store: self.store,
            rows: self.snapshot.raw_iterator_cf_opt(cf, options),
            overlay: self.overlay.map(|overlay| &overlay.indexes[index]).filter(|writes| !writes.is_empty()),
            last: Vec::new(),
            placed: false,
        })
    }

    /// Calls `then` with the row at exactly this key, if there is one.
    pub(crate) fn get<T>(&self, index: IndexId, key: &[u8], then: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, Error> {
        if let Some(written) = self.overlay.and_then(|overlay| overlay.get(index, key)) {
            return Ok(written.as_deref().map(then));
        }
        let cf = self.store.family(family(self.catalog.indexes[index].kind))?;
        let found = self.snapshot.get_pinned_cf(cf, key).map_err(|error| self.store.error(&error))?;
        Ok(found.map(|value| then(&value)))
    }
}

/// Visits rows by prefix of their key.
pub(crate) struct Cursor<'a> {
    store: &'a Store,
    rows: DBRawIterator<'a>,
    overlay: Option<&'a Writes>,
    /// The prefix visited last: everything that begins with it, and nothing past it, has been stepped over.
    last: Vec<u8>,
    placed: bool,
}

impl Cursor<'_> {
    /// Goes to the first row of the database at or past `prefix`.
    fn go(&mut self, prefix: &[u8]) -> Result<(), Error> {
        if self.placed && self.last.as_slice() < prefix && !prefix.starts_with(&self.last) {
            for _ in 0..NEAR {
                match self.rows.key() {
                    None => return self.rows.status().map_err(|error| self.store.error(&error)),
                    Some(key) if key >= prefix => return Ok(()),
                    Some(_) => self.rows.next(),
                }
            }
        }
        self.rows.seek(prefix);
        self.rows.status().map_err(|error| self.store.error(&error))
    }

    /// Calls `each` with what follows the prefix in the key, and the row, in key order, until it answers false.
    pub(crate) fn visit(
        &mut self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        self.go(prefix)?;
        self.last.clear();
        self.last.extend_from_slice(prefix);
        self.placed = false;
        let written = self.overlay.map(|writes| writes.range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded)));
        let mut written = written.into_iter().flatten().take_while(|(key, _)| key.starts_with(prefix)).peekable();
        loop {
            let row = self.rows.item().filter(|(key, _)| key.starts_with(prefix));
            match (row, written.peek()) {
                (None, None) => break,
                (Some((key, value)), next) if next.is_none_or(|(other, _)| key < other.as_slice()) => {
                    if !each(&key[prefix.len()..], value)? {
                        return Ok(());
                    }
                    self.rows.next();
                }
                (row, Some((key, value))) => {
                    // Written in this step: it hides the database's row.
                    let hides = row.is_some_and(|(other, _)| other == key.as_slice());
                    if let Some(value) = value
                        && !each(&key[prefix.len()..], value)?
                    {
                        return Ok(());
                    }
                    written.next();
                    if hides {
                        self.rows.next();
                    }
                }
                (Some(_), None) => break,
            }
        }
        self.placed = true;
        self.rows.status().map_err(|error| self.store.error(&error))
    }
}
