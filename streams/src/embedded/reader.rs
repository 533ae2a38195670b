//! The reader: a task that follows the files and hands batches over a bounded channel.
//!
//! `next` only receives from the channel, so dropping its future loses nothing. The task ends with the reader.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::blocking;
use super::directory::{GAP, Meta, Segment, segments, shard_folder, shard_id};
use super::hub::Hub;
use super::segment::{SegmentReader, Stop, damaged};
use crate::{Batch, Error, Positions, StreamReader};

/// Batches that wait for whoever reads; the next one is read meanwhile. Each is about as large as one read of a segment.
const READ_AHEAD: usize = 1;
/// The pauses between looks at files that do not grow.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
const PAUSE_WITH_WRITER: Duration = Duration::from_secs(1);
/// A record that is whole by its length, and still fails its checksum after this long, is not being written: it is damaged.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Reader {
    batches: mpsc::Receiver<Result<Batch, Error>>,
    task: tokio::task::JoinHandle<()>,
    stream: StreamName,
}

impl Reader {
    pub(super) fn start(stream: &StreamName, folder: &Path, meta: Meta, after: &Positions) -> Result<Self, Error> {
        let mut after = after.clone();
        let mut cursors = Vec::new();
        for shard in 0..meta.shards {
            let after = match after.remove(&shard_id(shard)) {
                None => None,
                Some(number) => Some(number.to_u64().ok_or_else(|| foreign(stream, shard_id(shard), number))?),
            };
            cursors.push(Cursor {
                stream: stream.clone(),
                folder: folder.join(shard_folder(shard)),
                shard,
                after,
                segment: None,
                unreadable: None,
            });
        }
        if let Some((shard, number)) = after.pop_first() {
            return Err(foreign(stream, shard, number));
        }
        let (sender, batches) = mpsc::channel(READ_AHEAD);
        let follow = Follow { stream: stream.clone(), folder: folder.to_owned(), cursors: Some(cursors), turn: 0 };
        Ok(Self { batches, task: tokio::spawn(follow.run(sender)), stream: stream.clone() })
    }
}

fn foreign(stream: &StreamName, shard: ShardId, after: SequenceNumber) -> Error {
    Error::ForeignPosition { stream: stream.clone(), shard, after }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl StreamReader for Reader {
    async fn next(&mut self) -> Result<Batch, Error> {
        // The task ends only after it has sent an error; asked again after that, the reader says so.
        self.batches.recv().await.unwrap_or_else(|| {
            let what = "this reader has failed before: make a new one";
            Err(Error::Io { path: self.stream.0.clone(), source: io::Error::other(what) })
        })
    }
}

struct Follow {
    stream: StreamName,
    folder: PathBuf,
    /// Away while the blocking pool works with them.
    cursors: Option<Vec<Cursor>>,
    turn: usize,
}

impl Follow {
    async fn run(mut self, sender: mpsc::Sender<Result<Batch, Error>>) {
        let hub = Hub::of(&self.folder);
        let mut appended = hub.subscribe();
        let mut pause = PAUSE;
        loop {
            // Before looking: what is appended after the look wakes the wait.
            appended.mark_unchanged();
            match self.look().await {
                Ok(Some(batch)) => {
                    pause = PAUSE;
                    if sender.send(Ok(batch)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {
                    let longest = if hub.has_writer() { PAUSE_WITH_WRITER } else { LONGEST_PAUSE };
                    // `hub` keeps the channel open, so `changed` only ever means a change.
                    let _ = tokio::time::timeout(pause.min(longest), appended.changed()).await;
                    pause = (pause * 2).min(longest);
                }
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
        }
    }

    /// The next records of some shard, the shards taking turns.
    async fn look(&mut self) -> Result<Option<Batch>, Error> {
        let Some(mut cursors) = self.cursors.take() else { return Ok(None) };
        let turn = self.turn;
        let now = Instant::now();
        let (cursors, found) = blocking(&self.folder, move || {
            for step in 0..cursors.len() {
                let index = (turn + step) % cursors.len();
                let records = cursors[index].read(now)?;
                if !records.is_empty() {
                    return Ok((cursors, Some((index, records))));
                }
            }
            Ok((cursors, None))
        })
        .await?;
        self.cursors = Some(cursors);
        Ok(found.map(|(index, records)| {
            self.turn = index + 1;
            let records = records.into_iter().map(|(number, data)| (SequenceNumber::from(number), data)).collect();
            Batch { stream: self.stream.clone(), shard: shard_id(index as u32), records }
        }))
    }
}

/// A place in a shard.
struct Cursor {
    stream: StreamName,
    folder: PathBuf,
    shard: u32,
    /// The last number read, or given to start from.
    after: Option<u64>,
    segment: Option<SegmentReader>,
    /// Since when the frame at the cursor has been unreadable.
    unreadable: Option<Instant>,
}

impl Cursor {
    /// The next records; none when there are none yet.
    fn read(&mut self, now: Instant) -> Result<Vec<(u64, Bytes)>, Error> {
        let mut records = Vec::new();
        loop {
            let Some(segment) = &mut self.segment else {
                if self.open_first()? {
                    continue;
                }
                return Ok(records);
            };
            let stop = segment.read(&mut records)?;
            if let Some(after) = self.after {
                let read = records.partition_point(|(number, _)| *number <= after);
                records.drain(..read);
            }
            if let Some((last, _)) = records.last() {
                self.after = Some(*last);
                self.unreadable = None;
                return Ok(records);
            }
            match stop {
                Stop::More => {}
                Stop::End => {
                    self.unreadable = None;
                    if !self.open_following()? {
                        return Ok(records);
                    }
                }
                Stop::Unreadable => {
                    self.check_unreadable(now)?;
                    return Ok(records);
                }
            }
        }
    }

    /// Opens the segment that holds, or follows, the start. False when the shard holds nothing yet.
    fn open_first(&mut self) -> Result<bool, Error> {
        let found = segments(&self.folder)?;
        let at = self.after.map_or(0, |after| found.partition_point(|segment| segment.first <= after).saturating_sub(1));
        let Some(segment) = found.get(at) else { return Ok(false) };
        if let (Some(after), Some(last)) = (self.after, found.last())
            && after > last.first.saturating_add(GAP)
        {
            return Err(foreign(&self.stream, shard_id(self.shard), SequenceNumber::from(after)));
        }
        let Some(reader) = open(segment)? else {
            // Removed by retention between listing and opening: look again.
            return self.open_first();
        };
        if let Some(after) = self.after
            && reader.header.first > after
            && reader.header.previous_next > after.saturating_add(1)
        {
            return Err(self.trimmed(after, reader.header.first));
        }
        self.segment = Some(reader);
        Ok(true)
    }

    fn trimmed(&self, after: u64, oldest: u64) -> Error {
        Error::Trimmed {
            stream: self.stream.clone(),
            shard: shard_id(self.shard),
            after: SequenceNumber::from(after),
            oldest: SequenceNumber::from(oldest),
        }
    }

    /// Moves to the segment after this one, if there is one and this one has been read to its end.
    fn open_following(&mut self) -> Result<bool, Error> {
        let Some(current) = &self.segment else { return Ok(false) };
        let found = segments(&self.folder)?;
        let at = found.partition_point(|segment| segment.first <= current.header.first);
        let Some(segment) = found.get(at) else { return Ok(false) };
        // A writer begins a segment after its last write to the one before: with the new one there, this length is final.
        if current.length()? != current.offset {
            return Ok(true);
        }
        let Some(reader) = open(segment)? else { return self.open_following() };
        if reader.header.previous_next > current.after_last() {
            return Err(if at == 0 {
                self.trimmed(current.after_last().saturating_sub(1), reader.header.first)
            } else {
                let what = format!("the segment before it, with the records from {} on, is missing", current.after_last());
                damaged(&reader.path, 0, what)
            });
        }
        if reader.header.previous_next < current.after_last() {
            return Err(damaged(&current.path, current.offset, "more records than the next segment counts"));
        }
        self.segment = Some(reader);
        Ok(true)
    }

    /// A frame that cannot be read is being written right now, or is a crashed writer's torn tail that the next one will cut, or is damaged.
    fn check_unreadable(&mut self, now: Instant) -> Result<(), Error> {
        let Some(current) = &self.segment else { return Ok(()) };
        let since = *self.unreadable.get_or_insert(now);
        let followed = segments(&self.folder)?.last().is_some_and(|last| last.first > current.header.first);
        if now.duration_since(since) > PATIENCE {
            if followed || current.mark_behind()? {
                return Err(damaged(&current.path, current.offset, "a record fails its checksum"));
            }
            self.unreadable = Some(now);
        }
        Ok(())
    }
}

/// None when the segment has been removed.
pub(super) fn open(segment: &Segment) -> Result<Option<SegmentReader>, Error> {
    match SegmentReader::open(&segment.path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The last number of a shard that can be read.
pub(super) fn tip(folder: &Path) -> Result<Option<u64>, Error> {
    // The last segment may have no record yet.
    for segment in segments(folder)?.iter().rev() {
        let Some(mut reader) = open(segment)? else { break };
        let mut records = Vec::new();
        while reader.read(&mut records)? == Stop::More {
            records.clear();
        }
        if reader.next > reader.header.first {
            return Ok(Some(reader.next - 1));
        }
    }
    Ok(None)
}
