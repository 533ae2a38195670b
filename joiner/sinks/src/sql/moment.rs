//! Dates and times as documents write them, as numbers: days since 1970-01-01, microseconds of a day, microseconds since 1970.
//!
//! The source has seven digits after the second, PostgreSQL and MySQL have six: the seventh is dropped, never rounded, so that nothing falls into the next day, or out of the range, and the order stays.

use jiff::Span;
use jiff::civil::Date;

const DAY_MICROS: i64 = 86_400_000_000;
const EPOCH: Date = Date::constant(1970, 1, 1);

/// `YYYY-MM-DD`, from 0001 to 9999.
pub(crate) fn days(text: &str) -> Option<i32> {
    let mut parts = text.split('-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let date = Date::new(year.try_into().ok()?, month.try_into().ok()?, day.try_into().ok()?).ok()?;
    let valid = year >= 1 && parts.next().is_none();
    valid.then(|| (date - EPOCH).get_days())
}

/// `HH:MM:SS`, with a fraction or without.
pub(crate) fn micros_of_day(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts = whole.split(':');
    let (hour, minute, second) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let valid = hour < 24 && minute < 60 && second < 60 && parts.next().is_none();
    if !valid || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros = fraction.bytes().chain(std::iter::repeat(b'0')).take(6).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Some((i64::from(hour * 60 + minute) * 60 + i64::from(second)) * 1_000_000 + micros)
}

/// `YYYY-MM-DDTHH:MM:SS`, with a fraction or without, without a zone.
pub(crate) fn timestamp(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', ' '])?;
    Some(i64::from(days(date)?) * DAY_MICROS + micros_of_day(time)?)
}

/// The same with an offset, or `Z`.
pub(crate) fn instant(text: &str) -> Option<i64> {
    if let Some(local) = text.strip_suffix('Z') {
        return timestamp(local);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, offset) = offset.split_at_checked(1)?;
    let (hours, minutes) = offset.split_once(':')?;
    let minutes = i64::from(digits(hours, 2)? * 60 + digits(minutes, 2)?) * 60_000_000;
    match sign {
        "+" => Some(timestamp(local)? - minutes),
        "-" => Some(timestamp(local)? + minutes),
        _ => None,
    }
}

/// Exactly so many digits.
fn digits(text: &str, count: usize) -> Option<u32> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// `None` outside of the years 1 to 9999.
pub(crate) fn date_text(days: i32) -> Option<String> {
    let date = EPOCH.checked_add(Span::new().try_days(days).ok()?).ok()?;
    (date.year() >= 1).then(|| format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()))
}

/// `HH:MM:SS.ffffff`.
pub(crate) fn time_text(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    format!("{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Date and time with this between them. `None` outside of the years 1 to 9999.
pub(crate) fn timestamp_text(micros: i64, between: char) -> Option<String> {
    let date = date_text(i32::try_from(micros.div_euclid(DAY_MICROS)).ok()?)?;
    Some(format!("{date}{between}{}", time_text(micros.rem_euclid(DAY_MICROS))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_are_read_and_nonsense_is_not() {
        assert_eq!(days("1970-01-01"), Some(0));
        assert_eq!(days("0001-01-01"), Some(-719_162));
        assert_eq!(days("9999-12-31"), Some(2_932_896));
        assert_eq!(micros_of_day("23:59:59.9999999"), Some(DAY_MICROS - 1), "nothing is rounded into the next day");
        assert_eq!(timestamp("1970-01-02T00:00:01"), Some(DAY_MICROS + 1_000_000));
        assert_eq!(instant("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(instant("1969-12-31T14:30:00.5-09:30"), Some(500_000));
        assert_eq!(instant("1970-01-01T00:00:00Z"), Some(0));
        for text in ["", "1970-1-1", "2023-02-29", "0000-01-01", "1970-01-01-", "é970-01-01", "1970-01-01 "] {
            assert_eq!(days(text), None, "{text}");
        }
        for text in ["24:00:00", "00:00", "00:00:00.", "00:00:60", "00:00:00.x"] {
            assert_eq!(micros_of_day(text), None, "{text}");
        }
        for text in ["1970-01-01T00:00:00", "1970-01-01T00:00:00é1:00", "Z"] {
            assert_eq!(instant(text), None, "{text}");
        }
        assert_eq!(timestamp_text(instant("0001-01-01T00:00:00+01:00").unwrap(), ' '), None, "before the first year");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let text = timestamp_text(micros, 'T').unwrap();
            prop_assert_eq!(timestamp(&text), Some(micros));
        }
    }
}
