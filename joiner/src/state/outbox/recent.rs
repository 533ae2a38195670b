//! The entries that were written last, in memory: who follows the outbox closely reads them here, and not from a database that has hardly taken them in.
//!
//! Holds what the database holds: entries come here when they have been written. Whether they are to be seen, the standing's head says, here as there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Entry;

/// Entries, one behind another.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Entries {
    pub(crate) fn with_capacity(bytes: usize, entries: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(entries) }
    }

    pub(crate) fn push(&mut self, entry: &Entry<'_>) {
        entry.encode(&mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    pub(crate) const fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.skip(0)
    }

    fn skip(&self, entries: usize) -> impl Iterator<Item = &[u8]> {
        let start = entries.checked_sub(1).map_or(0, |last| self.ends[last]);
        let ends = &self.ends[entries..];
        std::iter::once(start).chain(ends.iter().copied()).zip(ends).map(|(start, &end)| &self.bytes[start..end])
    }

    const fn memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>() + 64
    }
}

/// Entries under the number of the first.
type Run = (u64, Arc<Entries>);

fn end((first, entries): &Run) -> u64 {
    *first + entries.len() as u64
}

/// What of the entries that are being written is to be kept.
#[must_use]
pub(crate) struct Picked(VecDeque<Run>);

pub(crate) struct Recent {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Without gaps.
    runs: VecDeque<Run>,
    memory: usize,
}

impl Kept {
    fn forget_first(&mut self) -> bool {
        let first = self.runs.pop_front();
        self.memory -= first.as_ref().map_or(0, |(_, entries)| entries.memory());
        first.is_some()
    }
}

impl Recent {
    /// `limit`: how many bytes are kept.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last of what is being written behind the entry with the number `tail`; the rest is dropped.
    pub(crate) fn pick(&self, tail: u64, entries: Vec<Entries>) -> Picked {
        let mut end = tail + entries.iter().map(|entries| entries.len() as u64).sum::<u64>();
        let (mut runs, mut memory) = (VecDeque::new(), 0);
        for entries in entries.into_iter().rev().filter(|entries| entries.len() > 0) {
            memory += entries.memory();
            if memory > self.limit {
                break;
            }
            end -= entries.len() as u64;
            runs.push_front((end + 1, Arc::new(entries)));
        }
        Picked(runs)
    }

    /// What was picked has been written.
    pub(crate) fn keep(&self, Picked(runs): Picked) {
        let mut kept = self.kept();
        for run in runs {
            // A new load leaves a number out.
            if kept.runs.back().is_some_and(|last| end(last) != run.0) {
                *kept = Kept::default();
            }
            kept.memory += run.1.memory();
            kept.runs.push_back(run);
        }
        while kept.memory > self.limit && kept.forget_first() {}
    }

    /// Forgets what nobody needs: entries below a number.
    pub(crate) fn forget(&self, below: u64) {
        let mut kept = self.kept();
        while kept.runs.front().is_some_and(|run| end(run) <= below) && kept.forget_first() {}
    }

    /// The number of the first entry that is kept.
    pub(super) fn first(&self) -> Option<u64> {
        self.kept().runs.front().map(|(first, _)| *first)
    }

    /// Entries among which that with a number is, and how many stand before it.
    fn find(&self, number: u64) -> Option<(Arc<Entries>, usize)> {
        let kept = self.kept();
        let run = kept.runs.partition_point(|run| end(run) <= number);
        let (first, entries) = kept.runs.get(run).filter(|(first, _)| *first <= number)?;
        Some((entries.clone(), (number - first) as usize))
    }

    /// Calls `each` with the entries from `next` to `last`, as far as they are here, until it answers false; moves `next` to the first with which it was not called. Answers what it answered last.
    pub(super) fn visit<E>(
        &self,
        next: &mut u64,
        last: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<bool, E>,
    ) -> Result<bool, E> {
        while *next <= last {
            let Some((entries, before)) = self.find(*next) else { break };
            for entry in entries.skip(before) {
                if *next > last {
                    break;
                }
                *next += 1;
                if !each(*next - 1, entry)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entries(texts: &[&str]) -> Entries {
        let mut entries = Entries::default();
        for text in texts {
            entries.bytes.extend_from_slice(text.as_bytes());
            entries.ends.push(entries.bytes.len());
        }
        entries
    }

    fn seen(recent: &Recent, mut next: u64, last: u64) -> (Vec<(u64, String)>, u64) {
        let mut seen = Vec::new();
        let all = recent.visit(&mut next, last, |number, entry| {
            seen.push((number, String::from_utf8(entry.to_vec()).unwrap()));
            Ok::<_, ()>(true)
        });
        assert_eq!(all, Ok(true));
        (seen, next)
    }

    fn numbered(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
        expected.iter().map(|(number, text)| (*number, (*text).to_owned())).collect()
    }

    #[test]
    fn entries_are_found_by_their_numbers_up_to_the_last_that_may_be_seen() {
        let recent = Recent::new(1 << 20);
        recent.keep(recent.pick(7, vec![entries(&["a", "bb"]), entries(&[]), entries(&["ccc"])]));
        recent.keep(recent.pick(10, vec![entries(&["", "e"])]));
        let all = [(8, "a"), (9, "bb"), (10, "ccc"), (11, ""), (12, "e")];
        assert_eq!(recent.first(), Some(8));
        assert_eq!(seen(&recent, 8, 12), (numbered(&all), 13));
        assert_eq!(seen(&recent, 9, 11), (numbered(&all[1..4]), 12));
        assert_eq!(seen(&recent, 9, 20), (numbered(&all[1..]), 13));
        assert_eq!(seen(&recent, 7, 20), (Vec::new(), 7));
        let mut next = 8;
        assert_eq!(recent.visit(&mut next, 12, |number, _| Ok::<_, ()>(number < 9)), Ok(false));
        assert_eq!(next, 10);
        // What one of them needs stays.
        recent.forget(9);
        assert_eq!(seen(&recent, 8, 12).0.len(), 5);
        recent.forget(10);
        assert_eq!(seen(&recent, 10, 12), (numbered(&all[2..]), 13));
        recent.forget(100);
        assert_eq!((recent.first(), recent.kept().memory), (None, 0));
    }

    #[test]
    fn no_more_is_kept_than_the_limit_and_nothing_beside_a_gap() {
        let one = || entries(&["0123456789"]);
        let memory = one().memory();
        let recent = Recent::new(3 * memory);
        recent.keep(recent.pick(0, vec![one(), one(), one(), one(), one()]));
        assert_eq!((recent.first(), recent.kept().memory), (Some(3), 3 * memory));
        recent.keep(recent.pick(5, vec![one()]));
        assert_eq!((recent.first(), recent.kept().memory), (Some(4), 3 * memory));
        recent.keep(recent.pick(7, vec![one()]));
        assert_eq!((recent.first(), recent.kept().memory), (Some(8), memory));
        // One that is larger by itself.
        recent.keep(recent.pick(8, vec![entries(&["0123456789".repeat(100).as_str()])]));
        recent.keep(recent.pick(9, vec![one()]));
        assert_eq!((recent.first(), recent.kept().memory), (Some(10), memory));
    }
}
