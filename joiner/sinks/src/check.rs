//! What no target takes, found before it is sent: so that one poisonous change never fails its whole batch.

use schemas::change::EntityChange;

use crate::Rejected;

/// Index entries of PostgreSQL end at 2,704 bytes and DynamoDB's partition keys at 2,048; a primary key of SQL Server at 900.
pub(crate) const KEY_LIMIT_BYTES: usize = 2_000;

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
    if key.len() > KEY_LIMIT_BYTES {
        return Some(format!(
            "the entity key is {} bytes long, more than the {KEY_LIMIT_BYTES} that targets can index",
            key.len()
        ));
    }
    if key.contains('\0') {
        return Some("the entity key holds a NUL character, which targets do not store".to_owned());
    }
    let document = change.document.as_deref()?;
    (!document.trim_start().starts_with('{')).then(|| "the document is not a JSON object".to_owned())
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
    fn an_escaped_nul_is_found_and_an_escaped_backslash_is_not_taken_for_one() {
        assert!(holds_nul(r#"{"a":"\u0000"}"#));
        assert!(holds_nul(r#"{"a":"x\\\u0000"}"#));
        assert!(!holds_nul(r#"{"a":"\\u0000"}"#));
        assert!(!holds_nul(r#"{"a":"\u0001"}"#));
    }
}
