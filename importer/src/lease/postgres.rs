//! The lease and the progress in a row of a Postgres database.
//!
//! `tributary_importers (source text PRIMARY KEY, epoch bigint, expires timestamptz, progress bytea)`, made when it is not there. Who has the lease is who wrote the row's epoch; until `expires`, by
//! the server's clock alone, nobody else may write another. Every statement is one conditional write, so that the clocks of the importers' machines and the order in which answers
//! arrive are of no consequence.

use async_trait::async_trait;
use schemas::ErrorClass;
use sqlx::postgres::{PgPool, PgPoolOptions};

use super::{Store, TERM, next_epoch};
use crate::error::Error;
use source::Password;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS tributary_importers \
    (source text PRIMARY KEY, epoch bigint NOT NULL, expires timestamptz NOT NULL, progress bytea)";
const ACQUIRE: &str = "INSERT INTO tributary_importers AS held (source, epoch, expires) VALUES ($1, $2, now() + $3 * interval '1 millisecond') \
    ON CONFLICT (source) DO UPDATE SET epoch = GREATEST(held.epoch + 1, excluded.epoch), expires = excluded.expires \
    WHERE held.expires <= now() RETURNING epoch";
const RENEW: &str =
    "UPDATE tributary_importers SET expires = now() + $3 * interval '1 millisecond' WHERE source = $1 AND epoch = $2";
const RELEASE: &str = "UPDATE tributary_importers SET expires = now() WHERE source = $1 AND epoch = $2";
const LOAD: &str = "SELECT progress FROM tributary_importers WHERE source = $1";
const SAVE: &str = "UPDATE tributary_importers SET progress = $3 WHERE source = $1 AND epoch = $2";

pub(super) struct PostgresStore {
    pool: PgPool,
    source: String,
}

impl PostgresStore {
    pub(super) async fn open(url: &Password, source: &str) -> Result<Self, Error> {
        // Two: progress is saved while the lease is renewed.
        let pool = PgPoolOptions::new().max_connections(2).acquire_timeout(TERM).connect_lazy(url.reveal());
        let store = Self { pool: pool.map_err(|error| failed(&error))?, source: source.to_owned() };
        sqlx::query(TABLE).execute(&store.pool).await.map_err(|error| failed(&error))?;
        Ok(store)
    }

    fn changed(&self, epoch: u64, rows: u64) -> Result<(), Error> {
        if rows == 1 { Ok(()) } else { Err(Error::LeaseLost { place: self.place(), epoch }) }
    }
}

/// The epoch and the term as the database has them: both are far from the end of their type.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn term() -> i64 {
    i64::try_from(TERM.as_millis()).unwrap_or(i64::MAX)
}

fn failed(error: &sqlx::Error) -> Error {
    let class = match error {
        sqlx::Error::Configuration(_) => ErrorClass::Misconfigured,
        // Refused logins, missing databases and permissions.
        sqlx::Error::Database(error)
            if error.code().is_some_and(|code| ["28", "3D", "42"].iter().any(|class| code.starts_with(class))) =>
        {
            ErrorClass::Misconfigured
        }
        _ => ErrorClass::Transient,
    };
    Error::LeaseStore { place: "the lease's Postgres".to_owned(), what: error.to_string(), class }
}

#[async_trait]
impl Store for PostgresStore {
    async fn acquire(&self) -> Result<Option<u64>, Error> {
        let query = sqlx::query_scalar::<_, i64>(ACQUIRE).bind(&self.source).bind(number(next_epoch(0))).bind(term());
        let epoch = query.fetch_optional(&self.pool).await.map_err(|error| failed(&error))?;
        Ok(epoch.and_then(|epoch| u64::try_from(epoch).ok()))
    }

    async fn renew(&self, epoch: u64) -> Result<(), Error> {
        let query = sqlx::query(RENEW).bind(&self.source).bind(number(epoch)).bind(term());
        self.changed(epoch, query.execute(&self.pool).await.map_err(|error| failed(&error))?.rows_affected())
    }

    async fn release(&self, epoch: u64) -> Result<(), Error> {
        let query = sqlx::query(RELEASE).bind(&self.source).bind(number(epoch));
        query.execute(&self.pool).await.map(drop).map_err(|error| failed(&error))
    }

    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        let query = sqlx::query_scalar::<_, Option<Vec<u8>>>(LOAD).bind(&self.source);
        Ok(query.fetch_optional(&self.pool).await.map_err(|error| failed(&error))?.flatten())
    }

    async fn save(&self, epoch: u64, progress: &[u8]) -> Result<(), Error> {
        let query = sqlx::query(SAVE).bind(&self.source).bind(number(epoch)).bind(progress);
        self.changed(epoch, query.execute(&self.pool).await.map_err(|error| failed(&error))?.rows_affected())
    }

    fn place(&self) -> String {
        format!("tributary_importers, source {}", self.source)
    }
}
