//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::Lsn;
use schemas::change::EntityChange;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::fault::is_about_data;
use super::statements::{self, Batch, Statements};
use crate::sql;
use crate::sql::shape::{Row, Shapes};
use crate::{Rejected, check};

pub(super) struct Writer {
    client: Client,
    shapes: Arc<Shapes>,
    /// Of this client.
    statements: Statements,
    /// Whether rows of a load are copied straight into their table.
    copies: bool,
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
    pub(super) async fn new(client: Client, shapes: Arc<Shapes>) -> Result<Self, Error> {
        let plain = shapes.of("");
        let tables: BTreeSet<String> = shapes.all().chain([&plain]).map(|shape| statements::temporary_table(shape)).collect();
        client.batch_execute(&tables.into_iter().collect::<Vec<_>>().join("; ")).await?;
        Ok(Self { client, shapes, statements: Statements::default(), copies: false })
    }

    /// What the database says that it holds; nothing while something in it has not been filled.
    pub(super) async fn frontier(&mut self) -> Result<Option<String>, Error> {
        let frontier = "SELECT CASE WHEN EXISTS (SELECT 1 FROM _tributary_shape WHERE NOT filled AND entity = ANY($1)) THEN NULL \
                        ELSE (SELECT min(lsn) FROM _tributary_frontier) END";
        let entities: Vec<&str> = self.shapes.all().map(|shape| shape.table.name.as_str()).collect();
        self.client.query_one(frontier, &[&entities]).await?.try_get(0)
    }

    /// From now on documents of a load are written.
    pub(super) async fn begin_load(&mut self) -> Result<(), Error> {
        self.copies = true;
        self.client.batch_execute("SET synchronous_commit TO off").await
    }

    /// From now on a commit is durable when it is answered, or as the server's owner has set it.
    pub(super) async fn end_load(&mut self) -> Result<(), Error> {
        self.copies = false;
        self.client.batch_execute("RESET synchronous_commit").await
    }

    /// A transaction of its own, without a frontier.
    pub(super) async fn write(&mut self, rows: &[Row<'_>]) -> Result<Vec<Rejected>, Error> {
        if self.copies && rows.iter().all(|row| row.change.document.is_some()) {
            match self.copy(rows).await {
                Ok(true) => return Ok(Vec::new()),
                Ok(false) => self.copies = false,
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => self.copies = false,
                // Something is wrong with a document, which is told below, and nothing with copying.
                Err(error) if is_about_data(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.write_guarded(rows, Ending::default()).await
    }

    /// Copies rows straight into their tables. Answers false, and has written nothing, where a deletion of something newer may be on record.
    async fn copy(&mut self, rows: &[Row<'_>]) -> Result<bool, Error> {
        let groups = sql::group(rows);
        let transaction = self.client.transaction().await?;
        let mut batch = Batch::new(&transaction, &mut self.statements);
        for (entity, group) in &groups {
            let shape = self.shapes.of(entity);
            batch.lock(entity, false).await?;
            batch.send().await?;
            batch.copy(&shape.table.quoted, &shape, &group.upserts).await?;
            batch.copy_children(&shape, &group.upserts).await?;
            let least = group.upserts.iter().map(|row| row.change.version).min();
            if batch.may_be_outdated(entity, least.unwrap_or(Lsn::MAX)).await? {
                drop(batch);
                transaction.rollback().await?;
                return Ok(false);
            }
        }
        drop(batch);
        transaction.commit().await?;
        Ok(true)
    }

    /// One transaction: writes what is newer than what is there. Changes that the database refuses for what they say are found and left out.
    pub(super) async fn write_guarded(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, Error> {
        match self.write_once(rows, ending, false).await {
            Err(error) if is_about_data(&error) => {}
            written => return written,
        }
        let (mut sound, mut rejected) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            match unstorable(row.change) {
                Some(reason) => rejected.push(Rejected { change: row.change.clone(), reason }),
                None => sound.push(row.clone()),
            }
        }
        let written = match self.write_once(&sound, ending, rejected.is_empty()).await {
            Err(error) if is_about_data(&error) => self.write_once(&sound, ending, true).await,
            written => written,
        };
        rejected.extend(written?);
        Ok(rejected)
    }

    /// With `singling_out`, rows that the database refuses are set aside instead of failing the transaction.
    async fn write_once(&mut self, rows: &[Row<'_>], ending: Ending<'_>, singling_out: bool) -> Result<Vec<Rejected>, Error> {
        let groups = sql::group(rows);
        let transaction = self.client.transaction().await?;
        let mut batch = Batch::new(&transaction, &mut self.statements);
        let mut rejected = Vec::new();
        for (entity, group) in &groups {
            let shape = self.shapes.of(entity);
            batch.lock(entity, !group.deletions.is_empty()).await?;
            if singling_out {
                batch.upsert_what_is_taken(&shape, &group.upserts, &mut rejected).await?;
            } else {
                batch.upsert(&shape, &group.upserts).await?;
            }
            batch.delete(&shape, entity, &group.deletions).await?;
        }
        if let Some(frontier) = ending.frontier {
            batch.frontier(frontier).await?;
        }
        if !ending.filled.is_empty() {
            batch.filled(ending.filled).await?;
        }
        batch.send().await?;
        drop(batch);
        if let Some(before_ms) = ending.purge_before_ms {
            statements::purge(&transaction, before_ms).await?;
        }
        transaction.commit().await?;
        Ok(rejected)
    }

    /// Removes the rows that a load of this version has not written.
    pub(super) async fn remove_vanished(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        statements::end_load(&mut self.client, &self.shapes.of(entity), version).await
    }
}

/// Why `jsonb` would not take the document, if so.
fn unstorable(change: &EntityChange) -> Option<String> {
    if change.document.as_deref().is_some_and(check::holds_nul) {
        return Some("the document holds a NUL character (\\u0000), which PostgreSQL's jsonb cannot store".to_owned());
    }
    check::refusal(change)
}
