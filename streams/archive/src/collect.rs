//! What has been read of the streams and is not in the archive yet; pure.
//!
//! A progress record is *complete* when every shard has been read up to where the record says that it stood. A segment is cut where the last complete record says ([`Collector::cut`]): then it holds whole ticks and nothing of
//! the next one but what was published and is spoken of by no record yet. What has been read past the cut stays for the next segment.
//!
//! # Order
//! Records of a shard stay in the order of their numbers. Shards stay in the order in which the reader first handed something of them over: a reader hands over the whole of a shard that was split or merged before what came of it, so
//! whoever reads a segment shard by shard in this order sees what a reader of the stream may have seen.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use streams::Batch;

use crate::error::Error;

/// What a record weighs besides its data.
const RECORD_BYTES: usize = 96;

/// A progress record, as it stood in its stream.
#[derive(Debug, Clone)]
pub(crate) struct Tick {
    pub(crate) shard: ShardId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) data: Bytes,
    pub(crate) record: ProgressRecord,
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
    /// It ends within a tick.
    pub(crate) within: bool,
}

#[derive(Debug)]
struct Shard {
    stream: StreamName,
    id: ShardId,
    waiting: VecDeque<(SequenceNumber, Bytes)>,
    /// The greatest number read, or archived before.
    read: Option<SequenceNumber>,
}

#[derive(Debug)]
pub(crate) struct Collector {
    source: String,
    shards: Vec<Shard>,
    places: HashMap<(StreamName, ShardId), usize>,
    ticks: VecDeque<Tick>,
    /// How many of them, from the first on, are complete.
    complete: usize,
    bytes: usize,
}

impl Collector {
    /// Goes on where an archive ends.
    pub(crate) fn new(source: &str, archived: &ShardPositions) -> Self {
        let mut collector = Self {
            source: source.to_owned(),
            shards: Vec::new(),
            places: HashMap::new(),
            ticks: VecDeque::new(),
            complete: 0,
            bytes: 0,
        };
        for (stream, shards) in archived {
            for (shard, sequence) in shards {
                collector.shard(stream, shard).read = Some(sequence.clone());
            }
        }
        collector
    }

    fn shard(&mut self, stream: &StreamName, shard: &ShardId) -> &mut Shard {
        let place = *self.places.entry((stream.clone(), shard.clone())).or_insert_with(|| {
            self.shards.push(Shard { stream: stream.clone(), id: shard.clone(), waiting: VecDeque::new(), read: None });
            self.shards.len() - 1
        });
        &mut self.shards[place]
    }

    /// Takes in records of an event stream. What has been read before, as after a reader was made anew, is passed over.
    pub(crate) fn events(&mut self, batch: Batch) {
        let shard = self.shard(&batch.stream, &batch.shard);
        let mut bytes = 0;
        for (sequence, data) in batch.records {
            if shard.read.as_ref().is_none_or(|read| sequence > *read) {
                bytes += data.len() + RECORD_BYTES;
                shard.read = Some(sequence.clone());
                shard.waiting.push_back((sequence, data));
            }
        }
        self.bytes += bytes;
    }

    /// Takes in progress records. Answers the event streams that they speak of.
    pub(crate) fn progress(&mut self, batch: Batch) -> Result<Vec<StreamName>, Error> {
        let mut streams = Vec::new();
        for (sequence, data) in batch.records {
            let shard = self.shard(&batch.stream, &batch.shard);
            if shard.read.as_ref().is_some_and(|read| sequence <= *read) {
                continue;
            }
            shard.read = Some(sequence.clone());
            let record: ProgressRecord = serde_json::from_slice(&data).map_err(|error| Error::ProgressRecord {
                stream: batch.stream.clone(),
                sequence: sequence.clone(),
                what: error.to_string(),
            })?;
            if record.source != self.source {
                return Err(Error::StreamOfOtherSource { found: record.source, expected: self.source.clone() });
            }
            streams.extend(record.positions.keys().cloned());
            self.bytes += data.len() + RECORD_BYTES;
            self.ticks.push_back(Tick { shard: batch.shard.clone(), sequence, data, record });
        }
        streams.sort();
        streams.dedup();
        Ok(streams)
    }

    fn is_read(&self, record: &ProgressRecord) -> bool {
        let shards = record.positions.iter().flat_map(|(stream, shards)| shards.iter().map(move |place| (stream, place)));
        shards.into_iter().all(|(stream, (shard, sequence))| {
            let place = self.places.get(&(stream.clone(), shard.clone()));
            place.and_then(|place| self.shards[*place].read.as_ref()).is_some_and(|read| read >= sequence)
        })
    }

    /// Looks which records are complete by now. Answers whether any is.
    pub(crate) fn advance(&mut self) -> bool {
        while self.ticks.get(self.complete).is_some_and(|tick| self.is_read(&tick.record)) {
            self.complete += 1;
        }
        self.complete > 0
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Progress records that wait, complete or not.
    pub(crate) fn ticks(&self) -> usize {
        self.ticks.len()
    }

    /// Where each shard has been read up to, of one stream.
    pub(crate) fn read(&self, stream: &StreamName) -> streams::Positions {
        let shards = self.shards.iter().filter(|shard| shard.stream == *stream);
        shards.filter_map(|shard| Some((shard.id.clone(), shard.read.clone()?))).collect()
    }

    /// Takes the complete ticks out, with everything up to where they end.
    pub(crate) fn cut(&mut self) -> Cut {
        let mut ends = ShardPositions::new();
        for (stream, shards) in self.ticks.iter().take(self.complete).flat_map(|tick| &tick.record.positions) {
            let ends = ends.entry(stream.clone()).or_default();
            for (shard, sequence) in shards {
                if ends.get(shard).is_none_or(|end| end < sequence) {
                    ends.insert(shard.clone(), sequence.clone());
                }
            }
        }
        self.take(|shard| {
            let end = ends.get(&shard.stream).and_then(|shards| shards.get(&shard.id));
            end.map_or(0, |end| shard.waiting.partition_point(|(sequence, _)| sequence <= end))
        })
    }

    /// Takes everything out that has been read, in the middle of a tick.
    pub(crate) fn cut_within(&mut self) -> Cut {
        Cut { within: true, ..self.take(|shard| shard.waiting.len()) }
    }

    fn take(&mut self, count: impl Fn(&Shard) -> usize) -> Cut {
        let ticks: Vec<Tick> = self.ticks.drain(..self.complete).collect();
        self.complete = 0;
        let mut runs = Vec::new();
        for shard in &mut self.shards {
            let count = count(shard);
            if count > 0 {
                let records = shard.waiting.drain(..count).collect();
                runs.push(Run { stream: shard.stream.clone(), shard: shard.id.clone(), records });
            }
        }
        let data = runs.iter().flat_map(|run| &run.records).map(|(_, data)| data).chain(ticks.iter().map(|tick| &tick.data));
        self.bytes -= data.map(|data| data.len() + RECORD_BYTES).sum::<usize>();
        Cut { ticks, runs, within: false }
    }
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

    #[test]
    fn a_cut_holds_whole_ticks_and_leaves_the_rest() {
        let mut collector = Collector::new("shop", &ShardPositions::new());
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
        assert_eq!((numbers(&rest), rest.ticks.len(), collector.bytes()), (vec![("2".into(), vec![4, 5])], 0, 0));
    }

    #[test]
    fn it_goes_on_where_the_archive_ends() {
        let archived = [(name("events"), [(shard(1), SequenceNumber::from(7))].into())].into();
        let mut collector = Collector::new("shop", &archived);
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
        let mut collector = Collector::new("other", &ShardPositions::new());
        let error = collector.progress(tick(1, &[])).unwrap_err();
        assert!(matches!(error, Error::StreamOfOtherSource { .. }), "{error}");
        let mut wrong = tick(2, &[]);
        wrong.records[0].1 = Bytes::from_static(b"{}");
        assert!(collector.progress(wrong).unwrap_err().to_string().contains("record 2: not a progress record"));
    }
}
