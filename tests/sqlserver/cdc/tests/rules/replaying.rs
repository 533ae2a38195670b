//! What every importer relies on: the change tables, read in order, lead from nothing to what the source tables hold, and nothing appears behind a
//! published position.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cdc::Lsn;
use rusqlite::Connection;

use crate::world::World;

/// A small generator: the same numbers on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const ALL: &str = "
SELECT \"__$start_lsn\" AS l, \"__$command_id\" AS c, \"__$seqval\" AS s, \"__$operation\" AS o, 'a' AS t, id, v FROM \"cdc.dbo_a_CT\"
UNION ALL SELECT \"__$start_lsn\", \"__$command_id\", \"__$seqval\", \"__$operation\", 'b', id, v FROM \"cdc.dbo_b_CT\"";

/// Applies the captured changes to nothing, checking each old image on the way.
fn replayed(world: &World, order: &str) -> BTreeMap<(String, i64), i64> {
    let mut tables = BTreeMap::new();
    let mut statement = world.conn.prepare(&format!("SELECT o, t, id, v FROM ({ALL}) ORDER BY {order}")).unwrap();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (operation, table, id, value): (i64, String, i64, i64) =
            (row.get(0).unwrap(), row.get(1).unwrap(), row.get(2).unwrap(), row.get(3).unwrap());
        let key = (table, id);
        match operation {
            1 => assert_eq!(tables.remove(&key), Some(value), "deleted what was there: {key:?}"),
            2 => assert_eq!(tables.insert(key, value), None, "inserted where nothing was"),
            3 => assert_eq!(tables.get(&key), Some(&value), "the before image is what was there: {key:?}"),
            _ => assert!(tables.insert(key, value).is_some(), "updated what was there"),
        }
    }
    tables
}

fn held(world: &World) -> BTreeMap<(String, i64), i64> {
    let sql = "SELECT 'a', id, v FROM \"dbo.a\" UNION ALL SELECT 'b', id, v FROM \"dbo.b\"";
    let mut statement = world.conn.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?))).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn random_statement(dice: &mut Dice) -> String {
    let table = if dice.roll(2) == 0 { "a" } else { "b" };
    let (id, value) = (dice.roll(12), dice.roll(5));
    match dice.roll(7) {
        0 | 1 => format!("INSERT OR IGNORE INTO \"dbo.{table}\" VALUES ({id}, {value})"),
        2 => format!("UPDATE \"dbo.{table}\" SET v = {value} WHERE id % 3 = {}", id % 3),
        3 => format!("DELETE FROM \"dbo.{table}\" WHERE id = {id}"),
        4 => format!("UPDATE OR IGNORE \"dbo.{table}\" SET id = id + 1, v = {value} WHERE id >= {id}"),
        5 => format!(
            "UPDATE \"dbo.{table}\" SET id = id + 100 WHERE id = {id} AND NOT EXISTS (SELECT 1 FROM \"dbo.{table}\" WHERE id = {id} + 100)"
        ),
        _ => format!(
            "SAVEPOINT s; DELETE FROM \"dbo.{table}\"; {}",
            if value < 4 { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" }
        ),
    }
}

#[test]
fn random_transactions_replay_to_what_the_tables_hold() {
    for seed in 0..40 {
        let world = World::new();
        for name in ["a", "b"] {
            world.table(name, &[("id", "int"), ("v", "int")], true);
            world.conn.execute_batch(&format!("CREATE UNIQUE INDEX \"dbo.{name}.key\" ON \"dbo.{name}\" (id)")).unwrap();
            world.enable(name);
        }
        let mut dice = Dice(seed);
        for _ in 0..60 {
            let statements: Vec<String> = (0..=dice.roll(6)).map(|_| random_statement(&mut dice)).collect();
            if dice.roll(5) == 0 {
                world.conn.execute_batch(&format!("BEGIN; {}; ROLLBACK", statements.join("; "))).unwrap();
            } else {
                world.commit(&statements.join("; "));
            }
            if dice.roll(4) == 0 {
                world.scan();
            }
        }
        world.scan();
        let held = held(&world);
        assert_eq!(replayed(&world, "l, c, s, o"), held, "in the order of command ids, seed {seed}");
        assert_eq!(replayed(&world, "l, s, o"), held, "and of seqvals alone, seed {seed}");
        let doubled = world.rows(&format!("SELECT count(*) - count(DISTINCT hex(l) || hex(s) || o || t) FROM ({ALL})"));
        assert_eq!(doubled, ["0"], "(commit LSN, seqval, operation) identifies a change in a table");
    }
}

fn open(path: &Path) -> World {
    let conn = Connection::open(path).unwrap();
    conn.busy_timeout(Duration::from_secs(30)).unwrap();
    World::over(conn)
}

#[test]
fn nothing_appears_behind_a_published_position_while_writers_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.db");
    World::bare().conn.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
    let world = open(&path);
    world.conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    world.conn.pragma_update(None, "synchronous", "OFF").unwrap();
    cdc::enable_db(&world.conn, &mut world.catalog(), world.now()).unwrap();
    for name in ["a", "b"] {
        world.table(name, &[("id", "int"), ("v", "int")], true);
        world.enable(name);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers = [0, 1000].map(|base| {
            let path = &path;
            scope.spawn(move || {
                let world = open(path);
                for id in base..base + 150 {
                    world.conn.execute_batch("BEGIN IMMEDIATE").unwrap();
                    world
                        .conn
                        .execute_batch(&format!(
                            "INSERT INTO \"dbo.a\" VALUES ({id}, 1); INSERT INTO \"dbo.b\" VALUES ({id}, 1); UPDATE \"dbo.a\" SET v = 2 WHERE id = {id}"
                        ))
                        .unwrap();
                    cdc::stamp_commit(&world.conn, world.now(), world.now()).unwrap();
                    world.conn.execute_batch("COMMIT").unwrap();
                }
            })
        });
        let capture = scope.spawn(|| {
            let world = open(&path);
            while !done.load(Ordering::Acquire) {
                world.scan();
            }
            world.scan();
        });
        let reader = scope.spawn(|| {
            let world = open(&path);
            let below = format!("SELECT count(*) FROM ({ALL}) WHERE l <= ?1");
            let count = |lsn: Lsn| world.conn.query_row::<i64, _, _>(&below, [lsn], |row| row.get(0)).unwrap();
            let mut seen: Vec<(Lsn, i64)> = Vec::new();
            while !done.load(Ordering::Acquire) {
                if let Some(max) = world.max_lsn() {
                    seen.push((max, count(max)));
                }
            }
            for (lsn, at_first) in seen {
                assert_eq!(count(lsn), at_first, "all of it was there when {lsn} was published");
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        capture.join().unwrap();
        reader.join().unwrap();
    });
    assert_eq!(replayed(&world, "l, c, s, o"), held(&world));
    assert_eq!(world.rows("SELECT count(*) FROM \"cdc.dbo_a_CT\""), ["900"]);
    let torn = format!("SELECT count(*) FROM (SELECT l FROM ({ALL}) GROUP BY l HAVING count(*) <> 4)");
    assert_eq!(world.rows(&torn), ["0"], "every commit LSN is one whole transaction");
}
