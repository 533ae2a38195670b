//! Row filters: comparisons over a row's values, all of which must hold.

use std::cmp::Ordering;

use schemas::event::Row;
use schemas::table::{Length, SqlType, TableSchema};
use schemas::value::Value;

use super::ControlsError;

/// One comparison with a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Comparison {
    column: usize,
    case_insensitive: bool,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Null(bool),
    /// Equal to one of them.
    In(Vec<Literal>),
    NotEqual(Literal),
    /// By the orderings that satisfy it.
    Ordered(&'static [Ordering], Literal),
}

#[derive(Debug, Clone, PartialEq)]
enum Literal {
    /// `mantissa / 10^scale`.
    Number {
        mantissa: i128,
        scale: u8,
    },
    Text(String),
}

impl Comparison {
    pub(super) fn at(self, column: usize) -> Self {
        Self { column, ..self }
    }

    pub(super) fn holds(&self, row: &Row) -> bool {
        let Some(value) = row.get(self.column) else { return false };
        let compare = |literal: &Literal| compare(value, literal, self.case_insensitive);
        match &self.test {
            Test::Null(wanted) => (*value == Value::Null) == *wanted,
            Test::In(literals) => literals.iter().any(|literal| compare(literal) == Some(Ordering::Equal)),
            Test::NotEqual(literal) => compare(literal).is_some_and(|ordering| ordering != Ordering::Equal),
            Test::Ordered(accepted, literal) => compare(literal).is_some_and(|ordering| accepted.contains(&ordering)),
        }
    }
}

/// `None`: NULL, or of kinds that do not compare.
fn compare(value: &Value, literal: &Literal, case_insensitive: bool) -> Option<Ordering> {
    match (value, literal) {
        (Value::Int(number), Literal::Number { mantissa, scale }) => decimals((i128::from(*number), 0), (*mantissa, *scale)),
        (Value::Bool(bit), Literal::Number { mantissa, scale }) => decimals((i128::from(*bit), 0), (*mantissa, *scale)),
        (Value::Decimal { mantissa: number, scale: of }, Literal::Number { mantissa, scale }) => {
            decimals((*number, *of), (*mantissa, *scale))
        }
        (Value::Real(number), Literal::Number { mantissa, scale }) => f64::from(*number).partial_cmp(&float(*mantissa, *scale)),
        (Value::Float(number), Literal::Number { mantissa, scale }) => number.partial_cmp(&float(*mantissa, *scale)),
        (Value::Text(text), Literal::Text(literal)) => {
            let (text, literal) = (text.trim_end_matches(' '), literal.trim_end_matches(' '));
            let equal = if case_insensitive { text.to_lowercase() == literal.to_lowercase() } else { text == literal };
            // Which is the greater depends on the collation: nobody may ask.
            Some(if equal { Ordering::Equal } else { Ordering::Less })
        }
        (Value::Uuid(_), Literal::Text(literal)) => {
            let equal = value.to_json().as_str().is_some_and(|text| text.eq_ignore_ascii_case(literal));
            Some(if equal { Ordering::Equal } else { Ordering::Less })
        }
        (Value::Date(_) | Value::Time { .. } | Value::DateTime { .. }, Literal::Text(literal)) => {
            value.to_json().as_str().map(|text| text.cmp(literal.as_str()))
        }
        _ => None,
    }
}

fn float(mantissa: i128, scale: u8) -> f64 {
    mantissa as f64 / 10f64.powi(i32::from(scale))
}

fn decimals((a, a_scale): (i128, u8), (b, b_scale): (i128, u8)) -> Option<Ordering> {
    let scale = a_scale.max(b_scale);
    let raise =
        |mantissa: i128, from: u8| 10i128.checked_pow(u32::from(scale - from)).and_then(|factor| mantissa.checked_mul(factor));
    match (raise(a, a_scale), raise(b, b_scale)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        // One of them has more digits than fit: far apart.
        _ => float(a, a_scale).partial_cmp(&float(b, b_scale)),
    }
}

/// The comparisons of a filter, with the columns that they compare among those of the table.
pub(super) fn parse(filter: &str, table: &TableSchema) -> Result<Vec<(usize, Comparison)>, ControlsError> {
    let unreadable = |what: String| ControlsError::Filter { table: table.name.clone(), filter: filter.to_owned(), what };
    let mut tokens = tokens(filter).map_err(unreadable)?.into_iter().peekable();
    let mut comparisons = Vec::new();
    loop {
        let name = match tokens.next() {
            Some(Token::Word(name) | Token::Name(name)) => name,
            other => return Err(unreadable(format!("a column is expected instead of {}", shown(other.as_ref())))),
        };
        let column = table.columns.iter().position(|column| column.name.eq_ignore_ascii_case(&name)).ok_or_else(|| {
            ControlsError::UnknownColumn {
                table: table.name.clone(),
                setting: "filter",
                column: name,
                known: table.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
            }
        })?;
        let test = test(&mut tokens).map_err(unreadable)?;
        check(table, column, &test)?;
        let case_insensitive = table.columns[column].case_insensitive;
        comparisons.push((column, Comparison { column, case_insensitive, test }));
        match tokens.next() {
            None => return Ok(comparisons),
            Some(Token::Word(and)) if and.eq_ignore_ascii_case("and") => {}
            other => return Err(unreadable(format!("`and` is expected instead of {}", shown(other.as_ref())))),
        }
    }
}

/// Whether values of the column can be compared so.
fn check(table: &TableSchema, column: usize, test: &Test) -> Result<(), ControlsError> {
    let sql_type = table.columns[column].sql_type;
    let refuse = |what| {
        Err(ControlsError::NotComparable {
            table: table.name.clone(),
            column: table.columns[column].name.clone(),
            sql_type,
            what,
        })
    };
    let max = Length::Max;
    let large = [
        SqlType::VarChar(max),
        SqlType::NVarChar(max),
        SqlType::VarBinary(max),
        SqlType::Text,
        SqlType::NText,
        SqlType::Image,
        SqlType::Xml,
    ];
    if large.contains(&sql_type) {
        return refuse("change data capture does not record every value of it");
    }
    let literals: Vec<&Literal> = match test {
        Test::Null(_) => return Ok(()),
        Test::In(literals) => literals.iter().collect(),
        Test::NotEqual(literal) | Test::Ordered(_, literal) => vec![literal],
    };
    use SqlType::*;
    let numeric =
        matches!(sql_type, Bit | TinyInt | SmallInt | Int | BigInt | Real | Float | Decimal { .. } | Money | SmallMoney);
    let equality_only = matches!(sql_type, Char(_) | VarChar(_) | NChar(_) | NVarChar(_) | UniqueIdentifier);
    let temporal = matches!(sql_type, Date | Time { .. } | SmallDateTime | DateTime | DateTime2 { .. });
    if !(numeric || equality_only || temporal) {
        return refuse("values of this type cannot be compared; `is null` can be asked of any column");
    }
    if literals.iter().any(|literal| matches!(literal, Literal::Number { .. }) != numeric) {
        return refuse(if numeric { "compare it with a number" } else { "compare it with a text in single quotes" });
    }
    if equality_only && matches!(test, Test::Ordered(..)) {
        return refuse("which of two is the greater depends on the collation: only =, <> and in can be asked");
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// In brackets.
    Name(String),
    Literal(Literal),
    Sign(&'static str),
}

fn shown(token: Option<&Token>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Word(word) | Token::Name(word)) => word.clone(),
        Some(Token::Literal(literal)) => format!("{literal:?}"),
        Some(Token::Sign(sign)) => (*sign).to_owned(),
    }
}

const SIGNS: [&str; 10] = ["<>", "!=", "<=", ">=", "<", ">", "=", "(", ")", ","];

fn tokens(filter: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = filter.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = if first == '\'' {
            let (text, after) = quoted(&rest[1..], '\'').ok_or("a text has no end")?;
            (Token::Literal(Literal::Text(text)), after)
        } else if first == '[' {
            let (name, after) = quoted(&rest[1..], ']').ok_or("a name in brackets has no end")?;
            (Token::Name(name), after)
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            (Token::Sign(sign), &rest[sign.len()..])
        } else {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "_.-+".contains(c))).unwrap_or(rest.len());
            if end == 0 {
                return Err(format!("{first} has no meaning here"));
            }
            let word = &rest[..end];
            let token = if first.is_ascii_digit() || "-+.".contains(first) {
                Token::Literal(number(word).ok_or_else(|| format!("{word} is not a number"))?)
            } else {
                Token::Word(word.to_owned())
            };
            (token, &rest[end..])
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

/// Up to the closing quote, of which two stand for one.
fn quoted(text: &str, close: char) -> Option<(String, &str)> {
    let mut read = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == close {
            if chars.peek().is_none_or(|(_, next)| *next != close) {
                return Some((read, &text[at + c.len_utf8()..]));
            }
            chars.next();
        }
        read.push(c);
    }
    None
}

fn number(word: &str) -> Option<Literal> {
    let (whole, fraction) = word.split_once('.').unwrap_or((word, ""));
    let scale = u8::try_from(fraction.len()).ok()?;
    let mantissa = format!("{whole}{fraction}").parse().ok()?;
    Some(Literal::Number { mantissa, scale })
}

fn test(tokens: &mut impl Iterator<Item = Token>) -> Result<Test, String> {
    let literal = |tokens: &mut dyn Iterator<Item = Token>| match tokens.next() {
        Some(Token::Literal(literal)) => Ok(literal),
        other => Err(format!("a number or a text in single quotes is expected instead of {}", shown(other.as_ref()))),
    };
    let word = |token: Option<&Token>, word: &str| matches!(token, Some(Token::Word(found)) if found.eq_ignore_ascii_case(word));
    let first = tokens.next();
    if word(first.as_ref(), "is") {
        let next = tokens.next();
        let negated = word(next.as_ref(), "not");
        let last = if negated { tokens.next() } else { next };
        return if word(last.as_ref(), "null") {
            Ok(Test::Null(!negated))
        } else {
            Err("`is` is followed by `null` or `not null`".to_owned())
        };
    }
    if word(first.as_ref(), "in") {
        if tokens.next() != Some(Token::Sign("(")) {
            return Err("`in` is followed by a list in parentheses".to_owned());
        }
        let mut literals = vec![literal(tokens)?];
        loop {
            match tokens.next() {
                Some(Token::Sign(",")) => literals.push(literal(tokens)?),
                Some(Token::Sign(")")) => return Ok(Test::In(literals)),
                other => {
                    return Err(format!("a comma or a closing parenthesis is expected instead of {}", shown(other.as_ref())));
                }
            }
        }
    }
    use Ordering::{Equal, Greater, Less};
    let Some(Token::Sign(sign)) = first else {
        return Err(format!("a comparison is expected instead of {}", shown(first.as_ref())));
    };
    let literal = literal(tokens)?;
    Ok(match sign {
        "=" => Test::In(vec![literal]),
        "<>" | "!=" => Test::NotEqual(literal),
        "<" => Test::Ordered(&[Less], literal),
        "<=" => Test::Ordered(&[Less, Equal], literal),
        ">" => Test::Ordered(&[Greater], literal),
        ">=" => Test::Ordered(&[Greater, Equal], literal),
        other => return Err(format!("a comparison is expected instead of {other}")),
    })
}
