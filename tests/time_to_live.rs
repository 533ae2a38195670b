//! Time to live over the real binary: importer, streams, joiner and a target, and a server whose clock the test sets.
#![cfg(feature = "demo")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::pipeline::{PASSWORD_VARIABLE, Pipeline, entities, entities_if_answered};
use support::process::{text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::{http, wait_for};

const LIMIT: Duration = Duration::from_secs(90);
const MINUTE: Duration = Duration::from_secs(60);

const OFFER: &str = "entity: offer
table: dbo.offers
fields: [id, price]
many:
  bids: {table: dbo.bids, by: [offer_id], fields: [amount]}
time_to_live: {column: made, duration: 2h}
";
const PRICES: &str = "{entity: prices, of: offer, group_by: [price], aggregates: {offers: {count: rows}}}";

/// Offers by key, with how many minutes before now they were made. One is always kept, for its column is NULL.
const MADE: [(u32, Option<i32>); 5] = [(1, Some(600)), (2, Some(121)), (3, Some(60)), (4, None), (5, Some(-30))];

struct World {
    server: SqlServer,
    running: sqlserver::Running,
    client: Client,
    pipeline: Pipeline,
}

async fn fill_offers(client: &mut Client) {
    execute(client, "CREATE TABLE dbo.offers (id int NOT NULL PRIMARY KEY, price int NOT NULL, made datetime2(3) NULL)").await;
    for (id, minutes) in MADE {
        let made = minutes.map_or("NULL".to_owned(), made);
        execute(client, &format!("INSERT INTO dbo.offers VALUES ({id}, 10, {made})")).await;
    }
}

async fn fill_bids(client: &mut Client) {
    execute(client, "CREATE TABLE dbo.bids (id int NOT NULL PRIMARY KEY, offer_id int NOT NULL, amount int NOT NULL)").await;
    for (id, _) in MADE {
        execute(client, &format!("INSERT INTO dbo.bids VALUES ({id}, {id}, {id}00)")).await;
    }
}

/// A database whose rows were there before they were captured, and in which nothing happens any more.
async fn world() -> World {
    let (server, running) = SqlServer::within("shop").await;
    let mut client = server.client().await;
    fill_offers(&mut client).await;
    fill_bids(&mut client).await;
    capture(&mut client, &["offers", "bids"]).await;
    let pipeline = Pipeline::init(&server, &[("offer", OFFER), ("prices", PRICES)]);
    pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", "  - {type: sqlite, path: data/entities.db}\n");
    World { server, running, client, pipeline }
}

/// So many minutes ago, by the server's clock.
fn made(minutes: i32) -> String {
    format!("DATEADD(MINUTE, {}, SYSUTCDATETIME())", -minutes)
}

fn offer(id: u32, price: i32) -> (String, Value) {
    (id.to_string(), json!({"id": id, "price": price, "bids": [{"amount": id * 100}]}))
}

/// The roll-up of so many documents for each price.
fn prices(offers: &[(i32, i32)]) -> BTreeMap<String, Value> {
    offers.iter().map(|(price, count)| (price.to_string(), json!({"price": price, "offers": count}))).collect()
}

/// Waits until the target has these offers and their roll-up.
async fn shows(url: &str, offers: impl IntoIterator<Item = (String, Value)>, rolled_up: &[(i32, i32)]) {
    let (offers, prices) = (BTreeMap::from_iter(offers), prices(rolled_up));
    let mut found = None;
    wait_for("the offers whose time is not over", LIMIT, async || {
        found = Some((entities_if_answered(url, "offer").await?, entities_if_answered(url, "prices").await?));
        (found.as_ref() == Some(&(offers.clone(), prices.clone()))).then_some(())
    })
    .await;
}

/// The keys of all changes of offers since the load, and whether each is there afterwards.
async fn told(url: &str) -> Vec<(String, bool)> {
    let events = http::events(&format!("{url}/v1/changes?entity=offer&from=oldest"), |_| false).await;
    events.iter().map(|event| (event["partitionkey"].as_str().unwrap().to_owned(), !event["data"].is_null())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_at_the_first_load_is_never_told() {
    let World { mut client, pipeline, running, server: _server } = world().await;
    let (mut process, url) = pipeline.run();
    let watched = url.clone();
    // Whatever is asked at whatever moment.
    let watch = tokio::spawn(async move {
        loop {
            let offers = entities_if_answered(&watched, "offer").await.unwrap_or_default();
            assert!(!offers.contains_key("1") && !offers.contains_key("2"), "{offers:?}");
        }
    });
    shows(&url, [offer(3, 10), offer(4, 10), offer(5, 10)], &[(10, 3)]).await;
    // The first transaction that is captured: what had been told by mistake would be deleted with it.
    execute(&mut client, "UPDATE dbo.offers SET price = 20 WHERE id IN (2, 3)").await;
    shows(&url, [offer(3, 20), offer(4, 10), offer(5, 10)], &[(10, 2), (20, 1)]).await;
    assert_eq!(told(&url).await, [("3".to_owned(), true)]);
    assert!(!watch.is_finished());
    watch.abort();
    assert!(process.terminate().success());
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entity_goes_although_nothing_happens_at_the_source() {
    let World { mut client, pipeline, running, server: _server } = world().await;
    let (mut process, url) = pipeline.run();
    shows(&url, [offer(3, 10), offer(4, 10), offer(5, 10)], &[(10, 3)]).await;
    // Its time is over in an hour; an hour later nobody has changed anything.
    running.set_time(SystemTime::now() + 65 * MINUTE);
    shows(&url, [offer(4, 10), offer(5, 10)], &[(10, 2)]).await;
    assert_eq!(told(&url).await, [("3".to_owned(), false)]);
    // While nobody reads.
    process.kill();
    running.set_time(SystemTime::now() + 155 * MINUTE);
    let (mut process, url) = pipeline.run();
    shows(&url, [offer(4, 10)], &[(10, 1)]).await;
    assert_eq!(told(&url).await, [("3".to_owned(), false), ("5".to_owned(), false)]);
    // What becomes young again is there as it is by then, with what belongs to it.
    execute(&mut client, "UPDATE dbo.bids SET amount = 111 WHERE offer_id = 1").await;
    execute(&mut client, &format!("UPDATE dbo.offers SET made = {} WHERE id = 1", made(1))).await;
    let (key, mut young) = offer(1, 10);
    young["bids"][0]["amount"] = json!(111);
    shows(&url, [(key, young), offer(4, 10)], &[(10, 2)]).await;
    assert_eq!(entities(&url, "offer").await.len(), 2);
    assert!(process.terminate().success());
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_databases_it_is_the_time_of_the_roots_own() {
    let (shop, time_of_shop) = SqlServer::within("shop").await;
    let (bank, time_of_bank) = SqlServer::within("bank").await;
    let (mut offers, mut bids) = (shop.client().await, bank.client().await);
    fill_offers(&mut offers).await;
    capture(&mut offers, &["offers"]).await;
    fill_bids(&mut bids).await;
    capture(&mut bids, &["bids"]).await;
    let joined = OFFER.replace("dbo.offers", "shop.dbo.offers").replace("dbo.bids", "bank.dbo.bids");
    let pipeline = Pipeline::init(&shop, &[("offer", &joined), ("prices", PRICES)]);
    let folder = text(pipeline.folder.path());
    let add = ["init", "--add", "--source", &bank.url(), "--password-env", PASSWORD_VARIABLE, "--out", folder, "--name", "bank"];
    let added = tributary(&add).env(PASSWORD_VARIABLE, &bank.password).output().unwrap();
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    // What is inferred of the other's tables is not asked for here.
    for file in std::fs::read_dir(pipeline.path("schemas/entities")).unwrap().map(|file| file.unwrap().path()) {
        if !["offer.yaml", "prices.yaml"].iter().any(|name| file.ends_with(name)) {
            std::fs::remove_file(file).unwrap();
        }
    }
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let config = config.replace("# poll_interval: 100ms", "poll_interval: 20ms").replace("127.0.0.1:8080", "127.0.0.1:0");
    std::fs::write(pipeline.config(), config).unwrap();
    let (mut process, url) = pipeline.run();
    shows(&url, [offer(3, 10), offer(4, 10), offer(5, 10)], &[(10, 3)]).await;
    // However late it becomes elsewhere.
    time_of_bank.set_time(SystemTime::now() + 600 * MINUTE);
    execute(&mut bids, "UPDATE dbo.bids SET amount = 333 WHERE id = 3").await;
    let (key, mut third) = offer(3, 10);
    third["bids"][0]["amount"] = json!(333);
    shows(&url, [(key, third), offer(4, 10), offer(5, 10)], &[(10, 3)]).await;
    time_of_shop.set_time(SystemTime::now() + 65 * MINUTE);
    shows(&url, [offer(4, 10), offer(5, 10)], &[(10, 2)]).await;
    assert_eq!(told(&url).await, [("3".to_owned(), true), ("3".to_owned(), false)]);
    assert!(process.terminate().success());
    time_of_shop.stop().await.unwrap();
    time_of_bank.stop().await.unwrap();
}
