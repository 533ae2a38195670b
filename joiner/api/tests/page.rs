//! The web page in headless Chromium, driven through chromedriver: what a person sees and does.
//!
//! `TRIBUTARY_SCREENSHOTS=DIR` keeps pictures of it, light and dark.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use serde_json::{Value, json};
use support::{Fixture, PATIENCE, change, lsn};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, Instant, sleep};

/// chromedriver and one browser; both end with it.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// Chromium's profile, and nothing of it elsewhere.
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("chromedriver: {error}. Run `make setup`"));
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let start = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "chromedriver does not listen");
            sleep(Duration::from_millis(20)).await;
        }
        let data = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000", &data];
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}});
        let session = browser.call("POST", "/session", &wanted).await;
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, read_answer(stream)).await.expect("an answer of chromedriver in time");
        let body = &answer;
        let value: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert!(value["value"]["error"].is_null(), "{path}: {value}");
        value["value"].clone()
    }

    async fn post(&self, command: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}/{command}", self.session), body).await
    }

    async fn script(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({"script": script, "args": []})).await
    }

    /// Waits until a script answers something true, and gives that.
    async fn until(&self, script: &str) -> Value {
        let start = Instant::now();
        loop {
            let value = self.script(&format!("return {script}")).await;
            if !value.is_null() && value != json!(false) && value != json!("") && value != json!(0) {
                return value;
            }
            if start.elapsed() > PATIENCE {
                self.picture("failed").await;
                panic!("never true: {script}; the page says: {}", self.script("return document.body.innerText").await);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn picture(&self, name: &str) {
        let Some(directory) = std::env::var_os("TRIBUTARY_SCREENSHOTS") else { return };
        let picture = self.call("GET", &format!("/session/{}/screenshot", self.session), &Value::Null).await;
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&directory).join(format!("{name}.png")), bytes).unwrap();
    }
}

/// The body of an answer, by its length: chromedriver keeps connections open.
async fn read_answer(stream: TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().unwrap(),
            None if line.trim_end().is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends Chromium; killing the driver alone would leave it behind. What fails here has ended already.
        if let Ok(mut stream) = std::net::TcpStream::connect(self.address) {
            let request =
                format!("DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.session, self.address);
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 512]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn document(n: u32, status: &str, note: &str) -> Value {
    json!({
        "id": n, "status": status, "total": format!("{n}.50"), "note": note, "customer": {"id": 7, "name": "Ada Keller", "city": "Bern"},
        "items": [{"id": 1, "product": "Rope", "quantity": 2}, {"id": 2, "product": "Lantern", "quantity": 1}],
    })
}

fn status(total: u64) -> Value {
    json!({
        "source": {"name": "shop", "phase": "tailing", "captured_lsn": lsn(9).to_string(), "published_lsn": lsn(9).to_string(), "events_total": total * 4, "lag_ms": 38,
            "tables": {"dbo.orders": total, "dbo.order_items": total * 3, "dbo.customers": 1200, "dbo.payments": total}},
        "joiner": {"phase": "live", "frontier": lsn(9).to_string(), "commit_time_ms": 0, "applied_total": total * 4, "emitted_total": total},
        "sinks": [{"name": "sqlite", "state": "live", "frontier": lsn(9).to_string(), "lag_ms": 61, "written_total": total, "error": null}],
        "demo": {"connect": ["tsql -H 127.0.0.1 -p 1433 -U sa -P demo -D shop"], "try": ["UPDATE dbo.orders SET status = 'SHIPPED' WHERE id = 2"], "latency_ms": {"p50": 84, "p99": 190}},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_flow_and_its_entities() {
    let mut fixture = Fixture::start().await;
    *fixture.status.lock().unwrap() = status(1000);
    fixture.step(&[change("order", "1", 1, Some(&document(1, "OPEN", "first")))], 1).await;
    let browser = Browser::start().await;
    browser.post("url", &json!({"url": format!("http://{}/", fixture.address)})).await;

    // The flow, from the status.
    browser.until("document.querySelector('[data-testid=stage-joiner]')?.textContent.includes('frontier')").await;
    *fixture.status.lock().unwrap() = status(1070);
    browser.until("parseFloat(document.querySelector('[data-testid=stage-source] .rate').textContent) > 0").await;
    browser.until("document.querySelector('[data-testid=stage-sinks]').textContent.includes('61 ms')").await;
    browser.until("document.querySelector('[data-testid=health]').textContent.includes('84 ms')").await;
    browser.until("document.querySelector('[data-testid=hints]').textContent.includes('tsql -H')").await;

    // Changes arrive, and one document is followed; what the source holds is text, whatever it looks like.
    browser.until("document.querySelector('[data-testid=stream]').textContent === 'live'").await;
    let hostile = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>";
    fixture.step(&[change("order", "2", 2, Some(&document(2, "OPEN", hostile)))], 2).await;
    browser.until("document.querySelector('[data-testid=change]')?.dataset.key === '2'").await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('onerror')").await;

    // The next version marks what changed in it, and nothing else.
    let mut changed = document(2, "SHIPPED", hostile);
    changed["items"] = json!([{"id": 3, "product": "Tent", "quantity": 1}, {"id": 1, "product": "Rope", "quantity": 2}, {"id": 2, "product": "Lantern", "quantity": 5}]);
    fixture.step(&[change("order", "2", 3, Some(&changed))], 3).await;
    let marked =
        browser.until("[...document.querySelectorAll('[data-testid=changed]')].map(node => node.textContent).join('|')").await;
    let marked = marked.as_str().unwrap();
    assert!(
        marked.starts_with("\"SHIPPED\"|{")
            && marked.contains("Tent")
            && marked.ends_with("|5")
            && marked.matches('|').count() == 2,
        "{marked}"
    );
    browser.picture("light").await;

    // A look-up, of what is there and of what is not.
    let look_up = |key: &str| {
        format!(
            "const box = document.querySelector('[data-testid=lookup-key]'); box.value = '{key}'; \
             document.querySelector('[data-testid=lookup-go]').click(); return true"
        )
    };
    browser.until("document.querySelector('[data-testid=lookup-entity]').options.length === 2").await;
    browser.script(&look_up("1")).await;
    browser.until("document.querySelector('[data-testid=document-title]').textContent.includes('order 1')").await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('first')").await;
    browser.script(&look_up("404")).await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('There is no order with key')").await;

    // Looking at one, others do not push it away; its own end is shown.
    browser.script(&look_up("1")).await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('first')").await;
    fixture.step(&[change("order", "5", 4, Some(&document(5, "OPEN", "other"))), change("order", "1", 4, None)], 4).await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('was deleted')").await;
    browser.until("document.querySelectorAll('.change.deleted').length === 1").await;

    // A sink in trouble is seen.
    let mut failing = status(1100);
    failing["sinks"][0]["error"] = json!("PostgreSQL db:5432/entities: connection refused");
    *fixture.status.lock().unwrap() = failing;
    browser.until("document.querySelector('[data-testid=health]').textContent.includes('needs attention')").await;
    browser.until("document.querySelector('[data-testid=stage-sinks] .error')?.textContent.includes('refused')").await;
    assert_eq!(browser.script("return window.broken === undefined").await, json!(true));

    // What an operator should look at, and a snapshot under way.
    let mut troubled = status(1110);
    troubled["source"]["warnings"] = json!(["dbo.orders: 3 h of headroom"]);
    troubled["source"]["table_details"] = json!({"dbo.items": {"held": "column x is gone"}, "dbo.orders": {"held": null}});
    troubled["source"]["snapshot"] = json!({"rows": 4500, "rows_expected": 10_000, "remaining_seconds": 90});
    troubled["joiner"]["warning"] = json!("nothing has come for a while");
    *fixture.status.lock().unwrap() = troubled;
    let notices = "[...document.querySelectorAll('[data-testid=notices] li')].map(node => node.className + ' ' + node.textContent).join('|')";
    let expected = "bad dbo.items is held: column x is gone|warn dbo.orders: 3 h of headroom|warn nothing has come for a while";
    browser.until(&format!("{notices} === '{expected}'")).await;
    browser.until("document.querySelector('[data-testid=stage-importer]').textContent.includes('45 %, 90.0 s left')").await;

    // Members that are missing are no fault.
    *fixture.status.lock().unwrap() = json!({});
    browser.until("document.querySelector('[data-testid=stage-sinks]').textContent.includes('none yet')").await;
    browser.until("document.querySelector('[data-testid=notices]').hidden").await;

    *fixture.status.lock().unwrap() = status(1200);
    let dark =
        json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}});
    browser.post("goog/cdp/execute", &dark).await;
    browser.until("document.querySelector('[data-testid=stage-sinks]').textContent.includes('61 ms')").await;
    browser.script(&look_up("2")).await;
    browser.until("document.querySelector('[data-testid=document]').textContent.includes('Tent')").await;
    browser.picture("dark").await;
    drop(browser);
    fixture.stop().await;
}
