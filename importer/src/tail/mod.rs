//! The tail: one range (`from`, `to`] of the log after the other, published in the source's total order.
//!
//! # Why nothing is lost or disordered
//! - A range begins with a list of the transactions captured after `from`; `to` is the last of them. Capture writes a transaction's rows before or with its entry in that list, so
//!   everything up to `to` is there to be read, and nothing is added to it afterwards.
//! - *Every* change table that holds something newer is read up to `to`, each in order ([`Cursor`](source::cursor::Cursor)); [`merge`] brings them into one order by (commit LSN,
//!   command id, seqval, operation). So when the progress record says `to`, there is nothing at or below it that was not published (INV-1, INV-6).
//! - Before the reads and after each page, the instances' low watermarks are held against `from`: cleanup moves them before it deletes, so a range that was purged
//!   is found out instead of read as empty.
//! - Progress is saved last (INV-2). A failure anywhere leaves it where it was, and the next attempt reads and publishes the whole range again.
//!
//! # Reading ahead
//! [`read`] fetches and decodes while [`run`] encodes, publishes and waits for acknowledgements: a few batches of changes are between them, in a bounded channel. What the reader knows of
//! is thereby newer than what is published, which is of no consequence: `from` of each range is where the range before ended.
//!
//! Between two ranges, and only there, tables are read again ([`crate::reread`]), requests are taken, and the source is looked after ([`watch`]).

mod merge;
mod read;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::Lsn;
use schemas::event::{ChangeEvent, Op};
use schemas::progress::Phase;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::read::{Item, Read, Reader, Sizes, Transaction};
use self::watch::Watch;
use crate::chunks::crashed;
use crate::config::SnapshotMode;
use crate::error::Error;
use crate::metrics;
use crate::reread::{self, Rereads};
use crate::saved::SavedPhase;
use crate::session::{End, Session};
use crate::settle::max_lsn;
use crate::status::Activity;
use source::Client;
use source::changes::Probe;

/// Batches between the reader and the publisher.
const BATCHES: usize = 16;
/// How long to wait for the reader while nothing else is due.
const QUIET: Duration = Duration::from_secs(1);

/// Follows the source, until the catalog has moved or all that was asked for is done.
pub(crate) async fn run(session: &mut Session<'_>) -> Result<End, Error> {
    check_not_behind(session).await?;
    let (saved, committed) = (session.saved.lsn(), session.commit_time_ms);
    session.status.update(|status| {
        status.activity = Activity::Tailing;
        status.published_lsn = Some(saved);
        status.published_commit_time_ms = (committed > 0).then_some(committed);
    });
    reread::tell(session);
    let mut watch = Watch::new(session.config);
    // Before the first range is read: what is in danger is read first.
    watch.look(session).await?;
    let mut reader = Reading::start(session).await?;
    let mut rereads = Rereads::begin(session);
    loop {
        reread::take_requests(session).await?;
        if is_done(session) {
            return Ok(End::Done);
        }
        watch.look(session).await?;
        rereads.round(session, watch.has_time()).await?;
        let item = match rereads.due(session).map(|due| due.saturating_duration_since(Instant::now())) {
            // Reading again goes on at once unless the tail has something.
            Some(Duration::ZERO) => match reader.items.try_recv() {
                Ok(item) => Some(item),
                Err(mpsc::error::TryRecvError::Empty) if watch.has_time() => continue,
                Err(mpsc::error::TryRecvError::Empty) => reader.next(QUIET).await,
                Err(mpsc::error::TryRecvError::Disconnected) => return Err(reader.failure().await),
            },
            due => reader.next(due.unwrap_or(QUIET).min(QUIET)).await,
        };
        match item {
            Some(Item::Moved) => return Ok(End::Reopen),
            Some(Item::Idle) => {
                session.went_well();
                session.status.update(|status| status.lag_ms = Some(0));
                metrics::lag(&session.config.output.name, 0.0);
            }
            Some(item) => {
                range(session, &mut reader, item).await?;
                watch.busy();
            }
            None if reader.items.is_closed() && reader.items.is_empty() => return Err(reader.failure().await),
            None => {}
        }
    }
}

/// The reader's task, stopped when this is dropped.
struct Reading {
    items: mpsc::Receiver<Item>,
    task: JoinHandle<Result<(), Error>>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reading {
    async fn start(session: &mut Session<'_>) -> Result<Self, Error> {
        let config = session.config;
        let instances: Vec<&str> = session.tables.iter().map(|table| table.changes.instance.as_str()).collect();
        let reader = Reader {
            client: Client::connect(&config.source).await?,
            pool: session.pool(config.tail_connections),
            tables: Arc::clone(&session.tables),
            known: session.known.clone(),
            commits: session.clock.commits(),
            from: session.saved.lsn(),
            tick_transactions: config.tick_transactions,
            poll_interval: config.poll_interval,
            probe: (!instances.is_empty()).then(|| Probe::new(&instances)),
            sizes: Sizes::default(),
            favoured: session.favoured.subscribe(),
        };
        let (send, items) = mpsc::channel(BATCHES);
        Ok(Self { items, task: tokio::spawn(reader.run(send)) })
    }

    /// The next item, if it comes within a time.
    async fn next(&mut self, within: Duration) -> Option<Item> {
        tokio::time::timeout(within, self.items.recv()).await.ok().flatten()
    }

    /// Why there are no more items.
    async fn failure(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => source::Error::Unexpected { doing: "reading changes", what: "the reader has ended".into() }.into(),
            Err(error) => crashed(&error),
        }
    }
}

/// Publishes a range, of which the first item has arrived.
async fn range(session: &mut Session<'_>, reader: &mut Reading, first: Item) -> Result<(), Error> {
    let mut next = Some(first);
    loop {
        match next {
            Some(Item::Changes(changes)) => {
                for read in changes {
                    publish(session, read).await?;
                }
            }
            Some(Item::End { from, to, last, took }) => return end(session, (from, to), last, took).await,
            Some(Item::Idle | Item::Moved) | None => return Err(reader.failure().await),
        }
        next = reader.items.recv().await;
    }
}

async fn publish(session: &mut Session<'_>, read: Read) -> Result<(), Error> {
    let Read { table, change, commit_time_ms } = read;
    let (before, after) = session.tables[table].controls.change(change.before, change.after);
    let op = match (&before, &after) {
        (None, Some(_)) => Op::Create,
        (Some(_), Some(_)) => Op::Update,
        (Some(_), None) => Op::Delete,
        // The filter takes neither.
        (None, None) => return Ok(()),
    };
    let schema = Arc::clone(session.publisher.table(table));
    let event = ChangeEvent { table: schema, op, before, after, position: change.position, commit_time_ms };
    session.publisher.event(table, &event).await
}

/// Ends a range: record, then saved progress.
async fn end(session: &mut Session<'_>, (from, to): (Lsn, Lsn), last: Option<Transaction>, took: Duration) -> Result<(), Error> {
    if let Some(last) = last {
        session.commit_time_ms = last.commit_time_ms;
        session.saved.last_transaction = Some(last.lsn);
    }
    session.finish(Phase::Tail, from, to).await?;
    session.saved.phase = SavedPhase::Tail { lsn: to };
    let rereads = session.saved.rereads.len();
    session.saved.forget_passed();
    session.save().await?;
    if rereads > 0 {
        reread::tell(session);
    }
    account(session, to, took);
    Ok(())
}

fn account(session: &Session<'_>, to: Lsn, took: Duration) {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let committed = session.commit_time_ms;
    let lag_ms = if committed > 0 { (now - committed).max(0) } else { 0 };
    let source = &session.config.output.name;
    metrics::tick(source, took.as_secs_f64());
    metrics::lag(source, lag_ms as f64 / 1000.0);
    session.status.update(|status| {
        status.published_lsn = Some(to);
        status.captured_lsn = status.captured_lsn.max(Some(to));
        status.published_commit_time_ms = (committed > 0).then_some(committed);
        status.lag_ms = Some(lag_ms);
    });
}

/// A database that has captured less than was published from it is not the one it was.
async fn check_not_behind(session: &mut Session<'_>) -> Result<(), Error> {
    // A position between two transactions is not captured itself.
    let saved = session.saved.last_transaction.unwrap_or_else(|| session.saved.lsn());
    match max_lsn(&mut session.client).await? {
        Some(captured) if captured < saved => Err(source::Error::WentBack { saved, captured }.into()),
        captured => {
            session.status.update(|status| status.captured_lsn = captured);
            Ok(())
        }
    }
}

/// Whether a snapshot was all that was asked for, and the tail has made it the tables of one LSN.
fn is_done(session: &Session<'_>) -> bool {
    let passed = session.saved.consistent_from.is_none_or(|lsn| lsn <= session.saved.lsn());
    session.config.snapshot.mode == SnapshotMode::Only && passed && session.saved.rereads.is_empty()
}
