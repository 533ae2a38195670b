//! What a running process says of itself, and what it can be asked for: status, reading a table again, and the recount.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use support::pipeline::{self, PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{Client, SqlServer, capture, execute};
use support::wait_for;

const LIMIT: Duration = Duration::from_secs(60);
const TOKEN_VARIABLE: &str = "TRIBUTARY_API_TOKEN";

async fn shop() -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::given_or_start("shop").await;
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW'), (2, 'NEW')").await;
    capture(&mut client, &["orders"]).await;
    let pipeline = Pipeline::init(&server, &[("order", "entity: order\ntable: dbo.orders\n")]);
    pipeline.configure(&server, "{embedded: {path: data/streams}}", "  - {type: sqlite, path: data/entities.db}\n");
    (server, client, pipeline)
}

fn ask(arguments: &[&str]) -> Output {
    tributary(arguments).env(TOKEN_VARIABLE, "s3cret").output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn until_tailing(url: &str) -> Value {
    wait_for("the tail", LIMIT, async || {
        let output = ask(&["status", "--url", url, "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["source"]["phase"] == "tailing" && status["joiner"]["phase"] == "live").then_some(status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_told_by_table() {
    let (_server, mut client, pipeline) = shop().await;
    let (mut process, url) = pipeline.run();
    let status = until_tailing(&url).await;
    assert_eq!(status["source"]["table_details"]["dbo.orders"]["snapshot_done"], true, "{status}");
    execute(&mut client, "INSERT INTO dbo.orders VALUES (3, 'NEW')").await;
    pipeline::wait_for_document(&url, "order", "3", LIMIT, |_| true).await;
    let output = ask(&["status", "--url", &url]);
    let shown = said(&output);
    assert!(output.status.success(), "{shown}");
    for part in
        ["source tpch: tailing", "dbo.orders  3          0              done", "joiner: live at ", "sqlite  following  0       3"]
    {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    assert!(process.terminate().success());
    let output = ask(&["status", "--url", &url]);
    assert!(!output.status.success() && said(&output).contains("does not answer"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_read_again_by_command_and_what_was_published_is_counted_again() {
    let (_server, mut client, pipeline) = shop().await;
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), format!("{config}  token: {{env: {TOKEN_VARIABLE}}}\n")).unwrap();
    let start = || {
        let mut command = tributary(&["run", "--config", text(&pipeline.config())]);
        command.env(PASSWORD_VARIABLE, &pipeline.password).env(TOKEN_VARIABLE, "s3cret");
        support::process::Process::spawn("run", &mut command)
    };
    let mut process = start();
    let url = process.line_after("API on ").trim().to_owned();
    let token = ["--url", &url, "--token-env", TOKEN_VARIABLE];
    let status = async || {
        let output = ask(&[&["status", "--json"], &token[..]].concat());
        serde_json::from_slice::<Value>(&output.stdout).ok()
    };
    wait_for("the tail", LIMIT, async || status().await.filter(|status| status["source"]["phase"] == "tailing")).await;
    let snapshot = |more: &[&str]| ask(&[&["snapshot", "--table", "dbo.orders"], &token[..], more].concat());
    let output = ask(&["snapshot", "--url", &url, "--table", "dbo.orders"]);
    assert!(!output.status.success() && said(&output).contains("bearer token"), "{}", said(&output));
    let output = ask(&[&["snapshot", "--table", "dbo.nowhere"], &token[..]].concat());
    assert!(!output.status.success() && said(&output).contains("dbo.nowhere is not imported"), "{}", said(&output));
    let output = snapshot(&["--from", "1,2"]);
    assert!(!output.status.success(), "{}", said(&output));

    let table = status().await.unwrap()["source"]["table_details"]["dbo.orders"].clone();
    let before = table["published"].as_u64().unwrap();
    let output = snapshot(&["--from", "2", "--to", "2"]);
    assert!(output.status.success() && said(&output).contains("being read again as generation "), "{}", said(&output));
    let published = async |count: u64| {
        wait_for("the rows to be published and the range to be settled", LIMIT, async || {
            let status = status().await?;
            let table = &status["source"]["table_details"]["dbo.orders"];
            (table["reread"].is_null() && table["published"].as_u64()? == count).then_some(())
        })
        .await;
    };
    published(before + 1).await;
    execute(&mut client, "UPDATE dbo.orders SET status = 'PAID'").await;
    execute(&mut client, "DELETE FROM dbo.orders WHERE id = 1").await;
    published(before + 4).await;
    assert!(process.terminate().success());

    let verify = || {
        let mut command = tributary(&["verify", "--source", "--config", text(&pipeline.config())]);
        command.env(PASSWORD_VARIABLE, &pipeline.password).output().unwrap()
    };
    let output = verify();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("dbo.orders  3          3         0"), "{}", said(&output));
    // A change that nobody published.
    execute(&mut client, "DELETE FROM cdc.dbo_orders_CT WHERE __$operation = 1").await;
    let output = verify();
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("dbo.orders  3          2         1            0"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_importer_that_is_to_take_the_snapshot_alone_ends_well() {
    let (_server, _client, pipeline) = shop().await;
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), config.replace("poll_interval: 20ms", "poll_interval: 20ms\n  snapshot: {mode: only}"))
        .unwrap();
    let mut process = pipeline.start("importer");
    assert!(process.wait().success(), "{}", process.log());
    assert!(process.log().contains("the snapshot is complete"), "{}", process.log());
}
