//! Entities in PostgreSQL, or what speaks its protocol (Aurora).
//!
//! A batch with a frontier is one transaction: its rows, its deletions and the frontier, so that the database itself says what it holds. Large groups of rows travel by binary
//! `COPY` into a temporary table, small ones as arrays; both end in the same guarded upsert. How stale writes and deleted entities are told is argued in the `sql` module.
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
use schemas::KeyRange;
use schemas::entity::EntityInfo;
use serde::Deserialize;

use crate::sql::kind::Dialect;
use crate::sql::pool::{self, Opened, Pool, Server, Settings};
use crate::sql::shape::Shapes;
use crate::{Checked, Error, Tables, UrlSource};

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
use writer::Writer;

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

/// A schema of a PostgreSQL server.
#[derive(Clone)]
pub struct Postgres {
    config: PostgresConfig,
    connector: Connector,
}

pub type PostgresSink = Pool<Postgres>;

impl Pool<Postgres> {
    pub fn new(config: PostgresConfig) -> Result<Self, Error> {
        let connector = Connector::new(&config)?;
        pool::check_connections(&config.name, config.connections)?;
        Ok(Self::of(Postgres { config, connector }))
    }
}

#[async_trait]
impl Server for Postgres {
    const DIALECT: Dialect = Dialect::Postgres;
    const INDEXES_BESIDE: bool = true;
    type Writer = Writer;

    fn settings(&self) -> Settings<'_> {
        let PostgresConfig { name, write_limit_ms, tables, .. } = &self.config;
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
        let (schema, target) = (&self.config.schema, self.target());
        self.connector.migrate(schema).await?;
        let connecting = (0..self.config.connections).map(|_| self.connector.connect(schema, 0));
        let mut clients = try_join_all(connecting).await?;
        let (indexes, said) = tables::ensure(&mut clients[0], target, schema, shapes, entities, range).await?;
        let writers = clients.into_iter().map(|client| Writer::new(target, client, shapes.clone()));
        Ok(Opened { writers: try_join_all(writers).await?, indexes, said })
    }

    async fn make_indexes(&self, statements: &[String]) -> Result<(), Error> {
        let client = self.connector.connect(&self.config.schema, 0).await?;
        tables::make_indexes(&client, self.target(), statements).await
    }

    async fn look(&self, shapes: &Shapes, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let (connector, schema) = (&self.connector, &self.config.schema);
        let failed = |error| classify(&connector.target, &error);
        let client = connector.connect(schema, 0).await?;
        let (there, mut warnings) = tables::look(&client, &connector.target, schema, shapes, entities).await?;
        let ask = "SELECT current_setting('server_version'), pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on', \
                   CASE WHEN to_regnamespace(quote_ident($1)) IS NULL THEN has_database_privilege(current_database(), 'CREATE') \
                   ELSE has_schema_privilege($1, 'CREATE') END";
        let row = client.query_one(ask, &[schema]).await.map_err(failed)?;
        let (version, read_only, may_create): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if !may_create {
            let message = format!("the user may not create in the schema {schema:?}, or may not create that schema");
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
}
