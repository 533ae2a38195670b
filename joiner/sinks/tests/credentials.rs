//! Keys that stand in AWS's file of credentials, where the SDK reads them once: a sink that is prepared anew finds those that are there then. The kinds whose SDK can be handed its credentials are tested so in the conformance suite.
//!
//! Where that file is says an environment variable, so all of it happens in a process of its own.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use objects::S3Options;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::json;
use sinks::Sink;
use sinks::kinesis::{KinesisConfig, KinesisSink};
use sinks::lake::{LakeConfig, LakeSink};
use sinks::test_support::{Gate, Ministack};
use streams::config::KinesisOptions;
use streams::stub::Stub;

/// The file of the child process.
const CREDENTIALS: &str = "AWS_SHARED_CREDENTIALS_FILE";

fn change(version: u8) -> [EntityChange; 1] {
    [EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text("1"),
        version: Lsn::from_bytes([version; 10]),
        commit_time_ms: 1_700_000_000_000,
        document: Some(format!("{{\"n\": {version}}}").into()),
    }]
}

fn keep(file: &Path, key: &str) {
    std::fs::write(file, format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")).unwrap();
}

/// The sink is known by a key that is in the file, then by another, which comes into the file later.
async fn is_picked_up(sink: &mut dyn Sink, gate: &Gate, file: &Path) {
    let schema = json!({"properties": {"n": {"type": "integer"}}});
    let key = vec![("id".to_owned(), SqlType::Int)];
    let entities = [EntityInfo { name: "order".into(), key, document_schema: schema }];
    keep(file, "first");
    gate.let_through("first");
    sink.prepare(&entities).await.unwrap();
    assert_eq!(sink.write(&change(1), Some(Lsn::from_bytes([1; 10]))).await.unwrap(), []);
    gate.let_through("second");
    let error = sink.write(&change(2), None).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    let error = sink.prepare(&entities).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Misconfigured, "{error}");
    keep(file, "second");
    sink.prepare(&entities).await.unwrap();
    assert_eq!(sink.write(&change(2), Some(Lsn::from_bytes([2; 10]))).await.unwrap(), []);
}

/// Not a test of its own: what [`keys_in_a_file_are_read_anew`] runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn child() {
    let Some(file) = std::env::var_os(CREDENTIALS).map(PathBuf::from) else { return };
    let stack = Ministack::start();
    stack.create_bucket("lake").await;
    let gate = Gate::before(&stack).await;
    let options = S3Options {
        bucket: "lake".into(),
        prefix: String::new(),
        region: Some("us-east-1".into()),
        endpoint: Some(gate.url()),
        stand_in_credentials: false,
    };
    let config = LakeConfig { commit_seconds: 0, ..LakeConfig::new(objects::Config::S3(options)) };
    is_picked_up(&mut LakeSink::new(config), &gate, &file).await;

    let stub = Stub::start().await.unwrap();
    let gate = Gate::to(stub.endpoint()).await;
    let options = KinesisOptions { endpoint: Some(gate.url()), stand_in_credentials: false, retry_seconds: 1, ..stub.options() };
    is_picked_up(&mut KinesisSink::with_options(KinesisConfig::new("entities"), options), &gate, &file).await;
}

#[test]
fn keys_in_a_file_are_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env(CREDENTIALS, directory.path().join("credentials"));
    command.env("AWS_CONFIG_FILE", directory.path().join("none")).env("AWS_REGION", "eu-central-1");
    for given in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"] {
        command.env_remove(given);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
