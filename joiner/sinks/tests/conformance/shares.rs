//! Several writers, each of its own share of the entities.

use schemas::{ErrorClass, KeyRange};
use serde_json::json;

use super::*;

fn share(text: &str) -> KeyRange {
    text.parse().unwrap()
}

async fn of_share(target: &dyn Target, share: KeyRange) -> Box<dyn Sink> {
    let mut sink = target.sink().await;
    assert!(sink.own(share));
    sink.prepare(&entities()).await.unwrap();
    sink
}

/// The orders of a share, as of a version.
fn orders(share: KeyRange, keys: std::ops::Range<u32>, version: u32) -> Vec<EntityChange> {
    let of = |key: u32| upsert("order", &key.to_string(), version, &json!({"n": version}));
    keys.map(of).filter(|change| share.holds("order", &change.key)).collect()
}

/// What a target then holds of them.
fn expect(expected: &mut Held, changes: &[EntityChange]) {
    for change in changes {
        let name = format!("{}/{}", change.entity, change.key);
        match &change.document {
            Some(document) => expected.insert(name, (change.version, serde_json::from_str(document).unwrap())),
            None => expected.remove(&name),
        };
    }
}

/// Loads a share as the joiner does: what is older and of the share is deleted.
async fn load(sink: &mut dyn Sink, share: KeyRange, changes: &[EntityChange], version: u32) {
    sink.begin_load().await.unwrap();
    sink.write(changes, None).await.unwrap();
    for entity in ["order", "line-item"] {
        let mut after: Option<EntityKey> = None;
        loop {
            let keys = sink.older(entity, lsn(version), after.as_ref(), 7).await.unwrap();
            let Some(last) = keys.last().cloned() else { break };
            after = Some(last);
            let own = keys.iter().filter(|key| share.holds(entity, key));
            let gone: Vec<_> = own.map(|key| deletion(entity, key.as_str(), version)).collect();
            sink.write(&gone, None).await.unwrap();
        }
    }
    sink.write(&[], Some(lsn(version))).await.unwrap();
}

async fn says(target: &dyn Target, expected: Option<u32>) {
    if let Some(said) = target.frontier().await {
        assert_eq!(said, expected.map(lsn));
    }
}

/// What the target says that it holds of the sink's share, where it says how far.
async fn holds(sink: &mut dyn Sink, expected: u32) {
    match sink.held().await.unwrap() {
        sinks::Held::Unknown => {}
        held => assert_eq!(held, sinks::Held::UpTo(lsn(expected))),
    }
}

/// A transaction a number: an order of the share changes, and another goes.
async fn follow(sink: &mut dyn Sink, share: KeyRange, numbers: std::ops::Range<u32>) -> Vec<EntityChange> {
    let mut all = Vec::new();
    for number in numbers {
        let mut changes = orders(share, number..number + 1, number);
        changes.extend(
            orders(share, number + 10..number + 11, number).into_iter().map(|change| EntityChange { document: None, ..change }),
        );
        // One file has one writer at a time: who waited too long for it begins again, as the joiner does.
        let rejected = loop {
            match sink.write(&changes, Some(lsn(number))).await {
                Err(error) if error.class() == ErrorClass::Transient => sink.prepare(&entities()).await.unwrap(),
                written => break written.unwrap(),
            }
        };
        assert_eq!(rejected, []);
        all.extend(changes);
    }
    all
}

pub(super) async fn several_writers_each_write_their_share(target: &mut dyn Target) {
    let (low, high) = (share("0/2"), share("1/2"));
    let (mut first, mut second) = (of_share(target, low).await, of_share(target, high).await);
    let mut expected = Held::new();
    if target.tells_vanished() {
        load(&mut *first, low, &orders(low, 0..30, 5), 5).await;
        says(target, None).await;
        assert_eq!(second.held().await.unwrap(), sinks::Held::Nothing, "half of it is not there yet");
        load(&mut *second, high, &orders(high, 0..30, 3), 3).await;
        says(target, Some(3)).await;
        expect(&mut expected, &[orders(low, 0..30, 5), orders(high, 0..30, 3)].concat());
        assert_eq!(target.held().await, expected);
    }
    let (ours, theirs) = tokio::join!(follow(&mut *first, low, 6..16), follow(&mut *second, high, 6..14));
    expect(&mut expected, &[ours, theirs].concat());
    assert_eq!(target.held().await, expected);
    says(target, Some(13)).await;

    // A load of one takes nothing of the other away.
    if target.tells_vanished() {
        let mut again = of_share(target, high).await;
        load(&mut *again, high, &orders(high, 0..8, 17), 17).await;
        expected.retain(|name, _| low.holds("order", &EntityKey::from_text(name.trim_start_matches("order/"))));
        expect(&mut expected, &orders(high, 0..8, 17));
        assert_eq!(target.held().await, expected);
        says(target, Some(15)).await;
        // What a predecessor has had under way comes late, of an entity that was never there, or is gone since before: the load knew better.
        if target.refuses_what_a_share_has_left_out() {
            let late: Vec<_> = (100..140).map(|key| upsert("order", &key.to_string(), 16, &json!({"n": 16}))).collect();
            let late: Vec<_> = late.into_iter().filter(|change| high.holds("order", &change.key)).collect();
            assert!(!late.is_empty());
            assert_eq!(second.write(&late, None).await.unwrap(), []);
            assert_eq!(target.held().await, expected);
            // The other share knows nothing of that load.
            let of_low = orders(low, 100..110, 16);
            first.write(&of_low, None).await.unwrap();
            expect(&mut expected, &of_low);
            assert_eq!(target.held().await, expected);
        }
    }

    // One takes the place of both, and says no more than both have; then others take the place of it.
    let mut one = prepared(target).await;
    if target.tells_vanished() {
        holds(&mut *one, 15).await;
    }
    expect(&mut expected, &follow(&mut *one, KeyRange::ALL, 20..22).await);
    says(target, Some(21)).await;
    let quarters = ["0/4", "1/4", "2/4", "3/4"].map(share);
    for (quarter, end) in quarters.into_iter().zip(24..) {
        let mut sink = of_share(target, quarter).await;
        holds(&mut *sink, 21).await;
        expect(&mut expected, &follow(&mut *sink, quarter, 22..end).await);
    }
    says(target, Some(23)).await;
    assert_eq!(target.held().await, expected);
}

pub(super) async fn a_writer_notices_what_another_has_made_anew(target: &mut dyn Target) -> Ran {
    let (low, high) = (share("0/2"), share("1/2"));
    let (mut first, mut second) = (of_share(target, low).await, of_share(target, high).await);
    if !target.tells_vanished() {
        return Ran::NotApplicable;
    }
    load(&mut *first, low, &orders(low, 0..20, 5), 5).await;
    load(&mut *second, high, &orders(high, 0..20, 5), 5).await;
    if !target.remove().await {
        return Ran::NotApplicable;
    }
    first.prepare(&entities()).await.unwrap();
    assert_eq!(first.held().await.unwrap(), sinks::Held::Nothing);
    // Nothing tells it but what is said of its share.
    let error = second.write(&orders(high, 3..9, 7), Some(lsn(7))).await.unwrap_err();
    assert_ne!(error.class(), ErrorClass::Bug, "{error}");
    says(target, None).await;
    second.prepare(&entities()).await.unwrap();
    assert_eq!(second.held().await.unwrap(), sinks::Held::Nothing);
    load(&mut *first, low, &orders(low, 0..20, 8), 8).await;
    load(&mut *second, high, &orders(high, 0..20, 9), 9).await;
    let mut expected = Held::new();
    expect(&mut expected, &[orders(low, 0..20, 8), orders(high, 0..20, 9)].concat());
    assert_eq!(target.held().await, expected);
    says(target, Some(8)).await;
    Ran::Tested
}
