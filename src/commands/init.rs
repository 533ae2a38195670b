//! `tributary init`: from a database's catalog to a pipeline that runs as it is.

use std::process::ExitCode;

use anyhow::Context;
use importer::init::Inferred;

use crate::cli::InitArgs;

mod add;

use add::{Addition, Existing};

pub(crate) async fn run(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let password = match &args.password_env {
        Some(name) => {
            let text = std::env::var(name)
                .with_context(|| format!("the environment variable {name} (--password-env) is not set: export {name}=…"))?;
            Some(importer::Password::new(text))
        }
        None => None,
    };
    let settings = importer::SourceSettings {
        url: Some(importer::SourceUrl::new(&args.source)),
        password,
        ..importer::SourceSettings::default()
    };
    let source = importer::Source::from_settings(&settings)?;
    let config = args.out.join("tributary.yaml");
    let report = if args.add {
        add(args, &source, &Existing::read(&config)?).await?
    } else {
        importer::init::run(&source, &args.out, |inferred| configuration(args, &source, inferred)).await?
    };
    for path in &report.written {
        println!("wrote {}", path.display());
    }
    for path in &report.kept {
        println!("kept  {} (it was there already)", path.display());
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    if report.kept.contains(&config) {
        println!("note: --add adds a database to a configuration that is there");
    }
    println!("\nNext: tributary check --config {0}, then tributary run --config {0}", config.display());
    Ok(ExitCode::SUCCESS)
}

/// Adds the database to a configuration. That it can be is found before the database is asked.
async fn add(args: &InitArgs, source: &importer::Source, existing: &Existing) -> anyhow::Result<importer::init::Report> {
    let name = name(args, source);
    let text = existing.with(&Addition { name: &name, keys: &section(args, source) })?;
    let inferred = importer::init::infer(&importer::init::read_catalog(source).await?);
    existing.write(&inferred, &name, &text)
}

/// What the source is called.
fn name(args: &InitArgs, source: &importer::Source) -> String {
    let of_database = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c.to_ascii_lowercase() } else { '-' };
    args.name.clone().unwrap_or_else(|| source.database.chars().map(of_database).collect())
}

/// The keys of the section `source`. A password in the URL is not written: the file refers to where it is kept.
fn section(args: &InitArgs, source: &importer::Source) -> String {
    let options = args.source.split_once('?').map(|(_, options)| format!("?{options}")).unwrap_or_default();
    let variable = args.password_env.as_deref().unwrap_or("MSSQL_PASSWORD");
    format!(
        "  name: {name}\n  url: {url}\n  password: {{env: {variable}}}  # or {{file: /run/secrets/mssql}}, which is read at each connection\n{DEFAULTS}",
        name = name(args, source),
        url = serde_json::Value::from(format!("{source}{options}")),
    )
}

/// The text of `tributary.yaml`.
fn configuration(args: &InitArgs, source: &importer::Source, inferred: &Inferred) -> String {
    let entities: Vec<&str> = inferred.entities.iter().map(|entity| entity.entity.as_str()).collect();
    format!(
        "# The pipeline of {database}, as `tributary init` proposes it. What is commented out has the value shown where it is left out.\n\
         source:\n{section}\
         streams:\n  # A log in a folder. For Kinesis: {{kinesis: {{region: eu-central-1, retention_hours: 168}}}}\n  provider: {{embedded: {{path: data/streams}}}}\n{streams}\
         # Every event also to object storage, for replays and for joiners that begin with nothing; or {{s3: {{bucket: shop-archive, region: eu-central-1}}}}\n\
         # archive: {{store: {{local: {{path: data/archive}}}}}}\n\
         # Entities: {entities}. Their definitions are in schemas/entities.\n\
         sinks:\n  - {{type: sqlite, path: data/entities.db}}\n\
         \x20 # - {{type: postgres, url: {{env: ENTITIES_URL}}}}\n\
         api:\n  listen: 127.0.0.1:8080\n",
        database = source.database,
        section = section(args, source),
        entities = entities.join(", "),
        streams = STREAMS,
    )
}

/// The choices of the section `source`, commented out.
const DEFAULTS: &str = "  # tables: [dbo.orders, sales.*]  # default: every captured table
  # exclude: [sales.audit_*]
  # time_zone: Europe/Amsterdam    # the server's, for commit times; SQL Server 2022 and later say it themselves
  # poll_interval: 100ms
  # snapshot:
  #   mode: initial                # when_needed, never, only
  #   connections: 4
  #   chunk_rows: 20000
  #   split_rows: 50000
  #   yield_to_load: true
  #   fenced: false                # all tables as of one LSN; needs SNAPSHOT isolation
  #   # rows_per_second: 5000      # default: no limit
  # on_gap: stop                   # changes were removed before they were read: stop, resnapshot
  # on_breaking_change: stop       # a table does not fit its contract any more: stop, stop_all, dead_letter
  # on_compatible_change: report   # a new version of its contract would fit it: report, write
  # headroom_warning: 12h
  # tail_connections: 4
  # page_rows: 20000
  # tick_transactions: 10000
  # startup_patience: 30s
  # stall_check: 30s
  # lease:                         # default: a lock in the data folder, for importers on one machine
  #   postgres: {url: {env: LEASE_URL}}
  # per_table:
  #   dbo.orders:
  #     on_gap: resnapshot
  #     partition_by: customer_id
  #     mask: {email: {truncate: 3}}
  #     exclude: [internal_note]
  #     filter: \"region = 'EU'\"
";

/// The choices of the section `streams`, commented out.
const STREAMS: &str = "  # layout: shared                # all tables in one stream; table (default on Kinesis): one each
  # shards: 1                     # of a stream that is made
  # encoding: debezium_json       # avro, protobuf
  # compression: none             # zstd
";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Config;

    fn text() -> String {
        let source = "sqlserver://sa:x@db:1433/My Shop?encrypt=off".into();
        let args = InitArgs { source, password_env: None, out: ".".into(), name: None, add: false };
        let settings = importer::SourceSettings { url: Some(importer::SourceUrl::new(&args.source)), ..Default::default() };
        let source = importer::Source::from_settings(&settings).unwrap();
        configuration(&args, &source, &Inferred { contracts: vec![], entities: vec![], notes: vec![] })
    }

    /// What is commented out is what is in force without it.
    #[test]
    fn the_commented_defaults_are_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        let secret = format!("{{file: {}}}", folder.path().join("secret").display());
        let read = |text: &str| {
            let path = folder.path().join("tributary.yaml");
            std::fs::write(&path, text.replace("{env: MSSQL_PASSWORD}", &secret)).unwrap();
            format!("{:?}", Config::load(&path).unwrap().importer(Vec::new()).unwrap())
        };
        let written = text();
        assert!(!written.contains(":x@"), "{written}");
        // Those that only show what could be written stay comments.
        let examples =
            ["tables:", "exclude:", "time_zone:", "rows_per_second:", "lease:", "  postgres:", "per_table:", "  dbo.orders:"];
        let taken = |lines: &str| {
            let mut example = false;
            let taken = lines.lines().map(|line| match line.strip_prefix("  # ") {
                Some(rest) => {
                    let deeper = rest.starts_with("  ");
                    example = (deeper && example) || examples.iter().any(|start| rest.starts_with(start));
                    if example { format!("{line}\n") } else { format!("  {rest}\n") }
                }
                None => format!("{line}\n"),
            });
            taken.collect::<String>()
        };
        let fenced = "    fenced: false                # all tables as of one LSN; needs SNAPSHOT isolation\n";
        assert!(taken(DEFAULTS).contains(fenced) && taken(STREAMS).contains("  shards: 1 "));
        let all = written.replace(DEFAULTS, &taken(DEFAULTS)).replace(STREAMS, &taken(STREAMS));
        assert_eq!(read(&all), read(&written));
    }
}
