//! Time to live: of which roots the time is over.
//!
//! A root whose time is over is not there, as if its entity's `where` left it out: there is no document, of several rows with one entity key the next one is the entity, and what rolls up its documents has one less. The row stays in the state. Its column may be
//! moved on, and then the entity is there again with everything that belongs to it, whatever has changed meanwhile; and another duration, or none, finds its rows.
//!
//! # Which time
//! The commit time of the frontier of the root's own source, and the greatest there has been ([`SourceStanding::time`](crate::state::meta::SourceStanding::time)): never a clock. So it is written with the frontier, in the same write (INV-3); a state that is put back has the time of then, and the
//! same records take it through the same times; and a document is a function of the rows and of the records up to its LSN, on every instance (INV-4). The source's clock may be set back, this time does not go back.
//!
//! Of several sources it is that of the root's own one, not the least of all: whether the time is over is said by the root's row alone, and that row is known as of that LSN. A source that stands still holds nobody else's entities back, and whatever makes an entity's time be over is a step of the source that its root is of.
//!
//! Where nothing is committed, SQL Server's capture enters an empty transaction every five minutes, and a service's stream has an empty tick: each is a progress record without changes, and a step. So time passes while nothing else does, as finely as that.
//! A load begins with a time too: the record that ends a snapshot has that of the newest commit before it.
//!
//! A commit time of zero is not known; nothing is over then.

use std::collections::BTreeMap;

use schemas::TableName;

use crate::catalog::{Catalog, Entity};
use crate::state::key;
use crate::state::meta::Standing;
use crate::state::row::Row;

/// By entities' numbers: the key of the greatest value of the column of which the time is over. None of those without a time to live, and of those of which it is over for no value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expired(BTreeMap<u16, Vec<u8>>);

impl Expired {
    /// As of a standing.
    pub(crate) fn as_of(catalog: &Catalog, standing: &Standing) -> Self {
        Self::at(catalog, |table| standing.source_of(table).map_or(0, |source| standing.sources[source].time()))
    }

    /// At the times that the sources of tables have come to.
    pub(crate) fn at(catalog: &Catalog, time: impl Fn(&TableName) -> i64) -> Self {
        let bound = |entity: &Entity| {
            let time_to_live = &entity.expiry.as_ref()?.time_to_live;
            let (now, mut bound) = (time(&entity.plan.root().table.name), Vec::new());
            key::encode_text(&time_to_live.past(now)?, time_to_live.column.key_type, &mut bound).ok()?;
            Some((entity.number, bound))
        };
        Self(catalog.entities.iter().filter_map(bound).collect())
    }

    pub(crate) fn bound(&self, entity: &Entity) -> Option<&[u8]> {
        self.0.get(&entity.number).map(Vec::as_slice)
    }
}

/// Whether the time of a root is over, by the bound of its entity.
pub(super) fn is_over(entity: &Entity, bound: Option<&[u8]>, row: Row<'_>) -> bool {
    let (Some(bound), Some(expiry)) = (bound, &entity.expiry) else { return false };
    let mut value = Vec::with_capacity(bound.len());
    // NULL is never over. Whatever stands in a row has been checked when it came in.
    key::encode(row.get(expiry.slot), expiry.time_to_live.column.key_type, &mut value).unwrap_or(false) && *value <= *bound
}
