//! The capture job as an agent's job: started, stopped, changed, failing, idle.

use std::time::Duration;

use cdc::capture;
use cdc::jobs::{self, Failure, JobOptions, JobType};

use crate::world::World;

fn table() -> World {
    let world = World::new();
    world.table("t", &[("id", "int")], true);
    assert_eq!(capture::due(&world.conn).unwrap(), None, "there is no job before the first table");
    world.enable("t");
    world
}

#[test]
fn the_first_table_brings_the_jobs() {
    let world = table();
    assert_eq!(capture::due(&world.conn).unwrap(), Some(Duration::from_secs(5)));
    let help = jobs_of(&world);
    assert_eq!(help, ["capture cdc.shop_capture 500 10 1 5 0 0", "cleanup cdc.shop_cleanup 0 0 0 0 4320 5000"]);
    world.table("u", &[("id", "int")], true);
    let options = cdc::EnableTable { source_schema: "dbo".into(), source_name: "u".into(), ..cdc::EnableTable::default() };
    assert!(!world.try_enable(&options).unwrap().jobs_created);
    assert_eq!(jobs::listed(&world.conn).unwrap().len(), 2);
}

fn jobs_of(world: &World) -> Vec<String> {
    let rows = world.answer(&cdc::procedures::help_jobs(&world.conn).unwrap());
    rows.iter().map(|row| row.split_once(' ').unwrap().1.to_owned()).collect()
}

#[test]
fn changes_to_the_job_count_from_its_next_start() {
    let world = table();
    let options = JobOptions { pollinginterval: Some(0), maxtrans: Some(2), maxscans: Some(2), ..JobOptions::default() };
    jobs::change(&world.conn, JobType::Capture, &options).unwrap();
    assert_eq!(capture::due(&world.conn).unwrap(), Some(Duration::from_secs(5)));
    assert_eq!(jobs::start(&world.conn, JobType::Capture, world.now()).unwrap_err().number(), 22022);
    jobs::stop(&world.conn, JobType::Capture).unwrap();
    assert_eq!(capture::due(&world.conn).unwrap(), None);
    assert_eq!(jobs::stop(&world.conn, JobType::Capture).unwrap_err().number(), 22022);
    jobs::start(&world.conn, JobType::Capture, world.now()).unwrap();
    assert_eq!(capture::due(&world.conn).unwrap(), Some(Duration::ZERO));
    world.scan();
    for id in 0..5 {
        world.commit(&format!("INSERT INTO \"dbo.t\" VALUES ({id})"));
    }
    let pass = world.scan();
    assert_eq!((pass.transactions, pass.caught_up), (4, false), "maxscans times maxtrans in one pass");
    assert_eq!(world.changes("dbo_t").len(), 4);
    assert_eq!(
        world.max_lsn(),
        world.conn.query_row("SELECT max(\"__$start_lsn\") FROM \"cdc.dbo_t_CT\"", [], |row| row.get(0)).unwrap()
    );
    let pass = world.scan();
    assert_eq!((pass.transactions, pass.caught_up), (1, true));
}

#[test]
fn bad_options_are_refused() {
    let world = table();
    let change = |job, options| jobs::change(&world.conn, job, &options).unwrap_err().number();
    let none = JobOptions::default();
    assert_eq!(change(JobType::Capture, JobOptions { pollinginterval: Some(86_400), ..none }), 22990);
    assert_eq!(change(JobType::Capture, JobOptions { maxtrans: Some(0), ..none }), 22991);
    assert_eq!(change(JobType::Capture, JobOptions { maxscans: Some(0), ..none }), 22970);
    assert_eq!(change(JobType::Capture, JobOptions { retention: Some(5), ..none }), 22995);
    assert_eq!(change(JobType::Cleanup, JobOptions { retention: Some(0), ..none }), 22994);
    assert_eq!(change(JobType::Cleanup, JobOptions { maxtrans: Some(5), ..none }), 22996);
    assert_eq!(JobType::parse("log").unwrap_err().number(), 22992);
    jobs::drop_job(&world.conn, JobType::Cleanup).unwrap();
    assert_eq!(change(JobType::Cleanup, none), 22997);
    assert_eq!(cdc::cleanup::cleanup(&world.conn, world.now()).unwrap_err().number(), 22997);
    jobs::add(&world.conn, JobType::Cleanup, &none, world.now()).unwrap();
}

#[test]
fn a_failing_capture_shows_and_loses_nothing() {
    let world = table();
    world.commit("INSERT INTO \"dbo.t\" VALUES (1)");
    let failure = Failure { number: 22859, message: "Log Scan process failed in processing log records.".into() };
    jobs::fail(&world.conn, Some(&failure)).unwrap();
    assert_eq!(world.scan().failure, Some(failure));
    assert_eq!(world.max_lsn(), None);
    let errors = world.answer(&jobs::errors());
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("22859 16 1 Log Scan process failed"));
    assert_eq!(
        world.rows(&format!(
            "SELECT error_count, failed_sessions_count, scan_phase FROM ({}) WHERE session_id > 0",
            jobs::log_scan_sessions().sql
        )),
        ["1 1 Aborted"]
    );
    jobs::fail(&world.conn, None).unwrap();
    assert_eq!(world.scan().commands, 1);
    assert_eq!(world.changes("dbo_t").len(), 1);
}

#[test]
fn sessions_tell_what_was_scanned() {
    let world = table();
    assert_eq!(world.answer(&jobs::log_scan_sessions()), Vec::<String>::new());
    let lsn = world.commit("INSERT INTO \"dbo.t\" VALUES (1)").unwrap();
    world.pass_seconds(4);
    world.scan();
    for _ in 0..3 {
        world.pass_seconds(1);
        world.scan();
    }
    let sessions = format!(
        "SELECT session_id, tran_count, command_count, latency, empty_scan_count, end_lsn FROM ({}) ORDER BY session_id",
        jobs::log_scan_sessions().sql
    );
    let colons = lsn.to_colon_form();
    assert_eq!(
        world.rows(&sessions),
        [format!("0 2 1 4 3 {colons}"), format!("1 2 1 4 0 {colons}"), "2 0 0 0 3 00000000:00000000:0000".to_owned()]
    );
    assert_eq!(world.answer(&jobs::log_scan_sessions()).len(), 3);
}

#[test]
fn an_idle_database_goes_on_every_five_minutes_and_only_when_nothing_waits() {
    let world = table();
    assert_eq!(world.max_lsn(), None);
    world.scan();
    let enabled = world.max_lsn();
    world.pass_seconds(299);
    world.scan();
    assert_eq!(world.max_lsn(), enabled);
    world.pass_seconds(1);
    world.scan();
    let idle = world.max_lsn().unwrap();
    assert!(Some(idle) > enabled);
    assert_eq!(
        world.rows("SELECT tran_begin_time, tran_end_time, tran_id, tran_begin_lsn FROM \"cdc.lsn_time_mapping\" ORDER BY start_lsn DESC LIMIT 1"),
        ["2026-03-28 12:05:00.000 2026-03-28 12:05:00.000 x00 x00000000000000000000"]
    );
    world.scan();
    assert_eq!(world.count("cdc.lsn_time_mapping"), 2);
    world.pass_seconds(600);
    let commit = world.commit("INSERT INTO \"dbo.t\" VALUES (1)").unwrap();
    assert!(commit > idle);
    world.scan();
    assert_eq!((world.max_lsn(), world.count("cdc.lsn_time_mapping")), (Some(commit), 3), "a change resets the clock");
    world.pass_seconds(301);
    world.scan();
    assert!(world.max_lsn().unwrap() > commit);
}

#[test]
fn a_scan_inside_a_transaction_joins_it() {
    let world = table();
    world.commit("INSERT INTO \"dbo.t\" VALUES (1)");
    world.conn.execute_batch("BEGIN").unwrap();
    world.scan();
    world.conn.execute_batch("ROLLBACK").unwrap();
    assert_eq!(world.max_lsn(), None);
    assert_eq!(world.scan().commands, 1);
}

#[test]
fn a_job_that_finds_nothing_again_and_again_does_not_write() {
    let world = table();
    world.scan();
    world.scan();
    let written = world.conn.total_changes();
    world.scan();
    assert_eq!(world.conn.total_changes(), written);
    world.commit("INSERT INTO \"dbo.t\" VALUES (1)");
    assert_eq!(world.scan().commands, 1, "within the same second");
}
