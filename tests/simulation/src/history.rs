//! The history of a run: everything that can be seen from outside of importer, joiner and sinks, in the order in which it happened.
//!
//! It is all that the auditor is given, and its hash is what two runs of a seed are compared by.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::{KeyRange, Lsn};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::joined::Definitions;
use crate::kernel;

/// A value of the shop's tables.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
}

pub(crate) type Row = Vec<Cell>;

/// A row that changed: inserted without `before`, deleted without `after`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) table: String,
    pub(crate) before: Option<Row>,
    pub(crate) after: Option<Row>,
}

/// What a record of a stream is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Content {
    /// A change. Its identity is everything but the hash of its bytes.
    Change {
        table: String,
        lsn: Lsn,
        seqval: Lsn,
        op: char,
        hash: u64,
    },
    /// A row that was read.
    Read {
        table: String,
        hash: u64,
    },
    Progress {
        epoch: u64,
        tail: bool,
        from: Lsn,
        to: Lsn,
        /// In milliseconds since 1970; 0: not known.
        time_ms: i64,
        rereads: Vec<String>,
    },
    DeadLetter {
        table: String,
        lsn: Lsn,
    },
    Unknown,
}

/// An entity as a target or the joiner has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) entity: String,
    pub(crate) key: String,
    /// None: the entity is gone.
    pub(crate) document: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A transaction of the source.
    Committed {
        lsn: Lsn,
        changes: Vec<Change>,
    },
    Captured {
        up_to: Lsn,
    },
    /// Changes of a table before an LSN were removed from its change table.
    Purged {
        table: String,
        before: Lsn,
    },
    ImporterStarted {
        process: u32,
        saved: Option<Lsn>,
    },
    ImporterEnded {
        process: u32,
        how: String,
    },
    /// A record stands in a stream for good.
    Appended {
        process: u32,
        stream: String,
        shard: String,
        content: Content,
    },
    /// What an importer has saved of its progress.
    Saved {
        process: u32,
        lsn: Lsn,
        tail: bool,
    },
    /// A joiner of these entities.
    JoinerStarted {
        process: u32,
        share: KeyRange,
        definitions: Definitions,
        frontier: Lsn,
        head: u64,
    },
    JoinerEnded {
        process: u32,
        how: String,
    },
    /// A joiner that stood by works from here on.
    Turn {
        process: u32,
    },
    /// A process stands still from here on, and what it has asked of others goes on.
    Frozen {
        process: u32,
    },
    /// It writes again what it was about to write; it finds out later what has happened meanwhile.
    Thawed {
        process: u32,
    },
    /// The entities are divided anew, among joiners whose states are made of the checkpoints of those before.
    Reshaped {
        shares: Vec<KeyRange>,
    },
    /// The joiners before go on.
    NotReshaped {
        why: String,
    },
    /// A checkpoint of a joiner's state is in the object storage.
    Checkpoint {
        process: u32,
        share: KeyRange,
        number: u64,
        frontier: Lsn,
    },
    /// A disk was lost with all that was on it.
    DiskLost,
    /// A checkpoint, or several of other shares, became the state of a joiner that is about to start: the greatest number, and the least frontier.
    Restored {
        share: KeyRange,
        number: u64,
        frontier: Lsn,
    },
    /// Nothing was restored.
    NotRestored {
        why: String,
        /// It may go better the next time.
        transient: bool,
    },
    /// The checkpoints of a share that there are in the end, how many are to be kept, and what no checkpoint names.
    Stored {
        share: KeyRange,
        numbers: Vec<u64>,
        keep: u32,
        unnamed: usize,
    },
    /// Records of a stream are gone, up to what the newest checkpoint has passed.
    Trimmed {
        stream: String,
        shard: String,
        records: usize,
    },
    /// What a subscriber was told.
    Told {
        process: u32,
        incarnation: u64,
        sequence: u64,
        version: Lsn,
        change: Document,
    },
    /// A subscriber's entries were trimmed, or belong to a load before: it reads everything anew.
    ToldAnew {
        process: u32,
        incarnation: u64,
        sequence: u64,
        as_of: Lsn,
        documents: Vec<Document>,
    },
    /// Everything that was told so far is as of this LSN.
    ToldUpTo {
        process: u32,
        incarnation: u64,
        sequence: u64,
        frontier: Lsn,
    },
    /// All entities of its share as a joiner's state has them.
    State {
        process: u32,
        as_of: Lsn,
        documents: Vec<Document>,
    },
    /// A target was handed a change. `replaced`: the version that it held; `taken`: whether it holds the new one now.
    Written {
        process: u32,
        target: String,
        version: Lsn,
        replaced: Option<Lsn>,
        taken: bool,
        change: Document,
    },
    /// A target has removed what a load did not bring.
    Vanished {
        process: u32,
        target: String,
        entity: String,
        key: String,
        version: Lsn,
    },
    /// A target has been loaded with all entities of a kind, of a share: what it holds nothing of is not there as of this version, and it takes nothing older.
    Loaded {
        target: String,
        entity: String,
        share: KeyRange,
        version: Lsn,
    },
    /// A target was told that it holds everything of a share up to an LSN. `all`: what it then says of all shares.
    Reached {
        target: String,
        share: KeyRange,
        frontier: Lsn,
        all: Option<Lsn>,
    },
    /// What a target holds in the end.
    Holds {
        target: String,
        frontier: Option<Lsn>,
        documents: Vec<Document>,
    },
    Fault {
        what: String,
    },
    /// No more faults from here on.
    Calm,
    /// The run was given up: it did not come to rest in time.
    Stuck {
        what: String,
    },
}

/// An event and when it happened, in simulated milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at_ms: u64,
    #[serde(flatten)]
    pub(crate) event: Event,
}

#[derive(Default)]
struct Log {
    entries: Vec<Entry>,
    hash: Xxh3,
    text: Option<String>,
}

/// Shared by everybody who has something to tell.
#[derive(Clone, Default)]
pub(crate) struct History(Arc<Mutex<Log>>);

impl History {
    /// `keep_text`: the lines are wanted, not their hash alone.
    pub(crate) fn new(keep_text: bool) -> Self {
        let text = keep_text.then(String::new);
        Self(Arc::new(Mutex::new(Log { text, ..Log::default() })))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, event: Event) {
        let entry = Entry { at_ms: kernel::elapsed_ms(), event };
        // An event has nothing in it that JSON could not hold.
        let line = serde_json::to_string(&entry).unwrap_or_default();
        let mut log = self.log();
        log.hash.update(line.as_bytes());
        log.hash.update(b"\n");
        if let Some(text) = &mut log.text {
            let _ = writeln!(text, "{line}");
        }
        log.entries.push(entry);
    }

    pub(crate) fn fault(&self, what: impl Into<String>) {
        self.add(Event::Fault { what: what.into() });
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.log().entries.clone()
    }

    pub(crate) fn hash(&self) -> u64 {
        self.log().hash.digest()
    }

    pub(crate) fn text(&self) -> String {
        self.log().text.clone().unwrap_or_default()
    }
}
