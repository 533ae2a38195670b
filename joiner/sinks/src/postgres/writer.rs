//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use schemas::Lsn;
use schemas::change::EntityChange;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::fault::is_about_data;
use super::statements::{self, Batch, Statements};
use crate::sql::{self, quote};
use crate::{Rejected, check};

pub(super) struct Writer {
    client: Client,
    /// Of this client.
    statements: Statements,
    /// Whether rows of a load are copied straight into their table.
    copies: bool,
}

/// What ends a transaction, beside the rows.
#[derive(Clone, Copy, Default)]
struct Ending {
    frontier: Option<Lsn>,
    purge_before_ms: Option<i64>,
}

impl Writer {
    pub(super) async fn new(client: Client) -> Result<Self, Error> {
        client.batch_execute(statements::TEMPORARY_TABLE).await?;
        Ok(Self { client, statements: Statements::default(), copies: false })
    }

    pub(super) async fn frontier(&mut self) -> Result<Option<String>, Error> {
        self.client.query_one("SELECT min(lsn) FROM _tributary_frontier", &[]).await?.try_get(0)
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
    pub(super) async fn write(&mut self, changes: &[&EntityChange]) -> Result<Vec<Rejected>, Error> {
        if self.copies && changes.iter().all(|change| change.document.is_some()) {
            match self.copy(changes).await {
                Ok(true) => return Ok(Vec::new()),
                Ok(false) => self.copies = false,
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => self.copies = false,
                // Something is wrong with a document, which is told below, and nothing with copying.
                Err(error) if is_about_data(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.write_guarded(changes, Ending::default()).await
    }

    /// One transaction; with `purge_before_ms` it also drops the tombstones that are older and no longer needed.
    pub(super) async fn write_with_frontier(
        &mut self,
        changes: &[&EntityChange],
        frontier: Lsn,
        purge_before_ms: Option<i64>,
    ) -> Result<Vec<Rejected>, Error> {
        self.write_guarded(changes, Ending { frontier: Some(frontier), purge_before_ms }).await
    }

    /// Copies rows straight into their tables. Answers false, and has written nothing, where a deletion of something newer may be on record.
    async fn copy(&mut self, changes: &[&EntityChange]) -> Result<bool, Error> {
        let groups = sql::group(changes);
        let transaction = self.client.transaction().await?;
        let mut batch = Batch::new(&transaction, &mut self.statements);
        for (entity, group) in &groups {
            batch.lock(entity, false).await?;
            batch.send().await?;
            batch.copy(&quote(entity), &group.upserts).await?;
            let least = group.upserts.iter().map(|change| change.version).min();
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

    /// Writes what is newer than what is there. Changes that the database refuses for what they say are found and left out.
    async fn write_guarded(&mut self, changes: &[&EntityChange], ending: Ending) -> Result<Vec<Rejected>, Error> {
        match self.write_once(changes, ending, false).await {
            Err(error) if is_about_data(&error) => {}
            written => return written,
        }
        let (sound, mut rejected) = check::sort_by(changes.iter().copied(), unstorable);
        let written = match self.write_once(&sound, ending, rejected.is_empty()).await {
            Err(error) if is_about_data(&error) => self.write_once(&sound, ending, true).await,
            written => written,
        };
        rejected.extend(written?);
        Ok(rejected)
    }

    /// One transaction. With `singling_out`, rows that the database refuses are set aside instead of failing it.
    async fn write_once(
        &mut self,
        changes: &[&EntityChange],
        ending: Ending,
        singling_out: bool,
    ) -> Result<Vec<Rejected>, Error> {
        let groups = sql::group(changes);
        let transaction = self.client.transaction().await?;
        let mut batch = Batch::new(&transaction, &mut self.statements);
        let mut rejected = Vec::new();
        for (entity, group) in &groups {
            batch.lock(entity, !group.deletions.is_empty()).await?;
            if singling_out {
                batch.upsert_what_is_taken(entity, &group.upserts, &mut rejected).await?;
            } else {
                batch.upsert(entity, &group.upserts).await?;
            }
            batch.delete(entity, &group.deletions).await?;
        }
        if let Some(frontier) = ending.frontier {
            batch.frontier(frontier).await?;
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
        statements::end_load(&mut self.client, entity, version).await
    }
}

/// Why `jsonb` would not take the document, if so.
fn unstorable(change: &EntityChange) -> Option<String> {
    if change.document.as_deref().is_some_and(check::holds_nul) {
        return Some("the document holds a NUL character (\\u0000), which PostgreSQL's jsonb cannot store".to_owned());
    }
    check::refusal(change)
}
