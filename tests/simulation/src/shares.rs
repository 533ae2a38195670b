//! Shares of the entities, read without the code that is under test: an entity belongs to the range in which the hash of its name and key is.

use std::collections::BTreeMap;

use schemas::KeyRange;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

fn hash(entity: &str, key: &str) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), xxh3_64(entity.as_bytes()))
}

/// Whether an entity is of a share.
pub(crate) fn is_of(share: KeyRange, entity: &str, key: &str) -> bool {
    (share.first()..=share.last()).contains(&hash(entity, key))
}

/// What is said of each hash, by where a stretch of hashes begins of which the same is said.
pub(crate) struct Pieces<T>(BTreeMap<u64, T>);

impl<T: Copy + Ord> Pieces<T> {
    pub(crate) fn new(of_all: T) -> Self {
        Self([(0, of_all)].into())
    }

    fn cut(&mut self, at: u64) {
        if let Some((_, said)) = self.0.range(..=at).next_back() {
            let said = *said;
            self.0.insert(at, said);
        }
    }

    /// What is said of a share is at least this.
    pub(crate) fn raise(&mut self, share: KeyRange, to: T) {
        self.cut(share.first());
        if let Some(behind) = share.last().checked_add(1) {
            self.cut(behind);
        }
        self.0.range_mut(share.first()..=share.last()).for_each(|(_, said)| *said = to.max(*said));
    }

    /// What is said of the parts of a share.
    pub(crate) fn within(&self, share: KeyRange) -> impl Iterator<Item = T> {
        let first = self.0.range(..=share.first()).next_back().map_or(0, |(at, _)| *at);
        self.0.range(first..=share.last()).map(|(_, said)| *said)
    }

    /// What holds for all of a share.
    pub(crate) fn least(&self, share: KeyRange) -> Option<T> {
        self.within(share).min()
    }
}

impl<T: Copy + Default> Pieces<T> {
    /// What is said of an entity.
    pub(crate) fn of(&self, entity: &str, key: &str) -> T {
        self.0.range(..=hash(entity, key)).next_back().map(|(_, said)| *said).unwrap_or_default()
    }
}
