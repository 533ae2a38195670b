//! Several records in one Kinesis record: the format of the Kinesis Producer Library, which KCL, Flink, Lambda and Spark read.
//!
//! ```text
//! F3 89 9A C2 | message | MD5 of the message
//! message AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2; repeated Record records = 3; }
//! message Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2; required bytes data = 3; repeated Tag tags = 4; }
//! ```
//!
//! Our records carry no explicit hash keys of their own: it follows from the partition key. What does not read as this in every detail is a plain record, as the KCL has it.
//!
//! # Whose aggregate it is
//! An aggregate is routed whole, and after a split it may come to a shard that does not hold all of its records. Producers that know their shards (the KPL, and ours) then write
//! them again, to the right one, so the copies in the wrong shard are to be dropped. Other producers put any keys together and write nothing again: of theirs nothing may be
//! dropped. The two are told apart by the partition key of the Kinesis record itself, which decides nothing where an explicit hash key is given: the KPL's is always
//! [`OWN_KEY`].

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use md5::{Digest, Md5};

use crate::hash::key_hash;

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];
const DIGEST_BYTES: usize = 16;
/// No sub-record takes more than this beyond its key and its data: two tags, two indices, three lengths.
pub(super) const RECORD_OVERHEAD_BYTES: usize = 32;
/// Magic and digest.
pub(super) const OVERHEAD_BYTES: usize = MAGIC.len() + DIGEST_BYTES;

/// The partition key of Kinesis records that are aggregates whose stray records are written again.
pub(super) const OWN_KEY: &str = "a";

/// Whether a reader might take this data for an aggregate; then it must travel in one.
pub(super) fn looks_aggregated(data: &[u8]) -> bool {
    data.starts_with(&MAGIC)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// The aggregate of these (partition key, data) pairs.
pub(super) fn encode<'a>(records: impl Iterator<Item = (&'a str, &'a [u8])> + Clone) -> Vec<u8> {
    let (mut keys, mut indices) = (HashMap::new(), Vec::new());
    let bytes: usize = records.clone().map(|(key, data)| key.len() + data.len() + RECORD_OVERHEAD_BYTES).sum();
    let mut out = Vec::with_capacity(bytes + OVERHEAD_BYTES);
    out.extend_from_slice(&MAGIC);
    for (key, _) in records.clone() {
        let next = keys.len() as u64;
        indices.push(*keys.entry(key).or_insert_with(|| {
            put_bytes(&mut out, 1, key.as_bytes());
            next
        }));
    }
    for ((_, data), index) in records.zip(indices) {
        let length = 1 + varint_length(index) + 1 + varint_length(data.len() as u64) + data.len();
        out.push(3 << 3 | 2);
        put_varint(&mut out, length as u64);
        out.push(1 << 3);
        put_varint(&mut out, index);
        put_bytes(&mut out, 3, data);
    }
    let digest = Md5::digest(&out[MAGIC.len()..]);
    out.extend_from_slice(&digest);
    out
}

/// A record out of an aggregate: its place in it, and its data.
pub(super) type SubRecord = (usize, Bytes);

/// The records of an aggregate whose hash, by explicit hash key or partition key, is wanted, as slices of it; none when it is a plain record. Where all hashes are wanted no key is looked at.
pub(super) fn decode(record: &Bytes, wanted: Option<&dyn Fn(u128) -> bool>) -> Option<Vec<SubRecord>> {
    let end = record.len().checked_sub(DIGEST_BYTES).filter(|end| *end >= MAGIC.len() && looks_aggregated(record))?;
    if Md5::digest(&record[MAGIC.len()..end])[..] != record[end..] {
        return None;
    }
    let text = |range: Range<usize>| std::str::from_utf8(&record[range]).ok();
    let is_wanted = |hash: &dyn Fn() -> u128| wanted.is_none_or(|wanted| wanted(hash()));
    let mut fields = Fields { bytes: record, at: MAGIC.len(), end };
    let (mut keys, mut explicit, mut found) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(key)) => {
                let key = text(key)?;
                keys.push(is_wanted(&|| key_hash(key)));
            }
            (2, Value::Bytes(key)) => {
                let hash = text(key)?.parse::<u128>().ok()?;
                explicit.push(is_wanted(&|| hash));
            }
            (3, Value::Bytes(range)) => found.push(sub_record(record, range)?),
            _ => {}
        }
    }
    let mut records = Vec::with_capacity(found.len());
    for (place, (key, explicit_key, data)) in found.into_iter().enumerate() {
        let is_wanted = match explicit_key {
            Some(index) => explicit.get(usize::try_from(index).ok()?)?,
            None => keys.get(usize::try_from(key).ok()?)?,
        };
        if *is_wanted {
            records.push((place, record.slice(data)));
        }
    }
    Some(records)
}

fn sub_record(bytes: &[u8], range: Range<usize>) -> Option<(u64, Option<u64>, Range<usize>)> {
    let mut fields = Fields { bytes, at: range.start, end: range.end };
    let (mut key, mut explicit, mut data) = (None, None, None);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Number(index)) => key = Some(index),
            (2, Value::Number(index)) => explicit = Some(index),
            (3, Value::Bytes(range)) => data = Some(range),
            _ => {}
        }
    }
    Some((key?, explicit, data?))
}

enum Value {
    Number(u64),
    /// Where they are in the record.
    Bytes(Range<usize>),
}

/// The fields of a protobuf message, which is `bytes[at..end]`.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl Fields<'_> {
    /// The next field; `Some(None)` at the end; `None` where the bytes are not a message.
    #[expect(clippy::option_option, reason = "the two ends of a message differ, and `?` fits only this shape")]
    fn next(&mut self) -> Option<Option<(u64, Value)>> {
        if self.at == self.end {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some(Some((tag >> 3, value)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (at, byte) in self.bytes[self.at..self.end].iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if *byte < 0x80 {
                self.at += at + 1;
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<Range<usize>> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.end - self.at)?;
        let start = self.at;
        self.at += length;
        Some(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_are_the_producer_librarys() {
        let bytes = encode([("a", &b"x"[..]), ("b", b"yz"), ("a", b"")].into_iter());
        let message = [
            &[0x0a, 1, b'a', 0x0a, 1, b'b'][..],
            &[0x1a, 5, 0x08, 0, 0x1a, 1, b'x'],
            &[0x1a, 6, 0x08, 1, 0x1a, 2, b'y', b'z'],
            &[0x1a, 4, 0x08, 0, 0x1a, 0],
        ]
        .concat();
        let digest: [u8; 16] = Md5::digest(&message).into();
        assert_eq!(bytes, [&MAGIC[..], &message, &digest].concat());
    }

    #[test]
    fn an_explicit_hash_key_decides() {
        let message = [&[0x0a, 1, b'a', 0x12, 2, b'4', b'2', 0x1a, 7, 0x08, 0, 0x10, 0, 0x1a, 1, b'x'][..]].concat();
        let digest: [u8; 16] = Md5::digest(&message).into();
        let aggregate = Bytes::from([&MAGIC[..], &message, &digest].concat());
        assert_eq!(decode(&aggregate, Some(&|hash| hash == 42)).unwrap(), [(0, Bytes::from_static(b"x"))]);
        assert_eq!(decode(&aggregate, Some(&|hash| hash != 42)).unwrap(), []);
    }

    proptest! {
        #[test]
        fn reads_back(bound: u128, records in prop::collection::vec((".{0,20}", prop::collection::vec(any::<u8>(), 0..300)), 1..50)) {
            let bytes = Bytes::from(encode(records.iter().map(|(key, data)| (&key[..], &data[..]))));
            let limit: usize = records.iter().map(|(key, data)| key.len() + data.len() + RECORD_OVERHEAD_BYTES).sum();
            prop_assert!(bytes.len() <= limit + OVERHEAD_BYTES);
            let expected: Vec<_> = records.iter().map(|(_, data)| Bytes::from(data.clone())).enumerate().collect();
            prop_assert_eq!(&decode(&bytes, None).unwrap(), &expected);
            let below = |hash| hash < bound;
            let expected: Vec<_> = expected.into_iter().filter(|(place, _)| below(key_hash(&records[*place].0))).collect();
            prop_assert_eq!(decode(&bytes, Some(&below)).unwrap(), expected);
        }

        #[test]
        fn anything_else_is_plain(mut bytes in prop::collection::vec(any::<u8>(), 0..200), digest: bool) {
            prop_assert_eq!(decode(&bytes.clone().into(), None), None);
            // Right magic and digest around nonsense: never a panic.
            bytes.splice(0..0, MAGIC);
            if digest {
                let digest = Md5::digest(&bytes[4..]);
                bytes.extend_from_slice(&digest);
            }
            let _ = decode(&bytes.into(), Some(&|_| true));
        }
    }
}
