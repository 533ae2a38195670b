//! Moments from the server's local times.
//!
//! `cdc.lsn_time_mapping` keeps commit times as `datetime` in the server's local time, without a zone. With the zone's name each time is converted with the offset in force *at
//! that time*. The name is the configuration's (`time_zone: Europe/Zurich`), or else what the server says of itself (`CURRENT_TIMEZONE_ID()`, from SQL Server 2022). With
//! neither, the offset in force when the time was read is used: only times from before the last change of the clocks are then wrong, by the hour.
//!
//! In the hour that autumn repeats, a local time names two moments. Transactions are converted in the order of their LSNs, which is that of their commits, and an idle
//! database is given one every few minutes: so the local time is seen to go back, and from there on it is the second pass ([`Commits`]). A time without a
//! neighbour is taken for the first pass, so that a commit is never dated after what follows it. In the hour that spring leaves out there is nothing to convert; a time that stands
//! there nevertheless (a clock that was late to be set) is read as if the change had not happened yet.
//!
//! Order is by LSN and never by these moments. `ts_ms`, the lag and what entities have of a time to live depend on them.

mod windows;

use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};
use schemas::Lsn;
use schemas::value::Value;
use tiberius::ColumnData;

use super::client::Client;
use super::decode::Columns;
use super::error::Error;
use super::sql;

/// Day 719162 from 0001-01-01 is 1970-01-01.
const DAYS_TO_1970: i64 = 719_162;
const MILLISECONDS_PER_DAY: i64 = 86_400_000;
const TICKS_PER_MILLISECOND: i64 = 10_000;
/// Commits that overlap may stand a little out of order; clocks go back by more.
const OVERLAP_MS: i64 = 60_000;

/// How local times become moments.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    zone: Option<TimeZone>,
}

/// Moments about an LSN, in milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    /// When the newest captured transaction at or before it was committed; `None`: there is none, or cleanup has removed it.
    pub committed_ms: Option<i64>,
    /// What the server's clock showed when this was asked.
    pub now_ms: i64,
}

/// A zone's name that is not known.
#[derive(Debug, thiserror::Error)]
#[error(
    "time_zone is {name:?}, which is not in the time zone database: use an IANA name, such as Europe/Zurich or UTC ({source})"
)]
pub struct UnknownZone {
    name: String,
    source: jiff::Error,
}

impl Clock {
    pub fn new(zone: Option<&str>) -> Result<Self, UnknownZone> {
        let zone =
            zone.map(|name| TimeZone::get(name).map_err(|source| UnknownZone { name: name.to_owned(), source })).transpose()?;
        Ok(Self { zone })
    }

    /// This clock, or, where no zone was configured, the server's own if it names one. What it does not say or nobody knows costs no more than the hour above.
    pub async fn of_server(&self, client: &mut Client) -> Result<Self, Error> {
        if self.zone.is_some() {
            return Ok(self.clone());
        }
        let doing = "asking for the server's time zone";
        let row = match client.rows(doing, sql::TIME_ZONE, vec![]).await {
            Ok(rows) => rows.into_iter().next(),
            Err(error @ Error::Connection { .. }) => return Err(error),
            // Before SQL Server 2022 there is no such function.
            Err(_) => None,
        };
        let name = row.map(|row| Columns::new(doing, row).optional_text()).transpose()?.flatten();
        let zone = name.as_deref().and_then(|name| TimeZone::get(windows::iana(name).unwrap_or(name)).ok());
        tracing::debug!(server_zone = name, known = zone.is_some(), "the server's time zone");
        Ok(Self { zone })
    }

    /// The zone's IANA name, where it is known.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_ref().and_then(TimeZone::iana_name)
    }

    /// For times that stand alone; see [`Commits`] for those in a row.
    pub fn unix_ms(&self, local: &Value, offset_minutes: i64) -> Result<i64, Error> {
        Ok(self.moments(local, offset_minutes)?.map_or(0, |(first, _)| first))
    }

    /// Which time an LSN stands for.
    pub async fn as_of(&self, client: &mut Client, lsn: Lsn) -> Result<AsOf, Error> {
        let doing = "asking when something was last committed";
        let parameter = ColumnData::Binary(Some(lsn.as_bytes().to_vec().into()));
        let row = client.rows(doing, sql::AS_OF, vec![parameter]).await?.into_iter().next();
        let row = row.ok_or_else(|| Error::Unexpected { doing, what: "the server tells no time".into() })?;
        let mut row = Columns::new(doing, row);
        let (committed, now, offset) = (row.value()?, row.value()?, row.int()?);
        let committed_ms = self.moments(&committed, offset)?.map(|(first, _)| first);
        Ok(AsOf { committed_ms, now_ms: self.unix_ms(&now, offset)? })
    }

    /// For the times of transactions in the order of their LSNs.
    pub fn commits(&self) -> Commits {
        Commits { clock: self.clone(), last: None }
    }

    /// The moments that a local time names, the first and the last, in milliseconds since 1970-01-01 UTC. `None`: it is NULL.
    fn moments(&self, local: &Value, offset_minutes: i64) -> Result<Option<(i64, i64)>, Error> {
        let doing = "reading a commit time";
        let Value::DateTime { days, ticks, .. } = local else {
            return if *local == Value::Null {
                Ok(None)
            } else {
                Err(Error::Unexpected { doing, what: format!("{local:?} is not a datetime") })
            };
        };
        let local_ms = (i64::from(*days) - DAYS_TO_1970) * MILLISECONDS_PER_DAY + ticks.cast_signed() / TICKS_PER_MILLISECOND;
        let (first, last) = match &self.zone {
            None => (offset_minutes * 60_000, offset_minutes * 60_000),
            Some(zone) => offsets_at(zone, local_ms)
                .ok_or_else(|| Error::Unexpected { doing, what: format!("{local:?} is out of range") })?,
        };
        Ok(Some((local_ms - first, local_ms - last)))
    }
}

/// Converts the times of transactions one after the other.
#[derive(Debug, Clone)]
pub struct Commits {
    clock: Clock,
    last: Option<i64>,
}

impl Commits {
    /// Milliseconds since 1970-01-01 UTC of the next transaction's local time, given the server's present offset. NULL is 0: not known.
    pub fn unix_ms(&mut self, local: &Value, offset_minutes: i64) -> Result<i64, Error> {
        let Some((first, second)) = self.clock.moments(local, offset_minutes)? else { return Ok(0) };
        let went_back = self.last.is_some_and(|last| first + OVERLAP_MS < last);
        let moment = if went_back { second } else { first };
        self.last = Some(moment);
        Ok(moment)
    }
}

/// The offsets in force at a local time given as if it were UTC, in milliseconds: before and after a change that makes it name two moments, else twice the same.
fn offsets_at(zone: &TimeZone, local_ms: i64) -> Option<(i64, i64)> {
    let local: civil::DateTime = jiff::Timestamp::from_millisecond(local_ms).ok()?.to_zoned(TimeZone::UTC).datetime();
    let (first, last) = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => (offset, offset),
        AmbiguousOffset::Gap { before, .. } => (before, before),
        AmbiguousOffset::Fold { before, after } => (before, after),
    };
    let ms = |offset: jiff::tz::Offset| i64::from(offset.seconds()) * 1000;
    Some((ms(first), ms(last)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn local(text: &str) -> Value {
        let moment: civil::DateTime = text.parse().unwrap();
        let ms = moment.to_zoned(TimeZone::UTC).unwrap().timestamp().as_millisecond();
        let days = u32::try_from(ms.div_euclid(MILLISECONDS_PER_DAY) + DAYS_TO_1970).unwrap();
        let ticks = (ms.rem_euclid(MILLISECONDS_PER_DAY) * TICKS_PER_MILLISECOND).cast_unsigned();
        Value::DateTime { days, ticks, scale: 3 }
    }

    fn utc(clock: &Clock, text: &str, offset: i64) -> String {
        jiff::Timestamp::from_millisecond(clock.unix_ms(&local(text), offset).unwrap()).unwrap().to_string()
    }

    #[test]
    fn a_zone_gives_each_time_its_own_offset() {
        let zurich = Clock::new(Some("Europe/Zurich")).unwrap();
        assert_eq!(utc(&zurich, "2024-07-01T12:00:00.123", 0), "2024-07-01T10:00:00.123Z");
        assert_eq!(utc(&zurich, "2024-01-01T12:00:00", 0), "2024-01-01T11:00:00Z");
        assert_eq!(utc(&zurich, "2024-10-27T02:30:00", 0), "2024-10-27T00:30:00Z");
        assert!(Clock::new(Some("Mars/Olympus")).unwrap_err().to_string().contains("Europe/Zurich"));
    }

    #[test]
    fn the_hour_that_autumn_repeats_is_told_by_the_order_of_commits() {
        let zurich = Clock::new(Some("Europe/Zurich")).unwrap();
        let told = |locals: &[&str]| -> Vec<String> {
            let mut commits = zurich.commits();
            let ms = locals.iter().map(|text| commits.unix_ms(&local(&format!("2024-10-27T{text}")), 60).unwrap());
            ms.map(|ms| jiff::Timestamp::from_millisecond(ms).unwrap().strftime("%H:%M:%S").to_string()).collect()
        };
        assert_eq!(
            told(&["01:59:00", "02:00:00", "02:30:00", "02:59:59", "02:00:00", "02:30:00", "02:29:55", "02:59:59", "03:00:00"]),
            ["23:59:00", "00:00:00", "00:30:00", "00:59:59", "01:00:00", "01:30:00", "01:29:55", "01:59:59", "02:00:00"]
        );
        // Alone, or overlapping by moments: the first pass.
        assert_eq!(told(&["02:30:00", "02:29:30", "02:31:00"]), ["00:30:00", "00:29:30", "00:31:00"]);
    }

    #[test]
    fn the_hour_that_spring_leaves_out_moves_nothing_else() {
        let zurich = Clock::new(Some("Europe/Zurich")).unwrap();
        assert_eq!(utc(&zurich, "2024-03-31T01:59:59.997", 0), "2024-03-31T00:59:59.997Z");
        assert_eq!(utc(&zurich, "2024-03-31T02:30:00", 0), "2024-03-31T01:30:00Z");
        assert_eq!(utc(&zurich, "2024-03-31T03:00:00", 0), "2024-03-31T01:00:00Z");
    }

    #[test]
    fn without_a_zone_the_present_offset_counts() {
        let clock = Clock::default();
        assert_eq!(utc(&clock, "2024-07-01T12:00:00", 120), "2024-07-01T10:00:00Z");
        assert_eq!(utc(&clock, "1969-12-31T23:00:00", -330), "1970-01-01T04:30:00Z");
        assert_eq!(clock.unix_ms(&Value::Null, 0).unwrap(), 0);
    }
}
