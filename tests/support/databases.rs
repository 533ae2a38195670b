//! Two databases, whose orders have rows in each; and what the documents over both are.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::Lsn;
use serde_json::{Value, json};

use super::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use super::process::{Process, text, tributary};
use super::sqlserver::{Client, SqlServer, capture, execute};
use super::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
pub const ORDERS: i64 = 12;

/// Both databases have a table `dbo.orders`; of the others, the name alone says which is meant.
const ENTITY: &str = "entity: order
table: shop.dbo.orders
fields: [id, revision]
one:
  settlement: {table: bank.dbo.orders, by: [id], fields: [revision]}
many:
  items: {table: dbo.items, by: [order_id], fields: [id, revision]}
  payments: {table: dbo.payments, by: [order_id], fields: [id, revision]}
";

/// One of the databases: of each order, a row in `orders` and some in another table, all with the revision that the order had last.
pub struct Database {
    client: Client,
    others: &'static str,
    revision: i64,
    next: i64,
    /// By order: its revision, and the keys of the other rows.
    pub model: BTreeMap<i64, (i64, Vec<i64>)>,
}

impl Database {
    pub async fn new(server: &SqlServer, others: &'static str) -> Self {
        let mut client = server.client().await;
        execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, revision int NOT NULL)").await;
        let columns = "id int NOT NULL PRIMARY KEY, order_id int NOT NULL, revision int NOT NULL";
        execute(&mut client, &format!("CREATE TABLE dbo.{others} ({columns})")).await;
        capture(&mut client, &["orders", others]).await;
        Self { client, others, revision: 0, next: 0, model: BTreeMap::new() }
    }

    pub async fn transaction(&mut self, random: &mut ChaCha8Rng) {
        self.revision += 1;
        let (order, revision, others) = (random.random_range(1..=ORDERS), self.revision, self.others);
        let mut sql = String::from("BEGIN TRANSACTION; ");
        sql += &match self.model.get(&order) {
            Some(_) => format!(
                "UPDATE dbo.orders SET revision = {revision} WHERE id = {order}; UPDATE dbo.{others} SET revision = {revision} WHERE order_id = {order}; "
            ),
            None => format!("INSERT INTO dbo.orders (id, revision) VALUES ({order}, {revision}); "),
        };
        let (current, keys) = self.model.entry(order).or_default();
        *current = revision;
        if keys.len() < 3 {
            self.next += 1;
            keys.push(self.next);
            sql += &format!("INSERT INTO dbo.{others} (id, order_id, revision) VALUES ({}, {order}, {revision}); ", self.next);
        } else {
            sql += &format!("DELETE FROM dbo.{others} WHERE id = {}; ", keys.remove(0));
        }
        execute(&mut self.client, &(sql + "COMMIT")).await;
    }

    /// The last LSN that the capture job has been through.
    pub async fn captured(&mut self) -> Lsn {
        let row = self.client.simple_query("SELECT sys.fn_cdc_get_max_lsn()").await.unwrap().into_row().await.unwrap().unwrap();
        Lsn::from_slice(row.get::<&[u8], _>(0).unwrap()).unwrap()
    }

    fn rows(&self, order: i64) -> Value {
        let of_order = self.model.get(&order);
        let rows =
            of_order.into_iter().flat_map(|(revision, keys)| keys.iter().map(move |id| json!({"id": id, "revision": revision})));
        rows.collect()
    }
}

pub fn documents(shop: &Database, bank: &Database) -> BTreeMap<String, Value> {
    let document = |(id, (revision, _)): (&i64, &(i64, Vec<i64>))| {
        let settlement = bank.model.get(id).map_or(Value::Null, |(revision, _)| json!({"revision": revision}));
        let (items, payments) = (shop.rows(*id), bank.rows(*id));
        let document = json!({"id": id, "revision": revision, "settlement": settlement, "items": items, "payments": payments});
        (id.to_string(), document)
    };
    shop.model.iter().map(document).collect()
}

/// A folder with both databases, as `tributary init` makes it of the first, which is given more sections then, and adds the second.
pub fn folder(servers: [&SqlServer; 2], more: &str) -> Pipeline {
    let pipeline = Pipeline::init(servers[0], &[("order", ENTITY)]);
    let text_of = || std::fs::read_to_string(pipeline.config()).unwrap();
    let ours = format!("# What is ours stays.\n{}{more}", text_of());
    std::fs::write(pipeline.config(), &ours).unwrap();
    let add = |server: &SqlServer, name: &str| {
        let folder = text(pipeline.folder.path());
        let arguments =
            ["init", "--add", "--source", &server.url(), "--password-env", PASSWORD_VARIABLE, "--out", folder, "--name", name];
        let output = tributary(&arguments).env(PASSWORD_VARIABLE, &server.password).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), told)
    };
    let (well, told) = add(servers[1], "shop");
    assert!(!well && told.contains("there is a source \"shop\" already") && text_of() == ours, "{told}");
    let (well, told) = add(servers[1], "bank");
    assert!(well && told.contains("the contracts of shop are in"), "{told}");
    assert_eq!(told.contains("archive/shop now: move what is in it there"), more.contains("archive:"), "{told}");
    for table in ["shop/dbo.orders.json", "shop/dbo.items.json", "bank/dbo.orders.json", "bank/dbo.payments.json"] {
        assert!(pipeline.path("schemas/tables").join(table).is_file(), "{table}");
    }
    let entities = pipeline.path("schemas/entities");
    let added =
        std::fs::read_dir(&entities).unwrap().map(|file| file.unwrap().path()).filter(|file| !file.ends_with("order.yaml"));
    let added: Vec<_> = added.collect();
    assert!(!added.is_empty());
    for file in added {
        assert!(std::fs::read_to_string(&file).unwrap().contains("table: bank.dbo."), "{}", file.display());
        std::fs::remove_file(file).unwrap();
    }
    let configured = text_of();
    assert!(
        configured.starts_with("# What is ours stays.\n") && configured.matches("# on_gap: stop").count() == 2,
        "{configured}"
    );
    let configured = configured.replace("# poll_interval: 100ms", "poll_interval: 20ms").replace("127.0.0.1:8080", "127.0.0.1:0");
    std::fs::write(pipeline.config(), configured).unwrap();
    pipeline
}

pub async fn wait_until_joined(url: &str, shop: &Database, bank: &Database) {
    let expected = documents(shop, bank);
    wait_for("every order as the databases have it", LIMIT, async || {
        (pipeline::entities_if_answered(url, "order").await? == expected).then_some(())
    })
    .await;
}

/// Runs a command to its end: whether it went well, and what it said.
pub fn command(pipeline: &Pipeline, arguments: &[&str]) -> (bool, String) {
    let mut command = tributary(&[arguments, &["--config", text(&pipeline.config())]].concat());
    let output = command.env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), told)
}

/// Where the API of a process listens.
pub fn api(process: &Process) -> String {
    process.line_after("API on ").trim().to_owned()
}
