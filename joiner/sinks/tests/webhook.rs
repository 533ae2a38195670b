//! What the webhook sink posts, verified with the library `standardwebhooks` of npm, and what it makes of an endpoint's answers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use schemas::change::{EntityChange, EntityKey};
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::webhook::{WebhookConfig, WebhookSink};
use sinks::{Error, SecretReference, Sink};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDazA9Kg5XQbs=";

/// A request as it came.
#[derive(Clone)]
struct Posted {
    headers: BTreeMap<String, String>,
    body: String,
}

impl Posted {
    fn key(&self) -> String {
        serde_json::from_str::<Value>(&self.body).unwrap()["entitykey"].as_str().unwrap().to_owned()
    }
}

type Log = Arc<Mutex<Vec<Posted>>>;

/// An endpoint of the loopback interface that keeps what is posted and answers what `answer` says of it.
struct Endpoint {
    url: String,
    log: Log,
    directory: tempfile::TempDir,
    server: JoinHandle<()>,
}

impl Endpoint {
    async fn start(answer: impl Fn(&Posted) -> Response + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=hunter2", listener.local_addr().unwrap());
        let log = Log::default();
        let router = router(Arc::clone(&log), answer);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let endpoint = Self { url, log, directory: tempfile::tempdir().unwrap(), server };
        endpoint.put_secret("new", SECRET);
        endpoint
    }

    fn put_secret(&self, name: &str, secret: &str) -> SecretReference {
        let path = self.directory.path().join(name);
        std::fs::write(&path, secret).unwrap();
        SecretReference::File(path)
    }

    fn config(&self) -> WebhookConfig {
        let secret = SecretReference::File(self.directory.path().join("new"));
        let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        WebhookConfig { allow_networks, in_flight: 2, ..WebhookConfig::new(&self.url, [secret]) }
    }

    async fn sink(&self, config: WebhookConfig) -> WebhookSink {
        let mut sink = WebhookSink::new(config);
        sink.prepare(&[]).await.unwrap();
        sink
    }

    fn posted(&self) -> Vec<Posted> {
        self.log.lock().unwrap().clone()
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.posted().iter().map(Posted::key).collect();
        keys.sort();
        keys
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn router(log: Log, answer: impl Fn(&Posted) -> Response + Clone + Send + Sync + 'static) -> Router {
    Router::new().fallback(move |headers: HeaderMap, request: Request| async move {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let posted = Posted { headers, body: String::from_utf8(body.to_vec()).unwrap() };
        let answer = answer(&posted);
        log.lock().unwrap().push(posted);
        answer
    })
}

fn ok(_: &Posted) -> Response {
    StatusCode::NO_CONTENT.into_response()
}

fn change(key: u32, version: u8) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key.to_string()),
        version: Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, version, 0, 1]),
        commit_time_ms: 1_700_000_000_000,
        document: Some(json!({"n": key, "name": "Zoë ✓"}).to_string().into()),
    }
}

/// Whether the library takes each request under each secret.
fn verified(secrets: &[&str], posted: &[Posted]) -> Vec<Vec<bool>> {
    const SCRIPT: &str = "\
const { Webhook } = require('standardwebhooks');
const { secrets, posted } = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const good = (secret, { headers, body }) => { try { new Webhook(secret).verify(body, headers); return true; } catch { return false; } };
console.log(JSON.stringify(posted.map((one) => secrets.map((secret) => good(secret, one)))));
";
    let standins = std::env::var_os("TRIBUTARY_STANDINS").map(PathBuf::from);
    let standins = standins.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.setup/standins"));
    assert!(standins.join("node_modules/standardwebhooks").exists(), "the library is not there: run `make setup`");
    let mut node = Command::new("node")
        .args(["-e", SCRIPT])
        .current_dir(&standins)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let posted: Vec<Value> = posted.iter().map(|one| json!({"headers": one.headers, "body": one.body})).collect();
    let mut stdin = node.stdin.take().unwrap();
    stdin.write_all(json!({"secrets": secrets, "posted": posted}).to_string().as_bytes()).unwrap();
    drop(stdin);
    serde_json::from_slice(&node.wait_with_output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn requests_are_verified_by_the_reference_library_under_each_secret_and_no_other() {
    let endpoint = Endpoint::start(ok).await;
    let old = endpoint.put_secret("old", OLD_SECRET);
    let mut config = endpoint.config();
    config.secrets.push(old);
    let mut sink = endpoint.sink(config).await;
    let changes = [change(1, 1), EntityChange { document: None, ..change(2, 1) }];
    assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    let posted = endpoint.posted();
    let other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert_eq!(verified(&[SECRET, OLD_SECRET, other], &posted), [[true, true, false], [true, true, false]]);
    let tampered = Posted { body: posted[0].body.replace("Zoë", "Eve"), ..posted[0].clone() };
    assert_eq!(verified(&[SECRET], &[tampered]), [[false]]);
    let event: Value = serde_json::from_str(&posted[0].body).unwrap();
    // What Standard Webhooks asks of a payload, and CloudEvents of theirs.
    assert!(event["type"].is_string() && event["timestamp"].is_string() && event["specversion"] == "1.0", "{event}");
    assert_eq!(posted[0].headers["content-type"], "application/cloudevents+json; charset=utf-8");
    // The same event comes again under the same id.
    sink.write(&changes, None).await.unwrap();
    assert_eq!(endpoint.posted()[2].headers["webhook-id"], posted[0].headers["webhook-id"]);
    assert_ne!(posted[0].headers["webhook-id"], posted[1].headers["webhook-id"]);
}

#[tokio::test]
async fn a_secret_that_was_changed_is_picked_up_by_the_next_prepare() {
    let endpoint = Endpoint::start(ok).await;
    let mut sink = endpoint.sink(endpoint.config()).await;
    sink.write(&[change(1, 1)], None).await.unwrap();
    endpoint.put_secret("new", OLD_SECRET);
    sink.prepare(&[]).await.unwrap();
    sink.write(&[change(1, 2)], None).await.unwrap();
    assert_eq!(verified(&[SECRET, OLD_SECRET], &endpoint.posted()), [[true, false], [false, true]]);
}

async fn answered(answer: impl Fn(&Posted) -> Response + Clone + Send + Sync + 'static) -> Result<Vec<sinks::Rejected>, Error> {
    let endpoint = Endpoint::start(answer).await;
    endpoint.sink(endpoint.config()).await.write(&[change(1, 1)], None).await
}

#[tokio::test]
async fn an_answer_means_what_the_documentation_says() {
    for status in [200, 201, 202, 204] {
        assert_eq!(answered(move |_| StatusCode::from_u16(status).unwrap().into_response()).await.unwrap(), []);
    }
    for (status, class) in [
        (400, ErrorClass::Bug),
        (401, ErrorClass::Misconfigured),
        (403, ErrorClass::Misconfigured),
        (404, ErrorClass::Misconfigured),
        (405, ErrorClass::Misconfigured),
        (408, ErrorClass::Transient),
        (422, ErrorClass::Bug),
        (429, ErrorClass::Transient),
        (500, ErrorClass::Transient),
        (503, ErrorClass::Transient),
    ] {
        let error = answered(move |_| (StatusCode::from_u16(status).unwrap(), "a reason").into_response()).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        assert!(error.to_string().contains("a reason") && !error.to_string().contains("hunter2"), "{error}");
    }
    let rejected = answered(|_| StatusCode::PAYLOAD_TOO_LARGE.into_response()).await.unwrap();
    assert!(rejected[0].reason.contains("413"), "{rejected:?}");
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let error = answered(move |_| (status, [(RETRY_AFTER, "70")]).into_response()).await.unwrap_err();
        assert_eq!(error.pause(), Some(Duration::from_secs(70)), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Endpoint::start(ok).await;
    let url = elsewhere.url.clone();
    let error = answered(move |_| (StatusCode::PERMANENT_REDIRECT, [(LOCATION, url.clone())]).into_response()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    assert!(elsewhere.posted().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_asked_no_more() {
    let endpoint = Endpoint::start(|_| StatusCode::GONE.into_response()).await;
    let mut sink = endpoint.sink(WebhookConfig { in_flight: 1, ..endpoint.config() }).await;
    for _ in 0..3 {
        let error = sink.write(&[change(1, 1), change(2, 1)], None).await.unwrap_err();
        assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("disabled"), "{error}");
        assert!(sink.prepare(&[]).await.is_err());
    }
    assert_eq!(endpoint.posted().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_takes_nothing_for_too_long_is_disabled_and_one_that_takes_something_is_not() {
    let endpoint = Endpoint::start(|_| StatusCode::BAD_GATEWAY.into_response()).await;
    let mut sink = endpoint.sink(WebhookConfig { disable_after_hours: 0, ..endpoint.config() }).await;
    assert!(sink.write(&[change(1, 1)], None).await.unwrap_err().to_string().contains("disabled"));
    assert!(sink.write(&[change(1, 1)], None).await.unwrap_err().to_string().contains("disabled"));
    assert_eq!(endpoint.posted().len(), 1);
    let mut sink = endpoint.sink(endpoint.config()).await;
    assert_eq!(sink.write(&[change(1, 1)], None).await.unwrap_err().class(), ErrorClass::Transient);
}

#[tokio::test]
async fn how_an_endpoint_has_been_doing_is_known_after_a_restart_until_somebody_says_otherwise() {
    let answer = Arc::new(Mutex::new(StatusCode::BAD_GATEWAY));
    let given = Arc::clone(&answer);
    let endpoint = Endpoint::start(move |_| given.lock().unwrap().into_response()).await;
    let mut sink = endpoint.sink(endpoint.config()).await;
    assert_eq!(sink.note(), None, "there is nothing to say of one that was asked nothing");
    sink.write(&[change(1, 1)], None).await.unwrap_err();
    let note = sink.note().unwrap();
    assert!(!note.contains("hunter2"), "{note}");
    // Another process, by whose time the endpoint has failed for long enough.
    let noted: Value = serde_json::from_str(&note).unwrap();
    let mut long = noted.clone();
    long["failing_ms"] = json!(119 * 3_600_000 + 3_599_999);
    let again = |note: &Value| {
        let mut sink = WebhookSink::new(endpoint.config());
        sink.recall(Some(&note.to_string()));
        sink
    };
    let mut sink = again(&long);
    sink.prepare(&[]).await.unwrap();
    while !sink.write(&[change(1, 1)], None).await.unwrap_err().to_string().contains("disabled") {
        assert!(endpoint.posted().len() < 1000);
    }
    let disabled = serde_json::from_str(&sink.note().unwrap()).unwrap();
    let posted = endpoint.posted().len();
    *answer.lock().unwrap() = StatusCode::OK;
    let mut sink = again(&disabled);
    let error = sink.prepare(&[]).await.unwrap_err();
    assert!(error.to_string().contains("dead-letter retry --sink webhook"), "{error}");
    assert_eq!(endpoint.posted().len(), posted, "nothing is sent");
    // Somebody has mended it.
    sink.recall(None);
    sink.prepare(&[]).await.unwrap();
    assert_eq!(sink.write(&[change(1, 1)], None).await.unwrap(), []);
    assert_eq!(sink.note(), None);
    // Another URL is another endpoint.
    let mut sink =
        WebhookSink::new(WebhookConfig { url: sinks::UrlSource::Text(format!("{}2", endpoint.url)), ..endpoint.config() });
    sink.recall(Some(&disabled.to_string()));
    sink.prepare(&[]).await.unwrap();
    assert_eq!(sink.write(&[change(2, 1)], None).await.unwrap(), []);
}

#[tokio::test]
async fn what_was_taken_of_a_batch_that_failed_is_not_posted_again() {
    let refuse = Arc::new(Mutex::new(true));
    let refusing = Arc::clone(&refuse);
    let answer = move |posted: &Posted| {
        let refused = posted.key() == "3" && *refusing.lock().unwrap();
        if refused { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }.into_response()
    };
    let endpoint = Endpoint::start(answer).await;
    let mut sink = endpoint.sink(endpoint.config()).await;
    let changes: Vec<_> = (1..=5).map(|key| change(key, 1)).collect();
    assert_eq!(sink.write(&changes, None).await.unwrap_err().class(), ErrorClass::Transient);
    sink.prepare(&[]).await.unwrap();
    *refuse.lock().unwrap() = false;
    assert_eq!(sink.write(&changes, None).await.unwrap(), []);
    assert_eq!(endpoint.keys(), ["1", "2", "3", "3", "4", "5"]);
    // The next version is another event.
    sink.write(&[change(1, 2)], None).await.unwrap();
    assert_eq!(endpoint.posted().len(), 7);
}

#[tokio::test]
async fn an_event_that_the_endpoint_does_not_like_does_not_keep_the_others_back() {
    let answer =
        |posted: &Posted| if posted.key() == "1" { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK }.into_response();
    let endpoint = Endpoint::start(answer).await;
    let mut sink = endpoint.sink(endpoint.config()).await;
    let changes: Vec<_> = (1..=9).map(|key| change(key, 1)).collect();
    let error = sink.write(&changes, None).await.unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
    assert_eq!(endpoint.keys().len(), 9);
}

#[tokio::test]
async fn an_endpoint_in_a_private_network_is_refused_unless_it_is_allowed() {
    let endpoint = Endpoint::start(ok).await;
    let port = endpoint.url.split(':').nth(2).unwrap().split('/').next().unwrap().to_owned();
    for url in
        [format!("http://127.0.0.1:{port}/"), format!("https://localhost:{port}/"), format!("https://[::ffff:127.0.0.1]:{port}/")]
    {
        let config = WebhookConfig { allow_networks: Vec::new(), ..WebhookConfig::new(&url, endpoint.config().secrets) };
        let error = WebhookSink::new(config.clone()).prepare(&[]).await.unwrap_err();
        assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains("allow_networks"), "{error}");
        assert!(WebhookSink::new(config).check(&[]).await.is_err());
    }
    assert!(endpoint.posted().is_empty());
    let looked = WebhookSink::new(endpoint.config()).check(&[]).await.unwrap();
    assert!(looked.detail.contains("127.0.0.1") && endpoint.posted().is_empty(), "{looked:?}");
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_in_time_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let endpoint = Endpoint::start(ok).await;
    let config = WebhookConfig {
        request_limit_ms: 50,
        allow_networks: endpoint.config().allow_networks,
        ..WebhookConfig::new(url, endpoint.config().secrets)
    };
    let error = endpoint.sink(config).await.write(&[change(1, 1)], None).await.unwrap_err();
    assert!(error.class() == ErrorClass::Transient && error.to_string().contains("50 ms"), "{error}");
}

/// Hands out connections that have shown the certificate.
struct TlsListener {
    tcp: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust us hangs up.
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

#[tokio::test]
async fn tls_is_held_to_the_authorities_that_are_named() {
    let plain = Endpoint::start(ok).await;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca_file = plain.directory.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let tls = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", tcp.local_addr().unwrap().port());
    let log = Log::default();
    let listener = TlsListener { tcp, acceptor: Arc::new(tls).into() };
    let router = router(Arc::clone(&log), ok);
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let config =
        WebhookConfig { allow_networks: plain.config().allow_networks, ..WebhookConfig::new(url, plain.config().secrets) };
    let config = WebhookConfig { allow_networks: [config.allow_networks, vec!["::1/128".parse().unwrap()]].concat(), ..config };
    let error = plain.sink(config.clone()).await.write(&[change(1, 1)], None).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let config = WebhookConfig { ca_file: Some(ca_file), ..config };
    assert_eq!(plain.sink(config).await.write(&[change(1, 1)], None).await.unwrap(), []);
    assert_eq!(log.lock().unwrap().len(), 1);
    server.abort();
}
