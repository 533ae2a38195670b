//! FROM: tables, views, derived tables, common table expressions, joins.

use std::sync::Arc;

use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, TableAlias, TableFactor,
    TableWithJoins,
};
use tds::{DataType, SqlError};

use super::{Derived, SourceColumn, SourceTable, Translator};
use crate::catalog::{Collation, Object, ObjectKind, quote, same};
use crate::message;
use crate::parse::{self, Name};
use crate::types;

pub(crate) fn name_of(name: &ObjectName) -> Name {
    let mut parts: Vec<String> = name
        .0
        .iter()
        .map(|p| match p {
            ObjectNamePart::Identifier(i) => i.value.clone(),
            ObjectNamePart::Function(f) => f.name.value.clone(),
        })
        .collect();
    let object = parts.pop().unwrap_or_default();
    let schema = parts.pop().filter(|s| !s.is_empty());
    let database = parts.pop().filter(|s| !s.is_empty());
    Name { database, schema, object }
}

/// CDC keeps datetimes as text in its own tables; change tables hold users' values as users' tables do.
pub(super) fn is_cdc_text(object: &Object, t: &DataType) -> bool {
    *t == DataType::DateTime && object.shipped && object.schema == "cdc" && !object.name.ends_with("_CT")
}

/// The source columns of a stored table under a qualifier.
pub(crate) fn columns_of(object: &Object, qualifier: &str) -> Vec<SourceColumn> {
    object
        .columns
        .iter()
        .map(|c| {
            let sql = format!("{qualifier}{}", quote(&c.name));
            let wrapped = is_cdc_text(object, &c.data_type);
            SourceColumn {
                name: c.name.clone(),
                sql: if wrapped { format!("cdt({sql})") } else { sql },
                data_type: c.data_type.clone(),
                nullable: c.nullable,
                collation: c.collation(),
                is_column: !wrapped,
                identity: c.identity.is_some(),
                computed: c.computed.is_some(),
            }
        })
        .collect()
}

impl Translator<'_> {
    /// A table or view by name: what the catalog has, with the database it is in.
    pub(crate) fn find(&mut self, name: &Name) -> Result<(String, Arc<Object>), SqlError> {
        if name.schema.is_none() && (name.object.starts_with('#') || name.object.starts_with('@')) {
            let object = self.lookup.temporary(&name.object).ok_or_else(|| {
                if name.object.starts_with('@') {
                    message::error(1087, 15, format!("Must declare the table variable \"{}\".", name.object))
                } else {
                    message::invalid_object(&name.object)
                }
            })?;
            return Ok((self.lookup.current_database(), object));
        }
        let database = match &name.database {
            Some(d) if same(d, "tempdb") && name.object.starts_with('#') => {
                let local = Name { object: name.object.clone(), ..Name::default() };
                return self.find(&local);
            }
            Some(d) => self.lookup.database(d).ok_or_else(|| message::invalid_object(&name.to_string()))?,
            None => self.lookup.current_database(),
        };
        let schema = name.schema.as_deref().unwrap_or("dbo");
        match self.lookup.object(&database, schema, &name.object)? {
            Some(object) => Ok((database, object)),
            None => Err(message::invalid_object(&name.to_string())),
        }
    }

    /// The SQLite table of an object, qualified.
    pub(crate) fn storage(&mut self, database: &str, object: &Object) -> String {
        if object.schema.is_empty() {
            return format!("temp.{}", quote(&object.storage()));
        }
        format!("{}{}", self.qualifier(database), quote(&object.storage()))
    }

    /// FROM's text, with its relations in a new scope.
    pub(super) fn from(&mut self, from: &[TableWithJoins]) -> Result<String, SqlError> {
        self.push_scope(Vec::new());
        let mut parts = Vec::new();
        for item in from {
            parts.push(self.joined(item)?);
        }
        Ok(parts.join(", "))
    }

    pub(super) fn joined(&mut self, item: &TableWithJoins) -> Result<String, SqlError> {
        let mut sql = self.factor(&item.relation)?;
        for join in &item.joins {
            let (word, constraint) = match &join.join_operator {
                JoinOperator::Join(c) | JoinOperator::Inner(c) => ("JOIN", Some(c)),
                JoinOperator::Left(c) | JoinOperator::LeftOuter(c) => ("LEFT JOIN", Some(c)),
                JoinOperator::Right(c) | JoinOperator::RightOuter(c) => ("RIGHT JOIN", Some(c)),
                JoinOperator::FullOuter(c) => ("FULL JOIN", Some(c)),
                JoinOperator::CrossJoin(_) => ("CROSS JOIN", None),
                JoinOperator::CrossApply => ("CROSS JOIN", None),
                _ => return Err(message::unsupported("This kind of join")),
            };
            let right = self.factor(&join.relation)?;
            sql.push_str(&format!(" {word} {right}"));
            match constraint {
                Some(JoinConstraint::On(e)) => sql.push_str(&format!(" ON {}", self.condition(e)?)),
                Some(_) => return Err(message::syntax_keyword("JOIN", 1)),
                None => {}
            }
        }
        Ok(sql)
    }

    fn hints(&mut self, hints: &[Expr]) {
        let words: Vec<String> = hints.iter().map(|h| h.to_string().to_ascii_uppercase()).collect();
        let has = |w: &str| words.iter().any(|x| x == w);
        if has("TABLOCKX") || has("XLOCK") || has("UPDLOCK") || (has("TABLOCK") && has("HOLDLOCK")) {
            self.out.locks = true;
        }
    }

    fn factor(&mut self, factor: &TableFactor) -> Result<String, SqlError> {
        match factor {
            TableFactor::Table { name, alias, args, with_hints, .. } => {
                self.hints(with_hints);
                let name = name_of(name);
                match args {
                    // FROM t (NOLOCK): hints without WITH.
                    Some(a) if a.args.iter().all(is_hint) && !a.args.is_empty() => self.table(&name, alias.as_ref()),
                    Some(a) => self.table_function_factor(&name, &a.args, alias.as_ref()),
                    None => self.table(&name, alias.as_ref()),
                }
            }
            TableFactor::Function { name, args, alias, .. } => self.table_function_factor(&name_of(name), args, alias.as_ref()),
            TableFactor::Derived { subquery, alias, .. } => {
                let Some(alias) = alias else { return Err(message::syntax(")", 1)) };
                let (sql, mut columns) = self.isolated(subquery)?;
                rename(&mut columns, alias)?;
                let exposed = alias.name.value.clone();
                let names: Vec<String> = columns.iter().map(|c| quote(&c.name)).collect();
                for c in &mut columns {
                    c.sql = format!("{}.{}", quote(&exposed), quote(&c.name));
                }
                self.expose(exposed.clone(), None, columns);
                if alias.columns.is_empty() {
                    return Ok(format!("({sql}) AS {}", quote(&exposed)));
                }
                let inner = self.fresh();
                Ok(format!(
                    "(WITH {0}({1}) AS ({sql}) SELECT * FROM {0}) AS {2}",
                    quote(&inner),
                    names.join(", "),
                    quote(&exposed)
                ))
            }
            TableFactor::NestedJoin { table_with_joins, .. } => Ok(format!("({})", self.joined(table_with_joins)?)),
            other => Err(message::unsupported(&format!("'{other}' in FROM"))),
        }
    }

    fn expose(&mut self, exposed: String, schema: Option<String>, columns: Vec<SourceColumn>) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.tables.push(SourceTable { exposed, schema, columns });
        }
    }

    /// A table, view, common table expression or system view.
    fn table(&mut self, name: &Name, alias: Option<&TableAlias>) -> Result<String, SqlError> {
        let exposed = alias.map_or_else(|| name.object.clone(), |a| a.name.value.clone());
        let schema = if alias.is_none() { Some(name.schema.clone().unwrap_or_else(|| "dbo".into())) } else { None };
        if name.schema.is_none()
            && name.database.is_none()
            && let Some((common, columns)) = self.common.iter().rev().find(|(c, _)| same(c, &name.object)).cloned()
        {
            let columns = columns
                .into_iter()
                .map(|c| SourceColumn { sql: format!("{}.{}", quote(&exposed), quote(&c.name)), ..c })
                .collect();
            self.expose(exposed.clone(), None, columns);
            return Ok(format!("{} AS {}", quote(&common), quote(&exposed)));
        }
        if let Some(view) = self.system(name)? {
            let database = match &name.database {
                Some(d) => self.lookup.database(d).ok_or_else(|| message::invalid_object(&name.to_string()))?,
                None => self.lookup.current_database(),
            };
            return Ok(self.derived(&view, &database, &exposed, schema));
        }
        let (database, object) = self.find(name)?;
        self.lookup.authorize("SELECT", &database, &object)?;
        if object.kind == ObjectKind::View {
            return self.view(&object, &exposed, schema);
        }
        self.out.reads_rows |= !object.shipped;
        let storage = self.storage(&database, &object);
        let columns = columns_of(&object, &format!("{}.", quote(&exposed)));
        self.expose(exposed.clone(), schema, columns);
        Ok(format!("{storage} AS {}", quote(&exposed)))
    }

    fn system(&mut self, name: &Name) -> Result<Option<Derived>, SqlError> {
        let schema = match &name.schema {
            Some(s) if same(s, "sys") || same(s, "INFORMATION_SCHEMA") || same(s, "dbo") => s.clone(),
            // `sysobjects` and its like need no schema.
            None if name.object.to_ascii_lowercase().starts_with("sys") => "sys".into(),
            _ => return Ok(None),
        };
        let database = match &name.database {
            Some(d) => match self.lookup.database(d) {
                Some(d) => d,
                None => return Ok(None),
            },
            None => self.lookup.current_database(),
        };
        self.lookup.system_view(&database, &schema, &name.object)
    }

    /// Puts a relation given as text into FROM.
    pub(super) fn derived(&mut self, d: &Derived, database: &str, exposed: &str, schema: Option<String>) -> String {
        self.out.volatile |= d.volatile;
        let qualifier = self.qualifier(database);
        let columns = d
            .columns
            .iter()
            .map(|c| {
                let sql = format!("{}.{}", quote(exposed), quote(&c.name));
                let computed = c.wrap.is_some();
                SourceColumn {
                    name: c.name.clone(),
                    sql: c.wrap.map_or_else(|| sql.clone(), |w| w.replace("{}", &sql)),
                    data_type: c.data_type.clone(),
                    nullable: c.nullable,
                    collation: Collation::DEFAULT,
                    // Text of system views has no collation of its own: comparisons name theirs.
                    is_column: !computed && !types::is_string(&c.data_type),
                    identity: false,
                    computed: false,
                }
            })
            .collect();
        self.expose(exposed.to_string(), schema, columns);
        format!("({}) AS {}", d.sql.replace("{db}", &qualifier), quote(exposed))
    }

    fn view(&mut self, object: &Object, exposed: &str, schema: Option<String>) -> Result<String, SqlError> {
        let text = object.definition.as_deref().unwrap_or_default();
        let statements = parse::script(text)?;
        let Some(parse::Kind::Query(query)) = statements.first().map(|s| &s.kind) else {
            return Err(message::invalid_object(&object.name));
        };
        let scopes = std::mem::take(&mut self.scopes);
        let common = std::mem::take(&mut self.common);
        let answer = self.isolated(query);
        self.scopes = scopes;
        self.common = common;
        let (sql, columns) = answer?;
        let inner = self.fresh();
        let names: Vec<String> = object.columns.iter().map(|c| quote(&c.name)).collect();
        let columns = columns
            .into_iter()
            .zip(&object.columns)
            .map(|(c, own)| SourceColumn { name: own.name.clone(), sql: format!("{}.{}", quote(exposed), quote(&own.name)), ..c })
            .collect();
        self.expose(exposed.to_string(), schema, columns);
        Ok(format!("(WITH {0}({1}) AS ({sql}) SELECT * FROM {0}) AS {2}", quote(&inner), names.join(", "), quote(exposed)))
    }
}

/// Names given by `AS t(a, b)`.
fn rename(columns: &mut [SourceColumn], alias: &TableAlias) -> Result<(), SqlError> {
    if !alias.columns.is_empty() && alias.columns.len() != columns.len() {
        return Err(message::error(
            8158,
            16,
            format!("'{}' has more columns than were specified in the column list.", alias.name.value),
        ));
    }
    for (c, a) in columns.iter_mut().zip(&alias.columns) {
        c.name.clone_from(&a.name.value);
    }
    if let Some(i) = columns.iter().position(|c| c.name.is_empty()) {
        return Err(message::error(
            8155,
            16,
            format!("No column name was specified for column {} of '{}'.", i + 1, alias.name.value),
        ));
    }
    Ok(())
}

pub(super) fn is_hint(a: &FunctionArg) -> bool {
    matches!(a, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(i)))
        if matches!(i.value.to_ascii_uppercase().as_str(), "NOLOCK" | "READUNCOMMITTED" | "READPAST" | "TABLOCK" | "TABLOCKX" | "HOLDLOCK" | "UPDLOCK" | "XLOCK" | "ROWLOCK" | "PAGLOCK"))
}
