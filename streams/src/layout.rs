//! Which stream an event goes to.

use schemas::TableName;
use schemas::progress::StreamName;
use serde::{Deserialize, Serialize};

/// How tables are laid out over streams. The progress stream stands beside them, with one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A stream per table: `<prefix>.<schema>.<table>`.
    #[default]
    Table,
    /// One stream for all tables: `<prefix>.events`.
    Shared,
}

impl Layout {
    /// The stream for a table's events. Kinesis allows letters, digits, `_`, `-` and `.`; any other character becomes `_` followed by its code point in hexadecimal
    /// and `_`, so that different tables never share a stream by accident.
    pub fn stream(self, prefix: &str, table: &TableName) -> StreamName {
        match self {
            Self::Table => StreamName(format!("{prefix}.{}.{}", plain(&table.schema), plain(&table.table))),
            Self::Shared => StreamName(format!("{prefix}.events")),
        }
    }

    /// The stream for the source's progress records.
    pub fn progress_stream(prefix: &str) -> StreamName {
        StreamName(format!("{prefix}.progress"))
    }

    /// Whether the stream has the name of a progress stream. (So has the stream of a table called `progress`: callers must be right with both.)
    pub fn is_progress_stream(stream: &StreamName) -> bool {
        stream.0.ends_with(".progress")
    }
}

fn plain(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            out.push(c)
        } else {
            out.push_str(&format!("_{:x}_", u32::from(c)))
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kinesis_allows() {
        let stream = |layout: Layout, table: &str| layout.stream("shop", &TableName::new("dbo", table)).0;
        assert_eq!(stream(Layout::Table, "order_items"), "shop.dbo.order_items");
        assert_eq!(stream(Layout::Table, "a b"), "shop.dbo.a_20_b");
        assert_eq!(stream(Layout::Shared, "a b"), "shop.events");
        assert_eq!(Layout::progress_stream("shop").0, "shop.progress");
        assert!(Layout::is_progress_stream(&Layout::progress_stream("shop")));
        assert!(!Layout::is_progress_stream(&Layout::Shared.stream("shop", &TableName::new("dbo", "a"))));
    }
}
