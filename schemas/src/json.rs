//! Pieces of JSON text, appended without allocating and without the formatting machinery: events are mostly these, and an importer writes millions of them.
//!
//! What is written is held to `serde_json` and to `format!` by property tests.

use crate::lsn::Lsn;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// A bit in the lowest byte of a little-endian word that cannot stand for itself within a JSON string: a quote, a backslash or a control character. Higher bytes may be
/// marked wrongly (a borrow), the lowest marked one never is.
const fn marks(word: u64) -> u64 {
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    ((quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash) | controls) & HIGHS
}

/// How many bytes at the start can stand for themselves within a JSON string.
pub(crate) fn plain_prefix(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk::<8>() {
        let marks = marks(u64::from_le_bytes(*chunk));
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + bytes[at..].iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\').count()
}

/// Appends a JSON string, escaped as serde_json does.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, special) = rest.split_at(plain_prefix(rest));
        out.extend_from_slice(plain);
        let Some((&byte, after)) = special.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&hex(control, b"0123456789abcdef"));
            }
        }
        rest = after;
    }
    out.push(b'"');
}

const fn hex(byte: u8, digits: &[u8; 16]) -> [u8; 2] {
    [digits[(byte >> 4) as usize], digits[(byte & 15) as usize]]
}

/// Appends a whole number.
pub(crate) fn write_integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `mantissa / 10^scale` with all digits of the scale, without quotes.
pub(crate) fn write_decimal(out: &mut Vec<u8>, mantissa: i128, scale: u8) {
    if mantissa < 0 {
        out.push(b'-');
    }
    let mut buffer = itoa::Buffer::new();
    let magnitude = mantissa.unsigned_abs();
    // Numbers of 64 bits are written several times as fast.
    let digits = match u64::try_from(magnitude) {
        Ok(small) => buffer.format(small),
        Err(_) => buffer.format(magnitude),
    };
    let scale = usize::from(scale);
    let whole = digits.len().saturating_sub(scale);
    out.extend_from_slice(if whole == 0 { b"0" } else { &digits.as_bytes()[..whole] });
    if scale > 0 {
        out.push(b'.');
        out.resize(out.len() + scale.saturating_sub(digits.len()), b'0');
        out.extend_from_slice(&digits.as_bytes()[whole..]);
    }
}

/// `00` to `99`; of a greater number its last two digits.
const fn two(number: u32) -> [u8; 2] {
    [b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8]
}

/// Appends `2024-02-29`; `days` are counted from 0001-01-01.
pub(crate) fn write_date(out: &mut Vec<u8>, days: u32) {
    let (year, month, day) = crate::value::civil(days);
    if year > 9999 {
        // No type of SQL Server holds it.
        write_integer(out, year / 100);
    } else {
        out.extend_from_slice(&two(year / 100));
    }
    let ([y, z], [m, n], [d, e]) = (two(year), two(month), two(day));
    out.extend_from_slice(&[y, z, b'-', m, n, b'-', d, e]);
}

/// 100-nanosecond ticks in a second.
const TICKS_PER_SECOND: u64 = 10_000_000;

/// Appends `23:59:59.999`; `ticks` are of 100 nanoseconds since midnight, `scale` digits follow the point.
pub(crate) fn write_time(out: &mut Vec<u8>, ticks: u64, scale: u8) {
    let seconds = u32::try_from(ticks / TICKS_PER_SECOND).unwrap_or(u32::MAX);
    let ([h, i], [m, n], [s, t]) = (two(seconds / 3600), two(seconds / 60 % 60), two(seconds % 60));
    out.extend_from_slice(&[h, i, b':', m, n, b':', s, t]);
    if scale > 0 {
        let mut rest = u32::try_from(ticks % TICKS_PER_SECOND).unwrap_or(0);
        let mut digits = *b".0000000";
        for digit in digits[1..].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits[..=usize::from(scale.min(7))]);
    }
}

/// Appends `+02:00`.
pub(crate) fn write_offset(out: &mut Vec<u8>, minutes: i16) {
    let offset = u32::from(minutes.unsigned_abs());
    let ([h, i], [m, n]) = (two(offset / 60), two(offset % 60));
    out.extend_from_slice(&[if minutes < 0 { b'-' } else { b'+' }, h, i, b':', m, n]);
}

/// Appends the text form of a uniqueidentifier, in upper case.
pub(crate) fn write_uuid(out: &mut Vec<u8>, bytes: &[u8; 16]) {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at..at + 2].copy_from_slice(&hex(*byte, b"0123456789ABCDEF"));
        at += 2;
    }
    out.extend_from_slice(&text);
}

/// Appends an LSN as its text form has it, without quotes.
pub(crate) fn write_lsn(out: &mut Vec<u8>, lsn: Lsn) {
    let mut text = [b':'; 22];
    let mut at = 0;
    for (index, byte) in lsn.as_bytes().iter().enumerate() {
        if matches!(index, 4 | 8) {
            at += 1;
        }
        text[at..at + 2].copy_from_slice(&hex(*byte, b"0123456789abcdef"));
        at += 2;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = b"before ".to_vec();
        write(&mut out);
        String::from_utf8(out).unwrap().split_off(7)
    }

    proptest! {
        #[test]
        fn strings_are_escaped_as_serde_json_does(text: String, plain in "[ -~]{0,40}", at in any::<prop::sample::Index>(), byte in 0u8..0x80) {
            prop_assert_eq!(written(|out| write_string(out, &text)), serde_json::to_string(&text).unwrap());
            // A special character at every place of a word.
            let mut bytes = plain.into_bytes();
            bytes.insert(at.index(bytes.len() + 1), byte);
            let text = String::from_utf8(bytes).unwrap();
            prop_assert_eq!(written(|out| write_string(out, &text)), serde_json::to_string(&text).unwrap());
        }

        #[test]
        fn decimals_have_the_digits_of_their_scale(mantissa in prop_oneof![any::<i128>(), (-1000i128..1000)], scale in 0u8..=38) {
            let text = written(|out| write_decimal(out, mantissa, scale));
            let scale = usize::from(scale);
            let digits = format!("{:0>width$}", mantissa.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            let sign = if mantissa < 0 { "-" } else { "" };
            let expected = if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") };
            prop_assert_eq!(text, expected);
        }

        #[test]
        fn times_are_as_formatted(days in 0u32..3_652_059, ticks in 0u64..864_000_000_000, scale in 0u8..=7, offset in -840i16..=840) {
            let (year, month, day) = crate::value::civil(days);
            prop_assert_eq!(written(|out| write_date(out, days)), format!("{year:04}-{month:02}-{day:02}"));
            let seconds = ticks / TICKS_PER_SECOND;
            let mut time = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
            if scale > 0 {
                let fraction = format!("{:07}", ticks % TICKS_PER_SECOND);
                time = format!("{time}.{}", &fraction[..usize::from(scale)]);
            }
            prop_assert_eq!(written(|out| write_time(out, ticks, scale)), time);
            let sign = if offset < 0 { '-' } else { '+' };
            let minutes = offset.unsigned_abs();
            prop_assert_eq!(written(|out| write_offset(out, offset)), format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
        }

        #[test]
        fn lsns_and_identifiers_are_as_formatted(lsn: [u8; 10], uuid: [u8; 16], number: i64) {
            let lsn = Lsn::from_bytes(lsn);
            prop_assert_eq!(written(|out| write_lsn(out, lsn)), lsn.to_string());
            let digits = hex::encode_upper(uuid);
            let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
            prop_assert_eq!(written(|out| write_uuid(out, &uuid)), parts.join("-"));
            prop_assert_eq!(written(|out| write_integer(out, number)), number.to_string());
        }

        /// Whatever a value holds, also what no type of SQL Server does, it is one value of JSON.
        #[test]
        fn anything_is_json(days: u32, ticks: u64, scale: u8, offset_minutes: i16) {
            for value in [crate::value::Value::DateTimeOffset { days: days % (u32::MAX - 306), ticks, scale, offset_minutes }, crate::value::Value::Time { ticks, scale }] {
                prop_assert!(serde_json::from_str::<String>(&written(|out| value.write_json(out))).is_ok());
            }
        }
    }
}
