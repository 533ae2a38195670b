//! Parameter declarations as `sp_executesql` and its relatives take them: `@a int, @b decimal(10, 2) output, @c nvarchar(max) = N'x'`.

use crate::data::{DataType, Length};
use crate::session::SqlError;

/// A declared parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    /// With its `@`.
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) output: bool,
    /// It was given a default, so that a call may leave it out. The default itself must be NULL or absent here.
    pub(crate) optional: bool,
}

fn error(number: i32, message: String) -> SqlError {
    SqlError { number, state: 1, class: if number == 102 { 15 } else { 16 }, message, procedure: String::new(), line: 1 }
}

pub(crate) fn parse(text: &str) -> Result<Vec<Declared>, SqlError> {
    let mut tokens = Tokens { rest: text };
    let mut declared: Vec<Declared> = Vec::new();
    let mut token = tokens.next();
    while let Some(name) = token {
        if name == "," && declared.is_empty() || !name.starts_with('@') || name.len() < 2 {
            return Err(syntax(name));
        }
        let mut word = tokens.expect()?;
        if word.eq_ignore_ascii_case("as") {
            word = tokens.expect()?;
        }
        let (data_type, after) = data_type(word, &mut tokens)?;
        let mut one = Declared { name: name.to_owned(), data_type, output: false, optional: false };
        token = options(&mut one, after, &mut tokens)?;
        declared.push(one);
        token = match token {
            None => None,
            Some(",") => Some(tokens.expect()?),
            Some(other) => return Err(syntax(other)),
        };
    }
    Ok(declared)
}

fn syntax(near: &str) -> SqlError {
    error(102, format!("Incorrect syntax near '{near}'."))
}

/// `= default`, `OUTPUT`, `OUT` after a type; hands back what stands behind them.
fn options<'a>(one: &mut Declared, mut token: Option<&'a str>, tokens: &mut Tokens<'a>) -> Result<Option<&'a str>, SqlError> {
    if token == Some("=") {
        match tokens.expect()? {
            null if null.eq_ignore_ascii_case("null") => one.optional = true,
            // Nobody sends these: a default in a declaration string has no way to be used but by leaving the parameter away.
            other => return Err(error(137, format!("A default other than NULL is not supported here: '{other}'."))),
        }
        token = tokens.next();
    }
    while let Some(word) = token {
        if word.eq_ignore_ascii_case("output") || word.eq_ignore_ascii_case("out") {
            one.output = true;
        } else if word.eq_ignore_ascii_case("readonly") {
            return Err(error(2715, format!("Parameter '{}': table-valued parameters are not supported.", one.name)));
        } else {
            break;
        }
        token = tokens.next();
    }
    Ok(token)
}

/// The type that starts with the word, and the token behind it.
fn data_type<'a>(word: &'a str, tokens: &mut Tokens<'a>) -> Result<(DataType, Option<&'a str>), SqlError> {
    let mut word = word;
    let mut next = tokens.next();
    // sys.int, [dbo].[int]
    while next == Some(".") {
        word = tokens.expect()?;
        next = tokens.next();
    }
    let mut name = word.trim_matches(['[', ']', '"']).to_ascii_lowercase();
    // The names of several words that the standard has.
    while let Some(more) = next.filter(|next| is_continuation(&name, next)) {
        name = format!("{name} {}", more.to_ascii_lowercase());
        next = tokens.next();
    }
    let mut arguments = Vec::new();
    if next == Some("(") {
        loop {
            arguments.push(tokens.expect()?);
            match tokens.expect()? {
                "," => {}
                ")" => break,
                other => return Err(syntax(other)),
            }
        }
        next = tokens.next();
    }
    Ok((named(&name, &arguments)?, next))
}

fn is_continuation(name: &str, next: &str) -> bool {
    const LONGER: [(&str, &str); 9] = [
        ("double", "precision"),
        ("character", "varying"),
        ("char", "varying"),
        ("binary", "varying"),
        ("national", "character"),
        ("national", "char"),
        ("national", "text"),
        ("national character", "varying"),
        ("national char", "varying"),
    ];
    LONGER.iter().any(|(start, more)| *start == name && more.eq_ignore_ascii_case(next))
}

fn named(name: &str, arguments: &[&str]) -> Result<DataType, SqlError> {
    use DataType as T;
    let unknown = || error(2715, format!("Column, parameter, or variable: Cannot find data type {name}."));
    let too_many = || error(2716, format!("Cannot specify a column width on data type {name}."));
    let simple = |data_type: T| if arguments.is_empty() { Ok(data_type) } else { Err(too_many()) };
    let scale = || match arguments {
        [] => Ok(7),
        [scale] => scale.parse().ok().filter(|scale| *scale <= 7).ok_or_else(|| syntax(scale)),
        _ => Err(too_many()),
    };
    let size = |most: u16| match arguments {
        [] => Ok(1),
        [size] => size.parse().ok().filter(|size| (1..=most).contains(size)).ok_or_else(|| syntax(size)),
        _ => Err(too_many()),
    };
    let length = |most: u16| match arguments {
        [max] if max.eq_ignore_ascii_case("max") => Ok(Length::Max),
        _ => size(most).map(Length::Limited),
    };
    match name {
        "bit" => simple(T::Bit),
        "tinyint" => simple(T::TinyInt),
        "smallint" => simple(T::SmallInt),
        "int" | "integer" => simple(T::Int),
        "bigint" => simple(T::BigInt),
        "real" => simple(T::Real),
        "double precision" => simple(T::Float),
        "float" => match arguments {
            [] => Ok(T::Float),
            [bits] => match bits.parse::<u8>() {
                Ok(1..=24) => Ok(T::Real),
                Ok(25..=53) => Ok(T::Float),
                _ => Err(syntax(bits)),
            },
            _ => Err(too_many()),
        },
        "decimal" | "dec" => precision(arguments).map(|(precision, scale)| T::Decimal { precision, scale }),
        "numeric" => precision(arguments).map(|(precision, scale)| T::Numeric { precision, scale }),
        "money" => simple(T::Money),
        "smallmoney" => simple(T::SmallMoney),
        "char" | "character" => size(8000).map(T::Char),
        "varchar" | "character varying" | "char varying" => length(8000).map(T::VarChar),
        "nchar" | "national char" | "national character" => size(4000).map(T::NChar),
        "nvarchar" | "national char varying" | "national character varying" => length(4000).map(T::NVarChar),
        "sysname" => simple(T::NVarChar(Length::Limited(128))),
        "text" => simple(T::Text),
        "ntext" | "national text" => simple(T::NText),
        "binary" => size(8000).map(T::Binary),
        "varbinary" | "binary varying" => length(8000).map(T::VarBinary),
        "image" => simple(T::Image),
        "rowversion" | "timestamp" => simple(T::Binary(8)),
        "uniqueidentifier" => simple(T::UniqueIdentifier),
        "date" => simple(T::Date),
        "time" => scale().map(|scale| T::Time { scale }),
        "datetime" => simple(T::DateTime),
        "smalldatetime" => simple(T::SmallDateTime),
        "datetime2" => scale().map(|scale| T::DateTime2 { scale }),
        "datetimeoffset" => scale().map(|scale| T::DateTimeOffset { scale }),
        "xml" => Ok(T::Xml),
        "sql_variant" => simple(T::SqlVariant),
        "hierarchyid" => simple(T::Udt("hierarchyid")),
        "geometry" => simple(T::Udt("geometry")),
        "geography" => simple(T::Udt("geography")),
        _ => Err(unknown()),
    }
}

fn precision(arguments: &[&str]) -> Result<(u8, u8), SqlError> {
    let parsed: Option<Vec<u8>> = arguments.iter().map(|argument| argument.parse().ok()).collect();
    match parsed.as_deref() {
        Some([]) => Ok((18, 0)),
        Some([precision @ 1..=38]) => Ok((*precision, 0)),
        Some([precision @ 1..=38, scale]) if scale <= precision => Ok((*precision, *scale)),
        _ => Err(syntax(arguments.first().copied().unwrap_or("decimal"))),
    }
}

/// Names, numbers, strings and single signs.
struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn expect(&mut self) -> Result<&'a str, SqlError> {
        self.next().ok_or_else(|| syntax("end of the parameter declarations"))
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let first = text.chars().next()?;
        let word = |c: char| c.is_alphanumeric() || "_@#$".contains(c);
        let end = match first {
            '[' => text.find(']').map_or(text.len(), |at| at + 1),
            '\'' | '"' => text[1..].find(first).map_or(text.len(), |at| at + 2),
            _ if word(first) => text.find(|c| !word(c)).unwrap_or(text.len()),
            _ => first.len_utf8(),
        };
        let (token, rest) = text.split_at(end);
        self.rest = rest;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn types(text: &str) -> Vec<DataType> {
        parse(text).unwrap().into_iter().map(|declared| declared.data_type).collect()
    }

    #[test]
    fn what_clients_send_is_understood() {
        use DataType as T;
        assert_eq!(types(""), []);
        assert_eq!(
            types("@P0 int,@P1 nvarchar(4000), @P2 decimal(38,4) OUTPUT,@P3 VARBINARY(MAX) out"),
            [T::Int, T::NVarChar(Length::Limited(4000)), T::Decimal { precision: 38, scale: 4 }, T::VarBinary(Length::Max)]
        );
        assert_eq!(types("@a as sys.[float](24), @b double precision = null"), [T::Real, T::Float]);
        assert_eq!(types("@a national character varying(3)"), [T::NVarChar(Length::Limited(3))]);
        assert_eq!(types("@a datetime2, @b time(3)"), [T::DateTime2 { scale: 7 }, T::Time { scale: 3 }]);
        let outputs: Vec<bool> = parse("@a int out, @b int, @c int output").unwrap().iter().map(|one| one.output).collect();
        assert_eq!(outputs, [true, false, true]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, number) in [
            ("@a", 102),
            ("@a int,", 102),
            ("a int", 102),
            (", @a int", 102),
            ("@a int @b int", 102),
            ("@a nosuchtype", 2715),
            ("@a int(4)", 2716),
            ("@a decimal(39)", 102),
            ("@a decimal(4,5)", 102),
            ("@a nvarchar(4001)", 102),
            ("@a dbo.tvp readonly", 2715),
        ] {
            assert_eq!(parse(text).unwrap_err().number, number, "{text}");
        }
    }
}
