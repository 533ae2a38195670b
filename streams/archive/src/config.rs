//! The archive, as the configuration file says it.
//!
//! ```yaml
//! archive:
//!   store: {s3: {bucket: shop-archive, region: eu-central-1}}   # or {local: {path: data/archive}}
//!   interval_seconds: 60
//!   segment_bytes: 67108864
//!   read: true
//!   on_trimmed: stop
//!   retention_days: 400
//! ```

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Where the archive is, and how it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub store: objects::Config,
    /// A segment is written this long after its first tick at the latest. Shorter: less that only the stream holds; longer: fewer and larger objects. Default: 60.
    #[serde(default = "default_interval_seconds")]
    pub interval_seconds: u64,
    /// A segment is written when it holds so many bytes of records, before compression. Up to four times as much is held in memory. Default: 64 MiB.
    #[serde(default = "default_segment_bytes")]
    pub segment_bytes: usize,
    /// Whether a joiner reads from the archive what it holds, and the rest from the live streams. Default: true.
    #[serde(default = "yes")]
    pub read: bool,
    /// What an archiver does that finds the streams trimmed past the archive's end. Default: stop.
    #[serde(default)]
    pub on_trimmed: OnTrimmed,
    /// Segments are removed when they are older than this. Default: never.
    #[serde(default)]
    pub retention_days: Option<NonZeroU32>,
    /// Another archiver of the same archive takes over when the one at work has given no sign of life for so long; until then it waits. 0: whoever comes takes over at once, and the one before ends. Default: 15.
    #[serde(default = "default_lease_seconds")]
    pub lease_seconds: u64,
}

/// What is done where changes were gone before they could be archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTrimmed {
    /// The archiver stops and says so, so that somebody can decide.
    #[default]
    Stop,
    /// It goes on with the oldest records that are there, and the archive says what is missing.
    Gap,
}

fn default_interval_seconds() -> u64 {
    60
}

fn default_segment_bytes() -> usize {
    64 << 20
}

fn default_lease_seconds() -> u64 {
    15
}

fn yes() -> bool {
    true
}

impl Config {
    /// The defaults, in this store.
    pub fn new(store: objects::Config) -> Self {
        Self {
            store,
            interval_seconds: default_interval_seconds(),
            segment_bytes: default_segment_bytes(),
            read: yes(),
            on_trimmed: OnTrimmed::default(),
            retention_days: None,
            lease_seconds: default_lease_seconds(),
        }
    }
}
