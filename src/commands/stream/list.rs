//! `tributary stream list`.

use std::process::ExitCode;

use serde_json::{Value as Json, json};
use streams::Description;

use super::open;
use crate::cli::StreamListArgs;
use crate::commands::aligned;
use crate::config::Config;

pub(super) async fn run(args: &StreamListArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load_one(&args.config)?;
    let provider = open(&config).await?;
    let prefix = if args.all { String::new() } else { format!("{}.", config.prefix()) };
    let mut streams = Vec::new();
    for summary in provider.list(&prefix).await? {
        streams.push(provider.describe(&summary.stream).await?);
    }
    if args.json {
        println!("{:#}", json!({"streams": streams.iter().map(described).collect::<Vec<_>>()}));
    } else if streams.is_empty() {
        println!(
            "There is no stream whose name begins with {prefix:?}: `tributary stream create` makes those of the configuration."
        );
    } else {
        let head = ["stream", "capacity", "open shards", "retention", "encryption", "records", "bytes", "tags"];
        print!("{}", aligned(head, &streams.iter().map(row).collect::<Vec<_>>()));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(stream: &Description) -> [String; 8] {
    let tags: Vec<String> = stream.tags.iter().map(|(tag, value)| format!("{tag}={value}")).collect();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        stream.stream.to_string(),
        stream.capacity.to_string(),
        stream.open_shards().to_string(),
        stream.retention.map_or_else(|| "no limit".to_owned(), |kept| indicatif::HumanDuration(kept).to_string()),
        stream.encryption_key.clone().unwrap_or_else(|| "none".to_owned()),
        or_dash(total(stream, |shard| shard.records).map(|records| indicatif::HumanCount(records).to_string())),
        or_dash(total(stream, |shard| shard.bytes).map(|bytes| indicatif::HumanBytes(bytes).to_string())),
        or_dash(Some(tags.join(", ")).filter(|tags| !tags.is_empty())),
    ]
}

/// The sum over the shards, where the store counts it.
fn total(stream: &Description, count: impl Fn(&streams::ShardDescription) -> Option<u64>) -> Option<u64> {
    stream.shards.iter().map(count).sum()
}

fn described(stream: &Description) -> Json {
    let shard = |shard: &streams::ShardDescription| {
        json!({
            "shard": shard.shard,
            // Too large for a JSON number.
            "first_hash": shard.hashes.start().to_string(),
            "last_hash": shard.hashes.end().to_string(),
            "open": shard.open,
            "parents": shard.parents,
            "records": shard.records,
            "bytes": shard.bytes,
        })
    };
    json!({
        "stream": stream.stream,
        "capacity": stream.capacity.to_string(),
        "open_shards": stream.open_shards(),
        "retention_seconds": stream.retention.map(|retention| retention.as_secs()),
        "encryption_key": stream.encryption_key,
        "tags": stream.tags,
        "max_record_bytes": stream.max_record_bytes,
        "records": total(stream, |shard| shard.records),
        "bytes": total(stream, |shard| shard.bytes),
        "shards": stream.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}
