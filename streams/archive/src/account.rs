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
//!
//! A record that begins beyond where the one before it ended says that records between them are gone, with what they promised: that is told as a range of LSNs ([`crate::gap`]), and counting goes on behind it. A record of an initial snapshot begins anew, wherever it stands.
//!
//! # A tick larger than memory
//! Identities are remembered one by one up to [`REMEMBERED`] at the end of a segment that was cut within a tick. Past it they are *folded*: counted by table, and of each shard and table only the greatest position is kept. What comes later at or below that
//! position, in its shard, is a repeat; above it, it is new. That is exact because an importer publishes a table's changes in their order, a shard keeps that order, and an importer that comes back after a crash begins at or before where its predecessor was: in each shard
//! a repeat is a stretch that has been passed. Two things it cannot tell: changes that were published again after a reshard stand in shards that know nothing of them, and count twice (a loss in the same table of the same tick may then stay
//! untold); and a change that is gone from the stream where it stood first, and is there where it was published again, counts as missing. Both need a crash of the importer within one tick of more than [`REMEMBERED`] changes, and a reshard or a loss as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use schemas::event::Op;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{Lsn, Position, TableName};
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

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, from_lsn, to_lsn, published, found, between } = self;
        write!(f, "{table}: tick ({from_lsn}, {to_lsn}] has {published} events, the stream held {found} of them")?;
        for Between { stream, shard, after, up_to } in between {
            let after = after.as_ref().map_or("the start", SequenceNumber::as_str);
            write!(f, "; stream {stream}, shard {shard}, after {after} up to {up_to}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Between {
    pub stream: StreamName,
    pub shard: ShardId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SequenceNumber>,
    pub up_to: SequenceNumber,
}

/// Changes of a tick that are remembered one by one from segment to segment, at about 100 bytes each.
const REMEMBERED: usize = 300_000;

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

/// What a record tells.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Told {
    pub(crate) missing: Vec<Missing>,
    /// No record speaks of what lies between these LSNs.
    pub(crate) unspoken: Option<(Lsn, Lsn)>,
}

/// The greatest position of a table's changes in each shard.
type Marks = HashMap<(StreamName, ShardId, TableName), Position>;

/// Changes that are not remembered one by one any more.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Folded {
    least: Lsn,
    greatest: Lsn,
    counts: BTreeMap<TableName, u64>,
    marks: Marks,
    /// A record ended between the two LSNs: what is left is not known.
    split: bool,
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
    /// Its last record, so far, did not say that it is complete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    loading: bool,
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
    /// Changes above the frontier that are too many to be remembered.
    #[serde(skip)]
    folded: Option<Folded>,
    #[serde(skip)]
    marks: Marks,
    /// Whether `changes` and `folded` have everything above the frontier.
    #[serde(skip)]
    whole: bool,
}

impl Account {
    /// Takes in how many records of a segment could not be read; before its events.
    pub(crate) fn unknown(&mut self, unknown: u64) {
        self.unknown += unknown;
        self.unknown_lately += unknown;
        // What `within` says was of the manifest that this began with.
        self.whole |= !self.within;
    }

    /// Takes in events of one shard, in their order; of each table at least.
    pub(crate) fn events<'a>(&mut self, (stream, shard): (&StreamName, &ShardId), events: impl Iterator<Item = &'a Facts>) {
        let mut greatest: HashMap<&TableName, Position> = HashMap::new();
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
                    let place = || (stream.clone(), shard.clone(), event.table.clone());
                    let mark = self.folded.as_ref().and_then(|folded| folded.marks.get(&place()));
                    if mark.is_some_and(|mark| event.position <= *mark) {
                        continue;
                    }
                    let known = greatest.entry(&event.table).or_insert(event.position);
                    *known = event.position.max(*known);
                    let identity = (event.table.clone(), event.position.seqval, event.position.operation);
                    self.changes.entry(lsn).or_default().insert(identity);
                }
                Op::Create | Op::Update | Op::Delete => {}
            }
        }
        for (table, position) in greatest {
            let mark = self.marks.entry((stream.clone(), shard.clone(), table.clone())).or_insert(position);
            *mark = position.max(*mark);
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
        if within {
            self.fold(REMEMBERED);
        }
        // What an earlier process had of a tick stays unknown until the tick has passed.
        self.within = within || (self.within && !self.whole);
        if !within {
            self.unknown_lately = 0;
        }
    }

    /// Counts the changes that are remembered one by one, if they are more than that.
    fn fold(&mut self, remembered: usize) {
        let count: usize = self.changes.values().map(BTreeSet::len).sum();
        let (Some((least, _)), Some((greatest, _))) = (self.changes.first_key_value(), self.changes.last_key_value()) else {
            return;
        };
        if count <= remembered {
            return;
        }
        let none = Folded { least: *least, greatest: *greatest, counts: BTreeMap::new(), marks: Marks::new(), split: false };
        let folded = self.folded.get_or_insert(none);
        (folded.least, folded.greatest) = (folded.least.min(*least), folded.greatest.max(*greatest));
        for (table, _, _) in std::mem::take(&mut self.changes).into_values().flatten() {
            *folded.counts.entry(table).or_default() += 1;
        }
        folded.marks.clone_from(&self.marks);
    }

    pub(crate) fn frontier(&self) -> Lsn {
        self.frontier
    }

    /// The start of the last snapshot that was begun.
    pub(crate) fn load(&self) -> Option<Lsn> {
        self.load
    }

    /// Whether an initial snapshot has been begun, and its end has not been seen.
    pub(crate) fn is_loading(&self) -> bool {
        self.loading
    }

    /// Whether no record has been taken in.
    pub(crate) fn is_new(&self) -> bool {
        self.epoch == 0 && self.frontier.is_zero()
    }

    /// The tables of which anything is known.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.snapshot.keys().chain(self.rereads.keys())
    }

    /// Compares a record, whose events have been taken in. `between` is where its tick stands.
    pub(crate) fn record(&mut self, record: &ProgressRecord, between: &[Between]) -> Told {
        let mut told = Told::default();
        if record.epoch < self.epoch {
            return told;
        }
        self.epoch = record.epoch;
        let mut tell = |table: &TableName, published, found| {
            let (from_lsn, to_lsn) = (record.from_lsn, record.to_lsn);
            told.missing.push(Missing { table: table.clone(), from_lsn, to_lsn, published, found, between: between.to_vec() });
        };
        let counted = |_: &(&TableName, &u64)| !between.is_empty();
        for (table, count) in record.reread_counts.iter().filter(counted) {
            let rows = self.rereads.entry(table.clone()).or_default();
            rows.published += count;
            if let Some(rows) = rows.settle(self.unknown) {
                tell(table, rows.published, rows.found);
            }
        }
        self.loading = record.phase == Phase::Snapshot;
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
            return told;
        }
        let (before, whole) = (self.frontier, self.whole);
        // What lies between is told as a gap, once; from there on everything is counted again.
        self.pass(record.from_lsn);
        let exact = whole && record.from_lsn == self.frontier;
        let found = self.pass(record.to_lsn);
        if let Some(found) = found.filter(|_| exact) {
            for (table, &published) in &record.counts {
                let found = found.get(table).copied().unwrap_or_default();
                if found + self.unknown_lately < published {
                    tell(table, published, found);
                }
            }
        }
        told.unspoken = (record.from_lsn > before).then_some((before, record.from_lsn));
        told
    }

    /// Moves the frontier; the changes that it passed, by table. `None`: they cannot be told from those that follow.
    fn pass(&mut self, to: Lsn) -> Option<HashMap<TableName, u64>> {
        let mut found = HashMap::new();
        if to <= self.frontier {
            return Some(found);
        }
        let above = self.changes.split_off(&to.next());
        for (table, _, _) in std::mem::replace(&mut self.changes, above).into_values().flatten() {
            *found.entry(table).or_default() += 1;
        }
        self.frontier = to;
        // From here on everything above the frontier has been seen.
        self.whole = true;
        let Some(folded) = self.folded.take_if(|folded| folded.least <= to) else { return Some(found) };
        let split = folded.split || folded.greatest > to;
        if folded.greatest > to {
            self.folded = Some(Folded { least: to.next(), split, ..folded });
        } else {
            for (table, count) in folded.counts {
                *found.entry(table).or_default() += count;
            }
        }
        (!split).then_some(found)
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

    /// Takes in a segment of one shard.
    fn take(account: &mut Account, events: &[Facts], unknown: u64) {
        take_of(account, "0", events, unknown);
    }

    fn take_of(account: &mut Account, shard: &str, events: &[Facts], unknown: u64) {
        account.unknown(unknown);
        account.events((&StreamName("s".into()), &ShardId(shard.into())), events.iter());
    }

    fn kept(account: &Account) -> Account {
        serde_json::from_str(&serde_json::to_string(account).unwrap()).unwrap()
    }

    #[test]
    fn repeats_make_up_for_nothing_and_what_is_missing_is_told_once() {
        let mut account = Account::default();
        let changes = [event(Op::Create, 1, 1), event(Op::Create, 1, 1), event(Op::Create, 2, 1), event(Op::Create, 3, 1)];
        take(&mut account, &changes, 0);
        let missing = account.record(&record(1, Phase::Tail, 0, 2, 3), &[]).missing;
        assert_eq!((missing.len(), missing[0].published, missing[0].found), (1, 3, 2));
        assert_eq!((missing[0].from_lsn, missing[0].to_lsn), (lsn(0), lsn(2)));
        assert_eq!(account.record(&record(1, Phase::Tail, 2, 3, 1), &[]).missing, []);
        // Refused: of an importer that was replaced.
        assert_eq!(account.record(&record(0, Phase::Tail, 3, 9, 5), &[]).missing, []);
        // Overlapping: not known.
        assert_eq!(account.record(&record(2, Phase::Tail, 1, 4, 5), &[]).missing, []);
        assert_eq!(account.record(&record(2, Phase::Tail, 4, 5, 1), &[]).missing.len(), 1);
    }

    #[test]
    fn a_tick_that_is_partly_in_an_earlier_process_is_not_compared() {
        let mut account = Account::default();
        take(&mut account, &[event(Op::Create, 1, 1)], 0);
        account.end(true);
        let mut account = kept(&account);
        take(&mut account, &[event(Op::Create, 1, 2)], 0);
        account.end(false);
        assert_eq!(account.record(&record(1, Phase::Tail, 0, 1, 2), &[]).missing, []);
        take(&mut account, &[event(Op::Create, 2, 1)], 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 1, 2, 2), &[]).missing.len(), 1);
        // In one process it is.
        take(&mut account, &[event(Op::Create, 3, 1)], 0);
        account.end(true);
        take(&mut account, &[event(Op::Create, 3, 2)], 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 2, 3, 3), &[]).missing.len(), 1);
    }

    #[test]
    fn rows_of_a_snapshot_are_counted_over_the_load_and_over_restarts() {
        let mut account = Account::default();
        take(&mut account, &[event(Op::Read, 5, 0), event(Op::Read, 5, 0)], 0);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 5, 5, 2), &somewhere()).missing, []);
        let mut account = kept(&account);
        take(&mut account, &[event(Op::Read, 5, 0)], 0);
        let complete = Phase::SnapshotComplete { consistent_from: lsn(5) };
        assert_eq!(account.record(&record(1, complete, 5, 5, 2), &somewhere()).missing.len(), 1);
        take(&mut account, &[event(Op::Create, 6, 1)], 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 5, 6, 1), &[]).missing, []);
        // A record that cannot be read may be the one.
        take(&mut account, &[], 1);
        assert_eq!(account.record(&record(1, Phase::Tail, 6, 7, 1), &[]).missing, []);
        account.end(false);
        take(&mut account, &[], 0);
        assert_eq!(account.record(&record(1, Phase::Tail, 7, 8, 1), &[]).missing.len(), 1);
        // A later load begins anew. A copy of its record counts nothing.
        take(&mut account, &[event(Op::Read, 9, 0)], 0);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 9, 9, 1), &somewhere()).missing, []);
        assert_eq!(account.record(&record(1, Phase::Snapshot, 9, 9, 1), &[]).missing, []);

        take(&mut account, &[event(Op::Reread, 9, 0)], 0);
        let mut again = record(1, Phase::Tail, 9, 9, 0);
        again.reread_counts.insert(orders(), 2);
        assert_eq!(account.record(&again, &[]).missing, []);
        assert_eq!(account.record(&again, &somewhere()).missing.len(), 1);
        again.reread_counts.insert(orders(), 0);
        assert_eq!(account.record(&again, &somewhere()).missing, []);
    }

    #[test]
    fn a_copy_of_a_record_stands_nowhere_that_was_not_named() {
        let mut stood = ShardPositions::new();
        let mut at = record(1, Phase::Snapshot, 5, 5, 1);
        at.positions.insert(StreamName("s".into()), [(ShardId("0".into()), SequenceNumber::from(1))].into());
        assert_eq!(between(&mut stood, &at), somewhere());
        assert_eq!((between(&mut stood, &at), stood), (Vec::new(), at.positions));
    }

    #[test]
    fn records_that_are_gone_are_told_by_their_range() {
        let mut account = Account::default();
        // The archive begins in the middle of the tail.
        take(&mut account, &[event(Op::Create, 4, 1), event(Op::Create, 5, 1)], 0);
        let told = account.record(&record(1, Phase::Tail, 4, 5, 2), &[]);
        assert_eq!((told.unspoken, told.missing.len()), (Some((Lsn::ZERO, lsn(4))), 1), "the first tick is compared");
        take(&mut account, &[event(Op::Create, 7, 1), event(Op::Create, 9, 1)], 0);
        let told = account.record(&record(1, Phase::Tail, 8, 9, 1), &[]);
        assert_eq!(told, Told { missing: Vec::new(), unspoken: Some((lsn(5), lsn(8))) });
        assert_eq!(account.record(&record(1, Phase::Tail, 9, 10, 0), &[]), Told::default());
        // A snapshot begins anew.
        assert_eq!(account.record(&record(1, Phase::Snapshot, 20, 20, 0), &[]), Told::default());
        assert!(account.is_loading());
        assert_eq!(account.record(&record(1, Phase::Tail, 20, 21, 0), &[]), Told::default());
        assert!(!account.is_loading());
    }

    #[test]
    fn a_tick_larger_than_memory_is_counted_without_its_identities() {
        for (lost, expected) in [(false, 0), (true, 1)] {
            let mut account = Account::default();
            let part = |shard: u8, range: std::ops::RangeInclusive<u8>| -> Vec<Facts> {
                let mut seqvals = range.filter(|seqval| !(lost && shard == 0 && *seqval == 33));
                std::iter::from_fn(|| seqvals.next()).map(|seqval| event(Op::Create, 1, seqval * 2 + shard)).collect()
            };
            for range in [1..=10, 11..=20, 21..=30] {
                for shard in [0, 1] {
                    take_of(&mut account, &shard.to_string(), &part(shard, range.clone()), 0);
                }
                account.end(true);
                account.fold(5);
                assert_eq!(account.changes.len(), 0);
            }
            // The importer is killed and publishes all of it once more, and then the rest.
            for (shard, range) in [(0, 1..=40), (1, 1..=25), (1, 26..=40)] {
                take_of(&mut account, &shard.to_string(), &part(shard, range), 0);
                account.fold(5);
            }
            let told = account.record(&record(1, Phase::Tail, 0, 1, 80), &[]);
            assert_eq!(told.missing.len(), expected, "{told:?}");
            assert!(account.folded.is_none());
        }
    }

    #[test]
    fn what_was_counted_across_a_records_end_is_not_compared() {
        let mut account = Account::default();
        take(&mut account, &[event(Op::Create, 1, 1), event(Op::Create, 2, 1), event(Op::Create, 3, 1)], 0);
        account.fold(1);
        assert_eq!(account.record(&record(1, Phase::Tail, 0, 2, 9), &[]).missing, []);
        assert_eq!(account.record(&record(1, Phase::Tail, 2, 3, 9), &[]).missing, []);
        assert_eq!(account.record(&record(1, Phase::Tail, 3, 4, 1), &[]).missing.len(), 1);
    }
}
