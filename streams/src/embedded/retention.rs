//! Retention: what is too much, or too old, goes in whole segments, the oldest first; the last segment of a shard stays.
//!
//! A writer looks when it begins a segment. A shard that is not written to begins none, so a task of each writer ([`keep`]) looks from time to time, at every stream of the directory: at those that the writer has open through the
//! writer, at others by themselves. Where all that a shard holds is too old, its last segment is ended first: an empty one follows, whose header says where the old one ended. So numbers go on, a reader that had everything goes on, and one
//! that had not is told.
//!
//! Removing needs no lock: nobody writes to a segment that is not the last, and two who remove the same one are of one mind. Ending a segment needs the stream's lock. Of a stream that another process has open, the other process takes care.
//! A writer of this process that wants the stream meanwhile waits until it is free again, however long its last segment takes to read.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, Weak};
use std::time::{Duration, SystemTime};

use schemas::progress::StreamName;
use tokio::time::{MissedTickBehavior, interval};

use super::directory::{read_meta, segments, shard_folder, stream_folder, streams};
use super::segment::{HEADER_BYTES, MARK_BYTES, io_error};
use super::writer::{Inner, OpenStream, lock};
use super::{Options, blocking};
use crate::Error;

/// The longest and the shortest pause between two looks; between them, a quarter of the time that records are kept.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// How much is kept of a shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    bytes: Option<u64>,
    age: Option<Duration>,
}

impl Limits {
    pub(super) fn of(options: &Options) -> Self {
        Self { bytes: options.retention_bytes, age: options.retention_seconds.map(Duration::from_secs) }
    }

    fn is_past(self, age: Duration) -> bool {
        self.age.is_some_and(|limit| age > limit)
    }
}

/// Length and age of a segment: the last write to it is its youngest record's. None when it has been removed.
fn measure(path: &Path) -> Result<Option<(u64, Duration)>, Error> {
    match fs::metadata(path) {
        Ok(metadata) => {
            let age = metadata.modified().ok().and_then(|written| SystemTime::now().duration_since(written).ok());
            Ok(Some((metadata.len(), age.unwrap_or_default())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, error)),
    }
}

/// Whether a segment has records, and all of them are too old. (A mark alone is no record.)
pub(super) fn is_stale(segment: &Path, limits: Limits) -> Result<bool, Error> {
    let empty = HEADER_BYTES + MARK_BYTES as u64;
    Ok(measure(segment)?.is_some_and(|(length, age)| length > empty && limits.is_past(age)))
}

/// Removes the oldest whole segments of a shard while it is larger, or they are older, than it may be.
pub(super) fn enforce(folder: &Path, limits: Limits) -> Result<(), Error> {
    if limits.bytes.is_none() && limits.age.is_none() {
        return Ok(());
    }
    let mut kept = Vec::new();
    for segment in segments(folder)? {
        if let Some((length, age)) = measure(&segment.path)? {
            kept.push((segment.path, length, age));
        }
    }
    let mut total: u64 = kept.iter().map(|(_, length, _)| length).sum();
    let removable = kept.len().saturating_sub(1);
    for (path, length, age) in &kept[..removable] {
        let too_large = limits.bytes.is_some_and(|limit| total > limit);
        if !too_large && !limits.is_past(*age) {
            break;
        }
        match fs::remove_file(path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed a segment past its retention"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(path, error)),
        }
        total -= length;
    }
    Ok(())
}

/// Looks after every stream in the directory for as long as there is the writer.
pub(super) async fn keep(options: Options, writer: Weak<Mutex<Inner>>) {
    let age = Limits::of(&options).age.unwrap_or(LONGEST_PAUSE);
    let mut looks = interval((age / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let (options, writer) = (options.clone(), writer.clone());
        if let Err(error) = blocking(&options.path.clone(), move || look(&options, &writer)).await {
            tracing::warn!(%error, "retention could not be kept; it is tried again");
        }
    }
}

fn look(options: &Options, writer: &Weak<Mutex<Inner>>) -> Result<(), Error> {
    for stream in streams(&options.path)? {
        // Let go at once: whoever drops the writer means its streams to be free.
        let Some(kept) = writer.upgrade().map(|writer| lock(&writer).keep(&stream)) else { return Ok(()) };
        if !kept? {
            look_at(options, &stream)?;
        }
    }
    Ok(())
}

/// A stream that the writer does not have open.
fn look_at(options: &Options, stream: &StreamName) -> Result<(), Error> {
    let folder = stream_folder(&options.path, stream);
    let meta = read_meta(&folder, stream)?;
    let limits = Limits::of(&meta.limited(options));
    for shard in (0..meta.shards).map(|shard| folder.join(shard_folder(shard))) {
        enforce(&shard, limits)?;
        if let Some(last) = segments(&shard)?.last()
            && is_stale(&last.path, limits)?
        {
            return OpenStream::keep_if_free(options, stream);
        }
    }
    Ok(())
}
