//! The entities' definitions, and the same joins made by hand from the rows of the tables: what the truth is held to be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::history::{Cell, Row};
use crate::shop::{CUSTOMERS, ITEMS, Key, ORDERS, PRODUCTS};

const ORDER: &str = "
entity: order
table: dbo.orders
time_to_live: {column: ends}
fields: [id, status, rev]
one:
  customer: {table: dbo.customers, by: [customer_id], fields: [id, name]}
many:
  items:
    table: dbo.items
    by: [order_id]
    fields: [line, qty]
    one:
      product: {table: dbo.products, by: [product_id], fields: [name]}
aggregates:
  item_count: {count: items}
";

/// The same of other fields, under other names, and with another aggregate. What either needs of the rows is what the other needs: a state goes from one to the other in place, whichever it was made for.
const ORDER_OTHERWISE: &str = "
entity: order
table: dbo.orders
time_to_live: {column: ends, duration: 20s}
fields: [id, {state: status}, {revision: rev}]
one:
  customer: {table: dbo.customers, by: [customer_id], fields: [name]}
many:
  items:
    table: dbo.items
    by: [order_id]
    fields: [line]
    one:
      product: {table: dbo.products, by: [product_id], fields: [name]}
aggregates:
  most: {max: items.qty}
";

const CUSTOMER: &str = "
entity: customer
table: dbo.customers
fields: [id, name]
many:
  orders: {table: dbo.orders, by: [customer_id], fields: [id, status]}
aggregates:
  order_count: {count: orders}
";

/// Which definitions are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Definitions {
    #[default]
    First,
    Otherwise,
}

impl Definitions {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::First => Self::Otherwise,
            Self::Otherwise => Self::First,
        }
    }

    /// The entities' definitions.
    pub(crate) const fn texts(self) -> [&'static str; 2] {
        match self {
            Self::First => [ORDER, CUSTOMER],
            Self::Otherwise => [ORDER_OTHERWISE, CUSTOMER],
        }
    }
}

/// Tables as of one LSN.
pub(crate) type Tables = [BTreeMap<Key, Row>; 4];

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Int(number) => json!(number),
        Cell::Text(text) => json!(text),
    }
}

/// The row that a column refers to, with some of its columns.
fn one(table: &BTreeMap<Key, Row>, reference: &Cell, fields: &[(&str, usize)]) -> Value {
    if *reference == Cell::Null {
        return Value::Null;
    }
    let Some(row) = table.get(std::slice::from_ref(reference)) else { return Value::Null };
    fields.iter().map(|(name, at)| ((*name).to_owned(), value(&row[*at]))).collect::<Map<_, _>>().into()
}

fn order(tables: &Tables, row: &Row) -> Value {
    let items: Vec<Value> = tables[ITEMS]
        .values()
        .filter(|item| item[0] == row[0])
        .map(|item| json!({"line": value(&item[1]), "qty": value(&item[3]), "product": one(&tables[PRODUCTS], &item[2], &[("name", 1)])}))
        .collect();
    json!({
        "id": value(&row[0]),
        "status": value(&row[2]),
        "rev": value(&row[3]),
        "customer": one(&tables[CUSTOMERS], &row[1], &[("id", 0), ("name", 1)]),
        "item_count": items.len(),
        "items": items,
    })
}

fn order_otherwise(tables: &Tables, row: &Row) -> Value {
    let of_order = || tables[ITEMS].values().filter(|item| item[0] == row[0]);
    let items: Vec<Value> = of_order()
        .map(|item| json!({"line": value(&item[1]), "product": one(&tables[PRODUCTS], &item[2], &[("name", 1)])}))
        .collect();
    json!({
        "id": value(&row[0]),
        "state": value(&row[2]),
        "revision": value(&row[3]),
        "customer": one(&tables[CUSTOMERS], &row[1], &[("name", 1)]),
        "most": of_order().map(|item| &item[3]).max().map(value),
        "items": items,
    })
}

fn customer(tables: &Tables, row: &Row) -> Value {
    let orders: Vec<Value> = tables[ORDERS]
        .values()
        .filter(|order| order[1] == row[0])
        .map(|order| json!({"id": value(&order[0]), "status": value(&order[2])}))
        .collect();
    json!({"id": value(&row[0]), "name": value(&row[1]), "order_count": orders.len(), "orders": orders})
}

/// Whether an order's time is over.
fn is_over(definitions: Definitions, order: &Row, time_ms: i64) -> bool {
    let lives_ms = match definitions {
        Definitions::First => 0,
        Definitions::Otherwise => 20_000,
    };
    matches!(order[4], Cell::Int(ends) if time_ms > 0 && ends + lives_ms <= time_ms)
}

/// The entity of a key; none where there is no such row, or its time is over.
pub(crate) fn entity(definitions: Definitions, tables: &Tables, time_ms: i64, entity: &str, key: &str) -> Option<Value> {
    let key = vec![Cell::Int(key.parse().ok()?)];
    match entity {
        "order" => {
            let row = tables[ORDERS].get(&key).filter(|row| !is_over(definitions, row, time_ms));
            row.map(|row| order_by(definitions)(tables, row))
        }
        "customer" => tables[CUSTOMERS].get(&key).map(|row| customer(tables, row)),
        _ => None,
    }
}

const fn order_by(definitions: Definitions) -> fn(&Tables, &Row) -> Value {
    match definitions {
        Definitions::First => order,
        Definitions::Otherwise => order_otherwise,
    }
}

/// All entities, by kind and key.
pub(crate) fn entities(definitions: Definitions, tables: &Tables, time_ms: i64) -> BTreeMap<(String, String), Value> {
    let key = |row: &Row| match &row[0] {
        Cell::Int(number) => number.to_string(),
        _ => String::new(),
    };
    let order = order_by(definitions);
    let live = tables[ORDERS].values().filter(|row| !is_over(definitions, row, time_ms));
    let orders = live.map(|row| (("order".to_owned(), key(row)), order(tables, row)));
    let customers = tables[CUSTOMERS].values().map(|row| (("customer".to_owned(), key(row)), customer(tables, row)));
    orders.chain(customers).collect()
}
