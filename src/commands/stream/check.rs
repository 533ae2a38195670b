//! What `tributary check` says of the streams.
//!
//! It writes nothing, so whether the importer may write (kinesis:PutRecords) shows when it starts. That the joiner may read is tried on the progress stream, the smallest.

use importer::check::{CheckItem, Level};
use schemas::contract::Contract;
use streams::config::Config as Store;
use streams::iam::Role;
use streams::{Description, StreamSettings};

use super::{Named, create, policy, wanted};
use crate::config::Config;

/// A line for each stream, and the policy that mends what was refused.
pub(in crate::commands) async fn streams(config: &Config, contracts: &[Contract]) -> (Vec<CheckItem>, Option<String>) {
    match &config.streams.provider {
        Store::Memory => {
            let detail = "in memory: they end with the process, and the parts have to run in one";
            return (vec![item("streams", Level::Ok, detail.to_owned(), None)], None);
        }
        // Opening would make it.
        Store::Embedded(options) if !options.path.exists() => {
            let detail = format!("{} does not exist yet: the importer makes it", options.path.display());
            return (vec![item("streams", Level::Ok, detail, None)], None);
        }
        Store::Embedded(_) | Store::Kinesis(_) => {}
    }
    let provider = match streams::config::open(&config.streams.provider).await {
        Ok(provider) => provider,
        Err(error) => return (vec![item("streams", Level::Problem, error.to_string(), None)], None),
    };
    let named = Named::new(config, contracts);
    let (mut items, mut policy) = (Vec::new(), None);
    for (stream, settings) in wanted(&named, config, &*provider) {
        let name = format!("stream {stream}");
        let mut role = Role::Operator;
        let mut found = provider.describe(stream).await;
        if found.is_ok() && *stream == named.progress {
            role = Role::Consumer;
            found = match provider.tips(stream).await {
                Ok(_) => found,
                Err(error) => Err(error),
            };
        }
        items.push(match found {
            Ok(description) => as_configured(config, &name, &description, &settings),
            Err(streams::Error::NoSuchStream { .. }) => {
                item(&name, Level::Ok, "does not exist yet: the importer makes it".to_owned(), None)
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                policy = policy.or_else(|| policy::remedy(config, role, &error));
                item(&name, Level::Problem, error.to_string(), None)
            }
        });
    }
    (items, policy)
}

fn as_configured(config: &Config, name: &str, found: &Description, wanted: &StreamSettings) -> CheckItem {
    let differences = found.differences(wanted);
    if differences.is_empty() {
        return item(name, Level::Ok, found.capacity.to_string(), None);
    }
    let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
    let remedies: Vec<String> = differences
        .iter()
        .map(|difference| create::remedy(&config.streams.provider, &found.stream, wanted, difference))
        .collect();
    item(name, Level::Warning, told.join("; "), Some(remedies.join("\n")))
}

fn item(name: &str, level: Level, detail: String, remedy: Option<String>) -> CheckItem {
    CheckItem { name: name.to_owned(), level, detail, remedy }
}
