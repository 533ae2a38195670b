//! The parts wired together in one process: which of them run is the command's choice, how they are set up the configuration's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use importer::{Importer, StatusHandle};
use joiner::Joiner;
use metrics_exporter_prometheus::PrometheusBuilder;
use schemas::contract::Contract;
use schemas::plan::Plan;
use serde_json::{Value as Json, json};
#[cfg(feature = "demo")]
use sinks::EntityReader;
use streams::Provider;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, table_of};
use crate::feed::Feed;

/// Which parts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) importer: bool,
    pub(crate) joiner: bool,
    pub(crate) api: bool,
}

/// More for the status, beside what the parts say (the demo's hints).
pub(crate) type StatusExtra = Arc<dyn Fn() -> Json + Send + Sync>;

/// What each part says of itself when it is asked.
#[derive(Clone)]
struct Status {
    name: String,
    importer: Option<StatusHandle>,
    joiner: Option<joiner::Handle>,
    extra: Option<StatusExtra>,
}

/// A running pipeline.
pub(crate) struct Pipeline {
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    ended: Mutex<mpsc::Receiver<(&'static str, anyhow::Result<()>)>>,
    api_address: Option<SocketAddr>,
    #[cfg(feature = "demo")]
    reader: Option<Arc<dyn EntityReader>>,
    status: Status,
}

impl Pipeline {
    pub(crate) async fn start(config: Config, parts: Parts) -> anyhow::Result<Self> {
        Self::start_with(config, parts, None).await
    }

    /// Checks everything that can be checked without the source, then starts the parts.
    pub(crate) async fn start_with(config: Config, parts: Parts, extra: Option<StatusExtra>) -> anyhow::Result<Self> {
        let contracts = config.load_contracts()?;
        let plans = plans(&config, &contracts)?;
        let reader = match config.readable_sink() {
            Some(sink) => sinks::open_reader(sink)?,
            None => None,
        };
        if parts.api && reader.is_none() {
            anyhow::bail!("the API has no sink to read from: add one of type sqlite or postgres under `sinks`");
        }
        // The address first: a port that is taken should stop the process before it has touched anything.
        let server = if parts.api { Some(api::Server::bind(config.api.clone()).await?) } else { None };
        let api_address = server.as_ref().map(api::Server::local_addr);
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        // Only the first pipeline of a process installs its recorder; tests may start several.
        let _ = metrics::set_global_recorder(recorder);
        streams::metrics::describe();
        joiner::metrics::describe();
        api::describe_metrics();

        let (report, ended) = mpsc::channel(8);
        let mut pipeline = Self {
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
            ended: Mutex::new(ended),
            api_address,
            #[cfg(feature = "demo")]
            reader: reader.clone(),
            status: Status { name: config.source.name.clone(), importer: None, joiner: None, extra },
        };
        let provider = streams::config::open(&config.streams.provider).await?;
        let infos = plans.iter().map(Plan::info).collect();
        let plans: Vec<Arc<Plan>> = plans.into_iter().map(Arc::new).collect();
        let mut feed = None;
        if parts.joiner {
            feed = Some(pipeline.start_joiner(&config, plans.clone(), provider.clone(), &report).await?);
        }
        if parts.importer {
            pipeline.start_importer(&config, contracts, provider, &report)?;
        }
        if let (Some(server), Some(reader)) = (server, reader) {
            let status = pipeline.status.clone();
            let served = api::Parts {
                entities: infos,
                normalize_key: Arc::new(move |entity, key| {
                    plans.iter().find(|plan| &*plan.entity == entity).and_then(|plan| plan.normalize_key(key))
                }),
                reader,
                feed,
                status: Arc::new(move || status.json()),
                metrics: Arc::new(move || metrics.render()),
            };
            let shutdown = pipeline.shutdown.clone();
            pipeline.spawn("api", &report, async move { Ok(server.run(served, shutdown).await?) });
        }
        Ok(pipeline)
    }

    fn start_importer(
        &mut self,
        config: &Config,
        contracts: Vec<Contract>,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<()> {
        let mut settings = importer::Config::new(&config.source.name, config.source.resolve()?, config.data.join("importer"));
        settings.prefix = config.prefix().to_owned();
        settings.layout = config.layout();
        settings.shards = config.streams.shards;
        settings.poll_interval = config.source.poll_interval;
        settings.tables = config.source.filter();
        settings.time_zone.clone_from(&config.source.time_zone);
        settings.contracts =
            contracts.into_iter().map(|contract| (contract.table.name.clone(), contract)).collect::<BTreeMap<_, _>>();
        let importer = Importer::new(settings, provider);
        self.status.importer = Some(importer.status());
        let shutdown = self.shutdown.clone();
        self.spawn("importer", report, async move { Ok(importer.run(shutdown).await?) });
        Ok(())
    }

    async fn start_joiner(
        &mut self,
        config: &Config,
        plans: Vec<Arc<Plan>>,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<Arc<dyn api::ChangeFeed>> {
        let mut settings = joiner::Config::new(config.data.join("state"), plans, &config.source.name, config.prefix());
        settings.layout = config.layout();
        let joiner =
            tokio::task::spawn_blocking(move || Joiner::open(settings)).await.context("opening the joiner's state")??;
        let handle = joiner.handle();
        let sinks = config
            .sinks
            .iter()
            .map(|sink| Ok(joiner::NamedSink { name: sink.name().to_owned(), sink: sinks::open(sink)? }))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let feed = Arc::new(Feed::new(handle.outbox()));
        self.status.joiner = Some(handle);
        let shutdown = self.shutdown.clone();
        tokio::spawn(feed.clone().follow(shutdown.clone()));
        self.spawn("joiner", report, async move { Ok(joiner.run(provider, sinks, shutdown).await?) });
        Ok(feed)
    }

    fn spawn(&mut self, name: &'static str, report: &Report, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let report = report.clone();
        self.tasks.push(tokio::spawn(async move {
            // A task of its own, so that a panic in it is an end like any other and is reported.
            let result = match tokio::spawn(work).await {
                Ok(result) => result.with_context(|| format!("the {name} stopped")),
                Err(error) => Err(anyhow::anyhow!("the {name} ended abnormally: {error}")),
            };
            // Nobody listens any more when the pipeline is being stopped.
            let _ = report.send((name, result)).await;
        }));
    }

    /// Where the API listens.
    pub(crate) fn api_address(&self) -> Option<SocketAddr> {
        self.api_address
    }

    #[cfg(feature = "demo")]
    pub(crate) fn reader(&self) -> Option<Arc<dyn EntityReader>> {
        self.reader.clone()
    }

    #[cfg(feature = "demo")]
    pub(crate) fn status(&self) -> Json {
        self.status.json()
    }

    /// Returns when a part has ended by itself: its error, or that it ended without being asked to.
    pub(crate) async fn failed(&self) -> anyhow::Result<()> {
        match self.ended.lock().await.recv().await {
            Some((_, Err(error))) => Err(error),
            Some((name, Ok(()))) => anyhow::bail!("the {name} ended although nobody told it to"),
            None => std::future::pending().await,
        }
    }

    /// Stops every part, and waits until each has come to an orderly end.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.context("a part ended abnormally")?;
        }
        let mut ended = self.ended.into_inner();
        while let Ok((_, result)) = ended.try_recv() {
            result?;
        }
        Ok(())
    }
}

type Report = mpsc::Sender<(&'static str, anyhow::Result<()>)>;

/// The entity definitions, held against the contracts.
pub(crate) fn plans(config: &Config, contracts: &[Contract]) -> anyhow::Result<Vec<Plan>> {
    let tables = table_of(contracts);
    config.load_entities()?.iter().map(|definition| Ok(Plan::resolve(definition, &tables)?)).collect()
}

impl Status {
    /// What `GET /v1/status` answers; the members are described at [`api::StatusSource`].
    fn json(&self) -> Json {
        let mut status = json!({"source": {"name": self.name}});
        if let Some(importer) = &self.importer {
            status["source"] = source(&self.name, &importer.get());
        }
        if let Some(joiner) = &self.joiner {
            let joined = joiner.status();
            let sinks: Vec<Json> = joined.sinks.iter().map(|sink| self::sink(sink, &joined)).collect();
            let sum = |count: fn(&joiner::TableCounts) -> u64| joined.tables.values().map(count).sum::<u64>();
            let (applied, emitted) = (sum(|table| table.applied), joined.outbox_head);
            let mut part = json!(joined);
            if let Some(members) = part.as_object_mut() {
                members.remove("sinks");
                members.insert("applied_total".to_owned(), json!(applied));
                members.insert("emitted_total".to_owned(), json!(emitted));
            }
            status["joiner"] = part;
            status["sinks"] = json!(sinks);
        }
        if let Some(extra) = &self.extra {
            status["demo"] = extra();
        }
        status
    }
}

fn source(name: &str, status: &importer::Status) -> Json {
    let tables = &status.tables;
    json!({
        "name": name,
        "phase": status.activity,
        "epoch": status.epoch,
        "captured_lsn": status.captured_lsn,
        "published_lsn": status.published_lsn,
        "published_commit_time_ms": status.published_commit_time_ms,
        "lag_ms": status.lag_ms,
        "events_total": tables.values().map(|table| table.published).sum::<u64>(),
        "dead_lettered_total": tables.values().map(|table| table.dead_lettered).sum::<u64>(),
        "tables": tables.iter().map(|(name, table)| (name.to_string(), json!(table.published))).collect::<serde_json::Map<_, _>>(),
        "table_details": tables.iter().map(|(name, table)| (name.to_string(), json!(table))).collect::<serde_json::Map<_, _>>(),
        "last_error": status.last_error,
        "warnings": status.warnings,
    })
}

fn sink(sink: &joiner::SinkStatus, joined: &joiner::Status) -> Json {
    let caught_up = sink.behind == 0 && sink.cursor.is_some();
    json!({
        "name": sink.name,
        "state": sink.state,
        // A sink with nothing before it in the outbox holds the joiner's frontier.
        "frontier": if caught_up { json!(joined.frontier) } else { Json::Null },
        "lag_ms": if caught_up { json!(0) } else { Json::Null },
        "cursor": sink.cursor,
        "behind": sink.behind,
        "written_total": sink.written,
        "rejected_total": sink.rejected,
        "error": sink.error,
    })
}
