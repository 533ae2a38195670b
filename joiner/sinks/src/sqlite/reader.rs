//! Reading entities back from a SQLite file, beside the sink that writes it and without ever holding it up (WAL).

use std::time::Duration;

use async_trait::async_trait;
use schemas::change::EntityKey;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Row};

use crate::sql::kind::Dialect;
use crate::sql::promoted::{Known, Page, Pages, Promoted};
use crate::sql::shape::live;
use crate::sql::{self, is_decimal, operator_text, quote};
use crate::sqlite::{SqliteConfig, classify};
use crate::{EntityReader, Error, Filter, Operator, Query, Reading, StoredEntity, Tables};

const CONNECTIONS: u32 = 8;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
const FRONTIER: &str = sql::frontier_statement(Dialect::Sqlite);
/// The decimal test of [`sql::is_decimal`] on the SQL expression `$x`.
const IS_DECIMAL: &str = "($x NOT GLOB '?*-*' AND $x NOT GLOB '*[^-0-9.]*' AND $x NOT GLOB '*.*.*' AND ltrim($x, '-') GLOB '[0-9]*' \
                          AND $x GLOB '*[0-9]' AND ltrim($x, '-') NOT GLOB '0[0-9]*')";

/// Decimals are compared exactly by `eq` and `neq`, as 64-bit floating point by the others.
pub struct SqliteReader {
    target: String,
    pool: SqlitePool,
    tables: Tables,
    promoted: Promoted,
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
        let (target, tables) = (format!("SQLite file {}", config.path.display()), config.tables.clone());
        Self { target, pool, tables, promoted: Promoted::default() }
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

    fn reading<T>(&self, row: Option<&SqliteRow>, value: T) -> Result<Reading<T>, Error> {
        sql::reached(&self.target, row.and_then(|row| row.get("lsn")), row.and_then(|row| row.get("sources")), value)
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

    async fn reached(&self) -> Result<Reading<()>, Error> {
        match sqlx::query(FRONTIER).fetch_one(&self.pool).await {
            Ok(row) => self.reading(Some(&row), ()),
            Err(error) if is_not_there_yet(&error) => self.reading(None, ()),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document, f.sources FROM ({FRONTIER}) AS f LEFT JOIN {} AS t ON t.key = ?1{}",
            quote(entity),
            live(&self.tables, entity)
        );
        let row = sqlx::query(AssertSqlSafe(statement))
            .bind(key.as_str())
            .fetch_one(&self.pool)
            .await
            .map_err(|error| self.failed(error))?;
        self.reading(Some(&row), self.stored(&row)?)
    }

    async fn list_with_frontier(&self, query: &Query) -> Result<Page, Error> {
        self.page(query).await
    }
}

#[async_trait]
impl Pages for SqliteReader {
    const DIALECT: Dialect = Dialect::Sqlite;

    fn about(&self) -> (&str, &Tables, &Promoted) {
        (&self.target, &self.tables, &self.promoted)
    }

    async fn recorded(&self, entity: &str) -> Result<Option<(i32, String)>, Error> {
        let latest = "SELECT version, shape FROM _tributary_shape WHERE entity = ?1 ORDER BY version DESC LIMIT 1";
        let found = sqlx::query_as(latest).bind(entity).fetch_optional(&self.pool).await;
        found.map_err(|error| self.failed(error))
    }

    async fn page_by(&self, query: &Query, known: &Known) -> Result<Option<Page>, Error> {
        let Listing { statement, values, by_columns } = Listing::of(&self.tables, query, known);
        let mut prepared = sqlx::query(AssertSqlSafe(statement));
        for value in values {
            prepared = prepared.bind(value);
        }
        let rows = prepared.fetch_all(&self.pool).await.map_err(|error| self.failed(error))?;
        if by_columns && rows.first().and_then(|row| row.get::<Option<i32>, _>(4)) != Some(known.version) {
            return Ok(None);
        }
        let value = rows.iter().filter_map(|row| self.stored(row).transpose()).collect::<Result<_, _>>()?;
        self.reading(rows.first(), value).map(Some)
    }
}

/// The statement of a page.
struct Listing {
    statement: String,
    values: Vec<String>,
    /// It looks for rows by their columns too.
    by_columns: bool,
}

impl Listing {
    fn of(tables: &Tables, query: &Query, known: &Known) -> Self {
        let (mut conditions, mut by_columns) = (live(tables, &query.entity).to_owned(), false);
        let mut values = vec![query.after.as_ref().map_or("", EntityKey::as_str).to_owned()];
        for filter in &query.filters {
            conditions.push_str(" AND ");
            conditions.push_str(&condition(filter, values.len() + 1));
            values.extend([json_path(&filter.path), comparable(filter)]);
            let narrowed = known.narrowed(Dialect::Sqlite, filter, |value| {
                values.push(value);
                format!("?{}", values.len())
            });
            by_columns |= narrowed.is_some();
            conditions.extend(narrowed.map(|narrowed| format!(" AND {narrowed}")));
        }
        let standing = if by_columns { known.standing() } else { "NULL".to_owned() };
        let statement = format!(
            "SELECT f.lsn, t.key, t.version, t.document, {standing}, f.sources FROM ({FRONTIER}) AS f \
             LEFT JOIN (SELECT key, version, document FROM {} WHERE key > ?1{conditions} ORDER BY key LIMIT {}) AS t ON 1 ORDER BY t.key",
            quote(&query.entity),
            query.limit
        );
        Self { statement, values, by_columns }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::Lsn;
    use schemas::entity::EntityInfo;
    use schemas::table::SqlType;
    use serde_json::json;

    use super::*;
    use crate::sqlite::SqliteSink;
    use crate::{Sink, TableConfig};

    #[tokio::test]
    async fn a_filter_over_a_column_is_answered_by_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let columns = [("state".to_owned(), "status".to_owned())].into();
        let table = TableConfig { columns, indexes: vec![vec!["state".to_owned()]], ..TableConfig::default() };
        let tables: Tables = [("order".to_owned(), table)].into();
        let config = SqliteConfig { tables: tables.clone(), ..SqliteConfig::new(folder.path().join("e.db")) };
        let schema = json!({"properties": {"status": {"type": "string"}}});
        let info = EntityInfo { name: "order".into(), key: vec![("id".to_owned(), SqlType::Int)], document_schema: schema };
        let mut sink = SqliteSink::new(config.clone());
        sink.prepare(&[info]).await.unwrap();
        sink.begin_load().await.unwrap();
        sink.end_load("order", Lsn::MAX).await.unwrap();
        sink.write(&[], Some(Lsn::MAX)).await.unwrap();

        let reader = SqliteReader::new(&config);
        let of = |member: &str| {
            let filter = Filter { path: vec![member.to_owned()], operator: Operator::Eq, value: "OPEN".to_owned() };
            Query { entity: "order".to_owned(), filters: vec![filter], after: None, limit: 10 }
        };
        let known = reader.known("order").await.unwrap();
        let plan = async |member: &str| {
            let Listing { statement, values, .. } = Listing::of(&tables, &of(member), &known);
            let statement = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
            let asked = values.into_iter().fold(sqlx::query(statement), |query, value| query.bind(value));
            let rows = asked.fetch_all(&reader.pool).await.unwrap();
            rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("; ")
        };
        let by_column = plan("status").await;
        assert!(by_column.contains("USING INDEX _tributary_order_state") && by_column.contains("(state=?)"), "{by_column}");
        let by_document = plan("customer").await;
        assert!(!by_document.contains("_tributary_order_state"), "{by_document}");
    }
}
