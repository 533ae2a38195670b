//! What the SQL sinks have in common: connections that write, batches over them, loads, and the share of the entities that is written.
//!
//! A database says in [`Server`] how it is opened and looked at, and in [`Writer`] what one of its connections does. Everything else is here, once.
//!
//! # Several connections
//! A batch without a frontier (of a load, or of a sink that is catching up) is cut into as many parts as there are connections, each a transaction. That takes nothing from what
//! is promised: such a batch is only a piece of what lies between two frontiers, so nobody may take it for whole; its keys are different from each other, so the parts' order
//! does not matter; and [`Sink::write`] returns when all parts are committed, so the order of batches stays. What a part has committed when another fails is written again
//! and found to be there.
//!
//! # Several instances
//! Each writes its own share, to which no row of another's belongs, and raises the frontier of that share alone ([`shares`](crate::shares)). At the end of a load, what has vanished is found by [`Sink::older`] and deleted row by row, because only the
//! caller can tell whose a key is; before the first question a floor of the share is raised ([`sql`](crate::sql)). Columns and tables of children count as filled once every share has been loaded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};

use super::kind::Dialect;
use super::shape::{Row, Shape, Shapes, Tables};
use super::{Indexing, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS, newest_ms};
use crate::shares::{self, Share};
use crate::{Checked, Error, Held, Rejected, Sink, Versions, check};

/// A part with fewer rows is not worth a connection of its own.
const LEAST_PART_ROWS: usize = 250;
const MOST_CONNECTIONS: usize = 16;

/// What ends a transaction, beside the rows.
#[derive(Clone, Copy)]
pub struct Ending<'e> {
    /// Of which share is written, and what was said of it.
    pub(crate) share: Share,
    pub(crate) frontier: Option<Lsn>,
    /// What the frontier stands for, of several sources.
    pub(crate) sources: Option<&'e str>,
    /// Tombstones that are older and no longer needed are dropped.
    pub(crate) purge_before_ms: Option<i64>,
    /// The entities that have been loaded: their columns and children are filled.
    pub(crate) filled: &'e [String],
}

impl Ending<'_> {
    /// Nothing but the rows.
    pub(crate) const NONE: Self = Self { share: Share::WHOLE, frontier: None, sources: None, purge_before_ms: None, filled: &[] };
}

/// One connection that writes. After an error it is not used again.
#[async_trait]
pub trait Writer: Send {
    /// What the database says of a share.
    async fn standing(&mut self, range: KeyRange) -> Result<Standing, Error>;
    /// From now on documents of a load are written.
    async fn begin_load(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// From now on a commit is durable when it is answered, or as the server's owner has set it.
    async fn end_load(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// One transaction: writes what is newer than what is there. Changes that the database refuses for what they say are found and left out.
    async fn write(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, Error>;
    /// Removes the rows that a load of this version has not written, and then the traces of what is older than it.
    async fn remove_vanished(&mut self, shape: &Shape, version: Lsn) -> Result<(), Error>;
    /// From now on takes nothing of this part of the entity's keys that is older, whether or not a trace is left of it.
    async fn refuse_older(&mut self, shape: &Shape, version: Lsn) -> Result<(), Error>;
    /// Keys of what is there in an older version, in their order.
    async fn older(&mut self, shape: &Shape, version: Lsn, after: &str, limit: i64) -> Result<Vec<String>, Error>;
    /// An entity has been loaded.
    async fn settle(&mut self, shape: &Shape) -> Result<(), Error> {
        let _ = shape;
        Ok(())
    }
    /// Why a change is not worth sending, if so.
    fn refusal(&self, change: &EntityChange) -> Option<String> {
        check::refusal(change)
    }
}

/// What a database says that it holds of a share.
pub struct Standing {
    /// Every change at or below this.
    pub(crate) held: Option<Lsn>,
    /// Entities of which something in it has yet to be filled.
    pub(crate) lacking: Vec<String>,
}

impl Standing {
    /// By the parts of the frontier, and the shapes that have not been filled for all shares, with those that they have been for.
    pub(crate) fn of<'r>(
        shapes: &Shapes,
        range: KeyRange,
        unfilled: impl IntoIterator<Item = (&'r str, Option<&'r str>)>,
        parts: &[(String, String)],
    ) -> Self {
        let lacks = |(entity, by): &(&str, Option<&str>)| shapes.has(entity) && !shares::cover(*by, range);
        let mut lacking: Vec<String> = unfilled.into_iter().filter(lacks).map(|(entity, _)| entity.to_owned()).collect();
        lacking.sort_unstable();
        lacking.dedup();
        Self { held: shares::held(parts, range), lacking }
    }
}

/// What is configured, as far as the pool is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'s> {
    pub(crate) name: &'s str,
    /// One write may take so long.
    pub(crate) write_limit: Option<Duration>,
    pub(crate) tables: &'s Tables,
}

/// Connections that write, and the statements that make what indexes are missing.
pub struct Opened<W> {
    pub(crate) writers: Vec<W>,
    pub(crate) indexes: Vec<String>,
    /// What the share's entry says.
    pub(crate) said: Lsn,
}

/// A database.
#[async_trait]
pub trait Server: Clone + Send + Sync + 'static {
    const DIALECT: Dialect;
    /// Whether indexes are made while rows are written.
    const INDEXES_BESIDE: bool;
    /// The longest key that the tables have room for.
    const KEY_LIMIT_BYTES: usize = check::KEY_LIMIT_BYTES;
    type Writer: Writer;

    fn settings(&self) -> Settings<'_>;
    /// How errors name it.
    fn target(&self) -> &str;
    /// Reads secrets and certificates as they are now.
    fn renew(&mut self) -> Result<(), Error>;
    /// Connects, brings our own tables and the entities' to what is wanted, and takes the share.
    async fn open(&self, shapes: &Arc<Shapes>, entities: &[EntityInfo], range: KeyRange) -> Result<Opened<Self::Writer>, Error>;
    async fn make_indexes(&self, statements: &[String]) -> Result<(), Error>;
    /// Looks, and changes nothing.
    async fn look(&self, shapes: &Shapes, entities: &[EntityInfo]) -> Result<Checked, Error>;
}

/// Refuses numbers of connections that make no sense.
pub(crate) fn check_connections(sink: &str, connections: usize) -> Result<(), Error> {
    if (1..=MOST_CONNECTIONS).contains(&connections) {
        return Ok(());
    }
    let message = format!("connections: {connections} is not possible");
    Err(Error::misconfigured(format!("sink {sink}"), message, format!("Give it 1 to {MOST_CONNECTIONS}")))
}

/// A SQL sink.
pub struct Pool<S: Server> {
    server: S,
    share: Share,
    /// Where there are several sources.
    versions: Option<Arc<dyn Versions>>,
    /// One for each connection; none before [`Sink::prepare`] and after an error.
    writers: Vec<S::Writer>,
    /// What documents follow from, by entity.
    made_of: BTreeMap<Arc<str>, String>,
    shapes: Arc<Shapes>,
    /// Statements that make the indexes which are to be made behind the load.
    indexes: Vec<String>,
    indexing: Indexing,
    /// While a load goes on, the entities of which all has been written.
    loaded: Option<Vec<String>>,
    writes_since_purge: u32,
    newest_ms: i64,
}

impl<S: Server> Pool<S> {
    pub(crate) fn of(server: S) -> Self {
        Self {
            server,
            share: Share::WHOLE,
            versions: None,
            writers: Vec::new(),
            made_of: BTreeMap::new(),
            shapes: Arc::new(Shapes::none(S::DIALECT)),
            indexes: Vec::new(),
            indexing: Indexing::default(),
            loaded: None,
            writes_since_purge: 0,
            newest_ms: 0,
        }
    }

    fn shapes(&self, entities: &[EntityInfo]) -> Result<Shapes, Error> {
        let Settings { name, tables, .. } = self.server.settings();
        let part = (!self.share.range.is_all()).then(|| self.share.part());
        Ok(Shapes::resolve(&format!("sink {name}"), S::DIALECT, tables, entities)?.made_of(&self.made_of).of_part(part))
    }

    /// The connections, which come back only after a success: one that failed, or was left in the middle of something, is closed, and the server rolls back what was not committed.
    fn take_writers(&mut self) -> Result<Vec<S::Writer>, Error> {
        let writers = std::mem::take(&mut self.writers);
        if writers.is_empty() {
            return Err(Error::unavailable(self.server.target(), "not connected"));
        }
        Ok(writers)
    }

    async fn make_indexes(&mut self) -> Result<(), Error> {
        let statements = std::mem::take(&mut self.indexes);
        if statements.is_empty() {
            return Ok(());
        }
        if !S::INDEXES_BESIDE {
            return self.server.make_indexes(&statements).await;
        }
        let server = self.server.clone();
        self.indexing.begin(self.server.target(), async move { server.make_indexes(&statements).await });
        Ok(())
    }

    /// Writes on as many connections as it is worth, and waits for all.
    async fn write_parts(writers: &mut [S::Writer], rows: &[Row<'_>]) -> Result<Vec<Rejected>, Error> {
        let parts = rows.len().div_ceil(LEAST_PART_ROWS).clamp(1, writers.len());
        let size = rows.len().div_ceil(parts).max(1);
        let written = writers.iter_mut().zip(rows.chunks(size)).map(|(writer, part)| writer.write(part, Ending::NONE));
        Ok(try_join_all(written).await?.concat())
    }

    async fn write_with(
        &mut self,
        writers: &mut [S::Writer],
        rows: &[Row<'_>],
        frontier: Option<Lsn>,
    ) -> Result<Vec<Rejected>, Error> {
        self.newest_ms = self.newest_ms.max(newest_ms(rows));
        let Some(reached) = frontier else { return Self::write_parts(writers, rows).await };
        if self.loaded.is_some() {
            try_join_all(writers.iter_mut().map(Writer::end_load)).await?;
        }
        self.writes_since_purge += 1;
        let purge_before_ms = (self.writes_since_purge >= PURGE_EVERY_WRITES).then_some(self.newest_ms - TOMBSTONE_RETENTION_MS);
        let filled = self.loaded.as_deref().unwrap_or_default();
        let sources = self.versions.as_ref().and_then(|versions| versions.sources(reached)).map(|sources| sources.to_string());
        let ending = Ending { share: self.share, frontier, sources: sources.as_deref(), purge_before_ms, filled };
        let rejected = writers[0].write(rows, ending).await?;
        self.share.said = self.share.said.max(reached);
        if purge_before_ms.is_some() {
            self.writes_since_purge = 0;
        }
        Ok(rejected)
    }

    async fn standing(&mut self) -> Result<Standing, Error> {
        let mut writers = self.take_writers()?;
        let standing = writers[0].standing(self.share.range).await?;
        self.writers = writers;
        Ok(standing)
    }

    /// Everything of an entity has been loaded, and what vanished is gone.
    fn has_loaded(&mut self, entity: &str) {
        self.loaded.iter_mut().for_each(|loaded| loaded.push(entity.to_owned()));
    }
}

#[async_trait]
impl<S: Server> Sink for Pool<S> {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.writers.clear();
        self.loaded = None;
        self.server.renew()?;
        let shapes = Arc::new(self.shapes(entities)?);
        let Opened { mut writers, indexes, said } = self.server.open(&shapes, entities, self.share.range).await?;
        (self.shapes, self.indexes, self.share.said) = (shapes, indexes, said);
        // Where a load is to come, indexes are made behind it.
        let Standing { held, lacking } = writers[0].standing(self.share.range).await?;
        if held.is_some() && lacking.is_empty() {
            self.make_indexes().await?;
        }
        self.writers = writers;
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        let mut writers = self.take_writers()?;
        try_join_all(writers.iter_mut().map(Writer::begin_load)).await?;
        self.loaded = Some(Vec::new());
        self.writers = writers;
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let mut writers = self.take_writers()?;
        let too_long = |change: &EntityChange| check::too_long(change.key.as_str(), S::KEY_LIMIT_BYTES);
        let (accepted, mut rejected) = check::sort_by(changes, |change| too_long(change).or_else(|| writers[0].refusal(change)));
        let shapes = self.shapes.clone();
        let rows = shapes.rows(accepted, &mut rejected);
        let limit = self.server.settings().write_limit;
        let writing = self.write_with(&mut writers, &rows, frontier);
        let written = match limit {
            None => Ok(writing.await),
            Some(limit) => tokio::time::timeout(limit, writing).await.map_err(|_| limit.as_millis()),
        };
        let late = |limit| Error::unavailable(self.server.target(), format!("no answer within {limit} ms"));
        rejected.extend(written.map_err(late)??);
        if frontier.is_some() && self.loaded.take().is_some() {
            self.make_indexes().await?;
        }
        self.writers = writers;
        Ok(rejected)
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let mut writers = self.take_writers()?;
        let shape = self.shapes.of(entity);
        // Vanished rows of a large table take as long as they take: no limit here.
        writers[0].remove_vanished(&shape, version).await?;
        writers[0].settle(&shape).await?;
        self.has_loaded(entity);
        self.writers = writers;
        Ok(())
    }

    async fn held(&mut self) -> Result<Held, Error> {
        Ok(self.standing().await?.held.into())
    }

    fn key_limit_bytes(&self) -> usize {
        S::KEY_LIMIT_BYTES
    }

    async fn lacking(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.standing().await?.lacking)
    }

    fn describe(&mut self, made_of: &BTreeMap<Arc<str>, String>) -> bool {
        self.made_of.clone_from(made_of);
        true
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.share.range = range;
        true
    }

    fn know(&mut self, versions: Arc<dyn Versions>) {
        self.versions = Some(versions);
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let mut writers = self.take_writers()?;
        let (shape, limit) = (self.shapes.of(entity), i64::try_from(limit).unwrap_or(i64::MAX));
        // What an older writer has under way is there before the question, or is not taken.
        let has_loaded = self.loaded.iter().flatten().any(|loaded| loaded == entity);
        if !self.share.range.is_all() && after.is_none() && !has_loaded {
            writers[0].refuse_older(&shape, version).await?;
        }
        let keys = writers[0].older(&shape, version, after.map_or("", EntityKey::as_str), limit).await?;
        // The last question of a load stands for its end.
        if keys.is_empty() {
            writers[0].settle(&shape).await?;
            self.has_loaded(entity);
        }
        self.writers = writers;
        Ok(keys.into_iter().map(EntityKey::from_text).collect())
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        self.server.renew()?;
        let shapes = self.shapes(entities)?;
        self.server.look(&shapes, entities).await
    }
}
