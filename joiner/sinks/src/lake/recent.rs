//! Which rows a table of changes holds already: those of late from memory, the others from its files.
//!
//! What is known is exact: with [`Recent::since`] at some version, every row of the table with that version or a later one is here. A batch whose versions are all later than any in the table, which is
//! the rule, is new as a whole and needs no look at all: rows are put into order only when somebody asks.

use std::collections::HashMap;

use schemas::Lsn;
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{Operation, Row};

/// Keys that are kept in memory at most: those of a source transaction that touches more are looked up in the files.
const KEYS_LIMIT: usize = 1_000_000;

/// A row of a key: its version, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) version: Lsn,
    content: u64,
}

impl Stand {
    pub(super) fn of(row: &Row) -> Self {
        let content = match (&row.document, row.operation) {
            (Some(document), _) => xxh3_64(document),
            (None, _) => 0,
        };
        Self { version: row.version, content }
    }

    /// Whether a table that holds a row of this stand needs `row` no more: it has something newer of the key, or just that. A load says all of one version, so of its own version it says it again.
    pub(super) fn settles(self, row: &Row) -> bool {
        self.version > row.version || row.operation != Operation::Load && self == Self::of(row)
    }
}

#[derive(Debug, Default)]
pub(super) struct Recent {
    /// All rows of this version and later ones are known. `None`: nothing is.
    since: Option<Lsn>,
    keys: HashMap<Box<str>, Stand>,
    /// Those that have come since somebody asked.
    added: Vec<(Box<str>, Stand)>,
}

impl Recent {
    /// Of a table that is empty.
    pub(super) fn of_nothing() -> Self {
        Self { since: Some(Lsn::ZERO), ..Self::default() }
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Whether rows of `oldest` and later ones can be asked for here.
    pub(super) fn knows(&self, oldest: Lsn) -> bool {
        self.since.is_some_and(|since| since <= oldest)
    }

    pub(super) fn settles(&mut self, row: &Row) -> bool {
        self.sort();
        self.keys.get(&row.key).is_some_and(|stand| stand.settles(row))
    }

    fn sort(&mut self) {
        for (key, stand) in self.added.drain(..) {
            let known = self.keys.entry(key).or_insert(stand);
            if stand.version >= known.version {
                *known = stand;
            }
        }
    }

    /// Rows have been added to a table whose latest version was `newest_before`.
    pub(super) fn add(&mut self, mut rows: Vec<(Box<str>, Stand)>, newest_before: Lsn) {
        let versions = || rows.iter().map(|(_, stand)| stand.version);
        let Some((oldest, newest)) = versions().min().zip(versions().max().max(Some(newest_before))) else { return };
        if oldest > newest_before {
            // Of these versions, the table holds nothing else.
            if self.since.is_none() || self.keys.len() + self.added.len() > KEYS_LIMIT / 10 {
                *self = Self { since: Some(oldest), ..Self::default() };
            }
        } else if self.since.is_none_or(|since| since > oldest) {
            // There may be more of them in the files.
            return;
        }
        self.added.append(&mut rows);
        if self.keys.len() + self.added.len() > KEYS_LIMIT {
            self.sort();
        }
        if self.keys.len() > KEYS_LIMIT {
            self.keys.retain(|_, stand| stand.version >= newest);
            self.since = Some(newest);
        }
        if self.keys.len() > KEYS_LIMIT {
            self.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn lsn(n: u8) -> Lsn {
        Lsn::from_bytes([n; 10])
    }

    fn row(key: &str, version: u8, text: &'static str) -> Row {
        Row {
            key: key.into(),
            version: lsn(version),
            committed_ms: 0,
            written_us: 0,
            operation: Operation::Upsert,
            document: Some(Bytes::from_static(text.as_bytes())),
            members: None,
        }
    }

    fn added(row: &Row) -> Vec<(Box<str>, Stand)> {
        vec![(row.key.clone(), Stand::of(row))]
    }

    #[test]
    fn what_is_there_is_settled_and_another_document_of_the_same_version_is_not() {
        let mut recent = Recent::of_nothing();
        recent.add(added(&row("a", 3, "{}")), Lsn::ZERO);
        assert!(recent.knows(lsn(1)));
        assert!(recent.settles(&row("a", 3, "{}")) && recent.settles(&row("a", 2, "{1}")));
        assert!(
            !recent.settles(&row("a", 3, "{1}")) && !recent.settles(&row("a", 4, "{}")) && !recent.settles(&row("b", 1, "{}"))
        );
    }

    #[test]
    fn nothing_is_claimed_of_what_was_there_before() {
        let mut recent = Recent::default();
        assert!(!recent.knows(Lsn::MAX));
        recent.add(added(&row("a", 3, "{}")), lsn(3));
        assert!(!recent.knows(lsn(3)), "the files may hold more of version 3");
        recent.add(added(&row("a", 5, "{}")), lsn(3));
        assert!(recent.knows(lsn(5)) && !recent.knows(lsn(4)));
        recent.add(added(&row("b", 5, "{}")), lsn(5));
        assert!(recent.settles(&row("b", 5, "{}")));
    }
}
