//! Reading entities back from MySQL.

use std::time::Duration;

use async_trait::async_trait;
use schemas::change::EntityKey;
use sqlx::mysql::{MySqlPool, MySqlPoolOptions, MySqlRow};
use sqlx::{AssertSqlSafe, Row};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::MysqlConfig;
use super::connect::Connector;
use super::fault::classify;
use crate::sql::kind::Dialect;
use crate::sql::promoted::{Known, Page, Pages, Promoted};
use crate::sql::shape::live;
use crate::sql::{self, is_decimal, operator_text, quote_in};
use crate::{EntityReader, Error, Filter, Query, Reading, StoredEntity, Tables};

const CONNECTIONS: u32 = 8;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A token opens connections for a quarter of an hour: the pool has one that is younger.
const TOKEN_AGE: Duration = Duration::from_secs(600);
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);
const FRONTIER: &str = sql::frontier_statement(Dialect::Mysql);

/// Filters compare decimals exactly up to twenty digits behind the point. A filter that few entities meet reads the table in key order until the page is full.
pub struct MysqlReader {
    connector: Connector,
    pool: MySqlPool,
    tables: Tables,
    promoted: Promoted,
    /// Since when the pool has its token.
    token_since: Mutex<Option<Instant>>,
}

impl MysqlReader {
    /// Connects with the first query.
    pub fn new(config: &MysqlConfig) -> Result<Self, Error> {
        let connector = Connector::new(config)?;
        let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE_TIMEOUT);
        let pool = pool.connect_lazy_with(connector.options());
        let (tables, promoted) = (config.tables.clone(), Promoted::default());
        Ok(Self { connector, pool, tables, promoted, token_since: Mutex::new(None) })
    }

    async fn renew_token(&self) -> Result<(), Error> {
        let mut since = self.token_since.lock().await;
        if since.is_some_and(|since| since.elapsed() < TOKEN_AGE) {
            return Ok(());
        }
        if let Some(options) = self.connector.with_token().await? {
            self.pool.set_connect_options(options);
        }
        *since = Some(Instant::now());
        Ok(())
    }

    /// Runs a query with texts as parameters.
    async fn query(&self, statement: String, parameters: &[String]) -> Result<Vec<MySqlRow>, Error> {
        self.renew_token().await?;
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for parameter in parameters {
            query = query.bind(parameter);
        }
        let target = &self.connector.target;
        let late = |_| Error::unavailable(target, format!("the query took more than {} s", STATEMENT_LIMIT.as_secs()));
        let answer = tokio::time::timeout(STATEMENT_LIMIT, query.fetch_all(&self.pool)).await.map_err(late)?;
        answer.map_err(|error| match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Error::unavailable(target, error),
            error if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42S02") => {
                Error::unavailable(target, "nothing has been written to it yet")
            }
            error => classify(target, &error),
        })
    }

    fn stored(&self, row: &MySqlRow) -> Result<Option<StoredEntity>, Error> {
        let Some(key) = row.get::<Option<Vec<u8>>, _>(1) else { return Ok(None) };
        let key = String::from_utf8(key).map_err(|error| Error::unexpected(&self.connector.target, error))?;
        let version = sql::parse_lsn(&self.connector.target, row.get(2))?;
        Ok(Some(StoredEntity { key: EntityKey::from_text(key), version, document: row.get(3) }))
    }

    fn reading<T>(&self, row: Option<&MySqlRow>, value: T) -> Result<Reading<T>, Error> {
        let [lsn, sources] = ["lsn", "sources"].map(|column| row.and_then(|row| row.get::<Option<String>, _>(column)));
        sql::reached(&self.connector.target, lsn.as_deref(), sources.as_deref(), value)
    }
}

#[async_trait]
impl EntityReader for MysqlReader {
    async fn get(&self, entity: &str, key: &EntityKey) -> Result<Option<StoredEntity>, Error> {
        Ok(self.get_with_frontier(entity, key).await?.value)
    }

    async fn list(&self, query: &Query) -> Result<Vec<StoredEntity>, Error> {
        Ok(self.list_with_frontier(query).await?.value)
    }

    async fn count(&self, entity: &str) -> Result<u64, Error> {
        let rows =
            self.query(format!("SELECT count(*) FROM {} WHERE true{}", quote(entity), live(&self.tables, entity)), &[]).await?;
        Ok(rows.first().map_or(0, |row| row.get::<i64, _>(0)).unsigned_abs())
    }

    async fn reached(&self) -> Result<Reading<()>, Error> {
        let known = "SELECT count(*) FROM information_schema.tables WHERE table_schema = database() AND table_name = '_tributary_frontier'";
        let known = self.query(known.to_owned(), &[]).await?;
        if known.first().is_none_or(|row| row.get::<i64, _>(0) == 0) {
            return self.reading(None, ());
        }
        self.reading(self.query(FRONTIER.to_owned(), &[]).await?.first(), ())
    }

    async fn get_with_frontier(&self, entity: &str, key: &EntityKey) -> Result<Reading<Option<StoredEntity>>, Error> {
        let statement = format!(
            "SELECT f.lsn, t.`key`, t.version, CAST(t.document AS CHAR), f.sources FROM ({FRONTIER}) AS f \
             LEFT JOIN {} AS t ON t.`key` = CAST(? AS BINARY){}",
            quote(entity),
            live(&self.tables, entity)
        );
        let rows = self.query(statement, &[key.as_str().to_owned()]).await?;
        let value = rows.first().map(|row| self.stored(row)).transpose()?.flatten();
        self.reading(rows.first(), value)
    }

    async fn list_with_frontier(&self, query: &Query) -> Result<Page, Error> {
        self.page(query).await
    }
}

#[async_trait]
impl Pages for MysqlReader {
    const DIALECT: Dialect = Dialect::Mysql;

    fn about(&self) -> (&str, &Tables, &Promoted) {
        (&self.connector.target, &self.tables, &self.promoted)
    }

    async fn recorded(&self, entity: &str) -> Result<Option<(i32, String)>, Error> {
        let latest = "SELECT version, shape FROM _tributary_shape WHERE entity = ? ORDER BY version DESC LIMIT 1";
        let rows = self.query(latest.to_owned(), &[entity.to_owned()]).await?;
        Ok(rows.first().map(|row| (row.get(0), row.get(1))))
    }

    async fn page_by(&self, query: &Query, known: &Known) -> Result<Option<Page>, Error> {
        let mut parameters = vec![query.after.as_ref().map_or("", EntityKey::as_str).to_owned()];
        let (mut conditions, mut by_columns) = (live(&self.tables, &query.entity).to_owned(), false);
        for filter in &query.filters {
            conditions.push_str(" AND ");
            conditions.push_str(&condition(filter, &mut parameters));
            let narrowed = known.narrowed(Dialect::Mysql, filter, |value| {
                parameters.push(value);
                "?".to_owned()
            });
            by_columns |= narrowed.is_some();
            conditions.extend(narrowed.map(|narrowed| format!(" AND {narrowed}")));
        }
        let standing = if by_columns { known.standing() } else { "NULL".to_owned() };
        let statement = format!(
            "SELECT f.lsn, t.`key`, t.version, CAST(t.document AS CHAR), CAST({standing} AS SIGNED), f.sources FROM ({FRONTIER}) AS f \
             LEFT JOIN (SELECT `key`, version, document FROM {} WHERE `key` > CAST(? AS BINARY){conditions} ORDER BY `key` LIMIT {}) AS t ON 1 ORDER BY t.`key`",
            quote(&query.entity),
            query.limit
        );
        let rows = self.query(statement, &parameters).await?;
        if by_columns && rows.first().and_then(|row| row.get::<Option<i64>, _>(4)) != Some(known.version.into()) {
            return Ok(None);
        }
        let value = rows.iter().filter_map(|row| self.stored(row).transpose()).collect::<Result<_, _>>()?;
        self.reading(rows.first(), value).map(Some)
    }
}

fn quote(name: &str) -> String {
    quote_in(Dialect::Mysql, name)
}

/// `$."a"."b"`.
fn json_path(path: &[String]) -> String {
    path.iter().fold("$".to_owned(), |text, name| format!("{text}.\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The condition of a filter; what it compares goes to `parameters`. Null and missing members meet none, as in SQL; objects and arrays neither.
fn condition(filter: &Filter, parameters: &mut Vec<String>) -> String {
    let (path, operator) = (json_path(&filter.path), operator_text(filter.operator));
    let mut given = |value: &str| {
        parameters.push(value.to_owned());
        "?"
    };
    let json = |given: &str| format!("JSON_EXTRACT(document, {given})");
    let text = |given: &str| format!("JSON_UNQUOTE(JSON_EXTRACT(document, {given}))");
    let kind = format!("JSON_TYPE({})", json(given(&path)));
    let as_text = |given: &mut dyn FnMut(&str) -> &'static str| {
        let left = text(given(&path));
        format!("CAST({left} AS BINARY) {operator} CAST({} AS BINARY)", given(&filter.value))
    };
    let compared = if is_decimal(&filter.value) {
        let number = "^-?(0|[1-9][0-9]*)([.][0-9]+)?([eE][-+]?[0-9]+)?$";
        let is_number = format!("{} REGEXP '{number}'", text(given(&path)));
        let left = text(given(&path));
        // A float may have an exponent, which DECIMAL's reading takes as well.
        let as_number = format!("CAST({left} AS DECIMAL(65, 20)) {operator} CAST({} AS DECIMAL(65, 20))", given(&filter.value));
        format!("CASE WHEN {is_number} THEN {as_number} ELSE {} END", as_text(&mut given))
    } else {
        as_text(&mut given)
    };
    format!("CASE WHEN COALESCE({kind}, 'NULL') IN ('OBJECT', 'ARRAY', 'NULL') THEN false ELSE {compared} END")
}
