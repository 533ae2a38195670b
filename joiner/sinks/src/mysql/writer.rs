//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Error, Row};

use super::fault::{classify, describe, is_about_data, is_deadlock};
use super::statements::{self, Batch};
use crate::sql::pool::{self, Ending, Standing};
use crate::sql::shape::{Row as Written, Shape, Shapes};
use crate::{Rejected, check, shares, sql};

/// Rows that vanish in one transaction: a large one holds the server's undo log up.
const VANISHED_ROWS: u64 = 10_000;

/// A transaction that meets so many deadlocks in a row fails.
const MOST_DEADLOCKS: u32 = 20;

pub struct Writer {
    target: String,
    connection: MySqlConnection,
    shapes: Arc<Shapes>,
    /// What the server takes at once.
    packet_bytes: usize,
}

#[async_trait]
impl pool::Writer for Writer {
    async fn standing(&mut self, range: KeyRange) -> Result<Standing, crate::Error> {
        let failed = |error| classify(&self.target, &error);
        let unfilled = sqlx::query_as("SELECT entity, filled_by FROM _tributary_shape WHERE NOT filled");
        let unfilled: Vec<(String, Option<String>)> = unfilled.fetch_all(&mut self.connection).await.map_err(failed)?;
        let parts = sqlx::query_as("SELECT part, lsn FROM _tributary_frontier");
        let parts: Vec<(String, String)> = parts.fetch_all(&mut self.connection).await.map_err(failed)?;
        let unfilled = unfilled.iter().map(|(entity, by)| (entity.as_str(), by.as_deref()));
        Ok(Standing::of(&self.shapes, range, unfilled, &parts))
    }

    /// Done again where it met another's locks in the wrong order: parts of a load that are written side by side do, in the indexes of children.
    async fn write(&mut self, rows: &[Written<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, crate::Error> {
        let mut deadlocks = 0;
        loop {
            let written = match self.write_once(rows, ending, false).await {
                Err(error) if is_about_data(&error) => self.write_once(rows, ending, true).await,
                written => written,
            };
            match written {
                Err(error) if is_deadlock(&error) && deadlocks < MOST_DEADLOCKS => deadlocks += 1,
                Err(error) => return Err(classify(&self.target, &error)),
                Ok(written) => return written.ok_or_else(|| shares::lost(&self.target)),
            }
        }
    }

    async fn remove_vanished(&mut self, shape: &Shape, version: Lsn) -> Result<(), crate::Error> {
        self.vanish(shape, &version.to_string()).await.map_err(|error| classify(&self.target, &error))
    }

    async fn refuse_older(&mut self, shape: &Shape, version: Lsn) -> Result<(), crate::Error> {
        let mut deadlocks = 0;
        loop {
            match self.raise_of_part(shape, version).await {
                Err(error) if is_deadlock(&error) && deadlocks < MOST_DEADLOCKS => deadlocks += 1,
                raised => return raised.map_err(|error| classify(&self.target, &error)),
            }
        }
    }

    async fn older(&mut self, shape: &Shape, version: Lsn, after: &str, limit: i64) -> Result<Vec<String>, crate::Error> {
        let older = sql::older_statement(shape, ["?", "?", "?"]);
        let older = sqlx::query(AssertSqlSafe(older)).bind(after.as_bytes()).bind(version.to_string()).bind(limit);
        let keys = older.fetch_all(&mut self.connection).await.map_err(|error| classify(&self.target, &error))?;
        let text = |row: &sqlx::mysql::MySqlRow| {
            String::from_utf8(row.get(0)).map_err(|error| crate::Error::unexpected(&self.target, error))
        };
        keys.iter().map(text).collect()
    }

    fn refusal(&self, change: &EntityChange) -> Option<String> {
        check::refusal(change).or_else(|| statements::too_large(change, self.packet_bytes))
    }
}

impl Writer {
    pub(super) async fn new(target: &str, mut connection: MySqlConnection, shapes: Arc<Shapes>) -> Result<Self, crate::Error> {
        let packet = "SELECT CAST(@@max_allowed_packet AS SIGNED)";
        let packet = sqlx::query_scalar::<_, i64>(packet).fetch_one(&mut connection).await;
        let packet_bytes = usize::try_from(packet.map_err(|error| classify(target, &error))?).unwrap_or(usize::MAX);
        Ok(Self { target: target.to_owned(), connection, shapes, packet_bytes })
    }

    /// Answers nothing, and has written nothing, where the share is not any more what was said of it.
    /// With `singling_out`, rows that the database refuses are set aside instead of failing the transaction.
    async fn write_once(
        &mut self,
        rows: &[Written<'_>],
        ending: Ending<'_>,
        singling_out: bool,
    ) -> Result<Option<Vec<Rejected>>, Error> {
        let mut batch = Batch { transaction: self.connection.begin().await? };
        let mut rejected = Vec::new();
        for (entity, group) in sql::group(rows) {
            let shape = self.shapes.of(entity);
            let floor = batch.lock(&shape, !group.deletions.is_empty()).await?;
            let current = batch.current(entity, &floor, &group.upserts).await?;
            if singling_out {
                upsert_what_is_taken(&mut batch, &shape, &current, &mut rejected).await?;
            } else {
                batch.upsert(&shape, &current).await?;
            }
            batch.delete(&shape, &group.deletions).await?;
        }
        if let Some(frontier) = ending.frontier
            && !batch.frontier(&ending.share, frontier, ending.sources).await?
        {
            batch.transaction.rollback().await?;
            return Ok(None);
        }
        for entity in ending.filled {
            batch.fill(entity, ending.share.range).await?;
        }
        if let Some(before_ms) = ending.purge_before_ms {
            batch.purge(before_ms).await?;
        }
        batch.transaction.commit().await?;
        Ok(Some(rejected))
    }

    async fn raise_of_part(&mut self, shape: &Shape, version: Lsn) -> Result<(), Error> {
        let mut batch = Batch { transaction: self.connection.begin().await? };
        batch.lock(shape, true).await?;
        let raise = "INSERT INTO _tributary_share_floor (entity, part, lsn) VALUES (?, ?, ?) \
                     ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        let raise = sqlx::query(raise).bind(&shape.table.name).bind(&shape.part).bind(version.to_string());
        raise.execute(&mut *batch.transaction).await?;
        batch.transaction.commit().await
    }

    async fn vanish(&mut self, shape: &Shape, version: &str) -> Result<(), Error> {
        let (entity, table) = (&shape.table.name, &shape.table.quoted);
        let remove = if shape.keeps_deleted {
            format!("UPDATE {table} SET deleted = 1, version = ? WHERE version < ? AND NOT deleted LIMIT {VANISHED_ROWS}")
        } else {
            format!("DELETE FROM {table} WHERE version < ? LIMIT {VANISHED_ROWS}")
        };
        let vanish = || {
            let query = sqlx::query(AssertSqlSafe(remove.as_str())).bind(version);
            if shape.keeps_deleted { query.bind(version) } else { query }
        };
        while vanish().execute(&mut self.connection).await?.rows_affected() >= VANISHED_ROWS {}
        let mut transaction = self.connection.begin().await?;
        let raise =
            "INSERT INTO _tributary_floor (entity, lsn) VALUES (?, ?) ON DUPLICATE KEY UPDATE lsn = GREATEST(lsn, VALUES(lsn))";
        sqlx::query(raise).bind(entity).bind(version).execute(&mut *transaction).await?;
        let forget = "DELETE FROM _tributary_tombstone WHERE entity = ? AND version <= ?";
        sqlx::query(forget).bind(entity).bind(version).execute(&mut *transaction).await?;
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
