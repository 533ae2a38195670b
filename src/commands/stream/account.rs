//! What the progress records promised, against what is in the streams: pure, one record at a time.
//!
//! # Why it is right
//! A record says how many changes of each table its range holds, and where each shard then stood. So once every shard has been read up to there, the range's changes have all been seen
//! ([`Account::change`]), or some are missing. A change is known by its identity (table, commit LSN, seqval, operation): what a restarted importer publishes again is counted once, and
//! told as a repeat. A range that was published again under a later record is counted again against that record, and into the totals once.
//!
//! Rows that were read, by a snapshot or later, have no identity of their own: over all records there must be at least as many as were promised. Of rows that were read again, those count
//! that are of the reading which the first record after them names ([`Reread`](schemas::progress::Reread)), as they do for the joiner.
//!
//! Records of an epoch below the greatest seen come from an importer that has been replaced; no reader follows them, and they are not counted here either.
//!
//! A record may stand in its stream more than once: where the answer to the request that put it there was lost, the importer sends it again. What it promises was put behind its predecessor's positions; so one that promises something
//! and names no position beyond those of the last record, within what was compared, is a copy, and not counted.
//!
//! What is held in memory is the changes of one range, and those that were published beyond it.

use std::collections::BTreeMap;

use schemas::event::Op;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{Lsn, Position, TableName};
use serde::Serialize;

/// A change in the order of the log, so that a range's are one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    commit_lsn: Lsn,
    seqval: Lsn,
    operation: u8,
    table: usize,
}

/// Whether everything that a record speaks of can still be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// All of it, as far as the store knows.
    All,
    /// It is the first record that is kept: part of it may have been trimmed. That nothing was shows where nothing is missing, and what is missing shows nothing.
    Perhaps,
    /// Some of it has been trimmed.
    NotAll,
}

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    /// The ranges compared lie between these two.
    pub(super) from: Lsn,
    pub(super) to: Lsn,
    /// Progress records compared.
    pub(super) records: u64,
    pub(super) tables: BTreeMap<TableName, Counts>,
    pub(super) differences: Vec<Difference>,
    /// Ranges that no record speaks of.
    pub(super) gaps: Vec<Range>,
    /// Ranges whose events have been trimmed, at least in part.
    pub(super) trimmed: Vec<Range>,
    /// What the oldest range that is kept lacks, where the store cannot tell whether it has aged.
    pub(super) aged_or_missing: Vec<Difference>,
    /// Changes that no record has promised yet.
    pub(super) unpromised: u64,
    /// Records of the event streams that are no events.
    pub(super) unreadable: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Range {
    /// Exclusive.
    pub(super) from: Lsn,
    /// Inclusive.
    pub(super) to: Lsn,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) creates: u64,
    pub(super) updates: u64,
    pub(super) deletes: u64,
    /// Rows read, by a snapshot or again.
    pub(super) rows: u64,
    /// Changes and rows that the records promised.
    pub(super) promised: u64,
    /// Changes that were there more than once, and rows beyond those promised or of an importer that had been replaced.
    pub(super) repeats: u64,
    /// Changes and rows set aside, as the records say.
    pub(super) dead_lettered: u64,
}

impl Counts {
    pub(super) fn changes(&self) -> u64 {
        self.creates + self.updates + self.deletes
    }
}

/// A table of which more or less is there than was promised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    pub(super) table: TableName,
    #[serde(flatten)]
    pub(super) range: Range,
    pub(super) commit_time_ms: i64,
    pub(super) promised: u64,
    pub(super) found: u64,
    /// Where in the table's stream the range lies.
    pub(super) between: Vec<Between>,
}

/// The part of a shard that belongs to a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Between {
    pub(super) stream: StreamName,
    pub(super) shard: ShardId,
    /// Exclusive; `None`: from the start.
    pub(super) after: Option<SequenceNumber>,
    /// Inclusive.
    pub(super) to: SequenceNumber,
}

/// What of a reading's number every encoding of an event carries.
fn reading(number: i32) -> i32 {
    number & 0xff_ffff
}

/// What has been read and what was promised of rows, for one table.
#[derive(Debug, Clone, Copy, Default)]
struct Rows {
    found: u64,
    promised: u64,
    /// Told as missing, so that it is not told at each later record.
    told: u64,
}

#[derive(Debug, Default)]
pub(super) struct Account {
    report: Report,
    names: Vec<TableName>,
    epoch: u64,
    /// Where the last record that counted ended.
    frontier: Option<Lsn>,
    /// Changes seen and not yet compared, and how often.
    seen: BTreeMap<Identity, u64>,
    rows: BTreeMap<TableName, Rows>,
    /// Rows that were read again and that no record has covered yet, by table and reading.
    read_again: BTreeMap<(usize, i32), u64>,
    positions: ShardPositions,
}

impl Account {
    /// Begins at `frontier`: what was published up to there is not looked at.
    pub(super) fn new(frontier: Option<Lsn>) -> Self {
        Self { frontier, ..Self::default() }
    }

    /// The number of a table, for [`event`](Self::event).
    pub(super) fn table(&mut self, schema: &str, table: &str) -> usize {
        let same = |name: &TableName| name.table == table && name.schema == schema;
        self.names.iter().position(same).unwrap_or_else(|| {
            self.names.push(TableName::new(schema, table));
            self.names.len() - 1
        })
    }

    /// An event of a stream.
    pub(super) fn event(&mut self, table: usize, op: Op, position: Position) {
        if op == Op::Reread {
            *self.read_again.entry((table, reading(position.command_id))).or_default() += 1;
            return;
        }
        if op.is_read() {
            self.rows.entry(self.names[table].clone()).or_default().found += 1;
            return;
        }
        let Position { commit_lsn, seqval, operation, .. } = position;
        *self.seen.entry(Identity { commit_lsn, seqval, operation, table }).or_default() += 1;
    }

    /// Something in an event stream that is no event.
    pub(super) fn unreadable(&mut self) {
        self.report.unreadable += 1;
    }

    /// A record, when every shard has been read up to where it says. `stream_of` names the stream of a table.
    pub(super) fn record(&mut self, record: &ProgressRecord, kept: Kept, stream_of: impl Fn(&TableName) -> StreamName) {
        if record.epoch < self.epoch || self.is_copy(record) {
            return;
        }
        self.epoch = record.epoch;
        self.report.records += 1;
        let range = Range { from: record.from_lsn, to: record.to_lsn };
        if self.report.records == 1 {
            self.report.from = range.from;
        }
        self.report.to = self.report.to.max(range.to);
        if matches!(record.phase, Phase::Tail) {
            self.changes(record, range, kept, &stream_of);
            self.cover_rows(record);
            self.rows_promised(record, &record.reread_counts, kept, &stream_of);
        } else {
            // A snapshot begins anew; its rows are the record's range.
            self.frontier = Some(range.to);
            self.rows_promised(record, &record.counts, kept, &stream_of);
        }
        for (table, count) in &record.dead_lettered {
            self.counts(table).dead_lettered += count;
        }
        self.positions.clone_from(&record.positions);
    }

    /// Whether what a record promises has been promised before.
    fn is_copy(&self, record: &ProgressRecord) -> bool {
        let mut promised = record.counts.values().chain(record.reread_counts.values());
        let before = |stream, shard| self.positions.get(stream).and_then(|shards| shards.get(shard));
        let mut positions = record.positions.iter().flat_map(|(stream, shards)| shards.iter().map(move |at| (stream, at)));
        record.epoch == self.epoch
            && self.frontier.is_some_and(|frontier| record.to_lsn <= frontier)
            && promised.any(|count| *count > 0)
            && positions.all(|(stream, (shard, to))| before(stream, shard).is_some_and(|before| to <= before))
    }

    fn counts(&mut self, table: &TableName) -> &mut Counts {
        self.report.tables.entry(table.clone()).or_default()
    }

    fn changes(&mut self, record: &ProgressRecord, range: Range, kept: Kept, stream_of: &impl Fn(&TableName) -> StreamName) {
        // What lies before the first record that is kept is nobody's to promise any more.
        let begins = self.frontier.is_none();
        let frontier = self.frontier.unwrap_or(range.from);
        if range.from > frontier {
            self.report.gaps.push(Range { from: frontier, to: range.from });
        }
        let later = self.seen.split_off(&Identity { commit_lsn: range.to.next(), seqval: Lsn::ZERO, operation: 0, table: 0 });
        let mut found: BTreeMap<TableName, u64> = BTreeMap::new();
        let mut counted_before: BTreeMap<TableName, u64> = BTreeMap::new();
        for (identity, times) in std::mem::replace(&mut self.seen, later) {
            let name = self.names[identity.table].clone();
            let counts = self.report.tables.entry(name.clone()).or_default();
            if identity.commit_lsn > range.from {
                *found.entry(name.clone()).or_default() += 1;
            }
            if begins && identity.commit_lsn <= frontier {
                continue;
            }
            if identity.commit_lsn <= frontier {
                counts.repeats += times;
                *counted_before.entry(name).or_default() += u64::from(identity.commit_lsn > range.from);
                continue;
            }
            counts.repeats += times - 1;
            match identity.operation {
                1 => counts.deletes += 1,
                2 => counts.creates += 1,
                _ => counts.updates += 1,
            }
        }
        for (table, promised) in &record.counts {
            let before = counted_before.get(table).copied().unwrap_or(0);
            self.counts(table).promised += promised.saturating_sub(before);
            found.entry(table.clone()).or_default();
        }
        let differing = found.into_iter().filter_map(|(table, found)| {
            let promised = record.counts.get(&table).copied().unwrap_or(0);
            (found != promised).then_some((table, promised, found))
        });
        self.differences(record, range, kept, differing.collect(), stream_of);
        self.frontier = Some(frontier.max(range.to));
    }

    /// Rows that were read again by who the record says count.
    fn cover_rows(&mut self, record: &ProgressRecord) {
        for ((table, by), count) in std::mem::take(&mut self.read_again) {
            let name = self.names[table].clone();
            if record.rereads.get(&name).is_some_and(|reread| reading(reread.reading) == by) {
                self.rows.entry(name).or_default().found += count;
            } else {
                self.counts(&name).repeats += count;
            }
        }
    }

    fn rows_promised(
        &mut self,
        record: &ProgressRecord,
        promised: &BTreeMap<TableName, u64>,
        kept: Kept,
        stream_of: &impl Fn(&TableName) -> StreamName,
    ) {
        let mut differing = Vec::new();
        for (table, count) in promised {
            let rows = self.rows.entry(table.clone()).or_default();
            rows.promised += count;
            if rows.found + rows.told < rows.promised {
                let missing = rows.promised - rows.found - rows.told;
                rows.told += missing;
                differing.push((table.clone(), *count, count.saturating_sub(missing)));
            }
            self.counts(table).promised += count;
        }
        let range = Range { from: record.from_lsn, to: record.to_lsn };
        self.differences(record, range, kept, differing, stream_of);
    }

    fn differences(
        &mut self,
        record: &ProgressRecord,
        range: Range,
        kept: Kept,
        differing: Vec<(TableName, u64, u64)>,
        stream_of: &impl Fn(&TableName) -> StreamName,
    ) {
        if kept == Kept::NotAll {
            if self.report.trimmed.last() != Some(&range) {
                self.report.trimmed.push(range);
            }
            return;
        }
        for (table, promised, found) in differing {
            let stream = stream_of(&table);
            let shards = record.positions.get(&stream).into_iter().flatten();
            let before = self.positions.get(&stream);
            let between = shards.map(|(shard, to)| Between {
                stream: stream.clone(),
                shard: shard.clone(),
                after: before.and_then(|shards| shards.get(shard)).cloned(),
                to: to.clone(),
            });
            let between = between.filter(|between| between.after.as_ref() != Some(&between.to)).collect();
            let commit_time_ms = record.commit_time_ms;
            let difference = Difference { table, range, commit_time_ms, promised, found, between };
            let may_have_aged = kept == Kept::Perhaps && found < promised;
            let differences = if may_have_aged { &mut self.report.aged_or_missing } else { &mut self.report.differences };
            differences.push(difference);
        }
    }

    /// The result, once all records have been counted.
    pub(super) fn finish(mut self) -> Report {
        self.report.unpromised = self.seen.len() as u64;
        for (table, rows) in std::mem::take(&mut self.rows) {
            let counts = self.counts(&table);
            counts.rows = rows.found;
            // Where none were promised, the record that did is not kept any more.
            if rows.promised > 0 {
                counts.repeats += rows.found.saturating_sub(rows.promised);
            }
        }
        self.report
    }
}

impl Report {
    /// Whether everything that was promised is there, as far as it is still kept.
    pub(super) fn agrees(&self) -> bool {
        self.differences.is_empty() && self.gaps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::progress::Reread;

    use super::*;

    fn lsn(number: u8) -> Lsn {
        let mut bytes = [0; 10];
        bytes[9] = number;
        Lsn::from_bytes(bytes)
    }

    fn orders() -> TableName {
        TableName::new("dbo", "orders")
    }

    fn record(epoch: u64, from: u8, to: u8, orders_count: u64, at: u64) -> ProgressRecord {
        ProgressRecord {
            source: "shop".into(),
            epoch,
            phase: Phase::Tail,
            from_lsn: lsn(from),
            to_lsn: lsn(to),
            commit_time_ms: 7,
            counts: [(orders(), orders_count)].into_iter().filter(|(_, count)| *count > 0).collect(),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: [(StreamName("s".into()), [(ShardId("0".into()), SequenceNumber::from(at))].into())].into(),
        }
    }

    fn tell(account: &mut Account, record: &ProgressRecord, kept: Kept) {
        account.record(record, kept, |_| StreamName("s".into()));
    }

    /// A change of `orders` in the transaction `commit`, the `seqval`th of it.
    fn change(account: &mut Account, op: Op, commit: u8, seqval: u8) {
        let operation = match op {
            Op::Delete => 1,
            Op::Create => 2,
            Op::Update => 4,
            Op::Read | Op::Reread => 0,
        };
        let position = Position { commit_lsn: lsn(commit), command_id: 1, seqval: lsn(seqval), operation };
        let orders = account.table("dbo", "orders");
        account.event(orders, op, position);
    }

    #[test]
    fn what_is_there_agrees_and_repeats_are_told() {
        let mut account = Account::new(None);
        for (op, commit, seqval) in [(Op::Create, 2, 1), (Op::Update, 2, 2), (Op::Delete, 3, 1), (Op::Update, 2, 2)] {
            change(&mut account, op, commit, seqval);
        }
        // Of the next range, published and not promised when the first record was written.
        change(&mut account, Op::Create, 4, 1);
        tell(&mut account, &record(1, 1, 3, 3, 5), Kept::All);
        // The importer was restarted between the record and its saving, under a greater epoch: the range again, and more.
        for (op, commit, seqval) in [(Op::Create, 2, 1), (Op::Update, 2, 2), (Op::Delete, 3, 1), (Op::Create, 4, 1)] {
            change(&mut account, op, commit, seqval);
        }
        tell(&mut account, &record(2, 1, 4, 4, 9), Kept::All);
        // Its predecessor wakes up late.
        tell(&mut account, &record(1, 3, 5, 9, 9), Kept::All);
        change(&mut account, Op::Create, 6, 1);
        let report = account.finish();
        assert!(report.agrees(), "{report:?}");
        let expected = Counts { creates: 2, updates: 1, deletes: 1, rows: 0, promised: 4, repeats: 5, dead_lettered: 0 };
        assert_eq!(report.tables[&orders()], expected);
        assert_eq!((report.records, report.unpromised, report.from, report.to), (2, 1, lsn(1), lsn(4)));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named_with_its_place() {
        let mut account = Account::new(None);
        change(&mut account, Op::Create, 2, 1);
        tell(&mut account, &record(1, 1, 2, 1, 1), Kept::All);
        change(&mut account, Op::Create, 3, 1);
        tell(&mut account, &record(1, 2, 3, 2, 3), Kept::All);
        change(&mut account, Op::Create, 4, 1);
        tell(&mut account, &record(1, 3, 4, 0, 4), Kept::All);
        let report = account.finish();
        assert!(!report.agrees());
        let found: Vec<_> = report.differences.iter().map(|found| (found.range.to, found.promised, found.found)).collect();
        assert_eq!(found, [(lsn(3), 2, 1), (lsn(4), 0, 1)]);
        let between = &report.differences[0].between[0];
        assert_eq!((between.after.clone(), between.to.clone()), (Some(SequenceNumber::from(1)), SequenceNumber::from(3)));
    }

    #[test]
    fn what_was_trimmed_is_no_difference_and_a_gap_in_the_records_is_one() {
        let mut account = Account::new(None);
        tell(&mut account, &record(1, 1, 2, 5, 5), Kept::NotAll);
        change(&mut account, Op::Create, 3, 4);
        tell(&mut account, &record(1, 2, 3, 2, 7), Kept::Perhaps);
        let report = std::mem::take(&mut account).finish();
        assert!(report.agrees(), "{report:?}");
        assert_eq!(report.trimmed, [Range { from: lsn(1), to: lsn(2) }]);
        let lacking = &report.aged_or_missing[..];
        assert!(matches!(lacking, [Difference { promised: 2, found: 1, .. }]) && lacking[0].range.to == lsn(3), "{lacking:?}");
        tell(&mut account, &record(1, 1, 2, 0, 0), Kept::All);
        tell(&mut account, &record(1, 3, 4, 0, 0), Kept::All);
        let report = account.finish();
        assert_eq!((report.agrees(), report.gaps), (false, vec![Range { from: lsn(2), to: lsn(3) }]));
    }

    #[test]
    fn a_copy_of_a_record_promises_nothing() {
        let mut account = Account::new(None);
        let snapshot = |count, at| ProgressRecord { phase: Phase::Snapshot, ..record(1, 1, 1, count, at) };
        for at in [1, 2] {
            change(&mut account, Op::Read, 1, 0);
            tell(&mut account, &snapshot(1, at), Kept::All);
            tell(&mut account, &snapshot(1, at), Kept::All);
            tell(&mut account, &snapshot(1, 1), Kept::All);
        }
        change(&mut account, Op::Create, 2, 1);
        tell(&mut account, &record(1, 1, 2, 1, 3), Kept::All);
        tell(&mut account, &record(1, 1, 2, 1, 3), Kept::All);
        change(&mut account, Op::Reread, 2, 0);
        let mut reread = record(1, 2, 2, 0, 4);
        reread.reread_counts = [(orders(), 1)].into();
        let told = Reread { generation: 1, reading: 1, consistent_from: None, finished: false, whole: true, floor: Lsn::ZERO };
        reread.rereads = [(orders(), told)].into();
        tell(&mut account, &reread, Kept::All);
        tell(&mut account, &reread, Kept::All);
        // Without an event, and behind what was compared: no copy.
        tell(&mut account, &record(1, 2, 3, 1, 4), Kept::All);
        let report = account.finish();
        assert_eq!(report.differences.iter().map(|found| found.range.to).collect::<Vec<_>>(), [lsn(3)]);
        assert_eq!((report.records, report.tables[&orders()].promised), (5, 5));
    }

    #[test]
    fn rows_that_were_read_are_at_least_as_many_as_promised() {
        let mut account = Account::new(None);
        for _ in 0..3 {
            change(&mut account, Op::Read, 1, 0);
        }
        let snapshot = |count, at| ProgressRecord { phase: Phase::Snapshot, ..record(1, 1, 1, count, at) };
        tell(&mut account, &snapshot(2, 2), Kept::All);
        tell(&mut account, &snapshot(2, 3), Kept::All);
        change(&mut account, Op::Read, 1, 0);
        tell(&mut account, &snapshot(1, 4), Kept::All);
        let mut reread = record(1, 1, 2, 0, 9);
        reread.reread_counts = [(orders(), 1)].into();
        let told = Reread { generation: 1, reading: 1, consistent_from: None, finished: false, whole: true, floor: Lsn::ZERO };
        reread.rereads = [(orders(), told)].into();
        change(&mut account, Op::Reread, 1, 0);
        change(&mut account, Op::Reread, 1, 0);
        for _ in 0..2 {
            let orders = account.table("dbo", "orders");
            account.event(orders, Op::Reread, Position { commit_lsn: lsn(1), command_id: 9, ..Position::default() });
        }
        tell(&mut account, &reread, Kept::All);
        let report = account.finish();
        assert_eq!(report.differences.iter().map(|found| (found.promised, found.found)).collect::<Vec<_>>(), [(2, 1)]);
        // Two were read by somebody else.
        let orders = &report.tables[&orders()];
        assert_eq!((orders.rows, orders.promised, orders.repeats), (6, 6, 2));
    }
}
