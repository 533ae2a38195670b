//! Retention.

use cdc::cleanup;
use cdc::jobs::{self, JobOptions, JobType};

use crate::world::World;

fn aged() -> World {
    let world = World::new();
    for name in ["busy", "quiet"] {
        world.table(name, &[("id", "int")], true);
        world.enable(name);
    }
    jobs::change(&world.conn, JobType::Cleanup, &JobOptions { retention: Some(60), threshold: Some(2), ..JobOptions::default() })
        .unwrap();
    for id in 1..=5 {
        world.commit(&format!("INSERT INTO \"dbo.busy\" VALUES ({id})"));
        world.pass_seconds(20 * 60);
    }
    world.scan();
    world
}

#[test]
fn what_is_older_than_the_retention_goes_and_every_mark_moves() {
    let world = aged();
    let before = (world.min_lsn("dbo_busy"), world.min_lsn("dbo_quiet"));
    let deleted = cleanup::cleanup(&world.conn, world.now()).unwrap();
    assert_eq!(deleted, 2, "those of 100 and 80 minutes ago; the one of 60 is at the edge and stays");
    assert_eq!(world.rows("SELECT id FROM \"cdc.dbo_busy_CT\""), ["3", "4", "5"]);
    assert_eq!(world.count("cdc.lsn_time_mapping"), 3);
    assert!(world.min_lsn("dbo_busy") > before.0 && world.min_lsn("dbo_quiet") > before.1, "the idle table's too");
    assert_eq!(
        world.rows("SELECT min(\"__$start_lsn\") = (SELECT max(start_lsn) FROM \"cdc.change_tables\") FROM \"cdc.dbo_busy_CT\""),
        ["1"]
    );
    assert_eq!(cleanup::cleanup(&world.conn, world.now()).unwrap(), 0);
}

#[test]
fn the_newest_entry_stays_however_old() {
    let world = aged();
    world.pass_seconds(1_000_000);
    cleanup::cleanup(&world.conn, world.now()).unwrap();
    assert_eq!(world.rows("SELECT id FROM \"cdc.dbo_busy_CT\""), ["5"]);
    assert_eq!(world.min_lsn("dbo_quiet"), world.max_lsn().unwrap());
}

#[test]
fn the_mark_moves_before_anything_is_deleted() {
    let world = aged();
    let middle = world
        .conn
        .query_row("SELECT start_lsn FROM \"cdc.lsn_time_mapping\" ORDER BY start_lsn LIMIT 1 OFFSET 5", [], |row| row.get(0))
        .unwrap();
    cleanup::move_low_mark(&world.conn, Some("DBO_busy"), middle).unwrap();
    assert_eq!(world.min_lsn("dbo_busy"), middle);
    assert!(world.min_lsn("dbo_quiet") < middle);
    assert_eq!(world.count("cdc.dbo_busy_CT"), 5);
    assert_eq!(cleanup::delete_below(&world.conn, 1).unwrap(), 3);
    assert_eq!(world.count("cdc.lsn_time_mapping"), 6, "the quiet instance's mark still covers all but the first enabling");
    cleanup::move_low_mark(&world.conn, Some("dbo_busy"), cdc::Lsn::ZERO).unwrap();
    assert_eq!(world.min_lsn("dbo_busy"), middle, "a mark never moves back");
}

#[test]
fn one_change_table_is_cleaned_at_a_given_position() {
    let world = aged();
    let max = world.max_lsn().unwrap();
    let unmapped = cleanup::cleanup_change_table(&world.conn, "dbo_busy", Some(max.increment()), None).unwrap_err();
    assert_eq!(unmapped.number(), 22964);
    assert_eq!(cleanup::cleanup_change_table(&world.conn, "nobody", None, None).unwrap_err().number(), 22920);
    assert_eq!(cleanup::cleanup_change_table(&world.conn, "dbo_busy", Some(max), Some(1)).unwrap(), 4);
    assert_eq!(world.rows("SELECT id FROM \"cdc.dbo_busy_CT\""), ["5"]);
    let low = world.conn.query_row("SELECT min(start_lsn) FROM \"cdc.lsn_time_mapping\"", [], |row| row.get(0)).unwrap();
    assert_eq!(cleanup::cleanup_change_table(&world.conn, "dbo_busy", Some(low), None).unwrap_err().number(), 22957);
}
