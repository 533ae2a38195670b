//! What can go wrong with a stream.

use schemas::ErrorClass;
use schemas::progress::{SequenceNumber, ShardId, StreamName};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "stream {stream} does not exist: create it (`tributary stream create` does so, and the importer at its start), or correct the name in the configuration"
    )]
    NoSuchStream { stream: StreamName },
    #[error(
        "stream {stream}, shard {shard}: records after {after} have been trimmed (the oldest kept is {oldest}): changes are missing. Lengthen the stream's retention, \
         and start the importer with a new snapshot into an empty joiner state"
    )]
    Trimmed { stream: StreamName, shard: ShardId, after: SequenceNumber, oldest: SequenceNumber },
    #[error(
        "stream {stream}: the saved position {after} of shard {shard} is not of this stream. Correct the stream's name or its provider in the configuration, or start \
         with a new snapshot into an empty joiner state"
    )]
    ForeignPosition { stream: StreamName, shard: ShardId, after: SequenceNumber },
    #[error("record for stream {stream} is too large: {bytes} bytes, the limit is {limit}")]
    TooLarge { stream: StreamName, bytes: usize, limit: usize },
    #[error(
        "record for stream {stream} is too large: {bytes} bytes, the limit is {limit}, and `oversize` of the stream store is `stop`. Raise `max_record_bytes` (Kinesis takes up \
         to 10 MiB), or choose `dead_letter` or `pointer`"
    )]
    Oversize { stream: StreamName, bytes: usize, limit: usize },
    #[error("events of stream {stream} that are too large for it: {source}")]
    Objects { stream: StreamName, source: Box<objects::Error> },
    #[error("stream {stream}: an event is kept in object storage, as {object}, and cannot be had: {what}")]
    Pointer { stream: StreamName, object: String, what: String },
    #[error("stream {stream}: partition key of {length} characters, the limit is 256")]
    PartitionKey { stream: StreamName, length: usize },
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error(
        "{path}: damaged at byte {offset}: {what}. Restore it from a copy, or remove the stream's folder and take a new snapshot"
    )]
    Damaged { path: String, offset: u64, what: String },
    #[error("{path} is already written by another process: stop that one first")]
    Locked { path: String },
    /// The store asks for less, for longer than it was to be waited for.
    #[error("Kinesis, {operation} on {stream}: {message}")]
    Throttled { operation: &'static str, stream: StreamName, message: String },
    #[error("Kinesis, {operation} on {stream}: {message}")]
    Kinesis { operation: &'static str, stream: StreamName, message: String, class: ErrorClass },
    #[error(
        "{operation} on {stream} was refused: the identity that this process uses lacks {action} on {resource}. Allow it: `tributary stream policy` prints the IAM policy that \
         does"
    )]
    Forbidden {
        operation: &'static str,
        stream: StreamName,
        /// The IAM action that is missing.
        action: String,
        /// The ARN that it is missing on.
        resource: String,
    },
    /// Of a reader that begins in the archive; the message says what to do.
    #[error("{message}")]
    Archive { message: String, class: ErrorClass },
    #[error("{operation} of {what}: this stream store does not offer it")]
    NotOffered { operation: &'static str, what: String },
    #[error("this program was built without {provider}: build it with the feature of that name")]
    NotBuilt { provider: &'static str },
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoSuchStream { .. }
            | Self::Trimmed { .. }
            | Self::ForeignPosition { .. }
            | Self::NotBuilt { .. }
            | Self::Forbidden { .. }
            | Self::Oversize { .. }
            | Self::Pointer { .. }
            | Self::NotOffered { .. }
            | Self::Damaged { .. }
            | Self::Locked { .. } => ErrorClass::Misconfigured,
            Self::Throttled { .. } => ErrorClass::Transient,
            Self::TooLarge { .. } | Self::PartitionKey { .. } => ErrorClass::Definite,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::StorageFull
                | std::io::ErrorKind::ReadOnlyFilesystem => ErrorClass::Misconfigured,
                _ => ErrorClass::Transient,
            },
            Self::Objects { source, .. } => source.class(),
            Self::Kinesis { class, .. } | Self::Archive { class, .. } => *class,
        }
    }
}
