//! A small shop for scenario tests: orders with items, and a publisher that writes them as the importer does.

// Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use joiner::{Config, Error};
use schemas::entity::EntityDefinition;
use schemas::envelope::Encoder;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::plan::Plan;
use schemas::progress::{Phase, ProgressRecord, ShardPositions};
use schemas::table::{Column, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use streams::{Layout, Provider, Record};

pub(crate) mod crash;
pub(crate) mod shop;

pub(crate) const ORDER: &str = "
entity: order
table: dbo.orders
many: {items: {table: dbo.items, by: [order_id], fields: [line, price]}}
aggregates: {total: {sum: items.price}}
";

pub(crate) fn lsn(n: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n])
}

fn table(name: &str, columns: &[(&str, &str)], key: Vec<usize>) -> Arc<TableSchema> {
    let column = |(name, sql_type): &(&str, &str)| Column {
        name: (*name).to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable: false,
        case_insensitive: false,
    };
    Arc::new(TableSchema { name: TableName::new("dbo", name), columns: columns.iter().map(column).collect(), key })
}

pub(crate) fn orders() -> Arc<TableSchema> {
    table("orders", &[("id", "int"), ("status", "varchar(10)")], vec![0])
}

pub(crate) fn items() -> Arc<TableSchema> {
    table("items", &[("order_id", "int"), ("line", "int"), ("price", "decimal(8,2)")], vec![0, 1])
}

pub(crate) fn plan(text: &str) -> Arc<Plan> {
    let lookup = |name: &TableName| [orders(), items()].into_iter().find(|table| table.name == *name);
    Arc::new(Plan::resolve(&EntityDefinition::from_yaml("order.yaml", text).unwrap(), &lookup).unwrap())
}

pub(crate) fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir, vec![plan(ORDER)], "shop", "p");
    config.layout = Layout::Shared;
    config
}

pub(crate) fn order(id: i64, status: &str) -> Row {
    vec![Value::Int(id), Value::Text(status.into())]
}

pub(crate) fn item(order: i64, line: i64, cents: i128) -> Row {
    vec![Value::Int(order), Value::Int(line), Value::Decimal { mantissa: cents, scale: 2 }]
}

/// A change at an LSN; its number there makes its position.
pub(crate) fn change(table: Arc<TableSchema>, at: u8, number: u8, before: Option<Row>, after: Option<Row>) -> ChangeEvent {
    let (op, operation) = match (&before, &after) {
        (None, _) => (Op::Create, 2),
        (Some(_), Some(_)) => (Op::Update, 4),
        (Some(_), None) => (Op::Delete, 1),
    };
    let position = Position { commit_lsn: lsn(at), command_id: i32::from(number), seqval: lsn(number), operation };
    ChangeEvent { table, op, before, after, position, commit_time_ms: 1000 + i64::from(at) }
}

pub(crate) fn read(table: Arc<TableSchema>, start: u8, row: Row) -> ChangeEvent {
    let position = Position { commit_lsn: lsn(start), ..Position::default() };
    ChangeEvent { table, op: Op::Read, before: None, after: Some(row), position, commit_time_ms: 1000 }
}

pub(crate) fn encode(event: &ChangeEvent) -> Vec<u8> {
    let mut data = Vec::new();
    Encoder::new("shop", "db").encode(event, &mut data);
    data
}

pub(crate) fn record(phase: Phase, from: u8, to: u8, counts: &[(&Arc<TableSchema>, u64)]) -> ProgressRecord {
    ProgressRecord {
        source: "shop".into(),
        epoch: 1,
        phase,
        from_lsn: lsn(from),
        to_lsn: lsn(to),
        commit_time_ms: 1000 + i64::from(to),
        counts: counts.iter().map(|(table, count)| (table.name.clone(), *count)).collect(),
        dead_lettered: BTreeMap::new(),
        rereads: BTreeMap::new(),
        reread_counts: BTreeMap::new(),
        positions: ShardPositions::new(),
    }
}

/// What an error says is missing: table, published, received.
pub(crate) fn missing(error: &Error) -> Vec<(String, u64, u64)> {
    let Error::Missing { miscounts } = error else { panic!("{error}") };
    miscounts.iter().map(|count| (count.table.to_string(), count.published, count.received)).collect()
}

/// Publishes events and a progress record, as the importer does.
pub(crate) async fn publish(provider: &dyn Provider, events: &[Vec<u8>], mut record: ProgressRecord) {
    let stream = Layout::Shared.stream("p", &orders().name);
    let progress = Layout::progress_stream("p");
    provider.ensure(&stream, 2).await.unwrap();
    provider.ensure(&progress, 1).await.unwrap();
    let mut writer = provider.writer().await.unwrap();
    let records = events.iter().enumerate().map(|(n, data)| Record { partition_key: n.to_string(), data: data.clone().into() });
    writer.append(&stream, records.collect()).await.unwrap();
    record.positions = writer.flush().await.unwrap();
    let data = serde_json::to_vec(&record).unwrap();
    writer.append(&progress, vec![Record { partition_key: "shop".into(), data: data.into() }]).await.unwrap();
    writer.flush().await.unwrap();
}

/// What this process has of memory now (`VmRSS:`), or had at most since that was forgotten (`VmHWM:`, `clear_refs`), in KiB.
pub(crate) fn memory_kib(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
