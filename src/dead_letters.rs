//! The joiner's dead letters, as the API hands them out.

use api::{FeedError, WhichLetters};
use async_trait::async_trait;
use joiner::DeadLetters;
use joiner::dead_letters::Which;
use serde_json::{Value, json};

pub(crate) struct Letters(pub(crate) DeadLetters);

impl Letters {
    /// They are in a local database, which blocks.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&DeadLetters) -> Result<T, joiner::Error> + Send + 'static,
    ) -> Result<T, FeedError> {
        let letters = self.0.clone();
        match tokio::task::spawn_blocking(move || question(&letters)).await {
            Ok(answer) => answer.map_err(|error| FeedError { message: error.to_string() }),
            Err(error) => Err(FeedError { message: error.to_string() }),
        }
    }
}

fn which(which: WhichLetters) -> Which {
    match which {
        WhichLetters::Id(id) => Which::Id(id),
        WhichLetters::Sink(sink) => Which::Sink(sink),
        WhichLetters::All => Which::All,
    }
}

#[async_trait]
impl api::DeadLetters for Letters {
    async fn list(&self, meant: WhichLetters, limit: usize) -> Result<Vec<Value>, FeedError> {
        self.ask(move |letters| Ok(letters.list(&which(meant), limit)?.iter().map(|kept| json!(kept)).collect())).await
    }

    async fn retry(&self, meant: WhichLetters) -> Result<Value, FeedError> {
        let retried = self.ask(move |letters| letters.retry(&which(meant))).await?;
        Ok(json!({"changes": retried.changes, "events": retried.events, "documents": retried.documents, "sinks": retried.sinks}))
    }

    async fn remove(&self, meant: WhichLetters) -> Result<u64, FeedError> {
        self.ask(move |letters| letters.remove(&which(meant))).await
    }
}
