//! The statements of a batch.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::future::try_join_all;
use schemas::Lsn;
use schemas::change::EntityChange;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement, Transaction};

use super::fault::{describe, is_about_data};
use crate::Rejected;
use crate::sql::quote;

/// Where `COPY` lands; emptied by every commit. It has no index: it is read once, whole.
pub(super) const TEMPORARY_TABLE: &str = "CREATE TEMPORARY TABLE _tributary_batch \
    (key text COLLATE \"C\", version text COLLATE \"C\", commit_time_ms bigint, document jsonb) ON COMMIT DELETE ROWS";
/// From here on `COPY` is faster than arrays: it costs two round trips more.
const COPY_FROM_ROWS: usize = 200;
const COPY_CHUNK_BYTES: usize = 256 * 1024;
/// Statements that are sent together.
const MOST_WAITING: usize = 16;

/// The statements that a connection has prepared, by their text: a small batch is then one round trip a statement.
#[derive(Default)]
pub(super) struct Statements(HashMap<String, Statement>);

impl Statements {
    async fn prepared(&mut self, transaction: &Transaction<'_>, text: String) -> Result<Statement, Error> {
        if let Some(statement) = self.0.get(&text) {
            return Ok(statement.clone());
        }
        let statement = transaction.prepare(&text).await?;
        self.0.insert(text, statement.clone());
        Ok(statement)
    }
}

/// A statement's parameter, until it has been sent.
type Parameter<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// One batch's transaction. Small statements wait until they are sent together, one behind the other without waiting for answers: a small batch takes three round trips, of which BEGIN and COMMIT are two.
pub(super) struct Batch<'a> {
    transaction: &'a Transaction<'a>,
    statements: &'a mut Statements,
    waiting: Vec<(Statement, Vec<Parameter<'a>>)>,
    /// Whether the temporary table has been filled in this transaction already.
    filled: bool,
}

impl<'a> Batch<'a> {
    pub(super) fn new(transaction: &'a Transaction<'a>, statements: &'a mut Statements) -> Self {
        Self { transaction, statements, waiting: Vec::new(), filled: false }
    }

    async fn later(&mut self, statement: String, parameters: Vec<Parameter<'a>>) -> Result<(), Error> {
        let statement = self.statements.prepared(self.transaction, statement).await?;
        self.waiting.push((statement, parameters));
        if self.waiting.len() < MOST_WAITING { Ok(()) } else { self.send().await }
    }

    /// Sends what waits, in its order, and waits for all answers. The first that is refused fails all behind it.
    pub(super) async fn send(&mut self) -> Result<(), Error> {
        let waiting = std::mem::take(&mut self.waiting);
        let transaction = self.transaction;
        // A statement is handed to the connection when its future is polled for the first time, and these are polled in their order.
        try_join_all(waiting.iter().map(async |(statement, parameters)| {
            let parameters: Vec<&(dyn ToSql + Sync)> =
                parameters.iter().map(|parameter| &**parameter as &(dyn ToSql + Sync)).collect();
            transaction.execute(statement, &parameters).await.map(|_| ())
        }))
        .await?;
        Ok(())
    }

    /// Keeps other writers' deletions of this entity away until the transaction ends; to delete (`alone`), all its other writers. Statements after it see what those have committed.
    pub(super) async fn lock(&mut self, entity: &'a str, alone: bool) -> Result<(), Error> {
        let function = if alone { "pg_advisory_xact_lock" } else { "pg_advisory_xact_lock_shared" };
        self.later(lock_statement(function), vec![Box::new(entity)]).await
    }

    /// Writes what is newer than what is there, taking it for granted that the database will have it.
    pub(super) async fn upsert(&mut self, entity: &str, changes: &[&'a EntityChange]) -> Result<(), Error> {
        match changes.len() {
            0 => Ok(()),
            COPY_FROM_ROWS.. => {
                self.send().await?;
                self.send_by_copy(entity, changes).await
            }
            _ => self.upsert_later(entity, changes).await,
        }
    }

    /// The same; rows that the database will not have go to `rejected`.
    pub(super) async fn upsert_what_is_taken(
        &mut self,
        entity: &str,
        changes: &[&'a EntityChange],
        rejected: &mut Vec<Rejected>,
    ) -> Result<(), Error> {
        self.send().await?;
        // Ranges still to be written, the first on top. Halving keeps the good rows of a poisoned batch in few statements.
        let mut ranges = vec![changes];
        while let Some(range) = ranges.pop() {
            self.transaction.batch_execute("SAVEPOINT tributary").await?;
            let written = match self.upsert(entity, range).await {
                Ok(()) => self.send().await,
                refused => refused,
            };
            match written {
                Ok(()) => self.transaction.batch_execute("RELEASE SAVEPOINT tributary").await?,
                Err(error) if is_about_data(&error) => {
                    self.transaction.batch_execute("ROLLBACK TO SAVEPOINT tributary; RELEASE SAVEPOINT tributary").await?;
                    match range {
                        [change] => rejected.push(Rejected { change: (*change).clone(), reason: describe(&error) }),
                        _ => {
                            let (first, second) = range.split_at(range.len() / 2);
                            ranges.extend([second, first]);
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn upsert_later(&mut self, entity: &str, changes: &[&'a EntityChange]) -> Result<(), Error> {
        let source = "(SELECT key, version, commit_time_ms, document::jsonb FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) \
                      AS u (key, version, commit_time_ms, document)) AS b";
        let Columns { keys, versions, times } = Columns::of(changes);
        let documents: Vec<&str> = changes.iter().map(|change| change.document.as_deref().unwrap_or("null")).collect();
        let parameters: Vec<Parameter<'a>> = vec![Box::new(keys), Box::new(versions), Box::new(times), Box::new(documents)];
        self.later(upsert_statement(entity, source), parameters).await
    }

    async fn send_by_copy(&mut self, entity: &str, changes: &[&EntityChange]) -> Result<(), Error> {
        if std::mem::replace(&mut self.filled, true) {
            self.transaction.batch_execute("TRUNCATE _tributary_batch").await?;
        }
        self.copy("_tributary_batch", changes).await?;
        self.transaction.batch_execute(&upsert_statement(entity, "_tributary_batch AS b")).await
    }

    /// Copies rows into a table as they are.
    pub(super) async fn copy(&mut self, table: &str, changes: &[&EntityChange]) -> Result<(), Error> {
        let statement = format!("COPY {table} (key, version, commit_time_ms, document) FROM STDIN (FORMAT binary)");
        let statement = self.statements.prepared(self.transaction, statement).await?;
        let copy = self.transaction.copy_in::<_, Bytes>(&statement).await?;
        let mut copy = std::pin::pin!(copy);
        let mut buffer = BytesMut::with_capacity(COPY_CHUNK_BYTES + 4096);
        // Signature, flags, length of the header's extension.
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.put_u64(0);
        let mut version = VersionText::default();
        for change in changes {
            put_row(&mut buffer, change, version.of(change.version));
            if buffer.len() >= COPY_CHUNK_BYTES {
                copy.send(buffer.split().freeze()).await?;
                buffer.reserve(COPY_CHUNK_BYTES + 4096);
            }
        }
        buffer.put_i16(-1);
        copy.send(buffer.freeze()).await?;
        copy.finish().await?;
        Ok(())
    }

    /// Whether something of this entity is on record that a row of `version` or later must be compared with: a deletion or a floor above that version.
    pub(super) async fn may_be_outdated(&mut self, entity: &str, version: Lsn) -> Result<bool, Error> {
        let statement = "SELECT EXISTS (SELECT 1 FROM _tributary_tombstone WHERE entity = $1 AND version > $2) \
                         OR EXISTS (SELECT 1 FROM _tributary_floor WHERE entity = $1 AND lsn > $2)";
        let statement = self.statements.prepared(self.transaction, statement.to_owned()).await?;
        let row = self.transaction.query_one(&statement, &[&entity, &version.to_string()]).await?;
        row.try_get(0)
    }

    pub(super) async fn delete(&mut self, entity: &'a str, changes: &[&'a EntityChange]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let Columns { keys, versions, times } = Columns::of(changes);
        let remove = format!(
            "DELETE FROM {} AS t USING unnest($1::text[], $2::text[]) AS b (key, version) \
             WHERE t.key = b.key COLLATE \"C\" AND t.version <= b.version COLLATE \"C\"",
            quote(entity)
        );
        let mark = "INSERT INTO _tributary_tombstone AS d (entity, key, version, commit_time_ms) SELECT $1, key, version, commit_time_ms \
                    FROM unnest($2::text[], $3::text[], $4::bigint[]) AS b (key, version, commit_time_ms) ON CONFLICT (entity, key) \
                    DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms WHERE excluded.version > d.version";
        self.later(remove, vec![Box::new(keys.clone()), Box::new(versions.clone())]).await?;
        self.later(mark.to_owned(), vec![Box::new(entity), Box::new(keys), Box::new(versions), Box::new(times)]).await
    }

    pub(super) async fn frontier(&mut self, frontier: Lsn) -> Result<(), Error> {
        let statement = "INSERT INTO _tributary_frontier AS f (part, lsn) VALUES ('all', $1) \
                         ON CONFLICT (part) DO UPDATE SET lsn = greatest(f.lsn, excluded.lsn)";
        self.later(statement.to_owned(), vec![Box::new(frontier.to_string())]).await
    }
}

/// Changes as arrays.
struct Columns<'a> {
    keys: Vec<&'a str>,
    versions: Vec<String>,
    times: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(changes: &[&'a EntityChange]) -> Self {
        Self {
            keys: changes.iter().map(|change| change.key.as_str()).collect(),
            versions: changes.iter().map(|change| change.version.to_string()).collect(),
            times: changes.iter().map(|change| change.commit_time_ms).collect(),
        }
    }
}

/// One lock for each entity of a schema.
fn lock_statement(function: &str) -> String {
    format!("SELECT {function}(hashtextextended(current_schema() || '/' || $1::text, 0))")
}

/// The guarded upsert from `source`, whose alias `b` has the table's columns.
fn upsert_statement(entity: &str, source: &str) -> String {
    let table = quote(entity);
    format!(
        "INSERT INTO {table} AS t (key, version, commit_time_ms, document) SELECT b.key, b.version, b.commit_time_ms, b.document FROM {source} \
         WHERE NOT EXISTS (SELECT 1 FROM _tributary_tombstone AS d WHERE d.entity = '{entity}' AND d.key = b.key AND d.version > b.version) \
         AND b.version >= coalesce((SELECT f.lsn FROM _tributary_floor AS f WHERE f.entity = '{entity}'), '') \
         ON CONFLICT (key) DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms, document = excluded.document \
         WHERE excluded.version > t.version OR (excluded.version = t.version AND excluded.document <> t.document)"
    )
}

/// The text of the last version asked for: neighbours often have the same.
#[derive(Default)]
struct VersionText(Option<(Lsn, String)>);

impl VersionText {
    fn of(&mut self, version: Lsn) -> &str {
        if self.0.as_ref().is_none_or(|(of, _)| *of != version) {
            self.0 = None;
        }
        &self.0.get_or_insert_with(|| (version, version.to_string())).1
    }
}

/// One row of `COPY`'s binary format: the number of fields, and each with its length. jsonb's binary form is a version byte and the text.
fn put_row(buffer: &mut BytesMut, change: &EntityChange, version: &str) {
    let document = change.document.as_deref().unwrap_or("null");
    buffer.put_i16(4);
    for text in [change.key.as_str(), version] {
        put_length(buffer, text.len());
        buffer.put_slice(text.as_bytes());
    }
    buffer.put_i32(8);
    buffer.put_i64(change.commit_time_ms);
    put_length(buffer, document.len() + 1);
    buffer.put_u8(1);
    buffer.put_slice(document.as_bytes());
}

/// Longer than the format allows cannot be told from negative on the other side; the server refuses a field of `i32::MAX` for its size.
fn put_length(buffer: &mut BytesMut, length: usize) {
    buffer.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
}

/// Raises the floors to the newest tombstone that is older than `before_ms` and at or below the frontier, and drops the tombstones up to there.
pub(super) async fn purge(transaction: &Transaction<'_>, before_ms: i64) -> Result<(), Error> {
    let raise = "INSERT INTO _tributary_floor AS f (entity, lsn) SELECT entity, max(version) FROM _tributary_tombstone \
                 WHERE commit_time_ms > 0 AND commit_time_ms < $1 AND version <= (SELECT min(lsn) FROM _tributary_frontier) GROUP BY entity \
                 ON CONFLICT (entity) DO UPDATE SET lsn = greatest(f.lsn, excluded.lsn)";
    transaction.execute(raise, &[&before_ms]).await?;
    let drop =
        "DELETE FROM _tributary_tombstone AS d USING _tributary_floor AS f WHERE f.entity = d.entity AND d.version <= f.lsn";
    transaction.execute(drop, &[]).await?;
    Ok(())
}

pub(super) async fn end_load(client: &mut Client, entity: &str, version: Lsn) -> Result<(), Error> {
    let version = version.to_string();
    let transaction = client.transaction().await?;
    transaction.execute(&lock_statement("pg_advisory_xact_lock"), &[&entity]).await?;
    transaction.execute(&format!("DELETE FROM {} WHERE version < $1", quote(entity)), &[&version]).await?;
    let raise = "INSERT INTO _tributary_floor AS f (entity, lsn) VALUES ($1, $2) \
                 ON CONFLICT (entity) DO UPDATE SET lsn = greatest(f.lsn, excluded.lsn)";
    transaction.execute(raise, &[&entity, &version]).await?;
    transaction.execute("DELETE FROM _tributary_tombstone WHERE entity = $1 AND version <= $2", &[&entity, &version]).await?;
    transaction.commit().await?;
    // A bulk load leaves the planner without figures until autovacuum comes round.
    client.batch_execute(&format!("ANALYZE {}", quote(entity))).await
}
