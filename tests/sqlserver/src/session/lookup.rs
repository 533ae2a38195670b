//! What the translator asks of a session.

use std::sync::Arc;

use sqlparser::ast::Expr;
use tds::{DataType, SqlError, Value};

use super::{Session, fault};
use crate::catalog::{self, Object, views};
use crate::translate::{Derived, Lookup};
use crate::{capture_procedures, message};

impl Session {
    /// A table or view of a database, remembered until its catalog changes.
    pub(super) fn find_object(&self, database: &str, schema: &str, name: &str) -> Result<Option<Arc<Object>>, SqlError> {
        self.with(database, |link| {
            let version = catalog::version(&link.db).map_err(|e| fault::from_sqlite(&e))?;
            if link.version.replace(version) != version {
                link.objects.borrow_mut().clear();
            }
            let key = (schema.to_ascii_lowercase(), name.to_ascii_lowercase());
            if let Some(found) = link.objects.borrow().get(&key) {
                return Ok(found.clone());
            }
            let found = catalog::load(&link.db, schema, name).map_err(|e| fault::from_sqlite(&e))?.map(Arc::new);
            link.objects.borrow_mut().insert(key, found.clone());
            Ok(found)
        })
    }
}

impl Lookup for Session {
    fn current_database(&self) -> String {
        self.current()
    }

    fn database(&self, name: &str) -> Option<String> {
        self.shared.database(name).map(|d| d.name)
    }

    fn object(&self, database: &str, schema: &str, name: &str) -> Result<Option<Arc<Object>>, SqlError> {
        self.find_object(database, schema, name)
    }

    fn temporary(&self, name: &str) -> Option<Arc<Object>> {
        self.temporary.borrow().get(&name.to_ascii_lowercase()).cloned()
    }

    fn variable(&self, name: &str) -> Option<DataType> {
        self.variables.borrow().get(&name.to_ascii_lowercase()).map(|(t, _)| t.clone())
    }

    fn evaluate(&self, e: &Expr) -> Result<(Value, DataType), SqlError> {
        self.scalar(e)
    }

    fn authorize(&self, permission: &str, database: &str, object: &Object) -> Result<(), SqlError> {
        if self.sysadmin || object.schema.is_empty() {
            return Ok(());
        }
        if self.permitted(database, permission, Some(object))? {
            return Ok(());
        }
        Err(message::denied(permission, &object.name, database, &object.schema))
    }

    fn system_view(&self, database: &str, schema: &str, name: &str) -> Result<Option<Derived>, SqlError> {
        if let Some(view) = self.server_view(database, schema, name)? {
            return Ok(Some(view));
        }
        views::find(database, schema, name).map(|view| self.visible(database, view)).transpose()
    }

    fn table_function(
        &self,
        database: &str,
        schema: &str,
        name: &str,
        arguments: &[Option<(Value, DataType)>],
    ) -> Result<Option<Derived>, SqlError> {
        if name.to_ascii_lowercase().starts_with("fn_cdc_get_") {
            self.authorize_changes(database, name)?;
            return self.with(database, |link| {
                let list: Vec<rusqlite::types::Value> = arguments
                    .iter()
                    .map(|a| a.as_ref().map_or(rusqlite::types::Value::Null, |(v, t)| crate::types::storage::encode(v, t)))
                    .collect();
                let found = cdc::functions::table_valued(&link.db, name, &list).map_err(|e| capture_procedures::error(&e))?;
                Ok(found.map(|s| {
                    let mut d = views::from_cdc(&s);
                    // Users' values are in stored form already.
                    d.columns.iter_mut().for_each(|c| c.wrap = None);
                    d
                }))
            });
        }
        self.server_function(schema, name, arguments)
    }

    fn constant(&self, name: &str) -> Option<(Value, DataType)> {
        self.session_constant(name)
    }
}

/// A session without anything: constraints may use their table's columns and pure functions.
pub(super) struct Nobody;

impl Lookup for Nobody {
    fn current_database(&self) -> String {
        String::new()
    }
    fn database(&self, _: &str) -> Option<String> {
        None
    }
    fn object(&self, _: &str, _: &str, _: &str) -> Result<Option<Arc<Object>>, SqlError> {
        Ok(None)
    }
    fn temporary(&self, _: &str) -> Option<Arc<Object>> {
        None
    }
    fn variable(&self, _: &str) -> Option<DataType> {
        None
    }
    fn evaluate(&self, _: &Expr) -> Result<(Value, DataType), SqlError> {
        Err(message::unsupported("This expression in a constraint"))
    }
    fn authorize(&self, _: &str, _: &str, _: &Object) -> Result<(), SqlError> {
        Ok(())
    }
    fn system_view(&self, _: &str, _: &str, _: &str) -> Result<Option<Derived>, SqlError> {
        Ok(None)
    }
    fn table_function(&self, _: &str, _: &str, _: &str, _: &[Option<(Value, DataType)>]) -> Result<Option<Derived>, SqlError> {
        Ok(None)
    }
    fn constant(&self, _: &str) -> Option<(Value, DataType)> {
        None
    }
}
