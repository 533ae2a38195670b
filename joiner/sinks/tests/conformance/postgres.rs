//! A PostgreSQL cluster of its own; a schema for each case.

use sinks::EntityReader;
use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::test_support::PostgresServer;

use super::*;

pub(super) struct Cluster {
    server: PostgresServer,
    schema: String,
}

impl Cluster {
    pub(super) fn start() -> Self {
        Self { server: PostgresServer::start(), schema: String::new() }
    }

    fn config(&self) -> PostgresConfig {
        PostgresConfig { schema: self.schema.clone(), ..PostgresConfig::new(self.server.url()) }
    }
}

#[async_trait::async_trait]
impl Target for Cluster {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.schema);
    }

    async fn sink(&self) -> Box<dyn Sink> {
        Box::new(PostgresSink::new(self.config()).unwrap())
    }

    async fn held(&self) -> Held {
        sqlite::read_all(&PostgresReader::new(&self.config()).unwrap()).await
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        Some(PostgresReader::new(&self.config()).unwrap().frontier().await.unwrap())
    }

    async fn down(&mut self) {
        self.server.down();
    }

    async fn up(&mut self) {
        self.server.up();
    }
}
