//! Formats of the state, and how a state of an earlier one comes to be of this one.
//!
//! | format | what is other than before |
//! |---|---|
//! | 1 | The first, which was never released: it kept hashes of documents. Refused. |
//! | 2 | No hashes: documents are assembled as they were and as they are. |
//! | 3 | Steps may be written in portions ([`SourceStanding::portions_to`](super::meta::SourceStanding::portions_to)), fan-outs may wait (`walks`, `past`, `told`), aggregates may be kept in `parts`. What is known of each source stands in a list (`sources`). A version that knows nothing of these would take a state in the middle of such a thing for whole. |
//!
//! A state is converted when a joiner opens it: first the database, then the number in `identity.json`, so that a kill in between has it done again. Every conversion leaves alone what it has converted already. There is no way back: who wants
//! one makes a savepoint before the upgrade.

use super::{Store, meta};
use crate::error::Error;

/// The earliest format that is read.
pub(crate) const OLDEST: u32 = 2;

/// Makes a state of this format of one of an earlier one.
pub(crate) fn run(store: &Store, from: u32) -> Result<(), Error> {
    for format in from..meta::FORMAT {
        step(store, format)?;
    }
    if from < meta::FORMAT {
        store.sync()?;
        meta::is_of_this_format(store.path())?;
        tracing::info!(from, to = meta::FORMAT, "the state has been converted to this version's format");
    }
    Ok(())
}

/// From a format to the next.
fn step(store: &Store, from: u32) -> Result<(), Error> {
    match from {
        // The column families that are new were made when the database was opened, and what is new in the standing is as if nothing of it had ever been. That both can be read is looked at before the number says so.
        2 => store.standing().and_then(|_| store.definitions()).map(drop),
        _ => Err(Error::Format { path: store.path().to_owned(), found: from, oldest: OLDEST, expected: meta::FORMAT }),
    }
}
