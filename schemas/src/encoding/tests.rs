#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::event::{Op, Row};
use crate::parse::{Columns, ParseError, RowBuffer, RowView};
use crate::table::{Column, Length, SqlType, TableSchema};
use crate::value::Value;
use crate::{Lsn, Position, TableName};

mod peers;

fn sql_type() -> impl Strategy<Value = SqlType> {
    use SqlType::*;
    prop_oneof![
        prop::sample::select(vec![
            Bit,
            TinyInt,
            SmallInt,
            Int,
            BigInt,
            Real,
            Float,
            Money,
            SmallMoney,
            Char(3),
            VarChar(Length::Max),
            NVarChar(Length::Limited(9)),
            Text,
            Binary(4),
            VarBinary(Length::Max),
            Image,
            UniqueIdentifier,
            Date,
            DateTime,
            SmallDateTime,
            RowVersion,
            Xml,
            SqlVariant,
            HierarchyId,
            Geometry,
            Geography,
            Json,
            Vector(3),
        ]),
        (1u8..=38)
            .prop_flat_map(|precision| (Just(precision), 0..=precision))
            .prop_map(|(precision, scale)| Decimal { precision, scale }),
        (0u8..=7).prop_map(|scale| Time { scale }),
        (0u8..=7).prop_map(|scale| DateTime2 { scale }),
        (0u8..=7).prop_map(|scale| DateTimeOffset { scale }),
    ]
}

/// Days and ticks that SQL Server knows.
fn moment() -> impl Strategy<Value = (u32, u64)> {
    (prop_oneof![0u32..=3_652_058, 719_000u32..740_000], 0u64..864_000_000_000)
}

fn decimal(precision: u8, scale: u8) -> BoxedStrategy<Value> {
    let most = 10i128.pow(u32::from(precision)) - 1;
    prop_oneof![-most..=most, (-200i128).max(-most)..=200i128.min(most)]
        .prop_map(move |mantissa| Value::Decimal { mantissa, scale })
        .boxed()
}

/// A value of a type, as the importer decodes it.
fn value(sql_type: SqlType) -> BoxedStrategy<Value> {
    use SqlType::*;
    match sql_type {
        Bit => any::<bool>().prop_map(Value::Bool).boxed(),
        TinyInt => any::<u8>().prop_map(|number| Value::Int(number.into())).boxed(),
        SmallInt => any::<i16>().prop_map(|number| Value::Int(number.into())).boxed(),
        Int => any::<i32>().prop_map(|number| Value::Int(number.into())).boxed(),
        BigInt => any::<i64>().prop_map(Value::Int).boxed(),
        Real => any::<f32>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::Real).boxed(),
        Float => any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::Float).boxed(),
        SqlType::Decimal { precision, scale } => decimal(precision, scale),
        Money => any::<i64>().prop_map(|number| Value::Decimal { mantissa: number.into(), scale: 4 }).boxed(),
        SmallMoney => any::<i32>().prop_map(|number| Value::Decimal { mantissa: number.into(), scale: 4 }).boxed(),
        Binary(_) | VarBinary(_) | Image | RowVersion => prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes).boxed(),
        UniqueIdentifier => any::<[u8; 16]>().prop_map(Value::Uuid).boxed(),
        SqlType::Date => moment().prop_map(|(days, _)| Value::Date(days)).boxed(),
        SqlType::Time { scale } => moment().prop_map(move |(_, ticks)| Value::Time { ticks, scale }).boxed(),
        SqlType::DateTime => moment().prop_map(|(days, ticks)| Value::DateTime { days, ticks, scale: 3 }).boxed(),
        SmallDateTime => moment().prop_map(|(days, ticks)| Value::DateTime { days, ticks, scale: 0 }).boxed(),
        DateTime2 { scale } => moment().prop_map(move |(days, ticks)| Value::DateTime { days, ticks, scale }).boxed(),
        SqlType::DateTimeOffset { scale } => (moment(), -840i16..=840)
            .prop_map(move |((days, ticks), offset_minutes)| Value::DateTimeOffset { days, ticks, scale, offset_minutes })
            .boxed(),
        SqlVariant => {
            prop_oneof![value(Int), value(Float), value(Money), value(Text), value(UniqueIdentifier), value(Bit)].boxed()
        }
        _ => any::<String>().prop_map(Value::Text).boxed(),
    }
}

fn cell(column: &Column) -> BoxedStrategy<Value> {
    let mut choices = vec![(8, value(column.sql_type))];
    if column.nullable {
        choices.push((1, Just(Value::Null).boxed()));
    }
    if column.sql_type.may_be_unavailable() {
        choices.push((1, Just(Value::Unavailable).boxed()));
    }
    prop::strategy::Union::new_weighted(choices).boxed()
}

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let name = prop_oneof!["[a-c]{1,2}", "[A-Za-z_ 0-9äß$\\-]{1,8}", any::<String>()];
    let column = (name, sql_type(), any::<bool>()).prop_map(|(name, sql_type, nullable)| Column {
        name,
        sql_type,
        nullable,
        case_insensitive: false,
    });
    prop::collection::vec(column, 0..9).prop_map(|mut columns| {
        let mut seen = std::collections::HashSet::new();
        columns.retain(|column| seen.insert(column.name.clone()));
        columns
    })
}

fn table_of(schema: &str, name: &str, columns: Vec<Column>) -> Arc<TableSchema> {
    Arc::new(TableSchema { name: TableName::new(schema, name), columns, key: vec![] })
}

fn table() -> impl Strategy<Value = Arc<TableSchema>> {
    ("dbo|.{1,6}", "orders|.{1,6}", columns()).prop_map(|(schema, name, columns)| table_of(&schema, &name, columns))
}

fn event_of(table: Arc<TableSchema>) -> impl Strategy<Value = ChangeEvent> {
    let row = || table.columns.iter().map(cell).collect::<Vec<_>>();
    let ops = prop::sample::select(vec![Op::Create, Op::Update, Op::Delete, Op::Read, Op::Reread]);
    let (before, after) = (row(), row());
    (ops, before, after, any::<[[u8; 10]; 2]>(), any::<i32>(), any::<i64>()).prop_map(
        move |(op, before, after, [commit, change], command_id, commit_time_ms)| ChangeEvent {
            table: table.clone(),
            op,
            before: matches!(op, Op::Update | Op::Delete).then_some(before),
            after: (op != Op::Delete).then_some(after),
            position: position(op, commit, change, command_id),
            commit_time_ms,
        },
    )
}

fn position(op: Op, commit: [u8; 10], change: [u8; 10], command_id: i32) -> Position {
    let (seqval, operation) = match op {
        Op::Create => (Lsn::from_bytes(change), 2),
        Op::Update => (Lsn::from_bytes(change), 4),
        Op::Delete => (Lsn::from_bytes(change), 1),
        Op::Read | Op::Reread => (Lsn::ZERO, 0),
    };
    let command_id = if op == Op::Read { 0 } else { command_id };
    Position { commit_lsn: Lsn::from_bytes(commit), command_id, seqval, operation }
}

fn event() -> impl Strategy<Value = ChangeEvent> {
    table().prop_flat_map(event_of)
}

/// Every encoding with and without compression, and a registry made of the files alone.
fn formats(table: &Arc<TableSchema>) -> (Vec<Format>, Registry) {
    let avro = Arc::new(avro::Schema::new(table, 3));
    let protobuf = Arc::new(protobuf::Schema::new(table, 3, None));
    let dictionary = Dictionary::new(table, "shop", "db");
    let mut registry = Registry::default();
    registry.add_file("t.avsc", avro.text.as_bytes()).unwrap();
    registry.add_file("t.proto", protobuf.text.as_bytes()).unwrap();
    registry.add_file("t.dict", &dictionary.bytes).unwrap();
    let mut formats = Vec::new();
    for compressed in [false, true] {
        for schema in [Written::Json, Written::Avro(avro.clone()), Written::Protobuf(protobuf.clone())] {
            let compressor = compressed.then(|| Compressor::new(&dictionary).unwrap());
            formats.push(Format { schema, compressor });
        }
    }
    (formats, registry)
}

fn written(format: &mut Format, event: &ChangeEvent) -> Vec<u8> {
    let mut record = Vec::new();
    Encoder::new("shop", "db").encode(format, event, &mut record);
    record
}

fn json(event: &ChangeEvent) -> String {
    String::from_utf8(written(&mut Format::default(), event)).unwrap()
}

fn fragment(value: &Value) -> String {
    let mut text = Vec::new();
    value.write_json(&mut text);
    String::from_utf8(text).unwrap()
}

fn same_row(view: RowView<'_>, row: Option<&Row>, wanted: &[usize]) {
    assert_eq!(view.present, row.is_some());
    if let Some(row) = row {
        let read: Vec<&str> = view.values().map(|value| std::str::from_utf8(value).unwrap()).collect();
        let expected: Vec<String> = wanted.iter().map(|&column| fragment(&row[column])).collect();
        assert_eq!(read, expected);
    }
}

proptest! {
    /// Any row, any encoding: the same event, the same text, whichever columns are wanted.
    #[test]
    fn the_same_event_comes_back(event in event(), wanted in prop::collection::vec(any::<Index>(), 0..5)) {
        let count = event.table.columns.len();
        let mut wanted: Vec<usize> = wanted.iter().filter(|_| count > 0).map(|index| index.index(count)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (mut formats, registry) = formats(&event.table);
        let (mut opener, mut buffer) = (Opener::new(&registry), RowBuffer::default());
        for (number, format) in formats.iter_mut().enumerate() {
            let record = written(format, &event);
            if number < 3 {
                prop_assert_eq!(&record[..1], [&b"{"[..], &[0xc3], &[0xc5]][number], "an event of its columns' types is not written as JSON");
            }
            let head = opener.head(&record).unwrap();
            prop_assert_eq!(head.op, event.op);
            prop_assert_eq!((head.schema.as_ref(), head.table.as_ref()), (event.table.name.schema.as_str(), event.table.name.table.as_str()));
            prop_assert_eq!((head.position, head.commit_time_ms), (event.position, event.commit_time_ms));
            let (before, after) = head.rows(&Columns::new(&event.table, &wanted), &mut buffer).unwrap();
            same_row(before, event.before.as_ref(), &wanted);
            same_row(after, event.after.as_ref(), &wanted);
            let mut text = Vec::new();
            to_json(&mut opener, &mut buffer, &record, &mut text).unwrap();
            prop_assert_eq!(String::from_utf8(text).unwrap(), json(&event));
        }
    }

    /// A row of another type's values is no smaller loss.
    #[test]
    fn what_does_not_fit_is_written_as_json((written_as, read_as) in (table(), table()), seed in any::<prop::sample::Selector>()) {
        let event = ChangeEvent {
            table: read_as.clone(), op: Op::Create, before: None, after: Some(read_as.columns.iter().map(|_| seed.select([Value::Bool(true), Value::Int(i64::MAX), Value::Unavailable, Value::Null])).collect()),
            position: position(Op::Create, [1; 10], [2; 10], 0), commit_time_ms: 5,
        };
        let (mut formats, registry) = formats(&written_as);
        for format in &mut formats {
            let record = written(format, &event);
            let mut text = Vec::new();
            to_json(&mut Opener::new(&registry), &mut RowBuffer::default(), &record, &mut text).unwrap();
            let (text, expected): (serde_json::Value, serde_json::Value) = (serde_json::from_slice(&text).unwrap(), serde_json::from_str(&json(&event)).unwrap());
            // Columns of the two tables may be of the same types: then the names are the other's.
            let values = |event: &serde_json::Value| event["after"].as_object().unwrap().values().cloned().collect::<Vec<_>>();
            prop_assert_eq!(values(&text), values(&expected));
        }
    }

    #[test]
    fn damage_is_refused_or_read_but_never_panics(event in event(), at in any::<Index>(), byte: u8, cut in any::<Index>()) {
        let (mut formats, registry) = formats(&event.table);
        for (number, format) in formats.iter_mut().enumerate() {
            let mut record = written(format, &event);
            let at = at.index(record.len());
            record[at] = byte;
            for length in [record.len(), cut.index(record.len())] {
                let mut text = Vec::new();
                let done = to_json(&mut Opener::new(&registry), &mut RowBuffer::default(), &record[..length], &mut text);
                // JSON is handed on as it is, once its head has been read.
                if done.is_ok() && number % 3 > 0 {
                    prop_assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok(), "{}", String::from_utf8_lossy(&text));
                }
            }
        }
    }

    /// Numbers are kept while a column is carried alike, and never given twice.
    #[test]
    fn field_numbers_are_kept(versions in prop::collection::vec(columns(), 1..6)) {
        let mut given = std::collections::HashMap::new();
        let mut schema: Option<protobuf::Schema> = None;
        for (version, columns) in versions.into_iter().enumerate() {
            let table = table_of("dbo", "t", columns);
            let next = protobuf::Schema::new(&table, version as u32 + 1, schema.as_ref());
            // As the file has it.
            let next = protobuf::Schema::parse("t.proto", &next.text).unwrap();
            for (column, number, kind) in next.numbers() {
                if let Some(before) = schema.as_ref().and_then(|schema| schema.numbers().find(|(known, _, same)| *known == column && *same == kind)) {
                    prop_assert_eq!(before.1, number);
                }
                let owner = (column.to_owned(), kind);
                prop_assert_eq!(&*given.entry(number).or_insert_with(|| owner.clone()), &owner, "{}", number);
            }
            schema = Some(next);
        }
    }

    #[test]
    fn schemas_are_what_their_files_say(table in table(), version in 1u32..) {
        let avro = avro::Schema::new(&table, version);
        let read = avro::Schema::parse("t.avsc", &avro.text).unwrap();
        prop_assert_eq!((&read.table, read.version, read.fingerprint, &read.text), (&table.name, version, avro.fingerprint, &avro.text));
        let protobuf = protobuf::Schema::new(&table, version, None);
        let read = protobuf::Schema::parse("t.proto", &protobuf.text).unwrap();
        prop_assert_eq!((&read.table, read.version, read.fingerprint, &read.text), (&table.name, version, protobuf.fingerprint, &protobuf.text));
    }
}

fn orders(sql_type: &str) -> Arc<TableSchema> {
    let column = |name: &str, sql_type: &str| Column {
        name: name.into(),
        sql_type: sql_type.parse().unwrap(),
        nullable: name != "id",
        case_insensitive: false,
    };
    table_of("dbo", "orders", vec![column("id", "int"), column("total", sql_type), column("note", "nvarchar(max)")])
}

fn create(table: &Arc<TableSchema>, row: Row) -> ChangeEvent {
    let position = position(Op::Create, [1; 10], [2; 10], 1);
    ChangeEvent {
        table: table.clone(),
        op: Op::Create,
        before: None,
        after: Some(row),
        position,
        commit_time_ms: 1_700_000_000_000,
    }
}

#[test]
fn a_schema_that_is_not_there_is_named_with_what_to_do() {
    let table = orders("decimal(10,2)");
    let row = vec![Value::Int(1), Value::Decimal { mantissa: 1250, scale: 2 }, Value::Null];
    let (mut formats, _) = formats(&table);
    let empty = Registry::default();
    for (format, expected) in [(1, ".avsc"), (2, ".proto"), (3, ".dict")] {
        let record = written(&mut formats[format], &create(&table, row.clone()));
        let error = Opener::new(&empty).head(&record).map(|_| ()).unwrap_err();
        assert!(matches!(error, ParseError::UnknownSchema { .. }), "{error}");
        assert!(error.to_string().contains(expected) && error.to_string().contains("folder of table contracts"), "{error}");
    }
}

#[test]
fn files_that_somebody_has_edited_are_refused() {
    let table = orders("decimal(10,2)");
    let (avro, protobuf) = (avro::Schema::new(&table, 1).text, protobuf::Schema::new(&table, 1, None).text);
    for (file, text) in [
        ("t.avsc", avro.replace("\"x-sql-type\":\"decimal(10,2)\"", "\"x-sql-type\":\"int\"")),
        ("t.avsc", "{}".to_owned()),
        ("t.proto", protobuf.replace("total = 2", "total = 9")),
        ("t.proto", protobuf.replace("\"total\" decimal(10,2)", "\"total\" decimal(10,3)")),
        ("t.proto", protobuf.replace("// table", "// tabel")),
        ("t.dict", "no dictionary".to_owned()),
    ] {
        let error = Registry::default().add_file(file, text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("start the importer"), "{error}");
    }
    let dictionary = Dictionary::new(&table, "shop", "db");
    for at in [4, 9, dictionary.bytes.len() - 1] {
        let mut bytes = dictionary.bytes.to_vec();
        bytes[at] ^= 1;
        let error = Registry::default().add_file("t.dict", &bytes).unwrap_err().to_string();
        assert!(error.contains("t.dict"), "{error}");
    }
    // What an Avro fingerprint does not tell.
    let mut registry = Registry::default();
    registry.add_file("a.avsc", avro.as_bytes()).unwrap();
    registry.add_file("b.avsc", avro.as_bytes()).unwrap();
    let other = avro::Schema::new(&orders("decimal(12,4)"), 1).text;
    let error = registry.add_file("c.avsc", other.as_bytes()).unwrap_err();
    assert!(matches!(error, SchemaError::SameFingerprint { .. }) && error.to_string().contains("x-version"), "{error}");
    registry.add_file("c.avsc", avro::Schema::new(&orders("decimal(12,4)"), 2).text.as_bytes()).unwrap();
}

/// Even if the file was removed, so that numbers are given anew.
#[test]
fn columns_that_are_carried_in_other_ways_have_other_fingerprints() {
    let types = [
        "int",
        "decimal(9,0)",
        "datetime2(0)",
        "time(0)",
        "varbinary(9)",
        "uniqueidentifier",
        "varchar(9)",
        "sql_variant",
        "decimal(38,0)",
    ];
    let schemas: Vec<_> = types.iter().map(|sql_type| Arc::new(protobuf::Schema::new(&orders(sql_type), 1, None))).collect();
    let fingerprints: std::collections::HashSet<u64> = schemas.iter().map(|schema| schema.fingerprint).collect();
    assert_eq!(fingerprints.len(), types.len());
    // Two that have the same by chance.
    let mut registry = Registry::default();
    registry.add_protobuf("a.proto", schemas[0].clone()).unwrap();
    registry.add_protobuf("b.proto", schemas[0].clone()).unwrap();
    let mut other = protobuf::Schema::clone(&schemas[1]);
    other.fingerprint = schemas[0].fingerprint;
    let error = registry.add_protobuf("c.proto", Arc::new(other)).unwrap_err().to_string();
    assert!(error.contains("c.proto") && error.contains("same fingerprint"), "{error}");
}

#[test]
fn a_column_that_is_gone_leaves_its_number_behind() {
    let before = protobuf::Schema::new(&orders("int"), 1, None);
    assert!(before.text.contains("optional sint64 total = 2; // \"total\" int\n"), "{}", before.text);
    let wider = protobuf::Schema::new(&orders("bigint"), 2, Some(&before));
    assert!(wider.text.contains("optional sint64 total = 2; // \"total\" bigint\n"), "{}", wider.text);
    assert_eq!(wider.fingerprint, before.fingerprint);
    let other = protobuf::Schema::new(&orders("varchar(9)"), 3, Some(&wider));
    assert!(other.text.contains("  reserved 2;\n") && other.text.contains("optional string total = 4;"), "{}", other.text);
}

/// What the documentation says of sizes.
#[test]
fn compression_pays() {
    let table = orders("decimal(10,2)");
    let (mut formats, _) = formats(&table);
    let row = vec![
        Value::Int(4711),
        Value::Decimal { mantissa: 125_099, scale: 2 },
        Value::Text("to be delivered in the evening".into()),
    ];
    let sizes: Vec<usize> = formats.iter_mut().map(|format| written(format, &create(&table, row.clone())).len()).collect();
    assert!(sizes[0] > 3 * sizes[3] && sizes[0] > 3 * sizes[1] && sizes[0] > 3 * sizes[2], "{sizes:?}");
}
