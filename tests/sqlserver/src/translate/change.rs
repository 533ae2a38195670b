//! UPDATE and DELETE.

use sqlparser::ast::{Expr, TableFactor, TableWithJoins};
use tds::{DataType, SqlError};

use super::dml::{ChangePlan, Moved};
use super::relation::columns_of;
use super::{Scope, SourceColumn, SourceTable, Translator, Typed, name_of};
use crate::catalog::{ColumnInfo, Object, quote, same};
use crate::message;
use crate::parse::{Delete, Name, Output, Update};

impl Translator<'_> {
    /// The assignments of an UPDATE: SQLite column and value.
    fn assignments(&mut self, update: &Update, object: &Object, database: &str) -> Result<Vec<(ColumnInfo, Typed)>, SqlError> {
        let mut list = Vec::new();
        for (name, e) in &update.set {
            let c = object.column(name).cloned().ok_or_else(|| message::invalid_column(name))?;
            if c.identity.is_some() {
                return Err(message::error(8102, 16, format!("Cannot update identity column '{}'.", c.name)));
            }
            if c.is_rowversion() {
                return Err(message::error(272, 16, "Cannot update a timestamp column.".into()));
            }
            if c.computed.is_some() {
                return Err(message::error(
                    271,
                    16,
                    format!(
                        "The column \"{}\" cannot be modified because it is either a computed column or is the result of a UNION operator.",
                        c.name
                    ),
                ));
            }
            let value = match e {
                Some(e) => {
                    let e = self.value(e)?;
                    self.given(e, &c, object, database)?
                }
                None => match &c.default {
                    Some(text) => self.default_value(&text.clone(), &c, object, database)?,
                    None => Typed { data_type: c.data_type.clone(), ..Typed::null() },
                },
            };
            list.push((c, value));
        }
        for c in object.columns.iter().filter(|c| c.is_rowversion()) {
            list.push((c.clone(), Typed::new("next_rowversion()", DataType::Binary(8))));
        }
        Ok(list)
    }

    pub(crate) fn update(mut self, update: &Update) -> Result<ChangePlan, SqlError> {
        let target = aliased(&update.from, &update.target).unwrap_or_else(|| update.target.clone());
        let (database, object) = self.target(&target, "UPDATE")?;
        let table = self.storage(&database, &object);
        let with = self.with_clause(update.with.as_ref())?;
        let exposed = update.target.object.clone();
        let (source, condition) =
            self.change_scope(&update.from, update.condition.as_ref(), &object, &table, &exposed, &target)?;
        let set = self.assignments(update, &object, &database)?;
        let output = match &update.output {
            Some(o) => Some(self.update_output(o, &object, &exposed, &set, &source, &condition, &with)?),
            None => None,
        };
        let top = match &update.top {
            Some(e) => {
                let e = self.value(e)?;
                Some(self.cast(e, &DataType::BigInt, 0, false)?.sql)
            }
            None => None,
        };
        self.pop_scope();
        let filter = if condition.is_empty() { String::new() } else { format!(" WHERE {condition}") };
        let limit = top.as_ref().map(|t| format!(" LIMIT {t}")).unwrap_or_default();
        let items: Vec<String> = set.iter().enumerate().map(|(i, (_, e))| format!("{} AS \"{}\"", e.sql, i + 1)).collect();
        let select = format!("SELECT {}._rowid_ AS \"~r\", {} FROM {source}{filter}{limit}", quote(&exposed), items.join(", "));
        let columns = set.iter().map(|(c, _)| c.name.clone()).collect();
        let sql = if update.from.is_empty() && top.is_none() {
            let set: Vec<String> = set.iter().map(|(c, e)| format!("{} = {}", quote(&c.name), e.sql)).collect();
            format!("{with}UPDATE {table} AS {} SET {}{filter}", quote(&exposed), set.join(", "))
        } else {
            let assigned: Vec<String> =
                set.iter().enumerate().map(|(i, (c, _))| format!("{} = \"~s\".\"{}\"", quote(&c.name), i + 1)).collect();
            format!(
                "{with}UPDATE {table} AS \"~t\" SET {} FROM ({select}) AS \"~s\" WHERE \"~t\"._rowid_ = \"~s\".\"~r\"",
                assigned.join(", ")
            )
        };
        let moved = Some(Moved { select: format!("{with}{select}"), columns });
        Ok(ChangePlan { object, table, moved, database, translated: self.finish(sql), output })
    }

    /// OUTPUT of an UPDATE: `deleted` are the columns before it, `inserted` the assigned values.
    #[expect(clippy::too_many_arguments, reason = "the parts of one statement")]
    fn update_output(
        &mut self,
        output: &Output,
        object: &Object,
        exposed: &str,
        set: &[(ColumnInfo, Typed)],
        source: &str,
        condition: &str,
        with: &str,
    ) -> Result<String, SqlError> {
        let old = columns_of(object, &format!("{}.", quote(exposed)));
        let new = old
            .iter()
            .map(|c| match set.iter().find(|(s, _)| same(&s.name, &c.name)) {
                Some((_, e)) => SourceColumn { sql: e.sql.clone(), is_column: false, ..c.clone() },
                None => c.clone(),
            })
            .collect();
        let tables = vec![
            SourceTable { exposed: "deleted".into(), schema: None, columns: old },
            SourceTable { exposed: "inserted".into(), schema: None, columns: new },
        ];
        self.scopes.push(Scope { tables });
        let items = self.output_items(output);
        self.scopes.pop();
        let (list, columns) = items?;
        self.out.columns = columns;
        let filter = if condition.is_empty() { String::new() } else { format!(" WHERE {condition}") };
        Ok(format!("{with}SELECT {} FROM {source}{filter}", list.join(", ")))
    }

    /// The rows that an UPDATE or DELETE changes: FROM's text with the target in it, and the condition. The scope stays open.
    fn change_scope(
        &mut self,
        from: &[TableWithJoins],
        condition: Option<&Expr>,
        object: &Object,
        table: &str,
        exposed: &str,
        target: &Name,
    ) -> Result<(String, String), SqlError> {
        let mut source = self.from(from)?;
        let known = self.scopes.last().is_some_and(|s| s.tables.iter().any(|t| same(&t.exposed, exposed)));
        if !known {
            let columns = columns_of(object, &format!("{}.", quote(exposed)));
            let schema = Some(target.schema.clone().unwrap_or_else(|| "dbo".into()));
            if let Some(scope) = self.scopes.last_mut() {
                scope.tables.push(SourceTable { exposed: exposed.to_string(), schema, columns });
            }
            let own = format!("{table} AS {}", quote(exposed));
            source = if source.is_empty() { own } else { format!("{own}, {source}") };
        }
        let condition = match condition {
            Some(e) => self.condition(e)?,
            None => String::new(),
        };
        Ok((source, condition))
    }

    pub(crate) fn delete(mut self, delete: &Delete) -> Result<ChangePlan, SqlError> {
        let target = aliased(&delete.from, &delete.target).unwrap_or_else(|| delete.target.clone());
        let (database, object) = self.target(&target, "DELETE")?;
        let table = self.storage(&database, &object);
        let with = self.with_clause(delete.with.as_ref())?;
        let exposed = delete.target.object.clone();
        let (source, condition) =
            self.change_scope(&delete.from, delete.condition.as_ref(), &object, &table, &exposed, &target)?;
        let top = match &delete.top {
            Some(e) => {
                let e = self.value(e)?;
                Some(self.cast(e, &DataType::BigInt, 0, false)?.sql)
            }
            None => None,
        };
        self.pop_scope();
        let filter = if condition.is_empty() { String::new() } else { format!(" WHERE {condition}") };
        let mut sql = if delete.from.is_empty() && top.is_none() {
            format!("{with}DELETE FROM {table} AS {}{filter}", quote(&exposed))
        } else {
            let limit = top.map(|t| format!(" LIMIT {t}")).unwrap_or_default();
            format!(
                "{with}DELETE FROM {table} WHERE _rowid_ IN (SELECT {}._rowid_ FROM {source}{filter}{limit})",
                quote(&exposed)
            )
        };
        sql.push_str(&self.returning(delete.output.as_ref(), &object, "deleted")?);
        Ok(ChangePlan { object, table, moved: None, database, translated: self.finish(sql), output: None })
    }
}

/// The table behind an alias of FROM that an UPDATE or DELETE names as its target.
fn aliased(from: &[TableWithJoins], target: &Name) -> Option<Name> {
    if target.schema.is_some() {
        return None;
    }
    let factors = from.iter().flat_map(|t| std::iter::once(&t.relation).chain(t.joins.iter().map(|j| &j.relation)));
    for f in factors {
        if let TableFactor::Table { name, alias: Some(alias), .. } = f
            && same(&alias.name.value, &target.object)
        {
            return Some(name_of(name));
        }
    }
    // Without an alias the table may stand in FROM with its schema.
    let factors = from.iter().flat_map(|t| std::iter::once(&t.relation).chain(t.joins.iter().map(|j| &j.relation)));
    for f in factors {
        if let TableFactor::Table { name, alias: None, .. } = f
            && same(&name_of(name).object, &target.object)
        {
            return Some(name_of(name));
        }
    }
    None
}
