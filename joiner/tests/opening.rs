//! How long a joiner takes to open its state does not depend on how much is in it: what it reads meanwhile is counted.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use joiner::Engine;
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
use schemas::progress::{Phase, SequenceNumber, ShardId};
use streams::{Batch, Layout};
use support::{config, encode, lsn, order, orders, read, record};

/// A state that is live with so many orders.
fn state(dir: &Path, count: i64) {
    let mut engine = Engine::open(&config(dir)).unwrap();
    let stream = Layout::Shared.stream("p", &orders().name);
    let (shard, last) = (ShardId("0".into()), SequenceNumber::from(count as u64));
    let row = |id: i64| (SequenceNumber::from(id as u64), encode(&read(orders(), 1, order(id, "NEW"))).into());
    let records = (1..=count).map(row).collect();
    engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records }).unwrap();
    let phase = Phase::SnapshotComplete { consistent_from: lsn(1) };
    let mut complete = record(phase, 1, 1, &[(&orders(), count as u64)]);
    complete.positions.entry(stream).or_default().insert(shard.clone(), last);
    engine.progress(&Layout::progress_stream("p"), &shard, &SequenceNumber::from(1), complete).unwrap();
    assert!(engine.advance().unwrap());
    assert!(engine.handle().outbox().head().borrow().live);
}

/// Blocks and bytes of rows that are read while the state is opened, on this thread.
fn read_while_opening(dir: &Path) -> (u64, u64) {
    set_perf_stats(PerfStatsLevel::EnableCount);
    let mut counted = PerfContext::default();
    counted.reset();
    let engine = Engine::open(&config(dir)).unwrap();
    let of = |metric| counted.metric(metric);
    let bytes = of(PerfMetric::GetReadBytes) + of(PerfMetric::IterReadBytes) + of(PerfMetric::MultigetReadBytes);
    let blocks = of(PerfMetric::BlockReadCount) + of(PerfMetric::BlockCacheHitCount);
    set_perf_stats(PerfStatsLevel::Disable);
    assert!(engine.handle().outbox().head().borrow().live, "the first answer can be given at once");
    (blocks, bytes)
}

#[test]
fn opening_reads_as_much_of_a_large_state_as_of_a_small_one() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    state(&small, 10);
    state(&large, 50_000);
    let (small, large) = (read_while_opening(&small), read_while_opening(&large));
    assert!(small.1 > 0, "nothing was counted");
    // Each file brings its index and its filter, and how many there are follows from how far compaction has come; the rows alone are two hundred blocks.
    assert!(large.0 <= small.0 + 40 && large.1 <= small.1 + 4096, "{small:?} {large:?}");
}
