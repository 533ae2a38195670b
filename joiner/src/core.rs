//! The joiner's heart: what has been read, what may be applied, how far everything has come. Synchronous, and a pure function of what it is handed: no clock, no network.
//!
//! # When a step may be taken
//! A progress record says that everything up to its `to_lsn` was published, and where each shard stood then. Once every shard has been read up to there, the buffer holds every change up to
//! `to_lsn`, whatever order shards were read in. The counts prove it (INV-6, [`crate::accounting`]).
//!
//! # Epochs (INV-1)
//! Records of an importer that has been replaced (a lower epoch) are refused. What it may still publish as events does no harm: they are the same changes with the same identities.

use std::collections::VecDeque;
use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::Lsn;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, StreamName};

use crate::accounting::{Books, Miscount, Tick, listed};
use crate::buffer::{Buffer, Due};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::inputs::{Behind, Inputs, Stretches};
use crate::quiet::Ended;
use crate::reread::{self, Rereads};
use crate::route::{DeadLetter, Routed, SnapshotRows};
use crate::state::cache::RowCache;
use crate::state::meta::{Stage, Standing};
use crate::state::{Family, Store, outbox};
use crate::status::FanOut;
use crate::step::{self, FanOuts, PAST_BYTES, Report};

const NO_SNAPSHOT: &str = "the stream does not begin with a whole snapshot: its start has been trimmed, or the importer was told not to take one. Changes are passed over until a snapshot \
     comes; if none is on its way, take a new one with the importer";

/// Bounds of the core's work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) buffer_bytes: usize,
    /// Entities assembled and written at once.
    pub(crate) chunk: usize,
    /// How they are assembled.
    pub(crate) share: step::Share,
    pub(crate) row_cache_bytes: usize,
}

/// A progress record and where it stood.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub(crate) stream: StreamName,
    pub(crate) shard: ShardId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) record: ProgressRecord,
}

pub(crate) struct Core {
    tools: step::Tools,
    source: String,
    standing: Standing,
    buffer: Buffer,
    inputs: Inputs,
    books: Books,
    records: VecDeque<Progress>,
    fan_outs: FanOuts,
    /// Whether changes came that no snapshot goes before.
    headless: bool,
    /// Entities assembled and changed since the core was made.
    pub(crate) report: Report,
}

impl Core {
    /// `streams`: by table, the stream that it comes in.
    pub(crate) fn new(
        store: Arc<Store>,
        catalog: Arc<Catalog>,
        source: &str,
        streams: Vec<StreamName>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let standing = store.standing()?;
        let buffer = Buffer::new(store.clone(), limits.buffer_bytes);
        let inputs = Inputs::new(&streams);
        let tables = catalog.tables.iter().map(|table| table.schema.name.clone());
        let books = Books { tables: tables.zip(streams).collect() };
        let Limits { row_cache_bytes, chunk, share, .. } = limits;
        let fan_outs = FanOuts::load(&store, &catalog)?;
        let tools = step::Tools { store, catalog, cache: RowCache::new(row_cache_bytes), chunk, share };
        Ok(Self {
            tools,
            source: source.to_owned(),
            standing,
            buffer,
            inputs,
            books,
            records: VecDeque::new(),
            fan_outs,
            headless: false,
            report: Report::default(),
        })
    }

    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What is waited for.
    pub(crate) fn warning(&self) -> Option<String> {
        if self.headless {
            return Some(NO_SNAPSHOT.to_owned());
        }
        let standing = &self.standing;
        if standing.frontier < standing.mixed_until {
            let (until, head) = (standing.mixed_until, standing.head_frontier);
            return Some(format!(
                "the state was merged of several: entities stay as of {head} until what they had read is read again, up to {until}"
            ));
        }
        let head = self.standing.head_frontier;
        let holding: Vec<&str> = self.standing.rereads.holding(self.standing.frontier).collect();
        if !holding.is_empty() {
            let tables = holding.join(", ");
            return Some(format!(
                "{tables} is being read again by the importer: entities stay as of {head} until it is complete"
            ));
        }
        let FanOut { rows, since, owners_told } = self.fan_out()?;
        Some(format!(
            "documents that refer to {rows} rows changed from {since} on are being told, {owners_told} so far: the frontier stays at {head} until all are"
        ))
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    /// How many progress records wait for their events.
    pub(crate) fn waiting(&self) -> usize {
        self.records.len()
    }

    /// Goes on with a step that was being assembled when the joiner stopped.
    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        let mut report = Report::default();
        self.settle(&mut report)?;
        self.report.assembled += report.assembled;
        self.report.changed += report.changed;
        if self.standing.is_consistent() && self.standing.pending.is_none() {
            // What waited may have been of entities that are defined otherwise now.
            let told = self.standing.head_frontier;
            self.settle_head();
            if self.standing.head_frontier != told {
                let mut batch = WriteBatch::default();
                self.tools.store.put_standing(&mut batch, &self.standing)?;
                self.write(batch)?;
            }
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
        for (table, count) in received.into_iter().enumerate() {
            self.count(table, count, 0, 0);
        }
        self.standing.unknown += unknown.len() as u64;
        for sequence in unknown {
            self.standing.unknown_read.add(&arrived.stream, &arrived.shard, sequence);
        }
        self.dead_letters(&dead)?;
        let live = self.inputs.take_in(arrived, &self.standing);
        self.buffer.push(live)?;
        let count = snapshots.len();
        for (nth, rows) in snapshots.into_iter().enumerate() {
            // The position may pass the batch only with the last of its rows.
            self.snapshot_rows(rows, nth + 1 == count)?;
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
        self.tools.store.put_standing(&mut batch, &self.standing)?;
        self.write(batch)
    }

    /// Writes with the log, except while snapshot rows are written without it: a standing in the log would outlive rows that are not.
    fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        self.tools.store.write(batch, !matches!(self.standing.stage, Stage::Snapshot { .. }))
    }

    /// Puts rows of a snapshot into the state. Rows of a later snapshot than the one that the state stands on begin a new load; rows of an earlier one, or of one that is complete, are left out.
    fn snapshot_rows(&mut self, rows: SnapshotRows, last: bool) -> Result<(), Error> {
        if self.is_newer(rows.start_lsn) {
            self.begin_load(rows.start_lsn)?;
        }
        if self.standing.stage != (Stage::Snapshot { start_lsn: rows.start_lsn }) {
            return Ok(());
        }
        for (table, (received, dead)) in rows.received.iter().zip(&rows.dead).enumerate() {
            self.count(table, *received, received - dead, *dead);
            if *received > 0 {
                self.standing.snapshot.entry(self.tools.catalog.tables[table].schema.name.to_string()).or_default().1 += received;
            }
        }
        let mut puts = rows.puts;
        if last {
            self.inputs.move_positions(&mut self.standing);
        }
        self.tools.store.put_standing(&mut puts, &self.standing)?;
        self.tools.store.write(puts, false)
    }

    /// Empties the state for a new snapshot. Sinks are loaded again when it is complete, and subscribers are told that the outbox was trimmed: one number is passed over, so that a reader who had everything is behind
    /// the oldest entry as well.
    fn begin_load(&mut self, start_lsn: Lsn) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        let waiting = [Family::Pending, Family::Walks, Family::Past, Family::Told];
        for family in [Family::Rows, Family::Links, Family::Seen, Family::Outbox].into_iter().chain(waiting) {
            self.tools.store.clear_in(&mut batch, family)?;
        }
        self.fan_outs.clear();
        let standing = &mut self.standing;
        standing.head = standing.pending.take().map_or(standing.head, |pending| pending.tail);
        if standing.stage != Stage::Empty {
            tracing::warn!(start_lsn = %start_lsn, "a new snapshot has begun: the state is built anew");
            standing.head += 1;
        }
        standing.oldest = standing.head + 1;
        (standing.mixed_until, standing.complete_after) = (Lsn::ZERO, Lsn::MAX);
        standing.load += 1;
        standing.snapshot.clear();
        standing.rereads = Rereads::default();
        // Those read since the last record may be rows of this very snapshot.
        standing.unknown = standing.unknown_read.count();
        standing.stage = Stage::Snapshot { start_lsn };
        standing.frontier = start_lsn;
        self.tools.store.put_standing(&mut batch, standing)?;
        self.tools.store.write(batch, true)?;
        self.tools.cache.clear();
        self.headless = false;
        self.buffer.forget(&Due::changes(start_lsn))?;
        self.tools.store.flush()
    }

    /// Takes in a progress record.
    pub(crate) fn progress(&mut self, progress: Progress) -> Result<(), Error> {
        if progress.record.source != self.source {
            return Err(Error::StreamOfOtherSource { found: progress.record.source, expected: self.source.clone() });
        }
        self.records.push_back(progress);
        Ok(())
    }

    fn is_read(&self, record: &ProgressRecord) -> bool {
        self.inputs.behind(record, &self.standing.positions).next().is_none()
    }

    /// The shards that the next record waits for.
    pub(crate) fn waits_for(&self) -> Vec<Behind> {
        let next = self.records.front().into_iter();
        next.flat_map(|next| self.inputs.behind(&next.record, &self.standing.positions)).collect()
    }

    /// Where the last of the records that wait stands.
    pub(crate) fn last_waiting(&self) -> Option<&SequenceNumber> {
        self.records.back().map(|last| &last.sequence)
    }

    /// Takes note that a shard ends before what the next record names. All that the records name in it that waited when the store was asked was there to be read by then: the counts tell whether anything is missing.
    pub(crate) fn ends_before(&mut self, ended: &Ended) {
        let Ended { behind, waiting } = ended;
        if !self.waits_for().contains(behind) {
            // The shard has gone on after all: the answer is about something else.
            return;
        }
        let Behind { stream, shard, read, named } = behind;
        tracing::warn!(%stream, %shard, %named, ?read, "the shard ends before a record that a progress record names");
        for waited in self.records.iter().take_while(|waited| waited.sequence <= *waiting) {
            if let Some(named) = waited.record.positions.get(stream).and_then(|shards| shards.get(shard)) {
                self.inputs.ends_before(behind, named);
            }
        }
    }

    /// Does what can be done now. Answers whether the frontier, or the stage, has moved.
    pub(crate) fn advance(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some(progress) = self.records.pop_front() {
            if !self.is_read(&progress.record) {
                self.records.push_front(progress);
                break;
            }
            moved |= match progress.record.phase {
                Phase::Tail => {
                    let run = self.run_of_tail(progress)?;
                    self.tail(&run)?
                }
                _ => self.snapshot_record(&progress)?,
            };
        }
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
        self.report.assembled += report.assembled;
        self.report.changed += report.changed;
        Ok(told)
    }

    /// What waits beside the steps, if anything does.
    pub(crate) fn fan_out(&self) -> Option<FanOut> {
        let (rows, since, owners_told) = self.fan_outs.waiting()?;
        Some(FanOut { rows, since, owners_told })
    }

    /// Whether a record comes from an importer that has been replaced.
    fn is_fenced(&mut self, record: &ProgressRecord) -> bool {
        if record.epoch < self.standing.epoch {
            tracing::warn!(epoch = record.epoch, current = self.standing.epoch, "progress record of a replaced importer refused");
            return true;
        }
        self.standing.epoch = record.epoch;
        false
    }

    /// The record and those that follow it and are ready as well: they make one step. Its rows are held in memory until it is written, so when the buffer has outgrown its bound (a buffer that has not spilled is
    /// within it) each record is a step of its own.
    fn run_of_tail(&mut self, first: Progress) -> Result<Vec<Progress>, Error> {
        // A record that speaks of a table that is read again is a step of its own: what it tells holds from there on.
        let alone = |record: &ProgressRecord| !record.rereads.is_empty();
        let mut run = vec![first];
        while !self.buffer.has_spilled()
            && self.standing.rereads.is_empty()
            && !alone(&run[0].record)
            && let Some(next) = self
                .records
                .front()
                .filter(|next| next.record.phase == Phase::Tail && !alone(&next.record) && self.is_read(&next.record))
        {
            run.push(next.clone());
            self.records.pop_front();
        }
        Ok(run)
    }

    fn passed(&mut self, progress: &Progress) {
        let shards = self.standing.positions.entry(progress.stream.clone()).or_default();
        shards.insert(progress.shard.clone(), progress.sequence.clone());
    }

    /// A record of the snapshot's phase. Answers whether something moved.
    fn snapshot_record(&mut self, progress: &Progress) -> Result<bool, Error> {
        let record = &progress.record;
        if self.is_fenced(record) {
            self.passed(progress);
            return Ok(false);
        }
        let start_lsn = record.from_lsn;
        if self.is_newer(start_lsn) {
            // A snapshot that has not shown a row of ours yet.
            self.begin_load(start_lsn)?;
        }
        // Only now: what begins the load is written by itself, and after a crash behind it the record has to be read again.
        self.passed(progress);
        let stretches = self.inputs.cover(record, &mut self.standing);
        if stretches.rows > 0 {
            self.buffer.forget(&Due { to: Lsn::ZERO, covered: self.inputs.covered() })?;
        }
        if self.standing.stage != (Stage::Snapshot { start_lsn }) {
            // Of a snapshot that is complete already, or of an older one.
            return Ok(false);
        }
        let missing = self.check_snapshot(record, stretches);
        if !missing.is_empty() {
            return self.give_up(start_lsn, missing);
        }
        if let Phase::SnapshotComplete { consistent_from } = record.phase {
            if consistent_from <= self.standing.frontier {
                self.standing.begin_live(start_lsn);
            } else {
                self.standing.stage = Stage::CatchUp { start_lsn, consistent_from };
            }
            self.standing.commit_time_ms = record.commit_time_ms;
            self.settle_head();
            // What was written without the log has to be there before anything is written with it that relies on it.
            self.tools.store.flush()?;
        }
        let mut batch = WriteBatch::default();
        self.inputs.move_positions(&mut self.standing);
        self.tools.store.put_standing(&mut batch, &self.standing)?;
        self.write(batch)?;
        Ok(true)
    }

    fn settle_head(&mut self) {
        if matches!(self.standing.stage, Stage::Live { .. }) {
            (self.standing.head_frontier, self.standing.head_commit_time_ms) = self.fan_outs.complete(&self.standing);
        }
    }

    /// INV-6 for snapshot rows: over the whole load, because a record may speak of rows that were read before a restart.
    fn check_snapshot(&mut self, record: &ProgressRecord, stretches: Stretches) -> Vec<Miscount> {
        if stretches.is_empty() {
            return Vec::new();
        }
        let tick = Tick::new(record, record.from_lsn, stretches);
        let mut miscounts = Vec::new();
        for (name, count) in &record.counts {
            let Some(table) = self.tools.catalog.table(name) else { continue };
            let (published, received) = self.standing.snapshot.entry(name.to_string()).or_default();
            *published += count;
            miscounts.extend(self.books.rows(&tick, table, *published, *received, self.standing.unknown));
        }
        miscounts
    }

    /// Whether a snapshot is newer than the one that the state stands on, and than any that was given up.
    fn is_newer(&self, start_lsn: Lsn) -> bool {
        start_lsn > self.standing.given_up && self.standing.stage.start_lsn().is_none_or(|start| start_lsn > start)
    }

    /// Passes over a first snapshot of which rows are missing: a whole one may stand behind it in the streams. (Those whose beginning is past its retention all begin like this.) Where entities have been made of an
    /// earlier one, the joiner stops.
    fn give_up(&mut self, start_lsn: Lsn, missing: Vec<Miscount>) -> Result<bool, Error> {
        if self.standing.head_frontier > Lsn::ZERO {
            return Err(Error::Missing { miscounts: missing });
        }
        tracing::error!(%start_lsn, missing = listed(&missing), "rows of the snapshot are missing: it is passed over until a newer one comes");
        self.report.miscounts.extend(missing);
        self.standing.stage = Stage::Empty;
        self.standing.given_up = start_lsn;
        self.headless = true;
        self.inputs.move_positions(&mut self.standing);
        let mut batch = WriteBatch::default();
        self.tools.store.put_standing(&mut batch, &self.standing)?;
        self.write(batch)?;
        Ok(true)
    }

    /// A run of tail records: one step. Answers whether the frontier moved.
    fn tail(&mut self, run: &[Progress]) -> Result<bool, Error> {
        let walks = self.make_way(run)?;
        let mut ticks: Vec<Tick> = Vec::new();
        let (from, mut rows) = (self.standing.frontier, 0);
        let before = (from, self.standing.commit_time_ms);
        let (mut to, mut commit_time_ms) = (from, self.standing.commit_time_ms);
        let (mut passed_over, mut rereading) = (None, false);
        for progress in run {
            self.passed(progress);
            let record = &progress.record;
            if self.is_fenced(record) {
                continue;
            }
            let stretches = self.inputs.cover(record, &mut self.standing);
            rows += stretches.rows;
            if record.to_lsn <= to && record.rereads.is_empty() {
                continue;
            }
            match self.standing.stage {
                // What is left of an older tail: a newer snapshot may stand behind it.
                Stage::Empty => {
                    passed_over = passed_over.max(Some(record.to_lsn));
                    continue;
                }
                // A new snapshot is on its way; the tail of the old one says nothing any more.
                Stage::Snapshot { .. } => continue,
                Stage::CatchUp { .. } | Stage::Live { .. } => {}
            }
            if record.from_lsn > to {
                return Err(Error::Gap {
                    frontier: to,
                    from: record.from_lsn,
                    stream: progress.stream.clone(),
                    shard: progress.shard.clone(),
                    sequence: progress.sequence.clone(),
                });
            }
            if !record.rereads.is_empty() || !self.standing.rereads.is_empty() {
                self.follow_rereads(record, &stretches)?;
                rereading = true;
            }
            ticks.push(Tick::new(record, to, stretches));
            if record.to_lsn <= to {
                continue;
            }
            to = record.to_lsn;
            if record.commit_time_ms > 0 {
                commit_time_ms = record.commit_time_ms;
            }
        }
        if let Some(passed_over) = passed_over {
            if !std::mem::replace(&mut self.headless, true) {
                tracing::warn!(to_lsn = %passed_over, "{NO_SNAPSHOT}");
            }
            self.buffer.forget(&Due::changes(passed_over))?;
        }
        let due = Due { to, covered: self.inputs.covered() };
        if to == from && !rereading {
            if rows > 0 {
                // Of rereads that no record speaks of.
                self.buffer.forget(&Due { to: Lsn::ZERO, ..due })?;
            }
            return Ok(false);
        }
        let taken = self.buffer.take(&due)?;
        let ends: Vec<Lsn> = ticks.iter().map(|tick| tick.to).collect();
        let mut applied = step::apply(&self.tools, &taken, self.standing.rereads.counting(&self.tools.catalog), &ends)?;
        self.check_tail(&ticks, &applied.report)?;
        self.standing.frontier = to;
        self.standing.commit_time_ms = commit_time_ms;
        for table in 0..self.tools.catalog.tables.len() {
            self.count(table, 0, applied.report.applied[table], applied.report.dead[table]);
        }
        self.inputs.move_positions(&mut self.standing);
        let remembered = self.standing.rereads.remembered(&self.tools.catalog);
        let hold = self.standing.holds(to);
        if let Stage::CatchUp { start_lsn, consistent_from } = self.standing.stage {
            if to >= consistent_from && !hold {
                self.standing.begin_live(start_lsn);
                self.settle_head();
            }
            step::write_rows(&self.tools, &applied, remembered.as_deref(), &self.standing)?;
        } else {
            let beside = step::Beside {
                remembered: remembered.as_deref(),
                hold,
                walks: walks && !hold && self.standing.mixed_until.is_zero(),
                from: before,
            };
            step::finish(&self.tools, &taken, &mut applied, beside, &mut self.fan_outs, &mut self.standing)?;
        }
        self.settle(&mut applied.report)?;
        self.report.assembled += applied.report.assembled;
        self.report.changed += applied.report.changed;
        self.buffer.forget(&due)?;
        Ok(true)
    }

    /// Works off fan-outs that cannot wait beside a step. Answers whether the step itself may leave some for later. (Before anything of the step is taken note of: this writes the standing.)
    fn make_way(&mut self, run: &[Progress]) -> Result<bool, Error> {
        let reread = !self.standing.rereads.is_empty() || run.iter().any(|progress| !progress.record.rereads.is_empty());
        let bytes = self.buffer.bytes();
        let apart = reread || self.buffer.has_spilled();
        if apart || self.fan_outs.bytes() + bytes > PAST_BYTES {
            while self.tell_more()? {}
        }
        Ok(!apart && bytes <= PAST_BYTES)
    }

    /// Takes in what a record tells of tables that are read again.
    fn follow_rereads(&mut self, record: &ProgressRecord, stretches: &Stretches) -> Result<(), Error> {
        let begun = self.standing.rereads.follow(&self.tools.catalog, record, stretches, self.standing.frontier)?;
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
        while let Some((table, whole)) = self.standing.rereads.ended(&self.tools.catalog, self.standing.frontier) {
            if whole {
                let store = self.tools.store.clone();
                let mut sweep = reread::Sweep::new(&store, &self.tools.catalog, table);
                loop {
                    let vanished = sweep.next()?;
                    if vanished.is_empty() {
                        break;
                    }
                    step::remove(&self.tools, table, &vanished, &mut self.standing, report)?;
                }
            }
            let mut batch = WriteBatch::default();
            reread::forget(&self.tools.store, &self.tools.catalog, table, &mut batch)?;
            self.standing.rereads.complete(&self.tools.catalog, table);
            if let Stage::CatchUp { start_lsn, consistent_from } = self.standing.stage
                && self.standing.frontier >= consistent_from
                && !self.standing.holds(self.standing.frontier)
            {
                self.standing.begin_live(start_lsn);
            }
            if self.standing.pending.is_none() && self.standing.is_consistent() {
                self.settle_head();
            }
            self.tools.store.put_standing(&mut batch, &self.standing)?;
            self.tools.store.write(batch, true)?;
        }
        if self.standing.is_consistent() {
            while step::drain(&self.tools, &mut self.fan_outs, &mut self.standing, report)? {}
        }
        Ok(())
    }

    /// INV-6 for the tail. What is too many is told, what is missing stops the joiner.
    fn check_tail(&mut self, ticks: &[Tick], report: &Report) -> Result<(), Error> {
        let tables = self.tools.catalog.tables.len();
        let mut miscounts = Vec::new();
        for (tick, received) in ticks.iter().zip(report.received.chunks(tables.max(1))) {
            miscounts.extend(self.books.check(tick, received));
        }
        if let Some(tick) = ticks.last() {
            for (table, published, received) in self.standing.rereads.count(&self.tools.catalog, &report.reread) {
                miscounts.extend(self.books.rows(tick, table, published, received, self.standing.unknown));
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

    /// Drops outbox entries that are older than `keep_after_ms`, or more than `keep_entries` behind, and that every sink has (`needed`: the least sequence number that
    /// some sink still needs). Looks at no more than a bounded number of entries.
    pub(crate) fn trim(&mut self, keep_entries: u64, keep_after_ms: i64, needed: u64) -> Result<(), Error> {
        let standing = &self.standing;
        let bound = needed.min(standing.head + 1);
        let mut oldest = standing.oldest.max((standing.head + 1).saturating_sub(keep_entries)).min(bound);
        for _ in 0..10_000 {
            if oldest >= bound || outbox::commit_time_ms(&self.tools.store, oldest)?.is_some_and(|time| time >= keep_after_ms) {
                break;
            }
            oldest += 1;
        }
        if oldest > self.standing.oldest {
            let trimmed = outbox::version(&self.tools.store, oldest - 1)?;
            self.standing.complete_after = self.standing.complete_after.max(trimmed.unwrap_or(self.standing.head_frontier));
            self.standing.oldest = oldest;
            let mut batch = WriteBatch::default();
            outbox::trim(&self.tools.store, &mut batch, oldest)?;
            self.tools.store.put_standing(&mut batch, &self.standing)?;
            self.write(batch)?;
            outbox::reclaim(&self.tools.store, oldest)?;
        }
        Ok(())
    }
}
