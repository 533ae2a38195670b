//! The total order, and updates that a page's end cuts in two.

use serde_json::Value as Json;

use crate::support::{World, position, table_of, tail_in_order};
use crate::workload::{SHOP, assert_equal, fill};

/// One transaction that goes back and forth between two tables, and updates many rows at once.
const INTERLEAVED: &str = "
BEGIN TRANSACTION;
INSERT INTO dbo.orders (id, customer, total) VALUES (100, N'a', 1.00);
INSERT INTO dbo.items (order_id, line_no, product) VALUES (100, 1, 'one');
UPDATE dbo.orders SET total = 2.00 WHERE id = 100;
INSERT INTO dbo.items (order_id, line_no, product) VALUES (100, 2, 'two');
UPDATE dbo.orders SET total = 3.00 WHERE id <= 5;
UPDATE dbo.items SET product = 'new' WHERE order_id <= 5;
DELETE FROM dbo.items WHERE order_id = 1;
DELETE FROM dbo.orders WHERE id = 1;
UPDATE dbo.orders SET id = 1 WHERE id = 100;
COMMIT TRANSACTION;
GO
UPDATE dbo.items SET line_no = line_no + 10 WHERE order_id = 2;
GO
UPDATE dbo.orders SET customer = N'last' WHERE id = 2;
";

async fn published(page_rows: usize) -> Vec<Json> {
    let mut world = World::start(&(SHOP.to_owned() + &fill(5))).await;
    world.config.page_rows = page_rows;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql(INTERLEAVED).await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
    tail_in_order(&world.events().await)
}

fn told(events: &[Json]) -> Vec<String> {
    events.iter().map(|event| format!("{} {} {} {}", table_of(event), event["op"], event["before"], event["after"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_any_size_tell_the_same_story() {
    let whole = published(1000).await;
    // A transaction's changes to two tables stand in the order in which they were made.
    let first: Vec<&str> = whole.iter().map(table_of).take(4).collect();
    assert_eq!(first, ["orders", "items", "orders", "items"]);
    assert!(whole.windows(2).all(|pair| position(&pair[0]) < position(&pair[1])));
    assert!(
        whole.iter().filter(|event| event["op"] == "u").all(|event| event["before"].is_object() && event["after"].is_object())
    );
    for page_rows in 1..=4 {
        assert_eq!(told(&published(page_rows).await), told(&whole), "with pages of {page_rows} rows");
    }
}
