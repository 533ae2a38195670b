//! The importer as a whole: lease, sessions, and what to do when one fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::ErrorClass;
use streams::Provider;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::Error;
use crate::lease::Lease;
use crate::metrics;
use crate::saved::ProgressFile;
use crate::session::{Opening, Session};
use crate::status::{Activity, StatusHandle};
use crate::{snapshot, tail};
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
}

impl Importer {
    pub fn new(config: Config, provider: Arc<dyn Provider>) -> Self {
        Self { config, provider, status: StatusHandle::default() }
    }

    /// A handle to read what it does, during and after [`run`](Self::run).
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Imports until told to stop, or until something has to be done by somebody. Stopping may cut a range short, as a crash would: nothing is lost, and
    /// the next start publishes it from its beginning.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        metrics::describe();
        let clock = Clock::new(self.config.time_zone.as_deref())?;
        let lease = Lease::take(&self.config.data_dir)?;
        self.status.update(|status| status.epoch = lease.epoch);
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = self.sessions(&lease, &clock) => Err(error),
        };
        self.status.update(|status| {
            status.activity = Activity::Stopped;
            status.last_error = result.as_ref().err().map(ToString::to_string);
        });
        result
    }

    /// One session after the other, until a failure that trying again does not mend.
    async fn sessions(&self, lease: &Lease, clock: &Clock) -> Error {
        let file = ProgressFile::new(&self.config.data_dir);
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
                file: &file,
                clock,
                status: &self.status,
                epoch: lease.epoch,
                record_limit,
                last_success: &mut last_success,
            };
            let error = session(opening).await;
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
            if error.class() != ErrorClass::Transient || self.is_hopeless(&error, attempts, last_success.is_some(), started) {
                return error;
            }
            tracing::warn!(%error, attempts, "the session failed; trying again");
            metrics::reconnected();
            self.status.update(|status| {
                status.activity = Activity::Retrying;
                status.last_error = Some(error.to_string());
            });
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
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

async fn session(opening: Opening<'_>) -> Error {
    let mut session = match Session::open(opening).await {
        Ok(session) => session,
        Err(error) => return error,
    };
    if session.in_snapshot()
        && let Err(error) = snapshot::run(&mut session).await
    {
        return error;
    }
    match tail::run(&mut session).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}
