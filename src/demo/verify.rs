//! The demo's proof: every entity equals the join that SQL computes on the stand-in.
//!
//! The joins are written here by hand, in SQL, and nest their rows with code of their own: nothing of the joiner is used. Both sides are read once the workload has
//! stopped and the sink's frontier has passed the last commit.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, bail};
use schemas::value::Value;
use serde_json::{Value as Json, json};
use tiberius::ColumnData;

use super::client::Client;

/// The documents that should be there, by entity key.
pub(crate) type Documents = BTreeMap<String, Json>;

const ORDERS: &str =
    "SELECT o.id, o.status, o.note, o.placed_at, c.id, c.name, c.email, c.tier, a.street, a.city, a.postcode, a.country
 FROM dbo.orders o LEFT JOIN dbo.customers c ON c.id = o.customer_id LEFT JOIN dbo.addresses a ON a.id = o.shipping_address_id";
const ITEMS: &str = "SELECT i.order_id, i.id, i.quantity, i.amount, p.sku, p.name, p.price
 FROM dbo.order_items i LEFT JOIN dbo.products p ON p.id = i.product_id ORDER BY i.order_id, i.id";
const ITEM_TAXES: &str = "SELECT item_id, kind, rate, amount FROM dbo.item_taxes ORDER BY item_id, kind";
const TAX_SUMS: &str = "SELECT item_id, SUM(amount) FROM dbo.item_taxes GROUP BY item_id";
const PAYMENTS: &str = "SELECT order_id, method, amount, paid_at, id FROM dbo.payments";
const SHIPMENTS: &str = "SELECT order_id, carrier, tracking, shipped_at, delivered_at FROM dbo.shipments ORDER BY order_id, id";
const TOTALS: &str = "SELECT order_id, COUNT(*), SUM(amount) FROM dbo.order_items GROUP BY order_id";
const CUSTOMERS: &str = "SELECT id, name, email, tier, created_at FROM dbo.customers";
const ADDRESSES: &str = "SELECT customer_id, street, city, postcode, country FROM dbo.addresses ORDER BY customer_id, id";
const CUSTOMER_ORDERS: &str = "SELECT customer_id, id, status FROM dbo.orders ORDER BY customer_id, id DESC";

/// The `order` entities by SQL.
pub(crate) async fn orders(client: &mut Client) -> anyhow::Result<Documents> {
    let mut taxes = grouped(query(client, ITEM_TAXES).await?, |row| json!({"kind": row[1], "rate": row[2], "amount": row[3]}));
    let tax_sums: HashMap<String, Json> =
        query(client, TAX_SUMS).await?.into_iter().map(|row| (key(&row[0]), row[1].clone())).collect();
    let mut items = grouped(query(client, ITEMS).await?, |row| {
        let id = key(&row[1]);
        let product = if row[4].is_null() { Json::Null } else { json!({"sku": row[4], "name": row[5], "price": row[6]}) };
        json!({
            "id": row[1], "quantity": row[2], "amount": row[3], "product": product,
            "taxes": taxes.remove(&id).unwrap_or_default(), "tax": tax_sums.get(&id).cloned().unwrap_or(json!(0)),
        })
    });
    let mut rows = query(client, PAYMENTS).await?;
    rows.sort_by_key(|row| (row[3].to_string(), row[4].to_string()));
    let mut payments = grouped(rows, |row| json!({"method": row[1], "amount": row[2], "paid_at": row[3]}));
    let mut shipments = grouped(
        query(client, SHIPMENTS).await?,
        |row| json!({"carrier": row[1], "tracking": row[2], "shipped_at": row[3], "delivered_at": row[4]}),
    );
    let totals: HashMap<String, (Json, Json)> =
        query(client, TOTALS).await?.into_iter().map(|row| (key(&row[0]), (row[1].clone(), row[2].clone()))).collect();
    let mut documents = Documents::new();
    for row in query(client, ORDERS).await? {
        let id = key(&row[0]);
        let customer =
            if row[4].is_null() { Json::Null } else { json!({"id": row[4], "name": row[5], "email": row[6], "tier": row[7]}) };
        let ship_to = if row[8].is_null() {
            Json::Null
        } else {
            json!({"street": row[8], "city": row[9], "postcode": row[10], "country": row[11]})
        };
        let (count, total) = totals.get(&id).cloned().unwrap_or((json!(0), json!(0)));
        let document = json!({
            "id": row[0], "status": row[1], "note": row[2], "placed_at": row[3], "customer": customer, "ship_to": ship_to,
            "items": items.remove(&id).unwrap_or_default(), "payments": payments.remove(&id).unwrap_or_default(),
            "shipments": shipments.remove(&id).unwrap_or_default(), "item_count": count, "total": total,
        });
        documents.insert(id, document);
    }
    Ok(documents)
}

/// The `customer` entities by SQL.
pub(crate) async fn customers(client: &mut Client) -> anyhow::Result<Documents> {
    let mut addresses = grouped(
        query(client, ADDRESSES).await?,
        |row| json!({"street": row[1], "city": row[2], "postcode": row[3], "country": row[4]}),
    );
    let mut orders = grouped(query(client, CUSTOMER_ORDERS).await?, |row| json!({"id": row[1], "status": row[2]}));
    let mut documents = Documents::new();
    for row in query(client, CUSTOMERS).await? {
        let id = key(&row[0]);
        let orders = orders.remove(&id).unwrap_or_default();
        let document = json!({
            "id": row[0], "name": row[1], "email": row[2], "tier": row[3], "created_at": row[4],
            "addresses": addresses.remove(&id).unwrap_or_default(), "order_count": orders.len(), "orders": orders,
        });
        documents.insert(id, document);
    }
    Ok(documents)
}

/// The first differences between what should be there and what is, at most `limit`; empty: they are equal.
pub(crate) fn differences(entity: &str, expected: &Documents, actual: &Documents, limit: usize) -> Vec<String> {
    let mut found = Vec::new();
    for (id, document) in expected {
        match actual.get(id) {
            None => found.push(format!("{entity} {id}: missing")),
            Some(other) if !same(document, other) => {
                found.push(format!("{entity} {id}:\n  by SQL:   {document}\n  tributary: {other}"))
            }
            Some(_) => {}
        }
    }
    found.extend(actual.keys().filter(|id| !expected.contains_key(*id)).map(|id| format!("{entity} {id}: should not be there")));
    found.truncate(limit);
    found
}

/// Equal, where an empty sum may be written with or without a scale.
fn same(a: &Json, b: &Json) -> bool {
    fn is_zero(value: &Json) -> bool {
        match value {
            Json::Number(number) => number.as_i64() == Some(0),
            Json::String(text) => !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'0' | b'.')),
            _ => false,
        }
    }
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| same(value, other)))
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b || is_zero(a) && is_zero(b),
    }
}

fn key(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The rows as documents, by their first column, in the order in which they came.
fn grouped(rows: Vec<Vec<Json>>, mut document: impl FnMut(&[Json]) -> Json) -> HashMap<String, Vec<Json>> {
    let mut groups: HashMap<String, Vec<Json>> = HashMap::new();
    for row in rows {
        groups.entry(key(&row[0])).or_default().push(document(&row));
    }
    groups
}

async fn query(client: &mut Client, sql: &str) -> anyhow::Result<Vec<Vec<Json>>> {
    let rows = client.simple_query(sql).await?.into_first_result().await.with_context(|| sql.to_owned())?;
    rows.into_iter().map(|row| row.into_iter().map(|data| cell(&data).map(|value| value.to_json())).collect()).collect()
}

/// The types that the shop uses.
fn cell(data: &ColumnData<'_>) -> anyhow::Result<Value> {
    const DAYS_TO_1900: u32 = 693_595;
    Ok(match data {
        ColumnData::I32(value) => value.map_or(Value::Null, |value| Value::Int(value.into())),
        ColumnData::I64(value) => value.map_or(Value::Null, Value::Int),
        ColumnData::String(value) => value.as_ref().map_or(Value::Null, |text| Value::Text(text.to_string())),
        ColumnData::Guid(value) => value.map_or(Value::Null, |guid| Value::Uuid(*guid.as_bytes())),
        ColumnData::Numeric(value) => {
            value.map_or(Value::Null, |value| Value::Decimal { mantissa: value.value(), scale: value.scale() })
        }
        // tiberius hands money over as a float; the demo's amounts are far from where that loses a digit.
        ColumnData::F64(value) => {
            value.map_or(Value::Null, |value| Value::Decimal { mantissa: (value * 10_000.0).round() as i128, scale: 4 })
        }
        ColumnData::DateTime2(value) => value.map_or(Value::Null, |value| Value::DateTime {
            days: value.date().days(),
            ticks: ticks(value.time()),
            scale: value.time().scale(),
        }),
        ColumnData::DateTime(value) => value.map_or(Value::Null, |value| Value::DateTime {
            days: DAYS_TO_1900.saturating_add_signed(value.days()),
            // A datetime counts 1/300 s and is shown with milliseconds.
            ticks: u64::from((value.seconds_fragments() * 10 + 1) / 3) * 10_000,
            scale: 3,
        }),
        ColumnData::DateTimeOffset(value) => value.map_or(Value::Null, |value| {
            let minutes = i64::from(value.offset());
            let utc = i64::from(value.datetime2().date().days()) * 864_000_000_000 + ticks(value.datetime2().time()) as i64;
            let local = utc + minutes * 600_000_000;
            Value::DateTimeOffset {
                days: (local / 864_000_000_000) as u32,
                ticks: (local % 864_000_000_000) as u64,
                scale: value.datetime2().time().scale(),
                offset_minutes: value.offset(),
            }
        }),
        other => bail!("the shop has no such type: {other:?}"),
    })
}

fn ticks(time: tiberius::time::Time) -> u64 {
    time.increments() * 10u64.pow(7 - u32::from(time.scale().min(7)))
}
