//! What versions stand for, as sinks are told where there are several sources.

use std::sync::{Arc, Mutex, PoisonError};

use schemas::{Lsn, Vector};
use sinks::Versions;

use crate::handle::{Outbox, Shared};

/// The state says it of all versions that its outbox speaks of. A load may take longer than that, so what its version stands for is remembered.
pub(super) struct Told {
    outbox: Outbox,
    loaded: Mutex<Option<(Lsn, Vector)>>,
}

impl Told {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { outbox: Outbox { shared: shared.clone() }, loaded: Mutex::default() }
    }

    /// A load begins, as of this version.
    pub(super) fn remember(&self, version: Lsn) {
        let sources = self.outbox.sources(version);
        *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = sources.map(|sources| (version, sources));
    }
}

impl Versions for Told {
    fn sources(&self, version: Lsn) -> Option<Vector> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.as_ref().filter(|(known, _)| *known == version).map(|(_, sources)| sources.clone());
        loaded.or_else(|| self.outbox.sources(version))
    }
}
