//! A way to the AWS stand-in that can be blocked: requests go through it, and are kept waiting, throttled, or refused for their credentials in the words of the service that they are meant for.

use std::sync::{Arc, Mutex};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;

use super::ministack::{Ministack, sdk_config};
use super::serving::Served;

const BODY_BYTES: usize = 32 << 20;

/// What becomes of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Passage {
    #[default]
    Open,
    /// They are carried out, and not answered until something else is set.
    Held,
    Throttled,
}

struct Common {
    upstream: String,
    passage: watch::Sender<Passage>,
    /// The access key that is let through.
    known: Mutex<String>,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Stands before a [`Ministack`], or another stand-in.
pub struct Gate {
    common: Arc<Common>,
    server: Served,
    held: Keys,
}

/// The access key that clients find when they look for one.
#[derive(Debug, Clone)]
struct Keys(Arc<Mutex<String>>);

impl ProvideCredentials for Keys {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let key = self.0.lock().expect("the key").clone();
        future::ProvideCredentials::ready(Ok(Credentials::new(key, "test", None, None, "tests")))
    }
}

impl Gate {
    pub async fn before(stack: &Ministack) -> Self {
        Self::to(stack.endpoint_url()).await
    }

    pub async fn to(upstream: String) -> Self {
        let common = Arc::new(Common {
            upstream,
            passage: watch::Sender::new(Passage::Open),
            known: Mutex::new("test".to_owned()),
            client: Client::builder(TokioExecutor::new()).build_http(),
        });
        let server = Served::start(Router::new().fallback(pass).with_state(Arc::clone(&common))).await;
        Self { common, server, held: Keys(Arc::new(Mutex::new("test".to_owned()))) }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What the SDK needs to go through it.
    pub async fn sdk_config(&self) -> SdkConfig {
        let provider = SharedCredentialsProvider::new(self.held.clone());
        sdk_config(&self.server.url()).await.into_builder().credentials_provider(provider).build()
    }

    pub fn set(&self, passage: Passage) {
        self.common.passage.send_replace(passage);
    }

    /// From now on requests need this access key.
    pub fn let_through(&self, key: &str) {
        key.clone_into(&mut self.common.known.lock().expect("the key"));
    }

    /// From now on whoever looks for an access key finds this one.
    pub fn hand_out(&self, key: &str) {
        key.clone_into(&mut self.held.0.lock().expect("the key"));
    }

    /// Its port refuses connections.
    pub async fn down(&self) {
        self.server.down().await;
    }

    pub async fn up(&self) {
        self.server.up().await;
    }
}

async fn pass(State(common): State<Arc<Common>>, request: Request) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let known = common.known.lock().expect("the key").clone();
    if !authorization.contains(&format!("Credential={known}/")) {
        return refusal(&authorization, ["InvalidClientTokenId", "UnrecognizedClientException"], "The security token is invalid");
    }
    if *common.passage.borrow() == Passage::Throttled {
        return refusal(&authorization, ["Throttled", "ThrottlingException"], "Rate exceeded");
    }
    let answer = forward(&common, request).await;
    // The sender lives as long as this.
    let _ = common.passage.subscribe().wait_for(|passage| *passage != Passage::Held).await;
    answer
}

async fn forward(common: &Common, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_BYTES).await.expect("the whole request");
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = format!("{}{path}", common.upstream).parse::<Uri>().expect("a URL");
    head.headers.remove(HOST);
    let Ok(answer) = common.client.request(Request::from_parts(head, Full::new(body))).await else { return broken() };
    let (head, body) = answer.into_parts();
    match body.collect().await {
        Ok(body) => (head.status, head.headers, body.to_bytes()).into_response(),
        Err(_) => broken(),
    }
}

/// A body that fails before its first byte breaks the connection.
fn broken() -> Response {
    let cut = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
    Body::from_stream(futures_util::stream::iter([Err::<Bytes, _>(cut)])).into_response()
}

/// As the service says it that the request was signed for: S3 and SNS in XML, by the first code, the others in JSON, by the second.
fn refusal(authorization: &str, [query, json]: [&str; 2], message: &str) -> Response {
    if authorization.contains("/s3/") {
        let body = format!("<Error><Code>{query}</Code><Message>{message}</Message></Error>");
        return (StatusCode::FORBIDDEN, [(CONTENT_TYPE, "application/xml")], body).into_response();
    }
    if authorization.contains("/sns/") {
        let error = format!("<Error><Type>Sender</Type><Code>{query}</Code><Message>{message}</Message></Error>");
        let body = format!(r#"<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">{error}</ErrorResponse>"#);
        return (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "text/xml")], body).into_response();
    }
    let body = format!(r#"{{"__type":"com.amazonaws#{json}","message":"{message}"}}"#);
    (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "application/x-amz-json-1.0")], body).into_response()
}
