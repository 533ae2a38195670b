//! Time to live: entities go when the commit time of their source has come far enough, and by nothing else.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};

use joiner::definitions::{Kind, Way, compare};
use joiner::{Config, Engine, Error, Memory};
use schemas::TableName;
use schemas::change::EntityKey;
use schemas::entity::EntityDefinition;
use schemas::event::Row;
use schemas::plan::Plan;
use schemas::progress::{Phase, ProgressRecord};
use schemas::table::{Column, TableSchema};
use schemas::value::Value;
use serde_json::{Value as Json, json};
use support::shop::{Shop, feed, read_up_to, tell};
use support::{change, config, encode, lsn, memory_kib, read, record};

/// What a process has of memory is measured with nothing else going on in it.
static ALONE: Mutex<()> = Mutex::new(());

/// 2024-01-01 in days since 0001-01-01, and in milliseconds since 1970-01-01.
const START: u32 = 738_885;
const START_MS: i64 = 1_704_067_200_000;
const HOUR_MS: i64 = 3_600_000;

const OFFER: &str = "{entity: offer, table: dbo.offers, fields: [id, price], time_to_live: {column: made, duration: 2h}}";
const PRICES: &str = "{entity: prices, of: offer, group_by: [price], aggregates: {offers: {count: rows}}}";

fn offers() -> Arc<TableSchema> {
    let column = |(name, sql_type): &(&str, &str)| Column {
        name: (*name).to_owned(),
        sql_type: sql_type.parse().unwrap(),
        nullable: *name != "id",
        case_insensitive: false,
    };
    let columns =
        [("id", "int"), ("price", "int"), ("made", "datetime2(0)"), ("note", "varchar(9)")].iter().map(column).collect();
    Arc::new(TableSchema { name: TableName::new("dbo", "offers"), columns, key: vec![0] })
}

/// Made so many hours after time began.
fn offer(id: i64, price: i64, hour: Option<u64>) -> Row {
    let made = hour.map(|hour| Value::DateTime { days: START, ticks: hour * 36_000_000_000, scale: 0 });
    vec![Value::Int(id), Value::Int(price), made.unwrap_or(Value::Null), Value::Null]
}

fn plans(texts: &[&str]) -> Vec<Arc<Plan>> {
    let definitions: Vec<_> = texts.iter().map(|text| EntityDefinition::from_yaml("offer.yaml", text).unwrap()).collect();
    let plans = Plan::resolve_all(&definitions, &|name: &TableName| Some(offers()).filter(|table| table.name == *name));
    plans.unwrap().into_iter().map(Arc::new).collect()
}

fn joiner(dir: &Path, texts: &[&str]) -> Config {
    Config { plans: plans(texts), threads: 1, ..config(dir) }
}

/// A record of the tail, when the source has come so many hours far.
fn tail(from: u8, to: u8, hours: f64, changes: u64) -> ProgressRecord {
    let table = offers();
    let counts = [(&table, changes)];
    let commit_time_ms = START_MS + (hours * HOUR_MS as f64) as i64;
    ProgressRecord { commit_time_ms, ..record(Phase::Tail, from, to, &counts[usize::from(changes == 0)..]) }
}

/// With a snapshot, after which nothing is known of the time.
fn shop(config: Config, rows: &[Row]) -> Shop {
    let mut shop = Shop::open(config);
    let snapshot: Vec<_> = rows.iter().map(|row| read(offers(), 5, row.clone())).collect();
    shop.feed(&snapshot);
    let complete = record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&offers(), rows.len() as u64)]);
    shop.tell(ProgressRecord { commit_time_ms: 0, ..complete });
    shop
}

fn get(engine: &Engine, key: &str) -> Option<Json> {
    let found = engine.handle().get("offer", &EntityKey::from_text(key)).unwrap();
    found.map(|(_, text)| serde_json::from_str(&text).unwrap())
}

/// By key: the version, and whether there is a document.
fn told(shop: &mut Shop) -> Vec<(String, u8, bool)> {
    let told = shop.told().into_iter();
    told.map(|(key, version, document)| (key, version.as_bytes()[9], document != Json::Null)).collect()
}

fn gone(keys: &[&str], version: u8) -> Vec<(String, u8, bool)> {
    keys.iter().map(|key| ((*key).to_owned(), version, false)).collect()
}

#[test]
fn time_passes_although_nothing_changes() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let rows = [offer(1, 10, Some(0)), offer(2, 10, Some(1)), offer(3, 10, None)];
    let mut shop = shop(joiner(dir.path(), &[OFFER]), &rows);
    // An idle source says how late it is, and nothing else.
    shop.tell(tail(5, 6, 1.9, 0));
    assert_eq!(told(&mut shop), []);
    shop.tell(tail(6, 7, 2.0, 0));
    assert_eq!(told(&mut shop), gone(&["1"], 7));
    assert_eq!(get(&shop.engine, "1"), None);
    // Neither again, nor after a restart.
    let mut shop = shop.restart();
    shop.tell(tail(7, 8, 2.5, 0));
    assert_eq!(told(&mut shop), []);
    shop.tell(tail(8, 9, 100.0, 0));
    assert_eq!(told(&mut shop), gone(&["2"], 9));
    // NULL is never over.
    assert_eq!(get(&shop.engine, "3"), Some(json!({"id": 3, "price": 10})));
}

#[test]
fn an_entity_is_there_again_when_its_time_is_moved_on() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mut shop = shop(joiner(dir.path(), &[OFFER]), &[offer(1, 10, Some(0))]);
    shop.tell(tail(5, 6, 3.0, 0));
    assert_eq!(told(&mut shop), gone(&["1"], 6));
    // What is changed of it meanwhile is not told, and not lost.
    shop.feed(&[change(offers(), 7, 1, Some(offer(1, 10, Some(0))), Some(offer(1, 20, Some(0))))]);
    shop.tell(tail(6, 7, 3.0, 1));
    assert_eq!(told(&mut shop), []);
    shop.feed(&[change(offers(), 8, 1, Some(offer(1, 20, Some(0))), Some(offer(1, 20, Some(3))))]);
    shop.tell(tail(7, 8, 4.0, 1));
    assert_eq!(shop.told(), [("1".to_owned(), lsn(8), json!({"id": 1, "price": 20}))]);
    // Its old time does not come again; its new one does, at once where it is past.
    shop.tell(tail(8, 9, 4.9, 0));
    assert_eq!(told(&mut shop), []);
    shop.feed(&[change(offers(), 10, 1, Some(offer(1, 20, Some(3))), Some(offer(1, 20, Some(2))))]);
    shop.tell(tail(9, 10, 4.9, 1));
    assert_eq!(told(&mut shop), gone(&["1"], 10));
}

#[test]
fn a_clock_that_is_set_back_brings_nothing_back() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mut shop = shop(joiner(dir.path(), &[OFFER]), &[offer(1, 10, Some(0)), offer(2, 10, Some(2))]);
    shop.tell(tail(5, 6, 3.0, 0));
    shop.tell(tail(6, 7, 1.0, 0));
    let mut shop = shop.restart();
    // What changes, or comes, while the clock is behind goes by the time that it was.
    shop.feed(&[
        change(offers(), 8, 1, Some(offer(1, 10, Some(0))), Some(offer(1, 20, Some(0)))),
        change(offers(), 8, 2, None, Some(offer(4, 20, Some(1)))),
    ]);
    shop.tell(tail(7, 8, 1.1, 2));
    assert_eq!(told(&mut shop), gone(&["1"], 6));
    assert_eq!((get(&shop.engine, "1"), get(&shop.engine, "4")), (None, None));
    shop.tell(tail(8, 9, 4.0, 0));
    assert_eq!(told(&mut shop), gone(&["2"], 9));
}

#[test]
fn a_load_leaves_out_what_is_over() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(joiner(dir.path(), &[OFFER, PRICES]));
    shop.feed(&[read(offers(), 5, offer(1, 10, Some(0))), read(offers(), 5, offer(2, 10, Some(5)))]);
    let complete = record(Phase::SnapshotComplete { consistent_from: lsn(6) }, 5, 5, &[(&offers(), 2)]);
    shop.tell(ProgressRecord { commit_time_ms: 0, ..complete });
    shop.tell(tail(5, 6, 6.0, 0));
    let found = Mutex::new(Vec::new());
    let receive = |changes: Vec<schemas::change::EntityChange>| {
        found.lock().unwrap().extend(changes.into_iter().map(|change| change.key.to_string()));
        true
    };
    shop.engine.scan("offer", 1, &receive).unwrap();
    assert_eq!(found.into_inner().unwrap(), ["2"]);
    let prices = shop.engine.handle().get("prices", &EntityKey::from_text("10")).unwrap().unwrap().1;
    assert_eq!(serde_json::from_str::<Json>(&prices).unwrap(), json!({"price": 10, "offers": 1}));
    assert_eq!(shop.told(), []);
}

#[test]
fn the_record_of_a_snapshot_says_what_is_over_at_the_first_load() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let mut shop = Shop::open(joiner(dir.path(), &[OFFER, PRICES]));
    shop.feed(&[read(offers(), 5, offer(1, 10, Some(0))), read(offers(), 5, offer(2, 10, Some(5)))]);
    let complete = record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&offers(), 2)]);
    shop.tell(ProgressRecord { commit_time_ms: START_MS + 6 * HOUR_MS, ..complete });
    assert_eq!((get(&shop.engine, "1"), get(&shop.engine, "2")), (None, Some(json!({"id": 2, "price": 10}))));
    // Neither what is not known nor a clock that is set back changes that, and nothing was told that would have to be taken back.
    shop.tell(ProgressRecord { commit_time_ms: 0, ..tail(5, 6, 0.0, 0) });
    shop.tell(tail(6, 7, 1.0, 0));
    assert_eq!(shop.told(), []);
    let prices = shop.engine.handle().get("prices", &EntityKey::from_text("10")).unwrap().unwrap().1;
    assert_eq!(serde_json::from_str::<Json>(&prices).unwrap(), json!({"price": 10, "offers": 1}));
    shop.tell(tail(7, 8, 7.0, 0));
    assert_eq!(told(&mut shop), gone(&["2", "10"], 8));
}

#[test]
fn many_that_come_due_at_once_are_told_with_one_commit_and_leave_their_roll_ups() {
    let _alone = ALONE.lock();
    for chunk_entities in [2, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { chunk_entities, ..joiner(dir.path(), &[OFFER, PRICES]) };
        let rows: Vec<Row> = (1..=40).map(|id| offer(id, id % 2, Some(u64::from(id > 30)))).collect();
        let mut shop = shop(config, &rows);
        shop.tell(tail(5, 6, 2.5, 0));
        let told = shop.told();
        let (offers, prices): (Vec<_>, Vec<_>) = told.into_iter().partition(|(_, _, document)| *document == Json::Null);
        assert_eq!(offers.len(), 30);
        assert!(offers.iter().chain(&prices).all(|(_, version, _)| *version == lsn(6)));
        let prices: Vec<Json> = prices.into_iter().map(|(_, _, document)| document).collect();
        assert_eq!(prices, [json!({"price": 0, "offers": 5}), json!({"price": 1, "offers": 5})]);
        assert_eq!(shop.frontier(), lsn(6));
    }
}

#[test]
fn another_duration_is_served_in_place_and_another_column_is_not() {
    let _alone = ALONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let config = joiner(dir.path(), &[OFFER]);
    let mut shop = shop(config.clone(), &[offer(1, 10, Some(0))]);
    shop.tell(tail(5, 6, 3.0, 0));
    drop(shop);
    let other = |text: &str| Config { plans: plans(&[text]), ..config.clone() };
    let longer = other(&OFFER.replace("2h", "1d"));
    let difference = compare(&longer).unwrap().unwrap();
    assert_eq!(difference.way, Way::InPlace { dropped: 0 });
    assert_eq!(difference.entities[0].kind, Kind::Changed(vec!["time_to_live.duration".to_owned()]));
    assert_eq!(get(&Engine::open(&longer).unwrap(), "1"), Some(json!({"id": 1, "price": 10})));
    // Without any, nothing needs to be looked up any more.
    let none = other("{entity: offer, table: dbo.offers, fields: [id, price]}");
    assert_eq!(compare(&none).unwrap().unwrap().way, Way::InPlace { dropped: 1 });
    assert_eq!(get(&Engine::open(&none).unwrap(), "1"), Some(json!({"id": 1, "price": 10})));
    match Engine::open(&config) {
        Err(Error::OtherDefinitions { lacking, .. }) => {
            let lacking: Vec<String> = lacking.iter().map(ToString::to_string).collect();
            assert_eq!(lacking, ["dbo.offers: its rows cannot be looked up by made"]);
        }
        opened => panic!("{opened:?}"),
    }
}

/// By how much memory grows when so many come due with one commit, in KiB.
fn growth(count: i64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let memory =
        Memory { write_buffer_bytes: 4 << 20, block_cache_bytes: 1 << 20, row_cache_bytes: 1 << 20, recent_bytes: 1 << 20 };
    let mut engine = Engine::open(&Config { chunk_entities: 100, memory, ..joiner(dir.path(), &[OFFER]) }).unwrap();
    for first in (0..count).step_by(1000) {
        feed(
            &mut engine,
            first as u64,
            (first..first + 1000).map(|id| encode(&read(offers(), 5, offer(id, 10, Some(0)))).into()),
        );
    }
    let complete = record(Phase::SnapshotComplete { consistent_from: lsn(5) }, 5, 5, &[(&offers(), count as u64)]);
    tell(&mut engine, 1, read_up_to(ProgressRecord { commit_time_ms: 0, ..complete }, count as u64));
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory_kib("VmRSS:");
    tell(&mut engine, 2, read_up_to(tail(5, 6, 3.0, 0), count as u64));
    let head = *engine.handle().outbox().head().borrow();
    assert_eq!((head.sequence, head.frontier), (count as u64, lsn(6)));
    memory_kib("VmHWM:").saturating_sub(before)
}

#[test]
fn memory_does_not_grow_with_how_many_come_due() {
    let _alone = ALONE.lock();
    let (some, many) = (growth(20_000), growth(100_000));
    assert!(many < some + (8 << 10), "{some} KiB for 20000, {many} KiB for 100000");
}
