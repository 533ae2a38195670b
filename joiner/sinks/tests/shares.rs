//! Several writers of one target, each of its own share of the entities.
#![cfg(feature = "sqlite")]
#![allow(clippy::unwrap_used)]

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{KeyRange, Lsn};
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::{EntityReader, Held, Sink};

fn lsn(n: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n])
}

fn order(id: u32, version: u8) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(id.to_string()),
        version: lsn(version),
        commit_time_ms: 1,
        document: Some(format!("{{\"id\":{id}}}").into()),
    }
}

#[tokio::test]
async fn each_writes_its_share_and_the_least_frontier_is_the_targets() {
    let folder = tempfile::tempdir().unwrap();
    let config = SqliteConfig::new(folder.path().join("e.db"));
    let schema = serde_json::json!({"type": "object"});
    let infos = [EntityInfo { name: "order".into(), key: vec![("id".to_owned(), SqlType::Int)], document_schema: schema }];
    let reader = SqliteReader::new(&config);
    let halves = [0, 1].map(|nth| KeyRange::of(nth, 2).unwrap());
    let orders = |half: KeyRange, version| -> Vec<EntityChange> {
        (0..40).map(|id| order(id, version)).filter(|change| half.holds("order", &change.key)).collect()
    };
    let mut sinks = halves.map(|half| {
        let mut sink = SqliteSink::new(config.clone());
        assert!(sink.own(half));
        sink
    });
    for sink in &mut sinks {
        sink.prepare(&infos).await.unwrap();
        assert_eq!(sink.held().await.unwrap(), Held::Nothing);
    }
    let [first, second] = &mut sinks;
    first.write(&orders(halves[0], 5), None).await.unwrap();
    first.write(&[], Some(lsn(5))).await.unwrap();
    assert_eq!(reader.frontier().await.unwrap(), None, "half of it is not there yet");
    second.write(&orders(halves[1], 3), Some(lsn(3))).await.unwrap();
    assert_eq!((reader.frontier().await.unwrap(), reader.count("order").await.unwrap()), (Some(lsn(3)), 40));
    assert_eq!(first.held().await.unwrap(), Held::UpTo(lsn(5)));
    assert_eq!(second.held().await.unwrap(), Held::UpTo(lsn(3)));
    // What a load of the second finds older is of both.
    let older = second.older("order", lsn(5), None, 3).await.unwrap();
    let rest = second.older("order", lsn(5), older.last(), 100).await.unwrap();
    let known: Vec<EntityKey> = orders(halves[1], 3).into_iter().map(|change| change.key).collect();
    let mut found: Vec<EntityKey> = older.into_iter().chain(rest).collect();
    found.sort_unstable_by_key(|key| key.as_str().parse::<u32>().unwrap());
    assert_eq!(found, known);
    // One takes the place of both, and says no more than both have.
    let mut one = SqliteSink::new(config.clone());
    one.prepare(&infos).await.unwrap();
    assert_eq!(one.held().await.unwrap(), Held::UpTo(lsn(3)));
    one.write(&[], Some(lsn(4))).await.unwrap();
    assert_eq!(reader.frontier().await.unwrap(), Some(lsn(4)));
}
