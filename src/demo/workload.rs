//! The demo's running workload: multi-table transactions against the shop, by an ordinary SQL client, the way a service would.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio_util::sync::CancellationToken;

use super::client::{self, Client};
use super::shop;

/// What the workload has done, for the summary.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) transactions: AtomicU64,
    pub(crate) rolled_back: AtomicU64,
}

/// Runs `rate` transactions a second until it is told to stop.
pub(crate) async fn run(
    target: client::Target,
    size: shop::Size,
    rate: f64,
    mut random: ChaCha8Rng,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut client = target.connect().await?;
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.max(0.001)));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut orders = size.orders;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = pace.tick() => {}
        }
        let work = Work::choose(&mut random, size, orders);
        if work.places_order {
            orders += 1;
        }
        transaction(&mut client, &work).await?;
        let counter = if work.commits { &counters.transactions } else { &counters.rolled_back };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn transaction(client: &mut Client, work: &Work) -> anyhow::Result<()> {
    let end = if work.commits { "COMMIT" } else { "ROLLBACK" };
    let sql = format!("BEGIN TRANSACTION; {}; {end}", work.statements.join("; "));
    client::execute(client, &sql).await
}

/// One transaction's statements.
struct Work {
    statements: Vec<String>,
    commits: bool,
    places_order: bool,
}

impl Work {
    fn choose(random: &mut ChaCha8Rng, size: shop::Size, orders: u32) -> Self {
        let order = random.random_range(1..=orders);
        let mut places_order = false;
        let statements = match random.random_range(0..100) {
            0..35 => {
                places_order = true;
                place_order(random, size)
            }
            35..50 => pay(random, order),
            50..62 => ship(random, order),
            62..70 => vec![
                format!("UPDATE dbo.shipments SET delivered_at = '{}' WHERE order_id = {order}", shop::moment(random)),
                format!("UPDATE dbo.orders SET status = 'DELIVERED' WHERE id = {order}"),
            ],
            70..78 => change_quantity(random, order),
            78..84 => move_item(random, order, orders),
            84..89 => cancel(order),
            89..93 => {
                let (city, country) = shop::city(random);
                let customer = random.random_range(1..=size.customers);
                vec![format!(
                    "UPDATE dbo.addresses SET city = {}, country = '{country}' WHERE customer_id = {customer}",
                    shop::literal(city)
                )]
            }
            93..96 => {
                let name = shop::customer_name(random);
                vec![format!(
                    "UPDATE dbo.customers SET name = {} WHERE id = {}",
                    shop::literal(&name),
                    random.random_range(1..=size.customers)
                )]
            }
            96..99 => {
                let price = shop::money(random.random_range(199..50_000));
                vec![format!("UPDATE dbo.products SET price = {price} WHERE id = {}", random.random_range(1..=size.products))]
            }
            _ => vec![format!("UPDATE dbo.orders SET note = {} WHERE id = {order}", shop::literal("checked by hand"))],
        };
        // An identity value is used up by a rollback, so a rolled-back order leaves a hole, as it would in a real shop.
        Self { statements, commits: random.random_bool(0.97), places_order }
    }
}

fn place_order(random: &mut ChaCha8Rng, size: shop::Size) -> Vec<String> {
    let customer = random.random_range(1..=size.customers);
    let mut statements = vec![
        "DECLARE @o int, @i int".to_owned(),
        format!(
            "INSERT INTO dbo.orders (customer_id, shipping_address_id, status, note, placed_at) VALUES ({customer}, {customer}, 'NEW', NULL, '{}')",
            shop::moment(random)
        ),
        "SET @o = SCOPE_IDENTITY()".to_owned(),
    ];
    for _ in 0..random.random_range(1..=5) {
        let cents = random.random_range(199..90_000);
        statements.push(format!(
            "INSERT INTO dbo.order_items (order_id, product_id, quantity, amount) VALUES (@o, {}, {}, {})",
            random.random_range(1..=size.products),
            random.random_range(1..=4),
            shop::money(cents)
        ));
        statements.push("SET @i = SCOPE_IDENTITY()".to_owned());
        statements.push(format!(
            "INSERT INTO dbo.item_taxes (item_id, kind, rate, amount) VALUES (@i, 'VAT', 21.00, {})",
            shop::money(cents * 21 / 100)
        ));
    }
    statements
}

fn pay(random: &mut ChaCha8Rng, order: u32) -> Vec<String> {
    vec![
        format!(
            "INSERT INTO dbo.payments (id, order_id, method, amount, paid_at) SELECT '{}', id, 'card', {}, '{}+01:00' FROM dbo.orders WHERE id = {order}",
            shop::guid(random),
            shop::money(random.random_range(199..200_000)),
            shop::moment(random)
        ),
        format!("UPDATE dbo.orders SET status = 'PAID' WHERE id = {order} AND status = 'NEW'"),
    ]
}

fn ship(random: &mut ChaCha8Rng, order: u32) -> Vec<String> {
    vec![
        format!(
            "INSERT INTO dbo.shipments (order_id, carrier, tracking, shipped_at, delivered_at) SELECT id, {}, 'T{:010}', '{}', NULL FROM dbo.orders WHERE id = {order}",
            shop::literal(shop::carrier(random)),
            random.random_range(0..1_000_000_000u32),
            shop::moment(random)
        ),
        format!("UPDATE dbo.orders SET status = 'SHIPPED' WHERE id = {order}"),
    ]
}

fn change_quantity(random: &mut ChaCha8Rng, order: u32) -> Vec<String> {
    let quantity = random.random_range(1..=9);
    vec![
        format!("UPDATE dbo.order_items SET quantity = {quantity}, amount = amount + 1.00 WHERE order_id = {order}"),
        format!("UPDATE dbo.orders SET note = N'quantity is now {quantity}' WHERE id = {order}"),
    ]
}

/// An item goes over to another order: both documents change in the same commit.
fn move_item(random: &mut ChaCha8Rng, order: u32, orders: u32) -> Vec<String> {
    let other = random.random_range(1..=orders);
    vec![format!(
        "UPDATE dbo.order_items SET order_id = {other} WHERE id = (SELECT MAX(id) FROM dbo.order_items WHERE order_id = {order}) AND EXISTS (SELECT 1 FROM dbo.orders WHERE id = {other})"
    )]
}

fn cancel(order: u32) -> Vec<String> {
    vec![
        format!("DELETE FROM dbo.item_taxes WHERE item_id IN (SELECT id FROM dbo.order_items WHERE order_id = {order})"),
        format!("DELETE FROM dbo.order_items WHERE order_id = {order}"),
        format!("DELETE FROM dbo.payments WHERE order_id = {order}"),
        format!("DELETE FROM dbo.shipments WHERE order_id = {order}"),
        format!("DELETE FROM dbo.orders WHERE id = {order}"),
    ]
}
