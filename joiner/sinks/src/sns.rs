//! A notification on an SNS topic for every entity change.
//!
//! Messages are CloudEvents ([`crate::cloudevent`]) with the attributes `entity`, `op` (`upserted`, `deleted`) and `key`, and whichever members of the document are asked for, for
//! subscriptions' filter policies. On a FIFO topic the message group is `entity:key` and the deduplication id `entity:key:version`: changes of one entity keep their order, and a repeat
//! within five minutes is dropped by SNS.
//!
//! A topic keeps nothing that could be asked for its version, so INV-5 is the subscriber's to hold: delivery is at least once, and after a crash older changes may come again.
//! `sequence` in the event is the version; whoever keeps the highest a key has all that is needed.
//!
//! The documents of a load are not notified, unless `notify_load` says so: nothing has changed at the source, and millions of messages would say so. A load also comes when
//! the topic could not be reached for longer than the outbox keeps changes: what changed meanwhile is then not told, which the log says. Subscribers that must not miss that set
//! `notify_load`.
//!
//! How messages are made, batched and tried again is argued in `notification.rs`, which this sink shares with that of SQS.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sns::Client;
use aws_sdk_sns::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};

use crate::Error;
use crate::aws::{self, Access};
use crate::notification::{
    Facts, FailedEntry, Fate, Message, MessageSink, Service, deduplication_id, fates, group_id, message_config,
};

/// What a topic takes unless its attribute `MaximumMessageSize` says otherwise.
const MESSAGE_BYTES: usize = 256 << 10;

message_config! {
    /// The `sns` sink.
    SnsConfig,
    "sns",
    /// The topic, standard or FIFO. It must exist.
    topic_arn
}

/// A topic.
pub struct Topic {
    config: SnsConfig,
    target: String,
    access: Access,
    client: Option<Client>,
}

pub type SnsSink = MessageSink<Topic>;

impl SnsSink {
    pub fn new(config: SnsConfig) -> Self {
        let target = format!("SNS topic {}", config.topic_arn);
        let facts = Facts { fifo: config.topic_arn.ends_with(".fifo"), message_bytes: MESSAGE_BYTES, batch_bytes: MESSAGE_BYTES };
        let (shape, notify_load) = (config.shape(), config.notify_load);
        // arn:aws:sns:REGION:ACCOUNT:NAME
        let access = config.access(config.topic_arn.split(':').nth(3));
        Self::over(Topic { config, target, access, client: None }, shape, notify_load, facts)
    }

    /// With an AWS configuration that the process has already.
    pub fn with_sdk_config(config: SnsConfig, sdk: &SdkConfig) -> Self {
        let mut sink = Self::new(config);
        sink.service.client = Some(Client::new(sdk));
        sink.service.access = Access::Given(Box::new(sdk.clone()));
        sink
    }
}

impl Topic {
    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: std::fmt::Debug + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> Error {
        aws::classify(&self.target, error.code(), error.message(), &DisplayErrorContext(error).to_string())
    }

    fn entry(&self, index: usize, message: &Message, fifo: bool) -> Result<PublishBatchRequestEntry, Error> {
        let mut entry = PublishBatchRequestEntry::builder().id(index.to_string()).message(&message.body);
        for attribute in &message.attributes {
            let value = MessageAttributeValue::builder().data_type(attribute.data_type).string_value(&attribute.value).build();
            entry = entry.message_attributes(&attribute.name, value.map_err(|error| Error::unexpected(&self.target, error))?);
        }
        if fifo {
            entry = entry.message_group_id(group_id(&message.change)).message_deduplication_id(deduplication_id(&message.change));
        }
        entry.build().map_err(|error| Error::unexpected(&self.target, error))
    }
}

#[async_trait]
impl Service for Topic {
    fn target(&self) -> &str {
        &self.target
    }

    async fn prepare(&mut self) -> Result<Facts, Error> {
        let client = self.client.insert(Client::new(&self.access.sdk_config().await)).clone();
        let request = client.get_topic_attributes();
        let topic = request.topic_arn(&self.config.topic_arn).send().await.map_err(|error| self.failed(&error))?;
        let said = |name: &str| topic.attributes().and_then(|attributes| attributes.get(name));
        let fifo = said("FifoTopic").map_or(self.config.topic_arn.ends_with(".fifo"), |value| value == "true");
        let bytes = said("MaximumMessageSize").and_then(|value| value.parse().ok()).unwrap_or(MESSAGE_BYTES);
        Ok(Facts { fifo, message_bytes: bytes, batch_bytes: bytes })
    }

    async fn send(&self, batch: &[Message], fifo: bool) -> Result<Vec<Fate>, Error> {
        let entries: Result<Vec<_>, _> =
            batch.iter().enumerate().map(|(index, message)| self.entry(index, message, fifo)).collect();
        let request = aws::prepared(self.client.as_ref(), &self.target)?.publish_batch().topic_arn(&self.config.topic_arn);
        let request = request.set_publish_batch_request_entries(Some(entries?));
        let answer = request.send().await.map_err(|error| self.failed(&error))?;
        let taken: Vec<&str> = answer.successful().iter().filter_map(|entry| entry.id()).collect();
        let failed = answer.failed().iter().map(|entry| FailedEntry {
            id: entry.id(),
            at_fault: entry.sender_fault(),
            code: entry.code(),
            message: entry.message(),
        });
        fates(&self.target, batch.len(), &taken, &failed.collect::<Vec<_>>())
    }
}
