//! Whether the database is still the one that the published history came from.
//!
//! A restored backup continues with LSNs that the streams may already hold with other contents, so nothing can be published from it under the same history. What
//! tells is in [`source::identity`]; the decision is here: a new recovery fork, or the last published transaction missing where it should be, ends the importer with an
//! error that says what to do.

use crate::error::Error;
use crate::saved::Saved;
use source::Client;
use source::identity::{Continuity, History, Identity};

/// Fails if it is another history; else the saved progress knows the database from here on.
pub(crate) async fn check(client: &mut Client, saved: &mut Saved) -> Result<(), Error> {
    let now = Identity::read(client).await?;
    let continuity = saved.identity.as_ref().map_or(Continuity::Same, |before| now.since(before));
    if let Continuity::Restored { what } = continuity {
        return Err(Error::Restored { what });
    }
    // Asked in any case: where the login may not see the recovery fork, the transaction itself is the proof.
    if let Some(last) = saved.last_transaction {
        match History::of(client, last).await? {
            History::Absent { ends: Some(ends) } if ends < last => {
                return Err(source::Error::WentBack { saved: last, captured: ends }.into());
            }
            History::Absent { .. } => {
                return Err(Error::Restored { what: format!("it does not know the transaction {last} that was published") });
            }
            History::Present { .. } => {}
            History::Purged => {
                if let Continuity::Doubtful { what } = continuity {
                    tracing::warn!(what, "the database may have been restored; what would prove it has been cleaned up");
                }
            }
        }
    }
    saved.identity = Some(now);
    Ok(())
}
