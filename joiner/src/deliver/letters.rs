//! The dead letters of one sink, as its delivery keeps them.

use std::collections::HashSet;

use rocksdb::WriteBatch;
use schemas::change::{EntityChange, EntityKey};
use sinks::Rejected;

use crate::dead_letters::{DeadLetters, Letter, Refused, Which};
use crate::error::Error;

/// Which entities have a letter is known in memory, so that a written change costs no look at the disk. Others may have removed a letter meanwhile: to remove it again does no harm.
pub(super) struct Letters {
    kept: DeadLetters,
    sink: String,
    keys: HashSet<(String, EntityKey)>,
}

impl Letters {
    pub(super) fn new(kept: DeadLetters, sink: &str) -> Result<Self, Error> {
        let mut letters = Self { kept, sink: sink.to_owned(), keys: HashSet::new() };
        letters.look()?;
        Ok(letters)
    }

    fn all(&self) -> Result<Vec<Refused>, Error> {
        let found = self.kept.list(&Which::Sink(self.sink.clone()), usize::MAX)?;
        let refused = |letter| match letter {
            Letter::Change(refused) => Some(refused),
            Letter::Event(_) | Letter::Document(_) => None,
        };
        Ok(found.into_iter().filter_map(|kept| refused(kept.letter)).collect())
    }

    /// Looks at what is kept. Answers the letters that are to be tried again.
    pub(super) fn look(&mut self) -> Result<Vec<Refused>, Error> {
        let all = self.all()?;
        self.keys = all.iter().map(|refused| (refused.entity.clone(), refused.key.clone())).collect();
        Ok(all.into_iter().filter(|refused| refused.retry).collect())
    }

    pub(super) fn count(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Keeps what the sink did not take of a batch, and removes the letters of entities of which it has taken a later change. Answers how many were kept.
    pub(super) fn settle(&mut self, changes: &[EntityChange], rejected: &[Rejected]) -> Result<usize, Error> {
        if rejected.is_empty() && self.keys.is_empty() {
            return Ok(0);
        }
        let mut batch = WriteBatch::default();
        for change in changes {
            // Deleting comes before keeping: a batch's writes are done in their order.
            if !self.keys.is_empty() && self.keys.remove(&(change.entity.to_string(), change.key.clone())) {
                self.kept.delete(&mut batch, &self.sink, &change.entity, &change.key)?;
            }
        }
        for Rejected { change, reason } in rejected {
            tracing::warn!(sink = self.sink, entity = %change.entity, key = %change.key, reason, "entity change dead-lettered");
            self.kept.put(&mut batch, &Refused::new(&self.sink, change, reason))?;
            self.keys.insert((change.entity.to_string(), change.key.clone()));
        }
        if !batch.is_empty() {
            self.kept.write(batch)?;
        }
        Ok(rejected.len())
    }
}
