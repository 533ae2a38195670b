//! An ordinary SQL Server client for the demo's own statements.

use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

pub(crate) type Client = tiberius::Client<Compat<TcpStream>>;

/// Where the stand-in listens.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) password: String,
    pub(crate) database: String,
}

impl Target {
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = tiberius::Config::new();
        config.host(&self.host);
        config.port(self.port);
        config.database(&self.database);
        config.authentication(tiberius::AuthMethod::sql_server("sa", &self.password));
        config.encryption(tiberius::EncryptionLevel::NotSupported);
        let stream = TcpStream::connect(config.get_addr()).await?;
        stream.set_nodelay(true)?;
        // The driver's login is a large future.
        Ok(Box::pin(tiberius::Client::connect(config, stream.compat_write())).await?)
    }
}

/// Runs a batch to its end; its results are of no interest.
pub(crate) async fn execute(client: &mut Client, sql: &str) -> anyhow::Result<()> {
    client.simple_query(sql).await?.into_results().await?;
    Ok(())
}
