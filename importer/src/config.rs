//! How an importer is set up. The defaults are here and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemas::TableName;
use schemas::contract::Contract;
use serde::Deserialize;
use streams::Layout;

use source::Source;

/// Everything an importer needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The source's name in the configuration, events and progress records.
    pub name: String,
    pub source: Source,
    /// Begins the streams' names.
    pub prefix: String,
    pub layout: Layout,
    pub tables: TableFilter,
    /// Contracts by table. A table without one is held to what the catalog says.
    pub contracts: BTreeMap<TableName, Contract>,
    /// The column whose value is a table's partition key; by default the row's own key.
    pub partition_by: BTreeMap<TableName, String>,
    /// Where progress, epoch and lock lie. One source, one directory.
    pub data_dir: PathBuf,
    /// Create the streams that do not exist.
    pub create_streams: bool,
    /// Shards of a created event stream.
    pub shards: u32,
    /// Rows of a snapshot chunk, at most; fewer where rows are large.
    pub chunk_rows: usize,
    /// Rows of a page of changes, at most; fewer where rows are large, or where many tables are read side by side.
    pub page_rows: usize,
    /// Transactions of a tick, at most: what a restart may repeat.
    pub tick_transactions: usize,
    /// How long to wait before looking again, when there was nothing new.
    pub poll_interval: Duration,
    /// The server's time zone, as an IANA name: what commit times are converted with. Without it, the offset that the server has now.
    pub time_zone: Option<String>,
    /// How long a source that cannot be reached is tried at the start, before giving up. Once it has been reached, it is tried for ever.
    pub startup_patience: Duration,
    /// Without any captured transaction for so long, capture counts as stalled: SQL Server captures something every 5 minutes even on an idle database.
    pub stalled_after: Duration,
}

impl Config {
    pub fn new(name: impl Into<String>, source: Source, data_dir: impl Into<PathBuf>) -> Self {
        let name = name.into();
        Self {
            prefix: name.clone(),
            name,
            source,
            layout: Layout::default(),
            tables: TableFilter::default(),
            contracts: BTreeMap::new(),
            partition_by: BTreeMap::new(),
            data_dir: data_dir.into(),
            create_streams: true,
            shards: 1,
            chunk_rows: 10_000,
            page_rows: 20_000,
            tick_transactions: 10_000,
            poll_interval: Duration::from_millis(100),
            time_zone: None,
            startup_patience: Duration::from_secs(30),
            stalled_after: Duration::from_secs(11 * 60),
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

    /// Whether a table is asked for by its own name, rather than by a pattern that happens to take it.
    pub(crate) fn names(&self, table: &TableName) -> bool {
        self.include.iter().any(|pattern| !pattern.contains('*') && matches(pattern, table))
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
        assert!(!filter.names(&orders));
        assert!(TableFilter { include: vec!["dbo.orders".into()], exclude: vec![] }.names(&orders));
    }
}
