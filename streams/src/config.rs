//! Which stream store to use, as the configuration file says it: exactly one of
//!
//! ```yaml
//! memory: {}
//! embedded: {path: ./data/streams}
//! kinesis: {region: eu-central-1}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::embedded::{self, Embedded};
use crate::memory::Memory;
use crate::{Capacity, Error, Provider, StreamSettings};

/// The choice of a stream store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Choices", into = "Choices")]
pub enum Config {
    Memory,
    Embedded(embedded::Options),
    Kinesis(Box<KinesisOptions>),
}

/// How Kinesis is reached and used. Credentials come from where every AWS tool takes them: environment, profile, container or instance role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KinesisOptions {
    /// Default: `AWS_REGION`, or the profile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Another endpoint than the region's: a VPC endpoint, or a stand-in. Default: the region's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Uses made-up credentials, for stand-ins that check none. Default: false.
    pub stand_in_credentials: bool,
    /// New streams add and remove shards as the load asks, instead of having the configured number. Default: false.
    pub on_demand: bool,
    /// How long new streams keep records, from 24 to 8760. Default: 24. A consumer that is away for longer misses changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_hours: Option<u32>,
    /// The KMS key that encrypts new streams: an ARN, an id or an alias; `alias/aws/kinesis` is AWS's own. Default: not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key: Option<String>,
    /// Tags of new streams. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The largest Kinesis record written, partition key included. Default: 1 MiB, which every stream takes; up to 10 MiB where the stream allows it.
    pub max_record_bytes: usize,
    /// What becomes of an event that is larger than that. Default: `dead_letter`.
    pub oversize: Oversize,
    /// Bytes of records that wait, or are in flight, for one stream before `append` waits. Default: 32 MiB.
    pub queue_bytes: usize,
    /// Bytes that are written to one shard in a second at most; 0 for no limit. Less where Kinesis throttles. Default: 1000000, AWS's quota.
    pub shard_bytes_per_second: u64,
    /// Kinesis records that are written to one shard in a second at most; 0 for no limit. Events that wait meanwhile travel together in one. Default: 1000, AWS's quota.
    pub shard_records_per_second: u64,
    /// How long one call may take. Default: 30.
    pub call_timeout_seconds: u64,
    /// How long a call that fails is tried again before the writer or reader gives up. Default: 300.
    pub retry_seconds: u64,
    /// The longest pause between two attempts; they grow up to it from 20 ms. Default: 2000.
    pub retry_pause_ms: u64,
    /// The pause between two reads of one shard. AWS allows five reads a second for all consumers of a shard together. Default: 250.
    pub read_interval_ms: u64,
    /// The pause between two reads of a shard that has brought nothing for a while. Default: 500.
    pub read_idle_interval_ms: u64,
    /// Reads by enhanced fan-out, under a consumer of this name: `{consumer: NAME}`. Default: reads by polling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan_out: Option<FanOut>,
    /// Bytes that a reader of a stream reads ahead. Default: 32 MiB.
    pub read_ahead_bytes: usize,
    /// Records asked for in one read (at most 10000). Default: 10000.
    pub read_records: u32,
    /// What a saved position whose own record has been trimmed means. Default: `by_progress`.
    pub aged_positions: AgedPositions,
}

/// Enhanced fan-out: the stream is read under a consumer of its own, with 2 MB/s a shard that nobody shares, and pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FanOut {
    /// The consumer's name, registered with each stream where it is not yet. Every instance that reads the same shards needs one of its own.
    pub consumer: String,
}

/// What becomes of an event that is too large for a record. Written as a mapping with one key, as the choice of a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "OversizeChoices", into = "OversizeChoices")]
pub enum Oversize {
    /// `stop: {}`: whoever writes it stops.
    Stop,
    /// `dead_letter: {}`: it is set aside, with its position.
    DeadLetter,
    /// `pointer: {s3: {bucket: …}}` or `pointer: {local: {path: …}}`: it is kept there, with a pointer to it in the stream; a reader with the same setting gets the event.
    Pointer(objects::Config),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OversizeChoices {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop: Option<Nothing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_letter: Option<Nothing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pointer: Option<objects::Config>,
}

impl TryFrom<OversizeChoices> for Oversize {
    type Error = NotOne;

    fn try_from(choices: OversizeChoices) -> Result<Self, NotOne> {
        match (choices.stop, choices.dead_letter, choices.pointer) {
            (Some(Nothing {}), None, None) => Ok(Self::Stop),
            (None, Some(Nothing {}), None) => Ok(Self::DeadLetter),
            (None, None, Some(objects)) => Ok(Self::Pointer(objects)),
            _ => Err(NotOne { what: "policy", choices: "`stop`, `dead_letter` or `pointer`" }),
        }
    }
}

impl From<Oversize> for OversizeChoices {
    fn from(oversize: Oversize) -> Self {
        let none = Self { stop: None, dead_letter: None, pointer: None };
        match oversize {
            Oversize::Stop => Self { stop: Some(Nothing {}), ..none },
            Oversize::DeadLetter => Self { dead_letter: Some(Nothing {}), ..none },
            Oversize::Pointer(objects) => Self { pointer: Some(objects), ..none },
        }
    }
}

/// A reader comes back with a saved position, and the record at that position is gone. Kinesis cannot say whether others, after it, are gone as well. (A reader that has been running knows when it was caught
/// up, and so that nothing is.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgedPositions {
    /// Refuse on progress streams, trust on the others. A progress stream is written as long as its source lives, so a position in it that is still there shows that the
    /// consumer was not away for longer than the retention; then nothing after its positions in the other streams is gone either, quiet as they may have
    /// been. All streams of a source need the same retention for this.
    #[default]
    ByProgress,
    /// Report [`Error::Trimmed`], also where a stream was merely quiet for longer than its retention.
    Refuse,
    /// Go on with the oldest record that is kept.
    Trust,
}

impl AgedPositions {
    /// Whether a position of this stream whose record is gone is an error.
    #[cfg(feature = "kinesis")]
    pub(crate) fn refuses(self, stream: &schemas::progress::StreamName) -> bool {
        match self {
            Self::ByProgress => crate::Layout::is_progress_stream(stream),
            Self::Refuse => true,
            Self::Trust => false,
        }
    }
}

impl Default for KinesisOptions {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            stand_in_credentials: false,
            on_demand: false,
            retention_hours: None,
            encryption_key: None,
            tags: BTreeMap::new(),
            max_record_bytes: 1 << 20,
            oversize: Oversize::DeadLetter,
            queue_bytes: 32 << 20,
            shard_bytes_per_second: 1_000_000,
            shard_records_per_second: 1000,
            call_timeout_seconds: 30,
            retry_seconds: 300,
            retry_pause_ms: 2000,
            read_interval_ms: 250,
            read_idle_interval_ms: 500,
            fan_out: None,
            read_ahead_bytes: 32 << 20,
            read_records: 10_000,
            aged_positions: AgedPositions::default(),
        }
    }
}

impl KinesisOptions {
    /// For a stand-in at this address: made-up credentials, short pauses, no quotas.
    pub fn stand_in(endpoint: impl Into<String>) -> Self {
        Self {
            region: Some("us-east-1".into()),
            endpoint: Some(endpoint.into()),
            stand_in_credentials: true,
            shard_bytes_per_second: 0,
            shard_records_per_second: 0,
            read_interval_ms: 5,
            read_idle_interval_ms: 5,
            retry_pause_ms: 50,
            ..Self::default()
        }
    }

    /// What a new stream is made with.
    pub fn settings(&self, shards: u32) -> StreamSettings {
        StreamSettings {
            capacity: if self.on_demand { Capacity::OnDemand } else { Capacity::Shards(shards.max(1)) },
            retention: self.retention_hours.map(|hours| Duration::from_secs(u64::from(hours) * 3600)),
            encryption_key: self.encryption_key.clone(),
            tags: self.tags.clone(),
            max_record_bytes: Some(self.max_record_bytes),
        }
    }
}

/// How the choice is written: a mapping with one key. (An enum in YAML would be a tag, and an inner tag would lose the line of an error.)
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Nothing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedded: Option<embedded::Options>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kinesis: Option<KinesisOptions>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, thiserror::Error)]
#[error("name exactly one {what}: {choices}")]
struct NotOne {
    what: &'static str,
    choices: &'static str,
}

impl TryFrom<Choices> for Config {
    type Error = NotOne;

    fn try_from(choices: Choices) -> Result<Self, NotOne> {
        match (choices.memory, choices.embedded, choices.kinesis) {
            (Some(Nothing {}), None, None) => Ok(Self::Memory),
            (None, Some(options), None) => Ok(Self::Embedded(options)),
            (None, None, Some(options)) => Ok(Self::Kinesis(Box::new(options))),
            _ => Err(NotOne { what: "stream store", choices: "`memory`, `embedded` or `kinesis`" }),
        }
    }
}

impl From<Config> for Choices {
    fn from(config: Config) -> Self {
        let none = Self { memory: None, embedded: None, kinesis: None };
        match config {
            Config::Memory => Self { memory: Some(Nothing {}), ..none },
            Config::Embedded(options) => Self { embedded: Some(options), ..none },
            Config::Kinesis(options) => Self { kinesis: Some(*options), ..none },
        }
    }
}

impl Config {
    /// Takes relative paths as ones from this folder on.
    pub fn relative_to(&mut self, folder: &std::path::Path) {
        match self {
            Self::Memory => {}
            Self::Embedded(options) => options.path = folder.join(&options.path),
            Self::Kinesis(options) => {
                if let Oversize::Pointer(objects) = &mut options.oversize {
                    objects.relative_to(folder);
                }
            }
        }
    }
}

/// Opens the store. Two openings of `memory` share nothing: keep the provider, and hand it to writers and readers.
pub async fn open(config: &Config) -> Result<Arc<dyn Provider>, Error> {
    match config {
        Config::Memory => Ok(Arc::new(Memory::new())),
        Config::Embedded(options) => Ok(Arc::new(Embedded::open(options.clone())?)),
        #[cfg(feature = "kinesis")]
        // Boxed: what looks for credentials is large, and would make every future that opens a store so.
        Config::Kinesis(options) => {
            Ok(Arc::new(Box::pin(crate::kinesis::Kinesis::connect(KinesisOptions::clone(options))).await?))
        }
        #[cfg(not(feature = "kinesis"))]
        Config::Kinesis(_) => Err(Error::NotBuilt { provider: "kinesis" }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_choice_reads_back() {
        let read = |text: &str| serde_json::from_str::<Config>(text);
        assert_eq!(read(r#"{"memory": {}}"#).unwrap(), Config::Memory);
        assert_eq!(read(r#"{"embedded": {"path": "d"}}"#).unwrap(), Config::Embedded(embedded::Options::new("d")));
        assert_eq!(read(r#"{"kinesis": {}}"#).unwrap(), Config::Kinesis(Box::default()));
        let text = r#"{"kinesis":{"endpoint":"http://localhost:4568","retry_seconds":5,"aged_positions":"trust",
            "retention_hours":48,"encryption_key":"alias/aws/kinesis","tags":{"team":"shop"},"fan_out":{"consumer":"joiner"},
            "oversize":{"pointer":{"local":{"path":"outside"}}}}}"#;
        let config = read(text).unwrap();
        assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn typos_and_doubt_are_refused() {
        let refused = |text: &str| serde_json::from_str::<Config>(text).unwrap_err().to_string();
        assert!(refused(r#"{"memroy": {}}"#).contains("unknown field `memroy`"));
        assert!(refused(r#"{"memory": {"x": 1}}"#).contains("unknown field `x`"));
        assert!(refused(r#"{"embedded": {"path": "d", "fsync": true}}"#).contains("unknown field `fsync`"));
        assert!(refused(r#"{"embedded": {}}"#).contains("missing field `path`"));
        assert!(refused(r#"{"kinesis": {"rgion": "x"}}"#).contains("unknown field `rgion`"));
        assert!(refused(r#"{"kinesis": {"oversize": {}}}"#).contains("exactly one policy"));
        assert!(refused(r#"{"kinesis": {"oversize": {"drop": {}}}}"#).contains("unknown field `drop`"));
        assert!(refused("{}").contains("exactly one"));
        assert!(refused(r#"{"memory": {}, "kinesis": {}}"#).contains("exactly one"));
    }

    #[tokio::test]
    async fn opens_what_is_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::Embedded(embedded::Options::new(directory.path().join("new")));
        open(&config).await.unwrap().ensure(&schemas::progress::StreamName("s".into()), 1).await.unwrap();
        assert!(directory.path().join("new/s/stream.json").exists());
    }
}
