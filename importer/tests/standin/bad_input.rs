//! What goes wrong at the start: each with its own error, its remedy, and nothing published.

use importer::check::{Level, check};
use importer::{Error, Password, SourceFailure, TableFilter};
use schemas::ErrorClass;

use crate::support::World;
use crate::workload::{SHOP, fill};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_a_missing_database_an_unreachable_host() {
    let mut world = World::start(SHOP).await;
    let right = world.config.source.clone();
    world.config.source.password = Password::new("hunter2");
    let error = world.import_error().await;
    assert!(matches!(error, Error::Source(SourceFailure::Login { code: 18456, .. })), "{error:?}");
    assert!(
        error.to_string().contains("refuses the login of sa") && !format!("{error} {error:?}").contains("hunter2"),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::Misconfigured);

    world.config.source = right.clone();
    world.config.source.database = "warehouse".into();
    let error = world.import_error().await;
    assert!(
        matches!(error, Error::Source(SourceFailure::Database { .. })) && error.to_string().contains("CREATE USER"),
        "{error}"
    );

    world.config.source = right;
    // A port that was free a moment ago, on this machine alone.
    world.config.source.port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = world.import_error().await;
    assert!(
        matches!(error, Error::Source(SourceFailure::Unreachable { .. })) && error.to_string().contains("Check host, port"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_that_is_not_enabled() {
    let mut world = World::start(
        "CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY);\nGO\nCREATE TABLE dbo.other (id int NOT NULL PRIMARY KEY);",
    )
    .await;
    let error = world.import_error().await;
    assert!(
        matches!(error, Error::Source(SourceFailure::CdcDisabled { .. }))
            && error.to_string().contains("EXEC sys.sp_cdc_enable_db;"),
        "{error}"
    );
    world.sql("EXEC sys.sp_cdc_enable_db;").await;
    let error = world.import_error().await;
    assert!(matches!(error, Error::Source(SourceFailure::NothingCaptured { .. })), "{error}");
    world.sql("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'other', @role_name = NULL;").await;
    world.config.tables = TableFilter { include: vec!["dbo.orders".into()], exclude: vec![] };
    let error = world.import_error().await;
    assert!(matches!(error, Error::Source(SourceFailure::NotCaptured { .. })), "{error}");
    assert!(
        error
            .to_string()
            .contains("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;"),
        "{error}"
    );
    world.config.tables = TableFilter { include: vec!["dbo.ordres".into()], exclude: vec![] };
    let error = world.import_error().await;
    assert!(
        matches!(error, Error::Source(SourceFailure::NoSuchTable { .. })) && error.to_string().contains("dbo.other"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_without_permission() {
    let mut world = World::standin(SHOP).await;
    world.sql("CREATE LOGIN reader WITH PASSWORD = 'Reader!1';\nGO\nCREATE USER reader FOR LOGIN reader;").await;
    world.config.source.user = "reader".into();
    world.config.source.password = Password::new("Reader!1");
    let error = world.import_error().await;
    assert!(
        matches!(error, Error::Source(SourceFailure::Permission { .. }))
            && error.to_string().contains("GRANT SELECT ON SCHEMA::cdc"),
        "{error:?}"
    );
    assert_eq!(error.class(), ErrorClass::Misconfigured);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_is_well_and_what_is_not() {
    let world = World::standin(&(SHOP.to_owned() + &fill(1))).await;
    world.captured().await;
    let all = TableFilter::default();
    let items = check(&world.config.source, &all).await;
    let problems: Vec<_> = items.iter().filter(|item| item.level == Level::Problem).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    for name in ["connection", "version", "change data capture", "table dbo.orders", "SQL Server Agent", "capture job", "capture"]
    {
        assert!(items.iter().any(|item| item.name == name && item.level == Level::Ok), "{name}: {items:#?}");
    }

    world.server().set_agent_running(false);
    let wrong = TableFilter { include: vec!["dbo.orders".into(), "dbo.ordres".into()], exclude: vec![] };
    let items = check(&world.config.source, &wrong).await;
    let problem = |name: &str| items.iter().find(|item| item.name == name && item.level == Level::Problem);
    assert!(problem("SQL Server Agent").is_some_and(|item| item.remedy.is_some()), "{items:#?}");
    assert!(problem("table dbo.ordres").is_some(), "{items:#?}");

    let mut source = world.config.source.clone();
    source.password = Password::new("wrong");
    let items = check(&source, &all).await;
    assert!(items.len() == 1 && items[0].level == Level::Problem && items[0].detail.contains("refuses the login"), "{items:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_encrypted_as_asked_for() {
    let mut world = World::start(&(SHOP.to_owned() + &fill(1))).await;
    for encrypt in [importer::Encryption::On, importer::Encryption::Strict] {
        world.config.source.encrypt = encrypt;
        world.config.source.trust_certificate = false;
        let error = world.import_error().await;
        assert!(
            matches!(error, Error::Source(SourceFailure::Tls { .. })) && error.to_string().contains("trust_certificate: true"),
            "{error:?}"
        );
        world.config.source.trust_certificate = true;
        world.import_all().await;
    }
    assert_eq!(world.events().await.len(), 3);
}
