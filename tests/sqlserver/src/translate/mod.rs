//! T-SQL to SQLite's SQL, with the type of every expression inferred on the way up.
//!
//! The translation decides everything that depends on types: which operands must be converted, how numbers are combined, by which collation strings are
//! compared. What it emits runs without further thought, with variables as numbered parameters; so it can be kept as long as the catalog's version, the
//! session's database and the variables' types stay the same (see `session::cache`).
//!
//! A statement runs in one SQLite connection, whose main file is the first database that the statement names (*home*); other databases are attached
//! under their names.

mod cast;
mod change;
pub(crate) mod clr;
mod condition;
pub(crate) mod dml;
mod expression;
mod function;
mod query;
mod relation;
mod scope;
mod string_function;
mod table_function;

use std::sync::Arc;

use tds::{Column, DataType, SqlError, Value};

use crate::catalog::{Collation, Object, quote};
use crate::message;
use crate::parse::Name;
use crate::types;

pub(crate) use cast::literal;
pub(crate) use relation::name_of;
pub(crate) use scope::{Scope, SourceColumn, SourceTable};

/// What the translator asks of the session.
pub(crate) trait Lookup {
    fn current_database(&self) -> String;
    /// The name of a database as it is written in the catalog; `None`: there is none.
    fn database(&self, name: &str) -> Option<String>;
    fn object(&self, database: &str, schema: &str, name: &str) -> Result<Option<Arc<Object>>, SqlError>;
    /// A temporary table (`#t`) or table variable (`@t`), and its SQLite name.
    fn temporary(&self, name: &str) -> Option<Arc<Object>>;
    fn variable(&self, name: &str) -> Option<DataType>;
    /// The value of an expression without columns: arguments of table-valued functions.
    fn evaluate(&self, e: &sqlparser::ast::Expr) -> Result<(Value, DataType), SqlError>;
    /// Whether the session's user may do this to the object; error 229 if not.
    fn authorize(&self, permission: &str, database: &str, object: &Object) -> Result<(), SqlError>;
    /// A `sys.*` or INFORMATION_SCHEMA view.
    fn system_view(&self, database: &str, schema: &str, name: &str) -> Result<Option<Derived>, SqlError>;
    /// A table-valued function of the server.
    fn table_function(
        &self,
        database: &str,
        schema: &str,
        name: &str,
        arguments: &[Option<(Value, DataType)>],
    ) -> Result<Option<Derived>, SqlError>;
    /// A constant of the session: `@@VERSION`, `SYSTEM_USER`, `DB_ID()`…
    fn constant(&self, name: &str) -> Option<(Value, DataType)>;
}

/// A relation given as SQLite text.
#[derive(Debug, Clone)]
pub(crate) struct Derived {
    /// A query in SQLite's SQL; `{db}` stands for the qualifier of the database's file.
    pub(crate) sql: String,
    pub(crate) columns: Vec<DerivedColumn>,
    /// Whether the text holds values of this moment, so that the translation must not be kept.
    pub(crate) volatile: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct DerivedColumn {
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    /// The column's value from the query's, when the query's is not in stored form; `{}` stands for it.
    pub(crate) wrap: Option<&'static str>,
}

/// Where a parameter's value comes from when the statement runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// A variable, by its name in lower case.
    Variable(String),
    /// A value of the moment: `@@ROWCOUNT`, `GETDATE()`, `SCOPE_IDENTITY()`…, by its name in lower case.
    Moment(&'static str),
}

/// A translated statement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Translated {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<(Source, DataType)>,
    pub(crate) columns: Vec<Column>,
    /// The database whose file is the connection's main one.
    pub(crate) home: String,
    pub(crate) attached: Vec<String>,
    pub(crate) volatile: bool,
    /// `SELECT @a = …`: the variable of each column.
    pub(crate) assigns: Vec<String>,
    /// Lock hints ask for the write lock (UPDLOCK, TABLOCKX, HOLDLOCK).
    pub(crate) locks: bool,
    /// It reads tables of users, not only what the server itself keeps.
    pub(crate) reads_rows: bool,
    /// `SELECT … INTO name`.
    pub(crate) into: Option<Name>,
}

/// An expression in SQLite's SQL, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Typed {
    pub(crate) sql: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    /// A bare NULL, which takes any type.
    pub(crate) null: bool,
    /// A constant, in terms of its type.
    pub(crate) value: Option<Value>,
    /// A column, whose collation SQLite knows by itself.
    pub(crate) is_column: bool,
    pub(crate) collation: Collation,
    pub(crate) identity: bool,
    pub(crate) computed: bool,
}

impl Typed {
    pub(crate) fn new(sql: impl Into<String>, data_type: DataType) -> Typed {
        Typed {
            sql: sql.into(),
            data_type,
            nullable: true,
            null: false,
            value: None,
            is_column: false,
            collation: Collation::DEFAULT,
            identity: false,
            computed: false,
        }
    }

    pub(crate) fn not_null(mut self) -> Typed {
        self.nullable = false;
        self
    }

    fn or_null(mut self, nullable: bool) -> Typed {
        self.nullable = nullable;
        self
    }

    /// A constant of a type; the value must be of it.
    pub(crate) fn constant(value: Value, data_type: DataType) -> Typed {
        let sql = literal(&value, &data_type);
        let nullable = value == Value::Null;
        Typed { nullable, value: Some(value), ..Typed::new(sql, data_type) }
    }

    pub(crate) fn null() -> Typed {
        Typed { null: true, value: Some(Value::Null), ..Typed::new("NULL", DataType::Int) }
    }

    fn is_string(&self) -> bool {
        types::is_string(&self.data_type)
    }

    /// The text with the collation that comparisons of it follow, where SQLite would not know.
    fn collated(&self) -> String {
        if self.is_string() && !self.is_column {
            format!("({}) COLLATE {}", self.sql, self.collation.sqlite())
        } else {
            self.sql.clone()
        }
    }

    /// `char(n)` padded to its length, where its text is used as such.
    fn padded(&self) -> String {
        match (&self.data_type, &self.value) {
            (DataType::Char(n) | DataType::NChar(n), None) => format!("padc({}, {n})", self.sql),
            _ => self.sql.clone(),
        }
    }
}

pub(crate) struct Translator<'a> {
    lookup: &'a dyn Lookup,
    pub(crate) out: Translated,
    scopes: Vec<Scope>,
    /// Common table expressions in sight: name and columns.
    common: Vec<(String, Vec<SourceColumn>)>,
    depth: usize,
    /// In DDL: names are columns of the table alone, variables are not allowed.
    serial: usize,
}

impl<'a> Translator<'a> {
    pub(crate) fn new(lookup: &'a dyn Lookup) -> Self {
        Translator { lookup, out: Translated::default(), scopes: Vec::new(), common: Vec::new(), depth: 0, serial: 0 }
    }

    /// The text's finished translation.
    pub(crate) fn finish(mut self, sql: String) -> Translated {
        if self.out.home.is_empty() {
            self.out.home = self.lookup.current_database();
        }
        self.out.sql = sql;
        self.out
    }

    /// The qualifier under which a database's tables are reached, with its dot.
    pub(crate) fn qualifier(&mut self, database: &str) -> String {
        if self.out.home.is_empty() {
            self.out.home = database.to_string();
        }
        if self.out.home == database {
            return "main.".into();
        }
        if !self.out.attached.iter().any(|d| d == database) {
            self.out.attached.push(database.to_string());
        }
        format!("{}.", quote(database))
    }

    /// The placeholder of a parameter; the same source has one number.
    fn parameter(&mut self, source: Source, data_type: &DataType) -> String {
        let at = self.out.parameters.iter().position(|(s, _)| *s == source).unwrap_or_else(|| {
            self.out.parameters.push((source, data_type.clone()));
            self.out.parameters.len() - 1
        });
        format!("?{}", at + 1)
    }

    fn variable(&mut self, name: &str) -> Result<Typed, SqlError> {
        let t = self.lookup.variable(name).ok_or_else(|| message::no_variable(name))?;
        let sql = self.parameter(Source::Variable(name.to_ascii_lowercase()), &t);
        Ok(Typed::new(sql, t))
    }

    fn moment(&mut self, name: &'static str, data_type: DataType) -> Typed {
        let sql = self.parameter(Source::Moment(name), &data_type);
        Typed::new(sql, data_type)
    }

    pub(crate) fn push_scope(&mut self, tables: Vec<SourceTable>) {
        self.scopes.push(Scope { tables });
    }

    pub(crate) fn pop_scope(&mut self) {
        self.scopes.pop();
    }

    /// A name of our own for a derived table.
    fn fresh(&mut self) -> String {
        self.serial += 1;
        format!("~{}", self.serial)
    }
}

/// The result column that clients are told of.
pub(crate) fn result_column(name: &str, e: &Typed) -> Column {
    Column {
        name: name.to_string(),
        data_type: e.data_type.clone(),
        nullable: e.nullable,
        identity: e.identity,
        computed: e.computed,
        collation: e.collation.wire.filter(|_| types::is_string(&e.data_type)),
    }
}
