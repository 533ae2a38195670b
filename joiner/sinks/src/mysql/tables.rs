//! The entities' tables: what the catalog says of them, and bringing them to what is wanted.
//!
//! Statements that change tables commit by themselves here, and cannot be taken back. So what would be wrong without them comes first: a frontier that speaks of a table which is to be made goes, and it is put on record what may be
//! there from now on, and whether something is to be filled. Cut short anywhere, the next look finds what is there, and goes on. Two that start at once take turns by a lock of the server.

use std::collections::{BTreeMap, HashMap};

use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use super::fault::{classify, describe, is_about_data};
use super::grants;
use crate::sql::ddl::{Found, FoundColumn, Plan, Recorded};
use crate::sql::kind::Dialect;
use crate::sql::shape::{INDEX_PREFIX, Shapes};
use crate::sql::{self, Planned};
use crate::{Error, shares};

const LOCK: &str = "SELECT GET_LOCK(CONCAT('tributary.', LEFT(database(), 50)), 30)";
const UNLOCK: &str = "SELECT RELEASE_LOCK(CONCAT('tributary.', LEFT(database(), 50)))";

/// Makes and changes what has to be, and takes the share. Answers the statements that make the missing indexes, and what is said of the share. The lock goes with the connection, should this fail, and so does the short patience with others who hold a table.
pub(super) async fn ensure(
    connection: &mut MySqlConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
    range: KeyRange,
) -> Result<(Vec<String>, Lsn), Error> {
    let failed = |error| classify(target, &error);
    let locked = sqlx::query(LOCK).fetch_one(&mut *connection).await.map_err(failed)?;
    if locked.get::<Option<i64>, _>(0) != Some(1) {
        return Err(Error::unavailable(target, "another Tributary is changing its tables"));
    }
    sqlx::query("SET SESSION lock_wait_timeout = 5").execute(&mut *connection).await.map_err(failed)?;
    let mut indexes = Vec::new();
    for (info, version, plan) in plans(connection, target, shapes, entities).await? {
        apply(connection, &info, version, &plan, target).await?;
        let floor = sqlx::query("INSERT IGNORE INTO _tributary_floor (entity, lsn) VALUES (?, '')").bind(&*info.name);
        floor.execute(&mut *connection).await.map_err(failed)?;
        indexes.extend(plan.indexes);
    }
    let said = take_share(connection, range).await.map_err(failed)?;
    sqlx::query("SET SESSION lock_wait_timeout = DEFAULT").execute(&mut *connection).await.map_err(failed)?;
    sqlx::query(UNLOCK).fetch_one(connection).await.map_err(failed)?;
    Ok((indexes, said))
}

/// Makes an entry of the range, if there is none. Others who write frontiers are waited for, and the lock keeps those away who would take shares.
async fn take_share(connection: &mut MySqlConnection, range: KeyRange) -> Result<Lsn, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let parts = sqlx::query_as("SELECT part, lsn FROM _tributary_frontier FOR UPDATE");
    let parts: Vec<(String, String)> = parts.fetch_all(&mut *transaction).await?;
    if let Some(taken) = shares::take(&parts, range) {
        sqlx::query("DELETE FROM _tributary_frontier").execute(&mut *transaction).await?;
        for (part, lsn) in taken {
            let insert = sqlx::query("INSERT INTO _tributary_frontier (part, lsn) VALUES (?, ?)");
            insert.bind(part).bind(lsn.to_string()).execute(&mut *transaction).await?;
        }
    }
    transaction.commit().await?;
    Ok(shares::held(&parts, range).unwrap_or(Lsn::ZERO))
}

async fn apply(
    connection: &mut MySqlConnection,
    info: &EntityInfo,
    version: i32,
    plan: &Plan,
    target: &str,
) -> Result<(), Error> {
    let failed = |error| classify(target, &error);
    if plan.creates {
        sqlx::query("DELETE FROM _tributary_frontier").execute(&mut *connection).await.map_err(failed)?;
    }
    let filled = plan.leaves_filled();
    if plan.record.is_some() {
        let insert = "INSERT INTO _tributary_shape (entity, version, shape, statements, filled) VALUES (?, ?, ?, ?, ?)";
        let (shape, statements) = (sql::recorded_text(target, &plan.meanwhile)?, plan.statements.join(";\n"));
        let insert = sqlx::query(insert).bind(&*info.name).bind(version + 1).bind(shape).bind(statements).bind(filled);
        insert.execute(&mut *connection).await.map_err(failed)?;
    } else if !filled {
        let unfilled = "UPDATE _tributary_shape SET filled = 0, filled_by = NULL WHERE entity = ? AND version = ?";
        sqlx::query(unfilled).bind(&*info.name).bind(version).execute(&mut *connection).await.map_err(failed)?;
    }
    for statement in &plan.statements {
        tracing::info!(target, entity = &*info.name, statement, "the sink's table is changed");
        sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut *connection).await.map_err(failed)?;
    }
    if let Some(record) = &plan.record {
        let done = "UPDATE _tributary_shape SET shape = ? WHERE entity = ? AND version = ?";
        let done = sqlx::query(done).bind(sql::recorded_text(target, record)?).bind(&*info.name).bind(version + 1);
        done.execute(connection).await.map_err(failed)?;
    }
    Ok(())
}

/// How many of the tables are there, and what would be done to them.
pub(super) async fn look(
    connection: &mut MySqlConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<(usize, Vec<String>), Error> {
    let plans = match plans(connection, target, shapes, entities).await {
        Ok(plans) => plans,
        Err(error) => {
            // To look at the tables takes some of it already.
            grants::check(connection, target, &[]).await?;
            return Err(error);
        }
    };
    grants::check(connection, target, &plans).await?;
    Ok(sql::summary(&plans))
}

/// What has to be done, by entity, with the version of the shape on record.
async fn plans(
    connection: &mut MySqlConnection,
    target: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<Vec<Planned>, Error> {
    let failed = |error| classify(target, &error);
    let mut found = found(connection).await.map_err(failed)?;
    let recorded = recorded(connection, target, found.contains_key("_tributary_shape")).await?;
    for info in entities {
        let shape = shapes.of(&info.name);
        let known = recorded.get(&*info.name).into_iter().flat_map(|(_, recorded)| recorded.children());
        for name in shape.children.iter().map(|child| &child.table.name).chain(known).chain([&shape.table.name]) {
            if !found.contains_key(name) && is_there(connection, target, name).await? {
                found = self::found(connection).await.map_err(failed)?;
            }
            if !found.contains_key(name) && is_there(connection, target, name).await? {
                return Err(Error::unavailable(target, format!("the table {name:?} is being altered")));
            }
        }
    }
    sql::plans(target, Dialect::Mysql, shapes, entities, &recorded, &found)
}

async fn recorded(
    connection: &mut MySqlConnection,
    target: &str,
    there: bool,
) -> Result<HashMap<String, (i32, Recorded)>, Error> {
    if !there {
        return Ok(HashMap::new());
    }
    let all = "SELECT entity, version, shape FROM _tributary_shape ORDER BY entity, version";
    let rows = sqlx::query(all).fetch_all(connection).await.map_err(|error| classify(target, &error))?;
    // The latest of an entity comes last.
    rows.iter().map(|row| Ok((row.get(0), (row.get(1), sql::recorded(target, row.get(2))?)))).collect()
}

/// All tables of the database.
async fn found(connection: &mut MySqlConnection) -> Result<BTreeMap<String, Found>, sqlx::Error> {
    let mut tables: BTreeMap<String, Found> = BTreeMap::new();
    let columns = "SELECT CAST(table_name AS CHAR), CAST(column_name AS CHAR), CAST(column_type AS CHAR), \
                   CAST(is_nullable = 'NO' AND column_default IS NULL AND extra NOT LIKE '%auto_increment%' AND extra NOT LIKE '%GENERATED%' AS SIGNED) \
                   FROM information_schema.columns WHERE table_schema = database() ORDER BY table_name, ordinal_position";
    for row in sqlx::query(columns).fetch_all(&mut *connection).await? {
        let column = FoundColumn { name: row.get(1), type_name: row.get(2), required: row.get::<i64, _>(3) != 0 };
        tables.entry(row.get(0)).or_default().columns.push(column);
    }
    let indexes = "SELECT DISTINCT CAST(table_name AS CHAR), CAST(index_name AS CHAR) FROM information_schema.statistics \
                   WHERE table_schema = database() AND LEFT(index_name, CHAR_LENGTH(?)) = ?";
    for row in sqlx::query(indexes).bind(INDEX_PREFIX).bind(INDEX_PREFIX).fetch_all(connection).await? {
        if let Some(table) = tables.get_mut(row.get::<&str, _>(0)) {
            table.indexes.push(row.get(1));
        }
    }
    Ok(tables)
}

/// Whether a table that the catalog does not know is there all the same: it leaves out one that is being altered for a moment, and who took it for gone would load everything anew. Waits for that moment to pass.
async fn is_there(connection: &mut MySqlConnection, target: &str, name: &str) -> Result<bool, Error> {
    let ask = format!("SELECT 1 FROM {} LIMIT 0", sql::quote_in(Dialect::Mysql, name));
    match sqlx::query(AssertSqlSafe(ask)).execute(connection).await {
        Ok(_) => Ok(true),
        Err(error) if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("42S02") => Ok(false),
        Err(error) => Err(classify(target, &error)),
    }
}

/// Each by itself; InnoDB makes them while others read and write. An index that the rows do not allow is left out and said, because the rows count for more.
pub(super) async fn make_indexes(connection: &mut MySqlConnection, target: &str, statements: &[String]) -> Result<(), Error> {
    for statement in statements {
        tracing::info!(target, statement, "an index of the sink is made");
        match sqlx::query(AssertSqlSafe(statement.as_str())).execute(&mut *connection).await {
            Err(error) if is_about_data(&error) => {
                tracing::warn!(target, statement, error = describe(&error), "the rows do not allow this index");
            }
            made => {
                made.map_err(|error| classify(target, &error))?;
            }
        }
    }
    Ok(())
}
