//! Connections: what is trusted, and what is read anew.

use source::{Client, Encryption, Error, Password, Source};
use sqlserver::{Certificate, Options, Running};

/// A stand-in whose certificate is for `name` alone, and the certificate.
async fn encrypted(name: &str) -> (Running, Source, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let chain = made.cert.pem();
    let certificate = Certificate::Pem { chain: chain.clone(), key: made.signing_key.serialize_pem() };
    let options = Options { certificate, encryption: sqlserver::Encryption::Required, ..Options::default() };
    let password = Password::new(options.sa_password.clone());
    let server = sqlserver::start(options).await.unwrap();
    let source = Source::sql_login("localhost", server.address().port(), "shop", "sa", password);
    (server, source, chain)
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_and_name() {
    let (server, source, chain) = encrypted("localhost").await;
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("authority");
    for encrypt in [Encryption::On, Encryption::Strict] {
        let source = Source { encrypt, ca_file: Some(authority.clone()), ..source.clone() };
        let missing = Client::connect(&source).await.err().unwrap();
        assert!(matches!(missing, Error::Settings(_)) && missing.to_string().contains("authority"), "{missing}");
        // It is read at each connection.
        std::fs::write(&authority, &chain).unwrap();
        Client::connect(&source).await.unwrap();
        std::fs::remove_file(&authority).unwrap();
        let untrusted = Client::connect(&Source { ca_file: None, ..source }).await.err().unwrap();
        assert!(matches!(untrusted, Error::Tls { .. }), "{untrusted}");
    }
    let trusting = Source { trust_certificate: true, ..source.clone() };
    Client::connect(&trusting).await.unwrap();
    let refused = Client::connect(&Source { encrypt: Encryption::Off, ..source }).await.err().unwrap();
    assert!(matches!(refused, Error::Tls { .. } | Error::Unreachable { .. } | Error::Server { .. }), "{refused}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_certificate_may_carry_another_name() {
    let (server, source, chain) = encrypted("sql.example.com").await;
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, chain).unwrap();
    let source = Source { ca_file: Some(authority), ..source };
    let other = Client::connect(&source).await.err().unwrap();
    assert!(matches!(other, Error::Tls { .. }), "{other}");
    Client::connect(&Source { host_in_certificate: Some("sql.example.com".into()), ..source }).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_renewed_password_logs_in_without_a_restart() {
    let options = Options::default();
    let password = options.sa_password.clone();
    let server = sqlserver::start(options).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "of yesterday").unwrap();
    let login = Source::sql_login("127.0.0.1", server.address().port(), "shop", "sa", Password::default());
    let source = Source { encrypt: Encryption::Off, password_file: Some(file.clone()), ..login };
    let refused = Client::connect(&source).await.err().unwrap();
    assert!(matches!(refused, Error::Login { .. }), "{refused}");
    std::fs::write(&file, password + "\n").unwrap();
    let at_once = Source { multi_subnet_failover: true, read_only: true, host: "localhost".into(), ..source };
    let mut client = Client::connect(&at_once).await.unwrap();
    let name = client.rows("asking for our name", "SELECT APP_NAME() AS name", vec![]).await.unwrap();
    assert_eq!(name[0].get::<&str, _>(0), Some("tributary"));
    server.stop().await.unwrap();
}
