//! The benchmarks: `cargo run --release -p bench -- [--only NAMES] [--scales 0.1,0.5] [--out FILE]`.
//!
//! Everything measured runs in a process of its own (this program as `bench child …`, or the peer's), one after the other, so that its memory and its processor time are its own; a
//! peer reads the same rows on the same machine in the same run. What is prepared beforehand is not measured: the rows, the streams, the captured changes.
//! [`joining`] measures the joiner, [`importing`] the importer, [`decoding`] what it does with a row, [`encodings`] the reading of events, [`embedded`] the log in a directory, [`mod@archive`] the archive, [`latency`] the whole pipeline, [`kinesis`] the
//! way through Kinesis, [`sns`] that into a topic, [`sink_down`] what a second sink costs, [`sql`] that into MySQL and SQLite.

mod archive;
mod decoding;
mod documents;
mod dynamodb;
mod embedded;
mod encodings;
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
use stream::Input;
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
    Input { folder: PathBuf },
}

#[derive(Debug, Subcommand)]
enum Child {
    Join(join::JoinArgs),
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
        Some(Command::Input { folder }) => {
            let scale = cli.scales.first().copied().unwrap_or(0.1);
            let input = Input::write(folder, cli.layout, scale, cli.transactions_at(scale), SEED).await?;
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
    fn transactions_at(&self, scale: f64) -> usize {
        (self.transactions as f64 * (scale / 0.1).max(1.0)) as usize
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
    for (nth, &scale) in cli.scales.iter().enumerate() {
        let flink = cli.wants(&["first-load-vs-flink", "updates-vs-flink"]);
        let postgres = nth == 0 && cli.wants(&["postgres-vs-copy", "postgres-updates-vs-copy"]);
        let down = nth == 0 && cli.wants(&["one-sink-more", "sink-down"]);
        if !flink && !postgres && !down {
            continue;
        }
        println!("Writing the input of scale {scale} …");
        let input =
            Input::write(folder.path().join(format!("scale-{scale}")), cli.layout, scale, cli.transactions_at(scale), SEED)
                .await?;
        let work = move || -> anyhow::Result<Vec<Figure>> {
            let mut figures = Vec::new();
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
