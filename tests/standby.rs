//! A joiner that stands by takes over when the one that works is killed, or hangs: nothing is lost, nothing is loaded anew, and one that wakes up takes nothing back.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sinks::test_support::PostgresServer;
use support::http;
use support::pipeline::{self, Pipeline};
use support::process::Process;
use support::shop::{ORDER, Shop};
use support::sqlserver::SqlServer;
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);
/// Far more than it takes, and less than a load of anything large would.
const TAKEOVER: Duration = Duration::from_secs(5);

struct Joiner {
    process: Process,
    url: String,
}

impl Joiner {
    fn start(pipeline: &Pipeline, config: &Path) -> Self {
        let process = pipeline.start_with("joiner", config);
        let url = process.line_after("API on ").trim().to_owned();
        Self { process, url }
    }

    async fn status(&self) -> Option<Value> {
        http::json(&format!("{}/v1/status", self.url)).await
    }

    /// Waits until it is live, and works or stands by.
    async fn is_live(&self, standby: bool) {
        wait_for(if standby { "one that stands by" } else { "one that works" }, LIMIT, async || {
            let joiner = self.status().await?["joiner"].clone();
            (joiner["phase"] == "live" && joiner["standby"].as_bool().unwrap_or(false) == standby).then_some(())
        })
        .await;
    }

    /// Waits until the target is what the source is.
    async fn shows(&self, shop: &Shop) {
        let expected = shop.documents();
        let shows = async || (pipeline::entities_if_answered(&self.url, "order").await? == expected).then_some(());
        wait_for("the target as the source is", LIMIT, shows).await;
    }

    async fn written(&self) -> u64 {
        self.status().await.unwrap()["sinks"][0]["written_total"].as_u64().unwrap_or(0)
    }
}

fn config(pipeline: &Pipeline, name: &str) -> PathBuf {
    pipeline.another(name, "joiner: {lease: {file: {path: data/lease}}}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_by_takes_over_from_one_that_is_killed() {
    let server = SqlServer::start("shop");
    let mut shop = Shop::open(&server, 20_261_123).await;
    shop.transactions(150).await;
    let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
    pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", "  - {type: sqlite, path: data/entities.db}\n");
    let _importer = pipeline.start("importer");
    let [first, second] = ["first", "second"].map(|name| config(&pipeline, name));
    let mut working = Joiner::start(&pipeline, &first);
    working.is_live(false).await;
    working.shows(&shop).await;
    let mut waiting = Joiner::start(&pipeline, &second);
    waiting.is_live(true).await;

    // What the sink has confirmed is saved with the lease every second; before that a successor would load it.
    let saved = pipeline.path("data/lease/progress.json");
    let is_saved = async || std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("sqlite")).then_some(());
    wait_for("what the sink has confirmed", LIMIT, is_saved).await;

    for round in 0..3 {
        shop.transactions(40).await;
        working.shows(&shop).await;
        let token = http::get(&format!("{}/v1/changes", waiting.url), &[]).await.unwrap();
        assert!(token.0 == 503 && token.2.contains("stands by"), "{token:?}");
        assert_eq!(waiting.written().await, 0, "who stands by writes nothing");
        // Killed in the middle of the load.
        shop.transactions(5).await;
        let killed = Instant::now();
        working.process.kill();
        shop.transactions(1).await;
        waiting.shows(&shop).await;
        let took = killed.elapsed();
        println!("round {round}: taken over {} ms after the kill, with a transaction that was made after it", took.as_millis());
        assert!(took < TAKEOVER, "{took:?}");
        waiting.is_live(false).await;
        if round == 0 {
            // Later ones may have been further themselves, when it was their turn, than what was saved last.
            let log = waiting.process.log();
            assert!(log.contains("the sink is followed from where the predecessor had come"), "{log}");
            assert!(waiting.written().await < shop.documents().len() as u64, "the sink was loaded anew");
        }
        // The one that was killed comes back, and stands by in its turn.
        let config = if round % 2 == 0 { &first } else { &second };
        (working, waiting) = (waiting, Joiner::start(&pipeline, config));
        waiting.is_live(true).await;
    }
    shop.transactions(40).await;
    working.shows(&shop).await;

    // One that ends in order gives its turn back.
    assert!(working.process.terminate().success());
    shop.transactions(10).await;
    waiting.is_live(false).await;
    waiting.shows(&shop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_frozen_has_lost_its_turn_when_it_wakes() {
    let (server, leases) = (SqlServer::start("shop"), PostgresServer::start());
    let mut shop = Shop::open(&server, 20_261_124).await;
    shop.transactions(60).await;
    let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
    pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", "  - {type: sqlite, path: data/entities.db}\n");
    let url = pipeline.path("lease-url");
    std::fs::write(&url, leases.url()).unwrap();
    let lease = format!("joiner: {{lease: {{postgres: {{url: {{file: '{}'}}}}}}}}\n", url.display());
    let _importer = pipeline.start("importer");
    let mut frozen = Joiner::start(&pipeline, &pipeline.another("first", &lease));
    frozen.is_live(false).await;
    let mut waiting = Joiner::start(&pipeline, &pipeline.another("second", &lease));
    waiting.is_live(true).await;
    for round in 0..2 {
        shop.transactions(20).await;
        frozen.shows(&shop).await;
        // It holds no lock of the target's then.
        wait_for("a sink with nothing to write", LIMIT, async || {
            (frozen.status().await?["sinks"][0]["behind"] == 0).then_some(())
        })
        .await;
        frozen.process.freeze();
        shop.transactions(30).await;
        waiting.is_live(false).await;
        waiting.shows(&shop).await;
        shop.transactions(10).await;
        // It wakes in the middle of what the other does, which it has read nothing of.
        frozen.process.wake();
        assert!(!frozen.process.wait().success());
        assert!(frozen.process.log().contains("the turn is over"), "{}", frozen.process.log());
        shop.transactions(10).await;
        waiting.shows(&shop).await;
        let config = pipeline.path(if round == 0 { "first.yaml" } else { "second.yaml" });
        (frozen, waiting) = (waiting, Joiner::start(&pipeline, &config));
        waiting.is_live(true).await;
    }
    assert!(frozen.process.terminate().success() && waiting.process.terminate().success());
}
