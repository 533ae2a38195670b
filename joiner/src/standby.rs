//! A joiner that stands by: it reads, joins and keeps its outbox as any other, with a state of its own, and writes to no sink until it is its turn.
//!
//! # Where it goes on
//! Two joiners over the same streams cut their steps differently and number their outboxes differently. What they have in common are LSNs: a sink that has confirmed the frontier F holds every entity as of F. In the outbox of a successor, an entity
//! that has changed after F has an entry with a version greater than F; so what stands behind the last entry at or below F is all that the sink lacks, and at most some of what it has. It gets that, and needs no load. Where the outbox does not go back so far
//! (the successor has begun later, or has trimmed it), the sink is loaded.
//!
//! What each sink has confirmed, the one whose turn it is tells to whoever decides about turns ([`Handle::confirmed`]); what it has told last may be older than what it has written last: then some is written twice.
//!
//! # Two at a time
//! Who decides about turns may be wrong for a moment: the old one is frozen, and wakes up in the middle of a write. Sinks that compare versions refuse what is stale, whoever writes it, and what they say of their frontier stays true; topics and webhooks are told
//! something that they were told already, with its version.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::Lsn;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, fingerprint};
use crate::error::Error;
use crate::handle::{Handle, Shared};
use crate::state::meta::Cursor;
use crate::state::outbox;

/// What a sink holds, whoever has written it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Every change at or below.
    pub frontier: Lsn,
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
        let confirmed = |Cursor { frontier, form, .. }| Confirmed { frontier, form, definitions: definitions.clone() };
        Ok(loaded.map(|(sink, cursor)| (sink, confirmed(cursor))).collect())
    }
}

/// The hash of the definitions.
fn definitions(catalog: &Catalog) -> String {
    let plans: Vec<_> = catalog.entities.iter().map(|entity| entity.plan.clone()).collect();
    fingerprint(&plans)
}

/// Sets the cursors of the sinks to where a predecessor has come, as far as that is further than what is known here.
pub(crate) fn take_over(shared: &Arc<Shared>, predecessor: &ConfirmedBySink) -> Result<(), Error> {
    let store = &shared.store;
    let standing = store.standing()?;
    let (ours, changes) = (definitions(&shared.catalog), shared.catalog.changes_by_entity());
    for (sink, Confirmed { frontier, form, definitions }) in predecessor {
        if *definitions != ours {
            tracing::warn!(sink, "the predecessor had other definitions: the sink is loaded");
            continue;
        }
        let known = store.cursor(sink)?.filter(|known| known.load == standing.load && known.form == *form);
        if known.is_some_and(|known| known.frontier >= *frontier) {
            continue;
        }
        match outbox::position_of(store, &standing, *frontier)? {
            Some(sequence) => {
                tracing::info!(sink, confirmed = %frontier, sequence, head = standing.head, "the sink is followed from where the predecessor had come");
                let cursor =
                    Cursor { load: standing.load, sequence, form: form.clone(), frontier: *frontier, changes: changes.clone() };
                store.put_cursor(sink, &cursor)?;
            }
            None => {
                tracing::warn!(sink, confirmed = %frontier, from = %standing.complete_after, "the outbox does not go back to where the predecessor had come")
            }
        }
    }
    Ok(())
}
