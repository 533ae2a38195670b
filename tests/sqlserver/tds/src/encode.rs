//! Values to bytes (MS-TDS 2.2.5.5): the hot path of every large result.
//!
//! A value is checked against its column's type while it is written; what does not fit is a [`Misfit`], and whoever called takes back what was
//! written so far of the row, so that a client never sees half a row or other bytes than were meant. Conversions that lose nothing (a
//! decimal of another scale, an integer as a decimal, padding of fixed-length strings) are made.

use crate::collation::Collation;
use crate::data::{DataType, Length, Value};
use crate::type_info::{Wire, decimal_bytes, id, time_bytes};

/// 100-nanosecond ticks of a day.
pub(crate) const DAY_TICKS: u64 = 864_000_000_000;
/// 0001-01-01 to 1900-01-01.
pub(crate) const DAYS_TO_1900: i64 = 693_595;
/// 0001-01-01 to 9999-12-31.
const MAX_DAYS: u32 = 3_652_058;
/// 1/300 seconds of a day: the unit of `datetime`.
const DAY_UNITS: u64 = 25_920_000;
/// The longest string that is not a `max`, whatever an engine says.
const SHORT_BYTES: u16 = 8000;
/// Chunks of `max` values. SQL Server sends chunks of about a packet; clients must take any.
const PLP_CHUNK: usize = 32 << 10;
const TEXT_POINTER: [u8; 16] = *b"dummy textptr\0\0\0";

/// A value that its column's type cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misfit(pub(crate) &'static str);

type Fits = Result<(), Misfit>;

const WRONG_KIND: Misfit = Misfit("the value is of another kind than its type");
const OUT_OF_RANGE: Misfit = Misfit("the value is out of the type's range");
const TOO_LONG: Misfit = Misfit("the value is longer than its type allows");
const INEXACT: Misfit = Misfit("the value has more digits than its type's scale");

/// Writes a value that may be null, its length included.
pub(crate) fn put(out: &mut Vec<u8>, wire: &Wire, value: &Value) -> Fits {
    use DataType as T;
    match (&wire.data_type, value) {
        (_, Value::Null) => put_null(out, wire),
        (T::SqlVariant, _) => put_variant(out, value, wire.collation),
        (_, Value::Variant(inner)) => put(out, wire, &inner.1),
        (T::NVarChar(Length::Limited(most)), _) => put_nvarchar(out, text(value)?, *most),
        (T::Decimal { precision, scale } | T::Numeric { precision, scale }, _) => {
            let bytes = decimal_bytes(*precision);
            out.push(bytes);
            put_decimal(out, value, *precision, *scale, usize::from(bytes) - 1)
        }
        (T::UniqueIdentifier, _) => {
            out.push(16);
            put_guid(out, value)
        }
        (T::Date | T::Time { .. } | T::DateTime2 { .. } | T::DateTimeOffset { .. }, _) => {
            let at = out.len();
            out.push(0);
            put_temporal(out, &wire.data_type, value)?;
            out[at] = (out.len() - at - 1) as u8;
            Ok(())
        }
        (data_type, _) => match fixed_bytes(data_type) {
            Some(bytes) => {
                if !wire.fixed {
                    out.push(bytes);
                }
                put_fixed(out, data_type, value)
            }
            None => put_long(out, wire, value),
        },
    }
}

/// The size of the types that have one size.
fn fixed_bytes(data_type: &DataType) -> Option<u8> {
    use DataType as T;
    match data_type {
        T::Bit | T::TinyInt => Some(1),
        T::SmallInt => Some(2),
        T::Int | T::Real | T::SmallMoney | T::SmallDateTime => Some(4),
        T::BigInt | T::Float | T::Money | T::DateTime => Some(8),
        _ => None,
    }
}

fn put_fixed(out: &mut Vec<u8>, data_type: &DataType, value: &Value) -> Fits {
    use DataType as T;
    match data_type {
        T::Bit => out.push(u8::from(integer(value)? != 0)),
        T::TinyInt => out.push(u8::try_from(integer(value)?).map_err(|_| OUT_OF_RANGE)?),
        T::SmallInt => out.extend(i16::try_from(integer(value)?).map_err(|_| OUT_OF_RANGE)?.to_le_bytes()),
        T::Int => out.extend(i32::try_from(integer(value)?).map_err(|_| OUT_OF_RANGE)?.to_le_bytes()),
        T::BigInt => out.extend(integer(value)?.to_le_bytes()),
        T::Real => out.extend((float(value)? as f32).to_le_bytes()),
        T::Float => out.extend(float(value)?.to_le_bytes()),
        T::Money => put_money(out, value)?,
        T::SmallMoney => out.extend(i32::try_from(decimal(value, 4)?).map_err(|_| OUT_OF_RANGE)?.to_le_bytes()),
        T::DateTime => put_datetime(out, value)?,
        T::SmallDateTime => put_smalldatetime(out, value)?,
        _ => return Err(WRONG_KIND),
    }
    Ok(())
}

/// Strings, binaries and large objects.
fn put_long(out: &mut Vec<u8>, wire: &Wire, value: &Value) -> Fits {
    use DataType as T;
    match &wire.data_type {
        T::VarChar(Length::Limited(most)) => {
            let text = text(value)?;
            put_u16_length(out, wire.collation.encoded_len(text), *most)?;
            wire.collation.encode(text, out);
        }
        T::Char(size) => {
            let mut text = text(value)?;
            // Padded to its length in characters, UTF-8 may need more bytes than there are.
            while wire.collation.encoded_len(text) > usize::from(*size) && text.ends_with(' ') {
                text = &text[..text.len() - 1];
            }
            let length = wire.collation.encoded_len(text);
            put_u16_length(out, length.max(usize::from(*size)), *size)?;
            wire.collation.encode(text, out);
            out.resize(out.len() + usize::from(*size) - length, b' ');
        }
        T::NChar(size) => {
            let text = text(value)?;
            let at = out.len();
            out.extend((*size).min(SHORT_BYTES / 2).saturating_mul(2).to_le_bytes());
            put_utf16(out, text);
            let written = (out.len() - at - 2) / 2;
            let missing = usize::from((*size).min(SHORT_BYTES / 2)).checked_sub(written).ok_or(TOO_LONG)?;
            out.extend(std::iter::repeat_n([b' ', 0], missing).flatten());
        }
        T::VarBinary(Length::Limited(most)) => {
            let bytes = bytes(value)?;
            put_u16_length(out, bytes.len(), *most)?;
            out.extend_from_slice(bytes);
        }
        T::Binary(size) => {
            let bytes = bytes(value)?;
            put_u16_length(out, bytes.len().max(usize::from(*size)), *size)?;
            out.extend_from_slice(bytes);
            out.resize(out.len() + usize::from(*size) - bytes.len(), 0);
        }
        T::NVarChar(_) | T::Xml => put_chunks(out, &utf16(text(value)?)),
        T::VarChar(_) => put_chunks(out, &encoded(wire.collation, text(value)?)),
        T::VarBinary(_) | T::Udt(_) => put_chunks(out, bytes(value)?),
        T::Text => put_lob(out, &encoded(wire.collation, text(value)?))?,
        T::NText => put_lob(out, &utf16(text(value)?))?,
        T::Image => put_lob(out, bytes(value)?)?,
        _ => return Err(WRONG_KIND),
    }
    Ok(())
}

/// NULL as it stands in ROW and RETURNVALUE; NBCROW says it by a bit instead.
pub(crate) fn put_null(out: &mut Vec<u8>, wire: &Wire) -> Fits {
    use DataType as T;
    if wire.fixed {
        return Err(Misfit("NULL in a column that was announced as not nullable"));
    }
    match &wire.data_type {
        T::VarChar(Length::Max) | T::NVarChar(Length::Max) | T::VarBinary(Length::Max) | T::Xml | T::Udt(_) => {
            out.extend(u64::MAX.to_le_bytes());
        }
        T::Char(_) | T::VarChar(_) | T::NChar(_) | T::NVarChar(_) | T::Binary(_) | T::VarBinary(_) => {
            out.extend(u16::MAX.to_le_bytes());
        }
        T::SqlVariant => out.extend(0u32.to_le_bytes()),
        _ => out.push(0),
    }
    Ok(())
}

fn integer(value: &Value) -> Result<i64, Misfit> {
    match value {
        Value::Int(n) => Ok(*n),
        Value::Bit(b) => Ok(i64::from(*b)),
        Value::Decimal { .. } => i64::try_from(decimal(value, 0)?).map_err(|_| OUT_OF_RANGE),
        _ => Err(WRONG_KIND),
    }
}

fn float(value: &Value) -> Result<f64, Misfit> {
    match value {
        Value::Float(x) => Ok(*x),
        Value::Int(n) => Ok(*n as f64),
        Value::Decimal { mantissa, scale } => Ok(*mantissa as f64 / 10f64.powi(i32::from(*scale))),
        _ => Err(WRONG_KIND),
    }
}

/// The mantissa at the wanted scale.
pub(crate) fn decimal(value: &Value, wanted: u8) -> Result<i128, Misfit> {
    let (mantissa, scale) = match value {
        Value::Decimal { mantissa, scale } => (*mantissa, *scale),
        Value::Int(n) => (i128::from(*n), 0),
        Value::Bit(b) => (i128::from(*b), 0),
        _ => return Err(WRONG_KIND),
    };
    if wanted >= scale {
        let factor = 10i128.checked_pow(u32::from(wanted - scale)).ok_or(OUT_OF_RANGE)?;
        return mantissa.checked_mul(factor).ok_or(OUT_OF_RANGE);
    }
    let divisor = 10i128.checked_pow(u32::from(scale - wanted)).ok_or(OUT_OF_RANGE)?;
    if mantissa % divisor == 0 { Ok(mantissa / divisor) } else { Err(INEXACT) }
}

fn text(value: &Value) -> Result<&str, Misfit> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(WRONG_KIND),
    }
}

fn bytes(value: &Value) -> Result<&[u8], Misfit> {
    match value {
        Value::Bytes(bytes) => Ok(bytes),
        _ => Err(WRONG_KIND),
    }
}

fn put_u16_length(out: &mut Vec<u8>, length: usize, most: u16) -> Fits {
    match u16::try_from(length) {
        Ok(length) if length <= most.min(SHORT_BYTES) => {
            out.extend(length.to_le_bytes());
            Ok(())
        }
        _ => Err(TOO_LONG),
    }
}

fn put_nvarchar(out: &mut Vec<u8>, text: &str, most: u16) -> Fits {
    let at = out.len();
    out.extend([0, 0]);
    put_utf16(out, text);
    let length = out.len() - at - 2;
    if length > usize::from(most.min(SHORT_BYTES / 2)) * 2 {
        return Err(TOO_LONG);
    }
    out[at..at + 2].copy_from_slice(&(length as u16).to_le_bytes());
    Ok(())
}

pub(crate) fn put_utf16(out: &mut Vec<u8>, text: &str) {
    if text.is_ascii() {
        let at = out.len();
        out.resize(at + text.len() * 2, 0);
        for (unit, byte) in out[at..].chunks_exact_mut(2).zip(text.bytes()) {
            unit[0] = byte;
        }
    } else {
        out.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    }
}

fn utf16(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() * 2);
    put_utf16(&mut out, text);
    out
}

fn encoded(collation: Collation, text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    collation.encode(text, &mut out);
    out
}

/// PLP: the whole length, the chunks, an empty chunk.
fn put_chunks(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    for chunk in bytes.chunks(PLP_CHUNK) {
        out.extend((chunk.len() as u32).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out.extend(0u32.to_le_bytes());
}

/// text, ntext and image: a text pointer and a timestamp that nobody follows any more, then the length.
fn put_lob(out: &mut Vec<u8>, bytes: &[u8]) -> Fits {
    let length = i32::try_from(bytes.len()).map_err(|_| TOO_LONG)?;
    out.push(TEXT_POINTER.len() as u8);
    out.extend(TEXT_POINTER);
    out.extend([0; 8]);
    out.extend(length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// The high half first, each half little-endian.
fn put_money(out: &mut Vec<u8>, value: &Value) -> Fits {
    let units = i64::try_from(decimal(value, 4)?).map_err(|_| OUT_OF_RANGE)?;
    out.extend(((units >> 32) as i32).to_le_bytes());
    out.extend((units as u32).to_le_bytes());
    Ok(())
}

fn put_decimal(out: &mut Vec<u8>, value: &Value, precision: u8, scale: u8, magnitude_bytes: usize) -> Fits {
    let mantissa = decimal(value, scale)?;
    let magnitude = mantissa.unsigned_abs();
    let past = 10u128.checked_pow(u32::from(precision)).ok_or(OUT_OF_RANGE)?;
    if magnitude >= past {
        return Err(OUT_OF_RANGE);
    }
    out.push(u8::from(mantissa >= 0));
    out.extend_from_slice(&magnitude.to_le_bytes()[..magnitude_bytes]);
    Ok(())
}

/// The first three groups are little-endian on the wire.
fn put_guid(out: &mut Vec<u8>, value: &Value) -> Fits {
    let Value::UniqueIdentifier(text_order) = value else {
        return Err(WRONG_KIND);
    };
    out.extend(guid_swapped(*text_order));
    Ok(())
}

/// Between the order of the text form and the order of the wire: the same exchange both ways.
pub(crate) fn guid_swapped(bytes: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

fn date_and_time(value: &Value) -> Result<(u32, u64), Misfit> {
    let (days, ticks) = match value {
        Value::DateTime { days, ticks } => (*days, *ticks),
        Value::Date(days) => (*days, 0),
        _ => return Err(WRONG_KIND),
    };
    if days > MAX_DAYS || ticks >= DAY_TICKS { Err(OUT_OF_RANGE) } else { Ok((days, ticks)) }
}

fn put_datetime(out: &mut Vec<u8>, value: &Value) -> Fits {
    let (days, ticks) = date_and_time(value)?;
    // 1/300 s is 100_000/3 ticks, rounded to the nearest, which may be the next midnight.
    let units = (ticks * 3 + 50_000) / 100_000;
    let days = i64::from(days) - DAYS_TO_1900 + i64::from(units >= DAY_UNITS);
    out.extend((days as i32).to_le_bytes());
    out.extend(((units % DAY_UNITS) as u32).to_le_bytes());
    Ok(())
}

fn put_smalldatetime(out: &mut Vec<u8>, value: &Value) -> Fits {
    const MINUTE_TICKS: u64 = 600_000_000;
    let (days, ticks) = date_and_time(value)?;
    if !ticks.is_multiple_of(MINUTE_TICKS) {
        return Err(INEXACT);
    }
    let days = u16::try_from(i64::from(days) - DAYS_TO_1900).map_err(|_| OUT_OF_RANGE)?;
    out.extend(days.to_le_bytes());
    out.extend(((ticks / MINUTE_TICKS) as u16).to_le_bytes());
    Ok(())
}

fn put_time(out: &mut Vec<u8>, ticks: u64, scale: u8) -> Fits {
    if ticks >= DAY_TICKS {
        return Err(OUT_OF_RANGE);
    }
    let divisor = 10u64.pow(u32::from(7u8.checked_sub(scale).ok_or(OUT_OF_RANGE)?));
    if !ticks.is_multiple_of(divisor) {
        return Err(INEXACT);
    }
    out.extend_from_slice(&(ticks / divisor).to_le_bytes()[..time_bytes(scale)]);
    Ok(())
}

fn put_date(out: &mut Vec<u8>, days: u32) -> Fits {
    if days > MAX_DAYS {
        return Err(OUT_OF_RANGE);
    }
    out.extend_from_slice(&days.to_le_bytes()[..3]);
    Ok(())
}

/// date, time, datetime2 and datetimeoffset without their length.
fn put_temporal(out: &mut Vec<u8>, data_type: &DataType, value: &Value) -> Fits {
    match (data_type, value) {
        (DataType::Date, Value::Date(days)) => put_date(out, *days),
        (DataType::Date, Value::DateTime { days, ticks: 0 }) => put_date(out, *days),
        (DataType::Time { scale }, Value::Time(ticks)) => put_time(out, *ticks, *scale),
        (DataType::DateTime2 { scale }, Value::DateTime { .. } | Value::Date(_)) => {
            let (days, ticks) = date_and_time(value)?;
            put_time(out, ticks, *scale)?;
            put_date(out, days)
        }
        (DataType::DateTimeOffset { scale }, Value::DateTimeOffset { days, ticks, offset_minutes }) => {
            // On the wire the date and time are UTC; the offset says how to show them.
            let local = i64::from(*days) * DAY_TICKS as i64 + *ticks as i64;
            let utc = local - i64::from(*offset_minutes) * 600_000_000;
            if utc < 0 || offset_minutes.unsigned_abs() > 14 * 60 || *ticks >= DAY_TICKS {
                return Err(OUT_OF_RANGE);
            }
            let utc = utc as u64;
            put_time(out, utc % DAY_TICKS, *scale)?;
            put_date(out, u32::try_from(utc / DAY_TICKS).map_err(|_| OUT_OF_RANGE)?)?;
            out.extend(offset_minutes.to_le_bytes());
            Ok(())
        }
        _ => Err(WRONG_KIND),
    }
}

/// sql_variant: the whole length, the base type, its properties, the bytes of the value without a length of their own.
fn put_variant(out: &mut Vec<u8>, value: &Value, collation: Collation) -> Fits {
    let guessed;
    let (data_type, value) = match value {
        Value::Variant(inner) => (&inner.0, &inner.1),
        other => {
            guessed = natural_type(other)?;
            (&guessed, other)
        }
    };
    if *value == Value::Null {
        out.extend(0u32.to_le_bytes());
        return Ok(());
    }
    let at = out.len();
    out.extend([0; 4]);
    put_variant_body(out, data_type, value, collation)?;
    let length = out.len() - at - 4;
    if length > 8016 {
        return Err(TOO_LONG);
    }
    out[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

fn put_variant_body(out: &mut Vec<u8>, data_type: &DataType, value: &Value, collation: Collation) -> Fits {
    use DataType as T;
    match data_type {
        T::Decimal { precision, scale } | T::Numeric { precision, scale } => {
            let type_id = if matches!(data_type, T::Decimal { .. }) { id::DECIMAL_N } else { id::NUMERIC_N };
            out.extend([type_id, 2, *precision, *scale]);
            put_decimal(out, value, *precision, *scale, usize::from(decimal_bytes(*precision)) - 1)
        }
        T::Date => {
            out.extend([id::DATE, 0]);
            put_temporal(out, data_type, value)
        }
        T::Time { scale } | T::DateTime2 { scale } | T::DateTimeOffset { scale } => {
            let type_id = match data_type {
                T::Time { .. } => id::TIME,
                T::DateTime2 { .. } => id::DATETIME2,
                _ => id::DATETIMEOFFSET,
            };
            out.extend([type_id, 1, *scale]);
            put_temporal(out, data_type, value)
        }
        T::UniqueIdentifier => {
            out.extend([id::GUID, 0]);
            put_guid(out, value)
        }
        T::Char(_) | T::VarChar(Length::Limited(_)) | T::NChar(_) | T::NVarChar(Length::Limited(_)) => {
            put_variant_string(out, data_type, text(value)?, collation)
        }
        T::Binary(size) | T::VarBinary(Length::Limited(size)) => {
            out.extend([if matches!(data_type, T::Binary(_)) { id::BINARY } else { id::VARBINARY }, 2]);
            out.extend(size.to_le_bytes());
            let bytes = bytes(value)?;
            out.extend_from_slice(bytes);
            if bytes.len() > usize::from(*size) { Err(TOO_LONG) } else { Ok(()) }
        }
        _ => {
            // The fixed-length types: their announcement is the base type, and they have no properties.
            let wire = Wire::new(data_type, false, collation);
            if !wire.fixed {
                return Err(Misfit("sql_variant cannot hold this type"));
            }
            wire.put(out);
            out.push(0);
            put(out, &wire, value)
        }
    }
}

fn put_variant_string(out: &mut Vec<u8>, data_type: &DataType, text: &str, collation: Collation) -> Fits {
    use DataType as T;
    let (type_id, most, unicode) = match data_type {
        T::Char(n) => (id::CHAR, *n, false),
        T::VarChar(Length::Limited(n)) => (id::VARCHAR, *n, false),
        T::NChar(n) => (id::NCHAR, n.saturating_mul(2), true),
        T::NVarChar(Length::Limited(n)) => (id::NVARCHAR, n.saturating_mul(2), true),
        _ => return Err(WRONG_KIND),
    };
    out.extend([type_id, 7]);
    out.extend(collation.0);
    out.extend(most.to_le_bytes());
    let at = out.len();
    if unicode {
        put_utf16(out, text);
    } else {
        collation.encode(text, out);
    }
    if out.len() - at > usize::from(most) { Err(TOO_LONG) } else { Ok(()) }
}

/// The type that a bare value has in a sql_variant.
pub(crate) fn natural_type(value: &Value) -> Result<DataType, Misfit> {
    use DataType as T;
    Ok(match value {
        Value::Null => T::Int,
        Value::Bit(_) => T::Bit,
        Value::Int(n) => match i32::try_from(*n) {
            Ok(_) => T::Int,
            Err(_) => T::BigInt,
        },
        Value::Float(_) => T::Float,
        Value::Decimal { scale, .. } => T::Decimal { precision: 38, scale: *scale },
        Value::Text(_) => T::NVarChar(Length::Limited(4000)),
        Value::Bytes(_) => T::VarBinary(Length::Limited(8000)),
        Value::UniqueIdentifier(_) => T::UniqueIdentifier,
        Value::Date(_) => T::Date,
        Value::Time(_) => T::Time { scale: 7 },
        Value::DateTime { .. } => T::DateTime2 { scale: 7 },
        Value::DateTimeOffset { .. } => T::DateTimeOffset { scale: 7 },
        Value::Variant(_) => return Err(Misfit("a sql_variant within a sql_variant")),
    })
}
