//! What an entry of a Delta table's log says, in the words of Delta's protocol: of versions 1 for readers and 2 for writers, which every reader knows; of versions 3 and 7 with the one feature `timestampNtz`, where a table has
//! columns of that type.
//!
//! An entry is lines of JSON, one action each; a checkpoint holds the same actions as rows. What is not known here (change data files, domain metadata …) is passed over when it
//! is read: [`super::log`] refuses tables that were moved to a version of the protocol in which that would be wrong.

use std::collections::BTreeMap;

use schemas::{KeyRange, Lsn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::shares;

/// Columns of date and time without a zone.
const TIMESTAMP_NTZ: &str = "timestampNtz";

/// One line. Exactly one member is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) commit_info: Option<CommitInfo>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<Protocol>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) meta_data: Option<Metadata>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) txn: Option<Txn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) remove: Option<Remove>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) add: Option<Add>,
}

/// Whose entry it is; the protocol leaves the members to the writer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommitInfo {
    #[serde(default)]
    pub(super) timestamp: i64,
    #[serde(default)]
    pub(super) operation: String,
    #[serde(default)]
    pub(super) engine_info: Option<String>,
    /// Of our own entries alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tributary: Option<Mark>,
}

/// Our mark on an entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Mark {
    /// One attempt's own, so that an entry whose answer was lost is known again.
    pub(super) commit: String,
    /// The table holds every change at or below it: the least of `parts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) frontier: Option<Lsn>,
    /// What each of several writers says of its share; empty where there is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) parts: BTreeMap<String, String>,
}

impl Mark {
    pub(super) fn new(parts: &[(String, String)]) -> Self {
        let several = parts.len() > 1;
        Self {
            commit: uuid::Uuid::new_v4().to_string(),
            frontier: shares::held(parts, KeyRange::ALL),
            parts: if several { parts.iter().cloned().collect() } else { BTreeMap::new() },
        }
    }

    pub(super) fn parts(&self) -> Vec<(String, String)> {
        if self.parts.is_empty() {
            let lsn = self.frontier.unwrap_or(Lsn::ZERO);
            return vec![(shares::part(KeyRange::ALL), lsn.to_string())];
        }
        self.parts.clone().into_iter().collect()
    }
}

/// What a reader and a writer have to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Protocol {
    pub(super) min_reader_version: i32,
    pub(super) min_writer_version: i32,
    /// Of versions 3 and 7 alone, where they name everything that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reader_features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) writer_features: Option<Vec<String>>,
}

impl Protocol {
    pub(super) fn with_local_times(with: bool) -> Self {
        let features = || with.then(|| vec![TIMESTAMP_NTZ.to_owned()]);
        let (min_reader_version, min_writer_version) = if with { (3, 7) } else { (1, 2) };
        Self { min_reader_version, min_writer_version, reader_features: features(), writer_features: features() }
    }

    /// Whether tables of it can have columns of date and time without a zone.
    pub(super) fn has_local_times(&self) -> bool {
        *self == Self::with_local_times(true)
    }

    /// Whether it is one that we write.
    pub(super) fn is_known(&self) -> bool {
        self.has_local_times() || *self == Self::with_local_times(false)
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self::with_local_times(false)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: Option<String>,
    pub(super) format: Format,
    pub(super) schema_string: String,
    pub(super) partition_columns: Vec<String>,
    #[serde(default)]
    pub(super) configuration: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) created_time: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Format {
    pub(super) provider: String,
    #[serde(default)]
    pub(super) options: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Txn {
    pub(super) app_id: String,
    pub(super) version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_updated: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Add {
    /// Below the table's folder.
    pub(super) path: String,
    pub(super) partition_values: BTreeMap<String, Option<String>>,
    pub(super) size: i64,
    pub(super) modification_time: i64,
    pub(super) data_change: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stats: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tags: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Remove {
    pub(super) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) deletion_timestamp: Option<i64>,
    pub(super) data_change: bool,
}

impl Line {
    pub(super) fn add(add: Add) -> Self {
        Self { add: Some(add), ..Self::default() }
    }

    pub(super) fn remove(path: &str, now_ms: i64, data_change: bool) -> Self {
        let remove = Remove { path: path.to_owned(), deletion_timestamp: Some(now_ms), data_change };
        Self { remove: Some(remove), ..Self::default() }
    }

    pub(super) fn txn(app_id: &str, version: i64, now_ms: i64) -> Self {
        Self { txn: Some(Txn { app_id: app_id.to_owned(), version, last_updated: Some(now_ms) }), ..Self::default() }
    }

    pub(super) fn protocol(protocol: Protocol) -> Self {
        Self { protocol: Some(protocol), ..Self::default() }
    }

    pub(super) fn metadata(metadata: Metadata) -> Self {
        Self { meta_data: Some(metadata), ..Self::default() }
    }

    /// Whether it changes what the table holds or is.
    pub(super) fn changes_the_table(&self) -> bool {
        self.add.is_some() || self.remove.is_some() || self.meta_data.is_some() || self.protocol.is_some()
    }
}

/// The lines of an entry.
pub(super) fn parse(entry: &[u8]) -> Result<Vec<Line>, serde_json::Error> {
    serde_json::Deserializer::from_slice(entry).into_iter::<Line>().collect()
}

pub(super) fn format(lines: &[Line]) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// A row of a checkpoint, which has every column, `null` where another action is meant.
pub(super) fn from_row(row: Value) -> Result<Line, serde_json::Error> {
    serde_json::from_value(row)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_of_other_writers_are_read_and_ours_read_back() {
        let theirs = br#"{"commitInfo":{"timestamp":1,"operation":"VACUUM END","operationParameters":{"status":"COMPLETED"}}}
{"domainMetadata":{"domain":"x","configuration":"{}","removed":false}}
{"add":{"path":"p","partitionValues":{"d":null},"size":1,"modificationTime":2,"dataChange":true,"baseRowId":3}}
"#;
        let lines = parse(theirs).unwrap();
        assert!(lines[0].commit_info.as_ref().unwrap().tributary.is_none() && !lines[1].changes_the_table());
        assert_eq!(lines[2].add.as_ref().unwrap().partition_values["d"], None);
        let ours = [Line::txn("t", 7, 1), Line::remove("p", 2, true), Line::protocol(Protocol::with_local_times(true))];
        let text = format(&ours).unwrap();
        assert_eq!(text.split(|byte| *byte == b'\n').count(), 4);
        let read = parse(&text).unwrap();
        assert_eq!((read[0].txn.as_ref(), read[1].remove.as_ref()), (ours[0].txn.as_ref(), ours[1].remove.as_ref()));
        assert_eq!(read[2].protocol, ours[2].protocol);
    }

    #[test]
    fn protocols_of_others_are_told_from_ours() {
        let read = |text: &str| serde_json::from_str::<Protocol>(text).unwrap();
        assert!(read(r#"{"minReaderVersion": 1, "minWriterVersion": 2}"#).is_known());
        let local =
            r#"{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["timestampNtz"],"writerFeatures":["timestampNtz"]}"#;
        assert!(read(local).is_known() && read(local).has_local_times() && !Protocol::default().has_local_times());
        assert!(!read(&local.replace("]}", ",\"deletionVectors\"]}")).is_known());
        assert!(!read(r#"{"minReaderVersion": 2, "minWriterVersion": 5}"#).is_known());
    }
}
