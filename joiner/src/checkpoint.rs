//! The state as it stands at one instant, in a folder of its own: what a checkpoint is made of, and made into again.
//!
//! # Why it is consistent
//! RocksDB's checkpoint holds what a kill at that instant would leave, with the write buffers of all column families flushed at once (`atomic_flush`): whole batches, up to some batch. That is all that the
//! joiner ever goes on from: rows, positions, outbox and sinks' cursors of a batch commit together (INV-3), and what is only in memory is read again. So it may be taken at any time, beside a step that is being written.
//! Immutable files are hard links; nothing stops meanwhile but a flush in the background.
//!
//! # Going back in time
//! A restored state is an earlier one, while sinks and subscribers may have seen later ones.
//! - *Positions* are the restored state's own: what followed is read again. If the streams do not hold it any more, the reader says so.
//! - *Sinks*: a sink's cursor went back with the outbox that it points into, so nothing is skipped. What it holds already is handed over again, maybe cut into other steps; each document is the join at its version
//!   either way (INV-4), and no sink replaces a newer version (INV-5).
//! - *Subscribers* count in an outbox that is no more: steps that are taken again may be cut, and numbered, otherwise. So [`seal`] gives the state another incarnation, and their tokens are refused as those of another outbox.

use std::path::Path;

use schemas::{KeyRange, Lsn};
use serde::{Deserialize, Serialize};

use crate::Config;
use crate::definitions::{self, Definitions};
use crate::error::Error;
use crate::handle::Handle;
use crate::state::{Memory, Store, meta};

pub use crate::state::DATABASE;

/// What a checkpoint says of the state in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The number of the state's format.
    pub format: u32,
    pub source: String,
    /// The fingerprint of the entity definitions and the contracts of their tables.
    pub definitions: String,
    /// The definitions themselves, and how rows are kept; none of a state that an earlier version made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<Definitions>,
    /// The entities that are in it.
    #[serde(default)]
    pub range: KeyRange,
    /// Everything up to it has been applied; maybe more.
    pub frontier: Lsn,
    /// Commit time of that, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
}

impl Handle {
    /// Makes a checkpoint in a folder that does not exist yet, on the state's file system. Blocks while write buffers are flushed.
    pub fn checkpoint(&self, folder: &Path) -> Result<Facts, Error> {
        take(&self.shared.store, folder)
    }
}

fn take(store: &Store, folder: &Path) -> Result<Facts, Error> {
    // Read before: the frontier only ever grows.
    let standing = store.standing()?;
    store.checkpoint(folder)?;
    meta::facts(store.path(), store.definitions()?, &standing)
}

/// The same of a state that no joiner has open.
pub fn of_stopped(state_dir: &Path, folder: &Path) -> Result<Facts, Error> {
    let incarnation = meta::recognize(state_dir)?;
    take(&*Store::open(state_dir, incarnation, Memory::default())?, folder)
}

/// Whether a joiner with this configuration can go on from a checkpoint. `place` is what errors call it.
pub fn check(facts: &Facts, config: &Config, place: &Path) -> Result<(), Error> {
    meta::check_facts(place, facts, &config.source(), config.range)?;
    definitions::check(place, facts, config)
}

/// Makes a folder with a checkpoint's files in [`DATABASE`] a state, which no other was before.
pub fn seal(folder: &Path, facts: &Facts) -> Result<(), Error> {
    meta::seal(folder, facts)
}

/// Refuses a state that a joiner has open. One that cannot be opened for another reason is nobody's.
pub fn is_free(state_dir: &Path) -> Result<(), Error> {
    match meta::recognize(state_dir).and_then(|incarnation| Store::open(state_dir, incarnation, Memory::default())) {
        Err(error @ Error::Locked { .. }) => Err(error),
        _ => Ok(()),
    }
}
