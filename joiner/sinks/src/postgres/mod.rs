//! Entities in PostgreSQL, or what speaks its protocol (Aurora).
//!
//! A batch with a frontier is one transaction: its rows, its deletions and the frontier, so that the database itself says what it holds. Large groups of rows travel by binary
//! `COPY` into a temporary table, small ones as arrays; both end in the same guarded upsert. How stale writes and deleted entities are told is argued in the `sql` module.
//!
//! # Several connections
//! A batch without a frontier (of a load, or of a sink that is catching up) is cut into as many parts as there are connections, each a transaction. That takes nothing from what
//! is promised: such a batch is only a piece of what lies between two frontiers, so nobody may take it for whole; its keys are different from each other, so the parts' order
//! does not matter; and [`Sink::write`] returns when all parts are committed, so the order of batches stays. What a part has committed when another fails is written again
//! and found to be there.
//!
//! # Writers side by side
//! Two sinks may write one schema for a while: a successor that was started while its predecessor lives. Upserts of one row are told apart by the guard in the statement. A deletion is not: an older upsert that looks for
//! its tombstone just before it is committed would bring the row back. So each batch takes a lock of its entities (`pg_advisory_xact_lock`) before it looks, shared where it only upserts, alone where it deletes or ends
//! a load: whichever comes second sees what the first has committed.
//!
//! # A load
//! - Rows are first copied straight into the entity's table, which is all that an empty one needs: every key is new, and a key that is not fails the copy by the primary key's
//!   uniqueness. No older version can replace a newer one (INV-5) that way either: after the copy, in the same transaction, the entity's traces of deletion (tombstones and
//!   floor) are asked for, and where there is one the copy is taken back. Whatever failed is written by the guarded upsert, and so is the rest of the load.
//! - Its commits do not wait for the disk (`synchronous_commit`). The one that ends the load by its frontier does, and the server's log is one sequence: with that commit, all that
//!   came before it is durable. A server that fails earlier may forget documents of the load, but then it has no frontier of it either, and the load is repeated.
//!
//! # What the database refuses
//! A change that it refuses for what it says (no JSON, a constraint or trigger of the table's owner, a value out of range) must not take its batch with it. The database reads
//! every document anyhow, so it is the first to: only when it has refused a batch do we read the documents ourselves, to say what is wrong with which. If that finds
//! nothing, the batch's groups are halved behind savepoints until the culprits stand alone. These are answered as [`Rejected`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;

use crate::sql::kind::Dialect;
use crate::sql::shape::{Row, Shapes};
use crate::sql::{self, Indexing, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS};
use crate::{Checked, Error, Held, Rejected, Sink, Tables, UrlSource, check};

mod binary;
mod connect;
mod fault;
mod reader;
mod statements;
mod tables;
mod writer;

use connect::Connector;
use fault::classify;
pub use reader::PostgresReader;
use writer::{Ending, Writer};

/// A part with fewer rows is not worth a connection of its own.
const LEAST_PART_ROWS: usize = 250;
const MOST_CONNECTIONS: usize = 16;

/// The `postgres` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// How status, logs and metrics call it. Default: `postgres`.
    #[serde(default = "default_name")]
    pub name: String,
    /// `postgres://user@host:5432/database?sslmode=require`, or where the whole of it is kept: `{env: NAME}`, `{file: PATH}`. `sslmode` is `disable`, `prefer` (the default)
    /// or `require`; `sslrootcert=PATH` names a file of certificate authorities instead of the system's. With TLS the certificate is always verified.
    pub url: UrlSource,
    /// Where its password is, if not in the URL.
    #[serde(default)]
    pub password: Option<crate::SecretReference>,
    /// The AWS region whose IAM gives it a token in place of a password, made anew for each connection; its url then asks for TLS. Default: none.
    #[serde(default)]
    pub iam_region: Option<String>,
    /// The schema of the entities' tables and of ours; made when it is missing. Default: `public`.
    #[serde(default = "default_schema")]
    pub schema: String,
    /// One write may take so long. Default: 60000.
    #[serde(default = "default_write_limit_ms")]
    pub write_limit_ms: u64,
    /// Connections that write side by side while it is loaded or catches up, 1 to 16. Default: 2.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Columns, indexes and tables of children beside the documents, by entity. Default: none.
    #[serde(default)]
    pub tables: Tables,
}

fn default_name() -> String {
    "postgres".to_owned()
}

fn default_schema() -> String {
    "public".to_owned()
}

fn default_write_limit_ms() -> u64 {
    60_000
}

fn default_connections() -> usize {
    2
}

impl PostgresConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            url: UrlSource::Text(url.into()),
            password: None,
            iam_region: None,
            schema: default_schema(),
            write_limit_ms: default_write_limit_ms(),
            connections: default_connections(),
            tables: Tables::new(),
        }
    }
}

impl PostgresConfig {
    fn shapes(&self, entities: &[EntityInfo]) -> Result<Shapes, Error> {
        Shapes::resolve(&format!("sink {}", self.name), Dialect::Postgres, &self.tables, entities)
    }
}

pub struct PostgresSink {
    config: PostgresConfig,
    connector: Connector,
    /// One for each connection; none before [`Sink::prepare`] and after an error.
    writers: Vec<Writer>,
    shapes: Arc<Shapes>,
    /// Statements that make the indexes which are to be made behind the load.
    indexes: Vec<String>,
    indexing: Indexing,
    /// While a load goes on, the entities of which all has been written.
    loaded: Option<Vec<String>>,
    writes_since_purge: u32,
    newest_ms: i64,
}

impl PostgresSink {
    pub fn new(config: PostgresConfig) -> Result<Self, Error> {
        let connector = Connector::new(&config)?;
        if !(1..=MOST_CONNECTIONS).contains(&config.connections) {
            let message = format!("connections: {} is not possible", config.connections);
            return Err(Error::misconfigured(
                format!("sink {}", config.name),
                message,
                format!("Give it 1 to {MOST_CONNECTIONS}"),
            ));
        }
        let shapes = Arc::new(Shapes::none(Dialect::Postgres));
        let (indexes, indexing) = (Vec::new(), Indexing::default());
        Ok(Self {
            config,
            connector,
            writers: Vec::new(),
            shapes,
            indexes,
            indexing,
            loaded: None,
            writes_since_purge: 0,
            newest_ms: 0,
        })
    }

    fn target(&self) -> &str {
        &self.connector.target
    }

    /// The connections, which come back only after a success: one that failed, or was left in the middle of something, is closed, and the server rolls back what was not committed.
    fn take_writers(&mut self) -> Result<Vec<Writer>, Error> {
        let writers = std::mem::take(&mut self.writers);
        if writers.is_empty() {
            return Err(Error::unavailable(self.target(), "not connected"));
        }
        Ok(writers)
    }

    fn begin_indexing(&mut self) {
        let statements = std::mem::take(&mut self.indexes);
        if statements.is_empty() {
            return;
        }
        let (connector, schema) = (self.connector.clone(), self.config.schema.clone());
        self.indexing.begin(&self.connector.target, async move {
            let client = connector.connect(&schema, 0).await?;
            tables::make_indexes(&client, &connector.target, &statements).await
        });
    }

    /// Writes on as many connections as it is worth, and waits for all.
    async fn write_parts(&self, writers: &mut [Writer], rows: &[Row<'_>]) -> Result<Vec<Rejected>, tokio_postgres::Error> {
        let parts = rows.len().div_ceil(LEAST_PART_ROWS).clamp(1, writers.len());
        let size = rows.len().div_ceil(parts).max(1);
        let written = writers.iter_mut().zip(rows.chunks(size)).map(|(writer, part)| writer.write(part));
        Ok(try_join_all(written).await?.concat())
    }

    async fn write_with(
        &mut self,
        writers: &mut [Writer],
        rows: &[Row<'_>],
        frontier: Option<Lsn>,
    ) -> Result<Vec<Rejected>, tokio_postgres::Error> {
        self.newest_ms = self.newest_ms.max(sql::newest_ms(rows));
        if frontier.is_none() {
            return self.write_parts(writers, rows).await;
        }
        if self.loaded.is_some() {
            try_join_all(writers.iter_mut().map(Writer::end_load)).await?;
        }
        self.writes_since_purge += 1;
        let purge_before_ms = (self.writes_since_purge >= PURGE_EVERY_WRITES).then_some(self.newest_ms - TOMBSTONE_RETENTION_MS);
        let filled = self.loaded.as_deref().unwrap_or_default();
        let rejected = writers[0].write_guarded(rows, Ending { frontier, purge_before_ms, filled }).await?;
        if self.loaded.take().is_some() {
            self.begin_indexing();
        }
        if purge_before_ms.is_some() {
            self.writes_since_purge = 0;
        }
        Ok(rejected)
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.writers.clear();
        self.loaded = None;
        self.connector = Connector::new(&self.config)?;
        let shapes = self.config.shapes(entities)?;
        self.connector.migrate(&self.config.schema).await?;
        let connecting = (0..self.config.connections).map(|_| self.connector.connect(&self.config.schema, 0));
        let mut clients = try_join_all(connecting).await?;
        self.indexes = tables::ensure(&mut clients[0], self.target(), &self.config.schema, &shapes, entities).await?;
        self.shapes = Arc::new(shapes);
        let failed = |error| classify(self.target(), &error);
        let preparing = clients.into_iter().map(|client| Writer::new(client, self.shapes.clone()));
        let mut writers = try_join_all(preparing).await.map_err(failed)?;
        // Where a load is to come, indexes are made behind it.
        if writers[0].frontier().await.map_err(failed)?.is_some() {
            self.begin_indexing();
        }
        self.writers = writers;
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        let mut writers = self.take_writers()?;
        let beginning = try_join_all(writers.iter_mut().map(Writer::begin_load)).await;
        beginning.map_err(|error| classify(self.target(), &error))?;
        self.loaded = Some(Vec::new());
        self.writers = writers;
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (accepted, mut rejected) = check::sort_by(changes, check::quick_refusal);
        let shapes = self.shapes.clone();
        let rows = shapes.rows(accepted, &mut rejected);
        let mut writers = self.take_writers()?;
        let limit = Duration::from_millis(self.config.write_limit_ms);
        let written = tokio::time::timeout(limit, self.write_with(&mut writers, &rows, frontier)).await;
        let late = |_| Error::unavailable(self.target(), format!("no answer within {} ms", self.config.write_limit_ms));
        rejected.extend(written.map_err(late)?.map_err(|error| classify(self.target(), &error))?);
        self.writers = writers;
        Ok(rejected)
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let connector = Connector::new(&self.config)?;
        let failed = |error| classify(&connector.target, &error);
        let shapes = self.config.shapes(entities)?;
        let client = connector.connect(&self.config.schema, 0).await?;
        let (there, mut warnings) = tables::look(&client, &connector.target, &self.config.schema, &shapes, entities).await?;
        let ask = "SELECT current_setting('server_version'), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', \
                   CASE WHEN to_regnamespace(quote_ident($1)) IS NULL THEN has_database_privilege(current_database(), 'CREATE') \
                   ELSE has_schema_privilege($1, 'CREATE') END";
        let row = client.query_one(ask, &[&self.config.schema]).await.map_err(failed)?;
        let (version, read_only, may_create): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if !may_create {
            let message =
                format!("the user may not create in the schema {:?}, or may not create that schema", self.config.schema);
            return Err(Error::misconfigured(
                &connector.target,
                message,
                "Grant it CREATE on the schema, or on the database where the schema is to be made",
            ));
        }
        warnings.extend(read_only.then(|| format!("{} is read-only: it is written to once that has changed", connector.target)));
        let detail = format!("{}, {version}, {there} of {} tables are there", connector.target, entities.len());
        Ok(Checked { detail, warnings })
    }

    async fn held(&mut self) -> Result<Held, Error> {
        let mut writers = self.take_writers()?;
        let text = writers[0].frontier().await.map_err(|error| classify(self.target(), &error))?;
        self.writers = writers;
        sql::held(self.target(), text.as_deref())
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let mut writers = self.take_writers()?;
        // Vanished rows of a large table take as long as they take: no limit here.
        let removed = writers[0].remove_vanished(entity, version).await;
        removed.map_err(|error| classify(self.target(), &error))?;
        self.loaded.iter_mut().for_each(|loaded| loaded.push(entity.to_owned()));
        self.writers = writers;
        Ok(())
    }
}
