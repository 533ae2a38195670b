//! Delta tables in a folder, read by DuckDB; between the sink and the folder stands a store that does as the test says.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use objects::LocalOptions;
use objects::test_support::{Control, Controlled, Fate, Operation};
use sinks::lake::{LakeConfig, LakeSink};
use tokio::sync::watch;

use super::*;
use crate::duckdb::DuckDb;

/// How the folder is reached.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Open,
    Down,
    Silent,
    Throttled,
    /// For the credentials that the sink has.
    Refused,
}

#[derive(Debug)]
struct Switch(watch::Sender<Way>);

#[async_trait::async_trait]
impl Control for Switch {
    async fn fate(&self, _: Operation<'_>) -> Fate {
        let refused = |source: &str| Fate::Refused(object_store::Error::Generic { store: "test", source: source.into() });
        let way = *self.0.borrow();
        match way {
            Way::Open => Fate::Done,
            Way::Down => refused("out of reach"),
            Way::Refused => {
                let (path, source) = ("order".to_owned(), "The AWS Access Key Id is not valid".into());
                Fate::Refused(object_store::Error::PermissionDenied { path, source })
            }
            Way::Throttled => refused("Server returned non-2xx status code: 503 Slow Down: <Error><Code>SlowDown</Code></Error>"),
            Way::Silent => {
                // The sender lives as long as this.
                let _ = self.0.subscribe().wait_for(|way| *way != Way::Silent).await;
                Fate::Lost(object_store::Error::Generic { store: "test", source: "too late".into() })
            }
        }
    }
}

pub(super) struct Lake {
    directory: tempfile::TempDir,
    case: String,
    switch: Arc<Switch>,
    reader: DuckDb,
}

impl Lake {
    pub(super) fn new() -> Self {
        let switch = Arc::new(Switch(watch::Sender::new(Way::Open)));
        Self { directory: tempfile::tempdir().unwrap(), case: String::new(), switch, reader: DuckDb::start() }
    }

    fn go(&self, way: Way) {
        self.switch.0.send_replace(way);
    }

    fn folder(&self) -> PathBuf {
        self.directory.path().join(&self.case)
    }
}

#[async_trait::async_trait]
impl Target for Lake {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.case);
        std::fs::create_dir_all(self.folder()).unwrap();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let store = objects::Config::Local(LocalOptions { path: self.folder() });
        // Small files, so that a few hundred rows make several.
        let quick = LakeConfig { commit_seconds: 0, current_seconds: 0, request_limit_ms: 8000, ..LakeConfig::new(store) };
        let config = LakeConfig { file_bytes: 10_000, ..quick };
        let inner = LocalFileSystem::new_with_prefix(self.folder()).unwrap();
        Box::new(LakeSink::over(config, Controlled::objects(Arc::new(inner), self.switch.clone())))
    }

    async fn held(&self) -> Held {
        let mut held = Held::new();
        for entity in entities() {
            let folder = self.folder().join(entity.name.as_ref());
            let rows =
                self.reader.rows(&format!("SELECT _key, _version, _document FROM delta_scan('{}/current')", folder.display()));
            for row in rows {
                let [key, version, document] = [0, 1, 2].map(|column: usize| row[column].as_str().unwrap());
                let stored = (version.parse().unwrap(), serde_json::from_str(document).unwrap());
                assert!(held.insert(format!("{}/{key}", entity.name), stored).is_none(), "{key} is there twice");
            }
            // The table of changes holds a version of a key once, unless it says another thing the second time, and its latest rows are the current ones.
            let changes = format!("delta_scan('{}/changes')", folder.display());
            let twice = self.reader.rows(&format!(
                "SELECT _key, _version, _operation, _document, count(*) FROM {changes} GROUP BY ALL HAVING count(*) > 1"
            ));
            assert!(twice.is_empty(), "{twice:?}");
            let differ = self.reader.rows(&format!(
                "WITH latest AS (SELECT * FROM {changes} QUALIFY row_number() OVER (PARTITION BY _key ORDER BY _version DESC, _written_at DESC) = 1)
                 SELECT l._key FROM (SELECT * FROM latest WHERE _operation <> 'delete') l
                 FULL JOIN delta_scan('{}/current') c ON l._key = c._key AND l._version = c._version AND l._document = c._document
                 WHERE l._key IS NULL OR c._key IS NULL",
                folder.display()
            ));
            assert!(differ.is_empty(), "{differ:?}");
        }
        held
    }

    /// The least that a table's log says.
    async fn frontier(&self) -> Option<Option<Lsn>> {
        let of_table = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder.join("_delta_log")).unwrap();
            let entries =
                entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|of| of == "json"));
            let told = entries.filter_map(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
                Some(first["commitInfo"]["tributary"]["frontier"].as_str()?.parse::<Lsn>().unwrap())
            });
            told.max()
        };
        let tables = entities()
            .into_iter()
            .flat_map(|entity| ["changes", "current"].map(|table| self.folder().join(entity.name.as_ref()).join(table)));
        Some(tables.map(of_table).min().unwrap())
    }

    async fn down(&mut self) {
        self.go(Way::Down);
    }

    async fn up(&mut self) {
        self.go(Way::Open);
    }

    async fn hold(&mut self) -> bool {
        self.go(Way::Silent);
        true
    }

    async fn throttle(&mut self, pause: Option<Duration>) -> bool {
        if pause.is_none() {
            self.go(Way::Throttled);
        }
        pause.is_none()
    }

    async fn release(&mut self) {
        self.go(Way::Open);
    }

    /// Whether it then finds the new ones is tested in `tests/credentials.rs`.
    async fn rotate(&mut self, step: Rotation) -> bool {
        self.go(if step == Rotation::Refused { Way::Refused } else { Way::Open });
        true
    }

    async fn remove(&mut self) -> bool {
        std::fs::remove_dir_all(self.folder().join("order")).unwrap();
        true
    }
}
