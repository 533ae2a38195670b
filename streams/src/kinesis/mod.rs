//! Kinesis Data Streams.
//!
//! - Writing, and why the order of a key is kept whatever fails: [`writer`].
//! - Reading, over reshards and from any position: [`reader`].
//! - Positions: [`position`]. Aggregates: [`aggregate`].
//!
//! Not tested against AWS itself: against kinesis-local (shards, reshards, iterators) and against the crate's own stub (partial failures, throttling, lost answers,
//! trimming).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_kinesis::types::StreamStatus;
use schemas::ErrorClass;
use schemas::progress::{SequenceNumber, StreamName};
use tokio::time::Instant;

use crate::config::KinesisOptions;
use crate::{Error, Positions, Provider, StreamReader, StreamWriter};

mod aggregate;
mod client;
mod lane;
mod position;
mod reader;
mod writer;

use client::{Client, Failure, Kind};

/// How long a new stream may take to become active.
const CREATION: Duration = Duration::from_secs(300);

/// The streams of an account and region.
#[derive(Debug, Clone)]
pub struct Kinesis {
    client: Arc<Client>,
}

impl Kinesis {
    /// Resolves region and credentials. Makes no call to Kinesis yet.
    pub async fn connect(options: KinesisOptions) -> Result<Self, Error> {
        Ok(Self { client: Arc::new(Client::connect(options).await) })
    }

    /// The stream's status; none when it does not exist.
    async fn status(&self, stream: &StreamName) -> Result<Option<StreamStatus>, Error> {
        const OPERATION: &str = "DescribeStreamSummary";
        let call = || async { Ok(self.client.sdk.describe_stream_summary().stream_name(&stream.0).send().await?) };
        match self.client.retry(OPERATION, call).await {
            Ok(answer) => Ok(answer.stream_description_summary.map(|summary| summary.stream_status)),
            Err(Failure { kind: Kind::NotFound, .. }) => Ok(None),
            Err(failure) => Err(failure.into_error(OPERATION, stream)),
        }
    }
}

#[async_trait]
impl Provider for Kinesis {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        const OPERATION: &str = "CreateStream";
        let since = Instant::now();
        let mut pause = Duration::from_millis(5);
        loop {
            match self.status(stream).await? {
                Some(StreamStatus::Active | StreamStatus::Updating) => return Ok(()),
                Some(_) => {}
                None => {
                    let count = i32::try_from(shards.max(1)).unwrap_or(i32::MAX);
                    let call =
                        || async { Ok(self.client.sdk.create_stream().stream_name(&stream.0).shard_count(count).send().await?) };
                    match self.client.retry(OPERATION, call).await {
                        // Somebody else creates it at the same time.
                        Ok(_) | Err(Failure { kind: Kind::InUse, .. }) => {}
                        Err(failure) => return Err(failure.into_error(OPERATION, stream)),
                    }
                }
            }
            if since.elapsed() > CREATION {
                let message = format!("the stream is not active after {} s", CREATION.as_secs());
                return Err(Error::Kinesis {
                    operation: OPERATION,
                    stream: stream.clone(),
                    message,
                    class: ErrorClass::Transient,
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        Ok(Box::new(writer::Writer::new(Arc::clone(&self.client))))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        Ok(Box::new(reader::Reader::start(Arc::clone(&self.client), stream, after).await?))
    }

    /// Kinesis does not say where a shard stands: the youngest records are read, from ten minutes ago, from a day ago, or from the oldest on.
    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let mut tips = BTreeMap::new();
        for shard in self.client.shards(stream).await? {
            for back in [Some(600), Some(86_400), None] {
                let start = match back {
                    Some(seconds) => reader::Start::Time(SystemTime::now() - Duration::from_secs(seconds)),
                    None => reader::Start::Oldest,
                };
                if let Some(tip) = reader::last(&self.client, stream, &shard, &start).await? {
                    tips.insert(shard.id.clone(), tip);
                    break;
                }
            }
        }
        Ok(tips)
    }
}

fn bug(operation: &'static str, stream: &StreamName, message: impl Into<String>) -> Error {
    Error::Kinesis { operation, stream: stream.clone(), message: message.into(), class: ErrorClass::Bug }
}

fn joined(stream: &StreamName, number: &str, place: usize) -> Result<SequenceNumber, Error> {
    position::join(number, place)
        .ok_or_else(|| bug("GetRecords", stream, format!("record {number}: {} sub-records at most", position::PLACES)))
}
