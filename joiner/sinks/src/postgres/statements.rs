//! The statements of a batch.

use std::collections::{HashMap, HashSet};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use futures_util::future::try_join_all;
use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Statement, Transaction};

use super::binary::{Sent, put_field, put_length};
use super::fault::{describe, is_about_data};
use crate::Rejected;
use crate::shares::{self, Share};
use crate::sql::cells::Cell;
use crate::sql::quote;
use crate::sql::shape::{Row, Shape, TableShape, index_name};

/// From here on `COPY` is faster than arrays: it costs two round trips more.
const COPY_FROM_ROWS: usize = 200;
const COPY_CHUNK_BYTES: usize = 256 * 1024;
/// Statements that are sent together.
const MOST_WAITING: usize = 16;
/// Entities whose children go into one statement.
const PARENTS: usize = 1000;

/// Where `COPY` lands, with the columns of the entity's table; emptied by every commit. It has no index: it is read once, whole.
pub(super) fn temporary_table(shape: &Shape) -> String {
    let columns = shape.table.columns.iter().map(|column| format!(", {} {}", column.name, column.kind.postgres_base()));
    format!(
        "CREATE TEMPORARY TABLE {} (key text COLLATE \"C\", version text COLLATE \"C\", commit_time_ms bigint, document jsonb{}) \
         ON COMMIT DELETE ROWS",
        temporary_name(shape),
        columns.collect::<String>()
    )
}

/// Entities without columns of their own share one.
fn temporary_name(shape: &Shape) -> String {
    if shape.table.columns.is_empty() {
        return "_tributary_batch".to_owned();
    }
    let name = &shape.table.name;
    quote(&index_name("batch", std::slice::from_ref(name), name))
}

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
    /// The temporary tables that have been filled in this transaction already.
    filled: HashSet<String>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(transaction: &'a Transaction<'a>, statements: &'a mut Statements) -> Self {
        Self { transaction, statements, waiting: Vec::new(), filled: HashSet::new() }
    }

    async fn later(&mut self, statement: String, parameters: Vec<Parameter<'a>>) -> Result<(), Error> {
        let statement = self.statements.prepared(self.transaction, statement).await?;
        self.waiting.push((statement, parameters));
        if self.waiting.len() >= MOST_WAITING {
            self.send().await?;
        }
        Ok(())
    }

    /// Sends what waits, in its order, and waits for all answers: how many rows each was about. The first that is refused fails all behind it.
    pub(super) async fn send(&mut self) -> Result<Vec<u64>, Error> {
        let waiting = std::mem::take(&mut self.waiting);
        let transaction = self.transaction;
        // A statement is handed to the connection when its future is polled for the first time, and these are polled in their order.
        try_join_all(waiting.iter().map(async |(statement, parameters)| {
            let parameters: Vec<&(dyn ToSql + Sync)> =
                parameters.iter().map(|parameter| &**parameter as &(dyn ToSql + Sync)).collect();
            transaction.execute(statement, &parameters).await
        }))
        .await
    }

    /// Keeps other writers' deletions of this entity away until the transaction ends; to delete (`alone`), all its other writers. Statements after it see what those have committed.
    pub(super) async fn lock(&mut self, entity: &'a str, alone: bool) -> Result<(), Error> {
        let function = if alone { "pg_advisory_xact_lock" } else { "pg_advisory_xact_lock_shared" };
        self.later(lock_statement(function), vec![Box::new(entity)]).await
    }

    /// Writes what is newer than what is there, and its children, taking it for granted that the database will have it.
    pub(super) async fn upsert(&mut self, shape: &Shape, rows: &[&'a Row<'a>]) -> Result<(), Error> {
        match rows.len() {
            0 => return Ok(()),
            COPY_FROM_ROWS.. => {
                self.send().await?;
                self.send_by_copy(shape, rows).await?;
            }
            _ => self.upsert_later(shape, rows).await?,
        }
        for (nth, child) in shape.children.iter().enumerate() {
            for part in rows.chunks(PARENTS) {
                self.replace_children(&shape.table, &child.table, nth, part).await?;
            }
        }
        Ok(())
    }

    /// The same; rows that the database will not have go to `rejected`.
    pub(super) async fn upsert_what_is_taken(
        &mut self,
        shape: &Shape,
        rows: &[&'a Row<'a>],
        rejected: &mut Vec<Rejected>,
    ) -> Result<(), Error> {
        self.send().await?;
        // Ranges still to be written, the first on top. Halving keeps the good rows of a poisoned batch in few statements.
        let mut ranges = vec![rows];
        while let Some(range) = ranges.pop() {
            self.transaction.batch_execute("SAVEPOINT tributary").await?;
            let written = match self.upsert(shape, range).await {
                Ok(()) => self.send().await.map(|_| ()),
                refused => refused,
            };
            match written {
                Ok(()) => self.transaction.batch_execute("RELEASE SAVEPOINT tributary").await?,
                Err(error) if is_about_data(&error) => {
                    self.transaction.batch_execute("ROLLBACK TO SAVEPOINT tributary; RELEASE SAVEPOINT tributary").await?;
                    match range {
                        [row] => rejected.push(Rejected { change: row.change.clone(), reason: describe(&error) }),
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

    async fn upsert_later(&mut self, shape: &Shape, rows: &[&'a Row<'a>]) -> Result<(), Error> {
        let names = shape.table.names();
        let source = format!(
            "(SELECT key, version, commit_time_ms, document::jsonb{names} FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]{}) \
             AS u (key, version, commit_time_ms, document{names})) AS b",
            arrays(&shape.table, 5)
        );
        let Columns { keys, versions, times } = Columns::of(rows.iter().map(|row| row.change));
        let documents: Vec<&str> = rows.iter().map(|row| row.change.document.as_deref().unwrap_or("null")).collect();
        let mut parameters: Vec<Parameter<'a>> = vec![Box::new(keys), Box::new(versions), Box::new(times), Box::new(documents)];
        push_columns(&mut parameters, &shape.table, rows.iter().map(|row| row.cells.as_slice()));
        self.later(upsert_statement(shape, &source), parameters).await
    }

    async fn send_by_copy(&mut self, shape: &Shape, rows: &[&Row<'_>]) -> Result<(), Error> {
        let temporary = temporary_name(shape);
        if !self.filled.insert(temporary.clone()) {
            self.transaction.batch_execute(&format!("TRUNCATE {temporary}")).await?;
        }
        self.copy(&temporary, shape, rows).await?;
        self.transaction.batch_execute(&upsert_statement(shape, &format!("{temporary} AS b"))).await
    }

    /// Gives each entity that has been written the children that it came with: those whose rows have their version.
    async fn replace_children(
        &mut self,
        parent: &TableShape,
        child: &TableShape,
        nth: usize,
        rows: &[&'a Row<'a>],
    ) -> Result<(), Error> {
        let (parent, table, names) = (&parent.quoted, &child.quoted, child.names());
        let Columns { keys, versions, .. } = Columns::of(rows.iter().map(|row| row.change));
        let remove = format!(
            "DELETE FROM {table} AS c USING unnest($1::text[], $2::text[]) AS b (key, version), {parent} AS t \
             WHERE t.key = b.key COLLATE \"C\" AND t.version = b.version COLLATE \"C\" AND c.key = t.key"
        );
        self.later(remove, vec![Box::new(keys), Box::new(versions)]).await?;
        let elements = || rows.iter().flat_map(|row| row.children[nth].iter().map(move |cells| (row.change, cells.as_slice())));
        let positions: Vec<i32> =
            rows.iter().flat_map(|row| 0..i32::try_from(row.children[nth].len()).unwrap_or(i32::MAX)).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let values: String = child.columns.iter().map(|column| format!(", b.{}", column.name)).collect();
        let insert = format!(
            "INSERT INTO {table} (key, position{names}) SELECT b.key, b.position{values} FROM unnest($1::text[], $2::text[], $3::integer[]{}) \
             AS b (key, version, position{names}) JOIN {parent} AS t ON t.key = b.key COLLATE \"C\" AND t.version = b.version COLLATE \"C\"",
            arrays(child, 4)
        );
        let Columns { keys, versions, .. } = Columns::of(elements().map(|(change, _)| change));
        let mut parameters: Vec<Parameter<'a>> = vec![Box::new(keys), Box::new(versions), Box::new(positions)];
        push_columns(&mut parameters, child, elements().map(|(_, cells)| cells));
        self.later(insert, parameters).await
    }

    /// Copies rows into a table as they are.
    pub(super) async fn copy(&mut self, table: &str, shape: &Shape, rows: &[&Row<'_>]) -> Result<(), Error> {
        let names = shape.table.names();
        let statement = format!("COPY {table} (key, version, commit_time_ms, document{names}) FROM STDIN (FORMAT binary)");
        let mut version = VersionText::default();
        self.copy_rows(statement, rows, |buffer, row| put_row(buffer, shape, row, version.of(row.change.version))).await
    }

    /// Copies the children of entities that are new.
    pub(super) async fn copy_children(&mut self, shape: &Shape, rows: &[&Row<'_>]) -> Result<(), Error> {
        for (nth, child) in shape.children.iter().enumerate() {
            let table = &child.table;
            let statement = format!("COPY {} (key, position{}) FROM STDIN (FORMAT binary)", table.quoted, table.names());
            self.copy_rows(statement, rows, |buffer, row| put_children(buffer, table, row, nth)).await?;
        }
        Ok(())
    }

    async fn copy_rows(
        &mut self,
        statement: String,
        rows: &[&Row<'_>],
        mut put: impl FnMut(&mut BytesMut, &Row<'_>),
    ) -> Result<(), Error> {
        let statement = self.statements.prepared(self.transaction, statement).await?;
        let copy = self.transaction.copy_in::<_, Bytes>(&statement).await?;
        let mut copy = std::pin::pin!(copy);
        let mut buffer = BytesMut::with_capacity(COPY_CHUNK_BYTES + 4096);
        // Signature, flags, length of the header's extension.
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.put_u64(0);
        for row in rows {
            put(&mut buffer, row);
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
    pub(super) async fn may_be_outdated(&mut self, shape: &Shape, version: Lsn) -> Result<bool, Error> {
        let statement = "SELECT EXISTS (SELECT 1 FROM _tributary_tombstone WHERE entity = $1 AND version > $2) \
                         OR EXISTS (SELECT 1 FROM _tributary_floor WHERE entity = $1 AND lsn > $2) \
                         OR EXISTS (SELECT 1 FROM _tributary_share_floor WHERE entity = $1 AND part = $3 AND lsn > $2)";
        let statement = self.statements.prepared(self.transaction, statement.to_owned()).await?;
        let row = self.transaction.query_one(&statement, &[&shape.table.name, &version.to_string(), &shape.part]).await?;
        row.try_get(0)
    }

    pub(super) async fn delete(&mut self, shape: &Shape, entity: &'a str, changes: &[&'a EntityChange]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let Columns { keys, versions, times } = Columns::of(changes.iter().copied());
        let (table, of) =
            (&shape.table.quoted, "unnest($1::text[], $2::text[], $3::bigint[]) AS b (key, version, commit_time_ms)");
        let which = "t.key = b.key COLLATE \"C\" AND t.version <= b.version COLLATE \"C\"";
        let remove = if shape.keeps_deleted {
            format!(
                "UPDATE {table} AS t SET deleted = true, version = b.version, commit_time_ms = b.commit_time_ms FROM {of} WHERE {which}"
            )
        } else {
            format!("DELETE FROM {table} AS t USING {of} WHERE {which}")
        };
        let mark = "INSERT INTO _tributary_tombstone AS d (entity, key, version, commit_time_ms) SELECT $1, key, version, commit_time_ms \
                    FROM unnest($2::text[], $3::text[], $4::bigint[]) AS b (key, version, commit_time_ms) ON CONFLICT (entity, key) \
                    DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms WHERE excluded.version > d.version";
        self.later(remove, vec![Box::new(keys.clone()), Box::new(versions.clone()), Box::new(times.clone())]).await?;
        self.later(mark.to_owned(), vec![Box::new(entity), Box::new(keys), Box::new(versions), Box::new(times)]).await
    }

    /// Says of a share that it is here up to the frontier, and what that is of several sources, and sends everything that waits. Answers whether that was still to be said of it.
    pub(super) async fn frontier(&mut self, share: &Share, frontier: Lsn, sources: Option<&str>) -> Result<bool, Error> {
        let statement = "UPDATE _tributary_frontier SET lsn = greatest(lsn, $2), sources = CASE WHEN lsn > $2 THEN sources ELSE $4 END \
                         WHERE part = $1 AND lsn >= $3";
        let statement = self.statements.prepared(self.transaction, statement.to_owned()).await?;
        let (said, frontier) = (share.said.to_string(), frontier.to_string());
        let sources = sources.map(str::to_owned);
        self.waiting.push((statement, vec![Box::new(share.part()), Box::new(frontier), Box::new(said), Box::new(sources)]));
        Ok(self.send().await?.last().is_some_and(|rows| *rows > 0))
    }
}

/// Notes that every column and child of these entities has been filled for a share.
pub(super) async fn fill(transaction: &Transaction<'_>, entities: &[String], range: KeyRange) -> Result<(), Error> {
    let unfilled = "SELECT entity, version, filled_by FROM _tributary_shape WHERE NOT filled AND entity = ANY($1) ORDER BY entity, version FOR UPDATE";
    for row in transaction.query(unfilled, &[&entities]).await? {
        let (entity, version): (&str, i32) = (row.get(0), row.get(1));
        let (by, all) = shares::with(row.get(2), range);
        let fill = "UPDATE _tributary_shape SET filled = $3, filled_by = $4 WHERE entity = $1 AND version = $2";
        transaction.execute(fill, &[&entity, &version, &all, &by]).await?;
    }
    Ok(())
}

/// Changes as arrays.
struct Columns<'a> {
    keys: Vec<&'a str>,
    versions: Vec<String>,
    times: Vec<i64>,
}

impl<'a> Columns<'a> {
    fn of(changes: impl Iterator<Item = &'a EntityChange>) -> Self {
        let mut columns = Self { keys: Vec::new(), versions: Vec::new(), times: Vec::new() };
        for change in changes {
            columns.keys.push(change.key.as_str());
            columns.versions.push(change.version.to_string());
            columns.times.push(change.commit_time_ms);
        }
        columns
    }
}

/// The promoted columns as arrays of parameters, the first of which has this number.
fn arrays(table: &TableShape, first: usize) -> String {
    let array = |(column, nth): (&crate::sql::shape::Column, usize)| format!(", ${nth}::{}[]", column.kind.postgres_base());
    table.columns.iter().zip(first..).map(array).collect()
}

fn push_columns<'a>(parameters: &mut Vec<Parameter<'a>>, table: &TableShape, rows: impl Iterator<Item = &'a [Cell<'a>]>) {
    let mut arrays: Vec<Vec<Sent<'a>>> = table.columns.iter().map(|_| Vec::new()).collect();
    for cells in rows {
        for ((array, column), cell) in arrays.iter_mut().zip(&table.columns).zip(cells) {
            array.push(Sent(column.kind, cell));
        }
    }
    parameters.extend(arrays.into_iter().map(|array| Box::new(array) as Parameter<'a>));
}

/// One lock for each entity of a schema.
fn lock_statement(function: &str) -> String {
    format!("SELECT {function}(hashtextextended(current_schema() || '/' || $1::text, 0))")
}

/// The guarded upsert from `source`, whose alias `b` has the table's columns. What differs at an equal version is written too: a load fills columns that are new by documents that are not.
fn upsert_statement(shape: &Shape, source: &str) -> String {
    let (table, entity, names) = (&shape.table.quoted, &shape.table.name, shape.table.names());
    let columns = &shape.table.columns;
    let with = |prefix: &str| columns.iter().map(|column| format!("{prefix}.{}", column.name)).collect::<Vec<_>>().join(", ");
    let (mut set, mut differs) = (String::new(), "excluded.document <> t.document".to_owned());
    if !columns.is_empty() {
        set = columns.iter().map(|column| format!(", {0} = excluded.{0}", column.name)).collect();
        differs = format!("{differs} OR ({}) IS DISTINCT FROM ({})", with("excluded"), with("t"));
    }
    if shape.keeps_deleted {
        set.push_str(", deleted = false");
        differs.push_str(" OR t.deleted");
    }
    let values: String = columns.iter().map(|column| format!(", b.{}", column.name)).collect();
    let of_part = shape.part.as_ref().map_or_else(String::new, |part| {
        let floor = format!("SELECT s.lsn FROM _tributary_share_floor AS s WHERE s.entity = '{entity}' AND s.part = '{part}'");
        format!("AND b.version >= coalesce(({floor}), '') ")
    });
    format!(
        "INSERT INTO {table} AS t (key, version, commit_time_ms, document{names}) SELECT b.key, b.version, b.commit_time_ms, b.document{values} FROM {source} \
         WHERE NOT EXISTS (SELECT 1 FROM _tributary_tombstone AS d WHERE d.entity = '{entity}' AND d.key = b.key AND d.version > b.version) \
         AND b.version >= coalesce((SELECT f.lsn FROM _tributary_floor AS f WHERE f.entity = '{entity}'), '') \
         {of_part}ON CONFLICT (key) DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms, document = excluded.document{set} \
         WHERE excluded.version > t.version OR (excluded.version = t.version AND ({differs}))"
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
fn put_row(buffer: &mut BytesMut, shape: &Shape, row: &Row<'_>, version: &str) {
    let change = row.change;
    let document = change.document.as_deref().unwrap_or("null");
    put_count(buffer, 4 + row.cells.len());
    for text in [change.key.as_str(), version] {
        put_length(buffer, text.len());
        buffer.put_slice(text.as_bytes());
    }
    buffer.put_i32(8);
    buffer.put_i64(change.commit_time_ms);
    put_length(buffer, document.len() + 1);
    buffer.put_u8(1);
    buffer.put_slice(document.as_bytes());
    for (column, cell) in shape.table.columns.iter().zip(&row.cells) {
        put_field(buffer, column.kind, cell);
    }
}

fn put_children(buffer: &mut BytesMut, table: &TableShape, row: &Row<'_>, nth: usize) {
    let key = row.change.key.as_str();
    for (position, cells) in (0..).zip(&row.children[nth]) {
        put_count(buffer, 2 + cells.len());
        put_length(buffer, key.len());
        buffer.put_slice(key.as_bytes());
        buffer.put_i32(4);
        buffer.put_i32(position);
        for (column, cell) in table.columns.iter().zip(cells) {
            put_field(buffer, column.kind, cell);
        }
    }
}

/// How many fields a row has; a table has at most 1,600.
fn put_count(buffer: &mut BytesMut, count: usize) {
    buffer.put_i16(i16::try_from(count).unwrap_or(i16::MAX));
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

pub(super) async fn remove_vanished(client: &mut Client, shape: &Shape, version: Lsn) -> Result<(), Error> {
    let (entity, table, version) = (shape.table.name.as_str(), &shape.table.quoted, version.to_string());
    let transaction = client.transaction().await?;
    transaction.execute(&lock_statement("pg_advisory_xact_lock"), &[&entity]).await?;
    let remove = if shape.keeps_deleted {
        format!("UPDATE {table} SET deleted = true, version = $1 WHERE version < $1 AND NOT deleted")
    } else {
        format!("DELETE FROM {table} WHERE version < $1")
    };
    transaction.execute(&remove, &[&version]).await?;
    let raise = "INSERT INTO _tributary_floor AS f (entity, lsn) VALUES ($1, $2) \
                 ON CONFLICT (entity) DO UPDATE SET lsn = greatest(f.lsn, excluded.lsn)";
    transaction.execute(raise, &[&entity, &version]).await?;
    transaction.execute("DELETE FROM _tributary_tombstone WHERE entity = $1 AND version <= $2", &[&entity, &version]).await?;
    transaction.commit().await
}

pub(super) async fn refuse_older(client: &mut Client, shape: &Shape, version: Lsn) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.execute(&lock_statement("pg_advisory_xact_lock"), &[&shape.table.name]).await?;
    let raise = "INSERT INTO _tributary_share_floor AS s (entity, part, lsn) VALUES ($1, $2, $3) \
                 ON CONFLICT (entity, part) DO UPDATE SET lsn = greatest(s.lsn, excluded.lsn)";
    transaction.execute(raise, &[&shape.table.name, &shape.part, &version.to_string()]).await?;
    transaction.commit().await
}

/// A bulk load leaves the planner without figures until autovacuum comes round. Who holds the table (an index that is made concurrently does) is not waited for: it would wait for us.
pub(super) async fn analyze(client: &Client, shape: &Shape) -> Result<(), Error> {
    client.batch_execute("SET lock_timeout TO 200").await?;
    for table in std::iter::once(&shape.table).chain(shape.children.iter().map(|child| &child.table)) {
        match client.batch_execute(&format!("ANALYZE {}", table.quoted)).await {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
            analyzed => analyzed?,
        }
    }
    client.batch_execute("RESET lock_timeout").await
}
