//! From commit to queryable, at half of the maximum rate: stand-in, then importer, embedded stream, joiner and SQLite in one process, asked from outside.
//!
//! How many transactions a second go through all of it is found first: committed as fast as they can be for a while, divided by the time until the last of them is queryable. A load of half as many a second runs from then on. Beside it a probe commits a change, and asks the SQLite reader each millisecond until it answers with it. What of that the stand-in's capture
//! job takes is measured by itself, in the same way: until the change stands in the change table.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use importer::Importer;
use joiner::{Joiner, NamedSink};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::change::EntityKey;
use sinks::EntityReader;
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use streams::Provider;
use streams::embedded::{Embedded, Options};
use tokio::task::JoinHandle;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use crate::SEED;
use crate::join::plan;
use crate::joining::child;
use crate::process::{Served, input_ended};
use crate::results::{Figure, percentile};
use crate::rows::TABLES;
use crate::standin::{self, Client, StandIn, execute};
use crate::stream::SOURCE;

const SCALE: f64 = 0.01;
/// Connections that the load is committed on.
const CONNECTIONS: u64 = 4;
/// How long transactions are committed as fast as they can be.
const FLAT_OUT: Duration = Duration::from_secs(10);
/// Probes of commit to queryable, and of commit to captured.
const PROBES: usize = 400;
/// Between two probes, in milliseconds: at random, because a fixed pause would always meet the capture job at the same moment of its interval.
const PAUSES: std::ops::Range<u64> = 10..50;
const LIMIT: Duration = Duration::from_secs(120);
/// The order that the probe changes; the load leaves it alone.
const PROBED: i64 = 1;

/// What a pipeline process does.
#[derive(Debug, Clone, Args)]
pub(crate) struct PipelineArgs {
    port: u16,
    folder: PathBuf,
}

fn sqlite(folder: &std::path::Path) -> SqliteConfig {
    SqliteConfig::new(folder.join("entities.db"))
}

/// Runs the whole pipeline until standard input ends.
pub(crate) async fn pipeline(args: PipelineArgs) -> anyhow::Result<()> {
    let provider: Arc<dyn Provider> = Arc::new(Embedded::open(Options::new(args.folder.join("streams")))?);
    let stop = CancellationToken::new();
    let mut config = importer::Config::new(SOURCE, standin::source(args.port), args.folder.join("importer"));
    config.tables.include = TABLES.iter().map(|table| format!("dbo.{}", table.name)).collect();
    config.poll_interval = Duration::from_millis(10);
    let mut importing = tokio::spawn(Importer::new(config, provider.clone()).run(stop.clone()));

    let config = joiner::Config::new(args.folder.join("state"), vec![plan()?], SOURCE, SOURCE);
    let joiner = tokio::task::spawn_blocking(move || Joiner::open(config)).await??;
    let sink = NamedSink { name: "sqlite".to_owned(), sink: Box::new(SqliteSink::new(sqlite(&args.folder))) };
    let mut joining = tokio::spawn(joiner.run(provider, vec![sink], stop.clone()));
    println!("started=1");
    tokio::select! {
        ended = &mut importing => bail!("the importer ended: {ended:?}"),
        ended = &mut joining => bail!("the joiner ended: {ended:?}"),
        ended = input_ended() => ended?,
    }
    stop.cancel();
    importing.await??;
    Ok(joining.await??)
}

/// [latency-p50], [latency-p99], and the stand-in's share.
pub(crate) async fn measure(folder: &std::path::Path) -> anyhow::Result<Vec<Figure>> {
    let stand_in = StandIn::start()?;
    let mut client = stand_in.client().await?;
    fill(&mut client).await?;
    let path = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    let served = Served::start(&mut child(&["pipeline", &stand_in.port.to_string(), path])?)?;
    let reader = SqliteReader::new(&sqlite(folder));
    // The first probe waits for the first load.
    probe(&mut client, &reader, "first").await?;

    let flat_out = Instant::now();
    let stop = CancellationToken::new();
    let all = Load::start(&stand_in, None, &stop).await?;
    tokio::time::sleep(FLAT_OUT).await;
    stop.cancel();
    let transactions = all.ended().await?;
    probe(&mut client, &reader, "behind all").await?;
    let maximum = transactions as f64 / flat_out.elapsed().as_secs_f64();

    let stop = CancellationToken::new();
    let wanted = maximum / 2.0;
    let load = Load::start(&stand_in, Some(wanted), &stop).await?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut pause = async || tokio::time::sleep(Duration::from_millis(random.random_range(PAUSES))).await;
    let (mut latencies, mut captures) = (Vec::with_capacity(PROBES), Vec::with_capacity(PROBES));
    let started = Instant::now();
    for number in 0..PROBES {
        pause().await;
        latencies.push(probe(&mut client, &reader, &format!("probe {number}")).await?);
        pause().await;
        captures.push(probe_capture(&mut client, &format!("capture {number}")).await?);
    }
    let took = started.elapsed();
    stop.cancel();
    let rate = load.ended().await? as f64 / took.as_secs_f64();
    println!(
        "Latency: {PROBES} probes in {took:.1?}, beside {rate:.0} transactions a second (wanted: {wanted:.0}, half of what goes through)"
    );
    let peak_mb = served.stop()?;
    drop(client);
    stand_in.stop()?;

    let figure = |name: &str, values: &mut Vec<f64>, share: f64| Figure::time(name, "ms", percentile(values, share));
    Ok(vec![
        figure("latency-p50", &mut latencies, 0.5).memory(Some(peak_mb), None),
        figure("latency-p99", &mut latencies, 0.99).memory(Some(peak_mb), None),
        figure("stand-in-capture-p50", &mut captures, 0.5),
        figure("stand-in-capture-p99", &mut captures, 0.99),
    ])
}

/// TPC-H's customers, orders and line items, and a table of marks.
async fn fill(client: &mut Client) -> anyhow::Result<()> {
    for table in TABLES {
        // Without the foreign keys: not all of the tables they name are here.
        let table = tpch::Table { references: &[], ..table };
        execute(client, &table.create("dbo")).await?;
        let rows: Vec<String> = table.rows(SCALE).map(|row| table.values(&row)).collect();
        for chunk in rows.chunks(500) {
            execute(client, &format!("INSERT INTO dbo.{} VALUES {}", table.name, chunk.join(","))).await?;
        }
    }
    execute(client, "CREATE TABLE dbo.mark (id int NOT NULL PRIMARY KEY, text varchar(50) NOT NULL)").await?;
    execute(client, "INSERT INTO dbo.mark VALUES (1, 'none')").await?;
    standin::capture(client, &["customer", "orders", "lineitem", "mark"]).await
}

/// Transactions over an order and its first item, each connection over orders of its own.
struct Load(Vec<JoinHandle<anyhow::Result<u64>>>);

impl Load {
    /// `rate`: transactions a second; as many as can be without.
    async fn start(stand_in: &StandIn, rate: Option<f64>, stop: &CancellationToken) -> anyhow::Result<Self> {
        let orders: Vec<String> = TABLES[1].rows(SCALE).skip(1).map(|row| row[0].clone()).collect();
        let mut loads = Vec::new();
        for orders in orders.chunks(orders.len().div_ceil(CONNECTIONS as usize)) {
            let pace = rate.map(|rate| tokio::time::interval(Duration::from_secs_f64(CONNECTIONS as f64 / rate)));
            loads.push(tokio::spawn(load(stand_in.client().await?, orders.to_vec(), pace, stop.clone())));
        }
        Ok(Self(loads))
    }

    /// Once it has been stopped: how many were committed.
    async fn ended(self) -> anyhow::Result<u64> {
        let mut transactions = 0;
        for load in self.0 {
            transactions += load.await??;
        }
        Ok(transactions)
    }
}

async fn load(
    mut client: Client,
    orders: Vec<String>,
    mut pace: Option<Interval>,
    stop: CancellationToken,
) -> anyhow::Result<u64> {
    let mut number = 0u64;
    while !stop.is_cancelled() {
        if let Some(pace) = &mut pace {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = pace.tick() => {}
            }
        }
        let order = &orders[(number as usize * 7919) % orders.len()];
        let sql = format!(
            "BEGIN TRANSACTION; UPDATE dbo.orders SET o_totalprice = {}.25, o_comment = 'load {number}' WHERE o_orderkey = {order}; \
             UPDATE dbo.lineitem SET l_quantity = {}.00 WHERE l_orderkey = {order} AND l_linenumber = 1; COMMIT",
            1000 + number % 90_000,
            number % 50
        );
        execute(&mut client, &sql).await?;
        number += 1;
    }
    Ok(number)
}

/// Commits a mark and waits until it can be queried: the milliseconds in between.
async fn probe(client: &mut Client, reader: &SqliteReader, mark: &str) -> anyhow::Result<f64> {
    execute(client, &format!("UPDATE dbo.orders SET o_comment = '{mark}' WHERE o_orderkey = {PROBED}")).await?;
    let committed = Instant::now();
    let (key, expected) = (EntityKey::from_parts([PROBED.to_string()]), format!("\"{mark}\""));
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    loop {
        // Before the first load the sink may not have its tables yet.
        if let Ok(Some(stored)) = reader.get("order", &key).await
            && stored.document.contains(&expected)
        {
            return Ok(committed.elapsed().as_secs_f64() * 1000.0);
        }
        if committed.elapsed() > LIMIT {
            bail!("{mark:?} was committed, and is not queryable after {LIMIT:?}");
        }
        poll.tick().await;
    }
}

/// Commits a mark and waits until it has been captured.
async fn probe_capture(client: &mut Client, mark: &str) -> anyhow::Result<f64> {
    execute(client, &format!("UPDATE dbo.mark SET text = '{mark}' WHERE id = 1")).await?;
    let committed = Instant::now();
    let mut poll = tokio::time::interval(Duration::from_millis(1));
    loop {
        let row =
            client.simple_query("SELECT TOP 1 text FROM cdc.dbo_mark_CT ORDER BY __$start_lsn DESC, __$operation DESC").await?;
        if let Some(row) = row.into_row().await?
            && row.try_get::<&str, _>(0)? == Some(mark)
        {
            return Ok(committed.elapsed().as_secs_f64() * 1000.0);
        }
        if committed.elapsed() > LIMIT {
            bail!("{mark:?} was committed, and is not captured after {LIMIT:?}");
        }
        poll.tick().await;
    }
}
