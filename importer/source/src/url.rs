//! Reading a source's URL.
//!
//! A password is often put into a URL as it is. So the last `@` ends the login, whatever stands before it; and no error shows a piece of text that may be part of a password.

use std::path::PathBuf;

use super::password::Password;
use super::source::{Encryption, SourceError};

/// The parts that a URL gives.
#[derive(Default)]
pub(super) struct UrlParts {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) instance: Option<String>,
    pub(super) database: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Password>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) encrypt: Option<Encryption>,
    pub(super) trust_certificate: Option<bool>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) host_in_certificate: Option<String>,
    pub(super) read_only: Option<bool>,
    pub(super) multi_subnet_failover: Option<bool>,
}

pub(super) fn parse_url(url: &str) -> Result<UrlParts, SourceError> {
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
        parts.password = password.map(|password| decode(password, "the password")).transpose()?.map(Password::new);
    }
    let (host_port, database) = place.split_once('/').unwrap_or((place, ""));
    parts.database = Some(decode(database, "the database")?);
    let (host, port) = split_port(host_port, login.is_some())?;
    // As SQL Server's own tools write it: host\instance.
    let (host, instance) = host.split_once('\\').map_or((host, None), |(host, instance)| (host, Some(instance)));
    parts.instance = instance.map(|instance| decode(instance, "the instance")).transpose()?;
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
const OPTIONS: [&str; 9] = [
    "encrypt",
    "trust_certificate",
    "ca_file",
    "host_in_certificate",
    "password_file",
    "token_file",
    "instance",
    "read_only",
    "multi_subnet_failover",
];

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
    let bad = |key, value: &str, expected| SourceError::BadValue { key, value: shown(value, safe), expected };
    let flag = |key, value: &str| match value {
        "true" | "" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => Err(bad(key, value, "true or false")),
    };
    match name {
        "encrypt" => {
            parts.encrypt = Some(match value.as_str() {
                "off" | "false" => Encryption::Off,
                "on" | "true" => Encryption::On,
                "strict" => Encryption::Strict,
                _ => return Err(bad("encrypt", &value, "off, on or strict")),
            });
        }
        "trust_certificate" => parts.trust_certificate = flag("trust_certificate", &value)?,
        "read_only" => parts.read_only = flag("read_only", &value)?,
        "multi_subnet_failover" => parts.multi_subnet_failover = flag("multi_subnet_failover", &value)?,
        "ca_file" => parts.ca_file = Some(value.into()),
        "host_in_certificate" => parts.host_in_certificate = Some(value),
        "password_file" => parts.password_file = Some(value.into()),
        "token_file" => parts.token_file = Some(value.into()),
        "instance" => parts.instance = Some(value),
        _ => return Err(SourceError::UnknownOption { name: shown(name, safe), known: OPTIONS.join(", ") }),
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
