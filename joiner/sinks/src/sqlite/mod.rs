//! Entities in a SQLite file: the embedded default.
//!
//! A batch is one `BEGIN IMMEDIATE` transaction of guarded upserts, deletions and the frontier, in WAL mode with `synchronous=FULL`: when [`SqliteSink::write`] returns, the
//! batch is on disk, and after a crash either all of it is there or nothing. Readers see whole batches only, and never wait for the writer. How stale writes and deleted
//! entities are told is argued in the `sql` module.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::KeyRange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection};

use crate::sql::kind::Dialect;
use crate::sql::pool::{Opened, Pool, Server, Settings};
use crate::sql::shape::Shapes;
use crate::{Checked, Error, Tables};

mod reader;
mod statements;
mod tables;
mod writer;

pub use reader::SqliteReader;
use writer::Writer;

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

/// A database file.
#[derive(Clone)]
pub struct Sqlite {
    config: SqliteConfig,
    /// The file, as errors name it.
    target: String,
}

pub type SqliteSink = Pool<Sqlite>;

impl Pool<Sqlite> {
    pub fn new(config: SqliteConfig) -> Self {
        let target = format!("SQLite file {}", config.path.display());
        Self::of(Sqlite { config, target })
    }
}

impl Sqlite {
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
}

#[async_trait]
impl Server for Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;
    const INDEXES_BESIDE: bool = false;
    type Writer = Writer;

    /// A lock of another is waited for by the library.
    fn settings(&self) -> Settings<'_> {
        let SqliteConfig { name, tables, .. } = &self.config;
        Settings { name, write_limit: None, tables }
    }

    fn target(&self) -> &str {
        &self.target
    }

    fn renew(&mut self) -> Result<(), Error> {
        Ok(())
    }

    async fn open(&self, shapes: &Arc<Shapes>, entities: &[EntityInfo], range: KeyRange) -> Result<Opened<Writer>, Error> {
        let mut connection = self.connect().await?;
        let (indexes, said) = tables::ensure(&mut connection, &self.target, shapes, entities, range).await?;
        let writer = Writer::new(&self.target, connection, shapes.clone());
        Ok(Opened { writers: vec![writer], indexes, said })
    }

    async fn make_indexes(&self, statements: &[String]) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        for statement in statements {
            tracing::info!(target = self.target, statement, "an index of the sink is made");
            let made = sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut connection).await;
            made.map_err(|error| classify(&self.target, error))?;
        }
        // A goodbye that gets lost does no harm.
        let _ = connection.close().await;
        Ok(())
    }

    async fn look(&self, shapes: &Shapes, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let (mut there, mut warnings) = (0, Vec::new());
        let known = self.config.path.exists();
        if known {
            std::fs::OpenOptions::new().write(true).open(&self.config.path).map_err(|error| {
                Error::misconfigured(&self.target, error, "See that the file and its directory can be written by this user")
            })?;
            let options = SqliteConnectOptions::new().filename(&self.config.path).read_only(true).create_if_missing(false);
            let failed = |error| classify(&self.target, error);
            let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
            (there, warnings) = tables::look(&mut connection, &self.target, shapes, entities).await?;
        }
        let made = if known { "" } else { "to be made, " };
        Ok(Checked { detail: format!("{}, {made}{there} of {} tables are there", self.target, entities.len()), warnings })
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
