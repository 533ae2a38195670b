//! `tributary demo`: the stand-in with a live shop, the whole pipeline on it, and a page, in one process.

mod client;
mod latency;
mod shop;
mod verify;
mod workload;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use schemas::change::EntityKey;
use serde_json::{Value as Json, json};
use sinks::EntityReader;
use tokio_util::sync::CancellationToken;

use crate::cli::DemoArgs;
use crate::commands::{connect_hints, interrupted};
use crate::config::Config;
use crate::pipeline::{Parts, Pipeline};

const DATABASE: &str = "shop";
const PASSWORD: &str = "Tributary-1";

/// How long the pipeline may take to come to the last commit after the workload has stopped.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let temporary = tempfile::tempdir().context("a temporary folder cannot be made; --data names a folder to use")?;
    let folder = args.data.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let size = shop::Size::default();
    println!("Starting the SQL Server stand-in with a shop of {} orders …", size.orders);
    let server = start_server(&args, &folder, size).await?;
    let target = client::Target {
        host: server.address().ip().to_string(),
        port: server.address().port(),
        password: PASSWORD.to_owned(),
        database: DATABASE.to_owned(),
    };
    let latencies = Arc::new(latency::Latencies::default());
    let config = write_pipeline(&args, &folder, server.address()).await?;
    let hints = hints(server.address(), latencies.clone());
    let pipeline =
        Pipeline::start_with(config, Parts { importer: true, joiner: true, api: true, ..Parts::NONE }, Some(hints)).await?;
    let reader = pipeline.reader().context("the demo's configuration has a sink that can be read")?;

    let stop = CancellationToken::new();
    let counters = Arc::new(workload::Counters::default());
    let random = ChaCha8Rng::seed_from_u64(args.seed ^ 0x5eed);
    let mut load = tokio::spawn(workload::run(target.clone(), size, args.rate, random, counters.clone(), stop.clone()));
    let mut probe = tokio::spawn(latency::probe(target.clone(), reader.clone(), latencies.clone(), stop.clone()));
    greet(&args, &pipeline, server.address());

    let started = Instant::now();
    tokio::select! {
        ended = pipeline.failed() => ended?,
        interrupted = interrupted() => interrupted?,
        () = pause(args.duration) => {}
        // Neither ends by itself, unless something is wrong.
        ended = &mut load => return ended.context("the workload ended abnormally")?.context("the workload failed").map(|()| ExitCode::FAILURE),
        ended = &mut probe => return ended.context("the latency probe ended abnormally")?.context("the latency probe failed").map(|()| ExitCode::FAILURE),
    }
    stop.cancel();
    load.await.context("the workload ended abnormally")?.context("the workload failed")?;
    probe.await.context("the latency probe ended abnormally")?.context("the latency probe failed")?;
    let code = match args.duration {
        None => ExitCode::SUCCESS,
        Some(_) => summarise(&target, reader.as_ref(), &pipeline, &counters, &latencies, started.elapsed()).await?,
    };
    pipeline.stop().await?;
    server.stop().await?;
    Ok(code)
}

async fn pause(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// The stand-in, with the shop in it and change data capture on.
async fn start_server(args: &DemoArgs, folder: &Path, size: shop::Size) -> anyhow::Result<sqlserver::Running> {
    let server = sqlserver::start(sqlserver::Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, args.sql_port)),
        data: args.data.is_some().then(|| folder.join("sqlserver")),
        database: DATABASE.to_owned(),
        sa_password: PASSWORD.to_owned(),
        capture_interval: Duration::from_millis(20),
        ..sqlserver::Options::default()
    })
    .await
    .context("the SQL Server stand-in does not start (--sql-port names another port, 0 any free one)")?;
    tokio::task::block_in_place(|| fill(&server, size, args.seed))?;
    Ok(server)
}

/// Creates and fills the shop, unless it is there from an earlier run.
fn fill(server: &sqlserver::Running, size: shop::Size, seed: u64) -> anyhow::Result<()> {
    let execute = |sql: &str| {
        server.execute(sql).map_err(|error| {
            let start: String = sql.chars().take(120).collect();
            anyhow::anyhow!("setting up the shop: {} (error {}): {start}", error.message, error.number)
        })
    };
    let there = execute("SELECT name FROM sys.tables WHERE name = 'shipments'")?;
    if there.first().is_some_and(|set| !set.rows.is_empty()) {
        return Ok(());
    }
    execute(shop::SCHEMA)?;
    for batch in shop::rows(size, &mut ChaCha8Rng::seed_from_u64(seed)) {
        execute(&batch)?;
    }
    for statement in shop::capture_statements() {
        execute(&statement)?;
    }
    Ok(())
}

/// The folder of a pipeline, as `tributary init` writes it, with the demo's own entity definitions.
async fn write_pipeline(args: &DemoArgs, folder: &Path, server: SocketAddr) -> anyhow::Result<Config> {
    let place = folder.join("pipeline");
    let password = place.join("password");
    let config = place.join("tributary.yaml");
    std::fs::create_dir_all(&place)?;
    std::fs::write(&password, PASSWORD)?;
    if !config.exists() {
        let url = format!("sqlserver://sa@{server}/{DATABASE}?encrypt=off");
        let source = importer::Source::from_settings(&importer::SourceSettings {
            url: Some(importer::SourceUrl::new(&url)),
            password: Some(importer::Password::new(PASSWORD)),
            ..importer::SourceSettings::default()
        })?;
        let mut inferred = importer::init::infer(&importer::init::read_catalog(&source).await?);
        inferred.entities = shop::ENTITIES
            .iter()
            .map(|(name, text)| Ok(schemas::entity::EntityDefinition::from_yaml(name, text)?))
            .collect::<anyhow::Result<_>>()?;
        importer::init::write(&inferred, "", &place)?;
    }
    // Ports may differ from an earlier run's, so the configuration is always written anew.
    let text = format!(
        "source:\n  name: shop\n  url: sqlserver://sa@{server}/{DATABASE}?encrypt=off\n  password: {{file: {}}}\n  poll_interval: 10ms\n\
         streams:\n  provider: {{embedded: {{path: streams, sync: false}}}}\nsinks:\n  - {{type: sqlite, path: entities.db}}\n\
         api:\n  listen: 127.0.0.1:{}\n",
        password.display(),
        args.port
    );
    std::fs::write(&config, text)?;
    Config::load(&config)
}

/// What the page shows of the demo itself.
fn hints(server: SocketAddr, latencies: Arc<latency::Latencies>) -> Arc<dyn Fn() -> Json + Send + Sync> {
    let connect = connect_hints(server, DATABASE, PASSWORD);
    Arc::new(move || {
        let (p50, p99) = latencies.percentiles();
        json!({"connect": connect, "try": TRY, "latency_ms": {"p50": p50, "p99": p99}})
    })
}

const TRY: [&str; 3] = [
    "UPDATE dbo.customers SET name = N'My own name' WHERE id = 1",
    "UPDATE dbo.orders SET note = N'Handle with care' WHERE id = 1",
    "BEGIN TRANSACTION; DELETE FROM dbo.shipments WHERE order_id = 1; UPDATE dbo.orders SET status = 'PAID' WHERE id = 1; COMMIT",
];

fn greet(args: &DemoArgs, pipeline: &Pipeline, server: SocketAddr) {
    if let Some(address) = pipeline.api_address() {
        println!("\nPage: http://{address}");
        println!("API:  http://{address}/v1/entities/order/1   http://{address}/openapi.json");
    }
    println!("\nConnect with your own SQL client:");
    for hint in connect_hints(server, DATABASE, PASSWORD) {
        println!("  {hint}");
    }
    println!("and try:");
    for statement in TRY {
        println!("  {statement}");
    }
    match args.duration {
        Some(duration) => println!("\nEnds by itself after {duration:?}.\n"),
        None => println!("\nCtrl-C ends it.\n"),
    }
}

/// Waits until everything committed is queryable, compares every entity with SQL, and says what was done.
async fn summarise(
    target: &client::Target,
    reader: &dyn EntityReader,
    pipeline: &Pipeline,
    counters: &workload::Counters,
    latencies: &latency::Latencies,
    ran: Duration,
) -> anyhow::Result<ExitCode> {
    let mut client = target.connect().await?;
    latency::mark(&mut client, reader, "the-end", DRAIN_LIMIT).await?;
    let mut found = Vec::new();
    println!("Summary after {ran:.1?}:");
    let transactions = counters.transactions.load(Ordering::Relaxed);
    println!("  transactions   {transactions} committed, {} rolled back", counters.rolled_back.load(Ordering::Relaxed));
    println!("  rows published {}", pipeline.status()["source"]["events_total"]);
    for (entity, expected) in [("order", verify::orders(&mut client).await?), ("customer", verify::customers(&mut client).await?)]
    {
        let actual = documents(reader, entity).await?;
        let differences = verify::differences(entity, &expected, &actual, 5);
        let verdict = if differences.is_empty() { "all equal to the join by SQL" } else { "DIFFERENT from the join by SQL" };
        println!("  {entity:<14} {} entities, {verdict}", actual.len());
        found.extend(differences);
    }
    let (p50, p99) = latencies.percentiles();
    println!(
        "  commit to queryable: p50 {p50:.1} ms, p99 {p99:.1} ms ({} probes; the capture job's 20 ms included)",
        latencies.count()
    );
    if found.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for difference in &found {
        println!("{difference}");
    }
    Ok(ExitCode::FAILURE)
}

/// Everything that the sink holds of an entity.
async fn documents(reader: &dyn EntityReader, entity: &str) -> anyhow::Result<verify::Documents> {
    let mut documents = verify::Documents::new();
    let mut after: Option<EntityKey> = None;
    loop {
        let query = sinks::Query { entity: entity.to_owned(), filters: Vec::new(), after: after.clone(), limit: 1000 };
        let page = reader.list(&query).await?;
        let Some(last) = page.last() else { return Ok(documents) };
        after = Some(last.key.clone());
        for stored in &page {
            let document = serde_json::from_str(&stored.document).with_context(|| format!("{entity} {}", stored.key))?;
            if documents.insert(stored.key.as_str().to_owned(), document).is_some() {
                bail!("{entity} {} was listed twice", stored.key);
            }
        }
    }
}
