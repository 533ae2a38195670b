//! `tributary stream create`: makes what is missing, and tells what is there otherwise than configured.

use std::process::ExitCode;

use schemas::progress::StreamName;
use streams::config::Config as Store;
use streams::{Capacity, Created, Difference, StreamSettings};

use super::{Named, open, wanted};
use crate::cli::ConfigArgs;
use crate::config::Config;

/// What the exit code says where a stream differs.
const DIFFERS: u8 = 3;

pub(super) async fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let named = Named::new(&config, &config.load_contracts()?);
    let provider = open(&config).await?;
    let mut differing = 0;
    for (stream, settings) in wanted(&named, &config, &*provider) {
        match provider.create(stream, &settings).await? {
            Created::New => println!("created  {stream}  {}", settings.capacity),
            Created::Existing { differs } if differs.is_empty() => println!("exists   {stream}  as configured"),
            Created::Existing { differs } => {
                differing += 1;
                println!("differs  {stream}");
                for difference in differs {
                    println!(
                        "         {difference}\n         → {}",
                        remedy(&config.streams.provider, stream, &settings, &difference)
                    );
                }
            }
        }
    }
    Ok(if differing > 0 { ExitCode::from(DIFFERS) } else { ExitCode::SUCCESS })
}

/// What makes an existing stream as configured.
pub(super) fn remedy(store: &Store, stream: &StreamName, wanted: &StreamSettings, difference: &Difference) -> String {
    let Store::Kinesis(_) = store else {
        return match difference.setting {
            "shards" => "The shards of a stream in a directory stay as they are: set streams.shards to what it has, or choose another prefix".to_owned(),
            _ => format!("Change the stream's stream.json while nothing writes to it, or set the configuration to what it has: {}", difference.found),
        };
    };
    match (difference.setting, wanted.capacity) {
        ("shards", Capacity::OnDemand) => {
            format!(
                "aws kinesis update-stream-mode --stream-arn <the ARN of {stream}> --stream-mode-details StreamMode=ON_DEMAND"
            )
        }
        ("shards", Capacity::Shards(_)) if difference.found == Capacity::OnDemand.to_string() => {
            format!(
                "aws kinesis update-stream-mode --stream-arn <the ARN of {stream}> --stream-mode-details StreamMode=PROVISIONED"
            )
        }
        ("shards", Capacity::Shards(count)) => {
            format!(
                "aws kinesis update-shard-count --stream-name {stream} --target-shard-count {count} --scaling-type UNIFORM_SCALING"
            )
        }
        ("retention", _) => {
            let hours = wanted.retention.unwrap_or_default().as_secs().div_ceil(3600);
            let found: u64 = difference.found.split(' ').next().and_then(|hours| hours.parse().ok()).unwrap_or(0);
            let change = if found > hours { "decrease" } else { "increase" };
            format!("aws kinesis {change}-stream-retention-period --stream-name {stream} --retention-period-hours {hours}")
        }
        ("encryption", _) => format!(
            "aws kinesis start-stream-encryption --stream-name {stream} --encryption-type KMS --key-id {}",
            difference.wanted
        ),
        ("tags", _) => format!("aws kinesis add-tags-to-stream --stream-name {stream} --tags {}", difference.wanted),
        ("max record size", _) => format!(
            "aws kinesis update-max-record-size --stream-arn <the ARN of {stream}> --max-record-size-in-ki-b {}",
            wanted.max_record_bytes.unwrap_or_default().div_ceil(1024)
        ),
        (setting, _) => format!("Set {setting} of {stream} to {}", difference.wanted),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_difference_has_its_remedy() {
        let stream = StreamName("shop.events".into());
        let kinesis = Store::Kinesis(Box::default());
        let wanted = StreamSettings {
            retention: Some(Duration::from_secs(48 * 3600)),
            max_record_bytes: Some(2 << 20),
            ..StreamSettings::shards(4)
        };
        let difference = |setting, wanted: &str, found: &str| Difference { setting, wanted: wanted.into(), found: found.into() };
        for (difference, expected) in [
            (difference("shards", "4 shards", "2 shards"), "update-shard-count --stream-name shop.events --target-shard-count 4"),
            (difference("shards", "4 shards", "on demand"), "StreamMode=PROVISIONED"),
            (
                difference("retention", "48 h", "24 h"),
                "increase-stream-retention-period --stream-name shop.events --retention-period-hours 48",
            ),
            (difference("retention", "48 h", "72 h"), "decrease-stream-retention-period"),
            (difference("encryption", "alias/k", "none"), "--key-id alias/k"),
            (difference("tags", "team=shop", "none"), "--tags team=shop"),
            (difference("max record size", "2097152 bytes", "1048576 bytes"), "--max-record-size-in-ki-b 2048"),
        ] {
            let found = remedy(&kinesis, &stream, &wanted, &difference);
            assert!(found.starts_with("aws kinesis ") && found.contains(expected), "{found}");
        }
        assert!(
            remedy(&Store::Memory, &stream, &wanted, &difference("shards", "4 shards", "2 shards")).contains("streams.shards")
        );
    }
}
