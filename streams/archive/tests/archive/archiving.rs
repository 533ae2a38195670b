//! What is archived is what the streams hold, whatever happens while it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use archive::{Error, Fused, verify};
use object_store::memory::InMemory;
use objects::Objects;
use objects::test_support::{Control, Controlled, Fate, Operation};
use proptest::prelude::*;
use schemas::event::Op;
use schemas::progress::ShardPositions;
use streams::memory::Memory;
use streams::{Layout, Provider};

use crate::support::{Shop, Working, archive_all, contents, lsn, names, open};

/// Fails after so many operations; the one at which it does is carried out, or is not.
#[derive(Debug)]
struct Dying {
    left: AtomicUsize,
    answer_lost: bool,
    /// It fails now and then, after so many operations again. Otherwise it refuses everything from then on: whoever works on it is as good as killed.
    every: Option<usize>,
}

impl Dying {
    fn failure(&self) -> object_store::Error {
        let source = "as the test wants it".into();
        match self.every {
            Some(_) => object_store::Error::Generic { store: "test", source },
            None => object_store::Error::PermissionDenied { path: "everything".into(), source },
        }
    }
}

#[async_trait::async_trait]
impl Control for Dying {
    async fn fate(&self, operation: Operation<'_>) -> Fate {
        if operation == Operation::List {
            return Fate::Done;
        }
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match (left, self.every) {
            (0 | 1, Some(every)) => Some(every),
            (left, _) => left.checked_sub(1),
        });
        match (left, operation) {
            // Reading and removing come to nothing by a lost answer.
            (Ok(1), Operation::Put(_) | Operation::Create(_)) if self.answer_lost => Fate::Lost(self.failure()),
            (Ok(1), _) if self.every.is_none() || self.answer_lost => Fate::Done,
            (Ok(left), _) if left != 1 => Fate::Done,
            // As S3 does while an earlier put of the same name is under way.
            (_, Operation::Create(path)) => {
                Fate::Refused(object_store::Error::AlreadyExists { path: path.to_string(), source: "a put is under way".into() })
            }
            _ => Fate::Refused(self.failure()),
        }
    }
}

fn under_control(inner: &Arc<InMemory>, control: Dying) -> Objects {
    Controlled::objects(inner.clone(), Arc::new(control))
}

/// The archive holds what the streams hold, and nothing but what its manifests name.
pub(crate) async fn is_complete(shop: &Shop, objects: &Objects) {
    let archive = open(objects).await;
    let live = contents(shop, &*shop.provider, &ShardPositions::new()).await;
    // What the archive has, the live stream does not any more.
    let trimmed = Memory::new();
    for stream in shop.streams() {
        trimmed.ensure(&stream, 3).await.unwrap();
    }
    let fused = Fused::new(archive.clone(), Arc::new(trimmed));
    assert_eq!(contents(shop, &fused, &ShardPositions::new()).await, live);
    let found = verify(&archive).await.unwrap();
    assert!(found.is_sound(), "{found:?}");
    let plan = archive.plan(&Default::default()).await.unwrap();
    let mut named: Vec<String> = plan.objects.into_iter().map(|object| object.path).collect();
    named.sort();
    assert_eq!(names(objects, "events").await, named);
}

#[tokio::test]
async fn everything_is_archived_by_table_and_date() {
    for layout in [Layout::Shared, Layout::Table] {
        let mut shop = Shop::new(Arc::new(Memory::new()), layout).await;
        shop.snapshot(20).await;
        for _ in 0..6 {
            shop.tick(7).await;
        }
        shop.crash(3).await;
        shop.tick(9).await;
        // Records that are no events, or not ours, are kept as well.
        let stream = shop.streams()[0].clone();
        shop.raw(&stream, b"\xc3\x01 not JSON".to_vec()).await;
        shop.raw(&stream, b"{\"foreign\": \n true}".to_vec()).await;
        shop.tick(1).await;
        let objects = Objects::memory();
        archive_all(&shop, &objects, 3000).await;
        is_complete(&shop, &objects).await;
        let folders = objects.folders(&objects::ObjectPath::from("events")).await.unwrap();
        let folders: Vec<&str> = folders.iter().map(AsRef::as_ref).collect();
        assert_eq!(folders, ["events/table=_unreadable", "events/table=dbo.items", "events/table=dbo.orders"]);
        let dates = objects.folders(&objects::ObjectPath::parse("events/table=dbo.orders").unwrap()).await.unwrap();
        assert!(dates.len() > 3 && dates[0].as_ref().contains("date=2026-"), "{dates:?}");
        // It goes on where it stood, also without anything to do.
        archive_all(&shop, &objects, 3000).await;
        shop.tick(5).await;
        archive_all(&shop, &objects, 1 << 20).await;
        is_complete(&shop, &objects).await;
    }
}

#[tokio::test]
async fn a_tick_larger_than_memory_is_cut_within() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(3).await;
    shop.tick(400).await;
    shop.tick(2).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 2000).await;
    is_complete(&shop, &objects).await;
}

#[tokio::test]
async fn of_two_archivers_the_one_that_came_first_stops() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(5).await;
    let objects = Objects::memory();
    let first = Working::start(&objects, &shop.provider, 2000).await;
    first.until(&objects, lsn(shop.frontier)).await;
    let second = Working::start(&objects, &shop.provider, 2000).await;
    second.until(&objects, lsn(shop.frontier)).await;
    // Whichever of them comes to it first.
    while names(&objects, "manifests").await.len() < 3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        shop.tick(4).await;
    }
    let error = first.ended().await.unwrap_err();
    assert!(matches!(error, Error::Superseded { .. }), "{error}");
    second.until(&objects, lsn(shop.frontier)).await;
    second.stop().await.unwrap();
    is_complete(&shop, &objects).await;
    assert_eq!(names(&objects, "drafts").await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_missing_in_the_stream_is_told_by_table_tick_and_position() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(2).await;
    shop.tick(3).await;
    shop.lose();
    shop.tick(3).await;
    shop.tick(3).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    let found = verify(&open(&objects).await).await.unwrap();
    assert_eq!(found.damage, Vec::<String>::new());
    let [missing] = &found.missing[..] else { panic!("{found:?}") };
    assert_eq!((missing.table.to_string().as_str(), missing.from_lsn, missing.to_lsn), ("dbo.orders", lsn(11), lsn(12)));
    assert_eq!(missing.published, missing.found + 1);
    let stream = shop.streams()[0].clone();
    assert!(missing.between.iter().all(|place| place.stream == stream && place.after < Some(place.up_to.clone())));
}

#[tokio::test]
async fn another_source_is_refused() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.tick(1).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    let error = archive::Archive::open(objects.clone(), "other", "other", crate::support::no_schemas()).await.unwrap_err();
    assert!(error.to_string().contains("\"shop\"") && error.to_string().contains("\"other\""), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// The process is killed after any number of operations on the store, several times; whether the last one was done is not known either.
    #[test]
    fn kills_between_any_two_steps_lose_and_double_nothing(
        kills in prop::collection::vec((1..40usize, any::<bool>()), 1..5),
        ticks in prop::collection::vec(0..12usize, 1..12),
        segment_bytes in prop_oneof![Just(500usize), Just(4000), Just(1 << 20)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let inner = Arc::new(InMemory::new());
            let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
            shop.snapshot(6).await;
            let mut ticks = ticks.into_iter();
            for (left, answer_lost) in kills {
                for count in ticks.by_ref().take(3) {
                    shop.tick(count).await;
                }
                let dying = under_control(&inner, Dying { left: left.into(), answer_lost, every: None });
                if let Ok(archive) = archive::Archive::open(dying, "shop", crate::support::PREFIX, crate::support::no_schemas()).await {
                    let shutdown = tokio_util::sync::CancellationToken::new();
                    let archiver = archive::Archiver::new(archive, &crate::support::config(segment_bytes));
                    let work = archiver.run(shop.provider.clone(), shutdown.clone());
                    // With nothing left to do it ends in order.
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), work).await;
                }
            }
            for count in ticks {
                shop.tick(count).await;
            }
            let objects = Objects::over(inner, "memory");
            archive_all(&shop, &objects, segment_bytes).await;
            is_complete(&shop, &objects).await;
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_now_and_then_is_tried_again() {
    for (every, answer_lost) in [(15, false), (16, false), (17, false), (15, true), (16, true), (17, true)] {
        let inner = Arc::new(InMemory::new());
        let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
        shop.snapshot(6).await;
        let flaky = under_control(&inner, Dying { left: (every * 4).into(), answer_lost, every: Some(every) });
        let working = Working::start(&flaky, &shop.provider, 2000).await;
        let objects = Objects::over(inner, "memory");
        for _ in 0..20 {
            shop.tick(5).await;
            working.until(&objects, lsn(shop.frontier)).await;
        }
        working.stop().await.unwrap();
        is_complete(&shop, &objects).await;
    }
}

#[tokio::test]
async fn rows_read_again_beside_the_tail_are_kept() {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Table).await;
    shop.snapshot(4).await;
    shop.events(5, Op::Reread).await;
    shop.tick(3).await;
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    let live = contents(&shop, &*shop.provider, &ShardPositions::new()).await;
    let fused = Fused::new(open(&objects).await, shop.provider.clone());
    assert_eq!(contents(&shop, &fused, &ShardPositions::new()).await, live);
}
