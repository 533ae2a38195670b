//! Databases that take no connection without TLS: the sinks and their readers write and read over it, and only where the certificate is one that they were told to trust, and is the server's.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::json;
use sinks::mysql::{MysqlConfig, MysqlReader, MysqlSink};
use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::test_support::{MysqlServer, PostgresServer};
use sinks::{EntityReader, Sink};

/// A certificate of its own authority, for these names.
struct Certificate {
    pem: String,
    key: String,
}

fn certificate(names: &[&str]) -> Certificate {
    let made = rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    Certificate { pem: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

/// Files of certificates to trust: the server's, and another's.
fn trusted(directory: &Path, certificate: &Certificate) -> [String; 2] {
    let other = self::certificate(&["127.0.0.1"]);
    [("server", certificate), ("other", &other)].map(|(name, certificate)| {
        let path = directory.join(name).with_extension("pem");
        std::fs::write(&path, &certificate.pem).unwrap();
        path.display().to_string()
    })
}

fn order() -> EntityInfo {
    let key = vec![("id".to_owned(), SqlType::Int)];
    EntityInfo { name: "order".into(), key, document_schema: json!({"type": "object"}) }
}

async fn is_written_and_read(sink: &mut dyn Sink, reader: &dyn EntityReader) {
    let change = EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text("1"),
        version: Lsn::MAX,
        commit_time_ms: 0,
        document: Some("{}".into()),
    };
    sink.check(&[order()]).await.unwrap();
    sink.prepare(&[order()]).await.unwrap();
    assert_eq!(sink.write(&[change], Some(Lsn::MAX)).await.unwrap(), []);
    assert_eq!((reader.count("order").await.unwrap(), reader.frontier().await.unwrap()), (1, Some(Lsn::MAX)));
}

async fn is_refused(sink: &mut dyn Sink, because: &str) {
    let error = sink.prepare(&[order()]).await.unwrap_err();
    assert!(error.class() == ErrorClass::Misconfigured && error.to_string().contains(because), "{because}: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_written_and_read_over_tls() {
    let (server, directory) = (PostgresServer::start(), tempfile::tempdir().unwrap());
    let certificate = certificate(&["127.0.0.1"]);
    server.use_tls(&certificate.pem, &certificate.key);
    let [trusted, other] = trusted(directory.path(), &certificate);
    let with = |options: &str| PostgresConfig::new(server.url().replace("sslmode=disable", options));
    let config = with(&format!("sslmode=require&sslrootcert={trusted}"));
    let reader = PostgresReader::new(&config).unwrap();
    is_written_and_read(&mut PostgresSink::new(config.clone()).unwrap(), &reader).await;
    is_refused(&mut PostgresSink::new(with(&format!("sslmode=require&sslrootcert={other}"))).unwrap(), "certificate").await;
    is_refused(&mut PostgresSink::new(with("sslmode=require")).unwrap(), "certificate").await;
    is_refused(&mut PostgresSink::new(with("sslmode=disable")).unwrap(), "no pg_hba.conf entry").await;

    let anothers = self::certificate(&["db.example"]);
    server.use_tls(&anothers.pem, &anothers.key);
    std::fs::write(&trusted, &anothers.pem).unwrap();
    is_refused(&mut PostgresSink::new(config).unwrap(), "certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_written_and_read_over_tls() {
    let (server, directory) = (MysqlServer::start(), tempfile::tempdir().unwrap());
    let certificate = certificate(&["127.0.0.1"]);
    server.use_tls(&certificate.pem, &certificate.key);
    let [trusted, other] = trusted(directory.path(), &certificate);
    let with = |options: &str| MysqlConfig::new(format!("{}?{options}", server.url()));
    let config = with(&format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={trusted}"));
    let reader = MysqlReader::new(&config).unwrap();
    is_written_and_read(&mut MysqlSink::new(config.clone()).unwrap(), &reader).await;
    is_refused(&mut MysqlSink::new(with(&format!("ssl-mode=VERIFY_IDENTITY&ssl-ca={other}"))).unwrap(), "certificate").await;
    is_refused(&mut MysqlSink::new(with("ssl-mode=DISABLED")).unwrap(), "denied").await;

    let anothers = self::certificate(&["db.example"]);
    server.use_tls(&anothers.pem, &anothers.key);
    std::fs::write(&trusted, &anothers.pem).unwrap();
    is_refused(&mut MysqlSink::new(config).unwrap(), "certificate").await;
}
