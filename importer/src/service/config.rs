//! How a service's own stream becomes a source: the mapping from its events to rows of tables. The defaults are here and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schemas::TableName;
use schemas::contract::Contract;
use schemas::progress::StreamName;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::config::Output;

/// Everything that an importer of a service's stream needs to know.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    pub output: Output,
    /// The service's stream.
    pub stream: StreamName,
    /// Which rows its events are of.
    pub tables: BTreeMap<TableName, TableMapping>,
    /// Contracts by table; one for each of `tables`.
    pub contracts: BTreeMap<TableName, Contract>,
    /// Where progress, the last row of each key, epoch and lock lie. One source, one directory.
    pub data_dir: PathBuf,
    /// What happens to a record that is not JSON, has no key, or breaks its table's contract.
    pub on_bad_record: BadRecordPolicy,
    /// What happens to a record that is of no table.
    pub on_unmatched: UnmatchedPolicy,
    /// A tick ends with the batch in which it comes to so many records, or so many bytes of them: what a restart may repeat.
    pub tick_records: usize,
    pub tick_bytes: usize,
    /// A tick ends when nothing more has come for this long.
    pub linger: Duration,
    /// How long a source is quiet before a tick of nothing is published, as SQL Server's capture has one too: readers tell by the progress stream whether they were away for too long.
    pub heartbeat: Duration,
}

impl ServiceConfig {
    pub fn new(name: impl Into<String>, stream: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            output: Output::new(name),
            stream: StreamName(stream.into()),
            tables: BTreeMap::new(),
            contracts: BTreeMap::new(),
            data_dir: data_dir.into(),
            on_bad_record: BadRecordPolicy::default(),
            on_unmatched: UnmatchedPolicy::default(),
            tick_records: 10_000,
            tick_bytes: 16 << 20,
            linger: Duration::from_millis(5),
            heartbeat: Duration::from_secs(300),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRecordPolicy {
    /// The importer ends with an error that names the record. Nothing of the tick that it is in is published.
    #[default]
    Stop,
    /// It is set aside, with its place and the reason.
    DeadLetter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnmatchedPolicy {
    #[default]
    Stop,
    DeadLetter,
    /// It is counted, and passed over.
    Skip,
}

/// How events of the stream become rows of one table.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableMapping {
    /// Which events are of this table: all of these places have one of these values. Empty: every event.
    pub when: Conditions,
    /// The object that the columns are members of. Default: the event itself.
    pub row: Pointer,
    /// Where single columns are, from the event's root on. Default: the member of `row` that is called like the column.
    pub columns: BTreeMap<String, Pointer>,
    /// A column that an event does not have keeps the value of the row before it. Default: it is NULL.
    pub merge: bool,
    /// Which events delete their row. Default: none.
    pub delete: Option<Deletion>,
    /// The column whose value is the partition key of the published events; by default the row's own key.
    pub partition_by: Option<String>,
}

/// Which events of a table delete their row, and which row that is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// As a table's `when`. Never empty.
    pub when: Conditions,
    /// Where the columns of the key are in such an event. Default: where they are in others.
    #[serde(default)]
    pub key: BTreeMap<String, Pointer>,
}

/// By place, the values that are wanted there; `null` is also what is not there at all.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Conditions(pub BTreeMap<Pointer, Wanted>);

impl Conditions {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn hold(&self, event: &Json) -> bool {
        self.0.iter().all(|(place, wanted)| {
            let found = place.find(event).unwrap_or(&Json::Null);
            wanted.0.iter().any(|value| value == found)
        })
    }
}

/// One value, or several of which any will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Wanted(pub Vec<Json>);

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = match Json::deserialize(deserializer)? {
            Json::Array(values) => values,
            value => vec![value],
        };
        if values.is_empty() || values.iter().any(|value| value.is_array() || value.is_object()) {
            return Err(serde::de::Error::custom("expected a string, a number, true, false or null, or a list of such"));
        }
        Ok(Self(values))
    }
}

/// A JSON pointer (RFC 6901): `/payment/amount`, and the empty text for the whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pointer(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a JSON pointer: write /member/member, ~1 for a slash and ~0 for a tilde within a name, and \"\" for the whole event"
)]
pub struct ParsePointerError {
    text: String,
}

impl Pointer {
    pub(super) fn find<'j>(&self, value: &'j Json) -> Option<&'j Json> {
        value.pointer(&self.0)
    }

    /// A member of what this points to.
    pub(super) fn member(&self, name: &str) -> Self {
        Self(format!("{}/{}", self.0, name.replace('~', "~0").replace('/', "~1")))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Pointer {
    type Error = ParsePointerError;

    fn try_from(text: String) -> Result<Self, ParsePointerError> {
        let escapes_are_right = || text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        if (text.is_empty() || text.starts_with('/')) && escapes_are_right() {
            Ok(Self(text))
        } else {
            Err(ParsePointerError { text })
        }
    }
}

impl From<Pointer> for String {
    fn from(pointer: Pointer) -> Self {
        pointer.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn pointers_and_conditions_find_what_they_name() {
        let event = json!({"a/b": {"~": [1, null]}, "type": "paid", "version": 2});
        let pointer = |text: &str| Pointer::try_from(text.to_owned());
        assert_eq!(pointer("/a~1b/~0/0").unwrap().find(&event), Some(&json!(1)));
        assert_eq!(Pointer::default().member("a/b").member("~").to_string(), "/a~1b/~0");
        assert_eq!(pointer("").unwrap().find(&event), Some(&event));
        for wrong in ["a", "/a~", "/a~2"] {
            assert!(pointer(wrong).unwrap_err().to_string().contains("JSON pointer"), "{wrong}");
        }
        let holds = |conditions: Json| serde_json::from_value::<Conditions>(conditions).unwrap().hold(&event);
        assert!(holds(json!({})) && holds(json!({"/type": ["made", "paid"], "/version": 2})));
        assert!(holds(json!({"/gone": null})) && holds(json!({"/a~1b/~0/1": [null]})));
        assert!(
            !holds(json!({"/type": "made"})) && !holds(json!({"/type": "paid", "/version": 3})) && !holds(json!({"/type": null}))
        );
        for wrong in [json!({"/type": []}), json!({"/type": {"x": 1}}), json!({"type": "paid"})] {
            assert!(serde_json::from_value::<Conditions>(wrong).is_err());
        }
    }
}
