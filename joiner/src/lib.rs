//! Streams to entities: consume, keyed state in RocksDB, assemble, outbox, delivery.
//!
//! What comes out is always the join of the source as it stood at one commit LSN (INV-4). The pieces, from the outside in:
//! - [`Joiner`] runs everything: `consume` reads the streams, `deliver` writes the sinks; [`Handle`] lets others look in.
//! - [`Engine`] is the joiner without tasks: `core` decides what may be applied, `step` applies and assembles, `scan` assembles everything.
//! - `route` turns records into what the core works on, `inputs` knows how far each shard has been read, `buffer` keeps changes until they are complete, `accounting` holds them against what was published, `catalog` is the entity definitions compiled, `explain` tells what they cost.
//! - `definitions` is which entity definitions a state serves, and how it comes to serve others.
//! - `share` is what one of several instances makes and keeps, `reshape` splits and merges their states.
//! - `standby` is how one joiner goes on where another has come.
//! - `cores` has as much of what is read sorted out at a time as a step leaves cores.
//! - `derive` computes what expressions make of a row; `state` is what is on the disk, `checkpoint` hands it out as it stands at one instant; `assemble` makes documents of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemas::KeyRange;
use schemas::encoding::{Registry, Schemas};
use schemas::plan::Plan;
use schemas::table::SourceName;
use streams::{Layout, Provider};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod accounting;
mod assemble;
mod buffer;
mod catalog;
pub mod checkpoint;
mod consume;
mod core;
mod cores;
pub mod dead_letters;
pub mod definitions;
pub mod deliver;
mod derive;
mod engine;
mod error;
pub mod explain;
mod handle;
mod inputs;
pub mod metrics;
mod quiet;
mod reread;
pub mod reshape;
mod route;
mod scan;
mod share;
pub mod standby;
mod state;
mod status;
mod step;

pub use accounting::Miscount;
pub use catalog::Lacking;
pub use dead_letters::DeadLetters;
pub use deliver::{NamedSink, NullSink};
pub use engine::Engine;
pub use error::Error;
pub use handle::{Handle, Head, Outbox, Page};
pub use inputs::Place;
pub use route::DeadLetter;
pub use standby::{Confirmed, ConfirmedBySink};
pub use state::Memory;
pub use state::meta::TableCounts;
pub use status::{FanOut, JoinerPhase, SinkLoad, SinkState, SinkStatus, SourceStatus, Status};

/// What a joiner works on and with.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state's directory: empty, or one that this joiner has used.
    pub state_dir: PathBuf,
    pub plans: Vec<Arc<Plan>>,
    /// The entities that this instance makes: all, or the share of one of several.
    pub range: KeyRange,
    /// What is joined. Where there are several, tables in the plans are called by their source.
    pub sources: Vec<Source>,
    pub layout: Layout,
    /// Changes that wait for their progress record are kept in memory up to this, and on the disk past it. Past a quarter only what steps lack is read, and past half no step is left to grow, so that it comes to that
    /// where a single transaction is larger.
    pub buffer_bytes: usize,
    /// What a step may take of memory for its rows; one that changes more is written in portions, and seen when it is whole.
    pub portion_bytes: usize,
    /// Aggregates over very many rows are kept in parts of about so many, a power of two: more of them are read when one has changed, fewer parts are kept.
    pub part_rows: u32,
    /// Changes of a step, about, where more wait; what the last progress record of it tells of is never cut. Larger steps read the state in longer stretches, but what touches more than `chunk_entities` is assembled twice.
    pub step_changes: u64,
    /// Entities assembled and written at once; a step that touches more is done in several writes, and seen when it is whole.
    pub chunk_entities: usize,
    /// The same as bytes of documents.
    pub chunk_bytes: usize,
    pub memory: Memory,
    /// Outbox entries are kept for this long, and no more than this many, but not dropped before every sink has them.
    pub outbox_age: Duration,
    pub outbox_entries: u64,
    /// What the outbox may take on the disk. Past it entries are dropped although a sink does not have them: it is loaded anew.
    pub backlog_bytes: u64,
    /// Threads that assemble, in steps and when a sink is loaded. 0: everything is done in place by the tasks themselves, in an order that the runtime alone decides, as a simulation needs it.
    pub threads: usize,
}

/// Where changes come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// As in the progress records.
    pub name: SourceName,
    /// What its streams' names begin with.
    pub stream_prefix: String,
    /// The schemas that its records may be written under, where they are not all in JSON.
    pub schemas: Arc<Schemas>,
}

impl Source {
    pub fn new(name: impl AsRef<str>, stream_prefix: impl Into<String>) -> Self {
        let schemas = Arc::new(Schemas::fixed(Registry::default()));
        Self { name: name.as_ref().into(), stream_prefix: stream_prefix.into(), schemas }
    }
}

impl Config {
    /// Of one source.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        plans: Vec<Arc<Plan>>,
        source: impl AsRef<str>,
        stream_prefix: impl Into<String>,
    ) -> Self {
        Self::of(state_dir, plans, vec![Source::new(source, stream_prefix)])
    }

    pub fn of(state_dir: impl Into<PathBuf>, plans: Vec<Arc<Plan>>, sources: Vec<Source>) -> Self {
        Self {
            state_dir: state_dir.into(),
            plans,
            range: KeyRange::ALL,
            sources,
            layout: Layout::default(),
            buffer_bytes: 160 << 20,
            portion_bytes: 64 << 20,
            part_rows: assemble::parts::PART_ROWS,
            step_changes: 300_000,
            chunk_entities: 160_000,
            chunk_bytes: 64 << 20,
            memory: Memory::default(),
            outbox_age: Duration::from_secs(24 * 3600),
            outbox_entries: 10_000_000,
            backlog_bytes: 16 << 30,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }

    /// The names of the sources, as a state says whose it is. (A comma stands in no name.)
    fn source(&self) -> String {
        let mut names: Vec<&str> = self.sources.iter().map(|source| &*source.name).collect();
        names.sort_unstable();
        names.join(",")
    }
}

/// A joiner, opened and not yet running.
#[derive(Debug)]
pub struct Joiner {
    engine: Engine,
    config: Config,
}

impl Joiner {
    /// Opens the state, or makes it; goes on with a step that was interrupted. Blocks while it does.
    pub fn open(config: Config) -> Result<Self, Error> {
        let engine = Engine::open(&config)?;
        Ok(Self { engine, config })
    }

    pub fn handle(&self) -> Handle {
        self.engine.handle()
    }

    /// Reads, joins and delivers until `shutdown`, or until something happens that needs help: that is also in the status then. The state stays as it is and goes on
    /// where it was when it is opened again.
    pub async fn run(self, provider: Arc<dyn Provider>, sinks: Vec<NamedSink>, shutdown: CancellationToken) -> Result<(), Error> {
        let (_, turn) = watch::channel(Some(ConfirmedBySink::default()));
        self.run_in_turn(provider, sinks, turn, shutdown).await
    }

    /// The same of one that stands by until it is its `turn`: then it is told what its predecessor's sinks have confirmed. There is no way back: whoever takes the turn away drops this.
    pub async fn run_in_turn(
        self,
        provider: Arc<dyn Provider>,
        sinks: Vec<NamedSink>,
        turn: watch::Receiver<Option<ConfirmedBySink>>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        consume::run(self.engine, self.config, provider, sinks, turn, shutdown).await
    }
}
