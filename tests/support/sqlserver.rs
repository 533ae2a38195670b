//! The stand-in as a process of its own, and an ordinary client of it.

use std::net::SocketAddr;

use tiberius::{AuthMethod, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use super::process::Process;

pub const PASSWORD: &str = "Tributary-1";

pub struct SqlServer {
    pub process: Process,
    pub address: SocketAddr,
    pub database: String,
}

pub type Client = tiberius::Client<Compat<TcpStream>>;

impl SqlServer {
    /// In memory, on a free port, capturing every 20 ms.
    pub fn start(database: &str) -> Self {
        let process = Process::start(&[
            "sqlserver",
            "--listen",
            "127.0.0.1:0",
            "--database",
            database,
            "--sa-password",
            PASSWORD,
            "--capture-interval",
            "20ms",
        ]);
        let address = process.line_after("listening on ").trim().parse().unwrap();
        Self { process, address, database: database.to_owned() }
    }

    /// The source URL for a configuration; the password is apart from it.
    pub fn url(&self) -> String {
        format!("sqlserver://sa@{}/{}?encrypt=off", self.address, self.database)
    }

    pub async fn client(&self) -> Client {
        let mut config = tiberius::Config::new();
        config.host("127.0.0.1");
        config.port(self.address.port());
        config.database(&self.database);
        config.authentication(AuthMethod::sql_server("sa", PASSWORD));
        config.encryption(EncryptionLevel::NotSupported);
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Box::pin(Client::connect(config, stream.compat_write())).await.unwrap()
    }
}

/// Runs a batch to its end.
pub async fn execute(client: &mut Client, sql: &str) {
    let shown = sql.chars().take(300).collect::<String>();
    let stream = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error}: {shown}"));
    stream.into_results().await.unwrap_or_else(|error| panic!("{error}: {shown}"));
}

/// Switches change data capture on for the database and the tables.
pub async fn capture(client: &mut Client, tables: &[&str]) {
    execute(client, "EXEC sys.sp_cdc_enable_db").await;
    for table in tables {
        execute(
            client,
            &format!("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'{table}', @role_name = NULL, @supports_net_changes = 0"),
        )
        .await;
    }
}
