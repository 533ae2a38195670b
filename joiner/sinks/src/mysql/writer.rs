//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use schemas::Lsn;
use schemas::change::EntityChange;
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Error, Row};

use super::fault::{describe, is_about_data};
use super::statements::{Batch, quote};
use crate::Rejected;
use crate::sql;

/// Rows that vanish in one transaction: a large one holds the server's undo log up.
const VANISHED_ROWS: u64 = 10_000;

pub(super) struct Writer {
    connection: MySqlConnection,
    packet_bytes: usize,
}

impl Writer {
    pub(super) async fn new(mut connection: MySqlConnection) -> Result<Self, Error> {
        let row = sqlx::query("SELECT CAST(@@max_allowed_packet AS SIGNED)").fetch_one(&mut connection).await?;
        let packet_bytes = usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(usize::MAX);
        Ok(Self { connection, packet_bytes })
    }

    /// What the server takes at once.
    pub(super) fn packet_bytes(&self) -> usize {
        self.packet_bytes
    }

    pub(super) async fn frontier(&mut self) -> Result<Option<String>, Error> {
        let row = sqlx::query("SELECT min(lsn) FROM _tributary_frontier").fetch_one(&mut self.connection).await?;
        row.try_get(0)
    }

    /// One transaction; with `purge_before_ms` it also drops the tombstones that are older and no longer needed. Changes that the database refuses for what they say are found and left out.
    pub(super) async fn write(
        &mut self,
        changes: &[&EntityChange],
        frontier: Option<Lsn>,
        purge_before_ms: Option<i64>,
    ) -> Result<Vec<Rejected>, Error> {
        match self.write_once(changes, frontier, purge_before_ms, false).await {
            Err(error) if is_about_data(&error) => self.write_once(changes, frontier, purge_before_ms, true).await,
            written => written,
        }
    }

    /// With `singling_out`, rows that the database refuses are set aside instead of failing the transaction.
    async fn write_once(
        &mut self,
        changes: &[&EntityChange],
        frontier: Option<Lsn>,
        purge_before_ms: Option<i64>,
        singling_out: bool,
    ) -> Result<Vec<Rejected>, Error> {
        let mut batch = Batch { transaction: self.connection.begin().await? };
        let mut rejected = Vec::new();
        for (entity, group) in sql::group(changes) {
            let floor = batch.lock(entity, &group).await?;
            let current = batch.current(entity, &floor, &group.upserts).await?;
            if singling_out {
                upsert_what_is_taken(&mut batch, entity, &current, &mut rejected).await?;
            } else {
                batch.upsert(entity, &current).await?;
            }
            batch.delete(entity, &group.deletions).await?;
        }
        if let Some(frontier) = frontier {
            batch.frontier(frontier).await?;
        }
        if let Some(before_ms) = purge_before_ms {
            batch.purge(before_ms).await?;
        }
        batch.commit().await?;
        Ok(rejected)
    }

    /// Removes the rows that a load of this version has not written, and then the traces of what is older than it.
    pub(super) async fn remove_vanished(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        let version = version.to_string();
        let remove = format!("DELETE FROM {} WHERE version < ? LIMIT {VANISHED_ROWS}", quote(entity));
        loop {
            let removed = sqlx::query(AssertSqlSafe(remove.as_str())).bind(&version).execute(&mut self.connection).await?;
            if removed.rows_affected() < VANISHED_ROWS {
                break;
            }
        }
        let mut transaction = self.connection.begin().await?;
        let raise =
            "INSERT INTO _tributary_floor (entity, lsn) VALUES (?, ?) ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        sqlx::query(raise).bind(entity).bind(&version).execute(&mut *transaction).await?;
        let forget = "DELETE FROM _tributary_tombstone WHERE entity = ? AND version <= ?";
        sqlx::query(forget).bind(entity).bind(&version).execute(&mut *transaction).await?;
        // Once more: what an older writer put there before the floor was raised.
        sqlx::query(AssertSqlSafe(format!("DELETE FROM {} WHERE version < ?", quote(entity))))
            .bind(&version)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }
}

/// Writes a group's upserts; rows that the database will not have go to `rejected`. Halving keeps the good rows of a poisoned batch in few statements.
async fn upsert_what_is_taken(
    batch: &mut Batch<'_>,
    entity: &str,
    changes: &[&EntityChange],
    rejected: &mut Vec<Rejected>,
) -> Result<(), Error> {
    let mut ranges = vec![changes];
    while let Some(range) = ranges.pop() {
        batch.run("SAVEPOINT tributary").await?;
        match batch.upsert(entity, range).await {
            Ok(()) => batch.run("RELEASE SAVEPOINT tributary").await?,
            Err(error) if is_about_data(&error) => {
                batch.run("ROLLBACK TO SAVEPOINT tributary").await?;
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
