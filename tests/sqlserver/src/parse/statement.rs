//! What a script is made of: its statements and their parts, as written.

use sqlparser::ast::{Expr, Query, TableWithJoins};

use super::Merge;
use crate::types::Declared;

/// A name of up to four parts, as written: server.database.schema.object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Name {
    pub(crate) database: Option<String>,
    pub(crate) schema: Option<String>,
    pub(crate) object: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(d) = &self.database {
            write!(f, "{d}.")?;
        }
        match (&self.schema, &self.database) {
            (Some(s), _) => write!(f, "{s}.")?,
            (None, Some(_)) => f.write_str(".")?,
            (None, None) => {}
        }
        f.write_str(&self.object)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) kind: Kind,
    pub(crate) line: u32,
    /// Unique in the process: what translations are cached by.
    pub(crate) id: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Declare(Vec<Declaration>),
    SetVariable {
        name: String,
        value: Expr,
    },
    /// `SET NOCOUNT ON`, its words upper-cased.
    SetOption(Vec<String>),
    If {
        condition: Expr,
        then: Box<Statement>,
        otherwise: Option<Box<Statement>>,
    },
    While {
        condition: Expr,
        body: Box<Statement>,
    },
    Block(Vec<Statement>),
    TryCatch {
        body: Vec<Statement>,
        handler: Vec<Statement>,
    },
    Break,
    Continue,
    Return(Option<Expr>),
    Print(Expr),
    Raiserror {
        arguments: Vec<Expr>,
    },
    Throw(Option<Box<[Expr; 3]>>),
    Execute {
        procedure: Name,
        arguments: Vec<Argument>,
        status: Option<String>,
    },
    ExecuteText(Vec<Expr>),
    Use(String),
    BeginTransaction,
    Commit,
    Rollback(Option<String>),
    Save(String),
    Query(Box<Query>),
    Insert(Box<Insert>),
    Update(Box<Update>),
    Delete(Box<Delete>),
    Merge(Box<Merge>),
    Truncate(Name),
    CreateTable(Box<TableDefinition>),
    AlterTable {
        table: Name,
        change: Box<AlterTable>,
    },
    Drop {
        what: Droppable,
        names: Vec<Name>,
        if_exists: bool,
    },
    CreateIndex(Box<IndexDefinition>),
    DropIndex {
        table: Name,
        index: String,
        if_exists: bool,
    },
    CreateSchema(String),
    CreateType {
        name: Name,
        base: Declared,
        nullable: bool,
    },
    CreateView {
        name: Name,
        text: String,
        query: Box<Query>,
        columns: Vec<String>,
        replace: bool,
    },
    CreateDatabase(String),
    DropDatabase {
        names: Vec<String>,
        if_exists: bool,
    },
    /// `ALTER DATABASE shop SET …`, its words upper-cased.
    AlterDatabase {
        name: Option<String>,
        words: Vec<String>,
    },
    Security(Security),
    /// Statements without an effect here (CHECKPOINT, UPDATE STATISTICS, WAITFOR DELAY carries its milliseconds).
    Nothing,
    WaitFor(Expr),
    Kill(i64),
}

#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) name: String,
    pub(crate) what: Declared,
    pub(crate) initial: Option<Expr>,
    /// `DECLARE @t TABLE (…)`.
    pub(crate) table: Option<Box<TableDefinition>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Argument {
    pub(crate) name: Option<String>,
    /// `None`: DEFAULT.
    pub(crate) value: Option<Expr>,
    pub(crate) output: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Source {
    Values(Vec<Vec<Option<Expr>>>),
    Query(Box<Query>),
    DefaultValues,
    Execute(Box<Statement>),
}

#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) items: Vec<sqlparser::ast::SelectItem>,
    pub(crate) into: Option<(Name, Vec<String>)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Insert {
    pub(crate) target: Name,
    pub(crate) columns: Vec<String>,
    pub(crate) output: Option<Output>,
    pub(crate) source: Source,
    pub(crate) with: Option<sqlparser::ast::With>,
}

#[derive(Debug, Clone)]
pub(crate) struct Update {
    pub(crate) target: Name,
    pub(crate) top: Option<Expr>,
    /// Column and its value; `None`: its default.
    pub(crate) set: Vec<(String, Option<Expr>)>,
    pub(crate) output: Option<Output>,
    pub(crate) from: Vec<TableWithJoins>,
    pub(crate) condition: Option<Expr>,
    pub(crate) with: Option<sqlparser::ast::With>,
}

#[derive(Debug, Clone)]
pub(crate) struct Delete {
    pub(crate) target: Name,
    pub(crate) top: Option<Expr>,
    pub(crate) output: Option<Output>,
    pub(crate) from: Vec<TableWithJoins>,
    pub(crate) condition: Option<Expr>,
    pub(crate) with: Option<sqlparser::ast::With>,
}

#[derive(Debug, Clone)]
pub(crate) struct TableDefinition {
    pub(crate) name: Name,
    pub(crate) columns: Vec<ColumnDefinition>,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) indexes: Vec<IndexDefinition>,
}

impl TableDefinition {
    /// The columns of the primary key that a table constraint names; none without one.
    pub(crate) fn primary_key(&self) -> Vec<String> {
        let keys = self.constraints.iter().filter_map(|c| match &c.kind {
            ConstraintKind::PrimaryKey { columns, .. } => Some(columns.iter().map(|k| k.0.clone())),
            _ => None,
        });
        keys.flatten().collect()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ColumnDefinition {
    pub(crate) name: String,
    /// `None`: computed.
    pub(crate) what: Option<Declared>,
    pub(crate) nullable: Option<bool>,
    pub(crate) identity: Option<(i64, i64)>,
    /// Name and expression.
    pub(crate) default: Option<(Option<String>, String)>,
    pub(crate) computed: Option<(String, bool)>,
    pub(crate) collation: Option<String>,
    pub(crate) rowguid: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Constraint {
    pub(crate) name: Option<String>,
    pub(crate) kind: ConstraintKind,
}

#[derive(Debug, Clone)]
pub(crate) enum ConstraintKind {
    /// Columns with "descending"; clustered or not.
    PrimaryKey {
        columns: Vec<(String, bool)>,
        clustered: bool,
    },
    Unique {
        columns: Vec<(String, bool)>,
        clustered: bool,
    },
    ForeignKey {
        columns: Vec<String>,
        table: Name,
        referenced: Vec<String>,
        on_delete: u8,
        on_update: u8,
    },
    Check(String),
    /// `ADD CONSTRAINT d DEFAULT x FOR c`.
    Default {
        expression: String,
        column: String,
    },
}

#[derive(Debug, Clone)]
pub(crate) enum AlterTable {
    Add {
        columns: Vec<ColumnDefinition>,
        constraints: Vec<Constraint>,
    },
    DropColumns {
        names: Vec<String>,
        if_exists: bool,
    },
    DropConstraints {
        names: Vec<String>,
        if_exists: bool,
    },
    AlterColumn(ColumnDefinition),
    /// CHECK / NOCHECK CONSTRAINT, ENABLE / DISABLE TRIGGER, SET (…): accepted.
    Nothing,
}

#[derive(Debug, Clone)]
pub(crate) struct IndexDefinition {
    pub(crate) name: String,
    pub(crate) table: Name,
    pub(crate) unique: bool,
    pub(crate) clustered: bool,
    pub(crate) columns: Vec<(String, bool)>,
    pub(crate) included: Vec<String>,
    pub(crate) filter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Droppable {
    Table,
    View,
    Schema,
    Type,
    Login,
    User,
    Role,
}

#[derive(Debug, Clone)]
pub(crate) enum Security {
    CreateLogin {
        name: String,
        password: String,
    },
    AlterLogin {
        name: String,
        password: Option<String>,
        enabled: Option<bool>,
    },
    CreateUser {
        name: String,
        login: Option<String>,
    },
    CreateRole(String),
    AddMember {
        role: String,
        member: String,
        server: bool,
    },
    DropMember {
        role: String,
        member: String,
        server: bool,
    },
    /// `state`: G, D or R (revoke). `object`: class and name, `None` for the database or the server.
    Permission {
        state: char,
        permissions: Vec<String>,
        class: Option<String>,
        object: Option<Name>,
        grantees: Vec<String>,
    },
    Nothing,
}
