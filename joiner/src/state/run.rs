//! The rows of a cluster in memory, in the order of their keys.

use std::cmp::Ordering;

use rocksdb::DBRawIterator;

/// Runs that are longer are read from the database each time.
const LONGEST: usize = 256 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Run {
    bytes: Vec<u8>,
    /// For each row, where the rest of its key ends and where the row does.
    ends: Vec<(u32, u32)>,
    /// Whether it is all of them.
    pub(crate) whole: bool,
}

impl Run {
    /// Takes in the rows that begin with `prefix`, as far as there is room.
    pub(crate) fn fill(&mut self, rows: &mut DBRawIterator<'_>, prefix: &[u8]) {
        self.bytes.clear();
        self.ends.clear();
        self.whole = false;
        while self.bytes.len() < LONGEST {
            let Some((key, row)) = rows.item().and_then(|(key, row)| Some((key.strip_prefix(prefix)?, row))) else {
                self.whole = true;
                return;
            };
            self.push(key, row);
            rows.next();
        }
    }

    fn push(&mut self, key: &[u8], row: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len() as u32;
        self.bytes.extend_from_slice(row);
        self.ends.push((key_end, self.bytes.len() as u32));
    }

    /// The rest of the key, and the row.
    pub(crate) fn get(&self, nth: usize) -> Option<(&[u8], &[u8])> {
        let &(key_end, end) = self.ends.get(nth)?;
        let start = nth.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.bytes[start as usize..key_end as usize], &self.bytes[key_end as usize..end as usize]))
    }

    /// What it takes.
    pub(crate) fn memory(&self) -> usize {
        self.bytes.len() + self.ends.len() * std::mem::size_of::<(u32, u32)>() + std::mem::size_of::<Self>()
    }

    /// The same with what is written to it: puts (`Some`) and removals by the rest of their keys, in order.
    pub(crate) fn with<'w>(&self, writes: impl IntoIterator<Item = (&'w [u8], Option<&'w [u8]>)>) -> Self {
        let writes = writes.into_iter();
        let mut merged = Self {
            bytes: Vec::with_capacity(self.bytes.len() + 64),
            ends: Vec::with_capacity(self.ends.len() + 1),
            whole: self.whole,
        };
        let mut nth = 0;
        for (key, row) in writes {
            while let Some((other, kept)) = self.get(nth) {
                match other.cmp(key) {
                    Ordering::Less => merged.push(other, kept),
                    Ordering::Equal => {}
                    Ordering::Greater => break,
                }
                nth += 1;
            }
            if let Some(row) = row {
                merged.push(key, row);
            }
        }
        while let Some((key, row)) = self.get(nth) {
            merged.push(key, row);
            nth += 1;
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn run(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Run {
        let mut run = Run { whole: true, ..Run::default() };
        rows.iter().for_each(|(key, row)| run.push(key, row));
        run
    }

    fn some<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = BTreeMap<Vec<u8>, T>> {
        prop::collection::btree_map(prop::collection::vec(0..4u8, 0..3), value, 0..8)
    }

    proptest! {
        #[test]
        fn writes_are_laid_over_rows(rows in some(any::<Vec<u8>>()), writes in some(any::<Option<Vec<u8>>>())) {
            let merged = run(&rows).with(writes.iter().map(|(key, row)| (key.as_slice(), row.as_deref())));
            let mut expected = rows;
            for (key, row) in writes {
                match row {
                    Some(row) => drop(expected.insert(key, row)),
                    None => drop(expected.remove(&key)),
                }
            }
            prop_assert_eq!(&merged, &run(&expected));
            for (nth, (key, row)) in expected.iter().enumerate() {
                prop_assert_eq!(merged.get(nth), Some((key.as_slice(), row.as_slice())));
            }
            prop_assert_eq!(merged.get(expected.len()), None);
        }
    }
}
