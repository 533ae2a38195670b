//! Shares of the entities: ranges of a hash of their keys, so that several joiners, and the sinks that they write to, agree on whose an entity is.
//!
//! The hash is the 64-bit xxh3 of the key's text, seeded with the xxh3 of the entity's name. It is made of the text, not of what the joiner's state keeps, because sinks know the text alone; keys that are equal in the source have
//! one text ([`EntityKey`](crate::change::EntityKey)). It stands in states, checkpoints and targets that outlive the process, and never changes.
//!
//! As text a range is `first-last`, both included, in sixteen hexadecimal digits each: `0000000000000000-7fffffffffffffff`; or `nth/count`: the nth (from 0) of so many equal ones.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::change::EntityKey;

/// The hashes from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyRange {
    first: u64,
    last: u64,
}

/// Text that is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of keys: write nth/count, as in 0/4, or first-last in sixteen hexadecimal digits each")]
pub struct RangeError(String);

impl Default for KeyRange {
    fn default() -> Self {
        Self::ALL
    }
}

impl KeyRange {
    /// Every entity.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// The nth (from 0) of `count` ranges of the same size, which together are all.
    pub fn of(nth: u32, count: u32) -> Option<Self> {
        if nth >= count {
            return None;
        }
        let start = |nth: u32| (u128::from(nth) << 64) / u128::from(count);
        // The end of the last one is 2^64, which no u64 is.
        Some(Self { first: start(nth) as u64, last: (start(nth + 1) - 1) as u64 })
    }

    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }

    pub const fn first(&self) -> u64 {
        self.first
    }

    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Whether an entity is of this share.
    pub fn holds(&self, entity: &str, key: &EntityKey) -> bool {
        self.is_all() || (self.first..=self.last).contains(&hash(entity, key))
    }

    /// Whether all of the other is in this one.
    pub const fn covers(&self, other: &Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    pub const fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Both together, where the one begins behind the other's end.
    pub fn joined(&self, other: &Self) -> Option<Self> {
        let (low, high) = if self.first <= other.first { (self, other) } else { (other, self) };
        (low.last.checked_add(1) == Some(high.first)).then_some(Self { first: low.first, last: high.last })
    }

    /// What of this one is below and above the other.
    pub fn without(&self, other: &Self) -> impl Iterator<Item = Self> + use<> {
        let below = other.first.checked_sub(1).and_then(|last| Self::new(self.first, last.min(self.last)));
        let above = other.last.checked_add(1).and_then(|first| Self::new(first.max(self.first), self.last));
        below.into_iter().chain(above)
    }
}

/// Where an entity stands among all.
pub fn hash(entity: &str, key: &EntityKey) -> u64 {
    xxh3_64_with_seed(key.as_str().as_bytes(), xxh3_64(entity.as_bytes()))
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.first, self.last)
    }
}

impl FromStr for KeyRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let number = |digits: &str| {
            let plain = digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let part = || text.split_once('/').and_then(|(nth, count)| Self::of(nth.parse().ok()?, count.parse().ok()?));
        let ends = || text.split_once('-').and_then(|(first, last)| Self::new(number(first)?, number(last)?));
        part().or_else(ends).ok_or_else(|| RangeError(text.to_owned()))
    }
}

impl TryFrom<String> for KeyRange {
    type Error = RangeError;

    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<KeyRange> for String {
    fn from(range: KeyRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_never_changes() {
        let of = |entity, key: &str| hash(entity, &EntityKey::from_text(key));
        // As PyPI's xxhash has it: `xxh3_64_intdigest(b"42", seed=xxh3_64_intdigest(b"order"))`.
        assert_eq!((of("order", "42"), of("customer", "a%2Cb,7")), (0x8019_0b17_654c_a1bf, 0x801b_f819_18df_2757));
        assert_ne!(of("order", "42"), of("customer", "42"));
    }

    #[test]
    fn text_is_read_and_mistakes_are_refused() {
        let half: KeyRange = "0/2".parse().unwrap();
        assert_eq!(half.to_string(), "0000000000000000-7fffffffffffffff");
        assert_eq!(half.to_string().parse(), Ok(half));
        assert_eq!("0/1".parse(), Ok(KeyRange::ALL));
        assert_eq!(serde_json::from_str::<KeyRange>(&serde_json::to_string(&half).unwrap()).unwrap(), half);
        for text in ["", "0", "2/2", "0/0", "-1/2", "1-0", "0-ffffffffffffffff", "8000000000000000-7fffffffffffffff"] {
            assert!(text.parse::<KeyRange>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn equal_ranges_are_disjoint_and_together_all(count in 1u32..300, at: u64) {
            let parts: Vec<KeyRange> = (0..count).map(|nth| KeyRange::of(nth, count).unwrap()).collect();
            prop_assert_eq!(parts.iter().filter(|part| part.first <= at && at <= part.last).count(), 1);
            let all = parts[1..].iter().try_fold(parts[0], |all, part| all.joined(part));
            prop_assert_eq!(all, Some(KeyRange::ALL));
        }

        #[test]
        fn what_is_left_over_and_what_is_taken_are_all(a: (u64, u64), b: (u64, u64), at: u64) {
            let range = |(x, y): (u64, u64)| KeyRange { first: x.min(y), last: x.max(y) };
            let (a, b) = (range(a), range(b));
            let holds = |range: &KeyRange| range.first <= at && at <= range.last;
            let left: Vec<KeyRange> = a.without(&b).collect();
            prop_assert_eq!(left.iter().any(holds), holds(&a) && !holds(&b));
            prop_assert_eq!(left.is_empty(), b.covers(&a));
            prop_assert!(left.iter().all(|left| a.covers(left) && !left.overlaps(&b)));
        }
    }
}
