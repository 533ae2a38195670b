//! A Delta table's log: what the table holds now, and the next entry.
//!
//! # Why a commit happens once or not at all
//! An entry is created under the next number by a conditional put ([`Place::create`]), which of several writers lets one through. It names files that are complete by then, so that readers see all of a commit or
//! nothing of it, and whoever dies before leaves files that nothing names. Where the answer is lost, the entry is read back: a mark of its own on each attempt tells ours from another's. Where it was another's, the
//! caller is told [`Committed::Lost`], with the table as it stands now, and plans anew against that: nothing is committed that was planned against an older table.
//!
//! Only our own entries may change the table: what a sink knows of it (which rows are in the current entities already, which versions are there) rests on how they were written. An entry without
//! our mark that adds or removes something is refused with its number.

use std::collections::BTreeMap;

use objects::{Creation, ObjectPath};
use schemas::{KeyRange, Lsn};
use serde::{Deserialize, Serialize};

use super::actions::{self, Add, CommitInfo, Line, Mark, Metadata, Protocol};
use super::checkpoint;
use super::place::Place;
use crate::{Error, shares};

/// A checkpoint is written with the first entry of each so many that finds none; where a writer was killed before its own was made, the next entry makes it.
const CHECKPOINT_EVERY: i64 = 50;
const LAST_CHECKPOINT: &str = "_delta_log/_last_checkpoint";
const ENGINE: &str = concat!("Tributary/", env!("CARGO_PKG_VERSION"));

/// Tags of an added file, which no reader needs.
pub(super) mod tag {
    /// The number of the entry that brought the rows: a compaction keeps the latest of those that it unites.
    pub(in super::super) const COMMIT: &str = "tributary.commit";
    /// What its rows take in memory.
    pub(in super::super) const BYTES: &str = "tributary.bytes";
    /// Its least and greatest key in the order of keys.
    pub(in super::super) const FIRST: &str = "tributary.first";
    pub(in super::super) const LAST: &str = "tributary.last";
    /// The order of keys.
    pub(in super::super) const ORDER: &str = "tributary.order";
    /// Its least and greatest version.
    pub(in super::super) const OLDEST: &str = "tributary.oldest";
    pub(in super::super) const NEWEST: &str = "tributary.newest";
    /// The version of the load that it is a part of.
    pub(in super::super) const LOAD: &str = "tributary.load";
    /// The share of the keys that its rows are of, where several write.
    pub(in super::super) const SHARE: &str = "tributary.share";
}

/// A file of the table, with what its tags say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) add: Add,
    /// The number of the entry that brought its rows.
    pub(super) commit: i64,
    pub(super) bytes: usize,
    pub(super) first: Box<str>,
    pub(super) last: Box<str>,
    pub(super) order: Box<str>,
    pub(super) oldest: Lsn,
    pub(super) newest: Lsn,
    pub(super) load: Option<Lsn>,
    pub(super) share: KeyRange,
}

impl File {
    fn read(add: Add) -> Option<Self> {
        let tags = add.tags.as_ref()?;
        let get = |name: &str| tags.get(name)?.as_deref();
        Some(Self {
            commit: get(tag::COMMIT)?.parse().ok()?,
            bytes: get(tag::BYTES)?.parse().ok()?,
            first: get(tag::FIRST)?.into(),
            last: get(tag::LAST)?.into(),
            order: get(tag::ORDER)?.into(),
            oldest: get(tag::OLDEST)?.parse().ok()?,
            newest: get(tag::NEWEST)?.parse().ok()?,
            load: get(tag::LOAD).and_then(|version| version.parse().ok()),
            share: get(tag::SHARE).map_or(Ok(KeyRange::ALL), str::parse).ok()?,
            add,
        })
    }
}

/// The table as of an entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    /// The entry's number; -1 where there is no table yet.
    pub(super) version: i64,
    pub(super) protocol: Protocol,
    pub(super) metadata: Option<Metadata>,
    pub(super) files: BTreeMap<String, File>,
    /// Files that were removed, and when: readers of an earlier snapshot may still need them.
    pub(super) removed: BTreeMap<String, i64>,
    pub(super) txns: BTreeMap<String, i64>,
    /// Up to where it holds everything, by share.
    pub(super) parts: Vec<(String, String)>,
}

impl Snapshot {
    /// Takes in what an entry of ours says of the frontier.
    fn told(&mut self, info: CommitInfo) {
        if let Some(mark) = info.tributary {
            self.parts = mark.parts();
        }
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Committed {
    Done,
    /// Somebody else's entry took the number; the snapshot is the one after it.
    Lost,
}

#[derive(Debug, Serialize, Deserialize)]
struct LastCheckpoint {
    version: i64,
    size: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parts: Option<u32>,
}

#[derive(Clone)]
pub(super) struct Log {
    pub(super) place: Place,
    pub(super) snapshot: Snapshot,
    /// Whose entries are written.
    pub(super) share: KeyRange,
    /// The number of the last checkpoint that is known; -1 where none is.
    checkpoint: i64,
}

impl Log {
    /// The table as it stands; not there yet is no error.
    pub(super) async fn open(place: Place, share: KeyRange) -> Result<Self, Error> {
        let mut log = Self { place, snapshot: Snapshot { version: -1, ..Snapshot::default() }, share, checkpoint: -1 };
        log.read_checkpoint().await?;
        log.follow().await?;
        Ok(log)
    }

    fn entry_path(&self, version: i64) -> Result<ObjectPath, Error> {
        self.place.path(&format!("_delta_log/{version:020}.json"))
    }

    async fn hint(&self) -> Result<Option<LastCheckpoint>, Error> {
        let Some(text) = self.place.look(&self.place.path(LAST_CHECKPOINT)?).await? else { return Ok(None) };
        serde_json::from_slice(&text).map(Some).map_err(|error| self.place.unreadable("_last_checkpoint", &error))
    }

    async fn read_checkpoint(&mut self) -> Result<(), Error> {
        let Some(last) = self.hint().await? else { return Ok(()) };
        if last.parts.is_some() {
            return Err(self.place.foreign("its last checkpoint is in parts, as Tributary writes none"));
        }
        let path = self.place.path(&checkpoint_file(last.version))?;
        // The hint may outlive the checkpoint; the log is then read from its beginning.
        let Some(data) = self.place.look(&path).await? else { return Ok(()) };
        let lines = tokio::task::spawn_blocking(move || checkpoint::read(data)).await;
        let lines = lines.map_err(|error| Error::unexpected(&self.place.name, error))?;
        let lines = lines.map_err(|error| self.place.unreadable("checkpoint", &error))?;
        self.apply_all(lines, last.version)?;
        self.checkpoint = last.version;
        // What an entry says of the frontier is in no checkpoint.
        for info in self.entry(last.version).await?.unwrap_or_default().into_iter().filter_map(|line| line.commit_info) {
            self.snapshot.told(info);
        }
        Ok(())
    }

    async fn entry(&self, version: i64) -> Result<Option<Vec<Line>>, Error> {
        let path = self.entry_path(version)?;
        let Some(text) = self.place.look(&path).await? else { return Ok(None) };
        actions::parse(&text).map(Some).map_err(|error| self.place.unreadable(path.as_ref(), &error))
    }

    /// Takes in the entries that have come since.
    pub(super) async fn follow(&mut self) -> Result<(), Error> {
        while let Some(lines) = self.entry(self.snapshot.version + 1).await? {
            let ours = lines.iter().any(|line| line.commit_info.as_ref().is_some_and(|info| info.tributary.is_some()));
            if !ours && lines.iter().any(Line::changes_the_table) {
                let version = self.snapshot.version + 1;
                return Err(self
                    .place
                    .foreign(&format!("entry {version} of its log was written by another program and changes it")));
            }
            self.apply_all(lines, self.snapshot.version + 1)?;
        }
        Ok(())
    }

    fn apply_all(&mut self, lines: Vec<Line>, version: i64) -> Result<(), Error> {
        for line in lines {
            self.apply(line)?;
        }
        self.snapshot.version = version;
        Ok(())
    }

    fn apply(&mut self, line: Line) -> Result<(), Error> {
        let snapshot = &mut self.snapshot;
        if let Some(protocol) = line.protocol {
            if !protocol.is_known() {
                let Protocol { min_reader_version, min_writer_version, writer_features, .. } = protocol;
                let features = writer_features.unwrap_or_default().join(", ");
                return Err(self.place.foreign(&format!(
                    "it was moved to versions {min_reader_version} and {min_writer_version} of Delta's protocol with the features [{features}], which Tributary does not write"
                )));
            }
            snapshot.protocol = protocol;
        }
        if let Some(metadata) = line.meta_data {
            snapshot.metadata = Some(metadata);
        }
        if let Some(txn) = line.txn {
            snapshot.txns.insert(txn.app_id, txn.version);
        }
        if let Some(remove) = line.remove {
            snapshot.files.remove(&remove.path);
            snapshot.removed.insert(remove.path, remove.deletion_timestamp.unwrap_or_default());
        }
        if let Some(add) = line.add {
            let path = add.path.clone();
            let Some(file) = File::read(add) else {
                return Err(self.place.foreign(&format!("{path} is not a file that Tributary wrote")));
            };
            snapshot.removed.remove(&path);
            snapshot.files.insert(path, file);
        }
        if let Some(info) = line.commit_info {
            snapshot.told(info);
        }
        Ok(())
    }

    /// What the table holds of the writer's share.
    pub(super) fn held(&self) -> Option<Lsn> {
        shares::held(&self.snapshot.parts, self.share)
    }

    /// The parts, with the writer's own up to the frontier where one is given. It never goes back.
    fn parts_with(&self, frontier: Option<Lsn>) -> Vec<(String, String)> {
        let taken = shares::take(&self.snapshot.parts, self.share);
        let taken = taken.map(|parts| parts.into_iter().map(|(part, lsn)| (part, lsn.to_string())).collect());
        let mut parts: Vec<(String, String)> = taken.unwrap_or_else(|| self.snapshot.parts.clone());
        let (own, reached) = (shares::part(self.share), frontier.map(|frontier| frontier.to_string()).unwrap_or_default());
        for (_, lsn) in parts.iter_mut().filter(|(part, lsn)| *part == own && *lsn < reached) {
            reached.clone_into(lsn);
        }
        parts
    }

    /// Makes what the lines say the next entry. `frontier`, where it is given, is what the table then holds of the writer's share.
    pub(super) async fn commit(&mut self, operation: &str, lines: Vec<Line>, frontier: Option<Lsn>) -> Result<Committed, Error> {
        let parts = self.parts_with(frontier);
        self.commit_as(operation, lines, &parts).await
    }

    /// The same, and what the table then holds is what another did when it was looked at, or more where more has been said since.
    pub(super) async fn commit_as(
        &mut self,
        operation: &str,
        lines: Vec<Line>,
        parts: &[(String, String)],
    ) -> Result<Committed, Error> {
        let version = self.snapshot.version + 1;
        let said: BTreeMap<&String, &String> = self.snapshot.parts.iter().map(|(part, lsn)| (part, lsn)).collect();
        let most = |(part, lsn): &(String, String)| (part.clone(), said.get(part).map_or(lsn, |said| lsn.max(said)).clone());
        let mark = Mark::new(&parts.iter().map(most).collect::<Vec<_>>());
        let info = CommitInfo {
            timestamp: now_ms(),
            operation: operation.to_owned(),
            engine_info: Some(ENGINE.to_owned()),
            tributary: Some(mark.clone()),
        };
        let mut entry = vec![Line { commit_info: Some(info), ..Line::default() }];
        entry.extend(lines);
        for add in entry.iter_mut().filter_map(|line| line.add.as_mut()) {
            // The rows that come with this entry; rows that are only moved know theirs.
            add.tags.get_or_insert_default().entry(tag::COMMIT.to_owned()).or_insert_with(|| Some(version.to_string()));
        }
        let text = actions::format(&entry).map_err(|error| Error::unexpected(&self.place.name, error))?;
        // An entry behind a log that somebody has removed would come up again in the one that is made in its place.
        if version > 0 && self.place.look(&self.entry_path(version - 1)?).await?.is_none() {
            return Err(self.place.foreign(&format!("entry {} of its log is gone", version - 1)));
        }
        if self.place.create(&self.entry_path(version)?, text.into()).await? == Creation::Exists {
            let there = self.entry(version).await?.unwrap_or_default();
            let marks = there.iter().filter_map(|line| line.commit_info.as_ref()?.tributary.as_ref());
            if !marks.into_iter().any(|there| there.commit == mark.commit) {
                self.follow().await?;
                return Ok(Committed::Lost);
            }
        }
        self.apply_all(entry, version)?;
        if is_due(version, self.checkpoint) {
            self.write_checkpoint().await;
        }
        Ok(Committed::Done)
    }

    /// A checkpoint spares readers the entries before it; the table is whole without it, so a failure is told and no more.
    async fn write_checkpoint(&mut self) {
        match self.put_checkpoint().await {
            Ok(last) => self.checkpoint = last,
            Err(error) => {
                tracing::warn!(table = %self.place.name, %error, "no checkpoint was written; readers read more of the log until the next one is")
            }
        }
    }

    /// The number of the last checkpoint; -1 where there is none.
    pub(super) fn last_checkpoint(&self) -> i64 {
        self.checkpoint
    }

    /// The number of the last checkpoint, which is this one's unless another writer has been before.
    async fn put_checkpoint(&self) -> Result<i64, Error> {
        let snapshot = self.snapshot.clone();
        let version = snapshot.version;
        if let Some(last) = self.hint().await?.filter(|last| !is_due(version, last.version)) {
            return Ok(last.version);
        }
        let written = tokio::task::spawn_blocking(move || checkpoint::write(&snapshot)).await;
        let written = written.map_err(|error| Error::unexpected(&self.place.name, error))?;
        let (data, actions) = written.map_err(|error| Error::unexpected(&self.place.name, error))?;
        self.place.put(&checkpoint_file(version), data).await?;
        let last = LastCheckpoint { version, size: actions, parts: None };
        let text = serde_json::to_vec(&last).map_err(|error| Error::unexpected(&self.place.name, error))?;
        self.place.put(LAST_CHECKPOINT, text.into()).await?;
        Ok(version)
    }
}

/// Whether an entry is to come with a checkpoint, where the last one came with entry `last` (-1 where there is none).
fn is_due(version: i64, last: i64) -> bool {
    version / CHECKPOINT_EVERY > last / CHECKPOINT_EVERY
}

fn checkpoint_file(version: i64) -> String {
    format!("_delta_log/{version:020}.checkpoint.parquet")
}

pub(super) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
