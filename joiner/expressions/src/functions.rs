//! The functions: CEL's own, those of its usual extensions for strings and lists, and `decimal`, `date`, `datetime`, `time`, `round`, `abs` and `coalesce`.

use std::borrow::Cow;
use std::cmp::Ordering;

use regex::Regex;

use crate::compile::Arithmetic;
use crate::decimal::Decimal;
use crate::error::EvaluationError;
use crate::evaluate::{arithmetic, bounded, no_overload, shown};
use crate::moment::{Kind, Moment, Part};
use crate::types::Type;
use crate::value::Value;

/// A function whose arguments have been looked at.
#[derive(Debug, Clone)]
pub(crate) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Matches(Regex),
    LowerAscii,
    UpperAscii,
    Trim,
    Substring,
    Replace,
    ToText,
    ToInt,
    ToDouble,
    ToDecimal,
    ToBool,
    ToMoment(Kind),
    Part(Part),
    Abs,
    Round,
    Sum,
    Least,
    Greatest,
    Average,
    Distinct,
    Coalesce,
    Dyn,
}

/// How a function is called: `x.f(…)`, `f(x, …)`, or either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Member,
    Global,
    Either,
}

/// Name, style, arguments (the one that it is called on included) at least and at most.
const FUNCTIONS: [(&str, Style, usize, usize); 36] = [
    ("size", Style::Either, 1, 1),
    ("contains", Style::Member, 2, 2),
    ("startsWith", Style::Member, 2, 2),
    ("endsWith", Style::Member, 2, 2),
    ("matches", Style::Either, 2, 2),
    ("lowerAscii", Style::Member, 1, 1),
    ("upperAscii", Style::Member, 1, 1),
    ("trim", Style::Member, 1, 1),
    ("substring", Style::Member, 2, 3),
    ("replace", Style::Member, 3, 3),
    ("string", Style::Global, 1, 1),
    ("int", Style::Global, 1, 1),
    ("double", Style::Global, 1, 1),
    ("decimal", Style::Global, 1, 1),
    ("bool", Style::Global, 1, 1),
    ("date", Style::Global, 1, 1),
    ("time", Style::Global, 1, 1),
    ("datetime", Style::Global, 1, 1),
    ("timestamp", Style::Global, 1, 1),
    ("getFullYear", Style::Member, 1, 1),
    ("getMonth", Style::Member, 1, 1),
    ("getDayOfMonth", Style::Member, 1, 1),
    ("getDate", Style::Member, 1, 1),
    ("getDayOfYear", Style::Member, 1, 1),
    ("getDayOfWeek", Style::Member, 1, 1),
    ("getHours", Style::Member, 1, 1),
    ("getMinutes", Style::Member, 1, 1),
    ("getSeconds", Style::Member, 1, 1),
    ("getMilliseconds", Style::Member, 1, 1),
    ("abs", Style::Global, 1, 1),
    ("round", Style::Global, 1, 2),
    ("sum", Style::Member, 1, 1),
    ("min", Style::Member, 1, 1),
    ("max", Style::Member, 1, 1),
    ("avg", Style::Member, 1, 1),
    ("distinct", Style::Member, 1, 1),
];

/// Every function's name.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|(name, ..)| *name).chain(["coalesce", "dyn", "has"])
}

/// Whether a function of this name can be called like this.
pub(crate) fn is_callable(name: &str, member: bool, arguments: usize) -> bool {
    if !member && (name == "coalesce" && arguments > 0 || name == "dyn" && arguments == 1) {
        return true;
    }
    let fits = |style: Style| style == Style::Either || (style == Style::Member) == member;
    FUNCTIONS.iter().any(|(known, style, least, most)| *known == name && fits(*style) && (*least..=*most).contains(&arguments))
}

/// The function and what it answers; `None` where its arguments are of the wrong types. `pattern`: the second argument where it is a constant, compiled.
pub(crate) fn resolve(name: &str, types: &[Type], pattern: Option<Regex>) -> Option<(Function, Type)> {
    let first = types.first()?;
    let texts = || types.iter().all(|argument| argument.may_be(&Type::Text));
    let list = || matches!(first, Type::List(_) | Type::Any | Type::Null);
    let item = || if let Type::List(item) = first { (**item).clone() } else { Type::Any };
    let numbers = || item().is_number() || matches!(item(), Type::Any | Type::Null);
    let number = || first.is_number() || matches!(first, Type::Any | Type::Null);
    let scalar = || !matches!(first, Type::List(_) | Type::Object(_));
    let moment = || matches!(first, Type::Moment(_) | Type::Any | Type::Null);
    let (function, answer, possible) = match name {
        "size" => (Function::Size, Type::Int, matches!(first, Type::Text | Type::Bytes | Type::Object(_)) || list()),
        "contains" => (Function::Contains, Type::Bool, texts()),
        "startsWith" => (Function::StartsWith, Type::Bool, texts()),
        "endsWith" => (Function::EndsWith, Type::Bool, texts()),
        "matches" => (Function::Matches(pattern?), Type::Bool, texts()),
        "lowerAscii" => (Function::LowerAscii, Type::Text, texts()),
        "upperAscii" => (Function::UpperAscii, Type::Text, texts()),
        "trim" => (Function::Trim, Type::Text, texts()),
        "substring" => {
            let numbers = types[1..].iter().all(|argument| argument.may_be(&Type::Int));
            (Function::Substring, Type::Text, first.may_be(&Type::Text) && numbers)
        }
        "replace" => (Function::Replace, Type::Text, texts()),
        "string" => (Function::ToText, Type::Text, scalar()),
        "int" => (Function::ToInt, Type::Int, scalar()),
        "double" => (Function::ToDouble, Type::Double, scalar()),
        "decimal" => (Function::ToDecimal, Type::Decimal, scalar()),
        "bool" => (Function::ToBool, Type::Bool, first.may_be(&Type::Bool) || first.may_be(&Type::Text)),
        "date" | "time" | "datetime" | "timestamp" => {
            let kind = match name {
                "date" => Kind::Date,
                "time" => Kind::Time,
                "datetime" => Kind::DateTime,
                _ => Kind::Instant,
            };
            let from_moment = match first {
                Type::Moment(from) => *from == kind || kind == Kind::Date && *from != Kind::Time,
                _ => false,
            };
            (Function::ToMoment(kind), Type::Moment(kind), first.may_be(&Type::Text) || from_moment)
        }
        "abs" => (Function::Abs, first.clone(), number()),
        "round" => {
            let answer = if *first == Type::Double { Type::Double } else { Type::Decimal };
            let digits = types.get(1).is_none_or(|digits| digits.may_be(&Type::Int));
            (Function::Round, if *first == Type::Any { Type::Any } else { answer }, number() && digits)
        }
        "sum" => (Function::Sum, item(), list() && numbers()),
        "min" => (Function::Least, item(), list()),
        "max" => (Function::Greatest, item(), list()),
        "avg" => {
            let answer = if item() == Type::Double { Type::Double } else { Type::Decimal };
            (Function::Average, if item() == Type::Any { Type::Any } else { answer }, list() && numbers())
        }
        "distinct" => (Function::Distinct, first.clone(), list()),
        "coalesce" => (Function::Coalesce, types.iter().cloned().reduce(Type::joined)?, true),
        "dyn" => (Function::Dyn, Type::Any, true),
        part => (Function::Part(part_named(part)?), Type::Int, moment()),
    };
    possible.then_some((function, answer))
}

fn part_named(name: &str) -> Option<Part> {
    Some(match name {
        "getFullYear" => Part::Year,
        "getMonth" => Part::Month,
        "getDayOfMonth" => Part::DayOfMonth,
        "getDate" => Part::Date,
        "getDayOfYear" => Part::DayOfYear,
        "getDayOfWeek" => Part::DayOfWeek,
        "getHours" => Part::Hours,
        "getMinutes" => Part::Minutes,
        "getSeconds" => Part::Seconds,
        "getMilliseconds" => Part::Milliseconds,
        _ => return None,
    })
}

type Evaluated<'a> = Result<Value<'a>, EvaluationError>;

/// Calls a function. But for `coalesce`, of null comes null.
pub(crate) fn call<'a>(function: &Function, arguments: Vec<Value<'a>>, within: &str) -> Evaluated<'a> {
    if matches!(function, Function::Coalesce) {
        return Ok(arguments.into_iter().find(|argument| !matches!(argument, Value::Null)).unwrap_or(Value::Null));
    }
    if arguments.iter().any(|argument| matches!(argument, Value::Null)) {
        return Ok(Value::Null);
    }
    let refused = || no_overload(&arguments.iter().collect::<Vec<_>>(), within);
    let text = |which: usize| match arguments.get(which) {
        Some(Value::Text(text)) => Ok(text.as_ref()),
        _ => Err(refused()),
    };
    let Some(first) = arguments.first() else { return Err(refused()) };
    match function {
        Function::Size => Ok(Value::Int(match first {
            Value::Text(text) => text.chars().count(),
            Value::Bytes(bytes) => bytes.len(),
            Value::List(items) => items.len(),
            Value::Object(members) => members.len(),
            _ => return Err(refused()),
        } as i64)),
        Function::Contains => Ok(Value::Bool(text(0)?.contains(text(1)?))),
        Function::StartsWith => Ok(Value::Bool(text(0)?.starts_with(text(1)?))),
        Function::EndsWith => Ok(Value::Bool(text(0)?.ends_with(text(1)?))),
        Function::Matches(pattern) => Ok(Value::Bool(pattern.is_match(text(0)?))),
        Function::LowerAscii => Ok(Value::text(text(0)?.to_ascii_lowercase())),
        Function::UpperAscii => Ok(Value::text(text(0)?.to_ascii_uppercase())),
        Function::Trim => Ok(Value::text(text(0)?.trim().to_owned())),
        Function::Replace => {
            let (of, from, to) = (text(0)?, text(1)?, text(2)?);
            bounded(of.len() + of.len().div_ceil(from.len().max(1)).saturating_mul(to.len()), within)?;
            Ok(Value::text(of.replace(from, to)))
        }
        Function::Substring => substring(text(0)?, &arguments[1..], within).ok_or_else(refused)?,
        Function::ToText => to_text(first).map(Value::Text).ok_or_else(refused),
        Function::ToInt => converted(to_int(first), first, "64-bit whole number", within),
        Function::ToDouble => converted(to_double(first), first, "number", within),
        Function::ToDecimal => converted(to_decimal(first), first, "decimal of at most 38 digits", within),
        Function::ToBool => converted(to_bool(first), first, "bool", within),
        Function::ToMoment(kind) => converted(to_moment(*kind, first), first, "date or time of that form", within),
        Function::Part(part) => match first {
            Value::Moment(moment) => moment.part(*part).map(Value::Int).ok_or_else(refused),
            _ => Err(refused()),
        },
        Function::Abs => {
            let negative = first.compare(&Value::Int(0)) == Some(Ordering::Less);
            if negative { arithmetic(Arithmetic::Subtract, &Value::Int(0), first, within) } else { Ok(first.clone()) }
        }
        Function::Round => round(first, arguments.get(1), within),
        Function::Dyn => Ok(first.clone()),
        Function::Coalesce => Ok(Value::Null),
        Function::Sum | Function::Least | Function::Greatest | Function::Average | Function::Distinct => {
            let Value::List(items) = first else { return Err(refused()) };
            over_list(function, items, within)
        }
    }
}

fn over_list<'a>(function: &Function, items: &[Value<'a>], within: &str) -> Evaluated<'a> {
    let known = || items.iter().filter(|item| !matches!(item, Value::Null));
    let sum = || known().try_fold(Value::Int(0), |sum, item| arithmetic(Arithmetic::Add, &sum, item, within));
    match function {
        Function::Sum => sum(),
        Function::Average => match known().count() as i64 {
            0 => Ok(Value::Null),
            count => {
                let exact = sum()?.as_decimal().map(Value::Decimal);
                arithmetic(Arithmetic::Divide, &exact.map_or_else(sum, Ok)?, &Value::Int(count), within)
            }
        },
        Function::Distinct => {
            let mut found: Vec<Value<'a>> = Vec::new();
            for item in items {
                if !found.iter().any(|other| other.equals(item)) {
                    found.push(item.clone());
                    // Each is held against all others.
                    bounded(found.len() * found.len() / 64, within)?;
                }
            }
            Ok(Value::List(found.into()))
        }
        _ => {
            let wanted = if matches!(function, Function::Least) { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<&Value<'a>> = None;
            for item in known() {
                let better = match best {
                    Some(best) => item.compare(best).ok_or_else(|| no_overload(&[item, best], within))? == wanted,
                    None => true,
                };
                best = if better { Some(item) } else { best };
            }
            Ok(best.cloned().unwrap_or(Value::Null))
        }
    }
}

/// Characters from the first number on, before the second. `None`: the arguments are not numbers.
fn substring<'a>(text: &str, range: &[Value<'a>], within: &str) -> Option<Evaluated<'a>> {
    let numbers: Option<Vec<i64>> = range.iter().map(|value| if let Value::Int(n) = value { Some(*n) } else { None }).collect();
    let numbers = numbers?;
    let count = text.chars().count() as i64;
    let (start, end) = (numbers.first().copied()?, numbers.get(1).copied().unwrap_or(count));
    if start < 0 || end < start || end > count {
        let index = if start < 0 { start } else { end };
        return Some(Err(EvaluationError::OutOfRange { index: index.to_string(), within: within.to_owned() }));
    }
    Some(Ok(Value::text(text.chars().skip(start as usize).take((end - start) as usize).collect::<String>())))
}

fn converted<'a>(to: Option<Value<'a>>, from: &Value<'a>, wanted: &'static str, within: &str) -> Evaluated<'a> {
    to.ok_or_else(|| EvaluationError::Conversion { value: shown(from), wanted, within: within.to_owned() })
}

fn to_text<'a>(value: &Value<'a>) -> Option<Cow<'a, str>> {
    Some(match value {
        Value::Text(text) => text.clone(),
        Value::Bool(value) => value.to_string().into(),
        Value::Int(value) => value.to_string().into(),
        Value::Decimal(value) => value.to_string().into(),
        Value::Double(value) => value.to_string().into(),
        Value::Moment(value) => value.to_string().into(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?.into(),
        Value::Null | Value::List(_) | Value::Object(_) => return None,
    })
}

fn to_int<'a>(value: &Value<'a>) -> Option<Value<'a>> {
    Some(Value::Int(match value {
        Value::Int(value) => *value,
        Value::Decimal(value) => i64::try_from(value.truncated()).ok()?,
        Value::Double(value) => i64::try_from(Decimal::from_f64(value.trunc())?.truncated()).ok()?,
        Value::Text(text) => text.parse().ok()?,
        _ => return None,
    }))
}

fn to_double<'a>(value: &Value<'a>) -> Option<Value<'a>> {
    match value {
        Value::Text(text) => text.parse().ok().map(Value::Double),
        value => value.as_double().map(Value::Double),
    }
}

fn to_decimal<'a>(value: &Value<'a>) -> Option<Value<'a>> {
    match value {
        Value::Text(text) => text.parse().ok().map(Value::Decimal),
        Value::Double(value) => Decimal::from_f64(*value).map(Value::Decimal),
        value => value.as_decimal().map(Value::Decimal),
    }
}

fn to_bool<'a>(value: &Value<'a>) -> Option<Value<'a>> {
    match value {
        Value::Bool(value) => Some(Value::Bool(*value)),
        Value::Text(text) => match text.as_ref() {
            "true" | "True" | "TRUE" | "t" | "1" => Some(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Some(Value::Bool(false)),
            _ => None,
        },
        _ => None,
    }
}

pub(crate) fn to_moment<'a>(kind: Kind, value: &Value<'a>) -> Option<Value<'a>> {
    match value {
        Value::Text(text) => Moment::parse(kind, text).map(Value::Moment),
        Value::Moment(moment) if moment.kind() == kind => Some(Value::Moment(*moment)),
        Value::Moment(moment) if kind == Kind::Date => moment.date().map(Value::Moment),
        _ => None,
    }
}

/// Half away from zero, to so many digits after the point.
fn round<'a>(value: &Value<'a>, digits: Option<&Value<'a>>, within: &str) -> Evaluated<'a> {
    let digits = match digits {
        None => 0,
        Some(Value::Int(digits @ 0..=38)) => *digits as u8,
        Some(other) => {
            return Err(EvaluationError::OutOfRange { index: shown(other), within: within.to_owned() });
        }
    };
    let overflow = || EvaluationError::Overflow { within: within.to_owned() };
    match value {
        Value::Double(number) => {
            let rounded = Decimal::from_f64(*number).and_then(|exact| exact.rescaled(digits));
            // A float without so many digits is round already.
            Ok(Value::Double(rounded.map_or(*number, Decimal::to_f64)))
        }
        number => {
            let exact = number.as_decimal().ok_or_else(|| no_overload(&[number], within))?;
            exact.rescaled(digits).map(Value::Decimal).ok_or_else(overflow)
        }
    }
}
