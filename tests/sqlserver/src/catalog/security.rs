//! Users, roles and permissions of one database.

use rusqlite::{Connection, OptionalExtension};

use super::Object;

/// The database's user of a login. `sa` is dbo everywhere.
pub(crate) fn user_of(db: &Connection, login: &str) -> rusqlite::Result<Option<(i64, String)>> {
    db.prepare_cached("SELECT principal_id, name FROM \"~principals\" WHERE login = ?1 AND type = 'S'")?
        .query_row([login], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()
}

/// The user's roles, and public.
pub(crate) fn roles_of(db: &Connection, user: i64) -> rusqlite::Result<Vec<(i64, String)>> {
    db.prepare_cached(
        "WITH RECURSIVE r(id) AS (SELECT 0 UNION SELECT role_id FROM \"~members\" WHERE member_id = ?1 UNION SELECT m.role_id FROM \"~members\" m JOIN r ON m.member_id = r.id) \
         SELECT p.principal_id, p.name FROM r JOIN \"~principals\" p ON p.principal_id = r.id",
    )?
    .query_map([user], |r| Ok((r.get(0)?, r.get(1)?)))?
    .collect()
}

/// Whether the user may do this: `object` is `None` for permissions on the database.
pub(crate) fn allowed(db: &Connection, user: i64, permission: &str, object: Option<&Object>) -> rusqlite::Result<bool> {
    if user == 1 {
        return Ok(true);
    }
    let roles = roles_of(db, user)?;
    let in_role = |name: &str| roles.iter().any(|(_, n)| n == name);
    let denied_by_role = (permission == "SELECT" && in_role("db_denydatareader"))
        || (matches!(permission, "INSERT" | "UPDATE" | "DELETE") && in_role("db_denydatawriter"));
    let mut granted = in_role("db_owner")
        || (permission == "SELECT" && in_role("db_datareader"))
        || (matches!(permission, "INSERT" | "UPDATE" | "DELETE") && in_role("db_datawriter"))
        || (matches!(permission, "ALTER" | "CREATE TABLE") && in_role("db_ddladmin"));
    let mut denied = denied_by_role && !in_role("db_owner");
    let schema_id: i64 = match object {
        Some(o) => db
            .prepare_cached("SELECT schema_id FROM \"~schemas\" WHERE name = ?1")?
            .query_row([&o.schema], |r| r.get(0))
            .optional()?
            .unwrap_or(0),
        None => 0,
    };
    let object_id = object.map_or(0, |o| o.object_id);
    let grantees = roles.iter().map(|(id, _)| *id).chain([user]);
    for grantee in grantees {
        let mut statement = db.prepare_cached(
            "SELECT state FROM \"~permissions\" WHERE grantee = ?1 AND permission IN (?2, 'CONTROL') AND ((class = 'DATABASE') OR (class = 'SCHEMA' AND major_id = ?3) OR (class = 'OBJECT' AND major_id = ?4))",
        )?;
        let mut rows = statement.query((grantee, permission, schema_id, object_id))?;
        while let Some(row) = rows.next()? {
            match row.get::<_, String>(0)?.as_str() {
                "D" => denied = true,
                _ => granted = true,
            }
        }
    }
    Ok(granted && !denied)
}
