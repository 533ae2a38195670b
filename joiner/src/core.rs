//! The joiner's heart: what has been read, what may be applied, how far everything has come. Synchronous, and a pure function of what it is handed: no clock, no network.
//!
//! # When a step may be taken
//! A progress record says that everything up to its `to_lsn` was published, and where each shard stood then. Once every shard has been read up to there, the buffer holds every change up to
//! `to_lsn`, whatever order shards were read in. The counts prove it (INV-6): fewer changes than were published are an error that stops the joiner.
//!
//! # Input positions
//! A shard's stored position never passes a change that is not applied: of the batches read from it, in order, those whose changes all lie at or below the frontier are behind it. After a
//! restart the rest are read again, and what the frontier covers is dropped as a duplicate. Snapshot rows are written when they are read, with the position behind them.
//!
//! # Epochs (INV-1)
//! Records of an importer that has been replaced (a lower epoch) are refused. What it may still publish as events does no harm: they are the same changes with the same identities.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use rocksdb::WriteBatch;
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId, StreamName};
use schemas::{Lsn, TableName};

use crate::buffer::{Buffer, Due};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::reread::{self, Covered, Rereads};
use crate::route::{DeadLetter, Routed, SnapshotRows};
use crate::state::cache::RowCache;
use crate::state::meta::{Stage, Standing};
use crate::state::{Family, Store, outbox};
use crate::step::{self, Report};

const NO_SNAPSHOT: &str = "the stream does not begin with a snapshot: its start has been trimmed, or the importer was told not to take one. Changes are passed over until a snapshot \
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

/// A batch that is not behind its shard's stored position yet.
#[derive(Debug)]
struct Received {
    last: SequenceNumber,
    /// The greatest commit LSN among its changes.
    greatest: Lsn,
    /// The number of the last row that was read again up to its end.
    rows: u64,
}

/// How far a shard has been read, and the batches that are not behind its stored position yet.
#[derive(Debug, Default)]
struct Shard {
    /// The shard's number, in the order in which they were first read.
    number: u16,
    read: Option<SequenceNumber>,
    batches: VecDeque<Received>,
    /// Counts the rows that were read again, and names those that no record has covered: where they stood, and their number.
    rows: u64,
    uncovered: VecDeque<(SequenceNumber, u64)>,
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
    store: Arc<Store>,
    catalog: Arc<Catalog>,
    tools: step::Tools,
    source: String,
    standing: Standing,
    buffer: Buffer,
    shards: HashMap<(StreamName, ShardId), Shard>,
    streams: Vec<StreamName>,
    records: VecDeque<Progress>,
    /// Whether changes came that no snapshot goes before.
    headless: bool,
    /// Entities assembled and changed since the core was made.
    pub(crate) report: Report,
}

impl Core {
    /// `streams`: the event streams that are read.
    pub(crate) fn new(
        store: Arc<Store>,
        catalog: Arc<Catalog>,
        source: &str,
        streams: Vec<StreamName>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let standing = store.standing()?;
        let buffer = Buffer::new(store.clone(), limits.buffer_bytes);
        let Limits { row_cache_bytes, chunk, share, .. } = limits;
        let cache = RowCache::new(row_cache_bytes);
        let tools = step::Tools { store: store.clone(), catalog: catalog.clone(), cache, chunk, share };
        let report = Report::default();
        Ok(Self {
            store,
            catalog,
            tools,
            source: source.to_owned(),
            standing,
            buffer,
            shards: HashMap::new(),
            streams,
            records: VecDeque::new(),
            headless: false,
            report,
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
        let holding: Vec<&str> = self.standing.rereads.holding(self.standing.frontier).collect();
        (!holding.is_empty()).then(|| {
            let (tables, head) = (holding.join(", "), self.standing.head_frontier);
            format!("{tables} is being read again by the importer: entities stay as of {head} until it is complete")
        })
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
        Ok(())
    }

    fn count(&mut self, table: usize, received: u64, applied: u64, dead: u64) {
        if received + applied + dead > 0 {
            let counts = self.standing.tables.entry(self.catalog.tables[table].schema.name.to_string()).or_default();
            counts.received += received;
            counts.applied += applied;
            counts.dead_lettered += dead;
        }
    }

    /// Takes in a batch.
    pub(crate) fn events(&mut self, routed: Routed) -> Result<(), Error> {
        let Routed { stream, shard, last, greatest, received, changes, rereads, snapshots, dead, unknown } = routed;
        for (table, count) in received.into_iter().enumerate() {
            self.count(table, count, 0, 0);
        }
        self.standing.unknown += unknown;
        self.standing.unknown_lately += unknown;
        self.dead_letters(&dead)?;
        let frontier = self.standing.frontier;
        let covered = self.standing.covered.get(&stream).and_then(|shards| shards.get(&shard)).cloned();
        let number = self.shards.len() as u16;
        let entry = self.shards.entry((stream, shard)).or_insert_with(|| Shard { number, ..Shard::default() });
        let mut rereads = rereads.into_iter();
        let mut live = Vec::with_capacity(changes.len());
        for mut change in changes {
            let Some(reader) = reread::reader(&change.position) else {
                live.extend((change.position.commit_lsn > frontier).then_some(change));
                continue;
            };
            if let Some(sequence) =
                rereads.next().filter(|sequence| covered.as_ref().is_none_or(|covered| sequence > covered))
            {
                entry.rows += 1;
                entry.uncovered.push_back((sequence, entry.rows));
                change.position = reread::position(entry.number, entry.rows, reader);
                live.push(change);
            }
        }
        entry.read = Some(last.clone());
        entry.batches.push_back(Received { last, greatest, rows: entry.rows });
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
            if self.store.get(Family::Meta, format!("{}{place}", crate::state::DEAD).as_bytes())?.is_none() {
                self.standing.dead_letters += 1;
                tracing::warn!(
                    stream = letter.stream,
                    shard = letter.shard,
                    sequence = letter.sequence,
                    reason = letter.reason,
                    "event dead-lettered"
                );
            }
            self.store.put_dead_letter(&mut batch, &place, &serde_json::json!(letter))?;
        }
        self.store.put_standing(&mut batch, &self.standing)?;
        self.write(batch)
    }

    /// Writes with the log, except while snapshot rows are written without it: a standing in the log would outlive rows that are not.
    fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        self.store.write(batch, !matches!(self.standing.stage, Stage::Snapshot { .. }))
    }

    /// Moves the stored positions as far as they may go.
    fn move_positions(&mut self) {
        let frontier = self.standing.frontier;
        for ((stream, shard), state) in &mut self.shards {
            let mut to = None;
            let uncovered = state.uncovered.front().map_or(u64::MAX, |(_, row)| *row);
            let behind = |batch: &&Received| batch.greatest <= frontier && batch.rows < uncovered;
            while state.batches.front().is_some_and(|batch| behind(&batch)) {
                to = state.batches.pop_front().map(|batch| batch.last);
            }
            if let Some(to) = to {
                self.standing.positions.entry(stream.clone()).or_default().insert(shard.clone(), to);
            }
        }
    }

    /// Puts rows of a snapshot into the state. Rows of a later snapshot than the one that the state stands on begin a new load; rows of an earlier one, or of one that is complete, are left out.
    fn snapshot_rows(&mut self, rows: SnapshotRows, last: bool) -> Result<(), Error> {
        let newer = self.standing.stage.start_lsn().is_none_or(|start| rows.start_lsn > start);
        if newer {
            self.begin_load(rows.start_lsn)?;
        }
        if self.standing.stage != (Stage::Snapshot { start_lsn: rows.start_lsn }) {
            return Ok(());
        }
        for (table, (received, dead)) in rows.received.iter().zip(&rows.dead).enumerate() {
            self.count(table, *received, received - dead, *dead);
            if *received > 0 {
                self.standing.snapshot.entry(self.catalog.tables[table].schema.name.to_string()).or_default().1 += received;
            }
        }
        let mut puts = rows.puts;
        if last {
            self.move_positions();
        }
        self.store.put_standing(&mut puts, &self.standing)?;
        self.store.write(puts, false)
    }

    /// Empties the state for a new snapshot. Sinks are loaded again when it is complete, and subscribers are told that the outbox was trimmed: one number is passed over, so that a reader who had everything is behind
    /// the oldest entry as well.
    fn begin_load(&mut self, start_lsn: Lsn) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for family in [Family::Rows, Family::Links, Family::Pending, Family::Seen, Family::Outbox] {
            self.store.clear_in(&mut batch, family)?;
        }
        let standing = &mut self.standing;
        standing.head = standing.pending.take().map_or(standing.head, |pending| pending.tail);
        if standing.stage != Stage::Empty {
            tracing::warn!(start_lsn = %start_lsn, "a new snapshot has begun: the state is built anew");
            standing.head += 1;
        }
        standing.oldest = standing.head + 1;
        standing.load += 1;
        standing.snapshot.clear();
        standing.rereads = Rereads::default();
        // Those read since the last record may be rows of this very snapshot.
        standing.unknown = standing.unknown_lately;
        standing.stage = Stage::Snapshot { start_lsn };
        standing.frontier = start_lsn;
        self.store.put_standing(&mut batch, standing)?;
        self.store.write(batch, true)?;
        self.tools.cache.clear();
        self.headless = false;
        self.buffer.forget(&Due::changes(start_lsn))?;
        self.store.flush()
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
        let ours = record.positions.iter().filter(|(stream, _)| self.streams.contains(stream));
        ours.flat_map(|(stream, shards)| shards.iter().map(move |(shard, sequence)| (stream, shard, sequence))).all(
            |(stream, shard, sequence)| {
                let read = self.shards.get(&(stream.clone(), shard.clone())).and_then(|shard| shard.read.as_ref());
                let stored = || self.standing.positions.get(stream).and_then(|shards| shards.get(shard));
                read.or_else(stored).is_some_and(|read| read >= sequence)
            },
        )
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
        Ok(moved)
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
        if self.standing.stage.start_lsn().is_none_or(|start| start_lsn > start) {
            // A snapshot that has not shown a row of ours yet.
            self.begin_load(start_lsn)?;
        }
        // Only now: what begins the load is written by itself, and after a crash behind it the record has to be read again.
        self.passed(progress);
        self.cover(record);
        self.buffer.forget(&Due { to: Lsn::ZERO, covered: self.covered() })?;
        if self.standing.stage != (Stage::Snapshot { start_lsn }) {
            // Of a snapshot that is complete already, or of an older one.
            return Ok(false);
        }
        self.check_snapshot(record)?;
        if let Phase::SnapshotComplete { consistent_from } = record.phase {
            self.standing.stage = if consistent_from <= self.standing.frontier {
                Stage::Live { start_lsn }
            } else {
                Stage::CatchUp { start_lsn, consistent_from }
            };
            self.standing.commit_time_ms = record.commit_time_ms;
            self.settle_head();
            // What was written without the log has to be there before anything is written with it that relies on it.
            self.store.flush()?;
        }
        let mut batch = WriteBatch::default();
        self.move_positions();
        self.store.put_standing(&mut batch, &self.standing)?;
        self.write(batch)?;
        Ok(true)
    }

    fn settle_head(&mut self) {
        if matches!(self.standing.stage, Stage::Live { .. }) {
            (self.standing.head_frontier, self.standing.head_commit_time_ms) =
                (self.standing.frontier, self.standing.commit_time_ms);
        }
    }

    /// INV-6 for snapshot rows: over the whole load, because a record may speak of rows that were read before a restart.
    fn check_snapshot(&mut self, record: &ProgressRecord) -> Result<(), Error> {
        for (table, count) in &record.counts {
            if self.catalog.table(table).is_none() {
                continue;
            }
            let (published, received) = self.standing.snapshot.entry(table.to_string()).or_default();
            *published += count;
            if *received + self.standing.unknown < *published {
                let (published, received) = (*published, *received);
                return Err(Error::Missing {
                    table: table.clone(),
                    from: record.from_lsn,
                    to: record.to_lsn,
                    published,
                    received,
                });
            }
        }
        Ok(())
    }

    /// A run of tail records: one step. Answers whether the frontier moved.
    fn tail(&mut self, run: &[Progress]) -> Result<bool, Error> {
        let mut published: BTreeMap<TableName, u64> = BTreeMap::new();
        let (from, mut exact) = (self.standing.frontier, true);
        let (mut to, mut commit_time_ms) = (from, self.standing.commit_time_ms);
        let (mut passed_over, mut rereading) = (None, false);
        for progress in run {
            self.passed(progress);
            let record = &progress.record;
            if self.is_fenced(record) {
                continue;
            }
            self.cover(record);
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
                return Err(Error::Gap { frontier: to, from: record.from_lsn });
            }
            exact &= record.from_lsn == to;
            for (table, count) in &record.counts {
                *published.entry(table.clone()).or_default() += count;
            }
            if !record.rereads.is_empty() || !self.standing.rereads.is_empty() {
                self.follow_rereads(record)?;
                rereading = true;
            }
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
        let due = Due { to, covered: self.covered() };
        if to == from && !rereading {
            self.buffer.forget(&Due { to: Lsn::ZERO, ..due })?;
            return Ok(false);
        }
        let taken = self.buffer.take(&due)?;
        let mut applied = step::apply(&self.tools, &taken, self.standing.rereads.readers(&self.catalog))?;
        self.standing.rereads.count(&self.catalog, &applied.report.reread, self.standing.unknown, to)?;
        if exact {
            self.check_tail(&published, &applied.report, from, to)?;
        }
        self.standing.frontier = to;
        self.standing.commit_time_ms = commit_time_ms;
        for table in 0..self.catalog.tables.len() {
            self.count(table, 0, applied.report.applied[table], applied.report.dead[table]);
        }
        self.standing.unknown_lately = 0;
        self.move_positions();
        let remembered = self.standing.rereads.remembered(&self.catalog);
        let hold = self.standing.rereads.hold(to);
        if let Stage::CatchUp { start_lsn, consistent_from } = self.standing.stage {
            if to >= consistent_from && !hold {
                self.standing.stage = Stage::Live { start_lsn };
                self.settle_head();
            }
            step::write_rows(&self.tools, &applied, remembered.as_deref(), &self.standing)?;
        } else {
            let beside = step::Beside { remembered: remembered.as_deref(), hold };
            step::finish(&self.tools, &taken, &mut applied, beside, &mut self.standing)?;
        }
        self.settle(&mut applied.report)?;
        self.report.assembled += applied.report.assembled;
        self.report.changed += applied.report.changed;
        self.buffer.forget(&due)?;
        Ok(true)
    }

    /// Rows that were read again and that a record says had been published by then are covered: this record, or none, puts them into the state.
    fn cover(&mut self, record: &ProgressRecord) {
        for (stream, shards) in record.positions.iter().filter(|(stream, _)| self.streams.contains(stream)) {
            for (shard, sequence) in shards {
                if let Some(shard) = self.shards.get_mut(&(stream.clone(), shard.clone())) {
                    while shard.uncovered.front().is_some_and(|(row, _)| row <= sequence) {
                        shard.uncovered.pop_front();
                    }
                }
                let covered = self.standing.covered.entry(stream.clone()).or_default();
                // A restarted importer may know of less than its predecessor said.
                if covered.get(shard).is_none_or(|before| before < sequence) {
                    covered.insert(shard.clone(), sequence.clone());
                }
            }
        }
    }

    /// The rows that have been covered.
    fn covered(&self) -> Covered {
        let mut covered = vec![0; self.shards.len()];
        for shard in self.shards.values() {
            covered[usize::from(shard.number)] = shard.uncovered.front().map_or(shard.rows, |(_, row)| row - 1);
        }
        Covered(covered)
    }

    /// Takes in what a record tells of tables that are read again.
    fn follow_rereads(&mut self, record: &ProgressRecord) -> Result<(), Error> {
        let begun = self.standing.rereads.follow(&self.catalog, record, self.standing.frontier)?;
        let mut batch = WriteBatch::default();
        for table in begun {
            tracing::info!(table = %self.catalog.tables[table].schema.name, "a table is read again");
            reread::forget(&self.store, &self.catalog, table, &mut batch)?;
        }
        // The standing is written with the step's rows; until then, places remembered of an older generation are of no use.
        self.store.write(batch, true)
    }

    /// Ends rereads that have been passed, and assembles what waits for it, unless something still holds it up.
    fn settle(&mut self, report: &mut Report) -> Result<(), Error> {
        while let Some((table, whole)) = self.standing.rereads.ended(&self.catalog, self.standing.frontier) {
            if whole {
                let store = self.store.clone();
                let mut sweep = reread::Sweep::new(&store, &self.catalog, table);
                loop {
                    let vanished = sweep.next()?;
                    if vanished.is_empty() {
                        break;
                    }
                    step::remove(&self.tools, table, &vanished, &mut self.standing, report)?;
                }
            }
            let mut batch = WriteBatch::default();
            reread::forget(&self.store, &self.catalog, table, &mut batch)?;
            self.standing.rereads.complete(&self.catalog, table);
            if let Stage::CatchUp { start_lsn, consistent_from } = self.standing.stage
                && self.standing.frontier >= consistent_from
                && !self.standing.rereads.hold(self.standing.frontier)
            {
                self.standing.stage = Stage::Live { start_lsn };
            }
            if self.standing.pending.is_none() && self.standing.is_consistent() {
                self.settle_head();
            }
            self.store.put_standing(&mut batch, &self.standing)?;
            self.store.write(batch, true)?;
        }
        if self.standing.is_consistent() {
            while step::drain(&self.tools, &mut self.standing, report)? {}
        }
        Ok(())
    }

    /// INV-6 for the tail, for records that cover exactly what lies between the frontiers. A record of a restarted importer may begin below the frontier; its counts then include what was applied, and
    /// proved, before, and cannot be told apart.
    fn check_tail(&self, published: &BTreeMap<TableName, u64>, report: &Report, from: Lsn, to: Lsn) -> Result<(), Error> {
        for (table, &published) in published {
            let Some(id) = self.catalog.table(table) else { continue };
            let received = report.applied[id] + report.dead[id];
            if received + self.standing.unknown < published {
                return Err(Error::Missing { table: table.clone(), from, to, published, received });
            }
        }
        Ok(())
    }

    /// Drops outbox entries that are older than `keep_after_ms`, or more than `keep_entries` behind, and that every sink has (`needed`: the least sequence number that
    /// some sink still needs). Looks at no more than a bounded number of entries.
    pub(crate) fn trim(&mut self, keep_entries: u64, keep_after_ms: i64, needed: u64) -> Result<(), Error> {
        let standing = &self.standing;
        let bound = needed.min(standing.head + 1);
        let mut oldest = standing.oldest.max((standing.head + 1).saturating_sub(keep_entries)).min(bound);
        for _ in 0..10_000 {
            if oldest >= bound || outbox::commit_time_ms(&self.store, oldest)?.is_some_and(|time| time >= keep_after_ms) {
                break;
            }
            oldest += 1;
        }
        if oldest > self.standing.oldest {
            self.standing.oldest = oldest;
            let mut batch = WriteBatch::default();
            outbox::trim(&self.store, &mut batch, oldest)?;
            self.store.put_standing(&mut batch, &self.standing)?;
            self.write(batch)?;
        }
        Ok(())
    }
}
