//! A store that does not say where its shards end: the joiner goes on with what comes.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use joiner::Joiner;
use schemas::progress::{Phase, StreamName};
use streams::memory::Memory;
use streams::{Error, Layout, Positions, Provider, Record, StreamReader, StreamWriter};
use support::{change, config, encode, item, items, lsn, order, orders, publish, read, record};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Less than the joiner waits for an answer, and more than everything else takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store that is asked where its shards end, and from some time on never answers.
struct Silent {
    memory: Memory,
    asked: Notify,
    silent: AtomicBool,
}

#[async_trait]
impl Provider for Silent {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        self.memory.ensure(stream, shards).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        self.memory.writer().await
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        self.memory.reader(stream, after).await
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        if !self.silent.load(Ordering::Relaxed) {
            return self.memory.tips(stream).await;
        }
        self.asked.notify_one();
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Silent { memory: Memory::new(), asked: Notify::new(), silent: AtomicBool::new(false) });
    let row = encode(&read(orders(), 5, order(1, "new")));
    publish(&*store, &[row], record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&orders(), 1)])).await;
    let joiner = Joiner::open(config(dir.path())).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let running = tokio::spawn(joiner.run(store.clone(), Vec::new(), stop.clone()));
    let mut head = handle.outbox().head();
    tokio::time::timeout(PATIENCE, head.wait_for(|head| head.frontier == lsn(5))).await.expect("not even loaded").unwrap();
    store.silent.store(true, Ordering::Relaxed);

    // The record is there before what it names.
    let stream = Layout::Shared.stream("p", &orders().name);
    let mut late = store.memory.writer().await.unwrap();
    let mut early = record(Phase::Tail, 5, 6, &[(&items(), 1)]);
    let event = encode(&change(items(), 6, 1, None, Some(item(1, 1, 500))));
    let mut positions = store.memory.tips(&stream).await.unwrap();
    let (shard, last) = positions.pop_first().unwrap();
    let named = schemas::progress::SequenceNumber::from(last.to_u64().unwrap() + 1);
    early.positions = [(stream.clone(), [(shard.clone(), named)].into())].into();
    let data = serde_json::to_vec(&early).unwrap().into();
    late.append(&Layout::progress_stream("p"), vec![Record { partition_key: "shop".into(), data }]).await.unwrap();
    late.flush().await.unwrap();
    tokio::time::timeout(PATIENCE, store.asked.notified()).await.expect("nobody asks where the shard ends");

    // Now it comes, and is taken in although the question is still open. Partition keys go to shards by their hash: one of them goes to this one.
    for n in 0..64 {
        let before = store.memory.tips(&stream).await.unwrap();
        let keep = Record { partition_key: n.to_string(), data: event.clone().into() };
        late.append(&stream, vec![keep]).await.unwrap();
        late.flush().await.unwrap();
        if store.memory.tips(&stream).await.unwrap().get(&shard) != before.get(&shard) {
            break;
        }
    }
    tokio::time::timeout(PATIENCE, head.wait_for(|head| head.frontier == lsn(6))).await.expect("consuming stands still").unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
}
