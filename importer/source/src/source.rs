//! Where the source is and how to log in to it.
//!
//! Either one URL, `sqlserver://user:password@host:port/database?encrypt=on`, or separate keys, or a URL with keys beside it that fill in what it leaves out.
//! In a URL, the last `@` ends the password, which may hold `@`, `?` and `/` as they are; an option's value that holds `@` is written with `%40`.
//! A password is best kept out of the file: `${NAME}` is taken from the environment, `password_file` from a file, at each connection anew. It is never
//! printed: [`Password`] shows stars, [`Source`] displays as `sqlserver://user@host:port/database`, and no error quotes a URL.
//!
//! # Options, in the URL or as keys
//! | | |
//! |---|---|
//! | `encrypt` | `on` (TDS 7.4, the default), `strict` (TDS 8), `off` |
//! | `ca_file` | certificate authorities to trust besides the system's, PEM or DER; read at each connection |
//! | `host_in_certificate` | the name that the certificate carries, where it is not the host's (a listener, a tunnel) |
//! | `trust_certificate` | accept any certificate |
//! | `instance` | a named instance (`host\\instance` in the URL): its port is asked of the SQL Server Browser, unless `port` is given |
//! | `read_only` | read-only intent: an availability group's listener leads to a readable secondary |
//! | `multi_subnet_failover` | try all addresses of the host at once and take the first that answers |
//! | `password_file`, `token_file` | a password, or a Microsoft Entra access token, kept in a file that others renew |
//!
//! What the driver cannot do: Windows and Kerberos logins (it needs a system library that is not linked), getting a token by itself, named pipes, Always Encrypted.

use std::fmt;
use std::path::PathBuf;

use schemas::ErrorClass;
use serde::Deserialize;

use super::network::Network;
pub use super::password::Password;
use super::url::parse_url;

/// SQL Server's own port.
const DEFAULT_PORT: u16 = 1433;

/// Whether the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Not at all, the login neither: for a network that is trusted, and for the stand-in.
    Off,
    /// From the login on (TDS 7.4).
    #[default]
    On,
    /// From the first byte (TDS 8, SQL Server 2022).
    Strict,
}

/// The source as a configuration has it. Unknown keys are refused.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSettings {
    pub url: Option<SourceUrl>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub database: Option<String>,
    pub user: Option<String>,
    #[serde(default, deserialize_with = "password")]
    pub password: Option<Password>,
    pub password_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "password")]
    pub token: Option<Password>,
    pub token_file: Option<PathBuf>,
    pub encrypt: Option<Encryption>,
    pub trust_certificate: Option<bool>,
    pub ca_file: Option<PathBuf>,
    pub host_in_certificate: Option<String>,
    pub instance: Option<String>,
    pub read_only: Option<bool>,
    pub multi_subnet_failover: Option<bool>,
}

fn password<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Password>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Password::new))
}

/// A URL that may hold a password, and so does not show itself.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SourceUrl(String);

impl SourceUrl {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sqlserver://***")
    }
}

/// A source, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub host: String,
    pub port: u16,
    /// A named instance, whose port is to be asked for.
    pub instance: Option<String>,
    pub database: String,
    /// Empty with a token.
    pub user: String,
    /// What is used unless there is a file.
    pub password: Password,
    /// Where the password is kept alone: it is read at each connection, so that a rotated one is taken up without a restart.
    pub password_file: Option<PathBuf>,
    /// The password is an access token.
    pub token: bool,
    pub encrypt: Encryption,
    pub trust_certificate: bool,
    pub ca_file: Option<PathBuf>,
    pub host_in_certificate: Option<String>,
    pub read_only: bool,
    pub multi_subnet_failover: bool,
    pub network: Network,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.token { "token" } else { &self.user };
        match &self.instance {
            Some(instance) => write!(f, "sqlserver://{user}@{}\\{instance}/{}", self.host, self.database),
            None => write!(f, "sqlserver://{user}@{}:{}/{}", self.host, self.port, self.database),
        }
    }
}

/// What is wrong with a source's address. Never quotes the URL, which may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "source url: expected sqlserver://user:password@host:port/database, as in sqlserver://tributary:${{SOURCE_PASSWORD}}@db.example.com:1433/shop"
    )]
    NotAUrl,
    #[error("source url: {part} has a % that is not followed by two hexadecimal digits: write % itself as %25")]
    Percent { part: &'static str },
    #[error("source url: unknown option {name}: known are {known}")]
    UnknownOption { name: String, known: String },
    #[error("source: {key} is {value}: expected {expected}")]
    BadValue { key: &'static str, value: String, expected: &'static str },
    #[error("source: {key} is missing: give it in the url or as `{key}:`")]
    Missing { key: &'static str },
    #[error("source: the password refers to ${{{name}}}, which is not in the environment: export {name}=…")]
    NoVariable { name: String },
    #[error("source: {path}, where the password or the token should be: {source}")]
    PasswordFile { path: PathBuf, source: std::io::Error },
    #[error(
        "source: ca_file and trust_certificate exclude each other: with trust_certificate any certificate is accepted, so leave out one"
    )]
    TrustConflict,
    #[error("source: a token takes the place of user and password: leave out one or the other")]
    TokenConflict,
    #[error("source: ca_file {path}: {source}")]
    CaFile { path: PathBuf, source: std::io::Error },
}

impl SourceError {
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Misconfigured
    }
}

impl Source {
    /// From settings, with the process's environment.
    pub fn from_settings(settings: &SourceSettings) -> Result<Self, SourceError> {
        resolve(settings, &|name| std::env::var(name).ok())
    }

    /// A login with a password, and everything else as it is by default.
    pub fn sql_login(
        host: impl Into<String>,
        port: u16,
        database: impl Into<String>,
        user: impl Into<String>,
        password: Password,
    ) -> Self {
        Self {
            host: host.into(),
            port,
            instance: None,
            database: database.into(),
            user: user.into(),
            password,
            password_file: None,
            token: false,
            encrypt: Encryption::default(),
            trust_certificate: false,
            ca_file: None,
            host_in_certificate: None,
            read_only: false,
            multi_subnet_failover: false,
            network: Network::default(),
        }
    }

    /// The password or token, as it is now.
    pub(crate) fn secret(&self) -> Result<Password, SourceError> {
        match &self.password_file {
            None => Ok(self.password.clone()),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(Password::new(text.trim_end_matches(['\r', '\n']))),
                Err(source) => Err(SourceError::PasswordFile { path: path.clone(), source }),
            },
        }
    }

    /// The certificate authorities to trust, as they are now.
    pub(crate) fn authorities(&self) -> Result<Option<Vec<u8>>, SourceError> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|source| SourceError::CaFile { path: path.clone(), source });
        self.ca_file.as_ref().map(read).transpose()
    }
}

fn resolve(settings: &SourceSettings, environment: &dyn Fn(&str) -> Option<String>) -> Result<Source, SourceError> {
    let url = settings.url.as_ref().map(|url| parse_url(&url.0)).transpose()?.unwrap_or_default();
    let required = |given: &Option<String>, in_url: Option<String>, key| {
        given.clone().or(in_url).filter(|value| !value.is_empty()).ok_or(SourceError::Missing { key })
    };
    // Of a file and the text itself, the file: it is the one that others renew.
    let kept = |file: Option<PathBuf>, text: Option<Password>| match file {
        Some(file) => Some((Some(file), Password::default())),
        None => text.map(|text| (None, text)),
    };
    let token = kept(settings.token_file.clone().or(url.token_file), settings.token.clone());
    let password = kept(settings.password_file.clone().or(url.password_file), settings.password.clone().or(url.password));
    let named = settings.user.is_some() || url.user.is_some();
    let (user, (password_file, secret), token) = match (token, password) {
        (Some(_), Some(_)) => return Err(SourceError::TokenConflict),
        (Some(_), None) if named => return Err(SourceError::TokenConflict),
        (Some(token), None) => (String::new(), token, true),
        (None, password) => {
            let user = required(&settings.user, url.user, "user")?;
            (user, password.ok_or(SourceError::Missing { key: "password" })?, false)
        }
    };
    let port = settings.port.or(url.port);
    let source = Source {
        host: required(&settings.host, url.host, "host")?,
        // Who names the port need not ask for it.
        instance: settings.instance.clone().or(url.instance).filter(|name| !name.is_empty() && port.is_none()),
        port: port.unwrap_or(DEFAULT_PORT),
        database: required(&settings.database, url.database, "database")?,
        user,
        password: secret.resolve(environment)?,
        password_file,
        token,
        encrypt: settings.encrypt.or(url.encrypt).unwrap_or_default(),
        trust_certificate: settings.trust_certificate.or(url.trust_certificate).unwrap_or(false),
        ca_file: settings.ca_file.clone().or(url.ca_file),
        host_in_certificate: settings.host_in_certificate.clone().or(url.host_in_certificate),
        read_only: settings.read_only.or(url.read_only).unwrap_or(false),
        multi_subnet_failover: settings.multi_subnet_failover.or(url.multi_subnet_failover).unwrap_or(false),
        network: Network::default(),
    };
    if source.trust_certificate && source.ca_file.is_some() {
        return Err(SourceError::TrustConflict);
    }
    // What is not there now is told now, though it is read again later.
    source.secret()?;
    Ok(source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn from(url: &str) -> Result<Source, SourceError> {
        let settings = SourceSettings { url: Some(SourceUrl::new(url)), ..SourceSettings::default() };
        resolve(&settings, &|name| (name == "SECRET").then(|| "from outside".to_owned()))
    }

    #[test]
    fn a_url_says_everything() {
        let source =
            from("sqlserver://sa:p%40ss%2Fword@db.example.com:1444/my%20shop?encrypt=strict&ca_file=/etc/ca.pem").unwrap();
        assert_eq!((source.host.as_str(), source.port, source.database.as_str()), ("db.example.com", 1444, "my shop"));
        assert_eq!((source.user.as_str(), source.password.reveal(), source.encrypt), ("sa", "p@ss/word", Encryption::Strict));
        let source = from("sqlserver://sa:a@b:c@[::1]/shop?encrypt=off").unwrap();
        assert_eq!(
            (source.host.as_str(), source.port, source.password.reveal(), source.encrypt),
            ("::1", 1433, "a@b:c", Encryption::Off)
        );
        assert_eq!(from("sqlserver://sa:${SECRET}@h/d").unwrap().password.reveal(), "from outside");
    }

    #[test]
    fn every_option_is_known_and_others_are_refused() {
        let source = from(
            "sqlserver://sa:p@db\\SALES/d?read_only=true&multi_subnet_failover&host_in_certificate=sql.example.com&encrypt=on",
        )
        .unwrap();
        assert_eq!((source.host.as_str(), source.instance.as_deref()), ("db", Some("SALES")));
        assert!(source.read_only && source.multi_subnet_failover);
        assert_eq!(source.host_in_certificate.as_deref(), Some("sql.example.com"));
        assert_eq!(source.to_string(), "sqlserver://sa@db\\SALES/d");
        assert_eq!(from("sqlserver://sa:p@db/d?instance=SALES").unwrap().instance.as_deref(), Some("SALES"));
        let with_port = from("sqlserver://sa:p@db\\SALES:1500/d").unwrap();
        assert_eq!((with_port.instance, with_port.port), (None, 1500));
        assert!(from("sqlserver://sa:p@h/d?read_only=perhaps").unwrap_err().to_string().contains("true or false"));
        assert!(from("sqlserver://sa:p@h/d?readonly=true").unwrap_err().to_string().contains("read_only"));
    }

    #[test]
    fn a_token_takes_the_place_of_user_and_password() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "eyJ0\n").unwrap();
        let source = from(&format!("sqlserver://h/d?token_file={}", path.display())).unwrap();
        assert!(source.token && source.user.is_empty());
        assert_eq!(source.secret().unwrap().reveal(), "eyJ0");
        std::fs::write(&path, "renewed").unwrap();
        assert_eq!(source.secret().unwrap().reveal(), "renewed");
        assert_eq!(source.to_string(), "sqlserver://token@h:1433/d");
        let both = from(&format!("sqlserver://sa:p@h/d?token_file={}", path.display()));
        assert!(matches!(both, Err(SourceError::TokenConflict)));
        let missing = from("sqlserver://h/d?token_file=/nowhere/at/all").unwrap_err();
        assert!(missing.to_string().contains("/nowhere/at/all"), "{missing}");
    }

    #[test]
    fn the_password_is_never_shown() {
        let settings = SourceSettings {
            url: Some(SourceUrl::new("sqlserver://sa:hunter2@h/d")),
            password: Some(Password::new("hunter2")),
            ..SourceSettings::default()
        };
        let source = from("sqlserver://sa:hunter2@h/d").unwrap();
        for text in [format!("{settings:?}"), format!("{source:?}"), format!("{source}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        for url in ["sqlserver://sa:hunter2%@h/d", "sa:hunter2@h", "sqlserver://sa:hunter2@h:99999/d", "sqlserver://sa:hunter2@h"]
        {
            let error = from(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        for (url, password) in [
            ("sqlserver://sa:12?secret@h/d", "12?secret"),
            ("sqlserver://sa:pa?ss@h/d", "pa?ss"),
            ("sqlserver://sa:pa?ss@h/d?encrypt=off", "pa?ss"),
            ("sqlserver://sa:p@s?s@h/d", "p@s?s"),
            ("sqlserver://sa:p/s?encrypt=s@h/d", "p/s?encrypt=s"),
            ("sqlserver://sa:pass@h/d?ca_file=/etc/a@b.pem", "pass"),
        ] {
            let source = from(url).unwrap();
            assert_eq!((source.password.reveal(), source.host.as_str(), source.database.as_str()), (password, "h", "d"), "{url}");
        }
        // Without a host, or with a mistake besides.
        for url in [
            "sqlserver://sa:hunter2",
            "sqlserver://sa:12?hunter2",
            "sqlserver://sa:12?encrypt=hunter2",
            "sqlserver://sa:a?hunter2@h:x/d",
        ] {
            let error = from(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let message = |url: &str| from(url).unwrap_err().to_string();
        assert!(message("http://x").starts_with("source url: expected sqlserver://"));
        assert_eq!(message("sqlserver://sa:p@h"), "source: database is missing: give it in the url or as `database:`");
        assert!(message("sqlserver://sa:${OTHER}@h/d").contains("export OTHER="));
        assert!(message("sqlserver://sa:p@h/d?encrypt=maybe").contains("off, on or strict"));
        assert!(message("sqlserver://sa:p@h/d?encypt=on").contains("unknown option \"encypt\""));
        assert!(message("sqlserver://sa@h/d").contains("password is missing"));
        assert!(message("sqlserver://sa:p@h/d?trust_certificate=true&ca_file=x").contains("exclude each other"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_source_or_is_refused(text in "(sqlserver://)?.{0,40}") {
            let _ = from(&text);
        }
    }
}
