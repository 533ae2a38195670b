//! What can go wrong with the source, and how each SQL Server error number is to be treated.

use schemas::{ErrorClass, Lsn, TableName};
use tiberius::error::Error as Driver;

use super::source::SourceError;
use super::sql::quote;

/// A failure of the source. Each says what was being done, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot reach SQL Server at {address}: {message}. Check host, port and firewall, and that the server is running and listens on TCP"
    )]
    Unreachable { address: String, message: String },
    #[error(
        "no encrypted connection with {address}: {message}. Give the certificate authority with `ca_file`, accept any certificate with `trust_certificate: true`, \
         or, on a network you trust, use `encrypt: off`"
    )]
    Tls { address: String, message: String },
    #[error(
        "SQL Server at {address} refuses the login of {user} (error {code}): {message}. Check user and password, and that SQL logins are enabled"
    )]
    Login { address: String, user: String, code: u32, message: String },
    #[error(
        "{user} cannot open database {database} at {address}: {message}. Check the name, and that the login has a user in it: \
         USE {}; CREATE USER {1} FOR LOGIN {1};",
        quote(database),
        quote(user)
    )]
    Database { address: String, user: String, database: String, message: String },
    #[error("{doing}: permission denied: {message}. {remedy}")]
    Permission { doing: &'static str, message: String, remedy: String },
    #[error(
        "change data capture is not enabled in database {database}. As a member of sysadmin, run: USE {}; EXEC sys.sp_cdc_enable_db;",
        quote(database)
    )]
    CdcDisabled { database: String },
    #[error("no capture instance for {tables}: the tables exist, but their changes are not captured. Run, for each: {remedy}")]
    NotCaptured { tables: String, remedy: String },
    #[error("no table matches {patterns}: the captured tables are {captured}. Correct `tables` in the configuration")]
    NoSuchTable { patterns: String, captured: String },
    #[error(
        "no table is captured in database {database}. Run, for each table: EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'…', @role_name = NULL;"
    )]
    NothingCaptured { database: String },
    #[error(
        "{table}: changes after {from} are gone: capture instance {instance} now begins at {min}. The cleanup job has removed them before they were read. Lengthen the \
         retention (EXEC sys.sp_cdc_change_job @job_type = N'cleanup', @retention = 10080;), then take a new snapshot: remove the importer's data directory and \
         start into an empty joiner state"
    )]
    Gap { table: TableName, instance: String, from: Lsn, min: Lsn },
    #[error(
        "{table}: its capture instance {instance} is gone, and with it the changes after {from}. If the table was given a new instance, take a new snapshot: remove the \
         importer's data directory and start into an empty joiner state"
    )]
    InstanceGone { table: TableName, instance: String, from: Lsn },
    #[error(
        "the database has captured up to {captured}, and the importer has published up to {saved}: it was restored from an older backup or is another database. \
         Its changes would repeat LSNs that the streams already hold with other contents. Take a new snapshot into new streams: give another `streams.prefix` (or, with embedded \
         streams, remove their folder), remove the importer's data directory, and start into an empty joiner state"
    )]
    WentBack { saved: Lsn, captured: Lsn },
    #[error(transparent)]
    Settings(#[from] SourceError),
    #[error("{table}: {what}. Give the values of the key's columns in their order, separated by commas")]
    BadKey { table: TableName, what: String },
    #[error("a snapshot at one LSN is not possible: {what}. {remedy}")]
    NoFence { what: String, remedy: String },
    #[error("{doing}: SQL Server error {code}: {message}")]
    Server { doing: &'static str, code: u32, severity: u8, message: String },
    #[error("{doing}: the connection failed: {message}")]
    Connection { doing: &'static str, message: String },
    #[error("{doing}: {what}. This is a fault of Tributary: please report it")]
    Unexpected { doing: &'static str, what: String },
}

impl Error {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } | Self::Connection { .. } => ErrorClass::Transient,
            Self::Server { code, severity, .. } => server_class(*code, *severity),
            Self::Unexpected { .. } => ErrorClass::Bug,
            _ => ErrorClass::Misconfigured,
        }
    }

    /// A driver's error while something was being done on an open connection.
    pub(super) fn of(doing: &'static str, error: Driver) -> Self {
        match error {
            Driver::Server(error) => Self::of_server(doing, error.code(), error.class(), error.message().to_owned()),
            Driver::Io { message, .. } | Driver::Tls(message) => Self::Connection { doing, message },
            // The driver reports an answer that broke off in the middle of a value, and a connection that it has given up, as protocol errors too:
            // a new connection is the right thing to try, and the retry budget bounds it if the server really talks nonsense.
            Driver::Protocol(message) => Self::Connection { doing, message: message.into_owned() },
            other => Self::Unexpected { doing, what: other.to_string() },
        }
    }

    fn of_server(doing: &'static str, code: u32, severity: u8, message: String) -> Self {
        match code {
            229 | 230 | 262 | 297 | 300 | 371 | 916 | 15247 | 22981 | 22904 => {
                let remedy = "Grant it to Tributary's login: ALTER ROLE db_datareader ADD MEMBER [login]; GRANT SELECT ON SCHEMA::cdc TO [login];".to_owned();
                Self::Permission { doing, message, remedy }
            }
            _ => Self::Server { doing, code, severity, message },
        }
    }

    /// An object or column that is no longer what the catalog said: it passes once the catalog has been read again, or it does not pass at all.
    pub fn is_missing_object(&self) -> bool {
        matches!(self, Self::Server { code: 207 | 208 | 4902 | 2801 | 16943, .. })
    }
}

/// Whether trying again may help.
fn server_class(code: u32, severity: u8) -> ErrorClass {
    match code {
        // Deadlock victim, out of locks, lock timeout, snapshot conflict.
        1205 | 1204 | 1222 | 3960 | 3961 => ErrorClass::Transient,
        // Out of memory, out of worker threads, resource governor.
        701 | 802 | 8645 | 8651 | 10928 | 10929 | 10936 => ErrorClass::Transient,
        // The database or the server is starting, stopping, failing over or being scaled.
        596 | 615 | 617 | 921 | 922 | 923 | 924 | 926 | 927 | 941 | 945 | 952 | 976 | 978 | 979 | 982 | 983 | 1105 | 3906
        | 3908 | 6005 | 9001 | 9002 | 17142 | 17197 | 18401 => ErrorClass::Transient,
        40143 | 40166 | 40197 | 40501 | 40540 | 40549 | 40550 | 40551 | 40552 | 40553 | 40613 | 42108 | 42109 | 49918 | 49919
        | 49920 => ErrorClass::Transient,
        // Timeouts and broken connections that are reported as errors.
        64 | 121 | 233 | 258 | 10053 | 10054 | 10060 | 10061 => ErrorClass::Transient,
        // Severity 20 and above closes the connection.
        _ if severity >= 20 => ErrorClass::Transient,
        // Invalid object name, a table altered under a query: a look at the catalog decides what has happened.
        208 | 207 | 4902 | 2801 | 16943 => ErrorClass::Transient,
        _ => ErrorClass::Bug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_classified() {
        let class = |code, severity| Error::of_server("reading", code, severity, "…".into()).class();
        assert_eq!(class(1205, 13), ErrorClass::Transient);
        assert_eq!(class(229, 14), ErrorClass::Misconfigured);
        assert_eq!(class(102, 15), ErrorClass::Bug);
        assert_eq!(class(99_999, 20), ErrorClass::Transient);
    }
}
