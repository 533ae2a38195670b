//! An entity change as a CloudEvents 1.0 event in structured JSON: what SNS and subscribers receive.
//!
//! | attribute | value |
//! |---|---|
//! | `id` | `entity:key:version`: the same change always has the same id |
//! | `source` | `/tributary`, or what the configuration says |
//! | `type` | `tributary.entity.upserted`, `tributary.entity.deleted` |
//! | `subject` | `entity/key` |
//! | `time` | commit time at the source; left out when it is not known |
//! | `partitionkey` | the entity key: changes of one key keep their order |
//! | `sequence` | the version's text, which sorts as the source's order does |
//! | `entity`, `entitykey`, `lsn` | the parts, for whoever would rather not take the others apart |
//! | `data` | the document; left out for a deletion |

use std::fmt::Write;

use schemas::change::EntityChange;

/// What an event says has happened: `upserted` or `deleted`.
pub fn operation(change: &EntityChange) -> &'static str {
    if change.document.is_some() { "upserted" } else { "deleted" }
}

/// `entity:key:version`.
pub fn id(change: &EntityChange) -> String {
    format!("{}:{}:{}", change.entity, change.key, change.version)
}

/// Milliseconds since 1970 as RFC 3339; `None` for 0, which stands for "not known".
pub fn time(commit_time_ms: i64) -> Option<String> {
    if commit_time_ms == 0 {
        return None;
    }
    jiff::Timestamp::from_millisecond(commit_time_ms).ok().map(|time| time.to_string())
}

/// The event as JSON text, on one line as long as the document is.
pub fn to_json(change: &EntityChange, source: &str) -> String {
    let document = change.document.as_deref();
    let mut out = String::with_capacity(document.map_or(0, str::len) + 512);
    let mut member = |name: &str, value: &str| {
        let separator = if out.is_empty() { '{' } else { ',' };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}\"{name}\":{}", serde_json::Value::from(value));
    };
    member("specversion", "1.0");
    member("id", &id(change));
    member("source", source);
    member("type", if document.is_some() { "tributary.entity.upserted" } else { "tributary.entity.deleted" });
    member("subject", &format!("{}/{}", change.entity, change.key));
    if let Some(time) = time(change.commit_time_ms) {
        member("time", &time);
    }
    member("partitionkey", change.key.as_str());
    let version = change.version.to_string();
    member("sequence", &version);
    member("entity", &change.entity);
    member("entitykey", change.key.as_str());
    member("lsn", &version);
    if let Some(document) = document {
        member("datacontenttype", "application/json");
        out.push_str(",\"data\":");
        out.push_str(document);
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use schemas::change::EntityKey;

    use super::*;

    #[test]
    fn an_event_is_json_with_the_required_attributes() {
        let change = EntityChange {
            entity: "order".into(),
            key: EntityKey::from_parts(["a\"b", "2"]),
            version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, 2, 0, 3]),
            commit_time_ms: 1_700_000_000_123,
            document: Some(r#"{"total":"12.50"}"#.into()),
        };
        let event: serde_json::Value = serde_json::from_str(&to_json(&change, "/tributary")).unwrap();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "order:a\"b,2:00000001:00000002:0003");
        assert_eq!(event["time"], "2023-11-14T22:13:20.123Z");
        assert_eq!(event["data"]["total"], "12.50");
        let gone = EntityChange { document: None, commit_time_ms: 0, ..change };
        let event: serde_json::Value = serde_json::from_str(&to_json(&gone, "/tributary")).unwrap();
        assert_eq!(event["type"], "tributary.entity.deleted");
        assert!(event.get("data").is_none() && event.get("time").is_none());
    }
}
