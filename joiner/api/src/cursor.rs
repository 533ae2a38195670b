//! List cursors: opaque to clients. Base64 (URL alphabet) of a version byte, a hash of what was asked, and the last key: a cursor is refused with other filters than its own.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::change::EntityKey;
use sinks::Filter;

const VERSION: u8 = 1;
const HASH_BYTES: usize = 8;

/// A hash of the question; it guards against mistakes, not against malice, and is the same in every process (FNV-1a).
pub(crate) fn question(entity: &str, filters: &[Filter]) -> u64 {
    let text = format!("{entity}\n{filters:?}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(crate) fn encode(question: u64, last: &EntityKey) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&question.to_be_bytes());
    bytes.extend_from_slice(last.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The key to go on after, or what is wrong with the cursor.
pub(crate) fn decode(question: u64, cursor: &str) -> Result<EntityKey, &'static str> {
    const MALFORMED: &str = "is not a cursor of this server; take it from the member \"next\" of the page before";
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| MALFORMED)?;
    let (version, rest) = bytes.split_first().ok_or(MALFORMED)?;
    let (hash, key) = rest.split_at_checked(HASH_BYTES).ok_or(MALFORMED)?;
    if *version != VERSION {
        return Err(MALFORMED);
    }
    if hash != question.to_be_bytes() {
        return Err("belongs to another entity or to other filters");
    }
    String::from_utf8(key.to_vec()).map(EntityKey::from_text).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn cursors_round_trip_and_belong_to_their_question() {
        let (key, asked) = (EntityKey::from_parts(["a,b", "ü"]), question("order", &[]));
        let cursor = encode(asked, &key);
        assert_eq!(decode(asked, &cursor).unwrap(), key);
        assert!(decode(question("customer", &[]), &cursor).unwrap_err().contains("another"));
        for cursor in ["", "AA", "!!", "AQ"] {
            assert!(decode(asked, cursor).is_err());
        }
    }
}
