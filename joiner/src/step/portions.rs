//! Steps whose rows do not fit in memory: a transaction may be larger than that.
//!
//! Such a step is applied in *portions*, in the total order of each table's changes; each is written by itself, as a step is while everything is held (as while a table is read again): its rows, and for each document that it touches and
//! that is not pending yet the hash of the document as it was. The standing that goes with it is the one from before the step (frontier, positions, head), but for [`SourceStanding::portions_to`](crate::state::meta::SourceStanding::portions_to), the frontier that the step leads to. The last portion
//! is written with the new standing. Then what is pending is worked off, as after any large step.
//!
//! # Nothing torn gets out (INV-4)
//! While `portions_to` is past the frontier nothing is consistent ([`Standing::is_consistent`]): nothing is assembled to be told, sinks are not loaded, lookups answer nothing. Sinks and subscribers read the outbox up to its head, which
//! moves when all that is pending has been told.
//!
//! # Every document that differs is told, and no other
//! Let S0 be the state before the step and S1, S2, … the states after its portions. The argument of [`super::dirty`] holds from one to the next, whatever the order of the tables among one another: what differs between
//! two of them is found by the later's portion. A document that differs between S0 and the end differs between two states that follow one another; when that is met first, the document is still what it was in S0, so the hash that is kept is that of what was told.
//!
//! # A kill between two portions (INV-3)
//! The positions are those from before the step: all its changes are read again, whatever has come of them, maybe cut into several steps. They are applied over rows some of which are newer. That the rows converge is the argument
//! of a tail that is replayed over its own results ([`super`]), and until `portions_to` has been passed everything stays held. What must not be lost is this: *every document that differs from what was told is pending, with the hash of what was told*. It holds
//! after each portion, because a portion is one write. It is kept by the portions of the second attempt: what one of them changes at a place is to put the after image of one of its changes there, or to remove what has the place of a before image. The way up
//! from the place is that of either image (the columns that make the place are those that lead up), and it is gone through the state after the portion; so every document that this makes another is found, if no image is passed over
//! because its columns were the same in both ([`Beside::again`]): what stood there may have been a third. A document that is not pending yet is, by what is to be shown, still what was told, and its hash is taken from the state before the portion.
//!
//! A step of rows that are read again may lead to the frontier at which the state stands already. Then it is the next LSN that has to be reached: the record of the rows comes before it.
//!
//! # Memory
//! A portion holds [`Tools::portion`] bytes of rows and images. Owners that it touches are left for later whenever they are as many as [`Dirty::with_overflow`] was told, before the rows that touch them are written: what is pending without need costs an assembly.
//! Fan-outs to very many that wait, and what they keep in memory, are worked off before ([`crate::core`]).

use rocksdb::{Snapshot, WriteBatch};
use schemas::Lsn;

use super::dirty::{Dirty, Touched};
use super::fan_out::FanOuts;
use super::rows::{Applied, Rows};
use super::{Beside, Report, Tools, Writing};
use crate::buffer::{ChangeRef, Kind, Taken};
use crate::error::Error;
use crate::reread;
use crate::state::Store;
use crate::state::meta::Standing;
use crate::state::view::Overlay;

/// The standing that is written while a step goes in: nothing until there is anything to write.
pub(super) struct Begun {
    /// The number of the source whose step it is, and where that is to lead.
    source: usize,
    to: Lsn,
    standing: Option<Standing>,
}

impl Begun {
    /// `standing`: the one that the step leads to.
    pub(super) fn new(source: usize, standing: &Standing) -> Self {
        Self { source, to: standing.sources[source].frontier, standing: None }
    }

    fn standing(&mut self, store: &Store) -> Result<&mut Standing, Error> {
        let standing = match self.standing.take() {
            Some(standing) => standing,
            None => {
                let mut standing = store.standing()?;
                let source = &mut standing.sources[self.source];
                tracing::debug!(from = %source.frontier, to = %self.to, "a step is too large for one write: it is written in portions");
                // Rows that are read again may come without the frontier moving.
                let to = if self.to > source.frontier { self.to } else { source.frontier.next() };
                source.portions_to = source.portions_to.max(to);
                standing
            }
        };
        Ok(self.standing.insert(standing))
    }

    /// Leaves documents for later before the rows that touch them are written.
    pub(super) fn leave(&mut self, writing: &Writing<'_>, owners: &[Vec<u8>]) -> Result<(), Error> {
        let store = &writing.tools.store;
        let standing = self.standing(store)?;
        let mixed = standing.forgets();
        let tail = standing.pending.map_or(standing.head, |pending| pending.tail);
        let mut batch = WriteBatch::default();
        let owners = owners.iter().map(|key| (key.as_slice(), None)).collect();
        writing.put_pending(owners, mixed, standing, tail, &mut batch)?;
        store.write_with(batch, standing)
    }

    /// To the standing that the step leads to: what is pending stays so.
    pub(super) fn hand_over(self, to: &mut Standing) {
        if let Some(standing) = self.standing {
            to.pending = standing.pending;
        }
    }
}

/// Writes a step up to its last portion, and answers that. None where everything is in the overlay already.
pub(super) fn write<'t>(
    tools: &'t Tools,
    taken: &Taken,
    applied: &mut Applied,
    beside: Beside<'_>,
    begun: &mut Begun,
) -> Result<Option<Portion<'t>>, Error> {
    if applied.whole {
        return Ok(None);
    }
    let Applied { counting, report, .. } = applied;
    let mut portion = Portion::new(tools);
    taken.for_each(|change| {
        let counting = counting[change.table];
        if change.kind != Kind::Rows || !reread::counts(counting, change.reader, change.commit_lsn) {
            return Ok(());
        }
        portion.add(change, beside.again || counting.is_some())?;
        if portion.bytes() > tools.portion {
            portion.write(beside, begun, report)?;
            portion = Portion::new(tools);
        }
        Ok(())
    })?;
    Ok(Some(portion))
}

/// Some of the changes of a step.
pub(super) struct Portion<'t> {
    tools: &'t Tools,
    /// The state without them.
    snapshot: Snapshot<'t>,
    rows: Rows,
    images: Vec<u8>,
    changes: Vec<Kept>,
}

/// A change whose images are among those of its portion.
struct Kept {
    table: usize,
    before: Option<(usize, usize)>,
    after: Option<(usize, usize)>,
    doubtful: bool,
}

impl<'t> Portion<'t> {
    fn new(tools: &'t Tools) -> Self {
        let (images, changes) = (Vec::new(), Vec::new());
        Self { tools, snapshot: tools.store.db().snapshot(), rows: Rows::new(&tools.catalog), images, changes }
    }

    pub(super) const fn overlay(&self) -> &Overlay {
        &self.rows.overlay
    }

    fn bytes(&self) -> usize {
        self.rows.overlay.bytes() + self.images.len() + self.changes.len() * std::mem::size_of::<Kept>()
    }

    fn add(&mut self, change: ChangeRef<'_>, doubtful: bool) -> Result<(), Error> {
        self.rows.apply(self.tools.view(&self.snapshot), change, doubtful)?;
        let mut keep = |image: &[u8]| {
            let start = self.images.len();
            self.images.extend_from_slice(image);
            (start, self.images.len())
        };
        let (before, after) = (change.before.map(&mut keep), change.after.map(&mut keep));
        self.changes.push(Kept { table: change.table, before, after, doubtful });
        Ok(())
    }

    /// Hands over the changes.
    pub(super) fn touch(&self, dirty: &mut Dirty<'_, '_>) -> Result<(), Error> {
        let image = |span: Option<(usize, usize)>| span.map(|(start, end)| &self.images[start..end]);
        self.changes.iter().try_for_each(|&Kept { table, before, after, doubtful }| {
            let (before, after) = (image(before), image(after));
            dirty.add(ChangeRef { table, kind: Kind::Rows, commit_lsn: Lsn::ZERO, before, after, reader: None }, doubtful)
        })
    }

    fn write(&self, beside: Beside<'_>, begun: &mut Begun, report: &mut Report) -> Result<(), Error> {
        let beside = Beside { hold: true, walks: false, ..beside };
        // Time passes with the last portion.
        let now = beside.told;
        let writing = Writing { tools: self.tools, snapshot: &self.snapshot, overlay: self.overlay(), beside, now };
        let live = begun.standing(&self.tools.store)?.live;
        let touched = if live { writing.touched(begun, |dirty| self.touch(dirty))? } else { Touched::default() };
        let standing = begun.standing(&self.tools.store)?;
        // Nothing waits while a step is written in portions.
        writing.write(touched, &mut FanOuts::default(), standing, report)
    }
}
