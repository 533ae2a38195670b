//! A source that publishes as an importer does: a snapshot, a tail, tables that are read again, attempts that die.

use crate::dice::Dice;
use crate::encodings::Encodings;
use crate::world::{Database, World, hours};
use schemas::Lsn;
use schemas::event::{ChangeEvent, Op};
use schemas::progress::{Phase, ProgressRecord, Reread, SequenceNumber, ShardId, ShardPositions, StreamName};
use std::collections::BTreeMap;
use streams::Layout;

const SHARDS: usize = 2;

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
    pub(crate) times: BTreeMap<u64, i64>,
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
        // That of a snapshot is known where something was captured before it. A record of rows that were read again moves nothing.
        let known = if phase == Phase::Tail { to > from } else { to.is_multiple_of(2) };
        let commit_time_ms = if known { self.time(to) } else { 0 };
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
