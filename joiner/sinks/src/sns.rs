//! A notification on an SNS topic for every entity change.
//!
//! Messages are CloudEvents ([`crate::cloudevent`]) with the attributes `entity`, `op` (`upserted`, `deleted`) and `key`, for subscriptions' filter policies. On a FIFO topic
//! the message group is `entity:key` and the deduplication id `entity:key:version`: changes of one entity keep their order, and a repeat within five minutes is dropped by SNS.
//!
//! A topic keeps nothing that could be asked for its version, so INV-5 is the subscriber's to hold: delivery is at least once, and after a crash older changes may come again.
//! `sequence` in the event is the version; whoever keeps the highest a key has all that is needed.
//!
//! The documents of a load are not notified, unless `notify_load` says so: nothing has changed at the source, and millions of messages would say so. A load also comes when
//! the topic could not be reached for longer than the outbox keeps changes: what changed meanwhile is then not told, which the log says. Subscribers that must not miss that set
//! `notify_load`.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sns::Client;
use aws_sdk_sns::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{Error, Rejected, Sink, aws, check, cloudevent};

/// Limits of PublishBatch: entries, and bytes of messages with their attributes.
const BATCH_ENTRIES: usize = 10;
const BATCH_BYTES: usize = 256 * 1024;
const BATCHES_IN_FLIGHT: usize = 16;
/// Limit of group and deduplication ids.
const ID_CHARACTERS: usize = 128;
/// Attempts at an entry that SNS failed for a reason of its own, and the pause before the second.
const ENTRY_ATTEMPTS: u32 = 5;
const ENTRY_PAUSE: Duration = Duration::from_millis(50);

/// The `sns` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnsConfig {
    /// How status, logs and metrics call it. Default: `sns`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The topic, standard or FIFO. It must exist.
    pub topic_arn: String,
    /// The events' `source`. Default: `/tributary`.
    #[serde(default = "default_source")]
    pub source: String,
    /// Whether the documents of a load are notified. Default: false.
    #[serde(default)]
    pub notify_load: bool,
    /// Default: the topic's own.
    #[serde(default)]
    pub region: Option<String>,
    /// Another endpoint than AWS's own.
    #[serde(default)]
    pub endpoint_url: Option<String>,
}

fn default_name() -> String {
    "sns".to_owned()
}

fn default_source() -> String {
    "/tributary".to_owned()
}

impl SnsConfig {
    pub fn new(topic_arn: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            topic_arn: topic_arn.into(),
            source: default_source(),
            notify_load: false,
            region: None,
            endpoint_url: None,
        }
    }
}

pub struct SnsSink {
    config: SnsConfig,
    target: String,
    client: Option<Client>,
    fifo: bool,
    /// Between `begin_load` and the next frontier.
    loading: bool,
}

impl SnsSink {
    pub fn new(config: SnsConfig) -> Self {
        let target = format!("SNS topic {}", config.topic_arn);
        let fifo = config.topic_arn.ends_with(".fifo");
        Self { config, target, client: None, fifo, loading: false }
    }

    /// With an AWS configuration that the process has already.
    pub fn with_sdk_config(config: SnsConfig, sdk: &SdkConfig) -> Self {
        let mut sink = Self::new(config);
        sink.client = Some(Client::new(sdk));
        sink
    }

    async fn client(&mut self) -> Client {
        if let Some(client) = &self.client {
            return client.clone();
        }
        // arn:aws:sns:REGION:ACCOUNT:NAME
        let region = self.config.region.clone().or_else(|| self.config.topic_arn.split(':').nth(3).map(str::to_owned));
        let sdk = aws::load(region.as_deref(), self.config.endpoint_url.as_deref()).await;
        self.client.insert(Client::new(&sdk)).clone()
    }

    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: std::fmt::Debug + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> Error {
        aws::classify(&self.target, error.code(), error.message(), &DisplayErrorContext(error).to_string())
    }

    /// Publishes a batch until every entry is in, or refused. SNS answers 200 also when entries failed: each is looked at.
    async fn publish(&self, client: &Client, batch: Vec<Notification>) -> Result<Vec<Rejected>, Error> {
        let mut rejected = Vec::new();
        let mut left = batch;
        let mut pause = ENTRY_PAUSE;
        for _ in 0..ENTRY_ATTEMPTS {
            let mut entries = Vec::with_capacity(left.len());
            for (index, notification) in left.iter().enumerate() {
                entries.push(self.entry(index, notification)?);
            }
            let request =
                client.publish_batch().topic_arn(&self.config.topic_arn).set_publish_batch_request_entries(Some(entries));
            let answer = request.send().await.map_err(|error| self.failed(&error))?;
            let failed = answer.failed();
            let mut again = Vec::new();
            for (index, notification) in left.into_iter().enumerate() {
                let id = index.to_string();
                if answer.successful().iter().any(|entry| entry.id() == Some(&id)) {
                    continue;
                }
                match failed.iter().find(|entry| entry.id() == id) {
                    Some(entry) if entry.sender_fault() => {
                        let reason = format!("{} [{}]", entry.message().unwrap_or("SNS refuses it"), entry.code());
                        rejected.push(Rejected { change: notification.change, reason });
                    }
                    // Named as failed, or not named at all.
                    _ => again.push(notification),
                }
            }
            if again.is_empty() {
                return Ok(rejected);
            }
            left = again;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Error::unavailable(
            &self.target,
            format!("{} messages of a batch were not taken in {ENTRY_ATTEMPTS} attempts", left.len()),
        ))
    }

    fn entry(&self, index: usize, notification: &Notification) -> Result<PublishBatchRequestEntry, Error> {
        let change = &notification.change;
        let mut entry = PublishBatchRequestEntry::builder().id(index.to_string()).message(&notification.message);
        for (name, value) in attributes(change) {
            let attribute = MessageAttributeValue::builder().data_type("String").string_value(value).build();
            entry = entry.message_attributes(name, attribute.map_err(|error| Error::unexpected(&self.target, error))?);
        }
        if self.fifo {
            entry = entry
                .message_group_id(short_id(&format!("{}:{}", change.entity, change.key)))
                .message_deduplication_id(short_id(&cloudevent::id(change)));
        }
        entry.build().map_err(|error| Error::unexpected(&self.target, error))
    }
}

#[async_trait]
impl Sink for SnsSink {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        let client = self.client().await;
        let topic =
            client.get_topic_attributes().topic_arn(&self.config.topic_arn).send().await.map_err(|error| self.failed(&error))?;
        self.fifo =
            topic.attributes().and_then(|attributes| attributes.get("FifoTopic")).map_or(self.fifo, |value| value == "true");
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        if !self.config.notify_load {
            tracing::warn!(target_name = %self.target, "a load begins, and what it writes is not notified (notify_load: false)");
        }
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let client = self.client().await;
        let silent = self.loading && !self.config.notify_load;
        let (accepted, mut rejected) = check::sort(if silent { &[] } else { changes });
        let (batches, too_large) = batches(&accepted, &self.config.source);
        rejected.extend(too_large);
        let this = &*self;
        let publishing = stream::iter(batches).map(|batch| this.publish(&client, batch));
        let refused: Vec<Vec<Rejected>> = publishing.buffer_unordered(BATCHES_IN_FLIGHT).try_collect().await?;
        rejected.extend(refused.into_iter().flatten());
        if frontier.is_some() {
            self.loading = false;
        }
        Ok(rejected)
    }

    /// What vanished between two loads is not known to a topic, and not notified.
    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), Error> {
        Ok(())
    }
}

struct Notification {
    /// Shares its document with the batch that it came in.
    change: EntityChange,
    message: String,
    bytes: usize,
}

fn attributes(change: &EntityChange) -> [(&'static str, &str); 3] {
    [("entity", &change.entity), ("op", cloudevent::operation(change)), ("key", change.key.as_str())]
}

/// Batches within both limits, and the changes that by themselves are over.
fn batches(changes: &[&EntityChange], source: &str) -> (Vec<Vec<Notification>>, Vec<Rejected>) {
    let (mut batches, mut too_large) = (Vec::new(), Vec::new());
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for change in changes {
        let message = cloudevent::to_json(change, source);
        let described: usize = attributes(change).iter().map(|(name, value)| name.len() + "String".len() + value.len()).sum();
        let size = message.len() + described;
        if size > BATCH_BYTES {
            let reason = format!("the notification takes {size} bytes, more than the {BATCH_BYTES} that SNS takes");
            too_large.push(Rejected { change: (*change).clone(), reason });
            continue;
        }
        if batch.len() == BATCH_ENTRIES || bytes + size > BATCH_BYTES {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += size;
        batch.push(Notification { change: (*change).clone(), message, bytes: size });
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    debug_assert!(batches.iter().all(|batch| batch.iter().map(|entry| entry.bytes).sum::<usize>() <= BATCH_BYTES));
    (batches, too_large)
}

/// Group and deduplication ids are at most 128 of ASCII's printable characters: what is longer or holds others is told by its hash.
fn short_id(text: &str) -> String {
    if text.len() <= ID_CHARACTERS && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return text.to_owned();
    }
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    fn change(key: &str, size: usize) -> EntityChange {
        let document = format!(r#"{{"text":"{}"}}"#, "x".repeat(size));
        EntityChange {
            entity: "order".into(),
            key: EntityKey::from_parts([key]),
            version: Lsn::ZERO,
            commit_time_ms: 0,
            document: Some(document.into()),
        }
    }

    #[test]
    fn batches_keep_both_limits() {
        let changes: Vec<_> = (0..25)
            .map(|n| change(&n.to_string(), 10))
            .chain([change("big", 200_000), change("big2", 200_000), change("no", 300_000)])
            .collect();
        let references: Vec<_> = changes.iter().collect();
        let (batches, too_large) = batches(&references, "/s");
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 6, 1]);
        assert_eq!(too_large.len(), 1);
        assert!(too_large[0].reason.contains("262144"));
    }

    #[test]
    fn ids_are_short_and_differ() {
        assert_eq!(short_id("order:1"), "order:1");
        let (a, b) = (short_id(&"é".repeat(100)), short_id(&"è".repeat(100)));
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }
}
