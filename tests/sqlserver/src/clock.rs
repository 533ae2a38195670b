//! The server's clock: the machine's time, moved and shown in a time zone as a test wants it.
//!
//! Everything that a client can see of the time comes from here: GETDATE() and its kin, commit times, scan sessions, creation dates. It starts as UTC and
//! unmoved, so that what a test sees does not depend on where it runs. Local times are what SQL Server would write in that zone: in the hour that
//! autumn repeats they go back, which is what an importer must cope with.

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tds::SqlError;

use crate::message;
use crate::server::lock;
use crate::types::date::{DAYS_1970, TICKS_PER_DAY};

const TICKS_PER_MINUTE: i64 = 600_000_000;

/// IANA names with what Windows, and so SQL Server, calls the zone.
const ZONES: &[(&str, &str, &str)] = &[
    ("UTC", "UTC", "(UTC) Coordinated Universal Time"),
    ("Europe/London", "GMT Standard Time", "(UTC+00:00) Dublin, Edinburgh, Lisbon, London"),
    ("Europe/Berlin", "W. Europe Standard Time", "(UTC+01:00) Amsterdam, Berlin, Bern, Rome, Stockholm, Vienna"),
    ("Europe/Zurich", "W. Europe Standard Time", "(UTC+01:00) Amsterdam, Berlin, Bern, Rome, Stockholm, Vienna"),
    ("Europe/Paris", "Romance Standard Time", "(UTC+01:00) Brussels, Copenhagen, Madrid, Paris"),
    ("Europe/Warsaw", "Central European Standard Time", "(UTC+01:00) Sarajevo, Skopje, Warsaw, Zagreb"),
    ("America/New_York", "Eastern Standard Time", "(UTC-05:00) Eastern Time (US & Canada)"),
    ("America/Chicago", "Central Standard Time", "(UTC-06:00) Central Time (US & Canada)"),
    ("America/Denver", "Mountain Standard Time", "(UTC-07:00) Mountain Time (US & Canada)"),
    ("America/Los_Angeles", "Pacific Standard Time", "(UTC-08:00) Pacific Time (US & Canada)"),
    ("America/Sao_Paulo", "E. South America Standard Time", "(UTC-03:00) Brasilia"),
    ("Asia/Kolkata", "India Standard Time", "(UTC+05:30) Chennai, Kolkata, Mumbai, New Delhi"),
    ("Asia/Kathmandu", "Nepal Standard Time", "(UTC+05:45) Kathmandu"),
    ("Asia/Tokyo", "Tokyo Standard Time", "(UTC+09:00) Osaka, Sapporo, Tokyo"),
    ("Australia/Sydney", "AUS Eastern Standard Time", "(UTC+10:00) Canberra, Melbourne, Sydney"),
    ("Australia/Lord_Howe", "Lord Howe Standard Time", "(UTC+10:30) Lord Howe Island"),
];

/// The zones that SQL Server would know, each once: its name there, and the zone.
pub(crate) fn zones() -> Vec<(&'static str, TimeZone)> {
    let mut list: Vec<(&str, TimeZone)> = Vec::new();
    for (iana, id, _) in ZONES {
        if let (false, Ok(zone)) = (list.iter().any(|(known, _)| known == id), TimeZone::get(iana)) {
            list.push((id, zone));
        }
    }
    list
}

/// The zone of a name that `AT TIME ZONE` takes.
pub(crate) fn zone_named(id: &str) -> Option<TimeZone> {
    let (iana, ..) = ZONES.iter().find(|(_, own, _)| own.eq_ignore_ascii_case(id))?;
    TimeZone::get(iana).ok()
}

/// 100 ns ticks since 0001-01-01 of a moment's UTC time.
fn utc_ticks_of(moment: Timestamp) -> i64 {
    DAYS_1970 * TICKS_PER_DAY as i64 + (moment.as_nanosecond() / 100) as i64
}

/// The moment at which UTC shows these ticks.
fn moment_of(utc_ticks: i64) -> Timestamp {
    let since = i128::from(utc_ticks - DAYS_1970 * TICKS_PER_DAY as i64) * 100;
    Timestamp::from_nanosecond(since).unwrap_or_default()
}

/// The offset in force in a zone when UTC shows these ticks.
pub(crate) fn offset_minutes_at(zone: &TimeZone, utc_ticks: i64) -> i16 {
    (zone.to_offset(moment_of(utc_ticks)).seconds() / 60) as i16
}

pub(crate) fn is_summer(zone: &TimeZone, utc_ticks: i64) -> bool {
    zone.to_offset_info(moment_of(utc_ticks)).dst().is_dst()
}

/// Local ticks of a zone as AT TIME ZONE reads them, and their offset: a time that spring leaves out is moved on, one that autumn repeats is the earlier.
pub(crate) fn resolve_local(zone: &TimeZone, local_ticks: i64) -> (i64, i16) {
    let local = zone.to_ambiguous_timestamp(civil(local_ticks)).compatible();
    let utc = local.map_or(local_ticks, utc_ticks_of);
    let offset = offset_minutes_at(zone, utc);
    (utc + i64::from(offset) * TICKS_PER_MINUTE, offset)
}

#[derive(Debug)]
struct Setting {
    /// Nanoseconds that the clock goes ahead of the machine's.
    ahead: i128,
    zone: TimeZone,
    iana: String,
}

/// One server's clock.
#[derive(Debug)]
pub(crate) struct Clock(Mutex<Setting>);

impl Default for Clock {
    fn default() -> Self {
        Clock(Mutex::new(Setting { ahead: 0, zone: TimeZone::UTC, iana: "UTC".into() }))
    }
}

impl Clock {
    pub(crate) fn utc_ticks(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = since.as_nanos() as i128 + lock(&self.0).ahead;
        DAYS_1970 * TICKS_PER_DAY as i64 + (nanoseconds / 100) as i64
    }

    pub(crate) fn offset_minutes(&self) -> i16 {
        let utc = self.utc_ticks();
        offset_minutes_at(&lock(&self.0).zone, utc)
    }

    /// 100 ns ticks since 0001-01-01 of the local time, as datetime2 is stored.
    pub(crate) fn local_ticks(&self) -> i64 {
        let utc = self.utc_ticks();
        utc + i64::from(offset_minutes_at(&lock(&self.0).zone, utc)) * TICKS_PER_MINUTE
    }

    /// From now on it is `now`, and goes on from there.
    pub(crate) fn set(&self, now: SystemTime) {
        let signed = |t: SystemTime| match t.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        lock(&self.0).ahead = signed(now) - signed(SystemTime::now());
    }

    /// Takes a zone by its IANA name.
    pub(crate) fn set_zone(&self, iana: &str) -> Result<(), SqlError> {
        let zone = TimeZone::get(iana)
            .map_err(|_| message::error(9820, 16, format!("The time zone parameter '{iana}' provided is invalid.")))?;
        let mut setting = lock(&self.0);
        setting.zone = zone;
        setting.iana = iana.to_string();
        Ok(())
    }

    /// CURRENT_TIMEZONE_ID() and CURRENT_TIMEZONE().
    pub(crate) fn zone_names(&self) -> (String, String) {
        let setting = lock(&self.0);
        match ZONES.iter().find(|(iana, ..)| iana.eq_ignore_ascii_case(&setting.iana)) {
            Some((_, id, shown)) => ((*id).to_string(), (*shown).to_string()),
            None => (setting.iana.clone(), setting.iana.clone()),
        }
    }
}

/// As change data capture takes it.
pub(crate) fn civil(ticks: i64) -> cdc::DateTime {
    let day = TICKS_PER_DAY as i64;
    let (y, m, d) = crate::types::date::civil(ticks.div_euclid(day));
    let t = ticks.rem_euclid(day);
    let s = t / 10_000_000;
    cdc::DateTime::new(
        y as i16,
        m as i8,
        d as i8,
        (s / 3600) as i8,
        (s / 60 % 60) as i8,
        (s % 60) as i8,
        (t % 10_000_000 * 100) as i32,
    )
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ticks(text: &str) -> i64 {
        utc_ticks_of(format!("{text}Z").parse().unwrap())
    }

    #[test]
    fn every_zone_is_in_the_time_zone_database() {
        for (iana, id, _) in ZONES {
            assert!(TimeZone::get(iana).is_ok() && zone_named(id).is_some(), "{iana}");
        }
    }

    #[test]
    fn local_times_follow_the_offset_of_their_date() {
        let zurich = zone_named("W. Europe Standard Time").unwrap();
        assert_eq!(resolve_local(&zurich, ticks("2024-07-01T12:00:00")), (ticks("2024-07-01T12:00:00"), 120));
        assert_eq!(resolve_local(&zurich, ticks("2024-03-31T02:30:00")), (ticks("2024-03-31T03:30:00"), 120));
        assert_eq!(resolve_local(&zurich, ticks("2024-10-27T02:30:00")), (ticks("2024-10-27T02:30:00"), 120));
        assert_eq!(offset_minutes_at(&zurich, ticks("2024-10-27T01:00:00")), 60);
    }

    #[test]
    fn a_clock_that_is_set_goes_on_from_there() {
        let clock = Clock::default();
        clock.set_zone("Europe/Zurich").unwrap();
        let autumn: Timestamp = "2024-10-27T00:59:59Z".parse().unwrap();
        clock.set(autumn.into());
        assert_eq!(clock.offset_minutes(), 120);
        assert!((0..50_000_000).contains(&(clock.local_ticks() - ticks("2024-10-27T02:59:59"))));
        clock.set(SystemTime::from(autumn) + std::time::Duration::from_secs(1));
        assert!((0..50_000_000).contains(&(clock.local_ticks() - ticks("2024-10-27T02:00:00"))));
        assert_eq!(clock.zone_names().0, "W. Europe Standard Time");
        assert!(clock.set_zone("Mars/Olympus").is_err());
    }
}
