//! The demo's shop: its tables, the rows it starts with, and its entities.
//!
//! Everything is drawn from one seeded generator, so that two runs with one seed hold the same rows.

use std::fmt::Write as _;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The tables, children after their parents.
pub(crate) const TABLES: [&str; 8] =
    ["customers", "addresses", "products", "orders", "order_items", "item_taxes", "payments", "shipments"];

/// `CREATE TABLE` for all of them.
pub(crate) const SCHEMA: &str = include_str!("shop.sql");

/// How many rows the shop starts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) customers: u32,
    pub(crate) products: u32,
    pub(crate) orders: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self { customers: 500, products: 200, orders: 2000 }
    }
}

/// Statements that switch change data capture on.
pub(crate) fn capture_statements() -> Vec<String> {
    let mut statements = vec!["EXEC sys.sp_cdc_enable_db".to_owned()];
    statements.extend(TABLES.iter().map(|table| {
        format!(
            "EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'{table}', @role_name = NULL, @supports_net_changes = 0"
        )
    }));
    statements
}

const FIRST: [&str; 16] = [
    "Ada", "Grace", "Edsger", "Barbara", "Alan", "Radia", "Donald", "Frances", "Niklaus", "Margaret", "Tony", "Joan", "Ken",
    "Jean", "Zoë", "Søren",
];
const LAST: [&str; 16] = [
    "Lovelace",
    "Hopper",
    "Dijkstra",
    "Liskov",
    "Turing",
    "Perlman",
    "Knuth",
    "Allen",
    "Wirth",
    "Hamilton",
    "Hoare",
    "Clarke",
    "Thompson",
    "Bartik",
    "O'Neill",
    "Ångström",
];
const CITIES: [(&str, &str); 8] = [
    ("Utrecht", "NL"),
    ("Lyon", "FR"),
    ("Porto", "PT"),
    ("Köln", "DE"),
    ("Gdańsk", "PL"),
    ("Aarhus", "DK"),
    ("Leeds", "GB"),
    ("Graz", "AT"),
];
const ADJECTIVES: [&str; 10] = ["Small", "Large", "Blue", "Quiet", "Solid", "Folding", "Electric", "Woollen", "Copper", "Nordic"];
const THINGS: [&str; 12] =
    ["Lamp", "Kettle", "Chair", "Desk", "Bicycle", "Radio", "Blanket", "Teapot", "Clock", "Shelf", "Umbrella", "Typewriter"];
const CARRIERS: [&str; 4] = ["PostNL", "DHL", "Chronopost", "DPD"];
pub(crate) const STATUSES: [&str; 4] = ["NEW", "PAID", "SHIPPED", "DELIVERED"];

fn pick<'a, T: ?Sized>(random: &mut ChaCha8Rng, choices: &[&'a T]) -> &'a T {
    choices[random.random_range(0..choices.len())]
}

/// A T-SQL string literal.
pub(crate) fn literal(text: &str) -> String {
    format!("N'{}'", text.replace('\'', "''"))
}

/// An amount in cents as a decimal literal.
pub(crate) fn money(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

pub(crate) fn customer_name(random: &mut ChaCha8Rng) -> String {
    format!("{} {}", pick(random, &FIRST), pick(random, &LAST))
}

pub(crate) fn city(random: &mut ChaCha8Rng) -> (&'static str, &'static str) {
    CITIES[random.random_range(0..CITIES.len())]
}

pub(crate) fn carrier(random: &mut ChaCha8Rng) -> &'static str {
    pick(random, &CARRIERS)
}

/// A version 4 GUID from the generator, in its text form.
pub(crate) fn guid(random: &mut ChaCha8Rng) -> String {
    let (a, b, c, d): (u32, u16, u16, u64) = (random.random(), random.random(), random.random(), random.random());
    format!("{a:08X}-{b:04X}-4{:03X}-{:04X}-{:012X}", c & 0xfff, 0x8000 | (d >> 48) & 0x3fff, d & 0xffff_ffff_ffff)
}

/// A moment in 2026, as text to the millisecond.
pub(crate) fn moment(random: &mut ChaCha8Rng) -> String {
    format!(
        "2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}",
        random.random_range(1..=10),
        random.random_range(1..=28),
        random.random_range(0..24),
        random.random_range(0..60),
        random.random_range(0..60),
        random.random_range(0..1000)
    )
}

/// Multi-row `INSERT` statements of at most 500 rows (SQL Server's limit is 1,000).
struct Inserts {
    head: &'static str,
    statements: Vec<String>,
    rows: usize,
}

impl Inserts {
    fn new(head: &'static str) -> Self {
        Self { head, statements: Vec::new(), rows: 0 }
    }

    fn row(&mut self, values: std::fmt::Arguments<'_>) {
        if self.rows.is_multiple_of(500) {
            self.statements.push(format!("INSERT INTO {} VALUES ", self.head));
        } else if let Some(statement) = self.statements.last_mut() {
            statement.push_str(", ");
        }
        if let Some(statement) = self.statements.last_mut() {
            // Writing to a String cannot fail.
            let _ = write!(statement, "({values})");
        }
        self.rows += 1;
    }
}

/// The rows that the shop starts with, as T-SQL batches in an order that its foreign keys allow.
pub(crate) fn rows(size: Size, random: &mut ChaCha8Rng) -> Vec<String> {
    let mut customers = Inserts::new("dbo.customers (name, email, tier, created_at)");
    let mut addresses = Inserts::new("dbo.addresses (customer_id, street, city, postcode, country)");
    for id in 1..=size.customers {
        let name = customer_name(random);
        let tier = pick(random, &["basic", "silver", "gold"]);
        customers.row(format_args!("{}, 'c{id}@example.com', '{tier}', '{}'", literal(&name), moment(random)));
        let (city, country) = city(random);
        let number: u16 = random.random_range(1..200);
        addresses.row(format_args!(
            "{id}, N'Main Street {number}', {}, '{:05}', '{country}'",
            literal(city),
            random.random_range(1000..99999)
        ));
    }
    let mut products = Inserts::new("dbo.products (id, sku, name, price, weight_kg)");
    let mut prices = Vec::new();
    for id in 1..=size.products {
        let name = format!("{} {}", pick(random, &ADJECTIVES), pick(random, &THINGS));
        let cents = random.random_range(199..50_000);
        prices.push(cents);
        let weight = if random.random_bool(0.8) {
            format!("{}.{:03}", random.random_range(0..20), random.random_range(0..1000))
        } else {
            "NULL".into()
        };
        products.row(format_args!("{id}, 'SKU-{id:05}', {}, {}, {weight}", literal(&name), money(cents)));
    }
    let mut orders = Inserts::new("dbo.orders (customer_id, shipping_address_id, status, note, placed_at)");
    let mut items = Inserts::new("dbo.order_items (order_id, product_id, quantity, amount)");
    let mut taxes = Inserts::new("dbo.item_taxes (item_id, kind, rate, amount)");
    let mut payments = Inserts::new("dbo.payments (id, order_id, method, amount, paid_at)");
    let mut shipments = Inserts::new("dbo.shipments (order_id, carrier, tracking, shipped_at, delivered_at)");
    let mut item = 0;
    for id in 1..=size.orders {
        let customer = random.random_range(1..=size.customers);
        let status = random.random_range(0..STATUSES.len());
        orders.row(format_args!("{customer}, {customer}, '{}', NULL, '{}'", STATUSES[status], moment(random)));
        let mut total = 0;
        for _ in 0..random.random_range(1..=5) {
            item += 1;
            let product = random.random_range(0..prices.len());
            let quantity = random.random_range(1..=4);
            let amount = prices[product] * quantity;
            total += amount;
            items.row(format_args!("{id}, {}, {quantity}, {}", product + 1, money(amount)));
            taxes.row(format_args!("{item}, 'VAT', 21.00, {}", money(amount * 21 / 100)));
        }
        if status > 0 {
            payments.row(format_args!("'{}', {id}, 'card', {}, '{}+01:00'", guid(random), money(total), moment(random)));
        }
        if status > 1 {
            let delivered = if status > 2 { format!("'{}'", moment(random)) } else { "NULL".into() };
            shipments.row(format_args!("{id}, N'{}', 'T{:010}', '{}', {delivered}", carrier(random), id * 7919, moment(random)));
        }
    }
    [customers, addresses, products, orders, items, taxes, payments, shipments]
        .into_iter()
        .flat_map(|inserts| inserts.statements)
        .collect()
}

/// The demo's entity definitions, one YAML text each.
pub(crate) const ENTITIES: [(&str, &str); 2] =
    [("order.yaml", include_str!("order.yaml")), ("customer.yaml", include_str!("customer.yaml"))];
