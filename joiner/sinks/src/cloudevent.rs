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
//! | `sources` | of several sources, the LSN of each that the version stands for: `bank=…;shop=…` ([`schemas::vector`]) |
//! | `timestamp` | `time` once more, under the name that Standard Webhooks has for it |
//! | `data` | the document; left out for a deletion, and in a thin event |

use std::fmt::{self, Write};
use std::sync::Arc;

use schemas::change::EntityChange;
use schemas::{Lsn, Vector};
use serde::Deserialize;

use crate::Versions;

/// The `source` of events where the configuration names none.
pub(crate) fn default_source() -> String {
    "/tributary".to_owned()
}

/// Where events say that they are from, and who knows what their versions stand for.
#[derive(Clone)]
pub struct Origin {
    source: String,
    versions: Option<Arc<dyn Versions>>,
}

impl Origin {
    /// Of one source.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), versions: None }
    }

    /// Of several.
    pub fn know(&mut self, versions: Arc<dyn Versions>) {
        self.versions = Some(versions);
    }

    /// What a version stands for; none of one source, and where that is not known any more.
    pub fn sources(&self, version: Lsn) -> Option<Vector> {
        self.versions.as_ref()?.sources(version)
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self::new(default_source())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("source", &self.source).finish_non_exhaustive()
    }
}

/// How much of an entity an event carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detail {
    /// The whole document. One that is larger than the target takes is a dead letter.
    #[default]
    Full,
    /// Which entity, what happened and the LSN: whoever needs the document asks for it, where no more is disclosed than that receiver may see.
    Thin,
    /// The whole document where it fits, and a thin event where it does not.
    FullIfItFits,
}

impl Detail {
    /// The event's text, within `limit` bytes of it and of what goes beside it; or how large it would be.
    pub(crate) fn event(self, change: &EntityChange, origin: &Origin, beside: usize, limit: usize) -> Result<String, usize> {
        let full = match self {
            Self::Thin => None,
            Self::Full | Self::FullIfItFits => Some(to_json(change, origin)),
        };
        match full {
            Some(event) if event.len() + beside <= limit => Ok(event),
            Some(event) if self == Self::Full => Err(event.len() + beside),
            _ => {
                let event = to_thin_json(change, origin);
                if event.len() + beside <= limit { Ok(event) } else { Err(event.len() + beside) }
            }
        }
    }
}

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
pub fn to_json(change: &EntityChange, origin: &Origin) -> String {
    let mut out = attributes(change, origin);
    if let Some(document) = change.document.as_deref() {
        out.push_str(",\"datacontenttype\":\"application/json\",\"data\":");
        out.push_str(document);
    }
    out.push('}');
    out
}

/// The event without its document.
pub fn to_thin_json(change: &EntityChange, origin: &Origin) -> String {
    let mut out = attributes(change, origin);
    out.push('}');
    out
}

/// The attributes, with the object still open.
fn attributes(change: &EntityChange, origin: &Origin) -> String {
    let document = change.document.as_deref();
    let mut out = String::with_capacity(document.map_or(0, str::len) + 512);
    let mut member = |name: &str, value: &str| {
        let separator = if out.is_empty() { '{' } else { ',' };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}\"{name}\":{}", serde_json::Value::from(value));
    };
    member("specversion", "1.0");
    member("id", &id(change));
    member("source", &origin.source);
    member("type", if document.is_some() { "tributary.entity.upserted" } else { "tributary.entity.deleted" });
    member("subject", &format!("{}/{}", change.entity, change.key));
    if let Some(time) = time(change.commit_time_ms) {
        member("time", &time);
        member("timestamp", &time);
    }
    member("partitionkey", change.key.as_str());
    let version = change.version.to_string();
    member("sequence", &version);
    member("entity", &change.entity);
    member("entitykey", change.key.as_str());
    member("lsn", &version);
    if let Some(sources) = origin.sources(change.version) {
        member("sources", &sources.to_string());
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
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
        let event: serde_json::Value = serde_json::from_str(&to_json(&change, &Origin::default())).unwrap();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "order:a\"b,2:00000001:00000002:0003");
        assert_eq!(event["time"], "2023-11-14T22:13:20.123Z");
        assert_eq!(event["timestamp"], event["time"]);
        assert_eq!(event["data"]["total"], "12.50");
        let thin: serde_json::Value = serde_json::from_str(&to_thin_json(&change, &Origin::default())).unwrap();
        assert!(thin.get("data").is_none() && thin["id"] == event["id"] && thin["type"] == event["type"]);
        let gone = EntityChange { document: None, commit_time_ms: 0, ..change };
        let event: serde_json::Value = serde_json::from_str(&to_json(&gone, &Origin::default())).unwrap();
        assert_eq!(event["type"], "tributary.entity.deleted");
        assert!(event.get("data").is_none() && event.get("time").is_none());
    }

    /// Two sources, and versions that are the sum of their LSNs.
    struct Halves;

    impl Versions for Halves {
        fn sources(&self, version: Lsn) -> Option<Vector> {
            (version > Lsn::ZERO).then(|| ["bank", "shop"].map(|source| (source.to_owned(), version)).into_iter().collect())
        }
    }

    #[test]
    fn of_several_sources_an_event_says_what_its_version_stands_for() {
        let version = Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, 2, 0, 3]);
        let change = EntityChange {
            entity: "order".into(),
            key: EntityKey::from_parts(["1"]),
            version,
            commit_time_ms: 0,
            document: None,
        };
        let mut origin = Origin::default();
        let told = |change: &EntityChange, origin: &Origin| {
            let event: serde_json::Value = serde_json::from_str(&to_thin_json(change, origin)).unwrap();
            event.get("sources").and_then(|sources| sources.as_str()).map(str::to_owned)
        };
        assert_eq!(told(&change, &origin), None);
        origin.know(Arc::new(Halves));
        assert_eq!(told(&change, &origin), Some(format!("bank={version};shop={version}")));
        assert_eq!(told(&EntityChange { version: Lsn::ZERO, ..change }, &origin), None, "what is not known is not told");
    }

    #[test]
    fn what_does_not_fit_is_told_or_thinned() {
        let change = EntityChange {
            entity: "order".into(),
            key: EntityKey::from_parts(["1"]),
            version: Lsn::ZERO,
            commit_time_ms: 0,
            document: Some(format!("{{\"text\":\"{}\"}}", "x".repeat(1000)).into()),
        };
        let has_data =
            |detail: Detail, limit| detail.event(&change, &Origin::new("/s"), 10, limit).map(|event| event.contains("\"data\""));
        assert_eq!(has_data(Detail::Full, 2000), Ok(true));
        assert!(has_data(Detail::Full, 1000).unwrap_err() > 1010);
        assert_eq!(has_data(Detail::FullIfItFits, 2000), Ok(true));
        assert_eq!(has_data(Detail::FullIfItFits, 1000), Ok(false));
        assert_eq!(has_data(Detail::Thin, 2000), Ok(false));
        assert!(has_data(Detail::Thin, 100).is_err());
    }
}
