//! Entities over two sources, each with an order of its own, that are read at different speeds: what is told is the join of each source as of one LSN of that source (INV-4), whatever the other does; and a target that refuses what is
//! older (INV-5) holds just that, also when the state is lost, or is put back to what it was earlier, while the target is kept.

use std::collections::BTreeMap;
use std::sync::Mutex;

use joiner::reshape::{Copied, reshape};
use joiner::{Config, Engine, Error, Memory, Page};
use schemas::change::{EntityChange, EntityKey};
use schemas::plan::Plan;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{KeyRange, Lsn};
use serde_json::Value as Json;
use streams::{Batch, Layout};
use tempfile::TempDir;

use crate::brute::Brute;
use crate::crash::{self, dir};
use crate::dice::Dice;
use crate::encodings::Encodings;
use crate::reader::number;
use crate::source::{Source, published};
use crate::world::{Database, World};

pub(crate) const NAMES: [&str; 2] = ["a", "b"];

type Entities = BTreeMap<EntityKey, Json>;

/// By source: its LSN.
type Vector = Vec<u64>;

/// The database of all sources as of a vector, and by table the time that its source had come to.
fn database(sources: &[Source<'_>], vector: &[u64]) -> (Database, Vec<i64>) {
    let mut all = sources[0].world.empty();
    let mut times = vec![0; all.len()];
    for (source, at) in sources.iter().zip(vector) {
        for &table in &source.tables {
            times[table] = source.history.time(*at);
            if let Some(database) = source.history.database(*at) {
                all[table].clone_from(&database[table]);
            }
        }
    }
    (all, times)
}

fn join(sources: &[Source<'_>], config: &Config, vector: &[u64]) -> Vec<Entities> {
    let (database, times) = database(sources, vector);
    let brute = Brute::new(sources[0].world, &database, times);
    let of_share = |plan: &Plan| {
        let all = brute.entities(plan).into_iter();
        all.filter(|(key, _)| config.range.holds(&plan.entity, key)).collect()
    };
    config.plans.iter().map(|plan| of_share(plan)).collect()
}

/// Refuses whatever is older than what it holds.
#[derive(Default)]
struct Target {
    held: BTreeMap<(usize, EntityKey), (Lsn, Option<Json>)>,
}

impl Target {
    fn write(&mut self, entity: usize, key: &EntityKey, version: Lsn, document: Option<Json>) {
        let held = self.held.entry((entity, key.clone())).or_insert((Lsn::ZERO, None));
        if version >= held.0 {
            *held = (version, document);
        }
    }

    /// What a load did not bring, and is older, is gone.
    fn end_load(&mut self, entity: usize, version: Lsn, loaded: &Entities) {
        for ((of, key), held) in &mut self.held {
            if *of == entity && held.0 < version && !loaded.contains_key(key) {
                *held = (version, None);
            }
        }
    }

    fn entities(&self, count: usize) -> Vec<Entities> {
        let mut entities = vec![Entities::new(); count];
        for ((entity, key), (_, document)) in &self.held {
            if let Some(document) = document {
                entities[*entity].insert(key.clone(), document.clone());
            }
        }
        entities
    }
}

/// Where a target stands in an outbox.
#[derive(Clone, Copy)]
struct Cursor {
    load: u64,
    sequence: u64,
}

/// A state as it was, and where the target stood in its outbox then.
struct Earlier {
    folder: TempDir,
    cursor: Option<Cursor>,
}

struct Reader<'s, 'w> {
    sources: &'s [Source<'w>],
    config: Config,
    engine: Option<Engine>,
    /// How far each shard has been handed over since the engine was opened; and the progress records, by source.
    handed: BTreeMap<(StreamName, ShardId), usize>,
    records: Vec<usize>,
    /// How many progress records there have been by now.
    published: Vec<usize>,
    target: Target,
    cursor: Option<Cursor>,
    last: Vector,
    earlier: Option<Earlier>,
    dirs: Vec<TempDir>,
    /// Compared frontiers; states that were lost or put back.
    checks: u64,
    begun_anew: u64,
}

impl Reader<'_, '_> {
    fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().unwrap()
    }

    fn open(&mut self) {
        let mut engine = Engine::open(&self.config).unwrap_or_else(|error| panic!("{error}"));
        let position = |stream: &StreamName, shard: &ShardId| {
            let sequence = engine.positions().get(stream).and_then(|shards| shards.get(shard));
            sequence.map_or(0, |sequence| sequence.to_u64().unwrap() as usize)
        };
        let shards = self.sources.iter().flat_map(|source| source.streams.events.keys());
        self.handed = shards.map(|(stream, shard)| ((stream.clone(), shard.clone()), position(stream, shard))).collect();
        let shard = ShardId("0".into());
        self.records = NAMES.iter().map(|name| position(&Layout::progress_stream(name), &shard)).collect();
        let ends = NAMES.iter().zip(&self.published);
        let ends: Vec<_> = ends
            .map(|(name, count)| {
                let end = [(shard.clone(), SequenceNumber::from(*count as u64))];
                (Layout::progress_stream(name), end.into_iter().filter(|_| *count > 0).collect())
            })
            .collect();
        if engine.awaits().next().is_some() {
            engine.await_published(ends);
        }
        self.last = Vector::new();
        self.engine = Some(engine);
    }

    /// Stops the engine, cleanly or by leaving what a crash leaves, and opens it again.
    fn restart(&mut self, dice: &mut Dice) {
        if dice.chance(50) {
            let left = crash::copy(&self.config.state_dir);
            self.move_to(left);
        }
        self.engine = None;
        self.open();
    }

    fn move_to(&mut self, folder: TempDir) {
        self.engine = None;
        self.config.state_dir = folder.path().to_owned();
        self.dirs.push(folder);
    }

    /// The state is lost, or put back to what it was earlier. The target stays as it is.
    fn begin_anew(&mut self, dice: &mut Dice) {
        self.begun_anew += 1;
        match self.earlier.take().filter(|_| dice.chance(60)) {
            Some(Earlier { folder, cursor }) => {
                self.move_to(folder);
                self.cursor = cursor;
            }
            None => {
                self.move_to(dir());
                self.cursor = None;
            }
        }
        self.open();
    }

    fn keep_for_later(&mut self) {
        let folder = dir();
        let facts = self.engine().handle().checkpoint(&folder.path().join(joiner::checkpoint::DATABASE)).unwrap();
        joiner::checkpoint::seal(folder.path(), &facts).unwrap();
        self.earlier = Some(Earlier { folder, cursor: self.cursor });
    }

    /// Hands over something that has been published and not handed over; false when there is nothing. `slow`: a source that is read only if there is nothing else.
    fn feed(&mut self, dice: &mut Dice, slow: Option<usize>) -> bool {
        let sources = self.sources;
        let open = |number: &usize| {
            let streams = &sources[*number].streams;
            let shards = streams.events.iter();
            self.records[*number] < streams.progress.len()
                || shards.into_iter().any(|(place, records)| self.handed[place] < records.len())
        };
        let mut numbers: Vec<usize> = (0..sources.len()).filter(open).collect();
        if numbers.len() > 1 {
            numbers.retain(|number| Some(*number) != slow);
        }
        if numbers.is_empty() {
            return false;
        }
        let number = *dice.pick(&numbers);
        let streams = &sources[number].streams;
        let waiting: Vec<_> = streams.events.iter().filter(|(place, records)| self.handed[*place] < records.len()).collect();
        if self.records[number] < streams.progress.len() && (waiting.is_empty() || dice.chance(25)) {
            let record = streams.progress[self.records[number]].clone();
            self.records[number] += 1;
            self.published[number] = self.published[number].max(self.records[number]);
            let (stream, sequence) = (Layout::progress_stream(NAMES[number]), SequenceNumber::from(self.records[number] as u64));
            self.engine().progress(&stream, &ShardId("0".into()), &sequence, record).unwrap();
            return true;
        }
        let ((stream, shard), records) = *dice.pick(&waiting);
        let from = self.handed[&(stream.clone(), shard.clone())];
        let to = (from + 1 + dice.below(12)).min(records.len());
        self.handed.insert((stream.clone(), shard.clone()), to);
        let numbered = (from..to).map(|nth| (SequenceNumber::from(nth as u64 + 1), records[nth].clone())).collect();
        let engine = self.engine();
        if engine.streams().contains(stream) {
            engine.events(&Batch { stream: stream.clone(), shard: shard.clone(), records: numbered }).unwrap();
        }
        true
    }

    /// What a version stands for, which is its sum.
    fn vector(&mut self, version: Lsn) -> Vector {
        let told = self.engine().handle().outbox().sources_at(version).unwrap().unwrap();
        let vector: Vector = NAMES.iter().map(|name| number(told.get(name).unwrap())).collect();
        assert_eq!(vector.iter().sum::<u64>(), number(version));
        vector
    }

    /// Compares everything with the brute-force join, and delivers, once the joiner is live.
    fn check(&mut self) {
        let applied: Vector = self.engine().frontiers().into_iter().map(number).collect();
        assert_eq!(applied.iter().sum::<u64>(), number(self.engine().frontier()));
        let handle = self.engine().handle();
        let head = *handle.outbox().head().borrow();
        if !head.live {
            return;
        }
        let expected = join(self.sources, &self.config, &applied);
        let behind = self.cursor.is_some_and(|cursor| cursor.load == head.load);
        let version = self.engine().frontier();
        let scanned: Vec<Entities> = self.config.plans.iter().map(|plan| self.scan(&plan.entity, version)).collect();
        assert_eq!(scanned, expected, "scanned at {applied:?}");
        if behind {
            self.follow();
        } else {
            for (entity, loaded) in scanned.iter().enumerate() {
                loaded.iter().for_each(|(key, document)| self.target.write(entity, key, version, Some(document.clone())));
                self.target.end_load(entity, version, loaded);
            }
            self.cursor = Some(Cursor { load: head.load, sequence: head.sequence });
        }
        if handle.status().fan_out.is_none() {
            assert_eq!(self.target.entities(expected.len()), expected, "held by the target at {applied:?}");
        }
        self.checks += 1;
    }

    /// Hands the target what the outbox has told since. Each document is the join as of its version's vector; vectors only grow.
    fn follow(&mut self) {
        let Some(mut cursor) = self.cursor else { return };
        let Page::Changes { changes, .. } = self.engine().handle().outbox().read_after(cursor.sequence, usize::MAX).unwrap()
        else {
            panic!("trimmed")
        };
        let mut joined: Option<(Lsn, Vec<Entities>)> = None;
        for (sequence, change) in changes {
            cursor.sequence = sequence;
            if joined.as_ref().is_none_or(|(version, _)| *version != change.version) {
                let vector = self.vector(change.version);
                assert!(self.last.iter().zip(&vector).all(|(last, now)| last <= now), "{:?} after {:?}", vector, self.last);
                joined = Some((change.version, join(self.sources, &self.config, &vector)));
                self.last = vector;
            }
            let entity = self.config.plans.iter().position(|plan| plan.entity == change.entity).unwrap();
            let document: Option<Json> = change.document.map(|text| serde_json::from_str(&text).unwrap());
            let join = &joined.as_ref().unwrap().1[entity];
            assert_eq!(document.as_ref(), join.get(&change.key), "{} as of {:?}", change.key, self.last);
            self.target.write(entity, &change.key, change.version, document);
        }
        self.cursor = Some(cursor);
    }

    /// Reads whatever is left, and answers how many frontiers were compared.
    fn read_to_the_end(&mut self, dice: &mut Dice) -> u64 {
        while self.feed(dice, None) {
            if dice.chance(20) && self.engine().advance().unwrap() {
                self.check();
            }
            if dice.chance(2) {
                self.restart(dice);
            }
        }
        self.end();
        self.checks
    }

    /// Everything has been read: it is applied and told.
    fn end(&mut self) {
        while self.engine().advance().unwrap() {
            self.check();
        }
        let ends: Vec<Lsn> = self.sources.iter().map(|source| source.streams.progress.last().unwrap().to_lsn).collect();
        assert_eq!(self.engine().frontiers(), ends, "not everything was applied");
        self.check();
        let head = *self.engine().handle().outbox().head().borrow();
        assert!(head.live && self.engine().handle().status().fan_out.is_none(), "not everything was told");
    }

    fn scan(&self, entity: &str, version: Lsn) -> Entities {
        let found = Mutex::new(Entities::new());
        let receive = |changes: Vec<EntityChange>| {
            for change in changes {
                assert_eq!(change.version, version);
                let document = serde_json::from_str(change.document.as_deref().unwrap()).unwrap();
                assert!(found.lock().unwrap().insert(change.key.clone(), document).is_none(), "twice: {}", change.key);
            }
            true
        };
        self.engine.as_ref().unwrap().scan(entity, 1, &receive).unwrap();
        found.into_inner().unwrap()
    }
}

/// Both sources, with all that they publish.
struct Published<'w> {
    layout: Layout,
    sources: Vec<Source<'w>>,
    origins: Vec<joiner::Source>,
}

impl<'w> Published<'w> {
    fn new(dice: &mut Dice, world: &'w World) -> Self {
        let layout = if dice.chance(50) { Layout::Shared } else { Layout::Table };
        let (mut sources, mut origins) = (Vec::new(), Vec::new());
        for name in NAMES {
            let tables = world.tables.iter().enumerate().filter(|(_, table)| table.name.source.as_deref() == Some(name));
            let (tables, schemas): (Vec<usize>, Vec<_>) = tables.map(|(id, table)| (id, table.clone())).unzip();
            let (encodings, schemas) = Encodings::of(&schemas);
            sources.push(published(dice, world, layout, encodings, name, tables));
            // In another order than that of their names.
            origins.insert(0, joiner::Source { schemas, ..joiner::Source::new(name, name) });
        }
        Self { layout, sources, origins }
    }

    /// A joiner that has read nothing yet.
    fn reader(&self, dice: &mut Dice, world: &World) -> Reader<'_, 'w> {
        let state = dir();
        let mut config = Config::of(state.path(), world.plans.clone(), self.origins.clone());
        config.layout = self.layout;
        config.memory =
            Memory { write_buffer_bytes: 4 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 64 << 10, recent_bytes: 4 << 10 };
        config.chunk_entities = if dice.chance(40) { 1 + dice.below(3) } else { 1000 };
        config.step_changes = if dice.chance(60) { 1 + dice.below(12) as u64 } else { 20_000 };
        config.part_rows = if dice.chance(70) { 2 } else { 32 };
        config.buffer_bytes = if dice.chance(25) { 200 } else { 1 << 20 };
        config.portion_bytes = if dice.chance(30) { dice.below(600) } else { 1 << 20 };
        Reader {
            sources: &self.sources,
            config,
            engine: None,
            handed: BTreeMap::new(),
            records: Vec::new(),
            published: vec![0; NAMES.len()],
            target: Target::default(),
            cursor: None,
            last: Vector::new(),
            earlier: None,
            dirs: vec![state],
            checks: 0,
            begun_anew: 0,
        }
    }
}

/// Runs a case; answers how many frontiers were compared, how often the sources were at different places in them, and how often a state was lost or put back.
pub(crate) fn case(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::of_sources(&mut dice, &NAMES);
    let published = Published::new(&mut dice, &world);
    let sources = &published.sources;
    let mut reader = published.reader(&mut dice, &world);
    reader.open();
    let mut apart = 0;
    let mut slow = None;
    loop {
        let mut any = false;
        if dice.chance(10) {
            slow = [None, Some(0), Some(1)][dice.below(3)];
        }
        for _ in 0..1 + dice.below(20) {
            any |= reader.feed(&mut dice, slow);
        }
        if reader.engine().advance().unwrap() {
            reader.check();
            let ended = |(source, record): (&Source<'_>, &usize)| *record == source.streams.progress.len();
            let ended: Vec<bool> = sources.iter().zip(&reader.records).map(ended).collect();
            apart += u64::from(ended[0] != ended[1]);
        }
        if !any {
            break;
        }
        if dice.chance(3) {
            reader.restart(&mut dice);
        } else if dice.chance(3) {
            reader.keep_for_later();
        } else if dice.chance(2) {
            reader.begin_anew(&mut dice);
        }
    }
    reader.end();
    [reader.checks, apart, reader.begun_anew, 0, 0]
}

/// Instances with a share each, that read both sources at speeds of their own; then one that is merged of them, wherever they stand, and writes to the same target. Answers how many frontiers were compared, whether one was merged, and whether it was of states of which none was
/// behind the others in both sources.
pub(crate) fn several(seed: u64) -> [u64; 5] {
    let mut dice = Dice::new(seed);
    let world = World::of_sources(&mut dice, &NAMES).of_tables();
    let published = Published::new(&mut dice, &world);
    let count = 2 + dice.below(2) as u32;
    let mut parts: Vec<Reader<'_, '_>> = Vec::new();
    for nth in 0..count {
        let mut part = published.reader(&mut dice, &world);
        part.config.range = KeyRange::of(nth, count).unwrap();
        part.open();
        parts.push(part);
    }
    loop {
        let mut any = false;
        for (nth, part) in parts.iter_mut().enumerate() {
            // So that each is behind in a source of its own.
            let slow = if dice.chance(90) { Some(nth % 2) } else { None };
            for _ in 0..1 + dice.below(3) {
                any |= part.feed(&mut dice, slow);
            }
            if part.engine().advance().unwrap() {
                part.check();
            }
            if dice.chance(2) {
                part.restart(&mut dice);
            }
        }
        let checks: u64 = parts.iter().map(|part| part.checks).sum();
        if dice.chance(50) || !any {
            match merged(&mut dice, &mut parts, &published, &world) {
                Some((mut one, apart)) => return [checks + one.read_to_the_end(&mut dice), 1, u64::from(apart), 0, 0],
                None if !any => return [checks, 0, 0, 0, 0],
                None => {}
            }
        }
    }
}

/// One of several, if their states can be merged as they stand; and whether none was behind the others in all sources.
fn merged<'s, 'w>(
    dice: &mut Dice,
    parts: &mut [Reader<'s, 'w>],
    published: &'s Published<'w>,
    world: &World,
) -> Option<(Reader<'s, 'w>, bool)> {
    let mut one = published.reader(dice, world);
    let mut copies: Vec<Copied> = Vec::new();
    for part in parts.iter_mut() {
        let folder = dir();
        let facts = part.engine().handle().checkpoint(&folder.path().join(joiner::checkpoint::DATABASE)).unwrap();
        copies.push(Copied { folder: folder.path().to_owned(), facts });
        one.dirs.push(folder);
    }
    let made = match reshape(copies, &one.config) {
        Err(Error::NotMerged { .. }) => return None,
        made => made.unwrap(),
    };
    joiner::checkpoint::seal(&made.folder, &made.facts).unwrap();
    one.config.state_dir.clone_from(&made.folder);
    let vectors: Vec<Vec<Lsn>> = parts.iter_mut().map(|part| part.engine().frontiers()).collect();
    let is_least = |one: &Vec<Lsn>| vectors.iter().all(|other| one.iter().zip(other).all(|(one, other)| one <= other));
    let apart = !vectors.iter().any(is_least);
    for part in parts {
        one.target.held.append(&mut part.target.held);
        one.published.iter_mut().zip(&part.published).for_each(|(all, of_part)| *all = (*all).max(*of_part));
    }
    one.open();
    // The target of each had been handed all that its outbox held.
    let head = *one.engine().handle().outbox().head().borrow();
    one.cursor = Some(Cursor { load: head.load, sequence: head.sequence });
    Some((one, apart))
}
