//! Reading that begins in the archive and goes over to the live stream, while events keep coming.

use std::sync::Arc;

use archive::Fused;
use objects::Objects;
use proptest::prelude::*;
use streams::memory::Memory;
use streams::{Error, Layout, Provider};

use crate::support::{LIMIT, Shop, archive_all, contents, lsn, names, open, read_to_tips};

/// What happens, in turn.
#[derive(Debug, Clone)]
enum Act {
    Tick(usize),
    /// Events that no record speaks of yet.
    Stray(usize),
    Archive(usize),
    /// The live stream forgets what is archived: everything, as nothing else has been published.
    ArchiveAndTrim,
    /// The reader reads up to so many batches.
    Read(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..8usize).prop_map(Act::Tick),
        1 => (1..4usize).prop_map(Act::Stray),
        2 => (200..3000usize).prop_map(Act::Archive),
        1 => Just(Act::ArchiveAndTrim),
        4 => (1..6usize).prop_map(Act::Read),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, ..ProptestConfig::default() })]

    /// Wherever the reader begins, goes over and falls behind: it hands over what the stream held after its position, each record once and in order.
    #[test]
    fn no_gap_and_no_repeat_wherever_the_switch_happens(acts in acts(), start in 0..30usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let memory = Memory::new();
            let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
            shop.snapshot(5).await;
            let objects = Objects::memory();
            let fused = Fused::new(open(&objects).await, Arc::new(memory.clone()));
            let stream = shop.streams()[0].clone();
            // A copy of all that was published is kept by a reader that never falls behind.
            let mut witness = memory.reader(&stream, &Default::default()).await.unwrap();
            let (mut expected, mut found) = (Vec::new(), Vec::new());
            // Somewhere in what is there at the start, shard by shard.
            let tips = memory.tips(&stream).await.unwrap();
            let begin = |number: u64| schemas::progress::SequenceNumber::from(number.saturating_sub(start as u64 % 4));
            let after: streams::Positions = tips.iter().take(start % 4).map(|(shard, tip)| (shard.clone(), begin(tip.to_u64().unwrap()))).collect();
            let mut reader = fused.reader(&stream, &after).await.unwrap();
            for act in acts {
                match act {
                    Act::Tick(count) => shop.tick(count).await,
                    Act::Stray(count) => shop.crash(count).await,
                    Act::Archive(segment_bytes) => archive_all(&shop, &objects, segment_bytes).await,
                    Act::ArchiveAndTrim => {
                        shop.tick(1).await;
                        drain(&mut *witness, &mut expected).await;
                        archive_all(&shop, &objects, 1000).await;
                        for stream in shop.streams() {
                            memory.trim(&stream).unwrap();
                        }
                    }
                    Act::Read(batches) => {
                        for _ in 0..batches {
                            let next = tokio::time::timeout(std::time::Duration::from_millis(50), reader.next()).await;
                            let Ok(batch) = next else { break };
                            take(batch.unwrap(), &mut found);
                        }
                    }
                }
                drain(&mut *witness, &mut expected).await;
            }
            // What was trimmed is no tip of the live stream any more.
            let tips = expected.iter().map(|(shard, number, _)| (shard.clone(), number.clone())).collect();
            let mut at = after.clone();
            for (shard, number, _) in &found {
                at.insert(shard.clone(), number.clone());
            }
            for (shard, records) in read_to_tips(&mut *reader, &tips, &at).await {
                found.extend(records.into_iter().map(|(number, data)| (schemas::progress::ShardId(shard.clone()), number.parse().unwrap(), data)));
            }
            expected.retain(|(shard, number, _)| after.get(shard).is_none_or(|after| number > after));
            let order = |records: &mut Vec<_>| records.sort_by_key(|(shard, _, _): &(schemas::progress::ShardId, schemas::progress::SequenceNumber, bytes::Bytes)| shard.clone());
            // Stable: within a shard the order in which they came stays.
            order(&mut expected);
            order(&mut found);
            assert_eq!(found, expected);
        });
    }
}

type Taken = Vec<(schemas::progress::ShardId, schemas::progress::SequenceNumber, bytes::Bytes)>;

fn take(batch: streams::Batch, into: &mut Taken) {
    into.extend(batch.records.into_iter().map(|(number, data)| (batch.shard.clone(), number, data)));
}

async fn drain(reader: &mut dyn streams::StreamReader, into: &mut Taken) {
    while let Ok(batch) = tokio::time::timeout(std::time::Duration::from_millis(1), reader.next()).await {
        take(batch.unwrap(), into);
    }
}

#[tokio::test]
async fn it_starts_at_an_lsn() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Table).await;
    shop.snapshot(10).await;
    for count in [3, 0, 5, 8, 2, 1] {
        shop.tick(count).await;
    }
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1500).await;
    shop.tick(4).await;
    let archive = open(&objects).await;
    let fused = Fused::new(archive.clone(), shop.provider.clone());
    for at in 9..=17 {
        let positions = archive.positions_at(lsn(at)).await.unwrap();
        let found = contents(&shop, &fused, &positions).await;
        let records = found.values().flat_map(|content| content.values().flatten());
        let mut lsns: Vec<u64> = Vec::new();
        for (_, data) in records {
            let value: serde_json::Value = serde_json::from_slice(data).unwrap();
            let lsn = value.pointer("/source/commit_lsn").or(value.pointer("/to_lsn")).unwrap();
            lsns.push(u64::from_str_radix(&lsn.as_str().unwrap().replace(':', ""), 16).unwrap());
        }
        let expected: usize = [(10, 10 + 1), (11, 4), (12, 1), (13, 6), (14, 9), (15, 3), (16, 2), (17, 5)]
            .iter()
            .filter(|(lsn, _)| *lsn > at.min(16))
            .map(|(_, records)| records)
            .sum();
        assert_eq!(lsns.len(), expected, "from {at}: {lsns:?}");
        assert!(lsns.iter().all(|lsn| *lsn > at.min(16)), "from {at}: {lsns:?}");
    }
}

#[tokio::test]
async fn a_live_stream_that_was_trimmed_past_the_archive_is_told() {
    let memory = Memory::new();
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    shop.snapshot(3).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    shop.tick(30).await;
    let stream = shop.streams()[0].clone();
    memory.trim(&stream).unwrap();
    let fused = Fused::new(open(&objects).await, Arc::new(memory));
    let mut reader = fused.reader(&stream, &Default::default()).await.unwrap();
    let error = loop {
        match tokio::time::timeout(LIMIT, reader.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Trimmed { .. }), "{error}");
}

#[tokio::test]
async fn a_position_before_what_is_left_of_the_archive_is_no_silent_gap() {
    let memory = Memory::new();
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    shop.snapshot(9).await;
    let objects = Objects::memory();
    for _ in 0..3 {
        archive_all(&shop, &objects, 1 << 20).await;
        shop.tick(12).await;
    }
    archive_all(&shop, &objects, 1 << 20).await;
    let archive = open(&objects).await;
    let (old, later) = (archive.positions_at(lsn(10)).await.unwrap(), archive.positions_at(lsn(11)).await.unwrap());
    // Of each start there are two segments, the one that takes over and the one with a tick: what is left follows LSN 11.
    let manifests = names(&objects, "manifests").await;
    objects.remove(manifests[..4].iter().map(|name| objects::ObjectPath::parse(name).unwrap())).await.unwrap();
    let fused = Fused::new(open(&objects).await, Arc::new(memory.clone()));
    let live = contents(&shop, &memory, &old).await;
    assert_eq!(contents(&shop, &fused, &old).await, live);

    let expected = contents(&shop, &memory, &later).await;
    let stream = shop.streams()[0].clone();
    let tips = memory.tips(&stream).await.unwrap();
    memory.trim(&stream).unwrap();
    let mut reader = fused.reader(&stream, &old[&stream]).await.unwrap();
    let error = tokio::time::timeout(LIMIT, reader.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Trimmed { .. }), "{error}");
    let mut reader = fused.reader(&stream, &later[&stream]).await.unwrap();
    assert_eq!(read_to_tips(&mut *reader, &tips, &later[&stream]).await, expected[&stream]);
}
