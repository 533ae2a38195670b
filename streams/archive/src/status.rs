//! What an archiver says of itself, by table and by stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::progress::{ShardPositions, StreamName};
use schemas::{Lsn, TableName};
use serde::Serialize;
use streams::Positions;

use crate::manifest::{Kind, Manifest};
use crate::metrics;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not begun, or another one works, and it takes over when that has ended.
    #[default]
    Waiting,
    Archiving,
    Stopped,
    Failed,
}

/// What an archiver is doing, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    pub source: String,
    /// Where the archive is.
    pub store: String,
    pub phase: Phase,
    /// The last segment.
    pub segment: u64,
    /// The archive is complete up to it.
    pub frontier: Lsn,
    /// Commit time of the last tick that is archived.
    pub commit_time_ms: Option<i64>,
    /// Since when the oldest tick waits that is published and not archived, by its commit time; 0 where none does.
    pub lag_ms: Option<i64>,
    /// Records in memory.
    pub held_bytes: u64,
    pub tables: BTreeMap<String, TableStatus>,
    /// Where each shard stands in the archive.
    pub streams: BTreeMap<StreamName, Positions>,
    /// Gaps written down, and events found missing, since the process began.
    pub gaps: u64,
    pub missing: u64,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TableStatus {
    /// Events archived since the process began, repeats included.
    pub archived: u64,
    /// The greatest commit LSN among them.
    pub lsn: Option<Lsn>,
    /// Events that progress records speak of and that are in no segment yet.
    pub waiting: u64,
    /// As [`Status::lag_ms`].
    pub lag_ms: Option<i64>,
}

/// What waits to be archived.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting {
    /// By table: how many events, and the commit time of the oldest.
    pub(crate) tables: BTreeMap<TableName, (u64, i64)>,
    pub(crate) oldest_ms: Option<i64>,
    pub(crate) held_bytes: usize,
}

/// What an archiver says of itself; clones look at the same.
#[derive(Debug, Clone)]
pub struct StatusHandle {
    source: Arc<str>,
    status: Arc<Mutex<(Status, Waiting)>>,
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Since a commit time; none where that is not known.
fn lag(oldest_ms: Option<i64>, now_ms: i64) -> Option<i64> {
    match oldest_ms {
        None => Some(0),
        Some(1..) => oldest_ms.map(|oldest| (now_ms - oldest).max(0)),
        Some(_) => None,
    }
}

impl StatusHandle {
    pub(crate) fn new(source: &str) -> Self {
        let status = Status { source: source.to_owned(), ..Status::default() };
        Self { source: source.into(), status: Arc::new(Mutex::new((status, Waiting::default()))) }
    }

    fn gauge(&self, name: &'static str, value: f64) {
        ::metrics::gauge!(name, "source" => self.source.to_string()).set(value);
    }

    fn lock(&self) -> MutexGuard<'_, (Status, Waiting)> {
        // No invariant spans a panic while it is held.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is now.
    pub fn get(&self) -> Status {
        self.at(now_ms())
    }

    fn at(&self, now_ms: i64) -> Status {
        let (mut status, waiting) = self.lock().clone();
        status.lag_ms = lag(waiting.oldest_ms, now_ms);
        status.held_bytes = waiting.held_bytes as u64;
        for (table, (events, oldest_ms)) in &waiting.tables {
            let table = status.tables.entry(table.to_string()).or_default();
            (table.waiting, table.lag_ms) = (*events, lag(Some(*oldest_ms).filter(|_| *events > 0), now_ms));
        }
        for table in status.tables.values_mut().filter(|table| table.waiting == 0) {
            table.lag_ms = Some(0);
        }
        status
    }

    pub(crate) fn phase(&self, phase: Phase, error: Option<String>) {
        let (status, _) = &mut *self.lock();
        (status.phase, status.error) = (phase, error);
        self.gauge(metrics::ACTIVE, f64::from(u8::from(phase == Phase::Archiving)));
    }

    /// The archive as it was taken over.
    pub(crate) fn begins(&self, store: &str, last: &Manifest) {
        let (status, waiting) = &mut *self.lock();
        store.clone_into(&mut status.store);
        *waiting = Waiting::default();
        stands(status, last);
    }

    pub(crate) fn archived(&self, manifest: &Manifest) {
        let (status, _) = &mut *self.lock();
        stands(status, manifest);
        status.gaps += manifest.gaps.len() as u64;
        for missing in &manifest.missing {
            status.missing += missing.published - missing.found;
        }
        for object in manifest.objects.iter().filter(|object| object.kind == Kind::Events) {
            let table = status.tables.entry(object.table.clone().unwrap_or_default()).or_default();
            table.archived += object.records;
            table.lsn = table.lsn.max(object.lsns.map(|(_, greatest)| greatest));
        }
        if let Some(ticks) = manifest.ticks.as_ref().filter(|ticks| ticks.commit_time_ms > 0) {
            status.commit_time_ms = Some(ticks.commit_time_ms);
        }
    }

    pub(crate) fn waits(&self, waiting: Waiting) {
        self.lock().1 = waiting;
        let status = self.get();
        if let Some(lag_ms) = status.lag_ms {
            self.gauge(metrics::LAG, lag_ms as f64 / 1000.0);
        }
        self.gauge(metrics::HELD, status.held_bytes as f64);
        for (name, table) in status.tables {
            ::metrics::gauge!(metrics::WAITING, "source" => self.source.to_string(), "table" => name).set(table.waiting as f64);
        }
    }
}

fn stands(status: &mut Status, manifest: &Manifest) {
    (status.segment, status.frontier) = (manifest.number, manifest.frontier);
    let positions: &ShardPositions = &manifest.positions;
    status.streams.clone_from(positions);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_longest_is_the_lag() {
        let handle = StatusHandle::new("shop");
        assert_eq!(handle.at(9_000).lag_ms, Some(0));
        let tables = [(TableName::new("dbo", "orders"), (3, 5_000)), (TableName::new("dbo", "items"), (0, 5_000))].into();
        handle.waits(Waiting { tables, oldest_ms: Some(4_000), held_bytes: 7 });
        let status = handle.at(9_000);
        assert_eq!((status.lag_ms, status.held_bytes), (Some(5_000), 7));
        let shown = |name: &str| status.tables.get(name).map(|table| (table.waiting, table.lag_ms));
        assert_eq!((shown("dbo.orders"), shown("dbo.items")), (Some((3, Some(4_000))), Some((0, Some(0)))));
        // An unknown commit time is no lag of half a century.
        handle.waits(Waiting { oldest_ms: Some(0), ..Waiting::default() });
        assert_eq!(handle.at(9_000).lag_ms, None);
    }
}
