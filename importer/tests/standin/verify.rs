//! The recount of what was published.

use importer::verify;
use schemas::TableName;
use streams::{Layout, Provider, Record};

use crate::support::World;
use crate::workload::{SHOP, fill};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_is_what_was_captured_and_a_false_count_is_found() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(6))).await;
    world.config.tick_transactions = 2;
    world.import_all().await;
    for id in 1..=6 {
        world
            .sql(&format!(
                "UPDATE dbo.orders SET total = 1 WHERE id = {id}; DELETE FROM dbo.items WHERE order_id = {id} AND line_no = 1;"
            ))
            .await;
    }
    world.import_all().await;
    let recount = verify(&world.config, &world.streams).await.unwrap();
    assert!(recount.agrees(), "{recount:?}");
    let orders = &recount.tables[&TableName::new("dbo", "orders")];
    assert_eq!((orders.published, orders.captured, orders.uncounted.len()), (6, 6, 0));

    // A record that claims one too many for one range of several.
    let mut records = world.progress().await;
    let forged = records.iter_mut().rfind(|record| record.counts.contains_key(&TableName::new("dbo", "items"))).unwrap();
    *forged.counts.get_mut(&TableName::new("dbo", "items")).unwrap() += 1;
    let other = streams::memory::Memory::new();
    let stream = Layout::progress_stream(&world.config.output.prefix);
    other.ensure(&stream, 1).await.unwrap();
    let mut writer = other.writer().await.unwrap();
    for record in &records {
        let data = serde_json::to_vec(record).unwrap().into();
        writer.append(&stream, vec![Record { partition_key: "shop".into(), data }]).await.unwrap();
    }
    writer.flush().await.unwrap();
    let recount = verify(&world.config, &other).await.unwrap();
    let items = &recount.tables[&TableName::new("dbo", "items")];
    assert_eq!(items.differences.len(), 1, "{recount:?}");
    assert_eq!(items.differences[0].published, items.differences[0].captured + 1);
    assert!(recount.tables[&TableName::new("dbo", "orders")].differences.is_empty());

    // What cleanup has removed is not called a difference.
    world.sql(crate::rereads::PURGE).await;
    let recount = verify(&world.config, &world.streams).await.unwrap();
    assert!(recount.agrees(), "{recount:?}");
    assert!(!recount.tables[&TableName::new("dbo", "orders")].uncounted.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_a_filter_lets_through_are_counted_again() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(6))).await;
    let orders = TableName::new("dbo", "orders");
    let controls = serde_json::json!({"exclude": ["total"], "filter": "total < 4"});
    world.config.controls.insert(orders.clone(), serde_json::from_value(controls).unwrap());
    world.config.tick_transactions = 2;
    world.config.page_rows = 2;
    world.import_all().await;
    // Within the filter, out of it, into it, and beyond it.
    for (id, total) in [(1, 2), (1, 9), (5, 1), (6, 10), (2, 3)] {
        world.sql(&format!("UPDATE dbo.orders SET total = {total} WHERE id = {id}; UPDATE dbo.items SET product = 'p{total}' WHERE order_id = {id}")).await;
    }
    world.import_all().await;
    let recount = verify(&world.config, &world.streams).await.unwrap();
    assert!(recount.agrees(), "{recount:?}");
    let counted = |recount: &importer::Recount| {
        let table = &recount.tables[&orders];
        (table.published, table.captured, table.uncounted.len(), table.differences.len())
    };
    assert_eq!(counted(&recount), (4, 4, 0, 0), "{recount:?}");
    // Another filter than the one that was in force would have published something else.
    world.config.controls.get_mut(&orders).unwrap().filter = Some("total < 100".into());
    let recount = verify(&world.config, &world.streams).await.unwrap();
    assert_eq!(counted(&recount), (4, 5, 0, 1), "{recount:?}");
    world.sql(crate::rereads::PURGE).await;
    let recount = verify(&world.config, &world.streams).await.unwrap();
    assert!(recount.agrees() && !recount.tables[&orders].uncounted.is_empty(), "{recount:?}");
}
