//! What the sink's user may do in its database, as far as the catalog tells: for `tributary check`, which changes nothing and so cannot try.
//!
//! Grants by way of a role, or to single tables, are not looked through: who has such is taken at its word.

use std::collections::BTreeSet;

use sqlx::mysql::MySqlConnection;
use sqlx::{Error, Row};

use crate::sql::Planned;

/// What every start and every write needs; ALTER brings our own tables up to date.
const ALWAYS: [&str; 6] = ["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER"];

/// What it takes to do what is planned.
fn needed(plans: &[Planned]) -> BTreeSet<&'static str> {
    let mut needed = BTreeSet::from(ALWAYS);
    for statement in plans.iter().flat_map(|(_, _, plan)| plan.described()) {
        let parts = [("DROP TABLE", "DROP"), ("CREATE INDEX", "INDEX"), ("DROP INDEX", "INDEX"), ("REFERENCES", "REFERENCES")];
        needed.extend(parts.into_iter().filter(|(part, _)| statement.contains(part)).map(|(_, privilege)| privilege));
    }
    needed
}

/// What of it the user is not granted.
pub(super) async fn missing(connection: &mut MySqlConnection, plans: &[Planned]) -> Result<Vec<&'static str>, Error> {
    // MySQL before 8.0 has no roles, and does not know the function.
    let role = sqlx::query("SELECT CURRENT_ROLE()").fetch_one(&mut *connection).await;
    let role = role.ok().and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten());
    if role.is_some_and(|role| role != "NONE") {
        return Ok(Vec::new());
    }
    let user = "CONCAT('\\'', REPLACE(CURRENT_USER(), '@', '\\'@\\''), '\\'')";
    let granted = format!(
        "SELECT CAST(privilege_type AS CHAR) FROM information_schema.user_privileges WHERE grantee = {user} \
         UNION SELECT CAST(privilege_type AS CHAR) FROM information_schema.schema_privileges WHERE grantee = {user} AND database() LIKE table_schema \
         UNION SELECT 'of a table' FROM information_schema.table_privileges WHERE grantee = {user} AND database() LIKE table_schema"
    );
    let granted: BTreeSet<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(granted)).fetch_all(connection).await?.into_iter().collect();
    if granted.contains("of a table") {
        return Ok(Vec::new());
    }
    Ok(needed(plans).into_iter().filter(|privilege| !granted.contains(*privilege)).collect())
}
