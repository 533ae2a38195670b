//! The entities' tables: what the schema says of them, and bringing them to what is wanted, in one transaction.

use std::collections::{BTreeMap, HashMap};

use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use super::classify;
use crate::Error;
use crate::shares;
use crate::sql::ddl::{Found, FoundColumn, Plan, Recorded};
use crate::sql::kind::Dialect;
use crate::sql::shape::{INDEX_PREFIX, Shapes};
use crate::sql::{self, Planned};

/// What the file says that it holds of a share; nothing while something in it has not been filled.
pub(super) async fn held(
    connection: &mut SqliteConnection,
    shapes: &Shapes,
    range: KeyRange,
) -> Result<Option<Lsn>, sqlx::Error> {
    let unfilled = "SELECT DISTINCT entity FROM _tributary_shape WHERE NOT filled";
    if sqlx::query(unfilled).fetch_all(&mut *connection).await?.iter().any(|row| shapes.has(row.get(0))) {
        return Ok(None);
    }
    let parts: Vec<(String, String)> = sqlx::query_as("SELECT part, lsn FROM _tributary_frontier").fetch_all(connection).await?;
    Ok(shares::held(&parts, range))
}

/// Makes and changes what has to be. Answers the statements that make the missing indexes.
pub(super) async fn ensure(
    connection: &mut SqliteConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<Vec<String>, Error> {
    let failed = |error| classify(target, error);
    let planned = plans(&mut *connection, target, shapes, entities).await?;
    let mut indexes = Vec::new();
    if planned.iter().all(|(_, _, plan)| *plan == Plan { meanwhile: plan.meanwhile.clone(), ..Plan::default() }) {
        return Ok(indexes);
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    // Once more, now that nobody else can change it.
    for (info, version, plan) in plans(&mut transaction, target, shapes, entities).await? {
        if plan.creates {
            // What the frontier says of this entity, if there is one, is not so.
            sqlx::query("DELETE FROM _tributary_frontier").execute(&mut *transaction).await.map_err(failed)?;
        }
        for statement in &plan.statements {
            tracing::info!(target, entity = &*info.name, statement, "the sink's table is changed");
            sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut *transaction).await.map_err(failed)?;
        }
        let filled = plan.leaves_filled();
        if let Some(record) = &plan.record {
            let insert = "INSERT INTO _tributary_shape (entity, version, shape, statements, filled) VALUES (?1, ?2, ?3, ?4, ?5)";
            let (shape, statements) = (sql::recorded_text(target, record)?, plan.statements.join(";\n"));
            let insert = sqlx::query(insert).bind(&*info.name).bind(version + 1).bind(shape).bind(statements).bind(filled);
            insert.execute(&mut *transaction).await.map_err(failed)?;
        } else if !filled {
            let unfilled = "UPDATE _tributary_shape SET filled = 0 WHERE entity = ?1 AND version = ?2";
            sqlx::query(unfilled).bind(&*info.name).bind(version).execute(&mut *transaction).await.map_err(failed)?;
        }
        indexes.extend(plan.indexes);
    }
    transaction.commit().await.map_err(failed)?;
    Ok(indexes)
}

/// How many of the tables are there, and what would be done to them.
pub(super) async fn look(
    connection: &mut SqliteConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<(usize, Vec<String>), Error> {
    Ok(sql::summary(&plans(connection, target, shapes, entities).await?))
}

/// What has to be done, by entity, with the version of the shape on record.
async fn plans(
    connection: &mut SqliteConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<Vec<Planned>, Error> {
    let found = found(connection).await.map_err(|error| classify(target, error))?;
    let mut recorded: HashMap<String, (i32, Recorded)> = HashMap::new();
    if found.contains_key("_tributary_shape") {
        let all = "SELECT entity, version, shape FROM _tributary_shape ORDER BY entity, version";
        // The latest of an entity comes last.
        for row in sqlx::query(all).fetch_all(&mut *connection).await.map_err(|error| classify(target, error))? {
            recorded.insert(row.get(0), (row.get(1), sql::recorded(target, row.get(2))?));
        }
    }
    sql::plans(target, Dialect::Sqlite, shapes, entities, &recorded, &found)
}

/// All tables of the file.
async fn found(connection: &mut SqliteConnection) -> Result<BTreeMap<String, Found>, sqlx::Error> {
    let mut tables: BTreeMap<String, Found> = BTreeMap::new();
    let columns = "SELECT s.name, c.name, c.type, c.\"notnull\" AND c.dflt_value IS NULL FROM sqlite_schema AS s \
                   JOIN pragma_table_xinfo(s.name) AS c WHERE s.type IN ('table', 'view') ORDER BY s.name, c.cid";
    for row in sqlx::query(columns).fetch_all(&mut *connection).await? {
        let column = FoundColumn { name: row.get(1), type_name: row.get(2), required: row.get(3) };
        tables.entry(row.get(0)).or_default().columns.push(column);
    }
    let indexes = "SELECT tbl_name, name FROM sqlite_schema WHERE type = 'index' AND substr(name, 1, length(?1)) = ?1";
    for row in sqlx::query(indexes).bind(INDEX_PREFIX).fetch_all(connection).await? {
        tables.entry(row.get(0)).or_default().indexes.push(row.get(1));
    }
    Ok(tables)
}
