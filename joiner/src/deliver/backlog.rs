//! What a sink that is far behind has to be told: the latest change of each key, over many pages.
//!
//! A page is coalesced by itself. A sink that was down for a while has many of them, in which the same keys come again and again; so the keys of what lies before it are read once without their documents, and of a
//! page only those changes are written that nothing later in the backlog replaces. What is passed over is not lost if delivery stops half-way: the change that replaces it comes later in the outbox than the cursor
//! ever stood.
//!
//! Bounded: [`LONGEST`] entries are looked at, each for a number and the hash of its key. Two keys of one hash (2^-128) would hide a change.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use schemas::change::EntityChange;

use crate::error::Error;
use crate::handle::Shared;
use crate::state::outbox;

pub(crate) const LONGEST: u64 = 500_000;

/// What the outbox takes on the disk. Entries that are still in write buffers are not counted: these are bounded by themselves.
pub(crate) fn outbox_bytes(shared: &Shared) -> Result<u64, Error> {
    let oldest = shared.head.borrow().oldest;
    outbox::bytes(&shared.store, oldest)
}

/// How many outbox entries take so many bytes, as large as those are that there are, which take `taken`.
pub(crate) fn entries_within(shared: &Shared, taken: u64, bytes: u64) -> u64 {
    if taken <= bytes {
        return u64::MAX;
    }
    let head = *shared.head.borrow();
    let entries = (head.sequence + 1).saturating_sub(head.oldest);
    u64::try_from(u128::from(entries) * u128::from(bytes) / u128::from(taken)).unwrap_or(u64::MAX)
}

/// Hashes need no further hashing.
#[derive(Default)]
struct AsItIs(u64);

impl std::hash::Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |chunk| u64::from_ne_bytes(*chunk));
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

pub(super) struct Backlog {
    /// The last entry that was looked at.
    end: u64,
    latest: HashMap<u128, u64, BuildHasherDefault<AsItIs>>,
}

impl Backlog {
    /// Looks at the entries after `cursor`. Blocks while it reads.
    pub(super) fn read(shared: &Shared, cursor: u64) -> Result<Self, Error> {
        let standing = shared.store.standing()?;
        let mut backlog = Self { end: cursor, latest: HashMap::default() };
        outbox::read_keys(&shared.store, &standing, cursor, &mut |sequence, hash| {
            backlog.latest.insert(hash, sequence);
            backlog.end = sequence;
            sequence - cursor < LONGEST
        })?;
        Ok(backlog)
    }

    /// The entries after `sequence` have not been looked at.
    pub(super) fn ends_at(&self, sequence: u64) -> bool {
        sequence >= self.end
    }

    /// Whether nothing that was looked at replaces this change.
    pub(super) fn is_latest(&self, entity: u16, sequence: u64, change: &EntityChange) -> bool {
        self.latest.get(&outbox::key_hash(entity, change.key.as_str().as_bytes())).is_none_or(|latest| *latest <= sequence)
    }
}
