//! Puts and removals at the keys of one index, in memory: many, found by key, and gone through in the order of the keys.
//!
//! Keys and rows stand one behind another, so that a step of very many makes few allocations. Keys are found by a hash. An order is made when it is first asked for, by numbers that the keys begin with, most of which
//! tell two keys apart without looking at either; and all is copied in that order, because whoever goes through it several times, or looks for many keys in rising order ([`Near`]), would wait for memory at each.
//!
//! Beside a write stands what was at its key before, where that is known.

use std::ops::Range;
use std::sync::OnceLock;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Clone)]
struct Entry {
    key: Range<usize>,
    /// `None`: it is removed.
    row: Option<Range<usize>>,
    was: Was<Range<usize>>,
}

/// What stood at a key before the first write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Was<T> {
    /// Nobody has said.
    Unknown,
    Nothing,
    Row(T),
}

impl<T> Was<T> {
    pub(crate) fn map<U>(self, then: impl FnOnce(T) -> U) -> Was<U> {
        match self {
            Self::Unknown => Was::Unknown,
            Self::Nothing => Was::Nothing,
            Self::Row(row) => Was::Row(then(row)),
        }
    }
}

/// What is written at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Write<'w> {
    pub(crate) key: &'w [u8],
    /// `None`: it is removed.
    pub(crate) row: Option<&'w [u8]>,
    pub(crate) was: Was<&'w [u8]>,
}

/// All keys begin with the same two bytes, those of the index.
#[derive(Debug, Clone, Default)]
pub(crate) struct Writes {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// By the hash of the key, which stands with the entry's number.
    by_key: HashTable<(u64, u32)>,
    in_order: OnceLock<InOrder>,
}

/// The same in the order of the keys.
#[derive(Debug, Clone)]
struct InOrder {
    bytes: Vec<u8>,
    entries: Vec<Placed>,
}

/// Where a write stands in the order: the key, then the row, then what was before it.
#[derive(Debug, Clone, Copy)]
struct Placed {
    /// What the key [begins] with.
    begins: u128,
    start: usize,
    key: u32,
    row: Option<u32>,
    was: Was<u32>,
}

/// Where a key was found last: the next that is looked for from here is not far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Near(usize);

/// What a key begins with, behind its index, as a number: where two keys' differ, their order is the keys'.
fn begins(key: &[u8]) -> u128 {
    let key = key.get(2..).unwrap_or_default();
    let mut bytes = [0; 16];
    let length = key.len().min(16);
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
}

fn push(out: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    let start = out.len();
    out.extend_from_slice(bytes);
    start..out.len()
}

impl Entry {
    fn of<'w>(&self, bytes: &'w [u8]) -> Write<'w> {
        let Self { key, row, was } = self;
        let at = |range: Range<usize>| &bytes[range];
        Write { key: at(key.clone()), row: row.clone().map(at), was: was.clone().map(at) }
    }

    /// Has a write stand behind what is there.
    fn push(Write { key, row, was }: Write<'_>, out: &mut Vec<u8>) -> Self {
        Self { key: push(out, key), row: row.map(|row| push(out, row)), was: was.map(|row| push(out, row)) }
    }
}

impl Placed {
    fn key<'w>(&self, bytes: &'w [u8]) -> &'w [u8] {
        &bytes[self.start..][..self.key as usize]
    }

    fn of<'w>(&self, bytes: &'w [u8]) -> Write<'w> {
        let (key, mut rest) = bytes[self.start..].split_at(self.key as usize);
        let mut next = |length: u32| {
            let (next, behind) = rest.split_at(length as usize);
            rest = behind;
            next
        };
        Write { key, row: self.row.map(&mut next), was: self.was.map(next) }
    }

    /// Has a write stand behind what is there.
    fn push(begins: u128, Write { key, row, was }: Write<'_>, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        let mut push = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            bytes.len() as u32
        };
        Self { begins, start, key: push(key), row: row.map(&mut push), was: was.map(push) }
    }
}

impl Writes {
    pub(crate) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let same = |&(other, entry): &(u64, u32)| other == hash && self.bytes[self.entries[entry as usize].key.clone()] == *key;
        self.by_key.find(hash, same).map(|&(_, entry)| entry as usize)
    }

    /// Puts a row, or removes what stands there; `was`: what stood there, if nothing has been written there before.
    pub(crate) fn set(&mut self, key: &[u8], row: Option<&[u8]>, was: Was<&[u8]>) {
        let hash = xxh3_64(key);
        self.in_order.take();
        let Some(entry) = self.find(hash, key) else {
            let number = self.entries.len() as u32;
            self.entries.push(Entry::push(Write { key, row, was }, &mut self.bytes));
            self.by_key.insert_unique(hash, (hash, number), |&(hash, _)| hash);
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
            (_, Some(row)) => Some(push(&mut self.bytes, row)),
            (_, None) => None,
        };
    }

    /// What is written at a key, if anything is.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Write<'_>> {
        self.find(xxh3_64(key), key).map(|entry| self.entries[entry].of(&self.bytes))
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        self.find(xxh3_64(key), key).is_some()
    }

    /// Makes the order, if there is none.
    pub(crate) fn put_in_order(&self) {
        self.in_order();
    }

    fn in_order(&self) -> &InOrder {
        self.in_order.get_or_init(|| {
            let key = |entry: u32| &self.bytes[self.entries[entry as usize].key.clone()];
            let mut order: Vec<_> = (0..self.entries.len() as u32).map(|entry| (begins(key(entry)), entry)).collect();
            order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| key(a.1).cmp(key(b.1))));
            let mut bytes = Vec::with_capacity(self.bytes.len());
            let write = |entry: u32| self.entries[entry as usize].of(&self.bytes);
            let entries = order.iter().map(|&(begins, entry)| Placed::push(begins, write(entry), &mut bytes)).collect();
            InOrder { bytes, entries }
        })
    }

    /// In the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Write<'_>> {
        let InOrder { bytes, entries } = self.in_order();
        entries.iter().map(|placed| placed.of(bytes))
    }

    /// The same from a key on.
    pub(crate) fn from(&self, start: &[u8], near: &mut Near) -> impl Iterator<Item = Write<'_>> {
        let InOrder { bytes, entries } = self.in_order();
        entries[self.place(start, near)..].iter().map(|placed| placed.of(bytes))
    }

    /// What is written at a key, if anything is: faster than [`Self::get`] where keys are looked for in rising order.
    pub(crate) fn get_near(&self, key: &[u8], near: &mut Near) -> Option<Write<'_>> {
        let place = self.place(key, near);
        let InOrder { bytes, entries } = self.in_order();
        entries.get(place).map(|placed| placed.of(bytes)).filter(|write| write.key == key)
    }

    /// The first in order that is not before a key.
    fn place(&self, key: &[u8], Near(near): &mut Near) -> usize {
        let InOrder { bytes, entries } = self.in_order();
        let number = begins(key);
        let is_before = |placed: &Placed| placed.begins < number || placed.begins == number && placed.key(bytes) < key;
        let mut first = (*near).min(entries.len());
        if first > 0 && !is_before(&entries[first - 1]) {
            first = 0;
        }
        // Ever farther, and then back in between.
        let mut step = 1;
        let mut end = first;
        while entries.get(end).is_some_and(is_before) {
            (first, end) = (end + 1, end + step);
            step *= 2;
        }
        let end = end.min(entries.len());
        *near = first + entries[first..end].partition_point(is_before);
        *near
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

    #[test]
    fn what_was_before_the_first_write_stays_with_a_key() {
        let mut writes = Writes::default();
        writes.set(&[0, 1, 1], Some(b"new"), Was::Row(b"old"));
        writes.set(&[0, 1, 1], None, Was::Row(b"new"));
        writes.set(&[0, 1, 0], Some(b"come"), Was::Nothing);
        writes.set(&[0, 1, 2], None, Was::Unknown);
        let was: Vec<_> = writes.iter().map(|write| (write.row, write.was)).collect();
        assert_eq!(was, [(Some(&b"come"[..]), Was::Nothing), (None, Was::Row(&b"old"[..])), (None, Was::Unknown)]);
        assert_eq!(writes.get(&[0, 1, 1]).map(|write| write.was), Some(Was::Row(&b"old"[..])));
    }

    proptest! {
        #[test]
        fn writes_are_a_sorted_map(steps in prop::collection::vec((key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..6)), any::<bool>()), 0..40), starts in prop::collection::vec(key(), 0..6)) {
            let (mut writes, mut expected) = (Writes::default(), BTreeMap::new());
            for (key, row, look) in steps {
                writes.set(&key, row.as_deref(), Was::Unknown);
                expected.insert(key, row);
                // Whether or not the order has been made, what comes after it counts.
                prop_assert!(!look || writes.iter().count() == expected.len());
            }
            let owned = |write: Write<'_>| (write.key.to_vec(), write.row.map(<[u8]>::to_vec));
            let all = |writes: &Writes| writes.iter().map(owned).collect::<Vec<_>>();
            prop_assert_eq!(all(&writes), expected.clone().into_iter().collect::<Vec<_>>());
            prop_assert_eq!(writes.is_empty(), expected.is_empty());
            // In whatever order they are looked for.
            let mut near = Near::default();
            for start in starts {
                let from: Vec<_> = writes.from(&start, &mut near).map(owned).collect();
                let other: Vec<_> = expected.range(start.clone()..).map(|(key, row)| (key.clone(), row.clone())).collect();
                prop_assert_eq!(from, other);
                prop_assert_eq!(writes.get(&start).map(|write| write.row), expected.get(&start).map(Option::as_deref));
                prop_assert_eq!(writes.get_near(&start, &mut near), writes.get(&start));
                prop_assert_eq!(writes.contains(&start), expected.contains_key(&start));
            }
        }
    }
}
