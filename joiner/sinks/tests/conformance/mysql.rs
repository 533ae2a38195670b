//! A MariaDB server of its own; a database for each case. Not tested against MySQL itself, nor Aurora.

use sinks::EntityReader;
use sinks::mysql::{MysqlConfig, MysqlReader, MysqlSink};
use sinks::test_support::MysqlServer;
use sinks::{SecretReference, UrlSource};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};

use super::*;

pub(super) struct Server {
    server: MysqlServer,
    database: String,
    /// Another's connection that holds a table.
    holder: Option<MySqlConnection>,
    secrets: tempfile::TempDir,
    /// With promoted columns and tables of children.
    rich: bool,
}

impl Server {
    pub(super) fn start(rich: bool) -> Self {
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("password"), "tributary").unwrap();
        Self { server: MysqlServer::start(), database: String::new(), holder: None, secrets, rich }
    }

    fn config(&self) -> MysqlConfig {
        let url = self.server.url_of(&self.database).replace(":tributary@", "@");
        let password = SecretReference::File(self.secrets.path().join("password"));
        let tables = if self.rich { rich::tables() } else { sinks::Tables::new() };
        MysqlConfig {
            url: UrlSource::Text(url),
            password: Some(password),
            write_limit_ms: write_limit_ms(),
            tables,
            ..MysqlConfig::new("")
        }
    }

    fn reader(&self) -> MysqlReader {
        MysqlReader::new(&self.config()).unwrap()
    }

    async fn admin(&self, statements: &[&str]) -> MySqlConnection {
        let mut connection = MySqlConnection::connect(&self.server.root_url()).await.unwrap();
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(*statement)).execute(&mut connection).await.unwrap();
        }
        connection
    }
}

#[async_trait::async_trait]
impl Target for Server {
    fn refuses_what_a_share_has_left_out(&self) -> bool {
        true
    }

    async fn fresh(&mut self, case: &str) {
        // At most 64 characters.
        self.database = case[..case.len().min(60)].to_owned();
        self.admin(&[&format!("CREATE DATABASE `{}`", self.database)]).await;
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let sink = Box::new(MysqlSink::new(self.config()).unwrap());
        if self.rich { Box::new(rich::Rich(sink)) } else { sink }
    }

    async fn held(&self) -> Held {
        sqlite::read_all(&self.reader()).await
    }

    async fn frontier(&self) -> Option<Option<Lsn>> {
        Some(self.reader().frontier().await.unwrap())
    }

    async fn down(&mut self) {
        self.server.down();
    }

    async fn up(&mut self) {
        self.server.up();
    }

    async fn hold(&mut self) -> bool {
        self.holder = Some(self.admin(&[&format!("LOCK TABLES `{}`.`order` WRITE", self.database)]).await);
        true
    }

    async fn release(&mut self) {
        self.holder.take().unwrap().close().await.unwrap();
    }

    async fn rotate(&mut self, step: Rotation) -> bool {
        match step {
            Rotation::Refused => {
                self.admin(&["ALTER USER 'tributary'@'%' IDENTIFIED BY 'rotated'", "KILL USER 'tributary'"]).await;
            }
            Rotation::Renewed => std::fs::write(self.secrets.path().join("password"), "rotated").unwrap(),
        }
        true
    }

    async fn remove(&mut self) -> bool {
        // Tables of children refer to it.
        let drop = format!("DROP TABLE `{}`.`order`", self.database);
        self.admin(&["SET foreign_key_checks = 0", &drop]).await;
        true
    }
}
