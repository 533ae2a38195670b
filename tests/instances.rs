//! Several joiners over the same streams and into one target, each with a share of the entities: together exactly what one makes, also when the shares are cut anew.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use schemas::KeyRange;
use schemas::change::EntityKey;
use serde_json::Value;
use sinks::test_support::{MysqlServer, PostgresServer};
use support::http;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{Process, text, tributary};
use support::shop::{ORDER, Shop};
use support::sqlserver::SqlServer;
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);

/// Where the entities go.
enum Database {
    File,
    Postgres(PostgresServer),
    Mysql(MysqlServer),
}

impl Database {
    /// The `sinks` section: beside a server's documents, columns and a table of children.
    fn section(&self) -> String {
        let server = |kind: &str, url: &str| {
            let children = "order_items: {list: items, columns: {item: id, revision: revision}}";
            let tables = format!("{{order: {{columns: {{customer: customer.name}}, children: {{{children}}}}}}}");
            format!("  - {{type: {kind}, url: '{url}', tables: {tables}}}\n")
        };
        match self {
            Self::File => "  - {type: sqlite, path: data/entities.db}\n".to_owned(),
            Self::Postgres(database) => server("postgres", &database.url()),
            Self::Mysql(database) => server("mysql", &database.url()),
        }
    }

    /// The rows of the orders and of the children beside them, and of those children that their order does not have in this revision.
    async fn rows(&self) -> Option<(usize, usize, usize)> {
        let Self::Postgres(database) = self else { return None };
        let (client, connection) = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let count = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) as usize;
        let strange = "SELECT count(*) FROM order_items i LEFT JOIN \"order\" o ON o.key = i.key AND o.document -> 'items' -> i.position -> 'revision' = to_jsonb(i.revision) WHERE o.key IS NULL";
        Some((
            count("SELECT count(*) FROM \"order\"").await,
            count("SELECT count(*) FROM order_items").await,
            count(strange).await,
        ))
    }
}

/// A joiner, and where its API is.
struct Instance {
    process: Process,
    url: String,
}

struct Instances {
    _server: SqlServer,
    shop: Shop,
    pipeline: Pipeline,
    _importer: Process,
    running: Vec<Instance>,
    database: Database,
}

impl Instances {
    async fn begin(database: Database) -> Self {
        let server = SqlServer::start("shop");
        let mut shop = Shop::open(&server, 20_261_122).await;
        shop.transactions(120).await;
        let pipeline = Pipeline::init(&server, &[("order", ORDER)]);
        pipeline.configure(&server, "{embedded: {path: data/streams, sync: false}}", &database.section());
        let importer = pipeline.start("importer");
        Self { _server: server, shop, pipeline, _importer: importer, running: Vec::new(), database }
    }

    /// The configuration of the instance that makes this share.
    fn config(&self, range: &str) -> PathBuf {
        let name = format!("of-{}", range.replace('/', "-"));
        let checkpoints = "checkpoints:\n  store: {local: {path: checkpoints}}\n  every_seconds: 1\n";
        self.pipeline.another(&name, &format!("{checkpoints}joiner: {{range: {range}}}\n"))
    }

    fn start(&mut self, ranges: &[&str]) {
        for range in ranges {
            let process = self.pipeline.start_with("joiner", &self.config(range));
            self.running.push(Instance { process, url: String::new() });
        }
        for instance in &mut self.running {
            instance.url = instance.process.line_after("API on ").trim().to_owned();
        }
    }

    /// Ends all of them, each with a checkpoint that holds what it holds.
    async fn stop(&mut self) {
        for Instance { mut process, url } in std::mem::take(&mut self.running) {
            let frontier = frontier(&url).await;
            wait_for("a checkpoint", LIMIT, async || {
                let status = http::json(&format!("{url}/v1/status")).await?;
                (status["checkpoints"]["last"]["frontier"].as_str()? >= frontier.as_str()).then_some(())
            })
            .await;
            assert!(process.terminate().success(), "{}", process.log());
        }
    }

    /// Load, until the target is what the source is, and says so.
    async fn are_together_what_the_source_is(&mut self, what: &str) {
        self.shop.transactions(60).await;
        let (expected, url) = (self.shop.documents(), self.running[0].url.clone());
        wait_for(what, LIMIT, async || {
            // Not before every share has been loaded.
            let shown = pipeline::entities_if_answered(&url, "order").await?;
            (shown == expected).then_some(())
        })
        .await;
        let mut frontiers = Vec::new();
        for instance in &self.running {
            frontiers.push(frontier(&instance.url).await);
        }
        let least = frontiers.into_iter().min().unwrap();
        // What a reader of the target is told is the least of what the instances have written.
        wait_for("the target's frontier", LIMIT, async || {
            let page = http::json(&format!("{url}/v1/entities/order?limit=1")).await?;
            (page["lsn"].as_str()? >= least.as_str()).then_some(())
        })
        .await;
        assert_eq!(pipeline::entities(&url, "order").await, expected, "{what}");
        if let Some(rows) = self.database.rows().await {
            let children = expected.values().map(|order| order["items"].as_array().unwrap().len()).sum();
            assert_eq!(rows, (expected.len(), children, 0), "{what}");
        }
    }

    /// What each has told its subscribers is of its own share alone.
    async fn tell_of_their_shares(&mut self, ranges: &[&str]) {
        // What came before may have been a part of what they loaded.
        self.are_together_what_the_source_is("changes of all shares").await;
        let mut told = BTreeSet::new();
        for (instance, range) in self.running.iter().zip(ranges) {
            let range: KeyRange = range.parse().unwrap();
            let changes = http::events(&format!("{}/v1/changes?from=oldest", instance.url), |changes| changes.len() >= 12).await;
            assert!(!changes.is_empty(), "{range} has told of nothing");
            for change in changes {
                let key = change["partitionkey"].as_str().unwrap();
                assert!(range.holds("order", &EntityKey::from_text(key)), "{range} tells of {key}");
                told.insert(key.to_owned());
            }
        }
        assert!(told.len() > 4, "{told:?}");
    }
}

async fn frontier(url: &str) -> String {
    let asked = async || http::json(&format!("{url}/v1/status")).await?["joiner"]["frontier"].as_str().map(str::to_owned);
    wait_for("a frontier", LIMIT, asked).await
}

fn said(pipeline: &Pipeline, arguments: &[&str], code: i32) -> String {
    let output = tributary(arguments).env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    let all = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
    all
}

async fn two_and_four_make_what_one_makes(database: Database) {
    let mut world = Instances::begin(database).await;
    for ranges in [&["0/2", "1/2"][..], &["0/4", "1/4", "2/4", "3/4"]] {
        // Each from the streams: nobody has left a checkpoint of such a share.
        let _ = std::fs::remove_dir_all(world.pipeline.path("checkpoints"));
        world.start(ranges);
        world.are_together_what_the_source_is("from the streams").await;
        world.tell_of_their_shares(ranges).await;
        let log = world.running[0].process.log();
        assert!(!log.contains("the joiner's state is restored"), "{log}");
        for instance in &mut world.running {
            assert!(instance.process.terminate().success());
        }
        world.running.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_four_instances_make_what_one_makes_in_sqlite() {
    two_and_four_make_what_one_makes(Database::File).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_four_instances_make_what_one_makes_in_postgres_with_tables_beside() {
    two_and_four_make_what_one_makes(Database::Postgres(PostgresServer::start())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_and_four_instances_make_what_one_makes_in_mysql_with_tables_beside() {
    two_and_four_make_what_one_makes(Database::Mysql(MysqlServer::start())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_split_and_merged_from_checkpoints() {
    let mut world = Instances::begin(Database::File).await;
    world.start(&["0/1"]);
    world.are_together_what_the_source_is("one alone").await;
    world.stop().await;

    // Two of one, and four of two, by themselves: their states are empty. Something has happened meanwhile.
    for ranges in [&["0/2", "1/2"][..], &["0/4", "1/4", "2/4", "3/4"]] {
        world.shop.transactions(20).await;
        world.start(ranges);
        world.are_together_what_the_source_is("split").await;
        world.tell_of_their_shares(ranges).await;
        for instance in &world.running {
            assert!(instance.process.log().contains("the joiner's state is restored"), "{}", instance.process.log());
        }
        world.stop().await;
    }

    // One of four, by command, into a state that is there and of another share.
    world.shop.transactions(20).await;
    let config = world.config("0/1");
    std::fs::remove_dir_all(world.pipeline.path("data/of-0-1/state")).unwrap();
    let config = text(&config);
    let told = said(&world.pipeline, &["restore", "0/4:latest", "3/4:latest", "--config", config], 1);
    assert!(told.contains("do not cover"), "{told}");
    let quarters = ["3/4:latest", "1/4:latest", "0/4:latest", "2/4:latest"];
    let told = said(&world.pipeline, &[&["restore"], &quarters[..], &["--config", config]].concat(), 0);
    assert!(told.contains("The next start goes on from there"), "{told}");
    world.start(&["0/1"]);
    world.are_together_what_the_source_is("merged").await;
    let status: Value = http::json(&format!("{}/v1/status", world.running[0].url)).await.unwrap();
    assert!(status["joiner"]["warning"].is_null(), "{status}");
    world.stop().await;

    // A state of another share is left alone.
    let wrong = world.pipeline.another("wrong", "joiner: {range: 0/2}\n");
    let other = std::fs::read_to_string(&wrong).unwrap().replace("data/wrong", "data/of-0-1");
    std::fs::write(&wrong, other).unwrap();
    assert!(
        said(&world.pipeline, &["joiner", "--config", text(&wrong)], 1)
            .contains("`tributary restore` make a state of the new range")
    );
}
