//! What can be wrong with an entity definition.

use crate::ErrorClass;
use crate::TableName;

/// What is wrong with a definition, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{file}: {message}. An entity definition has `entity`, `table`, and where wanted `key`, `fields`, `one`, `many`, `aggregates`"
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
    #[error("aggregate {aggregate:?} sums {column:?} of {table}, which is {sql_type}: only numbers can be summed")]
    NotSummable { aggregate: String, table: TableName, column: String, sql_type: String },
    #[error("deeper than {limit} levels. Does the definition refer back to itself in a cycle? Cut it where the document should end", limit = super::DEPTH_LIMIT)]
    TooDeep,
}

impl PlanError {
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Misconfigured
    }
}

/// `: did you mean "orders"?`, or nothing where no name is near.
pub(super) fn hint<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let limit = 1 + written.chars().count() / 4;
    let nearest = known.into_iter().map(|name| (distance(written, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= limit => format!(": did you mean {name:?}?"),
        _ => String::new(),
    }
}

/// Levenshtein's distance, without regard to case.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().flat_map(char::to_lowercase).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
