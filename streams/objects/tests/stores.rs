//! What the crate promises, held against every kind of store: a local folder, memory, and S3 as ministack has it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use objects::{Config, Creation, LocalOptions, ObjectPath, Objects, S3Options};
use schemas::ErrorClass;
use sinks::test_support::Ministack;

async fn keeps_its_promises(objects: &Objects) {
    let path = |text: &str| ObjectPath::parse(text).unwrap();
    assert_eq!(objects.get(&path("a/none")).await.unwrap(), None);
    objects.put(&path("a/x=1/one"), "first".into()).await.unwrap();
    objects.put(&path("a/x=1/one"), "second".into()).await.unwrap();
    assert_eq!(objects.get(&path("a/x=1/one")).await.unwrap().unwrap(), "second");

    // Of many that create the same object, one does; its content stays.
    let racers = (0..8).map(|n| {
        let objects = objects.clone();
        tokio::spawn(async move { objects.create(&path("a/x=2/raced"), format!("by {n}").into()).await.unwrap() })
    });
    let mut winners = Vec::new();
    for (n, racer) in racers.collect::<Vec<_>>().into_iter().enumerate() {
        if racer.await.unwrap() == Creation::Created {
            winners.push(n);
        }
    }
    assert_eq!(winners.len(), 1);
    let content = objects.get(&path("a/x=2/raced")).await.unwrap().unwrap();
    assert_eq!(content, format!("by {}", winners[0]));

    // Larger than one read or one packet.
    let large: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    objects.put(&path("a/large"), large.clone().into()).await.unwrap();
    assert!(objects.get(&path("a/large")).await.unwrap().unwrap() == large);

    let listed = objects.list(&path("a")).await.unwrap();
    let names: BTreeSet<&str> = listed.iter().map(|object| object.path.as_ref()).collect();
    assert_eq!(names, ["a/large", "a/x=1/one", "a/x=2/raced"].into());
    assert!(listed.iter().any(|object| object.bytes == 6) && listed.iter().all(|object| object.modified_ms > 1_500_000_000_000));
    let folders = objects.folders(&path("a")).await.unwrap();
    assert_eq!(folders, [path("a/x=1"), path("a/x=2")]);

    objects.remove([path("a/large"), path("a/x=1/one"), path("a/never")]).await.unwrap();
    assert_eq!(objects.list(&path("a")).await.unwrap().len(), 1);
    assert_eq!(objects.list(&path("b")).await.unwrap(), []);
}

#[tokio::test]
async fn a_local_folder_keeps_its_promises() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::Local(LocalOptions { path: directory.path().join("new/folder") });
    keeps_its_promises(&Objects::open(&config).await.unwrap()).await;
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    keeps_its_promises(&Objects::memory()).await;
}

#[tokio::test]
async fn s3_keeps_its_promises() {
    let aws = Ministack::start();
    aws.create_bucket("shop").await;
    let options = |bucket: &str, prefix: &str| S3Options {
        bucket: bucket.into(),
        prefix: prefix.into(),
        region: None,
        endpoint: Some(aws.endpoint_url()),
        stand_in_credentials: true,
    };
    keeps_its_promises(&Objects::open(&Config::S3(options("shop", "some/prefix"))).await.unwrap()).await;
    // What stands below the prefix stands in the bucket below the prefix.
    let whole = Objects::open(&Config::S3(options("shop", ""))).await.unwrap();
    let found = whole.list(&ObjectPath::parse("some").unwrap()).await.unwrap();
    assert_eq!(found[0].path.as_ref(), "some/prefix/a/x=2/raced");

    let elsewhere = Objects::open(&Config::S3(options("nowhere", ""))).await.unwrap();
    let error = elsewhere.put(&ObjectPath::parse("x").unwrap(), "x".into()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured);
    assert!(error.to_string().contains("s3://nowhere") && error.to_string().contains("bucket does not exist"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Objects::open(&Config::Local(LocalOptions { path: file.join("below") })).await.unwrap_err();
    assert!(error.to_string().contains("below") && error.class() == ErrorClass::Misconfigured, "{error}");
}
