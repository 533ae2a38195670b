//! When a failed write is tried again, and when it is not the target that is to blame.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use schemas::ErrorClass;
use sinks::Retry;
use tokio::time::Instant;

use super::trouble::Trouble;

/// Answers that nobody understands do not pass by waiting: after so many in a row the batch is looked at.
const UNEXPECTED_ANSWERS: u32 = 3;

#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    next_pause: Duration,
    /// When the writes that fail now began to.
    failing_since: Option<Instant>,
    unexpected: u32,
}

impl Attempts {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, next_pause: retry.first_pause, failing_since: None, unexpected: 0 }
    }

    /// As they stood when another process left off.
    pub(super) fn restored(retry: Retry, trouble: &Trouble) -> Self {
        let next_pause = trouble.pause().clamp(retry.first_pause, retry.longest_pause);
        Self { next_pause, failing_since: Instant::now().checked_sub(trouble.failing()), ..Self::new(retry) }
    }

    /// What another process would have to know of them.
    pub(super) fn trouble(&self, note: Option<String>) -> Trouble {
        let failing = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
        Trouble::new(failing, self.next_pause, note)
    }

    /// The cursor has moved. (That other batches of a load were taken says nothing of the one that ends it.)
    pub(super) fn succeeded(&mut self) {
        *self = Self::new(self.retry);
    }

    /// A write has failed. Answers whether it is time to write its changes in smaller parts: the target can be reached and does not ask for patience, and this batch has had all the time that it gets.
    pub(super) fn is_spent(&mut self, error: &sinks::Error) -> bool {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        match error {
            sinks::Error::Throttled { .. } => false,
            error => match error.class() {
                ErrorClass::Misconfigured => false,
                ErrorClass::Bug => {
                    self.unexpected += 1;
                    self.unexpected >= UNEXPECTED_ANSWERS
                }
                _ => since.elapsed() >= self.retry.budget,
            },
        }
    }

    /// How long to wait before the next attempt. What somebody has to mend is looked at now and then; a target that said how long is believed.
    pub(super) fn pause(&mut self, error: &sinks::Error) -> Duration {
        if error.class() == ErrorClass::Misconfigured {
            return self.retry.longest_pause;
        }
        let pause = self.next_pause;
        self.next_pause = (pause * 2).min(self.retry.longest_pause);
        error.pause().unwrap_or_default().max(shortened(pause, RandomState::new().hash_one(0)))
    }
}

/// Between a half of the pause and all of it, as a random number has it.
fn shortened(pause: Duration, random: u64) -> Duration {
    pause / 2 + (pause / 2).mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> sinks::Error {
        sinks::Error::unavailable("t", "gone")
    }

    #[test]
    fn pauses_grow_to_the_longest_and_are_never_more_than_half_left_out() {
        let retry =
            Retry { first_pause: Duration::from_millis(100), longest_pause: Duration::from_millis(350), ..Retry::default() };
        let mut attempts = Attempts::new(retry);
        for longest in [100, 200, 350, 350] {
            let pause = attempts.pause(&unavailable()).as_millis();
            assert!((longest / 2..=longest).contains(&pause), "{pause} of {longest}");
        }
        attempts.succeeded();
        assert!(attempts.pause(&unavailable()).as_millis() <= 100);
        assert_eq!(shortened(Duration::from_secs(2), 0), Duration::from_secs(1));
        assert_eq!(shortened(Duration::from_secs(2), u64::MAX), Duration::from_secs(2));
        let asked = sinks::Error::throttled("t", "slow down", Some(Duration::from_secs(60)));
        assert_eq!(attempts.pause(&asked), Duration::from_secs(60));
        assert_eq!(attempts.pause(&sinks::Error::misconfigured("t", "m", "r")), Duration::from_millis(350));
    }

    #[test]
    fn another_process_goes_on_with_them() {
        let retry = Retry { longest_pause: Duration::from_secs(20), budget: Duration::from_secs(60), ..Retry::default() };
        let mut attempts = Attempts::new(retry);
        assert!(!attempts.is_spent(&unavailable()));
        for _ in 0..20 {
            attempts.pause(&unavailable());
        }
        let trouble = attempts.trouble(Some("disabled".to_owned()));
        assert_eq!((trouble.pause(), trouble.note.as_deref()), (Duration::from_secs(20), Some("disabled")));
        let later = Trouble::new(Duration::from_secs(61), trouble.pause(), None);
        let mut attempts = Attempts::restored(retry, &later);
        assert!(attempts.pause(&unavailable()) >= Duration::from_secs(10), "the pauses go on");
        assert!(attempts.is_spent(&unavailable()), "and so does the budget");
        // The longest pause was made shorter meanwhile.
        let mut attempts = Attempts::restored(Retry { longest_pause: Duration::from_secs(1), ..retry }, &later);
        assert!(attempts.pause(&unavailable()) <= Duration::from_secs(1));
    }

    #[test]
    fn only_a_target_that_answers_has_its_batch_taken_apart() {
        let mut attempts = Attempts::new(Retry { budget: Duration::ZERO, ..Retry::default() });
        assert!(attempts.is_spent(&unavailable()));
        assert!(!attempts.is_spent(&sinks::Error::throttled("t", "slow down", None)));
        assert!(!attempts.is_spent(&sinks::Error::misconfigured("t", "m", "r")));
        let mut attempts = Attempts::new(Retry::default());
        assert!(!attempts.is_spent(&unavailable()));
        let unexpected = || sinks::Error::unexpected("t", "?");
        assert_eq!([(); 3].map(|()| attempts.is_spent(&unexpected())), [false, false, true]);
        attempts.succeeded();
        assert!(!attempts.is_spent(&unexpected()));
    }
}
