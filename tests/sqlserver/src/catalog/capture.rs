//! The catalog as change data capture sees it.

use rusqlite::Connection;

use cdc::{SourceColumn, SourceTable, TableIndex};

use super::define::{NewColumn, NewIndex};
use super::{Object, define, load, rewrite, same};
use crate::types;

/// The catalog of the database that is the connection's main one.
pub(crate) struct CaptureCatalog<'a> {
    pub(crate) db: &'a Connection,
    pub(crate) now: i64,
}

/// Between a declared type and its collation, where that is not the database's.
const COLLATE: &str = " COLLATE ";

fn collated(declared: &str) -> (&str, Option<&str>) {
    declared.split_once(COLLATE).map_or((declared, None), |(t, collation)| (t, Some(collation)))
}

fn invalid(e: &tds::SqlError) -> rusqlite::Error {
    crate::functions::fail(e)
}

impl CaptureCatalog<'_> {
    fn describe(&self, o: &Object) -> rusqlite::Result<SourceTable> {
        let columns = o
            .columns
            .iter()
            .map(|c| SourceColumn {
                name: c.name.clone(),
                column_id: c.column_id,
                type_name: match c.type_name.as_str() {
                    "timestamp" | "json" => c.type_name.clone(),
                    vector if types::dimensions(vector).is_some() => "vector".into(),
                    _ => types::name(&c.data_type).to_string(),
                },
                declared_type: match c.type_name.as_str() {
                    "timestamp" => "binary(8)".into(),
                    "json" => "json".into(),
                    vector if types::dimensions(vector).is_some() => c.type_name.clone(),
                    _ => match &c.collation {
                        Some(name) if types::is_string(&c.data_type) && name != super::DEFAULT_COLLATION => {
                            format!("{}{COLLATE}{name}", types::declared(&c.data_type))
                        }
                        _ => types::declared(&c.data_type),
                    },
                },
                is_computed: c.computed.is_some(),
                is_identity: c.identity.is_some(),
                nullable: c.nullable,
            })
            .collect();
        let indexes: Vec<(i64, String, bool)> = self
            .db
            .prepare_cached("SELECT index_id, name, is_primary_key FROM \"~indexes\" WHERE object_id = ?1 AND is_unique = 1 ORDER BY index_id")?
            .query_map([o.object_id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut primary_key = None;
        let mut unique_indexes = Vec::new();
        for (id, name, primary) in indexes {
            let columns: Vec<String> = self
                .db
                .prepare_cached(
                    "SELECT c.name FROM \"~index_columns\" ic JOIN \"~columns\" c ON c.object_id = ic.object_id AND c.column_id = ic.column_id \
                     WHERE ic.object_id = ?1 AND ic.index_id = ?2 AND ic.included = 0 ORDER BY ic.key_ordinal",
                )?
                .query_map([o.object_id, id], |r| r.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            if primary {
                primary_key = Some((name, columns));
            } else {
                unique_indexes.push((name, columns));
            }
        }
        Ok(SourceTable {
            object_id: o.object_id,
            schema: o.schema.clone(),
            name: o.name.clone(),
            columns,
            primary_key,
            unique_indexes,
        })
    }
}

impl cdc::Catalog for CaptureCatalog<'_> {
    fn create_table(&mut self, schema: &str, name: &str, columns: &[(String, String, bool)]) -> rusqlite::Result<i64> {
        if self.db.query_row("SELECT count(*) FROM \"~schemas\" WHERE name = ?1", [schema], |r| r.get::<_, i64>(0))? == 0 {
            let id: i64 =
                self.db
                    .query_row("SELECT max(max(schema_id) + 1, 5) FROM \"~schemas\" WHERE schema_id < 16384", [], |r| r.get(0))?;
            self.db.execute("INSERT INTO \"~schemas\" VALUES (?1, ?2, 1)", (id, schema))?;
        }
        let mut list = Vec::new();
        for (column, declared, nullable) in columns {
            let (declared, collation) = collated(declared);
            let declared = types::parse(declared, 1).map_err(|e| invalid(&e))?;
            list.push(NewColumn {
                name: column.clone(),
                data_type: declared.data_type,
                type_name: declared.name,
                nullable: *nullable,
                identity: None,
                computed: None,
                persisted: false,
                default: None,
                collation: collation.map(str::to_string),
                rowguid: false,
            });
        }
        let id = define::create_table(self.db, schema, name, &list, true, self.now)?;
        if let Some(object) = load::by_id(self.db, id)? {
            define::create_storage(self.db, &object)?;
        }
        Ok(id)
    }

    fn drop_table(&mut self, object_id: i64) -> rusqlite::Result<()> {
        match load::by_id(self.db, object_id)? {
            Some(o) => define::drop_table(self.db, &o),
            None => Ok(()),
        }
    }

    fn source_table(&self, schema: &str, name: &str) -> rusqlite::Result<Option<SourceTable>> {
        load::load(self.db, schema, name)?.filter(|o| o.kind == super::ObjectKind::Table).map(|o| self.describe(&o)).transpose()
    }

    fn source_table_by_id(&self, object_id: i64) -> rusqlite::Result<Option<SourceTable>> {
        load::by_id(self.db, object_id)?.map(|o| self.describe(&o)).transpose()
    }

    fn alter_column(&mut self, object_id: i64, column: &str, declared_type: &str) -> rusqlite::Result<()> {
        let Some(object) = load::by_id(self.db, object_id)? else { return Ok(()) };
        let Some(old) = object.columns.iter().find(|c| same(&c.name, column)).cloned() else { return Ok(()) };
        let (declared, collation) = collated(declared_type);
        let declared = types::parse(declared, 1).map_err(|e| invalid(&e))?;
        define::set_type(self.db, &object, &old, &declared.data_type, &declared.name, old.nullable, collation)?;
        let Some(object) = load::by_id(self.db, object_id)? else { return Ok(()) };
        rewrite::convert_column(self.db, &object, column, &old.data_type, &declared.data_type)
    }

    fn create_index(&mut self, object_id: i64, index: &TableIndex) -> rusqlite::Result<()> {
        let Some(object) = load::by_id(self.db, object_id)? else { return Ok(()) };
        let index = NewIndex {
            name: index.name.clone(),
            unique: index.unique,
            clustered: index.clustered,
            columns: index.columns.iter().map(|c| (c.clone(), false)).collect(),
            ..NewIndex::default()
        };
        define::add_index(self.db, &object, &index, false, self.now)
    }
}
