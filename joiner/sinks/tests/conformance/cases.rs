//! The promises.

use schemas::ErrorClass;
use serde_json::json;
use sinks::{Error, Rejected};

use super::*;

pub(super) async fn later_versions_replace_earlier_ones(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1})), upsert("order", "2", 1, &json!({"n": 1}))], None).await.unwrap();
    sink.write(
        &[upsert("order", "1", 2, &json!({"n": 2})), deletion("order", "2", 2), upsert("order", "3", 2, &json!({"n": 3}))],
        Some(lsn(2)),
    )
    .await
    .unwrap();
    let expected =
        Held::from([("order/1".to_owned(), (lsn(2), json!({"n": 2}))), ("order/3".to_owned(), (lsn(2), json!({"n": 3})))]);
    assert_eq!(target.held().await, expected);
}

pub(super) async fn a_stale_write_changes_nothing(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 5, &json!({"n": 5})), upsert("order", "2", 5, &json!({"n": 5}))], None).await.unwrap();
    let rejected = sink.write(&[upsert("order", "1", 3, &json!({"n": 3})), deletion("order", "2", 3)], None).await.unwrap();
    assert_eq!(rejected, [], "stale is not wrong");
    let held = target.held().await;
    assert_eq!(held["order/1"], (lsn(5), json!({"n": 5})));
    assert_eq!(held["order/2"], (lsn(5), json!({"n": 5})));
}

pub(super) async fn a_batch_handed_over_twice_changes_nothing(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let first = [upsert("order", "1", 1, &json!({"n": 1})), upsert("order", "2", 1, &json!({"n": 1}))];
    let second = [upsert("order", "1", 2, &json!({"n": 2})), deletion("order", "2", 2)];
    sink.write(&first, Some(lsn(1))).await.unwrap();
    sink.write(&second, Some(lsn(2))).await.unwrap();
    let held = target.held().await;
    // A crash with the answer lost: another sink hands over both again.
    let mut sink = prepared(target).await;
    sink.write(&first, Some(lsn(1))).await.unwrap();
    assert_eq!(target.held().await, held, "in between, too, nothing old shows");
    sink.write(&second, Some(lsn(2))).await.unwrap();
    assert_eq!(target.held().await, held);
    assert_eq!(held.len(), 1);
}

pub(super) async fn deleted_entities_stay_deleted(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1}))], None).await.unwrap();
    sink.write(&[deletion("order", "1", 4), deletion("order", "never-seen", 4)], None).await.unwrap();
    assert_eq!(target.held().await, Held::new());
    sink.write(&[upsert("order", "1", 2, &json!({"n": 2})), upsert("order", "never-seen", 3, &json!({"n": 3}))], None)
        .await
        .unwrap();
    assert_eq!(target.held().await, Held::new(), "an older version must not bring it back");
    sink.write(&[upsert("order", "1", 6, &json!({"n": 6}))], None).await.unwrap();
    sink.write(&[deletion("order", "1", 4)], None).await.unwrap();
    let held = target.held().await;
    assert_eq!(
        held,
        Held::from([("order/1".to_owned(), (lsn(6), json!({"n": 6})))]),
        "a newer one does, and the old deletion is stale then"
    );
}

pub(super) async fn a_load_removes_what_has_vanished(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let old: Vec<_> = ["1", "2", "3"].iter().map(|key| upsert("order", key, 1, &json!({"n": 1}))).collect();
    sink.write(&old, Some(lsn(1))).await.unwrap();
    sink.write(&[upsert("line-item", "1,1", 1, &json!({"n": 1}))], None).await.unwrap();
    if !target.tells_vanished() {
        // A topic is silent through a load, and speaks again after it.
        sink.begin_load().await.unwrap();
        sink.write(&[upsert("order", "1", 9, &json!({"n": 9}))], None).await.unwrap();
        sink.end_load("order", lsn(9)).await.unwrap();
        sink.write(&[], Some(lsn(9))).await.unwrap();
        sink.write(&[upsert("order", "2", 10, &json!({"n": 10}))], Some(lsn(10))).await.unwrap();
        let held = target.held().await;
        assert_eq!((held["order/1"].0, held["order/2"].0), (lsn(1), lsn(10)));
        return;
    }
    let load = [upsert("order", "1", 9, &json!({"n": 9})), upsert("order", "2", 9, &json!({"n": 9}))];
    // The second time stands for a load that was cut short after its end and is repeated.
    for _ in 0..2 {
        let mut sink = prepared(target).await;
        sink.begin_load().await.unwrap();
        sink.write(&load, None).await.unwrap();
        sink.end_load("order", lsn(9)).await.unwrap();
        sink.write(&[], Some(lsn(9))).await.unwrap();
    }
    let expected = Held::from([
        ("line-item/1,1".to_owned(), (lsn(1), json!({"n": 1}))),
        ("order/1".to_owned(), (lsn(9), json!({"n": 9}))),
        ("order/2".to_owned(), (lsn(9), json!({"n": 9}))),
    ]);
    assert_eq!(target.held().await, expected, "of this kind of entity, and of no other");
    sink.write(&[upsert("order", "3", 8, &json!({"n": 8}))], None).await.unwrap();
    prepared(target).await.write(&[upsert("order", "3", 8, &json!({"n": 8}))], None).await.unwrap();
    assert_eq!(target.held().await, expected, "what vanished does not come back by something older");
}

/// Documents of a load, enough of them for a target to write in several ways at once.
fn load_of(version: u32) -> Vec<EntityChange> {
    (0..700u32).map(|n| upsert("order", &n.to_string(), version, &json!({"n": n}))).collect()
}

async fn load_all(sink: &mut dyn Sink, version: u32) -> Vec<Rejected> {
    sink.begin_load().await.unwrap();
    let mut rejected = Vec::new();
    for batch in load_of(version).chunks(300) {
        rejected.extend(sink.write(batch, None).await.unwrap());
    }
    sink.end_load("order", lsn(version)).await.unwrap();
    rejected.extend(sink.write(&[], Some(lsn(version))).await.unwrap());
    rejected
}

pub(super) async fn a_load_brings_back_nothing_that_was_deleted_later(target: &mut dyn Target) -> Ran {
    if !target.tells_vanished() {
        return Ran::NotApplicable;
    }
    let mut sink = prepared(target).await;
    sink.write(&[deletion("order", "400", 12)], None).await.unwrap();
    assert_eq!(load_all(&mut *sink, 9).await, []);
    let held = target.held().await;
    assert_eq!(held.len(), 699);
    assert!(!held.contains_key("order/400") && held["order/399"] == (lsn(9), json!({"n": 399})));
    Ran::Tested
}

pub(super) async fn a_load_takes_nothing_newer_away(target: &mut dyn Target) -> Ran {
    if !target.tells_vanished() {
        return Ran::NotApplicable;
    }
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "650", 12, &json!({"n": "newer"})), upsert("order", "10", 8, &json!({"n": "older"}))], None)
        .await
        .unwrap();
    // Once more: as after a crash between the load's last write and the caller's note of it.
    for _ in 0..2 {
        assert_eq!(load_all(&mut *sink, 9).await, []);
        let held = target.held().await;
        assert_eq!(held.len(), 700);
        assert_eq!((&held["order/650"].1, &held["order/10"].1), (&json!({"n": "newer"}), &json!({"n": 10})));
    }
    Ran::Tested
}

pub(super) async fn poison_in_a_load_is_rejected_and_the_rest_is_written(target: &mut dyn Target) -> Ran {
    if !target.tells_vanished() {
        return Ran::NotApplicable;
    }
    let mut sink = prepared(target).await;
    sink.begin_load().await.unwrap();
    let mut changes = load_of(9);
    changes[5].document = Some("{\"n\": 5".into());
    changes[600].document = Some("{\"n\": tru}".into());
    let rejected = sink.write(&changes, None).await.unwrap();
    sink.end_load("order", lsn(9)).await.unwrap();
    sink.write(&[], Some(lsn(9))).await.unwrap();
    let mut keys: Vec<&str> = rejected.iter().map(|rejected| rejected.change.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["5", "600"]);
    assert!(rejected.iter().all(|rejected| rejected.reason.contains("not JSON")), "{rejected:?}");
    assert_eq!(target.held().await.len(), 698);
    Ran::Tested
}

pub(super) async fn a_load_that_was_cut_short_is_done_again(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.begin_load().await.unwrap();
    sink.write(&load_of(9)[..500], None).await.unwrap();
    target.down().await;
    let error = sink.write(&load_of(9)[500..], None).await.err();
    assert!(error.is_none_or(|error| error.class() == ErrorClass::Transient));
    target.up().await;
    if target.frontier().await.is_some() {
        assert_eq!(target.frontier().await, Some(None), "what is left of it is not taken for whole");
    }
    sink.prepare(&entities()).await.unwrap();
    assert_eq!(load_all(&mut *sink, 10).await, []);
    if target.tells_vanished() {
        assert_eq!(target.held().await.len(), 700);
    }
    // After the load the sink speaks, and is durable, as before it.
    sink.write(&[upsert("order", "1", 11, &json!({"n": "after"}))], Some(lsn(11))).await.unwrap();
    assert_eq!(target.held().await["order/1"], (lsn(11), json!({"n": "after"})));
}

pub(super) async fn the_same_version_with_another_document_replaces(target: &mut dyn Target) -> Ran {
    if !target.tells_vanished() {
        // A subscriber that goes by versions has seen this one.
        return Ran::NotApplicable;
    }
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 5, &json!({"n": 5})), deletion("order", "2", 5)], Some(lsn(5))).await.unwrap();
    // A definition was changed, and the load began at the LSN that the target has reached.
    sink.write(&[upsert("order", "1", 5, &json!({"number": 5})), upsert("order", "2", 5, &json!({"number": 5}))], None)
        .await
        .unwrap();
    let held = target.held().await;
    assert_eq!((&held["order/1"].1, &held["order/2"].1), (&json!({"number": 5}), &json!({"number": 5})));
    Ran::Tested
}

pub(super) async fn the_frontier_moves_forward_only(target: &mut dyn Target) -> Ran {
    let mut sink = prepared(target).await;
    let Some(frontier) = target.frontier().await else { return Ran::NotApplicable };
    assert_eq!(frontier, None, "before the first load has ended");
    sink.write(&[upsert("order", "1", 1, &json!({}))], None).await.unwrap();
    assert_eq!(target.frontier().await, Some(None));
    sink.write(&[], Some(lsn(3))).await.unwrap();
    assert_eq!(target.frontier().await, Some(Some(lsn(3))));
    sink.write(&[upsert("order", "1", 2, &json!({}))], Some(lsn(2))).await.unwrap();
    assert_eq!(target.frontier().await, Some(Some(lsn(3))), "a repeat does not take it back");
    let mut sink = prepared(target).await;
    sink.write(&[], Some(lsn(4))).await.unwrap();
    assert_eq!(target.frontier().await, Some(Some(lsn(4))));
    Ran::Tested
}

pub(super) async fn many_rows_of_several_entities_are_read_back(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let document = |n: u32| json!({"id": n, "total": format!("{n}.50"), "text": "a\"b\\c\n✓", "rate": 0.1, "items": [{"n": n}, null, true], "none": null});
    let changes: Vec<_> = (0..700u32)
        .map(|n| {
            if n % 3 == 0 {
                upsert("line-item", &format!("{n},1"), 7, &document(n))
            } else {
                upsert("order", &n.to_string(), 7, &document(n))
            }
        })
        .collect();
    sink.write(&changes, Some(lsn(7))).await.unwrap();
    let held = target.held().await;
    assert_eq!(held.len(), 700);
    assert_eq!(held["order/698"], (lsn(7), document(698)));
    assert_eq!(held["line-item/699,1"], (lsn(7), document(699)));
    let deletions: Vec<_> = (0..700u32).filter(|n| n % 3 != 0).map(|n| deletion("order", &n.to_string(), 8)).collect();
    sink.write(&deletions, Some(lsn(8))).await.unwrap();
    assert_eq!(target.held().await.len(), 234);
}

pub(super) async fn keys_of_any_text_are_kept_apart(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let parts = ["a b", "a,b", "50%", "x/y", "it's", "\"q\"", "Ünïcødé ✓", "A", "a", " a", "#", "back\\slash"];
    let keys: Vec<EntityKey> = parts.iter().map(|part| EntityKey::from_parts([part])).collect();
    let changes: Vec<_> = keys.iter().zip(0..).map(|(key, n)| upsert("order", key.as_str(), 1, &json!({"n": n}))).collect();
    sink.write(&changes, Some(lsn(1))).await.unwrap();
    let held = target.held().await;
    for (key, n) in keys.iter().zip(0..) {
        assert_eq!(held[&format!("order/{key}")].1, json!({"n": n}), "{key}");
    }
    assert_eq!(held.len(), parts.len());
}

pub(super) async fn poison_is_rejected_and_the_rest_is_written(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let mut changes: Vec<_> = (0..300u32).map(|n| upsert("order", &n.to_string(), 1, &json!({"n": n}))).collect();
    changes[17].document = Some("{\"n\": 17".into());
    changes[200].document = Some("[200]".into());
    changes.push(upsert("order", &"k".repeat(3000), 1, &json!({})));
    changes.push(upsert("order", "nul\0", 1, &json!({})));
    let mut rejected = sink.write(&changes, Some(lsn(1))).await.unwrap();
    rejected.sort_by(|a, b| a.change.key.cmp(&b.change.key));
    let keys: Vec<&str> = rejected.iter().map(|rejected| rejected.change.key.as_str()).collect();
    assert_eq!(keys, ["17", "200", &"k".repeat(3000), "nul\0"]);
    assert!(rejected[0].reason.contains("not JSON"), "{}", rejected[0].reason);
    assert!(rejected[2].reason.contains("3000 bytes"), "{}", rejected[2].reason);
    assert_eq!(target.held().await.len(), 298);
}

pub(super) async fn a_target_that_was_down_is_caught_up(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1}))], Some(lsn(1))).await.unwrap();
    target.down().await;
    let missed = [upsert("order", "1", 2, &json!({"n": 2})), upsert("order", "2", 2, &json!({"n": 2}))];
    let error = sink.write(&missed, Some(lsn(2))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    // A locked file can still be looked at; whoever cannot even be asked says so as plainly.
    if let Err(error) = sink.prepare(&entities()).await {
        assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    }
    target.up().await;
    sink.prepare(&entities()).await.unwrap();
    sink.write(&missed, Some(lsn(2))).await.unwrap();
    let held = target.held().await;
    assert_eq!((held["order/1"].0, held["order/2"].0, held.len()), (lsn(2), lsn(2), 2));
}

/// A document that goes deep, a long one, a NUL, a number of many digits: what one target holds and another does not.
pub(super) async fn what_only_some_targets_hold_never_fails_a_batch(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let deep = (0..60).fold(json!("bottom"), |inner, _| json!({"a": inner}));
    let strange = [
        ("deep", json!({"n": deep})),
        ("long", json!({"text": "x".repeat(5 << 20)})),
        ("nul", json!({"text": "a\u{0}b"})),
        ("digits", json!({"n": 12_345_678_901_234_567_890_u64})),
    ];
    let mut changes: Vec<_> = strange.iter().map(|(key, document)| upsert("order", key, 1, document)).collect();
    changes.insert(2, upsert("order", "plain", 1, &json!({"n": 1})));
    let rejected = sink.write(&changes, None).await.unwrap();
    let held = target.held().await;
    assert_eq!(held["order/plain"].1, json!({"n": 1}));
    for (key, document) in &strange {
        match rejected.iter().find(|rejected| rejected.change.key.as_str() == *key) {
            Some(rejected) => assert!(!rejected.reason.is_empty() && !held.contains_key(&format!("order/{key}")), "{key}"),
            None => assert_eq!(&held[&format!("order/{key}")].1, document, "{key}"),
        }
    }
}

pub(super) async fn a_target_that_goes_down_in_the_middle_says_no_more_than_it_holds(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    sink.write(&load_of(1), Some(lsn(1))).await.unwrap();
    let batch = load_of(2);
    let (answer, ()) = tokio::join!(sink.write(&batch, Some(lsn(2))), target.down());
    assert!(answer.as_ref().err().is_none_or(|error| error.class() == ErrorClass::Transient), "{answer:?}");
    target.up().await;
    let held = target.held().await;
    assert_eq!(held.len(), 700);
    if target.frontier().await == Some(Some(lsn(2))) {
        assert!(held.values().all(|(version, _)| *version == lsn(2)));
    }
    if answer.is_ok() {
        assert!(held.values().all(|(version, _)| *version == lsn(2)), "what was answered is there");
    }
    sink.prepare(&entities()).await.unwrap();
    sink.write(&batch, Some(lsn(2))).await.unwrap();
    let held = target.held().await;
    assert!(held.len() == 700 && held.values().all(|(version, _)| *version == lsn(2)));
}

pub(super) async fn a_slow_target_is_given_up_and_tried_again(target: &mut dyn Target) -> Ran {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1}))], Some(lsn(1))).await.unwrap();
    if !target.hold().await {
        return Ran::NotApplicable;
    }
    let change = [upsert("order", "1", 2, &json!({"n": 2}))];
    let error = sink.write(&change, Some(lsn(2))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    target.release().await;
    sink.prepare(&entities()).await.unwrap();
    sink.write(&change, Some(lsn(2))).await.unwrap();
    assert_eq!(target.held().await["order/1"].0, lsn(2));
    Ran::Tested
}

/// With a pause, where the target can name one, and without: nothing is set aside, nothing is lost, and the caller is told the pause.
pub(super) async fn a_target_that_asks_for_patience_gets_it(target: &mut dyn Target) -> Ran {
    let mut sink = prepared(target).await;
    sink.write(&load_of(1)[..30], Some(lsn(1))).await.unwrap();
    let mut ran = Ran::NotApplicable;
    for (pause, version) in [(None, 2), (Some(Duration::from_secs(70)), 3)] {
        if !target.throttle(pause).await {
            continue;
        }
        ran = Ran::Tested;
        let (frontier, held) = (target.frontier().await, target.held().await);
        let changes = &load_of(version)[..30];
        // Again and again, as the caller does where the target can be looked at.
        for _ in 0..2 {
            let error = sink.write(changes, Some(lsn(version))).await.unwrap_err();
            assert!(matches!(error, Error::Throttled { .. }), "{error:?}");
            assert_eq!(error.pause(), pause, "{error}");
            if let Err(error) = sink.prepare(&entities()).await {
                assert!(matches!(error, Error::Throttled { .. }), "{error:?}");
                break;
            }
        }
        target.release().await;
        assert_eq!((target.frontier().await, target.held().await), (frontier, held), "nothing was taken");
        sink.prepare(&entities()).await.unwrap();
        assert_eq!(sink.write(changes, Some(lsn(version))).await.unwrap(), []);
        let held = target.held().await;
        assert!(held.len() == 30 && held.values().all(|(held, _)| *held == lsn(version)), "{held:?}");
    }
    ran
}

pub(super) async fn what_was_removed_is_told_and_said_to_be_empty(target: &mut dyn Target) -> Ran {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1}))], Some(lsn(1))).await.unwrap();
    let kept = sink.held().await.unwrap();
    if !target.remove().await {
        return Ran::NotApplicable;
    }
    let change = [upsert("order", "2", 2, &json!({"n": 2}))];
    let error = sink.write(&change, Some(lsn(2))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    // What the sink does not make itself, it waits for.
    if let Err(error) = sink.prepare(&entities()).await {
        assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    }
    target.make().await;
    sink.prepare(&entities()).await.unwrap();
    if target.frontier().await.is_some() {
        // A lake does not say up to where, only that it is whole.
        let whole = |at| if kept == sinks::Held::Unknown { kept } else { sinks::Held::UpTo(lsn(at)) };
        assert_eq!(kept, whole(1));
        assert_eq!(sink.held().await.unwrap(), sinks::Held::Nothing);
        assert_eq!(target.frontier().await, Some(None), "nobody takes it for whole");
        sink.write(&change, Some(lsn(2))).await.unwrap();
        assert_eq!(sink.held().await.unwrap(), whole(2));
    } else {
        sink.write(&change, Some(lsn(2))).await.unwrap();
    }
    assert_eq!(target.held().await["order/2"].0, lsn(2));
    Ran::Tested
}

pub(super) async fn a_rotated_secret_is_picked_up(target: &mut dyn Target) -> Ran {
    let mut sink = prepared(target).await;
    sink.write(&[upsert("order", "1", 1, &json!({"n": 1}))], Some(lsn(1))).await.unwrap();
    if !target.rotate(Rotation::Refused).await {
        return Ran::NotApplicable;
    }
    let change = [upsert("order", "1", 2, &json!({"n": 2}))];
    // Who is asked nothing by `prepare` refuses what is written; who is cut off in the middle says why at the next look.
    let error = sink.write(&change, None).await.unwrap_err();
    let looked = sink.prepare(&entities()).await.err();
    let error = looked.unwrap_or(error);
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    target.rotate(Rotation::Renewed).await;
    sink.prepare(&entities()).await.unwrap();
    sink.write(&change, Some(lsn(2))).await.unwrap();
    assert_eq!(target.held().await["order/1"].0, lsn(2));
    Ran::Tested
}
