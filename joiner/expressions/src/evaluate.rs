//! Evaluation: a walk over the compiled tree. No clock, no I/O; bounded in steps and in the size of what it makes.
//!
//! # Null
//! Where CEL fails on null, null comes out, as in SQL: arithmetic, comparisons by order, and functions of null are null; `!null` is null; `false && null` is false and `true && null` is null; a condition that is null is
//! not met. Equality is CEL's: `x == null` is true of null, `x != 5` is true of null as well.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::compile::{Arithmetic, Fold, Node, Order};
use crate::decimal::Decimal;
use crate::error::EvaluationError;
use crate::functions;
use crate::value::Value;

/// Steps of one evaluation.
const STEPS: u32 = 1_000_000;
/// Bytes of a text, elements of a list.
pub(crate) const SIZE: usize = 1 << 20;

/// What an expression is evaluated over.
pub trait Input {
    /// The value of the nth of [`Expression::variables`](crate::Expression::variables).
    fn get(&self, variable: usize) -> Result<Value<'_>, EvaluationError>;
}

pub(crate) struct Frame<'a> {
    pub(crate) input: &'a dyn Input,
    /// What the variables of comprehensions stand for, the innermost last.
    locals: Vec<Value<'a>>,
    steps: u32,
}

type Evaluated<'a> = Result<Value<'a>, EvaluationError>;

impl<'a> Frame<'a> {
    pub(crate) fn new(input: &'a dyn Input) -> Self {
        Self { input, locals: Vec::new(), steps: 0 }
    }

    pub(crate) fn evaluate(&mut self, node: &'a Node) -> Evaluated<'a> {
        self.steps += 1;
        if self.steps > STEPS {
            return Err(EvaluationError::TooManySteps { limit: STEPS });
        }
        match node {
            Node::Constant(value) => Ok(value.clone()),
            Node::Variable(which) => self.input.get(*which),
            Node::Local(which) => Ok(self.locals.get(*which).cloned().unwrap_or(Value::Null)),
            Node::Member(of, name) => Ok(member(&self.evaluate(of)?, name)),
            Node::Has(of, name) => Ok(Value::Bool(!matches!(member(&self.evaluate(of)?, name), Value::Null))),
            Node::Index(of, index, within) => {
                let (of, index) = (self.evaluate(of)?, self.evaluate(index)?);
                element(&of, &index, within)
            }
            Node::Not(of) => self.truth(of).map(|truth| truth.map_or(Value::Null, |truth| Value::Bool(!truth))),
            Node::Negate(of, within) => {
                let zero = Value::Int(0);
                let value = self.evaluate(of)?;
                arithmetic(Arithmetic::Subtract, &zero, &value, within)
            }
            Node::And(left, right) => self.either(left, right, false),
            Node::Or(left, right) => self.either(left, right, true),
            Node::If(condition, yes, no) => {
                let met = self.truth(condition)? == Some(true);
                self.evaluate(if met { yes } else { no })
            }
            Node::Equal(left, right, wanted) => {
                let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
                Ok(Value::Bool(left.equals(&right) == *wanted))
            }
            Node::Order(order, left, right, within) => {
                let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
                ordered(*order, &left, &right, within)
            }
            Node::Arithmetic(operator, left, right, within) => {
                let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
                arithmetic(*operator, &left, &right, within)
            }
            Node::In(item, list, within) => {
                let (item, list) = (self.evaluate(item)?, self.evaluate(list)?);
                match &list {
                    Value::Null => Ok(Value::Null),
                    Value::List(items) => Ok(Value::Bool(items.iter().any(|other| item.equals(other)))),
                    Value::Object(members) => {
                        Ok(Value::Bool(members.iter().any(|(name, _)| matches!(&item, Value::Text(text) if text == name))))
                    }
                    _ => Err(no_overload(&[&item, &list], within)),
                }
            }
            Node::List(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| self.evaluate(item)).collect();
                Ok(Value::List(items?.into()))
            }
            Node::Object(members) => {
                let members: Result<Vec<_>, EvaluationError> =
                    members.iter().map(|(name, value)| Ok((Cow::Borrowed(name.as_str()), self.evaluate(value)?))).collect();
                Ok(Value::Object(members?.into()))
            }
            Node::Call(function, arguments, within) => {
                let arguments: Result<Vec<_>, _> = arguments.iter().map(|argument| self.evaluate(argument)).collect();
                functions::call(function, arguments?, within)
            }
            Node::Fold(fold, list, body, within) => self.fold(fold, list, body, within),
        }
    }

    /// `None`: null.
    pub(crate) fn truth(&mut self, node: &'a Node) -> Result<Option<bool>, EvaluationError> {
        match self.evaluate(node)? {
            Value::Bool(truth) => Ok(Some(truth)),
            Value::Null => Ok(None),
            other => Err(EvaluationError::Conversion { value: shown(&other), wanted: "bool", within: node.text() }),
        }
    }

    /// `&&` (decided by false) and `||` (by true). What decides stands even where the other side fails, as in CEL.
    fn either(&mut self, left: &'a Node, right: &'a Node, decides: bool) -> Evaluated<'a> {
        let left = self.truth(left);
        if matches!(left, Ok(Some(truth)) if truth == decides) {
            return Ok(Value::Bool(decides));
        }
        let right = self.truth(right);
        if matches!(right, Ok(Some(truth)) if truth == decides) {
            return Ok(Value::Bool(decides));
        }
        Ok(match (left?, right?) {
            (Some(_), Some(_)) => Value::Bool(!decides),
            _ => Value::Null,
        })
    }

    fn fold(&mut self, fold: &'a Fold, list: &'a Node, body: &'a Node, within: &str) -> Evaluated<'a> {
        let items = match self.evaluate(list)? {
            Value::List(items) => items,
            Value::Null => return Ok(Value::Null),
            Value::Object(members) => members.iter().map(|(name, _)| Value::Text(name.clone())).collect(),
            other => return Err(no_overload(&[&other], within)),
        };
        let depth = self.locals.len();
        let (mut collected, mut count, mut unknown, mut failed) = (Vec::new(), 0, false, None);
        for item in items.iter() {
            self.locals.truncate(depth);
            self.locals.push(item.clone());
            match fold {
                Fold::Exists | Fold::All => {
                    let decides = matches!(fold, Fold::Exists);
                    match self.truth(body) {
                        Ok(Some(truth)) if truth == decides => {
                            self.locals.truncate(depth);
                            return Ok(Value::Bool(decides));
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => unknown = true,
                        Err(error @ EvaluationError::TooManySteps { .. }) => return Err(error),
                        Err(error) => failed = Some(error),
                    }
                }
                Fold::ExistsOne => count += i64::from(self.truth(body)? == Some(true)),
                Fold::Collect(filter) => {
                    let wanted = match filter {
                        Some(filter) => self.truth(filter)? == Some(true),
                        None => true,
                    };
                    if wanted {
                        collected.push(self.evaluate(body)?);
                    }
                }
            }
        }
        self.locals.truncate(depth);
        match (fold, failed) {
            (_, Some(error)) => Err(error),
            (Fold::Exists | Fold::All, None) if unknown => Ok(Value::Null),
            (Fold::Exists, None) => Ok(Value::Bool(false)),
            (Fold::All, None) => Ok(Value::Bool(true)),
            (Fold::ExistsOne, None) => Ok(Value::Bool(count == 1)),
            (Fold::Collect(_), None) => Ok(Value::List(collected.into())),
        }
    }
}

/// Of an object that does not have it, and of null: null.
fn member<'a>(of: &Value<'a>, name: &str) -> Value<'a> {
    match of {
        Value::Object(members) => members.iter().find(|(known, _)| known == name).map_or(Value::Null, |(_, value)| value.clone()),
        _ => Value::Null,
    }
}

fn element<'a>(of: &Value<'a>, index: &Value<'a>, within: &str) -> Evaluated<'a> {
    match (of, index) {
        (Value::Null, _) | (_, Value::Null) => Ok(Value::Null),
        (Value::Object(_), Value::Text(name)) => Ok(member(of, name)),
        (Value::List(items), Value::Int(nth)) => {
            let item = usize::try_from(*nth).ok().and_then(|nth| items.get(nth)).cloned();
            item.ok_or_else(|| EvaluationError::OutOfRange { index: nth.to_string(), within: within.to_owned() })
        }
        _ => Err(no_overload(&[of, index], within)),
    }
}

fn ordered<'a>(order: Order, left: &Value<'a>, right: &Value<'a>, within: &str) -> Evaluated<'a> {
    if matches!((left, right), (Value::Null, _) | (_, Value::Null)) {
        return Ok(Value::Null);
    }
    let Some(found) = left.compare(right) else {
        // A float that is no number is in no order with anything.
        let numbers = left.as_double().is_some() && right.as_double().is_some();
        return if numbers { Ok(Value::Bool(false)) } else { Err(no_overload(&[left, right], within)) };
    };
    Ok(Value::Bool(match order {
        Order::Less => found == Ordering::Less,
        Order::LessEqual => found != Ordering::Greater,
        Order::Greater => found == Ordering::Greater,
        Order::GreaterEqual => found != Ordering::Less,
    }))
}

pub(crate) fn arithmetic<'a>(operator: Arithmetic, left: &Value<'a>, right: &Value<'a>, within: &str) -> Evaluated<'a> {
    use Arithmetic::{Add, Divide, Multiply, Remainder, Subtract};
    let overflow = || EvaluationError::Overflow { within: within.to_owned() };
    match (left, right) {
        (Value::Null, _) | (_, Value::Null) => Ok(Value::Null),
        (Value::Int(a), Value::Int(b)) => {
            if *b == 0 && matches!(operator, Divide | Remainder) {
                return Err(EvaluationError::DivisionByZero { within: within.to_owned() });
            }
            let result = match operator {
                Add => a.checked_add(*b),
                Subtract => a.checked_sub(*b),
                Multiply => a.checked_mul(*b),
                Divide => a.checked_div(*b),
                Remainder => a.checked_rem(*b),
            };
            result.map(Value::Int).ok_or_else(overflow)
        }
        (Value::Text(a), Value::Text(b)) if operator == Add => {
            bounded(a.len() + b.len(), within)?;
            Ok(Value::text(format!("{a}{b}")))
        }
        (Value::List(a), Value::List(b)) if operator == Add => {
            bounded(a.len() + b.len(), within)?;
            Ok(Value::List(a.iter().chain(b.iter()).cloned().collect()))
        }
        (a, b) => match (a.as_decimal(), b.as_decimal()) {
            (Some(a), Some(b)) => {
                if b == Decimal::ZERO && matches!(operator, Divide | Remainder) {
                    return Err(EvaluationError::DivisionByZero { within: within.to_owned() });
                }
                let result = match operator {
                    Add => a.plus(b),
                    Subtract => a.plus(b.negated()),
                    Multiply => a.times(b),
                    Divide => a.divided_by(b),
                    Remainder => a.remainder(b),
                };
                result.map(Value::Decimal).ok_or_else(overflow)
            }
            _ => {
                let (Some(a), Some(b)) = (a.as_double(), b.as_double()) else { return Err(no_overload(&[left, right], within)) };
                Ok(Value::Double(match operator {
                    Add => a + b,
                    Subtract => a - b,
                    Multiply => a * b,
                    Divide => a / b,
                    Remainder => a % b,
                }))
            }
        },
    }
}

pub(crate) fn bounded(size: usize, within: &str) -> Result<(), EvaluationError> {
    if size > SIZE { Err(EvaluationError::TooLarge { limit: SIZE, within: within.to_owned() }) } else { Ok(()) }
}

pub(crate) fn no_overload(operands: &[&Value<'_>], within: &str) -> EvaluationError {
    let operands: Vec<&str> = operands.iter().map(|value| value.kind()).collect();
    EvaluationError::NoOverload { operands: operands.join(" and "), within: within.to_owned() }
}

/// A value in an error.
pub(crate) fn shown(value: &Value<'_>) -> String {
    value.to_json().to_string().chars().take(60).collect()
}
