//! Crashes between any two steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value as Json, json};

use crate::gate::Gate;
use crate::support::{PATIENCE, World};

fn account(id: i64, name: &str) -> Json {
    json!({"type": "account", "data": {"id": id, "name": name, "closed": false}})
}

fn entry(id: i64, account: i64, amount: &str) -> Json {
    json!({"type": "entry", "id": id, "data": {"id": id, "account": account, "amount": amount}})
}

fn void(id: i64) -> Json {
    json!({"type": "entry", "id": id, "data": null})
}

#[tokio::test]
async fn rows_are_what_the_service_said_last_and_every_image_is_right() {
    let world = World::new().await;
    world.say(&[account(1, "ann"), entry(7, 1, "5"), entry(8, 1, "6.5")]).await;
    let seen = world.import_until("the first", |seen| seen.events.len() == 3).await;
    assert!(seen.events.iter().all(|event| event["op"] == "c" && event["source"]["name"] == "bank"), "{:?}", seen.events);
    // Another start: what rows were is known from before.
    world.say(&[entry(7, 2, "5"), void(8), void(9), account(1, "anna")]).await;
    let seen = world.import_until("the changes", |seen| seen.events.len() == 6).await;
    let ops: BTreeMap<String, usize> = seen.events.iter().fold(BTreeMap::new(), |mut ops, event| {
        *ops.entry(event["op"].as_str().unwrap().to_owned()).or_default() += 1;
        ops
    });
    assert_eq!(ops, [("c".to_owned(), 3), ("d".to_owned(), 1), ("u".to_owned(), 2)].into());
    let row = |table: &str, id: &str| seen.tables().get(&(table.to_owned(), id.to_owned())).cloned();
    assert_eq!(row("entries", "7"), Some(json!({"id": 7, "account": 2, "amount": "5.00"})));
    assert_eq!((row("entries", "8"), row("accounts", "1")), (None, Some(json!({"id": 1, "name": "anna"}))));
    assert_eq!(seen.repeats, 0);
}

#[tokio::test]
async fn a_tick_that_was_cut_short_is_published_again_as_it_was() {
    // Cut where its progress record would be appended: all of its events are out.
    for (cut, repeats) in [("\"kind\":\"tail\"", 3), ("\"op\":\"c\"", 0)] {
        let world = World::new().await;
        world.import_until("the beginning", |seen| seen.progress.len() == 1).await;
        let gate = Gate::new(&world.output, cut);
        world.say(&[account(1, "ann"), entry(7, 1, "5"), entry(8, 1, "6")]).await;
        let import = world.import_into(Arc::new(gate.clone()));
        let waits = async || {
            while !gate.holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits()).await.unwrap();
        import.kill().await;
        assert!(gate.take().iter().all(|record| String::from_utf8_lossy(&record.data).contains(cut)));
        // What the service says meanwhile is of the next tick, and changes nothing in this one.
        world.say(&[entry(7, 2, "5"), account(2, "bob")]).await;
        let seen = world.import_until("both ticks", |seen| seen.events.len() == 5).await;
        assert_eq!(seen.repeats, repeats, "{cut}");
        assert_eq!(seen.progress.iter().map(|record| record.counts.values().sum()).collect::<Vec<u64>>(), [0, 3, 2]);
        assert_eq!(seen.tables().len(), 4);
    }
}

#[tokio::test]
async fn streams_that_take_nothing_for_a_while_hold_the_tick_up() {
    let world = World::new().await;
    let gate = Gate::new(&world.output, "\"op\":\"c\"");
    world.say(&[account(1, "ann")]).await;
    let import = world.import_into(Arc::new(gate.clone()));
    while !gate.holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.seen().await.progress.len(), 1, "nothing is promised yet");
    gate.open();
    while world.seen().await.progress.len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    import.stop().await;
    assert_eq!(world.seen().await.tables().len(), 1);
}

#[tokio::test]
async fn a_quiet_source_says_that_it_lives() {
    let mut world = World::new().await;
    world.config.heartbeat = Duration::from_millis(20);
    world.say(&[account(1, "ann")]).await;
    let seen = world.import_until("ticks of nothing", |seen| seen.progress.len() > 4).await;
    assert_eq!(seen.events.len(), 1);
    // So time passes, from the snapshot on.
    let times: Vec<i64> = seen.progress.iter().map(|record| record.commit_time_ms).collect();
    assert!(times[0] > 0 && times.is_sorted() && times.last() > times.first(), "{times:?}");
    // What comes then is in the next one.
    world.config.heartbeat = PATIENCE;
    world.say(&[account(1, "anna")]).await;
    world.import_until("the change", |seen| seen.events.len() == 2).await;
}

/// Commands of a service at random, and an importer that is killed at random places; in the end, the tables are what the service said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_each_record_takes_effect_once() {
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("seed {seed} (TRIBUTARY_SEED replays it)");
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new().await;
    (world.config.tick_records, world.config.linger) = (20, Duration::from_millis(1));
    let mut model: BTreeMap<(String, String), Json> = BTreeMap::new();
    for round in 0..25 {
        let mut events = Vec::new();
        for number in 0..random.random_range(0..60) {
            let id: i64 = random.random_range(0..20);
            let row = if random.random_bool(0.3) {
                let name = format!("{round}.{number}");
                events.push(account(id, &name));
                (("accounts".to_owned(), id.to_string()), Some(json!({"id": id, "name": name})))
            } else if random.random_bool(0.3) {
                events.push(void(id));
                (("entries".to_owned(), id.to_string()), None)
            } else {
                let (owner, amount) = (random.random_range(0..5), format!("{round}.{:02}", number));
                events.push(entry(id, owner, &amount));
                (("entries".to_owned(), id.to_string()), Some(json!({"id": id, "account": owner, "amount": amount})))
            };
            match row {
                (key, Some(row)) => drop(model.insert(key, row)),
                (key, None) => drop(model.remove(&key)),
            }
        }
        world.say(&events).await;
        let cut = ["\"op\":\"u\"", "\"op\":\"d\"", "\"kind\":\"tail\"", "nothing"][random.random_range(0..4)];
        let gate = Gate::new(&world.output, cut);
        let import = world.import_into(Arc::new(gate.clone()));
        // Some are cut where all of a tick is out but its record, however slow the machine is; the others at a random moment, unless they are held up before.
        let moment = match cut {
            "\"kind\":\"tail\"" if !events.is_empty() => PATIENCE,
            _ => Duration::from_millis(random.random_range(0..40)),
        };
        let held = async {
            while !gate.holds() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let _ = tokio::time::timeout(moment, held).await;
        import.kill().await;
    }
    world.say(&[account(99, "last")]).await;
    model.insert(("accounts".to_owned(), "99".to_owned()), json!({"id": 99, "name": "last"}));
    let seen = world.import_until("all", |seen| seen.tables() == model).await;
    assert!(seen.repeats > 0, "nothing was cut short");
}
