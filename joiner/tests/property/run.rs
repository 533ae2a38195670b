//! One case: a source that publishes, streams, and a joiner that is fed, stopped and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use joiner::dead_letters::{Letter, TooLarge, Which};
use joiner::definitions::Way;
use joiner::reshape::{Copied, reshape};
use joiner::{Config, Engine, Error, Memory, Page};
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::event::{ChangeEvent, Op};
use schemas::plan::Plan;
use schemas::progress::{Phase, ProgressRecord, Reread, SequenceNumber, ShardId, ShardPositions, StreamName};
use schemas::{KeyRange, Lsn};
use serde_json::Value as Json;
use streams::{Batch, Layout};
use tempfile::TempDir;

use crate::brute::Brute;
use crate::change::changed;
use crate::crash::{self, dir};
use crate::dice::Dice;
use crate::encodings::Encodings;
use crate::world::{Database, World, hours};

const SHARDS: usize = 2;
/// Of the source where there is but one.
const NAME: &str = "shop";

fn lsn(n: u64) -> Lsn {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&n.to_be_bytes());
    Lsn::from_bytes(bytes)
}

/// What has been published: records by stream and shard, and the progress records.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) events: BTreeMap<(StreamName, ShardId), Vec<bytes::Bytes>>,
    pub(crate) progress: Vec<ProgressRecord>,
}

/// What the source was, by LSN.
#[derive(Default)]
pub(crate) struct History {
    databases: BTreeMap<u64, Database>,
    /// The greatest commit time that records have named by then.
    times: BTreeMap<u64, i64>,
}

impl History {
    pub(crate) fn database(&self, at: u64) -> Option<&Database> {
        self.databases.range(..=at).next_back().map(|(_, database)| database)
    }

    pub(crate) fn time(&self, at: u64) -> i64 {
        self.times.range(..=at).next_back().map_or(0, |(_, time)| *time)
    }
}

/// The source and its importer.
pub(crate) struct Source<'a> {
    /// Also what its streams' names begin with.
    name: &'a str,
    pub(crate) world: &'a World,
    /// Those that are its own.
    pub(crate) tables: Vec<usize>,
    encodings: Encodings,
    layout: Layout,
    database: Database,
    pub(crate) history: History,
    /// From this LSN on its clock is behind, for a while.
    set_back: u64,
    log: Vec<ChangeEvent>,
    now: u64,
    epoch: u64,
    pub(crate) streams: Streams,
    counts: BTreeMap<schemas::TableName, u64>,
    /// The table that is read again, if one is.
    reread: Option<Rereading>,
    generation: u64,
    reread_counts: BTreeMap<schemas::TableName, u64>,
    /// Which attempt reads, and rows of attempts before that are still on their way.
    reading: i32,
    late: Vec<ChangeEvent>,
    /// Changes of a table in an interval of LSNs that nobody will see.
    lost: Vec<(schemas::TableName, Lsn, Lsn)>,
}

#[derive(Clone)]
struct Rereading {
    table: usize,
    told: Reread,
    /// Until the end, nobody knows from when on the table is consistent.
    at_once: bool,
    /// Rows are read piece by piece, by a number that follows from their key: so many pieces, and the next.
    pieces: usize,
    next: usize,
}

impl Source<'_> {
    fn commit(&mut self, dice: &mut Dice) {
        self.now += 1 + dice.below(3) as u64;
        let events = self.world.transaction(dice, &self.tables, &mut self.database, lsn(self.now));
        self.log.extend(events);
        self.history.databases.insert(self.now, self.database.clone());
    }

    fn publish(&mut self, event: &ChangeEvent) {
        let data = self.encodings.encode(event);
        let stream = self.layout.stream(self.name, &event.table.name);
        let table = self.world.tables.iter().position(|table| table.name == event.table.name).unwrap();
        let key = self.world.normal_key(table, event.row().unwrap()).concat();
        let shard = key.bytes().map(usize::from).sum::<usize>() % SHARDS;
        self.streams.events.entry((stream, ShardId(shard.to_string()))).or_default().push(data.into());
        let counts = if event.op == Op::Reread { &mut self.reread_counts } else { &mut self.counts };
        *counts.entry(event.table.name.clone().within()).or_default() += 1;
    }

    /// Of one commit an hour.
    fn time(&self, at: u64) -> i64 {
        hours(at as i64 - if (self.set_back..self.set_back + 8).contains(&at) { 9 } else { 0 })
    }

    fn record(&mut self, phase: Phase, from: u64, to: u64) {
        // That of a snapshot is not known, and a record of rows that were read again moves nothing.
        let commit_time_ms = if phase == Phase::Tail && to > from { self.time(to) } else { 0 };
        let greatest = self.history.times.values().copied().max().unwrap_or_default();
        // A record of an importer that has died meanwhile may come to a place where another one was before.
        self.history.times.entry(to).or_insert(greatest.max(commit_time_ms));
        let mut positions = ShardPositions::new();
        for ((stream, shard), records) in &self.streams.events {
            positions.entry(stream.clone()).or_default().insert(shard.clone(), SequenceNumber::from(records.len() as u64));
        }
        self.streams.progress.push(ProgressRecord {
            source: self.name.into(),
            epoch: self.epoch,
            phase,
            from_lsn: lsn(from),
            to_lsn: lsn(to),
            commit_time_ms,
            counts: std::mem::take(&mut self.counts),
            dead_lettered: BTreeMap::new(),
            rereads: self
                .reread
                .iter()
                .map(|reread| {
                    let told = Reread { reading: self.reading, ..reread.told.clone() };
                    (self.world.tables[reread.table].name.clone().within(), told)
                })
                .collect(),
            reread_counts: std::mem::take(&mut self.reread_counts),
            positions,
        });
    }

    fn read_rows(&self, table: usize) -> Vec<Vec<schemas::value::Value>> {
        self.database[table].values().cloned().collect()
    }

    /// Reads tables in pieces while transactions go on, and answers the snapshot's LSN.
    fn snapshot(&mut self, dice: &mut Dice) -> u64 {
        let start = self.now;
        for table in self.tables.clone() {
            // A piece may be read twice: the importer was restarted.
            for _ in 0..1 + usize::from(dice.chance(25)) {
                for row in self.read_rows(table) {
                    let position = schemas::Position { commit_lsn: lsn(start), ..Default::default() };
                    let schema = self.world.tables[table].clone();
                    self.publish(&ChangeEvent {
                        table: schema,
                        op: Op::Read,
                        before: None,
                        after: Some(row),
                        position,
                        commit_time_ms: 1,
                    });
                }
                if dice.chance(50) {
                    self.record(Phase::Snapshot, start, start);
                }
                for _ in 0..dice.below(3) {
                    self.commit(dice);
                }
            }
        }
        let consistent_from = lsn(self.now);
        self.record(Phase::SnapshotComplete { consistent_from }, start, start);
        start
    }

    /// Publishes changes in (`from`, `to`]; not in the total order across shards.
    fn tick(&mut self, dice: &mut Dice, from: u64, to: u64) {
        let mut events: Vec<ChangeEvent> = self
            .log
            .iter()
            .filter(|event| event.position.commit_lsn > lsn(from) && event.position.commit_lsn <= lsn(to))
            .filter(|event| {
                let at = event.position.commit_lsn;
                !self.lost.iter().any(|(table, from, to)| *table == event.table.name && at > *from && at <= *to)
            })
            .cloned()
            .collect();
        if dice.chance(30) {
            events.sort_by_key(|event| event.table.name.clone());
        }
        events.iter().for_each(|event| self.publish(event));
    }

    /// A table begins to be read again: because changes of it are lost, or because somebody asked for it.
    fn begin_reread(&mut self, dice: &mut Dice, saved: u64) {
        let table = *dice.pick(&self.tables);
        self.generation += 1;
        let gap = dice.chance(50);
        if gap {
            for _ in 0..1 + dice.below(4) {
                self.commit(dice);
            }
            self.lost.push((self.world.tables[table].name.clone(), lsn(saved), lsn(self.now)));
        }
        let at_once = gap || dice.chance(30);
        let told = Reread {
            generation: self.generation,
            reading: 0,
            consistent_from: (!at_once).then(|| lsn(saved)),
            finished: false,
            whole: gap || dice.chance(50),
            floor: Lsn::ZERO,
        };
        self.reread = Some(Rereading { table, told, at_once, pieces: 1 + dice.below(3), next: 0 });
    }

    /// Reads the next piece while transactions go on, and says so.
    fn reread(&mut self, dice: &mut Dice, saved: u64) {
        let Some(mut reread) = self.reread.clone().filter(|reread| !reread.told.finished) else { return };
        if reread.told.consistent_from.is_some_and(|from| lsn(saved) < from) {
            return;
        }
        let mut again = true;
        while again {
            again = dice.chance(15);
            let mut read = Vec::new();
            for row in self.read_rows(reread.table) {
                let number: usize = self.world.normal_key(reread.table, &row).concat().bytes().map(usize::from).sum();
                // Not the whole table: some rows are left out.
                if number % reread.pieces != reread.next || !reread.told.whole && number.is_multiple_of(5) {
                    continue;
                }
                let position = schemas::Position { commit_lsn: lsn(saved), command_id: self.reading, ..Default::default() };
                let table = self.world.tables[reread.table].clone();
                read.push(ChangeEvent { table, op: Op::Reread, before: None, after: Some(row), position, commit_time_ms: 1 });
            }
            read.iter().for_each(|row| self.publish(row));
            for _ in 0..dice.below(3) {
                self.commit(dice);
            }
            if dice.chance(20) {
                // It dies, and reads the piece again; what it has read arrives once more, some time.
                self.reread_counts.clear();
                self.epoch += 1;
                self.reading += 1;
                self.late.extend(read);
                again = true;
            }
        }
        reread.next += 1;
        reread.told.finished = reread.next == reread.pieces;
        if reread.told.finished || !reread.at_once {
            reread.told.consistent_from = Some(lsn(self.now));
        }
        self.reread = Some(reread);
        self.record(Phase::Tail, saved, saved);
    }

    /// Rows of an importer that was replaced come in at last.
    fn come_late(&mut self) {
        let counts = self.reread_counts.clone();
        for row in std::mem::take(&mut self.late) {
            self.publish(&row);
        }
        self.reread_counts = counts;
    }

    fn tail(&mut self, dice: &mut Dice, start: u64, ticks: usize) {
        let mut saved = start;
        let mut left = ticks;
        // What has begun is brought to its end.
        while left > 0 || self.reread.is_some() {
            left = left.saturating_sub(1);
            if left > 0 && self.reread.is_none() && dice.chance(15) {
                self.begin_reread(dice, saved);
            }
            if dice.chance(70) {
                self.reread(dice, saved);
            }
            if dice.chance(20) {
                self.come_late();
            }
            for _ in 0..dice.below(4) {
                self.commit(dice);
            }
            let to = self.now;
            self.tick(dice, saved, to);
            if dice.chance(12) {
                // The importer dies before it says what it has done, and a new one begins again.
                self.counts.clear();
                self.epoch += 1;
                self.tick(dice, saved, to);
            }
            self.record(Phase::Tail, saved, to);
            if !dice.chance(15) {
                // Otherwise it dies before it saves its progress: the next record overlaps this one.
                saved = to;
                self.reread.take_if(|reread| reread.told.finished && !reread.told.holds(lsn(to)));
            }
        }
    }
}

/// What a reader of the outbox knows.
struct Told {
    load: u64,
    /// The sequence number that it has come to.
    cursor: u64,
    /// By definition.
    entities: Vec<BTreeMap<EntityKey, Json>>,
    /// The versions that it was told of, by definition and key.
    versions: BTreeMap<(usize, EntityKey), u64>,
}

impl Told {
    fn new(head: &joiner::Head, entities: Vec<BTreeMap<EntityKey, Json>>) -> Self {
        Self { load: head.load, cursor: head.sequence, entities, versions: BTreeMap::new() }
    }

    /// What was told, but for entities that are told no more until they fit.
    fn without(&self, set_aside: &[BTreeSet<EntityKey>]) -> Vec<BTreeMap<EntityKey, Json>> {
        let mut told = self.entities.clone();
        told.iter_mut().zip(set_aside).for_each(|(told, set_aside)| told.retain(|key, _| !set_aside.contains(key)));
        told
    }

    /// Whatever is not newer than the frontier is as it was then.
    fn is_complete(&self, frontier: u64, join: &[BTreeMap<EntityKey, Json>], set_aside: &[BTreeSet<EntityKey>]) {
        for (nth, (told, join)) in self.entities.iter().zip(join).enumerate() {
            for key in told.keys().chain(join.keys()).filter(|key| !set_aside[nth].contains(*key)) {
                if self.versions.get(&(nth, key.clone())).is_none_or(|version| *version <= frontier) {
                    assert_eq!(told.get(key), join.get(key), "{key} as of {frontier}");
                }
            }
        }
    }
}

pub(crate) fn number(lsn: Lsn) -> u64 {
    u64::from_be_bytes(lsn.as_bytes()[2..].try_into().unwrap())
}

/// The joiner and its surroundings.
struct Reader<'a> {
    world: &'a World,
    config: Config,
    engine: Option<Engine>,
    /// How far each shard has been handed over since the engine was opened.
    handed: BTreeMap<(StreamName, ShardId), usize>,
    handed_records: usize,
    /// What the outbox has told: entities by definition.
    told: Option<Told>,
    /// An entity may be told as it was told before: the state is merged of several, or is to be.
    again: bool,
    dirs: Vec<TempDir>,
    checks: u64,
    /// Changes of the definitions that were made in place.
    changes: u64,
    /// Frontiers that were compared while fan-outs waited.
    lazy_checks: u64,
    /// Steps that a kill has left in the middle.
    torn: u64,
    /// Frontiers at which the time of entities was over.
    expired: u64,
}

impl Reader<'_> {
    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    fn open(&mut self, streams: &Streams) {
        let engine = Engine::open(&self.config).unwrap_or_else(|error| panic!("{error}"));
        self.handed.clear();
        let position = |stream: &StreamName, shard: &ShardId| {
            let sequence = engine.positions().get(stream).and_then(|shards| shards.get(shard));
            sequence.map_or(0, |sequence| sequence.to_u64().unwrap() as usize)
        };
        for (stream, shard) in streams.events.keys() {
            self.handed.insert((stream.clone(), shard.clone()), position(stream, shard));
        }
        self.handed_records = position(&Layout::progress_stream(NAME), &ShardId("0".into()));
        self.engine = Some(engine);
        self.check_after_advance(&History::default());
    }

    /// A copy of the state, in a folder of its own.
    fn copied(&mut self) -> Copied {
        let folder = dir();
        let facts = self.engine().handle().checkpoint(&folder.path().join(joiner::checkpoint::DATABASE)).unwrap();
        let copied = Copied { folder: folder.path().to_owned(), facts };
        self.dirs.push(folder);
        copied
    }

    /// Goes on with a part of the entities: the state is split.
    fn split(&mut self, dice: &mut Dice, streams: &Streams) {
        let copied = self.copied();
        let (first, last) = (self.config.range.first(), self.config.range.last());
        let middle = first + (last - first) / 2;
        let half = if dice.chance(50) { KeyRange::new(first, middle) } else { KeyRange::new(middle + 1, last) };
        self.config.range = half.unwrap();
        let made = reshape(vec![copied], &self.config).unwrap();
        self.seal(&made);
        self.engine = None;
        self.told = None;
        self.open(streams);
    }

    fn seal(&mut self, made: &Copied) {
        joiner::checkpoint::seal(&made.folder, &made.facts).unwrap();
        self.config.state_dir.clone_from(&made.folder);
    }

    /// Stops the engine, cleanly or by leaving what a crash leaves, and opens it again; `change`: with other definitions.
    fn restart(&mut self, dice: &mut Dice, streams: &Streams, change: bool) {
        if dice.chance(50) {
            let left = crash::copy(&self.config.state_dir);
            self.goes_on_in(left);
        }
        self.engine = None;
        if change {
            self.change_definitions(dice);
        }
        self.open(streams);
    }

    fn goes_on_in(&mut self, left: TempDir) {
        self.engine = None;
        self.config.state_dir = left.path().to_owned();
        self.dirs.push(left);
    }

    /// Does what can be done, is killed behind any of the writes of it, and opened again.
    fn killed(&mut self, dice: &mut Dice, streams: &Streams) {
        let (name, from) = crash::log(&self.config.state_dir);
        self.engine().advance().unwrap();
        let left = crash::copy(&self.config.state_dir);
        if crash::log(left.path()).0 == name {
            let mut ends = crash::ends_of_batches(left.path(), &name, from);
            ends.push(from);
            crash::cut(left.path(), &name, *dice.pick(&ends));
        }
        self.goes_on_in(left);
        self.open(streams);
        let warning = self.engine().handle().status().warning;
        self.torn += u64::from(warning.is_some_and(|warning| warning.starts_with("a large step was interrupted")));
    }

    /// Other definitions, if the state can serve them as it stands; else it is left alone, and goes on with those that it has.
    fn change_definitions(&mut self, dice: &mut Dice) {
        let mut definitions: Vec<EntityDefinition> = Vec::new();
        for plan in &self.world.plans {
            // Entities go, and come back.
            let of = plan.definition.of.as_ref();
            let lost = of.is_some_and(|of| definitions.iter().all(|other| other.entity != *of));
            if lost || !definitions.is_empty() && dice.chance(20) {
                continue;
            }
            let changed = if of.is_none() { changed(dice, &plan.definition) } else { plan.definition.clone() };
            definitions.push(changed);
            if self.world.resolve(&definitions).is_err() {
                definitions.pop();
                definitions.push(plan.definition.clone());
            }
        }
        let Ok(plans) = self.world.resolve(&definitions) else { return };
        let config = Config { plans, ..self.config.clone() };
        let expected = joiner::definitions::compare(&config).unwrap().unwrap();
        match Engine::open(&config) {
            Ok(_) => {
                assert!(!matches!(expected.way, Way::Rebuild { .. }), "{expected:?}");
                self.config = config;
                // Documents may be others without any change of the source: whoever read the outbox begins anew.
                if expected.way != Way::Nothing {
                    self.told = None;
                    self.changes += 1;
                }
            }
            Err(Error::OtherDefinitions { lacking, .. }) => assert_eq!(expected.way, Way::Rebuild { lacking }),
            Err(error) => panic!("{error}"),
        }
    }

    /// Hands over something that has been published and not handed over; false when there is nothing.
    fn feed(&mut self, dice: &mut Dice, streams: &Streams) -> bool {
        let open: Vec<(StreamName, ShardId)> = streams
            .events
            .iter()
            .filter(|(place, records)| self.handed.get(*place).copied().unwrap_or(0) < records.len())
            .map(|(place, _)| place.clone())
            .collect();
        let more_records = self.handed_records < streams.progress.len();
        if open.is_empty() && !more_records {
            return false;
        }
        if more_records && (open.is_empty() || dice.chance(25)) {
            let record = streams.progress[self.handed_records].clone();
            self.handed_records += 1;
            let sequence = SequenceNumber::from(self.handed_records as u64);
            self.engine().progress(&Layout::progress_stream(NAME), &ShardId("0".into()), &sequence, record).unwrap();
            return true;
        }
        let (stream, shard) = dice.pick(&open).clone();
        let records = &streams.events[&(stream.clone(), shard.clone())];
        let from = self.handed.get(&(stream.clone(), shard.clone())).copied().unwrap_or(0);
        let to = (from + 1 + dice.below(12)).min(records.len());
        self.handed.insert((stream.clone(), shard.clone()), to);
        let numbered = (from..to).map(|nth| (SequenceNumber::from(nth as u64 + 1), records[nth].clone())).collect();
        let engine = self.engine();
        if engine.streams().contains(&stream) {
            engine.events(&Batch { stream, shard, records: numbered }).unwrap();
        }
        true
    }

    /// The entities as they were at a frontier, by definition.
    fn join_at(&self, history: &History, frontier: u64) -> Vec<BTreeMap<EntityKey, Json>> {
        self.join_when(history, frontier, history.time(frontier))
    }

    /// The same as of another time.
    fn join_when(&self, history: &History, frontier: u64, time: i64) -> Vec<BTreeMap<EntityKey, Json>> {
        let empty = self.world.empty();
        let brute = Brute::new(self.world, history.database(frontier).unwrap_or(&empty), vec![time; empty.len()]);
        let range = self.config.range;
        let of_share = |plan: &Plan| {
            let all = brute.entities(plan).into_iter();
            all.filter(|(key, _)| range.holds(&plan.entity, key)).collect()
        };
        self.config.plans.iter().map(|plan| of_share(plan)).collect()
    }

    /// By definition, the entities that were too large to be told at a frontier.
    fn set_aside_at(&self, history: &History, frontier: u64) -> Vec<BTreeSet<EntityKey>> {
        let empty = self.world.empty();
        let (database, time) = (history.database(frontier).unwrap_or(&empty), history.time(frontier));
        let (brute, range) = (Brute::new(self.world, database, vec![time; empty.len()]), self.config.range);
        let of_share = |plan: &Plan| {
            let all = brute.set_aside(plan).into_iter();
            all.filter(|key| range.holds(&plan.entity, key)).collect()
        };
        self.config.plans.iter().map(|plan| of_share(plan)).collect()
    }

    /// There is a letter of each entity that is too large, and of no other.
    fn check_letters(&mut self, set_aside: &[BTreeSet<EntityKey>]) {
        let kept = self.engine().handle().dead_letters().list(&Which::All, usize::MAX).unwrap();
        let letters = kept.into_iter().map(|kept| match kept.letter {
            Letter::Document(TooLarge { entity, key, .. }) => (entity, key),
            other => panic!("{other:?}"),
        });
        let plans = self.config.plans.iter().zip(set_aside);
        let expected = plans.flat_map(|(plan, keys)| keys.iter().map(|key| (plan.entity.to_string(), key.clone())));
        assert_eq!(letters.collect::<BTreeSet<_>>(), expected.collect::<BTreeSet<_>>(), "letters");
    }

    /// Compares everything with the brute-force join, once the joiner is live.
    fn check_after_advance(&mut self, history: &History) {
        let applied = self.engine().frontier();
        let handle = self.engine().handle();
        let head = *handle.outbox().head().borrow();
        if !head.live || history.times.is_empty() {
            return;
        }
        let expected = self.join_at(history, number(applied));
        let scanned: Vec<BTreeMap<EntityKey, Json>> = self.config.plans.iter().map(|plan| self.scan(&plan.entity)).collect();
        assert_eq!(
            scanned,
            expected,
            "scanned at {applied}: {:#?}",
            self.config.plans.iter().map(|plan| &plan.definition).collect::<Vec<_>>()
        );
        for (plan, entities) in self.config.plans.iter().zip(&expected) {
            for (key, document) in entities.iter().take(3) {
                let (version, text) = handle.get(&plan.entity, key).unwrap().unwrap();
                assert_eq!((version, serde_json::from_str::<Json>(&text).unwrap()), (applied, document.clone()));
            }
        }
        let waits = handle.status().fan_out.is_some();
        let set_aside = self.set_aside_at(history, number(applied));
        if !waits {
            self.check_letters(&set_aside);
        }
        assert_eq!(waits, head.frontier < applied, "{} of {applied}", head.frontier);
        match self.told.take().filter(|told| told.load == head.load) {
            // What waits is in the state already; its outbox entries come once more.
            None if waits => {}
            None => self.told = Some(Told::new(&head, scanned)),
            Some(mut told) => {
                self.follow(&mut told, history);
                if waits {
                    let complete = self.join_at(history, number(head.frontier));
                    let set_aside = self.set_aside_at(history, number(head.frontier));
                    told.is_complete(number(head.frontier), &complete, &set_aside);
                } else {
                    assert_eq!(told.without(&set_aside), expected, "told by the outbox at {applied}");
                }
                self.told = Some(told);
            }
        }
        self.expired += u64::from(self.join_when(history, number(applied), 0) != expected);
        self.lazy_checks += u64::from(waits);
        self.checks += 1;
    }

    /// Takes in what the outbox has told since. Each document is the join as of its version.
    fn follow(&mut self, told: &mut Told, history: &History) {
        let Page::Changes { changes, .. } = self.engine().handle().outbox().read_after(told.cursor, usize::MAX).unwrap() else {
            panic!("trimmed")
        };
        let mut joins = BTreeMap::new();
        for (sequence, change) in changes {
            assert_eq!(sequence, told.cursor + 1);
            told.cursor = sequence;
            let nth = self.config.plans.iter().position(|plan| plan.entity == change.entity).unwrap();
            let version = number(change.version);
            let join = &joins.entry(version).or_insert_with(|| self.join_at(history, version))[nth];
            let document: Option<Json> = change.document.map(|text| serde_json::from_str(&text).unwrap());
            assert_eq!(document.as_ref(), join.get(&change.key), "{} as of {version}", change.key);
            let was = match document {
                Some(document) => told.entities[nth].insert(change.key.clone(), document),
                None => told.entities[nth].remove(&change.key),
            };
            // What fits again is told, whatever was told before it did not.
            let again = self.again || self.config.plans[nth].definition.sets_aside();
            assert!(again || was.as_ref() != join.get(&change.key), "told again: {}", change.key);
            told.versions.insert((nth, change.key), version);
        }
    }

    fn scan(&self, entity: &str) -> BTreeMap<EntityKey, Json> {
        let found = Mutex::new(BTreeMap::new());
        let receive = |changes: Vec<schemas::change::EntityChange>| {
            for change in changes {
                let document = serde_json::from_str(change.document.as_deref().unwrap()).unwrap();
                assert!(found.lock().unwrap().insert(change.key.clone(), document).is_none(), "twice: {}", change.key);
            }
            true
        };
        self.engine.as_ref().unwrap().scan(entity, 1, &receive).unwrap();
        found.into_inner().unwrap()
    }
}

/// A source with all that it publishes.
pub(crate) fn published<'a>(
    dice: &mut Dice,
    world: &'a World,
    layout: Layout,
    encodings: Encodings,
    name: &'a str,
    tables: Vec<usize>,
) -> Source<'a> {
    let mut source = Source {
        name,
        world,
        tables,
        encodings,
        layout,
        database: world.empty(),
        history: History::default(),
        set_back: if dice.chance(20) { dice.below(40) as u64 } else { u64::MAX - 8 },
        log: Vec::new(),
        now: 1,
        epoch: 1,
        streams: Streams::default(),
        counts: BTreeMap::new(),
        reread: None,
        generation: 0,
        reread_counts: BTreeMap::new(),
        reading: 1,
        late: Vec::new(),
        lost: Vec::new(),
    };
    for _ in 0..dice.below(8) {
        source.commit(dice);
    }
    let start = source.snapshot(dice);
    let ticks = 2 + dice.below(8);
    source.tail(dice, start, ticks);
    if dice.chance(10) {
        // After a gap: rows have changed and vanished that nobody was told of.
        for _ in 0..3 {
            source.commit(dice);
        }
        source.log.clear();
        source.lost.clear();
        source.reread = None;
        source.epoch += 1;
        let start = source.snapshot(dice);
        source.tail(dice, start, 3);
    }

    if std::env::var("TRIBUTARY_SEED").is_ok() {
        for plan in &world.plans {
            eprintln!("{}", serde_json::to_string(&plan.definition).unwrap());
        }
        for event in &source.log {
            eprintln!(
                "{} {:?} {} {:?} -> {:?}",
                event.position.commit_lsn, event.op, event.table.name, event.before, event.after
            );
        }
        for record in &source.streams.progress {
            eprintln!(
                "{:?} {} {} epoch {} {:?} {:?}",
                record.phase, record.from_lsn, record.to_lsn, record.epoch, record.rereads, record.positions
            );
        }
    }
    source
}

/// A joiner that has read nothing yet.
fn reader<'a>(
    dice: &mut Dice,
    world: &'a World,
    layout: Layout,
    schemas: &Arc<schemas::encoding::Schemas>,
    range: KeyRange,
) -> Reader<'a> {
    let state = dir();
    let mut config = Config::new(state.path(), world.plans.clone(), NAME, NAME);
    config.layout = layout;
    config.sources[0].schemas = schemas.clone();
    config.range = range;
    config.memory = Memory { write_buffer_bytes: 4 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 2 << 10 };
    config.chunk_bytes = if dice.chance(30) { 1 + dice.below(2000) } else { 1 << 20 };
    config.chunk_entities = if dice.chance(60) { 1 + dice.below(3) } else { 1000 };
    config.step_changes = if dice.chance(60) { 1 + dice.below(12) as u64 } else { 20_000 };
    config.part_rows = if dice.chance(70) { 2 } else { 32 };
    config.buffer_bytes = if dice.chance(25) { 200 } else { 1 << 20 };
    config.portion_bytes = if dice.chance(30) { dice.below(600) } else { 1 << 20 };
    if world.plans.iter().flat_map(|plan| &plan.nodes).any(|node| node.lazy) && dice.chance(50) {
        // What may wait does: nothing is worked off in one step, nor in portions.
        (config.chunk_entities, config.buffer_bytes, config.portion_bytes) = (1, 1 << 20, 1 << 20);
    }
    Reader {
        world,
        config,
        engine: None,
        handed: BTreeMap::new(),
        handed_records: 0,
        told: None,
        again: false,
        dirs: vec![state],
        checks: 0,
        lazy_checks: 0,
        torn: 0,
        expired: 0,
        changes: 0,
    }
}

/// Runs a case; answers how many frontiers were compared, how often the definitions were changed in place, how many frontiers were compared while fan-outs waited, how many steps a kill has left in the middle, and at how many frontiers the time of entities was over.
pub(crate) fn case(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::new(&mut dice);
    let layout = if dice.chance(50) { Layout::Shared } else { Layout::Table };
    let (encodings, schemas) = Encodings::of(&world.tables);
    let source = published(&mut dice, &world, layout, encodings, NAME, (0..world.tables.len()).collect());
    let mut reader = reader(&mut dice, &world, layout, &schemas, KeyRange::ALL);
    reader.open(&source.streams);
    let restarts = if dice.chance(40) { 3 } else { 0 };
    let changes = if dice.chance(25) { 12 } else { 0 };
    loop {
        let mut any = false;
        for _ in 0..1 + dice.below(20) {
            any |= reader.feed(&mut dice, &source.streams);
        }
        // Where steps are written in portions, between them.
        let often = if reader.config.portion_bytes < 1000 { 12 } else { 3 };
        if any && dice.chance(restarts * often) {
            reader.killed(&mut dice, &source.streams);
            reader.check_after_advance(&source.history);
            continue;
        }
        if reader.engine().advance().unwrap() {
            reader.check_after_advance(&source.history);
        }
        if !any {
            break;
        }
        let change = dice.chance(changes);
        if dice.chance(restarts) || change {
            reader.restart(&mut dice, &source.streams, change);
            reader.check_after_advance(&source.history);
        }
    }
    while reader.engine().advance().unwrap() {
        reader.check_after_advance(&source.history);
    }
    let last = source.streams.progress.last().unwrap();
    assert_eq!(reader.engine().frontier(), last.to_lsn, "not everything was applied");
    assert_eq!(reader.engine().handle().status().fan_out, None, "not everything was told");
    [reader.checks, reader.changes, reader.lazy_checks, reader.torn, reader.expired]
}

/// Several instances over the same streams, at different places in them, some of them split; then one that is merged of them and goes on. Answers how many frontiers were compared, and whether one was merged.
pub(crate) fn several(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::new(&mut dice).of_tables();
    let layout = if dice.chance(50) { Layout::Shared } else { Layout::Table };
    let (encodings, schemas) = Encodings::of(&world.tables);
    let source = published(&mut dice, &world, layout, encodings, NAME, (0..world.tables.len()).collect());
    let count = 2 + dice.below(3) as u32;
    let ranges = (0..count).map(|nth| KeyRange::of(nth, count).unwrap());
    let mut parts: Vec<Reader<'_>> = ranges.map(|range| reader(&mut dice, &world, layout, &schemas, range)).collect();
    for part in &mut parts {
        part.again = true;
        part.open(&source.streams);
    }
    let split = dice.chance(30);
    loop {
        let mut any = false;
        for part in &mut parts {
            for _ in 0..dice.below(20) {
                part.feed(&mut dice, &source.streams);
            }
            if part.engine().advance().unwrap() {
                part.check_after_advance(&source.history);
            }
            any |= part.feed(&mut dice, &source.streams);
            if split && dice.chance(10) {
                part.split(&mut dice, &source.streams);
                part.check_after_advance(&source.history);
            } else if dice.chance(3) {
                // States that are to be merged serve the same definitions.
                let change = split && dice.chance(50);
                part.restart(&mut dice, &source.streams, change);
                part.check_after_advance(&source.history);
            }
        }
        let checks = parts.iter().map(|part| part.checks).sum();
        if dice.chance(15) || !any {
            match if split { None } else { merged(&mut dice, &mut parts) } {
                Some(one) => return [checks + to_the_end(&mut dice, one, &source), 1, 0, 0, 0],
                // Of a source that ends while rows are of different ages nothing can be merged.
                None if !any => return [checks, 0, 0, 0, 0],
                None => {}
            }
        }
    }
}

/// One of several, if their states can be merged as they stand.
fn merged<'a>(dice: &mut Dice, parts: &mut [Reader<'a>]) -> Option<Reader<'a>> {
    let mut copies: Vec<Copied> = parts.iter_mut().map(Reader::copied).collect();
    let first = copies.len() / 2;
    copies.rotate_left(first);
    let mut config = parts[0].config.clone();
    config.range = KeyRange::ALL;
    config.chunk_entities = if dice.chance(30) { 1 + dice.below(4) } else { 1000 };
    let made = match reshape(copies, &config) {
        Err(Error::NotMerged { .. }) => return None,
        made => made.unwrap(),
    };
    let mut union = vec![BTreeMap::new(); parts[0].world.plans.len()];
    for told in parts.iter_mut().filter_map(|part| part.told.take()) {
        union.iter_mut().zip(told.entities).for_each(|(union, entities)| union.extend(entities));
    }
    let mut one = Reader {
        world: parts[0].world,
        config,
        engine: None,
        handed: BTreeMap::new(),
        handed_records: 0,
        told: Some(Told { load: 0, cursor: 0, entities: union, versions: BTreeMap::new() }),
        again: true,
        dirs: parts.iter_mut().flat_map(|part| std::mem::take(&mut part.dirs)).collect(),
        checks: 0,
        lazy_checks: 0,
        torn: 0,
        expired: 0,
        changes: 0,
    };
    one.seal(&made);
    Some(one)
}

fn to_the_end(dice: &mut Dice, mut one: Reader<'_>, source: &Source<'_>) -> u64 {
    let told = one.told.take();
    one.open(&source.streams);
    let head = *one.engine().handle().outbox().head().borrow();
    one.told = told.map(|told| Told::new(&head, told.entities));
    loop {
        let mut any = false;
        for _ in 0..1 + dice.below(20) {
            any |= one.feed(dice, &source.streams);
        }
        if one.engine().advance().unwrap() {
            one.check_after_advance(&source.history);
        }
        if !any {
            break;
        }
        if dice.chance(10) {
            one.restart(dice, &source.streams, false);
        }
    }
    while one.engine().advance().unwrap() {
        one.check_after_advance(&source.history);
    }
    assert_eq!(one.engine().frontier(), source.streams.progress.last().unwrap().to_lsn, "not everything was applied");
    one.checks
}
