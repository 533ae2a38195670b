//! hierarchyid: a path of numbers, packed into bits so that the bytes sort as the paths do.
//!
//! Each number begins with a prefix that says how many bits follow and where its range begins (`PATTERNS`). Its last bit (`T`) tells whether the level ends with it: `/`, or
//! `.` and another number of the same level. Before a dot, the number is stored one greater, which puts `/1.1/` between `/1/` and `/2/`. Zero bits fill the last
//! byte; no pattern begins with them alone.

use std::fmt::Write;

/// The least number of a pattern, and its bits from the first: `0` and `1` are fixed, `x` is a bit of the number, `T` ends the level.
const PATTERNS: [(i64, &str); 13] = [
    (0, "01xxT"),
    (4, "100xxT"),
    (8, "101xxxT"),
    (16, "110xx0x1xxxT"),
    (80, "1110xxx0xxx0x1xxxT"),
    (1104, "11110xxxxx0xxx0x1xxxT"),
    (5200, "111110xxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (4_294_972_496, "111111xxxxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (-8, "00111xxxT"),
    (-72, "0010xx0x1xxxT"),
    (-4168, "000110xxxxx0xxx0x1xxxT"),
    (-4_294_971_464, "000101xxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
    (-281_479_271_682_120, "000100xxxxxxxxxxxxxx0xxxxxxxxxxxxxxxxxxxxx0xxxxxx0xxx0x1xxxT"),
];

/// The path as `ToString()` shows it; `None` if the bytes are none.
pub fn path(bytes: &[u8]) -> Option<String> {
    let mut path = String::from("/");
    let mut at = 0;
    let bits = bytes.len() * 8;
    while !is_padding(bytes, at) {
        let (number, ends, length) = PATTERNS.iter().find_map(|pattern| number(bytes, at, pattern))?;
        at += length;
        let _ = write!(path, "{number}{}", if ends { '/' } else { '.' });
    }
    // A number before a dot is followed by another, and the padding is shorter than a byte.
    (!path.ends_with('.') && bits - at < 8).then_some(path)
}

fn bit(bytes: &[u8], at: usize) -> Option<bool> {
    bytes.get(at / 8).map(|byte| byte >> (7 - at % 8) & 1 == 1)
}

fn is_padding(bytes: &[u8], at: usize) -> bool {
    (at..bytes.len() * 8).all(|at| bit(bytes, at) == Some(false))
}

/// The number that stands at a bit if it is of this pattern, whether its level ends with it, and its length in bits.
fn number(bytes: &[u8], at: usize, (least, pattern): &(i64, &str)) -> Option<(i64, bool, usize)> {
    let (mut value, mut ends) = (0i64, false);
    for (offset, kind) in pattern.bytes().enumerate() {
        let bit = bit(bytes, at + offset)?;
        match kind {
            b'x' => value = value << 1 | i64::from(bit),
            b'T' => ends = bit,
            fixed if (fixed == b'1') != bit => return None,
            _ => {}
        }
    }
    Some((least + value - i64::from(!ends), ends, pattern.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_sql_server_stores_is_read_as_it_shows_it() {
        let cases: [(&[u8], &str); 11] = [
            (&[], "/"),
            (&[0x58], "/1/"),
            (&[0x68], "/2/"),
            (&[0x5A, 0xC0], "/1/1/"),
            (&[0x5B, 0x40], "/1/2/"),
            (&[0x5A, 0xD6], "/1/1/1/"),
            (&[0x62, 0xC0], "/1.1/"),
            (&[0x84], "/4/"),
            (&[0xA2], "/8/"),
            (&[0xC1, 0x10], "/16/"),
            (&[0x3F, 0x80], "/-1/"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(path(bytes).as_deref(), Some(expected), "{bytes:02x?}");
        }
        assert_eq!(path(&[0x60]), None, "a level that does not end");
        assert_eq!(path(&[0x58, 0x00]), None, "more padding than a byte");
        assert_eq!(path(&[0x08]), None);
    }

    /// Packs a path as SQL Server does.
    fn pack(levels: &[Vec<i64>]) -> Vec<u8> {
        let mut bits = Vec::new();
        for level in levels {
            for (index, number) in level.iter().enumerate() {
                let ends = index + 1 == level.len();
                let stored = number + i64::from(!ends);
                let mut ranges = PATTERNS;
                ranges.sort_unstable();
                let (least, pattern) = *ranges.iter().rev().find(|(least, _)| *least <= stored).unwrap();
                let width = pattern.bytes().filter(|kind| *kind == b'x').count();
                let (value, mut left) = (stored - least, width);
                assert!(value >> width == 0, "{stored}");
                bits.extend(pattern.bytes().map(|kind| match kind {
                    b'x' => {
                        left -= 1;
                        value >> left & 1 == 1
                    }
                    b'T' => ends,
                    fixed => fixed == b'1',
                }));
            }
        }
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |all, (at, bit)| all | u8::from(*bit) << (7 - at))).collect()
    }

    fn any_number() -> impl Strategy<Value = i64> {
        prop_oneof![-100i64..100, -5000i64..6000, -281_479_271_682_120i64..281_479_271_683_150]
    }

    proptest! {
        #[test]
        fn any_path_is_read_back(levels in prop::collection::vec(prop::collection::vec(any_number(), 1..4), 0..6)) {
            let text: String = levels.iter().map(|level| level.iter().map(i64::to_string).collect::<Vec<_>>().join(".") + "/").collect();
            prop_assert_eq!(path(&pack(&levels)), Some(format!("/{text}")));
        }

        /// The bytes sort as the paths do, so that the patterns' order is right too.
        #[test]
        fn bytes_sort_as_paths_do(a in prop::collection::vec(any_number(), 1..4), b in prop::collection::vec(any_number(), 1..4)) {
            let levels = |path: &[i64]| path.iter().map(|number| vec![*number]).collect::<Vec<_>>();
            prop_assert_eq!(pack(&levels(&a)).cmp(&pack(&levels(&b))), a.cmp(&b));
        }

        #[test]
        fn any_bytes_are_a_path_or_none(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = path(&bytes);
        }
    }
}
