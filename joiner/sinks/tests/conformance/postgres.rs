//! A PostgreSQL cluster of its own; a schema for each case, written by a role that may make schemas and no more.

use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::test_support::PostgresServer;
use sinks::{EntityReader, SecretReference, UrlSource};

use super::*;

pub(super) struct Cluster {
    server: PostgresServer,
    schema: String,
    /// Another's connection that holds a table.
    holder: Option<tokio_postgres::Client>,
    secrets: tempfile::TempDir,
    /// With promoted columns and tables of children.
    rich: bool,
}

impl Cluster {
    pub(super) async fn start(rich: bool) -> Self {
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("password"), "secret").unwrap();
        let cluster = Self { server: PostgresServer::start(), schema: String::new(), holder: None, secrets, rich };
        cluster.admin("CREATE ROLE writer LOGIN PASSWORD 'secret'; GRANT CREATE ON DATABASE entities TO writer").await;
        cluster
    }

    fn config(&self) -> PostgresConfig {
        let url = UrlSource::Text(self.server.url().replace("tributary:tributary@", "writer@"));
        let password = Some(SecretReference::File(self.secrets.path().join("password")));
        let tables = if self.rich { rich::tables() } else { sinks::Tables::new() };
        PostgresConfig {
            schema: self.schema.clone(),
            url,
            password,
            write_limit_ms: write_limit_ms(),
            tables,
            ..PostgresConfig::new("")
        }
    }

    async fn admin(&self, statements: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.server.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        // An index that a sink was making when it was cut off may still be made: of two that wait for each other, the server ends one.
        let is_victim =
            |error: &tokio_postgres::Error| error.code() == Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED);
        while let Err(error) = client.batch_execute(statements).await {
            assert!(is_victim(&error), "{error}");
        }
        client
    }
}

#[async_trait::async_trait]
impl Target for Cluster {
    fn refuses_what_a_share_has_left_out(&self) -> bool {
        true
    }

    async fn fresh(&mut self, case: &str) {
        // At most 63 bytes.
        self.schema = case[..case.len().min(60)].to_owned();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let sink = Box::new(PostgresSink::new(self.config()).unwrap());
        if self.rich { Box::new(rich::Rich(sink)) } else { sink }
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

    async fn hold(&mut self) -> bool {
        let lock = format!("BEGIN; LOCK TABLE \"{}\".\"order\" IN ACCESS EXCLUSIVE MODE", self.schema);
        self.holder = Some(self.admin(&lock).await);
        true
    }

    async fn release(&mut self) {
        self.holder.take().unwrap().batch_execute("ROLLBACK").await.unwrap();
    }

    async fn rotate(&mut self, step: Rotation) -> bool {
        match step {
            Rotation::Refused => {
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'writer'";
                self.admin(&format!("ALTER ROLE writer PASSWORD 'rotated'; {end}")).await;
            }
            Rotation::Renewed => std::fs::write(self.secrets.path().join("password"), "rotated").unwrap(),
        }
        true
    }

    async fn remove(&mut self) -> bool {
        self.admin(&format!("DROP TABLE \"{}\".\"order\" CASCADE", self.schema)).await;
        true
    }
}
