//! The importer as a whole: lease, sessions, and what to do when one fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::ErrorClass;
use streams::Provider;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::handle::{ImporterHandle, Requests};
use crate::lease::{self, Lease, Turn};
use crate::metrics;
use crate::session::{self, End, Opening};
use crate::status::{Activity, StatusHandle};
use source::clock::Clock;

/// The first and the longest wait between attempts.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// Errors that may be a passing state of the catalog (a change table that is not there) are tried this often in a row before they count.
const ATTEMPTS: u32 = 5;

/// Imports one source.
pub struct Importer {
    config: Config,
    provider: Arc<dyn Provider>,
    status: StatusHandle,
    handle: ImporterHandle,
    requests: Requests,
}

impl Importer {
    pub fn new(config: Config, provider: Arc<dyn Provider>) -> Self {
        let status = StatusHandle::default();
        let (handle, requests) = ImporterHandle::new(status.clone());
        Self { config, provider, status, handle, requests }
    }

    /// A handle to read what it does, during and after [`run`](Self::run).
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// A handle to ask it for more while it runs.
    pub fn handle(&self) -> ImporterHandle {
        self.handle.clone()
    }

    /// Imports until told to stop, until something has to be done by somebody, or until all that was asked for is done. Waits for its turn while another importer of the same source
    /// works. Stopping may cut a range short, as a crash would: nothing is lost, and the next start publishes it from its beginning.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        self.attempt(shutdown).await
    }

    /// The same of one that may be run again after a failure.
    pub async fn attempt(&self, shutdown: CancellationToken) -> Result<(), Error> {
        metrics::describe();
        let clock = Clock::new(self.config.time_zone.as_deref())?;
        let result = self.turns(&clock, &shutdown).await;
        self.status.update(|status| {
            status.activity = Activity::Stopped;
            status.last_error = result.as_ref().err().map(ToString::to_string);
        });
        result
    }

    /// One lease after the other: most live as long as the process.
    async fn turns(&self, clock: &Clock, shutdown: &CancellationToken) -> Result<(), Error> {
        let store = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            store = lease::open(&self.config) => store?,
        };
        while let Some(lease) = Lease::turn(&store, &self.status, shutdown).await? {
            let work = self.sessions(&lease, clock);
            if lease.hold(shutdown, work).await? == Turn::Over {
                break;
            }
        }
        Ok(())
    }

    /// One session after the other, until a failure that trying again does not mend.
    async fn sessions(&self, lease: &Lease, clock: &Clock) -> Result<(), Error> {
        let started = Instant::now();
        let mut last_success = None;
        let mut record_limit = None;
        let mut wait = RETRY_FIRST;
        let mut attempts = 0;
        loop {
            let before = last_success;
            let opening = Opening {
                config: &self.config,
                provider: &*self.provider,
                lease,
                clock,
                status: &self.status,
                requests: &self.requests,
                record_limit,
                last_success: &mut last_success,
            };
            let error = match Box::pin(session::run(opening)).await {
                Ok(End::Done) => return Ok(()),
                Ok(End::Reopen) => {
                    tracing::info!("the source's catalog has moved; the tables are opened again");
                    continue;
                }
                Err(error) => error,
            };
            if last_success.zip(before).is_some_and(|(now, before)| now.duration_since(before) > RETRY_LONGEST) {
                wait = RETRY_FIRST;
                attempts = 0;
            }
            attempts += 1;
            // The range is published again, with the record that the stream refused set aside.
            if let Error::Stream(streams::Error::TooLarge { limit, .. }) = error
                && record_limit != Some(limit)
            {
                record_limit = Some(limit);
                continue;
            }
            if self.is_gap_to_mend(&error) {
                // Opening the tables again finds it out as well, and decides what becomes of the table.
                tracing::warn!(%error, "changes were lost; the table is opened again");
                tokio::time::sleep(RETRY_FIRST).await;
                continue;
            }
            if error.class() != ErrorClass::Transient || self.is_hopeless(&error, attempts, last_success.is_some(), started) {
                return Err(error);
            }
            tracing::warn!(%error, attempts, "the session failed; trying again");
            metrics::reconnected(&self.config.output.name);
            self.status.update(|status| {
                status.activity = Activity::Retrying;
                status.last_error = Some(error.to_string());
            });
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
        }
    }

    fn is_gap_to_mend(&self, error: &Error) -> bool {
        match error {
            Error::Source(source::Error::Gap { table, .. } | source::Error::InstanceGone { table, .. }) => {
                self.config.gap_policy(table) == crate::config::GapPolicy::Resnapshot
            }
            _ => false,
        }
    }

    /// Whether an error that might pass is not worth another attempt.
    fn is_hopeless(&self, error: &Error, attempts: u32, reached_once: bool, started: Instant) -> bool {
        match error {
            Error::Source(error) if error.is_missing_object() => attempts >= ATTEMPTS,
            Error::Source(_) => !reached_once && started.elapsed() >= self.config.startup_patience,
            _ => false,
        }
    }
}
