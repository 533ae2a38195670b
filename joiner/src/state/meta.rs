//! What the state says of itself.
//!
//! `identity.json` beside the database names the format and whom the state belongs to; it is written before the database is made. The *standing* is a JSON value in the
//! database's `meta` column family: how far everything has come, written with every batch that moves it (INV-3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use schemas::progress::ShardPositions;
use schemas::{KeyRange, Lsn, TableName, Vector};
use serde::{Deserialize, Serialize};

use crate::accounting::Unknown;
use crate::checkpoint::Facts;
use crate::definitions::Definitions;
use crate::error::Error;
use crate::reread::Rereads;
use crate::standby::Lifted;
use crate::state::migrate;

/// Changes when the bytes of the state change their meaning ([`migrate`] has the list).
pub(crate) const FORMAT: u32 = 3;
pub(crate) const IDENTITY_FILE: &str = "identity.json";
/// In place of the definitions' hash in directories whose database says itself what it serves ([`crate::definitions`]). Versions of before it did refuse them.
pub(crate) const IN_STATE: &str = "in the state";
/// The identity while it is written.
const TEMPORARY_FILE: &str = "identity.json.new";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    /// Says that this directory is ours.
    tributary_joiner_state: u32,
    source: String,
    definitions: String,
    /// Of which entities it is; all, in directories of before there were shares.
    #[serde(default)]
    range: KeyRange,
    /// Tells this state from any other that its directory held before or will hold; 0 in directories of before there was such a number.
    #[serde(default)]
    incarnation: u64,
}

/// A number that no state had before: of the time, stirred with the process's random keys.
fn new_incarnation() -> u64 {
    std::hash::RandomState::new().hash_one(SystemTime::now())
}

/// A directory that is ours.
pub(crate) struct Claimed {
    pub(crate) incarnation: u64,
    /// The hash of the definitions that it was built for, or [`IN_STATE`].
    pub(crate) definitions: String,
    /// That of its database, which may be an earlier one.
    pub(crate) format: u32,
}

/// Checks whose the directory is; an empty or missing one becomes ours.
pub(crate) fn claim(path: &Path, source: &str, range: KeyRange) -> Result<Claimed, Error> {
    let disk = |error: std::io::Error| Error::Disk { path: path.to_owned(), what: error.to_string() };
    std::fs::create_dir_all(path).map_err(disk)?;
    let file = path.join(IDENTITY_FILE);
    let ours = Identity {
        tributary_joiner_state: FORMAT,
        source: source.to_owned(),
        definitions: IN_STATE.to_owned(),
        range,
        incarnation: new_incarnation(),
    };
    match std::fs::read(&file) {
        Ok(bytes) => {
            let found: Identity = serde_json::from_slice(&bytes)
                .map_err(|error| Error::Corrupt { path: path.to_owned(), what: format!("{IDENTITY_FILE}: {error}") })?;
            let Identity { tributary_joiner_state: format, incarnation, definitions, .. } = check(path, found, &ours)?;
            Ok(Claimed { incarnation, definitions, format })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            for entry in std::fs::read_dir(path).map_err(disk)? {
                // Of an attempt that was interrupted: the directory was empty before it.
                if entry.map_err(disk)?.file_name() != TEMPORARY_FILE {
                    return Err(Error::Foreign { path: path.to_owned() });
                }
            }
            let text = serde_json::to_string_pretty(&ours).map_err(std::io::Error::other).map_err(disk)?;
            write_durably(path, text.as_bytes()).map_err(disk)?;
            Ok(Claimed { incarnation: ours.incarnation, definitions: ours.definitions, format: FORMAT })
        }
        Err(error) => Err(disk(error)),
    }
}

/// Writes the identity so that after a crash or a power failure it is there whole or not at all.
fn write_durably(directory: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = directory.join(TEMPORARY_FILE);
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(IDENTITY_FILE))?;
    // The name is the directory's, and durable only with it.
    File::open(directory)?.sync_all()
}

/// The hash of the definitions that a directory was built for, or [`IN_STATE`].
pub(crate) fn claimed(path: &Path) -> Result<String, Error> {
    Ok(read(path)?.definitions)
}

/// Takes note that the database of a directory says itself what it serves.
pub(crate) fn is_in_state(path: &Path) -> Result<(), Error> {
    rewrite(path, &Identity { definitions: IN_STATE.to_owned(), ..read(path)? })
}

/// Takes note that the database of a directory, which may be a copy that nobody has claimed yet, is of this version's format.
pub(crate) fn is_of_this_format(path: &Path) -> Result<(), Error> {
    match read(path) {
        Err(Error::NoState { .. }) => Ok(()),
        found => rewrite(path, &Identity { tributary_joiner_state: FORMAT, ..found? }),
    }
}

fn rewrite(path: &Path, identity: &Identity) -> Result<(), Error> {
    let disk = |error: std::io::Error| Error::Disk { path: path.to_owned(), what: error.to_string() };
    let text = serde_json::to_string_pretty(identity).map_err(std::io::Error::other).map_err(disk)?;
    write_durably(path, text.as_bytes()).map_err(disk)
}

/// Whether a directory holds a state that can be read, whosever it is. Answers its incarnation.
pub(crate) fn recognize(path: &Path) -> Result<u64, Error> {
    Ok(read(path)?.incarnation)
}

fn read(path: &Path) -> Result<Identity, Error> {
    let bytes = std::fs::read(path.join(IDENTITY_FILE)).map_err(|_| Error::NoState { path: path.to_owned() })?;
    let found: Identity = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Corrupt { path: path.to_owned(), what: format!("{IDENTITY_FILE}: {error}") })?;
    check_format(path, &found)?;
    Ok(found)
}

fn check_format(path: &Path, found: &Identity) -> Result<(), Error> {
    let (path, found, oldest) = (path.to_owned(), found.tributary_joiner_state, migrate::OLDEST);
    if (oldest..=FORMAT).contains(&found) { Ok(()) } else { Err(Error::Format { path, found, oldest, expected: FORMAT }) }
}

/// What a checkpoint of a state says of it.
pub(crate) fn facts(path: &Path, served: Option<Definitions>, standing: &Standing) -> Result<Facts, Error> {
    let Identity { tributary_joiner_state: format, source, definitions, range, .. } = read(path)?;
    let definitions = served.as_ref().map_or(definitions, Definitions::fingerprint);
    let (frontier, commit_time_ms) = (standing.frontier, standing.commit_time_ms);
    Ok(Facts { format, source, definitions, served, range, frontier, commit_time_ms })
}

/// Holds a checkpoint against what [`claim`] would ask of its state.
pub(crate) fn check_facts(place: &Path, facts: &Facts, source: &str, range: KeyRange) -> Result<(), Error> {
    let ours = Identity {
        tributary_joiner_state: FORMAT,
        source: source.to_owned(),
        definitions: IN_STATE.to_owned(),
        range,
        incarnation: 0,
    };
    check(place, restored(facts), &ours).map(|_| ())
}

/// Writes the identity of a state that is made of a checkpoint.
pub(crate) fn seal(path: &Path, facts: &Facts) -> Result<(), Error> {
    rewrite(path, &restored(facts))
}

fn restored(facts: &Facts) -> Identity {
    Identity {
        tributary_joiner_state: facts.format,
        source: facts.source.clone(),
        definitions: if facts.served.is_some() { IN_STATE.to_owned() } else { facts.definitions.clone() },
        range: facts.range,
        incarnation: new_incarnation(),
    }
}

fn check(path: &Path, found: Identity, ours: &Identity) -> Result<Identity, Error> {
    check_format(path, &found)?;
    let path = path.to_owned();
    if found.source != ours.source {
        return Err(Error::OtherSource { path, found: found.source, expected: ours.source.clone() });
    }
    if found.range != ours.range {
        return Err(Error::OtherRange { path, found: found.range, expected: ours.range });
    }
    Ok(found)
}

/// Which part of the work the state is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Nothing has been read yet.
    #[default]
    Empty,
    /// Snapshot rows are going in. `start_lsn`: from where the tail will follow.
    Snapshot { start_lsn: Lsn },
    /// All snapshot rows are in; the tail is applied, and nothing is assembled until it has passed `consistent_from`.
    CatchUp { start_lsn: Lsn, consistent_from: Lsn },
    /// Every entity is the join of the source as of the frontier.
    Live { start_lsn: Lsn },
}

impl Stage {
    /// The LSN that names the snapshot which the state stands on.
    pub(crate) const fn start_lsn(self) -> Option<Lsn> {
        match self {
            Self::Empty => None,
            Self::Snapshot { start_lsn } | Self::CatchUp { start_lsn, .. } | Self::Live { start_lsn } => Some(start_lsn),
        }
    }
}

/// Events of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableCounts {
    /// Read from the streams, repeats included.
    pub received: u64,
    /// Put into the state, snapshot rows included.
    pub applied: u64,
    pub dead_lettered: u64,
    /// Received beyond what the importer says it published.
    #[serde(default)]
    pub surplus: u64,
}

/// A step whose rows are in the state and whose documents are still being assembled, chunk by chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    /// The last outbox entry written; those past the head are not to be seen yet.
    pub(crate) tail: u64,
}

/// How far one source has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SourceStanding {
    /// Its name; empty in states of before there could be several.
    #[serde(default)]
    pub(crate) source: String,
    pub(crate) stage: Stage,
    pub(crate) epoch: u64,
    /// The rows of its tables are those of this LSN (once its stage is live).
    pub(crate) frontier: Lsn,
    pub(crate) commit_time_ms: i64,
    /// The greatest commit time so far, by which entities' time is over ([`crate::assemble::expired`]). The source's clock may be set back; this is not.
    #[serde(default)]
    pub(crate) time_ms: i64,
    /// In the present load, by table: snapshot rows published according to the progress records, and received.
    pub(crate) snapshot: BTreeMap<String, (u64, u64)>,
    /// Snapshots up to this one are passed over: rows of it were missing.
    #[serde(default)]
    pub(crate) given_up: Lsn,
    /// In the present load: dead letters of no known table. Any count of snapshot rows, or of rows read again, may lack them, in whichever record they were counted: shards are read ahead of the records.
    #[serde(default)]
    pub(crate) unknown: u64,
    /// Those of them that no record has covered yet.
    #[serde(default)]
    pub(crate) unknown_read: Unknown,
    #[serde(default)]
    pub(crate) rereads: Rereads,
    /// Where the event streams stood at the last record of the tail: rows that were read again up to there have been applied, or left out.
    #[serde(default)]
    pub(crate) covered: ShardPositions,
    /// Up to this LSN rows are of different ages: portions of the step that leads there have been written (`step/portions.rs`).
    #[serde(default)]
    pub(crate) portions_to: Lsn,
}

impl SourceStanding {
    /// Whether a step is in the state that is not there as a whole.
    pub(crate) fn is_torn(&self) -> bool {
        self.frontier < self.portions_to
    }

    /// Takes note of the commit time of a record.
    pub(crate) fn passes(&mut self, commit_time_ms: i64) {
        self.time_ms = self.time().max(commit_time_ms);
    }

    /// The time that it has come to. (States of before it was kept have the frontier's.)
    pub(crate) fn time(&self) -> i64 {
        self.time_ms.max(self.commit_time_ms)
    }

    /// Takes note that the tail has passed what the snapshot may have seen, if it has.
    pub(crate) fn pass_catch_up(&mut self) {
        if let Stage::CatchUp { start_lsn, consistent_from } = self.stage
            && self.frontier >= consistent_from
            && !self.is_torn()
            && !self.rereads.hold(self.frontier)
        {
            self.stage = Stage::Live { start_lsn };
        }
    }
}

/// How far everything has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// In the order of their names; none before the state was opened first.
    #[serde(default)]
    pub(crate) sources: Vec<SourceStanding>,
    /// Whether the state has been the join of the sources since the last load began.
    #[serde(default)]
    pub(crate) live: bool,
    /// The version of what the state holds ([`Standing::version`]), and the time up to which everything that was committed is in it.
    pub(crate) frontier: Lsn,
    pub(crate) commit_time_ms: i64,
    /// After a restart, reading goes on after these.
    pub(crate) positions: ShardPositions,
    /// The last outbox entry to be seen, and the frontier and commit time that it stands for.
    pub(crate) head: u64,
    pub(crate) head_frontier: Lsn,
    pub(crate) head_commit_time_ms: i64,
    /// The oldest outbox entry kept (`head + 1` when there are none).
    pub(crate) oldest: u64,
    pub(crate) pending: Option<Pending>,
    /// Counts loads: a sink that was loaded in an earlier one has to be loaded again.
    pub(crate) load: u64,
    pub(crate) tables: BTreeMap<String, TableCounts>,
    pub(crate) dead_letters: u64,
    /// Up to this version rows are of different ages: the state was merged of several ([`crate::reshape`]), and this is the frontier of the one that was ahead.
    #[serde(default)]
    pub(crate) mixed_until: Lsn,
    /// Entities, by their numbers, of which something has yet to be made of all documents ([`crate::catalog::Catalog::made_first`]).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) unmade: BTreeSet<u16>,
    /// Nothing is told until every source has been read to where it had been published when the state was opened ([`crate::core`]).
    #[serde(default)]
    pub(crate) awaiting: bool,
    /// The incarnation in which that was asked for last.
    #[serde(default)]
    pub(crate) incarnation: u64,
    /// The outbox has every change after this LSN, in the order of their versions; the greatest there is where that is not known.
    #[serde(default = "unknown")]
    pub(crate) complete_after: Lsn,
}

const fn unknown() -> Lsn {
    Lsn::MAX
}

impl Standing {
    /// Reads what stands in the state.
    pub(crate) fn read(bytes: &[u8]) -> serde_json::Result<Self> {
        let mut standing: Self = serde_json::from_slice(bytes)?;
        let only: Option<SourceStanding> = match standing.sources.is_empty() {
            true => {
                // Of before there could be several: what is a source's stood beside the rest. Of a state that has come to serve other definitions before anything else was written, it does not.
                let whole: serde_json::Value = serde_json::from_slice(bytes)?;
                whole.get("stage").is_some().then(|| serde_json::from_value(whole)).transpose()?
            }
            false => None,
        };
        if let Some(only) = only {
            standing.live = matches!(only.stage, Stage::Live { .. });
            standing.sources.push(only);
        }
        Ok(standing)
    }

    /// Makes room for the sources that are configured. (Whose the state is has been checked.)
    pub(crate) fn of_sources(&mut self, names: &[&str]) {
        if let ([known], [name]) = (self.sources.as_mut_slice(), names) {
            known.source = (*name).to_owned();
        }
        let known = |name: &&str| self.sources.iter().find(|source| source.source == **name).cloned();
        let new = |name: &&str| SourceStanding { source: (*name).to_owned(), ..SourceStanding::default() };
        self.sources = names.iter().map(|name| known(name).unwrap_or_else(|| new(name))).collect();
    }

    /// Stands for the LSNs of all sources, and grows with each of them: their sum. Of one source it is its LSN. ([`crate::core`] says why.)
    pub(crate) fn version(&self) -> Lsn {
        self.sources.iter().fold(Lsn::ZERO, |sum, source| sum.plus(source.frontier))
    }

    /// Takes over what follows from the sources: the version, and up to which time everything is there that any of them has committed (of several, what the one that is furthest behind has).
    pub(crate) fn moved(&mut self) {
        self.frontier = self.version();
        self.commit_time_ms = self.sources.iter().map(|source| source.commit_time_ms).min().unwrap_or_default();
    }

    /// The number of the source that a table is of.
    pub(crate) fn source_of(&self, table: &TableName) -> Option<usize> {
        match &table.source {
            Some(name) => self.sources.iter().position(|source| source.source == **name),
            // There is one.
            None => (!self.sources.is_empty()).then_some(0),
        }
    }

    /// The LSNs of all sources.
    pub(crate) fn frontiers(&self) -> Vec<Lsn> {
        self.sources.iter().map(|source| source.frontier).collect()
    }

    /// Whether rows of a snapshot are being written, without the log.
    pub(crate) fn is_loading(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.stage, Stage::Snapshot { .. }))
    }

    /// The stage of the source that is furthest behind.
    pub(crate) fn stage(&self) -> Stage {
        let rank = |stage: &Stage| match stage {
            Stage::Empty => 0,
            Stage::Snapshot { .. } => 1,
            Stage::CatchUp { .. } => 2,
            Stage::Live { .. } => 3,
        };
        self.sources.iter().map(|source| source.stage).min_by_key(rank).unwrap_or_default()
    }

    /// From here on every change is in the outbox, if all sources are there and nothing holds them up. Answers whether the state is live.
    pub(crate) fn go_live(&mut self) -> bool {
        if !self.live && matches!(self.stage(), Stage::Live { .. }) && !self.holds() {
            self.live = true;
            self.complete_after = self.frontier;
        }
        self.live
    }

    /// Whether the rows are the sources' as of the frontier, those that are made of documents included.
    pub(crate) fn is_consistent(&self) -> bool {
        self.can_be_read() && self.unmade.is_empty()
    }

    /// Whether the rows of tables are the sources' as of the frontier.
    pub(crate) fn can_be_read(&self) -> bool {
        self.live && !self.holds()
    }

    /// Whether documents may have been told as nobody knows who goes by this state: it is merged of several, or what was told after it is read again.
    pub(crate) fn forgets(&self) -> bool {
        self.awaiting || !self.mixed_until.is_zero()
    }

    /// Whether rows are of different ages, or may be of ages before what has been told: nothing is assembled then.
    pub(crate) fn holds(&self) -> bool {
        self.awaiting
            || self.frontier < self.mixed_until
            || self.sources.iter().any(|source| source.is_torn() || source.rereads.hold(source.frontier))
    }
}

/// How far a sink has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// The [`Standing::load`] that it was loaded in.
    pub(crate) load: u64,
    /// The last outbox entry that it holds.
    pub(crate) sequence: u64,
    /// In which form its changes were written ([`sinks::Terms::form`]).
    #[serde(default)]
    pub(crate) form: String,
    /// The last frontier that it confirmed.
    #[serde(default)]
    pub(crate) frontier: Lsn,
    /// What that stands for, of several sources; empty where it is not known.
    #[serde(default, skip_serializing_if = "Vector::is_empty")]
    pub(crate) sources: Vector,
    /// What it has yet to be told as of a later version than that of the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lifted: Option<Lifted>,
    /// By entity: which change of the definitions made the documents that it was loaded with what they are; 0 of those that do not stand here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) changes: BTreeMap<String, u32>,
}
