//! Writes the sinks: a task for each, with its own cursor in the outbox, so that a sink that is down holds up nobody.
//!
//! A sink without a cursor (new, of an earlier load, or written in another form: [`Terms::form`]), or whose next entries have been trimmed, is loaded first: all entities from one database snapshot, then it follows
//! the outbox from where that snapshot stood. Where only the definitions of some entities have changed, or something that stands beside their documents in the target ([`Sink::lacking`]), these alone are loaded, and the cursor stays. Both the load and each batch may be repeated, whole or in part; the sinks' guard by version (INV-5) makes that harmless. A cursor is stored after the sink has
//! confirmed, so it never passes what the sink holds.
//!
//! The log is forced to the disk before a page or a load is written to the sink, so that after a power failure the state is never older than what a sink holds.
//!
//! # What fails
//! - A transient failure is tried again with growing pauses, for ever. What needs somebody's help is said, and looked at again now and then: a mended permission or a rotated secret needs no restart.
//! - No change wedges its sink. What the sink rejects is kept as a dead letter. A batch that keeps failing although the target can be reached is written in ever smaller parts, and a change that fails by itself while
//!   others are taken is a dead letter too ([`attempts`], [`Delivery::single_out`]). A target that takes nothing is never told from one that is down: nothing is set aside then.
//! - A sink that is far behind is told the latest change of each key ([`backlog`]). How much is kept for it is bounded ([`crate::Config::backlog_bytes`]): past that it is loaded anew, which is the same coalesced further.
//! - How a sink fails is kept over restarts ([`trouble`]): the pauses, the budget, and that a webhook is disabled.
//! - Dead letters are bounded too: a sink that has set too many aside stops and says so.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{ErrorClass, Lsn};
use sinks::{Held, Rejected, Sink, Terms, Versions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::shape;
use crate::error::Error;
use crate::handle::{Head, Outbox, Page, Shared};
use crate::metrics;
use crate::state::meta::Cursor;
use crate::status::SinkState;

mod attempts;
mod backlog;
mod letters;
mod load;
mod single;
pub(crate) mod trouble;
mod versions;

use attempts::Attempts;
use backlog::Backlog;
pub(crate) use backlog::{LONGEST as LONGEST_BACKLOG, entries_within, outbox_bytes};
use letters::Letters;
use load::Part;
use trouble::Trouble;
use versions::Told;

const BATCH_ENTRIES: usize = 5000;
const BATCH_BYTES: usize = 8 << 20;
/// What the database holds is ahead of what has been published: looked at again after so long.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(100);

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
    terms: Terms,
    infos: Vec<EntityInfo>,
    threads: usize,
    stop: CancellationToken,
    attempts: Attempts,
    /// A record of how it fails is kept.
    troubled: bool,
    letters: Letters,
    /// Where there are several sources.
    told: Option<Arc<Told>>,
    /// Changes of a load that failed by themselves: the load that is done again leaves them out.
    left_out: HashSet<(Arc<str>, EntityKey)>,
}

/// What the documents that a sink is handed follow from, by entity.
fn made_of(shared: &Shared, terms: &Terms) -> BTreeMap<Arc<str>, String> {
    let entities = shared.catalog.entities.iter();
    entities.map(|entity| (entity.name.clone(), format!("{} {}", shape(&entity.plan), terms.form))).collect()
}

/// Ends when everything joined has been delivered to the sinks that follow, or on `stop`.
pub(crate) async fn drained(shared: Arc<Shared>, stop: CancellationToken) {
    let mut poll = tokio::time::interval(LOOK_AGAIN);
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
    let name = sink.name.clone();
    let error = match Delivery::new(shared.clone(), sink, threads, stop) {
        Ok(mut delivery) => delivery.run().await,
        Err(error) => Err(error),
    };
    if let Err(error) = error {
        tracing::error!(sink = name, error = %error, "delivery stopped");
        shared.with_sink(&name, |sink| (sink.state, sink.error) = (SinkState::Stopped, Some(error.to_string())));
    }
}

impl Delivery {
    fn new(shared: Arc<Shared>, sink: NamedSink, threads: usize, stop: CancellationToken) -> Result<Self, Error> {
        let NamedSink { name, mut sink } = sink;
        let range = shared.catalog.share.range;
        if !range.is_all() && !sink.own(range) {
            return Err(Error::NotShared { sink: name });
        }
        let told = shared.is_of_several_sources().then(|| Arc::new(Told::new(&shared)));
        if let Some(told) = &told {
            sink.know(told.clone());
        }
        let terms = sink.terms();
        sink.describe(&made_of(&shared, &terms));
        let infos = shared.catalog.entities.iter().map(|entity| entity.plan.info()).collect();
        let letters = Letters::new(shared.dead_letters(), &name)?;
        let trouble = Trouble::read(&shared.store, &name)?;
        let attempts =
            trouble.as_ref().map_or_else(|| Attempts::new(terms.retry), |known| Attempts::restored(terms.retry, known));
        let (troubled, left_out) = (trouble.is_some(), HashSet::new());
        if let Some(trouble) = trouble {
            sink.recall(trouble.note.as_deref());
        }
        Ok(Self { shared, name, sink, terms, infos, threads, stop, attempts, troubled, letters, told, left_out })
    }

    /// Ends when it is told to stop, or when the joiner's own state cannot be read.
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let error = match self.deliver().await {
                Ok(()) | Err(Interrupted::Stopped) => return Ok(()),
                Err(Interrupted::Joiner(error)) => return Err(error),
                Err(Interrupted::Sink(error)) => error,
            };
            metrics::sink_error(&self.name);
            if error.class() == ErrorClass::Misconfigured {
                tracing::error!(sink = self.name, error = %error, "sink stopped until that is mended");
                self.state(SinkState::Stopped, Some(error.to_string()));
            } else {
                tracing::warn!(sink = self.name, error = %error, "sink failed, trying again");
                self.state(SinkState::Retrying, Some(error.to_string()));
            }
            let pause = self.attempts.pause(&error);
            self.note_trouble()?;
            let mut asked = self.shared.letters.subscribe();
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                // Whoever has dropped letters or wants some tried again does not want to wait.
                _ = asked.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            self.recall_nothing()?;
        }
    }

    /// Keeps how the sink fails for another process.
    fn note_trouble(&mut self) -> Result<(), Error> {
        self.attempts.trouble(self.sink.note()).write(&self.shared.store, &self.name)?;
        self.troubled = true;
        Ok(())
    }

    /// A write was taken.
    fn no_trouble(&mut self) -> Result<(), Error> {
        self.attempts.succeeded();
        if std::mem::take(&mut self.troubled) {
            trouble::forget(&self.shared.store, Some(&self.name))?;
        }
        Ok(())
    }

    /// Begins anew where somebody has removed the record: the cause is mended.
    fn recall_nothing(&mut self) -> Result<(), Error> {
        if self.troubled && Trouble::read(&self.shared.store, &self.name)?.is_none() {
            tracing::info!(sink = self.name, "somebody wants the sink tried again as if it had never failed");
            self.attempts.succeeded();
            self.sink.recall(None);
            self.troubled = false;
        }
        Ok(())
    }

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

    async fn prepare(&mut self) -> Result<(), Interrupted> {
        Ok(self.or_stop(async |delivery| delivery.sink.prepare(&delivery.infos).await).await??)
    }

    /// Loads the sink, or a part of it, as soon as the state can be read.
    async fn load_when_live(&mut self, heads: &mut watch::Receiver<Head>, part: Option<Part>) -> Result<(), Interrupted> {
        if !heads.borrow_and_update().live {
            self.state(SinkState::Waiting, None);
            return self.or_stop(async |_| heads.changed().await).await?.map_err(|_| Interrupted::Stopped);
        }
        if !self.load(part).await? {
            self.look_again(heads).await?;
        }
        Ok(())
    }

    /// The entities whose documents are not any more what the sink was loaded with, because their definitions have changed ([`crate::definitions`]).
    fn changed(&self, cursor: &Cursor) -> Vec<usize> {
        let entities = self.shared.catalog.entities.iter().enumerate();
        let loaded = |name: &str| cursor.changes.get(name).copied().unwrap_or_default();
        entities.filter(|(_, entity)| entity.changed != loaded(&entity.name)).map(|(id, _)| id).collect()
    }

    /// Leaves out what is of entities as they were defined before.
    fn of_now(&self, mut changes: Vec<(u64, EntityChange)>) -> Vec<(u64, EntityChange)> {
        let catalog = &self.shared.catalog;
        if catalog.changes > 0 {
            let since = |change: &EntityChange| catalog.entity(&change.entity).map(|entity| catalog.entities[entity].since);
            changes.retain(|(sequence, change)| since(change).is_some_and(|since| *sequence > since));
        }
        changes
    }

    /// The cursor, if it still says what the sink holds.
    fn cursor(&self, head: &Head) -> Result<Option<Cursor>, Error> {
        let cursor = self.shared.store.cursor(&self.name)?;
        Ok(cursor.filter(|cursor| cursor.load == head.load && cursor.form == self.terms.form))
    }

    /// A target that says less than it once confirmed (restored from a backup, a table removed) has lost what the cursor counts on: it is forgotten.
    async fn distrust(&mut self) -> Result<(), Interrupted> {
        let held = self.or_stop(async |delivery| delivery.sink.held().await).await??;
        let Some(cursor) = self.shared.store.cursor(&self.name)? else { return Ok(()) };
        let lost = match held {
            Held::Unknown => false,
            Held::Nothing => true,
            Held::UpTo(frontier) => frontier < cursor.frontier,
        };
        if lost {
            tracing::warn!(sink = self.name, ?held, confirmed = %cursor.frontier, "sink holds less than it confirmed, and is loaded anew");
            self.shared.store.forget_cursor(&self.name)?;
        }
        Ok(())
    }

    /// The entities of which the target holds the documents and not all that is to stand beside them.
    async fn lacking(&mut self) -> Result<Vec<usize>, Interrupted> {
        let lacking = self.or_stop(async |delivery| delivery.sink.lacking().await).await??;
        Ok(lacking.iter().filter_map(|entity| self.shared.catalog.entity(entity)).collect())
    }

    async fn deliver(&mut self) -> Result<(), Interrupted> {
        self.prepare().await?;
        let outbox = Outbox { shared: self.shared.clone() };
        let mut heads = outbox.head();
        let mut asked = self.shared.letters.subscribe();
        let mut frontier = None;
        let mut ahead: Option<(u64, JoinHandle<Result<Page, Error>>)> = None;
        let mut backlog: Option<Backlog> = None;
        self.distrust().await?;
        let mut lacking = self.lacking().await?;
        self.redeliver().await?;
        loop {
            self.stop_if_too_many()?;
            let head = *heads.borrow_and_update();
            // It may be past the head: pages are read from the database, and the head is published after it was written.
            let Some(cursor) = self.cursor(&head)?.filter(|cursor| cursor.sequence + 1 >= head.oldest) else {
                ahead = None;
                if let Some(cursor) = self.cursor(&head)? {
                    tracing::warn!(
                        sink = self.name,
                        cursor = cursor.sequence,
                        oldest = head.oldest,
                        "sink has fallen behind what is kept for it, and is loaded anew"
                    );
                }
                (frontier, backlog) = (None, None);
                self.load_when_live(&mut heads, None).await?;
                lacking = self.lacking().await?;
                continue;
            };
            let mut entities = self.changed(&cursor);
            entities.extend(lacking.iter().filter(|entity| !entities.contains(entity)).copied().collect::<Vec<_>>());
            if !entities.is_empty() {
                ahead = None;
                self.load_when_live(&mut heads, Some(Part { cursor, entities })).await?;
                lacking = self.lacking().await?;
                continue;
            }
            self.shared.with_sink(&self.name, |sink| {
                sink.cursor = Some(cursor.sequence);
                // Where a write has failed, another attempt does not make it any better: only a write that is taken does.
                if sink.error.is_none() {
                    sink.state = SinkState::Following;
                }
            });
            let sequence = cursor.sequence;
            backlog = self.look_ahead(backlog, &cursor, head.sequence).await?;
            let reading = ahead.take().filter(|(after, _)| *after == sequence).map(|(_, reading)| reading);
            let reading = reading.unwrap_or_else(|| read_page(&outbox, sequence));
            let page = reading.await.map_err(|error| Error::Task { what: error.to_string() })??;
            let Page::Changes { changes, head } = page else {
                self.look_again(&mut heads).await?;
                continue;
            };
            if changes.is_empty() && (frontier == Some(head.frontier) || head.sequence != cursor.sequence) {
                if self.wait(&mut heads, &mut asked).await? {
                    self.redeliver().await?;
                }
                continue;
            }
            let last = changes.last().map_or(cursor.sequence, |(sequence, _)| *sequence);
            let reached = (last == head.sequence).then_some(head.frontier);
            // While this page is written, the next is read.
            ahead = (last < head.sequence).then(|| (last, read_page(&outbox, last)));
            let mut changes = self.of_now(changes);
            if let Some(lifted) = cursor.lifted {
                changes.iter_mut().for_each(|(sequence, change)| lifted.lift(*sequence, change));
            }
            let changes = self.coalesce(changes, backlog.as_ref());
            self.write(&changes, reached).await?;
            self.shared.store.put_cursor(&self.name, &self.confirmed(cursor, last, reached))?;
            self.no_trouble()?;
            self.shared.with_sink(&self.name, |sink| sink.cursor = Some(last));
            self.state(SinkState::Following, None);
            frontier = reached.or(frontier);
            self.left_out.clear();
        }
    }

    /// The cursor of a sink that holds everything up to an entry.
    fn confirmed(&self, cursor: Cursor, last: u64, reached: Option<Lsn>) -> Cursor {
        let lifted = cursor.lifted.filter(|lifted| lifted.until > last);
        let cursor = Cursor { sequence: last, lifted, ..cursor };
        match reached.filter(|reached| *reached > cursor.frontier) {
            Some(frontier) => {
                let sources = self.told.as_ref().and_then(|told| told.sources(frontier)).unwrap_or_default();
                Cursor { frontier, sources, ..cursor }
            }
            None => cursor,
        }
    }

    /// What the database holds is ahead of the published head: waits until that follows, or a little while, since trimming publishes nothing by itself.
    async fn look_again(&mut self, heads: &mut watch::Receiver<Head>) -> Result<(), Interrupted> {
        match self.or_stop(async |_| tokio::time::timeout(LOOK_AGAIN, heads.changed()).await).await? {
            Ok(Err(_)) => Err(Interrupted::Stopped),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Waits for something to do. Answers whether that is about dead letters.
    async fn wait(&mut self, heads: &mut watch::Receiver<Head>, asked: &mut watch::Receiver<()>) -> Result<bool, Interrupted> {
        let waited = self.or_stop(async |_| {
            tokio::select! {
                changed = heads.changed() => changed.map(|()| false),
                changed = asked.changed() => changed.map(|()| true),
            }
        });
        waited.await?.map_err(|_| Interrupted::Stopped)
    }

    /// What lies before a sink that is more than a page behind, or that is told the last change of each entity as of another version.
    async fn look_ahead(&mut self, known: Option<Backlog>, cursor: &Cursor, head: u64) -> Result<Option<Backlog>, Interrupted> {
        let (cursor, lifted) = (cursor.sequence, cursor.lifted.is_some());
        if known.as_ref().is_some_and(|known| !known.ends_at(cursor)) {
            return Ok(known);
        }
        if head.saturating_sub(cursor) <= BATCH_ENTRIES as u64 && !lifted {
            return Ok(None);
        }
        let shared = self.shared.clone();
        Ok(Some(blocking(&self.shared, move || Backlog::read(&shared, cursor)).await?))
    }

    /// The latest change of each entity, in the order of those; of the page, or of the whole backlog where that is known.
    fn coalesce(&self, changes: Vec<(u64, EntityChange)>, backlog: Option<&Backlog>) -> Vec<EntityChange> {
        let catalog = &self.shared.catalog;
        let replaced = |sequence: u64, change: &EntityChange| {
            let number = catalog.entity(&change.entity).map(|entity| catalog.entities[entity].number);
            backlog.zip(number).is_some_and(|(backlog, number)| !backlog.is_latest(number, sequence, change))
        };
        coalesce(changes.into_iter().filter(|(sequence, change)| !replaced(*sequence, change)).collect())
    }

    /// Writes a batch, or what of it can be written. Answers whether it went in one piece: else the sink has been prepared anew.
    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<bool, Interrupted> {
        let written = self.or_stop(async |delivery| delivery.sink.write(changes, frontier).await).await?;
        match written {
            Ok(rejected) => self.written(changes, &rejected).map(|()| true),
            Err(error) if self.attempts.is_spent(&error) && !changes.is_empty() => {
                self.single_out(changes, error).await?;
                self.or_stop(async |delivery| delivery.sink.write(&[], frontier).await).await??;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of a batch that the sink has answered.
    fn written(&mut self, changes: &[EntityChange], rejected: &[Rejected]) -> Result<(), Interrupted> {
        let written = changes.len().saturating_sub(rejected.len());
        metrics::sink_written(&self.name, written);
        metrics::sink_rejected(&self.name, self.letters.settle(changes, rejected)?);
        let kept = self.letters.count();
        self.shared.with_sink(&self.name, |sink| {
            sink.written += written as u64;
            sink.rejected += rejected.len() as u64;
            sink.dead_letters = kept;
        });
        Ok(())
    }

    /// A sink that takes little or nothing of what it is given is not written to any longer.
    fn stop_if_too_many(&self) -> Result<(), Interrupted> {
        let (kept, limit) = (self.letters.count(), self.terms.retry.dead_letters);
        if kept < limit.max(1) {
            return Ok(());
        }
        let message = format!("{kept} changes have been set aside, and no more than {limit} are kept");
        let remedy = format!(
            "Look at them with `tributary dead-letter list --sink {}`, mend the cause, then retry or drop them",
            self.name
        );
        Err(sinks::Error::misconfigured(format!("sink {}", self.name), message, remedy).into())
    }
}

/// The latest change of each entity, in the order of those.
fn coalesce(changes: Vec<(u64, EntityChange)>) -> Vec<EntityChange> {
    let mut seen: HashSet<(&str, &str)> = HashSet::with_capacity(changes.len());
    let mut latest: Vec<bool> =
        changes.iter().rev().map(|(_, change)| seen.insert((&change.entity, change.key.as_str()))).collect();
    changes.into_iter().filter_map(|(_, change)| latest.pop().filter(|&latest| latest).map(|_| change)).collect()
}

/// Reads a page and makes it durable, both beside the writing of the one before.
fn read_page(outbox: &Outbox, after: u64) -> JoinHandle<Result<Page, Error>> {
    let shared = outbox.shared.clone();
    let outbox = outbox.clone();
    shared.beside(move || {
        let page = outbox.read_unsynced(after, BATCH_ENTRIES, BATCH_BYTES)?;
        let store = &outbox.shared.store;
        match &page {
            Page::Changes { changes, head } if changes.last().is_some_and(|(last, _)| *last < head.sequence) => {
                store.sync_to(head.sequence)?
            }
            // Its frontier goes to the sink as well, and may have moved without an entry.
            Page::Changes { .. } => store.sync()?,
            Page::Trimmed { .. } => {}
        }
        Ok(page)
    })
}

async fn blocking<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    shared.beside(work).await.map_err(|error| Error::Task { what: error.to_string() })?
}
