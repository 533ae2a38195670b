//! The SQL Server stand-in in a process of its own, so that its processor time and memory are nobody else's, and a client for it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tiberius::{AuthMethod, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use crate::joining::child;
use crate::process::{Served, told};

pub(crate) const DATABASE: &str = "bench";
pub(crate) const PASSWORD: &str = "Tributary-1";

/// What the process is told, a word a line.
const REPLAY: &str = "replay";

/// The process: serves until its standard input ends.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let running = sqlserver::start(sqlserver::Options {
        database: DATABASE.to_owned(),
        sa_password: PASSWORD.to_owned(),
        capture_interval: Duration::from_millis(20),
        ..sqlserver::Options::default()
    })
    .await?;
    println!("port={}", running.address().port());
    let mut told = told();
    while let Some(word) = told.recv().await {
        match word.as_str() {
            REPLAY => running.replay_changes(true),
            other => bail!("{other:?} is nothing that the stand-in can be told"),
        }
    }
    Ok(running.stop().await?)
}

/// A running stand-in.
pub(crate) struct StandIn {
    process: Served,
    pub(crate) port: u16,
}

pub(crate) type Client = tiberius::Client<Compat<TcpStream>>;

impl StandIn {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let process = Served::start(&mut child(&["stand-in"])?).context("the SQL Server stand-in")?;
        let port = process.get("port")? as u16;
        Ok(Self { process, port })
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let mut config = tiberius::Config::new();
        config.host("127.0.0.1");
        config.port(self.port);
        config.database(DATABASE);
        config.authentication(AuthMethod::sql_server("sa", PASSWORD));
        config.encryption(EncryptionLevel::NotSupported);
        let stream = TcpStream::connect(config.get_addr()).await?;
        stream.set_nodelay(true)?;
        Ok(Box::pin(tiberius::Client::connect(config, stream.compat_write())).await?)
    }

    /// From here on change tables do not change, and equal questions to them get the answer of the first.
    pub(crate) fn replay(&mut self) -> anyhow::Result<()> {
        self.process.tell(REPLAY)
    }

    pub(crate) fn stop(self) -> anyhow::Result<f64> {
        self.process.stop()
    }
}

/// How importers are told to reach it.
pub(crate) fn source(port: u16) -> importer::Source {
    let login = importer::Source::sql_login("127.0.0.1", port, DATABASE, "sa", importer::Password::new(PASSWORD));
    importer::Source { encrypt: importer::Encryption::Off, ..login }
}

/// Runs a batch to its end.
pub(crate) async fn execute(client: &mut Client, sql: &str) -> anyhow::Result<()> {
    let shown = || sql.chars().take(150).collect::<String>();
    client.simple_query(sql).await.with_context(shown)?.into_results().await.with_context(shown)?;
    Ok(())
}

/// A number that a query answers.
pub(crate) async fn number(client: &mut Client, sql: &str) -> anyhow::Result<i64> {
    let row = client.simple_query(sql).await?.into_row().await?.with_context(|| format!("{sql}: no row"))?;
    Ok(i64::from(row.try_get::<i32, _>(0)?.with_context(|| format!("{sql}: NULL"))?))
}

/// Lets the tables' changes be captured from now on.
pub(crate) async fn capture(client: &mut Client, tables: &[&str]) -> anyhow::Result<()> {
    execute(client, "EXEC sys.sp_cdc_enable_db").await?;
    for table in tables {
        let sql = format!("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'{table}', @role_name = NULL");
        execute(client, &sql).await?;
    }
    Ok(())
}

/// Waits until a table's change table holds so many rows.
pub(crate) async fn captured(client: &mut Client, table: &str, rows: i64, limit: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut poll = tokio::time::interval(Duration::from_millis(200));
    loop {
        poll.tick().await;
        let now = number(client, &format!("SELECT COUNT(*) FROM cdc.dbo_{table}_CT")).await?;
        if now >= rows {
            return Ok(());
        }
        if started.elapsed() > limit {
            bail!("only {now} of {rows} changes of {table} were captured within {limit:?}");
        }
    }
}
