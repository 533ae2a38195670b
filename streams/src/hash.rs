//! Which shard a partition key belongs to.
//!
//! Kinesis's rule, kept by every provider so that a stream may move from one to another: the MD5 of the key's UTF-8 bytes, read as a big-endian number of 128
//! bits, falls into the hash range of one shard. An instance that owns a range of keys can therefore name the shards that it needs without asking.

use std::ops::RangeInclusive;

use md5::{Digest, Md5};

/// The key's place in the hash space.
pub fn key_hash(partition_key: &str) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key.as_bytes()).into())
}

/// The shard, out of `shards` equal ranges, that holds `hash`. The top 64 bits decide: ranges this fine differ from exact division by less than 2^-64 of the space.
pub fn shard_of(hash: u128, shards: u32) -> u32 {
    let scaled = ((hash >> 64) * u128::from(shards)) >> 64;
    // The product of a number below 2^64 and `shards`, divided by 2^64, is below `shards`.
    scaled as u32
}

/// The hashes that [`shard_of`] gives to a shard.
pub fn range_of(shard: u32, shards: u32) -> RangeInclusive<u128> {
    let (shard, shards) = (u128::from(shard), u128::from(shards.max(1)));
    let first = |shard: u128| (shard << 64).div_ceil(shards) << 64;
    let last = if shard + 1 >= shards { u128::MAX } else { first(shard + 1) - 1 };
    first(shard)..=last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_kinesis_does() {
        // RFC 1321: MD5("abc").
        assert_eq!(key_hash("abc"), 0x9001_5098_3cd2_4fb0_d696_3f7d_28e1_7f72);
    }

    #[test]
    fn ranges_cover_the_space_in_order() {
        assert_eq!(shard_of(0, 1), 0);
        assert_eq!(shard_of(u128::MAX, 1), 0);
        assert_eq!(shard_of(0, 7), 0);
        assert_eq!(shard_of(u128::MAX, 7), 6);
        assert_eq!(shard_of(u128::MAX / 2, 2), 0);
        assert_eq!(shard_of(u128::MAX / 2 + 1, 2), 1);
    }

    #[test]
    fn ranges_are_what_shard_of_says() {
        for shards in [1, 2, 3, 7, 500] {
            for shard in 0..shards {
                let range = range_of(shard, shards);
                assert_eq!((shard_of(*range.start(), shards), shard_of(*range.end(), shards)), (shard, shard));
                let after = range.end().checked_add(1);
                assert_eq!(after, (shard + 1 < shards).then(|| *range_of(shard + 1, shards).start()));
            }
        }
    }
}
