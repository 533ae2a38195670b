//! Whether what progress records promise is there (INV-6), by table and tick.
//!
//! The archive keeps going when something is missing, as nothing would be gained by keeping less: the segment's manifest says what is missing, and so do the log and a metric. (The joiner, whose entities
//! would be wrong, stops.)
//!
//! # What is compared
//! - A tail record that begins where the one before it ended: its counts against the distinct changes in its range, by identity (table, commit LSN, seqval, operation), because a restarted importer repeats.
//! - A record of the initial snapshot: the sum of its load's counts against the rows of the load; rows that come twice make up for none that is missing in another table, but may for one in the same.
//! - Rows that were read again: likewise, over all rereads.
//!
//! The rows that a record counts stand between its tick's positions and those before. A record that names none beyond those before is a copy (the importer sends a record again where the answer was lost): its rows have been counted.
//!
//! A record that could not be read may be any of those: as many may be missing as were not read.
//!
//! A record that overlaps what was archived, as a restarted importer's first one may, and one whose events are partly in a segment that an earlier process wrote, are not compared: what is distinct in them is not known any
//! more. Records of an importer that was replaced (a lower epoch) count nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::event::Op;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};

use crate::facts::Facts;

/// Events that a progress record promises and that are not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub table: TableName,
    /// The tick: after this LSN, …
    pub from_lsn: Lsn,
    /// … up to that.
    pub to_lsn: Lsn,
    pub published: u64,
    pub found: u64,
    /// Where the tick's records stand: in these shards, after the first position, up to the second.
    pub between: Vec<Between>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    pub stream: StreamName,
    pub shard: ShardId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SequenceNumber>,
    pub up_to: SequenceNumber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Rows {
    published: u64,
    found: u64,
}

impl Rows {
    /// What is missing, told once.
    fn settle(&mut self, unknown: u64) -> Option<Self> {
        let told = *self;
        (self.found + unknown < self.published).then(|| {
            self.published = self.found;
            told
        })
    }
}

/// Where a record's tick stands. `stood`: the positions that were named before; they go on to the record's.
pub(crate) fn between(stood: &mut ShardPositions, record: &ProgressRecord) -> Vec<Between> {
    let mut between = Vec::new();
    for (stream, shards) in &record.positions {
        let stood = stood.entry(stream.clone()).or_default();
        for (shard, up_to) in shards {
            let after = stood.get(shard).cloned();
            if after.as_ref().is_none_or(|after| after < up_to) {
                stood.insert(shard.clone(), up_to.clone());
                between.push(Between { stream: stream.clone(), shard: shard.clone(), after, up_to: up_to.clone() });
            }
        }
    }
    between
}

/// What has to be known of the archive so far; it is kept in the manifests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Account {
    epoch: u64,
    /// Every tail record up to here has been compared.
    frontier: Lsn,
    /// The snapshot whose rows are counted, by its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    load: Option<Lsn>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    snapshot: BTreeMap<TableName, Rows>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rereads: BTreeMap<TableName, Rows>,
    /// Records of the load, and since, that could not be read.
    #[serde(default)]
    unknown: u64,
    /// Of them, those of this segment and of those before it since the last tick.
    #[serde(default)]
    unknown_lately: u64,
    /// The last segment ended within a tick.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    within: bool,
    /// Changes above the frontier, by their transaction: of which table, and where in it. Not kept: see `within`.
    #[serde(skip)]
    changes: BTreeMap<Lsn, BTreeSet<(TableName, Lsn, u8)>>,
    /// Whether `changes` has everything above the frontier.
    #[serde(skip)]
    whole: bool,
}

impl Account {
    /// Takes in the events of a segment, and how many records of it could not be read.
    pub(crate) fn events<'a>(&mut self, events: impl Iterator<Item = &'a Facts>, unknown: u64) {
        self.unknown += unknown;
        self.unknown_lately += unknown;
        // What `within` says was of the manifest that this began with.
        self.whole |= !self.within;
        for event in events {
            let lsn = event.position.commit_lsn;
            match event.op {
                Op::Read => {
                    self.begin(lsn);
                    if self.load == Some(lsn) {
                        self.snapshot.entry(event.table.clone()).or_default().found += 1;
                    }
                }
                Op::Reread => self.rereads.entry(event.table.clone()).or_default().found += 1,
                Op::Create | Op::Update | Op::Delete if lsn > self.frontier => {
                    let identity = (event.table.clone(), event.position.seqval, event.position.operation);
                    self.changes.entry(lsn).or_default().insert(identity);
                }
                Op::Create | Op::Update | Op::Delete => {}
            }
        }
    }

    /// Rows or a record of a snapshot with this start have come.
    fn begin(&mut self, start: Lsn) {
        if self.load.is_none_or(|load| start > load) {
            self.load = Some(start);
            self.snapshot.clear();
            self.unknown = self.unknown_lately;
        }
    }

    /// Ends a segment; `within`: in the middle of a tick.
    pub(crate) fn end(&mut self, within: bool) {
        // What an earlier process had of a tick stays unknown until the tick has passed.
        self.within = within || (self.within && !self.whole);
        if !within {
            self.unknown_lately = 0;
        }
    }

    pub(crate) fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// Compares a record, whose events have been taken in. `between` is where its tick stands.
    pub(crate) fn record(&mut self, record: &ProgressRecord, between: &[Between]) -> Vec<Missing> {
        if record.epoch < self.epoch {
            return Vec::new();
        }
        self.epoch = record.epoch;
        let mut missing = Vec::new();
        let mut tell = |table: &TableName, published, found| {
            let (from_lsn, to_lsn) = (record.from_lsn, record.to_lsn);
            missing.push(Missing { table: table.clone(), from_lsn, to_lsn, published, found, between: between.to_vec() });
        };
        let counted = |_: &(&TableName, &u64)| !between.is_empty();
        for (table, count) in record.reread_counts.iter().filter(counted) {
            let rows = self.rereads.entry(table.clone()).or_default();
            rows.published += count;
            if let Some(rows) = rows.settle(self.unknown) {
                tell(table, rows.published, rows.found);
            }
        }
        if record.phase != Phase::Tail {
            self.begin(record.from_lsn);
            if self.load == Some(record.from_lsn) {
                for (table, count) in record.counts.iter().filter(counted) {
                    let rows = self.snapshot.entry(table.clone()).or_default();
                    rows.published += count;
                    if let Some(rows) = rows.settle(self.unknown) {
                        tell(table, rows.published, rows.found);
                    }
                }
                self.pass(record.from_lsn);
            }
            return missing;
        }
        let exact = self.whole && record.from_lsn == self.frontier;
        let found = self.pass(record.to_lsn);
        if exact {
            for (table, &published) in &record.counts {
                let found = found.get(table).copied().unwrap_or_default();
                if found + self.unknown_lately < published {
                    tell(table, published, found);
                }
            }
        }
        missing
    }

    /// Moves the frontier; the changes that it passed, by table.
    fn pass(&mut self, to: Lsn) -> HashMap<TableName, u64> {
        let mut found = HashMap::new();
        if to > self.frontier {
            let above = self.changes.split_off(&to.next());
            for (table, _, _) in std::mem::replace(&mut self.changes, above).into_values().flatten() {
                *found.entry(table).or_default() += 1;
            }
            self.frontier = to;
            // From here on everything above the frontier has been seen.
            self.whole = true;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Position;

    use super::*;

    fn lsn(n: u8) -> Lsn {
        Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }

    fn orders() -> TableName {
        TableName::new("dbo", "orders")
    }

    fn event(op: Op, at: u8, seqval: u8) -> Facts {
        let operation = if op.is_read() { 0 } else { 2 };
        let position = Position { commit_lsn: lsn(at), command_id: 0, seqval: lsn(seqval), operation };
        Facts { table: orders(), op, position, commit_time_ms: 0 }
    }

    fn record(epoch: u64, phase: Phase, from: u8, to: u8, count: u64) -> ProgressRecord {
        ProgressRecord {
            source: "shop".into(),
            epoch,
            phase,
            from_lsn: lsn(from),
            to_lsn: lsn(to),
            commit_time_ms: 0,
            counts: [(orders(), count)].into(),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: ShardPositions::new(),
        }
    }

    fn somewhere() -> Vec<Between> {
        let up_to = SequenceNumber::from(1);
        vec![Between { stream: StreamName("s".into()), shard: ShardId("0".into()), after: None, up_to }]
    }

    fn kept(account: &Account) -> Account {
        serde_json::from_str(&serde_json::to_string(account).unwrap()).unwrap()
    }

    #[test]
    fn repeats_make_up_for_nothing_and_what_is_missing_is_told_once() {
        let mut account = Account::default();
        let changes = [event(Op::Create, 1, 1), event(Op::Create, 1, 1), event(Op::Create, 2, 1), event(Op::Create, 3, 1)];
        account.events(changes.iter(), 0);
        let missing = account.record(&record(1, Phase::Tail, 0, 2, 3), &[]);
        assert_eq!((missing.len(), missing[0].published, missing[0].found), (1, 3, 2));
        assert_eq!((missing[0].from_lsn, missing[0].to_lsn), (lsn(0), lsn(2)));
        assert_eq!(account.record(&record(1, Phase::Tail, 2, 3, 1), &[]), []);
        // Refused: of an importer that was replaced.
        assert_eq!(account.record(&record(0, Phase::Tail, 3, 9, 5), &[]), []);
        // Overlapping: not known.
        assert_eq!(account.record(&record(2, Phase::Tail, 1, 4, 5), &[]), []);
        assert_eq!(account.record(&record(2, Phase::Tail, 4, 5, 1), &[]).len(), 1);
    }

    #[test]
    fn a_tick_that_is_partly_in_an_earlier_process_is_not_compared() {
        let mut account = Account::default();
        account.events([event(Op::Create, 1, 1)].iter(), 0);
        account.end(true);
        let mut account = kept(&account);
        account.events([event(Op::Create, 1, 2)].iter(), 0);
        account.end(false);
        assert_eq!(account.record(&record(1, Phase::Tail, 0, 1, 2), &[]), []);
        account.events([event(Op::Create, 2, 1)].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 1, 2, 2), &[]).len(), 1);
        // In one process it is.
        account.events([event(Op::Create, 3, 1)].iter(), 0);
        account.end(true);
        account.events([event(Op::Create, 3, 2)].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 2, 3, 3), &[]).len(), 1);
    }

    #[test]
    fn rows_of_a_snapshot_are_counted_over_the_load_and_over_restarts() {
        let mut account = Account::default();
        account.events([event(Op::Read, 5, 0), event(Op::Read, 5, 0)].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 5, 5, 2), &somewhere()), []);
        let mut account = kept(&account);
        account.events([event(Op::Read, 5, 0)].iter(), 0);
        let complete = Phase::SnapshotComplete { consistent_from: lsn(5) };
        assert_eq!(account.record(&record(1, complete, 5, 5, 2), &somewhere()).len(), 1);
        account.events([event(Op::Create, 6, 1)].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 5, 6, 1), &[]), []);
        // A record that cannot be read may be the one.
        account.events([].iter(), 1);
        assert_eq!(account.record(&record(1, Phase::Tail, 6, 7, 1), &[]), []);
        account.end(false);
        account.events([].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 7, 8, 1), &[]).len(), 1);
        // A later load begins anew. A copy of its record counts nothing.
        account.events([event(Op::Read, 9, 0)].iter(), 0);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 9, 9, 1), &somewhere()), []);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 9, 9, 1), &[]), []);

        account.events([event(Op::Reread, 9, 0)].iter(), 0);
        let mut again = record(1, Phase::Tail, 9, 9, 0);
        again.reread_counts.insert(orders(), 2);
        assert_eq!(account.record(&again, &[]), []);
        assert_eq!(account.record(&again, &somewhere()).len(), 1);
        again.reread_counts.insert(orders(), 0);
        assert_eq!(account.record(&again, &somewhere()), []);
    }

    #[test]
    fn a_copy_of_a_record_stands_nowhere_that_was_not_named() {
        let mut stood = ShardPositions::new();
        let mut at = record(1, Phase::Snapshot, 5, 5, 1);
        at.positions.insert(StreamName("s".into()), [(ShardId("0".into()), SequenceNumber::from(1))].into());
        assert_eq!(between(&mut stood, &at), somewhere());
        assert_eq!((between(&mut stood, &at), stood), (Vec::new(), at.positions));
    }
}
