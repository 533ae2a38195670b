//! What the streams had forgotten before it was archived: nothing waits for it, and nobody reads over it.

use std::sync::Arc;

use archive::{Error, Fused, Gap, OnTrimmed, Range, verify};
use objects::Objects;
use schemas::progress::{ShardId, ShardPositions};
use streams::memory::Memory;
use streams::{Layout, Provider};

use crate::support::{PREFIX, Shop, Working, archive_all, config, contents, first_error, lsn, open};

async fn shop(memory: &Memory) -> Shop {
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    shop.snapshot(9).await;
    shop.tick(6).await;
    shop
}

fn trim(memory: &Memory, shop: &Shop) {
    for stream in shop.streams() {
        memory.trim(&stream).unwrap();
    }
}

/// Goes on with what is there.
async fn archive_over_gaps(shop: &Shop, objects: &Objects) {
    let config = archive::Config { on_trimmed: OnTrimmed::Gap, ..config(1 << 20) };
    let working = Working::with(objects, &shop.provider, &config).await;
    working.until(objects, lsn(shop.frontier)).await;
    working.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shards_that_hold_nothing_of_what_records_name_hold_nothing_up() {
    let memory = Memory::new();
    let mut shop = shop(&memory).await;
    let stream = shop.streams()[0].clone();
    memory.trim(&stream).unwrap();
    let objects = Objects::memory();
    // The records name where the shards stood, and nothing is there.
    archive_all(&shop, &objects, 1 << 20).await;
    let found = verify(&open(&objects).await).await.unwrap();
    assert_eq!((found.damage.len(), found.gaps.len()), (0, 0), "{found:?}");
    let lost: u64 = found.missing.iter().map(|missing| missing.published - missing.found).sum();
    assert_eq!(lost, 9 + 6, "{found:?}");
    // What comes later is archived, and the next archiver does not wait for it again.
    shop.tick(4).await;
    archive_all(&shop, &objects, 1 << 20).await;
    let positions = open(&objects).await.positions_at(lsn(11)).await.unwrap();
    let live = contents(&shop, &memory, &positions).await;
    let fused = Fused::new(open(&objects).await, Arc::new(memory));
    assert_eq!(contents(&shop, &fused, &positions).await, live);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_removed_from_the_end_of_a_shard_holds_nothing_up() {
    let memory = Memory::new();
    let mut shop = shop(&memory).await;
    let objects = Objects::memory();
    let working = Working::start(&objects, &shop.provider, 1 << 20).await;
    working.until(&objects, lsn(shop.frontier)).await;
    // Taken out before the record that promises it is published.
    shop.events(1, schemas::event::Op::Create).await;
    let stream = shop.streams()[0].clone();
    for (shard, number) in memory.tips(&stream).await.unwrap() {
        memory.remove(&stream, &shard, number.to_u64().unwrap()).unwrap();
    }
    shop.tick(0).await;
    working.until(&objects, lsn(shop.frontier)).await;
    working.stop().await.unwrap();
}

/// One that was away while everything up to LSN 13 was published and forgotten, and LSN 14 was published.
async fn gapped() -> (Memory, Shop, Objects) {
    let memory = Memory::new();
    let mut shop = shop(&memory).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    for _ in 0..2 {
        shop.tick(5).await;
    }
    trim(&memory, &shop);
    shop.tick(30).await;
    (memory, shop, objects)
}

#[tokio::test]
async fn an_archiver_that_was_away_for_too_long_stops_and_says_what_to_do() {
    let (_, shop, objects) = gapped().await;
    let working = Working::start(&objects, &shop.provider, 1 << 20).await;
    let status = working.status.clone();
    let error = working.ended().await.unwrap_err();
    assert!(matches!(error, Error::Trimmed(_)), "{error}");
    for part in ["have been trimmed", "`archive.on_trimmed` to `gap`", "another archive"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!((status.get().phase, status.get().error), (archive::Phase::Failed, Some(error.to_string())));
}

#[tokio::test]
async fn it_goes_on_over_a_gap_that_is_written_down_and_told_to_everybody() {
    let (memory, mut shop, objects) = gapped().await;
    let before = open(&objects).await.positions_at(lsn(11)).await.unwrap();
    archive_over_gaps(&shop, &objects).await;
    let archive = open(&objects).await;

    let found = verify(&archive).await.unwrap();
    assert!(!found.is_sound() && found.damage.is_empty() && found.missing.is_empty(), "{found:?}");
    let of_all = |gap: &&Gap| gap.table.is_none() && gap.from_lsn == lsn(11);
    let unspoken = found.gaps.iter().filter(of_all).find(|gap| gap.to_lsn == Some(lsn(13))).expect("LSNs without a record");
    let progress = Layout::progress_stream(PREFIX);
    let hole = unspoken.holes.iter().find(|hole| hole.stream == progress).unwrap();
    assert_eq!((hole.after.clone(), hole.next.to_u64()), (Some(before[&progress][&hole.shard].clone()), Some(5)));
    let events = shop.streams()[0].clone();
    assert!(found.gaps.iter().flat_map(|gap| &gap.holes).any(|hole| hole.stream == events), "{found:?}");

    // Readers that begin before it are told, in both streams; those that begin behind it read on.
    let fused = Fused::new(archive.clone(), Arc::new(memory.clone()));
    for (stream, after) in &before {
        let told = first_error(&fused, stream, after).await.to_string();
        assert!(told.contains("has a gap") && told.contains(&lsn(11).to_string()), "{told}");
    }
    let told = first_error(&fused, &events, &Default::default()).await.to_string();
    assert!(told.contains("has a gap") && told.contains("new snapshot"), "{told}");
    // Of a table that had no events yet nothing can be missing.
    let quiet = Layout::Table.stream(PREFIX, &schemas::TableName::new("dbo", "quiet"));
    memory.ensure(&quiet, 1).await.unwrap();
    let mut reader = fused.reader(&quiet, &Default::default()).await.unwrap();
    let next = tokio::time::timeout(std::time::Duration::from_millis(50), reader.next()).await;
    assert!(next.is_err(), "{next:?}");
    shop.tick(3).await;
    archive_all(&shop, &objects, 1 << 20).await;
    let behind = archive.positions_at(lsn(14)).await.unwrap();
    assert_eq!(contents(&shop, &fused, &behind).await, contents(&shop, &memory, &behind).await);

    // So is a replay, unless it is told to go on, or asks for something else.
    let mut replay = archive.replay(Range::default()).await.unwrap();
    let error = loop {
        match replay.next().await {
            Ok(events) => assert!(events.is_some(), "it ends"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Gap { .. }), "{error}");
    let count = async |range: Range| {
        let (mut replay, mut count) = (archive.replay(range).await.unwrap(), 0);
        while let Some(events) = replay.next().await.unwrap() {
            count += events.len();
        }
        count
    };
    assert_eq!(count(Range { allow_gaps: true, ..Range::default() }).await, 9 + 6 + 30 + 3);
    assert_eq!(count(Range { to: Some(lsn(11)), ..Range::default() }).await, 9 + 6);
    assert_eq!(count(Range { from: Some(lsn(14)), ..Range::default() }).await, 3);
    assert!(!archive.plan(&Range::default()).await.unwrap().gaps.is_empty());

    // A snapshot says everything anew: who begins with nothing begins with what is behind the gap.
    shop.snapshot(12).await;
    shop.tick(2).await;
    archive_all(&shop, &objects, 1 << 20).await;
    let none = ShardPositions::new();
    assert_eq!(contents(&shop, &fused, &none).await, contents(&shop, &memory, &none).await);
}

#[tokio::test]
async fn an_archive_begun_after_a_trim_says_where_it_begins() {
    let memory = Memory::new();
    let mut shop = shop(&memory).await;
    let stream = shop.streams()[0].clone();
    let before = memory.tips(&stream).await.unwrap();
    shop.tick(12).await;
    trim(&memory, &shop);
    shop.tick(9).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    let archive = open(&objects).await;

    // A joiner that was at LSN 11 lacks LSN 12: the live stream says so, and the archive does not hide it.
    let fused = Fused::new(archive.clone(), Arc::new(memory.clone()));
    let error = first_error(&fused, &stream, &before).await;
    assert!(matches!(error, streams::Error::Trimmed { .. }), "{error}");

    let beginning = archive.beginning().await.unwrap().unwrap();
    assert_eq!((beginning.lsn, beginning.expired), (lsn(12), false));
    assert_eq!(archive.plan(&Range::default()).await.unwrap().begins, lsn(12));
    let found = verify(&archive).await.unwrap();
    assert!(found.is_sound() && found.begins == lsn(12), "{found:?}");
    let error = archive.replay(Range { from: Some(lsn(11)), ..Range::default() }).await.unwrap_err();
    assert!(matches!(error, Error::BeforeBeginning { .. }), "{error}");
    archive.replay(Range { from: Some(lsn(12)), ..Range::default() }).await.unwrap();
}

#[tokio::test]
async fn a_progress_record_that_is_gone_is_told() {
    let memory = Memory::new();
    let mut shop = shop(&memory).await;
    shop.tick(4).await;
    shop.tick(4).await;
    // That of LSN 12: the snapshot's is the first.
    memory.remove(&Layout::progress_stream(PREFIX), &ShardId("shard-0000".into()), 3).unwrap();
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    let archive = open(&objects).await;
    let found = verify(&archive).await.unwrap();
    let told: Vec<_> = found.gaps.iter().map(|gap| (gap.table.clone(), gap.from_lsn, gap.to_lsn)).collect();
    assert_eq!(told, [(None, lsn(11), Some(lsn(12)))]);
    assert!(!found.is_sound() && found.missing.is_empty(), "{found:?}");
    // As it was told when it was archived.
    assert_eq!(archive.plan(&Range::default()).await.unwrap().gaps, found.gaps);
}
