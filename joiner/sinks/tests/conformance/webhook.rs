//! An HTTP endpoint that keeps what it is told.

use std::path::PathBuf;
use std::sync::Mutex;

use axum::Router;
use sinks::SecretReference;
use sinks::webhook::{WebhookConfig, WebhookSink};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::subscriber::Subscriber;
use super::*;

pub(super) struct Endpoint {
    directory: tempfile::TempDir,
    port: u16,
    subscriber: Arc<Subscriber>,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Endpoint {
    pub(super) async fn start() -> Self {
        let mut endpoint =
            Self { directory: tempfile::tempdir().unwrap(), port: 0, subscriber: Arc::default(), server: Mutex::default() };
        std::fs::write(endpoint.secret(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        endpoint.up().await;
        endpoint
    }

    fn secret(&self) -> PathBuf {
        self.directory.path().join("secret")
    }
}

#[async_trait::async_trait]
impl Target for Endpoint {
    async fn fresh(&mut self, _case: &str) {
        self.subscriber.clear();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let url = format!("http://127.0.0.1:{}/events", self.port);
        let config = WebhookConfig::new(url, [SecretReference::File(self.secret())]);
        Box::new(WebhookSink::new(WebhookConfig { allow_networks: vec!["127.0.0.0/8".parse().unwrap()], ..config }))
    }

    async fn held(&self) -> Held {
        self.subscriber.held()
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        None
    }

    async fn down(&mut self) {
        let server = self.server.lock().unwrap().take().unwrap();
        server.abort();
        // The port is free when the task has ended.
        let _ = server.await;
    }

    async fn up(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let subscriber = Arc::clone(&self.subscriber);
        let take = move |body: String| async move { subscriber.take(&serde_json::from_str(&body).unwrap()) };
        let serving = async move { axum::serve(listener, Router::new().fallback(take)).await.unwrap() };
        *self.server.lock().unwrap() = Some(tokio::spawn(serving));
    }

    fn tells_vanished(&self) -> bool {
        false
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(server) = self.server.get_mut().unwrap().take() {
            server.abort();
        }
    }
}
