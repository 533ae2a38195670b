//! AWS's quotas of a shard, 1 MB/s and 1,000 records/s, kept by our stub: the writer keeps within them by itself, shares them, and loses nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use schemas::progress::StreamName;
use streams::config::KinesisOptions;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Positions, Provider};

use crate::support::{Read, reader, record};

fn quotas() -> Faults {
    Faults { shard_bytes_per_second: Some(1_000_000), shard_records_per_second: Some(1000), ..Faults::default() }
}

fn stream() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

async fn connect(stub: &Stub, shards: u32) -> Kinesis {
    let defaults = KinesisOptions::default();
    let options = KinesisOptions {
        shard_bytes_per_second: defaults.shard_bytes_per_second,
        shard_records_per_second: defaults.shard_records_per_second,
        ..stub.options()
    };
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream(), shards).await.unwrap();
    stub.set_faults(quotas());
    kinesis
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_writer_fills_its_shards_quota_and_is_hardly_throttled() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub, 2).await;
    let mut writer = kinesis.writer().await.unwrap();
    let since = Instant::now();
    for run in 0..40 {
        let records = (0..200).flat_map(|number| (0..5).map(move |key| record(&format!("k{key}"), run * 200 + number, 200)));
        writer.append(&stream(), records.collect()).await.unwrap();
    }
    writer.flush().await.unwrap();
    // 8 MB through two shards, of which the busier has three fifths: five seconds, and one second's worth is granted at once.
    let (elapsed, calls) = (since.elapsed(), stub.calls());
    assert!((3.0..9.0).contains(&elapsed.as_secs_f64()), "{elapsed:?}, {calls:?}");
    assert!(calls.entries - calls.puts == 0 && calls.entries < 400, "{calls:?}");
    assert!(throttled(&stub) * 20 <= calls.entries, "{} of {calls:?}", throttled(&stub));
    stub.set_faults(Faults::default());
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 40_000).await;
    read.assert_exact(&(0..5).map(|key| (format!("k{key}"), 8000)).collect());
}

fn throttled(stub: &Stub) -> u64 {
    stub.calls().over_quota
}

/// Two writers, each of which would fill the shard alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_share_a_shard_come_to_share_its_quota() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub, 1).await;
    let since = Instant::now();
    let mut writers = tokio::task::JoinSet::new();
    for key in ["a", "b"] {
        let mut writer = kinesis.writer().await.unwrap();
        writers.spawn(async move {
            let records = (0..4000).map(|number| record(key, number, 1000));
            writer.append(&stream(), records.collect()).await.unwrap();
            writer.flush().await.unwrap();
            since.elapsed().as_secs_f64()
        });
    }
    let ended = writers.join_all().await;
    let calls = stub.calls();
    // 8 MB through one shard, of which one is granted at once. How even the shares are is left to chance; neither is shut out, and little of the quota is lost to searching for the share.
    let (first, last) = (ended[0].min(ended[1]), ended[0].max(ended[1]));
    assert!((6.5..14.0).contains(&last), "{ended:?}, {calls:?}");
    assert!(first > last * 0.25, "{ended:?}");
    stub.set_faults(Faults::default());
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 8000).await;
    read.assert_exact(&BTreeMap::from([("a".to_owned(), 4000), ("b".to_owned(), 4000)]));
}

/// Events one by one and flushed: a thousand records in a second at most, and what waits meanwhile travels together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_events_keep_to_the_quota_of_records() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub, 1).await;
    let mut writer = kinesis.writer().await.unwrap();
    for number in 0..3000 {
        writer.append(&stream(), vec![record("k", number, 20)]).await.unwrap();
    }
    writer.flush().await.unwrap();
    let calls = stub.calls();
    assert!(calls.entries < 3000 && calls.over_quota * 20 <= calls.entries, "{calls:?}");
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 3000).await;
    read.assert_exact(&BTreeMap::from([("k".to_owned(), 3000)]));
}
