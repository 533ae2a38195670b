#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn scope() -> Scope {
    Scope::of_json_schema(&json!({"type": "object", "properties": {
        "id": {"type": "integer"}, "name": {"type": ["string", "null"]}, "active": {"type": "boolean"}, "ratio": {"type": "number"},
        "total": {"type": ["string", "null"], "format": "decimal"}, "placed": {"type": "string", "format": "local-date-time"},
        "at": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"}, "what": {},
        "customer": {"anyOf": [{"type": "object", "properties": {"name": {"type": "string"}}}, {"type": "null"}]},
        "items": {"type": "array", "items": {"type": "object", "properties": {
            "price": {"type": "string", "format": "decimal"}, "count": {"type": "integer"}, "kind": {"type": ["string", "null"]}}}}}}))
}

fn document() -> Json {
    json!({"id": 7, "name": "Ann", "active": true, "ratio": 1.1, "total": "90071992547409.93", "placed": "2024-02-29T10:00:00.120",
        "at": "2024-02-29T00:30:00-09:30", "day": "2024-03-01", "what": {"deep": [1, 2.5, "x"]}, "customer": {"name": "Bo"},
        "items": [{"price": "1.10", "count": 2, "kind": "a"}, {"price": "2.20", "count": 1, "kind": null}, {"price": "0.05", "count": 3, "kind": "a"}]})
}

fn evaluate(text: &str) -> Result<Json, String> {
    let expression = Expression::compile(text, &scope()).map_err(|error| error.to_string())?;
    let document = document();
    let input = expression.over(&document);
    expression.evaluate(&input).map(|value| value.to_json()).map_err(|error| error.to_string())
}

#[test]
fn expressions_have_their_values() {
    for (text, expected) in [
        ("id + 1 == 8 && active", json!(true)),
        ("total + 0.01", json!("90071992547409.94")),
        ("total * 3", json!("270215977642229.79")),
        ("total > 90071992547409.92", json!(true)),
        ("total == decimal(\"90071992547409.930\")", json!(true)),
        ("7 / 2", json!(3)),
        ("7.0 / 2", json!("3.500000")),
        ("-7 % 4", json!(-3)),
        ("ratio == 1.1", json!(true)),
        ("ratio * 2", json!(2.2)),
        ("id > 6.9 && id < 7.5", json!(true)),
        ("name + \"!\"", json!("Ann!")),
        ("name.startsWith(\"A\") && name.contains(\"nn\") && !name.endsWith(\"x\")", json!(true)),
        ("name.matches(\"^A.n$\") || false", json!(true)),
        ("name.lowerAscii().substring(1, 2).upperAscii() + \" x \".trim()", json!("Nx")),
        ("name.replace(\"n\", \"mm\")", json!("Ammmm")),
        ("size(name) + size(items)", json!(6)),
        ("items.map(i, i.price * i.count).sum()", json!("4.55")),
        ("items.map(i, i.count > 1, i.count)", json!([2, 3])),
        ("items.filter(i, i.kind == \"a\").size()", json!(2)),
        ("items.exists(i, i.price > 2) && items.all(i, i.count > 0)", json!(true)),
        ("items.exists_one(i, i.kind == null)", json!(true)),
        ("items.map(i, i.count).max() - items.map(i, i.count).min()", json!(2)),
        ("items.map(i, i.count).avg()", json!("2.000000")),
        ("items.map(i, i.kind).distinct()", json!(["a", null])),
        ("items.map(i, items.map(j, j.count * i.count).sum()).sum()", json!(36)),
        ("items[1].price", json!("2.20")),
        ("customer.name", json!("Bo")),
        ("has(customer.name) ? \"yes\" : \"no\"", json!("yes")),
        ("what.deep[1] + 1", json!(3.5)),
        ("id in [1, 7] && !(\"z\" in what)", json!(true)),
        ("placed >= \"2024-02-29\" && placed < datetime(\"2024-02-29T10:00:01\")", json!(true)),
        ("date(placed) < day", json!(true)),
        ("at == timestamp(\"2024-02-29T10:00:00Z\")", json!(true)),
        ("at.getHours() * 100 + at.getMonth()", json!(1001)),
        ("date(placed)", json!("2024-02-29")),
        ("string(day).substring(0, 7)", json!("2024-03")),
        ("round(2.345, 2)", json!("2.35")),
        ("abs(-3) + int(\"4\") + int(5.9)", json!(12)),
        ("{\"a\": id, \"b\": [name, null]}", json!({"a": 7, "b": ["Ann", null]})),
        ("coalesce(null, name)", json!("Ann")),
        ("\"é\" == \"\\u00e9\"", json!(true)),
        ("1e3 == 1000", json!(true)),
        ("-(id) == -7", json!(true)),
    ] {
        assert_eq!(evaluate(text), Ok(expected), "{text}");
    }
}

#[test]
fn of_null_comes_null() {
    let (scope, document) = (scope(), json!({"active": true, "items": null}));
    for (text, expected) in [
        ("total > 5", json!(null)),
        ("total + 1", json!(null)),
        ("total == null && total != 5", json!(true)),
        ("!(total > 5)", json!(null)),
        ("total > 5 || active", json!(true)),
        ("total > 5 && !active", json!(false)),
        ("total > 5 && active", json!(null)),
        ("total > 5 ? 1 : 2", json!(2)),
        ("name.size()", json!(null)),
        ("customer.name", json!(null)),
        ("has(customer.name)", json!(false)),
        ("items.exists(i, i.count > 1)", json!(null)),
        ("[1, null].exists(i, i > 1)", json!(null)),
        ("[null, 2].exists(i, i > 1)", json!(true)),
        ("[1, null, 2].sum()", json!(3)),
        ("coalesce(total, 0.00)", json!("0")),
    ] {
        let expression = Expression::compile(text, &scope).unwrap();
        assert_eq!(expression.evaluate(&expression.over(&document)).unwrap().to_json(), expected, "{text}");
    }
    let predicate = Expression::predicate("total > 5", &scope).unwrap();
    assert!(!predicate.is_met(&predicate.over(&document)).unwrap());
}

#[test]
fn mistakes_are_found_before_there_is_a_value() {
    for (text, expected) in [
        ("nmae == \"x\"", "line 1, column 1: nothing here is called \"nmae\": did you mean \"name\"?"),
        ("id == 1 &&\n  totl > 2", "line 2, column 3: nothing here is called \"totl\": did you mean \"total\"?"),
        ("id + name", "in `id + name`: + is not possible with int and string"),
        ("name == 5", "== is not possible with string and int"),
        ("customer.nam", "has no member \"nam\""),
        ("name.length()", "there is no function \"length\""),
        ("name.uperAscii()", "did you mean \"upperAscii\"?"),
        ("contains(name, \"x\")", "no function \"contains\" that is called like this"),
        ("placed > \"yesterday\"", "\"yesterday\" is not a datetime"),
        ("date(\"2023-02-29\")", "\"2023-02-29\" is not a date"),
        ("placed > at", "> is not possible with datetime and timestamp"),
        ("1234567890123456.789 > total", "write decimal(\"1234567890123456.789\")"),
        ("id ? 1 : 2", "in `id`: int where bool is needed"),
        ("id +", "line 1, column 5"),
        ("name.matches(\"(\")", "the pattern"),
        ("name.matches(name)", "patterns that are not string literals"),
        ("\"x", "unterminated string literal"),
        ("99999999999999999999", "invalid int literal"),
        ("", "line 1, column 1"),
        ("Message{a: 1}", "messages are not offered"),
        ("items.map(i, i.count).map(j, j.x)", "a member \"x\" is not possible with int"),
    ] {
        let found = Expression::compile(text, &scope()).map(|_| ()).unwrap_err().to_string();
        assert!(found.contains(expected), "{text}: {found}");
    }
    let predicate = Expression::predicate("id + 1", &scope()).unwrap_err().to_string();
    assert!(predicate.contains("in `id + 1`: int where bool is needed"), "{predicate}");
}

#[test]
fn expressions_are_bounded() {
    let nested = |levels: usize| format!("{}1{}", "(1 + ".repeat(levels), ")".repeat(levels));
    assert!(evaluate(&nested(20)).is_ok());
    for text in
        [nested(200), "1 + ".repeat(900) + "1", "true ? 1 : ".repeat(200) + "1", "!".repeat(3000) + "(active)", "x".repeat(5000)]
    {
        let found = Expression::compile(&text, &scope());
        assert!(found.is_err() || text.starts_with('!'), "{text}");
    }
    let long: Vec<i32> = (0..2000).collect();
    let expression = Expression::compile("what.map(i, what.map(j, i * j).sum()).sum()", &scope()).unwrap();
    let error = expression.evaluate(&expression.over(&json!({"what": long}))).unwrap_err();
    assert!(matches!(error, EvaluationError::TooManySteps { .. }), "{error}");
}

#[test]
fn failures_say_where() {
    for (text, expected) in [
        ("id / (id - 7)", "in `id / (id - 7)`: division by zero"),
        ("int(name) > 1", "in `int(name)`: \"Ann\" is not a 64-bit whole number"),
        ("9223372036854775807 + id", "in `9223372036854775807 + id`: the result has more digits"),
        ("what.deep[9]", "in `what.deep[9]`: there is no element 9"),
        ("what + 1", "in `what + 1`: not possible with object and int"),
    ] {
        assert!(evaluate(text).unwrap_err().contains(expected), "{text}: {:?}", evaluate(text));
    }
    // What decides stands, whatever the other side does.
    assert_eq!(evaluate("1 / 0 > 0 || active"), Ok(json!(true)));
    let expression = Expression::compile("total > 1", &scope()).unwrap();
    let wrong = json!({"total": "abc"});
    assert!(matches!(expression.evaluate(&expression.over(&wrong)).unwrap_err(), EvaluationError::Unreadable { .. }));
}

#[test]
fn what_an_expression_answers_is_known() {
    for (text, expected) in [
        ("id + 1", Type::Int),
        ("id * 1.5", Type::Decimal),
        ("total / 2", Type::Decimal),
        ("ratio * total", Type::Double),
        ("active ? id : null", Type::Int),
        ("items.map(i, i.price).sum()", Type::Decimal),
        ("date(at)", Type::Moment(Kind::Date)),
        ("what", Type::Any),
    ] {
        assert_eq!(*Expression::compile(text, &scope()).unwrap().returns(), expected, "{text}");
    }
    let expression = Expression::compile("total > id && total < 9", &scope()).unwrap();
    assert_eq!(expression.variables(), [("total".to_owned(), Type::Decimal), ("id".to_owned(), Type::Int)]);
    let schema = Type::list(Type::Moment(Kind::Instant)).json_schema();
    assert_eq!(Type::of_json_schema(&schema), Type::list(Type::Moment(Kind::Instant)));
}

#[test]
fn fragments_are_read_as_they_stand_in_rows() {
    let read = |fragment: &'static str, of: Type| Value::from_fragment(fragment.as_bytes(), &of).map(|value| value.to_json());
    assert_eq!(read("", Type::Int), Ok(json!(null)));
    assert_eq!(read("null", Type::Text), Ok(json!(null)));
    assert_eq!(read("\"a\\\"b\"", Type::Text), Ok(json!("a\"b")));
    assert_eq!(read("\"12.50\"", Type::Decimal), Ok(json!("12.50")));
    assert_eq!(read("18446744073709551616", Type::Int), Ok(json!("18446744073709551616")));
    assert_eq!(read("\"AP8B\"", Type::Bytes), Ok(json!("AP8B")));
    assert_eq!(read("[{\"a\":1}]", Type::Any), Ok(json!([{"a": 1}])));
    assert!(read("\"x\"", Type::Int).is_err());
}

/// Words that meet in most expressions, in any order.
fn text() -> impl Strategy<Value = String> {
    let words = "id total name what items 1 2.5 \"x\" null + - * / % == < && ! ? : ( ) [ ] . , in size( .map(i,i) .sum() has( { } é ` \\ '";
    prop::collection::vec(prop::sample::select(words.split(' ').collect::<Vec<_>>()), 0..20).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn nothing_panics(text in text(), any: String) {
        for text in [text, any] {
            if let Ok(expression) = Expression::compile(&text, &scope()) {
                let document = document();
                let _ = expression.evaluate(&expression.over(&document));
            }
        }
    }

    /// Sums and comparisons of money, held against whole numbers of hundredths.
    #[test]
    fn money_is_exact(a in -(1i64 << 60)..1i64 << 60, b in -(1i64 << 60)..1i64 << 60) {
        let text = |n: i64| format!("{}{}.{:02}", if n < 0 { "-" } else { "" }, n.abs() / 100, n.abs() % 100);
        let scope = Scope::new([("a".to_owned(), Type::Decimal), ("b".to_owned(), Type::Decimal)]);
        let expression = Expression::compile("[a + b, a < b ? a : b]", &scope).unwrap();
        let document = json!({"a": text(a), "b": text(b)});
        let found = expression.evaluate(&expression.over(&document)).unwrap().to_json();
        prop_assert_eq!(found, json!([text(a + b), text(a.min(b))]));
    }
}
