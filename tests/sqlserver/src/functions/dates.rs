//! DATEADD, DATEDIFF, DATEPART and what goes with them.

use rusqlite::Connection;
use rusqlite::functions::Context;
use rusqlite::types::Value as Stored;
use tds::{DataType, SqlError};

use super::{int, is_null, scalar, string};
use crate::clock;
use crate::message;
use crate::types::date::{self, Moment, TICKS_PER_DAY, TICKS_PER_SECOND};
use crate::types::{self, storage};

/// The full name of a date part, from its name or abbreviation.
pub(crate) fn part_name(part: &str) -> Option<&'static str> {
    Some(match part.to_ascii_lowercase().as_str() {
        "year" | "yy" | "yyyy" => "year",
        "quarter" | "qq" | "q" => "quarter",
        "month" | "mm" | "m" => "month",
        "dayofyear" | "dy" | "y" => "dayofyear",
        "day" | "dd" | "d" => "day",
        "week" | "wk" | "ww" => "week",
        "iso_week" | "isowk" | "isoww" => "iso_week",
        "weekday" | "dw" | "w" => "weekday",
        "hour" | "hh" => "hour",
        "minute" | "mi" | "n" => "minute",
        "second" | "ss" | "s" => "second",
        "millisecond" | "ms" => "millisecond",
        "microsecond" | "mcs" => "microsecond",
        "nanosecond" | "ns" => "nanosecond",
        "tzoffset" | "tz" => "tzoffset",
        _ => return None,
    })
}

fn moment(ctx: &Context<'_>, i: usize, t: &DataType) -> Option<Moment> {
    date::moment(&storage::decode(ctx.get_raw(i), t))
}

fn ticks_of(part: &str) -> Option<i128> {
    Some(match part {
        "week" => i128::from(TICKS_PER_DAY) * 7,
        "day" | "dayofyear" | "weekday" => i128::from(TICKS_PER_DAY),
        "hour" => i128::from(TICKS_PER_SECOND) * 3600,
        "minute" => i128::from(TICKS_PER_SECOND) * 60,
        "second" => i128::from(TICKS_PER_SECOND),
        "millisecond" => 10_000,
        "microsecond" => 10,
        _ => return None,
    })
}

fn overflow(t: &DataType) -> SqlError {
    message::error(517, 16, format!("Adding a value to a '{}' column caused an overflow.", types::name(t)))
}

fn add(ctx: &Context<'_>) -> Result<Stored, SqlError> {
    // dateadd(part, n, x, type)
    let t = types::decode(int(ctx, 3));
    let (Some(part), Some(mut m), false) = (string(ctx, 0), moment(ctx, 2, &t), is_null(ctx, 1)) else { return Ok(Stored::Null) };
    let n = int(ctx, 1);
    let months = match part {
        "year" => Some(n * 12),
        "quarter" => Some(n * 3),
        "month" => Some(n),
        _ => None,
    };
    if let Some(months) = months {
        let (y, mo, d) = date::civil(m.days);
        let all = y * 12 + i64::from(mo) - 1 + months;
        let (y, mo) = (all.div_euclid(12), all.rem_euclid(12) as u32 + 1);
        if !(1..=9999).contains(&y) {
            return Err(overflow(&t));
        }
        m.days = date::days(y, mo, d.min(date::month_length(y, mo)));
    } else {
        let delta = if part == "nanosecond" { i128::from(n) / 100 } else { ticks_of(part).unwrap_or(0) * i128::from(n) };
        let all = i128::from(m.days) * i128::from(TICKS_PER_DAY) + i128::from(m.ticks) + delta;
        m.days = all.div_euclid(i128::from(TICKS_PER_DAY)) as i64;
        m.ticks = all.rem_euclid(i128::from(TICKS_PER_DAY)) as u64;
    }
    date::value(m, &t).map(|v| storage::encode(&v, &t)).ok_or_else(|| overflow(&t))
}

fn diff(ctx: &Context<'_>) -> Result<Stored, SqlError> {
    // datediff(part, a, type of a, b, type of b)
    let (ta, tb) = (types::decode(int(ctx, 2)), types::decode(int(ctx, 4)));
    let (Some(part), Some(a), Some(b)) = (string(ctx, 0), moment(ctx, 1, &ta), moment(ctx, 3, &tb)) else {
        return Ok(Stored::Null);
    };
    let (ya, ma, _) = date::civil(a.days);
    let (yb, mb, _) = date::civil(b.days);
    let count = match part {
        "year" => yb - ya,
        "quarter" => (yb * 4 + i64::from((mb - 1) / 3)) - (ya * 4 + i64::from((ma - 1) / 3)),
        "month" => (yb * 12 + i64::from(mb)) - (ya * 12 + i64::from(ma)),
        // Day 0 (0001-01-01) was a Monday; weeks begin on Sunday.
        "week" => (b.days + 1).div_euclid(7) - (a.days + 1).div_euclid(7),
        "day" | "dayofyear" | "weekday" => b.days - a.days,
        _ => {
            let ticks = |m: &Moment| {
                i128::from(m.days) * i128::from(TICKS_PER_DAY) + i128::from(m.ticks) - i128::from(m.offset_minutes) * 600_000_000
            };
            let (x, y) = (ticks(&a), ticks(&b));
            match ticks_of(part) {
                Some(unit) => (y.div_euclid(unit) - x.div_euclid(unit)) as i64,
                None => ((y - x) * 100) as i64,
            }
        }
    };
    Ok(Stored::Integer(count))
}

fn iso_week(days: i64) -> i64 {
    let thursday = days - days.rem_euclid(7) + 3;
    let (y, _, _) = date::civil(thursday);
    (thursday - date::days(y, 1, 1)) / 7 + 1
}

fn part(m: &Moment, part: &str) -> i64 {
    let (y, mo, d) = date::civil(m.days);
    let t = m.ticks as i64;
    match part {
        "year" => y,
        "quarter" => i64::from((mo - 1) / 3 + 1),
        "month" => i64::from(mo),
        "dayofyear" => m.days - date::days(y, 1, 1) + 1,
        "day" => i64::from(d),
        "week" => {
            let first = date::days(y, 1, 1);
            (m.days - first + (first + 1).rem_euclid(7)) / 7 + 1
        }
        "iso_week" => iso_week(m.days),
        "weekday" => (m.days + 1).rem_euclid(7) + 1,
        "hour" => t / 36_000_000_000,
        "minute" => t / 600_000_000 % 60,
        "second" => t / 10_000_000 % 60,
        "millisecond" => t / 10_000 % 1000,
        "microsecond" => t / 10 % 1_000_000,
        "nanosecond" => t % 10_000_000 * 100,
        _ => i64::from(m.offset_minutes),
    }
}

pub(super) fn register(db: &Connection) -> rusqlite::Result<()> {
    scalar(db, "dateadd", 4, add)?;
    scalar(db, "datediff", 5, diff)?;
    scalar(db, "datepart", 3, |ctx| {
        let t = types::decode(int(ctx, 2));
        let (Some(p), Some(mut m)) = (string(ctx, 0), moment(ctx, 1, &t)) else { return Ok(Stored::Null) };
        if t == DataType::DateTime {
            m.ticks = date::round_ticks(m.ticks, 3);
        }
        Ok(Stored::Integer(part(&m, p)))
    })?;
    scalar(db, "datename", 3, |ctx| {
        let t = types::decode(int(ctx, 2));
        let (Some(p), Some(m)) = (string(ctx, 0), moment(ctx, 1, &t)) else { return Ok(Stored::Null) };
        let n = part(&m, p);
        Ok(Stored::Text(match p {
            "month" => date::MONTHS.get(n as usize - 1).copied().unwrap_or_default().to_string(),
            "weekday" => date::WEEKDAYS.get(n as usize - 1).copied().unwrap_or_default().to_string(),
            "tzoffset" => date::text_offset(m.offset_minutes),
            _ => n.to_string(),
        }))
    })?;
    scalar(db, "eomonth", 3, |ctx| {
        let t = types::decode(int(ctx, 1));
        let Some(m) = moment(ctx, 0, &t) else { return Ok(Stored::Null) };
        let (y, mo, _) = date::civil(m.days);
        let all = y * 12 + i64::from(mo) - 1 + int(ctx, 2);
        let (y, mo) = (all.div_euclid(12), all.rem_euclid(12) as u32 + 1);
        Ok(Stored::Integer(date::days(y, mo, date::month_length(y, mo))))
    })?;
    // datefromparts(year, month, day, hour, minute, second, ticks, type)
    scalar(db, "datefromparts", 8, |ctx| {
        if (0..7).any(|i| is_null(ctx, i)) {
            return Ok(Stored::Null);
        }
        let t = types::decode(int(ctx, 7));
        let (y, mo, d) = (int(ctx, 0), int(ctx, 1), int(ctx, 2));
        let invalid = || {
            message::error(
                289,
                16,
                format!("Cannot construct data type {}, some of the arguments have values which are not valid.", types::name(&t)),
            )
        };
        if !(1..=9999).contains(&y) || !(1..=12).contains(&mo) || d < 1 || d > i64::from(date::month_length(y, mo as u32)) {
            return Err(invalid());
        }
        let ticks = (int(ctx, 3) * 3600 + int(ctx, 4) * 60 + int(ctx, 5)) * TICKS_PER_SECOND as i64 + int(ctx, 6);
        if !(0..TICKS_PER_DAY as i64).contains(&ticks) {
            return Err(invalid());
        }
        let m = Moment { days: date::days(y, mo as u32, d as u32), ticks: ticks as u64, offset_minutes: 0 };
        date::value(m, &t).map(|v| storage::encode(&v, &t)).ok_or_else(invalid)
    })?;
    // switchoffset(x, '+02:00' or minutes): the same instant elsewhere; todatetimeoffset: the same local time there.
    for (name, keep_local) in [("switchoffset", false), ("todatetimeoffset", true)] {
        scalar(db, name, 3, move |ctx| {
            let t = types::decode(int(ctx, 1));
            let (Some(mut m), Some(offset)) = (moment(ctx, 0, &t), offset(ctx, 2)) else { return Ok(Stored::Null) };
            if !keep_local {
                let all = m.days * TICKS_PER_DAY as i64 + m.ticks as i64 + i64::from(offset - m.offset_minutes) * 600_000_000;
                m.days = all.div_euclid(TICKS_PER_DAY as i64);
                m.ticks = all.rem_euclid(TICKS_PER_DAY as i64) as u64;
            }
            m.offset_minutes = offset;
            let out = DataType::DateTimeOffset { scale: 7 };
            Ok(date::value(m, &out).map_or(Stored::Null, |v| storage::encode(&v, &out)))
        })?;
    }
    // attz(x, type, zone): AT TIME ZONE.
    scalar(db, "attz", 3, |ctx| {
        let t = types::decode(int(ctx, 1));
        let (Some(mut m), Some(name)) = (moment(ctx, 0, &t), string(ctx, 2)) else { return Ok(Stored::Null) };
        let zone = clock::zone_named(name).ok_or_else(|| {
            message::error(9820, 16, format!("The time zone parameter '{name}' provided to AT TIME ZONE clause is invalid."))
        })?;
        let ticks = m.days * TICKS_PER_DAY as i64 + m.ticks as i64;
        let (local, offset) = if matches!(t, DataType::DateTimeOffset { .. }) {
            let utc = ticks - i64::from(m.offset_minutes) * 600_000_000;
            let offset = clock::offset_minutes_at(&zone, utc);
            (utc + i64::from(offset) * 600_000_000, offset)
        } else {
            clock::resolve_local(&zone, ticks)
        };
        m = Moment {
            days: local.div_euclid(TICKS_PER_DAY as i64),
            ticks: local.rem_euclid(TICKS_PER_DAY as i64) as u64,
            offset_minutes: offset,
        };
        let out = DataType::DateTimeOffset { scale: 7 };
        Ok(date::value(m, &out).map_or(Stored::Null, |v| storage::encode(&v, &out)))
    })?;
    Ok(())
}

fn offset(ctx: &Context<'_>, i: usize) -> Option<i16> {
    if let Some(text) = string(ctx, i) {
        if text.eq_ignore_ascii_case("UTC") {
            return Some(0);
        }
        let (h, m) = text.get(1..)?.split_once(':')?;
        let minutes = h.parse::<i16>().ok()? * 60 + m.parse::<i16>().ok()?;
        return Some(if text.starts_with('-') { -minutes } else { minutes });
    }
    (!is_null(ctx, i)).then(|| int(ctx, i) as i16)
}
