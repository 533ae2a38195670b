//! The archive in S3, as ministack has it.

use std::sync::Arc;

use archive::{Error, Fused, verify};
use objects::{Config, Objects, S3Options};
use schemas::progress::ShardPositions;
use sinks::test_support::Ministack;
use streams::Layout;
use streams::memory::Memory;

use crate::support::{Shop, Working, archive_all, archived, contents, lsn, open};

#[tokio::test]
async fn archiving_racing_and_reading_work_in_s3() {
    let aws = Ministack::start();
    aws.create_bucket("archive").await;
    let config = Config::S3(S3Options {
        bucket: "archive".into(),
        prefix: "tributary/shop".into(),
        region: None,
        endpoint: Some(aws.endpoint_url()),
        stand_in_credentials: true,
    });
    let objects = Objects::open(&config).await.unwrap();
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Table).await;
    shop.snapshot(50).await;
    for _ in 0..5 {
        shop.tick(20).await;
    }
    archive_all(&shop, &objects, 4000).await;
    let first = Working::start(&objects, &shop.provider, 4000).await;
    first.until(&objects, lsn(shop.frontier)).await;
    let second = Working::start(&objects, &shop.provider, 4000).await;
    for _ in 0..5 {
        shop.tick(20).await;
    }
    // The one that stays may be either: both begin by taking the next number.
    archived(&objects, lsn(shop.frontier)).await;
    while !first.is_finished() && !second.is_finished() {
        shop.tick(1).await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let ended = [first.stop().await, second.stop().await];
    let superseded = ended.iter().filter(|ended| matches!(ended, Err(Error::Superseded { .. }))).count();
    assert_eq!((superseded, ended.iter().filter(|ended| ended.is_ok()).count()), (1, 1), "{ended:?}");
    archive_all(&shop, &objects, 4000).await;

    let fused = Fused::new(open(&objects).await, shop.provider.clone());
    let none = ShardPositions::new();
    assert_eq!(contents(&shop, &fused, &none).await, contents(&shop, &*shop.provider, &none).await);
    assert!(verify(&open(&objects).await).await.unwrap().is_sound());
}
