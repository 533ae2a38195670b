//! Clients that nobody here wrote take the stand-in for a SQL Server: FreeTDS's `tsql`, pymssql, node's tedious, and Debezium with Microsoft's JDBC driver.
//!
//! They are installed by `make setup` into `.setup/clients`, or wherever `TRIBUTARY_CLIENTS` says.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlserver::{Options, Running};

fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = std::env::var_os("TRIBUTARY_CLIENTS").map_or_else(|| root.join(".setup/clients"), PathBuf::from);
    assert!(
        folder.join("venv/bin/python").exists() && folder.join("node_modules/tedious").exists(),
        "the clients are not in {}: run make setup",
        folder.display()
    );
    folder
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

async fn standin() -> Running {
    sqlserver::start(Options { capture_interval: Duration::from_millis(20), ..Options::default() }).await.unwrap()
}

fn run(mut command: Command, running: &Running) {
    let address = running.address();
    command.arg(address.ip().to_string()).arg(address.port().to_string()).arg(&running.options().sa_password);
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim().ends_with("ok"), "{out}\n{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pymssql() {
    let folder = installed();
    let running = standin().await;
    let mut command = Command::new(folder.join("venv/bin/python"));
    command.arg(script("pymssql_client.py"));
    run(command, &running);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tedious() {
    let folder = installed();
    let running = standin().await;
    let mut command = Command::new("node");
    command.env("NODE_PATH", folder.join("node_modules")).arg(script("tedious_client.js"));
    run(command, &running);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn freetds() {
    let running = standin().await;
    let address = running.address();
    let mut child = Command::new("tsql")
        .args([
            "-H",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
            "-U",
            "sa",
            "-P",
            &running.options().sa_password,
            "-D",
            "shop",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tsql is not installed: run make setup");
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"CREATE TABLE dbo.t (a int, b nvarchar(20))\nGO\nINSERT INTO dbo.t VALUES (1, N'one'), (2, N'two')\nGO\nSELECT b + '!' AS c FROM dbo.t ORDER BY a DESC\nGO\nSELECT * FROM dbo.absent\nGO\nexit\n").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let all = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(all.contains("two!") && all.contains("one!") && all.contains("Msg 208"), "{all}");
    running.stop().await.unwrap();
}

/// Debezium on its way; killed when dropped.
struct Debezium {
    child: Child,
    out: PathBuf,
    _folder: tempfile::TempDir,
}

impl Debezium {
    fn start(running: &Running, tables: &str) -> Debezium {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("events.jsonl");
        let address = running.address();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(installed().join("venv/bin/python"))
            .arg(script("debezium_client.py"))
            .args([&address.ip().to_string(), &address.port().to_string(), &running.options().sa_password, tables])
            .arg(&out)
            // It writes a folder of logs where it stands.
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Debezium { child, out, _folder: folder }
    }

    /// Waits for so many events.
    fn events(&mut self, count: usize) -> Vec<Value> {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.out).unwrap_or_default();
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let events: Vec<Value> = whole.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            if events.len() >= count {
                return events;
            }
            let ended = self.child.try_wait().unwrap().is_some();
            assert!(
                !ended && start.elapsed() < Duration::from_secs(120),
                "{} of {count} events: {events:#?}\n{}",
                events.len(),
                self.log()
            );
            #[expect(clippy::disallowed_methods, reason = "the pause of a loop that waits for a file to grow")]
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.out.with_file_name("log")).unwrap_or_default();
        text.lines().filter(|l| l.contains("ERROR") || l.contains("Exception")).take(8).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Debezium {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TABLES: &str = "
CREATE TABLE dbo.customers (id int IDENTITY(1,1) PRIMARY KEY, name nvarchar(50) NOT NULL, email varchar(100), balance decimal(18,2) NOT NULL DEFAULT 0);
CREATE TABLE dbo.lines (order_id bigint NOT NULL, line smallint NOT NULL, sku char(8) NOT NULL, price money, CONSTRAINT pk_lines PRIMARY KEY (order_id, line));
CREATE TABLE dbo.types (id int PRIMARY KEY, b bit, ti tinyint, si smallint, bi bigint, r real, f float, d decimal(38,10), m money, sm smallmoney, c char(5), v varchar(20), vm varchar(max),
    nc nchar(5), nv nvarchar(20), nm nvarchar(max), bn binary(4), vb varbinary(8), vbm varbinary(max), g uniqueidentifier, da date, t time(7), dt datetime, sdt smalldatetime, dt2 datetime2(7), dto datetimeoffset(7), x xml);
GO
EXEC sys.sp_cdc_enable_db;
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'customers', @role_name = NULL;
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'lines', @role_name = NULL;
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'types', @role_name = NULL;
GO
INSERT INTO dbo.customers (name, email, balance) VALUES (N'Ann', 'ann@x', 12.5), (N'Zoë', NULL, 0);
INSERT INTO dbo.lines VALUES (1, 1, 'A-1', 9.99), (1, 2, 'A-2', NULL);
";

const TYPED: &str = "INSERT INTO dbo.types VALUES (@@, 1, 255, -32768, 9223372036854775807, 1.5, 2.25, 1234567890123456789012345678.0123456789, -922337203685477.5808, 214748.3647, 'ab', 'vär', 'max', \
    N'é', N'日本', N'long', 0x01020304, 0xFF, 0x00FF, '01234567-89AB-CDEF-0123-456789ABCDEF', '2024-02-29', '13:14:15.1234567', '2024-02-29T13:14:15.167', '2024-02-29T13:14:00', \
    '2024-02-29T13:14:15.1234567', '2024-02-29T13:14:15.1234567+02:00', '<a>1</a>')";

/// What Debezium is to say of [`TYPED`].
fn typed(id: i64) -> Value {
    json!({
        "id": id, "b": true, "ti": 255, "si": -32768, "bi": 9_223_372_036_854_775_807i64, "r": 1.5, "f": 2.25, "d": "1234567890123456789012345678.0123456789", "m": "-922337203685477.5808",
        "sm": "214748.3647", "c": "ab   ", "v": "vär", "vm": "max", "nc": "é    ", "nv": "日本", "nm": "long", "bn": "01020304", "vb": "ff", "vbm": "00ff",
        "g": "01234567-89AB-CDEF-0123-456789ABCDEF", "da": "2024-02-29Z", "t": "13:14:15.1234567Z", "dt": "2024-02-29T13:14:15.167Z", "sdt": "2024-02-29T13:14:00Z",
        "dt2": "2024-02-29T13:14:15.1234567Z", "dto": "2024-02-29T13:14:15.1234567+02:00", "x": "<a>1</a>"
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn debezium_reports_what_was_done() {
    let running = standin().await;
    running.execute(TABLES).unwrap();
    running.execute(&TYPED.replace("@@", "1")).unwrap();
    running.capture_now("shop").unwrap();
    let mut debezium = Debezium::start(&running, "dbo.customers,dbo.lines,dbo.types");

    let snapshot = debezium.events(5);
    let customer = |id: i64, name: &str, email: Option<&str>, balance: &str| json!({"id": id, "name": name, "email": email, "balance": balance});
    let line = |order: i64, line: i64, sku: &str, price: Option<&str>| json!({"order_id": order, "line": line, "sku": sku, "price": price});
    let read: Vec<(&str, &Value)> = snapshot.iter().map(|e| (e["op"].as_str().unwrap(), &e["after"])).collect();
    assert_eq!(
        read,
        [
            ("r", &customer(1, "Ann", Some("ann@x"), "12.50")),
            ("r", &customer(2, "Zoë", None, "0.00")),
            ("r", &line(1, 1, "A-1     ", Some("9.9900"))),
            ("r", &line(1, 2, "A-2     ", None)),
            ("r", &typed(1)),
        ]
    );

    running
        .execute(
            "INSERT INTO dbo.customers (name, email, balance) VALUES (N'Cid', 'c@x', 7.77);
             BEGIN TRAN; INSERT INTO dbo.lines VALUES (2, 1, 'B-1', 1.5); UPDATE dbo.customers SET balance = 5 WHERE name = 'ANN'; DELETE FROM dbo.lines WHERE order_id = 1 AND line = 2; COMMIT;
             UPDATE dbo.lines SET line = 9 WHERE order_id = 2;
             BEGIN TRAN; DELETE FROM dbo.lines; ROLLBACK;
             BEGIN TRAN; UPDATE dbo.customers SET email = 'kept' WHERE id = 2; SAVE TRAN s; DELETE FROM dbo.customers; ROLLBACK TRAN s; COMMIT;",
        )
        .unwrap();
    running.execute(&TYPED.replace("@@", "2")).unwrap();
    running.execute("DELETE FROM dbo.customers WHERE id = 3").unwrap();

    let all = debezium.events(5 + 9);
    let told: Vec<(&str, &str, &Value, &Value)> =
        all[5..].iter().map(|e| (e["table"].as_str().unwrap(), e["op"].as_str().unwrap(), &e["before"], &e["after"])).collect();
    let none = Value::Null;
    let cid = customer(3, "Cid", Some("c@x"), "7.77");
    assert_eq!(
        told,
        [
            ("customers", "c", &none, &cid),
            ("lines", "c", &none, &line(2, 1, "B-1     ", Some("1.5000"))),
            ("customers", "u", &customer(1, "Ann", Some("ann@x"), "12.50"), &customer(1, "Ann", Some("ann@x"), "5.00")),
            ("lines", "d", &line(1, 2, "A-2     ", None), &none),
            ("lines", "d", &line(2, 1, "B-1     ", Some("1.5000")), &none),
            ("lines", "c", &none, &line(2, 9, "B-1     ", Some("1.5000"))),
            ("customers", "u", &customer(2, "Zoë", None, "0.00"), &customer(2, "Zoë", Some("kept"), "0.00")),
            ("types", "c", &none, &typed(2)),
            ("customers", "d", &cid, &none),
        ]
    );
    // The events of one transaction carry one commit LSN.
    let lsn = |i: usize| all[5 + i]["lsn"].as_str().unwrap();
    assert!(lsn(1) == lsn(2) && lsn(2) == lsn(3) && lsn(0) < lsn(1) && lsn(3) < lsn(4));
    drop(debezium);
    running.stop().await.unwrap();
}
