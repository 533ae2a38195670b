//! Changes that have been read and wait for their step.
//!
//! They are kept in memory up to a bound ([`waiting`]) and on the disk past it ([`spill`]), because a transaction may be larger than memory. Spilled changes need not survive a restart: input positions never pass a
//! change that is not applied, so what was lost is read again. Both take what is due at a cost that follows from what is taken, and not from what else waits: while one table's stream is far ahead, steps are small and many.

use std::collections::HashSet;
use std::sync::Arc;

use schemas::{Lsn, Position};

use crate::catalog::TableId;
use crate::error::Error;
use crate::reread::{Covered, reader};
use crate::state::Store;

mod spill;
mod waiting;

use spill::{Spilled, Stretches};
use waiting::Waiting;

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To put and remove rows.
    Rows,
    /// Nothing: no used column changed.
    Nothing,
    /// Nothing: it could not be read, and has been dead-lettered.
    Dead,
}

/// A change to one row; images hold the used columns as [`crate::state::row`] keeps them.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) position: Position,
    pub(crate) table: u16,
    pub(crate) kind: Kind,
    pub(crate) before: Option<(u32, u32)>,
    pub(crate) after: Option<(u32, u32)>,
    /// Shared by the changes that were read together.
    pub(crate) arena: Arc<Vec<u8>>,
}

/// A change, wherever it is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChangeRef<'a> {
    pub(crate) table: TableId,
    pub(crate) kind: Kind,
    pub(crate) commit_lsn: Lsn,
    pub(crate) before: Option<&'a [u8]>,
    pub(crate) after: Option<&'a [u8]>,
    /// Who has read it, if it is a row that was read again.
    pub(crate) reader: Option<i32>,
}

impl Change {
    fn image(&self, span: Option<(u32, u32)>) -> Option<&[u8]> {
        span.map(|(start, end)| &self.arena[start as usize..end as usize])
    }

    fn borrow(&self) -> ChangeRef<'_> {
        let (before, after) = (self.image(self.before), self.image(self.after));
        let (table, commit_lsn) = (usize::from(self.table), self.position.commit_lsn);
        ChangeRef { table, kind: self.kind, commit_lsn, before, after, reader: reader(&self.position) }
    }

    /// The total order; tables only tell repeats apart.
    const fn order(&self) -> (Position, u16) {
        (self.position, self.table)
    }

    pub(crate) fn bytes(&self) -> usize {
        let length = |span: Option<(u32, u32)>| span.map_or(0, |(start, end)| (end - start) as usize);
        std::mem::size_of::<Self>() + length(self.before) + length(self.after)
    }
}

/// What a step takes.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    /// Changes at or below.
    pub(crate) to: Lsn,
    /// Rows that were read again, as far as they are covered.
    pub(crate) covered: Covered,
}

impl Due {
    /// Changes at or below an LSN alone.
    pub(crate) fn changes(to: Lsn) -> Self {
        Self { to, covered: Covered::default() }
    }
}

/// What takes more than one part of so many of the room waits for long already.
const BACKLOG: usize = 16;

/// Changes of a source past its frontier.
#[derive(Debug)]
pub(crate) struct Buffer {
    waiting: Waiting,
    spilled: Spilled,
    limit_bytes: usize,
}

impl Buffer {
    /// `source`: its number.
    pub(crate) fn new(store: Arc<Store>, source: u16, limit_bytes: usize) -> Self {
        Self { waiting: Waiting::default(), spilled: Spilled::new(store, source), limit_bytes }
    }

    /// What is kept in memory.
    pub(crate) const fn bytes(&self) -> usize {
        self.waiting.bytes()
    }

    /// Whether no step should grow any more: past the bound, all goes to the disk.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.has_spilled() || self.waiting.bytes() > self.limit_bytes / 4 * 3
    }

    /// Whether so much is kept that it is a backlog that is worked off.
    pub(crate) const fn is_backlog(&self) -> bool {
        self.waiting.bytes() > self.limit_bytes / BACKLOG
    }

    /// Whether changes have been moved to the disk, because there was no room for them.
    pub(crate) fn has_spilled(&self) -> bool {
        !self.spilled.is_empty()
    }

    pub(crate) fn push(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.waiting.push(changes);
        if self.waiting.bytes() > self.limit_bytes { self.spilled.add(self.waiting.drain()) } else { Ok(()) }
    }

    /// Takes what is `due`. When some have been spilled, all are, and the taken ones must be given back with [`forget`](Self::forget) when their step is written.
    pub(crate) fn take(&mut self, due: &Due) -> Result<Taken, Error> {
        if self.has_spilled() {
            self.spilled.add(self.waiting.drain())?;
            return self.spilled.take(due).map(Taken::Spilled);
        }
        Ok(Taken::Memory(self.waiting.take(due)))
    }

    /// Drops what was `due`.
    pub(crate) fn forget(&mut self, due: &Due) -> Result<(), Error> {
        self.waiting.take(due);
        self.spilled.forget(due)
    }
}

/// The changes of one step.
#[derive(Debug)]
pub(crate) enum Taken {
    /// By table.
    Memory(Vec<Vec<Change>>),
    Spilled(Stretches),
}

/// Transactions with as many changes are looked through for a repeat; of larger ones, what was seen is remembered.
const LOOKED_THROUGH: usize = 16;

impl Taken {
    /// Calls `each` with the changes, those of each table in the total order, each identity once. An identity is (table, commit LSN, seqval, operation): the command id is no part of it,
    /// because two capture instances of a table may give it differently. (Of what was spilled, repeats have been removed.)
    pub(crate) fn for_each(&self, each: impl FnMut(ChangeRef<'_>) -> Result<(), Error>) -> Result<(), Error> {
        self.for_each_of(&|_| true, each)
    }

    /// The same with the changes of some tables.
    pub(crate) fn for_each_of(
        &self,
        own: &dyn Fn(TableId) -> bool,
        mut each: impl FnMut(ChangeRef<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let tables = match self {
            Self::Memory(tables) => tables,
            Self::Spilled(stretches) => {
                return stretches.for_each(|change| if own(change.table) { each(change) } else { Ok(()) });
            }
        };
        let identity = |change: &Change| (change.position.seqval, change.position.operation);
        let mut seen: HashSet<(Lsn, u8)> = HashSet::new();
        for changes in tables.iter().filter(|changes| changes.first().is_some_and(|change| own(usize::from(change.table)))) {
            for transaction in changes.chunk_by(|a, b| a.position.commit_lsn == b.position.commit_lsn) {
                seen.clear();
                for (nth, change) in transaction.iter().enumerate() {
                    let identity_of_this = identity(change);
                    let first = if transaction.len() <= LOOKED_THROUGH {
                        transaction[..nth].iter().all(|earlier| identity(earlier) != identity_of_this)
                    } else {
                        seen.insert(identity_of_this)
                    };
                    if first {
                        each(change.borrow())?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
