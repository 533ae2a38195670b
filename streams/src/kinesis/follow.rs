//! One shard, followed from where its reader stands to its end: by polling here, by subscription in [`fan_out`](super::fan_out).
//!
//! # Polling
//! Kinesis grants five reads a second to all consumers of a shard together. A shard that brings records is read again after `read_interval_ms`; one that brings none ever more seldom, down
//! to `read_idle_interval_ms`; throttling stretches either. An iterator that has expired (after five minutes of waiting for whoever reads) is replaced by one at the record that was
//! read last, as if the reader had been started anew: while nobody read, the stream may have been trimmed past it ([`reader`](super::reader)). Iterators that expire as soon as they are had are a failure like
//! others.
//!
//! # Quiet or trimmed
//! The record at which a reader comes back may have aged because nothing has been written for so long. A reader that was caught up less than a day ago tells the two apart: what it has not read came after
//! that, and Kinesis keeps everything for a day at least ([`CaughtUp`]). For a position that somebody has saved there is no such moment.
//!
//! # A shard that is gone
//! A closed shard whose records have all aged is forgotten, perhaps between the look at the shard map and the first read. It has ended then, without a record.
//!
//! # Aggregates
//! A sub-record of a producer that knows its shards is dropped in a shard that does not hold its hash: it has been written again, to the right one. Of other producers' aggregates
//! nothing is ([`aggregate`]).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{Record as KinesisRecord, ShardIteratorType};
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::ahead::{Ahead, Held};
use super::client::{Attempts, Client, Failure, Kind, Shard};
use super::lineage::Lineage;
use super::reader::Handed;
use super::{aggregate, bug, joined, oversize, position};
use crate::config::KinesisOptions;
use crate::{Batch, Error};

const GET_RECORDS: &str = "GetRecords";
const GET_ITERATOR: &str = "GetShardIterator";

/// Where in a shard to read from.
#[derive(Debug, Clone)]
pub(super) enum Start {
    Oldest,
    Time(SystemTime),
    /// At this record, of which the sub-records up to `place` have been read.
    At {
        number: String,
        place: usize,
    },
}

pub(super) struct Follow {
    pub(super) client: Arc<Client>,
    pub(super) stream: StreamName,
    pub(super) shard: Shard,
    pub(super) start: Start,
    /// A shard below this one has been begun.
    pub(super) descended: bool,
    pub(super) ahead: Ahead,
    pub(super) sender: mpsc::Sender<Handed>,
    /// The record that was read last by this iterator or subscription.
    pub(super) read: Option<String>,
    /// When nothing of the shard was left to be read.
    pub(super) caught_up: Option<CaughtUp>,
}

/// A moment at which everything that the shard held had been handed over.
#[derive(Debug, Clone, Copy)]
pub(super) struct CaughtUp {
    at: Instant,
    /// The clock that runs while a machine sleeps, and may be set.
    by_the_clock: SystemTime,
}

impl CaughtUp {
    /// Kinesis keeps records for 24 hours at least.
    const KEPT: Duration = Duration::from_secs(23 * 3600);

    pub(super) fn now() -> Self {
        Self { at: Instant::now(), by_the_clock: SystemTime::now() }
    }

    /// Whether what came afterwards cannot have been trimmed yet.
    fn is_recent(self) -> bool {
        self.at.elapsed() < Self::KEPT && self.by_the_clock.elapsed().is_ok_and(|elapsed| elapsed < Self::KEPT)
    }
}

impl Follow {
    /// Reads the shard to its end, which comes only when it is closed, with fan-out where there is a consumer.
    pub(super) async fn run(mut self, consumer: Option<Arc<str>>) -> Result<ShardId, Error> {
        let ended = match consumer {
            Some(consumer) => self.subscribe(&consumer).await?,
            None => self.poll().await?,
        };
        // At the end of the shard, and the record to start at has not come.
        if ended
            && self.read.is_none()
            && let Start::At { number, place } = &self.start
            && !self.descended
            && self.refuses()
        {
            return Err(self.trimmed(number, *place, self.shard.ending.as_ref().unwrap_or(&self.shard.starting))?);
        }
        Ok(self.shard.id)
    }

    /// Whether it is an error that the record to start at is not there.
    fn refuses(&self) -> bool {
        self.client.options.aged_positions.refuses(&self.stream) && !self.caught_up.is_some_and(CaughtUp::is_recent)
    }

    /// Before another iterator or subscription: it starts at the record that was read last, of which nothing is left to hand over.
    pub(super) fn come_back(&mut self) {
        if let Some(number) = self.read.take() {
            self.start = Start::At { number, place: position::PLACES - 1 };
        }
    }

    /// Whether the shard has come to its end; otherwise nobody reads any more.
    async fn poll(&mut self) -> Result<bool, Error> {
        let mut rhythm = Rhythm::new(&self.client.options);
        let mut expected = LEAST_EXPECTED_BYTES;
        let mut renewals = self.client.attempts();
        // Room that was had for an answer which did not come: the next iterator must not grow old in waiting for it again.
        let mut room: Option<Held> = None;
        'iterator: loop {
            self.come_back();
            let mut iterator = iterator(&self.client, &self.stream, &self.shard, &self.start).await?;
            while let Some(current) = iterator {
                let held = match room.take() {
                    Some(held) => held,
                    None => self.ahead.reserve(expected).await,
                };
                let (asked, now) = (Instant::now(), CaughtUp::now());
                let mut attempts = self.client.attempts();
                let Some(answer) = get_records(&self.client, &self.stream, &current, &mut attempts).await? else {
                    room = Some(held);
                    expired(&mut renewals, &self.stream).await?;
                    continue 'iterator;
                };
                renewals = self.client.attempts();
                let caught_up = answer.millis_behind_latest().unwrap_or(0) == 0;
                let GetRecordsOutput { records, next_shard_iterator, .. } = answer;
                expected = bytes(&records).max(LEAST_EXPECTED_BYTES);
                let pause = rhythm.pause(records.is_empty(), caught_up, attempts.throttled > 0);
                if !self.hand_over(records, held).await? {
                    return Ok(false);
                }
                if caught_up {
                    self.caught_up = Some(now);
                }
                iterator = next_shard_iterator;
                if iterator.is_some() {
                    sleep_until(asked + pause).await;
                }
            }
            return Ok(true);
        }
    }

    /// Hands Kinesis's records over to whoever reads; answers whether there is still somebody. Events that are kept outside are fetched one by one, and handed over before
    /// more than [`BATCH_BYTES`] and one of them are in memory: an answer may point to far more than it holds itself.
    pub(super) async fn hand_over(&mut self, records: Vec<KinesisRecord>, mut held: Held) -> Result<bool, Error> {
        held.correct(bytes(&records));
        let taken = self.take(records)?;
        let mut waiting: usize = taken.iter().map(|(_, data)| data.len()).sum();
        let (mut batch, mut resolved) = (Vec::new(), 0);
        for (number, data) in taken {
            waiting -= data.len();
            let data = oversize::resolve(self.client.outside.as_ref(), &self.stream, data).await?;
            resolved += data.len();
            batch.push((number, data));
            if resolved > BATCH_BYTES {
                held.correct(resolved);
                if !self.send(std::mem::take(&mut batch), held).await {
                    return Ok(false);
                }
                resolved = 0;
                held = self.ahead.reserve(waiting).await;
            }
        }
        held.correct(resolved);
        Ok(batch.is_empty() || self.send(batch, held).await)
    }

    /// Whether there is still somebody who reads.
    async fn send(&self, records: Vec<(SequenceNumber, Bytes)>, held: Held) -> bool {
        let batch = Batch { stream: self.stream.clone(), shard: self.shard.id.clone(), records };
        self.sender.send(Ok((batch, held))).await.is_ok()
    }

    fn trimmed(&self, after: &str, place: usize, oldest: &str) -> Result<Error, Error> {
        let (after, oldest) = (joined(&self.stream, after, place)?, joined(&self.stream, oldest, 0)?);
        Ok(Error::Trimmed { stream: self.stream.clone(), shard: self.shard.id.clone(), after, oldest })
    }

    /// Our records out of Kinesis's, from the start on.
    fn take(&mut self, records: Vec<KinesisRecord>) -> Result<Vec<(SequenceNumber, Bytes)>, Error> {
        let mut taken = Vec::new();
        for record in records {
            let number = record.sequence_number.clone();
            let mut from = 0;
            if self.read.is_none()
                && let Start::At { number: at, place } = &self.start
            {
                if *at == number {
                    from = place + 1;
                } else if self.refuses() {
                    return Err(self.trimmed(at, *place, &number)?);
                }
            }
            sub_records(&self.stream, &self.shard, record, |place, position, data| {
                if place >= from {
                    taken.push((position, data));
                }
            })?;
            self.read = Some(number);
        }
        Ok(taken)
    }
}

/// A shard's task takes it that an answer brings so many bytes, before it knows better.
const LEAST_EXPECTED_BYTES: usize = 64 << 10;
/// A batch with more is handed over before another event is fetched.
const BATCH_BYTES: usize = 8 << 20;

fn bytes(records: &[KinesisRecord]) -> usize {
    records.iter().map(|record| record.data.as_ref().len()).sum()
}

/// From this pause on it is AWS's limit of five reads a second that is being kept, and every read waits its turn.
const AWS_INTERVAL: Duration = Duration::from_millis(200);

/// How long to wait between two reads of a shard.
struct Rhythm {
    least: Duration,
    most: Duration,
    pause: Duration,
    stretch: u32,
}

impl Rhythm {
    /// A read that finds nothing lengthens the next pause so much.
    const SLOWER: f64 = 1.1;
    /// Throttling stretches the pause up to so many times.
    const STRETCH: u32 = 8;

    fn new(options: &KinesisOptions) -> Self {
        let least = Duration::from_millis(options.read_interval_ms.max(1));
        let most = Duration::from_millis(options.read_idle_interval_ms).max(least);
        Self { least, most, pause: least, stretch: 1 }
    }

    /// The pause after a read.
    fn pause(&mut self, empty: bool, caught_up: bool, throttled: bool) -> Duration {
        self.stretch = if throttled { (self.stretch * 2).min(Self::STRETCH) } else { (self.stretch / 2).max(1) };
        self.pause = if empty && caught_up { self.pause.mul_f64(Self::SLOWER).min(self.most) } else { self.least };
        // The limit on reads counts those of a reader that is behind as well.
        let at_once = !caught_up && !empty && self.least < AWS_INTERVAL && self.stretch == 1;
        if at_once { Duration::ZERO } else { self.pause * self.stretch }
    }
}

/// Hands over the records in a Kinesis record; of an aggregate whose stray records are written again, only those that belong to this shard.
fn sub_records(
    stream: &StreamName,
    shard: &Shard,
    record: KinesisRecord,
    mut take: impl FnMut(usize, SequenceNumber, Bytes),
) -> Result<(), Error> {
    let number = &record.sequence_number;
    let strays_are_written_again = record.partition_key.as_deref() == Some(aggregate::OWN_KEY);
    let data = Bytes::from(record.data.into_inner());
    let holds = |hash| shard.holds(hash);
    let wanted: Option<&dyn Fn(u128) -> bool> =
        if strays_are_written_again && !shard.is_whole_space() { Some(&holds) } else { None };
    let Some(records) = aggregate::decode(&data, wanted) else {
        take(0, joined(stream, number, 0)?, data);
        return Ok(());
    };
    for (place, data) in records {
        take(place, joined(stream, number, place)?, data);
    }
    Ok(())
}

/// What it means that Kinesis refuses a position that was saved: that it is not of this shard.
pub(super) fn foreign_position(stream: &StreamName, shard: &ShardId, start: &Start) -> Result<Option<Error>, Error> {
    let Start::At { number, place } = start else { return Ok(None) };
    let after = joined(stream, number, *place)?;
    Ok(Some(Error::ForeignPosition { stream: stream.clone(), shard: shard.clone(), after }))
}

/// None when the shard is gone.
async fn iterator(client: &Client, stream: &StreamName, shard: &Shard, start: &Start) -> Result<Option<String>, Error> {
    let request = client.sdk.get_shard_iterator().stream_name(&stream.0).shard_id(&shard.id.0);
    let request = match start {
        Start::Oldest => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
        Start::Time(time) => request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from(*time)),
        Start::At { number, .. } => {
            request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(number)
        }
    };
    let mut attempts = client.attempts();
    loop {
        let failure = match request.clone().send().await {
            Ok(answer) => {
                return answer.shard_iterator.map(Some).ok_or_else(|| bug(GET_ITERATOR, stream, "an answer without an iterator"));
            }
            Err(error) => Failure::from(error),
        };
        let failure = match failure.kind {
            Kind::NotFound if is_gone(client, stream, shard).await? => return Ok(None),
            Kind::NotFound => failure.of_a_shard(),
            Kind::Invalid => {
                let foreign = foreign_position(stream, &shard.id, start)?;
                return Err(foreign.unwrap_or_else(|| failure.into_error(GET_ITERATOR, stream)));
            }
            _ => failure,
        };
        attempts.pause(GET_ITERATOR, failure).await.map_err(|failure| failure.into_error(GET_ITERATOR, stream))?;
    }
}

/// Whether there is the stream, and the shard is not in it any more.
pub(super) async fn is_gone(client: &Client, stream: &StreamName, shard: &Shard) -> Result<bool, Error> {
    Ok(Lineage::new(&client.shards(stream).await?).is_gone(shard))
}

/// Waits before an iterator is replaced by another; fails where they have all expired for so long as calls are tried again.
async fn expired(renewals: &mut Attempts, stream: &StreamName) -> Result<(), Error> {
    let failure =
        Failure { kind: Kind::Transient, message: "an iterator has expired, or found nothing, as soon as it was had".into() };
    renewals.pause(GET_RECORDS, failure).await.map_err(|failure| failure.into_error(GET_RECORDS, stream))
}

/// The next records; none when the iterator has expired, or what it reads is not found: then another one is to be had, or not. An iterator that failed may be used again, and answers the same.
async fn get_records(
    client: &Client,
    stream: &StreamName,
    iterator: &str,
    attempts: &mut Attempts,
) -> Result<Option<GetRecordsOutput>, Error> {
    let limit = i32::try_from(client.options.read_records.clamp(1, 10_000)).unwrap_or(10_000);
    loop {
        let failure = match client.sdk.get_records().shard_iterator(iterator).limit(limit).send().await {
            Ok(answer) => return Ok(Some(answer)),
            Err(error) => Failure::from(error),
        };
        if matches!(failure.kind, Kind::ExpiredIterator | Kind::NotFound) {
            return Ok(None);
        }
        attempts.pause(GET_RECORDS, failure).await.map_err(|failure| failure.into_error(GET_RECORDS, stream))?;
    }
}

/// The last of our records in a shard, looking from `start` on; none when there is none from there.
pub(super) async fn last(
    client: &Client,
    stream: &StreamName,
    shard: &Shard,
    start: &Start,
) -> Result<Option<SequenceNumber>, Error> {
    let (mut last, mut renewals) = (None, client.attempts());
    let mut next = iterator(client, stream, shard, start).await?;
    while let Some(current) = next {
        let due = Instant::now() + Duration::from_millis(client.options.read_interval_ms.max(1));
        let mut attempts = client.attempts();
        let answer = get_records(client, stream, &current, &mut attempts).await?;
        let Some(answer) = answer else {
            // What has been seen is seen again.
            expired(&mut renewals, stream).await?;
            next = iterator(client, stream, shard, start).await?;
            continue;
        };
        renewals = client.attempts();
        let caught_up = answer.millis_behind_latest().unwrap_or(0) == 0;
        for record in answer.records {
            sub_records(stream, shard, record, |_, position, _| last = Some(position))?;
        }
        if caught_up {
            return Ok(last);
        }
        next = answer.next_shard_iterator;
        sleep_until(due).await;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(rhythm: &mut Rhythm, empty: bool, caught_up: bool, throttled: bool) -> u128 {
        rhythm.pause(empty, caught_up, throttled).as_millis()
    }

    #[test]
    fn a_quiet_shard_is_read_ever_more_seldom_and_a_busy_one_as_often_as_aws_grants() {
        let options = KinesisOptions { read_interval_ms: 250, read_idle_interval_ms: 500, ..KinesisOptions::default() };
        let mut rhythm = Rhythm::new(&options);
        let pauses: Vec<_> = (0..12).map(|_| milliseconds(&mut rhythm, true, true, false)).collect();
        assert!(pauses.is_sorted() && pauses[0] > 250 && pauses[11] == 500, "{pauses:?}");
        assert_eq!(milliseconds(&mut rhythm, false, true, false), 250);
        assert_eq!(milliseconds(&mut rhythm, false, false, false), 250, "five reads a second are five reads a second");
        let stretched =
            [true, true, true, true, false, false, false].map(|throttled| milliseconds(&mut rhythm, false, false, throttled));
        assert_eq!(stretched, [500, 1000, 2000, 2000, 1000, 500, 250]);
    }

    #[test]
    fn without_awss_limit_a_reader_that_is_behind_reads_on_at_once() {
        let options = KinesisOptions { read_interval_ms: 5, read_idle_interval_ms: 5, ..KinesisOptions::default() };
        let mut rhythm = Rhythm::new(&options);
        assert_eq!(milliseconds(&mut rhythm, false, false, false), 0);
        assert_eq!(milliseconds(&mut rhythm, false, true, false), 5);
        assert_eq!(milliseconds(&mut rhythm, false, false, true), 10);
    }
}
