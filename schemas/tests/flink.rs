//! The default encoding as Flink's own format `debezium-json` reads it: every operation, every kind of value.
//!
//! Runs with the Flink of the benchmarks (`make bench` installs it); where that is not installed there is nothing to test against, and the test says so.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use schemas::envelope::Encoder;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::table::{Column, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use serde_json::{Value as Json, json};

/// Column, SQL Server's type, Flink's.
const COLUMNS: [(&str, &str, &str); 16] = [
    ("id", "int", "INT"),
    ("name", "nvarchar(50)", "STRING"),
    ("amount", "decimal(12,3)", "DECIMAL(12,3)"),
    ("price", "money", "DECIMAL(19,4)"),
    ("wide", "decimal(38,10)", "DECIMAL(38,10)"),
    ("flag", "bit", "BOOLEAN"),
    ("tiny", "tinyint", "SMALLINT"),
    ("big", "bigint", "BIGINT"),
    ("single", "real", "FLOAT"),
    ("double", "float", "DOUBLE"),
    ("day", "date", "DATE"),
    ("at", "datetime2(6)", "TIMESTAMP(6)"),
    ("stamp", "datetime", "TIMESTAMP(3)"),
    ("bytes", "varbinary(20)", "BYTES"),
    ("guid", "uniqueidentifier", "STRING"),
    ("note", "nvarchar(max)", "STRING"),
];

fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = std::env::var("TRIBUTARY_BENCH").map_or_else(|_| root.join(".setup/bench"), PathBuf::from);
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: there is no Flink in {} (`tests/setup.sh bench` installs it)", folder.display());
        return None;
    }
    Some(python)
}

fn table() -> Arc<TableSchema> {
    let column = |&(name, sql_type, _): &(&str, &str, &str)| Column {
        name: name.to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable: name != "id",
        case_insensitive: false,
    };
    Arc::new(TableSchema { name: TableName::new("dbo", "kinds"), columns: COLUMNS.iter().map(column).collect(), key: vec![0] })
}

/// 2024-02-29.
const LEAP_DAY: u32 = 738_944;

fn full(id: i64) -> Row {
    vec![
        Value::Int(id),
        Value::Text("Ωmega \"quoted\"\n😀".into()),
        Value::Decimal { mantissa: -12_500, scale: 3 },
        Value::Decimal { mantissa: i64::MAX.into(), scale: 4 },
        Value::Decimal { mantissa: 12_345_678_901_234_567_890_123_456_789, scale: 10 },
        Value::Bool(true),
        Value::Int(255),
        Value::Int(i64::MIN),
        Value::Real(1.5),
        Value::Float(-2.25e-7),
        Value::Date(LEAP_DAY),
        Value::DateTime { days: LEAP_DAY, ticks: 452_961_234_560, scale: 6 },
        Value::DateTime { days: LEAP_DAY, ticks: 452_961_230_000, scale: 3 },
        Value::Bytes(vec![0, 255, 16]),
        Value::Uuid(*b"\x6f\x96\x19\xff\x8b\x86\xd0\x11\xb4\x2d\x00\xc0\x4f\xc9\x64\xff"),
        Value::Unavailable,
    ]
}

fn empty(id: i64) -> Row {
    let mut row = vec![Value::Null; COLUMNS.len()];
    row[0] = Value::Int(id);
    row
}

/// The rows of `full` and `empty` as Flink understands them.
fn expected(kind: &str, id: i64, is_full: bool) -> Json {
    if !is_full {
        let mut row = vec![Json::Null; COLUMNS.len() + 1];
        (row[0], row[1]) = (kind.into(), id.into());
        return row.into();
    }
    json!([
        kind,
        id,
        "Ωmega \"quoted\"\n😀",
        "-12.500",
        "922337203685477.5807",
        "1234567890123456789.0123456789",
        true,
        255,
        i64::MIN,
        1.5,
        -2.25e-7,
        "2024-02-29",
        "2024-02-29 12:34:56.123456",
        "2024-02-29 12:34:56.123",
        "00ff10",
        "6F9619FF-8B86-D011-B42D-00C04FC964FF",
        "__debezium_unavailable_value"
    ])
}

fn event(table: &Arc<TableSchema>, op: Op, before: Option<Row>, after: Option<Row>) -> ChangeEvent {
    let position =
        Position { commit_lsn: Lsn::from_bytes([1; 10]), command_id: 1, seqval: Lsn::from_bytes([2; 10]), operation: 0 };
    ChangeEvent { table: table.clone(), op, before, after, position, commit_time_ms: 1_700_000_000_000 }
}

#[test]
fn flink_reads_the_default_encoding() {
    let Some(python) = python() else { return };
    let table = table();
    let mut encoder = Encoder::new("shop", "shop");
    let mut text = Vec::new();
    for event in [
        event(&table, Op::Read, None, Some(full(1))),
        event(&table, Op::Create, None, Some(empty(2))),
        event(&table, Op::Update, Some(empty(2)), Some(full(2))),
        event(&table, Op::Reread, None, Some(full(3))),
        event(&table, Op::Delete, Some(full(1)), None),
    ] {
        encoder.encode(&event, &mut text);
        text.push(b'\n');
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.json");
    std::fs::write(&file, text).unwrap();
    let columns: Vec<String> = COLUMNS.iter().map(|(name, _, flink)| format!("`{name}` {flink}")).collect();
    // Python is given timestamps in milliseconds, so Flink writes them itself.
    let selected = COLUMNS.iter().map(|(name, _, flink)| {
        if flink.starts_with("TIMESTAMP") { format!("CAST(`{name}` AS STRING)") } else { format!("`{name}`") }
    });
    let selected: Vec<String> = selected.collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flink.py");
    let output = Command::new(python).arg(script).arg(&file).args([columns.join(", "), selected.join(", ")]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Json> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            expected("INSERT", 1, true),
            expected("INSERT", 2, false),
            expected("UPDATE_BEFORE", 2, false),
            expected("UPDATE_AFTER", 2, true),
            expected("INSERT", 3, true),
            expected("DELETE", 1, true),
        ]
    );
}
