//! The parts wired together in one process: which of them run is the command's choice, how they are set up the configuration's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use importer::{Importer, StatusHandle};
use joiner::Joiner;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use schemas::contract::Contract;
use schemas::plan::Plan;
use serde_json::{Value as Json, json};
use sinks::EntityReader;
use streams::Provider;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, table_of};

/// Which parts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    pub importer: bool,
    pub joiner: bool,
    pub api: bool,
}

/// More for the status, beside what the parts say (the demo's hints).
pub type StatusExtra = Arc<dyn Fn() -> Json + Send + Sync>;

/// What each part says of itself when it is asked.
#[derive(Clone)]
struct Status {
    name: String,
    importer: Option<StatusHandle>,
    joiner: Option<joiner::Status>,
    extra: Option<StatusExtra>,
}

/// A running pipeline.
pub struct Pipeline {
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    ended: Mutex<mpsc::Receiver<(&'static str, anyhow::Result<()>)>>,
    api_address: Option<SocketAddr>,
    reader: Option<Arc<dyn EntityReader>>,
    status: Status,
}

impl Pipeline {
    pub async fn start(config: Config, parts: Parts) -> anyhow::Result<Self> {
        Self::start_with(config, parts, None).await
    }

    /// Checks everything that can be checked without the source, then starts the parts.
    pub async fn start_with(config: Config, parts: Parts, extra: Option<StatusExtra>) -> anyhow::Result<Self> {
        let contracts = config.load_contracts()?;
        let plans = plans(&config, &contracts)?;
        let reader = match config.readable_sink() {
            Some(sink) => sinks::open_reader(sink)?,
            None => None,
        };
        // The address first: a port that is taken should stop the process before it has touched anything.
        let server = if parts.api { Some(api::Server::bind(config.api.clone()).await?) } else { None };
        let api_address = server.as_ref().map(api::Server::local_addr);
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        // Only the first pipeline of a process installs its recorder; tests may start several.
        let _ = metrics::set_global_recorder(recorder);

        let (report, ended) = mpsc::channel(8);
        let mut pipeline = Self {
            shutdown: CancellationToken::new(),
            tasks: Vec::new(),
            ended: Mutex::new(ended),
            api_address,
            reader: reader.clone(),
            status: Status { name: config.source.name.clone(), importer: None, joiner: None, extra },
        };
        let provider = streams::open(&config.streams.provider).await?;
        let infos = plans.iter().map(Plan::info).collect();
        let mut feed = None;
        if parts.joiner {
            feed = Some(pipeline.start_joiner(&config, plans, provider.clone(), &report).await?);
        }
        if parts.importer {
            pipeline.start_importer(&config, contracts, provider, &report)?;
        }
        if let Some(server) = server {
            let reader = reader.context("the API has no sink to read from: add one of type sqlite or postgres under `sinks`")?;
            pipeline.start_api(server, infos, reader, feed, metrics, &report);
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
        settings.contracts = contracts.into_iter().map(|contract| (contract.table.name.clone(), contract)).collect::<BTreeMap<_, _>>();
        let importer = Importer::new(settings, provider);
        self.status.importer = Some(importer.status());
        let shutdown = self.shutdown.clone();
        self.spawn("importer", report, async move { Ok(importer.run(shutdown).await?) });
        Ok(())
    }

    async fn start_joiner(
        &mut self,
        config: &Config,
        plans: Vec<Plan>,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<Arc<dyn api::ChangeFeed>> {
        let settings = joiner::Config::new(&config.source.name, config.data.join("state"), plans);
        let joiner = Joiner::open(settings)?;
        let sinks = config.sinks.iter().map(|sink| Ok((sink.name().to_owned(), sinks::open(sink)?))).collect::<anyhow::Result<Vec<_>>>()?;
        let feed = Arc::new(Feed(joiner.outbox()));
        let shutdown = self.shutdown.clone();
        self.spawn("joiner", report, async move { Ok(joiner.run(provider, sinks, shutdown).await?) });
        Ok(feed)
    }

    fn start_api(
        &mut self,
        server: api::Server,
        entities: Vec<schemas::entity::EntityInfo>,
        reader: Arc<dyn EntityReader>,
        feed: Option<Arc<dyn api::ChangeFeed>>,
        metrics: PrometheusHandle,
        report: &Report,
    ) {
        let status = self.status.clone();
        let parts = api::Parts {
            entities,
            reader,
            feed,
            status: Arc::new(move || status.json()),
            metrics: Arc::new(move || metrics.render()),
        };
        let shutdown = self.shutdown.clone();
        self.spawn("api", report, async move { Ok(server.run(parts, shutdown).await?) });
    }

    fn spawn(&mut self, name: &'static str, report: &Report, work: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let report = report.clone();
        self.tasks.push(tokio::spawn(async move {
            let result = work.await.with_context(|| format!("the {name} stopped"));
            // Nobody listens any more when the pipeline is being stopped.
            let _ = report.send((name, result)).await;
        }));
    }

    /// Where the API listens.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api_address
    }

    pub fn reader(&self) -> Option<Arc<dyn EntityReader>> {
        self.reader.clone()
    }

    pub fn status(&self) -> Json {
        self.status.json()
    }

    /// Returns when a part has ended by itself: its error, or that it ended without being asked to.
    pub async fn failed(&self) -> anyhow::Result<()> {
        match self.ended.lock().await.recv().await {
            Some((_, Err(error))) => Err(error),
            Some((name, Ok(()))) => anyhow::bail!("the {name} ended although nobody told it to"),
            None => std::future::pending().await,
        }
    }

    /// Stops every part, and waits until each has come to an orderly end.
    pub async fn stop(self) -> anyhow::Result<()> {
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
pub fn plans(config: &Config, contracts: &[Contract]) -> anyhow::Result<Vec<Plan>> {
    let tables = table_of(contracts);
    config.load_entities()?.iter().map(|definition| Ok(Plan::resolve(definition, &tables)?)).collect()
}
