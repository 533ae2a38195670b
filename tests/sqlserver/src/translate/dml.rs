//! INSERT, what UPDATE and DELETE share with it, and the expressions of DDL.

use std::sync::Arc;

use rusqlite::types::Value as Stored;
use sqlparser::ast::{Expr, SelectItem};
use tds::{Column, DataType, Length, SqlError, Value};

use super::relation::{columns_of, is_cdc_text};
use super::{SourceColumn, SourceTable, Translated, Translator, Typed, name_of, result_column};
use crate::catalog::{ColumnInfo, Object, ObjectKind, quote, same};
use crate::message;
use crate::parse::{self, Insert, Name, Output, Source};
use crate::types::{self, storage};

/// A part of a row to insert: bound each time, or text of the statement.
#[derive(Debug, Clone, PartialEq)]
enum Piece {
    Constant(Stored),
    Sql(String),
}

/// Rows of VALUES that share their text, so that one prepared statement serves them all.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) sql: String,
    /// The rows alone, as a query.
    pub(crate) rows_sql: String,
    pub(crate) rows: Vec<Vec<Stored>>,
}

/// A translated INSERT.
#[derive(Debug, Clone)]
pub(crate) struct InsertPlan {
    pub(crate) object: Arc<Object>,
    /// The table, qualified.
    pub(crate) table: String,
    /// The columns that get values, in their order.
    pub(crate) names: Vec<String>,
    pub(crate) database: String,
    /// One group for INSERT … SELECT, with a single empty row.
    pub(crate) groups: Vec<Group>,
    pub(crate) translated: Translated,
    pub(crate) identity: Option<(i64, i64)>,
    /// The statement gives the identity column values of its own.
    pub(crate) explicit_identity: Option<String>,
}

/// A translated UPDATE or DELETE.
#[derive(Debug, Clone)]
pub(crate) struct ChangePlan {
    pub(crate) object: Arc<Object>,
    /// The table, qualified.
    pub(crate) table: String,
    /// An UPDATE's rows before it runs.
    pub(crate) moved: Option<Moved>,
    pub(crate) database: String,
    pub(crate) translated: Translated,
    /// OUTPUT's rows, read before the change.
    pub(crate) output: Option<String>,
}

/// The rows that an UPDATE changes: their row ids (`~r`) and new values (`1`, `2`, …), and the columns that take these.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    pub(crate) select: String,
    pub(crate) columns: Vec<String>,
}

fn full_name(database: &str, o: &Object) -> String {
    format!("{database}.{}.{}", if o.schema.is_empty() { "dbo" } else { &o.schema }, o.name)
}

impl Translator<'_> {
    /// The table that a DML statement changes.
    pub(super) fn target(&mut self, name: &Name, permission: &str) -> Result<(String, Arc<Object>), SqlError> {
        let (database, object) = self.find(name)?;
        if object.kind == ObjectKind::View {
            return Err(message::unsupported("Changing rows through a view"));
        }
        self.lookup.authorize(permission, &database, &object)?;
        Ok((database, object))
    }

    /// A column's value when the statement gives none: identity, row version, default, NULL.
    fn missing(&mut self, c: &ColumnInfo, object: &Object, database: &str) -> Result<Option<Typed>, SqlError> {
        if c.computed.is_some() {
            return Ok(None);
        }
        if c.identity.is_some() {
            return Ok(Some(Typed::new("next_identity()", DataType::BigInt).not_null()));
        }
        if c.is_rowversion() {
            return Ok(Some(Typed::new("next_rowversion()", DataType::Binary(8)).not_null()));
        }
        if let Some(text) = &c.default {
            return self.default_value(text, c, object, database).map(Some);
        }
        let rowid = object.primary_key.len() == 1 && types::is_integer(&c.data_type) && same(&object.primary_key[0], &c.name);
        Ok(rowid.then(|| Typed::new(not_null_call("NULL", &full_name(database, object), &c.name), c.data_type.clone())))
    }

    pub(super) fn default_value(
        &mut self,
        text: &str,
        c: &ColumnInfo,
        object: &Object,
        database: &str,
    ) -> Result<Typed, SqlError> {
        let e = parse::expression(text)?;
        let scopes = std::mem::take(&mut self.scopes);
        let value = self.value(&e);
        self.scopes = scopes;
        let value = value?;
        self.assign(value, &c.data_type, &full_name(database, object), &c.name)
    }

    /// A given value as its column takes it.
    pub(super) fn given(&mut self, e: Typed, c: &ColumnInfo, object: &Object, database: &str) -> Result<Typed, SqlError> {
        if let (Some(encoding), DataType::Char(_) | DataType::VarChar(_) | DataType::Text) =
            (c.collation().encoding(), &c.data_type)
        {
            let table = full_name(database, object);
            let e = self.assign(e, &DataType::NVarChar(Length::Max), &table, &c.name)?;
            let bytes = types::length(&c.data_type).map_or(-1, i64::from);
            let (table, column) = (crate::catalog::text(&table), crate::catalog::text(&c.name));
            let sql = format!("enc({}, {}, {bytes}, {table}, {column})", e.sql, crate::functions::packed(encoding));
            return Ok(Typed { value: None, sql, data_type: c.data_type.clone(), ..e });
        }
        let e = self.assign(e, &c.data_type, &full_name(database, object), &c.name)?;
        // json() also takes the blanks out, as SQL Server's own form of it does.
        if c.type_name == "json" {
            return Ok(Typed { value: None, sql: format!("json({})", e.sql), ..e });
        }
        if let Some(n) = types::dimensions(&c.type_name) {
            return Ok(Typed { value: None, sql: format!("vec({}, {n})", e.sql), ..e });
        }
        if is_cdc_text(object, &c.data_type) {
            return Ok(Typed { value: None, sql: format!("cdt_text({})", e.sql), ..e });
        }
        let single_key = object.primary_key.len() == 1 && same(&object.primary_key[0], &c.name);
        if single_key && types::is_integer(&c.data_type) && e.nullable {
            return Ok(Typed { value: None, sql: not_null_call(&e.sql, &full_name(database, object), &c.name), ..e });
        }
        Ok(e)
    }

    /// The columns that the statement gives values, checked.
    fn insert_columns(
        &self,
        insert: &Insert,
        object: &Object,
        database: &str,
        identity_insert: bool,
    ) -> Result<Vec<ColumnInfo>, SqlError> {
        if insert.columns.is_empty() {
            return Ok(object
                .columns
                .iter()
                .filter(|c| c.insertable() && (c.identity.is_none() || identity_insert))
                .cloned()
                .collect());
        }
        let mut list = Vec::new();
        for name in &insert.columns {
            let c = object.column(name).ok_or_else(|| message::invalid_column(name))?;
            if c.is_rowversion() {
                return Err(message::error(273, 16, "Cannot insert an explicit value into a timestamp column. Use INSERT with a column list to exclude the timestamp column, or insert a DEFAULT into the timestamp column.".into()));
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
            if c.identity.is_some() && !identity_insert {
                return Err(message::error(
                    544,
                    16,
                    format!(
                        "Cannot insert explicit value for identity column in table '{}' when IDENTITY_INSERT is set to OFF.",
                        object.name
                    ),
                ));
            }
            if list.iter().any(|l: &ColumnInfo| l.column_id == c.column_id) {
                return Err(message::error(
                    264,
                    16,
                    format!(
                        "The column name '{name}' is specified more than once in the SET clause or column list of an INSERT."
                    ),
                ));
            }
            list.push(c.clone());
        }
        if let Some(c) = object
            .columns
            .iter()
            .find(|c| c.identity.is_some())
            .filter(|c| identity_insert && !list.iter().any(|l| l.column_id == c.column_id))
        {
            let _ = c;
            return Err(message::error(
                545,
                16,
                format!(
                    "Explicit value must be specified for identity column in table '{}' either when IDENTITY_INSERT is set to ON or when a replication user is inserting into a NOT FOR REPLICATION identity column.",
                    full_name(database, object)
                ),
            ));
        }
        Ok(list)
    }

    pub(crate) fn insert(
        mut self,
        insert: &Insert,
        identity_insert: &dyn Fn(&Object) -> bool,
        rows: Option<Vec<Vec<(Value, DataType)>>>,
    ) -> Result<InsertPlan, SqlError> {
        let (database, object) = self.target(&insert.target, "INSERT")?;
        let given = self.insert_columns(insert, &object, &database, identity_insert(&object))?;
        let table = self.storage(&database, &object);
        let mut names: Vec<String> = given.iter().map(|c| c.name.clone()).collect();
        let mut extra = Vec::new();
        for c in object.columns.iter().filter(|c| !given.iter().any(|g| g.column_id == c.column_id)) {
            if let Some(e) = self.missing(c, &object, &database)? {
                names.push(c.name.clone());
                extra.push(e);
            }
        }
        let explicit_identity = given.iter().find(|c| c.identity.is_some()).map(|c| c.name.clone());
        let identity = object.columns.iter().find_map(|c| c.identity);
        let groups = match (&insert.source, rows) {
            (_, Some(rows)) => {
                let rows = rows.into_iter().map(|r| r.into_iter().map(|(v, t)| Some(Typed::constant(v, t))).collect()).collect();
                self.value_groups(rows, &given, &extra, &object, &database)?
            }
            (Source::Values(list), None) => {
                let mut rows = Vec::with_capacity(list.len());
                for row in list {
                    rows.push(row.iter().map(|e| e.as_ref().map(|e| self.value(e)).transpose()).collect::<Result<Vec<_>, _>>()?);
                }
                self.value_groups(rows, &given, &extra, &object, &database)?
            }
            (Source::DefaultValues, None) => {
                names.drain(..given.len());
                self.value_groups(vec![Vec::new()], &[], &extra, &object, &database)?
            }
            (Source::Query(q), None) => {
                let with = self.with_clause(insert.with.as_ref())?;
                let (sql, columns) = self.subquery(q)?;
                if columns.len() != given.len() {
                    return Err(count_mismatch(columns.len() < given.len(), insert.columns.is_empty()));
                }
                let inner: Vec<String> = (1..=columns.len()).map(|i| format!("\"{i}\"")).collect();
                let mut items = Vec::new();
                for (i, (c, target)) in columns.iter().zip(&given).enumerate() {
                    let e = Typed { nullable: c.nullable, ..Typed::new(format!("\"{}\"", i + 1), c.data_type.clone()) };
                    items.push(self.given(e, target, &object, &database)?.sql);
                }
                items.extend(extra.iter().map(|e| e.sql.clone()));
                vec![Group {
                    sql: String::new(),
                    rows_sql: format!(
                        "WITH \"~src\"({}) AS ({with}{sql}) SELECT {} FROM \"~src\" WHERE true",
                        inner.join(", "),
                        items.join(", ")
                    ),
                    rows: vec![Vec::new()],
                }]
            }
            (Source::Execute(_), None) => Vec::new(),
        };
        let returning = self.returning(insert.output.as_ref(), &object, "inserted")?;
        let quoted: Vec<String> = names.iter().map(|n| quote(n)).collect();
        let head = if names.is_empty() {
            format!("INSERT INTO {table}")
        } else {
            format!("INSERT INTO {table} ({})", quoted.join(", "))
        };
        let groups = groups
            .into_iter()
            .map(|g| Group {
                sql: if names.is_empty() {
                    format!("{head} DEFAULT VALUES{returning}")
                } else {
                    format!("{head} {}{returning}", g.rows_sql)
                },
                ..g
            })
            .collect();
        Ok(InsertPlan {
            object,
            table,
            names,
            database,
            groups,
            translated: self.finish(String::new()),
            identity: identity.filter(|_| explicit_identity.is_none()),
            explicit_identity,
        })
    }

    fn value_groups(
        &mut self,
        rows: Vec<Vec<Option<Typed>>>,
        given: &[ColumnInfo],
        extra: &[Typed],
        object: &Object,
        database: &str,
    ) -> Result<Vec<Group>, SqlError> {
        let mut pieces = Vec::with_capacity(rows.len());
        for row in rows {
            if row.len() != given.len() {
                return Err(count_mismatch(row.len() < given.len(), false));
            }
            let mut list = Vec::with_capacity(given.len() + extra.len());
            for (e, c) in row.into_iter().zip(given) {
                let e = match e {
                    Some(e) => self.given(e, c, object, database)?,
                    None => match self.missing(c, object, database)? {
                        Some(e) => e,
                        None => Typed { data_type: c.data_type.clone(), ..Typed::null() },
                    },
                };
                list.push(piece(&e));
            }
            list.extend(extra.iter().map(piece));
            pieces.push(list);
        }
        // Constants take the numbers behind the parameters, which are known by now.
        let first = self.out.parameters.len() + 1;
        let mut groups: Vec<Group> = Vec::new();
        for list in pieces {
            let mut next = first;
            let mut text = Vec::with_capacity(list.len());
            let mut constants = Vec::new();
            for p in list {
                match p {
                    Piece::Constant(v) => {
                        text.push(format!("?{next}"));
                        next += 1;
                        constants.push(v);
                    }
                    Piece::Sql(s) => text.push(s),
                }
            }
            let sql = format!("VALUES ({})", text.join(", "));
            match groups.last_mut().filter(|g| g.rows_sql == sql) {
                Some(g) => g.rows.push(constants),
                None => groups.push(Group { sql: String::new(), rows_sql: sql, rows: vec![constants] }),
            }
        }
        Ok(groups)
    }

    /// RETURNING for OUTPUT, and the columns that clients see.
    pub(super) fn returning(&mut self, output: Option<&Output>, object: &Object, exposed: &str) -> Result<String, SqlError> {
        let Some(output) = output else { return Ok(String::new()) };
        let columns = columns_of(object, "");
        self.push_scope(vec![SourceTable { exposed: exposed.to_string(), schema: None, columns }]);
        let (list, columns) = self.output_items(output)?;
        self.pop_scope();
        self.out.columns = columns;
        Ok(format!(" RETURNING {}", list.join(", ")))
    }

    pub(super) fn output_items(&mut self, output: &Output) -> Result<(Vec<String>, Vec<Column>), SqlError> {
        let (mut list, mut columns) = (Vec::new(), Vec::new());
        for item in &output.items {
            let (name, e) = match item {
                SelectItem::UnnamedExpr(e) => {
                    let name = match e {
                        Expr::CompoundIdentifier(p) => p.last().map(|i| i.value.clone()).unwrap_or_default(),
                        _ => String::new(),
                    };
                    (name, self.value(e)?)
                }
                SelectItem::ExprWithAlias { expr, alias } => (alias.value.clone(), self.value(expr)?),
                SelectItem::QualifiedWildcard(sqlparser::ast::SelectItemQualifiedWildcardKind::ObjectName(n), _) => {
                    for (name, e) in self.wildcard(Some(&name_of(n).object))? {
                        columns.push(result_column(&name, &e));
                        list.push(e.sql);
                    }
                    continue;
                }
                other => return Err(message::unsupported(&format!("'{other}' in OUTPUT"))),
            };
            columns.push(result_column(&name, &e));
            list.push(e.sql);
        }
        Ok((list, columns))
    }

    /// A condition or value over one table's own columns, unqualified, for CHECK constraints, computed columns and filtered indexes.
    pub(crate) fn over_table(&mut self, columns: Vec<SourceColumn>, e: &Expr, condition: bool) -> Result<Typed, SqlError> {
        self.push_scope(vec![SourceTable { exposed: String::new(), schema: None, columns }]);
        let answer = if condition { self.condition(e).map(|sql| Typed::new(sql, DataType::Bit)) } else { self.value(e) };
        self.pop_scope();
        let answer = answer?;
        if !self.out.parameters.is_empty() {
            return Err(message::error(
                4936,
                16,
                "Computed column or constraint cannot be persisted because its expression is non-deterministic.".into(),
            ));
        }
        Ok(answer)
    }
}

fn piece(e: &Typed) -> Piece {
    match &e.value {
        Some(v) => Piece::Constant(storage::encode(v, &e.data_type)),
        None => Piece::Sql(e.sql.clone()),
    }
}

fn not_null_call(sql: &str, table: &str, column: &str) -> String {
    format!("nn({sql}, {}, {})", crate::catalog::text(table), crate::catalog::text(column))
}

fn count_mismatch(fewer: bool, no_list: bool) -> SqlError {
    match (fewer, no_list) {
        (_, true) => message::error(213, 16, "Column name or number of supplied values does not match table definition.".into()),
        (true, _) => message::error(109, 15, "There are more columns in the INSERT statement than values specified in the VALUES clause. The number of values in the VALUES clause must match the number of columns specified in the INSERT statement.".into()),
        (false, _) => message::error(110, 15, "There are fewer columns in the INSERT statement than values specified in the VALUES clause. The number of values in the VALUES clause must match the number of columns specified in the INSERT statement.".into()),
    }
}
