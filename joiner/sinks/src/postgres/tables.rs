//! The entities' tables: what the catalog says of them, and bringing them to what is wanted.
//!
//! All tables are looked at and changed in one transaction, under a lock of the schema, so that two that start at once do it one after the other, and a change that fails leaves nothing half done. A lock that others hold on a
//! table is waited for shortly and then later again, because everybody else would wait behind us meanwhile. Indexes are made concurrently, which holds up nobody, on a connection of their own; one that was cut short is found
//! invalid, dropped, and made again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use tokio_postgres::{Client, GenericClient, Transaction};

use super::fault::{classify, describe, is_about_data};
use crate::sql::ddl::{Found, FoundColumn, Recorded};
use crate::sql::kind::Dialect;
use crate::sql::shape::{INDEX_PREFIX, Shapes};
use crate::sql::{self, Planned};
use crate::{Error, shares};

const LOCK_LIMIT: &str = "SET LOCAL lock_timeout = '5s'";
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '/_tributary_shape', 0))";

/// Makes and changes what has to be, and takes the share. Answers the statements that make the missing indexes, and what is said of the share.
pub(super) async fn ensure(
    client: &mut Client,
    target: &str,
    schema: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
    range: KeyRange,
) -> Result<(Vec<String>, Lsn), Error> {
    let failed = |error| classify(target, &error);
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.batch_execute(&format!("{LOCK_LIMIT}; {LOCK}")).await.map_err(failed)?;
    let mut indexes = Vec::new();
    for (info, version, plan) in plans(&transaction, target, schema, shapes, entities).await? {
        if plan.creates {
            // What the frontier says of this entity, if there is one, is not so.
            transaction.batch_execute("DELETE FROM _tributary_frontier").await.map_err(failed)?;
        }
        for statement in &plan.statements {
            tracing::info!(target, entity = &*info.name, statement, "the sink's table is changed");
            transaction.batch_execute(statement).await.map_err(failed)?;
        }
        if let Some(record) = &plan.record {
            let shape = sql::recorded_text(target, record)?;
            let insert = "INSERT INTO _tributary_shape (entity, version, shape, statements, filled) VALUES ($1, $2, $3, $4, $5)";
            let filled = plan.leaves_filled();
            let statements = plan.statements.join(";\n");
            transaction.execute(insert, &[&&*info.name, &(version + 1), &shape, &statements, &filled]).await.map_err(failed)?;
        } else if !plan.leaves_filled() {
            let unfilled = "UPDATE _tributary_shape SET filled = false, filled_by = NULL WHERE entity = $1 AND version = $2";
            transaction.execute(unfilled, &[&&*info.name, &version]).await.map_err(failed)?;
        }
        indexes.extend(plan.indexes);
    }
    let said = take_share(&transaction, range).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok((indexes, said))
}

/// Makes an entry of the range, if there is none. Others who write frontiers are waited for, and the lock keeps those away who would take shares.
async fn take_share(transaction: &Transaction<'_>, range: KeyRange) -> Result<Lsn, tokio_postgres::Error> {
    let parts = transaction.query("SELECT part, lsn FROM _tributary_frontier FOR UPDATE", &[]).await?;
    let parts: Vec<(String, String)> = parts.iter().map(|row| (row.get(0), row.get(1))).collect();
    if let Some(taken) = shares::take(&parts, range) {
        transaction.execute("DELETE FROM _tributary_frontier", &[]).await?;
        for (part, lsn) in taken {
            let insert = "INSERT INTO _tributary_frontier (part, lsn) VALUES ($1, $2)";
            transaction.execute(insert, &[&part, &lsn.to_string()]).await?;
        }
    }
    Ok(shares::held(&parts, range).unwrap_or(Lsn::ZERO))
}

/// How many of the tables are there, and what would be done to them.
pub(super) async fn look(
    client: &Client,
    target: &str,
    schema: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<(usize, Vec<String>), Error> {
    let plans = plans(client, target, schema, shapes, entities).await?;
    let changed: Vec<&str> =
        plans.iter().filter(|(_, _, plan)| !plan.creates && !plan.statements.is_empty()).map(|(info, ..)| &*info.name).collect();
    let owned = "SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = ANY($2) AND NOT pg_has_role(c.relowner, 'USAGE')";
    let foreign = client.query(owned, &[&schema, &changed]).await.map_err(|error| classify(target, &error))?;
    if let Some(row) = foreign.first() {
        let message = format!("the table {:?} is to be changed, and belongs to another role", row.get::<_, String>(0));
        return Err(Error::misconfigured(target, message, "Make the sink's user its owner, or a member of the role that is"));
    }
    let names: Vec<&str> = entities.iter().map(|info| &*info.name).collect();
    let closed = "SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1 \
                  AND (c.relname = ANY($2) OR c.relname LIKE '\\_tributary\\_%') AND c.relkind IN ('r', 'p') AND NOT \
                  (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))";
    let closed = client.query(closed, &[&schema, &names]).await.map_err(|error| classify(target, &error))?;
    if let Some(row) = closed.first() {
        let message = format!("the user may not read and write the table {:?}", row.get::<_, String>(0));
        return Err(Error::misconfigured(target, message, "Grant it SELECT, INSERT, UPDATE and DELETE on the schema's tables"));
    }
    Ok(sql::summary(&plans))
}

/// What has to be done, by entity, with the version of the shape on record.
async fn plans(
    client: &impl GenericClient,
    target: &str,
    schema: &str,
    shapes: &Shapes,
    entities: &[EntityInfo],
) -> Result<Vec<Planned>, Error> {
    let recorded = recorded(client, target).await?;
    let mut names: BTreeSet<String> = BTreeSet::new();
    for info in entities {
        names.insert(info.name.to_string());
        names.extend(shapes.of(&info.name).children.iter().map(|child| child.table.name.clone()));
        names.extend(recorded.get(&*info.name).into_iter().flat_map(|(_, recorded)| recorded.children().cloned()));
    }
    let found = found(client, schema, &names.into_iter().collect::<Vec<_>>()).await.map_err(|error| classify(target, &error))?;
    sql::plans(target, Dialect::Postgres, shapes, entities, &recorded, &found)
}

async fn recorded(client: &impl GenericClient, target: &str) -> Result<HashMap<String, (i32, Recorded)>, Error> {
    let failed = |error| classify(target, &error);
    let known = client.query_one("SELECT to_regclass('_tributary_shape') IS NOT NULL", &[]).await.map_err(failed)?;
    if !known.get::<_, bool>(0) {
        return Ok(HashMap::new());
    }
    let latest = "SELECT DISTINCT ON (entity) entity, version, shape FROM _tributary_shape ORDER BY entity, version DESC";
    let rows = client.query(latest, &[]).await.map_err(failed)?;
    rows.iter().map(|row| Ok((row.get(0), (row.get(1), sql::recorded(target, row.get(2))?)))).collect()
}

async fn found(
    client: &impl GenericClient,
    schema: &str,
    names: &[String],
) -> Result<BTreeMap<String, Found>, tokio_postgres::Error> {
    let mut tables: BTreeMap<String, Found> = BTreeMap::new();
    let columns = "SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), \
                   a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                   JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE n.nspname = $1 AND c.relname = ANY($2) \
                   AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum";
    for row in client.query(columns, &[&schema, &names]).await? {
        let column = FoundColumn { name: row.get(1), type_name: row.get(2), required: row.get(3) };
        tables.entry(row.get(0)).or_default().columns.push(column);
    }
    let indexes = "SELECT t.relname::text, i.relname::text, x.indisvalid FROM pg_index AS x JOIN pg_class AS i ON i.oid = x.indexrelid \
                   JOIN pg_class AS t ON t.oid = x.indrelid JOIN pg_namespace AS n ON n.oid = t.relnamespace \
                   WHERE n.nspname = $1 AND t.relname = ANY($2) AND left(i.relname::text, length($3)) = $3";
    for row in client.query(indexes, &[&schema, &names, &INDEX_PREFIX]).await? {
        let table = tables.entry(row.get(0)).or_default();
        let usable: bool = row.get(2);
        if usable { table.indexes.push(row.get(1)) } else { table.broken_indexes.push(row.get(1)) }
    }
    Ok(tables)
}

/// Each by itself, waiting as long as it takes. An index that the rows do not allow (a text that is too long for it) is left out and said, because the rows count for more.
pub(super) async fn make_indexes(client: &Client, target: &str, statements: &[String]) -> Result<(), Error> {
    for statement in statements {
        tracing::info!(target, statement, "an index of the sink is made");
        match client.batch_execute(statement).await {
            Err(error) if is_about_data(&error) => {
                tracing::warn!(target, statement, error = describe(&error), "the rows do not allow this index");
            }
            made => made.map_err(|error| classify(target, &error))?,
        }
    }
    Ok(())
}
