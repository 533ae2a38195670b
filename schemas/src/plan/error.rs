//! What can be wrong with an entity definition.

use crate::ErrorClass;
use crate::TableName;

/// What is wrong with a definition, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{file}: {message}. An entity definition has `entity`, `table` or `of`, and where wanted `key`, `fields`, `one`, `many`, `aggregates`, `computed`, `where`, `limits`, `time_to_live`, `group_by`, `rows`"
    )]
    Yaml { file: String, message: String },
    #[error(
        "{entity:?} is not an entity name: use lower-case letters, digits, `_` and `-`, starting with a letter (such as `order`)"
    )]
    Name { entity: String },
    /// `node` is the path from the root: `order.items.product`.
    #[error("entity {entity}, at {node}: {mistake}")]
    Definition { entity: String, node: String, mistake: Box<Mistake> },
}

/// A mistake at one node of a definition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("table {table} is not captured{hint}. Add it to the source's tables (and enable CDC on it), or correct the name")]
    UnknownTable { table: TableName, hint: String },
    #[error(
        "neither a `table` nor `of`: name the table whose rows are the entities (such as dbo.orders), or the entity whose documents are rolled up"
    )]
    NoTable,
    #[error("no entity {of:?} is defined to be rolled up{hint}. There are: {known}")]
    UnknownEntity { of: String, hint: String, known: String },
    #[error("it rolls up {of:?}, which in the end rolls up this one: cut the cycle")]
    RollUpCycle { of: String },
    #[error("documents of {of:?} have no member {member:?}{hint}. Their members are {known}")]
    UnknownMember { of: String, member: String, hint: String, known: String },
    #[error(
        "`of` and `{member}` exclude each other: a roll-up of documents has `where`, `group_by`, `aggregates` and `computed`, over the members that the documents have"
    )]
    OfDocuments { member: &'static str },
    #[error("`of` is missing `group_by`: name what the documents are grouped by")]
    NotGroupedDocuments,
    #[error("table {table} has no column {column:?} (in `{place}`){hint}. Its columns are {known}")]
    UnknownColumn { table: TableName, column: String, place: String, hint: String, known: String },
    #[error(
        "aggregate {aggregate:?} is over {edge:?}, which is not among the `many` edges of this node{hint}. They are: {known}"
    )]
    UnknownEdge { aggregate: String, edge: String, hint: String, known: String },
    #[error(
        "table {table} has no key, so its rows cannot be told apart. Name the key's columns in the table's contract (`x-key`){remedy}"
    )]
    NoKey { table: TableName, remedy: &'static str },
    #[error(
        "column {column:?} of {table} is {sql_type}, which cannot be part of `{place}`: use a column that SQL Server can compare"
    )]
    NotComparable { table: TableName, column: String, sql_type: String, place: String },
    #[error(
        "`by` names {by} columns and `references` {references} ({referenced}): name as many columns in `by` as the key that it refers to has"
    )]
    LinkLength { by: usize, references: usize, referenced: String },
    #[error("`by` is missing: name the columns that hold the reference")]
    NoBy,
    #[error(
        "{left} and {right} cannot be compared: join columns of one kind (whole numbers, decimals, text of limited length, dates, …)"
    )]
    LinkTypes { left: String, right: String },
    #[error("{name:?} stands twice in the document: rename one, as in `fields: [{{other_name: {name}}}]`")]
    DuplicateName { name: String },
    #[error("{column:?} stands twice in the key: name each column once")]
    DuplicateKey { column: String },
    #[error("aggregate {aggregate:?} is the {function} of {what}, which is {of}: {}", takes(.function))]
    NotAggregable { aggregate: String, function: &'static str, what: String, of: String },
    #[error("`{place}`: {error}")]
    Expression { place: String, error: expressions::CompileError },
    #[error(
        "`{place}` depends on {column:?}, a `max` column: changes do not always record its value, so nothing can hang on it. `computed` can use it"
    )]
    NotRecorded { column: String, place: String },
    #[error(
        "`time_to_live` goes by {column:?} of {table}, which is {sql_type}: name a column with a date, or with a date and a time"
    )]
    NotAMoment { table: TableName, column: String, sql_type: String },
    #[error("`group_by`: {expression} is {of}: group by numbers, text, dates and times")]
    NotGroupable { expression: String, of: String },
    #[error(
        "`group_by` and `{member}` exclude each other: a roll-up's document is made of `group_by`, `aggregates` and `computed`. What each row needs stands in `rows`"
    )]
    Grouped { member: &'static str },
    #[error("`rows` is what the rows of a roll-up are made of: add `group_by`, or put its members into the definition itself")]
    NotGrouped,
    #[error("deeper than {limit} levels. Does the definition refer back to itself in a cycle? Cut it where the document should end", limit = super::DEPTH_LIMIT)]
    TooDeep,
}

impl PlanError {
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Misconfigured
    }
}

/// What an aggregate's function takes.
fn takes(function: &str) -> &'static str {
    match function {
        "sum" => "only numbers can be summed",
        "avg" => "only numbers have an average",
        "any" | "all" => "a yes or no is needed",
        _ => "only values that are in an order can be compared",
    }
}
