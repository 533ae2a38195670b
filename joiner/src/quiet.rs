//! Shards that end before a record that a progress record names.
//!
//! A progress record is taken when every shard has been read up to where the record says that it stood. If the last records of a shard are gone (removed, or lost with a disk's cache, or past their retention in a shard that nobody
//! writes to any more), nothing would ever come from it, and the joiner would wait without a word. So when nothing has come for a while, the store is asked where its shards end. A shard that ends earlier is taken as read; then the counts tell
//! whether anything is missing (INV-6, [`crate::accounting`]): nothing is, where a snapshot that is read later makes up for what has been trimmed.
//!
//! What was acknowledged before the record was published is there to be read at once in the stores whose numbers are small; elsewhere (Kinesis) it may take a while, and a shard's end is found by reading it: there the wait is long.

use std::time::Duration;

use schemas::progress::SequenceNumber;
use streams::Provider;
use tokio::time::Instant;

use crate::inputs::Behind;

/// How often it is looked whether the next record waits.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long nothing may come before the store is asked.
const QUIET: Duration = Duration::from_secs(2);
const QUIET_ELSEWHERE: Duration = Duration::from_secs(60);
/// How long the answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What the next record has been waiting for, and since when.
#[derive(Debug)]
pub(crate) struct Quiet {
    waits_for: Vec<Behind>,
    since: Instant,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Self { waits_for: Vec::new(), since: Instant::now() }
    }

    /// The shards that end before what the next record waits for.
    pub(crate) async fn look(&mut self, provider: &dyn Provider, waits_for: Vec<Behind>) -> Vec<Behind> {
        if waits_for.is_empty() || waits_for != self.waits_for {
            *self = Self { waits_for, ..Self::new() };
            return Vec::new();
        }
        let counting = waits_for.iter().all(|behind| SequenceNumber::to_u64(&behind.named).is_some());
        if self.since.elapsed() < if counting { QUIET } else { QUIET_ELSEWHERE } {
            return Vec::new();
        }
        self.since = Instant::now();
        let mut ended = Vec::new();
        for behind in waits_for {
            // A store that does not answer is the reader's affair.
            if let Ok(Ok(tips)) = tokio::time::timeout(ANSWER, provider.tips(&behind.stream)).await
                && tips.get(&behind.shard).is_none_or(|tip| *tip < behind.named)
            {
                ended.push(behind);
            }
        }
        ended
    }
}
