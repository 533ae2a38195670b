//! What readers can be asked for: fan-out, a part of the hash space, a bound on what is read ahead.

use std::collections::BTreeMap;

use schemas::progress::StreamName;
use streams::config::{FanOut, KinesisOptions};
use streams::hash::key_hash;
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Positions, Provider};

use crate::operator::Operator;
use crate::proxy::Proxy;
use crate::reshards::write_and_read_over_reshards;
use crate::support::{Read, reader, record};

fn stream() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

fn fan_out(options: KinesisOptions, consumer: &str) -> KinesisOptions {
    KinesisOptions { fan_out: Some(FanOut { consumer: consumer.into() }), ..options }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_keeps_the_order_over_reshards_of_kinesis_local() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    // Readers that stand side by side need names of their own.
    let options = |reader: usize| fan_out(server.options(), &format!("joiner-{reader}"));
    write_and_read_over_reshards(options, 7, 2).await;
}

/// The consumer is registered once and used again; what is written while a reader is subscribed is pushed to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_pushes_and_reuses_its_consumer() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    // Polling would come too late for the test's patience.
    let options = KinesisOptions { read_interval_ms: 600_000, ..fan_out(server.options(), "joiner") };
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream(), 2).await.unwrap();
    let mut read = Read::default();
    let mut writer = kinesis.writer().await.unwrap();
    // It pushes once a second.
    for round in 0..2 {
        let mut subscribed = reader(&kinesis, &stream(), &read.positions()).await;
        for number in 0..4 {
            let number = round * 4 + number;
            writer.append(&stream(), (0..8).map(|key| record(&format!("k{key}"), number, 50)).collect()).await.unwrap();
            writer.flush().await.unwrap();
            read.count(&mut *subscribed, (number + 1) * 8).await;
        }
    }
    read.assert_exact(&(0..8).map(|key| (format!("k{key}"), 8)).collect());
}

/// A subscription that breaks is followed by another, from where the last had come to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_subscribes_again_when_the_connection_breaks() {
    let directory = tempfile::tempdir().unwrap();
    let server = KinesisLocal::start(directory.path()).unwrap_or_else(|error| panic!("{error}"));
    let direct = Kinesis::connect(server.options()).await.unwrap();
    direct.ensure(&stream(), 1).await.unwrap();
    let proxy = Proxy::start(&server.endpoint()).await;
    let options = KinesisOptions { endpoint: Some(proxy.endpoint()), ..fan_out(server.options(), "joiner") };
    let broken = Kinesis::connect(options).await.unwrap();
    let mut subscribed = reader(&broken, &stream(), &Positions::new()).await;
    let (mut writer, mut read) = (direct.writer().await.unwrap(), Read::default());
    for number in 0..6 {
        writer.append(&stream(), vec![record("k", number, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        if number % 2 == 1 {
            proxy.cut();
        }
        read.count(&mut *subscribed, number + 1).await;
    }
    read.assert_exact(&BTreeMap::from([("k".to_owned(), 6)]));
}

/// A reader of a part of the hash space reads the shards that overlap it, through splits, and waits for no other.
#[tokio::test]
async fn a_range_is_read_from_the_shards_that_overlap_it() {
    let stub = Stub::start().await.unwrap();
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    kinesis.ensure(&stream(), 4).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream());
    let mut writer = kinesis.writer().await.unwrap();
    let (quarter, keys) = (u128::MAX / 4 + 1, 200);
    let wanted = quarter..=quarter + quarter / 2;
    let mut expected = BTreeMap::new();
    for round in 0..3 {
        writer.append(&stream(), (0..keys).map(|key| record(&format!("k{key}"), round, 20)).collect()).await.unwrap();
        writer.flush().await.unwrap();
        // In the wanted quarter, and elsewhere.
        operator.split(quarter).await;
        operator.split(0).await;
    }
    for key in (0..keys).map(|key| format!("k{key}")).filter(|key| wanted.contains(&key_hash(key))) {
        expected.insert(key, 3);
    }
    assert!(expected.len() > 10);
    let mut read = Read::default();
    let mut part = kinesis.reader_of(&stream(), &Positions::new(), wanted.clone()).await.unwrap();
    while expected.iter().any(|(key, count)| read.by_key().get(key).is_none_or(|numbers| numbers.len() < *count)) {
        read.next(&mut *part).await;
    }
    for (key, numbers) in read.by_key() {
        assert!((quarter..quarter * 2).contains(&key_hash(&key)), "{key} is of a shard that does not overlap");
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    // From positions, of which some are of shards that are not wanted.
    let mut all = Read::default();
    all.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, keys * 3).await;
    let after = Read { records: all.records[..keys].to_vec() }.positions();
    let mut rest = Read::default();
    let mut part = kinesis.reader_of(&stream(), &after, wanted).await.unwrap();
    // What the positions and this reader hold together is everything; runs may come twice, for the splits.
    let mut seen = Read { records: all.records[..keys].to_vec() }.by_key();
    while expected.keys().any(|key| (0..3).any(|number| !seen.get(key).is_some_and(|seen| seen.contains(&number)))) {
        rest.next(&mut *part).await;
        seen = Read { records: all.records[..keys].iter().chain(&rest.records).cloned().collect() }.by_key();
    }
}

/// A reader that nobody reads from stops asking when it holds as much as it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_ahead_is_bounded_by_its_bytes() {
    const SHARDS: usize = 4;
    let stub = Stub::start().await.unwrap();
    let options = KinesisOptions { read_ahead_bytes: 1 << 20, read_records: 1, max_record_bytes: 100_000, ..stub.options() };
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream(), SHARDS as u32).await.unwrap();
    let mut writer = kinesis.writer().await.unwrap();
    let keys = 40;
    // 16 MB in Kinesis records of about 100 kB, of which a read brings one.
    for number in 0..4 {
        writer.append(&stream(), (0..keys).map(|key| record(&format!("k{key}"), number, 99_000)).collect()).await.unwrap();
    }
    writer.flush().await.unwrap();
    stub.set_faults(Faults::default());
    let mut reader = reader(&kinesis, &stream(), &Positions::new()).await;
    // It asks until it holds its bound: then no more, however long one looks.
    let asked = settled(&stub).await;
    let most = (1 << 20) / 99_000 + SHARDS as u64 + 1;
    assert!((8..=most).contains(&asked), "{asked} reads, {most} at most");
    let mut read = Read::default();
    read.count(&mut *reader, keys * 4).await;
    read.assert_exact(&(0..keys).map(|key| (format!("k{key}"), 4)).collect());
}

/// The number of reads when there have been no more for a while.
async fn settled(stub: &Stub) -> u64 {
    let mut last = 0;
    loop {
        // Nothing tells that no call is coming: a few dozen round trips of other calls give it time enough.
        let kinesis = Kinesis::connect(stub.options()).await.unwrap();
        for _ in 0..50 {
            kinesis.describe(&stream()).await.unwrap();
        }
        let asked = stub.calls().gets;
        if asked == last && asked > 0 {
            return asked;
        }
        last = asked;
    }
}
