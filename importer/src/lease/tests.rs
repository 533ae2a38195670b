//! One suite for all stores: what a lease's holder and its rivals may count on.
#![allow(clippy::unwrap_used)]

use sinks::test_support::{Ministack, PostgresServer};

use super::dynamodb::DynamoStore;
use super::file::FileStore;
use super::postgres::PostgresStore;
use source::Password;

use super::*;

/// `first` and `second` are two importers' views of one store.
async fn conforms(first: &dyn Store, second: &dyn Store) {
    assert_eq!(first.load().await.unwrap(), None);
    let epoch = first.acquire().await.unwrap().unwrap();
    assert!(epoch > 1_600_000_000_000, "{epoch}");
    assert_eq!(second.acquire().await.unwrap(), None, "while it is held nobody else has it");
    first.renew(epoch).await.unwrap();
    first.save(epoch, b"progress").await.unwrap();
    assert_eq!(second.load().await.unwrap().unwrap(), b"progress");
    first.release(epoch).await.unwrap();
    let next = second.acquire().await.unwrap().unwrap();
    assert!(next > epoch);
    // The one before can neither go on nor take anything back.
    assert!(matches!(first.renew(epoch).await, Err(Error::LeaseLost { .. })));
    assert!(matches!(first.save(epoch, b"older").await, Err(Error::LeaseLost { .. })));
    first.release(epoch).await.unwrap();
    assert_eq!(first.acquire().await.unwrap(), None);
    assert_eq!(second.load().await.unwrap().unwrap(), b"progress");
    second.save(next, b"newer").await.unwrap();
    assert_eq!(first.load().await.unwrap().unwrap(), b"newer");
}

#[tokio::test]
async fn the_file_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let open = || FileStore::open(directory.path()).unwrap();
    conforms(&open(), &open()).await;
}

#[tokio::test]
async fn postgres_conforms() {
    let server = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    let url = Password::new(server.url());
    let open = |source: &'static str| PostgresStore::open(&url, source);
    conforms(&open("a").await.unwrap(), &open("a").await.unwrap()).await;
    // A holder that shows no sign of life is replaced after a term, by the database's clock, and not before.
    let (first, second) = (open("b").await.unwrap(), open("b").await.unwrap());
    let epoch = first.acquire().await.unwrap().unwrap();
    let database = sqlx::PgPool::connect(&server.url()).await.unwrap();
    let wait = async |by: Duration| {
        let wait =
            sqlx::query("UPDATE tributary_importers SET expires = expires - $1 * interval '1 millisecond' WHERE source = 'b'");
        wait.bind(i64::try_from(by.as_millis()).unwrap()).execute(&database).await.unwrap();
    };
    first.renew(epoch).await.unwrap();
    let left: f64 =
        sqlx::query_scalar("SELECT extract(epoch FROM expires - now())::float8 FROM tributary_importers WHERE source = 'b'")
            .fetch_one(&database)
            .await
            .unwrap();
    assert!(left <= TERM.as_secs_f64(), "{left}");
    assert_eq!(second.acquire().await.unwrap(), None);
    wait(TERM).await;
    let next = second.acquire().await.unwrap().unwrap();
    assert!(next > epoch && matches!(first.save(epoch, b"late").await, Err(Error::LeaseLost { .. })));
    let wrong = Password::new(server.url().replace("tributary:tributary@", "nobody:secret@"));
    let error = PostgresStore::open(&wrong, "a").await.err().unwrap();
    assert!(error.class() == ErrorClass::Misconfigured && !error.to_string().contains("secret"), "{error}");
}

#[tokio::test]
async fn dynamodb_conforms() {
    let aws = tokio::task::spawn_blocking(Ministack::start).await.unwrap();
    let create = serde_json::json!({
        "TableName": "leases", "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": [{"AttributeName": "source", "KeyType": "HASH"}],
        "AttributeDefinitions": [{"AttributeName": "source", "AttributeType": "S"}],
    });
    aws.call("DynamoDB_20120810.CreateTable", &create).await;
    let endpoint = aws.endpoint_url();
    let config = sinks::test_support::sdk_config(&endpoint).await;
    let open = |source: &'static str| DynamoStore::over(aws_sdk_dynamodb::Client::new(&config), "leases", source);
    conforms(&open("a"), &open("a")).await;
    // A holder that shows no sign of life is replaced after a term, by the watcher's clock, and not before.
    let (first, second, seen) = (open("b"), open("b"), Instant::now());
    let epoch = first.acquire().await.unwrap().unwrap();
    assert_eq!(second.acquire_at(seen).await.unwrap(), None);
    first.renew(epoch).await.unwrap();
    assert_eq!(second.acquire_at(seen + TERM).await.unwrap(), None, "it lives");
    assert_eq!(second.acquire_at(seen + TERM * 2 - Duration::from_millis(1)).await.unwrap(), None);
    let next = second.acquire_at(seen + TERM * 2).await.unwrap().unwrap();
    assert!(next > epoch && matches!(first.save(epoch, b"late").await, Err(Error::LeaseLost { .. })));
    let missing = DynamoStore::over(aws_sdk_dynamodb::Client::new(&config), "no such table", "a");
    assert_eq!(missing.acquire().await.unwrap_err().class(), ErrorClass::Misconfigured);
}
