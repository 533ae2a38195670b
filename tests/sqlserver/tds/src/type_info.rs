//! TYPE_INFO: how a type is announced in COLMETADATA, RETURNVALUE and RPC parameters (MS-TDS 2.2.5.6).
//!
//! A column that cannot be null is announced with the fixed-length type where there is one, as SQL Server does; its values then carry no
//! length. [`Wire::is_fixed`] is the one place that decides it, for the announcement and for the values.

use crate::collation::Collation;
use crate::data::{DataType, Length};
use crate::error::{Error, Result};
use crate::reader::Reader;

/// Longest sql_variant, its own header included.
const VARIANT_BYTES: u32 = 8009;
/// Longest text and image.
const LOB_BYTES: u32 = 0x7FFF_FFFF;
/// Longest UDT as announced: they are sent in chunks in any case.
const MAX: u16 = 0xFFFF;

pub(crate) mod id {
    pub(crate) const NULL: u8 = 0x1F;
    pub(crate) const IMAGE: u8 = 0x22;
    pub(crate) const TEXT: u8 = 0x23;
    pub(crate) const GUID: u8 = 0x24;
    pub(crate) const VARBINARY_OLD: u8 = 0x25;
    pub(crate) const INT_N: u8 = 0x26;
    pub(crate) const VARCHAR_OLD: u8 = 0x27;
    pub(crate) const DATE: u8 = 0x28;
    pub(crate) const TIME: u8 = 0x29;
    pub(crate) const DATETIME2: u8 = 0x2A;
    pub(crate) const DATETIMEOFFSET: u8 = 0x2B;
    pub(crate) const BINARY_OLD: u8 = 0x2D;
    pub(crate) const CHAR_OLD: u8 = 0x2F;
    pub(crate) const INT1: u8 = 0x30;
    pub(crate) const BIT: u8 = 0x32;
    pub(crate) const INT2: u8 = 0x34;
    pub(crate) const DECIMAL_OLD: u8 = 0x37;
    pub(crate) const INT4: u8 = 0x38;
    pub(crate) const DATETIME4: u8 = 0x3A;
    pub(crate) const FLOAT4: u8 = 0x3B;
    pub(crate) const MONEY: u8 = 0x3C;
    pub(crate) const DATETIME: u8 = 0x3D;
    pub(crate) const FLOAT8: u8 = 0x3E;
    pub(crate) const NUMERIC_OLD: u8 = 0x3F;
    pub(crate) const VARIANT: u8 = 0x62;
    pub(crate) const NTEXT: u8 = 0x63;
    pub(crate) const BIT_N: u8 = 0x68;
    pub(crate) const DECIMAL_N: u8 = 0x6A;
    pub(crate) const NUMERIC_N: u8 = 0x6C;
    pub(crate) const FLOAT_N: u8 = 0x6D;
    pub(crate) const MONEY_N: u8 = 0x6E;
    pub(crate) const DATETIME_N: u8 = 0x6F;
    pub(crate) const MONEY4: u8 = 0x7A;
    pub(crate) const INT8: u8 = 0x7F;
    pub(crate) const VARBINARY: u8 = 0xA5;
    pub(crate) const VARCHAR: u8 = 0xA7;
    pub(crate) const BINARY: u8 = 0xAD;
    pub(crate) const CHAR: u8 = 0xAF;
    pub(crate) const NVARCHAR: u8 = 0xE7;
    pub(crate) const NCHAR: u8 = 0xEF;
    pub(crate) const UDT: u8 = 0xF0;
    pub(crate) const XML: u8 = 0xF1;
    pub(crate) const TVP: u8 = 0xF3;
}

/// A type as it stands on the wire.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    pub(crate) data_type: DataType,
    /// Announced by the fixed-length type: the value has no length and cannot be null.
    pub(crate) fixed: bool,
    pub(crate) collation: Collation,
}

impl Wire {
    pub(crate) fn new(data_type: &DataType, nullable: bool, collation: Collation) -> Wire {
        Wire { data_type: data_type.clone(), fixed: !nullable && Self::is_fixed(data_type), collation }
    }

    fn is_fixed(data_type: &DataType) -> bool {
        use DataType as T;
        matches!(
            data_type,
            T::Bit
                | T::TinyInt
                | T::SmallInt
                | T::Int
                | T::BigInt
                | T::Real
                | T::Float
                | T::Money
                | T::SmallMoney
                | T::DateTime
                | T::SmallDateTime
        )
    }

    /// Writes the TYPE_INFO of a result's column or a returned value.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        use DataType as T;
        let fixed = self.fixed;
        let mut sized = |fixed_id: u8, nullable_id: u8, bytes: u8| match fixed {
            true => out.push(fixed_id),
            false => out.extend([nullable_id, bytes]),
        };
        match &self.data_type {
            T::Bit => sized(id::BIT, id::BIT_N, 1),
            T::TinyInt => sized(id::INT1, id::INT_N, 1),
            T::SmallInt => sized(id::INT2, id::INT_N, 2),
            T::Int => sized(id::INT4, id::INT_N, 4),
            T::BigInt => sized(id::INT8, id::INT_N, 8),
            T::Real => sized(id::FLOAT4, id::FLOAT_N, 4),
            T::Float => sized(id::FLOAT8, id::FLOAT_N, 8),
            T::Money => sized(id::MONEY, id::MONEY_N, 8),
            T::SmallMoney => sized(id::MONEY4, id::MONEY_N, 4),
            T::DateTime => sized(id::DATETIME, id::DATETIME_N, 8),
            T::SmallDateTime => sized(id::DATETIME4, id::DATETIME_N, 4),
            T::Decimal { precision, scale } => out.extend([id::DECIMAL_N, decimal_bytes(*precision), *precision, *scale]),
            T::Numeric { precision, scale } => out.extend([id::NUMERIC_N, decimal_bytes(*precision), *precision, *scale]),
            T::UniqueIdentifier => out.extend([id::GUID, 16]),
            T::Date => out.push(id::DATE),
            T::Time { scale } => out.extend([id::TIME, *scale]),
            T::DateTime2 { scale } => out.extend([id::DATETIME2, *scale]),
            T::DateTimeOffset { scale } => out.extend([id::DATETIMEOFFSET, *scale]),
            T::SqlVariant => {
                out.push(id::VARIANT);
                out.extend(VARIANT_BYTES.to_le_bytes());
            }
            _ => self.put_long(out),
        }
    }

    fn put_long(&self, out: &mut Vec<u8>) {
        use DataType as T;
        let collation = self.collation.0;
        let mut short = |type_id: u8, bytes: u16, collated: bool| {
            out.push(type_id);
            out.extend(bytes.to_le_bytes());
            if collated {
                out.extend(collation);
            }
        };
        match &self.data_type {
            T::Char(n) => short(id::CHAR, (*n).min(8000), true),
            T::VarChar(length) => short(id::VARCHAR, limit(*length, 1), true),
            T::NChar(n) => short(id::NCHAR, n.saturating_mul(2).min(8000), true),
            T::NVarChar(length) => short(id::NVARCHAR, limit(*length, 2), true),
            T::Binary(n) => short(id::BINARY, (*n).min(8000), false),
            T::VarBinary(length) => short(id::VARBINARY, limit(*length, 1), false),
            T::Text => {
                out.push(id::TEXT);
                out.extend(LOB_BYTES.to_le_bytes());
                out.extend(collation);
            }
            T::NText => {
                out.push(id::NTEXT);
                out.extend((LOB_BYTES - 1).to_le_bytes());
                out.extend(collation);
            }
            T::Image => {
                out.push(id::IMAGE);
                out.extend(LOB_BYTES.to_le_bytes());
            }
            // No schema collection.
            T::Xml => out.extend([id::XML, 0]),
            T::Udt(name) => {
                out.push(id::UDT);
                out.extend(MAX.to_le_bytes());
                put_b_varchar(out, "master");
                put_b_varchar(out, "sys");
                put_b_varchar(out, name);
                put_us_varchar(out, &assembly_name(name));
            }
            // The rest is written by `put`.
            _ => {}
        }
    }
}

fn limit(length: Length, bytes_per_unit: u16) -> u16 {
    match length {
        Length::Limited(n) => n.saturating_mul(bytes_per_unit).min(8000),
        Length::Max => MAX,
    }
}

/// The bytes of a decimal of this precision, its sign included.
pub(crate) fn decimal_bytes(precision: u8) -> u8 {
    match precision {
        0..=9 => 5,
        10..=19 => 9,
        20..=28 => 13,
        _ => 17,
    }
}

/// The bytes of a time of this scale.
pub(crate) fn time_bytes(scale: u8) -> usize {
    match scale {
        0..=2 => 3,
        3..=4 => 4,
        _ => 5,
    }
}

fn assembly_name(udt: &str) -> String {
    let class = match udt {
        "hierarchyid" => "SqlHierarchyId",
        "geometry" => "SqlGeometry",
        "geography" => "SqlGeography",
        other => other,
    };
    format!(
        "Microsoft.SqlServer.Types.{class}, Microsoft.SqlServer.Types, Version=11.0.0.0, Culture=neutral, PublicKeyToken=89845dcd8080cc91"
    )
}

pub(crate) fn put_b_varchar(out: &mut Vec<u8>, text: &str) {
    put_counted(out, text, 255, |out, units| out.push(units as u8));
}

pub(crate) fn put_us_varchar(out: &mut Vec<u8>, text: &str) {
    put_counted(out, text, 65535, |out, units| out.extend((units as u16).to_le_bytes()));
}

/// Text with its length in code units before it; longer text than the length can say is cut.
fn put_counted(out: &mut Vec<u8>, text: &str, most: usize, put_length: impl Fn(&mut Vec<u8>, usize)) {
    let units: Vec<u16> = text.encode_utf16().take(most).collect();
    put_length(out, units.len());
    out.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
}

/// A parameter's type as the client announced it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Announced {
    pub(crate) type_id: u8,
    pub(crate) data_type: DataType,
    pub(crate) collation: Collation,
    /// The longest value in bytes, where values are shorter than 64 KiB.
    pub(crate) max_bytes: u16,
}

/// Reads the TYPE_INFO of an RPC parameter.
pub(crate) fn read(from: &mut Reader<'_>, server: Collation) -> Result<Announced> {
    use DataType as T;
    let type_id = from.u8()?;
    let mut collation = server;
    let mut max_bytes = 0;
    let data_type = match type_id {
        id::NULL | id::INT4 => T::Int,
        id::INT1 => T::TinyInt,
        id::BIT => T::Bit,
        id::INT2 => T::SmallInt,
        id::DATETIME4 => T::SmallDateTime,
        id::FLOAT4 => T::Real,
        id::MONEY => T::Money,
        id::DATETIME => T::DateTime,
        id::FLOAT8 => T::Float,
        id::MONEY4 => T::SmallMoney,
        id::INT8 => T::BigInt,
        id::INT_N | id::BIT_N | id::FLOAT_N | id::MONEY_N | id::DATETIME_N => sized(from, type_id)?,
        id::GUID => {
            from.u8()?;
            T::UniqueIdentifier
        }
        id::DECIMAL_N | id::NUMERIC_N | id::DECIMAL_OLD | id::NUMERIC_OLD => decimal(from, type_id)?,
        id::DATE => T::Date,
        id::TIME => T::Time { scale: scale(from)? },
        id::DATETIME2 => T::DateTime2 { scale: scale(from)? },
        id::DATETIMEOFFSET => T::DateTimeOffset { scale: scale(from)? },
        id::CHAR_OLD | id::VARCHAR_OLD | id::BINARY_OLD | id::VARBINARY_OLD => {
            max_bytes = u16::from(from.u8()?);
            short(type_id, max_bytes)
        }
        id::BINARY | id::VARBINARY => {
            max_bytes = from.u16()?;
            short(type_id, max_bytes)
        }
        id::CHAR | id::VARCHAR | id::NCHAR | id::NVARCHAR => {
            max_bytes = from.u16()?;
            collation = Collation(from.array()?);
            short(type_id, max_bytes)
        }
        id::TEXT | id::NTEXT => {
            from.u32()?;
            collation = Collation(from.array()?);
            if type_id == id::TEXT { T::Text } else { T::NText }
        }
        id::IMAGE => {
            from.u32()?;
            T::Image
        }
        id::VARIANT => {
            from.u32()?;
            T::SqlVariant
        }
        id::XML => xml(from)?,
        id::UDT => udt(from)?,
        id::TVP => return Err(Error::Unsupported { what: "a table-valued parameter" }),
        _ => return from.fail("a parameter has an unknown type"),
    };
    Ok(Announced { type_id, data_type, collation, max_bytes })
}

fn sized(from: &mut Reader<'_>, type_id: u8) -> Result<DataType> {
    use DataType as T;
    Ok(match (type_id, from.u8()?) {
        (id::INT_N, 1) => T::TinyInt,
        (id::INT_N, 2) => T::SmallInt,
        (id::INT_N, 4) => T::Int,
        (id::INT_N, 8) => T::BigInt,
        (id::BIT_N, 1) => T::Bit,
        (id::FLOAT_N, 4) => T::Real,
        (id::FLOAT_N, 8) => T::Float,
        (id::MONEY_N, 4) => T::SmallMoney,
        (id::MONEY_N, 8) => T::Money,
        (id::DATETIME_N, 4) => T::SmallDateTime,
        (id::DATETIME_N, 8) => T::DateTime,
        _ => return from.fail("a parameter's type has an impossible length"),
    })
}

fn decimal(from: &mut Reader<'_>, type_id: u8) -> Result<DataType> {
    let [_, precision, scale] = from.array()?;
    if precision == 0 || precision > 38 || scale > precision {
        return from.fail("a decimal's precision or scale is impossible");
    }
    Ok(match type_id {
        id::DECIMAL_N | id::DECIMAL_OLD => DataType::Decimal { precision, scale },
        _ => DataType::Numeric { precision, scale },
    })
}

pub(crate) fn scale(from: &mut Reader<'_>) -> Result<u8> {
    match from.u8()? {
        scale @ 0..=7 => Ok(scale),
        _ => from.fail("a time's scale is above 7"),
    }
}

/// The type of a short string of so many bytes at most; `0xFFFF` is `max`.
pub(crate) fn short(type_id: u8, bytes: u16) -> DataType {
    use DataType as T;
    let length = |bytes: u16| if bytes == MAX { Length::Max } else { Length::Limited(bytes) };
    match type_id {
        id::CHAR | id::CHAR_OLD => T::Char(bytes),
        id::VARCHAR | id::VARCHAR_OLD => T::VarChar(length(bytes)),
        id::NCHAR => T::NChar(bytes / 2),
        id::NVARCHAR => T::NVarChar(if bytes == MAX { Length::Max } else { Length::Limited(bytes / 2) }),
        id::BINARY | id::BINARY_OLD => T::Binary(bytes),
        _ => T::VarBinary(length(bytes)),
    }
}

fn xml(from: &mut Reader<'_>) -> Result<DataType> {
    if from.u8()? != 0 {
        from.b_varchar()?;
        from.b_varchar()?;
        from.us_varchar()?;
    }
    Ok(DataType::Xml)
}

fn udt(from: &mut Reader<'_>) -> Result<DataType> {
    let [_database, _schema, name] = [from.b_varchar()?, from.b_varchar()?, from.b_varchar()?];
    match ["hierarchyid", "geometry", "geography"].into_iter().find(|known| name.eq_ignore_ascii_case(known)) {
        Some(known) => Ok(DataType::Udt(known)),
        None => Err(Error::Unsupported { what: "a parameter of a user-defined type" }),
    }
}
