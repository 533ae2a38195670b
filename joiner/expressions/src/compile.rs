//! From CEL's syntax tree to the tree that is evaluated: names become numbers, types are checked as far as they are known, comprehensions become what their macros mean.

use std::sync::Arc;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};
use regex::RegexBuilder;

use crate::decimal::Decimal;
use crate::error::{Mistake, hint};
use crate::functions::{self, Function};
use crate::moment::Kind;
use crate::parse::{infix, place, show};
use crate::types::{Scope, Type};
use crate::value::Value;

/// Levels of the tree: evaluation recurses as deep.
const DEPTH: usize = 100;
/// Nodes of the tree.
const NODES: usize = 1000;
/// Bytes of a compiled pattern.
const PATTERN: usize = 1 << 18;

/// What is evaluated. Texts say where in the expression a node stands.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Constant(Value<'static>),
    Variable(usize),
    /// The variable of an enclosing comprehension, the outermost first.
    Local(usize),
    Member(Box<Node>, String),
    Has(Box<Node>, String),
    Index(Box<Node>, Box<Node>, Box<str>),
    Not(Box<Node>),
    Negate(Box<Node>, Box<str>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    /// Whether they are equal, or whether they are not.
    Equal(Box<Node>, Box<Node>, bool),
    Order(Order, Box<Node>, Box<Node>, Box<str>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>, Box<str>),
    In(Box<Node>, Box<Node>, Box<str>),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
    Call(Box<Function>, Vec<Node>, Box<str>),
    Fold(Box<Fold>, Box<Node>, Box<Node>, Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// What becomes of the elements of a list.
#[derive(Debug, Clone)]
pub(crate) enum Fold {
    Exists,
    All,
    ExistsOne,
    /// `map` and `filter`: of the elements that the filter keeps.
    Collect(Option<Node>),
}

impl Node {
    /// Where it stands, as far as it knows.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Index(.., text)
            | Self::Negate(_, text)
            | Self::Order(.., text)
            | Self::Arithmetic(.., text)
            | Self::In(.., text)
            | Self::Call(.., text)
            | Self::Fold(.., text) => text.to_string(),
            Self::Member(of, name) => format!("{}.{name}", of.text()),
            _ => "a condition".to_owned(),
        }
    }
}

pub(crate) struct Compiler<'a> {
    pub(crate) text: &'a str,
    pub(crate) scope: &'a Scope,
    /// The names that are used, in the order of their first use.
    pub(crate) variables: Vec<(String, Type)>,
    locals: Vec<(String, Type)>,
    nodes: usize,
}

type Compiled = Result<(Node, Type), Mistake>;

impl<'a> Compiler<'a> {
    pub(crate) fn new(text: &'a str, scope: &'a Scope) -> Self {
        Self { text, scope, variables: Vec::new(), locals: Vec::new(), nodes: 0 }
    }

    pub(crate) fn compile(&mut self, expression: &IdedExpr, depth: usize) -> Compiled {
        self.nodes += 1;
        if self.nodes > NODES {
            return Err(Mistake::TooLarge { limit: NODES });
        }
        if depth > DEPTH {
            return Err(Mistake::TooDeep { limit: DEPTH });
        }
        match &expression.expr {
            Expr::Ident(name) => self.name(name),
            Expr::Literal(literal) => constant(literal, expression),
            Expr::Select(select) => {
                let (of, of_type) = self.compile(&select.operand, depth + 1)?;
                let found = self.member_type(&of_type, &select.field, expression)?;
                Ok(if select.test {
                    (Node::Has(Box::new(of), select.field.clone()), Type::Bool)
                } else {
                    (Node::Member(Box::new(of), select.field.clone()), found)
                })
            }
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                let mut of: Option<Type> = None;
                for element in &list.elements {
                    let (node, found) = self.compile(element, depth + 1)?;
                    items.push(node);
                    of = Some(of.map_or(found.clone(), |of| of.joined(found)));
                }
                Ok((Node::List(items), Type::list(of.unwrap_or(Type::Any))))
            }
            Expr::Map(map) => {
                let (mut members, mut types) = (Vec::new(), Vec::new());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let Expr::Literal(LiteralValue::String(name)) = &entry.key.expr else {
                        return Err(Mistake::Unsupported { what: "keys that are not string literals", within: show(expression) });
                    };
                    let (node, of) = self.compile(&entry.value, depth + 1)?;
                    members.push((name.inner().to_owned(), node));
                    types.push((name.inner().to_owned(), of));
                }
                Ok((Node::Object(members), Type::Object(Arc::new(types.into_iter().collect()))))
            }
            Expr::Comprehension(fold) => self.fold(fold, expression, depth),
            Expr::Call(call) => self.call(call, expression, depth),
            Expr::Struct(_) => Err(Mistake::Unsupported { what: "messages", within: show(expression) }),
            Expr::Unspecified => Err(Mistake::Syntax { line: 1, column: 1, what: "it cannot be read".to_owned() }),
        }
    }

    fn name(&mut self, name: &str) -> Compiled {
        if let Some(local) = self.locals.iter().rposition(|(local, _)| local == name) {
            return Ok((Node::Local(local), self.locals[local].1.clone()));
        }
        let Some(of) = self.scope.get(name) else {
            let (line, column) = place(self.text, name);
            let known = self.scope.names().collect::<Vec<_>>().join(", ");
            let hint = hint(name, self.scope.names());
            return Err(Mistake::UnknownName { name: name.to_owned(), line, column, hint, known });
        };
        let which = self.variables.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.variables.push((name.to_owned(), of.clone()));
            self.variables.len() - 1
        });
        Ok((Node::Variable(which), of.clone()))
    }

    fn member_type(&self, of: &Type, name: &str, expression: &IdedExpr) -> Result<Type, Mistake> {
        match of {
            Type::Object(members) => members.get(name).cloned().ok_or_else(|| Mistake::UnknownMember {
                member: name.to_owned(),
                within: show(expression),
                known: members.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
            }),
            Type::Any | Type::Null => Ok(Type::Any),
            other => Err(Mistake::NoOverload {
                operation: format!("a member {name:?}"),
                operands: vec![other.clone()],
                within: show(expression),
            }),
        }
    }

    /// A part that has to be of a type.
    fn wanted(&mut self, part: &IdedExpr, wanted: &Type, depth: usize) -> Result<Box<Node>, Mistake> {
        let (node, found) = self.compile(part, depth)?;
        if !found.may_be(wanted) {
            return Err(Mistake::WrongType { found, wanted: wanted.clone(), within: show(part) });
        }
        Ok(Box::new(node))
    }

    fn call(&mut self, call: &CallExpr, expression: &IdedExpr, depth: usize) -> Compiled {
        let within = || show(expression).into_boxed_str();
        let next = depth + 1;
        match (call.func_name.as_str(), &call.args[..]) {
            (operators::LOGICAL_NOT, [of]) => Ok((Node::Not(self.wanted(of, &Type::Bool, next)?), Type::Bool)),
            (operators::NEGATE, [of]) => {
                let (node, found) = self.compile(of, next)?;
                if !found.is_number() && !matches!(found, Type::Any | Type::Null) {
                    return Err(no_overload("-", vec![found], expression));
                }
                Ok((Node::Negate(Box::new(node), within()), found))
            }
            (operators::LOGICAL_AND, [left, right]) => {
                let (left, right) = (self.wanted(left, &Type::Bool, next)?, self.wanted(right, &Type::Bool, next)?);
                Ok((Node::And(left, right), Type::Bool))
            }
            (operators::LOGICAL_OR, [left, right]) => {
                let (left, right) = (self.wanted(left, &Type::Bool, next)?, self.wanted(right, &Type::Bool, next)?);
                Ok((Node::Or(left, right), Type::Bool))
            }
            (operators::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.wanted(condition, &Type::Bool, next)?;
                let ((yes, a), (no, b)) = (self.compile(yes, next)?, self.compile(no, next)?);
                Ok((Node::If(condition, Box::new(yes), Box::new(no)), a.joined(b)))
            }
            (operators::INDEX, [of, index]) => {
                let ((of, of_type), (index, index_type)) = (self.compile(of, next)?, self.compile(index, next)?);
                let found = match (&of_type, &index_type) {
                    (Type::List(item), Type::Int | Type::Any) => (**item).clone(),
                    (Type::Object(_) | Type::Any, Type::Text | Type::Any) | (Type::Any, Type::Int) => Type::Any,
                    _ => return Err(no_overload("[]", vec![of_type, index_type], expression)),
                };
                Ok((Node::Index(Box::new(of), Box::new(index), within()), found))
            }
            (operators::IN, [item, list]) => {
                let ((item, item_type), (list, list_type)) = (self.compile(item, next)?, self.compile(list, next)?);
                let possible = match &list_type {
                    Type::List(of) => comparable(&item_type, of),
                    Type::Object(_) => item_type.may_be(&Type::Text),
                    other => matches!(other, Type::Any | Type::Null),
                };
                if !possible {
                    return Err(no_overload("in", vec![item_type, list_type], expression));
                }
                Ok((Node::In(Box::new(item), Box::new(list), within()), Type::Bool))
            }
            (operator, [left, right]) if call.target.is_none() && infix(operator).is_some() => {
                let (left, right) = (self.compile(left, next)?, self.compile(right, next)?);
                binary(operator, left, right, expression)
            }
            (name, arguments) => self.function(name, call.target.as_deref(), arguments, expression, next),
        }
    }

    fn function(
        &mut self,
        name: &str,
        target: Option<&IdedExpr>,
        arguments: &[IdedExpr],
        expression: &IdedExpr,
        depth: usize,
    ) -> Compiled {
        let count = arguments.len() + usize::from(target.is_some());
        if !functions::is_callable(name, target.is_some(), count) {
            let hint = hint(name, functions::names().filter(|known| *known != name));
            return Err(Mistake::UnknownFunction { function: name.to_owned(), within: show(expression), hint });
        }
        let (mut nodes, mut types) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for argument in target.into_iter().chain(arguments) {
            let (node, of) = self.compile(argument, depth)?;
            nodes.push(node);
            types.push(of);
        }
        let within = show(expression);
        let pattern = match nodes.get(1) {
            Some(Node::Constant(Value::Text(pattern))) if name == "matches" => {
                let compiled = RegexBuilder::new(pattern).size_limit(PATTERN).build();
                Some(compiled.map_err(|error| Mistake::Pattern { what: error.to_string(), within: within.clone() })?)
            }
            _ if name == "matches" => {
                return Err(Mistake::Unsupported { what: "patterns that are not string literals", within });
            }
            _ => None,
        };
        let Some((function, answer)) = functions::resolve(name, &types, pattern) else {
            return Err(no_overload(name, types, expression));
        };
        // What is known already is found out already: a wrong date is a mistake in the expression.
        if let (Function::ToMoment(_) | Function::ToDecimal, [Node::Constant(Value::Text(text))]) = (&function, &nodes[..]) {
            let constant = functions::call(&function, vec![Value::Text(text.clone())], &within);
            let wrong = || Mistake::Constant { text: text.to_string(), wanted: answer.clone(), within: within.clone() };
            return Ok((Node::Constant(constant.map_err(|_| wrong())?.into_owned()), answer));
        }
        Ok((Node::Call(Box::new(function), nodes, within.into()), answer))
    }

    /// The macros `exists`, `all`, `exists_one`, `map` and `filter`, told by what they were expanded to.
    fn fold(&mut self, fold: &ComprehensionExpr, expression: &IdedExpr, depth: usize) -> Compiled {
        let next = depth + 1;
        let within = show(expression);
        let unknown = || Mistake::Unsupported { what: "comprehensions of this kind", within: within.clone() };
        let (list, list_type) = self.compile(&fold.iter_range, next)?;
        let item = match &list_type {
            Type::List(item) => (**item).clone(),
            Type::Object(_) => Type::Text,
            Type::Any | Type::Null => Type::Any,
            _ => return Err(no_overload("a comprehension", vec![list_type], expression)),
        };
        let Expr::Call(step) = &fold.loop_step.expr else { return Err(unknown()) };
        self.locals.push((fold.iter_var.clone(), item.clone()));
        let is_accumulator = |part: &IdedExpr| matches!(&part.expr, Expr::Ident(name) if *name == fold.accu_var);
        // `[element]` of `accumulator + [element]`.
        let appended = |part: &'_ IdedExpr| -> Option<IdedExpr> {
            let Expr::Call(call) = &part.expr else { return None };
            match &call.args[..] {
                [accumulator, list] if call.func_name == operators::ADD && is_accumulator(accumulator) => match &list.expr {
                    Expr::List(list) => list.elements.first().cloned(),
                    _ => None,
                },
                _ => None,
            }
        };
        let compiled = match (&fold.accu_init.expr, step.func_name.as_str(), &step.args[..]) {
            (Expr::Literal(LiteralValue::Boolean(_)), operators::LOGICAL_OR | operators::LOGICAL_AND, [_, body]) => {
                let kind = if step.func_name == operators::LOGICAL_OR { Fold::Exists } else { Fold::All };
                (kind, self.wanted(body, &Type::Bool, next)?, Type::Bool)
            }
            (Expr::Literal(LiteralValue::Int(_)), operators::CONDITIONAL, [body, ..]) => {
                (Fold::ExistsOne, self.wanted(body, &Type::Bool, next)?, Type::Bool)
            }
            (Expr::List(_), operators::CONDITIONAL, [filter, step, _]) => {
                let filter = self.wanted(filter, &Type::Bool, next)?;
                let (body, of) = self.compile(&appended(step).ok_or_else(unknown)?, next)?;
                (Fold::Collect(Some(*filter)), Box::new(body), Type::list(of))
            }
            (Expr::List(_), operators::ADD, _) => {
                let (body, of) = self.compile(&appended(&fold.loop_step).ok_or_else(unknown)?, next)?;
                (Fold::Collect(None), Box::new(body), Type::list(of))
            }
            _ => return Err(unknown()),
        };
        self.locals.pop();
        let (kind, body, answer) = compiled;
        Ok((Node::Fold(Box::new(kind), Box::new(list), body, within.into()), answer))
    }
}

fn no_overload(operation: &str, operands: Vec<Type>, expression: &IdedExpr) -> Mistake {
    Mistake::NoOverload { operation: operation.to_owned(), operands, within: show(expression) }
}

/// Whether values of the two may be equal.
fn comparable(a: &Type, b: &Type) -> bool {
    let open = |of: &Type| matches!(of, Type::Any | Type::Null);
    let local = |of: &Type| matches!(of, Type::Moment(Kind::Date | Kind::DateTime));
    match (a, b) {
        (Type::List(a), Type::List(b)) => comparable(a, b),
        (Type::Object(_), Type::Object(_)) => true,
        (a, b) => open(a) || open(b) || a == b || a.is_number() && b.is_number() || local(a) && local(b),
    }
}

/// Text that is compared with a point in time is read as one, when it is a literal.
fn as_moment(side: (Node, Type), other: &Type, expression: &IdedExpr) -> Result<(Node, Type), Mistake> {
    let (Node::Constant(text @ Value::Text(_)), Type::Moment(kind)) = (&side.0, other) else { return Ok(side) };
    let moment = functions::to_moment(*kind, text).ok_or_else(|| Mistake::Constant {
        text: if let Value::Text(text) = text { text.to_string() } else { String::new() },
        wanted: other.clone(),
        within: show(expression),
    })?;
    Ok((Node::Constant(moment.into_owned()), other.clone()))
}

fn binary(operator: &str, left: (Node, Type), right: (Node, Type), expression: &IdedExpr) -> Compiled {
    let within = || show(expression).into_boxed_str();
    let order = match operator {
        operators::LESS => Some(Order::Less),
        operators::LESS_EQUALS => Some(Order::LessEqual),
        operators::GREATER => Some(Order::Greater),
        operators::GREATER_EQUALS => Some(Order::GreaterEqual),
        _ => None,
    };
    let equality = matches!(operator, operators::EQUALS | operators::NOT_EQUALS);
    if order.is_some() || equality {
        let left = as_moment(left, &right.1.clone(), expression)?;
        let (right, a) = (as_moment(right, &left.1, expression)?, left.1);
        let ((left, _), (right, b)) = ((left.0, ()), right);
        let in_order = !matches!(a, Type::List(_) | Type::Object(_)) && !matches!(b, Type::List(_) | Type::Object(_));
        if !comparable(&a, &b) || order.is_some() && !in_order {
            return Err(no_overload(infix(operator).unwrap_or(operator), vec![a, b], expression));
        }
        let (left, right) = (Box::new(left), Box::new(right));
        return Ok(match order {
            Some(order) => (Node::Order(order, left, right, within()), Type::Bool),
            None => (Node::Equal(left, right, operator == operators::EQUALS), Type::Bool),
        });
    }
    let arithmetic = match operator {
        operators::ADD => Arithmetic::Add,
        operators::SUBSTRACT => Arithmetic::Subtract,
        operators::MULTIPLY => Arithmetic::Multiply,
        operators::DIVIDE => Arithmetic::Divide,
        _ => Arithmetic::Remainder,
    };
    let ((left, a), (right, b)) = (left, right);
    let add = arithmetic == Arithmetic::Add;
    let answer = match (&a, &b) {
        (Type::Any | Type::Null, other) | (other, Type::Any | Type::Null) => match other {
            Type::Any | Type::Null | Type::Int | Type::Decimal | Type::Double => Type::Any,
            Type::Text | Type::List(_) if add => other.clone(),
            _ => return Err(no_overload(infix(operator).unwrap_or(operator), vec![a, b], expression)),
        },
        (Type::Text, Type::Text) if add => Type::Text,
        (Type::List(_), Type::List(_)) if add => a.clone().joined(b.clone()),
        (a, b) if a.is_number() && b.is_number() => {
            if *a == Type::Double || *b == Type::Double {
                Type::Double
            } else {
                a.clone().joined(b.clone())
            }
        }
        _ => return Err(no_overload(infix(operator).unwrap_or(operator), vec![a, b], expression)),
    };
    Ok((Node::Arithmetic(arithmetic, Box::new(left), Box::new(right), within()), answer))
}

/// A literal with a point is an exact decimal; with an exponent, a float.
fn constant(literal: &LiteralValue, expression: &IdedExpr) -> Compiled {
    let large =
        || Mistake::Unsupported { what: "whole numbers of more than 63 bits (write decimal(\"…\"))", within: show(expression) };
    Ok(match literal {
        LiteralValue::Null => (Node::Constant(Value::Null), Type::Null),
        LiteralValue::Boolean(value) => (Node::Constant(Value::Bool(*value.inner())), Type::Bool),
        LiteralValue::Int(value) => (Node::Constant(Value::Int(*value.inner())), Type::Int),
        LiteralValue::UInt(value) => {
            let value = i64::try_from(*value.inner()).map_err(|_| large())?;
            (Node::Constant(Value::Int(value)), Type::Int)
        }
        LiteralValue::Double(value) => match Decimal::from_f64(*value.inner()) {
            Some(exact) => (Node::Constant(Value::Decimal(exact)), Type::Decimal),
            None => (Node::Constant(Value::Double(*value.inner())), Type::Double),
        },
        LiteralValue::String(value) => (Node::Constant(Value::text(value.inner().to_owned())), Type::Text),
        LiteralValue::Bytes(value) => (Node::Constant(Value::Bytes(value.inner().to_vec().into())), Type::Bytes),
    })
}
