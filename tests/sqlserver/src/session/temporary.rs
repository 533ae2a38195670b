//! Temporary tables and table variables: in SQLite's temporary schema of the current database's connection, known to the session alone.

use std::sync::Arc;

use tds::SqlError;

use super::Session;
use super::definition::sqlite;
use crate::catalog::define::NewColumn;
use crate::catalog::{self, ColumnInfo, Object, ObjectKind};
use crate::message;
use crate::parse::TableDefinition;
use crate::types;

impl Session {
    /// A temporary table or table variable, in the current database's connection. Its keys and checks are left out but for the primary key.
    pub(super) fn create_temporary(&self, t: &TableDefinition) -> Result<(), SqlError> {
        let keys = t.primary_key();
        let columns = self.new_columns(&t.columns, &[], &keys)?;
        self.make_temporary(&t.name.object, &columns, &keys)
    }

    pub(super) fn make_temporary(&self, name: &str, columns: &[NewColumn], keys: &[String]) -> Result<(), SqlError> {
        let key = name.to_ascii_lowercase();
        if self.temporary.borrow().contains_key(&key) {
            return Err(message::error(2714, 16, format!("There is already an object named '{name}' in the database.")));
        }
        let infos: Vec<ColumnInfo> = columns
            .iter()
            .enumerate()
            .map(|(i, c)| ColumnInfo {
                name: c.name.clone(),
                column_id: i as i32 + 1,
                data_type: c.data_type.clone(),
                type_name: c.type_name.clone(),
                nullable: c.nullable,
                identity: c.identity,
                computed: c.computed.as_ref().map(|x| x.0.clone()),
                persisted: c.persisted,
                default: c.default.as_ref().map(|d| d.1.clone()),
                collation: c.collation.clone(),
            })
            .collect();
        let object = Object {
            object_id: -(1000 + self.shared.next_transaction()),
            schema: String::new(),
            name: name.to_string(),
            kind: ObjectKind::Table,
            columns: infos,
            primary_key: keys.to_vec(),
            shipped: false,
            definition: None,
        };
        let mut parts: Vec<String> = columns
            .iter()
            .map(|c| {
                let collate = if types::is_string(&c.data_type) {
                    format!(" COLLATE {}", catalog::collation_of(c.collation.as_deref()).sqlite())
                } else {
                    String::new()
                };
                match &c.computed {
                    Some((_, sql)) => format!("{} GENERATED ALWAYS AS ({sql}) VIRTUAL", catalog::quote(&c.name)),
                    None => format!("{}{}{collate}", catalog::quote(&c.name), if c.nullable { "" } else { " NOT NULL" }),
                }
            })
            .collect();
        if !keys.is_empty() {
            parts.push(format!("UNIQUE ({})", keys.iter().map(|k| catalog::quote(k)).collect::<Vec<_>>().join(", ")));
        }
        let current = self.current();
        self.with(&current, |link| {
            link.db.execute_batch(&format!("CREATE TEMP TABLE {} ({})", catalog::quote(name), parts.join(", "))).map_err(sqlite)
        })?;
        self.temporary.borrow_mut().insert(key.clone(), Arc::new(object));
        if self.in_transaction() && name.starts_with('#') {
            self.transaction.borrow_mut().temporary.push(key);
        }
        Ok(())
    }

    pub(super) fn drop_temporary(&self, name: &str) -> bool {
        let Some(object) = self.temporary.borrow_mut().remove(&name.to_ascii_lowercase()) else { return false };
        for link in self.links.borrow().values() {
            // It lives in one of the connections.
            let _ = link.db.execute_batch(&format!("DROP TABLE IF EXISTS temp.{}", catalog::quote(&object.storage())));
        }
        true
    }
}
