//! Segments that are older than the archive's retention: removed from the oldest on, and nobody takes it for damage.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use archive::{Error, Fused, Range, verify};
use objects::Objects;
use schemas::progress::ShardPositions;
use streams::memory::Memory;
use streams::{Layout, Provider};

use crate::support::{Shop, archive_all, contents, first_error, lsn, names, open, wait_for};

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Segments up to LSN 12, then a time, then segments up to LSN 14: each tick in one, or more.
async fn archived(segment_bytes: usize) -> (Memory, Shop, Objects, i64) {
    let memory = Memory::new();
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    shop.snapshot(9).await;
    let objects = Objects::memory();
    let mut between = 0;
    for round in 0..4 {
        shop.tick(40).await;
        archive_all(&shop, &objects, segment_bytes).await;
        if round == 1 {
            between = now_ms() + 1;
            wait_for("the clock moves", async || now_ms() > between).await;
        }
    }
    (memory, shop, objects, between)
}

#[tokio::test]
async fn what_is_too_old_is_removed_and_what_is_left_reads_on() {
    let (memory, mut shop, objects, between) = archived(2000).await;
    let archive = open(&objects).await;
    let (before, later) = (archive.positions_at(lsn(11)).await.unwrap(), archive.positions_at(lsn(12)).await.unwrap());
    let whole = names(&objects, "manifests").await.len();
    let removed = archive.expire(between).await.unwrap();
    assert!(removed > 4, "{removed} of {whole}");
    assert_eq!(names(&objects, "manifests").await.len() as u64, whole as u64 - removed);
    assert_eq!(archive.expire(between).await.unwrap(), 0);

    // Nothing of it is left, of any kind.
    let beginning = archive.beginning().await.unwrap().unwrap();
    assert_eq!((beginning.lsn, beginning.expired), (lsn(12), true));
    for folder in ["events", "progress", "index", "manifests"] {
        for name in names(&objects, folder).await {
            let file = name.rsplit('/').next().unwrap();
            assert!(file[..12].parse::<u64>().unwrap() >= beginning.segment, "{name}");
        }
    }
    let found = verify(&open(&objects).await).await.unwrap();
    assert!(found.is_sound() && found.begins == lsn(12), "{found:?}");

    // From there on it is read as before, in both ways; from before, only by whom the live stream can serve.
    let fused = Fused::new(open(&objects).await, Arc::new(memory.clone()));
    assert_eq!(contents(&shop, &fused, &later).await, contents(&shop, &memory, &later).await);
    assert_eq!(contents(&shop, &fused, &before).await, contents(&shop, &memory, &before).await);
    for stream in shop.streams() {
        memory.trim(&stream).unwrap();
        let told = first_error(&fused, &stream, &before[&stream]).await.to_string();
        assert!(told.contains(&format!("begins after LSN {}", lsn(12))) && told.contains("retention_days"), "{told}");
    }
    let error = archive.replay(Range { from: Some(lsn(11)), ..Range::default() }).await.unwrap_err();
    assert!(matches!(error, Error::BeforeBeginning { begins, .. } if begins == lsn(12)), "{error}");
    let mut replay = archive.replay(Range { from: Some(lsn(12)), ..Range::default() }).await.unwrap();
    let mut count = 0;
    while let Some(events) = replay.next().await.unwrap() {
        count += events.len();
    }
    assert_eq!(count, 80);
    // The archive goes on.
    shop.tick(5).await;
    archive_all(&shop, &objects, 2000).await;
    assert!(verify(&open(&objects).await).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_reader_in_the_middle_is_told() {
    let memory = Memory::new();
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    let objects = Objects::memory();
    // Many more segments than a reader reads ahead.
    for _ in 0..20 {
        shop.tick(9).await;
        archive_all(&shop, &objects, 1 << 20).await;
    }
    let between = now_ms() + 1;
    wait_for("the clock moves", async || now_ms() > between).await;
    shop.tick(9).await;
    archive_all(&shop, &objects, 1 << 20).await;
    for stream in shop.streams() {
        memory.trim(&stream).unwrap();
    }
    let fused = Fused::new(open(&objects).await, Arc::new(memory.clone()));
    let mut reader = fused.reader(&shop.streams()[0], &Default::default()).await.unwrap();
    reader.next().await.unwrap();
    let mut replay = open(&objects).await.replay(Range::default()).await.unwrap();
    replay.next().await.unwrap();
    open(&objects).await.expire(between).await.unwrap();
    let told = loop {
        if let Err(error) = tokio::time::timeout(crate::support::LIMIT, reader.next()).await.expect("it waits") {
            break error.to_string();
        }
    };
    assert!(told.contains(&format!("begins after LSN {}", lsn(30))), "{told}");
    let error = loop {
        match replay.next().await {
            Ok(events) => assert!(events.is_some(), "it ends where segments are gone"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Expired { .. }), "{error}");
}

#[tokio::test]
async fn a_removal_that_was_cut_short_is_finished_and_is_no_damage() {
    let (_, shop, objects, between) = archived(2000).await;
    let whole: Vec<(String, bytes::Bytes)> = {
        let mut whole = Vec::new();
        for folder in ["events", "progress", "index", "manifests"] {
            for name in names(&objects, folder).await {
                let path = objects::ObjectPath::parse(&name).unwrap();
                whole.push((name, objects.get(&path).await.unwrap().unwrap()));
            }
        }
        whole
    };
    open(&objects).await.expire(between).await.unwrap();
    // The mark stands, the manifests are still there, and only some of the objects are gone.
    for (name, data) in whole.iter().filter(|(name, _)| !name.starts_with("events/table=dbo.orders")) {
        objects.put(&objects::ObjectPath::parse(name).unwrap(), data.clone()).await.unwrap();
    }
    let archive = open(&objects).await;
    assert!(verify(&archive).await.unwrap().is_sound());
    assert_eq!(archive.beginning().await.unwrap().unwrap().lsn, lsn(12));
    let error = archive.positions_at(lsn(10)).await.unwrap_err();
    assert!(matches!(error, Error::BeforeBeginning { .. }), "{error}");
    assert!(archive.expire(0).await.unwrap() > 4);
    let least = archive.beginning().await.unwrap().unwrap().segment;
    assert!(
        names(&objects, "manifests")
            .await
            .iter()
            .all(|name| name[name.len() - 17..name.len() - 5].parse::<u64>().unwrap() >= least)
    );
    drop(shop);
}

#[tokio::test]
async fn the_last_segment_stays() {
    let (memory, shop, objects, _) = archived(1 << 20).await;
    let archive = open(&objects).await;
    archive.expire(i64::MAX).await.unwrap();
    assert_eq!(names(&objects, "manifests").await.len(), 1);
    let none = ShardPositions::new();
    for stream in shop.streams() {
        let fused = Fused::new(archive.clone(), Arc::new(memory.clone()));
        assert_eq!(fused.tips(&stream).await.unwrap(), memory.tips(&stream).await.unwrap());
    }
    assert_eq!(archive.plan(&Range::default()).await.unwrap().archived_to, lsn(14));
    assert_eq!(archive.positions_at(lsn(14)).await.unwrap().len(), shop.streams().len());
    let fused = Fused::new(archive, Arc::new(memory.clone()));
    assert_eq!(contents(&shop, &fused, &none).await.len(), shop.streams().len());
}
