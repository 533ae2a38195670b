//! The service's stream on Kinesis: plain and aggregated records, splits and merges while it is read, trimming.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kinesis::primitives::Blob;
use importer::Error;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use schemas::progress::ShardId;
use serde_json::{Value as Json, json};
use streams::Provider;
use streams::config::{AgedPositions, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::Stub;

use crate::support::{World, stream};

/// A service that writes its records one by one, and whoever reshards its stream.
struct Service(Client);

impl Service {
    fn new(stub: &Stub) -> Self {
        let tls = aws_smithy_http_client::tls::Provider::Rustls(aws_smithy_http_client::tls::rustls_provider::CryptoMode::AwsLc);
        let config = aws_sdk_kinesis::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(stub.endpoint())
            .credentials_provider(Credentials::new("t", "t", None, None, "test"))
            .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https());
        Self(Client::from_conf(config.build()))
    }

    async fn put(&self, key: &str, event: &Json) {
        let put = self.0.put_record().stream_name(stream().0).partition_key(key).data(Blob::new(event.to_string()));
        put.send().await.unwrap();
    }

    /// The open shards in the order of their ranges: id, first hash, last hash.
    async fn open_shards(&self) -> Vec<(String, u128, u128)> {
        let answer = self.0.list_shards().stream_name(stream().0).send().await.unwrap();
        let open =
            answer.shards().iter().filter(|shard| shard.sequence_number_range().unwrap().ending_sequence_number().is_none());
        let mut open: Vec<(String, u128, u128)> = open
            .map(|shard| {
                let range = shard.hash_key_range().unwrap();
                let (first, last) = (range.starting_hash_key().parse().unwrap(), range.ending_hash_key().parse().unwrap());
                (shard.shard_id().to_owned(), first, last)
            })
            .collect();
        open.sort_by_key(|(_, first, _)| *first);
        open
    }

    async fn reshard(&self, random: &mut StdRng) {
        let open = self.open_shards().await;
        if open.len() > 2 {
            let merge = self.0.merge_shards().stream_name(stream().0).shard_to_merge(&open[0].0);
            merge.adjacent_shard_to_merge(&open[1].0).send().await.unwrap();
        } else {
            let (id, first, last) = &open[random.random_range(0..open.len())];
            let middle = first + (last - first) / 2 + 1;
            let split = self.0.split_shard().stream_name(stream().0).shard_to_split(id);
            split.new_starting_hash_key(middle.to_string()).send().await.unwrap();
        }
    }
}

async fn world(stub: &Stub) -> World {
    // As the configuration has it for a service's stream.
    let options = KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() };
    let input: Arc<dyn Provider> = Arc::new(Kinesis::connect(options).await.unwrap());
    input.ensure(&stream(), 2).await.unwrap();
    World::over(input)
}

fn entry(id: i64, amount: i64) -> Json {
    json!({"type": "entry", "id": id, "data": {"id": id, "account": amount % 3, "amount": amount}})
}

/// Each key's events are numbered, and have to take effect in that order, over splits and merges and crashes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_by_key_survives_reshards_and_crashes() {
    let stub = Stub::start().await.unwrap();
    let mut world = world(&stub).await;
    world.config.tick_records = 50;
    let service = Service::new(&stub);
    let mut random = StdRng::seed_from_u64(11);
    let mut numbers: BTreeMap<i64, i64> = BTreeMap::new();
    let mut import = world.import();
    for round in 0..8 {
        let mut next = |random: &mut StdRng| {
            let id = random.random_range(0..12);
            let number = numbers.entry(id).or_default();
            *number += 1;
            entry(id, *number)
        };
        // Aggregated and plain records by turns; a key's are of one producer at a time.
        for _ in 0..3 {
            let events: Vec<Json> = (0..20).map(|_| next(&mut random)).collect();
            if random.random_bool(0.5) {
                world.say(&events).await;
            } else {
                for event in events {
                    service.put(&format!("\"entry\"{}", event["id"]), &event).await;
                }
            }
        }
        service.reshard(&mut random).await;
        if round % 3 == 1 {
            import.kill().await;
            import = world.import();
        }
    }
    import.kill().await;
    let total = numbers.values().sum::<i64>();
    let seen = world.import_until("all", |seen| seen.events.len() as i64 >= total).await;
    let mut read: BTreeMap<i64, i64> = BTreeMap::new();
    for event in &seen.events {
        let after = &event["after"];
        let number: f64 = after["amount"].as_str().unwrap().parse().unwrap();
        let last = read.insert(after["id"].as_i64().unwrap(), number as i64).unwrap_or_default();
        assert_eq!(number as i64, last + 1, "{event}");
    }
    assert_eq!(read, numbers);
    seen.tables();
}

#[tokio::test]
async fn records_that_were_trimmed_before_they_were_read_are_a_gap() {
    let stub = Stub::start().await.unwrap();
    let world = world(&stub).await;
    let service = Service::new(&stub);
    service.put("a", &entry(1, 1)).await;
    world.import_until("the first", |seen| seen.events.len() == 1).await;
    for number in 2..5 {
        service.put("a", &entry(1, number)).await;
    }
    for (shard, ..) in service.open_shards().await {
        stub.trim(&stream(), &ShardId(shard), 3);
    }
    let error = world.import_error().await;
    assert!(matches!(error, Error::InputGap { .. }), "{error}");
}
