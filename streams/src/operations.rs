//! What operators ask of a stream store: streams made with settings, listed, described.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use schemas::progress::{ShardId, StreamName};

/// How a stream takes its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// So many open shards, at least one.
    Shards(u32),
    /// The store adds and removes shards as the load asks.
    OnDemand,
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shards(1) => write!(f, "1 shard"),
            Self::Shards(count) => write!(f, "{count} shards"),
            Self::OnDemand => write!(f, "on demand"),
        }
    }
}

/// What a stream is to be like. What is `None` is left to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    pub capacity: Capacity,
    /// How long records are kept. Kinesis counts whole hours, from 24 on; fractions are rounded up.
    pub retention: Option<Duration>,
    /// The KMS key that encrypts the stream: an ARN, an id, or an alias (`alias/aws/kinesis` is AWS's own).
    pub encryption_key: Option<String>,
    pub tags: BTreeMap<String, String>,
    /// The largest record that the stream takes.
    pub max_record_bytes: Option<usize>,
}

impl StreamSettings {
    /// So many shards, and the store's defaults.
    pub fn shards(count: u32) -> Self {
        Self {
            capacity: Capacity::Shards(count.max(1)),
            retention: None,
            encryption_key: None,
            tags: BTreeMap::new(),
            max_record_bytes: None,
        }
    }
}

/// What [`Provider::create`](crate::Provider::create) found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// There was none; now there is, with these settings.
    New,
    /// There was one, and it was left as it is.
    Existing { differs: Vec<Difference> },
}

/// What of a stream can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    Capacity,
    Retention,
    Encryption,
    Tags,
    RecordSize,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capacity => "shards",
            Self::Retention => "retention",
            Self::Encryption => "encryption",
            Self::Tags => "tags",
            Self::RecordSize => "max record size",
        })
    }
}

/// A setting of an existing stream that is not as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub setting: Setting,
    pub wanted: String,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is configured, the stream has {}", self.setting, self.wanted, self.found)
    }
}

/// A stream in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub stream: StreamName,
    pub open_shards: u32,
}

/// A stream in detail. What is `None` is not known to the store, or has no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub stream: StreamName,
    pub capacity: Capacity,
    pub retention: Option<Duration>,
    pub encryption_key: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub max_record_bytes: Option<usize>,
    /// In the order of their hash ranges, closed shards before the open ones that came of them.
    pub shards: Vec<ShardDescription>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardDescription {
    pub shard: ShardId,
    /// The part of the hash space whose keys it holds.
    pub hashes: RangeInclusive<u128>,
    /// Whether it still takes records; after a split or a merge it does not.
    pub open: bool,
    pub parents: Vec<ShardId>,
    /// Records kept, and their bytes, where the store counts them.
    pub records: Option<u64>,
    pub bytes: Option<u64>,
}

impl Description {
    pub fn open_shards(&self) -> u32 {
        u32::try_from(self.shards.iter().filter(|shard| shard.open).count()).unwrap_or(u32::MAX)
    }

    /// Where the stream is not as the settings ask.
    pub fn differences(&self, wanted: &StreamSettings) -> Vec<Difference> {
        let mut differs = Vec::new();
        let mut differ = |setting, wanted: String, found: String| differs.push(Difference { setting, wanted, found });
        if self.capacity != wanted.capacity {
            differ(Setting::Capacity, wanted.capacity.to_string(), self.capacity.to_string());
        }
        if let Some(retention) = wanted.retention.filter(|wanted| self.retention != Some(*wanted)) {
            differ(Setting::Retention, hours(retention), self.retention.map_or_else(|| "no limit".to_owned(), hours));
        }
        // A key may be named by alias, id or ARN, and the store answers one of them: of two names that differ, only one that is missing is surely another key.
        if let Some(key) = &wanted.encryption_key
            && self.encryption_key.is_none()
        {
            differ(Setting::Encryption, key.clone(), "none".to_owned());
        }
        for (tag, value) in &wanted.tags {
            if self.tags.get(tag) != Some(value) {
                let found = self.tags.get(tag).map_or_else(|| "none".to_owned(), |found| format!("{tag}={found}"));
                differ(Setting::Tags, format!("{tag}={value}"), found);
            }
        }
        if let (Some(wanted), Some(found)) = (wanted.max_record_bytes, self.max_record_bytes)
            && wanted > found
        {
            differ(Setting::RecordSize, format!("{wanted} bytes"), format!("{found} bytes"));
        }
        differs
    }
}

fn hours(retention: Duration) -> String {
    let seconds = retention.as_secs();
    if seconds.is_multiple_of(3600) { format!("{} h", seconds / 3600) } else { format!("{seconds} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_what_nobody_asked_for_is_none() {
        let description = Description {
            stream: StreamName("s".into()),
            capacity: Capacity::Shards(2),
            retention: Some(Duration::from_secs(24 * 3600)),
            encryption_key: None,
            tags: BTreeMap::from([("team".into(), "shop".into())]),
            max_record_bytes: Some(1 << 20),
            shards: Vec::new(),
        };
        assert_eq!(description.differences(&StreamSettings::shards(2)), []);
        let wanted = StreamSettings {
            capacity: Capacity::OnDemand,
            retention: Some(Duration::from_secs(48 * 3600)),
            encryption_key: Some("alias/aws/kinesis".into()),
            tags: BTreeMap::from([("team".into(), "till".into()), ("cost".into(), "7".into())]),
            max_record_bytes: Some(2 << 20),
        };
        let lines: Vec<_> = description.differences(&wanted).iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "shards: on demand is configured, the stream has 2 shards",
                "retention: 48 h is configured, the stream has 24 h",
                "encryption: alias/aws/kinesis is configured, the stream has none",
                "tags: cost=7 is configured, the stream has none",
                "tags: team=till is configured, the stream has team=shop",
                "max record size: 2097152 bytes is configured, the stream has 1048576 bytes",
            ]
        );
    }
}
