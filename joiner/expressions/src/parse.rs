//! From text to CEL's syntax tree, by the parser of the crate `cel`; and back, to say where in an expression something is wrong.
//!
//! The parser's recursion is bounded by what is counted here before it begins: its length, and the conditions in it (the one construct whose depth the parser itself does not count).

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr, LiteralValue, operators};
use cel::parser::PrattParser;
use cel::parser::pratt_parser::{Lexer, TokenKind};

use crate::decimal::Decimal;
use crate::error::Mistake;

/// Bytes of an expression.
const LENGTH: usize = 4096;
/// Levels of parentheses, arguments and lists.
const DEPTH: u16 = 32;
/// `?` in an expression.
const CONDITIONS: usize = 64;

/// Parses an expression.
pub(crate) fn parse(text: &str) -> Result<IdedExpr, Mistake> {
    if text.len() > LENGTH {
        return Err(Mistake::TooLong { length: text.len(), limit: LENGTH });
    }
    literals(text)?;
    PrattParser::new().max_recursion_depth(DEPTH).parse(text).map_err(|errors| {
        let first = errors.errors.first();
        // Positions begin at 1; without one, it is the whole.
        let (line, column) = first.map_or((1, 1), |error| error.pos);
        if line < 1 {
            return Mistake::TooDeep { limit: usize::from(DEPTH) };
        }
        let what = first.map_or("it cannot be read", |error| error.msg.as_str());
        let what = what.strip_prefix("Syntax error: ").unwrap_or(what).replace("<EOF>", "the end");
        Mistake::Syntax { line: line as usize, column: column.max(1) as usize, what }
    })
}

/// Refuses what the parser would take in silently, or without end: literals that lose digits as floats, and too many conditions.
fn literals(text: &str) -> Result<(), Mistake> {
    let mut lexer = Lexer::new(text);
    let mut conditions = 0;
    loop {
        let token = lexer.lex();
        match token.kind {
            TokenKind::TokEnd | TokenKind::TokError => return Ok(()),
            TokenKind::TokQuestion => {
                conditions += 1;
                if conditions > CONDITIONS {
                    return Err(Mistake::TooDeep { limit: CONDITIONS });
                }
            }
            TokenKind::TokFloat => {
                let literal = &text[token.start..token.end];
                let written = if literal.starts_with('.') { format!("0{literal}") } else { literal.to_owned() };
                let exact = written.parse::<Decimal>().ok();
                let read = literal.parse::<f64>().ok().and_then(Decimal::from_f64);
                // With an exponent it is a float, and means to be one.
                if !literal.contains(['e', 'E']) && exact != read {
                    return Err(Mistake::InexactLiteral { literal: literal.to_owned() });
                }
            }
            _ => {}
        }
    }
}

/// Line and column of a name's first use, from 1.
pub(crate) fn place(text: &str, name: &str) -> (usize, usize) {
    let mut lexer = Lexer::new(text);
    loop {
        let token = lexer.lex();
        match token.kind {
            TokenKind::TokEnd | TokenKind::TokError => return (1, 1),
            TokenKind::TokIdent if &text[token.start..token.end] == name => {
                let before = &text[..token.start];
                let line = before.matches('\n').count() + 1;
                let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
                return (line, column);
            }
            _ => {}
        }
    }
}

/// An expression as text.
pub(crate) fn show(expression: &IdedExpr) -> String {
    let mut out = String::new();
    write(expression, &mut out);
    // What is long enough to find it by.
    if out.chars().count() > 120 { out.chars().take(117).chain("...".chars()).collect() } else { out }
}

fn write(expression: &IdedExpr, out: &mut String) {
    match &expression.expr {
        Expr::Unspecified => out.push('?'),
        Expr::Ident(name) => out.push_str(name),
        Expr::Literal(literal) => write_literal(literal, out),
        Expr::Select(select) => {
            out.push_str(if select.test { "has(" } else { "" });
            write(&select.operand, out);
            out.push('.');
            out.push_str(&select.field);
            out.push_str(if select.test { ")" } else { "" });
        }
        Expr::List(list) => {
            out.push('[');
            write_all(&list.elements, out);
            out.push(']');
        }
        Expr::Map(_) | Expr::Struct(_) => {
            let entries = match &expression.expr {
                Expr::Map(map) => &map.entries,
                Expr::Struct(of) => &of.entries,
                _ => return,
            };
            out.push('{');
            for (nth, entry) in entries.iter().enumerate() {
                out.push_str(if nth > 0 { ", " } else { "" });
                let value = match &entry.expr {
                    EntryExpr::MapEntry(entry) => {
                        write(&entry.key, out);
                        &entry.value
                    }
                    EntryExpr::StructField(field) => {
                        out.push_str(&field.field);
                        &field.value
                    }
                };
                out.push_str(": ");
                write(value, out);
            }
            out.push('}');
        }
        Expr::Comprehension(fold) => {
            write(&fold.iter_range, out);
            // The macro that it was is not kept.
            out.push_str(&format!(".…({}, …)", fold.iter_var));
        }
        Expr::Call(call) => match (call.func_name.as_str(), &call.args[..]) {
            (operators::CONDITIONAL, [condition, yes, no]) => {
                write(condition, out);
                out.push_str(" ? ");
                write(yes, out);
                out.push_str(" : ");
                write(no, out);
            }
            (operators::INDEX, [of, index]) => {
                write(of, out);
                out.push('[');
                write(index, out);
                out.push(']');
            }
            (operators::LOGICAL_NOT | operators::NEGATE, [of]) => {
                out.push(if call.func_name == operators::NEGATE { '-' } else { '!' });
                write_operand(of, out);
            }
            (operator, [left, right]) if call.target.is_none() && infix(operator).is_some() => {
                write_operand(left, out);
                out.push_str(&format!(" {} ", infix(operator).unwrap_or_default()));
                write_operand(right, out);
            }
            (function, arguments) => {
                if let Some(target) = &call.target {
                    write(target, out);
                    out.push('.');
                }
                out.push_str(function);
                out.push('(');
                write_all(arguments, out);
                out.push(')');
            }
        },
    }
}

fn write_all(expressions: &[IdedExpr], out: &mut String) {
    for (nth, expression) in expressions.iter().enumerate() {
        out.push_str(if nth > 0 { ", " } else { "" });
        write(expression, out);
    }
}

/// In parentheses where it is made of operators itself.
fn write_operand(expression: &IdedExpr, out: &mut String) {
    let compound = matches!(&expression.expr, Expr::Call(call) if infix(&call.func_name).is_some() || call.func_name == operators::CONDITIONAL);
    out.push_str(if compound { "(" } else { "" });
    write(expression, out);
    out.push_str(if compound { ")" } else { "" });
}

pub(crate) fn infix(operator: &str) -> Option<&'static str> {
    Some(match operator {
        operators::LOGICAL_AND => "&&",
        operators::LOGICAL_OR => "||",
        operators::ADD => "+",
        operators::SUBSTRACT => "-",
        operators::MULTIPLY => "*",
        operators::DIVIDE => "/",
        operators::MODULO => "%",
        operators::EQUALS => "==",
        operators::NOT_EQUALS => "!=",
        operators::LESS => "<",
        operators::LESS_EQUALS => "<=",
        operators::GREATER => ">",
        operators::GREATER_EQUALS => ">=",
        operators::IN => "in",
        _ => return None,
    })
}

fn write_literal(literal: &LiteralValue, out: &mut String) {
    match literal {
        LiteralValue::Boolean(value) => out.push_str(&value.inner().to_string()),
        LiteralValue::Int(value) => out.push_str(&value.inner().to_string()),
        LiteralValue::UInt(value) => out.push_str(&format!("{}u", value.inner())),
        LiteralValue::Double(value) => out.push_str(&format!("{:?}", value.inner())),
        LiteralValue::String(value) => out.push_str(&format!("{:?}", value.inner())),
        LiteralValue::Bytes(_) => out.push_str("b\"…\""),
        LiteralValue::Null => out.push_str("null"),
    }
}
