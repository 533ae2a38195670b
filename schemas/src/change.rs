//! Entity changes: what the joiner emits, sinks write and subscribers receive.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// An entity's key as text, as it stands in URLs and sinks: the key's parts in their order, joined by commas; a comma, a percent sign or a slash inside a
/// part is percent-encoded. `42`, `7,3`, `a%2Cb`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EntityKey(String);

impl EntityKey {
    /// From the text of each part: a string's characters, a number's digits.
    pub fn from_parts<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> Self {
        let mut text = String::new();
        for (index, part) in parts.into_iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            for c in part.as_ref().chars() {
                match c {
                    ',' => text.push_str("%2C"),
                    '%' => text.push_str("%25"),
                    '/' => text.push_str("%2F"),
                    c => text.push(c),
                }
            }
        }
        Self(text)
    }

    /// From the text form itself.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts, decoded.
    pub fn parts(&self) -> Vec<String> {
        self.0.split(',').map(|part| part.replace("%2C", ",").replace("%2F", "/").replace("%25", "%")).collect()
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An entity as of one commit LSN, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityChange {
    /// The entity definition's name.
    pub entity: Arc<str>,
    pub key: EntityKey,
    /// The commit LSN that the document reflects (INV-4).
    pub version: Lsn,
    /// Commit time of `version`, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
    /// The document as JSON text; `None`: the entity is gone (a tombstone).
    pub document: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_differ(a in prop::collection::vec(".{0,6}", 1..4), b in prop::collection::vec(".{0,6}", 1..4)) {
            let (key_a, key_b) = (EntityKey::from_parts(&a), EntityKey::from_parts(&b));
            prop_assert_eq!(key_a.parts(), a.clone());
            prop_assert_eq!(key_a == key_b, a == b);
        }
    }
}
