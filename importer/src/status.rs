//! What an importer tells of itself while it runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use schemas::progress::Reread;
use schemas::{Lsn, TableName};
use serde::Serialize;

/// What the importer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    #[default]
    Starting,
    /// Another importer of the source works; this one takes over when that one is gone.
    Waiting,
    Snapshot,
    /// The snapshot has been read; capture has yet to pass what it may have seen.
    SettlingSnapshot,
    Tailing,
    /// The source or the streams failed; it is trying again. See `last_error`.
    Retrying,
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct TableStatus {
    /// Since the start of this process.
    pub published: u64,
    pub dead_lettered: u64,
    pub snapshot_rows: u64,
    /// What the catalog thinks that the table has.
    pub snapshot_rows_expected: Option<u64>,
    pub snapshot_done: bool,
    /// How long the rest takes at the pace so far, if that can be told.
    pub snapshot_seconds_left: Option<u64>,
    /// The table is being read again beside the tail.
    pub reread: Option<Reread>,
    /// The table does not fit its contract, and nothing of it is published.
    pub held: Option<String>,
    /// How long the oldest change that waits to be read is safe from the cleanup job; the retention while none waits. `None`: not known.
    pub headroom_ms: Option<i64>,
}

/// An importer's state at a moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Status {
    pub activity: Activity,
    pub epoch: u64,
    /// Everything at or below it has been published and acknowledged.
    pub published_lsn: Option<Lsn>,
    /// Its commit time, in milliseconds since 1970-01-01 UTC.
    pub published_commit_time_ms: Option<i64>,
    /// The newest captured LSN that the last look found.
    pub captured_lsn: Option<Lsn>,
    /// Age of the newest published transaction while newer ones wait; 0 when caught up.
    pub lag_ms: Option<i64>,
    /// From which LSN on the initial snapshot's rows are the tables as of one LSN.
    pub consistent_from: Option<Lsn>,
    pub tables: BTreeMap<TableName, TableStatus>,
    pub last_error: Option<String>,
    /// How often reading tables has waited because the source was slow to answer.
    pub pauses: u64,
    /// What an operator should look at though the importer goes on.
    pub warnings: Vec<String>,
}

/// Reads an importer's status, from anywhere, at any time.
#[derive(Debug, Clone, Default)]
pub struct StatusHandle(Arc<Mutex<Status>>);

impl StatusHandle {
    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn table(&self, name: &TableName, change: impl FnOnce(&mut TableStatus)) {
        self.update(|status| match status.tables.get_mut(name) {
            Some(table) => change(table),
            None => change(status.tables.entry(name.clone()).or_default()),
        });
    }

    /// Adds a warning that is not there yet; the list is short, because its texts are of few kinds.
    pub(crate) fn warn(&self, text: &str) {
        self.update(|status| {
            if !status.warnings.iter().any(|known| known == text) && status.warnings.len() < 100 {
                status.warnings.push(text.to_owned());
            }
        });
    }

    pub(crate) fn unwarn(&self, start: &str) {
        self.update(|status| status.warnings.retain(|known| !known.starts_with(start)));
    }
}
