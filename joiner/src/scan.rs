//! All entities of a kind, in the order of their roots, from one database snapshot: how sinks are loaded.
//!
//! Roots and children are read side by side, each by an iterator that only moves forward. The roots' keys are cut into ranges by interpolation between the least and the greatest, and threads take
//! range after range.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rocksdb::{ReadOptions, Snapshot};
use schemas::Lsn;
use schemas::change::EntityChange;

use crate::assemble::expired::Expired;
use crate::assemble::{Assembler, Made, entity_key};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::state::view::{Reading, View, start_key};
use crate::state::{Family, Store, key};

/// Ranges for each thread, so that none is left with the last long one.
const RANGES_PER_THREAD: usize = 8;
const BATCH_ENTITIES: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;

/// What the documents of a scan reflect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct As {
    pub(crate) version: Lsn,
    pub(crate) commit_time_ms: i64,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Documents,
    /// The keys of documents that are too large to be told.
    TooLarge,
}

/// Receives batches, from several threads; answers false to end the scan.
pub(crate) type Receive<'a> = &'a (dyn Fn(Vec<EntityChange>) -> bool + Sync);

/// Assembles every entity of a kind.
pub(crate) fn scan(
    store: &Store,
    catalog: &Catalog,
    snapshot: &Snapshot<'_>,
    (entity, wanted): (usize, Wanted),
    of: As,
    threads: usize,
    receive: Receive<'_>,
) -> Result<(), Error> {
    let ranges = ranges(store, catalog, snapshot, entity, threads * RANGES_PER_THREAD)?;
    let next = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        while let Some(range) = ranges.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !stopped.load(Ordering::Relaxed)) {
            match scan_range(store, catalog, snapshot, (entity, wanted), of, range, receive) {
                Ok(true) => {}
                Ok(false) => stopped.store(true, Ordering::Relaxed),
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(ranges.len()) {
            scope.spawn(work);
        }
        work();
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

type Range = (Vec<u8>, Vec<u8>);

/// Cuts the root's index into ranges of keys, end exclusive.
fn ranges(store: &Store, catalog: &Catalog, snapshot: &Snapshot<'_>, entity: usize, count: usize) -> Result<Vec<Range>, Error> {
    let root = catalog.entities[entity].nodes[0].rows;
    let (mut start, mut end) = (Vec::new(), Vec::new());
    start_key(root, &mut start);
    start_key(root + 1, &mut end);
    let mut rows = snapshot.raw_iterator_cf(store.family(Family::Rows)?);
    rows.seek(&start);
    let least = rows.key().filter(|key| **key < *end).map(<[u8]>::to_vec);
    rows.seek_for_prev(&end);
    let greatest = rows.key().filter(|key| **key >= *start && **key < *end).map(<[u8]>::to_vec);
    rows.status().map_err(|error| store.error(&error))?;
    let (Some(least), Some(greatest)) = (least, greatest) else { return Ok(Vec::new()) };
    // Rows of one entity key must not fall into two ranges; where several can have one key, there is but one range.
    if count < 2 || !catalog.indexes[root].suffix.is_empty() {
        return Ok(vec![(start, end)]);
    }
    let common = least.iter().zip(&greatest).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let mut bytes = [0; 8];
        let rest = &key[common..];
        let length = rest.len().min(8);
        bytes[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(bytes)
    };
    let (low, high) = (number(&least), number(&greatest));
    let cut = |nth: usize| {
        let point = u128::from(low) + u128::from(high - low) * nth as u128 / count as u128;
        [&least[..common], &(point as u64).to_be_bytes()].concat()
    };
    let mut cuts: Vec<Vec<u8>> = (1..count).map(cut).collect();
    cuts.dedup();
    let starts = std::iter::once(start).chain(cuts.iter().cloned());
    let ends = cuts.iter().cloned().chain(std::iter::once(end));
    Ok(starts.zip(ends).collect())
}

/// The rows that are roots of an entity: at least as many as there are entities.
pub(crate) fn count(store: &Store, catalog: &Catalog, snapshot: &Snapshot<'_>, entity: usize) -> Result<u64, Error> {
    let root = catalog.entities[entity].nodes[0].rows;
    let (mut start, mut end) = (Vec::new(), Vec::new());
    start_key(root, &mut start);
    start_key(root + 1, &mut end);
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end);
    options.fill_cache(false);
    let mut rows = snapshot.raw_iterator_cf_opt(store.family(Family::Rows)?, options);
    rows.seek(start);
    let mut count = 0;
    let root = &catalog.entities[entity];
    while let Some(key) = rows.key() {
        let length = cluster_length(root, &key[2..]);
        count += u64::from(length.is_some_and(|length| catalog.share.owns(root, &key[2..2 + length])));
        rows.next();
    }
    rows.status().map_err(|error| store.error(&error))?;
    Ok(count)
}

fn scan_range(
    store: &Store,
    catalog: &Catalog,
    snapshot: &Snapshot<'_>,
    (entity_id, wanted): (usize, Wanted),
    of: As,
    (start, end): &Range,
    receive: Receive<'_>,
) -> Result<bool, Error> {
    let entity = &catalog.entities[entity_id];
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end.clone());
    options.set_readahead_size(2 << 20);
    options.fill_cache(false);
    let mut rows = snapshot.raw_iterator_cf_opt(store.family(Family::Rows)?, options);
    rows.seek(start);
    let view = View { catalog, store, snapshot, overlay: None, cache: None };
    let expired = Expired::as_of(catalog, &store.standing_at(snapshot)?);
    let mut assembler = Assembler::new(view, entity, Reading::Scan, &expired);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut last: Vec<u8> = Vec::new();
    let mut document = Vec::new();
    while let Some((key, row)) = rows.item() {
        let parts = &key[2..];
        // NULL in the key: such a row is kept, but it is no entity.
        let length = cluster_length(entity, parts).filter(|length| catalog.share.owns(entity, &parts[..*length]));
        let Some(length) = length else {
            rows.next();
            continue;
        };
        // Of several rows with one entity key, the first that is not left out is the entity; or they are its group.
        if parts[..length] != last[..] {
            document.clear();
            let made = if entity.group.is_some() {
                assembler.document(&parts[..length], &mut document)?
            } else {
                assembler.document_of_row(row, &mut document)?
            };
            if made != Made::LeftOut {
                last.clear();
                last.extend_from_slice(&parts[..length]);
            }
            let is_wanted = match wanted {
                Wanted::Documents => made == Made::Document,
                Wanted::TooLarge => made == Made::TooLarge,
            };
            if is_wanted {
                let text = std::str::from_utf8(&document).map_err(|_| store.corrupt("a document that is not UTF-8"))?;
                let key = entity_key(entity, &last).ok_or_else(|| store.corrupt("an entity key that cannot be read"))?;
                bytes += text.len();
                batch.push(EntityChange {
                    entity: entity.name.clone(),
                    key,
                    version: of.version,
                    commit_time_ms: of.commit_time_ms,
                    document: (made == Made::Document).then(|| Arc::from(text)),
                });
            }
            if (batch.len() >= BATCH_ENTITIES || bytes >= BATCH_BYTES) && !receive(std::mem::take(&mut batch)) {
                return Ok(false);
            }
            if batch.is_empty() {
                bytes = 0;
            }
        }
        rows.next();
    }
    rows.status().map_err(|error| store.error(&error))?;
    Ok(batch.is_empty() || receive(batch))
}

/// How many bytes the entity key takes.
fn cluster_length(entity: &crate::catalog::Entity, parts: &[u8]) -> Option<usize> {
    let mut rest = parts;
    for part in &entity.key {
        rest = key::skip(rest, part.key_type)?;
    }
    Some(parts.len() - rest.len())
}
