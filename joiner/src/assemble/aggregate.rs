//! Sums over children, exact.

use std::io::Write;

use schemas::parse::string_value;
use schemas::plan::AggregateKind;

/// Digits that the lower half of a sum holds.
const HALF: u32 = 19;
const BASE: i128 = 10i128.pow(HALF);
/// Digits after the point that any decimal of the source can have.
const PLACES: u32 = 38;

/// A running aggregate. Decimals of 38 digits are added in two halves, so that no sum of them can overflow.
#[derive(Debug, Clone)]
pub(crate) enum Running {
    Count(u64),
    Exact { high: i128, low: i128, scale: u32, text: bool },
    Float(f64),
}

impl Running {
    pub(crate) fn new(kind: AggregateKind) -> Self {
        match kind {
            AggregateKind::Count => Self::Count(0),
            AggregateKind::SumInt { .. } => Self::Exact { high: 0, low: 0, scale: 0, text: false },
            AggregateKind::SumDecimal { scale, .. } => Self::Exact { high: 0, low: 0, scale: u32::from(scale), text: true },
            AggregateKind::SumFloat { .. } => Self::Float(0.0),
        }
    }

    /// Adds a fragment. NULL, text that is no number, and a number of more digits than any column has, so that the sum cannot hold it, add nothing.
    pub(crate) fn add(&mut self, fragment: &[u8]) {
        match self {
            Self::Count(count) => *count += 1,
            Self::Exact { high, low, scale, .. } => {
                let text = string_value(fragment);
                let digits = text.as_ref().map_or(fragment, |text| text.as_bytes());
                let Some((mantissa, places)) = parse(digits) else { return };
                let common = places.max(*scale);
                let sum = || {
                    let (a, b) = widened((*high, *low), common - *scale)?;
                    let (c, d) = widened((mantissa / BASE, mantissa % BASE), common - places)?;
                    Some((a.checked_add(c)?.checked_add((b + d) / BASE)?, (b + d) % BASE))
                };
                if let Some(sum) = sum() {
                    ((*high, *low), *scale) = (sum, common);
                }
            }
            Self::Float(sum) => {
                if let Some(number) = std::str::from_utf8(fragment).ok().and_then(|text| text.parse::<f64>().ok()) {
                    *sum += number;
                }
            }
        }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, so the results of `write!` are of no interest.
        match self {
            Self::Count(count) => drop(write!(out, "{count}")),
            Self::Exact { high, low, scale, text } => {
                let (mut high, mut low) = (*high, *low);
                // One sign for both halves.
                if high > 0 && low < 0 {
                    (high, low) = (high - 1, low + BASE);
                } else if high < 0 && low > 0 {
                    (high, low) = (high + 1, low - BASE);
                }
                let sign = if high < 0 || low < 0 { "-" } else { "" };
                let digits = format!("{}{:019}", high.unsigned_abs(), low.unsigned_abs());
                let digits = format!("{:0>width$}", digits.trim_start_matches('0'), width = *scale as usize + 1);
                let (whole, fraction) = digits.split_at(digits.len() - *scale as usize);
                let quote = if *text { "\"" } else { "" };
                let point = if fraction.is_empty() { "" } else { "." };
                let _ = write!(out, "{quote}{sign}{whole}{point}{fraction}{quote}");
            }
            Self::Float(sum) => drop(serde_json::to_writer(out, sum)),
        }
    }
}

/// The halves of a number with that many more digits behind it; `None` when they do not fit.
fn widened((mut high, mut low): (i128, i128), digits: u32) -> Option<(i128, i128)> {
    for _ in 0..digits {
        (high, low) = (high.checked_mul(10)?.checked_add(low / (BASE / 10))?, low % (BASE / 10) * 10);
    }
    Some((high, low))
}

/// Digits with at most one point: the mantissa and how many digits follow the point.
fn parse(text: &[u8]) -> Option<(i128, u32)> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (mut mantissa, mut places, mut point) = (0i128, 0, false);
    for &byte in digits {
        match byte {
            b'0'..=b'9' => {
                mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                places += u32::from(point);
            }
            b'.' if !point => point = true,
            _ => return None,
        }
    }
    (!digits.is_empty() && places <= PLACES).then_some((if negative { -mantissa } else { mantissa }, places))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn sum(kind: AggregateKind, fragments: &[&str]) -> String {
        let mut running = Running::new(kind);
        fragments.iter().for_each(|fragment| running.add(fragment.as_bytes()));
        let mut out = Vec::new();
        running.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    const MONEY: AggregateKind = AggregateKind::SumDecimal { column: 0, scale: 2 };

    #[test]
    fn sums_are_exact() {
        assert_eq!(sum(MONEY, &[]), "\"0.00\"");
        assert_eq!(sum(MONEY, &["\"0.10\"", "\"0.20\"", "null", "\"-1.00\""]), "\"-0.70\"");
        assert_eq!(sum(MONEY, &["\"1.005\"", "\"1\"", "2"]), "\"4.005\"");
        let greatest = "\"99999999999999999999999999999999999.999\"";
        assert_eq!(sum(MONEY, &[greatest; 3]), "\"299999999999999999999999999999999999.997\"");
        assert_eq!(
            sum(AggregateKind::SumInt { column: 0 }, &["9223372036854775807", "9223372036854775807"]),
            "18446744073709551614"
        );
        assert_eq!(sum(AggregateKind::SumFloat { column: 0 }, &["0.5", "1e3"]), "1000.5");
        assert_eq!(sum(AggregateKind::Count, &["null", "1"]), "2");
    }

    #[test]
    fn numbers_that_no_column_holds_add_nothing() {
        let whole = format!("\"{}\"", "9".repeat(38));
        let fine = format!("\"0.{}1\"", "0".repeat(37));
        let finer = format!("\"0.{}\"", "0".repeat(100_000));
        assert_eq!(sum(MONEY, &["\"1.00\"", &finer]), "\"1.00\"");
        assert_eq!(sum(MONEY, &[&whole, &fine]), format!("\"{}.00\"", "9".repeat(38)));
        assert_eq!(sum(MONEY, &[&fine, &whole]), fine);
    }

    proptest! {
        #[test]
        fn no_fragments_panic(fragments in prop::collection::vec("\"?-?[0-9]{0,45}\\.?[0-9]{0,45}\"?", 0..6)) {
            let refs: Vec<&str> = fragments.iter().map(String::as_str).collect();
            sum(MONEY, &refs);
            sum(AggregateKind::SumInt { column: 0 }, &refs);
        }

        #[test]
        fn a_sum_is_that_of_the_mantissas(mantissas in prop::collection::vec(-(10i128.pow(30))..10i128.pow(30), 0..20)) {
            let fragments: Vec<String> = mantissas.iter().map(|m| {
                let digits = format!("{:0>3}", m.unsigned_abs());
                let (whole, fraction) = digits.split_at(digits.len() - 2);
                format!("\"{}{whole}.{fraction}\"", if *m < 0 { "-" } else { "" })
            }).collect();
            let refs: Vec<&str> = fragments.iter().map(String::as_str).collect();
            let text = sum(MONEY, &refs);
            let total: i128 = text.trim_matches('"').replace('.', "").parse().unwrap();
            prop_assert_eq!(total, mantissas.iter().sum::<i128>());
        }
    }
}
