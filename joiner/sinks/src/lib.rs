//! Where entities go, behind one trait, and reading them back where they can be queried.

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;

mod check;
pub mod cloudevent;
mod config;
mod error;
mod secret;

#[cfg(any(feature = "dynamodb", feature = "sns"))]
mod aws;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "sns")]
pub mod sns;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "test-support")]
pub mod test_support;

pub use config::{SinkConfig, open, open_reader};
pub use error::Error;
pub use secret::{Secret, SecretReference, UrlSource};

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
/// - Errors: [`Error::class`] says whether to try again (transient), or to stop and ask for help (misconfigured). Single changes that will never be accepted are answered as [`Rejected`].
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
    pub value: T,
}

/// Reads entities back from a sink that can be queried. Shared: any number of calls at once.
#[async_trait]
pub trait EntityReader: Send + Sync {
    async fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<StoredEntity>, Error>;
    /// In the order of the key's text.
    async fn list(&self, query: &Query) -> Result<Vec<StoredEntity>, Error>;
    async fn count(&self, entity: &str) -> Result<u64, Error>;
    /// The LSN up to which the sink holds every change; `None` before the first load has ended.
    async fn frontier(&self) -> Result<Option<Lsn>, Error>;
    /// [`get`](Self::get), with the frontier it reflects. A target that can reads both at one instant; this default reads the frontier first, so that what it says is included is.
    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let frontier = self.frontier().await?;
        Ok(Reading { frontier, value: self.get(entity, key).await? })
    }
    /// [`list`](Self::list), with the frontier it reflects, likewise.
    async fn list_with_frontier(&self, query: &Query) -> Result<Reading<Vec<StoredEntity>>, Error> {
        let frontier = self.frontier().await?;
        Ok(Reading { frontier, value: self.list(query).await? })
    }
}
