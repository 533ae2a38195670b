//! A row that very many documents refer to changes: what is told when, what goes on meanwhile, and what a restart in the middle leaves.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use joiner::{Config, Joiner};
use schemas::Lsn;
use schemas::event::ChangeEvent;
use schemas::progress::{Phase, ProgressRecord};
use serde_json::Value as Json;
use streams::memory::Memory;
use support::shop::Shop;
use support::{change, config, encode, item, items, lsn, order, orders, plan, publish, read, record};
use tokio_util::sync::CancellationToken;

/// Items of the first order; the second has one.
const OWNERS: i64 = 2000;
/// Documents told at a time.
const CHUNK: usize = 100;

/// Each line with its order.
fn lines(dir: &Path, fan_out: &str) -> Config {
    let line = format!(
        "{{entity: line, table: dbo.items, one: {{order: {{table: dbo.orders, by: [order_id], fields: [status], fan_out: {fan_out}}}}}}}"
    );
    Config { plans: vec![plan(&line)], chunk_entities: CHUNK, ..config(dir) }
}

/// As of LSN 5.
fn rows() -> Vec<ChangeEvent> {
    let mut rows = vec![read(orders(), 5, order(1, "new")), read(orders(), 5, order(2, "new"))];
    rows.extend((0..OWNERS).map(|line| read(items(), 5, item(1, line, 100))));
    rows.push(read(items(), 5, item(2, 0, 100)));
    rows
}

fn loaded() -> ProgressRecord {
    let counts = [(&orders(), 2), (&items(), OWNERS as u64 + 1)];
    record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &counts)
}

fn open(dir: &Path, fan_out: &str) -> Shop {
    let mut shop = Shop::open(lines(dir, fan_out));
    shop.feed(&rows());
    shop.tell(loaded());
    shop
}

#[test]
fn a_lazy_fan_out_goes_on_beside_other_changes_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = open(dir.path(), "lazy");
    shop.order_changes(6, "new", "paid");
    // One chunk with the step, and the frontier waits for the rest.
    let first = shop.told();
    assert_eq!(first.len(), CHUNK);
    assert_eq!((shop.engine.frontier(), shop.frontier()), (lsn(6), lsn(5)));
    let fan_out = shop.engine.handle().status().fan_out.unwrap();
    assert_eq!((fan_out.rows, fan_out.since, fan_out.owners_told), (1, lsn(6), CHUNK as u64));
    // Another order's line is told at once; one that waits is told with all that has changed.
    shop.item_changes(7, 2, 0);
    shop.item_changes(8, 1, OWNERS - 1);
    let mut told: BTreeMap<String, (Lsn, Json)> = BTreeMap::new();
    let mut take = |told_now: Vec<(String, Lsn, Json)>| {
        for (key, version, document) in told_now {
            assert_eq!(told.insert(key.clone(), (version, document)), None, "{key} is told twice");
        }
    };
    take(first);
    take(shop.told());
    shop = shop.restart();
    assert!(shop.engine.handle().status().fan_out.is_some(), "what waits has outlived the restart");
    assert_eq!((shop.engine.frontier(), shop.frontier()), (lsn(8), lsn(5)));
    while shop.engine.advance().unwrap() {
        let now = shop.told();
        assert!(now.len() <= CHUNK, "{}", now.len());
        take(now);
    }
    assert_eq!((shop.frontier(), shop.engine.handle().status().fan_out), (lsn(8), None));
    assert_eq!(told.len(), OWNERS as usize + 1);
    let (version, other) = &told["2,0"];
    assert_eq!((*version, &other["price"], &other["order"]["status"]), (lsn(7), &"2.00".into(), &"new".into()));
    let mine = told.iter().filter(|(_, (_, document))| document["order_id"] == 1);
    assert!(mine.clone().all(|(_, (_, document))| document["order"]["status"] == "paid"));
    let touched: Vec<_> = mine.filter(|(_, (_, document))| document["price"] == "2.00").collect();
    assert_eq!((touched.len(), touched[0].1.0), (1, lsn(8)));
}

#[test]
fn a_change_that_is_taken_back_while_it_waits_is_told_to_those_alone_who_know_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = open(dir.path(), "lazy");
    shop.order_changes(6, "new", "paid");
    assert_eq!(shop.told().len(), CHUNK);
    shop.order_changes(7, "paid", "new");
    while shop.engine.advance().unwrap() {
        assert_ne!(shop.frontier(), lsn(6), "all were paid then, and most are never told so");
    }
    let told = shop.told();
    assert_eq!(told.len(), CHUNK, "the others were never told otherwise");
    assert!(told.iter().all(|(_, _, document)| document["order"]["status"] == "new"));
    assert_eq!(shop.frontier(), lsn(7));
}

#[test]
fn a_strict_fan_out_is_seen_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = open(dir.path(), "strict");
    shop.order_changes(6, "new", "paid");
    let told = shop.told();
    assert_eq!((told.len(), shop.frontier()), (OWNERS as usize, lsn(6)));
    assert!(told.iter().all(|(_, version, document)| *version == lsn(6) && document["order"]["status"] == "paid"));
    assert!(!shop.engine.advance().unwrap(), "nothing is left");
}

#[tokio::test]
async fn a_joiner_that_nothing_comes_in_to_ends_a_fan_out_by_itself() {
    let (dir, provider) = (tempfile::tempdir().unwrap(), Memory::new());
    let joiner = Joiner::open(lines(dir.path(), "lazy")).unwrap();
    let (handle, stop) = (joiner.handle(), CancellationToken::new());
    let task = tokio::spawn(joiner.run(Arc::new(provider.clone()), Vec::new(), stop.clone()));
    publish(&provider, &rows().iter().map(encode).collect::<Vec<_>>(), loaded()).await;
    let mut heads = handle.outbox().head();
    // What is published when it starts is part of its first load.
    heads.wait_for(|head| head.live && head.frontier == lsn(5)).await.unwrap();
    let paid = change(orders(), 6, 1, Some(order(1, "new")), Some(order(1, "paid")));
    publish(&provider, &[encode(&paid)], record(Phase::Tail, 5, 6, &[(&orders(), 1)])).await;
    let told = heads.wait_for(|head| head.frontier == lsn(6)).await.unwrap().sequence;
    assert_eq!(told, OWNERS as u64);
    stop.cancel();
    drop(handle);
    task.await.unwrap().unwrap();
}

#[test]
fn what_waits_goes_on_where_the_definition_is_no_longer_lazy() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = open(dir.path(), "lazy");
    shop.order_changes(6, "new", "paid");
    let head = *shop.engine.handle().outbox().head().borrow();
    shop.config = lines(dir.path(), "strict");
    shop = shop.restart();
    let now = *shop.engine.handle().outbox().head().borrow();
    assert_eq!((now.load, now.incarnation), (head.load, head.incarnation), "documents are what they were");
    while shop.engine.advance().unwrap() {}
    assert_eq!((shop.told().len(), shop.frontier()), (OWNERS as usize, lsn(6)));
}
