//! CREATE INDEX and DROP INDEX.

use tds::SqlError;

use super::definition::{plain_columns, sqlite};
use super::{Link, Session, fault};
use crate::catalog::define::{self, NewIndex};
use crate::catalog::{self, Object};
use crate::parse::{IndexDefinition, Name};
use crate::translate::Translator;
use crate::{message, parse};

impl Session {
    pub(super) fn create_index(&self, i: &IndexDefinition) -> Result<(), SqlError> {
        let mut translator = Translator::new(self);
        let (database, object) = translator.find(&i.table)?;
        if object.schema.is_empty() {
            return Ok(());
        }
        self.require_ddl(&database)?;
        for (c, _) in &i.columns {
            object.column(c).ok_or_else(|| {
                message::error(1911, 16, format!("Column name '{c}' does not exist in the target table or view."))
            })?;
        }
        let filter = match &i.filter {
            Some(text) => {
                let e = parse::expression(text)?;
                Some((text.clone(), Translator::new(self).over_table(plain_columns(&object.columns), &e, true)?.sql))
            }
            None => None,
        };
        let index = NewIndex {
            name: i.name.clone(),
            unique: i.unique,
            clustered: i.clustered,
            columns: i.columns.clone(),
            included: i.included.clone(),
            filter,
            ..NewIndex::default()
        };
        self.writing(&database, |link| {
            let taken: i64 = link.db.query_row("SELECT count(*) FROM \"~indexes\" WHERE object_id = ?1 AND name = ?2", (object.object_id, &i.name), |r| r.get(0)).map_err(sqlite)?;
            if taken > 0 {
                return Err(message::error(1913, 16, format!("The operation failed because an index or statistics with name '{}' already exists on table '{}'.", i.name, i.table)));
            }
            define::add_index(&link.db, &object, &index, false, self.shared.clock.local_ticks()).map_err(|e| {
                let e = fault::of_change(&e, &fault::Doing { db: &link.db, database: &database, object: &object, verb: "CREATE INDEX", duplicate: &|_| None });
                if e.number == 2627 || e.number == 2601 {
                    return message::error(1505, 16, format!("The CREATE UNIQUE INDEX statement terminated because a duplicate key was found for the object name '{}.{}' and the index name '{}'.", object.schema, object.name, i.name));
                }
                e
            })
        })
    }

    pub(super) fn drop_index(&self, table: &Name, index: &str, if_exists: bool) -> Result<(), SqlError> {
        let mut translator = Translator::new(self);
        let (database, object) = translator.find(table)?;
        self.require_ddl(&database)?;
        self.writing(&database, |link| {
            self.remove_index(link, &object, index, false).and_then(|found| {
                if found || if_exists {
                    Ok(())
                } else {
                    Err(message::error(
                        3701,
                        11,
                        format!(
                            "Cannot drop the index '{table}.{index}', because it does not exist or you do not have permission."
                        ),
                    ))
                }
            })
        })
    }

    pub(super) fn remove_index(&self, link: &Link, object: &Object, index: &str, constraint: bool) -> Result<bool, SqlError> {
        use rusqlite::OptionalExtension;
        let found: Option<(i64, String, bool)> = link
            .db
            .query_row("SELECT index_id, name, in_table FROM \"~indexes\" WHERE object_id = ?1 AND name = ?2 AND (is_primary_key OR is_unique_constraint) = ?3", (object.object_id, index, constraint), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()
            .map_err(sqlite)?;
        let Some((id, name, in_table)) = found else { return Ok(false) };
        if in_table {
            return Err(message::unsupported("Dropping the single integer primary key that was declared with its table"));
        }
        link.db
            .execute_batch(&format!(
                "DROP INDEX IF EXISTS {}; DROP INDEX IF EXISTS {}",
                catalog::quote(&define::index_storage(object, &name)),
                catalog::quote(&define::null_storage(object, &name))
            ))
            .map_err(sqlite)?;
        for sql in [
            "DELETE FROM \"~indexes\" WHERE object_id = ?1 AND index_id = ?2",
            "DELETE FROM \"~index_columns\" WHERE object_id = ?1 AND index_id = ?2",
        ] {
            link.db.execute(sql, [object.object_id, id]).map_err(sqlite)?;
        }
        if constraint {
            link.db
                .execute("DELETE FROM \"~objects\" WHERE parent_object_id = ?1 AND name = ?2", (object.object_id, name))
                .map_err(sqlite)?;
        }
        catalog::touch(&link.db).map_err(sqlite)?;
        Ok(true)
    }
}
