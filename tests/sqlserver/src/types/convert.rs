//! One conversion for CAST, CONVERT, assignment to columns and variables, and implicit conversion in expressions.

use tds::{DataType, Length, SqlError, Value};

use super::clr::{parse_udt, udt_text};
use super::date::{self, Moment, TICKS_PER_DAY};
use super::{decimal, declared, is_unicode, name};
use crate::message;

/// Who asks: CAST cuts strings that are too long, an assignment to a column refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Cast,
    Assign,
}

fn overflow(value: &Value, from: &DataType, to: &DataType) -> SqlError {
    match (value, to) {
        (Value::Text(s), DataType::Int) => {
            message::error(248, 16, format!("The conversion of the {} value '{s}' overflowed an int column.", name(from)))
        }
        (Value::Text(s), DataType::TinyInt) => message::error(
            244,
            16,
            format!("The conversion of the {} value '{s}' overflowed an INT1 column. Use a larger integer column.", name(from)),
        ),
        (Value::Text(s), DataType::SmallInt) => message::error(
            244,
            16,
            format!("The conversion of the {} value '{s}' overflowed an INT2 column. Use a larger integer column.", name(from)),
        ),
        (Value::Int(i), DataType::TinyInt | DataType::SmallInt) => {
            message::error(220, 16, format!("Arithmetic overflow error for data type {}, value = {i}.", name(to)))
        }
        (Value::Int(_), DataType::Int) => {
            message::error(8115, 16, "Arithmetic overflow error converting expression to data type int.".into())
        }
        _ => message::error(
            8115,
            16,
            format!(
                "Arithmetic overflow error converting {} to data type {}.",
                name(from),
                match to {
                    DataType::Decimal { .. } => "numeric",
                    t => name(t),
                }
            ),
        ),
    }
}

fn failed(value: &Value, from: &DataType, to: &DataType) -> SqlError {
    if super::is_temporal(to) && super::is_string(from) {
        return message::error(241, 16, "Conversion failed when converting date and/or time from character string.".into());
    }
    if *to == DataType::UniqueIdentifier && super::is_string(from) {
        return message::error(8169, 16, "Conversion failed when converting from a character string to uniqueidentifier.".into());
    }
    if super::exact(to).is_some() && !super::is_integer(to) && super::is_string(from) {
        return message::error(
            8114,
            16,
            format!(
                "Error converting data type {} to {}.",
                name(from),
                match to {
                    DataType::Decimal { .. } => "numeric",
                    t => name(t),
                }
            ),
        );
    }
    if super::is_float(to) && super::is_string(from) {
        return message::error(8114, 16, format!("Error converting data type {} to {}.", name(from), name(to)));
    }
    match value {
        Value::Text(s) => message::error(
            245,
            16,
            format!("Conversion failed when converting the {} value '{s}' to data type {}.", name(from), name(to)),
        ),
        _ => {
            message::error(529, 16, format!("Explicit conversion from data type {} to {} is not allowed.", name(from), name(to)))
        }
    }
}

/// `value`, of type `from`, as type `to`.
pub(crate) fn convert(value: Value, from: &DataType, to: &DataType, style: i64, mode: Mode) -> Result<Value, SqlError> {
    if let Value::Variant(inner) = value {
        if *to == DataType::SqlVariant {
            return Ok(Value::Variant(inner));
        }
        let (own, value) = *inner;
        return convert(value, &own, to, style, mode);
    }
    if value == Value::Null {
        return Ok(Value::Null);
    }
    match to {
        DataType::Bit => to_integer(&value, from, to).map(|i| Value::Bit(i != 0)),
        DataType::TinyInt | DataType::SmallInt | DataType::Int | DataType::BigInt => {
            let i = to_integer(&value, from, to)?;
            check_integer(i, to).map(Value::Int).ok_or_else(|| overflow(&value, from, to))
        }
        DataType::Real | DataType::Float => {
            to_float(&value, from, to).map(|f| Value::Float(if *to == DataType::Real { f64::from(f as f32) } else { f }))
        }
        DataType::Decimal { .. } | DataType::Numeric { .. } | DataType::Money | DataType::SmallMoney => {
            to_decimal(&value, from, to)
        }
        DataType::Char(_)
        | DataType::VarChar(_)
        | DataType::NChar(_)
        | DataType::NVarChar(_)
        | DataType::Text
        | DataType::NText
        | DataType::Xml => {
            let text = match (&value, from) {
                (Value::Bytes(b), DataType::Udt(_)) => udt_text(b, from)?,
                _ => to_text(&value, from, to, style)?,
            };
            fit_text(text, from, to, mode).map(Value::Text)
        }
        DataType::Udt(_) if matches!(value, Value::Text(_)) => {
            let Value::Text(text) = &value else { return Ok(Value::Null) };
            parse_udt(text, to, None).map(Value::Bytes)
        }
        DataType::Binary(_) | DataType::VarBinary(_) | DataType::Image | DataType::Udt(_) => {
            let bytes = to_bytes(&value, from, to, style)?;
            fit_bytes(bytes, to, mode).map(Value::Bytes)
        }
        DataType::UniqueIdentifier => to_guid(&value).ok_or_else(|| failed(&value, from, to)),
        DataType::SqlVariant => Ok(Value::Variant(Box::new((from.clone(), value)))),
        _ => to_temporal(&value, from, to, style),
    }
}

pub(crate) fn check_integer(i: i64, t: &DataType) -> Option<i64> {
    let fits = match t {
        DataType::TinyInt => (0..=255).contains(&i),
        DataType::SmallInt => i16::try_from(i).is_ok(),
        DataType::Int => i32::try_from(i).is_ok(),
        _ => true,
    };
    fits.then_some(i)
}

fn to_integer(value: &Value, from: &DataType, to: &DataType) -> Result<i64, SqlError> {
    match value {
        Value::Bit(b) => Ok(i64::from(*b)),
        Value::Int(i) => Ok(*i),
        Value::Float(f) if f.abs() < 9.3e18 => Ok(*f as i64),
        Value::Decimal { mantissa, scale } => {
            // Decimals are cut, money is rounded.
            let whole = if matches!(from, DataType::Money | DataType::SmallMoney) {
                decimal::rescale(*mantissa, *scale, 0)
            } else {
                Some(mantissa / decimal::power(u32::from(*scale)))
            };
            whole.and_then(|m| i64::try_from(m).ok()).ok_or_else(|| overflow(value, from, to))
        }
        Value::Text(s) => {
            let s = s.trim();
            if *to == DataType::Bit {
                match s.to_ascii_lowercase().as_str() {
                    "true" => return Ok(1),
                    "false" => return Ok(0),
                    _ => {}
                }
            }
            if s.is_empty() {
                return Ok(0);
            }
            match s.parse::<i64>() {
                Ok(i) => Ok(i),
                Err(e) if matches!(e.kind(), std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow) => {
                    Err(overflow(value, from, to))
                }
                Err(_) => Err(failed(value, from, to)),
            }
        }
        Value::Bytes(b) => {
            let width = match to {
                DataType::TinyInt | DataType::Bit => 1,
                DataType::SmallInt => 2,
                DataType::Int => 4,
                _ => 8,
            };
            let tail = &b[b.len().saturating_sub(width)..];
            let raw = tail.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
            Ok(match to {
                DataType::SmallInt => i64::from(raw as u16 as i16),
                DataType::Int => i64::from(raw as u32 as i32),
                _ => raw as i64,
            })
        }
        Value::DateTime { days, ticks } => {
            Ok(i64::from(*days) - i64::from(date::DAYS_1900) + i64::from(*ticks >= TICKS_PER_DAY / 2))
        }
        _ => Err(failed(value, from, to)),
    }
}

fn to_float(value: &Value, from: &DataType, to: &DataType) -> Result<f64, SqlError> {
    match value {
        Value::Float(f) => Ok(*f),
        Value::Decimal { mantissa, scale } => decimal::text(*mantissa, *scale).parse().map_err(|_| failed(value, from, to)),
        Value::Text(s) if s.trim().is_empty() => Ok(0.0),
        Value::Text(s) => s.trim().parse().map_err(|_| failed(value, from, to)),
        Value::DateTime { days, ticks } => {
            Ok((i64::from(*days) - i64::from(date::DAYS_1900)) as f64 + *ticks as f64 / TICKS_PER_DAY as f64)
        }
        _ => to_integer(value, from, to).map(|i| i as f64),
    }
}

fn to_decimal(value: &Value, from: &DataType, to: &DataType) -> Result<Value, SqlError> {
    let (precision, scale) = super::exact(to).unwrap_or((38, 0));
    let (mantissa, own) = match value {
        Value::Decimal { mantissa, scale } => (Some(*mantissa), *scale),
        Value::Float(f) => (decimal::from_float(*f, scale), scale),
        Value::Text(s) => {
            let cleaned: String = if matches!(to, DataType::Money | DataType::SmallMoney) {
                s.chars().filter(|c| !matches!(c, ',' | '$')).collect()
            } else {
                s.clone()
            };
            let (m, own) = decimal::parse(&cleaned).ok_or_else(|| failed(value, from, to))?;
            (Some(m), own)
        }
        _ => (Some(i128::from(to_integer(value, from, &DataType::BigInt)?)), 0),
    };
    let mantissa = mantissa.and_then(|m| decimal::rescale(m, own, scale)).ok_or_else(|| overflow(value, from, to))?;
    let fits = match to {
        DataType::Money => i64::try_from(mantissa).is_ok(),
        DataType::SmallMoney => i32::try_from(mantissa).is_ok(),
        _ => decimal::fits(mantissa, precision),
    };
    if !fits {
        return Err(overflow(value, from, to));
    }
    Ok(Value::Decimal { mantissa, scale })
}

fn units(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.encode_utf16().count() }
}

/// The longest prefix of at most `limit` UTF-16 code units.
pub(crate) fn prefix(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut used = 0;
    for (i, c) in text.char_indices() {
        used += c.len_utf16();
        if used > limit {
            return &text[..i];
        }
    }
    text
}

fn fit_text(mut text: String, from: &DataType, to: &DataType, mode: Mode) -> Result<String, SqlError> {
    if !is_unicode(to) && !text.is_ascii() {
        // Latin1 code page: what it lacks becomes a question mark.
        text = text.chars().map(|c| if tds_latin1(c) { c } else { '?' }).collect();
    }
    let Some(limit) = (match to {
        DataType::Char(n) | DataType::NChar(n) => Some(*n),
        DataType::VarChar(Length::Limited(n)) | DataType::NVarChar(Length::Limited(n)) => Some(*n),
        _ => None,
    }) else {
        return Ok(text);
    };
    if matches!(to, DataType::Char(_) | DataType::NChar(_)) {
        text.truncate(text.trim_end_matches(' ').len());
    }
    let limit = usize::from(limit);
    if units(&text) <= limit {
        return Ok(text);
    }
    if mode == Mode::Assign {
        // Blanks that do not fit are dropped without a word.
        let kept = prefix(&text, limit).len();
        if text[kept..].chars().all(|c| c == ' ') {
            text.truncate(kept);
            return Ok(text);
        }
        return Err(message::truncated(prefix(&text, limit)));
    }
    if !super::is_string(from) && !super::is_binary(from) && matches!(from, DataType::UniqueIdentifier) {
        return Err(message::error(8170, 16, "Insufficient result space to convert uniqueidentifier value to char.".into()));
    }
    if super::exact(from).is_some() || super::is_float(from) {
        if matches!(from, DataType::Decimal { .. } | DataType::Numeric { .. }) || super::is_float(from) {
            return Err(message::error(
                8115,
                16,
                format!("Arithmetic overflow error converting {} to data type {}.", name(from), name(to)),
            ));
        }
        return Ok("*".into());
    }
    text.truncate(prefix(&text, limit).len());
    Ok(text)
}

/// Whether code page 1252 has the character.
fn tds_latin1(c: char) -> bool {
    (c as u32) < 0x80 || (0xA0..=0xFF).contains(&(c as u32)) || "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ".contains(c)
}

fn fit_bytes(mut bytes: Vec<u8>, to: &DataType, mode: Mode) -> Result<Vec<u8>, SqlError> {
    let limit = match to {
        DataType::Binary(n) | DataType::VarBinary(Length::Limited(n)) => usize::from(*n),
        _ => return Ok(bytes),
    };
    if bytes.len() > limit {
        if mode == Mode::Assign && bytes[limit..].iter().any(|b| *b != 0) {
            return Err(message::truncated(""));
        }
        bytes.truncate(limit);
    }
    if matches!(to, DataType::Binary(_)) {
        bytes.resize(limit, 0);
    }
    Ok(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    ::hex::encode_upper(bytes)
}

pub(crate) fn guid_text(guid: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*guid).to_string().to_ascii_uppercase()
}

fn float_text(f: f64, style: i64) -> String {
    if style == 3 {
        return format!("{f:e}");
    }
    if f == 0.0 {
        return "0".into();
    }
    let exponent = f.abs().log10().floor() as i32;
    if (-5..6).contains(&exponent) {
        let text = format!("{f:.*}", (5 - exponent).max(0) as usize);
        let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        return trimmed.to_string();
    }
    let text = format!("{f:.5e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:03}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

pub(crate) fn to_text(value: &Value, from: &DataType, to: &DataType, style: i64) -> Result<String, SqlError> {
    Ok(match value {
        Value::Text(s) => s.clone(),
        Value::Bit(b) => {
            if *b {
                "1".into()
            } else {
                "0".into()
            }
        }
        Value::Int(i) => i.to_string(),
        Value::Float(f) => float_text(*f, style),
        Value::Decimal { mantissa, scale } => {
            if matches!(from, DataType::Money | DataType::SmallMoney) && style != 2 {
                let cents = decimal::rescale(*mantissa, *scale, 2).unwrap_or(*mantissa);
                decimal::text(cents, 2)
            } else {
                decimal::text(*mantissa, *scale)
            }
        }
        Value::UniqueIdentifier(g) => guid_text(g),
        Value::Bytes(b) => match style {
            1 => format!("0x{}", hex(b)),
            2 => hex(b),
            _ if is_unicode(to) => String::from_utf16_lossy(
                &b.chunks(2).map(|c| u16::from_le_bytes([c[0], c.get(1).copied().unwrap_or(0)])).collect::<Vec<_>>(),
            ),
            _ => b.iter().map(|byte| char::from(*byte)).collect(),
        },
        Value::Variant(inner) => to_text(&inner.1, &inner.0, to, style)?,
        Value::Null => String::new(),
        _ => temporal_text(value, from, style).ok_or_else(|| failed(value, from, to))?,
    })
}

fn temporal_text(value: &Value, from: &DataType, style: i64) -> Option<String> {
    let m = date::moment(value)?;
    let (y, mo, d) = date::civil(m.days);
    let scale = match from {
        DataType::Time { scale } | DataType::DateTime2 { scale } | DataType::DateTimeOffset { scale } => *scale,
        DataType::DateTime => 3,
        _ => 0,
    };
    // Milliseconds of a datetime are rounded, not cut: .0066667 is .007.
    let ticks = if *from == DataType::DateTime { date::round_ticks(m.ticks, 3) } else { m.ticks };
    let clock = |scale: u8| date::text_time(ticks, scale);
    let (hour, minute) = (ticks / 36_000_000_000, ticks / 600_000_000 % 60);
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
    let half = if hour < 12 { "AM" } else { "PM" };
    let old = matches!(from, DataType::DateTime | DataType::SmallDateTime);
    let month = date::MONTHS.get(mo as usize - 1).map_or("", |m| &m[..3]);
    let iso = date::text_date(m.days);
    let zone = if matches!(from, DataType::DateTimeOffset { .. }) {
        format!(" {}", date::text_offset(m.offset_minutes))
    } else {
        String::new()
    };
    let style = match (style, from) {
        (0, DataType::Date) => 23,
        (0, DataType::Time { .. }) => return Some(clock(scale)),
        (0, _) if !old => 121,
        (s, _) => s,
    };
    let date_only = *from == DataType::Date;
    Some(match style {
        1 => format!("{mo:02}/{d:02}/{:02}", y % 100),
        2 => format!("{:02}.{mo:02}.{d:02}", y % 100),
        3 => format!("{d:02}/{mo:02}/{:02}", y % 100),
        5 => format!("{d:02}-{mo:02}-{:02}", y % 100),
        10 => format!("{mo:02}-{d:02}-{:02}", y % 100),
        12 => format!("{:02}{mo:02}{d:02}", y % 100),
        8 | 24 | 108 => clock(0),
        14 | 114 => clock(3).replacen('.', ":", 1),
        20 | 120 if date_only => iso,
        20 | 120 => format!("{iso} {}", clock(0)),
        21 | 25 | 121 if date_only => iso,
        21 | 25 | 121 if matches!(from, DataType::Time { .. }) => clock(scale),
        21 | 25 | 121 if *from == DataType::SmallDateTime => format!("{iso} {}", clock(3)),
        21 | 25 | 121 => format!("{iso} {}{zone}", clock(scale)),
        23 => iso,
        101 => format!("{mo:02}/{d:02}/{y:04}"),
        102 => format!("{y:04}.{mo:02}.{d:02}"),
        103 => format!("{d:02}/{mo:02}/{y:04}"),
        104 => format!("{d:02}.{mo:02}.{y:04}"),
        105 => format!("{d:02}-{mo:02}-{y:04}"),
        106 => format!("{d:02} {month} {y:04}"),
        107 => format!("{month} {d:02}, {y:04}"),
        110 => format!("{mo:02}-{d:02}-{y:04}"),
        111 => format!("{y:04}/{mo:02}/{d:02}"),
        112 => format!("{y:04}{mo:02}{d:02}"),
        126 | 127 if date_only => iso,
        126 | 127 => {
            let fraction = ticks % date::TICKS_PER_SECOND;
            let time = if old && fraction == 0 { clock(0) } else { clock(scale) };
            let zone = match (style, from) {
                (127, DataType::DateTimeOffset { .. }) => "Z".to_string(),
                (_, DataType::DateTimeOffset { .. }) => date::text_offset(m.offset_minutes),
                _ => String::new(),
            };
            format!("{iso}T{time}{zone}")
        }
        9 | 109 => format!(
            "{month} {d:>2} {y:04} {twelve:>2}:{minute:02}:{:02}:{:03}{half}",
            ticks / 10_000_000 % 60,
            ticks / 10_000 % 1000
        ),
        13 | 113 => format!("{d:02} {month} {y:04} {}", clock(3).replacen('.', ":", 1)),
        _ => format!("{month} {d:>2} {y:04} {twelve:>2}:{minute:02}{half}"),
    })
}

fn to_bytes(value: &Value, from: &DataType, to: &DataType, style: i64) -> Result<Vec<u8>, SqlError> {
    Ok(match value {
        Value::Bytes(b) => b.clone(),
        Value::Text(s) if style == 1 || style == 2 => {
            let digits = if style == 1 { s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) } else { Some(s.as_str()) };
            digits
                .and_then(|d| ::hex::decode(d).ok())
                .ok_or_else(|| message::error(8114, 16, format!("Error converting data type {} to {}.", name(from), name(to))))?
        }
        Value::Text(s) if is_unicode(from) => s.encode_utf16().flat_map(u16::to_le_bytes).collect(),
        Value::Text(s) => s.chars().map(|c| if (c as u32) < 256 { c as u8 } else { b'?' }).collect(),
        Value::Bit(b) => vec![u8::from(*b)],
        Value::Int(i) => {
            let all = i.to_be_bytes();
            let width = match from {
                DataType::TinyInt => 1,
                DataType::SmallInt => 2,
                DataType::Int => 4,
                _ => 8,
            };
            let mut bytes = all[8 - width..].to_vec();
            if let DataType::Binary(n) | DataType::VarBinary(Length::Limited(n)) = to {
                // Numbers are aligned to the right: cut or padded at the front.
                let n = usize::from(*n);
                if bytes.len() > n {
                    bytes.drain(..bytes.len() - n);
                } else if matches!(to, DataType::Binary(_)) {
                    let mut padded = vec![0; n - bytes.len()];
                    padded.append(&mut bytes);
                    bytes = padded;
                }
            }
            bytes
        }
        Value::UniqueIdentifier(g) => uuid::Uuid::from_bytes(*g).to_bytes_le().to_vec(),
        Value::Float(f) => f.to_bits().to_be_bytes().to_vec(),
        _ => return Err(failed(value, from, &parse_hint(to))),
    })
}

fn parse_hint(to: &DataType) -> DataType {
    to.clone()
}

fn to_guid(value: &Value) -> Option<Value> {
    match value {
        Value::UniqueIdentifier(g) => Some(Value::UniqueIdentifier(*g)),
        Value::Text(s) => uuid::Uuid::parse_str(prefix(s.trim().trim_start_matches('{').trim_end_matches('}'), 36))
            .ok()
            .map(|u| Value::UniqueIdentifier(*u.as_bytes())),
        Value::Bytes(b) => {
            let mut all = [0; 16];
            let n = b.len().min(16);
            all[..n].copy_from_slice(&b[..n]);
            Some(Value::UniqueIdentifier(*uuid::Uuid::from_bytes_le(all).as_bytes()))
        }
        _ => None,
    }
}

fn to_temporal(value: &Value, from: &DataType, to: &DataType, style: i64) -> Result<Value, SqlError> {
    let moment = match value {
        Value::Text(s) => parse_styled(s, style).ok_or_else(|| failed(value, from, to))?,
        Value::Int(_) | Value::Bit(_) | Value::Float(_) | Value::Decimal { .. }
            if matches!(to, DataType::DateTime | DataType::SmallDateTime) =>
        {
            let days = to_float(value, from, &DataType::Float)?;
            Moment {
                days: i64::from(date::DAYS_1900) + days.floor() as i64,
                ticks: ((days - days.floor()) * TICKS_PER_DAY as f64).round() as u64,
                offset_minutes: 0,
            }
        }
        _ => {
            let m = date::moment(value).ok_or_else(|| {
                message::error(206, 16, format!("Operand type clash: {} is incompatible with {}", declared(from), name(to)))
            })?;
            match (from, to) {
                (DataType::Date, DataType::Time { .. }) | (DataType::Time { .. }, DataType::Date) => {
                    return Err(message::error(
                        206,
                        16,
                        format!("Operand type clash: {} is incompatible with {}", name(from), name(to)),
                    ));
                }
                _ => m,
            }
        }
    };
    date::value(moment, to).ok_or_else(|| {
        message::error(
            242,
            16,
            format!(
                "The conversion of a {} data type to a {} data type resulted in an out-of-range value.",
                name(from),
                name(to)
            ),
        )
    })
}

fn parse_styled(text: &str, style: i64) -> Option<Moment> {
    // British and German order: day first.
    if matches!(style, 103..=105 | 3..=5) {
        let parts: Vec<&str> = text.trim().split(['/', '.', '-']).collect();
        if let [d, m, y] = parts.as_slice() {
            return date::parse(&format!("{m}/{d}/{y}"));
        }
    }
    date::parse(text)
}
