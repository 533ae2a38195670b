//! Properties of the codecs: nothing that a client may send makes a parser panic, and values survive their encoding.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use crate::collation::Collation;
use crate::data::{DataType, Length, Value};
use crate::login::Login7;
use crate::prelogin::Prelogin;
use crate::reader::Reader;
use crate::type_info::{self, Wire};
use crate::{declaration, decode, encode, request, rpc};

const COLLATION: Collation = Collation::LATIN1_GENERAL_CP1_CI_AS;

fn parse_everything(bytes: &[u8]) {
    let _ = Prelogin::parse(bytes);
    let _ = Login7::parse(bytes);
    let _ = request::batch(bytes).map(|sql| request::guess_command(&sql));
    let _ = request::transaction(bytes);
    let _ = rpc::parse(bytes, COLLATION);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = declaration::parse(text);
        request::guess_command(text);
    }
}

/// A value of each type that a result and a parameter announce alike.
fn typed_value() -> impl Strategy<Value = (DataType, Value)> {
    use DataType as T;
    let ticks = 0..864_000_000_000u64;
    let days = 1..3_652_058u32;
    let at_scale = |ticks: u64, scale: u8| ticks - ticks % 10u64.pow(7 - u32::from(scale));
    let decimal = (1..=38u8).prop_flat_map(|precision| {
        let past = 10i128.pow(u32::from(precision));
        (Just(precision), 0..=precision, 1 - past..past)
    });
    prop_oneof![
        any::<bool>().prop_map(|b| (T::Bit, Value::Bit(b))),
        any::<u8>().prop_map(|n| (T::TinyInt, Value::Int(n.into()))),
        any::<i16>().prop_map(|n| (T::SmallInt, Value::Int(n.into()))),
        any::<i32>().prop_map(|n| (T::Int, Value::Int(n.into()))),
        any::<i64>().prop_map(|n| (T::BigInt, Value::Int(n))),
        any::<f32>().prop_filter("comparable", |x| !x.is_nan()).prop_map(|x| (T::Real, Value::Float(x.into()))),
        any::<f64>().prop_filter("comparable", |x| !x.is_nan()).prop_map(|x| (T::Float, Value::Float(x))),
        decimal.prop_map(|(precision, scale, mantissa)| (T::Decimal { precision, scale }, Value::Decimal { mantissa, scale })),
        any::<i64>().prop_map(|n| (T::Money, Value::Decimal { mantissa: n.into(), scale: 4 })),
        any::<i32>().prop_map(|n| (T::SmallMoney, Value::Decimal { mantissa: n.into(), scale: 4 })),
        "[ -~é€ß]{0,30}".prop_map(|text| (T::VarChar(Length::Limited(30)), Value::Text(text))),
        "\\PC{0,30}".prop_map(|text| (T::NVarChar(Length::Limited(60)), Value::Text(text))),
        "\\PC{0,300}".prop_map(|text| (T::NVarChar(Length::Max), Value::Text(text))),
        "\\PC{0,30}".prop_map(|text| (T::Xml, Value::Text(text))),
        proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|bytes| (T::VarBinary(Length::Limited(300)), Value::Bytes(bytes))),
        proptest::collection::vec(any::<u8>(), 0..70_000).prop_map(|bytes| (T::VarBinary(Length::Max), Value::Bytes(bytes))),
        any::<[u8; 16]>().prop_map(|bytes| (T::UniqueIdentifier, Value::UniqueIdentifier(bytes))),
        days.clone().prop_map(|days| (T::Date, Value::Date(days))),
        (ticks.clone(), 0..=7u8).prop_map(move |(ticks, scale)| (T::Time { scale }, Value::Time(at_scale(ticks, scale)))),
        (days.clone(), ticks.clone(), 0..=7u8).prop_map(move |(days, ticks, scale)| (
            T::DateTime2 { scale },
            Value::DateTime { days, ticks: at_scale(ticks, scale) }
        )),
        (days.clone(), ticks.clone(), -840..=840i16).prop_map(move |(days, ticks, offset_minutes)| {
            (T::DateTimeOffset { scale: 7 }, Value::DateTimeOffset { days, ticks, offset_minutes })
        }),
        (639_906..3_652_058u32, 0..25_920_000u64)
            .prop_map(|(days, units)| (T::DateTime, Value::DateTime { days, ticks: (units * 100_000 + 1) / 3 })),
        (693_595..759_130u32, 0..1440u64)
            .prop_map(|(days, minutes)| (T::SmallDateTime, Value::DateTime { days, ticks: minutes * 600_000_000 })),
    ]
}

fn round_trip(data_type: &DataType, value: &Value, nullable: bool) -> (DataType, Value) {
    round_trip_in(COLLATION, data_type, value, nullable)
}

fn round_trip_in(collation: Collation, data_type: &DataType, value: &Value, nullable: bool) -> (DataType, Value) {
    let wire = Wire::new(data_type, nullable, collation);
    let mut bytes = Vec::new();
    wire.put(&mut bytes);
    encode::put(&mut bytes, &wire, value).unwrap();
    let mut from = Reader::new(&bytes, "round trip");
    let announced = type_info::read(&mut from, COLLATION).unwrap();
    let back = decode::read(&mut from, &announced).unwrap();
    assert!(from.is_empty());
    (announced.data_type, back)
}

/// A valid call with many parameters, to be broken.
fn valid_call(values: &[(DataType, Value)]) -> Vec<u8> {
    let mut bytes = [22u32.to_le_bytes(), 18u32.to_le_bytes()].concat();
    bytes.extend([0; 14]);
    bytes.extend([0xFF, 0xFF, 10, 0, 0, 0]);
    for (data_type, value) in values {
        bytes.extend([0, 0]);
        let wire = Wire::new(data_type, true, COLLATION);
        wire.put(&mut bytes);
        encode::put(&mut bytes, &wire, value).unwrap();
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse_everything(&bytes);
    }

    #[test]
    fn broken_calls_are_refused_without_a_panic(
        values in proptest::collection::vec(typed_value(), 0..6),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = valid_call(&values);
        prop_assert_eq!(rpc::parse(&bytes, COLLATION).unwrap()[0].parameters.len(), values.len());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        parse_everything(&bytes);
    }

    #[test]
    fn values_survive_their_encoding((data_type, value) in typed_value(), nullable in any::<bool>()) {
        prop_assert_eq!(round_trip(&data_type, &value, nullable), (data_type.clone(), value));
        prop_assert_eq!(round_trip(&data_type, &Value::Null, true), (data_type, Value::Null));
    }

    #[test]
    fn all_of_unicode_survives_in_a_utf8_collation(text in "\\PC{0,60}", max in any::<bool>()) {
        let data_type = DataType::VarChar(if max { Length::Max } else { Length::Limited(240) });
        let value = Value::Text(text);
        let utf8 = Collation::LATIN1_GENERAL_100_CI_AS_SC_UTF8;
        prop_assert_eq!(round_trip_in(utf8, &data_type, &value, true), (data_type, value));
    }

    #[test]
    fn values_survive_in_a_variant((data_type, value) in typed_value()) {
        let held = !matches!(data_type, DataType::Xml | DataType::NVarChar(Length::Max) | DataType::VarBinary(Length::Max));
        prop_assume!(held);
        let variant = Value::Variant(Box::new((data_type, value)));
        prop_assert_eq!(round_trip(&DataType::SqlVariant, &variant, true), (DataType::SqlVariant, variant));
    }

    #[test]
    fn a_value_never_takes_a_type_that_it_does_not_fit_in_silence((data_type, _) in typed_value(), (_, value) in typed_value()) {
        // Whatever is written for a value of another kind reads back as the same quantity, or is refused.
        let wire = Wire::new(&data_type, true, COLLATION);
        let mut bytes = Vec::new();
        if encode::put(&mut bytes, &wire, &value).is_ok() {
            let mut typed = Vec::new();
            wire.put(&mut typed);
            typed.extend(bytes);
            let mut from = Reader::new(&typed, "round trip");
            let announced = type_info::read(&mut from, COLLATION).unwrap();
            prop_assert!(decode::read(&mut from, &announced).is_ok());
            prop_assert!(from.is_empty());
        }
    }
}

#[test]
fn lengths_beyond_sql_servers_own_are_refused_and_not_wrapped() {
    use DataType as T;
    let (text, bytes) = (Value::Text("x".repeat(40_000)), Value::Bytes(vec![1; 40_000]));
    let cases = [
        (T::NVarChar(Length::Limited(65_535)), &text),
        (T::VarChar(Length::Limited(65_535)), &text),
        (T::Char(40_000), &text),
        (T::NChar(40_000), &text),
        (T::VarBinary(Length::Limited(65_535)), &bytes),
        (T::Binary(40_000), &bytes),
    ];
    for (data_type, value) in cases {
        assert!(encode::put(&mut Vec::new(), &Wire::new(&data_type, true, COLLATION), value).is_err(), "{data_type:?}");
    }
}
