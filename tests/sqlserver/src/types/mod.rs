//! T-SQL's data types: their names, the code by which SQL handed to SQLite refers to them, and the rules by which expressions combine them.
//!
//! # How values lie in SQLite
//! A value's representation follows from its *type* alone, never from the value, so that SQLite's own order and equality are SQL Server's:
//!
//! | type | SQLite |
//! |---|---|
//! | bit, tinyint … bigint | INTEGER |
//! | real, float | REAL |
//! | decimal, numeric of precision ≤ 18, money, smallmoney | INTEGER: the mantissa at the type's scale |
//! | decimal, numeric of precision > 18 | BLOB: the mantissa as 16 bytes, big-endian, sign bit flipped |
//! | char … nvarchar, text, xml | TEXT, compared by the collation `CI`, `CS` or BINARY |
//! | binary … image, hierarchyid, geometry, geography | BLOB |
//! | uniqueidentifier | BLOB of 16 bytes, permuted into SQL Server's order of comparison |
//! | date | INTEGER: days since 0001-01-01 |
//! | time | INTEGER: 100 ns ticks since midnight |
//! | datetime, smalldatetime, datetime2 | INTEGER: 100 ns ticks since 0001-01-01 |
//! | datetimeoffset | BLOB: UTC ticks (8 bytes big-endian), offset in minutes (2 bytes) |
//! | sql_variant | BLOB: the type's code (8 bytes), then the value's text or bytes |
//!
//! Decimals of one type therefore compare and sum as integers; an expression that mixes scales converts to the common type first.

pub(crate) mod clr;
pub(crate) mod convert;
pub(crate) mod date;
pub(crate) mod decimal;
pub(crate) mod hierarchy;
pub(crate) mod spatial;
pub(crate) mod storage;

use tds::{DataType, Length};

use crate::message;
use tds::SqlError;

/// The type of an integer-like or other type as one number: what a custom SQLite function is told of its arguments.
pub(crate) fn code(data_type: &DataType) -> i64 {
    let length = |l: &Length| match l {
        Length::Limited(n) => i64::from(*n),
        Length::Max => 0xFFFF,
    };
    let (tag, a, b) = match data_type {
        DataType::Bit => (1, 0, 0),
        DataType::TinyInt => (2, 0, 0),
        DataType::SmallInt => (3, 0, 0),
        DataType::Int => (4, 0, 0),
        DataType::BigInt => (5, 0, 0),
        DataType::Real => (6, 0, 0),
        DataType::Float => (7, 0, 0),
        DataType::Decimal { precision, scale } => (8, i64::from(*precision), i64::from(*scale)),
        DataType::Numeric { precision, scale } => (9, i64::from(*precision), i64::from(*scale)),
        DataType::Money => (10, 0, 0),
        DataType::SmallMoney => (11, 0, 0),
        DataType::Char(n) => (12, i64::from(*n), 0),
        DataType::VarChar(n) => (13, length(n), 0),
        DataType::NChar(n) => (14, i64::from(*n), 0),
        DataType::NVarChar(n) => (15, length(n), 0),
        DataType::Text => (16, 0, 0),
        DataType::NText => (17, 0, 0),
        DataType::Binary(n) => (18, i64::from(*n), 0),
        DataType::VarBinary(n) => (19, length(n), 0),
        DataType::Image => (20, 0, 0),
        DataType::UniqueIdentifier => (21, 0, 0),
        DataType::Date => (22, 0, 0),
        DataType::Time { scale } => (23, i64::from(*scale), 0),
        DataType::DateTime => (24, 0, 0),
        DataType::SmallDateTime => (25, 0, 0),
        DataType::DateTime2 { scale } => (26, i64::from(*scale), 0),
        DataType::DateTimeOffset { scale } => (27, i64::from(*scale), 0),
        DataType::Xml => (28, 0, 0),
        DataType::SqlVariant => (29, 0, 0),
        DataType::Udt("hierarchyid") => (30, 0, 0),
        DataType::Udt("geometry") => (31, 0, 0),
        DataType::Udt(_) => (32, 0, 0),
    };
    tag | a << 8 | b << 24
}

/// The type that [`code`] stands for. The code comes from this process or from its own database file.
pub(crate) fn decode(code: i64) -> DataType {
    let (a, b) = ((code >> 8 & 0xFFFF) as u16, (code >> 24 & 0xFF) as u8);
    let length = if a == 0xFFFF { Length::Max } else { Length::Limited(a) };
    match code & 0xFF {
        1 => DataType::Bit,
        2 => DataType::TinyInt,
        3 => DataType::SmallInt,
        4 => DataType::Int,
        5 => DataType::BigInt,
        6 => DataType::Real,
        7 => DataType::Float,
        8 => DataType::Decimal { precision: a as u8, scale: b },
        9 => DataType::Numeric { precision: a as u8, scale: b },
        10 => DataType::Money,
        11 => DataType::SmallMoney,
        12 => DataType::Char(a),
        13 => DataType::VarChar(length),
        14 => DataType::NChar(a),
        15 => DataType::NVarChar(length),
        16 => DataType::Text,
        17 => DataType::NText,
        18 => DataType::Binary(a),
        19 => DataType::VarBinary(length),
        20 => DataType::Image,
        21 => DataType::UniqueIdentifier,
        22 => DataType::Date,
        23 => DataType::Time { scale: a as u8 },
        24 => DataType::DateTime,
        25 => DataType::SmallDateTime,
        26 => DataType::DateTime2 { scale: a as u8 },
        27 => DataType::DateTimeOffset { scale: a as u8 },
        28 => DataType::Xml,
        29 => DataType::SqlVariant,
        30 => DataType::Udt("hierarchyid"),
        31 => DataType::Udt("geometry"),
        _ => DataType::Udt("geography"),
    }
}

/// The system type's name, as `sys.types` has it.
pub(crate) fn name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Bit => "bit",
        DataType::TinyInt => "tinyint",
        DataType::SmallInt => "smallint",
        DataType::Int => "int",
        DataType::BigInt => "bigint",
        DataType::Real => "real",
        DataType::Float => "float",
        DataType::Decimal { .. } => "decimal",
        DataType::Numeric { .. } => "numeric",
        DataType::Money => "money",
        DataType::SmallMoney => "smallmoney",
        DataType::Char(_) => "char",
        DataType::VarChar(_) => "varchar",
        DataType::NChar(_) => "nchar",
        DataType::NVarChar(_) => "nvarchar",
        DataType::Text => "text",
        DataType::NText => "ntext",
        DataType::Binary(_) => "binary",
        DataType::VarBinary(_) => "varbinary",
        DataType::Image => "image",
        DataType::UniqueIdentifier => "uniqueidentifier",
        DataType::Date => "date",
        DataType::Time { .. } => "time",
        DataType::DateTime => "datetime",
        DataType::SmallDateTime => "smalldatetime",
        DataType::DateTime2 { .. } => "datetime2",
        DataType::DateTimeOffset { .. } => "datetimeoffset",
        DataType::Xml => "xml",
        DataType::SqlVariant => "sql_variant",
        DataType::Udt(name) => name,
    }
}

/// The type as one would declare it: `decimal(10,2)`, `nvarchar(max)`.
pub(crate) fn declared(data_type: &DataType) -> String {
    let base = name(data_type);
    match data_type {
        DataType::Decimal { precision, scale } | DataType::Numeric { precision, scale } => format!("{base}({precision},{scale})"),
        DataType::Char(n) | DataType::NChar(n) | DataType::Binary(n) => format!("{base}({n})"),
        DataType::VarChar(l) | DataType::NVarChar(l) | DataType::VarBinary(l) => match l {
            Length::Limited(n) => format!("{base}({n})"),
            Length::Max => format!("{base}(max)"),
        },
        DataType::Time { scale } | DataType::DateTime2 { scale } | DataType::DateTimeOffset { scale } => {
            format!("{base}({scale})")
        }
        _ => base.to_string(),
    }
}

/// A declared type: the type that values have, and the name under which the catalog lists it (`sysname`, `timestamp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) data_type: DataType,
    pub(crate) name: String,
}

impl Declared {
    pub(crate) fn is_rowversion(&self) -> bool {
        self.name == "timestamp"
    }

    /// A name that may be an alias type's: its base is in the catalog.
    pub(crate) fn alias(name: &str) -> Declared {
        Declared { data_type: DataType::Udt(""), name: name.to_string() }
    }

    pub(crate) fn is_alias(&self) -> bool {
        self.data_type == DataType::Udt("")
    }
}

pub(crate) const UNKNOWN: i32 = 2715;

pub(crate) fn unknown(name: &str) -> SqlError {
    message::error(UNKNOWN, 16, format!("Column, parameter, or variable #1: Cannot find data type {name}."))
}

/// The dimensions of a declared `vector(n)`.
pub(crate) fn dimensions(type_name: &str) -> Option<i32> {
    type_name.strip_prefix("vector(")?.strip_suffix(')')?.parse().ok()
}

/// Reads a declared type. `default_length` is the length of `varchar` without one: 1 in a declaration, 30 in CAST.
pub(crate) fn parse(text: &str, default_length: u16) -> Result<Declared, SqlError> {
    let lower = text.trim().to_ascii_lowercase().replace(['[', ']', '"'], "");
    let lower = lower.strip_prefix("sys.").unwrap_or(&lower);
    let (base, arguments) = match lower.split_once('(') {
        Some((base, rest)) => {
            (base.trim(), rest.trim_end().trim_end_matches(')').split(',').map(|a| a.trim().to_string()).collect::<Vec<_>>())
        }
        None => (lower.trim(), Vec::new()),
    };
    let number = |i: usize, default: u16| -> Result<u16, SqlError> {
        arguments.get(i).map_or(Ok(default), |a| a.parse().map_err(|_| message::syntax(a, 0)))
    };
    let length = |limit: u16| -> Result<Length, SqlError> {
        if arguments.first().is_some_and(|a| a == "max") {
            return Ok(Length::Max);
        }
        let n = number(0, default_length)?;
        if n == 0 || n > limit {
            return Err(message::length_invalid(base, i64::from(n), limit));
        }
        Ok(Length::Limited(n))
    };
    let fixed = |limit: u16| match length(limit)? {
        Length::Limited(n) => Ok(n),
        Length::Max => Err(message::syntax("max", 0)),
    };
    let exact = || -> Result<(u8, u8), SqlError> {
        let (p, s) = (number(0, 18)?, number(1, 0)?);
        if p == 0 || p > 38 || s > p {
            return Err(message::error(
                2750,
                16,
                format!(
                    "Column, parameter, or variable: Specified column precision {p} is greater than the maximum precision of 38."
                ),
            ));
        }
        Ok((p as u8, s as u8))
    };
    let fraction = || -> Result<u8, SqlError> {
        let s = number(0, 7)?;
        if s > 7 { Err(message::error(1002, 16, format!("Specified scale {s} is invalid."))) } else { Ok(s as u8) }
    };
    let data_type = match base {
        "bit" | "boolean" => DataType::Bit,
        "tinyint" => DataType::TinyInt,
        "smallint" => DataType::SmallInt,
        "int" | "integer" => DataType::Int,
        "bigint" => DataType::BigInt,
        "real" => DataType::Real,
        "float" | "double precision" => {
            if number(0, 53)? <= 24 {
                DataType::Real
            } else {
                DataType::Float
            }
        }
        "decimal" | "dec" => {
            let (precision, scale) = exact()?;
            DataType::Decimal { precision, scale }
        }
        "numeric" => {
            let (precision, scale) = exact()?;
            DataType::Numeric { precision, scale }
        }
        "money" => DataType::Money,
        "smallmoney" => DataType::SmallMoney,
        "char" | "character" => DataType::Char(fixed(8000)?),
        "varchar" | "char varying" | "character varying" => DataType::VarChar(length(8000)?),
        "nchar" | "national char" | "national character" => DataType::NChar(fixed(4000)?),
        "nvarchar" | "national char varying" | "national character varying" => DataType::NVarChar(length(4000)?),
        "sysname" => DataType::NVarChar(Length::Limited(128)),
        "text" => DataType::Text,
        "ntext" => DataType::NText,
        "binary" => DataType::Binary(fixed(8000)?),
        "varbinary" => DataType::VarBinary(length(8000)?),
        "image" => DataType::Image,
        "uniqueidentifier" => DataType::UniqueIdentifier,
        "date" => DataType::Date,
        "time" => DataType::Time { scale: fraction()? },
        "datetime" => DataType::DateTime,
        "smalldatetime" => DataType::SmallDateTime,
        "datetime2" => DataType::DateTime2 { scale: fraction()? },
        "datetimeoffset" => DataType::DateTimeOffset { scale: fraction()? },
        "xml" => DataType::Xml,
        // Clients that do not ask for the types of their own get them as text, so they are kept as that.
        "json" => DataType::NVarChar(Length::Max),
        "vector" => DataType::VarChar(Length::Max),
        "sql_variant" => DataType::SqlVariant,
        "rowversion" | "timestamp" => DataType::Binary(8),
        "hierarchyid" => DataType::Udt("hierarchyid"),
        "geometry" => DataType::Udt("geometry"),
        "geography" => DataType::Udt("geography"),
        _ => return Err(unknown(text.trim())),
    };
    let name = match base {
        "sysname" => "sysname".to_string(),
        "rowversion" | "timestamp" => "timestamp".to_string(),
        "json" => "json".to_string(),
        "vector" => match number(0, 1998)? {
            n @ 1..=1998 => format!("vector({n})"),
            n => return Err(message::length_invalid("vector", i64::from(n), 1998)),
        },
        _ => name(&data_type).to_string(),
    };
    Ok(Declared { data_type, name })
}

pub(crate) fn is_string(t: &DataType) -> bool {
    matches!(
        t,
        DataType::Char(_)
            | DataType::VarChar(_)
            | DataType::NChar(_)
            | DataType::NVarChar(_)
            | DataType::Text
            | DataType::NText
            | DataType::Xml
    )
}

pub(crate) fn is_unicode(t: &DataType) -> bool {
    matches!(t, DataType::NChar(_) | DataType::NVarChar(_) | DataType::NText | DataType::Xml)
}

pub(crate) fn is_binary(t: &DataType) -> bool {
    matches!(t, DataType::Binary(_) | DataType::VarBinary(_) | DataType::Image)
}

pub(crate) fn is_integer(t: &DataType) -> bool {
    matches!(t, DataType::Bit | DataType::TinyInt | DataType::SmallInt | DataType::Int | DataType::BigInt)
}

pub(crate) fn is_float(t: &DataType) -> bool {
    matches!(t, DataType::Real | DataType::Float)
}

pub(crate) fn is_temporal(t: &DataType) -> bool {
    matches!(
        t,
        DataType::Date
            | DataType::Time { .. }
            | DataType::DateTime
            | DataType::SmallDateTime
            | DataType::DateTime2 { .. }
            | DataType::DateTimeOffset { .. }
    )
}

/// Precision and scale as arithmetic sees them, for exact numerics.
pub(crate) fn exact(t: &DataType) -> Option<(u8, u8)> {
    Some(match t {
        DataType::Decimal { precision, scale } | DataType::Numeric { precision, scale } => (*precision, *scale),
        DataType::Money => (19, 4),
        DataType::SmallMoney => (10, 4),
        DataType::Bit => (1, 0),
        DataType::TinyInt => (3, 0),
        DataType::SmallInt => (5, 0),
        DataType::Int => (10, 0),
        DataType::BigInt => (19, 0),
        _ => return None,
    })
}

/// Length in characters (strings) or bytes (binary); `None`: max.
pub(crate) fn length(t: &DataType) -> Option<u32> {
    match t {
        DataType::Char(n) | DataType::NChar(n) | DataType::Binary(n) => Some(u32::from(*n)),
        DataType::VarChar(Length::Limited(n))
        | DataType::NVarChar(Length::Limited(n))
        | DataType::VarBinary(Length::Limited(n)) => Some(u32::from(*n)),
        DataType::VarChar(Length::Max) | DataType::NVarChar(Length::Max) | DataType::VarBinary(Length::Max) => None,
        DataType::Text | DataType::NText | DataType::Image | DataType::Xml | DataType::Udt(_) => None,
        // The longest text of a value of that type, as string operations need it.
        DataType::Bit => Some(1),
        DataType::TinyInt => Some(4),
        DataType::SmallInt => Some(6),
        DataType::Int => Some(12),
        DataType::BigInt => Some(24),
        DataType::UniqueIdentifier => Some(36),
        _ => Some(41),
    }
}

/// A string type of the given length: `nvarchar` past 4000 and `varchar` past 8000 characters become `max`.
pub(crate) fn string_of(unicode: bool, length: Option<u32>) -> DataType {
    match (unicode, length) {
        (true, Some(n)) if n <= 4000 => DataType::NVarChar(Length::Limited((n as u16).max(1))),
        (true, _) => DataType::NVarChar(Length::Max),
        (false, Some(n)) if n <= 8000 => DataType::VarChar(Length::Limited((n as u16).max(1))),
        (false, _) => DataType::VarChar(Length::Max),
    }
}

/// SQL Server's data type precedence: of two operands, the one of higher rank gives its type.
fn rank(t: &DataType) -> u8 {
    match t {
        DataType::Udt(_) => 40,
        DataType::SqlVariant => 39,
        DataType::Xml => 38,
        DataType::DateTimeOffset { .. } => 37,
        DataType::DateTime2 { .. } => 36,
        DataType::DateTime => 35,
        DataType::SmallDateTime => 34,
        DataType::Date => 33,
        DataType::Time { .. } => 32,
        DataType::Float => 31,
        DataType::Real => 30,
        DataType::Decimal { .. } | DataType::Numeric { .. } => 29,
        DataType::Money => 28,
        DataType::SmallMoney => 27,
        DataType::BigInt => 26,
        DataType::Int => 25,
        DataType::SmallInt => 24,
        DataType::TinyInt => 23,
        DataType::Bit => 22,
        DataType::NText => 21,
        DataType::Text => 20,
        DataType::Image => 19,
        DataType::UniqueIdentifier => 17,
        DataType::NVarChar(_) => 16,
        DataType::NChar(_) => 15,
        DataType::VarChar(_) => 14,
        DataType::Char(_) => 13,
        DataType::VarBinary(_) => 12,
        DataType::Binary(_) => 11,
    }
}

/// The common type of two operands that are compared, united or alternatives of a CASE.
pub(crate) fn common(a: &DataType, b: &DataType) -> DataType {
    if a == b {
        return a.clone();
    }
    if is_string(a) && is_string(b) && !matches!(a, DataType::Xml) && !matches!(b, DataType::Xml) {
        let longest = match (length(a), length(b)) {
            (Some(x), Some(y)) => Some(x.max(y)),
            _ => None,
        };
        return string_of(is_unicode(a) || is_unicode(b), longest);
    }
    if is_binary(a) && is_binary(b) {
        return match (length(a), length(b)) {
            (Some(x), Some(y)) => DataType::VarBinary(Length::Limited(x.max(y) as u16)),
            _ => DataType::VarBinary(Length::Max),
        };
    }
    let (high, low) = if rank(a) >= rank(b) { (a, b) } else { (b, a) };
    if let (DataType::Decimal { precision, scale } | DataType::Numeric { precision, scale }, Some((p, s))) = (high, exact(low)) {
        let scale_out = (*scale).max(s);
        let whole = (precision - scale).max(p - s);
        let precision_out = (whole + scale_out).min(38);
        return DataType::Decimal { precision: precision_out, scale: scale_out.min(38 - whole.min(38)) };
    }
    match (high, low) {
        (DataType::DateTime2 { scale: x }, DataType::DateTime2 { scale: y }) => DataType::DateTime2 { scale: *x.max(y) },
        (DataType::Time { scale: x }, DataType::Time { scale: y }) => DataType::Time { scale: *x.max(y) },
        (DataType::DateTimeOffset { scale: x }, DataType::DateTimeOffset { scale: y }) => {
            DataType::DateTimeOffset { scale: *x.max(y) }
        }
        _ => high.clone(),
    }
}

/// The result type of an arithmetic operator.
pub(crate) fn arithmetic(op: char, a: &DataType, b: &DataType) -> DataType {
    if is_float(a) || is_float(b) {
        return if matches!((a, b), (DataType::Real, DataType::Real)) { DataType::Real } else { DataType::Float };
    }
    let is_decimal = |t: &DataType| matches!(t, DataType::Decimal { .. } | DataType::Numeric { .. });
    if !is_decimal(a) && !is_decimal(b) {
        let t = common(a, b);
        return if matches!(t, DataType::Bit) { DataType::Int } else { t };
    }
    let (Some((p1, s1)), Some((p2, s2))) = (exact(a), exact(b)) else { return common(a, b) };
    let (p1, s1, p2, s2) = (i32::from(p1), i32::from(s1), i32::from(p2), i32::from(s2));
    let (mut p, mut s) = match op {
        '*' => (p1 + p2 + 1, s1 + s2),
        '/' => {
            let s = 6.max(s1 + p2 + 1);
            (p1 - s1 + s2 + s, s)
        }
        '%' => ((p1 - s1).min(p2 - s2) + s1.max(s2), s1.max(s2)),
        _ => (s1.max(s2) + (p1 - s1).max(p2 - s2) + 1, s1.max(s2)),
    };
    if p > 38 {
        let whole = p - s;
        s = if matches!(op, '*' | '/') { (38 - whole).max(s.min(6)) } else { (38 - whole).max(0).min(s) };
        p = 38;
    }
    DataType::Decimal { precision: p as u8, scale: s as u8 }
}

/// `@a int, @b decimal(10,2)` at its outer commas: those inside a type's parentheses do not separate declarations.
pub(crate) fn split_declarations(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|p| !p.trim().is_empty());
    parts
}
