//! Connections: one URL for both drivers, tokio-postgres for the data and sqlx for the migrations.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresConfig;
use super::fault::{by_state, classify};
use crate::iam::Iam;
use crate::sql::quote;
use crate::{Error, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that went away without a word is noticed after this long.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// How to reach the server; the password stays inside.
#[derive(Clone)]
pub(super) struct Connector {
    /// How errors name the server.
    pub(super) target: String,
    config: Config,
    root_certificates: Option<String>,
    /// Makes the password of each connection.
    iam: Option<Iam>,
}

impl Connector {
    pub(super) fn new(options: &PostgresConfig) -> Result<Self, Error> {
        let purpose = format!("sink {}", options.name);
        let url = options.url.resolve(&purpose)?;
        let (url, root_certificates) = take_root_certificates(url.reveal());
        let parsed = url.parse::<Config>();
        // The driver's own error does not quote the URL; neither may ours.
        let mut config = parsed.map_err(|error| {
            let message = format!("its url is not a PostgreSQL URL: {error}");
            Error::misconfigured(&purpose, message, "Write postgres://user@host:5432/database?sslmode=require")
        })?;
        if let Some(password) = &options.password {
            config.password(password.resolve(&purpose)?.reveal());
        }
        if options.iam_region.is_some() && config.get_ssl_mode() != SslMode::Require {
            let message = "with iam_region its password is a token that must not be seen on the way";
            return Err(Error::misconfigured(&purpose, message, "Add sslmode=require to its url"));
        }
        config.connect_timeout(CONNECT_TIMEOUT).keepalives(true).keepalives_idle(KEEPALIVE_IDLE).application_name("tributary");
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(Host::Unix(path)) => path.display().to_string(),
            None => {
                return Err(Error::misconfigured(&purpose, "its url names no host", "Write postgres://user@host:5432/database"));
            }
        };
        let target = format!(
            "PostgreSQL {host}:{}/{}",
            config.get_ports().first().unwrap_or(&5432),
            config.get_dbname().unwrap_or("postgres")
        );
        let iam = options.iam_region.as_deref().map(Iam::new);
        Ok(Self { target, config, root_certificates, iam })
    }

    /// With the password for a connection that is opened now.
    async fn authorised(&self) -> Result<Config, Error> {
        let mut config = self.config.clone();
        if let (Some(iam), Some(Host::Tcp(host))) = (&self.iam, self.config.get_hosts().first()) {
            let port = self.config.get_ports().first().copied().unwrap_or(5432);
            let token = iam.token(&self.target, host, port, self.config.get_user().unwrap_or_default()).await?;
            config.password(token.reveal());
        }
        Ok(config)
    }

    /// Opens a connection whose unqualified names are in `schema`. `statement_limit_ms` 0: none.
    pub(super) async fn connect(&self, schema: &str, statement_limit_ms: u64) -> Result<Client, Error> {
        let failed = |error| classify(&self.target, &error);
        let authorities = self.root_certificates.as_deref().map(Path::new);
        let tls = tls::client_config(&self.target, "sslrootcert", authorities)?;
        let (client, connection) = self.authorised().await?.connect(MakeRustlsConnect::new(tls)).await.map_err(failed)?;
        let target = self.target.clone();
        // The task ends with the connection, which ends when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%target, %error, "a connection ended");
            }
        });
        let setup = format!("SET search_path TO {}, pg_temp; SET statement_timeout TO {statement_limit_ms}", quote(schema));
        client.batch_execute(&setup).await.map_err(failed)?;
        Ok(client)
    }

    /// Makes the schema and brings our own tables up to date. sqlx takes an advisory lock meanwhile, so several may come at once.
    pub(super) async fn migrate(&self, schema: &str) -> Result<(), Error> {
        let failed = |error| sqlx_error(&self.target, &error);
        let options = self.sqlx_options(&self.authorised().await?);
        let connecting = PgConnection::connect_with(&options);
        let late = || Error::unavailable(&self.target, format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
        let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?.map_err(failed)?;
        // IF NOT EXISTS asks for the right to create even when there is nothing to do.
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut connection)
            .await
            .map_err(failed)?;
        if !known {
            let create = format!("CREATE SCHEMA IF NOT EXISTS {}", quote(schema));
            sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.map_err(failed)?;
        }
        let path = format!("SET search_path TO {}", quote(schema));
        sqlx::query(AssertSqlSafe(path)).execute(&mut connection).await.map_err(failed)?;
        let mut migrator = sqlx::migrate!("../../migrations/postgres");
        migrator.dangerous_set_table_name("_tributary_migrations");
        migrator.run_direct(None, &mut connection, false).await.map_err(|error| migration_error(&self.target, error))?;
        // A goodbye that gets lost does no harm.
        let _ = connection.close().await;
        Ok(())
    }

    fn sqlx_options(&self, config: &Config) -> PgConnectOptions {
        let mut options = PgConnectOptions::new_without_pgpass().application_name("tributary").statement_cache_capacity(0);
        options = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => options.host(host),
            #[cfg(unix)]
            Some(Host::Unix(path)) => options.socket(path),
            None => options,
        };
        if let Some(port) = config.get_ports().first() {
            options = options.port(*port);
        }
        if let Some(user) = config.get_user() {
            options = options.username(user);
        }
        if let Some(password) = config.get_password() {
            options = options.password(&String::from_utf8_lossy(password));
        }
        if let Some(database) = config.get_dbname() {
            options = options.database(database);
        }
        if let Some(path) = &self.root_certificates {
            options = options.ssl_root_cert(path);
        }
        options.ssl_mode(match config.get_ssl_mode() {
            SslMode::Disable => PgSslMode::Disable,
            SslMode::Require => PgSslMode::VerifyFull,
            _ => PgSslMode::Prefer,
        })
    }
}

/// The URL without `sslrootcert`, which tokio-postgres does not know, and its value.
fn take_root_certificates(url: &str) -> (String, Option<String>) {
    let Some((start, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let (found, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with("sslrootcert="));
    let path = found.first().and_then(|pair| pair.split_once('=')).map(|(_, path)| path.replace("%2F", "/").replace("%20", " "));
    let url = if rest.is_empty() { start.to_owned() } else { format!("{start}?{}", rest.join("&")) };
    (url, path)
}

fn sqlx_error(target: &str, error: &sqlx::Error) -> Error {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            by_state(target, format!("{} [SQLSTATE {code}]", database.message()), &code)
        }
        // What TLS has against a certificate comes as an error of the connection.
        sqlx::Error::Io(cause) if !cause.to_string().contains("certificate") => Error::unavailable(target, error),
        sqlx::Error::Protocol(_) => Error::unavailable(target, error),
        sqlx::Error::Tls(_) | sqlx::Error::Io(_) => {
            Error::misconfigured(target, error, "Give its authority with sslrootcert=PATH, or set sslmode as the server has it")
        }
        _ => Error::unexpected(target, error),
    }
}

fn migration_error(target: &str, error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => sqlx_error(target, &error),
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
            Error::misconfigured(target, error, "It was written by a newer Tributary: use that one, or another schema")
        }
        error => {
            Error::misconfigured(target, error, "Its bookkeeping tables are not Tributary's: give the sink a schema of its own")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use aws_credential_types::Credentials;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_certificate_file_is_taken_out_of_the_url() {
        let (url, path) = take_root_certificates("postgres://u@h/d?sslmode=require&sslrootcert=%2Fetc%2Frds.pem");
        assert_eq!((url.as_str(), path.as_deref()), ("postgres://u@h/d?sslmode=require", Some("/etc/rds.pem")));
        assert_eq!(
            take_root_certificates("postgres://u@h/d?sslrootcert=a"),
            ("postgres://u@h/d".to_owned(), Some("a".to_owned()))
        );
        assert_eq!(take_root_certificates("postgres://u@h/d"), ("postgres://u@h/d".to_owned(), None));
    }

    #[test]
    fn a_bad_url_is_refused_without_being_quoted() {
        let error =
            Connector::new(&PostgresConfig::new("postgres://u:hunter2@h/d?sslmode=maybe")).err().map(|error| error.to_string());
        assert!(error.as_deref().is_some_and(|error| !error.contains("hunter2") && error.contains("sslmode")), "{error:?}");
    }

    /// Takes connections, asks each for its password in plain text, as a server does for IAM, and refuses it. Answers what it was told.
    async fn passwords(listener: TcpListener, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..count {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_i32().await.unwrap();
            stream.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
            // AuthenticationCleartextPassword; then PasswordMessage comes.
            stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'p');
            let mut password = vec![0; stream.read_i32().await.unwrap() as usize - 4];
            stream.read_exact(&mut password).await.unwrap();
            told.push(String::from_utf8(password).unwrap().trim_end_matches('\0').to_owned());
            let refusal = b"SFATAL\0VFATAL\0C28000\0MPAM authentication failed\0\0";
            stream.write_all(b"E").await.unwrap();
            stream.write_i32(refusal.len() as i32 + 4).await.unwrap();
            stream.write_all(refusal).await.unwrap();
        }
        told
    }

    #[tokio::test]
    async fn each_connection_gets_a_token_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = PostgresConfig::new(format!("postgres://app@127.0.0.1:{port}/shop?sslmode=disable"));
        let mut connector = Connector::new(&config).unwrap();
        let credentials = |id: &str| Credentials::new(id, "secret", None, None, "test");
        let asking = tokio::spawn(passwords(listener, 3));
        for id in ["first", "second"] {
            connector.iam = Some(Iam::with("eu-central-1", credentials(id)));
            let error = connector.connect("public", 0).await.err().unwrap();
            assert!(error.class() == schemas::ErrorClass::Misconfigured && !error.to_string().contains("X-Amz"), "{error}");
        }
        connector.migrate("public").await.unwrap_err();
        let told = asking.await.unwrap();
        for (password, id) in told.iter().zip(["first", "second", "second"]) {
            let start =
                format!("127.0.0.1:{port}/?Action=connect&DBUser=app&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={id}%2F");
            assert!(password.starts_with(&start), "{password}");
        }
    }

    #[test]
    fn a_token_is_not_sent_without_tls() {
        let mut config = PostgresConfig::new("postgres://app@db.example/shop");
        config.iam_region = Some("eu-central-1".to_owned());
        let error = Connector::new(&config).err().unwrap().to_string();
        assert!(error.contains("sslmode=require"), "{error}");
        config.url = crate::UrlSource::Text("postgres://app@db.example/shop?sslmode=require".to_owned());
        assert!(Connector::new(&config).is_ok());
    }
}
