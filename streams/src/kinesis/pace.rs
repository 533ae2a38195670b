//! How fast a lane may send: within the quotas of its shard, and slower where others write to the shard as well.
//!
//! Additive increase, multiplicative decrease: the lane allows itself a share of the quotas; every request that went through without being throttled adds a little to it, every
//! attempt that was throttled takes a good part away. Writers that share a shard come to share its quota so, without knowing of each other. The share is spent as
//! from a bucket: a request goes when the bucket is not in debt, and takes out what it weighs, so that over any second the average holds, however the requests are cut.

use std::time::Duration;

use tokio::time::Instant;

/// What a request that went through adds to the share.
const INCREASE: f64 = 0.02;
/// What is left of the share by a throttled attempt.
const DECREASE: f64 = 0.7;
const LEAST_SHARE: f64 = 1.0 / 64.0;
/// The bucket holds so much of a second's allowance.
const BURST_SECONDS: f64 = 0.1;
/// A request carries so much of a second's allowance: small enough that a busy lane sends evenly, large enough that its records travel together.
const REQUEST_SECONDS: f64 = 0.1;
/// Smaller requests would cost more calls than they save time.
const LEAST_REQUEST_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Pace {
    share: f64,
    /// What was spent last.
    spent: usize,
    bytes: Option<Bucket>,
    records: Option<Bucket>,
}

/// What may be sent of one kind, bytes or records.
#[derive(Debug)]
struct Bucket {
    quota: f64,
    /// Below zero after a request: in debt.
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(quota: u64) -> Option<Self> {
        (quota > 0).then(|| Self { quota: quota as f64, left: 0.0, at: Instant::now() })
    }

    /// When the debt is paid; none when there is none.
    fn due(&mut self, share: f64, now: Instant) -> Option<Instant> {
        let rate = self.quota * share;
        self.left = (self.left + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(rate * BURST_SECONDS);
        self.at = now;
        (self.left < 0.0).then(|| now + Duration::from_secs_f64(-self.left / rate))
    }
}

impl Pace {
    /// Quotas for a second; 0 is none.
    pub(super) fn new(bytes: u64, records: u64) -> Self {
        Self { share: 1.0, spent: 0, bytes: Bucket::new(bytes), records: Bucket::new(records) }
    }

    /// When the next request may go; none when it may now.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        let share = self.share;
        let [bytes, records] =
            [&mut self.bytes, &mut self.records].map(|bucket| bucket.as_mut().and_then(|bucket| bucket.due(share, now)));
        bytes.max(records)
    }

    /// How many bytes a request may carry.
    pub(super) fn request_bytes(&self, most: usize) -> usize {
        match &self.bytes {
            Some(bytes) => ((bytes.quota * self.share * REQUEST_SECONDS) as usize).clamp(LEAST_REQUEST_BYTES.min(most), most),
            None => most,
        }
    }

    /// What was sent last came to so many bytes after all.
    pub(super) fn correct(&mut self, bytes: usize) {
        if let Some(bucket) = &mut self.bytes {
            bucket.left += self.spent as f64 - bytes as f64;
        }
        self.spent = bytes;
    }

    /// A Kinesis record of about so many bytes is sent.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.spent = bytes;
        for (bucket, amount) in [(&mut self.bytes, bytes as f64), (&mut self.records, 1.0)] {
            if let Some(bucket) = bucket {
                bucket.left -= amount;
            }
        }
    }

    /// A request has gone through, after so many attempts that were throttled.
    pub(super) fn learn(&mut self, throttled: u32) {
        self.share = if throttled > 0 {
            (self.share * DECREASE.powi(throttled.min(64) as i32)).max(LEAST_SHARE)
        } else {
            (self.share + INCREASE).min(1.0)
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What a lane sends in ten seconds that always has enough to send.
    async fn sent(pace: &mut Pace, request_bytes: usize) -> (usize, usize) {
        let until = Instant::now() + Duration::from_secs(10);
        let (mut bytes, mut records) = (0, 0);
        loop {
            if let Some(due) = pace.due(Instant::now()) {
                tokio::time::sleep_until(due).await;
            }
            if Instant::now() >= until {
                return (bytes, records);
            }
            pace.spend(request_bytes);
            (bytes, records) = (bytes + request_bytes, records + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_to_both_quotas_however_the_requests_are_cut() {
        for (request, bytes, records) in [(100, 1_000_000, 10_000), (10_000, 10_000_000, 1000), (1_000_000, 10_000_000, 10)] {
            let (sent_bytes, sent_records) = sent(&mut Pace::new(1_000_000, 1000), request).await;
            // A debt more at the start, and what is left of the last.
            assert!((bytes..=bytes + bytes / 5).contains(&sent_bytes), "{request}: {sent_bytes} bytes");
            assert!((records..=records + records / 5).contains(&sent_records), "{request}: {sent_records} records");
        }
        let mut free = Pace::new(0, 0);
        free.spend(1 << 30);
        assert_eq!(free.due(Instant::now()), None);
        assert_eq!(free.request_bytes(1 << 20), 1 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn slows_when_throttled_and_recovers() {
        let mut pace = Pace::new(1_000_000, 1000);
        let full = pace.request_bytes(1 << 20);
        pace.learn(2);
        let slowed = sent(&mut pace, 10_000).await.0;
        assert!((4_000_000..6_000_000).contains(&slowed), "{slowed}");
        assert!(pace.request_bytes(1 << 20) < full);
        pace.learn(1000);
        assert!(sent(&mut pace, 1000).await.0 > 100_000, "it never stops altogether");
        for _ in 0..100 {
            pace.learn(0);
        }
        assert_eq!(pace.request_bytes(1 << 20), full);
    }
}
