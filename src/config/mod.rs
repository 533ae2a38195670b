//! The configuration file: one YAML file, unknown keys refused, secrets by reference.
//!
//! ```yaml
//! source:                             # or `sources`, a list of such: entities are made over all of them
//!   name: shop                        # in progress records, metrics and stream names
//!   url: sqlserver://tributary@db.example:1433/shop?encrypt=on
//!   password: {env: MSSQL_PASSWORD}   # or {file: /run/secrets/mssql}
//!   tables: [dbo.orders]              # default: every captured table; patterns with * are allowed
//!   # … and all that `source` documents: snapshots, gaps, schema changes, single tables; or `stream`, a service's own, as `service` documents
//! streams:
//!   prefix: shop                      # default: the source's name
//!   layout: shared                    # table (default on Kinesis) or shared (default otherwise)
//!   encoding: avro                    # or protobuf, debezium_json (default)
//!   compression: zstd                 # or none (default)
//!   per_table: {dbo.audit: {encoding: debezium_json}}
//!   provider: {embedded: {path: data/streams}}
//! archive:                            # default: none
//!   store: {local: {path: data/archive}}  # or {s3: {bucket: shop-archive, region: eu-central-1}}
//! joiner:                             # several joiners: each makes a share, or stands by, as `instances` documents; default: one makes all
//!   range: 0/4
//! checkpoints:                        # of the joiner's state; default: none
//!   store: {local: {path: /mnt/checkpoints}}  # or {s3: {bucket: shop-checkpoints, region: eu-central-1}}
//! contracts: schemas/tables           # where the table contracts are
//! entities: schemas/entities          # where the entity definitions are
//! data: data                          # saved progress and the joiner's state
//! outbox: {backlog_bytes: 17179869184}  # what is kept for sinks that are down, and for subscribers
//! sinks:
//!   - {type: sqlite, path: data/entities.db}
//! read_from: sqlite                   # the sink that queries read; default: the first that can be read
//! api:
//!   listen: 127.0.0.1:8080
//! ```
//! With several sources, each is to itself below the same keys ([`Config::of`]): its contracts in `<contracts>/<name>`, its streams under `<prefix>.<name>` (or `<name>`), its archive in the folder `<name>` of the store, its saved progress in `<data>/importer/<name>`.
//!
//! `docs/configuration.md` lists every key; the source's own are in [`source`], those of a service's stream in [`service`]. Relative paths are relative to the folder of the file; those of secrets and certificates (`{file: …}`, `ca_file`) to the working directory.

mod archives;
mod instances;
#[cfg(test)]
mod reference;
pub(crate) mod service;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use checkpoints::Checkpoints;
use objects::Objects;
use schemas::TableName;
use schemas::contract::Contract;
use schemas::encoding::{Compression, Encoding, Schemas};
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use schemas::table::{SourceName, TableSchema};
use serde::Deserialize;
use sinks::{Entry, SinkConfig};
use streams::Layout;

use crate::cli::SourceArgs;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The short form of a list of one; it is in the list when the file has been read.
    #[serde(default)]
    source: Option<source::Source>,
    /// In the order of their names.
    #[serde(default)]
    pub(crate) sources: Vec<source::Source>,
    pub(crate) streams: Streams,
    #[serde(default)]
    pub(crate) archive: Option<archive::Config>,
    #[serde(default)]
    pub(crate) joiner: instances::Joiner,
    #[serde(default)]
    pub(crate) checkpoints: Option<checkpoints::Config>,
    #[serde(default = "default_contracts")]
    pub(crate) contracts: PathBuf,
    #[serde(default = "default_entities")]
    pub(crate) entities: PathBuf,
    #[serde(default = "default_data")]
    pub(crate) data: PathBuf,
    #[serde(default)]
    pub(crate) outbox: Outbox,
    #[serde(default)]
    pub(crate) sinks: Vec<Entry>,
    #[serde(default)]
    pub(crate) read_from: Option<String>,
    #[serde(default)]
    pub(crate) api: api::Config,
    /// Below the data folder, where the progress of one of several sources is.
    #[serde(skip)]
    progress: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Streams {
    #[serde(default)]
    pub(crate) prefix: Option<String>,
    #[serde(default)]
    pub(crate) layout: Option<Layout>,
    /// Shards of a stream that is created.
    #[serde(default = "default_shards")]
    pub(crate) shards: u32,
    #[serde(default)]
    pub(crate) encoding: Encoding,
    #[serde(default)]
    pub(crate) compression: Compression,
    /// What single tables have instead.
    #[serde(default)]
    pub(crate) per_table: BTreeMap<TableName, TableStream>,
    pub(crate) provider: streams::config::Config,
}

/// What is kept of changes of entities, for sinks that are down and for subscribers. What is not said is as [`joiner::Config`] has it.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Outbox {
    #[serde(default)]
    backlog_bytes: Option<u64>,
    #[serde(default)]
    kept_hours: Option<u64>,
    #[serde(default)]
    kept_entries: Option<u64>,
}

impl Outbox {
    fn apply(self, settings: &mut joiner::Config) {
        let Self { backlog_bytes, kept_hours, kept_entries } = self;
        settings.backlog_bytes = backlog_bytes.unwrap_or(settings.backlog_bytes);
        settings.outbox_age = kept_hours.map_or(settings.outbox_age, |hours| Duration::from_secs(hours.saturating_mul(3600)));
        settings.outbox_entries = kept_entries.unwrap_or(settings.outbox_entries);
    }
}

/// How the events of one table are written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableStream {
    #[serde(default)]
    encoding: Option<Encoding>,
    #[serde(default)]
    compression: Option<Compression>,
}

fn default_contracts() -> PathBuf {
    "schemas/tables".into()
}
fn default_entities() -> PathBuf {
    "schemas/entities".into()
}
fn default_data() -> PathBuf {
    "data".into()
}
fn default_shards() -> u32 {
    1
}

impl Config {
    /// Reads the file. Errors name it, the line and the key.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{}: cannot be read. `tributary init` writes one, --config names another", path.display())
        })?;
        let mut config = Self::parse(&text).with_context(|| format!("{}: the configuration is wrong", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        config.resolve_paths(folder);
        Ok(config)
    }

    /// What a file says, with its paths as they stand there.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        serde_yaml_ng::from_str::<Self>(text)?.checked()
    }

    /// The same of one of its sources ([`Config::of`]).
    pub(crate) fn load_one(args: &SourceArgs) -> anyhow::Result<Self> {
        Self::load(&args.config.config)?.of(args.source.as_deref())
    }

    /// The sources in a list, and everything checked that can be wrong beyond the form.
    fn checked(mut self) -> anyhow::Result<Self> {
        match (self.source.take(), self.sources.is_empty()) {
            (Some(only), true) => self.sources = vec![only],
            (None, false) => self.sources.sort_by(|a, b| a.name.cmp(&b.name)),
            (Some(_), false) => bail!("source and sources: keep the list"),
            (None, true) => bail!("source: what is read is missing: name a database, or a service's stream"),
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> anyhow::Result<()> {
        let plain =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        for source in &self.sources {
            if !plain(&source.name) {
                bail!("source.name {:?}: only letters, digits, '-', '_' and '.', because it stands in stream names", source.name);
            }
            source.check().with_context(|| format!("source {}", source.name))?;
        }
        self.check_several()?;
        self.joiner.check()?;
        if let Some(prefix) = self.streams.prefix.as_deref().filter(|prefix| !plain(prefix)) {
            bail!("streams.prefix {prefix:?}: only letters, digits, '-', '_' and '.'");
        }
        let mut names: Vec<&str> = self.sinks.iter().map(Entry::name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("sinks: two are called {:?}: give each its own `name`", twice[0]);
        }
        if let Some(name) = &self.read_from {
            match self.sinks.iter().find(|sink| sink.name() == name) {
                None => bail!("read_from: there is no sink {name:?}; there are {names:?}"),
                Some(entry) if !entry.sink.can_be_read() => {
                    bail!("read_from: queries cannot be read from {name:?}: name a SQLite or Postgres sink")
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What goes only with one source.
    fn check_several(&self) -> anyhow::Result<()> {
        if self.sources.len() < 2 {
            return Ok(());
        }
        let twice = self.sources.windows(2).find(|pair| pair[0].name == pair[1].name);
        if let Some(pair) = twice {
            bail!("sources: two are called {:?}: give each a name of its own", pair[0].name);
        }
        // A name with a dot could be the beginning of another's streams.
        if let Some(source) = self.sources.iter().find(|source| source.name.contains('.')) {
            bail!("sources: {:?}: of several sources, none may have a dot in its name", source.name);
        }
        Ok(())
    }

    /// Whether entities are made of several sources.
    pub(crate) fn has_several_sources(&self) -> bool {
        self.sources.len() > 1
    }

    /// The names of the sources, with commas between them.
    pub(crate) fn source_names(&self) -> String {
        self.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The same with one of its sources alone, for all that works with one: the one that is named, or the only one.
    pub(crate) fn of(&self, name: Option<&str>) -> anyhow::Result<Self> {
        let source = match (name, self.sources.as_slice()) {
            (None, [only]) => only,
            (None, _) => bail!("there are several sources ({}): say which one is meant, with --source", self.source_names()),
            (Some(name), sources) => sources
                .iter()
                .find(|source| source.name == name)
                .with_context(|| format!("there is no source {name:?}; there are {}", self.source_names()))?,
        };
        let mut one = Self { sources: vec![source.clone()], ..self.clone() };
        if self.has_several_sources() {
            let name = &source.name;
            one.streams.prefix =
                Some(self.streams.prefix.as_ref().map_or_else(|| name.clone(), |prefix| format!("{prefix}.{name}")));
            one.contracts = self.contracts.join(name);
            if let Some(archive) = &mut one.archive {
                archive.store = archive.store.below(name);
            }
            one.progress = Some(name.into());
            let per_table = self.streams.per_table.iter();
            let ours = per_table.filter(|(table, _)| table.source.as_deref().is_none_or(|source| source == name));
            one.streams.per_table = ours.map(|(table, of)| (table.clone().within(), *of)).collect();
        }
        Ok(one)
    }

    /// Each source alone.
    pub(crate) fn each(&self) -> anyhow::Result<Vec<Self>> {
        self.sources.iter().map(|source| self.of(Some(&source.name))).collect()
    }

    /// The source, of a configuration of one ([`Config::of`]).
    pub(crate) fn source(&self) -> &source::Source {
        &self.sources[0]
    }

    fn progress_dir(&self) -> PathBuf {
        let folder = self.data.join("importer");
        self.progress.as_ref().map_or_else(|| folder.clone(), |of_source| folder.join(of_source))
    }

    fn resolve_paths(&mut self, folder: &Path) {
        for path in [&mut self.contracts, &mut self.entities, &mut self.data] {
            *path = folder.join(&path);
        }
        self.streams.provider.relative_to(folder);
        self.sources.iter_mut().for_each(|source| source.relative_to(folder));
        self.joiner.relative_to(folder);
        if let Some(archive) = &mut self.archive {
            archive.store.relative_to(folder);
        }
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.store.relative_to(folder);
        }
        for sink in &mut self.sinks {
            match &mut sink.sink {
                SinkConfig::Sqlite(sqlite) => sqlite.path = folder.join(&sqlite.path),
                SinkConfig::Lake(lake) => lake.store.relative_to(folder),
                SinkConfig::Dynamodb(dynamodb) => {
                    if let Some(oversize) = &mut dynamodb.oversize {
                        oversize.relative_to(folder);
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) fn prefix(&self) -> &str {
        self.streams.prefix.as_deref().unwrap_or(&self.source().name)
    }

    pub(crate) fn layout(&self) -> Layout {
        let default =
            if matches!(self.streams.provider, streams::config::Config::Kinesis(_)) { Layout::Table } else { Layout::Shared };
        self.streams.layout.unwrap_or(default)
    }

    /// All that the importer needs.
    pub(crate) fn importer(&self, contracts: Vec<Contract>) -> anyhow::Result<importer::Config> {
        let mut settings = self.source().importer(self.progress_dir())?;
        settings.output = self.output(settings.output.partition_by);
        settings.contracts = contracts.into_iter().map(|contract| (contract.table.name.clone(), contract)).collect();
        Ok(settings)
    }

    /// All that the importer of a service's stream needs.
    pub(crate) fn service_importer(
        &self,
        service: &service::Service,
        contracts: Vec<Contract>,
    ) -> importer::service::ServiceConfig {
        let mut settings = service.importer(&self.source().name, self.progress_dir());
        settings.output = self.output(service.partition_by());
        settings.contracts = contracts.into_iter().map(|contract| (contract.table.name.clone(), contract)).collect();
        settings
    }

    /// Where the source's events go.
    fn output(&self, partition_by: BTreeMap<TableName, String>) -> importer::Output {
        let of_table = self.streams.per_table.iter().map(|(name, table)| (name.clone(), (table.encoding, table.compression)));
        importer::Output {
            prefix: self.prefix().to_owned(),
            layout: self.layout(),
            shards: self.streams.shards,
            contracts_dir: Some(self.contracts.clone()),
            encodings: importer::encodings::Encodings {
                encoding: self.streams.encoding,
                compression: self.streams.compression,
                of_table: of_table.collect(),
            },
            partition_by,
            ..importer::Output::new(&self.source().name)
        }
    }

    /// What records may be written under: the schemas beside the contracts, looked for anew whenever one is not there.
    pub(crate) fn schemas(&self) -> anyhow::Result<Arc<Schemas>> {
        let folder = self.contracts.clone();
        Ok(Arc::new(Schemas::new(move || importer::encodings::read(&folder))?))
    }

    /// The joiner's checkpoints, where there are to be any.
    pub(crate) async fn open_checkpoints(&self) -> anyhow::Result<Option<Checkpoints>> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(None) };
        let objects = Box::pin(Objects::open(&checkpoints.store)).await?;
        Ok(Some(Checkpoints::open(objects, &self.source_names()).of_range(self.joiner.range)))
    }

    /// Where the joiner's state is.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.data.join("state")
    }

    /// All that the joiner needs.
    pub(crate) fn joiner(&self, plans: Vec<Arc<Plan>>) -> anyhow::Result<joiner::Config> {
        let source =
            |one: Self| Ok(joiner::Source { schemas: one.schemas()?, ..joiner::Source::new(&one.source().name, one.prefix()) });
        let sources = self.each()?.into_iter().map(source).collect::<anyhow::Result<_>>()?;
        let mut settings = joiner::Config::of(self.state_dir(), plans, sources);
        settings.layout = self.layout();
        settings.range = self.joiner.range;
        self.outbox.apply(&mut settings);
        Ok(settings)
    }

    /// Where joiners of this one's share agree on which of them works; none where there is but one.
    pub(crate) async fn open_lease(&self) -> anyhow::Result<Option<Arc<dyn importer::lease::Store>>> {
        let Some((lease, folder)) = self.joiner.lease()? else { return Ok(None) };
        let name = format!("joiner/{}/{}", self.source_names(), self.joiner.range);
        Ok(Some(importer::lease::open_named(&lease, &folder, &name).await?))
    }

    /// The sink that queries read.
    pub(crate) fn readable_sink(&self) -> Option<&Entry> {
        match &self.read_from {
            Some(name) => self.sinks.iter().find(|sink| sink.name() == name),
            None => self.sinks.iter().find(|entry| entry.sink.can_be_read()),
        }
    }

    /// The table contracts in force, by table; of several sources, by source and table.
    pub(crate) fn load_contracts(&self) -> anyhow::Result<Vec<Contract>> {
        if self.has_several_sources() {
            let mut all = Vec::new();
            for one in self.each()? {
                let name: SourceName = one.source().name.as_str().into();
                all.extend(one.load_contracts()?.into_iter().map(|contract| contract.of(&name)));
            }
            return Ok(all);
        }
        let contracts = importer::contracts::read(&self.contracts)?;
        if contracts.is_empty() {
            bail!(
                "{}: no table contracts (*.json) there: `tributary init` writes them from the catalog",
                self.contracts.display()
            );
        }
        Ok(contracts.into_values().map(|versions| versions.current).collect())
    }

    /// The entity definitions, by file name.
    pub(crate) fn load_entities(&self) -> anyhow::Result<Vec<EntityDefinition>> {
        let entities = read_folder(&self.entities, "yaml", |name, text| Ok(EntityDefinition::from_yaml(name, text)?))?;
        if entities.is_empty() {
            bail!(
                "{}: no entity definitions (*.yaml) there: `tributary init` infers them from the foreign keys",
                self.entities.display()
            );
        }
        Ok(entities)
    }
}

/// Looks tables up in contracts. A name without a source is that of the only table that is called so, whichever source it is in.
pub(crate) fn table_of<'a>(contracts: &'a [Contract]) -> impl Fn(&TableName) -> Option<Arc<TableSchema>> + 'a {
    move |name| {
        let called = |found: &&Contract| {
            let found = &found.table.name;
            (&found.schema, &found.table) == (&name.schema, &name.table) && (name.source.is_none() || found.source == name.source)
        };
        let mut found = contracts.iter().filter(called);
        let first = found.next()?;
        found.next().is_none().then(|| first.table.clone())
    }
}

/// The sources that have a table of this name, where a definition leaves open which is meant.
pub(crate) fn sources_of<'a>(contracts: &'a [Contract], name: &'a TableName) -> impl Iterator<Item = &'a TableName> {
    let names = contracts.iter().map(|contract| &contract.table.name);
    names.filter(|found| name.source.is_none() && (&found.schema, &found.table) == (&name.schema, &name.table))
}

fn read_folder<T>(folder: &Path, extension: &str, parse: impl Fn(&str, &str) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}: the folder cannot be read", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.extension().is_some_and(|found| found == extension) {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).with_context(|| format!("{name}: cannot be read"))?;
            parse(&name, &text)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "source: {name: shop, url: 'sqlserver://sa@127.0.0.1/shop', poll_interval: 20ms}\nstreams:\n  provider: {embedded: {path: streams}}\nsinks:\n  - {type: sqlite, path: e.db}\n";

    fn load(text: &str) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tributary.yaml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn a_configuration_is_read_with_its_defaults() {
        let config = load(GOOD).unwrap();
        assert_eq!(config.prefix(), "shop");
        assert_eq!(config.layout(), Layout::Shared);
        assert!(config.contracts.ends_with("schemas/tables") && config.contracts.is_absolute());
        assert_eq!(config.readable_sink().unwrap().name(), "sqlite");
    }

    #[test]
    fn of_several_sources_each_is_to_itself() {
        let source = |name: &str| format!("{{name: {name}, url: 'sqlserver://sa@127.0.0.1/{name}'}}");
        let text = |sources: &str, rest: &str| {
            format!(
                "sources: [{sources}]\nstreams: {{provider: {{embedded: {{path: streams}}}}, prefix: p, per_table: {{shop.dbo.a: {{encoding: avro}}, bank.dbo.b: {{encoding: avro}}}}}}\n{rest}"
            )
        };
        let both = format!("{}, {}", source("shop"), source("bank"));
        let config = load(&text(&both, "")).unwrap();
        assert_eq!(config.source_names(), "bank,shop");
        let shop = config.of(Some("shop")).unwrap();
        assert_eq!((shop.prefix(), shop.source_names().as_str()), ("p.shop", "shop"));
        assert!(shop.contracts.ends_with("schemas/tables/shop") && shop.progress_dir().ends_with("data/importer/shop"));
        assert_eq!(shop.streams.per_table.keys().map(ToString::to_string).collect::<Vec<_>>(), ["dbo.a"]);
        assert!(config.of(None).unwrap_err().to_string().contains("--source"));
        assert!(config.of(Some("till")).unwrap_err().to_string().contains("bank,shop"));
        let archived = load(&text(&both, "archive: {store: {local: {path: a}}}\n")).unwrap();
        let of_bank = archived.of(Some("bank")).unwrap().archive.unwrap();
        assert!(of_bank.store.to_string().ends_with("/a/bank"), "{}", of_bank.store);
        // One of a list is as one by itself.
        let only = load(&text(&source("shop"), "")).unwrap().of(None).unwrap();
        assert!(
            only.contracts.ends_with("schemas/tables") && only.prefix() == "p" && only.progress_dir().ends_with("data/importer")
        );

        let refused = |sources: &str, rest: &str| format!("{:#}", load(&text(sources, rest)).unwrap_err());
        for (told, expected) in [
            (refused(&format!("{both}, {}", source("bank")), ""), "two are called"),
            (refused(&format!("{both}, {}", source("p.shop")), ""), "dot"),
            (refused(&both, &format!("source: {}\n", source("till"))), "keep the list"),
            (refused("", ""), "what is read is missing"),
        ] {
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        for (from, to, expected) in [
            ("poll_interval: 20ms", "poll_intervall: 20ms", "poll_intervall"),
            ("poll_interval: 20ms", "poll_interval: 20", "no unit"),
            ("poll_interval: 20ms", "on_gap: ignore", "on_gap"),
            ("poll_interval: 20ms", "lease: {redis: {}}", "redis"),
            ("poll_interval: 20ms", "lease: {postgres: {url: {env: X}}, dynamodb: {table: t}}", "source.lease"),
            ("poll_interval: 20ms", "snapshot: {mode: initially}", "initially"),
            ("poll_interval: 20ms", "snapshot: {paralel: 4}", "paralel"),
            ("poll_interval: 20ms", "snapshot: {connections: 0}", "source.snapshot.connections"),
            ("poll_interval: 20ms", "per_table: {orders: {on_gap: stop}}", "schema.table"),
            ("poll_interval: 20ms", "per_table: {dbo.orders: {on_gab: stop}}", "on_gab"),
            ("embedded:", "kafka:", "kafka"),
            ("name: shop", "name: 'my shop'", "source.name"),
            ("type: sqlite", "type: sqlight", "sqlight"),
            ("streams:\n", "streams:\n  layout: tables\n", "tables"),
            ("streams:\n", "streams:\n  encoding: json\n", "debezium_json"),
            ("streams:\n", "streams:\n  per_table: {dbo.orders: {compression: gzip}}\n", "gzip"),
        ] {
            let error = format!("{:#}", load(&GOOD.replace(from, to)).unwrap_err());
            assert!(error.contains(expected) && error.contains("tributary.yaml"), "{error}");
        }
        let error = format!("{:#}", load(&format!("{GOOD}read_from: postgres\n")).unwrap_err());
        assert!(error.contains("there is no sink \"postgres\""), "{error}");
        let error = format!("{:#}", Config::load(Path::new("/nowhere/tributary.yaml")).unwrap_err());
        assert!(error.contains("tributary init"), "{error}");
    }
}
