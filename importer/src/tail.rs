//! The tail: one tick after the other, each a range (`from`, `to`] of the log, published in the source's total order.
//!
//! # Why nothing is lost or disordered
//! - A tick lists the transactions captured after `from`, once; `to` is the last of them. Capture writes a transaction's rows before or with its entry in that list, so
//!   everything up to `to` is there to be read, and nothing is added to it afterwards.
//! - *Every* change table that holds something newer is read up to `to`, each in order ([`Cursor`](source::changes::Cursor)); [`Merge`] brings them into one order by (commit LSN,
//!   command id, seqval, operation). So when the progress record says `to`, there is nothing at or below it that was not published (INV-1, INV-6).
//! - Before the reads and after each page, the instances' low watermarks are held against `from`: cleanup moves them before it deletes, so a range that was purged
//!   is found out instead of read as empty.
//! - Progress is saved last (INV-2). A failure anywhere leaves it where it was, and the next attempt reads and publishes the whole range again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::event::{ChangeEvent, Op};
use schemas::progress::Phase;
use schemas::{Lsn, Position};
use tiberius::ColumnData;

use crate::error::Error;
use crate::metrics;
use crate::saved::SavedPhase;
use crate::session::Session;
use crate::snapshot::max_lsn;
use crate::status::Activity;
use source::changes::{Change, Cursor};
use source::decode::Columns;
use source::{Client, sql};

/// How often, at least, a quiet capture is looked at for having stalled.
const STALL_CHECK: Duration = Duration::from_secs(30);

/// What warnings of a stalled capture begin with.
const STALLED: &str = "capture has stalled";

/// A captured transaction.
#[derive(Debug, Clone, Copy)]
struct Transaction {
    lsn: Lsn,
    commit_time_ms: i64,
}

/// Follows the source for ever; ends with an error alone.
pub(crate) async fn run(session: &mut Session<'_>) -> Result<std::convert::Infallible, Error> {
    check_not_behind(session).await?;
    let saved = session.saved.lsn();
    session.status.update(|status| {
        status.activity = Activity::Tailing;
        status.published_lsn = Some(saved);
    });
    let mut quiet_since = Instant::now();
    loop {
        if tick(session).await? {
            quiet_since = Instant::now();
            session.went_well();
            continue;
        }
        session.went_well();
        session.status.update(|status| status.lag_ms = Some(0));
        metrics::lag(0.0);
        if quiet_since.elapsed() >= STALL_CHECK.min(session.config.stalled_after) {
            check_stalled(session).await?;
            quiet_since = Instant::now();
        }
        tokio::time::sleep(session.config.poll_interval).await;
    }
}

/// A database that has captured less than was published from it is not the one it was.
async fn check_not_behind(session: &mut Session<'_>) -> Result<(), Error> {
    let saved = session.saved.lsn();
    match max_lsn(&mut session.client).await? {
        Some(captured) if captured < saved => Err(source::Error::WentBack { saved, captured }.into()),
        _ => Ok(()),
    }
}

/// Publishes what has been captured since, if anything. Answers whether there was anything.
async fn tick(session: &mut Session<'_>) -> Result<bool, Error> {
    let started = Instant::now();
    let from = session.saved.lsn();
    let transactions = transactions(session, from).await?;
    let Some(last) = transactions.last().copied() else { return Ok(false) };
    let to = last.lsn;
    session.status.update(|status| status.captured_lsn = Some(to));
    let moved = moved(session, from).await?;
    let mut cursors: Vec<Cursor> = Vec::with_capacity(moved.len());
    for &table in &moved {
        cursors.push(Cursor::new(session.tables[table].changes.clone(), from, to, moved.len()));
    }
    let mut merge = Merge::new(cursors, &mut session.client).await?;
    let mut times = CommitTimes { transactions: &transactions, at: 0 };
    while let Some((cursor, change)) = merge.next(&mut session.client).await? {
        let table = moved[cursor];
        let commit_time_ms = times.of(change.position.commit_lsn);
        let event = event(session, table, change, commit_time_ms)?;
        session.publisher.event(table, &event).await?;
    }
    session.publisher.finish(Phase::Tail, from, to, last.commit_time_ms).await?;
    session.saved.phase = SavedPhase::Tail { lsn: to };
    session.save()?;
    account(session, last, started);
    Ok(true)
}

fn account(session: &Session<'_>, last: Transaction, started: Instant) {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let lag_ms = if last.commit_time_ms > 0 { (now - last.commit_time_ms).max(0) } else { 0 };
    metrics::tick(started.elapsed().as_secs_f64());
    metrics::lag(lag_ms as f64 / 1000.0);
    session.status.update(|status| {
        status.published_lsn = Some(last.lsn);
        status.published_commit_time_ms = Some(last.commit_time_ms);
        status.lag_ms = Some(lag_ms);
    });
    session.status.unwarn(STALLED);
}

async fn transactions(session: &mut Session<'_>, from: Lsn) -> Result<Vec<Transaction>, Error> {
    let doing = "listing captured transactions";
    let most = session.config.tick_transactions.max(1);
    let parameters = vec![
        ColumnData::I64(Some(most.try_into().unwrap_or(i64::MAX))),
        ColumnData::Binary(Some(from.as_bytes().to_vec().into())),
    ];
    let mut transactions = Vec::new();
    let clock = &session.clock;
    session
        .client
        .for_each(doing, sql::TRANSACTIONS, parameters, |_, row| {
            let mut row = Columns::new(doing, row);
            let (lsn, time, offset) = (row.lsn()?, row.value()?, row.int()?);
            if let Some(lsn) = lsn {
                transactions.push(Transaction { lsn, commit_time_ms: clock.unix_ms(&time, offset)? });
            }
            Ok(())
        })
        .await?;
    Ok(transactions)
}

/// The tables that hold changes after `from`, by index. Fails if any table, moved or not, has lost some.
async fn moved(session: &mut Session<'_>, from: Lsn) -> Result<Vec<usize>, Error> {
    let doing = "asking which tables have changed";
    let mut results = session.client.query(doing, &session.moved_sql, vec![]).await?.into_iter();
    let (newest, watermarks) = (results.next().unwrap_or_default(), results.next().unwrap_or_default());
    let mut begins: BTreeMap<String, Option<Lsn>> = BTreeMap::new();
    for row in watermarks {
        let mut row = Columns::new(doing, row);
        begins.insert(row.text()?, row.lsn()?);
    }
    for table in &session.tables {
        // An instance that is listed but has no beginning is as good as gone.
        let min = begins.get(&table.changes.instance).copied().flatten();
        table.changes.check_watermark(from, min)?;
    }
    let mut moved = Vec::new();
    for row in newest {
        let mut row = Columns::new(doing, row);
        let (index, max) = (row.int()?, row.lsn()?);
        if max.is_some_and(|max| max > from) {
            let index = usize::try_from(index).ok().filter(|index| *index < session.tables.len());
            moved.push(
                index.ok_or_else(|| source::Error::Unexpected { doing, what: "an instance that was not asked for".into() })?,
            );
        }
    }
    moved.sort_unstable();
    Ok(moved)
}

fn event(session: &Session<'_>, table: usize, change: Change, commit_time_ms: i64) -> Result<ChangeEvent, Error> {
    let op = match (&change.before, &change.after) {
        (None, Some(_)) => Op::Create,
        (Some(_), Some(_)) => Op::Update,
        (Some(_), None) => Op::Delete,
        (None, None) => {
            return Err(source::Error::Unexpected { doing: "reading changes", what: "a change without a row".into() }.into());
        }
    };
    let Change { position, before, after } = change;
    Ok(ChangeEvent { table: session.publisher.table(table).clone(), op, before, after, position, commit_time_ms })
}

/// Commit times of ascending LSNs.
struct CommitTimes<'a> {
    transactions: &'a [Transaction],
    at: usize,
}

impl CommitTimes<'_> {
    fn of(&mut self, lsn: Lsn) -> i64 {
        while self.at + 1 < self.transactions.len() && self.transactions[self.at].lsn < lsn {
            self.at += 1;
        }
        self.transactions.get(self.at).map_or(0, |transaction| transaction.commit_time_ms)
    }
}

/// Brings the changes of several tables into one order. At most a page of each is in memory.
struct Merge {
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Reverse<(Position, usize)>>,
}

impl Merge {
    async fn new(mut cursors: Vec<Cursor>, client: &mut Client) -> Result<Self, Error> {
        let mut heads = BinaryHeap::with_capacity(cursors.len());
        for (index, cursor) in cursors.iter_mut().enumerate() {
            if let Some(position) = cursor.head(client).await? {
                heads.push(Reverse((position, index)));
            }
        }
        Ok(Self { cursors, heads })
    }

    /// The next change and the index of its cursor.
    async fn next(&mut self, client: &mut Client) -> Result<Option<(usize, Change)>, Error> {
        let Some(mut least) = self.heads.peek_mut() else { return Ok(None) };
        let Reverse((_, index)) = *least;
        let cursor = &mut self.cursors[index];
        let change = cursor.take();
        match cursor.head(client).await? {
            // Replacing the head in place costs less than taking it out and putting another in.
            Some(position) => *least = Reverse((position, index)),
            None => drop(std::collections::binary_heap::PeekMut::pop(least)),
        }
        Ok(change.map(|change| (index, change)))
    }
}

/// Says so when nothing has been captured for longer than even an idle database goes without.
async fn check_stalled(session: &mut Session<'_>) -> Result<(), Error> {
    let doing = "asking when capture last moved";
    let Some(row) = session.client.rows(doing, sql::CAPTURE_AGE, vec![]).await?.into_iter().next() else { return Ok(()) };
    let Some(age) = Columns::new(doing, row).optional_int()? else { return Ok(()) };
    if age > i64::try_from(session.config.stalled_after.as_secs()).unwrap_or(i64::MAX) {
        let text = format!(
            "{STALLED}: nothing has been captured for {} minutes. Nothing is lost yet, but changes wait. Check that SQL Server Agent and the capture job run \
             (EXEC sys.sp_cdc_help_jobs; EXEC sys.sp_cdc_start_job @job_type = N'capture';), and sys.dm_cdc_errors",
            age / 60
        );
        tracing::warn!(age_seconds = age, "capture has stalled");
        session.status.unwarn(STALLED);
        session.status.warn(&text);
    }
    Ok(())
}
