//! How fast tables are read: not faster than configured, and slower while the source is busy with something else.
//!
//! Where a rate is set, each chunk is followed by a wait that brings the average down to it. A source under stress answers slowly: where the time for a row is several times what it
//! was on average so far, the next chunk is asked for only after a wait as long as the slow one took, so that at least half of the time is left to others.

use std::time::{Duration, Instant};

use crate::config::SnapshotConfig;
use crate::status::StatusHandle;

/// How many times longer than on average a row takes where the source counts as busy.
const STRESSED: f64 = 4.0;
/// Chunks that are answered within this are no sign of anything.
const QUICK: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct Pace {
    rows_per_second: Option<u32>,
    yields: bool,
    /// When the rows so far may have been read at the earliest.
    due: Instant,
    /// Seconds a row, on average.
    usual: Option<f64>,
    status: StatusHandle,
}

impl Pace {
    pub(crate) fn new(config: &SnapshotConfig, status: StatusHandle) -> Self {
        let SnapshotConfig { rows_per_second, yield_to_load, .. } = config;
        Self { rows_per_second: *rows_per_second, yields: *yield_to_load, due: Instant::now(), usual: None, status }
    }

    /// Whether reading ahead would defeat a limit.
    pub(crate) fn is_limited(&self) -> bool {
        self.rows_per_second.is_some()
    }

    /// Waits after a chunk.
    pub(crate) async fn after(&mut self, rows: usize, took: Duration) {
        let wait = self.wait(rows, took, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long to wait after a chunk that was read at `now`.
    pub(crate) fn wait(&mut self, rows: usize, took: Duration, now: Instant) -> Duration {
        let mut wait = Duration::ZERO;
        if let Some(rate) = self.rows_per_second {
            // What was not used before now is not made up for.
            self.due = self.due.max(now) + Duration::from_secs_f64(rows as f64 / f64::from(rate.max(1)));
            wait = self.due.saturating_duration_since(now);
        }
        if rows > 0 {
            let each = took.as_secs_f64() / rows as f64;
            let stressed = self.usual.is_some_and(|usual| each > usual * STRESSED) && took > QUICK;
            if stressed && self.yields {
                tracing::info!(milliseconds = took.as_millis(), "the source is slow; waiting");
                self.status.update(|status| status.pauses += 1);
                wait = wait.max(took.min(LONGEST_WAIT));
            } else {
                // Slowly, so that the average stands for the source at its ease.
                self.usual = Some(self.usual.map_or(each, |usual| usual * 0.9 + each * 0.1));
            }
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_over_time() {
        let mut pace =
            Pace::new(&SnapshotConfig { rows_per_second: Some(1000), ..SnapshotConfig::default() }, StatusHandle::default());
        let start = pace.due;
        assert_eq!(pace.wait(500, Duration::ZERO, start), Duration::from_millis(500));
        assert_eq!(pace.wait(500, Duration::ZERO, start + Duration::from_millis(100)), Duration::from_millis(900));
        // A pause is not made up for by a burst.
        assert_eq!(pace.wait(100, Duration::ZERO, start + Duration::from_secs(9)), Duration::from_millis(100));
    }

    #[test]
    fn a_slow_source_is_given_time() {
        let mut pace = Pace::new(&SnapshotConfig::default(), StatusHandle::default());
        let now = Instant::now();
        let normal = Duration::from_millis(300);
        for _ in 0..10 {
            assert_eq!(pace.wait(1000, normal, now), Duration::ZERO);
        }
        assert_eq!(pace.wait(1000, Duration::from_secs(3), now), Duration::from_secs(3));
        assert_eq!(pace.wait(1000, Duration::from_secs(300), now), LONGEST_WAIT);
        assert_eq!(pace.wait(1000, normal, now), Duration::ZERO);
        assert_eq!(pace.status.get().pauses, 2);
        let mut stubborn =
            Pace::new(&SnapshotConfig { yield_to_load: false, ..SnapshotConfig::default() }, StatusHandle::default());
        assert_eq!(stubborn.wait(1000, normal, now), Duration::ZERO);
        assert_eq!(stubborn.wait(1000, Duration::from_secs(3), now), Duration::ZERO);
    }
}
