//! What the core keeps of one source, besides what stands in the state: its progress records and changes that wait, and how far its shards have been read.

use std::collections::VecDeque;
use std::sync::Arc;

use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardPositions};
use schemas::table::SourceName;
use schemas::{Lsn, TableName};

use super::{Limits, Progress};
use crate::buffer::Buffer;
use crate::catalog::TableId;
use crate::engine::Origin;
use crate::inputs::{Behind, Inputs};
use crate::quiet::Ended;
use crate::state::Store;
use crate::state::meta::SourceStanding;

/// The changes of a step that is made of several records, while many wait on the disk: a step that is as large as it gets would be written in portions, and each record by itself would be a write for a few rows.
const RUN_ROWS: u64 = 10_000;

/// What is less than one part of so many of a step is little: it is done at once, whatever is on its way, unless a [backlog](Buffer::is_backlog) waits with it.
const LITTLE: u64 = 16;

pub(super) struct Source {
    /// Its name, where there are several: tables are called by it then.
    qualifier: Option<SourceName>,
    pub(super) tables: Vec<TableId>,
    pub(super) buffer: Buffer,
    pub(super) inputs: Inputs,
    pub(super) records: VecDeque<Progress>,
    /// Whether changes came that no snapshot goes before.
    pub(super) headless: bool,
    step_changes: u64,
}

impl Source {
    pub(super) fn new(store: Arc<Store>, number: usize, origin: &Origin, limits: &Limits) -> Self {
        Self {
            qualifier: origin.qualifier.clone(),
            tables: origin.tables.clone(),
            buffer: Buffer::new(store, number as u16, limits.buffer_bytes),
            inputs: Inputs::new(&origin.streams),
            records: VecDeque::new(),
            headless: false,
            step_changes: limits.step_changes,
        }
    }

    /// Takes in a record. Where there are several sources, its tables are called by this one from here on.
    pub(super) fn push(&mut self, mut progress: Progress) {
        if let Some(source) = &self.qualifier {
            let ProgressRecord { counts, rereads, reread_counts, .. } = &mut progress.record;
            let called = |name: TableName| name.of(source);
            *counts = std::mem::take(counts).into_iter().map(|(name, count)| (called(name), count)).collect();
            *rereads = std::mem::take(rereads).into_iter().map(|(name, reread)| (called(name), reread)).collect();
            *reread_counts = std::mem::take(reread_counts).into_iter().map(|(name, count)| (called(name), count)).collect();
        }
        self.records.push_back(progress);
    }

    fn is_read(&self, record: &ProgressRecord, positions: &ShardPositions) -> bool {
        self.inputs.behind(record, positions).next().is_none()
    }

    /// The next record, if all that it speaks of has been read.
    pub(super) fn next(&mut self, positions: &ShardPositions) -> Option<Progress> {
        let next = self.records.pop_front()?;
        if self.is_read(&next.record, positions) {
            return Some(next);
        }
        self.records.push_front(next);
        None
    }

    /// The record and those that follow it and are ready as well: they make one step, of about [`Limits::step_changes`](super::Limits::step_changes). Its rows are held in memory until it is written: when the buffer has outgrown
    /// its bound (one that has not spilled is within it), no more records are taken than tell of [`RUN_ROWS`] changes. `grows`: more is on its way. Then what is neither little nor a whole step is left until it is (none), or until the buffer is nearly full.
    pub(super) fn run_of_tail(
        &mut self,
        first: Progress,
        standing: &SourceStanding,
        positions: &ShardPositions,
        grows: bool,
    ) -> Option<Vec<Progress>> {
        // A record that speaks of a table that is read again is a step of its own: what it tells holds from there on.
        let alone = |record: &ProgressRecord| !record.rereads.is_empty();
        let told = |record: &ProgressRecord| record.counts.values().sum::<u64>();
        let spilled = self.buffer.has_spilled();
        let most = if spilled { self.step_changes.min(RUN_ROWS) } else { self.step_changes };
        let by_itself = !standing.rereads.is_empty() || alone(&first.record);
        let mut changes = told(&first.record);
        let mut run = vec![first];
        // Whether nothing that comes can make it larger.
        let mut ends = by_itself || self.buffer.is_nearly_full();
        while changes < most
            && !by_itself
            && let Some(next) = self.records.front()
        {
            if next.record.phase != Phase::Tail || alone(&next.record) {
                ends = true;
                break;
            }
            if !self.is_read(&next.record, positions) {
                break;
            }
            changes = changes.saturating_add(told(&next.record));
            run.extend(self.records.pop_front());
        }
        let is_little = changes <= most / LITTLE && !self.buffer.is_backlog();
        if grows && !ends && changes < most && !is_little {
            run.into_iter().rev().for_each(|progress| self.records.push_front(progress));
            return None;
        }
        Some(run)
    }

    /// The shards that the next record waits for.
    pub(super) fn waits_for(&self, positions: &ShardPositions) -> Vec<Behind> {
        let next = self.records.front().into_iter();
        next.flat_map(|next| self.inputs.behind(&next.record, positions)).collect()
    }

    /// The shards that the first record waits for that cannot be taken yet: those before it have been read, and wait for their step to grow.
    pub(super) fn lacks(&self, positions: &ShardPositions) -> Vec<Behind> {
        let behind = |next: &Progress| self.inputs.behind(&next.record, positions).collect::<Vec<_>>();
        self.records.iter().map(behind).find(|behind| !behind.is_empty()).unwrap_or_default()
    }

    /// Where the last of the records that wait stands.
    pub(super) fn last_waiting(&self) -> Option<&SequenceNumber> {
        self.records.back().map(|last| &last.sequence)
    }

    /// Takes note that a shard ends before what the next record names. All that the records name in it that waited when the store was asked was there to be read by then: the counts tell whether anything is missing.
    pub(super) fn ends_before(&mut self, ended: &Ended, positions: &ShardPositions) {
        let Ended { behind, waiting } = ended;
        if !self.waits_for(positions).contains(behind) {
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
}

/// Whether a snapshot is newer than the one that a source's rows stand on, and than any that was given up.
pub(super) fn is_newer(standing: &SourceStanding, start_lsn: Lsn) -> bool {
    start_lsn > standing.given_up && standing.stage.start_lsn().is_none_or(|start| start_lsn > start)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use schemas::Position;
    use schemas::progress::{ShardId, StreamName};

    use super::*;
    use crate::buffer::{Change, Kind};
    use crate::cores::Cores;
    use crate::state::Memory;
    use crate::step::Share;

    fn progress(changes: u64, phase: Phase) -> Progress {
        let record = ProgressRecord {
            source: "shop".to_owned(),
            epoch: 1,
            phase,
            from_lsn: Lsn::ZERO,
            to_lsn: Lsn::ZERO,
            commit_time_ms: 0,
            counts: BTreeMap::from([(TableName::new("dbo", "orders"), changes)]),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: BTreeMap::new(),
        };
        Progress { stream: StreamName("p".into()), shard: ShardId("0".into()), sequence: SequenceNumber::from(1), record }
    }

    const MEMORY: Memory =
        Memory { write_buffer_bytes: 16 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 0, recent_bytes: 1 << 20 };

    fn source(store: &Arc<Store>) -> Source {
        let streams = ["orders", "items"].map(|stream| StreamName(stream.into())).into();
        let progress = StreamName("p".into());
        let origin = Origin { name: "shop".into(), qualifier: None, progress, streams, tables: Vec::new() };
        let limits = Limits {
            buffer_bytes: 1000,
            portion_bytes: usize::MAX,
            chunk: 1,
            step_changes: 160,
            share: Share { threads: 1, bytes: 1 },
            row_cache_bytes: 0,
            cores: Cores::new(1),
        };
        Source::new(store.clone(), 0, &origin, &limits)
    }

    fn change() -> Change {
        let (position, arena) = (Position::default(), Arc::new(Vec::new()));
        Change { position, table: 0, kind: Kind::Rows, before: None, after: None, arena }
    }

    fn named(positions: ShardPositions) -> Progress {
        let mut progress = progress(1, Phase::Tail);
        progress.record.positions = positions;
        progress
    }

    #[test]
    fn what_is_neither_little_nor_a_whole_step_is_left_while_it_grows() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1, MEMORY).unwrap();
        let mut source = source(&store);
        let mut standing = store.standing().unwrap();
        standing.of_sources(&["shop"]);
        let (standing, none) = (&standing.sources[0], ShardPositions::default());
        let mut run = |records: &[(u64, Phase)], grows| {
            source.records = records.iter().map(|&(changes, phase)| progress(changes, phase)).collect();
            let first = source.next(&none).unwrap();
            let run = source.run_of_tail(first, standing, &none, grows);
            (run.map(|run| run.len()), source.records.len())
        };
        let tail = |changes| (changes, Phase::Tail);
        assert_eq!(run(&[tail(5), tail(5)], true), (Some(2), 0), "little");
        assert_eq!(run(&[tail(5), tail(6)], true), (None, 2), "it grows");
        assert_eq!(run(&[tail(5), tail(6)], false), (Some(2), 0), "nothing is on its way");
        assert_eq!(run(&[tail(100), tail(60), tail(1)], true), (Some(2), 1), "a whole step");
        let snapshot = (0, Phase::Snapshot);
        assert_eq!(run(&[tail(5), tail(6), snapshot], true), (Some(2), 1), "what comes next is of another step");
        // What waits takes more than three quarters of what may be kept.
        let each = change().bytes();
        source.buffer.push(vec![change(); 751usize.div_ceil(each)]).unwrap();
        assert!(source.buffer.is_nearly_full() && !source.buffer.has_spilled());
        source.records = [5, 6].map(|changes| progress(changes, Phase::Tail)).into();
        let first = source.next(&none).unwrap();
        let run = source.run_of_tail(first, standing, &none, true);
        assert_eq!((run.map(|run| run.len()), source.records.len()), (Some(2), 0), "past it, all would go to the disk");
    }

    #[test]
    fn little_is_left_to_grow_as_well_where_a_backlog_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1, MEMORY).unwrap();
        let mut source = source(&store);
        let mut standing = store.standing().unwrap();
        standing.of_sources(&["shop"]);
        source.buffer.push(vec![change()]).unwrap();
        assert!(source.buffer.is_backlog() && !source.buffer.is_nearly_full());
        let run = source.run_of_tail(progress(1, Phase::Tail), &standing.sources[0], &ShardPositions::default(), true);
        assert_eq!((run.map(|run| run.len()), source.records.len()), (None, 1));
    }

    #[test]
    fn a_step_that_waits_to_grow_lacks_what_the_record_after_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut source = source(&Store::open(dir.path(), 1, MEMORY).unwrap());
        let at = |orders: u64, items: u64| {
            let shard = |number| BTreeMap::from([(ShardId("0".into()), SequenceNumber::from(number))]);
            ShardPositions::from([(StreamName("orders".into()), shard(orders)), (StreamName("items".into()), shard(items))])
        };
        source.records = [at(1, 1), at(2, 3), at(9, 9)].map(named).into();
        let lacks = |read| source.lacks(&read).into_iter().map(|behind| behind.stream.0).collect::<Vec<_>>();
        assert_eq!(lacks(at(5, 1)), ["items"]);
        assert_eq!(source.waits_for(&at(5, 1)), [], "the next is there");
        assert_eq!(lacks(at(5, 3)), ["items", "orders"]);
        assert_eq!(lacks(at(9, 9)), Vec::<String>::new());
    }
}
