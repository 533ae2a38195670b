//! Rows that steps have looked up by their whole key, kept from step to step: many documents refer to the same few rows, and a lookup in the database costs twenty times as much.
//!
//! Holds what the database holds, as of the last step that was written: only the core's steps read through it, and each step that is written is applied to it ([`RowCache::apply`]) before the next reads.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::view::Overlay;

/// What an entry costs beside its bytes.
const ENTRY_BYTES: usize = 96;

/// `None`: there is no such row.
type Kept = Option<Arc<[u8]>>;

#[derive(Clone)]
struct Bytes;

impl Weighter<Box<[u8]>, Kept> for Bytes {
    fn weight(&self, key: &Box<[u8]>, row: &Kept) -> u64 {
        (key.len() + row.as_ref().map_or(0, |row| row.len()) + ENTRY_BYTES) as u64
    }
}

pub(crate) struct RowCache(Cache<Box<[u8]>, Kept, Bytes>);

impl std::fmt::Debug for RowCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowCache").field("rows", &self.0.len()).field("bytes", &self.0.weight()).finish()
    }
}

impl RowCache {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Cache::with_weighter((bytes / 256).max(16), bytes as u64, Bytes))
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Kept> {
        self.0.get(key)
    }

    /// Keeps what the database holds.
    pub(crate) fn put(&self, key: &[u8], row: Option<&[u8]>) {
        self.0.insert(key.into(), row.map(Arc::from));
    }

    /// Follows what a step has written. What is not kept is not taken in.
    pub(crate) fn apply(&self, written: &Overlay) {
        written.for_each(|key, row| {
            if self.0.peek(key).is_some() {
                self.0.insert(key.into(), row.map(Arc::from));
            }
        });
    }

    pub(crate) fn clear(&self) {
        self.0.clear();
    }
}
