//! ministack, the AWS stand-in (PyPI, MIT): DynamoDB, SNS, SQS and S3 of one account, in memory.
//!
//! It is found through the environment variable `TRIBUTARY_STANDINS`, by default `.setup/standins` in the workspace, as `venv/bin/ministack`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::process::{Owned, free_port, listens, wait_until, when_this_process_ends};

const START_LIMIT: Duration = Duration::from_secs(60);
const REGION: &str = "eu-west-1";

pub struct Ministack {
    directory: tempfile::TempDir,
    /// What ends it when this process does, and itself.
    process: Mutex<Option<(Owned, Owned)>>,
    port: u16,
}

impl Ministack {
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("tributary-ministack-").tempdir().expect("a temporary directory");
        let stack = Self { directory, process: Mutex::new(None), port: free_port() };
        stack.up();
        stack
    }

    pub fn endpoint_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn region(&self) -> &'static str {
        REGION
    }

    /// Environment variables with which any AWS client is content.
    pub fn environment(&self) -> [(&'static str, &'static str); 3] {
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", REGION)]
    }

    /// Kills it. What it held is gone.
    pub fn down(&self) {
        *self.process.lock().expect("the process") = None;
    }

    pub fn up(&self) {
        let path = |name: &str| self.directory.path().join(name);
        std::fs::create_dir_all(path("tmp")).expect("its directory");
        let program = program();
        let log = std::fs::File::create(path("log")).expect("its log");
        let child = Command::new(&program)
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", self.port.to_string())
            .env("LOG_LEVEL", "WARNING")
            .env("TMPDIR", path("tmp"))
            .env("STATE_DIR", path("state"))
            .env("S3_DATA_DIR", path("s3"))
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}. Run `make setup`", program.display()));
        let watch = when_this_process_ends(&format!("kill -9 {}; rm -rf {}", child.id(), self.directory.path().display()));
        *self.process.lock().expect("the process") = Some((watch, Owned(child)));
        wait_until("ministack", START_LIMIT, || listens(self.port));
    }

    /// Calls a service that speaks AWS's JSON protocol (`AmazonSQS.ReceiveMessage`), with nothing of the SDK between.
    pub async fn call(&self, action: &str, body: &Value) -> Value {
        serde_json::from_slice(&self.bytes(action, body).await).unwrap_or_else(|error| panic!("{action}: {error}"))
    }

    /// The same, where the answer says nothing.
    pub async fn call_for_nothing(&self, action: &str, body: &Value) {
        self.bytes(action, body).await;
    }

    async fn bytes(&self, action: &str, body: &Value) -> Bytes {
        let service = if action.starts_with("AmazonSQS") { "sqs" } else { "dynamodb" };
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=00"
        );
        let request = hyper::Request::post(self.endpoint_url())
            .header("Content-Type", "application/x-amz-json-1.0")
            .header("X-Amz-Target", action)
            .header("Authorization", authorization)
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        answer(action, request).await
    }

    /// Makes an S3 bucket.
    pub async fn create_bucket(&self, name: &str) {
        let request = hyper::Request::put(format!("{}/{name}", self.endpoint_url())).body(Full::default()).expect("a request");
        answer("CreateBucket", request).await;
    }
}

async fn answer(action: &str, request: hyper::Request<Full<Bytes>>) -> Bytes {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.expect("ministack").into_parts();
    let body = body.collect().await.expect("the whole answer").to_bytes();
    assert!(head.status == 200, "{action}: {} {}", head.status, String::from_utf8_lossy(&body));
    body
}

#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs"))]
impl Ministack {
    /// What the SDK needs to reach it.
    pub async fn sdk_config(&self) -> aws_config::SdkConfig {
        sdk_config(&self.endpoint_url()).await
    }
}

/// What the SDK needs to reach a stand-in at that URL. It tries twice and no more: one that is down is down.
#[cfg(any(feature = "dynamodb", feature = "sns", feature = "sqs"))]
pub async fn sdk_config(endpoint_url: &str) -> aws_config::SdkConfig {
    use aws_config::retry::RetryConfig;
    use aws_config::timeout::TimeoutConfig;
    /// Long for a stand-in, and short for a test of one that does not answer.
    const ATTEMPT_LIMIT: Duration = Duration::from_secs(6);
    let credentials = aws_credential_types::Credentials::new("test", "test", None, None, "tests");
    let shared = aws_credential_types::provider::SharedCredentialsProvider::new(credentials);
    let sdk = crate::aws::load(Some(REGION), Some(endpoint_url)).await;
    let timeouts = sdk.timeout_config().cloned().unwrap_or_else(TimeoutConfig::disabled);
    sdk.into_builder()
        .credentials_provider(shared)
        .retry_config(RetryConfig::standard().with_max_attempts(2))
        .timeout_config(timeouts.to_builder().operation_attempt_timeout(ATTEMPT_LIMIT).build())
        .build()
}

fn program() -> PathBuf {
    let standins = std::env::var_os("TRIBUTARY_STANDINS").map(PathBuf::from);
    let standins = standins.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.setup/standins"));
    let program = standins.join("venv/bin/ministack");
    assert!(program.exists(), "{} is not there: run `make setup`", program.display());
    program
}
