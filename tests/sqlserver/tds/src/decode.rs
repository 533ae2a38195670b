//! Bytes to values: the parameters of RPCs (MS-TDS 2.2.5.5), the inverse of [`crate::encode`].

use crate::collation::Collation;
use crate::data::{DataType, Length, Value};
use crate::encode::{DAY_TICKS, DAYS_TO_1900, guid_swapped};
use crate::error::Result;
use crate::reader::{Reader, utf16_text};
use crate::type_info::{Announced, id, scale, short, time_bytes};

/// PLP: NULL, and a length that the client does not know beforehand.
const PLP_NULL: u64 = u64::MAX;

/// Reads a value of the announced type.
pub(crate) fn read(from: &mut Reader<'_>, announced: &Announced) -> Result<Value> {
    let collation = announced.collation;
    match announced.type_id {
        id::NULL => Ok(Value::Null),
        id::INT1 | id::BIT | id::INT2 | id::INT4 | id::INT8 | id::FLOAT4 | id::FLOAT8 => plain(from, &announced.data_type),
        id::MONEY | id::MONEY4 | id::DATETIME | id::DATETIME4 => plain(from, &announced.data_type),
        id::INT_N | id::BIT_N | id::FLOAT_N | id::MONEY_N | id::DATETIME_N | id::GUID => byte_counted(from, announced, plain),
        id::DECIMAL_N | id::NUMERIC_N | id::DECIMAL_OLD | id::NUMERIC_OLD => byte_counted(from, announced, decimal),
        id::DATE | id::TIME | id::DATETIME2 | id::DATETIMEOFFSET => byte_counted(from, announced, temporal),
        id::CHAR_OLD | id::VARCHAR_OLD | id::BINARY_OLD | id::VARBINARY_OLD => {
            byte_counted(from, announced, |from, data_type| bare(from, data_type, collation))
        }
        id::TEXT | id::NTEXT | id::IMAGE => match from.u32()? {
            u32::MAX => Ok(Value::Null),
            length => of_bytes(from.take(length as usize)?, &announced.data_type, collation, from),
        },
        id::VARIANT => variant(from),
        id::XML | id::UDT => chunks(from, announced),
        _ if announced.max_bytes == u16::MAX => chunks(from, announced),
        _ => match from.u16()? {
            u16::MAX => Ok(Value::Null),
            length if length > announced.max_bytes => from.fail("a value is longer than its type"),
            length => of_bytes(from.take(usize::from(length))?, &announced.data_type, collation, from),
        },
    }
}

/// A value whose length stands in one byte before it; zero is NULL.
fn byte_counted(
    from: &mut Reader<'_>,
    announced: &Announced,
    read: impl Fn(&mut Reader<'_>, &DataType) -> Result<Value>,
) -> Result<Value> {
    let length = from.u8()?;
    if length == 0 {
        return Ok(Value::Null);
    }
    let mut inner = Reader::new(from.take(usize::from(length))?, "parameter's value");
    let value = read(&mut inner, &announced.data_type)?;
    if inner.is_empty() { Ok(value) } else { inner.fail("it is longer than its type") }
}

/// PLP chunks, gathered; the declared whole length is a hint that is not believed before the bytes are there.
fn chunks(from: &mut Reader<'_>, announced: &Announced) -> Result<Value> {
    if from.u64()? == PLP_NULL {
        return Ok(Value::Null);
    }
    let mut bytes = Vec::new();
    loop {
        match from.len32()? {
            0 => break,
            length => bytes.extend_from_slice(from.take(length)?),
        }
    }
    of_bytes(&bytes, &announced.data_type, announced.collation, from)
}

fn of_bytes(bytes: &[u8], data_type: &DataType, collation: Collation, from: &Reader<'_>) -> Result<Value> {
    use DataType as T;
    Ok(match data_type {
        T::NChar(_) | T::NVarChar(_) | T::NText if !bytes.len().is_multiple_of(2) => {
            return from.fail("a Unicode string has an odd number of bytes");
        }
        T::NChar(_) | T::NVarChar(_) | T::NText => Value::Text(utf16_text(bytes)),
        // XML comes as UTF-16 with or without a byte order mark.
        T::Xml => Value::Text(utf16_text(bytes.strip_prefix(&[0xFF, 0xFE]).unwrap_or(bytes))),
        T::Char(_) | T::VarChar(_) | T::Text => Value::Text(collation.decode(bytes)),
        _ => Value::Bytes(bytes.to_vec()),
    })
}

/// The fixed-length types, without their length.
fn plain(from: &mut Reader<'_>, data_type: &DataType) -> Result<Value> {
    use DataType as T;
    Ok(match data_type {
        T::Bit => Value::Bit(from.u8()? != 0),
        T::TinyInt => Value::Int(i64::from(from.u8()?)),
        T::SmallInt => Value::Int(i64::from(i16::from_le_bytes(from.array()?))),
        T::Int => Value::Int(i64::from(i32::from_le_bytes(from.array()?))),
        T::BigInt => Value::Int(i64::from_le_bytes(from.array()?)),
        T::Real => Value::Float(f64::from(f32::from_le_bytes(from.array()?))),
        T::Float => Value::Float(f64::from_le_bytes(from.array()?)),
        T::SmallMoney => Value::Decimal { mantissa: i128::from(i32::from_le_bytes(from.array()?)), scale: 4 },
        T::Money => {
            let high = i32::from_le_bytes(from.array()?);
            let low = from.u32()?;
            Value::Decimal { mantissa: i128::from(i64::from(high) << 32 | i64::from(low)), scale: 4 }
        }
        T::DateTime => {
            let days = i64::from(i32::from_le_bytes(from.array()?)) + DAYS_TO_1900;
            let units = from.u32()?;
            let ticks = (u64::from(units) * 100_000 + 1) / 3;
            date_time(from, days, ticks)?
        }
        T::SmallDateTime => {
            let days = i64::from(from.u16()?) + DAYS_TO_1900;
            let ticks = u64::from(from.u16()?) * 600_000_000;
            date_time(from, days, ticks)?
        }
        T::UniqueIdentifier => Value::UniqueIdentifier(guid_swapped(from.array()?)),
        _ => return from.fail("a value has an unexpected type"),
    })
}

fn date_time(from: &Reader<'_>, days: i64, ticks: u64) -> Result<Value> {
    match u32::try_from(days) {
        Ok(days) if days <= 3_652_058 && ticks < DAY_TICKS => Ok(Value::DateTime { days, ticks }),
        _ => from.fail("a date or time is out of range"),
    }
}

fn decimal(from: &mut Reader<'_>, data_type: &DataType) -> Result<Value> {
    let (DataType::Decimal { scale, .. } | DataType::Numeric { scale, .. }) = data_type else {
        return from.fail("a value has an unexpected type");
    };
    let positive = from.u8()? != 0;
    let magnitude = from.take(from.remaining())?;
    let mut bytes = [0; 16];
    match bytes.get_mut(..magnitude.len()) {
        Some(low) => low.copy_from_slice(magnitude),
        None => return from.fail("a decimal is too long"),
    }
    // Above 38 digits, which no type holds, and also what keeps the sign out of the highest bit.
    match i128::from_le_bytes(bytes) {
        mantissa @ 0..100_000_000_000_000_000_000_000_000_000_000_000_000 => {
            Ok(Value::Decimal { mantissa: if positive { mantissa } else { -mantissa }, scale: *scale })
        }
        _ => from.fail("a decimal has more than 38 digits"),
    }
}

fn date(from: &mut Reader<'_>) -> Result<u32> {
    let [a, b, c] = from.array()?;
    match u32::from_le_bytes([a, b, c, 0]) {
        days @ 0..=3_652_058 => Ok(days),
        _ => from.fail("a date is out of range"),
    }
}

fn time(from: &mut Reader<'_>, scale: u8) -> Result<u64> {
    let mut bytes = [0; 8];
    let length = time_bytes(scale);
    bytes[..length].copy_from_slice(from.take(length)?);
    match u64::from_le_bytes(bytes).checked_mul(10u64.pow(u32::from(7 - scale.min(7)))) {
        Some(ticks) if ticks < DAY_TICKS => Ok(ticks),
        _ => from.fail("a time of day is out of range"),
    }
}

fn temporal(from: &mut Reader<'_>, data_type: &DataType) -> Result<Value> {
    Ok(match data_type {
        DataType::Date => Value::Date(date(from)?),
        DataType::Time { scale } => Value::Time(time(from, *scale)?),
        DataType::DateTime2 { scale } => {
            let ticks = time(from, *scale)?;
            Value::DateTime { days: date(from)?, ticks }
        }
        DataType::DateTimeOffset { scale } => {
            let ticks = time(from, *scale)?;
            let days = date(from)?;
            let offset_minutes = i16::from_le_bytes(from.array()?);
            let utc = i64::from(days) * DAY_TICKS as i64 + ticks as i64;
            match u64::try_from(utc + i64::from(offset_minutes) * 600_000_000) {
                Ok(local) if offset_minutes.unsigned_abs() <= 840 => {
                    Value::DateTimeOffset { days: (local / DAY_TICKS) as u32, ticks: local % DAY_TICKS, offset_minutes }
                }
                _ => return from.fail("a datetimeoffset is out of range"),
            }
        }
        _ => return from.fail("a value has an unexpected type"),
    })
}

fn bare(from: &mut Reader<'_>, data_type: &DataType, collation: Collation) -> Result<Value> {
    let bytes = from.take(from.remaining())?;
    of_bytes(bytes, data_type, collation, from)
}

fn variant(from: &mut Reader<'_>) -> Result<Value> {
    let length = from.len32()?;
    if length == 0 {
        return Ok(Value::Null);
    }
    let mut inner = Reader::new(from.take(length)?, "sql_variant");
    let type_id = inner.u8()?;
    let property_bytes = usize::from(inner.u8()?);
    let mut properties = Reader::new(inner.take(property_bytes)?, "sql_variant");
    let (data_type, value) = variant_body(&mut inner, &mut properties, type_id)?;
    if !inner.is_empty() || !properties.is_empty() {
        return inner.fail("it is longer than its type");
    }
    Ok(Value::Variant(Box::new((data_type, value))))
}

fn variant_body(inner: &mut Reader<'_>, properties: &mut Reader<'_>, type_id: u8) -> Result<(DataType, Value)> {
    use DataType as T;
    let fixed = |data_type: T, inner: &mut Reader<'_>| plain(inner, &data_type).map(|value| (data_type, value));
    match type_id {
        id::INT1 => fixed(T::TinyInt, inner),
        id::BIT => fixed(T::Bit, inner),
        id::INT2 => fixed(T::SmallInt, inner),
        id::INT4 => fixed(T::Int, inner),
        id::INT8 => fixed(T::BigInt, inner),
        id::FLOAT4 => fixed(T::Real, inner),
        id::FLOAT8 => fixed(T::Float, inner),
        id::MONEY => fixed(T::Money, inner),
        id::MONEY4 => fixed(T::SmallMoney, inner),
        id::DATETIME => fixed(T::DateTime, inner),
        id::DATETIME4 => fixed(T::SmallDateTime, inner),
        id::GUID => fixed(T::UniqueIdentifier, inner),
        id::DECIMAL_N | id::NUMERIC_N => {
            let [precision, scale] = properties.array()?;
            if precision == 0 || precision > 38 || scale > precision {
                return inner.fail("a decimal's precision or scale is impossible");
            }
            let data_type =
                if type_id == id::DECIMAL_N { T::Decimal { precision, scale } } else { T::Numeric { precision, scale } };
            let value = decimal(inner, &data_type)?;
            Ok((data_type, value))
        }
        id::DATE | id::TIME | id::DATETIME2 | id::DATETIMEOFFSET => {
            let data_type = match type_id {
                id::DATE => T::Date,
                id::TIME => T::Time { scale: scale(properties)? },
                id::DATETIME2 => T::DateTime2 { scale: scale(properties)? },
                _ => T::DateTimeOffset { scale: scale(properties)? },
            };
            let value = temporal(inner, &data_type)?;
            Ok((data_type, value))
        }
        id::CHAR | id::VARCHAR | id::NCHAR | id::NVARCHAR => {
            let collation = Collation(properties.array()?);
            let most = properties.u16()?;
            let data_type = limited(short(type_id, most));
            let value = of_bytes(inner.take(inner.remaining())?, &data_type, collation, inner)?;
            Ok((data_type, value))
        }
        id::BINARY | id::VARBINARY => {
            let data_type = limited(short(type_id, properties.u16()?));
            let value = Value::Bytes(inner.take(inner.remaining())?.to_vec());
            Ok((data_type, value))
        }
        _ => inner.fail("it holds an unknown type"),
    }
}

/// A sql_variant holds no `max` type, whatever the length says.
fn limited(data_type: DataType) -> DataType {
    match data_type {
        DataType::VarChar(Length::Max) => DataType::VarChar(Length::Limited(8000)),
        DataType::NVarChar(Length::Max) => DataType::NVarChar(Length::Limited(4000)),
        DataType::VarBinary(Length::Max) => DataType::VarBinary(Length::Limited(8000)),
        other => other,
    }
}
