//! Enhanced fan-out: a consumer that is registered with the stream is sent each shard's records, with 2 MB/s a shard of its own, instead of asking for them.
//!
//! A subscription lasts for five minutes at most, and ends by itself or with an error, perhaps in the middle of an event; then the shard is subscribed to again, at the record that was read last: of an event
//! that did not come whole nothing has been handed over. A shard takes one subscription of a consumer every five seconds, and a new one ends the old: two readers under one name would take the shard from
//! each other without end, so every instance of the joiner needs a name of its own, or reads other shards. A consumer that somebody has removed is registered again.
//!
//! # The end of a shard
//! Kinesis tells it by the names of the shard's children. Not every Kinesis does, so when nothing comes the shard map is asked now and then. That it shows the shard closed says
//! nothing about the subscription that stands: what waits on its connection may be older than the shard's last records, an event without records too. So the shard is
//! subscribed to again, and has ended when nothing comes of a subscription that was made after it was seen closed.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kinesis::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError as StreamError;
use aws_sdk_kinesis::types::{ConsumerStatus, ShardIteratorType, StartingPosition, SubscribeToShardEventStream};
use schemas::ErrorClass;
use schemas::progress::StreamName;
use tokio::time::Instant;

use super::client::{Client, Failure, Kind};
use super::follow::{CaughtUp, Follow, Start, foreign_position, is_gone};
use super::lineage::Lineage;
use super::operations;
use crate::Error;

const SUBSCRIBE: &str = "SubscribeToShard";
const REGISTER: &str = "RegisterStreamConsumer";
/// How long a new consumer may take to become active.
const REGISTRATION: Duration = Duration::from_secs(300);
/// Kinesis says something at least so often, if only that nothing has come. Whoever is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// When nothing comes, the shard map is asked whether the shard is closed; once in so many of the pauses that polling would make.
const LOOK_PAUSES: u32 = 4;
/// A subscription that lasted for longer was a good one, and what fails after it has a budget of its own.
const LASTED: Duration = Duration::from_secs(5);

/// The ARN of the stream's consumer of this name; it is registered where it is not yet.
pub(super) async fn consumer(client: &Client, stream: &StreamName, name: &str) -> Result<Arc<str>, Error> {
    let stream_arn = operations::existing(client, stream).await?.stream_arn;
    let since = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let describe = client.sdk.describe_stream_consumer().stream_arn(&stream_arn).consumer_name(name);
        match client.retry("DescribeStreamConsumer", || async { Ok(describe.clone().send().await?) }).await {
            Ok(answer) => {
                let active = answer.consumer_description.filter(|consumer| consumer.consumer_status == ConsumerStatus::Active);
                if let Some(consumer) = active {
                    return Ok(consumer.consumer_arn.into());
                }
            }
            Err(Failure { kind: Kind::NotFound, .. }) => {
                let register = client.sdk.register_stream_consumer().stream_arn(&stream_arn).consumer_name(name);
                match client.retry(REGISTER, || async { Ok(register.clone().send().await?) }).await {
                    // Another instance registers it at the same time.
                    Ok(_) | Err(Failure { kind: Kind::InUse, .. }) => {}
                    Err(failure) => return Err(failure.into_error(REGISTER, stream)),
                }
            }
            Err(failure) => return Err(failure.into_error("DescribeStreamConsumer", stream)),
        }
        if since.elapsed() > REGISTRATION {
            let message = format!("consumer {name} is not active after {} s", REGISTRATION.as_secs());
            return Err(Error::Kinesis { operation: REGISTER, stream: stream.clone(), message, class: ErrorClass::Transient });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Why nothing more comes of a subscription.
enum Ending {
    /// It has come to the end of the shard.
    Shard,
    /// Nobody reads any more.
    Reader,
    /// The shard map shows the shard closed; what it still holds is for another subscription.
    Closed,
    Subscription(Failure),
}

impl Ending {
    fn quiet(message: String) -> Self {
        Self::Subscription(Failure { kind: Kind::Transient, message })
    }
}

impl Follow {
    /// Whether the shard takes no more records. A map in which it is not, because it is older than the shard, says nothing.
    async fn is_closed(&self) -> Result<bool, Error> {
        let shards = self.client.shards(&self.stream).await?;
        let lineage = Lineage::new(&shards);
        Ok(lineage.get(&self.shard.id).map_or_else(|| lineage.is_gone(&self.shard), |shard| shard.ending.is_some()))
    }

    /// Reads the shard to its end by subscriptions. Answers whether it came to it; it does not when nobody reads any more.
    pub(super) async fn subscribe(&mut self, consumer: &str) -> Result<bool, Error> {
        let (mut attempts, mut closed) = (self.client.attempts(), false);
        let mut consumer: Arc<str> = consumer.into();
        loop {
            let (since, asked) = (Instant::now(), CaughtUp::now());
            self.come_back();
            let ending = match self.subscription(&consumer).await {
                Ok(mut subscription) => self.receive(&mut subscription, closed, asked).await?,
                Err(failure) => Ending::Subscription(failure),
            };
            let failure = match ending {
                Ending::Shard => return Ok(true),
                Ending::Reader => return Ok(false),
                Ending::Closed => {
                    closed = true;
                    continue;
                }
                Ending::Subscription(failure) => failure,
            };
            // One that lasted, or brought something, was a good one.
            if since.elapsed() > LASTED || self.read.is_some() {
                attempts = self.client.attempts();
            }
            let failure = match failure.kind {
                Kind::Invalid if let Some(error) = foreign_position(&self.stream, &self.shard.id, &self.start)? => {
                    return Err(error);
                }
                Kind::NotFound if is_gone(&self.client, &self.stream, &self.shard).await? => return Ok(true),
                Kind::NotFound => {
                    if let Some(options) = &self.client.options.fan_out {
                        consumer = self::consumer(&self.client, &self.stream, &options.consumer).await?;
                    }
                    failure.of_a_shard()
                }
                // The last subscription is not five seconds old.
                Kind::InUse => Failure { kind: Kind::Transient, ..failure },
                _ => failure,
            };
            let paused = attempts.pause(SUBSCRIBE, failure).await;
            paused.map_err(|failure| failure.into_error(SUBSCRIBE, &self.stream))?;
        }
    }

    async fn subscription(&self, consumer: &str) -> Result<SubscribeToShardOutput, Failure> {
        let position = StartingPosition::builder();
        let position = match &self.start {
            Start::Oldest => position.r#type(ShardIteratorType::TrimHorizon),
            Start::Time(time) => position.r#type(ShardIteratorType::AtTimestamp).timestamp(DateTime::from(*time)),
            Start::At { number, .. } => position.r#type(ShardIteratorType::AtSequenceNumber).sequence_number(number),
        };
        let call = self.client.sdk.subscribe_to_shard().consumer_arn(consumer).shard_id(&self.shard.id.0);
        Ok(call.set_starting_position(position.build().ok()).send().await?)
    }

    /// `closed`: the shard was seen closed before this subscription was made, which was at `asked`.
    async fn receive(
        &mut self,
        subscription: &mut SubscribeToShardOutput,
        closed: bool,
        asked: CaughtUp,
    ) -> Result<Ending, Error> {
        let between_looks = Duration::from_millis(self.client.options.read_idle_interval_ms) * LOOK_PAUSES;
        let mut looked = Instant::now();
        loop {
            // Nothing is taken off the connection while too much is read ahead; Kinesis stops sending then.
            let held = self.ahead.reserve(0).await;
            let event = match tokio::time::timeout(SILENCE, subscription.event_stream.recv()).await {
                Ok(Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event)))) => event,
                Ok(Ok(Some(_))) => continue,
                Ok(Ok(None)) => return Ok(Ending::quiet("the subscription has ended, as it does after five minutes".into())),
                Ok(Err(SdkError::ServiceError(told))) => return Ok(Ending::Subscription(named(told.err()))),
                Ok(Err(error)) => return Ok(Ending::Subscription(Failure::of(&error, |_| false))),
                Err(_) => return Ok(Ending::quiet(format!("nothing has come for {} s", SILENCE.as_secs()))),
            };
            let caught_up = event.millis_behind_latest == 0;
            let idle = event.records.is_empty() && caught_up;
            if !self.hand_over(event.records, held).await? {
                return Ok(Ending::Reader);
            }
            if caught_up {
                // The event may have waited on the connection, but not since before there was one.
                self.caught_up = Some(asked);
            }
            if event.child_shards.is_some_and(|children| !children.is_empty()) || (idle && closed) {
                return Ok(Ending::Shard);
            }
            if idle && looked.elapsed() > between_looks {
                if self.is_closed().await? {
                    return Ok(Ending::Closed);
                }
                looked = Instant::now();
            }
        }
    }
}

/// What Kinesis says in an event stream. It names what happened beside the message and not in it.
fn named(error: &StreamError) -> Failure {
    let code = match error {
        StreamError::ResourceNotFoundException(_) => "ResourceNotFoundException",
        StreamError::ResourceInUseException(_) => "ResourceInUseException",
        StreamError::KmsDisabledException(_) => "KMSDisabledException",
        StreamError::KmsInvalidStateException(_) => "KMSInvalidStateException",
        StreamError::KmsAccessDeniedException(_) => "KMSAccessDeniedException",
        StreamError::KmsNotFoundException(_) => "KMSNotFoundException",
        StreamError::KmsOptInRequired(_) => "KMSOptInRequired",
        StreamError::KmsThrottlingException(_) => "KMSThrottlingException",
        // What has no name says nothing for good.
        _ => "InternalFailureException",
    };
    Failure::from_code(code, error.message().unwrap_or_default())
}
