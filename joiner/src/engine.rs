//! The joiner without its tasks: synchronous, driven by whoever holds it. [`Joiner::run`](crate::Joiner::run) drives one; tests and benchmarks drive their own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::table::SourceName;
use streams::{Batch, Layout, Positions};

use crate::Config;
use crate::assemble;
use crate::catalog::{Catalog, TableId};
use crate::core::{Core, Limits, Progress};
use crate::cores::Cores;
use crate::definitions;
use crate::error::Error;
use crate::handle::{Handle, Shared};
use crate::route::{Of, Routed};
use crate::scan::{As, Wanted, scan};
use crate::state::{Store, meta, migrate};
use crate::step::Share;

/// The joiner's state and core.
pub struct Engine {
    shared: Arc<Shared>,
    core: Core,
    origins: Vec<Origin>,
    streams: Vec<StreamName>,
}

/// A source, and what it has here.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) name: SourceName,
    /// The same where there are several: tables are called by it then.
    pub(crate) qualifier: Option<SourceName>,
    /// The stream of its progress records.
    pub(crate) progress: StreamName,
    /// Those of its tables.
    pub(crate) streams: BTreeSet<StreamName>,
    pub(crate) tables: Vec<TableId>,
}

impl Origin {
    /// The sources in the order of their names, and by table the stream that it comes in.
    fn all(config: &Config, catalog: &Catalog) -> Result<(Vec<Self>, Vec<StreamName>), Error> {
        let mut sources: Vec<_> = config.sources.iter().collect();
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let several = sources.len() > 1;
        let origin = |source: &&crate::Source| Self {
            name: source.name.clone(),
            qualifier: several.then(|| source.name.clone()),
            progress: Layout::progress_stream(&source.stream_prefix),
            streams: BTreeSet::new(),
            tables: Vec::new(),
        };
        let mut origins: Vec<Self> = sources.iter().map(origin).collect();
        let mut by_table = Vec::with_capacity(catalog.tables.len());
        for (id, table) in catalog.tables.iter().enumerate() {
            let name = &table.schema.name;
            if catalog.is_of_documents(id) {
                // Of documents: they go with the rows of any source.
                origins.iter_mut().for_each(|origin| origin.tables.push(id));
                by_table.push(StreamName(String::new()));
                continue;
            }
            let of = origins.iter().position(|origin| origin.qualifier == name.source);
            let of = of.ok_or_else(|| Error::UnknownSource { table: name.clone() })?;
            let stream = config.layout.stream(&sources[of].stream_prefix, name);
            origins[of].tables.push(id);
            origins[of].streams.insert(stream.clone());
            by_table.push(stream);
        }
        Ok((origins, by_table))
    }
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
        if let Some(plan) = config.plans.iter().find(|plan| plan.input.is_some() && !config.range.is_all()) {
            return Err(Error::RollUpOfShare { entity: plan.entity.to_string() });
        }
        let claimed = meta::claim(&config.state_dir, &config.source(), config.range)?;
        // Where nothing happens beside it, files are not merged either.
        let store = Store::open_as(&config.state_dir, claimed.incarnation, config.memory, config.threads > 0)?;
        migrate::run(&store, claimed.format)?;
        let catalog = Arc::new(
            definitions::settle(&store, &claimed.definitions, config)?.with_share(config.range).with_parts(config.part_rows),
        );
        assemble::parts::settle(&store, config.part_rows)?;
        let (origins, by_table) = Origin::all(config, &catalog)?;
        let streams = origins.iter().flat_map(|origin| origin.streams.iter().cloned()).collect();
        let limits = Limits {
            buffer_bytes: config.buffer_bytes,
            portion_bytes: config.portion_bytes,
            step_changes: config.step_changes,
            chunk: config.chunk_entities.max(1),
            share: Share { threads: config.threads.max(1), bytes: config.chunk_bytes.max(1) },
            row_cache_bytes: config.memory.row_cache_bytes,
            cores: Cores::new(config.threads),
        };
        let cores = limits.cores.clone();
        let mut core = Core::new(store.clone(), catalog.clone(), &origins, by_table, limits)?;
        core.resume()?;
        let shared = Shared::new(store, catalog, cores, config)?;
        shared.with_status(|status| (status.warning, status.fan_out) = (core.warning(), core.fan_out()));
        Ok(Self { shared, core, origins, streams })
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

    /// Everything at or below has been applied. With several sources, the version of what has been.
    pub fn frontier(&self) -> Lsn {
        self.core.standing().frontier
    }

    /// The same by source, in the order of their names.
    pub fn frontiers(&self) -> Vec<Lsn> {
        self.core.standing().frontiers()
    }

    /// The progress streams whose ends [`Engine::await_published`] wants to know: of a state that is restored or new. None: it need not be called; nor of one source that is new, if nothing was told of it before.
    pub fn awaits(&self) -> impl Iterator<Item = &StreamName> {
        self.origins.iter().map(|origin| &origin.progress).filter(|_| self.core.is_awaiting())
    }

    /// Nothing is told until the progress streams have been read to where they ended when the engine was opened.
    pub fn await_published(&mut self, ends: Vec<(StreamName, Positions)>) {
        self.core.await_published(ends);
    }

    pub(crate) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn core(&mut self) -> &mut Core {
        &mut self.core
    }

    /// Takes in records of an event stream.
    pub fn events(&mut self, batch: &Batch) -> Result<(), Error> {
        let number = self.core.source_of(&batch.stream, &batch.shard)?;
        let of = Of { source: number, qualifier: self.origins[number].qualifier.as_ref(), frontier: self.frontiers()[number] };
        let routed = self.shared.route(of, batch)?;
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
        scan(store, catalog, &snapshot, (id, Wanted::Documents), of, threads.max(1), receive)
    }
}
