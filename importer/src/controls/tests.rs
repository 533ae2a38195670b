#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use schemas::value::Value;
use source::Password;

use super::*;

fn table() -> TableSchema {
    let column = |name: &str, sql_type: &str, case_insensitive| Column {
        name: name.into(),
        sql_type: sql_type.parse().unwrap(),
        nullable: true,
        case_insensitive,
    };
    let columns = vec![
        column("id", "int", false),
        column("region", "varchar(10)", true),
        column("total", "decimal(10,2)", false),
        column("note", "nvarchar(max)", false),
        column("at", "datetime2(3)", false),
        column("ssn", "char(11)", false),
    ];
    TableSchema { name: TableName::new("dbo", "orders"), columns, key: vec![0] }
}

fn row(id: i64, region: Option<&str>, cents: i128, day: u32) -> Row {
    vec![
        Value::Int(id),
        region.map_or(Value::Null, |text| Value::Text(text.into())),
        Value::Decimal { mantissa: cents, scale: 2 },
        Value::Unavailable,
        Value::DateTime { days: day, ticks: 0, scale: 3 },
        Value::Text("123-45-6789".into()),
    ]
}

fn controlled(settings: &TableControls) -> Result<Controlled, ControlsError> {
    Controlled::new(settings, &table())
}

fn with_filter(filter: &str) -> TableControls {
    TableControls { filter: Some(filter.into()), ..TableControls::default() }
}

#[test]
fn columns_are_left_out_renamed_and_masked() {
    let settings: TableControls = serde_json::from_value(serde_json::json!({
        "exclude": ["note", "total"],
        "rename": {"region": "area"},
        "mask": {"ssn": {"truncate": 3}, "region": {"fixed": "?"}, "id": {"hash": "secret"}},
        "filter": "total >= 1.5",
    }))
    .unwrap();
    let Controlled { read, published, controls } = controlled(&settings).unwrap();
    let names = |schema: &TableSchema| schema.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&published), ["id", "area", "at", "ssn"]);
    // The filter's column is read and not published.
    assert_eq!(names(&read), ["id", "region", "at", "ssn", "total"]);
    assert_eq!(published.columns[0].sql_type.to_string(), "char(64)");
    assert_eq!((read.key.as_slice(), published.key.as_slice()), (&[0][..], &[0][..]));
    let full = row(7, Some("EU"), 150, 1);
    let picked = |cents| {
        vec![full[0].clone(), full[1].clone(), full[4].clone(), full[5].clone(), Value::Decimal { mantissa: cents, scale: 2 }]
    };
    let shown = controls.row(picked(150)).unwrap();
    assert_eq!(&shown[1..], [Value::Text("?".into()), full[4].clone(), Value::Text("123".into())]);
    assert!(matches!(&shown[0], Value::Text(hash) if hash.len() == 64));
    assert_eq!(controls.row(picked(150)).unwrap()[0], shown[0], "equal values stay equal");
    assert_eq!(controls.row(picked(149)), None);
    // A hash under another key is another hash; NULL stays NULL.
    let mut value = Value::Int(7);
    Mask::Hash(Password::new("other")).apply(&mut value);
    assert_ne!(value, shown[0]);
    let mut null = Value::Null;
    Mask::Fixed("x".into()).apply(&mut null);
    assert_eq!(null, Value::Null);
}

#[test]
fn rows_enter_and_leave_the_filter() {
    let controls = controlled(&with_filter("region in ('EU', 'uk') and id <> 9")).unwrap().controls;
    let (inside, outside) = (|| Some(row(1, Some("eu  "), 1, 1)), || Some(row(1, Some("US"), 1, 1)));
    let change = |before: Option<Row>, after: Option<Row>| {
        let (before, after) = controls.change(before, after);
        (before.is_some(), after.is_some())
    };
    assert_eq!(change(inside(), inside()), (true, true));
    assert_eq!(change(inside(), outside()), (true, false), "a row that leaves is a delete");
    assert_eq!(change(outside(), inside()), (false, true), "a row that enters is an insert");
    assert_eq!(change(outside(), outside()), (false, false));
    assert_eq!(change(None, Some(row(9, Some("EU"), 1, 1))), (false, false));
    assert_eq!(change(None, Some(row(1, None, 1, 1))), (false, false), "NULL equals nothing");
}

#[test]
fn comparisons_are_those_of_sql() {
    let holds = |filter: &str, row: &Row| controlled(&with_filter(filter)).unwrap().controls.takes(row);
    let it = row(5, Some("EU"), 250, 738_944);
    for filter in [
        "id = 5",
        "id <= 5",
        "id >= 5.0",
        "id < 5.5",
        "total = 2.5",
        "total > 2.49",
        "[total] <> 3",
        "region = 'eu'",
        "Region <> 'US' AND id > 1",
        "region is not null",
        "at > '2024-02-28'",
        "at <= '2024-02-29T00:00:00.000'",
        "id in (1, 5)",
        "id > -1",
    ] {
        assert!(holds(filter, &it), "{filter}");
    }
    for filter in [
        "id = 6",
        "id < 5",
        "total < 2.5",
        "region = 'US'",
        "region is null",
        "at < '2024-02-29'",
        "id in (1, 2)",
        "id = 5 and total = 1",
    ] {
        assert!(!holds(filter, &it), "{filter}");
    }
    let null = row(5, None, 0, 1);
    assert!(holds("region is null", &null) && !holds("region <> 'EU'", &null));
}

#[test]
fn controls_that_do_not_fit_are_refused() {
    let refused = |settings: serde_json::Value| controlled(&serde_json::from_value(settings).unwrap()).err().unwrap().to_string();
    assert!(refused(serde_json::json!({"exclude": ["id"]})).contains("part of the key"));
    assert!(refused(serde_json::json!({"exclude": ["ido"]})).contains("id, region, total"));
    assert!(refused(serde_json::json!({"mask": {"id": {"fixed": "x"}}})).contains("hash"));
    assert!(refused(serde_json::json!({"mask": {"total": {"truncate": 2}}})).contains("only text"));
    assert!(refused(serde_json::json!({"mask": {"ssn": {"fixed": "twelve chars"}}})).contains("more characters"));
    assert!(refused(serde_json::json!({"rename": {"region": "total"}})).contains("two columns"));
    for (filter, what) in [
        ("", "a column is expected"),
        ("id", "a comparison is expected"),
        ("id = ", "a number or a text"),
        ("id = 1 or id = 2", "`and` is expected"),
        ("id = 'x'", "compare it with a number"),
        ("region > 'A'", "collation"),
        ("note = 'x'", "does not record every value"),
        ("region = 'x", "no end"),
        ("x = 1", "not captured"),
    ] {
        let error = controlled(&with_filter(filter)).err().unwrap().to_string();
        assert!(error.contains(what), "{filter}: {error}");
    }
    let mask = |json: serde_json::Value| serde_json::from_value::<Mask>(json);
    assert!(mask(serde_json::json!({"fixed": "x", "truncate": 1})).is_err());
    assert!(mask(serde_json::json!({"hash": "${NO_SUCH_VARIABLE}"})).unwrap_err().to_string().contains("export"));
    assert!(!format!("{:?}", mask(serde_json::json!({"hash": "secret"})).unwrap()).contains("secret"));
}

proptest! {
    #[test]
    fn no_filter_text_panics(filter in ".{0,40}") {
        let _ = controlled(&with_filter(&filter));
    }

    #[test]
    fn numbers_compare_as_numbers(id in any::<i32>(), other in any::<i32>()) {
        let controls = controlled(&with_filter(&format!("id < {other}"))).unwrap().controls;
        prop_assert_eq!(controls.takes(&row(id.into(), None, 0, 1)), id < other);
    }
}
