//! [mysql-vs-raw] and [sqlite-vs-raw]: the SQL sinks beside the best raw form of the same work on the same kind of target: rows inserted, then every other one updated, each batch a transaction, guarded by the version.
//!
//! The raw form keeps neither tombstones nor a frontier nor looks at what it is given. For MySQL it is `INSERT … ON DUPLICATE KEY UPDATE` of 500 rows a statement (`LOAD DATA` needs a setting of the server that managed
//! ones refuse), for SQLite one prepared statement a row. Both take turns in one process, batch by batch.

use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use schemas::Lsn;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use serde_json::json;
use sinks::Sink;
use sinks::mysql::{MysqlConfig, MysqlSink};
use sinks::sqlite::{SqliteConfig, SqliteSink};
use sinks::test_support::MysqlServer;
use sqlx::{AssertSqlSafe, Connection as _, MySqlConnection};

use crate::joining::{child, median_run};
use crate::process::measure;
use crate::results::Figure;

const ROWS: u32 = 50_000;
/// As delivery hands them over.
const PAGE: usize = 5000;
const STATEMENT_ROWS: usize = 500;
const RUNS: usize = 3;

#[derive(Debug, Clone, Args)]
pub(crate) struct SqlArgs {
    target: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Mysql,
    Sqlite,
}

/// Both figures, each from processes of its own.
pub(crate) fn figures() -> anyhow::Result<Vec<Figure>> {
    let figure = |name: &str, target: &str, peer: &str| -> anyhow::Result<Figure> {
        let run = median_run(RUNS, "ours", || measure(&mut child(&["sql", target])?))?;
        let rate = |key| run.get(key).map(|seconds| f64::from(ROWS) * 1.5 / seconds);
        Ok(Figure::rate(name, "documents/s", rate("ours")?, peer, Some(rate("raw")?)).memory(Some(run.peak_mb), None))
    };
    let mut figures = vec![figure("sqlite-vs-raw", "sqlite", "a prepared upsert a row")?];
    if Path::new("/usr/sbin/mariadbd").exists() {
        figures.push(figure("mysql-vs-raw", "mysql", "INSERT … ON DUPLICATE KEY UPDATE of 500 rows")?);
    }
    Ok(figures)
}

/// Writes with both; reports the seconds of each.
pub(crate) async fn run(args: &SqlArgs) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut sink, mut raw, _server): (Box<dyn Sink>, Box<dyn Raw>, Option<MysqlServer>) = match args.target {
        Kind::Sqlite => {
            let sink = SqliteSink::new(SqliteConfig::new(folder.path().join("ours.db")));
            (Box::new(sink), Box::new(RawSqlite::new(&folder.path().join("raw.db"))?), None)
        }
        Kind::Mysql => {
            let server = MysqlServer::start();
            let mut root = MySqlConnection::connect(&server.root_url()).await?;
            sqlx::raw_sql("CREATE DATABASE peer").execute(&mut root).await?;
            let raw = RawMysql::new(&server.url_of("peer")).await?;
            (Box::new(MysqlSink::new(MysqlConfig::new(server.url()))?), Box::new(raw), Some(server))
        }
    };
    let info = EntityInfo { name: "order".into(), key: vec![("id".to_owned(), SqlType::Int)], document_schema: json!({}) };
    sink.prepare(&[info]).await?;
    let all: Vec<EntityChange> = (0..ROWS).map(|n| change(n, 1)).collect();
    let updated: Vec<EntityChange> = (0..ROWS).step_by(2).map(|n| change(n, 2)).collect();
    let (mut ours, mut theirs) = (0.0, 0.0);
    for (page, frontier) in all.chunks(PAGE).map(|page| (page, lsn(1))).chain(updated.chunks(PAGE).map(|page| (page, lsn(2)))) {
        let started = Instant::now();
        ensure!(sink.write(page, Some(frontier)).await?.is_empty(), "a change was refused");
        ours += started.elapsed().as_secs_f64();
        let started = Instant::now();
        raw.write(page).await?;
        theirs += started.elapsed().as_secs_f64();
    }
    println!("ours={ours:.4} raw={theirs:.4}");
    Ok(())
}

fn lsn(number: u8) -> Lsn {
    Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, number, 0, 1])
}

/// About a kilobyte: an order with its items.
fn change(n: u32, version: u8) -> EntityChange {
    let item = |line: u32| {
        json!({"line": line, "part": n * line % 20_000, "quantity": format!("{line}.00"), "price": format!("{n}.50"),
            "shipped": "1996-06-22", "mode": "TRUCK", "comment": "quickly final deposits sleep furiously above the slyly"})
    };
    let items: Vec<_> = (1..=n % 7 + 1).map(item).collect();
    let document = json!({"id": n, "status": "O", "version": version, "total": format!("{n}.81"), "date": "1996-03-04",
        "customer": {"name": format!("Customer#{n:09}"), "address": "8o bIhRVYTXr0Ecd0CM", "segment": "HOUSEHOLD"}, "items": items});
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(n.to_string()),
        version: lsn(version),
        commit_time_ms: 1,
        document: Some(document.to_string().into()),
    }
}

/// Who does no more than has to be done.
#[async_trait]
trait Raw {
    async fn write(&mut self, page: &[EntityChange]) -> anyhow::Result<()>;
}

struct RawMysql(MySqlConnection);

impl RawMysql {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let mut connection = MySqlConnection::connect(url).await?;
        let table = "CREATE TABLE documents (`key` varbinary(2000) PRIMARY KEY, version char(22) CHARACTER SET ascii COLLATE ascii_bin, document json) ENGINE = InnoDB";
        sqlx::raw_sql(table).execute(&mut connection).await?;
        Ok(Self(connection))
    }
}

#[async_trait]
impl Raw for RawMysql {
    async fn write(&mut self, page: &[EntityChange]) -> anyhow::Result<()> {
        let mut transaction = self.0.begin().await?;
        for rows in page.chunks(STATEMENT_ROWS) {
            let statement = format!(
                "INSERT INTO documents VALUES {} ON DUPLICATE KEY UPDATE document = IF(VALUES(version) > version, VALUES(document), document), \
                 version = GREATEST(version, VALUES(version))",
                vec!["(?,?,?)"; rows.len()].join(",")
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for row in rows {
                query = query.bind(row.key.as_str().as_bytes()).bind(row.version.to_string()).bind(row.document.as_deref());
            }
            query.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }
}

struct RawSqlite(rusqlite::Connection);

impl RawSqlite {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let connection = rusqlite::Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536; \
             CREATE TABLE documents (key TEXT PRIMARY KEY NOT NULL, version TEXT NOT NULL, document TEXT NOT NULL) STRICT",
        )?;
        Ok(Self(connection))
    }
}

#[async_trait]
impl Raw for RawSqlite {
    async fn write(&mut self, page: &[EntityChange]) -> anyhow::Result<()> {
        let transaction = self.0.transaction()?;
        {
            let mut upsert = transaction.prepare_cached(
                "INSERT INTO documents VALUES (?1, ?2, ?3) ON CONFLICT (key) DO UPDATE SET version = excluded.version, document = excluded.document \
                 WHERE excluded.version > version",
            )?;
            for row in page {
                upsert.execute((row.key.as_str(), row.version.to_string(), row.document.as_deref()))?;
            }
        }
        Ok(transaction.commit()?)
    }
}
