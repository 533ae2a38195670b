//! Entities in PostgreSQL, or what speaks its protocol (Aurora).
//!
//! A batch is one transaction: its rows, its deletions and the frontier, so that the database itself says what it holds. Large groups of rows travel by binary `COPY` into a
//! temporary table, small ones as arrays; both end in the same guarded upsert. How stale writes and deleted entities are told is argued in the `sql` module.
//!
//! A change that the database refuses for what it says (a constraint or trigger of the table's owner, a value out of range) must not take its batch with it: the
//! batch is then written once more, and its groups are halved behind savepoints until the culprits stand alone; these are answered as [`Rejected`].

use std::time::Duration;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use tokio_postgres::Client;

use crate::sql::{self, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS, quote};
use crate::{Error, Rejected, Sink, UrlSource, check};

mod connect;
mod fault;
mod reader;
mod write;

use connect::Connector;
use fault::{classify, is_about_data};
pub use reader::PostgresReader;

const COLUMNS: [(&str, &str); 4] = [("key", "text"), ("version", "text"), ("commit_time_ms", "bigint"), ("document", "jsonb")];

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
    /// The schema of the entities' tables and of ours; made when it is missing. Default: `public`.
    #[serde(default = "default_schema")]
    pub schema: String,
    /// One write may take so long. Default: 60000.
    #[serde(default = "default_write_limit_ms")]
    pub write_limit_ms: u64,
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

impl PostgresConfig {
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            name: default_name(),
            url: UrlSource::Text(url.into()),
            password: None,
            schema: default_schema(),
            write_limit_ms: default_write_limit_ms(),
        }
    }
}

pub struct PostgresSink {
    config: PostgresConfig,
    connector: Connector,
    client: Option<Client>,
    /// Of this client.
    statements: write::Statements,
    writes_since_purge: u32,
    newest_ms: i64,
}

impl PostgresSink {
    pub fn new(config: PostgresConfig) -> Result<Self, Error> {
        let connector = Connector::new(&config)?;
        Ok(Self {
            config,
            connector,
            client: None,
            statements: write::Statements::default(),
            writes_since_purge: 0,
            newest_ms: 0,
        })
    }

    fn target(&self) -> &str {
        &self.connector.target
    }

    async fn create_table(&self, client: &Client, entity: &EntityInfo) -> Result<(), Error> {
        sql::check_name(self.target(), &entity.name)?;
        let table = format!("{}.{}", quote(&self.config.schema), quote(&entity.name));
        let failed = |error| classify(self.target(), &error);
        let found = self.columns(client, &entity.name).await?;
        if found.is_empty() {
            let create = format!(
                "CREATE TABLE IF NOT EXISTS {table} (key text COLLATE \"C\" PRIMARY KEY, version text COLLATE \"C\" NOT NULL, \
                 commit_time_ms bigint NOT NULL, document jsonb NOT NULL)"
            );
            client.batch_execute(&create).await.map_err(failed)?;
            return Ok(());
        }
        sql::check_shape(self.target(), entity, &found, &COLUMNS)
    }

    async fn columns(&self, client: &Client, table: &str) -> Result<Vec<(String, String)>, Error> {
        let statement = "SELECT column_name::text, data_type::text FROM information_schema.columns \
                         WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position";
        let rows =
            client.query(statement, &[&self.config.schema, &table]).await.map_err(|error| classify(self.target(), &error))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    async fn write_all(
        &mut self,
        client: &mut Client,
        changes: &[&EntityChange],
        frontier: Option<Lsn>,
    ) -> Result<Vec<Rejected>, tokio_postgres::Error> {
        match self.write_once(client, changes, frontier, false).await {
            Err(error) if is_about_data(&error) => self.write_once(client, changes, frontier, true).await,
            written => written,
        }
    }

    /// One transaction. With `singling_out`, rows that the database refuses are set aside instead of failing it.
    async fn write_once(
        &mut self,
        client: &mut Client,
        changes: &[&EntityChange],
        frontier: Option<Lsn>,
        singling_out: bool,
    ) -> Result<Vec<Rejected>, tokio_postgres::Error> {
        let transaction = client.transaction().await?;
        let mut batch = write::Batch { transaction: &transaction, statements: &mut self.statements, copied: false };
        let mut rejected = Vec::new();
        for (entity, group) in sql::group(changes) {
            if singling_out {
                batch.upsert_what_is_taken(entity, &group.upserts, &mut rejected).await?;
            } else {
                batch.upsert(entity, &group.upserts).await?;
            }
            batch.delete(entity, &group.deletions).await?;
        }
        if let Some(frontier) = frontier {
            batch.frontier(frontier).await?;
            self.writes_since_purge += 1;
        }
        self.newest_ms = self.newest_ms.max(sql::newest_ms(changes));
        if self.writes_since_purge >= PURGE_EVERY_WRITES {
            write::purge(&transaction, self.newest_ms - TOMBSTONE_RETENTION_MS).await?;
            self.writes_since_purge = 0;
        }
        transaction.commit().await?;
        Ok(rejected)
    }

    /// A write took too long. Its connection has been given up, so that the server rolls back what was not committed.
    fn late(&self) -> Error {
        Error::unavailable(self.target(), format!("no answer within {} ms", self.config.write_limit_ms))
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.config.write_limit_ms)
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.client = None;
        self.statements = write::Statements::default();
        self.connector.migrate(&self.config.schema).await?;
        let client = self.connector.connect(&self.config.schema, 0).await?;
        for entity in entities {
            self.create_table(&client, entity).await?;
        }
        client.batch_execute(write::TEMPORARY_TABLE).await.map_err(|error| classify(self.target(), &error))?;
        self.client = Some(client);
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (accepted, mut rejected) = check::sort(changes);
        let (accepted, with_nul): (Vec<_>, Vec<_>) =
            accepted.into_iter().partition(|change| !change.document.as_deref().is_some_and(check::holds_nul));
        rejected.extend(with_nul.into_iter().map(|change| Rejected {
            change: change.clone(),
            reason: "the document holds a NUL character (\\u0000), which PostgreSQL's jsonb cannot store".to_owned(),
        }));
        let mut client = self.client.take().ok_or_else(|| Error::unavailable(self.target(), "not connected"))?;
        let written = tokio::time::timeout(self.limit(), self.write_all(&mut client, &accepted, frontier)).await;
        rejected.extend(written.map_err(|_| self.late())?.map_err(|error| classify(self.target(), &error))?);
        self.client = Some(client);
        Ok(rejected)
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let mut client = self.client.take().ok_or_else(|| Error::unavailable(self.target(), "not connected"))?;
        // Vanished rows of a large table take as long as they take: no limit here.
        write::end_load(&mut client, entity, version).await.map_err(|error| classify(self.target(), &error))?;
        self.client = Some(client);
        Ok(())
    }
}
