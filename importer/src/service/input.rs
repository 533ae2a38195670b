//! The service's stream, tick by tick.
//!
//! A tick is a run of records of each of some shards. Its shards are in the order in which a record of each came first: a reader hands a shard's records over only when it has handed over those of the shards that it
//! descends from, so within a tick, too, a key's records stand in the order in which the service wrote them, over splits and merges. Between shards that do not descend from each other there is no order to keep.

use std::time::Duration;

use schemas::progress::{SequenceNumber, ShardId, StreamName};
use streams::{Batch, Positions, Provider, StreamReader};

use super::translate::Taken;
use crate::error::Error;

/// How long the records of a tick that is made again may take before that is told.
const QUIET: Duration = Duration::from_secs(10);

/// What has come, by shard, in the order of the tick.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    shards: Vec<(ShardId, Vec<Taken>)>,
    records: usize,
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, batch: Batch) {
        let Batch { shard, records, .. } = batch;
        self.records += records.len();
        let taken = records.into_iter().map(|(sequence, data)| {
            self.bytes += data.len();
            Taken { shard: shard.clone(), sequence, data }
        });
        match self.shards.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, records)) => records.extend(taken),
            None => {
                let taken = taken.collect();
                self.shards.push((shard, taken));
            }
        }
    }

    /// Each shard with its last record.
    pub(super) fn to(&self) -> Vec<(ShardId, SequenceNumber)> {
        let last = |(shard, records): &(ShardId, Vec<Taken>)| Some((shard.clone(), records.last()?.sequence.clone()));
        self.shards.iter().filter_map(last).collect()
    }

    /// The records in the order of the tick.
    pub(super) fn records(self) -> Vec<Taken> {
        self.shards.into_iter().flat_map(|(_, records)| records).collect()
    }
}

/// How much a tick takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// How long to wait for the first of it, and for more of it.
    pub(super) patience: Duration,
    pub(super) linger: Duration,
}

pub(super) struct Input {
    reader: Box<dyn StreamReader>,
    stream: StreamName,
}

impl Input {
    pub(super) async fn open(provider: &dyn Provider, stream: &StreamName, after: &Positions) -> Result<Self, Error> {
        let reader = provider.reader(stream, after).await.map_err(of_the_input)?;
        Ok(Self { reader, stream: stream.clone() })
    }

    /// What comes next; nothing where nothing comes for a while.
    pub(super) async fn gather(&mut self, limits: Limits) -> Result<Gathered, Error> {
        let mut gathered = Gathered::default();
        match tokio::time::timeout(limits.patience, self.next()).await {
            Ok(first) => gathered.add(first?),
            Err(_) => return Ok(gathered),
        }
        while gathered.records < limits.records && gathered.bytes < limits.bytes {
            match tokio::time::timeout(limits.linger, self.next()).await {
                Ok(batch) => gathered.add(batch?),
                Err(_) => break,
            }
        }
        Ok(gathered)
    }

    async fn next(&mut self) -> Result<Batch, Error> {
        self.reader.next().await.map_err(of_the_input)
    }

    /// Exactly what a plan names, in its order. What comes beyond is dropped: a reader made anew has it.
    pub(super) async fn gather_again(mut self, to: &[(ShardId, SequenceNumber)]) -> Result<Gathered, Error> {
        let mut gathered =
            Gathered { shards: to.iter().map(|(shard, _)| (shard.clone(), Vec::new())).collect(), ..Gathered::default() };
        while gathered.to() != to {
            let mut batch = match tokio::time::timeout(QUIET, self.next()).await {
                Ok(batch) => batch?,
                Err(_) => {
                    tracing::warn!(stream = %self.stream, "the rest of a tick that was being published has not come yet");
                    continue;
                }
            };
            let Some(place) = to.iter().position(|(shard, _)| *shard == batch.shard) else { continue };
            let last = &to[place].1;
            let beyond = batch.records.iter().any(|(number, _)| number > last);
            batch.records.retain(|(number, _)| number <= last);
            let shard = batch.shard.clone();
            if !batch.records.is_empty() {
                gathered.add(batch);
            }
            if beyond && gathered.shards[place].1.last().map(|taken| &taken.sequence) != Some(last) {
                return Err(Error::InputChanged { stream: self.stream, shard, sequence: last.clone() });
            }
        }
        Ok(gathered)
    }
}

/// What an error of the stream store means where the stream is a service's.
fn of_the_input(error: streams::Error) -> Error {
    match error {
        streams::Error::NoSuchStream { stream } => Error::NoInput { stream },
        streams::Error::Trimmed { stream, shard, after, oldest } => Error::InputGap { stream, shard, after, oldest },
        streams::Error::ForeignPosition { stream, shard, after } => Error::InputChanged { stream, shard, sequence: after },
        error => error.into(),
    }
}
