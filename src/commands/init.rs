//! `tributary init`: from a database's catalog to a pipeline that runs as it is.

use std::process::ExitCode;

use anyhow::Context;
use importer::init::Inferred;

use crate::cli::InitArgs;

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
    let report = importer::init::run(&source, &args.out, |inferred| configuration(args, &source, inferred)).await?;
    for path in &report.written {
        println!("wrote {}", path.display());
    }
    for path in &report.kept {
        println!("kept  {} (it was there already)", path.display());
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    let config = args.out.join("tributary.yaml");
    println!("\nNext: tributary check --config {0}, then tributary run --config {0}", config.display());
    Ok(ExitCode::SUCCESS)
}

/// The text of `tributary.yaml`. A password in the URL is not written: the file refers to where it is kept.
fn configuration(args: &InitArgs, source: &importer::Source, inferred: &Inferred) -> String {
    let options = args.source.split_once('?').map(|(_, options)| format!("?{options}")).unwrap_or_default();
    let name: String = source
        .database
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c.to_ascii_lowercase() } else { '-' })
        .collect();
    let variable = args.password_env.as_deref().unwrap_or("MSSQL_PASSWORD");
    let entities: Vec<&str> = inferred.entities.iter().map(|entity| entity.entity.as_str()).collect();
    format!(
        "# The pipeline of {database}, as `tributary init` proposes it. Every key is explained in the project's src/config.rs.\n\
         source:\n  name: {name}\n  url: {url}\n  password: {{env: {variable}}}\n  poll_interval: 100ms\n\
         streams:\n  # A log in a folder. For Kinesis: {{kinesis: {{region: eu-central-1}}}}\n  provider: {{embedded: {{path: data/streams}}}}\n\
         # Entities: {entities}. Their definitions are in schemas/entities.\n\
         sinks:\n  - {{type: sqlite, path: data/entities.db}}\n\
         \x20 # - {{type: postgres, url: {{env: ENTITIES_URL}}}}\n\
         api:\n  listen: 127.0.0.1:8080\n",
        database = source.database,
        url = serde_json::Value::from(format!("{source}{options}")),
        entities = entities.join(", "),
    )
}
