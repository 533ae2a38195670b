//! An HTTP endpoint that keeps what it is told, if it is signed as it should be.

use std::path::PathBuf;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sinks::SecretReference;
use sinks::test_support::Served;
use sinks::webhook::{WebhookConfig, WebhookSink};
use tokio::sync::watch;

use super::subscriber::Subscriber;
use super::*;

const FIRST: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECOND: &str = "C2FVsBQIhrscChlQIMV+b5sSYspob7oDazA9Kg5XQbs=";

/// What the endpoint is about.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Taking,
    Silent,
    Throttling(Option<Duration>),
    NotFound,
}

struct Common {
    subscriber: Subscriber,
    mood: watch::Sender<Mood>,
    /// The secret that it knows.
    secret: watch::Sender<&'static str>,
}

pub(super) struct Endpoint {
    directory: tempfile::TempDir,
    common: Arc<Common>,
    server: Served,
}

impl Endpoint {
    pub(super) async fn start() -> Self {
        let (mood, secret) = (watch::Sender::new(Mood::Taking), watch::Sender::new(FIRST));
        let common = Arc::new(Common { subscriber: Subscriber::default(), mood, secret });
        let server = Served::start(Router::new().fallback(take).with_state(Arc::clone(&common))).await;
        let endpoint = Self { directory: tempfile::tempdir().unwrap(), common, server };
        endpoint.hand_out(FIRST);
        endpoint
    }

    fn secret(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    fn hand_out(&self, secret: &str) {
        std::fs::write(self.secret(), format!("whsec_{secret}")).unwrap();
    }

    fn be(&self, mood: Mood) {
        self.common.mood.send_replace(mood);
    }
}

/// As the specification of Standard Webhooks says.
fn is_signed(secret: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    let header = |name: &str| headers[name].to_str().unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(secret).unwrap()).unwrap();
    mac.update(format!("{}.{}.", header("webhook-id"), header("webhook-timestamp")).as_bytes());
    mac.update(body);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    header("webhook-signature").split(' ').any(|signature| signature == expected)
}

async fn take(State(common): State<Arc<Common>>, headers: HeaderMap, body: Bytes) -> Response {
    let mood = *common.mood.borrow();
    match mood {
        Mood::Throttling(Some(pause)) => {
            return (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, pause.as_secs().to_string())]).into_response();
        }
        Mood::Throttling(None) => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        Mood::NotFound => return StatusCode::NOT_FOUND.into_response(),
        Mood::Taking | Mood::Silent => {}
    }
    let secret = *common.secret.borrow();
    if !is_signed(secret, &headers, &body) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    common.subscriber.take(&serde_json::from_slice(&body).unwrap());
    // The sender lives as long as this.
    let _ = common.mood.subscribe().wait_for(|mood| *mood != Mood::Silent).await;
    StatusCode::NO_CONTENT.into_response()
}

#[async_trait::async_trait]
impl Target for Endpoint {
    async fn fresh(&mut self, _case: &str) {
        self.common.subscriber.clear();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let config = WebhookConfig::new(format!("{}/events", self.server.url()), [SecretReference::File(self.secret())]);
        let allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
        Box::new(WebhookSink::new(WebhookConfig { allow_networks, request_limit_ms: 6000, ..config }))
    }

    async fn held(&self) -> Held {
        self.common.subscriber.held()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    async fn down(&mut self) {
        self.server.down().await;
    }

    async fn up(&mut self) {
        self.server.up().await;
    }

    async fn hold(&mut self) -> bool {
        self.be(Mood::Silent);
        true
    }

    async fn throttle(&mut self, pause: Option<Duration>) -> bool {
        self.be(Mood::Throttling(pause));
        true
    }

    async fn release(&mut self) {
        self.be(Mood::Taking);
    }

    async fn rotate(&mut self, step: Rotation) -> bool {
        match step {
            Rotation::Refused => drop(self.common.secret.send_replace(SECOND)),
            Rotation::Renewed => self.hand_out(SECOND),
        }
        true
    }

    async fn remove(&mut self) -> bool {
        self.be(Mood::NotFound);
        true
    }

    async fn make(&mut self) {
        self.release().await;
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}
