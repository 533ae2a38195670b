//! Follows the streams of a source and writes them to the archive.
//!
//! It is a consumer like any other: it reads the progress stream, and each event stream from when a progress record first speaks of it. Reading runs beside writing, with short channels between: an archive that is slow holds
//! the readers back. A segment is written when it is large enough or its first tick old enough, and at an orderly end; what is not written then is read again at the next start.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::{Batch, Positions, Provider};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::collect::{Collector, Cut};
use crate::config::Config;
use crate::error::Error;
use crate::manifest::Manifest;
use crate::metrics;
use crate::segment::{self, Segment};
use crate::store::Archive;

/// Batches read ahead, of all streams together.
const READ_AHEAD: usize = 16;
/// What is held in memory, in segments, before one is cut in the middle of a tick.
const HELD_SEGMENTS: usize = 4;
/// Progress records that wait for their events; past it no more are read.
const WAITING_TICKS: usize = 100_000;
const RETRY: Duration = Duration::from_secs(1);
/// Attempts in a row before a transient failure is taken for a lasting one.
const ATTEMPTS: u32 = 60;

/// An archiver, ready to run.
#[derive(Debug)]
pub struct Archiver {
    archive: Archive,
    interval: Duration,
    segment_bytes: usize,
}

impl Archiver {
    pub fn new(archive: Archive, config: &Config) -> Self {
        let interval = Duration::from_secs(config.interval_seconds);
        Self { archive, interval, segment_bytes: config.segment_bytes.max(1) }
    }

    /// Archives until `shutdown`, or until something happens that needs help.
    pub async fn run(self, provider: Arc<dyn Provider>, shutdown: CancellationToken) -> Result<(), Error> {
        let writer = Uuid::new_v4().simple().to_string();
        let last = self.archive.take_over(&writer).await?;
        tracing::info!(store = self.archive.objects.name(), segment = last.number, frontier = %last.frontier, "archiving");
        let (events_in, events) = mpsc::channel(READ_AHEAD);
        let (progress_in, progress) = mpsc::channel(READ_AHEAD);
        let mut run = Run {
            collector: Collector::new(&self.archive.header.source, &last.positions),
            progress_stream: self.archive.progress_stream(),
            writer,
            last,
            first_tick: None,
            archiver: self,
            provider,
            readers: JoinSet::new(),
            reading: HashSet::new(),
            events_in,
        };
        run.follow(&run.progress_stream.clone(), progress_in);
        let result = run.work(events, progress, &shutdown).await;
        run.readers.shutdown().await;
        result
    }
}

/// An archiver at work.
struct Run {
    archiver: Archiver,
    provider: Arc<dyn Provider>,
    collector: Collector,
    progress_stream: StreamName,
    writer: String,
    /// The last segment.
    last: Arc<Manifest>,
    /// When the first tick came that is in no segment yet.
    first_tick: Option<Instant>,
    readers: JoinSet<Result<(), Error>>,
    reading: HashSet<StreamName>,
    events_in: mpsc::Sender<Batch>,
}

impl Run {
    async fn work(
        &mut self,
        mut events: mpsc::Receiver<Batch>,
        mut progress: mpsc::Receiver<Batch>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        loop {
            let due = self.first_tick.map(|first| first + self.archiver.interval);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ended = self.readers.join_next() => return Err(reader_ended(ended)),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let cut = self.collector.cut();
                    self.write(cut).await?;
                }
                Some(batch) = progress.recv(), if self.collector.ticks() < WAITING_TICKS => self.progress(batch)?,
                Some(batch) = events.recv() => self.collector.events(batch),
            }
            if self.collector.advance() {
                self.first_tick.get_or_insert_with(Instant::now);
            }
            if self.collector.bytes() >= self.archiver.segment_bytes && self.first_tick.is_some() {
                let cut = self.collector.cut();
                self.write(cut).await?;
            }
            if self.collector.bytes() >= self.archiver.segment_bytes.saturating_mul(HELD_SEGMENTS) {
                let cut = self.collector.cut_within();
                self.write(cut).await?;
            }
        }
        let cut = self.collector.cut();
        self.write(cut).await
    }

    fn progress(&mut self, batch: Batch) -> Result<(), Error> {
        for stream in self.collector.progress(batch)? {
            if self.reading.insert(stream.clone()) {
                self.follow(&stream, self.events_in.clone());
            }
        }
        Ok(())
    }

    /// Reads a stream from where the archive ends.
    fn follow(&mut self, stream: &StreamName, out: mpsc::Sender<Batch>) {
        let after = self.collector.read(stream);
        self.readers.spawn(read(self.provider.clone(), stream.clone(), after, out));
    }

    /// Writes what was cut as the next segment.
    async fn write(&mut self, cut: Cut) -> Result<(), Error> {
        self.first_tick = None;
        if cut.ticks.is_empty() && cut.runs.is_empty() {
            return Ok(());
        }
        let (last, writer, stream) = (self.last.clone(), self.writer.clone(), self.progress_stream.clone());
        let schemas = self.archiver.archive.schemas.clone();
        let built = tokio::task::spawn_blocking(move || segment::build(&last, &writer, (&stream, &schemas), &cut)).await;
        let segment = built
            .map_err(|error| Error::Task { what: error.to_string() })?
            .map_err(|error| Error::Task { what: format!("compressing a segment: {error}") })?;
        let mut failed = 0;
        while let Err(error) = self.archiver.archive.commit(&segment).await {
            failed += 1;
            if error.class() != ErrorClass::Transient || failed >= ATTEMPTS {
                return Err(error);
            }
            tracing::warn!(error = %error, "writing a segment failed, trying again");
            tokio::time::sleep(RETRY).await;
        }
        tell(&segment);
        self.last = Arc::new(segment.manifest);
        Ok(())
    }
}

fn tell(segment: &Segment) {
    let manifest = &segment.manifest;
    for missing in &manifest.missing {
        let (from, to) = (missing.from_lsn, missing.to_lsn);
        let (published, found, between) = (missing.published, missing.found, format!("{:?}", missing.between));
        tracing::error!(table = %missing.table, %from, %to, published, found, between, "events are missing from the stream (INV-6): the archive has what was there");
    }
    let missing: u64 = manifest.missing.iter().map(|missing| missing.published - missing.found).sum();
    ::metrics::counter!(metrics::MISSING).increment(missing);
    ::metrics::counter!(metrics::SEGMENTS).increment(1);
    let sum = |of: fn(&crate::manifest::Object) -> u64| manifest.objects.iter().map(of).sum::<u64>();
    ::metrics::counter!(metrics::RECORDS).increment(sum(|object| match object.kind {
        crate::manifest::Kind::Index => 0,
        _ => object.records,
    }));
    ::metrics::counter!(metrics::BYTES).increment(sum(|object| object.bytes));
    if let Some(ticks) = manifest.ticks.as_ref().filter(|ticks| ticks.commit_time_ms > 0) {
        ::metrics::gauge!(metrics::ARCHIVED_UP_TO).set(ticks.commit_time_ms as f64 / 1000.0);
    }
    tracing::debug!(segment = manifest.number, frontier = %manifest.frontier, "segment archived");
}

/// Reads a stream from `after` on. A stream that does not exist yet is waited for; transient failures are tried again from where reading stood.
async fn read(
    provider: Arc<dyn Provider>,
    stream: StreamName,
    mut after: Positions,
    out: mpsc::Sender<Batch>,
) -> Result<(), Error> {
    let mut failed = 0;
    loop {
        let Err(error) = hand_over(&*provider, &stream, &mut after, &out, &mut failed).await else { return Ok(()) };
        let waits = matches!(error, streams::Error::NoSuchStream { .. }) && after.is_empty();
        if !waits {
            failed += 1;
            if error.class() != ErrorClass::Transient || failed >= ATTEMPTS {
                return Err(error.into());
            }
            tracing::warn!(stream = %stream, error = %error, "reading failed, trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Hands over what a reader reads, until that fails or nobody wants it any more.
async fn hand_over(
    provider: &dyn Provider,
    stream: &StreamName,
    after: &mut Positions,
    out: &mpsc::Sender<Batch>,
    failed: &mut u32,
) -> Result<(), streams::Error> {
    let mut reader = provider.reader(stream, after).await?;
    loop {
        let batch = reader.next().await?;
        *failed = 0;
        crate::read::advance(after, &batch);
        if out.send(batch).await.is_err() {
            return Ok(());
        }
    }
}

fn reader_ended(ended: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => Error::Task { what: error.to_string() },
        Some(Ok(Ok(()))) | None => Error::Task { what: "a reader ended".to_owned() },
    }
}
