//! What was set aside: events that the joiner cannot use, and changes of entities that a sink does not take. Kept in the state's `meta` column family until somebody drops them, or until they have become pointless.
//!
//! | key | value |
//! |---|---|
//! | `dead/event/<stream>/<shard>/<number>` | JSON, [`DeadLetter`] |
//! | `dead/sink/<sink>/<entity>/<key>` | JSON, [`Refused`]: the last change of the entity that this sink did not take |
//! | `dead/document/<entity>/<key>` | JSON, [`TooLarge`]: the entity's document is past its limits (`exceeded: dead_letter`) |
//! | `dead_dropped` | how many letters of events were dropped, JSON |
//!
//! A letter's id is the hash of its key: short enough to type, and the same whenever it is set aside again.
//!
//! # Trying again
//! A refused change is not written again as it was: it may have been superseded. What is written is the entity as it stands in the state when its turn comes, with the LSN that this reflects as its version; so trying
//! again can bring nothing old back (INV-5), and does what the operator wants where the cause was at the target or in a document that has changed since. An event cannot be tried again by itself: what it would
//! have changed is only right again when its table has been read again. A document past its limits is told by itself as soon as it fits, because the source has changed or its definition has.
//!
//! All calls block for as long as the local database takes.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rocksdb::{Direction, IteratorMode, WriteBatch};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::Limits;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

use crate::assemble::limits_in_words;
use crate::deliver::trouble;
use crate::error::Error;
use crate::route::DeadLetter;
use crate::state::meta::Standing;
use crate::state::{DEAD, Family, Memory, Store, meta};

pub(crate) const SINK: &str = "dead/sink/";
const EVENT: &str = "dead/event/";
const DOCUMENT: &str = "dead/document/";
const DROPPED: &[u8] = b"dead_dropped";
/// So much of a refused document is kept with the letter.
const DOCUMENT_BYTES: usize = 4096;

/// A change of an entity that a sink does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub sink: String,
    pub entity: String,
    pub key: EntityKey,
    pub version: Lsn,
    pub reason: String,
    /// When it was set aside, in milliseconds since 1970-01-01 UTC; 0 when it is not known.
    #[serde(default)]
    pub at_ms: i64,
    /// How long its document was; none of a deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_bytes: Option<usize>,
    /// The beginning of its document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// Somebody asked to have the entity written once more.
    #[serde(default)]
    pub retry: bool,
}

impl Refused {
    pub(crate) fn new(sink: &str, change: &EntityChange, reason: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let document = change.document.as_deref();
        Self {
            sink: sink.to_owned(),
            entity: change.entity.to_string(),
            key: change.key.clone(),
            version: change.version,
            reason: reason.to_owned(),
            at_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            document_bytes: document.map(str::len),
            document: document.map(|document| document[..document.floor_char_boundary(DOCUMENT_BYTES)].to_owned()),
            retry: false,
        }
    }

    pub(crate) fn place(sink: &str, entity: &str, key: &EntityKey) -> String {
        format!("{SINK}{sink}/{entity}/{key}")
    }
}

/// A document that is past the limits of its definition. The joiner itself puts such letters, and removes them when the document fits again or the entity is gone, in the write that tells so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLarge {
    pub entity: String,
    pub key: EntityKey,
    /// The LSN as of which the document was looked at last, and its commit time.
    pub version: Lsn,
    pub commit_time_ms: i64,
    pub reason: String,
}

impl TooLarge {
    pub(crate) fn new(entity: &str, key: EntityKey, limits: Limits, standing: &Standing) -> Self {
        let reason = format!("the document has more than {}", limits_in_words(limits));
        let (version, commit_time_ms) = (standing.frontier, standing.commit_time_ms);
        Self { entity: entity.to_owned(), key, version, commit_time_ms, reason }
    }

    pub(crate) fn place(entity: &str, key: &EntityKey) -> String {
        format!("{DOCUMENT}{entity}/{key}")
    }

    /// Has a batch keep a letter, or forget the one that there may be.
    pub(crate) fn settle(store: &Store, place: &str, letter: Option<&Self>, batch: &mut WriteBatch) -> Result<(), Error> {
        let family = store.family(Family::Meta)?;
        match letter {
            Some(letter) => {
                let text = serde_json::to_vec(letter).map_err(|error| store.corrupt(error.to_string()))?;
                batch.put_cf(family, place, text);
            }
            None => batch.delete_cf(family, place),
        }
        Ok(())
    }

    /// Has a batch forget all of an entity.
    pub(crate) fn forget(store: &Store, entity: &str, batch: &mut WriteBatch) -> Result<(), Error> {
        // A slash is followed by the zero among digits.
        let (start, end) = (format!("{DOCUMENT}{entity}/"), format!("{DOCUMENT}{entity}0"));
        batch.delete_range_cf(store.family(Family::Meta)?, start, end);
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    Change(Refused),
    Event(DeadLetter),
    Document(TooLarge),
}

/// A letter under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub id: String,
    #[serde(flatten)]
    pub letter: Letter,
}

/// Which letters are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    Id(String),
    /// All of one sink.
    Sink(String),
    All,
}

/// What became of a request to try again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retried {
    pub changes: u64,
    /// Letters that were meant and are of events.
    pub events: u64,
    /// The same of documents past their limits.
    pub documents: u64,
    /// Sinks that fail, or have given up, and are tried at once.
    pub sinks: u64,
}

/// The dead letters of a joiner's state.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    store: Arc<Store>,
    /// Told when letters have been dropped, or are to be tried again.
    asked: watch::Sender<()>,
}

impl DeadLetters {
    /// Of the state in a directory, which no joiner may have open.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let incarnation = meta::recognize(state_dir)?;
        Ok(Self { store: Store::open(state_dir, incarnation, Memory::default())?, asked: watch::Sender::new(()) })
    }

    pub(crate) fn of(store: Arc<Store>, asked: watch::Sender<()>) -> Self {
        Self { store, asked }
    }

    /// At most `limit` letters, those of sinks last.
    pub fn list(&self, which: &Which, limit: usize) -> Result<Vec<Kept>, Error> {
        let mut found = Vec::new();
        self.each(which, &mut |_, kept| {
            found.push(kept);
            found.len() < limit
        })?;
        Ok(found)
    }

    /// Removes letters; answers how many.
    pub fn remove(&self, which: &Which) -> Result<u64, Error> {
        let mut batch = WriteBatch::default();
        let (mut count, mut events) = (0, 0);
        let family = self.store.family(Family::Meta)?;
        self.each(which, &mut |place, kept| {
            batch.delete_cf(family, place);
            count += 1;
            events += u64::from(matches!(kept.letter, Letter::Event(_)));
            true
        })?;
        if events > 0 {
            batch.put_cf(family, DROPPED, (self.dropped_events()? + events).to_string());
        }
        self.write(batch)?;
        self.store.sync()?;
        self.asked.send_replace(());
        Ok(count)
    }

    /// Marks letters of sinks, so that their entities are written again as they are then. Where a sink is meant, or all are, one that fails is tried at once and as if it never had, also when it has given up.
    pub fn retry(&self, which: &Which) -> Result<Retried, Error> {
        let mut batch = WriteBatch::default();
        let mut retried = Retried::default();
        let mut failed = Ok(());
        self.each(which, &mut |_, kept| match kept.letter {
            Letter::Event(_) => {
                retried.events += 1;
                true
            }
            Letter::Document(_) => {
                retried.documents += 1;
                true
            }
            Letter::Change(refused) => {
                retried.changes += 1;
                failed = self.put(&mut batch, &Refused { retry: true, ..refused });
                failed.is_ok()
            }
        })?;
        failed?;
        self.write(batch)?;
        retried.sinks = match which {
            Which::Id(_) => 0,
            Which::Sink(sink) => trouble::forget(&self.store, Some(sink))?,
            Which::All => trouble::forget(&self.store, None)?,
        };
        self.store.sync()?;
        self.asked.send_replace(());
        Ok(retried)
    }

    /// Letters of events that were dropped since the state was made.
    pub(crate) fn dropped_events(&self) -> Result<u64, Error> {
        let dropped = self.store.get(Family::Meta, DROPPED)?;
        let read =
            |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|error| self.store.corrupt(format!("dead_dropped: {error}")));
        dropped.map_or(Ok(0), read)
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        self.store.write(batch, true)
    }

    pub(crate) fn put(&self, batch: &mut WriteBatch, refused: &Refused) -> Result<(), Error> {
        let place = Refused::place(&refused.sink, &refused.entity, &refused.key);
        let text = serde_json::to_vec(refused).map_err(|error| self.store.corrupt(error.to_string()))?;
        batch.put_cf(self.store.family(Family::Meta)?, place, text);
        Ok(())
    }

    pub(crate) fn delete(&self, batch: &mut WriteBatch, sink: &str, entity: &str, key: &EntityKey) -> Result<(), Error> {
        batch.delete_cf(self.store.family(Family::Meta)?, Refused::place(sink, entity, key));
        Ok(())
    }

    /// Calls `each` with the key and the content of every letter that is meant, until it answers false.
    fn each(&self, which: &Which, each: &mut dyn FnMut(&[u8], Kept) -> bool) -> Result<(), Error> {
        let prefix = match which {
            Which::Sink(sink) => format!("{SINK}{sink}/"),
            Which::Id(_) | Which::All => DEAD.to_owned(),
        };
        let from = IteratorMode::From(prefix.as_bytes(), Direction::Forward);
        for entry in self.store.db().iterator_cf(self.store.family(Family::Meta)?, from) {
            let (place, text) = entry.map_err(|error| self.store.error(&error))?;
            if !place.starts_with(prefix.as_bytes()) {
                break;
            }
            let id = format!("{:016x}", xxh3_64(&place));
            if matches!(which, Which::Id(wanted) if *wanted != id) {
                continue;
            }
            let letter = self.read(&place, &text)?;
            // A sink's name may go on where another's ends with a slash.
            let other = matches!((which, &letter), (Which::Sink(sink), Letter::Change(refused)) if refused.sink != *sink);
            if !other && !each(&place, Kept { id, letter }) {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, place: &[u8], text: &[u8]) -> Result<Letter, Error> {
        let letter = if place.starts_with(EVENT.as_bytes()) {
            serde_json::from_slice(text).map(Letter::Event)
        } else if place.starts_with(DOCUMENT.as_bytes()) {
            serde_json::from_slice(text).map(Letter::Document)
        } else {
            serde_json::from_slice(text).map(Letter::Change)
        };
        letter.map_err(|error| self.store.corrupt(format!("{}: {error}", String::from_utf8_lossy(place))))
    }
}
