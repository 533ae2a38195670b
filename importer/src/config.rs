//! How an importer is set up. The defaults are here and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemas::TableName;
use schemas::contract::Contract;
use serde::Deserialize;
use streams::Layout;

use source::{Password, Source};

use crate::controls::TableControls;
use crate::encodings::Encodings;

/// Where the events of a source go, and how they are written: the same for every kind of source.
#[derive(Debug, Clone)]
pub struct Output {
    /// The source's name in the configuration, events and progress records.
    pub name: String,
    /// Begins the streams' names.
    pub prefix: String,
    pub layout: Layout,
    /// How events are written on the streams.
    pub encodings: Encodings,
    /// The column whose value is a table's partition key; by default the row's own key.
    pub partition_by: BTreeMap<TableName, String>,
    /// Where the contracts are: needed only where new versions of them are to be written, or events are not plain JSON.
    pub contracts_dir: Option<PathBuf>,
    /// Create the streams that do not exist.
    pub create_streams: bool,
    /// Shards of a created event stream.
    pub shards: u32,
}

impl Output {
    pub fn new(name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            prefix: name.clone(),
            name,
            layout: Layout::default(),
            encodings: Encodings::default(),
            partition_by: BTreeMap::new(),
            contracts_dir: None,
            create_streams: true,
            shards: 1,
        }
    }
}

/// Everything an importer of a SQL Server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    pub output: Output,
    pub source: Source,
    pub tables: TableFilter,
    /// Contracts by table. A table without one is held to what the catalog says.
    pub contracts: BTreeMap<TableName, Contract>,
    /// What identifies a row of a table that has neither a primary key nor a unique index: columns of the table that are never NULL.
    pub keys: BTreeMap<TableName, Vec<String>>,
    /// What is published of a table's columns and rows.
    pub controls: BTreeMap<TableName, TableControls>,
    /// Where progress, epoch and lock lie. One source, one directory.
    pub data_dir: PathBuf,
    /// How importers of one source agree on which of them works, and where progress is kept.
    pub lease: LeaseConfig,
    pub snapshot: SnapshotConfig,
    /// What happens when changes of a table were removed before they were read.
    pub on_gap: GapPolicy,
    /// The same, by table.
    pub on_gap_of: BTreeMap<TableName, GapPolicy>,
    /// What happens when a table has changed so that it does not fit its contract any more.
    pub on_breaking_change: BreakingPolicy,
    /// What happens when a table has changed so that a new version of its contract would fit it.
    pub on_compatible_change: CompatiblePolicy,
    /// Rows of a page of changes, at most; fewer where rows are large, or where many tables are read side by side.
    pub page_rows: usize,
    /// Transactions of a tick, at most: what a restart may repeat.
    pub tick_transactions: usize,
    /// Connections that read change tables side by side.
    pub tail_connections: usize,
    /// How long to wait before looking again, at most, when there was nothing new. Right after changes the waits are shorter.
    pub poll_interval: Duration,
    /// The server's time zone, as an IANA name: what commit times are converted with. Without it, the one that the server names, or else the offset that it has now.
    pub time_zone: Option<String>,
    /// How long a source that cannot be reached is tried at the start, before giving up. Once it has been reached, it is tried for ever.
    pub startup_patience: Duration,
    /// How often a quiet capture is looked at for having stalled, and how long what cannot be looked at may be silent before it counts as stalled: SQL Server captures
    /// something every 5 minutes even on an idle database.
    pub stall_check: Duration,
    pub stalled_after: Duration,
    /// Where less time than this is left before cleanup removes changes that were not read, it is warned of, and all effort goes to the tail.
    pub headroom_warning: Duration,
    /// How often the headroom is looked at.
    pub headroom_check: Duration,
}

/// How the initial snapshot, and every later reading of whole tables, is done.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotConfig {
    pub mode: SnapshotMode,
    /// Connections that read tables, and ranges of one table, side by side.
    pub connections: usize,
    /// Rows that are acknowledged together, which is what a restart may repeat, and rows of a chunk, at most; fewer where rows are large.
    pub chunk_rows: usize,
    /// A table with more rows than this, by the catalog's count, is read in ranges side by side.
    pub split_rows: u64,
    /// Rows a second over all tables, at most; none: as fast as it goes.
    pub rows_per_second: Option<u32>,
    /// Wait as long as a chunk took when it took several times longer than chunks did so far: the source is busy with something else.
    pub yield_to_load: bool,
    /// Read all tables as of one LSN, where SNAPSHOT isolation is on. Takes a short shared lock on each table, and cannot resume.
    pub fenced: bool,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self {
            mode: SnapshotMode::default(),
            connections: 4,
            chunk_rows: 20_000,
            split_rows: 50_000,
            rows_per_second: None,
            yield_to_load: true,
            fenced: false,
        }
    }
}

/// When tables are read as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMode {
    /// At the first start; tables that are captured later when they come.
    #[default]
    Initial,
    /// As `initial`, and again where changes were lost, as if `on_gap` were `resnapshot`.
    WhenNeeded,
    /// Never: changes from the first start on, and no rows from before.
    Never,
    /// At the first start, and then the tail just until the tables are as of one LSN; then the importer ends.
    Only,
}

/// What happens when changes were removed before they were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapPolicy {
    /// The importer ends with an error, and nothing is promised past the gap.
    #[default]
    Stop,
    /// The table is read again beside the tail, under a new generation, so that rows that vanished in the gap are removed downstream.
    Resnapshot,
}

/// What happens when a table does not fit its contract any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakingPolicy {
    /// The table is held: none of its changes are published, and progress records say that it is not consistent, so that no joiner goes past the change. The other tables
    /// go on. Once table and contract fit again, it is read anew beside the tail.
    #[default]
    Stop,
    /// The importer ends with an error, and all progress with it: once table and contract fit again, every change of every table is published one by one, in order, for as long as the retention has them.
    StopAll,
    /// Its changes are dead-lettered, and everything goes on.
    DeadLetter,
}

/// What happens when a table has changed so that a new version of its contract would fit it ([`schemas::contract::Compatibility::Compatible`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompatiblePolicy {
    /// It is warned of. What the contract does not name is not published, and rows beyond its limits are dead-lettered.
    #[default]
    Report,
    /// The new version is written and in force at once. Where it cannot be written, it is warned of.
    Write,
}

/// Where importers of one source agree on which of them works.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LeaseConfig {
    /// A lock in the data directory, for importers on one machine.
    #[default]
    File,
    /// A row of a Postgres database.
    Postgres { url: Password },
    /// An item of a DynamoDB table, which has the partition key `source` of type string.
    DynamoDb { table: String, region: Option<String>, endpoint: Option<String> },
}

impl Config {
    pub fn new(name: impl Into<String>, source: Source, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            output: Output::new(name),
            source,
            tables: TableFilter::default(),
            contracts: BTreeMap::new(),
            keys: BTreeMap::new(),
            controls: BTreeMap::new(),
            data_dir: data_dir.into(),
            lease: LeaseConfig::default(),
            snapshot: SnapshotConfig::default(),
            on_gap: GapPolicy::default(),
            on_gap_of: BTreeMap::new(),
            on_breaking_change: BreakingPolicy::default(),
            on_compatible_change: CompatiblePolicy::default(),
            page_rows: 20_000,
            tick_transactions: 10_000,
            tail_connections: 4,
            poll_interval: Duration::from_millis(100),
            time_zone: None,
            startup_patience: Duration::from_secs(30),
            stall_check: Duration::from_secs(30),
            stalled_after: Duration::from_secs(11 * 60),
            headroom_warning: Duration::from_secs(12 * 3600),
            headroom_check: Duration::from_secs(60),
        }
    }

    pub(crate) fn gap_policy(&self, table: &TableName) -> GapPolicy {
        match (self.on_gap_of.get(table), self.snapshot.mode) {
            (Some(policy), _) => *policy,
            (None, SnapshotMode::WhenNeeded) => GapPolicy::Resnapshot,
            (None, _) => self.on_gap,
        }
    }
}

/// Which captured tables are imported. Patterns are `schema.table`, with `*` for any characters, compared without case.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableFilter {
    /// None: every captured table.
    pub include: Vec<String>,
    pub exclude: Vec<String>,
}

impl TableFilter {
    pub fn takes(&self, table: &TableName) -> bool {
        let named = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, table));
        (self.include.is_empty() || named(&self.include)) && !named(&self.exclude)
    }
}

/// Whether a pattern names a table.
pub(crate) fn matches(pattern: &str, table: &TableName) -> bool {
    let written = table.to_string().to_lowercase();
    let plain = format!("{}.{}", table.schema, table.table).to_lowercase();
    let pattern = pattern.to_lowercase();
    wildcard(&pattern, &written) || wildcard(&pattern, &plain)
}

fn wildcard(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_tables() {
        let orders = TableName::new("dbo", "Orders");
        for pattern in ["dbo.orders", "DBO.*", "*", "*.orders", "d*.o*rs", "dbo.*orders*"] {
            assert!(matches(pattern, &orders), "{pattern}");
        }
        for pattern in ["orders", "dbo.order", "dbo", "sales.*", "*.orders_*"] {
            assert!(!matches(pattern, &orders), "{pattern}");
        }
        assert!(matches("[my schema].t", &TableName::new("my schema", "t")));
        let filter = TableFilter { include: vec!["dbo.*".into()], exclude: vec!["*.audit*".into()] };
        assert!(filter.takes(&orders));
        assert!(!filter.takes(&TableName::new("dbo", "audit_log")));
        assert!(!filter.takes(&TableName::new("sales", "orders")));
    }
}
