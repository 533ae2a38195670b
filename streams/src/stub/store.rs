//! The stub's streams.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::{Value, json};

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

    fn invalid(message: impl Into<String>) -> Self {
        Self::new("InvalidArgumentException", message)
    }
}

#[derive(Default)]
pub(super) struct Store {
    streams: BTreeMap<String, Stream>,
    /// The last number given out. Numbers grow over all shards, so a child's are above its parents'.
    last: u64,
}

struct Stream {
    shards: Vec<Shard>,
    on_demand: bool,
    retention_hours: u64,
    encryption_key: Option<String>,
    record_kib: u64,
    tags: BTreeMap<String, String>,
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

/// What a shard takes in a second.
#[derive(Clone, Copy, Default)]
pub(super) struct Quota {
    pub(super) bytes: Option<u64>,
    pub(super) records: Option<u64>,
}

struct Shard {
    id: String,
    hashes: (u128, u128),
    parents: Vec<String>,
    starting: u64,
    ending: Option<u64>,
    records: VecDeque<Stored>,
    bytes: Allowance,
    count: Allowance,
}

struct Stored {
    number: u64,
    partition_key: String,
    /// In base64, as it came and as it goes; nothing here looks into it.
    data: String,
    arrival_ms: u64,
}

/// What a shard may still take, by a quota for a second: filled up as time passes.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn full() -> Self {
        Self { left: f64::MAX, at: Instant::now() }
    }

    fn allows(&mut self, amount: u64, per_second: Option<u64>) -> bool {
        let Some(per_second) = per_second.map(|per_second| per_second as f64) else { return true };
        self.left = (self.left + self.at.elapsed().as_secs_f64() * per_second).min(per_second);
        self.at = Instant::now();
        // A record of more than a second's worth passes when the allowance is full.
        self.left >= (amount as f64).min(per_second)
    }
}

/// As long as AWS's, so that nobody gets away with 64 bits.
fn sequence(number: u64) -> String {
    format!("4959{number:052}")
}

fn parse_sequence(text: &str) -> Result<u64, Failed> {
    let digits = text.strip_prefix("4959").filter(|digits| digits.len() == 52);
    let refused = || Failed::invalid(format!("StartingSequenceNumber {text} did not come from this stream"));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(refused)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn text<'a>(request: &'a Value, field: &str) -> Result<&'a str, Failed> {
    request[field].as_str().ok_or_else(|| Failed::invalid(format!("{field} is missing")))
}

impl Shard {
    /// Whether the quota lets a record of so many bytes in; then it is counted.
    fn admits(&mut self, bytes: usize, quota: Quota) -> bool {
        let admits = self.bytes.allows(bytes as u64, quota.bytes) && self.count.allows(1, quota.records);
        if admits {
            self.bytes.left -= bytes as f64;
            self.count.left -= 1.0;
        }
        admits
    }
}

impl Stream {
    fn shard(&self, id: &str) -> Result<usize, Failed> {
        let missing = || Failed::new("ResourceNotFoundException", format!("Shard {id} not found"));
        self.shards.iter().position(|shard| shard.id == id).ok_or_else(missing)
    }

    fn open_shard_of(&mut self, hash: u128) -> Option<&mut Shard> {
        self.shards.iter_mut().find(|shard| shard.ending.is_none() && (shard.hashes.0..=shard.hashes.1).contains(&hash))
    }

    fn add_shard(&mut self, hashes: (u128, u128), parents: Vec<String>, starting: u64) {
        self.shards.push(Shard {
            id: format!("shardId-{:012}", self.shards.len()),
            hashes,
            parents,
            starting,
            ending: None,
            records: VecDeque::new(),
            bytes: Allowance::full(),
            count: Allowance::full(),
        });
    }
}

impl Store {
    fn stream(&mut self, request: &Value) -> Result<&mut Stream, Failed> {
        let name = text(request, "StreamName")?;
        let missing = || Failed::new("ResourceNotFoundException", format!("Stream {name} not found"));
        self.streams.get_mut(name).ok_or_else(missing)
    }

    pub(super) fn create(&mut self, request: &Value) -> Result<Value, Failed> {
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

    pub(super) fn describe(&mut self, request: &Value) -> Result<Value, Failed> {
        let stream = self.stream(request)?;
        let open = stream.shards.iter().filter(|shard| shard.ending.is_none()).count();
        let name = text(request, "StreamName")?;
        let mut summary = json!({
            "StreamName": name, "StreamARN": arn(name), "StreamStatus": "ACTIVE", "RetentionPeriodHours": stream.retention_hours,
            "StreamModeDetails": {"StreamMode": if stream.on_demand { "ON_DEMAND" } else { "PROVISIONED" }},
            "StreamCreationTimestamp": 0, "EnhancedMonitoring": [], "OpenShardCount": open, "MaxRecordSizeInKiB": stream.record_kib,
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
        self.stream(request)?.retention_hours = hours.ok_or_else(|| Failed::invalid("RetentionPeriodHours: 24 to 8760"))?;
        Ok(json!({}))
    }

    pub(super) fn encrypt(&mut self, request: &Value) -> Result<Value, Failed> {
        self.stream(request)?.encryption_key = Some(text(request, "KeyId")?.to_owned());
        Ok(json!({}))
    }

    pub(super) fn resize(&mut self, request: &Value) -> Result<Value, Failed> {
        let arn = text(request, "StreamARN")?;
        let name = arn.rsplit('/').next().unwrap_or_default();
        let missing = || Failed::new("ResourceNotFoundException", format!("Stream {arn} not found"));
        let stream = self.streams.get_mut(name).ok_or_else(missing)?;
        let kib = request["MaxRecordSizeInKiB"].as_u64().filter(|kib| (1024..=10_240).contains(kib));
        stream.record_kib = kib.ok_or_else(|| Failed::new("ValidationException", "MaxRecordSizeInKiB: 1024 to 10240"))?;
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

    pub(super) fn list_shards(&mut self, request: &Value) -> Result<Value, Failed> {
        let shards = self.stream(request)?.shards.iter().map(|shard| {
            let mut numbers = json!({"StartingSequenceNumber": sequence(shard.starting)});
            if let Some(ending) = shard.ending {
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
        let last = self.last;
        let stream = self.stream(request)?;
        let index = stream.shard(text(request, "ShardId")?)?;
        let shard = &stream.shards[index];
        let from = match text(request, "ShardIteratorType")? {
            "TRIM_HORIZON" => 0,
            "LATEST" => last + 1,
            "AT_TIMESTAMP" => {
                let at = (request["Timestamp"].as_f64().unwrap_or_default() * 1000.0) as u64;
                shard.records.iter().find(|record| record.arrival_ms >= at).map_or(last + 1, |record| record.number)
            }
            kind => {
                let number = parse_sequence(text(request, "StartingSequenceNumber")?)?;
                if number < shard.starting || number > last {
                    return Err(Failed::invalid("StartingSequenceNumber did not come from this shard"));
                }
                if kind == "AFTER_SEQUENCE_NUMBER" { number + 1 } else { number }
            }
        };
        Ok(json!({"ShardIterator": format!("{index}:{from}:{name}")}))
    }

    pub(super) fn get_records(&mut self, request: &Value) -> Result<String, Failed> {
        let bad = || Failed::invalid("Invalid ShardIterator");
        let mut parts = text(request, "ShardIterator")?.splitn(3, ':');
        let (index, from, name) = (parts.next(), parts.next(), parts.next().ok_or_else(bad)?);
        let index: usize = index.and_then(|index| index.parse().ok()).ok_or_else(bad)?;
        let from: u64 = from.and_then(|from| from.parse().ok()).ok_or_else(bad)?;
        let shard = self.streams.get(name).and_then(|stream| stream.shards.get(index)).ok_or_else(bad)?;
        let limit = request["Limit"].as_u64().unwrap_or(ANSWER_RECORDS).min(ANSWER_RECORDS) as usize;
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
        let behind = waiting.map_or(0, |record| now_ms().saturating_sub(record.arrival_ms).max(1));
        let mut rest = json!({"MillisBehindLatest": behind});
        if waiting.is_some() || shard.ending.is_none() {
            rest["NextShardIterator"] = format!("{index}:{next}:{name}").into();
        }
        Ok(format!(r#"{{"Records":[{records}],{}"#, &rest.to_string()[1..]))
    }

    pub(super) fn split(&mut self, request: &Value) -> Result<Value, Failed> {
        self.last += 1;
        let number = self.last;
        let stream = self.stream(request)?;
        let index = stream.shard(text(request, "ShardToSplit")?)?;
        let at: u128 = text(request, "NewStartingHashKey")?.parse().map_err(|_| Failed::invalid("NewStartingHashKey"))?;
        let shard = &mut stream.shards[index];
        let (first, last) = shard.hashes;
        if shard.ending.is_some() || at <= first || at > last {
            return Err(Failed::invalid("the shard is closed, or the key not inside it"));
        }
        shard.ending = Some(number);
        let parents = vec![shard.id.clone()];
        stream.add_shard((first, at - 1), parents.clone(), number);
        stream.add_shard((at, last), parents, number);
        Ok(json!({}))
    }

    pub(super) fn merge(&mut self, request: &Value) -> Result<Value, Failed> {
        self.last += 1;
        let number = self.last;
        let stream = self.stream(request)?;
        let one = stream.shard(text(request, "ShardToMerge")?)?;
        let other = stream.shard(text(request, "AdjacentShardToMerge")?)?;
        let (low, high) = if stream.shards[one].hashes.0 < stream.shards[other].hashes.0 { (one, other) } else { (other, one) };
        let adjacent = stream.shards[low].hashes.1.checked_add(1) == Some(stream.shards[high].hashes.0);
        if !adjacent || [low, high].iter().any(|index| stream.shards[*index].ending.is_some()) {
            return Err(Failed::invalid("the shards are closed or not adjacent"));
        }
        let hashes = (stream.shards[low].hashes.0, stream.shards[high].hashes.1);
        let parents = [one, other].map(|index| stream.shards[index].id.clone()).to_vec();
        for index in [low, high] {
            stream.shards[index].ending = Some(number);
        }
        stream.add_shard(hashes, parents, number);
        Ok(json!({}))
    }

    pub(super) fn trim(&mut self, stream: &str, shard: &str, count: usize) {
        if let Some(stream) = self.streams.get_mut(stream)
            && let Ok(index) = stream.shard(shard)
        {
            let records = &mut stream.shards[index].records;
            records.drain(..count.min(records.len()));
        }
    }
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
