//! Logs go to standard error, so that standard output is left to what a command answers.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Starts logging. `RUST_LOG` overrides the level that `verbose` stands for.
pub(crate) fn start(format: LogFormat, verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let ours = ["tributary", "schemas", "streams", "importer", "joiner", "sinks", "api", "sqlserver", "tds", "cdc"];
    let directives = ours.iter().fold(
        // The driver warns of every connection without TLS, which the configuration asked for.
        "warn,tiberius=error".to_owned(),
        |all, name| format!("{all},{name}={level}"),
    );
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
