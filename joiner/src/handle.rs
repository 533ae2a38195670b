//! What others may ask of a running joiner: its status, its outbox, single entities.

use std::sync::{Arc, Mutex, PoisonError};

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{Lsn, Vector};
use streams::Batch;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::catalog::Catalog;
use crate::cores::Cores;
use crate::dead_letters::DeadLetters;
use crate::error::Error;
use crate::route::{Of, Routed, route};
use crate::state::meta::Standing;
use crate::state::{Store, key, outbox};
use crate::status::{SinkStatus, Status};
use crate::step::{self, Found};
use crate::{Config, Source};

/// The outbox's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The last entry's sequence number; 0 before the first.
    pub sequence: u64,
    /// Everything at or below it is in the outbox up to `sequence` (or was there when sinks were loaded).
    pub frontier: Lsn,
    pub commit_time_ms: i64,
    /// Whether the state can be read as it stands: not before the first load has ended, and not while a table that is read again holds rows of different ages. The outbox can be read all the time.
    pub live: bool,
    /// Counts loads of the state. With another number every reader starts anew: what it holds may contain entities that have vanished.
    pub load: u64,
    /// Which outbox the sequence numbers belong to: another one for each state, each load of it, and each change of its definitions.
    pub incarnation: u64,
    /// The oldest entry kept; `sequence + 1` when there are none.
    pub oldest: u64,
}

/// Entries of the outbox, or that they are gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Page {
    /// In sequence order; empty at the head.
    Changes { changes: Vec<(u64, EntityChange)>, head: Head },
    /// Entries after the one asked for have been trimmed: read the entities as they are, and go on after `head`.
    Trimmed { oldest: u64, head: Head },
}

pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) head: watch::Sender<Head>,
    /// In the order of the standing's.
    sources: Vec<Source>,
    status: Mutex<Status>,
    /// Somebody has dropped dead letters, or wants some tried again.
    pub(crate) letters: watch::Sender<()>,
    pub(crate) cores: Arc<Cores>,
    /// Work that blocks is done by the tasks themselves ([`crate::Config::threads`]).
    pub(crate) in_place: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("head", &*self.head.borrow()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(store: Arc<Store>, catalog: Arc<Catalog>, cores: Arc<Cores>, config: &Config) -> Result<Arc<Self>, Error> {
        let standing = store.standing()?;
        let mut status = Status::default();
        status.stand(&standing);
        let head = watch::Sender::new(head(&store, &catalog, &standing));
        let letters = watch::Sender::new(());
        let in_place = config.threads == 0;
        let mut sources = config.sources.clone();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Arc::new(Self { store, catalog, head, sources, status: Mutex::new(status), letters, cores, in_place }))
    }

    /// Does work that blocks (the database, assembling) beside the tasks.
    pub(crate) fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        if self.in_place { tokio::spawn(async move { work() }) } else { tokio::task::spawn_blocking(work) }
    }

    /// Does work of the same kind as soon as a step leaves a core for it.
    pub(crate) async fn sort<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        let failed = |what: &dyn std::fmt::Display| Error::Task { what: what.to_string() };
        if self.in_place {
            return self.beside(work).await.map_err(|error| failed(&error));
        }
        match self.cores.sort(work).await {
            Ok(sorted) => sorted.map_err(|_| failed(&"sorting out what was read has panicked")),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) fn is_of_several_sources(&self) -> bool {
        self.sources.len() > 1
    }

    pub(crate) fn dead_letters(&self) -> DeadLetters {
        DeadLetters::of(self.store.clone(), self.letters.clone())
    }

    /// Sorts out a batch. Where a record is under a schema that is not known, the importer may just have written it.
    pub(crate) fn route(&self, of: Of<'_>, batch: &Batch) -> Result<Routed, Error> {
        let schemas = &self.sources[of.source].schemas;
        match route(&self.store, &self.catalog, &schemas.known(), of, batch) {
            Err(Error::UnknownSchema(_)) => route(&self.store, &self.catalog, &*schemas.look_again()?, of, batch),
            routed => routed,
        }
    }

    /// Tells everyone how far the joiner has come.
    pub(crate) fn publish(&self, standing: &Standing) {
        self.with_status(|status| status.stand(standing));
        let new = head(&self.store, &self.catalog, standing);
        self.head.send_if_modified(|head| {
            let changed = *head != new;
            *head = new;
            changed
        });
    }

    pub(crate) fn with_status<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn with_sink(&self, name: &str, change: impl FnOnce(&mut SinkStatus)) {
        self.with_status(|status| {
            let which = status.sinks.iter().position(|sink| sink.name == name).unwrap_or_else(|| {
                status.sinks.push(SinkStatus::new(name));
                status.sinks.len() - 1
            });
            change(&mut status.sinks[which]);
            let (oldest, head) = (status.outbox_oldest, status.outbox_head);
            status.sinks[which].measure(oldest, head);
        });
    }
}

/// Odd, and far from each other: multiples of one keep the loads of a state apart, of the other what was made of changes of its definitions, and both are far from those of another state.
const OF_LOADS: u64 = 0x9e37_79b9_7f4a_7c15;
const OF_CHANGES: u64 = 0xd6e8_feb8_6659_fd93;

fn head(store: &Store, catalog: &Catalog, standing: &Standing) -> Head {
    let changes = u64::from(catalog.changes).wrapping_mul(OF_CHANGES);
    Head {
        sequence: standing.head,
        frontier: standing.head_frontier,
        commit_time_ms: standing.head_commit_time_ms,
        live: standing.is_consistent(),
        load: standing.load,
        incarnation: store.incarnation() ^ standing.load.wrapping_mul(OF_LOADS) ^ changes,
        oldest: standing.oldest,
    }
}

/// A handle on the joiner's state; cheap to clone. All calls read the local database, and block for as long as that takes.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    pub fn outbox(&self) -> Outbox {
        Outbox { shared: self.shared.clone() }
    }

    /// Asks something beside the tasks, as whatever blocks has to be asked in one; where the joiner works in place ([`Config::threads`]), this does too.
    pub async fn beside<T: Send + 'static>(&self, ask: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T, Error> {
        let handle = self.clone();
        self.shared.beside(move || ask(&handle)).await.map_err(|error| Error::Task { what: error.to_string() })
    }

    pub fn status(&self) -> Status {
        let mut status = self.shared.with_status(|status| status.clone());
        status.state_bytes = self.shared.store.bytes();
        if let Some(Ok(Some(told))) = status.frontier.map(|frontier| self.outbox().sources_at(frontier)) {
            for (source, lsn) in told.iter() {
                if let Some(source) = status.sources.get_mut(source) {
                    source.frontier = Some(lsn);
                }
            }
        }
        // Where the database fails, everything else says so.
        let dropped = self.dead_letters().dropped_events().unwrap_or_default();
        status.dead_letters = status.dead_letters.saturating_sub(dropped);
        status
    }

    /// What was set aside.
    pub fn dead_letters(&self) -> DeadLetters {
        self.shared.dead_letters()
    }

    pub fn entities(&self) -> Vec<EntityInfo> {
        self.shared.catalog.entities.iter().map(|entity| entity.plan.info()).collect()
    }

    /// The one text that stands for a key, however it was written; `None` when it cannot be a key of this entity.
    pub fn normalize_key(&self, entity: &str, key: &EntityKey) -> Option<EntityKey> {
        let entity = self.shared.catalog.entity(entity)?;
        self.shared.catalog.entities[entity].plan.normalize_key(key)
    }

    /// Assembles an entity from the state as it stands: its document and the LSN that it reflects. `None`: there is none, it is too large to be told, or the state cannot be read now (`Head::live`).
    pub fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<(Lsn, String)>, Error> {
        let Shared { catalog, store, .. } = &*self.shared;
        let id = catalog.entity(entity).ok_or_else(|| Error::UnknownEntity { entity: entity.to_owned() })?;
        let Some(bytes) = encode_key(catalog, id, key) else { return Ok(None) };
        let (standing, found) = step::assemble_now(store, catalog, id, &bytes)?;
        Ok(match found {
            Found::Document(text) if standing.is_consistent() => Some((standing.frontier, text)),
            _ => None,
        })
    }
}

/// An entity's key as it stands in the state; none where the text cannot be one.
pub(crate) fn encode_key(catalog: &Catalog, entity: usize, key: &EntityKey) -> Option<Vec<u8>> {
    let (parts, wanted) = (key.parts(), &catalog.entities[entity].key);
    if parts.len() != wanted.len() {
        return None;
    }
    let mut bytes = Vec::new();
    for (part, text) in wanted.iter().zip(&parts) {
        key::encode_text(text, part.key_type, &mut bytes).ok()?;
    }
    Some(bytes)
}

impl sinks::Versions for Outbox {
    /// Where the database fails, everything else says so.
    fn sources(&self, version: Lsn) -> Option<Vector> {
        self.sources_at(version).ok().flatten()
    }
}

/// Reads the outbox.
#[derive(Debug, Clone)]
pub struct Outbox {
    pub(crate) shared: Arc<Shared>,
}

impl Outbox {
    /// The outbox's end, and a notification whenever it moves (also when only the frontier does).
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// Whether a version stands for more than an LSN of one source.
    pub fn is_of_several_sources(&self) -> bool {
        self.shared.is_of_several_sources()
    }

    /// The LSNs of the sources that a version stands for. None of one source, whose LSN it is; nor of a version that the outbox speaks of no longer.
    pub fn sources_at(&self, version: Lsn) -> Result<Option<Vector>, Error> {
        let Shared { store, sources, .. } = &*self.shared;
        Ok(store.vector(version)?.map(|vector| sources.iter().map(|source| source.name.to_string()).zip(vector).collect()))
    }

    /// At most `limit` entries after `sequence`.
    pub fn read_after(&self, sequence: u64, limit: usize) -> Result<Page, Error> {
        self.read_bounded(sequence, limit, usize::MAX)
    }

    /// The same, ended also by the size of the documents (at least one entry is read). What it answers is on the disk: a power failure cannot take back what a subscriber has seen.
    pub fn read_bounded(&self, sequence: u64, limit: usize, limit_bytes: usize) -> Result<Page, Error> {
        // What is older is of other definitions.
        let of_others = self.shared.catalog.changed_at;
        let page = match self.read_unsynced(sequence.max(of_others), limit, limit_bytes)? {
            Page::Changes { head, .. } if sequence < of_others => Page::Trimmed { oldest: of_others + 1, head },
            page => page,
        };
        let (Page::Changes { head, .. } | Page::Trimmed { head, .. }) = &page;
        self.shared.store.sync_to(head.sequence)?;
        Ok(page)
    }

    /// The same for one who makes it durable before handing it on.
    pub(crate) fn read_unsynced(&self, sequence: u64, limit: usize, limit_bytes: usize) -> Result<Page, Error> {
        let Shared { store, catalog, .. } = &*self.shared;
        let standing = store.standing()?;
        let head = head(store, catalog, &standing);
        if sequence + 1 < standing.oldest || sequence > standing.head {
            return Ok(Page::Trimmed { oldest: standing.oldest, head });
        }
        let (mut changes, mut bytes) = (Vec::new(), 0);
        if limit > 0 {
            outbox::read(store, catalog, &standing, sequence, &mut |sequence, change| {
                bytes += change.document.as_ref().map_or(0, |document| document.len());
                changes.push((sequence, change));
                changes.len() < limit && bytes < limit_bytes
            })?;
        }
        // Trimming may have removed entries while they were read.
        match changes.first() {
            Some((first, _)) if *first != sequence + 1 => Ok(Page::Trimmed { oldest: *first, head }),
            _ => Ok(Page::Changes { changes, head }),
        }
    }
}
