//! The functions and procedures.

use cdc::functions::{scalar, table_valued};
use cdc::{DateTime, EnableTable, Lsn};
use rusqlite::types::Value;

use crate::world::{World, blob};

fn eval(world: &World, name: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let expression = scalar(name, &args).unwrap().unwrap();
    world.rows(&format!("SELECT {}", expression.sql)).remove(0)
}

fn hexed(lsn: Lsn) -> String {
    format!("x'{}'", hex::encode(lsn.as_bytes()))
}

/// The nine histories of a row, of which 4 to 7 existed before the range.
fn histories() -> (World, Lsn) {
    let world = World::new();
    world.table("n", &[("id", "int"), ("v", "nvarchar(20)"), ("w", "int")], true);
    world.enable("n");
    world.commit("INSERT INTO \"dbo.n\" VALUES (4, 'old', 0), (5, 'old', 0), (6, 'old', 0), (7, 'old', 0)");
    world.scan();
    let from = world.max_lsn().unwrap().increment();
    for sql in [
        "INSERT INTO \"dbo.n\" VALUES (1, 'a', 0)",
        "INSERT INTO \"dbo.n\" VALUES (2, 'a', 0)",
        "UPDATE \"dbo.n\" SET v = 'b' WHERE id = 2",
        "INSERT INTO \"dbo.n\" VALUES (3, 'a', 0)",
        "DELETE FROM \"dbo.n\" WHERE id = 3",
        "UPDATE \"dbo.n\" SET v = 'new' WHERE id = 4",
        "UPDATE \"dbo.n\" SET w = 1 WHERE id = 4",
        "DELETE FROM \"dbo.n\" WHERE id = 5",
        "DELETE FROM \"dbo.n\" WHERE id = 6",
        "INSERT INTO \"dbo.n\" VALUES (6, 'reborn', 0)",
        "UPDATE \"dbo.n\" SET v = 'doomed' WHERE id = 7",
        "DELETE FROM \"dbo.n\" WHERE id = 7",
        "INSERT INTO \"dbo.n\" VALUES (8, 'a', 0); DELETE FROM \"dbo.n\" WHERE id = 8; INSERT INTO \"dbo.n\" VALUES (8, 'again', 0)",
        "INSERT INTO \"dbo.n\" VALUES (9, 'a', 0); DELETE FROM \"dbo.n\" WHERE id = 9",
    ] {
        world.commit(sql);
    }
    world.scan();
    (world, from)
}

fn net(world: &World, from: Lsn, filter: &str) -> Vec<String> {
    let args = [blob(from), blob(world.max_lsn().unwrap()), Value::Text(filter.into())];
    let select = table_valued(&world.conn, "fn_cdc_get_net_changes_dbo_n", &args).unwrap().unwrap();
    world.answer(&select);
    let columns: Vec<(&str, &str)> =
        select.columns.iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
    assert_eq!(
        columns[1..5],
        [("__$operation", "int"), ("__$update_mask", "varbinary(128)"), ("id", "int"), ("v", "nvarchar(20)")]
    );
    world.rows(&format!("SELECT id, \"__$operation\", v, \"__$update_mask\" FROM ({}) ORDER BY id", select.sql))
}

#[test]
fn net_changes_are_what_a_row_became_over_the_range() {
    let (world, from) = histories();
    assert_eq!(
        net(&world, from, "all"),
        ["1 2 a NULL", "2 2 b NULL", "4 4 new NULL", "5 1 old NULL", "6 4 reborn NULL", "7 1 doomed NULL", "8 2 again NULL"]
    );
    assert_eq!(
        net(&world, from, " ALL with merge "),
        ["1 5 a NULL", "2 5 b NULL", "4 5 new NULL", "5 1 old NULL", "6 5 reborn NULL", "7 1 doomed NULL", "8 5 again NULL"]
    );
    assert_eq!(net(&world, from, "all with mask")[2], "4 4 new x06", "the bits of both updates");
    assert_eq!(net(&world, from, "all with mask")[0], "1 2 a NULL");
}

#[test]
fn all_changes_with_and_without_the_old_image() {
    let (world, from) = histories();
    let to = world.max_lsn().unwrap();
    let all = |filter: &str| {
        let select =
            table_valued(&world.conn, "FN_cdc_get_all_changes_DBO_n", &[blob(from), blob(to), Value::Text(filter.into())]);
        let select = select.unwrap().unwrap();
        let names: Vec<&str> = select.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["__$start_lsn", "__$seqval", "__$operation", "__$update_mask", "id", "v", "w"]);
        world.answer(&select).len()
    };
    assert_eq!(all("all"), 17);
    assert_eq!(all("all update old"), 21);
}

#[test]
fn a_range_outside_the_timeline_is_error_313() {
    let (world, from) = histories();
    let to = world.max_lsn().unwrap();
    let low = world.min_lsn("dbo_n");
    let all = || Value::Text("all".into());
    let call = |name: &str, args: [Value; 3]| table_valued(&world.conn, name, &args);
    assert!(call("fn_cdc_get_all_changes_dbo_n", [blob(low), blob(to), all()]).is_ok());
    for args in [
        [blob(low.decrement()), blob(to), all()],
        [blob(from), blob(to.increment()), all()],
        [blob(to), blob(from), all()],
        [Value::Null, blob(to), all()],
        [blob(from), Value::Null, all()],
        [blob(from), blob(to), Value::Text("some".into())],
    ] {
        let error = call("fn_cdc_get_all_changes_dbo_n", args.clone()).unwrap_err();
        assert_eq!((error.number(), error.severity(), error.state()), (313, 16, 3));
        assert_eq!(
            error.to_string(),
            "An insufficient number of arguments were supplied for the procedure or function cdc.fn_cdc_get_all_changes_ ... ."
        );
        assert_eq!(call("fn_cdc_get_net_changes_dbo_n", args).unwrap_err().number(), 313);
    }
    let missing = table_valued(&world.conn, "fn_cdc_get_all_changes_dbo_n", &[all()]).unwrap_err();
    assert_eq!(missing.number(), 313);
    assert_eq!(call("fn_cdc_get_all_changes_nobody", [blob(from), blob(to), all()]).unwrap(), None);
    assert_eq!(call("fn_other", [blob(from), blob(to), all()]).unwrap(), None);
}

#[test]
fn positions_and_times_map_to_each_other() {
    let world = World::new();
    world.table("t", &[("id", "int")], true);
    world.enable("t");
    assert_eq!(eval(&world, "fn_cdc_get_max_lsn", &[]), "NULL");
    let mut lsns = Vec::new();
    for id in 0..3 {
        lsns.push(world.commit(&format!("INSERT INTO \"dbo.t\" VALUES ({id})")).unwrap());
        world.pass_seconds(10);
    }
    world.scan();
    let shown = |lsn: Lsn| format!("x{}", hex::encode(lsn.as_bytes()));
    assert_eq!(eval(&world, "FN_CDC_get_max_lsn", &[]), shown(lsns[2]));
    let at = "'2026-03-28 12:00:10.000'";
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'largest less than'", at]), shown(lsns[0]));
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'largest less than or equal'", at]), shown(lsns[1]));
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'smallest greater than'", at]), shown(lsns[2]));
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'SMALLEST greater than or equal'", at]), shown(lsns[1]));
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'smallest greater than'", "'2027-01-01'"]), "NULL");
    assert_eq!(eval(&world, "fn_cdc_map_time_to_lsn", &["'nearest'", at]), "NULL");
    assert_eq!(eval(&world, "fn_cdc_map_lsn_to_time", &[&hexed(lsns[1])]), "2026-03-28 12:00:10.000");
    assert_eq!(eval(&world, "fn_cdc_map_lsn_to_time", &[&hexed(lsns[1].increment())]), "NULL");
    assert_eq!(eval(&world, "fn_cdc_increment_lsn", &[&hexed(lsns[1])]), shown(lsns[1].increment()));
    assert_eq!(eval(&world, "fn_cdc_decrement_lsn", &[&hexed(lsns[1])]), shown(lsns[1].decrement()));
    assert_eq!(eval(&world, "fn_cdc_increment_lsn", &["NULL"]), "NULL");
    assert_eq!(eval(&world, "fn_cdc_get_min_lsn", &["'DBO_T'"]), shown(world.min_lsn("dbo_t")));
    assert_eq!(eval(&world, "fn_cdc_get_min_lsn", &["NULL"]), shown(Lsn::ZERO));
    assert!(scalar("fn_other", &[]).is_none());
    assert_eq!(scalar("fn_cdc_get_min_lsn", &[]).unwrap().unwrap_err().number(), 313);
    assert_eq!(scalar("fn_cdc_get_max_lsn", &["1".into()]).unwrap().unwrap_err().number(), 8144);
}

#[test]
fn masks_are_asked_by_name() {
    let world = World::new();
    world.table("t", &[("id", "int"), ("a", "int"), ("b", "int")], true);
    world.enable("t");
    assert_eq!(eval(&world, "fn_cdc_get_column_ordinal", &["'dbo_t'", "'B'"]), "3");
    assert_eq!(eval(&world, "fn_cdc_get_column_ordinal", &["'dbo_t'", "'z'"]), "NULL");
    assert_eq!(eval(&world, "fn_cdc_has_column_changed", &["'dbo_t'", "'b'", "x'04'"]), "1");
    assert_eq!(eval(&world, "fn_cdc_has_column_changed", &["'dbo_t'", "'a'", "x'04'"]), "0");
    assert_eq!(eval(&world, "fn_cdc_is_bit_set", &["9", "x'0100'"]), "1");
    assert_eq!(eval(&world, "fn_cdc_is_bit_set", &["17", "x'0100'"]), "0");
    assert_eq!(eval(&world, "fn_cdc_is_bit_set", &["0", "x'0100'"]), "0");
}

#[test]
fn the_help_procedure_lists_instances() {
    let world = World::new();
    world.table("t", &[("id", "int"), ("odd ]name", "int")], true);
    world.table("u", &[("id", "int")], false);
    let help = |schema: Option<&str>, name: Option<&str>| {
        cdc::procedures::help_change_data_capture(&world.conn, &world.catalog(), schema, name)
    };
    assert_eq!(world.answer(&help(None, None).unwrap()), Vec::<String>::new());
    world.enable("t");
    world.enable_with(&EnableTable {
        role_name: Some("r".into()),
        source_schema: "dbo".into(),
        source_name: "u".into(),
        ..EnableTable::default()
    });
    let all = world.answer(&help(None, Some("")).unwrap());
    assert_eq!(all.len(), 2);
    assert!(all[0].starts_with("dbo t dbo_t "), "{}", all[0]);
    assert!(all[0].ends_with(" NULL 1 NULL NULL PK_t NULL 2026-03-28 12:00:00.000 [id] [id], [odd ]]name]"), "{}", all[0]);
    assert!(all[1].ends_with(" NULL 0 NULL r NULL NULL 2026-03-28 12:00:00.000 NULL [id]"), "{}", all[1]);
    assert_eq!(world.answer(&help(Some("dbo"), Some("U")).unwrap()).len(), 1);
    assert_eq!(help(Some("dbo"), None).unwrap_err().number(), 22972);
    assert_eq!(help(Some("dbo"), Some("nowhere")).unwrap_err().number(), 22985);
    let bare = World::bare();
    assert_eq!(cdc::procedures::help_change_data_capture(&bare.conn, &bare.catalog(), None, None).unwrap_err().number(), 22901);
}

#[test]
fn captured_columns_have_their_measures() {
    let world = World::new();
    let columns = [
        ("id", "bigint"),
        ("price", "decimal(10,2)"),
        ("name", "nvarchar(max)"),
        ("code", "char"),
        ("at", "datetime2"),
        ("ratio", "float"),
        ("flag", "bit"),
    ];
    world.table("t", &columns, true);
    world.enable("t");
    let answer = world.answer(&cdc::procedures::get_captured_columns(&world.conn, &world.catalog(), "dbo_t").unwrap());
    let answer: Vec<&str> = answer.iter().map(|row| row.strip_prefix("dbo t dbo_t ").unwrap()).collect();
    assert_eq!(
        answer,
        [
            "id 1 1 bigint NULL 19 10 0 NULL",
            "price 2 2 decimal NULL 10 10 2 NULL",
            "name 3 3 nvarchar -1 NULL NULL NULL NULL",
            "code 4 4 char 1 NULL NULL NULL NULL",
            "at 5 5 datetime2 NULL NULL NULL NULL 7",
            "ratio 6 6 float NULL 53 2 NULL NULL",
            "flag 7 7 bit NULL NULL NULL NULL NULL",
        ]
    );
    assert_eq!(cdc::procedures::get_captured_columns(&world.conn, &world.catalog(), "dbo_u").unwrap_err().number(), 22920);
}

#[test]
fn commit_times_are_datetimes() {
    let world = World::new();
    world.table("t", &[("id", "int")], true);
    world.enable("t");
    let odd: DateTime = "2026-03-29T02:30:00.0049999".parse().unwrap();
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.t\" VALUES (1)").unwrap();
    cdc::stamp_commit(&world.conn, odd, odd).unwrap();
    world.conn.execute_batch("COMMIT").unwrap();
    world.scan();
    assert_eq!(world.rows("SELECT max(tran_end_time) FROM \"cdc.lsn_time_mapping\""), ["2026-03-29 02:30:00.003"]);
}
