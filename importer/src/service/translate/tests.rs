#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use serde_json::json;

use super::super::state::{Progress, Tick};
use super::*;

/// A table's contract: each column with its type and whether it may be NULL, the first column being the key.
fn contract(name: &str, columns: &[(&str, &str, bool)]) -> Contract {
    let property = |(name, sql_type, nullable): &(&str, &str, bool)| {
        let json_type = match *sql_type {
            "int" => "integer",
            "bit" => "boolean",
            _ => "string",
        };
        let types = if *nullable { json!([json_type, "null"]) } else { json!(json_type) };
        ((*name).to_owned(), json!({"type": types, "x-sql-type": sql_type}))
    };
    let properties: serde_json::Map<String, Json> = columns.iter().map(property).collect();
    let text = json!({"x-table": name, "x-key": [columns[0].0], "type": "object", "properties": properties}).to_string();
    Contract::parse(name, &text).unwrap()
}

fn config(mapping: Json) -> ServiceConfig {
    let mut config = ServiceConfig::new("shop", "payments", "unused");
    config.tables = serde_json::from_value(mapping).unwrap();
    let payments =
        [("id", "int", false), ("order_id", "int", false), ("amount", "decimal(10,2)", true), ("note", "nvarchar(5)", true)];
    let customers = [("id", "nvarchar(10)", false), ("vip", "bit", true)];
    for contract in [contract("shop.payments", &payments), contract("shop.customers", &customers)] {
        config.contracts.insert(contract.table.name.clone(), contract);
    }
    config
}

/// Ticks over one state.
struct Run {
    _directory: tempfile::TempDir,
    state: std::sync::Arc<State>,
    translator: Translator,
    progress: Progress,
}

impl Run {
    fn new(config: &ServiceConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (state, _) = State::open(directory.path(), "shop", &config.stream).unwrap();
        let progress = Progress::new("shop", &config.stream, Tick(1));
        Self { _directory: directory, state, translator: Translator::new(config).unwrap(), progress }
    }

    fn make(&self, records: &[&str]) -> Result<Translated, Error> {
        let taken = (1..).zip(records).map(|(number, data): (u64, _)| Taken {
            shard: ShardId("shard-0000".into()),
            sequence: number.into(),
            data: Bytes::from((*data).to_owned()),
        });
        let plan = Plan { tick: self.progress.tick.next(), time_ms: 5, to: Vec::new(), mapping: String::new() };
        self.translator.tick(&self.state, &plan, &taken.collect::<Vec<_>>())
    }

    /// A tick that is done: what it made, in short.
    fn tick(&mut self, records: &[&str]) -> Vec<String> {
        let made = self.make(records).unwrap();
        self.progress.tick = self.progress.tick.next();
        self.state.done(&made.rows, &self.progress).unwrap();
        self.told(&made)
    }

    fn told(&self, translated: &Translated) -> Vec<String> {
        let row = |row: &Option<Row>| {
            row.as_ref().map_or("-".to_owned(), |row| Json::from_iter(row.iter().map(Value::to_json)).to_string())
        };
        let told = |made: &Made| match made {
            Made::Change { table, event } => {
                assert_eq!(event.table.name, self.translator.tables[*table].contract.table.name);
                let (name, op) = (&event.table.name.table, event.op.letter());
                format!("{op} {name} {} {}", row(&event.before), row(&event.after))
            }
            Made::Letter { table, problem, .. } => {
                format!("{} {problem}", table.map_or("-", |table| &self.translator.tables[table].contract.table.name.table))
            }
        };
        translated.made.iter().map(told).collect()
    }
}

const PLAIN: &str = r#"{"shop.payments": {"delete": {"when": {"/deleted": true}}}}"#;

fn parsed(text: &str) -> Json {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_row_is_what_its_last_event_made_of_it() {
    let mut run = Run::new(&config(parsed(PLAIN)));
    let first = r#"{"id": 1, "order_id": 7, "amount": 12.5, "more": {"a": []}}"#;
    let moved = r#"{"id": "1", "order_id": 8, "amount": "13", "note": "x"}"#;
    assert_eq!(
        run.tick(&[first, moved]),
        [r#"c payments - [1,7,"12.50",null]"#, r#"u payments [1,7,"12.50",null] [1,8,"13.00","x"]"#]
    );
    // In another tick, the row before comes from the state.
    let deleted = r#"{"id": 1, "deleted": true}"#;
    let made = run.make(&[deleted, deleted, first]).unwrap();
    assert_eq!(run.told(&made), [r#"d payments [1,8,"13.00","x"] -"#, r#"c payments - [1,7,"12.50",null]"#]);
    assert_eq!(made.unknown, [1]);
    let positions = made.made.iter().map(|made| match made {
        Made::Change { event, .. } => (event.position.seqval.as_bytes()[9], event.position.operation, event.position.commit_lsn),
        Made::Letter { .. } => panic!("no letter is due"),
    });
    assert_eq!(positions.collect::<Vec<_>>(), [(1, 1, Tick(3).lsn()), (3, 2, Tick(3).lsn())]);
}

#[test]
fn events_are_mapped_by_type_and_place_and_may_be_of_several_tables() {
    let mapping = json!({
        "shop.payments": {
            "when": {"/type": ["paid", "repaid", "voided"]}, "row": "/payment", "columns": {"order_id": "/order~1id"},
            "delete": {"when": {"/type": "voided"}, "key": {"id": "/void"}},
        },
        "shop.customers": {"when": {"/customer/id": [null]}, "row": "/nothing", "columns": {"id": "/payment/by"}, "merge": true},
    });
    let mut run = Run::new(&config(mapping));
    let paid = r#"{"type": "paid", "payment": {"id": 1, "amount": null, "by": "ann"}, "order/id": 7}"#;
    let found = run.tick(&[paid, r#"{"type": "voided", "void": 1, "customer": {"id": 5}}"#]);
    assert_eq!(found, [r#"c customers - ["ann",null]"#, "c payments - [1,7,null,null]", "d payments [1,7,null,null] -"]);
}

#[test]
fn columns_that_an_event_lacks_keep_their_values_where_it_is_told_so() {
    let mut run = Run::new(&config(json!({"shop.payments": {"merge": true}})));
    let found = run.tick(&[r#"{"id": 1, "order_id": 7, "amount": 5, "note": "a"}"#, r#"{"id": 1, "note": null}"#]);
    assert_eq!(found[1], r#"u payments [1,7,"5.00","a"] [1,7,"5.00",null]"#);
    // A row has to be whole before it can be changed in part.
    let error = run.make(&[r#"{"id": 2, "note": null}"#]).unwrap_err().to_string();
    assert!(error.contains("/order_id") && error.contains("null is not allowed"), "{error}");
}

#[test]
fn bad_records_stop_the_tick_or_are_set_aside_with_their_place() {
    let mut config = config(json!({"shop.payments": {"when": {"/v": 1}}}));
    let bad = [
        ("", "payments at \"\": this is not JSON: EOF while parsing a value at line 1 column 0"),
        ("{\"v\": 1", "payments at \"\": this is not JSON: EOF while parsing an object at line 1 column 7, and it is {\"v\": 1"),
        (r#"{"v": 1, "order_id": 7}"#, "payments at \"/id\": id, part of the key of shop.payments, is not there"),
        (
            r#"{"v": 1, "id": 1, "order_id": {}}"#,
            "payments at \"/order_id\": order_id of shop.payments is int: expected a whole number of 64 bits, and it is {}",
        ),
        (
            r#"{"v": 1, "id": 1, "order_id": 7, "note": "longer"}"#,
            "payments at \"/note\": it breaks the contract of shop.payments: maxLength 5, and it is \"longer\"",
        ),
        (r#"{"v": 2}"#, "- at \"\": no table's `when` is true of it, and it is {\"v\":2}"),
    ];
    for (record, expected) in bad {
        let run = Run::new(&config);
        let error = run.make(&[r#"{"v": 1, "id": 1, "order_id": 7}"#, record]).unwrap_err();
        let told = expected.split_once(' ').unwrap().1;
        assert!(matches!(error, Error::BadRecord { .. }));
        assert!(error.to_string().contains("stream payments") && error.to_string().contains("shard-0000, record 2"), "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
    config.on_bad_record = BadRecordPolicy::DeadLetter;
    config.on_unmatched = UnmatchedPolicy::DeadLetter;
    let good = r#"{"v": 1, "id": 1, "order_id": 7}"#;
    let run = Run::new(&config);
    let records: Vec<&str> = bad.iter().map(|(record, _)| *record).chain([good]).collect();
    let made = run.make(&records).unwrap();
    let expected: Vec<&str> = bad.iter().map(|(_, told)| *told).chain(["c payments - [1,7,null,null]"]).collect();
    assert_eq!(run.told(&made), expected);
    config.on_unmatched = UnmatchedPolicy::Skip;
    let made = Run::new(&config).make(&records).unwrap();
    assert_eq!((made.made.len(), made.skipped), (6, 1));
}

#[test]
fn a_mapping_that_does_not_fit_its_contract_is_refused() {
    for (mapping, expected) in [
        (json!({}), "no table is mapped"),
        (json!({"shop.orders": {}}), "it has no contract"),
        (json!({"shop.payments": {"columns": {"total": "/x"}}}), "names total"),
        (json!({"shop.payments": {"delete": {"when": {}}}}), "every event would delete"),
        (json!({"shop.payments": {"delete": {"when": {"/x": 1}, "key": {"note": "/n"}}}}), "not part of its key"),
    ] {
        let error = Translator::new(&config(mapping)).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let fingerprint = |mapping: Json| Translator::new(&config(mapping)).unwrap().fingerprint().to_owned();
    assert_eq!(fingerprint(parsed(PLAIN)), fingerprint(parsed(PLAIN)));
    assert_ne!(fingerprint(parsed(PLAIN)), fingerprint(json!({"shop.payments": {}})));
}

fn json_values() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        (-2i64..5).prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        let name = prop::sample::select(&["id", "order_id", "amount", "note", "deleted", "x"][..]).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::vec((name, inner), 0..6).prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the records are: each is published, set aside or counted; a tick made again is the same; and the rows kept are what the last events left.
    #[test]
    fn any_records_make_a_tick_and_always_the_same(
        events in prop::collection::vec(json_values(), 0..40), noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..10),
    ) {
        let mut config = config(parsed(PLAIN));
        config.on_bad_record = BadRecordPolicy::DeadLetter;
        let mut run = Run::new(&config);
        let mut records: Vec<Bytes> = events.iter().map(|event| event.to_string().into()).collect();
        records.extend(noise.into_iter().map(Bytes::from));
        for part in records.chunks(7) {
            let taken: Vec<Taken> = (1u64..).zip(part).map(|(number, data)| {
                Taken { shard: ShardId("0".into()), sequence: number.into(), data: data.clone() }
            }).collect();
            let plan = Plan { tick: run.progress.tick.next(), time_ms: 5, to: Vec::new(), mapping: String::new() };
            let made = run.translator.tick(&run.state, &plan, &taken).unwrap();
            prop_assert_eq!(made.made.len() as u64 + made.skipped + made.unknown[0], part.len() as u64);
            let again = run.translator.tick(&run.state, &plan, &taken).unwrap();
            prop_assert_eq!(format!("{:?}", made.made), format!("{:?}", again.made));
            run.progress.tick = plan.tick;
            run.state.done(&made.rows, &run.progress).unwrap();
            let mut last = HashMap::new();
            for made in &made.made {
                if let Made::Change { event, .. } = made {
                    let key = RowKey::of(&event.table, event.row().unwrap());
                    if let Some(before) = last.insert(key, event.after.clone()) {
                        prop_assert_eq!(&before, &event.before);
                    }
                }
            }
            for (key, row) in last {
                prop_assert_eq!(run.state.row(&run.translator.tables[0].contract.table, &key).unwrap(), row);
            }
        }
    }
}
