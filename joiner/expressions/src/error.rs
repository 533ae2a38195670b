//! What can be wrong with an expression, and with a value that it meets.

use crate::types::Type;

/// An expression that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the expression `{expression}`: {mistake}")]
pub struct CompileError {
    /// The expression, or its beginning.
    pub expression: String,
    pub mistake: Box<Mistake>,
}

/// What is wrong with an expression, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    #[error("it is {length} bytes long, at most {limit} are allowed: compute a part of it as a field of its own")]
    TooLong { length: usize, limit: usize },
    #[error(
        "it is nested more than {limit} levels deep, or chains more operators than that: compute a part of it as a field of its own"
    )]
    TooDeep { limit: usize },
    #[error("it has more than {limit} parts: compute a part of it as a field of its own")]
    TooLarge { limit: usize },
    #[error("line {line}, column {column}: {what}")]
    Syntax { line: usize, column: usize, what: String },
    #[error("line {line}, column {column}: nothing here is called {name:?}{hint}. There are: {known}")]
    UnknownName { name: String, line: usize, column: usize, hint: String, known: String },
    #[error("in `{within}`: an object with the members {known} has no member {member:?}")]
    UnknownMember { member: String, within: String, known: String },
    #[error("in `{within}`: there is no function {function:?} that is called like this{hint}")]
    UnknownFunction { function: String, within: String, hint: String },
    #[error("in `{within}`: {operation} is not possible with {}", listed(.operands))]
    NoOverload { operation: String, operands: Vec<Type>, within: String },
    #[error("in `{within}`: {found} where {wanted} is needed")]
    WrongType { found: Type, wanted: Type, within: String },
    #[error("{literal} has more digits than a floating-point literal keeps: write decimal(\"{literal}\")")]
    InexactLiteral { literal: String },
    #[error("in `{within}`: {text:?} is not a {wanted}")]
    Constant { text: String, wanted: Type, within: String },
    #[error("in `{within}`: the pattern {what}")]
    Pattern { what: String, within: String },
    #[error("in `{within}`: {what} are not offered here")]
    Unsupported { what: &'static str, within: String },
}

fn listed(types: &[Type]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// A value that an expression cannot go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("a value is not a {what}: {value}")]
    Unreadable { what: String, value: String },
    #[error("in `{within}`: the result has more digits than there is room for")]
    Overflow { within: String },
    #[error("in `{within}`: division by zero")]
    DivisionByZero { within: String },
    #[error("in `{within}`: not possible with {operands}")]
    NoOverload { operands: String, within: String },
    #[error("in `{within}`: {value} is not a {wanted}")]
    Conversion { value: String, wanted: &'static str, within: String },
    #[error("in `{within}`: there is no element {index}")]
    OutOfRange { index: String, within: String },
    #[error("more than {limit} steps: the lists that it goes through are too long")]
    TooManySteps { limit: u32 },
    #[error("in `{within}`: a value of more than {limit} bytes or elements")]
    TooLarge { limit: usize, within: String },
}

/// `: did you mean "orders"?`, or nothing where no name is near.
pub fn hint<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
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
