//! Whoever else works on a stream, by the SDK's own calls: an operator who reshards, a producer and a consumer that are not ours.

use std::ops::RangeInclusive;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use aws_sdk_kinesis::types::ShardIteratorType;
use rand::RngExt as _;
use rand::rngs::StdRng;
use schemas::progress::StreamName;

/// A Kinesis record, with the hashes that its shard holds.
pub(crate) struct Raw {
    pub(crate) hashes: RangeInclusive<u128>,
    pub(crate) key: String,
    pub(crate) data: Vec<u8>,
}

/// Reshards by hand, as an operator would.
pub(crate) struct Operator {
    pub(crate) client: Client,
    stream: StreamName,
}

impl Operator {
    pub(crate) fn new(endpoint: &str, stream: &StreamName) -> Self {
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new("t", "t", None, None, "test"))
            .http_client(
                aws_smithy_http_client::Builder::new()
                    .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                        aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc,
                    ))
                    .build_https(),
            )
            .build();
        Self { client: Client::from_conf(config), stream: stream.clone() }
    }

    /// The open shards, in the order of their ranges: id, first hash, last hash.
    pub(crate) async fn open_shards(&self) -> Vec<(String, u128, u128)> {
        let answer = self.client.list_shards().stream_name(&self.stream.0).send().await.unwrap();
        let open =
            answer.shards().iter().filter(|shard| shard.sequence_number_range().unwrap().ending_sequence_number().is_none());
        let mut open: Vec<_> = open
            .map(|shard| {
                let range = shard.hash_key_range().unwrap();
                (
                    shard.shard_id().to_owned(),
                    range.starting_hash_key().parse().unwrap(),
                    range.ending_hash_key().parse().unwrap(),
                )
            })
            .collect();
        open.sort_by_key(|(_, first, _)| *first);
        open
    }

    /// Splits or merges, as chance has it, and waits until the stream is active again. What it sees may be old, as what others see: then it looks again.
    pub(crate) async fn reshard(&self, random: &mut StdRng) {
        loop {
            let open = self.open_shards().await;
            let done = if open.len() > 1 && (open.len() > 5 || random.random_bool(0.5)) {
                let at = random.random_range(0..open.len() - 1);
                let request = self.client.merge_shards().stream_name(&self.stream.0);
                request.shard_to_merge(&open[at].0).adjacent_shard_to_merge(&open[at + 1].0).send().await.is_ok()
            } else if open.is_empty() {
                false
            } else {
                let (id, first, last) = &open[random.random_range(0..open.len())];
                self.split_at(id, first + (last - first) / 3 + 1).await
            };
            if done {
                break;
            }
        }
        self.active().await;
    }

    async fn split_at(&self, shard: &str, at: u128) -> bool {
        let request = self.client.split_shard().stream_name(&self.stream.0);
        request.shard_to_split(shard).new_starting_hash_key(at.to_string()).send().await.is_ok()
    }

    async fn active(&self) {
        loop {
            let answer = self.client.describe_stream_summary().stream_name(&self.stream.0).send().await.unwrap();
            if answer.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE" {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Splits the shard of this hash in the middle.
    pub(crate) async fn split(&self, at: u128) {
        loop {
            let found = self.open_shards().await.into_iter().find(|(_, first, last)| (*first..=*last).contains(&at));
            if let Some((id, first, last)) = found
                && self.split_at(&id, first + (last - first) / 2 + 1).await
            {
                break;
            }
        }
        self.active().await;
    }

    /// Puts a record as any producer might.
    pub(crate) async fn put(&self, key: &str, data: &[u8]) {
        let request = self.client.put_record().stream_name(&self.stream.0).partition_key(key);
        request.data(Blob::new(data)).send().await.unwrap();
    }

    /// The Kinesis records of all shards as they are, parents before their children.
    pub(crate) async fn raw(&self) -> Vec<Raw> {
        let mut found = Vec::new();
        let shards = self.client.list_shards().stream_name(&self.stream.0).send().await.unwrap();
        for shard in shards.shards() {
            let range = shard.hash_key_range().unwrap();
            let hashes: RangeInclusive<u128> =
                range.starting_hash_key().parse().unwrap()..=range.ending_hash_key().parse().unwrap();
            let iterator = self.client.get_shard_iterator().stream_name(&self.stream.0).shard_id(shard.shard_id());
            let iterator = iterator.shard_iterator_type(ShardIteratorType::TrimHorizon).send().await.unwrap();
            let mut next = iterator.shard_iterator;
            while let Some(iterator) = next {
                let answer = self.client.get_records().shard_iterator(iterator).send().await.unwrap();
                let caught_up = answer.millis_behind_latest() == Some(0);
                let records = answer.records.into_iter();
                found.extend(records.map(|record| Raw {
                    hashes: hashes.clone(),
                    key: record.partition_key.unwrap(),
                    data: record.data.into_inner(),
                }));
                next = answer.next_shard_iterator.filter(|_| !caught_up);
            }
        }
        found
    }
}
