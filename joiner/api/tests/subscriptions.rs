//! Subscriptions over a real socket: resume, catch-up then live, progress, trimming, slow readers, the end.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use api::Config;
use schemas::change::EntityChange;
use serde_json::{Value, json};
use support::{Fixture, change, lsn};

fn order(key: u32, version: u32) -> EntityChange {
    change("order", &key.to_string(), version, Some(&json!({"id": key, "version": version})))
}

#[tokio::test]
async fn changes_come_live_as_cloudevents_with_progress() {
    let fixture = Fixture::start().await;
    fixture.feed.step(&[order(1, 1)], 1);
    let mut events = fixture.subscribe("/v1/changes", &[]).await;
    let first = events.next().await.unwrap();
    assert_eq!((first.kind.as_str(), &first.data["lsn"]), ("progress", &json!(lsn(1).to_string())), "there is a token at once");
    fixture.feed.step(&[order(2, 2), change("order", "1", 2, None)], 2);
    let upserted = events.next_change().await;
    assert_eq!(upserted.data["type"], "tributary.entity.upserted");
    assert_eq!(upserted.data["id"], format!("order:2:{}", lsn(2)));
    assert_eq!(upserted.data["data"]["version"], 2);
    let deleted = events.next_change().await;
    assert_eq!((deleted.data["type"].as_str(), deleted.data.get("data")), (Some("tributary.entity.deleted"), None));
    // A step that emits nothing moves the frontier, and a subscriber hears of it.
    fixture.feed.step(&[], 3);
    let progress = events.progress_to(3).await;
    assert_eq!(progress.id, deleted.id, "nothing came between, so either token resumes at the same place");
    fixture.stop().await;
}

#[tokio::test]
async fn an_idle_subscription_still_hears_progress() {
    let fixture = Fixture::with(Config { progress_interval_ms: 30, ..Config::default() }, true).await;
    fixture.feed.step(&[], 1);
    let mut events = fixture.subscribe("/v1/changes", &[]).await;
    for _ in 0..3 {
        events.progress_to(1).await;
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resuming_anywhere_loses_and_repeats_nothing() {
    let fixture = Fixture::start().await;
    fixture.feed.step(&(1..=1_000).map(|n| order(n, n)).collect::<Vec<_>>(), 1_000);
    let feed = Arc::clone(&fixture.feed);
    // Steps go on all the while, so that catching up runs into what is live.
    let writer = tokio::task::spawn_blocking(move || {
        for n in 1_001..=3_000 {
            feed.step(&[order(n, n)], n);
        }
    });
    let (mut seen, mut token) = (Vec::new(), String::new());
    while seen.len() < 3_000 {
        let headers: &[(&str, &str)] = if token.is_empty() { &[] } else { &[("Last-Event-ID", &token)] };
        let mut events = fixture.subscribe("/v1/changes?from=oldest", headers).await;
        // Cut off after so many, in the middle of pages and on their edges.
        for _ in 0..(100 + seen.len() % 357).min(3_000 - seen.len()) {
            let event = events.next_change().await;
            seen.push(event.data["data"]["id"].as_u64().unwrap());
            token = event.id;
        }
    }
    writer.await.unwrap();
    assert_eq!(seen, (1..=3_000).collect::<Vec<u64>>());
    let mut events = fixture.subscribe("/v1/changes", &[("Last-Event-ID", &token)]).await;
    events.progress_to(3_000).await;
    fixture.stop().await;
}

#[tokio::test]
async fn a_filter_keeps_to_its_entity_and_key() {
    let fixture = Fixture::start().await;
    let noise = |n: u32| change("line", &format!("{n},x"), n, Some(&json!({})));
    let mut changes: Vec<_> = (1..=600).map(noise).collect();
    changes.insert(300, order(7, 300));
    changes.insert(301, order(8, 300));
    fixture.feed.step(&changes, 600);
    let mut all = fixture.subscribe("/v1/changes?entity=order&from=oldest", &[]).await;
    assert_eq!(
        (all.next_change().await.data["entitykey"].clone(), all.next_change().await.data["entitykey"].clone()),
        (json!("7"), json!("8"))
    );
    let mut one = fixture.subscribe("/v1/changes?entity=order&key=8&from=oldest", &[]).await;
    assert_eq!(one.next_change().await.data["entitykey"], "8");
    // Progress is past everything that was not asked for: resuming does not read it again.
    let progress = one.progress_to(600).await;
    assert!(progress.id.ends_with("-602"), "{}", progress.id);
    let mut composite = fixture.subscribe("/v1/changes?entity=line&key=600,x&from=oldest", &[]).await;
    assert_eq!(composite.next_change().await.data["entitykey"], "600,x");
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_trimmed_is_gone_and_said_so() {
    let fixture = Fixture::start().await;
    fixture.feed.step(&(1..=10).map(|n| order(n, n)).collect::<Vec<_>>(), 10);
    let mut events = fixture.subscribe("/v1/changes?from=oldest", &[]).await;
    let third = {
        events.next_change().await;
        events.next_change().await;
        events.next_change().await
    };
    drop(events);
    fixture.feed.trim_through(3);
    let mut resumed = fixture.subscribe("/v1/changes", &[("Last-Event-ID", &third.id)]).await;
    assert_eq!(resumed.next_change().await.data["entitykey"], "4", "just in time");
    fixture.feed.trim_through(5);
    let gone = fixture.send("GET", "/v1/changes", &[("Last-Event-ID", &third.id)]).await;
    assert_eq!((gone.status, gone.problem().as_str()), (410, "trimmed"));
    let other = fixture.send("GET", "/v1/changes", &[("Last-Event-ID", "ff-9")]).await;
    assert_eq!((other.status, other.problem().as_str()), (410, "trimmed"), "a token of another outbox");
    let ahead = fixture.send("GET", "/v1/changes", &[("Last-Event-ID", "0-11")]).await;
    assert_eq!(ahead.status, 410, "a token from a future that was lost");
    let mut oldest = fixture.subscribe("/v1/changes?from=oldest", &[]).await;
    assert_eq!(oldest.next_change().await.data["entitykey"], "6");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_nobody_up_and_is_told_when_it_is_too_slow() {
    let fixture = Fixture::start().await;
    let bulky = |n: u32| change("order", &n.to_string(), n, Some(&json!({"id": n, "text": "x".repeat(20_000)})));
    let mut slow = fixture.subscribe("/v1/changes", &[]).await;
    slow.progress_to_any().await;
    // 40 MB that the slow one does not take: far more than the buffers of a socket hold.
    for n in 1..=2_000 {
        fixture.feed.step(&[bulky(n)], n);
    }
    let mut quick = fixture.subscribe("/v1/changes?from=oldest", &[]).await;
    for n in 1..=2_000u64 {
        assert_eq!(quick.next_change().await.data["data"]["id"], n);
    }
    fixture.feed.trim_through(2_000);
    let mut last: Option<Value> = None;
    let ended = loop {
        match slow.next().await {
            Some(event) if event.kind == "change" => last = Some(event.data["data"]["id"].clone()),
            Some(event) if event.kind == "trimmed" => break true,
            Some(_) => {}
            None => break false,
        }
    };
    assert!(ended && last.as_ref().and_then(Value::as_u64).is_some_and(|last| last < 2_000), "{last:?}");
    assert!(slow.next().await.is_none(), "and the connection ends");
    fixture.stop().await;
}

#[tokio::test]
async fn without_an_outbox_subscribers_are_sent_elsewhere() {
    let fixture = Fixture::with(Config::default(), false).await;
    let answer = fixture.get("/v1/changes").await;
    assert_eq!((answer.status, answer.problem().as_str()), (501, "not-here"));
    let answer = fixture.get("/v1/entities/order/1?min_time=2026-01-01T00:00:00Z").await;
    assert_eq!((answer.status, answer.problem().as_str()), (501, "not-here"));
    fixture.stop().await;
}

#[tokio::test]
async fn there_are_only_so_many_subscriptions_and_shutdown_ends_them() {
    let fixture = Fixture::with(Config { subscription_limit: 1, ..Config::default() }, true).await;
    let mut events = fixture.subscribe("/v1/changes", &[]).await;
    let refused = fixture.get("/v1/changes").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "too-many-subscriptions"));
    events.progress_to_any().await;
    fixture.shutdown.cancel();
    while events.next().await.is_some() {}
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_nothing_does_not_hold_up_a_shutdown() {
    let fixture = Fixture::with(Config { drain_limit_ms: 50, ..Config::default() }, true).await;
    let bulky = |n: u32| change("order", &n.to_string(), n, Some(&json!({"id": n, "text": "x".repeat(100_000)})));
    fixture.feed.step(&(1..=200).map(bulky).collect::<Vec<_>>(), 200);
    let mut stuck = fixture.subscribe("/v1/changes?from=oldest", &[]).await;
    stuck.next_change().await;
    fixture.stop().await;
}
