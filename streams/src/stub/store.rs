//! The stub's streams.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::hash::key_hash;

/// What one GetRecords answers at most.
const ANSWER_BYTES: usize = 10 << 20;
const ANSWER_RECORDS: u64 = 10_000;
const REQUEST_ENTRIES: usize = 500;

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
}

struct Shard {
    id: String,
    hashes: (u128, u128),
    parents: Vec<String>,
    starting: u64,
    ending: Option<u64>,
    records: VecDeque<Stored>,
    allowance: Allowance,
}

struct Stored {
    number: u64,
    partition_key: String,
    data: Bytes,
    arrival_ms: u64,
}

/// What a shard may still take, by its bytes in a second: filled up as time passes.
struct Allowance {
    bytes: f64,
    at: Instant,
}

impl Allowance {
    fn take(&mut self, bytes: usize, per_second: u64) -> bool {
        let per_second = per_second as f64;
        self.bytes = (self.bytes + self.at.elapsed().as_secs_f64() * per_second).min(per_second);
        self.at = Instant::now();
        // A record of more than a second's worth passes when the allowance is full.
        let needed = (bytes as f64).min(per_second);
        let granted = self.bytes >= needed;
        if granted {
            self.bytes -= bytes as f64;
        }
        granted
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
            allowance: Allowance { bytes: f64::MAX, at: Instant::now() },
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
        let mut stream = Stream { shards: Vec::new() };
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
        let open = self.stream(request)?.shards.iter().filter(|shard| shard.ending.is_none()).count();
        let name = text(request, "StreamName")?;
        Ok(json!({"StreamDescriptionSummary": {
            "StreamName": name, "StreamARN": format!("arn:aws:kinesis:us-east-1:000000000000:stream/{name}"), "StreamStatus": "ACTIVE",
            "RetentionPeriodHours": 24, "StreamCreationTimestamp": 0, "EnhancedMonitoring": [], "OpenShardCount": open,
        }}))
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

    /// `refuse` is asked once for every entry.
    pub(super) fn put_records(
        &mut self,
        request: &Value,
        bytes_per_second: Option<u64>,
        mut refuse: impl FnMut() -> Option<Failed>,
    ) -> Result<Value, Failed> {
        let mut last = self.last;
        let stream = self.stream(request)?;
        let entries = request["Records"].as_array().filter(|entries| (1..=REQUEST_ENTRIES).contains(&entries.len()));
        let entries = entries.ok_or_else(|| Failed::invalid("Records: 1 to 500 entries"))?;
        let (mut results, mut failures) = (Vec::with_capacity(entries.len()), 0);
        for entry in entries {
            let (record, hash) = read_entry(entry)?;
            let shard = stream.open_shard_of(hash).ok_or_else(|| Failed::new("InternalFailure", "no open shard"))?;
            let over = bytes_per_second.is_some_and(|limit| !shard.allowance.take(record.data.len(), limit));
            let over = over
                .then(|| Failed::new("ProvisionedThroughputExceededException", format!("Rate exceeded for shard {}", shard.id)));
            if let Some(failed) = refuse().or(over) {
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

    pub(super) fn get_records(&mut self, request: &Value) -> Result<Value, Failed> {
        let bad = || Failed::invalid("Invalid ShardIterator");
        let mut parts = text(request, "ShardIterator")?.splitn(3, ':');
        let (index, from, name) = (parts.next(), parts.next(), parts.next().ok_or_else(bad)?);
        let index: usize = index.and_then(|index| index.parse().ok()).ok_or_else(bad)?;
        let from: u64 = from.and_then(|from| from.parse().ok()).ok_or_else(bad)?;
        let shard = self.streams.get(name).and_then(|stream| stream.shards.get(index)).ok_or_else(bad)?;
        let limit = request["Limit"].as_u64().unwrap_or(ANSWER_RECORDS).min(ANSWER_RECORDS) as usize;
        let start = shard.records.partition_point(|record| record.number < from);
        let (mut bytes, mut next, mut answered) = (0, from, Vec::new());
        for record in shard.records.iter().skip(start).take(limit) {
            bytes += record.data.len();
            if bytes > ANSWER_BYTES && !answered.is_empty() {
                break;
            }
            next = record.number + 1;
            answered.push(json!({
                "SequenceNumber": sequence(record.number), "PartitionKey": record.partition_key, "Data": BASE64.encode(&record.data),
                "ApproximateArrivalTimestamp": record.arrival_ms as f64 / 1000.0,
            }));
        }
        let waiting = shard.records.get(start + answered.len());
        let behind = waiting.map_or(0, |record| now_ms().saturating_sub(record.arrival_ms).max(1));
        let mut answer = json!({"Records": answered, "MillisBehindLatest": behind});
        if waiting.is_some() || shard.ending.is_none() {
            answer["NextShardIterator"] = format!("{index}:{next}:{name}").into();
        }
        Ok(answer)
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

fn read_entry(entry: &Value) -> Result<(Stored, u128), Failed> {
    let key = text(entry, "PartitionKey")?;
    if !(1..=256).contains(&key.chars().count()) {
        return Err(Failed::new("ValidationException", "PartitionKey: 1 to 256 characters"));
    }
    let data = BASE64.decode(text(entry, "Data")?).map_err(|error| Failed::new("SerializationException", error.to_string()))?;
    if data.len() + key.len() > 10 << 20 {
        return Err(Failed::invalid("a record of more than 10 MiB"));
    }
    let hash = match entry["ExplicitHashKey"].as_str() {
        Some(explicit) => explicit.parse().map_err(|_| Failed::invalid("ExplicitHashKey"))?,
        None => key_hash(key),
    };
    Ok((Stored { number: 0, partition_key: key.to_owned(), data: data.into(), arrival_ms: now_ms() }, hash))
}
