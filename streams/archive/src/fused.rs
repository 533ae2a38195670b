//! One reader over the archive and the live stream.
//!
//! Where there are several sources, each has an archive to itself; a stream's name says whose it is.
//!
//! # Where it goes over
//! A reader begins in the archive if that holds anything after its position, reads segment by segment, and opens the live stream at the position at which the last segment ends. Both sides number records alike, so nothing is
//! read twice and nothing is passed over, whenever that happens and whatever is written or archived meanwhile: a segment that appears in between is merely not needed.
//!
//! It begins in the archive even where the live stream may still hold the records, because a live stream does not always know what it has trimmed (Kinesis cannot say whether anything followed a record that is gone), while
//! the archive does. An archive that lags far behind makes no difference: then the live stream is opened at a position that is gone, and says [`streams::Error::Trimmed`].
//!
//! Where the archive's oldest segments were removed, or it was begun when its streams had been trimmed, and a position lies before what it has, the archive has nothing to say: the live stream is asked, and says the same or has it.
//!
//! # Gaps
//! Where the archive has a gap ([`crate::gap`]) nobody reads over it: a reader whose position is before it is told the gap by name. A reader without any position begins behind the last gap, if a snapshot has been begun since; the joiner
//! leaves out what stands before a snapshot. Without one it is told the gap as well.
//!
//! # Falling behind
//! A live reader that is told that its position was trimmed goes back into the archive, if that has what follows.

use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use schemas::progress::StreamName;
use streams::{Batch, Created, Description, Error, Positions, Provider, StreamReader, StreamSettings, StreamWriter, Summary};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::manifest::Manifest;
use crate::read::{advance, merge};
use crate::store::Archive;

/// Batches of a segment that are read before they are asked for.
const READ_AHEAD: usize = 4;

/// A stream store whose readers begin in the archive. Everything else is the live store's.
#[derive(Clone)]
pub struct Fused {
    archives: Arc<[Archive]>,
    live: Arc<dyn Provider>,
}

impl Fused {
    pub fn new(archive: Archive, live: Arc<dyn Provider>) -> Self {
        Self::of([archive], live)
    }

    /// The same of several sources, none of whose prefixes is the beginning of another's up to a dot.
    pub fn of(archives: impl IntoIterator<Item = Archive>, live: Arc<dyn Provider>) -> Self {
        Self { archives: archives.into_iter().collect(), live }
    }

    /// The archive of the source whose stream it is.
    fn archive(&self, stream: &StreamName) -> Option<&Archive> {
        self.archives.iter().find(|archive| archive.is_of(stream))
    }

    /// None where no archive has the stream.
    fn fused_reader(
        &self,
        stream: &StreamName,
        after: &Positions,
        hashes: Option<RangeInclusive<u128>>,
    ) -> Option<Box<dyn StreamReader>> {
        let archive = self.archive(stream)?.clone();
        let sides = Sides { archive, live: self.live.clone(), stream: stream.clone(), hashes };
        Some(Box::new(Reader { sides, at: after.clone(), phase: Phase::Between }))
    }
}

#[async_trait]
impl Provider for Fused {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        self.live.ensure(stream, shards).await
    }

    fn settings(&self, shards: u32) -> StreamSettings {
        self.live.settings(shards)
    }

    async fn create(&self, stream: &StreamName, settings: &StreamSettings) -> Result<Created, Error> {
        self.live.create(stream, settings).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Summary>, Error> {
        self.live.list(prefix).await
    }

    async fn describe(&self, stream: &StreamName) -> Result<Description, Error> {
        self.live.describe(stream).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        self.live.writer().await
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        match self.fused_reader(stream, after, None) {
            Some(reader) => Ok(reader),
            None => self.live.reader(stream, after).await,
        }
    }

    async fn reader_of(
        &self,
        stream: &StreamName,
        after: &Positions,
        hashes: RangeInclusive<u128>,
    ) -> Result<Box<dyn StreamReader>, Error> {
        match self.fused_reader(stream, after, Some(hashes.clone())) {
            Some(reader) => Ok(reader),
            None => self.live.reader_of(stream, after, hashes).await,
        }
    }

    /// Of whichever side knows of more: what a quiet shard held may have been trimmed from the live stream.
    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        let mut tips = self.live.tips(stream).await?;
        let Some(archive) = self.archive(stream) else { return Ok(tips) };
        let last = archive.last().await.map_err(crate::Error::into_stream_error)?;
        if let Some(archived) = last.positions.get(stream) {
            merge(&mut tips, archived);
        }
        Ok(tips)
    }
}

enum Phase {
    /// To be decided where reading goes on.
    Between,
    Archive {
        batches: mpsc::Receiver<Result<Batch, crate::Error>>,
        /// Ends the task when it is dropped.
        _reading: AbortOnDropHandle<()>,
    },
    Live(Box<dyn StreamReader>),
}

/// The stream on both sides.
struct Sides {
    archive: Archive,
    live: Arc<dyn Provider>,
    stream: StreamName,
    hashes: Option<RangeInclusive<u128>>,
}

impl Sides {
    /// The archive, if it holds anything after `at`.
    async fn archived(&self, at: &Positions) -> Result<Option<Phase>, Error> {
        let first = self.first(at).await.map_err(crate::Error::into_stream_error)?;
        Ok(first.map(|first| {
            let (out, batches) = mpsc::channel(READ_AHEAD);
            let reading = read(self.archive.clone(), self.stream.clone(), at.clone(), first.number, out);
            Phase::Archive { batches, _reading: AbortOnDropHandle::new(tokio::spawn(reading)) }
        }))
    }

    /// The segment in which reading begins. A reader that begins with nothing begins behind the last gap, where a snapshot has been begun since: that is all that it needs.
    async fn first(&self, at: &Positions) -> Result<Option<Arc<Manifest>>, crate::Error> {
        let last = self.archive.last().await?;
        let number = last.last_gap.filter(|_| at.is_empty());
        let gapped = match number {
            Some(number) if self.archive.expired(number).await?.is_none() => self.archive.manifest(number).await?,
            _ => None,
        };
        // A stream that held nothing before the gap has lost nothing by it.
        let held = |gapped: &Arc<Manifest>| gapped.positions.get(&self.stream).is_some_and(|shards| !shards.is_empty());
        let Some(gapped) = gapped.filter(held) else { return self.archive.first_after(&self.stream, at).await };
        let is_restated = last.snapshot.is_some_and(|snapshot| snapshot >= gapped.number);
        match gapped.gaps.last() {
            Some(gap) if !is_restated => Err(gapped.gap_error(self.archive.objects.name(), gap)),
            _ => {
                let (segment, stream) = (gapped.number, &self.stream);
                tracing::warn!(segment, %stream, "the archive has a gap; reading begins behind it, and needs the snapshot that was begun since");
                Ok(Some(gapped))
            }
        }
    }

    async fn live(&self, at: &Positions) -> Result<Phase, Error> {
        Ok(Phase::Live(match &self.hashes {
            None => self.live.reader(&self.stream, at).await?,
            Some(hashes) => self.live.reader_of(&self.stream, at, hashes.clone()).await?,
        }))
    }

    /// Where reading goes on.
    async fn decide(&self, at: &Positions) -> Result<Phase, Error> {
        if let Some(archived) = self.archived(at).await? {
            return Ok(archived);
        }
        match self.live(at).await {
            // What was archived since it was looked may have it.
            Err(trimmed @ Error::Trimmed { .. }) => match self.archived(at).await? {
                Some(archived) => Ok(archived),
                None => Err(self.gone(at, trimmed).await),
            },
            live => live,
        }
    }

    /// The error for a position that neither side has: where the archive had it once, it says so.
    async fn gone(&self, at: &Positions, trimmed: Error) -> Error {
        let expired = async {
            match self.archive.first_beyond_positions(&self.stream, at).await? {
                // It has what follows, but not from there on.
                Some(first) => self.archive.expired(first.number - 1).await,
                None => Ok(None),
            }
        };
        match expired.await {
            Ok(None) => trimmed,
            Ok(Some(error)) | Err(error) => error.into_stream_error(),
        }
    }
}

struct Reader {
    sides: Sides,
    /// What has been handed over.
    at: Positions,
    phase: Phase,
}

#[async_trait]
impl StreamReader for Reader {
    /// Cancel-safe: what is decided is taken over at once when it is decided, and batches come through a channel.
    async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let result = match &mut self.phase {
                Phase::Between => {
                    self.phase = self.sides.decide(&self.at).await?;
                    continue;
                }
                Phase::Archive { batches, .. } => match batches.recv().await {
                    Some(result) => result.map_err(crate::Error::into_stream_error),
                    None => {
                        self.phase = Phase::Between;
                        continue;
                    }
                },
                Phase::Live(reader) => match reader.next().await {
                    Err(trimmed @ Error::Trimmed { .. }) => {
                        self.phase = Phase::Between;
                        match self.sides.archived(&self.at).await? {
                            Some(archived) => {
                                self.phase = archived;
                                continue;
                            }
                            None => Err(self.sides.gone(&self.at, trimmed).await),
                        }
                    }
                    result => result,
                },
            };
            match &result {
                Ok(batch) => advance(&mut self.at, batch),
                Err(_) => self.phase = Phase::Between,
            }
            return result;
        }
    }
}

/// Hands over what the archive holds after `at`, from a segment on, until there is no further segment.
async fn read(
    archive: Archive,
    stream: StreamName,
    mut at: Positions,
    first: u64,
    out: mpsc::Sender<Result<Batch, crate::Error>>,
) {
    for number in first.. {
        let result = async {
            let Some(manifest) = archive.manifest(number).await? else {
                // Behind the last segment; one that was removed meanwhile is an error, for some shards of it may not have been begun.
                let last = archive.numbers().await?.map_or(0, |(_, last)| last);
                return if number <= last { archive.expected(number).await.map(|_| None) } else { Ok(None) };
            };
            if let Some(gap) = manifest.gap_after(&stream, &at) {
                return Err(manifest.gap_error(archive.objects.name(), gap));
            }
            // Of a shard that the archive begins with here, the live stream may hold what is missing before.
            if !manifest.follows(&stream, &at) {
                return Ok(None);
            }
            let batches = archive.records(&manifest, &stream, &at).await?;
            if let Some(ends) = manifest.positions.get(&stream) {
                merge(&mut at, ends);
            }
            Ok(Some(batches))
        };
        let batches = match result.await {
            Ok(Some(batches)) => batches,
            Ok(None) => return,
            Err(error) => {
                // Who asked may be gone.
                let _ = out.send(Err(error)).await;
                return;
            }
        };
        for batch in batches {
            if out.send(Ok(batch)).await.is_err() {
                return;
            }
        }
    }
}
