//! Reading entities back from a SQLite file, beside the sink that writes it and without ever holding it up (WAL).

use std::time::Duration;

use async_trait::async_trait;
use schemas::Lsn;
use schemas::change::EntityKey;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use crate::sql::shape::live;
use crate::sql::{self, is_decimal, operator_text, quote};
use crate::sqlite::{SqliteConfig, classify};
use crate::{EntityReader, Error, Filter, Operator, Query, Reading, StoredEntity, Tables};

const CONNECTIONS: u32 = 8;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The decimal test of [`sql::is_decimal`] on the SQL expression `$x`.
const IS_DECIMAL: &str = "($x NOT GLOB '?*-*' AND $x NOT GLOB '*[^-0-9.]*' AND $x NOT GLOB '*.*.*' AND ltrim($x, '-') GLOB '[0-9]*' \
                          AND $x GLOB '*[0-9]' AND ltrim($x, '-') NOT GLOB '0[0-9]*')";

/// Decimals are compared exactly by `eq` and `neq`, as 64-bit floating point by the others.
pub struct SqliteReader {
    target: String,
    pool: SqlitePool,
    tables: Tables,
}

impl SqliteReader {
    /// Opens lazily: the file may come later.
    pub fn new(config: &SqliteConfig) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(&config.path)
            .read_only(true)
            .create_if_missing(false)
            .busy_timeout(Duration::from_millis(config.busy_timeout_ms));
        let pool =
            SqlitePoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT).connect_lazy_with(options);
        Self { target: format!("SQLite file {}", config.path.display()), pool, tables: config.tables.clone() }
    }

    fn failed(&self, error: sqlx::Error) -> Error {
        if is_not_there_yet(&error) {
            return Error::unavailable(&self.target, "nothing has been written to it yet");
        }
        classify(&self.target, error)
    }

    fn stored(&self, row: &SqliteRow) -> Result<Option<StoredEntity>, Error> {
        let Some(key) = row.get::<Option<String>, _>(1) else { return Ok(None) };
        let version = sql::parse_lsn(&self.target, row.get(2))?;
        Ok(Some(StoredEntity { key: EntityKey::from_text(key), version, document: row.get(3) }))
    }

    fn frontier_of(&self, row: Option<&SqliteRow>) -> Result<Option<Lsn>, Error> {
        let text = row.and_then(|row| row.get::<Option<&str>, _>(0));
        // Zero: some of the writers has not loaded its share yet.
        let lsn = text.map(|text| sql::parse_lsn(&self.target, text)).transpose()?;
        Ok(lsn.filter(|lsn| !lsn.is_zero()))
    }
}

#[async_trait]
impl EntityReader for SqliteReader {
    async fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<StoredEntity>, Error> {
        Ok(self.get_with_frontier(entity, key).await?.value)
    }

    async fn list(&self, query: &Query) -> Result<Vec<StoredEntity>, Error> {
        Ok(self.list_with_frontier(query).await?.value)
    }

    async fn count(&self, entity: &str) -> Result<u64, Error> {
        let statement = format!("SELECT count(*) FROM {} WHERE true{}", quote(entity), live(&self.tables, entity));
        let count: i64 =
            sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&self.pool).await.map_err(|error| self.failed(error))?;
        Ok(count.unsigned_abs())
    }

    async fn frontier(&self) -> Result<Option<Lsn>, Error> {
        match sqlx::query("SELECT min(lsn) FROM _tributary_frontier").fetch_one(&self.pool).await {
            Ok(row) => self.frontier_of(Some(&row)),
            Err(error) if is_not_there_yet(&error) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document FROM (SELECT min(lsn) AS lsn FROM _tributary_frontier) AS f LEFT JOIN {} AS t ON t.key = ?1{}",
            quote(entity),
            live(&self.tables, entity)
        );
        let row = sqlx::query(AssertSqlSafe(statement))
            .bind(key.as_str())
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.failed(error))?;
        Ok(Reading { frontier: self.frontier_of(Some(&row))?, value: self.stored(&row)? })
    }

    async fn list_with_frontier(&self, query: &Query) -> Result<Reading<Vec<StoredEntity>>, Error> {
        let mut conditions = live(&self.tables, &query.entity).to_owned();
        let mut values = vec![query.after.as_ref().map_or("", EntityKey::as_str).to_owned()];
        for filter in &query.filters {
            let condition = condition(filter, values.len() + 1);
            values.extend([json_path(&filter.path), comparable(filter)]);
            conditions.push_str(" AND ");
            conditions.push_str(&condition);
        }
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document FROM (SELECT min(lsn) AS lsn FROM _tributary_frontier) AS f \
             LEFT JOIN (SELECT key, version, document FROM {} WHERE key > ?1{conditions} ORDER BY key LIMIT {}) AS t ON 1 ORDER BY t.key",
            quote(&query.entity),
            query.limit
        );
        let mut prepared = sqlx::query(AssertSqlSafe(statement));
        for value in values {
            prepared = prepared.bind(value);
        }
        let rows = prepared.fetch_all(&self.pool).await.map_err(|error| self.failed(error))?;
        let frontier = self.frontier_of(rows.first())?;
        let value = rows.iter().filter_map(|row| self.stored(row).transpose()).collect::<Result<_, _>>()?;
        Ok(Reading { frontier, value })
    }
}

fn is_not_there_yet(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => {
            database.message().starts_with("no such table")
                || database.code().is_some_and(|code| code.parse::<i32>().is_ok_and(|code| code & 0xff == 14))
        }
        _ => false,
    }
}

/// A quote inside a name cannot be written in SQLite's path language: such a path finds nothing.
fn json_path(path: &[String]) -> String {
    path.iter().fold("$".to_owned(), |text, name| format!("{text}.\"{}\"", name.replace('"', "")))
}

/// What the filter's value is compared as: for equality of decimals, the text without zeros at the end.
fn comparable(filter: &Filter) -> String {
    let value = &filter.value;
    if is_decimal(value) && value.contains('.') && matches!(filter.operator, Operator::Eq | Operator::Neq) {
        return value.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    value.clone()
}

/// The condition of a filter whose path is parameter `at` and whose value is the next. Null and missing members meet none, as in SQL.
fn condition(filter: &Filter, at: usize) -> String {
    let (path, value, operator) = (format!("?{at}"), format!("?{}", at + 1), operator_text(filter.operator));
    let x = format!("json_extract(document, {path})");
    let (number, text) = if is_decimal(&filter.value) {
        let exact = matches!(filter.operator, Operator::Eq | Operator::Neq);
        let compared = if exact {
            format!("CASE WHEN instr({x}, '.') THEN rtrim(rtrim({x}, '0'), '.') ELSE {x} END {operator} {value}")
        } else {
            format!("CAST({x} AS NUMERIC) {operator} CAST({value} AS NUMERIC)")
        };
        let is_decimal = IS_DECIMAL.replace("$x", &x);
        let text = format!("CASE WHEN {is_decimal} THEN {compared} ELSE {x} {operator} {value} END");
        (format!("{x} {operator} CAST({value} AS NUMERIC)"), text)
    } else {
        (format!("CAST({x} AS TEXT) {operator} {value}"), format!("{x} {operator} {value}"))
    };
    format!(
        "CASE json_type(document, {path}) WHEN 'integer' THEN {number} WHEN 'real' THEN {number} WHEN 'text' THEN {text} \
         WHEN 'true' THEN 'true' {operator} {value} WHEN 'false' THEN 'false' {operator} {value} END"
    )
}
