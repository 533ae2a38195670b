//! Writes the sinks: a task for each, with its own cursor in the outbox, so that a sink that is down holds up nobody.
//!
//! A sink without a cursor (new, or of an earlier load), or whose next entries have been trimmed, is loaded first: all entities from one database snapshot, then it follows the outbox from where that snapshot
//! stood. Both the load and each batch may be repeated, whole or in part; the sinks' guard by version (INV-5) makes that harmless. A cursor is stored after the sink has confirmed, so it never passes what the
//! sink holds.
//!
//! The log is forced to the disk before a page or a load is written to the sink, so that after a power failure the state is never older than what a sink holds.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rocksdb::WriteBatch;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::{ErrorClass, Lsn};
use sinks::{Rejected, Sink};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::handle::{Head, Outbox, Page, Shared};
use crate::metrics;
use crate::scan::{As, scan};
use crate::state::meta::Cursor;
use crate::status::SinkState;

const BATCH_ENTRIES: usize = 5000;
const BATCH_BYTES: usize = 8 << 20;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// A sink under the name that its cursor is kept by.
pub struct NamedSink {
    pub name: String,
    pub sink: Box<dyn Sink>,
}

impl std::fmt::Debug for NamedSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedSink").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Takes everything and keeps nothing: for benchmarks.
#[derive(Debug, Default)]
pub struct NullSink;

#[async_trait]
impl Sink for NullSink {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), sinks::Error> {
        Ok(())
    }

    async fn write(&mut self, _changes: &[EntityChange], _frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        Ok(Vec::new())
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), sinks::Error> {
        Ok(())
    }
}

/// Why a delivery was interrupted.
enum Interrupted {
    Sink(sinks::Error),
    Joiner(Error),
    Stopped,
}

impl From<sinks::Error> for Interrupted {
    fn from(error: sinks::Error) -> Self {
        Self::Sink(error)
    }
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Self {
        Self::Joiner(error)
    }
}

struct Delivery {
    shared: Arc<Shared>,
    name: String,
    sink: Box<dyn Sink>,
    threads: usize,
    stop: CancellationToken,
    /// The delay before the next attempt.
    retry: Duration,
}

/// Ends when everything joined has been delivered to the sinks that follow, or on `stop`.
pub(crate) async fn drained(shared: Arc<Shared>, stop: CancellationToken) {
    let mut poll = tokio::time::interval(FIRST_RETRY);
    loop {
        let done = shared.with_status(|status| {
            status
                .sinks
                .iter()
                .all(|sink| sink.state != SinkState::Following && sink.state != SinkState::Loading || sink.behind == 0)
        });
        if done {
            return stop.cancel();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = poll.tick() => {}
        }
    }
}

/// Delivers until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, sink: NamedSink, threads: usize, stop: CancellationToken) {
    let NamedSink { name, sink } = sink;
    let mut delivery = Delivery { shared, name, sink, threads, stop, retry: FIRST_RETRY };
    loop {
        match delivery.deliver().await {
            Ok(()) | Err(Interrupted::Stopped) => return,
            Err(Interrupted::Sink(error)) => {
                metrics::sink_error(&delivery.name);
                let transient = error.class() == ErrorClass::Transient;
                let state = if transient { SinkState::Retrying } else { SinkState::Stopped };
                delivery.state(state, Some(error.to_string()));
                if transient {
                    tracing::warn!(sink = delivery.name, error = %error, "sink failed, trying again");
                } else {
                    tracing::error!(sink = delivery.name, error = %error, "sink stopped");
                    return;
                }
            }
            Err(Interrupted::Joiner(error)) => {
                tracing::error!(sink = delivery.name, error = %error, "delivery stopped");
                return delivery.state(SinkState::Stopped, Some(error.to_string()));
            }
        }
        let pause = delivery.retry;
        delivery.retry = (pause * 2).min(LONGEST_RETRY);
        tokio::select! {
            () = delivery.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Delivery {
    fn state(&self, state: SinkState, error: Option<String>) {
        self.shared.with_sink(&self.name, |sink| (sink.state, sink.error) = (state, error));
    }

    /// Waits for a future, unless told to stop.
    async fn or_stop<T>(&mut self, work: impl AsyncFnOnce(&mut Self) -> T) -> Result<T, Interrupted> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Interrupted::Stopped),
            done = work(self) => Ok(done),
        }
    }

    async fn deliver(&mut self) -> Result<(), Interrupted> {
        let infos: Vec<EntityInfo> = self.shared.catalog.entities.iter().map(|entity| entity.plan.info()).collect();
        self.or_stop(async |delivery| delivery.sink.prepare(&infos).await).await??;
        let outbox = Outbox { shared: self.shared.clone() };
        let mut heads = outbox.head();
        let mut frontier = None;
        let mut ahead: Option<(u64, JoinHandle<Result<Page, Error>>)> = None;
        loop {
            let head = *heads.borrow_and_update();
            let cursor = self.shared.store.cursor(&self.name)?.filter(|cursor| cursor.load == head.load);
            // It may be past the head: pages are read from the database, and the head is published after it was written.
            let Some(cursor) = cursor.filter(|cursor| cursor.sequence + 1 >= head.oldest) else {
                ahead = None;
                if head.live {
                    frontier = None;
                    if !self.load().await? {
                        self.look_again(&mut heads).await?;
                    }
                } else {
                    self.state(SinkState::Waiting, None);
                    self.or_stop(async |_| heads.changed().await).await?.map_err(|_| Interrupted::Stopped)?;
                }
                continue;
            };
            self.shared.with_sink(&self.name, |sink| (sink.cursor, sink.state) = (Some(cursor.sequence), SinkState::Following));
            let sequence = cursor.sequence;
            let reading = ahead.take().filter(|(after, _)| *after == sequence).map(|(_, reading)| reading);
            let reading = reading.unwrap_or_else(|| read_page(&outbox, sequence));
            let page = reading.await.map_err(|error| Error::Task { what: error.to_string() })??;
            let Page::Changes { changes, head } = page else {
                self.look_again(&mut heads).await?;
                continue;
            };
            if changes.is_empty() && (frontier == Some(head.frontier) || head.sequence != cursor.sequence) {
                self.retry = FIRST_RETRY;
                self.or_stop(async |_| heads.changed().await).await?.map_err(|_| Interrupted::Stopped)?;
                continue;
            }
            let last = changes.last().map_or(cursor.sequence, |(sequence, _)| *sequence);
            let reached = (last == head.sequence).then_some(head.frontier);
            // While this page is written, the next is read.
            ahead = (last < head.sequence).then(|| (last, read_page(&outbox, last)));
            let changes = coalesce(changes);
            let store = self.shared.store.clone();
            blocking(move || store.sync()).await?;
            self.write(&changes, reached).await?;
            self.shared.store.put_cursor(&self.name, &Cursor { load: cursor.load, sequence: last })?;
            self.shared.with_sink(&self.name, |sink| (sink.cursor, sink.error) = (Some(last), None));
            frontier = reached.or(frontier);
        }
    }

    /// What the database holds is ahead of the published head: waits until that follows, or a little while, since trimming publishes nothing by itself.
    async fn look_again(&mut self, heads: &mut watch::Receiver<Head>) -> Result<(), Interrupted> {
        match self.or_stop(async |_| tokio::time::timeout(FIRST_RETRY, heads.changed()).await).await? {
            Ok(Err(_)) => Err(Interrupted::Stopped),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<(), Interrupted> {
        let rejected = self.or_stop(async |delivery| delivery.sink.write(changes, frontier).await).await??;
        self.retry = FIRST_RETRY;
        metrics::sink_written(&self.name, changes.len() - rejected.len().min(changes.len()));
        self.shared.with_sink(&self.name, |sink| {
            sink.written += changes.len().saturating_sub(rejected.len()) as u64;
            sink.rejected += rejected.len() as u64;
        });
        self.reject(&rejected)
    }

    /// Keeps what the sink will never accept as dead letters, by entity and key: the latest is kept.
    fn reject(&self, rejected: &[Rejected]) -> Result<(), Interrupted> {
        if rejected.is_empty() {
            return Ok(());
        }
        metrics::sink_rejected(&self.name, rejected.len());
        let mut batch = WriteBatch::default();
        for Rejected { change, reason } in rejected {
            tracing::warn!(sink = self.name, entity = %change.entity, key = %change.key, reason, "entity change dead-lettered");
            let letter = serde_json::json!({"sink": self.name, "entity": change.entity.as_ref(), "key": change.key, "version": change.version, "reason": reason});
            self.shared.store.put_dead_letter(
                &mut batch,
                &format!("sink/{}/{}/{}", self.name, change.entity, change.key),
                &letter,
            )?;
        }
        Ok(self.shared.store.write(batch, true)?)
    }

    /// Writes all entities as of one snapshot, and sets the cursor. Answers false when the state was no longer live.
    async fn load(&mut self) -> Result<bool, Interrupted> {
        self.state(SinkState::Loading, None);
        self.or_stop(async |delivery| delivery.sink.begin_load().await).await??;
        let (out, mut batches) = mpsc::channel(4);
        let (shared, threads) = (self.shared.clone(), self.threads);
        let scanning = tokio::task::spawn_blocking(move || load_scan(&shared, threads, &out));
        while let Some(loaded) = batches.recv().await {
            match loaded {
                Loaded::Batch(changes) => self.write(&changes, None).await?,
                Loaded::End { entity, version } => {
                    self.or_stop(async |delivery| delivery.sink.end_load(&entity, version).await).await??;
                }
            }
        }
        let scanned = scanning.await.map_err(|error| Error::Task { what: error.to_string() })??;
        let Some((cursor, frontier)) = scanned else { return Ok(false) };
        self.write(&[], Some(frontier)).await?;
        self.shared.store.put_cursor(&self.name, &cursor)?;
        self.shared.with_sink(&self.name, |sink| sink.cursor = Some(cursor.sequence));
        Ok(true)
    }
}

enum Loaded {
    Batch(Vec<EntityChange>),
    End { entity: Arc<str>, version: Lsn },
}

/// Scans all entities. `None`: the state cannot be read as it stands any more, or nobody listens any more.
fn load_scan(shared: &Shared, threads: usize, out: &mpsc::Sender<Loaded>) -> Result<Option<(Cursor, Lsn)>, Error> {
    let Shared { store, catalog, .. } = shared;
    let snapshot = store.db().snapshot();
    let standing = store.standing_at(&snapshot)?;
    if !standing.is_consistent() {
        return Ok(None);
    }
    store.sync()?;
    let of = As { version: standing.frontier, commit_time_ms: standing.commit_time_ms };
    for (id, entity) in catalog.entities.iter().enumerate() {
        scan(store, catalog, &snapshot, id, of, threads, &|batch| out.blocking_send(Loaded::Batch(batch)).is_ok())?;
        if out.blocking_send(Loaded::End { entity: entity.name.clone(), version: of.version }).is_err() {
            return Ok(None);
        }
    }
    // Rows of a step that is still being assembled are in the snapshot; its outbox entries come after the head, and are written once more.
    Ok(Some((Cursor { load: standing.load, sequence: standing.head }, standing.frontier)))
}

/// The latest change of each entity, in the order of those.
fn coalesce(changes: Vec<(u64, EntityChange)>) -> Vec<EntityChange> {
    let mut seen: HashSet<(&str, &str)> = HashSet::with_capacity(changes.len());
    let mut latest: Vec<bool> =
        changes.iter().rev().map(|(_, change)| seen.insert((&change.entity, change.key.as_str()))).collect();
    changes.into_iter().filter_map(|(_, change)| latest.pop().filter(|&latest| latest).map(|_| change)).collect()
}

fn read_page(outbox: &Outbox, after: u64) -> JoinHandle<Result<Page, Error>> {
    let outbox = outbox.clone();
    tokio::task::spawn_blocking(move || outbox.read_unsynced(after, BATCH_ENTRIES, BATCH_BYTES))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Task { what: error.to_string() })?
}
