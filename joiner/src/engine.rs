//! The joiner without its tasks: synchronous, driven by whoever holds it. [`Joiner::run`](crate::Joiner::run) drives one; tests and benchmarks drive their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use streams::Batch;

use crate::Config;
use crate::catalog::Catalog;
use crate::core::{Core, Limits, Progress};
use crate::definitions;
use crate::error::Error;
use crate::handle::{Handle, Shared};
use crate::route::Routed;
use crate::scan::{As, scan};
use crate::state::{Store, meta};
use crate::step::Share;

/// The joiner's state and core.
pub struct Engine {
    shared: Arc<Shared>,
    core: Core,
    streams: Vec<StreamName>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the state, or makes it.
    pub fn open(config: &Config) -> Result<Self, Error> {
        // Mistakes in the definitions are told before anything is touched.
        Catalog::new(&config.plans)?;
        let claimed = meta::claim(&config.state_dir, &config.source, config.range)?;
        let store = Store::open(&config.state_dir, claimed.incarnation, config.memory)?;
        let catalog = Arc::new(definitions::settle(&store, &claimed.definitions, config)?.with_share(config.range));
        let by_table: Vec<StreamName> =
            catalog.tables.iter().map(|table| config.layout.stream(&config.stream_prefix, &table.schema.name)).collect();
        let streams: BTreeSet<StreamName> = by_table.iter().cloned().collect();
        let streams: Vec<StreamName> = streams.into_iter().collect();
        let limits = Limits {
            buffer_bytes: config.buffer_bytes,
            chunk: config.chunk_entities.max(1),
            share: Share { threads: config.threads.max(1), bytes: config.chunk_bytes.max(1) },
            row_cache_bytes: config.memory.row_cache_bytes,
        };
        let mut core = Core::new(store.clone(), catalog.clone(), &config.source, by_table, limits)?;
        core.resume()?;
        let shared = Shared::new(store, catalog, config)?;
        shared.with_status(|status| status.fan_out = core.fan_out());
        Ok(Self { shared, core, streams })
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: self.shared.clone() }
    }

    /// The event streams to read.
    pub fn streams(&self) -> &[StreamName] {
        &self.streams
    }

    /// Where reading goes on after, the progress stream included.
    pub fn positions(&self) -> &ShardPositions {
        &self.core.standing().positions
    }

    /// Everything at or below has been applied.
    pub fn frontier(&self) -> Lsn {
        self.core.standing().frontier
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Takes in records of an event stream.
    pub fn events(&mut self, batch: &Batch) -> Result<(), Error> {
        let routed = self.shared.route(self.frontier(), batch)?;
        self.routed(routed)
    }

    pub(crate) fn routed(&mut self, routed: Routed) -> Result<(), Error> {
        let done = self.core.events(routed);
        self.published(done)
    }

    /// A core that has failed may have written before it did: what is in the database is published, so that nobody waits for, or reads by, a standing that is no more. What the core holds in memory may not be written.
    fn published<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        if done.is_err()
            && let Ok(standing) = self.shared.store.standing()
        {
            self.shared.publish(&standing);
        }
        done
    }

    /// Takes in a progress record.
    pub fn progress(
        &mut self,
        stream: &StreamName,
        shard: &ShardId,
        sequence: &SequenceNumber,
        record: ProgressRecord,
    ) -> Result<(), Error> {
        self.core.progress(Progress { stream: stream.clone(), shard: shard.clone(), sequence: sequence.clone(), record })
    }

    /// Does what can be done with what was taken in. Answers whether the frontier, or the phase, has moved.
    pub fn advance(&mut self) -> Result<bool, Error> {
        let started = Instant::now();
        let advanced = self.core.advance();
        let missing = if let Err(Error::Missing { miscounts }) = &advanced { miscounts.as_slice() } else { &[] };
        for miscount in std::mem::take(&mut self.core.report.miscounts).iter().chain(missing) {
            crate::metrics::miscount(miscount);
            self.shared.with_status(|status| status.miscounted(miscount));
        }
        let moved = self.published(advanced)?;
        self.shared.publish(self.core.standing());
        let (warning, fan_out) = (self.core.warning(), self.core.fan_out());
        self.shared.with_status(|status| (status.warning, status.fan_out) = (warning, fan_out));
        if moved {
            crate::metrics::step(started.elapsed().as_secs_f64(), &mut self.core.report);
        }
        Ok(moved)
    }

    /// Assembles all entities of a kind as of the frontier, on `threads` threads, in batches: how sinks are loaded. `receive` answers false to end it.
    pub fn scan(&self, entity: &str, threads: usize, receive: &(dyn Fn(Vec<EntityChange>) -> bool + Sync)) -> Result<(), Error> {
        let Shared { store, catalog, .. } = &*self.shared;
        let id = catalog.entity(entity).ok_or_else(|| Error::UnknownEntity { entity: entity.to_owned() })?;
        let snapshot = store.db().snapshot();
        let standing = store.standing_at(&snapshot)?;
        let of = As { version: standing.frontier, commit_time_ms: standing.commit_time_ms };
        scan(store, catalog, &snapshot, id, of, threads.max(1), receive)
    }
}
