//! Logs go to standard error, so that standard output is left to what a command answers. Progress bars are drawn there too: they step aside for each line.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;

use clap::ValueEnum;
use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Where progress bars are drawn; hidden where standard error is no terminal.
pub(crate) fn bars() -> &'static MultiProgress {
    &BARS
}

/// Standard error, without the bars while a line is written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        bars().suspend(|| std::io::stderr().write(line))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Starts logging. `RUST_LOG` overrides the level that `verbose` stands for.
pub(crate) fn start(format: LogFormat, verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let ours = [
        "tributary",
        "schemas",
        "streams",
        "archive",
        "importer",
        "source",
        "joiner",
        "checkpoints",
        "sinks",
        "api",
        "sqlserver",
        "tds",
        "cdc",
    ];
    let directives = ours.iter().fold(
        // The driver warns of every connection without TLS, which the configuration asked for.
        "warn,tiberius=error".to_owned(),
        |all, name| format!("{all},{name}={level}"),
    );
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| AboveBars);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
