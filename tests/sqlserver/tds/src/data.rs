//! The data types and values of SQL Server, as TDS carries them.

use crate::collation::Collation;

/// Longest value of a variable-length type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Length {
    /// Bytes for binary and non-Unicode types, UTF-16 code units for Unicode types.
    Limited(u16),
    /// `max`: sent in chunks (PLP).
    Max,
}

/// A column's or parameter's type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataType {
    Bit,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    Real,
    Float,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Numeric {
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
    Xml,
    SqlVariant,
    /// hierarchyid, geometry, geography: the type's name in `sys`.
    Udt(&'static str),
}

/// A value. The column's [`DataType`] says how it is encoded; a value that does not fit the type is the engine's fault and is
/// answered with an error, never with other bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bit(bool),
    /// All integer types.
    Int(i64),
    /// real and float.
    Float(f64),
    /// decimal, numeric, money, smallmoney: `mantissa / 10^scale`.
    Decimal {
        mantissa: i128,
        scale: u8,
    },
    Text(String),
    Bytes(Vec<u8>),
    /// In the order in which the text form is written (RFC 4122 byte order).
    UniqueIdentifier([u8; 16]),
    /// Days since 0001-01-01.
    Date(u32),
    /// 100-nanosecond ticks since midnight.
    Time(u64),
    /// datetime, smalldatetime and datetime2: days since 0001-01-01, and 100-nanosecond ticks since midnight.
    DateTime {
        days: u32,
        ticks: u64,
    },
    /// Local date and time as above, and the offset from UTC in minutes.
    DateTimeOffset {
        days: u32,
        ticks: u64,
        offset_minutes: i16,
    },
    /// A value that knows its own type.
    Variant(Box<(DataType, Value)>),
}

/// A result set's column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub data_type: DataType,
    pub nullable: bool,
    pub identity: bool,
    pub computed: bool,
    /// Of a column of text; `None`: the server's.
    pub collation: Option<Collation>,
}
