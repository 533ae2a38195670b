//! A look at a service's stream before, or while, it is imported.

use streams::Provider;

use super::config::ServiceConfig;
use super::translate::Translator;
use crate::check::CheckItem;

/// Looks at the mapping and at the stream.
pub async fn check(config: &ServiceConfig, input: &dyn Provider) -> Vec<CheckItem> {
    let mapping = match Translator::new(config) {
        Ok(_) => CheckItem::ok("mapping", format!("{} tables have their contracts", config.tables.len())),
        Err(error) => CheckItem::problem("mapping", error.to_string(), "correct `source.stream.tables`"),
    };
    let name = format!("service stream {}", config.stream);
    let stream = match input.describe(&config.stream).await {
        Ok(found) => CheckItem::ok(&name, found.capacity.to_string()),
        Err(streams::Error::NoSuchStream { .. }) => {
            CheckItem::problem(&name, "does not exist", "correct its name or its provider in `source.stream`")
        }
        Err(error) => CheckItem::problem(&name, error.to_string(), "have the identity of this process read the stream"),
    };
    let mut items = vec![mapping, stream];
    let unmapped: Vec<String> =
        config.contracts.keys().filter(|name| !config.tables.contains_key(name)).map(ToString::to_string).collect();
    if !unmapped.is_empty() {
        let detail = format!("no events are mapped to {}", unmapped.join(", "));
        items.push(CheckItem::warning("contracts", detail, "map them under `source.stream.tables`, or remove their contracts"));
    }
    items
}
