//! Entities whose time is over with a step ([`crate::assemble::expired`] says what that is).
//!
//! # Why each is found
//! A step takes the time from one to a later one. A document that differs because of that, and of nothing else, has its root's row in the state after the step, with a value of the column that was not past and is: it is among the links by that column, between the two bounds.
//! (What differs because a row has changed as well is reached from that row.) No row is looked at twice for this, and none that does not come due; what comes due and had no document anyway costs an assembly.
//!
//! What was told of a document is its join as of the time before the step, even if it was looked at last long before: had its time been over meanwhile, a step would have found it.
//!
//! # Very many at once
//! More than a chunk of them are handed on as they are found, and left for later with the hashes of what they were ([`Dirty::with_overflow`]): so a million that come due with one commit take no memory. Such a step is taken as one that is too large
//! for one write is, after everything that waits has been told.

use super::Tools;
use super::dirty::Dirty;
use super::walk::{owner, told_by_index};
use crate::assemble::expired::Expired;
use crate::catalog::{Entity, Expiry};
use crate::error::Error;
use crate::state::view::{Reading, View, start_key};

impl Dirty<'_, '_> {
    /// Adds the entities whose time is over now, and was not before.
    pub(super) fn expire(&mut self, before: &Expired, now: &Expired) -> Result<(), Error> {
        let view = self.view();
        for (id, entity) in view.catalog.entities.iter().enumerate() {
            visit(view, entity, before, now, |expiry, row| {
                let known = told_by_index(view.catalog, &entity.nodes[0], expiry.index, row);
                owner(view, id, &known)?.map_or(Ok(()), |owner| self.add_root(owner)).map(|()| true)
            })?;
        }
        Ok(())
    }
}

/// Whether more entities come due than are assembled at once.
pub(crate) fn is_many(tools: &Tools, before: &Expired, now: &Expired) -> Result<bool, Error> {
    if before == now {
        return Ok(false);
    }
    let (snapshot, mut count) = (tools.store.db().snapshot(), 0);
    let view = tools.view(&snapshot);
    for entity in &view.catalog.entities {
        visit(view, entity, before, now, |_, _| {
            count += 1;
            Ok(count <= tools.chunk)
        })?;
    }
    Ok(count > tools.chunk)
}

/// Calls `each` with what is kept of the roots of an entity that come due, in the order of their times, until it answers false.
fn visit(
    view: View<'_>,
    entity: &Entity,
    before: &Expired,
    now: &Expired,
    mut each: impl FnMut(&Expiry, &[u8]) -> Result<bool, Error>,
) -> Result<(), Error> {
    let (Some(expiry), Some(last)) = (&entity.expiry, now.bound(entity)) else { return Ok(()) };
    let first = before.bound(entity);
    if first.is_some_and(|first| first >= last) {
        return Ok(());
    }
    // Where nothing was past, from the first value on: NULL stands before it.
    let first = first.map_or_else(|| vec![1], behind);
    let (mut prefix, end) = (Vec::new(), behind(last));
    start_key(expiry.index, &mut prefix);
    let mut cursor = view.cursor(expiry.index, Reading::Once)?;
    cursor.visit_from(&prefix, &first, view.writes(expiry.index), |key, row| {
        if key < end.as_slice() { each(expiry, row) } else { Ok(false) }
    })
}

/// Where the keys that begin with a time end. (The text of a time ends in zeros, which no greater time has there.)
fn behind(time: &[u8]) -> Vec<u8> {
    let mut end = time.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
