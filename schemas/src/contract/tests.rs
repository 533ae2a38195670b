#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::event::Row;
use crate::table::{Column, Length, SqlType};
use crate::value::Value;

fn column(name: &str, sql_type: &str, nullable: bool) -> Column {
    Column { name: name.into(), sql_type: sql_type.parse().unwrap(), nullable, case_insensitive: false }
}

fn orders() -> TableSchema {
    TableSchema {
        name: TableName::new("dbo", "orders"),
        columns: vec![
            column("id", "int", false),
            Column { case_insensitive: true, ..column("code", "varchar(20)", true) },
            column("total", "decimal(10,2)", false),
            column("note", "nvarchar(max)", true),
        ],
        key: vec![0],
    }
}

fn row(id: i64, code: &str, cents: i128) -> Row {
    vec![Value::Int(id), Value::Text(code.into()), Value::Decimal { mantissa: cents, scale: 2 }, Value::Null]
}

/// The contract of `orders` after an edit.
fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Contract, ContractError> {
    let mut document = Contract::from_table(&orders()).to_json().clone();
    edit(&mut document);
    Contract::parse("dbo.orders.json", &document.to_string())
}

#[test]
fn what_init_writes_reads_back() {
    let contract = Contract::from_table(&orders());
    let text = contract.to_text();
    assert!(text.contains(r#"    "code": {"type": ["string", "null"], "maxLength": 20, "x-sql-type": "varchar(20)", "x-case-insensitive": true},"#), "{text}");
    let read = Contract::parse("dbo.orders.json", &text).unwrap();
    assert_eq!(*read.table, orders());
    assert_eq!(read.to_json(), contract.to_json());
    assert!(
        read.row.is_none() && read.columns.iter().all(|column| column.extra.is_none()),
        "nothing that init writes is compiled"
    );
    assert_eq!(Contract::file_name(&contract.table.name), "dbo.orders.json");
    assert_eq!(Contract::file_name(&TableName::new("a/b", "c")), "[a%2Fb].c.json");
}

#[test]
fn limits_of_the_type_are_checked() {
    let contract = Contract::from_table(&orders());
    contract.check(&row(1, "a", 9_999_999_999)).unwrap();
    let broken = |row: Row| contract.check(&row).unwrap_err();
    assert_eq!(broken(row(1 << 40, "a", 1)).rule, "maximum 2147483647");
    let long = broken(row(1, &"é".repeat(21), 1));
    assert_eq!((long.column.as_str(), long.rule.as_str()), ("code", "maxLength 20"));
    contract.check(&row(1, &"é".repeat(20), 1)).unwrap();
    assert_eq!(broken(row(1, "a", 10_000_000_000)).rule, "x-sql-type decimal(10,2)");
    let mut null = row(1, "a", 1);
    null[0] = Value::Null;
    assert_eq!(broken(null).to_string(), "column id: null breaks type: null is not allowed");
    let mut unavailable = row(1, "a", 1);
    unavailable[2] = Value::Unavailable;
    contract.check(&unavailable).unwrap();
    assert_eq!(broken(vec![Value::Null]).column, "(row)");
}

#[test]
fn what_people_add_is_checked() {
    let contract = edited(|document| {
        document["properties"]["id"]["minimum"] = 1.into();
        document["properties"]["code"]["pattern"] = "^[A-Z]+$".into();
        document["properties"]["code"]["description"] = "shown to people".into();
        document["properties"]["total"]["enum"] = serde_json::json!(["1.00", "2.00"]);
    })
    .unwrap();
    contract.check(&row(1, "ABC", 100)).unwrap();
    assert_eq!(contract.check(&row(0, "ABC", 100)).unwrap_err().rule, "minimum 1");
    assert_eq!(contract.check(&row(1, "abc", 100)).unwrap_err().rule, "pattern");
    let violation = contract.check(&row(1, "ABC", 300)).unwrap_err();
    assert_eq!((violation.column.as_str(), violation.value.as_str()), ("total", "\"3.00\""));
    let mut null = row(1, "ABC", 100);
    null[1] = Value::Null;
    contract.check(&null).unwrap();
}

#[test]
fn rules_over_the_row_and_definitions_are_checked() {
    let contract = edited(|document| {
        document["$defs"] = serde_json::json!({"code": {"minLength": 2}});
        document["properties"]["code"]["$ref"] = "#/$defs/code".into();
        document["if"] = serde_json::json!({"properties": {"id": {"minimum": 100}}});
        document["then"] = serde_json::json!({"properties": {"total": {"const": "0.00"}}});
    })
    .unwrap();
    contract.check(&row(1, "ab", 5)).unwrap();
    contract.check(&row(100, "ab", 0)).unwrap();
    assert_eq!(contract.check(&row(1, "a", 5)).unwrap_err().column, "code");
    let violation = contract.check(&row(100, "ab", 5)).unwrap_err();
    assert_eq!(violation.column, "total");
    assert!(violation.rule.contains("then"), "{violation:?}");
}

#[test]
fn errors_name_the_file_the_place_and_the_remedy() {
    let message = |text: &str| Contract::parse("dbo.orders.json", text).unwrap_err().to_string();
    assert!(
        message("{\n  \"a\": }").starts_with("dbo.orders.json: line 2, column 8: this is not JSON"),
        "{}",
        message("{\n  \"a\": }")
    );
    assert!(message("{}").starts_with("dbo.orders.json: /x-table: expected a string. Name the table"));
    let edit = |edit: &dyn Fn(&mut serde_json::Value)| edited(|document| edit(document)).unwrap_err().to_string();
    assert!(
        edit(&|d| d["x-key"] = serde_json::json!(["ids"]))
            .contains("/x-key: \"ids\" is not among the properties. Use one of: id, code")
    );
    assert!(
        edit(&|d| d["properties"]["id"]["type"] = "string".into()).contains("/properties/id/type: \"string\" does not fit int")
    );
    assert!(
        edit(&|d| d["properties"]["id"]["x-sql-type"] = "integer".into())
            .contains("/properties/id/x-sql-type: \"integer\" is not a SQL Server type")
    );
    assert!(edit(&|d| d["properties"]["code"]["pattern"] = "(".into()).contains("dbo.orders.json: /properties/code"));
    assert!(edit(&|d| d["allOf"] = serde_json::json!([{"type": "nonsense"}])).contains("dbo.orders.json: /allOf/0"));
    assert!(edit(&|d| d["required"] = serde_json::json!(["x"])).contains("/required"));
}

#[test]
fn differences_from_the_catalog_are_found() {
    let contract = Contract::from_table(&orders());
    assert!(contract.compare(&orders()).is_empty());
    let mut live = orders();
    live.columns[0].sql_type = SqlType::BigInt;
    live.columns[2].sql_type = SqlType::Decimal { precision: 12, scale: 3 };
    live.columns[2].nullable = true;
    live.columns.remove(3);
    live.columns.push(column("extra", "int", true));
    live.key = vec![0, 1];
    let differences = contract.compare(&live);
    let text: Vec<(String, bool)> = differences.iter().map(|difference| (difference.to_string(), difference.breaks())).collect();
    let expected = [
        ("column id is int in the contract and bigint in the table", false),
        ("column total is decimal(10,2) in the contract and decimal(12,3) in the table", true),
        ("column total may be NULL in the table and not in the contract", false),
        ("column note is in the contract and not in the table's capture instance", true),
        ("column extra is in the table and not in the contract: it is not published", false),
        ("the key is (id) in the contract and (id, code) in the table", true),
    ];
    assert_eq!(text, expected.map(|(text, breaks)| (text.to_owned(), breaks)));
}

fn any_type() -> impl Strategy<Value = SqlType> {
    prop_oneof![
        Just(SqlType::Bit),
        Just(SqlType::TinyInt),
        Just(SqlType::SmallInt),
        Just(SqlType::Int),
        Just(SqlType::BigInt),
        Just(SqlType::Real),
        Just(SqlType::Float),
        (1u8..=38)
            .prop_flat_map(|precision| (Just(precision), 0..=precision))
            .prop_map(|(precision, scale)| SqlType::Decimal { precision, scale }),
        Just(SqlType::Money),
        Just(SqlType::SmallMoney),
        (1u16..50).prop_map(SqlType::Char),
        (1u16..50).prop_map(|n| SqlType::NVarChar(Length::Limited(n))),
        Just(SqlType::VarChar(Length::Max)),
        (1u16..50).prop_map(SqlType::Binary),
        Just(SqlType::VarBinary(Length::Max)),
        Just(SqlType::RowVersion),
        Just(SqlType::UniqueIdentifier),
        Just(SqlType::Date),
        (0u8..=7).prop_map(|scale| SqlType::Time { scale }),
        Just(SqlType::DateTime),
        Just(SqlType::SmallDateTime),
        (0u8..=7).prop_map(|scale| SqlType::DateTime2 { scale }),
        (0u8..=7).prop_map(|scale| SqlType::DateTimeOffset { scale }),
        Just(SqlType::Xml),
    ]
}

/// A value that a column of the type can hold.
fn value_of(sql_type: SqlType) -> BoxedStrategy<Value> {
    let ticks = |scale: u8| {
        let unit = 10u64.pow(u32::from(7 - scale));
        (0u64..864_000_000_000 / unit).prop_map(move |n| n * unit)
    };
    let days = 0u32..3_652_059;
    match sql_type {
        SqlType::Bit => any::<bool>().prop_map(Value::Bool).boxed(),
        SqlType::TinyInt => any::<u8>().prop_map(|n| Value::Int(n.into())).boxed(),
        SqlType::SmallInt => any::<i16>().prop_map(|n| Value::Int(n.into())).boxed(),
        SqlType::Int => any::<i32>().prop_map(|n| Value::Int(n.into())).boxed(),
        SqlType::BigInt => any::<i64>().prop_map(Value::Int).boxed(),
        SqlType::Real => (-1e30f32..1e30).prop_map(Value::Real).boxed(),
        SqlType::Float => (-1e300f64..1e300).prop_map(Value::Float).boxed(),
        SqlType::Decimal { precision, scale } => {
            let limit = 10i128.pow(precision.into());
            (1 - limit..limit).prop_map(move |mantissa| Value::Decimal { mantissa, scale }).boxed()
        }
        SqlType::Money => any::<i64>().prop_map(|n| Value::Decimal { mantissa: n.into(), scale: 4 }).boxed(),
        SqlType::SmallMoney => any::<i32>().prop_map(|n| Value::Decimal { mantissa: n.into(), scale: 4 }).boxed(),
        SqlType::Char(n) | SqlType::NVarChar(Length::Limited(n)) => {
            proptest::string::string_regex(&format!(".{{0,{n}}}")).unwrap().prop_map(Value::Text).boxed()
        }
        SqlType::VarChar(_) | SqlType::Xml => ".{0,100}".prop_map(Value::Text).boxed(),
        SqlType::Binary(n) => prop::collection::vec(any::<u8>(), usize::from(n)).prop_map(Value::Bytes).boxed(),
        SqlType::VarBinary(_) => prop::collection::vec(any::<u8>(), 0..100).prop_map(Value::Bytes).boxed(),
        SqlType::RowVersion => prop::collection::vec(any::<u8>(), 8).prop_map(Value::Bytes).boxed(),
        SqlType::UniqueIdentifier => any::<[u8; 16]>().prop_map(Value::Uuid).boxed(),
        SqlType::Date => days.prop_map(Value::Date).boxed(),
        SqlType::Time { scale } => ticks(scale).prop_map(move |ticks| Value::Time { ticks, scale }).boxed(),
        SqlType::DateTime => (days, ticks(3)).prop_map(|(days, ticks)| Value::DateTime { days, ticks, scale: 3 }).boxed(),
        SqlType::SmallDateTime => (days, ticks(0)).prop_map(|(days, ticks)| Value::DateTime { days, ticks, scale: 0 }).boxed(),
        SqlType::DateTime2 { scale } => {
            (days, ticks(scale)).prop_map(move |(days, ticks)| Value::DateTime { days, ticks, scale }).boxed()
        }
        SqlType::DateTimeOffset { scale } => (days, ticks(scale), -840i16..=840)
            .prop_map(move |(days, ticks, offset_minutes)| Value::DateTimeOffset { days, ticks, scale, offset_minutes })
            .boxed(),
        other => panic!("{other} is not drawn"),
    }
}

proptest! {
    /// The native check stands in for the schema that init writes: both accept every value of the type, read by a JSON Schema validator that
    /// knows nothing of `x-sql-type`.
    #[test]
    fn values_of_a_type_keep_the_schema_of_the_type((sql_type, value) in any_type().prop_flat_map(|sql_type| (Just(sql_type), value_of(sql_type)))) {
        let table = TableSchema {
            name: TableName::new("dbo", "t"),
            columns: vec![Column { name: "c".into(), sql_type, nullable: false, case_insensitive: false }],
            key: vec![0],
        };
        let contract = Contract::parse("t", &Contract::from_table(&table).to_text()).unwrap();
        prop_assert_eq!(contract.check(&vec![value.clone()]), Ok(()));
        let validator = jsonschema::options().should_validate_formats(true).build(contract.to_json()).unwrap();
        let document = serde_json::json!({"c": value.to_json()});
        prop_assert!(validator.validate(&document).is_ok(), "{} {:?}", document, contract.to_json());
    }

    #[test]
    fn any_text_is_a_contract_or_is_refused(text in ".{0,60}") {
        let _ = Contract::parse("t", &text);
    }
}

#[test]
fn a_new_version_takes_over_what_is_compatible_and_keeps_what_people_wrote() {
    let contract = edited(|document| {
        document["properties"]["code"]["pattern"] = "^[A-Z]+$".into();
        document["properties"]["id"]["minimum"] = 1.into();
        document["description"] = "orders".into();
    })
    .unwrap();
    let mut live = orders();
    live.columns[0].sql_type = SqlType::BigInt;
    live.columns[1].sql_type = SqlType::VarChar(Length::Max);
    live.columns[2].nullable = true;
    live.columns[2].sql_type = SqlType::Decimal { precision: 12, scale: 2 };
    live.columns.push(column("extra", "datetime2(3)", false));
    let next = contract.evolve(&live).unwrap().unwrap();
    assert_eq!(next.version, 2);
    let text = next.to_text();
    for line in [
        r#"  "x-version": 2,"#,
        r#"  "description": "orders""#,
        r#"    "id": {"type": "integer", "minimum": 1, "maximum": 9223372036854775807, "x-sql-type": "bigint"},"#,
        r#"    "code": {"type": ["string", "null"], "x-sql-type": "varchar(max)", "x-case-insensitive": true, "pattern": "^[A-Z]+$"},"#,
        r#"    "total": {"type": ["string", "null"], "pattern": "^-?[0-9]{1,10}\\.[0-9]{2}$", "x-sql-type": "decimal(12,2)"},"#,
        r#"    "extra": {"type": ["string", "null"], "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}$", "x-sql-type": "datetime2(3)"}"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(next.compare(&live).is_empty());
    assert!(next.evolve(&live).unwrap().is_none());
    // Rows of before and of now.
    let old = |extra| [row(1, "A", 100), vec![extra]].concat();
    next.check(&old(Value::Null)).unwrap();
    next.check(&old(Value::DateTime { days: 1, ticks: 0, scale: 3 })).unwrap();
    assert_eq!(next.check(&[row(1, "a", 100), vec![Value::Null]].concat()).unwrap_err().rule, "pattern");
}

#[test]
fn what_breaks_has_no_next_version() {
    let contract = Contract::from_table(&orders());
    let mut live = orders();
    live.columns[3].name = "remark".into();
    let error = contract.evolve(&live).unwrap_err();
    assert!(matches!(&error, EvolveError::Breaking { differences, .. } if differences.len() == 1), "{error}");
    assert!(
        error.to_string().contains("dbo.orders: the table has changed in a way that breaks its contract: column note is in"),
        "{error}"
    );
}

#[test]
fn narrower_types_are_harmless() {
    let contract = Contract::from_table(&orders());
    let mut live = orders();
    live.columns[0].sql_type = SqlType::SmallInt;
    live.columns[1].sql_type = SqlType::NVarChar(Length::Limited(10));
    live.columns[2].sql_type = SqlType::SmallMoney;
    live.columns[3].sql_type = SqlType::NVarChar(Length::Limited(4000));
    let found: Vec<_> = contract.compare(&live).iter().map(Difference::compatibility).collect();
    // smallmoney has four digits after the point: it is written differently.
    use Compatibility::{Breaking, Harmless};
    assert_eq!(found, [Harmless, Harmless, Breaking, Harmless]);
    live.columns[2].sql_type = SqlType::Decimal { precision: 9, scale: 2 };
    assert!(contract.evolve(&live).unwrap().is_none());
}

#[test]
fn what_people_left_out_on_purpose_is_no_difference() {
    let contract = edited(|document| {
        document["x-omitted"] = serde_json::json!(["secret"]);
        document["properties"]["total"]["x-never-null"] = true.into();
    })
    .unwrap();
    let mut live = orders();
    live.columns[2].nullable = true;
    live.columns.push(column("secret", "int", false));
    assert!(contract.compare(&live).is_empty());
    let edit = |edit: &dyn Fn(&mut serde_json::Value)| edited(|document| edit(document)).unwrap_err().to_string();
    assert!(edit(&|d| d["x-omitted"] = serde_json::json!(["id"])).contains("/x-omitted: \"id\" is among the properties"));
    assert!(
        edit(&|d| d["properties"]["note"]["x-never-null"] = true.into())
            .contains("/properties/note/x-never-null: the column's type lets null be")
    );
    assert!(edit(&|d| d["x-version"] = 0.into()).contains("/x-version: 0 is not a version"));
}

proptest! {
    /// Whatever the table becomes: every value that it can hold keeps the contract as it is (harmless), or its next version (compatible), and the next version lets in
    /// what the last one did.
    #[test]
    fn versions_let_in_what_their_tables_hold(
        (old, old_value, new, new_value) in (any_type(), any_type()).prop_flat_map(|(old, new)| (Just(old), value_of(old), Just(new), value_of(new)))
    ) {
        let table = |sql_type| TableSchema {
            name: TableName::new("dbo", "t"),
            columns: vec![Column { name: "c".into(), sql_type, nullable: false, case_insensitive: false }],
            key: vec![0],
        };
        let contract = Contract::parse("t", &Contract::from_table(&table(old)).to_text()).unwrap();
        let Ok(next) = contract.evolve(&table(new)) else { return Ok(()) };
        let next = next.unwrap_or(contract);
        prop_assert_eq!(next.check(&vec![old_value]), Ok(()));
        prop_assert_eq!(next.check(&vec![new_value]), Ok(()));
    }
}
