//! What the joiner tells of itself while it runs.

use std::collections::BTreeMap;

use schemas::Lsn;
use serde::Serialize;

use crate::accounting::Miscount;
use crate::state::meta::{SourceStanding, Stage, Standing, TableCounts};

/// The joiner at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Status {
    pub phase: JoinerPhase,
    /// Why the joiner stopped, when `phase` is `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What the joiner waits for, and what to do if it does not come by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Another joiner works; this one goes on where it has come when it is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub standby: bool,
    /// The entities are the join of the source as of this LSN; none before the first load has ended.
    pub frontier: Option<Lsn>,
    /// Commit time of the frontier, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
    /// Of several sources, the greatest.
    pub epoch: u64,
    /// By name, where there are several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceStatus>,
    pub tables: BTreeMap<String, TableCounts>,
    pub dead_letters: u64,
    /// Lazy fan-outs that are being told: `frontier` stays before the first of them until they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan_out: Option<FanOut>,
    /// Ticks of which not as many events were received as the importer published, the last ones; when some are missing the joiner has stopped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub miscounts: Vec<Miscount>,
    pub outbox_oldest: u64,
    pub outbox_head: u64,
    /// What the outbox takes on the disk, as of the last look.
    pub outbox_bytes: u64,
    pub state_bytes: u64,
    pub sinks: Vec<SinkStatus>,
}

/// One of several sources at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SourceStatus {
    pub phase: JoinerPhase,
    /// The LSN that entities reflect it as of; none before the first load has ended.
    pub frontier: Option<Lsn>,
    /// Everything at or below has been applied.
    pub applied: Lsn,
    /// Commit time of `applied`, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    pub commit_time_ms: i64,
    pub epoch: u64,
}

/// Changes of rows whose owners have not all been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FanOut {
    /// How many rows have changed. How many owners they have is not counted: that would cost as much as going to them.
    pub rows: u64,
    /// The LSN of the first of the changes.
    pub since: Lsn,
    /// Documents that have been told, or found to be told already, since anything waits.
    pub owners_told: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinerPhase {
    /// Nothing has been read yet: the importer has published nothing, or its streams do not exist yet.
    #[default]
    Waiting,
    /// Snapshot rows are read.
    Snapshot,
    /// The snapshot is in; changes made while it was read are applied.
    CatchUp,
    Live,
    Failed,
    Stopped,
}

/// A sink at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SinkStatus {
    pub name: String,
    pub state: SinkState,
    /// The last outbox entry that it holds; none before it has been loaded.
    pub cursor: Option<u64>,
    /// Outbox entries that it does not hold yet.
    pub behind: u64,
    /// What it lacks is no longer kept: it is loaded anew when it can be reached.
    pub overtaken: bool,
    pub written: u64,
    pub rejected: u64,
    /// Its dead letters that are kept.
    pub dead_letters: u64,
    /// How far it is, while it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<SinkLoad>,
    /// Why it does not move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A load at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SinkLoad {
    pub entities: u64,
    /// What they will come to at most; none before they have been counted.
    pub entities_expected: Option<u64>,
    pub entities_per_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkState {
    /// Waits for the joiner to be live.
    Waiting,
    Loading,
    Following,
    /// Failed for now, and will be tried again.
    Retrying,
    /// Needs help: see `error`. It is looked at again now and then.
    Stopped,
}

impl SinkStatus {
    pub(crate) fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self {
            name,
            state: SinkState::Waiting,
            cursor: None,
            behind: 0,
            overtaken: false,
            written: 0,
            rejected: 0,
            dead_letters: 0,
            load: None,
            error: None,
        }
    }
}

impl SinkStatus {
    /// Against the oldest and the last entry of the outbox.
    pub(crate) fn measure(&mut self, oldest: u64, head: u64) {
        self.behind = head.saturating_sub(self.cursor.unwrap_or(0));
        self.overtaken = self.cursor.is_some_and(|cursor| cursor + 1 < oldest);
    }
}

/// Miscounts that are kept in the status.
const MISCOUNTS: usize = 16;

impl Status {
    pub(crate) fn miscounted(&mut self, miscount: &Miscount) {
        if self.miscounts.len() == MISCOUNTS {
            self.miscounts.remove(0);
        }
        self.miscounts.push(miscount.clone());
    }

    /// Takes over what the standing tells.
    pub(crate) fn stand(&mut self, standing: &Standing) {
        let phase = |stage: Stage| match stage {
            Stage::Empty => JoinerPhase::Waiting,
            Stage::Snapshot { .. } => JoinerPhase::Snapshot,
            Stage::CatchUp { .. } => JoinerPhase::CatchUp,
            Stage::Live { .. } => JoinerPhase::Live,
        };
        self.phase = match phase(standing.stage()) {
            // Of several sources that are all there.
            JoinerPhase::Live if !standing.live => JoinerPhase::CatchUp,
            phase => phase,
        };
        self.frontier = standing.live.then_some(standing.head_frontier);
        self.commit_time_ms = standing.head_commit_time_ms;
        self.epoch = standing.sources.iter().map(|source| source.epoch).max().unwrap_or_default();
        let several = standing.sources.iter().filter(|_| standing.sources.len() > 1);
        let of_source = |source: &SourceStanding| SourceStatus {
            phase: phase(source.stage),
            frontier: standing.live.then_some(source.frontier),
            applied: source.frontier,
            commit_time_ms: source.commit_time_ms,
            epoch: source.epoch,
        };
        self.sources = several.map(|source| (source.source.clone(), of_source(source))).collect();
        self.tables.clone_from(&standing.tables);
        self.dead_letters = standing.dead_letters;
        self.outbox_oldest = standing.oldest;
        self.outbox_head = standing.head;
        for sink in &mut self.sinks {
            sink.measure(standing.oldest, standing.head);
        }
    }
}
