//! Progress records: what the importer says of how far it has come.
//!
//! A record is published after every event that it covers has been acknowledged by the stream (INV-2), and nothing at or below its `to_lsn` is
//! published after it under the same epoch, except repeats (INV-1). It names where each shard stood, so that a reader that has read each
//! shard up to the named sequence number *knows* that it holds everything up to `to_lsn`, without heartbeats on idle shards.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::lsn::Lsn;
use crate::table::TableName;

/// A record's place in its shard: a whole number that grows, of any length (Kinesis uses 56 digits). Compared as a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SequenceNumber(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a sequence number: expected decimal digits")]
pub struct ParseSequenceNumberError {
    pub text: String,
}

impl SequenceNumber {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number where it fits, as the embedded and in-memory streams' do.
    pub fn to_u64(&self) -> Option<u64> {
        self.0.parse().ok()
    }
}

impl From<u64> for SequenceNumber {
    fn from(number: u64) -> Self {
        Self(number.to_string())
    }
}

impl FromStr for SequenceNumber {
    type Err = ParseSequenceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseSequenceNumberError { text: text.to_owned() });
        }
        let digits = text.trim_start_matches('0');
        Ok(Self(if digits.is_empty() { "0" } else { digits }.to_owned()))
    }
}

impl TryFrom<String> for SequenceNumber {
    type Error = ParseSequenceNumberError;

    /// Keeps the string where it is written as numbers are, without leading zeros.
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_plain = !text.starts_with('0') && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_plain { Ok(Self(text)) } else { text.parse() }
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Ord for SequenceNumber {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for SequenceNumber {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Serialize for SequenceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SequenceNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A stream's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamName(pub String);

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A shard's name within its stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub String);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The last sequence number, by stream and shard. A shard that is not named has held nothing yet.
pub type ShardPositions = BTreeMap<StreamName, BTreeMap<ShardId, SequenceNumber>>;

/// Which part of the work a progress record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Phase {
    /// Some rows of the initial snapshot have been published. `from_lsn` = `to_lsn` = the LSN noted before reading.
    Snapshot,
    /// The whole snapshot has been published. The tables are the source's as of one LSN once the tail has passed `consistent_from`, the captured
    /// maximum noted after the last chunk was read; before that, rows of different ages stand side by side.
    SnapshotComplete { consistent_from: Lsn },
    /// Every change in (`from_lsn`, `to_lsn`] has been published.
    Tail,
}

/// A table that is read again while the tail goes on: after a gap in its changes, by command, or because it is captured only now.
///
/// Its rows are `r` events ([`Op::Reread`](crate::event::Op::Reread)) that are published between ticks, when the tail stands at the LSN that the events carry as their commit LSN: what was read is that old or newer, and the tail's later changes replay over it, as over
/// the initial snapshot. The importer saves that it rereads, and under which generation, before it publishes the first row; from then on each record carries the entry, until the tail has passed `consistent_from` of a reread
/// that is finished. A record's range may be empty: then it speaks of the rows alone. Rows that no record speaks of are not applied.
///
/// # Who reads
/// A row that was read is right where it stands only as long as whoever read it has the tail at that place. So each stretch of reading between two ticks has a number, its *reading*, greater than all before, which its rows carry as their
/// `command_id` and its records here. Rows of another reading than the record that covers them first are left out: they come from an importer that was replaced, or from a request that was given up, sent again and carried out late after all, and
/// stand behind changes that are newer. The record that covers a reading is the last that names it. Before its first row an attempt of an importer publishes a record, so that whatever an importer before it had published and had accepted is older than what the attempt reads; what an attempt before
/// read and did not save as read is read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reread {
    /// Greater than that of any earlier reread of the table.
    pub generation: u64,
    /// Which rows count.
    #[serde(default)]
    pub reading: i32,
    /// From which LSN on the table's rows are the source's as of one LSN; `None` while that is not known, for more is being read. Until the tail is there, nothing is consistent.
    pub consistent_from: Option<Lsn>,
    /// Nothing more will be read.
    pub finished: bool,
    /// All rows are read, not a range of keys: those that are not among them when it is finished do not exist any more.
    pub whole: bool,
    /// After a gap: the first LSN from which on the table's changes are all there again. Those before it are not, but an importer that died before it could say so may have published some of them: they do not count.
    #[serde(default, skip_serializing_if = "Lsn::is_zero")]
    pub floor: Lsn,
}

impl Reread {
    /// Whether rows of different ages stand side by side when the tail is at `lsn`.
    pub fn holds(&self, lsn: Lsn) -> bool {
        self.consistent_from.is_none_or(|from| lsn < from)
    }
}

/// "Everything at or below `to_lsn` has been published."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressRecord {
    /// The source's name in the configuration.
    pub source: String,
    /// Fencing token: of two importers the one with the greater epoch is right, and the other's records are refused.
    pub epoch: u64,
    #[serde(flatten)]
    pub phase: Phase,
    /// Exclusive.
    pub from_lsn: Lsn,
    /// Inclusive.
    pub to_lsn: Lsn,
    /// When the newest transaction at or before `to_lsn` was committed, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
    /// Events published in this range, by table; tables without any are left out.
    pub counts: BTreeMap<TableName, u64>,
    /// Events of this range that were dead-lettered instead of published, by table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dead_lettered: BTreeMap<TableName, u64>,
    /// Tables that are being read again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rereads: BTreeMap<TableName, Reread>,
    /// Rows published since the last record for `rereads`, by table; tables without any are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reread_counts: BTreeMap<TableName, u64>,
    /// Where each shard of the event streams stood when everything in the range had been acknowledged.
    pub positions: ShardPositions,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sequence_numbers_compare_as_numbers() {
        let number = |text: &str| text.parse::<SequenceNumber>().unwrap();
        assert!(number("9") < number("10"));
        assert!(number("49590338271490256608559692538361571095921575989136588898") > number(&u64::MAX.to_string()));
        assert_eq!(number("007"), number("7"));
        assert_eq!(number("000").as_str(), "0");
        assert!("".parse::<SequenceNumber>().is_err());
        assert!("-1".parse::<SequenceNumber>().is_err());
    }

    #[test]
    fn a_record_reads_back() {
        let record = ProgressRecord {
            source: "shop".into(),
            epoch: 3,
            phase: Phase::SnapshotComplete { consistent_from: Lsn::from_bytes([1; 10]) },
            from_lsn: Lsn::ZERO,
            to_lsn: Lsn::from_bytes([1; 10]),
            commit_time_ms: 17,
            counts: [(TableName::new("dbo", "orders"), 4)].into(),
            dead_lettered: BTreeMap::new(),
            rereads: BTreeMap::new(),
            reread_counts: BTreeMap::new(),
            positions: [(StreamName("s".into()), [(ShardId("0".into()), SequenceNumber::from(4))].into())].into(),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert!(text.contains(r#""kind":"snapshot_complete""#), "{text}");
        assert_eq!(serde_json::from_str::<ProgressRecord>(&text).unwrap(), record);
    }
}
