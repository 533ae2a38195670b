//! The rows that both sides of the joiner's benchmark read: TPC-H customer, orders and lineitem, and a seeded list of transactions over them.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::table::TableSchema;
use schemas::value::Value;
use schemas::{Lsn, Position};
use tpch::Table;

/// The tables of the benchmark, parents first.
pub(crate) const TABLES: [Table; 3] = [tpch::CUSTOMER, tpch::ORDERS, tpch::LINEITEM];

/// Orders that the transactions touch: so many that their rows can be kept in memory at any scale, and as far apart as they can be, so that they lie all over the joiner's state.
const TOUCHED_ORDERS: usize = 40_000;
/// Orders at scale 1.
const ORDERS: f64 = 1_500_000.0;

/// A table's row as values: numbers for ints, text for the rest (decimals and dates are strings in the events).
pub(crate) fn row(table: &Table, fields: &[String]) -> Row {
    fields
        .iter()
        .zip(table.columns)
        .map(|(text, (_, sql_type))| match text.parse() {
            Ok(number) if *sql_type == "int" => Value::Int(number),
            _ => Value::Text(text.clone()),
        })
        .collect()
}

/// One transaction's changes: (index into [`TABLES`], op, before, after).
pub(crate) type Transaction = Vec<(usize, Op, Option<Row>, Option<Row>)>;

/// The touched orders as the transactions see them.
struct Shop {
    customers: Vec<Row>,
    orders: Vec<Row>,
    items: Vec<Vec<Row>>,
}

impl Shop {
    fn load(scale: f64) -> Self {
        let customers = TABLES[0].rows(scale).map(|fields| row(&TABLES[0], &fields)).collect();
        let apart = ((ORDERS * scale) as usize / TOUCHED_ORDERS).max(1);
        let orders: Vec<Row> =
            TABLES[1].rows(scale).step_by(apart).take(TOUCHED_ORDERS).map(|fields| row(&TABLES[1], &fields)).collect();
        let mut items: Vec<Vec<Row>> = Vec::with_capacity(orders.len());
        // Line items come in the order of their orders, and every order has at least one.
        let mut rows = TABLES[2].rows(scale).peekable();
        for order in &orders {
            let Value::Int(key) = order[0] else { continue };
            let key = key.to_string();
            let mut own = Vec::new();
            // What comes before the first of them belongs to orders that are left alone.
            while let Some(fields) = rows.next_if(|fields| own.is_empty() || fields[0] == key) {
                if fields[0] == key {
                    own.push(row(&TABLES[2], &fields));
                }
            }
            items.push(own);
        }
        Self { customers, orders, items }
    }
}

/// Multi-table transactions over the loaded rows: an order and some of its items change together; now and then an item comes or goes; one in 200 changes a
/// customer, which reaches all of its orders. `skewed`: one order takes half of them.
pub(crate) fn transactions(scale: f64, count: usize, seed: u64, skewed: bool) -> Vec<Transaction> {
    let mut shop = Shop::load(scale);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|number| {
            if number % 200 == 199 {
                let customer = random.random_range(0..shop.customers.len());
                let before = shop.customers[customer].clone();
                shop.customers[customer][4] = Value::Text(format!("{:02}-{number:010}", random.random_range(10..35)));
                return vec![(0, Op::Update, Some(before), Some(shop.customers[customer].clone()))];
            }
            let order = random.random_range(0..shop.orders.len());
            let order = if skewed && number % 2 == 0 { 0 } else { order };
            let mut changes = Transaction::new();
            let before = shop.orders[order].clone();
            shop.orders[order][3] =
                Value::Text(format!("{}.{:02}", random.random_range(1000..400_000), random.random_range(0..100)));
            shop.orders[order][8] = Value::Text(format!("changed by transaction {number}"));
            changes.push((1, Op::Update, Some(before), Some(shop.orders[order].clone())));
            let items = &mut shop.items[order];
            for _ in 0..random.random_range(1..=3usize) {
                let index = random.random_range(0..items.len());
                let before = items[index].clone();
                items[index][4] = Value::Text(format!("{}.00", random.random_range(1..50)));
                items[index][5] = Value::Text(format!("{}.{:02}", random.random_range(900..90_000), random.random_range(0..100)));
                changes.push((2, Op::Update, Some(before), Some(items[index].clone())));
            }
            if number % 20 == 6 {
                let mut item = items[0].clone();
                item[3] = Value::Int(1000 + number as i64);
                items.push(item.clone());
                changes.push((2, Op::Create, None, Some(item)));
            } else if number % 20 == 13 && items.len() > 1 {
                let item = items.pop();
                changes.push((2, Op::Delete, item, None));
            }
            changes
        })
        .collect()
}

/// The LSN of the n-th transaction; 0 is the snapshot's.
pub(crate) fn lsn(number: u64) -> Lsn {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&(number + 1).to_be_bytes());
    Lsn::from_bytes(bytes)
}

/// The events of the n-th transaction.
pub(crate) fn events(schemas: &[Arc<TableSchema>; 3], number: u64, transaction: &Transaction) -> Vec<ChangeEvent> {
    transaction
        .iter()
        .enumerate()
        .map(|(index, (table, op, before, after))| ChangeEvent {
            table: schemas[*table].clone(),
            op: *op,
            before: before.clone(),
            after: after.clone(),
            position: Position {
                commit_lsn: lsn(number),
                command_id: index as i32 + 1,
                seqval: lsn(index as u64),
                operation: match op {
                    Op::Delete => 1,
                    Op::Create => 2,
                    _ => 4,
                },
            },
            commit_time_ms: 1_780_000_000_000 + number as i64,
        })
        .collect()
}

/// The bytes of the rows as TPC-H's own files have them: the fields' texts with a bar behind each, and the line's end.
pub(crate) fn text_bytes(scale: f64) -> usize {
    let row = |fields: Vec<String>| fields.iter().map(|field| field.len() + 1).sum::<usize>() + 1;
    TABLES.iter().flat_map(|table| table.rows(scale)).map(row).sum()
}

/// Writes the same rows as the peer reads them: Debezium-envelope JSON lines, a file a table. Answers the number of lines.
pub(crate) fn write_files(folder: &Path, scale: f64, transactions: &[Transaction]) -> anyhow::Result<u64> {
    std::fs::create_dir_all(folder)?;
    let mut lines = 0;
    let mut files = Vec::new();
    for table in &TABLES {
        let path = folder.join(format!("{}.json", table.name));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path).with_context(|| path.display().to_string())?);
        let mut line = Vec::new();
        for fields in table.rows(scale) {
            line.clear();
            line.extend_from_slice(b"{\"before\":null,\"after\":");
            table.write_json(&fields, &mut line);
            line.extend_from_slice(b",\"op\":\"c\",\"ts_ms\":0}\n");
            file.write_all(&line)?;
            lines += 1;
        }
        files.push(file);
    }
    for change in transactions.iter().flatten() {
        let (table, op, before, after) = change;
        let mut line = b"{\"before\":".to_vec();
        write_row(&TABLES[*table], before.as_ref(), &mut line);
        line.extend_from_slice(b",\"after\":");
        write_row(&TABLES[*table], after.as_ref(), &mut line);
        line.extend_from_slice(format!(",\"op\":\"{}\",\"ts_ms\":0}}\n", op.letter()).as_bytes());
        files[*table].write_all(&line)?;
        lines += 1;
    }
    for mut file in files {
        file.flush()?;
    }
    Ok(lines)
}

fn write_row(table: &Table, row: Option<&Row>, out: &mut Vec<u8>) {
    let Some(row) = row else { return out.extend_from_slice(b"null") };
    for (index, value) in row.iter().enumerate() {
        out.push(if index == 0 { b'{' } else { b',' });
        schemas::value::write_string(out, table.columns[index].0);
        out.push(b':');
        value.write_json(out);
    }
    out.push(b'}');
}
