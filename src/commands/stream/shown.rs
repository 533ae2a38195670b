//! Records as people and programs read them: one line each.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use schemas::change::EntityKey;
use schemas::event::Op;
use schemas::parse::Head;
use schemas::progress::{Phase, ProgressRecord};
use schemas::table::TableSchema;
use schemas::{Lsn, TableName};
use serde_json::{Map, Value as Json, json};

/// Characters of a value that a line for people shows.
const VALUE_CHARACTERS: usize = 100;

/// A change event, decoded.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) op: Op,
    pub(super) table: TableName,
    pub(super) commit_lsn: Lsn,
    pub(super) commit_time_ms: i64,
    /// As Debezium's envelope.
    pub(super) json: Json,
}

impl Event {
    pub(super) fn decode(data: &[u8]) -> anyhow::Result<Self> {
        let head = Head::read(data)?;
        Ok(Self {
            op: head.op,
            table: TableName::new(&*head.schema, &*head.table),
            commit_lsn: head.position.commit_lsn,
            commit_time_ms: head.commit_time_ms,
            json: serde_json::from_slice(data)?,
        })
    }

    fn row(&self, name: &str) -> Option<&Map<String, Json>> {
        // The wrapper that Kafka Connect's JSON converter puts around an event.
        let envelope = self.json.get("payload").unwrap_or(&self.json);
        envelope.get(name).and_then(Json::as_object)
    }

    /// The text of its row's key; of a table without a key, none.
    pub(super) fn key(&self, table: &TableSchema) -> Option<EntityKey> {
        self.row("after").or_else(|| self.row("before")).and_then(|row| key(table, row))
    }

    /// Whether its row has, or had, this key.
    pub(super) fn has_key(&self, table: &TableSchema, wanted: &EntityKey) -> bool {
        let images = ["before", "after"].into_iter().filter_map(|name| self.row(name));
        images.filter_map(|row| key(table, row)).any(|key| key == *wanted)
    }

    /// What a line for people says after the table: what happened, to which row, and the columns that changed.
    fn told(&self, table: Option<&TableSchema>) -> String {
        let op = match self.op {
            Op::Create => "create",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Read => "read",
            Op::Reread => "reread",
        };
        let key = table.and_then(|table| self.key(table)).map_or_else(|| "-".to_owned(), |key| key.to_string());
        let what = match (self.row("before"), self.row("after")) {
            (Some(before), Some(after)) => changed(before, after),
            (before, after) => after.or(before).map_or_else(String::new, columns),
        };
        format!("{op:<6}  {key}  {what}")
    }

    pub(super) fn line(&self, table: Option<&TableSchema>) -> String {
        format!("{}  {}  {}  {}", time(self.commit_time_ms), self.commit_lsn, self.table, self.told(table))
    }
}

/// The text of a row's key: a string's characters, a number's digits.
fn key(table: &TableSchema, row: &Map<String, Json>) -> Option<EntityKey> {
    if table.key.is_empty() {
        return None;
    }
    let part = |&index: &usize| match row.get(&table.columns[index].name)? {
        Json::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    };
    table.key.iter().map(part).collect::<Option<Vec<String>>>().map(EntityKey::from_parts)
}

fn columns(row: &Map<String, Json>) -> String {
    row.iter().map(|(name, value)| format!("{name} {}", short(value))).collect::<Vec<_>>().join(", ")
}

fn changed(before: &Map<String, Json>, after: &Map<String, Json>) -> String {
    let changed = after.iter().filter(|(name, value)| before.get(*name) != Some(*value));
    let parts = changed.map(|(name, value)| {
        let before = before.get(name).map_or_else(|| "(none)".to_owned(), short);
        format!("{name} {before} → {}", short(value))
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn short(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A time as RFC 3339, to the millisecond.
fn time(milliseconds: i64) -> String {
    match Timestamp::from_millisecond(milliseconds) {
        Ok(time) if milliseconds != 0 => format!("{time:.3}"),
        _ => "-".to_owned(),
    }
}

/// A progress record, for people.
pub(super) fn progress(record: &ProgressRecord) -> String {
    let phase = match record.phase {
        Phase::Snapshot => format!("snapshot at {}", record.from_lsn),
        Phase::SnapshotComplete { consistent_from } => format!("snapshot complete, consistent from {consistent_from}"),
        Phase::Tail => format!("({}, {}]", record.from_lsn, record.to_lsn),
    };
    let mut parts = vec![format!("{phase}, epoch {}", record.epoch)];
    for (what, counts) in
        [("", &record.counts), ("dead-lettered ", &record.dead_lettered), ("read again ", &record.reread_counts)]
    {
        parts.extend(counts.iter().map(|(table, count)| format!("{what}{table} {count}")));
    }
    parts.extend(
        record
            .rereads
            .iter()
            .filter(|(_, reread)| !reread.finished)
            .map(|(table, reread)| format!("{table} is being read again (generation {})", reread.generation)),
    );
    format!("{}  {}  progress  {}", time(record.commit_time_ms), record.to_lsn, parts.join(", "))
}

/// A dead letter as the importer writes it, for people; none where it is not one.
pub(super) fn dead_letter(letter: &Json) -> Option<String> {
    let (position, reason) = (&letter["position"], &letter["reason"]);
    let table = letter["table"].as_str()?;
    let lsn = position["commit_lsn"].as_str()?;
    let event = Event::decode(letter["event"].to_string().as_bytes()).ok();
    let when = event.as_ref().map_or(0, |event| event.commit_time_ms);
    let reason = format!(
        "{}: {}{}",
        reason["column"].as_str().unwrap_or_default(),
        reason["rule"].as_str().unwrap_or_default(),
        match reason["value"].as_str() {
            Some("") | None => String::new(),
            Some(value) => format!(", and it is {}", short(&json!(value))),
        }
    );
    let event = event.map_or_else(String::new, |event| format!("; {}", event.told(None)));
    Some(format!("{}  {lsn}  {table}  dead letter  {reason}{event}", time(when)))
}

/// A record's bytes on one line: as they are where they are text of one line, else base64.
pub(super) fn raw(data: &[u8]) -> String {
    match std::str::from_utf8(data) {
        Ok(text) if !text.contains(['\n', '\r']) => text.to_owned(),
        _ => BASE64_STANDARD.encode(data),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::table::{Column, SqlType};

    use super::*;

    fn table() -> TableSchema {
        let column = |name: &str| Column { name: name.into(), sql_type: SqlType::NText, nullable: true, case_insensitive: false };
        TableSchema {
            name: TableName::new("dbo", "orders"),
            columns: ["id", "line", "status"].map(column).to_vec(),
            key: vec![0, 1],
        }
    }

    fn event(op: &str, before: &Json, after: &Json) -> Json {
        json!({
            "op": op, "before": before, "after": after,
            "source": {"schema": "dbo", "table": "orders", "commit_lsn": "00000027:00000ac0:0004", "change_lsn": "00000027:00000ac0:0002",
                       "ts_ms": 1_767_225_600_123_i64},
        })
    }

    fn decoded(json: &Json) -> Event {
        Event::decode(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_update_shows_what_changed_and_a_row_what_it_is() {
        let row = |status: &str| json!({"id": 7, "line": "a,b", "status": status});
        let update = event("u", &row("NEW"), &row("PAID"));
        let expected = "2026-01-01T00:00:00.123Z  00000027:00000ac0:0004  dbo.orders  update  7,a%2Cb  status \"NEW\" → \"PAID\"";
        assert_eq!(decoded(&update).line(Some(&table())), expected);
        assert_eq!(decoded(&json!({"schema": null, "payload": update})).line(Some(&table())), expected);
        let delete = decoded(&event("d", &row("PAID"), &Json::Null));
        assert!(delete.line(None).ends_with("delete  -  id 7, line \"a,b\", status \"PAID\""), "{}", delete.line(None));
        let (right, wrong) = (EntityKey::from_text("7,a%2Cb"), EntityKey::from_text("7,b"));
        assert_eq!((delete.has_key(&table(), &right), delete.has_key(&table(), &wrong)), (true, false));
        let long = decoded(&event("c", &Json::Null, &row(&"ü".repeat(500)))).line(Some(&table()));
        assert!(long.ends_with(&format!("status \"{}…", "ü".repeat(99))), "{long}");
        assert!(Event::decode(b"{}").is_err() && Event::decode(&[0xc3, 1]).is_err());
    }

    #[test]
    fn a_dead_letter_shows_its_reason() {
        let letter = json!({
            "source": "shop", "epoch": 1, "table": "dbo.orders", "position": {"commit_lsn": "00000027:00000ac0:0004"},
            "reason": {"column": "status", "rule": "at most 3 characters", "value": "\"PAID\""},
            "event": event("c", &Json::Null, &json!({"id": 7})),
        });
        let expected = "2026-01-01T00:00:00.123Z  00000027:00000ac0:0004  dbo.orders  dead letter  status: at most 3 characters, and it is \"\\\"PAID\\\"\"; create  -  id 7";
        assert_eq!(dead_letter(&letter).unwrap(), expected);
        assert_eq!(dead_letter(&json!({"x": 1})), None);
    }

    #[test]
    fn raw_lines_are_lines() {
        assert_eq!(raw(b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(raw(b"a\nb"), "YQpi");
        assert_eq!(raw(&[0xff, 0x00]), "/wA=");
    }
}
