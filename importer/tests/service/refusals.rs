//! Records that cannot be rows, input that is gone, directories of another time.

use std::sync::Arc;

use importer::Error;
use importer::service::{BadRecordPolicy, UnmatchedPolicy};
use schemas::ErrorClass;
use schemas::progress::StreamName;
use serde_json::json;
use streams::memory::Memory;
use streams::{Provider, Record};

use crate::support::{World, stream};

#[tokio::test]
async fn a_bad_record_stops_before_anything_of_its_tick_is_out_or_is_set_aside() {
    let mut world = World::new().await;
    let good = json!({"type": "account", "data": {"id": 1, "name": "ann"}});
    let bad = json!({"type": "account", "data": {"id": 2, "name": 5}});
    world.say(&[good, bad, json!({"type": "other", "id": 5})]).await;
    let error = world.import_error().await;
    assert!(matches!(error, Error::BadRecord { .. }) && error.class() == ErrorClass::Misconfigured, "{error}");
    assert!(world.records(&StreamName("bank.events".into())).await.is_empty());
    world.config.on_bad_record = BadRecordPolicy::DeadLetter;
    world.config.on_unmatched = UnmatchedPolicy::DeadLetter;
    let seen = world.import_until("the good one", |seen| seen.events.len() == 1).await;
    let tick = seen.progress.last().unwrap();
    assert_eq!(tick.dead_lettered, [("bank.accounts".parse().unwrap(), 1)].into());
    let mut letters = world.records(&StreamName("bank.dead-letters".into())).await;
    letters.sort_by_key(|letter| letter["table"].as_str().unwrap().to_owned());
    assert_eq!(letters.len(), 2, "{letters:?}");
    assert_eq!((&letters[0]["table"], &letters[1]["table"]), (&json!("(none)"), &json!("bank.accounts")));
    assert_eq!(letters[1]["reason"]["column"], "/data/name");
    assert_eq!(letters[1]["event"]["data"]["id"], 2);
    assert_eq!(letters[1]["record"]["stream"], "bank-events");
    assert_eq!(letters[1]["position"]["commit_lsn"], tick.to_lsn.to_string());
}

#[tokio::test]
async fn input_that_is_missing_or_gone_is_told() {
    let input = Memory::new();
    let world = World::over(Arc::new(input.clone()));
    assert!(matches!(world.import_error().await, Error::NoInput { .. }));
    input.ensure(&stream(), 1).await.unwrap();
    let account = |id: i64| json!({"type": "account", "data": {"id": id, "name": "x"}});
    world.say(&[account(1)]).await;
    world.import_until("the first", |seen| seen.events.len() == 1).await;
    world.say(&[account(2)]).await;
    input.trim(&stream()).unwrap();
    let error = world.import_error().await;
    assert!(matches!(error, Error::InputGap { .. }), "{error}");
    assert!(error.to_string().contains("remove the importer's data directory"), "{error}");
    // As it says: a new history, under greater numbers, of what there is.
    std::fs::remove_dir_all(&world.config.data_dir).unwrap();
    world.say(&[account(3)]).await;
    let seen = world.import_until("what is left", |seen| seen.events.len() == 2).await;
    let begins: Vec<_> =
        seen.progress.iter().filter(|record| record.from_lsn == record.to_lsn).map(|record| record.to_lsn).collect();
    assert!(begins.len() == 2 && begins[1] > seen.progress[1].to_lsn, "{begins:?}");
}

#[tokio::test]
async fn a_directory_of_an_earlier_time_or_another_stream_is_refused() {
    let mut world = World::new().await;
    let account = |id: i64| json!({"type": "account", "data": {"id": id, "name": "x"}});
    world.say(&[account(1)]).await;
    world.import_until("the first", |seen| seen.events.len() == 1).await;
    let (kept, earlier) = (world.config.data_dir.join("rows"), world.directory.path().join("earlier"));
    copy(&kept, &earlier);
    world.say(&[account(2)]).await;
    world.import_until("the second", |seen| seen.events.len() == 2).await;
    std::fs::remove_dir_all(&kept).unwrap();
    copy(&earlier, &kept);
    let error = world.import_error().await;
    assert!(matches!(error, Error::BehindItsStreams { .. }), "{error}");
    world.config.stream = StreamName("other".into());
    assert!(matches!(world.import_error().await, Error::OtherStream { .. }));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn a_mapping_that_changes_in_the_middle_of_a_tick_is_refused() {
    let mut world = World::new().await;
    world.import_until("the beginning", |seen| seen.progress.len() == 1).await;
    let gate = crate::gate::Gate::new(&world.output, "\"kind\":\"tail\"");
    world.say(&[json!({"type": "account", "data": {"id": 1, "name": "x"}})]).await;
    let import = world.import_into(Arc::new(gate.clone()));
    while !gate.holds() {
        tokio::task::yield_now().await;
    }
    import.kill().await;
    let earlier = world.config.tables.clone();
    for mapping in world.config.tables.values_mut() {
        mapping.merge = true;
    }
    let error = world.import_error().await;
    assert!(matches!(error, Error::MappingChanged { .. }), "{error}");
    let later = std::mem::replace(&mut world.config.tables, earlier);
    world.import_until("the tick", |seen| seen.events.len() == 1).await;
    world.config.tables = later;
    world.say(&[json!({"type": "account", "data": {"id": 1}})]).await;
    let seen = world.import_until("the next", |seen| seen.events.len() == 2).await;
    assert_eq!(seen.events[1]["after"], json!({"id": 1, "name": "x"}));
}

/// Bytes that are nobody's JSON, on a stream that other things are said on too.
#[tokio::test]
async fn noise_is_set_aside_byte_by_byte() {
    let mut world = World::new().await;
    (world.config.on_bad_record, world.config.on_unmatched) = (BadRecordPolicy::DeadLetter, UnmatchedPolicy::Skip);
    let mut writer = world.input.writer().await.unwrap();
    let noise = [&b"\xff\xfe"[..], b"", b"[1", b"17", b"{\"type\": \"none\"}"];
    let records = noise.map(|data| Record { partition_key: "noise".into(), data: data.into() });
    writer.append(&stream(), records.to_vec()).await.unwrap();
    writer.flush().await.unwrap();
    world.say(&[json!({"type": "account", "data": {"id": 1, "name": "x"}})]).await;
    world.import_until("the account", |seen| seen.events.len() == 1).await;
    let letters = world.records(&StreamName("bank.dead-letters".into())).await;
    let data: Vec<_> = letters.iter().map(|letter| letter["data"].as_str().unwrap()).collect();
    assert_eq!(data, ["//4=", "", "WzE="], "in the order of the shard");
}
