//! Entities as a Kinesis stream: on kinesis-local, and on the streams' own stub, which fails as it is told. Not tested against AWS.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::change::{EntityChange, EntityKey};
use schemas::progress::StreamName;
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::Sink;
use sinks::kinesis::{KinesisConfig, KinesisSink};
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Positions, Provider};

const LIMIT: Duration = Duration::from_secs(30);

fn change(key: u32, version: u8) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, version, 0, 1]),
        commit_time_ms: 0,
        document: Some(json!({"n": key, "version": version}).to_string().into()),
    }
}

async fn sink(config: KinesisConfig, options: KinesisOptions) -> KinesisSink {
    let mut sink = KinesisSink::with_options(config, options);
    sink.prepare(&[]).await.unwrap();
    sink
}

/// The versions of each key in the order in which a reader gets them, when there are at least so many events.
async fn read(options: KinesisOptions, stream: &str, events: usize) -> BTreeMap<String, Vec<u64>> {
    let provider = Kinesis::connect(options).await.unwrap();
    let mut reader = provider.reader(&StreamName(stream.to_owned()), &Positions::new()).await.unwrap();
    let mut versions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut count = 0;
    while count < events {
        let batch = tokio::time::timeout(LIMIT, reader.next()).await.unwrap().unwrap();
        for (_, data) in batch.records {
            let event: Value = serde_json::from_slice(&data).unwrap();
            assert_eq!(event["entity"], "order");
            let key = event["entitykey"].as_str().unwrap().to_owned();
            versions.entry(key).or_default().push(event["data"]["version"].as_u64().unwrap());
            count += 1;
        }
    }
    versions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_and_what_follows_it_are_read_in_the_order_of_each_key() {
    let directory = tempfile::tempdir().unwrap();
    let local = KinesisLocal::start(directory.path()).unwrap();
    let config = KinesisConfig { shards: 3, ..KinesisConfig::new("entities") };
    let before = KinesisSink::with_options(config.clone(), local.options()).check(&[]).await.unwrap();
    assert!(before.detail.contains("will be made"), "{before:?}");
    let mut sink = sink(config, local.options()).await;
    sink.begin_load().await.unwrap();
    let load: Vec<_> = (0..200).map(|key| change(key, 1)).collect();
    assert_eq!(sink.write(&load, None).await.unwrap(), []);
    sink.end_load("order", Lsn::ZERO).await.unwrap();
    sink.write(&[], Some(Lsn::MAX)).await.unwrap();
    for version in 2..=4 {
        let changes: Vec<_> = (0..200).map(|key| change(key, version)).collect();
        assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    }
    assert!(sink.check(&[]).await.unwrap().detail.contains("3 shards"));
    let versions = read(local.options(), "entities", 800).await;
    assert!(versions.len() == 200 && versions.values().all(|versions| versions == &[1, 2, 3, 4]), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_every_key_ends_at_its_last_version() {
    let stub = Stub::start().await.unwrap();
    let mut sink = sink(KinesisConfig { shards: 4, ..KinesisConfig::new("entities") }, stub.options()).await;
    stub.set_faults(Faults { every_entry: 5, every_put: 7, every_put_lost: 3, ..Faults::default() });
    for version in 1..=10 {
        let changes: Vec<_> = (0..50).map(|key| change(key, version)).collect();
        assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    }
    assert!(stub.calls().failed > 0);
    stub.set_faults(Faults::default());
    let versions = read(stub.options(), "entities", 500).await;
    for (key, versions) in versions {
        let mut seen = versions.clone();
        seen.dedup();
        assert!(seen.is_sorted() && seen.iter().copied().eq(1..=10), "{key}: {versions:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_a_dead_letter_and_what_is_not_allowed_is_told() {
    let stub = Stub::start().await.unwrap();
    let mut sink = sink(KinesisConfig { max_record_bytes: 4096, ..KinesisConfig::new("entities") }, stub.options()).await;
    let large = EntityChange { document: Some(json!({"text": "x".repeat(5000)}).to_string().into()), ..change(1, 1) };
    let rejected = sink.write(&[change(0, 1), large, change(2, 1)], None).await.unwrap();
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.contains("4096"), "{}", rejected[0].reason);
    assert_eq!(read(stub.options(), "entities", 2).await.len(), 2);
    stub.set_faults(Faults { forbidden: Some("PutRecords"), ..Faults::default() });
    let error = sink.write(&[change(3, 1)], None).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("kinesis:PutRecords"), "{error}");
    // With the permission given, the same sink goes on.
    stub.set_faults(Faults::default());
    sink.prepare(&[]).await.unwrap();
    assert_eq!(sink.write(&[change(3, 1)], None).await.unwrap(), []);
}
