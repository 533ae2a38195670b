//! From a tick's records to change events: which tables, which rows, what the rows were before. Pure but for the look at the rows that are kept.
//!
//! An event names its row by the table's key. What the row was is what the last event of that key made of it; the joiner needs to know, for a row may have moved from one parent to another. So an event of a row that is not known makes an insert, the next
//! ones updates, and one that deletes a row that is not known makes nothing: it is counted.
//!
//! The identity of a change is its tick, the record's place in the tick, and the table: it is the same however often the tick is made from the same records and rows.

use std::collections::HashMap;

use bytes::Bytes;
use schemas::contract::Contract;
use schemas::event::{ChangeEvent, Op, Row};
use schemas::progress::{SequenceNumber, ShardId, StreamName};
use schemas::table::SqlType;
use schemas::value::Value;
use schemas::{Lsn, Position, TableName};
use serde_json::Value as Json;

use super::config::{BadRecordPolicy, Pointer, ServiceConfig, TableMapping, UnmatchedPolicy};
use super::state::{Plan, RowKey, State, kept};
use super::value;
use crate::error::{BadRecord, Error};

/// Characters of an offending value that are shown.
const SHOWN: usize = 80;

/// A record of the service's stream.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) shard: ShardId,
    pub(super) sequence: SequenceNumber,
    pub(super) data: Bytes,
}

/// Why a record cannot be what it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The place in the event, as a JSON pointer.
    pub(crate) pointer: String,
    pub(crate) rule: String,
    /// The value there, shortened.
    pub(crate) value: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pointer, rule, value } = self;
        write!(f, "at {pointer:?}: {rule}")?;
        if value.is_empty() { Ok(()) } else { write!(f, ", and it is {value}") }
    }
}

/// What becomes of a record, or of one table's part of it.
#[derive(Debug)]
pub(super) enum Made {
    Change { table: usize, event: ChangeEvent },
    Letter { table: Option<usize>, record: usize, position: Position, problem: Problem },
}

/// A tick, ready to be published.
#[derive(Debug, Default)]
pub(super) struct Translated {
    pub(super) made: Vec<Made>,
    /// What is kept of the rows once it is published.
    pub(super) rows: Vec<(RowKey, Option<Vec<u8>>)>,
    /// Records that are of no table, and were to be passed over.
    pub(super) skipped: u64,
    /// By table: deletions of rows that are not known.
    pub(super) unknown: Vec<u64>,
}

struct Table {
    contract: Contract,
    mapping: TableMapping,
    /// By column.
    places: Vec<Pointer>,
    /// By column of the key, in an event that deletes.
    deleted: Vec<Pointer>,
}

pub(super) struct Translator {
    tables: Vec<Table>,
    on_bad_record: BadRecordPolicy,
    on_unmatched: UnmatchedPolicy,
    /// Of the records, for messages.
    stream: StreamName,
    fingerprint: String,
}

impl Translator {
    pub(super) fn new(config: &ServiceConfig) -> Result<Self, Error> {
        if config.tables.is_empty() {
            return Err(Error::Mapping {
                table: None,
                what: "no table is mapped".into(),
                remedy: "say under `tables` which rows the events are of".into(),
            });
        }
        let tables = config.tables.iter().map(|(name, mapping)| Table::new(name, mapping, config.contracts.get(name)));
        let tables = tables.collect::<Result<Vec<_>, _>>()?;
        let meaning = tables.iter().map(|table| (&table.mapping, table.contract.to_json())).collect::<Vec<_>>();
        let meaning = serde_json::to_vec(&meaning).unwrap_or_default();
        let fingerprint = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&meaning));
        let &ServiceConfig { on_bad_record, on_unmatched, ref stream, .. } = config;
        Ok(Self { tables, on_bad_record, on_unmatched, stream: stream.clone(), fingerprint })
    }

    pub(super) fn contracts(&self) -> impl Iterator<Item = &Contract> {
        self.tables.iter().map(|table| &table.contract)
    }

    /// What mappings and contracts are known by.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Makes the tick of its records.
    pub(super) fn tick(&self, state: &State, plan: &Plan, records: &[Taken]) -> Result<Translated, Error> {
        let out = Translated { unknown: vec![0; self.tables.len()], ..Translated::default() };
        let mut making = Making { translator: self, state, plan, changed: HashMap::new(), out };
        for (index, record) in records.iter().enumerate() {
            making.record(index, record)?;
        }
        let Making { changed, mut out, .. } = making;
        let kept_of = |(key, (table, row)): (RowKey, (usize, Option<Row>))| {
            let schema = &self.tables[table].contract.table;
            (key, row.map(|row| kept(schema, &row)))
        };
        out.rows = changed.into_iter().map(kept_of).collect();
        Ok(out)
    }
}

/// A tick that is being made.
struct Making<'a> {
    translator: &'a Translator,
    state: &'a State,
    plan: &'a Plan,
    /// The rows that the tick has touched, with their table, as they are at this point of it.
    changed: HashMap<RowKey, (usize, Option<Row>)>,
    out: Translated,
}

impl Making<'_> {
    fn record(&mut self, index: usize, record: &Taken) -> Result<(), Error> {
        let tables = &self.translator.tables;
        let stops = self.translator.on_bad_record == BadRecordPolicy::Stop;
        let event: Json = match serde_json::from_slice(&record.data) {
            Ok(event) => event,
            Err(error) => {
                let only = (tables.len() == 1).then_some(0);
                let value = shortened(&String::from_utf8_lossy(&record.data));
                let problem = Problem { pointer: String::new(), rule: format!("this is not JSON: {error}"), value };
                return self.refuse(stops, only, (index, record), problem);
            }
        };
        let mut matched = false;
        for (table, known) in tables.iter().enumerate().filter(|(_, known)| known.mapping.when.hold(&event)) {
            matched = true;
            match self.change(table, known, &event)? {
                Ok(Some((op, before, after))) => {
                    let position = Position { operation: operation(op), ..self.position(index) };
                    let (table_schema, commit_time_ms) = (known.contract.table.clone(), self.plan.time_ms);
                    let event = ChangeEvent { table: table_schema, op, before, after, position, commit_time_ms };
                    self.out.made.push(Made::Change { table, event });
                }
                Ok(None) => self.out.unknown[table] += 1,
                Err(problem) => self.refuse(stops, Some(table), (index, record), problem)?,
            }
        }
        match self.translator.on_unmatched {
            _ if matched => {}
            UnmatchedPolicy::Skip => self.out.skipped += 1,
            policy => {
                let value = shortened(&event.to_string());
                let problem = Problem { pointer: String::new(), rule: "no table's `when` is true of it".into(), value };
                self.refuse(policy == UnmatchedPolicy::Stop, None, (index, record), problem)?;
            }
        }
        Ok(())
    }

    /// Records are counted from 1, as SQL Server's seqvals are above zero.
    fn position(&self, index: usize) -> Position {
        let mut seqval = [0; 10];
        seqval[2..].copy_from_slice(&(index as u64 + 1).to_be_bytes());
        Position { commit_lsn: self.plan.tick.lsn(), seqval: Lsn::from_bytes(seqval), ..Position::default() }
    }

    fn refuse(
        &mut self,
        stops: bool,
        table: Option<usize>,
        (index, record): (usize, &Taken),
        problem: Problem,
    ) -> Result<(), Error> {
        if !stops {
            let position = self.position(index);
            self.out.made.push(Made::Letter { table, record: index, position, problem });
            return Ok(());
        }
        let (Taken { shard, sequence, .. }, stream) = (record.clone(), self.translator.stream.clone());
        let table = table.map(|table| self.translator.tables[table].contract.table.name.clone());
        Err(Error::BadRecord(Box::new(BadRecord { table, stream, shard, sequence, problem: problem.to_string() })))
    }

    /// What an event does to its row; none where it deletes one that is not known.
    fn change(&mut self, table: usize, known: &Table, event: &Json) -> Result<Result<Option<Change>, Problem>, Error> {
        let schema = &*known.contract.table;
        let deletes = known.mapping.delete.as_ref().is_some_and(|deletion| deletion.when.hold(event));
        let key = match known.key(event, deletes) {
            Ok(key) => key,
            Err(problem) => return Ok(Err(problem)),
        };
        let place = RowKey::of(schema, &key);
        let last = match self.changed.get(&place) {
            Some((_, row)) => row.clone(),
            None => self.state.row(schema, &place)?,
        };
        if deletes {
            if last.is_some() {
                self.changed.insert(place, (table, None));
            }
            return Ok(Ok(last.map(|last| (Op::Delete, Some(last), None))));
        }
        let row = match known.row(event, last.as_ref()) {
            Ok(row) => row,
            Err(problem) => return Ok(Err(problem)),
        };
        self.changed.insert(place, (table, Some(row.clone())));
        let op = if last.is_some() { Op::Update } else { Op::Create };
        Ok(Ok(Some((op, last, Some(row)))))
    }
}

/// Operation, before, after.
type Change = (Op, Option<Row>, Option<Row>);

/// SQL Server's number of an operation.
const fn operation(op: Op) -> u8 {
    match op {
        Op::Delete => 1,
        Op::Create => 2,
        Op::Update => 4,
        Op::Read | Op::Reread => 0,
    }
}

impl Table {
    fn new(name: &TableName, mapping: &TableMapping, contract: Option<&Contract>) -> Result<Self, Error> {
        let wrong = |what: String, remedy: &str| Error::Mapping { table: Some(name.clone()), what, remedy: remedy.to_owned() };
        let contract = contract.ok_or_else(|| wrong("it has no contract".into(), "write one into the folder of contracts"))?;
        let schema = &contract.table;
        if schema.key.is_empty() {
            return Err(wrong("its contract has no key".into(), "name the columns that tell its rows apart in `x-key`"));
        }
        if let Some(column) = schema.columns.iter().find(|column| column.sql_type == SqlType::SqlVariant) {
            return Err(wrong(format!("column {} is a sql_variant", column.name), "give the column a type"));
        }
        let deleted = mapping.delete.iter().flat_map(|deletion| deletion.key.keys());
        if let Some(column) = mapping.columns.keys().find(|column| schema.column(column).is_none()) {
            return Err(wrong(format!("`columns` names {column}, which its contract does not have"), "use the contract's names"));
        }
        if let Some(column) = deleted.into_iter().find(|column| !schema.key_names().any(|key| key == *column)) {
            return Err(wrong(format!("`delete.key` names {column}, which is not part of its key"), "name columns of `x-key`"));
        }
        if mapping.delete.as_ref().is_some_and(|deletion| deletion.when.is_empty()) {
            return Err(wrong("`delete.when` is empty: every event would delete".into(), "say which events delete"));
        }
        let place = |name: &str| mapping.columns.get(name).cloned().unwrap_or_else(|| mapping.row.member(name));
        let places: Vec<Pointer> = schema.columns.iter().map(|column| place(&column.name)).collect();
        let in_deletion = |name: &str| mapping.delete.as_ref().and_then(|deletion| deletion.key.get(name)).cloned();
        let deleted = schema.key_names().map(|name| in_deletion(name).unwrap_or_else(|| place(name))).collect();
        Ok(Self { contract: contract.clone(), mapping: mapping.clone(), places, deleted })
    }

    /// A row of which only the key is there.
    fn key(&self, event: &Json, deletes: bool) -> Result<Row, Problem> {
        let schema = &self.contract.table;
        let mut row = vec![Value::Null; schema.columns.len()];
        for (part, &column) in schema.key.iter().enumerate() {
            let place = if deletes { &self.deleted[part] } else { &self.places[column] };
            row[column] = self.value(event, place, column)?.unwrap_or(Value::Null);
            if row[column] == Value::Null {
                let rule = format!("{}, part of the key of {}, is not there", schema.columns[column].name, schema.name);
                return Err(Problem { pointer: place.to_string(), rule, value: String::new() });
            }
        }
        Ok(row)
    }

    /// The row that an event leaves, held to the contract.
    fn row(&self, event: &Json, last: Option<&Row>) -> Result<Row, Problem> {
        let mut row = Vec::with_capacity(self.places.len());
        for (column, place) in self.places.iter().enumerate() {
            let stays = || last.filter(|_| self.mapping.merge).map_or(Value::Null, |last| last[column].clone());
            row.push(self.value(event, place, column)?.unwrap_or_else(stays));
        }
        self.contract.check(&row).map_err(|violation| {
            let place = self.contract.table.column(&violation.column).map(|column| self.places[column].to_string());
            let rule = format!("it breaks the contract of {}: {}", self.contract.table.name, violation.rule);
            Problem { pointer: place.unwrap_or_default(), rule, value: violation.value }
        })?;
        Ok(row)
    }

    /// A column's value; none where the event has none.
    fn value(&self, event: &Json, place: &Pointer, column: usize) -> Result<Option<Value>, Problem> {
        let Some(json) = place.find(event) else { return Ok(None) };
        let column = &self.contract.table.columns[column];
        value::read(json, column.sql_type).map(Some).map_err(|expected| {
            let rule = format!("{} of {} is {}: {expected}", column.name, self.contract.table.name, column.sql_type);
            Problem { pointer: place.to_string(), rule, value: shortened(&json.to_string()) }
        })
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
