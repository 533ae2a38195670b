//! The SQL Server of a test, and an ordinary client of it: the stand-in as a process of its own, or within the test, or, for tests that ask for no more than any server has, the one that
//! `TRIBUTARY_TEST_MSSQL_URL` names (`sqlserver://login:password@host:port/master?options`). There, each test has a database of its own, which is dropped at its end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use tiberius::{AuthMethod, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use super::process::Process;

/// Of the stand-in's login sa.
pub const PASSWORD: &str = "Tributary-1";
const GIVEN: &str = "TRIBUTARY_TEST_MSSQL_URL";

pub struct SqlServer {
    /// None: it was there before, or is within the test.
    pub process: Option<Process>,
    pub address: SocketAddr,
    pub database: String,
    pub password: String,
    /// Of the URL, from its question mark on.
    options: String,
    login: Login,
    /// The database is the test's, on a server that was there before.
    given: bool,
}

/// How a test's own client comes in.
#[derive(Clone)]
struct Login {
    address: SocketAddr,
    user: String,
    password: String,
    encrypted: bool,
}

pub type Client = tiberius::Client<Compat<TcpStream>>;

impl SqlServer {
    /// The stand-in, in memory, on a free port, capturing every 20 ms.
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
        let address: SocketAddr = process.line_after("listening on ").trim().parse().unwrap();
        let mut server = Self::stand_in(address, database);
        server.process = Some(process);
        server
    }

    /// The stand-in within the test, which does to it what happens to servers.
    #[cfg(feature = "demo")]
    pub async fn within(database: &str) -> (Self, ::sqlserver::Running) {
        let options = ::sqlserver::Options {
            database: database.to_owned(),
            sa_password: PASSWORD.to_owned(),
            capture_interval: std::time::Duration::from_millis(20),
            ..::sqlserver::Options::default()
        };
        let running = ::sqlserver::start(options).await.unwrap();
        (Self::stand_in(running.address(), database), running)
    }

    fn stand_in(address: SocketAddr, database: &str) -> Self {
        Self {
            process: None,
            address,
            database: database.to_owned(),
            password: PASSWORD.to_owned(),
            options: "?encrypt=off".to_owned(),
            login: Login { address, user: "sa".to_owned(), password: PASSWORD.to_owned(), encrypted: false },
            given: false,
        }
    }

    /// The server that the environment names, with a new database; else the stand-in.
    pub async fn given_or_start(database: &str) -> Self {
        let Ok(url) = std::env::var(GIVEN) else { return Self::start(database) };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let settings =
            importer::SourceSettings { url: Some(importer::SourceUrl::new(&url)), ..importer::SourceSettings::default() };
        let source = importer::Source::from_settings(&settings).unwrap_or_else(|error| panic!("{GIVEN}: {error}"));
        let resolved = tokio::net::lookup_host((source.host.as_str(), source.port)).await;
        let address = resolved.unwrap_or_else(|error| panic!("{GIVEN}: {}: {error}", source.host)).next().unwrap();
        let server = Self {
            process: None,
            address,
            database: format!("tributary_{database}_{}_{number}", std::process::id()),
            password: source.password.reveal().to_owned(),
            options: url.split_once('?').map(|(_, options)| format!("?{options}")).unwrap_or_default(),
            login: Login {
                address,
                user: source.user.clone(),
                password: source.password.reveal().to_owned(),
                encrypted: source.encrypt != importer::Encryption::Off,
            },
            given: true,
        };
        let mut client = server.login.connect("master").await;
        execute(&mut client, &format!("CREATE DATABASE [{}]", server.database)).await;
        server
    }

    /// The source URL for a configuration; the password is apart from it.
    pub fn url(&self) -> String {
        format!("sqlserver://{}@{}/{}{}", self.login.user, self.address, self.database, self.options)
    }

    pub async fn client(&self) -> Client {
        self.login.connect(&self.database).await
    }
}

impl Login {
    async fn connect(&self, database: &str) -> Client {
        let mut config = tiberius::Config::new();
        config.host(self.address.ip());
        config.port(self.address.port());
        config.database(database);
        config.authentication(AuthMethod::sql_server(&self.user, &self.password));
        config.encryption(if self.encrypted { EncryptionLevel::Required } else { EncryptionLevel::NotSupported });
        // Whom it talks to is not what a test's own client is about.
        config.trust_cert();
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Box::pin(Client::connect(config, stream.compat_write())).await.unwrap()
    }
}

impl Drop for SqlServer {
    /// Leaves a server that was there before as it was.
    fn drop(&mut self) {
        if !self.given {
            return;
        }
        let (login, name) = (self.login.clone(), self.database.clone());
        // A runtime of its own: this may run within the test's.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = login.connect("master").await;
                execute(&mut client, &format!("ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE")).await;
                execute(&mut client, &format!("DROP DATABASE [{name}]")).await;
            });
        });
        if dropping.join().is_err() {
            eprintln!("the database {} could not be dropped", self.database);
        }
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
