//! How a sink has been failing, kept over restarts: for how long, how far its pauses have grown, and what the sink itself wants to know again ([`Sink::note`](sinks::Sink::note)).
//!
//! Kept in the state's `meta` column family under `trouble/<sink>`, as JSON, from the first failure on until a write is taken. A restart begins with an attempt, since that is what it is done for mostly; then the pauses go on as
//! they were. The time between is not counted: nobody has tried.
//!
//! Whoever has mended the cause need not wait for the pause, nor for a sink that has given up: the record is removed ([`forget`]), which the delivery notices.

use std::time::Duration;

use rocksdb::{Direction, IteratorMode, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::state::{Family, Store};

const TROUBLE: &str = "trouble/";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    failing_ms: u64,
    pause_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

impl Trouble {
    pub(super) fn new(failing: Duration, pause: Duration, note: Option<String>) -> Self {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { failing_ms: milliseconds(failing), pause_ms: milliseconds(pause), note }
    }

    /// For how long the writes had failed.
    pub(super) fn failing(&self) -> Duration {
        Duration::from_millis(self.failing_ms)
    }

    /// The pause that was next.
    pub(super) fn pause(&self) -> Duration {
        Duration::from_millis(self.pause_ms)
    }

    pub(super) fn read(store: &Store, sink: &str) -> Result<Option<Self>, Error> {
        let place = format!("{TROUBLE}{sink}");
        let parse = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| store.corrupt(format!("{place}: {error}")));
        store.get(Family::Meta, place.as_bytes())?.map(parse).transpose()
    }

    pub(super) fn write(&self, store: &Store, sink: &str) -> Result<(), Error> {
        let text = serde_json::to_vec(self).map_err(|error| store.corrupt(error.to_string()))?;
        let mut batch = WriteBatch::default();
        batch.put_cf(store.family(Family::Meta)?, format!("{TROUBLE}{sink}"), text);
        store.write(batch, true)
    }
}

/// Removes the record of a sink, or those of all. Answers how many there were.
pub(crate) fn forget(store: &Store, sink: Option<&str>) -> Result<u64, Error> {
    let family = store.family(Family::Meta)?;
    let (mut batch, mut count) = (WriteBatch::default(), 0);
    for entry in store.db().iterator_cf(family, IteratorMode::From(TROUBLE.as_bytes(), Direction::Forward)) {
        let (place, _) = entry.map_err(|error| store.error(&error))?;
        let Some(of) = place.strip_prefix(TROUBLE.as_bytes()) else { break };
        if sink.is_none_or(|sink| sink.as_bytes() == of) {
            batch.delete_cf(family, &place);
            count += 1;
        }
    }
    if count > 0 {
        store.write(batch, true)?;
    }
    Ok(count)
}
