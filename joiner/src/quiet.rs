//! Shards that end before a record that a progress record names.
//!
//! A progress record is taken when every shard has been read up to where the record says that it stood. If the last records of a shard are gone (removed, or lost with a disk's cache, or past their retention in a shard that nobody
//! writes to any more), nothing would ever come from it, and the joiner would wait without a word. So when nothing has come for a while, the store is asked where its shards end. A shard that ends earlier is taken as read; then the counts tell
//! whether anything is missing (INV-6, [`crate::accounting`]): nothing is, where a snapshot that is read later makes up for what has been trimmed.
//!
//! What was acknowledged before the record was published is there to be read at once in the stores whose numbers are small; elsewhere (Kinesis) it may take a while, and a shard's end is found by reading it: there the wait is long.
//!
//! The store is asked beside everything else, one question a stream at a time: one that is slow to answer holds up nobody, least of all the reading that makes the question pointless. An answer holds for the records that waited when it was asked
//! for ([`Ended::waiting`]), and not for those that have come since, because what these name may have been written after the store looked.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use schemas::progress::{SequenceNumber, StreamName};
use streams::{Positions, Provider};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::inputs::Behind;

/// How often it is looked whether the next record waits.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long nothing may come before the store is asked.
const QUIET: Duration = Duration::from_secs(2);
const QUIET_ELSEWHERE: Duration = Duration::from_secs(60);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A shard that ends before what the next record waits for.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) behind: Behind,
    /// The last record that waited when the store was asked: the answer holds up to it.
    pub(crate) waiting: SequenceNumber,
}

/// What was asked about one stream.
struct Question {
    waits_for: Vec<Behind>,
    waiting: SequenceNumber,
    /// `None`: it did not answer.
    tips: Option<Positions>,
}

/// What the next record of a source has been waiting for, since when, and what the store has been asked.
pub(crate) struct Quiet {
    waits_for: Vec<Behind>,
    since: Instant,
    asked: JoinSet<Question>,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Self { waits_for: Vec::new(), since: Instant::now(), asked: JoinSet::new() }
    }

    /// Takes note of what the next record waits for, and asks the store about it once nothing has come for a while. `waiting`: the last record that waits. Returns at once.
    pub(crate) fn look(&mut self, provider: &Arc<dyn Provider>, waits_for: Vec<Behind>, waiting: &SequenceNumber) {
        if waits_for.is_empty() || waits_for != self.waits_for {
            // What is being asked has become pointless: answers that come yet would be about something else.
            *self = Self { waits_for, ..Self::new() };
            return;
        }
        let counting = waits_for.iter().all(|behind| SequenceNumber::to_u64(&behind.named).is_some());
        if !self.asked.is_empty() || self.since.elapsed() < if counting { QUIET } else { QUIET_ELSEWHERE } {
            return;
        }
        self.since = Instant::now();
        let mut rest = waits_for;
        while let Some(stream) = rest.first().map(|behind| behind.stream.clone()) {
            let (waits_for, others) = rest.into_iter().partition(|behind| behind.stream == stream);
            rest = others;
            self.asked.spawn(ask(provider.clone(), stream, waits_for, waiting.clone()));
        }
    }

    /// The next answer that any of them gets: the shards of a stream that end before what the next record waits for. Pending for as long as nothing is being asked. Nothing is lost when it is dropped.
    pub(crate) async fn answer(all: &mut [Self]) -> Vec<Ended> {
        let joined = poll_fn(|context| {
            let answers = all.iter_mut().map(|quiet| quiet.asked.poll_join_next(context));
            answers
                .into_iter()
                .find_map(|answer| if let Poll::Ready(Some(joined)) = answer { Some(joined) } else { None })
                .map_or(Poll::Pending, Poll::Ready)
        });
        match joined.await {
            Ok(Question { waits_for, waiting, tips: Some(tips) }) => waits_for
                .into_iter()
                .filter(|behind| tips.get(&behind.shard).is_none_or(|tip| *tip < behind.named))
                .map(|behind| Ended { behind, waiting: waiting.clone() })
                .collect(),
            // A store that does not answer is the reader's affair.
            _ => Vec::new(),
        }
    }
}

async fn ask(provider: Arc<dyn Provider>, stream: StreamName, waits_for: Vec<Behind>, waiting: SequenceNumber) -> Question {
    let tips = tokio::time::timeout(ANSWER, provider.tips(&stream)).await;
    Question { waits_for, waiting, tips: tips.ok().and_then(Result::ok) }
}
