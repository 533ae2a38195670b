//! A joiner that stands by: it reads, joins and keeps its outbox as any other, with a state of its own, and writes to no sink until it is its turn.
//!
//! # Where it goes on
//! Two joiners over the same streams cut their steps differently and number their outboxes differently. What they have in common are LSNs: a sink that has confirmed the frontier F holds every entity as of F. In the outbox of a successor, an entity
//! that has changed after F has an entry with a version greater than F; so what stands behind the last entry at or below F is all that the sink lacks, and at most some of what it has. It gets that, and needs no load. Where the outbox does not go back so far
//! (the successor has begun later, or has trimmed it), the sink is loaded.
//!
//! A predecessor has written more than it has confirmed, maybe, and a document that it told in between may since be again what it was before: a successor that takes both changes in one step would have no entry for it, and the sink would keep what it has. So each
//! progress record is a step of its own while it stands by: where a predecessor ends a step, so does it. And it goes on like that until it has joined what had been published when its turn came, which is all that its predecessor can have told.
//!
//! What each sink has confirmed, the one whose turn it is tells to whoever decides about turns ([`Handle::confirmed`]); what it has told last may be older than what it has written last: then some is written twice.
//!
//! # Several sources
//! What a sink has confirmed is a vector then, P, and so is what an entry of the successor's outbox stands for. The vectors of one outbox are a chain, so those within P come first: what stands behind the last of them is what the sink lacks, or may. But the two go through the vectors each in its own way, and versions of two chains, which are
//! sums, say nothing of each other ([`crate::core`]): an entry may be of a lesser version than what the predecessor has told of its entity, and yet of a later change of some source; it would be refused for good. So the successor tells nothing before it has read each source to where that had been published when its turn came. What the predecessor
//! has told is of a vector within that one, H. And what its outbox then holds behind the sink's place it tells as of H ([`Lifted`]): of each entity the last entry alone, whose document is the one as of H too. From there on, versions are those of its own chain, and greater.
//!
//! # Two at a time
//! Who decides about turns may be wrong for a moment: the old one is frozen, and wakes up in the middle of a write. Sinks that compare versions refuse what is stale, whoever writes it (SQL sinks also by what a load in between has left out; others only by what they hold under the key), and what they say of their frontier stays true; topics and webhooks are told
//! something that they were told already, with its version. Of several sources that holds as well: what the old one was about to write had been published before the turn was another's, so it is of a vector within H.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::change::EntityChange;
use schemas::{Lsn, Vector};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, fingerprint};
use crate::deliver;
use crate::error::Error;
use crate::handle::{Handle, Head, Shared};
use crate::state::meta::Cursor;
use crate::state::outbox;

/// What a sink holds, whoever has written it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Every change at or below.
    pub frontier: Lsn,
    /// What that is of several sources; empty of one.
    #[serde(default, skip_serializing_if = "Vector::is_empty")]
    pub sources: Vector,
    /// In which form ([`sinks::Terms::form`]).
    pub form: String,
    /// Of which definitions: their hash.
    pub definitions: String,
}

/// What the sinks hold, by name: of those that have been loaded.
pub type ConfirmedBySink = BTreeMap<String, Confirmed>;

impl Handle {
    /// What a successor has to know.
    pub fn confirmed(&self) -> Result<ConfirmedBySink, Error> {
        let store = &self.shared.store;
        let load = store.standing()?.load;
        let (definitions, changes) = (definitions(&self.shared.catalog), self.shared.catalog.changes_by_entity());
        // A sink that has not been loaded with what the definitions are now is loaded by the successor too.
        let loaded = store.cursors()?.into_iter().filter(|(_, cursor)| cursor.load == load && cursor.changes == changes);
        let confirmed =
            |Cursor { frontier, sources, form, .. }| Confirmed { frontier, sources, form, definitions: definitions.clone() };
        Ok(loaded.map(|(sink, cursor)| (sink, confirmed(cursor))).collect())
    }
}

/// The hash of the definitions.
fn definitions(catalog: &Catalog) -> String {
    let plans: Vec<_> = catalog.entities.iter().map(|entity| entity.plan.clone()).collect();
    fingerprint(&plans)
}

/// Of several sources: what a sink is told of changes that a predecessor may have told as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lifted {
    /// The outbox's head when it became this one's turn.
    pub(crate) until: u64,
    /// What it stood for.
    pub(crate) version: Lsn,
}

impl Lifted {
    /// Gives the last change of its entity up to the head the version that this stood for.
    pub(crate) fn lift(self, sequence: u64, change: &mut EntityChange) {
        if sequence <= self.until {
            change.version = change.version.max(self.version);
        }
    }
}

/// Sets the cursors of the sinks to where a predecessor has come, as far as that is further than what is known here.
pub(crate) fn take_over(shared: &Arc<Shared>, predecessor: &ConfirmedBySink) -> Result<(), Error> {
    let store = &shared.store;
    let standing = store.standing()?;
    let several = shared.is_of_several_sources();
    let (ours, changes) = (definitions(&shared.catalog), shared.catalog.changes_by_entity());
    for (sink, Confirmed { frontier, sources, form, definitions }) in predecessor {
        if *definitions != ours {
            tracing::warn!(sink, "the predecessor had other definitions: the sink is loaded");
            continue;
        }
        let known = store.cursor(sink)?.filter(|known| known.load == standing.load && known.form == *form);
        let is_known = |known: &Cursor| if several { sources.is_within(&known.sources) } else { known.frontier >= *frontier };
        if known.as_ref().is_some_and(is_known) {
            continue;
        }
        let position = match several {
            true => outbox::position_within(store, &standing, sources)?,
            false => outbox::position_of(store, &standing, *frontier)?,
        };
        match position {
            Some(sequence) => {
                // What this one has told itself is there as well.
                let sequence = known.map_or(sequence, |known| known.sequence.max(sequence));
                tracing::info!(sink, confirmed = %frontier, sequence, head = standing.head, "the sink is followed from where the predecessor had come");
                let (frontier, sources) = (*frontier, sources.clone());
                let form = form.clone();
                // What was told here before the definitions were these is left out: of entities that may have changed meanwhile, the sink is loaded.
                let mut changes = changes.clone();
                for entity in shared.catalog.entities.iter().filter(|entity| entity.since > sequence) {
                    changes.remove(&*entity.name);
                }
                let cursor = Cursor { load: standing.load, sequence, form, frontier, sources, lifted: None, changes };
                store.put_cursor(sink, &cursor)?;
            }
            None => {
                tracing::warn!(sink, confirmed = %frontier, from = %standing.complete_after, "the outbox does not go back to where the predecessor had come")
            }
        }
    }
    Ok(())
}

/// Whatever sinks have yet to be told of what is there by now, they are told as of now: who had the turn before may have told it in other versions. One that lacks more than can be coalesced is loaded.
pub(crate) fn lift(shared: &Arc<Shared>) -> Result<(), Error> {
    let store = &shared.store;
    let Head { sequence: until, frontier: version, load, .. } = *shared.head.borrow();
    for (sink, cursor) in store.cursors()?.into_iter().filter(|(_, cursor)| cursor.load == load && cursor.sequence < until) {
        if until - cursor.sequence > deliver::LONGEST_BACKLOG {
            store.forget_cursor(&sink)?;
        } else {
            store.put_cursor(&sink, &Cursor { lifted: Some(Lifted { until, version }), ..cursor })?;
        }
    }
    Ok(())
}
