//! Streams in this process's memory, for tests and for trying things out.
//!
//! Every record is visible, and as durable as it will ever be, when [`StreamWriter::append`] returns, so `flush` only answers positions. Writers may share a
//! stream: an append takes the stream's lock once and is one contiguous run in each shard. Nothing is ever removed but by [`Memory::trim`] and [`Memory::remove`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use tokio::sync::watch;

use crate::hash::{key_hash, range_of, shard_of};
use crate::{
    Batch, Capacity, Created, Description, Error, Positions, Provider, Record, ShardDescription, StreamReader, StreamSettings,
    StreamWriter, Summary, check_partition_key,
};

/// Records handed over at once.
const BATCH_RECORDS: usize = 4096;

/// A process-local stream store. Clones share the streams.
#[derive(Clone, Default)]
pub struct Memory {
    streams: Arc<Mutex<HashMap<StreamName, Arc<Stream>>>>,
}

struct Stream {
    shards: Mutex<Vec<Shard>>,
    /// Changed after every append, when the records are in place.
    appended: watch::Sender<()>,
}

/// Sequence numbers are 1, 2, 3, …: record `trimmed + i` is `records[i - 1]`, if it has not been removed.
#[derive(Default)]
struct Shard {
    trimmed: u64,
    records: Vec<Option<Bytes>>,
}

impl Shard {
    fn tip(&self) -> u64 {
        self.trimmed + self.records.len() as u64
    }

    /// The last record that is still there.
    fn last(&self) -> Option<u64> {
        self.records.iter().rposition(Option::is_some).map(|at| self.trimmed + at as u64 + 1)
    }
}

/// No invariant spans a panic while one of these locks is held, so a poisoned lock is as good as a clean one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shard_id(index: usize) -> ShardId {
    ShardId(format!("shard-{index:04}"))
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    fn stream(&self, name: &StreamName) -> Result<Arc<Stream>, Error> {
        lock(&self.streams).get(name).cloned().ok_or_else(|| Error::NoSuchStream { stream: name.clone() })
    }

    /// Forgets every record, as retention would: a reader behind the tip gets [`Error::Trimmed`].
    pub fn trim(&self, stream: &StreamName) -> Result<(), Error> {
        for shard in lock(&self.stream(stream)?.shards).iter_mut() {
            shard.trimmed = shard.tip();
            shard.records.clear();
        }
        Ok(())
    }

    /// Takes one record out, as nothing does by itself: for tests of what readers then say.
    pub fn remove(&self, stream: &StreamName, shard: &ShardId, number: u64) -> Result<(), Error> {
        let held = self.stream(stream)?;
        for (_, shard) in lock(&held.shards).iter_mut().enumerate().filter(|(index, _)| shard_id(*index) == *shard) {
            let at = number.checked_sub(shard.trimmed + 1).and_then(|at| usize::try_from(at).ok());
            if let Some(record) = at.and_then(|at| shard.records.get_mut(at)) {
                *record = None;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Provider for Memory {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        lock(&self.streams).entry(stream.clone()).or_insert_with(|| {
            let shards = (0..shards.max(1)).map(|_| Shard::default()).collect();
            Arc::new(Stream { shards: Mutex::new(shards), appended: watch::Sender::new(()) })
        });
        Ok(())
    }

    async fn create(&self, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
        let shards = match settings.capacity {
            Capacity::Shards(count) => count,
            Capacity::OnDemand => 1,
        };
        if lock(&self.streams).contains_key(stream) {
            let differs = self.describe(stream).await?.differences(&StreamSettings::shards(shards));
            return Ok(Created::Existing { differs });
        }
        self.ensure(stream, shards).await?;
        Ok(Created::New)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Summary>, Error> {
        let streams = lock(&self.streams);
        let mut found: Vec<_> = streams
            .iter()
            .filter(|(name, _)| name.0.starts_with(prefix))
            .map(|(name, stream)| Summary {
                stream: name.clone(),
                open_shards: u32::try_from(lock(&stream.shards).len()).unwrap_or(u32::MAX),
            })
            .collect();
        found.sort_by(|one, other| one.stream.cmp(&other.stream));
        Ok(found)
    }

    async fn describe(&self, stream: &StreamName) -> Result<Description, Error> {
        let held = self.stream(stream)?;
        let held = lock(&held.shards);
        let count = u32::try_from(held.len()).unwrap_or(u32::MAX);
        let shards = held.iter().zip(0..).map(|(shard, index)| ShardDescription {
            shard: shard_id(index as usize),
            hashes: range_of(index, count),
            open: true,
            parents: Vec::new(),
            records: Some(shard.records.iter().flatten().count() as u64),
            bytes: Some(shard.records.iter().flatten().map(|data| data.len() as u64).sum()),
        });
        Ok(Description {
            stream: stream.clone(),
            capacity: Capacity::Shards(count),
            retention: None,
            encryption_key: None,
            tags: BTreeMap::new(),
            max_record_bytes: None,
            shards: shards.collect(),
        })
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        Ok(Box::new(Writer { memory: self.clone(), positions: BTreeMap::new() }))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        let held = self.stream(stream)?;
        let mut after = after.clone();
        let mut read = Vec::new();
        for (index, shard) in lock(&held.shards).iter().enumerate() {
            read.push(match after.remove(&shard_id(index)) {
                None => shard.trimmed,
                Some(number) => match number.to_u64() {
                    Some(number) if number <= shard.tip() => number,
                    _ => return Err(Error::ForeignPosition { stream: stream.clone(), shard: shard_id(index), after: number }),
                },
            });
        }
        if let Some((shard, after)) = after.pop_first() {
            return Err(Error::ForeignPosition { stream: stream.clone(), shard, after });
        }
        let appended = held.appended.subscribe();
        Ok(Box::new(Reader { name: stream.clone(), stream: held, appended, read, turn: 0 }))
    }

    async fn is_whole(&self, stream: &StreamName) -> Result<bool, Error> {
        Ok(lock(&self.stream(stream)?.shards).iter().all(|shard| shard.trimmed == 0))
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let stream = self.stream(stream)?;
        let shards = lock(&stream.shards);
        let tips = shards.iter().map(Shard::last).enumerate();
        Ok(tips.filter_map(|(index, last)| Some((shard_id(index), SequenceNumber::from(last?)))).collect())
    }
}

struct Writer {
    memory: Memory,
    positions: ShardPositions,
}

#[async_trait]
impl StreamWriter for Writer {
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        let held = self.memory.stream(stream)?;
        for record in &records {
            check_partition_key(stream, &record.partition_key)?;
        }
        let positions = self.positions.entry(stream.clone()).or_default();
        {
            let mut shards = lock(&held.shards);
            let count = u32::try_from(shards.len()).unwrap_or(u32::MAX);
            for record in records {
                let index = shard_of(key_hash(&record.partition_key), count) as usize;
                shards[index].records.push(Some(record.data));
                positions.insert(shard_id(index), SequenceNumber::from(shards[index].tip()));
            }
        }
        held.appended.send_replace(());
        Ok(())
    }

    async fn flush(&mut self) -> Result<ShardPositions, Error> {
        Ok(self.positions.clone())
    }
}

struct Reader {
    name: StreamName,
    stream: Arc<Stream>,
    appended: watch::Receiver<()>,
    /// The last sequence number read, by shard.
    read: Vec<u64>,
    /// Where to look first, so that a busy shard does not starve the others.
    turn: usize,
}

impl Reader {
    fn take(&mut self) -> Result<Option<Batch>, Error> {
        let shards = lock(&self.stream.shards);
        for step in 0..shards.len() {
            let index = (self.turn + step) % shards.len();
            let (shard, read) = (&shards[index], &mut self.read[index]);
            if *read < shard.trimmed {
                return Err(Error::Trimmed {
                    stream: self.name.clone(),
                    shard: shard_id(index),
                    after: SequenceNumber::from(*read),
                    oldest: SequenceNumber::from(shard.trimmed + 1),
                });
            }
            let from = usize::try_from(*read - shard.trimmed).unwrap_or(usize::MAX);
            let Some(waiting) = shard.records.get(from..).filter(|waiting| !waiting.is_empty()) else { continue };
            let taken = &waiting[..waiting.len().min(BATCH_RECORDS)];
            let numbered = taken.iter().zip(*read + 1..);
            let records: Vec<_> =
                numbered.filter_map(|(data, number)| Some((SequenceNumber::from(number), data.clone()?))).collect();
            *read += taken.len() as u64;
            if records.is_empty() {
                continue;
            }
            self.turn = index + 1;
            return Ok(Some(Batch { stream: self.name.clone(), shard: shard_id(index), records }));
        }
        Ok(None)
    }
}

#[async_trait]
impl StreamReader for Reader {
    /// Cancel-safe: a batch is taken and returned without a wait in between.
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            // Marked as seen before looking: an append after the look is then a change, and wakes the wait.
            self.appended.mark_unchanged();
            if let Some(batch) = self.take()? {
                return Ok(batch);
            }
            // The sender lives in the stream that this reader holds, so the channel is never closed.
            let _ = self.appended.changed().await;
        }
    }
}
