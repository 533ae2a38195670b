//! One connection to SQL Server: making it, and asking it.
//!
//! A connection is used by one task, one request at a time. After an error in the middle of an answer it is out of step with the server: the caller drops it and
//! makes a new one. That is why [`Client`] hands out whole results or streams that are read to their end, and never tries to mend itself.

use std::time::Duration;

use futures_util::TryStreamExt;
use tiberius::{AuthMethod, ColumnData, EncryptionLevel, Query, QueryItem, Row};
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use super::error::Error;
use super::network::Wire;
use super::reach::Place;
use super::source::{Encryption, Source, SourceError};

/// How long encryption and login may take once the server has answered.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the server may be silent within an answer. Long, because a scan may start slowly; a network that has gone away is noticed by it as well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// The largest that SQL Server grants without encryption trouble; fewer, larger packets matter for pages of rows.
const PACKET_BYTES: u32 = 16_384;

/// A connection.
pub struct Client {
    inner: tiberius::Client<Compat<Box<dyn Wire>>>,
}

/// Errors that the server answers to a login, which mean that it is refused.
const LOGIN_REFUSED: [u32; 9] = [18456, 18452, 18470, 18486, 18487, 18488, 18450, 18451, 18458];
/// Errors that mean that the database cannot be opened.
const DATABASE_REFUSED: [u32; 3] = [4060, 4064, 911];

impl Client {
    /// Connects and logs in. Passwords, tokens and certificate authorities that are kept in files are read for it.
    pub async fn connect(source: &Source) -> Result<Self, Error> {
        let place = Place {
            host: &source.host,
            port: source.port,
            instance: source.instance.as_deref(),
            at_once: source.multi_subnet_failover,
            network: &source.network,
        };
        match Self::connect_to(source, &place).await {
            // A gateway (Azure, an availability group's listener) may name another place, once.
            Err(ConnectError::Routed { host, port }) => {
                let routed = Place { host: &host, port, instance: None, at_once: false, network: &source.network };
                match Self::connect_to(source, &routed).await {
                    Ok(client) => Ok(client),
                    Err(ConnectError::Failed(error)) => Err(error),
                    Err(ConnectError::Routed { .. }) => {
                        Err(Error::Unreachable { address: routed.address(), message: "it refers to yet another server".into() })
                    }
                }
            }
            Err(ConnectError::Failed(error)) => Err(error),
            Ok(client) => Ok(client),
        }
    }

    async fn connect_to(source: &Source, place: &Place<'_>) -> Result<Self, ConnectError> {
        let configuration = configuration(source, place).map_err(|error| ConnectError::Failed(error.into()))?;
        let wire = place.connect().await.map_err(ConnectError::Failed)?;
        // The handshake's state is large, and needed once.
        match Box::pin(tiberius::Client::connect(configuration, wire.compat_write())).await {
            Ok(inner) => Ok(Self { inner }),
            Err(tiberius::error::Error::Routing { host, port }) => Err(ConnectError::Routed { host, port }),
            Err(error) => Err(ConnectError::Failed(connect_error(source, place.address(), error))),
        }
    }

    /// Runs a query with parameters and answers all of its rows, one list for each result set.
    pub async fn query(
        &mut self,
        doing: &'static str,
        sql: &str,
        parameters: Vec<ColumnData<'_>>,
    ) -> Result<Vec<Vec<Row>>, Error> {
        let mut results: Vec<Vec<Row>> = Vec::new();
        self.for_each(doing, sql, parameters, |result, row| {
            while results.len() <= result {
                results.push(Vec::new());
            }
            results[result].push(row);
            Ok(())
        })
        .await?;
        Ok(results)
    }

    /// The rows of the first result set.
    pub async fn rows(&mut self, doing: &'static str, sql: &str, parameters: Vec<ColumnData<'_>>) -> Result<Vec<Row>, Error> {
        Ok(self.query(doing, sql, parameters).await?.into_iter().next().unwrap_or_default())
    }

    /// Runs a query and hands over each row as it arrives, with the number of its result set. An error of the callback is answered after the rest has been
    /// read, so that the connection stays in step.
    pub async fn for_each(
        &mut self,
        doing: &'static str,
        sql: &str,
        parameters: Vec<ColumnData<'_>>,
        mut row: impl FnMut(usize, Row) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut query = Query::new(sql);
        for parameter in parameters {
            query.bind(Parameter(parameter));
        }
        let mut stream = query.query(&mut self.inner).await.map_err(|error| Error::of(doing, error))?;
        let mut failed = Ok(());
        while let Some(item) = stream.try_next().await.map_err(|error| Error::of(doing, error))? {
            if let QueryItem::Row(next) = item
                && failed.is_ok()
            {
                failed = row(next.result_index(), next);
            }
        }
        failed
    }

    /// Runs a query and answers its rows as a stream. Whoever stops before the end drops the connection.
    pub async fn stream(
        &mut self,
        doing: &'static str,
        sql: &str,
    ) -> Result<futures_util::stream::BoxStream<'_, Result<Row, Error>>, Error> {
        let stream = Query::new(sql).query(&mut self.inner).await.map_err(|error| Error::of(doing, error))?;
        Ok(Box::pin(stream.into_row_stream().map_err(move |error| Error::of(doing, error))))
    }

    /// Runs a procedure without parameters as a batch: procedures that answer rows may not stand in `sp_executesql` beside parameters of ours.
    pub async fn batch(&mut self, doing: &'static str, sql: &str) -> Result<Vec<Row>, Error> {
        let stream = self.inner.simple_query(sql).await.map_err(|error| Error::of(doing, error))?;
        stream.into_first_result().await.map_err(|error| Error::of(doing, error))
    }
}

enum ConnectError {
    Routed { host: String, port: u16 },
    Failed(Error),
}

/// A parameter that is handed over as it is.
struct Parameter<'a>(ColumnData<'a>);

impl<'a> tiberius::IntoSql<'a> for Parameter<'a> {
    fn into_sql(self) -> ColumnData<'a> {
        self.0
    }
}

fn configuration(source: &Source, place: &Place<'_>) -> Result<tiberius::Config, SourceError> {
    let mut config = tiberius::Config::new();
    config.host(place.host);
    config.port(place.port);
    config.database(&source.database);
    config.application_name("tributary");
    let secret = source.secret()?;
    config.authentication(if source.token {
        AuthMethod::aad_token(secret.reveal())
    } else {
        AuthMethod::sql_server(&source.user, secret.reveal())
    });
    config.encryption(match source.encrypt {
        Encryption::Off => EncryptionLevel::NotSupported,
        Encryption::On => EncryptionLevel::Required,
        Encryption::Strict => EncryptionLevel::Strict,
    });
    // A source excludes both at once, which the driver would answer with a panic.
    if source.trust_certificate {
        config.trust_cert();
    } else if let Some(authorities) = source.authorities()? {
        config.trust_cert_ca_bundle(authorities);
    }
    if let Some(name) = &source.host_in_certificate {
        config.hostname_in_certificate(name);
    }
    config.readonly(source.read_only);
    config.handshake_timeout(Some(HANDSHAKE_TIMEOUT));
    config.packet_size(PACKET_BYTES);
    config.command_timeout(Some(ANSWER_TIMEOUT));
    // SQL Server stores UTF-16 unchecked. Half a surrogate pair cannot be written in JSON or any UTF-8 text at all: it becomes U+FFFD rather than the end of the import.
    config.lossy_utf16_decoding(true);
    Ok(config)
}

fn connect_error(source: &Source, address: String, error: tiberius::error::Error) -> Error {
    use tiberius::error::Error as Driver;
    match error {
        Driver::Server(error) if LOGIN_REFUSED.contains(&error.code()) => {
            Error::Login { address, user: source.user.clone(), code: error.code(), message: error.message().to_owned() }
        }
        Driver::Server(error) if DATABASE_REFUSED.contains(&error.code()) => Error::Database {
            address,
            user: source.user.clone(),
            database: source.database.clone(),
            message: error.message().to_owned(),
        },
        Driver::Server(error) => Error::Server {
            doing: "logging in",
            code: error.code(),
            severity: error.class(),
            message: error.message().to_owned(),
        },
        Driver::Tls(message) => Error::Tls { address, message },
        // A certificate that is not trusted reaches us as invalid data from the TLS layer.
        Driver::Io { kind: std::io::ErrorKind::InvalidData, message } => Error::Tls { address, message },
        Driver::Io { message, .. } => Error::Unreachable { address, message },
        Driver::Protocol(message) if message.contains("ncrypt") => Error::Tls { address, message: message.into_owned() },
        other => Error::Unreachable { address, message: other.to_string() },
    }
}
