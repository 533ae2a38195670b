//! The stub's streams.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::{Value, json};

use super::shards::{Lag, Quota, Stored, Stream, now_ms};
use crate::hash::key_hash;

/// What one GetRecords answers at most.
const ANSWER_BYTES: usize = 10 << 20;
const ANSWER_RECORDS: u64 = 10_000;
const REQUEST_ENTRIES: usize = 500;
const LISTED_STREAMS: usize = 100;

/// A call's or an entry's failure, in Kinesis's words.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Failed {
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidArgumentException", message)
    }
}

#[derive(Default)]
pub(super) struct Store {
    streams: BTreeMap<String, Stream>,
    /// The last number given out. Numbers grow over all shards, so a child's are above its parents'.
    last: u64,
}

/// A PutRecords request, its strings where they came.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Put<'a> {
    #[serde(borrow)]
    stream_name: Cow<'a, str>,
    #[serde(borrow)]
    records: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    partition_key: Cow<'a, str>,
    #[serde(borrow, default)]
    explicit_hash_key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Cow<'a, str>,
}

/// As long as AWS's, so that nobody gets away with 64 bits.
pub(super) fn sequence(number: u64) -> String {
    format!("4959{number:052}")
}

fn parse_sequence(text: &str) -> Result<u64, Failed> {
    let digits = text.strip_prefix("4959").filter(|digits| digits.len() == 52);
    let refused = || Failed::invalid(format!("StartingSequenceNumber {text} did not come from this stream"));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(refused)
}

pub(super) fn text<'a>(request: &'a Value, field: &str) -> Result<&'a str, Failed> {
    request[field].as_str().ok_or_else(|| Failed::invalid(format!("{field} is missing")))
}

impl Store {
    fn named(&mut self, name: &str) -> Result<&mut Stream, Failed> {
        let missing = || Failed::new("ResourceNotFoundException", format!("Stream {name} not found"));
        self.streams.get_mut(name).ok_or_else(missing)
    }

    fn stream(&mut self, request: &Value) -> Result<&mut Stream, Failed> {
        self.named(text(request, "StreamName")?)
    }

    /// The stream, for a change that takes a while.
    fn changing(&mut self, request: &Value) -> Result<&mut Stream, Failed> {
        let name = text(request, "StreamName")?;
        self.named(name)?.change(name)
    }

    /// As [`changing`](Self::changing), where the request names the stream by its ARN.
    fn by_arn(&mut self, request: &Value) -> Result<&mut Stream, Failed> {
        let name = stream_of(text(request, "StreamARN")?);
        self.named(name)?.change(name)
    }

    pub(super) fn create(&mut self, request: &Value, unknown: u64) -> Result<Value, Failed> {
        let name = text(request, "StreamName")?;
        let count = request["ShardCount"].as_u64().unwrap_or(4).clamp(1, 10_000);
        if self.streams.contains_key(name) {
            return Err(Failed::new("ResourceInUseException", format!("Stream {name} exists")));
        }
        self.last += 1;
        let mut stream = Stream {
            shards: Vec::new(),
            on_demand: request["StreamModeDetails"]["StreamMode"] == "ON_DEMAND",
            retention_hours: 24,
            encryption_key: None,
            record_kib: 1024,
            tags: BTreeMap::new(),
            created_ms: now_ms(),
            unknown,
            updating: 0,
            reshard: None,
        };
        let width = (u128::MAX / u128::from(count)).saturating_add(1);
        for index in 0..u128::from(count) {
            let first = if count == 1 { 0 } else { index * width };
            let last = if index + 1 == u128::from(count) { u128::MAX } else { (index + 1) * width - 1 };
            stream.add_shard((first, last), Vec::new(), self.last);
        }
        self.streams.insert(name.to_owned(), stream);
        Ok(json!({}))
    }

    pub(super) fn describe(&mut self, request: &Value, lag: Lag) -> Result<Value, Failed> {
        let stream = self.stream(request)?;
        if stream.unknown > 0 {
            stream.unknown -= 1;
            return Err(Failed::new("ResourceNotFoundException", "The stream is not known yet"));
        }
        let open = stream.seen(lag).filter(|(_, ending)| ending.is_none()).count();
        let status = if stream.updating > 0 { "UPDATING" } else { "ACTIVE" };
        stream.updating = stream.updating.saturating_sub(1);
        let name = text(request, "StreamName")?;
        let mut summary = json!({
            "StreamName": name, "StreamARN": arn(name), "StreamStatus": status, "RetentionPeriodHours": stream.retention_hours,
            "StreamModeDetails": {"StreamMode": if stream.on_demand { "ON_DEMAND" } else { "PROVISIONED" }},
            "StreamCreationTimestamp": stream.created_ms as f64 / 1000.0, "EnhancedMonitoring": [], "OpenShardCount": open, "MaxRecordSizeInKiB": stream.record_kib,
        });
        if let Some(key) = &stream.encryption_key {
            summary["EncryptionType"] = "KMS".into();
            summary["KeyId"] = key.clone().into();
        }
        Ok(json!({"StreamDescriptionSummary": summary}))
    }

    pub(super) fn list(&mut self, request: &Value) -> Result<Value, Failed> {
        let after = request["ExclusiveStartStreamName"].as_str().unwrap_or_default();
        let mut names = self.streams.keys().filter(|name| name.as_str() > after);
        let page: Vec<_> = names.by_ref().take(LISTED_STREAMS).collect();
        Ok(json!({"StreamNames": page, "HasMoreStreams": names.next().is_some()}))
    }

    pub(super) fn retain(&mut self, request: &Value) -> Result<Value, Failed> {
        let hours = request["RetentionPeriodHours"].as_u64().filter(|hours| (24..=8760).contains(hours));
        let hours = hours.ok_or_else(|| Failed::invalid("RetentionPeriodHours: 24 to 8760"))?;
        let stream = self.changing(request)?;
        if hours < stream.retention_hours {
            return Err(Failed::invalid("RetentionPeriodHours: less than it is"));
        }
        stream.retention_hours = hours;
        Ok(json!({}))
    }

    pub(super) fn encrypt(&mut self, request: &Value) -> Result<Value, Failed> {
        self.changing(request)?.encryption_key = Some(text(request, "KeyId")?.to_owned());
        Ok(json!({}))
    }

    pub(super) fn resize(&mut self, request: &Value) -> Result<Value, Failed> {
        let kib = request["MaxRecordSizeInKiB"].as_u64().filter(|kib| (1024..=10_240).contains(kib));
        let kib = kib.ok_or_else(|| Failed::new("ValidationException", "MaxRecordSizeInKiB: 1024 to 10240"))?;
        self.by_arn(request)?.record_kib = kib;
        Ok(json!({}))
    }

    pub(super) fn set_mode(&mut self, request: &Value) -> Result<Value, Failed> {
        self.by_arn(request)?.on_demand = request["StreamModeDetails"]["StreamMode"] == "ON_DEMAND";
        Ok(json!({}))
    }

    /// As AWS does, by splits and merges, and to no more than the double and no less than the half.
    pub(super) fn rescale(&mut self, request: &Value) -> Result<Value, Failed> {
        let mut last = self.last;
        let stream = self.changing(request)?;
        let (target, open) = (request["TargetShardCount"].as_u64().unwrap_or_default() as usize, stream.open().count());
        if stream.on_demand || target > open * 2 || target * 2 < open || target == 0 {
            return Err(Failed::invalid(format!("UpdateShardCount from {open} to {target} shards")));
        }
        while stream.open().count() != target {
            last += 1;
            stream.step_towards(target, last)?;
        }
        self.last = last;
        Ok(json!({}))
    }

    pub(super) fn tag(&mut self, request: &Value) -> Result<Value, Failed> {
        let tags: BTreeMap<String, String> =
            serde_json::from_value(request["Tags"].clone()).map_err(|error| Failed::invalid(format!("Tags: {error}")))?;
        self.stream(request)?.tags.extend(tags);
        Ok(json!({}))
    }

    pub(super) fn tags(&mut self, request: &Value) -> Result<Value, Failed> {
        let tags: Vec<_> = self.stream(request)?.tags.iter().map(|(tag, value)| json!({"Key": tag, "Value": value})).collect();
        Ok(json!({"Tags": tags, "HasMoreTags": false}))
    }

    pub(super) fn list_shards(&mut self, request: &Value, lag: Lag) -> Result<Value, Failed> {
        let shards = self.stream(request)?.seen(lag).map(|(shard, ending)| {
            let mut numbers = json!({"StartingSequenceNumber": sequence(shard.starting)});
            if let Some(ending) = ending {
                numbers["EndingSequenceNumber"] = sequence(ending).into();
            }
            let mut description = json!({
                "ShardId": shard.id, "SequenceNumberRange": numbers,
                "HashKeyRange": {"StartingHashKey": shard.hashes.0.to_string(), "EndingHashKey": shard.hashes.1.to_string()},
            });
            for (field, parent) in ["ParentShardId", "AdjacentParentShardId"].iter().zip(&shard.parents) {
                description[*field] = parent.clone().into();
            }
            description
        });
        Ok(json!({"Shards": shards.collect::<Vec<_>>()}))
    }

    /// `refuse` is asked once for every entry, and told whether it is over the quota.
    pub(super) fn put_records(
        &mut self,
        request: &Put<'_>,
        quota: Quota,
        mut refuse: impl FnMut(bool) -> Option<Failed>,
    ) -> Result<Value, Failed> {
        let mut last = self.last;
        let missing = || Failed::new("ResourceNotFoundException", format!("Stream {} not found", request.stream_name));
        let stream = self.streams.get_mut(&*request.stream_name).ok_or_else(missing)?;
        let entries = &request.records;
        if !(1..=REQUEST_ENTRIES).contains(&entries.len()) {
            return Err(Failed::invalid("Records: 1 to 500 entries"));
        }
        let (mut results, mut failures) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            let (record, hash) = read_entry(entry, stream.record_kib)?;
            let shard = stream.open_shard_of(hash).ok_or_else(|| Failed::new("InternalFailure", "no open shard"))?;
            let over = !shard.admits(decoded_bytes(&record.data) + record.partition_key.len(), quota);
            if let Some(failed) = refuse(over) {
                failures += 1;
                results.push(json!({"ErrorCode": failed.code, "ErrorMessage": failed.message}));
                continue;
            }
            last += 1;
            results.push(json!({"ShardId": shard.id, "SequenceNumber": sequence(last)}));
            shard.records.push_back(Stored { number: last, ..record });
        }
        self.last = last;
        Ok(json!({"FailedRecordCount": failures, "Records": results}))
    }

    /// As PutRecords with one entry, out of reach of faults and quotas.
    pub(super) fn put_record(&mut self, body: &[u8]) -> Result<Value, Failed> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct PutOne<'a> {
            #[serde(borrow)]
            stream_name: Cow<'a, str>,
            #[serde(borrow, flatten)]
            entry: Entry<'a>,
        }
        let request: PutOne<'_> =
            serde_json::from_slice(body).map_err(|error| Failed::new("SerializationException", error.to_string()))?;
        let request = Put { stream_name: request.stream_name, records: vec![request.entry] };
        let mut answer = self.put_records(&request, Quota::default(), |_| None)?;
        Ok(answer["Records"][0].take())
    }

    pub(super) fn iterator(&mut self, request: &Value) -> Result<Value, Failed> {
        let name = text(request, "StreamName")?;
        let shard = text(request, "ShardId")?;
        let (kind, number) = (text(request, "ShardIteratorType")?, &request["StartingSequenceNumber"]);
        let from = self.start(name, shard, kind, number, &request["Timestamp"])?;
        Ok(json!({"ShardIterator": format!("{shard}:{from}:{name}")}))
    }

    /// The number from which a reader reads that starts in this way.
    pub(super) fn start(&mut self, name: &str, shard: &str, kind: &str, number: &Value, time: &Value) -> Result<u64, Failed> {
        let last = self.last;
        let stream = self.named(name)?;
        let shard = &stream.shards[stream.shard(shard)?];
        Ok(match kind {
            "TRIM_HORIZON" => 0,
            "LATEST" => last + 1,
            "AT_TIMESTAMP" => {
                let at = (time.as_f64().unwrap_or_default() * 1000.0) as u64;
                shard.records.iter().find(|record| record.arrival_ms >= at).map_or(last + 1, |record| record.number)
            }
            kind => {
                let number = parse_sequence(number.as_str().unwrap_or_default())?;
                if number < shard.starting || number > last {
                    return Err(Failed::invalid("StartingSequenceNumber did not come from this shard"));
                }
                if kind == "AFTER_SEQUENCE_NUMBER" { number + 1 } else { number }
            }
        })
    }

    pub(super) fn get_records(&mut self, request: &Value) -> Result<String, Failed> {
        let bad = || Failed::invalid("Invalid ShardIterator");
        let mut parts = text(request, "ShardIterator")?.splitn(3, ':');
        let (shard, from, name) = (parts.next(), parts.next(), parts.next().ok_or_else(bad)?);
        let shard = shard.ok_or_else(bad)?;
        let from: u64 = from.and_then(|from| from.parse().ok()).ok_or_else(bad)?;
        let limit = request["Limit"].as_u64().unwrap_or(ANSWER_RECORDS).min(ANSWER_RECORDS) as usize;
        let read = self.read(name, shard, from, limit)?;
        let mut rest = json!({"MillisBehindLatest": read.behind_ms});
        if read.children.is_none() {
            rest["NextShardIterator"] = format!("{shard}:{}:{name}", read.next).into();
        }
        Ok(format!(r#"{{"Records":[{}],{}"#, read.records, &rest.to_string()[1..]))
    }

    /// At most so many records of a shard from a number on.
    pub(super) fn read(&self, name: &str, shard: &str, from: u64, limit: usize) -> Result<Read, Failed> {
        let missing = || Failed::new("ResourceNotFoundException", format!("Shard {shard} of {name} not found"));
        let stream = self.streams.get(name).ok_or_else(missing)?;
        let shard = &stream.shards[stream.shard(shard)?];
        let start = shard.records.partition_point(|record| record.number < from);
        let (mut bytes, mut next, mut answered, mut records) = (0, from, 0, String::new());
        for record in shard.records.iter().skip(start).take(limit) {
            bytes += decoded_bytes(&record.data);
            if bytes > ANSWER_BYTES && answered > 0 {
                break;
            }
            next = record.number + 1;
            let (comma, number, key) =
                (if answered == 0 { "" } else { "," }, sequence(record.number), json!(record.partition_key));
            let arrival = record.arrival_ms as f64 / 1000.0;
            let data = &record.data;
            // Writing to a string does not fail.
            let _ = write!(
                records,
                r#"{comma}{{"SequenceNumber":"{number}","PartitionKey":{key},"ApproximateArrivalTimestamp":{arrival},"Data":"{data}"}}"#
            );
            answered += 1;
        }
        let waiting = shard.records.get(start + answered);
        let behind_ms = waiting.map_or(0, |record| now_ms().saturating_sub(record.arrival_ms).max(1));
        let ended = waiting.is_none() && shard.ending.is_some();
        Ok(Read { records, answered, next, behind_ms, children: ended.then(|| stream.children(&shard.id)) })
    }

    /// Whether a shard takes no more records.
    pub(super) fn is_closed(&self, name: &str, shard: &str) -> bool {
        let shards = self.streams.get(name).map(|stream| &stream.shards);
        shards.into_iter().flatten().any(|other| other.id == shard && other.ending.is_some())
    }

    pub(super) fn split(&mut self, request: &Value) -> Result<Value, Failed> {
        self.last += 1;
        let number = self.last;
        let stream = self.stream(request)?;
        let index = stream.shard(text(request, "ShardToSplit")?)?;
        let at: u128 = text(request, "NewStartingHashKey")?.parse().map_err(|_| Failed::invalid("NewStartingHashKey"))?;
        stream.split(index, at, number)?;
        Ok(json!({}))
    }

    pub(super) fn merge(&mut self, request: &Value) -> Result<Value, Failed> {
        self.last += 1;
        let number = self.last;
        let stream = self.stream(request)?;
        let one = stream.shard(text(request, "ShardToMerge")?)?;
        let other = stream.shard(text(request, "AdjacentShardToMerge")?)?;
        stream.merge(one, other, number)?;
        Ok(json!({}))
    }

    pub(super) fn remove_stream(&mut self, name: &str) {
        self.streams.remove(name);
    }

    pub(super) fn trim(&mut self, stream: &str, shard: &str, count: usize) {
        if let Some(stream) = self.streams.get_mut(stream)
            && let Ok(index) = stream.shard(shard)
        {
            stream.created_ms = 0;
            let records = &mut stream.shards[index].records;
            records.drain(..count.min(records.len()));
        }
    }

    pub(super) fn expire(&mut self, stream: &str, shard: &str) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.created_ms = 0;
            let before = stream.shards.len();
            stream.shards.retain(|other| other.id != shard || other.ending.is_none());
            // The children of the last reshard have moved forward in the list.
            let gone = before - stream.shards.len();
            stream.reshard = stream.reshard.map(|(number, children)| (number, children.saturating_sub(gone)));
        }
    }
}

/// What a read of a shard brings.
pub(super) struct Read {
    /// JSON, without brackets.
    pub(super) records: String,
    pub(super) answered: usize,
    /// Where to read on.
    pub(super) next: u64,
    pub(super) behind_ms: u64,
    /// At the end of the shard, its children.
    pub(super) children: Option<Value>,
}

fn read_entry(entry: &Entry<'_>, record_kib: u64) -> Result<(Stored, u128), Failed> {
    let key = &entry.partition_key;
    if !(1..=256).contains(&key.chars().count()) {
        return Err(Failed::new("ValidationException", "PartitionKey: 1 to 256 characters"));
    }
    let (bytes, limit) = (decoded_bytes(&entry.data) + key.len(), record_kib * 1024);
    if bytes as u64 > limit {
        return Err(Failed::invalid(format!("a record of {bytes} bytes, and the stream takes {limit}")));
    }
    let hash = match &entry.explicit_hash_key {
        Some(explicit) => explicit.parse().map_err(|_| Failed::invalid("ExplicitHashKey"))?,
        None => key_hash(key),
    };
    let data = entry.data.clone().into_owned();
    Ok((Stored { number: 0, partition_key: key.clone().into_owned(), data, arrival_ms: now_ms() }, hash))
}

/// The length of what this base64, padded, stands for.
fn decoded_bytes(base64: &str) -> usize {
    base64.len() / 4 * 3 - base64.bytes().rev().take_while(|byte| *byte == b'=').count()
}

fn arn(stream: &str) -> String {
    format!("arn:aws:kinesis:us-east-1:000000000000:stream/{stream}")
}

/// The stream of an ARN, of its own or of a consumer's below it.
pub(super) fn stream_of(arn: &str) -> &str {
    arn.split('/').nth(1).unwrap_or_default()
}
