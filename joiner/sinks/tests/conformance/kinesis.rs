//! A Kinesis stream in the streams' own stub, which can refuse, behind a gate that looks at credentials; `tests/kinesis.rs` has kinesis-local. Not tested against AWS.

use std::time::Duration;

use schemas::progress::StreamName;
use sinks::kinesis::{KinesisConfig, KinesisSink};
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Positions, Provider};

use super::subscriber::Subscriber;
use super::*;

/// The access key of whoever is to take stand-ins for AWS.
const KEY: &str = "stand-in";
/// Reading that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Stream {
    stub: Stub,
    /// Between the sink and the stub.
    gate: Gate,
    name: String,
    subscriber: Subscriber,
}

impl Stream {
    pub(super) async fn start() -> Self {
        let stub = Stub::start().await.unwrap();
        let gate = Gate::to(stub.endpoint()).await;
        gate.let_through(KEY);
        Self { stub, gate, name: String::new(), subscriber: Subscriber::default() }
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
        let options = KinesisOptions { endpoint: Some(self.gate.url()), ..self.options() };
        Box::new(KinesisSink::with_options(config, options))
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

    /// Whether it then finds the new ones is tested in `tests/credentials.rs`.
    async fn rotate(&mut self, step: Rotation) -> bool {
        self.gate.let_through(if step == Rotation::Refused { "another" } else { KEY });
        true
    }

    async fn remove(&mut self) -> bool {
        self.stub.remove_stream(&StreamName(self.name.clone()));
        true
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}
