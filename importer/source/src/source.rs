//! Where the source is and how to log in to it.
//!
//! Either one URL, `sqlserver://user:password@host:port/database?encrypt=on`, or separate keys, or a URL with keys beside it that fill in what it leaves out.
//! In a URL, the last `@` ends the password, which may hold `@`, `?` and `/` as they are; an option's value that holds `@` is written with `%40`.
//! A password is best kept out of the file: `${NAME}` is taken from the environment, `password_file` from a file. It is never printed: [`Password`] shows
//! stars, [`Source`] displays as `sqlserver://user@host:port/database`, and no error quotes a URL.

use std::fmt;
use std::path::PathBuf;

use schemas::ErrorClass;
use serde::Deserialize;

/// SQL Server's own port.
const DEFAULT_PORT: u16 = 1433;

/// A password that does not show itself.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Password(String);

impl Password {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

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
    pub encrypt: Option<Encryption>,
    pub trust_certificate: Option<bool>,
    pub ca_file: Option<PathBuf>,
}

fn password<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Password>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Password))
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
    pub database: String,
    pub user: String,
    pub password: Password,
    pub encrypt: Encryption,
    pub trust_certificate: bool,
    pub ca_file: Option<PathBuf>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlserver://{}@{}:{}/{}", self.user, self.host, self.port, self.database)
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
    #[error("source url: unknown option {name}: known are encrypt, trust_certificate, ca_file, password_file")]
    UnknownOption { name: String },
    #[error("source: {key} is {value}: expected {expected}")]
    BadValue { key: &'static str, value: String, expected: &'static str },
    #[error("source: {key} is missing: give it in the url or as `{key}:`")]
    Missing { key: &'static str },
    #[error("source: the password refers to ${{{name}}}, which is not in the environment: export {name}=…")]
    NoVariable { name: String },
    #[error("source: the password file {path}: {source}")]
    PasswordFile { path: PathBuf, source: std::io::Error },
    #[error(
        "source: ca_file and trust_certificate exclude each other: with trust_certificate any certificate is accepted, so leave out one"
    )]
    TrustConflict,
}

impl SourceError {
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Misconfigured
    }
}

impl Source {
    /// From a URL, with the process's environment.
    pub fn from_url(url: &str) -> Result<Self, SourceError> {
        Self::from_settings(&SourceSettings { url: Some(SourceUrl::new(url)), ..SourceSettings::default() })
    }

    /// From settings, with the process's environment.
    pub fn from_settings(settings: &SourceSettings) -> Result<Self, SourceError> {
        resolve(settings, &|name| std::env::var(name).ok())
    }
}

fn resolve(settings: &SourceSettings, environment: &dyn Fn(&str) -> Option<String>) -> Result<Source, SourceError> {
    let url = settings.url.as_ref().map(|url| parse_url(&url.0)).transpose()?.unwrap_or_default();
    let required = |given: &Option<String>, in_url: Option<String>, key| {
        given.clone().or(in_url).filter(|value| !value.is_empty()).ok_or(SourceError::Missing { key })
    };
    let password = match settings.password_file.as_ref().or(url.password_file.as_ref()) {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|source| SourceError::PasswordFile { path: path.clone(), source })?;
            Password(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => settings.password.clone().or(url.password).ok_or(SourceError::Missing { key: "password" })?,
    };
    let source = Source {
        host: required(&settings.host, url.host, "host")?,
        port: settings.port.or(url.port).unwrap_or(DEFAULT_PORT),
        database: required(&settings.database, url.database, "database")?,
        user: required(&settings.user, url.user, "user")?,
        password: from_environment(password, environment)?,
        encrypt: settings.encrypt.or(url.encrypt).unwrap_or_default(),
        trust_certificate: settings.trust_certificate.or(url.trust_certificate).unwrap_or(false),
        ca_file: settings.ca_file.clone().or(url.ca_file),
    };
    if source.trust_certificate && source.ca_file.is_some() {
        return Err(SourceError::TrustConflict);
    }
    Ok(source)
}

/// `${NAME}` as a whole is the variable's value; anything else is the password itself.
fn from_environment(password: Password, environment: &dyn Fn(&str) -> Option<String>) -> Result<Password, SourceError> {
    match password.0.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
        Some(name) => environment(name).map(Password).ok_or_else(|| SourceError::NoVariable { name: name.to_owned() }),
        None => Ok(password),
    }
}

/// The parts that a URL gives.
#[derive(Default)]
struct UrlParts {
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    user: Option<String>,
    password: Option<Password>,
    password_file: Option<PathBuf>,
    encrypt: Option<Encryption>,
    trust_certificate: Option<bool>,
    ca_file: Option<PathBuf>,
}

fn parse_url(url: &str) -> Result<UrlParts, SourceError> {
    let rest = url.strip_prefix("sqlserver://").or_else(|| url.strip_prefix("mssql://")).ok_or(SourceError::NotAUrl)?;
    let (login, place, query) = split_login(rest);
    // Without a login and a database around it, what stands for a port or an option may be a piece of a password.
    let safe = login.is_some() && place.contains('/');
    let mut parts = UrlParts::default();
    if let Some(login) = login {
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        parts.user = Some(decode(user, "the user")?);
        parts.password = password.map(|password| decode(password, "the password")).transpose()?.map(Password);
    }
    let (host_port, database) = place.split_once('/').unwrap_or((place, ""));
    parts.database = Some(decode(database, "the database")?);
    let (host, port) = split_port(host_port, login.is_some())?;
    parts.host = Some(host.to_owned());
    parts.port = port;
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        set_option(&mut parts, name, decode(value, "an option")?, safe)?;
    }
    Ok(parts)
}

/// Login, place and options of a URL. The last `@` ends the password, so that one with `@` or `?` in it works unescaped; but an `@` among options that follow a
/// whole address is theirs.
fn split_login(rest: &str) -> (Option<&str>, &str, &str) {
    let options =
        |text: &'_ str| text.split('&').all(|option| OPTIONS.iter().any(|name| option.split('=').next() == Some(*name)));
    let split_query = |text| -> (&str, &str) { str::split_once(text, '?').unwrap_or((text, "")) };
    let (address, query) = split_query(rest);
    if let Some((login, place)) = address.rsplit_once('@')
        && (!query.contains('@') || options(query))
    {
        return (Some(login), place, query);
    }
    match rest.rsplit_once('@') {
        Some((login, place)) => {
            let (place, query) = split_query(place);
            (Some(login), place, query)
        }
        None => (None, address, query),
    }
}

/// What an error may say of a text.
fn shown(text: &str, safe: bool) -> String {
    if safe {
        format!("{text:?}")
    } else {
        "(not shown, for it may be a part of the password: write ? in one as %3F and @ as %40)".to_owned()
    }
}

/// The options that a URL may have.
const OPTIONS: [&str; 4] = ["encrypt", "trust_certificate", "ca_file", "password_file"];

/// `host`, `host:port`, `[::1]`, `[::1]:port`.
fn split_port(text: &str, safe: bool) -> Result<(&str, Option<u16>), SourceError> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').ok_or(SourceError::NotAUrl)?)),
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let bad =
        |value: &str| SourceError::BadValue { key: "port", value: shown(value, safe), expected: "a number from 1 to 65535" };
    let port = port.map(|port| port.parse().map_err(|_| bad(port))).transpose()?;
    Ok((host, port))
}

fn set_option(parts: &mut UrlParts, name: &str, value: String, safe: bool) -> Result<(), SourceError> {
    match name {
        "encrypt" => {
            parts.encrypt = Some(match value.as_str() {
                "off" | "false" => Encryption::Off,
                "on" | "true" => Encryption::On,
                "strict" => Encryption::Strict,
                _ => {
                    return Err(SourceError::BadValue {
                        key: "encrypt",
                        value: shown(&value, safe),
                        expected: "off, on or strict",
                    });
                }
            });
        }
        "trust_certificate" => {
            parts.trust_certificate = Some(match value.as_str() {
                "true" | "" => true,
                "false" => false,
                _ => {
                    return Err(SourceError::BadValue {
                        key: "trust_certificate",
                        value: shown(&value, safe),
                        expected: "true or false",
                    });
                }
            });
        }
        "ca_file" => parts.ca_file = Some(value.into()),
        "password_file" => parts.password_file = Some(value.into()),
        _ => return Err(SourceError::UnknownOption { name: shown(name, safe) }),
    }
    Ok(())
}

fn decode(text: &str, part: &'static str) -> Result<String, SourceError> {
    let error = || SourceError::Percent { part };
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(error);
        let value = digit()? * 16 + digit()?;
        out.push(u8::try_from(value).map_err(|_| error())?);
    }
    String::from_utf8(out).map_err(|_| error())
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
