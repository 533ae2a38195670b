//! `tributary savepoint` and `tributary restore`: checkpoints of the joiner's state that have a name, and a state made of any again.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use checkpoints::{Checkpoints, Listed, Which, now_ms};
use hyper::Method;
use serde_json::{Value, json};

use super::{aligned, api_client};
use crate::cli::{RestoreArgs, SavepointCommand, SavepointCreateArgs, SavepointListArgs};
use crate::config::Config;
use crate::pipeline::plans;
use crate::savepoints::told;

pub(crate) async fn run(command: SavepointCommand) -> anyhow::Result<ExitCode> {
    match command {
        SavepointCommand::Create(args) => create(args).await?,
        SavepointCommand::List(args) => list(&args).await?,
        SavepointCommand::Drop(args) => {
            let checkpoints = open(&Config::load(&args.config.config)?).await?;
            if !checkpoints.drop_savepoint(&args.name).await? {
                bail!("there is no savepoint {:?}: `tributary savepoint list` shows those that there are", args.name);
            }
            println!("savepoint {} dropped: what it alone held is removed with the next checkpoint.", args.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(config: &Config) -> anyhow::Result<Checkpoints> {
    let opened = config.open_checkpoints().await?;
    opened.context("the configuration has no checkpoints: add a `checkpoints` section that names their store")
}

async fn create(args: SavepointCreateArgs) -> anyhow::Result<()> {
    let name = match args.name {
        Some(name) => name,
        // A name may not have colons.
        None => jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string(),
    };
    let made = match &args.config {
        Some(config) => of_stopped(&Config::load(config)?, &name).await?,
        None => match api_client::ask(&args.api, Method::POST, "/v1/savepoints", Some(&json!({"name": name}))).await? {
            (status, made) if status.is_success() => made,
            (status, problem) => return Err(api_client::refused(status, &problem)),
        },
    };
    let bytes = |member: &str| indicatif::HumanBytes(made[member].as_u64().unwrap_or_default());
    println!(
        "savepoint {name} (checkpoint {}) holds everything up to {}: {}, of which {} were uploaded.",
        made["number"],
        made["frontier"].as_str().unwrap_or("–"),
        bytes("bytes"),
        bytes("uploaded_bytes")
    );
    Ok(())
}

/// Of the state that nobody has open.
async fn of_stopped(config: &Config, name: &str) -> anyhow::Result<Value> {
    let checkpoints = open(config).await?;
    let state = config.data.join("state");
    let making = tempfile::Builder::new().prefix("savepoint.").tempdir_in(&config.data).context("a folder beside the state")?;
    let folder = making.path().join("state");
    let taken = {
        let folder = folder.clone();
        tokio::task::spawn_blocking(move || joiner::checkpoint::of_stopped(&state, &folder)).await?
    };
    let facts = taken.context("without --config the running process is asked")?;
    let mut writer = checkpoints.take_over(now_ms()).await?;
    Ok(told(name, &writer.save(&folder, facts, Some(name), now_ms()).await?))
}

async fn list(args: &SavepointListArgs) -> anyhow::Result<()> {
    let checkpoints = open(&Config::load(&args.config.config)?).await?;
    let found = checkpoints.list().await?;
    if args.json {
        let entry = |listed: &Listed| {
            json!({
                "number": listed.number,
                "names": listed.names,
                "made_ms": listed.made_ms,
                "frontier": listed.checkpoint.state.frontier,
                "bytes": listed.checkpoint.bytes(),
                "state_format": listed.checkpoint.state.format,
            })
        };
        println!("{:#}", found.iter().map(entry).collect::<Value>());
    } else {
        print!("{}", shown(&found));
    }
    Ok(())
}

fn shown(found: &[Listed]) -> String {
    if found.is_empty() {
        return "no checkpoints\n".to_owned();
    }
    let row = |listed: &Listed| {
        let made = jiff::Timestamp::from_millisecond(listed.made_ms).map(|made| made.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        [
            listed.number.to_string(),
            listed.names.join(", "),
            made.unwrap_or_default(),
            listed.checkpoint.state.frontier.to_string(),
            indicatif::HumanBytes(listed.checkpoint.bytes()).to_string(),
        ]
    };
    aligned(["", "savepoint", "made", "up to", "size"], &found.iter().map(row).collect::<Vec<_>>())
}

pub(crate) async fn restore(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    let checkpoints = open(&config).await?;
    let mut parts = Vec::with_capacity(args.which.len());
    for which in &args.which {
        let (range, which) = match which.split_once(':') {
            Some((range, which)) => (range.parse()?, which),
            None => (checkpoints.range(), which.as_str()),
        };
        parts.push(checkpoints.part(range, &which.parse::<Which>()?).await?);
    }
    let plans = plans(&config, &config.load_contracts()?)?;
    let settings = config.joiner(plans.into_iter().map(Arc::new).collect())?;
    let state = match args.to {
        Some(directory) => {
            if !checkpoints::is_empty(&directory)? {
                return Err(checkpoints::Error::NotEmpty { path: directory }.into());
            }
            directory
        }
        None => {
            let state = settings.state_dir.clone();
            tokio::task::spawn_blocking(move || joiner::checkpoint::is_free(&state)).await??;
            settings.state_dir.clone()
        }
    };
    let restored = checkpoints.restore_parts(&parts, &settings, &state).await?;
    let numbers: Vec<String> = parts.iter().map(|part| part.manifest.number.to_string()).collect();
    println!(
        "{} is checkpoint {} now, which holds everything up to {} ({}). The next start goes on from there.",
        state.display(),
        numbers.join(" and "),
        restored.frontier,
        indicatif::HumanBytes(restored.bytes)
    );
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use checkpoints::manifest::{Checkpoint, File};

    use super::*;

    #[test]
    fn checkpoints_are_listed() {
        let file = File { name: "1.sst".to_owned(), bytes: 2048, checksum: String::new(), object: String::new() };
        let checkpoint = Checkpoint { state: joiner::checkpoint::Facts::default(), files: vec![file] };
        let listed = Listed { number: 7, made_ms: 1_700_000_000_000, checkpoint, names: vec!["a".to_owned(), "b".to_owned()] };
        let expected = "     savepoint  made                  up to                   size\n  \
                          7  a, b       2023-11-14T22:13:20Z  00000000:00000000:0000  2.00 KiB\n";
        assert_eq!(shown(&[listed]), expected);
        assert_eq!(shown(&[]), "no checkpoints\n");
    }
}
