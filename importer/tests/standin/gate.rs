//! Streams that do not take some records until they are told to.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use schemas::progress::{ShardPositions, StreamName};
use streams::memory::Memory;
use streams::{Error, Positions, Provider, Record, StreamReader, StreamWriter};
use tokio::sync::watch;

#[derive(Clone)]
pub(crate) struct Gate {
    inner: Memory,
    /// Part of the records that wait.
    stops: &'static str,
    held: Arc<Mutex<Vec<Record>>>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Holds up whoever appends records with this in their text.
    pub(crate) fn new(inner: &Memory, stops: &'static str) -> Self {
        Self { inner: inner.clone(), stops, held: Arc::default(), open: watch::Sender::new(false) }
    }

    /// Whether anything waits.
    pub(crate) fn holds(&self) -> bool {
        !self.held.lock().unwrap().is_empty()
    }

    /// What waits, as if nobody had it any more.
    pub(crate) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.held.lock().unwrap())
    }

    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}

#[async_trait]
impl Provider for Gate {
    async fn ensure(&self, stream: &StreamName, shards: u32) -> Result<(), Error> {
        self.inner.ensure(stream, shards).await
    }

    async fn writer(&self) -> Result<Box<dyn StreamWriter>, Error> {
        Ok(Box::new(Writer(self.inner.writer().await?, self.clone())))
    }

    async fn reader(&self, stream: &StreamName, after: &Positions) -> Result<Box<dyn StreamReader>, Error> {
        self.inner.reader(stream, after).await
    }

    async fn tips(&self, stream: &StreamName) -> Result<Positions, Error> {
        self.inner.tips(stream).await
    }
}

struct Writer(Box<dyn StreamWriter>, Gate);

#[async_trait]
impl StreamWriter for Writer {
    async fn append(&mut self, stream: &StreamName, records: Vec<Record>) -> Result<(), Error> {
        if records.iter().any(|record| String::from_utf8_lossy(&record.data).contains(self.1.stops)) {
            let mut open = self.1.open.subscribe();
            if !*open.borrow() {
                self.1.held.lock().unwrap().extend(records.iter().cloned());
            }
            open.wait_for(|open| *open).await.unwrap();
        }
        self.0.append(stream, records).await
    }

    async fn flush(&mut self) -> Result<ShardPositions, Error> {
        self.0.flush().await
    }
}
