//! Wakes the readers of a stream in the process that writes it; and has who opens the stream for writing there wait for one another.
//!
//! Waking is a hint only: what a reader sees, it sees in the files. Without the hint (a writer in another process) it looks again after a pause that grows; with a writer in
//! this process the pause is long, because an append wakes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

/// One for each stream folder of the process, whichever providers have it open.
pub(super) struct Hub {
    appended: watch::Sender<()>,
    writers: AtomicUsize,
    opening: Mutex<()>,
}

static HUBS: Mutex<Option<HashMap<PathBuf, Weak<Hub>>>> = Mutex::new(None);

impl Hub {
    pub(super) fn of(folder: &Path) -> Arc<Self> {
        // Two names of one folder are to meet; a folder that cannot be resolved keeps its own.
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let mut hubs = HUBS.lock().unwrap_or_else(PoisonError::into_inner);
        let hubs = hubs.get_or_insert_default();
        if let Some(hub) = hubs.get(&folder).and_then(Weak::upgrade) {
            return hub;
        }
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let hub = Arc::new(Self { appended: watch::Sender::new(()), writers: AtomicUsize::new(0), opening: Mutex::new(()) });
        hubs.insert(folder, Arc::downgrade(&hub));
        hub
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.appended.subscribe()
    }

    /// Held while the stream's lock is taken, and for as long as retention has it: that takes its time, and a writer is to wait for it, whose turn it is the next, rather than take it for another writer.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_writer(&self) -> bool {
        self.writers.load(Ordering::Acquire) > 0
    }
}

/// A writer's hold on the hub.
pub(super) struct Announcer(Arc<Hub>);

impl Announcer {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        hub.writers.fetch_add(1, Ordering::AcqRel);
        Self(hub)
    }

    pub(super) fn announce(&self) {
        self.0.appended.send_replace(());
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::AcqRel);
        // A reader that counted on being woken looks again, and finds that it has to look by itself from now on.
        self.announce();
    }
}
