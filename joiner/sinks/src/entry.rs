//! An element of `sinks:` in the configuration: what every kind of sink has, beside the kind's own options.
//!
//! ```yaml
//! sinks:
//!   - type: postgres
//!     url: {env: ENTITIES_URL}
//!     entities: {order: {where: "status == 'OPEN'"}}
//!     retry: {budget_seconds: 3600}
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::Deserialize;

use crate::route::{Router, Routes};
use crate::{Checked, Error, Held, Rejected, Retry, Sink, SinkConfig, Terms, Versions};

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// How a failed write is tried again.
    #[serde(default)]
    pub retry: RetryConfig,
    /// Which entities it gets, and in what form. Default: all, whole.
    #[serde(default)]
    pub entities: Option<Routes>,
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
        let Terms { form, retry } = sink.terms();
        // A sink that is routed otherwise holds something else: its form changes with its routes.
        let form = self.entities.as_ref().map_or(form.clone(), |routes| format!("{form} {routes:?}"));
        let terms = Terms { form, retry: self.retry.over(retry) };
        let purpose = format!("sink {}", self.name());
        Ok(Box::new(Configured { sink, terms, purpose, routes: self.entities.clone(), router: None, loading: false }))
    }
}

impl From<SinkConfig> for Entry {
    fn from(sink: SinkConfig) -> Self {
        Self { retry: RetryConfig::default(), entities: None, sink }
    }
}

/// A sink under the terms of the configuration.
struct Configured {
    sink: Box<dyn Sink>,
    terms: Terms,
    /// How errors name it.
    purpose: String,
    routes: Option<Routes>,
    /// The routes, once they have been compiled; none where everything is sent as it is.
    router: Option<Router>,
    /// Between `begin_load` and the next frontier.
    loading: bool,
}

impl Configured {
    /// The entities as the sink sees them.
    fn compile(&mut self, entities: &[EntityInfo]) -> Result<Vec<EntityInfo>, Error> {
        let Some(routes) = &self.routes else { return Ok(entities.to_vec()) };
        let (router, seen) = Router::compile(&self.purpose, routes, entities)?;
        self.router = Some(router);
        Ok(seen)
    }
}

#[async_trait]
impl Sink for Configured {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.loading = false;
        let seen = self.compile(entities)?;
        self.sink.prepare(&seen).await
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let Some(router) = &self.router else { return self.sink.write(changes, frontier).await };
        let (routed, mut rejected) = router.route(changes, self.loading);
        // A frontier is news also where none of its changes is; nothing else is.
        if !routed.is_empty() || frontier.is_some() {
            rejected.extend(self.sink.write(&routed, frontier).await?);
        }
        if frontier.is_some() {
            self.loading = false;
        }
        Ok(rejected)
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        self.sink.begin_load().await
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        match &self.router {
            Some(router) if !router.sends(entity) => Ok(()),
            _ => self.sink.end_load(entity, version).await,
        }
    }

    fn terms(&self) -> Terms {
        self.terms.clone()
    }

    fn key_limit_bytes(&self) -> usize {
        self.sink.key_limit_bytes()
    }

    async fn held(&mut self) -> Result<Held, Error> {
        self.sink.held().await
    }

    async fn lacking(&mut self) -> Result<Vec<String>, Error> {
        self.sink.lacking().await
    }

    fn describe(&mut self, made_of: &BTreeMap<Arc<str>, String>) -> bool {
        self.sink.describe(made_of)
    }

    fn note(&self) -> Option<String> {
        self.sink.note()
    }

    fn recall(&mut self, note: Option<&str>) {
        self.sink.recall(note);
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.sink.own(range)
    }

    fn know(&mut self, versions: Arc<dyn Versions>) {
        self.sink.know(versions);
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        match &self.router {
            Some(router) if !router.sends(entity) => Ok(Vec::new()),
            _ => self.sink.older(entity, version, after, limit).await,
        }
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let seen = self.compile(entities)?;
        self.sink.check(&seen).await
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_has_what_all_have() {
        let entry = |yaml: &str| serde_yaml_ng::from_str::<Entry>(yaml);
        let retry = entry("{type: sqlite, path: a.db, retry: {longest_pause_ms: 5, dead_letters: 1}}")
            .unwrap()
            .open()
            .unwrap()
            .terms()
            .retry;
        assert_eq!((retry.longest_pause.as_millis(), retry.first_pause.as_millis()), (100, 100));
        assert_eq!((retry.dead_letters, retry.budget), (1, Retry::default().budget));
        let error = entry("{type: sqlite, path: a.db, pth: b}").unwrap_err().to_string();
        assert!(error.contains("pth") && error.contains("busy_timeout_ms"), "{error}");
        let error = entry("{type: sqlite, path: a.db, retry: {budget: 5}}").unwrap_err().to_string();
        assert!(error.contains("budget_seconds"), "{error}");
        assert!(entry("{type: oracle}").unwrap_err().to_string().contains("postgres"));
    }

    /// What a sink was called with.
    #[derive(Clone, Default)]
    struct Recorder(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    #[async_trait]
    impl Sink for Recorder {
        async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
            let names: Vec<&str> = entities.iter().map(|entity| &*entity.name).collect();
            self.0.lock().unwrap().push(format!("prepare {}", names.join(" ")));
            Ok(())
        }

        async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
            let shown = |change: &EntityChange| format!("{}={}", change.key, change.document.as_deref().unwrap_or("gone"));
            let shown: Vec<String> = changes.iter().map(shown).collect();
            self.0.lock().unwrap().push(format!("write {} {}", shown.join(" "), frontier.is_some()));
            Ok(Vec::new())
        }

        async fn end_load(&mut self, entity: &str, _: Lsn) -> Result<(), Error> {
            self.0.lock().unwrap().push(format!("end {entity}"));
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_routed_sink_sees_what_is_routed_to_it() {
        let entry: Entry = serde_yaml_ng::from_str("{type: sqlite, path: a.db, entities: {order: {where: n > 1}}}").unwrap();
        let other: Entry = serde_yaml_ng::from_str("{type: sqlite, path: a.db, entities: {order: {where: n > 2}}}").unwrap();
        assert_ne!(entry.open().unwrap().terms().form, other.open().unwrap().terms().form, "it is loaded anew");
        let recorder = Recorder::default();
        let (sink, routes) = (Box::new(recorder.clone()), entry.entities);
        let mut sink = Configured { sink, terms: Terms::default(), purpose: String::new(), routes, router: None, loading: false };
        let schema = serde_json::json!({"type": "object", "properties": {"n": {"type": "integer"}}});
        let info = |name: &str| EntityInfo { name: name.into(), key: Vec::new(), document_schema: schema.clone() };
        let change = |entity: &str, n: u32| EntityChange {
            entity: entity.into(),
            key: schemas::change::EntityKey::from_text(n.to_string()),
            version: Lsn::MAX,
            commit_time_ms: 0,
            document: Some(format!("{{\"n\":{n}}}").into()),
        };
        sink.prepare(&[info("order"), info("note")]).await.unwrap();
        let all = [change("order", 1), change("order", 2), change("note", 3)];
        sink.begin_load().await.unwrap();
        sink.write(&all, None).await.unwrap();
        sink.end_load("order", Lsn::MAX).await.unwrap();
        sink.end_load("note", Lsn::MAX).await.unwrap();
        sink.write(&[], Some(Lsn::MAX)).await.unwrap();
        sink.write(&all[2..], None).await.unwrap();
        sink.write(&all, Some(Lsn::MAX)).await.unwrap();
        let expected = ["prepare order", "write 2={\"n\":2} false", "end order", "write  true", "write 1=gone 2={\"n\":2} true"];
        assert_eq!(*recorder.0.lock().unwrap(), expected);
    }
}
