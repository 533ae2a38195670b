//! [decode-core]: what the importer does with each row once the driver has read it, alone and on one core: the driver's cells to values, the row against its table's contract, the event as it is
//! published. Twelve columns of common types, an insert each.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use schemas::contract::Contract;
use schemas::envelope::Encoder;
use schemas::event::{ChangeEvent, Op};
use schemas::table::{Column, TableSchema};
use schemas::{Lsn, Position, TableName};
use source::decode::Decoder;
use tiberius::ColumnData;
use tiberius::numeric::Numeric;
use tiberius::time::{Date, DateTime2, Time};

use crate::joining::{child, median_run};
use crate::process::measure;
use crate::results::Figure;

const ROWS: i32 = 300_000;
const RUNS: usize = 3;

const COLUMNS: [(&str, &str); 12] = [
    ("id", "int"),
    ("customer_id", "int"),
    ("status", "varchar(20)"),
    ("total", "decimal(12,2)"),
    ("placed", "datetime2(3)"),
    ("priority", "tinyint"),
    ("note", "nvarchar(100)"),
    ("quantity", "int"),
    ("discount", "decimal(5,4)"),
    ("is_paid", "bit"),
    ("reference", "varchar(36)"),
    ("due", "date"),
];

/// The figure, from a process of its own.
pub(crate) fn figure() -> anyhow::Result<Figure> {
    let run = median_run(RUNS, "seconds", || measure(&mut child(&["decode"])?))?;
    // The rows are all made beforehand, so the process's memory says nothing.
    Ok(Figure::rate("decode-core", "rows/s", f64::from(ROWS) / run.get("seconds")?, "", None))
}

/// Decodes, checks and encodes; reports the seconds.
pub(crate) fn run() -> anyhow::Result<()> {
    let table = Arc::new(schema()?);
    let rows: Vec<Vec<ColumnData<'static>>> = (0..ROWS).map(cells).collect();
    let (decoder, contract) = (Decoder::new(&table), Contract::from_table(&table));
    let mut encoder = Encoder::new("bench", "shop");
    let (mut out, mut bytes) = (Vec::new(), 0);
    let started = Instant::now();
    for (number, cells) in rows.into_iter().enumerate() {
        let row = decoder.row(&mut cells.into_iter())?;
        contract.check(&row)?;
        let mut lsn = [0; 10];
        lsn[2..].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        let lsn = Lsn::from_bytes(lsn);
        let position = Position { commit_lsn: lsn, command_id: 1, seqval: lsn, operation: 2 };
        let event = ChangeEvent {
            table: table.clone(),
            op: Op::Create,
            before: None,
            after: Some(row),
            position,
            commit_time_ms: 1_760_000_000_000 + number as i64,
        };
        out.clear();
        encoder.encode(&event, &mut out);
        bytes += out.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    let event: serde_json::Value = serde_json::from_slice(&out).context("the last event")?;
    ensure!(event["after"]["id"] == ROWS - 1 && event["after"]["due"].is_string(), "the last event is not right: {event}");
    println!("seconds={seconds:.4} bytes={bytes}");
    Ok(())
}

fn schema() -> anyhow::Result<TableSchema> {
    let columns = COLUMNS.iter().map(|(name, sql_type)| {
        let sql_type = sql_type.parse().map_err(|_| anyhow::anyhow!("{sql_type} is no type"))?;
        Ok(Column { name: (*name).to_owned(), sql_type, nullable: *name != "id", case_insensitive: false })
    });
    Ok(TableSchema { name: TableName::new("dbo", "orders"), columns: columns.collect::<anyhow::Result<_>>()?, key: vec![0] })
}

/// A row as the driver hands it over.
fn cells(id: i32) -> Vec<ColumnData<'static>> {
    let text = |text: String| ColumnData::String(Some(Cow::Owned(text)));
    let number = i128::from(id);
    vec![
        ColumnData::I32(Some(id)),
        ColumnData::I32(Some(id % 5000)),
        text(format!("status {}", id % 9)),
        ColumnData::Numeric(Some(Numeric::new_with_scale(number * 7919 % 9_000_000, 2))),
        ColumnData::DateTime2(Some(DateTime2::new(
            Date::new(739_000 + id.unsigned_abs() % 300),
            Time::new(u64::from(id.unsigned_abs() % 86_400_000), 3),
        ))),
        ColumnData::U8(Some((id % 10) as u8)),
        text(format!("a note of some length about order {id}")),
        ColumnData::I32(Some(id % 60)),
        ColumnData::Numeric(Some(Numeric::new_with_scale(number * 13 % 10_000, 4))),
        ColumnData::Bit(Some(id % 2 == 0)),
        text(format!("reference-{id:024}")),
        ColumnData::Date(Some(Date::new(739_000 + id.unsigned_abs() % 90))),
    ]
}
