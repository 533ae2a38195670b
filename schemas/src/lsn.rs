//! Log sequence numbers and positions: the source's total order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A SQL Server log sequence number: ten bytes, big-endian, compared bytewise. Written `00000027:00000ac0:0002` (as Debezium and SQL Server's tools do).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn([u8; 10]);

/// Text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an LSN: expected eight, eight and four hexadecimal digits with colons (00000027:00000ac0:0002), or 0x and twenty digits"
)]
pub struct ParseLsnError {
    pub text: String,
}

impl Lsn {
    /// Before every real LSN. SQL Server answers it for "unknown", never for a place in the log.
    pub const ZERO: Self = Self([0; 10]);
    pub const MAX: Self = Self([0xff; 10]);

    pub const fn from_bytes(bytes: [u8; 10]) -> Self {
        Self(bytes)
    }

    /// `None` unless there are exactly ten bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub const fn as_bytes(&self) -> &[u8; 10] {
        &self.0
    }

    pub fn is_zero(&self) -> bool {
        self.0 == [0; 10]
    }

    /// The next LSN in byte order, as `sys.fn_cdc_increment_lsn`; `MAX` stays.
    pub fn next(self) -> Self {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            let (sum, carry) = byte.overflowing_add(1);
            *byte = sum;
            if !carry {
                return Self(bytes);
            }
        }
        Self::MAX
    }

    /// The two as numbers, added; `MAX` where that is more than an LSN holds. For the version of several sources.
    pub fn plus(self, other: Self) -> Self {
        let (mut bytes, mut carry) = (self.0, 0);
        for (byte, more) in bytes.iter_mut().zip(other.0).rev() {
            let sum = u16::from(*byte) + u16::from(more) + carry;
            (*byte, carry) = (sum as u8, sum >> 8);
        }
        if carry == 0 { Self(bytes) } else { Self::MAX }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every change that is sent anywhere carries one: the formatting machinery, byte by byte, takes five times as long.
        let mut text = *b"00000000:00000000:0000";
        for (byte, at) in self.0.into_iter().zip(PAIRS) {
            text[at] = DIGITS[usize::from(byte >> 4)];
            text[at + 1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError { text: text.to_owned() };
        let text = text.as_bytes();
        let pairs: [usize; 10] = match text {
            [b'0', b'x' | b'X', ..] if text.len() == 22 => std::array::from_fn(|index| 2 + 2 * index),
            _ if text.len() == 22 && text[8] == b':' && text[17] == b':' => PAIRS,
            _ => return Err(error()),
        };
        let mut bytes = [0u8; 10];
        let mut wrong = 0;
        for (byte, at) in bytes.iter_mut().zip(pairs) {
            let (high, low) = (NIBBLES[usize::from(text[at])], NIBBLES[usize::from(text[at + 1])]);
            wrong |= (high | low) & 0xf0;
            *byte = high << 4 | low & 15;
        }
        if wrong == 0 { Ok(Self(bytes)) } else { Err(error()) }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Where the digits of each byte begin.
const PAIRS: [usize; 10] = [0, 2, 4, 6, 9, 11, 13, 15, 18, 20];

/// The value of a hexadecimal digit; 255 for what is none.
const NIBBLES: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[DIGITS[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where a change stands in its source's total order: (commit LSN, command id, seqval, operation), compared in this order.
///
/// Microsoft orders the changes of a transaction by command id, not by seqval (a deferred update's rows share one), so the command id comes first. With
/// the table, (commit LSN, seqval, operation) identifies the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    pub commit_lsn: Lsn,
    pub command_id: i32,
    pub seqval: Lsn,
    /// `__$operation`: 1 delete, 2 insert, 4 update (3, the before image, has been joined to its 4). 0 for a snapshot row.
    pub operation: u8,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_round_trips_and_keeps_order(a: [u8; 10], b: [u8; 10]) {
            let (a, b) = (Lsn::from_bytes(a), Lsn::from_bytes(b));
            prop_assert_eq!(a.to_string().parse::<Lsn>().unwrap(), a);
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
            let plain = format!("0x{}", hex::encode(a.as_bytes()));
            prop_assert_eq!(plain.parse::<Lsn>().unwrap(), a);
        }

        #[test]
        fn next_is_the_least_greater(a: [u8; 10]) {
            let a = Lsn::from_bytes(a);
            prop_assume!(a != Lsn::MAX);
            prop_assert!(a.next() > a);
            let number = |lsn: Lsn| lsn.as_bytes().iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
            prop_assert_eq!(number(a.next()), number(a) + 1);
        }

        #[test]
        fn a_sum_grows_with_each_of_its_parts(a: [u8; 10], b: [u8; 10]) {
            let (a, b) = (Lsn::from_bytes(a), Lsn::from_bytes(b));
            let number = |lsn: Lsn| lsn.as_bytes().iter().fold(0u128, |n, byte| n << 8 | u128::from(*byte));
            prop_assert_eq!(number(a.plus(b)), (number(a) + number(b)).min(number(Lsn::MAX)));
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,30}") {
            let _ = text.parse::<Lsn>();
        }
    }
}
