//! A service's own stream as a source, over the real binary: what it says becomes entities, whatever is killed, resharded or wrong in between.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::progress::StreamName;
use serde_json::{Value, json};
use streams::config::KinesisOptions;
use streams::embedded::{Embedded, Options};
use streams::kinesis::Kinesis;
use streams::stub::Stub;
use streams::{Provider, Record};
use support::pipeline::{self, Pipeline};
use support::process::{Process, run, text};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const ACCOUNTS: i64 = 12;

const ENTITY: &str = "entity: account
table: bank.accounts
fields: [id, name]
many:
  entries: {table: bank.entries, by: [account], fields: [id, amount]}
aggregates:
  balance: {sum: entries.amount}
";

const MAPPING: &str = "    tables:
      bank.accounts: {when: {/type: account}, row: /data}
      bank.entries:
        when: {/type: [booked, voided]}
        row: /data
        delete: {when: {/type: voided}, key: {id: /entry}}
";

fn contract(table: &str, columns: &[(&str, &str)]) -> String {
    let properties: serde_json::Map<String, Value> =
        columns.iter().map(|(name, sql_type)| ((*name).to_owned(), json!({"x-sql-type": sql_type}))).collect();
    json!({"x-table": table, "x-key": ["id"], "type": "object", "properties": properties}).to_string()
}

fn stream() -> StreamName {
    StreamName("bank-events".into())
}

/// A folder with contracts and an entity; `source` and `streams` are the rest of these sections, with their indentation.
fn pipeline(source: &str, streams: &str) -> Pipeline {
    let pipeline = Pipeline { folder: tempfile::tempdir().unwrap(), password: String::new() };
    for (file, content) in [
        ("schemas/tables/bank.accounts.json", contract("bank.accounts", &[("id", "int"), ("name", "nvarchar(20)")])),
        (
            "schemas/tables/bank.entries.json",
            contract("bank.entries", &[("id", "int"), ("account", "int"), ("amount", "decimal(10,2)")]),
        ),
        ("schemas/entities/account.yaml", ENTITY.to_owned()),
    ] {
        let path = pipeline.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    configure(&pipeline, source, streams);
    pipeline
}

fn configure(pipeline: &Pipeline, source: &str, streams: &str) {
    let config = format!(
        "source:\n  name: bank\n  stream:\n    name: {}\n{source}{MAPPING}streams:\n  provider: {streams}\nsinks:\n  - {{type: sqlite, path: \
         data/entities.db}}\narchive:\n  store: {{local: {{path: data/archive}}}}\n  interval_seconds: 1\napi:\n  listen: 127.0.0.1:0\n",
        stream()
    );
    std::fs::write(pipeline.config(), config).unwrap();
}

/// The service: what it says, and what that comes to.
struct Service {
    random: ChaCha8Rng,
    names: BTreeMap<i64, String>,
    /// By entry, its account and amount.
    entries: BTreeMap<i64, (i64, String)>,
    said: i64,
}

impl Service {
    fn new(seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed), names: BTreeMap::new(), entries: BTreeMap::new(), said: 0 }
    }

    fn event(&mut self) -> Record {
        self.said += 1;
        let (account, entry) = (self.random.random_range(1..=ACCOUNTS), self.random.random_range(1..60));
        let (key, event) = match self.random.random_range(0..10) {
            0..3 => {
                let name = format!("name {}", self.said);
                self.names.insert(account, name.clone());
                (format!("account {account}"), json!({"type": "account", "data": {"id": account, "name": name}}))
            }
            3 => {
                self.entries.remove(&entry);
                (format!("entry {entry}"), json!({"type": "voided", "entry": entry}))
            }
            _ => {
                let amount = format!("{}.50", self.said);
                self.entries.insert(entry, (account, amount.clone()));
                (format!("entry {entry}"), json!({"type": "booked", "data": {"id": entry, "account": account, "amount": amount}}))
            }
        };
        Record { partition_key: key, data: event.to_string().into() }
    }

    async fn say(&mut self, provider: &dyn Provider, count: usize) {
        let records = (0..count).map(|_| self.event()).collect();
        let mut writer = provider.writer().await.unwrap();
        writer.append(&stream(), records).await.unwrap();
        writer.flush().await.unwrap();
    }

    fn documents(&self) -> BTreeMap<String, Value> {
        let document = |(id, name): (&i64, &String)| {
            let of_account = || self.entries.iter().filter(|(_, (account, _))| account == id);
            let entries: Vec<Value> = of_account().map(|(id, (_, amount))| json!({"id": id, "amount": amount})).collect();
            let cents: i64 = of_account().map(|(_, (_, amount))| amount.replace('.', "").parse::<i64>().unwrap()).sum();
            let balance = format!("{}.{:02}", cents / 100, cents % 100);
            let balance = if entries.is_empty() { Value::Null } else { json!(balance) };
            (id.to_string(), json!({"id": id, "name": name, "entries": entries, "balance": balance}))
        };
        self.names.iter().map(document).collect()
    }

    async fn wait_until_told(&self, url: &str) {
        wait_for("every account as the service has it", LIMIT, async || {
            let mut found = pipeline::entities(url, "account").await;
            for document in found.values_mut() {
                if document["entries"].as_array().unwrap().is_empty() {
                    document["balance"] = Value::Null;
                }
            }
            (found == self.documents()).then_some(())
        })
        .await;
    }
}

fn api(process: &Process) -> String {
    process.line_after("API on ").trim().to_owned()
}

fn command(pipeline: &Pipeline, arguments: &[&str]) -> (bool, String) {
    let config = pipeline.config();
    let (succeeded, out, errors) = run(&[arguments, &["--config", text(&config)]].concat());
    (succeeded, out + &errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_events_become_entities_whatever_is_killed() {
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_122);
    println!("seed {seed} (TRIBUTARY_SEED replays it)");
    let pipeline =
        pipeline("    provider: {embedded: {path: service}}\n    tick_records: 40\n", "{embedded: {path: data/streams}}");
    let (missing, told) = command(&pipeline, &["check"]);
    assert!(!missing && told.contains("service stream bank-events") && told.contains("does not exist"), "{told}");
    let service_log = Embedded::open(Options { sync: false, ..Options::new(pipeline.path("service")) }).unwrap();
    service_log.ensure(&stream(), 2).await.unwrap();
    let (well, told) = command(&pipeline, &["check"]);
    assert!(well && told.contains("2 tables have their contracts"), "{told}");
    let mut service = Service::new(seed);
    service.say(&service_log, 200).await;
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xdead);
    let mut process = pipeline.start("run");
    for _ in 0..12 {
        service.say(&service_log, random.random_range(1..150)).await;
        if random.random_bool(0.5) {
            service.wait_until_told(&api(&process)).await;
            service.say(&service_log, random.random_range(1..150)).await;
        }
        // A random moment is what is wanted here, not a condition.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        process.kill();
        process = pipeline.start("run");
    }
    let url = api(&process);
    service.wait_until_told(&url).await;
    // The last process may have found all of it joined before its own importer had begun.
    wait_for("the importer at the tail", LIMIT, async || {
        let status = support::http::json(&format!("{url}/v1/status")).await?;
        (status["source"]["name"] == "bank" && status["source"]["phase"] == "tailing").then_some(())
    })
    .await;
    let (agrees, counted) = command(&pipeline, &["stream", "count"]);
    assert!(agrees, "{counted}");
    let (_, told) = command(&pipeline, &["stream", "tail", "--table", "bank.entries", "--from", "start", "--no-follow"]);
    assert!(told.contains("bank.entries  update"), "{told}");
    let (verified, told) = command(&pipeline, &["verify", "--source"]);
    assert!(!verified && told.contains("source bank is a service's stream"), "{told}");
    assert!(process.terminate().success());
    let (well, told) = command(&pipeline, &["verify", "--archive"]);
    assert!(well, "{told}");
}

/// Splits a shard of the service's stream in the middle, as its operator would.
async fn split(stub: &Stub, provider: &dyn Provider) {
    let found = provider.describe(&stream()).await.unwrap();
    let shard = found.shards.iter().find(|shard| shard.open).unwrap();
    let middle = shard.hashes.start() + (shard.hashes.end() - shard.hashes.start()) / 2 + 1;
    let body = json!({"StreamName": stream(), "ShardToSplit": shard.shard, "NewStartingHashKey": middle.to_string()}).to_string();
    let address = stub.endpoint().trim_start_matches("http://").to_owned();
    let answer = tokio::task::spawn_blocking(move || {
        let mut connection = TcpStream::connect(&address).unwrap();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: {address}\r\nX-Amz-Target: Kinesis_20131202.SplitShard\r\nContent-Type: application/x-amz-json-1.1\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        connection.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kinesis_stream_is_followed_over_reshards_and_its_bad_records_stop_or_are_set_aside() {
    let stub = Stub::start().await.unwrap();
    let provider = Kinesis::connect(KinesisOptions { max_record_bytes: 4096, ..stub.options() }).await.unwrap();
    provider.ensure(&stream(), 2).await.unwrap();
    let streams = format!(
        "{{kinesis: {{endpoint: '{}', region: us-east-1, stand_in_credentials: true, read_interval_ms: 20, read_idle_interval_ms: 50}}}}",
        stub.endpoint()
    );
    let pipeline = pipeline("", &streams);
    let mut service = Service::new(5);
    service.say(&provider, 300).await;
    let (mut process, url) = pipeline.run();
    for _ in 0..3 {
        split(&stub, &provider).await;
        service.say(&provider, 200).await;
    }
    service.wait_until_told(&url).await;
    // A record by which the service breaks its contract: everything before it stands, and the process says which it is.
    let bad = json!({"type": "booked", "data": {"id": 1, "account": "x", "amount": "1"}});
    let mut writer = provider.writer().await.unwrap();
    writer.append(&stream(), vec![Record { partition_key: "bad".into(), data: bad.to_string().into() }]).await.unwrap();
    writer.flush().await.unwrap();
    assert!(!process.wait().success());
    wait_for("the reason", LIMIT, async || process.log().contains("/data/account").then_some(())).await;
    let told = process.log();
    assert!(told.contains("stream bank-events") && told.contains("shardId-") && told.contains("on_bad_record"), "{told}");
    configure(&pipeline, "    on_bad_record: dead_letter\n", &streams);
    service.say(&provider, 50).await;
    let (mut process, url) = pipeline.run();
    service.wait_until_told(&url).await;
    let (_, told) = command(&pipeline, &["stream", "tail", "--dead-letters", "--no-events", "--from", "start", "--no-follow"]);
    assert!(told.contains("bank.entries  dead letter  /data/account") && told.contains("a whole number"), "{told}");
    let (agrees, counted) = command(&pipeline, &["stream", "count"]);
    assert!(agrees, "{counted}");
    assert!(process.terminate().success());
}
