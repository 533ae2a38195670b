//! A joiner that is fed in any order, stopped, killed and changed, and compared with the join at every frontier.

use crate::brute::Brute;
use crate::change::changed;
use crate::crash::{self, dir};
use crate::dice::Dice;
use crate::source::{History, Streams};
use crate::world::World;
use joiner::dead_letters::{Letter, TooLarge, Which};
use joiner::definitions::Way;
use joiner::reshape::{Copied, reshape};
use joiner::{Config, Engine, Error, Memory, Page};
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{KeyRange, Lsn};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use streams::{Batch, Layout};
use tempfile::TempDir;

/// Of the source where there is but one.
pub(crate) const NAME: &str = "shop";

/// What a reader of the outbox knows.
pub(crate) struct Told {
    pub(crate) load: u64,
    /// The sequence number that it has come to.
    pub(crate) cursor: u64,
    /// By definition.
    pub(crate) entities: Vec<BTreeMap<EntityKey, Json>>,
    /// The versions that it was told of, by definition and key.
    pub(crate) versions: BTreeMap<(usize, EntityKey), u64>,
}

impl Told {
    pub(crate) fn new(head: &joiner::Head, entities: Vec<BTreeMap<EntityKey, Json>>) -> Self {
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
pub(crate) struct Reader<'a> {
    pub(crate) world: &'a World,
    pub(crate) config: Config,
    pub(crate) engine: Option<Engine>,
    /// How far each shard has been handed over since the engine was opened.
    pub(crate) handed: BTreeMap<(StreamName, ShardId), usize>,
    pub(crate) handed_records: usize,
    /// What the outbox has told: entities by definition.
    pub(crate) told: Option<Told>,
    /// An entity may be told as it was told before: the state is merged of several, or is to be.
    pub(crate) again: bool,
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) checks: u64,
    /// Changes of the definitions that were made in place.
    pub(crate) changes: u64,
    /// Frontiers that were compared while fan-outs waited.
    pub(crate) lazy_checks: u64,
    /// Steps that a kill has left in the middle.
    pub(crate) torn: u64,
    /// Frontiers at which the time of entities was over.
    pub(crate) expired: u64,
}

impl Reader<'_> {
    pub(crate) fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    pub(crate) fn open(&mut self, streams: &Streams) {
        let mut engine = Engine::open(&self.config).unwrap_or_else(|error| panic!("{error}"));
        if engine.awaits().next().is_some() {
            // Restored: so that it is compared at every frontier, nothing counts as published.
            engine.await_published(Vec::new());
            engine.advance().unwrap();
        }
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
    pub(crate) fn copied(&mut self) -> Copied {
        let folder = dir();
        let facts = self.engine().handle().checkpoint(&folder.path().join(joiner::checkpoint::DATABASE)).unwrap();
        let copied = Copied { folder: folder.path().to_owned(), facts };
        self.dirs.push(folder);
        copied
    }

    /// Goes on with a part of the entities: the state is split.
    pub(crate) fn split(&mut self, dice: &mut Dice, streams: &Streams) {
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

    pub(crate) fn seal(&mut self, made: &Copied) {
        joiner::checkpoint::seal(&made.folder, &made.facts).unwrap();
        self.config.state_dir.clone_from(&made.folder);
    }

    /// Stops the engine, cleanly or by leaving what a crash leaves, and opens it again; `change`: with other definitions.
    pub(crate) fn restart(&mut self, dice: &mut Dice, streams: &Streams, change: bool) {
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
    pub(crate) fn killed(&mut self, dice: &mut Dice, streams: &Streams) {
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
    pub(crate) fn feed(&mut self, dice: &mut Dice, streams: &Streams) -> bool {
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
    pub(crate) fn check_after_advance(&mut self, history: &History) {
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

/// A joiner that has read nothing yet.
pub(crate) fn reader<'a>(
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
    config.memory = Memory {
        write_buffer_bytes: 4 << 20,
        block_cache_bytes: 1 << 20,
        row_cache_bytes: if dice.chance(50) { 2 << 10 } else { 1 << 20 },
        recent_bytes: 2 << 10,
    };
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
