//! What a replay would read, and what it hands out.

use std::collections::BTreeMap;
use std::sync::Arc;

use archive::Range;
use objects::Objects;
use schemas::TableName;
use streams::Layout;
use streams::memory::Memory;

use crate::support::{Shop, archive_all, lsn, names, open};

async fn replayed(objects: &Objects, range: Range) -> Vec<(u64, String)> {
    let mut replay = open(objects).await.replay(range).await.unwrap();
    let mut events = Vec::new();
    while let Some(segment) = replay.next().await.unwrap() {
        for data in segment {
            let event: serde_json::Value = serde_json::from_slice(&data).unwrap();
            let lsn = event.pointer("/source/commit_lsn").unwrap().as_str().unwrap().replace(':', "");
            let table = event.pointer("/source/table").unwrap().as_str().unwrap().to_owned();
            events.push((u64::from_str_radix(&lsn, 16).unwrap(), table));
        }
    }
    events
}

fn by_lsn(events: &[(u64, String)]) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for (lsn, _) in events {
        *counts.entry(*lsn).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn a_range_is_replayed_in_order_each_event_once() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(9).await;
    for count in [3, 4, 5, 6] {
        // An importer that is killed and publishes the tick again.
        shop.crash(2).await;
        shop.tick(count).await;
    }
    for segment_bytes in [700, 2500, 1 << 20] {
        let objects = Objects::memory();
        archive_all(&shop, &objects, segment_bytes).await;
        let all = replayed(&objects, Range::default()).await;
        assert_eq!(by_lsn(&all), [(10, 9), (11, 3), (12, 4), (13, 5), (14, 6)].into(), "{segment_bytes}");
        assert!(all.is_sorted_by_key(|(lsn, _)| *lsn));
        let range = |from, to, tables| Range { from, to, tables, ..Range::default() };
        let some = replayed(&objects, range(Some(lsn(11)), Some(lsn(13)), vec![])).await;
        assert_eq!(by_lsn(&some), [(12, 4), (13, 5)].into(), "{segment_bytes}");
        let items = replayed(&objects, range(None, None, vec![TableName::new("dbo", "items")])).await;
        assert_eq!(items.len(), all.iter().filter(|(_, table)| table == "items").count());
        assert_eq!(replayed(&objects, range(Some(lsn(14)), None, vec![])).await, []);
    }
}

#[tokio::test]
async fn a_plan_names_what_would_be_read() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(9).await;
    let objects = Objects::memory();
    for count in [3, 4, 5] {
        shop.tick(count).await;
        archive_all(&shop, &objects, 1 << 20).await;
    }
    let archive = open(&objects).await;
    let all = archive.plan(&Range::default()).await.unwrap();
    assert_eq!((all.archived_to, all.tables.values().map(|table| table.events).sum()), (lsn(13), 9 + 12));
    let mut named: Vec<String> = all.objects.iter().map(|object| object.path.clone()).collect();
    named.sort();
    assert_eq!(named, names(&objects, "events").await);
    let stream = &shop.streams()[0];
    assert_eq!(all.live_from[stream], shop.provider.tips(stream).await.unwrap());

    let later = archive.plan(&Range { from: Some(lsn(11)), to: Some(lsn(12)), ..Range::default() }).await.unwrap();
    assert_eq!(later.tables.values().map(|table| table.events).sum::<u64>(), 4);
    assert!(later.objects.iter().all(|object| object.lsns == Some((lsn(12), lsn(12))) && object.bytes > 0));
    let orders = archive
        .plan(&Range { from: Some(lsn(11)), tables: vec![TableName::new("dbo", "orders")], ..Range::default() })
        .await
        .unwrap();
    assert_eq!(orders.tables.keys().collect::<Vec<_>>(), ["dbo.orders"]);
    let nothing = archive.plan(&Range { from: Some(lsn(13)), ..Range::default() }).await.unwrap();
    assert_eq!((nothing.objects.len(), nothing.live_from == all.live_from), (0, true));
}

#[tokio::test]
async fn a_segment_that_is_gone_from_the_middle_is_no_end() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    let objects = Objects::memory();
    for count in [3, 4, 5] {
        shop.tick(count).await;
        archive_all(&shop, &objects, 1 << 20).await;
    }
    let manifests = names(&objects, "manifests").await;
    let gone = &manifests[manifests.len() - 2];
    objects.remove([objects::ObjectPath::parse(gone).unwrap()]).await.unwrap();
    let mut replay = open(&objects).await.replay(Range::default()).await.unwrap();
    let error = loop {
        match replay.next().await {
            Ok(events) => assert!(events.is_some(), "it ends where a segment is missing"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, archive::Error::Hole { .. }) && error.to_string().contains(gone), "{error}");
}

#[tokio::test]
async fn a_replay_up_to_a_snapshot_has_all_of_its_segments() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    let objects = Objects::memory();
    for rows in [9, 7] {
        shop.snapshot(rows).await;
        archive_all(&shop, &objects, 500).await;
    }
    shop.tick(3).await;
    archive_all(&shop, &objects, 500).await;
    let range = Range { to: Some(lsn(10)), ..Range::default() };
    assert_eq!(by_lsn(&replayed(&objects, range).await), [(10, 16)].into());
}
