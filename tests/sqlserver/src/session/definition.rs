//! DDL.

use std::sync::Arc;

use tds::{Response, SqlError};

use super::{Link, Session, fault};
use crate::catalog::alias;
use crate::catalog::capture::CaptureCatalog;
use crate::catalog::define::{self, NewColumn, NewForeignKey, NewIndex};
use crate::catalog::{self, ColumnInfo, Object, ObjectKind, same};
use crate::parse::{ColumnDefinition, Constraint, ConstraintKind, Droppable, Kind, Name, Statement, TableDefinition};
use crate::translate::{SourceColumn, Translator};
use crate::types;
use crate::{capture_procedures, message, parse};

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn sqlite(e: rusqlite::Error) -> SqlError {
    fault::from_sqlite(&e)
}

/// Tables that foreign keys name, as written, with what the catalog has; `None`: the table being made.
pub(super) type Referenced = Vec<(String, Option<Arc<Object>>)>;

pub(super) fn plain_columns(columns: &[ColumnInfo]) -> Vec<SourceColumn> {
    columns
        .iter()
        .map(|c| SourceColumn {
            name: c.name.clone(),
            sql: catalog::quote(&c.name),
            data_type: c.data_type.clone(),
            nullable: c.nullable,
            collation: c.collation(),
            is_column: true,
            identity: false,
            computed: false,
        })
        .collect()
}

impl Session {
    pub(super) fn define(&self, s: &Statement, _response: &mut dyn Response) -> Result<(), SqlError> {
        match &s.kind {
            Kind::CreateTable(t) => self.create_table(t),
            Kind::AlterTable { table, change } => self.alter_table(table, change),
            Kind::Drop { what: Droppable::Table | Droppable::View, names, if_exists } => {
                names.iter().try_for_each(|n| self.drop_table(n, *if_exists))
            }
            Kind::Drop { what, names, if_exists } => {
                names.iter().try_for_each(|n| self.drop_principal(*what, &n.object, *if_exists))
            }
            Kind::CreateIndex(i) => self.create_index(i),
            Kind::DropIndex { table, index, if_exists } => self.drop_index(table, index, *if_exists),
            Kind::CreateSchema(name) => self.create_schema(name),
            Kind::CreateType { name, base, nullable } => {
                let (database, schema) = self.place(name)?;
                if base.is_alias() {
                    return Err(types::unknown(&base.name));
                }
                self.writing(&database, |link| alias::create(&link.db, &schema, &name.object, base, *nullable))
            }
            Kind::CreateView { name, text, query, columns, replace } => self.create_view(name, text, query, columns, *replace),
            Kind::Truncate(name) => self.truncate(name),
            Kind::CreateDatabase(name) => {
                self.require_sysadmin("CREATE DATABASE").and_then(|()| self.shared.create_database(name))
            }
            Kind::DropDatabase { names, if_exists } => names.iter().try_for_each(|n| {
                self.require_sysadmin("DROP DATABASE")?;
                if *if_exists && self.shared.database(n).is_none() {
                    return Ok(());
                }
                self.links.borrow_mut().retain(|name, _| !same(name, n));
                self.shared.drop_database(n)
            }),
            Kind::AlterDatabase { name, words } => self.alter_database(name.as_deref(), words),
            Kind::Security(security) => self.security(security),
            _ => Err(message::unsupported("This statement")),
        }
    }

    /// The database and schema that a new object goes to.
    fn place(&self, name: &Name) -> Result<(String, String), SqlError> {
        let database = match &name.database {
            Some(d) => {
                self.shared
                    .database(d)
                    .ok_or_else(|| {
                        message::error(
                            911,
                            16,
                            format!("Database '{d}' does not exist. Make sure that the name is entered correctly."),
                        )
                    })?
                    .name
            }
            None => self.current(),
        };
        self.require_ddl(&database)?;
        let schema = name.schema.clone().unwrap_or_else(|| "dbo".into());
        let known: Option<String> = self.with(&database, |l| {
            use rusqlite::OptionalExtension;
            l.db.query_row("SELECT name FROM \"~schemas\" WHERE name = ?1", [&schema], |r| r.get(0)).optional().map_err(sqlite)
        })?;
        let schema = known.ok_or_else(|| {
            message::error(
                2760,
                16,
                format!("The specified schema name \"{schema}\" either does not exist or you do not have permission to use it."),
            )
        })?;
        Ok((database, schema))
    }

    fn taken(&self, link: &Link, schema: &str, name: &str) -> Result<(), SqlError> {
        match catalog::object_id_of(&link.db, schema, name).map_err(sqlite)? {
            Some(_) => Err(message::error(2714, 16, format!("There is already an object named '{name}' in the database."))),
            None => Ok(()),
        }
    }

    /// Columns as the catalog takes them; computed ones are translated over the others.
    pub(super) fn new_columns(
        &self,
        list: &[ColumnDefinition],
        existing: &[ColumnInfo],
        keys: &[String],
    ) -> Result<Vec<NewColumn>, SqlError> {
        let mut columns: Vec<NewColumn> = Vec::new();
        for c in list {
            if columns.iter().any(|o| same(&o.name, &c.name)) || existing.iter().any(|o| same(&o.name, &c.name)) {
                return Err(message::error(
                    2705,
                    16,
                    format!(
                        "Column names in each table must be unique. Column name '{}' in table is specified more than once.",
                        c.name
                    ),
                ));
            }
            let (declared, alias_nullable) = match &c.what {
                Some(d) => self.resolved(d).map(|(d, nullable)| (Some(d), nullable))?,
                None => (None, None),
            };
            if let (Some(name), Some(d)) = (&c.collation, &declared) {
                check_collation(name, &d.data_type)?;
            }
            let key = keys.iter().any(|k| same(k, &c.name));
            let rowversion = declared.as_ref().is_some_and(types::Declared::is_rowversion);
            let nullable = c.nullable.or(alias_nullable).unwrap_or(!key && c.identity.is_none() && !rowversion) && !key;
            columns.push(NewColumn {
                name: c.name.clone(),
                data_type: declared.as_ref().map_or(tds::DataType::Int, |d| d.data_type.clone()),
                type_name: declared.map_or_else(|| "int".into(), |d| d.name),
                nullable,
                identity: c.identity,
                computed: None,
                persisted: false,
                default: c.default.clone(),
                collation: c.collation.clone(),
                rowguid: c.rowguid,
            });
        }
        let mut all = plain_columns(existing);
        all.extend(columns.iter().zip(list).filter(|(_, d)| d.computed.is_none()).map(|(c, _)| SourceColumn {
            name: c.name.clone(),
            sql: catalog::quote(&c.name),
            data_type: c.data_type.clone(),
            nullable: c.nullable,
            collation: catalog::collation_of(c.collation.as_deref()),
            is_column: true,
            identity: false,
            computed: false,
        }));
        for (column, definition) in columns.iter_mut().zip(list) {
            let Some((text, persisted)) = &definition.computed else { continue };
            let e = parse::expression(text)?;
            let typed = Translator::new(self).over_table(all.clone(), &e, false)?;
            column.type_name = types::name(&typed.data_type).into();
            column.data_type = typed.data_type.clone();
            column.nullable = definition.nullable.unwrap_or(typed.nullable);
            column.computed = Some((text.clone(), typed.sql));
            column.persisted = *persisted;
        }
        Ok(columns)
    }

    /// A declared type with the base of an alias looked up.
    pub(super) fn resolved(&self, declared: &types::Declared) -> Result<(types::Declared, Option<bool>), SqlError> {
        if !declared.is_alias() {
            return Ok((declared.clone(), None));
        }
        self.with(&self.current(), |link| alias::resolve(&link.db, declared))
    }

    fn create_table(&self, t: &TableDefinition) -> Result<(), SqlError> {
        if t.name.object.starts_with('#') {
            return self.create_temporary(t);
        }
        let (database, schema) = self.place(&t.name)?;
        let keys = t.primary_key();
        let columns = self.new_columns(&t.columns, &[], &keys)?;
        let referenced = self.referenced(&database, &schema, &t.name.object, &t.constraints)?;
        self.writing(&database, |link| {
            self.taken(link, &schema, &t.name.object)?;
            let now = self.shared.clock.local_ticks();
            let id = define::create_table(&link.db, &schema, &t.name.object, &columns, false, now).map_err(sqlite)?;
            let object = reload(link, id)?;
            let mut indexes = Vec::new();
            for c in &t.constraints {
                self.add_constraint(link, &object, c, &referenced, &mut indexes, now)?;
            }
            for (index, _) in indexes.iter().filter(|(_, in_table)| *in_table) {
                define::add_index(&link.db, &object, index, true, now).map_err(sqlite)?;
            }
            define::create_storage(&link.db, &reload(link, id)?).map_err(sqlite)?;
            for (index, _) in indexes.iter().filter(|(_, in_table)| !in_table) {
                define::add_index(&link.db, &object, index, false, now).map_err(sqlite)?;
            }
            for i in &t.indexes {
                define::add_index(
                    &link.db,
                    &object,
                    &NewIndex {
                        name: i.name.clone(),
                        unique: i.unique,
                        clustered: i.clustered,
                        columns: i.columns.clone(),
                        ..NewIndex::default()
                    },
                    false,
                    now,
                )
                .map_err(sqlite)?;
            }
            Ok(())
        })
    }

    /// The tables that foreign keys refer to, looked up before the catalog is written.
    pub(super) fn referenced(
        &self,
        database: &str,
        schema: &str,
        own: &str,
        constraints: &[Constraint],
    ) -> Result<Referenced, SqlError> {
        let mut list = Vec::new();
        for c in constraints {
            let ConstraintKind::ForeignKey { table, .. } = &c.kind else { continue };
            let other = table.schema.as_deref().unwrap_or("dbo");
            let itself = same(&table.object, own) && same(other, schema);
            let found = self.find_object(database, other, &table.object)?;
            if found.is_none() && !itself {
                return Err(message::error(
                    1767,
                    16,
                    format!("Foreign key '{}' references invalid table '{table}'.", c.name.clone().unwrap_or_default()),
                ));
            }
            list.push((table.to_string(), found));
        }
        Ok(list)
    }

    /// Writes a constraint into the catalog. Keys are collected: whether they lie in the table or beside it is the caller's.
    pub(super) fn add_constraint(
        &self,
        link: &Link,
        object: &Object,
        c: &Constraint,
        referenced: &Referenced,
        indexes: &mut Vec<(NewIndex, bool)>,
        now: i64,
    ) -> Result<(), SqlError> {
        let made = |prefix: &str, column: Option<&str>| {
            c.name.clone().unwrap_or_else(|| {
                define::made_name(prefix, &object.name, column, object.object_id + indexes.len() as i64 + now % 1000)
            })
        };
        match &c.kind {
            ConstraintKind::PrimaryKey { columns, clustered } | ConstraintKind::Unique { columns, clustered } => {
                let primary = matches!(c.kind, ConstraintKind::PrimaryKey { .. });
                for (name, _) in columns {
                    object.column(name).ok_or_else(|| {
                        message::error(1911, 16, format!("Column name '{name}' does not exist in the target table or view."))
                    })?;
                }
                let single_integer = match columns.as_slice() {
                    [(name, false)] => object.column(name).is_some_and(|k| {
                        types::is_integer(&k.data_type) && k.data_type != tds::DataType::Bit && k.computed.is_none()
                    }),
                    _ => false,
                };
                let name = if primary { made("PK", None) } else { made("UQ", columns.first().map(|k| k.0.as_str())) };
                let clustered = *clustered && !indexes.iter().any(|(i, _)| i.clustered);
                indexes.push((
                    NewIndex {
                        name,
                        unique: true,
                        clustered,
                        primary_key: primary,
                        constraint: true,
                        columns: columns.clone(),
                        ..NewIndex::default()
                    },
                    primary && single_integer,
                ));
            }
            ConstraintKind::ForeignKey { columns, table, referenced: names, on_delete, on_update } => {
                let other = referenced.iter().find(|(n, _)| *n == table.to_string()).and_then(|(_, o)| o.clone());
                let other = other.unwrap_or_else(|| Arc::new(object.clone()));
                let id_of = |o: &Object, name: &str| {
                    o.column(name).map(|k| k.column_id).ok_or_else(|| {
                        message::error(1769, 16, format!("Foreign key references invalid column '{name}' in table '{}'.", o.name))
                    })
                };
                let names = if names.is_empty() { other.primary_key.clone() } else { names.clone() };
                let key = NewForeignKey {
                    name: made("FK", columns.first().map(String::as_str)),
                    columns: columns.iter().map(|n| id_of(object, n)).collect::<Result<_, _>>()?,
                    referenced: other.object_id,
                    referenced_columns: names.iter().map(|n| id_of(&other, n)).collect::<Result<_, _>>()?,
                    on_delete: *on_delete,
                    on_update: *on_update,
                };
                define::add_foreign_key(&link.db, object, &key, now).map_err(sqlite)?;
            }
            ConstraintKind::Check(text) => {
                let e = parse::expression(text)?;
                let typed = CheckOnly.over(object, &e)?;
                let taken: i64 = link
                    .db
                    .query_row("SELECT count(*) FROM \"~objects\" WHERE parent_object_id = ?1", [object.object_id], |r| r.get(0))
                    .map_err(sqlite)?;
                let name =
                    c.name.clone().unwrap_or_else(|| define::made_name("CK", &object.name, None, object.object_id + taken));
                define::add_check(&link.db, object, &name, text, &typed, now).map_err(sqlite)?;
            }
            ConstraintKind::Default { expression, column } => {
                let column = object.column(column).ok_or_else(|| message::invalid_column(column))?;
                let name = c
                    .name
                    .clone()
                    .unwrap_or_else(|| define::made_name("DF", &object.name, Some(&column.name), object.object_id + now % 1000));
                let text = define::parenthesised(expression);
                let id = define::insert_object(&link.db, &object.schema, &name, "D", object.object_id, Some(&text), now)
                    .map_err(sqlite)?;
                link.db
                    .execute(
                        "UPDATE \"~columns\" SET default_id = ?3, default_text = ?4 WHERE object_id = ?1 AND column_id = ?2",
                        (object.object_id, column.column_id, id, text),
                    )
                    .map_err(sqlite)?;
            }
        }
        Ok(())
    }

    /// SELECT INTO's table.
    pub(super) fn create_plain(&self, name: &Name, columns: &[NewColumn]) -> Result<(), SqlError> {
        if name.object.starts_with('#') {
            return self.make_temporary(&name.object, columns, &[]);
        }
        let (database, schema) = self.place(name)?;
        self.writing(&database, |link| {
            self.taken(link, &schema, &name.object)?;
            let id = define::create_table(&link.db, &schema, &name.object, columns, false, self.shared.clock.local_ticks())
                .map_err(sqlite)?;
            define::create_storage(&link.db, &reload(link, id)?).map_err(sqlite)
        })
    }

    fn drop_table(&self, name: &Name, if_exists: bool) -> Result<(), SqlError> {
        let missing = || {
            message::error(
                3701,
                11,
                format!("Cannot drop the table '{name}', because it does not exist or you do not have permission."),
            )
        };
        if name.object.starts_with('#') {
            return if self.drop_temporary(&name.object) || if_exists { Ok(()) } else { Err(missing()) };
        }
        let mut translator = Translator::new(self);
        let (database, object) = match translator.find(name) {
            Ok(found) => found,
            Err(e) if e.number == 208 => return if if_exists { Ok(()) } else { Err(missing()) },
            Err(e) => return Err(e),
        };
        self.require_ddl(&database)?;
        self.writing(&database, |link| {
            if object.kind == ObjectKind::View {
                define::forget(&link.db, object.object_id).map_err(sqlite)?;
                return catalog::touch(&link.db).map_err(sqlite);
            }
            let referrer: i64 = link
                .db
                .query_row(
                    "SELECT count(*) FROM \"~fks\" WHERE referenced_object_id = ?1 AND parent_object_id <> ?1",
                    [object.object_id],
                    |r| r.get(0),
                )
                .map_err(sqlite)?;
            if referrer > 0 {
                return Err(message::error(
                    3726,
                    16,
                    format!("Could not drop object '{name}' because it is referenced by a FOREIGN KEY constraint."),
                ));
            }
            let mut capture = CaptureCatalog { db: &link.db, now: self.shared.clock.local_ticks() };
            cdc::ddl::table_dropped(&link.db, &mut capture, object.object_id).map_err(|e| capture_procedures::error(&e))?;
            define::drop_table(&link.db, &object).map_err(sqlite)
        })
    }

    fn truncate(&self, name: &Name) -> Result<(), SqlError> {
        let mut translator = Translator::new(self);
        let (database, object) = translator.find(name)?;
        if object.schema.is_empty() {
            return self.with(&database, |l| {
                l.db.execute_batch(&format!("DELETE FROM temp.{}", catalog::quote(&object.storage()))).map_err(sqlite)
            });
        }
        self.require_ddl(&database)?;
        self.writing(&database, |link| {
            if cdc::ddl::is_tracked(&link.db, object.object_id).map_err(|e| capture_procedures::error(&e))? {
                return Err(message::error(4711, 16, format!("Cannot truncate table '{name}' because it is published for replication or enabled for Change Data Capture.")));
            }
            let referrer: i64 = link.db.query_row("SELECT count(*) FROM \"~fks\" WHERE referenced_object_id = ?1 AND parent_object_id <> ?1", [object.object_id], |r| r.get(0)).map_err(sqlite)?;
            if referrer > 0 {
                return Err(message::error(4712, 16, format!("Cannot truncate table '{name}' because it is being referenced by a FOREIGN KEY constraint.")));
            }
            link.db.execute_batch(&format!("DELETE FROM {}", catalog::quote(&object.storage()))).map_err(sqlite)?;
            link.db.execute("UPDATE \"~columns\" SET last_value = NULL WHERE object_id = ?1", [object.object_id]).map_err(sqlite)?;
            Ok(())
        })
    }

    fn create_schema(&self, name: &str) -> Result<(), SqlError> {
        let database = self.current();
        self.require_ddl(&database)?;
        self.writing(&database, |link| {
            let id: i64 = link
                .db
                .query_row("SELECT max(max(schema_id) + 1, 5) FROM \"~schemas\" WHERE schema_id < 16384", [], |r| r.get(0))
                .map_err(sqlite)?;
            link.db
                .execute("INSERT INTO \"~schemas\" VALUES (?1, ?2, 1)", (id, name))
                .map_err(|_| message::error(2714, 16, format!("There is already an object named '{name}' in the database.")))?;
            catalog::touch(&link.db).map_err(sqlite)
        })
    }

    fn create_view(
        &self,
        name: &Name,
        text: &str,
        query: &sqlparser::ast::Query,
        names: &[String],
        replace: bool,
    ) -> Result<(), SqlError> {
        let (database, schema) = self.place(name)?;
        let mut translator = Translator::new(self);
        translator.statement_query(query)?;
        let columns = translator.out.columns;
        let mut list = Vec::new();
        for (i, c) in columns.iter().enumerate() {
            let own = names.get(i).cloned().unwrap_or_else(|| c.name.clone());
            if own.is_empty() {
                return Err(message::error(
                    4511,
                    16,
                    format!("Create View or Function failed because no column name was specified for column {}.", i + 1),
                ));
            }
            list.push(NewColumn {
                name: own,
                data_type: c.data_type.clone(),
                type_name: types::name(&c.data_type).into(),
                nullable: c.nullable,
                identity: None,
                computed: None,
                persisted: false,
                default: None,
                collation: None,
                rowguid: false,
            });
        }
        self.writing(&database, |link| {
            let now = self.shared.clock.local_ticks();
            if let (true, Some(old)) = (replace, catalog::load(&link.db, &schema, &name.object).map_err(sqlite)?) {
                define::forget(&link.db, old.object_id).map_err(sqlite)?;
            }
            self.taken(link, &schema, &name.object)?;
            let id = define::insert_object(&link.db, &schema, &name.object, "V", 0, Some(text), now).map_err(sqlite)?;
            for (i, c) in list.iter().enumerate() {
                define::insert_column(&link.db, id, &schema, &name.object, c, i as i32 + 1, now).map_err(sqlite)?;
            }
            catalog::touch(&link.db).map_err(sqlite)
        })
    }

    fn alter_database(&self, name: Option<&str>, words: &[String]) -> Result<(), SqlError> {
        let database = match name {
            Some(n) => self.shared.database(n).ok_or_else(|| message::error(5011, 14, format!("User does not have permission to alter database '{n}', the database does not exist, or the database is not in a state that allows access checks.")))?.name,
            None => self.current(),
        };
        self.require_ddl(&database)?;
        let key = match words.first().map(String::as_str) {
            Some("ALLOW_SNAPSHOT_ISOLATION") => "snapshot",
            Some("READ_COMMITTED_SNAPSHOT") => "rcsi",
            _ => return Ok(()),
        };
        let on = i64::from(words.iter().any(|w| w == "ON"));
        self.writing(&database, |link| catalog::set_setting(&link.db, key, on).map_err(sqlite))
    }
}

/// A collation must be known, and one of two-byte characters is so for Unicode columns alone.
pub(super) fn check_collation(name: &str, t: &tds::DataType) -> Result<(), SqlError> {
    let known = tds::Collation::named(name).ok_or_else(|| message::error(448, 16, format!("Invalid collation '{name}'.")))?;
    if known.is_spoken() || types::is_unicode(t) {
        return Ok(());
    }
    Err(message::unsupported(&format!(
        "Non-Unicode text of the collation '{name}', whose code page has characters of two bytes,"
    )))
}

pub(super) fn reload(link: &Link, id: i64) -> Result<Object, SqlError> {
    let (schema, name): (String, String) = link
        .db
        .query_row("SELECT schema, name FROM \"~objects\" WHERE object_id = ?1", [id], |r| Ok((r.get(0)?, r.get(1)?)))
        .map_err(sqlite)?;
    catalog::load(&link.db, &schema, &name).map_err(sqlite)?.ok_or_else(|| message::invalid_object(&name))
}

/// CHECK constraints see their table's columns and nothing of the session, so they are translated without it: the catalog is being written meanwhile.
struct CheckOnly;

impl CheckOnly {
    fn over(self, object: &Object, e: &sqlparser::ast::Expr) -> Result<String, SqlError> {
        Ok(Translator::new(&super::lookup::Nobody).over_table(plain_columns(&object.columns), e, true)?.sql)
    }
}
