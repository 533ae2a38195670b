//! What becomes of changes that a sink does not take: dead letters, batches taken apart, backlogs.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use joiner::dead_letters::{Letter, Refused, Retried, Which};
use joiner::{DeadLetters, Handle, Joiner, NamedSink, SinkState, SinkStatus};
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::progress::Phase;
use sinks::{Held, Rejected, Retry, Sink, Terms};
use streams::memory::Memory;
use support::{ORDER, change, config, encode, lsn, order, orders, plan, publish, read, record};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What becomes of a change of a certain key.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Rejected,
    /// The whole batch fails with an answer that nobody understands.
    Unexpected,
    /// The whole batch fails as if the target were not there.
    Unavailable,
    /// The target asks for so long a pause.
    Throttled(Option<Duration>),
}

#[derive(Default)]
struct Inner {
    held: Mutex<BTreeMap<String, (Lsn, Option<String>)>>,
    frontier: Mutex<Option<Lsn>>,
    fate: Mutex<BTreeMap<String, Fate>>,
    down: AtomicBool,
    loads: AtomicU64,
    /// Changes of batches that were taken.
    taken: AtomicU64,
    /// When a write came.
    attempts: Mutex<Vec<Instant>>,
    /// It has given up, and says so in its note.
    given_up: AtomicBool,
    /// Entities of which something is to be filled by a load.
    lacking: Mutex<Vec<String>>,
    /// Entities whose loads have ended, in their order.
    ended: Mutex<Vec<String>>,
}

/// A target in memory.
#[derive(Clone, Default)]
struct Target {
    inner: Arc<Inner>,
    terms: Terms,
}

impl Target {
    fn new() -> Self {
        let pause = Duration::from_millis(2);
        let retry = Retry { first_pause: pause, longest_pause: pause * 5, budget: Duration::from_millis(50), dead_letters: 5 };
        Self { inner: Arc::default(), terms: Terms { form: String::new(), retry } }
    }

    fn named(&self) -> Vec<NamedSink> {
        vec![NamedSink { name: "target".into(), sink: Box::new(self.clone()) }]
    }

    fn fate(&self, key: &str, fate: Option<Fate>) {
        let mut fates = self.inner.fate.lock().unwrap();
        match fate {
            Some(fate) => drop(fates.insert(key.to_owned(), fate)),
            None => drop(fates.remove(key)),
        }
    }

    fn frontier(&self) -> Option<Lsn> {
        *self.inner.frontier.lock().unwrap()
    }

    fn document(&self, key: &str) -> Option<String> {
        self.inner.held.lock().unwrap().get(key).and_then(|(_, document)| document.clone())
    }

    fn taken(&self) -> u64 {
        self.inner.taken.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Sink for Target {
    async fn prepare(&mut self, _: &[EntityInfo]) -> Result<(), sinks::Error> {
        if self.inner.given_up.load(Ordering::SeqCst) {
            return Err(sinks::Error::misconfigured("target", "given up", "Say when"));
        }
        if self.inner.down.load(Ordering::SeqCst) {
            return Err(sinks::Error::unavailable("target", "connection refused"));
        }
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        // A frontier alone may follow a load at any time.
        if !changes.is_empty() {
            self.inner.attempts.lock().unwrap().push(Instant::now());
        }
        if self.inner.down.load(Ordering::SeqCst) {
            return Err(sinks::Error::unavailable("target", "connection refused"));
        }
        let fates = self.inner.fate.lock().unwrap().clone();
        let fate = |change: &EntityChange| fates.get("*").or_else(|| fates.get(change.key.as_str())).copied();
        for change in changes {
            match fate(change) {
                Some(Fate::Unexpected) => return Err(sinks::Error::unexpected("target", "internal error 17")),
                Some(Fate::Throttled(pause)) => return Err(sinks::Error::throttled("target", "slow down", pause)),
                Some(Fate::Unavailable) => return Err(sinks::Error::unavailable("target", "no answer within 1 s")),
                _ => {}
            }
        }
        let mut held = self.inner.held.lock().unwrap();
        let mut rejected = Vec::new();
        for change in changes {
            if fate(change) == Some(Fate::Rejected) {
                rejected.push(Rejected { change: change.clone(), reason: "too large".into() });
                continue;
            }
            let entry = held.entry(change.key.to_string()).or_insert((Lsn::ZERO, None));
            if entry.0 <= change.version {
                *entry = (change.version, change.document.as_deref().map(str::to_owned));
            }
        }
        self.inner.taken.fetch_add(changes.len() as u64, Ordering::SeqCst);
        let mut reached = self.inner.frontier.lock().unwrap();
        *reached = frontier.or(*reached);
        Ok(rejected)
    }

    async fn end_load(&mut self, entity: &str, _: Lsn) -> Result<(), sinks::Error> {
        self.inner.loads.fetch_add(1, Ordering::SeqCst);
        self.inner.ended.lock().unwrap().push(entity.to_owned());
        self.inner.lacking.lock().unwrap().retain(|lacking| lacking != entity);
        Ok(())
    }

    async fn lacking(&mut self) -> Result<Vec<String>, sinks::Error> {
        Ok(self.inner.lacking.lock().unwrap().clone())
    }

    async fn held(&mut self) -> Result<Held, sinks::Error> {
        Ok(self.frontier().map_or(Held::Nothing, Held::UpTo))
    }

    fn note(&self) -> Option<String> {
        self.inner.given_up.load(Ordering::SeqCst).then(|| "given up".to_owned())
    }

    fn recall(&mut self, note: Option<&str>) {
        self.inner.given_up.store(note == Some("given up"), Ordering::SeqCst);
    }

    fn terms(&self) -> Terms {
        self.terms.clone()
    }
}

/// Waits until something holds; a test that waits in vain fails after a minute.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Running {
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), joiner::Error>>,
}

fn start(dir: &Path, provider: &Memory, sinks: Vec<NamedSink>) -> Running {
    start_with(config(dir), provider, sinks)
}

fn start_with(config: joiner::Config, provider: &Memory, sinks: Vec<NamedSink>) -> Running {
    let joiner = Joiner::open(config).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let task = tokio::spawn(joiner.run(Arc::new(provider.clone()), sinks, stop.clone()));
    Running { handle, stop, task }
}

impl Running {
    /// Of the only sink, once there is one.
    fn sink(&self) -> SinkStatus {
        self.handle.status().sinks.first().cloned().unwrap_or(SinkStatus {
            name: String::new(),
            state: SinkState::Waiting,
            cursor: None,
            behind: 0,
            overtaken: false,
            written: 0,
            rejected: 0,
            dead_letters: 0,
            load: None,
            error: None,
        })
    }

    fn letters(&self) -> Vec<Refused> {
        refused(&self.handle.dead_letters())
    }

    async fn stop(self) {
        self.stop.cancel();
        drop(self.handle);
        self.task.await.unwrap().unwrap();
    }
}

fn refused(letters: &DeadLetters) -> Vec<Refused> {
    let change = |letter| match letter {
        Letter::Change(refused) => refused,
        other => panic!("{other:?}"),
    };
    letters.list(&Which::All, 100).unwrap().into_iter().map(|kept| change(kept.letter)).collect()
}

/// Orders from 1 on, as of LSN 5.
async fn load(provider: &Memory, count: i64) {
    let rows: Vec<Vec<u8>> = (1..=count).map(|id| encode(&read(orders(), 5, order(id, "new")))).collect();
    publish(provider, &rows, record(Phase::Snapshot, 5, 5, &[(&orders(), count as u64)])).await;
    publish(provider, &[], record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[])).await;
}

/// All these orders get another status.
async fn update(provider: &Memory, ids: std::ops::RangeInclusive<i64>, at: u8, from: &str, to: &str) {
    let updates: Vec<Vec<u8>> = ids
        .map(|id| {
            let mut event = change(orders(), at, 1, Some(order(id, from)), Some(order(id, to)));
            let [high, low] = u16::try_from(id).unwrap().to_be_bytes();
            event.position.seqval = Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 1, high, low]);
            encode(&event)
        })
        .collect();
    publish(provider, &updates, record(Phase::Tail, at - 1, at, &[(&orders(), updates.len() as u64)])).await;
}

/// A target that takes as many batches as it is let.
struct Slow {
    target: Target,
    let_in: Arc<Semaphore>,
}

#[async_trait]
impl Sink for Slow {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), sinks::Error> {
        self.target.prepare(entities).await
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        if !changes.is_empty() {
            self.let_in.acquire().await.unwrap().forget();
        }
        self.target.write(changes, frontier).await
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), sinks::Error> {
        self.target.end_load(entity, version).await
    }
}

#[tokio::test]
async fn a_load_says_how_far_it_is() {
    let (dir, provider, target, let_in) =
        (tempfile::tempdir().unwrap(), Memory::new(), Target::new(), Arc::new(Semaphore::new(0)));
    load(&provider, 12_000).await;
    let sink = Slow { target: target.clone(), let_in: let_in.clone() };
    let running = start(dir.path(), &provider, vec![NamedSink { name: "target".into(), sink: Box::new(sink) }]);
    until("the load", || running.sink().load.is_some_and(|load| load.entities == 0)).await;
    assert_eq!(running.sink().state, SinkState::Loading);
    let_in.add_permits(1);
    until("a part of it", || running.sink().load.is_some_and(|load| load.entities > 0)).await;
    assert!(running.sink().load.unwrap().entities < 12_000);
    until("all of them counted", || running.sink().load.unwrap().entities_expected == Some(12_000)).await;
    let_in.add_permits(1000);
    until("the end", || running.sink().state == SinkState::Following && target.taken() == 12_000).await;
    assert_eq!(running.sink().load, None);
    running.stop().await;
}

#[tokio::test]
async fn only_the_entity_that_lacks_something_in_the_target_is_loaded_anew() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let plans = || vec![plan(ORDER), plan("entity: item\ntable: dbo.items\nfields: [line, price]")];
    let start = || start_with(joiner::Config { plans: plans(), ..config(dir.path()) }, &provider, target.named());
    let running = start();
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    running.stop().await;
    // A column is new.
    let mut ended = std::mem::take(&mut *target.inner.ended.lock().unwrap());
    ended.sort_unstable();
    assert_eq!(ended, ["item", "order"]);
    target.inner.lacking.lock().unwrap().push("order".into());
    update(&provider, 1..=1, 6, "new", "paid").await;
    let running = start();
    until("what came meanwhile", || target.frontier() == Some(lsn(6))).await;
    assert_eq!(*target.inner.ended.lock().unwrap(), ["order"]);
    assert!(target.document("1").unwrap().contains("paid") && target.inner.lacking.lock().unwrap().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_refused_change_is_kept_with_its_reason_and_tried_again_when_asked() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    target.fate("2", Some(Fate::Rejected));
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    let letters = running.letters();
    assert_eq!(letters.len(), 1);
    let letter = &letters[0];
    assert_eq!(
        (letter.sink.as_str(), letter.entity.as_str(), letter.key.as_str(), letter.version),
        ("target", "order", "2", lsn(5))
    );
    assert_eq!((letter.reason.as_str(), letter.retry), ("too large", false));
    let document = r#"{"id":2,"status":"new","items":[],"total":"0.00"}"#;
    assert_eq!((letter.document.as_deref(), letter.document_bytes), (Some(document), Some(document.len())));
    assert_eq!((running.sink().dead_letters, running.sink().state), (1, SinkState::Following));

    // In vain: it stays, with what is said now.
    let letters = running.handle.dead_letters();
    assert_eq!(letters.retry(&Which::All).unwrap(), Retried { changes: 1, events: 0, documents: 0, sinks: 0 });
    until("the vain attempt", || !running.letters()[0].retry && running.sink().rejected == 2).await;
    // The cause is mended.
    target.fate("2", None);
    assert_eq!(letters.retry(&Which::Sink("other".into())).unwrap().changes, 0);
    letters.retry(&Which::Sink("target".into())).unwrap();
    until("the second attempt", || target.document("2").is_some()).await;
    until("the letter's end", || running.letters().is_empty() && running.sink().dead_letters == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn a_later_change_that_is_taken_makes_a_letter_pointless_and_dropping_forgets_it() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    target.fate("1", Some(Fate::Rejected));
    target.fate("2", Some(Fate::Rejected));
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    assert_eq!(running.letters().len(), 2);
    target.fate("1", None);
    update(&provider, 1..=1, 6, "new", "paid").await;
    until("the change", || target.frontier() == Some(lsn(6))).await;
    until("one letter", || running.letters().len() == 1).await;
    let letters = running.handle.dead_letters();
    let id = letters.list(&Which::All, 9).unwrap()[0].id.clone();
    assert_eq!(letters.remove(&Which::Id("0000000000000000".into())).unwrap(), 0);
    assert_eq!(letters.remove(&Which::Id(id)).unwrap(), 1);
    until("none", || running.letters().is_empty() && running.sink().dead_letters == 0).await;
    assert_eq!(target.document("2"), None, "dropped is not delivered");
    running.stop().await;
}

#[tokio::test]
async fn letters_of_a_stopped_joiner_are_worked_on_in_its_state() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    target.fate("2", Some(Fate::Rejected));
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    let error = DeadLetters::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    running.stop().await;
    let stopped = DeadLetters::open(dir.path()).unwrap();
    assert_eq!(refused(&stopped)[0].key.as_str(), "2");
    assert_eq!(stopped.retry(&Which::All).unwrap().changes, 1);
    drop(stopped);
    // It has changed since it was refused: what is written is what it is now.
    target.fate("2", None);
    update(&provider, 1..=1, 6, "new", "paid").await;
    let running = start(dir.path(), &provider, target.named());
    until("the attempt", || target.document("2").is_some() && running.letters().is_empty()).await;
    running.stop().await;
    let empty = tempfile::tempdir().unwrap();
    let error = DeadLetters::open(empty.path()).unwrap_err().to_string();
    assert!(error.contains("there is no joiner state"), "{error}");
}

#[tokio::test]
async fn a_change_that_fails_its_batch_is_found_and_the_others_are_written() {
    for fate in [Fate::Unexpected, Fate::Unavailable] {
        let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
        let running = start(dir.path(), &provider, target.named());
        // Once while it is loaded, and once while it follows.
        target.fate("7", Some(fate));
        load(&provider, 40).await;
        until("the load", || target.frontier() == Some(lsn(5))).await;
        assert_eq!((target.document("7"), target.document("8").is_some()), (None, true));
        target.fate("7", None);
        target.fate("9", Some(fate));
        update(&provider, 1..=40, 6, "new", "paid").await;
        until("the changes", || target.frontier() == Some(lsn(6))).await;
        assert!(target.document("7").unwrap().contains("paid") && target.document("9").unwrap().contains("new"));
        until("the letter", || running.letters().len() == 1).await;
        let letter = &running.letters()[0];
        let reason = if fate == Fate::Unexpected { "internal error 17" } else { "no answer" };
        assert!(letter.key.as_str() == "9" && letter.reason.contains(reason), "{letter:?}");
        assert_eq!(running.sink().state, SinkState::Following);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_target_that_takes_nothing_loses_nothing() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 10).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    target.fate("*", Some(Fate::Unexpected));
    update(&provider, 1..=10, 6, "new", "paid").await;
    let errors = || running.sink().error.is_some_and(|error| error.contains("internal error 17"));
    until("the failure", errors).await;
    // Long enough for several attempts at taking the batch apart.
    let looks = Looks::new(40);
    until("more failures", || looks.passed()).await;
    assert_eq!((running.letters().len(), running.sink().state), (0, SinkState::Retrying));
    target.fate("*", None);
    until("the changes", || target.frontier() == Some(lsn(6))).await;
    assert!(target.document("10").unwrap().contains("paid"));
    running.stop().await;
}

#[tokio::test]
async fn a_target_that_asks_for_patience_gets_it_and_loses_nothing() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 10).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    // Only one of the ten: taken apart, the others would go through, and this one would be a dead letter.
    let pause = Duration::from_millis(300);
    target.fate("7", Some(Fate::Throttled(Some(pause))));
    target.inner.attempts.lock().unwrap().clear();
    update(&provider, 1..=10, 6, "new", "paid").await;
    let attempts = || target.inner.attempts.lock().unwrap().clone();
    until("three attempts, by far longer than the budget", || attempts().len() >= 3).await;
    assert!(attempts().windows(2).all(|two| two[1] - two[0] >= pause), "the pause is kept: {:?}", attempts());
    target.fate("7", Some(Fate::Throttled(None)));
    let before = attempts().len();
    until("attempts without a pause", || attempts().len() >= before + 30).await;
    assert_eq!((running.letters().len(), running.sink().state, target.frontier()), (0, SinkState::Retrying, Some(lsn(5))));
    target.fate("7", None);
    until("the changes", || target.frontier() == Some(lsn(6))).await;
    assert!((1..=10).all(|id| target.document(&id.to_string()).unwrap().contains("paid")));
    assert!(running.letters().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn what_a_sink_has_given_up_stays_given_up_over_a_restart_until_somebody_says_otherwise() {
    let (dir, provider, mut target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    // Whoever has to wait for the next look waits too long for the test.
    target.terms.retry.longest_pause = Duration::from_secs(600);
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    target.inner.given_up.store(true, Ordering::SeqCst);
    target.inner.down.store(true, Ordering::SeqCst);
    update(&provider, 1..=3, 6, "new", "paid").await;
    until("the end of its patience", || running.sink().state == SinkState::Stopped).await;
    running.stop().await;
    target.inner.down.store(false, Ordering::SeqCst);
    // As a new process, whose sink knows nothing by itself.
    target.inner.given_up.store(false, Ordering::SeqCst);
    let running = start(dir.path(), &provider, target.named());
    until("the memory of it", || running.sink().state == SinkState::Stopped).await;
    assert!(running.sink().error.unwrap().contains("given up") && target.frontier() == Some(lsn(5)));
    let letters = running.handle.dead_letters();
    assert_eq!(letters.retry(&Which::Sink("other".into())).unwrap(), Retried::default());
    assert_eq!(letters.retry(&Which::Sink("target".into())).unwrap(), Retried { sinks: 1, ..Retried::default() });
    until("the changes", || target.frontier() == Some(lsn(6))).await;
    assert_eq!(letters.retry(&Which::All).unwrap(), Retried::default(), "nothing is kept of a sink that does well");
    running.stop().await;
}

/// What the database's tables take on the disk.
fn table_bytes(folder: &Path) -> u64 {
    let of = |path: &Path| match path.extension() {
        _ if path.is_dir() => table_bytes(path),
        Some(extension) if extension == "sst" => std::fs::metadata(path).unwrap().len(),
        _ => 0,
    };
    std::fs::read_dir(folder).unwrap().map(|entry| of(&entry.unwrap().path())).sum()
}

#[tokio::test]
async fn a_sink_that_is_down_for_long_costs_bounded_disk_and_is_loaded_anew() {
    const ORDERS: i64 = 500;
    const BOUND: u64 = 60_000;
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let mut settings = config(dir.path());
    settings.backlog_bytes = BOUND;
    // Small buffers, so that entries come to the disk soon.
    settings.memory.write_buffer_bytes = 256 << 10;
    let running = start_with(settings, &provider, target.named());
    load(&provider, ORDERS).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    target.inner.down.store(true, Ordering::SeqCst);
    let before = target.taken();
    let (mut status, mut at) = ("new".to_owned(), 5);
    // Far more than is kept; and some more once that has been noticed.
    for rounds in [40, 5] {
        for _ in 0..rounds {
            at += 1;
            let next = format!("s{at}");
            update(&provider, 1..=ORDERS, at, &status, &next).await;
            until("the joiner", || running.handle.status().frontier == Some(lsn(at))).await;
            status = next;
        }
        until("the outbox to be cut", || running.sink().overtaken).await;
    }
    until("the outbox within its bound", || running.handle.status().outbox_bytes <= BOUND).await;
    let sink = running.sink();
    assert!(sink.overtaken && sink.behind > 0 && sink.state == SinkState::Retrying, "{sink:?}");
    let oldest = running.handle.status().outbox_oldest;
    assert!(sink.cursor.unwrap() + 1 < oldest, "{sink:?}, the oldest is {oldest}");
    target.inner.down.store(false, Ordering::SeqCst);
    until("the load anew", || target.frontier() == Some(lsn(at))).await;
    assert_eq!(target.inner.loads.load(Ordering::SeqCst), 2);
    assert_eq!(target.taken() - before, ORDERS as u64, "each order once, as it stands");
    assert!((1..=ORDERS).all(|id| target.document(&id.to_string()).unwrap().contains(&status)));
    until("the end of it", || !running.sink().overtaken && running.sink().state == SinkState::Following).await;
    running.stop().await;
    let bytes = table_bytes(dir.path());
    assert!(bytes < 8 * BOUND, "{bytes} bytes");
}

/// Counts how often it was asked.
struct Looks {
    left: AtomicU64,
}

impl Looks {
    fn new(count: u64) -> Self {
        Self { left: AtomicU64::new(count) }
    }

    fn passed(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

#[tokio::test]
async fn a_sink_that_sets_too_many_aside_stops_until_somebody_has_looked() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    (1..=5).for_each(|key: i32| target.fate(&key.to_string(), Some(Fate::Rejected)));
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 10).await;
    until("the stop", || running.sink().state == SinkState::Stopped).await;
    let error = running.sink().error.unwrap();
    assert!(error.contains("5 changes have been set aside") && error.contains("dead-letter list --sink target"), "{error}");
    update(&provider, 10..=10, 6, "new", "paid").await;
    until("the joiner", || running.handle.status().frontier == Some(lsn(6))).await;
    assert_eq!(target.frontier(), Some(lsn(5)), "it is not written to");
    running.handle.dead_letters().remove(&Which::Sink("target".into())).unwrap();
    until("the change", || target.frontier() == Some(lsn(6))).await;
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_was_down_is_told_the_latest_of_each_key() {
    const ORDERS: i64 = 1500;
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let running = start(dir.path(), &provider, target.named());
    load(&provider, ORDERS).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    target.inner.down.store(true, Ordering::SeqCst);
    let before = target.taken();
    let mut status = "new".to_owned();
    for at in 6..=13 {
        let next = format!("s{at}");
        update(&provider, 1..=ORDERS, at, &status, &next).await;
        until("the joiner", || running.handle.status().frontier == Some(lsn(at))).await;
        status = next;
    }
    let sink = running.sink();
    assert_eq!((sink.behind, sink.state), (8 * ORDERS as u64, SinkState::Retrying));
    target.inner.down.store(false, Ordering::SeqCst);
    until("the backlog", || target.frontier() == Some(lsn(13))).await;
    assert_eq!(target.taken() - before, ORDERS as u64, "of eight changes of each order one is written");
    assert!((1..=ORDERS).all(|id| target.document(&id.to_string()).unwrap().contains("s13")));
    assert_eq!(target.inner.loads.load(Ordering::SeqCst), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_is_written_in_another_form_is_loaded_anew() {
    let (dir, provider, mut target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    running.stop().await;
    for (form, loads) in [("", 1), ("with columns", 2), ("with columns", 2)] {
        target.terms.form = form.to_owned();
        let running = start(dir.path(), &provider, target.named());
        until("the sink", || running.sink().state == SinkState::Following && running.sink().behind == 0).await;
        assert_eq!(target.inner.loads.load(Ordering::SeqCst), loads, "{form}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_target_that_has_lost_what_it_confirmed_is_loaded_anew() {
    let (dir, provider, target) = (tempfile::tempdir().unwrap(), Memory::new(), Target::new());
    let running = start(dir.path(), &provider, target.named());
    load(&provider, 3).await;
    until("the load", || target.frontier() == Some(lsn(5))).await;
    update(&provider, 1..=2, 6, "new", "paid").await;
    until("the change", || target.frontier() == Some(lsn(6))).await;
    running.stop().await;
    for (frontier, loads) in [(Some(lsn(6)), 1), (Some(lsn(5)), 2), (None, 3)] {
        *target.inner.frontier.lock().unwrap() = frontier;
        target.inner.held.lock().unwrap().clear();
        let running = start(dir.path(), &provider, target.named());
        until("the sink", || running.sink().state == SinkState::Following && running.sink().behind == 0).await;
        assert_eq!(target.inner.loads.load(Ordering::SeqCst), loads);
        assert_eq!(target.document("1").is_some(), loads > 1, "what the target says is believed");
        running.stop().await;
    }
}
