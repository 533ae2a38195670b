//! Reads a stream for the archiver, from where the archive ends.
//!
//! What is read and not taken in yet is bounded in bytes over all streams: whoever reads waits for room before it hands anything over, and what holds the room is let go when the collector has taken the records in.

use std::sync::Arc;
use std::time::Duration;

use schemas::ErrorClass;
use schemas::progress::{ShardId, StreamName};
use streams::{Batch, Positions, Provider};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::OnTrimmed;
use crate::error::Error;

pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// Attempts in a row before a transient failure is taken for a lasting one.
pub(crate) const ATTEMPTS: u32 = 60;
/// Room between readers and collector, in KiB.
const AHEAD_KIB: usize = 32 << 10;

/// What a reader hands over.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// Records, and the room that they take.
    Records(Batch, Option<OwnedSemaphorePermit>),
    /// What followed in the shard is gone; it goes on with the oldest record that is there.
    Trimmed { stream: StreamName, shard: ShardId },
}

/// Room for what is read ahead.
#[derive(Debug, Clone)]
pub(crate) struct Ahead(Arc<Semaphore>);

impl Ahead {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AHEAD_KIB)))
    }

    /// Waits for room for a batch. One that is larger than all there is takes all.
    async fn reserve(&self, batch: &Batch) -> Option<OwnedSemaphorePermit> {
        let bytes: usize = batch.records.iter().map(|(_, data)| data.len()).sum();
        let kib = bytes.div_ceil(1024).clamp(1, AHEAD_KIB);
        // It is never closed.
        self.0.clone().acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)).await.ok()
    }
}

/// A stream that is read.
pub(crate) struct Follow {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) stream: StreamName,
    pub(crate) after: Positions,
    pub(crate) out: mpsc::Sender<Arrived>,
    pub(crate) ahead: Ahead,
    pub(crate) on_trimmed: OnTrimmed,
}

impl Follow {
    /// Reads on. A stream that does not exist yet is waited for; transient failures are tried again from where reading stood.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut failed = 0;
        loop {
            let Err(error) = self.hand_over(&mut failed).await else { return Ok(()) };
            match error {
                streams::Error::Trimmed { stream, shard, after, oldest } if self.on_trimmed == OnTrimmed::Gap => {
                    tracing::warn!(%stream, %shard, %after, %oldest, "the stream was trimmed past what is archived; going on with what is there");
                    // One that was trimmed before its first record could be read is read again as it is, but not in a hurry.
                    let began = self.after.remove(&shard).is_some();
                    if self.out.send(Arrived::Trimmed { stream, shard }).await.is_err() {
                        return Ok(());
                    }
                    if began {
                        continue;
                    }
                }
                error @ streams::Error::Trimmed { .. } => return Err(Error::Trimmed(Box::new(error))),
                streams::Error::NoSuchStream { .. } if self.after.is_empty() => {}
                error => {
                    failed += 1;
                    if error.class() != ErrorClass::Transient || failed >= ATTEMPTS {
                        return Err(error.into());
                    }
                    tracing::warn!(stream = %self.stream, error = %error, "reading failed, trying again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Hands over what a reader reads, until that fails or nobody wants it any more.
    async fn hand_over(&mut self, failed: &mut u32) -> Result<(), streams::Error> {
        let mut reader = self.provider.reader(&self.stream, &self.after).await?;
        loop {
            let batch = reader.next().await?;
            *failed = 0;
            crate::read::advance(&mut self.after, &batch);
            let room = self.ahead.reserve(&batch).await;
            if self.out.send(Arrived::Records(batch, room)).await.is_err() {
                return Ok(());
            }
        }
    }
}
