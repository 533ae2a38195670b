//! The bytes of a part ([`super::parts`]).
//!
//! | bytes | |
//! |---|---|
//! | 4, and as many less one | where the part ends: the rest of the key of the row that the next one begins with; 0 where it is the last |
//! | 4, and as many less one | the values that a group's document has of its first row, as a row with nothing else in it; 0 where no row counts, and where it is no group |
//! | for each aggregate over the rows, in the order of the document | count: its number (u64). Sum of whole numbers and decimals: two halves (i128 each) and digits after the point (u32); of doubles: their bits (u64). Average: the same, and how many (u64). Least and greatest: the value. Distinct: how many (u32), the values. Any, all: a byte. First, last: a byte that says whether there is one, its place in the order, the value |
//!
//! Values and places stand as fragments behind their length plus one (u32), 0 for none. All integers are big-endian. The family is a cache: where this changes, it is emptied.

use expressions::{Type, Value};
use schemas::plan::{AggregateKind, NodeId};

use super::aggregate::Running;
use super::compute::Sums;
use crate::catalog::Aggregate;

/// What some rows come to.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// Of a group, the values of the first row that counts; none where no row does.
    pub(super) first: Option<Vec<u8>>,
    pub(super) sums: Sums<'a>,
}

impl<'a> Part<'a> {
    pub(super) fn new(aggregates: &'a [Aggregate]) -> Self {
        Self { first: None, sums: Sums::of(aggregates) }
    }

    /// Adds the rows behind those of this part.
    pub(super) fn merge(&mut self, other: Self) {
        if self.first.is_none() {
            self.first = other.first;
        }
        self.sums.merge(other.sums);
    }

    pub(super) fn encode(&self, node: NodeId, end: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        put(end, &mut out);
        put(self.first.as_deref(), &mut out);
        self.sums.encode(node, &mut out);
        out
    }

    /// A part and where it ends; none where the bytes are not of one.
    pub(super) fn decode(aggregates: &'a [Aggregate], node: NodeId, mut bytes: &[u8]) -> Option<(Self, Option<Vec<u8>>)> {
        let end = take(&mut bytes)?.map(<[u8]>::to_vec);
        let first = take(&mut bytes)?.map(<[u8]>::to_vec);
        let sums = Sums::decode(aggregates, node, &mut bytes)?;
        bytes.is_empty().then_some((Self { first, sums }, end))
    }
}

/// Where a part ends, read off its beginning.
pub(super) fn end(mut bytes: &[u8]) -> Option<Option<&[u8]>> {
    take(&mut bytes)
}

fn put(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(&bytes.map_or(0, |bytes| bytes.len() as u32 + 1).to_be_bytes());
    out.extend_from_slice(bytes.unwrap_or_default());
}

fn take<'b>(bytes: &mut &'b [u8]) -> Option<Option<&'b [u8]>> {
    let length = u32::from_be_bytes(chunk(bytes)?);
    let Some(length) = length.checked_sub(1) else { return Some(None) };
    let (value, rest) = bytes.split_at_checked(length as usize)?;
    *bytes = rest;
    Some(Some(value))
}

fn chunk<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*chunk)
}

impl Running {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Count(count) => out.extend_from_slice(&count.to_be_bytes()),
            Self::Exact { high, low, scale, .. } => {
                out.extend_from_slice(&high.to_be_bytes());
                out.extend_from_slice(&low.to_be_bytes());
                out.extend_from_slice(&scale.to_be_bytes());
            }
            Self::Float(sum) => out.extend_from_slice(&sum.to_bits().to_be_bytes()),
            Self::Average(sum, count) => {
                sum.encode(out);
                out.extend_from_slice(&count.to_be_bytes());
            }
            Self::Best { best, .. } => put(best.as_ref().map(|(_, fragment)| fragment.as_slice()), out),
            Self::Distinct(values) => {
                out.extend_from_slice(&(values.len() as u32).to_be_bytes());
                values.iter().for_each(|value| put(Some(value), out));
            }
            Self::Truth { truth, .. } => out.push(u8::from(*truth)),
            Self::Edge { found, .. } => {
                out.push(u8::from(found.is_some()));
                if let Some((place, fragment)) = found {
                    put(place.as_deref(), out);
                    put(Some(fragment), out);
                }
            }
        }
    }

    pub(super) fn decode(kind: AggregateKind, of: &Type, bytes: &mut &[u8]) -> Option<Self> {
        let mut running = Self::new(kind);
        running.read(of, bytes)?;
        Some(running)
    }

    fn read(&mut self, of: &Type, bytes: &mut &[u8]) -> Option<()> {
        match self {
            Self::Count(count) => *count = u64::from_be_bytes(chunk(bytes)?),
            Self::Exact { high, low, scale, .. } => {
                (*high, *low) = (i128::from_be_bytes(chunk(bytes)?), i128::from_be_bytes(chunk(bytes)?));
                *scale = u32::from_be_bytes(chunk(bytes)?);
            }
            Self::Float(sum) => *sum = f64::from_bits(u64::from_be_bytes(chunk(bytes)?)),
            Self::Average(sum, count) => {
                sum.read(of, bytes)?;
                *count = u64::from_be_bytes(chunk(bytes)?);
            }
            Self::Best { best, .. } => {
                if let Some(fragment) = take(bytes)? {
                    *best = Some((Value::from_fragment(fragment, of).ok()?.into_owned(), fragment.to_vec()));
                }
            }
            Self::Distinct(values) => {
                for _ in 0..u32::from_be_bytes(chunk(bytes)?) {
                    values.push(take(bytes)??.to_vec());
                }
            }
            Self::Truth { truth, .. } => *truth = chunk(bytes)? == [1],
            Self::Edge { found, .. } => {
                if chunk(bytes)? == [1] {
                    *found = Some((take(bytes)?.map(<[u8]>::to_vec), take(bytes)??.to_vec()));
                }
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const KINDS: [AggregateKind; 13] = [
        AggregateKind::Count,
        AggregateKind::SumInt,
        AggregateKind::SumDecimal { scale: 2 },
        AggregateKind::SumFloat,
        AggregateKind::Min,
        AggregateKind::Max,
        AggregateKind::AvgDecimal,
        AggregateKind::AvgFloat,
        AggregateKind::Distinct,
        AggregateKind::Any,
        AggregateKind::All,
        AggregateKind::First,
        AggregateKind::Last,
    ];

    /// A value as a fragment, and the type under which the kind takes it.
    fn value(kind: AggregateKind, n: Option<i64>) -> (Vec<u8>, Type) {
        let (of, text) = match kind {
            AggregateKind::Any | AggregateKind::All => (Type::Bool, n.map(|n| (n > 0).to_string())),
            AggregateKind::SumFloat | AggregateKind::AvgFloat => (Type::Double, n.map(|n| format!("{n}.5"))),
            AggregateKind::SumInt => (Type::Int, n.map(|n| n.to_string())),
            _ => (Type::Decimal, n.map(|n| format!("\"{}.{}\"", n / 10, (n % 10).abs()))),
        };
        (text.unwrap_or_else(|| "null".to_owned()).into_bytes(), of)
    }

    fn text(running: &Running, of: &Type) -> String {
        let mut out = Vec::new();
        running.write(of, &mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        /// What is kept of some values and of those behind them comes to what all of them come to.
        #[test]
        fn parts_are_together_what_one_is(
            values in prop::collection::vec(prop::option::of(-20i64..20), 0..12), cut in 0..12usize, places in prop::collection::vec(0u8..3, 12), ordered: bool,
        ) {
            let cut = cut.min(values.len());
            for kind in KINDS {
                let of = value(kind, None).1;
                let place = |nth: usize| ordered.then(|| vec![places[nth]]);
                let of_range = |range: std::ops::Range<usize>| {
                    let mut running = Running::new(kind);
                    range.for_each(|nth| running.add(&value(kind, values[nth]).0, &of, place(nth).as_deref()));
                    running
                };
                let mut left = of_range(0..cut);
                left.compact(&of);
                let mut bytes = Vec::new();
                left.encode(&mut bytes);
                let mut rest = bytes.as_slice();
                let mut read = Running::decode(kind, &of, &mut rest).unwrap();
                prop_assert!(rest.is_empty());
                prop_assert!(bytes.is_empty() || Running::decode(kind, &of, &mut &bytes[..bytes.len() - 1]).is_none());
                read.merge(of_range(cut..values.len()));
                prop_assert_eq!(text(&read, &of), text(&of_range(0..values.len()), &of), "{:?}", kind);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for kind in KINDS {
                let _ = Running::decode(kind, &value(kind, None).1, &mut bytes.as_slice());
            }
        }
    }
}
