//! A pipeline's folder (configuration, contracts, entities) and its processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::http;
use super::process::{Process, text, tributary};
use super::sqlserver::SqlServer;
use super::wait_for;

/// The environment variable that the configurations of the tests take the source's password from.
pub const PASSWORD_VARIABLE: &str = "TRIBUTARY_SOURCE_PASSWORD";

pub struct Pipeline {
    pub folder: TempDir,
    /// The source's.
    pub password: String,
}

impl Pipeline {
    /// A folder as `tributary init` writes it, with the entity definitions replaced where some are given.
    pub fn init(server: &SqlServer, entities: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output =
            tributary(&["init", "--source", &server.url(), "--password-env", PASSWORD_VARIABLE, "--out", text(folder.path())])
                .env(PASSWORD_VARIABLE, &server.password)
                .output()
                .unwrap();
        assert!(
            output.status.success(),
            "init failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let pipeline = Self { folder, password: server.password.clone() };
        if !entities.is_empty() {
            let place = pipeline.path("schemas/entities");
            std::fs::remove_dir_all(&place).unwrap();
            std::fs::create_dir_all(&place).unwrap();
            for (name, definition) in entities {
                std::fs::write(place.join(format!("{name}.yaml")), definition).unwrap();
            }
        }
        pipeline
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("tributary.yaml")
    }

    /// Writes a configuration with these `streams.provider`, and `sinks` sections (YAML, indented by two).
    pub fn configure(&self, server: &SqlServer, provider: &str, sinks: &str) {
        let config = format!(
            "source:\n  name: tpch\n  url: {}\n  password: {{env: {PASSWORD_VARIABLE}}}\n  poll_interval: 20ms\nstreams:\n  prefix: tpch\n  \
             provider: {provider}\nsinks:\n{sinks}api:\n  listen: 127.0.0.1:0\n",
            server.url()
        );
        std::fs::write(self.config(), config).unwrap();
    }

    /// Another configuration beside the first: with a data folder and a section of its own.
    pub fn another(&self, name: &str, section: &str) -> PathBuf {
        let config = std::fs::read_to_string(self.config()).unwrap();
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, format!("{config}data: data/{name}\n{section}")).unwrap();
        path
    }

    /// Starts `tributary <command> --config …`.
    pub fn start(&self, command: &str) -> Process {
        self.start_with(command, &self.config())
    }

    pub fn start_with(&self, command: &str, config: &std::path::Path) -> Process {
        Process::spawn(
            command,
            tributary(&[command, "--config", text(config)])
                .env(PASSWORD_VARIABLE, &self.password)
                .env("AWS_ACCESS_KEY_ID", "test")
                .env("AWS_SECRET_ACCESS_KEY", "test")
                .env("AWS_REGION", "us-east-1"),
        )
    }

    /// Starts `tributary run` and waits for the API's address.
    pub fn run(&self) -> (Process, String) {
        let process = self.start("run");
        let url = process.line_after("API on ").trim().to_owned();
        (process, url)
    }
}

/// All entities of a kind, by key, through the list endpoint and its cursor.
pub async fn entities(url: &str, entity: &str) -> BTreeMap<String, Value> {
    entities_if_answered(url, entity).await.expect("a page of entities")
}

/// The same; none where the API does not answer yet.
pub async fn entities_if_answered(url: &str, entity: &str) -> Option<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = http::json(&format!("{url}/v1/entities/{entity}?limit=1000{cursor}")).await?;
        for item in page["items"].as_array().unwrap() {
            let key = item["key"].as_str().unwrap().to_owned();
            assert!(all.insert(key.clone(), item["document"].clone()).is_none(), "{key} came twice");
        }
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Some(all),
        }
    }
}

/// Waits until the entity's document satisfies the condition.
pub async fn wait_for_document(url: &str, entity: &str, key: &str, limit: Duration, condition: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("{entity} {key} as expected"), limit, async || {
        let document = http::json(&format!("{url}/v1/entities/{entity}/{key}")).await?;
        condition(&document).then_some(document)
    })
    .await
}
