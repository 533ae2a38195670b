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
#[derive(Debug)]
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
    /// What the request in flight carries, in order.
    pub(super) in_flight: Vec<Queued>,
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
}

impl Lane {
    pub(super) fn new(shard: Shard, options: &KinesisOptions) -> Self {
        let pace = Pace::new(options.shard_bytes_per_second, options.shard_records_per_second);
        Self { shard, queue: VecDeque::new(), in_flight: Vec::new(), pace, most_bytes: options.max_record_bytes }
    }

    /// Moves the next run of records into flight and answers the one Kinesis record that carries them.
    pub(super) fn launch(&mut self) -> Option<PutRecordsRequestEntry> {
        // The Kinesis record's own partition key, at most 256 characters of at most 4 bytes, counts as well.
        const OWN_KEY_BYTES: usize = 1024;
        let mut left = self.pace.request_bytes(self.most_bytes).saturating_sub(aggregate::OVERHEAD_BYTES + OWN_KEY_BYTES);
        while let Some(next) = self.queue.front() {
            let Some(rest) = left.checked_sub(next.cost()) else { break };
            if self.in_flight.len() == PLACES {
                break;
            }
            left = rest;
            self.in_flight.extend(self.queue.pop_front());
        }
        if self.in_flight.is_empty() {
            // One that is larger than the shard's pace allows still goes, alone.
            self.in_flight.extend(self.queue.pop_front());
        }
        let first = self.in_flight.first()?;
        // The MD5 of the first record's partition key: a key that Kinesis would not take routes all the same, and an aggregate never comes to a shard that holds none of it.
        let entry = PutRecordsRequestEntry::builder().explicit_hash_key(first.hash.to_string());
        let entry = match &self.in_flight[..] {
            [only] if !aggregate::looks_aggregated(&only.data) => {
                let key = if is_sayable(&only.partition_key) { &only.partition_key } else { "-" };
                self.pace.spend(key.len() + only.data.len());
                entry.partition_key(key).data(Blob::new(only.data.to_vec()))
            }
            run => {
                let records = run.iter().map(|record| (&record.partition_key[..], &record.data[..]));
                let data = aggregate::encode(records);
                self.pace.spend(aggregate::OWN_KEY.len() + data.len());
                entry.partition_key(aggregate::OWN_KEY).data(Blob::new(data))
            }
        };
        entry.build().ok()
    }
}

/// Whether Kinesis takes the key for a record's own. An empty one it refuses, and the 256 characters that it allows may be counted in units of UTF-16.
fn is_sayable(key: &str) -> bool {
    !key.is_empty() && (key.len() <= 256 || key.encode_utf16().count() <= 256)
}

/// Puts one record until it is acknowledged. A request of one record succeeds or fails whole, so whatever is tried again is all of it.
pub(super) async fn put(client: Arc<Client>, stream: StreamName, entry: PutRecordsRequestEntry) -> Result<Answer, Error> {
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
                        return Ok(Answer { shard, sequence: sequence.to_owned(), throttled: attempts.throttled });
                    }
                    (_, _, Some(code)) => Failure::from_code(code, result.error_message().unwrap_or_default()),
                    _ => return Err(bug(OPERATION, &stream, "an entry with neither a sequence number nor an error")),
                }
            }
        };
        attempts.pause(OPERATION, failure).await.map_err(|failure| failure.into_error(OPERATION, &stream))?;
    }
}
