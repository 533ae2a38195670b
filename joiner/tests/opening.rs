//! How long a joiner takes to open its state does not depend on how much is in it: what it reads meanwhile is counted. States of earlier formats are converted when they are opened.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use joiner::{Config, Engine, Error};
use rocksdb::perf::{PerfContext, PerfMetric, PerfStatsLevel, set_perf_stats};
use schemas::progress::{Phase, SequenceNumber, ShardId};
use serde_json::{Map, Value as Json};
use streams::{Batch, Layout};
use support::shop::Shop;
use support::{config, crash, encode, item, items, lsn, order, orders, plan, read, record};

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

/// What a power failure leaves of a state that was just made, whatever of it was forced to the disk, can be opened, and opened again, with other definitions too: there may be definitions in it and nothing else.
#[test]
fn a_state_that_was_just_made_comes_to_serve_other_definitions_after_a_power_failure() {
    let dir = crash::dir();
    drop(Engine::open(&config(dir.path())).unwrap());
    let (name, _) = crash::log(dir.path());
    let ends = crash::ends_of_batches(dir.path(), &name, 0);
    assert!(ends.len() > 1, "{ends:?}");
    for end in ends {
        let left = crash::copy(dir.path());
        crash::cut(left.path(), &name, end);
        let others = Config { plans: vec![plan("entity: order\ntable: dbo.orders\nfields: [id]\n")], ..config(left.path()) };
        for _ in 0..2 {
            Engine::open(&others).unwrap_or_else(|error| panic!("cut at {end}: {error}"));
        }
        let mut shop = Shop::open(others);
        shop.feed(&[read(orders(), 5, order(1, "NEW"))]);
        shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)]));
        assert!(shop.engine.handle().outbox().head().borrow().live, "cut at {end}");
    }
}

/// A kill while the database is made leaves any part of what makes it: its column families are entered one by one in a file that is a log.
#[test]
fn a_database_that_was_being_made_when_the_joiner_was_killed_is_made() {
    let dir = crash::dir();
    drop(Engine::open(&config(dir.path())).unwrap());
    let database = |state: &Path| state.join(joiner::checkpoint::DATABASE);
    let current = std::fs::read_to_string(database(dir.path()).join("CURRENT")).unwrap();
    let manifest = current.trim();
    let ends = crash::ends_of_batches(dir.path(), manifest, 0);
    let is_named = |end: &u64| {
        // `CURRENT` names the file only when its first entries are there.
        let left = crash::copy(dir.path());
        crash::cut(left.path(), manifest, *end);
        rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), database(left.path()), false).is_ok()
    };
    let ends: Vec<u64> = ends.into_iter().filter(is_named).collect();
    assert!(ends.len() > 10, "only {} entries", ends.len());
    // Before there was a database; and then after each entry.
    for end in std::iter::once(None).chain(ends.into_iter().map(Some)) {
        let left = crash::copy(dir.path());
        let config = config(left.path());
        for file in std::fs::read_dir(database(left.path())).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "log") {
                std::fs::remove_file(file).unwrap();
            }
        }
        match end {
            Some(end) => crash::cut(left.path(), manifest, end),
            None => std::fs::remove_file(database(left.path()).join("CURRENT")).unwrap(),
        }
        assert!(joiner::definitions::served(left.path()).unwrap().is_empty(), "{end:?}");
        joiner::definitions::compare(&config).unwrap();
        let mut shop = Shop::open(config);
        shop.feed(&[read(orders(), 5, order(1, "new"))]);
        shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)]));
        assert_eq!(shop.frontier(), lsn(5), "{end:?}");
    }
}

const IDENTITY: &str = "identity.json";

/// The column families of a format.
fn families(format: u32) -> &'static [&'static str] {
    match format {
        2 => &["default", "rows", "links", "pending", "seen", "outbox", "spill", "meta"],
        _ => panic!("no state of format {format} is known"),
    }
}

/// Makes of a state what it was in an earlier format: its column families, what its standing said, its number.
fn as_of_format(format: u32, state: &Path) {
    let database = state.join(joiner::checkpoint::DATABASE);
    let options = rocksdb::Options::default();
    let known = rocksdb::DB::list_cf(&options, &database).unwrap();
    let mut db = rocksdb::DB::open_cf(&options, &database, &known).unwrap();
    for family in known.iter().filter(|family| !families(format).contains(&family.as_str())) {
        db.drop_cf(family).unwrap();
    }
    let meta = db.cf_handle("meta").unwrap();
    let mut standing: Map<String, Json> = serde_json::from_slice(&db.get_cf(meta, "standing").unwrap().unwrap()).unwrap();
    // There was one source, and what is its stood beside the rest.
    let sources = standing.remove("sources").unwrap();
    standing.extend(sources[0].as_object().unwrap().clone());
    for since in ["source", "live", "portions_to"] {
        assert!(standing.remove(since).is_some(), "{since}");
    }
    db.put_cf(meta, "standing", Json::from(standing).to_string()).unwrap();
    db.delete_cf(meta, "parts").unwrap();
    drop(db);
    set_format(state, format);
}

fn identity(state: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(state.join(IDENTITY)).unwrap()).unwrap()
}

fn set_format(state: &Path, format: u32) {
    let mut identity = identity(state);
    identity["tributary_joiner_state"] = format.into();
    std::fs::write(state.join(IDENTITY), identity.to_string()).unwrap();
}

#[test]
fn a_state_of_format_2_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(config(dir.path()));
    shop.feed(&[read(orders(), 5, order(1, "new")), read(items(), 5, item(1, 1, 100)), read(items(), 5, item(1, 2, 100))]);
    shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1), (&items(), 2)]));
    shop.order_changes(6, "new", "open");
    let head = *shop.engine.handle().outbox().head().borrow();
    let current = identity(dir.path())["tributary_joiner_state"].clone();
    shop = shop.closed_while(|state| as_of_format(2, state));
    assert_eq!(identity(dir.path())["tributary_joiner_state"], current, "it says of which format it is now");
    assert_eq!(*shop.engine.handle().outbox().head().borrow(), head);
    shop.order_changes(7, "open", "paid");
    shop.item_changes(8, 1, 2);
    let told = shop.told();
    assert_eq!(told.iter().map(|(_, version, _)| *version).collect::<Vec<_>>(), [lsn(6), lsn(7), lsn(8)]);
    let last = &told[2].2;
    assert_eq!((&last["status"], &last["total"]), (&"paid".into(), &"3.00".into()));
    // A kill after the database was converted, and before that was said.
    shop = shop.closed_while(|state| set_format(state, 2));
    assert_eq!(identity(dir.path())["tributary_joiner_state"], current);
    assert_eq!(shop.frontier(), lsn(8));
}

#[test]
fn formats_that_are_not_read_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    state(dir.path(), 1);
    let current = identity(dir.path())["tributary_joiner_state"].as_u64().unwrap() as u32;
    let before = crash::copy(dir.path());
    for (format, advice) in [(1, "no longer converted"), (current + 1, "a later version")] {
        set_format(dir.path(), format);
        let error = Engine::open(&config(dir.path())).unwrap_err();
        assert!(matches!(error, Error::Format { found, .. } if found == format), "{error}");
        let text = error.to_string();
        assert!(text.contains(advice) && text.contains("empty directory") && text.contains("not touched"), "{text}");
        set_format(dir.path(), current);
        assert_eq!(crash::log(dir.path()), crash::log(before.path()), "nothing was written");
    }
    Engine::open(&config(dir.path())).unwrap();
}
