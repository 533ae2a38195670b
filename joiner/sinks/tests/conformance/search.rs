//! A search cluster: our own stub of one, for neither Elasticsearch nor OpenSearch runs here.

use sinks::search::{SearchConfig, SearchSink};
use sinks::test_support::SearchStub;

use super::*;

pub(super) struct Cluster {
    stub: SearchStub,
    prefix: String,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self { stub: SearchStub::start().await, prefix: String::new() }
    }
}

#[async_trait::async_trait]
impl Target for Cluster {
    async fn fresh(&mut self, case: &str) {
        self.prefix = format!("{case}-");
    }

    async fn sink(&self) -> Box<dyn Sink> {
        // Small requests, so that a batch takes several.
        let config =
            SearchConfig { index_prefix: self.prefix.clone(), batch_bytes: 20_000, ..SearchConfig::new(self.stub.url()) };
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
        Some(documents.get("frontier").map(|document| document["lsn"].as_str().unwrap().parse().unwrap()))
    }

    async fn down(&mut self) {
        self.stub.down().await;
    }

    async fn up(&mut self) {
        self.stub.up().await;
    }
}
