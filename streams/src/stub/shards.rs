//! A stream of the stub: its shards, and how they are split and merged.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::store::Failed;

/// How often a stream is said to be changing after a change.
const CHANGE_LOOKS: u64 = 2;

pub(super) struct Stream {
    pub(super) shards: Vec<Shard>,
    pub(super) on_demand: bool,
    pub(super) retention_hours: u64,
    pub(super) encryption_key: Option<String>,
    pub(super) record_kib: u64,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) created_ms: u64,
    /// How many more times it is not known to whoever asks for its description.
    pub(super) unknown: u64,
    /// How many more times it is said to be changing.
    pub(super) updating: u64,
    /// The last reshard: where it ended its parents, and the index of its first child.
    pub(super) reshard: Option<(u64, usize)>,
}

/// How far behind an answer about a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lag {
    None,
    /// As it was before the last reshard.
    Before,
    /// The parents of the last reshard are closed, and its children are not there yet.
    Childless,
}

/// What a shard takes in a second.
#[derive(Clone, Copy, Default)]
pub(super) struct Quota {
    pub(super) bytes: Option<u64>,
    pub(super) records: Option<u64>,
}

pub(super) struct Shard {
    pub(super) id: String,
    pub(super) ordinal: u64,
    pub(super) hashes: (u128, u128),
    pub(super) parents: Vec<String>,
    pub(super) starting: u64,
    pub(super) ending: Option<u64>,
    pub(super) records: VecDeque<Stored>,
    pub(super) bytes: Allowance,
    pub(super) count: Allowance,
}

pub(super) struct Stored {
    pub(super) number: u64,
    pub(super) partition_key: String,
    /// In base64, as it came and as it goes; nothing here looks into it.
    pub(super) data: String,
    pub(super) arrival_ms: u64,
}

/// What a shard may still take, by a quota for a second: filled up as time passes.
pub(super) struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn full() -> Self {
        Self { left: f64::MAX, at: Instant::now() }
    }

    pub(super) fn allows(&mut self, amount: u64, per_second: Option<u64>) -> bool {
        let Some(per_second) = per_second.map(|per_second| per_second as f64) else { return true };
        self.left = (self.left + self.at.elapsed().as_secs_f64() * per_second).min(per_second);
        self.at = Instant::now();
        // A record of more than a second's worth passes when the allowance is full.
        self.left >= (amount as f64).min(per_second)
    }
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Shard {
    /// Whether the quota lets a record of so many bytes in; then it is counted.
    pub(super) fn admits(&mut self, bytes: usize, quota: Quota) -> bool {
        let admits = self.bytes.allows(bytes as u64, quota.bytes) && self.count.allows(1, quota.records);
        if admits {
            self.bytes.left -= bytes as f64;
            self.count.left -= 1.0;
        }
        admits
    }
}

impl Stream {
    pub(super) fn shard(&self, id: &str) -> Result<usize, Failed> {
        let missing = || Failed::new("ResourceNotFoundException", format!("Shard {id} not found"));
        self.shards.iter().position(|shard| shard.id == id).ok_or_else(missing)
    }

    pub(super) fn children(&self, parent: &str) -> Value {
        let children = self.shards.iter().filter(|shard| shard.parents.iter().any(|id| id == parent)).map(|shard| {
            json!({
                "ShardId": shard.id, "ParentShards": shard.parents,
                "HashKeyRange": {"StartingHashKey": shard.hashes.0.to_string(), "EndingHashKey": shard.hashes.1.to_string()},
            })
        });
        children.collect()
    }

    pub(super) fn open_shard_of(&mut self, hash: u128) -> Option<&mut Shard> {
        self.shards.iter_mut().find(|shard| shard.ending.is_none() && (shard.hashes.0..=shard.hashes.1).contains(&hash))
    }

    /// Refuses while a change is under way, and says so a few times afterwards.
    pub(super) fn change(&mut self, name: &str) -> Result<&mut Self, Failed> {
        if self.updating > 0 {
            return Err(Failed::new("ResourceInUseException", format!("Stream {name} is being changed")));
        }
        self.updating = CHANGE_LOOKS;
        Ok(self)
    }

    pub(super) fn open(&self) -> impl Iterator<Item = (usize, &Shard)> {
        self.shards.iter().enumerate().filter(|(_, shard)| shard.ending.is_none())
    }

    /// The shards as whoever is so far behind sees them, and where each ends.
    pub(super) fn seen(&self, lag: Lag) -> impl Iterator<Item = (&Shard, Option<u64>)> {
        let (number, children) = self.reshard.filter(|_| lag != Lag::None).unwrap_or((u64::MAX, self.shards.len()));
        let ending = move |shard: &Shard| shard.ending.filter(|ending| lag != Lag::Before || *ending != number);
        self.shards[..children.min(self.shards.len())].iter().map(move |shard| (shard, ending(shard)))
    }

    pub(super) fn split(&mut self, index: usize, at: u128, number: u64) -> Result<(), Failed> {
        let shard = &mut self.shards[index];
        let (first, last) = shard.hashes;
        if shard.ending.is_some() || at <= first || at > last {
            return Err(Failed::invalid("the shard is closed, or the key not inside it"));
        }
        shard.ending = Some(number);
        let parents = vec![shard.id.clone()];
        self.reshard = Some((number, self.shards.len()));
        self.add_shard((first, at - 1), parents.clone(), number);
        self.add_shard((at, last), parents, number);
        Ok(())
    }

    pub(super) fn merge(&mut self, one: usize, other: usize, number: u64) -> Result<(), Failed> {
        let (low, high) = if self.shards[one].hashes.0 < self.shards[other].hashes.0 { (one, other) } else { (other, one) };
        let adjacent = self.shards[low].hashes.1.checked_add(1) == Some(self.shards[high].hashes.0);
        if !adjacent || [low, high].iter().any(|index| self.shards[*index].ending.is_some()) {
            return Err(Failed::invalid("the shards are closed or not adjacent"));
        }
        let hashes = (self.shards[low].hashes.0, self.shards[high].hashes.1);
        let parents = [one, other].map(|index| self.shards[index].id.clone()).to_vec();
        for index in [low, high] {
            self.shards[index].ending = Some(number);
        }
        self.reshard = Some((number, self.shards.len()));
        self.add_shard(hashes, parents, number);
        Ok(())
    }

    /// One split or merge on the way to so many shards: of the widest shard, or of the narrowest pair.
    pub(super) fn step_towards(&mut self, target: usize, number: u64) -> Result<(), Failed> {
        let mut open: Vec<_> = self.open().map(|(index, shard)| (index, shard.hashes)).collect();
        open.sort_by_key(|(_, hashes)| hashes.0);
        if open.len() < target {
            let widest = open.iter().max_by_key(|(_, (first, last))| last - first);
            let (index, (first, last)) = *widest.ok_or_else(|| Failed::invalid("no open shard"))?;
            self.split(index, first + (last - first) / 2 + 1, number)
        } else {
            let narrowest = open.windows(2).min_by_key(|pair| pair[1].1.1 - pair[0].1.0);
            let pair = narrowest.ok_or_else(|| Failed::invalid("one shard is the least"))?;
            self.merge(pair[0].0, pair[1].0, number)
        }
    }

    pub(super) fn add_shard(&mut self, hashes: (u128, u128), parents: Vec<String>, starting: u64) {
        self.shards.push(Shard {
            id: format!("shardId-{:012}", self.shards.last().map_or(0, |last| last.ordinal + 1)),
            ordinal: self.shards.last().map_or(0, |last| last.ordinal + 1),
            hashes,
            parents,
            starting,
            ending: None,
            records: VecDeque::new(),
            bytes: Allowance::full(),
            count: Allowance::full(),
        });
    }
}
