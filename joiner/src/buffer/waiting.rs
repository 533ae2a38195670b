//! Changes that wait in memory.
//!
//! Each batch that came in is a *run*, in the total order, and stands under the least LSN in it. A step takes the beginnings of the runs that begin at or below where it ends, and touches no other: taking costs what is taken. Rows that were read again come
//! in the order of their numbers, shard by shard, and are taken from the front of their shard's.

use std::collections::{BTreeMap, VecDeque};
use std::vec;

use schemas::Lsn;

use super::{Change, Due};
use crate::reread::{self, is_reread};

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// By the least LSN, and a number that tells runs apart.
    runs: BTreeMap<(Lsn, u64), vec::IntoIter<Change>>,
    /// By shard.
    rows: BTreeMap<u16, VecDeque<Change>>,
    /// Of the last run.
    number: u64,
    bytes: usize,
}

fn bytes_of(changes: &[Change]) -> usize {
    changes.iter().map(Change::bytes).sum()
}

impl Waiting {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, mut changes: Vec<Change>) {
        self.bytes += bytes_of(&changes);
        if changes.iter().any(|change| is_reread(&change.position)) {
            for row in changes.extract_if(.., |change| is_reread(&change.position)) {
                self.rows.entry(reread::numbers(&row.position).0).or_default().push_back(row);
            }
        }
        if changes.len() < changes.capacity() / 2 {
            changes.shrink_to_fit();
        }
        changes.sort_by_key(Change::order);
        self.keep(changes.into_iter());
    }

    fn keep(&mut self, run: vec::IntoIter<Change>) {
        if let Some(first) = run.as_slice().first() {
            self.number += 1;
            self.runs.insert((first.position.commit_lsn, self.number), run);
        }
    }

    /// Takes what is due: by table, that of each in the total order.
    pub(super) fn take(&mut self, due: &Due) -> Vec<Vec<Change>> {
        let mut taken: BTreeMap<u16, Vec<Change>> = BTreeMap::new();
        let mut take = |change: Change| taken.entry(change.table).or_default().push(change);
        for (&shard, rows) in &mut self.rows {
            let last = due.covered.up_to(shard);
            while let Some(row) = rows.pop_front_if(|row| reread::numbers(&row.position).1 <= last) {
                take(row);
            }
        }
        self.rows.retain(|_, rows| !rows.is_empty());
        while let Some(run) = self.runs.first_entry().filter(|run| run.key().0 <= due.to) {
            let mut run = run.remove();
            let of_step = run.as_slice().partition_point(|change| change.position.commit_lsn <= due.to);
            run.by_ref().take(of_step).for_each(&mut take);
            self.keep(run);
        }
        let mut taken: Vec<_> = taken.into_values().collect();
        for changes in &mut taken {
            self.bytes -= bytes_of(changes);
            // Mostly they are: a table's runs follow one another. Others are found as runs, and merged.
            changes.sort_by_key(Change::order);
        }
        taken
    }

    /// Takes everything; rows of a shard that were read again in their order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Change> {
        self.bytes = 0;
        let (runs, rows) = (std::mem::take(&mut self.runs), std::mem::take(&mut self.rows));
        rows.into_values().flatten().chain(runs.into_values().flatten())
    }
}
