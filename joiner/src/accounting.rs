//! Accounting (INV-6): every event that the importer says it published is received, or reported missing by table, tick and position; one that it knows nothing of is told.
//!
//! # What is compared
//! A *tick* is what one progress record speaks of. Where its range begins at the frontier, the changes received in the range are, by table, exactly those that the record counts: repeats have the same identity and
//! are received once, and whatever the importer set aside it did not count. So each such tick is checked by itself, also where several are applied in one step: one event too few in a tick is not made up for by one too many in the
//! next. A record of a restarted importer may begin below the frontier; its counts then include what was applied, and proved, before, and cannot be told apart.
//!
//! Rows of the initial snapshot, and those of a table that is read again, are held against the sums of their load, because a record may speak of rows that were read before a restart. Such rows have no identity: one that comes twice counts twice, and may hide one that is missing of the same table and load.
//!
//! A progress record may stand in its stream more than once: where the answer to the request that put it there was lost, the importer sends it again. A copy of a tick lies below the frontier and is passed over. Of rows, a record is counted
//! only if it names a place beyond those that were named before: the rows that it counts were put behind its predecessor's places, so only a copy, however late it comes, names none.
//!
//! Fewer than published: the joiner stops in front of the tick, because what it would emit from there on is not the join of the source (INV-4). Of a first snapshot nothing has been emitted: it is told and passed over, for a newer one may follow. More than published: an event that the importer does not know of, of another producer or
//! published twice under different identities. That is told, and no reason to stop: a replaced importer may have published what its successor sets aside under a later contract.
//!
//! # Where it must have been
//! See [`crate::inputs`]. A record that is no event may stand for any event of its stream in the tick: so many events fewer are not missing, they are dead letters.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use schemas::progress::{ProgressRecord, SequenceNumber, ShardId, StreamName};
use schemas::value::Value;
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};

use crate::catalog::TableId;
use crate::inputs::{Place, Stretches};

/// Records of no known table that are remembered of a shard until a progress record covers them.
const UNKNOWN: usize = 1000;
/// 1970-01-01, in days since 0001-01-01.
const DAYS_BEFORE_1970: i64 = 719_162;

/// A table of which not as many events were received in a tick as the importer published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Miscount {
    pub table: TableName,
    /// Exclusive; equal to `to_lsn` for rows that were read from the table.
    pub from_lsn: Lsn,
    /// Inclusive.
    pub to_lsn: Lsn,
    /// Commit time of `to_lsn`, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
    pub published: u64,
    pub received: u64,
    /// Where the events of the tick stand; only those stretches that lack numbers, if these explain what is missing.
    pub places: Vec<Place>,
}

impl Miscount {
    pub const fn is_missing(&self) -> bool {
        self.received < self.published
    }

    fn new(tick: &Tick, table: &TableName, stream: &StreamName, published: u64, received: u64) -> Self {
        let of_stream: Vec<&Place> = tick.stretches.places.iter().filter(|place| place.stream == *stream).collect();
        let numbers = |place: &&&Place| place.removed.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        let explained: u64 = of_stream.iter().map(|place| numbers(&place)).sum();
        let exact = received < published && explained >= published - received;
        let places = of_stream.into_iter().filter(|place| !exact || numbers(&place) > 0).cloned().collect();
        let (from_lsn, to_lsn, commit_time_ms) = (tick.from, tick.to, tick.commit_time_ms);
        Self { table: table.clone(), from_lsn, to_lsn, commit_time_ms, published, received, places }
    }
}

impl fmt::Display for Miscount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, from_lsn, to_lsn, commit_time_ms, published, received, places } = self;
        write!(f, "of {table} in ({from_lsn}, {to_lsn}]")?;
        if *commit_time_ms > 0 {
            write!(f, " (committed {})", utc(*commit_time_ms))?;
        }
        write!(f, " the importer published {published} events and {received} have been received")?;
        for (nth, place) in places.iter().enumerate() {
            f.write_str(if nth == 0 { ": " } else { ", or " })?;
            if !self.is_missing() || place.removed.is_empty() {
                match &place.after {
                    Some(after) => write!(f, "between {after} (exclusive) and {}", place.to)?,
                    None => write!(f, "up to {}", place.to)?,
                }
            } else {
                let runs: Vec<String> = place.removed.iter().map(run).collect();
                write!(f, "{}, which no record has,", runs.join(" and "))?;
            }
            write!(f, " in shard {} of stream {}", place.shard, place.stream)?;
        }
        Ok(())
    }
}

fn run(&(first, last): &(u64, u64)) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

fn utc(ms: i64) -> String {
    let days = u32::try_from(ms.div_euclid(86_400_000) + DAYS_BEFORE_1970).unwrap_or_default();
    let ticks = ms.rem_euclid(86_400_000).cast_unsigned() * 10_000;
    let mut text = Vec::new();
    Value::DateTimeOffset { days, ticks, scale: 3, offset_minutes: 0 }.write_json(&mut text);
    String::from_utf8_lossy(&text).trim_matches('"').to_owned()
}

/// Several of them, in one sentence.
pub(crate) fn listed(miscounts: &[Miscount]) -> String {
    miscounts.iter().map(Miscount::to_string).collect::<Vec<_>>().join("; ")
}

/// What a progress record speaks of, to be held against what was received.
#[derive(Debug)]
pub(crate) struct Tick {
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    commit_time_ms: i64,
    counts: BTreeMap<TableName, u64>,
    /// Whether the range begins where the one before ended.
    exact: bool,
    stretches: Stretches,
}

impl Tick {
    pub(crate) fn new(record: &ProgressRecord, frontier: Lsn, stretches: Stretches) -> Self {
        Self {
            from: record.from_lsn,
            to: record.to_lsn,
            commit_time_ms: record.commit_time_ms,
            counts: record.counts.clone(),
            exact: record.from_lsn == frontier,
            stretches,
        }
    }
}

/// The tables that are received, and the streams that they come in.
#[derive(Debug)]
pub(crate) struct Books {
    /// By table.
    pub(crate) tables: Vec<(TableName, StreamName)>,
}

impl Books {
    /// Holds what was received in a tick, by table, against what was published.
    pub(crate) fn check(&self, tick: &Tick, received: &[u64]) -> Vec<Miscount> {
        let mut found = Vec::new();
        for ((table, stream), &received) in self.tables.iter().zip(received).filter(|_| tick.exact) {
            let published = tick.counts.get(table).copied().unwrap_or_default();
            let unknown = tick.stretches.unknown.get(stream).copied().unwrap_or_default();
            if received + unknown < published || received > published {
                found.push(Miscount::new(tick, table, stream, published, received));
            }
        }
        found
    }

    /// Rows of a table that were read, and are fewer than the sum of those published. `unknown`: dead letters that may be some of them.
    pub(crate) fn rows(&self, tick: &Tick, table: TableId, published: u64, received: u64, unknown: u64) -> Option<Miscount> {
        let (name, stream) = &self.tables[table];
        (received + unknown < published).then(|| Miscount::new(tick, name, stream, published, received))
    }
}

/// Records of no known table that no progress record has covered, by stream and shard. Part of the standing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Unknown {
    shards: BTreeMap<StreamName, BTreeMap<ShardId, VecDeque<SequenceNumber>>>,
    /// Those past the bound.
    #[serde(default)]
    beyond: BTreeMap<StreamName, BTreeMap<ShardId, Beyond>>,
}

/// Records of a shard of which only the number is remembered: any tick that covers the shard from the first of them on, up to the last, may lack all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Beyond {
    first: SequenceNumber,
    last: SequenceNumber,
    count: u64,
}

impl Unknown {
    /// Those that are read again after a restart are known already.
    pub(crate) fn add(&mut self, stream: &StreamName, shard: &ShardId, sequence: SequenceNumber) {
        let known = self.shards.entry(stream.clone()).or_default().entry(shard.clone()).or_default();
        let beyond = self.beyond.entry(stream.clone()).or_default();
        let last = known.back().max(beyond.get(shard).map(|beyond| &beyond.last));
        if last.is_some_and(|last| *last >= sequence) {
            return;
        }
        if known.len() < UNKNOWN {
            known.push_back(sequence);
        } else {
            let first = sequence.clone();
            let beyond = beyond.entry(shard.clone()).or_insert(Beyond { first, last: sequence.clone(), count: 0 });
            beyond.last = sequence;
            beyond.count += 1;
        }
    }

    /// How many a progress record covers that says where the shard stood: at most, where the bound was passed.
    pub(crate) fn cover(&mut self, stream: &StreamName, shard: &ShardId, to: &SequenceNumber) -> u64 {
        let Some(known) = self.shards.get_mut(stream).and_then(|shards| shards.get_mut(shard)) else { return 0 };
        let covered = known.partition_point(|sequence| sequence <= to);
        known.drain(..covered);
        let beyond = self.beyond.get_mut(stream).filter(|shards| shards.get(shard).is_some_and(|beyond| beyond.first <= *to));
        let count = beyond.map_or(0, |shards| {
            let count = shards.get(shard).map_or(0, |beyond| beyond.count);
            shards.retain(|of, beyond| of != shard || beyond.last > *to);
            count
        });
        covered as u64 + count
    }

    pub(crate) fn count(&self) -> u64 {
        let known = self.shards.values().flat_map(BTreeMap::values).map(VecDeque::len).sum::<usize>();
        known as u64 + self.beyond.values().flat_map(BTreeMap::values).map(|beyond| beyond.count).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn number(n: u64) -> SequenceNumber {
        SequenceNumber::from(n)
    }

    #[test]
    fn a_report_says_when_and_where() {
        let place = |shard: &str, removed: &[(u64, u64)]| Place {
            stream: StreamName("p.events".into()),
            shard: ShardId(shard.into()),
            after: Some(number(10)),
            to: number(20),
            removed: removed.to_vec(),
        };
        let lsn = |n| Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
        let (from, to) = (lsn(1), lsn(2));
        let stretches = Stretches { places: vec![place("a", &[]), place("b", &[(12, 12), (14, 15)])], ..Stretches::default() };
        let mut tick = Tick { from, to, commit_time_ms: 1_760_000_000_123, counts: BTreeMap::new(), exact: true, stretches };
        let table = TableName::new("dbo", "orders");
        let told = |tick: &Tick, published, received| {
            Miscount::new(tick, &table, &StreamName("p.events".into()), published, received).to_string()
        };
        let head = format!("of dbo.orders in ({from}, {to}] (committed 2025-10-09T08:53:20.123+00:00) the importer published");
        assert_eq!(
            told(&tick, 9, 6),
            format!(
                "{head} 9 events and 6 have been received: 12 and 14 to 15, which no record has, in shard b of stream p.events"
            )
        );
        let somewhere = "between 10 (exclusive) and 20 in shard a of stream p.events, or between 10 (exclusive) and 20 in shard b of stream p.events";
        assert_eq!(told(&tick, 6, 7), format!("{head} 6 events and 7 have been received: {somewhere}"));
        tick.stretches.places.truncate(1);
        (tick.stretches.places[0].after, tick.commit_time_ms) = (None, 0);
        assert_eq!(
            told(&tick, 9, 6),
            format!(
                "of dbo.orders in ({from}, {to}] the importer published 9 events and 6 have been received: up to 20 in shard a of stream p.events"
            )
        );
    }

    #[test]
    fn what_is_no_event_counts_in_the_tick_that_covers_it() {
        let (stream, shard) = (StreamName("s".into()), ShardId("0".into()));
        let mut unknown = Unknown::default();
        [3, 5, 5, 4, 9].into_iter().for_each(|n| unknown.add(&stream, &shard, number(n)));
        assert_eq!(unknown.count(), 3);
        assert_eq!(unknown.cover(&stream, &shard, &number(2)), 0);
        assert_eq!(unknown.cover(&stream, &shard, &number(5)), 2);
        assert_eq!(unknown.cover(&stream, &ShardId("1".into()), &number(9)), 0);
        (0..2000).for_each(|n| unknown.add(&stream, &shard, number(100 + n)));
        // Read again.
        unknown.add(&stream, &shard, number(2000));
        assert_eq!(unknown.count(), 2001);
        let text = serde_json::to_string(&unknown).unwrap();
        assert_eq!(serde_json::from_str::<Unknown>(&text).unwrap(), unknown);
        // 9 and 100 to 1098 are known one by one, 1099 to 2099 by their number.
        assert_eq!(unknown.cover(&stream, &shard, &number(1098)), 1000);
        unknown.add(&stream, &shard, number(3000));
        assert_eq!(unknown.cover(&stream, &shard, &number(1099)), 1001);
        assert_eq!(unknown.cover(&stream, &shard, &number(2099)), 1001);
        assert_eq!((unknown.cover(&stream, &shard, &number(2999)), unknown.count()), (0, 1));
        assert_eq!((unknown.cover(&stream, &shard, &number(3000)), unknown.count()), (1, 0));
    }
}
