//! Limits of a document: where its lists are cut.
//!
//! A list takes no more children once it has as many as it may, and no more that would make the document longer than it may be; what follows in the document (aggregates, other fields) is written all the same, so that a document may be
//! longer by that. Aggregates are over all children, also those that are not shown. What is left out depends on the rows alone.
//!
//! Children behind the one that did not fit are not read, unless an aggregate is over them, or the list has an order that rows do not stand in.

use schemas::change::EntityKey;
use schemas::entity::{Exceeded, Limits};

use super::Made;
use crate::catalog::Entity;
use crate::error::Error;
use crate::state::key;
use crate::state::row::Spans;

/// What a document may still take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    limits: Limits,
    /// Where the document begins in the buffer.
    start: usize,
    /// Bytes of the document in other buffers than the one that is written to.
    pub(super) before: usize,
    pub(super) cut: bool,
}

impl Room {
    pub(super) const fn new(limits: Limits, start: usize) -> Self {
        Self { limits, start, before: 0, cut: false }
    }

    pub(super) fn is_full(&mut self, count: usize, length: usize) -> bool {
        let bytes = (self.before + length).saturating_sub(self.start);
        let full = self.limits.children.is_some_and(|most| count >= most) || self.limits.bytes.is_some_and(|most| bytes > most);
        self.cut |= full;
        full
    }

    /// Ends the document: it says whether lists were cut, or it is set aside, or that is a failure.
    pub(super) fn close(self, entity: &str, key: impl FnOnce() -> String, out: &mut Vec<u8>) -> Result<Made, Error> {
        match self.limits.exceeded {
            Exceeded::Truncate => {
                // A document is never empty where it has lists; else nothing can have been cut of it.
                out.pop();
                out.extend_from_slice(if out.len() > self.start + 1 { b",\"" } else { b"\"" });
                out.extend_from_slice(Limits::MARKER.as_bytes());
                out.extend_from_slice(if self.cut { b"\":true}" } else { b"\":false}" });
                Ok(Made::Document)
            }
            Exceeded::Stop if self.cut => {
                Err(Error::OverLimit { entity: entity.to_owned(), key: key(), limit: in_words(self.limits) })
            }
            Exceeded::DeadLetter if self.cut => {
                out.truncate(self.start);
                Ok(Made::TooLarge)
            }
            Exceeded::Stop | Exceeded::DeadLetter => Ok(Made::Document),
        }
    }
}

/// What a document may not have more of.
pub(crate) fn in_words(limits: Limits) -> String {
    let children = limits.children.map(|most| format!("{most} children in a list"));
    let bytes = limits.bytes.map(|most| format!("{most} bytes"));
    children.into_iter().chain(bytes).collect::<Vec<_>>().join(", or ")
}

/// The entity key of a root's row.
pub(super) fn key_of(entity: &Entity, row: &[u8]) -> Option<String> {
    let mut spans = Spans::default();
    let row = spans.read(row);
    let mut parts = Vec::with_capacity(entity.key.len());
    for part in &entity.key {
        let mut bytes = Vec::new();
        key::encode(row.get(part.slot), part.key_type, &mut bytes).ok()?;
        parts.push(key::decode(&bytes, part.key_type)?.0);
    }
    Some(EntityKey::from_parts(parts).to_string())
}
