//! ALTER TABLE. SQLite's part of it is in [`rewrite`]; change data capture takes its triggers off before and puts them back after.

use tds::SqlError;

use super::definition::{Referenced, check_collation, reload, sqlite};
use super::{Link, Session, fault};
use crate::catalog::capture::CaptureCatalog;
use crate::catalog::define::{self, NewColumn};
use crate::catalog::{self, Object, rewrite};
use crate::clock;
use crate::parse::{AlterTable, ColumnDefinition, Constraint, Name};
use crate::translate::Translator;
use crate::types;
use crate::{capture_procedures, message, parse};

impl Session {
    pub(super) fn alter_table(&self, name: &Name, change: &AlterTable) -> Result<(), SqlError> {
        let mut translator = Translator::new(self);
        let (database, object) = translator.find(name)?;
        self.require_ddl(&database)?;
        let (columns, constraints) = match change {
            AlterTable::Add { columns, constraints } => (columns.as_slice(), constraints.as_slice()),
            _ => (&[][..], &[][..]),
        };
        let new = self.new_columns(columns, &object.columns, &[])?;
        let fills = self.fills(&new)?;
        let referenced = self.referenced(&database, &object.schema, &object.name, constraints)?;
        self.writing(&database, |link| {
            let now = self.shared.clock.local_ticks();
            let capture = CaptureCatalog { db: &link.db, now };
            let failed = |e: cdc::Error| capture_procedures::error(&e);
            let before = cdc::Catalog::source_table_by_id(&capture, object.object_id).map_err(sqlite)?;
            cdc::ddl::before_alter(&link.db, object.object_id).map_err(failed)?;
            match change {
                AlterTable::Add { .. } => self.alter_add(link, &object, &new, &fills, constraints, &referenced, now)?,
                AlterTable::DropColumns { names, if_exists } => self.alter_drop_columns(link, &object, names, *if_exists)?,
                AlterTable::DropConstraints { names, if_exists } => {
                    self.alter_drop_constraints(link, &object, names, *if_exists)?
                }
                AlterTable::AlterColumn(c) => self.alter_column(link, &object, c)?,
                AlterTable::Nothing => {}
            }
            let after = cdc::Catalog::source_table_by_id(&capture, object.object_id).map_err(sqlite)?;
            if let (Some(before), Some(after)) = (before, after) {
                let text = format!("ALTER TABLE {name} {}", summary(change));
                cdc::ddl::table_altered(&link.db, &capture, &before, &after, &text, clock::civil(now)).map_err(failed)?;
            }
            link.db
                .execute("UPDATE \"~objects\" SET modify_date = ?2 WHERE object_id = ?1", [object.object_id, now])
                .map_err(sqlite)?;
            catalog::touch(&link.db).map_err(sqlite)
        })
    }

    /// What existing rows get in new columns, in SQLite's SQL.
    fn fills(&self, new: &[NewColumn]) -> Result<Vec<Option<String>>, SqlError> {
        let mut fills = Vec::new();
        for c in new {
            let mut fill = None;
            if let Some((_, text)) = c.default.as_ref().filter(|_| !c.nullable) {
                let (value, t) = self.scalar(&parse::expression(text)?)?;
                let value = types::convert::convert(value, &t, &c.data_type, 0, types::convert::Mode::Assign)?;
                fill = Some(crate::translate::literal(&value, &c.data_type));
            }
            fills.push(fill);
        }
        Ok(fills)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    fn alter_add(
        &self,
        link: &Link,
        object: &Object,
        new: &[NewColumn],
        fills: &[Option<String>],
        constraints: &[Constraint],
        referenced: &Referenced,
        now: i64,
    ) -> Result<(), SqlError> {
        for (c, fill) in new.iter().zip(fills) {
            let rows: bool = link
                .db
                .query_row(&format!("SELECT EXISTS (SELECT 1 FROM {})", catalog::quote(&object.storage())), [], |r| r.get(0))
                .map_err(sqlite)?;
            if rows && !c.nullable && fill.is_none() && c.computed.is_none() && c.identity.is_none() && c.type_name != "timestamp"
            {
                return Err(message::error(
                    4901,
                    16,
                    format!(
                        "ALTER TABLE only allows columns to be added that can contain nulls, or have a DEFAULT definition specified, or the column being added is an identity or timestamp column, or alternatively if none of the previous conditions are satisfied the table must be empty to allow addition of this column. Column '{}' cannot be added to non-empty table '{}' because it does not satisfy these conditions.",
                        c.name, object.name
                    ),
                ));
            }
            // Numbers of dropped columns are not used again.
            let key = format!("last_column {}", object.object_id);
            let last = catalog::setting(&link.db, &key).map_err(sqlite)? as i32 + 1;
            catalog::set_setting(&link.db, &key, i64::from(last)).map_err(sqlite)?;
            define::insert_column(&link.db, object.object_id, &object.schema, &object.name, c, last, now).map_err(sqlite)?;
            let fill = match (&c.identity, c.type_name.as_str()) {
                (Some((seed, increment)), _) => Some(format!("{seed} + (_rowid_ - 1) * {increment}")),
                (None, "timestamp") => Some("next_rowversion()".into()),
                _ => fill.clone(),
            };
            rewrite::add_column(&link.db, &reload(link, object.object_id)?, &c.name, fill.as_deref()).map_err(sqlite)?;
        }
        if constraints.is_empty() {
            return Ok(());
        }
        let object = reload(link, object.object_id)?;
        let mut indexes = Vec::new();
        for c in constraints {
            self.add_constraint(link, &object, c, referenced, &mut indexes, now)?;
        }
        for (index, _) in &indexes {
            define::add_index(&link.db, &object, index, false, now).map_err(|e| {
                fault::of_change(
                    &e,
                    &fault::Doing {
                        db: &link.db,
                        database: &link.database.name,
                        object: &object,
                        verb: "ALTER TABLE",
                        duplicate: &|_| None,
                    },
                )
            })?;
            if index.primary_key {
                for (c, _) in &index.columns {
                    link.db
                        .execute("UPDATE \"~columns\" SET nullable = 0 WHERE object_id = ?1 AND name = ?2", (object.object_id, c))
                        .map_err(sqlite)?;
                }
            }
        }
        rewrite::refresh(&link.db, &reload(link, object.object_id)?).map_err(sqlite)
    }

    fn alter_drop_columns(&self, link: &Link, object: &Object, names: &[String], if_exists: bool) -> Result<(), SqlError> {
        for name in names {
            let Some(c) = object.column(name) else {
                if if_exists {
                    continue;
                }
                return Err(message::error(
                    4924,
                    16,
                    format!("ALTER TABLE DROP COLUMN failed because column '{name}' does not exist in table '{}'.", object.name),
                ));
            };
            let used: i64 = link
                .db
                .query_row("SELECT (SELECT count(*) FROM \"~index_columns\" WHERE object_id = ?1 AND column_id = ?2) + (SELECT default_id FROM \"~columns\" WHERE object_id = ?1 AND column_id = ?2)", (object.object_id, c.column_id), |r| r.get(0))
                .map_err(sqlite)?;
            if used > 0 {
                return Err(message::error(
                    5074,
                    16,
                    format!(
                        "The object is dependent on column '{name}'. ALTER TABLE DROP COLUMN {name} failed because one or more objects access this column."
                    ),
                ));
            }
            link.db
                .execute_batch(&format!(
                    "ALTER TABLE {} DROP COLUMN {}",
                    catalog::quote(&object.storage()),
                    catalog::quote(&c.name)
                ))
                .map_err(sqlite)?;
            link.db
                .execute("DELETE FROM \"~columns\" WHERE object_id = ?1 AND column_id = ?2", (object.object_id, c.column_id))
                .map_err(sqlite)?;
        }
        rewrite::refresh(&link.db, &reload(link, object.object_id)?).map_err(sqlite)
    }

    fn alter_drop_constraints(&self, link: &Link, object: &Object, names: &[String], if_exists: bool) -> Result<(), SqlError> {
        for name in names {
            if self.remove_index(link, object, name, true)? {
                continue;
            }
            let dropped = link
                .db
                .execute(
                    "DELETE FROM \"~objects\" WHERE parent_object_id = ?1 AND name = ?2 AND type IN ('C', 'F', 'D')",
                    (object.object_id, name),
                )
                .map_err(sqlite)?;
            if dropped == 0 && !if_exists {
                return Err(message::error(3728, 16, format!("'{name}' is not a constraint.")));
            }
            link.db.execute("UPDATE \"~columns\" SET default_id = 0, default_text = NULL WHERE object_id = ?1 AND default_id > 0 AND default_id NOT IN (SELECT object_id FROM \"~objects\")", [object.object_id]).map_err(sqlite)?;
            link.db.execute_batch("DELETE FROM \"~fk_columns\" WHERE object_id NOT IN (SELECT object_id FROM \"~objects\"); DELETE FROM \"~fks\" WHERE object_id NOT IN (SELECT object_id FROM \"~objects\")").map_err(sqlite)?;
        }
        rewrite::refresh(&link.db, &reload(link, object.object_id)?).map_err(sqlite)
    }

    fn alter_column(&self, link: &Link, object: &Object, c: &ColumnDefinition) -> Result<(), SqlError> {
        let old = object.column(&c.name).ok_or_else(|| {
            message::error(
                4924,
                16,
                format!("ALTER TABLE ALTER COLUMN failed because column '{}' does not exist in table '{}'.", c.name, object.name),
            )
        })?;
        let declared = c.what.as_ref().ok_or_else(|| message::syntax(&c.name, 1))?;
        let (declared, alias_nullable) = catalog::alias::resolve(&link.db, declared)?;
        if let Some(name) = &c.collation {
            check_collation(name, &declared.data_type)?;
        }
        let nullable = c.nullable.or(alias_nullable).unwrap_or(true);
        if !nullable && old.nullable {
            let nulls: bool = link
                .db
                .query_row(
                    &format!(
                        "SELECT EXISTS (SELECT 1 FROM {} WHERE {} IS NULL)",
                        catalog::quote(&object.storage()),
                        catalog::quote(&old.name)
                    ),
                    [],
                    |r| r.get(0),
                )
                .map_err(sqlite)?;
            if nulls {
                return Err(message::error(
                    515,
                    16,
                    format!(
                        "Cannot insert the value NULL into column '{}', table '{}.{}.{}'; column does not allow nulls. UPDATE fails.",
                        old.name, link.database.name, object.schema, object.name
                    ),
                ));
            }
        }
        define::set_type(&link.db, object, old, &declared.data_type, &declared.name, nullable, c.collation.as_deref())
            .map_err(sqlite)?;
        rewrite::convert_column(&link.db, &reload(link, object.object_id)?, &old.name, &old.data_type, &declared.data_type)
            .map_err(sqlite)
    }
}

fn summary(change: &AlterTable) -> String {
    match change {
        AlterTable::Add { columns, .. } => {
            let list: Vec<String> = columns
                .iter()
                .map(|c| format!("{} {}", c.name, c.what.as_ref().map(|d| types::declared(&d.data_type)).unwrap_or_default()))
                .collect();
            format!("ADD {}", list.join(", "))
        }
        AlterTable::DropColumns { names, .. } => format!("DROP COLUMN {}", names.join(", ")),
        AlterTable::DropConstraints { names, .. } => format!("DROP CONSTRAINT {}", names.join(", ")),
        AlterTable::AlterColumn(c) => {
            format!("ALTER COLUMN {} {}", c.name, c.what.as_ref().map(|d| types::declared(&d.data_type)).unwrap_or_default())
        }
        AlterTable::Nothing => String::new(),
    }
}
