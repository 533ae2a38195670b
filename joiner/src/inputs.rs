//! What has been read of each shard of the event streams, how far its stored position may go, and which stretch of it a progress record covers.
//!
//! # Stored positions
//! A shard's stored position never passes a change that is not applied: of the batches read from it, in order, those whose changes all lie at or below the frontier are behind it. After a
//! restart the rest are read again, and what the frontier covers is dropped as a duplicate. Snapshot rows are written when they are read, with the position behind them.
//!
//! # Stretches
//! The importer appends the events of a range after the record of the range before, and waits for them before it appends their own record. So what a record speaks of stands, in each shard, behind where
//! its predecessor stood and not behind where it stands itself: that stretch is where an event that the counts miss must have been. Where numbers follow by counting, those that no record came with say it
//! exactly ([`streams::embedded::removed_between`]).

use std::collections::{BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use schemas::Lsn;
use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use serde::Serialize;
use streams::Batch;
use streams::embedded::removed_between;

use crate::buffer::Change;
use crate::reread::{self, Covered};
use crate::state::meta::SourceStanding;

/// Removed runs of numbers that are remembered of a shard until a record covers them.
const REMOVED: usize = 64;

/// A stretch of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub stream: StreamName,
    pub shard: ShardId,
    /// It begins behind this record; none: at the shard's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<SequenceNumber>,
    /// Its last record.
    pub to: SequenceNumber,
    /// The numbers in it that no record has, first and last of each run; empty where numbers do not follow by counting, or none is left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<(u64, u64)>,
}

/// What a progress record covers, beyond what its predecessor did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stretches {
    pub(crate) places: Vec<Place>,
    /// Records in them of which not even the table is known, by stream.
    pub(crate) unknown: HashMap<StreamName, u64>,
    /// How many rows in them were read again.
    pub(crate) rows: u64,
}

impl Stretches {
    /// Whether the record names nothing beyond its predecessors: rows that it counts have been counted, for it is a copy of one of them (see [`crate::accounting`]).
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

/// A batch that is not behind its shard's stored position yet.
#[derive(Debug)]
struct Received {
    last: SequenceNumber,
    /// The greatest commit LSN among its changes.
    greatest: Lsn,
    /// The number of the last row that was read again up to its end.
    rows: u64,
}

#[derive(Debug, Default)]
struct Shard {
    /// The shard's number, in the order in which they were first read.
    number: u16,
    read: Option<SequenceNumber>,
    batches: VecDeque<Received>,
    /// Counts the rows that were read again, and names those that no record has covered: where they stood, and their number.
    rows: u64,
    uncovered: VecDeque<(SequenceNumber, u64)>,
    /// Runs of numbers that no record came with, and that no record has covered.
    removed: VecDeque<(u64, u64)>,
}

impl Shard {
    fn note_removed(&mut self, runs: impl IntoIterator<Item = (u64, u64)>) {
        let room = REMOVED.saturating_sub(self.removed.len());
        self.removed.extend(runs.into_iter().take(room));
    }
}

/// The numbers between two records that follow one another, where they follow by counting.
fn between(last: &SequenceNumber, next: &SequenceNumber) -> Option<(u64, u64)> {
    let removed = removed_between(last.to_u64()?, next.to_u64()?)?;
    Some((*removed.start(), *removed.end()))
}

/// The numbers that no record came with, between the first and the last.
fn removed_within(records: &[(SequenceNumber, Bytes)]) -> Vec<(u64, u64)> {
    let number = |record: Option<&(SequenceNumber, Bytes)>| record.and_then(|(sequence, _)| sequence.to_u64());
    match (number(records.first()), number(records.last())) {
        (Some(first), Some(last)) if last.wrapping_sub(first).wrapping_add(1) != records.len() as u64 => {
            records.windows(2).filter_map(|pair| between(&pair[0].0, &pair[1].0)).take(REMOVED).collect()
        }
        _ => Vec::new(),
    }
}

/// What was read from a shard.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    first: SequenceNumber,
    last: SequenceNumber,
    /// Numbers between the two that no record came with.
    removed: Vec<(u64, u64)>,
    /// The greatest commit LSN among `changes`; zero when there are none.
    pub(crate) greatest: Lsn,
    pub(crate) changes: Vec<Change>,
    /// Where the rows among `changes` stood that were read again, one after another.
    pub(crate) rereads: Vec<SequenceNumber>,
}

impl Arrived {
    /// Of a batch, without what is in its records.
    pub(crate) fn of(batch: &Batch) -> Self {
        let end = |record: Option<&(SequenceNumber, Bytes)>| record.map_or(SequenceNumber::from(0), |(number, _)| number.clone());
        Self {
            stream: batch.stream.clone(),
            shard: batch.shard.clone(),
            first: end(batch.records.first()),
            last: end(batch.records.last()),
            removed: removed_within(&batch.records),
            greatest: Lsn::ZERO,
            changes: Vec::new(),
            rereads: Vec::new(),
        }
    }
}

/// All shards of a source that have been read.
#[derive(Debug)]
pub(crate) struct Inputs {
    streams: BTreeSet<StreamName>,
    shards: HashMap<(StreamName, ShardId), Shard>,
}

/// A shard that a progress record is ahead of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    pub(crate) read: Option<SequenceNumber>,
    /// Where the record says that the shard stood.
    pub(crate) named: SequenceNumber,
}

impl Inputs {
    pub(crate) fn new(streams: &BTreeSet<StreamName>) -> Self {
        Self { streams: streams.clone(), shards: HashMap::new() }
    }

    fn shard(&mut self, stream: &StreamName, shard: &ShardId) -> &mut Shard {
        let number = self.shards.len() as u16;
        self.shards.entry((stream.clone(), shard.clone())).or_insert_with(|| Shard { number, ..Shard::default() })
    }

    /// Takes note of what was read, and answers the changes in it that are not applied.
    pub(crate) fn take_in(&mut self, arrived: Arrived, positions: &ShardPositions, standing: &SourceStanding) -> Vec<Change> {
        let Arrived { stream, shard, first, last, removed, greatest, changes, rereads } = arrived;
        let of = |positions: &ShardPositions| positions.get(&stream).and_then(|shards| shards.get(&shard)).cloned();
        let (stored, covered) = (of(positions), of(&standing.covered));
        let entry = self.shard(&stream, &shard);
        let before = entry.read.take().or(stored);
        entry.note_removed(before.and_then(|last| between(&last, &first)).into_iter().chain(removed));
        let mut rereads = rereads.into_iter();
        let mut live = Vec::with_capacity(changes.len());
        for mut change in changes {
            let Some(reader) = reread::reader(&change.position) else {
                live.extend((change.position.commit_lsn > standing.frontier).then_some(change));
                continue;
            };
            if let Some(sequence) = rereads.next().filter(|sequence| covered.as_ref().is_none_or(|covered| sequence > covered)) {
                entry.rows += 1;
                entry.uncovered.push_back((sequence, entry.rows));
                change.position = reread::position(entry.number, entry.rows, reader);
                live.push(change);
            }
        }
        entry.read = Some(last.clone());
        entry.batches.push_back(Received { last, greatest, rows: entry.rows });
        live
    }

    /// Takes note that nothing more comes of a shard up to a number that a record names: what was there is gone.
    pub(crate) fn ends_before(&mut self, ended: &Behind, named: &SequenceNumber) {
        let entry = self.shard(&ended.stream, &ended.shard);
        let read = entry.read.as_ref().or(ended.read.as_ref());
        if read.is_some_and(|read| read >= named) {
            return;
        }
        let next = named.to_u64().and_then(|named| named.checked_add(1)).map(SequenceNumber::from);
        let gone = read.zip(next.as_ref()).and_then(|(last, next)| between(last, next));
        entry.note_removed(gone);
        entry.read = Some(named.clone());
    }

    /// The shards that have not been read up to where a record says that they stood.
    pub(crate) fn behind<'a>(
        &'a self,
        record: &'a ProgressRecord,
        stored: &'a ShardPositions,
    ) -> impl Iterator<Item = Behind> + 'a {
        let ours = record.positions.iter().filter(|(stream, _)| self.streams.contains(stream));
        let named = ours.flat_map(|(stream, shards)| shards.iter().map(move |(shard, named)| (stream, shard, named)));
        named.filter_map(move |(stream, shard, named)| {
            let read = self.shards.get(&(stream.clone(), shard.clone())).and_then(|shard| shard.read.as_ref());
            let read = read.or_else(|| stored.get(stream).and_then(|shards| shards.get(shard)));
            read.is_none_or(|read| read < named).then(|| Behind {
                stream: stream.clone(),
                shard: shard.clone(),
                read: read.cloned(),
                named: named.clone(),
            })
        })
    }

    /// Takes note of what a record covers. Rows that were read again and that it says had been published by then: this record, or none, puts them into the state.
    pub(crate) fn cover(&mut self, record: &ProgressRecord, standing: &mut SourceStanding) -> Stretches {
        let mut stretches = Stretches::default();
        for (stream, shards) in record.positions.iter().filter(|(stream, _)| self.streams.contains(stream)) {
            for (shard, to) in shards {
                let before = standing.covered.entry(stream.clone()).or_default();
                // A restarted importer may know of less than its predecessor said.
                if before.get(shard).is_some_and(|before| before >= to) {
                    continue;
                }
                let after = before.insert(shard.clone(), to.clone());
                let covered = after.as_ref().and_then(SequenceNumber::to_u64).unwrap_or_default();
                let mut removed = Vec::new();
                if let Some(read) = self.shards.get_mut(&(stream.clone(), shard.clone())) {
                    while read.uncovered.front().is_some_and(|(row, _)| row <= to) {
                        read.uncovered.pop_front();
                        stretches.rows += 1;
                    }
                    let number = to.to_u64().unwrap_or_default();
                    while let Some(run) = read.removed.pop_front_if(|(first, _)| *first <= number) {
                        // After a restart, what was covered may be read again.
                        removed.extend(Some(run).filter(|(_, last)| *last > covered));
                    }
                }
                let unknown = standing.unknown_read.cover(stream, shard, to);
                if unknown > 0 {
                    *stretches.unknown.entry(stream.clone()).or_default() += unknown;
                }
                stretches.places.push(Place { stream: stream.clone(), shard: shard.clone(), after, to: to.clone(), removed });
            }
        }
        stretches
    }

    /// The rows that have been covered.
    pub(crate) fn covered(&self) -> Covered {
        let mut covered = vec![0; self.shards.len()];
        for shard in self.shards.values() {
            covered[usize::from(shard.number)] = shard.uncovered.front().map_or(shard.rows, |(_, row)| row - 1);
        }
        Covered(covered)
    }

    /// Moves the stored positions as far as they may go.
    pub(crate) fn move_positions(&mut self, positions: &mut ShardPositions, standing: &SourceStanding) {
        for ((stream, shard), state) in &mut self.shards {
            let mut to = None;
            let uncovered = state.uncovered.front().map_or(u64::MAX, |(_, row)| *row);
            let behind = |batch: &Received| batch.greatest <= standing.frontier && batch.rows < uncovered;
            while let Some(batch) = state.batches.pop_front_if(|batch| behind(batch)) {
                to = Some(batch.last);
            }
            if let Some(to) = to {
                positions.entry(stream.clone()).or_default().insert(shard.clone(), to);
            }
        }
    }
}
