//! Exact numbers as a mantissa and a scale.

use crate::message;
use tds::SqlError;

pub(crate) fn power(scale: u32) -> i128 {
    10i128.checked_pow(scale).unwrap_or(i128::MAX)
}

/// The mantissa at another scale; rounds half away from zero, as CAST does. `None` when it does not fit.
pub(crate) fn rescale(mantissa: i128, from: u8, to: u8) -> Option<i128> {
    if to >= from {
        return mantissa.checked_mul(power(u32::from(to - from)));
    }
    let divisor = power(u32::from(from - to));
    let (quotient, rest) = (mantissa / divisor, mantissa % divisor);
    Some(if rest.abs() * 2 >= divisor { quotient + mantissa.signum() } else { quotient })
}

pub(crate) fn fits(mantissa: i128, precision: u8) -> bool {
    mantissa.unsigned_abs() < power(u32::from(precision)).unsigned_abs()
}

/// `-12.50` with the given scale.
pub(crate) fn text(mantissa: i128, scale: u8) -> String {
    let digits = mantissa.unsigned_abs().to_string();
    let scale = usize::from(scale);
    let sign = if mantissa < 0 { "-" } else { "" };
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

/// Reads `-12.5`, `+3`, `.5`; exponents only when `exponent` (float text). The mantissa and its own scale.
pub(crate) fn parse(input: &str) -> Option<(i128, u8)> {
    let s = input.trim();
    let (negative, digits) = match s.as_bytes().first()? {
        b'-' => (true, &s[1..]),
        b'+' => (false, &s[1..]),
        _ => (false, s),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty()) || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    // More digits than any type keeps: cut the fraction there.
    let fraction = &fraction[..fraction.len().min(38)];
    let mut all = String::with_capacity(whole.len() + fraction.len());
    all.push_str(whole.trim_start_matches('0'));
    all.push_str(fraction);
    let mantissa: i128 = if all.is_empty() { 0 } else { all.parse().ok()? };
    Some((if negative { -mantissa } else { mantissa }, fraction.len() as u8))
}

/// The nearest decimal of the given scale to a float.
pub(crate) fn from_float(value: f64, scale: u8) -> Option<i128> {
    if !value.is_finite() || value.abs() >= 1e38 {
        return None;
    }
    // Seventeen significant digits carry a double exactly enough; the text keeps 0.1 from becoming 0.1000000000000000055.
    let (mantissa, own) = parse(&format!("{value:.*}", usize::from(scale) + 1)).or_else(|| parse(&format!("{value:.0}")))?;
    rescale(mantissa, own, scale)
}

/// One operation of exact arithmetic, its result at `scale`.
pub(crate) fn operate(op: char, a: (i128, u8), b: (i128, u8), scale: u8) -> Result<i128, SqlError> {
    let overflow = || message::error(8115, 16, "Arithmetic overflow error converting expression to data type numeric.".into());
    match op {
        '+' | '-' | '%' => {
            let wide = a.1.max(b.1);
            let x = rescale(a.0, a.1, wide).ok_or_else(overflow)?;
            let y = rescale(b.0, b.1, wide).ok_or_else(overflow)?;
            let raw = match op {
                '+' => x.checked_add(y),
                '-' => x.checked_sub(y),
                _ if y == 0 => return Err(message::divide_by_zero()),
                _ => x.checked_rem(y),
            };
            raw.and_then(|m| rescale(m, wide, scale)).ok_or_else(overflow)
        }
        '*' => a.0.checked_mul(b.0).and_then(|m| rescale(m, a.1 + b.1, scale)).ok_or_else(overflow),
        _ => {
            if b.0 == 0 {
                return Err(message::divide_by_zero());
            }
            let shift = i32::from(scale) + i32::from(b.1) - i32::from(a.1);
            let numerator = if shift >= 0 { a.0.checked_mul(power(shift as u32)) } else { Some(a.0 / power((-shift) as u32)) };
            match numerator {
                Some(n) => Ok(n / b.0),
                // Too wide for 128 bits: a double has 15 good digits, which is more than such a quotient's users look at.
                None => {
                    from_float(a.0 as f64 / power(u32::from(a.1)) as f64 / (b.0 as f64 / power(u32::from(b.1)) as f64), scale)
                        .ok_or_else(overflow)
                }
            }
        }
    }
}
