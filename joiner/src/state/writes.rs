//! Puts and removals at the keys of one index, in memory: many, found by key, and gone through in the order of the keys.
//!
//! Keys and rows stand one behind another, so that a step of very many makes few allocations. Keys are found by a hash; an order is made when it is first asked for, by numbers that the keys begin with, most of which
//! tell two keys apart without looking at either.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::OnceLock;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Clone)]
struct Entry {
    key: Range<usize>,
    /// `None`: it is removed.
    row: Option<Range<usize>>,
}

/// All keys begin with the same two bytes, those of the index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    by_key: HashTable<u32>,
    in_order: OnceLock<Vec<(u128, u32)>>,
}

/// What a key begins with, behind its index, as a number: where two keys' differ, their order is the keys'.
fn begins(key: &[u8]) -> u128 {
    let key = key.get(2..).unwrap_or_default();
    let mut bytes = [0; 16];
    let length = key.len().min(16);
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
}

impl Writes {
    pub(crate) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let same = |&entry: &u32| self.key(entry as usize) == key;
        self.by_key.find(xxh3_64(key), same).map(|&entry| entry as usize)
    }

    fn key(&self, entry: usize) -> &[u8] {
        &self.bytes[self.entries[entry].key.clone()]
    }

    fn entry(&self, entry: usize) -> (&[u8], Option<&[u8]>) {
        let Entry { key, row } = &self.entries[entry];
        (&self.bytes[key.clone()], row.clone().map(|row| &self.bytes[row]))
    }

    fn push(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// Puts a row, or removes what stands there.
    pub(crate) fn set(&mut self, key: &[u8], row: Option<&[u8]>) {
        let Some(entry) = self.find(key) else {
            let entry = Entry { key: self.push(key), row: row.map(|row| self.push(row)) };
            let number = self.entries.len() as u32;
            self.entries.push(entry);
            let Self { bytes, entries, by_key, .. } = self;
            by_key.insert_unique(xxh3_64(key), number, |&entry| xxh3_64(&bytes[entries[entry as usize].key.clone()]));
            self.in_order.take();
            return;
        };
        let room = self.entries[entry].row.take();
        self.entries[entry].row = match (room, row) {
            // One key may be written very often.
            (Some(room), Some(row)) if row.len() <= room.len() => {
                let taken = room.start..room.start + row.len();
                self.bytes[taken.clone()].copy_from_slice(row);
                Some(taken)
            }
            (_, Some(row)) => Some(self.push(row)),
            (_, None) => None,
        };
    }

    /// What is written at a key, if anything is.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.find(key).map(|entry| self.entry(entry).1)
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.find(key).is_some()
    }

    /// Makes the order, if there is none.
    pub(crate) fn put_in_order(&self) -> &[(u128, u32)] {
        self.in_order.get_or_init(|| {
            let mut order: Vec<_> =
                (0..self.entries.len() as u32).map(|entry| (begins(self.key(entry as usize)), entry)).collect();
            order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| self.key(a.1 as usize).cmp(self.key(b.1 as usize))));
            order
        })
    }

    /// In the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.put_in_order().iter().map(|&(_, entry)| self.entry(entry as usize))
    }

    /// The same from a key on.
    pub(crate) fn from(&self, start: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let order = self.put_in_order();
        let number = begins(start);
        let is_before = |&(begins, entry): &(u128, u32)| match begins.cmp(&number) {
            Ordering::Equal => self.key(entry as usize) < start,
            other => other == Ordering::Less,
        };
        order[order.partition_point(is_before)..].iter().map(|&(_, entry)| self.entry(entry as usize))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        let rest = prop_oneof![prop::collection::vec(0..3u8, 0..4), prop::collection::vec(0..2u8, 14..20)];
        rest.prop_map(|rest| [vec![0, 7], rest].concat())
    }

    proptest! {
        #[test]
        fn writes_are_a_sorted_map(steps in prop::collection::vec((key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..6)), any::<bool>()), 0..40), starts in prop::collection::vec(key(), 0..6)) {
            let (mut writes, mut expected) = (Writes::default(), BTreeMap::new());
            for (key, row, look) in steps {
                writes.set(&key, row.as_deref());
                expected.insert(key, row);
                // Whether or not the order has been made, what comes after it counts.
                prop_assert!(!look || writes.iter().count() == expected.len());
            }
            let all = |writes: &Writes| writes.iter().map(|(key, row)| (key.to_vec(), row.map(<[u8]>::to_vec))).collect::<Vec<_>>();
            prop_assert_eq!(all(&writes), expected.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(writes.is_empty(), expected.is_empty());
            for start in starts {
                let from: Vec<_> = writes.from(&start).map(|(key, row)| (key.to_vec(), row.map(<[u8]>::to_vec))).collect();
                let other: Vec<_> = expected.range(start.clone()..).map(|(key, row)| (key.clone(), row.clone())).collect();
                prop_assert_eq!(from, other);
                prop_assert_eq!(writes.get(&start), expected.get(&start).map(Option::as_deref));
                prop_assert_eq!(writes.contains(&start), expected.contains_key(&start));
            }
        }
    }
}
