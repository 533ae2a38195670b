#![allow(clippy::unwrap_used)]

use super::*;
use crate::table::{Column, SqlType};

fn table(name: &str, columns: &[(&str, &str)], key: &[&str]) -> Arc<TableSchema> {
    let columns: Vec<Column> = columns
        .iter()
        .map(|(name, sql_type)| Column {
            name: (*name).to_owned(),
            sql_type: sql_type.parse::<SqlType>().unwrap(),
            nullable: false,
            case_insensitive: sql_type.contains("char"),
        })
        .collect();
    let key = key.iter().map(|name| columns.iter().position(|column| column.name == *name).unwrap()).collect();
    Arc::new(TableSchema { name: name.parse().unwrap(), columns, key })
}

fn tables(name: &TableName) -> Option<Arc<TableSchema>> {
    let tables = [
        table("dbo.orders", &[("id", "int"), ("customer_id", "int"), ("status", "varchar(9)"), ("note", "ntext")], &["id"]),
        table("dbo.customers", &[("id", "int"), ("name", "nvarchar(50)"), ("region", "datetime2(3)")], &["id"]),
        table(
            "dbo.items",
            &[("order_id", "int"), ("line_no", "smallint"), ("amount", "decimal(10,2)"), ("text", "nvarchar(9)")],
            &["order_id", "line_no"],
        ),
        table("dbo.logs", &[("order_id", "int"), ("word", "varchar(9)")], &[]),
    ];
    tables.into_iter().find(|table| table.name == *name)
}

fn resolve(text: &str) -> Result<Plan, PlanError> {
    Plan::resolve(&EntityDefinition::from_yaml("order.yaml", text)?, &tables)
}

const ORDER: &str = "
entity: order
table: dbo.orders
fields: [id, {state: status}]
one:
  customer: {table: dbo.customers, by: [customer_id], require: true}
many:
  items: {table: dbo.items, by: [order_id], order_by: [-amount], fields: [line_no]}
aggregates:
  n: {count: items}
  total: {sum: items.amount}
";

#[test]
fn a_definition_becomes_a_tree_of_indexes() {
    let plan = resolve(ORDER).unwrap();
    let paths: Vec<&str> = plan.nodes.iter().map(|node| node.path.as_str()).collect();
    assert_eq!(paths, ["order", "order.customer", "order.items"]);
    assert_eq!(plan.key, [KeyPart { column: 0, key_type: KeyType::Int }]);
    assert_eq!(plan.nodes[1].link, [Link { parent_column: 1, own_column: 0, key_type: KeyType::Int }]);
    assert_eq!(plan.nodes[2].link, [Link { parent_column: 0, own_column: 0, key_type: KeyType::Int }]);
    assert_eq!(plan.root().aggregates[1].kind, AggregateKind::SumDecimal { scale: 2 });
    let used = plan.used_columns();
    assert_eq!(used[&TableName::new("dbo", "orders")], [0, 1, 2].into());
    assert_eq!(used[&TableName::new("dbo", "items")], [0, 1, 2].into());
    let info = plan.info();
    assert_eq!(info.key, [("id".to_owned(), SqlType::Int)]);
    let validator = jsonschema::validator_for(&info.document_schema).unwrap();
    let document = serde_json::json!({"id": 1, "state": "x", "customer": {"id": 2, "name": "n", "region": "2024-01-01T00:00:00.000"},
        "items": [{"line_no": 1}], "n": 1, "total": "1.00"});
    assert!(validator.is_valid(&document), "{:?}", validator.iter_errors(&document).map(|e| e.to_string()).collect::<Vec<_>>());
    assert!(!validator.is_valid(&serde_json::json!({"id": 1})));
}

#[test]
fn mistakes_are_named_with_their_remedy() {
    let cases = [
        ("entity: Order\ntable: dbo.orders", "not an entity name"),
        ("entity: order\ntable: dbo.order", "table dbo.order is not captured"),
        ("entity: order\ntabel: dbo.orders", "order.yaml: unknown field `tabel`"),
        ("entity: order\ntable: dbo.orders\nfields: [id, statsu]", "did you mean \"status\"?"),
        ("entity: order\ntable: dbo.orders\nfields: [id, {id: status}]", "\"id\" stands twice"),
        ("entity: order\ntable: dbo.orders\nmany: {status: {table: dbo.items, by: [order_id]}}", "\"status\" stands twice"),
        ("entity: log\ntable: dbo.logs", "table dbo.logs has no key"),
        (
            "entity: order\ntable: dbo.orders\nmany: {logs: {table: dbo.logs, by: [order_id]}}",
            "at order.logs: table dbo.logs has no key",
        ),
        ("entity: order\ntable: dbo.orders\nkey: [note]", "is ntext, which cannot be part of `key`"),
        (
            "entity: order\ntable: dbo.orders\none: {c: {table: dbo.items, by: [id]}}",
            "`by` names 1 columns and `references` 2 (dbo.items: order_id, line_no)",
        ),
        ("entity: order\ntable: dbo.orders\none: {c: {table: dbo.customers, by: []}}", "`by` is missing"),
        (
            "entity: order\ntable: dbo.orders\none: {c: {table: dbo.customers, by: [status]}}",
            "dbo.orders.status (varchar(9)) and dbo.customers.id (int) cannot be compared",
        ),
        (
            "entity: order\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: [order_id]}}\naggregates: {n: {count: item}}",
            "did you mean \"items\"?",
        ),
        (
            "entity: order\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: [order_id]}}\naggregates: {n: {sum: items.text}}",
            "only numbers can be summed",
        ),
        (
            "entity: order\ntable: dbo.orders\nmany: {items: {table: dbo.items, by: [order_id], order_by: [-lin_no]}}",
            "(in `order_by`): did you mean \"line_no\"?",
        ),
        (
            "entity: order\ntable: dbo.orders\none:\n  c: {table: dbo.customers, by: [id]}\n  c: {table: dbo.customers, by: [id]}",
            "duplicate",
        ),
    ];
    for (text, expected) in cases {
        let message = resolve(text).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nshould say {expected}");
    }
    let line =
        resolve("entity: order\ntable: dbo.orders\nmany:\n  items: {table: dbo.items, bye: [order_id]}").unwrap_err().to_string();
    assert!(line.contains("order.yaml") && line.contains("bye") && line.contains("line 4"), "{line}");
}

#[test]
fn a_table_may_stand_in_several_places_but_not_without_end() {
    let nested = |levels: usize| {
        let mut text = "entity: order\ntable: dbo.orders\nfields: [id]\n".to_owned();
        for level in 1..levels {
            let pad = "  ".repeat(level - 1);
            text.push_str(&format!("{pad}one: \n{pad} o:\n{pad}  table: dbo.orders\n{pad}  by: [id]\n{pad}  fields: [id]\n"));
        }
        text
    };
    assert_eq!(resolve(&nested(DEPTH_LIMIT)).unwrap().nodes.len(), DEPTH_LIMIT);
    assert!(
        matches!(resolve(&nested(DEPTH_LIMIT + 1)).unwrap_err(), PlanError::Definition { mistake, .. } if *mistake == Mistake::TooDeep)
    );
}

#[test]
fn keys_have_one_text() {
    let normalize = |key_type: KeyType, text: &str| key_type.normalize(text).unwrap();
    assert_eq!(normalize(KeyType::Int, "007"), "7");
    assert_eq!(normalize(KeyType::Decimal, "-0.500"), "-0.5");
    assert_eq!(normalize(KeyType::Decimal, "-0.0"), "0");
    assert_eq!(normalize(KeyType::FoldedText, "Straße  "), normalize(KeyType::FoldedText, "STRASSE"));
    assert_eq!(normalize(KeyType::Text, "Ab "), "Ab");
    assert_eq!(normalize(KeyType::Time, "2024-01-01T00:00:00.120"), "2024-01-01T00:00:00.12");
    assert_eq!(normalize(KeyType::Time, "2024-01-01T00:00:00.000"), "2024-01-01T00:00:00");
    assert_eq!(normalize(KeyType::Float, "-0"), "0.0");
    assert_eq!(KeyType::Int.normalize("x"), None);
    assert_eq!(resolve(ORDER).unwrap().normalize_key(&EntityKey::from_text("0012")), Some(EntityKey::from_text("12")));
    assert_eq!(resolve(ORDER).unwrap().normalize_key(&EntityKey::from_text("1,2")), None);
}

#[test]
fn what_a_column_is_used_for_is_told_with_its_place() {
    let plan = resolve(ORDER).unwrap();
    let uses = |table: &str, column: &str| {
        plan.uses(&table.parse().unwrap(), column).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(uses("dbo.orders", "status"), ["order.state"]);
    assert_eq!(uses("dbo.orders", "note"), [""; 0]);
    assert_eq!(uses("dbo.orders", "id"), ["order.id", "order (entity key)", "order (tells rows apart)", "order.items (join)"]);
    assert_eq!(uses("dbo.orders", "customer_id"), ["order.customer (join)"]);
    assert_eq!(uses("dbo.customers", "name"), ["order.customer.name"]);
    assert_eq!(uses("dbo.items", "amount"), ["order.items (order)", "order.total (sum over order.items)"]);
    assert_eq!(uses("dbo.items", "order_id"), ["order.items (tells rows apart)", "order.items (join)"]);
    let whole = |table: &str| plan.published_whole(&table.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(whole("dbo.customers"), ["order.customer (publishes every column)"]);
    assert_eq!(whole("dbo.items"), [""; 0]);
    assert_eq!(plan.places(&"dbo.items".parse().unwrap()).len(), 1);
}

/// The tables that the examples of the documentation stand on.
fn shop(name: &TableName) -> Option<Arc<TableSchema>> {
    let orders = [("id", "int"), ("customer_id", "int"), ("status", "varchar(10)"), ("placed_at", "datetime2(0)")];
    let items = [
        ("order_id", "int"),
        ("line_no", "int"),
        ("product_id", "int"),
        ("price", "decimal(10,2)"),
        ("quantity", "int"),
        ("returned", "bit"),
        ("note", "nvarchar(max)"),
    ];
    let tables = [
        table("dbo.orders", &orders, &["id"]),
        table("dbo.order_items", &items, &["order_id", "line_no"]),
        table("dbo.customers", &[("id", "int"), ("name", "nvarchar(50)"), ("tier", "varchar(10)")], &["id"]),
        table("dbo.products", &[("id", "int"), ("sku", "varchar(20)"), ("name", "nvarchar(50)")], &["id"]),
        table("dbo.categories", &[("id", "int"), ("parent_id", "int"), ("name", "nvarchar(50)")], &["id"]),
    ];
    tables.into_iter().find(|table| table.name == *name)
}

/// The same beside another source, as the example of several sources has it.
fn shop_and_payments(name: &TableName) -> Option<Arc<TableSchema>> {
    let called = name.to_string();
    let found = match called.strip_prefix("shop.") {
        Some(own) => shop(&own.parse().unwrap()),
        None if called == "payments.dbo.payments" => Some(table("dbo.payments", &[("id", "int"), ("order_id", "int")], &["id"])),
        None => shop(name),
    };
    found.map(|found| Arc::new(TableSchema { name: name.clone(), ..(*found).clone() }))
}

fn resolve_in_shop(text: &str) -> Result<Plan, PlanError> {
    Plan::resolve(&EntityDefinition::from_yaml("example.yaml", text)?, &shop)
}

#[test]
fn the_examples_of_the_documentation_are_definitions() {
    let schema = jsonschema::validator_for(&crate::entity::definition_schema()).unwrap();
    let page = include_str!("../../../docs/entities.md");
    let blocks = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let blocks: Vec<&str> = blocks.filter(|block| block.starts_with("entity:")).collect();
    let definitions = blocks.iter().map(|block| EntityDefinition::from_yaml("example.yaml", block).unwrap());
    let definitions: Vec<EntityDefinition> = definitions.collect();
    let plans = Plan::resolve_all(&definitions, &shop_and_payments).unwrap_or_else(|error| panic!("{error}"));
    for (block, definition) in blocks.iter().zip(&definitions) {
        let plan = plans.iter().find(|plan| plan.definition == *definition).unwrap();
        let written: serde_json::Value = serde_yaml_ng::from_str(block).unwrap();
        assert!(
            schema.is_valid(&written),
            "{:?}\n{block}",
            schema.iter_errors(&written).map(|e| e.to_string()).collect::<Vec<_>>()
        );
        // What is written again is the same definition.
        let again = serde_yaml_ng::to_string(&plan.definition).unwrap();
        assert_eq!(EntityDefinition::from_yaml("again.yaml", &again).unwrap(), plan.definition);
        jsonschema::validator_for(&plan.info().document_schema).unwrap();
    }
    assert_eq!(plans.len(), 11);
}

#[test]
fn documents_are_rolled_up_in_the_order_that_they_need() {
    let all = |texts: &[&str]| {
        let definitions = texts.iter().map(|text| EntityDefinition::from_yaml("example.yaml", text));
        Plan::resolve_all(&definitions.collect::<Result<Vec<_>, _>>()?, &shop)
    };
    let order = "entity: order\ntable: dbo.orders\nfields: [id, status]\nmany: {items: {table: dbo.order_items, by: [order_id]}}\naggregates: {total: {sum: items.price}}";
    let sales = "entity: sales\nof: order\ngroup_by: [status]\naggregates: {total: {sum: rows.total}, items: {sum: rows, value: size(items)}}";
    let great = "entity: great\nof: sales\ngroup_by: [{great: total > 100}]\naggregates: {n: {count: rows}}";
    let plans = all(&[great, sales, order]).unwrap();
    assert_eq!(plans.iter().map(|plan| &*plan.entity).collect::<Vec<_>>(), ["order", "sales", "great"]);
    let columns: Vec<&str> = plans[1].root().table.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(columns, ["order.id", "status", "`size(items)`", "total"]);
    let kinds: Vec<AggregateKind> = plans[1].group.as_ref().unwrap().aggregates.iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [AggregateKind::SumInt, AggregateKind::SumDecimal { scale: 2 }]);
    assert_eq!(plans[2].input.as_ref().unwrap().plan.entity, plans[1].entity);
    for (texts, expected) in [
        (&[sales][..], "no entity \"order\" is defined to be rolled up"),
        (&[order, "entity: a\nof: ordr\ngroup_by: [x]"], "did you mean \"order\"?"),
        (&["entity: a\nof: b\ngroup_by: [x]", "entity: b\nof: a\ngroup_by: [x]"], "cut the cycle"),
        (&[order, "entity: a\nof: order\ngroup_by: [status]\nfields: [id]"], "`of` and `fields` exclude each other"),
        (&[order, "entity: a\nof: order\ntable: dbo.orders\ngroup_by: [status]"], "`of` and `table` exclude each other"),
        (&[order, "entity: a\nof: order"], "missing `group_by`"),
        (&[order, "entity: a\nof: order\ngroup_by: [statsu]"], "did you mean \"status\"?"),
        (&[order, "entity: a\nof: order\ngroup_by: [items]"], "group by numbers, text"),
        (&[order, "entity: a\nof: order\ngroup_by: [status]\naggregates: {s: {sum: rows.totl}}"], "did you mean \"total\"?"),
        (&[order, "entity: a\nof: order\ngroup_by: [status]\naggregates: {s: {sum: rows.status}}"], "only numbers can be summed"),
        (&[order, "entity: a\nof: order\ngroup_by: [status]\naggregates: {s: {sum: items.price}}"], "is over \"items\""),
        (&["entity: a"], "neither a `table` nor `of`"),
    ] {
        let message = all(texts).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nshould say {expected}");
    }
}

#[test]
fn what_is_computed_of_a_row_is_derived_and_its_columns_are_not_kept() {
    let plan = resolve_in_shop(
        "entity: e\ntable: dbo.orders\nfields: [id]\nwhere: status != \"X\"\nmany: {i: {table: dbo.order_items, by: [order_id], fields: [], where: returned}}\n\
         aggregates: {n: {count: i, where: quantity > 1}, t: {sum: i, value: price * quantity}, q: {sum: i.quantity}}\ncomputed: {c: t > 1 && placed_at > \"2024-01-01\"}",
    )
    .unwrap();
    let texts: Vec<&str> = plan.derived.iter().map(|derived| derived.expression.text()).collect();
    assert_eq!(texts, ["status != \"X\"", "quantity > 1", "price * quantity"]);
    let columns = |node: usize| plan.node_columns(&plan.nodes[node]).into_iter().collect::<Vec<_>>();
    // The status is read, the placing kept; a filter that is a column stays one.
    assert_eq!(columns(0), [0, 3, DERIVED]);
    assert_eq!(columns(1), [0, 1, 4, 5, DERIVED + 1, DERIVED + 2]);
    assert_eq!(plan.used_columns()[&TableName::new("dbo", "orders")], [0, 2, 3].into());
    let uses = |table: &str, column: &str| {
        plan.uses(&table.parse().unwrap(), column).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(uses("dbo.orders", "status"), ["e (where)"]);
    assert_eq!(uses("dbo.orders", "placed_at"), ["e.c (computed)"]);
    assert_eq!(uses("dbo.order_items", "quantity"), ["e.n (count over e.i)", "e.q (sum over e.i)", "e.t (sum over e.i)"]);
}

#[test]
fn mistakes_in_what_is_computed_are_named() {
    for (text, expected) in [
        (
            "where: statsu == \"X\"",
            "at order: `where`: the expression `statsu == \"X\"`: line 1, column 1: nothing here is called \"statsu\": did you mean \"status\"?",
        ),
        ("where: id", "in `id`: int where bool is needed"),
        ("computed: {c: totl + 1}", "`computed.c`"),
        (
            "many: {i: {table: dbo.order_items, by: [order_id], where: note == \"x\"}}",
            "at order.i: `where` depends on \"note\", a `max` column",
        ),
        (
            "many: {i: {table: dbo.order_items, by: [order_id]}}\naggregates: {a: {sum: i}}",
            "expected edge.column, such as {sum: items.amount}",
        ),
        (
            "many: {i: {table: dbo.order_items, by: [order_id]}}\naggregates: {a: {sum: i.note}}",
            "is the sum of \"note\" of dbo.order_items, which is nvarchar(max): only numbers",
        ),
        ("many: {i: {table: dbo.order_items, by: [order_id]}}\naggregates: {a: {any: i.price}}", "a yes or no is needed"),
        (
            "many: {i: {table: dbo.order_items, by: [order_id]}}\naggregates: {a: {sum: i.price, max: i.price}}",
            "exactly one function",
        ),
        ("many: {i: {table: dbo.order_items, by: [order_id]}}\naggregates: {a: {count: i.price}}", "expected {count: items}"),
        ("group_by: [status]\nfields: [id]", "`group_by` and `fields` exclude each other"),
        ("group_by: [status]\naggregates: {a: {count: items}}", "is over \"items\""),
        ("group_by: [{x: placed_at, y: id}]", "exactly one pair"),
        ("fields: [{truncated: id}]\nlimits: {children: 1}", "\"truncated\" stands twice"),
        ("limits: {childs: 1}", "unknown field `childs`"),
        ("time_to_live: {column: placed}", "dbo.orders has no column \"placed\" (in `time_to_live`)"),
        (
            "time_to_live: {column: status}",
            "`time_to_live` goes by \"status\" of dbo.orders, which is varchar(10): name a column",
        ),
        (
            "time_to_live: {column: placed_at, duration: 3 months}",
            "\"3 months\" is not a length of time: expected a whole number",
        ),
        ("time_to_live: {duration: 90d}", "missing field `column`"),
        ("time_to_live: {column: placed_at}\ngroup_by: [status]", "`group_by` and `time_to_live` exclude each other"),
        ("rows: {computed: {a: id + 1}}", "add `group_by`"),
        (
            "many: {i: {table: dbo.order_items, by: [order_id], repeat: 1, many: {i: {table: dbo.order_items, by: [order_id]}}}}",
            "\"i\" stands twice",
        ),
    ] {
        let message = resolve_in_shop(&format!("entity: order\ntable: dbo.orders\n{text}")).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}\nshould say {expected}");
    }
}
