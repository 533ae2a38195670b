//! The state of the database and of its capture.

use schemas::Lsn;
use schemas::table::TableName;
use source::changes::Cursor;
use source::clock::Clock;
use source::health::{Agent, Diagnosis, Health};
use source::identity::{Continuity, History, Identity};
use source::retention::Retention;
use source::rows::KeyRange;
use source::{Client, Error, Password, Source, fence};
use sqlserver::Availability;

use super::support::{World, enable};

fn table_a() -> String {
    "CREATE TABLE dbo.a (id int NOT NULL PRIMARY KEY, v int);".to_owned() + &enable("a")
}

#[tokio::test]
async fn the_state_of_capture_is_seen_and_judged() {
    let mut world = World::start(&table_a()).await;
    world.capture().await;
    let health = Health::read(&mut world.client).await.unwrap();
    assert_eq!(health.agent.seen(), Some(&Agent::Running));
    let jobs = health.jobs.seen().unwrap();
    assert!(jobs.capture.is_some() && jobs.retention_minutes.is_some_and(|minutes| minutes > 0), "{jobs:?}");
    assert_eq!(Diagnosis::of(&health), Diagnosis::Working, "{health:?}");

    world.sql("EXEC sys.sp_cdc_stop_job @job_type = N'capture';").await;
    let stopped = Diagnosis::of(&Health::read(&mut world.client).await.unwrap());
    assert!(matches!(stopped, Diagnosis::JobStopped { enabled: true, .. }), "{stopped}");
    world.sql("EXEC sys.sp_cdc_start_job @job_type = N'capture';").await;

    world.server.set_agent_running(false);
    assert_eq!(Diagnosis::of(&Health::read(&mut world.client).await.unwrap()), Diagnosis::AgentDown);
    world.server.set_agent_running(true);

    world.sql("EXEC sys.sp_cdc_drop_job @job_type = N'capture';").await;
    let jobless = Diagnosis::of(&Health::read(&mut world.client).await.unwrap());
    assert_eq!(jobless, Diagnosis::NoJobs { secondary: false });
}

#[tokio::test]
async fn a_failing_capture_job_gives_its_message() {
    let mut world = World::start(&table_a()).await;
    world.capture().await;
    world.server.fail_capture("shop", Some((22_864, "the log is full"))).unwrap();
    let _ = world.server.capture_now("shop");
    let health = Health::read(&mut world.client).await.unwrap();
    let diagnosis = Diagnosis::of(&health);
    assert!(matches!(&diagnosis, Diagnosis::JobFailing { .. }), "{diagnosis:?} of {health:?}");
}

/// A login that may read the changes and nothing else.
async fn low(world: &World, grants: &str) -> Client {
    world.sql(&format!("CREATE LOGIN low WITH PASSWORD = 'Low!1'; CREATE USER low FOR LOGIN low; GRANT SELECT ON SCHEMA::cdc TO low; {grants}")).await;
    let source = Source { user: "low".into(), password: Password::new("Low!1"), ..world.source.clone() };
    Client::connect(&source).await.unwrap()
}

#[tokio::test]
async fn partial_permissions_hide_no_more_than_their_own_answers() {
    let world = World::start(&table_a()).await;
    world.capture().await;
    let mut client = low(&world, "").await;
    let health = Health::read(&mut client).await.unwrap();
    assert!(health.newest.is_some());
    for (seen, what) in [
        (health.agent.seen().is_some(), "Agent"),
        (health.job_state.seen().is_some(), "the job"),
        (health.scans.seen().is_some(), "the scans"),
        (health.last_error.seen().is_some(), "the errors"),
    ] {
        assert!(!seen, "{what}: {health:?}");
    }
    assert_eq!(Diagnosis::of(&health), Diagnosis::Working);
    // What is captured is all that is left to judge by.
    world.server.set_time(std::time::SystemTime::now() + std::time::Duration::from_secs(3600));
    let Diagnosis::Unknown { why } = Diagnosis::of(&Health::read(&mut client).await.unwrap()) else {
        panic!("an hour of silence")
    };
    assert!(why.contains("for 60 minutes") && why.contains("GRANT VIEW SERVER STATE"), "{why}");
}

#[tokio::test]
async fn without_a_look_into_msdb_the_scans_tell_that_the_job_stands() {
    let world = World::start(&table_a()).await;
    world.capture().await;
    let mut client = low(&world, "GRANT VIEW DATABASE STATE TO low;").await;
    let health = Health::read(&mut client).await.unwrap();
    assert!(health.job_state.seen().is_none() && health.scans.seen().is_some(), "{health:?}");
    assert_eq!(Diagnosis::of(&health), Diagnosis::Working);
    world.sql("EXEC sys.sp_cdc_stop_job @job_type = N'capture';").await;
    world.server.set_time(std::time::SystemTime::now() + std::time::Duration::from_secs(45));
    let diagnosis = Diagnosis::of(&Health::read(&mut client).await.unwrap());
    assert!(matches!(diagnosis, Diagnosis::JobStopped { .. }), "{diagnosis}");
}

#[tokio::test]
async fn a_failover_leaves_the_jobs_behind() {
    let world = World::start(&table_a()).await;
    world.capture().await;
    world.server.fail_over().unwrap();
    let mut client = Client::connect(&world.source).await.unwrap();
    let diagnosis = Diagnosis::of(&Health::read(&mut client).await.unwrap());
    assert_eq!(diagnosis, Diagnosis::NoJobs { secondary: false });
    let group = Availability { group: "ag".into(), replica: "db2".into(), primary: false, suspended: false };
    world.server.set_availability(Some(group));
    let health = Health::read(&mut client).await.unwrap();
    assert_eq!(health.replica.seen().and_then(|replica| replica.primary), Some(false), "{health:?}");
    assert_eq!(Diagnosis::of(&health), Diagnosis::NoJobs { secondary: true });
    let group = Availability { group: "ag".into(), replica: "db2".into(), primary: true, suspended: true };
    world.server.set_availability(Some(group));
    let health = Health::read(&mut client).await.unwrap();
    let replica = health.replica.seen().unwrap();
    assert!(replica.suspended && replica.state.as_deref() == Some("NOT SYNCHRONIZING"), "{replica:?}");
}

#[tokio::test]
async fn a_restored_database_is_told_from_the_one_that_was_read() {
    let mut world = World::start(&table_a()).await;
    world.capture().await;
    let backup = world.server.backup("shop").unwrap();
    world.sql("INSERT dbo.a VALUES (1, 1);").await;
    world.capture().await;
    let identity = Identity::read(&mut world.client).await.unwrap();
    let published = Health::read(&mut world.client).await.unwrap().newest.unwrap().lsn;
    world.server.restore(&backup).unwrap();
    let mut client = Client::connect(&world.source).await.unwrap();
    let now = Identity::read(&mut client).await.unwrap();
    assert!(matches!(now.since(&identity), Continuity::Restored { .. }), "{now:?} after {identity:?}");
    assert!(matches!(History::of(&mut client, published).await.unwrap(), History::Absent { .. }));
    // Who may not see the fork still sees that something is different.
    let hidden = Identity { recovery_fork: None, ..now };
    assert!(matches!(hidden.since(&identity), Continuity::Doubtful { .. }));
}

#[tokio::test]
async fn a_database_is_known_again_by_identity_and_history() {
    let mut world = World::start(&(table_a() + "INSERT dbo.a VALUES (1, 1);")).await;
    world.capture().await;
    let identity = Identity::read(&mut world.client).await.unwrap();
    assert_eq!((identity.name.as_str(), identity.since(&identity)), ("shop", Continuity::Same));
    let newest = Health::read(&mut world.client).await.unwrap().newest.unwrap();
    let present = History::of(&mut world.client, newest.lsn).await.unwrap();
    assert!(matches!(present, History::Present { commit_time: Some(_) }), "{present:?}");
    let absent = History::of(&mut world.client, newest.lsn.next()).await.unwrap();
    assert_eq!(absent, History::Absent { ends: Some(newest.lsn) });
    assert_eq!(History::of(&mut world.client, Lsn::ZERO.next()).await.unwrap(), History::Purged);
}

#[tokio::test]
async fn what_is_left_of_the_retention_is_known_in_one_round_trip() {
    let mut world = World::start(&table_a()).await;
    world.sql("INSERT dbo.a VALUES (1, 1);").await;
    world.capture().await;
    let clock = Clock::default();
    let before = world.table("a").await.instances[0].start_lsn;
    let retention = Retention::read(&mut world.client, &clock, before).await.unwrap();
    assert_eq!(retention.instances.len(), 1);
    assert_eq!(retention.instances[0].min_lsn, Some(before));
    let left = retention.left_ms(retention.next_ms.unwrap(), 60);
    assert!((3_500_000..=3_600_100).contains(&left), "{retention:?}");
    assert!(retention.instances[0].begins_ms.is_some_and(|begins| Some(begins) <= retention.next_ms), "{retention:?}");
    let waiting = Retention::waiting(&mut world.client, &clock, &["dbo_a"], before).await.unwrap();
    // The first captured transaction need not be one of the table.
    assert!(
        waiting.len() == 1 && waiting[0] >= retention.next_ms && waiting[0] <= Some(retention.now_ms),
        "{waiting:?}, {retention:?}"
    );
    assert_eq!(Retention::waiting(&mut world.client, &clock, &["dbo_a"], Lsn::MAX).await.unwrap(), [None]);
    let nothing_waits = Retention::read(&mut world.client, &clock, Lsn::MAX).await.unwrap();
    assert_eq!(nothing_waits.next_ms, None);
}

#[tokio::test]
async fn commit_times_are_right_across_daylight_saving() {
    let mut world = World::start(&table_a()).await;
    world.server.set_time_zone("Europe/Berlin").unwrap();
    let mut committed = Vec::new();
    // 2024-10-27: summer time ends at 01:00 UTC. Twenty minutes before, ten after, and an hour later.
    for (number, at) in [1_729_989_600u64, 1_729_991_400, 1_729_995_000].into_iter().enumerate() {
        world.server.set_time(std::time::UNIX_EPOCH + std::time::Duration::from_secs(at));
        world.sql(&format!("INSERT dbo.a VALUES ({number}, 1);")).await;
        world.capture().await;
        committed.push(i64::try_from(at).unwrap() * 1000);
    }
    let clock = Clock::default().of_server(&mut world.client).await.unwrap();
    let mut commits = clock.commits();
    let sql = "SELECT tran_end_time FROM cdc.lsn_time_mapping WHERE tran_id <> 0x00 ORDER BY start_lsn";
    let rows = world.client.rows("reading commit times", sql, vec![]).await.unwrap();
    // What was written before the clock was set is not part of it.
    let rows = rows.into_iter().rev().take(3).collect::<Vec<_>>();
    let mut read = Vec::new();
    for row in rows.into_iter().rev() {
        let value = source::decode::value(row.into_iter().next().unwrap()).unwrap();
        read.push(commits.unix_ms(&value, 60).unwrap());
    }
    let near = |(read, committed): (&i64, &i64)| (0..60_000).contains(&(read - committed));
    assert!(read.iter().zip(&committed).all(near), "{read:?} for {committed:?}");
}

#[tokio::test]
async fn fenced_readers_see_the_tables_as_of_their_lsn() {
    let mut world = World::start(&(table_a() + "INSERT dbo.a VALUES (1, 1);")).await;
    let tables = [TableName::new("dbo", "a")];
    world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION OFF;").await;
    let refused = fence::open(&world.source, &tables, 1).await.map(|fenced| fenced.lsn).unwrap_err();
    assert!(matches!(refused, Error::NoFence { .. }), "{refused}");
    assert!(refused.to_string().contains("SET ALLOW_SNAPSHOT_ISOLATION ON"), "{refused}");
    world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;").await;
    let table = world.source_table("a").await;
    let mut fenced = fence::open(&world.source, &tables, 2).await.unwrap();
    world.sql("INSERT dbo.a VALUES (2, 2);").await;
    for reader in &mut fenced.readers {
        assert_eq!(table.read(reader, &KeyRange::default(), 10, usize::MAX).await.unwrap().rows.len(), 1);
    }
    drop(fenced.readers);
    world.capture().await;
    let changes = world.change_table("a", 100).await;
    let mut after = Cursor::new(changes, fenced.lsn, Lsn::MAX, 1);
    let page = after.page(&mut world.client).await.unwrap().unwrap();
    assert_eq!(page.len(), 1, "the tail after the fence brings what the readers did not see: {page:?}");
}
