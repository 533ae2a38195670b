//! Calendar arithmetic on days since 0001-01-01 and 100 ns ticks, and the text forms of dates and times.

use tds::{DataType, Value};

pub(crate) const TICKS_PER_SECOND: u64 = 10_000_000;
pub(crate) const TICKS_PER_DAY: u64 = 86_400 * TICKS_PER_SECOND;
/// 1900-01-01, SQL Server's day zero.
pub(crate) const DAYS_1900: u32 = 693_595;
/// 1970-01-01.
pub(crate) const DAYS_1970: i64 = 719_162;
pub(crate) const MAX_DAY: i64 = 3_652_058;

/// Days since 0001-01-01 of a proleptic Gregorian date (Howard Hinnant's algorithm).
pub(crate) fn days(year: i64, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (i64::from(month) + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 306
}

/// Year, month and day of a day number.
pub(crate) fn civil(days: i64) -> (i64, u32, u32) {
    let z = days + 306;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

pub(crate) fn month_length(year: i64, month: u32) -> u32 {
    match month {
        2 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Ticks rounded to `scale` fractional digits of a second; may reach a whole day.
pub(crate) fn round_ticks(ticks: u64, scale: u8) -> u64 {
    let unit = 10u64.pow(7 - u32::from(scale.min(7)));
    (ticks + unit / 2) / unit * unit
}

/// Ticks rounded to 1/300 s, as `datetime` keeps them: the tick nearest to that third of a hundredth.
pub(crate) fn round_datetime(ticks: u64) -> u64 {
    let units = (ticks * 3 + 50_000) / 100_000;
    (units * 200_000 + 3) / 6
}

/// A moment's parts as local date, time and offset; every temporal type can be seen as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) days: i64,
    pub(crate) ticks: u64,
    pub(crate) offset_minutes: i16,
}

pub(crate) fn moment(value: &Value) -> Option<Moment> {
    Some(match value {
        Value::Date(d) => Moment { days: i64::from(*d), ticks: 0, offset_minutes: 0 },
        Value::Time(t) => Moment { days: i64::from(DAYS_1900), ticks: *t, offset_minutes: 0 },
        Value::DateTime { days, ticks } => Moment { days: i64::from(*days), ticks: *ticks, offset_minutes: 0 },
        Value::DateTimeOffset { days, ticks, offset_minutes } => {
            Moment { days: i64::from(*days), ticks: *ticks, offset_minutes: *offset_minutes }
        }
        _ => return None,
    })
}

/// The moment as a value of a temporal type, rounded to its precision. `None`: out of the type's range.
pub(crate) fn value(m: Moment, t: &DataType) -> Option<Value> {
    let carry = |ticks: u64| if ticks >= TICKS_PER_DAY { (m.days + 1, ticks - TICKS_PER_DAY) } else { (m.days, ticks) };
    let in_range = |d: i64, low: i64| (low..=MAX_DAY).contains(&d).then_some(d as u32);
    Some(match t {
        DataType::Date => Value::Date(in_range(m.days, 0)?),
        DataType::Time { scale } => Value::Time(round_ticks(m.ticks, *scale) % TICKS_PER_DAY),
        DataType::DateTime => {
            let (days, ticks) = carry(round_datetime(m.ticks));
            Value::DateTime { days: in_range(days, 639_905)?, ticks }
        }
        DataType::SmallDateTime => {
            let minute = 60 * TICKS_PER_SECOND;
            let (days, ticks) = carry((m.ticks + minute / 2) / minute * minute);
            let days = in_range(days, i64::from(DAYS_1900))?;
            if days > DAYS_1900 + 65_535 {
                return None;
            }
            Value::DateTime { days, ticks }
        }
        DataType::DateTime2 { scale } => {
            let (days, ticks) = carry(round_ticks(m.ticks, *scale));
            Value::DateTime { days: in_range(days, 0)?, ticks }
        }
        DataType::DateTimeOffset { scale } => {
            let (days, ticks) = carry(round_ticks(m.ticks, *scale));
            Value::DateTimeOffset { days: in_range(days, 0)?, ticks, offset_minutes: m.offset_minutes }
        }
        _ => return None,
    })
}

pub(crate) fn text_date(days: i64) -> String {
    let (y, m, d) = civil(days);
    format!("{y:04}-{m:02}-{d:02}")
}

pub(crate) fn text_time(ticks: u64, scale: u8) -> String {
    let seconds = ticks / TICKS_PER_SECOND;
    let base = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if scale == 0 {
        return base;
    }
    let fraction = format!("{:07}", ticks % TICKS_PER_SECOND);
    format!("{base}.{}", &fraction[..usize::from(scale.min(7))])
}

pub(crate) fn text_offset(minutes: i16) -> String {
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

pub(crate) const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
pub(crate) const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

fn parse_time(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (clock, half) = match lower.strip_suffix("pm") {
        Some(c) => (c.trim_end(), Some(true)),
        None => match lower.strip_suffix("am") {
            Some(c) => (c.trim_end(), Some(false)),
            None => (lower.as_str(), None),
        },
    };
    let mut parts = clock.split(':');
    let mut hour: u64 = parts.next()?.trim().parse().ok()?;
    let minute: u64 = match parts.next() {
        Some(m) => m.parse().ok()?,
        None if half.is_some() => 0,
        None => return None,
    };
    let (seconds, fraction) = match (parts.next(), parts.next()) {
        (None, _) => (0, 0),
        // hh:mm:ss:mmm, an old form of datetime.
        (Some(s), Some(ms)) => (s.parse::<u64>().ok()?, ms.parse::<u64>().ok()? * 10_000),
        (Some(s), None) => match s.split_once('.') {
            Some((whole, f)) if !f.is_empty() && f.bytes().all(|b| b.is_ascii_digit()) => {
                (whole.parse().ok()?, format!("{:0<7}", &f[..f.len().min(7)]).parse().ok()?)
            }
            Some(_) => return None,
            None => (s.parse().ok()?, 0),
        },
    };
    match half {
        Some(pm) => {
            if !(1..=12).contains(&hour) {
                return None;
            }
            hour = hour % 12 + if pm { 12 } else { 0 };
        }
        None if hour > 23 => return None,
        None => {}
    }
    (minute < 60 && seconds < 60).then_some((hour * 3600 + minute * 60 + seconds) * TICKS_PER_SECOND + fraction)
}

fn parse_date(text: &str) -> Option<i64> {
    let ok = |y: i64, m: u32, d: u32| (1..=9999).contains(&y) && (1..=12).contains(&m) && d >= 1 && d <= month_length(y, m);
    let checked = |y: i64, m: u32, d: u32| ok(y, m, d).then(|| days(y, m, d));
    if text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit()) {
        return checked(text[..4].parse().ok()?, text[4..6].parse().ok()?, text[6..].parse().ok()?);
    }
    if text.len() == 6 && text.bytes().all(|b| b.is_ascii_digit()) {
        let y: i64 = text[..2].parse().ok()?;
        return checked(if y < 50 { 2000 + y } else { 1900 + y }, text[2..4].parse().ok()?, text[4..].parse().ok()?);
    }
    let parts: Vec<&str> = text.split(['-', '/', '.', ' ', ',']).filter(|p| !p.is_empty()).collect();
    let [a, b, c] = parts.as_slice() else { return None };
    let month_name = |s: &str| {
        let s = s.to_ascii_lowercase();
        (s.len() >= 3).then(|| MONTHS.iter().position(|m| m.to_ascii_lowercase().starts_with(&s)))?.map(|i| i as u32 + 1)
    };
    if let Some(m) = month_name(a) {
        return checked(c.parse().ok()?, m, b.parse().ok()?);
    }
    if let Some(m) = month_name(b) {
        return checked(c.parse().ok()?, m, a.parse().ok()?);
    }
    if a.len() == 4 {
        return checked(a.parse().ok()?, b.parse().ok()?, c.parse().ok()?);
    }
    // us_english: month, day, year.
    checked(c.parse().ok()?, a.parse().ok()?, b.parse().ok()?)
}

/// Reads the text forms of dates and times that SQL Server reads under us_english.
pub(crate) fn parse(input: &str) -> Option<Moment> {
    let text = input.trim();
    if text.is_empty() {
        return Some(Moment { days: i64::from(DAYS_1900), ticks: 0, offset_minutes: 0 });
    }
    let (text, offset_minutes) = match text.strip_suffix(['Z', 'z']) {
        Some(t) => (t.trim_end(), 0),
        None => match text.rfind(['+', '-']) {
            Some(i) if text[..i].contains(':') => {
                let (h, m) = text[i + 1..].split_once(':')?;
                let minutes: i16 = h.parse::<i16>().ok()? * 60 + m.parse::<i16>().ok()?;
                (text[..i].trim_end(), if text.as_bytes()[i] == b'-' { -minutes } else { minutes })
            }
            _ => (text, 0),
        },
    };
    if let Some(ticks) = text.contains(':').then(|| parse_time(text)).flatten() {
        return Some(Moment { days: i64::from(DAYS_1900), ticks, offset_minutes });
    }
    let Some(colon) = text.find(':') else {
        return Some(Moment { days: parse_date(text)?, ticks: 0, offset_minutes });
    };
    let split = text[..colon].rfind(['T', 't', ' '])?;
    Some(Moment { days: parse_date(text[..split].trim_end())?, ticks: parse_time(&text[split + 1..])?, offset_minutes })
}
