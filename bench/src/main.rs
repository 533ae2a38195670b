//! The benchmarks: `cargo run --release -p bench -- [--only NAMES] [--scales 0.1,0.5] [--out FILE]`.
//!
//! Everything measured runs in a process of its own (this program as `bench child …`, or the peer's), one after the other, so that its memory and its processor time are its own; a
//! peer reads the same rows on the same machine in the same run. What is prepared beforehand is not measured: the rows, the streams, the captured changes.
//! [`joining`] measures the joiner, [`growth`] a state ten times as large, [`fan_out`] a row that a million entities show, [`importing`] the importer, [`decoding`] what it does with a row, [`encodings`] the reading of events, [`embedded`] the log in a directory, [`mod@archive`] the archive, [`latency`] the whole pipeline, [`kinesis`] the
//! way through Kinesis, [`sns`] that into a topic, [`sink_down`] what a second sink costs, [`sql`] that into MySQL and SQLite.

mod archive;
mod decoding;
mod documents;
mod dynamodb;
mod embedded;
mod encodings;
mod fan_out;
mod growth;
mod importing;
mod join;
mod joining;
mod kinesis;
#[cfg(feature = "arrow")]
mod lake;
mod latency;
mod peers;
mod process;
mod results;
mod rows;
mod sink_down;
mod sns;
mod sql;
mod standin;
mod stream;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use results::Figure;
use stream::{Input, Shape};
use streams::Layout;

/// The allocator of the product's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(about = "Measures Tributary against its peers")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only the figures whose names begin with one of these, comma-separated.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// TPC-H scale factors of the joiner's figures.
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.5")]
    scales: Vec<f64>,
    /// The smaller of the two scale factors between which the state grows tenfold.
    #[arg(long, default_value_t = 0.1)]
    growth: f64,
    /// Where the figures are written as JSON.
    #[arg(long, default_value = "bench/results.json")]
    out: PathBuf,
    /// Transactions of the joiner's updates for each 0.1 of scale: enough that they tell in a peer that is only ever timed from its start.
    #[arg(long, default_value_t = 100_000)]
    transactions: usize,
    /// How the joiner's tables are laid out over streams: `table` or `shared`.
    #[arg(long, value_parser = layout, default_value = "table")]
    layout: Layout,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A measured process.
    #[command(hide = true, subcommand)]
    Child(Child),
    /// Writes the joiner's input into a folder, for a profiler: `perf record bench child join FOLDER --updates`.
    Input {
        folder: PathBuf,
        /// With zstd.
        #[arg(long)]
        packed: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Child {
    Join(join::JoinArgs),
    Restart(join::RestartArgs),
    FanOut(fan_out::FanOutArgs),
    Copy(documents::CopyArgs),
    Decode,
    Encoding(encodings::EncodingArgs),
    StandIn,
    Sns,
    Sql(sql::SqlArgs),
    KinesisStub(kinesis::StubArgs),
    Kinesis(kinesis::KinesisArgs),
    Import(importing::ImportArgs),
    Log(embedded::LogArgs),
    Archive(archive::ArchiveArgs),
    Pipeline(latency::PipelineArgs),
}

/// Everything generated comes from this seed.
const SEED: u64 = 7;

fn layout(text: &str) -> Result<Layout, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected `table` or `shared`".to_owned())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    match cli.command.take() {
        Some(Command::Child(child)) => return run(child).await,
        Some(Command::Input { folder, packed }) => {
            let scale = cli.scales.first().copied().unwrap_or(0.1);
            let input = Input::write(folder, Shape { packed, ..cli.shape(scale) }).await?;
            println!("{}: {} rows, then {} changes", input.folder.display(), input.published.rows, input.published.changes);
            return Ok(());
        }
        None => {}
    }
    let figures = measure(&cli).await?;
    results::print(&figures);
    results::write(&cli.out, &figures)
}

async fn run(child: Child) -> anyhow::Result<()> {
    match child {
        Child::Join(args) => join::run(args).await,
        Child::Restart(args) => join::restart(args).await,
        Child::FanOut(args) => fan_out::run(args).await,
        Child::Copy(args) => documents::copy(args).await,
        Child::Decode => decoding::run(),
        Child::Encoding(args) => encodings::run(&args),
        Child::Sql(args) => sql::run(&args).await,
        Child::StandIn => standin::serve().await,
        Child::Sns => Box::pin(sns::run()).await,
        Child::KinesisStub(args) => kinesis::serve(&args).await,
        Child::Kinesis(args) => kinesis::run(args).await,
        Child::Import(args) => importing::run(args).await,
        Child::Log(args) => embedded::run(args).await,
        Child::Archive(args) => archive::run(args).await,
        Child::Pipeline(args) => latency::pipeline(args).await,
    }
}

impl Cli {
    /// The joiner's input at a scale.
    fn shape(&self, scale: f64) -> Shape {
        let transactions = (self.transactions as f64 * (scale / 0.1).max(1.0)) as usize;
        Shape { layout: self.layout, scale, transactions, packed: false, skewed: false }
    }

    /// Whether any of the named figures is wanted.
    fn wants(&self, names: &[&str]) -> bool {
        self.only.is_empty() || names.iter().any(|name| self.only.iter().any(|only| name.starts_with(only.as_str())))
    }
}

async fn measure(cli: &Cli) -> anyhow::Result<Vec<Figure>> {
    let folder = tempfile::Builder::new().prefix("tributary-bench-").tempdir()?;
    let mut figures = Vec::new();
    let place = |name: &str| -> anyhow::Result<PathBuf> {
        let place = folder.path().join(name);
        std::fs::create_dir_all(&place)?;
        Ok(place)
    };
    if cli.wants(&["snapshot-vs-debezium"]) {
        println!("Snapshot of the stand-in …");
        figures.push(importing::snapshot(&place("snapshot")?).await?);
    }
    if cli.wants(&["tail-vs-debezium"]) {
        println!("Tail of the stand-in …");
        figures.push(importing::tail(&place("tail")?).await?);
    }
    if cli.wants(&["decode-core"]) {
        println!("Decoding, validating and encoding …");
        figures.push(decoding::figure()?);
    }
    if cli.wants(&["decode-json", "decode-avro", "decode-protobuf", "decode-zstd", "event-bytes"]) {
        println!("Reading events in each encoding …");
        figures.extend(encodings::figures()?);
    }
    if cli.wants(&["kinesis-put", "kinesis-get", "aggregation-gain", "kinesis-latency"]) {
        println!("Kinesis …");
        figures.extend(tokio::task::spawn_blocking(kinesis::figures).await??);
    }
    if cli.wants(&["log-append", "log-read"]) {
        println!("The embedded log …");
        figures.extend(embedded::figures(&place("log")?)?);
    }
    if cli.wants(&["archive-write", "archive-replay"]) {
        println!("The archive …");
        figures.extend(archive::figures(&place("archive")?).await?);
    }
    if cli.wants(&["dynamodb-vs-raw"]) {
        println!("DynamoDB …");
        figures.push(dynamodb::figure().await?);
    }
    #[cfg(feature = "arrow")]
    if cli.wants(&["lake-vs-arrow"]) {
        println!("The lake …");
        figures.push(lake::figure(&place("lake")?).await?);
    }
    if cli.wants(&["sns-vs-raw"]) {
        println!("SNS …");
        figures.push(tokio::task::spawn_blocking(sns::figure).await??);
    }
    if cli.wants(&["mysql-vs-raw", "sqlite-vs-raw"]) {
        println!("Into MySQL and SQLite …");
        figures.extend(tokio::task::spawn_blocking(sql::figures).await??);
    }
    if cli.wants(&["latency"]) {
        println!("Commit to queryable …");
        figures.extend(latency::measure(&place("latency")?).await?);
    }
    if cli.wants(&["fan-out"]) {
        println!("A row that a million entities show …");
        let place = place("fan-out")?;
        figures.extend(tokio::task::spawn_blocking(move || fan_out::figures(&place)).await??);
    }
    if cli.wants(&["growth", "restart", "state-bytes", "checkpoint"]) {
        figures.extend(grow(cli, folder.path()).await?);
    }
    for (nth, &scale) in cli.scales.iter().enumerate() {
        let flink = cli.wants(&["first-load-vs-flink", "updates-vs-flink"]);
        let postgres = nth == 0 && cli.wants(&["postgres-vs-copy", "postgres-updates-vs-copy"]);
        let down = nth == 0 && cli.wants(&["one-sink-more", "sink-down"]);
        let skewed = nth == 0 && cli.wants(&["skewed-updates"]);
        if !flink && !postgres && !down && !skewed {
            continue;
        }
        println!("Writing the input of scale {scale} …");
        let input = Input::write(folder.path().join(format!("scale-{scale}")), cli.shape(scale)).await?;
        let other = match skewed {
            true => Some(Input::write(folder.path().join("skewed"), Shape { skewed, ..cli.shape(scale) }).await?),
            false => None,
        };
        let work = move || -> anyhow::Result<Vec<Figure>> {
            let mut figures = Vec::new();
            if let Some(skewed) = &other {
                figures.push(joining::skewed(&input, skewed)?);
                std::fs::remove_dir_all(&skewed.folder)?;
            }
            if flink {
                figures.extend(joining::against_flink(&input)?);
            }
            if down {
                figures.extend(sink_down::figures(&input)?);
            }
            if postgres {
                figures.extend(joining::against_copy(&input)?);
            }
            std::fs::remove_dir_all(&input.folder)?;
            Ok(figures)
        };
        figures.extend(tokio::task::spawn_blocking(work).await??);
    }
    Ok(figures)
}

/// The same number of transactions on a state and on one ten times as large.
async fn grow(cli: &Cli, folder: &std::path::Path) -> anyhow::Result<Vec<Figure>> {
    let mut sizes = Vec::new();
    let mut figures = Vec::new();
    for (nth, scale) in [cli.growth, cli.growth * 10.0].into_iter().enumerate() {
        println!("Writing the packed input of scale {scale} …");
        let shape = Shape { packed: true, transactions: cli.transactions, ..cli.shape(scale) };
        let input = Input::write(folder.join(format!("growth-{scale}")), shape).await?;
        let work = move || -> anyhow::Result<_> {
            let size = growth::size(&input)?;
            let checkpoints = if nth == 0 { growth::checkpoints(&input)? } else { Vec::new() };
            std::fs::remove_dir_all(&input.folder)?;
            Ok((size, checkpoints))
        };
        let (size, checkpoints) = tokio::task::spawn_blocking(work).await??;
        sizes.push(size);
        figures.extend(checkpoints);
    }
    if let [small, large] = &sizes[..] {
        figures.extend(growth::figures(small, large));
    }
    Ok(figures)
}
