//! [decode-json], [decode-avro], [decode-protobuf], [decode-zstd]: the joiner's first cost, reading events of which it wants some of the columns, on one core, beside others' parsers on the same bytes.
//!
//! The events are inserts and updates of TPC-H's line items; wanted are the columns that the benchmark's entity uses. The peers: sonic-rs looking up the same members lazily, apache-avro
//! and prost reading the whole record, and zstd taking the records out of their frames without reading them.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use apache_avro::reader::datum::GenericDatumReader;
use clap::{Args, ValueEnum};
use prost::Message;
use schemas::encoding::{Compressor, Dictionary, Encoder, Format, Opener, Registry, Written, avro, protobuf};
use schemas::entity::EntityDefinition;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::parse::{Columns, RowBuffer};
use schemas::plan::Plan;
use schemas::table::TableSchema;
use schemas::value::Value;
use schemas::{Lsn, Position};
use sonic_rs::{PointerTree, pointer};
use tpch::LINEITEM;

use crate::joining::{child, median_run};
use crate::process::measure;
use crate::results::Figure;

/// TPC-H's scale: 120,000 line items.
const SCALE: f64 = 0.02;
const RUNS: usize = 3;
/// Bytes before an event in Avro's and in Protobuf's frame.
const FRAME: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Json,
    Avro,
    Protobuf,
    /// JSON in zstd frames.
    Zstd,
}

impl Kind {
    const ALL: [(Self, &'static str, &'static str); 4] = [
        (Self::Json, "json", "sonic-rs, lazily"),
        (Self::Avro, "avro", "apache-avro"),
        (Self::Protobuf, "protobuf", "prost"),
        (Self::Zstd, "zstd", "zstd alone"),
    ];
}

#[derive(Debug, Args)]
pub(crate) struct EncodingArgs {
    kind: Kind,
    /// The other parser instead of ours.
    #[arg(long)]
    peer: bool,
}

/// The figures, each from a process of its own, and how large an event is.
pub(crate) fn figures() -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (_, name, peer) in Kind::ALL {
        let ours = median_run(RUNS, "seconds", || measure(&mut child(&["encoding", name])?))?;
        let theirs = median_run(RUNS, "seconds", || measure(&mut child(&["encoding", name, "--peer"])?))?;
        let rate = |run: &crate::process::Measured| anyhow::Ok(run.get("events")? / run.get("seconds")?);
        figures.push(Figure::rate(format!("decode-{name}"), "events/s", rate(&ours)?, peer, Some(rate(&theirs)?)));
        figures.push(Figure::time(format!("event-bytes-{name}"), "bytes", ours.get("bytes")? / ours.get("events")?));
    }
    Ok(figures)
}

struct Input {
    records: Vec<Vec<u8>>,
    registry: Registry,
    avro: Arc<avro::Schema>,
    dictionary: Dictionary,
    columns: Columns,
    wanted: Vec<String>,
}

impl Input {
    fn new(kind: Kind) -> anyhow::Result<Self> {
        let tables: Vec<Arc<TableSchema>> = tpch::TABLES.iter().map(|table| table.schema("dbo")).collect();
        let plan = Plan::resolve(&EntityDefinition::from_yaml("order.yaml", tpch::ORDER)?, &|name| {
            tables.iter().find(|table| table.name == *name).cloned()
        })?;
        let table = LINEITEM.schema("dbo");
        let used: Vec<usize> =
            plan.used_columns().remove(&table.name).context("the entity does not use line items")?.into_iter().collect();
        let (avro, protobuf) = (Arc::new(avro::Schema::new(&table, 1)), Arc::new(protobuf::Schema::new(&table, 1, None)));
        let dictionary = Dictionary::new(&table, "bench", "tpch");
        let mut registry = Registry::default();
        registry.add_avro("dbo.lineitem.avsc", avro.clone())?;
        registry.add_protobuf("dbo.lineitem.proto", protobuf.clone())?;
        registry.add_dictionary(&dictionary);
        let mut format = match kind {
            Kind::Json => Format::default(),
            Kind::Avro => Format { schema: Written::Avro(avro.clone()), compressor: None },
            Kind::Protobuf => Format { schema: Written::Protobuf(protobuf), compressor: None },
            Kind::Zstd => Format { schema: Written::Json, compressor: Some(Compressor::new(&dictionary)?) },
        };
        let mut encoder = Encoder::new("bench", "tpch");
        let mut records = Vec::new();
        for (number, fields) in LINEITEM.rows(SCALE).enumerate() {
            let mut record = Vec::new();
            encoder.encode(&mut format, &event(&table, number, &fields)?, &mut record);
            records.push(record);
        }
        let wanted = used.iter().map(|&column| table.columns[column].name.clone()).collect();
        Ok(Self { records, registry, avro, dictionary, columns: Columns::new(&table, &used), wanted })
    }
}

/// Every other one is an update.
fn event(table: &Arc<TableSchema>, number: usize, fields: &[String]) -> anyhow::Result<ChangeEvent> {
    let after = typed(fields)?;
    let update = number % 2 == 1;
    let before = update.then(|| {
        let mut before = after.clone();
        before[4] = Value::Decimal { mantissa: 100, scale: 2 };
        before
    });
    let mut lsn = [0; 10];
    lsn[2..].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    let lsn = Lsn::from_bytes(lsn);
    let position = Position { commit_lsn: lsn, command_id: 1, seqval: lsn, operation: if update { 4 } else { 2 } };
    let commit_time_ms = 1_760_000_000_000 + number as i64;
    let op = if update { Op::Update } else { Op::Create };
    Ok(ChangeEvent { table: table.clone(), op, before, after: Some(after), position, commit_time_ms })
}

/// The values as the importer decodes them.
fn typed(fields: &[String]) -> anyhow::Result<Row> {
    let value = |(text, (_, sql_type)): (&String, &(&str, &str))| {
        Ok(match *sql_type {
            "int" => Value::Int(text.parse()?),
            "decimal(15,2)" => {
                let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
                Value::Decimal { mantissa: format!("{whole}{fraction:0<2}").parse()?, scale: 2 }
            }
            // All days differ, which is all that matters here.
            "date" => Value::Date(
                726_000 + text.bytes().filter(u8::is_ascii_digit).fold(0, |sum, digit| (sum * 7 + u32::from(digit)) % 2600),
            ),
            _ => Value::Text(text.clone()),
        })
    };
    fields.iter().zip(LINEITEM.columns).map(value).collect()
}

/// Reads all events; reports the seconds.
pub(crate) fn run(args: &EncodingArgs) -> anyhow::Result<()> {
    let input = Input::new(args.kind)?;
    let started = Instant::now();
    let read = match (args.peer, args.kind) {
        (false, _) => ours(&input)?,
        (true, Kind::Json) => sonic(&input)?,
        (true, Kind::Avro) => apache(&input)?,
        (true, Kind::Protobuf) => prost_messages(&input)?,
        (true, Kind::Zstd) => frames(&input)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    ensure!(read > input.records.len(), "{read} values were read");
    let bytes: usize = input.records.iter().map(Vec::len).sum();
    println!("seconds={seconds:.4} events={} bytes={bytes} read={read}", input.records.len());
    Ok(())
}

fn ours(input: &Input) -> anyhow::Result<usize> {
    let (mut opener, mut rows) = (Opener::new(&input.registry), RowBuffer::default());
    let mut read = 0;
    for record in &input.records {
        let head = opener.head(record)?;
        let (before, after) = head.rows(&input.columns, &mut rows)?;
        black_box(head.position);
        read += before.values().chain(after.values()).filter(|value| !black_box(*value).is_empty()).count();
    }
    Ok(read)
}

/// What ours reads of the head, and the wanted columns of both rows.
fn sonic(input: &Input) -> anyhow::Result<usize> {
    // It takes a member that is not there for an error: an insert has no row before it.
    let (inserts, updates) = (tree(input, &["after"]), tree(input, &["before", "after"]));
    let mut read = 0;
    for (number, record) in input.records.iter().enumerate() {
        let tree = if number % 2 == 1 { &updates } else { &inserts };
        read += black_box(sonic_rs::get_many(&record[..], tree)?).len();
    }
    Ok(read)
}

fn tree(input: &Input, images: &[&str]) -> PointerTree {
    let mut tree = PointerTree::new();
    tree.add_path(&pointer!["op"]);
    for member in ["schema", "table", "commit_lsn", "change_lsn", "command_id", "ts_ms", "snapshot"] {
        tree.add_path(&pointer!["source", member]);
    }
    for image in images {
        for column in &input.wanted {
            tree.add_path(&pointer![*image, column.as_str()]);
        }
    }
    tree
}

fn apache(input: &Input) -> anyhow::Result<usize> {
    let schema = apache_avro::Schema::parse_str(&input.avro.text)?;
    let reader = GenericDatumReader::builder(&schema).build()?;
    let mut read = 0;
    for record in &input.records {
        black_box(reader.read_value(&mut &record[FRAME..])?);
        read += input.wanted.len();
    }
    Ok(read)
}

fn prost_messages(input: &Input) -> anyhow::Result<usize> {
    let mut read = 0;
    for record in &input.records {
        let envelope = black_box(Envelope::decode(&record[FRAME..])?);
        read += [envelope.before, envelope.after].iter().flatten().filter(|row| row.l_orderkey.is_some()).count()
            * input.wanted.len();
    }
    Ok(read)
}

fn frames(input: &Input) -> anyhow::Result<usize> {
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(&input.dictionary.bytes)?;
    let mut plain = Vec::with_capacity(1 << 16);
    let mut read = 0;
    for record in &input.records {
        plain.clear();
        read += decompressor.decompress_to_buffer(record, &mut plain)?;
        black_box(&plain);
    }
    Ok(read)
}

/// `dbo.lineitem.proto`, as prost's own generator would write it.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(int32, tag = "1")]
    op: i32,
    #[prost(message, optional, tag = "2")]
    source: Option<Source>,
    #[prost(message, optional, tag = "3")]
    before: Option<LineItem>,
    #[prost(message, optional, tag = "4")]
    after: Option<LineItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Source {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    db: String,
    #[prost(int64, tag = "3")]
    ts_ms: i64,
    #[prost(int32, tag = "4")]
    snapshot: i32,
    #[prost(bytes = "vec", tag = "5")]
    commit_lsn: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "6")]
    change_lsn: Option<Vec<u8>>,
    #[prost(sint32, tag = "7")]
    command_id: i32,
}

#[derive(Clone, PartialEq, Message)]
struct LineItem {
    #[prost(sint64, optional, tag = "1")]
    l_orderkey: Option<i64>,
    #[prost(sint64, optional, tag = "2")]
    l_partkey: Option<i64>,
    #[prost(sint64, optional, tag = "3")]
    l_suppkey: Option<i64>,
    #[prost(sint64, optional, tag = "4")]
    l_linenumber: Option<i64>,
    #[prost(sint64, optional, tag = "5")]
    l_quantity: Option<i64>,
    #[prost(sint64, optional, tag = "6")]
    l_extendedprice: Option<i64>,
    #[prost(sint64, optional, tag = "7")]
    l_discount: Option<i64>,
    #[prost(sint64, optional, tag = "8")]
    l_tax: Option<i64>,
    #[prost(string, optional, tag = "9")]
    l_returnflag: Option<String>,
    #[prost(string, optional, tag = "10")]
    l_linestatus: Option<String>,
    #[prost(sint32, optional, tag = "11")]
    l_shipdate: Option<i32>,
    #[prost(sint32, optional, tag = "12")]
    l_commitdate: Option<i32>,
    #[prost(sint32, optional, tag = "13")]
    l_receiptdate: Option<i32>,
    #[prost(string, optional, tag = "14")]
    l_shipinstruct: Option<String>,
    #[prost(string, optional, tag = "15")]
    l_shipmode: Option<String>,
    #[prost(string, optional, tag = "16")]
    l_comment: Option<String>,
}
