//! What can be wrong with an entity definition.

use crate::ErrorClass;
use crate::TableName;

/// A mistake in a definition. `node` is the path from the root: `order.items.product`.
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
    #[error(
        "entity {entity}, at {node}: table {table} is not captured{hint}. Add it to the source's tables (and enable CDC on it), or correct the name"
    )]
    UnknownTable { entity: String, node: String, table: TableName, hint: String },
    #[error("entity {entity}, at {node}: table {table} has no column {column:?} (in `{place}`){hint}. Its columns are {known}")]
    UnknownColumn { entity: String, node: String, table: TableName, column: String, place: String, hint: String, known: String },
    #[error(
        "entity {entity}, at {node}: aggregate {aggregate:?} is over {edge:?}, which is not among the `many` edges of this node{hint}. They are: {known}"
    )]
    UnknownEdge { entity: String, node: String, aggregate: String, edge: String, hint: String, known: String },
    #[error(
        "entity {entity}, at {node}: table {table} has no key, so its rows cannot be told apart. Name the key's columns in the table's contract (`x-key`){remedy}"
    )]
    NoKey { entity: String, node: String, table: TableName, remedy: &'static str },
    #[error(
        "entity {entity}, at {node}: column {column:?} of {table} is {sql_type}, which cannot be part of `{place}`: use a column that SQL Server can compare"
    )]
    NotComparable { entity: String, node: String, table: TableName, column: String, sql_type: String, place: String },
    #[error(
        "entity {entity}, at {node}: `by` names {by} columns and `references` {references} ({referenced}): name as many columns in `by` as the key that it refers to has"
    )]
    LinkLength { entity: String, node: String, by: usize, references: usize, referenced: String },
    #[error("entity {entity}, at {node}: `by` is missing: name the columns that hold the reference")]
    NoBy { entity: String, node: String },
    #[error(
        "entity {entity}, at {node}: {left} and {right} cannot be compared: join columns of one kind (whole numbers, decimals, text of limited length, dates, …)"
    )]
    LinkTypes { entity: String, node: String, left: String, right: String },
    #[error(
        "entity {entity}, at {node}: {name:?} stands twice in the document: rename one, as in `fields: [{{other_name: {name}}}]`"
    )]
    DuplicateName { entity: String, node: String, name: String },
    #[error(
        "entity {entity}, at {node}: aggregate {aggregate:?} sums {column:?} of {table}, which is {sql_type}: only numbers can be summed"
    )]
    NotSummable { entity: String, node: String, aggregate: String, table: TableName, column: String, sql_type: String },
    #[error("entity {entity}, at {node}: deeper than {limit} levels. Does the definition refer back to itself in a cycle? Cut it where the document should end", limit = super::DEPTH_LIMIT)]
    TooDeep { entity: String, node: String },
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
