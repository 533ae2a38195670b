//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use std::sync::Arc;

use schemas::Lsn;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Error, Row};

use super::fault::{describe, is_about_data, is_deadlock};
use super::statements::Batch;
use crate::Rejected;
use crate::sql;
use crate::sql::shape::{Row as Written, Shape, Shapes};

/// Rows that vanish in one transaction: a large one holds the server's undo log up.
const VANISHED_ROWS: u64 = 10_000;

/// A transaction that meets so many deadlocks in a row fails.
const MOST_DEADLOCKS: u32 = 20;

pub(super) struct Writer {
    connection: MySqlConnection,
    shapes: Arc<Shapes>,
    packet_bytes: usize,
}

/// What ends a transaction, beside the rows.
#[derive(Clone, Copy, Default)]
pub(super) struct Ending<'e> {
    pub(super) frontier: Option<Lsn>,
    /// Tombstones that are older and no longer needed are dropped.
    pub(super) purge_before_ms: Option<i64>,
    /// The entities that have been loaded: their columns and children are filled.
    pub(super) filled: &'e [String],
}

impl Writer {
    pub(super) async fn new(mut connection: MySqlConnection, shapes: Arc<Shapes>) -> Result<Self, Error> {
        let row = sqlx::query("SELECT CAST(@@max_allowed_packet AS SIGNED)").fetch_one(&mut connection).await?;
        let packet_bytes = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        Ok(Self { connection, shapes, packet_bytes })
    }

    /// What the server takes at once.
    pub(super) fn packet_bytes(&self) -> usize {
        self.packet_bytes
    }

    /// What the database says that it holds; nothing while something in it has not been filled.
    pub(super) async fn frontier(&mut self) -> Result<Option<String>, Error> {
        let unfilled = "SELECT DISTINCT entity FROM _tributary_shape WHERE NOT filled";
        let unfilled = sqlx::query(unfilled).fetch_all(&mut self.connection).await?;
        if unfilled.iter().any(|row| self.shapes.has(row.get(0))) {
            return Ok(None);
        }
        sqlx::query("SELECT min(lsn) FROM _tributary_frontier").fetch_one(&mut self.connection).await?.try_get(0)
    }

    /// One transaction, done again where it met another's locks in the wrong order: parts of a load that are written side by side do, in the indexes of children. Changes that the database refuses for what they say are found and left out.
    pub(super) async fn write(&mut self, rows: &[Written<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, Error> {
        let mut deadlocks = 0;
        loop {
            let written = match self.write_once(rows, ending, false).await {
                Err(error) if is_about_data(&error) => self.write_once(rows, ending, true).await,
                written => written,
            };
            match written {
                Err(error) if is_deadlock(&error) && deadlocks < MOST_DEADLOCKS => deadlocks += 1,
                written => return written,
            }
        }
    }

    /// With `singling_out`, rows that the database refuses are set aside instead of failing the transaction.
    async fn write_once(&mut self, rows: &[Written<'_>], ending: Ending<'_>, singling_out: bool) -> Result<Vec<Rejected>, Error> {
        let mut batch = Batch { transaction: self.connection.begin().await? };
        let mut rejected = Vec::new();
        for (entity, group) in sql::group(rows) {
            let shape = self.shapes.of(entity);
            let floor = batch.lock(entity, &group).await?;
            let current = batch.current(entity, &floor, &group.upserts).await?;
            if singling_out {
                upsert_what_is_taken(&mut batch, &shape, &current, &mut rejected).await?;
            } else {
                batch.upsert(&shape, &current).await?;
            }
            batch.delete(&shape, &group.deletions).await?;
        }
        if let Some(frontier) = ending.frontier {
            batch.frontier(frontier).await?;
        }
        for entity in ending.filled {
            batch.filled(entity).await?;
        }
        if let Some(before_ms) = ending.purge_before_ms {
            batch.purge(before_ms).await?;
        }
        batch.commit().await?;
        Ok(rejected)
    }

    /// Removes the rows that a load of this version has not written, and then the traces of what is older than it.
    pub(super) async fn remove_vanished(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let (shape, version) = (self.shapes.of(entity), version.to_string());
        let table = &shape.table.quoted;
        let remove = if shape.keeps_deleted {
            format!("UPDATE {table} SET deleted = 1, version = ? WHERE version < ? AND NOT deleted LIMIT {VANISHED_ROWS}")
        } else {
            format!("DELETE FROM {table} WHERE version < ? LIMIT {VANISHED_ROWS}")
        };
        let vanish = || {
            let query = sqlx::query(AssertSqlSafe(remove.as_str())).bind(&version);
            if shape.keeps_deleted { query.bind(&version) } else { query }
        };
        while vanish().execute(&mut self.connection).await?.rows_affected() >= VANISHED_ROWS {}
        let mut transaction = self.connection.begin().await?;
        let raise =
            "INSERT INTO _tributary_floor (entity, lsn) VALUES (?, ?) ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        sqlx::query(raise).bind(entity).bind(&version).execute(&mut *transaction).await?;
        let forget = "DELETE FROM _tributary_tombstone WHERE entity = ? AND version <= ?";
        sqlx::query(forget).bind(entity).bind(&version).execute(&mut *transaction).await?;
        // Once more: what an older writer put there before the floor was raised.
        vanish().execute(&mut *transaction).await?;
        transaction.commit().await
    }
}

/// Writes a group's upserts; rows that the database will not have go to `rejected`. Halving keeps the good rows of a poisoned batch in few statements.
async fn upsert_what_is_taken(
    batch: &mut Batch<'_>,
    shape: &Shape,
    rows: &[&Written<'_>],
    rejected: &mut Vec<Rejected>,
) -> Result<(), Error> {
    let mut ranges = vec![rows];
    while let Some(range) = ranges.pop() {
        batch.run("SAVEPOINT tributary").await?;
        match batch.upsert(shape, range).await {
            Ok(()) => batch.run("RELEASE SAVEPOINT tributary").await?,
            Err(error) if is_about_data(&error) => {
                batch.run("ROLLBACK TO SAVEPOINT tributary").await?;
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
