//! Shards that end before a record that a progress record names.
//!
//! If the last records of a shard are gone (trimmed, removed, or past their retention in a shard that nobody writes to any more), nothing would ever come of it, and everything behind the progress record that names them would wait without a word.
//! So when nothing has come for a while, the store is asked where its shards end. A shard that ends earlier is taken as read up to the greatest number that any progress record named when the store was asked: all of that had been acknowledged
//! before. What is missing by it, the counts tell.
//!
//! What was acknowledged is there to be read at once in the stores whose numbers are small; elsewhere (Kinesis) it may take a while, and a shard's end is found by reading it: there the wait is long. The store is asked beside everything
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use schemas::progress::{SequenceNumber, StreamName};
use streams::{Positions, Provider};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::collect::Behind;

/// How often it is looked what the next record waits for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long nothing may come before the store is asked.
const QUIET: Duration = Duration::from_secs(2);
const QUIET_ELSEWHERE: Duration = Duration::from_secs(60);
/// How long the answers may take.
const ANSWER: Duration = Duration::from_secs(30);

type Tips = BTreeMap<StreamName, Positions>;

/// What the next record waits for, since when, and what the store is being asked.
#[derive(Debug)]
pub(crate) struct Quiet {
    waits_for: Vec<Behind>,
    since: Instant,
    asked: Option<AbortOnDropHandle<Tips>>,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Self { waits_for: Vec::new(), since: Instant::now(), asked: None }
    }

    /// Looks at what the next record waits for. Answers the shards that end before it, when the store has said so.
    pub(crate) async fn look(&mut self, provider: &Arc<dyn Provider>, waits_for: Vec<Behind>) -> Vec<Behind> {
        let same = |one: &[Behind], other: &[Behind]| {
            one.iter()
                .map(|behind| (&behind.shard, &behind.read, &behind.named))
                .eq(other.iter().map(|behind| (&behind.shard, &behind.read, &behind.named)))
        };
        if waits_for.is_empty() || !same(&waits_for, &self.waits_for) {
            *self = Self { waits_for, ..Self::new() };
            return Vec::new();
        }
        match self.asked.take_if(|asked| asked.is_finished()) {
            // A store that does not answer is the reader's affair.
            Some(answered) => {
                let tips = answered.await.unwrap_or_default();
                self.since = Instant::now();
                let ends = |behind: &Behind| {
                    let tip = tips.get(&behind.stream).map(|tips| tips.get(&behind.shard));
                    tip.is_some_and(|tip| tip.is_none_or(|tip| *tip < behind.named))
                };
                self.waits_for.iter().filter(|behind| ends(behind)).cloned().collect()
            }
            None if self.asked.is_none() && self.since.elapsed() >= patience(&self.waits_for) => {
                // The answer holds for what is named now.
                self.waits_for = waits_for;
                let streams: BTreeSet<StreamName> = self.waits_for.iter().map(|behind| behind.stream.clone()).collect();
                self.asked = Some(AbortOnDropHandle::new(tokio::spawn(ask(provider.clone(), streams))));
                Vec::new()
            }
            None => Vec::new(),
        }
    }
}

fn patience(waits_for: &[Behind]) -> Duration {
    let counting = waits_for.iter().all(|behind| SequenceNumber::to_u64(&behind.named).is_some());
    if counting { QUIET } else { QUIET_ELSEWHERE }
}

/// Where the shards of these streams end; those that do not answer in time are left out.
async fn ask(provider: Arc<dyn Provider>, streams: BTreeSet<StreamName>) -> Tips {
    let mut found = Tips::new();
    for stream in streams {
        if let Ok(Ok(tips)) = tokio::time::timeout(ANSWER, provider.tips(&stream)).await {
            found.insert(stream, tips);
        }
    }
    found
}
