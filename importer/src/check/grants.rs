//! The least that a login needs, as a script for whoever may grant it.

use std::fmt::Write;

use schemas::TableName;
use source::Catalog;
use source::sql::{literal, quote};

use crate::config::TableFilter;

/// A script that creates the login and grants what the import of these tables needs. The optional parts are what health and diagnosis need; without them
/// the import works, and says what it cannot see.
pub fn grants(catalog: &Catalog, filter: &TableFilter, login: &str) -> String {
    let (user, database) = (quote(login), quote(&catalog.database));
    let mut script = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        script,
        "-- The least that the login {login} needs to import from {database_name}. Run as a member of sysadmin.\n\
         USE [master];\nGO\n\
         IF NOT EXISTS (SELECT 1 FROM sys.server_principals WHERE name = {login_text}) CREATE LOGIN {user} WITH PASSWORD = N'<a password>';\nGO\n\
         USE {database};\nGO\n\
         IF NOT EXISTS (SELECT 1 FROM sys.database_principals WHERE name = {login_text}) CREATE USER {user} FOR LOGIN {user};\nGO\n\
         -- Changes, and what capture says of itself.\n\
         GRANT SELECT ON SCHEMA::[cdc] TO {user};\nGO\n\
         -- Rows, for snapshots; a table's types and keys are seen with them.\n",
        database_name = catalog.database,
        login_text = literal(login),
    );
    let tables = catalog.tables.iter().map(|table| &table.name).filter(|name| filter.takes(name));
    for TableName { schema, table, .. } in tables {
        let _ = writeln!(script, "GRANT SELECT ON {}.{} TO {user};", quote(schema), quote(table));
    }
    let _ = write!(
        script,
        "GO\n\
         -- Optional: the scans and errors of capture, so that a capture job that stands is told within the minute.\n\
         GRANT VIEW DATABASE STATE TO {user};\nGO\n\
         -- Optional: the state of SQL Server Agent and of an availability group (on SQL Server 2022 and later, VIEW SERVER SECURITY STATE and VIEW SERVER PERFORMANCE STATE do).\n\
         USE [master];\nGO\nGRANT VIEW SERVER STATE TO {user};\nGO\n\
         -- Optional: whether the capture job is enabled and running, and how it ended.\n\
         USE [msdb];\nGO\n\
         IF NOT EXISTS (SELECT 1 FROM sys.database_principals WHERE name = {login_text}) CREATE USER {user} FOR LOGIN {user};\nGO\n",
        login_text = literal(login),
    );
    for table in ["cdc_jobs", "sysjobs", "sysjobactivity", "sysjobhistory", "syssessions"] {
        let _ = writeln!(script, "GRANT SELECT ON [dbo].[{table}] TO {user};");
    }
    script.push_str("GO\n");
    script
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use source::CapturedTable;

    use super::*;

    #[test]
    fn names_are_quoted_and_only_wanted_tables_are_granted() {
        let table =
            |schema: &str, table: &str| CapturedTable { name: TableName::new(schema, table), object_id: 1, instances: vec![] };
        let catalog = Catalog {
            database: "my]shop".into(),
            version: "16.0".into(),
            tables: vec![table("dbo", "orders"), table("o'b", "a]b"), table("audit", "log")],
            foreign_keys: vec![],
            uncaptured: vec![],
        };
        let filter = TableFilter { include: vec![], exclude: vec!["audit.*".into()] };
        let script = grants(&catalog, &filter, "import'er]");
        for line in [
            "USE [my]]shop];",
            "IF NOT EXISTS (SELECT 1 FROM sys.server_principals WHERE name = N'import''er]') CREATE LOGIN [import'er]]] WITH PASSWORD = N'<a password>';",
            "GRANT SELECT ON [dbo].[orders] TO [import'er]]];",
            "GRANT SELECT ON [o'b].[a]]b] TO [import'er]]];",
        ] {
            assert!(script.lines().any(|found| found == line), "{line} is not in\n{script}");
        }
        assert!(!script.contains("audit"));
    }
}
