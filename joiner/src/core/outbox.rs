//! How far back the outbox goes, and what is known of the versions in it.

use rocksdb::WriteBatch;

use super::Core;
use crate::error::Error;
use crate::state::outbox;

impl Core {
    /// Drops outbox entries that are older than `keep_after_ms`, or more than `keep_entries` behind, and that every sink has (`needed`: the least sequence number that
    /// some sink still needs). Looks at no more than a bounded number of entries.
    pub(crate) fn trim(&mut self, keep_entries: u64, keep_after_ms: i64, needed: u64) -> Result<(), Error> {
        self.tools.store.recent().forget(needed);
        let standing = &self.standing;
        let bound = needed.min(standing.head + 1);
        let mut oldest = standing.oldest.max((standing.head + 1).saturating_sub(keep_entries)).min(bound);
        for _ in 0..10_000 {
            if oldest >= bound || outbox::commit_time_ms(&self.tools.store, oldest)?.is_some_and(|time| time >= keep_after_ms) {
                break;
            }
            oldest += 1;
        }
        if oldest > self.standing.oldest {
            let trimmed = outbox::version(&self.tools.store, oldest - 1)?;
            self.standing.complete_after = self.standing.complete_after.max(trimmed.unwrap_or(self.standing.head_frontier));
            self.standing.oldest = oldest;
            let mut batch = WriteBatch::default();
            outbox::trim(&self.tools.store, &mut batch, oldest)?;
            self.tools.store.write_with(batch, &self.standing)?;
            outbox::reclaim(&self.tools.store, oldest)?;
        }
        self.forget_vectors()
    }

    /// Forgets what versions stand for that nobody can be told of any more. What has only now become such may be on its way to somebody, and is forgotten the next time; so is not how far back the outbox is complete, which a joiner that stands by
    /// holds against what others have confirmed.
    fn forget_vectors(&mut self) -> Result<(), Error> {
        if self.sources.len() > 1 {
            let oldest = outbox::version(&self.tools.store, self.standing.oldest)?;
            let forgettable = oldest.unwrap_or(self.standing.head_frontier).min(self.standing.head_frontier);
            let below = std::mem::replace(&mut self.forgettable, forgettable);
            let mut batch = WriteBatch::default();
            self.tools.store.forget_vectors(&mut batch, below, self.standing.complete_after)?;
            self.tools.store.write_with(batch, &self.standing)?;
        }
        Ok(())
    }
}
