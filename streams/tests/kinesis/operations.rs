//! Streams made with settings, listed, described; and what is said when that is not allowed.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Capacity, Created, Error, Positions, Provider, Setting, StreamSettings};

use crate::support::{Read, reader, record};

fn settings() -> StreamSettings {
    StreamSettings {
        capacity: Capacity::Shards(3),
        retention: Some(Duration::from_secs(48 * 3600)),
        encryption_key: Some("alias/aws/kinesis".into()),
        tags: (0..12).map(|number| (format!("tag{number}"), "shop".into())).collect(),
        max_record_bytes: Some(2 << 20),
    }
}

async fn makes_lists_and_describes(options: KinesisOptions) {
    let kinesis = Kinesis::connect(options).await.unwrap();
    let stream = StreamName("shop.events".into());
    assert_eq!(kinesis.create(&stream, &settings()).await.unwrap(), Created::New);
    let described = kinesis.describe(&stream).await.unwrap();
    assert_eq!(described.differences(&settings()), []);
    assert_eq!((described.open_shards(), described.retention), (3, settings().retention));
    assert_eq!(described.tags, settings().tags);
    assert_eq!(described.encryption_key.as_deref(), Some("alias/aws/kinesis"));
    let ranges: Vec<_> = described.shards.iter().map(|shard| shard.hashes.clone()).collect();
    assert_eq!((*ranges[0].start(), *ranges[2].end()), (0, u128::MAX));
    assert!(ranges.windows(2).all(|pair| pair[0].end() + 1 == *pair[1].start()), "{ranges:?}");

    // What there is stays as it is, and what differs is told.
    assert_eq!(kinesis.create(&stream, &settings()).await.unwrap(), Created::Existing { differs: Vec::new() });
    let other = StreamSettings { capacity: Capacity::Shards(4), tags: BTreeMap::from([("a".into(), "b".into())]), ..settings() };
    let Created::Existing { differs } = kinesis.create(&stream, &other).await.unwrap() else { panic!("it is there") };
    assert_eq!(differs.iter().map(|difference| difference.setting).collect::<Vec<_>>(), [Setting::Capacity, Setting::Tags]);
    assert_eq!(kinesis.describe(&stream).await.unwrap(), described);

    let other = StreamName("other".into());
    assert!(matches!(kinesis.describe(&other).await, Err(Error::NoSuchStream { .. })));
    kinesis.ensure(&other, 1).await.unwrap();
    let listed = |prefix: &'static str| {
        let kinesis = kinesis.clone();
        async move {
            let listed = kinesis.list(prefix).await.unwrap().into_iter();
            listed.map(|summary| (summary.stream.0, summary.open_shards)).collect::<Vec<_>>()
        }
    };
    assert_eq!(listed("shop.").await, [("shop.events".to_owned(), 3)]);
    assert_eq!(listed("").await, [("other".to_owned(), 1), ("shop.events".to_owned(), 3)]);
}

#[tokio::test]
async fn streams_of_the_stub_are_made_with_their_settings() {
    let stub = Stub::start().await.unwrap();
    makes_lists_and_describes(stub.options()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_kinesis_local_are_made_with_their_settings() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    makes_lists_and_describes(server.options()).await;
}

#[tokio::test]
async fn ensure_uses_what_is_configured() {
    let stub = Stub::start().await.unwrap();
    let options = KinesisOptions {
        on_demand: true,
        retention_hours: Some(72),
        encryption_key: Some("key".into()),
        tags: BTreeMap::from([("team".into(), "shop".into())]),
        max_record_bytes: 4 << 20,
        ..stub.options()
    };
    let kinesis = Kinesis::connect(options).await.unwrap();
    let stream = StreamName("s".into());
    kinesis.ensure(&stream, 5).await.unwrap();
    kinesis.ensure(&stream, 5).await.unwrap();
    let described = kinesis.describe(&stream).await.unwrap();
    assert_eq!(described.capacity, Capacity::OnDemand);
    assert_eq!(described.differences(&kinesis.settings(5)), []);
    assert_eq!(described.max_record_bytes, Some(4 << 20));
}

async fn changes_what_there_is(options: KinesisOptions) {
    let kinesis = Kinesis::connect(options).await.unwrap();
    let stream = StreamName("shop.events".into());
    kinesis.create(&stream, &StreamSettings::shards(2)).await.unwrap();
    let mut writer = kinesis.writer().await.unwrap();
    let (keys, mut expected) = (20, BTreeMap::new());
    for (round, shards) in [(0, 7), (1, 3)] {
        writer.append(&stream, (0..keys).map(|key| record(&format!("k{key}"), round, 20)).collect()).await.unwrap();
        let wanted = StreamSettings { capacity: Capacity::Shards(shards), ..settings() };
        let Created::Existing { differs } = kinesis.create(&stream, &wanted).await.unwrap() else { panic!("it is there") };
        for difference in &differs {
            assert!(kinesis.apply(&stream, &wanted, difference.setting).await.unwrap(), "{difference}");
        }
        assert_eq!(kinesis.describe(&stream).await.unwrap().differences(&wanted), [], "after {differs:?}");
        // Whoever writes goes on.
        writer.flush().await.unwrap();
        expected = (0..keys).map(|key| (format!("k{key}"), round + 1)).collect();
    }
    let mut read = Read::default();
    read.complete(&mut *reader(&kinesis, &stream, &Positions::new()).await, &expected).await;
    read.assert_ordered_with_repeats(&expected);
    // What would remove records is left.
    let shorter = StreamSettings { retention: Some(Duration::from_secs(24 * 3600)), ..settings() };
    assert!(!kinesis.apply(&stream, &shorter, Setting::Retention).await.unwrap());
    assert_eq!(kinesis.describe(&stream).await.unwrap().retention, settings().retention);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn existing_streams_are_changed_to_what_is_asked_for() {
    let stub = Stub::start().await.unwrap();
    changes_what_there_is(stub.options()).await;
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    let stream = StreamName("mode".into());
    kinesis.ensure(&stream, 2).await.unwrap();
    for capacity in [Capacity::OnDemand, Capacity::Shards(3)] {
        let wanted = StreamSettings { capacity, ..StreamSettings::shards(1) };
        // Descriptions may be older than the change.
        stub.set_faults(Faults { every_map: 3, ..Faults::default() });
        assert!(kinesis.apply(&stream, &wanted, Setting::Capacity).await.unwrap());
        stub.set_faults(Faults::default());
        assert_eq!(kinesis.describe(&stream).await.unwrap().capacity, capacity);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_kinesis_local_are_changed_to_what_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    changes_what_there_is(server.options()).await;
}

#[tokio::test]
async fn a_missing_permission_is_named_with_its_resource() {
    let stub = Stub::start().await.unwrap();
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    let stream = StreamName("shop.events".into());
    kinesis.ensure(&stream, 1).await.unwrap();
    let mut writer = kinesis.writer().await.unwrap();
    for operation in [
        "CreateStream",
        "AddTagsToStream",
        "StartStreamEncryption",
        "UpdateShardCount",
        "ListStreams",
        "ListShards",
        "PutRecords",
        "GetRecords",
    ] {
        stub.set_faults(Faults { forbidden: Some(operation), ..Faults::default() });
        let error = match operation {
            "UpdateShardCount" => kinesis.apply(&stream, &settings(), Setting::Capacity).await.unwrap_err(),
            "ListStreams" => kinesis.list("").await.unwrap_err(),
            "ListShards" => kinesis.reader(&stream, &Positions::new()).await.err().unwrap(),
            "GetRecords" => kinesis.reader(&stream, &Positions::new()).await.unwrap().next().await.unwrap_err(),
            "PutRecords" => {
                writer.append(&stream, vec![record("k", 0, 10)]).await.unwrap();
                writer.flush().await.unwrap_err()
            }
            _ => kinesis.create(&StreamName(operation.into()), &settings()).await.unwrap_err(),
        };
        assert_eq!(error.class(), ErrorClass::Misconfigured);
        let text = error.to_string();
        let Error::Forbidden { action, resource, .. } = error else { panic!("{operation}: {text}") };
        assert_eq!(action, format!("kinesis:{operation}"));
        assert!(resource.starts_with("arn:aws:kinesis:"), "{resource}");
        assert!(text.contains(&action) && text.contains("IAM policy"), "{text}");
    }
}
