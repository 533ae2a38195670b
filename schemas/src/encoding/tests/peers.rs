//! What we write, read by others' readers: apache-avro and prost-reflect, by the schema files alone.

use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value as Avro;
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value as Proto};

use super::*;
use crate::encoding::carry::{Carried, Scalar, read_wide};

/// The scalar that a value is carried as, by the table in `carry`.
fn carried(column: &Column, value: &Value) -> Scalar<'static> {
    match Carried::of(column.sql_type).take(value).unwrap() {
        Scalar::Bytes(bytes) => Scalar::Bytes(bytes.into_owned().into()),
        Scalar::Bool(value) => Scalar::Bool(value),
        Scalar::Int(value) => Scalar::Int(value),
        Scalar::Real(value) => Scalar::Real(value),
        Scalar::Float(value) => Scalar::Float(value),
        Scalar::Wide(value) => Scalar::Wide(value),
        Scalar::Moment { utc, offset_minutes } => Scalar::Moment { utc, offset_minutes },
    }
}

fn avro_scalar(column: &Column, value: &Avro) -> Scalar<'static> {
    match value {
        Avro::Boolean(value) => Scalar::Bool(*value),
        Avro::Int(value) | Avro::Date(value) | Avro::TimeMillis(value) => Scalar::Int((*value).into()),
        Avro::Long(value) | Avro::TimeMicros(value) | Avro::LocalTimestampMillis(value) | Avro::LocalTimestampMicros(value) => {
            Scalar::Int(*value)
        }
        Avro::Float(value) => Scalar::Real(*value),
        Avro::Double(value) => Scalar::Float(*value),
        Avro::String(text) => Scalar::Bytes(text.clone().into_bytes().into()),
        Avro::Bytes(bytes) | Avro::Fixed(_, bytes) => Scalar::Bytes(bytes.clone().into()),
        Avro::Uuid(uuid) => Scalar::Bytes(uuid.as_bytes().to_vec().into()),
        Avro::Decimal(decimal) => {
            let number = read_wide(&Vec::<u8>::try_from(decimal).unwrap()).unwrap();
            match Carried::of(column.sql_type) {
                Carried::Small { .. } => Scalar::Int(number.try_into().unwrap()),
                _ => Scalar::Wide(number),
            }
        }
        Avro::Record(fields) => match &fields[..] {
            [(_, Avro::Long(utc)), (_, Avro::Int(offset))] => Scalar::Moment { utc: *utc, offset_minutes: *offset },
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn avro_row(table: &TableSchema, found: &Avro, row: Option<&Row>) {
    let Avro::Union(_, found) = found else { panic!("{found:?}") };
    let (Avro::Record(fields), Some(row)) = (&**found, row) else {
        assert!(matches!(**found, Avro::Null) && row.is_none());
        return;
    };
    for ((column, value), (_, found)) in table.columns.iter().zip(row).zip(fields) {
        let found = if let Avro::Union(_, inner) = found { inner } else { found };
        match (value, found) {
            (Value::Null, found) => assert_eq!(found, &Avro::Null),
            (Value::Unavailable, found) => assert_eq!(found, &Avro::Enum(0, "UNAVAILABLE".into())),
            (value, found) => assert_eq!(avro_scalar(column, found), carried(column, value), "{column:?}"),
        }
    }
}

fn proto_scalar(value: &Proto) -> Scalar<'static> {
    match value {
        Proto::Bool(value) => Scalar::Bool(*value),
        Proto::I32(value) => Scalar::Int((*value).into()),
        Proto::I64(value) => Scalar::Int(*value),
        Proto::F32(value) => Scalar::Real(*value),
        Proto::F64(value) => Scalar::Float(*value),
        Proto::String(text) => Scalar::Bytes(text.clone().into_bytes().into()),
        Proto::Bytes(bytes) => Scalar::Bytes(bytes.to_vec().into()),
        Proto::Message(moment) => {
            let number = |name| moment.get_field_by_name(name).unwrap().into_owned();
            Scalar::Moment { utc: number("utc").as_i64().unwrap(), offset_minutes: number("offset_minutes").as_i32().unwrap() }
        }
        other => panic!("{other:?}"),
    }
}

fn proto_row(table: &TableSchema, message: &DynamicMessage, name: &str, row: Option<&Row>) {
    assert_eq!(message.has_field_by_name(name), row.is_some());
    let Some(row) = row else { return };
    let found = message.get_field_by_name(name).unwrap().into_owned();
    let found = found.as_message().unwrap();
    let unavailable = found.get_field_by_name("unavailable").unwrap().into_owned();
    let unavailable: Vec<u32> = unavailable.as_list().unwrap().iter().map(|number| number.as_u32().unwrap()).collect();
    let columns = table.columns.iter().zip(row).zip(1..);
    for ((column, value), number) in columns {
        let field = found.descriptor().get_field(number).unwrap();
        assert_eq!(unavailable.contains(&number), *value == Value::Unavailable, "{column:?}");
        match value {
            Value::Null | Value::Unavailable => assert!(!found.has_field(&field), "{column:?}"),
            value => match (proto_scalar(&found.get_field(&field)), carried(column, value)) {
                (Scalar::Bytes(bytes), Scalar::Wide(number)) => assert_eq!(read_wide(&bytes).unwrap(), number),
                (found, expected) => assert_eq!(found, expected, "{column:?}"),
            },
        }
    }
    assert_eq!(found.unknown_fields().count(), 0);
}

/// A schema without what is said of primitive types: the canonical form leaves it out, and apache-avro forgets to (`{"type":"long","logicalType":…}` stays `{"type":"long"}`).
fn plain(schema: &serde_json::Value) -> serde_json::Value {
    match schema {
        serde_json::Value::Object(members) => match members["type"].as_str() {
            Some("record") => {
                let mut schema = schema.clone();
                schema["fields"].as_array_mut().unwrap().iter_mut().for_each(|field| field["type"] = plain(&field["type"]));
                schema
            }
            Some("enum" | "fixed") => schema.clone(),
            _ => schema["type"].clone(),
        },
        serde_json::Value::Array(branches) => branches.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// The descriptors of a schema file, as Protobuf's own rules have them.
fn compiled(text: &str) -> DescriptorPool {
    let file = protox::file::File::from_source("t.proto", text).unwrap();
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(file.file_descriptor_proto().clone()).unwrap();
    pool
}

proptest! {
    #[test]
    fn apache_avro_reads_it(event in event()) {
        let (mut formats, _) = formats(&event.table);
        let Written::Avro(ours) = &formats[1].schema else { unreachable!() };
        let schema = apache_avro::Schema::parse_str(&ours.text).unwrap();
        let fingerprint = apache_avro::Schema::parse_str(&plain(&serde_json::from_str(&ours.text).unwrap()).to_string()).unwrap().fingerprint::<Rabin>();
        prop_assert_eq!(&fingerprint.bytes[..], &ours.fingerprint.to_le_bytes()[..], "{}", schema.canonical_form());
        let record = written(&mut formats[1], &event);
        prop_assert_eq!(&record[2..10], &fingerprint.bytes[..]);
        let mut rest = &record[10..];
        let read = GenericDatumReader::builder(&schema).build().unwrap().read_value(&mut rest).unwrap();
        prop_assert!(rest.is_empty());
        let Avro::Record(members) = read else { panic!() };
        prop_assert_eq!(&members[0].1, &Avro::Enum("cudr".find(event.op.letter()).unwrap() as u32, event.op.letter().to_string()));
        let Avro::Record(source) = &members[1].1 else { panic!() };
        prop_assert_eq!(&source[0].1, &Avro::String("shop".into()));
        prop_assert_eq!(&source[2].1, &Avro::TimestampMillis(event.commit_time_ms));
        prop_assert_eq!(&source[4].1, &Avro::Fixed(10, event.position.commit_lsn.as_bytes().to_vec()));
        prop_assert_eq!(&source[6].1, &Avro::Int(event.position.command_id));
        avro_row(&event.table, &members[2].1, event.before.as_ref());
        avro_row(&event.table, &members[3].1, event.after.as_ref());
    }

    #[test]
    fn prost_reflect_reads_it(event in event()) {
        let (mut formats, _) = formats(&event.table);
        let Written::Protobuf(ours) = &formats[2].schema else { unreachable!() };
        let pool = compiled(&ours.text);
        let envelope = pool.all_messages().find(|message| message.name() == "Envelope").unwrap();
        let record = written(&mut formats[2], &event);
        let message = DynamicMessage::decode(envelope, &record[10..]).unwrap();
        let op = message.get_field_by_name("op").unwrap().as_enum_number().unwrap();
        prop_assert_eq!(op as usize, "?cudr".find(event.op.letter()).unwrap());
        let source = message.get_field_by_name("source").unwrap().into_owned();
        let source = source.as_message().unwrap();
        let member = |name: &str| source.get_field_by_name(name).unwrap().into_owned();
        prop_assert_eq!(member("name"), Proto::String("shop".into()));
        prop_assert_eq!(member("ts_ms"), Proto::I64(event.commit_time_ms));
        prop_assert_eq!(member("commit_lsn").as_bytes().unwrap().to_vec(), event.position.commit_lsn.as_bytes().to_vec());
        prop_assert_eq!(member("command_id"), Proto::I32(event.position.command_id));
        prop_assert_eq!(source.has_field_by_name("change_lsn"), !event.op.is_read());
        proto_row(&event.table, &message, "before", event.before.as_ref());
        proto_row(&event.table, &message, "after", event.after.as_ref());
    }
}
