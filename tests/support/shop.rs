//! A small shop under random load, with a model of what every order's document has to be: orders with items, and customers that many orders refer to.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::sqlserver::{Client, SqlServer, capture, execute};

pub const ORDER: &str = "entity: order
table: dbo.orders
fields: [id, revision]
one:
  customer: {table: dbo.customers, by: [customer_id], fields: [name]}
many:
  items: {table: dbo.items, by: [order_id], fields: [id, revision]}
aggregates:
  item_count: {count: items}
";

const CUSTOMERS: i64 = 5;

struct Order {
    customer: i64,
    revision: i64,
    items: BTreeMap<i64, i64>,
}

pub struct Shop {
    random: ChaCha8Rng,
    client: Client,
    customers: BTreeMap<i64, i64>,
    orders: BTreeMap<i64, Order>,
    revision: i64,
    next: i64,
}

impl Shop {
    pub async fn open(server: &SqlServer, seed: u64) -> Self {
        let mut client = server.client().await;
        for table in [
            "customers (id int NOT NULL PRIMARY KEY, name varchar(20) NOT NULL)",
            "orders (id int NOT NULL PRIMARY KEY, customer_id int NOT NULL, revision int NOT NULL)",
            "items (id int NOT NULL PRIMARY KEY, order_id int NOT NULL, revision int NOT NULL)",
        ] {
            execute(&mut client, &format!("CREATE TABLE dbo.{table}")).await;
        }
        capture(&mut client, &["customers", "orders", "items"]).await;
        let customers: BTreeMap<i64, i64> = (1..=CUSTOMERS).map(|id| (id, 0)).collect();
        for id in customers.keys() {
            execute(&mut client, &format!("INSERT INTO dbo.customers VALUES ({id}, 'c{id}-0')")).await;
        }
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { random, client, customers, orders: BTreeMap::new(), revision: 0, next: 1 }
    }

    fn any_order(&mut self) -> Option<i64> {
        let nth = self.random.random_range(0..self.orders.len().max(1));
        self.orders.keys().nth(nth).copied()
    }

    pub async fn transactions(&mut self, count: usize) {
        for _ in 0..count {
            self.transaction().await;
        }
    }

    /// One transaction over several tables.
    async fn transaction(&mut self) {
        self.revision += 1;
        let (revision, id) = (self.revision, self.next);
        let order = self.any_order();
        let statement = match (self.random.random_range(0..10), order) {
            (0, _) => {
                let customer = self.random.random_range(1..=CUSTOMERS);
                self.customers.insert(customer, revision);
                format!("UPDATE dbo.customers SET name = 'c{customer}-{revision}' WHERE id = {customer}")
            }
            (1, Some(order)) => {
                self.orders.remove(&order);
                format!("DELETE FROM dbo.items WHERE order_id = {order}; DELETE FROM dbo.orders WHERE id = {order}")
            }
            (2 | 3, Some(order)) => self.move_item(order),
            (4..=6, Some(order)) => {
                self.next += 1;
                let changed = self.orders.get_mut(&order).unwrap();
                changed.revision = revision;
                changed.items.insert(id, revision);
                format!(
                    "UPDATE dbo.orders SET revision = {revision} WHERE id = {order}; INSERT INTO dbo.items VALUES ({id}, {order}, {revision})"
                )
            }
            _ => {
                self.next += 1;
                let customer = self.random.random_range(1..=CUSTOMERS);
                let items = BTreeMap::from([(id, revision)]);
                self.orders.insert(id, Order { customer, revision, items });
                format!(
                    "INSERT INTO dbo.orders VALUES ({id}, {customer}, {revision}); INSERT INTO dbo.items VALUES ({id}, {id}, {revision})"
                )
            }
        };
        execute(&mut self.client, &format!("BEGIN TRANSACTION; {statement}; COMMIT")).await;
    }

    /// From one order to another, which may well be another instance's.
    fn move_item(&mut self, from: i64) -> String {
        let revision = self.revision;
        let to = self.any_order().unwrap();
        let Some((item, _)) = self.orders.get_mut(&from).unwrap().items.pop_first() else {
            return format!("UPDATE dbo.orders SET revision = revision WHERE id = {from}");
        };
        self.orders.get_mut(&to).unwrap().items.insert(item, revision);
        format!("UPDATE dbo.items SET order_id = {to}, revision = {revision} WHERE id = {item}")
    }

    /// What every order's document has to be, by key.
    pub fn documents(&self) -> BTreeMap<String, Value> {
        let document = |id: &i64, order: &Order| {
            let items: Vec<Value> = order.items.iter().map(|(id, revision)| json!({"id": id, "revision": revision})).collect();
            let name = format!("c{}-{}", order.customer, self.customers[&order.customer]);
            json!({"id": id, "revision": order.revision, "customer": {"name": name}, "items": items, "item_count": items.len()})
        };
        self.orders.iter().map(|(id, order)| (id.to_string(), document(id, order))).collect()
    }
}
