//! Partial failures, throttling, lost answers, trimming, a Kinesis that is not there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use schemas::ErrorClass;
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use streams::config::{AgedPositions, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Error, Positions, Provider, Record};

use crate::support::{Read, reader, record};

fn stream() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

async fn connect(options: KinesisOptions) -> Kinesis {
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream(), 1).await.unwrap();
    kinesis
}

async fn write(kinesis: &Kinesis, stream: &StreamName, records: Vec<Record>) -> SequenceNumber {
    let mut writer = kinesis.writer().await.unwrap();
    writer.append(stream, records).await.unwrap();
    writer.flush().await.unwrap()[stream].values().next().unwrap().clone()
}

fn faults() -> impl Strategy<Value = Faults> {
    let every = || prop_oneof![Just(0), 2u64..6];
    (every(), every(), every(), every(), every(), every()).prop_map(|(entry, put, lost, cut, get, iterator)| Faults {
        every_entry: entry,
        every_put: put,
        every_put_lost: lost,
        // Never all at once: a call that only ever fails proves nothing.
        every_put_cut: cut.max(3) * u64::from(cut > 0),
        every_get: get,
        every_iterator: iterator,
        ..Faults::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// The promise of the traits, under every fault that the stub knows: nothing flushed is lost, and no key is out of order.
    #[test]
    fn order_is_kept_whatever_fails(
        faults in faults(),
        shards in 1u32..4,
        runs in prop::collection::vec((prop::collection::vec((0u8..9, 0usize..400), 1..40), any::<bool>()), 1..12),
    ) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
            let stub = Stub::start().await.unwrap();
            let kinesis = Kinesis::connect(stub.options()).await.unwrap();
            kinesis.ensure(&stream(), shards).await.unwrap();
            stub.set_faults(faults);
            let mut writer = kinesis.writer().await.unwrap();
            let mut expected: BTreeMap<String, usize> = BTreeMap::new();
            for (run, flush) in runs {
                let records = run.into_iter().map(|(key, size)| {
                    let count = expected.entry(format!("k{key}")).or_insert(0);
                    *count += 1;
                    record(&format!("k{key}"), *count - 1, size)
                });
                writer.append(&stream(), records.collect()).await.unwrap();
                if flush {
                    writer.flush().await.unwrap();
                }
            }
            let positions = writer.flush().await.unwrap();
            let mut read = Read::default();
            let mut reader = reader(&kinesis, &stream(), &Positions::new()).await;
            read.complete(&mut *reader, &expected).await;
            read.assert_ordered_with_repeats(&expected);
            // The positions of the flush are reached: they are those of the last copy of everything.
            while positions[&stream()].iter().any(|(shard, number)| read.positions().get(shard).is_none_or(|read| read < number)) {
                read.next(&mut *reader).await;
            }
        });
    }
}

#[tokio::test]
async fn a_throttled_shard_slows_its_writer_and_nothing_is_lost() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(stub.options()).await;
    stub.set_faults(Faults { shard_bytes_per_second: Some(1_000_000), ..Faults::default() });
    let since = Instant::now();
    let records: Vec<_> = (0..2500).map(|number| record("k", number, 1000)).collect();
    write(&kinesis, &stream(), records).await;
    // The first second's worth is free.
    assert!(stub.calls().entries > 3, "{:?}", stub.calls());
    assert!(since.elapsed() > Duration::from_secs(1), "{:?}", since.elapsed());
    stub.set_faults(Faults::default());
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 2500).await;
    read.assert_exact(&BTreeMap::from([("k".to_owned(), 2500)]));
}

#[tokio::test]
async fn records_travel_together() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(stub.options()).await;
    stub.set_faults(Faults { latency: Duration::from_millis(2), ..Faults::default() });
    let last = write(&kinesis, &stream(), (0..5000).map(|number| record("k", number, 100)).collect()).await;
    assert!(stub.calls().entries < 10, "{:?}", stub.calls());
    assert!(last.as_str().len() == 62, "{last}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_anything_is_sent() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(KinesisOptions { max_record_bytes: 1000, ..stub.options() }).await;
    let mut writer = kinesis.writer().await.unwrap();
    let error = writer.append(&stream(), vec![record("k", 0, 10), record("k", 1, 1000)]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes: 1001, limit: 1000, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Definite);
    writer.append(&stream(), vec![record("k", 0, 999)]).await.unwrap();
    writer.flush().await.unwrap();
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &Positions::new()).await, 1).await;
    assert_eq!(read.records[0].2.len(), 999);
}

#[tokio::test]
async fn gives_up_when_the_budget_is_spent() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(KinesisOptions { retry_seconds: 0, ..stub.options() }).await;
    stub.set_faults(Faults { every_entry: 1, every_get: 1, ..Faults::default() });
    let mut writer = kinesis.writer().await.unwrap();
    writer.append(&stream(), vec![record("k", 0, 10)]).await.unwrap();
    let error = writer.flush().await.unwrap_err();
    assert!(matches!(error, Error::Kinesis { operation: "PutRecords", class: ErrorClass::Transient, .. }), "{error}");
    // A writer that has failed says so, and does not hang.
    assert!(writer.flush().await.is_err());
    assert!(writer.append(&stream(), vec![record("k", 1, 10)]).await.is_err());
    let mut reader = reader(&kinesis, &stream(), &Positions::new()).await;
    let error = reader.next().await.unwrap_err();
    assert!(matches!(error, Error::Throttled { operation: "GetRecords", .. }), "{error}");
    assert!(reader.next().await.is_err());
}

#[tokio::test]
async fn an_unreachable_kinesis_is_a_transient_error() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let kinesis = Kinesis::connect(KinesisOptions { retry_seconds: 0, ..KinesisOptions::stand_in(endpoint) }).await.unwrap();
    let error = kinesis.ensure(&stream(), 1).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
}

/// One record in each Kinesis record, so that trimming takes them one by one. Answers their positions.
async fn single_records(kinesis: &Kinesis, stream: &StreamName, count: usize) -> Vec<SequenceNumber> {
    let mut numbers = Vec::new();
    for number in 0..count {
        numbers.push(write(kinesis, stream, vec![record("k", number, 10)]).await);
    }
    numbers
}

fn after(number: &SequenceNumber) -> Positions {
    BTreeMap::from([(ShardId("shardId-000000000000".into()), number.clone())])
}

#[tokio::test]
async fn a_trimmed_position_is_told() {
    let stub = Stub::start().await.unwrap();
    let shard = ShardId("shardId-000000000000".into());
    let kinesis = connect(KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() }).await;
    let numbers = single_records(&kinesis, &stream(), 6).await;
    stub.trim(&stream(), &shard, 3);
    // The position's own record is there: nothing is missing.
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &after(&numbers[3])).await, 2).await;
    assert_eq!(read.by_key()["k"], [4, 5]);
    let mut behind = reader(&kinesis, &stream(), &after(&numbers[1])).await;
    let error = behind.next().await.unwrap_err();
    assert!(matches!(&error, Error::Trimmed { after, oldest, .. } if *after == numbers[1] && *oldest == numbers[3]), "{error}");
    // By default a progress stream refuses, and the others, whose quiet says nothing, go on.
    let kinesis = connect(stub.options()).await;
    let mut read = Read::default();
    read.count(&mut *reader(&kinesis, &stream(), &after(&numbers[1])).await, 3).await;
    assert_eq!(read.by_key()["k"], [3, 4, 5]);
    let progress = StreamName("shop.progress".into());
    kinesis.ensure(&progress, 1).await.unwrap();
    let numbers = single_records(&kinesis, &progress, 3).await;
    stub.trim(&progress, &shard, 2);
    let error = reader(&kinesis, &progress, &after(&numbers[0])).await.next().await.unwrap_err();
    assert!(matches!(error, Error::Trimmed { .. }), "{error}");
}

/// A reader whose iterator has expired, after a long pause for one, comes back at the record that it has read last. It was not caught up, and what it had not read has been trimmed.
#[tokio::test]
async fn a_reader_that_comes_back_behind_what_is_left_is_told() {
    let stub = Stub::start().await.unwrap();
    let shard = ShardId("shardId-000000000000".into());
    // One record at a time, and none ahead of whoever reads.
    let one_by_one = KinesisOptions { read_records: 1, read_ahead_bytes: 1, ..stub.options() };
    for policy in [AgedPositions::Refuse, AgedPositions::Trust] {
        let kinesis = connect(KinesisOptions { aged_positions: policy, ..one_by_one.clone() }).await;
        let stream = StreamName(format!("behind.{policy:?}"));
        kinesis.ensure(&stream, 1).await.unwrap();
        let numbers = single_records(&kinesis, &stream, 9).await;
        let mut slow = reader(&kinesis, &stream, &Positions::new()).await;
        let mut read = Read::default();
        for trimmed in [0, 7] {
            // Nothing is asked while the last record is with whoever reads; then the iterator has expired.
            read.count(&mut *slow, read.records.len() + 2).await;
            stub.set_faults(Faults { every_iterator: 1, ..Faults::default() });
            stub.trim(&stream, &shard, trimmed);
            let heal = async {
                while stub.calls().failed == 0 {
                    tokio::task::yield_now().await;
                }
                stub.set_faults(Faults::default());
            };
            let (next, ()) = tokio::join!(slow.next(), heal);
            match next {
                Ok(batch) => read.take(batch),
                Err(error) => {
                    let Error::Trimmed { after, oldest, .. } = &error else { panic!("{error}") };
                    assert!(policy == AgedPositions::Refuse && trimmed > 0 && *oldest == numbers[7], "{error}");
                    assert!(*after > numbers[4], "{error}");
                }
            }
        }
        if policy == AgedPositions::Trust {
            read.count(&mut *slow, 7).await;
            assert_eq!(read.by_key()["k"], [0, 1, 2, 3, 4, 7, 8]);
        } else {
            assert_eq!(read.by_key()["k"], [0, 1, 2, 3, 4]);
        }
    }
}

/// Iterators that expire as soon as they are had are no reason to ask for others for ever.
#[tokio::test]
async fn iterators_that_only_ever_expire_end_the_reader() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(KinesisOptions { retry_seconds: 0, ..stub.options() }).await;
    stub.set_faults(Faults { every_iterator: 1, ..Faults::default() });
    let mut reader = reader(&kinesis, &stream(), &Positions::new()).await;
    let error = tokio::time::timeout(Duration::from_secs(30), reader.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Kinesis { operation: "GetRecords", class: ErrorClass::Transient, .. }), "{error}");
    assert!(tokio::time::timeout(Duration::from_secs(30), kinesis.tips(&stream())).await.unwrap().is_err());
}

#[tokio::test]
async fn a_position_of_another_stream_is_told() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(stub.options()).await;
    let last = write(&kinesis, &stream(), vec![record("k", 0, 10)]).await;
    // Too short for Kinesis: of the embedded store.
    let error = kinesis.reader(&stream(), &after(&SequenceNumber::from(17))).await.err().unwrap();
    assert!(matches!(error, Error::ForeignPosition { .. }), "{error}");
    // Of an earlier stream of this name.
    let earlier = last.as_str().replacen("4959", "3959", 1).parse().unwrap();
    let error = kinesis.reader(&stream(), &after(&earlier)).await.err().unwrap();
    assert!(matches!(error, Error::Trimmed { .. }), "{error}");
    // Of one that nobody knows.
    let later = last.as_str().replacen("4959", "5959", 1).parse().unwrap();
    let error = reader(&kinesis, &stream(), &after(&later)).await.next().await.unwrap_err();
    assert!(matches!(error, Error::ForeignPosition { .. }), "{error}");
}
