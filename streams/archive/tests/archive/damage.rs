//! What was removed or changed in the archive is told: which object, and which events of which table, tick and position.

use std::sync::Arc;

use archive::{Fused, verify};
use bytes::Bytes;
use objects::{ObjectPath, Objects};
use schemas::progress::ShardPositions;
use streams::memory::Memory;
use streams::{Error, Layout, Provider};

use crate::support::{LIMIT, Shop, archive_all, names, open};

async fn archived() -> (Shop, Objects) {
    let mut shop = Shop::new(Arc::new(Memory::new()), Layout::Shared).await;
    shop.snapshot(8).await;
    for _ in 0..4 {
        shop.tick(6).await;
    }
    let objects = Objects::memory();
    archive_all(&shop, &objects, 1 << 20).await;
    (shop, objects)
}

/// What the reader says in the end.
async fn told(shop: &Shop, objects: &Objects) -> Error {
    let fused = Fused::new(open(objects).await, shop.provider.clone());
    let mut reader = fused.reader(&shop.streams()[0], &Default::default()).await.unwrap();
    loop {
        if let Err(error) = tokio::time::timeout(LIMIT, reader.next()).await.unwrap() {
            return error;
        }
    }
}

fn path(name: &str) -> ObjectPath {
    ObjectPath::parse(name).unwrap()
}

#[tokio::test]
async fn an_event_that_was_removed_is_named() {
    let (shop, objects) = archived().await;
    let name = names(&objects, "events/table=dbo.orders").await.pop().unwrap();
    let data = objects.get(&path(&name)).await.unwrap().unwrap();
    let text = String::from_utf8(zstd::stream::decode_all(&data[..]).unwrap()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let removed: serde_json::Value = serde_json::from_str(lines.remove(1)).unwrap();
    let text = lines.join("\n") + "\n";
    objects.put(&path(&name), zstd::bulk::compress(text.as_bytes(), 3).unwrap().into()).await.unwrap();

    let error = told(&shop, &objects).await.to_string();
    let lsn = removed.pointer("/event/source/commit_lsn").unwrap().as_str().unwrap();
    let number = u64::from_str_radix(&lsn.replace(':', ""), 16).unwrap();
    let tick = format!("tick ({}, {}]", crate::support::lsn(number - 1), crate::support::lsn(number));
    let place = format!("shard {}, position {}", removed["shard"].as_str().unwrap(), removed["sequence"].as_str().unwrap());
    for part in [name.as_str(), "SHA-256", "1 events are missing", "dbo.orders", lsn, &tick, &place] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let found = verify(&open(&objects).await).await.unwrap();
    assert_eq!((found.damage.len(), found.missing.len()), (1, 0), "{found:?}");
    assert!(found.damage[0].contains(&place) && !found.is_sound());
}

#[tokio::test]
async fn an_object_that_is_gone_is_named_with_its_events() {
    let (shop, objects) = archived().await;
    let name = names(&objects, "events/table=dbo.items").await.remove(0);
    objects.remove([path(&name)]).await.unwrap();
    let error = told(&shop, &objects).await.to_string();
    assert!(error.contains(&name) && error.contains("is gone") && error.contains("dbo.items at stream shop.events"), "{error}");
    // The other streams can still be read.
    let fused = Fused::new(open(&objects).await, shop.provider.clone());
    let progress = Layout::progress_stream(crate::support::PREFIX);
    let mut reader = fused.reader(&progress, &Default::default()).await.unwrap();
    assert_eq!(reader.next().await.unwrap().records.len(), 5);
}

#[tokio::test]
async fn other_damage_is_told_by_name() {
    let (shop, objects) = archived().await;
    for folder in ["events/table=dbo.orders", "progress", "index", "manifests"] {
        let name = names(&objects, folder).await.pop().unwrap();
        let whole = objects.get(&path(&name)).await.unwrap().unwrap();
        let mut bytes = whole.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x80;
        objects.put(&path(&name), Bytes::from(bytes)).await.unwrap();
        let found = verify(&open(&objects).await).await.unwrap();
        assert!(found.damage.iter().any(|damage| damage.contains(&name)), "{folder}: {found:?}");
        objects.put(&path(&name), whole).await.unwrap();
    }
    assert!(verify(&open(&objects).await).await.unwrap().is_sound());

    let first = names(&objects, "manifests").await.remove(0);
    shop_goes_on(shop, &objects).await;
    let second = names(&objects, "manifests").await.remove(1);
    objects.remove([path(&second)]).await.unwrap();
    let found = verify(&open(&objects).await).await.unwrap();
    assert!(found.damage.iter().any(|damage| damage.contains(&second)), "{found:?}");
    // Removed from the oldest on, the archive merely begins later.
    objects.remove([path(&first)]).await.unwrap();
    assert_eq!(verify(&open(&objects).await).await.unwrap().damage, Vec::<String>::new());
}

async fn shop_goes_on(mut shop: Shop, objects: &Objects) {
    shop.tick(3).await;
    archive_all(&shop, objects, 1 << 20).await;
}

#[tokio::test]
async fn what_is_damaged_does_not_keep_an_archiver_from_going_on() {
    let (mut shop, objects) = archived().await;
    let name = names(&objects, "events").await.remove(0);
    objects.remove([path(&name)]).await.unwrap();
    shop.tick(5).await;
    archive_all(&shop, &objects, 1 << 20).await;
    let after = open(&objects).await.positions_at(crate::support::lsn(shop.frontier - 1)).await.unwrap();
    let live = crate::support::contents(&shop, &*shop.provider, &after).await;
    let fused = Fused::new(open(&objects).await, shop.provider.clone());
    assert_eq!(crate::support::contents(&shop, &fused, &after).await, live);
    assert_ne!(after, ShardPositions::new());
}
