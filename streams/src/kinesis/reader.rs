//! The reader: a task for each shard, and one that starts them in the order of the shards' lineage.
//!
//! # Lineage
//! A shard is read when its parents have been read to their end: then a key's records are handed over in order over splits and merges. A parent that is no
//! longer listed has nothing left. The shard map may lag behind the end of a shard: while the children of a finished shard are not listed, the map is asked for again, whatever the
//! other shards do, and the reader fails when they have not come within the budget of retries.
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
//! position is the one that is judged. A position below its shard's starting sequence number is of another stream of the same name.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::ahead::{Ahead, Held};
use super::client::{Client, Failure, Kind, Shard};
use super::fan_out;
use super::follow::{Follow, Start};
use super::{bug, joined, position};
use crate::{Batch, Error, Positions, StreamReader};

const READ: &str = "GetRecords";
const LIST: &str = "ListShards";
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
        let shards = client.shards(stream).await?;
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
        all.take_positions(&shards)?;
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
            if listed.get(id).is_some_and(|shard| !shard.overlaps(&self.hashes)) {
                continue;
            }
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
            let lagging = tasks.is_empty() || awaits_children(&shards, &self.finished);
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
        let wanted = || shards.iter().filter(|shard| shard.overlaps(&self.hashes));
        let listed: HashSet<&ShardId> = wanted().map(|shard| &shard.id).collect();
        for shard in wanted() {
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
                ahead: self.ahead.clone(),
                sender: self.sender.clone(),
                read: None,
            };
            tasks.spawn(follow.run(self.consumer.clone()));
        }
    }
}

/// Whether a finished shard's range is not yet taken over by children. One that is no longer listed itself has long had them.
fn awaits_children(shards: &[Shard], finished: &HashSet<ShardId>) -> bool {
    shards.iter().filter(|shard| finished.contains(&shard.id)).any(|parent| {
        // A split makes two children, each from one end of the range; a merge makes one that holds both ends.
        let taken_over = |hash| shards.iter().any(|child| child.parents.contains(&parent.id) && child.holds(hash));
        !taken_over(parent.first_hash) || !taken_over(parent.last_hash)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, hashes: RangeInclusive<u128>, parents: &[&str]) -> Shard {
        Shard {
            id: ShardId(id.into()),
            first_hash: *hashes.start(),
            last_hash: *hashes.end(),
            parents: parents.iter().map(|id| ShardId((*id).into())).collect(),
            starting: "1".into(),
            ending: None,
        }
    }

    #[test]
    fn a_finished_shard_waits_for_all_its_children_to_be_listed() {
        let awaits = |shards: &[Shard], finished: &[&str]| {
            awaits_children(shards, &finished.iter().map(|id| ShardId((*id).into())).collect())
        };
        let mut shards = vec![shard("a", 0..=99, &[]), shard("b", 100..=199, &[])];
        assert!(!awaits(&shards, &[]) && awaits(&shards, &["a"]));
        shards.push(shard("a0", 0..=49, &["a"]));
        assert!(awaits(&shards, &["a"]), "one of two children is listed");
        shards.push(shard("a1", 50..=99, &["a"]));
        assert!(!awaits(&shards, &["a"]));
        assert!(awaits(&shards, &["a", "a1", "b"]));
        shards.push(shard("m", 50..=199, &["a1", "b"]));
        assert!(!awaits(&shards, &["a", "a1", "b"]));
        assert!(!awaits(&shards[2..], &["a", "a1", "b"]), "what has aged has had its children");
    }
}
