//! `tributary entity test`: a definition on rows from a file, through the joiner itself with a state that is thrown away.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use joiner::Engine;
use joiner::dead_letters::Which;
use schemas::change::EntityKey;
use schemas::contract::Contract;
use schemas::entity::EntityDefinition;
use schemas::envelope::Encoder;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::plan::{Plan, unix_ms};
use schemas::progress::{Phase, ProgressRecord, SequenceNumber, ShardId};
use schemas::table::{Column, SqlType, TableSchema};
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use serde::Deserialize;
use serde_json::Value as Json;
use streams::{Batch, Layout};

use crate::cli::EntityTestArgs;
use crate::config::table_of;

/// Exit code where documents are not those that were expected.
const DIFFERENT: u8 = 2;
const SOURCE: &str = "test";

/// What the file holds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Trial {
    /// The definition's file, or the definition itself.
    definition: serde_yaml_ng::Value,
    /// Those of the entities that it rolls up, in the same way.
    #[serde(default)]
    over: Vec<serde_yaml_ng::Value>,
    /// A folder of table contracts, for tables that have no `columns` here.
    #[serde(default)]
    contracts: Option<PathBuf>,
    tables: BTreeMap<TableName, Rows>,
    /// The time that the source has come to, for `time_to_live`; without it, no entity's time is over.
    #[serde(default)]
    at: Option<String>,
    #[serde(default)]
    expect: Option<Vec<Json>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    /// Type by name, such as `decimal(10,2)`; every one of them takes NULL.
    #[serde(default)]
    columns: Option<serde_yaml_ng::Mapping>,
    #[serde(default)]
    key: Vec<String>,
    #[serde(default)]
    rows: Vec<serde_json::Map<String, Json>>,
}

pub(super) fn run(args: &EntityTestArgs) -> anyhow::Result<ExitCode> {
    let mut different = false;
    for file in &args.files {
        different |= !tried(file).with_context(|| file.display().to_string())?;
    }
    Ok(if different { ExitCode::from(DIFFERENT) } else { ExitCode::SUCCESS })
}

/// Whether the documents are as expected.
fn tried(file: &Path) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(file).context("cannot be read")?;
    // JSON is YAML.
    let trial: Trial = serde_yaml_ng::from_str(&text)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let definition = definition(folder, &trial.definition)?;
    let mut definitions = trial.over.iter().map(|over| self::definition(folder, over)).collect::<anyhow::Result<Vec<_>>>()?;
    definitions.push(definition.clone());
    let contracts: Vec<Contract> = match &trial.contracts {
        Some(path) => importer::contracts::read(&folder.join(path))?.into_values().map(|versions| versions.current).collect(),
        None => Vec::new(),
    };
    let mut tables: BTreeMap<TableName, Arc<TableSchema>> = BTreeMap::new();
    for (name, rows) in &trial.tables {
        let of_contract = table_of(&contracts)(name);
        let table = match (&rows.columns, of_contract) {
            (Some(columns), _) => Arc::new(table(name, columns, &rows.key)?),
            (None, Some(table)) => table,
            (None, None) => bail!("{name}: name its `columns`, or a folder of `contracts` that has one for it"),
        };
        tables.insert(name.clone(), table);
    }
    let known = |name: &TableName| tables.get(name).cloned().or_else(|| table_of(&contracts)(name));
    let plans: Vec<Arc<Plan>> = Plan::resolve_all(&definitions, &known)?.into_iter().map(Arc::new).collect();
    let mut rows = Vec::new();
    for (name, given) in &trial.tables {
        for (nth, row) in given.rows.iter().enumerate() {
            let table = tables[name].clone();
            let row = values(&table, row).with_context(|| format!("{name}, row {}", nth + 1))?;
            rows.push((table, row));
        }
    }
    let documents = documents(&definition.entity, plans, rows, trial.at.as_deref().map_or(Ok(0), moment)?)?;
    let found: Vec<&Json> = documents.values().collect();
    match trial.expect {
        None => {
            found.iter().for_each(|document| println!("{document}"));
            Ok(true)
        }
        Some(expected) if found.iter().copied().eq(&expected) => {
            println!("{}: {} documents, as expected", file.display(), expected.len());
            Ok(true)
        }
        Some(expected) => {
            println!("{}: the documents differ", file.display());
            let lines = |sign: char, these: &[&Json], others: &[&Json]| {
                these.iter().filter(|one| !others.contains(one)).for_each(|one| println!("{sign} {one}"));
            };
            let expected: Vec<&Json> = expected.iter().collect();
            lines('-', &expected, &found);
            lines('+', &found, &expected);
            if expected.iter().all(|one| found.contains(one)) && found.len() == expected.len() {
                println!(
                    "  the same documents, in the order of their keys: {}",
                    documents.keys().map(EntityKey::to_string).collect::<Vec<_>>().join(" ")
                );
            }
            Ok(false)
        }
    }
}

/// A date, or a date and a time, in milliseconds since 1970-01-01 UTC.
fn moment(text: &str) -> anyhow::Result<i64> {
    let found = unix_ms(text).or_else(|| unix_ms(&format!("{text}T00:00:00")));
    found.with_context(|| format!("`at`: {text:?} is not a date or a time, such as 2024-05-01 or 2024-05-01T09:30:00Z"))
}

/// A definition's file, or the definition itself.
fn definition(folder: &Path, written: &serde_yaml_ng::Value) -> anyhow::Result<EntityDefinition> {
    let serde_yaml_ng::Value::String(path) = written else {
        return Ok(EntityDefinition::from_yaml("definition", &serde_yaml_ng::to_string(written)?)?);
    };
    let path = folder.join(path);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    Ok(EntityDefinition::from_yaml(&path.display().to_string(), &text)?)
}

fn table(name: &TableName, columns: &serde_yaml_ng::Mapping, key: &[String]) -> anyhow::Result<TableSchema> {
    let column = |(column, sql_type): (&serde_yaml_ng::Value, &serde_yaml_ng::Value)| {
        let (Some(column), Some(sql_type)) = (column.as_str(), sql_type.as_str()) else {
            bail!("{name}: `columns` are pairs of a name and a type, such as `total: decimal(10,2)`");
        };
        let sql_type: SqlType = sql_type.parse().with_context(|| format!("{name}.{column}"))?;
        Ok(Column { name: column.to_owned(), sql_type, nullable: true, case_insensitive: false })
    };
    let columns = columns.iter().map(column).collect::<anyhow::Result<Vec<_>>>()?;
    let place = |part: &String| {
        let place = columns.iter().position(|column| column.name == *part);
        place.with_context(|| format!("{name}: `key` names {part:?}, which is not among its columns"))
    };
    let key = key.iter().map(place).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(TableSchema { name: name.clone(), columns, key })
}

/// The row of a table; what is not given is NULL.
fn values(table: &TableSchema, given: &serde_json::Map<String, Json>) -> anyhow::Result<Row> {
    if let Some(name) = given.keys().find(|name| table.column(name).is_none()) {
        let known = table.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
        bail!("there is no column {name:?}: there are {known}");
    }
    let value = |column: &Column| {
        let json = given.get(&column.name).unwrap_or(&Json::Null);
        value(column.sql_type, json).with_context(|| format!("{}: {json} is not a {}", column.name, column.sql_type))
    };
    table.columns.iter().map(value).collect()
}

/// A value as the source would publish it.
fn value(sql_type: SqlType, json: &Json) -> Option<Value> {
    Some(match (sql_type, json) {
        (_, Json::Null) => Value::Null,
        (SqlType::Bit, Json::Bool(value)) => Value::Bool(*value),
        (SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt, Json::Number(number)) => {
            Value::Int(number.as_i64()?)
        }
        (SqlType::Real | SqlType::Float, Json::Number(number)) => Value::Float(number.as_f64()?),
        (SqlType::Decimal { scale, .. }, json) => decimal(json, scale)?,
        (SqlType::Money | SqlType::SmallMoney, json) => decimal(json, 4)?,
        (
            SqlType::Bit | SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt | SqlType::Real | SqlType::Float,
            _,
        ) => {
            return None;
        }
        // All others stand in JSON as text.
        (_, Json::String(text)) => Value::Text(text.clone()),
        _ => return None,
    })
}

/// With the digits that the column has; `None` where it has more.
fn decimal(json: &Json, scale: u8) -> Option<Value> {
    let text = match json {
        Json::String(text) => text.clone(),
        Json::Number(number) => number.to_string(),
        _ => return None,
    };
    let (sign, digits) = text.strip_prefix('-').map_or((1, text.as_str()), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > usize::from(scale) {
        return None;
    }
    let padded = format!("{whole}{fraction:0<width$}", width = usize::from(scale));
    Some(Value::Decimal { mantissa: sign * padded.parse::<i128>().ok()?, scale })
}

/// The documents of an entity by their keys, when the source has come to a time.
fn documents(
    entity: &str,
    plans: Vec<Arc<Plan>>,
    rows: Vec<(Arc<TableSchema>, Row)>,
    now_ms: i64,
) -> anyhow::Result<BTreeMap<EntityKey, Json>> {
    let dir = tempfile::tempdir().context("a temporary directory cannot be made")?;
    let mut config = joiner::Config::new(dir.path(), plans, SOURCE, SOURCE);
    config.layout = Layout::Shared;
    let mut engine = Engine::open(&config)?;
    let mut encoder = Encoder::new(SOURCE, SOURCE);
    let start = Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let position = Position { commit_lsn: start, ..Position::default() };
    let mut counts: BTreeMap<TableName, u64> = BTreeMap::new();
    let (mut records, shard) = (Vec::new(), ShardId("0".to_owned()));
    for (table, row) in rows {
        *counts.entry(table.name.clone()).or_default() += 1;
        let mut data = Vec::new();
        encoder
            .encode(&ChangeEvent { table, op: Op::Read, before: None, after: Some(row), position, commit_time_ms: 0 }, &mut data);
        records.push((SequenceNumber::from(records.len() as u64 + 1), data.into()));
    }
    // All tables share it.
    let stream = Layout::Shared.stream(SOURCE, &TableName::none());
    let read = SequenceNumber::from(records.len() as u64);
    let mut positions = schemas::progress::ShardPositions::new();
    if !records.is_empty() {
        positions.entry(stream.clone()).or_default().insert(shard.clone(), read);
        engine.events(&Batch { stream, shard: shard.clone(), records })?;
    }
    let record = ProgressRecord {
        source: SOURCE.to_owned(),
        epoch: 1,
        phase: Phase::SnapshotComplete { consistent_from: start },
        from_lsn: start,
        to_lsn: start,
        commit_time_ms: now_ms,
        counts,
        dead_lettered: BTreeMap::new(),
        rereads: BTreeMap::new(),
        reread_counts: BTreeMap::new(),
        positions,
    };
    engine.progress(&Layout::progress_stream(SOURCE), &shard, &SequenceNumber::from(1), record)?;
    engine.advance()?;
    if let Some(refused) = engine.handle().dead_letters().list(&Which::All, 1)?.first() {
        bail!("a row is refused: {}", serde_json::to_string(refused)?);
    }
    let found: Mutex<BTreeMap<EntityKey, Json>> = Mutex::default();
    engine.scan(entity, 1, &|changes| {
        let documents =
            changes.into_iter().filter_map(|change| Some((change.key, serde_json::from_str(&change.document?).ok()?)));
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(documents);
        true
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}
