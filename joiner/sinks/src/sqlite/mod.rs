//! Entities in a SQLite file: the embedded default.
//!
//! A batch is one `BEGIN IMMEDIATE` transaction of guarded upserts, deletions and the frontier, in WAL mode with `synchronous=FULL`: when [`SqliteSink::write`] returns, the
//! batch is on disk, and after a crash either all of it is there or nothing. Readers see whole batches only, and never wait for the writer. How stale writes and deleted
//! entities are told is argued in the `sql` module.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use serde::Deserialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Row, Sqlite, Transaction};

use crate::sql::{self, Group, PURGE_EVERY_WRITES, TOMBSTONE_RETENTION_MS, quote};
use crate::{Checked, Error, Held, Rejected, Sink, check};

mod reader;

pub use reader::SqliteReader;

const COLUMNS: [(&str, &str); 4] = [("key", "TEXT"), ("version", "TEXT"), ("commit_time_ms", "INTEGER"), ("document", "TEXT")];
/// Rows in one statement: few shapes, so that each stays prepared.
const CHUNKS: [usize; 4] = [128, 32, 8, 1];
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
}

fn default_name() -> String {
    "sqlite".to_owned()
}

fn default_busy_timeout_ms() -> u64 {
    5_000
}

impl SqliteConfig {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { name: default_name(), path: path.into(), busy_timeout_ms: default_busy_timeout_ms() }
    }
}

pub struct SqliteSink {
    config: SqliteConfig,
    /// The file, as errors name it.
    target: String,
    connection: Option<SqliteConnection>,
    writes_since_purge: u32,
    newest_ms: i64,
}

impl SqliteSink {
    pub fn new(config: SqliteConfig) -> Self {
        let target = format!("SQLite file {}", config.path.display());
        Self { config, target, connection: None, writes_since_purge: 0, newest_ms: 0 }
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

    async fn create_table(&self, connection: &mut SqliteConnection, entity: &EntityInfo) -> Result<(), Error> {
        let failed = |error| classify(&self.target, error);
        if self.look_at_table(connection, entity).await? {
            return Ok(());
        }
        // What the frontier says of this entity, if there is one, is not so.
        sqlx::query("DELETE FROM _tributary_frontier").execute(&mut *connection).await.map_err(failed)?;
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {} (key TEXT PRIMARY KEY NOT NULL, version TEXT NOT NULL, commit_time_ms INTEGER NOT NULL, document TEXT NOT NULL) STRICT",
            quote(&entity.name)
        );
        sqlx::query(AssertSqlSafe(create)).execute(&mut *connection).await.map_err(failed).map(|_| ())
    }

    /// Refuses a table of another shape. Answers whether it is there.
    async fn look_at_table(&self, connection: &mut SqliteConnection, entity: &EntityInfo) -> Result<bool, Error> {
        sql::check_name(&self.target, &entity.name)?;
        let columns = sqlx::query("SELECT name, type FROM pragma_table_info(?1) ORDER BY cid")
            .bind(&*entity.name)
            .fetch_all(connection)
            .await;
        let columns = columns.map_err(|error| classify(&self.target, error))?;
        let found: Vec<(String, String)> = columns.iter().map(|row| (row.get(0), row.get(1))).collect();
        if !found.is_empty() {
            sql::check_shape(&self.target, entity, &found, &COLUMNS)?;
        }
        Ok(!found.is_empty())
    }

    async fn write_all(
        &mut self,
        connection: &mut SqliteConnection,
        changes: &[&EntityChange],
        frontier: Option<Lsn>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for (entity, group) in sql::group(changes) {
            upsert(&mut transaction, entity, &group).await?;
            delete(&mut transaction, entity, &group).await?;
        }
        if let Some(frontier) = frontier {
            sqlx::query("INSERT INTO _tributary_frontier (part, lsn) VALUES ('all', ?1) ON CONFLICT (part) DO UPDATE SET lsn = max(lsn, excluded.lsn)")
                .bind(frontier.to_string())
                .execute(&mut *transaction)
                .await?;
        }
        self.newest_ms = self.newest_ms.max(sql::newest_ms(changes));
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
        let mut connection = self.connect().await?;
        for entity in entities {
            self.create_table(&mut connection, entity).await?;
        }
        self.connection = Some(connection);
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let (accepted, rejected) = check::sort(changes);
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        // A connection that failed in the middle is not used again: it is put back on success only.
        self.write_all(&mut connection, &accepted, frontier).await.map_err(|error| classify(&self.target, error))?;
        self.connection = Some(connection);
        Ok(rejected)
    }

    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        let mut there = 0;
        let known = self.config.path.exists();
        if known {
            let options = SqliteConnectOptions::new().filename(&self.config.path).read_only(true).create_if_missing(false);
            let failed = |error| classify(&self.target, error);
            let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
            for entity in entities {
                there += usize::from(self.look_at_table(&mut connection, entity).await?);
            }
        }
        let made = if known { "" } else { "to be made, " };
        Ok(Checked {
            detail: format!("{}, {made}{there} of {} tables are there", self.target, entities.len()),
            warnings: Vec::new(),
        })
    }

    async fn held(&mut self) -> Result<Held, Error> {
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        let text =
            sqlx::query_scalar::<_, Option<String>>("SELECT min(lsn) FROM _tributary_frontier").fetch_one(&mut connection).await;
        let text = text.map_err(|error| classify(&self.target, error))?;
        self.connection = Some(connection);
        sql::held(&self.target, text.as_deref())
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let mut connection = self.connection.take().ok_or_else(|| Error::unavailable(&self.target, "not connected"))?;
        end_load(&mut connection, entity, version).await.map_err(|error| classify(&self.target, error))?;
        self.connection = Some(connection);
        Ok(())
    }
}

async fn upsert(transaction: &mut Transaction<'_, Sqlite>, entity: &str, group: &Group<'_>) -> Result<(), sqlx::Error> {
    let mut rest = group.upserts.as_slice();
    for size in CHUNKS {
        while rest.len() >= size {
            let (chunk, left) = rest.split_at(size);
            rest = left;
            let statement: Arc<str> = upsert_statement(entity, size).into();
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for change in chunk {
                let document = change.document.clone().unwrap_or_else(|| Arc::from("null"));
                query =
                    query.bind(change.key.as_str()).bind(change.version.to_string()).bind(change.commit_time_ms).bind(document);
            }
            query.execute(&mut **transaction).await?;
        }
    }
    Ok(())
}

/// `WHERE` also keeps the parser from taking `ON CONFLICT` for a join's `ON`.
fn upsert_statement(entity: &str, rows: usize) -> String {
    let table = quote(entity);
    let values = vec!["(?,?,?,?)"; rows].join(",");
    format!(
        "INSERT INTO {table} (key, version, commit_time_ms, document) SELECT v.column1, v.column2, v.column3, v.column4 FROM (VALUES {values}) AS v \
         WHERE NOT EXISTS (SELECT 1 FROM _tributary_tombstone AS d WHERE d.entity = '{entity}' AND d.key = v.column1 AND d.version > v.column2) \
         AND v.column2 >= coalesce((SELECT f.lsn FROM _tributary_floor AS f WHERE f.entity = '{entity}'), '') \
         ON CONFLICT (key) DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms, document = excluded.document \
         WHERE excluded.version > {table}.version OR (excluded.version = {table}.version AND excluded.document <> {table}.document)"
    )
}

async fn delete(transaction: &mut Transaction<'_, Sqlite>, entity: &str, group: &Group<'_>) -> Result<(), sqlx::Error> {
    let remove: Arc<str> = format!("DELETE FROM {} WHERE key = ?1 AND version <= ?2", quote(entity)).into();
    for change in &group.deletions {
        let (key, version) = (change.key.as_str(), change.version.to_string());
        sqlx::query(AssertSqlSafe(Arc::clone(&remove))).bind(key).bind(&version).execute(&mut **transaction).await?;
        sqlx::query(
            "INSERT INTO _tributary_tombstone (entity, key, version, commit_time_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (entity, key) \
             DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms WHERE excluded.version > version",
        )
        .bind(entity)
        .bind(key)
        .bind(&version)
        .bind(change.commit_time_ms)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Raises the floors to the newest tombstone that is older than `before_ms` and at or below the frontier, and drops the tombstones up to there.
async fn purge(transaction: &mut Transaction<'_, Sqlite>, before_ms: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO _tributary_floor (entity, lsn) SELECT entity, max(version) FROM _tributary_tombstone \
         WHERE commit_time_ms > 0 AND commit_time_ms < ?1 AND version <= (SELECT min(lsn) FROM _tributary_frontier) GROUP BY entity \
         ON CONFLICT (entity) DO UPDATE SET lsn = max(lsn, excluded.lsn)",
    )
    .bind(before_ms)
    .execute(&mut **transaction)
    .await?;
    sqlx::query("DELETE FROM _tributary_tombstone WHERE version <= (SELECT lsn FROM _tributary_floor AS f WHERE f.entity = _tributary_tombstone.entity)")
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn end_load(connection: &mut SqliteConnection, entity: &str, version: Lsn) -> Result<(), sqlx::Error> {
    let version = version.to_string();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let remove = format!("DELETE FROM {} WHERE version < ?1", quote(entity));
    sqlx::query(AssertSqlSafe(remove)).bind(&version).execute(&mut *transaction).await?;
    sqlx::query("INSERT INTO _tributary_floor (entity, lsn) VALUES (?1, ?2) ON CONFLICT (entity) DO UPDATE SET lsn = max(lsn, excluded.lsn)")
        .bind(entity)
        .bind(&version)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM _tributary_tombstone WHERE entity = ?1 AND version <= ?2")
        .bind(entity)
        .bind(&version)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
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
