//! Entities as a Kinesis stream of their own: an event for every entity change.
//!
//! Records are CloudEvents ([`crate::cloudevent`]) in JSON; the partition key is `entity/key` (its SHA-256 where that is longer than Kinesis allows). They are written by the producer that the
//! importer uses (`streams/src/kinesis/writer.rs` argues its order): records that wait for a shard travel as one aggregate in the producer library's format, which the KCL, Lambda's and Flink's
//! readers take apart.
//!
//! # What a reader of the stream may rely on
//! - Changes of one entity are in one shard, in the order of their versions, across reshards too.
//! - Delivery is at least once: after a crash or a lost answer changes come again, older ones among them. A stream cannot refuse what is stale, so INV-5 is the reader's to hold: whoever
//!   keeps the highest `sequence` a key has all that is needed.
//! - A load is written as well, unless `notify_load` says otherwise: a new stream holds every entity, and a consumer that begins at its oldest record needs nothing else as long as
//!   nothing has been trimmed. What vanished between two loads is not told.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::progress::StreamName;
use schemas::{ErrorClass, KeyRange, Lsn};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::{Provider, Record, StreamWriter};

use crate::cloudevent::{self, Detail, Origin};
use crate::{Checked, Error, Rejected, Sink, Versions, check};

/// Kinesis's limit of a partition key.
const PARTITION_KEY_CHARACTERS: usize = 256;
/// What the producer may put around a record that by itself would be read as an aggregate.
const WRAPPING_BYTES: usize = 64;

/// The `kinesis` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KinesisConfig {
    /// How status, logs and metrics call it. Default: `kinesis`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The stream; made when it is not there.
    pub stream: String,
    /// Shards of a stream that is made. Default: 1.
    #[serde(default = "default_shards")]
    pub shards: u32,
    /// A stream that is made adds and removes shards as the load asks. Default: false.
    #[serde(default)]
    pub on_demand: bool,
    /// How long a stream that is made keeps records, from 24 to 8760. Default: 24.
    #[serde(default)]
    pub retention_hours: Option<u32>,
    /// The KMS key that encrypts a stream that is made. Default: not encrypted.
    #[serde(default)]
    pub encryption_key: Option<String>,
    /// The largest record, partition key included. Default: 1 MiB, which every stream takes; up to 10 MiB where the stream allows it.
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: usize,
    /// The events' `source`. Default: `/tributary`.
    #[serde(default = "cloudevent::default_source")]
    pub source: String,
    /// `full` (default), `thin` or `full_if_it_fits`.
    #[serde(default)]
    pub event: Detail,
    /// Whether the documents of a load are written. Default: true.
    #[serde(default = "default_notify_load")]
    pub notify_load: bool,
    /// Default: as every AWS tool finds it.
    #[serde(default)]
    pub region: Option<String>,
    /// Another endpoint than AWS's own.
    #[serde(default)]
    pub endpoint_url: Option<String>,
}

fn default_name() -> String {
    "kinesis".to_owned()
}

fn default_shards() -> u32 {
    1
}

fn default_max_record_bytes() -> usize {
    1 << 20
}

fn default_notify_load() -> bool {
    true
}

impl KinesisConfig {
    pub fn new(stream: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            stream: stream.into(),
            shards: default_shards(),
            on_demand: false,
            retention_hours: None,
            encryption_key: None,
            max_record_bytes: default_max_record_bytes(),
            source: cloudevent::default_source(),
            event: Detail::default(),
            notify_load: default_notify_load(),
            region: None,
            endpoint_url: None,
        }
    }

    fn options(&self) -> KinesisOptions {
        KinesisOptions {
            region: self.region.clone(),
            endpoint: self.endpoint_url.clone(),
            on_demand: self.on_demand,
            retention_hours: self.retention_hours,
            encryption_key: self.encryption_key.clone(),
            max_record_bytes: self.max_record_bytes,
            ..KinesisOptions::default()
        }
    }
}

pub struct KinesisSink {
    config: KinesisConfig,
    options: KinesisOptions,
    origin: Origin,
    target: String,
    stream: StreamName,
    provider: Option<Kinesis>,
    /// Made anew after an error, as the streams' protocol asks.
    writer: Option<Box<dyn StreamWriter>>,
    /// Between `begin_load` and the next frontier.
    loading: bool,
}

impl KinesisSink {
    pub fn new(config: KinesisConfig) -> Self {
        let options = config.options();
        Self::with_options(config, options)
    }

    /// With options of the producer that the configuration has no words for.
    pub fn with_options(config: KinesisConfig, options: KinesisOptions) -> Self {
        let (target, stream) = (format!("Kinesis stream {}", config.stream), StreamName(config.stream.clone()));
        let origin = Origin::new(&config.source);
        Self { config, options, origin, target, stream, provider: None, writer: None, loading: false }
    }

    fn failed(&self, error: &streams::Error) -> Error {
        if matches!(error, streams::Error::Throttled { .. }) {
            return Error::throttled(&self.target, error, None);
        }
        match error.class() {
            ErrorClass::Transient => Error::unavailable(&self.target, error),
            ErrorClass::Misconfigured => Error::misconfigured(&self.target, error, "Correct it, and start the sink again"),
            ErrorClass::Definite | ErrorClass::Bug => Error::unexpected(&self.target, error),
        }
    }

    async fn provider(&mut self) -> Result<&Kinesis, Error> {
        if self.provider.is_none() {
            // Boxed: what looks for credentials is large.
            let connected = Box::pin(Kinesis::connect(self.options.clone())).await;
            self.provider = Some(connected.map_err(|error| self.failed(&error))?);
        }
        let missing = || Error::unavailable(&self.target, "it has not been prepared");
        self.provider.as_ref().ok_or_else(missing)
    }

    async fn append(&mut self, records: Vec<Record>) -> Result<(), streams::Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.append(&self.stream, records).await?;
        writer.flush().await.map(drop)
    }

    fn record(&self, change: &EntityChange) -> Result<Record, String> {
        let partition_key = partition_key(change);
        let (limit, beside) = (self.config.max_record_bytes, partition_key.len() + WRAPPING_BYTES);
        let event = self.config.event.event(change, &self.origin, beside, limit);
        let event =
            event.map_err(|bytes| format!("the record takes {bytes} bytes, more than the {limit} of max_record_bytes"))?;
        Ok(Record { partition_key, data: event.into() })
    }
}

fn partition_key(change: &EntityChange) -> String {
    let key = format!("{}/{}", change.entity, change.key);
    if key.chars().count() <= PARTITION_KEY_CHARACTERS {
        return key;
    }
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait]
impl Sink for KinesisSink {
    fn know(&mut self, versions: Arc<dyn Versions>) {
        self.origin.know(versions);
    }

    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        // Both are made anew: the AWS SDK then looks for credentials anew as well.
        (self.writer, self.provider) = (None, None);
        let (stream, shards) = (self.stream.clone(), self.config.shards);
        let provider = self.provider().await?;
        let made = provider.ensure(&stream, shards).await;
        made.map_err(|error| self.failed(&error))
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let silent = self.loading && !self.config.notify_load;
        let (accepted, mut rejected) = check::sort(if silent { &[] } else { changes });
        let mut records = Vec::with_capacity(accepted.len());
        for change in accepted {
            match self.record(change) {
                Ok(record) => records.push(record),
                Err(reason) => rejected.push(Rejected { change: change.clone(), reason }),
            }
        }
        if !records.is_empty() {
            if self.writer.is_none() {
                let writer = self.provider().await?.writer().await;
                self.writer = Some(writer.map_err(|error| self.failed(&error))?);
            }
            if let Err(error) = self.append(records).await {
                self.writer = None;
                return Err(self.failed(&error));
            }
        }
        if frontier.is_some() {
            self.loading = false;
        }
        Ok(rejected)
    }

    /// What vanished between two loads is not known to a stream, and not told.
    // Each instance tells of its own share, and nothing is removed at the end of a load.
    fn own(&mut self, _range: KeyRange) -> bool {
        true
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), Error> {
        Ok(())
    }

    async fn check(&mut self, _entities: &[EntityInfo]) -> Result<Checked, Error> {
        let stream = self.stream.clone();
        let detail = match self.provider().await?.describe(&stream).await {
            Ok(description) => format!("{} is there, with {} shards", self.target, description.shards.len()),
            Err(streams::Error::NoSuchStream { .. }) => format!("{} is not there yet: it will be made", self.target),
            Err(error) => return Err(self.failed(&error)),
        };
        Ok(Checked { detail, warnings: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    fn change(key: &str, bytes: usize) -> EntityChange {
        EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text(key),
            version: Lsn::ZERO,
            commit_time_ms: 0,
            document: Some(format!("{{\"text\":\"{}\"}}", "x".repeat(bytes)).into()),
        }
    }

    #[test]
    fn partition_keys_fit_and_differ() {
        assert_eq!(partition_key(&change("1", 0)), "order/1");
        let (a, b) = (partition_key(&change(&"é".repeat(300), 0)), partition_key(&change(&"è".repeat(300), 0)));
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }

    #[test]
    fn what_is_too_large_is_told_or_thinned() {
        let sink = KinesisSink::new(KinesisConfig::new("entities"));
        assert!(sink.record(&change("1", 1_000_000)).is_ok());
        assert!(sink.record(&change("1", 1_048_576)).unwrap_err().contains("1048576"));
        let sink = KinesisSink::new(KinesisConfig { event: Detail::FullIfItFits, ..KinesisConfig::new("entities") });
        assert!(sink.record(&change("1", 1_048_576)).unwrap().data.len() < 1000);
    }
}
