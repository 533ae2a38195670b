//! Entity keys in URLs.
//!
//! The rule for clients: percent-encode the key's text (as it stands in lists, events and sinks) as any path segment, which is what `encodeURIComponent` does. The key's
//! text already escapes commas, slashes and percent signs inside its parts, and people will paste it as it is; that is understood too, wherever it can be told: when the
//! decoded segment does not have as many parts as the entity's key, the segment is taken for parts that were encoded one by one.

use schemas::change::EntityKey;

/// The key that a raw path segment means, for an entity whose key has so many parts. `None` when it cannot be one.
pub(crate) fn from_segment(segment: &str, parts: usize) -> Option<EntityKey> {
    let decoded = decode(segment)?;
    if decoded.is_empty() {
        return None;
    }
    let key = EntityKey::from_text(decoded);
    if key.parts().len() == parts {
        return Some(EntityKey::from_parts(key.parts()));
    }
    let decoded: Vec<String> = segment.split(',').map(decode).collect::<Option<_>>()?;
    (decoded.len() == parts).then(|| EntityKey::from_parts(decoded))
}

/// Percent-decoding (RFC 3986); `None` for bytes that are not UTF-8. A percent sign without two digits stands for itself.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match tail {
            [high, low, after @ ..] if *first == b'%' => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                    continue;
                }
                _ => bytes.push(*first),
            },
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Encoding of one path segment: everything but unreserved characters and the comma.
pub(crate) fn encode(key: &EntityKey) -> String {
    let mut out = String::new();
    for byte in key.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b',' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn encoded_keys_come_back() {
        for parts in [vec!["1"], vec!["7", "3"], vec!["a,b"], vec!["a/b", "50%"], vec!["é ü", "x"], vec!["%2C"], vec!["+&?#"]] {
            let key = EntityKey::from_parts(&parts);
            assert_eq!(from_segment(&encode(&key), parts.len()).unwrap(), key, "{parts:?}");
            // encodeURIComponent also encodes commas.
            assert_eq!(from_segment(&encode(&key).replace(',', "%2C"), parts.len()).unwrap(), key, "{parts:?}");
        }
    }

    #[test]
    fn a_pasted_key_text_is_understood() {
        assert_eq!(from_segment("a%2Cb", 1).unwrap().as_str(), "a%2Cb");
        assert_eq!(from_segment("a%2Fb", 1).unwrap().as_str(), "a%2Fb");
        assert_eq!(from_segment("a%2Cb,c", 2).unwrap().as_str(), "a%2Cb,c");
        assert_eq!(from_segment("7,3", 2).unwrap().as_str(), "7,3");
        assert_eq!(from_segment("50%", 1).unwrap().as_str(), "50%25");
        assert!(from_segment("7,3", 3).is_none());
        assert!(from_segment("%FF", 1).is_none());
    }
}
