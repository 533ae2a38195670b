//! What can be typed.

#[cfg(feature = "demo")]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use schemas::{Lsn, TableName};

use crate::logging::LogFormat;

/// Turns the normalised tables of SQL Server databases into live logical entities.
///
/// Exit codes: 0 done, 1 failed (the reason is on standard error), 2 the command line is wrong.
#[derive(Debug, Parser)]
#[command(name = "tributary", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How logs are written (to standard error).
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// More logs; twice: still more. The variable RUST_LOG overrides it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Everything in one process, embedded, with a live shop database; opens a web page.
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
    /// Reads the catalog of a database; writes table contracts, entity definitions and a configuration.
    Init(InitArgs),
    /// Validates the configuration, the source's health and its permissions; says what to do.
    Check(CheckArgs),
    /// Holds the table contracts against the live database.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Explains entity definitions, and tries them on rows from a file.
    #[command(subcommand)]
    Entity(EntityCommand),
    /// Importer, joiner, sinks and API in one process.
    Run(ConfigArgs),
    /// The importer alone.
    Importer(ConfigArgs),
    /// The joiner and its sinks alone, with the API's subscriptions.
    Joiner(ConfigArgs),
    /// Queries alone, from the sink that the configuration names.
    Api(ConfigArgs),
    /// The archiver alone: what the streams hold, to object storage.
    Archive(ConfigArgs),
    /// Prints the archived events from an LSN on, each once and in the source's order, as JSON lines; or what reading them would take.
    Replay(ReplayArgs),
    /// Asks a running process how it is.
    ///
    /// Exit codes: 0 all parts work, 1 one has failed, or the process does not answer.
    Status(StatusArgs),
    /// Counts again what was published, against the source; or looks through the archive.
    ///
    /// Exit codes: 0 everything that could be counted again agrees, 1 something differs, or it failed.
    Verify(VerifyArgs),
    /// Has a running importer read a table, or a range of its keys, again.
    Snapshot(SnapshotArgs),
    /// What was set aside: events that the joiner cannot use, changes of entities that a sink does not take.
    #[command(subcommand)]
    DeadLetter(DeadLetterCommand),
    /// Checkpoints of the joiner's state that are kept under a name.
    #[command(subcommand)]
    Savepoint(SavepointCommand),
    /// Makes a checkpoint the joiner's state, in place of the one that is there; the process has to be stopped. Its next start goes on from there.
    Restore(RestoreArgs),
    /// Makes, shows and reads the streams.
    #[command(subcommand)]
    Stream(StreamCommand),
    /// The SQL Server stand-in alone.
    #[cfg(feature = "demo")]
    Sqlserver(SqlserverArgs),
    /// Prints a completion script for a shell.
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file. Paths inside it are relative to its folder.
    #[arg(long, short, default_value = "tributary.yaml", env = "TRIBUTARY_CONFIG")]
    pub(crate) config: PathBuf,
}

/// A configuration, and which of its sources is meant.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The source that is meant, where the configuration has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) source: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The source whose login it is, where there are several.
    #[arg(long, value_name = "NAME", requires = "print_grants")]
    pub(crate) source: Option<String>,
    /// Print the T-SQL script that gives a login the least that it needs, and check nothing else.
    #[arg(long)]
    pub(crate) print_grants: bool,
    /// The login of the script; default: the one that the configuration connects with.
    #[arg(long, requires = "print_grants")]
    pub(crate) login: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// Shows how the captured tables differ from their contracts, and which entities that touches.
    ///
    /// Exit codes: 0 every row that the tables can hold keeps its contract, 3 contracts need a new version, which --write makes, 4 some change breaks a
    /// contract, 1 failed.
    Diff(SchemaDiffArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum EntityCommand {
    /// What an entity costs: its tables and what is kept of them, the state's indexes, and how far a change of each table reaches.
    Explain(EntityExplainArgs),
    /// How the definitions differ from those that the joiner's state serves, and which way they come to be served: in place, or by a rebuild. Also beside a joiner that runs.
    ///
    /// Exit codes: 0 they are served, or will be in place, 2 it takes a rebuild, 1 failed.
    Diff(EntityDiffArgs),
    /// Runs a definition on the rows of a file and prints the documents; compares them where the file says what to expect.
    ///
    /// Exit codes: 0 as expected, or nothing was expected, 2 documents differ, 1 failed.
    Test(EntityTestArgs),
    /// Prints the JSON Schema of entity definitions, for editors.
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct EntityExplainArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The entity's name; default: all of them.
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EntityDiffArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EntityTestArgs {
    /// YAML or JSON with `definition`, `tables` and, where wanted, `contracts` and `expect`; docs/entities.md has an example. Paths inside it are relative to its folder.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaDiffArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// Put compatible changes in force as new versions of the contracts (the version before stays beside it), and write a contract for a table that has none.
    #[arg(long)]
    pub(crate) write: bool,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The source: sqlserver://user@host:1433/database?encrypt=on. The password is best left out and given by --password-env.
    #[arg(long)]
    pub(crate) source: String,
    /// The environment variable that holds the password; the written configuration refers to it.
    #[arg(long, value_name = "NAME")]
    pub(crate) password_env: Option<String>,
    /// The folder to write to. Files that exist are never overwritten, but for the configuration with --add.
    #[arg(long, default_value = ".")]
    pub(crate) out: PathBuf,
    /// What the source is called; default: as its database.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Adds the database to the configuration that is there, as one more source that entities are made of. What else the file says stays as it is.
    #[arg(long)]
    pub(crate) add: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Count the changes of every published range again in the change tables.
    /// Where the configuration has several sources, `--source=NAME` says of which.
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, required_unless_present = "archive")]
    pub(crate) source: Option<Option<String>>,
    /// Look through the archive: every object against its checksum, and the events against what progress records promise; of several sources, the archives of all.
    #[arg(long, conflicts_with = "source")]
    pub(crate) archive: bool,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// Makes the streams of the configuration that do not exist, and tells where those that do are not as configured.
    ///
    /// Exit codes: 0 all are there as configured, 3 some differ (and are left so), 1 failed.
    Create(StreamCreateArgs),
    /// Shows streams: shards, retention, encryption, size and tags.
    List(StreamListArgs),
    /// Prints events, decoded, one a line, as they come; until Ctrl-C.
    Tail(StreamTailArgs),
    /// Counts the events by table and operation, against what the progress records promised.
    ///
    /// Exit codes: 0 everything that was promised and is still kept is there, 1 something differs, or it failed.
    Count(StreamCountArgs),
    /// Prints the IAM policy under which a part of the pipeline works on Kinesis.
    Policy(StreamPolicyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StreamCreateArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// Change existing streams to what is configured: shards, retention, encryption, tags, the largest record. What would remove records is left and told.
    #[arg(long)]
    pub(crate) apply: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StreamListArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// All streams of the store, not only those with the configuration's prefix.
    #[arg(long)]
    pub(crate) all: bool,
    /// Answer in JSON, with every shard.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StreamTailArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// Events of this table alone, such as dbo.orders; may be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Events of the row with this key alone: its columns in their order, joined by commas (a comma within one is written %2C).
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) key: Option<String>,
    /// This stream instead of the configuration's, whoever writes it: records as they are, taken out of aggregates; may be given several times.
    #[arg(long = "stream", value_name = "STREAM", conflicts_with_all = ["tables", "key", "no_events"])]
    pub(crate) streams: Vec<String>,
    /// Where to begin: `start`, `end`, an LSN, a time (2026-01-31T12:00:00Z, or how long ago: 10m), or after a record: stream/shard/sequence number.
    #[arg(long, value_name = "PLACE", default_value = "end")]
    pub(crate) from: String,
    /// Progress records as well.
    #[arg(long)]
    pub(crate) progress: bool,
    /// Dead letters as well, with the reason.
    #[arg(long)]
    pub(crate) dead_letters: bool,
    /// No events: only what --progress and --dead-letters ask for.
    #[arg(long)]
    pub(crate) no_events: bool,
    /// A JSON object a line: stream, shard, sequence number and the decoded event.
    #[arg(long, conflicts_with = "raw")]
    pub(crate) json: bool,
    /// The records as they are; what is not text of one line, in base64.
    #[arg(long)]
    pub(crate) raw: bool,
    /// End after so many lines.
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// End where the streams stand now, instead of waiting for more.
    #[arg(long)]
    pub(crate) no_follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StreamCountArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// This table alone; may be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Ranges that begin at this LSN or later.
    #[arg(long, value_name = "LSN")]
    pub(crate) from: Option<Lsn>,
    /// Ranges that end at this LSN or earlier.
    #[arg(long, value_name = "LSN")]
    pub(crate) to: Option<Lsn>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StreamPolicyArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// For the importer, for the joiner and who else reads, or for who makes streams.
    #[arg(long, value_enum)]
    pub(crate) role: StreamRole,
    /// The AWS account of the streams; default: any.
    #[arg(long)]
    pub(crate) account: Option<String>,
    /// The ARN of the KMS key that encrypts them, where the configuration does not name it by its ARN.
    #[arg(long, value_name = "ARN")]
    pub(crate) key: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StreamRole {
    Producer,
    Consumer,
    Operator,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) config: SourceArgs,
    /// What was committed after this LSN; default: from the beginning, with the rows of the snapshot.
    #[arg(long, value_name = "LSN")]
    pub(crate) from: Option<Lsn>,
    /// Up to and with this LSN; default: up to where the archive is complete.
    #[arg(long, value_name = "LSN")]
    pub(crate) to: Option<Lsn>,
    /// Events of this table alone, such as dbo.orders; may be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    pub(crate) tables: Vec<TableName>,
    /// Go on where the archive says that something is missing, and say it in the log, instead of ending there.
    #[arg(long)]
    pub(crate) allow_gaps: bool,
    /// Print no events, but the objects that hold them, their sizes, and where the live streams follow.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// That in JSON.
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
}

/// How to reach a running process.
#[derive(Debug, Args)]
pub(crate) struct ApiArgs {
    /// Where the API listens.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    pub(crate) url: String,
    /// The environment variable that holds the API's bearer token.
    #[arg(long, value_name = "NAME")]
    pub(crate) token_env: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// The source's name; default: the one that the process imports.
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// The table, such as dbo.orders.
    #[arg(long)]
    pub(crate) table: TableName,
    /// The first key: its columns in their order, joined by commas (a comma within one is written %2C). Default: from the first row.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub(crate) from: Option<String>,
    /// The last key. Default: to the last row.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub(crate) to: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLetterCommand {
    /// Lists them, a line each.
    List(DeadLetterListArgs),
    /// Shows one in full, as JSON: the reason, and the beginning of the document or the event.
    Show(DeadLetterShowArgs),
    /// Has the entities of refused changes written again, as they stand then (those of a stopped process when it runs again).
    Retry(DeadLetterChangeArgs),
    /// Forgets them.
    Drop(DeadLetterChangeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SavepointCommand {
    /// Makes a checkpoint now, and keeps it until it is dropped.
    Create(SavepointCreateArgs),
    /// Shows the checkpoints that there are, with the names of savepoints.
    List(SavepointListArgs),
    /// Takes a savepoint's name away: it is then a checkpoint like others.
    Drop(SavepointDropArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SavepointCreateArgs {
    /// Default: the present time.
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Make it of the state that this configuration names, of a process that does not run.
    #[arg(long, short, conflicts_with_all = ["url", "token_env"])]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SavepointListArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SavepointDropArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// A savepoint's name, a checkpoint's number, or `latest`; of another instance's, behind its share: `0/2:latest`. Several are merged, and what is not of the configuration's share is left out.
    #[arg(required = true)]
    pub(crate) which: Vec<String>,
    /// This directory, which has to be empty, instead of the configuration's state.
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
}

/// Where dead letters are.
#[derive(Debug, Args)]
pub(crate) struct DeadLetterPlace {
    #[command(flatten)]
    pub(crate) api: ApiArgs,
    /// Work on the state that this configuration names, of a process that does not run.
    #[arg(long, short, conflicts_with_all = ["url", "token_env"])]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetterListArgs {
    #[command(flatten)]
    pub(crate) place: DeadLetterPlace,
    /// Those of this sink alone.
    #[arg(long)]
    pub(crate) sink: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetterShowArgs {
    #[command(flatten)]
    pub(crate) place: DeadLetterPlace,
    /// As `list` shows it.
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeadLetterChangeArgs {
    #[command(flatten)]
    pub(crate) place: DeadLetterPlace,
    #[command(flatten)]
    pub(crate) which: DeadLetterWhich,
}

/// Which letters are meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct DeadLetterWhich {
    /// This one, as `list` shows it.
    pub(crate) id: Option<String>,
    /// All of this sink.
    #[arg(long)]
    pub(crate) sink: Option<String>,
    /// All that there are.
    #[arg(long)]
    pub(crate) all: bool,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End by itself after this time, with a summary and a comparison of every entity with SQL.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Transactions a second.
    #[arg(long, default_value_t = 50.0)]
    pub(crate) rate: f64,
    /// The port of the web page and the API; 0: any free one.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// The port of the SQL Server stand-in; 0: any free one.
    #[arg(long, default_value_t = 1433)]
    pub(crate) sql_port: u16,
    /// Where to keep everything; default: a temporary folder that is removed at the end.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// Seed of the generator of rows and transactions.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(crate) struct SqlserverArgs {
    #[arg(long, default_value = "127.0.0.1:1433")]
    pub(crate) listen: SocketAddr,
    /// Where to keep the databases; default: in memory.
    #[arg(long)]
    pub(crate) data: Option<PathBuf>,
    /// The database to create.
    #[arg(long, default_value = "shop")]
    pub(crate) database: String,
    /// The password of the login sa.
    #[arg(long, default_value = "Tributary-1", env = "MSSQL_SA_PASSWORD", hide_env_values = true)]
    pub(crate) sa_password: String,
    /// How often the capture job runs (SQL Server's own default is 5s).
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub(crate) capture_interval: Duration,
}

/// `250ms`, `30s`, `5m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..split].parse().map_err(|_| format!("{text:?} is not a duration: write 250ms, 30s, 5m or 2h"))?;
    let seconds = match &text[split..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("{text:?} has no unit that is known: write 250ms, 30s, 5m or 2h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7200));
        for wrong in ["", "5", "s", "-1s", "5 s", "1e99h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
