//! A database in which the joiners of a share find out whose turn it is.
//!
//! A request takes its time, is refused, or has its effect and loses its answer; once it is sent it takes its course, whoever still waits for the answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use importer::Error;
use importer::lease::Store;
use schemas::ErrorClass;
use tokio::sync::oneshot;

use crate::dice::Dice;
use crate::faults::{Faults, Sabotage};
use crate::history::History;
use crate::kernel;

/// How long a lease is good for that is not renewed; as long as its holders think.
const TERM_MS: u64 = 3600;
const PLACE: &str = "the leases' database";

#[derive(Default)]
struct Row {
    epoch: u64,
    held_until_ms: u64,
    kept: Option<Vec<u8>>,
}

impl Row {
    fn is_held(&self, by: u64) -> Result<(), Error> {
        if self.epoch == by { Ok(()) } else { Err(Error::LeaseLost { place: PLACE.to_owned(), epoch: by }) }
    }

    fn hold(&mut self) {
        self.held_until_ms = kernel::elapsed_ms() + TERM_MS;
    }
}

/// The lease of one share.
#[derive(Clone)]
pub(crate) struct Leases {
    row: Arc<Mutex<Row>>,
    dice: Arc<Mutex<Dice>>,
    faults: Faults,
    history: History,
}

fn failed(what: &str) -> Error {
    Error::LeaseStore { place: PLACE.to_owned(), what: what.to_owned(), class: ErrorClass::Transient }
}

/// What a predecessor has kept, as if sinks had confirmed everything: sabotage.
fn ahead(kept: &[u8]) -> Vec<u8> {
    let mut read: serde_json::Value = serde_json::from_slice(kept).unwrap_or_default();
    for (_, confirmed) in read.as_object_mut().into_iter().flatten() {
        confirmed["frontier"] = schemas::Lsn::MAX.to_string().into();
    }
    read.to_string().into_bytes()
}

impl Leases {
    pub(crate) fn new(faults: Faults, dice: Dice, history: History) -> Self {
        Self { row: Arc::default(), dice: Arc::new(Mutex::new(dice)), faults, history }
    }

    fn row(&self) -> MutexGuard<'_, Row> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Row) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let store = self.clone();
        tokio::spawn(async move {
            // Nobody listens where the caller has died.
            let _ = answer.send(store.answer(work).await);
        });
        answered.await.unwrap_or_else(|_| Err(failed("the request is gone")))
    }

    async fn answer<T>(&self, work: impl FnOnce(&mut Row) -> Result<T, Error>) -> Result<T, Error> {
        let (permille, most) = {
            let levels = self.faults.levels();
            (levels.leases, levels.lease_delay_ms)
        };
        let (wait, refused, lost) = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            (Duration::from_millis(dice.below(most + 1)), dice.chance(permille), dice.chance(permille))
        };
        tokio::time::sleep(wait).await;
        if refused {
            self.history.fault("a request to the leases was refused");
            return Err(failed("refused"));
        }
        let done = work(&mut self.row());
        if lost {
            self.history.fault("an answer of the leases was lost");
            return Err(failed("no answer came"));
        }
        done
    }
}

#[async_trait]
impl Store for Leases {
    async fn acquire(&self) -> Result<Option<u64>, Error> {
        let take = |row: &mut Row| {
            if row.held_until_ms > kernel::elapsed_ms() {
                return Ok(None);
            }
            row.epoch += 1;
            row.hold();
            Ok(Some(row.epoch))
        };
        self.request(take).await
    }

    async fn renew(&self, epoch: u64) -> Result<(), Error> {
        self.request(move |row| row.is_held(epoch).map(|()| row.hold())).await
    }

    async fn release(&self, epoch: u64) -> Result<(), Error> {
        let release = move |row: &mut Row| {
            if row.epoch == epoch {
                row.held_until_ms = 0;
            }
            Ok(())
        };
        self.request(release).await
    }

    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        let kept = self.request(|row| Ok(row.kept.clone())).await?;
        Ok(if self.faults.is(Sabotage::ConfirmedAhead) { kept.map(|kept| ahead(&kept)) } else { kept })
    }

    async fn save(&self, epoch: u64, progress: &[u8]) -> Result<(), Error> {
        let kept = progress.to_vec();
        self.request(move |row| row.is_held(epoch).map(|()| row.kept = Some(kept))).await
    }

    fn place(&self) -> String {
        PLACE.to_owned()
    }
}
