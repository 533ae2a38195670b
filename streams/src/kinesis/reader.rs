//! The reader: a task for each shard, and one that starts them in the order of the shards' lineage.
//!
//! # Lineage
//! A shard is read when its parents have been read to their end: then a key's records are handed over in order over splits and merges. A parent that is no
//! longer listed has nothing left. The shard map may lag behind the end of a shard, and one answer may be older than the one before: while the children of a finished shard are not listed, the map is asked
//! for again, whatever the other shards do, and the reader fails when they have not come within the budget of retries.
//!
//! A position may say what has been *applied*, which is less than what has been read: a parent's last records may still wait to be applied when the first of its child's are
//! behind the child's position already. So a named shard does not mean that its ancestors had been finished. Each goes on at its own position, or from its start when it has
//! none; one that had been read to its end finishes at once.
//!
//! # Ranges
//! A reader that wants only a part of the hash space reads only shards whose ranges overlap it. One that does not is as good as one that is finished: it holds nothing that
//! is wanted, so nothing has to wait for it.
//!
//! # A trimmed position
//! Kinesis does not refuse a position that has been trimmed: it goes on silently with the oldest record there is. So a reader comes back **at** the record that
//! it has read last, not after it, and skips it: from a saved position, and also when an iterator has expired or a subscription has ended under it. When the first record that comes is another one, the position's own record has been trimmed, and perhaps others after
//! it; [`AgedPositions`](crate::config::AgedPositions) says what then. An ancestor of a named shard of which nothing at all is left is done, as one that is no longer listed: its descendant's
//! position is the one that is judged. Of a named shard that is not listed [`lineage`](super::lineage) tells whether all of it was read; a position of one of which that is not sure is refused as well. A position below its
//! shard's starting sequence number is of another stream of the same name.
//!
//! A reader that comes back after a pause of its own knows more than a position says: that it was caught up at some moment. Kinesis keeps every record for a day at least, so until a day has passed nothing
//! can have been trimmed that it has not read, however quiet the shard has been ([`follow`](super::follow)).

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::ahead::{Ahead, Held};
use super::client::{Client, Failure, Kind, Shard};
use super::fan_out;
use super::follow::{Follow, Start};
use super::lineage::Lineage;
use super::{bug, joined, position};
use crate::{Batch, Error, Positions, StreamReader};

const READ: &str = "GetRecords";
const LIST: &str = "ListShards";
/// How long a shard map may lag behind a position that somebody has saved.
const LAG: Duration = Duration::from_secs(30);
/// Batches read ahead. Their bytes are bounded apart from this.
const BATCHES: usize = 256;

/// What a shard's task hands over.
pub(super) type Handed = Result<(Batch, Held), Error>;

pub(super) struct Reader {
    batches: mpsc::Receiver<Handed>,
    /// Of the batch that was handed over last: it is in memory until the next is asked for.
    held: Option<Held>,
    task: JoinHandle<()>,
    stream: StreamName,
}

impl Reader {
    pub(super) async fn start(
        client: Arc<Client>,
        stream: &StreamName,
        after: &Positions,
        hashes: RangeInclusive<u128>,
    ) -> Result<Self, Error> {
        // Once here, so that a missing stream is told to whoever opens it.
        let mut shards = client.shards(stream).await?;
        let consumer = match &client.options.fan_out {
            Some(options) => Some(fan_out::consumer(&client, stream, &options.consumer).await?),
            None => None,
        };
        let (sender, batches) = mpsc::channel(BATCHES);
        let mut all = AllShards {
            ahead: Ahead::new(client.options.read_ahead_bytes),
            consumer,
            hashes,
            client,
            stream: stream.clone(),
            after: after.clone(),
            descended: HashSet::new(),
            finished: HashSet::new(),
            started: HashSet::new(),
            sender,
        };
        let mut attempts = all.client.attempts_within(LAG);
        while let Some(young) = all.take_positions(&shards)? {
            let message = format!("shard {} has a position, and is not listed", young.shard);
            if attempts.pause(LIST, Failure { kind: Kind::Transient, message }).await.is_err() {
                return Err(young.refusal);
            }
            shards = all.client.shards(stream).await?;
        }
        let task = tokio::spawn(async move {
            if let Err(error) = all.run(shards).await {
                let _ = all.sender.send(Err(error)).await;
            }
        });
        Ok(Self { batches, held: None, task, stream: stream.clone() })
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
        self.held = None;
        let failed = || Err(bug(READ, &self.stream, "this reader has failed before: make a new one"));
        let (batch, held) = self.batches.recv().await.unwrap_or_else(failed)?;
        self.held = Some(held);
        Ok(batch)
    }
}

/// A position whose shard is not listed, and may come to be.
struct Young {
    shard: ShardId,
    /// What is said when it does not.
    refusal: Error,
}

/// Starts the shards' tasks.
struct AllShards {
    client: Arc<Client>,
    ahead: Ahead,
    /// With fan-out, the ARN that it is read under.
    consumer: Option<Arc<str>>,
    /// The part of the hash space that is wanted.
    hashes: RangeInclusive<u128>,
    stream: StreamName,
    after: Positions,
    /// Ancestors of the shards in `after`.
    descended: HashSet<ShardId>,
    finished: HashSet<ShardId>,
    started: HashSet<ShardId>,
    sender: mpsc::Sender<Handed>,
}

impl AllShards {
    /// Judges the positions to start from by the shard map. Answers one whose shard may be too young for this map.
    fn take_positions(&mut self, shards: &[Shard]) -> Result<Option<Young>, Error> {
        let lineage = Lineage::new(shards);
        let descended = lineage.ancestors(&self.after);
        let are_everywhere = lineage.are_everywhere(&self.after, &self.hashes);
        for (id, number) in &self.after {
            let listed = lineage.get(id);
            if listed.is_some_and(|shard| !shard.overlaps(&self.hashes)) {
                continue;
            }
            let foreign = || Error::ForeignPosition { stream: self.stream.clone(), shard: id.clone(), after: number.clone() };
            let (kinesis, _) = position::split(number).ok_or_else(foreign)?;
            let kinesis: SequenceNumber = kinesis.parse().map_err(|_| foreign())?;
            let trimmed = |oldest: SequenceNumber| -> Result<Error, Error> {
                let oldest = joined(&self.stream, oldest.as_str(), 0)?;
                Ok(Error::Trimmed { stream: self.stream.clone(), shard: id.clone(), after: number.clone(), oldest })
            };
            match listed {
                Some(shard) => {
                    if let Some(starting) = shard.starting.parse().ok().filter(|starting| kinesis < *starting) {
                        return Err(trimmed(starting)?);
                    }
                }
                // The shard is gone with all its records, and nothing shows that they had been read.
                None if !descended.contains(id)
                    && !are_everywhere
                    && self.client.options.aged_positions.refuses(&self.stream) =>
                {
                    let refusal = trimmed(lineage.oldest().ok_or_else(foreign)?)?;
                    if lineage.may_be_young(&kinesis) {
                        return Ok(Some(Young { shard: id.clone(), refusal }));
                    }
                    return Err(refusal);
                }
                None => {}
            }
        }
        self.descended = descended;
        Ok(None)
    }

    async fn run(&mut self, mut shards: Vec<Shard>) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        let mut attempts = self.client.attempts();
        loop {
            self.start_ready(&shards, &mut tasks);
            let lagging = tasks.is_empty() || Lineage::new(&shards).awaits_children(&self.finished);
            if !lagging {
                attempts = self.client.attempts();
            }
            let failure = Failure { kind: Kind::Transient, message: "a shard has ended, and its children are not listed".into() };
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    let ended = ended.map_err(|error| bug(READ, &self.stream, error.to_string()))?;
                    self.finished.insert(ended?);
                }
                paused = attempts.pause(LIST, failure), if lagging => {
                    paused.map_err(|failure| failure.into_error(LIST, &self.stream))?;
                }
            }
            shards = self.client.shards(&self.stream).await?;
        }
    }

    fn start_ready(&mut self, shards: &[Shard], tasks: &mut JoinSet<Result<ShardId, Error>>) {
        let lineage = Lineage::new(shards);
        for shard in shards.iter().filter(|shard| shard.overlaps(&self.hashes)) {
            let ready = lineage.is_ready(shard, &self.hashes, &self.started, &self.finished);
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
                ahead: self.ahead.clone(),
                sender: self.sender.clone(),
                read: None,
                caught_up: None,
            };
            tasks.spawn(follow.run(self.consumer.clone()));
        }
    }
}
