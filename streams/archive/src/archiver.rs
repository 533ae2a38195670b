//! Follows the streams of a source and writes them to the archive.
//!
//! It is a consumer like any other: it reads the progress stream, and each event stream from when a progress record first speaks of it. Reading runs beside writing, with short channels between: an archive that is slow holds
//! the readers back. A segment is written when it is large enough or its first tick old enough, and at an orderly end; what is not written then is read again at the next start.
//!
//! # Memory
//! Bounded are: what readers have handed over and is not taken in ([`Ahead`]); event records that are taken in, by cutting a segment within a tick ([`HELD_SEGMENTS`]); progress records whose events are not there yet, by not reading
//! on in the progress stream ([`WAITING_BYTES`]; one may always wait, or nothing would ever go on).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::Provider;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::collect::{Collector, Cut};
use crate::config::{Config, OnTrimmed};
use crate::error::Error;
use crate::follow::{ATTEMPTS, Ahead, Arrived, Follow, RETRY};
use crate::lease::Lease;
use crate::manifest::{Kind, Manifest};
use crate::metrics;
use crate::quiet::{LOOK_EVERY, Quiet};
use crate::segment::{self, Segment, Source};
use crate::status::{Phase, StatusHandle, Waiting};
use crate::store::Archive;

/// Batches between readers and collector, of all streams together.
const READ_AHEAD: usize = 16;
/// What is held in memory, in segments, before one is cut in the middle of a tick.
const HELD_SEGMENTS: usize = 4;
/// Progress records in memory whose events are not there yet, in bytes.
const WAITING_BYTES: usize = 32 << 20;
/// How often it is looked for segments that are too old.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An archiver, ready to run.
#[derive(Debug)]
pub struct Archiver {
    archive: Archive,
    interval: Duration,
    segment_bytes: usize,
    on_trimmed: OnTrimmed,
    /// How old a segment may become.
    retention: Option<Duration>,
    /// None: whoever comes takes over at once.
    term: Option<Duration>,
    dead_letters: Option<StreamName>,
    status: StatusHandle,
}

impl Archiver {
    pub fn new(archive: Archive, config: &Config) -> Self {
        let interval = Duration::from_secs(config.interval_seconds);
        let term = Some(Duration::from_secs(config.lease_seconds)).filter(|term| !term.is_zero());
        let status = StatusHandle::new(archive.source());
        Self {
            archive,
            interval,
            segment_bytes: config.segment_bytes.max(1),
            on_trimmed: config.on_trimmed,
            retention: config.retention_days.map(|days| DAY * days.get()),
            term,
            dead_letters: None,
            status,
        }
    }

    /// Archives the stream of what the importer sets aside as well.
    #[must_use]
    pub fn with_dead_letters(self, stream: StreamName) -> Self {
        Self { dead_letters: Some(stream), ..self }
    }

    /// A handle to read what it does, during and after [`run`](Self::run).
    pub fn status(&self) -> StatusHandle {
        self.status.clone()
    }

    /// Archives until `shutdown`, or until something happens that needs help. Waits for its turn while another archiver of the same archive works.
    pub async fn run(self, provider: Arc<dyn Provider>, shutdown: CancellationToken) -> Result<(), Error> {
        self.attempt(provider, shutdown).await
    }

    /// The same of one that may be run again after a failure.
    pub async fn attempt(&self, provider: Arc<dyn Provider>, shutdown: CancellationToken) -> Result<(), Error> {
        let result = self.turns(&provider, &shutdown).await;
        match &result {
            Ok(()) => self.status.phase(Phase::Stopped, None),
            Err(error) => self.status.phase(Phase::Failed, Some(error.to_string())),
        }
        result
    }

    async fn turns(&self, provider: &Arc<dyn Provider>, shutdown: &CancellationToken) -> Result<(), Error> {
        loop {
            let writer = Uuid::new_v4().simple().to_string();
            self.status.phase(Phase::Waiting, None);
            let lease = self.term.map(|term| Lease::new(self.archive.clone(), &writer, term));
            let mut after = None;
            if let Some(lease) = &lease {
                let waiting = |other: &str| tracing::info!(other, "another archiver works; waiting to take over");
                after = tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    turn = lease.wait(waiting) => Some(turn?),
                };
            }
            let result = self.work(provider, shutdown, writer, after.zip(lease.clone())).await;
            match (result, lease) {
                (Err(error @ Error::Superseded { .. }), Some(_)) => {
                    tracing::warn!(%error, "another archiver has taken over; waiting for the next turn");
                }
                (result, lease) => {
                    if let Some(lease) = lease {
                        lease.release().await;
                    }
                    return result;
                }
            }
        }
    }

    async fn work(
        &self,
        provider: &Arc<dyn Provider>,
        shutdown: &CancellationToken,
        writer: String,
        turn: Option<(u64, Lease)>,
    ) -> Result<(), Error> {
        let last = self.archive.take_over(&writer, turn.as_ref().map(|(after, _)| *after)).await?;
        if let Some((_, lease)) = &turn {
            lease.begin().await?;
        }
        tracing::info!(store = self.archive.objects.name(), segment = last.number, frontier = %last.frontier, "archiving");
        self.status.begins(self.archive.objects.name(), &last);
        self.status.phase(Phase::Archiving, None);
        let source = Source {
            prefix: self.archive.header.prefix.clone(),
            progress_stream: self.archive.progress_stream(),
            dead_letters: self.dead_letters.clone(),
            schemas: self.archive.schemas.clone(),
        };
        let (events_in, events) = mpsc::channel(READ_AHEAD);
        let (progress_in, progress) = mpsc::channel(READ_AHEAD);
        let dead_letters = self.dead_letters.clone();
        let mut run = Run {
            collector: Collector::new(&self.archive.header.source, dead_letters.clone(), &last.positions, &last.ended),
            source: Arc::new(source),
            writer,
            last,
            first_tick: None,
            archiver: self,
            provider: provider.clone(),
            readers: JoinSet::new(),
            reading: HashSet::new(),
            ahead: Ahead::new(),
            events_in,
        };
        if let Some((_, lease)) = turn {
            run.readers.spawn(lease.keep());
        }
        if let Some(retention) = self.retention {
            run.readers.spawn(expire(self.archive.clone(), retention));
        }
        run.follow(&run.source.progress_stream.clone(), progress_in);
        if let Some(stream) = dead_letters {
            run.follow(&stream, run.events_in.clone());
        }
        let result = run.work(events, progress, shutdown).await;
        run.readers.shutdown().await;
        result
    }
}

/// An archiver at work.
struct Run<'a> {
    archiver: &'a Archiver,
    provider: Arc<dyn Provider>,
    collector: Collector,
    source: Arc<Source>,
    writer: String,
    /// The last segment.
    last: Arc<Manifest>,
    /// When the first tick came that is in no segment yet.
    first_tick: Option<Instant>,
    /// What runs beside: readers, the sign of life, the removal of what is too old. None of them ends by itself.
    readers: JoinSet<Result<(), Error>>,
    reading: HashSet<StreamName>,
    ahead: Ahead,
    events_in: mpsc::Sender<Arrived>,
}

fn looking() -> Interval {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look
}

impl Run<'_> {
    async fn work(
        &mut self,
        mut events: mpsc::Receiver<Arrived>,
        mut progress: mpsc::Receiver<Arrived>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let (mut look, mut quiet) = (looking(), Quiet::new());
        loop {
            let due = self.first_tick.map(|first| first + self.archiver.interval);
            let wants_ticks = !self.collector.is_waiting() || self.collector.waiting_bytes() < WAITING_BYTES;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                ended = self.readers.join_next() => return Err(reader_ended(ended)),
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let cut = self.collector.cut();
                    self.write(cut).await?;
                }
                _ = look.tick() => self.look(&mut quiet).await,
                Some(arrived) = progress.recv(), if wants_ticks => self.progress(arrived)?,
                Some(arrived) = events.recv() => self.events(arrived),
            }
            if self.collector.advance() {
                self.first_tick.get_or_insert_with(Instant::now);
            }
            if self.collector.due_bytes() >= self.archiver.segment_bytes {
                let cut = self.collector.cut();
                self.write(cut).await?;
            }
            if self.collector.held_bytes() >= self.archiver.segment_bytes.saturating_mul(HELD_SEGMENTS) {
                let cut = self.collector.cut_within();
                self.write(cut).await?;
            }
        }
        let cut = self.collector.cut();
        self.write(cut).await
    }

    fn progress(&mut self, arrived: Arrived) -> Result<(), Error> {
        match arrived {
            Arrived::Records(batch, _room) => {
                for stream in self.collector.progress(batch)? {
                    if self.reading.insert(stream.clone()) {
                        self.follow(&stream, self.events_in.clone());
                    }
                }
            }
            Arrived::Trimmed { stream, shard } => self.collector.trimmed(&stream, &shard),
        }
        Ok(())
    }

    fn events(&mut self, arrived: Arrived) {
        match arrived {
            Arrived::Records(batch, _room) => self.collector.events(batch),
            Arrived::Trimmed { stream, shard } => self.collector.trimmed(&stream, &shard),
        }
    }

    /// Looks for shards that nothing more comes of, and tells how things are.
    async fn look(&mut self, quiet: &mut Quiet) {
        for ended in quiet.look(&self.provider, self.collector.waits_for()).await {
            tracing::warn!(
                stream = %ended.stream, shard = %ended.shard, named = %ended.named, read = ?ended.read,
                "progress records name what the shard does not hold any more; going on without it"
            );
            self.collector.end(&ended.stream, &ended.shard, ended.greatest);
        }
        self.archiver.status.waits(Waiting {
            tables: self.collector.waiting(),
            oldest_ms: self.collector.first_commit_time_ms(),
            held_bytes: self.collector.held_bytes() + self.collector.waiting_bytes(),
        });
    }

    /// Reads a stream from where the archive ends.
    fn follow(&mut self, stream: &StreamName, out: mpsc::Sender<Arrived>) {
        let follow = Follow {
            provider: self.provider.clone(),
            stream: stream.clone(),
            after: self.collector.read(stream),
            out,
            ahead: self.ahead.clone(),
            on_trimmed: self.archiver.on_trimmed,
        };
        self.readers.spawn(follow.run());
    }

    /// Writes what was cut as the next segment.
    async fn write(&mut self, cut: Cut) -> Result<(), Error> {
        self.first_tick = None;
        if cut.ticks.is_empty() && cut.runs.is_empty() {
            return Ok(());
        }
        let (last, writer, source) = (self.last.clone(), self.writer.clone(), self.source.clone());
        let built = tokio::task::spawn_blocking(move || segment::build(&last, &writer, &source, &cut)).await;
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
        tell(self.archiver.archive.source(), &segment);
        self.archiver.status.archived(&segment.manifest);
        self.last = Arc::new(segment.manifest);
        Ok(())
    }
}

fn tell(source: &str, segment: &Segment) {
    let manifest = &segment.manifest;
    let counted = |name, more| ::metrics::counter!(name, "source" => source.to_owned()).increment(more);
    for missing in &manifest.missing {
        tracing::error!(%missing, "events are missing from the stream (INV-6): the archive has what was there");
    }
    for gap in &manifest.gaps {
        tracing::error!(%gap, "the archive has a gap: the streams had forgotten what was to be archived");
    }
    let missing: u64 = manifest.missing.iter().map(|missing| missing.published - missing.found).sum();
    counted(metrics::MISSING, missing);
    counted(metrics::GAPS, manifest.gaps.len() as u64);
    counted(metrics::SEGMENTS, 1);
    let sum = |of: fn(&crate::manifest::Object) -> u64| manifest.objects.iter().map(of).sum::<u64>();
    let records = sum(|object| match object.kind {
        Kind::Index => 0,
        _ => object.records,
    });
    counted(metrics::RECORDS, records);
    counted(metrics::BYTES, sum(|object| object.bytes));
    if let Some(ticks) = manifest.ticks.as_ref().filter(|ticks| ticks.commit_time_ms > 0) {
        ::metrics::gauge!(metrics::ARCHIVED_UP_TO, "source" => source.to_owned()).set(ticks.commit_time_ms as f64 / 1000.0);
    }
    tracing::debug!(source, segment = manifest.number, frontier = %manifest.frontier, "segment archived");
}

/// Removes what is too old, again and again. An archive that cannot be removed from is no reason not to write it.
async fn expire(archive: Archive, retention: Duration) -> Result<(), Error> {
    loop {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(retention);
        match archive.expire(i64::try_from(before.as_millis()).unwrap_or_default()).await {
            Ok(0) => {}
            Ok(segments) => {
                ::metrics::counter!(metrics::EXPIRED, "source" => archive.source().to_owned()).increment(segments);
                tracing::info!(segments, "segments older than the archive's retention are removed");
            }
            Err(error) => tracing::error!(%error, "what is older than the archive's retention cannot be removed"),
        }
        tokio::time::sleep(EXPIRE_EVERY).await;
    }
}

fn reader_ended(ended: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => Error::Task { what: error.to_string() },
        Some(Ok(Ok(()))) | None => Error::Task { what: "a reader ended".to_owned() },
    }
}
