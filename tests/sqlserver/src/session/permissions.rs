//! Who may do what, and the statements that say so.

use tds::SqlError;

use super::operations_views::msdb_table;
use super::{Link, Session, fault};
use crate::catalog::{self, Object, same, security};
use crate::message;
use crate::parse::{Droppable, Security};
use crate::server::{DISABLED, LoginEntry};

/// Any of them shows the server's state.
const SERVER_STATE: [&str; 3] = ["VIEW SERVER STATE", "VIEW SERVER PERFORMANCE STATE", "CONTROL SERVER"];

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn sqlite(e: rusqlite::Error) -> SqlError {
    fault::from_sqlite(&e)
}

impl Session {
    pub(super) fn permitted(&self, database: &str, permission: &str, object: Option<&Object>) -> Result<bool, SqlError> {
        if self.sysadmin {
            return Ok(true);
        }
        let Some((user, _)) = self.user(database)? else { return Ok(false) };
        self.with(database, |l| security::allowed(&l.db, user, permission, object).map_err(sqlite))
    }

    pub(super) fn require_sysadmin(&self, what: &str) -> Result<(), SqlError> {
        if self.sysadmin {
            return Ok(());
        }
        Err(message::error(262, 14, format!("{what} permission denied in database 'master'.")))
    }

    pub(super) fn require_ddl(&self, database: &str) -> Result<(), SqlError> {
        if self.permitted(database, "CREATE TABLE", None)? || self.permitted(database, "ALTER", None)? {
            return Ok(());
        }
        Err(message::error(262, 14, format!("CREATE TABLE permission denied in database '{database}'.")))
    }

    /// db_owner, as the procedures of change data capture want.
    pub(super) fn require_owner(&self, database: &str) -> Result<(), SqlError> {
        let owner = self.sysadmin
            || match self.user(database)? {
                Some((1, _)) => true,
                Some((user, _)) => {
                    self.with(database, |l| security::roles_of(&l.db, user).map_err(sqlite))?.iter().any(|(_, r)| r == "db_owner")
                }
                None => false,
            };
        if owner {
            Ok(())
        } else {
            Err(message::error(
                22_904,
                16,
                "Caller is not authorized to initiate the requested action. DBO privileges are required.".into(),
            ))
        }
    }

    pub(super) fn require_server_state(&self) -> Result<(), SqlError> {
        if self.has_server_permission(&SERVER_STATE) {
            Ok(())
        } else {
            Err(message::error(300, 14, "VIEW SERVER STATE permission was denied on object 'server', database 'master'.".into()))
        }
    }

    pub(super) fn has_server_permission(&self, any_of: &[&str]) -> bool {
        self.sysadmin || self.shared.login(&self.login).is_some_and(|l| l.roles.iter().any(|r| any_of.contains(&r.as_str())))
    }

    pub(super) fn require_database_state(&self, database: &str) -> Result<(), SqlError> {
        for permission in ["VIEW DATABASE STATE", "VIEW DATABASE PERFORMANCE STATE"] {
            if self.permitted(database, permission, None)? {
                return Ok(());
            }
        }
        if self.has_server_permission(&SERVER_STATE) {
            return Ok(());
        }
        Err(message::error(262, 14, format!("VIEW DATABASE STATE permission denied in database '{database}'.")))
    }

    pub(super) fn kill(&self, spid: i64) -> Result<(), SqlError> {
        if !self.has_server_permission(&["ALTER ANY CONNECTION"]) {
            return Err(message::error(6102, 14, "User does not have permission to use the KILL statement.".into()));
        }
        if spid == self.spid {
            return Err(message::error(6104, 16, "Cannot use KILL to kill your own process.".into()));
        }
        if !self.shared.kill(spid) {
            return Err(message::error(6106, 16, format!("Process ID {spid} is not an active process ID.")));
        }
        Ok(())
    }

    pub(super) fn security(&self, s: &Security) -> Result<(), SqlError> {
        match s {
            Security::Nothing => Ok(()),
            Security::CreateLogin { name, password } => {
                self.require_sysadmin("CREATE LOGIN")?;
                if self.shared.login(name).is_some() {
                    return Err(message::error(15_025, 16, format!("The server principal '{name}' already exists.")));
                }
                self.shared.set_login(&LoginEntry { name: name.clone(), password: password.clone(), roles: Vec::new() })
            }
            Security::AlterLogin { name, password, enabled } => {
                self.require_sysadmin("ALTER LOGIN")?;
                let mut entry = self.shared.login(name).ok_or_else(|| unknown(name))?;
                if let Some(p) = password {
                    entry.password.clone_from(p);
                }
                if let Some(on) = enabled {
                    entry.roles.retain(|r| r != DISABLED);
                    entry.roles.extend((!on).then(|| DISABLED.to_string()));
                }
                self.shared.set_login(&entry)
            }
            Security::CreateUser { name, login } => {
                if let Some(l) = login.as_ref().filter(|l| self.shared.login(l).is_none()) {
                    return Err(message::error(15_007, 16, format!("'{l}' is not a valid login or you do not have permission.")));
                }
                self.principal(name, "S", login.as_deref())
            }
            Security::CreateRole(name) => self.principal(name, "R", None),
            Security::AddMember { role, member, server: true } => {
                self.require_sysadmin("ALTER SERVER ROLE")?;
                let mut entry = self.shared.login(member).ok_or_else(|| unknown(member))?;
                entry.roles.push(role.to_ascii_lowercase());
                self.shared.set_login(&entry)
            }
            Security::DropMember { role, member, server: true } => {
                self.require_sysadmin("ALTER SERVER ROLE")?;
                let mut entry = self.shared.login(member).ok_or_else(|| unknown(member))?;
                entry.roles.retain(|r| !same(r, role));
                self.shared.set_login(&entry)
            }
            Security::AddMember { role, member, .. } => {
                self.membership(role, member, "INSERT OR IGNORE INTO \"~members\" VALUES (?1, ?2)")
            }
            Security::DropMember { role, member, .. } => {
                self.membership(role, member, "DELETE FROM \"~members\" WHERE role_id = ?1 AND member_id = ?2")
            }
            Security::Permission { state, permissions, class, object, grantees } => {
                for grantee in grantees {
                    for permission in permissions {
                        self.grant(*state, permission, class.as_deref(), object.as_ref(), grantee)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn principal(&self, name: &str, kind: &str, login: Option<&str>) -> Result<(), SqlError> {
        let database = self.current();
        self.require_owner(&database)?;
        self.writing(&database, |link| {
            let id: i64 = link
                .db
                .query_row("SELECT max(principal_id) + 1 FROM \"~principals\" WHERE principal_id < 16384", [], |r| r.get(0))
                .map_err(sqlite)?;
            link.db
                .execute(
                    "INSERT INTO \"~principals\" VALUES (?1, ?2, ?3, ?4, ?5)",
                    (id, name, kind, login, self.shared.clock.local_ticks()),
                )
                .map_err(|_| {
                    message::error(15_023, 16, format!("User, group, or role '{name}' already exists in the current database."))
                })?;
            Ok(())
        })
    }

    fn membership(&self, role: &str, member: &str, sql: &str) -> Result<(), SqlError> {
        let database = self.current();
        self.require_owner(&database)?;
        self.writing(&database, |link| {
            link.db.execute(sql, (principal_id(link, role)?, principal_id(link, member)?)).map_err(sqlite)?;
            catalog::touch(&link.db).map_err(sqlite)
        })
    }

    fn grant(
        &self,
        state: char,
        permission: &str,
        class: Option<&str>,
        object: Option<&crate::parse::Name>,
        grantee: &str,
    ) -> Result<(), SqlError> {
        if object.is_none() && (permission.contains("SERVER") || permission.contains(" ANY ")) {
            self.require_sysadmin("GRANT")?;
            let mut entry = self.shared.login(grantee).ok_or_else(|| unknown(grantee))?;
            entry.roles.retain(|r| r != permission);
            if state == 'G' {
                entry.roles.push(permission.to_string());
            }
            return self.shared.set_login(&entry);
        }
        let database = self.current();
        self.require_owner(&database)?;
        let (class, major) = match (class, object) {
            (Some("SCHEMA"), Some(name)) => {
                let id: i64 = self.with(&database, |l| {
                    l.db.query_row("SELECT schema_id FROM \"~schemas\" WHERE name = ?1", [&name.object], |r| r.get(0)).map_err(
                        |_| {
                            message::error(
                                15_151,
                                16,
                                format!(
                                    "Cannot find the schema '{}', because it does not exist or you do not have permission.",
                                    name.object
                                ),
                            )
                        },
                    )
                })?;
                ("SCHEMA", id)
            }
            (Some("DATABASE"), _) | (_, None) => ("DATABASE", 0),
            (_, Some(name)) => {
                let schema = name.schema.as_deref().unwrap_or("dbo");
                let system = if same(&database, "msdb") { msdb_table(&name.object) } else { None };
                match self.find_object(&database, schema, &name.object)? {
                    Some(o) => ("OBJECT", o.object_id),
                    None if system.is_some() => ("OBJECT", system.map_or(0, |o| o.object_id)),
                    // Functions and procedures of the server are open to all.
                    None if same(schema, "cdc") || same(schema, "sys") => return Ok(()),
                    None => {
                        return Err(message::error(
                            15_151,
                            16,
                            format!(
                                "Cannot find the object '{}', because it does not exist or you do not have permission.",
                                name.object
                            ),
                        ));
                    }
                }
            }
        };
        self.writing(&database, |link| {
            let id = principal_id(link, grantee)?;
            if state == 'R' {
                link.db
                    .execute(
                        "DELETE FROM \"~permissions\" WHERE grantee = ?1 AND class = ?2 AND major_id = ?3 AND permission = ?4",
                        (id, class, major, permission),
                    )
                    .map_err(sqlite)?;
            } else {
                link.db
                    .execute(
                        "INSERT OR REPLACE INTO \"~permissions\" VALUES (?1, ?2, ?3, ?4, ?5)",
                        (id, class, major, permission, state.to_string()),
                    )
                    .map_err(sqlite)?;
            }
            catalog::touch(&link.db).map_err(sqlite)
        })
    }

    pub(super) fn drop_principal(&self, what: Droppable, name: &str, if_exists: bool) -> Result<(), SqlError> {
        let found = match what {
            Droppable::Login => {
                self.require_sysadmin("DROP LOGIN")?;
                self.shared.drop_login(name)?
            }
            Droppable::Type => {
                let database = self.current();
                self.require_ddl(&database)?;
                self.writing(&database, |link| catalog::alias::drop_type(&link.db, name))?
            }
            Droppable::Schema => {
                let database = self.current();
                self.require_ddl(&database)?;
                self.writing(&database, |link| {
                    let used: i64 = link
                        .db
                        .query_row("SELECT count(*) FROM \"~objects\" WHERE schema = ?1", [name], |r| r.get(0))
                        .map_err(sqlite)?;
                    if used > 0 {
                        return Err(message::error(
                            3729,
                            16,
                            format!("Cannot drop schema '{name}' because it is being referenced by an object."),
                        ));
                    }
                    let n =
                        link.db.execute("DELETE FROM \"~schemas\" WHERE name = ?1 AND schema_id > 4", [name]).map_err(sqlite)?;
                    catalog::touch(&link.db).map_err(sqlite)?;
                    Ok(n > 0)
                })?
            }
            _ => {
                let database = self.current();
                self.require_owner(&database)?;
                self.writing(&database, |link| {
                    let n = link
                        .db
                        .execute(
                            "DELETE FROM \"~principals\" WHERE name = ?1 AND principal_id > 4 AND principal_id < 16384",
                            [name],
                        )
                        .map_err(sqlite)?;
                    catalog::touch(&link.db).map_err(sqlite)?;
                    Ok(n > 0)
                })?
            }
        };
        if found || if_exists {
            Ok(())
        } else {
            Err(message::error(
                15_151,
                16,
                format!("Cannot drop '{name}', because it does not exist or you do not have permission."),
            ))
        }
    }
}

fn principal_id(link: &Link, name: &str) -> Result<i64, SqlError> {
    link.db.query_row("SELECT principal_id FROM \"~principals\" WHERE name = ?1", [name], |r| r.get(0)).map_err(|_| {
        message::error(
            15_151,
            16,
            format!("Cannot find the user '{name}', because it does not exist or you do not have permission."),
        )
    })
}

fn unknown(login: &str) -> SqlError {
    message::error(
        15_151,
        16,
        format!("Cannot find the login '{login}', because it does not exist or you do not have permission."),
    )
}
