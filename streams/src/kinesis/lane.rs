//! One shard's records on their way: the queue, and the one request in flight.

use std::collections::VecDeque;
use std::sync::Arc;

use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use bytes::Bytes;
use schemas::progress::{ShardId, StreamName};

use super::aggregate;
use super::bug;
use super::client::{Client, Failure, Shard};
use super::pace::Pace;
use super::position::PLACES;
use crate::Error;
use crate::config::KinesisOptions;

const OPERATION: &str = "PutRecords";

/// A record that has been accepted and not yet acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Queued {
    pub(super) hash: u128,
    pub(super) partition_key: String,
    pub(super) data: Bytes,
}

impl Queued {
    /// What it takes at most in an aggregate.
    pub(super) fn cost(&self) -> usize {
        self.partition_key.len() + self.data.len() + aggregate::RECORD_OVERHEAD_BYTES
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) shard: Shard,
    pub(super) queue: VecDeque<Queued>,
    /// What the request in flight carries, in order; shared with the task that sends it.
    pub(super) in_flight: Arc<Vec<Queued>>,
    pub(super) pace: Pace,
    most_bytes: usize,
}

/// An acknowledged request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) shard: ShardId,
    pub(super) sequence: String,
    /// Attempts that were throttled.
    pub(super) throttled: u32,
    /// What the Kinesis record came to.
    pub(super) bytes: usize,
}

impl Lane {
    pub(super) fn new(shard: Shard, options: &KinesisOptions) -> Self {
        let pace = Pace::new(options.shard_bytes_per_second, options.shard_records_per_second);
        Self { shard, queue: VecDeque::new(), in_flight: Arc::default(), pace, most_bytes: options.max_record_bytes }
    }

    /// Moves the next run of records into flight, and answers it. The queue is not empty, and nothing is in flight.
    pub(super) fn launch(&mut self) -> Arc<Vec<Queued>> {
        // The Kinesis record's own partition key, at most 256 characters of at most 4 bytes, counts as well.
        const OWN_KEY_BYTES: usize = 1024;
        let room = self.pace.request_bytes(self.most_bytes).saturating_sub(aggregate::OVERHEAD_BYTES + OWN_KEY_BYTES);
        let (mut run, mut cost) = (Vec::new(), 0);
        while let Some(next) = self.queue.front() {
            // One that is larger than the shard's pace allows still goes, alone.
            if !run.is_empty() && (cost + next.cost() > room || run.len() == PLACES) {
                break;
            }
            cost += next.cost();
            run.extend(self.queue.pop_front());
        }
        self.pace.spend(cost);
        self.in_flight = Arc::new(run);
        Arc::clone(&self.in_flight)
    }
}

/// The one Kinesis record that carries a run, and what Kinesis counts for it; none for an empty run.
fn entry(run: &[Queued]) -> Option<(PutRecordsRequestEntry, usize)> {
    // The MD5 of the first record's partition key: a key that Kinesis would not take routes all the same, and an aggregate never comes to a shard that holds none of it.
    let entry = PutRecordsRequestEntry::builder().explicit_hash_key(run.first()?.hash.to_string());
    let (key, data) = match run {
        [only] if !aggregate::looks_aggregated(&only.data) => {
            let key = if is_sayable(&only.partition_key) { &only.partition_key } else { "-" };
            (key, only.data.to_vec())
        }
        run => {
            let records = run.iter().map(|record| (&record.partition_key[..], &record.data[..]));
            (aggregate::OWN_KEY, aggregate::encode(records))
        }
    };
    let bytes = key.len() + data.len();
    Some((entry.partition_key(key).data(Blob::new(data)).build().ok()?, bytes))
}

/// Whether Kinesis takes the key for a record's own. An empty one it refuses, and the 256 characters that it allows may be counted in units of UTF-16.
fn is_sayable(key: &str) -> bool {
    !key.is_empty() && (key.len() <= 256 || key.encode_utf16().count() <= 256)
}

/// Puts a run until it is acknowledged. A request of one record succeeds or fails whole, so whatever is tried again is all of it.
pub(super) async fn put(client: Arc<Client>, stream: StreamName, run: Arc<Vec<Queued>>) -> Result<Answer, Error> {
    let (entry, bytes) = entry(&run).ok_or_else(|| bug(OPERATION, &stream, "a request without a record"))?;
    // The lane has it to itself again when this answers.
    drop(run);
    let mut attempts = client.attempts();
    loop {
        let failure = match client.sdk.put_records().stream_name(&stream.0).records(entry.clone()).send().await {
            Err(error) => Failure::from(error),
            Ok(output) => {
                let Some(result) = output.records().first() else {
                    return Err(bug(OPERATION, &stream, "an answer without an entry"));
                };
                match (result.shard_id(), result.sequence_number(), result.error_code()) {
                    (Some(shard), Some(sequence), None) => {
                        let shard = ShardId(shard.to_owned());
                        let (sequence, throttled) = (sequence.to_owned(), attempts.throttled);
                        return Ok(Answer { shard, sequence, throttled, bytes });
                    }
                    (_, _, Some(code)) => Failure::from_code(code, result.error_message().unwrap_or_default()),
                    _ => return Err(bug(OPERATION, &stream, "an entry with neither a sequence number nor an error")),
                }
            }
        };
        attempts.pause(OPERATION, failure).await.map_err(|failure| failure.into_error(OPERATION, &stream))?;
    }
}
