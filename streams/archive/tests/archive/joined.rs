//! A joiner that reads the archive first holds the same entities as one that has followed the stream all along.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use archive::Fused;
use joiner::{Joiner, JoinerPhase};
use objects::Objects;
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::plan::Plan;
use schemas::{Lsn, TableName};
use streams::memory::Memory;
use streams::{Layout, Provider};
use tokio_util::sync::CancellationToken;

use crate::support::{LIMIT, PREFIX, Shop, archive_all, lsn, open, table};

fn plan() -> Arc<Plan> {
    let lookup = |name: &TableName| [table("orders"), table("items")].into_iter().find(|table| table.name == *name);
    let text = "entity: order\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: [id], fields: [status]}}\n";
    Arc::new(Plan::resolve(&EntityDefinition::from_yaml("order.yaml", text).unwrap(), &lookup).unwrap())
}

/// The documents of a joiner, once it is live at the LSN.
async fn joined(dir: &Path, provider: Arc<dyn Provider>, at: Lsn) -> BTreeMap<String, String> {
    let mut config = joiner::Config::new(dir, vec![plan()], "shop", PREFIX);
    config.layout = Layout::Shared;
    let joiner = Joiner::open(config).unwrap();
    let handle = joiner.handle();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(joiner.run(provider, Vec::new(), shutdown.clone()));
    let live = async {
        loop {
            let head = *handle.outbox().head().borrow();
            if head.live && head.frontier >= at {
                break;
            }
            let status = handle.status();
            assert!(status.phase != JoinerPhase::Failed, "{:?}", status.failure);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, live).await.expect("it does not become live");
    let documents = (0..40).filter_map(|id| {
        let (_, document) = handle.get("order", &EntityKey::from_parts([id.to_string()])).unwrap()?;
        Some((id.to_string(), document.to_string()))
    });
    let documents = documents.collect();
    shutdown.cancel();
    task.await.unwrap().unwrap();
    documents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_built_from_archive_and_live_stream_equals_one_built_from_the_stream() {
    let memory = Memory::new();
    let mut shop = Shop::new(Arc::new(memory.clone()), Layout::Shared).await;
    shop.snapshot(60).await;
    for count in [5, 9, 0, 30] {
        shop.tick(count).await;
    }
    let objects = Objects::memory();
    archive_all(&shop, &objects, 2000).await;
    for count in [7, 8] {
        shop.tick(count).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let expected = joined(&dir.path().join("stream"), Arc::new(memory.clone()), lsn(shop.frontier)).await;
    assert!(expected.len() > 20 && expected.values().any(|document| document.contains("s1")), "{expected:?}");

    let fused = |archive| Arc::new(Fused::new(archive, Arc::new(memory.clone())));
    let found = joined(&dir.path().join("both"), fused(open(&objects).await), lsn(shop.frontier)).await;
    assert_eq!(found, expected);

    // From day 0, where the stream has forgotten it; the first joiner has followed all along.
    archive_all(&shop, &objects, 2000).await;
    for stream in shop.streams() {
        memory.trim(&stream).unwrap();
    }
    shop.tick(6).await;
    let expected = joined(&dir.path().join("stream"), Arc::new(memory.clone()), lsn(shop.frontier)).await;
    let found = joined(&dir.path().join("day 0"), fused(open(&objects).await), lsn(shop.frontier)).await;
    assert_eq!(found, expected);
}
