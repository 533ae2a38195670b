//! A message in an SQS queue for every entity change: what the SNS sink sends, without a topic between.
//!
//! Messages are CloudEvents ([`crate::cloudevent`]) with attributes, as those of [`crate::sns`]. In a FIFO queue the message group is `entity:key` and the deduplication id
//! `entity:key:version`: changes of one entity are received in their order, and a repeat within five minutes is dropped by SQS. A standard queue keeps no order and may deliver twice:
//! whoever keeps the highest `sequence` a key (INV-5) has all that is needed. The same holds after a crash, when older changes may come again.
//!
//! The documents of a load are not sent, unless `notify_load` says so; what [`crate::sns`] says of that holds here too.
//!
//! How messages are made, batched and tried again is argued in `notification.rs`.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};

use crate::Error;
use crate::aws::{self, Access};
use crate::notification::{
    Facts, FailedEntry, Fate, Message, MessageSink, Service, deduplication_id, fates, group_id, message_config,
};

/// What SQS has always taken; a queue's attribute `MaximumMessageSize` says whether it takes more, up to 1 MiB.
const MESSAGE_BYTES: usize = 256 << 10;

message_config! {
    /// The `sqs` sink.
    SqsConfig,
    "sqs",
    /// The queue, standard or FIFO. It must exist.
    queue_url
}

/// A queue.
pub struct Queue {
    config: SqsConfig,
    target: String,
    access: Access,
    client: Option<Client>,
}

pub type SqsSink = MessageSink<Queue>;

impl SqsSink {
    pub fn new(config: SqsConfig) -> Self {
        let target = format!("SQS queue {}", config.queue_url);
        let facts = Facts { fifo: config.queue_url.ends_with(".fifo"), message_bytes: MESSAGE_BYTES, batch_bytes: MESSAGE_BYTES };
        let (shape, notify_load) = (config.shape(), config.notify_load);
        let access = config.access(region_of(&config.queue_url));
        Self::over(Queue { config, target, access, client: None }, shape, notify_load, facts)
    }

    /// With an AWS configuration that the process has already.
    pub fn with_sdk_config(config: SqsConfig, sdk: &SdkConfig) -> Self {
        let mut sink = Self::new(config);
        sink.service.client = Some(Client::new(sdk));
        sink.service.access = Access::Given(Box::new(sdk.clone()));
        sink
    }
}

/// `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`; none where the host is no such name.
fn region_of(queue_url: &str) -> Option<&str> {
    let (_, rest) = queue_url.split_once("://")?;
    let host = rest.split('/').next()?;
    let mut labels = host.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some("sqs"), Some(region), Some("amazonaws")) => Some(region),
        _ => None,
    }
}

impl Queue {
    fn failed<E: ProvideErrorMetadata + std::error::Error + 'static, R: std::fmt::Debug + 'static>(
        &self,
        error: &SdkError<E, R>,
    ) -> Error {
        aws::classify(&self.target, error.code(), error.message(), &DisplayErrorContext(error).to_string())
    }

    fn entry(&self, index: usize, message: &Message, fifo: bool) -> Result<SendMessageBatchRequestEntry, Error> {
        let mut entry = SendMessageBatchRequestEntry::builder().id(index.to_string()).message_body(&message.body);
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
impl Service for Queue {
    fn target(&self) -> &str {
        &self.target
    }

    async fn prepare(&mut self) -> Result<Facts, Error> {
        let client = self.client.insert(Client::new(&self.access.sdk_config().await)).clone();
        let request = client.get_queue_attributes();
        // Every queue has a largest message; only a FIFO queue has an attribute `FifoQueue`, and asking another for it is an error.
        let queue = request
            .queue_url(&self.config.queue_url)
            .attribute_names(QueueAttributeName::MaximumMessageSize)
            .send()
            .await
            .map_err(|error| self.failed(&error))?;
        let size = queue.attributes().and_then(|attributes| attributes.get(&QueueAttributeName::MaximumMessageSize));
        let message_bytes = size.and_then(|value| value.parse().ok()).unwrap_or(MESSAGE_BYTES);
        // A batch may be as large as the largest message that queues can be set to: 1 MiB where this one is, and 256 KiB everywhere.
        let batch_bytes = message_bytes.max(MESSAGE_BYTES);
        Ok(Facts { fifo: self.config.queue_url.ends_with(".fifo"), message_bytes, batch_bytes })
    }

    async fn send(&self, batch: &[Message], fifo: bool) -> Result<Vec<Fate>, Error> {
        let entries: Result<Vec<_>, _> =
            batch.iter().enumerate().map(|(index, message)| self.entry(index, message, fifo)).collect();
        let request = aws::prepared(self.client.as_ref(), &self.target)?.send_message_batch();
        let request = request.queue_url(&self.config.queue_url).set_entries(Some(entries?));
        let answer = request.send().await.map_err(|error| self.failed(&error))?;
        let taken: Vec<&str> = answer.successful().iter().map(|entry| entry.id()).collect();
        let failed = answer.failed().iter().map(|entry| FailedEntry {
            id: entry.id(),
            at_fault: entry.sender_fault(),
            code: entry.code(),
            message: entry.message(),
        });
        fates(&self.target, batch.len(), &taken, &failed.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_from_the_url() {
        assert_eq!(region_of("https://sqs.eu-west-1.amazonaws.com/1/orders"), Some("eu-west-1"));
        assert_eq!(region_of("https://sqs.cn-north-1.amazonaws.com.cn/1/orders"), Some("cn-north-1"));
        assert_eq!(region_of("http://127.0.0.1:4566/1/orders"), None);
    }
}
