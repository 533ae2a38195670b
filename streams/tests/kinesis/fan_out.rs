//! Subscriptions that end in every way in which they do, over and over: nothing is lost, nothing comes twice, no key is out of order.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use schemas::ErrorClass;
use schemas::progress::StreamName;
use streams::config::{AgedPositions, FanOut, KinesisOptions};
use streams::kinesis::Kinesis;
use streams::stub::{Faults, Stub};
use streams::{Error, Positions, Provider};

use crate::operator::Operator;
use crate::reshards::write_and_read_over_reshards;
use crate::support::{Read, reader, record};

fn stream() -> StreamName {
    StreamName("shop.dbo.orders".into())
}

fn options(stub: &Stub, consumer: &str) -> KinesisOptions {
    let fan_out = Some(FanOut { consumer: consumer.into() });
    // Polling would come too late for the test's patience; whether a shard is closed is asked at every silence.
    KinesisOptions {
        fan_out,
        read_interval_ms: 600_000,
        read_idle_interval_ms: 0,
        aged_positions: AgedPositions::Refuse,
        ..stub.options()
    }
}

async fn connect(stub: &Stub) -> Kinesis {
    let kinesis = Kinesis::connect(options(stub, "joiner")).await.unwrap();
    kinesis.ensure(&stream(), 1).await.unwrap();
    kinesis
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_ends_is_renewed_where_it_was() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub).await;
    for subscription_events in 1..4 {
        stub.set_faults(Faults { subscription_events, every_subscribe: 3, ..Faults::default() });
        let mut writer = kinesis.writer().await.unwrap();
        let mut read = Read::default();
        let mut subscribed = reader(&kinesis, &stream(), &Positions::new()).await;
        let before = subscription_events as usize - 1;
        for number in before * 30..(before + 1) * 30 {
            // Every Kinesis record is one event's worth and an aggregate of a few.
            writer.append(&stream(), (0..3).map(|key| record(&format!("k{key}"), number, 50)).collect()).await.unwrap();
            writer.flush().await.unwrap();
            if number % 7 == 0 {
                read.count(&mut *subscribed, (number + 1) * 3).await;
            }
        }
        let written = (before + 1) * 30;
        read.count(&mut *subscribed, written * 3).await;
        read.assert_exact(&(0..3).map(|key| (format!("k{key}"), written)).collect());
        // Each way in which they end.
        assert!(stub.calls().ended >= 5 && stub.calls().failed > 1, "{:?}", stub.calls());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_over_reshards_and_ends_of_subscriptions() {
    for seed in 0..4 {
        let stub = Stub::start().await.unwrap();
        stub.set_faults(Faults {
            subscription_events: 1 + seed,
            every_subscribe: 4,
            children_untold: seed % 2 == 1,
            stale_idle: seed > 1,
            ..Faults::default()
        });
        write_and_read_over_reshards(|reader| options(&stub, &format!("joiner-{reader}")), seed, 6).await;
        assert!(stub.calls().ended > 0);
    }
}

/// An event without records that has been on its way since before the shard's last records were written says nothing about them, though the shard map shows the shard closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_between_a_stale_silence_and_the_end_of_a_shard_is_read() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub).await;
    stub.set_faults(Faults { stale_idle: true, children_untold: true, ..Faults::default() });
    let operator = Operator::new(&stub.endpoint(), &stream());
    let mut writer = kinesis.writer().await.unwrap();
    let (mut read, mut written) = (Read::default(), 0);
    let mut subscribed = reader(&kinesis, &stream(), &Positions::new()).await;
    for _ in 0..4 {
        writer.append(&stream(), vec![record("k", written, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        read.count(&mut *subscribed, written + 1).await;
        // What is written before the split comes behind an event without records.
        stub.hold_subscriptions(true);
        writer.append(&stream(), vec![record("k", written + 1, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        operator.reshard(&mut StdRng::seed_from_u64(written as u64)).await;
        stub.hold_subscriptions(false);
        written += 2;
        read.count(&mut *subscribed, written).await;
    }
    read.assert_exact(&BTreeMap::from([("k".to_owned(), written)]));
}

#[tokio::test]
async fn a_consumer_that_was_removed_is_registered_again_and_a_refused_key_is_told() {
    let stub = Stub::start().await.unwrap();
    let kinesis = connect(&stub).await;
    let mut writer = kinesis.writer().await.unwrap();
    let mut subscribed = reader(&kinesis, &stream(), &Positions::new()).await;
    let mut read = Read::default();
    for number in 0..2 {
        writer.append(&stream(), vec![record("k", number, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        read.count(&mut *subscribed, number + 1).await;
        stub.remove_consumers();
    }
    read.assert_exact(&BTreeMap::from([("k".to_owned(), 2)]));
    // What is said inside of a subscription is as final as what is said to a call.
    stub.set_faults(Faults { subscription_refused: Some("KMSAccessDeniedException"), ..Faults::default() });
    writer.append(&stream(), vec![record("k", 2, 50)]).await.unwrap();
    writer.flush().await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(30), subscribed.next()).await.unwrap().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(matches!(&error, Error::Forbidden { action, .. } if action == "kms:Decrypt"), "{error}");
}

/// Nothing is written for so long that the record which was read last has aged, and the subscription is renewed every few minutes: that is quiet, and no gap.
#[tokio::test]
async fn a_quiet_shard_whose_last_record_has_aged_is_not_refused() {
    let stub = Stub::start().await.unwrap();
    for fan_out in [true, false] {
        let kinesis = if fan_out {
            connect(&stub).await
        } else {
            let options = KinesisOptions { aged_positions: AgedPositions::Refuse, ..stub.options() };
            Kinesis::connect(options).await.unwrap()
        };
        let stream = StreamName(format!("quiet.{fan_out}"));
        kinesis.ensure(&stream, 1).await.unwrap();
        let mut writer = kinesis.writer().await.unwrap();
        let mut following = reader(&kinesis, &stream, &Positions::new()).await;
        let mut read = Read::default();
        for number in 0..3 {
            writer.append(&stream, vec![record("k", number, 50)]).await.unwrap();
            let shard = writer.flush().await.unwrap()[&stream].keys().next().unwrap().clone();
            read.count(&mut *following, number + 1).await;
            // What the last answer said has to have come to the reader: it asks again, or a subscription ends.
            stub.set_faults(Faults { every_iterator: 1, subscription_events: 1, ..Faults::default() });
            while stub.calls().failed + stub.calls().ended < 3 {
                tokio::task::yield_now().await;
            }
            stub.trim(&stream, &shard, usize::MAX);
            stub.set_faults(Faults::default());
        }
        read.assert_exact(&BTreeMap::from([("k".to_owned(), 3)]));
        // A saved position has no such moment.
        let last = read.positions();
        writer.append(&stream, vec![record("k", 3, 50)]).await.unwrap();
        writer.flush().await.unwrap();
        let error = reader(&kinesis, &stream, &last).await.next().await.unwrap_err();
        assert!(matches!(error, Error::Trimmed { .. }), "{error}");
    }
}
