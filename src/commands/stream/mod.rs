//! `tributary stream`: makes, shows and reads the streams of a configuration.

mod account;
mod check;
mod count;
mod create;
mod decoding;
mod list;
mod policy;
mod reading;
mod shown;
mod tail;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use schemas::contract::Contract;
use schemas::progress::StreamName;
use streams::iam::Role;
use streams::{Layout, Provider, StreamSettings};

pub(super) use check::streams as check;

use crate::cli::StreamCommand;
use crate::config::Config;

/// Runs one of the commands. Where AWS refuses a call, the policy that allows it stands below the error.
pub(super) async fn run(command: StreamCommand) -> anyhow::Result<ExitCode> {
    let (result, config, role) = match &command {
        StreamCommand::Create(args) => (create::run(args).await, &args.config, Role::Operator),
        StreamCommand::List(args) => (list::run(args).await, &args.config, Role::Operator),
        StreamCommand::Tail(args) => (tail::run(args).await, &args.config, Role::Consumer),
        StreamCommand::Count(args) => (count::run(args).await, &args.config, Role::Consumer),
        StreamCommand::Policy(args) => return policy::run(args),
    };
    result.map_err(|error| {
        let policy = Config::load_one(config).ok().and_then(|config| policy::remedy(&config, role, &error));
        match policy {
            Some(policy) => anyhow::anyhow!("{error:#}\n{MENDS}\n{policy}"),
            None => error,
        }
    })
}

/// What stands above a policy.
pub(super) const MENDS: &str = "The IAM policy that mends it:";

/// The streams that a configuration names: those of events, by table or shared, then progress and dead letters.
pub(super) struct Named {
    pub(super) events: Vec<StreamName>,
    pub(super) progress: StreamName,
    pub(super) dead_letters: StreamName,
}

impl Named {
    pub(super) fn new(config: &Config, contracts: &[Contract]) -> Self {
        let of_table = |contract: &Contract| config.layout().stream(config.prefix(), &contract.table.name);
        let mut events: Vec<StreamName> = contracts.iter().map(of_table).collect();
        events.sort();
        events.dedup();
        let prefix = config.prefix();
        Self { events, progress: Layout::progress_stream(prefix), dead_letters: importer::dead_letter_stream(prefix) }
    }

    /// Each of them, with the number of shards that it is made with.
    pub(super) fn with_shards(&self, config: &Config) -> Vec<(&StreamName, u32)> {
        let events = self.events.iter().map(|stream| (stream, config.streams.shards));
        // Progress records are one sequence, and dead letters are few.
        events.chain([(&self.progress, 1), (&self.dead_letters, 1)]).collect()
    }

    pub(super) fn all(&self) -> Vec<StreamName> {
        self.events.iter().chain([&self.progress, &self.dead_letters]).cloned().collect()
    }
}

/// Each stream of the configuration, with what it is to be like.
pub(super) fn wanted<'n>(named: &'n Named, config: &Config, provider: &dyn Provider) -> Vec<(&'n StreamName, StreamSettings)> {
    named.with_shards(config).into_iter().map(|(stream, shards)| (stream, provider.settings(shards))).collect()
}

/// The configuration's stream store.
async fn open(config: &Config) -> anyhow::Result<Arc<dyn Provider>> {
    if config.streams.provider == streams::config::Config::Memory {
        bail!("streams.provider is `memory`: such streams are in the process that runs, and nobody else can see them");
    }
    Ok(streams::config::open(&config.streams.provider).await?)
}

/// Writes a line to standard output. False where nobody reads it any more, such as `head` that has enough.
fn put_line(line: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
