//! The initial snapshot: lock-free, in chunks, resumable.
//!
//! # Why it is right
//! L0, the greatest captured LSN, is noted before the first row is read. Capture trails the log, so every change that was committed by then and is not yet captured has an
//! LSN above L0, and the tail, which begins after L0, brings it again. A row is read at some moment after L0: it shows all changes up to then, and the
//! tail repeats those after L0 and adds the rest. So once the tail has passed the last change that any read may have seen, every table is as of that
//! LSN: repeated changes replace a row by what it was and then again by what it is.
//!
//! That last change is what [`settle`] finds. The greatest captured LSN after the last chunk would *not* do: it trails the log, and a read may have seen a
//! transaction that is not captured yet, of which another table was read before. So the server's clock is noted after the last chunk, and the tables count as
//! consistent from the first captured transaction that was committed after it: LSNs follow the order of commits, so it is above everything that was visible.
//! On an idle database there may be none for minutes; then two scans of the capture job that ended after that moment and found nothing say the same, because the second began
//! after it and a scan reads the log to its end.
//!
//! The clock is the server's local time and goes back in autumn. So the LSN captured at the noted moment bounds the search as well, and when the clock shows less
//! than the moment noted, a new one is noted: a later one is always right, for it only asks for a later transaction.
//!
//! # Retention
//! The tail begins after L0, however long the snapshot takes. Cleanup may pass L0 meanwhile, and then all the rest would be in vain: so the instances' low watermarks are
//! held against L0 between chunks, about once a minute, and a gap ends the snapshot when it opens; once more at its end, so that no snapshot is called
//! complete that cannot be followed. A table without a key is read in one go, without looking.
//!
//! # Resuming
//! After each chunk: events acknowledged, progress record acknowledged, then the last key saved. A restart reads on after the last saved key; the chunk in progress
//! is read again, which is harmless for the reason above. A table without a key is read in one go, and from its start after a restart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::progress::Phase;
use schemas::value::Value;
use schemas::{Lsn, Position};
use tiberius::ColumnData;

use crate::error::Error;
use crate::publish::Publisher;
use crate::saved::{SavedPhase, TableProgress};
use crate::session::{Session, Table};
use crate::status::{Activity, StatusHandle};
use source::changes::{first_rows, size};
use source::decode::{Columns, value};
use source::rows::KeyPart;
use source::{Client, sql};

/// Rows of the first chunk of a table without large columns; later ones follow from how large the rows turned out to be.
const FIRST_CHUNK_ROWS: usize = 2000;
/// About how many bytes a chunk should have in memory.
const CHUNK_BYTES: usize = 16 << 20;
/// How often, about, it is looked after whether the changes since the snapshot began are still there.
const WATERMARK_CHECK: Duration = Duration::from_secs(60);
/// How often capture is looked at while the snapshot settles: the first wait, and the longest.
const SETTLE_INTERVAL: Duration = Duration::from_millis(50);
const SETTLE_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// Publishes the snapshot, from where the saved progress stands, and ends with saved progress in the tail.
pub(crate) async fn run(session: &mut Session<'_>) -> Result<(), Error> {
    session.status.update(|status| status.activity = Activity::Snapshot);
    let lsn = session.saved.lsn();
    let mut retention = Retention { next: Instant::now() + WATERMARK_CHECK };
    for index in 0..session.tables.len() {
        retention.check_if_due(&mut session.client, &session.tables, lsn).await?;
        let progress = session.snapshot_progress(index);
        let name = session.tables[index].schema.name.clone();
        let expected = expected_rows(session, index).await?;
        session.status.table(&name, |table| {
            table.snapshot_rows = progress.rows;
            table.snapshot_rows_expected = expected;
            table.snapshot_done = progress.done;
        });
        if progress.done {
            continue;
        }
        tracing::info!(table = %name, rows_expected = expected, rows_done = progress.rows, "reading the snapshot of a table");
        if session.tables[index].rows.has_key() {
            in_chunks(session, index, progress, lsn, &mut retention).await?;
        } else {
            whole(session, index, lsn).await?;
        }
    }
    retention.check(&mut session.client, &session.tables, lsn).await?;
    session.status.update(|status| status.activity = Activity::SettlingSnapshot);
    let consistent_from = settle(&mut session.client).await?;
    session.publisher.finish(Phase::SnapshotComplete { consistent_from }, lsn, lsn, 0).await?;
    session.saved.phase = SavedPhase::Tail { lsn };
    session.save()?;
    tracing::info!(%lsn, %consistent_from, "the snapshot is complete");
    Ok(())
}

async fn expected_rows(session: &mut Session<'_>, index: usize) -> Result<Option<u64>, Error> {
    let name = &session.tables[index].schema.name;
    let quoted = format!("{}.{}", sql::quote(&name.schema), sql::quote(&name.table));
    let doing = "counting rows";
    match session.client.rows(doing, sql::ROW_COUNT, vec![ColumnData::String(Some(quoted.into()))]).await {
        Ok(rows) => match rows.into_iter().next() {
            Some(row) => Ok(Columns::new(doing, row).optional_int()?.and_then(|rows| rows.try_into().ok())),
            None => Ok(None),
        },
        Err(error @ source::Error::Connection { .. }) => Err(error.into()),
        // Only a progress bar misses it.
        Err(_) => Ok(None),
    }
}

/// A table with a key, chunk by chunk. The next chunk is read while this one is published.
async fn in_chunks(
    session: &mut Session<'_>,
    index: usize,
    mut progress: TableProgress,
    lsn: Lsn,
    retention: &mut Retention,
) -> Result<(), Error> {
    let mut limit = first_rows(&session.tables[index].schema, FIRST_CHUNK_ROWS).min(session.config.chunk_rows).max(1);
    let after = progress.after.clone();
    let mut chunk = session.tables[index].rows.chunk(&mut session.client, after.as_deref(), limit).await?;
    loop {
        let at_end = chunk.len() < limit;
        progress.rows += chunk.len() as u64;
        progress.done = at_end;
        if let Some(last) = chunk.last() {
            progress.after = Some(session.tables[index].rows.key_of(last)?);
        }
        limit = chunk_limit(&chunk, session.config.chunk_rows, limit);
        let Session { tables, client, publisher, status, .. } = session;
        let table = &tables[index];
        let next = next_chunk(table, client, progress.after.as_deref(), limit, at_end);
        let (next, published) = tokio::join!(next, publish(publisher, status, index, table, chunk, lsn));
        published?;
        session.save_chunk(index, &progress)?;
        retention.check_if_due(&mut session.client, &session.tables, lsn).await?;
        match next? {
            Some(rows) => chunk = rows,
            None => return Ok(()),
        }
    }
}

/// Looks after the changes since L0.
struct Retention {
    next: Instant,
}

impl Retention {
    async fn check_if_due(&mut self, client: &mut Client, tables: &[Table], lsn: Lsn) -> Result<(), Error> {
        if Instant::now() < self.next { Ok(()) } else { self.check(client, tables, lsn).await }
    }

    /// Fails if changes after `lsn` have been removed.
    async fn check(&mut self, client: &mut Client, tables: &[Table], lsn: Lsn) -> Result<(), Error> {
        self.next = Instant::now() + WATERMARK_CHECK;
        let begins = watermarks(client).await?;
        for table in tables {
            table.changes.check_watermark(lsn, begins.get(&table.changes.instance).copied().flatten())?;
        }
        Ok(())
    }
}

/// Where each capture instance begins.
async fn watermarks(client: &mut Client) -> Result<BTreeMap<String, Option<Lsn>>, Error> {
    let doing = "asking where the capture instances begin";
    let mut begins = BTreeMap::new();
    for row in client.rows(doing, sql::WATERMARKS, vec![]).await? {
        let mut row = Columns::new(doing, row);
        begins.insert(row.text()?, row.lsn()?);
    }
    Ok(begins)
}

async fn next_chunk(
    table: &Table,
    client: &mut Client,
    after: Option<&[KeyPart]>,
    limit: usize,
    at_end: bool,
) -> Result<Option<Vec<Row>>, Error> {
    if at_end {
        return Ok(None);
    }
    Ok(Some(table.rows.chunk(client, after, limit).await?))
}

/// How many rows the next chunk should have, from the sizes of a sample of this one's.
fn chunk_limit(chunk: &[Row], most: usize, now: usize) -> usize {
    let sample: Vec<usize> = chunk.iter().take(200).map(row_size).collect();
    if sample.is_empty() {
        return now;
    }
    let average: usize = sample.iter().sum::<usize>() / sample.len();
    (CHUNK_BYTES / average.max(1)).clamp(1, most.max(1))
}

fn row_size(row: &Row) -> usize {
    row.iter().map(size).sum()
}

/// Collects rows into batches, bounded by count and by bytes.
struct Batch {
    rows: Vec<Row>,
    bytes: usize,
    most_rows: usize,
}

impl Batch {
    fn new(most_rows: usize) -> Self {
        Self { rows: Vec::new(), bytes: 0, most_rows: most_rows.max(1) }
    }

    /// Answers the batch when the row has made it full.
    fn push(&mut self, row: Row) -> Option<Vec<Row>> {
        self.bytes += row_size(&row);
        self.rows.push(row);
        (self.rows.len() >= self.most_rows || self.bytes >= CHUNK_BYTES).then(|| self.take())
    }

    fn take(&mut self) -> Vec<Row> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }
}

/// A table without a key, in whatever order it comes. Rows are published as they are read; the table counts as done at its end alone.
async fn whole(session: &mut Session<'_>, index: usize, lsn: Lsn) -> Result<(), Error> {
    let mut progress = TableProgress::default();
    {
        let Session { tables, client, publisher, status, config, .. } = session;
        let table = &tables[index];
        let mut rows = client.stream("reading a table without a key for the snapshot", table.rows.scan()).await?;
        let mut batch = Batch::new(config.chunk_rows);
        while let Some(row) = rows.next().await {
            progress.rows += 1;
            if let Some(full) = batch.push(table.rows.values(row?)?) {
                publish(publisher, status, index, table, full, lsn).await?;
            }
        }
        publish(publisher, status, index, table, batch.take(), lsn).await?;
    }
    progress.done = true;
    session.save_chunk(index, &progress)
}

async fn publish(
    publisher: &mut Publisher,
    status: &StatusHandle,
    index: usize,
    table: &Table,
    rows: Vec<Row>,
    lsn: Lsn,
) -> Result<(), Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let commit_time_ms = i64::try_from(now).unwrap_or(i64::MAX);
    let position = Position { commit_lsn: lsn, ..Position::default() };
    let count = rows.len() as u64;
    for row in rows {
        let event =
            ChangeEvent { table: table.schema.clone(), op: Op::Read, before: None, after: Some(row), position, commit_time_ms };
        publisher.event(index, &event).await?;
    }
    publisher.finish(Phase::Snapshot, lsn, lsn, 0).await?;
    status.table(&table.schema.name, |status| status.snapshot_rows += count);
    Ok(())
}

/// An LSN at or above that of every transaction that any read so far may have seen, and that is captured.
async fn settle(client: &mut Client) -> Result<Lsn, Error> {
    let doing = "waiting until capture has passed the snapshot";
    let mut moment = Moment::now(client, doing).await?;
    let mut scans: Vec<Value> = Vec::new();
    let mut may_see_scans = true;
    let mut wait = SETTLE_INTERVAL;
    loop {
        let first = client.rows(doing, sql::FIRST_COMMIT_AFTER, vec![moment.time(), moment.captured()]).await?;
        if let Some(row) = first.into_iter().next() {
            let mut row = Columns::new(doing, row);
            let (lsn, went_back) = (row.lsn()?, row.int()? == 1);
            if let Some(lsn) = lsn {
                return Ok(lsn);
            }
            if went_back {
                moment = Moment::now(client, doing).await?;
                scans.clear();
                continue;
            }
        }
        if may_see_scans {
            match last_empty_scan(client, doing, vec![moment.time()]).await? {
                Seen::Nothing => {}
                Seen::NotAllowed => may_see_scans = false,
                Seen::Scan(end) => {
                    if !scans.contains(&end) {
                        scans.push(end);
                    }
                    if scans.len() >= 2 {
                        return Ok(max_lsn(client).await?.unwrap_or(Lsn::ZERO));
                    }
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(SETTLE_INTERVAL_MAX);
    }
}

/// A moment after the last read, by the server's clock and by how far capture had come.
struct Moment {
    time: String,
    captured: Lsn,
}

impl Moment {
    async fn now(client: &mut Client, doing: &'static str) -> Result<Self, Error> {
        let row = client.rows(doing, sql::CLOCK, vec![]).await?.into_iter().next();
        let row = row.ok_or_else(|| source::Error::Unexpected { doing, what: "the server tells no time".into() })?;
        let mut row = Columns::new(doing, row);
        let time = match row.value()? {
            time @ Value::DateTime { .. } => time.to_json().as_str().unwrap_or_default().to_owned(),
            other => return Err(source::Error::Unexpected { doing, what: format!("GETDATE() is {other:?}") }.into()),
        };
        Ok(Self { time, captured: row.lsn()?.unwrap_or(Lsn::ZERO) })
    }

    fn time(&self) -> ColumnData<'static> {
        ColumnData::String(Some(self.time.clone().into()))
    }

    fn captured(&self) -> ColumnData<'static> {
        ColumnData::Binary(Some(self.captured.as_bytes().to_vec().into()))
    }
}

enum Seen {
    Nothing,
    NotAllowed,
    Scan(Value),
}

async fn last_empty_scan(client: &mut Client, doing: &'static str, parameters: Vec<ColumnData<'_>>) -> Result<Seen, Error> {
    match client.rows(doing, sql::LAST_EMPTY_SCAN, parameters).await {
        Ok(rows) => match rows.into_iter().next().and_then(|row| row.into_iter().next()) {
            Some(end) => Ok(Seen::Scan(value(end)?)),
            None => Ok(Seen::Nothing),
        },
        Err(error @ source::Error::Connection { .. }) => Err(error.into()),
        // Without permission to look at the capture job there is still the entry that capture makes every few minutes.
        Err(error) => {
            tracing::info!(%error, "the capture job's scans cannot be seen; waiting for the next captured transaction");
            Ok(Seen::NotAllowed)
        }
    }
}

/// How far capture has come.
pub(crate) async fn max_lsn(client: &mut Client) -> Result<Option<Lsn>, source::Error> {
    let doing = "asking how far capture has come";
    match client.rows(doing, sql::MAX_LSN, vec![]).await?.into_iter().next() {
        Some(row) => Columns::new(doing, row).lsn(),
        None => Ok(None),
    }
}

/// Where the snapshot begins to be followed: the greatest captured LSN, or, if nothing has been captured yet, right before the oldest capture instance.
pub(crate) fn starting_lsn(captured: Option<Lsn>, floors: impl Iterator<Item = Lsn>) -> Lsn {
    captured.or_else(|| floors.min().map(previous)).unwrap_or(Lsn::ZERO)
}

fn previous(lsn: Lsn) -> Lsn {
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

/// The snapshot's saved state at its start: nothing read.
pub(crate) fn start(lsn: Lsn) -> SavedPhase {
    SavedPhase::Snapshot { lsn, tables: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_cut_by_rows_and_by_bytes() {
        let mut batch = Batch::new(3);
        let large = || vec![Value::Bytes(vec![0; CHUNK_BYTES / 2])];
        assert!(batch.push(large()).is_none());
        assert_eq!(batch.push(large()).map(|rows| rows.len()), Some(2));
        let small = || vec![Value::Null];
        assert!(batch.push(small()).is_none() && batch.push(small()).is_none());
        assert_eq!(batch.push(small()).map(|rows| rows.len()), Some(3));
        assert!(batch.take().is_empty());
    }

    #[test]
    fn the_lsn_before_is_the_greatest_lesser() {
        let lsn = Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(previous(lsn).next(), lsn);
        assert_eq!(previous(Lsn::ZERO), Lsn::ZERO);
        assert_eq!(starting_lsn(Some(lsn), std::iter::empty()), lsn);
        assert_eq!(starting_lsn(None, [lsn.next(), lsn].into_iter()), previous(lsn));
    }
}
