//! Which faults are in force, and which switch breaks the system on purpose.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A way to break an invariant, for the auditor to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// INV-1: a change is appended only after the record that promises it.
    LateChange,
    /// INV-2: saved progress is moved ahead of what was published.
    SavedAhead,
    /// INV-3: a disk loses what it was told to keep.
    LyingDisk,
    /// INV-4: a value is changed on its way.
    WrongValue,
    /// INV-5: a target takes whatever comes.
    NoGuard,
    /// INV-6: a change and its count are gone.
    LostChange,
    /// INV-3: the object storage has lost a part of a checkpoint.
    LostPart,
    /// INV-6: what one instance says of its share of a target is taken for all of it.
    WideFrontier,
    /// INV-6: a joiner that takes over is told that sinks hold what they do not.
    ConfirmedAhead,
}

/// How likely things go wrong, in a thousand, and what is down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Levels {
    /// Connections to the source.
    pub(crate) source: u64,
    pub(crate) source_cut: bool,
    /// Requests to the streams.
    pub(crate) streams: u64,
    /// The longest that a record takes until readers see it.
    pub(crate) stream_delay_ms: u64,
    /// Writes to targets.
    pub(crate) targets: u64,
    pub(crate) targets_down: [bool; 3],
    pub(crate) target_delay_ms: u64,
    /// Requests to the object storage.
    pub(crate) storage: u64,
    pub(crate) storage_down: bool,
    pub(crate) storage_delay_ms: u64,
    /// Requests to the leases.
    pub(crate) leases: u64,
    pub(crate) lease_delay_ms: u64,
}

#[derive(Clone)]
pub(crate) struct Faults {
    levels: Arc<Mutex<Levels>>,
    pub(crate) sabotage: Option<Sabotage>,
}

impl Faults {
    pub(crate) fn new(sabotage: Option<Sabotage>) -> Self {
        Self { levels: Arc::default(), sabotage }
    }

    pub(crate) fn levels(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    pub(crate) fn source_permille(&self) -> u64 {
        self.levels().source
    }

    pub(crate) fn source_is_cut(&self) -> bool {
        self.levels().source_cut
    }
}
