//! Reading entities back from PostgreSQL.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::change::EntityKey;
use tokio::sync::{Mutex, Semaphore};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::PostgresConfig;
use super::connect::Connector;
use super::fault::classify;
use crate::sql::kind::Dialect;
use crate::sql::promoted::{Known, Page, Pages, Promoted};
use crate::sql::shape::live;
use crate::sql::{self, is_decimal, operator_text, quote};
use crate::{EntityReader, Error, Filter, Query, Reading, StoredEntity, Tables};

/// Connections kept, and queries at once; the driver pipelines nothing here, so one connection serves one query.
const CONNECTIONS: usize = 8;
const STATEMENT_LIMIT_MS: u64 = 10_000;
const FRONTIER: &str = sql::frontier_statement(Dialect::Postgres);

/// Filters compare decimals exactly, as `numeric`. A filter that few entities meet reads the table in key order until the page is full.
pub struct PostgresReader {
    connector: Connector,
    schema: String,
    tables: Tables,
    promoted: Promoted,
    idle: Mutex<Vec<Client>>,
    permits: Arc<Semaphore>,
}

impl PostgresReader {
    /// Connects with the first query.
    pub fn new(config: &PostgresConfig) -> Result<Self, Error> {
        let connector = Connector::new(config)?;
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        Ok(Self {
            connector,
            schema: config.schema.clone(),
            tables: config.tables.clone(),
            promoted: Promoted::default(),
            idle: Mutex::new(Vec::new()),
            permits,
        })
    }

    /// Runs a query on an idle connection, or on a new one. A connection that failed is not kept; one that a restart of the server had closed is replaced at once.
    async fn query(&self, statement: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let permit = self.permits.acquire().await.map_err(|error| Error::unavailable(&self.connector.target, error))?;
        let client = loop {
            match self.idle.lock().await.pop() {
                Some(client) if client.is_closed() => {}
                Some(client) => break client,
                None => break self.connector.connect(&self.schema, STATEMENT_LIMIT_MS).await?,
            }
        };
        let answer = client.query(statement, parameters).await;
        if answer.is_ok() {
            self.idle.lock().await.push(client);
        }
        drop(permit);
        answer.map_err(|error| match error.code().map(tokio_postgres::error::SqlState::code) {
            Some("42P01") => Error::unavailable(&self.connector.target, "nothing has been written to it yet"),
            Some("57014") => {
                Error::unavailable(&self.connector.target, format!("the query took more than {STATEMENT_LIMIT_MS} ms"))
            }
            _ => classify(&self.connector.target, &error),
        })
    }

    fn stored(&self, row: &Row) -> Result<Option<StoredEntity>, Error> {
        let Some(key) = row.get::<_, Option<String>>(1) else { return Ok(None) };
        let version = sql::parse_lsn(&self.connector.target, row.get(2))?;
        Ok(Some(StoredEntity { key: EntityKey::from_text(key), version, document: row.get(3) }))
    }

    fn reading<T>(&self, row: Option<&Row>, value: T) -> Result<Reading<T>, Error> {
        let [lsn, sources] = ["lsn", "sources"].map(|column| row.and_then(|row| row.get::<_, Option<&str>>(column)));
        sql::reached(&self.connector.target, lsn, sources, value)
    }
}

#[async_trait]
impl EntityReader for PostgresReader {
    async fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<StoredEntity>, Error> {
        Ok(self.get_with_frontier(entity, key).await?.value)
    }

    async fn list(&self, query: &Query) -> Result<Vec<StoredEntity>, Error> {
        Ok(self.list_with_frontier(query).await?.value)
    }

    async fn count(&self, entity: &str) -> Result<u64, Error> {
        let live = live(&self.tables, entity);
        let rows = self.query(&format!("SELECT count(*) FROM {} WHERE true{live}", quote(entity)), &[]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)).unsigned_abs())
    }

    async fn reached(&self) -> Result<Reading<()>, Error> {
        let known = self.query("SELECT to_regclass('_tributary_frontier') IS NOT NULL", &[]).await?;
        if !known.first().is_some_and(|row| row.get(0)) {
            return self.reading(None, ());
        }
        self.reading(self.query(FRONTIER, &[]).await?.first(), ())
    }

    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document::text, f.sources FROM ({FRONTIER}) AS f \
             LEFT JOIN {} AS t ON t.key = $1{}",
            quote(entity),
            live(&self.tables, entity)
        );
        let rows = self.query(&statement, &[&key.as_str()]).await?;
        let value = rows.first().map(|row| self.stored(row)).transpose()?.flatten();
        self.reading(rows.first(), value)
    }

    async fn list_with_frontier(&self, query: &Query) -> Result<Page, Error> {
        self.page(query).await
    }
}

#[async_trait]
impl Pages for PostgresReader {
    const DIALECT: Dialect = Dialect::Postgres;

    fn about(&self) -> (&str, &Tables, &Promoted) {
        (&self.connector.target, &self.tables, &self.promoted)
    }

    async fn recorded(&self, entity: &str) -> Result<Option<(i32, String)>, Error> {
        let latest = "SELECT version, shape FROM _tributary_shape WHERE entity = $1 ORDER BY version DESC LIMIT 1";
        let rows = self.query(latest, &[&entity]).await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1))))
    }

    async fn page_by(&self, query: &Query, known: &Known) -> Result<Option<Page>, Error> {
        let mut values: Vec<Value> = vec![Value::Text(query.after.as_ref().map_or("", EntityKey::as_str).to_owned())];
        let (mut conditions, mut by_columns) = (live(&self.tables, &query.entity).to_owned(), false);
        for filter in &query.filters {
            conditions.push_str(" AND ");
            conditions.push_str(&condition(filter, values.len() + 1));
            values.extend([Value::Path(filter.path.clone()), Value::Text(filter.value.clone())]);
            let narrowed = known.narrowed(Dialect::Postgres, filter, |value| {
                values.push(Value::Text(value));
                format!("${}", values.len())
            });
            by_columns |= narrowed.is_some();
            conditions.extend(narrowed.map(|narrowed| format!(" AND {narrowed}")));
        }
        let standing = if by_columns { known.standing() } else { "NULL::integer".to_owned() };
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document::text, {standing}, f.sources FROM ({FRONTIER}) AS f \
             LEFT JOIN (SELECT key, version, document FROM {} WHERE key > $1{conditions} ORDER BY key LIMIT {}) AS t ON true ORDER BY t.key",
            quote(&query.entity),
            query.limit
        );
        let parameters: Vec<&(dyn ToSql + Sync)> = values.iter().map(Value::parameter).collect();
        let rows = self.query(&statement, &parameters).await?;
        if by_columns && rows.first().and_then(|row| row.get::<_, Option<i32>>(4)) != Some(known.version) {
            return Ok(None);
        }
        let value = rows.iter().filter_map(|row| self.stored(row).transpose()).collect::<Result<_, _>>()?;
        self.reading(rows.first(), value).map(Some)
    }
}

/// A parameter of a query.
enum Value {
    Text(String),
    Path(Vec<String>),
}

impl Value {
    fn parameter(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Text(text) => text,
            Self::Path(path) => path,
        }
    }
}

/// The condition of a filter whose path is parameter `at` and whose value is the next. Null and missing members meet none, as in SQL; objects and arrays neither.
fn condition(filter: &Filter, at: usize) -> String {
    let (json, text, operator) =
        (format!("document #> ${at}::text[]"), format!("(document #>> ${at}::text[])"), operator_text(filter.operator));
    let value = format!("${}::text", at + 1);
    let as_text = format!("{text} COLLATE \"C\" {operator} {value}");
    let compared = if is_decimal(&filter.value) {
        let is_number = format!("jsonb_typeof({json}) = 'number' OR {text} ~ '^-?(0|[1-9][0-9]*)([.][0-9]+)?$'");
        format!("CASE WHEN {is_number} THEN {text}::numeric {operator} {value}::numeric ELSE {as_text} END")
    } else {
        as_text
    };
    format!("CASE WHEN jsonb_typeof({json}) IN ('object', 'array') THEN false ELSE {compared} END")
}
