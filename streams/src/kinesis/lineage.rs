//! What follows from a shard map, and from the positions that a consumer has saved. Pure.
//!
//! Shards that are open at the same time divide the hash space among them, and a reshard hands ranges on whole. So every hash belongs to one line of shards, each the parent of the next, and of two shards
//! that share a hash one is an ancestor of the other.
//!
//! # Positions of shards that are no longer listed
//! Kinesis forgets a closed shard when all its records have aged, and with it its range and its parents. A reader begins a shard only when its parents have been read to their end, so what an ancestor of
//! a shard with a position held has been read. That a forgotten shard is such an ancestor is known
//! - from the map, where a shard that is still listed names it as its parent ([`Lineage::ancestors`]);
//! - from the ranges, where every hash that is wanted is held by some listed shard with a position ([`Lineage::are_everywhere`]): whatever range the forgotten shard had, it shares a hash with one of those, and is
//!   the older of the two.
//!
//! Otherwise nothing is known: a line of shards of which none has a position may hold what followed the forgotten one, and may have lost it.
//!
//! # A map that lags
//! A shard that is too young to be listed is not to be taken for one that is forgotten. Numbers only grow along a line. So where every open shard began above a position, its shard is older than all of them;
//! where one did not, or where the children of a closed one are missing, the position's shard may descend from it ([`Lineage::may_be_young`]), and a later map tells.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

use schemas::progress::{SequenceNumber, ShardId};

use super::client::Shard;
use crate::Positions;

pub(super) struct Lineage<'a> {
    shards: &'a [Shard],
    listed: HashMap<&'a ShardId, &'a Shard>,
}

impl<'a> Lineage<'a> {
    pub(super) fn new(shards: &'a [Shard]) -> Self {
        Self { shards, listed: shards.iter().map(|shard| (&shard.id, shard)).collect() }
    }

    pub(super) fn get(&self, id: &ShardId) -> Option<&'a Shard> {
        self.listed.get(id).copied()
    }

    /// Where the oldest shard that is listed begins.
    pub(super) fn oldest(&self) -> Option<SequenceNumber> {
        self.shards.iter().filter_map(|shard| shard.starting.parse().ok()).min()
    }

    /// All ancestors of the shards with positions, as far as the map names them; the oldest of a line may not be listed themselves.
    pub(super) fn ancestors(&self, of: &Positions) -> HashSet<ShardId> {
        let mut found = HashSet::new();
        let mut next: Vec<&ShardId> = of.keys().collect();
        while let Some(id) = next.pop() {
            for parent in self.get(id).map_or(&[][..], |shard| &shard.parents) {
                if found.insert(parent.clone()) {
                    next.push(parent);
                }
            }
        }
        found
    }

    /// Whether each of these hashes is held by a listed shard with a position.
    pub(super) fn are_everywhere(&self, positions: &Positions, hashes: &RangeInclusive<u128>) -> bool {
        let mut held: Vec<&Shard> = positions.keys().filter_map(|id| self.get(id)).collect();
        held.sort_by_key(|shard| shard.first_hash);
        let mut next = *hashes.start();
        for shard in held {
            if shard.first_hash > next {
                return false;
            }
            if shard.last_hash >= *hashes.end() {
                return true;
            }
            next = next.max(shard.last_hash + 1);
        }
        false
    }

    /// Whether the shard of this position, which is not listed, may descend from one that is.
    pub(super) fn may_be_young(&self, position: &SequenceNumber) -> bool {
        let began = |shard: &Shard| shard.starting.parse::<SequenceNumber>().is_ok_and(|began| began <= *position);
        self.shards.iter().any(|shard| began(shard) && !self.is_taken_over(shard))
    }

    /// Whether a shard that was listed once is gone, and not merely missing in a map that is older than it: all that hold a hash of its range began after it.
    pub(super) fn is_gone(&self, shard: &Shard) -> bool {
        let hashes = shard.first_hash..=shard.last_hash;
        let number = |shard: &Shard| shard.starting.parse::<SequenceNumber>().ok();
        self.get(&shard.id).is_none()
            && self.shards.iter().filter(|other| other.overlaps(&hashes)).all(|other| number(other) > number(shard))
    }

    /// Whether all that comes before a shard has been read: its parents are finished, or gone before anybody began them.
    pub(super) fn is_ready(
        &self,
        shard: &Shard,
        hashes: &RangeInclusive<u128>,
        started: &HashSet<ShardId>,
        finished: &HashSet<ShardId>,
    ) -> bool {
        shard.parents.iter().all(|parent| {
            let wanted = self.get(parent).is_some_and(|parent| parent.overlaps(hashes));
            // One that is being read stays ahead of its children, though it ages out of the map meanwhile.
            finished.contains(parent) || !wanted && !started.contains(parent)
        })
    }

    /// Whether the range of a finished shard is not yet taken over by children. One that is no longer listed itself has long had them.
    pub(super) fn awaits_children(&self, finished: &HashSet<ShardId>) -> bool {
        self.shards.iter().any(|shard| finished.contains(&shard.id) && !self.is_taken_over(shard))
    }

    /// Whether all children of a shard are listed. A split makes two, each from one end of the range; a merge makes one that holds both ends.
    fn is_taken_over(&self, parent: &Shard) -> bool {
        let holds = |hash| self.shards.iter().any(|child| child.parents.contains(&parent.id) && child.holds(hash));
        holds(parent.first_hash) && holds(parent.last_hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(id: &str, hashes: RangeInclusive<u128>, parents: &[&str], starting: u64) -> Shard {
        Shard {
            id: ShardId(id.into()),
            first_hash: *hashes.start(),
            last_hash: *hashes.end(),
            parents: ids(parents).into_iter().collect(),
            starting: starting.to_string(),
            ending: None,
        }
    }

    fn ids(ids: &[&str]) -> HashSet<ShardId> {
        ids.iter().map(|id| ShardId((*id).into())).collect()
    }

    fn positions(shards: &[&str]) -> Positions {
        ids(shards).into_iter().map(|id| (id, SequenceNumber::from(1))).collect()
    }

    #[test]
    fn a_finished_shard_waits_for_all_its_children_to_be_listed() {
        let awaits = |shards: &[Shard], finished: &[&str]| Lineage::new(shards).awaits_children(&ids(finished));
        let mut shards = vec![shard("a", 0..=99, &[], 1), shard("b", 100..=199, &[], 1)];
        assert!(!awaits(&shards, &[]) && awaits(&shards, &["a"]));
        shards.push(shard("a0", 0..=49, &["a"], 2));
        assert!(awaits(&shards, &["a"]), "one of two children is listed");
        shards.push(shard("a1", 50..=99, &["a"], 2));
        assert!(!awaits(&shards, &["a"]));
        assert!(awaits(&shards, &["a", "a1", "b"]));
        shards.push(shard("m", 50..=199, &["a1", "b"], 3));
        assert!(!awaits(&shards, &["a", "a1", "b"]));
        assert!(!awaits(&shards[2..], &["a", "a1", "b"]), "what has aged has had its children");
    }

    #[test]
    fn a_shard_is_ready_when_nothing_before_it_is_left_to_be_read() {
        let shards = [shard("a", 0..=99, &["gone"], 1), shard("b", 100..=199, &[], 1), shard("m", 0..=199, &["a", "b"], 2)];
        let ready = |shards: &[Shard], id: usize, wanted: RangeInclusive<u128>, started: &[&str], finished: &[&str]| {
            Lineage::new(shards).is_ready(&shards[id], &wanted, &ids(started), &ids(finished))
        };
        assert!(ready(&shards, 0, 0..=199, &[], &[]), "what is gone has nothing left");
        assert!(!ready(&shards, 2, 0..=199, &["a", "b"], &["a"]));
        assert!(ready(&shards, 2, 0..=199, &["a", "b"], &["a", "b"]));
        assert!(ready(&shards, 2, 0..=99, &["a"], &["a"]), "nobody wants what b holds");
        assert!(!ready(&shards[2..], 0, 0..=199, &["a", "b"], &["a"]), "b has aged out of the map while it is read");
    }

    /// `a` was split into `b` and its sibling, `b` into `c` and `d`; `e` came of the sibling. Of them only `c`, `d` and `e` are listed.
    #[test]
    fn what_is_forgotten_was_read_where_its_range_is_held_by_positions() {
        let shards = [shard("c", 0..=24, &["b"], 3), shard("d", 25..=49, &["b"], 3), shard("e", 50..=99, &["sibling"], 2)];
        let lineage = Lineage::new(&shards);
        assert_eq!(lineage.ancestors(&positions(&["a", "b", "c"])), ids(&["b"]), "the map says nothing of a");
        assert!(lineage.are_everywhere(&positions(&["a", "c", "d", "e"]), &(0..=99)));
        assert!(!lineage.are_everywhere(&positions(&["a", "b", "c", "d"]), &(0..=99)), "a may have been where e is");
        assert!(!lineage.are_everywhere(&positions(&["a", "c", "e"]), &(0..=99)), "a hole in the middle");
        assert!(lineage.are_everywhere(&positions(&["a", "c", "d"]), &(0..=49)), "nobody wants what e holds");
        assert!(!lineage.are_everywhere(&Positions::new(), &(0..=0)));
        let whole = [shard("z", 0..=u128::MAX, &["y"], 9)];
        assert!(Lineage::new(&whole).are_everywhere(&positions(&["x", "z"]), &(0..=u128::MAX)));
    }

    #[test]
    fn what_is_too_young_to_be_listed_is_not_taken_for_forgotten() {
        let mut shards = vec![shard("a", 0..=99, &[], 10)];
        let young = |shards: &[Shard], number: u64| Lineage::new(shards).may_be_young(&SequenceNumber::from(number));
        assert!(young(&shards, 12) && !young(&shards, 9));
        // Its parent is closed, and its children are not listed.
        shards[0].ending = Some("11".into());
        assert!(young(&shards, 12));
        shards.extend([shard("b", 0..=49, &["a"], 15), shard("c", 50..=99, &["a"], 15)]);
        assert!(!young(&shards, 12) && young(&shards, 15));
        let gone = |shards: &[Shard], shard: &Shard| Lineage::new(shards).is_gone(shard);
        assert!(gone(&shards[1..], &shards[0]), "its children have taken its place");
        assert!(!gone(&shards, &shards[0]) && !gone(&shards[..1], &shards[1]), "the map is older than the shard");
    }
}
