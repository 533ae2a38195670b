//! What a value is carried as in the binary encodings, between [`Value`] and the bytes: a handful of scalars that Avro and Protobuf both have.
//!
//! | type | carried as |
//! |---|---|
//! | bit | boolean |
//! | tinyint … bigint | whole number |
//! | real, float | IEEE 754 of 32 and 64 bits |
//! | decimal to 18 digits, money, smallmoney | the number times 10^scale |
//! | decimal past 18 digits | the same, as big-endian two's complement |
//! | text, xml, json, vector, hierarchyid, geometry, geography | text |
//! | binary, varbinary, image, rowversion | bytes |
//! | uniqueidentifier | its 16 bytes, in the order of the text form |
//! | date | days since 1970-01-01 |
//! | time | since midnight, in the unit of the declared scale |
//! | datetime2, datetime, smalldatetime | since 1970-01-01T00:00:00, local, in the unit of the declared scale |
//! | datetimeoffset | the instant since 1970-01-01T00:00:00Z in units of 100 ns, and the offset in minutes |
//! | sql_variant | the value as JSON |
//!
//! The unit is a millisecond for scales to 3, a microsecond to 6, and 100 nanoseconds for 7 ([`Unit`]).
//!
//! Scale and unit are the column's, so a value that is not of its column's type cannot be carried: [`Carried::take`] says so, and the event is written as JSON instead. What is
//! carried comes back as exactly the JSON text that [`Value::write_json`] writes.

use std::borrow::Cow;

use crate::json;
use crate::table::SqlType;
use crate::value::Value;

/// 1970-01-01 in days since 0001-01-01.
const EPOCH_DAYS: i64 = 719_162;
const TICKS_PER_DAY: i64 = 864_000_000_000;
const TICKS_PER_MINUTE: i64 = 600_000_000;
/// The last day that SQL Server knows, 9999-12-31.
const LAST_DAY: i64 = 3_652_058;
/// Digits that a number of 64 bits holds whatever they are.
const SMALL_DIGITS: u8 = 18;

/// The unit of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Microseconds,
    Ticks,
}

impl Unit {
    const fn of_scale(scale: u8) -> Self {
        match scale {
            0..=3 => Self::Milliseconds,
            4..=6 => Self::Microseconds,
            _ => Self::Ticks,
        }
    }

    /// Ticks of 100 nanoseconds.
    const fn ticks(self) -> i64 {
        match self {
            Self::Milliseconds => 10_000,
            Self::Microseconds => 10,
            Self::Ticks => 1,
        }
    }
}

/// How the values of a column are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    Bool,
    Int,
    Real,
    Float,
    /// In 64 bits.
    Small {
        scale: u8,
    },
    Decimal {
        scale: u8,
    },
    Text,
    Bytes,
    Uuid,
    Date,
    Time {
        scale: u8,
    },
    DateTime {
        scale: u8,
    },
    DateTimeOffset {
        scale: u8,
    },
    Json,
}

/// A value on its way.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar<'a> {
    Bool(bool),
    Int(i64),
    Real(f32),
    Float(f64),
    Wide(i128),
    Bytes(Cow<'a, [u8]>),
    Moment { utc: i64, offset_minutes: i32 },
}

impl Carried {
    pub(super) const fn of(sql_type: SqlType) -> Self {
        match sql_type {
            SqlType::Bit => Self::Bool,
            SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Self::Int,
            SqlType::Real => Self::Real,
            SqlType::Float => Self::Float,
            SqlType::Decimal { precision, scale } if precision <= SMALL_DIGITS => Self::Small { scale },
            SqlType::Decimal { scale, .. } => Self::Decimal { scale },
            SqlType::Money | SqlType::SmallMoney => Self::Small { scale: 4 },
            SqlType::Binary(_) | SqlType::VarBinary(_) | SqlType::Image | SqlType::RowVersion => Self::Bytes,
            SqlType::UniqueIdentifier => Self::Uuid,
            SqlType::Date => Self::Date,
            SqlType::Time { scale } => Self::Time { scale },
            SqlType::DateTime => Self::DateTime { scale: 3 },
            SqlType::SmallDateTime => Self::DateTime { scale: 0 },
            SqlType::DateTime2 { scale } => Self::DateTime { scale },
            SqlType::DateTimeOffset { scale } => Self::DateTimeOffset { scale },
            SqlType::SqlVariant => Self::Json,
            SqlType::Char(_)
            | SqlType::VarChar(_)
            | SqlType::NChar(_)
            | SqlType::NVarChar(_)
            | SqlType::Text
            | SqlType::NText
            | SqlType::Xml
            | SqlType::HierarchyId
            | SqlType::Geometry
            | SqlType::Geography
            | SqlType::Json
            | SqlType::Vector(_) => Self::Text,
        }
    }

    /// The unit of a time, of which a schema has to speak.
    pub(super) const fn unit(self) -> Option<Unit> {
        match self {
            Self::Time { scale } | Self::DateTime { scale } => Some(Unit::of_scale(scale)),
            Self::DateTimeOffset { .. } => Some(Unit::Ticks),
            _ => None,
        }
    }

    /// `None`: not a value of this type, or one that the database does not know. NULL and what is unavailable are the encodings' own affair.
    pub(super) fn take(self, value: &Value) -> Option<Scalar<'_>> {
        Some(match (self, value) {
            (Self::Bool, Value::Bool(value)) => Scalar::Bool(*value),
            (Self::Int, Value::Int(value)) => Scalar::Int(*value),
            (Self::Real, Value::Real(value)) => Scalar::Real(*value),
            (Self::Float, Value::Float(value)) => Scalar::Float(*value),
            (Self::Small { scale }, Value::Decimal { mantissa, scale: found }) if scale == *found => {
                Scalar::Int(i64::try_from(*mantissa).ok()?)
            }
            (Self::Decimal { scale }, Value::Decimal { mantissa, scale: found }) if scale == *found => Scalar::Wide(*mantissa),
            (Self::Text, Value::Text(text)) => Scalar::Bytes(Cow::Borrowed(text.as_bytes())),
            (Self::Bytes, Value::Bytes(bytes)) => Scalar::Bytes(Cow::Borrowed(bytes)),
            (Self::Uuid, Value::Uuid(bytes)) => Scalar::Bytes(Cow::Borrowed(bytes)),
            (Self::Date, Value::Date(days)) => Scalar::Int(i64::from(day(i64::from(*days))?) - EPOCH_DAYS),
            (Self::Time { scale }, Value::Time { ticks, scale: found }) if scale == *found => {
                let ticks = i64::try_from(*ticks).ok().filter(|ticks| *ticks < TICKS_PER_DAY)?;
                Scalar::Int(ticks / Unit::of_scale(scale).ticks())
            }
            (Self::DateTime { scale }, Value::DateTime { days, ticks, scale: found }) if scale == *found => {
                Scalar::Int(since_epoch(*days, *ticks)?.div_euclid(Unit::of_scale(scale).ticks()))
            }
            (Self::DateTimeOffset { scale }, Value::DateTimeOffset { days, ticks, scale: found, offset_minutes })
                if scale == *found =>
            {
                let utc = since_epoch(*days, *ticks)? - i64::from(*offset_minutes) * TICKS_PER_MINUTE;
                Scalar::Moment { utc, offset_minutes: i32::from(*offset_minutes) }
            }
            (Self::Json, value) => {
                let mut text = Vec::new();
                value.write_json(&mut text);
                Scalar::Bytes(Cow::Owned(text))
            }
            _ => return None,
        })
    }

    /// Appends the value as JSON, exactly as [`Value::write_json`] does. `None`: no value of this type.
    pub(super) fn write(self, scalar: &Scalar<'_>, out: &mut Vec<u8>) -> Option<()> {
        match (self, scalar) {
            (Self::Text, Scalar::Bytes(bytes)) => json::write_string(out, std::str::from_utf8(bytes).ok()?),
            (Self::Int, Scalar::Int(number)) => json::write_integer(out, *number),
            (Self::Json, Scalar::Bytes(bytes)) => {
                crate::parse::check_value(bytes)?;
                out.extend_from_slice(bytes);
            }
            (carried, scalar) => carried.value(scalar)?.write_json(out),
        }
        Some(())
    }

    /// The value itself; text and JSON have been dealt with.
    fn value(self, scalar: &Scalar<'_>) -> Option<Value> {
        Some(match (self, scalar) {
            (Self::Bool, Scalar::Bool(value)) => Value::Bool(*value),
            (Self::Real, Scalar::Real(value)) => Value::Real(*value),
            (Self::Float, Scalar::Float(value)) => Value::Float(*value),
            (Self::Small { scale }, Scalar::Int(mantissa)) => Value::Decimal { mantissa: i128::from(*mantissa), scale },
            (Self::Decimal { scale }, Scalar::Wide(mantissa)) => Value::Decimal { mantissa: *mantissa, scale },
            (Self::Bytes, Scalar::Bytes(bytes)) => Value::Bytes(bytes.to_vec()),
            (Self::Uuid, Scalar::Bytes(bytes)) => Value::Uuid(bytes.as_ref().try_into().ok()?),
            (Self::Date, Scalar::Int(days)) => Value::Date(day(days.checked_add(EPOCH_DAYS)?)?),
            (Self::Time { scale }, Scalar::Int(units)) => {
                let ticks = units.checked_mul(Unit::of_scale(scale).ticks())?;
                let ticks = u64::try_from(ticks).ok().filter(|_| ticks < TICKS_PER_DAY)?;
                Value::Time { ticks, scale }
            }
            (Self::DateTime { scale }, Scalar::Int(units)) => {
                let (days, ticks) = moment(units.checked_mul(Unit::of_scale(scale).ticks())?)?;
                Value::DateTime { days, ticks, scale }
            }
            (Self::DateTimeOffset { scale }, Scalar::Moment { utc, offset_minutes }) => {
                let offset_minutes = i16::try_from(*offset_minutes).ok()?;
                let (days, ticks) = moment(utc.checked_add(i64::from(offset_minutes) * TICKS_PER_MINUTE)?)?;
                Value::DateTimeOffset { days, ticks, scale, offset_minutes }
            }
            _ => return None,
        })
    }
}

fn day(days: i64) -> Option<u32> {
    u32::try_from(days).ok().filter(|_| days <= LAST_DAY)
}

/// Ticks since 1970-01-01T00:00:00 of days since 0001-01-01 and ticks since midnight.
fn since_epoch(days: u32, ticks: u64) -> Option<i64> {
    let ticks = i64::try_from(ticks).ok().filter(|ticks| *ticks < TICKS_PER_DAY)?;
    Some((i64::from(day(i64::from(days))?) - EPOCH_DAYS) * TICKS_PER_DAY + ticks)
}

fn moment(ticks: i64) -> Option<(u32, u64)> {
    let days = day(ticks.div_euclid(TICKS_PER_DAY) + EPOCH_DAYS)?;
    Some((days, ticks.rem_euclid(TICKS_PER_DAY).cast_unsigned()))
}

/// The shortest big-endian two's complement of a number.
pub(super) fn write_wide(number: i128, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    let sign = if number < 0 { 0xff } else { 0 };
    let redundant = bytes.windows(2).take_while(|pair| pair[0] == sign && (pair[1] ^ sign) & 0x80 == 0).count();
    out.extend_from_slice(&bytes[redundant..]);
}

pub(super) fn wide_length(number: i128) -> usize {
    let magnitude = if number < 0 { !number } else { number };
    (128 - magnitude.leading_zeros() as usize) / 8 + 1
}

pub(super) fn read_wide(bytes: &[u8]) -> Option<i128> {
    let (&first, _) = bytes.split_first()?;
    if bytes.len() > 16 {
        return None;
    }
    let mut number = [if first & 0x80 == 0 { 0 } else { 0xff }; 16];
    number[16 - bytes.len()..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(number))
}
