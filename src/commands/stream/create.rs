//! `tributary stream create`: makes what is missing, tells what is there otherwise than configured, and with `--apply` changes that.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use schemas::progress::StreamName;
use streams::config::Config as Store;
use streams::{Capacity, Created, Difference, Error, Provider, Setting, StreamSettings};

use super::{Named, open, wanted};
use crate::cli::StreamCreateArgs;
use crate::config::Config;

/// What the exit code says where a stream differs.
const DIFFERS: u8 = 3;

/// A stream that is not as configured.
struct Differing<'n> {
    stream: &'n StreamName,
    settings: StreamSettings,
    differs: Vec<Difference>,
}

pub(super) async fn run(args: &StreamCreateArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load_one(&args.config)?;
    let named = Named::new(&config, &config.load_contracts()?);
    let provider = open(&config).await?;
    let store = &config.streams.provider;
    let mut differing = Vec::new();
    for (stream, settings) in wanted(&named, &config, &*provider) {
        match provider.create(stream, &settings).await? {
            Created::New => println!("created  {stream}  {}", settings.capacity),
            Created::Existing { differs } if differs.is_empty() => println!("exists   {stream}  as configured"),
            Created::Existing { differs } => {
                println!("differs  {stream}");
                for difference in &differs {
                    println!("         {difference}");
                    if !args.apply {
                        println!("         → {}", remedy(store, stream, &settings, difference));
                    }
                }
                differing.push(Differing { stream, settings, differs });
            }
        }
    }
    if args.apply {
        differing = apply(&*provider, store, differing).await?;
    } else if !differing.is_empty() && matches!(store, Store::Kinesis(_)) {
        println!("`--apply` makes these calls, but for those that would remove records.");
    }
    Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// Changes what can be changed, one setting after the other, and answers what still differs. A refusal is told where it comes, and holds up nothing else.
async fn apply<'n>(provider: &dyn Provider, store: &Store, differing: Vec<Differing<'n>>) -> anyhow::Result<Vec<Differing<'n>>> {
    let (mut left, mut refused) = (Vec::new(), None);
    for Differing { stream, settings, mut differs } in differing {
        let every: BTreeSet<Setting> = differs.iter().map(|difference| difference.setting).collect();
        let mut outcomes = BTreeMap::new();
        for setting in every {
            let outcome = provider.apply(stream, &settings, setting).await;
            for difference in differs.iter().filter(|difference| difference.setting == setting) {
                match &outcome {
                    Ok(true) => {
                        println!("changed  {stream}  {setting}: {}, where it was {}", difference.wanted, difference.found)
                    }
                    Ok(false) => {
                        println!("left     {stream}  {setting}\n         → {}", remedy(store, stream, &settings, difference));
                    }
                    Err(error) => println!("refused  {stream}  {setting}: {error}"),
                }
            }
            match outcome {
                Err(error @ Error::Forbidden { .. }) => refused = refused.or(Some(error)),
                Err(error) => return Err(error.into()),
                Ok(changed) => {
                    outcomes.insert(setting, changed);
                }
            }
        }
        differs.retain(|difference| outcomes.get(&difference.setting) != Some(&true));
        if !differs.is_empty() {
            left.push(Differing { stream, settings, differs });
        }
    }
    refused.map_or(Ok(left), |error| Err(error.into()))
}

/// What makes an existing stream as configured.
pub(super) fn remedy(store: &Store, stream: &StreamName, wanted: &StreamSettings, difference: &Difference) -> String {
    let Store::Kinesis(_) = store else {
        return match difference.setting {
            Setting::Capacity => "The shards of a stream in a directory stay as they are: set streams.shards to what it has, or choose another prefix".to_owned(),
            _ => format!("Change the stream's stream.json while nothing writes to it, or set the configuration to what it has: {}", difference.found),
        };
    };
    match (difference.setting, wanted.capacity) {
        (Setting::Capacity, Capacity::OnDemand) => {
            format!(
                "aws kinesis update-stream-mode --stream-arn <the ARN of {stream}> --stream-mode-details StreamMode=ON_DEMAND"
            )
        }
        (Setting::Capacity, Capacity::Shards(_)) if difference.found == Capacity::OnDemand.to_string() => {
            format!(
                "aws kinesis update-stream-mode --stream-arn <the ARN of {stream}> --stream-mode-details StreamMode=PROVISIONED"
            )
        }
        (Setting::Capacity, Capacity::Shards(count)) => {
            format!(
                "aws kinesis update-shard-count --stream-name {stream} --target-shard-count {count} --scaling-type UNIFORM_SCALING"
            )
        }
        (Setting::Retention, _) => {
            let hours = wanted.retention.unwrap_or_default().as_secs().div_ceil(3600);
            let found: u64 = difference.found.split(' ').next().and_then(|hours| hours.parse().ok()).unwrap_or(0);
            let change = if found > hours { "decrease" } else { "increase" };
            format!("aws kinesis {change}-stream-retention-period --stream-name {stream} --retention-period-hours {hours}")
        }
        (Setting::Encryption, _) => format!(
            "aws kinesis start-stream-encryption --stream-name {stream} --encryption-type KMS --key-id {}",
            difference.wanted
        ),
        (Setting::Tags, _) => format!("aws kinesis add-tags-to-stream --stream-name {stream} --tags {}", difference.wanted),
        (Setting::RecordSize, _) => format!(
            "aws kinesis update-max-record-size --stream-arn <the ARN of {stream}> --max-record-size-in-ki-b {}",
            wanted.max_record_bytes.unwrap_or_default().div_ceil(1024)
        ),
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
            (
                difference(Setting::Capacity, "4 shards", "2 shards"),
                "update-shard-count --stream-name shop.events --target-shard-count 4",
            ),
            (difference(Setting::Capacity, "4 shards", "on demand"), "StreamMode=PROVISIONED"),
            (
                difference(Setting::Retention, "48 h", "24 h"),
                "increase-stream-retention-period --stream-name shop.events --retention-period-hours 48",
            ),
            (difference(Setting::Retention, "48 h", "72 h"), "decrease-stream-retention-period"),
            (difference(Setting::Encryption, "alias/k", "none"), "--key-id alias/k"),
            (difference(Setting::Tags, "team=shop", "none"), "--tags team=shop"),
            (difference(Setting::RecordSize, "2097152 bytes", "1048576 bytes"), "--max-record-size-in-ki-b 2048"),
        ] {
            let found = remedy(&kinesis, &stream, &wanted, &difference);
            assert!(found.starts_with("aws kinesis ") && found.contains(expected), "{found}");
        }
        assert!(
            remedy(&Store::Memory, &stream, &wanted, &difference(Setting::Capacity, "4 shards", "2 shards"))
                .contains("streams.shards")
        );
    }
}
