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

/// After so long without a record the stream counts as read.
const QUIET: Duration = Duration::from_millis(100);

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
        KinesisOptions { retry_seconds: 1, ..self.stub.options() }
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
        let provider = Kinesis::connect(self.options()).await.unwrap();
        let mut reader = provider.reader(&StreamName(self.name.clone()), &Positions::new()).await.unwrap();
        while let Ok(batch) = tokio::time::timeout(QUIET, reader.next()).await {
            for (_, data) in batch.unwrap().records {
                self.subscriber.take(&serde_json::from_slice(&data).unwrap());
            }
        }
        self.subscriber.held()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    async fn down(&mut self) {
        self.stub.set_faults(Faults { every_put: 1, ..Faults::default() });
    }

    async fn up(&mut self) {
        self.stub.set_faults(Faults::default());
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}
