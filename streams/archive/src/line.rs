//! One archived record as a line of JSON:
//!
//! ```json
//! {"stream":"shop.events","shard":"shard-0000","sequence":"17","event":{"op":"u",…}}
//! {"stream":"shop.events","shard":"shard-0000","sequence":"18","base64":"Q0…"}
//! ```
//! A record that is JSON on one line (Debezium's envelope, a progress record) stands there as it is, to the byte: it is not written anew but copied, and taken out again as the same text. Any other record (Avro, Protobuf,
//! compressed, or just `null`) stands there in base64; for one of ours that can be read, `event` has its JSON form beside it, for who reads the archive with other tools, and `base64` is what it is restored from.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    shard: Cow<'a, str>,
    sequence: SequenceNumber,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    base64: Option<Cow<'a, str>>,
}

/// `null` is a record as well, and something else than none: there are lines in which it stands as it is.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// A record as the archive keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) shard: ShardId,
    pub(crate) sequence: SequenceNumber,
    pub(crate) data: Bytes,
}

/// Whether the record can stand in a line as it is. `null` does not: to most tools that read a line it is as if there were no record.
fn is_plain(data: &[u8]) -> bool {
    if data == b"null" {
        return false;
    }
    let whole = |text: &&RawValue| text.get().len() == data.len();
    !data.contains(&b'\n') && !data.contains(&b'\r') && serde_json::from_slice::<&RawValue>(data).is_ok_and(|text| whole(&text))
}

/// Appends a line with its end. `json`: the record's JSON form, where the record itself is none.
pub(crate) fn write(
    out: &mut Vec<u8>,
    (stream, shard): (&StreamName, &ShardId),
    sequence: &SequenceNumber,
    data: &[u8],
    json: Option<&[u8]>,
) {
    out.extend_from_slice(b"{\"stream\":");
    schemas::value::write_string(out, &stream.0);
    out.extend_from_slice(b",\"shard\":");
    schemas::value::write_string(out, &shard.0);
    out.extend_from_slice(b",\"sequence\":\"");
    out.extend_from_slice(sequence.as_str().as_bytes());
    out.push(b'"');
    if is_plain(data) {
        out.extend_from_slice(b",\"event\":");
        out.extend_from_slice(data);
    } else {
        if let Some(json) = json.filter(|json| is_plain(json)) {
            out.extend_from_slice(b",\"event\":");
            out.extend_from_slice(json);
        }
        out.extend_from_slice(b",\"base64\":\"");
        out.extend_from_slice(STANDARD.encode(data).as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

/// Reads a line, without its end; `whole` is what it is a slice of.
fn read(whole: &Bytes, line: &[u8]) -> Result<Kept, String> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let data = match (&line.base64, line.event) {
        (Some(base64), _) => STANDARD.decode(base64.as_bytes()).map_err(|error| error.to_string())?.into(),
        (None, Some(event)) => whole.slice_ref(event.get().as_bytes()),
        (None, None) => return Err("a line without its record".to_owned()),
    };
    Ok(Kept { shard: ShardId(line.shard.into_owned()), sequence: line.sequence, data })
}

/// The records of an object's text, in its order; an error names the line.
pub(crate) fn read_all(text: &Bytes) -> impl Iterator<Item = Result<Kept, String>> {
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(number, line)| read(text, line).map_err(|what| format!("line {}: {what}", number + 1)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<Vec<u8>>(),
            Just(b"{\"a\": 1.50, \"b\":\"\\u0041\",\"b\":2}".to_vec()),
            Just(b"null".to_vec()),
            Just(b" {\"a\":1}".to_vec()),
            Just(b"{\"a\":\n1}".to_vec()),
            any::<String>().prop_map(|text| serde_json::to_vec(&text).unwrap()),
        ]
    }

    #[test]
    fn a_record_that_is_null_is_read_wherever_it_stands() {
        let text = Bytes::from_static(
            b"{\"stream\":\"s\",\"shard\":\"1\",\"sequence\":\"7\",\"event\":null}\n{\"shard\":\"1\",\"sequence\":\"8\"}",
        );
        let read: Vec<Result<Kept, String>> = read_all(&text).collect();
        assert_eq!(&read[0].as_ref().unwrap().data[..], b"null");
        assert_eq!(read[1], Err("line 2: a line without its record".to_owned()));
    }

    proptest! {
        #[test]
        fn records_come_back_to_the_byte(records in prop::collection::vec((any::<String>(), any::<u64>(), records()), 0..8), json: Option<String>) {
            let mut text = Vec::new();
            let json = json.map(|json| serde_json::to_vec(&json).unwrap());
            for (shard, sequence, data) in &records {
                let place = (&StreamName("s \"".into()), &ShardId(shard.clone()));
                write(&mut text, place, &SequenceNumber::from(*sequence), data, json.as_deref());
            }
            prop_assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), records.len());
            for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                serde_json::from_slice::<serde_json::Value>(line).unwrap();
            }
            let text = Bytes::from(text);
            let read: Vec<Kept> = read_all(&text).map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), records.len());
            for (kept, (shard, sequence, data)) in read.iter().zip(&records) {
                prop_assert_eq!((&kept.shard.0, &kept.sequence, &kept.data[..]), (shard, &SequenceNumber::from(*sequence), &data[..]));
            }
        }

        #[test]
        fn damaged_text_is_refused_or_read(text: Vec<u8>) {
            let _ = read_all(&text.into()).count();
        }
    }
}
