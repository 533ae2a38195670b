//! Entities in MySQL, or what speaks its protocol (Aurora MySQL, MariaDB).
//!
//! A batch with a frontier is one transaction: its rows, its deletions and the frontier, so that the database itself says what it holds. Rows travel in multi-row statements of few shapes, prepared once. How stale
//! writes and deleted entities are told is argued in the `sql` module.
//!
//! # The table
//! As in the other SQL sinks, with two differences of type. `key` is `varbinary(2000)`: most collations of MySQL compare text without its trailing blanks or without regard to case, and two keys must never be one.
//! (`WHERE key = '42'` finds it all the same.) `document` is `json`, which MariaDB keeps as text.
//!
//! # Writers side by side
//! A batch locks the row of each of its entities in `_tributary_floor` before it looks for tombstones: shared where it only upserts, alone where it deletes. So of a deletion and an older upsert by another writer
//! one waits for the other, and whichever comes second sees what the first has committed (READ COMMITTED). Upserts of one row are told apart by the guard in the statement: `ON DUPLICATE KEY UPDATE` assigns from left
//! to right, and the version last.
//!
//! A batch without a frontier (of a load, or of a sink that is catching up) is cut into as many parts as there are connections, for the reasons that the PostgreSQL sink gives.
//!
//! # What the database refuses
//! What is no JSON is found before it is sent, as is a change that is larger than `max_allowed_packet`, for which the server would end the connection. Rows that are refused for another reason (a constraint or trigger of
//! the table's owner) are singled out by halving the batch's groups behind savepoints, and answered as [`Rejected`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use sqlx::{Connection, Row};

use crate::sql::kind::Dialect;
use crate::sql::shape::{Row as Written, Shapes};
use crate::sql::{self, Indexing, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS};
use crate::{Checked, Error, Held, Rejected, Sink, Tables, UrlSource, check};

mod connect;
mod fault;
mod reader;
mod statements;
mod tables;
mod writer;

use connect::Connector;
use fault::classify;
pub use reader::MysqlReader;
use writer::{Ending, Writer};

/// A part with fewer rows is not worth a connection of its own.
const LEAST_PART_ROWS: usize = 250;
const MOST_CONNECTIONS: usize = 16;

/// The `mysql` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MysqlConfig {
    /// How status, logs and metrics call it. Default: `mysql`.
    #[serde(default = "default_name")]
    pub name: String,
    /// `mysql://user@host:3306/database?ssl-mode=VERIFY_IDENTITY`, or where the whole of it is kept: `{env: NAME}`, `{file: PATH}`. `ssl-mode` is MySQL's own: `DISABLED`, `PREFERRED` (the default), `REQUIRED`,
    /// `VERIFY_CA` or `VERIFY_IDENTITY`; `ssl-ca=PATH` names a file of certificate authorities instead of the system's. The database must exist.
    pub url: UrlSource,
    /// Where its password is, if not in the URL.
    #[serde(default)]
    pub password: Option<crate::SecretReference>,
    /// The AWS region whose IAM gives it a token in place of a password, made anew for each connection; its url then asks for TLS. Default: none.
    #[serde(default)]
    pub iam_region: Option<String>,
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
    "mysql".to_owned()
}

fn default_write_limit_ms() -> u64 {
    60_000
}

fn default_connections() -> usize {
    2
}

impl MysqlConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            url: UrlSource::Text(url.into()),
            password: None,
            iam_region: None,
            write_limit_ms: default_write_limit_ms(),
            connections: default_connections(),
            tables: Tables::new(),
        }
    }
}

pub struct MysqlSink {
    config: MysqlConfig,
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

impl MysqlSink {
    pub fn new(config: MysqlConfig) -> Result<Self, Error> {
        let connector = Connector::new(&config)?;
        if !(1..=MOST_CONNECTIONS).contains(&config.connections) {
            let message = format!("connections: {} is not possible", config.connections);
            let remedy = format!("Give it 1 to {MOST_CONNECTIONS}");
            return Err(Error::misconfigured(format!("sink {}", config.name), message, remedy));
        }
        let shapes = Arc::new(Shapes::none(Dialect::Mysql));
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

    fn shapes(&self, entities: &[EntityInfo]) -> Result<Shapes, Error> {
        Shapes::resolve(&format!("sink {}", self.config.name), Dialect::Mysql, &self.config.tables, entities)
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
        let connector = self.connector.clone();
        self.indexing.begin(&self.connector.target, async move {
            let mut connection = connector.connect().await?;
            tables::make_indexes(&mut connection, &connector.target, &statements).await
        });
    }

    /// Writes on as many connections as it is worth, and waits for all.
    async fn write_parts(writers: &mut [Writer], rows: &[Written<'_>]) -> Result<Vec<Rejected>, sqlx::Error> {
        let parts = rows.len().div_ceil(LEAST_PART_ROWS).clamp(1, writers.len());
        let size = rows.len().div_ceil(parts).max(1);
        let written = writers.iter_mut().zip(rows.chunks(size)).map(|(writer, part)| writer.write(part, Ending::default()));
        Ok(try_join_all(written).await?.concat())
    }

    async fn write_with(
        &mut self,
        writers: &mut [Writer],
        rows: &[Written<'_>],
        frontier: Option<Lsn>,
    ) -> Result<Vec<Rejected>, sqlx::Error> {
        self.newest_ms = self.newest_ms.max(sql::newest_ms(rows));
        if frontier.is_none() {
            return Self::write_parts(writers, rows).await;
        }
        self.writes_since_purge += 1;
        let purge_before_ms = (self.writes_since_purge >= PURGE_EVERY_WRITES).then_some(self.newest_ms - TOMBSTONE_RETENTION_MS);
        let filled = self.loaded.as_deref().unwrap_or_default();
        let rejected = writers[0].write(rows, Ending { frontier, purge_before_ms, filled }).await?;
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
impl Sink for MysqlSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.writers.clear();
        self.loaded = None;
        self.connector = Connector::new(&self.config)?;
        let shapes = self.shapes(entities)?;
        self.connector.migrate().await?;
        let connecting = (0..self.config.connections).map(|_| self.connector.connect());
        let mut connections = try_join_all(connecting).await?;
        self.indexes = tables::ensure(&mut connections[0], self.target(), &shapes, entities).await?;
        self.shapes = Arc::new(shapes);
        let failed = |error| classify(self.target(), &error);
        let preparing = connections.into_iter().map(|connection| Writer::new(connection, self.shapes.clone()));
        let mut writers = try_join_all(preparing).await.map_err(failed)?;
        // Where a load is to come, indexes are made behind it.
        if writers[0].frontier().await.map_err(failed)?.is_some() {
            self.begin_indexing();
        }
        self.writers = writers;
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loaded = Some(Vec::new());
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let mut writers = self.take_writers()?;
        let packet = writers[0].packet_bytes();
        let refuse = |change: &EntityChange| check::refusal(change).or_else(|| statements::too_large(change, packet));
        let (accepted, mut rejected) = check::sort_by(changes, refuse);
        let shapes = self.shapes.clone();
        let rows = shapes.rows(accepted, &mut rejected);
        let limit = Duration::from_millis(self.config.write_limit_ms);
        let written = tokio::time::timeout(limit, self.write_with(&mut writers, &rows, frontier)).await;
        let late = |_| Error::unavailable(self.target(), format!("no answer within {} ms", self.config.write_limit_ms));
        rejected.extend(written.map_err(late)?.map_err(|error| classify(self.target(), &error))?);
        self.writers = writers;
        Ok(rejected)
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

    async fn held(&mut self) -> Result<Held, Error> {
        let mut writers = self.take_writers()?;
        let text = writers[0].frontier().await.map_err(|error| classify(self.target(), &error))?;
        self.writers = writers;
        sql::held(self.target(), text.as_deref())
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let connector = Connector::new(&self.config)?;
        let failed = |error| classify(&connector.target, &error);
        let shapes = self.shapes(entities)?;
        let mut connection = connector.connect().await?;
        let (there, mut warnings) = tables::look(&mut connection, &connector.target, &shapes, entities).await?;
        let row = sqlx::query("SELECT version(), CAST(@@global.read_only AS SIGNED), CAST(@@max_allowed_packet AS SIGNED)")
            .fetch_one(&mut connection)
            .await;
        let row = row.map_err(failed)?;
        let (version, read_only, packet) = (row.get::<String, _>(0), row.get::<i64, _>(1) != 0, row.get::<i64, _>(2));
        if read_only {
            warnings.push(format!("{} is read-only: it is written to once that has changed", connector.target));
        }
        if packet < 16 << 20 {
            warnings.push(format!("max_allowed_packet is {packet} bytes: larger documents become dead letters"));
        }
        // A goodbye that gets lost does no harm.
        let _ = connection.close().await;
        let detail = format!("{}, {version}, {there} of {} tables are there", connector.target, entities.len());
        Ok(Checked { detail, warnings })
    }
}
