//! Enabling and disabling databases and tables, and what is refused.

use cdc::{EnableTable, Error, Lsn};

use crate::world::World;

fn options(name: &str) -> EnableTable {
    EnableTable { source_schema: "dbo".into(), source_name: name.into(), ..EnableTable::default() }
}

fn people() -> World {
    let world = World::new();
    world.table("people", &[("id", "int"), ("name", "nvarchar(20)"), ("rv", "timestamp"), ("mail", "varchar(50)")], true);
    world.conn.execute("UPDATE tables SET unique_name = 'UX_mail', unique_columns = 'mail' WHERE name = 'people'", []).unwrap();
    world
}

fn refused(world: &World, options: &EnableTable) -> (i32, String) {
    let error = world.try_enable(options).unwrap_err();
    (error.number(), error.to_string())
}

#[test]
fn enabling_a_database_makes_the_tables_and_disabling_takes_everything_away() {
    let world = World::bare();
    assert!(!cdc::is_enabled(&world.conn).unwrap());
    world.table("t", &[("id", "int")], true);
    assert_eq!(refused(&world, &options("t")).0, 22901);
    assert!(refused(&world, &options("t")).1.starts_with("The database 'shop' is not enabled for Change Data Capture."));
    let before = world.rows("SELECT name FROM sqlite_master WHERE name LIKE 'cdc.%' ORDER BY name");
    assert_eq!(before, Vec::<String>::new());
    cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap();
    assert!(cdc::is_enabled(&world.conn).unwrap());
    assert_eq!(
        world.rows("SELECT name FROM tables WHERE schema = 'cdc' ORDER BY name"),
        ["captured_columns", "change_tables", "ddl_history", "index_columns", "lsn_time_mapping"]
    );
    let again = cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap_err();
    assert_eq!((again.number(), again.severity()), (22905, 10));
    let change_table = world.enable("t");
    world.commit("INSERT INTO \"dbo.t\" VALUES (1)");
    cdc::disable_db(&world.conn, &mut world.catalog()).unwrap();
    assert!(!cdc::is_enabled(&world.conn).unwrap());
    assert_eq!(world.rows("SELECT name FROM tables WHERE schema = 'cdc'"), Vec::<String>::new());
    assert_eq!(world.rows(&format!("SELECT count(*) FROM tables WHERE object_id = {change_table}")), ["0"]);
    assert_eq!(world.commit("INSERT INTO \"dbo.t\" VALUES (2)"), None, "the triggers are gone");
    assert_eq!(cdc::disable_db(&world.conn, &mut world.catalog()).unwrap_err().number(), 22901);

    cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap();
    world.enable("t");
    world.commit("INSERT INTO \"dbo.t\" VALUES (3)");
    world.scan();
    assert_eq!(world.changes("dbo_t"), ["1 2 x01 3"], "what was logged before the disabling does not come back");
}

#[test]
fn the_catalog_rows_of_an_instance() {
    let world = people();
    let change_table = world.enable("people");
    assert_eq!(
        world.rows(
            "SELECT object_id, version, source_object_id, capture_instance, length(start_lsn), end_lsn, supports_net_changes, has_drop_pending, role_name,
             index_name, filegroup_name, create_date, partition_switch FROM \"cdc.change_tables\""
        ),
        [format!(
            "{change_table} 0 {} dbo_people 10 NULL 1 NULL NULL PK_people NULL 2026-03-28 12:00:00.000 1",
            world.rows("SELECT object_id FROM tables WHERE name = 'people'")[0]
        )]
    );
    assert_eq!(
        world.rows("SELECT column_name, column_id, column_type, column_ordinal, is_computed, masking_function FROM \"cdc.captured_columns\""),
        ["id 1 int 1 0 NULL", "name 2 nvarchar 2 0 NULL", "rv 3 timestamp 3 0 NULL", "mail 4 varchar 4 0 NULL"]
    );
    assert_eq!(
        world.rows(&format!("SELECT declared_type FROM columns WHERE object_id = {change_table} AND name = 'rv'")),
        ["binary(8)"]
    );
    assert_eq!(
        world.rows("SELECT object_id, column_name, index_ordinal, column_id FROM \"cdc.index_columns\""),
        [format!("{change_table} id 1 1")]
    );
    assert!(world.min_lsn("DBO_PEOPLE") > Lsn::ZERO, "instance names ignore case");
    assert_eq!(world.min_lsn("nobody"), Lsn::ZERO);
}

#[test]
fn all_parameters_have_their_effect() {
    let world = people();
    let change_table = world.enable_with(&EnableTable {
        role_name: Some("readers".into()),
        capture_instance: Some("p2".into()),
        supports_net_changes: Some(true),
        index_name: Some("ux_MAIL".into()),
        captured_column_list: Some(" \"mail\" , [name],ID ".into()),
        filegroup_name: Some("PRIMARY".into()),
        allow_partition_switch: Some(false),
        ..options("people")
    });
    assert_eq!(
        world.rows("SELECT capture_instance, role_name, index_name, filegroup_name, supports_net_changes, partition_switch FROM \"cdc.change_tables\""),
        ["p2 readers UX_mail PRIMARY 1 0"]
    );
    assert_eq!(
        world.rows("SELECT column_name FROM \"cdc.captured_columns\" ORDER BY column_ordinal"),
        ["id", "name", "mail"],
        "in the table's order"
    );
    assert_eq!(world.rows("SELECT column_name, column_id FROM \"cdc.index_columns\""), ["mail 4"]);
    assert_eq!(world.rows(&format!("SELECT count(*) FROM indexes WHERE object_id = {change_table}")), ["2"]);
}

#[test]
fn a_table_without_a_key_is_captured_without_net_changes() {
    let world = World::new();
    world.table("heap", &[("a", "int"), ("b", "int")], false);
    world.enable("heap");
    assert_eq!(world.rows("SELECT supports_net_changes, index_name FROM \"cdc.change_tables\""), ["0 NULL"]);
    world.commit("INSERT INTO \"dbo.heap\" VALUES (1, 1), (1, 1)");
    world.commit("UPDATE \"dbo.heap\" SET a = 2 WHERE rowid = 1");
    world.scan();
    assert_eq!(world.changes("dbo_heap"), ["1 2 x03 1 1", "2 2 x03 1 1", "1 3 x01 1 1", "1 4 x01 2 1"]);
    let none = cdc::functions::table_valued(&world.conn, "fn_cdc_get_net_changes_dbo_heap", &[]).unwrap();
    assert_eq!(none, None);
}

#[test]
fn refusals_have_sql_servers_numbers() {
    let world = people();
    world.enable("people");
    world.table("heap", &[("a", "int")], false);
    world.table("cruel", &[("__$Operation", "int")], false);
    let with = |change: &dyn Fn(&mut EnableTable)| {
        let mut options = EnableTable { capture_instance: Some("second".into()), ..options("people") };
        change(&mut options);
        refused(&world, &options)
    };
    assert_eq!(
        with(&|o| o.source_name = String::new()),
        (
            22963,
            "Parameter '@source_name' cannot be null or empty. Specify a value for the named parameter and retry the operation."
                .into()
        )
    );
    assert_eq!(with(&|o| o.role_name = Some(String::new())).0, 22907);
    assert_eq!(with(&|o| o.source_schema = "cdc".into()).0, 22974);
    assert_eq!(
        with(&|o| o.source_name = "nowhere".into()).1,
        "Source table 'dbo.nowhere' does not exist in the current database. Ensure that the correct database context is set. Specify a valid schema and table name for the database."
    );
    assert_eq!(with(&|o| o.source_name = "nowhere".into()).0, 22931);
    assert_eq!(with(&|o| o.capture_instance = Some(" ".into())).0, 22932);
    assert_eq!(with(&|o| o.capture_instance = Some("i".repeat(101))).0, 22927);
    assert_eq!(with(&|o| o.capture_instance = Some("DBO_people".into())).0, 22926);
    assert_eq!(with(&|o| o.index_name = Some("IX_none".into())).0, 22928);
    assert_eq!(with(&|o| o.captured_column_list = Some("id, nobody".into())).0, 22942);
    assert_eq!(with(&|o| o.captured_column_list = Some("id,,name".into())).0, 22942);
    assert_eq!(with(&|o| o.captured_column_list = Some("[id, name".into())).0, 22965);
    assert_eq!(with(&|o| o.captured_column_list = Some("name".into())).0, 22943);
    assert_eq!(with(&|o| o.filegroup_name = Some("FAST".into())).0, 22973);
    assert_eq!(
        with(&|o| {
            o.source_name = "heap".into();
            o.supports_net_changes = Some(true)
        })
        .0,
        22939
    );
    assert_eq!(with(&|o| o.source_name = "cruel".into()).0, 22975);
    with_second(&world);
    assert_eq!(
        with(&|o| o.capture_instance = Some("third".into())),
        (22962, "Two capture instances already exist for source table 'dbo.people'. A table can have at most two capture instances. If the current tracking options are not appropriate, disable change tracking for the obsolete instance by using sys.sp_cdc_disable_table and retry the operation.".into())
    );
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.change_tables\""), ["2"], "a refusal leaves nothing behind");
}

fn with_second(world: &World) {
    world.enable_with(&EnableTable { capture_instance: Some("second".into()), ..options("people") });
}

#[test]
fn disabling_one_instance_leaves_the_other_and_all_takes_both() {
    let world = people();
    world.enable("people");
    with_second(&world);
    let mut catalog = world.catalog();
    let missing = cdc::disable_table(&world.conn, &mut catalog, "dbo", "people", "third").unwrap_err();
    assert!(matches!(missing, Error::InstanceNotEnabled { .. }));
    assert_eq!(missing.number(), 22960);
    world.commit("INSERT INTO \"dbo.people\" (id) VALUES (1)");
    cdc::disable_table(&world.conn, &mut catalog, "dbo", "people", "dbo_people").unwrap();
    world.commit("INSERT INTO \"dbo.people\" (id) VALUES (2)");
    world.scan();
    assert_eq!(world.changes("second").len(), 2);
    assert_eq!(world.rows("SELECT capture_instance FROM \"cdc.change_tables\""), ["second"]);
    assert_eq!(world.count("cdc.lsn_time_mapping"), 4, "two enablings and two changes");
    world.commit("INSERT INTO \"dbo.people\" (id) VALUES (3)");
    cdc::disable_table(&world.conn, &mut catalog, "dbo", "people", "ALL").unwrap();
    assert_eq!(world.commit("INSERT INTO \"dbo.people\" (id) VALUES (4)"), None);
    assert_eq!(world.scan().commands, 0, "what nobody captures any more is dropped");
    assert_eq!(world.count("__cdc_log"), 0);
    assert_eq!(world.count("cdc.lsn_time_mapping"), 0, "emptied with the last instance");
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.captured_columns\""), ["0"]);
}

#[test]
fn enabling_is_undone_by_a_rollback() {
    let world = people();
    world.conn.execute_batch("BEGIN").unwrap();
    cdc::enable_table(&world.conn, &mut world.catalog(), &options("people"), world.now()).unwrap();
    world.conn.execute_batch("INSERT INTO \"dbo.people\" (id) VALUES (1); ROLLBACK").unwrap();
    assert_eq!(world.commit("INSERT INTO \"dbo.people\" (id) VALUES (1)"), None);
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.change_tables\""), ["0"]);
}

#[test]
fn a_table_as_wide_as_the_log_allows_is_captured_and_a_wider_one_refused() {
    let world = World::new();
    let names: Vec<String> = (1..=991).map(|column| format!("c{column}")).collect();
    let columns: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "int")).collect();
    world.table("wider", &columns, true);
    world.table("wide", &columns[..990], true);
    assert_eq!(refused(&world, &options("wider")).0, 22925);
    world.enable("wide");
    world.table("narrow", &columns[..1], true);
    world.enable("narrow");
    world.commit(
        "INSERT INTO \"dbo.wide\" (c1) VALUES (1); UPDATE \"dbo.wide\" SET c990 = 2; INSERT INTO \"dbo.narrow\" VALUES (3)",
    );
    assert_eq!(world.scan().commands, 4);
    assert_eq!(world.changes("dbo_narrow"), ["3 2 x01 3"]);
}

#[test]
fn an_index_that_net_changes_need_is_known() {
    let world = people();
    let object_id = cdc::Catalog::source_table(&world.catalog(), "dbo", "people").unwrap().unwrap().object_id;
    let uses = |index: &str| cdc::ddl::uses_index(&world.conn, object_id, index).unwrap();
    assert!(!uses("PK_people"));
    world.enable_with(&EnableTable { supports_net_changes: Some(false), ..options("people") });
    assert!(!uses("PK_people"));
    with_second(&world);
    assert!(uses("pk_people") && !uses("UX_mail"));
}
