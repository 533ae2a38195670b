//! Kinesis Data Streams.
//!
//! - Writing, and why the order of a key is kept whatever fails: [`writer`].
//! - Reading, over reshards and from any position: [`reader`], [`lineage`]; one shard, by polling or by subscription: [`follow`], [`fan_out`].
//! - Events that are too large for a record: [`oversize`].
//! - Making, listing and describing streams: [`operations`]; changing them: [`change`].
//! - Positions: [`position`]. Aggregates: [`aggregate`].
//!
//! Not tested against AWS itself: against kinesis-local (shards, reshards, iterators) and against the crate's own stub (partial failures, throttling, lost answers,
//! trimming).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use schemas::ErrorClass;
use schemas::progress::{SequenceNumber, StreamName};

use crate::config::KinesisOptions;
use crate::{Created, Description, Error, Positions, Provider, Setting, StreamReader, StreamSettings, StreamWriter, Summary};

mod aggregate;
mod ahead;
mod change;
mod client;
mod fan_out;
mod follow;
mod lane;
mod lineage;
mod operations;
mod oversize;
mod pace;
mod position;
mod reader;
mod writer;

use client::Client;
use follow::Start;

/// The streams of an account and region.
#[derive(Debug, Clone)]
pub struct Kinesis {
    client: Arc<Client>,
}

impl Kinesis {
    /// Resolves region and credentials. Makes no call to Kinesis yet.
    pub async fn connect(options: KinesisOptions) -> Result<Self, Error> {
        Ok(Self { client: Arc::new(Client::connect(options).await?) })
    }
}

#[async_trait]
impl Provider for Kinesis {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        operations::ensure(&self.client, stream, &self.settings(shards)).await
    }

    fn settings(&self, shards: u32) -> StreamSettings {
        self.client.options.settings(shards)
    }

    async fn create(&self, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
        operations::create(&self.client, stream, settings).await
    }

    async fn apply(&self, stream: &StreamName, settings: &StreamSettings, setting: Setting) -> Result<bool, Error> {
        change::apply(&self.client, stream, settings, setting).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Summary>, Error> {
        operations::list(&self.client, prefix).await
    }

    async fn describe(&self, stream: &StreamName) -> Result<Description, Error> {
        operations::describe(&self.client, stream).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        Ok(Box::new(writer::Writer::new(Arc::clone(&self.client))))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        self.reader_of(stream, after, 0..=u128::MAX).await
    }

    async fn reader_of(
        &self,
        stream: &StreamName,
        after: &Positions,
        hashes: RangeInclusive<u128>,
    ) -> Result<Box<dyn StreamReader>, Error> {
        Ok(Box::new(reader::Reader::start(Arc::clone(&self.client), stream, after, hashes).await?))
    }

    async fn is_whole(&self, stream: &StreamName) -> Result<bool, Error> {
        operations::is_whole(&self.client, stream).await
    }

    /// Kinesis does not say where a shard stands: the youngest records are read, from ten minutes ago, from a day ago, or from the oldest on.
    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let mut tips = BTreeMap::new();
        for shard in self.client.shards(stream).await? {
            for back in [Some(600), Some(86_400), None] {
                let start = match back {
                    Some(seconds) => Start::Time(SystemTime::now() - Duration::from_secs(seconds)),
                    None => Start::Oldest,
                };
                if let Some(tip) = follow::last(&self.client, stream, &shard, &start).await? {
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
