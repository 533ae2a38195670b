//! The default encoding of change events: JSON in Debezium's envelope, which Flink, Materialize, RisingWave and Kafka tools read as it is.
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
//! both have op `r`, a `commit_lsn` that says from where the tail follows, and a null `change_lsn`.

use std::io::Write;

use crate::event::{ChangeEvent, Op, Row};
use crate::table::TableSchema;
use crate::value::write_string;

/// Writes the events of one source.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// `"name":…,"db":…` parts, escaped once.
    source: String,
    database: String,
}

impl Encoder {
    /// `source` is the source's name in the configuration, `database` its database.
    pub fn new(source: &str, database: &str) -> Self {
        Self { source: quoted(source), database: quoted(database) }
    }

    /// Appends the event as JSON, without a line end.
    pub fn encode(&self, event: &ChangeEvent, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, so the results of `write!` are of no interest.
        let position = &event.position;
        let read = event.op.is_read();
        let snapshot = match event.op {
            Op::Read => "true",
            Op::Reread => "incremental",
            Op::Create | Op::Update | Op::Delete => "false",
        };
        let _ = write!(
            out,
            r#"{{"op":"{}","source":{{"version":"{}","connector":"sqlserver","name":{},"ts_ms":{},"snapshot":"{}","db":{},"schema":"#,
            event.op.letter(),
            env!("CARGO_PKG_VERSION"),
            self.source,
            event.commit_time_ms,
            snapshot,
            self.database,
        );
        write_string(out, &event.table.name.schema);
        out.extend_from_slice(b",\"table\":");
        write_string(out, &event.table.name.table);
        let _ = write!(out, r#","commit_lsn":"{}","change_lsn":"#, position.commit_lsn);
        if read {
            out.extend_from_slice(b"null");
        } else {
            let _ = write!(out, r#""{}""#, position.seqval);
        }
        let serial = if event.op == Op::Update { 2 } else { 1 };
        let _ = write!(out, r#","command_id":{},"event_serial_no":{serial}}},"before":"#, position.command_id);
        write_row(out, &event.table, event.before.as_ref());
        out.extend_from_slice(b",\"after\":");
        write_row(out, &event.table, event.after.as_ref());
        let _ = write!(out, r#","ts_ms":{},"transaction":"#, event.commit_time_ms);
        if read {
            out.extend_from_slice(b"null}");
        } else {
            let _ = write!(out, r#"{{"id":"{}"}}}}"#, position.commit_lsn);
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

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    write_string(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

fn write_row(out: &mut Vec<u8>, table: &TableSchema, row: Option<&Row>) {
    let Some(row) = row else { return out.extend_from_slice(b"null") };
    out.push(b'{');
    for (index, (column, value)) in table.columns.iter().zip(row).enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(out, &column.name);
        out.push(b':');
        value.write_json(out);
    }
    out.push(b'}');
}
