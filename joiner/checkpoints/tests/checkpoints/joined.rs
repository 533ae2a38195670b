//! A joiner's own state: checkpoints beside its work, restores at random, and an S3 stand-in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use checkpoints::{Checkpoints, Error, Retention, Service, Which, begin_with};
use joiner::Engine;
use objects::{Config, LocalOptions, Objects, S3Options};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId};
use sinks::test_support::Ministack;
use streams::{Batch, Layout};
use tokio_util::sync::CancellationToken;

use crate::store::World;
use crate::support::{ORDER, change, config, encode, item, items, lsn, order, orders, plan, read, record};

/// What was committed at an LSN, and what the source then held.
struct Tick {
    events: Vec<ChangeEvent>,
    record: ProgressRecord,
    expected: BTreeMap<i64, BTreeSet<(i64, i64)>>,
}

/// The tables, as a sequence of commits: the first is the snapshot.
struct History {
    ticks: Vec<Tick>,
}

const START: u8 = 5;

impl History {
    fn new(random: &mut ChaCha8Rng, ticks: u8, orders_at_first: i64) -> Self {
        let mut held: BTreeMap<i64, BTreeSet<(i64, i64)>> =
            (0..orders_at_first).map(|id| (id, BTreeSet::from([(1, id)]))).collect();
        let mut events: Vec<ChangeEvent> = held.keys().map(|id| read(orders(), START, order(*id, "new"))).collect();
        events.extend(held.keys().map(|id| read(items(), START, item(*id, 1, i128::from(*id)))));
        let counts = [(&orders(), events.len() as u64 / 2), (&items(), events.len() as u64 / 2)];
        let snapshot = record(Phase::SnapshotComplete { consistent_from: lsn(START) }, START, START, &counts);
        let mut all = vec![Tick { events, record: snapshot, expected: held.clone() }];
        for at in START + 1..=START + ticks {
            let mut events = Vec::new();
            let mut published = [0, 0];
            for number in 1..=random.random_range(1..4) {
                let id = random.random_range(0..orders_at_first + 3);
                let (which, event) = Self::change(random, &mut held, at, number, id);
                published[which] += 1;
                events.push(event);
            }
            let record = record(Phase::Tail, at - 1, at, &[(&orders(), published[0]), (&items(), published[1])]);
            all.push(Tick { events, record, expected: held.clone() });
        }
        Self { ticks: all }
    }

    fn change(
        random: &mut ChaCha8Rng,
        held: &mut BTreeMap<i64, BTreeSet<(i64, i64)>>,
        at: u8,
        number: u8,
        id: i64,
    ) -> (usize, ChangeEvent) {
        let row = |line: i64, cents: i64| Some(item(id, line, i128::from(cents)));
        let Some(lines) = held.get_mut(&id) else {
            held.insert(id, BTreeSet::new());
            return (0, change(orders(), at, number, None, Some(order(id, "new"))));
        };
        if lines.is_empty() && random.random_bool(0.3) {
            held.remove(&id);
            return (0, change(orders(), at, number, Some(order(id, "new")), None));
        }
        let line = random.random_range(1..5);
        let new = i64::from(random.next_u32() % 10_000);
        match lines.iter().find(|(held, _)| *held == line).copied() {
            Some((line, cents)) if random.random_bool(0.4) => {
                lines.remove(&(line, cents));
                (1, change(items(), at, number, row(line, cents), None))
            }
            Some((line, cents)) => {
                lines.remove(&(line, cents));
                lines.insert((line, new));
                (1, change(items(), at, number, row(line, cents), row(line, new)))
            }
            None => {
                lines.insert((line, new));
                (1, change(items(), at, number, None, row(line, new)))
            }
        }
    }

    /// Hands on what follows the engine's positions, up to and with a tick. Sequence numbers are those of one long stream.
    fn feed(&self, engine: &mut Engine, up_to: usize) {
        let (stream, shard) = (Layout::Shared.stream("p", &orders().name), ShardId("0".into()));
        let progress = Layout::progress_stream("p");
        let at = |engine: &Engine, stream| engine.positions().get(stream).and_then(|shards| shards.get(&shard)).cloned();
        let (read_to, told_to) = (at(engine, &stream), at(engine, &progress));
        let mut next = 1;
        for (n, tick) in self.ticks.iter().enumerate().take(up_to + 1) {
            let numbered = tick.events.iter().zip(next..).map(|(event, n)| (SequenceNumber::from(n), encode(event).into()));
            let records: Vec<_> = numbered.filter(|(n, _)| read_to.as_ref().is_none_or(|read| n > read)).collect();
            next += tick.events.len() as u64;
            if !records.is_empty() {
                engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records }).unwrap();
            }
            let told = SequenceNumber::from(n as u64 + 1);
            if told_to.as_ref().is_none_or(|told_to| told > *told_to) {
                let mut record = tick.record.clone();
                record.positions.entry(stream.clone()).or_default().insert(shard.clone(), SequenceNumber::from(next - 1));
                engine.progress(&progress, &shard, &told, record).unwrap();
                engine.advance().unwrap();
            }
        }
    }

    /// Every entity of a live engine is the join of the source as of its frontier; answers which tick that is.
    fn holds(&self, engine: &Engine) -> usize {
        let n = self.ticks.iter().position(|tick| tick.record.to_lsn == engine.frontier()).unwrap();
        let found = std::sync::Mutex::new(BTreeMap::new());
        engine
            .scan("order", 1, &|changes| {
                let mut found = found.lock().unwrap();
                for change in changes {
                    found.insert(change.key.to_string().parse().unwrap(), change.document.unwrap().to_string());
                }
                true
            })
            .unwrap();
        let decimal = |cents: i64| format!("{}.{:02}", cents / 100, cents % 100);
        let document = |(id, lines): (&i64, &BTreeSet<(i64, i64)>)| {
            let items: Vec<String> =
                lines.iter().map(|(line, cents)| format!(r#"{{"line":{line},"price":"{}"}}"#, decimal(*cents))).collect();
            let total = if lines.is_empty() { "0.00".to_owned() } else { decimal(lines.iter().map(|(_, cents)| cents).sum()) };
            (*id, format!(r#"{{"id":{id},"status":"new","items":[{}],"total":"{total}"}}"#, items.join(",")))
        };
        let expected: BTreeMap<i64, String> = self.ticks[n].expected.iter().map(document).collect();
        assert_eq!(found.into_inner().unwrap(), expected, "tick {n}");
        n
    }
}

/// Takes a checkpoint of a joiner that may go on meanwhile.
async fn save(writer: &mut checkpoints::Writer, engine: &Engine, directory: &Path, name: Option<&str>) -> checkpoints::Made {
    let folder = directory.join("checkpoint");
    let facts = engine.handle().checkpoint(&folder).unwrap();
    let made = writer.save(&folder, facts, name, 1).await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    made
}

async fn restored(checkpoints: &Checkpoints, directory: &Path) -> Engine {
    let config = config(&directory.join("state"));
    assert!(begin_with(checkpoints, &config, true).await.unwrap().is_some());
    Engine::open(&config).unwrap()
}

#[tokio::test]
async fn from_checkpoints_at_random_the_joiner_goes_on_as_if_nothing_had_been() {
    for seed in 0..6 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
        let history = History::new(&mut random, 60, 6);
        let (config, checkpoints) = (config(&directory.path().join("state")), world.checkpoints());
        let mut engine = Engine::open(&config).unwrap();
        let mut writer = checkpoints.take_over(1).await.unwrap();
        let (mut at, mut rewinds, mut incarnations) = (0, 0, BTreeSet::new());
        while at < 60 {
            at = (at + random.random_range(1..6)).min(60);
            history.feed(&mut engine, at);
            assert_eq!(history.holds(&engine), at);
            incarnations.insert(engine.handle().outbox().head().borrow().incarnation);
            if random.random_bool(0.4) {
                save(&mut writer, &engine, directory.path(), None).await;
                writer.expire(Retention { keep: 3, keep_ms: i64::MAX }, 1).await.unwrap();
                world.holds_only_what_is_named().await;
            }
            // The machine is lost, or somebody rewinds to any checkpoint that is kept.
            let listed = checkpoints.list().await.unwrap();
            if !listed.is_empty() && random.random_bool(0.3) {
                drop(engine);
                if random.random_bool(0.5) {
                    std::fs::remove_dir_all(&config.state_dir).unwrap();
                    engine = restored(&checkpoints, directory.path()).await;
                } else {
                    let number = listed[random.random_range(0..listed.len())].number;
                    let manifest = checkpoints.expected(&Which::Number(number)).await.unwrap();
                    checkpoints.restore_for(&manifest, &config, &config.state_dir).await.unwrap();
                    engine = Engine::open(&config).unwrap();
                }
                writer = checkpoints.take_over(1).await.unwrap();
                at = history.holds(&engine);
                rewinds += 1;
            }
        }
        assert!(rewinds > 1, "seed {seed}: {rewinds}");
        assert_eq!(incarnations.len(), rewinds + 1, "each restored state has an outbox of its own");
    }
}

#[tokio::test]
async fn the_bytes_of_a_checkpoint_are_proportional_to_what_changed() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let history = History::new(&mut ChaCha8Rng::seed_from_u64(1), 9, 20_000);
    let mut engine = Engine::open(&config(&directory.path().join("state"))).unwrap();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    history.feed(&mut engine, 0);
    let first = save(&mut writer, &engine, directory.path(), None).await;
    assert_eq!(first.uploaded_bytes, first.bytes);
    // Files that are merged in the background meanwhile are new ones: that happens once, and then there is nothing to merge.
    let (mut at, mut uploaded) = (0, Vec::new());
    loop {
        at += 3;
        history.feed(&mut engine, at);
        let with_commits = save(&mut writer, &engine, directory.path(), None).await.uploaded_bytes;
        let without = save(&mut writer, &engine, directory.path(), None).await.uploaded_bytes;
        uploaded.push((with_commits, without));
        if with_commits * 10 < first.bytes && without <= with_commits {
            break;
        }
        assert!(at < 9, "{} bytes, then for three commits, and for none: {uploaded:?}", first.bytes);
    }
    println!("{} bytes, then for three commits, and for none: {uploaded:?}", first.bytes);
    drop(engine);
    std::fs::remove_dir_all(directory.path().join("state")).unwrap();
    assert_eq!(history.holds(&restored(&world.checkpoints(), directory.path()).await), at);
}

#[tokio::test]
async fn a_state_of_another_format_source_or_definition_is_refused_before_anything_is_touched() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let history = History::new(&mut ChaCha8Rng::seed_from_u64(2), 1, 3);
    let ours = config(&directory.path().join("state"));
    let mut engine = Engine::open(&ours).unwrap();
    history.feed(&mut engine, 1);
    let folder = directory.path().join("checkpoint");
    let facts = engine.handle().checkpoint(&folder).unwrap();
    drop(engine);
    std::fs::remove_dir_all(&ours.state_dir).unwrap();
    let mut writer = world.checkpoints().take_over(1).await.unwrap();
    let refused = async |config: &joiner::Config| {
        let error = begin_with(&world.checkpoints(), config, true).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert!(!std::fs::exists(&config.state_dir).unwrap() && error.to_string().contains("`restore: false`"), "{error}");
        error.to_string()
    };
    let mut future = facts.clone();
    future.format += 1;
    writer.save(&folder, future, None, 1).await.unwrap();
    let told = refused(&ours).await;
    assert!(told.contains(&format!("has format {}, this version reads", facts.format + 1)), "{told}");
    writer.save(&folder, facts, None, 1).await.unwrap();
    let mut other = ours.clone();
    other.sources[0].name = "billing".into();
    assert!(refused(&other).await.contains("belongs to source \"shop\""));
    let mut other = ours.clone();
    other.plans = vec![plan(&format!("{ORDER}where: id > 3\n"))];
    assert!(refused(&other).await.contains("definitions"));
    // Nothing is restored where it is not wanted, nor where there is something.
    assert_eq!(begin_with(&world.checkpoints(), &ours, false).await.unwrap(), None);
    assert!(begin_with(&world.checkpoints(), &ours, true).await.unwrap().is_some());
    assert_eq!(begin_with(&world.checkpoints(), &ours, true).await.unwrap(), None);
    assert_eq!(history.holds(&Engine::open(&ours).unwrap()), 1);
}

#[tokio::test]
async fn a_service_makes_savepoints_until_another_process_has_taken_over() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let history = History::new(&mut ChaCha8Rng::seed_from_u64(4), 2, 3);
    let ours = config(&directory.path().join("state"));
    let mut engine = Engine::open(&ours).unwrap();
    history.feed(&mut engine, 1);
    let wanted = checkpoints::Config::new(Config::Local(LocalOptions { path: "nowhere".into() }));
    let service = Service::new(world.checkpoints(), &wanted, engine.handle(), &ours.state_dir, None);
    let (status, asking, stop) = (service.status(), service.asking(), CancellationToken::new());
    let running = tokio::spawn(service.run(stop.clone()));
    let made = asking.savepoint("one").await.unwrap();
    assert_eq!((status.get().last.unwrap().number, made.state.frontier), (made.number, engine.frontier()));
    assert!(matches!(asking.savepoint("one").await, Err(Error::Exists { .. })));
    let mut other = world.checkpoints().take_over(1).await.unwrap();
    assert!(matches!(asking.savepoint("two").await, Err(Error::Superseded { .. })));
    assert!(matches!(asking.savepoint("three").await, Err(Error::Ended { .. })));
    assert_eq!(status.get().phase, checkpoints::Phase::Superseded);
    stop.cancel();
    running.await.unwrap();
    // The joiner goes on, and nothing is left beside its state.
    history.feed(&mut engine, 2);
    assert_eq!(history.holds(&engine), 2);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    save(&mut other, &engine, directory.path(), None).await;
    assert_eq!(world.checkpoints().list().await.unwrap().len(), 2);
}

/// One that was frozen, and wakes up late, may take the checkpoints over before it knows that its turn is over.
#[tokio::test(start_paused = true)]
async fn whose_turn_it_is_takes_the_checkpoints_back() {
    let (world, directory) = (World::default(), tempfile::tempdir().unwrap());
    let history = History::new(&mut ChaCha8Rng::seed_from_u64(5), 2, 3);
    let ours = config(&directory.path().join("state"));
    let mut engine = Engine::open(&ours).unwrap();
    history.feed(&mut engine, 2);
    let wanted = checkpoints::Config::new(Config::Local(LocalOptions { path: "nowhere".into() }));
    let service = Service::new(world.checkpoints(), &wanted, engine.handle(), &ours.state_dir, None).in_turn(true);
    let (status, asking, stop) = (service.status(), service.asking(), CancellationToken::new());
    let running = tokio::spawn(service.run(stop.clone()));
    asking.savepoint("one").await.unwrap();
    let first = status.get().epoch;
    let mut late = world.checkpoints().take_over(1).await.unwrap();
    assert!(matches!(asking.savepoint("two").await, Err(Error::Superseded { .. })));
    // Not at once: the other would take them over again, and so on.
    assert!(matches!(asking.savepoint("three").await, Err(Error::Ended { .. })));
    save(&mut late, &engine, directory.path(), None).await;
    while status.get().phase == checkpoints::Phase::Superseded {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    asking.savepoint("four").await.unwrap();
    let taken_back = status.get();
    assert!(taken_back.epoch > first && taken_back.error.is_none(), "{taken_back:?}");
    let folder = directory.path().join("late");
    let facts = engine.handle().checkpoint(&folder).unwrap();
    let refused = late.save(&folder, facts, None, 1).await;
    assert!(matches!(refused, Err(Error::Superseded { .. })), "{refused:?}");
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn checkpoints_are_made_raced_for_and_restored_in_s3() {
    let aws = Ministack::start();
    aws.create_bucket("checkpoints").await;
    let s3 = Config::S3(S3Options {
        bucket: "checkpoints".into(),
        prefix: "tributary/shop".into(),
        region: None,
        endpoint: Some(aws.endpoint_url()),
        stand_in_credentials: true,
    });
    let checkpoints = Checkpoints::open(Objects::open(&s3).await.unwrap(), "shop");
    let directory = tempfile::tempdir().unwrap();
    let history = History::new(&mut ChaCha8Rng::seed_from_u64(3), 8, 500);
    let mut engine = Engine::open(&config(&directory.path().join("state"))).unwrap();
    history.feed(&mut engine, 4);
    let mut old = checkpoints.take_over(1).await.unwrap();
    let first = save(&mut old, &engine, directory.path(), Some("four")).await;
    let mut new = checkpoints.take_over(1).await.unwrap();
    history.feed(&mut engine, 8);
    let folder = directory.path().join("old");
    let facts = engine.handle().checkpoint(&folder).unwrap();
    let error = old.save(&folder, facts, None, 1).await.unwrap_err();
    assert!(matches!(error, Error::Superseded { .. }), "{error}");
    let second = save(&mut new, &engine, directory.path(), None).await;
    assert!(second.uploaded_bytes < first.uploaded_bytes, "{first:?} {second:?}");
    new.expire(Retention { keep: 1, keep_ms: i64::MAX }, 1).await.unwrap();
    drop(engine);
    std::fs::remove_dir_all(directory.path().join("state")).unwrap();
    assert_eq!(history.holds(&restored(&checkpoints, directory.path()).await), 8);
    let named = checkpoints.expected(&Which::Named("four".into())).await.unwrap();
    let config = config(&directory.path().join("state"));
    checkpoints.restore_for(&named, &config, &config.state_dir).await.unwrap();
    let mut engine = Engine::open(&config).unwrap();
    assert_eq!(history.holds(&engine), 4);
    history.feed(&mut engine, 8);
    assert_eq!(history.holds(&engine), 8);
}
