#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::TableName;
use crate::envelope::Encoder;
use crate::event::ChangeEvent;
use crate::table::{Column, SqlType};
use crate::value::Value;

fn table() -> Arc<TableSchema> {
    let column = |name: &str| Column { name: name.into(), sql_type: SqlType::NText, nullable: true, case_insensitive: false };
    Arc::new(TableSchema {
        name: TableName::new("dbo", "orders"),
        columns: vec![column("id"), column("a \"b\""), column("c"), column("d")],
        key: vec![0],
    })
}

fn event(op: Op, before: Option<Vec<Value>>, after: Option<Vec<Value>>) -> ChangeEvent {
    let operation = match op {
        Op::Delete => 1,
        Op::Create => 2,
        Op::Update => 4,
        Op::Read | Op::Reread => 0,
    };
    let seqval = if op.is_read() { Lsn::ZERO } else { Lsn::from_bytes([2; 10]) };
    let command_id = match op {
        Op::Read => 0,
        Op::Reread => 7,
        _ => -3,
    };
    let position = Position { commit_lsn: Lsn::from_bytes([1; 10]), command_id, seqval, operation };
    ChangeEvent { table: table(), op, before, after, position, commit_time_ms: 17 }
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::Int),
        any::<bool>().prop_map(Value::Bool),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::Float),
        ".{0,20}".prop_map(Value::Text),
        any::<String>().prop_map(Value::Text),
    ];
    prop::collection::vec(value, 4)
}

fn check(event: &ChangeEvent, text: &[u8]) {
    let head = Head::read(text).unwrap();
    assert_eq!((head.op, head.schema.as_ref(), head.table.as_ref()), (event.op, "dbo", "orders"));
    assert_eq!((head.position, head.commit_time_ms), (event.position, 17));
    let mut buffer = RowBuffer::default();
    let (before, after) = head.rows(&Columns::new(&event.table, &[1, 3, 0]), &mut buffer).unwrap();
    for (view, row) in [(before, &event.before), (after, &event.after)] {
        assert_eq!(view.present, row.is_some());
        if let Some(row) = row {
            let read: Vec<Json> = view.values().map(|slice| serde_json::from_slice(slice).unwrap()).collect();
            assert_eq!(read, [row[1].to_json(), row[3].to_json(), row[0].to_json()]);
        }
    }
}

/// The same event with its members in another order, wrapped, and spread over lines.
fn shuffled(text: &[u8], seed: usize, wrapped: bool) -> Vec<u8> {
    let Json::Object(members) = serde_json::from_slice(text).unwrap() else { unreachable!() };
    let mut pairs: Vec<_> = members.into_iter().collect();
    let len = pairs.len();
    pairs.rotate_left(seed % len);
    if seed.is_multiple_of(2) {
        pairs.reverse();
    }
    let mut event = Json::Object(pairs.into_iter().collect());
    if wrapped {
        event = json!({"schema": {"type": "struct", "fields": [1, {"source": {}}]}, "payload": event});
    }
    serde_json::to_vec_pretty(&event).unwrap()
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::Bool),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        any::<String>().prop_map(Json::String),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::Array),
            prop::collection::vec((any::<String>(), inner), 0..6).prop_map(|pairs| Json::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn our_own_events_read_back(mut before in values(), after in values(), same: [bool; 4], which in 0..5, seed in 0..20usize) {
        // Mostly an update leaves columns as they were.
        (0..4).filter(|&column| same[column]).for_each(|column| before[column] = after[column].clone());
        let event = match which {
            0 => event(Op::Create, None, Some(after)),
            1 => event(Op::Update, Some(before), Some(after)),
            2 => event(Op::Delete, Some(before), None),
            3 => event(Op::Read, None, Some(after)),
            _ => event(Op::Reread, None, Some(after)),
        };
        let mut text = Vec::new();
        Encoder::new("shop", "db").encode(&event, &mut text);
        prop_assert!(own::head(std::str::from_utf8(&text).unwrap()).is_some(), "{}", String::from_utf8_lossy(&text));
        check(&event, &text);
        check(&event, &shuffled(&text, seed, false));
    }

    #[test]
    fn accepts_and_refuses_as_serde_json_does(value in any_json(), at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(), pretty: bool) {
        let mut text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        prop_assert_eq!(validate(std::str::from_utf8(&text).unwrap()), Ok(()));
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(text) = std::str::from_utf8(&text) {
            prop_assert_eq!(validate(text).is_ok(), serde_json::from_str::<Json>(text).is_ok(), "{}", text);
        }
        text.truncate(cut.index(text.len()));
        if let Ok(text) = std::str::from_utf8(&text) {
            prop_assert_eq!(validate(text).is_ok(), serde_json::from_str::<Json>(text).is_ok(), "{}", text);
        }
    }

    #[test]
    fn fragments_of_json_are_judged_as_serde_json_does(text in r#"[ \[\]{},:"\\u0-9a-fdD8eE+.tru-]{0,24}"#) {
        prop_assert_eq!(validate(&text).is_ok(), serde_json::from_str::<Json>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn members_are_those_of_serde_json(object in any_json(), text in r#"[ {},:"\\\\u0-9a]{0,16}"#) {
        for text in [object.to_string(), text] {
            let mut found = Vec::new();
            let read = members(&text, |name, value| found.push((name.into_owned(), serde_json::from_str::<Json>(value).unwrap())));
            let expected = serde_json::from_str::<serde_json::Map<String, Json>>(&text);
            prop_assert_eq!(read.is_ok(), expected.is_ok(), "{}", text);
            if let Ok(expected) = expected {
                prop_assert_eq!(found.into_iter().collect::<serde_json::Map<String, Json>>(), expected);
            }
        }
    }

    #[test]
    fn numbers_are_judged_as_serde_json_does(text in r"-?[0-9]{0,3}(\.[0-9]{0,3})?([eE][+-]?[0-9]{0,4})?") {
        prop_assert_eq!(validate(&text).is_ok(), serde_json::from_str::<Json>(&text).is_ok(), "{}", text);
    }

    #[test]
    fn a_damaged_event_is_refused_or_read_but_never_panics(row in values(), update: bool, at in any::<prop::sample::Index>(), byte: u8) {
        let mut text = Vec::new();
        let event = if update { event(Op::Update, Some(row.clone()), Some(row)) } else { event(Op::Create, None, Some(row)) };
        Encoder::new("shop", "db").encode(&event, &mut text);
        let at = at.index(text.len());
        text[at] = byte;
        let whole = serde_json::from_slice::<Json>(&text);
        // What reads our own events by their looks comes to the same as what reads any.
        if let Ok(text) = std::str::from_utf8(&text)
            && let Some(own) = own::head(text)
        {
            let mut any = Partial::default();
            prop_assert_eq!(envelope(&mut Scanner::new(text, 0), &mut any, 0), Ok(()));
            prop_assert_eq!(own, any);
        }
        let mut buffer = RowBuffer::default();
        if let Ok(head) = Head::read(&text) {
            let rows = head.rows(&Columns::new(&table(), &[0, 1, 2, 3]), &mut buffer);
            if let Ok((before, after)) = rows {
                let whole = whole.unwrap();
                for (view, row) in [(before, &whole["before"]), (after, &whole["after"])] {
                    prop_assert_eq!(view.present, row.is_object());
                    for (slot, column) in table().columns.iter().enumerate() {
                        let read = Some(view.get(slot)).filter(|value| !value.is_empty());
                        let read = read.map(|value| serde_json::from_slice::<Json>(value).unwrap());
                        prop_assert_eq!(read.as_ref(), row.get(&column.name));
                    }
                }
            }
        }
        if let Err(ParseError::Syntax { offset, .. }) = Head::read(&text) {
            prop_assert!(offset <= text.len());
        }
    }
}

#[test]
fn the_wrapper_of_debezium_is_seen_through() {
    let event = event(Op::Update, Some(vec![Value::Int(1); 4]), Some(vec![Value::Int(2); 4]));
    let mut text = Vec::new();
    Encoder::new("shop", "db").encode(&event, &mut text);
    for seed in 0..8 {
        check(&event, &shuffled(&text, seed, true));
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let read = |text: &str| Head::read(text.as_bytes()).unwrap_err().to_string();
    assert!(read("{}").contains("`op`"));
    assert!(read(r#"{"op":"x"}"#).contains("c, u, d or r"));
    assert!(read(r#"{"op":"c","source":{"commit_lsn":"zz"}}"#).contains("00000027"));
    assert!(read(r#"{"op":"c","source":{"commit_lsn":null}}"#).contains("source.commit_lsn"));
    assert_eq!(read(r#"{"op":"c",}"#), "malformed JSON at byte 10: expected a string");
    assert!(Head::read(b"{\"op\":\"\xff\"}").unwrap_err().to_string().contains("byte 7"));
}

#[test]
fn nesting_is_bounded_as_in_serde_json() {
    for depth in [126, 127, 128, 129, 100_000] {
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(validate(&text).is_ok(), serde_json::from_str::<Json>(&text).is_ok(), "{depth}");
    }
}
