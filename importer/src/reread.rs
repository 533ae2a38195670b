//! Reading tables again while the tail goes on.
//!
//! # Why it is right
//! A chunk is read and published while the tail stands still at an LSN P: everything up to P has been published, nothing above it. What is read then is as of P or newer, so
//! the rows replace what the streams held of them, and the tail's later changes replay over them, as over the initial snapshot. Were the tail to go on between a chunk's read and its
//! publication, the rows could be older than changes that were published before them, and nothing would put that right: so [`Rereads::round`] starts reads only when it is
//! called, between two ticks, and does not return before the last of them is published and acknowledged. The tail's reader fetches the next ticks meanwhile; only their publication waits.
//!
//! A progress record of an empty range (P, P] covers the rows. Each record says how far the reread is ([`schemas::progress::Reread`]):
//! - *at once* (a gap, a new table, a snapshot that outgrew the retention, a held table): nobody knows from which LSN on the table is consistent until all of it has been
//!   read and capture has passed what was seen ([`crate::settle`]); then that LSN;
//! - *stepwise* (somebody asked for it): the table is consistent and stays so but for moments. Each round's rows get a `consistent_from` of their own, and the next round waits until
//!   the tail has passed it, so that joiners are held for about a capture interval at a time.
//!
//! The record that is published when the reread is finished and the tail at or past its `consistent_from` is the last that names it.
//!
//! # Who reads
//! Rows carry the number of the round that read them, and records that of the round that they end ([`schemas::progress::Reread::reading`]): so rows of an importer that was replaced, or that came late, are left out. A number is
//! saved before the first row that carries it. The record of a round is the last with the round's number: a row of it that a later record is the first to cover is a copy that came late (a request was given up and sent again, and was carried out after
//! all), perhaps behind changes that are newer, and is left out. Before that record the tail stands, so a copy does no harm. Before a session reads
//! its first row, a record of it is acknowledged. Readers refuse what an importer before it tells after that record; what one told before it, it had read from the change tables before, so it is older than what this session
//! reads. Rows of the initial snapshot need no such number: the tail replays over them from where the snapshot began, whoever read them and whenever they arrive, and once a record has called the snapshot complete, readers leave out what still comes.
//!
//! # Tables without a key
//! There is nothing to go on from in the middle of such a table: it is read in one go, in batches and so within bounded memory, while the tail stands still, and again from its start after a crash. Rows of an attempt that broke off are
//! left out, for they are of another reading. Who cannot have the tail stand for so long gives the table a key (`keys` in the configuration).
//!
//! # Crashes
//! What is left of each range is saved after its rows were acknowledged; a crash in between reads them again, at the same P. A search for `consistent_from` begins anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use schemas::progress::Phase;
use schemas::{ErrorClass, TableName};
use tokio::sync::mpsc::error::TryRecvError;

use crate::chunks::{Chunk, Readers, Reading};
use crate::error::Error;
use crate::handle::{AskedRange, Request, RequestError};
use crate::pace::Pace;
use crate::saved::{Reason, SavedReread, TableProgress};
use crate::session::Session;
use crate::settle::{BLIND, Settling};
use crate::snapshot::{expect, split, whole};
use source::Client;
use source::rows::{KeyRange, Start};

/// How long a round may keep the tail from publishing.
const ROUND: Duration = Duration::from_millis(250);

/// What is known of the rereads beside what is saved.
pub(crate) struct Rereads {
    /// Searches for the LSN from which on what was read is consistent.
    settling: BTreeMap<TableName, Settling>,
    readers: Readers,
    pace: Pace,
    /// Not before this: the source is given time.
    rest_until: Instant,
    /// A record has told who reads, and what.
    announced: bool,
}

impl Rereads {
    pub(crate) fn begin(session: &Session<'_>) -> Self {
        let snapshot = &session.config.snapshot;
        let readers = Readers::new(session.pool(snapshot.connections), snapshot.connections);
        Self {
            settling: BTreeMap::new(),
            readers,
            pace: Pace::new(snapshot, session.status.clone()),
            rest_until: Instant::now(),
            announced: false,
        }
    }

    /// When something is to be done at the latest, if anything is.
    pub(crate) fn due(&self, session: &Session<'_>) -> Option<Instant> {
        let settling = self.settling.values().map(Settling::due).min();
        let reading = next_to_read(session).map(|_| self.rest_until);
        settling.into_iter().chain(reading).min()
    }

    /// Reads and publishes some of what is left, while the tail stands still; `reads` false: only looks after what has been read. Answers whether a record is worth publishing.
    pub(crate) async fn round(&mut self, session: &mut Session<'_>, reads: bool) -> Result<(), Error> {
        let (mut moved, mut read) = (self.settle(session).await?, false);
        if !self.announced && !session.saved.rereads.is_empty() {
            self.announced = true;
            // Rows may have been published, and told of, by a process that was killed before it saved that. Whatever is not at its end is consistent only from an LSN on that is found anew.
            let unfinished = session.saved.rereads.values_mut().filter(|reread| !reread.told.finished);
            unfinished.for_each(|reread| reread.told.consistent_from = None);
            // What is read again, under which generation and by whom, is saved before it is told, and told before the first row is read.
            session.saved.reading += 1;
            session.save().await?;
            moved = true;
        }
        // What has settled is told before more of it is read: joiners are let go in between.
        if reads
            && !moved
            && Instant::now() >= self.rest_until
            && let Some(name) = next_to_read(session)
        {
            self.read_some(session, &name).await?;
            (moved, read) = (true, true);
        }
        if moved {
            let lsn = session.saved.lsn();
            session.finish(Phase::Tail, lsn, lsn).await?;
            session.saved.forget_passed();
            // Copies of these rows that come after their record are of no reading that counts.
            session.saved.reading += i32::from(read);
            session.save().await?;
            tell(session);
        }
        Ok(())
    }

    /// Looks whether capture has passed what was read.
    async fn settle(&mut self, session: &mut Session<'_>) -> Result<bool, Error> {
        let waiting: Vec<TableName> = session
            .saved
            .rereads
            .iter()
            .filter(|(name, reread)| reread.told.consistent_from.is_none() && session.index_of(name).is_some())
            .filter(|(_, reread)| reread.progress.done || reread.stepwise)
            .map(|(name, _)| name.clone())
            .collect();
        self.settling.retain(|name, _| waiting.contains(name));
        let mut moved = false;
        for name in waiting {
            if !self.settling.contains_key(&name) {
                let begun = Settling::begin(&mut session.client).await?;
                self.settling.insert(name.clone(), begun);
            }
            let Some(settling) = self.settling.get_mut(&name) else { continue };
            let Some(lsn) = settling.look_if_due(&mut session.client).await? else {
                settling.warning().into_iter().for_each(|warning| session.status.warn(warning));
                continue;
            };
            self.settling.remove(&name);
            session.status.unwarn(BLIND);
            if let Some(reread) = session.saved.rereads.get_mut(&name) {
                reread.told.consistent_from = Some(lsn);
                reread.told.finished = reread.progress.done;
                tracing::info!(table = %name, consistent_from = %lsn, finished = reread.told.finished, "what was read again is captured");
                moved = true;
            }
        }
        Ok(moved)
    }

    /// Reads from one table until its ranges, or the time, are used up.
    async fn read_some(&mut self, session: &mut Session<'_>, name: &TableName) -> Result<(), Error> {
        let Some(index) = session.index_of(name) else { return Ok(()) };
        let Some(reread) = session.saved.rereads.get(name) else { return Ok(()) };
        let mut progress = reread.progress.clone();
        if progress.is_fresh() {
            let rows = expect(session, index, &progress).await?;
            if !session.tables[index].rows.has_key() {
                let pool = session.pool(1);
                let rows = whole(session, &pool, index, &mut self.pace, None).await?;
                keep(session, name, TableProgress { rows, ..TableProgress::complete() });
                return Ok(());
            }
            progress = TableProgress::of(split(session, index, rows).await?);
        }
        let most = session.config.snapshot.chunk_rows;
        let mut open: Vec<Reading> = progress
            .open_ranges()
            .into_iter()
            .map(|(range, left)| Reading::new(index, &session.tables[index], range, left, most))
            .collect();
        let ends = Instant::now() + ROUND;
        loop {
            while self.readers.may_start()
                && let Some(reading) = open.pop()
            {
                self.readers.start(reading);
            }
            let Some(Chunk { rows, done, took, next }) = self.readers.next().await? else { break };
            let (range, left, count) = (next.range, next.left.clone(), rows.len());
            if !done && Instant::now() < ends && !self.pace.is_limited() {
                open.push(next);
            }
            session.publish_rows(index, rows).await?;
            progress.published(range, count as u64, left, done);
            self.rest_until = Instant::now() + self.pace.wait(count, took, Instant::now());
        }
        keep(session, name, progress);
        Ok(())
    }
}

/// Rows have been published: the table is consistent from an LSN on that is not known yet.
fn keep(session: &mut Session<'_>, name: &TableName, progress: TableProgress) {
    if let Some(reread) = session.saved.rereads.get_mut(name) {
        reread.told.consistent_from = None;
        reread.progress = progress;
    }
}

/// A table of which something is to be read now. One that is held is not among the tables of the session.
fn next_to_read(session: &Session<'_>) -> Option<TableName> {
    let lsn = session.saved.lsn();
    let ready = |reread: &SavedReread| {
        let settled = !reread.stepwise || !reread.told.holds(lsn);
        !reread.progress.done && settled
    };
    let mut names = session.saved.rereads.iter().filter(|(_, reread)| ready(reread)).map(|(name, _)| name);
    names.find(|name| session.index_of(name).is_some()).cloned()
}

/// Shows in the status what is being read again.
pub(crate) fn tell(session: &Session<'_>) {
    let told = session.saved.told();
    for table in session.tables.iter() {
        let name = &table.schema.name;
        let reread = session.saved.rereads.get(name);
        session.status.table(name, |status| {
            status.reread = told.get(name).cloned();
            if let Some(reread) = reread {
                status.snapshot_rows = reread.progress.rows;
            }
            status.snapshot_done = reread.is_none_or(|reread| reread.progress.done);
            if status.snapshot_done {
                status.snapshot_seconds_left = None;
            }
        });
    }
}

/// Takes on what was asked for. Answers whether there was anything.
pub(crate) async fn take_requests(session: &mut Session<'_>) -> Result<(), Error> {
    loop {
        let request = session.requests.lock().await.try_recv();
        match request {
            Ok(request) => answer(session, request).await?,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

async fn answer(session: &mut Session<'_>, request: Request) -> Result<(), Error> {
    let Request { table, range, answer } = request;
    let taken = take_on(session, &table, &range).await?;
    let saved = if taken.is_ok() { session.save().await } else { Ok(()) };
    let told = match &saved {
        Ok(()) => taken,
        Err(error) => Err(RequestError::NotSaved(error.to_string())),
    };
    tell(session);
    // Whoever asked may have gone; it is done all the same.
    let _ = answer.send(told);
    saved
}

/// Takes a request on, or says why not.
async fn take_on(session: &mut Session<'_>, name: &TableName, range: &AskedRange) -> Result<Result<u64, RequestError>, Error> {
    let left = match asked_range(session, name, range) {
        Ok(left) => left,
        Err(error) => return Ok(Err(error)),
    };
    if let (Some(left), Some(index)) = (&left, session.index_of(name)) {
        // The server has the last word on what is a key. What it refuses is told to whoever asked, and stops nothing.
        match session.tables[index].rows.read(&mut session.client, left, 1, 1).await {
            Ok(_) => {}
            Err(error) if error.class() == ErrorClass::Transient => return Err(error.into()),
            Err(error) => {
                // After an error in the middle of an answer the connection is out of step.
                session.client = Client::connect(&session.config.source).await?;
                return Ok(Err(RequestError::BadKey(error.to_string())));
            }
        }
    }
    let Some(table) = session.saved.tables.get_mut(name) else {
        return Ok(Err(RequestError::NoSuchTable { table: name.clone(), known: String::new() }));
    };
    let generation = table.next_generation();
    let whole = left.is_none();
    tracing::info!(table = %name, generation, whole, "the table is read again, as asked");
    let progress = left.map_or_else(TableProgress::default, |left| TableProgress::of(vec![left]));
    session.saved.rereads.insert(name.clone(), SavedReread::new(Reason::Asked, generation, whole, progress));
    Ok(Ok(generation))
}

/// The range that is asked for; `None`: the whole table.
fn asked_range(session: &Session<'_>, name: &TableName, range: &AskedRange) -> Result<Option<KeyRange>, RequestError> {
    let Some(index) = session.index_of(name) else {
        let known = session.tables.iter().map(|table| table.schema.name.to_string()).collect::<Vec<_>>().join(", ");
        return Err(RequestError::NoSuchTable { table: name.clone(), known });
    };
    if let Some(reread) = session.saved.rereads.get(name) {
        return Err(RequestError::Busy { table: name.clone(), generation: reread.told.generation });
    }
    if range.from.is_none() && range.to.is_none() {
        return Ok(None);
    }
    let rows = &session.tables[index].rows;
    if !rows.has_key() {
        return Err(RequestError::NoKey { table: name.clone() });
    }
    let key = |parts: &Vec<String>| {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        rows.key_from_text(&parts).map_err(|error| RequestError::BadKey(error.to_string()))
    };
    let start = range.from.as_ref().map(key).transpose()?.map_or(Start::Beginning, Start::From);
    let to = range.to.as_ref().map(key).transpose()?;
    Ok(Some(KeyRange { start, to }))
}
