//! The joiner from the embedded stream to a sink, in a process of its own.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use checkpoints::Checkpoints;
use clap::Args;
use joiner::{Config, Handle, Joiner, NamedSink, NullSink};
use objects::{LocalOptions, Objects};
use schemas::Lsn;
use schemas::change::EntityKey;
use schemas::encoding::Schemas;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use sinks::Sink;
use sinks::postgres::{PostgresConfig, PostgresSink};
use streams::Provider;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::documents::RecordingSink;
use crate::process::input_ended;
use crate::sink_down::{self, Second, SecondSink};
use crate::stream::{self, Gated, Published, SOURCE};

/// Longer than any measured thing takes.
const LIMIT: Duration = Duration::from_secs(600);
const SINK: &str = "measured";
const SECOND: &str = "second";

/// What a joining process does.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinArgs {
    /// The folder of the input.
    folder: PathBuf,
    /// Goes on with the transactions after the first load.
    #[arg(long)]
    updates: bool,
    /// Writes to this Postgres instead of nowhere.
    #[arg(long, conflicts_with = "record")]
    postgres: Option<String>,
    /// Has a second sink, which from its load on can be reached or not.
    #[arg(long)]
    second: Option<Second>,
    /// Writes the documents, batch by batch, to files in this folder.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Keeps the state here, leaves the last tick of the transactions for who goes on with it, and waits to be killed.
    #[arg(long, requires = "updates")]
    leave: Option<PathBuf>,
    /// Makes a checkpoint after the load and one after the transactions, in this folder.
    #[arg(long)]
    checkpoints: Option<PathBuf>,
}

/// What a process does that goes on where a killed one was.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestartArgs {
    /// The folder of the input.
    folder: PathBuf,
    /// That of the state.
    state: PathBuf,
}

/// The entity that both sides join.
pub(crate) fn plan() -> anyhow::Result<Arc<Plan>> {
    let tables = stream::schemas();
    let find = |name: &schemas::TableName| tables.iter().find(|table| table.name == *name).cloned();
    let definition = EntityDefinition::from_yaml("order.yaml", tpch::ORDER)?;
    Ok(Arc::new(Plan::resolve(&definition, &find)?))
}

/// Loads, then applies the transactions if it is to; reports the seconds of both.
pub(crate) async fn run(args: JoinArgs) -> anyhow::Result<()> {
    let published = Published::read(&args.folder)?;
    let temporary = tempfile::Builder::new().prefix("state-").tempdir_in(&args.folder)?;
    let state = args.leave.as_deref().unwrap_or(temporary.path());
    let (gate, open) = watch::channel(LOADED);
    let provider = provider(&args.folder, &published, open)?;
    let sink = sink(&args, published.loaded)?;

    let started = Instant::now();
    let second = args.second.map(SecondSink::new);
    let (handle, task, stop) = start(state, published.layout, Arc::new(provider), sink, second.clone()).await?;
    reach(&handle, published.loaded, &task).await?;
    let load_seconds = started.elapsed().as_secs_f64();
    let written = handle.status().sinks.first().map_or(0, |sink| sink.written);
    ensure!(written == published.orders, "the sink was handed {written} entities, and there are {} orders", published.orders);

    let checkpoints = match &args.checkpoints {
        Some(folder) => Some(Checkpointing::start(folder, &handle, state).await?),
        None => None,
    };
    let checkpoint = async |name| match &checkpoints {
        Some(checkpoints) => checkpoints.savepoint(name).await,
        None => Ok(0.0),
    };
    let first_checkpoint_mb = checkpoint("loaded").await?;
    let started = Instant::now();
    let mut update_seconds = 0.0;
    if args.updates {
        let (gates, last) = if args.leave.is_some() { (NEARLY, published.nearly) } else { (ALL, published.last) };
        gate.send_replace(gates);
        reach(&handle, last, &task).await?;
        update_seconds = started.elapsed().as_secs_f64();
    }
    if args.updates && args.leave.is_none() {
        check_probe(&handle, &published)?;
    }
    let next_checkpoint_mb = checkpoint("updated").await?;
    drop(checkpoints);
    let entities = handle.status().sinks.first().map_or(0, |sink| sink.written) - written;
    let state_mb = sink_down::megabytes(state)?;
    let missed = behind(&handle);
    let started = Instant::now();
    let told = match &second {
        Some(second) => {
            let told = second.told();
            second.come_back();
            catch_up(&handle).await?;
            second.told() - told
        }
        None => 0,
    };
    let catch_up_seconds = started.elapsed().as_secs_f64();
    println!(
        "load_seconds={load_seconds:.4} update_seconds={update_seconds:.4} entities_updated={entities} state_mb={state_mb:.1} missed={missed} told={told} \
         catch_up_seconds={catch_up_seconds:.4} first_checkpoint_mb={first_checkpoint_mb:.2} next_checkpoint_mb={next_checkpoint_mb:.2}"
    );
    if args.leave.is_some() {
        return input_ended().await;
    }
    stop.cancel();
    Ok(task.await??)
}

/// Goes on with a state that a killed process has left, to the last transaction; reports how long after its start the sink had that.
pub(crate) async fn restart(args: RestartArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let published = Published::read(&args.folder)?;
    let (_gate, open) = watch::channel(ALL);
    let provider = provider(&args.folder, &published, open)?;
    let (handle, task, stop) = start(&args.state, published.layout, Arc::new(provider), Box::new(NullSink), None).await?;
    reach(&handle, published.last, &task).await?;
    let seconds = started.elapsed().as_secs_f64();
    check_probe(&handle, &published)?;
    println!("seconds={seconds:.4}");
    stop.cancel();
    Ok(task.await??)
}

/// How many gates are open: none, that of the transactions, and that of their last tick.
const LOADED: usize = 0;
const NEARLY: usize = 1;
const ALL: usize = 2;

fn provider(folder: &Path, published: &Published, open: watch::Receiver<usize>) -> anyhow::Result<Gated> {
    let boundaries = [published.boundary.clone(), published.nearly_boundary.clone()];
    Ok(Gated { inner: stream::provider(folder)?, boundaries: Arc::new(boundaries), open })
}

/// A running service that makes checkpoints when it is asked for them.
struct Checkpointing {
    asking: checkpoints::Asking,
    _stop: DropGuard,
}

impl Checkpointing {
    async fn start(folder: &Path, handle: &Handle, state: &Path) -> anyhow::Result<Self> {
        let store = objects::Config::Local(LocalOptions { path: folder.to_owned() });
        let mut config = checkpoints::Config::new(store);
        // None but those asked for.
        config.every_seconds = NonZeroU64::new(24 * 3600).context("a day has seconds")?;
        let checkpoints = Checkpoints::open(Objects::open(&config.store).await?, SOURCE);
        let service = checkpoints::Service::new(checkpoints, &config, handle.clone(), state, None);
        let (asking, stop) = (service.asking(), CancellationToken::new());
        tokio::spawn(service.run(stop.clone()));
        Ok(Self { asking, _stop: stop.drop_guard() })
    }

    /// What it had to upload, in MB.
    async fn savepoint(&self, name: &str) -> anyhow::Result<f64> {
        Ok(self.asking.savepoint(name).await?.uploaded_bytes as f64 / 1e6)
    }
}

fn sink(args: &JoinArgs, loaded: Lsn) -> anyhow::Result<Box<dyn Sink>> {
    match (&args.postgres, &args.record) {
        (Some(url), _) => Ok(Box::new(PostgresSink::new(PostgresConfig::new(url))?)),
        (None, Some(folder)) => Ok(Box::new(RecordingSink::new(folder, loaded)?)),
        (None, None) => Ok(Box::new(NullSink)),
    }
}

async fn start(
    state: &Path,
    layout: streams::Layout,
    provider: Arc<dyn Provider>,
    sink: Box<dyn Sink>,
    second: Option<SecondSink>,
) -> anyhow::Result<(Handle, JoinHandle<Result<(), joiner::Error>>, CancellationToken)> {
    let mut config = Config::new(state, vec![plan()?], SOURCE, SOURCE);
    config.layout = layout;
    config.sources[0].schemas = Arc::new(Schemas::fixed(stream::registry()));
    let joiner = tokio::task::spawn_blocking(move || Joiner::open(config)).await??;
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let mut sinks = vec![NamedSink { name: SINK.to_owned(), sink }];
    sinks.extend(second.map(|sink| NamedSink { name: SECOND.to_owned(), sink: Box::new(sink) }));
    let task = tokio::spawn(joiner.run(provider, sinks, stop.clone()));
    Ok((handle, task, stop))
}

/// Waits until the sink holds everything as of a frontier.
pub(crate) async fn reach(handle: &Handle, frontier: Lsn, task: &JoinHandle<Result<(), joiner::Error>>) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let outbox = handle.outbox();
    let head = outbox.head();
    // A millisecond is the measure's resolution.
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    loop {
        poll.tick().await;
        let now = *head.borrow();
        if now.live && now.frontier >= frontier {
            let status = handle.status();
            if status.sinks.first().and_then(|sink| sink.cursor).is_some_and(|cursor| cursor >= now.sequence) {
                return Ok(());
            }
        }
        if task.is_finished() || Instant::now() > deadline {
            bail!("the joiner did not come to {frontier}: {:?}", handle.status());
        }
    }
}

/// Entries that the second sink does not hold yet.
fn behind(handle: &Handle) -> u64 {
    handle.status().sinks.iter().find(|sink| sink.name == SECOND).map_or(0, |sink| sink.behind)
}

/// Waits until the second sink holds everything.
async fn catch_up(handle: &Handle) -> anyhow::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    while behind(handle) > 0 {
        poll.tick().await;
        ensure!(Instant::now() < deadline, "the second sink did not catch up: {:?}", handle.status());
    }
    Ok(())
}

/// The state holds what the transactions left.
fn check_probe(handle: &Handle, published: &Published) -> anyhow::Result<()> {
    let Some((key, comment)) = &published.probe else { return Ok(()) };
    let (_, document) =
        handle.get("order", &EntityKey::from_parts([key]))?.with_context(|| format!("order {key} is not there"))?;
    ensure!(document.contains(comment.as_str()), "order {key} should say {comment:?}: {document}");
    Ok(())
}
