//! What a record of a stream is, read without the code that is under test.

use schemas::Lsn;
use schemas::progress::StreamName;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::history::Content;

fn lsn(value: &Value) -> Lsn {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn content_of(stream: &StreamName, data: &[u8]) -> Content {
    let Ok(record) = serde_json::from_slice::<Value>(data) else { return Content::Unknown };
    if stream.0.ends_with(".progress") {
        let rereads = record["rereads"].as_object().map(|rereads| rereads.keys().cloned().collect());
        return Content::Progress {
            epoch: record["epoch"].as_u64().unwrap_or_default(),
            tail: record["kind"] == "tail",
            from: lsn(&record["from_lsn"]),
            to: lsn(&record["to_lsn"]),
            time_ms: record["commit_time_ms"].as_i64().unwrap_or_default(),
            rereads: rereads.unwrap_or_default(),
        };
    }
    if stream.0.ends_with(".dead-letters") {
        return Content::DeadLetter { table: text(&record["table"]), lsn: lsn(&record["position"]["commit_lsn"]) };
    }
    let (source, op) = (&record["source"], record["op"].as_str().and_then(|op| op.chars().next()).unwrap_or('?'));
    let table = text(&source["table"]);
    // When the rows were read or published is no part of what they are.
    let rows = serde_json::to_vec(&[&record["before"], &record["after"]]).unwrap_or_default();
    let hash = xxh3_64(&rows);
    if op == 'r' {
        return Content::Read { table, hash };
    }
    Content::Change { table, lsn: lsn(&source["commit_lsn"]), seqval: lsn(&source["change_lsn"]), op, hash }
}
