//! Expressions over rows and documents: filters, computed fields, projections.
//!
//! The language is [CEL](https://cel.dev), read by the parser of the crate `cel` and evaluated here. Its own interpreter is not used, because its numbers are 64-bit integers and floats: a sum of money beyond 2^53
//! hundredths would be silently wrong. Here decimals are decimals ([`Decimal`]), and points in time are what SQL Server has ([`Moment`]).
//!
//! - *Compiled once* against a [`Scope`], the names that may be used and their types: a misspelt name, a text that is added to a number, a wrong date are found then. An expression is bounded in length, depth and
//!   size, its evaluation in steps and in the size of what it makes.
//! - *Total on null*: of null comes null where CEL would fail (`evaluate` has the rules). What can fail (division by zero, more digits than there is room for, text that is no number) fails with an error that names
//!   the place in the expression.
//! - *Literals* with a point are exact decimals, so `price * 1.1` is exact where `price` is a decimal.
//! - *Numbers*: whole numbers and decimals mix exactly; with a float, the result is a float.
//!
//! Left out of CEL: durations, messages, unsigned numbers as a type of their own, optional values, patterns and map keys that are not literals.

mod compile;
mod decimal;
mod error;
mod evaluate;
mod functions;
mod moment;
mod parse;
mod types;
mod value;

use serde_json::Value as Json;

pub use decimal::{Decimal, ParseDecimalError};
pub use error::{CompileError, EvaluationError, Mistake, hint};
pub use evaluate::Input;
pub use moment::{Kind, Moment, Part};
pub use types::{Scope, Type};
pub use value::Value;

use compile::{Compiler, Node};
use evaluate::Frame;

/// A compiled expression.
#[derive(Debug, Clone)]
pub struct Expression {
    text: String,
    node: Node,
    variables: Vec<(String, Type)>,
    returns: Type,
}

impl Expression {
    pub fn compile(text: &str, scope: &Scope) -> Result<Self, CompileError> {
        Self::checked(text, scope, None)
    }

    /// One that answers yes or no.
    pub fn predicate(text: &str, scope: &Scope) -> Result<Self, CompileError> {
        Self::checked(text, scope, Some(&Type::Bool))
    }

    fn checked(text: &str, scope: &Scope, wanted: Option<&Type>) -> Result<Self, CompileError> {
        let mut compiler = Compiler::new(text, scope);
        let compiled = parse::parse(text).and_then(|parsed| {
            let (node, returns) = compiler.compile(&parsed, 0)?;
            match wanted.filter(|wanted| !returns.may_be(wanted)) {
                Some(wanted) => Err(Mistake::WrongType { found: returns, wanted: wanted.clone(), within: parse::show(&parsed) }),
                None => Ok((node, returns)),
            }
        });
        match compiled {
            Ok((node, returns)) => Ok(Self { text: text.to_owned(), node, variables: compiler.variables, returns }),
            Err(mistake) => Err(CompileError { expression: text.chars().take(200).collect(), mistake: Box::new(mistake) }),
        }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The type of what it answers; null may come besides.
    pub fn returns(&self) -> &Type {
        &self.returns
    }

    /// The names that it uses, in the order of their first use, and their types.
    pub fn variables(&self) -> &[(String, Type)] {
        &self.variables
    }

    pub fn evaluate<'a>(&'a self, input: &'a dyn Input) -> Result<Value<'a>, EvaluationError> {
        Frame::new(input).evaluate(&self.node)
    }

    /// Whether a predicate is met: null is not.
    pub fn is_met(&self, input: &dyn Input) -> Result<bool, EvaluationError> {
        Ok(Frame::new(input).truth(&self.node)? == Some(true))
    }

    /// A JSON object as input: its members by their names, read as the types that the expression was compiled with. A member that is not there is null.
    pub fn over<'a>(&'a self, document: &'a Json) -> Document<'a> {
        Document { expression: self, document }
    }
}

/// A JSON object under an expression.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    expression: &'a Expression,
    document: &'a Json,
}

impl Input for Document<'_> {
    fn get(&self, variable: usize) -> Result<Value<'_>, EvaluationError> {
        let Some((name, of)) = self.expression.variables.get(variable) else { return Ok(Value::Null) };
        self.document.get(name).map_or(Ok(Value::Null), |json| Value::from_json(json, of))
    }
}

#[cfg(test)]
mod tests;
