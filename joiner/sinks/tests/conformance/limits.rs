//! Keys and documents past what a target holds.

use serde_json::json;

use super::*;

/// Text that nothing packs: an index that compresses its entries must not look larger than it is.
fn text(bytes: usize) -> String {
    let mut state = bytes as u64 + 1;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 33) as u8 % 26)
    });
    letters.take(bytes).collect()
}

/// What SQL Server can make a key of: 900 bytes of `nvarchar` in a clustered index and 1,700 in another, as UTF-8 up to half as much again. Every key up to what the sink says of itself is taken; a longer one is refused with its length, and
/// neither holds up what comes with it, nor what comes after.
pub(super) async fn a_key_is_taken_up_to_the_limit_that_the_sink_names(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let limit = sink.key_limit_bytes();
    assert!(limit >= 1000, "{limit}");
    let lengths = [450, 900, 1000, 1350, 1700, 2550, 2561, 5100];
    let keys: BTreeMap<usize, String> = lengths.into_iter().chain([limit, limit + 1]).map(|bytes| (bytes, text(bytes))).collect();
    let mut changes: Vec<_> = keys.values().map(|key| upsert("order", key, 1, &json!({"n": key.len()}))).collect();
    changes.push(upsert("order", "plain", 1, &json!({"n": 0})));
    let rejected = sink.write(&changes, Some(lsn(1))).await.unwrap();
    let held = target.held().await;
    assert_eq!(held["order/plain"].1, json!({"n": 0}));
    for (bytes, key) in &keys {
        let refused = rejected.iter().find(|rejected| rejected.change.key.as_str() == key);
        match refused {
            Some(refused) => {
                assert!(*bytes > limit, "a key of {bytes} bytes, and the limit is {limit}: {}", refused.reason);
                assert!(refused.reason.contains(&bytes.to_string()), "{}", refused.reason);
                assert!(!held.contains_key(&format!("order/{key}")), "{bytes}");
            }
            None => assert_eq!(held[&format!("order/{key}")].1, json!({"n": bytes}), "{bytes}"),
        }
    }
    // What goes must be told as well; of what was never there nothing is said.
    let gone: Vec<_> = keys.values().map(|key| deletion("order", key, 2)).collect();
    let rejected = sink.write(&gone, Some(lsn(2))).await.unwrap();
    assert!(rejected.iter().all(|rejected| rejected.change.key.as_str().len() > limit), "{rejected:?}");
    let held = target.held().await;
    assert_eq!(held.keys().collect::<Vec<_>>(), ["order/plain"]);
}

/// How many children a document is to have instead of the suite's.
fn children_asked_for() -> Option<u32> {
    std::env::var("TRIBUTARY_CHILDREN").ok().and_then(|text| text.parse().ok())
}

/// What a database has to have answered within. Short, so that the suite waits little for one that does not answer.
pub(super) fn write_limit_ms() -> u64 {
    if children_asked_for().is_some() { 30_000 } else { 3000 }
}

/// Children by the ten thousand (`TRIBUTARY_CHILDREN` asks for others): where the target does not take them, the document is refused with the reason, and what comes with it is written.
pub(super) async fn a_document_of_very_many_children_never_fails_its_batch(target: &mut dyn Target) {
    let mut sink = prepared(target).await;
    let children = children_asked_for().unwrap_or(20_000);
    let items: Vec<Value> = (0..children).map(|n| json!({"n": n, "text": "a child as children are"})).collect();
    let large = json!({"n": 1, "items": items});
    let changes = [
        upsert("order", "1", 1, &json!({"n": 1})),
        upsert("order", "large", 1, &large),
        upsert("order", "2", 1, &json!({"n": 2})),
    ];
    let rejected = sink.write(&changes, Some(lsn(1))).await.unwrap();
    let held = target.held().await;
    assert_eq!((&held["order/1"].1, &held["order/2"].1), (&json!({"n": 1}), &json!({"n": 2})));
    match &rejected[..] {
        [] => assert!(held["order/large"].1 == large, "the document that is held is another one"),
        [refused] => {
            eprintln!("{} bytes are refused: {}", large.to_string().len(), refused.reason);
            assert_eq!(refused.change.key.as_str(), "large");
            assert!(!refused.reason.is_empty() && !held.contains_key("order/large"));
        }
        more => panic!("{} changes are refused", more.len()),
    }
    // Nor does it stand in the way of what comes next: it is small again.
    sink.write(&[upsert("order", "large", 2, &json!({"n": 3}))], Some(lsn(2))).await.unwrap();
    assert_eq!(target.held().await["order/large"], (lsn(2), json!({"n": 3})));
}
