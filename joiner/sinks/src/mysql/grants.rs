//! What the sink's user may do in its database, as far as the server tells: for `tributary check`, which changes nothing and so cannot try.
//!
//! `SHOW GRANTS` says it, with what roles bring that are active, as they are in each session of a user whose default they are: MariaDB by itself, MySQL where it is told for which roles. Grants to single tables are not looked through: who
//! has such is taken at its word.

use std::collections::BTreeSet;

use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Error, Row};

use super::fault::classify;
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

/// Says what the user is not granted of what it takes to do what is planned, and to write.
pub(super) async fn check(connection: &mut MySqlConnection, target: &str, plans: &[Planned]) -> Result<(), crate::Error> {
    let granted = Granted::of(connection).await.map_err(|error| classify(target, &error))?;
    let missing: Vec<&str> = needed(plans).into_iter().filter(|privilege| !granted.has(privilege)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let privileges = missing.join(", ");
    let message = format!("the user is not granted {privileges} on the database, which the sink's tables take");
    let role = if granted.has_idle_roles() { ", or make a role that has that the user's default (SET DEFAULT ROLE)" } else { "" };
    Err(crate::Error::misconfigured(target, message, format!("GRANT {privileges} ON the database TO the user{role}")))
}

/// What the session may do.
struct Granted {
    database: String,
    rows: Vec<String>,
    /// A role of the user's is active.
    in_role: bool,
}

impl Granted {
    async fn of(connection: &mut MySqlConnection) -> Result<Self, Error> {
        // MySQL before 8.0 has no roles, and does not know the function.
        let role = sqlx::query("SELECT CURRENT_ROLE()").fetch_one(&mut *connection).await;
        let role = role.ok().and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten()).filter(|role| role != "NONE");
        let show = match &role {
            // MySQL quotes the names of roles, as its grammar wants them; MariaDB does neither.
            Some(roles) if roles.starts_with('`') => format!("SHOW GRANTS FOR CURRENT_USER() USING {roles}"),
            _ => "SHOW GRANTS".to_owned(),
        };
        let rows = sqlx::query_scalar(AssertSqlSafe(show)).fetch_all(&mut *connection).await?;
        let database = sqlx::query_scalar("SELECT database()").fetch_one(connection).await?;
        Ok(Self { database, rows, in_role: role.is_some() })
    }

    fn grants(&self) -> impl Iterator<Item = Grant<'_>> {
        self.rows.iter().filter_map(|row| Grant::parse(row))
    }

    fn has(&self, privilege: &str) -> bool {
        self.grants().any(|grant| grant.gives(privilege, &self.database) || grant.is_of_a_table_in(&self.database))
    }

    fn has_idle_roles(&self) -> bool {
        !self.in_role && self.grants().any(|grant| grant == Grant::Role)
    }
}

/// A row of `SHOW GRANTS`.
#[derive(Debug, PartialEq, Eq)]
enum Grant<'a> {
    Role,
    /// On what a database's name is like, or on a table there.
    On {
        privileges: &'a str,
        database: &'a str,
        is_table: bool,
    },
}

impl<'a> Grant<'a> {
    /// `None`: it is about something else.
    fn parse(row: &'a str) -> Option<Self> {
        let granted = row.strip_prefix("GRANT ")?;
        let Some((privileges, on)) = granted.split_once(" ON ") else { return Some(Self::Role) };
        let (object, _) = on.split_once(" TO ")?;
        if object == "*.*" {
            return Some(Self::On { privileges, database: "%", is_table: false });
        }
        let (database, below) = object.strip_prefix('`')?.split_once("`.")?;
        Some(Self::On { privileges, database, is_table: below != "*" })
    }

    fn gives(&self, needed: &str, to: &str) -> bool {
        match self {
            Self::On { privileges, database, is_table: false } => {
                let has = privileges.split(", ").any(|one| one == needed || one == "ALL PRIVILEGES");
                has && is_like(to.as_bytes(), database.as_bytes())
            }
            _ => false,
        }
    }

    fn is_of_a_table_in(&self, of: &str) -> bool {
        matches!(self, Self::On { database, is_table: true, .. } if *database == of)
    }
}

/// A database's name may stand for several: `%` for any text, `_` for any character, behind a backslash each for itself.
fn is_like(name: &[u8], pattern: &[u8]) -> bool {
    match (name, pattern) {
        (_, [b'%', rest @ ..]) => (0..=name.len()).any(|from| is_like(&name[from..], rest)),
        ([one, name @ ..], [b'\\', escaped, rest @ ..]) => one == escaped && is_like(name, rest),
        ([_, name @ ..], [b'_', rest @ ..]) => is_like(name, rest),
        ([one, name @ ..], [other, rest @ ..]) => one == other && is_like(name, rest),
        (name, pattern) => name.is_empty() && pattern.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As MySQL 8 and MariaDB show them.
    #[test]
    fn rows_of_grants_say_what_is_granted_where() {
        let gives = |row: &str, needed: &str| Grant::parse(row).unwrap().gives(needed, "shop_1");
        assert!(gives("GRANT ALL PRIVILEGES ON *.* TO `u`@`%` WITH GRANT OPTION", "DROP"));
        assert!(gives("GRANT SELECT, CREATE, ALTER ON `shop\\_1`.* TO `u`@`%`", "ALTER"));
        assert!(gives("GRANT DROP ON `sh%`.* TO 'u'@'%'", "DROP") && gives("GRANT DROP ON `shop__`.* TO 'u'@'%'", "DROP"));
        assert!(!gives("GRANT SELECT ON `shop_1`.* TO `u`@`%`", "INSERT"));
        assert!(!gives("GRANT CREATE TEMPORARY TABLES, CREATE VIEW ON `shop_1`.* TO `u`@`%`", "CREATE"));
        assert!(!gives("GRANT ALL PRIVILEGES ON `shop\\_2`.* TO `u`@`%`", "SELECT"));
        assert!(!gives("GRANT ALL PRIVILEGES ON `shop\\_%x`.* TO `u`@`%`", "SELECT"));
        assert!(!gives("GRANT INSERT (`a`) ON `shop_1`.`orders` TO `u`@`%`", "INSERT"));
        let of_a_table = Grant::parse("GRANT SELECT ON `shop_1`.`orders` TO `u`@`%`").unwrap();
        assert!(of_a_table.is_of_a_table_in("shop_1") && !of_a_table.is_of_a_table_in("shop_2"));
        assert_eq!(Grant::parse("GRANT `writer`@`%` TO `u`@`%`"), Some(Grant::Role));
        for other in [
            "GRANT EXECUTE ON PROCEDURE `shop_1`.`p` TO `u`@`%`",
            "SET DEFAULT ROLE `w` FOR `u`@`%`",
            "REVOKE DROP ON `x`.* FROM `u`@`%`",
        ] {
            assert_eq!(Grant::parse(other), None, "{other}");
        }
    }
}
