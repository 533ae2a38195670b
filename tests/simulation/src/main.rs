//! A deterministic simulation of importer, streams, joiner and sinks.
//!
//! One thread, one seed: the time, randomness, the network to the source, the streams, the targets and what a crash leaves on the disk all follow from it ([`kernel`], [`network`], [`streams`], [`target`], [`disk`]), and so a seed that is
//! run twice gives the same [`history`], to the byte. The importer and the joiner are the real ones, down to the driver's packets and RocksDB's files; the source is a model ([`shop`]) behind SQL Server's protocol ([`server`]).
//! [`run`] lets a run's faults happen, waits until everything has come to rest, and hands the history to the [`auditor`], which holds it against the invariants and knows nothing of the code under test.
//!
//! `docs/simulation.md` says what is simulated and what is not, and how to replay a seed.

mod auditor;
mod content;
mod database;
mod dice;
mod disk;
mod faults;
mod freeze;
mod history;
mod joined;
mod kernel;
mod lease;
mod network;
mod plan;
mod processes;
mod run;
mod server;
mod shares;
mod shop;
mod soak;
mod storage;
mod streams;
mod target;
/// Whose turn it is, of several joiners of one share: as the pipeline has it.
#[path = "../../../src/turns.rs"]
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::faults::Sabotage;

#[derive(Parser)]
#[command(about = "A deterministic simulation of importer, streams, joiner and sinks")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed and audits its history.
    Run {
        seed: u64,
        /// Writes the history there, a line of JSON for each event.
        #[arg(long)]
        history: Option<PathBuf>,
        /// Breaks something on purpose, which the auditor has to find.
        #[arg(long)]
        sabotage: Option<Sabotage>,
        /// Says what importer and joiner say.
        #[arg(long)]
        log: bool,
    },
    /// Runs one seed after the other, each in a process of its own and each twice, and reports what was found.
    Soak {
        #[arg(long, default_value_t = 1)]
        first_seed: u64,
        /// Ends after so many seeds.
        #[arg(long, default_value_t = u64::MAX)]
        seeds: u64,
        /// Ends after so long.
        #[arg(long, default_value_t = u64::MAX)]
        seconds: u64,
        /// Seeds that are run side by side.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { seed, history, sabotage, log } => run::one(seed, history.as_deref(), sabotage, log),
        Command::Soak { first_seed, seeds, seconds, jobs } => soak::run(first_seed, seeds, seconds, jobs),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
