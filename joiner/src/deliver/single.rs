//! Single changes: those that make their batch fail, and those that are to be written once more.

use schemas::ErrorClass;
use schemas::change::{EntityChange, EntityKey};
use sinks::Rejected;

use super::{Delivery, Interrupted, blocking};
use crate::dead_letters::Refused;
use crate::error::Error;
use crate::handle::{Shared, encode_key};
use crate::state::meta::Standing;
use crate::step::{self, Found};

impl Delivery {
    /// Writes a batch that keeps failing in ever smaller parts. Changes that fail by themselves become dead letters, if others were taken: if none was, `cause` is the target's trouble and nothing is set aside.
    pub(super) async fn single_out(&mut self, changes: &[EntityChange], cause: sinks::Error) -> Result<(), Interrupted> {
        tracing::warn!(sink = self.name, error = %cause, changes = changes.len(), "a batch keeps failing and is written in parts");
        self.prepare().await?;
        let (first, second) = changes.split_at(changes.len() / 2);
        // The first on top.
        let mut parts = vec![second, first];
        let (mut alone, mut rejected) = (Vec::new(), Vec::new());
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            match self.or_stop(async |delivery| delivery.sink.write(part, None).await).await? {
                Ok(refused) => rejected.extend(refused),
                // Not what was looked for.
                Err(error) if error.class() == ErrorClass::Misconfigured || matches!(error, sinks::Error::Throttled { .. }) => {
                    return Err(error.into());
                }
                Err(error) => {
                    self.prepare().await?;
                    match part {
                        [change] => alone.push(Rejected { change: change.clone(), reason: error.to_string() }),
                        _ => {
                            let (first, second) = part.split_at(part.len() / 2);
                            parts.extend([second, first]);
                        }
                    }
                }
            }
        }
        if alone.len() == changes.len() {
            return Err(cause.into());
        }
        self.left_out.extend(alone.iter().map(|alone| (alone.change.entity.clone(), alone.change.key.clone())));
        rejected.extend(alone);
        self.written(changes, &rejected)
    }

    /// Writes the entities of the dead letters that somebody wants tried again, as they stand now. The letter goes with the write, or gets the new reason.
    pub(super) async fn redeliver(&mut self) -> Result<(), Interrupted> {
        let asked = self.letters.look()?;
        let kept = self.letters.count();
        self.shared.with_sink(&self.name, |sink| sink.dead_letters = kept);
        for refused in asked {
            let shared = self.shared.clone();
            let Some(change) = blocking(&self.shared, move || letter_as_it_stands(&shared, &refused)).await? else { continue };
            let store = self.shared.store.clone();
            blocking(&self.shared, move || store.sync()).await?;
            let change = [change];
            let rejected = self.or_stop(async |delivery| delivery.sink.write(&change, None).await).await??;
            self.written(&change, &rejected)?;
        }
        Ok(())
    }
}

/// The entity of a letter, as of the LSN that the state stands at. None where that cannot be told now: it is tried again later.
fn letter_as_it_stands(shared: &Shared, refused: &Refused) -> Result<Option<EntityChange>, Error> {
    let Some((standing, found)) = as_it_stands(shared, &refused.entity, &refused.key)? else { return Ok(None) };
    let document = match found {
        Found::Document(document) => Some(document.into()),
        Found::Nothing => None,
        Found::TooLarge => return Ok(None),
    };
    let (entity, key) = (refused.entity.as_str().into(), refused.key.clone());
    let (version, commit_time_ms) = (standing.frontier, standing.commit_time_ms);
    Ok(Some(EntityChange { entity, key, version, commit_time_ms, document }))
}

/// An entity and what the state stands at. None where the state is not as of one LSN now.
pub(super) fn as_it_stands(shared: &Shared, entity: &str, key: &EntityKey) -> Result<Option<(Standing, Found)>, Error> {
    let Shared { store, catalog, .. } = shared;
    // Neither an entity that is defined no longer nor a key that cannot be one has a document.
    let (standing, found) = match catalog.entity(entity).and_then(|id| Some((id, encode_key(catalog, id, key)?))) {
        Some((id, key)) => step::assemble_now(store, catalog, id, &key)?,
        None => (store.standing()?, Found::Nothing),
    };
    Ok(standing.is_consistent().then_some((standing, found)))
}
