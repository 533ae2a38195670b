//! The streams: a store in memory that treats its clients as Kinesis does.
//!
//! Shards have ranges of hashes and are split and merged; numbers have many digits and grow over a whole stream; what was appended is seen by readers a little later. Requests fail before or after they had their effect, and
//! in part: a writer that tries again then appends twice, and records of different keys come out of order. What it keeps is what [`streams`] demands of any store: records of one key in one writer's order, and whatever was
//! acknowledged is there, until retention takes it ([`Streams::trim`]).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schemas::ErrorClass;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};
use streams::hash::{key_hash, range_of};
use streams::{Batch, Error, Positions, Provider, Record, StreamReader, StreamWriter};
use tokio::sync::watch;

use crate::content::content_of;
use crate::dice::Dice;
use crate::faults::{Faults, Sabotage};
use crate::history::{Content, Event, History};
use crate::kernel;

/// Numbers begin with it, so that they are longer than a machine's.
const NUMBERS_BEGIN: &str = "49590338271490256608559692538361571095921575989136";

struct Stored {
    number: SequenceNumber,
    data: Bytes,
    visible_ms: u64,
}

struct Shard {
    id: ShardId,
    hashes: RangeInclusive<u128>,
    parents: Vec<ShardId>,
    open: bool,
    /// Those that are kept, and the number of the last one that is not.
    records: Vec<Stored>,
    trimmed: Option<SequenceNumber>,
}

#[derive(Default)]
struct Stream {
    shards: Vec<Shard>,
    /// Of the last record.
    number: u64,
    /// Of the last shard.
    made: u32,
}

impl Shard {
    /// That what follows a position has been trimmed, if it has.
    fn trimmed_past(&self, stream: &StreamName, after: &SequenceNumber) -> Option<Error> {
        let trimmed = self.trimmed.as_ref().filter(|trimmed| *trimmed > after)?;
        let oldest = self.records.first().map_or(trimmed, |oldest| &oldest.number).clone();
        Some(Error::Trimmed { stream: stream.clone(), shard: self.id.clone(), after: after.clone(), oldest })
    }
}

impl Stream {
    fn add(&mut self, hashes: RangeInclusive<u128>, parents: Vec<ShardId>) {
        let id = ShardId(format!("shardId-{:012}", self.made));
        self.made += 1;
        self.shards.push(Shard { id, hashes, parents, open: true, records: Vec::new(), trimmed: None });
    }

    fn close(&mut self, at: usize) -> (ShardId, RangeInclusive<u128>) {
        let shard = &mut self.shards[at];
        shard.open = false;
        (shard.id.clone(), shard.hashes.clone())
    }

    fn put(&mut self, at: usize, data: Bytes, visible_ms: u64) -> SequenceNumber {
        self.number += 1;
        let number: SequenceNumber = match format!("{NUMBERS_BEGIN}{:012}", self.number * 16).parse() {
            Ok(number) => number,
            Err(_) => SequenceNumber::from(self.number),
        };
        let records = &mut self.shards[at].records;
        // A shard's records are seen in its order.
        let visible_ms = records.last().map_or(visible_ms, |last| visible_ms.max(last.visible_ms));
        records.push(Stored { number: number.clone(), data, visible_ms });
        number
    }
}

struct Held {
    streams: BTreeMap<StreamName, Stream>,
    dice: Dice,
    broken: Broken,
}

/// What has been broken on purpose.
#[derive(Default)]
struct Broken {
    once: bool,
    /// Held back until the record that promises it is there.
    late: Option<(StreamName, Record)>,
    /// A change that is never appended, and of which the records do not tell.
    lost: Option<Content>,
}

impl Broken {
    /// What becomes of a record; `None`: it is not appended now.
    fn record(&mut self, sabotage: Sabotage, content: &Content, stream: &StreamName, record: &Record) -> Option<Bytes> {
        let data = record.data.clone();
        if let (Content::Progress { from, to, .. }, Some(Content::Change { lsn, table, .. })) = (content, &self.lost) {
            return Some(if lsn > from && lsn <= to { without_one(&data, table) } else { data });
        }
        if self.lost.as_ref().is_some_and(|lost| lost == content) {
            return None;
        }
        let Content::Change { table, op, .. } = content else { return Some(data) };
        if self.once || table != "orders" || *op == 'd' {
            return Some(data);
        }
        match sabotage {
            Sabotage::LateChange => self.late = Some((stream.clone(), record.clone())),
            Sabotage::LostChange => self.lost = Some(content.clone()),
            Sabotage::WrongValue => {
                self.once = true;
                return Some(wrong(&data));
            }
            Sabotage::SavedAhead
            | Sabotage::LyingDisk
            | Sabotage::NoGuard
            | Sabotage::LostPart
            | Sabotage::WideFrontier
            | Sabotage::ConfirmedAhead => {
                return Some(data);
            }
        }
        self.once = true;
        None
    }
}

/// With another number in the place of the new row's.
fn wrong(data: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(data);
    match text.rsplit_once("\"rev\":") {
        Some((head, tail)) => Bytes::from(format!("{head}\"rev\":7777{tail}")),
        None => data.clone(),
    }
}

/// A progress record that counts one change of a table less.
fn without_one(data: &Bytes, table: &str) -> Bytes {
    let Ok(mut record) = serde_json::from_slice::<serde_json::Value>(data) else { return data.clone() };
    let count = &mut record["counts"][format!("dbo.{table}")];
    *count = count.as_u64().unwrap_or_default().saturating_sub(1).into();
    Bytes::from(record.to_string())
}

/// All streams, shared by all processes.
#[derive(Clone)]
pub(crate) struct Streams {
    held: Arc<Mutex<Held>>,
    appended: watch::Sender<()>,
    faults: Faults,
    history: History,
}

impl Streams {
    pub(crate) fn new(faults: Faults, dice: Dice, history: History) -> Self {
        let held = Held { streams: BTreeMap::new(), dice, broken: Broken::default() };
        Self { held: Arc::new(Mutex::new(held)), appended: watch::Sender::new(()), faults, history }
    }

    fn append(&self, found: &mut Stream, put: Put<'_>, positions: &mut ShardPositions) {
        let Put { process, stream, partition_key, data, visible_ms } = put;
        let hash = key_hash(partition_key);
        let Some(at) = found.shards.iter().position(|shard| shard.open && shard.hashes.contains(&hash)) else { return };
        let content = content_of(stream, &data);
        let shard = found.shards[at].id.clone();
        let number = found.put(at, data, visible_ms);
        positions.entry(stream.clone()).or_default().insert(shard.clone(), number);
        self.history.add(Event::Appended { process, stream: stream.0.clone(), shard: shard.0, content });
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams as one process sees them.
    pub(crate) fn of(&self, process: u32) -> Arc<dyn Provider> {
        Arc::new(Client { streams: self.clone(), process })
    }

    /// Forgets the records up to these positions, as retention would.
    pub(crate) fn trim(&self, up_to: &ShardPositions) {
        let mut held = self.held();
        for (name, stream) in &mut held.streams {
            let Some(positions) = up_to.get(name) else { continue };
            for shard in &mut stream.shards {
                let Some(position) = positions.get(&shard.id) else { continue };
                let records = shard.records.partition_point(|record| record.number <= *position);
                if let Some(last) = shard.records.drain(..records).next_back() {
                    shard.trimmed = Some(last.number);
                    self.history.add(Event::Trimmed { stream: name.0.clone(), shard: shard.id.0.clone(), records });
                }
            }
        }
    }

    /// Splits or merges shards of some stream of events.
    pub(crate) fn reshard(&self) {
        let mut held = self.held();
        let Held { streams, dice, .. } = &mut *held;
        let names: Vec<StreamName> = streams.keys().filter(|name| name.0.contains(".dbo.")).cloned().collect();
        let Some((name, stream)) = dice.pick(&names).and_then(|name| Some((name, streams.get_mut(name)?))) else { return };
        let mut open: Vec<usize> = (0..stream.shards.len()).filter(|at| stream.shards[*at].open).collect();
        open.sort_by_key(|at| *stream.shards[*at].hashes.start());
        if open.len() >= 2 && (open.len() >= 4 || dice.chance(500)) {
            let (left, right) = (stream.close(open[0]), stream.close(open[1]));
            stream.add(*left.1.start()..=*right.1.end(), vec![left.0, right.0]);
            self.history.fault(format!("two shards of {name} were merged"));
        } else if let Some(at) = dice.pick(&open) {
            let (parent, hashes) = stream.close(*at);
            let middle = hashes.start() + (hashes.end() - hashes.start()) / 2;
            stream.add(*hashes.start()..=middle, vec![parent.clone()]);
            stream.add(middle + 1..=*hashes.end(), vec![parent]);
            self.history.fault(format!("a shard of {name} was split"));
        }
        drop(held);
        self.appended.send_replace(());
    }
}

/// A record that is to be put.
struct Put<'a> {
    process: u32,
    stream: &'a StreamName,
    partition_key: &'a str,
    data: Bytes,
    visible_ms: u64,
}

fn failed(operation: &'static str, stream: &StreamName, message: &str) -> Error {
    Error::Kinesis { operation, stream: stream.clone(), message: message.to_owned(), class: ErrorClass::Transient }
}

struct Client {
    streams: Streams,
    process: u32,
}

#[async_trait]
impl Provider for Client {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        let mut held = self.streams.held();
        if !held.streams.contains_key(stream) {
            let mut made = Stream::default();
            (0..shards.max(1)).for_each(|nth| made.add(range_of(nth, shards.max(1)), Vec::new()));
            held.streams.insert(stream.clone(), made);
        }
        Ok(())
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        let positions = ShardPositions::new();
        Ok(Box::new(Writer { streams: self.streams.clone(), process: self.process, positions }))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        let held = self.streams.held();
        let Some(found) = held.streams.get(stream) else { return Err(Error::NoSuchStream { stream: stream.clone() }) };
        let unknown = after.iter().find(|(shard, _)| !found.shards.iter().any(|known| known.id == **shard));
        if let Some((shard, after)) = unknown {
            return Err(Error::ForeignPosition { stream: stream.clone(), shard: shard.clone(), after: after.clone() });
        }
        if let Some(trimmed) = found.shards.iter().find_map(|shard| shard.trimmed_past(stream, after.get(&shard.id)?)) {
            return Err(trimmed);
        }
        // A shard may have a position though its parent has none, or an older one: what a consumer has applied of the one says nothing of the other. Each goes on at its own.
        let read = after.clone();
        let (streams, appended) = (self.streams.clone(), self.streams.appended.subscribe());
        Ok(Box::new(Reader { streams, name: stream.clone(), read, appended }))
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let (held, now) = (self.streams.held(), kernel::elapsed_ms());
        let Some(found) = held.streams.get(stream) else { return Err(Error::NoSuchStream { stream: stream.clone() }) };
        let visible =
            |shard: &Shard| shard.records.iter().rfind(|record| record.visible_ms <= now).map(|last| last.number.clone());
        let last = |shard: &Shard| visible(shard).or_else(|| shard.trimmed.clone());
        Ok(found.shards.iter().filter_map(|shard| Some((shard.id.clone(), last(shard)?))).collect())
    }
}

struct Writer {
    streams: Streams,
    process: u32,
    positions: ShardPositions,
}

/// How a request goes.
struct Outcome {
    wait: Duration,
    /// Nothing is done.
    refused: bool,
    /// So many records are appended, and then the answer says that it failed.
    part: Option<usize>,
    /// It is done, and the answer is lost; the client tries again.
    twice: bool,
    /// It is done, and the client hears that it failed.
    lost: bool,
}

impl Writer {
    fn outcome(&self, records: usize) -> Outcome {
        let (permille, most) = {
            let levels = self.streams.faults.levels();
            (levels.streams, levels.stream_delay_ms)
        };
        let mut held = self.streams.held();
        let dice = &mut held.dice;
        Outcome {
            wait: Duration::from_millis(dice.below(1 + most / 10)),
            refused: dice.chance(permille / 2),
            part: dice.chance(permille / 2).then(|| dice.below(records as u64) as usize),
            twice: dice.chance(permille * 2),
            lost: dice.chance(permille / 2),
        }
    }

    /// Appends records at once, in an order that keeps each key's own.
    fn put(&mut self, stream: &StreamName, records: &[Record]) -> Result<(), Error> {
        let delay = self.streams.faults.levels().stream_delay_ms;
        let mut held = self.streams.held();
        let Held { streams, dice, broken } = &mut *held;
        let Some(found) = streams.get_mut(stream) else { return Err(Error::NoSuchStream { stream: stream.clone() }) };
        // Of a request that fails in part, some keys come after the others.
        let turn: u64 = if dice.chance(300) { dice.within(2, 4) } else { 1 };
        let mut ordered: Vec<&Record> = records.iter().collect();
        ordered.sort_by_key(|record| key_hash(&record.partition_key) as u64 % turn);
        let visible = kernel::elapsed_ms() + dice.below(delay + 1);
        for record in ordered {
            let data = match self.streams.faults.sabotage {
                None => record.data.clone(),
                Some(sabotage) => {
                    let content = content_of(stream, &record.data);
                    let Some(data) = broken.record(sabotage, &content, stream, record) else { continue };
                    data
                }
            };
            let put = Put { process: self.process, stream, partition_key: &record.partition_key, data, visible_ms: visible };
            self.streams.append(found, put, &mut self.positions);
        }
        if stream.0.ends_with(".progress")
            && let Some((name, record)) = broken.late.take()
            && let Some(found) = streams.get_mut(&name)
        {
            let (partition_key, data) = (record.partition_key.as_str(), record.data.clone());
            let put = Put { process: self.process, stream: &name, partition_key, data, visible_ms: visible };
            self.streams.append(found, put, &mut self.positions);
        }
        drop(held);
        self.streams.appended.send_replace(());
        Ok(())
    }
}

#[async_trait]
impl StreamWriter for Writer {
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        let outcome = self.outcome(records.len());
        tokio::time::sleep(outcome.wait).await;
        if outcome.refused {
            self.streams.history.fault(format!("appending to {stream} was refused"));
            return Err(failed("PutRecords", stream, "the request was refused"));
        }
        if let Some(part) = outcome.part {
            self.streams.history.fault(format!("of {} records for {stream} only {part} were appended", records.len()));
            self.put(stream, &records[..part])?;
            return Err(failed("PutRecords", stream, "the request failed in part"));
        }
        self.put(stream, &records)?;
        if outcome.twice {
            self.streams
                .history
                .fault(format!("the answer to {} records for {stream} was lost, and they are appended again", records.len()));
            self.put(stream, &records)?;
        }
        if outcome.lost {
            self.streams.history.fault(format!("the answer to {} records for {stream} was lost", records.len()));
            return Err(failed("PutRecords", stream, "no answer came"));
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<ShardPositions, Error> {
        let wait = self.outcome(0).wait;
        tokio::time::sleep(wait).await;
        Ok(self.positions.clone())
    }
}

struct Reader {
    streams: Streams,
    name: StreamName,
    read: Positions,
    appended: watch::Receiver<()>,
}

enum Look {
    Found(Batch),
    Lost(Error),
    /// Nothing before this time, unless something is appended.
    Until(Option<u64>),
}

impl Reader {
    fn look(&mut self) -> Look {
        let now = kernel::elapsed_ms();
        let mut held = self.streams.held();
        let Held { streams, dice, .. } = &mut *held;
        let Some(stream) = streams.get(&self.name) else { return Look::Until(None) };
        let unread = |shard: &Shard| match self.read.get(&shard.id) {
            Some(read) => shard.records.partition_point(|record| record.number <= *read),
            None => 0,
        };
        let lost = |shard: &Shard| shard.trimmed_past(&self.name, self.read.get(&shard.id)?);
        if let Some(error) = stream.shards.iter().find_map(lost) {
            return Look::Lost(error);
        }
        let is_done = |id: &ShardId| {
            let parent = stream.shards.iter().find(|shard| shard.id == *id);
            parent.is_none_or(|parent| !parent.open && unread(parent) == parent.records.len())
        };
        let mut until = None;
        let mut ready = Vec::new();
        for shard in stream.shards.iter().filter(|shard| shard.parents.iter().all(is_done)) {
            let from = unread(shard);
            match shard.records.get(from) {
                Some(record) if record.visible_ms <= now => ready.push((shard, from)),
                Some(record) => until = Some(until.map_or(record.visible_ms, |known: u64| known.min(record.visible_ms))),
                None => {}
            }
        }
        let Some((shard, from)) = dice.pick(&ready) else { return Look::Until(until) };
        let most = dice.within(1, 60) as usize;
        let taken = shard.records[*from..].iter().take(most).take_while(|record| record.visible_ms <= now);
        let records: Vec<_> = taken.map(|record| (record.number.clone(), record.data.clone())).collect();
        if let Some((last, _)) = records.last() {
            self.read.insert(shard.id.clone(), last.clone());
        }
        Look::Found(Batch { stream: self.name.clone(), shard: shard.id.clone(), records })
    }
}

#[async_trait]
impl StreamReader for Reader {
    /// Cancel-safe: a batch is taken and answered without a wait in between.
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let permille = self.streams.faults.levels().streams;
            if self.streams.held().dice.chance(permille / 4) {
                self.streams.history.fault(format!("reading {} failed", self.name));
                return Err(failed("GetRecords", &self.name, "the iterator has expired"));
            }
            self.appended.mark_unchanged();
            match self.look() {
                Look::Found(batch) => return Ok(batch),
                Look::Lost(error) => return Err(error),
                Look::Until(Some(at)) => {
                    let wait = Duration::from_millis(at.saturating_sub(kernel::elapsed_ms()).max(1));
                    // Whichever comes first; both only make it look again.
                    let _ = tokio::time::timeout(wait, self.appended.changed()).await;
                }
                Look::Until(None) => {
                    let _ = self.appended.changed().await;
                }
            }
        }
    }
}
