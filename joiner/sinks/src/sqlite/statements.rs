//! The statements of a batch.

use std::sync::Arc;

use futures_util::future::join;
use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Sqlite, Transaction};

use crate::shares::{self, Share};
use crate::sql::bind::bind_cell;
use crate::sql::cells::Cell;
use crate::sql::shape::{Row, Shape, TableShape};
use crate::{Rejected, check};

/// Rows in one statement: few shapes, so that each stays prepared.
const CHUNKS: [usize; 4] = [128, 32, 8, 1];
/// Values in one statement, of 32,766 that SQLite takes.
const MOST_VALUES: usize = 4096;

/// Cuts into parts of few lengths, whose values fit into a statement.
fn chunks<T>(all: &[T], columns: usize) -> Vec<&[T]> {
    let (mut chunks, mut rest) = (Vec::new(), all);
    for size in CHUNKS.into_iter().filter(|size| *size == 1 || size * columns <= MOST_VALUES) {
        while rest.len() >= size {
            let (chunk, left) = rest.split_at(size);
            chunks.push(chunk);
            rest = left;
        }
    }
    chunks
}

/// Rows that are read and ready to be written, and those that are not to be.
#[derive(Default)]
struct Stretch<'q, 'r> {
    inserts: Vec<Query<'q, Sqlite, SqliteArguments>>,
    rows: Vec<&'q Row<'r>>,
    rejected: Vec<Rejected>,
}

impl<'q, 'r> Stretch<'q, 'r> {
    fn of(shape: &Shape, rows: &[&'q Row<'r>], deleted: bool) -> Self {
        let mut stretch = Self::default();
        for row in rows {
            match check::refusal(row.change) {
                Some(reason) => stretch.rejected.push(Rejected { change: row.change.clone(), reason }),
                None => stretch.rows.push(row),
            }
        }
        for chunk in chunks(&stretch.rows, 4 + shape.table.columns.len()) {
            let statement: Arc<str> = upsert_statement(shape, chunk.len(), deleted).into();
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for row in chunk {
                let change = row.change;
                let document = change.document.clone().unwrap_or_else(|| Arc::from("null"));
                query =
                    query.bind(change.key.as_str()).bind(change.version.to_string()).bind(change.commit_time_ms).bind(document);
                query = row.cells.iter().fold(query, bind_cell);
            }
            stretch.inserts.push(query);
        }
        stretch
    }

    async fn write(self, transaction: &mut Transaction<'_, Sqlite>) -> Result<(), sqlx::Error> {
        for insert in self.inserts {
            insert.execute(&mut **transaction).await?;
        }
        Ok(())
    }
}

/// Writes what is newer than what is there, and its children. Answers what is not worth writing.
pub(super) async fn upsert(
    transaction: &mut Transaction<'_, Sqlite>,
    shape: &Shape,
    rows: &[&Row<'_>],
) -> Result<Vec<Rejected>, sqlx::Error> {
    let (deleted, floor) = witnesses(transaction, shape).await?;
    let at_least = |floor: Lsn| rows.iter().copied().filter(|row| row.change.version >= floor).collect();
    let rows: Vec<&Row<'_>> = floor.map_or_else(|| rows.to_vec(), at_least);
    let (mut sound, mut rejected) = (Vec::with_capacity(rows.len()), Vec::new());
    let mut ready = Stretch::default();
    for stretch in rows.chunks(CHUNKS[0]).map(Some).chain([None]) {
        // While the driver's thread writes one, this one reads the documents of the next.
        let reading = async { stretch.map(|rows| Stretch::of(shape, rows, deleted)).unwrap_or_default() };
        let (written, mut next) = join(ready.write(transaction), reading).await;
        written?;
        sound.append(&mut next.rows);
        rejected.append(&mut next.rejected);
        ready = next;
    }
    for (nth, child) in shape.children.iter().enumerate() {
        for row in &sound {
            replace_children(transaction, &shape.table, &child.table, row.change, &row.children[nth]).await?;
        }
    }
    Ok(rejected)
}

/// Whether an entity has tombstones, and its floor, or that of the part that is written, if that is higher. They stay as they are until this transaction ends, which holds the write lock.
async fn witnesses(transaction: &mut Transaction<'_, Sqlite>, shape: &Shape) -> Result<(bool, Option<Lsn>), sqlx::Error> {
    let ask = "SELECT EXISTS (SELECT 1 FROM _tributary_tombstone WHERE entity = ?1), (SELECT max(lsn) FROM \
               (SELECT lsn FROM _tributary_floor WHERE entity = ?1 UNION ALL SELECT lsn FROM _tributary_share_floor WHERE entity = ?1 AND part = ?2))";
    let ask = sqlx::query_as(ask).bind(&shape.table.name).bind(&shape.part);
    let (deleted, floor): (bool, Option<String>) = ask.fetch_one(&mut **transaction).await?;
    let floor = floor.map(|floor| floor.parse()).transpose();
    Ok((deleted, floor.map_err(|error| sqlx::Error::Decode(Box::new(error)))?))
}

/// Gives an entity that has been written the children that it came with: if its row has their version.
async fn replace_children(
    transaction: &mut Transaction<'_, Sqlite>,
    parent: &TableShape,
    child: &TableShape,
    change: &EntityChange,
    elements: &[Vec<Cell<'_>>],
) -> Result<(), sqlx::Error> {
    let (key, version) = (change.key.as_str(), change.version.to_string());
    let ask: Arc<str> = format!("SELECT 1 FROM {} WHERE key = ?1 AND version = ?2", parent.quoted).into();
    let written = sqlx::query(AssertSqlSafe(ask)).bind(key).bind(&version).fetch_optional(&mut **transaction).await?;
    if written.is_none() {
        return Ok(());
    }
    let remove: Arc<str> = format!("DELETE FROM {} WHERE key = ?1", child.quoted).into();
    sqlx::query(AssertSqlSafe(remove)).bind(key).execute(&mut **transaction).await?;
    let columns = 2 + child.columns.len();
    let mut position = 0_i64;
    for chunk in chunks(elements, columns) {
        let rows = vec![format!("({})", vec!["?"; columns].join(",")); chunk.len()].join(",");
        let insert: Arc<str> = format!("INSERT INTO {} (key, position{}) VALUES {rows}", child.quoted, child.names()).into();
        let mut query = sqlx::query(AssertSqlSafe(insert));
        for cells in chunk {
            query = cells.iter().fold(query.bind(key).bind(position), bind_cell);
            position += 1;
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// `deleted`: whether there are tombstones to heed. `WHERE` also keeps the parser from taking `ON CONFLICT` for a join's `ON`. What differs at an equal version is written too: a load fills columns that are new by documents that are not.
fn upsert_statement(shape: &Shape, rows: usize, deleted: bool) -> String {
    let (table, entity, names) = (&shape.table.quoted, &shape.table.name, shape.table.names());
    let columns = &shape.table.columns;
    let values = vec![format!("({})", vec!["?"; 4 + columns.len()].join(",")); rows].join(",");
    let selected: String = (5..5 + columns.len()).map(|nth| format!(", v.column{nth}")).collect();
    let (mut set, mut differs) = (String::new(), format!("excluded.document <> {table}.document"));
    for name in columns.iter().map(|column| &column.name) {
        set.push_str(&format!(", {name} = excluded.{name}"));
        differs.push_str(&format!(" OR excluded.{name} IS NOT {table}.{name}"));
    }
    if shape.keeps_deleted {
        set.push_str(", deleted = 0");
        differs.push_str(&format!(" OR {table}.deleted"));
    }
    let rows = if deleted {
        format!(
            "SELECT v.column1, v.column2, v.column3, v.column4{selected} FROM (VALUES {values}) AS v \
             WHERE NOT EXISTS (SELECT 1 FROM _tributary_tombstone AS d WHERE d.entity = '{entity}' AND d.key = v.column1 AND d.version > v.column2)"
        )
    } else {
        format!("VALUES {values}")
    };
    format!(
        "INSERT INTO {table} (key, version, commit_time_ms, document{names}) {rows} ON CONFLICT (key) DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms, document = excluded.document{set} \
         WHERE excluded.version > {table}.version OR (excluded.version = {table}.version AND ({differs}))"
    )
}

pub(super) async fn delete(
    transaction: &mut Transaction<'_, Sqlite>,
    shape: &Shape,
    deletions: &[&EntityChange],
) -> Result<(), sqlx::Error> {
    let table = &shape.table.quoted;
    let remove: Arc<str> = if shape.keeps_deleted {
        format!("UPDATE {table} SET deleted = 1, version = ?2, commit_time_ms = ?3 WHERE key = ?1 AND version <= ?2").into()
    } else {
        format!("DELETE FROM {table} WHERE key = ?1 AND version <= ?2").into()
    };
    for change in deletions {
        let (key, version) = (change.key.as_str(), change.version.to_string());
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&remove))).bind(key).bind(&version);
        let query = if shape.keeps_deleted { query.bind(change.commit_time_ms) } else { query };
        query.execute(&mut **transaction).await?;
        sqlx::query(
            "INSERT INTO _tributary_tombstone (entity, key, version, commit_time_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (entity, key) \
             DO UPDATE SET version = excluded.version, commit_time_ms = excluded.commit_time_ms WHERE excluded.version > version",
        )
        .bind(&shape.table.name)
        .bind(key)
        .bind(&version)
        .bind(change.commit_time_ms)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Says of a share that it is here up to the frontier, and what that is of several sources. Answers whether that was still to be said of it.
pub(super) async fn put_frontier(
    transaction: &mut Transaction<'_, Sqlite>,
    share: &Share,
    frontier: Lsn,
    sources: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let raise = sqlx::query(
        "UPDATE _tributary_frontier SET lsn = max(lsn, ?2), sources = CASE WHEN lsn > ?2 THEN sources ELSE ?4 END \
         WHERE part = ?1 AND lsn >= ?3",
    );
    let raise = raise.bind(share.part()).bind(frontier.to_string()).bind(share.said.to_string()).bind(sources);
    Ok(raise.execute(&mut **transaction).await?.rows_affected() > 0)
}

/// Notes that every column and child of this entity has been filled for a share.
pub(super) async fn fill(transaction: &mut Transaction<'_, Sqlite>, entity: &str, range: KeyRange) -> Result<(), sqlx::Error> {
    let unfilled = sqlx::query_as("SELECT version, filled_by FROM _tributary_shape WHERE NOT filled AND entity = ?1");
    let unfilled: Vec<(i32, Option<String>)> = unfilled.bind(entity).fetch_all(&mut **transaction).await?;
    for (version, by) in unfilled {
        let (by, all) = shares::with(by.as_deref(), range);
        let fill = sqlx::query("UPDATE _tributary_shape SET filled = ?3, filled_by = ?4 WHERE entity = ?1 AND version = ?2");
        fill.bind(entity).bind(version).bind(all).bind(by).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Raises the floors to the newest tombstone that is older than `before_ms` and at or below the frontier, and drops the tombstones up to there.
pub(super) async fn purge(transaction: &mut Transaction<'_, Sqlite>, before_ms: i64) -> Result<(), sqlx::Error> {
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

pub(super) async fn refuse_older(connection: &mut SqliteConnection, shape: &Shape, version: Lsn) -> Result<(), sqlx::Error> {
    let raise = "INSERT INTO _tributary_share_floor (entity, part, lsn) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (entity, part) DO UPDATE SET lsn = max(lsn, excluded.lsn)";
    let raise = sqlx::query(raise).bind(&shape.table.name).bind(&shape.part).bind(version.to_string());
    raise.execute(connection).await.map(drop)
}

pub(super) async fn remove_vanished(connection: &mut SqliteConnection, shape: &Shape, version: Lsn) -> Result<(), sqlx::Error> {
    let (entity, table, version) = (&shape.table.name, &shape.table.quoted, version.to_string());
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let remove = if shape.keeps_deleted {
        format!("UPDATE {table} SET deleted = 1, version = ?1 WHERE version < ?1 AND NOT deleted")
    } else {
        format!("DELETE FROM {table} WHERE version < ?1")
    };
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
