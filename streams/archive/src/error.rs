//! What can go wrong with the archive.

use std::fmt;

use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{ErrorClass, Lsn};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Objects(#[from] objects::Error),
    #[error(transparent)]
    Stream(#[from] streams::Error),
    #[error(
        "{store} holds the archive of source {found:?} with streams {found_prefix:?}, the configuration says {expected:?} with {expected_prefix:?}: name another bucket, prefix or folder"
    )]
    OtherSource { store: String, found: String, found_prefix: String, expected: String, expected_prefix: String },
    #[error(
        "the archive in {store} has format {found}, this version reads {expected}: use the version that wrote it, or begin another archive"
    )]
    Format { store: String, found: u32, expected: u32 },
    #[error(
        "another archiver has taken over the archive in {store} (segment {number} is not ours): let one archiver run for a source. This one has stopped, and nothing of its is in the archive twice"
    )]
    Superseded { store: String, number: u64 },
    #[error("{store}/{path} is being written at the same time, and is not there yet: it is tried again")]
    Unsettled { store: String, path: String },
    #[error("{store}/{path} is damaged: {what}. Restore it from a copy or an earlier version of the object")]
    Damaged { store: String, path: String, what: String },
    #[error("{store}/{path} {state}: {}. Restore it from a copy or an earlier version of the object", shown(.lost, *.lost_count))]
    Lost {
        store: String,
        path: String,
        /// `is gone`, or that its checksum is another.
        state: String,
        /// The first of the events that are missing.
        lost: Vec<Lost>,
        lost_count: u64,
    },
    #[error(
        "segment {number} of the archive in {store} is not there, and later ones are: segments are removed from the oldest on, or not at all. Restore {path}"
    )]
    Hole { store: String, number: u64, path: String },
    #[error(
        "stream {stream}, record {sequence}: not a progress record: {what}. Is this stream written by something else than the importer?"
    )]
    ProgressRecord { stream: StreamName, sequence: SequenceNumber, what: String },
    #[error(
        "the progress stream speaks of source {found:?}, the configuration says {expected:?}: correct the stream prefix or the source's name"
    )]
    StreamOfOtherSource { found: String, expected: String },
    #[error("a task of the archive ended unexpectedly: {what}")]
    Task { what: String },
}

/// An event that was in the archive and is not any more.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    pub table: String,
    /// The tick that it belongs to: after this LSN, up to that. `None` where its progress record is not in the same segment.
    pub tick: Option<(Lsn, Lsn)>,
    pub stream: StreamName,
    pub shard: ShardId,
    pub sequence: SequenceNumber,
    pub commit_lsn: Option<Lsn>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at stream {}, shard {}, position {}", self.table, self.stream, self.shard, self.sequence)?;
        if let Some(lsn) = self.commit_lsn {
            write!(f, ", commit LSN {lsn}")?;
        }
        match self.tick {
            Some((from, to)) => write!(f, ", tick ({from}, {to}]"),
            None => Ok(()),
        }
    }
}

fn shown(lost: &[Lost], count: u64) -> String {
    if count == 0 {
        return "every event that was in it is still there, but something of it was changed".to_owned();
    }
    let named: Vec<String> = lost.iter().map(ToString::to_string).collect();
    let more = if count > lost.len() as u64 { format!(", and {} more", count - lost.len() as u64) } else { String::new() };
    format!("{count} events are missing: {}{more}", named.join("; "))
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Objects(error) => error.class(),
            Self::Stream(error) => error.class(),
            Self::Unsettled { .. } => ErrorClass::Transient,
            Self::Task { .. } => ErrorClass::Bug,
            _ => ErrorClass::Misconfigured,
        }
    }

    /// As the reader of a stream tells it.
    pub(crate) fn into_stream_error(self) -> streams::Error {
        match self {
            Self::Stream(error) => error,
            error => streams::Error::Archive { class: error.class(), message: error.to_string() },
        }
    }
}
