//! The running joiner: from a stream store to sinks that hold, fail, refuse and come back.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use joiner::{Handle, Joiner, JoinerPhase, NamedSink, NullSink, SinkState};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::progress::Phase;
use sinks::{Rejected, Sink};
use streams::memory::Memory;
use support::{change, config, encode, item, items, lsn, order, orders, publish, read, record};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What a sink holds.
#[derive(Default)]
struct Held {
    documents: BTreeMap<String, (Lsn, String)>,
    frontier: Option<Lsn>,
    loads: usize,
}

/// A sink in memory that can be told to fail.
#[derive(Clone, Default)]
struct Recorder {
    held: Arc<Mutex<Held>>,
    down: Arc<AtomicBool>,
    misconfigured: Arc<AtomicBool>,
    /// A key that is never accepted.
    refuses: Option<String>,
}

#[async_trait]
impl Sink for Recorder {
    async fn prepare(&mut self, _: &[EntityInfo]) -> Result<(), sinks::Error> {
        if self.misconfigured.load(Ordering::SeqCst) {
            let (target, message, remedy) = ("recorder".into(), "no such database".into(), "Create it".into());
            return Err(sinks::Error::Misconfigured { target, message, remedy });
        }
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, sinks::Error> {
        if self.down.load(Ordering::SeqCst) {
            return Err(sinks::Error::Unavailable { target: "recorder".into(), message: "connection refused".into() });
        }
        let mut held = self.held.lock().unwrap();
        let mut rejected = Vec::new();
        for change in changes {
            let key = change.key.to_string();
            if self.refuses.as_ref() == Some(&key) {
                rejected.push(Rejected { change: change.clone(), reason: "too large".into() });
                continue;
            }
            match &change.document {
                Some(document) => drop(held.documents.insert(key, (change.version, document.to_string()))),
                None => drop(held.documents.remove(&key)),
            }
        }
        held.frontier = frontier.or(held.frontier);
        Ok(rejected)
    }

    async fn end_load(&mut self, _: &str, version: Lsn) -> Result<(), sinks::Error> {
        let mut held = self.held.lock().unwrap();
        held.loads += 1;
        held.documents.retain(|_, (held, _)| *held >= version);
        Ok(())
    }
}

impl Recorder {
    fn named(&self, name: &str) -> NamedSink {
        NamedSink { name: name.into(), sink: Box::new(self.clone()) }
    }

    fn document(&self, key: &str) -> Option<String> {
        self.held.lock().unwrap().documents.get(key).map(|(_, document)| document.clone())
    }

    fn frontier(&self) -> Option<Lsn> {
        self.held.lock().unwrap().frontier
    }
}

/// Waits until something holds; a test that waits in vain fails after a minute.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

struct Running {
    handle: Handle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), joiner::Error>>,
}

fn start(dir: &TempDir, provider: &Memory, sinks: Vec<NamedSink>) -> Running {
    let joiner = Joiner::open(config(dir.path())).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let task = tokio::spawn(joiner.run(Arc::new(provider.clone()), sinks, stop.clone()));
    Running { handle, stop, task }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        drop(self.handle);
        self.task.await.unwrap().unwrap();
    }
}

/// Two orders, one with an item, as of LSN 5.
async fn load(provider: &Memory) {
    let rows = [read(orders(), 5, order(1, "new")), read(orders(), 5, order(2, "new")), read(items(), 5, item(1, 1, 250))];
    let rows: Vec<Vec<u8>> = rows.iter().map(encode).collect();
    publish(provider, &rows, record(Phase::Snapshot, 5, 5, &[(&orders(), 2), (&items(), 1)])).await;
    publish(provider, &[], record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[])).await;
}

#[tokio::test]
async fn rows_become_documents_in_every_sink_and_go_on_after_a_restart() {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Memory::new());
    let sink = Recorder::default();
    let running = start(&dir, &provider, vec![sink.named("main"), NamedSink { name: "null".into(), sink: Box::new(NullSink) }]);
    load(&provider).await;
    until("the load", || sink.frontier() == Some(lsn(5))).await;
    assert_eq!(sink.document("1").unwrap(), r#"{"id":1,"status":"new","items":[{"line":1,"price":"2.50"}],"total":"2.50"}"#);
    let moved = [change(items(), 6, 1, Some(item(1, 1, 250)), None), change(items(), 6, 2, None, Some(item(2, 1, 250)))];
    publish(&provider, &moved.each_ref().map(encode), record(Phase::Tail, 5, 6, &[(&items(), 2)])).await;
    until("the change", || sink.frontier() == Some(lsn(6))).await;
    assert_eq!(sink.document("1").unwrap(), r#"{"id":1,"status":"new","items":[],"total":"0.00"}"#);
    assert_eq!(sink.document("2").unwrap(), r#"{"id":2,"status":"new","items":[{"line":1,"price":"2.50"}],"total":"2.50"}"#);
    let (version, document) = running.handle.get("order", &EntityKey::from_text("002")).unwrap().unwrap();
    assert_eq!((version, Some(document)), (lsn(6), sink.document("2")));
    let status = running.handle.status();
    assert_eq!((status.phase, status.frontier, status.outbox_head), (JoinerPhase::Live, Some(lsn(6)), 2));
    assert_eq!(status.tables["dbo.items"].applied, 3);
    running.stop().await;

    let gone = [change(orders(), 7, 1, Some(order(1, "new")), None)];
    publish(&provider, &gone.each_ref().map(encode), record(Phase::Tail, 6, 7, &[(&orders(), 1)])).await;
    let running = start(&dir, &provider, vec![sink.named("main")]);
    until("the tombstone", || sink.frontier() == Some(lsn(7))).await;
    assert_eq!(sink.document("1"), None);
    assert_eq!(sink.held.lock().unwrap().loads, 1, "loaded once, then followed");
    running.stop().await;
}

#[tokio::test]
async fn a_sink_that_is_down_holds_up_nobody_and_catches_up() {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Memory::new());
    let (well, ill, wrong) =
        (Recorder::default(), Recorder::default(), Recorder { refuses: Some("2".into()), ..Recorder::default() });
    wrong.misconfigured.store(true, Ordering::SeqCst);
    let picky = Recorder { refuses: Some("2".into()), ..Recorder::default() };
    let sinks = vec![well.named("well"), ill.named("ill"), wrong.named("wrong"), picky.named("picky")];
    let running = start(&dir, &provider, sinks);
    load(&provider).await;
    until("both loads", || well.frontier().is_some() && ill.frontier().is_some() && picky.frontier().is_some()).await;
    ill.down.store(true, Ordering::SeqCst);
    for at in 6..=9 {
        let status = |at: u8| order(1, if at.is_multiple_of(2) { "paid" } else { "new" });
        let update = change(orders(), at, 1, Some(status(at - 1)), Some(status(at)));
        publish(&provider, &[encode(&update)], record(Phase::Tail, at - 1, at, &[(&orders(), 1)])).await;
        until("the well sink", || well.frontier() == Some(lsn(at))).await;
    }
    let of = |name: &str| running.handle.status().sinks.into_iter().find(|sink| sink.name == name).unwrap();
    until("the failure", || of("ill").state == SinkState::Retrying).await;
    assert!(of("ill").error.unwrap().contains("connection refused"));
    assert_eq!((of("ill").behind, of("well").behind), (4, 0));
    assert_eq!(of("wrong").state, SinkState::Stopped);
    assert!(of("wrong").error.unwrap().contains("Create it"));
    assert_eq!((of("picky").rejected, picky.document("2")), (1, None));
    ill.down.store(false, Ordering::SeqCst);
    until("the ill sink", || ill.frontier() == Some(lsn(9))).await;
    assert_eq!(ill.document("1"), well.document("1"));
    running.stop().await;
}

#[tokio::test]
async fn a_rebuild_that_fails_leaves_no_sink_running_in_circles() {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Memory::new());
    let sink = Recorder::default();
    let Running { handle, stop, task } = start(&dir, &provider, vec![sink.named("main")]);
    load(&provider).await;
    until("the load", || sink.frontier() == Some(lsn(5))).await;
    // A newer snapshot, of which a row is missing: the state has been emptied when that is noticed.
    let complete = Phase::SnapshotComplete { consistent_from: lsn(7) };
    publish(&provider, &[encode(&read(orders(), 7, order(1, "new")))], record(complete, 7, 7, &[(&orders(), 2)])).await;
    until("the failure", || handle.status().phase == JoinerPhase::Failed).await;
    assert!(!handle.outbox().head().borrow().live, "what is published is what the database holds");
    stop.cancel();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), task).await.expect("the delivery does not stop");
    assert!(ended.unwrap().unwrap_err().to_string().contains("changes are missing"));
    assert_eq!(sink.document("2").unwrap(), r#"{"id":2,"status":"new","items":[],"total":"0.00"}"#, "the sink keeps what it has");
}

#[tokio::test]
async fn a_trimmed_stream_is_a_visible_failure() {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Memory::new());
    load(&provider).await;
    let sink = Recorder::default();
    let running = start(&dir, &provider, vec![sink.named("main")]);
    until("the load", || sink.frontier() == Some(lsn(5))).await;
    running.stop().await;
    let update = change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")));
    publish(&provider, &[encode(&update)], record(Phase::Tail, 5, 6, &[(&orders(), 1)])).await;
    provider.trim(&streams::Layout::Shared.stream("p", &orders().name)).unwrap();
    let Running { handle, stop, task } = start(&dir, &provider, vec![sink.named("main")]);
    until("the failure", || handle.status().phase == JoinerPhase::Failed).await;
    assert!(handle.status().failure.unwrap().contains("trimmed"));
    stop.cancel();
    assert!(task.await.unwrap().unwrap_err().to_string().contains("trimmed"));
}
