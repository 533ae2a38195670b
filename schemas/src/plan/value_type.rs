//! What columns are in expressions.

use expressions::{Kind, Type};

use super::KeyType;
use crate::table::{Column, Length, SqlType};

/// The type of a column's values.
pub(super) fn of(column: &Column) -> Type {
    match column.sql_type {
        SqlType::Bit => Type::Bool,
        SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Type::Int,
        SqlType::Real | SqlType::Float => Type::Double,
        SqlType::Decimal { .. } | SqlType::Money | SqlType::SmallMoney => Type::Decimal,
        SqlType::Date => Type::Moment(Kind::Date),
        SqlType::Time { .. } => Type::Moment(Kind::Time),
        SqlType::DateTime | SqlType::SmallDateTime | SqlType::DateTime2 { .. } => Type::Moment(Kind::DateTime),
        SqlType::DateTimeOffset { .. } => Type::Moment(Kind::Instant),
        SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::Image | SqlType::RowVersion => Type::Bytes,
        SqlType::SqlVariant => Type::Any,
        _ => Type::Text,
    }
}

/// How values of a type are compared in a key; `None`: they cannot be part of one.
pub(super) fn key_type(of: &Type) -> Option<KeyType> {
    Some(match of {
        Type::Bool => KeyType::Bool,
        Type::Int => KeyType::Int,
        Type::Decimal => KeyType::Decimal,
        Type::Double => KeyType::Float,
        Type::Text => KeyType::Text,
        Type::Bytes => KeyType::Binary,
        Type::Moment(Kind::Instant) => KeyType::Instant,
        Type::Moment(_) => KeyType::Time,
        Type::Any | Type::Null | Type::List(_) | Type::Object(_) => return None,
    })
}

/// The column type that holds every moment of a kind.
pub(super) const fn moment(of: &Type) -> Option<SqlType> {
    let Type::Moment(kind) = of else { return None };
    Some(match kind {
        Kind::Date => SqlType::Date,
        Kind::Time => SqlType::Time { scale: 7 },
        Kind::DateTime => SqlType::DateTime2 { scale: 7 },
        Kind::Instant => SqlType::DateTimeOffset { scale: 7 },
    })
}

impl KeyType {
    /// The column type that holds every value of a key part that is no column.
    pub(super) const fn sql_type(self) -> SqlType {
        match self {
            Self::Bool => SqlType::Bit,
            Self::Int => SqlType::BigInt,
            Self::Decimal => SqlType::Decimal { precision: 38, scale: 10 },
            Self::Float => SqlType::Float,
            Self::Text | Self::FoldedText | Self::Time | Self::Instant => SqlType::NVarChar(Length::Limited(4000)),
            Self::Uuid => SqlType::UniqueIdentifier,
            Self::Binary => SqlType::VarBinary(Length::Limited(8000)),
        }
    }
}
