//! A joiner whose state is an earlier one: what its predecessor has told in between, and it finds as it was, is told again.
#![allow(clippy::unwrap_used)]

mod support;

use joiner::{Config, checkpoint};
use schemas::progress::{Phase, SequenceNumber, ShardId};
use serde_json::{Value as Json, json};
use streams::{Layout, Positions};
use support::shop::Shop;
use support::{change, config, item, items, lsn, order, orders, read, record};

fn live(config: Config) -> Shop {
    let mut shop = Shop::open(config);
    shop.feed(&[read(orders(), 1, order(1, "NEW")), read(orders(), 1, order(2, "NEW"))]);
    shop.tell(record(Phase::Snapshot, 1, 1, &[(&orders(), 2)]));
    shop.tell(record(Phase::SnapshotComplete { consistent_from: lsn(1) }, 1, 1, &[]));
    shop.tell(record(Phase::Tail, 1, 2, &[]));
    shop
}

fn document(id: u8, status: &str, items: &Json, total: &str) -> Json {
    json!({"id": id, "status": status, "items": items, "total": total})
}

#[test]
fn what_has_changed_and_changed_back_since_is_told_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut shop = live(config(&dir.path().join("state")));
    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).unwrap();
    let facts = shop.engine.handle().checkpoint(&restored.join(checkpoint::DATABASE)).unwrap();
    checkpoint::seal(&restored, &facts).unwrap();

    // An order that is as it was, another that had an item for a while, and a third that came and went: all were told.
    shop.order_changes(3, "NEW", "PAID");
    shop.order_changes(4, "PAID", "NEW");
    for (at, before, after) in [(5, None, Some(item(2, 1, 100))), (6, Some(item(2, 1, 100)), None)] {
        shop.feed(&[change(items(), at, 1, before, after)]);
        shop.tell(record(Phase::Tail, at - 1, at, &[(&items(), 1)]));
    }
    for (at, before, after) in [(7, None, Some(order(3, "NEW"))), (8, Some(order(3, "NEW")), None)] {
        shop.feed(&[change(orders(), at, 1, before, after)]);
        shop.tell(record(Phase::Tail, at - 1, at, &[(&orders(), 1)]));
    }
    assert_eq!(shop.told().len(), 6);

    let mut again = shop.over(config(&restored));
    assert_eq!(again.engine.awaits().count(), 1);
    let end = Positions::from([(ShardId("0".into()), SequenceNumber::from(9_u64))]);
    again.engine.await_published(vec![(Layout::progress_stream("p"), end)]);
    let warning = again.engine.handle().status().warning;
    assert!(warning.is_none_or(|warning| warning.starts_with("the state is new, or was restored")));
    let mut again = again.read_from_the_beginning();
    again.catch_up();
    let mut told = again.told();
    told.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    let none = json!([]);
    let expected = [
        ("1".to_owned(), lsn(8), document(1, "NEW", &none, "0.00")),
        ("2".to_owned(), lsn(8), document(2, "NEW", &none, "0.00")),
        ("3".to_owned(), lsn(8), Json::Null),
    ];
    assert_eq!(told, expected);
    assert_eq!(again.frontier(), lsn(8));

    // From there on it goes by what it has told.
    again.order_changes(9, "NEW", "SENT");
    assert_eq!(again.told(), [("1".to_owned(), lsn(9), document(1, "SENT", &none, "0.00"))]);
}
