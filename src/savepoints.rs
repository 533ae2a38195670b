//! The joiner's checkpoints, as the API asks for them.

use api::SavepointRefusal;
use async_trait::async_trait;
use checkpoints::{Asking, Error, Made};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::feed::STANDS_BY;

pub(crate) struct Savepoints {
    pub(crate) asking: Asking,
    /// Whether this joiner works; another one makes them otherwise.
    pub(crate) working: watch::Receiver<bool>,
}

#[async_trait]
impl api::Savepoints for Savepoints {
    async fn create(&self, name: String) -> Result<Value, SavepointRefusal> {
        if !*self.working.borrow() {
            return Err(SavepointRefusal::Failed(STANDS_BY.to_owned()));
        }
        self.asking.savepoint(&name).await.map(|made| told(&name, &made)).map_err(|error| match error {
            Error::BadName { .. } => SavepointRefusal::BadName(error.to_string()),
            Error::Exists { .. } => SavepointRefusal::Exists(error.to_string()),
            error => SavepointRefusal::Failed(error.to_string()),
        })
    }
}

/// What is told of a savepoint that was made.
pub(crate) fn told(name: &str, made: &Made) -> Value {
    json!({
        "name": name,
        "number": made.number,
        "frontier": made.state.frontier,
        "bytes": made.bytes,
        "uploaded_bytes": made.uploaded_bytes,
    })
}
