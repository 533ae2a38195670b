#![allow(clippy::unwrap_used)]

use schemas::Lsn;

use super::*;
use source::{CapturedColumn, CapturedTable, Instance};

/// A table as `name(key1,key2;other,other)`.
fn table(text: &str) -> CapturedTable {
    let (name, columns) = text.strip_suffix(')').unwrap().split_once('(').unwrap();
    let (key, rest) = columns.split_once(';').unwrap_or((columns, ""));
    let names = |text: &str| text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let columns = names(key).into_iter().chain(names(rest)).enumerate().map(|(index, name)| CapturedColumn {
        source_name: name.clone(),
        name,
        ordinal: index + 1,
        column_id: 0,
        sql_type: schemas::table::SqlType::Int,
        nullable: false,
        computed: false,
        collation: None,
        default_collation: true,
    });
    let instance = Instance {
        name: format!("dbo_{name}"),
        object_id: 0,
        start_lsn: Lsn::ZERO,
        end_lsn: None,
        create_date: None,
        columns: columns.collect(),
        key: names(key),
        key_source: source::keys::KeySource::Captured,
        unsupported: Vec::new(),
    };
    CapturedTable { name: TableName::new("dbo", name), object_id: 0, instances: vec![instance] }
}

/// A foreign key as `child(a,b)>parent(c,d)`.
fn key(text: &str) -> ForeignKey {
    let (child, parent) = text.split_once('>').unwrap();
    let part = |text: &str| {
        let (table, columns) = text.strip_suffix(')').unwrap().split_once('(').unwrap();
        (TableName::new("dbo", table), columns.split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    let ((table, columns), (referenced, referenced_columns)) = (part(child), part(parent));
    ForeignKey { name: format!("FK {text}"), table, columns, referenced, referenced_columns, cascades: false }
}

fn inferred(tables: &[&str], keys: &[&str]) -> Inferred {
    let tables = tables.iter().map(|text| table(text)).collect();
    let foreign_keys = keys.iter().map(|text| key(text)).collect();
    infer(&Catalog { database: "shop".into(), version: "16".into(), tables, foreign_keys, uncaptured: Vec::new() })
}

/// The tree on a few lines: `name: table by columns`, indented; `*` marks many.
fn outline(entities: &[EntityDefinition]) -> String {
    fn one(out: &mut String, depth: usize, edges: &BTreeMap<String, OneEdge>) {
        for (name, edge) in edges {
            out.push_str(&format!("{}{name}: {} by {}\n", "  ".repeat(depth), edge.table.table, edge.by.join(",")));
            one(out, depth + 1, &edge.one);
        }
    }
    fn many(out: &mut String, depth: usize, edges: &BTreeMap<String, ManyEdge>) {
        for (name, edge) in edges {
            out.push_str(&format!("{}{name}*: {} by {}\n", "  ".repeat(depth), edge.table.table, edge.by.join(",")));
            one(out, depth + 1, &edge.one);
            many(out, depth + 1, &edge.many);
        }
    }
    let mut out = String::new();
    for entity in entities {
        out.push_str(&format!("{}: {}\n", entity.entity, entity.table.table));
        one(&mut out, 1, &entity.one);
        many(&mut out, 1, &entity.many);
    }
    out
}

#[test]
fn a_shop_becomes_orders_and_customers() {
    let shop = inferred(
        &[
            "addresses(id;customer_id,city)",
            "customers(id;name)",
            "item_taxes(id;order_item_id,rate)",
            "order_items(id;order_id,product_id,quantity)",
            "orders(id;customer_id,billing_address_id,shipping_address_id)",
            "payments(id;order_id)",
            "products(id;name)",
            "shipments(id;order_id)",
        ],
        &[
            "addresses(customer_id)>customers(id)",
            "item_taxes(order_item_id)>order_items(id)",
            "order_items(order_id)>orders(id)",
            "order_items(product_id)>products(id)",
            "orders(customer_id)>customers(id)",
            "orders(billing_address_id)>addresses(id)",
            "orders(shipping_address_id)>addresses(id)",
            "payments(order_id)>orders(id)",
            "shipments(order_id)>orders(id)",
        ],
    );
    let expected = "\
customer: customers
  addresses*: addresses by customer_id
order: orders
  billing_address: addresses by billing_address_id
  customer: customers by customer_id
  shipping_address: addresses by shipping_address_id
  items*: order_items by order_id
    product: products by product_id
    item_taxes*: item_taxes by order_item_id
  payments*: payments by order_id
  shipments*: shipments by order_id
";
    assert_eq!(outline(&shop.entities), expected);
    assert_eq!(shop.contracts.len(), 8);
}

#[test]
fn tpch_becomes_orders_parts_and_suppliers() {
    let tpch = inferred(
        &[
            "customer(c_custkey;c_nationkey)",
            "lineitem(l_orderkey,l_linenumber;l_partkey,l_suppkey)",
            "nation(n_nationkey;n_regionkey)",
            "orders(o_orderkey;o_custkey)",
            "part(p_partkey)",
            "partsupp(ps_partkey,ps_suppkey;ps_availqty)",
            "region(r_regionkey)",
            "supplier(s_suppkey;s_nationkey)",
        ],
        &[
            "customer(c_nationkey)>nation(n_nationkey)",
            "lineitem(l_orderkey)>orders(o_orderkey)",
            "lineitem(l_suppkey,l_partkey)>partsupp(ps_suppkey,ps_partkey)",
            "nation(n_regionkey)>region(r_regionkey)",
            "orders(o_custkey)>customer(c_custkey)",
            "partsupp(ps_partkey)>part(p_partkey)",
            "partsupp(ps_suppkey)>supplier(s_suppkey)",
            "supplier(s_nationkey)>nation(n_nationkey)",
        ],
    );
    let expected = "\
order: orders
  customer: customer by o_custkey
    nation: nation by c_nationkey
      region: region by n_regionkey
  lineitems*: lineitem by l_orderkey
    partsupp: partsupp by l_partkey,l_suppkey
      part: part by ps_partkey
      supplier: supplier by ps_suppkey
        nation: nation by s_nationkey
part: part
  partsupps*: partsupp by ps_partkey
    supplier: supplier by ps_suppkey
      nation: nation by s_nationkey
        region: region by n_regionkey
supplier: supplier
  nation: nation by s_nationkey
    region: region by n_regionkey
  partsupps*: partsupp by ps_suppkey
    part: part by ps_partkey
";
    assert_eq!(outline(&tpch.entities), expected);
}

#[test]
fn cycles_end_and_names_are_free() {
    let cycle = inferred(
        &[
            "a(id;b_id)",
            "b(id;a_id)",
            "employees(id;manager_id)",
            "notes(id;author,user,created_by,updated_by)",
            "users(id)",
            "heap(;x)",
        ],
        &[
            "a(b_id)>b(id)",
            "b(a_id)>a(id)",
            "employees(manager_id)>employees(id)",
            "notes(created_by)>users(id)",
            "notes(updated_by)>users(id)",
        ],
    );
    let expected = "\
employee: employees
note: notes
  user_by_created_by: users by created_by
  user_by_updated_by: users by updated_by
";
    assert_eq!(outline(&cycle.entities), expected);
    assert!(cycle.notes.iter().any(|note| note.contains("dbo.heap has no key")));
    let only = inferred(&["a(id;b_id)", "b(id;a_id)"], &["a(b_id)>b(id)", "b(a_id)>a(id)"]);
    assert_eq!(outline(&only.entities), "a: a\n  b: b by b_id\nb: b\n  a: a by a_id\n");
}

#[test]
fn references_to_anything_but_the_key_are_left_out_with_a_word() {
    let inferred = inferred(&["a(id;code)", "b(id;a_code,c)"], &["b(a_code)>a(code)"]);
    assert_eq!(outline(&inferred.entities), "a: a\nb: b\n");
    assert!(inferred.notes.iter().any(|note| note.contains("not its key")), "{:?}", inferred.notes);
}

#[test]
fn definitions_survive_yaml() {
    let shop = inferred(&["orders(id;x)", "order_items(order_id,line)"], &["order_items(order_id)>orders(id)"]);
    for entity in &shop.entities {
        let text = serde_yaml_ng::to_string(entity).unwrap();
        assert_eq!(serde_yaml_ng::from_str::<EntityDefinition>(&text).unwrap(), *entity);
    }
}
