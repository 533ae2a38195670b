//! What is not in the archive and cannot be: changes that the streams had forgotten before an archiver came to read them, told by LSNs and by positions.
//!
//! # Where gaps come from
//! - A stream was *trimmed* past the archive's end: an archiver was away for longer than the retention. The first record that is there again closes a [`Hole`] in its shard.
//! - A progress record begins after the LSN where the one before it ended: the records between, with all that they promised, are gone. Who was not told of a trim sees it by this.
//! - An archive was begun when its streams had been trimmed: its first tick begins at some LSN, and what was before never comes.
//!
//! A gap is what no progress record speaks of, or of which nobody knows what it was. Where a record is there and some of its events are not, the counts say exactly what: that is [`Missing`](crate::Missing), and no gap.
//!
//! # Who may pass one
//! Nobody without a word: a reader whose position is before a hole is told the gap ([`crate::Fused`]), so is a replay whose range touches one; `verify` lists them. A reader that begins with nothing begins behind the last gap if a
//! snapshot was begun since, for then it needs nothing of what was before.

use std::collections::BTreeMap;
use std::fmt;

use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};

use crate::collect::Cut;

/// Records of a shard that were gone before they were archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    pub stream: StreamName,
    pub shard: ShardId,
    /// The last record before it that is in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<SequenceNumber>,
    /// The record with which the shard goes on.
    pub next: SequenceNumber,
}

impl Hole {
    /// Whether a reader at this position has the hole before it.
    pub(crate) fn is_ahead(&self, at: &SequenceNumber) -> bool {
        !reaches(at, &self.next)
    }
}

/// Whether nothing can lie between a position and the record `next`: that is the one, or one before it, or the position's very successor where numbers follow by counting.
pub(crate) fn reaches(at: &SequenceNumber, next: &SequenceNumber) -> bool {
    at >= next || at.to_u64().and_then(|at| at.checked_add(1)).is_some_and(|successor| next.to_u64() == Some(successor))
}

/// Changes that may be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Of this table; `None`: of every table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableName>,
    /// After this LSN, …
    pub from_lsn: Lsn,
    /// … up to and with that; `None`: not known yet, up to the first tick that ends in a later segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_lsn: Option<Lsn>,
    /// Rows of the initial snapshot may be missing as well: it had not been archived to its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rows: bool,
    /// Where its records stood, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holes: Vec<Hole>,
}

impl Gap {
    /// Whether it is what the archive was begun without: before everything, and no hole in it.
    pub(crate) fn is_beginning(&self) -> bool {
        self.from_lsn.is_zero() && self.holes.is_empty()
    }

    /// Whether it may touch changes in (`from`, `to`].
    pub(crate) fn touches(&self, from: Option<Lsn>, to: Option<Lsn>) -> bool {
        let behind = from.is_some_and(|from| self.to_lsn.is_some_and(|end| end <= from));
        // Rows of a snapshot count as committed at the LSN that its tail follows.
        let before = to.is_some_and(|to| if self.rows { self.from_lsn > to } else { self.from_lsn >= to });
        !behind && !before
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.table {
            Some(table) => write!(f, "{table}: ")?,
            None => write!(f, "every table: ")?,
        }
        if self.rows {
            write!(f, "rows of the snapshot, and ")?;
        }
        write!(f, "changes after {} up to ", self.from_lsn)?;
        match self.to_lsn {
            Some(to) => write!(f, "{to}")?,
            None => write!(f, "the next tick")?,
        }
        for Hole { stream, shard, after, next } in &self.holes {
            let after = after.as_ref().map_or("its start", SequenceNumber::as_str);
            write!(f, "; stream {stream}, shard {shard}, after {after}, before {next}")?;
        }
        Ok(())
    }
}

/// What is known when a segment with holes is built.
pub(crate) struct Surroundings<'a> {
    pub(crate) progress_stream: &'a StreamName,
    /// Up to where the archive was complete before the segment.
    pub(crate) frontier: Lsn,
    /// The snapshot had not been archived to its end.
    pub(crate) rows: bool,
    /// LSNs that no progress record speaks of, in the segment.
    pub(crate) unspoken: &'a [(Lsn, Lsn)],
    /// The table whose events alone a stream holds.
    pub(crate) table_of: &'a dyn Fn(&StreamName) -> Option<TableName>,
}

/// The gaps of a cut. A hole in the progress stream behind which the records go on at the very LSN where those before it ended is none: nothing but copies was lost.
pub(crate) fn gaps(cut: &Cut, around: &Surroundings<'_>) -> Vec<Gap> {
    let Surroundings { progress_stream, frontier, rows, unspoken, table_of } = around;
    let mut gaps: Vec<Gap> = unspoken
        .iter()
        .map(|(from, to)| Gap { table: None, from_lsn: *from, to_lsn: Some(*to), rows: *rows, holes: Vec::new() })
        .collect();
    let mut by_table: BTreeMap<Option<TableName>, Gap> = BTreeMap::new();
    for hole in &cut.holes {
        if hole.stream == **progress_stream {
            let follows = cut.ticks.iter().find(|tick| tick.shard == hole.shard && tick.sequence == hole.next);
            let unspoken = gaps.iter_mut().find(|gap| follows.is_some_and(|tick| gap.to_lsn == Some(tick.record.from_lsn)));
            match (unspoken, follows) {
                (Some(gap), _) => gap.holes.push(hole.clone()),
                // Records of a load that was under way may be among those that are gone.
                (None, Some(tick)) if *rows => {
                    let to_lsn = Some(tick.record.from_lsn);
                    gaps.push(Gap { table: None, from_lsn: *frontier, to_lsn, rows: true, holes: vec![hole.clone()] });
                }
                (None, _) => {}
            }
            continue;
        }
        // What was in the hole was published before what follows it, so it is of the ticks up to the first that names what follows.
        let covers = |tick: &&crate::collect::Tick| {
            let place = tick.record.positions.get(&hole.stream).and_then(|shards| shards.get(&hole.shard));
            place.is_some_and(|place| *place >= hole.next)
        };
        let to_lsn = cut.ticks.iter().find(covers).map(|tick| tick.record.to_lsn);
        let table = table_of(&hole.stream);
        let gap = by_table.entry(table.clone()).or_insert_with(|| Gap {
            table,
            from_lsn: *frontier,
            to_lsn,
            rows: *rows,
            holes: Vec::new(),
        });
        gap.to_lsn = gap.to_lsn.zip(to_lsn).map(|(one, other)| one.max(other));
        gap.holes.push(hole.clone());
    }
    gaps.extend(by_table.into_values());
    gaps
}
