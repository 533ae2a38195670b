//! What each command does.

mod api_client;
mod archive;
mod check;
mod completion;
mod dead_letter;
mod entity;
mod init;
mod replay;
mod savepoint;
mod schema;
mod snapshot;
#[cfg(feature = "demo")]
mod sqlserver;
mod status;
mod stream;
mod verify;

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::cli::{Command, ConfigArgs, SchemaCommand};
use crate::config::Config;
use crate::pipeline::{Archiving, Parts, Pipeline};
use crate::{load_progress, rebuild, snapshot_progress};

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => crate::demo::run(args).await,
        Command::Init(args) => init::run(&args).await,
        Command::Check(args) => check::run(&args).await,
        Command::Schema(SchemaCommand::Diff(args)) => schema::diff(&args).await,
        Command::Entity(command) => entity::run(&command),
        Command::Run(args) => {
            pipeline(&args, Parts { importer: true, joiner: true, api: true, archive: Archiving::WhereConfigured }).await
        }
        Command::Importer(args) => pipeline(&args, Parts { importer: true, ..Parts::NONE }).await,
        Command::Joiner(args) => pipeline(&args, Parts { joiner: true, api: true, ..Parts::NONE }).await,
        Command::Api(args) => pipeline(&args, Parts { api: true, ..Parts::NONE }).await,
        Command::Archive(args) => pipeline(&args, Parts { archive: Archiving::Always, ..Parts::NONE }).await,
        Command::Replay(args) => replay::run(args).await,
        Command::Verify(args) => verify::run(&args).await,
        Command::Snapshot(args) => snapshot::run(&args).await,
        Command::DeadLetter(command) => dead_letter::run(command).await,
        Command::Savepoint(command) => savepoint::run(command).await,
        Command::Restore(args) => savepoint::restore(args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Stream(command) => stream::run(command).await,
        #[cfg(feature = "demo")]
        Command::Sqlserver(args) => sqlserver::run(args).await,
        Command::Completion { shell } => {
            completion::run(shell);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Runs parts of the pipeline until they fail or the process is told to stop.
async fn pipeline(args: &ConfigArgs, parts: Parts) -> anyhow::Result<ExitCode> {
    // Once more whenever a state has been built for other definitions.
    while run_once(args, parts).await? {}
    Ok(ExitCode::SUCCESS)
}

/// Answers whether it is to be run again.
async fn run_once(args: &ConfigArgs, parts: Parts) -> anyhow::Result<bool> {
    let config = Config::load(&args.config)?;
    let state = config.state_dir();
    let pipeline = Pipeline::start(config, parts).await?;
    if let Some(address) = pipeline.api_address() {
        println!("API on http://{address}");
    }
    let over = CancellationToken::new();
    let loads = pipeline.joiner().map(|joiner| tokio::spawn(load_progress::show(joiner, over.clone())));
    let bars = pipeline.importers().map(|importer| tokio::spawn(snapshot_progress::show(importer, over.clone())));
    let bars: Vec<_> = bars.chain(loads).collect();
    let ended = tokio::select! {
        ended = pipeline.failed() => ended.map(|()| false),
        interrupted = interrupted() => interrupted.map(|()| false),
        () = pipeline.rebuilt() => Ok(true),
    };
    over.cancel();
    for bar in bars {
        bar.await?;
    }
    let again = ended?;
    pipeline.stop().await?;
    if again {
        rebuild::take_over(&state)?;
    }
    Ok(again)
}

/// Rows below a head, in columns, indented by two.
fn aligned<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("  {}", cells.join("  ")).trim_end().to_owned() + "\n"
    };
    all().map(line).collect()
}

/// Returns at SIGINT or SIGTERM.
pub(crate) async fn interrupted() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// How to reach the stand-in with clients that people have.
#[cfg(feature = "demo")]
pub(crate) fn connect_hints(address: std::net::SocketAddr, database: &str, password: &str) -> Vec<String> {
    let (host, port) = (address.ip(), address.port());
    vec![
        format!("sqlcmd -S {host},{port} -U sa -P '{password}' -C -d {database}"),
        format!("TDSVER=7.4 tsql -H {host} -p {port} -U sa -P '{password}' -D {database}"),
        format!("jdbc:sqlserver://{host}:{port};databaseName={database};user=sa;password={password};encrypt=false"),
    ]
}
