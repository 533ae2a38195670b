//! Arithmetic: exact decimals, integers that overflow as SQL Server's do, division by zero as an error.

use rusqlite::Connection;
use rusqlite::functions::Context;
use rusqlite::types::{Value as Stored, ValueRef};
use tds::{DataType, SqlError, Value};

use super::{int, is_null, scalar, string};
use crate::message;
use crate::types::convert::{Mode, check_integer, convert};
use crate::types::{self, decimal, storage};

/// The operand as mantissa and scale.
fn exact(ctx: &Context<'_>, i: usize, t: &DataType) -> (i128, u8) {
    match ctx.get_raw(i) {
        ValueRef::Integer(n) => (i128::from(n), storage::scale(t)),
        ValueRef::Blob(b) => (storage::wide_from_storage(b), storage::scale(t)),
        ValueRef::Real(f) => (decimal::from_float(f, storage::scale(t)).unwrap_or(0), storage::scale(t)),
        _ => (0, 0),
    }
}

fn float(ctx: &Context<'_>, i: usize) -> f64 {
    match ctx.get_raw(i) {
        ValueRef::Real(f) => f,
        ValueRef::Integer(n) => n as f64,
        _ => 0.0,
    }
}

fn out_of_range(t: &DataType) -> SqlError {
    message::error(8115, 16, format!("Arithmetic overflow error converting expression to data type {}.", types::name(t)))
}

fn arithmetic(ctx: &Context<'_>) -> Result<Stored, SqlError> {
    // arith(op, a, type of a, b, type of b, result type)
    if is_null(ctx, 1) || is_null(ctx, 3) {
        return Ok(Stored::Null);
    }
    let op = string(ctx, 0).and_then(|s| s.chars().next()).unwrap_or('+');
    let (a, b, out) = (types::decode(int(ctx, 2)), types::decode(int(ctx, 4)), types::decode(int(ctx, 5)));
    if types::is_float(&out) {
        let (x, y) = (float(ctx, 1), float(ctx, 3));
        if y == 0.0 && matches!(op, '/' | '%') {
            return Err(message::divide_by_zero());
        }
        let value = match op {
            '+' => x + y,
            '-' => x - y,
            '*' => x * y,
            '/' => x / y,
            _ => x % y,
        };
        return if value.is_finite() { Ok(Stored::Real(value)) } else { Err(out_of_range(&out)) };
    }
    if types::is_integer(&out) {
        let (x, y) = (int(ctx, 1), int(ctx, 3));
        let value = match op {
            '+' => x.checked_add(y),
            '-' => x.checked_sub(y),
            '*' => x.checked_mul(y),
            _ if y == 0 => return Err(message::divide_by_zero()),
            '/' => x.checked_div(y),
            _ => x.checked_rem(y),
        };
        return value.and_then(|v| check_integer(v, &out)).map(Stored::Integer).ok_or_else(|| out_of_range(&out));
    }
    let scale = storage::scale(&out);
    let mantissa = decimal::operate(op, exact(ctx, 1, &a), exact(ctx, 3, &b), scale)?;
    let fits = match out {
        DataType::Money => i64::try_from(mantissa).is_ok(),
        DataType::SmallMoney => i32::try_from(mantissa).is_ok(),
        _ => types::exact(&out).is_none_or(|(p, _)| decimal::fits(mantissa, p)),
    };
    if !fits {
        return Err(out_of_range(&DataType::Numeric { precision: 38, scale: 0 }));
    }
    Ok(storage::mantissa_to_storage(mantissa, &out))
}

/// ROUND(x, digits, truncate) and, with digits 0, CEILING (mode 1) and FLOOR (mode 2).
fn round(ctx: &Context<'_>) -> Result<Stored, SqlError> {
    if is_null(ctx, 0) || is_null(ctx, 2) {
        return Ok(Stored::Null);
    }
    let t = types::decode(int(ctx, 1));
    let (digits, mode) = (int(ctx, 2), int(ctx, 3));
    if types::is_float(&t) {
        let power = 10f64.powi(digits as i32);
        let x = float(ctx, 0) * power;
        let x = match mode {
            1 => x.ceil(),
            2 => x.floor(),
            3 => x.trunc(),
            _ => x.round(),
        };
        return Ok(Stored::Real(x / power));
    }
    let (mantissa, scale) = exact(ctx, 0, &t);
    let keep = digits.clamp(-38, i64::from(scale));
    let unit = decimal::power((i64::from(scale) - keep) as u32);
    let mut cut = mantissa / unit;
    let rest = mantissa % unit;
    match mode {
        1 if rest > 0 => cut += 1,
        2 if rest < 0 => cut -= 1,
        0 if rest.abs() * 2 >= unit => cut += mantissa.signum(),
        _ => {}
    }
    let value = cut * unit;
    if types::is_integer(&t) {
        return Ok(Stored::Integer(value as i64));
    }
    Ok(storage::mantissa_to_storage(value, &t))
}

pub(super) fn register(db: &Connection) -> rusqlite::Result<()> {
    scalar(db, "arith", 6, arithmetic)?;
    scalar(db, "tround", 4, round)?;
    // rng(x, type): an integer that must fit its type.
    scalar(db, "rng", 2, |ctx| {
        let t = types::decode(int(ctx, 1));
        match ctx.get_raw(0) {
            ValueRef::Null => Ok(Stored::Null),
            ValueRef::Integer(i) => check_integer(i, &t).map(Stored::Integer).ok_or_else(|| out_of_range(&t)),
            _ => Err(out_of_range(&t)),
        }
    })?;
    scalar(db, "dneg", 2, |ctx| {
        let t = types::decode(int(ctx, 1));
        Ok(match ctx.get_raw(0) {
            ValueRef::Null => Stored::Null,
            ValueRef::Real(f) => Stored::Real(-f),
            _ => storage::mantissa_to_storage(-exact(ctx, 0, &t).0, &t),
        })
    })?;
    scalar(db, "tabs", 2, |ctx| {
        let t = types::decode(int(ctx, 1));
        Ok(match ctx.get_raw(0) {
            ValueRef::Null => Stored::Null,
            ValueRef::Real(f) => Stored::Real(f.abs()),
            _ => storage::mantissa_to_storage(exact(ctx, 0, &t).0.abs(), &t),
        })
    })?;
    scalar(db, "tsign", 2, |ctx| {
        let t = types::decode(int(ctx, 1));
        let scale = decimal::power(u32::from(storage::scale(&t)));
        Ok(match ctx.get_raw(0) {
            ValueRef::Null => Stored::Null,
            ValueRef::Real(f) => Stored::Real(if f == 0.0 { 0.0 } else { f.signum() }),
            _ => storage::mantissa_to_storage(exact(ctx, 0, &t).0.signum() * scale, &t),
        })
    })?;
    // Floating point functions by name.
    scalar(db, "fmath", 3, |ctx| {
        if is_null(ctx, 1) || is_null(ctx, 2) {
            return Ok(Stored::Null);
        }
        let (x, y) = (float(ctx, 1), float(ctx, 2));
        let value = match string(ctx, 0).unwrap_or_default() {
            "sqrt" => x.sqrt(),
            "exp" => x.exp(),
            "log" => x.ln(),
            "logb" => x.log(y),
            "log10" => x.log10(),
            "power" => x.powf(y),
            "sin" => x.sin(),
            "cos" => x.cos(),
            "tan" => x.tan(),
            "asin" => x.asin(),
            "acos" => x.acos(),
            "atan" => x.atan(),
            "atn2" => x.atan2(y),
            "degrees" => x.to_degrees(),
            "radians" => x.to_radians(),
            _ => x,
        };
        if value.is_finite() {
            Ok(Stored::Real(value))
        } else {
            Err(message::error(3623, 16, "An invalid floating point operation occurred.".into()))
        }
    })?;
    scalar(db, "checksum", -1, |ctx| {
        let mut hash: u32 = 0x811c_9dc5;
        for i in 0..ctx.len() {
            let text = match ctx.get_raw(i) {
                ValueRef::Null => String::new(),
                ValueRef::Integer(n) => n.to_string(),
                ValueRef::Real(f) => f.to_string(),
                ValueRef::Text(t) => String::from_utf8_lossy(t).trim_end().to_lowercase(),
                ValueRef::Blob(b) => hex::encode(b),
            };
            for b in text.bytes().chain([0]) {
                hash = (hash ^ u32::from(b)).wrapping_mul(0x0100_0193);
            }
        }
        Ok(Stored::Integer(i64::from(hash as i32)))
    })?;
    scalar(db, "isnumeric", 2, |ctx| {
        let t = types::decode(int(ctx, 1));
        let value = storage::decode(ctx.get_raw(0), &t);
        let numeric = match value {
            Value::Null => false,
            Value::Text(ref s) => {
                !s.trim().is_empty()
                    && (s.trim().parse::<f64>().is_ok() || convert(value.clone(), &t, &DataType::Money, 0, Mode::Cast).is_ok())
            }
            _ => types::exact(&t).is_some() || types::is_float(&t),
        };
        Ok(Stored::Integer(i64::from(numeric)))
    })
}
