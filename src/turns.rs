//! Whose turn it is, of several joiners of one share of the entities: the one that has the lease. The others stand by ([`joiner::standby`]).
//!
//! The lease is of the same stores as the importers' ([`importer::lease`]), under a name of its own. With it stands what the sinks have confirmed, saved every second on the condition that the epoch is still the latest: so a successor goes on where its
//! predecessor was, and a predecessor that wakes up cannot take that back. One that cannot renew its lease in time stops before another may have it, and ends: whoever started it starts it again, and it stands by.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use importer::lease::{Lease, Store};
use joiner::{ConfirmedBySink, Handle, Joiner, NamedSink};
use schemas::ErrorClass;
use streams::Provider;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is saved what the sinks have confirmed: so much at most is written twice by a successor.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// A joiner among others.
pub(crate) struct InTurn {
    pub(crate) joiner: Joiner,
    pub(crate) store: Arc<dyn Store>,
    /// Told when it is this one's turn.
    pub(crate) working: watch::Sender<bool>,
}

impl InTurn {
    /// Stands by, works when it is its turn, and gives the turn back at the shutdown. Fails when the turn is lost.
    pub(crate) async fn run(
        self,
        provider: Arc<dyn Provider>,
        sinks: Vec<NamedSink>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { joiner, store, working } = self;
        let handle = joiner.handle();
        let (begin, turn) = watch::channel(None);
        let had = watch::Sender::new(None);
        let lead = async {
            let waits = |place: &str| tracing::info!(place, "another joiner of these entities works; standing by");
            let lease = Lease::acquire(store, waits).await.context("the joiner's lease")?;
            had.send_replace(Some(lease.clone()));
            let leading = async {
                let predecessor = confirmed(&lease).await?;
                tracing::info!(epoch = lease.epoch, "this joiner works");
                begin.send_replace(Some(predecessor));
                working.send_replace(true);
                let mut saved = None;
                loop {
                    tokio::time::sleep(SAVE_EVERY).await;
                    let confirmed = handle.beside(Handle::confirmed).await??;
                    if saved.as_ref() != Some(&confirmed) {
                        match lease.save_bytes(&serde_json::to_vec(&confirmed)?).await {
                            Ok(()) => saved = Some(confirmed),
                            Err(error @ importer::Error::LeaseLost { .. }) => return Err(error.into()),
                            Err(error) => {
                                tracing::warn!(%error, "what the sinks hold could not be saved with the lease; trying again")
                            }
                        }
                    }
                }
            };
            tokio::select! {
                error = lease.keep() => Err::<(), anyhow::Error>(error.into()),
                failed = leading => failed,
            }
        };
        let result = tokio::select! {
            result = joiner.run_in_turn(provider, sinks, turn, shutdown) => result.map_err(Into::into),
            lost = lead => lost.context("the turn is over: another joiner goes on, and this one stands by when it is started again"),
        };
        let had = had.borrow().clone();
        if let Some(lease) = had {
            lease.release().await;
        }
        result
    }
}

/// What the sinks have confirmed to a predecessor. Where the lease is kept may fail for a while, as when it was asked for: the turn is not given up for that.
async fn confirmed(lease: &Lease) -> anyhow::Result<ConfirmedBySink> {
    loop {
        match lease.load_bytes().await {
            Ok(Some(text)) => {
                return serde_json::from_slice(&text).context("what a predecessor saved with the lease cannot be read");
            }
            Ok(None) => return Ok(ConfirmedBySink::new()),
            Err(error) if error.class() == ErrorClass::Transient => {
                tracing::warn!(%error, "what a predecessor saved with the lease cannot be read; trying again");
                tokio::time::sleep(SAVE_EVERY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
