//! The parts wired together in one process: which of them run is the command's choice, how they are set up the configuration's.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use archive::{Archive, Archiver, Fused};
use importer::Importer;
use importer::service::ServiceImporter;
use joiner::Joiner;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use schemas::contract::Contract;
use schemas::plan::{Mistake, Plan, PlanError};
#[cfg(feature = "demo")]
use serde_json::Value as Json;
#[cfg(feature = "demo")]
use sinks::EntityReader;
use streams::Provider;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, sources_of, table_of};
use crate::dead_letters::Letters;
use crate::feed::Feed;
use crate::rebuild::{self, Chosen};
use crate::resnapshot::Resnapshot;
use crate::savepoints::Savepoints;
use crate::status::{Status, StatusExtra};
use crate::turns::InTurn;

/// Which parts run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) importer: bool,
    pub(crate) joiner: bool,
    pub(crate) api: bool,
    pub(crate) archive: Archiving,
}

impl Parts {
    pub(crate) const NONE: Self = Self { importer: false, joiner: false, api: false, archive: Archiving::Never };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archiving {
    Never,
    /// A configuration without an archive is wrong.
    Always,
    WhereConfigured,
}

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// The importer's name among the parts.
const IMPORTER: &str = "importer";
const ARCHIVER: &str = "archiver";

/// After so long an importer or archiver that has stopped is tried again, where there are others.
const AGAIN: Duration = Duration::from_secs(30);

/// The run of an importer or archiver. Of one source, its failure is the process's. Of several, the others go on, and it is tried again: what stands in its way is in its status meanwhile.
struct Run {
    source: String,
    alone: bool,
    of: Of,
}

enum Of {
    Database(Box<Importer>),
    Service(Box<ServiceImporter>),
    Archive(Box<Archiver>, Arc<dyn Provider>),
}

impl Run {
    async fn until(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let attempted = match &self.of {
                Of::Database(importer) => importer.attempt(shutdown.clone()).await.map_err(anyhow::Error::new),
                Of::Service(importer) => importer.attempt(shutdown.clone()).await.map_err(anyhow::Error::new),
                Of::Archive(archiver, provider) => {
                    archiver.attempt(provider.clone(), shutdown.clone()).await.map_err(anyhow::Error::new)
                }
            };
            match attempted {
                Ok(()) => return Ok(()),
                Err(error) if self.alone => return Err(error),
                Err(error) => {
                    let (source, seconds, part) = (&self.source, AGAIN.as_secs(), self.of.part());
                    tracing::error!(
                        source,
                        part,
                        error = format!("{error:#}"),
                        seconds,
                        "a part that works for one of several sources has stopped; it is tried again, and the others go on"
                    );
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
}

impl Of {
    fn part(&self) -> &'static str {
        match self {
            Self::Database(_) | Self::Service(_) => IMPORTER,
            Self::Archive(..) => ARCHIVER,
        }
    }
}

/// A running pipeline.
pub(crate) struct Pipeline {
    shutdown: CancellationToken,
    parts: Parts,
    /// The importer is to end by itself.
    snapshot_only: bool,
    tasks: Vec<JoinHandle<()>>,
    ended: Mutex<mpsc::Receiver<(&'static str, anyhow::Result<()>)>>,
    api_address: Option<SocketAddr>,
    #[cfg(feature = "demo")]
    reader: Option<Arc<dyn EntityReader>>,
    status: Status,
    snapshots: Vec<Arc<dyn api::Snapshots>>,
    savepoints: Option<Arc<dyn api::Savepoints>>,
    rebuilt: CancellationToken,
}

impl Pipeline {
    pub(crate) async fn start(config: Config, parts: Parts) -> anyhow::Result<Self> {
        Self::start_with(config, parts, None).await
    }

    /// Checks everything that can be checked without the source, then starts the parts.
    pub(crate) async fn start_with(config: Config, parts: Parts, extra: Option<StatusExtra>) -> anyhow::Result<Self> {
        let contracts = config.load_contracts()?;
        let plans = plans(&config, &contracts)?;
        let Chosen { plans, next } = if parts.joiner {
            let settings = config.joiner(plans.iter().cloned().map(Arc::new).collect())?;
            rebuild::choose(&settings, plans, &contracts)?
        } else {
            Chosen { plans, next: None }
        };
        let reader = match config.readable_sink() {
            Some(entry) => sinks::open_reader(&entry.sink)?,
            None => None,
        };
        if parts.api && reader.is_none() {
            anyhow::bail!("the API has no sink to read from: add one of type sqlite or postgres under `sinks`");
        }
        // The address first: a port that is taken should stop the process before it has touched anything.
        let server = if parts.api { Some(api::Server::bind(config.api.clone()).await?) } else { None };
        let api_address = server.as_ref().map(api::Server::local_addr);
        // Pipelines of a process that follow each other have one recorder.
        let metrics = METRICS.get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            let _ = metrics::set_global_recorder(recorder);
            handle
        });
        streams::metrics::describe();
        archive::metrics::describe();
        joiner::metrics::describe();
        checkpoints::metrics::describe();
        api::describe_metrics();

        let (report, ended) = mpsc::channel(8);
        let mut pipeline = Self {
            shutdown: CancellationToken::new(),
            parts,
            snapshot_only: config.sources.iter().all(|source| source.snapshot.mode == importer::SnapshotMode::Only),
            tasks: Vec::new(),
            ended: Mutex::new(ended),
            api_address,
            #[cfg(feature = "demo")]
            reader: reader.clone(),
            status: Status::new(&config.source_names(), extra),
            snapshots: Vec::new(),
            savepoints: None,
            rebuilt: CancellationToken::new(),
        };
        let provider = streams::config::open(&config.streams.provider).await?;
        let infos = plans.iter().map(Plan::info).collect();
        let plans: Vec<Arc<Plan>> = plans.into_iter().map(Arc::new).collect();
        let archives = config.open_archives().await?;
        let mut feed = None;
        if parts.joiner {
            let from: Arc<dyn Provider> = match &config.archive {
                Some(settings) if settings.read => Arc::new(Fused::of(archives.clone(), provider.clone())),
                _ => provider.clone(),
            };
            feed = Some(Box::pin(pipeline.start_joiner(&config, plans.clone(), from.clone(), &report)).await?);
            if let (Some(next), Some(served)) = (next, pipeline.status.joiner.clone()) {
                Box::pin(pipeline.start_rebuild(next, served, from, &report)).await?;
            }
        }
        if parts.archive != Archiving::Never {
            pipeline.start_archivers(&config, archives, &provider, &report)?;
        }
        if parts.importer {
            for one in config.each()? {
                let contracts = one.load_contracts()?;
                pipeline.start_importer(&one, !config.has_several_sources(), contracts, provider.clone(), &report).await?;
            }
        }
        if let (Some(server), Some(reader)) = (server, reader) {
            let status = pipeline.status.clone();
            let snapshots = pipeline.snapshots.clone();
            let savepoints = pipeline.savepoints.clone();
            let dead_letters = pipeline.status.joiner.as_ref().map(|joiner| Letters(joiner.dead_letters()));
            let served = api::Parts {
                entities: infos,
                normalize_key: Arc::new(move |entity, key| {
                    plans.iter().find(|plan| &*plan.entity == entity).and_then(|plan| plan.normalize_key(key))
                }),
                reader,
                feed,
                snapshots,
                dead_letters: dead_letters.map(|letters| Arc::new(letters) as Arc<dyn api::DeadLetters>),
                savepoints,
                status: Arc::new(move || status.json()),
                metrics: Arc::new(move || metrics.render()),
            };
            let shutdown = pipeline.shutdown.clone();
            pipeline.spawn("api", &report, async move { Ok(server.run(served, shutdown).await?) });
        }
        Ok(pipeline)
    }

    /// `alone`: there is no other source.
    async fn start_importer(
        &mut self,
        config: &Config,
        alone: bool,
        contracts: Vec<Contract>,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        let name = &config.source().name;
        if let Some(service) = config.source().stream() {
            let input = service.provider(Some(&provider), &config.streams.provider).await?;
            let importer = ServiceImporter::new(config.service_importer(service, contracts), input, provider);
            self.status.add_importer(name, importer.status());
            let run = Run { source: name.clone(), alone, of: Of::Service(Box::new(importer)) };
            self.spawn(IMPORTER, report, run.until(shutdown));
            return Ok(());
        }
        let settings = config.importer(contracts)?;
        let importer = Importer::new(settings, provider);
        self.status.add_importer(name, importer.status());
        self.snapshots.push(Arc::new(Resnapshot::new(name, importer.handle())));
        let run = Run { source: name.clone(), alone, of: Of::Database(Box::new(importer)) };
        self.spawn(IMPORTER, report, run.until(shutdown));
        Ok(())
    }

    /// An archiver for each source.
    fn start_archivers(
        &mut self,
        config: &Config,
        archives: Vec<Archive>,
        provider: &Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<()> {
        let settings = match &config.archive {
            None if self.parts.archive == Archiving::WhereConfigured => return Ok(()),
            _ => config.needs_archive()?,
        };
        for archive in archives {
            let (source, alone) = (archive.source().to_owned(), !config.has_several_sources());
            let letters = importer::dead_letter_stream(config.of(Some(&source))?.prefix());
            let archiver = Archiver::new(archive, settings).with_dead_letters(letters);
            self.status.archivers.push(archiver.status());
            let run = Run { source, alone, of: Of::Archive(Box::new(archiver), provider.clone()) };
            self.spawn(ARCHIVER, report, run.until(self.shutdown.clone()));
        }
        Ok(())
    }

    async fn start_joiner(
        &mut self,
        config: &Config,
        plans: Vec<Arc<Plan>>,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<Arc<dyn api::ChangeFeed>> {
        let settings = config.joiner(plans)?;
        let kept = config.open_checkpoints().await?;
        let mut restored = None;
        if let (Some(checkpoints), Some(wanted)) = (&kept, &config.checkpoints) {
            restored = Box::pin(checkpoints::begin_with(checkpoints, &settings, wanted.restore)).await?;
        }
        let state_dir = settings.state_dir.clone();
        let lease = config.open_lease().await?;
        let joiner =
            tokio::task::spawn_blocking(move || Joiner::open(settings)).await.context("opening the joiner's state")??;
        let handle = joiner.handle();
        let working = watch::Sender::new(lease.is_none());
        let sinks = config
            .sinks
            .iter()
            .map(|sink| Ok(joiner::NamedSink { name: sink.name().to_owned(), sink: sink.open()? }))
            .collect::<anyhow::Result<Vec<_>>>()?;
        if let (Some(checkpoints), Some(wanted)) = (kept, &config.checkpoints) {
            let service =
                checkpoints::Service::new(checkpoints, wanted, handle.clone(), &state_dir, restored).in_turn(lease.is_some());
            self.status.checkpoints = Some(service.status());
            self.savepoints = Some(Arc::new(Savepoints { asking: service.asking(), working: working.subscribe() }));
            let (shutdown, mut working) = (self.shutdown.clone(), working.subscribe());
            self.spawn("checkpoints", report, async move {
                // The chain is that of the one that works.
                let works = async { working.wait_for(|working| *working).await.is_ok() };
                let works = tokio::select! {
                    () = shutdown.cancelled() => false,
                    works = works => works,
                };
                if works {
                    service.run(shutdown).await;
                }
                Ok(())
            });
        }
        let feed = Arc::new(Feed::new(handle.outbox(), working.subscribe()));
        self.status.joiner = Some(handle);
        let shutdown = self.shutdown.clone();
        tokio::spawn(feed.clone().follow(shutdown.clone()));
        match lease {
            Some(store) => {
                let in_turn = InTurn { joiner, store, working };
                self.spawn("joiner", report, in_turn.run(provider, sinks, shutdown));
            }
            None => self.spawn("joiner", report, async move { Ok(joiner.run(provider, sinks, shutdown).await?) }),
        }
        Ok(feed)
    }

    /// Builds a state for other definitions, beside the one that is served.
    async fn start_rebuild(
        &mut self,
        next: joiner::Config,
        served: joiner::Handle,
        provider: Arc<dyn Provider>,
        report: &Report,
    ) -> anyhow::Result<()> {
        let next = tokio::task::spawn_blocking(move || Joiner::open(next)).await.context("opening the state that is built")??;
        self.status.next = Some(next.handle());
        let (shutdown, rebuilt) = (self.shutdown.clone(), self.rebuilt.clone());
        self.spawn("rebuild", report, async move {
            if rebuild::build(next, served, provider, shutdown.clone()).await? {
                rebuilt.cancel();
                shutdown.cancelled().await;
            }
            Ok(())
        });
        Ok(())
    }

    /// Returns when the state that is built for other definitions has caught up: this pipeline is to stop, the folders to be exchanged, and another to start.
    pub(crate) async fn rebuilt(&self) {
        self.rebuilt.cancelled().await;
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

    /// What the joiner says of itself; none where it does not run here.
    pub(crate) fn joiner(&self) -> Option<joiner::Handle> {
        self.status.joiner.clone()
    }

    /// What the importers say of themselves; none where they do not run here.
    pub(crate) fn importers(&self) -> impl Iterator<Item = importer::StatusHandle> {
        self.status.importers()
    }

    /// Returns when a part has ended by itself: its error, or that it ended without being asked to. An importer that was to do no more than the snapshot ends well, and
    /// with it the process where nothing else runs in it.
    pub(crate) async fn failed(&self) -> anyhow::Result<()> {
        let mut ended = self.ended.lock().await;
        loop {
            match ended.recv().await {
                Some((_, Err(error))) => return Err(error),
                Some((IMPORTER, Ok(()))) if self.snapshot_only => {
                    tracing::info!("the snapshot is complete; the importer has ended");
                    if !self.parts.joiner && !self.parts.api {
                        return Ok(());
                    }
                }
                Some((name, Ok(()))) => anyhow::bail!("the {name} ended although nobody told it to"),
                None => std::future::pending().await,
            }
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
    Plan::resolve_all(&config.load_entities()?, &tables).map_err(|error| {
        let told = match &error {
            PlanError::Definition { mistake, .. } => several(mistake, contracts),
            _ => None,
        };
        let error = anyhow::Error::new(error);
        match told {
            Some(told) => error.context(told),
            None => error,
        }
    })
}

/// Where a table stands in several sources, what a definition has to call it.
fn several(mistake: &Mistake, contracts: &[Contract]) -> Option<String> {
    let Mistake::UnknownTable { table, .. } = mistake else { return None };
    let found: Vec<String> = sources_of(contracts, table).map(ToString::to_string).collect();
    (found.len() > 1).then(|| format!("several sources have a table {table}: write {}", found.join(" or ")))
}
