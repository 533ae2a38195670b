//! One importer of a source at a time, and how later ones outrank earlier ones.
//!
//! # What holds
//! - Of any number of importers of one source, at most one at a time believes that it holds the lease, as far as clocks can tell; the others wait, and one of them takes over when the
//!   holder is gone: at once where it could say so or its process has ended on the same machine, else when its lease has run out ([`TERM`]), which is within 5 seconds.
//! - Each holder has an *epoch* greater than that of every holder before. Every progress record carries it, and readers refuse records of a lesser one. So the case that no
//!   lease can rule out is harmless: a holder that was frozen, lost its lease, and wakes up in the middle of writing. The changes that it still publishes are repeats of what its successor
//!   publishes as well (both go on from the same saved progress), the rows that it read beside the tail carry its own number ([`crate::reread`]), and its records count no more (INV-1).
//! - Progress is kept where the lease is, and saved on the condition that the epoch is still the latest (INV-2): a successor begins where its predecessor was
//!   acknowledged last, and a predecessor cannot take that back.
//!
//! An epoch is the time of the start in milliseconds since 1970, or one more than the last where the clock has not moved past it, so that a store that was removed for
//! a new snapshot does not fall behind what the streams have seen either.

mod dynamodb;
mod file;
mod postgres;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use schemas::ErrorClass;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, LeaseConfig};
use crate::error::Error;
use crate::saved::Saved;
use crate::status::{Activity, StatusHandle};

pub(crate) use file::replace;

/// How long a lease is good for without being renewed.
const TERM: Duration = Duration::from_millis(3_600);
/// How often it is renewed: a third of the term, so that one renewal may fail.
const RENEWAL: Duration = Duration::from_millis(1_200);
/// How often one that waits asks for it.
const ASKING: Duration = Duration::from_millis(250);
/// A holder that dies without a word is replaced within it: one that watches notices its last sign of life up to one question late, and the end of the term up to another.
const TAKEOVER: Duration = Duration::from_secs(5);
const _: () =
    assert!(TERM.as_millis() + 2 * ASKING.as_millis() < TAKEOVER.as_millis() && RENEWAL.as_millis() * 3 == TERM.as_millis());

/// Where leases and progress are kept.
///
/// Every method may be called at any time from several tasks. A failure says nothing about whether the call had its effect. `renew` and `save` fail with [`Error::LeaseLost`] once
/// another has the lease, and then change nothing.
#[async_trait]
pub trait Store: Send + Sync {
    /// Takes the lease, under a new epoch, if nobody holds it.
    async fn acquire(&self) -> Result<Option<u64>, Error>;
    /// Says that the holder is there for another [`TERM`].
    async fn renew(&self, epoch: u64) -> Result<(), Error>;
    /// Lets the next one have it at once. Harmless where it is lost already.
    async fn release(&self, epoch: u64) -> Result<(), Error>;
    async fn load(&self) -> Result<Option<Vec<u8>>, Error>;
    async fn save(&self, epoch: u64, progress: &[u8]) -> Result<(), Error>;
    /// The store's name in messages.
    fn place(&self) -> String;
}

/// An epoch greater than the last.
fn next_epoch(last: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    now.max(last + 1)
}

/// Opens the store that the configuration names.
pub(crate) async fn open(config: &Config) -> Result<Arc<dyn Store>, Error> {
    open_named(&config.lease, &config.data_dir, &config.output.name).await
}

/// The store under a name that all who agree there have in common; `directory` where it is one.
pub async fn open_named(lease: &LeaseConfig, directory: &Path, name: &str) -> Result<Arc<dyn Store>, Error> {
    Ok(match lease {
        LeaseConfig::File => open_directory(directory)?,
        LeaseConfig::Postgres { url } => Arc::new(postgres::PostgresStore::open(url, name).await?),
        LeaseConfig::DynamoDb { table, region, endpoint } => {
            Arc::new(dynamodb::DynamoStore::open(table, region.as_deref(), endpoint.as_deref(), name).await)
        }
    })
}

/// The store in a directory.
pub(crate) fn open_directory(directory: &Path) -> Result<Arc<dyn Store>, Error> {
    Ok(Arc::new(file::FileStore::open(directory)?))
}

/// How a time of holding a lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The work is done, or was told to stop.
    Over,
    /// Somebody else has the lease: time to wait for the next turn.
    Lost,
}

/// The right to work, until it is lost.
#[derive(Clone)]
pub struct Lease {
    store: Arc<dyn Store>,
    pub epoch: u64,
}

impl Lease {
    /// Waits for the lease. `waiting` is called when somebody else holds it.
    pub async fn acquire(store: Arc<dyn Store>, waiting: impl Fn(&str)) -> Result<Self, Error> {
        let mut told = false;
        loop {
            match store.acquire().await {
                Ok(Some(epoch)) => return Ok(Self { store, epoch }),
                Ok(None) => {}
                Err(error) if error.class() == ErrorClass::Transient => {
                    tracing::warn!(%error, "the lease cannot be asked for; trying again")
                }
                Err(error) => return Err(error),
            }
            if !told {
                told = true;
                waiting(&store.place());
            }
            tokio::time::sleep(ASKING).await;
        }
    }

    /// Waits for the lease, and says so in the status. None when told to stop before it was had.
    pub(crate) async fn turn(
        store: &Arc<dyn Store>,
        status: &StatusHandle,
        shutdown: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        let waits = |place: &str| {
            tracing::info!(place, "another importer of this source works; waiting to take over");
            status.update(|status| status.activity = Activity::Waiting);
        };
        let lease = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            lease = Self::acquire(Arc::clone(store), waits) => lease?,
        };
        status.update(|status| {
            status.epoch = lease.epoch;
            status.activity = Activity::Starting;
        });
        Ok(Some(lease))
    }

    /// Works for as long as the lease is held, then gives it back.
    pub(crate) async fn hold(
        &self,
        shutdown: &CancellationToken,
        work: impl Future<Output = Result<(), Error>>,
    ) -> Result<Turn, Error> {
        let result = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            error = self.keep() => Err(error),
            result = work => result,
        };
        self.release().await;
        match result {
            Err(error @ Error::LeaseLost { .. }) => {
                tracing::warn!(%error, "the lease is lost; waiting for the next turn");
                Ok(Turn::Lost)
            }
            result => result.map(|()| Turn::Over),
        }
    }

    /// Renews the lease for as long as it can be; ends with the reason why it counts as lost.
    pub async fn keep(&self) -> Error {
        let mut good_until = Instant::now() + TERM;
        loop {
            tokio::time::sleep(RENEWAL).await;
            let asked = Instant::now();
            match tokio::time::timeout(RENEWAL, self.store.renew(self.epoch)).await {
                Ok(Ok(())) => good_until = asked + TERM,
                Ok(Err(error @ Error::LeaseLost { .. })) => return error,
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed; trying again"),
                Err(_) => tracing::warn!("the lease's store does not answer; trying again"),
            }
            // Given up before another may take it.
            if Instant::now() + RENEWAL >= good_until {
                return self.lost();
            }
        }
    }

    fn lost(&self) -> Error {
        Error::LeaseLost { place: self.store.place(), epoch: self.epoch }
    }

    pub async fn release(&self) {
        match tokio::time::timeout(RENEWAL, self.store.release(self.epoch)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease could not be given back; it runs out by itself"),
            Err(_) => tracing::warn!("the lease's store does not answer; the lease runs out by itself"),
        }
    }

    /// What was saved with the lease.
    pub async fn load_bytes(&self) -> Result<Option<Vec<u8>>, Error> {
        self.store.load().await
    }

    pub async fn save_bytes(&self, progress: &[u8]) -> Result<(), Error> {
        self.store.save(self.epoch, progress).await
    }

    pub(crate) async fn load(&self, source: &str) -> Result<Option<Saved>, Error> {
        let text = self.store.load().await?;
        text.map(|text| Saved::read(&text, &self.store.place(), source)).transpose()
    }

    pub(crate) async fn save(&self, saved: &Saved) -> Result<(), Error> {
        self.store.save(self.epoch, &saved.write()?).await
    }
}

fn io(path: &Path, doing: &'static str, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), doing, source }
}

#[cfg(test)]
mod tests;
