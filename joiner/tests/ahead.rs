//! Streams of which one could be read far ahead of the others: it is not, and what the joiner keeps stays bounded.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use joiner::Joiner;
use schemas::Lsn;
use schemas::progress::{Phase, StreamName};
use streams::memory::Memory;
use streams::{Batch, Error, Layout, Positions, Provider, Record, StreamReader, StreamWriter};
use support::{change, config, encode, item, items, lsn, order, orders, read, record};
use tokio_util::sync::CancellationToken;

const TRANSACTIONS: u64 = 2000;
/// What the joiner may keep: a few hundred changes.
const BUFFER_BYTES: usize = 64 << 10;
/// Less than all, and more than fits in there, in the channels and on the way.
const AHEAD: usize = 1000;

/// How many records of each table have been read, and by how much orders were ahead at most.
#[derive(Default)]
struct Counts {
    orders: AtomicUsize,
    items: AtomicUsize,
    ahead: AtomicUsize,
}

/// Reads record by record, and of the items slowly.
struct Uneven {
    memory: Memory,
    counts: Arc<Counts>,
}

#[async_trait]
impl Provider for Uneven {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        self.memory.ensure(stream, shards).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        self.memory.writer().await
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        let inner = self.memory.reader(stream, after).await?;
        if *stream == Layout::progress_stream("p") {
            return Ok(inner);
        }
        let slow = *stream == Layout::Table.stream("p", &items().name);
        Ok(Box::new(OneByOne { inner, rest: None, slow, counts: self.counts.clone() }))
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        self.memory.tips(stream).await
    }
}

struct OneByOne {
    inner: Box<dyn StreamReader>,
    rest: Option<Batch>,
    slow: bool,
    counts: Arc<Counts>,
}

#[async_trait]
impl StreamReader for OneByOne {
    async fn next(&mut self) -> Result<Batch, Error> {
        let mut batch = match self.rest.take() {
            Some(rest) => rest,
            None => self.inner.next().await?,
        };
        if batch.records.len() > 1 {
            let records = batch.records.split_off(1);
            self.rest = Some(Batch { stream: batch.stream.clone(), shard: batch.shard.clone(), records });
        }
        let Counts { orders, items, ahead } = &*self.counts;
        if self.slow {
            items.fetch_add(1, Ordering::SeqCst);
            // A slow service, not a wait for something.
            tokio::time::sleep(Duration::from_millis(1)).await;
        } else {
            let read = orders.fetch_add(1, Ordering::SeqCst) + 1;
            ahead.fetch_max(read.saturating_sub(items.load(Ordering::SeqCst)), Ordering::SeqCst);
        }
        Ok(batch)
    }
}

fn at(number: u64) -> Lsn {
    let mut bytes = *lsn(5).as_bytes();
    let first = u64::from_be_bytes(*bytes[..8].first_chunk().unwrap());
    bytes[..8].copy_from_slice(&(first + number).to_be_bytes());
    Lsn::from_bytes(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stream_is_read_far_ahead_of_what_steps_wait_for() {
    let dir = tempfile::tempdir().unwrap();
    let counts = Arc::new(Counts::default());
    let store = Arc::new(Uneven { memory: Memory::new(), counts: counts.clone() });
    let (order_stream, item_stream) = (Layout::Table.stream("p", &orders().name), Layout::Table.stream("p", &items().name));
    let progress = Layout::progress_stream("p");
    for stream in [&order_stream, &item_stream, &progress] {
        store.ensure(stream, 1).await.unwrap();
    }
    let mut writer = store.writer().await.unwrap();
    let rows = [(&order_stream, read(orders(), 5, order(1, "0"))), (&item_stream, read(items(), 5, item(1, 1, 0)))];
    let mut told = record(Phase::SnapshotComplete { consistent_from: at(0) }, 5, 5, &[(&orders(), 1), (&items(), 1)]);
    for number in 0..=TRANSACTIONS {
        let events = if number == 0 {
            rows.clone()
        } else {
            let mut changed = [
                change(orders(), 5, 1, Some(order(1, &(number - 1).to_string())), Some(order(1, &number.to_string()))),
                change(items(), 5, 2, Some(item(1, 1, i128::from(number) - 1)), Some(item(1, 1, i128::from(number)))),
            ];
            changed.iter_mut().for_each(|event| event.position.commit_lsn = at(number));
            told = record(Phase::Tail, 5, 5, &[(&orders(), 1), (&items(), 1)]);
            (told.from_lsn, told.to_lsn) = (at(number - 1), at(number));
            let [order, item] = changed;
            [(&order_stream, order), (&item_stream, item)]
        };
        for (stream, event) in &events {
            let keep = Record { partition_key: "1".into(), data: encode(event).into() };
            writer.append(stream, vec![keep]).await.unwrap();
        }
        told.positions = writer.flush().await.unwrap();
        told.positions.remove(&progress);
        let data = serde_json::to_vec(&told).unwrap().into();
        writer.append(&progress, vec![Record { partition_key: "shop".into(), data }]).await.unwrap();
    }
    writer.flush().await.unwrap();

    let mut config = config(dir.path());
    (config.layout, config.buffer_bytes) = (Layout::Table, BUFFER_BYTES);
    let joiner = Joiner::open(config).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let running = tokio::spawn(joiner.run(store, Vec::new(), stop.clone()));
    let mut head = handle.outbox().head();
    let reached = head.wait_for(|head| head.frontier == at(TRANSACTIONS));
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("it does not come to the end").unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(counts.orders.load(Ordering::SeqCst), TRANSACTIONS as usize + 1);
    let ahead = counts.ahead.load(Ordering::SeqCst);
    assert!(ahead < AHEAD, "orders were read {ahead} records ahead of the items");
}
