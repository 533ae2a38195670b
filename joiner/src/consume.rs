//! Reads the event streams and the progress stream, and drives the [`Engine`].
//!
//! For each event stream one task reads and one has sorted out what was read (on blocking threads, as many as a step leaves cores: [`crate::cores`]), so that parsing runs beside the core's own work; channels between them are short, and
//! a core that is busy holds the readers back. What lies between readers and core is bounded in bytes over all streams, as they are in memory and not as they travel ([`room`]): many streams with long backlogs take no more memory than one. Streams are not equally long, and the core keeps what it cannot apply yet:
//! where that has become much, only the streams that the next steps wait for are read on ([`wanted`]), so that one stream does not run ahead of the others for as far as it goes. The core's work is done on a blocking thread as well, everything that has come in at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use schemas::progress::{ProgressRecord, StreamName};
use schemas::table::SourceName;
use schemas::{ErrorClass, Lsn};
use streams::{Batch, Positions, Provider};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::core::Progress;
use crate::deliver::{self, NamedSink};
use crate::engine::Engine;
use crate::error::Error;
use crate::handle::Shared;
use crate::quiet::{Ended, LOOK_EVERY, Quiet};
use crate::route::{Of, Routed};
use crate::standby::{self, ConfirmedBySink};
use crate::status::{JoinerPhase, SinkState, SinkStatus};
use crate::{Config, metrics};

mod room;

use room::{Held, Room, Wanted};

/// Batches that wait for the core, and that it takes in at a time: the more there are, the larger are the steps of a core that has fallen behind, and rows that lie near one another are read together. What they hold is bounded by [`Room`].
const INBOX: usize = 256;
/// Batches of one stream that are sorted out at a time: what a step waits for may all be in one stream.
const SORTED_AT_ONCE: usize = 2;
/// Progress records that wait for their events; past it no more are read.
const WAITING_RECORDS: usize = 1000;
const RETRY: Duration = Duration::from_secs(1);
/// Attempts in a row before a stream's transient failure is taken for a lasting one.
const ATTEMPTS: u32 = 60;
const TRIM_EVERY: Duration = Duration::from_secs(10);
/// For so long at most a step is left to grow while more is on its way.
const PATIENCE: Duration = Duration::from_millis(300);
/// And for so long where nothing is that anybody knows of: the next read may be under way.
const BETWEEN_READS: Duration = Duration::from_millis(20);
/// For so long nothing is looked at meanwhile: what comes is taken in together.
const REST: Duration = Duration::from_millis(3);

pub(crate) async fn run(
    engine: Engine,
    config: Config,
    provider: Arc<dyn Provider>,
    sinks: Vec<NamedSink>,
    mut turn: watch::Receiver<Option<ConfirmedBySink>>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let shared = engine.shared().clone();
    let stop = shutdown.child_token();
    let mut deliveries = JoinSet::new();
    let progress: Vec<StreamName> = engine.origins().iter().map(|origin| origin.progress.clone()).collect();
    let (ask, asked) = mpsc::channel(1);
    let consuming = consume(engine, &config, provider.clone(), asked, &stop);
    let mut consuming = std::pin::pin!(consuming);
    let first = turn.borrow_and_update().clone();
    let stood_by = first.is_none();
    shared.with_status(|status| status.standby = stood_by);
    let begun = async {
        let predecessor = its_turn(first, turn).await;
        if stood_by {
            catch_up(&shared, published(&progress, &provider, &stop).await?, ask).await;
        }
        standby::take_over(&shared, &predecessor)?;
        if stood_by && shared.is_of_several_sources() { standby::lift(&shared) } else { Ok(()) }
    };
    let result = tokio::select! {
        // Sinks are known from the start where there is no predecessor, so that nothing that they still need is trimmed.
        biased;
        begun = begun => match begun.and_then(|()| deliver_to(&mut deliveries, &shared, sinks, &config, &stop)) {
            Ok(()) => consuming.await,
            Err(error) => Err(error),
        },
        result = &mut consuming => result,
    };
    if let Err(error) = &result {
        tracing::error!(error = %error, "the joiner has stopped");
        shared.with_status(|status| {
            status.phase = JoinerPhase::Failed;
            status.failure = Some(error.to_string());
        });
        // Sinks go on until they hold everything that has been joined, or are told to stop.
        deliveries.spawn(deliver::drained(shared.clone(), stop.clone()));
    } else {
        stop.cancel();
        shared.with_status(|status| status.phase = JoinerPhase::Stopped);
    }
    while let Some(ended) = deliveries.join_next().await {
        if let Err(error) = ended {
            return Err(Error::Task { what: error.to_string() });
        }
    }
    result
}

/// What the predecessor's sinks have confirmed, once it is this one's turn.
async fn its_turn(first: Option<ConfirmedBySink>, mut turn: watch::Receiver<Option<ConfirmedBySink>>) -> ConfirmedBySink {
    if let Some(predecessor) = first {
        return predecessor;
    }
    let begun = turn.wait_for(Option::is_some).await.ok().and_then(|begun| begun.clone());
    match begun {
        Some(predecessor) => predecessor,
        // Nobody is left who could say so.
        None => std::future::pending().await,
    }
}

/// One who has read everything up to where the progress streams end says which version that is.
struct CatchUp {
    ends: Vec<(StreamName, Positions)>,
    joined: oneshot::Sender<Lsn>,
}

/// One that has stood by tells nothing before it has joined what had been published when its turn came ([`standby`]).
async fn catch_up(shared: &Shared, ends: Option<Vec<(StreamName, Positions)>>, ask: mpsc::Sender<CatchUp>) {
    let (joined, reached) = oneshot::channel();
    let mut heads = shared.head.subscribe();
    if let Some(ends) = ends
        && ask.send(CatchUp { ends, joined }).await.is_ok()
        && let Ok(version) = reached.await
        && heads.wait_for(|head| head.live && head.frontier >= version).await.is_ok()
    {
        return;
    }
    // It is being stopped, or nobody consumes any more, which is told there.
    std::future::pending().await
}

fn deliver_to(
    deliveries: &mut JoinSet<()>,
    shared: &Arc<Shared>,
    sinks: Vec<NamedSink>,
    config: &Config,
    stop: &CancellationToken,
) -> Result<(), Error> {
    shared.with_status(|status| status.standby = false);
    for sink in sinks {
        let load = shared.head.borrow().load;
        let cursor = shared.store.cursor(&sink.name)?.filter(|cursor| cursor.load == load);
        shared.with_sink(&sink.name, |sink| sink.cursor = cursor.map(|cursor| cursor.sequence));
        deliveries.spawn(deliver::run(shared.clone(), sink, config.threads, stop.clone()));
    }
    Ok(())
}

async fn consume(
    mut engine: Engine,
    config: &Config,
    provider: Arc<dyn Provider>,
    mut asked: mpsc::Receiver<CatchUp>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let shared = engine.shared().clone();
    let (routed_in, mut routed) = mpsc::channel(INBOX);
    let (records_in, mut records) = mpsc::channel(64);
    let frontiers = watch::Sender::new(engine.frontiers());
    let awaited: Vec<StreamName> = engine.awaits().cloned().collect();
    if !awaited.is_empty()
        && let Some(ends) = published(&awaited, &provider, stop).await?
    {
        engine.await_published(ends);
    }
    let mut catching_up: Option<CatchUp> = None;
    let next = watch::Sender::new(None);
    let room = Room::new(next.subscribe());
    let mut readers: JoinSet<Result<(), Error>> = JoinSet::new();
    let after = |stream: &StreamName| engine.positions().get(stream).cloned().unwrap_or_default();
    for (number, origin) in engine.origins().iter().enumerate() {
        for stream in &origin.streams {
            let (raw_in, raw) = mpsc::channel(2);
            readers.spawn(read(provider.clone(), stream.clone(), after(stream), raw_in, Some(room.clone())));
            let sorting = Sorting { shared: shared.clone(), source: number, qualifier: origin.qualifier.clone() };
            readers.spawn(sorting.run(raw, routed_in.clone(), frontiers.subscribe()));
        }
        let (raw_in, raw) = mpsc::channel(2);
        // Progress records wait for events: they must not take the room that these need.
        readers.spawn(read(provider.clone(), origin.progress.clone(), after(&origin.progress), raw_in, None));
        readers.spawn(read_records(raw, records_in.clone()));
    }
    drop((routed_in, records_in));
    let mut quiet: Vec<Quiet> = engine.origins().iter().map(|_| Quiet::new()).collect();

    let mut engine = Some(engine);
    let mut trim = tokio::time::interval(TRIM_EVERY);
    trim.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut waiting = 0;
    let mut telling = false;
    // Where what is ready has been left to grow.
    let mut patience: Option<Patience> = None;
    // Until when nothing is taken in then.
    let mut rest: Option<Instant> = None;
    let mut inbox = Inbox::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = readers.join_next() => return Err(reader_ended(ended)),
            _ = trim.tick() => inbox.trim = Some(trim_bound(config, &shared)?),
            _ = look.tick(), if waiting > 0 => {
                let core = engine.as_mut().map(Engine::core);
                for (source, waits_for, last) in core.map(|core| core.waits_for()).unwrap_or_default() {
                    quiet[source].look(&provider, waits_for, &last);
                }
                continue;
            }
            ended = Quiet::answer(&mut quiet) => {
                if ended.is_empty() {
                    continue;
                }
                inbox.ended = ended;
            }
            () = tokio::time::sleep_until(rest.unwrap_or_else(Instant::now)), if rest.is_some() => {
                rest = None;
                continue;
            }
            record = records.recv(), if waiting < WAITING_RECORDS && rest.is_none() => inbox.records.extend(record),
            _ = routed.recv_many(&mut inbox.batches, INBOX), if rest.is_none() => {}
            Some(wanted) = asked.recv() => catching_up = Some(wanted),
            () = tokio::time::sleep_until(patience.map_or_else(Instant::now, |patience| patience.until)), if patience.is_some() => {}
            // A fan-out goes on while nothing else comes in.
            () = std::future::ready(()), if telling => {}
        }
        // Asked before it is received: a record taken out of the channel must not be dropped.
        while waiting + inbox.records.len() < WAITING_RECORDS {
            let Ok(record) = records.try_recv() else { break };
            inbox.records.push(record);
        }
        let Some(mut working) = engine.take() else { break };
        let work = std::mem::take(&mut inbox);
        working.core().stands_by(shared.with_status(|status| status.standby));
        let grows = patience.is_none_or(|patience| !patience.is_over());
        let done = shared.beside(move || work_off(&mut working, work, grows).map(|()| working));
        let mut back = done.await.map_err(|error| Error::Task { what: error.to_string() })??;
        let now = back.frontiers();
        frontiers.send_if_modified(|frontiers| std::mem::replace(frontiers, now.clone()) != now);
        let buffered = back.core().buffered_bytes();
        next.send_if_modified(|now| {
            let wanted = wanted(&mut back, config.buffer_bytes);
            std::mem::replace(now, wanted.clone()) != wanted
        });
        let joined = catching_up.as_ref().and_then(|wanted| back.core().has_joined(&wanted.ends));
        if let Some((version, wanted)) = joined.and_then(|version| Some((version, catching_up.take()?))) {
            // Who asked may be gone: then it is being stopped.
            let _ = wanted.joined.send(version);
        }
        patience = back.core().has_left().then(|| Patience::after(patience, room.is_used()));
        rest = patience.map(|patience| patience.until.min(Instant::now() + REST));
        (waiting, telling) = (back.core().waiting(), back.core().can_tell());
        shared.with_status(|status| metrics::status(status, buffered));
        engine = Some(back);
    }
    readers.shutdown().await;
    Ok(())
}

/// For how long a step is left to grow.
#[derive(Clone, Copy)]
struct Patience {
    since: Instant,
    until: Instant,
}

impl Patience {
    /// It has been left now, and perhaps before; `comes`: more is on its way.
    fn after(before: Option<Self>, comes: bool) -> Self {
        let now = Instant::now();
        let since = before.map_or(now, |before| before.since);
        let until = (now + if comes { PATIENCE } else { BETWEEN_READS }).min(since + PATIENCE);
        Self { since, until }
    }

    fn is_over(self) -> bool {
        Instant::now() >= self.until
    }
}

/// What has come in since the core was last at work.
#[derive(Default)]
struct Inbox {
    batches: Vec<(Routed, Held)>,
    records: Vec<Progress>,
    trim: Option<TrimBound>,
    /// Shards that end before what the next record waits for.
    ended: Vec<Ended>,
}

struct TrimBound {
    entries: u64,
    after_ms: i64,
    needed: u64,
}

/// `grows`: a step may be left for what is on its way.
fn work_off(engine: &mut Engine, inbox: Inbox, grows: bool) -> Result<(), Error> {
    let shared = engine.shared().clone();
    let _used = shared.cores.use_one();
    inbox.ended.iter().for_each(|ended| engine.core().ends_before(ended));
    for progress in inbox.records {
        engine.core().progress(progress)?;
    }
    engine.core().grows(grows);
    for (routed, _held) in inbox.batches {
        engine.routed(routed)?;
        if engine.core().is_nearly_full() {
            // What is ready makes room for the rest.
            engine.advance()?;
        }
    }
    engine.advance()?;
    if let Some(bound) = inbox.trim {
        engine.core().trim(bound.entries, bound.after_ms, bound.needed)?;
        metrics::state_bytes(engine.shared().store.bytes());
    }
    Ok(())
}

fn trim_bound(config: &Config, shared: &Shared) -> Result<TrimBound, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let after = now.saturating_sub(config.outbox_age);
    // A sink that has no cursor will be loaded, and needs nothing of the outbox; while it is loaded, what comes after its snapshot.
    let needs = |sink: &SinkStatus| match (sink.cursor, sink.state) {
        (Some(cursor), _) => Some(cursor + 1),
        (None, SinkState::Loading) => Some(1),
        (None, _) => None,
    };
    let needed = shared.with_status(|status| status.sinks.iter().filter_map(needs).min());
    // Past that no sink is waited for: it is loaded anew when it comes back.
    let taken = deliver::outbox_bytes(shared)?;
    shared.with_status(|status| status.outbox_bytes = taken);
    let most = deliver::entries_within(shared, taken, config.backlog_bytes);
    let oldest = (shared.head.borrow().sequence + 1).saturating_sub(most);
    Ok(TrimBound {
        entries: config.outbox_entries.min(most),
        after_ms: i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        needed: needed.unwrap_or(u64::MAX).max(oldest),
    })
}

fn reader_ended(ended: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => Error::Task { what: error.to_string() },
        Some(Ok(Ok(()))) | None => Error::Task { what: "a reader ended".to_owned() },
    }
}

/// All streams, as long as there is room for what the core cannot apply yet; past a quarter of it, those that the next step of each source waits for, or the one after that where the next only waits to grow. Where none is known of, because no progress has been told past what has
/// been read, all are read: a transaction may be larger than the room, and is moved to the disk then. So whatever a step needs is read, and no step waits for a stream that is not.
fn wanted(engine: &mut Engine, buffer_bytes: usize) -> Wanted {
    let core = engine.core();
    if core.buffered_bytes() <= buffer_bytes / 4 {
        return None;
    }
    Some(core.lacks().map(|behind| behind.stream).collect()).filter(|streams: &BTreeSet<_>| !streams.is_empty())
}

/// Reads a stream from `after` on. A stream that does not exist yet is waited for; transient failures are tried again from where reading stood.
async fn read(
    provider: Arc<dyn Provider>,
    stream: StreamName,
    mut after: Positions,
    out: mpsc::Sender<(Batch, Held)>,
    mut room: Option<Room>,
) -> Result<(), Error> {
    let mut failed = 0;
    let mut told = false;
    loop {
        let error = match provider.reader(&stream, &after).await {
            Ok(mut reader) => loop {
                match reader.next().await {
                    Ok(batch) => {
                        failed = 0;
                        if let Some((last, _)) = batch.records.last() {
                            after.insert(batch.shard.clone(), last.clone());
                        }
                        let held = match &mut room {
                            Some(room) => room.reserve(&batch).await,
                            None => None,
                        };
                        if out.send((batch, held)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        match error {
            streams::Error::NoSuchStream { .. } if after.is_empty() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(stream = %stream, "waiting for the importer to make the stream");
                }
            }
            error if error.class() == ErrorClass::Transient && failed < ATTEMPTS => {
                failed += 1;
                tracing::warn!(stream = %stream, error = %error, "reading failed, trying again");
            }
            error => return Err(error.into()),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Sorts out what is read of a stream.
struct Sorting {
    shared: Arc<Shared>,
    /// The number of the source that it is of, and its name where there are several.
    source: usize,
    qualifier: Option<SourceName>,
}

impl Sorting {
    async fn run(
        self,
        mut raw: mpsc::Receiver<(Batch, Held)>,
        out: mpsc::Sender<(Routed, Held)>,
        frontiers: watch::Receiver<Vec<Lsn>>,
    ) -> Result<(), Error> {
        let mut sorted = FuturesOrdered::new();
        loop {
            tokio::select! {
                Some((batch, held)) = raw.recv(), if sorted.len() < SORTED_AT_ONCE => {
                    sorted.push_back(self.batch(Arc::new(batch), held, &frontiers));
                }
                Some(done) = sorted.next() => {
                    if out.send(done?).await.is_err() {
                        break;
                    }
                }
                else => break,
            }
        }
        // The reader's own end tells why.
        std::future::pending().await
    }

    async fn batch(
        &self,
        batch: Arc<Batch>,
        mut held: Held,
        frontiers: &watch::Receiver<Vec<Lsn>>,
    ) -> Result<(Routed, Held), Error> {
        let routed = self.routed(batch, frontiers).await?;
        if let Some(held) = &mut held {
            room::settle(held, routed.bytes());
        }
        Ok((routed, held))
    }

    async fn routed(&self, batch: Arc<Batch>, frontiers: &watch::Receiver<Vec<Lsn>>) -> Result<Routed, Error> {
        let mut attempts = 0;
        loop {
            let frontier = frontiers.borrow()[self.source];
            let (routing, source, qualifier) = (self.shared.clone(), self.source, self.qualifier.clone());
            let batch = batch.clone();
            let routed = self.shared.sort(move || {
                let of = Of { source, qualifier: qualifier.as_ref(), frontier };
                routing.route(of, &batch)
            });
            match routed.await? {
                // Folders of schemas are handed on by people and by file systems: both may be a little behind.
                Err(error @ Error::UnknownSchema(_)) if attempts < ATTEMPTS => {
                    attempts += 1;
                    tracing::warn!(error = %error, "a record cannot be read yet, looking for its schema again");
                    tokio::time::sleep(RETRY).await;
                }
                routed => return routed,
            }
        }
    }
}

/// Where progress streams end now; nothing when it is to stop.
async fn published(
    streams: &[StreamName],
    provider: &Arc<dyn Provider>,
    stop: &CancellationToken,
) -> Result<Option<Vec<(StreamName, Positions)>>, Error> {
    let mut ends = Vec::new();
    for stream in streams {
        let mut failed = 0;
        ends.push(loop {
            match provider.tips(stream).await {
                Ok(end) => break (stream.clone(), end),
                // Nothing has been published.
                Err(streams::Error::NoSuchStream { .. }) => break (stream.clone(), Positions::default()),
                Err(error) if error.class() == ErrorClass::Transient && failed < ATTEMPTS => {
                    failed += 1;
                    tracing::warn!(stream = %stream, error = %error, "asking where the stream ends failed, trying again");
                }
                Err(error) => return Err(error.into()),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(RETRY) => {}
            }
        });
    }
    Ok(Some(ends))
}

async fn read_records(mut raw: mpsc::Receiver<(Batch, Held)>, out: mpsc::Sender<Progress>) -> Result<(), Error> {
    while let Some((batch, _)) = raw.recv().await {
        for (sequence, data) in batch.records {
            let record: ProgressRecord = serde_json::from_slice(&data).map_err(|error| Error::ProgressRecord {
                stream: batch.stream.clone(),
                sequence: sequence.clone(),
                what: error.to_string(),
            })?;
            let progress = Progress { stream: batch.stream.clone(), shard: batch.shard.clone(), sequence, record };
            if out.send(progress).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}
