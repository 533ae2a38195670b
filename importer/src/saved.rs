//! The importer's own progress, which a restart goes on from.
//!
//! The file `progress.json` in the data directory, replaced as a whole and synced. It is written only after the streams have acknowledged what it speaks of
//! (INV-2): a crash before it is written repeats work, and nothing is ever skipped.
//!
//! Format 1: `{"format":1,"source":…,"database":…,"tables":{"dbo.orders":{"object_id":…,"instance":…,"floor":…}},"phase":{"snapshot":…}|{"tail":…}}`. Members are added, never
//! changed; another format is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemas::progress::ShardPositions;
use schemas::{Lsn, TableName};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::lease;
use source::rows::KeyPart;

const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    format: u32,
    pub(crate) source: String,
    pub(crate) database: String,
    /// The tables of the snapshot.
    pub(crate) tables: BTreeMap<TableName, SavedTable>,
    pub(crate) phase: SavedPhase,
    /// Where each shard of the event streams stood: a new writer knows of its own records alone, and a progress record speaks of all.
    #[serde(default)]
    pub(crate) positions: ShardPositions,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedTable {
    pub(crate) object_id: i64,
    /// The capture instance at the time of the snapshot, for messages.
    pub(crate) instance: String,
    /// Where the table's capture instance began when the snapshot did: earlier changes are in the snapshot.
    pub(crate) floor: Lsn,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SavedPhase {
    Snapshot {
        /// The greatest captured LSN before the first row was read.
        lsn: Lsn,
        tables: BTreeMap<TableName, TableProgress>,
    },
    Tail {
        /// Everything at or below it has been published.
        lsn: Lsn,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct TableProgress {
    pub(crate) rows: u64,
    /// The last key published.
    pub(crate) after: Option<Vec<KeyPart>>,
    pub(crate) done: bool,
}

impl Saved {
    pub(crate) fn new(source: &str, database: &str, tables: BTreeMap<TableName, SavedTable>, phase: SavedPhase) -> Self {
        Self {
            format: FORMAT,
            source: source.to_owned(),
            database: database.to_owned(),
            tables,
            phase,
            positions: ShardPositions::new(),
        }
    }

    /// From where changes follow.
    pub(crate) fn lsn(&self) -> Lsn {
        match &self.phase {
            SavedPhase::Snapshot { lsn, .. } | SavedPhase::Tail { lsn } => *lsn,
        }
    }
}

/// The file.
#[derive(Debug, Clone)]
pub(crate) struct ProgressFile(PathBuf);

impl ProgressFile {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(data_dir.join("progress.json"))
    }

    /// The progress of this source, if there is any.
    pub(crate) fn load(&self, source: &str) -> Result<Option<Saved>, Error> {
        let text = match std::fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Io { path: self.0.clone(), doing: "reading the progress", source }),
        };
        let damaged = |what: String| Error::Damaged { path: self.0.clone(), what };
        let saved: Saved =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("this is not a progress file: {error}")))?;
        if saved.format != FORMAT {
            return Err(damaged(format!("format {} is not known to this version, which writes format {FORMAT}", saved.format)));
        }
        if saved.source != source {
            return Err(Error::OtherSource { path: self.0.clone(), found: saved.source, expected: source.to_owned() });
        }
        Ok(Some(saved))
    }

    pub(crate) fn save(&self, saved: &Saved) -> Result<(), Error> {
        let text = serde_json::to_vec(saved).map_err(|error| Error::Damaged { path: self.0.clone(), what: error.to_string() })?;
        lease::replace(&self.0, &text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn progress_survives_and_damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = ProgressFile::new(directory.path());
        assert_eq!(file.load("shop").unwrap(), None);
        let orders = TableName::new("my schema", "orders");
        let progress = TableProgress { rows: 7, after: Some(vec![KeyPart::Int(-1), KeyPart::Text("ü".into())]), done: false };
        let phase = SavedPhase::Snapshot { lsn: Lsn::from_bytes([1; 10]), tables: [(orders.clone(), progress)].into() };
        let table = SavedTable { object_id: 5, instance: "dbo_orders".into(), floor: Lsn::ZERO };
        let saved = Saved::new("shop", "shopdb", [(orders, table)].into(), phase);
        file.save(&saved).unwrap();
        assert_eq!(file.load("shop").unwrap(), Some(saved.clone()));
        assert!(matches!(file.load("other"), Err(Error::OtherSource { .. })));
        file.save(&Saved { format: 2, ..saved }).unwrap();
        assert!(file.load("shop").unwrap_err().to_string().contains("format 2"));
        std::fs::write(directory.path().join("progress.json"), "{\"format\":1").unwrap();
        assert!(matches!(file.load("shop"), Err(Error::Damaged { .. })));
    }
}
