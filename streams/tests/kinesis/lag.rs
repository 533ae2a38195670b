//! Answers about a stream that are older than others: the shard map before a reshard, a map without the newest children, a description that knows nothing yet.

use std::collections::BTreeMap;

use schemas::progress::StreamName;
use streams::config::{AgedPositions, FanOut, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Created, Error, Positions, Provider, StreamSettings};

use crate::operator::Operator;
use crate::reshards::write_and_read_over_reshards;
use crate::support::{Read, reader, record};

/// By turns an old and a new answer: each look may be older than the one before it.
fn lags() -> [Faults; 4] {
    let none = Faults::default();
    [
        Faults { every_map: 2, ..none },
        Faults { every_map: 3, every_children: 2, ..none },
        Faults { every_children: 2, ..none },
        Faults { every_map: 2, every_children: 3, children_untold: true, subscription_events: 3, ..none },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_and_a_map_that_lags() {
    for (seed, faults) in lags().into_iter().enumerate() {
        for fan_out in [false, true] {
            let stub = Stub::start().await.unwrap();
            stub.set_faults(faults);
            let options = |reader: usize| KinesisOptions {
                fan_out: fan_out.then(|| FanOut { consumer: format!("joiner-{reader}") }),
                ..stub.options()
            };
            println!("fan-out: {fan_out}, {faults:?}");
            write_and_read_over_reshards(options, seed as u64, 6).await;
        }
    }
}

/// Between a look that shows the shard that has answered and one that does not, the writer does not write the same run again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_does_not_go_by_a_map_that_is_older_than_what_it_knows() {
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("older".into());
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    kinesis.ensure(&stream, 1).await.unwrap();
    let operator = Operator::new(&stub.endpoint(), &stream);
    let mut writer = kinesis.writer().await.unwrap();
    let keys = 20;
    let mut expected = BTreeMap::new();
    for round in 0..4 {
        for number in round * 5..(round + 1) * 5 {
            writer.append(&stream, (0..keys).map(|key| record(&format!("k{key}"), number, 50)).collect()).await.unwrap();
        }
        writer.flush().await.unwrap();
        operator.split(0).await;
        // The look for the shard that has answered is the first and sees it, the next one does not.
        stub.set_faults(Faults { every_map: 2, ..Faults::default() });
        expected = (0..keys).map(|key| (format!("k{key}"), (round + 1) * 5)).collect();
    }
    let calls = stub.calls();
    assert!(calls.puts < 60, "{calls:?}");
    let mut read = Read::default();
    let mut from_start = reader(&kinesis, &stream, &Positions::new()).await;
    read.complete(&mut *from_start, &expected).await;
    read.assert_ordered_with_repeats(&expected);
}

/// A consumer has begun a child already, and comes back to a map in which there is none: it is young, not forgotten.
#[tokio::test]
async fn a_position_in_a_shard_that_is_not_listed_yet_is_not_refused() {
    let stub = Stub::start().await.unwrap();
    let stream = StreamName("young".into());
    let options = KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() };
    let kinesis = Kinesis::connect(options).await.unwrap();
    kinesis.ensure(&stream, 1).await.unwrap();
    let mut writer = kinesis.writer().await.unwrap();
    for number in 0..4 {
        writer.append(&stream, vec![record("k", number, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        if number == 1 {
            Operator::new(&stub.endpoint(), &stream).split(0).await;
        }
    }
    let mut all = Read::default();
    all.count(&mut *reader(&kinesis, &stream, &Positions::new()).await, 4).await;
    let positions = Read { records: all.records[..3].to_vec() }.positions();
    // With the parent's position, the parent has not been finished for sure; without it, it is read again.
    let child_alone: Positions = positions.iter().skip(1).map(|(shard, number)| (shard.clone(), number.clone())).collect();
    for (after, expected) in [(&positions, &[3][..]), (&child_alone, &[0, 1, 3])] {
        for lag in lags() {
            for faults in [lag, Faults { every_map: 1, ..lag }, Faults { every_map: 0, every_children: 1, ..lag }] {
                stub.set_faults(faults);
                let read = async {
                    let mut rest = Read::default();
                    rest.count(&mut *kinesis.reader(&stream, after).await.unwrap(), expected.len()).await;
                    rest.by_key().remove("k").unwrap()
                };
                // A map that only ever lags heals when it has been asked for a few times.
                let heal = async {
                    while stub.calls().looks < 3 {
                        tokio::task::yield_now().await;
                    }
                    stub.set_faults(lag);
                    std::future::pending().await
                };
                let numbers = tokio::select! {
                    numbers = read => numbers,
                    numbers = heal => numbers,
                };
                assert_eq!(numbers, expected);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_has_just_been_made_may_not_be_known_yet() {
    let stub = Stub::start().await.unwrap();
    stub.set_faults(Faults { unknown_at_first: 3, ..Faults::default() });
    let kinesis = Kinesis::connect(stub.options()).await.unwrap();
    let stream = StreamName("new".into());
    let settings = StreamSettings { tags: BTreeMap::from([("team".into(), "shop".into())]), ..StreamSettings::shards(2) };
    assert_eq!(kinesis.create(&stream, &settings).await.unwrap(), Created::New);
    assert_eq!(kinesis.describe(&stream).await.unwrap().differences(&settings), []);
    // One that there is none of is still told.
    assert!(matches!(kinesis.describe(&StreamName("none".into())).await, Err(Error::NoSuchStream { .. })));
}
