//! What no target takes, found before it is sent: so that one poisonous change never fails its whole batch.

use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::table::{Length, SqlType};

use crate::Rejected;

/// What the widest index of SQL Server can hold: 1,700 bytes of `nvarchar`, 850 characters of three bytes in UTF-8. Index entries of PostgreSQL end at 2,704 bytes, in which the entity's name has to be as well.
pub(crate) const KEY_LIMIT_BYTES: usize = 2_560;

/// Why no target would take this change, if so.
pub(crate) fn refusal(change: &EntityChange) -> Option<String> {
    quick_refusal(change).or_else(|| {
        let document = change.document.as_deref()?;
        let error = schemas::parse::validate(document).err()?;
        Some(format!("the document is not JSON: {error}"))
    })
}

/// The same without reading the document: for a target that reads it itself and refuses what is no JSON.
pub(crate) fn quick_refusal(change: &EntityChange) -> Option<String> {
    let key = change.key.as_str();
    if key.is_empty() {
        return Some("the entity key is empty".to_owned());
    }
    if let Some(reason) = too_long(key, KEY_LIMIT_BYTES) {
        return Some(reason);
    }
    if key.contains('\0') {
        return Some("the entity key holds a NUL character, which targets do not store".to_owned());
    }
    let document = change.document.as_deref()?;
    (!document.trim_start().starts_with('{')).then(|| "the document is not a JSON object".to_owned())
}

/// That a key is longer than a target can index, if so.
pub(crate) fn too_long(key: &str, limit: usize) -> Option<String> {
    (key.len() > limit)
        .then(|| format!("the entity key is {} bytes long, more than the {limit} that the target can index", key.len()))
}

/// How long the key of an entity may become, in bytes, by the types of its columns. A character of text takes up to three: in UTF-8, or percent-encoded. `None`: there is no telling.
pub fn longest_key_bytes(info: &EntityInfo) -> Option<usize> {
    let parts = info.key.iter().map(|(_, sql_type)| {
        Some(match sql_type {
            SqlType::Char(length)
            | SqlType::NChar(length)
            | SqlType::VarChar(Length::Limited(length))
            | SqlType::NVarChar(Length::Limited(length)) => 3 * usize::from(*length),
            // In base64, which has slashes.
            SqlType::Binary(length) | SqlType::VarBinary(Length::Limited(length)) => 3 * usize::from(*length).div_ceil(3) * 4,
            SqlType::RowVersion => 3 * 12,
            SqlType::UniqueIdentifier => 36,
            // The types that may be large are those whose values may be left out.
            large if large.may_be_unavailable() => return None,
            // Numbers, dates and times.
            _ => 48,
        })
    });
    parts.sum::<Option<usize>>().map(|bytes| bytes + info.key.len().saturating_sub(1))
}

/// Whether JSON text holds an escaped NUL (`\u0000`), which `jsonb` cannot.
pub(crate) fn holds_nul(json: &str) -> bool {
    let bytes = json.as_bytes();
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        backslashes % 2 == 0
    })
}

/// The changes worth sending, and those that no target would take.
pub(crate) fn sort(changes: &[EntityChange]) -> (Vec<&EntityChange>, Vec<Rejected>) {
    sort_by(changes, refusal)
}

/// The changes that `refuse` says nothing against, and the others.
pub(crate) fn sort_by<'a>(
    changes: impl IntoIterator<Item = &'a EntityChange>,
    refuse: impl Fn(&EntityChange) -> Option<String>,
) -> (Vec<&'a EntityChange>, Vec<Rejected>) {
    let changes = changes.into_iter();
    let mut accepted = Vec::with_capacity(changes.size_hint().0);
    let mut rejected = Vec::new();
    for change in changes {
        match refuse(change) {
            Some(reason) => rejected.push(Rejected { change: change.clone(), reason }),
            None => accepted.push(change),
        }
    }
    (accepted, rejected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_long_as_their_columns_let_them_become() {
        let info = |key: &[SqlType]| EntityInfo {
            name: "order".into(),
            key: key.iter().map(|kind| ("column".to_owned(), *kind)).collect(),
            document_schema: serde_json::Value::Null,
        };
        let text = |characters| SqlType::NVarChar(Length::Limited(characters));
        assert_eq!(longest_key_bytes(&info(&[text(850)])), Some(2550));
        assert_eq!(longest_key_bytes(&info(&[text(10), SqlType::UniqueIdentifier])), Some(67));
        assert_eq!(longest_key_bytes(&info(&[SqlType::Int, SqlType::NVarChar(Length::Max)])), None);
        // The longest that a part of this length can become.
        let part = "/".repeat(850);
        assert_eq!(schemas::change::EntityKey::from_parts([part]).as_str().len(), 2550);
    }

    #[test]
    fn an_escaped_nul_is_found_and_an_escaped_backslash_is_not_taken_for_one() {
        assert!(holds_nul(r#"{"a":"\u0000"}"#));
        assert!(holds_nul(r#"{"a":"x\\\u0000"}"#));
        assert!(!holds_nul(r#"{"a":"\\u0000"}"#));
        assert!(!holds_nul(r#"{"a":"\u0001"}"#));
    }
}
