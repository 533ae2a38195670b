//! Aggregates over children; sums are exact.

use std::cmp::Ordering;
use std::io::Write;

use expressions::{Decimal, Type, Value};
use schemas::parse::string_value;
use schemas::plan::AggregateKind;

use super::put;

/// Digits that the lower half of a sum holds.
const HALF: u32 = 19;
const BASE: i128 = 10i128.pow(HALF);
/// Digits after the point that any decimal of the source can have.
const PLACES: u32 = 38;

/// A running aggregate. Decimals of 38 digits are added in two halves, so that no sum of them can overflow.
#[derive(Debug)]
pub(crate) enum Running {
    Count(u64),
    Exact {
        high: i128,
        low: i128,
        scale: u32,
        text: bool,
    },
    Float(f64),
    /// The sum, and how many values there were.
    Average(Box<Running>, u64),
    /// The best value so far, and as it stands in the row.
    Best {
        greatest: bool,
        best: Option<(Value<'static>, Vec<u8>)>,
    },
    Distinct(Vec<Vec<u8>>),
    Truth {
        all: bool,
        truth: bool,
    },
    /// The value of the first or last child, and where it stands in the order.
    Edge {
        last: bool,
        found: Option<(Option<Vec<u8>>, Vec<u8>)>,
    },
}

impl Running {
    pub(crate) fn new(kind: AggregateKind) -> Self {
        let exact = |scale: u8, text| Self::Exact { high: 0, low: 0, scale: u32::from(scale), text };
        match kind {
            AggregateKind::Count => Self::Count(0),
            AggregateKind::SumInt => exact(0, false),
            AggregateKind::SumDecimal { scale } => exact(scale, true),
            AggregateKind::SumFloat => Self::Float(0.0),
            AggregateKind::AvgDecimal => Self::Average(Box::new(exact(0, false)), 0),
            AggregateKind::AvgFloat => Self::Average(Box::new(Self::Float(0.0)), 0),
            AggregateKind::Min => Self::Best { greatest: false, best: None },
            AggregateKind::Max => Self::Best { greatest: true, best: None },
            AggregateKind::Distinct => Self::Distinct(Vec::new()),
            AggregateKind::Any => Self::Truth { all: false, truth: false },
            AggregateKind::All => Self::Truth { all: true, truth: true },
            AggregateKind::First => Self::Edge { last: false, found: None },
            AggregateKind::Last => Self::Edge { last: true, found: None },
        }
    }

    /// Adds a fragment of a type, of a child that stands at `place` in the order; where children come in their order, it has none. NULL, text that is no number, and a number of more digits than any column has, so that the
    /// sum cannot hold it, add nothing.
    pub(crate) fn add(&mut self, fragment: &[u8], of: &Type, place: Option<&[u8]>) {
        let is_null = fragment.is_empty() || fragment == b"null";
        match self {
            Self::Count(count) => *count += 1,
            Self::Exact { .. } | Self::Float(_) => self.add_number(fragment),
            Self::Average(sum, count) => {
                if !is_null {
                    sum.add_number(fragment);
                    *count += 1;
                }
            }
            Self::Best { greatest, best } => {
                let Ok(value) = Value::from_fragment(fragment, of) else { return };
                if !is_null && is_better(*greatest, &value, best.as_ref()) {
                    *best = Some((value.into_owned(), fragment.to_vec()));
                }
            }
            Self::Distinct(values) => {
                if !is_null {
                    values.push(fragment.to_vec());
                }
            }
            Self::Truth { all, truth } => {
                let is_true = fragment == b"true";
                *truth = if *all { *truth && is_true } else { *truth || is_true };
            }
            Self::Edge { last, found } => {
                if is_nearer(*last, place, found.as_ref()) {
                    *found = Some((place.map(<[u8]>::to_vec), fragment.to_vec()));
                }
            }
        }
    }

    /// Adds what other values have come to in the same aggregate: those of children behind the ones that were added so far.
    pub(crate) fn merge(&mut self, other: Self) {
        match (self, other) {
            (Self::Count(count), Self::Count(more)) => *count += more,
            (Self::Exact { high, low, scale, .. }, Self::Exact { high: c, low: d, scale: places, .. }) => {
                if let Some(sum) = added(((*high, *low), *scale), ((c, d), places)) {
                    ((*high, *low), *scale) = sum;
                }
            }
            (Self::Float(sum), Self::Float(more)) => *sum += more,
            (Self::Average(sum, count), Self::Average(more, others)) => {
                sum.merge(*more);
                *count += others;
            }
            (Self::Best { greatest, best }, Self::Best { best: Some((value, fragment)), .. })
                if is_better(*greatest, &value, best.as_ref()) =>
            {
                *best = Some((value, fragment));
            }
            (Self::Distinct(values), Self::Distinct(more)) => values.extend(more),
            (Self::Truth { all, truth }, Self::Truth { truth: other, .. }) => {
                *truth = if *all { *truth && other } else { *truth || other };
            }
            (Self::Edge { last, found }, Self::Edge { found: Some((place, fragment)), .. })
                if is_nearer(*last, place.as_deref(), found.as_ref()) =>
            {
                *found = Some((place, fragment));
            }
            _ => {}
        }
    }

    /// Leaves out what can make no difference any more.
    pub(crate) fn compact(&mut self, of: &Type) {
        if let Self::Distinct(values) = self {
            let kept: Vec<Vec<u8>> = distinct(values, of).map(<[u8]>::to_vec).collect();
            *values = kept;
        }
    }

    fn add_number(&mut self, fragment: &[u8]) {
        match self {
            Self::Exact { high, low, scale, .. } => {
                let text = string_value(fragment);
                let digits = text.as_ref().map_or(fragment, |text| text.as_bytes());
                let Some((mantissa, places)) = parse(digits) else { return };
                if let Some(sum) = added(((*high, *low), *scale), ((mantissa / BASE, mantissa % BASE), places)) {
                    ((*high, *low), *scale) = sum;
                }
            }
            Self::Float(sum) => {
                if let Some(number) = std::str::from_utf8(fragment).ok().and_then(|text| text.parse::<f64>().ok()) {
                    *sum += number;
                }
            }
            _ => {}
        }
    }

    /// Appends the result. `of`: the type of the values.
    pub(crate) fn write(&self, of: &Type, out: &mut Vec<u8>) {
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
            Self::Average(sum, count) => average(sum, *count).write_json(out),
            Self::Best { best, .. } => put(best.as_ref().map_or(&[], |(_, fragment)| fragment), out),
            Self::Distinct(values) => {
                out.push(b'[');
                for (nth, fragment) in distinct(values, of).enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    put(fragment, out);
                }
                out.push(b']');
            }
            Self::Truth { truth, .. } => drop(write!(out, "{truth}")),
            Self::Edge { found, .. } => put(found.as_ref().map_or(&[], |(_, fragment)| fragment), out),
        }
    }
}

/// Null for no values, and for a sum of more than 38 digits.
fn average(sum: &Running, count: u64) -> Value<'static> {
    if count == 0 {
        return Value::Null;
    }
    if let Running::Float(sum) = sum {
        return Value::Double(sum / count as f64);
    }
    let mut text = Vec::new();
    sum.write(&Type::Decimal, &mut text);
    let sum: Option<Decimal> = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    let count = i64::try_from(count).ok().map(Decimal::from);
    sum.zip(count).and_then(|(sum, count)| sum.divided_by(count)).map_or(Value::Null, Value::Decimal)
}

/// Each value once, in order; of equals the first.
fn distinct<'f>(fragments: &'f [Vec<u8>], of: &Type) -> impl Iterator<Item = &'f [u8]> {
    let mut values: Vec<(Value<'_>, &[u8])> =
        fragments.iter().filter_map(|fragment| Some((Value::from_fragment(fragment, of).ok()?, fragment.as_slice()))).collect();
    values.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(Ordering::Equal));
    values.dedup_by(|a, b| a.0.equals(&b.0));
    values.into_iter().map(|(_, fragment)| fragment)
}

/// Whether a value takes the place of the best so far.
fn is_better(greatest: bool, value: &Value<'_>, best: Option<&(Value<'static>, Vec<u8>)>) -> bool {
    let wanted = if greatest { Ordering::Greater } else { Ordering::Less };
    best.is_none_or(|(best, _)| value.compare(best) == Some(wanted))
}

/// Whether a child takes the place of the one that is nearest to an end of the order so far.
fn is_nearer(last: bool, place: Option<&[u8]>, found: Option<&(Option<Vec<u8>>, Vec<u8>)>) -> bool {
    found.is_none_or(|(other, _)| {
        let order = place.cmp(&other.as_deref());
        if last { order.is_ge() } else { order.is_lt() }
    })
}

/// Halves of a number, and how many digits follow its point.
type Scaled = ((i128, i128), u32);

/// `None` where the sum has more digits than there is room for.
fn added((left, scale): Scaled, (right, places): Scaled) -> Option<Scaled> {
    let common = places.max(scale);
    let (a, b) = widened(left, common - scale)?;
    let (c, d) = widened(right, common - places)?;
    Some(((a.checked_add(c)?.checked_add((b + d) / BASE)?, (b + d) % BASE), common))
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
        fragments.iter().for_each(|fragment| running.add(fragment.as_bytes(), &Type::Decimal, None));
        let mut out = Vec::new();
        running.write(&Type::Decimal, &mut out);
        String::from_utf8(out).unwrap()
    }

    const MONEY: AggregateKind = AggregateKind::SumDecimal { scale: 2 };

    #[test]
    fn sums_are_exact() {
        assert_eq!(sum(MONEY, &[]), "\"0.00\"");
        assert_eq!(sum(MONEY, &["\"0.10\"", "\"0.20\"", "null", "\"-1.00\""]), "\"-0.70\"");
        assert_eq!(sum(MONEY, &["\"1.005\"", "\"1\"", "2"]), "\"4.005\"");
        let greatest = "\"99999999999999999999999999999999999.999\"";
        assert_eq!(sum(MONEY, &[greatest; 3]), "\"299999999999999999999999999999999999.997\"");
        assert_eq!(sum(AggregateKind::SumInt, &["9223372036854775807", "9223372036854775807"]), "18446744073709551614");
        assert_eq!(sum(AggregateKind::SumFloat, &["0.5", "1e3"]), "1000.5");
        assert_eq!(sum(AggregateKind::Count, &["null", "1"]), "2");
    }

    #[test]
    fn other_functions_leave_null_out() {
        let values = ["\"2.50\"", "", "\"-1.5\"", "\"2.5\"", "null"];
        for (kind, expected, of_none) in [
            (AggregateKind::Min, "\"-1.5\"", "null"),
            (AggregateKind::Max, "\"2.50\"", "null"),
            (AggregateKind::AvgDecimal, "\"1.166667\"", "null"),
            (AggregateKind::Distinct, "[\"-1.5\",\"2.50\"]", "[]"),
            (AggregateKind::First, "\"2.50\"", "null"),
            (AggregateKind::Last, "null", "null"),
        ] {
            assert_eq!(sum(kind, &values), expected, "{kind:?}");
            assert_eq!(sum(kind, &[]), of_none, "{kind:?}");
        }
        assert_eq!(sum(AggregateKind::Any, &["false", "true"]), "true");
        assert_eq!(sum(AggregateKind::All, &["true", "null"]), "false");
        assert_eq!((sum(AggregateKind::Any, &[]), sum(AggregateKind::All, &[])), ("false".into(), "true".into()));
        assert_eq!(sum(AggregateKind::AvgFloat, &["0.5", "1.0"]), "0.75");
    }

    #[test]
    fn first_and_last_go_by_the_place() {
        for (kind, expected) in [(AggregateKind::First, "2"), (AggregateKind::Last, "3")] {
            let mut running = Running::new(kind);
            for (fragment, place) in [("1", b"m"), ("2", b"a"), ("4", b"z"), ("3", b"z")] {
                running.add(fragment.as_bytes(), &Type::Int, Some(place));
            }
            let mut out = Vec::new();
            running.write(&Type::Int, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
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
            sum(AggregateKind::SumInt, &refs);
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
