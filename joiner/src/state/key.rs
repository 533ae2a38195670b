//! Typed, memcomparable encoding of key parts: the bytes of two values compare as the values do, equal values have equal bytes, and no encoding is the beginning of
//! another, so that parts can stand one after another.
//!
//! | key type | bytes |
//! |---|---|
//! | NULL of any type | `00` |
//! | bool | `01`, `00` or `01` |
//! | int | `01`, 8 bytes big-endian with the sign bit turned |
//! | float | `01`, 8 bytes of the double, sign bit turned, all bits turned when negative |
//! | decimal | `01` negative, `02` zero, `03` positive; then the count of whole digits + 128, the digits without zeros at either end in ASCII, `00`; all turned when negative |
//! | text, folded text, uuid, time | `01`, the normalised text with `00` as `00 FF`, then `00 00` |
//! | instant | the same with the text in UTC, without its `Z`, which would come behind the fraction's point |
//! | binary | the same with the bytes |
//!
//! The text of an entity key is decoded from these bytes, so keys that are equal in the database have one text, and a tombstone needs no row.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemas::parse::string_value;
use schemas::plan::KeyType;

/// A value that cannot be part of a key of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value does not fit the column's type {0:?}")]
pub(crate) struct KeyError(pub(crate) KeyType);

const NULL: u8 = 0;
const VALUE: u8 = 1;

/// Appends the key bytes of a JSON fragment; an empty one is NULL. Answers whether it is a value, not NULL.
pub(crate) fn encode(fragment: &[u8], key_type: KeyType, out: &mut Vec<u8>) -> Result<bool, KeyError> {
    if fragment.is_empty() || fragment == b"null" {
        out.push(NULL);
        return Ok(false);
    }
    let error = KeyError(key_type);
    match key_type {
        KeyType::Int => {
            let number = parse_i64(fragment).ok_or(error)?;
            put_i64(number, out);
        }
        KeyType::Bool => match fragment {
            b"true" | b"1" => out.extend_from_slice(&[VALUE, 1]),
            b"false" | b"0" => out.extend_from_slice(&[VALUE, 0]),
            _ => return Err(error),
        },
        KeyType::Text => match plain(fragment) {
            Some(inner) => put_bytes(trim(inner), out),
            None => put_bytes(trim(string_value(fragment).ok_or(error)?.as_bytes()), out),
        },
        KeyType::Decimal | KeyType::Float => match plain(fragment) {
            Some(inner) => encode_text(std::str::from_utf8(inner).map_err(|_| error)?, key_type, out)?,
            None => encode_text(std::str::from_utf8(fragment).map_err(|_| error)?, key_type, out)?,
        },
        KeyType::FoldedText | KeyType::Uuid | KeyType::Binary | KeyType::Time | KeyType::Instant => {
            encode_text(&string_value(fragment).ok_or(error)?, key_type, out)?;
        }
    }
    Ok(true)
}

/// Appends the key bytes of a value given as text, as in an entity key.
pub(crate) fn encode_text(text: &str, key_type: KeyType, out: &mut Vec<u8>) -> Result<(), KeyError> {
    let error = KeyError(key_type);
    match key_type {
        KeyType::Int => put_i64(text.parse().map_err(|_| error)?, out),
        KeyType::Bool => {
            let value = key_type.normalize(text).ok_or(error)?;
            out.extend_from_slice(&[VALUE, u8::from(value == "true")]);
        }
        KeyType::Float => {
            let number: f64 = text.parse().map_err(|_| error)?;
            let bits = if number == 0.0 { 0 } else { number.to_bits() };
            let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            out.push(VALUE);
            out.extend_from_slice(&ordered.to_be_bytes());
        }
        KeyType::Decimal => put_decimal(&key_type.normalize(text).ok_or(error)?, out).ok_or(error)?,
        KeyType::Binary => put_bytes(&BASE64.decode(text).map_err(|_| error)?, out),
        KeyType::Text => put_bytes(trim(text.as_bytes()), out),
        KeyType::FoldedText | KeyType::Uuid | KeyType::Time => put_bytes(key_type.normalize(text).ok_or(error)?.as_bytes(), out),
        KeyType::Instant => put_bytes(key_type.normalize(text).ok_or(error)?.trim_end_matches('Z').as_bytes(), out),
    }
    Ok(())
}

/// The text of the first part, and the rest. `None` when the bytes are no such key, or NULL.
pub(crate) fn decode(bytes: &[u8], key_type: KeyType) -> Option<(String, &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    if *tag == NULL {
        return None;
    }
    match key_type {
        KeyType::Bool => rest.split_first().map(|(value, rest)| (if *value == 0 { "false" } else { "true" }.to_owned(), rest)),
        KeyType::Int => {
            let (number, rest) = rest.split_first_chunk::<8>()?;
            Some(((u64::from_be_bytes(*number) ^ 1 << 63).cast_signed().to_string(), rest))
        }
        KeyType::Float => {
            let (number, rest) = rest.split_first_chunk::<8>()?;
            let ordered = u64::from_be_bytes(*number);
            let bits = if ordered >> 63 == 1 { ordered & !(1 << 63) } else { !ordered };
            Some((key_type.normalize(&f64::from_bits(bits).to_string())?, rest))
        }
        KeyType::Decimal => take_decimal(*tag, rest),
        KeyType::Binary => take_bytes(rest).map(|(bytes, rest)| (BASE64.encode(bytes), rest)),
        KeyType::Text | KeyType::FoldedText | KeyType::Uuid | KeyType::Time => {
            let (bytes, rest) = take_bytes(rest)?;
            Some((String::from_utf8(bytes).ok()?, rest))
        }
        KeyType::Instant => {
            let (bytes, rest) = take_bytes(rest)?;
            Some((String::from_utf8(bytes).ok()? + "Z", rest))
        }
    }
}

/// What follows the first part. `None` when the bytes are no such key, or NULL.
pub(crate) fn skip(bytes: &[u8], key_type: KeyType) -> Option<&[u8]> {
    match (key_type, bytes.split_first()?) {
        (KeyType::Int | KeyType::Float, (&VALUE, rest)) => rest.get(8..),
        _ => decode(bytes, key_type).map(|(_, rest)| rest),
    }
}

/// The text between the quotes of a JSON string without escapes.
fn plain(fragment: &[u8]) -> Option<&[u8]> {
    let inner = fragment.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    memchr::memchr(b'\\', inner).is_none().then_some(inner)
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [head @ .., b' '] = text {
        text = head;
    }
    text
}

fn parse_i64(fragment: &[u8]) -> Option<i64> {
    let (negative, digits) = match fragment {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut number: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        // Counted downwards, because the least number has no positive counterpart.
        number = number.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative { Some(number) } else { number.checked_neg() }
}

fn put_i64(number: i64, out: &mut Vec<u8>) {
    out.push(VALUE);
    out.extend_from_slice(&(number.cast_unsigned() ^ 1 << 63).to_be_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(VALUE);
    if memchr::memchr(0, bytes).is_none() {
        out.extend_from_slice(bytes);
    } else {
        for &byte in bytes {
            out.push(byte);
            if byte == 0 {
                out.push(0xff);
            }
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn take_bytes(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    let mut rest = bytes;
    loop {
        let zero = memchr::memchr(0, rest)?;
        out.extend_from_slice(&rest[..zero]);
        let mark = *rest.get(zero + 1)?;
        rest = &rest[zero + 2..];
        if mark == 0 {
            return Some((out, rest));
        }
        out.push(0);
    }
}

/// `text` is normalised: no zeros at either end, `0` for zero.
fn put_decimal(text: &str, out: &mut Vec<u8>) -> Option<()> {
    if text == "0" {
        out.push(2);
        return Some(());
    }
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = if whole == "0" { "" } else { whole };
    let leading = if whole.is_empty() { fraction.len() - fraction.trim_start_matches('0').len() } else { 0 };
    let exponent = if whole.is_empty() { -i32::try_from(leading).ok()? } else { i32::try_from(whole.len()).ok()? };
    let exponent = u8::try_from(exponent + 128).ok()?;
    out.push(if negative { 1 } else { 3 });
    let start = out.len();
    out.push(exponent);
    let digits = [whole.as_bytes(), &fraction.as_bytes()[leading..]].concat();
    let end = digits.iter().rposition(|&digit| digit != b'0').map_or(0, |last| last + 1);
    out.extend_from_slice(&digits[..end]);
    out.push(0);
    if negative {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
    Some(())
}

fn take_decimal(tag: u8, bytes: &[u8]) -> Option<(String, &[u8])> {
    if tag == 2 {
        return Some(("0".to_owned(), bytes));
    }
    let turn = if tag == 1 { 0xff } else { 0 };
    let end = memchr::memchr(turn, bytes.get(1..)?)? + 1;
    let exponent = i32::from(bytes[0] ^ turn) - 128;
    let digit = |byte: &u8| Some(char::from(byte ^ turn)).filter(char::is_ascii_digit);
    let digits = bytes[1..end].iter().map(digit).collect::<Option<String>>()?;
    let mut text = String::from(if tag == 1 { "-" } else { "" });
    match usize::try_from(exponent) {
        Ok(whole) if whole > 0 => {
            let padded = format!("{digits:0<whole$}");
            let (whole, fraction) = padded.split_at(whole);
            text.push_str(whole);
            if !fraction.is_empty() {
                text.push('.');
                text.push_str(fraction);
            }
        }
        _ => {
            text.push_str("0.");
            text.extend(std::iter::repeat_n('0', exponent.unsigned_abs() as usize));
            text.push_str(&digits);
        }
    }
    Some((text, &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn bytes(fragment: &str, key_type: KeyType) -> Vec<u8> {
        let mut out = Vec::new();
        encode(fragment.as_bytes(), key_type, &mut out).unwrap();
        out
    }

    fn quoted(text: &str) -> String {
        serde_json::to_string(text).unwrap()
    }

    /// Compares two decimals as big integers of one scale.
    fn compare(a: (i64, u32), b: (i64, u32)) -> Ordering {
        (i128::from(a.0) * 10i128.pow(b.1)).cmp(&(i128::from(b.0) * 10i128.pow(a.1)))
    }

    fn decimal(mantissa: i64, scale: u32) -> String {
        let digits = format!("{:0>width$}", mantissa.unsigned_abs(), width = scale as usize + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
        let sign = if mantissa < 0 { "-" } else { "" };
        if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
    }

    proptest! {
        #[test]
        fn whole_numbers_keep_order(a: i64, b: i64) {
            prop_assert_eq!(bytes(&a.to_string(), KeyType::Int).cmp(&bytes(&b.to_string(), KeyType::Int)), a.cmp(&b));
            let encoded = bytes(&a.to_string(), KeyType::Int);
            prop_assert_eq!(decode(&encoded, KeyType::Int).unwrap(), (a.to_string(), &[][..]));
        }

        #[test]
        fn floats_keep_order(a in -1e30..1e30f64, b in -1e30..1e30f64) {
            prop_assert_eq!(Some(bytes(&a.to_string(), KeyType::Float).cmp(&bytes(&b.to_string(), KeyType::Float))), a.partial_cmp(&b));
            prop_assert_eq!(decode(&bytes(&a.to_string(), KeyType::Float), KeyType::Float).unwrap().0.parse::<f64>().unwrap(), a);
        }

        #[test]
        fn decimals_keep_order(a in any::<i64>(), b in any::<i64>(), s in 0..18u32, t in 0..18u32, near in -3i64..3, small: bool) {
            let b = if small { a.saturating_add(near) } else { b };
            let t = if small { s } else { t };
            let (x, y) = (bytes(&quoted(&decimal(a, s)), KeyType::Decimal), bytes(&quoted(&decimal(b, t)), KeyType::Decimal));
            prop_assert_eq!(x.cmp(&y), compare((a, s), (b, t)));
            let (text, rest) = decode(&x, KeyType::Decimal).unwrap();
            prop_assert_eq!(rest.len(), 0);
            prop_assert_eq!(KeyType::Decimal.normalize(&decimal(a, s)), Some(text));
        }

        #[test]
        fn text_keeps_order_and_parts_do_not_run_together(a in "[\\x00a-c é]{0,4}", b in "[\\x00a-c é]{0,4}", c in "[\\x00a-c]{0,3}", d in "[\\x00a-c]{0,3}") {
            let pair = |x: &str, y: &str| [bytes(&quoted(x), KeyType::Text), bytes(&quoted(y), KeyType::Text)].concat();
            let trimmed = |x: &str, y: &str| (x.trim_end_matches(' ').to_owned(), y.to_owned());
            prop_assert_eq!(pair(&a, &c).cmp(&pair(&b, &d)), trimmed(&a, &c).cmp(&trimmed(&b, &d)));
            let encoded = pair(&a, &c);
            let (first, rest) = decode(&encoded, KeyType::Text).unwrap();
            prop_assert_eq!((first, decode(rest, KeyType::Text).unwrap().0), trimmed(&a, &c));
        }

        #[test]
        fn binary_keeps_order(a: Vec<u8>, b: Vec<u8>) {
            let encode = |bytes: &[u8]| self::bytes(&quoted(&BASE64.encode(bytes)), KeyType::Binary);
            prop_assert_eq!(encode(&a).cmp(&encode(&b)), a.cmp(&b));
            prop_assert_eq!(decode(&encode(&a), KeyType::Binary).unwrap().0, BASE64.encode(&a));
        }

        #[test]
        fn no_fragment_panics(fragment in prop::collection::vec(any::<u8>(), 0..12), text in "[-0-9.eE\"]{0,8}") {
            for key_type in [KeyType::Bool, KeyType::Int, KeyType::Decimal, KeyType::Float, KeyType::Text, KeyType::FoldedText, KeyType::Uuid, KeyType::Binary, KeyType::Time, KeyType::Instant] {
                let _ = encode(&fragment, key_type, &mut Vec::new());
                let _ = encode(text.as_bytes(), key_type, &mut Vec::new());
                let _ = decode(&fragment, key_type);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_digits_are_no_decimal() {
        assert_eq!(decode(&[3, 129, b'7', 0], KeyType::Decimal).unwrap().0, "7");
        assert_eq!(decode(&[3, 129, 0x80, 0], KeyType::Decimal), None);
    }

    #[test]
    fn what_the_database_takes_for_equal_is_equal() {
        assert_eq!(bytes("\"Ab  \"", KeyType::FoldedText), bytes("\"aB\"", KeyType::FoldedText));
        assert_ne!(bytes("\"Ab\"", KeyType::Text), bytes("\"aB\"", KeyType::Text));
        assert_eq!(bytes("\"1.50\"", KeyType::Decimal), bytes("1.5", KeyType::Decimal));
        assert_eq!(bytes("7", KeyType::Decimal), bytes("\"7.00\"", KeyType::Decimal));
        assert_eq!(bytes("\"\\u0061\"", KeyType::Text), bytes("\"a\"", KeyType::Text));
        let at = |text: &str| bytes(text, KeyType::Instant);
        assert_eq!(at("\"2024-03-01T01:30:00.50+02:00\""), at("\"2024-02-29T23:30:00.5Z\""));
        assert!(at("\"2024-03-01T01:30:00+02:00\"") < at("\"2024-02-29T23:30:00.1Z\""));
        assert_eq!(decode(&at("\"2024-03-01T01:30:00+02:00\""), KeyType::Instant).unwrap().0, "2024-02-29T23:30:00Z");
        let least = i64::MIN.to_string();
        assert_eq!(decode(&bytes(&least, KeyType::Int), KeyType::Int).unwrap().0, least);
        assert!(encode(b"9223372036854775808", KeyType::Int, &mut Vec::new()).is_err());
        assert!(encode(b"1.5", KeyType::Int, &mut Vec::new()).is_err());
    }
}
