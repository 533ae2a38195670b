//! `tributary check`: the state of a server as a table, and the script for a login with the least that it needs.
#![allow(clippy::unwrap_used)]

mod support;

use support::pipeline::{PASSWORD_VARIABLE, Pipeline};
use support::process::{text, tributary};
use support::sqlserver::{Client, PASSWORD, SqlServer, capture, execute};

async fn shop() -> (SqlServer, Client, Pipeline) {
    let server = SqlServer::start("shop");
    let mut client = server.client().await;
    execute(&mut client, "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, status varchar(10) NOT NULL, ends_at date NULL)")
        .await;
    execute(&mut client, "CREATE TABLE dbo.[audit log] (what varchar(10) NOT NULL)").await;
    execute(&mut client, "INSERT INTO dbo.orders VALUES (1, 'NEW', NULL)").await;
    capture(&mut client, &["orders", "audit log"]).await;
    let order = "entity: order\ntable: dbo.orders\ntime_to_live: {column: ends_at}\n";
    let pipeline = Pipeline::init(&server, &[("order", order)]);
    pipeline.configure(&server, "{embedded: {path: data/streams}}", "  - {type: sqlite, path: data/entities.db}\n");
    (server, client, pipeline)
}

/// Exit code and standard output.
fn check(pipeline: &Pipeline, more: &[&str]) -> (Option<i32>, String) {
    let config = pipeline.config();
    let output =
        tributary(&[&["check", "--config", text(&config)], more].concat()).env(PASSWORD_VARIABLE, PASSWORD).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the table says of an item: its level, and the lines.
fn level<'t>(table: &'t str, item: &str) -> Option<&'t str> {
    let line = table.lines().find(|line| line.get(9..).is_some_and(|rest| rest.starts_with(&format!("{item}  "))))?;
    Some(line[..9].trim())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_precondition_is_a_line_and_what_is_wrong_has_its_remedy() {
    let (_server, mut client, pipeline) = shop().await;
    let (code, table) = check(&pipeline, &[]);
    assert_eq!(code, Some(0), "{table}");
    for item in [
        "configuration",
        "entities",
        "time to live",
        "connection",
        "version",
        "change data capture",
        "table dbo.orders",
        "SQL Server Agent",
        "capture job",
        "cleanup job",
        "log scans",
        "capture errors",
        "capture",
        "log truncation",
        "availability group",
        "contracts",
    ] {
        assert_eq!(level(&table, item), Some("ok"), "{item} in\n{table}");
    }
    assert!(table.contains("order is gone at its ends_at"), "{table}");
    assert_eq!(level(&table, "table dbo.[audit log]"), Some("warning"), "{table}");
    assert!(table.contains("0 to mend before this can run."), "{table}");

    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    std::fs::write(pipeline.config(), config.replace("poll_interval: 20ms", "snapshot: {fenced: true}")).unwrap();
    let (code, table) = check(&pipeline, &[]);
    assert_eq!((code, level(&table, "fenced snapshot")), (Some(1), Some("PROBLEM")), "{table}");
    assert!(table.contains("→ Run: ALTER DATABASE [shop] SET ALLOW_SNAPSHOT_ISOLATION ON"), "{table}");
    execute(&mut client, "ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON").await;
    execute(&mut client, "ALTER TABLE dbo.orders ALTER COLUMN status varchar(30) NOT NULL").await;
    let (code, table) = check(&pipeline, &[]);
    assert_eq!((code, level(&table, "fenced snapshot")), (Some(0), Some("ok")), "{table}");
    assert_eq!(level(&table, "contracts"), Some("warning"), "{table}");
    assert!(table.contains("→ tributary schema diff --write"), "{table}");

    execute(&mut client, "EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 60").await;
    execute(&mut client, "EXEC sys.sp_cdc_stop_job @job_type = N'capture'").await;
    let (code, table) = check(&pipeline, &[]);
    assert_eq!(
        (code, level(&table, "capture"), level(&table, "cleanup job")),
        (Some(1), Some("PROBLEM"), Some("warning")),
        "{table}"
    );
    for remedy in [
        "→ EXEC sys.sp_cdc_start_job @job_type = N'capture';",
        "→ EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 10080;",
    ] {
        assert!(table.contains(remedy), "{remedy} is not in\n{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_grants_what_is_needed_and_no_more() {
    let (server, mut client, pipeline) = shop().await;
    let (code, script) = check(&pipeline, &["--print-grants", "--login", "importer"]);
    assert_eq!(code, Some(0), "{script}");
    assert!(script.contains("GRANT SELECT ON [dbo].[audit log] TO [importer];") && !script.contains("db_owner"), "{script}");
    // As sqlcmd would run it.
    for batch in script.replace("<a password>", PASSWORD).split("\nGO\n").filter(|batch| !batch.trim().is_empty()) {
        execute(&mut client, batch).await;
    }
    let config = std::fs::read_to_string(pipeline.config()).unwrap();
    let url = server.url().replace("sa@", "importer@");
    std::fs::write(pipeline.config(), config.replace(&server.url(), &url)).unwrap();
    let (code, table) = check(&pipeline, &[]);
    assert_eq!(code, Some(0), "{table}");
    for item in ["table dbo.orders", "SQL Server Agent", "log scans", "capture errors", "capture"] {
        assert_eq!(level(&table, item), Some("ok"), "{item} in\n{table}");
    }
    // The jobs are for owners alone, which the script does not make of anybody.
    assert_eq!(level(&table, "capture job"), Some("warning"), "{table}");
    assert!(table.contains("→ To see it: ALTER ROLE db_owner ADD MEMBER"), "{table}");
    let (_process, url) = pipeline.run();
    support::pipeline::wait_for_document(&url, "order", "1", std::time::Duration::from_secs(60), |_| true).await;
}
