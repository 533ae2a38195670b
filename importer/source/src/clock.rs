//! Moments from the server's local times.
//!
//! `cdc.lsn_time_mapping` keeps commit times as `datetime` in the server's local time, without a zone. Two ways lead to UTC:
//! - with the zone's name configured (`time_zone: Europe/Zurich`), each time is converted with the offset in force *at that time*. In the hour that autumn repeats,
//!   a local time names two moments: the earlier is taken, so that a commit is never dated after what follows it;
//! - without, with the offset in force when the time was read. Only times from before the last change of the clocks are then wrong, by the hour: those
//!   of a backlog that is read across it. Nothing but `ts_ms` and the lag depends on them: order is by LSN.

use jiff::civil;
use jiff::tz::{AmbiguousOffset, TimeZone};
use schemas::value::Value;

use super::error::Error;

/// Day 719162 from 0001-01-01 is 1970-01-01.
const DAYS_TO_1970: i64 = 719_162;
const MILLISECONDS_PER_DAY: i64 = 86_400_000;
const TICKS_PER_MILLISECOND: i64 = 10_000;

/// How local times become moments.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    zone: Option<TimeZone>,
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

    /// Milliseconds since 1970-01-01 UTC of a local time, given the server's present offset. NULL is 0: not known.
    pub fn unix_ms(&self, local: &Value, offset_minutes: i64) -> Result<i64, Error> {
        let doing = "reading a commit time";
        let Value::DateTime { days, ticks, .. } = local else {
            return if *local == Value::Null {
                Ok(0)
            } else {
                Err(Error::Unexpected { doing, what: format!("{local:?} is not a datetime") })
            };
        };
        let local_ms = (i64::from(*days) - DAYS_TO_1970) * MILLISECONDS_PER_DAY + ticks.cast_signed() / TICKS_PER_MILLISECOND;
        let offset_ms = match &self.zone {
            None => offset_minutes * 60_000,
            Some(zone) => offset_at(zone, local_ms)
                .ok_or_else(|| Error::Unexpected { doing, what: format!("{local:?} is out of range") })?,
        };
        Ok(local_ms - offset_ms)
    }
}

/// The offset in force at a local time given as if it were UTC, in milliseconds.
fn offset_at(zone: &TimeZone, local_ms: i64) -> Option<i64> {
    let local: civil::DateTime = jiff::Timestamp::from_millisecond(local_ms).ok()?.to_zoned(TimeZone::UTC).datetime();
    let offset = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } | AmbiguousOffset::Fold { before, .. } => before,
    };
    Some(i64::from(offset.seconds()) * 1000)
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
    fn without_a_zone_the_present_offset_counts() {
        let clock = Clock::default();
        assert_eq!(utc(&clock, "2024-07-01T12:00:00", 120), "2024-07-01T10:00:00Z");
        assert_eq!(utc(&clock, "1969-12-31T23:00:00", -330), "1970-01-01T04:30:00Z");
        assert_eq!(clock.unix_ms(&Value::Null, 0).unwrap(), 0);
    }
}
