//! One connection that writes: the transactions of a batch, and what is done when the database refuses one.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::fault::{classify, is_about_data};
use super::statements::{self, Batch, Statements};
use crate::sql::pool::{self, Ending, Standing};
use crate::sql::shape::{Row, Shape, Shapes};
use crate::{Rejected, check, shares, sql};

pub struct Writer {
    target: String,
    client: Client,
    shapes: Arc<Shapes>,
    /// Of this client.
    statements: Statements,
    /// Whether rows of a load are copied straight into their table.
    copies: bool,
}

#[async_trait]
impl pool::Writer for Writer {
    async fn standing(&mut self, range: KeyRange) -> Result<Standing, crate::Error> {
        let unfilled = "SELECT entity, filled_by FROM _tributary_shape WHERE NOT filled";
        let (unfilled, parts) = tokio::try_join!(
            self.client.query(unfilled, &[]),
            self.client.query("SELECT part, lsn FROM _tributary_frontier", &[])
        )
        .map_err(|error| classify(&self.target, &error))?;
        let unfilled = unfilled.iter().map(|row| (row.get(0), row.get(1)));
        let parts: Vec<(String, String)> = parts.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Standing::of(&self.shapes, range, unfilled, &parts))
    }

    async fn begin_load(&mut self) -> Result<(), crate::Error> {
        self.copies = true;
        let begun = self.client.batch_execute("SET synchronous_commit TO off").await;
        begun.map_err(|error| classify(&self.target, &error))
    }

    async fn end_load(&mut self) -> Result<(), crate::Error> {
        self.copies = false;
        let ended = self.client.batch_execute("RESET synchronous_commit").await;
        ended.map_err(|error| classify(&self.target, &error))
    }

    async fn write(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, crate::Error> {
        let written = self.write_rows(rows, ending).await.map_err(|error| classify(&self.target, &error))?;
        written.ok_or_else(|| shares::lost(&self.target))
    }

    async fn remove_vanished(&mut self, shape: &Shape, version: Lsn) -> Result<(), crate::Error> {
        let removed = statements::remove_vanished(&mut self.client, shape, version).await;
        removed.map_err(|error| classify(&self.target, &error))
    }

    async fn refuse_older(&mut self, shape: &Shape, version: Lsn) -> Result<(), crate::Error> {
        let raised = statements::refuse_older(&mut self.client, shape, version).await;
        raised.map_err(|error| classify(&self.target, &error))
    }

    async fn older(&mut self, shape: &Shape, version: Lsn, after: &str, limit: i64) -> Result<Vec<String>, crate::Error> {
        let older = sql::older_statement(shape, ["$1", "$2", "$3"]);
        let keys = self.client.query(&older, &[&after, &version.to_string(), &limit]).await;
        let keys = keys.map_err(|error| classify(&self.target, &error))?;
        Ok(keys.iter().map(|row| row.get(0)).collect())
    }

    async fn settle(&mut self, shape: &Shape) -> Result<(), crate::Error> {
        statements::analyze(&self.client, shape).await.map_err(|error| classify(&self.target, &error))
    }

    /// The database reads the documents.
    fn refusal(&self, change: &EntityChange) -> Option<String> {
        check::quick_refusal(change)
    }
}

impl Writer {
    pub(super) async fn new(target: &str, client: Client, shapes: Arc<Shapes>) -> Result<Self, crate::Error> {
        let plain = shapes.of("");
        let tables: BTreeSet<String> = shapes.all().chain([&plain]).map(|shape| statements::temporary_table(shape)).collect();
        let made = client.batch_execute(&tables.into_iter().collect::<Vec<_>>().join("; ")).await;
        made.map_err(|error| classify(target, &error))?;
        Ok(Self { target: target.to_owned(), client, shapes, statements: Statements::default(), copies: false })
    }

    /// Answers nothing, and has written nothing, where the share is not any more what was said of it.
    async fn write_rows(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Option<Vec<Rejected>>, Error> {
        if self.copies && rows.iter().all(|row| row.change.document.is_some()) {
            match self.copy(rows).await {
                Ok(true) => return Ok(Some(Vec::new())),
                Ok(false) => self.copies = false,
                Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => self.copies = false,
                // Something is wrong with a document, which is told below, and nothing with copying.
                Err(error) if is_about_data(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.write_guarded(rows, ending).await
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
            if batch.may_be_outdated(&shape, least.unwrap_or(Lsn::MAX)).await? {
                drop(batch);
                transaction.rollback().await?;
                return Ok(false);
            }
        }
        drop(batch);
        transaction.commit().await?;
        Ok(true)
    }

    async fn write_guarded(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Option<Vec<Rejected>>, Error> {
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
        Ok(written?.map(|singled_out| {
            rejected.extend(singled_out);
            rejected
        }))
    }

    /// With `singling_out`, rows that the database refuses are set aside instead of failing the transaction.
    async fn write_once(
        &mut self,
        rows: &[Row<'_>],
        ending: Ending<'_>,
        singling_out: bool,
    ) -> Result<Option<Vec<Rejected>>, Error> {
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
        let said = match ending.frontier {
            Some(frontier) => batch.frontier(&ending.share, frontier, ending.sources).await?,
            None => batch.send().await.map(|_| true)?,
        };
        drop(batch);
        if !said {
            transaction.rollback().await?;
            return Ok(None);
        }
        if !ending.filled.is_empty() {
            statements::fill(&transaction, ending.filled, ending.share.range).await?;
        }
        if let Some(before_ms) = ending.purge_before_ms {
            statements::purge(&transaction, before_ms).await?;
        }
        transaction.commit().await?;
        Ok(Some(rejected))
    }
}

/// Why `jsonb` would not take the document, if so.
fn unstorable(change: &EntityChange) -> Option<String> {
    if change.document.as_deref().is_some_and(check::holds_nul) {
        return Some("the document holds a NUL character (\\u0000), which PostgreSQL's jsonb cannot store".to_owned());
    }
    check::refusal(change)
}
