//! The writer: a task for each stream, in it a lane for each open shard.
//!
//! # Why the order of a key is kept
//! `PutRecords` writes the entries that it can and reports the others as failed, so a request with two records of one key may write the second and not
//! the first. Here a request carries **one** Kinesis record (a run of the lane's records, aggregated), which is written whole or not at all; a lane sends the next request only
//! when the one before it is acknowledged; and a failed request is repeated as it was. A key belongs to one lane, so its records are written in order.
//! An answer that is lost leads to a repeat: the run stands in the stream twice, each time in order.
//!
//! # Reshards
//! An aggregate is routed by its explicit hash key, that of its first record's partition key. When the shard has been split meanwhile, the aggregate
//! lands in one of the children, whole, together with records that belong to the other. Readers drop those (ours drop each whose hash is not in the shard's range, and the KCL the
//! whole aggregate as soon as it finds one), and the writer sees that the answered shard is not the expected one. It then (1) begins no request on any lane of the stream,
//! (2) puts the whole aggregate back at the front of its lane, so that it is there for every kind of reader, (3) waits for the requests that are in flight, (4) reads the shard map again, until it
//! lists every shard that has answered, for one answer may be older than another, and deals the queues out to new lanes. A key moves between lanes only at (4), when nothing of it is in flight, and with all
//! its records, in order.
//!
//! # What runs side by side
//! A lane's run is aggregated and sent by a task of its own, beside those of other lanes; what all lanes of a stream share is dealing records out to them.
//!
//! # Pace
//! A lane keeps within its shard's quotas by itself, and below them where it is throttled ([`pace`](super::pace)); what waits meanwhile travels together afterwards.
//!
//! # Acknowledgement
//! `flush` answers when every record accepted before it has been acknowledged in a shard whose range holds it (INV-2 rests on this). The position that it names for a
//! shard is the greatest acknowledged there, in whatever order the answers came: whoever has read up to it has read everything that was flushed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use schemas::progress::{ShardId, ShardPositions, StreamName};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::client::{Attempts, Client, Failure, Kind, Shard};
use super::lane::{Answer, Lane, Queued, put};
use super::{aggregate, bug, joined, oversize};
use crate::config::Oversize;
use crate::hash::key_hash;
use crate::{Error, Positions, Record, StreamWriter, check_partition_key};

/// Runs of accepted records that wait for a stream's task; their bytes are bounded apart from this.
const COMMANDS: usize = 64;

pub(super) struct Writer {
    client: Arc<Client>,
    streams: HashMap<StreamName, Stream>,
}

/// A stream's task, as the writer holds it.
struct Stream {
    commands: mpsc::Sender<Command>,
    room: Arc<Semaphore>,
    failure: Arc<Mutex<Option<Error>>>,
    task: JoinHandle<()>,
}

enum Command {
    Append(Vec<Queued>),
    Flush(oneshot::Sender<Positions>),
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writer {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, streams: HashMap::new() }
    }

    async fn stream(&mut self, name: &StreamName) -> Result<&Stream, Error> {
        if !self.streams.contains_key(name) {
            let room = Arc::new(Semaphore::new(self.queue_bytes()));
            let failure = Arc::new(Mutex::new(None));
            let mut task = Task::start(Arc::clone(&self.client), name.clone(), Arc::clone(&room)).await?;
            let (commands, mut receiver) = mpsc::channel(COMMANDS);
            let slot = Arc::clone(&failure);
            let task = tokio::spawn(async move {
                if let Err(error) = task.work(&mut receiver).await {
                    // Before the channel and the promises to `flush` are dropped, so that whoever sees them gone finds the reason.
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                drop((task, receiver));
            });
            self.streams.insert(name.clone(), Stream { commands, room, failure, task });
        }
        Ok(&self.streams[name])
    }

    /// The records, each small enough for Kinesis, or the refusal of all of them.
    async fn made_to_fit(&self, name: &StreamName, mut records: Vec<Record>) -> Result<Vec<Record>, Error> {
        let limit = self.client.options.max_record_bytes;
        for record in &mut records {
            check_partition_key(name, &record.partition_key)?;
            let bytes = kinesis_bytes(record);
            let outside = self.client.outside.as_ref();
            let misread = outside.is_some() && oversize::looks_like_pointer(&record.data);
            if bytes <= limit && !misread {
                continue;
            }
            let stream = name.clone();
            match (&self.client.options.oversize, outside) {
                (_, Some(objects)) => record.data = oversize::put(objects, name, std::mem::take(&mut record.data)).await?,
                (Oversize::Stop, _) => return Err(Error::Oversize { stream, bytes, limit }),
                _ => return Err(Error::TooLarge { stream, bytes, limit }),
            }
        }
        Ok(records)
    }

    fn queue_bytes(&self) -> usize {
        self.client.options.queue_bytes.clamp(1 << 20, 1 << 30)
    }
}

impl Stream {
    /// Why the task has ended.
    fn failure(&self, stream: &StreamName) -> Error {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.unwrap_or_else(|| bug("PutRecords", stream, "this writer has failed before: make a new one"))
    }

    async fn append(&self, stream: &StreamName, run: Vec<Queued>, permits: usize) -> Result<(), Error> {
        // The semaphore is never closed; permits come back as records are acknowledged.
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let permit = tokio::select! {
            permit = self.room.acquire_many(permits) => permit.map_err(|_| self.failure(stream))?,
            () = self.commands.closed() => return Err(self.failure(stream)),
        };
        self.commands.send(Command::Append(run)).await.map_err(|_| self.failure(stream))?;
        // Only now: a future that is dropped before gives its room back.
        permit.forget();
        Ok(())
    }
}

#[async_trait]
impl StreamWriter for Writer {
    async fn append(&mut self, name: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        let records = self.made_to_fit(name, records).await?;
        // A run is a fraction of the room, so that runs follow each other without a gap.
        let run_bytes = self.queue_bytes() / 8;
        let stream = self.stream(name).await?;
        let (mut run, mut bytes) = (Vec::new(), 0);
        for Record { partition_key, data } in records {
            let queued = Queued { hash: key_hash(&partition_key), partition_key, data };
            let cost = permits(&queued, run_bytes);
            if bytes + cost > run_bytes {
                stream.append(name, std::mem::take(&mut run), std::mem::take(&mut bytes)).await?;
            }
            bytes += cost;
            run.push(queued);
        }
        if run.is_empty() { Ok(()) } else { stream.append(name, run, bytes).await }
    }

    async fn flush(&mut self) -> Result<ShardPositions, Error> {
        let mut waiting = Vec::new();
        for (name, stream) in &self.streams {
            let (answer, answered) = oneshot::channel();
            stream.commands.send(Command::Flush(answer)).await.map_err(|_| stream.failure(name))?;
            waiting.push((name, stream, answered));
        }
        let mut positions = BTreeMap::new();
        for (name, stream, answered) in waiting {
            positions.insert(name.clone(), answered.await.map_err(|_| stream.failure(name))?);
        }
        Ok(positions)
    }
}

/// What a record comes to as Kinesis counts: its key beside its data, and an aggregate of one where it would be taken for an aggregate otherwise.
fn kinesis_bytes(record: &Record) -> usize {
    let key = record.partition_key.len().max(1);
    let wrapping = if aggregate::looks_aggregated(&record.data) {
        aggregate::OVERHEAD_BYTES + aggregate::RECORD_OVERHEAD_BYTES + key
    } else {
        0
    };
    record.data.len() + key + wrapping
}

/// What a record takes of the room; at most a run's share, so that a large one does not wait for ever.
fn permits(record: &Queued, run_bytes: usize) -> usize {
    record.cost().min(run_bytes)
}

/// The work on one stream.
struct Task {
    client: Arc<Client>,
    stream: StreamName,
    room: Arc<Semaphore>,
    run_bytes: usize,
    /// By the hashes of their shards, which together are the whole space.
    lanes: Vec<Lane>,
    puts: JoinSet<(usize, Result<Answer, Error>)>,
    /// Shards that have answered and have no lane: the shard map has changed. Nothing is sent until nothing is in flight and the lanes are new.
    strangers: BTreeSet<ShardId>,
    last: Positions,
    flushes: Vec<oneshot::Sender<Positions>>,
}

impl Task {
    async fn start(client: Arc<Client>, stream: StreamName, room: Arc<Semaphore>) -> Result<Self, Error> {
        let run_bytes = room.available_permits() / 8;
        let mut task = Self {
            client,
            stream,
            room,
            run_bytes,
            lanes: Vec::new(),
            puts: JoinSet::new(),
            strangers: BTreeSet::new(),
            last: Positions::new(),
            flushes: Vec::new(),
        };
        task.renew_lanes().await?;
        Ok(task)
    }

    async fn work(&mut self, commands: &mut mpsc::Receiver<Command>) -> Result<(), Error> {
        loop {
            if !self.strangers.is_empty() && self.puts.is_empty() {
                self.renew_lanes().await?;
            }
            let due = if self.strangers.is_empty() { self.launch() } else { None };
            if self.puts.is_empty() && self.lanes.iter().all(|lane| lane.queue.is_empty()) {
                for flush in self.flushes.drain(..) {
                    // Whoever asked may have stopped waiting.
                    let _ = flush.send(self.last.clone());
                }
            }
            tokio::select! {
                command = commands.recv() => match command {
                    None => return Ok(()),
                    Some(Command::Flush(answer)) => self.flushes.push(answer),
                    Some(Command::Append(run)) => {
                        for record in run {
                            let lane = self.lane_of(record.hash)?;
                            self.lanes[lane].queue.push_back(record);
                        }
                    }
                },
                () = until(due) => {}
                Some(done) = self.puts.join_next(), if !self.puts.is_empty() => {
                    let (lane, answer) = done.map_err(|error| bug("PutRecords", &self.stream, error.to_string()))?;
                    self.acknowledge(lane, answer?).await?;
                }
            }
        }
    }

    /// Sends what may go; answers when more may.
    fn launch(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.in_flight.is_empty() || lane.queue.is_empty() {
                continue;
            }
            if let Some(due) = lane.pace.due(now) {
                next = Some(next.map_or(due, |next| next.min(due)));
            } else {
                let (client, stream, run) = (Arc::clone(&self.client), self.stream.clone(), lane.launch());
                self.puts.spawn(async move { (index, put(client, stream, run).await) });
            }
        }
        next
    }

    fn lane_of(&self, hash: u128) -> Result<usize, Error> {
        let after = self.lanes.partition_point(|lane| lane.shard.first_hash <= hash);
        after.checked_sub(1).ok_or_else(|| bug("ListShards", &self.stream, "no open shard holds the hash"))
    }

    async fn acknowledge(&mut self, index: usize, answer: Answer) -> Result<(), Error> {
        let lane = &mut self.lanes[index];
        lane.pace.learn(answer.throttled);
        lane.pace.correct(answer.bytes);
        // The task that has sent them is done with them.
        let sent = Arc::unwrap_or_clone(std::mem::take(&mut lane.in_flight));
        if answer.shard != lane.shard.id {
            self.strangers.insert(answer.shard.clone());
            // One that travels by itself lies where its key belongs, whichever shard that is.
            let lone = sent.len() == 1 && !aggregate::looks_aggregated(&sent[0].data);
            if !lone && !holds(&self.find(&answer.shard).await?, &sent) {
                let queue = &mut self.lanes[index].queue;
                sent.into_iter().rev().for_each(|record| queue.push_front(record));
                return Ok(());
            }
        }
        let permits = sent.iter().map(|record| permits(record, self.run_bytes)).sum();
        self.room.add_permits(permits);
        let position = joined(&self.stream, &answer.sequence, sent.len().saturating_sub(1))?;
        // Answers of two lanes may come out of order: after a merge both lanes write to the one child.
        let last = self.last.entry(answer.shard).or_insert_with(|| position.clone());
        if *last < position {
            *last = position;
        }
        Ok(())
    }

    /// A shard that has just answered. The shard map may take a moment to show it.
    async fn find(&self, id: &ShardId) -> Result<Shard, Error> {
        let mut attempts = self.client.attempts();
        loop {
            if let Some(shard) = self.client.shards(&self.stream).await?.into_iter().find(|shard| shard.id == *id) {
                return Ok(shard);
            }
            self.wait_for_map(&mut attempts, format!("shard {id} took a record, and is not listed")).await?;
        }
    }

    async fn wait_for_map(&self, attempts: &mut Attempts, message: String) -> Result<(), Error> {
        let failure = Failure { kind: Kind::Transient, message };
        attempts.pause("ListShards", failure).await.map_err(|failure| failure.into_error("ListShards", &self.stream))
    }

    /// Reads the shard map and deals the queues out to new lanes. Nothing is in flight.
    async fn renew_lanes(&mut self) -> Result<(), Error> {
        let mut attempts = self.client.attempts();
        let mut open = loop {
            let listed = self.client.shards(&self.stream).await?;
            let is_older = self.strangers.iter().any(|id| listed.iter().all(|shard| shard.id != *id));
            let mut open: Vec<_> = listed.into_iter().filter(|shard| shard.ending.is_none()).collect();
            open.sort_by_key(|shard| shard.first_hash);
            if covers_the_space(&open) && !is_older {
                break open;
            }
            self.wait_for_map(
                &mut attempts,
                "the open shards do not cover the hash space, or one that has answered is not listed".into(),
            )
            .await?;
        };
        let lanes = open.drain(..).map(|shard| Lane::new(shard, &self.client.options)).collect();
        for lane in std::mem::replace(&mut self.lanes, lanes) {
            for record in lane.queue {
                let new = self.lane_of(record.hash)?;
                self.lanes[new].queue.push_back(record);
            }
        }
        self.strangers.clear();
        Ok(())
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn holds(shard: &Shard, run: &[Queued]) -> bool {
    run.iter().all(|record| shard.holds(record.hash))
}

/// Whether sorted shards are the whole hash space, each hash once. In the middle of a reshard they may not be.
fn covers_the_space(shards: &[Shard]) -> bool {
    let mut next = Some(0);
    for shard in shards {
        if next != Some(shard.first_hash) {
            return false;
        }
        next = shard.last_hash.checked_add(1);
    }
    next.is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;

    use crate::config::KinesisOptions;

    fn shard(id: &str, first_hash: u128, last_hash: u128) -> Shard {
        Shard { id: ShardId(id.into()), first_hash, last_hash, parents: Vec::new(), starting: String::new(), ending: None }
    }

    /// Two lanes of shards that have been merged meanwhile, and one record of each in flight. The answers need no call: nothing listens at the endpoint.
    #[tokio::test]
    async fn a_shards_position_never_goes_back() {
        let half = u128::MAX / 2;
        let lanes = [shard("a", 0, half), shard("b", half + 1, u128::MAX)].map(|shard| {
            let mut lane = Lane::new(shard, &KinesisOptions::default());
            lane.queue.push_back(Queued { hash: lane.shard.first_hash, partition_key: "k".into(), data: Bytes::from("x") });
            lane.launch();
            lane
        });
        let mut task = Task {
            client: Arc::new(Client::connect(KinesisOptions::stand_in("http://127.0.0.1:9")).await.unwrap()),
            stream: StreamName("s".into()),
            room: Arc::new(Semaphore::new(0)),
            run_bytes: 1 << 20,
            lanes: lanes.into(),
            puts: JoinSet::new(),
            strangers: BTreeSet::new(),
            last: Positions::new(),
            flushes: Vec::new(),
        };
        let answer = |sequence: &str| Answer { shard: ShardId("c".into()), sequence: sequence.into(), throttled: 0, bytes: 2 };
        task.acknowledge(0, answer("7")).await.unwrap();
        task.acknowledge(1, answer("5")).await.unwrap();
        assert_eq!(task.last, BTreeMap::from([(ShardId("c".into()), "7000000".parse().unwrap())]));
        assert_eq!(task.strangers, BTreeSet::from([ShardId("c".into())]));
    }

    #[test]
    fn a_map_with_a_hole_or_an_overlap_is_waited_out() {
        let shards = |ranges: &[(u128, u128)]| -> Vec<Shard> {
            ranges.iter().map(|&(first_hash, last_hash)| shard("", first_hash, last_hash)).collect()
        };
        assert!(covers_the_space(&shards(&[(0, u128::MAX)])));
        assert!(covers_the_space(&shards(&[(0, 9), (10, u128::MAX)])));
        assert!(!covers_the_space(&shards(&[])));
        assert!(!covers_the_space(&shards(&[(0, 9), (11, u128::MAX)])));
        assert!(!covers_the_space(&shards(&[(0, 9), (5, u128::MAX)])));
        assert!(!covers_the_space(&shards(&[(0, 9)])));
    }
}
