//! Sums over children, exact.

use std::io::Write;

use schemas::parse::string_value;
use schemas::plan::AggregateKind;

/// Digits that the lower half of a sum holds.
const HALF: u32 = 19;
const BASE: i128 = 10i128.pow(HALF);

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

    /// Adds a fragment. NULL, and text that is no number, adds nothing.
    pub(crate) fn add(&mut self, fragment: &[u8]) {
        match self {
            Self::Count(count) => *count += 1,
            Self::Exact { high, low, scale, .. } => {
                let text = string_value(fragment);
                let digits = text.as_ref().map_or(fragment, |text| text.as_bytes());
                let Some((mantissa, places)) = parse(digits) else { return };
                while places > *scale {
                    (*high, *low) = (*high * 10 + *low / (BASE / 10), *low % (BASE / 10) * 10);
                    *scale += 1;
                }
                let (mut h, mut l) = (mantissa / BASE, mantissa % BASE);
                for _ in places..*scale {
                    (h, l) = (h * 10 + l / (BASE / 10), l % (BASE / 10) * 10);
                }
                *high += h + (*low + l) / BASE;
                *low = (*low + l) % BASE;
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
    (!digits.is_empty()).then_some((if negative { -mantissa } else { mantissa }, places))
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

    proptest! {
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
