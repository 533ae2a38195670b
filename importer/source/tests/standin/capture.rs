//! What has been captured: pages, counts, alterations, keys.

use std::sync::Arc;

use schemas::Lsn;
use schemas::value::Value;
use source::Client;
use source::changes::{Change, Cursor, Probe};
use source::keys::KeySource;
use source::recount::{self, Count};

use super::support::{World, enable};

async fn changes(client: &mut Client, mut cursor: Cursor) -> Vec<Change> {
    let mut all = Vec::new();
    while let Some(page) = cursor.page(client).await.unwrap() {
        all.extend(page);
    }
    all
}

/// Updates of a thousand bytes, in one transaction, with a delete and an insert of one key among them.
fn large_updates() -> String {
    let mut script = String::from("BEGIN TRANSACTION;");
    for number in 0..20 {
        script += &format!("UPDATE dbo.texts SET v = '{}' WHERE id = {number};", "y".repeat(1000 + number));
    }
    script + "UPDATE dbo.texts SET id = 100 WHERE id = 3; COMMIT;"
}

#[tokio::test]
async fn changes_come_out_the_same_wherever_pages_end() {
    let mut script = String::from("CREATE TABLE dbo.texts (id int NOT NULL PRIMARY KEY, v varchar(8000));") + &enable("texts");
    for number in 0..20 {
        script += &format!("INSERT dbo.texts VALUES ({number}, '{}');", "x".repeat(1000));
    }
    let mut world = World::start(&(script + &large_updates())).await;
    world.capture().await;
    let table = world.change_table("texts", 20_000).await;
    let whole = changes(&mut world.client, Cursor::new(Arc::clone(&table), Lsn::ZERO, Lsn::MAX, 1)).await;
    assert_eq!(whole.len(), 20 + 20 + 2);
    assert!(whole.is_sorted_by_key(|change| change.position));
    for rows in [1, 2, 3, 7] {
        let table = world.change_table("texts", rows).await;
        assert_eq!(changes(&mut world.client, Cursor::new(table, Lsn::ZERO, Lsn::MAX, 1)).await, whole);
    }
    // The share of one cursor among a thousand is the least page of bytes, which these rows pass.
    let shared = changes(&mut world.client, Cursor::new(table, Lsn::ZERO, Lsn::MAX, 1000)).await;
    assert_eq!(shared, whole);
}

#[tokio::test]
async fn changes_are_counted_again() {
    let script = "CREATE TABLE dbo.a (id int NOT NULL PRIMARY KEY, v int); CREATE TABLE dbo.b (id int NOT NULL PRIMARY KEY);"
        .to_owned()
        + &enable("a")
        + &enable("b")
        + "INSERT dbo.a VALUES (1, 1); INSERT dbo.a VALUES (2, 2); UPDATE dbo.a SET v = 3; DELETE dbo.a WHERE id = 1; INSERT dbo.b VALUES (1);";
    let mut world = World::start(&script).await;
    world.capture().await;
    let (begin, later) = (world.table("a").await.instances[0].start_lsn, world.table("b").await.instances[0].start_lsn);
    let counts = recount::changes(&mut world.client, &["dbo_b", "dbo_a"], later, Lsn::MAX).await.unwrap();
    assert_eq!(counts, [Count::Changes(1), Count::Changes(5)]);
    let before = recount::changes(&mut world.client, &["dbo_a"], Lsn::ZERO, Lsn::MAX).await.unwrap();
    assert_eq!(before, [Count::Purged { min: begin, changes: 5 }]);
    assert_eq!(recount::changes(&mut world.client, &["dbo_a"], Lsn::MAX, Lsn::MAX).await.unwrap(), [Count::Changes(0)]);
    assert_eq!(recount::changes(&mut world.client, &[], Lsn::ZERO, Lsn::MAX).await.unwrap(), []);
}

#[tokio::test]
async fn a_probe_tells_what_moved_and_that_the_catalog_did() {
    let script = "CREATE TABLE dbo.a (id int NOT NULL PRIMARY KEY); CREATE TABLE dbo.b (id int NOT NULL PRIMARY KEY);".to_owned()
        + &enable("a")
        + &enable("b");
    let mut world = World::start(&script).await;
    let probe = Probe::new(&["dbo_a", "dbo_b"]);
    let first = probe.ask(&mut world.client).await.unwrap();
    assert_eq!((first.newest.len(), first.begins.len(), first.state.instances), (0, 2, 2));
    world.sql("INSERT dbo.b VALUES (1);").await;
    world.capture().await;
    let moved = probe.ask(&mut world.client).await.unwrap();
    assert_eq!(moved.newest.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1]);
    assert_eq!(moved.state, first.state);
    world.sql("ALTER TABLE dbo.a ADD v int;").await;
    world.capture().await;
    let altered = probe.ask(&mut world.client).await.unwrap();
    assert_ne!(altered.state, first.state);
}

#[tokio::test]
async fn two_instances_stand_in_order_and_columns_keep_their_identity() {
    let script = "CREATE TABLE dbo.a (id int NOT NULL PRIMARY KEY, v int);".to_owned() + &enable("a");
    let mut world = World::start(&script).await;
    let before = world.table("a").await.instances[0].clone();
    world.sql("ALTER TABLE dbo.a DROP COLUMN v; ALTER TABLE dbo.a ADD v int; EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'a', @role_name = NULL, @capture_instance = N'second';").await;
    let table = world.table("a").await;
    let names: Vec<&str> = table.instances.iter().map(|instance| instance.name.as_str()).collect();
    assert_eq!(names, ["second", "dbo_a"]);
    let second = &table.instances[0];
    assert!(second.create_date.is_some() && second.end_lsn.is_none());
    let id =
        |instance: &source::Instance| instance.columns.iter().find(|column| column.name == "v").map(|column| column.column_id);
    assert_ne!(id(second), id(&before));
}

#[tokio::test]
async fn a_unique_index_stands_for_a_missing_primary_key() {
    let script = "CREATE TABLE dbo.heap (a int NOT NULL, b int NULL, c int NOT NULL); CREATE UNIQUE INDEX by_b ON dbo.heap (b); CREATE UNIQUE INDEX by_ca ON dbo.heap (c, a); \
                  CREATE TABLE dbo.plain (a int NOT NULL);"
        .to_owned()
        + &enable("heap")
        + &enable("plain")
        + "INSERT dbo.heap VALUES (1, 1, 2); INSERT dbo.heap VALUES (2, 2, 1);";
    let mut world = World::start(&script).await;
    let instance = world.table("heap").await.instances[0].clone();
    assert_eq!(
        (instance.key.clone(), &instance.key_source),
        (vec!["c".into(), "a".into()], &KeySource::UniqueIndex("by_ca".into()))
    );
    let rows = world.source_table("heap").await;
    let chunk = rows.read(&mut world.client, &source::rows::KeyRange::default(), 10, usize::MAX).await.unwrap();
    assert_eq!(chunk.rows[0], [Value::Int(2), Value::Int(2), Value::Int(1)]);
    let plain = world.table("plain").await.instances[0].clone();
    assert_eq!((plain.key.len(), plain.key_source), (0, KeySource::None));
}
