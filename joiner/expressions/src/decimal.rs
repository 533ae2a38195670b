//! Exact decimals of up to 38 digits: what SQL Server's `decimal`, `numeric` and `money` hold.
//!
//! Sums, differences and products are exact or fail ([`None`]: more digits than there is room for); quotients are rounded half away from zero. Nothing goes through floating point.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Digits, at most: 10^38 fits 127 bits.
const DIGITS: u32 = 38;
/// Digits after the point that a quotient has at least.
const QUOTIENT_SCALE: u8 = 6;

/// `mantissa / 10^scale`. Keeps its scale: `1.50` is written as `1.50` and equals `1.5`.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    mantissa: i128,
    scale: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a decimal number of at most {DIGITS} digits")]
pub struct ParseDecimalError {
    text: String,
}

fn power(digits: u32) -> Option<i128> {
    if digits > DIGITS { None } else { 10i128.checked_pow(digits) }
}

impl Decimal {
    pub const ZERO: Self = Self { mantissa: 0, scale: 0 };

    pub const fn new(mantissa: i128, scale: u8) -> Self {
        Self { mantissa, scale }
    }

    /// The same number with so many digits after the point, rounded half away from zero where there were more.
    pub fn rescaled(self, scale: u8) -> Option<Self> {
        let mantissa = if scale >= self.scale {
            self.mantissa.checked_mul(power(u32::from(scale - self.scale))?)?
        } else {
            match power(u32::from(self.scale - scale)) {
                Some(divisor) => round_div(self.mantissa, divisor),
                None => 0,
            }
        };
        Some(Self { mantissa, scale })
    }

    /// Without zeros at the end of the fraction.
    fn stripped(mut self) -> Self {
        while self.scale > 0 && self.mantissa % 10 == 0 {
            self = Self { mantissa: self.mantissa / 10, scale: self.scale - 1 };
        }
        self
    }

    fn aligned(self, other: Self) -> Option<(i128, i128, u8)> {
        let align = |a: Self, b: Self| {
            let scale = a.scale.max(b.scale);
            Some((a.rescaled(scale)?.mantissa, b.rescaled(scale)?.mantissa, scale))
        };
        align(self, other).or_else(|| align(self.stripped(), other.stripped()))
    }

    pub fn plus(self, other: Self) -> Option<Self> {
        let (a, b, scale) = self.aligned(other)?;
        Self { mantissa: a.checked_add(b)?, scale }.bounded()
    }

    pub fn negated(self) -> Self {
        Self { mantissa: -self.mantissa, scale: self.scale }
    }

    pub fn times(self, other: Self) -> Option<Self> {
        let times = |a: Self, b: Self| {
            let scale = a.scale.checked_add(b.scale)?;
            Self { mantissa: a.mantissa.checked_mul(b.mantissa)?, scale }.bounded()
        };
        times(self, other).or_else(|| times(self.stripped(), other.stripped()))
    }

    /// Has six digits after the point, or as many as either side has; `None` for a division by zero as well.
    pub fn divided_by(self, other: Self) -> Option<Self> {
        let scale = self.scale.max(other.scale).max(QUOTIENT_SCALE);
        let divide = |a: Self, b: Self| {
            if b.mantissa == 0 {
                return None;
            }
            let shift = i32::from(scale) + i32::from(b.scale) - i32::from(a.scale);
            let mantissa = match u32::try_from(shift) {
                Ok(shift) => round_div(a.mantissa.checked_mul(power(shift)?)?, b.mantissa),
                Err(_) => round_div(a.mantissa, b.mantissa.checked_mul(power(shift.unsigned_abs())?)?),
            };
            Self { mantissa, scale }.bounded()
        };
        divide(self, other).or_else(|| divide(self.stripped(), other.stripped()))
    }

    /// What is left of a division that is cut off; it has the sign of `self`.
    pub fn remainder(self, other: Self) -> Option<Self> {
        let (a, b, scale) = self.aligned(other)?;
        Some(Self { mantissa: a.checked_rem(b)?, scale })
    }

    fn bounded(self) -> Option<Self> {
        let fits = self.mantissa.unsigned_abs() < 10u128.pow(DIGITS) && u32::from(self.scale) <= DIGITS;
        fits.then_some(self)
    }

    /// The whole part, cut off.
    pub fn truncated(self) -> i128 {
        power(u32::from(self.scale)).map_or(0, |divisor| self.mantissa / divisor)
    }

    /// The nearest float.
    pub fn to_f64(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }

    /// The shortest decimal that reads back to the same float.
    pub fn from_f64(number: f64) -> Option<Self> {
        if number.is_finite() { number.to_string().parse().ok() } else { None }
    }

    pub const fn is_negative(self) -> bool {
        self.mantissa < 0
    }
}

/// Rounds half away from zero.
fn round_div(a: i128, b: i128) -> i128 {
    let (quotient, remainder) = (a / b, a % b);
    let up = remainder.unsigned_abs() >= b.unsigned_abs() - remainder.unsigned_abs();
    if remainder != 0 && up { quotient + if (a < 0) == (b < 0) { 1 } else { -1 } } else { quotient }
}

impl From<i64> for Decimal {
    fn from(number: i64) -> Self {
        Self { mantissa: i128::from(number), scale: 0 }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        // Whole parts first; fractions then have room to be brought to one scale.
        let parts = |number: &Self| {
            let divisor = power(u32::from(number.scale)).unwrap_or(i128::MAX);
            let fraction = (number.mantissa % divisor) * power(DIGITS - u32::from(number.scale).min(DIGITS)).unwrap_or(1);
            (number.mantissa / divisor, fraction)
        };
        parts(self).cmp(&parts(other))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Decimal {}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = usize::from(self.scale);
        let digits = format!("{:0>width$}", self.mantissa.unsigned_abs(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{whole}{point}{fraction}")
    }
}

impl FromStr for Decimal {
    type Err = ParseDecimalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (negative, digits) = match text.strip_prefix('-') {
                Some(digits) => (true, digits),
                None => (false, text),
            };
            let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
                return None;
            }
            let mut mantissa = 0i128;
            for byte in whole.bytes().chain(fraction.bytes()) {
                mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
            }
            Self { mantissa: if negative { -mantissa } else { mantissa }, scale: u8::try_from(fraction.len()).ok()? }.bounded()
        };
        parse().ok_or_else(|| ParseDecimalError { text: text.chars().take(60).collect() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn arithmetic_is_exact() {
        let text = |number: Option<Decimal>| number.map(|number| number.to_string());
        let is = |number: Option<Decimal>, expected: &str| assert_eq!(text(number).as_deref(), Some(expected));
        is(decimal("0.1").plus(decimal("0.20")), "0.30");
        is(decimal("12345678901234567890.12").times(decimal("3")), "37037036703703703670.36");
        is(decimal("1").divided_by(decimal("3")), "0.333333");
        is(decimal("2").divided_by(decimal("3")), "0.666667");
        is(decimal("-2").divided_by(decimal("3")), "-0.666667");
        is(decimal("-7.5").remainder(decimal("2")), "-1.5");
        is(decimal("2.345").rescaled(2), "2.35");
        is(decimal("-2.345").rescaled(2), "-2.35");
        assert_eq!(decimal("1").divided_by(Decimal::ZERO), None);
        assert_eq!(decimal(&"9".repeat(38)).plus(decimal("1")), None);
        assert_eq!(decimal("-7.9").truncated(), -7);
        assert_eq!(decimal("1.50"), decimal("1.5"));
        for wrong in ["", "-", ".", "1e3", "1.2.3", "+1", &"9".repeat(39)] {
            assert!(wrong.parse::<Decimal>().is_err(), "{wrong}");
        }
        assert_eq!(Decimal::from_f64(0.1), Some(decimal("0.1")));
        assert_eq!(Decimal::from_f64(f64::NAN), None);
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_numbers(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000, p in 0u8..=30, q in 0u8..=30) {
            let (x, y) = (Decimal::new(i128::from(a), p), Decimal::new(i128::from(b), q));
            let common = |m: i64, s: u8| i128::from(m) * 10i128.pow(u32::from(30 - s));
            prop_assert_eq!(x.cmp(&y), common(a, p).cmp(&common(b, q)));
            prop_assert_eq!(x.to_string().parse::<Decimal>().unwrap().to_string(), x.to_string());
        }

        #[test]
        fn nothing_panics(a: i128, b: i128, p in 0u8..=38, q in 0u8..=38) {
            let limit = 10i128.pow(38);
            let (a, b) = (Decimal::new(a % limit, p), Decimal::new(b % limit, q));
            let _ = (a.plus(b), a.times(b), a.divided_by(b), a.remainder(b), a.cmp(&b), a.rescaled(q), a.to_f64());
        }
    }
}
