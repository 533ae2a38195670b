//! The `source.stream` section: a service's own stream, and how its events are mapped to rows of tables.
//!
//! ```yaml
//! source:
//!   name: payments                    # in progress records, metrics and stream names
//!   stream:
//!     name: payments-events           # the service's stream
//!     provider: {kinesis: {region: eu-central-1}}  # where it is; default: streams.provider
//!     on_bad_record: stop             # or dead_letter: no JSON, no key, or against the contract
//!     on_unmatched: stop              # dead_letter, or skip: of no table
//!     tick_records: 10000             # records that take effect together, and that a restart may repeat, at most
//!     tick_bytes: 16777216
//!     linger: 5ms                     # a tick ends when nothing more has come for this long
//!     tables:
//!       shop.payments:                # its contract is schemas/tables/shop.payments.json
//!         when: {/type: [paid, voided]}  # which events are of it; default: all
//!         row: /payment               # the object that the columns are members of; default: the event
//!         columns: {order_id: /context/order}  # where single columns are, from the event's root on
//!         merge: false                # columns that an event lacks keep their values
//!         delete:                     # which events delete their row, and where its key is in them
//!           when: {/type: voided}
//!           key: {id: /payment_id}
//!         partition_by: order_id      # default: the row's own key
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use importer::service::{BadRecordPolicy, ServiceConfig, TableMapping, UnmatchedPolicy};
use schemas::TableName;
use serde::Deserialize;
use streams::Provider;
use streams::config::{AgedPositions, Config as Store};

use super::source::duration;

/// Keys that are left out have the importer's own defaults ([`ServiceConfig::new`]).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    name: String,
    #[serde(default)]
    provider: Option<Store>,
    #[serde(default)]
    on_bad_record: BadRecordPolicy,
    #[serde(default)]
    on_unmatched: UnmatchedPolicy,
    #[serde(default)]
    tick_records: Option<usize>,
    #[serde(default)]
    tick_bytes: Option<usize>,
    #[serde(default, deserialize_with = "duration")]
    linger: Option<Duration>,
    tables: BTreeMap<TableName, TableMapping>,
}

impl Service {
    /// What can be wrong beyond the form.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let numbers = [("tick_records", self.tick_records), ("tick_bytes", self.tick_bytes)];
        if let Some((key, _)) = numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            bail!("source.stream.{key}: 0 would let nothing through: write a number from 1, or leave it out");
        }
        Ok(())
    }

    pub(super) fn relative_to(&mut self, folder: &Path) {
        if let Some(provider) = &mut self.provider {
            provider.relative_to(folder);
        }
    }

    pub(super) fn importer(&self, source: &str, data_dir: PathBuf) -> ServiceConfig {
        let mut settings = ServiceConfig::new(source, &self.name, data_dir);
        settings.tables.clone_from(&self.tables);
        (settings.on_bad_record, settings.on_unmatched) = (self.on_bad_record, self.on_unmatched);
        settings.tick_records = self.tick_records.unwrap_or(settings.tick_records);
        settings.tick_bytes = self.tick_bytes.unwrap_or(settings.tick_bytes);
        settings.linger = self.linger.unwrap_or(settings.linger);
        settings
    }

    pub(super) fn partition_by(&self) -> BTreeMap<TableName, String> {
        let of_table = |(name, mapping): (&TableName, &TableMapping)| Some((name.clone(), mapping.partition_by.clone()?));
        self.tables.iter().filter_map(of_table).collect()
    }

    /// The store that the service's stream is in. `own` is Tributary's, where that is open, and `store` what it is opened with.
    ///
    /// Beside a service's stream there is no progress stream that would tell whether its reader was away for too long. So a position that is gone is an error, unless the configuration says that it is to be trusted.
    pub(crate) async fn provider(&self, own: Option<&Arc<dyn Provider>>, store: &Store) -> anyhow::Result<Arc<dyn Provider>> {
        let mut store = self.provider.as_ref().unwrap_or(store).clone();
        match (&mut store, own) {
            // Another opening would be another memory.
            (Store::Memory, Some(own)) => return Ok(Arc::clone(own)),
            (Store::Kinesis(options), _) if options.aged_positions == AgedPositions::ByProgress => {
                options.aged_positions = AgedPositions::Refuse;
            }
            _ => {}
        }
        Ok(streams::config::open(&store).await?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Config;
    use super::*;

    fn config(source: &str) -> anyhow::Result<Config> {
        let config: Config = serde_yaml_ng::from_str(&format!("{source}streams: {{provider: {{memory: {{}}}}}}\n"))?;
        config.checked()
    }

    /// The documentation's own example is read to the last key, and every key arrives.
    #[test]
    fn what_is_documented_is_understood() {
        let lines = include_str!("service.rs").lines().skip_while(|line| *line != "//! ```yaml").skip(1);
        let documented: String =
            lines.take_while(|line| *line != "//! ```").map(|line| format!("{}\n", line.strip_prefix("//! ").unwrap())).collect();
        let config = config(&documented).unwrap();
        let service = config.source().stream().unwrap();
        assert!(matches!(service.provider, Some(Store::Kinesis(_))));
        let settings = config.service_importer(service, Vec::new());
        let name: TableName = "shop.payments".parse().unwrap();
        assert_eq!(settings.output.partition_by, [(name.clone(), "order_id".to_owned())].into());
        let mapping = &settings.tables[&name];
        assert_eq!(
            (mapping.row.to_string(), mapping.columns["order_id"].to_string()),
            ("/payment".into(), "/context/order".into())
        );
        assert_eq!((mapping.when.0.len(), mapping.delete.as_ref().unwrap().key.len()), (1, 1));
    }

    #[test]
    fn a_source_is_a_database_or_a_stream() {
        let refused = |source: &str| format!("{:#}", config(source).unwrap_err());
        let stream = "stream: {name: s, tables: {dbo.t: {}}}";
        assert!(refused("source: {name: shop}\n").contains("`url`"));
        for key in ["url: 'sqlserver://sa@h/d'", "snapshot: {mode: never}", "tables: [dbo.t]", "lease: {dynamodb: {table: t}}"] {
            let told = refused(&format!("source: {{name: shop, {stream}, {key}}}\n"));
            assert!(
                told.contains(&format!("source.{}", key.split(':').next().unwrap())) && told.contains("source.stream"),
                "{told}"
            );
        }
        assert!(refused("source: {name: shop, stream: {name: s, tables: {dbo.t: {row: data}}}}\n").contains("JSON pointer"));
        assert!(refused("source: {name: shop, stream: {name: s, tables: {dbo.t: {when: {/a: {}}}}}}\n").contains("list"));
        assert!(refused("source: {name: shop, stream: {name: s, tables: {}, tick_records: 0}}\n").contains("tick_records"));
    }
}
