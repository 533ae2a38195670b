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

    /// Makes the embedded log forget all but the last segment of streams, as its retention would.
    pub fn forget(&self, streams: &[&str]) {
        streams.iter().for_each(|stream| self.forget_below(stream, u64::MAX));
    }

    /// The same of what the archive in a folder has: what was published after its last segment stays.
    pub fn forget_archived(&self, archive: &str, streams: &[&str]) {
        let folders = std::fs::read_dir(self.path(archive).join("manifests")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        let last = files.map(|file| file.unwrap().path()).max().unwrap();
        let last: Value = serde_json::from_slice(&std::fs::read(last).unwrap()).unwrap();
        for stream in streams {
            self.forget_below(stream, last["positions"][stream]["shard-0000"].as_str().unwrap().parse().unwrap());
        }
    }

    /// Removes the segments that are followed by one which begins at or before a position.
    fn forget_below(&self, stream: &str, position: u64) {
        let shard = self.path("data/streams").join(stream).join("shard-0000");
        let mut segments: Vec<PathBuf> = std::fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        segments.sort();
        let first = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
        segments.truncate(segments.partition_point(|segment| first(segment) <= position).saturating_sub(1));
        assert!(!segments.is_empty(), "{stream}: nothing is forgotten");
        segments.iter().for_each(|segment| std::fs::remove_file(segment).unwrap());
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
