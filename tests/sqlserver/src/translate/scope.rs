//! Which columns a name may mean.

use tds::{DataType, SqlError};

use super::{Translator, Typed};
use crate::catalog::{Collation, same};
use crate::message;

#[derive(Debug, Clone)]
pub(crate) struct SourceColumn {
    pub(crate) name: String,
    /// The column in SQLite's SQL.
    pub(crate) sql: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    pub(crate) collation: Collation,
    pub(crate) is_column: bool,
    pub(crate) identity: bool,
    pub(crate) computed: bool,
}

impl SourceColumn {
    fn typed(&self) -> Typed {
        Typed {
            nullable: self.nullable,
            is_column: self.is_column,
            collation: self.collation,
            identity: self.identity,
            computed: self.computed,
            ..Typed::new(self.sql.clone(), self.data_type.clone())
        }
    }
}

/// One relation of a FROM clause.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceTable {
    /// The alias, or the table's name.
    pub(crate) exposed: String,
    /// Set if there is no alias, so that `schema.table.column` means it too.
    pub(crate) schema: Option<String>,
    pub(crate) columns: Vec<SourceColumn>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    pub(crate) tables: Vec<SourceTable>,
}

impl Translator<'_> {
    /// The column that a name of one to four parts means: the innermost query first.
    pub(super) fn resolve(&self, parts: &[&str]) -> Result<Typed, SqlError> {
        let (column, qualifiers) = parts.split_last().map_or(("", [].as_slice()), |(c, q)| (*c, q));
        for scope in self.scopes.iter().rev() {
            let mut found: Option<&SourceColumn> = None;
            for table in &scope.tables {
                let fits = match qualifiers {
                    [] => true,
                    [table_name] => same(table_name, &table.exposed),
                    [.., schema, table_name] => {
                        same(table_name, &table.exposed)
                            && table.schema.as_deref().is_some_and(|s| same(s, schema) || schema.is_empty())
                    }
                };
                let Some(c) = fits.then(|| table.columns.iter().find(|c| same(&c.name, column))).flatten() else { continue };
                if found.is_some() {
                    return Err(message::error(209, 16, format!("Ambiguous column name '{column}'.")));
                }
                found = Some(c);
            }
            if let Some(c) = found {
                return Ok(c.typed());
            }
        }
        if qualifiers.is_empty() {
            return Err(message::invalid_column(column));
        }
        let qualifier = qualifiers.join(".");
        let table_known =
            self.scopes.iter().any(|s| s.tables.iter().any(|t| qualifiers.last().is_some_and(|q| same(q, &t.exposed))));
        if table_known {
            return Err(message::invalid_column(column));
        }
        Err(message::error(4104, 16, format!("The multi-part identifier \"{qualifier}.{column}\" could not be bound.")))
    }

    /// The columns that `*` or `t.*` stands for.
    pub(super) fn wildcard(&self, qualifier: Option<&str>) -> Result<Vec<(String, Typed)>, SqlError> {
        let Some(scope) = self.scopes.last() else { return Ok(Vec::new()) };
        let tables: Vec<&SourceTable> = scope.tables.iter().filter(|t| qualifier.is_none_or(|q| same(q, &t.exposed))).collect();
        if tables.is_empty() {
            return Err(match qualifier {
                Some(q) => message::error(
                    107,
                    15,
                    format!("The column prefix '{q}' does not match with a table name or alias name used in the query."),
                ),
                None => message::error(263, 16, "Must specify table to select from.".into()),
            });
        }
        Ok(tables.iter().flat_map(|t| t.columns.iter().map(|c| (c.name.clone(), c.typed()))).collect())
    }
}
