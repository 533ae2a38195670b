//! Where entities go, behind one trait, and reading them back where they can be queried.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn, Vector};

mod check;
pub mod cloudevent;
mod config;
mod entry;
mod error;
mod route;
mod secret;

#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs", feature = "postgres", feature = "mysql"))]
mod aws;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg(feature = "http")]
mod http;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod iam;
#[cfg(feature = "kinesis")]
pub mod kinesis;
#[cfg(feature = "lake")]
pub mod lake;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(any(feature = "sns", feature = "sqs"))]
mod notification;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "search")]
pub mod search;
#[cfg(any(
    feature = "sqlite",
    feature = "postgres",
    feature = "mysql",
    feature = "dynamodb",
    feature = "lake",
    feature = "search"
))]
mod shares;
#[cfg(feature = "sns")]
pub mod sns;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqs")]
pub mod sqs;
#[cfg(feature = "test-support")]
pub mod test_support;
#[cfg(any(feature = "http", feature = "postgres"))]
mod tls;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use check::longest_key_bytes;
pub use config::{SinkConfig, open, open_reader};
pub use entry::{Entry, RetryConfig};
pub use error::Error;
pub use route::{Otherwise, Route, Routes, Selected};
pub use secret::{Secret, SecretReference, UrlSource};
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use sql::shape::{ChildConfig, Deleted, TableConfig, Tables};

/// A change that the target will never accept, and why. The caller keeps it as a dead letter; the rest of its batch has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub change: EntityChange,
    pub reason: String,
}

/// A place where entity changes are written. One task owns it; calls come one after another.
///
/// # Protocol
/// - [`prepare`](Self::prepare) comes first, and again after an error.
/// - [`write`](Self::write) is handed changes with at most one change per (entity, key), the latest. It returns once the target has them durably. It is idempotent, and an older
///   version never replaces a newer one (INV-5): a batch may be handed over again, whole or in part, after an error, a crash or a lost answer, also when later ones have been written.
/// - `frontier`, where it is given, says that with this batch the target holds every change at or below that LSN. A target that can keeps it in the same transaction as the rows.
///   Batches may be empty: then only the frontier moves.
/// - First load: [`begin_load`](Self::begin_load), any number of `write`s without a frontier, then [`end_load`](Self::end_load) per entity, then a `write` with the frontier. All documents of one load have one version.
///   Until that last write has returned, what was written since `begin_load` need not be durable: a load that was cut short is done again from its beginning.
/// - A call may be dropped before it has returned (a shutdown): the next one, in this process or another, finds what a crash would have left.
///
/// # What a sink must promise
/// The conformance suite (`tests/conformance`) holds every kind to this.
/// - *It waits for nobody for ever.* Every call to the target has a limit of time; past it the error is transient. A target that is slow is told from one that is down by nothing else.
/// - *It tells the target's trouble from the change's.* [`Error::class`] is `Transient` for what passes by itself (not reached, overloaded, read-only after a failover), `Misconfigured` for what somebody has to
///   mend (a refused password, a missing permission, a table of another shape), and [`Error::Throttled`] carries how long the target asked to be left alone. A change that the target will never take as it is (too large,
///   a value that it cannot hold) is answered as [`Rejected`], and never fails the batch that it came in. Where the target refuses a batch and does not say which change it means, an `Unexpected` error will do: the
///   caller then writes the batch in ever smaller parts ([`Terms::retry`]).
/// - *It reads secrets anew in every `prepare`*, so that a rotated one is picked up without a restart.
/// - *It holds no change back.* What has been handed over is written, or answered, or the call fails.
/// - *Its memory is bounded* by the batch that it was handed and a fixed number of requests under way.
///
/// # What the caller does
/// It keeps a cursor of its own for each sink, hands over the latest change of each key, tries again with growing pauses (over restarts too), keeps what was rejected as dead letters, and loads the sink anew when it has fallen behind
/// what is kept for it, or when [`Terms::form`] has changed.
#[async_trait]
pub trait Sink: Send {
    /// Connects, checks the target's shape, creates what is missing.
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error>;
    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error>;
    /// A load begins: the writes up to the next one with a frontier are its documents. For targets that treat them otherwise than changes (SNS does not notify them).
    async fn begin_load(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Every live entity of this kind has been written with `version` since the load began: what is older has vanished at the source, and is removed where the target can tell.
    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error>;
    /// How the sink wants to be written to. Asked once, before anything else; the configuration may say otherwise ([`RetryConfig`]).
    fn terms(&self) -> Terms {
        Terms::default()
    }
    /// The longest entity key, in bytes, that the target surely takes. A change with a longer one may be answered as [`Rejected`].
    fn key_limit_bytes(&self) -> usize {
        check::KEY_LIMIT_BYTES
    }
    /// What the target itself says that it holds; asked after each `prepare`. A target that says less than it once confirmed (it was restored from a backup, or somebody removed a table) is loaded anew.
    async fn held(&mut self) -> Result<Held, Error> {
        Ok(Held::Unknown)
    }
    /// What each entity's documents follow from: a text that is another where they are. Asked before anything else. A target that keeps it with the documents answers true, and names as [`lacking`](Self::lacking) an entity whose documents may be of another one: whoever
    /// goes on from an earlier state does not know what has been written since.
    fn describe(&mut self, made_of: &BTreeMap<Arc<str>, String>) -> bool {
        let _ = made_of;
        false
    }
    /// Entities whose documents the target holds, and not all that is to stand beside them (a column is new), or not all as they are made now ([`describe`](Self::describe)): they are loaded anew, and the others are not. Asked after [`held`](Self::held).
    async fn lacking(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
    /// What the sink wants to know again after a restart of how its target has been doing, in a few words of its own. Asked after each failure; what it said last is kept until a write is taken.
    fn note(&self) -> Option<String> {
        None
    }
    /// What [`note`](Self::note) said last, before the first `prepare`; or nothing, when somebody has mended the cause: the sink then forgets how its target has been doing.
    fn recall(&mut self, note: Option<&str>) {
        let _ = note;
    }
    /// Several instances write to the target, and this sink is that of the one which makes these entities. Asked before anything else, where there are several. Answers whether the target can be written like that: its frontier, and what
    /// [`held`](Self::held) answers, then speak of that share alone; [`end_load`](Self::end_load) is not called, because it would remove what the others have written, and [`older`](Self::older) is.
    fn own(&mut self, range: KeyRange) -> bool {
        let _ = range;
        false
    }
    /// Entities are made of several sources, and this knows which LSN of each a version stands for. Asked before anything else. Whoever tells others of versions tells them that as well.
    fn know(&mut self, versions: Arc<dyn Versions>) {
        let _ = versions;
    }
    /// At most `limit` keys of entities that stand in the target with a version older than this one, behind a key, in an order of the target's own. Asked at a load's end until there are none, while the caller deletes those of its share that are not there any more: first as of the load's version where several write (all that is there of the share has been written by then, and a target that can takes nothing older of it from then on); then, where the target may have been told of entities as of that very version by other definitions, as of the next. A target that keeps
    /// no entities has none.
    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let _ = (entity, version, after, limit);
        Ok(Vec::new())
    }
    /// Looks whether [`prepare`](Self::prepare) and the writes after it would do, and changes nothing: for `tributary check`. What stands in the way is the error.
    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let _ = entities;
        Ok(Checked::default())
    }
}

/// Knows what versions stand for, where entities are made of several sources. Asked for every event and every frontier: it answers at once.
pub trait Versions: Send + Sync {
    /// The LSN of each source that a version is the sum of; none where that is not known any more.
    fn sources(&self, version: Lsn) -> Option<Vector>;
}

/// What a target says that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It keeps no frontier, or none that tells.
    Unknown,
    /// No load has ended there.
    Nothing,
    /// Every change at or below this LSN.
    UpTo(Lsn),
}

impl From<Option<Lsn>> for Held {
    /// Of a target that keeps a frontier: none before a load has ended.
    fn from(frontier: Option<Lsn>) -> Self {
        frontier.map_or(Self::Nothing, Self::UpTo)
    }
}

/// What a look at the target has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// What it is and what is there already, in a few words. Empty: nothing was looked at.
    pub detail: String,
    /// What works and yet deserves a look.
    pub warnings: Vec<String>,
}

/// How a sink wants to be written to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Stands for what is made of a change here: filters, projections, promoted columns. It is kept with the sink's cursor, and when it has changed the sink is loaded anew.
    pub form: String,
    pub retry: Retry,
}

/// How often, and for how long, a failed write is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The pause before the second attempt. Each pause is twice the last, and a random part of it, up to a half, is left out, so that many do not come back at once.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// A batch that has failed for so long, though the target can be reached, is written in ever smaller parts; a change that fails by itself while others are taken becomes a dead letter. A target that takes
    /// nothing at all is only tried again.
    pub budget: Duration,
    /// As many dead letters of the sink are kept; past that it stops and says so.
    pub dead_letters: u64,
}

impl Default for Retry {
    fn default() -> Self {
        let (first_pause, longest_pause) = (Duration::from_millis(100), Duration::from_secs(30));
        Self { first_pause, longest_pause, budget: Duration::from_secs(600), dead_letters: 10_000 }
    }
}

/// An entity as a sink holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntity {
    pub key: EntityKey,
    pub version: Lsn,
    /// JSON text.
    pub document: String,
}

/// PostgREST's operators, as far as they are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// A condition on a member of the document. A decimal (a string in the document) is compared as a number when `value` is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Member names from the document's top: `["customer", "city"]`.
    pub path: Vec<String>,
    pub operator: Operator,
    pub value: String,
}

/// A page of entities in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub entity: String,
    pub filters: Vec<Filter>,
    /// Start after this key.
    pub after: Option<EntityKey>,
    pub limit: usize,
}

/// What was read, and the frontier of the same instant: everything at or below it is included, and single entities may be newer (their versions say so).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<T> {
    /// `None` before the first load has ended.
    pub frontier: Option<Lsn>,
    /// Of several sources: the LSN of each up to which everything is included. Empty of one source, and where the target does not say.
    pub sources: Vector,
    pub value: T,
}

/// Reads entities back from a sink that can be queried. Shared: any number of calls at once.
#[async_trait]
pub trait EntityReader: Send + Sync {
    async fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<StoredEntity>, Error>;
    /// In the order of the key's text.
    async fn list(&self, query: &Query) -> Result<Vec<StoredEntity>, Error>;
    async fn count(&self, entity: &str) -> Result<u64, Error>;
    /// Up to where the sink holds every change.
    async fn reached(&self) -> Result<Reading<()>, Error>;
    /// The same as an LSN alone; `None` before the first load has ended.
    async fn frontier(&self) -> Result<Option<Lsn>, Error> {
        Ok(self.reached().await?.frontier)
    }
    /// [`get`](Self::get), with the frontier it reflects. A target that can reads both at one instant; this default reads the frontier first, so that what it says is included is.
    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let Reading { frontier, sources, .. } = self.reached().await?;
        Ok(Reading { frontier, sources, value: self.get(entity, key).await? })
    }
    /// [`list`](Self::list), with the frontier it reflects, likewise.
    async fn list_with_frontier(&self, query: &Query) -> Result<Reading<Vec<StoredEntity>>, Error> {
        let Reading { frontier, sources, .. } = self.reached().await?;
        Ok(Reading { frontier, sources, value: self.list(query).await? })
    }
}
