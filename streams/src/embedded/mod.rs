//! A durable log in a directory: the stream store that needs no service.
//!
//! Every stream is a folder, every shard a run of segment files (see [`directory`], [`segment`]). One writer at a time holds a stream, by a lock on a
//! file; any number of readers, in this process and in others, read at the same time.
//!
//! # What a reader may rely on
//! A reader sees the files only. A record is handed over when its checksum, which covers its number, is right: half a record fails it. Numbers
//! within a segment follow by counting, and every segment says where the one before it ended, so a missing segment is seen: as [`Error::Trimmed`] where the
//! oldest ones are gone, as [`Error::Damaged`] where one in the middle is. Numbers only grow, over crashes and even over removing and making the
//! stream again ([`shard`], [`directory`]), so a saved position never skips a record silently.
//!
//! # Retention
//! Whole segments go, the oldest first ([`retention`]). Whoever is behind them is told.
//!
//! # Full disk
//! The append or flush that meets it fails with [`Error::Io`], and so does every later call on that writer: after a failed write, and more so after a failed fsync,
//! nothing is known of the file's end. A new writer cuts what is half written and goes on when there is space again.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use schemas::progress::{SequenceNumber, StreamName};
use serde::{Deserialize, Serialize};

use crate::{Created, Description, Error, Positions, Provider, StreamReader, StreamSettings, StreamWriter, Summary};

mod directory;
mod hub;
mod operations;
mod reader;
#[cfg(feature = "test-support")]
mod remove;
mod retention;
mod segment;
mod shard;
#[cfg(test)]
mod tests;
mod writer;

/// How an embedded stream store is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The directory; made where it does not exist.
    pub path: PathBuf,
    /// Whether `flush` waits for the disk. `false` is for demonstrations and tests: records then survive a killed process, but not a loss of power.
    #[serde(default = "yes")]
    pub sync: bool,
    /// A segment is closed when it comes to this size (at most 4 GiB). Retention removes whole segments.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: u64,
    /// The oldest segments of a shard are removed while it is larger than this. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_bytes: Option<u64>,
    /// Segments whose last record is older than this are removed while there is a writer, in streams that it does not write to as well. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u64>,
    #[cfg(test)]
    #[serde(skip)]
    disk: tests::Disk,
}

const LARGEST_SEGMENT_BYTES: u64 = 4 << 30;

/// The numbers of records that have been taken out between two that follow one another in a shard. Numbers follow by counting; only after a crash does a writer leave some out, and then more than a segment can
/// hold records. (The store in memory counts as well.)
pub fn removed_between(last: u64, next: u64) -> Option<RangeInclusive<u64>> {
    const LEFT_OUT: u64 = directory::GAP - LARGEST_SEGMENT_BYTES / segment::FRAME_BYTES as u64;
    let removed = last.checked_add(1)?..=next.checked_sub(1)?;
    (!removed.is_empty() && removed.end() - removed.start() < LEFT_OUT - 1).then_some(removed)
}

fn yes() -> bool {
    true
}

fn default_segment_bytes() -> u64 {
    64 << 20
}

impl Options {
    /// The defaults, in this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            sync: yes(),
            segment_bytes: default_segment_bytes(),
            retention_bytes: None,
            retention_seconds: None,
            #[cfg(test)]
            disk: tests::Disk::default(),
        }
    }
}

/// The streams in one directory.
#[derive(Debug, Clone)]
pub struct Embedded {
    options: Options,
}

impl Embedded {
    /// Opens the directory, and makes it where it does not exist.
    pub fn open(options: Options) -> Result<Self, Error> {
        // A segment never holds more records than the numbers jump by after a loss of power.
        let segment_bytes = options.segment_bytes.clamp(segment::HEADER_BYTES, LARGEST_SEGMENT_BYTES);
        let options = Options { segment_bytes, ..options };
        std::fs::create_dir_all(&options.path).map_err(|error| segment::io_error(&options.path, error))?;
        Ok(Self { options })
    }

    fn folder(&self, stream: &StreamName) -> PathBuf {
        directory::stream_folder(&self.options.path, stream)
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(path: &Path, work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(segment::io_error(path, std::io::Error::other(error))))
}

#[async_trait]
impl Provider for Embedded {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        let (options, stream) = (self.options.clone(), stream.clone());
        let work = move || directory::create_stream(&options.path, &stream, shards, None, options.sync).map(drop);
        blocking(&self.options.path, work).await
    }

    async fn create(&self, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
        let (options, stream, settings) = (self.options.clone(), stream.clone(), settings.clone());
        blocking(&self.options.path, move || operations::create(&options, &stream, &settings)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Summary>, Error> {
        let (options, prefix) = (self.options.clone(), prefix.to_owned());
        blocking(&self.options.path, move || operations::list(&options, &prefix)).await
    }

    async fn describe(&self, stream: &StreamName) -> Result<Description, Error> {
        let (options, stream) = (self.options.clone(), stream.clone());
        blocking(&self.options.path, move || operations::describe(&options, &stream)).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        Ok(Box::new(writer::Writer::new(self.options.clone())))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        let meta = directory::read_meta(&self.folder(stream), stream)?;
        Ok(Box::new(reader::Reader::start(stream, &self.folder(stream), meta, after)?))
    }

    async fn is_whole(&self, stream: &StreamName) -> Result<bool, Error> {
        let (options, stream) = (self.options.clone(), stream.clone());
        blocking(&self.options.path, move || operations::is_whole(&options, &stream)).await
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let folder = self.folder(stream);
        let meta = directory::read_meta(&folder, stream)?;
        blocking(&self.options.path, move || {
            let mut tips = BTreeMap::new();
            for shard in 0..meta.shards {
                if let Some(tip) = reader::tip(&folder.join(directory::shard_folder(shard)))? {
                    tips.insert(directory::shard_id(shard), SequenceNumber::from(tip));
                }
            }
            Ok(tips)
        })
        .await
    }
}
