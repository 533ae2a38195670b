//! What steps have read, kept from step to step: rows that were looked up by their whole key, because many documents refer to the same few; and the rows of clusters (the lines of an order), because what has changed is likely to change again soon. A
//! lookup in the database costs twenty times as much.
//!
//! Holds what the database holds, as of the last step that was written: only the core's steps read through it, and each step that is written is applied to it ([`RowCache::apply`]) before the next reads.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::run::Run;
use super::view::Overlay;
use super::writes::Write;
use crate::catalog::Catalog;

/// What an entry costs beside its bytes.
const ENTRY_BYTES: usize = 96;
/// Clusters that take more are read from the database each time.
const LARGEST_RUN: usize = 16 << 10;

#[derive(Clone)]
enum Kept {
    /// A row by its whole key; `None`: there is no such row.
    Row(Option<Arc<[u8]>>),
    /// The rows of a cluster by what their keys begin with: no key of the same index is as short.
    Run(Arc<Run>),
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Box<[u8]>, Kept> for Bytes {
    fn weight(&self, key: &Box<[u8]>, kept: &Kept) -> u64 {
        let bytes = match kept {
            Kept::Row(row) => row.as_ref().map_or(0, |row| row.len()),
            Kept::Run(run) => run.memory(),
        };
        (key.len() + bytes + ENTRY_BYTES) as u64
    }
}

pub(crate) struct RowCache {
    kept: Cache<Box<[u8]>, Kept, Bytes>,
    /// By index, what has been kept of it: of the rest nothing has to be followed.
    indexes: Vec<Of>,
}

/// What there may be of an index.
#[derive(Default)]
struct Of {
    rows: AtomicBool,
    runs: AtomicBool,
}

impl std::fmt::Debug for RowCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowCache").field("entries", &self.kept.len()).field("bytes", &self.kept.weight()).finish()
    }
}

impl RowCache {
    pub(crate) fn new(bytes: usize, catalog: &Catalog) -> Self {
        let indexes = catalog.indexes.iter().map(|_| Of::default()).collect();
        Self { kept: Cache::with_weighter((bytes / 512).max(16), bytes as u64, Bytes), indexes }
    }

    /// What there is of the index of a key.
    fn of(&self, key: &[u8]) -> Option<&Of> {
        let (index, _) = key.split_first_chunk()?;
        self.indexes.get(usize::from(u16::from_be_bytes(*index)))
    }

    /// A row by its whole key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<Arc<[u8]>>> {
        match self.kept.get(key)? {
            Kept::Row(row) => Some(row),
            Kept::Run(_) => None,
        }
    }

    /// Keeps what the database holds.
    pub(crate) fn put(&self, key: &[u8], row: Option<&[u8]>) {
        self.of(key).iter().for_each(|of| of.rows.store(true, Relaxed));
        self.kept.insert(key.into(), Kept::Row(row.map(Arc::from)));
    }

    /// The rows of a cluster.
    pub(crate) fn run(&self, prefix: &[u8]) -> Option<Arc<Run>> {
        match self.kept.get(prefix)? {
            Kept::Run(run) => Some(run),
            Kept::Row(_) => None,
        }
    }

    /// Keeps the rows of a cluster, all that the database holds.
    pub(crate) fn put_run(&self, prefix: &[u8], run: &Run) {
        if run.memory() <= LARGEST_RUN {
            self.of(prefix).iter().for_each(|of| of.runs.store(true, Relaxed));
            self.kept.insert(prefix.into(), Kept::Run(Arc::new(run.clone())));
        }
    }

    /// Follows what a step has written. What is not kept is not taken in.
    pub(crate) fn apply<'w>(&self, catalog: &Catalog, written: &'w Overlay) {
        for ((index, writes), of) in catalog.indexes.iter().zip(written.by_index()).zip(&self.indexes) {
            let (has_rows, has_runs) = (of.rows.load(Relaxed), of.runs.load(Relaxed));
            if !has_rows && !has_runs {
                continue;
            }
            let mut writes = writes.iter().peekable();
            while let Some(Write { key, row, .. }) = writes.next() {
                if has_rows {
                    self.follow(key, row);
                }
                if !has_runs {
                    continue;
                }
                // All that is written to one cluster stands together.
                let Some(prefix) = index.cluster_of(key) else { continue };
                let kept = match self.kept.peek(prefix) {
                    Some(Kept::Run(run)) => Some(run),
                    Some(Kept::Row(_)) | None => None,
                };
                let mut of_run = Vec::new();
                let mut take = |key: &'w [u8], row| {
                    if kept.is_some() {
                        of_run.push((&key[prefix.len()..], row));
                    }
                };
                take(key, row);
                while let Some(Write { key, row, .. }) = writes.next_if(|write| write.key.starts_with(prefix)) {
                    if has_rows {
                        self.follow(key, row);
                    }
                    take(key, row);
                }
                if let Some(run) = kept {
                    let run = run.with(of_run);
                    if run.memory() <= LARGEST_RUN {
                        self.kept.insert(prefix.into(), Kept::Run(Arc::new(run)));
                    } else {
                        self.kept.remove(prefix);
                    }
                }
            }
        }
    }

    fn follow(&self, key: &[u8], row: Option<&[u8]>) {
        if let Some(Kept::Row(_)) = self.kept.peek(key) {
            self.put(key, row);
        }
    }

    pub(crate) fn clear(&self) {
        self.kept.clear();
    }
}
