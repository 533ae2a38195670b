//! The initial snapshot: lock-free, in chunks, several side by side, resumable.
//!
//! # Why it is right
//! L0, the greatest captured LSN, is noted before the first row is read. Capture trails the log, so every change that was committed by then and is not yet captured has an
//! LSN above L0, and the tail, which begins after L0, brings it again. A row is read at some moment after L0: it shows all changes up to then, and the
//! tail repeats those after L0 and adds the rest. So once the tail has passed the last change that any read may have seen ([`crate::settle`]), every table is as of that
//! LSN: repeated changes replace a row by what it was and then again by what it is. In which order the chunks are read and published is of no consequence for this.
//!
//! *Fenced*, on request: where SNAPSHOT isolation is on, every connection sees the tables as of one LSN ([`source::fence`]), and that LSN is L0 and the one from which on the tables are
//! consistent: nothing is repeated. It takes a short lock on every table and cannot resume: an attempt that broke off is begun anew.
//!
//! # Retention
//! The tail begins after L0, however long the snapshot takes. So between chunks the instances' low watermarks are held against L0, and how long the changes after L0 are
//! safe yet. Where less than `headroom_warning` is left, the snapshot goes on *beside the tail*: it is called complete, with the tables that are not finished named as being read
//! again ([`crate::reread`]), and the tail begins. What of them was published counts: nothing was there before, so that nothing has to be removed. Where cleanup
//! was faster after all, the gap's policy decides ([`crate::tables`]). A table without a key is read in one go, without looking.
//!
//! # Resuming
//! After each chunk: events acknowledged, progress record acknowledged, then what is left of its range saved. A restart goes on there; the chunks in progress
//! are read again, which is harmless for the reason above. A table without a key is read in one go, and from its start after a restart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use schemas::Lsn;
use schemas::progress::Phase;

use crate::chunks::{Batch, Chunk, Readers, Reading};
use crate::error::Error;
use crate::headroom;
use crate::pace::Pace;
use crate::pool::Pool;
use crate::saved::{Reason, SavedPhase, SavedReread, TableProgress};
use crate::session::Session;
use crate::settle::{BLIND, Settling};
use crate::status::Activity;
use source::rows::KeyRange;

/// Publishes the snapshot, from where the saved progress stands, and ends with saved progress in the tail.
pub(crate) async fn run(session: &mut Session<'_>) -> Result<(), Error> {
    session.activity(Activity::Snapshot);
    let connections = session.config.snapshot.connections;
    let (pool, fence) = if session.config.snapshot.fenced { fenced(session).await? } else { (session.pool(connections), None) };
    let mut work = Work::prepare(session).await?;
    let mut pace = Pace::new(&session.config.snapshot, session.status.clone());
    let finished =
        in_chunks(session, &pool, &mut work, &mut pace).await? && without_keys(session, &pool, &work.heaps, &mut pace).await?;
    let lsn = session.saved.lsn();
    let consistent_from = if finished {
        headroom::look(session).await?;
        session.activity(Activity::SettlingSnapshot);
        match fence {
            Some(lsn) => lsn,
            None => settle(session).await?,
        }
    } else {
        beside_the_tail(session);
        lsn
    };
    session.finish(Phase::SnapshotComplete { consistent_from }, lsn, lsn).await?;
    session.saved.phase = SavedPhase::Tail { lsn };
    session.saved.consistent_from = Some(consistent_from);
    session.save().await?;
    session.status.update(|status| status.consistent_from = Some(consistent_from));
    tracing::info!(%lsn, %consistent_from, finished, "the initial snapshot is complete, or goes on beside the tail");
    Ok(())
}

/// Waits until capture has passed what was read, and says so where that may take long.
async fn settle(session: &mut Session<'_>) -> Result<Lsn, Error> {
    let mut settling = Settling::begin(&mut session.client).await?;
    let lsn = loop {
        if let Some(lsn) = settling.look_if_due(&mut session.client).await? {
            break lsn;
        }
        if let Some(warning) = settling.warning() {
            session.status.warn(warning);
        }
        tokio::time::sleep_until(settling.due().into()).await;
    };
    session.status.unwarn(BLIND);
    Ok(lsn)
}

/// Connections that all see the tables as of one LSN, and that LSN. What was published by an attempt before is read again with the rest; the tail then still begins where that
/// attempt noted, and goes over what has changed in between, so that the tables are as of the new LSN once it has passed that.
async fn fenced(session: &mut Session<'_>) -> Result<(Arc<Pool>, Option<Lsn>), Error> {
    let names: Vec<_> = session.tables.iter().map(|table| table.schema.name.clone()).collect();
    let fenced = source::fence::open(&session.config.source, &names, session.config.snapshot.connections).await?;
    if let SavedPhase::Snapshot { lsn, tables } = &mut session.saved.phase {
        let fresh = tables.values().all(|progress| progress.rows == 0 && !progress.done);
        tables.clear();
        if fresh {
            *lsn = fenced.lsn;
        }
    }
    session.tell_time().await?;
    Ok((Pool::of(fenced.readers), Some(fenced.lsn)))
}

/// What is to be read.
#[derive(Default)]
struct Work {
    readings: VecDeque<Reading>,
    heaps: Vec<usize>,
}

impl Work {
    async fn prepare(session: &mut Session<'_>) -> Result<Self, Error> {
        let mut work = Self::default();
        for index in 0..session.tables.len() {
            let mut progress = progress(session, index);
            let rows = expect(session, index, &progress).await?;
            if progress.done {
                continue;
            }
            if !session.tables[index].rows.has_key() {
                work.heaps.push(index);
                continue;
            }
            if progress.is_fresh() {
                progress = TableProgress::of(split(session, index, rows).await?);
            }
            let most = session.config.snapshot.chunk_rows;
            let table = &session.tables[index];
            work.readings
                .extend(progress.open_ranges().into_iter().map(|(range, left)| Reading::new(index, table, range, left, most)));
            keep(session, index, progress);
        }
        Ok(work)
    }
}

fn progress(session: &Session<'_>, index: usize) -> TableProgress {
    match &session.saved.phase {
        SavedPhase::Snapshot { tables, .. } => tables.get(&session.tables[index].schema.name).cloned().unwrap_or_default(),
        SavedPhase::Tail { .. } => TableProgress::complete(),
    }
}

fn keep(session: &mut Session<'_>, index: usize, progress: TableProgress) {
    let name = session.tables[index].schema.name.clone();
    session.status.table(&name, |table| {
        table.snapshot_done = progress.done;
        if progress.done {
            table.snapshot_seconds_left = None;
        }
    });
    if let SavedPhase::Snapshot { tables, .. } = &mut session.saved.phase {
        tables.insert(name, progress);
    }
}

/// Tells the status how far a table is and how many rows it has, about.
pub(crate) async fn expect(session: &mut Session<'_>, index: usize, progress: &TableProgress) -> Result<Option<u64>, Error> {
    let rows = match session.tables[index].rows.estimated_rows(&mut session.client).await {
        Ok(rows) => rows,
        Err(error @ source::Error::Connection { .. }) => return Err(error.into()),
        // Only a progress bar misses it.
        Err(_) => None,
    };
    session.status.table(&session.tables[index].schema.name, |table| {
        table.snapshot_rows = progress.rows;
        table.snapshot_rows_expected = rows;
        table.snapshot_done = progress.done;
    });
    Ok(rows)
}

/// A table's ranges: several where it is large.
pub(crate) async fn split(session: &mut Session<'_>, index: usize, rows: Option<u64>) -> Result<Vec<KeyRange>, Error> {
    let snapshot = &session.config.snapshot;
    let Some(rows) = rows.filter(|rows| snapshot.connections > 1 && *rows > snapshot.split_rows) else {
        return Ok(vec![KeyRange::default()]);
    };
    let points = session.tables[index].rows.split_points(&mut session.client, snapshot.connections, rows).await?;
    Ok(KeyRange::between(points))
}

/// What has been published of ranges and not been acknowledged yet.
#[derive(Default)]
struct Waiting {
    rows: usize,
    chunks: Vec<(Reading, usize, bool)>,
}

impl Waiting {
    /// Ends what is waiting: acknowledged, told, saved.
    async fn acknowledge(&mut self, session: &mut Session<'_>) -> Result<(), Error> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        acknowledge(session).await?;
        for (Reading { table, range, left, .. }, rows, done) in std::mem::take(&mut self.chunks) {
            let mut progress = progress(session, table);
            progress.published(range, rows as u64, left, done);
            keep(session, table, progress);
        }
        self.rows = 0;
        session.save().await
    }
}

/// Reads all tables with keys; false if the retention does not leave the time for it.
async fn in_chunks(session: &mut Session<'_>, pool: &Arc<Pool>, work: &mut Work, pace: &mut Pace) -> Result<bool, Error> {
    let mut readers = Readers::new(Arc::clone(pool), session.config.snapshot.connections);
    let mut look = Look::new(session.config.headroom_check);
    let mut waiting = Waiting::default();
    loop {
        while readers.may_start()
            && let Some(reading) = work.readings.pop_front()
        {
            readers.start(reading);
        }
        let Some(Chunk { rows, done, took, next }) = readers.next().await? else {
            waiting.acknowledge(session).await?;
            return Ok(true);
        };
        let (table, count) = (next.table, rows.len());
        waiting.chunks.push((next.clone(), count, done));
        waiting.rows += count;
        if !done && pace.is_limited() {
            work.readings.push_front(next);
        } else if !done {
            // Read while this chunk is published.
            readers.start(next);
        }
        session.publish_rows(table, rows).await?;
        // Several small chunks are acknowledged together.
        if waiting.rows >= session.config.snapshot.chunk_rows {
            waiting.acknowledge(session).await?;
        }
        if look.is_due() && headroom::look(session).await?.is_short() {
            waiting.acknowledge(session).await?;
            return Ok(false);
        }
        pace.after(count, took).await;
    }
}

/// Ends a chunk: everything of it has been acknowledged.
async fn acknowledge(session: &mut Session<'_>) -> Result<(), Error> {
    let lsn = session.saved.lsn();
    session.finish(Phase::Snapshot, lsn, lsn).await
}

/// Tables without a key, in whatever order their rows come. They are published as they are read; the table counts as done at its end alone.
async fn without_keys(session: &mut Session<'_>, pool: &Arc<Pool>, heaps: &[usize], pace: &mut Pace) -> Result<bool, Error> {
    for &index in heaps {
        if headroom::look(session).await?.is_short() {
            return Ok(false);
        }
        let rows = whole(session, pool, index, pace, Some(Phase::Snapshot)).await?;
        keep(session, index, TableProgress { rows, ..TableProgress::complete() });
        session.save().await?;
    }
    Ok(true)
}

/// Reads and publishes a whole table in one go, with a record after each batch in the given phase, if any. Answers how many rows it had.
pub(crate) async fn whole(
    session: &mut Session<'_>,
    pool: &Arc<Pool>,
    index: usize,
    pace: &mut Pace,
    phase: Option<Phase>,
) -> Result<u64, Error> {
    let tables = Arc::clone(&session.tables);
    let table = &tables[index];
    let mut loan = pool.take().await?;
    let mut count = 0;
    {
        let mut rows = loan.client.stream("reading a table without a key", table.rows.scan()).await?;
        let mut batch = Batch::new(session.config.snapshot.chunk_rows);
        while let Some(row) = rows.next().await {
            count += 1;
            let Some(full) = batch.push(table.rows.values(row?)?) else { continue };
            let rows = full.len();
            session.publish_rows(index, full).await?;
            if let Some(phase) = phase {
                let lsn = session.saved.lsn();
                session.finish(phase, lsn, lsn).await?;
            }
            pace.after(rows, Duration::ZERO).await;
        }
        session.publish_rows(index, batch.take()).await?;
    }
    loan.give_back();
    if phase.is_some() {
        acknowledge(session).await?;
    }
    Ok(count)
}

/// The tables that are not finished are read on beside the tail. `whole` would remove what was published of them before the tail began, and nothing was there before that.
fn beside_the_tail(session: &mut Session<'_>) {
    let SavedPhase::Snapshot { tables, .. } = &session.saved.phase else { return };
    let names: Vec<_> = session.tables.iter().map(|table| table.schema.name.clone()).collect();
    let open: BTreeMap<_, _> = names
        .into_iter()
        .map(|name| (name.clone(), tables.get(&name).cloned().unwrap_or_default()))
        .filter(|(_, progress)| !progress.done)
        .collect();
    tracing::warn!(tables = open.len(), "retention leaves little time: the snapshot goes on beside the tail");
    for (name, progress) in open {
        let Some(table) = session.saved.tables.get_mut(&name) else { continue };
        let generation = table.next_generation();
        session.saved.rereads.insert(name, SavedReread::new(Reason::Outgrown, generation, false, progress));
    }
}

/// Something that is to be looked at every now and then.
pub(crate) struct Look {
    every: Duration,
    next: Instant,
}

impl Look {
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, next: Instant::now() }
    }

    /// Whether it is time; then the next time begins.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + self.every;
        }
        due
    }
}

/// Where the snapshot begins to be followed: the greatest captured LSN, or, if nothing has been captured yet, right before the oldest capture instance.
pub(crate) fn starting_lsn(captured: Option<Lsn>, floors: impl Iterator<Item = Lsn>) -> Lsn {
    captured.or_else(|| floors.min().map(previous)).unwrap_or(Lsn::ZERO)
}

/// The greatest LSN below another.
pub(crate) fn previous(lsn: Lsn) -> Lsn {
    let mut bytes = *lsn.as_bytes();
    for byte in bytes.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            return Lsn::from_bytes(bytes);
        }
    }
    Lsn::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lsn_before_is_the_greatest_lesser() {
        let lsn = Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(previous(lsn).next(), lsn);
        assert_eq!(previous(Lsn::ZERO), Lsn::ZERO);
        assert_eq!(starting_lsn(Some(lsn), std::iter::empty()), lsn);
        assert_eq!(starting_lsn(None, [lsn.next(), lsn].into_iter()), previous(lsn));
    }
}
