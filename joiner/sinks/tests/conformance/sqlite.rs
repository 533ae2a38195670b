//! A SQLite file; "down" is another process that holds its lock.

use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::{EntityReader, Query};
use sqlx::{Connection, SqliteConnection};

use super::*;

pub(super) struct File {
    directory: tempfile::TempDir,
    case: String,
    lock: Option<SqliteConnection>,
    /// With promoted columns and tables of children.
    rich: bool,
}

impl File {
    pub(super) fn new(rich: bool) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), case: String::new(), lock: None, rich }
    }

    fn config(&self) -> SqliteConfig {
        let path = self.directory.path().join(&self.case).join("entities.db");
        let tables = if self.rich { rich::tables() } else { sinks::Tables::new() };
        SqliteConfig { busy_timeout_ms: 100, tables, ..SqliteConfig::new(path) }
    }
}

#[async_trait::async_trait]
impl Target for File {
    fn refuses_what_a_share_has_left_out(&self) -> bool {
        true
    }

    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.case);
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let sink = Box::new(SqliteSink::new(self.config()));
        if self.rich { Box::new(rich::Rich(sink)) } else { sink }
    }

    async fn held(&self) -> Held {
        read_all(&SqliteReader::new(&self.config())).await
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        Some(SqliteReader::new(&self.config()).frontier().await.unwrap())
    }

    async fn down(&mut self) {
        let mut lock = SqliteConnection::connect(&format!("sqlite://{}", self.config().path.display())).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
        sqlx::query("CREATE TABLE z (z)").execute(&mut lock).await.unwrap();
        self.lock = Some(lock);
    }

    async fn up(&mut self) {
        self.lock.take().unwrap().close().await.unwrap();
    }
}

/// Everything that a reader gives, by pages that are smaller than what there is.
pub(super) async fn read_all(reader: &dyn EntityReader) -> Held {
    let mut held = Held::new();
    for entity in entities() {
        let mut query = Query { entity: entity.name.to_string(), filters: Vec::new(), after: None, limit: 90 };
        loop {
            let page = reader.list(&query).await.unwrap();
            let Some(last) = page.last() else { break };
            assert!(page.is_sorted_by(|a, b| a.key < b.key), "pages are in the order of the keys' text");
            query.after = Some(last.key.clone());
            for stored in page {
                let one = reader.get(&entity.name, &stored.key).await.unwrap().unwrap();
                assert_eq!(one, stored);
                let document = serde_json::from_str(&stored.document).unwrap();
                held.insert(format!("{}/{}", entity.name, stored.key), (stored.version, document));
            }
        }
        let count = held.keys().filter(|key| key.starts_with(&format!("{}/", entity.name))).count();
        assert_eq!(reader.count(&entity.name).await.unwrap(), count as u64);
    }
    held
}
