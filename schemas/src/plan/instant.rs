//! Points in time as SQL Server compares them: `datetimeoffset` values are equal when they are the same instant, whatever their offsets, and they are in the order of their instants.

use crate::value::civil;

const MINUTES_A_DAY: i64 = 24 * 60;
/// Days from 0001-01-01 to 1970-01-01.
pub(super) const DAYS_TO_1970: i64 = 719_162;

/// The instant in UTC, with `Z` and without the fraction's trailing zeros; `None` when the text is not a date and time. Text without an offset is in UTC, as SQL Server takes it.
pub(super) fn utc(text: &str) -> Option<String> {
    let (minutes, second, fraction) = read(text)?;
    let (year, month, day) = civil(u32::try_from(minutes.div_euclid(MINUTES_A_DAY)).ok()?);
    let (hour, minute) = (minutes.rem_euclid(MINUTES_A_DAY) / 60, minutes.rem_euclid(60));
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    Some(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{point}{fraction}Z"))
}

/// The same in milliseconds since 1970-01-01 UTC.
pub fn unix_ms(text: &str) -> Option<i64> {
    let (minutes, second, fraction) = read(text)?;
    let milliseconds: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(((minutes - DAYS_TO_1970 * MINUTES_A_DAY) * 60 + i64::from(second)) * 1000 + milliseconds)
}

/// The minutes since 0001-01-01 in UTC, the second in the last, and the digits of its fraction.
fn read(text: &str) -> Option<(i64, u32, &str)> {
    let (date, rest) = text.split_once(['T', ' '])?;
    let (year, rest_of_date) = date.split_once('-')?;
    let (month, day) = rest_of_date.split_once('-')?;
    let days = days_since_0001(number(year, 4)?, number(month, 2)?, number(day, 2)?)?;
    let (time, offset) = split_offset(rest)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let (hour, rest_of_time) = time.split_once(':')?;
    let (minute, second) = rest_of_time.split_once(':')?;
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    if hour > 23 || minute > 59 || second > 59 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // An offset is a whole number of minutes, so seconds and their fraction are the same in UTC.
    let minutes = i64::from(days) * MINUTES_A_DAY + i64::from(hour * 60 + minute) - offset;
    Some((minutes, second, fraction))
}

/// The time, and the minutes that its zone is ahead of UTC.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let Some(sign) = text.find(['+', '-']) else { return Some((text, 0)) };
    let (hours, minutes) = text[sign + 1..].split_once(':')?;
    let minutes = i64::from(number(hours, 2)? * 60 + number(minutes, 2)?);
    Some((&text[..sign], if text[sign..].starts_with('-') { -minutes } else { minutes }))
}

/// Exactly `digits` digits.
fn number(text: &str, digits: usize) -> Option<u32> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok())?
}

/// The inverse of [`civil`]; `None` when there is no such day.
fn days_since_0001(year: u32, month: u32, day: u32) -> Option<u32> {
    if year == 0 || !(1..=12).contains(&month) {
        return None;
    }
    // Years begin with March, so that the day added in leap years is the last.
    let year_of_march = year - u32::from(month <= 2);
    let (era, year_of_era) = (year_of_march / 400, year_of_march % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    days.checked_sub(306).filter(|&days| civil(days) == (year, month, day))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::value::Value;

    fn render(minutes: i64, fraction: i64, offset: i16) -> String {
        let local = minutes + i64::from(offset);
        let days = u32::try_from(local / MINUTES_A_DAY).unwrap();
        // In units of 100 ns.
        let ticks = ((local % MINUTES_A_DAY * 60_000 + fraction) * 10_000).try_into().unwrap();
        let mut out = Vec::new();
        Value::DateTimeOffset { days, ticks, scale: 3, offset_minutes: offset }.write_json(&mut out);
        String::from_utf8(out).unwrap().trim_matches('"').to_owned()
    }

    proptest! {
        #[test]
        fn one_instant_has_one_text_and_instants_keep_their_order(
            a in 1440..5_258_000_000i64, near in 0..3i64, x in 0..60_000i64, y in 0..60_000i64, p in -840i16..=840, q in -840i16..=840,
        ) {
            let text = |minutes, fraction, offset| utc(&render(minutes, fraction, offset)).unwrap();
            prop_assert_eq!(text(a, x, p), text(a, x, q));
            prop_assert_eq!(utc(&text(a, x, p)), Some(text(a, x, 0)));
            let (one, other) = (text(a, x, p), text(a + near, y, q));
            prop_assert_eq!(one.trim_end_matches('Z').cmp(other.trim_end_matches('Z')), (a, x).cmp(&(a + near, y)));
        }

        #[test]
        fn no_text_panics(text in "[0-9]{0,4}-?[0-9]{0,2}-?[0-9é]{0,2}[T ]?[0-9:.Z+-]{0,16}", any: String) {
            let _ = (utc(&text), utc(&any), unix_ms(&text), unix_ms(&any));
        }
    }

    #[test]
    fn what_is_no_instant_has_no_text() {
        assert_eq!(utc("2024-02-29T00:30:00.120-09:30").unwrap(), "2024-02-29T10:00:00.12Z");
        assert_eq!(utc("2024-02-29 00:30:00").unwrap(), "2024-02-29T00:30:00Z");
        assert_eq!(unix_ms("2024-03-01T01:00:00.1234567+01:00"), Some(1_709_251_200_123));
        assert_eq!(unix_ms("1969-12-31T23:59:59.5Z"), Some(-500));
        for text in [
            "",
            "2024-02-30T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "2024-01-01T24:00:00Z",
            "2024-01-01",
        ] {
            assert_eq!(utc(text), None, "{text}");
        }
    }
}
