//! A search cluster: our own stub of one, for neither Elasticsearch nor OpenSearch runs here.

use std::path::PathBuf;

use sinks::SecretReference;
use sinks::search::{SearchConfig, SearchSink};
use sinks::test_support::{SearchFaults, SearchStub};

use super::*;

pub(super) struct Cluster {
    stub: SearchStub,
    prefix: String,
    secrets: tempfile::TempDir,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        let cluster = Self { stub: SearchStub::start().await, prefix: String::new(), secrets: tempfile::tempdir().unwrap() };
        std::fs::write(cluster.key(), "first").unwrap();
        cluster
    }

    fn key(&self) -> PathBuf {
        self.secrets.path().join("key")
    }
}

#[async_trait::async_trait]
impl Target for Cluster {
    async fn fresh(&mut self, case: &str) {
        self.prefix = format!("{case}-");
    }

    async fn sink(&self) -> Box<dyn Sink> {
        // Small requests, so that a batch takes several.
        let config = SearchConfig {
            index_prefix: self.prefix.clone(),
            api_key: Some(SecretReference::File(self.key())),
            batch_bytes: 20_000,
            request_limit_ms: 6000,
            ..SearchConfig::new(self.stub.url())
        };
        Box::new(SearchSink::new(config))
    }

    async fn held(&self) -> Held {
        let mut held = Held::new();
        for entity in entities() {
            for mut document in self.stub.documents(&format!("{}{}", self.prefix, entity.name)).into_values() {
                let about = document.as_object_mut().unwrap().remove("tributary").unwrap();
                let key = format!("{}/{}", about["entity"].as_str().unwrap(), about["key"].as_str().unwrap());
                held.insert(key, (about["version"].as_str().unwrap().parse().unwrap(), document));
            }
        }
        held
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        let documents = self.stub.documents(&format!("{}tributary_frontier", self.prefix));
        Some(documents.get("frontier").and_then(|document| Some(document["lsn"].as_str()?.parse().unwrap())))
    }

    async fn down(&mut self) {
        self.stub.down().await;
    }

    async fn up(&mut self) {
        self.stub.up().await;
    }

    async fn hold(&mut self) -> bool {
        self.stub.set_faults(SearchFaults { unanswered: true, ..SearchFaults::default() });
        true
    }

    async fn throttle(&mut self, pause: Option<Duration>) -> bool {
        let throttled = Some(pause.map(|pause| pause.as_secs()));
        self.stub.set_faults(SearchFaults { throttled, ..SearchFaults::default() });
        true
    }

    async fn release(&mut self) {
        self.stub.set_faults(SearchFaults::default());
    }

    async fn rotate(&mut self, step: Rotation) -> bool {
        match step {
            Rotation::Refused => {
                let authorization = Some("ApiKey second".to_owned());
                self.stub.set_faults(SearchFaults { authorization, ..SearchFaults::default() });
            }
            Rotation::Renewed => std::fs::write(self.key(), "second").unwrap(),
        }
        true
    }

    async fn remove(&mut self) -> bool {
        self.stub.remove(&format!("{}order", self.prefix));
        true
    }
}
