//! The importer's own progress, which a restart goes on from.
//!
//! One JSON document, kept where the lease is ([`crate::lease`]): with the file lease `progress.json` in the data directory, replaced as a whole and synced. It is written only
//! after the streams have acknowledged what it speaks of (INV-2): a crash before it is written repeats work, and nothing is ever skipped.
//!
//! Format 1: `{"format":1,"source":…,"database":…,"tables":{"dbo.orders":{"object_id":…,"instance":…,"floor":…}},"phase":{"snapshot":…}|{"tail":…},"rereads":{…}}`. Members are
//! added, never changed; another format is refused.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::progress::{Reread, ShardPositions};
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use source::identity::Identity;
use source::rows::{KeyPart, KeyRange, Start};

const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    format: u32,
    pub(crate) source: String,
    pub(crate) database: String,
    /// The tables that are imported.
    pub(crate) tables: BTreeMap<TableName, SavedTable>,
    pub(crate) phase: SavedPhase,
    /// Where each shard of the event streams stood: a new writer knows of its own records alone, and a progress record speaks of all.
    #[serde(default)]
    pub(crate) positions: ShardPositions,
    /// Tables that are read beside the tail, until the tail has passed what they show.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) rereads: BTreeMap<TableName, SavedReread>,
    /// The number that rows read beside the tail carry next ([`Reread::reading`]): another one in each session, and after each record of such rows.
    #[serde(default)]
    pub(crate) reading: i32,
    /// What the database is known by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<Identity>,
    /// The last transaction that was published: it must be there, within the retention, if the database is still the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_transaction: Option<Lsn>,
    /// From which LSN on the initial snapshot's rows are the tables as of one LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) consistent_from: Option<Lsn>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTable {
    pub(crate) object_id: i64,
    /// The capture instance that is read, for messages.
    pub(crate) instance: String,
    /// Changes before it were never missed: the table was read as a whole after them. At first where its capture instance began, later where a gap ended.
    pub(crate) floor: Lsn,
    /// That of the last reread.
    #[serde(default)]
    pub(crate) generation: u64,
    /// Why nothing of it is published, if that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SavedPhase {
    Snapshot {
        /// The greatest captured LSN before the first row was read.
        lsn: Lsn,
        tables: BTreeMap<TableName, TableProgress>,
    },
    Tail {
        /// Everything at or below it has been published.
        lsn: Lsn,
    },
}

/// How far the reading of a table has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct TableProgress {
    pub(crate) rows: u64,
    /// The last key published, where the table is read in one range.
    #[serde(default)]
    pub(crate) after: Option<Vec<KeyPart>>,
    pub(crate) done: bool,
    /// The ranges that the table was split into, in order; none: not split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ranges: Vec<RangeProgress>,
}

/// What is left of a range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct RangeProgress {
    pub(crate) left: KeyRange,
    pub(crate) done: bool,
}

impl TableProgress {
    pub(crate) fn of(ranges: Vec<KeyRange>) -> Self {
        let ranges = ranges.into_iter().map(|left| RangeProgress { left, done: false }).collect();
        Self { ranges, ..Self::default() }
    }

    /// The ranges that are still to be read, with their numbers. What [`published`](Self::published) is told of refers to these.
    pub(crate) fn open_ranges(&mut self) -> Vec<(usize, KeyRange)> {
        if self.ranges.is_empty() {
            let start = self.after.take().map_or(Start::Beginning, Start::After);
            self.ranges.push(RangeProgress { left: KeyRange { start, to: None }, done: self.done });
        }
        let open = self.ranges.iter().enumerate().filter(|(_, range)| !range.done);
        open.map(|(number, range)| (number, range.left.clone())).collect()
    }

    /// Whether reading has not begun.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.done && self.rows == 0 && self.after.is_none() && self.ranges.is_empty()
    }

    /// Rows of a range have been published and acknowledged.
    pub(crate) fn published(&mut self, range: usize, rows: u64, left: KeyRange, done: bool) {
        self.rows += rows;
        if let Some(range) = self.ranges.get_mut(range) {
            *range = RangeProgress { left, done };
        }
        self.done = self.ranges.iter().all(|range| range.done);
    }

    pub(crate) fn complete() -> Self {
        Self { done: true, ..Self::default() }
    }
}

/// Why a table is read beside the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// Changes were lost.
    Gap,
    /// Somebody asked for it.
    Asked,
    /// The table is captured since the snapshot.
    New,
    /// The initial snapshot would have taken too long, and goes on beside the tail.
    Outgrown,
    /// The table did not fit its contract.
    Held,
}

/// A table that is read beside the tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedReread {
    pub(crate) reason: Reason,
    /// What records say, but for who reads.
    pub(crate) told: Reread,
    pub(crate) progress: TableProgress,
    /// Every chunk has a `consistent_from` of its own: the table was consistent before, and stays so but for moments.
    pub(crate) stepwise: bool,
}

impl SavedReread {
    pub(crate) fn new(reason: Reason, generation: u64, whole: bool, progress: TableProgress) -> Self {
        let stepwise = reason == Reason::Asked;
        let consistent_from = stepwise.then_some(Lsn::ZERO);
        Self {
            reason,
            told: Reread { generation, reading: 0, consistent_from, finished: false, whole, floor: Lsn::ZERO },
            progress,
            stepwise,
        }
    }
}

impl SavedTable {
    /// A generation greater than any before, also than those of a data directory that was removed.
    pub(crate) fn next_generation(&mut self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
        self.generation = now.max(self.generation + 1);
        self.generation
    }
}

impl Saved {
    pub(crate) fn new(source: &str, database: &str, tables: BTreeMap<TableName, SavedTable>, phase: SavedPhase) -> Self {
        Self {
            format: FORMAT,
            source: source.to_owned(),
            database: database.to_owned(),
            tables,
            phase,
            positions: ShardPositions::new(),
            rereads: BTreeMap::new(),
            reading: 0,
            identity: None,
            last_transaction: None,
            consistent_from: None,
        }
    }

    /// From where changes follow.
    pub(crate) fn lsn(&self) -> Lsn {
        match &self.phase {
            SavedPhase::Snapshot { lsn, .. } | SavedPhase::Tail { lsn } => *lsn,
        }
    }

    /// Has a table read again as a whole, because what is known of it is not enough any more. Changes before `floor` are not asked for.
    ///
    /// Within the initial snapshot, too, it is read beside the tail that follows: rows of it that were published already may be gone since, which only a generation tells.
    pub(crate) fn reread(&mut self, name: &TableName, reason: Reason, floor: Lsn) {
        let Some(table) = self.tables.get_mut(name) else { return };
        table.floor = floor;
        let generation = table.next_generation();
        let mut reread = SavedReread::new(reason, generation, true, TableProgress::default());
        reread.told.floor = floor;
        self.rereads.insert(name.clone(), reread);
        if let SavedPhase::Snapshot { tables, .. } = &mut self.phase {
            tables.insert(name.clone(), TableProgress::complete());
        }
    }

    /// What records say of the tables that are read again.
    pub(crate) fn told(&self) -> BTreeMap<TableName, Reread> {
        let told = |reread: &SavedReread| Reread { reading: self.reading, ..reread.told.clone() };
        self.rereads.iter().map(|(name, reread)| (name.clone(), told(reread))).collect()
    }

    /// Forgets the rereads that are finished and passed, once a record has said so.
    pub(crate) fn forget_passed(&mut self) {
        let lsn = self.lsn();
        self.rereads.retain(|_, reread| !reread.told.finished || reread.told.holds(lsn));
    }

    pub(crate) fn read(text: &[u8], place: &str, source: &str) -> Result<Self, Error> {
        let damaged = |what: String| Error::Damaged { path: place.into(), what };
        let saved: Self =
            serde_json::from_slice(text).map_err(|error| damaged(format!("this is not a progress file: {error}")))?;
        if saved.format != FORMAT {
            return Err(damaged(format!("format {} is not known to this version, which writes format {FORMAT}", saved.format)));
        }
        if saved.source != source {
            return Err(Error::OtherSource { path: place.into(), found: saved.source, expected: source.to_owned() });
        }
        Ok(saved)
    }

    pub(crate) fn write(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Damaged { path: "progress".into(), what: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn orders() -> TableName {
        TableName::new("my schema", "orders")
    }

    fn saved(phase: SavedPhase) -> Saved {
        let table = SavedTable { object_id: 5, instance: "dbo_orders".into(), floor: Lsn::ZERO, generation: 0, held: None };
        Saved::new("shop", "shopdb", [(orders(), table)].into(), phase)
    }

    #[test]
    fn progress_survives_and_damage_is_told() {
        let progress =
            TableProgress {
                rows: 7, after: Some(vec![KeyPart::Int(-1), KeyPart::Text("ü".into())]), ..TableProgress::default()
            };
        let phase = SavedPhase::Snapshot { lsn: Lsn::from_bytes([1; 10]), tables: [(orders(), progress)].into() };
        let mut saved = saved(phase);
        saved.reread(&orders(), Reason::Gap, Lsn::from_bytes([2; 10]));
        let read = |text: &[u8]| Saved::read(text, "progress.json", "shop");
        assert_eq!(read(&saved.write().unwrap()).unwrap(), saved);
        assert!(matches!(Saved::read(&saved.write().unwrap(), "progress.json", "other"), Err(Error::OtherSource { .. })));
        let other = Saved { format: 2, ..saved };
        assert!(read(&other.write().unwrap()).unwrap_err().to_string().contains("format 2"));
        assert!(matches!(read(b"{\"format\":1"), Err(Error::Damaged { .. })));
    }

    #[test]
    fn progress_of_the_first_version_is_read() {
        let text = br#"{"format":1,"source":"shop","database":"shopdb","tables":{"dbo.orders":{"object_id":5,"instance":"dbo_orders","floor":"00000000:00000000:0000"}},
            "phase":{"snapshot":{"lsn":"00000000:00000000:0001","tables":{"dbo.orders":{"rows":3,"after":[{"int":3}],"done":false}}}}}"#;
        let saved = Saved::read(text, "progress.json", "shop").unwrap();
        let SavedPhase::Snapshot { mut tables, .. } = saved.phase else { panic!() };
        let progress = tables.get_mut(&TableName::new("dbo", "orders")).unwrap();
        let open = progress.open_ranges();
        assert_eq!(open[0].1, KeyRange { start: Start::After(vec![KeyPart::Int(3)]), to: None });
        progress.published(0, 2, open[0].1.clone(), true);
        assert!(progress.done && progress.rows == 5 && progress.open_ranges().is_empty());
    }

    #[test]
    fn a_reread_is_forgotten_once_it_is_finished_and_passed() {
        let lsn = |n: u8| Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
        let mut saved = saved(SavedPhase::Tail { lsn: lsn(5) });
        saved.reread(&orders(), Reason::Gap, lsn(4));
        let first = saved.tables[&orders()].generation;
        let mut step = |change: &dyn Fn(&mut Reread), left: usize| {
            change(&mut saved.rereads.get_mut(&orders()).unwrap().told);
            saved.forget_passed();
            assert_eq!(saved.rereads.len(), left);
        };
        step(&|_| {}, 1);
        step(&|told| told.consistent_from = Some(lsn(5)), 1);
        step(&|told| (told.finished, told.consistent_from) = (true, Some(lsn(6))), 1);
        step(&|told| told.consistent_from = Some(lsn(5)), 0);
        saved.reread(&orders(), Reason::Gap, lsn(4));
        assert!(saved.tables[&orders()].generation > first);
    }
}
