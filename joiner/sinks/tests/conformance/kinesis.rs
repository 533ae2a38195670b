//! A Kinesis stream in the streams' own stub, which can refuse; `tests/kinesis.rs` has kinesis-local. Not tested against AWS.

use std::time::Duration;

use schemas::progress::StreamName;
use sinks::kinesis::{KinesisConfig, KinesisSink};
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Positions, Provider};

use super::subscriber::Subscriber;
use super::*;

/// Reading that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Stream {
    stub: Stub,
    name: String,
    subscriber: Subscriber,
}

impl Stream {
    pub(super) async fn start() -> Self {
        Self { stub: Stub::start().await.unwrap(), name: String::new(), subscriber: Subscriber::default() }
    }

    fn options(&self) -> KinesisOptions {
        KinesisOptions { retry_seconds: 1, call_timeout_seconds: 3, ..self.stub.options() }
    }
}

#[async_trait::async_trait]
impl Target for Stream {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.name);
        self.subscriber.clear();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let config = KinesisConfig { shards: 3, notify_load: false, ..KinesisConfig::new(&self.name) };
        Box::new(KinesisSink::with_options(config, self.options()))
    }

    async fn held(&self) -> Held {
        let (provider, stream) = (Kinesis::connect(self.options()).await.unwrap(), StreamName(self.name.clone()));
        let mut left = provider.tips(&stream).await.unwrap();
        let mut reader = provider.reader(&stream, &Positions::new()).await.unwrap();
        while !left.is_empty() {
            let batch = tokio::time::timeout(LIMIT, reader.next()).await.expect("the stream's last records").unwrap();
            for (_, data) in &batch.records {
                self.subscriber.take(&serde_json::from_slice(data).unwrap());
            }
            let reached = batch.records.last().map(|(number, _)| number);
            if left.get(&batch.shard).is_some_and(|tip| reached >= Some(tip)) {
                left.remove(&batch.shard);
            }
        }
        self.subscriber.held()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    /// What it is sent comes in, and every answer is a failure.
    async fn down(&mut self) {
        self.stub.set_faults(Faults { every_put_lost: 1, ..Faults::default() });
    }

    async fn up(&mut self) {
        self.release().await;
    }

    async fn hold(&mut self) -> bool {
        self.stub.set_faults(Faults { latency: Duration::from_secs(3600), ..Faults::default() });
        true
    }

    async fn throttle(&mut self, pause: Option<Duration>) -> bool {
        if pause.is_none() {
            self.stub.set_faults(Faults { every_put: 1, ..Faults::default() });
        }
        pause.is_none()
    }

    async fn release(&mut self) {
        self.stub.set_faults(Faults::default());
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}
