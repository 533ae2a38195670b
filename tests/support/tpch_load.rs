//! TPC-H on the stand-in and in Postgres at once: the same statements run on both, so that Postgres's join over the base tables says what is right.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tpch::TABLES;

use super::sqlserver::{Client, execute};

/// Both databases.
pub struct Both<'a> {
    pub sqlserver: &'a mut Client,
    pub postgres: &'a tokio_postgres::Client,
}

impl Both<'_> {
    /// One transaction, the same on both.
    pub async fn transaction(&mut self, statements: &[String]) {
        execute(self.sqlserver, &format!("BEGIN TRANSACTION; {}; COMMIT", statements.join("; "))).await;
        self.postgres.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await.unwrap();
    }

    /// Creates and fills the tables at a scale factor.
    pub async fn load(&mut self, scale: f64) {
        self.postgres.batch_execute("CREATE SCHEMA dbo").await.unwrap();
        for table in TABLES {
            self.transaction(&[table.create("dbo")]).await;
            let rows: Vec<String> = table.rows(scale).map(|row| table.values(&row)).collect();
            for chunk in rows.chunks(1000) {
                self.transaction(&[format!("INSERT INTO dbo.{} VALUES {}", table.name, chunk.join(","))]).await;
            }
        }
    }
}

/// Seeded multi-table transactions over the loaded rows: updates of orders with their items, items that come, go and move, orders with all their items, customers, parts, nations.
pub struct Changes {
    random: ChaCha8Rng,
    /// The greatest keys that were loaded.
    orders: i64,
    customers: i64,
    parts: i64,
    suppliers: i64,
    next_order: i64,
    next_line: i64,
}

impl Changes {
    /// Over what `load` filled the tables with at that scale factor.
    pub fn new(seed: u64, scale: f64) -> Self {
        let rows = |at_one: f64| (at_one * scale).round() as i64;
        // TPC-H uses the first eight of every 32 order keys.
        let orders = rows(6_000_000.0);
        // New keys of two seeds never meet.
        let offset = seed as i64 * 10_000;
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            orders,
            customers: rows(150_000.0),
            parts: rows(200_000.0),
            suppliers: rows(10_000.0),
            next_order: orders + offset,
            next_line: offset,
        }
    }

    fn price(&mut self) -> String {
        format!("{}.{:02}", self.random.random_range(900..90_000), self.random.random_range(0..100))
    }

    fn item(&mut self, order: i64) -> String {
        self.next_line += 1;
        let price = self.price();
        let (part, supplier) = (self.random.random_range(1..=self.parts), self.random.random_range(1..=self.suppliers));
        format!(
            "INSERT INTO dbo.lineitem SELECT {order}, {part}, {supplier}, {}, 3.00, {}, 0.05, 0.02, 'N', 'O', '1998-01-02', '1998-01-03', '1998-01-04', 'NONE', 'AIR', 'new' FROM dbo.orders WHERE o_orderkey = {order}",
            self.next_line, price
        )
    }

    /// The next transaction's statements.
    pub fn next(&mut self) -> Vec<String> {
        let order = self.random.random_range(1..=self.orders);
        match self.random.random_range(0..100) {
            0..40 => vec![
                format!(
                    "UPDATE dbo.orders SET o_totalprice = {}, o_comment = 'changed {order}' WHERE o_orderkey = {order}",
                    self.price()
                ),
                format!(
                    "UPDATE dbo.lineitem SET l_extendedprice = {}, l_quantity = 7.00 WHERE l_orderkey = {order}",
                    self.price()
                ),
            ],
            40..55 => vec![self.item(order), format!("UPDATE dbo.orders SET o_orderstatus = 'P' WHERE o_orderkey = {order}")],
            55..65 => vec![format!(
                "DELETE FROM dbo.lineitem WHERE l_orderkey = {order} AND l_linenumber >= {}",
                self.random.random_range(1..4)
            )],
            65..75 => {
                // A line item goes over to another order: its key changes.
                self.next_line += 1;
                let other = self.random.random_range(1..=self.orders);
                vec![format!(
                    "UPDATE dbo.lineitem SET l_orderkey = {other}, l_linenumber = {} WHERE l_orderkey = {order} AND l_linenumber = 1 AND EXISTS (SELECT 1 FROM dbo.orders WHERE o_orderkey = {other})",
                    self.next_line
                )]
            }
            75..83 => {
                let new = self.next_order;
                self.next_order += 1;
                let customer = self.random.random_range(1..=self.customers);
                let mut statements = vec![format!(
                    "INSERT INTO dbo.orders SELECT {new}, c_custkey, 'O', {}, '1998-05-06', '1-URGENT', 'Clerk#1', 0, 'it''s new' FROM dbo.customer WHERE c_custkey = {customer}",
                    self.price()
                )];
                for _ in 0..self.random.random_range(1..4) {
                    statements.push(self.item(new));
                }
                statements
            }
            83..90 => vec![
                format!("DELETE FROM dbo.lineitem WHERE l_orderkey = {order}"),
                format!("DELETE FROM dbo.orders WHERE o_orderkey = {order}"),
            ],
            90..95 => {
                let customer = self.random.random_range(1..=self.customers);
                vec![
                    format!(
                        "UPDATE dbo.customer SET c_acctbal = {}, c_nationkey = {} WHERE c_custkey = {customer}",
                        self.price(),
                        self.random.random_range(0..25)
                    ),
                    format!(
                        "UPDATE dbo.orders SET o_custkey = {customer} WHERE o_orderkey = {order} AND EXISTS (SELECT 1 FROM dbo.customer WHERE c_custkey = {customer})"
                    ),
                ]
            }
            95..98 => vec![format!(
                "UPDATE dbo.part SET p_brand = 'Brand#{}' WHERE p_partkey = {}",
                self.random.random_range(10..60),
                self.random.random_range(1..=self.parts)
            )],
            98 => vec![format!(
                "UPDATE dbo.supplier SET s_phone = '{}' WHERE s_suppkey = {}",
                self.random.random_range(100..999),
                self.random.random_range(1..=self.suppliers)
            )],
            _ => vec![format!(
                "UPDATE dbo.nation SET n_name = 'NATION {}' WHERE n_nationkey = {}",
                self.random.random_range(0..1000),
                self.random.random_range(0..25)
            )],
        }
    }
}

/// The documents of `tpch::FULL_ORDER`, as Postgres joins them from the base tables: key and JSON text.
pub const EXPECTED: &str = "SELECT o_orderkey::text, jsonb_build_object(
  'o_orderkey', o_orderkey, 'status', o_orderstatus, 'total', o_totalprice::text, 'placed', o_orderdate::text, 'priority', o_orderpriority, 'comment', o_comment,
  'customer', (SELECT jsonb_build_object('name', c_name, 'segment', c_mktsegment, 'balance', c_acctbal::text,
      'nation', (SELECT jsonb_build_object('name', n_name) FROM dbo.nation WHERE n_nationkey = c_nationkey)) FROM dbo.customer WHERE c_custkey = o_custkey),
  'items', COALESCE((SELECT jsonb_agg(jsonb_build_object('line', l_linenumber, 'quantity', l_quantity::text, 'price', l_extendedprice::text, 'shipped', l_shipdate::text, 'comment', l_comment,
      'part', (SELECT jsonb_build_object('name', p_name, 'brand', p_brand) FROM dbo.part WHERE p_partkey = l_partkey),
      'supplier', (SELECT jsonb_build_object('name', s_name, 'phone', s_phone) FROM dbo.supplier WHERE s_suppkey = l_suppkey)) ORDER BY l_linenumber)
      FROM dbo.lineitem WHERE l_orderkey = o_orderkey), '[]'),
  'item_count', (SELECT COUNT(*) FROM dbo.lineitem WHERE l_orderkey = o_orderkey),
  'items_total', COALESCE((SELECT SUM(l_extendedprice)::text FROM dbo.lineitem WHERE l_orderkey = o_orderkey), '0'))::text
 FROM dbo.orders";
