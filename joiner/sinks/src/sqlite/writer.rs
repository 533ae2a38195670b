//! The connection that writes.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::EntityChange;
use schemas::{KeyRange, Lsn};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection};

use super::classify;
use super::statements::{delete, fill, purge, put_frontier, refuse_older, remove_vanished, upsert};
use crate::sql::pool::{self, Ending, Standing};
use crate::sql::shape::{Row, Shape, Shapes};
use crate::{Error, Rejected, check, shares, sql};

pub struct Writer {
    target: String,
    connection: SqliteConnection,
    shapes: Arc<Shapes>,
}

#[async_trait]
impl pool::Writer for Writer {
    async fn standing(&mut self, range: KeyRange) -> Result<Standing, Error> {
        let failed = |error| classify(&self.target, error);
        let unfilled = sqlx::query_as("SELECT entity, filled_by FROM _tributary_shape WHERE NOT filled");
        let unfilled: Vec<(String, Option<String>)> = unfilled.fetch_all(&mut self.connection).await.map_err(failed)?;
        let parts = sqlx::query_as("SELECT part, lsn FROM _tributary_frontier");
        let parts: Vec<(String, String)> = parts.fetch_all(&mut self.connection).await.map_err(failed)?;
        let unfilled = unfilled.iter().map(|(entity, by)| (entity.as_str(), by.as_deref()));
        Ok(Standing::of(&self.shapes, range, unfilled, &parts))
    }

    async fn write(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Vec<Rejected>, Error> {
        let written = self.write_all(rows, ending).await.map_err(|error| classify(&self.target, error))?;
        written.ok_or_else(|| shares::lost(&self.target))
    }

    async fn remove_vanished(&mut self, shape: &Shape, version: Lsn) -> Result<(), Error> {
        remove_vanished(&mut self.connection, shape, version).await.map_err(|error| classify(&self.target, error))
    }

    async fn refuse_older(&mut self, shape: &Shape, version: Lsn) -> Result<(), Error> {
        refuse_older(&mut self.connection, shape, version).await.map_err(|error| classify(&self.target, error))
    }

    async fn older(&mut self, shape: &Shape, version: Lsn, after: &str, limit: i64) -> Result<Vec<String>, Error> {
        let older = sql::older_statement(shape, ["?1", "?2", "?3"]);
        let older = sqlx::query_scalar(AssertSqlSafe(older)).bind(after).bind(version.to_string()).bind(limit);
        older.fetch_all(&mut self.connection).await.map_err(|error| classify(&self.target, error))
    }

    /// Documents are read beside the writing.
    fn refusal(&self, change: &EntityChange) -> Option<String> {
        check::quick_refusal(change)
    }
}

impl Writer {
    pub(super) fn new(target: &str, connection: SqliteConnection, shapes: Arc<Shapes>) -> Self {
        Self { target: target.to_owned(), connection, shapes }
    }

    /// Answers nothing, and has written nothing, where the share is not any more what was said of it.
    async fn write_all(&mut self, rows: &[Row<'_>], ending: Ending<'_>) -> Result<Option<Vec<Rejected>>, sqlx::Error> {
        let mut rejected = Vec::new();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for (entity, group) in sql::group(rows) {
            let shape = self.shapes.of(entity);
            rejected.extend(upsert(&mut transaction, &shape, &group.upserts).await?);
            delete(&mut transaction, &shape, &group.deletions).await?;
        }
        if let Some(frontier) = ending.frontier
            && !put_frontier(&mut transaction, &ending.share, frontier, ending.sources).await?
        {
            transaction.rollback().await?;
            return Ok(None);
        }
        for entity in ending.filled {
            fill(&mut transaction, entity, ending.share.range).await?;
        }
        if let Some(before_ms) = ending.purge_before_ms {
            purge(&mut transaction, before_ms).await?;
        }
        transaction.commit().await?;
        Ok(Some(rejected))
    }
}
