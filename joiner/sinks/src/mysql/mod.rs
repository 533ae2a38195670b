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
//! # What the database refuses
//! What is no JSON is found before it is sent, as is a change that is larger than `max_allowed_packet`, for which the server would end the connection. Rows that are refused for another reason (a constraint or trigger of
//! the table's owner) are singled out by halving the batch's groups behind savepoints, and answered as [`Rejected`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::KeyRange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use sqlx::{Connection, Row};

use crate::sql::kind::Dialect;
use crate::sql::pool::{self, Opened, Pool, Server, Settings};
use crate::sql::shape::Shapes;
use crate::{Checked, Error, Tables, UrlSource};

mod connect;
mod fault;
mod grants;
mod reader;
mod statements;
mod tables;
mod writer;

use connect::Connector;
use fault::classify;
pub use reader::MysqlReader;
use writer::Writer;

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

/// A database of a MySQL server.
#[derive(Clone)]
pub struct Mysql {
    config: MysqlConfig,
    connector: Connector,
}

pub type MysqlSink = Pool<Mysql>;

impl Pool<Mysql> {
    pub fn new(config: MysqlConfig) -> Result<Self, Error> {
        let connector = Connector::new(&config)?;
        pool::check_connections(&config.name, config.connections)?;
        Ok(Self::of(Mysql { config, connector }))
    }
}

#[async_trait]
impl Server for Mysql {
    const DIALECT: Dialect = Dialect::Mysql;
    const INDEXES_BESIDE: bool = true;
    /// `key` is `varbinary(2000)`: with an entity's name before it, an index of InnoDB ends at 3,072.
    const KEY_LIMIT_BYTES: usize = 2_000;
    type Writer = Writer;

    fn settings(&self) -> Settings<'_> {
        let MysqlConfig { name, write_limit_ms, tables, .. } = &self.config;
        Settings { name, write_limit: Some(Duration::from_millis(*write_limit_ms)), tables }
    }

    fn target(&self) -> &str {
        &self.connector.target
    }

    fn renew(&mut self) -> Result<(), Error> {
        self.connector = Connector::new(&self.config)?;
        Ok(())
    }

    async fn open(&self, shapes: &Arc<Shapes>, entities: &[EntityInfo], range: KeyRange) -> Result<Opened<Writer>, Error> {
        self.connector.migrate().await?;
        let connecting = (0..self.config.connections).map(|_| self.connector.connect());
        let mut connections = try_join_all(connecting).await?;
        let (indexes, said) = tables::ensure(&mut connections[0], self.target(), shapes, entities, range).await?;
        let writers = connections.into_iter().map(|connection| Writer::new(self.target(), connection, shapes.clone()));
        Ok(Opened { writers: try_join_all(writers).await?, indexes, said })
    }

    async fn make_indexes(&self, statements: &[String]) -> Result<(), Error> {
        let mut connection = self.connector.connect().await?;
        tables::make_indexes(&mut connection, self.target(), statements).await
    }

    async fn look(&self, shapes: &Shapes, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let target = self.target();
        let mut connection = self.connector.connect().await?;
        let (there, mut warnings) = tables::look(&mut connection, target, shapes, entities).await?;
        let row = sqlx::query("SELECT version(), CAST(@@global.read_only AS SIGNED), CAST(@@max_allowed_packet AS SIGNED)")
            .fetch_one(&mut connection)
            .await;
        let row = row.map_err(|error| classify(target, &error))?;
        let (version, read_only, packet) = (row.get::<String, _>(0), row.get::<i64, _>(1) != 0, row.get::<i64, _>(2));
        if read_only {
            warnings.push(format!("{target} is read-only: it is written to once that has changed"));
        }
        if packet < 16 << 20 {
            warnings.push(format!("max_allowed_packet is {packet} bytes: larger documents become dead letters"));
        }
        // A goodbye that gets lost does no harm.
        let _ = connection.close().await;
        let detail = format!("{target}, {version}, {there} of {} tables are there", entities.len());
        Ok(Checked { detail, warnings })
    }
}
