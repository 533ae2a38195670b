//! The joiner from the embedded stream to a sink, in a process of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use joiner::{Config, Handle, Joiner, NamedSink, NullSink};
use schemas::Lsn;
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use sinks::Sink;
use sinks::postgres::{PostgresConfig, PostgresSink};
use streams::Provider;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::documents::RecordingSink;
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
    let state = tempfile::Builder::new().prefix("state-").tempdir_in(&args.folder)?;
    let (gate, open) = watch::channel(false);
    let provider = Gated { inner: stream::provider(&args.folder)?, boundary: published.boundary.clone(), open };
    let sink = sink(&args, published.loaded)?;

    let started = Instant::now();
    let second = args.second.map(SecondSink::new);
    let (handle, task, stop) = start(state.path(), published.layout, Arc::new(provider), sink, second.clone()).await?;
    reach(&handle, published.loaded, &task).await?;
    let load_seconds = started.elapsed().as_secs_f64();
    let written = handle.status().sinks.first().map_or(0, |sink| sink.written);
    ensure!(written == published.orders, "the sink was handed {written} entities, and there are {} orders", published.orders);

    let started = Instant::now();
    let mut update_seconds = 0.0;
    if args.updates {
        gate.send_replace(true);
        reach(&handle, published.last, &task).await?;
        update_seconds = started.elapsed().as_secs_f64();
        check_probe(&handle, &published)?;
    }
    let entities = handle.status().sinks.first().map_or(0, |sink| sink.written) - written;
    let state_mb = sink_down::megabytes(state.path())?;
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
    stop.cancel();
    task.await??;
    println!(
        "load_seconds={load_seconds:.4} update_seconds={update_seconds:.4} entities_updated={entities} state_mb={state_mb:.1} missed={missed} told={told} \
         catch_up_seconds={catch_up_seconds:.4}"
    );
    Ok(())
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
    let joiner = tokio::task::spawn_blocking(move || Joiner::open(config)).await??;
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let mut sinks = vec![NamedSink { name: SINK.to_owned(), sink }];
    sinks.extend(second.map(|sink| NamedSink { name: SECOND.to_owned(), sink: Box::new(sink) }));
    let task = tokio::spawn(joiner.run(provider, sinks, stop.clone()));
    Ok((handle, task, stop))
}

/// Waits until the sink holds everything as of a frontier.
async fn reach(handle: &Handle, frontier: Lsn, task: &JoinHandle<Result<(), joiner::Error>>) -> anyhow::Result<()> {
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
