//! The reader: a task for each shard, and one that starts them in the order of the shards' lineage.
//!
//! # Lineage
//! A shard is read when its parents have been read to their end: then a key's records are handed over in order over splits and merges. A parent that is no
//! longer listed has nothing left.
//!
//! A position may say what has been *applied*, which is less than what has been read: a parent's last records may still wait to be applied when the first of its child's are
//! behind the child's position already. So a named shard does not mean that its ancestors had been finished. Each goes on at its own position, or from its start when it has
//! none; one that had been read to its end finishes at once.
//!
//! # Aggregates
//! Sub-records whose hash is not in the shard's range are dropped, as the KCL does: their writer has written them again, to the right shard (see
//! [`writer`](super::writer)).
//!
//! # A trimmed position
//! Kinesis does not refuse a position that has been trimmed: it goes on silently with the oldest record there is. So a reader comes back **at** the record that
//! it has read last, not after it, and skips it. When the first record that comes is another one, the position's own record has been trimmed, and perhaps others after
//! it; [`AgedPositions`](crate::config::AgedPositions) says what then. An ancestor of a named shard of which nothing at all is left is done, as one that is no longer listed: its descendant's
//! position is the one that is judged. A position below its shard's starting sequence number is of another stream of the same name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::{Record as KinesisRecord, ShardIteratorType};
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::client::{Attempts, Client, Failure, Kind, Shard};
use super::{aggregate, bug, joined, position};
use crate::{Batch, Error, Positions, StreamReader};

const GET_RECORDS: &str = "GetRecords";
const GET_ITERATOR: &str = "GetShardIterator";
/// Batches read ahead, over all shards; each is one answer of Kinesis, at most 10 MiB.
const READ_AHEAD: usize = 2;
/// Throttling stretches the pause between two reads up to so many times.
const STRETCH: u32 = 8;

pub(super) struct Reader {
    batches: mpsc::Receiver<Result<Batch, Error>>,
    task: JoinHandle<()>,
    stream: StreamName,
}

impl Reader {
    pub(super) async fn start(client: Arc<Client>, stream: &StreamName, after: &Positions) -> Result<Self, Error> {
        // Once here, so that a missing stream is told to whoever opens it.
        let shards = client.shards(stream).await?;
        let (sender, batches) = mpsc::channel(READ_AHEAD);
        let mut all = AllShards {
            client,
            stream: stream.clone(),
            after: after.clone(),
            descended: HashSet::new(),
            finished: HashSet::new(),
            started: HashSet::new(),
            sender,
        };
        all.take_positions(&shards)?;
        let task = tokio::spawn(async move {
            if let Err(error) = all.run(shards).await {
                let _ = all.sender.send(Err(error)).await;
            }
        });
        Ok(Self { batches, task, stream: stream.clone() })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl StreamReader for Reader {
    /// Only receives from a channel: dropping the future loses nothing.
    async fn next(&mut self) -> Result<Batch, Error> {
        let failed = || Err(bug(GET_RECORDS, &self.stream, "this reader has failed before: make a new one"));
        self.batches.recv().await.unwrap_or_else(failed)
    }
}

/// Starts the shards' tasks.
struct AllShards {
    client: Arc<Client>,
    stream: StreamName,
    after: Positions,
    /// Ancestors of the shards in `after`.
    descended: HashSet<ShardId>,
    finished: HashSet<ShardId>,
    started: HashSet<ShardId>,
    sender: mpsc::Sender<Result<Batch, Error>>,
}

impl AllShards {
    /// Judges the positions to start from by the shard map.
    fn take_positions(&mut self, shards: &[Shard]) -> Result<(), Error> {
        let listed: HashMap<&ShardId, &Shard> = shards.iter().map(|shard| (&shard.id, shard)).collect();
        let mut descended = HashSet::new();
        let mut next: Vec<&ShardId> = self.after.keys().collect();
        while let Some(id) = next.pop() {
            for parent in listed.get(id).map_or(&[][..], |shard| &shard.parents) {
                if descended.insert(parent.clone()) {
                    next.extend(listed.get_key_value(parent).map(|(id, _)| *id));
                }
            }
        }
        for (id, number) in &self.after {
            let foreign = || Error::ForeignPosition { stream: self.stream.clone(), shard: id.clone(), after: number.clone() };
            let (kinesis, _) = position::split(number).ok_or_else(foreign)?;
            let kinesis: SequenceNumber = kinesis.parse().map_err(|_| foreign())?;
            let oldest = match listed.get(id) {
                Some(shard) => shard.starting.parse::<SequenceNumber>().ok().filter(|starting| kinesis < *starting),
                // The shard is gone with all its records, and none of its children has been begun.
                None if !descended.contains(id) && self.client.options.aged_positions.refuses(&self.stream) => {
                    let oldest = shards.iter().filter_map(|shard| shard.starting.parse::<SequenceNumber>().ok()).min();
                    Some(oldest.ok_or_else(foreign)?)
                }
                None => None,
            };
            if let Some(oldest) = oldest {
                let oldest = joined(&self.stream, oldest.as_str(), 0)?;
                return Err(Error::Trimmed { stream: self.stream.clone(), shard: id.clone(), after: number.clone(), oldest });
            }
        }
        self.descended = descended;
        Ok(())
    }

    async fn run(&mut self, mut shards: Vec<Shard>) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        let mut attempts = self.client.attempts();
        loop {
            self.start_ready(&shards, &mut tasks);
            match tasks.join_next().await {
                Some(Ok(Ok(shard))) => {
                    self.finished.insert(shard);
                    attempts = self.client.attempts();
                }
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => return Err(bug(GET_RECORDS, &self.stream, error.to_string())),
                // All shards have ended, and their children are not listed yet.
                None => {
                    let failure =
                        Failure { kind: Kind::Transient, message: "every shard is closed, and no child is listed".into() };
                    attempts
                        .pause("ListShards", failure)
                        .await
                        .map_err(|failure| failure.into_error("ListShards", &self.stream))?;
                }
            }
            shards = self.client.shards(&self.stream).await?;
        }
    }

    fn start_ready(&mut self, shards: &[Shard], tasks: &mut JoinSet<Result<ShardId, Error>>) {
        let listed: HashSet<&ShardId> = shards.iter().map(|shard| &shard.id).collect();
        for shard in shards {
            let ready = shard.parents.iter().all(|parent| self.finished.contains(parent) || !listed.contains(parent));
            if !ready || self.finished.contains(&shard.id) || !self.started.insert(shard.id.clone()) {
                continue;
            }
            let start = match self.after.get(&shard.id).and_then(position::split) {
                Some((number, place)) => Start::At { number: number.to_owned(), place },
                None => Start::Oldest,
            };
            let follow = Follow {
                client: Arc::clone(&self.client),
                stream: self.stream.clone(),
                shard: shard.clone(),
                start,
                descended: self.descended.contains(&shard.id),
            };
            tasks.spawn(follow.run(self.sender.clone()));
        }
    }
}

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
    /// After this record, which this reader has read itself.
    After {
        number: String,
    },
}

struct Follow {
    client: Arc<Client>,
    stream: StreamName,
    shard: Shard,
    start: Start,
    /// A shard below this one has been begun.
    descended: bool,
}

impl Follow {
    /// Reads the shard to its end, which comes only when it is closed.
    async fn run(mut self, sender: mpsc::Sender<Result<Batch, Error>>) -> Result<ShardId, Error> {
        let interval = Duration::from_millis(self.client.options.read_interval_ms.max(1));
        let mut stretch = 1;
        'iterator: loop {
            let mut iterator = Some(iterator(&self.client, &self.stream, &self.shard.id, &self.start).await?);
            while let Some(current) = iterator {
                let due = Instant::now() + interval * stretch;
                let mut attempts = self.client.attempts();
                let Some(answer) = get_records(&self.client, &self.stream, &current, &mut attempts).await? else {
                    continue 'iterator;
                };
                stretch = if attempts.throttled { (stretch * 2).min(STRETCH) } else { (stretch / 2).max(1) };
                let caught_up = answer.millis_behind_latest().unwrap_or(0) == 0;
                let GetRecordsOutput { records, next_shard_iterator, .. } = answer;
                let empty = records.is_empty();
                let records = self.take(records)?;
                if !records.is_empty() {
                    let batch = Batch { stream: self.stream.clone(), shard: self.shard.id.clone(), records };
                    if sender.send(Ok(batch)).await.is_err() {
                        return Ok(self.shard.id);
                    }
                }
                iterator = next_shard_iterator;
                // The limit on reads counts those of a reader that is behind as well.
                if iterator.is_some() && (caught_up || empty || interval >= AWS_INTERVAL) {
                    sleep_until(due).await;
                }
            }
            // At the end of the shard, and the record to start at has not come.
            if let Start::At { number, place } = &self.start
                && !self.descended
                && self.client.options.aged_positions.refuses(&self.stream)
            {
                return Err(self.trimmed(number, *place, self.shard.ending.as_ref().unwrap_or(&self.shard.starting))?);
            }
            return Ok(self.shard.id);
        }
    }

    fn trimmed(&self, after: &str, place: usize, oldest: &str) -> Result<Error, Error> {
        let (after, oldest) = (joined(&self.stream, after, place)?, joined(&self.stream, oldest, 0)?);
        Ok(Error::Trimmed { stream: self.stream.clone(), shard: self.shard.id.clone(), after, oldest })
    }

    /// Our records out of Kinesis's, from the start on.
    fn take(&mut self, records: Vec<KinesisRecord>) -> Result<Vec<(SequenceNumber, Bytes)>, Error> {
        let mut taken = Vec::new();
        for record in records {
            let number = record.sequence_number;
            let mut from = 0;
            if let Start::At { number: at, place } = &self.start {
                if *at == number {
                    from = place + 1;
                } else if self.client.options.aged_positions.refuses(&self.stream) {
                    return Err(self.trimmed(at, *place, &number)?);
                }
            }
            let data = Bytes::from(record.data.into_inner());
            sub_records(&self.stream, &self.shard, &number, data, |place, position, data| {
                if place >= from {
                    taken.push((position, data));
                }
            })?;
            self.start = Start::After { number };
        }
        Ok(taken)
    }
}

/// From this pause on it is AWS's limit of five reads a second that is being kept, and every read waits its turn.
const AWS_INTERVAL: Duration = Duration::from_millis(200);

/// Hands over the records in a Kinesis record that belong to this shard.
fn sub_records(
    stream: &StreamName,
    shard: &Shard,
    number: &str,
    data: Bytes,
    mut take: impl FnMut(usize, SequenceNumber, Bytes),
) -> Result<(), Error> {
    match aggregate::decode(&data) {
        None => take(0, joined(stream, number, 0)?, data),
        Some(records) => {
            for (place, record) in records.into_iter().enumerate().filter(|(_, record)| shard.holds(record.hash)) {
                take(place, joined(stream, number, place)?, record.data);
            }
        }
    }
    Ok(())
}

async fn iterator(client: &Client, stream: &StreamName, shard: &ShardId, start: &Start) -> Result<String, Error> {
    let call = || async {
        let request = client.sdk.get_shard_iterator().stream_name(&stream.0).shard_id(&shard.0);
        let request = match start {
            Start::Oldest => request.shard_iterator_type(ShardIteratorType::TrimHorizon),
            Start::Time(time) => request.shard_iterator_type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from(*time)),
            Start::At { number, .. } => {
                request.shard_iterator_type(ShardIteratorType::AtSequenceNumber).starting_sequence_number(number)
            }
            Start::After { number } => {
                request.shard_iterator_type(ShardIteratorType::AfterSequenceNumber).starting_sequence_number(number)
            }
        };
        Ok(request.send().await?)
    };
    let answer = match client.retry(GET_ITERATOR, call).await {
        Ok(answer) => answer,
        Err(failure) => {
            return Err(match start {
                // Kinesis refuses a number that is not of this shard.
                Start::At { number, place } if failure.kind == Kind::Invalid => Error::ForeignPosition {
                    stream: stream.clone(),
                    shard: shard.clone(),
                    after: joined(stream, number, *place)?,
                },
                _ => failure.into_error(GET_ITERATOR, stream),
            });
        }
    };
    answer.shard_iterator.ok_or_else(|| bug(GET_ITERATOR, stream, "an answer without an iterator"))
}

/// The next records; none when the iterator has expired. An iterator that failed may be used again, and answers the same.
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
        if failure.kind == Kind::ExpiredIterator {
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
    let mut last = None;
    let mut next = Some(iterator(client, stream, &shard.id, start).await?);
    while let Some(current) = next {
        let due = Instant::now() + Duration::from_millis(client.options.read_interval_ms.max(1));
        let mut attempts = client.attempts();
        let answer = get_records(client, stream, &current, &mut attempts).await?;
        let Some(answer) = answer else {
            let message = "an iterator expired in use";
            return Err(bug(GET_RECORDS, stream, message));
        };
        let caught_up = answer.millis_behind_latest().unwrap_or(0) == 0;
        for record in answer.records {
            sub_records(stream, shard, &record.sequence_number, Bytes::from(record.data.into_inner()), |_, position, _| {
                last = Some(position)
            })?;
        }
        if caught_up {
            return Ok(last);
        }
        next = answer.next_shard_iterator;
        sleep_until(due).await;
    }
    Ok(last)
}
