//! A server that was there before, named by `TRIBUTARY_TEST_MSSQL_URL` (`sqlserver://login:password@host:port/master?options`), for the tests that ask for no more than any SQL Server has. Each test has a
//! database of its own there, which is dropped at its end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use importer::{Activity, Encryption, Source, SourceSettings, SourceUrl};
use sqlserver::Value;
use tiberius::{AuthMethod, ColumnData, EncryptionLevel};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use crate::support::World;
use crate::workload::{SHOP, assert_equal, fill};

const URL: &str = "TRIBUTARY_TEST_MSSQL_URL";

/// Longer than anything takes on a slow machine: a failing test ends by it, a passing one never waits for it. A real capture job scans every five seconds.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(if std::env::var_os(URL).is_some() { 300 } else { 60 })
}

type Client = tiberius::Client<Compat<TcpStream>>;
type Results = Vec<Vec<Vec<Value>>>;

pub(crate) struct Given {
    source: Source,
    address: SocketAddr,
    client: Mutex<Client>,
}

impl Given {
    /// The server that the environment names, with a new database.
    pub(crate) async fn open() -> Option<Self> {
        Some(Self::at(&std::env::var(URL).ok()?).await)
    }

    async fn at(url: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let settings = SourceSettings { url: Some(SourceUrl::new(url)), ..SourceSettings::default() };
        let master = Source::from_settings(&settings).unwrap_or_else(|error| panic!("{URL}: {error}"));
        let resolved = tokio::net::lookup_host((master.host.as_str(), master.port)).await;
        let address = resolved.unwrap_or_else(|error| panic!("{URL}: {}: {error}", master.host)).next().unwrap();
        let database = format!("tributary_importer_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&mut connect(&master, address).await, &format!("CREATE DATABASE [{database}]")).await;
        let source = Source { database, ..master };
        let client = Mutex::new(connect(&source, address).await);
        Self { source, address, client }
    }

    pub(crate) fn source(&self) -> Source {
        self.source.clone()
    }

    /// Runs a script; batches end at lines of GO.
    pub(crate) async fn execute(&self, script: &str) -> Results {
        let mut client = self.client.lock().await;
        let mut results = Results::new();
        for batch in script.split("\nGO\n").map(|batch| batch.trim_end_matches("\nGO")).filter(|batch| !batch.trim().is_empty()) {
            results.extend(run(&mut client, batch).await);
        }
        results
    }

    /// Waits until everything committed so far has been captured: until two scans that ended after now have found nothing.
    pub(crate) async fn captured(&self) {
        const SCAN: &str = "SELECT TOP (1) CONVERT(nvarchar(30), end_time, 126) FROM sys.dm_cdc_log_scan_sessions \
             WHERE session_id > 0 AND empty_scan_count > 0 AND end_time > CONVERT(datetime, N'@now', 126) ORDER BY end_time DESC";
        let text = |results: Results| match results.first().and_then(|rows| rows.first()).and_then(|row| row.first()) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let now = text(self.execute("SELECT CONVERT(nvarchar(30), GETDATE(), 126)").await).unwrap();
        let (mut first, deadline) = (None, Instant::now() + patience());
        loop {
            assert!(Instant::now() < deadline, "capture stands still: does SQL Server Agent run?");
            match (text(self.execute(&SCAN.replace("@now", &now)).await), &first) {
                (Some(scan), Some(known)) if scan != *known => return,
                (scan @ Some(_), None) => first = scan,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Given {
    /// Leaves the server as it was.
    fn drop(&mut self) {
        let (source, address) = (self.source.clone(), self.address);
        let name = source.database.clone();
        let master = Source { database: "master".into(), ..source };
        // A runtime of its own: this may run within the test's.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = connect(&master, address).await;
                run(&mut client, &format!("ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE")).await;
                run(&mut client, &format!("DROP DATABASE [{name}]")).await;
            });
        });
        if dropping.join().is_err() {
            eprintln!("the database {} could not be dropped", self.source.database);
        }
    }
}

async fn connect(source: &Source, address: SocketAddr) -> Client {
    let mut config = tiberius::Config::new();
    config.host(address.ip());
    config.port(address.port());
    config.database(&source.database);
    config.authentication(AuthMethod::sql_server(&source.user, source.password.reveal()));
    let encrypted = source.encrypt != Encryption::Off;
    config.encryption(if encrypted { EncryptionLevel::Required } else { EncryptionLevel::NotSupported });
    // Whom it talks to is not what a test's own client is about.
    config.trust_cert();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Box::pin(Client::connect(config, stream.compat_write())).await.unwrap()
}

async fn run(client: &mut Client, batch: &str) -> Results {
    let shown = batch.chars().take(300).collect::<String>();
    let stream = client.simple_query(batch).await.unwrap_or_else(|error| panic!("{error}: {shown}"));
    let results = stream.into_results().await.unwrap_or_else(|error| panic!("{error}: {shown}"));
    let rows = |rows: Vec<tiberius::Row>| rows.into_iter().map(|row| row.into_iter().map(value).collect()).collect();
    results.into_iter().map(rows).collect()
}

/// The kinds of values that tests ask for.
fn value(data: ColumnData<'static>) -> Value {
    let text = |text: Option<std::borrow::Cow<'static, str>>| text.map_or(Value::Null, |text| Value::Text(text.into_owned()));
    match data {
        ColumnData::U8(value) => value.map_or(Value::Null, |value| Value::Int(value.into())),
        ColumnData::I16(value) => value.map_or(Value::Null, |value| Value::Int(value.into())),
        ColumnData::I32(value) => value.map_or(Value::Null, |value| Value::Int(value.into())),
        ColumnData::I64(value) => value.map_or(Value::Null, Value::Int),
        ColumnData::String(value) => text(value),
        ColumnData::Binary(value) => value.map_or(Value::Null, |value| Value::Bytes(value.into_owned())),
        ColumnData::Numeric(value) => {
            value.map_or(Value::Null, |value| Value::Decimal { mantissa: value.value(), scale: value.scale() })
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_there_before_serves_as_well_and_is_left_as_it_was() {
    let options = sqlserver::Options { capture_interval: Duration::from_millis(20), ..sqlserver::Options::default() };
    let url = |address: SocketAddr| format!("sqlserver://sa:{}@{address}/master?encrypt=off", options.sa_password);
    let server = sqlserver::start(options.clone()).await.unwrap();
    let databases = || server.execute("SELECT COUNT(*) FROM sys.databases").unwrap().pop().unwrap().rows;
    let before = databases();
    let world = World::given(Given::at(&url(server.address())).await, &(SHOP.to_owned() + &fill(3))).await;
    assert_ne!(databases(), before);
    let import = world.import();
    import.until("the tail", |status| status.activity == Activity::Tailing).await;
    world.sql("UPDATE dbo.orders SET total = 7 WHERE id = 1;\nGO\nDELETE FROM dbo.items WHERE order_id = 2;").await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    assert_equal(&world).await;
    drop(world);
    assert_eq!(databases(), before);
    server.stop().await.unwrap();
}
