//! The lines of a `_bulk` request, and what its answer says of each. Pure.
//!
//! # Versions
//! The cluster guards documents by a version of 63 bits; an LSN has 80. They are packed in order: 12 bits of the slot (a log block has at most 60 KiB, so fewer than 4,096 records), `lsn_block_bits` of the block's place
//! in its virtual log file, and the rest of the file's number. What does not fit is told, never cut: a version that compared wrongly would break INV-5.

use std::fmt::Write;

use schemas::Lsn;
use schemas::change::EntityChange;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cloudevent;

/// Limit of a document's id.
const ID_BYTES: usize = 512;
const VERSION_BITS: u32 = 63;
const SLOT_BITS: u32 = 12;

/// A change as two lines, or one.
pub(super) struct Operation {
    /// Shares its document with the batch that it came in.
    pub(super) change: EntityChange,
    pub(super) lines: String,
}

/// An LSN as the cluster compares it.
pub(super) fn version(lsn: Lsn, block_bits: u32) -> Result<u64, String> {
    let [a, b, c, d, e, f, g, h, i, j] = *lsn.as_bytes();
    let (file, block) = (u64::from(u32::from_be_bytes([a, b, c, d])), u64::from(u32::from_be_bytes([e, f, g, h])));
    let slot = u64::from(u16::from_be_bytes([i, j]));
    let file_bits = VERSION_BITS - SLOT_BITS - block_bits;
    if file >> file_bits != 0 || block >> block_bits != 0 || slot >> SLOT_BITS != 0 {
        return Err(format!(
            "the LSN {lsn} does not fit a version of 63 bits with {block_bits} of them for the log block: set lsn_block_bits otherwise, and index anew"
        ));
    }
    Ok((file << (block_bits + SLOT_BITS)) | (block << SLOT_BITS) | slot)
}

/// A document's id: the entity key, or its hash where that is too long.
fn id(key: &str) -> String {
    if key.len() <= ID_BYTES {
        return key.to_owned();
    }
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn action(name: &str, index: &str, id: &str, version: u64) -> String {
    // `external_gte`: what is handed over again replaces itself, and a document that was made anew under the same version replaces the one before.
    let mut line = json!({name: {"_index": index, "_id": id, "version": version, "version_type": "external_gte"}}).to_string();
    line.push('\n');
    line
}

impl Operation {
    pub(super) fn new(change: &EntityChange, index: &str, block_bits: u32) -> Result<Self, String> {
        let (id, version) = (id(change.key.as_str()), version(change.version, block_bits)?);
        let Some(document) = change.document.as_deref() else {
            return Ok(Self { change: change.clone(), lines: action("delete", index, &id, version) });
        };
        let mut lines = action("index", index, &id, version);
        let mut about = json!({"entity": &*change.entity, "key": change.key, "version": change.version});
        if let Some(time) = cloudevent::time(change.commit_time_ms) {
            about["commit_time"] = time.into();
        }
        // The document's own members follow ours. A line break can only stand between them.
        let members = document.trim().strip_prefix('{').ok_or("the document is not a JSON object")?.replace(['\n', '\r'], " ");
        let separator = if members.trim_start().starts_with('}') { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{{\"tributary\":{about}{separator}{members}");
        Ok(Self { change: change.clone(), lines })
    }
}

/// A deletion by the id that a search has found.
pub(super) fn deletion(index: &str, id: &str, version: u64) -> String {
    action("delete", index, id, version)
}

#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    errors: bool,
    #[serde(default)]
    items: Vec<Value>,
}

/// How one operation ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// The index holds a newer version.
    Stale,
    /// The cluster is overloaded, or a shard is away.
    Again(String),
    Refused(String),
    /// No right to write there.
    Forbidden(String),
    /// The index is gone.
    Missing(String),
}

impl Answer {
    /// One fate for each of so many operations; none where the answer does not tell.
    pub(super) fn fates(&self, operations: usize) -> Option<Vec<Fate>> {
        if !self.errors {
            return Some((0..operations).map(|_| Fate::Done).collect());
        }
        (self.items.len() == operations).then(|| self.items.iter().map(fate).collect())
    }
}

fn fate(item: &Value) -> Fate {
    // `{"index": {"status": 201, …}}`
    let (action, result) =
        item.as_object().and_then(|item| item.iter().next()).map_or(("", item), |(name, result)| (name, result));
    let error = &result["error"];
    let said = || {
        let cause = error["caused_by"]["reason"].as_str().map_or(String::new(), |cause| format!(": {cause}"));
        format!("{} [{}]{cause}", error["reason"].as_str().unwrap_or("no reason"), error["type"].as_str().unwrap_or("no type"))
    };
    match result["status"].as_u64().unwrap_or_default() {
        200..=299 => Fate::Done,
        409 => Fate::Stale,
        // What is not there is deleted; an index that is not there is something else.
        404 if action == "delete" && error.is_null() => Fate::Done,
        404 if error["type"] == "index_not_found_exception" => Fate::Missing(said()),
        403 if error["type"] == "cluster_block_exception" => Fate::Again(said()),
        401 | 403 => Fate::Forbidden(said()),
        400 | 413 => Fate::Refused(said()),
        _ => Fate::Again(said()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    fn lsn(file: u32, block: u32, slot: u16) -> Lsn {
        let mut bytes = [0; 10];
        bytes[..4].copy_from_slice(&file.to_be_bytes());
        bytes[4..8].copy_from_slice(&block.to_be_bytes());
        bytes[8..].copy_from_slice(&slot.to_be_bytes());
        Lsn::from_bytes(bytes)
    }

    #[test]
    fn versions_sort_as_the_lsns_do() {
        let edges = [0, 1, 2, 4094, 4095];
        let mut all: Vec<Lsn> = Vec::new();
        for file in [0, 1, 42, (1 << 26) - 1] {
            for block in [0, 1, 280, (1 << 25) - 1] {
                all.extend(edges.iter().map(|slot| lsn(file, block, *slot)));
            }
        }
        all.sort();
        let versions: Vec<u64> = all.iter().map(|lsn| version(*lsn, 25).unwrap()).collect();
        assert!(versions.is_sorted_by(|a, b| a < b));
        assert!(versions.iter().all(|version| *version < 1 << 63));
        for unfit in [lsn(1 << 26, 0, 0), lsn(0, 1 << 25, 0), lsn(0, 0, 4096), Lsn::MAX] {
            assert!(version(unfit, 25).unwrap_err().contains("lsn_block_bits"));
        }
        assert!(version(lsn(0, 1 << 25, 0), 31).is_ok());
    }

    #[test]
    fn an_operation_is_lines_of_json() {
        let change = |document: Option<&str>| EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text("a\"b"),
            version: lsn(1, 2, 3),
            commit_time_ms: 1_700_000_000_123,
            document: document.map(Into::into),
        };
        let lines = |document| Operation::new(&change(document), "order", 25).unwrap().lines;
        for (document, expected) in [("{\n \"n\": 1\n}", json!(1)), ("{}", Value::Null), ("{ }", Value::Null)] {
            let lines = lines(Some(document));
            let parsed: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(parsed[0]["index"]["_id"], "a\"b");
            assert_eq!(parsed[0]["index"]["version_type"], "external_gte");
            assert_eq!((&parsed[1]["tributary"]["version"], &parsed[1]["n"]), (&json!("00000001:00000002:0003"), &expected));
            assert_eq!(parsed.len(), 2);
        }
        assert!(lines(None).starts_with("{\"delete\"") && lines(None).lines().count() == 1);
        assert_eq!(id(&"k".repeat(512)).len(), 512);
        assert_eq!(id(&"k".repeat(513)).len(), 64);
    }

    #[test]
    fn each_item_has_its_own_fate() {
        let error = |kind: &str| json!({"type": kind, "reason": "because", "caused_by": {"reason": "of that"}});
        let answer: Answer = serde_json::from_value(json!({"errors": true, "items": [
            {"index": {"status": 201}},
            {"index": {"status": 409, "error": error("version_conflict_engine_exception")}},
            {"delete": {"status": 404}},
            {"index": {"status": 400, "error": error("mapper_parsing_exception")}},
            {"index": {"status": 429, "error": error("es_rejected_execution_exception")}},
            {"index": {"status": 503, "error": error("unavailable_shards_exception")}},
            {"index": {"status": 403, "error": error("security_exception")}},
            {"index": {"status": 403, "error": error("cluster_block_exception")}},
            {"delete": {"status": 404, "error": error("index_not_found_exception")}},
        ]}))
        .unwrap();
        let said = |kind: &str| format!("because [{kind}]: of that");
        assert_eq!(
            answer.fates(9).unwrap(),
            [
                Fate::Done,
                Fate::Stale,
                Fate::Done,
                Fate::Refused(said("mapper_parsing_exception")),
                Fate::Again(said("es_rejected_execution_exception")),
                Fate::Again(said("unavailable_shards_exception")),
                Fate::Forbidden(said("security_exception")),
                Fate::Again(said("cluster_block_exception")),
                Fate::Missing(said("index_not_found_exception")),
            ]
        );
        assert_eq!(answer.fates(8), None);
    }
}
