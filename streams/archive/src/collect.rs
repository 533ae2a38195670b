//! What has been read of the streams and is not in the archive yet; pure.
//!
//! A progress record is *complete* when every shard has been read up to where the record says that it stood. A segment is cut where the last complete record says ([`Collector::cut`]): then it holds whole ticks and nothing of
//! the next one but what was published and is spoken of by no record yet. What has been read past the cut stays for the next segment.
//!
//! # Bounds
//! What is *due* (complete ticks and what they cover) decides when a segment is large enough; what waits beyond it does not, or a long wait would be cut into many small segments. Event records that wait count towards the memory that is
//! held at all ([`Collector::held_bytes`]); progress records that wait have a bound of their own ([`Collector::waiting_bytes`]), with what they take parsed, because no segment can be cut to make room for them.
//!
//! # Shards that end
//! A shard may have lost what a record names (trimmed, removed, or closed and past its retention). Nothing would ever come of it, so when the store says that it ends earlier, the number counts as read ([`Collector::end`]); whether anything
//! is missing is for the counts to say. Where a stream says that it was trimmed past what has been read of it, the first record that is there again closes a [`Hole`].
//!
//! # Order
//! Records of a shard stay in the order of their numbers. Shards stay in the order in which the reader first handed something of them over: a reader hands over the whole of a shard that was split or merged before what came of it, so
//! whoever reads a segment shard by shard in this order sees what a reader of the stream may have seen.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use schemas::TableName;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use streams::Batch;

use crate::error::Error;
use crate::gap::{Hole, reaches};

/// What a record weighs besides its data.
const RECORD_BYTES: usize = 96;
/// How much more a progress record weighs parsed than as text, and with it: names and numbers become strings of their own, in maps of maps.
const PARSED: usize = 4;

/// A progress record, as it stood in its stream.
#[derive(Debug, Clone)]
pub(crate) struct Tick {
    pub(crate) shard: ShardId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) data: Bytes,
    pub(crate) record: ProgressRecord,
}

impl Tick {
    fn bytes(&self) -> usize {
        self.data.len() * (1 + PARSED) + RECORD_BYTES
    }
}

/// The records of one shard in one segment.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    pub(crate) records: Vec<(SequenceNumber, Bytes)>,
}

/// What a segment is made of.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) ticks: Vec<Tick>,
    pub(crate) runs: Vec<Run>,
    /// Holes that lie before its records.
    pub(crate) holes: Vec<Hole>,
    /// Where shards count as read, see [`Collector::end`].
    pub(crate) ended: ShardPositions,
    /// It ends within a tick.
    pub(crate) within: bool,
}

#[derive(Debug)]
struct Shard {
    stream: StreamName,
    id: ShardId,
    waiting: VecDeque<(SequenceNumber, Bytes)>,
    /// How many of them, from the first on, a complete tick covers.
    due: usize,
    /// The greatest number read, or archived before.
    read: Option<SequenceNumber>,
    /// The number up to which nothing more comes.
    ended: Option<SequenceNumber>,
    /// What follows `read` has been trimmed; the next record closes a hole.
    trimmed: bool,
}

fn weight((_, data): &(SequenceNumber, Bytes)) -> usize {
    data.len() + RECORD_BYTES
}

impl Shard {
    fn has(&self, sequence: &SequenceNumber) -> bool {
        [&self.read, &self.ended].into_iter().flatten().any(|read| read >= sequence)
    }

    /// Notes that a record is read; `false`: it has been before. Answers the hole that it closes as well.
    fn advance(&mut self, sequence: &SequenceNumber) -> (bool, Option<Hole>) {
        if self.read.as_ref().is_some_and(|read| sequence <= read) {
            return (false, None);
        }
        let after = self.read.replace(sequence.clone());
        let trimmed = std::mem::take(&mut self.trimmed) && after.as_ref().is_none_or(|after| !reaches(after, sequence));
        let hole = || Hole { stream: self.stream.clone(), shard: self.id.clone(), after, next: sequence.clone() };
        (true, trimmed.then(hole))
    }
}

/// A shard that the first waiting progress record is ahead of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    pub(crate) read: Option<SequenceNumber>,
    /// Where that record says that the shard stood, …
    pub(crate) named: SequenceNumber,
    /// … and the greatest number that any that waits does.
    pub(crate) greatest: SequenceNumber,
}

#[derive(Debug)]
pub(crate) struct Collector {
    source: String,
    /// A stream that no record speaks of, archived as it comes.
    beside: Option<StreamName>,
    shards: Vec<Shard>,
    places: HashMap<(StreamName, ShardId), usize>,
    ticks: VecDeque<Tick>,
    /// How many of them, from the first on, are complete.
    complete: usize,
    holes: Vec<Hole>,
    /// Of all event records that wait.
    event_bytes: usize,
    /// Of those that are due, and of the complete ticks.
    due_bytes: usize,
    /// Of the ticks that are not complete.
    waiting_bytes: usize,
}

impl Collector {
    /// Goes on where an archive ends: `archived` and `ended` are its last segment's.
    pub(crate) fn new(source: &str, beside: Option<StreamName>, archived: &ShardPositions, ended: &ShardPositions) -> Self {
        let mut collector = Self {
            source: source.to_owned(),
            beside,
            shards: Vec::new(),
            places: HashMap::new(),
            ticks: VecDeque::new(),
            complete: 0,
            holes: Vec::new(),
            event_bytes: 0,
            due_bytes: 0,
            waiting_bytes: 0,
        };
        let places = |positions: &ShardPositions| -> Vec<(StreamName, ShardId, SequenceNumber)> {
            let shards = positions.iter().flat_map(|(stream, shards)| shards.iter().map(move |place| (stream, place)));
            shards.map(|(stream, (shard, sequence))| (stream.clone(), shard.clone(), sequence.clone())).collect()
        };
        for (stream, shard, sequence) in places(archived) {
            collector.shard(&stream, &shard).read = Some(sequence);
        }
        for (stream, shard, sequence) in places(ended) {
            collector.shard(&stream, &shard).ended = Some(sequence);
        }
        collector
    }

    fn shard(&mut self, stream: &StreamName, shard: &ShardId) -> &mut Shard {
        let place = *self.places.entry((stream.clone(), shard.clone())).or_insert_with(|| {
            self.shards.push(Shard {
                stream: stream.clone(),
                id: shard.clone(),
                waiting: VecDeque::new(),
                due: 0,
                read: None,
                ended: None,
                trimmed: false,
            });
            self.shards.len() - 1
        });
        &mut self.shards[place]
    }

    fn known(&self, stream: &StreamName, shard: &ShardId) -> Option<&Shard> {
        self.places.get(&(stream.clone(), shard.clone())).map(|place| &self.shards[*place])
    }

    /// Takes in records of an event stream. What has been read before, as after a reader was made anew, is passed over.
    pub(crate) fn events(&mut self, batch: Batch) {
        let shard = self.shard(&batch.stream, &batch.shard);
        let (mut bytes, mut holes) = (0, Vec::new());
        for record in batch.records {
            let (is_new, hole) = shard.advance(&record.0);
            holes.extend(hole);
            if is_new {
                bytes += weight(&record);
                shard.waiting.push_back(record);
            }
        }
        self.event_bytes += bytes;
        self.holes.extend(holes);
    }

    /// Takes in progress records. Answers the event streams that they speak of.
    pub(crate) fn progress(&mut self, batch: Batch) -> Result<Vec<StreamName>, Error> {
        let mut streams = Vec::new();
        for (sequence, data) in batch.records {
            let (is_new, hole) = self.shard(&batch.stream, &batch.shard).advance(&sequence);
            self.holes.extend(hole);
            if !is_new {
                continue;
            }
            let record: ProgressRecord = serde_json::from_slice(&data).map_err(|error| Error::ProgressRecord {
                stream: batch.stream.clone(),
                sequence: sequence.clone(),
                what: error.to_string(),
            })?;
            if record.source != self.source {
                return Err(Error::StreamOfOtherSource { found: record.source, expected: self.source.clone() });
            }
            streams.extend(record.positions.keys().cloned());
            let tick = Tick { shard: batch.shard.clone(), sequence, data, record };
            self.waiting_bytes += tick.bytes();
            self.ticks.push_back(tick);
        }
        streams.sort();
        streams.dedup();
        Ok(streams)
    }

    /// Takes note that what followed in a shard has been trimmed.
    pub(crate) fn trimmed(&mut self, stream: &StreamName, shard: &ShardId) {
        self.shard(stream, shard).trimmed = true;
    }

    /// Takes note that nothing comes of a shard up to a number that progress records name.
    pub(crate) fn end(&mut self, stream: &StreamName, shard: &ShardId, named: SequenceNumber) {
        let shard = self.shard(stream, shard);
        if !shard.has(&named) {
            shard.ended = Some(named);
        }
    }

    /// The shards that the first incomplete tick waits for.
    pub(crate) fn waits_for(&self) -> Vec<Behind> {
        let mut waiting = self.ticks.iter().skip(self.complete);
        let Some(first) = waiting.next() else { return Vec::new() };
        let mut behind: Vec<Behind> = named(&first.record)
            .filter(|(stream, shard, sequence)| !self.known(stream, shard).is_some_and(|shard| shard.has(sequence)))
            .map(|(stream, shard, sequence)| Behind {
                stream: stream.clone(),
                shard: shard.clone(),
                read: self.known(stream, shard).and_then(|shard| shard.read.clone()),
                named: sequence.clone(),
                greatest: sequence.clone(),
            })
            .collect();
        for tick in waiting {
            for behind in &mut behind {
                let place = tick.record.positions.get(&behind.stream).and_then(|shards| shards.get(&behind.shard));
                if let Some(place) = place.filter(|place| **place > behind.greatest) {
                    behind.greatest = place.clone();
                }
            }
        }
        behind
    }

    /// Looks which records are complete by now. Answers whether any is.
    pub(crate) fn advance(&mut self) -> bool {
        while let Some(tick) = self.ticks.get(self.complete) {
            let read = |(stream, shard, sequence): (&StreamName, &ShardId, &SequenceNumber)| {
                self.known(stream, shard).is_some_and(|shard| shard.has(sequence))
            };
            if !named(&tick.record).all(read) {
                break;
            }
            self.waiting_bytes -= tick.bytes();
            self.due_bytes += tick.bytes();
            for (stream, shard, sequence) in named(&tick.record) {
                let Some(place) = self.places.get(&(stream.clone(), shard.clone())) else { continue };
                let shard = &mut self.shards[*place];
                while let Some(record) = shard.waiting.get(shard.due).filter(|(number, _)| number <= sequence) {
                    self.due_bytes += weight(record);
                    shard.due += 1;
                }
            }
            self.complete += 1;
        }
        self.complete > 0
    }

    /// What the next segment would hold, before compression.
    pub(crate) fn due_bytes(&self) -> usize {
        self.due_bytes
    }

    /// Event records in memory.
    pub(crate) fn held_bytes(&self) -> usize {
        self.event_bytes
    }

    /// Progress records in memory that are not complete.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether any progress record waits for its events.
    pub(crate) fn is_waiting(&self) -> bool {
        self.complete < self.ticks.len()
    }

    /// The commit time of the first tick that is in no segment.
    pub(crate) fn first_commit_time_ms(&self) -> Option<i64> {
        self.ticks.front().map(|tick| tick.record.commit_time_ms)
    }

    /// Events that progress records speak of and that are in no segment, by table, with the commit time of the first of these records.
    pub(crate) fn waiting(&self) -> BTreeMap<TableName, (u64, i64)> {
        let mut waiting = BTreeMap::new();
        for tick in &self.ticks {
            for (table, count) in tick.record.counts.iter().chain(&tick.record.reread_counts) {
                waiting.entry(table.clone()).or_insert((0, tick.record.commit_time_ms)).0 += count;
            }
        }
        waiting
    }

    /// Where each shard has been read up to, of one stream.
    pub(crate) fn read(&self, stream: &StreamName) -> streams::Positions {
        let shards = self.shards.iter().filter(|shard| shard.stream == *stream);
        shards.filter_map(|shard| Some((shard.id.clone(), shard.read.clone()?))).collect()
    }

    /// Takes the complete ticks out, with everything up to where they end.
    pub(crate) fn cut(&mut self) -> Cut {
        let beside = self.beside.clone();
        self.take(false, |shard| if Some(&shard.stream) == beside.as_ref() { shard.waiting.len() } else { shard.due })
    }

    /// Takes everything out that has been read, in the middle of a tick.
    pub(crate) fn cut_within(&mut self) -> Cut {
        self.take(true, |shard| shard.waiting.len())
    }

    fn take(&mut self, within: bool, count: impl Fn(&Shard) -> usize) -> Cut {
        let ticks: Vec<Tick> = self.ticks.drain(..self.complete).collect();
        (self.complete, self.due_bytes) = (0, 0);
        let (mut runs, mut ended) = (Vec::new(), ShardPositions::new());
        for shard in &mut self.shards {
            let count = count(shard);
            shard.due = 0;
            if count > 0 {
                let records: Vec<_> = shard.waiting.drain(..count).collect();
                self.event_bytes -= records.iter().map(weight).sum::<usize>();
                runs.push(Run { stream: shard.stream.clone(), shard: shard.id.clone(), records });
            }
            // What has been read since says more.
            if let Some(sequence) = shard.ended.clone().filter(|ended| shard.read.as_ref().is_none_or(|read| read < ended)) {
                ended.entry(shard.stream.clone()).or_default().insert(shard.id.clone(), sequence);
            }
        }
        let mut cut = Cut { ticks, runs, holes: Vec::new(), ended, within };
        let taken = |hole: &mut Hole| {
            let record = |run: &Run| {
                run.stream == hole.stream && run.shard == hole.shard && run.records.iter().any(|(number, _)| *number == hole.next)
            };
            cut.runs.iter().any(record) || cut.ticks.iter().any(|tick| tick.shard == hole.shard && tick.sequence == hole.next)
        };
        cut.holes = self.holes.extract_if(.., taken).collect();
        cut
    }
}

/// Where a record says that each shard stood.
fn named(record: &ProgressRecord) -> impl Iterator<Item = (&StreamName, &ShardId, &SequenceNumber)> {
    let shards = record.positions.iter().flat_map(|(stream, shards)| shards.iter().map(move |place| (stream, place)));
    shards.map(|(stream, (shard, sequence))| (stream, shard, sequence))
}

/// The greatest of each shard.
pub(crate) fn ends(cut: &Cut, progress_stream: &StreamName, positions: &mut ShardPositions) {
    for run in &cut.runs {
        if let Some((sequence, _)) = run.records.last() {
            positions.entry(run.stream.clone()).or_default().insert(run.shard.clone(), sequence.clone());
        }
    }
    for tick in &cut.ticks {
        let shards: &mut BTreeMap<_, _> = positions.entry(progress_stream.clone()).or_default();
        shards.insert(tick.shard.clone(), tick.sequence.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use schemas::progress::Phase;

    use super::*;

    fn name(text: &str) -> StreamName {
        StreamName(text.into())
    }

    fn shard(n: u8) -> ShardId {
        ShardId(n.to_string())
    }

    fn batch(stream: &str, of: u8, numbers: std::ops::RangeInclusive<u64>) -> Batch {
        let records = numbers.map(|number| (SequenceNumber::from(number), Bytes::from_static(b"x"))).collect();
        Batch { stream: name(stream), shard: shard(of), records }
    }

    fn tick(number: u64, positions: &[(u8, u64)]) -> Batch {
        let shards = positions.iter().map(|(of, number)| (shard(*of), SequenceNumber::from(*number))).collect();
        let record = ProgressRecord {
            source: "shop".into(),
            epoch: 1,
            phase: Phase::Tail,
            from_lsn: Lsn::ZERO,
            to_lsn: Lsn::ZERO,
            commit_time_ms: 0,
            counts: BTreeMap::new(),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: [(name("events"), shards)].into(),
        };
        let data = serde_json::to_vec(&record).unwrap().into();
        Batch { stream: name("progress"), shard: shard(0), records: vec![(SequenceNumber::from(number), data)] }
    }

    fn numbers(cut: &Cut) -> Vec<(String, Vec<u64>)> {
        let number = |(sequence, _): &(SequenceNumber, Bytes)| sequence.to_u64().unwrap();
        cut.runs.iter().map(|run| (run.shard.0.clone(), run.records.iter().map(number).collect())).collect()
    }

    fn collector(source: &str, archived: &ShardPositions) -> Collector {
        Collector::new(source, None, archived, &ShardPositions::new())
    }

    #[test]
    fn a_cut_holds_whole_ticks_and_leaves_the_rest() {
        let mut collector = collector("shop", &ShardPositions::new());
        assert_eq!(collector.progress(tick(1, &[(2, 2), (1, 1)])).unwrap(), [name("events")]);
        collector.events(batch("events", 2, 1..=4));
        assert!(!collector.advance());
        collector.events(batch("events", 1, 1..=1));
        assert!(collector.advance());
        collector.progress(tick(2, &[(2, 3), (1, 2)])).unwrap();
        assert!(collector.advance());
        let cut = collector.cut();
        assert_eq!((numbers(&cut), cut.ticks.len()), (vec![("2".into(), vec![1, 2]), ("1".into(), vec![1])], 1));
        // Read again, as by a new reader: nothing comes twice.
        collector.events(batch("events", 2, 1..=5));
        collector.events(batch("events", 1, 1..=2));
        assert!(collector.advance());
        assert_eq!(numbers(&collector.cut()), [("2".into(), vec![3]), ("1".into(), vec![2])]);
        let rest = collector.cut_within();
        assert_eq!((numbers(&rest), rest.ticks.len(), collector.held_bytes()), (vec![("2".into(), vec![4, 5])], 0, 0));
    }

    #[test]
    fn it_goes_on_where_the_archive_ends() {
        let archived = [(name("events"), [(shard(1), SequenceNumber::from(7))].into())].into();
        let mut collector = collector("shop", &archived);
        collector.progress(tick(9, &[(1, 5)])).unwrap();
        collector.events(batch("events", 1, 6..=8));
        assert!(collector.advance());
        let cut = collector.cut();
        assert_eq!((cut.ticks.len(), cut.runs.len()), (1, 0));
        let mut positions = archived;
        ends(&cut, &name("progress"), &mut positions);
        assert_eq!(positions[&name("progress")][&shard(0)], SequenceNumber::from(9));
        assert_eq!(positions[&name("events")][&shard(1)], SequenceNumber::from(7));
        assert_eq!(collector.read(&name("events"))[&shard(1)], SequenceNumber::from(8));
    }

    #[test]
    fn foreign_records_are_refused() {
        let mut collector = collector("other", &ShardPositions::new());
        let error = collector.progress(tick(1, &[])).unwrap_err();
        assert!(matches!(error, Error::StreamOfOtherSource { .. }), "{error}");
        let mut wrong = tick(2, &[]);
        wrong.records[0].1 = Bytes::from_static(b"{}");
        assert!(collector.progress(wrong).unwrap_err().to_string().contains("record 2: not a progress record"));
    }

    #[test]
    fn a_shard_that_ends_early_holds_nothing_up() {
        let mut collector = collector("shop", &ShardPositions::new());
        collector.progress(tick(1, &[(1, 2), (2, 7)])).unwrap();
        collector.progress(tick(2, &[(1, 3), (2, 9)])).unwrap();
        collector.events(batch("events", 1, 1..=3));
        collector.events(batch("events", 2, 1..=4));
        assert!(!collector.advance());
        let [behind] = &collector.waits_for()[..] else { panic!() };
        let numbers = [&behind.read.clone().unwrap(), &behind.named, &behind.greatest].map(|number| number.to_u64().unwrap());
        assert_eq!((behind.shard.clone(), numbers), (shard(2), [4, 7, 9]));
        collector.end(&behind.stream.clone(), &shard(2), behind.greatest.clone());
        assert!(collector.advance() && collector.waits_for().is_empty());
        let cut = collector.cut();
        assert_eq!((cut.ticks.len(), cut.holes.len()), (2, 0));
        assert_eq!(cut.ended[&name("events")], [(shard(2), SequenceNumber::from(9))].into());
        // The archive goes on with it.
        let mut next = Collector::new("shop", None, &ShardPositions::new(), &cut.ended);
        next.progress(tick(3, &[(2, 9)])).unwrap();
        assert!(next.advance() && next.read(&name("events")).is_empty());
    }

    #[test]
    fn the_first_record_after_a_trim_closes_a_hole() {
        let archived =
            [(name("events"), [(shard(1), SequenceNumber::from(7)), (shard(2), SequenceNumber::from(7))].into())].into();
        let mut collector = collector("shop", &archived);
        collector.trimmed(&name("events"), &shard(1));
        collector.trimmed(&name("events"), &shard(2));
        collector.events(batch("events", 1, 20..=21));
        collector.events(batch("events", 2, 8..=9));
        collector.progress(tick(1, &[(2, 9)])).unwrap();
        assert!(collector.advance());
        assert_eq!(collector.cut().holes, [], "what it lies before is not in this cut");
        collector.progress(tick(2, &[(1, 21)])).unwrap();
        assert!(collector.advance());
        let (after, next) = (Some(SequenceNumber::from(7)), SequenceNumber::from(20));
        // Nothing lies between 7 and 8.
        assert_eq!(collector.cut().holes, [Hole { stream: name("events"), shard: shard(1), after, next }]);
    }

    #[test]
    fn what_waits_is_no_part_of_the_next_segment() {
        let mut collector = collector("shop", &ShardPositions::new());
        collector.events(batch("events", 1, 1..=100));
        for number in 1..=50 {
            collector.progress(tick(number, &[(1, 200 + number)])).unwrap();
        }
        assert!(!collector.advance() && collector.is_waiting());
        assert_eq!((collector.due_bytes(), collector.held_bytes()), (0, 100 * (1 + RECORD_BYTES)));
        assert!(collector.waiting_bytes() > 50 * 4 * 100, "{}", collector.waiting_bytes());
        collector.events(batch("events", 1, 101..=201));
        assert!(collector.advance());
        let one = collector.due_bytes();
        assert!(one > 201 * (1 + RECORD_BYTES) && one < 201 * (1 + RECORD_BYTES) + 2000, "{one}");
        let cut = collector.cut();
        assert_eq!((cut.ticks.len(), cut.runs[0].records.len(), collector.due_bytes(), collector.held_bytes()), (1, 201, 0, 0));
    }

    #[test]
    fn what_no_record_speaks_of_is_taken_as_it_comes() {
        let mut collector = Collector::new("shop", Some(name("dead")), &ShardPositions::new(), &ShardPositions::new());
        collector.events(batch("dead", 1, 1..=2));
        collector.events(batch("events", 1, 1..=2));
        assert_eq!(collector.cut().runs.iter().map(|run| run.stream.clone()).collect::<Vec<_>>(), [name("dead")]);
    }
}
