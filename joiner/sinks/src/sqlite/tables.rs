//! The entities' tables: what the schema says of them, and bringing them to what is wanted, in one transaction.

use std::collections::{BTreeMap, HashMap};

use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use super::classify;
use crate::sql::ddl::{Found, FoundColumn, Plan, Recorded};
use crate::sql::kind::Dialect;
use crate::sql::shape::{INDEX_PREFIX, Shapes};
use crate::sql::{self, Planned};
use crate::{Error, shares};

/// Makes and changes what has to be, and takes the share. Answers the statements that make the missing indexes, and what is said of the share.
pub(super) async fn ensure(
    connection: &mut SqliteConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
    range: KeyRange,
) -> Result<(Vec<String>, Lsn), Error> {
    let failed = |error| classify(target, error);
    let planned = plans(&mut *connection, target, shapes, entities).await?;
    let parts = parts(&mut *connection).await.map_err(failed)?;
    let as_wanted = planned.iter().all(|(_, _, plan)| *plan == Plan { meanwhile: plan.meanwhile.clone(), ..Plan::default() });
    if as_wanted && shares::take(&parts, range).is_none() {
        return Ok((Vec::new(), shares::held(&parts, range).unwrap_or(Lsn::ZERO)));
    }
    let mut indexes = Vec::new();
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
            let unfilled = "UPDATE _tributary_shape SET filled = 0, filled_by = NULL WHERE entity = ?1 AND version = ?2";
            sqlx::query(unfilled).bind(&*info.name).bind(version).execute(&mut *transaction).await.map_err(failed)?;
        }
        indexes.extend(plan.indexes);
    }
    let said = take_share(&mut transaction, range).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok((indexes, said))
}

async fn parts(connection: &mut SqliteConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as("SELECT part, lsn FROM _tributary_frontier").fetch_all(connection).await
}

/// Makes an entry of the range, if there is none.
async fn take_share(connection: &mut SqliteConnection, range: KeyRange) -> Result<Lsn, sqlx::Error> {
    let parts = parts(&mut *connection).await?;
    if let Some(taken) = shares::take(&parts, range) {
        sqlx::query("DELETE FROM _tributary_frontier").execute(&mut *connection).await?;
        for (part, lsn) in taken {
            let insert = sqlx::query("INSERT INTO _tributary_frontier (part, lsn) VALUES (?1, ?2)");
            insert.bind(part).bind(lsn.to_string()).execute(&mut *connection).await?;
        }
    }
    Ok(shares::held(&parts, range).unwrap_or(Lsn::ZERO))
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
