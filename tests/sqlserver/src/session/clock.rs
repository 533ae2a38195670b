//! The server's clock: local time is UTC, so that what a test sees does not depend on where it runs.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::date::{DAYS_1970, TICKS_PER_DAY};

/// 100 ns ticks since 0001-01-01, as datetime2 is stored.
pub(crate) fn local_ticks() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    DAYS_1970 * TICKS_PER_DAY as i64 + (since.as_nanos() / 100) as i64
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
