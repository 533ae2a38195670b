//! The default encoding of change events ([`crate::encoding`] has the others): JSON in Debezium's envelope, which Flink, Materialize, RisingWave and Kafka tools read as it is.
//!
//! ```json
//! {"op":"u",
//!  "source":{"version":"0.1.0","connector":"sqlserver","name":"shop","ts_ms":1718000000000,"snapshot":"false","db":"shop","schema":"dbo",
//!            "table":"orders","commit_lsn":"00000027:00000ac0:0004","change_lsn":"00000027:00000ac0:0002","command_id":1,"event_serial_no":2},
//!  "before":{…},"after":{…},"ts_ms":1718000000000,"transaction":{"id":"00000027:00000ac0:0004"}}
//! ```
//! The members before `before` come first and in this order, so that a reader can tell a duplicate before it looks at the rows; a reader accepts
//! any order. `event_serial_no` is 2 for an update and 1 otherwise, as Debezium numbers the images of a change; `command_id` is ours, because it is part of
//! the total order. A snapshot row has `"snapshot":"true"`, one that is read again beside the tail `"snapshot":"incremental"`;
//! both have op `r`, a `commit_lsn` that says from where the tail follows, and a null `change_lsn`. The `command_id` of the latter says who has read it ([`crate::progress::Reread`]).

use std::sync::Arc;

use crate::event::{ChangeEvent, Op, Row};
use crate::json::{write_integer, write_lsn, write_string};
use crate::lsn::Position;
use crate::parse::{Columns, Head, RowView};
use crate::table::TableSchema;

/// Writes the events of one source.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// From `"source":` to the value of `ts_ms`.
    source: Vec<u8>,
    /// From the end of the value of `snapshot` to the value of `schema`.
    database: Vec<u8>,
    /// What is the same in every event of a table, by table: made when its first event is written.
    tables: Vec<TableText>,
    /// The table of the last event: the next one mostly is of the same.
    last: usize,
}

/// The parts of an event that its table alone determines.
#[derive(Debug, Clone)]
struct TableText {
    table: Arc<TableSchema>,
    /// From the end of the value of `snapshot` to the value of `commit_lsn`.
    source: Vec<u8>,
    /// Each column's name with what stands before it and its colon: `{"id":`, `,"status":`.
    names: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl Encoder {
    /// `source` is the source's name in the configuration, `database` its database.
    pub fn new(source: &str, database: &str) -> Self {
        let mut text =
            concat!(r#"","source":{"version":""#, env!("CARGO_PKG_VERSION"), r#"","connector":"sqlserver","name":"#).into();
        write_string(&mut text, source);
        text.extend_from_slice(br#","ts_ms":"#);
        let mut database_text = br#"","db":"#.to_vec();
        write_string(&mut database_text, database);
        database_text.extend_from_slice(br#","schema":"#);
        Self { source: text, database: database_text, tables: Vec::new(), last: 0 }
    }

    /// The place of a table's text among `tables`. A table whose schema has changed replaces itself.
    fn table(&mut self, table: &Arc<TableSchema>) -> usize {
        let same = |known: &TableText| Arc::ptr_eq(&known.table, table);
        if self.tables.get(self.last).is_some_and(same) {
            return self.last;
        }
        self.last = self.tables.iter().position(same).unwrap_or_else(|| {
            let text = TableText::new(&self.database, table);
            match self.tables.iter().position(|known| known.table.name == table.name) {
                Some(place) => {
                    self.tables[place] = text;
                    place
                }
                None => {
                    self.tables.push(text);
                    self.tables.len() - 1
                }
            }
        });
        self.last
    }

    /// Appends the event as JSON, without a line end.
    pub fn encode(&mut self, event: &ChangeEvent, out: &mut Vec<u8>) {
        let table = self.table(&event.table);
        let table = &self.tables[table];
        let stated = (event.op, &event.position, event.commit_time_ms);
        self.write(
            &table.source,
            stated,
            out,
            |out| table.write_row(out, event.before.as_ref()),
            |out| table.write_row(out, event.after.as_ref()),
        );
    }

    fn write(
        &self,
        table_source: &[u8],
        (op, position, commit_time_ms): (Op, &Position, i64),
        out: &mut Vec<u8>,
        before: impl FnOnce(&mut Vec<u8>),
        after: impl FnOnce(&mut Vec<u8>),
    ) {
        let read = op.is_read();
        let snapshot: &[u8] = match op {
            Op::Read => b"true",
            Op::Reread => b"incremental",
            Op::Create | Op::Update | Op::Delete => b"false",
        };
        out.extend_from_slice(br#"{"op":""#);
        out.push(op.letter() as u8);
        out.extend_from_slice(&self.source);
        write_integer(out, commit_time_ms);
        out.extend_from_slice(br#","snapshot":""#);
        out.extend_from_slice(snapshot);
        out.extend_from_slice(table_source);
        write_lsn(out, position.commit_lsn);
        if read {
            out.extend_from_slice(br#"","change_lsn":null,"command_id":"#);
        } else {
            out.extend_from_slice(br#"","change_lsn":""#);
            write_lsn(out, position.seqval);
            out.extend_from_slice(br#"","command_id":"#);
        }
        write_integer(out, position.command_id);
        let serial: &[u8] = if op == Op::Update { b"2" } else { b"1" };
        out.extend_from_slice(br#","event_serial_no":"#);
        out.extend_from_slice(serial);
        out.extend_from_slice(br#"},"before":"#);
        before(out);
        out.extend_from_slice(br#","after":"#);
        after(out);
        out.extend_from_slice(br#","ts_ms":"#);
        write_integer(out, commit_time_ms);
        if read {
            out.extend_from_slice(br#","transaction":null}"#);
        } else {
            out.extend_from_slice(br#","transaction":{"id":""#);
            write_lsn(out, position.commit_lsn);
            out.extend_from_slice(br#""}}"#);
        }
    }

    /// Appends the values of the event's key as a JSON array: the partition key where a stream is partitioned by the row's own key. An event of a
    /// table without a key has its whole row for a key.
    pub fn encode_key(&self, event: &ChangeEvent, out: &mut Vec<u8>) {
        let Some(row) = event.row() else { return out.extend_from_slice(b"[]") };
        out.push(b'[');
        let all: Vec<usize>;
        let key = if event.table.key.is_empty() {
            all = (0..row.len()).collect();
            &all
        } else {
            &event.table.key
        };
        for (position, &index) in key.iter().enumerate() {
            if position > 0 {
                out.push(b',');
            }
            row[index].write_json(out);
        }
        out.push(b']');
    }
}

impl TableText {
    fn new(database: &[u8], table: &Arc<TableSchema>) -> Self {
        let source = table_source(database, &table.name.schema, &table.name.table);
        let (mut names, mut ends) = (Vec::new(), Vec::new());
        for (index, column) in table.columns.iter().enumerate() {
            names.push(if index == 0 { b'{' } else { b',' });
            write_string(&mut names, &column.name);
            names.push(b':');
            ends.push(names.len());
        }
        Self { table: table.clone(), source, names, ends }
    }

    fn write_row(&self, out: &mut Vec<u8>, row: Option<&Row>) {
        let Some(row) = row else { return out.extend_from_slice(b"null") };
        if self.ends.is_empty() {
            out.push(b'{');
        }
        let mut start = 0;
        for (&end, value) in self.ends.iter().zip(row) {
            out.extend_from_slice(&self.names[start..end]);
            value.write_json(out);
            start = end;
        }
        out.push(b'}');
    }
}

/// From the end of the value of `snapshot` to the value of `commit_lsn`.
fn table_source(database: &[u8], schema: &str, table: &str) -> Vec<u8> {
    let mut source = database.to_vec();
    write_string(&mut source, schema);
    source.extend_from_slice(br#","table":"#);
    write_string(&mut source, table);
    source.extend_from_slice(br#","commit_lsn":""#);
    source
}

/// Appends an event that was read in another encoding, all its columns, as the encoder of its source and database would.
pub(crate) fn write_fragments(
    head: &Head<'_>,
    (source, database): (&str, &str),
    columns: &Columns,
    (before, after): (RowView<'_>, RowView<'_>),
    out: &mut Vec<u8>,
) {
    let encoder = Encoder::new(source, database);
    let table = table_source(&encoder.database, &head.schema, &head.table);
    let row = |out: &mut Vec<u8>, row: RowView<'_>| {
        if !row.present {
            return out.extend_from_slice(b"null");
        }
        out.push(b'{');
        for (index, (name, value)) in columns.names().zip(row.values()).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_string(out, name);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
    };
    let stated = (head.op, &head.position, head.commit_time_ms);
    encoder.write(&table, stated, out, |out| row(out, before), |out| row(out, after));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::table::{Column, SqlType, TableName};
    use crate::value::Value;
    use crate::{Lsn, Position};

    fn table(schema: &str, name: &str, columns: &[String]) -> Arc<TableSchema> {
        let column =
            |name: &String| Column { name: name.clone(), sql_type: SqlType::NText, nullable: true, case_insensitive: false };
        Arc::new(TableSchema { name: TableName::new(schema, name), columns: columns.iter().map(column).collect(), key: vec![] })
    }

    fn expected(source: &str, database: &str, event: &ChangeEvent) -> Json {
        let row = |row: &Option<Row>| {
            let columns = event.table.columns.iter().map(|column| column.name.clone());
            row.as_ref().map(|row| columns.zip(row.iter().map(Value::to_json)).collect::<serde_json::Map<_, _>>())
        };
        let read = event.op.is_read();
        json!({
            "op": event.op.letter(),
            "source": {
                "version": env!("CARGO_PKG_VERSION"), "connector": "sqlserver", "name": source, "ts_ms": event.commit_time_ms,
                "snapshot": match event.op { Op::Read => "true", Op::Reread => "incremental", _ => "false" },
                "db": database, "schema": event.table.name.schema, "table": event.table.name.table,
                "commit_lsn": event.position.commit_lsn, "change_lsn": (!read).then_some(event.position.seqval),
                "command_id": event.position.command_id, "event_serial_no": if event.op == Op::Update { 2 } else { 1 },
            },
            "before": row(&event.before),
            "after": row(&event.after),
            "ts_ms": event.commit_time_ms,
            "transaction": (!read).then(|| json!({"id": event.position.commit_lsn})),
        })
    }

    fn values() -> impl Strategy<Value = Row> {
        let value = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::Int),
            any::<String>().prop_map(Value::Text),
            Just(Value::Unavailable)
        ];
        prop::collection::vec(value, 3)
    }

    proptest! {
        /// Names and values of any characters, in the order of the documentation, as serde_json reads them; tables in turn, and one whose columns change.
        #[test]
        fn an_event_is_its_json(
            names: [String; 4], columns in prop::collection::hash_set(any::<String>(), 3), before in values(), after in values(),
            lsns: [[u8; 10]; 2], command_id: i32, commit_time_ms: i64,
        ) {
            let [source, database, schema, name] = names;
            let columns: Vec<String> = columns.into_iter().collect();
            let mut encoder = Encoder::new(&source, &database);
            let tables = [table(&schema, &name, &columns), table(&name, &schema, &columns[..2]), table(&schema, &name, &columns[1..])];
            for table in [0, 1, 0, 2, 1].map(|index: usize| tables[index].clone()) {
                for op in [Op::Create, Op::Update, Op::Delete, Op::Read, Op::Reread] {
                    let cut = |row: &Row| Some(row[..table.columns.len()].to_vec());
                    let event = ChangeEvent {
                        op,
                        before: if matches!(op, Op::Update | Op::Delete) { cut(&before) } else { None },
                        after: if op == Op::Delete { None } else { cut(&after) },
                        position: Position { commit_lsn: Lsn::from_bytes(lsns[0]), command_id, seqval: Lsn::from_bytes(lsns[1]), operation: 0 },
                        commit_time_ms,
                        table: table.clone(),
                    };
                    let mut text = Vec::new();
                    encoder.encode(&event, &mut text);
                    prop_assert_eq!(String::from_utf8(text).unwrap(), expected(&source, &database, &event).to_string());
                }
            }
            prop_assert_eq!(encoder.tables.len(), if schema == name { 1 } else { 2 });
        }
    }
}
