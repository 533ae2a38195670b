//! Dates, times of day and points in time, as SQL Server has them: from the year 1 to 9999, to 100 nanoseconds.
//!
//! A value keeps the text form that it came with (digits of the fraction, offset), so what an expression passes on stands in the document as it stood in the source. Instants are compared as instants, whatever
//! their offsets.

use std::cmp::Ordering;
use std::fmt;

/// What kind of point in time a value is. Only values of one kind can be compared, but for a date, which is a local date and time at midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Date,
    /// A time of day.
    Time,
    /// A local date and time, without a zone.
    DateTime,
    /// A date and time with its offset from UTC.
    Instant,
}

/// A point in time.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub(crate) kind: Kind,
    /// Local seconds since 0001-01-01T00:00:00, or since midnight.
    seconds: i64,
    nanos: u32,
    /// Digits of the fraction as written.
    digits: u8,
    offset_minutes: i16,
}

const DAY: i64 = 86_400;

impl Moment {
    /// Reads ISO 8601 text of a kind; `None` when it is not that.
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        let mut moment = Self { kind, seconds: 0, nanos: 0, digits: 0, offset_minutes: 0 };
        match kind {
            Kind::Date => moment.seconds = days(text)? * DAY,
            Kind::Time => moment.time(text)?,
            Kind::DateTime | Kind::Instant => {
                let (date, mut time) = match text.split_once(['T', ' ']) {
                    Some(parts) => parts,
                    None if kind == Kind::DateTime => (text, "00:00:00"),
                    None => return None,
                };
                if kind == Kind::Instant {
                    (time, moment.offset_minutes) = offset(time)?;
                }
                moment.time(time)?;
                moment.seconds += days(date)? * DAY;
            }
        }
        Some(moment)
    }

    fn time(&mut self, text: &str) -> Option<()> {
        let (clock, fraction) = match text.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (text, ""),
        };
        let mut parts = clock.split(':');
        let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
        let second = parts.next().map_or(Some(0), |second| number(second, 2))?;
        if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || fraction.len() > 9 {
            return None;
        }
        self.seconds = hour * 3600 + minute * 60 + second;
        self.digits = fraction.len() as u8;
        let places = 10u32.pow(9 - u32::from(self.digits));
        self.nanos = if fraction.is_empty() { 0 } else { number(fraction, fraction.len())? as u32 * places };
        Some(())
    }

    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// Comparable within a kind.
    fn order(self) -> (i64, u32) {
        (self.seconds - i64::from(self.offset_minutes) * 60, self.nanos)
    }

    /// `None` when they are of kinds that cannot be compared.
    pub fn compare(self, other: Self) -> Option<Ordering> {
        let local = |kind| matches!(kind, Kind::Date | Kind::DateTime);
        let comparable = self.kind == other.kind || local(self.kind) && local(other.kind);
        comparable.then(|| self.order().cmp(&other.order()))
    }

    /// The date, of an instant that in UTC; `None` for a time of day.
    pub fn date(self) -> Option<Self> {
        let seconds = self.order().0.div_euclid(DAY) * DAY;
        let date = Self { kind: Kind::Date, seconds, nanos: 0, digits: 0, offset_minutes: 0 };
        (self.kind != Kind::Time).then_some(date)
    }

    /// A part of the date and time, of an instant that in UTC; `None` for a part of the date of a time of day.
    pub fn part(self, part: Part) -> Option<i64> {
        let seconds = self.order().0;
        let (day, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, date) = civil(day);
        Some(match part {
            Part::Hours => of_day / 3600,
            Part::Minutes => of_day / 60 % 60,
            Part::Seconds => of_day % 60,
            Part::Milliseconds => i64::from(self.nanos / 1_000_000),
            _ if self.kind == Kind::Time => return None,
            Part::Year => year,
            Part::Month => month - 1,
            Part::DayOfMonth => date - 1,
            Part::Date => date,
            Part::DayOfYear => day - days_since_0001(year, 1, 1),
            // 0001-01-01 was a Monday.
            Part::DayOfWeek => (day + 1).rem_euclid(7),
        })
    }
}

/// CEL's parts of a timestamp, counted as CEL counts them: months, days of the month and days of the year from 0, dates from 1, Sunday is day 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Year,
    Month,
    DayOfMonth,
    Date,
    DayOfYear,
    DayOfWeek,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != Kind::Time {
            let (year, month, day) = civil(self.seconds.div_euclid(DAY));
            write!(f, "{year:04}-{month:02}-{day:02}")?;
        }
        if self.kind == Kind::Date {
            return Ok(());
        }
        if self.kind != Kind::Time {
            f.write_str("T")?;
        }
        let of_day = self.seconds.rem_euclid(DAY);
        write!(f, "{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)?;
        if self.digits > 0 {
            let digits = format!("{:09}", self.nanos);
            write!(f, ".{}", &digits[..usize::from(self.digits)])?;
        }
        if self.kind == Kind::Instant {
            let (sign, minutes) = (if self.offset_minutes < 0 { '-' } else { '+' }, self.offset_minutes.abs());
            write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)?;
        }
        Ok(())
    }
}

/// Exactly `digits` digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// Days since 0001-01-01 of `YYYY-MM-DD`.
fn days(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let (year, month, day) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    if parts.next().is_some() || year == 0 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    let days = days_since_0001(year, month, day);
    (civil(days) == (year, month, day)).then_some(days)
}

/// The time, and the minutes that its zone is ahead of UTC.
fn offset(time: &str) -> Option<(&str, i16)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let sign = time.find(['+', '-'])?;
    let (hours, minutes) = time[sign + 1..].split_once(':')?;
    let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
    let minutes = i16::try_from(minutes).ok().filter(|minutes| *minutes <= 14 * 60)?;
    Some((&time[..sign], if time[sign..].starts_with('-') { -minutes } else { minutes }))
}

/// Howard Hinnant's `days_from_civil`, shifted to begin at 0001-01-01.
fn days_since_0001(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 306
}

/// Its inverse.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 306;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn instant(text: &str) -> Moment {
        Moment::parse(Kind::Instant, text).unwrap()
    }

    #[test]
    fn texts_come_back_as_they_were() {
        let cases = [
            (Kind::Date, "9999-12-31"),
            (Kind::Date, "0001-01-01"),
            (Kind::Date, "2024-02-29"),
            (Kind::Time, "23:59:59.9999999"),
            (Kind::DateTime, "2024-02-29T00:00:00.120"),
            (Kind::Instant, "9999-12-31T23:59:59-09:30"),
            (Kind::Instant, "2024-02-29T10:00:00.1200000+00:00"),
        ];
        for (kind, text) in cases {
            assert_eq!(Moment::parse(kind, text).unwrap().to_string(), text);
        }
        for (kind, wrong) in [
            (Kind::Date, "2023-02-29"),
            (Kind::Date, "2023-13-01"),
            (Kind::Date, "0000-01-01"),
            (Kind::Time, "24:00:00"),
            (Kind::Time, "10:00:00."),
            (Kind::DateTime, "2024-01-01T10"),
            (Kind::Instant, "2024-01-01T10:00:00"),
        ] {
            assert!(Moment::parse(kind, wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn instants_are_compared_as_instants() {
        assert_eq!(instant("2024-02-29T00:30:00-09:30").compare(instant("2024-02-29T10:00:00Z")), Some(Ordering::Equal));
        let date = Moment::parse(Kind::Date, "2024-01-02").unwrap();
        let local = Moment::parse(Kind::DateTime, "2024-01-01T23:59:59").unwrap();
        assert_eq!(date.compare(local), Some(Ordering::Greater));
        assert_eq!(date.compare(instant("2024-02-29T10:00:00Z")), None);
    }

    #[test]
    fn parts_are_counted_as_cel_counts_them() {
        let moment = Moment::parse(Kind::DateTime, "2024-03-01T14:05:06.789").unwrap();
        let part = |part| moment.part(part).unwrap();
        assert_eq!((part(Part::Year), part(Part::Month), part(Part::DayOfMonth), part(Part::Date)), (2024, 2, 0, 1));
        // A Friday.
        assert_eq!((part(Part::DayOfYear), part(Part::DayOfWeek)), (60, 5));
        assert_eq!((part(Part::Hours), part(Part::Minutes), part(Part::Seconds), part(Part::Milliseconds)), (14, 5, 6, 789));
        assert_eq!(moment.date().unwrap().to_string(), "2024-03-01");
    }

    proptest! {
        #[test]
        fn days_and_dates_are_inverse(day in 0i64..3_652_059) {
            let (year, month, date) = civil(day);
            prop_assert_eq!(days_since_0001(year, month, date), day);
        }

        #[test]
        fn no_text_panics(text in "[0-9:TZ+. -]{0,30}", any: String) {
            for kind in [Kind::Date, Kind::Time, Kind::DateTime, Kind::Instant] {
                let _ = (Moment::parse(kind, &text), Moment::parse(kind, &any));
            }
        }
    }
}
