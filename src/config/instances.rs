//! Several joiners of one pipeline.
//!
//! ```yaml
//! joiner:
//!   range: 0/4                        # this instance makes the first of four shares of the entities; default: all
//!   lease:                            # of several joiners of one share one works, and the others stand by; default: there is but one
//!     file: {path: /mnt/shared/lease}
//!     # postgres: {url: {env: LEASE_URL}}
//!     # dynamodb: {table: tributary-leases, region: eu-central-1}
//! ```

use std::path::{Path, PathBuf};

use anyhow::bail;
use importer::LeaseConfig;
use schemas::KeyRange;
use serde::Deserialize;

use super::source::{DynamoLease, PostgresLease};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Joiner {
    pub(crate) range: KeyRange,
    lease: Option<Lease>,
}

/// Where joiners of one share agree on which of them works.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Lease {
    file: Option<FileLease>,
    postgres: Option<PostgresLease>,
    dynamodb: Option<DynamoLease>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLease {
    /// A folder that all of them see, on one machine.
    path: PathBuf,
}

impl Joiner {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let Some(Lease { file, postgres, dynamodb }) = &self.lease else { return Ok(()) };
        match [file.is_some(), postgres.is_some(), dynamodb.is_some()].into_iter().filter(|named| *named).count() {
            1 => Ok(()),
            0 => bail!("joiner.lease: names no store: write one of file, postgres and dynamodb"),
            _ => bail!("joiner.lease: names several stores: keep one of file, postgres and dynamodb"),
        }
    }

    pub(super) fn relative_to(&mut self, folder: &Path) {
        if let Some(file) = self.lease.as_mut().and_then(|lease| lease.file.as_mut()) {
            file.path = folder.join(&file.path);
        }
    }

    /// The lease's store, and the folder of one that is a folder; none where there is but one joiner.
    pub(crate) fn lease(&self) -> anyhow::Result<Option<(LeaseConfig, PathBuf)>> {
        let Some(Lease { file, postgres, dynamodb }) = &self.lease else { return Ok(None) };
        Ok(match (file, postgres, dynamodb) {
            (Some(file), ..) => Some((LeaseConfig::File, file.path.clone())),
            (_, Some(postgres), _) => Some((postgres.settings("joiner.lease")?, PathBuf::new())),
            (.., dynamodb) => dynamodb.as_ref().map(|dynamodb| (dynamodb.settings(), PathBuf::new())),
        })
    }
}
