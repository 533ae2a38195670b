//! The command line of Tributary, and the wiring of its parts.

mod cli;
mod commands;
mod config;
mod dead_letters;
#[cfg(feature = "demo")]
mod demo;
mod feed;
mod load_progress;
mod logging;
mod pipeline;
mod rebuild;
mod resnapshot;
mod savepoints;
mod snapshot_progress;
mod status;
mod turns;

use std::process::ExitCode;

use clap::Parser;

/// RocksDB, JSON and rows allocate much and small: a general-purpose allocator is where a tenth of the time would go otherwise.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    logging::start(cli.log_format, cli.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(commands::run(cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            ExitCode::FAILURE
        }
    };
    // Blocking threads that still wait for a source must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    code
}

/// What went wrong, and why: of the causes, those that no message before them has quoted.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn an_error_tells_each_cause_once() {
        let error = anyhow!("address in use").context("cannot listen (address in use); choose another port").context("the API");
        assert_eq!(super::told(&error), "the API: cannot listen (address in use); choose another port");
    }
}
