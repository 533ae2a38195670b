//! `tributary stream`, over the real binary: streams are made, listed, tailed and counted, in a directory and on Kinesis.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use schemas::contract::Contract;
use schemas::progress::{ShardId, ShardPositions, StreamName};
use schemas::table::{Column, SqlType, TableSchema};
use schemas::{Lsn, TableName};
use serde_json::{Value, json};
use streams::embedded::{Embedded, Options};
use streams::stub::{Faults, Stub};
use streams::test_support::KinesisLocal;
use streams::{Provider, Record, StreamWriter};
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{Process, text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(90);
const EMBEDDED: &str = "{embedded: {path: data/streams, sync: false}}";
const SINK: &str = "  - {type: sqlite, path: data/entities.db}\n";

/// A server with two tables, captured, and a pipeline's folder for it.
async fn shop(provider: &str) -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(&mut client, "CREATE TABLE dbo.items (order_id int NOT NULL REFERENCES dbo.orders (id), line varchar(10) NOT NULL, amount decimal(10,2) NULL, PRIMARY KEY (order_id, line))").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (0, 'OLD')").await;
    capture(&mut client, &["orders", "items"]).await;
    let order = "entity: order\ntable: dbo.orders\nmany:\n  items: {table: dbo.items, by: [order_id]}\n";
    let pipeline = Pipeline::init(&server, &[("order", order)]);
    pipeline.configure(&server, provider, SINK);
    (server, client, pipeline)
}

/// Runs `tributary stream <arguments>` to its end.
fn run(pipeline: &Pipeline, arguments: &[&str]) -> Output {
    let config = pipeline.config();
    let (command, more) = arguments.split_first().unwrap();
    let arguments = [&["stream", command, "--config", text(&config)], more].concat();
    tributary(&arguments).env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap()
}

/// Its output, where it ends with this code.
fn said(pipeline: &Pipeline, arguments: &[&str], code: i32) -> String {
    let output = run(pipeline, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}{}", String::from_utf8_lossy(&output.stdout));
    if code == 0 { String::from_utf8(output.stdout).unwrap() } else { String::from_utf8(output.stdout).unwrap() + &errors }
}

fn answer(pipeline: &Pipeline, arguments: &[&str], code: i32) -> Value {
    let output = run(pipeline, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Starts the pipeline and waits until it follows the tail: what changes from here on travels as changes.
async fn follow(pipeline: &Pipeline) -> (Process, String) {
    let (process, url) = pipeline.run();
    pipeline::wait_for_document(&url, "order", "0", LIMIT, |_| true).await;
    (process, url)
}

/// A few orders, of which one is changed and one removed; the last change marks the end.
async fn change(client: &mut Client) {
    for statement in [
        "INSERT INTO dbo.orders VALUES (1, 'NEW'), (2, 'NEW')",
        "INSERT INTO dbo.items VALUES (1, 'a,b', 9.50), (2, 'a', 1.00)",
        "UPDATE dbo.orders SET status = 'PAID' WHERE id = 1",
        "UPDATE dbo.items SET amount = 10.50 WHERE order_id = 1; DELETE FROM dbo.items WHERE order_id = 2; DELETE FROM dbo.orders WHERE id = 2",
        "INSERT INTO dbo.orders VALUES (3, 'LAST')",
    ] {
        execute(client, statement).await;
    }
}

async fn wait_for_last(url: &str) {
    pipeline::wait_for_document(url, "order", "3", LIMIT, |document| document["status"] == "LAST").await;
}

fn events(pipeline: &Pipeline, arguments: &[&str]) -> Vec<Value> {
    let lines = said(pipeline, &[&["tail", "--no-follow", "--json"], arguments].concat(), 0);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What each event did to which row.
fn told(events: &[Value]) -> Vec<(String, String)> {
    let told = |line: &Value| {
        let event = &line["event"];
        let row = if event["after"].is_null() { &event["before"] } else { &event["after"] };
        let key = if row["id"].is_null() {
            format!("{},{}", row["order_id"], row["line"].as_str().unwrap())
        } else {
            row["id"].to_string()
        };
        (event["op"].as_str().unwrap().to_owned(), format!("{} {key}", event["source"]["table"].as_str().unwrap()))
    };
    events.iter().map(told).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_travels_is_made_listed_tailed_and_counted() {
    let (_server, mut client, pipeline) = shop(EMBEDDED).await;
    let missing = said(&pipeline, &["tail", "--from", "start"], 1);
    assert!(missing.contains("tpch.events does not exist") && missing.contains("tributary stream create"), "{missing}");
    let made = said(&pipeline, &["create"], 0);
    assert_eq!(made.matches("created  tpch.").count(), 3, "{made}");
    assert_eq!(said(&pipeline, &["create"], 0).matches("as configured").count(), 3);
    let (mut process, url) = follow(&pipeline).await;
    change(&mut client).await;
    wait_for_last(&url).await;

    let all = events(&pipeline, &["--from", "start"]);
    let changes: Vec<_> = told(&all).into_iter().filter(|(op, _)| op != "r").collect();
    let expect = |op: &str, row: &str| (op.to_owned(), row.to_owned());
    assert!(changes.contains(&expect("u", "items 1,a,b")) && changes.contains(&expect("d", "orders 2")), "{changes:?}");
    assert!(all.iter().all(|line| line["stream"] == "tpch.events" && line["sequence_number"].is_string()));

    // By table and key, in text: one line an event, with what changed.
    let lines = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--table", "dbo.orders", "--key", "1"], 0);
    let update = lines.lines().find(|line| line.contains("update")).unwrap_or_else(|| panic!("{lines}"));
    assert!(update.ends_with("  dbo.orders  update  1  status \"NEW\" → \"PAID\""), "{update}");
    assert!(lines.lines().all(|line| line.contains("  dbo.orders  ") && line.contains("  1  ")), "{lines}");
    let of_item = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--table", "dbo.items", "--key", "1,a%2Cb"], 0);
    assert!(of_item.contains("amount \"9.50\" → \"10.50\"") && !of_item.contains("dbo.orders"), "{of_item}");

    // From an LSN, from a time, after a record, from the end.
    let last = all.last().unwrap();
    let lsn = last["event"]["source"]["commit_lsn"].as_str().unwrap();
    assert_eq!(told(&events(&pipeline, &["--from", lsn])), [expect("c", "orders 3")]);
    let since = events(&pipeline, &["--from", "1h"]);
    assert_eq!(told(&since).len(), all.len());
    assert_eq!(events(&pipeline, &["--from", "2099-01-01T00:00:00Z"]), [] as [Value; 0]);
    let before = &all[all.len() - 2];
    let position = format!(
        "{}/{}/{}",
        before["stream"].as_str().unwrap(),
        before["shard"].as_str().unwrap(),
        before["sequence_number"].as_str().unwrap()
    );
    assert_eq!(told(&events(&pipeline, &["--from", &position])), [expect("c", "orders 3")]);
    assert_eq!(events(&pipeline, &["--from", "end"]), [] as [Value; 0]);
    assert_eq!(said(&pipeline, &["tail", "--from", "start", "--limit", "2"], 0).lines().count(), 2);
    let raw = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--raw", "--limit", "1"], 0);
    assert!(serde_json::from_str::<Value>(&raw).unwrap()["source"].is_object(), "{raw}");
    let progress = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--no-events", "--progress"], 0);
    assert!(progress.lines().all(|line| line.contains("  progress  ")) && progress.contains("dbo.orders 1"), "{progress}");

    // It goes on with what comes.
    let config = pipeline.config();
    let follower = Process::start(&["stream", "tail", "--config", text(&config), "--from", lsn, "--table", "dbo.orders"]);
    assert!(follower.line_after("create  ").contains("LAST"));
    execute(&mut client, "INSERT INTO dbo.orders VALUES (4, 'LATER')").await;
    assert!(follower.line_after("create  ").contains("LATER"));

    let counted = answer(&pipeline, &["count", "--json"], 0);
    assert_eq!(counted["agrees"], true, "{counted:#}");
    let orders = &counted["count"]["tables"]["dbo.orders"];
    let counts = ["rows", "creates", "updates", "deletes", "repeats"].map(|name| orders[name].as_u64().unwrap());
    assert_eq!(counts, [1, 4, 1, 1, 0], "{counted:#}");
    assert!(said(&pipeline, &["count"], 0).contains("Everything that was promised is there."));
    let only = answer(&pipeline, &["count", "--json", "--table", "dbo.items", "--from", lsn], 0);
    assert!(only["count"]["tables"]["dbo.orders"].is_null(), "{only:#}");

    // A table that is read again: its rows are counted beside the changes.
    let (asked, _, errors) = support::process::run(&["snapshot", "--url", &url, "--table", "dbo.orders"]);
    assert!(asked, "{errors}");
    wait_for("the rows of the table again", LIMIT, async || {
        let orders = answer(&pipeline, &["count", "--json"], 0)["count"]["tables"]["dbo.orders"].clone();
        (orders["rows"] == 5 && orders["promised"] == 11).then_some(())
    })
    .await;
    let listed = answer(&pipeline, &["list", "--json"], 0);
    let names: Vec<_> = listed["streams"].as_array().unwrap().iter().map(|stream| stream["stream"].as_str().unwrap()).collect();
    assert_eq!(names, ["tpch.dead-letters", "tpch.events", "tpch.progress"]);
    assert!(listed["streams"][1]["bytes"].as_u64().unwrap() > 500, "{listed:#}");
    assert!(said(&pipeline, &["list"], 0).contains("tpch.events"));
    assert!(process.terminate().success(), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn kinesis_streams_are_made_as_configured_and_what_differs_has_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let kinesis = KinesisLocal::start(folder.path()).unwrap();
    let store = |settings: &str| {
        format!(
            "{{kinesis: {{region: us-east-1, endpoint: '{}', stand_in_credentials: true, read_interval_ms: 100{settings}}}}}\n  shards: 2",
            kinesis.endpoint()
        )
    };
    let (server, mut client, pipeline) = shop(&store(", retention_hours: 48, tags: {team: shop}")).await;
    let made = said(&pipeline, &["create"], 0);
    for line in ["created  tpch.dbo.orders  2 shards", "created  tpch.progress  1 shard", "created  tpch.dead-letters  1 shard"] {
        assert!(made.contains(line), "{made}");
    }
    assert_eq!(said(&pipeline, &["create"], 0).matches("as configured").count(), 4);
    let listed = said(&pipeline, &["list"], 0);
    let orders = listed.lines().find(|line| line.contains("tpch.dbo.orders")).unwrap();
    assert!(orders.contains("2 shards") && orders.contains("2 days") && orders.contains("team=shop"), "{listed}");

    let (mut process, url) = follow(&pipeline).await;
    change(&mut client).await;
    wait_for_last(&url).await;
    let all = events(&pipeline, &["--from", "start", "--table", "dbo.orders"]);
    assert!(told(&all).contains(&("u".to_owned(), "orders 1".to_owned())), "{all:?}");
    let counted = answer(&pipeline, &["count", "--json"], 0);
    assert_eq!(
        (&counted["agrees"], &counted["count"]["tables"]["dbo.orders"]["deletes"]),
        (&json!(true), &json!(1)),
        "{counted:#}"
    );
    assert!(process.terminate().success(), "{}", process.log());

    pipeline.configure(&server, &store(", retention_hours: 72, tags: {team: till}").replace("shards: 2", "shards: 4"), SINK);
    let differs = said(&pipeline, &["create"], 3);
    for part in [
        "differs  tpch.dbo.orders",
        "shards: 4 shards is configured, the stream has 2 shards",
        "→ aws kinesis update-shard-count --stream-name tpch.dbo.orders --target-shard-count 4",
        "→ aws kinesis increase-stream-retention-period --stream-name tpch.progress --retention-period-hours 72",
        "→ aws kinesis add-tags-to-stream --stream-name tpch.dead-letters --tags team=till",
    ] {
        assert!(differs.contains(part), "no {part:?} in\n{differs}");
    }
    let checked = check(&pipeline, 0);
    assert!(checked.contains("warning  stream tpch.dbo.orders"), "{checked}");
    // Asked to, it changes them, and says before what.
    let applied = said(&pipeline, &["create", "--apply"], 0);
    let (plan, changes) = applied.split_once("changed  ").unwrap();
    assert!(
        plan.contains("shards: 4 shards is configured, the stream has 2 shards") && !plan.contains("aws kinesis"),
        "{applied}"
    );
    for part in ["tpch.dbo.orders  shards: 4 shards, where it was 2 shards", "tpch.progress  retention: 72 h, where it was 48 h"]
    {
        assert!(changes.contains(part), "no {part:?} in\n{applied}");
    }
    assert_eq!(said(&pipeline, &["create"], 0).matches("as configured").count(), 4);
    // Shortening the retention would remove records: that stays with people.
    pipeline.configure(&server, &store(", retention_hours: 24").replace("shards: 2", "shards: 4"), SINK);
    let left = said(&pipeline, &["create", "--apply"], 3);
    assert!(
        left.contains("left     tpch.progress  retention\n         → aws kinesis decrease-stream-retention-period"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn aggregated_records_of_several_shards_in_another_encoding_are_tailed_and_counted() {
    let kinesis = Stub::start().await.unwrap();
    let (_server, mut client, pipeline) = shop(&format!(
        "{{kinesis: {{region: us-east-1, endpoint: '{}', stand_in_credentials: true, read_interval_ms: 20}}}}\n  layout: shared\n  encoding: avro\n  compression: zstd\n  shards: 3",
        kinesis.endpoint()
    ))
    .await;
    let (mut process, url) = follow(&pipeline).await;
    for id in 100..400 {
        execute(&mut client, &format!("INSERT INTO dbo.orders VALUES ({id}, 'NEW')")).await;
    }
    change(&mut client).await;
    wait_for_last(&url).await;
    let all = events(&pipeline, &["--from", "start", "--table", "dbo.orders"]);
    let shards: std::collections::BTreeSet<_> = all.iter().map(|line| line["shard"].to_string()).collect();
    assert_eq!(shards.len(), 3);
    let counted = answer(&pipeline, &["count", "--json"], 0);
    let orders = &counted["count"]["tables"]["dbo.orders"];
    assert_eq!((&orders["creates"], &counted["agrees"]), (&json!(303), &json!(true)), "{counted:#}");
    // They are shown as JSON, whatever they are written in.
    assert!(all.iter().all(|line| line["event"]["source"]["db"] == "shop"), "{:#}", all[0]);
    let raw = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--raw", "--limit", "1"], 0);
    assert!(!raw.starts_with('{'), "{raw}");
    // A position within an aggregate.
    let middle = &all[all.len() / 2];
    let position = ["stream", "shard", "sequence_number"].map(|name| middle[name].as_str().unwrap()).join("/");
    let of_shard = |line: &&Value| line["shard"] == middle["shard"];
    let after: Vec<_> = all.iter().filter(of_shard).skip_while(|line| *line != middle).skip(1).cloned().collect();
    assert_eq!(events(&pipeline, &["--from", &position, "--table", "dbo.orders"]), after);
    // A stream that somebody else writes.
    let store = streams::config::open(&streams::config::Config::Kinesis(Box::new(kinesis.options()))).await.unwrap();
    let payments = StreamName("payments".into());
    store.ensure(&payments, 1).await.unwrap();
    let mut writer = store.writer().await.unwrap();
    let records = [r#"{"paid": 1}"#, "two\nlines"].map(|data| Record { partition_key: "k".into(), data: data.into() });
    writer.append(&payments, records.to_vec()).await.unwrap();
    writer.flush().await.unwrap();
    let lines = said(&pipeline, &["tail", "--no-follow", "--from", "start", "--stream", "payments"], 0);
    assert_eq!(lines, "{\"paid\": 1}\ndHdvCmxpbmVz\n");
    let others = events(&pipeline, &["--from", "start", "--stream", "payments"]);
    assert_eq!((&others[0]["record"]["paid"], &others[1]["base64"]), (&json!(1), &json!("dHdvCmxpbmVz")));
    // What has aged out is not taken for missing.
    kinesis.trim(&StreamName("tpch.events".into()), &ShardId("shardId-000000000000".into()), 1);
    let aged = said(&pipeline, &["count"], 0);
    assert!(
        aged.contains("were not compared: the streams do not keep their events any more")
            || aged.contains("have aged, or are missing"),
        "{aged}"
    );
    assert!(!aged.contains("Everything that was promised is there."), "{aged}");
    // What cannot be read for want of a schema is told, and not counted for none.
    for file in std::fs::read_dir(pipeline.path("schemas/tables")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "avsc") {
            std::fs::remove_file(path).unwrap();
        }
    }
    assert!(said(&pipeline, &["tail", "--from", "start", "--limit", "1"], 0).contains(".avsc"));
    assert!(said(&pipeline, &["count"], 1).contains(".avsc"));
    assert!(process.terminate().success(), "{}", process.log());
}

fn check(pipeline: &Pipeline, code: i32) -> String {
    let config = pipeline.config();
    let output = tributary(&["check", "--config", text(&config)]).env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Something that speaks Kinesis's protocol and refuses every call, as AWS does where a permission is missing.
struct Refusing {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Refusing {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, over) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let ended = over.clone();
        let server = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                // A client that hangs up is served no more.
                let _ = connection.and_then(refuse);
            }
        });
        Self { address, over, server: Some(server) }
    }
}

fn refuse(mut connection: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let (mut operation, mut length, mut line) = (String::new(), 0, String::new());
    while reader.read_line(&mut line)? > 2 {
        let lower = line.to_lowercase();
        if lower.starts_with("x-amz-target:") {
            operation = line.trim().rsplit('.').next().unwrap_or_default().to_owned();
        } else if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    reader.take(length).read_to_end(&mut Vec::new())?;
    let message = format!(
        "User: arn:aws:iam::123456789012:user/shop is not authorized to perform: kinesis:{operation} on resource: \
         arn:aws:kinesis:us-east-1:123456789012:stream/tpch.events because no identity-based policy allows the kinesis:{operation} action"
    );
    let body = json!({"__type": "AccessDeniedException", "message": message}).to_string();
    write!(
        connection,
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it up.
        let _ = TcpStream::connect(self.address);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named_with_the_policy_that_mends_it() {
    let aws = Refusing::start();
    let (_server, _client, pipeline) = shop(&format!(
        "{{kinesis: {{region: us-east-1, endpoint: 'http://{}', stand_in_credentials: true}}}}\n  layout: shared",
        aws.address
    ))
    .await;
    let arn = "arn:aws:kinesis:us-east-1:123456789012:stream/tpch.events";
    for (arguments, action) in [
        (&["list"][..], "kinesis:ListStreams"),
        (&["create"], "kinesis:DescribeStreamSummary"),
        (&["tail", "--from", "start"], "kinesis:ListShards"),
        (&["count"], "kinesis:ListShards"),
    ] {
        let said = said(&pipeline, arguments, 1);
        let (error, policy) = said.split_once("The IAM policy that mends it:\n").unwrap_or_else(|| panic!("{said}"));
        assert!(error.contains(action), "{said}");
        let policy: Value = serde_json::from_str(policy).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        let allows = |statement: &Value| statement["Action"].as_array().unwrap().contains(&json!(action));
        let statement = statements.iter().find(|statement| allows(statement)).unwrap_or_else(|| panic!("{policy:#}"));
        assert!(statement["Resource"] == "*" || statement["Resource"].as_array().unwrap().contains(&json!(arn)), "{policy:#}");
    }
    let checked = check(&pipeline, 1);
    assert!(checked.contains("PROBLEM  stream tpch.events") && checked.contains("\"kinesis:CreateStream\""), "{checked}");

    // Asked for by itself, nothing is called.
    let policy = answer(&pipeline, &["policy", "--role", "producer", "--account", "123456789012"], 0);
    assert_eq!(policy["Statement"][0]["Resource"][0], arn, "{policy:#}");
    assert!(policy.to_string().contains("kinesis:PutRecords") && !policy.to_string().contains("CreateStream"));
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let provider = config.lines().find(|line| line.contains("provider:")).unwrap();
    std::fs::write(pipeline.config(), config.replace(provider, "  provider: {memory: {}}")).unwrap();
    assert!(said(&pipeline, &["policy", "--role", "producer"], 1).contains("not on Kinesis"));
    assert!(said(&pipeline, &["list"], 1).contains("memory"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_refused_is_told_with_what_is_missing_and_holds_up_no_other() {
    let kinesis = Stub::start().await.unwrap();
    let store = |settings: &str| {
        format!(
            "{{kinesis: {{region: us-east-1, endpoint: '{}', stand_in_credentials: true{settings}}}}}\n  layout: shared",
            kinesis.endpoint()
        )
    };
    let (server, _client, pipeline) = shop(&store("")).await;
    assert_eq!(said(&pipeline, &["create"], 0).matches("created  ").count(), 3);
    pipeline.configure(&server, &(store(", retention_hours: 48, tags: {team: shop}") + "\n  shards: 2"), SINK);
    kinesis.set_faults(Faults { forbidden: Some("UpdateShardCount"), ..Faults::default() });
    let applied = said(&pipeline, &["create", "--apply"], 1);
    let refused =
        applied.lines().find(|line| line.starts_with("refused  tpch.events  shards: ")).unwrap_or_else(|| panic!("{applied}"));
    assert!(refused.contains("lacks kinesis:UpdateShardCount on arn:aws:kinesis:"), "{refused}");
    assert_eq!(applied.matches("  retention: 48 h, where it was 24 h").count(), 3, "{applied}");
    assert_eq!(applied.matches("  tags: team=shop, where it was none").count(), 3, "{applied}");
    let (_, policy) = applied.split_once("The IAM policy that mends it:\n").unwrap_or_else(|| panic!("{applied}"));
    assert!(policy.contains("\"kinesis:UpdateShardCount\""), "{policy}");
    kinesis.set_faults(Faults::default());
    assert!(said(&pipeline, &["create", "--apply"], 0).contains("changed  tpch.events  shards: 2 shards, where it was 1 shard"));
}

/// A pipeline's folder without a source: a contract, and streams that a test writes itself.
struct Written {
    folder: tempfile::TempDir,
    writer: Box<dyn StreamWriter>,
    positions: ShardPositions,
}

const EVENTS: &str = "shop.events";

impl Written {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tables = folder.path().join("schemas/tables");
        std::fs::create_dir_all(&tables).unwrap();
        let column = Column { name: "id".into(), sql_type: SqlType::Int, nullable: false, case_insensitive: false };
        let table = TableSchema { name: TableName::new("dbo", "orders"), columns: vec![column], key: vec![0] };
        std::fs::write(tables.join(Contract::file_name(&table.name)), Contract::from_table(&table).to_text()).unwrap();
        let config =
            "source: {name: shop, url: 'sqlserver://sa@127.0.0.1/shop'}\nstreams: {provider: {embedded: {path: streams}}}\n";
        std::fs::write(folder.path().join("tributary.yaml"), config).unwrap();
        let store = Embedded::open(Options::new(folder.path().join("streams"))).unwrap();
        for stream in [EVENTS, "shop.progress", "shop.dead-letters"] {
            store.ensure(&StreamName(stream.into()), 1).await.unwrap();
        }
        let writer = store.writer().await.unwrap();
        Self { folder, writer, positions: ShardPositions::new() }
    }

    async fn append(&mut self, stream: &str, data: String) {
        let record = Record { partition_key: "k".into(), data: data.into() };
        self.writer.append(&StreamName(stream.into()), vec![record]).await.unwrap();
        self.positions = self.writer.flush().await.unwrap();
    }

    async fn event(&mut self, commit: u8, id: u8) {
        let event = json!({
            "op": "c", "before": null, "after": {"id": id},
            "source": {"schema": "dbo", "table": "orders", "commit_lsn": lsn(commit), "change_lsn": lsn(id), "ts_ms": 1},
        });
        self.append(EVENTS, event.to_string()).await;
    }

    /// What has been written since the last one is `(from, to]`, and holds so many orders.
    async fn progress(&mut self, from: u8, to: u8, orders: u8) {
        let positions = json!({EVENTS: self.positions[&StreamName(EVENTS.into())]});
        let record = json!({
            "source": "shop", "epoch": 1, "kind": "tail", "from_lsn": lsn(from), "to_lsn": lsn(to), "commit_time_ms": 1,
            "counts": {"dbo.orders": orders}, "positions": positions,
        });
        self.append("shop.progress", record.to_string()).await;
    }

    fn stream(&self, arguments: &[&str]) -> Output {
        let config = self.folder.path().join("tributary.yaml");
        let (command, more) = arguments.split_first().unwrap();
        tributary(&[&["stream", command, "--config", text(&config)], more].concat()).output().unwrap()
    }
}

fn lsn(number: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, number])
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_missing_is_told_with_its_range_and_its_place() {
    let mut written = Written::new().await;
    for id in 1..4 {
        written.event(id, id).await;
        written.progress(id - 1, id, 1).await;
    }
    let whole = written.stream(&["count"]);
    assert!(whole.status.success(), "{}", both(&whole));
    // Of two that the next range holds, one is not there; a range further on nothing is amiss.
    let before = written.positions[&StreamName(EVENTS.into())].values().next().unwrap().to_string();
    written.event(4, 4).await;
    written.progress(3, 4, 2).await;
    written.event(5, 5).await;
    written.progress(4, 5, 1).await;
    let output = written.stream(&["count"]);
    let said = both(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = said.lines().find(|line| line.starts_with("dbo.orders: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(&format!("in ({}, {}], 2 were promised and 1 found", lsn(3), lsn(4))), "{line}");
    assert!(line.contains(&format!("shop.events, shard {}, after {before} to ", "shard-0000")), "{line}");
    // The oldest range is no exception: nothing has been trimmed, so what is not there is missing.
    let mut from_the_first = Written::new().await;
    from_the_first.event(1, 1).await;
    from_the_first.progress(0, 1, 2).await;
    let output = from_the_first.stream(&["count"]);
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    assert!(both(&output).contains(&format!("in ({}, {}], 2 were promised and 1 found", lsn(0), lsn(1))), "{}", both(&output));
    // Outside of that range all is well.
    assert!(written.stream(&["count", "--to", &lsn(3).to_string()]).status.success());
    let later = written.stream(&["count", "--json", "--from", &lsn(4).to_string()]);
    assert!(later.status.success(), "{}", both(&later));
    let later: Value = serde_json::from_slice(&later.stdout).unwrap();
    assert_eq!(later["count"]["tables"]["dbo.orders"]["creates"], 1, "{later:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_and_what_was_set_aside_is_shown_and_stops_nothing() {
    let mut written = Written::new().await;
    written.append(EVENTS, "what is this".into()).await;
    written.event(1, 1).await;
    let reason = json!({"column": "id", "rule": "at most 3", "value": "17"});
    let letter = json!({"source": "shop", "epoch": 1, "table": "dbo.orders", "position": {"commit_lsn": lsn(1)}, "reason": reason, "event": null});
    written.append("shop.dead-letters", letter.to_string()).await;
    let tailed = both(&written.stream(&["tail", "--no-follow", "--from", "start", "--dead-letters"]));
    for part in ["cannot be decoded", "dbo.orders  create  1  id 1", "dbo.orders  dead letter  id: at most 3, and it is \"17\""] {
        assert!(tailed.contains(part), "no {part:?} in\n{tailed}");
    }
    let refused = |arguments: &[&str], expected: &str| {
        let output = written.stream(&[&["tail", "--no-follow"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{}", both(&output));
        assert!(both(&output).contains(expected), "{}", both(&output));
    };
    refused(&["--table", "dbo.customers"], "there are those of dbo.orders");
    refused(&["--key", "1"], "--table");
    refused(&["--from", "yesterday"], "an LSN");
    refused(&["--from", "other/shard-0000/1"], "shop.events");
}
