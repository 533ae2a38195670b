//! Where the API gets what is not in a sink: the joiner's outbox, and the state of the whole.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityChange;
use sinks::Versions;
use tokio::sync::watch;

/// How far the outbox has come: every change at or below `frontier` has a sequence number at or below `sequence`. The three belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Of the last change in the outbox; 0 when there has been none.
    pub sequence: u64,
    /// `None` before the first load has ended.
    pub frontier: Option<Lsn>,
    /// Commit time of the frontier; 0 when it is not known.
    pub commit_time_ms: i64,
}

/// What [`ChangeFeed::read_after`] found.
#[derive(Debug, Clone)]
pub enum Page {
    /// Changes in the order of their sequence numbers, which ascend and may have holes. They may be fewer than asked for; none means: nothing more up to `head`.
    Changes { changes: Vec<(u64, EntityChange)>, head: Head },
    /// The outbox no longer holds everything after that number; `oldest` is the first that it does hold.
    Trimmed { oldest: u64 },
}

/// The outbox could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the outbox cannot be read: {message}")]
pub struct FeedError {
    pub message: String,
}

/// The joiner's outbox, for subscribers. Shared: any number of calls at once; a reader holds nothing in it, so a slow one holds nobody up.
///
/// # Protocol
/// - Sequence numbers start at 1 and ascend. A change is visible to `read_after` before `head` names it.
/// - `head` moves when a step has been committed, also one that emitted nothing but moved the frontier.
/// - A number means the same change for as long as `incarnation` stays: an outbox that was begun anew has another.
#[async_trait]
pub trait ChangeFeed: Send + Sync {
    /// At most `limit` changes after `sequence`.
    async fn read_after(&self, sequence: u64, limit: usize) -> Result<Page, FeedError>;

    fn head(&self) -> watch::Receiver<Head>;

    /// Why nobody may subscribe here now, if that is so: it is answered 503.
    fn refuses(&self) -> Option<String> {
        None
    }

    /// Who knows what the outbox's versions stand for, where entities are of several sources.
    fn versions(&self) -> Option<Arc<dyn Versions>> {
        None
    }

    /// Which outbox the numbers belong to. The default suits an outbox that is never begun anew.
    fn incarnation(&self) -> u64 {
        0
    }
}

/// The state of the whole, for `GET /v1/status` and the page.
///
/// The page reads these members, and does without any that is missing:
/// `{source: {name, phase, captured_lsn, published_lsn, events_total, lag_ms, tables: {name: count}, table_details: {name: {held}},
/// snapshot: {rows, rows_expected, remaining_seconds}, last_error, warnings: [text]}, joiner: {phase, failure, warning, frontier, commit_time_ms, applied_total,
/// emitted_total, sources: {name: {phase, frontier, commit_time_ms, age_ms}}}, sinks: [{name, state, frontier, lag_ms, written_total, error}], demo: {connect: [text], try: [text], latency_ms: {p50, p99}}}`
pub trait StatusSource: Send + Sync {
    fn status(&self) -> serde_json::Value;
}

impl<F: Fn() -> serde_json::Value + Send + Sync> StatusSource for F {
    fn status(&self) -> serde_json::Value {
        self()
    }
}
