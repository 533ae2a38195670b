//! An element of `sinks:` in the configuration: what every kind of sink has, beside the kind's own options.
//!
//! ```yaml
//! sinks:
//!   - type: postgres
//!     url: {env: ENTITIES_URL}
//!     retry: {budget_seconds: 3600}
//! ```

use std::time::Duration;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;

use crate::{Checked, Error, Rejected, Retry, Sink, SinkConfig, Terms};

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// How a failed write is tried again.
    #[serde(default)]
    pub retry: RetryConfig,
    #[serde(flatten)]
    pub sink: SinkConfig,
}

/// What differs from the sink's own way of trying again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// The pause before the second attempt; each is twice the last, less a random part. Default: 100.
    #[serde(default)]
    pub first_pause_ms: Option<u64>,
    /// Default: 30000.
    #[serde(default)]
    pub longest_pause_ms: Option<u64>,
    /// How long a batch may fail at a target that can be reached, before the changes that fail by themselves become dead letters. Default: 600.
    #[serde(default)]
    pub budget_seconds: Option<u64>,
    /// Dead letters that are kept; past that the sink stops. Default: 10000.
    #[serde(default)]
    pub dead_letters: Option<u64>,
}

impl RetryConfig {
    fn over(self, retry: Retry) -> Retry {
        let first_pause = self.first_pause_ms.map_or(retry.first_pause, Duration::from_millis);
        Retry {
            first_pause,
            longest_pause: self.longest_pause_ms.map_or(retry.longest_pause, Duration::from_millis).max(first_pause),
            budget: self.budget_seconds.map_or(retry.budget, Duration::from_secs),
            dead_letters: self.dead_letters.unwrap_or(retry.dead_letters),
        }
    }
}

impl Entry {
    /// How status, logs and metrics call it.
    pub fn name(&self) -> &str {
        self.sink.name()
    }

    /// The sink as it is configured. Nothing is contacted before [`Sink::prepare`].
    pub fn open(&self) -> Result<Box<dyn Sink>, Error> {
        let sink = crate::open(&self.sink)?;
        let terms = sink.terms();
        Ok(Box::new(Configured { terms: Terms { retry: self.retry.over(terms.retry), ..terms }, sink }))
    }
}

impl From<SinkConfig> for Entry {
    fn from(sink: SinkConfig) -> Self {
        Self { retry: RetryConfig::default(), sink }
    }
}

/// A sink under the terms of the configuration.
struct Configured {
    sink: Box<dyn Sink>,
    terms: Terms,
}

#[async_trait]
impl Sink for Configured {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.sink.prepare(entities).await
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        self.sink.write(changes, frontier).await
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.sink.begin_load().await
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        self.sink.end_load(entity, version).await
    }

    fn terms(&self) -> Terms {
        self.terms.clone()
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        self.sink.check(entities).await
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_has_what_all_have() {
        let entry = |yaml: &str| serde_yaml_ng::from_str::<Entry>(yaml);
        let retry = entry("{type: sqlite, path: a.db, retry: {longest_pause_ms: 5, dead_letters: 1}}").unwrap().open().unwrap().terms().retry;
        assert_eq!((retry.longest_pause.as_millis(), retry.first_pause.as_millis()), (100, 100));
        assert_eq!((retry.dead_letters, retry.budget), (1, Retry::default().budget));
        let error = entry("{type: sqlite, path: a.db, pth: b}").unwrap_err().to_string();
        assert!(error.contains("pth") && error.contains("busy_timeout_ms"), "{error}");
        let error = entry("{type: sqlite, path: a.db, retry: {budget: 5}}").unwrap_err().to_string();
        assert!(error.contains("budget_seconds"), "{error}");
        assert!(entry("{type: oracle}").unwrap_err().to_string().contains("postgres"));
    }
}
