//! `tributary entity`: definitions explained, tried on rows from a file, and their schema for editors; through the real binary.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn tributary(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tributary")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap() + &String::from_utf8_lossy(&output.stderr);
    (output, text)
}

fn write(folder: &Path, file: &str, text: &str) -> String {
    let path = folder.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// The example that the documentation shows.
fn example() -> String {
    let page = include_str!("../docs/entities.md");
    let block = page.split("```yaml\n# order.test.yaml\n").nth(1).expect("no example of a test file");
    block.split("```").next().unwrap().to_owned()
}

const ORDER: &str = "entity: order
table: dbo.orders
fields: [id, status]
where: status != \"DRAFT\"
many:
  items: {table: dbo.order_items, by: [order_id], fields: [price, quantity]}
aggregates:
  total: {sum: items, value: price * quantity}
";

#[test]
fn a_definition_is_tried_on_rows_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "order.yaml", ORDER);
    let file = write(dir.path(), "order.test.yaml", &example());
    let (output, text) = tributary(&["entity", "test", &file]);
    assert!(output.status.success() && text.contains("1 documents, as expected"), "{text}");
    // Something else is expected: what differs is shown.
    let file = write(dir.path(), "wrong.yaml", &example().replace("\"31.00\"", "\"30.00\""));
    let (output, text) = tributary(&["entity", "test", &file]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("\n- {") && text.contains("\n+ {") && text.contains("\"31.00\""), "{text}");
    // Nothing is: the documents are printed.
    let all = example();
    let (shown, _) = all.split_once("expect:").unwrap();
    let (output, text) = tributary(&["entity", "test", &write(dir.path(), "shown.yaml", shown)]);
    assert!(output.status.success() && text.lines().count() == 1 && text.contains("\"total\":\"31.00\""), "{text}");
    for (from, to, expected) in [
        ("price: 12.50", "prize: 12.50", "dbo.order_items, row 1: there is no column \"prize\""),
        ("price: 12.50", "price: cheap", "price: \"cheap\" is not a decimal(10,2)"),
        ("price: 12.50", "price: 12.505", "is not a decimal(10,2)"),
        ("key: [id]", "key: [di]", "`key` names \"di\""),
        ("tables:", "table:", "unknown field `table`"),
    ] {
        let (output, text) = tributary(&["entity", "test", &write(dir.path(), "bad.yaml", &example().replacen(from, to, 1))]);
        assert!(output.status.code() == Some(1) && text.contains(expected), "{text}\nshould say {expected}");
    }
}

const SALES: &str = "
definition:
  entity: sales
  of: order
  where: total > 0
  group_by: [status]
  aggregates: {orders: {count: rows}, revenue: {sum: rows.total}}
over: [order.yaml]
tables:
  dbo.orders:
    columns: {id: int, status: varchar(10)}
    key: [id]
    rows: [{id: 1, status: NEW}, {id: 2, status: NEW}, {id: 3, status: DRAFT}, {id: 4, status: PAID}]
  dbo.order_items:
    columns: {order_id: int, line_no: int, price: 'decimal(10,2)', quantity: int}
    key: [order_id, line_no]
    rows:
      - {order_id: 1, line_no: 1, price: 10, quantity: 2}
      - {order_id: 2, line_no: 1, price: 0.50, quantity: 1}
      - {order_id: 3, line_no: 1, price: 99, quantity: 1}
expect:
  - {status: NEW, orders: 2, revenue: \"20.50\"}
";

#[test]
fn a_roll_up_of_documents_is_tried_over_the_definitions_that_it_rolls_up() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "order.yaml", ORDER);
    let (output, text) = tributary(&["entity", "test", &write(dir.path(), "sales.test.yaml", SALES)]);
    assert!(output.status.success() && text.contains("1 documents, as expected"), "{text}");
    // Of a roll-up in turn; in the order in which they stand, or in another.
    let great = SALES.replace(
        "definition:\n",
        "definition: {entity: great, of: sales, group_by: [{great: revenue > 20}], aggregates: {n: {count: rows}}}\nsales:\n",
    );
    let (great, sales) = (great.split("sales:\n").next().unwrap(), SALES.split_once("over:").unwrap());
    write(dir.path(), "sales.yaml", &sales.0.replace("definition:\n", "").replace("\n  ", "\n"));
    let rows = sales.1.split_once("tables:").unwrap().1.split_once("expect:").unwrap().0;
    let text = format!("{great}over: [sales.yaml, order.yaml]\ntables:{rows}expect: [{{great: true, n: 1}}]\n");
    let (output, text) = tributary(&["entity", "test", &write(dir.path(), "great.test.yaml", &text)]);
    assert!(output.status.success() && text.contains("1 documents, as expected"), "{text}");
    for (from, to, expected) in [
        ("over: [order.yaml]\n", "", "no entity \"order\" is defined to be rolled up"),
        ("over: [order.yaml]", "over: [ordr.yaml]", "ordr.yaml: cannot be read"),
        ("rows.total", "rows.totl", "did you mean \"total\"?"),
        ("expect:", "at: yesterday\nexpect:", "`at`: \"yesterday\" is not a date or a time"),
    ] {
        let (output, text) = tributary(&["entity", "test", &write(dir.path(), "bad.yaml", &SALES.replacen(from, to, 1))]);
        assert!(output.status.code() == Some(1) && text.contains(expected), "{text}\nshould say {expected}");
    }
}

#[test]
fn a_definition_is_tried_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let text = "definition: {entity: offer, table: dbo.offers, fields: [id], time_to_live: {column: made, duration: 2d}}
tables:
  dbo.offers:
    columns: {id: int, made: date}
    key: [id]
    rows: [{id: 1, made: 2024-05-01}, {id: 2, made: 2024-05-02}, {id: 3}]
";
    for (at, expected) in
        [("", 3), ("at: 2024-05-02T23:59:59.999Z\n", 3), ("at: 2024-05-03\n", 2), ("at: 2024-05-04T02:00:00+02:00\n", 1)]
    {
        let (output, found) = tributary(&["entity", "test", &write(dir.path(), "offer.test.yaml", &format!("{text}{at}"))]);
        assert!(output.status.success() && found.lines().count() == expected, "{at}{found}");
    }
}

#[test]
fn an_entity_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let contract = |table: &str, columns: &[(&str, &str)], key: &[&str]| {
        let column = |(name, sql_type): &(&str, &str)| schemas::table::Column {
            name: (*name).to_owned(),
            sql_type: sql_type.parse().unwrap(),
            nullable: false,
            case_insensitive: false,
        };
        let columns: Vec<_> = columns.iter().map(column).collect();
        let key = key.iter().map(|name| columns.iter().position(|column| column.name == *name).unwrap()).collect();
        let name: schemas::TableName = table.parse().unwrap();
        let file = format!("schemas/tables/{}", schemas::contract::Contract::file_name(&name));
        let table = schemas::table::TableSchema { name, columns, key };
        write(dir.path(), &file, &schemas::contract::Contract::from_table(&table).to_text());
    };
    let orders = [
        ("id", "int"),
        ("status", "varchar(10)"),
        ("customer_id", "int"),
        ("note", "varchar(50)"),
        ("placed_at", "datetime2(0)"),
    ];
    contract("dbo.orders", &orders, &["id"]);
    contract(
        "dbo.order_items",
        &[("order_id", "int"), ("line_no", "int"), ("price", "decimal(10,2)"), ("quantity", "int")],
        &["order_id", "line_no"],
    );
    contract("dbo.customers", &[("id", "int"), ("name", "varchar(50)")], &["id"]);
    write(
        dir.path(),
        "schemas/entities/order.yaml",
        &format!(
            "{ORDER}one:\n  customer: {{table: dbo.customers, by: [customer_id]}}\ntime_to_live: {{column: placed_at, duration: 90d}}\n"
        ),
    );
    let config = "source: {name: shop, url: 'sqlserver://sa@127.0.0.1/shop'}\nstreams:\n  provider: {embedded: {path: streams}}\nsinks:\n  - {type: sqlite, path: e.db}\n";
    let config = write(dir.path(), "tributary.yaml", config);
    let (output, text) = tributary(&["entity", "explain", "--config", &config, "order"]);
    assert!(output.status.success(), "{text}");
    for expected in [
        "entity order, key id",
        "gone 90d after its placed_at, by the commit time of its source",
        "`status != \"DRAFT\"`",
        "`price * quantity`",
        "note",
        "order.items → the one order: its order_id tells, nothing is read",
        "order.customer → every order with its id: links of dbo.orders by customer_id are read",
    ] {
        assert!(text.contains(expected), "{text}\nshould say {expected}");
    }
    let (output, text) = tributary(&["entity", "explain", "--config", &config, "ordr"]);
    assert!(!output.status.success() && text.contains("no entity \"ordr\""), "{text}");
}

#[test]
fn editors_get_a_schema() {
    let (output, text) = tributary(&["entity", "schema"]);
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(output.status.success());
    assert_eq!(schema["title"], "Entity definition");
}
