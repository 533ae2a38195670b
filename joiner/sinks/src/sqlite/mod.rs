//! Entities in a SQLite file: the embedded default.
//!
//! A batch is one `BEGIN IMMEDIATE` transaction of guarded upserts, deletions and the frontier, in WAL mode with `synchronous=FULL`: when [`SqliteSink::write`] returns, the
//! batch is on disk, and after a crash either all of it is there or nothing. Readers see whole batches only, and never wait for the writer. How stale writes and deleted
//! entities are told is argued in the `sql` module.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection};

use crate::sql::kind::Dialect;
use crate::sql::shape::{Row as Written, Shapes};
use crate::sql::{self, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS};
use crate::{Checked, Error, Held, Rejected, Sink, Tables, check};

mod reader;
mod statements;
mod tables;

pub use reader::SqliteReader;
use statements::{delete, end_load, purge, upsert};

const STATEMENT_CACHE: usize = 512;

/// The `sqlite` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// How status, logs and metrics call it. Default: `sqlite`.
    #[serde(default = "default_name")]
    pub name: String,
    /// The database file; made, with its directory, when it is not there.
    pub path: PathBuf,
    /// How long to wait for another process's lock before the write counts as failed. Default: 5000.
    #[serde(default = "default_busy_timeout_ms")]
    pub busy_timeout_ms: u64,
    /// Columns, indexes and tables of children beside the documents, by entity. Default: none.
    #[serde(default)]
    pub tables: Tables,
}

fn default_name() -> String {
    "sqlite".to_owned()
}

fn default_busy_timeout_ms() -> u64 {
    5_000
}

impl SqliteConfig {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { name: default_name(), path: path.into(), busy_timeout_ms: default_busy_timeout_ms(), tables: Tables::new() }
    }
}

pub struct SqliteSink {
    config: SqliteConfig,
    /// The file, as errors name it.
    target: String,
    /// The entities that it is handed.
    range: KeyRange,
    connection: Option<SqliteConnection>,
    shapes: Arc<Shapes>,
    /// Statements that make the indexes which are to be made when the load has ended.
    indexes: Vec<String>,
    /// While a load goes on, the entities of which all has been written.
    loaded: Option<Vec<String>>,
    writes_since_purge: u32,
    newest_ms: i64,
}

impl SqliteSink {
    pub fn new(config: SqliteConfig) -> Self {
        let target = format!("SQLite file {}", config.path.display());
        let shapes = Arc::new(Shapes::none(Dialect::Sqlite));
        Self {
            config,
            target,
            range: KeyRange::ALL,
            connection: None,
            shapes,
            indexes: Vec::new(),
            loaded: None,
            writes_since_purge: 0,
            newest_ms: 0,
        }
    }

    fn shapes(&self, entities: &[EntityInfo]) -> Result<Shapes, Error> {
        Shapes::resolve(&format!("sink {}", self.config.name), Dialect::Sqlite, &self.config.tables, entities)
    }

    async fn connect(&self) -> Result<SqliteConnection, Error> {
        if let Some(directory) = self.config.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| {
                let message = format!("cannot make the directory {}: {error}", directory.display());
                Error::misconfigured(&self.target, message, "Choose a path that can be written")
            })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(&self.config.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_millis(self.config.busy_timeout_ms))
            .statement_cache_capacity(STATEMENT_CACHE)
            .pragma("cache_size", "-65536");
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(|error| classify(&self.target, error))?;
        let mut migrator = sqlx::migrate!("../../migrations/sqlite");
        migrator.dangerous_set_table_name("_tributary_migrations");
        migrator.run_direct(None, &mut connection, false).await.map_err(|error| migration_error(&self.target, error))?;
        Ok(connection)
    }

    async fn make_indexes(&mut self, connection: &mut SqliteConnection) -> Result<(), Error> {
        for statement in std::mem::take(&mut self.indexes) {
            tracing::info!(target = self.target, statement, "an index of the sink is made");
            let made = sqlx::query(AssertSqlSafe(statement)).execute(&mut *connection).await;
            made.map_err(|error| classify(&self.target, error))?;
        }
        Ok(())
    }

    async fn write_all(
        &mut self,
        connection: &mut SqliteConnection,
        rows: &[Written<'_>],
        frontier: Option<Lsn>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for (entity, group) in sql::group(rows) {
            let shape = self.shapes.of(entity);
            upsert(&mut transaction, &shape, &group.upserts).await?;
            delete(&mut transaction, &shape, &group.deletions).await?;
        }
        if let Some(frontier) = frontier {
            statements::put_frontier(&mut transaction, self.range, frontier).await?;
        }
        for entity in self.loaded.iter().flatten().filter(|_| frontier.is_some()) {
            let filled = "UPDATE _tributary_shape SET filled = 1 WHERE NOT filled AND entity = ?1";
            sqlx::query(filled).bind(entity).execute(&mut *transaction).await?;
        }
        self.newest_ms = self.newest_ms.max(sql::newest_ms(rows));
        if frontier.is_some() {
            self.writes_since_purge += 1;
        }
        if self.writes_since_purge >= PURGE_EVERY_WRITES {
            purge(&mut transaction, self.newest_ms - TOMBSTONE_RETENTION_MS).await?;
            self.writes_since_purge = 0;
        }
        transaction.commit().await
    }
}

#[async_trait]
impl Sink for SqliteSink {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.connection = None;
        self.loaded = None;
        let shapes = self.shapes(entities)?;
        let mut connection = self.connect().await?;
        self.indexes = tables::ensure(&mut connection, &self.target, &shapes, entities).await?;
        self.shapes = Arc::new(shapes);
        // Where a load is to come, indexes are made behind it.
        if tables::held(&mut connection, &self.shapes, self.range).await.map_err(|error| classify(&self.target, error))?.is_some()
        {
            self.make_indexes(&mut connection).await?;
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loaded = Some(Vec::new());
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (accepted, mut rejected) = check::sort(changes);
        let shapes = self.shapes.clone();
        let rows = shapes.rows(accepted, &mut rejected);
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        // A connection that failed in the middle is not used again: it is put back on success only.
        self.write_all(&mut connection, &rows, frontier).await.map_err(|error| classify(&self.target, error))?;
        if frontier.is_some() && self.loaded.take().is_some() {
            self.make_indexes(&mut connection).await?;
        }
        self.connection = Some(connection);
        Ok(rejected)
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let shapes = self.shapes(entities)?;
        let (mut there, mut warnings) = (0, Vec::new());
        let known = self.config.path.exists();
        if known {
            let options = SqliteConnectOptions::new().filename(&self.config.path).read_only(true).create_if_missing(false);
            let failed = |error| classify(&self.target, error);
            let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
            (there, warnings) = tables::look(&mut connection, &self.target, &shapes, entities).await?;
        }
        let made = if known { "" } else { "to be made, " };
        Ok(Checked { detail: format!("{}, {made}{there} of {} tables are there", self.target, entities.len()), warnings })
    }

    async fn held(&mut self) -> Result<Held, Error> {
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        let held =
            tables::held(&mut connection, &self.shapes, self.range).await.map_err(|error| classify(&self.target, error))?;
        self.connection = Some(connection);
        Ok(held.map_or(Held::Nothing, Held::UpTo))
    }

    /// Columns and children are filled by loads, and whether they are is noted for all entities at once: so where there are such, one writes.
    fn own(&mut self, range: KeyRange) -> bool {
        let shared = self.config.tables.is_empty();
        if shared {
            self.range = range;
        }
        shared
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        let keys = statements::older(&mut connection, &self.shapes.of(entity), version, after, limit).await;
        let keys = keys.map_err(|error| classify(&self.target, error))?;
        // The last question of a load stands for its end.
        if keys.is_empty() {
            self.loaded.iter_mut().for_each(|loaded| loaded.push(entity.to_owned()));
        }
        self.connection = Some(connection);
        Ok(keys)
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        end_load(&mut connection, &self.shapes.of(entity), version).await.map_err(|error| classify(&self.target, error))?;
        self.loaded.iter_mut().for_each(|loaded| loaded.push(entity.to_owned()));
        self.connection = Some(connection);
        Ok(())
    }
}

/// SQLite's primary result codes, from <https://www.sqlite.org/rescode.html>, as far as they can be told apart by what to do about them.
fn classify(target: &str, error: sqlx::Error) -> Error {
    let code = match &error {
        sqlx::Error::Database(database) => database.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => Some(5),
        _ => None,
    };
    match code {
        Some(13) => Error::unavailable(target, "the disk is full; writing goes on by itself once there is room"),
        // Busy, locked, out of memory, interrupted, I/O error, protocol.
        Some(5 | 6 | 7 | 9 | 10 | 15) => Error::unavailable(target, error),
        // Permission, read-only, cannot open, authorisation.
        Some(3 | 8 | 14 | 23) => {
            Error::misconfigured(target, error, "See that the file and its directory can be written by this user")
        }
        // Corrupt, not a database.
        Some(11 | 26) => {
            Error::misconfigured(target, error, "It is damaged or not a SQLite database: move it away and load again")
        }
        _ => Error::unexpected(target, error),
    }
}

fn migration_error(target: &str, error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) => classify(target, error),
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
            Error::misconfigured(target, error, "It was written by a newer Tributary: use that one, or another database")
        }
        error => Error::misconfigured(target, error, "Its bookkeeping tables are not Tributary's: use another database"),
    }
}
