#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};

use super::*;
use crate::reread::{self, is_reread};
use crate::state::Memory;

fn lsn(number: u64) -> Lsn {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    Lsn::from_bytes(bytes)
}

fn change(position: Position, table: u16) -> Change {
    let arena = Arc::new(position.seqval.as_bytes().to_vec());
    Change { position, table, kind: Kind::Rows, before: None, after: Some((0, arena.len() as u32)), arena }
}

fn at(number: u64, command_id: i32, seqval: u64, table: u16) -> Change {
    change(Position { commit_lsn: lsn(number), command_id, seqval: lsn(seqval), operation: 2 }, table)
}

fn buffer(dir: &tempfile::TempDir, limit_bytes: usize) -> Buffer {
    let memory = Memory { write_buffer_bytes: 16 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 0, recent_bytes: 1 << 20 };
    // Another source's changes stand before and behind.
    let store = Store::open(dir.path(), 1, memory).unwrap();
    for other in [0, 2] {
        Buffer::new(store.clone(), other, 0).push(vec![at(1, 0, 1, 0), at(u64::from(u16::MAX), 0, 1, 0)]).unwrap();
    }
    Buffer::new(store, 1, limit_bytes)
}

/// What a step is told: table, LSN, image, who has read it.
type Told = (TableId, Lsn, Vec<u8>, Option<i32>);

fn told(taken: &Taken) -> Vec<Told> {
    let mut told = Vec::new();
    taken
        .for_each(|change| {
            told.push((change.table, change.commit_lsn, change.after.unwrap().to_vec(), change.reader));
            Ok(())
        })
        .unwrap();
    // In which order tables come does not matter.
    told.sort_by_key(|&(table, ..)| table);
    told
}

/// A buffer that looks at everything each time.
#[derive(Default)]
struct Naive(Vec<Change>);

impl Naive {
    fn is_due(due: &Due, position: &Position) -> bool {
        if is_reread(position) {
            let (shard, arrival) = reread::numbers(position);
            arrival <= due.covered.up_to(shard)
        } else {
            position.commit_lsn <= due.to
        }
    }

    fn take(&mut self, due: &Due) -> Vec<Told> {
        let mut taken: Vec<Change> = self.0.extract_if(.., |change| Self::is_due(due, &change.position)).collect();
        taken.sort_by_key(Change::order);
        let mut first = BTreeMap::new();
        for change in &taken {
            let Position { commit_lsn, seqval, operation, command_id } = change.position;
            let identity = (commit_lsn, seqval, operation, change.table);
            first.entry(identity).or_insert((command_id, change));
        }
        let mut once: Vec<&Change> = first.into_values().map(|(_, change)| change).collect();
        once.sort_by_key(|change| (change.table, change.order()));
        once.into_iter()
            .map(|change| {
                let ChangeRef { table, commit_lsn, after, reader, .. } = change.borrow();
                (table, commit_lsn, after.unwrap().to_vec(), reader)
            })
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// Changes, and rows of a shard that were read again.
    Push(Vec<(u64, i32, u64, u16)>, u16, u64),
    /// A step as much further, and rows up to these.
    Step(u64, Vec<u64>),
    /// What is passed over.
    Forget(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let changes = prop::collection::vec((1u64..60, 0i32..3, 0u64..4, 0u16..2), 0..20);
    let act = prop_oneof![
        3 => (changes, 0u16..3, 0u64..4).prop_map(|(changes, shard, rows)| Act::Push(changes, shard, rows)),
        3 => (0u64..12, prop::collection::vec(0u64..12, 0..4)).prop_map(|(by, rows)| Act::Step(by, rows)),
        1 => (0u64..70).prop_map(Act::Forget),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// In memory, on the disk, and moved from one to the other in between; what comes may be behind what was passed over, as after a load.
    #[test]
    fn steps_are_told_what_a_buffer_would_tell_that_looks_at_everything(acts in acts(), limit in prop_oneof![Just(0usize), 200usize..4000, Just(usize::MAX)]) {
        let dir = tempfile::tempdir().unwrap();
        let (mut buffer, mut naive) = (buffer(&dir, limit), Naive::default());
        let (mut frontier, mut arrived) = (0, [0; 3]);
        for act in acts {
            match act {
                Act::Push(changes, shard, rows) => {
                    // A change at or below the frontier has been applied, and does not come.
                    let mut changes: Vec<Change> =
                        changes.into_iter().filter(|(at, ..)| *at > frontier).map(|(n, command, seqval, table)| at(n, command, seqval, table)).collect();
                    for _ in 0..rows {
                        arrived[usize::from(shard)] += 1;
                        changes.push(change(reread::position(shard, arrived[usize::from(shard)], 7), 0));
                    }
                    naive.0.extend(changes.iter().cloned());
                    buffer.push(changes).unwrap();
                }
                Act::Step(by, rows) => {
                    frontier += by;
                    let due = Due { to: lsn(frontier), covered: Covered(rows) };
                    let taken = buffer.take(&due).unwrap();
                    let expected = naive.take(&due);
                    prop_assert_eq!(&told(&taken), &expected);
                    prop_assert_eq!(told(&taken), expected, "a second time");
                    buffer.forget(&due).unwrap();
                }
                Act::Forget(to) => {
                    naive.take(&Due::changes(lsn(to)));
                    buffer.forget(&Due::changes(lsn(to))).unwrap();
                }
            }
            let held: usize = naive.0.iter().map(Change::bytes).sum();
            prop_assert!(buffer.bytes() <= limit.min(held), "{} bytes", buffer.bytes());
            prop_assert!(!buffer.has_spilled() || !naive.0.is_empty());
        }
    }
}

/// Keys that RocksDB has passed, removed ones included, for a hundred steps of ten changes each, with so many changes behind them that wait.
fn passed(steps_before: u64, behind: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut buffer = buffer(&dir, 0);
    let steps = steps_before + 100;
    for first in (1..=steps * 10 + behind).step_by(1000) {
        buffer.push((first..first + 1000).map(|number| at(number, 0, number, 0)).collect()).unwrap();
    }
    let mut counters = PerfContext::default();
    for step in 1..=steps {
        if step == steps_before + 1 {
            set_perf_stats(PerfStatsLevel::EnableCount);
            counters.reset();
        }
        let due = Due::changes(lsn(step * 10));
        let taken = buffer.take(&due).unwrap();
        assert_eq!(told(&taken).len(), 10);
        buffer.forget(&due).unwrap();
    }
    let passed = counters.metric(PerfMetric::InternalKeySkippedCount) + counters.metric(PerfMetric::InternalDeleteSkippedCount);
    set_perf_stats(PerfStatsLevel::Disable);
    assert!(buffer.has_spilled());
    passed
}

#[test]
fn a_step_reads_what_it_takes_whatever_waits_and_whatever_was_taken_before() {
    let few = passed(10, 2_000);
    assert!(few >= 1000, "{few} keys are passed for 1000 changes");
    let (many, later) = (passed(10, 50_000), passed(1_500, 2_000));
    assert!(many < few + few / 10, "{few} keys are passed with 2000 changes behind, {many} with 50000");
    assert!(later < few + few / 10, "{few} keys are passed after 10 steps, {later} after 1500");
}
