//! ALTER TABLE and DROP TABLE of captured tables.

use cdc::EnableTable;

use crate::world::World;

fn items() -> (World, i64) {
    let world = World::new();
    let object_id = world.table("items", &[("id", "int"), ("a", "int"), ("b", "int")], true);
    world.enable("items");
    world.commit("INSERT INTO \"dbo.items\" VALUES (1, 1, 1)");
    (world, object_id)
}

fn history(world: &World) -> Vec<String> {
    let select = cdc::procedures::get_ddl_history(&world.conn, &world.catalog(), "dbo_items").unwrap();
    world.answer(&select)
}

#[test]
fn a_new_column_is_captured_by_a_second_instance_only() {
    let (world, object_id) = items();
    let lsn = world
        .alter(
            object_id,
            "ALTER TABLE dbo.items ADD c int",
            "ALTER TABLE \"dbo.items\" ADD COLUMN c",
            &format!("INSERT INTO columns VALUES ({object_id}, 4, 'c', 'int', 0, 1)"),
        )
        .unwrap();
    assert_eq!(history(&world), Vec::<String>::new(), "the capture job has not come to it");
    world.commit("INSERT INTO \"dbo.items\" VALUES (2, 2, 2, 2)");
    assert_eq!(world.commit("UPDATE \"dbo.items\" SET c = 5 WHERE id = 1"), None);
    world.enable_with(&EnableTable {
        source_schema: "dbo".into(),
        source_name: "items".into(),
        capture_instance: Some("v2".into()),
        ..EnableTable::default()
    });
    world.commit("UPDATE \"dbo.items\" SET c = 3 WHERE id = 2");
    world.scan();
    assert_eq!(world.changes("dbo_items"), ["1 2 x07 1 1 1", "1 2 x07 2 2 2"]);
    assert_eq!(world.changes("v2"), ["1 3 x08 2 2 2 2", "1 4 x08 2 2 2 3"]);
    assert_eq!(
        history(&world),
        [format!(
            "dbo items dbo_items 0 ALTER TABLE dbo.items ADD c int x{} 2026-03-28 12:00:00.000",
            hex::encode(lsn.as_bytes())
        )]
    );
    assert_eq!(
        world.rows("SELECT count(*) FROM \"cdc.lsn_time_mapping\" WHERE start_lsn = (SELECT ddl_lsn FROM \"cdc.ddl_history\")"),
        ["1"],
        "a DDL transaction has its entry"
    );
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.ddl_history\""), ["1"], "not of the instance that came after it");
}

#[test]
fn a_dropped_column_stays_and_is_null_from_then_on_and_one_added_with_its_name_is_another() {
    let (world, object_id) = items();
    world.alter(
        object_id,
        "ALTER TABLE dbo.items DROP COLUMN a",
        "ALTER TABLE \"dbo.items\" DROP COLUMN a",
        &format!("DELETE FROM columns WHERE object_id = {object_id} AND name = 'a'"),
    );
    world.commit("INSERT INTO \"dbo.items\" VALUES (2, 2)");
    world.alter(
        object_id,
        "ALTER TABLE dbo.items ADD a int",
        "ALTER TABLE \"dbo.items\" ADD COLUMN a",
        &format!("INSERT INTO columns VALUES ({object_id}, 4, 'a', 'int', 0, 1)"),
    );
    world.commit("INSERT INTO \"dbo.items\" (id, b, a) VALUES (3, 3, 3)");
    world.scan();
    assert_eq!(world.changes("dbo_items"), ["1 2 x07 1 1 1", "1 2 x07 2 NULL 2", "1 2 x07 3 NULL 3"]);
    assert_eq!(world.rows("SELECT column_name, column_id FROM \"cdc.captured_columns\" WHERE column_ordinal = 2"), ["a 2"]);
    assert_eq!(history(&world).len(), 2);
}

#[test]
fn a_change_of_type_alters_the_change_table_between_the_rows_before_and_after_it() {
    let (world, object_id) = items();
    world.alter(
        object_id,
        "ALTER TABLE dbo.items ALTER COLUMN a nvarchar(20)",
        "UPDATE \"dbo.items\" SET a = CAST(a AS TEXT)",
        &format!("UPDATE columns SET declared_type = 'nvarchar(20)' WHERE object_id = {object_id} AND name = 'a'"),
    );
    world.commit("INSERT INTO \"dbo.items\" VALUES (2, 'two', 2)");
    assert_eq!(world.rows("SELECT column_type FROM \"cdc.captured_columns\" WHERE column_ordinal = 2"), ["int"]);
    world.scan();
    assert_eq!(world.rows("SELECT column_type FROM \"cdc.captured_columns\" WHERE column_ordinal = 2"), ["nvarchar"]);
    assert_eq!(
        world.rows(
            "SELECT declared_type FROM columns WHERE name = 'a' AND object_id = (SELECT object_id FROM \"cdc.change_tables\")"
        ),
        ["nvarchar(20)"]
    );
    assert_eq!(
        world.rows("SELECT id, a, typeof(a) FROM \"cdc.dbo_items_CT\" ORDER BY id"),
        ["1 1 text", "2 two text"],
        "what was captured before is converted, and the storage's rewriting is no change"
    );
    assert!(history(&world)[0].starts_with("dbo items dbo_items 1 ALTER TABLE dbo.items ALTER COLUMN a nvarchar(20) x"));
    let described = cdc::procedures::get_captured_columns(&world.conn, &world.catalog(), "dbo_items").unwrap();
    assert_eq!(world.answer(&described)[1], "dbo items dbo_items a 2 2 nvarchar 20 NULL NULL NULL NULL");
}

#[test]
fn changes_around_an_alter_table_in_one_transaction_keep_their_order() {
    let (world, object_id) = items();
    world.conn.execute_batch("BEGIN; INSERT INTO \"dbo.items\" VALUES (2, 2, 2)").unwrap();
    let catalog = world.catalog();
    let old = cdc::Catalog::source_table_by_id(&catalog, object_id).unwrap().unwrap();
    cdc::ddl::before_alter(&world.conn, object_id).unwrap();
    world
        .conn
        .execute_batch(&format!(
            "ALTER TABLE \"dbo.items\" DROP COLUMN a; DELETE FROM columns WHERE object_id = {object_id} AND name = 'a'"
        ))
        .unwrap();
    let new = cdc::Catalog::source_table_by_id(&catalog, object_id).unwrap().unwrap();
    cdc::ddl::table_altered(&world.conn, &catalog, &old, &new, "ALTER TABLE dbo.items DROP COLUMN a", world.now()).unwrap();
    world.conn.execute_batch("INSERT INTO \"dbo.items\" VALUES (3, 3)").unwrap();
    cdc::stamp_commit(&world.conn, world.now(), world.now()).unwrap();
    world.conn.execute_batch("COMMIT").unwrap();
    world.scan();
    assert_eq!(world.changes("dbo_items")[1..], ["1 2 x07 2 2 2", "2 2 x07 3 NULL 3"]);
}

#[test]
fn an_altered_table_that_rolls_back_is_captured_as_before() {
    let (world, object_id) = items();
    world.conn.execute_batch("BEGIN").unwrap();
    let catalog = world.catalog();
    let table = cdc::Catalog::source_table_by_id(&catalog, object_id).unwrap().unwrap();
    cdc::ddl::before_alter(&world.conn, object_id).unwrap();
    cdc::ddl::table_altered(&world.conn, &catalog, &table, &table, "ALTER TABLE …", world.now()).unwrap();
    world.conn.execute_batch("ROLLBACK").unwrap();
    world.commit("DELETE FROM \"dbo.items\"");
    world.scan();
    assert_eq!(world.changes("dbo_items")[1..], ["1 1 x07 1 1 1"]);
    assert_eq!(history(&world), Vec::<String>::new());
}

#[test]
fn a_dropped_table_takes_its_instances_along() {
    let (world, object_id) = items();
    assert!(cdc::ddl::is_tracked(&world.conn, object_id).unwrap());
    cdc::ddl::table_dropped(&world.conn, &mut world.catalog(), object_id).unwrap();
    cdc::Catalog::drop_table(&mut world.catalog(), object_id).unwrap();
    assert!(!cdc::ddl::is_tracked(&world.conn, object_id).unwrap());
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.change_tables\""), ["0"]);
    assert_eq!(world.scan().commands, 0);
}
