//! Splits and merges in the middle of writing and reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use schemas::progress::{SequenceNumber, StreamName};
use streams::config::{AgedPositions, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Error, Positions, Provider};

use crate::support::{Read, reader, record};

/// Reshards by hand, as an operator would.
struct Operator {
    client: Client,
    stream: StreamName,
}

impl Operator {
    fn new(endpoint: &str, stream: &StreamName) -> Self {
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
    async fn open_shards(&self) -> Vec<(String, u128, u128)> {
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

    /// Splits or merges, as chance has it, and waits until the stream is active again.
    async fn reshard(&self, random: &mut StdRng) {
        let open = self.open_shards().await;
        if open.len() > 1 && (open.len() > 5 || random.random_bool(0.5)) {
            let at = random.random_range(0..open.len() - 1);
            let request = self.client.merge_shards().stream_name(&self.stream.0);
            request.shard_to_merge(&open[at].0).adjacent_shard_to_merge(&open[at + 1].0).send().await.unwrap();
        } else {
            let (id, first, last) = &open[random.random_range(0..open.len())];
            let middle = first + (last - first) / 3 + 1;
            let request = self.client.split_shard().stream_name(&self.stream.0);
            request.shard_to_split(id).new_starting_hash_key(middle.to_string()).send().await.unwrap();
        }
        loop {
            let answer = self.client.describe_stream_summary().stream_name(&self.stream.0).send().await.unwrap();
            if answer.stream_description_summary().unwrap().stream_status().as_str() == "ACTIVE" {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Writes in random runs, reshards in between without waiting for them, reads at the same time; then everything again from the start, and from
/// the positions in the middle.
async fn write_and_read_over_reshards(options: KinesisOptions, seed: u64, reshards: usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let stream = StreamName(format!("reshards.{seed}"));
    let provider: Arc<dyn Provider> = Arc::new(Kinesis::connect(options.clone()).await.unwrap());
    provider.ensure(&stream, 2).await.unwrap();
    let operator = Operator::new(options.endpoint.as_ref().unwrap(), &stream);
    let mut writer = provider.writer().await.unwrap();
    let mut follower = reader(&*provider, &stream, &Positions::new()).await;
    let mut expected: BTreeMap<String, usize> = BTreeMap::new();
    let mut read = Read::default();
    let mut flushed = BTreeMap::new();
    for round in 0..=reshards {
        for _ in 0..4 {
            let run: Vec<_> = (0..40)
                .map(|_| {
                    let key = format!("key {}", random.random_range(0..30));
                    let count = expected.entry(key.clone()).or_insert(0);
                    *count += 1;
                    record(&key, *count - 1, random.random_range(0..300))
                })
                .collect();
            writer.append(&stream, run).await.unwrap();
        }
        if random.random_bool(0.5) {
            flushed = writer.flush().await.unwrap();
            read.complete(&mut *follower, &expected).await;
        }
        if round < reshards {
            operator.reshard(&mut random).await;
        }
    }
    flushed.extend(writer.flush().await.unwrap());
    read.complete(&mut *follower, &expected).await;
    read.assert_ordered_with_repeats(&expected);

    let mut again = Read::default();
    let mut from_start = reader(&*provider, &stream, &Positions::new()).await;
    again.complete(&mut *from_start, &expected).await;
    again.assert_ordered_with_repeats(&expected);
    // Whoever has read up to the answered positions has read everything.
    for (shard, number) in &flushed[&stream] {
        let seen = again.positions().remove(shard);
        assert!(seen.as_ref() >= Some(number), "{shard}: {seen:?} read, {number} answered");
    }
    for _ in 0..3 {
        let begun = random.random_range(0..again.records.len());
        let mut read = Read { records: again.records[..begun].to_vec() };
        let after = read.positions();
        read.complete(&mut *reader(&*provider, &stream, &after).await, &expected).await;
        read.assert_ordered_with_repeats(&expected);
    }
}

/// A consumer's positions say what it has applied: those of children may stand while records of their parent, though read, are not behind the parent's.
#[tokio::test]
async fn a_parent_goes_on_at_its_own_position_though_its_children_have_theirs() {
    const KEYS: usize = 20;
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("applied".into());
    let provider = Kinesis::connect(stub.options()).await.unwrap();
    provider.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = provider.writer().await.unwrap();
    // Every key's records 0 and 1 are in the parent, 2 and 3 in one of its two children.
    let mut stood = Vec::new();
    for number in 0..4 {
        if number == 2 {
            operator.reshard(&mut StdRng::seed_from_u64(0)).await;
        }
        writer.append(&stream, (0..KEYS).map(|key| record(&format!("key {key}"), number, 10)).collect()).await.unwrap();
        stood.push(writer.flush().await.unwrap().remove(&stream).unwrap());
    }
    assert_eq!(stood[3].len(), 3, "{stood:?}");
    let (parent, in_parent) = stood[0].first_key_value().unwrap();
    let children: Positions =
        stood[2].iter().filter(|(shard, _)| *shard != parent).map(|(id, at)| (id.clone(), at.clone())).collect();

    // The parent's position, and the records of each key that are to come.
    let cases: [(Option<&SequenceNumber>, &[usize]); 3] =
        [(Some(in_parent), &[1, 3]), (Some(&stood[1][parent]), &[3]), (None, &[0, 1, 3])];
    for (at, expected) in cases {
        let mut after = children.clone();
        after.extend(at.map(|at| (parent.clone(), at.clone())));
        let mut read = Read::default();
        read.count(&mut *reader(&provider, &stream, &after).await, expected.len() * KEYS).await;
        let keys = read.by_key();
        assert!(keys.len() == KEYS && keys.values().all(|numbers| numbers == expected), "after {after:?}: {keys:?}");
        // The parent before its children.
        assert!(read.records.is_sorted_by_key(|(shard, ..)| shard != parent), "after {after:?}");
    }

    // A parent whose position has aged is refused while records after it are left, and is done when nothing is.
    let refusing = Kinesis::connect(KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() }).await.unwrap();
    let mut after = children.clone();
    after.insert(parent.clone(), in_parent.clone());
    stub.trim(&stream, parent, 1);
    let error = reader(&refusing, &stream, &after).await.next().await.unwrap_err();
    assert!(matches!(&error, Error::Trimmed { shard, .. } if shard == parent), "{error}");
    stub.trim(&stream, parent, usize::MAX);
    let mut read = Read::default();
    read.count(&mut *reader(&refusing, &stream, &after).await, KEYS).await;
    assert!(read.by_key().values().all(|numbers| numbers == &[3]), "{:?}", read.by_key());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_of_kinesis_local() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    for seed in 0..2 {
        write_and_read_over_reshards(server.options(), seed, 8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_and_faults() {
    for seed in 0..6 {
        let stub = Stub::start().await.unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let faults = Faults {
            every_entry: random.random_range(2..7),
            every_put: random.random_range(2..9),
            every_put_lost: random.random_range(3..11),
            every_put_cut: random.random_range(3..13),
            every_get: random.random_range(2..5),
            every_iterator: random.random_range(3..9),
            ..Faults::default()
        };
        println!("seed {seed}: {faults:?}");
        stub.set_faults(faults);
        write_and_read_over_reshards(stub.options(), seed, 6).await;
        assert!(stub.calls().failed > 0);
    }
}
