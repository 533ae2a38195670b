//! The joiner's heart: what has been read, what may be applied, how far everything has come. Synchronous, and a pure function of what it is handed: no clock, no network.
//!
//! # When a step may be taken
//! A progress record says that everything up to its `to_lsn` was published, and where each shard stood then. Once every shard has been read up to there, the buffer holds every change up to
//! `to_lsn`, whatever order shards were read in. The counts prove it (INV-6, [`crate::accounting`]).
//!
//! # Epochs (INV-1)
//! Records of an importer that has been replaced (a lower epoch) are refused. What it may still publish as events does no harm: they are the same changes with the same identities.
//!
//! # Several sources
//! Each source has records, shards, a buffer, epochs and a frontier of its own ([`Source`], [`SourceStanding`](crate::state::meta::SourceStanding)); rows, documents and the outbox are one. A step takes one source's changes up to that source's next progress, and moves
//! the vector of frontiers in that one component, in the same write (INV-3). So each document is the join of every source as of one commit LSN of that source (INV-4): what is between two progress records of a source is never seen, whatever the others do.
//! No single point in time is claimed for sources that have none in common.
//!
//! *Versions.* LSNs of different sources cannot be compared, but vectors of them can, component by component, and the vectors that a state goes through are a chain in that order. A version is the sum of the vector's components as whole numbers:
//! along a chain it grows strictly, and of one source it is the commit LSN itself. It depends on nothing but the vector. So a state that is made anew, or an instance of another share, gives the same versions to the same vectors; a clock or a counter,
//! kept in the state, would give others. What each version stands for is kept as long as the outbox speaks of it.
//!
//! *States that begin anew* tell nothing before they are nowhere behind what was told already (`awaited`).

use std::collections::HashMap;
use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::Lsn;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, StreamName};
use streams::Positions;

use crate::accounting::{Books, Miscount, Tick};
use crate::assemble::expired::Expired;
use crate::buffer::Due;
use crate::catalog::Catalog;
use crate::cores::Cores;
use crate::engine::Origin;
use crate::error::Error;
use crate::inputs::{Behind, Stretches};
use crate::quiet::Ended;
use crate::reread;
use crate::route::{DeadLetter, Routed};
use crate::state::cache::RowCache;
use crate::state::meta::{Stage, Standing};
use crate::state::{Family, Store};
use crate::status::FanOut;
use crate::step::{self, FanOuts, PAST_BYTES, Report};

mod awaited;
mod load;
mod outbox;
mod source;

use source::Source;

const NO_SNAPSHOT: &str = "the stream does not begin with a whole snapshot: its start has been trimmed, or the importer was told not to take one. Changes are passed over until a snapshot \
     comes; if none is on its way, take a new one with the importer";

/// Bounds of the core's work.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) buffer_bytes: usize,
    pub(crate) portion_bytes: usize,
    /// Entities assembled and written at once.
    pub(crate) chunk: usize,
    /// [`crate::Config::step_changes`].
    pub(crate) step_changes: u64,
    /// How they are assembled.
    pub(crate) share: step::Share,
    pub(crate) row_cache_bytes: usize,
    pub(crate) cores: Arc<Cores>,
}

/// A progress record and where it stood.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) record: ProgressRecord,
}

/// What a run of tail records covers.
struct Covered {
    ticks: Vec<Tick>,
    to: Lsn,
    commit_time_ms: i64,
    /// Rows that were read again.
    rows: u64,
    rereading: bool,
}

pub(crate) struct Core {
    tools: step::Tools,
    standing: Standing,
    /// In the order of the standing's.
    sources: Vec<Source>,
    by_stream: HashMap<StreamName, usize>,
    books: Books,
    fan_outs: FanOuts,
    /// What nothing is told before: by progress stream, where it ended.
    awaited: Option<Vec<(StreamName, Positions)>>,
    /// Versions below this one were told to nobody any more when that was looked at last.
    forgettable: Lsn,
    /// Each record is a step of its own ([`crate::standby`]).
    stands_by: bool,
    /// More changes are on their way.
    grows: bool,
    /// Whether a run of records has been left to grow.
    has_left: bool,
    /// Entities assembled and changed since the core was made.
    pub(crate) report: Report,
}

impl Core {
    /// `origins`: the sources in the order of their names; `by_table`: the stream that each table comes in.
    pub(crate) fn new(
        store: Arc<Store>,
        catalog: Arc<Catalog>,
        origins: &[Origin],
        by_table: Vec<StreamName>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let mut standing = store.standing()?;
        let names: Vec<&str> = origins.iter().map(|origin| &*origin.name).collect();
        standing.of_sources(&names);
        if standing.incarnation != store.incarnation() {
            // One that has never been another is new: whoever drives the engine asks what is to be awaited.
            standing.awaiting |= origins.len() > 1 || standing.incarnation != 0;
            standing.incarnation = store.incarnation();
        }
        let numbered = || origins.iter().enumerate();
        let sources = numbered().map(|(number, origin)| Source::new(store.clone(), number, origin, &limits)).collect();
        let streams = |origin: &Origin| origin.streams.iter().chain([&origin.progress]).cloned().collect::<Vec<_>>();
        let by_stream = numbered().flat_map(|(number, origin)| streams(origin).into_iter().map(move |stream| (stream, number)));
        let tables = catalog.tables.iter().map(|table| table.schema.name.clone());
        let books = Books { tables: tables.zip(by_table).collect() };
        let Limits { row_cache_bytes, portion_bytes: portion, chunk, share, cores, .. } = limits;
        let fan_outs = FanOuts::load(&store, &catalog)?;
        let by_stream = by_stream.collect();
        let cache = RowCache::new(row_cache_bytes, &catalog);
        let tools = step::Tools { store, catalog, cache, chunk, portion, share, cores };
        Ok(Self {
            tools,
            standing,
            sources,
            by_stream,
            books,
            fan_outs,
            awaited: None,
            forgettable: Lsn::ZERO,
            stands_by: false,
            grows: false,
            has_left: false,
            report: Report::default(),
        })
    }

    fn add(&mut self, report: &Report) {
        self.report.assembled += report.assembled;
        self.report.changed += report.changed;
    }

    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.sources.iter().map(|source| source.buffer.bytes()).sum()
    }

    /// Whether there is hardly room for more changes of a source.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.sources.iter().any(|source| source.buffer.is_nearly_full())
    }

    pub(crate) fn stands_by(&mut self, stands_by: bool) {
        self.stands_by = stands_by;
    }

    /// Whether more changes are on their way: then steps of a middling size are left to grow. Larger ones read and write the state in longer stretches, and make one document of more changes.
    pub(crate) fn grows(&mut self, grows: bool) {
        self.grows = grows;
    }

    /// Whether it has left a step to grow when it [advanced](Self::advance) last.
    pub(crate) const fn has_left(&self) -> bool {
        self.has_left
    }

    /// How many progress records wait for their events: of the source of which most do.
    pub(crate) fn waiting(&self) -> usize {
        self.sources.iter().map(|source| source.records.len()).max().unwrap_or_default()
    }

    /// The number of the source that a stream is of.
    pub(crate) fn source_of(&self, stream: &StreamName, shard: &ShardId) -> Result<usize, Error> {
        let unknown = || Error::UnknownShard { stream: stream.clone(), shard: shard.clone() };
        let only = (self.sources.len() == 1).then_some(0);
        only.or_else(|| self.by_stream.get(stream).copied()).ok_or_else(unknown)
    }

    /// Goes on with a step that was being assembled when the joiner stopped.
    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        let mut report = Report::default();
        self.settle(&mut report)?;
        self.add(&report);
        if self.standing.is_consistent() && self.standing.pending.is_none() {
            // What waited may have been of entities that are defined otherwise now.
            self.settle_head();
        }
        if self.standing != self.tools.store.standing()? {
            self.tools.store.write_with(WriteBatch::default(), &self.standing)?;
        }
        Ok(())
    }

    fn count(&mut self, table: usize, received: u64, applied: u64, dead: u64) {
        if received + applied + dead > 0 {
            let counts = self.standing.tables.entry(self.tools.catalog.tables[table].schema.name.to_string()).or_default();
            counts.received += received;
            counts.applied += applied;
            counts.dead_lettered += dead;
        }
    }

    /// Takes in a batch.
    pub(crate) fn events(&mut self, routed: Routed) -> Result<(), Error> {
        let Routed { arrived, received, snapshots, dead, unknown } = routed;
        let number = self.source_of(&arrived.stream, &arrived.shard)?;
        for (table, count) in received.into_iter().enumerate() {
            self.count(table, count, 0, 0);
        }
        let standing = &mut self.standing.sources[number];
        standing.unknown += unknown.len() as u64;
        for sequence in unknown {
            standing.unknown_read.add(&arrived.stream, &arrived.shard, sequence);
        }
        self.dead_letters(&dead)?;
        let source = &mut self.sources[number];
        let live = source.inputs.take_in(arrived, &self.standing.positions, &self.standing.sources[number]);
        source.buffer.push(live)?;
        let count = snapshots.len();
        for (nth, rows) in snapshots.into_iter().enumerate() {
            // The position may pass the batch only with the last of its rows.
            self.snapshot_rows(number, rows, nth + 1 == count)?;
        }
        Ok(())
    }

    /// Dead letters are kept under where they stood, so that reading them again changes nothing.
    fn dead_letters(&mut self, dead: &[DeadLetter]) -> Result<(), Error> {
        if dead.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for letter in dead {
            let place = format!("event/{}/{}/{:0>60}", letter.stream, letter.shard, letter.sequence);
            if self.tools.store.get(Family::Meta, format!("{}{place}", crate::state::DEAD).as_bytes())?.is_none() {
                self.standing.dead_letters += 1;
                tracing::warn!(
                    stream = letter.stream,
                    shard = letter.shard,
                    sequence = letter.sequence,
                    reason = letter.reason,
                    "event dead-lettered"
                );
            }
            self.tools.store.put_dead_letter(&mut batch, &place, &serde_json::json!(letter))?;
        }
        self.tools.store.write_with(batch, &self.standing)
    }

    fn move_positions(&mut self, source: usize) {
        self.sources[source].inputs.move_positions(&mut self.standing.positions, &self.standing.sources[source]);
    }

    /// Takes in a progress record.
    pub(crate) fn progress(&mut self, progress: Progress) -> Result<(), Error> {
        let number = self.source_of(&progress.stream, &progress.shard)?;
        let expected = &self.standing.sources[number].source;
        if progress.record.source != *expected {
            return Err(Error::StreamOfOtherSource { found: progress.record.source, expected: expected.clone() });
        }
        self.sources[number].push(progress);
        Ok(())
    }

    /// By source that waits: the shards that its next record waits for, and where the last of the records that wait stands.
    pub(crate) fn waits_for(&self) -> Vec<(usize, Vec<Behind>, SequenceNumber)> {
        let waits = |(number, source): (usize, &Source)| {
            Some((number, source.waits_for(&self.standing.positions), source.last_waiting()?.clone()))
        };
        self.sources.iter().enumerate().filter_map(waits).collect()
    }

    /// The shards without which no step of a source can be larger.
    pub(crate) fn lacks(&self) -> impl Iterator<Item = Behind> {
        self.sources.iter().flat_map(|source| source.lacks(&self.standing.positions))
    }

    /// Takes note that a shard ends before what the next record names.
    pub(crate) fn ends_before(&mut self, ended: &Ended) {
        if let Some(&number) = self.by_stream.get(&ended.behind.stream) {
            self.sources[number].ends_before(ended, &self.standing.positions);
        }
    }

    /// Does what can be done now, a step of each source in turn. Answers whether the frontier, or the stage, has moved.
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        self.has_left = false;
        loop {
            let mut any = false;
            for number in 0..self.sources.len() {
                let Some(progress) = self.sources[number].next(&self.standing.positions) else { continue };
                moved |= match progress.record.phase {
                    Phase::Tail if self.stands_by => self.tail(number, &[progress])?,
                    Phase::Tail => {
                        let (standing, grows) = (&self.standing, self.grows);
                        let source = &mut self.sources[number];
                        let run = source.run_of_tail(progress, &standing.sources[number], &standing.positions, grows);
                        let Some(run) = run else {
                            self.has_left = true;
                            continue;
                        };
                        self.tail(number, &run)?
                    }
                    _ => self.snapshot_record(number, &progress)?,
                };
                any = true;
                moved |= self.pass_awaited()?;
            }
            if !any {
                break;
            }
        }
        moved |= self.pass_awaited()?;
        Ok(self.tell_more()? || moved)
    }

    /// Whether fan-outs wait that can go on.
    pub(crate) fn can_tell(&self) -> bool {
        !self.fan_outs.is_empty() && self.standing.pending.is_none() && self.standing.is_consistent()
    }

    /// Goes on with what the fan-outs that wait have to tell, for a short while. Answers whether there was anything.
    fn tell_more(&mut self) -> Result<bool, Error> {
        if !self.can_tell() {
            return Ok(false);
        }
        let mut report = Report::default();
        let told = step::tell(&self.tools, &mut self.fan_outs, true, &mut self.standing, &mut report)?;
        self.add(&report);
        Ok(told)
    }

    /// What waits beside the steps, if anything does.
    pub(crate) fn fan_out(&self) -> Option<FanOut> {
        let (rows, since, owners_told) = self.fan_outs.waiting()?;
        Some(FanOut { rows, since, owners_told })
    }

    /// Whether a record comes from an importer that has been replaced.
    fn is_fenced(&mut self, source: usize, record: &ProgressRecord) -> bool {
        let standing = &mut self.standing.sources[source];
        if record.epoch < standing.epoch {
            tracing::warn!(
                source = record.source,
                epoch = record.epoch,
                current = standing.epoch,
                "progress record of a replaced importer refused"
            );
            return true;
        }
        standing.epoch = record.epoch;
        false
    }

    fn passed(&mut self, progress: &Progress) {
        let shards = self.standing.positions.entry(progress.stream.clone()).or_default();
        shards.insert(progress.shard.clone(), progress.sequence.clone());
    }

    fn settle_head(&mut self) {
        if self.standing.live {
            (self.standing.head_frontier, self.standing.head_commit_time_ms) = self.fan_outs.complete(&self.standing);
        }
    }

    /// A run of tail records of a source: one step. Answers whether its frontier moved.
    fn tail(&mut self, number: usize, run: &[Progress]) -> Result<bool, Error> {
        let told = Expired::as_of(&self.tools.catalog, &self.standing);
        let walks = self.make_way(number, run, &told)?;
        let from = self.standing.sources[number].frontier;
        let before = (self.standing.frontier, self.standing.commit_time_ms);
        let Covered { ticks, to, commit_time_ms, rows, rereading } = self.cover(number, run)?;
        let source = &mut self.sources[number];
        let due = Due { to, covered: source.inputs.covered() };
        if to == from && !rereading {
            if rows > 0 {
                // Of rereads that no record speaks of.
                source.buffer.forget(&Due { to: Lsn::ZERO, ..due })?;
            }
            return Ok(false);
        }
        let ends: Vec<Lsn> = ticks.iter().map(|tick| tick.to).collect();
        let again = self.standing.sources[number].is_torn();
        let exact = self.standing.can_be_read() && self.standing.dead_letters == 0;
        let taken = source.buffer.take(&due)?;
        let counting = self.standing.sources[number].rereads.counting(&self.tools.catalog);
        // What may leave fan-outs for later is small, and what waits refers to the state between two steps.
        let most = if walks || !self.fan_outs.is_empty() { usize::MAX } else { self.tools.portion };
        let mut applied = step::apply(&self.tools, &taken, counting, &ends, most, (again, exact))?;
        self.check_tail(number, &ticks, &applied.report)?;
        let standing = &mut self.standing.sources[number];
        if to >= standing.portions_to {
            standing.portions_to = Lsn::ZERO;
        }
        (standing.frontier, standing.commit_time_ms) = (to, commit_time_ms);
        standing.pass_catch_up();
        let remembered = standing.rereads.remembered(&self.tools.catalog);
        self.standing.moved();
        for table in 0..self.tools.catalog.tables.len() {
            self.count(table, 0, applied.report.applied[table], applied.report.dead[table]);
        }
        self.move_positions(number);
        let hold = self.standing.holds();
        let walks = walks && !hold && !again && self.standing.mixed_until.is_zero();
        let remembered = remembered.as_deref();
        let beside = step::Beside { source: number, remembered, hold, walks, again, from: before, told: &told };
        if self.standing.live {
            step::finish(&self.tools, taken, &mut applied, beside, &mut self.fan_outs, &mut self.standing)?;
        } else {
            if self.standing.go_live() {
                self.settle_head();
            }
            step::write_rows(&self.tools, &taken, &mut applied, beside, &self.standing)?;
        }
        self.settle(&mut applied.report)?;
        self.add(&applied.report);
        self.sources[number].buffer.forget(&due)?;
        Ok(true)
    }

    /// Takes note of what the records of a run cover.
    fn cover(&mut self, number: usize, run: &[Progress]) -> Result<Covered, Error> {
        let standing = &self.standing.sources[number];
        let (to, commit_time_ms) = (standing.frontier, standing.commit_time_ms);
        let mut covered = Covered { ticks: Vec::new(), to, commit_time_ms, rows: 0, rereading: false };
        let mut passed_over = None;
        for progress in run {
            self.passed(progress);
            let record = &progress.record;
            if self.is_fenced(number, record) {
                continue;
            }
            let stretches = self.sources[number].inputs.cover(record, &mut self.standing.sources[number]);
            covered.rows += stretches.rows;
            // Time passes with steps, which look at what comes due; and with the tail of an older snapshot, of which it is chance whether it was read before the newer one's rows.
            let source = &mut self.standing.sources[number];
            let unread = matches!(source.stage, Stage::Empty | Stage::Snapshot { .. }) && record.to_lsn > record.from_lsn;
            if unread || record.to_lsn > covered.to {
                source.passes(record.commit_time_ms);
            }
            if record.to_lsn <= covered.to && record.rereads.is_empty() {
                continue;
            }
            match self.standing.sources[number].stage {
                // What is left of an older tail: a newer snapshot may stand behind it.
                Stage::Empty => {
                    passed_over = passed_over.max(Some(record.to_lsn));
                    continue;
                }
                // A new snapshot is on its way; the tail of the old one says nothing any more.
                Stage::Snapshot { .. } => continue,
                Stage::CatchUp { .. } | Stage::Live { .. } => {}
            }
            if record.from_lsn > covered.to {
                return Err(Error::Gap {
                    frontier: covered.to,
                    from: record.from_lsn,
                    stream: progress.stream.clone(),
                    shard: progress.shard.clone(),
                    sequence: progress.sequence.clone(),
                });
            }
            if !record.rereads.is_empty() || !self.standing.sources[number].rereads.is_empty() {
                self.follow_rereads(number, record, &stretches)?;
                covered.rereading = true;
            }
            covered.ticks.push(Tick::new(record, covered.to, stretches));
            if record.to_lsn <= covered.to {
                continue;
            }
            covered.to = record.to_lsn;
            if record.commit_time_ms > 0 {
                covered.commit_time_ms = record.commit_time_ms;
            }
        }
        if let Some(passed_over) = passed_over {
            let source = &mut self.sources[number];
            if !std::mem::replace(&mut source.headless, true) {
                tracing::warn!(to_lsn = %passed_over, "{NO_SNAPSHOT}");
            }
            source.buffer.forget(&Due::changes(passed_over))?;
        }
        Ok(covered)
    }

    /// Works off fan-outs that cannot wait beside a step. Answers whether the step itself may leave some for later. (Before anything of the step is taken note of: this writes the standing.)
    fn make_way(&mut self, number: usize, run: &[Progress], told: &Expired) -> Result<bool, Error> {
        let standing = &self.standing.sources[number];
        let reread = !standing.rereads.is_empty() || run.iter().any(|progress| !progress.record.rereads.is_empty());
        let buffer = &self.sources[number].buffer;
        let bytes = buffer.bytes();
        let most = PAST_BYTES.min(self.tools.portion);
        let apart = reread || buffer.has_spilled() || !standing.portions_to.is_zero();
        let apart = apart || step::expires_many(&self.tools, told, &self.expired_after(number, run))?;
        if apart || self.fan_outs.bytes() + bytes > most {
            while self.tell_more()? {}
        }
        Ok(!apart && bytes <= most)
    }

    /// Whose time is over, at most, after a run of records of a source.
    fn expired_after(&self, number: usize, run: &[Progress]) -> Expired {
        let last = run.iter().map(|progress| progress.record.commit_time_ms).max().unwrap_or_default();
        let time = |source: usize| self.standing.sources[source].time().max(if source == number { last } else { 0 });
        Expired::at(&self.tools.catalog, |table| self.standing.source_of(table).map_or(0, time))
    }

    /// Takes in what a record tells of tables that are read again.
    fn follow_rereads(&mut self, number: usize, record: &ProgressRecord, stretches: &Stretches) -> Result<(), Error> {
        let standing = &mut self.standing.sources[number];
        let begun = standing.rereads.follow(&self.tools.catalog, record, stretches, standing.frontier)?;
        let mut batch = WriteBatch::default();
        for table in begun {
            tracing::info!(table = %self.tools.catalog.tables[table].schema.name, "a table is read again");
            reread::forget(&self.tools.store, &self.tools.catalog, table, &mut batch)?;
        }
        // The standing is written with the step's rows; until then, places remembered of an older generation are of no use.
        self.tools.store.write(batch, true)
    }

    /// Ends rereads that have been passed, and assembles what waits for it, unless something still holds it up.
    fn settle(&mut self, report: &mut Report) -> Result<(), Error> {
        for number in 0..self.sources.len() {
            self.end_rereads(number, report)?;
        }
        if self.standing.can_be_read() && !self.standing.unmade.is_empty() {
            step::make_first(&self.tools, &mut self.standing)?;
            if self.standing.pending.is_none() {
                self.settle_head();
                let mut batch = WriteBatch::default();
                self.tools.store.put_standing(&mut batch, &self.standing)?;
                self.tools.store.write(batch, true)?;
            }
        }
        if self.standing.is_consistent() {
            let mut done = Vec::new();
            while step::drain(&self.tools, &mut self.fan_outs, &mut self.standing, report, &mut done)? {}
        }
        Ok(())
    }

    fn end_rereads(&mut self, number: usize, report: &mut Report) -> Result<(), Error> {
        loop {
            let standing = &self.standing.sources[number];
            let Some((table, whole)) = standing.rereads.ended(&self.tools.catalog, standing.frontier) else { return Ok(()) };
            if whole {
                let store = self.tools.store.clone();
                let mut sweep = reread::Sweep::new(&store, &self.tools.catalog, table);
                loop {
                    let vanished = sweep.next()?;
                    if vanished.is_empty() {
                        break;
                    }
                    step::remove(&self.tools, (number, table), &vanished, &mut self.standing, report)?;
                }
            }
            let mut batch = WriteBatch::default();
            reread::forget(&self.tools.store, &self.tools.catalog, table, &mut batch)?;
            let standing = &mut self.standing.sources[number];
            standing.rereads.complete(&self.tools.catalog, table);
            standing.pass_catch_up();
            self.standing.go_live();
            if self.standing.pending.is_none() && self.standing.is_consistent() {
                self.settle_head();
            }
            self.tools.store.write_with(batch, &self.standing)?;
        }
    }

    /// INV-6 for the tail. What is too many is told, what is missing stops the joiner.
    fn check_tail(&mut self, source: usize, ticks: &[Tick], report: &Report) -> Result<(), Error> {
        let tables = self.tools.catalog.tables.len();
        let mut miscounts = Vec::new();
        for (tick, received) in ticks.iter().zip(report.received.chunks(tables.max(1))) {
            miscounts.extend(self.books.check(tick, received));
        }
        if let Some(tick) = ticks.last() {
            let standing = &mut self.standing.sources[source];
            for (table, published, received) in standing.rereads.count(&self.tools.catalog, &report.reread) {
                miscounts.extend(self.books.rows(tick, table, published, received, standing.unknown));
            }
        }
        let (missing, surplus): (Vec<_>, Vec<_>) = miscounts.into_iter().partition(Miscount::is_missing);
        for miscount in &surplus {
            tracing::warn!(%miscount, "more events than the importer published: is the stream written by something else?");
            let table = self.standing.tables.entry(miscount.table.to_string()).or_default();
            table.surplus += miscount.received - miscount.published;
        }
        self.report.miscounts.extend(surplus);
        Error::unless_complete(missing)
    }
}
