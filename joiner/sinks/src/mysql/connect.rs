//! Connections to MySQL, and its migrations.

use std::time::Duration;

use sqlx::Connection;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};

use super::MysqlConfig;
use super::fault::classify;
use crate::Error;
use crate::iam::Iam;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements have few shapes: entities times sizes.
const STATEMENT_CACHE: usize = 512;

/// How to reach the server; the password stays inside.
#[derive(Clone)]
pub(super) struct Connector {
    /// How errors name the server.
    pub(super) target: String,
    options: MySqlConnectOptions,
    /// Makes the password of each connection.
    iam: Option<Iam>,
}

impl Connector {
    /// Reads the secrets as they are now.
    pub(super) fn new(config: &MysqlConfig) -> Result<Self, Error> {
        let purpose = format!("sink {}", config.name);
        let url = config.url.resolve(&purpose)?;
        let wrong = |message: String| Error::misconfigured(&purpose, message, "Write mysql://user@host:3306/database");
        if !url.reveal().starts_with("mysql://") {
            return Err(wrong("its url does not begin with mysql://".to_owned()));
        }
        // The parser's own error may quote the URL, and with it a password.
        let parsed = url.reveal().parse::<MySqlConnectOptions>();
        let mut options = parsed.map_err(|_| wrong("its url cannot be read, or an option of it has no such value".to_owned()))?;
        let Some(database) = options.get_database().map(str::to_owned) else {
            return Err(wrong("its url names no database".to_owned()));
        };
        if let Some(password) = &config.password {
            options = options.password(password.resolve(&purpose)?.reveal());
        }
        let plain = matches!(options.get_ssl_mode(), MySqlSslMode::Disabled | MySqlSslMode::Preferred);
        if config.iam_region.is_some() && plain {
            let message = "with iam_region its password is a token that must not be seen on the way";
            return Err(Error::misconfigured(&purpose, message, "Add ssl-mode=VERIFY_IDENTITY to its url"));
        }
        let iam = config.iam_region.as_deref().map(Iam::new);
        options = options
            .enable_cleartext_plugin(iam.is_some())
            .charset("utf8mb4")
            .statement_cache_capacity(STATEMENT_CACHE)
            .pipes_as_concat(false);
        let target = format!("MySQL {}:{}/{database}", options.get_host(), options.get_port());
        Ok(Self { target, options, iam })
    }

    /// For a pool of connections that read.
    pub(super) fn options(&self) -> MySqlConnectOptions {
        self.options.clone()
    }

    /// The same with a token for connections that are opened within the next minutes, where tokens are used.
    pub(super) async fn with_token(&self) -> Result<Option<MySqlConnectOptions>, Error> {
        let Some(iam) = &self.iam else { return Ok(None) };
        let (host, port, user) = (self.options.get_host(), self.options.get_port(), self.options.get_username());
        let token = iam.token(&self.target, host, port, user).await?;
        Ok(Some(self.options.clone().password(token.reveal())))
    }

    /// Opens a connection. Its transactions see what others have committed before each statement, and nothing is ever shortened to fit.
    pub(super) async fn connect(&self) -> Result<MySqlConnection, Error> {
        let failed = |error| classify(&self.target, &error);
        let late = |_| Error::unavailable(&self.target, format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
        let options = self.with_token().await?.unwrap_or_else(|| self.options());
        let connecting = MySqlConnection::connect_with(&options);
        let mut connection = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?.map_err(failed)?;
        for setting in [
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
            "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ] {
            sqlx::query(setting).execute(&mut connection).await.map_err(failed)?;
        }
        Ok(connection)
    }

    /// Brings our own tables up to date. sqlx takes a lock of the server meanwhile, so several may come at once.
    pub(super) async fn migrate(&self) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let mut migrator = sqlx::migrate!("../../migrations/mysql");
        migrator.dangerous_set_table_name("_tributary_migrations");
        migrator.run_direct(None, &mut connection, false).await.map_err(|error| migration_error(&self.target, error))?;
        // A goodbye that gets lost does no harm.
        let _ = connection.close().await;
        Ok(())
    }
}

fn migration_error(target: &str, error: sqlx::migrate::MigrateError) -> Error {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => classify(target, &error),
        MigrateError::VersionMissing(_) | MigrateError::VersionTooNew(..) => {
            Error::misconfigured(target, error, "It was written by a newer Tributary: use that one, or another database")
        }
        MigrateError::Dirty(_) => Error::misconfigured(
            target,
            error,
            "A migration was cut short, and MySQL cannot take its statements back: drop the tables whose names begin with _tributary, and load again",
        ),
        error => {
            Error::misconfigured(target, error, "Its bookkeeping tables are not Tributary's: give the sink a database of its own")
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_bad_url_is_refused_without_being_quoted() {
        for url in
            ["mysql://u:hunter2@h/d?ssl-mode=maybe", "mysql://u:hunter2@h", "postgres://u:hunter2@h/d", "mysql://u:hunter2@h:x/d"]
        {
            let error = Connector::new(&MysqlConfig::new(url)).err().unwrap().to_string();
            assert!(!error.contains("hunter2") && error.contains("mysql://user@host"), "{error}");
        }
        assert_eq!(Connector::new(&MysqlConfig::new("mysql://u@h/d")).unwrap().target, "MySQL h:3306/d");
    }

    #[tokio::test]
    async fn a_token_is_made_for_the_server_and_not_sent_without_tls() {
        let mut config = MysqlConfig::new("mysql://app@db.example/shop");
        config.iam_region = Some("eu-central-1".to_owned());
        let error = Connector::new(&config).err().unwrap().to_string();
        assert!(error.contains("ssl-mode=VERIFY_IDENTITY"), "{error}");
        config.url = crate::UrlSource::Text("mysql://app@db.example/shop?ssl-mode=VERIFY_IDENTITY".to_owned());
        let mut connector = Connector::new(&config).unwrap();
        let credentials = aws_credential_types::Credentials::new("akid", "secret", None, None, "test");
        connector.iam = Some(Iam::with("eu-central-1", credentials));
        assert!(connector.with_token().await.unwrap().is_some());
        assert!(Connector::new(&MysqlConfig::new("mysql://u@h/d")).unwrap().with_token().await.unwrap().is_none());
    }
}
