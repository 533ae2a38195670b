//! Several archivers of one archive: one works, the others wait; and what else it says of itself.

use std::sync::Arc;

use archive::{Config, Fused, Phase};
use objects::Objects;
use schemas::progress::StreamName;
use streams::memory::Memory;
use streams::{Layout, Provider, Record};

use crate::archiving::is_complete;
use crate::support::{PREFIX, Shop, Working, archive_all, config, lsn, names, open, wait_for};

#[tokio::test]
async fn of_several_archivers_one_works_and_the_others_take_over() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(5).await;
    let objects = Objects::memory();
    let config = Config { lease_seconds: 1, ..config(2000) };
    let mut working = Vec::new();
    for _ in 0..3 {
        working.push(Working::with(&objects, &shop.provider, &config).await);
        wait_for("one works", async || working.iter().any(|one| one.status.get().phase == Phase::Archiving)).await;
    }
    let at_work = |working: &[Working]| working.iter().position(|one| one.status.get().phase == Phase::Archiving);
    for round in 0..3 {
        for _ in 0..5 {
            shop.tick(4).await;
            crate::support::archived(&objects, lsn(shop.frontier)).await;
        }
        assert!(working.iter().all(|one| !one.is_finished()), "one was put out of work");
        let archiving = working.iter().filter(|one| one.status.get().phase == Phase::Archiving).count();
        assert_eq!(archiving, 1);
        // It ends in order, or without a word; another goes on.
        let one = working.remove(at_work(&working).unwrap());
        if round == 0 {
            one.stop().await.unwrap()
        } else {
            one.kill().await
        }
        if !working.is_empty() {
            wait_for("another takes over", async || at_work(&working).is_some()).await;
        }
    }
    // Each took over once: nobody took it from anybody.
    let empty = async || {
        let mut empty = 0;
        for name in names(&objects, "manifests").await {
            let manifest = objects.get(&objects::ObjectPath::parse(&name).unwrap()).await.unwrap().unwrap();
            let manifest: archive::manifest::Manifest = serde_json::from_slice(&manifest).unwrap();
            empty += usize::from(manifest.objects.is_empty());
        }
        empty
    };
    assert_eq!(empty().await, 3);
    is_complete(&shop, &objects).await;
}

#[tokio::test]
async fn one_that_was_taken_over_from_waits_for_its_next_turn() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(5).await;
    let objects = Objects::memory();
    let first = Working::with(&objects, &shop.provider, &Config { lease_seconds: 2, ..config(2000) }).await;
    first.until(&objects, lsn(shop.frontier)).await;
    // One that does not wait, as after a pause of the first for longer than its term.
    let second = Working::start(&objects, &shop.provider, 2000).await;
    wait_for("the second works", async || second.status.get().phase == Phase::Archiving).await;
    shop.tick(4).await;
    wait_for("the first finds its number taken", async || first.status.get().phase == Phase::Waiting || second.is_finished())
        .await;
    crate::support::archived(&objects, lsn(shop.frontier)).await;
    if !second.is_finished() {
        second.kill().await;
    }
    shop.tick(4).await;
    first.until(&objects, lsn(shop.frontier)).await;
    assert_eq!(first.status.get().phase, Phase::Archiving);
    first.stop().await.unwrap();
    is_complete(&shop, &objects).await;
}

#[tokio::test]
async fn it_says_how_far_it_is() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(9).await;
    shop.tick(12).await;
    let objects = Objects::memory();
    // Nothing is due for an hour.
    let working = Working::with(&objects, &shop.provider, &Config { interval_seconds: 3600, ..config(1 << 20) }).await;
    wait_for("all of it waits", async || working.status.get().tables.values().map(|table| table.waiting).sum::<u64>() == 21)
        .await;
    let status = working.status.get();
    assert_eq!((status.phase, status.frontier), (Phase::Archiving, schemas::Lsn::ZERO));
    // What is published here was committed in the future of the year 2026.
    assert!(status.held_bytes > 1000 && status.lag_ms.is_some(), "{status:?}");
    let handle = working.status.clone();
    working.stop().await.unwrap();
    let status = handle.get();
    assert_eq!((status.phase, status.frontier), (Phase::Stopped, lsn(11)));
    let orders = &status.tables["dbo.orders"];
    assert_eq!((orders.lsn, orders.archived + status.tables["dbo.items"].archived), (Some(lsn(11)), 21));
    let stream = shop.streams()[0].clone();
    assert_eq!(status.streams[&stream], shop.provider.tips(&stream).await.unwrap());
}

#[tokio::test]
async fn dead_letters_are_archived_beside_the_events() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    let stream = StreamName(format!("{PREFIX}.dead-letters"));
    shop.provider.ensure(&stream, 1).await.unwrap();
    shop.snapshot(9).await;
    let letter = Record { partition_key: "1".into(), data: b"{\"table\":\"dbo.orders\",\"event\":null}".to_vec().into() };
    let mut writer = shop.provider.writer().await.unwrap();
    writer.append(&stream, vec![letter.clone(), letter]).await.unwrap();
    writer.flush().await.unwrap();
    shop.tick(3).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    is_complete(&shop, &objects).await;
    assert_eq!(names(&objects, "dead-letters").await.len(), 1);
    // They are no events, and make up for none that is missing.
    assert!(names(&objects, "events").await.iter().all(|name| !name.contains("_unreadable")));
    let empty = Memory::new();
    empty.ensure(&stream, 1).await.unwrap();
    let fused = Fused::new(open(&objects).await, Arc::new(empty));
    let mut reader = fused.reader(&stream, &Default::default()).await.unwrap();
    assert_eq!(reader.next().await.unwrap().records.len(), 2);
    // Archived once.
    archive_all(&shop, &objects, 1 << 20).await;
    assert_eq!(names(&objects, "dead-letters").await.len(), 1);
}
