//! Checkpoints, as the configuration file says them.
//!
//! ```yaml
//! checkpoints:
//!   store: {s3: {bucket: shop-checkpoints, prefix: joiner, region: eu-central-1}}   # or {local: {path: /mnt/checkpoints}}
//!   every_seconds: 300
//!   keep: 3
//!   keep_seconds: 604800
//!   restore: true
//! ```

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

/// Where checkpoints are, how often one is made, and how many are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A folder, or a prefix in a bucket, of this pipeline alone.
    pub store: objects::Config,
    /// Shorter: less to read again after a loss; longer: fewer uploads. Default: 300.
    #[serde(default = "default_every_seconds")]
    pub every_seconds: NonZeroU64,
    /// So many checkpoints are kept, beside savepoints. Default: 3.
    #[serde(default = "default_keep")]
    pub keep: NonZeroU32,
    /// Older ones are removed, but for the newest. Default: 604800, a week.
    #[serde(default = "default_keep_seconds")]
    pub keep_seconds: NonZeroU64,
    /// Whether a joiner whose state directory is empty begins with the latest checkpoint. Default: true.
    #[serde(default = "yes")]
    pub restore: bool,
}

fn default_every_seconds() -> NonZeroU64 {
    NonZeroU64::new(300).unwrap_or(NonZeroU64::MIN)
}
fn default_keep() -> NonZeroU32 {
    NonZeroU32::new(3).unwrap_or(NonZeroU32::MIN)
}
fn default_keep_seconds() -> NonZeroU64 {
    NonZeroU64::new(7 * 24 * 3600).unwrap_or(NonZeroU64::MIN)
}
fn yes() -> bool {
    true
}

impl Config {
    pub fn new(store: objects::Config) -> Self {
        Self {
            store,
            every_seconds: default_every_seconds(),
            keep: default_keep(),
            keep_seconds: default_keep_seconds(),
            restore: true,
        }
    }
}
