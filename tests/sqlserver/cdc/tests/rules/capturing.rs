//! What becomes of a change: log, stamp, change table.

use cdc::{EnableTable, Lsn};

use crate::world::World;

fn orders() -> World {
    let world = World::new();
    world.table(
        "orders",
        &[
            ("id", "int"),
            ("customer", "nvarchar(50)"),
            ("amount", "decimal(18,4)"),
            ("notes", "nvarchar(max)"),
            ("updated", "datetime2(3)"),
        ],
        true,
    );
    world.enable("orders");
    world
}

#[test]
fn an_insert_an_update_and_a_delete_read_as_sql_server_writes_them() {
    let world = orders();
    world.commit(
        "INSERT INTO \"dbo.orders\" VALUES (1, 'acme', '10.5000', 'first', NULL); INSERT INTO \"dbo.orders\" VALUES (2, 'globex', '20.0000', NULL, NULL)",
    );
    world.commit("UPDATE \"dbo.orders\" SET amount = '99.9999' WHERE id = 1");
    world.commit("DELETE FROM \"dbo.orders\" WHERE id = 2");
    assert_eq!(world.changes("dbo_orders"), Vec::<String>::new(), "nothing is seen before the capture job has run");
    let outcome = world.scan();
    assert_eq!((outcome.transactions, outcome.commands, outcome.caught_up), (4, 5, true));
    assert_eq!(
        world.changes("dbo_orders"),
        [
            "1 2 x1f 1 acme 10.5000 first NULL",
            "2 2 x1f 2 globex 20.0000 NULL NULL",
            "1 3 x04 1 acme 10.5000 NULL NULL",
            "1 4 x04 1 acme 99.9999 first NULL",
            "1 1 x1f 2 globex 20.0000 NULL NULL",
        ]
    );
    assert_eq!(world.count("__cdc_log"), 0, "captured log rows are forgotten");
    assert_eq!(world.count("__cdc_tran"), 0);
}

#[test]
fn the_change_table_has_sql_servers_columns_in_its_order() {
    let world = orders();
    let names = world.rows(
        "SELECT name, declared_type, nullable FROM columns WHERE object_id = (SELECT object_id FROM \"cdc.change_tables\")",
    );
    assert_eq!(
        names,
        [
            "__$start_lsn binary(10) 0",
            "__$end_lsn binary(10) 1",
            "__$seqval binary(10) 0",
            "__$operation int 0",
            "__$update_mask varbinary(128) 1",
            "id int 1",
            "customer nvarchar(50) 1",
            "amount decimal(18,4) 1",
            "notes nvarchar(max) 1",
            "updated datetime2(3) 1",
            "__$command_id int 1",
        ]
    );
    assert_eq!(
        world.rows("SELECT columns FROM indexes WHERE name = 'dbo_orders_CT_clustered_idx'"),
        ["__$start_lsn, __$command_id, __$seqval, __$operation"]
    );
}

#[test]
fn lsns_order_commits_and_seqvals_order_changes_within_one() {
    let world = orders();
    world.table("items", &[("id", "int"), ("order_id", "int")], true);
    world.enable("items");
    let first = world.commit(
        "INSERT INTO \"dbo.orders\" VALUES (1, 'a', 1, NULL, NULL); INSERT INTO \"dbo.items\" VALUES (1, 1); INSERT INTO \"dbo.items\" VALUES (2, 1);
         UPDATE \"dbo.orders\" SET amount = 2",
    );
    let second = world.commit("DELETE FROM \"dbo.items\" WHERE id = 1");
    assert!(first < second);
    world.scan();
    let all = "SELECT \"__$start_lsn\" AS l, \"__$command_id\" AS c, \"__$seqval\" AS s, \"__$operation\" AS o, 'orders' AS t FROM \"cdc.dbo_orders_CT\"
               UNION ALL SELECT \"__$start_lsn\", \"__$command_id\", \"__$seqval\", \"__$operation\", 'items' FROM \"cdc.dbo_items_CT\"";
    assert_eq!(
        world.rows(&format!("SELECT t, c, o FROM ({all}) ORDER BY l, c, s, o")),
        ["orders 1 2", "items 2 2", "items 3 2", "orders 4 3", "orders 4 4", "items 1 1"],
        "the command id counts over all tables of a transaction"
    );
    assert_eq!(
        world.rows(&format!("SELECT count(DISTINCT s), count(*) FROM ({all})")),
        ["5 6"],
        "an update's two images share a seqval"
    );
    assert_eq!(world.rows(&format!("SELECT count(*) FROM ({all}) WHERE s >= l")), ["0"], "seqvals lie before their commit");
    assert_eq!(
        world.rows(&format!(
            "SELECT count(*) FROM ({all}) WHERE l > x'{}' AND s <= x'{0}'",
            hex::encode(first.unwrap().as_bytes())
        )),
        ["0"]
    );
    assert_eq!(world.max_lsn(), second);
}

#[test]
fn the_mapping_has_a_row_for_each_captured_transaction() {
    let world = orders();
    world.scan();
    let enabled = world.max_lsn().unwrap();
    assert!(enabled > world.min_lsn("dbo_orders"), "the enabling transaction has a row too");
    let began = world.now();
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.orders\" (id) VALUES (1)").unwrap();
    world.pass_seconds(3);
    let lsn = cdc::stamp_commit(&world.conn, began, world.now()).unwrap().unwrap();
    world.conn.execute_batch("COMMIT").unwrap();
    world.scan();
    let mapped = world.rows("SELECT start_lsn, tran_begin_time, tran_end_time, length(tran_id), tran_begin_lsn < start_lsn FROM \"cdc.lsn_time_mapping\" ORDER BY start_lsn LIMIT -1 OFFSET 1");
    assert_eq!(mapped, [format!("x{} 2026-03-28 12:00:00.000 2026-03-28 12:00:03.000 10 1", hex::encode(lsn.as_bytes()))]);
}

#[test]
fn a_rollback_and_a_savepoint_take_their_log_rows_along() {
    let world = orders();
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.orders\" (id) VALUES (1); ROLLBACK").unwrap();
    world.commit(
        "INSERT INTO \"dbo.orders\" (id) VALUES (2); SAVEPOINT s; INSERT INTO \"dbo.orders\" (id) VALUES (3); ROLLBACK TO s; INSERT INTO \"dbo.orders\" (id) VALUES (4)",
    );
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.orders\" (id) VALUES (5)").unwrap();
    cdc::stamp_commit(&world.conn, world.now(), world.now()).unwrap();
    world.conn.execute_batch("ROLLBACK").unwrap();
    world.scan();
    assert_eq!(world.changes("dbo_orders"), ["1 2 x1f 2 NULL NULL NULL NULL", "2 2 x1f 4 NULL NULL NULL NULL"]);
    assert_eq!(world.commit("SELECT 1"), None, "a transaction that logged nothing has no LSN");
}

#[test]
fn uncommitted_changes_are_not_captured() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.db");
    let world = World::bare();
    // The same database in a file, so that a second connection sees only what is committed.
    world.conn.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    let writer = rusqlite::Connection::open(&path).unwrap();
    writer.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE \"dbo.t\" (id); INSERT INTO tables (object_id, schema, name) VALUES (1, 'dbo', 't'); INSERT INTO columns VALUES (1, 1, 'id', 'int', 0, 1)").unwrap();
    let world = World::over(writer);
    cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap();
    world.enable("t");
    world.scan();
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.t\" VALUES (1)").unwrap();
    let other = World::over(rusqlite::Connection::open(&path).unwrap());
    let waiting: i64 = other.conn.query_row("SELECT count(*) FROM __cdc_log", [], |row| row.get(0)).unwrap();
    assert_eq!(waiting, 0);
    cdc::stamp_commit(&world.conn, world.now(), world.now()).unwrap();
    world.conn.execute_batch("COMMIT").unwrap();
    other.scan();
    assert_eq!(other.changes("dbo_t"), ["1 2 x01 1"]);
}

#[test]
fn a_key_update_is_a_delete_and_an_insert_that_share_a_seqval() {
    let world = orders();
    world.commit("INSERT INTO \"dbo.orders\" VALUES (1, 'a', 1, 'n', NULL)");
    world.commit("UPDATE \"dbo.orders\" SET id = 7, notes = 'm' WHERE id = 1; UPDATE \"dbo.orders\" SET amount = 2 WHERE id = 7");
    world.scan();
    assert_eq!(
        world.changes("dbo_orders")[1..],
        ["1 1 x1f 1 a 1 n NULL", "2 2 x1f 7 a 1 m NULL", "3 3 x04 7 a 1 NULL NULL", "3 4 x04 7 a 2 m NULL"]
    );
    let seqvals = world.rows("SELECT count(DISTINCT \"__$seqval\") FROM \"cdc.dbo_orders_CT\" WHERE \"__$operation\" = 1 OR (\"__$operation\" = 2 AND id = 7)");
    assert_eq!(seqvals, ["1"]);
}

#[test]
fn an_update_that_changes_no_captured_column_writes_nothing() {
    let world = World::new();
    world.table("t", &[("id", "int"), ("a", "nvarchar(10)"), ("b", "int")], true);
    world.enable_with(&EnableTable {
        source_schema: "dbo".into(),
        source_name: "t".into(),
        captured_column_list: Some("[id], a".into()),
        ..EnableTable::default()
    });
    world.commit("INSERT INTO \"dbo.t\" VALUES (1, 'x', 1)");
    assert_eq!(world.commit("UPDATE \"dbo.t\" SET b = 2"), None);
    assert_eq!(world.commit("UPDATE \"dbo.t\" SET a = 'x', id = 1"), None);
    assert!(world.commit("UPDATE \"dbo.t\" SET a = 'X'").is_some(), "a change of case is a change");
    world.scan();
    assert_eq!(world.changes("dbo_t"), ["1 2 x03 1 x", "1 3 x02 1 x", "1 4 x02 1 X"]);
}

#[test]
fn values_that_cdc_leaves_out() {
    let world = World::new();
    world.table(
        "t",
        &[
            ("id", "int"),
            ("name", "nvarchar(10)"),
            ("shout", "nvarchar(10) computed"),
            ("big", "varbinary(max)"),
            ("old", "ntext"),
            ("doc", "xml"),
        ],
        true,
    );
    world.enable("t");
    world.commit("INSERT INTO \"dbo.t\" (id, name, big, old, doc) VALUES (1, 'a', x'01', 'old', '<a/>')");
    world.commit("UPDATE \"dbo.t\" SET name = 'b'");
    world.commit("UPDATE \"dbo.t\" SET big = NULL, old = 'new', doc = '<b/>'");
    world.commit("DELETE FROM \"dbo.t\"");
    world.scan();
    assert_eq!(
        world.changes("dbo_t"),
        [
            "1 2 x3f 1 a NULL x01 old <a/>",
            "1 3 x02 1 a NULL NULL NULL NULL",
            "1 4 x02 1 b NULL x01 old <a/>",
            "1 3 x38 1 b NULL x01 NULL <a/>",
            "1 4 x38 1 b NULL NULL new <b/>",
            "1 1 x3f 1 b NULL NULL NULL <b/>",
        ]
    );
}

#[test]
fn update_masks_count_from_the_end_at_9_17_and_129_columns() {
    for (columns, changed, full, mask) in [
        (9, 9, "01ff".to_owned(), "0100".to_owned()),
        (9, 2, "01ff".to_owned(), "0002".to_owned()),
        (17, 10, "01ffff".to_owned(), "000200".to_owned()),
        (129, 129, format!("01{}", "ff".repeat(16)), format!("01{}", "00".repeat(16))),
        (129, 128, format!("01{}", "ff".repeat(16)), format!("0080{}", "00".repeat(15))),
    ] {
        let world = World::new();
        let names: Vec<String> = (1..=columns).map(|column| format!("c{column}")).collect();
        let described: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "int")).collect();
        world.table("wide", &described, true);
        world.enable("wide");
        world.commit("INSERT INTO \"dbo.wide\" (c1) VALUES (1)");
        world.commit(&format!("UPDATE \"dbo.wide\" SET c{changed} = 5"));
        world.scan();
        let masks = world.rows("SELECT \"__$operation\", \"__$update_mask\" FROM \"cdc.dbo_wide_CT\" ORDER BY 1");
        assert_eq!(masks, [format!("2 x{full}"), format!("3 x{mask}"), format!("4 x{mask}")]);
        let set = cdc::functions::scalar("fn_cdc_is_bit_set", &[changed.to_string(), format!("x'{mask}'")]).unwrap().unwrap();
        assert_eq!(world.rows(&format!("SELECT {}", set.sql)), ["1"]);
    }
}

#[test]
fn two_instances_share_the_log_rows_and_begin_at_their_own_positions() {
    let world = World::new();
    world.table("t", &[("id", "int"), ("a", "int"), ("b", "int")], true);
    let narrow = EnableTable {
        source_schema: "dbo".into(),
        source_name: "t".into(),
        capture_instance: Some("narrow".into()),
        captured_column_list: Some("id,a".into()),
        ..EnableTable::default()
    };
    world.enable_with(&narrow);
    world.commit("INSERT INTO \"dbo.t\" VALUES (1, 1, 1)");
    world.enable_with(&EnableTable { capture_instance: Some("wide".into()), captured_column_list: None, ..narrow });
    let after = world.commit("UPDATE \"dbo.t\" SET b = 2");
    world.commit("UPDATE \"dbo.t\" SET a = 2");
    world.scan();
    assert_eq!(world.changes("narrow"), ["1 2 x03 1 1", "1 3 x02 1 1", "1 4 x02 1 2"], "an update of b is none to this instance");
    assert_eq!(world.changes("wide"), ["1 3 x04 1 1 1", "1 4 x04 1 1 2", "1 3 x02 1 1 2", "1 4 x02 1 2 2"]);
    assert!(world.min_lsn("narrow") < world.min_lsn("wide"));
    assert!(world.min_lsn("wide") < after.unwrap());
}

#[test]
fn what_was_committed_before_the_enabling_stays_out_and_what_was_not_yet_captured_still_comes() {
    let world = World::new();
    world.table("t", &[("id", "int")], true);
    world.commit("INSERT INTO \"dbo.t\" VALUES (1)");
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.t\" VALUES (2)").unwrap();
    let options = EnableTable { source_schema: "dbo".into(), source_name: "t".into(), ..EnableTable::default() };
    cdc::enable_table(&world.conn, &mut world.catalog(), &options, world.now()).unwrap();
    world.conn.execute_batch("INSERT INTO \"dbo.t\" VALUES (3)").unwrap();
    let lsn = cdc::stamp_commit(&world.conn, world.now(), world.now()).unwrap().unwrap();
    world.conn.execute_batch("COMMIT").unwrap();
    assert!(world.min_lsn("dbo_t") < lsn && world.min_lsn("dbo_t") > Lsn::ZERO);
    assert_eq!(world.max_lsn(), None, "NULL until something was captured");
    world.scan();
    assert_eq!(world.changes("dbo_t"), ["1 2 x01 3"]);
}

#[test]
fn names_with_quotes_brackets_blanks_and_unicode_work() {
    let world = World::new();
    let strange = "odd \"'[]\u{e9}.\u{1f980} name";
    world.table(strange, &[("key \"]'[", "int"), ("name", "nvarchar(5)"), ("w\u{f6}rt.x", "nvarchar(5)")], true);
    world.enable(strange);
    world.commit(&format!("INSERT INTO \"dbo.{}\" VALUES (1, 'a', 'b')", strange.replace('"', "\"\"")));
    world.commit(&format!("UPDATE \"dbo.{}\" SET \"w\u{f6}rt.x\" = 'c'", strange.replace('"', "\"\"")));
    world.scan();
    let instance = format!("dbo_{strange}");
    assert_eq!(world.changes(&instance), ["1 2 x07 1 a b", "1 3 x04 1 a b", "1 4 x04 1 a c"]);
    let name = format!("fn_cdc_get_net_changes_{instance}");
    let max = world.max_lsn().unwrap();
    let args =
        [crate::world::blob(world.min_lsn(&instance)), crate::world::blob(max), rusqlite::types::Value::Text("all".into())];
    let select = cdc::functions::table_valued(&world.conn, &name, &args).unwrap().unwrap();
    assert_eq!(world.answer(&select).len(), 1);
    cdc::disable_table(&world.conn, &mut world.catalog(), "dbo", strange, &instance).unwrap();
}

#[test]
fn a_hundred_thousand_rows_pass_through() {
    let world = orders();
    let logged = std::time::Instant::now();
    world.commit(
        "INSERT INTO \"dbo.orders\" WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT i, 'c' || i, i, 'note', NULL FROM n",
    );
    let logged = logged.elapsed();
    let captured = std::time::Instant::now();
    let outcome = world.scan();
    eprintln!("100k rows: {logged:?} to insert and log, {:?} to capture", captured.elapsed());
    assert_eq!(outcome.commands, 100_000);
    assert_eq!(
        world.rows("SELECT count(*), count(DISTINCT \"__$seqval\"), max(\"__$command_id\") FROM \"cdc.dbo_orders_CT\""),
        ["100000 100000 100000"]
    );
    let next = world.commit("DELETE FROM \"dbo.orders\" WHERE id = 1").unwrap();
    assert_eq!(
        world.rows(&format!(
            "SELECT count(*) FROM \"cdc.dbo_orders_CT\" WHERE \"__$start_lsn\" < x'{}'",
            hex::encode(next.as_bytes())
        )),
        ["100000"]
    );
}

#[test]
fn a_wider_table_enabled_while_changes_wait_loses_none() {
    let world = World::new();
    world.table("slim", &[("id", "int")], true);
    world.table("broad", &[("id", "int"), ("a", "int"), ("b", "int"), ("c", "int")], true);
    world.enable("slim");
    world.commit("INSERT INTO \"dbo.slim\" VALUES (1)");
    world.enable("broad");
    world.commit("INSERT INTO \"dbo.slim\" VALUES (2); INSERT INTO \"dbo.broad\" VALUES (1, 2, 3, 4)");
    world.scan();
    assert_eq!(world.changes("dbo_slim"), ["1 2 x01 1", "1 2 x01 2"]);
    assert_eq!(world.changes("dbo_broad"), ["2 2 x0f 1 2 3 4"]);
    let last: i64 =
        world.conn.query_row("SELECT seq FROM sqlite_sequence WHERE name = '__cdc_log'", [], |row| row.get(0)).unwrap();
    world.table("broader", &[("id", "int"), ("a", "int"), ("b", "int"), ("c", "int"), ("d", "int")], true);
    world.enable("broader");
    let next: i64 = world.conn.query_row("SELECT max(seq) FROM __cdc_log", [], |row| row.get(0)).unwrap();
    assert_eq!(next, last + 1, "the empty log's sequence goes on");
    world.commit("INSERT INTO \"dbo.slim\" VALUES (3)");
    world.scan();
    assert_eq!(world.changes("dbo_slim").len(), 3);
}
