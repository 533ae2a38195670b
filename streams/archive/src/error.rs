//! What can go wrong with the archive.

use std::fmt;
use std::path::PathBuf;

use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::{ErrorClass, Lsn};

use crate::account::Missing;
use crate::gap::Gap;

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
        "the archive in {store} begins after LSN {begins}: what was asked for is older than `archive.retention_days`, and has been removed. Read from {begins} on; a joiner that was away for longer, or begins with nothing, needs a new snapshot"
    )]
    Expired { store: String, begins: Lsn },
    #[error(
        "the archive in {store} begins after LSN {begins}, which is later than {from}: what was committed before it was removed for its age, or never archived. Begin at {begins}"
    )]
    BeforeBeginning { store: String, from: Lsn, begins: Lsn },
    #[error(
        "the archive in {store} has a gap before segment {segment}: {gap}. The streams had forgotten it before it was archived, so no reader can have it: take a new snapshot, and start a joiner with an empty state; to replay what is there, allow gaps"
    )]
    Gap { store: String, segment: u64, gap: Box<Gap> },
    #[error(
        "segment {segment} of the archive in {store} lacks events: {missing}. They were gone from the stream before they were archived: take a new snapshot of the table; to replay what is there, allow gaps"
    )]
    Missing { store: String, segment: u64, missing: Box<Missing> },
    #[error(
        "{0}. The archive ends before that: its archiver was away for longer than the streams keep records. Set `archive.on_trimmed` to `gap`: then it goes on with the oldest records that are there and writes the gap down; or begin another archive, \
         with a new snapshot"
    )]
    Trimmed(Box<streams::Error>),
    #[error(
        "stream {stream}, record {sequence}: not a progress record: {what}. Is this stream written by something else than the importer?"
    )]
    ProgressRecord { stream: StreamName, sequence: SequenceNumber, what: String },
    #[error(
        "the progress stream speaks of source {found:?}, the configuration says {expected:?}: correct the stream prefix or the source's name"
    )]
    StreamOfOtherSource { found: String, expected: String },
    #[error(
        "{folder}: events that wait to be put into order cannot be written or read: {source}. Make room there, or name another folder in TMPDIR"
    )]
    Spill { folder: PathBuf, source: std::io::Error },
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
