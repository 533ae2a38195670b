//! A service's own stream as a source: its events, of any shape, become changes of rows under contracts, and from there on nobody tells them from a table's.
//!
//! ```text
//! the service's stream ─► input ─► translate ─► tick ─► publish ─► events, dead letters, progress records
//!                                      ▲          │
//!                                      └─ state ◄─┘ (the last row of each key, how far it is)
//! ```
//! # Ticks
//! There is no commit LSN in a service's stream. What stands for it is the number of a *tick*: a run of records of each of some shards, which are applied together. The source's order is that of the ticks, within a
//! tick that of the shards as they came first, within a shard the service's own. So what is promised is:
//! - Records of one shard, hence of one partition key, take effect in the order in which the service wrote them, over splits and merges too.
//! - Everything downstream is as of the end of one tick: of each shard all up to one record and nothing beyond it. A record is never torn, whatever tables it is of.
//! - Nothing is promised between records of different keys, and nothing about the service's own transactions: two records that it wrote together may come in two ticks.
//!
//! # Why each record takes effect once
//! 1. A tick is made of records and of the rows as they were after the tick before: in memory, the whole of it, before anything of it is published. A record that stops the importer stops it here, with nothing of its tick out.
//! 2. The *plan* of the tick is saved: its number, and the last record of each shard in it. From here on a restart makes the tick from the plan. Records do not change in a stream, rows are as of the tick before
//!    (step 4), mappings and contracts are held against those of the plan: so it is the same tick, with the same identities in the same order, and whoever has read some of it already drops the repeats.
//! 3. The events are published and acknowledged, then the progress record that names the tick (INV-1).
//! 4. Rows, positions and the end of the plan are written in one synced write (INV-2). A crash before it repeats the tick; one after it goes on with the next.
//!
//! Every record is published, dead-lettered, or counted as passed over by the configuration's own words (INV-6). One that the stream has removed before it was read is an error ([`Error::InputGap`]).
//!
//! # One at a time
//! The rows are local, so the lease is a lock in the data directory ([`crate::lease`]); whoever is to take over needs that directory, on a volume that moves. A directory that is lost is a new history: the stream is read from the
//! oldest record that it keeps, under greater tick numbers, and the joiner builds its state anew.

pub mod check;
mod config;
mod input;
mod state;
mod tick;
mod translate;
mod value;

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::ErrorClass;
use streams::Provider;
use tokio_util::sync::CancellationToken;

pub use config::{
    BadRecordPolicy, Conditions, Deletion, ParsePointerError, Pointer, ServiceConfig, TableMapping, UnmatchedPolicy, Wanted,
};
pub(crate) use translate::Problem;

use crate::error::Error;
use crate::lease::{self, Lease, Turn};
use crate::metrics;
use crate::status::{Activity, StatusHandle};
use tick::Session;
use translate::Translator;

/// The first and the longest wait between attempts.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// Imports a service's stream.
pub struct ServiceImporter {
    config: ServiceConfig,
    input: Arc<dyn Provider>,
    output: Arc<dyn Provider>,
    status: StatusHandle,
}

impl ServiceImporter {
    /// `input` has the service's stream, `output` takes the source's; they may be the same.
    pub fn new(config: ServiceConfig, input: Arc<dyn Provider>, output: Arc<dyn Provider>) -> Self {
        Self { config, input, output, status: StatusHandle::default() }
    }

    /// A handle to read what it does, during and after [`run`](Self::run).
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Imports until told to stop, or until something has to be done by somebody. Waits for its turn while another importer of the same source works. Stopping may cut a tick short, as a crash would.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        self.attempt(shutdown).await
    }

    /// The same of one that may be run again after a failure.
    pub async fn attempt(&self, shutdown: CancellationToken) -> Result<(), Error> {
        metrics::describe();
        let result = self.turns(&shutdown).await;
        self.status.update(|status| {
            status.activity = Activity::Stopped;
            status.last_error = result.as_ref().err().map(ToString::to_string);
        });
        result
    }

    async fn turns(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let translator = Arc::new(Translator::new(&self.config)?);
        let store = lease::open_directory(&self.config.data_dir)?;
        while let Some(lease) = Lease::turn(&store, &self.status, shutdown).await? {
            let work = self.sessions(&lease, &translator);
            if lease.hold(shutdown, work).await? == Turn::Over {
                break;
            }
        }
        Ok(())
    }

    /// One session after the other, until a failure that trying again does not mend.
    async fn sessions(&self, lease: &Lease, translator: &Arc<Translator>) -> Result<(), Error> {
        let mut record_limit = None;
        let mut wait = RETRY_FIRST;
        loop {
            let began = Instant::now();
            let opening = tick::Opening {
                config: &self.config,
                input: &*self.input,
                output: &*self.output,
                translator,
                epoch: lease.epoch,
                record_limit,
                status: &self.status,
            };
            let error = match Box::pin(Session::open(opening)).await {
                Ok(mut session) => Box::pin(session.run()).await,
                Err(error) => error,
            };
            // The tick is published again, with the record that the stream refused set aside.
            if let Error::Stream(streams::Error::TooLarge { limit, .. }) = error
                && record_limit != Some(limit)
            {
                record_limit = Some(limit);
                continue;
            }
            if error.class() != ErrorClass::Transient {
                return Err(error);
            }
            tracing::warn!(%error, "the session failed; trying again");
            metrics::reconnected(&self.config.output.name);
            self.status.update(|status| {
                status.activity = Activity::Retrying;
                status.last_error = Some(error.to_string());
            });
            if began.elapsed() > RETRY_LONGEST {
                wait = RETRY_FIRST;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
        }
    }
}
