//! The first load of a source, and later ones: rows of its snapshot go straight into the state, and nothing is assembled before the tail has passed them.
//!
//! Rows are written without the log, with the positions behind them ([`crate::state`]); for as long as any source is at that, so is everything else, because a standing in the log would outlive rows that are not in it. What begins and what ends a
//! load is flushed.

use rocksdb::WriteBatch;
use schemas::Lsn;
use schemas::progress::{Phase, ProgressRecord};

use super::source::is_newer;
use super::{Core, Progress};
use crate::accounting::{Miscount, Tick, listed};
use crate::buffer::Due;
use crate::error::Error;
use crate::inputs::Stretches;
use crate::reread::Rereads;
use crate::route::SnapshotRows;
use crate::state::Family;
use crate::state::meta::Stage;
use crate::state::view::{family, start_key};
use crate::step::Report;

impl Core {
    /// Puts rows of a snapshot into the state. Rows of a later snapshot than the one that the state stands on begin a new load; rows of an earlier one, or of one that is complete, are left out.
    pub(super) fn snapshot_rows(&mut self, source: usize, rows: SnapshotRows, last: bool) -> Result<(), Error> {
        if is_newer(&self.standing.sources[source], rows.start_lsn) {
            self.begin_load(source, rows.start_lsn)?;
        }
        if self.standing.sources[source].stage != (Stage::Snapshot { start_lsn: rows.start_lsn }) {
            return Ok(());
        }
        for (table, (received, dead)) in rows.received.iter().zip(&rows.dead).enumerate() {
            self.count(table, *received, received - dead, *dead);
            if *received > 0 {
                let name = self.tools.catalog.tables[table].schema.name.to_string();
                self.standing.sources[source].snapshot.entry(name).or_default().1 += received;
            }
        }
        if last {
            self.move_positions(source);
        }
        self.tools.store.write_with(rows.puts, &self.standing)
    }

    /// Removes the rows of a source for a new snapshot of it. Sinks are loaded again when it is complete, and subscribers are told that the outbox was trimmed: one number is passed over, so that a reader who had everything is behind
    /// the oldest entry as well.
    fn begin_load(&mut self, number: usize, start_lsn: Lsn) -> Result<(), Error> {
        let store = self.tools.store.clone();
        if self.standing.is_loading() {
            // What another source's snapshot has written without the log has to be there before the standing is written with it.
            store.flush()?;
        }
        let mut batch = WriteBatch::default();
        for &table in &self.sources[number].tables {
            for &index in &self.tools.catalog.tables[table].indexes {
                let (mut start, mut end) = (Vec::new(), Vec::new());
                start_key(index, &mut start);
                start_key(index + 1, &mut end);
                for family in [family(self.tools.catalog.indexes[index].kind), Family::Seen] {
                    batch.delete_range_cf(store.family(family)?, &start, &end);
                }
            }
        }
        for family in [Family::Outbox, Family::Pending, Family::Walks, Family::Past, Family::Told, Family::Parts] {
            store.clear_in(&mut batch, family)?;
        }
        self.fan_outs.clear();
        let standing = &mut self.standing;
        standing.head = standing.pending.take().map_or(standing.head, |pending| pending.tail);
        let source = &mut standing.sources[number];
        if source.stage != Stage::Empty {
            tracing::warn!(source = source.source, start_lsn = %start_lsn, "a new snapshot has begun: the state is built anew");
            standing.head += 1;
        }
        standing.oldest = standing.head + 1;
        (standing.live, standing.mixed_until, standing.complete_after) = (false, Lsn::ZERO, Lsn::MAX);
        standing.load += 1;
        source.snapshot.clear();
        source.rereads = Rereads::default();
        // Those read since the last record may be rows of this very snapshot.
        source.unknown = source.unknown_read.count();
        source.stage = Stage::Snapshot { start_lsn };
        source.frontier = start_lsn;
        source.portions_to = Lsn::ZERO;
        standing.unmade = self.tools.catalog.made_first().collect();
        standing.moved();
        store.put_standing(&mut batch, standing)?;
        store.write(batch, true)?;
        store.recent().forget(standing.oldest);
        self.tools.cache.clear();
        let source = &mut self.sources[number];
        source.headless = false;
        source.buffer.forget(&Due::changes(start_lsn))?;
        store.flush()
    }

    /// A record of the snapshot's phase. Answers whether something moved.
    pub(super) fn snapshot_record(&mut self, number: usize, progress: &Progress) -> Result<bool, Error> {
        let record = &progress.record;
        if self.is_fenced(number, record) {
            self.passed(progress);
            return Ok(false);
        }
        let start_lsn = record.from_lsn;
        if is_newer(&self.standing.sources[number], start_lsn) {
            // A snapshot that has not shown a row of ours yet.
            self.begin_load(number, start_lsn)?;
        }
        // Only now: what begins the load is written by itself, and after a crash behind it the record has to be read again.
        self.passed(progress);
        let source = &mut self.sources[number];
        let stretches = source.inputs.cover(record, &mut self.standing.sources[number]);
        if stretches.rows > 0 {
            source.buffer.forget(&Due { to: Lsn::ZERO, covered: source.inputs.covered() })?;
        }
        if self.standing.sources[number].stage != (Stage::Snapshot { start_lsn }) {
            // Of a snapshot that is complete already, or of an older one.
            return Ok(false);
        }
        let missing = self.check_snapshot(number, record, stretches);
        if !missing.is_empty() {
            return self.give_up(number, start_lsn, missing);
        }
        if let Phase::SnapshotComplete { consistent_from } = record.phase {
            let source = &mut self.standing.sources[number];
            source.stage = Stage::CatchUp { start_lsn, consistent_from };
            source.commit_time_ms = record.commit_time_ms;
            source.passes(record.commit_time_ms);
            source.pass_catch_up();
            self.standing.moved();
            self.standing.go_live();
            self.settle_head();
            // What was written without the log has to be there before anything is written with it that relies on it.
            self.tools.store.flush()?;
        }
        self.move_positions(number);
        self.tools.store.write_with(WriteBatch::default(), &self.standing)?;
        self.settle(&mut Report::default())?;
        Ok(true)
    }

    /// INV-6 for snapshot rows: over the whole load, because a record may speak of rows that were read before a restart.
    fn check_snapshot(&mut self, source: usize, record: &ProgressRecord, stretches: Stretches) -> Vec<Miscount> {
        if stretches.is_empty() {
            return Vec::new();
        }
        let tick = Tick::new(record, record.from_lsn, stretches);
        let mut miscounts = Vec::new();
        for (name, count) in &record.counts {
            let Some(table) = self.tools.catalog.table(name) else { continue };
            let standing = &mut self.standing.sources[source];
            let (published, received) = standing.snapshot.entry(name.to_string()).or_default();
            *published += count;
            miscounts.extend(self.books.rows(&tick, table, *published, *received, standing.unknown));
        }
        miscounts
    }

    /// Passes over a first snapshot of which rows are missing: a whole one may stand behind it in the streams. (Those whose beginning is past its retention all begin like this.) Where entities have been made of an
    /// earlier one, the joiner stops.
    fn give_up(&mut self, number: usize, start_lsn: Lsn, missing: Vec<Miscount>) -> Result<bool, Error> {
        if self.standing.head_frontier > Lsn::ZERO {
            return Err(Error::Missing { miscounts: missing });
        }
        tracing::error!(%start_lsn, missing = listed(&missing), "rows of the snapshot are missing: it is passed over until a newer one comes");
        self.report.miscounts.extend(missing);
        let standing = &mut self.standing.sources[number];
        (standing.stage, standing.given_up) = (Stage::Empty, start_lsn);
        self.sources[number].headless = true;
        self.move_positions(number);
        self.tools.store.write_with(WriteBatch::default(), &self.standing)?;
        Ok(true)
    }
}
