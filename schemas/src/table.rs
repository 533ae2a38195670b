//! Source tables: names, column types, keys.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A source table's name within its database. Written `schema.table`; a part that holds a dot, a bracket or a space is bracketed as in T-SQL
/// (`[my schema].[a]]b]`). Where entities are made of several sources, the name begins with the table's own: `source.schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// None where there is but one, and in whatever is said within a source: events, progress records, contracts.
    pub source: Option<SourceName>,
    pub schema: String,
    pub table: String,
}

/// The name of one of several sources. A pointer wide: it stands in every table's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceName(Arc<Box<str>>);

impl From<&str> for SourceName {
    fn from(name: &str) -> Self {
        Self(Arc::new(name.into()))
    }
}

impl std::ops::Deref for SourceName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a table name: expected schema.table, such as dbo.orders or [my schema].[my table]; with several sources source.schema.table"
)]
pub struct ParseTableNameError {
    pub text: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { source: None, schema: schema.into(), table: table.into() }
    }

    /// The same of one of several sources.
    pub fn of(self, source: &SourceName) -> Self {
        Self { source: Some(source.clone()), ..self }
    }

    /// As it is called within its source.
    pub fn within(self) -> Self {
        Self { source: None, ..self }
    }

    /// Stands where there is no table.
    pub const fn none() -> Self {
        Self { source: None, schema: String::new(), table: String::new() }
    }

    pub const fn is_none(&self) -> bool {
        self.table.is_empty()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn part(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
            let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '#' | '@' | '-'));
            if plain { f.write_str(text) } else { write!(f, "[{}]", text.replace(']', "]]")) }
        }
        if let Some(source) = &self.source {
            part(f, source)?;
            f.write_str(".")?;
        }
        part(f, &self.schema)?;
        f.write_str(".")?;
        part(f, &self.table)
    }
}

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseTableNameError { text: text.to_owned() };
        fn part(rest: &str) -> Option<(String, &str)> {
            if let Some(mut rest) = rest.strip_prefix('[') {
                let mut name = String::new();
                loop {
                    let end = rest.find(']')?;
                    name.push_str(&rest[..end]);
                    rest = &rest[end + 1..];
                    match rest.strip_prefix(']') {
                        Some(after) => {
                            name.push(']');
                            rest = after;
                        }
                        None => return Some((name, rest)),
                    }
                }
            }
            let end = rest.find('.').unwrap_or(rest.len());
            Some((rest[..end].to_owned(), &rest[end..]))
        }
        let (first, rest) = part(text).ok_or_else(error)?;
        let (second, rest) = rest.strip_prefix('.').and_then(part).ok_or_else(error)?;
        let (source, schema, table, rest) = match rest.strip_prefix('.') {
            Some(rest) => {
                let (third, rest) = part(rest).ok_or_else(error)?;
                (Some(first), second, third, rest)
            }
            None => (None, first, second, rest),
        };
        if source.as_ref().is_some_and(String::is_empty) || schema.is_empty() || table.is_empty() || !rest.is_empty() {
            return Err(error());
        }
        Ok(Self { source: source.as_deref().map(SourceName::from), schema, table })
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The largest length of a variable-length type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Length {
    /// Characters for Unicode types, bytes for the others.
    Limited(u16),
    Max,
}

/// A SQL Server data type, as the catalog declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SqlType {
    Bit,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    Real,
    Float,
    /// decimal and numeric.
    Decimal {
        precision: u8,
        scale: u8,
    },
    Money,
    SmallMoney,
    Char(u16),
    VarChar(Length),
    NChar(u16),
    NVarChar(Length),
    Text,
    NText,
    Binary(u16),
    VarBinary(Length),
    Image,
    UniqueIdentifier,
    Date,
    Time {
        scale: u8,
    },
    DateTime,
    SmallDateTime,
    DateTime2 {
        scale: u8,
    },
    DateTimeOffset {
        scale: u8,
    },
    /// rowversion, also called timestamp.
    RowVersion,
    Xml,
    SqlVariant,
    HierarchyId,
    Geometry,
    Geography,
    /// Since SQL Server 2025.
    Json,
    /// Of so many numbers. Since SQL Server 2025.
    Vector(u16),
}

impl fmt::Display for SqlType {
    /// As declared in T-SQL: `decimal(10,2)`, `nvarchar(max)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sized = |f: &mut fmt::Formatter<'_>, name: &str, length: Length| match length {
            Length::Limited(n) => write!(f, "{name}({n})"),
            Length::Max => write!(f, "{name}(max)"),
        };
        match *self {
            Self::Bit => f.write_str("bit"),
            Self::TinyInt => f.write_str("tinyint"),
            Self::SmallInt => f.write_str("smallint"),
            Self::Int => f.write_str("int"),
            Self::BigInt => f.write_str("bigint"),
            Self::Real => f.write_str("real"),
            Self::Float => f.write_str("float"),
            Self::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            Self::Money => f.write_str("money"),
            Self::SmallMoney => f.write_str("smallmoney"),
            Self::Char(n) => write!(f, "char({n})"),
            Self::VarChar(length) => sized(f, "varchar", length),
            Self::NChar(n) => write!(f, "nchar({n})"),
            Self::NVarChar(length) => sized(f, "nvarchar", length),
            Self::Text => f.write_str("text"),
            Self::NText => f.write_str("ntext"),
            Self::Binary(n) => write!(f, "binary({n})"),
            Self::VarBinary(length) => sized(f, "varbinary", length),
            Self::Image => f.write_str("image"),
            Self::UniqueIdentifier => f.write_str("uniqueidentifier"),
            Self::Date => f.write_str("date"),
            Self::Time { scale } => write!(f, "time({scale})"),
            Self::DateTime => f.write_str("datetime"),
            Self::SmallDateTime => f.write_str("smalldatetime"),
            Self::DateTime2 { scale } => write!(f, "datetime2({scale})"),
            Self::DateTimeOffset { scale } => write!(f, "datetimeoffset({scale})"),
            Self::RowVersion => f.write_str("rowversion"),
            Self::Xml => f.write_str("xml"),
            Self::SqlVariant => f.write_str("sql_variant"),
            Self::HierarchyId => f.write_str("hierarchyid"),
            Self::Geometry => f.write_str("geometry"),
            Self::Geography => f.write_str("geography"),
            Self::Json => f.write_str("json"),
            Self::Vector(n) => write!(f, "vector({n})"),
        }
    }
}

/// How a type's values are written, whatever its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    Integer,
    /// Exact numbers with so many digits after the point.
    Decimal {
        scale: u8,
    },
    Text,
    Bytes,
    /// As only this type's are.
    Of(SqlType),
}

impl SqlType {
    /// Types of one form write a value that both can hold alike: nothing that was written has to be written again when a column changes from one to the other.
    pub const fn form(self) -> Form {
        match self {
            Self::TinyInt | Self::SmallInt | Self::Int | Self::BigInt => Form::Integer,
            Self::Decimal { scale, .. } => Form::Decimal { scale },
            Self::Money | Self::SmallMoney => Form::Decimal { scale: 4 },
            Self::Char(_) | Self::VarChar(_) | Self::NChar(_) | Self::NVarChar(_) | Self::Text | Self::NText => Form::Text,
            Self::Binary(_) | Self::VarBinary(_) | Self::Image | Self::RowVersion => Form::Bytes,
            other => Form::Of(other),
        }
    }

    /// Whether CDC leaves a value of this type out of an update that does not change it ([`crate::value::Value::Unavailable`]).
    pub const fn may_be_unavailable(self) -> bool {
        matches!(
            self,
            Self::VarChar(Length::Max)
                | Self::NVarChar(Length::Max)
                | Self::VarBinary(Length::Max)
                | Self::Text
                | Self::NText
                | Self::Image
                | Self::Xml
                | Self::Json
                | Self::SqlVariant
                | Self::HierarchyId
                | Self::Geometry
                | Self::Geography
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a SQL Server type that Tributary knows: write it as the catalog does, such as int, decimal(10,2), nvarchar(max)"
)]
pub struct ParseSqlTypeError {
    pub text: String,
}

impl FromStr for SqlType {
    type Err = ParseSqlTypeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseSqlTypeError { text: text.to_owned() };
        let lower = text.trim().to_ascii_lowercase();
        let (name, arguments) = match lower.split_once('(') {
            Some((name, rest)) => (name.trim(), Some(rest.strip_suffix(')').ok_or_else(error)?)),
            None => (lower.as_str(), None),
        };
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| error());
        let byte = |text: &str| text.trim().parse::<u8>().map_err(|_| error());
        let fixed = |default: u16| arguments.map_or(Ok(default), number);
        let length = || match arguments {
            None => Ok(Length::Limited(1)),
            Some(text) if text.trim() == "max" => Ok(Length::Max),
            Some(text) => number(text).map(Length::Limited),
        };
        let scale = || arguments.map_or(Ok(7), byte);
        Ok(match name {
            "bit" => Self::Bit,
            "tinyint" => Self::TinyInt,
            "smallint" => Self::SmallInt,
            "int" => Self::Int,
            "bigint" => Self::BigInt,
            "real" => Self::Real,
            "float" => Self::Float,
            "decimal" | "numeric" => match arguments.map(|text| text.split_once(',').unwrap_or((text, "0"))) {
                None => Self::Decimal { precision: 18, scale: 0 },
                Some((precision, scale)) => Self::Decimal { precision: byte(precision)?, scale: byte(scale)? },
            },
            "money" => Self::Money,
            "smallmoney" => Self::SmallMoney,
            "char" => Self::Char(fixed(1)?),
            "varchar" => Self::VarChar(length()?),
            "nchar" => Self::NChar(fixed(1)?),
            "nvarchar" | "sysname" => Self::NVarChar(if name == "sysname" { Length::Limited(128) } else { length()? }),
            "text" => Self::Text,
            "ntext" => Self::NText,
            "binary" => Self::Binary(fixed(1)?),
            "varbinary" => Self::VarBinary(length()?),
            "image" => Self::Image,
            "uniqueidentifier" => Self::UniqueIdentifier,
            "date" => Self::Date,
            "time" => Self::Time { scale: scale()? },
            "datetime" => Self::DateTime,
            "smalldatetime" => Self::SmallDateTime,
            "datetime2" => Self::DateTime2 { scale: scale()? },
            "datetimeoffset" => Self::DateTimeOffset { scale: scale()? },
            "rowversion" | "timestamp" => Self::RowVersion,
            "xml" => Self::Xml,
            "sql_variant" => Self::SqlVariant,
            "hierarchyid" => Self::HierarchyId,
            "geometry" => Self::Geometry,
            "geography" => Self::Geography,
            "json" => Self::Json,
            "vector" => Self::Vector(arguments.map(number).ok_or_else(error)??),
            _ => return Err(error()),
        })
    }
}

impl Serialize for SqlType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SqlType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A column of a source table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub sql_type: SqlType,
    pub nullable: bool,
    /// Text that differs in case alone, or in trailing spaces, is equal in this column (most collations of SQL Server: `…_CI_…`). Matters where the
    /// column is a key or refers to one.
    pub case_insensitive: bool,
}

/// A source table as the importer publishes it: captured columns in their order, and the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSchema {
    pub name: TableName,
    pub columns: Vec<Column>,
    /// Indexes into `columns` of the primary key (or of the unique index that stands for it), in key order. Empty: no key.
    pub key: Vec<usize>,
}

impl TableSchema {
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().map(|&index| self.columns[index].name.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn table_names_round_trip(source in proptest::option::of(".{1,12}"), schema in ".{1,12}", table in ".{1,12}") {
            let within = TableName::new(schema, table);
            let name = source.map_or_else(|| within.clone(), |source| within.clone().of(&source.as_str().into()));
            prop_assert_eq!(name.to_string().parse::<TableName>().unwrap(), name.clone());
            prop_assert_eq!(name.within(), within);
        }

        #[test]
        fn any_text_is_a_type_or_is_refused(text in ".{0,20}") {
            if let Ok(sql_type) = text.parse::<SqlType>() {
                prop_assert_eq!(sql_type.to_string().parse::<SqlType>().unwrap(), sql_type);
            }
        }
    }

    #[test]
    fn declared_types_round_trip() {
        for text in [
            "int",
            "json",
            "vector(3)",
            "decimal(38,10)",
            "nvarchar(max)",
            "varbinary(16)",
            "datetime2(3)",
            "time(0)",
            "rowversion",
            "char(10)",
        ] {
            assert_eq!(text.parse::<SqlType>().unwrap().to_string(), text);
        }
        assert_eq!("numeric".parse::<SqlType>().unwrap().to_string(), "decimal(18,0)");
        assert_eq!("datetimeoffset".parse::<SqlType>().unwrap().to_string(), "datetimeoffset(7)");
        assert!("nvarchar(".parse::<SqlType>().is_err());
    }
}
