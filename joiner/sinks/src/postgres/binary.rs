//! PostgreSQL's binary form of values, for `COPY` and for parameters alike (`src/backend/utils/adt`: the `*_recv` functions).
//!
//! Dates are days, times microseconds, both since 2000-01-01; a numeric is its digits to the base of ten thousand, each 16 bits, after their number, the weight of the first, the sign and the digits that are shown behind the point;
//! jsonb is a version byte and the text.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::sql::cells::Cell;
use crate::sql::kind::Kind;

/// 2000-01-01 in days since 1970, and in microseconds.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS * 86_400_000_000;

/// A value as a parameter, or as an element of one.
#[derive(Debug)]
pub(super) struct Sent<'c>(pub(super) Kind, pub(super) &'c Cell<'c>);

impl ToSql for Sent<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        put(out, self.0, self.1);
        Ok(if *self.1 == Cell::Null { IsNull::Yes } else { IsNull::No })
    }

    /// The type is what the statement casts the parameter to, which is made of the same kind.
    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A field of `COPY`: its length and the value, or that it is NULL.
pub(super) fn put_field(out: &mut BytesMut, kind: Kind, cell: &Cell<'_>) {
    if *cell == Cell::Null {
        out.put_i32(-1);
        return;
    }
    let at = out.len();
    out.put_i32(0);
    put(out, kind, cell);
    let length = out.len() - at - 4;
    let mut place = &mut out[at..at + 4];
    put_length(&mut place, length);
}

/// Longer than the format allows cannot be told from negative on the other side; the server refuses a field of `i32::MAX` for its size.
pub(super) fn put_length(out: &mut impl BufMut, length: usize) {
    out.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
}

/// The value alone. That it is within the type's range was seen when the cell was made.
#[allow(clippy::cast_possible_truncation, reason = "cells hold what their kind's type holds")]
fn put(out: &mut BytesMut, kind: Kind, cell: &Cell<'_>) {
    match (kind, cell) {
        (_, Cell::Null) => {}
        (_, Cell::Bool(value)) => out.put_u8(u8::from(*value)),
        (Kind::Small, Cell::Int(value)) => out.put_i16(*value as i16),
        (Kind::Int, Cell::Int(value)) => out.put_i32(*value as i32),
        (Kind::Date, Cell::Int(days)) => out.put_i32((days - EPOCH_DAYS) as i32),
        (Kind::Timestamp | Kind::Instant, Cell::Int(micros)) => out.put_i64(micros - EPOCH_MICROS),
        (_, Cell::Int(value)) => out.put_i64(*value),
        (Kind::Real, Cell::Double(value)) => out.put_f32(*value as f32),
        (_, Cell::Double(value)) => out.put_f64(*value),
        (Kind::Decimal(_), Cell::Text(text)) => put_numeric(out, text),
        (Kind::Json, Cell::Text(text)) => {
            out.put_u8(1);
            out.put_slice(text.as_bytes());
        }
        (_, Cell::Text(text)) => out.put_slice(text.as_bytes()),
        (_, Cell::Bytes(bytes)) => out.put_slice(bytes),
    }
}

/// `-12.50`: digits, with a point and more digits or without.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a decimal of the source has 38 digits, a sum a few more"
)]
fn put_numeric(out: &mut BytesMut, text: &str) {
    let (negative, magnitude) = text.strip_prefix('-').map_or((false, text), |magnitude| (true, magnitude));
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
    let lead = (4 - whole.len() % 4) % 4;
    let trail = (4 - fraction.len() % 4) % 4;
    let zeros = |count: usize| std::iter::repeat_n(b'0', count);
    let digits: Vec<u8> = zeros(lead).chain(whole.bytes()).chain(fraction.bytes()).chain(zeros(trail)).collect();
    let groups: Vec<i16> =
        digits.chunks(4).map(|group| group.iter().fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0'))).collect();
    let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
    let end = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
    let significant = &groups[first..end];
    let weight = if significant.is_empty() { 0 } else { ((whole.len() + lead) / 4) as i16 - 1 - first as i16 };
    out.put_i16(significant.len() as i16);
    out.put_i16(weight);
    out.put_u16(if negative && !significant.is_empty() { 0x4000 } else { 0 });
    out.put_i16(fraction.len() as i16);
    for group in significant {
        out.put_i16(*group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(text: &str) -> Vec<i16> {
        let mut out = BytesMut::new();
        put_numeric(&mut out, text);
        out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect()
    }

    #[test]
    fn decimals_are_groups_of_four_digits() {
        // Number of groups, weight of the first, sign, digits behind the point.
        assert_eq!(numeric("0"), [0, 0, 0, 0]);
        assert_eq!(numeric("-0.00"), [0, 0, 0, 2]);
        assert_eq!(numeric("12.50"), [2, 0, 0, 2, 12, 5000]);
        assert_eq!(numeric("-10000"), [1, 1, 0x4000, 0, 1]);
        assert_eq!(numeric("0.00005"), [1, -2, 0, 5, 5000]);
        assert_eq!(numeric("123456789.123"), [4, 2, 0, 3, 1, 2345, 6789, 1230]);
    }

    #[test]
    fn fields_carry_their_length() {
        let mut out = BytesMut::new();
        put_field(&mut out, Kind::Date, &Cell::Int(10_958));
        put_field(&mut out, Kind::Json, &Cell::Text("{}".into()));
        put_field(&mut out, Kind::Int, &Cell::Null);
        assert_eq!(out.as_ref(), [0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 3, 1, b'{', b'}', 255, 255, 255, 255]);
    }
}
