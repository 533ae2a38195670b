//! The `source:` section: which database, which tables, and how they are read; or which stream of a service ([`super::service`]).
//!
//! ```yaml
//! source:
//!   name: shop                        # in progress records, metrics and stream names
//!   url: sqlserver://tributary@db.example:1433/shop?encrypt=on
//!   password: {env: MSSQL_PASSWORD}   # or {file: /run/secrets/mssql}, which is read at each connection
//!   # token: {file: /run/secrets/entra}  # a Microsoft Entra access token instead
//!   time_zone: Europe/Amsterdam       # the server's, for commit times; default: the one that it names, else the offset that it has now
//!   tables: [dbo.orders, sales.*]     # default: every captured table
//!   exclude: [sales.audit_*]          # of these, none
//!   poll_interval: 100ms              # how long an idle importer waits at most; a busy one does not
//!   snapshot:
//!     mode: initial                   # initial, when_needed, never, only
//!     connections: 4                  # tables, and ranges of one, that are read side by side
//!     chunk_rows: 20000               # what a crash may read again
//!     split_rows: 50000               # a table with more rows is read in ranges
//!     rows_per_second: 5000           # default: no limit
//!     yield_to_load: true             # read slower while the source answers slowly
//!     fenced: false                   # all tables as of one LSN; needs SNAPSHOT isolation
//!   on_gap: stop                      # changes were removed before they were read: stop, or resnapshot the table
//!   on_breaking_change: stop          # a table does not fit its contract any more: stop the table, stop_all of the importer, or dead_letter the table's changes
//!   on_compatible_change: report      # a new version of its contract would fit it: report, or write that version
//!   headroom_warning: 12h             # warn, and put the tail first, when less time is left before cleanup removes what was not read
//!   tail_connections: 4               # change tables that are read side by side
//!   page_rows: 20000                  # rows of a page of changes, at most
//!   tick_transactions: 10000          # transactions that a restart may repeat, at most
//!   startup_patience: 30s             # how long a source that cannot be reached is tried at the start
//!   stall_check: 30s                  # how often a quiet capture is looked at
//!   lease:                            # how several importers of the source agree on which one works; default: a lock in the data folder
//!     postgres: {url: {env: LEASE_URL}}
//!     # dynamodb: {table: tributary-leases, region: eu-central-1}
//!   per_table:
//!     dbo.orders:
//!       on_gap: resnapshot
//!       partition_by: customer_id     # default: the row's own key
//!       rename: {cust_no: customer_id}
//!       mask: {email: {truncate: 3}, phone: {fixed: hidden}, ssn: {hash: '${SSN_KEY}'}}
//!       exclude: [internal_note]      # or include: only these, and the key
//!       filter: "region = 'EU' and deleted_at is null"
//!     dbo.log:
//!       key: [day, line]              # for a table without a primary key or a unique index: columns that are never NULL
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use importer::{BreakingPolicy, CompatiblePolicy, GapPolicy, LeaseConfig, Mask, SnapshotConfig, SnapshotMode, TableControls};
use schemas::TableName;

use super::service::Service;
use serde::{Deserialize, Deserializer};
use sinks::SecretReference;

/// Keys that are left out have the importer's own defaults ([`importer::Config::new`]).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Letters, digits, `-` and `_`: it stands in stream names.
    pub(crate) name: String,
    /// A service's stream instead of a database: then no other key but the name is its.
    #[serde(default)]
    stream: Option<Service>,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    password: Option<SecretReference>,
    #[serde(default)]
    token: Option<SecretReference>,
    #[serde(default)]
    time_zone: Option<String>,
    #[serde(default)]
    tables: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default, deserialize_with = "duration")]
    poll_interval: Option<Duration>,
    #[serde(default)]
    pub(crate) snapshot: Snapshot,
    #[serde(default)]
    on_gap: GapPolicy,
    #[serde(default)]
    on_breaking_change: BreakingPolicy,
    #[serde(default)]
    on_compatible_change: CompatiblePolicy,
    #[serde(default, deserialize_with = "duration")]
    headroom_warning: Option<Duration>,
    #[serde(default)]
    tail_connections: Option<usize>,
    #[serde(default)]
    page_rows: Option<usize>,
    #[serde(default)]
    tick_transactions: Option<usize>,
    #[serde(default, deserialize_with = "duration")]
    startup_patience: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    stall_check: Option<Duration>,
    #[serde(default)]
    lease: Lease,
    #[serde(default)]
    per_table: BTreeMap<TableName, Table>,
}

/// Where importers agree: at most one of them.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Lease {
    postgres: Option<PostgresLease>,
    dynamodb: Option<DynamoLease>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostgresLease {
    url: SecretReference,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DynamoLease {
    table: String,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    endpoint: Option<String>,
}

impl PostgresLease {
    /// `section`: where it stands.
    pub(super) fn settings(&self, section: &str) -> anyhow::Result<LeaseConfig> {
        let url = self.url.resolve(&format!("the lease's database ({section}.postgres.url)"))?;
        Ok(LeaseConfig::Postgres { url: importer::Password::new(url.reveal()) })
    }
}

impl DynamoLease {
    pub(super) fn settings(&self) -> LeaseConfig {
        let Self { table, region, endpoint } = self.clone();
        LeaseConfig::DynamoDb { table, region, endpoint }
    }
}

impl Lease {
    fn settings(&self) -> anyhow::Result<LeaseConfig> {
        match (&self.postgres, &self.dynamodb) {
            (Some(postgres), _) => postgres.settings("source.lease"),
            (None, Some(dynamodb)) => Ok(dynamodb.settings()),
            (None, None) => Ok(LeaseConfig::File),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Snapshot {
    pub(crate) mode: SnapshotMode,
    connections: Option<usize>,
    chunk_rows: Option<usize>,
    split_rows: Option<u64>,
    rows_per_second: Option<u32>,
    yield_to_load: Option<bool>,
    fenced: bool,
}

/// What is particular to one table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    on_gap: Option<GapPolicy>,
    partition_by: Option<String>,
    key: Vec<String>,
    // What is published of it: see `importer::TableControls`.
    include: Vec<String>,
    exclude: Vec<String>,
    mask: BTreeMap<String, Mask>,
    rename: BTreeMap<String, String>,
    filter: Option<String>,
}

impl Table {
    fn controls(&self) -> TableControls {
        let Self { include, exclude, mask, rename, filter, .. } = self.clone();
        TableControls { include, exclude, mask, rename, filter }
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| crate::cli::duration(&text).map_err(serde::de::Error::custom)).transpose()
}

/// A secret, or the file that it is in. That it is there is checked now, so that a mistake is told at once.
fn kept(reference: Option<&SecretReference>, purpose: &str) -> anyhow::Result<(Option<importer::Password>, Option<PathBuf>)> {
    let Some(reference) = reference else { return Ok((None, None)) };
    let secret = reference.resolve(purpose)?;
    Ok(match reference {
        SecretReference::File(path) => (None, Some(path.clone())),
        SecretReference::Env(_) => (Some(importer::Password::new(secret.reveal())), None),
    })
}

impl Source {
    /// What can be wrong beyond the form.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match (&self.stream, &self.url) {
            (Some(stream), _) => {
                if let Some(key) = self.of_a_database() {
                    bail!(
                        "source.{key}: belongs to a database, and `source.stream` names a service's stream: keep one of the two"
                    );
                }
                return stream.check();
            }
            (None, None) => bail!("source: what is read is missing: name a database (`url`) or a service's stream (`stream`)"),
            (None, Some(_)) => {}
        }
        if self.lease.postgres.is_some() && self.lease.dynamodb.is_some() {
            bail!("source.lease: names two stores: keep one of postgres and dynamodb");
        }
        let numbers = [
            ("snapshot.connections", self.snapshot.connections),
            ("snapshot.chunk_rows", self.snapshot.chunk_rows),
            ("tail_connections", self.tail_connections),
            ("page_rows", self.page_rows),
            ("tick_transactions", self.tick_transactions),
            ("snapshot.rows_per_second", self.snapshot.rows_per_second.map(|rows| rows as usize)),
        ];
        if let Some((key, _)) = numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            bail!("source.{key}: 0 would let nothing through: write a number from 1, or leave it out");
        }
        Ok(())
    }

    /// The first key that is there and has no meaning for a stream.
    fn of_a_database(&self) -> Option<&'static str> {
        let keys = [
            ("url", self.url.is_some()),
            ("password", self.password.is_some()),
            ("token", self.token.is_some()),
            ("time_zone", self.time_zone.is_some()),
            ("tables", !self.tables.is_empty()),
            ("exclude", !self.exclude.is_empty()),
            ("poll_interval", self.poll_interval.is_some()),
            ("snapshot", self.snapshot != Snapshot::default()),
            ("on_gap", self.on_gap != GapPolicy::default()),
            ("on_breaking_change", self.on_breaking_change != BreakingPolicy::default()),
            ("on_compatible_change", self.on_compatible_change != CompatiblePolicy::default()),
            ("headroom_warning", self.headroom_warning.is_some()),
            ("tail_connections", self.tail_connections.is_some()),
            ("page_rows", self.page_rows.is_some()),
            ("tick_transactions", self.tick_transactions.is_some()),
            ("startup_patience", self.startup_patience.is_some()),
            ("stall_check", self.stall_check.is_some()),
            ("lease", self.lease != Lease::default()),
            ("per_table", !self.per_table.is_empty()),
        ];
        keys.into_iter().find(|(_, there)| *there).map(|(key, _)| key)
    }

    /// The service's stream, where it is one.
    pub(crate) fn stream(&self) -> Option<&Service> {
        self.stream.as_ref()
    }

    pub(super) fn relative_to(&mut self, folder: &Path) {
        if let Some(stream) = &mut self.stream {
            stream.relative_to(folder);
        }
    }

    /// For what only a database can be asked.
    pub(crate) fn needs_database(&self, command: &str) -> anyhow::Result<()> {
        if self.stream.is_some() {
            bail!("{command} asks a database, and source {} is a service's stream", self.name);
        }
        Ok(())
    }

    /// The source with its secrets. What is in the environment is read now; a file is read at each connection, so that what is renewed there is used.
    pub(crate) fn resolve(&self) -> anyhow::Result<importer::Source> {
        let mut settings = importer::SourceSettings {
            url: self.url.as_deref().map(importer::SourceUrl::new),
            ..importer::SourceSettings::default()
        };
        (settings.password, settings.password_file) = kept(self.password.as_ref(), "the source's password (source.password)")?;
        (settings.token, settings.token_file) = kept(self.token.as_ref(), "the source's access token (source.token)")?;
        importer::Source::from_settings(&settings).context("source")
    }

    /// Which captured tables are imported: those that are named, or all.
    pub(crate) fn filter(&self) -> importer::TableFilter {
        importer::TableFilter { include: self.tables.clone(), exclude: self.exclude.clone() }
    }

    /// The importer's configuration, but for what is not the source's: streams and contracts.
    pub(crate) fn importer(&self, data_dir: PathBuf) -> anyhow::Result<importer::Config> {
        let mut settings = importer::Config::new(&self.name, self.resolve()?, data_dir);
        settings.tables = self.filter();
        settings.time_zone.clone_from(&self.time_zone);
        settings.lease = self.lease.settings()?;
        settings.on_gap = self.on_gap;
        settings.on_breaking_change = self.on_breaking_change;
        settings.on_compatible_change = self.on_compatible_change;
        settings.snapshot = self.snapshot.settings(&settings.snapshot);
        settings.poll_interval = self.poll_interval.unwrap_or(settings.poll_interval);
        settings.headroom_warning = self.headroom_warning.unwrap_or(settings.headroom_warning);
        settings.startup_patience = self.startup_patience.unwrap_or(settings.startup_patience);
        settings.stall_check = self.stall_check.unwrap_or(settings.stall_check);
        settings.tail_connections = self.tail_connections.unwrap_or(settings.tail_connections);
        settings.page_rows = self.page_rows.unwrap_or(settings.page_rows);
        settings.tick_transactions = self.tick_transactions.unwrap_or(settings.tick_transactions);
        for (name, table) in &self.per_table {
            if let Some(policy) = table.on_gap {
                settings.on_gap_of.insert(name.clone(), policy);
            }
            if let Some(column) = &table.partition_by {
                settings.output.partition_by.insert(name.clone(), column.clone());
            }
            let controls = table.controls();
            if controls != TableControls::default() {
                settings.controls.insert(name.clone(), controls);
            }
            if !table.key.is_empty() {
                settings.keys.insert(name.clone(), table.key.clone());
            }
        }
        Ok(settings)
    }
}

impl Snapshot {
    fn settings(&self, defaults: &SnapshotConfig) -> SnapshotConfig {
        SnapshotConfig {
            mode: self.mode,
            connections: self.connections.unwrap_or(defaults.connections),
            chunk_rows: self.chunk_rows.unwrap_or(defaults.chunk_rows),
            split_rows: self.split_rows.unwrap_or(defaults.split_rows),
            rows_per_second: self.rows_per_second.or(defaults.rows_per_second),
            yield_to_load: self.yield_to_load.unwrap_or(defaults.yield_to_load),
            fenced: self.fenced,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn importer(text: &str) -> importer::Config {
        let source: Source = serde_yaml_ng::from_str(text).unwrap();
        source.check().unwrap();
        source.importer("data".into()).unwrap()
    }

    /// The documentation's own example is read to the last key, and every key arrives.
    #[test]
    fn what_is_documented_is_understood() {
        let documented: String = include_str!("source.rs")
            .lines()
            .skip_while(|line| *line != "//! ```yaml")
            .skip(2)
            .take_while(|line| *line != "//! ```")
            .map(|line| format!("{}\n", line.strip_prefix("//!   ").unwrap()))
            .collect();
        let documented = documented
            .replace("{env: MSSQL_PASSWORD}", "{file: Cargo.toml}")
            .replace("{env: LEASE_URL}", "{file: Cargo.toml}")
            .replace("'${SSN_KEY}'", "key");
        let config = importer(&documented);
        assert_eq!(config.tables.exclude, ["sales.audit_*"]);
        assert_eq!((config.snapshot.rows_per_second, config.snapshot.connections), (Some(5000), 4));
        assert_eq!(config.headroom_warning, Duration::from_secs(12 * 3600));
        let name = |table| TableName::new("dbo", table);
        assert_eq!(config.on_gap_of, [(name("orders"), GapPolicy::Resnapshot)].into());
        assert_eq!(config.output.partition_by, [(name("orders"), "customer_id".to_owned())].into());
        assert!(matches!(config.lease, LeaseConfig::Postgres { .. }));
        let orders = &config.controls[&name("orders")];
        assert_eq!(orders.mask["email"], Mask::Truncate(3));
        assert_eq!((orders.mask.len(), orders.rename["cust_no"].as_str()), (3, "customer_id"));
        assert_eq!((orders.exclude.len(), orders.filter.as_deref()), (1, Some("region = 'EU' and deleted_at is null")));
        assert_eq!(config.keys, [(name("log"), vec!["day".to_owned(), "line".to_owned()])].into());
    }

    #[test]
    fn a_secret_in_a_file_is_read_at_each_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let text = format!("name: shop\nurl: sqlserver://sa@127.0.0.1/shop\npassword: {{file: {}}}\n", path.display());
        let source: Source = serde_yaml_ng::from_str(&text).unwrap();
        assert!(source.resolve().unwrap_err().to_string().contains("source.password"));
        std::fs::write(&path, "x").unwrap();
        assert_eq!(source.resolve().unwrap().password_file.as_deref(), Some(path.as_path()));
    }

    #[test]
    fn what_is_left_out_has_the_importers_defaults() {
        let least = "name: shop\nurl: sqlserver://sa:x@127.0.0.1/shop\n";
        let (config, defaults) = (importer(least), importer::Config::new("shop", importer(least).source, "data"));
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
        assert_eq!(importer(&format!("{least}poll_interval: 20ms\n")).poll_interval, Duration::from_millis(20));
    }
}
