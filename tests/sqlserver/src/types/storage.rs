//! Values to and from their SQLite form (see the table in [`super`]).

use rusqlite::types::{Value as Stored, ValueRef};
use tds::{DataType, Value};

use super::date::TICKS_PER_DAY;

/// uniqueidentifier's bytes in order of significance: SQL Server compares the last group first.
const GUID_ORDER: [usize; 16] = [10, 11, 12, 13, 14, 15, 8, 9, 7, 6, 5, 4, 3, 2, 1, 0];

pub(crate) fn guid_to_storage(guid: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|i| guid[GUID_ORDER[i]])
}

fn guid_from_storage(stored: &[u8]) -> [u8; 16] {
    let mut guid = [0; 16];
    for (i, byte) in stored.iter().take(16).enumerate() {
        guid[GUID_ORDER[i]] = *byte;
    }
    guid
}

pub(crate) fn wide_to_storage(mantissa: i128) -> [u8; 16] {
    ((mantissa as u128) ^ (1 << 127)).to_be_bytes()
}

pub(crate) fn wide_from_storage(bytes: &[u8]) -> i128 {
    let mut all = [0; 16];
    let n = bytes.len().min(16);
    all[..n].copy_from_slice(&bytes[..n]);
    (u128::from_be_bytes(all) ^ (1 << 127)) as i128
}

/// Whether decimals of this type lie as blobs.
pub(crate) fn is_wide(t: &DataType) -> bool {
    matches!(t, DataType::Decimal { precision, .. } | DataType::Numeric { precision, .. } if *precision > 18)
}

/// The scale at which a type's mantissas lie.
pub(crate) fn scale(t: &DataType) -> u8 {
    match t {
        DataType::Decimal { scale, .. } | DataType::Numeric { scale, .. } => *scale,
        DataType::Money | DataType::SmallMoney => 4,
        _ => 0,
    }
}

pub(crate) fn mantissa_to_storage(mantissa: i128, t: &DataType) -> Stored {
    if is_wide(t) { Stored::Blob(wide_to_storage(mantissa).to_vec()) } else { Stored::Integer(mantissa as i64) }
}

/// A value of type `t` as SQLite keeps it. The value has been converted to `t` before.
pub(crate) fn encode(value: &Value, t: &DataType) -> Stored {
    match value {
        Value::Null => Stored::Null,
        Value::Bit(b) => Stored::Integer(i64::from(*b)),
        Value::Int(i) => Stored::Integer(*i),
        Value::Float(f) => Stored::Real(*f),
        Value::Decimal { mantissa, scale: own } => {
            mantissa_to_storage(super::decimal::rescale(*mantissa, *own, scale(t)).unwrap_or(*mantissa), t)
        }
        Value::Text(s) => Stored::Text(s.clone()),
        Value::Bytes(b) => Stored::Blob(b.clone()),
        Value::UniqueIdentifier(g) => Stored::Blob(guid_to_storage(g).to_vec()),
        Value::Date(d) => Stored::Integer(i64::from(*d)),
        Value::Time(t) => Stored::Integer(*t as i64),
        Value::DateTime { days, ticks } => Stored::Integer(i64::from(*days) * TICKS_PER_DAY as i64 + *ticks as i64),
        Value::DateTimeOffset { days, ticks, offset_minutes } => {
            let local = i64::from(*days) * TICKS_PER_DAY as i64 + *ticks as i64;
            let utc = local - i64::from(*offset_minutes) * 600_000_000;
            let mut bytes = Vec::with_capacity(10);
            // Positive for every date of the type's range but the first hours of year 1: shifted, so that bytes order as numbers.
            bytes.extend_from_slice(&((utc as u64) ^ (1 << 63)).to_be_bytes());
            bytes.extend_from_slice(&offset_minutes.to_be_bytes());
            Stored::Blob(bytes)
        }
        Value::Variant(inner) => {
            let (own, value) = inner.as_ref();
            let mut bytes = super::code(own).to_be_bytes().to_vec();
            match encode(value, own) {
                Stored::Null => return Stored::Null,
                Stored::Integer(i) => bytes.extend_from_slice(&i.to_be_bytes()),
                Stored::Real(f) => bytes.extend_from_slice(&f.to_bits().to_be_bytes()),
                Stored::Text(s) => bytes.extend_from_slice(s.as_bytes()),
                Stored::Blob(b) => bytes.extend_from_slice(&b),
            }
            Stored::Blob(bytes)
        }
    }
}

fn eight(bytes: &[u8]) -> [u8; 8] {
    let mut all = [0; 8];
    let n = bytes.len().min(8);
    all[..n].copy_from_slice(&bytes[..n]);
    all
}

fn decode_variant(bytes: &[u8]) -> Value {
    let t = super::decode(i64::from_be_bytes(eight(bytes)));
    let rest = bytes.get(8..).unwrap_or_default();
    let value = if super::is_string(&t) {
        decode(ValueRef::Text(rest), &t)
    } else if super::is_float(&t) {
        decode(ValueRef::Real(f64::from_bits(u64::from_be_bytes(eight(rest)))), &t)
    } else if super::is_binary(&t) || is_wide(&t) || matches!(t, DataType::UniqueIdentifier | DataType::DateTimeOffset { .. }) {
        decode(ValueRef::Blob(rest), &t)
    } else {
        decode(ValueRef::Integer(i64::from_be_bytes(eight(rest))), &t)
    };
    Value::Variant(Box::new((t, value)))
}

fn integer(stored: i64, t: &DataType) -> Value {
    let split = || ((stored.div_euclid(TICKS_PER_DAY as i64)) as u32, stored.rem_euclid(TICKS_PER_DAY as i64) as u64);
    match t {
        DataType::Bit => Value::Bit(stored != 0),
        DataType::Real | DataType::Float => Value::Float(stored as f64),
        DataType::Decimal { .. } | DataType::Numeric { .. } | DataType::Money | DataType::SmallMoney => {
            Value::Decimal { mantissa: i128::from(stored), scale: scale(t) }
        }
        DataType::Date => Value::Date(stored as u32),
        DataType::Time { .. } => Value::Time(stored as u64),
        DataType::DateTime | DataType::SmallDateTime | DataType::DateTime2 { .. } => {
            let (days, ticks) = split();
            Value::DateTime { days, ticks }
        }
        _ if super::is_string(t) => Value::Text(stored.to_string()),
        _ => Value::Int(stored),
    }
}

/// [`decode`] into a value that may have a buffer to use again.
pub(crate) fn decode_into(stored: ValueRef<'_>, t: &DataType, value: &mut Value) {
    match (stored, t, &mut *value) {
        (
            ValueRef::Text(s),
            DataType::VarChar(_) | DataType::NVarChar(_) | DataType::Char(_) | DataType::NChar(_),
            Value::Text(buffer),
        ) => {
            buffer.clear();
            match std::str::from_utf8(s) {
                Ok(text) => buffer.push_str(text),
                Err(_) => buffer.push_str(&String::from_utf8_lossy(s)),
            }
            if let DataType::Char(n) | DataType::NChar(n) = t {
                pad(buffer, *n);
            }
        }
        (ValueRef::Blob(b), DataType::Binary(_) | DataType::VarBinary(_), Value::Bytes(buffer)) => {
            buffer.clear();
            buffer.extend_from_slice(b);
        }
        _ => *value = decode(stored, t),
    }
}

/// A stored value as type `t` has it.
pub(crate) fn decode(stored: ValueRef<'_>, t: &DataType) -> Value {
    match stored {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => integer(i, t),
        ValueRef::Real(f) if super::is_integer(t) => integer(f as i64, t),
        ValueRef::Real(f) => Value::Float(f),
        ValueRef::Text(s) => {
            let mut text = String::from_utf8_lossy(s).into_owned();
            if let DataType::Char(n) | DataType::NChar(n) = t {
                pad(&mut text, *n);
            }
            Value::Text(text)
        }
        ValueRef::Blob(b) => match t {
            DataType::UniqueIdentifier => Value::UniqueIdentifier(guid_from_storage(b)),
            DataType::Decimal { .. } | DataType::Numeric { .. } => {
                Value::Decimal { mantissa: wide_from_storage(b), scale: scale(t) }
            }
            DataType::DateTimeOffset { .. } => {
                let utc = (u64::from_be_bytes(eight(b)) ^ (1 << 63)) as i64;
                let offset_minutes = b.get(8..10).map_or(0, |o| i16::from_be_bytes([o[0], o[1]]));
                let local = utc + i64::from(offset_minutes) * 600_000_000;
                Value::DateTimeOffset {
                    days: local.div_euclid(TICKS_PER_DAY as i64) as u32,
                    ticks: local.rem_euclid(TICKS_PER_DAY as i64) as u64,
                    offset_minutes,
                }
            }
            DataType::SqlVariant => decode_variant(b),
            _ => Value::Bytes(b.to_vec()),
        },
    }
}

/// `char(n)` and `nchar(n)` are padded when they are read, so that what is stored stays short.
fn pad(text: &mut String, length: u16) {
    let units = if text.is_ascii() { text.len() } else { text.encode_utf16().count() };
    for _ in units..usize::from(length) {
        text.push(' ');
    }
}
