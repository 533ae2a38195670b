//! How change events travel from importer to joiner: one writer trait, one reader trait, and three providers that pass one conformance suite (in
//! memory, embedded in a directory, Kinesis).
//!
//! # What every provider promises
//! - A stream has shards. A record's shard follows from its partition key alone (as long as the shards stay as they are), so records of one key stay in
//!   one shard.
//! - Records of one partition key are read in the order in which one writer appended them, whatever fails and is tried again in between. A record may be
//!   read twice after a writer's crash or a lost answer; none is lost once [`StreamWriter::flush`] has returned.
//! - Sequence numbers grow within a shard. A reader that starts after a sequence number sees every later record of the shard, or is told that the
//!   stream was trimmed past it ([`Error::Trimmed`]): never a silent gap.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use async_trait::async_trait;
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, ShardPositions, StreamName};

pub mod config;
pub mod embedded;
mod error;
pub mod hash;
pub mod iam;
#[cfg(feature = "kinesis")]
pub mod kinesis;
mod layout;
pub mod memory;
pub mod metrics;
mod operations;
#[cfg(feature = "stub")]
pub mod stub;
#[cfg(feature = "test-support")]
pub mod test_support;

pub use error::Error;
pub use layout::Layout;
pub use operations::{Capacity, Created, Description, Difference, Setting, ShardDescription, StreamSettings, Summary};

/// A record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// At most 256 characters (Kinesis's limit).
    pub partition_key: String,
    pub data: Bytes,
}

/// Records of one shard, in sequence order, as a reader hands them over. Never empty.
#[derive(Debug, Clone)]
pub struct Batch {
    pub stream: StreamName,
    pub shard: ShardId,
    pub records: Vec<(SequenceNumber, Bytes)>,
}

/// The shards of a stream and where each stands.
pub type Positions = BTreeMap<ShardId, SequenceNumber>;

/// Appends records. Not shared: one task owns it.
#[async_trait]
pub trait StreamWriter: Send {
    /// Accepts records, in order. Waits while too much is in flight (backpressure). Accepted is not durable: see [`flush`](Self::flush). After an error
    /// the writer is to be dropped and a new one made; what was accepted since the last flush may or may not have been written.
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error>;

    /// Waits until everything accepted so far is durable. Answers, for every stream that this writer has appended to in its life, the last sequence
    /// number of each shard it wrote to. With nothing accepted since the last flush it answers at once.
    async fn flush(&mut self) -> Result<ShardPositions, Error>;
}

/// Reads one stream, all shards. Not shared: one task owns it.
#[async_trait]
pub trait StreamReader: Send {
    /// The next records of some shard; waits until there are any. Cancel-safe: dropping the future loses nothing. Transient failures are retried inside, with
    /// a budget; what comes out is final for this reader.
    async fn next(&mut self) -> Result<Batch, Error>;
}

/// A kind of stream store: makes streams, writers and readers.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Creates the stream where it does not exist, with the settings that the store is configured with. An existing stream is left as it is.
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error>;

    /// What [`ensure`](Self::ensure) makes a stream of so many shards with.
    fn settings(&self, shards: u32) -> StreamSettings {
        StreamSettings::shards(shards)
    }

    /// Creates the stream with these settings where it does not exist; an existing one is left as it is, and what differs is answered. A store applies the settings that it
    /// has a notion of (all: Kinesis; shards and retention: embedded; shards: memory).
    async fn create(&self, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
        let _ = settings;
        Err(Error::NotOffered { operation: "create", what: stream.0.clone() })
    }

    /// Brings one setting of an existing stream to what is asked for, while whoever works with the stream goes on, and waits until it is there. False where the store leaves it as it is: only Kinesis
    /// changes anything, and nothing by which records would be lost.
    async fn apply(&self, stream: &StreamName, settings: &StreamSettings, setting: Setting) -> Result<bool, Error> {
        let _ = (stream, settings, setting);
        Ok(false)
    }

    /// The streams whose names begin with `prefix`, in the order of their names.
    async fn list(&self, prefix: &str) -> Result<Vec<Summary>, Error> {
        Err(Error::NotOffered { operation: "list", what: prefix.to_owned() })
    }

    async fn describe(&self, stream: &StreamName) -> Result<Description, Error> {
        Err(Error::NotOffered { operation: "describe", what: stream.0.clone() })
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error>;
    /// Reads from just after `after`, by shard; a shard that is not named is read from its start.
    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error>;
    /// As [`reader`](Self::reader), for whoever wants only keys whose hash ([`hash::key_hash`]) is in a range: shards that do not overlap it need not be read. What overlaps
    /// is handed over whole, so records of other keys come as well.
    async fn reader_of(
        &self,
        stream: &StreamName,
        after: &Positions,
        hashes: RangeInclusive<u128>,
    ) -> Result<Box<dyn StreamReader>, Error> {
        let _ = hashes;
        self.reader(stream, after).await
    }

    /// Whether everything that was ever written to the stream is surely still there. False where some of it has been trimmed, or may have been.
    async fn is_whole(&self, stream: &StreamName) -> Result<bool, Error> {
        let _ = stream;
        Ok(false)
    }

    /// The last sequence number of every shard that holds anything (for status, and for tests).
    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error>;
}

/// Kinesis's limit, kept by every provider so that a stream may move from one to another.
const PARTITION_KEY_CHARACTERS: usize = 256;

fn check_partition_key(stream: &StreamName, key: &str) -> Result<(), Error> {
    // A key of so few bytes cannot have too many characters: most keys need no counting.
    if key.len() > PARTITION_KEY_CHARACTERS {
        let length = key.chars().count();
        if length > PARTITION_KEY_CHARACTERS {
            return Err(Error::PartitionKey { stream: stream.clone(), length });
        }
    }
    Ok(())
}
